/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations on regular files: open to close.
 *
 * Writes go straight to the host's file. The guest keeps read pages only as long as they are the host's: at
 * each open its cache is dropped unless size and modification time are those of the last time the guest was
 * up to date (inode.stamp), which its own writes carry forward.
 *
 * O_DIRECT is the guest's affair (alignment is not kept on the way here). O_APPEND is not given to the host's
 * fd, because Linux would then append a page written back from a mapping too; each appending write asks for it.
 *
 * Source: open(2), pwritev2(2), fallocate(2), copy_file_range(2).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "server.h"

#ifndef RWF_APPEND
#define RWF_APPEND 0x10
#endif

#define OPEN_FLAGS (O_ACCMODE | O_TRUNC | O_SYNC | O_DSYNC)

/* --- is the guest's cache still good? --- */

static struct stamp stamp_now(int fd)
{
    struct file_info info;
    if (file_stat(fd, &info) != 0)
        return (struct stamp){.valid = false};
    return (struct stamp){
        .valid = true, .mtime = info.mtime, .mtime_ns = info.mtime_ns, .size = info.size};
}

static bool same_stamp(const struct stamp *left, const struct stamp *right)
{
    return left->valid && right->valid && left->mtime == right->mtime && left->mtime_ns == right->mtime_ns &&
           left->size == right->size;
}

static uint32_t cache_flag(struct inode *inode, int fd)
{
    struct stamp now = stamp_now(fd);
    bool unchanged = same_stamp(&inode->stamp, &now);
    inode->stamp = now;
    return unchanged ? FOPEN_KEEP_CACHE : 0;
}

/* The file of a request's handle, and its inode. */
static int file_of(struct request *request, uint64_t id, int *fd, struct inode **inode)
{
    struct handle *handle = handle_find(request->server, id, false);
    if (!handle)
        return EBADF;
    *fd = handle->fd;
    return inode_get(request, request->header->nodeid, inode);
}

/* --- open and close --- */

static int reply_opened(struct request *request, int fd, struct inode *inode,
                        const struct fuse_entry_out *entry)
{
    struct {
        struct fuse_entry_out entry;
        struct fuse_open_out open;
    } out = {.open = {.open_flags = cache_flag(inode, fd)}};
    int error = handle_add(request->server, fd, false, &out.open.fh);
    if (error)
        return error;
    if (!entry)
        return reply(request, &out.open, sizeof out.open);
    out.entry = *entry;
    return reply(request, &out, sizeof out);
}

int op_open(struct request *request)
{
    const struct fuse_open_in *in = take(request, sizeof *in);
    struct inode *inode;
    int error = in ? inode_get(request, request->header->nodeid, &inode) : EINVAL;
    if (error)
        return error;
    if (inode->type != S_IFREG) /* devices, sockets and pipes are opened by the guest's own kernel */
        return inode->type == S_IFDIR ? EISDIR : ENXIO;
    int flags = (int)in->flags & OPEN_FLAGS;
    if ((flags & O_ACCMODE) == O_ACCMODE)
        flags = (flags & ~O_ACCMODE) | O_RDWR;
    if ((flags & O_ACCMODE) == O_RDONLY)
        flags &= ~O_TRUNC;
    else if (!inode_writable(request->server, inode))
        return EROFS;
    int held = inode_fd(request->server, inode);
    if (held < 0)
        return -held;
    char path[32];
    fd_path(held, path);
    bool kill = in->open_flags & FUSE_OPEN_KILL_SUIDGID;
    if (kill)
        keep_setid(false);
    int fd = open(path, flags | O_CLOEXEC);
    error = errno;
    if (kill)
        keep_setid(true);
    return fd < 0 ? error : reply_opened(request, fd, inode, NULL);
}

int op_create(struct request *request)
{
    const struct fuse_create_in *in = take(request, sizeof *in);
    const char *name;
    struct inode *parent, *inode;
    int error = in ? take_name(request, &name) : EINVAL;
    if (error || (error = inode_get(request, request->header->nodeid, &parent)))
        return error;
    if (parent->type != S_IFDIR)
        return ENOTDIR;
    if (!inode_writable(request->server, parent))
        return EROFS;
    int directory = inode_fd(request->server, parent);
    if (directory < 0)
        return -directory;
    /* Without O_EXCL something else may have come into being there: O_NOFOLLOW and O_NONBLOCK make
     * opening it harmless, and only a regular file is accepted. */
    int flags = ((int)in->flags & (OPEN_FLAGS | O_EXCL)) | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    if ((error = act_as(request->header, in->umask)))
        return error;
    int fd = openat(directory, name, flags, in->mode & 07777);
    error = errno;
    act_as_root();
    if (fd < 0)
        return error;
    char path[32];
    fd_path(fd, path);
    int held = open(path, O_PATH | O_CLOEXEC);
    struct file_info info;
    error = held < 0 ? errno : inode_adopt(request->server, held, &info, &inode);
    if (!error && inode->type != S_IFREG) {
        inode_forget(request->server, inode->id, 1);
        error = EEXIST;
    }
    if (error) {
        close(fd);
        return error;
    }
    fcntl(fd, F_SETFL, (int)in->flags & (O_SYNC | O_DSYNC));
    struct fuse_entry_out entry;
    fill_entry(request->server, inode, &info, &entry);
    error = reply_opened(request, fd, inode, &entry);
    if (error)
        inode_forget(request->server, inode->id, 1);
    return error;
}

