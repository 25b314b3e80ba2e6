/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading directories, with or without the attributes of each entry (READDIRPLUS).
 *
 * The offset of an entry is the host's own d_off, so a guest may seek to it again. The synthetic root's
 * offsets are plain positions: ".", "..", then the exports.
 *
 * Source: getdents64(2); linux/fuse.h, struct fuse_direntplus.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "server.h"

#define ENTRIES_SIZE (32u * 1024)

struct kernel_dirent {
    uint64_t ino;
    int64_t offset;
    uint16_t record_length;
    uint8_t type;
    char name[];
};

/* One entry to be given to the guest, wherever it comes from. */
struct found {
    const char *name;
    uint64_t ino, next_offset;
    uint32_t type;
};

int op_opendir(struct request *request)
{
    struct fuse_open_out out = {0};
    int fd = -1;
    if (request->header->nodeid != FUSE_ROOT_ID) {
        struct inode *inode;
        int error = inode_get(request, request->header->nodeid, &inode);
        if (error)
            return error;
        if (inode->type != S_IFDIR)
            return ENOTDIR;
        int held = inode_fd(request->server, inode);
        if (held < 0)
            return -held;
        fd = openat(held, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0)
            return errno;
    }
    int error = handle_add(request->server, fd, true, &out.fh);
    return error ? error : reply(request, &out, sizeof out);
}

int op_releasedir(struct request *request) { return op_release(request); }

int op_fsyncdir(struct request *request)
{
    const struct fuse_fsync_in *in = take(request, sizeof *in);
    struct handle *handle = in ? handle_find(request->server, in->fh, true) : NULL;
    if (!handle)
        return in ? EBADF : EINVAL;
    if (handle->fd >= 0 && fsync(handle->fd) != 0)
        return errno;
    return reply(request, NULL, 0);
}

/* --- where entries come from: 1 found, 0 end, negative errno --- */

static int next_of_root(struct server *server, struct handle *handle, struct found *found, char number[12])
{
    uint64_t position = handle->offset;
    if (position >= 2 + (uint64_t)server->export_count)
        return 0;
    *found = (struct found){.ino = position + 1, .next_offset = position + 1, .type = DT_DIR};
    if (position < 2) {
        found->name = position ? ".." : ".";
    } else {
        snprintf(number, 12, "%u", (unsigned)(position - 2));
        found->name = number;
        struct file_info info;
        if (file_stat(server->exports[position - 2].fd, &info) == 0) {
            found->type = (info.mode & S_IFMT) >> 12;
            found->ino = visible_ino(server, info.dev, info.ino);
        }
    }
    return 1;
}

static int next_of_host(struct handle *handle, struct found *found)
{
    if (!handle->entries && !(handle->entries = malloc(ENTRIES_SIZE)))
        return -ENOMEM;
    if (handle->entries_position == handle->entries_length) {
        long got = syscall(SYS_getdents64, handle->fd, handle->entries, ENTRIES_SIZE);
        if (got <= 0)
            return got < 0 ? -errno : 0;
        handle->entries_length = (size_t)got;
        handle->entries_position = 0;
    }
    const struct kernel_dirent *entry = (const void *)(handle->entries + handle->entries_position);
    *found = (struct found){.name = entry->name,
                            .ino = entry->ino,
                            .next_offset = (uint64_t)entry->offset,
                            .type = entry->type};
    return 1;
}

static void consume(struct handle *handle, const struct found *found)
{
    if (handle->fd >= 0) {
        const struct kernel_dirent *entry = (const void *)(handle->entries + handle->entries_position);
        handle->entries_position += entry->record_length;
    }
    handle->offset = found->next_offset;
}

static int seek_to(struct handle *handle, uint64_t offset)
{
    if (offset == handle->offset)
        return 0;
    if (handle->fd >= 0) {
        if (lseek(handle->fd, (off_t)offset, SEEK_SET) < 0)
            return errno;
        handle->entries_position = handle->entries_length = 0;
    }
    handle->offset = offset;
    return 0;
}

/* --- the reply --- */

static bool is_dot(const char *name) { return strcmp(name, ".") == 0 || strcmp(name, "..") == 0; }

/* Fills in the attributes of an entry. One that vanished meanwhile is listed without them (nodeid 0). */
static void add_attributes(struct server *server, struct handle *handle, int directory,
                           const struct found *found, struct fuse_entry_out *out)
{
    memset(out, 0, sizeof *out);
    out->attr.ino = found->ino;
    out->attr.mode = found->type << 12;
    if (is_dot(found->name))
        return;
    struct file_info info;
    struct inode *inode;
    int error;
    if (handle->fd >= 0) {
        error = inode_look_up(server, directory, found->name, &info, &inode);
    } else {
        int fd = fcntl(server->exports[handle->offset - 2].fd, F_DUPFD_CLOEXEC, 3);
        error = fd < 0 ? errno : inode_adopt(server, fd, &info, &inode);
    }
    if (!error)
        fill_entry(server, inode, &info, out);
}

static void put_dirent(uint8_t *place, const struct found *found, size_t name_length)
{
    struct fuse_dirent entry = {.ino = found->ino,
                                .off = found->next_offset,
                                .namelen = (uint32_t)name_length,
                                .type = found->type};
    memcpy(place, &entry, FUSE_NAME_OFFSET);
    memset(place + FUSE_NAME_OFFSET, 0, FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + name_length) - FUSE_NAME_OFFSET);
    memcpy(place + FUSE_NAME_OFFSET, found->name, name_length);
}

static int read_entries(struct request *request, bool plus)
{
    const struct fuse_read_in *in = take(request, sizeof *in);
    struct server *server = request->server;
    struct handle *handle = in ? handle_find(server, in->fh, true) : NULL;
    if (!handle)
        return in ? EBADF : EINVAL;
    int error = seek_to(handle, in->offset);
    if (error)
        return error;
    size_t size = in->size > MAX_WRITE ? MAX_WRITE : in->size, length = 0;
    size_t front = plus ? sizeof(struct fuse_entry_out) : 0;
    uint64_t device = 0;
    struct file_info info;
    if (handle->fd >= 0 && file_stat(handle->fd, &info) == 0)
        device = info.dev;
    for (;;) {
        struct found found = {.name = NULL};
        char number[12];
        int more = handle->fd < 0 ? next_of_root(server, handle, &found, number) : next_of_host(handle, &found);
        if (more < 0 && length == 0)
            return -more;
        if (more <= 0)
            break;
        size_t name_length = strlen(found.name);
        size_t needed = front + FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + name_length);
        if (length + needed > size)
            break;
        if (handle->fd >= 0)
            found.ino = visible_ino(server, device, found.ino);
        if (plus) {
            struct fuse_entry_out entry;
            add_attributes(server, handle, handle->fd, &found, &entry);
            memcpy(server->out + length, &entry, sizeof entry);
        }
        put_dirent(server->out + length + front, &found, name_length);
        length += needed;
        consume(handle, &found);
    }
    return reply(request, server->out, length);
}

int op_readdir(struct request *request) { return read_entries(request, false); }

int op_readdirplus(struct request *request) { return read_entries(request, true); }
