/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The main process's output as conmon's k8s-file records, and the exit record; both to ports that QEMU appends
 * to files, so that they are kept while no daemon runs.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define QUEUE_HIGH (256u * 1024)

static struct source port = {.fd = -1};
static struct buffer queue;
static bool held_back, nobody; /* nobody: there is no file behind the port */

static void update_process(struct process *process)
{
    stdio_update(&process->stdio);
}

static void log_flush(void)
{
    while (queue.length > 0) {
        ssize_t written = write(port.fd, buffer_bytes(&queue), queue.length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            break;
        buffer_consume(&queue, (size_t)written);
    }
    if (held_back && queue.length < QUEUE_HIGH / 2) {
        held_back = false;
        process_each(update_process);
    }
    if (queue.length == 0)
        log_drained();
}

static void log_ready(struct source *source, uint32_t events)
{
    (void)source;
    nobody = events & EPOLLHUP;
    if (nobody) /* a log that nobody keeps holds nobody back */
        buffer_free(&queue);
    log_flush();
}

void log_open(int fd)
{
    port.fd = fd;
    port.ready = log_ready;
    if (fd >= 0)
        loop_watch(&port, EPOLLOUT | EPOLLET);
}

bool log_has_room(void)
{
    held_back = queue.length >= QUEUE_HIGH;
    return !held_back;
}

bool log_is_empty(void)
{
    return queue.length == 0;
}

void log_write(unsigned stream, const uint8_t *data, size_t size)
{
    if (port.fd < 0 || nobody)
        return;
    char prefix[64];
    struct timespec now;
    struct tm parts;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &parts);
    size_t length = strftime(prefix, sizeof prefix, "%Y-%m-%dT%H:%M:%S", &parts);
    length += (size_t)snprintf(prefix + length, sizeof prefix - length, ".%09ld+00:00 %s ", now.tv_nsec,
                               stream == STREAM_STDERR ? "stderr" : "stdout");
    while (size > 0) {
        const uint8_t *newline = memchr(data, '\n', size);
        size_t line = newline ? (size_t)(newline - data) : size;
        buffer_append(&queue, prefix, length);
        buffer_append(&queue, newline ? "F " : "P ", 2);
        buffer_append(&queue, data, line);
        buffer_append(&queue, "\n", 1);
        data += line + (newline != NULL);
        size -= line + (newline != NULL);
    }
    log_flush();
}

void exit_record_write(uint32_t code, bool oom, uint64_t finished_ns)
{
    char record[64];
    int size = snprintf(record, sizeof record, "%u %d %llu\n", code, oom, (unsigned long long)finished_ns);
    if (ports.exit >= 0 && write(ports.exit, record, (size_t)size) != size)
        say("exit record: %s", strerror(errno));
}
