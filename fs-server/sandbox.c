/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The walls around the server, so that even code run in it by a hostile guest finds only the exports:
 *
 * - each export is a private copy of its mount (open_tree), held by fd and attached nowhere; read-only ones
 *   are read-only mounts, so the host's kernel refuses every change;
 * - the root is an empty, read-only tmpfs with one entry, /fd: the process's own /proc/self/fd;
 * - capabilities are those that creating files for any user takes; CAP_MKNOD is not among them;
 * - a seccomp filter lets through the system calls that the operations make, and no others.
 *
 * Source: open_tree(2), mount_setattr(2), pivot_root(2), capabilities(7), seccomp(2).
 */
#define _GNU_SOURCE
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/mount.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif

const char *sandbox_open_export(struct export *export)
{
    export->fd = (int)syscall(SYS_open_tree, AT_FDCWD, export->path,
                              OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
    if (export->fd < 0)
        return "open the export";
    struct mount_attr attributes = {.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
                                    .propagation = MS_PRIVATE};
    if (export->read_only)
        attributes.attr_set |= MOUNT_ATTR_RDONLY;
    if (syscall(SYS_mount_setattr, export->fd, "", AT_EMPTY_PATH | AT_RECURSIVE, &attributes,
                sizeof attributes) != 0)
        return "set the mount's attributes";
    struct file_info info;
    if ((errno = file_stat(export->fd, &info)) != 0)
        return "stat the export";
    export->mount = info.mount;
    return NULL;
}

/* The process's fds, from a copy of /proc that shows nothing else. */
static const char *enter_root(void)
{
    int fds = (int)syscall(SYS_open_tree, AT_FDCWD, "/proc/self/fd", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (fds < 0)
        return "open /proc/self/fd";
    if (unshare(CLONE_NEWNS) != 0)
        return "unshare";
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        return "make mounts private";
    /* /proc is the one directory known to exist, and is needed no more. */
    if (mount("none", "/proc", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k,nr_inodes=4,mode=555") != 0)
        return "mount the root";
    if (chdir("/proc") != 0 || mkdir("fd", 0700) != 0)
        return "make the root";
    if (syscall(SYS_move_mount, fds, "", AT_FDCWD, "fd", MOVE_MOUNT_F_EMPTY_PATH) != 0)
        return "mount /fd";
    close(fds);
    if (mount(NULL, ".", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) != 0)
        return "make the root read-only";
    if (syscall(SYS_pivot_root, ".", ".") != 0 || umount2(".", MNT_DETACH) != 0 || chdir("/") != 0)
        return "pivot_root";
    return NULL;
}

#define KEPT                                                                                                  \
    (1u << CAP_CHOWN | 1u << CAP_DAC_OVERRIDE | 1u << CAP_DAC_READ_SEARCH | 1u << CAP_FOWNER |                \
     1u << CAP_FSETID | 1u << CAP_SETUID | 1u << CAP_SETGID | 1u << CAP_SETFCAP)

static const char *drop_capabilities(void)
{
    /* fsuid may change without taking the capabilities along; nothing regains any by exec. */
    if (prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_NOROOT |
                                     SECBIT_NOROOT_LOCKED) != 0)
        return "set secure bits";
    for (int capability = 0; capability < 64; capability++)
        if (capability >= 32 || !(KEPT & 1u << capability))
            if (prctl(PR_CAPBSET_DROP, capability) != 0 && errno != EINVAL)
                return "drop capabilities";
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{.effective = KEPT, .permitted = KEPT}};
    if (syscall(SYS_capset, &header, data) != 0)
        return "set capabilities";
    return NULL;
}

const char *sandbox_enter(void)
{
    const char *failed = enter_root();
    if (!failed)
        failed = drop_capabilities();
    if (!failed && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        failed = "set no_new_privs";
    return failed;
}

/* --- system calls --- */

static const uint16_t ALLOWED[] = {
    SYS_read, SYS_write, SYS_writev, SYS_close, SYS_openat, SYS_openat2, SYS_statx, SYS_fcntl,
    SYS_pread64, SYS_pwrite64, SYS_pwritev2, SYS_lseek, SYS_ftruncate, SYS_fallocate, SYS_copy_file_range,
    SYS_fsync, SYS_fdatasync, SYS_getdents64, SYS_fstatfs, SYS_readlinkat, SYS_accept4, SYS_unlinkat,
    SYS_mkdirat, SYS_mknodat, SYS_symlinkat, SYS_linkat, SYS_renameat2, SYS_fchmodat, SYS_fchownat,
    SYS_utimensat, SYS_setxattr, SYS_getxattr, SYS_listxattr, SYS_removexattr, SYS_name_to_handle_at,
    SYS_open_by_handle_at, SYS_setfsuid, SYS_setfsgid, SYS_capget, SYS_capset, SYS_umask, SYS_mmap, SYS_munmap,
    SYS_mremap, SYS_madvise, SYS_brk, SYS_exit, SYS_exit_group, SYS_rt_sigreturn, SYS_rt_sigprocmask,
#ifdef SYS_open /* musl calls these on x86-64 */
    SYS_open, SYS_unlink,
#endif
};

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#error "name the audit architecture of this machine"
#endif

const char *sandbox_filter(void)
{
#ifdef UNFILTERED /* the sanitizers make calls of their own */
    return NULL;
#endif
    enum { COUNT = sizeof ALLOWED / sizeof *ALLOWED };
    struct sock_filter program[COUNT + 6] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    };
    for (int index = 0; index < COUNT; index++)
        program[4 + index] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ALLOWED[index],
                                                          (uint8_t)(COUNT - index), 0);
    program[COUNT + 4] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS);
    program[COUNT + 5] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog filter = {.len = COUNT + 6, .filter = program};
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0)
        return "set the seccomp filter";
    return NULL;
}
