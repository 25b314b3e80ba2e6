/* SPDX-License-Identifier: Apache-2.0 */
/* Which frame goes where; the short requests are answered here. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

bool configured;
static bool preparing, configuring;
static bool touched; /* it has been asked for something that cannot be undone */
static struct request waiting_start; /* sent while CONFIGURE runs; its fields are a copy */

static void hello(const struct request *request)
{
    if (fields_u32(request->fields, K_VERSION, 0) != WIRE_VERSION) {
        answer_error(request, 0, EPROTO, "the agent speaks version 1 of the protocol");
        return;
    }
    struct utsname names;
    uname(&names);
    size_t mark = answer_begin(request);
    struct buffer *out = channel_queue();
    put_field_u32(out, K_VERSION, WIRE_VERSION);
    put_field_string(out, K_AGENT_VERSION, AGENT_VERSION);
    put_field_string(out, K_KERNEL, names.release);
    for (char **module = loaded_modules; module && *module; module++)
        put_field_string(out, K_MODULE, *module);
    put_field_u32(out, K_CONFIGURED, configured);
    if (own_seat >= 0)
        put_field_u32(out, K_FRESH, !touched);
    answer_end(mark);
}

/* --- requests answered by a worker --- */

static void answer_outcome(const struct request *request, const struct outcome *outcome)
{
    if (outcome->failed)
        answer_error(request, outcome->code, outcome->error, outcome->message);
    else
        answer_ok(request);
}

static void configure_done(const struct request *request, const struct outcome *outcome)
{
    configuring = false;
    configured = !outcome->failed;
    answer_outcome(request, outcome);
    if (waiting_start.fields.bytes) {
        struct request start = waiting_start;
        waiting_start = (struct request){0};
        process_start(&start, false);
        free((void *)(uintptr_t)start.fields.bytes);
    }
}

static void request_start(const struct request *request)
{
    uint8_t *copy = configuring && !waiting_start.fields.bytes ? malloc(request->fields.size + 1) : NULL;
    if (!copy) {
        process_start(request, false);
        return;
    }
    memcpy(copy, request->fields.bytes, request->fields.size);
    waiting_start = *request;
    waiting_start.fields.bytes = copy;
}

static void prepare_done(const struct request *request, const struct outcome *outcome)
{
    preparing = false;
    answer_outcome(request, outcome);
}

static void request_prepare(const struct request *request)
{
    if (configured || configuring || preparing)
        answer_error(request, 0, EALREADY, "the guest is configured already");
    else if (!(preparing = main_prepare_image(request, prepare_done)))
        answer_error(request, 0, errno, "the container's first process is gone");
}

static void request_rehearse(const struct request *request)
{
    if (configured || configuring || preparing)
        answer_error(request, 0, EALREADY, "the guest is configured already");
    else if (!(preparing = main_rehearse(request, prepare_done)))
        answer_error(request, 0, errno, "the container's first process is gone");
}

static void request_configure(const struct request *request)
{
    if (configured || configuring || preparing)
        answer_error(request, 0, EALREADY, "the guest is configured already");
    else {
        if (!seat_join_network(request->fields)) {
            answer_error(request, 0, errno, "the network to be shared is not there");
            return;
        }
        configuring = touched = true;
        share_carry(request->fields);
        files_configured(request->fields);
        if (!main_configure(request, configure_done))
            answer_error(request, 0, errno, "the container's first process is gone");
    }
}

static void request_network(const struct request *request)
{
    if (!configured)
        answer_error(request, 0, EAGAIN, "the guest is not configured yet");
    else if (!worker_run(request, change_network, answer_outcome))
        answer_error(request, 0, errno, "cannot fork");
}

static void sync_job(struct fields fields)
{
    (void)fields;
    sync();
}

static void power_off_done(const struct request *request, const struct outcome *outcome)
{
    answer_outcome(request, outcome);
    power_off_later(50); /* lets the device hand the answer to the host */
}

static void request_identify(const struct request *request)
{
    if (!configured || main_waits())
        answer_error(request, 0, EINVAL, "no program runs that could go on as another");
    else if (!worker_run(request, identify, answer_outcome))
        answer_error(request, 0, errno, "cannot fork");
}

static void request_clock(const struct request *request)
{
    if (set_clock_and_entropy(request->fields, false))
        answer_ok(request);
    else
        answer_error(request, 0, errno, strerror(errno));
}

static void request_update(const struct request *request)
{
    struct field field;
    bool done = true;
    if (fields_find(request->fields, K_PIDS_MAX, &field))
        done = cgroup_limit("pids.max", fields_u64(request->fields, K_PIDS_MAX, 0));
    if (done && fields_find(request->fields, K_MEMORY_MAX, &field))
        done = cgroup_limit("memory.max", fields_u64(request->fields, K_MEMORY_MAX, 0));
    if (done && seat_limit_cpu(request->fields))
        answer_ok(request);
    else
        answer_error(request, 0, errno, strerror(errno));
}

/* --- the table --- */

static bool handle_request(uint8_t type, const struct request *request)
{
    switch (type) {
    case REQ_HELLO: hello(request); return true;
    case REQ_CONFIGURE: request_configure(request); return true;
    case REQ_START: request_start(request); return true;
    case REQ_EXEC: process_start(request, true); return true;
    case REQ_ATTACH: process_attach(request); return true;
    case REQ_DETACH: process_detach(request); return true;
    case REQ_RESIZE: process_resize(request); return true;
    case REQ_SIGNAL: process_signal(request); return true;
    case REQ_STATS: stats_answer(request); return true;
    case REQ_PROCESSES: table_answer(request); return true;
    case REQ_SYNC:
        if (!worker_run(request, sync_job, answer_outcome))
            answer_error(request, 0, errno, "cannot fork");
        return true;
    case REQ_POWEROFF:
        touched = true;
        if (!worker_run(request, sync_job, power_off_done))
            power_off();
        return true;
    case REQ_UPDATE: request_update(request); return true;
    case REQ_LIST: process_list(request); return true;
    case REQ_RELEASE: process_release(request); return true;
    case REQ_CLOCK: request_clock(request); return true;
    case REQ_PREPARE: request_prepare(request); return true;
    case REQ_REHEARSE: request_rehearse(request); return true;
    case REQ_FILES: process_files(request); return true;
    case REQ_IDENTIFY: request_identify(request); return true;
    case REQ_NETWORK: request_network(request); return true;
    case REQ_WATCH_OOM: oom_watch(request); return true;
    case REQ_FREEZE: seat_freeze(request); return true;
    default: return false;
    }
}

static void handle_data(const struct frame *frame)
{
    struct process *process = process_find(frame->id);
    switch (frame->type) {
    case DATA_STDIN:
        if (process)
            stdio_input(&process->stdio, frame->payload, frame->length);
        return;
    case DATA_STDIN_EOF:
        if (process)
            stdio_input_end(&process->stdio);
        return;
    case DATA_CREDIT:
        if (frame->length != 5)
            channel_fail("a CREDIT frame has the wrong length");
        else if (process)
            stdio_credit(&process->stdio, frame->payload[0], get_u32(frame->payload + 1));
        return;
    default:
        channel_fail("a frame of unknown type");
    }
}

void request_dispatch(const struct frame *frame)
{
    struct request request = {.id = frame->id,
                              .generation = channel_generation(),
                              .fields = {frame->payload, frame->length}};
    if (frame->type >= DATA_STDIN)
        handle_data(frame);
    else if (!fields_valid(request.fields))
        channel_fail("malformed fields");
    else if (!handle_request(frame->type, &request))
        answer_error(&request, 0, ENOSYS, "unknown request");
}
