/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Process 1 of the guest: boots to an idle loop in the template, and goes on from there in every clone.
 *
 * Nothing here may read random numbers or boot_id: what the template reads, all its clones share.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_MODULES 64
#define EVENTS 32
#define PORT_WAIT_MS 5000 /* the console driver reports ports a moment after it is loaded */

struct ports ports = {-1, -1, -1, -1};
char **loaded_modules;

static int epoll_fd = -1;
static void *garbage[EVENTS * 4];
static unsigned garbage_count;

/* --- small things everyone uses --- */

void say(const char *format, ...)
{
    char line[600] = "<5>proa-agent: ";
    size_t prefix = strlen(line);
    va_list list;
    va_start(list, format);
    vsnprintf(line + prefix, sizeof line - prefix, format, list);
    va_end(list);
    int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
    if (fd >= 0) {
        if (write(fd, line, strlen(line)) < 0) {
            /* nobody left to tell */
        }
        close(fd);
    }
}

uint64_t clock_ns(int clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

void power_off(void)
{
    if (own_seat >= 0)
        _exit(0); /* all that is below goes with us, and process 1 begins the seat anew */
    /* All is written by now. An emergency restart ends QEMU (-no-reboot) at once; the orderly ways reset the
     * devices first, at which QEMU 7.2 crashes in a clone that does not announce itself (virtio_net_reset). */
    int fd = open("/proc/sysrq-trigger", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "b", 1) != 1)
        reboot(RB_POWER_OFF);
    reboot(RB_AUTOBOOT);
    for (;;)
        pause();
}

void warm_memory(void)
{
    void *blocks[16];
    for (size_t size = 16; size <= 8192; size += size / 2) {
        for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
            if ((blocks[i] = malloc(size)))
                memset(blocks[i], 1, size);
        for (size_t i = 1; i < sizeof blocks / sizeof *blocks; i++) /* one stays, and with it the others' place */
            free(blocks[i]);
    }
}

void die(const char *what)
{
    say("%s: %s", what, strerror(errno));
    power_off();
}

/* --- the loop --- */

void loop_watch(struct source *source, uint32_t events)
{
    if (source->fd < 0 || source->watched == events)
        return;
    struct epoll_event event = {.events = events, .data.ptr = source};
    int operation = source->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (epoll_ctl(epoll_fd, operation, source->fd, &event) == 0)
        source->watched = events;
    else
        say("epoll_ctl: %s", strerror(errno));
}

void loop_unwatch(struct source *source)
{
    if (source->watched)
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
    source->watched = 0;
}

void loop_close(struct source *source)
{
    if (source->fd < 0)
        return;
    loop_unwatch(source);
    close(source->fd);
    source->fd = -1;
}

void loop_free(void *memory)
{
    /* A batch of events holds pointers to sources; so memory is freed only between batches. */
    if (garbage_count < sizeof garbage / sizeof *garbage)
        garbage[garbage_count++] = memory;
}

static void loop_run(void)
{
    struct epoll_event events[EVENTS];
    for (;;) {
        int count = epoll_wait(epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct source *source = events[i].data.ptr;
            if (source->watched) /* an earlier event of this batch may have removed it */
                source->ready(source, events[i].events);
        }
        while (garbage_count > 0)
            free(garbage[--garbage_count]);
    }
}

static void children_ready(struct source *source, uint32_t events)
{
    (void)events;
    struct signalfd_siginfo info;
    while (read(source->fd, &info, sizeof info) == sizeof info)
        ;
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        process_reaped(pid, status);
}

static void power_off_ready(struct source *source, uint32_t events)
{
    (void)source;
    (void)events;
    power_off();
}

void power_off_later(unsigned milliseconds)
{
    static struct source timer = {.fd = -1, .ready = power_off_ready};
    if (timer.fd < 0)
        timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    struct itimerspec when = {.it_value = {milliseconds / 1000, (long)(milliseconds % 1000) * 1000000}};
    timerfd_settime(timer.fd, 0, &when, NULL);
    loop_watch(&timer, EPOLLIN);
}

/* --- boot --- */

