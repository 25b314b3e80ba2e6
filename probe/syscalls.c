/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which system calls reach the kernel: each number is tried once, in a child of its own, with arguments that no
 * call accepts (-1 everywhere). What a seccomp filter refuses never gets as far as looking at them.
 *
 *   passed   the kernel looked at it (any result but the next three)
 *   denied   EPERM: a filter, or a capability that is not there
 *   missing  ENOSYS: a filter that says so, or a kernel without the call
 *   killed   SIGSYS: a filter that kills
 *
 * Calls that do something whatever their arguments are not tried: exit, exit_group, vfork, rt_sigreturn, sync,
 * vhangup, pause; those that would with -1 get harmless arguments (kill, msgget, shmget).
 *
 * Source: seccomp(2); arch/x86/entry/syscalls/syscall_64.tbl; include/uapi/asm-generic/unistd.h.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "probe.h"

enum { PASSED, DENIED, MISSING };

#define COMMON_FIRST 424 /* from here on all architectures count alike */
#define COMMON_LAST 461  /* Linux 6.8 */
#if defined(__x86_64__)
#define OWN_LAST 334
#else
#define OWN_LAST 294
#endif

static const long SKIPPED[] = {
    SYS_exit, SYS_exit_group, SYS_rt_sigreturn, SYS_sync, SYS_vhangup,
#ifdef SYS_vfork
    SYS_vfork, SYS_pause,
#endif
};

static bool is_skipped(long number)
{
    for (size_t i = 0; i < sizeof SKIPPED / sizeof *SKIPPED; i++)
        if (SKIPPED[i] == number)
            return true;
    return false;
}

static void attempt(long number)
{
    /* A call that waits is ended by the alarm; it has then been let through. */
    struct itimerval soon = {.it_value = {.tv_usec = 200000}};
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    setitimer(ITIMER_REAL, &soon, NULL);
    long result;
    if (number == SYS_kill)
        result = syscall(number, 0x3fffffff, 0);
    else if (number == SYS_msgget || number == SYS_shmget)
        result = syscall(number, -1L, 0L, 0L);
    else
        result = syscall(number, -1L, -1L, -1L, -1L, -1L, -1L);
    if (result != -1)
        _exit(PASSED);
    _exit(errno == EPERM ? DENIED : errno == ENOSYS ? MISSING : PASSED);
}

static bool try_number(long number, struct syscall_census *census)
{
    pid_t child = fork();
    if (child < 0)
        return false;
    if (child == 0)
        attempt(number);
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return false;
    census->tried++;
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS)
        census->killed++;
    else if (WIFEXITED(status) && WEXITSTATUS(status) == DENIED)
        census->denied++;
    else if (WIFEXITED(status) && WEXITSTATUS(status) == MISSING)
        census->missing++;
    else
        census->passed++;
    return true;
}

bool count_syscalls(struct syscall_census *census)
{
    *census = (struct syscall_census){0};
    for (long number = 0; number <= COMMON_LAST; number++) {
        if (number == OWN_LAST + 1)
            number = COMMON_FIRST;
        if (!is_skipped(number) && !try_number(number, census))
            return false;
    }
    return true;
}
