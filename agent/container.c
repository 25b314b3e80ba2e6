/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The way to exec. Until exec closes it, the report pipe tells the agent what went wrong.
 *
 *   main   in the template: cgroup, cgroup namespace → /proc; at START: pivot_root → user, exec
 *   exec   fork → setns → clone into the pid namespace, as the agent's child → user, exec
 *
 * Source: pid_namespaces(7), pivot_root(2), cgroup_namespaces(7); OCI runtime-spec, config-linux.md.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define KERNEL_FLAGS (MS_NOSUID | MS_NODEV | MS_NOEXEC)
#define DEFAULT_PATH "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

extern char **environ;

/* fork with namespaces: the C library's own fork takes no flags. */
static pid_t fork_with(unsigned long flags)
{
    return (pid_t)syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
}

/* --- the container's mount namespace --- */

void container_prepare(void)
{
    cgroup_join();
    if (unshare(CLONE_NEWCGROUP) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        fail_errno("namespaces");
    /* What shows the namespaces of its mounter; CONFIGURE moves both into the root. */
    if (mount("cgroup", SYSTEM "/fs/cgroup", "cgroup2", KERNEL_FLAGS | MS_RDONLY, NULL) < 0 ||
        mkdir(PROCESSES, 0555) < 0 || mount("proc", PROCESSES, "proc", KERNEL_FLAGS, NULL) < 0)
        fail_errno("mount /proc or /sys/fs/cgroup");
    prepare_device_rules();
    write_text("/proc/self/oom_score_adj", "0"); /* the agent's own -1000 is not to be inherited */
    if (setsid() < 0)
        fail_errno("setsid");
    /* Of this namespace: through the agent's mount of it ttyname(3) would fail. */
    stdio_terminal_directory(open(DEVICES "/pts", O_PATH | O_DIRECTORY | O_CLOEXEC));
}

static void enter_root(void)
{
    if (chdir(ROOT) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
        fail_errno("pivot_root");
}

static void make_directories(const char *path)
{
    char *copy = strdup(path);
    for (char *slash = copy; copy && *slash; slash++)
        if (*slash == '/' && slash != copy) {
            *slash = 0;
            mkdir(copy, 0755);
            *slash = '/';
        }
    if (copy && *copy)
        mkdir(copy, 0755);
    free(copy);
}

static void offer_console(void)
{
    char name[64];
    if (ttyname_r(STDIN_FILENO, name, sizeof name) != 0)
        return;
    int fd = open("/dev/console", O_CREAT | O_RDONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC, 0666);
    if (fd >= 0)
        close(fd);
    mount(name, "/dev/console", NULL, MS_BIND, NULL); /* a courtesy: not worth failing for */
}

/* --- what main and exec have in common --- */

/* For EXEC: the terminal as the container's own /dev/pts names it.
 * The container may have put anything there, so it is taken only if it is the very device. */
static int reopen_terminal(int terminal)
{
    char path[64];
    struct stat wanted, found;
    if (fstat(terminal, &wanted) < 0)
        return terminal;
    snprintf(path, sizeof path, "/dev/pts/%u", minor(wanted.st_rdev));
    int place = open(path, O_PATH | O_CLOEXEC);
    if (place < 0 || fstat(place, &found) < 0 || !S_ISCHR(found.st_mode) || found.st_rdev != wanted.st_rdev)
        return terminal;
    snprintf(path, sizeof path, "/proc/self/fd/%d", place);
    int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    return fd >= 0 ? fd : terminal;
}

static int open_terminal(const struct start *start)
{
    return start->main ? stdio_open_terminal(start->terminal) : reopen_terminal(start->ends->fds[0]);
}

static void take_streams(const struct start *start)
{
    bool tty = start->terminal >= 0;
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int terminal = tty ? open_terminal(start) : -1;
    if (setsid() < 0 && errno != EPERM) /* the main process leads its session since the template */
        fail_errno("setsid");
    for (int i = 0; i < 3; i++) {
        bool is_null = start->ends->fds[i] < 0 || (i == 0 && !fields_u32(start->fields, K_OPEN_STDIN, 0));
        if (dup2(tty ? terminal : is_null ? null : start->ends->fds[i], i) < 0)
            fail_errno("standard streams");
    }
    if (tty && ioctl(STDIN_FILENO, TIOCSCTTY, 0) < 0)
        fail_errno("controlling terminal");
}

static char **environment_with_defaults(struct fields fields, const struct identity *identity)
{
    char **environment = fields_strings(fields, K_ENV, 2);
    bool path = false, home = false;
    size_t count = 0;
    for (; environment && environment[count]; count++) {
        path = path || strncmp(environment[count], "PATH=", 5) == 0;
        home = home || strncmp(environment[count], "HOME=", 5) == 0;
    }
    if (!environment)
        fail(128, "the environment is malformed");
    if (!path)
        environment[count++] = DEFAULT_PATH;
    if (!home && asprintf(&environment[count], "HOME=%s", identity->home) < 0)
        fail(128, "out of memory");
    return environment;
}

static void reset_signals(void)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
}

static uint32_t code_of_exec(int error)
{
    return error == ENOENT || error == ENOTDIR ? 127 : 126;
}

static void __attribute__((noreturn)) run_program(const struct start *start)
{
    struct identity identity;
    struct fields fields = start->fields;
    char **arguments = fields_strings(fields, K_ARG, 0);
    char *cwd = fields_string(fields, K_CWD, 0);
    if (!arguments || !arguments[0])
        fail(128, "no command specified");
    resolve_identity(fields, &identity);
    for (int i = 0; i < 3; i++) { /* so that a user other than root can open /dev/stdout again */
        struct stat status;
        if (fstat(i, &status) == 0 && (status.st_rdev == 0 || start->terminal >= 0) && status.st_uid != identity.uid)
            fchown(i, identity.uid, (gid_t)-1);
    }
    apply_limits(fields);
    environ = environment_with_defaults(fields, &identity);
    become(fields, &identity);
    if (cwd && *cwd && chdir(cwd) < 0) {
        int error = errno;
        fail(code_of_exec(error), "chdir to cwd (\"%s\") set in config.json failed: %s", cwd,
             error == ENOENT ? "no such file or directory" : error == EACCES ? "permission denied" : strerror(error));
    }
    char *program = find_program(arguments[0], environ);
    umask(022);
    reset_signals();
    execve(program, arguments, environ);
    int error = errno;
    fail(code_of_exec(error), "exec %s: %s", program,
         error == ENOEXEC  ? "exec format error"
         : error == ENOENT ? "no such file or directory"
         : error == EACCES ? "permission denied"
                           : strerror(error));
}

/* --- main --- */

void container_run_main(const struct start *start)
{
    struct fields fields = start->fields;
    char *cwd = fields_string(fields, K_CWD, 0);
    enter_root();
    if (cwd && *cwd == '/' && cwd[1])
        make_directories(cwd);
    bool init = fields_u32(fields, K_INIT, 0);
    if (init) {
        pid_t child = fork();
        if (child < 0)
            fail_errno("fork");
        if (child > 0) {
            close(report_fd);
            _exit(run_init(child));
        }
    }
    take_streams(start);
    if (start->terminal >= 0)
        offer_console();
    restrict_paths(fields);
    if (fields_u32(fields, K_READ_ONLY_ROOT, 0) && mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) < 0)
        fail_errno("read-only root");
    run_program(start);
}