static void mount_kernel_file_systems(void)
{
    static const struct {
        const char *type, *target;
    } table[] = {{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        mkdir(table[i].target, 0755);
        if (mount(table[i].type, table[i].target, table[i].type, MS_NOSUID, NULL) < 0 && errno != EBUSY)
            die(table[i].target);
    }
}

/* Without a console the kernel starts us with nothing open, and numbers 0 to 2 would go to ports. */
static void open_standard_streams(void)
{
    int fd;
    while ((fd = open("/dev/null", O_RDWR)) >= 0 && fd <= STDERR_FILENO)
        ;
    if (fd >= 0)
        close(fd);
}

static void load_modules(void)
{
    FILE *list = fopen("/modules.list", "re");
    loaded_modules = calloc(MAX_MODULES + 1, sizeof *loaded_modules);
    char name[128], path[160];
    size_t count = 0;
    while (list && loaded_modules && count < MAX_MODULES && fscanf(list, "%127s", name) == 1) {
        snprintf(path, sizeof path, "/modules/%s.ko", name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
            say("module %s: %s", name, strerror(errno));
        else
            loaded_modules[count++] = strdup(name);
        close(fd);
        unlink(path); /* the initramfs is memory that every clone would carry */
    }
    if (list)
        fclose(list);
}

static void switch_root(void)
{
    /* pivot_root refuses to leave the kernel's first root, so containers start from a tmpfs above it. */
    static const char *const moved[] = {"/proc", "/sys", "/dev"};
    unlink("/modules.list");
    rmdir("/modules");
    unlink("/init");
    mkdir("/newroot", 0755);
    if (mount("tmpfs", "/newroot", "tmpfs", MS_NOSUID, "mode=755") < 0)
        die("tmpfs");
    for (size_t i = 0; i < sizeof moved / sizeof *moved; i++) {
        char target[32];
        snprintf(target, sizeof target, "/newroot%s", moved[i]);
        mkdir(target, 0755);
        if (mount(moved[i], target, NULL, MS_MOVE, NULL) < 0)
            die(target);
    }
    if (chdir("/newroot") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
        die("switch root");
    make_places();
}

void make_places(void)
{
    static const char *const made[] = {"/run", ROOT, LAYERS, WRITABLE, FILES, SHARE, LAYERS MOUNT_POINTS};
    for (size_t i = 0; i < sizeof made / sizeof *made; i++)
        mkdir(made[i], 0755);
}

/* What every clone would otherwise do for itself. In a child, because it may fail(). */
static void prepare(void)
{
    find_network();
    pid_t pid = fork();
    if (pid == 0) {
        write_text("/sys/kernel/rcu_expedited", "1"); /* with several CPUs mounts would wait for grace periods */
        prepare_network();
        prepare_devices();
        prepare_disks();
        _exit(0);
    }
    int status = 1;
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
        die("preparation failed");
    stdio_terminal_directory(open(DEVICES "/pts", O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!share_prepare())
        say("share: %s", strerror(errno));
}

static void find_ports(void)
{
    static const struct {
        const char *name;
        int *fd, flags;
    } table[] = {{"proa.control", &ports.control, O_NONBLOCK},
                 {"proa.log", &ports.log, O_NONBLOCK},
                 {"proa.exit", &ports.exit, O_NONBLOCK},
                 {"proa.fs", &ports.fs, 0}}; /* its relay is a process of its own, and waits */
    DIR *directory = opendir("/sys/class/virtio-ports");
    struct dirent *entry;
    while (directory && (entry = readdir(directory))) {
        char path[300], name[64];
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
        if (entry->d_name[0] == '.' || read_text(path, name, sizeof name) == 0)
            continue;
        name[strcspn(name, "\n")] = 0;
        if (!seat_owns_port(name))
            continue;
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        for (size_t i = 0; i < sizeof table / sizeof *table; i++)
            if (strcmp(name, table[i].name) == 0 && *table[i].fd < 0)
                *table[i].fd = open(path, O_RDWR | O_CLOEXEC | table[i].flags);
    }
    if (directory)
        closedir(directory);
}

static void open_ports(void)
{
    /* The names arrive one after another; the log and the exit port may be absent, so give them a moment. */
    for (int waited = 0; waited < PORT_WAIT_MS; waited += 10) {
        find_ports();
        bool all = ports.control >= 0 && ports.log >= 0 && ports.exit >= 0 && ports.fs >= 0;
        if (all || (ports.control >= 0 && waited >= 200))
            return;
        usleep(10000);
    }
    die("no port proa.control");
}

static void watch_children(void)
{
    static struct source children = {.fd = -1, .ready = children_ready};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    children.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    loop_watch(&children, EPOLLIN);
}

static void protect_from_oom(void)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "-1000", 5) != 5)
        say("oom_score_adj: %s", strerror(errno));
    close(fd);
}

int main(int count, char **arguments)
{
    if (getpid() != 1 && count > 2 && strcmp(arguments[1], "rehearse") == 0)
        return rehearse_program(arguments[2]);
    if (getpid() != 1) {
        fprintf(stderr, "the guest agent runs as process 1 of a virtual machine only\n");
        return 2;
    }
    umask(0);
    mount_kernel_file_systems();
    open_standard_streams();
    load_modules();
    switch_root();
    protect_from_oom();
    cgroup_prepare();
    seats_serve();
    prepare();
    open_ports();
    if (!main_prepare())
        die("main process");
    warm_memory();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    watch_children();
    log_open(ports.log);
    channel_open(ports.control);
    say("ready");
    loop_run();
}
