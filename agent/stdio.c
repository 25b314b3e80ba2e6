/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The standard streams of one process.
 *
 * Output is read only when it can go on at once: to the log when it has room, and to an attached host within its
 * credit. So a slow reader holds back its process alone. Pipes that must wait are taken out of epoll, not masked:
 * a pipe without writers reports EPOLLHUP whatever was asked for.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#define CREDIT_STEP 16384u /* input written before credit is given again */
#define MAX_CREDIT 0x7fffffffu

static int terminal_directory = -1;

void stdio_terminal_directory(int fd)
{
    terminal_directory = fd;
}

/* --- output --- */

static void send_output(struct output *output, const uint8_t *data, size_t size)
{
    struct buffer *queue = channel_queue();
    size_t mark = frame_begin(queue, output->stream == STREAM_STDERR ? DATA_STDERR : DATA_STDOUT, output->process->id);
    buffer_append(queue, data, size);
    frame_end(queue, mark);
    output->credit -= (uint32_t)size;
}

static void send_pending(struct output *output)
{
    while (output->attached && output->pending.length > 0 && output->credit > 0 && channel_has_room()) {
        size_t size = output->pending.length;
        if (size > CHUNK)
            size = CHUNK;
        if (size > output->credit)
            size = output->credit;
        send_output(output, buffer_bytes(&output->pending), size);
        buffer_consume(&output->pending, size);
    }
    if (output->attached && output->ended && !output->end_told && output->pending.length == 0) {
        struct buffer *queue = channel_queue();
        size_t mark = frame_begin(queue, DATA_OUT_EOF, output->process->id);
        buffer_append(queue, &output->stream, 1);
        frame_end(queue, mark);
        output->end_told = true;
    }
}

static bool output_may_read(const struct output *output)
{
    if (output->source.fd < 0 || output->pending.length > 0)
        return false;
    if (output->logged && !log_has_room())
        return false;
    return !output->attached || (output->credit > 0 && channel_has_room());
}

static void output_update(struct output *output)
{
    send_pending(output);
    if (output_may_read(output))
        loop_watch(&output->source, EPOLLIN);
    else
        loop_unwatch(&output->source);
}

static void output_end(struct output *output)
{
    loop_close(&output->source);
    output->ended = true;
}

/* Read once. False when there is nothing (left). */
static bool output_read(struct output *output, size_t limit)
{
    static uint8_t data[CHUNK];
    ssize_t size = read(output->source.fd, data, limit < sizeof data ? limit : sizeof data);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return errno == EINTR;
    if (size <= 0) { /* the end of a pipe, or EIO: nobody has the terminal open any more */
        output_end(output);
        return false;
    }
    if (output->logged)
        log_write(output->stream, data, (size_t)size);
    if (!output->attached)
        return true;
    if (output->pending.length == 0 && output->credit >= (size_t)size)
        send_output(output, data, (size_t)size);
    else
        buffer_append(&output->pending, data, (size_t)size);
    return true;
}

static void output_ready(struct source *source, uint32_t events)
{
    struct output *output = (struct output *)source;
    (void)events;
    if (output_may_read(output))
        output_read(output, output->attached ? output->credit : CHUNK);
    output_update(output);
    channel_flush();
}

void stdio_drain(struct stdio *stdio)
{
    for (int i = 0; i < 2; i++) {
        struct output *output = &stdio->out[i];
        while (output->source.fd >= 0 && output_read(output, CHUNK))
            ;
        if (output->source.fd >= 0) /* nobody who could write is left */
            output_end(output);
        output_update(output);
    }
    channel_flush();
}

/* --- input --- */

static void input_close(struct input *input)
{
    loop_close(&input->source);
    buffer_free(&input->queue);
    input->closed = true;
}