/* --- exec --- */

static void __attribute__((noreturn)) run_exec(const struct start *start, pid_t main_pid)
{
    int main_fd = (int)syscall(SYS_pidfd_open, main_pid, 0);
    if (main_fd < 0)
        fail(128, "container is not running");
    cgroup_join();
    write_text("/proc/self/oom_score_adj", "0");
    if (setns(main_fd, CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWCGROUP) < 0)
        fail_errno("setns");
    /* CLONE_PARENT: the agent is to reap it, as it does all processes it was asked for. */
    pid_t pid = fork_with(CLONE_PARENT);
    if (pid < 0)
        fail_errno("fork");
    if (pid > 0) {
        report_pid(pid);
        _exit(0);
    }
    take_streams(start);
    run_program(start);
}

pid_t container_spawn_exec(const struct start *start, pid_t main_pid, int report)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    report_fd = report;
    run_exec(start, main_pid);
}

/* --- the small init --- */

static int main_status(int status)
{
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

int run_init(pid_t child)
{
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    prctl(PR_SET_NAME, "docker-init");
    for (int fd = 0; fd < 256; fd++) /* pipes kept open here would never end for their readers */
        close(fd);
    for (;;) {
        siginfo_t info;
        if (sigwaitinfo(&all, &info) < 0)
            continue;
        if (info.si_signo != SIGCHLD) {
            kill(child, info.si_signo);
            continue;
        }
        int status;
        pid_t pid;
        while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
            if (pid == child)
                return main_status(status);
    }
}