int op_release(struct request *request)
{
    const struct fuse_release_in *in = take(request, sizeof *in);
    if (!in)
        return EINVAL;
    handle_close(request->server, in->fh);
    return reply(request, NULL, 0);
}

/* --- data --- */

int op_read(struct request *request)
{
    const struct fuse_read_in *in = take(request, sizeof *in);
    struct handle *handle = in ? handle_find(request->server, in->fh, false) : NULL;
    if (!handle)
        return in ? EBADF : EINVAL;
    size_t size = in->size > MAX_WRITE ? MAX_WRITE : in->size;
    ssize_t got = pread(handle->fd, request->server->out, size, (off_t)in->offset);
    return got < 0 ? errno : reply(request, request->server->out, (size_t)got);
}

int op_write(struct request *request)
{
    const struct fuse_write_in *in = take(request, sizeof *in);
    const uint8_t *data = in ? take(request, in->size) : NULL;
    struct inode *inode;
    int fd, error = data ? file_of(request, in->fh, &fd, &inode) : EINVAL;
    if (error)
        return error;
    bool kill = in->write_flags & FUSE_WRITE_KILL_SUIDGID;
    bool append = in->flags & O_APPEND && !(in->write_flags & FUSE_WRITE_CACHE);
    struct stamp before = stamp_now(fd);
    bool current = same_stamp(&inode->stamp, &before);
    if (kill)
        keep_setid(false);
    ssize_t written;
    if (append) {
        struct iovec part = {(void *)(uintptr_t)data, in->size};
        written = syscall(SYS_pwritev2, fd, &part, 1L, 0L, 0L, RWF_APPEND);
    } else {
        written = pwrite(fd, data, in->size, (off_t)in->offset);
    }
    error = errno;
    if (kill)
        keep_setid(true);
    inode->stamp = current ? stamp_now(fd) : (struct stamp){.valid = false};
    if (written < 0)
        return error;
    struct fuse_write_out out = {.size = (uint32_t)written};
    return reply(request, &out, sizeof out);
}

int op_fsync(struct request *request)
{
    const struct fuse_fsync_in *in = take(request, sizeof *in);
    struct handle *handle = in ? handle_find(request->server, in->fh, false) : NULL;
    if (!handle)
        return in ? EBADF : EINVAL;
    bool data_only = in->fsync_flags & FUSE_FSYNC_FDATASYNC;
    if ((data_only ? fdatasync(handle->fd) : fsync(handle->fd)) != 0)
        return errno;
    return reply(request, NULL, 0);
}

int op_fallocate(struct request *request)
{
    const struct fuse_fallocate_in *in = take(request, sizeof *in);
    struct inode *inode;
    int fd, error = in ? file_of(request, in->fh, &fd, &inode) : EINVAL;
    if (error)
        return error;
    inode->stamp.valid = false;
    if (fallocate(fd, (int)in->mode, (off_t)in->offset, (off_t)in->length) != 0)
        return errno;
    return reply(request, NULL, 0);
}

int op_lseek(struct request *request)
{
    const struct fuse_lseek_in *in = take(request, sizeof *in);
    struct handle *handle = in ? handle_find(request->server, in->fh, false) : NULL;
    if (!handle)
        return in ? EBADF : EINVAL;
    if (in->whence != SEEK_DATA && in->whence != SEEK_HOLE)
        return EINVAL;
    off_t offset = lseek(handle->fd, (off_t)in->offset, (int)in->whence);
    if (offset < 0)
        return errno;
    struct fuse_lseek_out out = {.offset = (uint64_t)offset};
    return reply(request, &out, sizeof out);
}

int op_copy_file_range(struct request *request)
{
    const struct fuse_copy_file_range_in *in = take(request, sizeof *in);
    struct handle *from = in ? handle_find(request->server, in->fh_in, false) : NULL;
    struct handle *to = in ? handle_find(request->server, in->fh_out, false) : NULL;
    if (!from || !to)
        return in ? EBADF : EINVAL;
    struct inode *inode;
    int error = inode_get(request, in->nodeid_out, &inode);
    if (error)
        return error;
    inode->stamp.valid = false;
    off_t from_offset = (off_t)in->off_in, to_offset = (off_t)in->off_out;
    size_t length = in->len > COPY_CHUNK ? COPY_CHUNK : (size_t)in->len;
    ssize_t copied = syscall(SYS_copy_file_range, from->fd, &from_offset, to->fd, &to_offset, length, 0);
    if (copied < 0)
        return errno;
    struct fuse_write_out out = {.size = (uint32_t)copied};
    return reply(request, &out, sizeof out);
}
