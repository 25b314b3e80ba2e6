/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of processes: the main one and those of EXEC, from the request until RELEASE.
 *
 * A start is complete when the child's report pipe closes (exec has closed it) or carries an error. Its end may
 * be reaped before that, so both must have been seen before a process counts as ended.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define HOST_WAIT_MS 2000u   /* for the host to end the machine itself */
#define DEVICE_WAIT_MS 200u  /* for QEMU to write what the ports hold, when no host is there to confirm it */

static struct process *table[MAX_PROCESSES];
static struct process *main_process; /* running, or ended for good */
static bool exit_recorded;

/* An exec may end, and be reaped, before its helper has told its pid: such ends are remembered for a while. */
static struct {
    pid_t pid;
    int status;
} early[64];
static unsigned early_next;

/* --- the table --- */

struct process *process_find(uint32_t id)
{
    for (size_t i = 0; i < MAX_PROCESSES; i++)
        if (table[i] && table[i]->id == id)
            return table[i];
    return NULL;
}

void process_each(void (*visit)(struct process *process))
{
    for (size_t i = 0; i < MAX_PROCESSES; i++)
        if (table[i])
            visit(table[i]);
}

static void process_free(struct process *process)
{
    for (size_t i = 0; i < MAX_PROCESSES; i++)
        if (table[i] == process)
            table[i] = NULL;
    loop_close(&process->report);
    stdio_close(&process->stdio);
    if (process->freezes && process->state != STATE_ENDED)
        files_thaw();
    if (main_process == process)
        main_process = NULL;
    loop_free(process);
}

static struct process **free_place(void)
{
    struct process **oldest = NULL;
    for (size_t i = 0; i < MAX_PROCESSES; i++) {
        if (!table[i])
            return &table[i];
        bool ended = table[i]->state == STATE_ENDED && !table[i]->main;
        if (ended && (!oldest || table[i]->finished_ns < (*oldest)->finished_ns))
            oldest = &table[i];
    }
    if (oldest)
        process_free(*oldest);
    return oldest;
}

static struct process *asked_for(const struct request *request)
{
    struct process *process = process_find(fields_u32(request->fields, K_PROCESS, 0));
    if (!process)
        answer_error(request, 0, ESRCH, "no such process");
    return process;
}

/* --- the end --- */

static void finish_done(const struct request *request, const struct outcome *outcome)
{
    (void)request;
    (void)outcome;
    struct buffer *queue = channel_queue();
    frame_end(queue, frame_begin(queue, EV_SYNCED, main_process ? main_process->id : 0));
    channel_flush();
    power_off_later(channel_connected() ? HOST_WAIT_MS : DEVICE_WAIT_MS);
}

static void tell_exit(const struct process *process)
{
    struct buffer *queue = channel_queue();
    size_t mark = frame_begin(queue, EV_EXITED, process->id);
    put_field_u32(queue, K_CODE, process->code);
    put_field_u32(queue, K_OOM, process->oom);
    put_field_u64(queue, K_FINISHED_NS, process->finished_ns);
    frame_end(queue, mark);
    channel_flush();
}

void log_drained(void)
{
    if (!main_process || main_process->state != STATE_ENDED || exit_recorded)
        return;
    exit_recorded = true;
    exit_record_write(main_process->code, main_process->oom, main_process->finished_ns);
    tell_exit(main_process);
    if (!main_unmount(finish_done))
        power_off_later(HOST_WAIT_MS);
}

static void process_end(struct process *process)
{
    uint64_t kills = cgroup_event(CGROUP "/memory.events", "oom_kill");
    process->code = WIFSIGNALED(process->status) ? 128 + (uint32_t)WTERMSIG(process->status)
                                                 : (uint32_t)WEXITSTATUS(process->status);
    process->oom = kills > process->oom_kills_before && (process->main || process->code == 128 + SIGKILL);
    process->finished_ns = clock_ns(CLOCK_REALTIME);
    process->state = STATE_ENDED;
    if (process->freezes)
        files_thaw();
    if (process->main) {
        stdio_close_input(&process->stdio);
        stdio_drain(&process->stdio);
        if (log_is_empty())
            log_drained();
    } else {
        tell_exit(process);
    }
}

void process_reaped(pid_t pid, int status)
{
    for (size_t i = 0; i < MAX_PROCESSES; i++) {
        struct process *process = table[i];
        if (!process || process->pid != pid || process->reaped)
            continue;
        process->reaped = true;
        process->status = status;
        if (process->state == STATE_RUNNING)
            process_end(process);
        return;
    }
    early[early_next].pid = pid;
    early[early_next].status = status;
    early_next = (early_next + 1) % (sizeof early / sizeof *early);
}

