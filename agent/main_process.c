/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The main process, from its fork in the template to its exec in a clone.
 *
 * What a start would otherwise do in every clone is done once: the fork, its pid, mount and cgroup namespaces, the
 * control group, /proc, the pipes of its standard streams. The process then waits for two requests, each behind a
 * header: CONFIGURE, which it carries out in its own mount namespace, and START, after which it is the program.
 * A template of an image has had PREPARE as well, the part of CONFIGURE that all its containers share.
 * Under emulation a clone pays for each piece of kernel code that it runs for the first time, some 30 ms for these.
 *
 * Its mount namespace is held open here, so that the end of the program need not wait for file systems to be
 * unmounted: they go when it is let go, in a worker. Source: namespaces(7), pid_namespaces(7).
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#define USUAL_REQUEST 65536u /* larger ones need memory of their own */

struct header {
    enum { PREPARE, REHEARSE, CONFIGURE, START } what;
    uint32_t size;
    int32_t terminal; /* number of the terminal in /dev/pts, -1 for none; START only */
};

static struct {
    pid_t pid;
    int requests, report, mounts;
    int streams[3]; /* our ends; the process has the others */
} prepared = {.requests = -1, .report = -1, .mounts = -1, .streams = {-1, -1, -1}};

static struct {
    struct source source;
    struct request request;
    struct outcome outcome;
    worker_done done;
} configuring;

/* --- the process --- */

static bool move_all(ssize_t (*move)(int, void *, size_t), int fd, void *bytes, size_t size)
{
    for (size_t at = 0; at < size;) {
        ssize_t moved = move(fd, (uint8_t *)bytes + at, size - at);
        if (moved <= 0)
            return false;
        at += (size_t)moved;
    }
    return true;
}

static struct fields receive(int requests, struct header *header)
{
    static uint8_t usual[4][USUAL_REQUEST];
    static unsigned used;
    if (!move_all(read, requests, header, sizeof *header))
        _exit(1);
    void *bytes = used < 4 && header->size <= USUAL_REQUEST ? usual[used++] : malloc(header->size + 1u);
    if (!bytes || !move_all(read, requests, bytes, header->size))
        _exit(1);
    return (struct fields){bytes, header->size};
}

static void __attribute__((noreturn)) live(int requests, const struct stdio_ends *ends)
{
    struct header header;
    signal(SIGPIPE, SIG_DFL);
    warm_memory();
    share_leave();
    container_prepare();
    struct fields fields = receive(requests, &header);
    while (header.what != START) {
        if (header.what == PREPARE)
            prepare_image(fields);
        else if (header.what == REHEARSE)
            rehearse(fields, ends);
        else
            configure(fields);
        report_done();
        fields = receive(requests, &header);
    }
    struct start start = {.fields = fields, .ends = ends, .terminal = header.terminal, .main = true};
    close(requests);
    container_run_main(&start);
}

/* --- the agent: in the template --- */

static bool open_streams(struct stdio_ends *ends)
{
    for (int i = 0; i < 3; i++) {
        int fds[2];
        if (pipe2(fds, O_CLOEXEC) < 0)
            return false;
        ends->fds[i] = fds[i ? 1 : 0];
        prepared.streams[i] = fds[i ? 0 : 1];
        fcntl(prepared.streams[i], F_SETFL, O_NONBLOCK); /* each end has its own flags: the program finds a blocking one */
    }
    return true;
}

static void hold_mounts(void)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/mnt", prepared.pid);
    prepared.mounts = open(path, O_RDONLY | O_CLOEXEC);
}

bool main_prepare(void)
{
    struct stdio_ends ends;
    int requests[2], reports[2];
    if (!open_streams(&ends) || pipe2(requests, O_CLOEXEC) < 0 || pipe2(reports, O_CLOEXEC | O_NONBLOCK) < 0)
        return false;
    prepared.pid = (pid_t)syscall(SYS_clone, CLONE_NEWPID | CLONE_NEWNS | SIGCHLD, 0, 0, 0, 0);
    if (prepared.pid == 0) {
        report_fd = reports[1];
        for (int i = 0; i < 3; i++)
            close(prepared.streams[i]);
        close(requests[1]);
        close(reports[0]);
        live(requests[0], &ends);
    }
    for (int i = 0; i < 3; i++)
        close(ends.fds[i]);
    close(requests[0]);
    close(reports[1]);
    prepared.requests = requests[1];
    prepared.report = reports[0];
    hold_mounts();
    return prepared.pid > 0 && prepared.mounts >= 0;
}

/* --- the agent: in a clone --- */

static ssize_t write_from(int fd, void *bytes, size_t size)
{
    return write(fd, bytes, size);
}

/* Waits only for the process's reading. */
static bool give(int what, struct fields fields, int terminal)
{
    struct header header = {.what = what, .size = (uint32_t)fields.size, .terminal = terminal};
    return move_all(write_from, prepared.requests, &header, sizeof header) &&
           move_all(write_from, prepared.requests, (void *)(uintptr_t)fields.bytes, fields.size);
}

static void configure_ready(struct source *source, uint32_t events)
{
    struct outcome *outcome = &configuring.outcome;
    (void)events;
    bool over = outcome_read(source->fd, outcome);
    if (!over && !outcome->done && !outcome->failed)
        return;
    loop_unwatch(source);
    if (!outcome->done && !outcome->failed) {
        outcome->failed = true;
        snprintf(outcome->message, sizeof outcome->message, "the container's first process died");
    }
    configuring.done(&configuring.request, outcome);
}

static bool ask(int what, const struct request *request, worker_done done)
{
    configuring.outcome = (struct outcome){0};
    configuring.request = *request;
    configuring.request.fields = (struct fields){0};
    configuring.done = done;
    configuring.source = (struct source){.fd = prepared.report, .ready = configure_ready};
    if (!give(what, request->fields, -1))
        return false;
    loop_watch(&configuring.source, EPOLLIN);
    return true;
}

bool main_prepare_image(const struct request *request, worker_done done)
{
    return ask(PREPARE, request, done);
}

bool main_rehearse(const struct request *request, worker_done done)
{
    return ask(REHEARSE, request, done);
}

bool main_configure(const struct request *request, worker_done done)
{
    return ask(CONFIGURE, request, done);
}

pid_t main_start(struct fields fields, int terminal, int *report)
{
    *report = prepared.report;
    prepared.report = -1;
    bool given = give(START, fields, terminal);
    close(prepared.requests);
    prepared.requests = -1;
    return given ? prepared.pid : -1;
}

bool main_waits(void)
{
    return prepared.requests >= 0;
}

pid_t main_pid(void)
{
    return prepared.pid;
}

int main_mounts(void)
{
    return prepared.mounts;
}

void main_streams(int streams[3])
{
    memcpy(streams, prepared.streams, sizeof prepared.streams);
    for (int i = 0; i < 3; i++)
        prepared.streams[i] = -1;
}

/* --- the end --- */

static int released[2] = {-1, -1};

/* In a worker: wait until the agent has let go, so that this is the last reference and the unmounting is ours. */
static void unmount(struct fields fields)
{
    char byte;
    (void)fields;
    close(released[1]);
    if (read(released[0], &byte, 1) < 0)
        say("unmounting: %s", strerror(errno));
    close(prepared.mounts);
    if (umount2(WRITABLE, 0) < 0)
        sync();
}

bool main_unmount(worker_done done)
{
    if (pipe2(released, O_CLOEXEC) < 0)
        return false;
    bool running = worker_run(NULL, unmount, done);
    close(prepared.mounts);
    close(released[0]);
    close(released[1]);
    return running;
}
