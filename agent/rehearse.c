/* SPDX-License-Identifier: Apache-2.0 */
/*
 * REHEARSE: goes the way from CONFIGURE to the program once, in a child that leaves nothing behind, so that a
 * machine that waits for its container goes it faster: what is run for the first time has to be translated, read and
 * looked up, under emulation above all.
 *
 * The child has mount and UTS namespaces of its own; what else it changes (addresses, the files of every container,
 * limits) is taken back. Its program is the agent itself, inside the container's root, which reads the program that
 * is likely to come. No code of the image runs, and nothing is written to the disk.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#define READ_AHEAD (2u << 20) /* of the program: its loader reads the rest as it needs it */

extern char **environ;

void rehearse(struct fields fields, const struct stdio_ends *ends)
{
    pid_t pid = fork();
    if (pid < 0)
        fail_errno("rehearsal");
    if (pid == 0) {
        if (unshare(CLONE_NEWNS | CLONE_NEWUTS) < 0)
            fail_errno("rehearsal");
        leave_root();
        individualize(fields);
        struct start start = {.fields = fields, .ends = ends, .terminal = -1, .main = true};
        container_run_main(&start);
    }
    int status = 1;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    forget_addresses(fields);
    empty_files();
    if (!cgroup_limit("memory.max", 0) || !cgroup_limit("pids.max", 0))
        fail_errno("limits");
    if (WIFSIGNALED(status)) /* else it has reported what went wrong */
        fail(128, "the rehearsal was killed by signal %d", WTERMSIG(status));
}

/* What the rehearsal runs in place of the program. */
int rehearse_program(const char *program)
{
    static char bytes[64 << 10];
    int fd = open(find_program(program, environ), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    for (size_t at = 0; fd >= 0 && at < READ_AHEAD; at += sizeof bytes)
        if (read(fd, bytes, sizeof bytes) < (ssize_t)sizeof bytes)
            break;
    return 0;
}