/* Before an exec begins: a pid remembered from longer ago may be its own, given out again. */
static void forget_early(void)
{
    for (size_t i = 0; i < MAX_PROCESSES; i++)
        if (table[i] && table[i]->state == STATE_STARTING && table[i]->pid == 0)
            return; /* still wanted by that one */
    memset(early, 0, sizeof early);
}

static void learn_pid(struct process *process, pid_t pid)
{
    process->pid = pid;
    for (size_t i = 0; i < sizeof early / sizeof *early; i++)
        if (early[i].pid == pid) {
            process->reaped = true;
            process->status = early[i].status;
        }
}

/* --- the start --- */

static void start_failed(struct process *process)
{
    const struct outcome *outcome = &process->outcome;
    answer_error(&process->request, outcome->code ? outcome->code : 128, outcome->error,
                 outcome->failed ? outcome->message : "the process ended before it began");
    process_free(process);
}

static void report_ready(struct source *source, uint32_t events)
{
    struct process *process = (struct process *)((char *)source - offsetof(struct process, report));
    (void)events;
    bool whole = outcome_read(source->fd, &process->outcome);
    if (process->outcome.pid && !process->pid)
        learn_pid(process, process->outcome.pid);
    if (!whole)
        return;
    loop_close(source);
    if (process->outcome.failed || process->pid <= 0) {
        start_failed(process);
        return;
    }
    process->state = STATE_RUNNING;
    size_t mark = answer_begin(&process->request);
    put_field_u32(channel_queue(), K_PID, (uint32_t)process->pid);
    answer_end(mark);
    stdio_begin(&process->stdio);
    if (process->reaped)
        process_end(process);
}

static const char *cannot_start(const struct request *request, bool exec)
{
    uint32_t id = fields_u32(request->fields, K_PROCESS, 0);
    if (!configured)
        return "the guest is not configured";
    if (id == 0 || process_find(id))
        return "the process id is in use";
    if (!exec && main_process)
        return "the container is started already";
    if (!exec && !main_waits())
        return "the container's first process is gone";
    if (exec && (!main_process || main_process->state != STATE_RUNNING || main_process->reaped))
        return "container is not running";
    return NULL;
}

static void set_size(struct process *process, struct fields fields)
{
    struct winsize size = {.ws_row = (unsigned short)fields_u32(fields, K_ROWS, 0),
                           .ws_col = (unsigned short)fields_u32(fields, K_COLUMNS, 0)};
    if (process->tty && size.ws_row && size.ws_col)
        ioctl(process->stdio.terminal, TIOCSWINSZ, &size);
}

/* Let the main process, which waits, become the program. */
static bool wake_main(struct process *process, struct fields fields)
{
    int streams[3];
    main_streams(streams);
    process->report = (struct source){.fd = -1, .ready = report_ready};
    if (!stdio_adopt(&process->stdio, streams, process, process->tty, fields_u32(fields, K_OPEN_STDIN, 0)))
        return false;
    set_size(process, fields);
    process->pid = main_start(fields, stdio_terminal_number(&process->stdio), &process->report.fd);
    return process->pid > 0;
}

typedef pid_t (*spawn_child)(const struct start *start, pid_t main_pid, int report);

static bool spawn_beside(struct process *process, struct fields fields, spawn_child spawn)
{
    struct stdio_ends ends;
    int report[2] = {-1, -1};
    bool open_stdin = fields_u32(fields, K_OPEN_STDIN, 0);
    bool done = stdio_open(&process->stdio, &ends, process, process->tty, open_stdin) &&
                pipe2(report, O_CLOEXEC | O_NONBLOCK) == 0;
    if (done) {
        set_size(process, fields);
        struct start start = {
            .fields = fields, .ends = &ends, .terminal = stdio_terminal_number(&process->stdio)};
        /* Its own pid is told by the helper, which is what was forked. */
        done = spawn(&start, main_process ? main_process->pid : 0, report[1]) > 0;
    }
    int error = errno;
    for (int i = 0; i < 3; i++)
        if (ends.fds[i] >= 0)
            close(ends.fds[i]);
    if (report[1] >= 0)
        close(report[1]);
    process->report = (struct source){.fd = report[0], .ready = report_ready};
    errno = error;
    return done;
}

