/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sequential write and read of one file. The write counts until fsync has returned. The read goes past this
 * kernel's page cache (O_DIRECT, or the cache dropped by posix_fadvise where that is refused); below a VM the
 * host's cache may still hold the data, which is what a VM's disk is like. The file's content does not compress.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "probe.h"

#define BLOCK (1u << 20)

static void fill(uint64_t *block)
{
    uint64_t state = 88172645463325252u;
    for (size_t i = 0; i < BLOCK / sizeof *block; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        block[i] = state;
    }
}

static bool write_file(int fd, const void *block, const struct options *options)
{
    char method[96];
    snprintf(method, sizeof method, "%u MiB in blocks of 1 MiB, until fsync returned", options->mebibytes);
    double start = now();
    for (unsigned i = 0; i < options->mebibytes; i++)
        if (write(fd, block, BLOCK) != BLOCK) {
            emit_error("disk_write", "write");
            return false;
        }
    if (fsync(fd) != 0) {
        emit_error("disk_write", "fsync");
        return false;
    }
    emit_value("disk_write", options->mebibytes * (double)BLOCK / (now() - start) / 1e6, "MB/s", method);
    return true;
}

static void read_file(const char *path, void *block, const struct options *options)
{
    const char *how = "O_DIRECT";
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (fd < 0 || read(fd, block, BLOCK) != BLOCK || lseek(fd, 0, SEEK_SET) != 0) {
        if (fd >= 0)
            close(fd);
        how = "page cache dropped";
        fd = open(path, O_RDONLY | O_CLOEXEC);
    }
    if (fd < 0) {
        emit_error("disk_read", "open");
        return;
    }
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    double start = now();
    uint64_t total = 0;
    ssize_t got;
    while ((got = read(fd, block, BLOCK)) > 0)
        total += (uint64_t)got;
    double elapsed = now() - start;
    close(fd);
    if (got < 0) {
        emit_error("disk_read", "read");
        return;
    }
    char method[96];
    snprintf(method, sizeof method, "%u MiB in blocks of 1 MiB, %s", options->mebibytes, how);
    emit_value("disk_read", (double)total / elapsed / 1e6, "MB/s", method);
}

void measure_disk(const struct options *options)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/.proa-probe-XXXXXX", options->directory);
    void *block = aligned_alloc(4096, BLOCK);
    int fd = mkostemp(path, O_CLOEXEC);
    if (!block || fd < 0) {
        emit_error("disk_write", "create the file");
        free(block);
        return;
    }
    fill(block);
    if (write_file(fd, block, options))
        read_file(path, block, options);
    unlink(path);
    close(fd);
    free(block);
}
