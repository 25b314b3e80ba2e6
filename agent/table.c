/* SPDX-License-Identifier: Apache-2.0 */
/* PROCESSES: what ps needs to know of each process of the container. Source: proc(5). */
#define _GNU_SOURCE
#include "agent.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_TICK 10000000ull
#define MAX_ROWS 2048u    /* and so the answer stays below the largest frame */
#define MAX_COMMAND 256u  /* bytes of a command line when there are many rows; the first ones get more */
#define FEW_ROWS 64u
#define MAX_LONG_COMMAND 4096u

/* What /proc/PID/stat has after the name, from field 3 on. */
struct stat_line {
    char state;
    int ppid, pgrp, session, tty, tpgid;
    unsigned long long utime, stime, start, vsize;
    long nice, threads, rss;
};

static bool parse_stat(char *text, struct stat_line *stat, char **name)
{
    char *open = strchr(text, '('), *close = strrchr(text, ')');
    if (!open || !close)
        return false;
    *close = 0;
    *name = open + 1;
    return sscanf(close + 1, " %c %d %d %d %d %d %*u %*u %*u %*u %*u %llu %llu %*d %*d %*d %ld %ld %*d %llu %llu %ld",
                  &stat->state, &stat->ppid, &stat->pgrp, &stat->session, &stat->tty, &stat->tpgid, &stat->utime,
                  &stat->stime, &stat->nice, &stat->threads, &stat->start, &stat->vsize, &stat->rss) == 13;
}

static uint32_t status_number(const char *status, const char *key, bool last)
{
    const char *line = strstr(status, key);
    if (!line)
        return 0;
    line += strlen(key);
    uint32_t number = 0;
    for (size_t length = strcspn(line, "\n"), at = 0; at < length; at += strcspn(line + at, "\t\n")) {
        at += strspn(line + at, "\t ");
        if (at >= length)
            break;
        number = (uint32_t)strtoul(line + at, NULL, 10);
        if (!last)
            break;
    }
    return number;
}

static void put_row(struct buffer *out, unsigned pid, uint64_t boot_ns, size_t command_size)
{
    char path[64], text[1024], status[4096], command[MAX_LONG_COMMAND + 1];
    struct stat_line stat;
    char *name;
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    if (read_text(path, text, sizeof text) == 0 || !parse_stat(text, &stat, &name))
        return;
    snprintf(path, sizeof path, "/proc/%u/status", pid);
    read_text(path, status, sizeof status);
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    size_t command_length = read_text(path, command, command_size + 1);
    size_t mark = nested_begin(out, K_ROW);
    put_field_u32(out, K_ROW_PID, pid);
    put_field_u32(out, K_ROW_PPID, (uint32_t)stat.ppid);
    put_field_u32(out, K_ROW_UID, status_number(status, "\nUid:", false));
    put_field_u32(out, K_ROW_TTY, (uint32_t)stat.tty);
    put_field(out, K_ROW_STATE, &stat.state, 1);
    put_field_u64(out, K_ROW_UTIME_TICKS, stat.utime);
    put_field_u64(out, K_ROW_STIME_TICKS, stat.stime);
    put_field_u64(out, K_ROW_START_NS, boot_ns + stat.start * NS_PER_TICK);
    put_field_u64(out, K_ROW_VSZ, stat.vsize);
    put_field_u64(out, K_ROW_RSS, (uint64_t)stat.rss * (uint64_t)sysconf(_SC_PAGESIZE));
    put_field_string(out, K_ROW_COMM, name);
    put_field(out, K_ROW_CMDLINE, command, command_length);
    put_field_u32(out, K_ROW_NSPID, status_number(status, "\nNSpid:", true));
    put_field_u32(out, K_ROW_NICE, (uint32_t)stat.nice);
    put_field_u32(out, K_ROW_THREADS, (uint32_t)stat.threads);
    put_field_u32(out, K_ROW_SESSION, (uint32_t)stat.session);
    put_field_u32(out, K_ROW_PGRP, (uint32_t)stat.pgrp);
    put_field_u32(out, K_ROW_TPGID, (uint32_t)stat.tpgid);
    nested_end(out, mark);
}

void table_answer(const struct request *request)
{
    static char pids[MAX_ROWS * 8];
    size_t mark = answer_begin(request);
    struct buffer *out = channel_queue();
    uint64_t boot_ns = clock_ns(CLOCK_REALTIME) - clock_ns(CLOCK_BOOTTIME);
    unsigned rows = 0;
    read_text(CGROUP "/cgroup.procs", pids, sizeof pids);
    char *end = pids;
    for (;; rows++) {
        unsigned long pid = strtoul(end, &end, 10);
        if (pid == 0 || rows == MAX_ROWS)
            break;
        put_row(out, (unsigned)pid, boot_ns, rows < FEW_ROWS ? MAX_LONG_COMMAND : MAX_COMMAND);
    }
    answer_end(mark);
}
