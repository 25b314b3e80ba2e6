/* SPDX-License-Identifier: Apache-2.0 */
/*
 * IDENTIFY: makes another machine out of the copy of one, while its programs run.
 *
 * What tells machines apart is replaced, the rest goes on as it was. Runs in a worker: the main process, which carries
 * out CONFIGURE, is the container's program by now. Source: docs/reference/agent-protocol.md, IDENTIFY.
 */
#define _GNU_SOURCE
#include "agent.h"

void identify(struct fields fields)
{
    if (!set_clock_and_entropy(fields, true))
        fail_errno("entropy and clock");
    set_names(fields); /* the container shares the agent's names and network */
    replace_network(fields);
    replace_files(fields, main_pid());
}