static void begin(const struct request *request, const char *reason, spawn_child spawn)
{
    if (reason) {
        answer_error(request, 128, EINVAL, reason);
        return;
    }
    struct process **place = free_place();
    struct process *process = place ? calloc(1, sizeof *process) : NULL;
    if (!process) {
        answer_error(request, 128, EAGAIN, "too many processes");
        return;
    }
    if (spawn)
        forget_early();
    *place = process;
    process->id = fields_u32(request->fields, K_PROCESS, 0);
    process->main = !spawn;
    process->freezes = spawn == files_spawn && fields_u32(request->fields, K_FLAGS, 0);
    process->tty = fields_u32(request->fields, K_TTY, 0);
    process->state = STATE_STARTING;
    process->oom_kills_before = cgroup_event(CGROUP "/memory.events", "oom_kill");
    process->request = *request;
    if (!(spawn ? spawn_beside(process, request->fields, spawn) : wake_main(process, request->fields))) {
        answer_error(request, 128, errno, strerror(errno));
        process_free(process);
        return;
    }
    if (process->main)
        main_process = process;
    process->request.fields = (struct fields){0};
    if (fields_u32(request->fields, K_ATTACHED, 0) && request->generation == channel_generation())
        stdio_attach(&process->stdio, fields_u32(request->fields, K_CREDIT_STDOUT, 0),
                     fields_u32(request->fields, K_CREDIT_STDERR, 0));
    loop_watch(&process->report, EPOLLIN);
}

void process_start(const struct request *request, bool exec)
{
    begin(request, cannot_start(request, exec), exec ? container_spawn_exec : NULL);
}

void process_files(const struct request *request)
{
    uint32_t id = fields_u32(request->fields, K_PROCESS, 0);
    const char *reason = !configured                    ? "the guest is not configured"
                         : id == 0 || process_find(id)  ? "the process id is in use"
                         : main_process && main_process->state == STATE_ENDED ? "container is not running"
                                                        : NULL;
    begin(request, reason, files_spawn);
}

/* --- requests about processes --- */

void process_list(const struct request *request)
{
    size_t mark = answer_begin(request);
    struct buffer *out = channel_queue();
    for (size_t i = 0; i < MAX_PROCESSES; i++) {
        const struct process *process = table[i];
        if (!process)
            continue;
        size_t record = nested_begin(out, K_RECORD);
        put_field_u32(out, K_PROCESS, process->id);
        put_field_u32(out, K_PID, (uint32_t)process->pid);
        put_field_u32(out, K_STATE, process->state);
        put_field_u32(out, K_FLAGS, (process->main ? RECORD_MAIN : 0) | (process->tty ? RECORD_TTY : 0));
        put_field_u32(out, K_STDIN_CREDIT, process->stdio.in.closed ? 0 : process->stdio.in.credit);
        if (process->state == STATE_ENDED) {
            put_field_u32(out, K_CODE, process->code);
            put_field_u32(out, K_OOM, process->oom);
            put_field_u64(out, K_FINISHED_NS, process->finished_ns);
        }
        nested_end(out, record);
    }
    answer_end(mark);
}

void process_signal(const struct request *request)
{
    struct process *process = process_find(fields_u32(request->fields, K_PROCESS, 0));
    int number = (int)fields_u32(request->fields, K_SIGNAL_NUMBER, 0);
    if (!process || process->reaped || process->pid <= 0)
        answer_error(request, 0, ESRCH, "no such process");
    else if (number < 1 || number > 64)
        answer_error(request, 0, EINVAL, "no such signal");
    else if (number == SIGKILL && !process->main && kill(-process->pid, number) == 0)
        answer_ok(request); /* what it started ends with it: the session is its own */
    else if (kill(process->pid, number) < 0)
        answer_error(request, 0, errno, strerror(errno));
    else
        answer_ok(request);
}

void process_attach(const struct request *request)
{
    struct process *process = asked_for(request);
    if (!process)
        return;
    stdio_attach(&process->stdio, fields_u32(request->fields, K_CREDIT_STDOUT, 0),
                 fields_u32(request->fields, K_CREDIT_STDERR, 0));
    answer_ok(request);
    if (process->state != STATE_STARTING)
        stdio_update(&process->stdio);
    channel_flush();
}

void process_detach(const struct request *request)
{
    struct process *process = asked_for(request);
    if (!process)
        return;
    stdio_detach(&process->stdio);
    answer_ok(request);
}

static void detach_one(struct process *process)
{
    stdio_detach(&process->stdio);
}

void processes_detach(void)
{
    process_each(detach_one);
}

void process_resize(const struct request *request)
{
    struct process *process = asked_for(request);
    if (!process)
        return;
    struct winsize size = {.ws_row = (unsigned short)fields_u32(request->fields, K_ROWS, 0),
                           .ws_col = (unsigned short)fields_u32(request->fields, K_COLUMNS, 0)};
    if (process->stdio.terminal >= 0)
        ioctl(process->stdio.terminal, TIOCSWINSZ, &size);
    answer_ok(request);
}

void process_release(const struct request *request)
{
    struct process *process = asked_for(request);
    if (!process)
        return;
    if (process->state != STATE_ENDED) {
        answer_error(request, 0, EBUSY, "the process runs");
        return;
    }
    answer_ok(request);
    if (!process->main)
        process_free(process);
}
