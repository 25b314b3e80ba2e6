/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forked children that do for a request what may take long, and report through a pipe.
 *
 * The report is written in one piece of less than PIPE_BUF. A worker reports its success too; on the way to exec
 * it is the closing of the pipe that means success.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

struct worker {
    struct source source;
    struct request request;
    struct outcome outcome;
    worker_done done;
    bool asked; /* by the host; else request holds nothing */
};

int report_fd = -1;

/* --- the child's side --- */

static void report(const struct outcome *outcome)
{
    if (report_fd >= 0 && write(report_fd, outcome, sizeof *outcome) < 0)
        _exit(1);
}

void report_pid(pid_t pid)
{
    struct outcome outcome = {.pid = pid};
    report(&outcome);
}

void report_done(void)
{
    report(&(struct outcome){.done = true});
}

static void report_failure(struct outcome *outcome, const char *format, va_list list)
{
    vsnprintf(outcome->message, sizeof outcome->message, format, list);
    outcome->failed = true;
}

void fail(uint32_t code, const char *format, ...)
{
    struct outcome outcome = {.code = code};
    va_list list;
    va_start(list, format);
    report_failure(&outcome, format, list);
    va_end(list);
    report(&outcome);
    _exit(1);
}

void fail_errno(const char *format, ...)
{
    struct outcome outcome = {.code = 128, .error = errno};
    va_list list;
    va_start(list, format);
    report_failure(&outcome, format, list);
    va_end(list);
    size_t length = strlen(outcome.message);
    snprintf(outcome.message + length, sizeof outcome.message - length, ": %s", strerror(outcome.error));
    report(&outcome);
    _exit(1);
}

/* --- the loop's side --- */

bool outcome_read(int fd, struct outcome *outcome)
{
    for (;;) {
        struct outcome part; /* written in one piece, so read in one piece */
        ssize_t size = read(fd, &part, sizeof part);
        if (size < 0 && errno == EINTR)
            continue;
        if (size != sizeof part)
            return size >= 0 || errno != EAGAIN;
        if (part.pid)
            outcome->pid = part.pid;
        outcome->done = outcome->done || part.done;
        if (part.failed) {
            part.pid = outcome->pid;
            *outcome = part;
        }
    }
}

static void worker_ready(struct source *source, uint32_t events)
{
    struct worker *worker = (struct worker *)source;
    (void)events;
    if (!outcome_read(source->fd, &worker->outcome))
        return;
    loop_close(source);
    if (!worker->outcome.done && !worker->outcome.failed) {
        worker->outcome.failed = true;
        snprintf(worker->outcome.message, sizeof worker->outcome.message, "the agent's worker died");
    }
    worker->done(worker->asked ? &worker->request : NULL, &worker->outcome);
    loop_free(worker);
}

static void __attribute__((noreturn)) run_job(worker_job job, struct fields fields, int report_to)
{
    report_fd = report_to;
    signal(SIGPIPE, SIG_DFL);
    job(fields);
    report_done();
    _exit(0);
}

/* Fork a child for the job; returns the end of the pipe to read its report from, or -1. */
static int spawn(worker_job job, struct fields fields)
{
    int pipes[2];
    if (pipe2(pipes, O_CLOEXEC | O_NONBLOCK) < 0)
        return -1;
    pid_t pid = fork();
    if (pid == 0)
        run_job(job, fields, pipes[1]);
    close(pipes[1]);
    if (pid < 0) {
        close(pipes[0]);
        return -1;
    }
    return pipes[0];
}

bool worker_run(const struct request *request, worker_job job, worker_done done)
{
    struct fields fields = request ? request->fields : (struct fields){0};
    struct worker *worker = calloc(1, sizeof *worker);
    int report_from = worker ? spawn(job, fields) : -1;
    if (report_from < 0) {
        free(worker);
        return false;
    }
    if (request)
        worker->request = *request;
    worker->request.fields = (struct fields){0};
    worker->asked = request != NULL;
    worker->done = done;
    worker->source = (struct source){.fd = report_from, .ready = worker_ready};
    loop_watch(&worker->source, EPOLLIN);
    return true;
}
