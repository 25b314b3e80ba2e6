/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CONFIGURE: makes one machine out of a clone, which until then is the twin of all others.
 *
 * Runs in the main process, in whose mount namespace everything is mounted.
 * Source: docs/reference/agent-protocol.md, CONFIGURE; random(4).
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define MIN_ENTROPY 32u
#define MAX_ENTROPY 512u

static bool add_entropy(const struct field *seed)
{
    struct {
        struct rand_pool_info info;
        uint8_t bytes[MAX_ENTROPY];
    } pool;
    pool.info.entropy_count = (int)seed->length * 8;
    pool.info.buf_size = (int)seed->length;
    memcpy(pool.info.buf, seed->bytes, seed->length);
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    /* Crediting alone leaves the generator's old key, the twins' common one, in use for up to a minute. */
    bool done = fd >= 0 && ioctl(fd, RNDADDENTROPY, &pool) == 0 && ioctl(fd, RNDRESEEDCRNG) == 0;
    int error = errno;
    if (fd >= 0)
        close(fd);
    errno = error;
    return done;
}

bool set_clock_and_entropy(struct fields fields, bool first)
{
    struct field seed;
    bool seeded = fields_find(fields, K_ENTROPY, &seed);
    uint64_t now = fields_u64(fields, K_WALL_CLOCK_NS, 0);
    if ((first && !seeded) || (seeded && (seed.length < MIN_ENTROPY || seed.length > MAX_ENTROPY)) || now == 0) {
        errno = EINVAL;
        return false;
    }
    struct timespec time = {.tv_sec = (time_t)(now / NS_PER_S), .tv_nsec = (long)(now % NS_PER_S)};
    return (!seeded || add_entropy(&seed)) && clock_settime(CLOCK_REALTIME, &time) == 0;
}

void write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        fail_errno("%s", path);
    close(fd);
}

void set_names(struct fields fields)
{
    char *hostname = fields_string(fields, K_HOSTNAME, 0);
    char *domainname = fields_string(fields, K_DOMAINNAME, 0);
    if (hostname && sethostname(hostname, strlen(hostname)) < 0)
        fail_errno("sethostname");
    if (domainname && *domainname && setdomainname(domainname, strlen(domainname)) < 0)
        fail_errno("setdomainname");
}

static void set_sysctls(struct fields fields)
{
    struct field field;
    while (fields_next(&fields, &field)) {
        if (field.key != K_SYSCTL)
            continue;
        char *name = fields_string(field_fields(&field), K_NAME, 0);
        char *value = fields_string(field_fields(&field), K_VALUE, 0);
        char path[256] = "/proc/sys/";
        if (!name || !value || strlen(name) > 200 || strstr(name, ".."))
            fail(128, "a sysctl has no usable name or value");
        /* A slash in the name stands for a dot in an interface's name, as sysctl(8) has it. */
        char *at = path + strlen(path);
        for (const char *from = name; *from; from++)
            *at++ = *from == '.' ? '/' : *from == '/' ? '.' : *from;
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd < 0 || write(fd, value, strlen(value)) < 0)
            fail_errno("write sysctl key %s", name);
        close(fd);
    }
}

static void set_limits(struct fields fields)
{
    uint64_t memory = fields_u64(fields, K_MEMORY_MAX, 0), pids = fields_u64(fields, K_PIDS_MAX, 0);
    if (memory && !cgroup_limit("memory.max", memory))
        fail_errno("memory.max");
    if (pids && !cgroup_limit("pids.max", pids))
        fail_errno("pids.max");
    if (!seat_limit_cpu(fields))
        fail_errno("cpu");
}

static bool rootfs_prepared;

static void prepare_rootfs(struct fields fields)
{
    mount_rootfs(fields);
    mount_devices(fields);
    restrict_paths(fields);
    rootfs_prepared = true;
}

void prepare_image(struct fields fields)
{
    if (!set_clock_and_entropy(fields, false)) /* of the times that files get */
        fail_errno("clock");
    prepare_rootfs(fields);
    prepare_files();
}

void configure(struct fields fields)
{
    individualize(fields);
    if (!fields_u32(fields, K_PRIVILEGED, 0))
        restrict_devices();
}

void individualize(struct fields fields)
{
    if (!set_clock_and_entropy(fields, true))
        fail_errno("entropy and clock");
    set_names(fields);
    if (!seat_join_network(fields))
        fail_errno("the network to be shared");
    seat_show_network(fields);
    setup_network(fields);
    set_sysctls(fields);
    if (!rootfs_prepared)
        prepare_rootfs(fields);
    resize_shm(fields);
    mount_user(fields);
    mount_files(fields);
    finish_rootfs(fields);
    set_limits(fields);
}