static void give_credit(struct input *input)
{
    if (input->consumed == 0 || (input->consumed < CREDIT_STEP && input->queue.length > 0))
        return;
    uint8_t payload[5] = {STREAM_STDIN};
    put_u32(payload + 1, input->consumed);
    struct buffer *queue = channel_queue();
    size_t mark = frame_begin(queue, DATA_CREDIT, input->process->id);
    buffer_append(queue, payload, sizeof payload);
    frame_end(queue, mark);
    input->credit += input->consumed;
    input->consumed = 0;
}

static void tell_closed(struct input *input)
{
    struct buffer *queue = channel_queue();
    frame_end(queue, frame_begin(queue, EV_STDIN_CLOSED, input->process->id));
}

static void input_write(struct input *input)
{
    while (input->queue.length > 0) {
        ssize_t written = write(input->source.fd, buffer_bytes(&input->queue), input->queue.length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0 && errno == EAGAIN)
            break;
        if (written <= 0) {
            input_close(input);
            tell_closed(input);
            return;
        }
        buffer_consume(&input->queue, (size_t)written);
        input->consumed += (uint32_t)written;
    }
    give_credit(input);
    if (input->queue.length > 0)
        loop_watch(&input->source, EPOLLOUT);
    else
        loop_unwatch(&input->source);
    if (input->ending && input->queue.length == 0)
        input_close(input);
}

static void input_ready(struct source *source, uint32_t events)
{
    (void)events;
    input_write((struct input *)source);
    channel_flush();
}

void stdio_input(struct stdio *stdio, const uint8_t *data, uint32_t size)
{
    struct input *input = &stdio->in;
    if (input->closed || input->source.fd < 0 || input->ending)
        return;
    if (size > input->credit) {
        channel_fail("more input than credit");
        return;
    }
    input->credit -= size;
    buffer_append(&input->queue, data, size);
    if (!stdio->in.process->report.watched) /* before exec there may be nobody to make room */
        input_write(input);
    channel_flush();
}

void stdio_input_end(struct stdio *stdio)
{
    if (stdio->terminal >= 0 || stdio->in.source.fd < 0)
        return;
    stdio->in.ending = true;
    input_write(&stdio->in);
    channel_flush();
}

void stdio_close_input(struct stdio *stdio)
{
    if (!stdio->in.closed)
        input_close(&stdio->in);
}

/* --- both --- */

void stdio_update(struct stdio *stdio)
{
    output_update(&stdio->out[0]);
    output_update(&stdio->out[1]);
}

void stdio_attach(struct stdio *stdio, uint32_t credit_stdout, uint32_t credit_stderr)
{
    for (int i = 0; i < 2; i++) {
        struct output *output = &stdio->out[i];
        output->attached = true;
        output->end_told = false;
        output->credit = i ? credit_stderr : credit_stdout;
        if (output->credit > MAX_CREDIT)
            output->credit = MAX_CREDIT;
    }
}

void stdio_detach(struct stdio *stdio)
{
    for (int i = 0; i < 2; i++) {
        stdio->out[i].attached = false;
        buffer_free(&stdio->out[i].pending);
    }
    stdio_update(stdio);
}

void stdio_credit(struct stdio *stdio, unsigned stream, uint32_t bytes)
{
    if (stream != STREAM_STDOUT && stream != STREAM_STDERR) {
        channel_fail("credit for an unknown stream");
        return;
    }
    struct output *output = &stdio->out[stream - STREAM_STDOUT];
    output->credit = bytes > MAX_CREDIT - output->credit ? MAX_CREDIT : output->credit + bytes;
    output_update(output);
    channel_flush();
}

void stdio_begin(struct stdio *stdio)
{
    stdio_update(stdio);
    if (stdio->in.source.fd >= 0 && (stdio->in.queue.length > 0 || stdio->in.ending))
        input_write(&stdio->in);
}

void stdio_close(struct stdio *stdio)
{
    stdio_close_input(stdio);
    for (int i = 0; i < 2; i++) {
        loop_close(&stdio->out[i].source);
        buffer_free(&stdio->out[i].pending);
    }
    if (stdio->terminal >= 0)
        close(stdio->terminal);
    stdio->terminal = -1;
}

