/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The init of a full machine that was made of an image without one. It stays in the initial ram disk; the image's
 * program is run in /root, on the console. When that ends, or after the power button, the machine is switched off.
 *
 * /proa/run has strings that end with NUL: user id, group id, supplementary groups (with commas), working directory,
 * signal that stops the program, number of arguments, the arguments, the environment. Written by
 * proa.machines.from_image.
 *
 * Source: reboot(2), linux/input.h, cgroups(7); Engine API, ContainerConfig.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/input.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_BYTES (1u << 20)
#define MAX_STRINGS 65536u
#define MAX_BUTTONS 8u
#define PATIENCE_MS 10000 /* between the signal and the end by force, as Docker */
#define CONSOLE "/dev/console"

static char text[MAX_BYTES + 1];
static char *strings[MAX_STRINGS + 2];

static void power_off(void)
{
    kill(-1, SIGTERM);
    for (int i = 0; i < 20; i++) {
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
        if (kill(-1, 0) < 0)
            break;
        usleep(50000);
    }
    kill(-1, SIGKILL);
    while (waitpid(-1, NULL, 0) > 0)
        ;
    sync();
    mount(NULL, "/root", NULL, MS_REMOUNT | MS_RDONLY, NULL);
    reboot(RB_POWER_OFF);
    for (;;)
        pause();
}

static void fail(const char *what)
{
    dprintf(STDOUT_FILENO, "proa: %s: %s\n", what, strerror(errno));
    power_off();
}

static size_t load(void)
{
    int fd = open("/proa/run", O_RDONLY | O_CLOEXEC);
    size_t size = 0, count = 0;
    ssize_t got;
    if (fd < 0)
        fail("/proa/run");
    while (size < MAX_BYTES && (got = read(fd, text + size, MAX_BYTES - size)) > 0)
        size += (size_t)got;
    close(fd);
    for (char *at = text; at < text + size && count < MAX_STRINGS; at += strlen(at) + 1)
        strings[count++] = at;
    return count;
}

static void mount_more(void)
{
    /* What is missing in an image is made; what cannot be is done without. */
    mkdir("/root/dev/pts", 0755);
    mkdir("/root/dev/shm", 0755);
    mkdir("/root/tmp", 01777);
    mount("devpts", "/root/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666");
    mount("shm", "/root/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
    mount("cgroup2", "/root/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    const char *links[][2] = {{"/proc/self/fd", "/root/dev/fd"},
                              {"/proc/self/fd/0", "/root/dev/stdin"},
                              {"/proc/self/fd/1", "/root/dev/stdout"},
                              {"/proc/self/fd/2", "/root/dev/stderr"}};
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        if (symlink(links[i][0], links[i][1]) < 0 && errno != EEXIST)
            fail(links[i][1]);
}

static void take_identity(void)
{
    gid_t groups[1024];
    size_t count = 0;
    for (char *one = strtok(strings[2], ","); one && count < 1024; one = strtok(NULL, ","))
        groups[count++] = (gid_t)strtoul(one, NULL, 10);
    if (setgroups(count, groups) < 0 || setgid((gid_t)strtoul(strings[1], NULL, 10)) < 0 ||
        setuid((uid_t)strtoul(strings[0], NULL, 10)) < 0)
        fail("the user");
}

static pid_t start(size_t count)
{
    size_t words = strtoul(strings[5], NULL, 10);
    if (words == 0 || words > count - 6)
        fail("/proa/run");
    pid_t child = fork();
    if (child)
        return child;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    int console = open("/root" CONSOLE, O_RDWR);
    if (console >= 0) {
        ioctl(console, TIOCSCTTY, 0);
        for (int fd = 0; fd < 3; fd++)
            dup2(console, fd);
        if (console > 2)
            close(console);
    }
    if (chroot("/root") < 0 || chdir("/") < 0)
        _exit(126);
    if (chdir(strings[3]) < 0) {
        dprintf(2, "proa: %s: %s\n", strings[3], strerror(errno));
        _exit(126);
    }
    /* The arguments become a list of their own, so that the environment can follow them in strings. */
    char **arguments = calloc(words + 1, sizeof *arguments);
    if (!arguments)
        _exit(126);
    memcpy(arguments, strings + 6, words * sizeof *arguments);
    environ = strings + 6 + words;
    take_identity();
    execvp(arguments[0], arguments);
    dprintf(2, "proa: %s: %s\n", arguments[0], strerror(errno));
    _exit(errno == ENOENT ? 127 : 126);
}

static size_t open_buttons(struct pollfd *polls)
{
    size_t count = 0;
    for (int i = 0; i < 32 && count < MAX_BUTTONS; i++) {
        char path[64];
        snprintf(path, sizeof path, "/root/dev/input/event%d", i);
        int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        if (fd >= 0)
            polls[count++] = (struct pollfd){.fd = fd, .events = POLLIN};
    }
    return count;
}

static int is_pressed(int fd)
{
    struct input_event event;
    int pressed = 0;
    while (read(fd, &event, sizeof event) == (ssize_t)sizeof event)
        pressed |= event.type == EV_KEY && event.code == KEY_POWER && event.value == 1;
    return pressed;
}

/* Take in what has ended; true when it was the program. */
static int reap(pid_t program)
{
    int status, over = 0;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        if (pid != program)
            continue;
        over = 1;
        int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
        dprintf(STDOUT_FILENO, "proa: the program ended with exit code %d\n", code);
    }
    return over;
}

int main(void)
{
    size_t count = load();
    if (count < 7)
        fail("/proa/run");
    mount_more();
    reboot(RB_DISABLE_CAD);
    sigset_t wanted;
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGCHLD);
    sigprocmask(SIG_BLOCK, &wanted, NULL);
    struct pollfd polls[1 + MAX_BUTTONS];
    polls[0] = (struct pollfd){.fd = signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK), .events = POLLIN};
    size_t buttons = open_buttons(polls + 1);
    pid_t program = start(count);
    int timeout = -1;
    for (;;) {
        int ready = poll(polls, 1 + buttons, timeout);
        if (ready == 0)
            power_off(); /* it has been asked and did not end */
        struct signalfd_siginfo info;
        while (read(polls[0].fd, &info, sizeof info) > 0)
            ;
        if (reap(program))
            power_off();
        for (size_t i = 1; i <= buttons; i++)
            if (is_pressed(polls[i].fd) && timeout < 0) {
                kill(program, (int)strtoul(strings[4], NULL, 10));
                timeout = PATIENCE_MS;
            }
    }
}
