/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control link: finds the marker that begins a link, cuts the stream into frames, and sends what is queued.
 *
 * The port is watched edge-triggered: while the host is away epoll would report EPOLLHUP without end.
 * Source: docs/reference/agent-protocol.md, sections 2 and 3; Linux drivers/char/virtio_console.c.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define QUEUE_HIGH (256u * 1024)     /* output of processes waits above this */
#define QUEUE_BROKEN (8u * 1024 * 1024) /* a host that asks without end and never reads */
#define READ_SIZE 65536u
#define USUAL_FRAMES (2 * READ_SIZE)

enum link { LINK_DOWN, LINK_NONCE, LINK_UP };

static struct source control = {.fd = -1};
static enum link link_state;
static uint32_t generation;
static unsigned marker_matched;
static struct buffer in, out, unsent;
static bool held_back;
static bool muted; /* an answer is being written that nobody waits for */

bool channel_connected(void)
{
    return link_state == LINK_UP;
}

uint32_t channel_generation(void)
{
    return generation;
}

bool channel_has_room(void)
{
    held_back = out.length >= QUEUE_HIGH;
    return !held_back;
}

struct buffer *channel_queue(void)
{
    return link_state == LINK_UP && !muted ? &out : &unsent;
}

/* The bytes received stay: the frame being handled lies among them. */
static void link_down(void)
{
    if (link_state == LINK_UP)
        processes_detach();
    link_state = LINK_DOWN;
    generation++;
    buffer_clear(&out);
}

void channel_fail(const char *reason)
{
    say("link closed: %s", reason);
    link_down();
}

static void update_process(struct process *process)
{
    stdio_update(&process->stdio);
}

void channel_flush(void)
{
    buffer_consume(&unsent, unsent.length);
    while (out.length > 0) {
        ssize_t written = write(control.fd, buffer_bytes(&out), out.length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            break; /* the port tells when it has room, or that the host has left */
        buffer_consume(&out, (size_t)written);
    }
    if (out.failed || out.length > QUEUE_BROKEN)
        channel_fail("the host does not read");
    if (held_back && out.length < QUEUE_HIGH / 2) {
        held_back = false;
        process_each(update_process);
    }
}

/* --- input --- */

static void parse_frames(void)
{
    while (link_state != LINK_DOWN) {
        if (link_state == LINK_NONCE) {
            if (in.length < NONCE_SIZE)
                return;
            buffer_append(&out, buffer_bytes(&in), NONCE_SIZE);
            buffer_consume(&in, NONCE_SIZE);
            link_state = LINK_UP;
            continue;
        }
        struct frame frame;
        enum frame_status status = in.length ? frame_parse(buffer_bytes(&in), in.length, &frame) : FRAME_PARTIAL;
        if (status == FRAME_BROKEN)
            channel_fail("a frame is too long");
        if (status != FRAME_WHOLE)
            return;
        uint32_t now = generation;
        request_dispatch(&frame);
        if (now != generation)
            return; /* the frame has closed the link */
        buffer_consume(&in, FRAME_HEADER + frame.length);
    }
}

static void take(const uint8_t *bytes, size_t size)
{
    size_t used;
    while ((used = marker_scan(&marker_matched, bytes, size)) > 0) {
        link_down();
        buffer_clear(&in);
        link_state = LINK_NONCE;
        bytes += used;
        size -= used;
    }
    if (link_state == LINK_DOWN)
        return;
    buffer_append(&in, bytes, size);
    if (in.failed)
        channel_fail("out of memory");
    else
        parse_frames();
}

static void control_ready(struct source *source, uint32_t events)
{
    static uint8_t bytes[READ_SIZE];
    /* Before reading: what is read from here on may belong to the next link. */
    if ((events & EPOLLHUP) && link_state != LINK_DOWN)
        link_down();
    ssize_t size;
    while ((size = read(source->fd, bytes, sizeof bytes)) > 0)
        take(bytes, (size_t)size);
    channel_flush();
}

void channel_open(int fd)
{
    /* Memory from the allocator at the first frame would cost a clone some milliseconds under emulation. */
    if (!buffer_reserve(&in, USUAL_FRAMES) || !buffer_reserve(&out, USUAL_FRAMES) || !buffer_reserve(&unsent, READ_SIZE))
        say("out of memory");
    control.fd = fd;
    control.ready = control_ready;
    loop_watch(&control, EPOLLIN | EPOLLOUT | EPOLLET);
}

/* --- answers --- */

size_t answer_begin(const struct request *request)
{
    muted = request->generation != generation;
    return frame_begin(channel_queue(), RES_OK, request->id);
}

void answer_end(size_t mark)
{
    frame_end(channel_queue(), mark);
    muted = false;
    channel_flush();
}

void answer_ok(const struct request *request)
{
    answer_end(answer_begin(request));
}

void answer_error(const struct request *request, uint32_t code, int error, const char *message)
{
    if (request->generation != generation || link_state != LINK_UP)
        return;
    size_t mark = frame_begin(&out, RES_ERROR, request->id);
    put_field_u32(&out, K_CODE, code);
    put_field_u32(&out, K_ERRNO, (uint32_t)error);
    put_field_string(&out, K_MESSAGE, message);
    answer_end(mark);
}
