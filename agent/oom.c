/* SPDX-License-Identifier: Apache-2.0 */
/*
 * WATCH_OOM: answered when the kernel's OOM killer has struck in the workload's group.
 * Source: Linux cgroup-v2.rst, memory.events ("a value change in this file generates a file modified event").
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

static struct request waiting;
static uint64_t known;
static bool is_waiting;

/* Reading the watched descriptor, and no other one, is what makes the kernel tell of the next change. */
static void answer_when_more(int fd, bool at_once)
{
    char text[512];
    while (lseek(fd, 0, SEEK_SET) == 0 && read(fd, text, sizeof text) < 0 && errno == EINTR)
        ;
    uint64_t kills = cgroup_event(CGROUP "/memory.events", "oom_kill");
    if (!is_waiting || (kills <= known && !at_once))
        return;
    is_waiting = false;
    size_t mark = answer_begin(&waiting);
    put_field_u64(channel_queue(), K_COUNT, kills);
    answer_end(mark);
}

static void events_ready(struct source *source, uint32_t events)
{
    (void)events;
    answer_when_more(source->fd, false);
    channel_flush();
}

void oom_watch(const struct request *request)
{
    static struct source source = {.fd = -1, .ready = events_ready};
    if (source.fd < 0)
        source.fd = open(CGROUP "/memory.events", O_RDONLY | O_CLOEXEC);
    if (source.fd < 0) {
        answer_error(request, 0, errno, strerror(errno));
        return;
    }
    struct field field;
    bool asks_first = !fields_find(request->fields, K_COUNT, &field);
    if (is_waiting)
        answer_error(&waiting, 0, ECANCELED, "another request takes its place");
    waiting = *request;
    waiting.fields = (struct fields){0}; /* they are gone with the frame */
    known = fields_u64(request->fields, K_COUNT, 0);
    is_waiting = true;
    loop_watch(&source, EPOLLPRI);
    answer_when_more(source.fd, asks_first);
}
