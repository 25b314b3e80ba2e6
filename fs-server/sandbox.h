/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PROA_FS_SANDBOX_H
#define PROA_FS_SANDBOX_H

#include "server.h"

/* Each returns NULL, or what failed (errno has the cause). */
const char *sandbox_open_export(struct export *export); /* before sandbox_enter */
const char *sandbox_enter(void);                        /* namespaces, root, capabilities */
const char *sandbox_filter(void);                       /* system calls; the last step */

#endif