/* --- opening --- */

static void set_nonblocking(int fd)
{
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static bool open_terminal(struct stdio *stdio, struct stdio_ends *ends)
{
    int master = openat(terminal_directory, "ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    int unlock = 0;
    if (master < 0)
        return false;
    stdio->terminal = master;
    if (ioctl(master, TIOCSPTLCK, &unlock) < 0)
        return false;
    int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave < 0)
        return false;
    ends->fds[0] = slave;
    stdio->out[0].source.fd = fcntl(master, F_DUPFD_CLOEXEC, 0);
    stdio->in.source.fd = fcntl(master, F_DUPFD_CLOEXEC, 0);
    return stdio->out[0].source.fd >= 0 && stdio->in.source.fd >= 0;
}

static bool open_pipes(struct stdio *stdio, struct stdio_ends *ends, bool open_stdin)
{
    int fds[2];
    if (open_stdin) {
        if (pipe2(fds, O_CLOEXEC) < 0)
            return false;
        ends->fds[0] = fds[0];
        stdio->in.source.fd = fds[1];
        set_nonblocking(fds[1]); /* each end has its own flags: the process finds a blocking one */
    }
    for (int i = 0; i < 2; i++) {
        if (pipe2(fds, O_CLOEXEC) < 0)
            return false;
        stdio->out[i].source.fd = fds[0];
        set_nonblocking(fds[0]);
        ends->fds[1 + i] = fds[1];
    }
    return true;
}

static void initialise(struct stdio *stdio, struct process *process)
{
    *stdio = (struct stdio){.terminal = -1};
    stdio->in = (struct input){.source = {.fd = -1, .ready = input_ready}, .process = process};
    for (int i = 0; i < 2; i++)
        stdio->out[i] = (struct output){.source = {.fd = -1, .ready = output_ready},
                                        .process = process,
                                        .stream = (uint8_t)(STREAM_STDOUT + i),
                                        .logged = process->main};
}

static void finish_opening(struct stdio *stdio, bool tty, bool open_stdin)
{
    if (!open_stdin)
        loop_close(&stdio->in.source);
    stdio->in.credit = stdio->in.source.fd >= 0 ? STDIN_WINDOW : 0;
    stdio->in.closed = stdio->in.source.fd < 0;
    stdio->out[1].ended = tty;
}

bool stdio_open(struct stdio *stdio, struct stdio_ends *ends, struct process *process, bool tty, bool open_stdin)
{
    *ends = (struct stdio_ends){{-1, -1, -1}};
    initialise(stdio, process);
    bool done = tty ? open_terminal(stdio, ends) : open_pipes(stdio, ends, open_stdin);
    finish_opening(stdio, tty, open_stdin);
    return done;
}

bool stdio_adopt(struct stdio *stdio, const int streams[3], struct process *process, bool tty, bool open_stdin)
{
    struct stdio_ends ends = {{-1, -1, -1}};
    initialise(stdio, process);
    if (tty) {
        for (int i = 0; i < 3; i++)
            close(streams[i]);
        if (!open_terminal(stdio, &ends))
            return false;
        close(ends.fds[0]); /* the process opens it by its number, in its own mount namespace */
    } else {
        stdio->in.source.fd = streams[0];
        stdio->out[0].source.fd = streams[1];
        stdio->out[1].source.fd = streams[2];
    }
    finish_opening(stdio, tty, open_stdin);
    return true;
}

int stdio_terminal_number(const struct stdio *stdio)
{
    int number;
    return stdio->terminal >= 0 && ioctl(stdio->terminal, TIOCGPTN, &number) == 0 ? number : -1;
}

int stdio_open_terminal(int number)
{
    char name[16];
    snprintf(name, sizeof name, "%d", number);
    int fd = openat(terminal_directory, name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        fail_errno("terminal %d", number);
    return fd;
}
