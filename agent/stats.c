/* SPDX-License-Identifier: Apache-2.0 */
/* STATS: one reading of what the workload uses. Source: Linux cgroup-v2.rst, proc(5), Documentation/block/stat.rst. */
#define _GNU_SOURCE
#include "agent.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_TICK 10000000ull
#define NS_PER_US 1000ull
#define SECTOR 512u

static void put_cpu(struct buffer *out)
{
    char text[8192];
    unsigned long long ticks[10] = {0};
    uint64_t total = 0;
    put_field_u64(out, K_CPU_TOTAL_NS, cgroup_event(CGROUP "/cpu.stat", "usage_usec") * NS_PER_US);
    put_field_u64(out, K_CPU_USER_NS, cgroup_event(CGROUP "/cpu.stat", "user_usec") * NS_PER_US);
    put_field_u64(out, K_CPU_KERNEL_NS, cgroup_event(CGROUP "/cpu.stat", "system_usec") * NS_PER_US);
    read_text("/proc/stat", text, sizeof text);
    sscanf(text, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", ticks, ticks + 1, ticks + 2, ticks + 3, ticks + 4,
           ticks + 5, ticks + 6, ticks + 7);
    for (int i = 0; i < 8; i++)
        total += ticks[i];
    put_field_u64(out, K_SYSTEM_CPU_NS, total * NS_PER_TICK);
    put_field_u32(out, K_ONLINE_CPUS, (uint32_t)sysconf(_SC_NPROCESSORS_ONLN));
}

static void put_memory(struct buffer *out)
{
    char text[4096], name[64];
    uint64_t limit = cgroup_number(CGROUP "/memory.max"), count;
    struct sysinfo info;
    if (limit == 0 && sysinfo(&info) == 0)
        limit = (uint64_t)info.totalram * info.mem_unit;
    put_field_u64(out, K_MEMORY_USAGE, cgroup_number(CGROUP "/memory.current"));
    put_field_u64(out, K_MEMORY_LIMIT, limit);
    read_text(CGROUP "/memory.stat", text, sizeof text);
    for (char *line = text; *line; line += strcspn(line, "\n"), line += *line == '\n') {
        if (sscanf(line, "%63s %" SCNu64, name, &count) != 2)
            continue;
        size_t mark = nested_begin(out, K_MEMORY_STAT);
        put_field_string(out, K_NAME, name);
        put_field_u64(out, K_COUNT, count);
        nested_end(out, mark);
    }
}

static void put_disks(struct buffer *out)
{
    unsigned long long read_sectors, written_sectors;
    uint64_t read_total = 0, written_total = 0;
    char path[64], text[512];
    char first = layers_disk()[2], last = own_seat < 0 ? 'z' : (char)(first + 1);
    for (char letter = first; letter <= last; letter++) {
        snprintf(path, sizeof path, "/sys/block/vd%c/stat", letter);
        if (read_text(path, text, sizeof text) == 0)
            break;
        if (sscanf(text, "%*u %*u %llu %*u %*u %*u %llu", &read_sectors, &written_sectors) == 2) {
            read_total += read_sectors;
            written_total += written_sectors;
        }
    }
    put_field_u64(out, K_READ_BYTES, read_total * SECTOR);
    put_field_u64(out, K_WRITE_BYTES, written_total * SECTOR);
}

static void put_interfaces(struct buffer *out)
{
    char text[8192], name[64];
    unsigned long long n[8];
    read_text("/proc/net/dev", text, sizeof text);
    for (char *line = text; *line; line += strcspn(line, "\n"), line += *line == '\n') {
        if (sscanf(line, " %63[^: ]: %llu %llu %llu %llu %*u %*u %*u %*u %llu %llu %llu %llu", name, n, n + 1, n + 2,
                   n + 3, n + 4, n + 5, n + 6, n + 7) != 9 || strcmp(name, "lo") == 0)
            continue;
        size_t mark = nested_begin(out, K_NETWORK);
        put_field_string(out, K_NAME, name);
        for (int i = 0; i < 8; i++)
            put_field_u64(out, (uint16_t)(K_RX_BYTES + i), n[i]);
        nested_end(out, mark);
    }
}

void stats_answer(const struct request *request)
{
    size_t mark = answer_begin(request);
    struct buffer *out = channel_queue();
    put_cpu(out);
    put_memory(out);
    put_field_u64(out, K_PIDS, cgroup_number(CGROUP "/pids.current"));
    put_field_u64(out, K_PIDS_LIMIT, cgroup_number(CGROUP "/pids.max"));
    put_disks(out);
    put_interfaces(out);
    put_field_u64(out, K_READ_AT_NS, clock_ns(CLOCK_REALTIME));
    answer_end(mark);
}
