/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The caller's identity, for the moment of creating something: the host's kernel then gives the new file its
 * owner, obeys the directory's set-group-ID bit and its default ACL, in one step and without a race.
 *
 * Whether the caller may do it at all was decided by the guest's kernel (default_permissions). The process
 * keeps its capabilities meanwhile (SECBIT_NO_SETUID_FIXUP in sandbox.c), because it does not know the
 * caller's supplementary groups.
 *
 * Source: setfsuid(2), capabilities(7), umask(2).
 */
#include <errno.h>
#include <linux/capability.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "server.h"

void act_as_root(void)
{
    setfsuid(0);
    setfsgid(0);
}

int act_as(const struct fuse_in_header *caller, uint32_t mask)
{
    /* setfsuid reports nothing; asking again with an impossible id tells what is in force. */
    setfsgid(caller->gid);
    setfsuid(caller->uid);
    if (caller->uid == (uint32_t)-1 || caller->gid == (uint32_t)-1 ||
        (uint32_t)setfsgid((gid_t)-1) != caller->gid || (uint32_t)setfsuid((uid_t)-1) != caller->uid) {
        act_as_root();
        return EPERM;
    }
    umask(mask & 0777);
    return 0;
}

void keep_setid(bool keep)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &header, data) != 0)
        return;
    if (keep)
        data[0].effective |= 1u << CAP_FSETID;
    else
        data[0].effective &= ~(1u << CAP_FSETID);
    syscall(SYS_capset, &header, data);
}
