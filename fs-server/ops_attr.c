/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attributes, links' targets, file system figures, extended attributes.
 *
 * Calls that take no O_PATH fd go through /fd/N, the process's own /proc/self/fd in its private root: a magic
 * link that leads to exactly the object held and follows nothing after it.
 *
 * Source: fchmodat(2), utimensat(2), xattr(7).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/limits.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "server.h"

static void root_attr(struct server *server, struct fuse_attr *attr)
{
    *attr = (struct fuse_attr){
        .ino = (uint64_t)0xffff << 48 | 1, .mode = S_IFDIR | 0555, .nlink = 2, .blksize = 4096};
    attr->nlink += server->export_count;
}

static int reply_attr(struct request *request, int fd)
{
    struct fuse_attr_out out = {.attr_valid = CACHE_SECONDS};
    struct file_info info;
    int error = file_stat(fd, &info);
    if (error)
        return error;
    fill_attr(request->server, &info, &out.attr);
    return reply(request, &out, sizeof out);
}

static int request_fd(struct request *request, bool change, struct inode **inode, int *fd)
{
    int error = inode_get(request, request->header->nodeid, inode);
    if (error)
        return error;
    if (change && !inode_writable(request->server, *inode))
        return EROFS;
    *fd = inode_fd(request->server, *inode);
    return *fd < 0 ? -*fd : 0;
}

int op_getattr(struct request *request)
{
    if (request->header->nodeid == FUSE_ROOT_ID) {
        struct fuse_attr_out out = {.attr_valid = CACHE_SECONDS};
        root_attr(request->server, &out.attr);
        return reply(request, &out, sizeof out);
    }
    struct inode *inode;
    int fd, error = request_fd(request, false, &inode, &fd);
    return error ? error : reply_attr(request, fd);
}

static int set_size(struct request *request, const struct fuse_setattr_in *in, struct inode *inode, int fd)
{
    if (inode->type != S_IFREG)
        return inode->type == S_IFDIR ? EISDIR : EINVAL;
    if (in->size > INT64_MAX)
        return EFBIG;
    bool opened = !(in->valid & FATTR_FH);
    int file;
    if (opened) {
        char path[32];
        fd_path(fd, path);
        file = open(path, O_WRONLY | O_CLOEXEC);
        if (file < 0)
            return errno;
    } else {
        struct handle *handle = handle_find(request->server, in->fh, false);
        if (!handle)
            return EBADF;
        file = handle->fd;
    }
    bool kill = in->valid & FATTR_KILL_SUIDGID;
    if (kill)
        keep_setid(false);
    int error = ftruncate(file, (off_t)in->size) ? errno : 0;
    if (kill)
        keep_setid(true);
    if (opened)
        close(file);
    inode->stamp.valid = false;
    return error;
}

static int set_times(const struct fuse_setattr_in *in, int fd)
{
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_OMIT}};
    if (in->valid & FATTR_ATIME_NOW)
        times[0].tv_nsec = UTIME_NOW;
    else if (in->valid & FATTR_ATIME)
        times[0] = (struct timespec){.tv_sec = (time_t)in->atime, .tv_nsec = in->atimensec};
    if (in->valid & FATTR_MTIME_NOW)
        times[1].tv_nsec = UTIME_NOW;
    else if (in->valid & FATTR_MTIME)
        times[1] = (struct timespec){.tv_sec = (time_t)in->mtime, .tv_nsec = in->mtimensec};
    return utimensat(fd, "", times, AT_EMPTY_PATH) ? errno : 0;
}

int op_setattr(struct request *request)
{
    const struct fuse_setattr_in *in = take(request, sizeof *in);
    if (!in)
        return EINVAL;
    struct inode *inode;
    int fd, error = request_fd(request, true, &inode, &fd);
    if (!error && in->valid & FATTR_MODE) {
        char path[32];
        fd_path(fd, path);
        error = fchmodat(AT_FDCWD, path, in->mode & 07777, 0) ? errno : 0;
    }
    if (!error && in->valid & (FATTR_UID | FATTR_GID)) {
        uid_t uid = in->valid & FATTR_UID ? in->uid : (uid_t)-1;
        gid_t gid = in->valid & FATTR_GID ? in->gid : (gid_t)-1;
        error = fchownat(fd, "", uid, gid, AT_EMPTY_PATH) ? errno : 0;
    }
    if (!error && in->valid & FATTR_SIZE)
        error = set_size(request, in, inode, fd);
    if (!error && in->valid & (FATTR_ATIME | FATTR_MTIME | FATTR_ATIME_NOW | FATTR_MTIME_NOW))
        error = set_times(in, fd);
    return error ? error : reply_attr(request, fd);
}

int op_readlink(struct request *request)
{
    struct inode *inode;
    int fd, error = request_fd(request, false, &inode, &fd);
    if (error)
        return error;
    char target[PATH_MAX];
    ssize_t length = readlinkat(fd, "", target, sizeof target);
    return length < 0 ? errno : reply(request, target, (size_t)length);
}

int op_statfs(struct request *request)
{
    struct fuse_statfs_out out = {.st = {.bsize = 4096, .frsize = 4096, .namelen = 255}};
    if (request->header->nodeid != FUSE_ROOT_ID) {
        struct inode *inode;
        int fd, error = request_fd(request, false, &inode, &fd);
        if (error)
            return error;
        struct statfs host;
        if (fstatfs(fd, &host) != 0)
            return errno;
        out.st.blocks = host.f_blocks;
        out.st.bfree = host.f_bfree;
        out.st.bavail = host.f_bavail;
        out.st.files = host.f_files;
        out.st.ffree = host.f_ffree;
        out.st.bsize = (uint32_t)host.f_bsize;
        out.st.frsize = (uint32_t)(host.f_frsize ? host.f_frsize : host.f_bsize);
        out.st.namelen = (uint32_t)host.f_namelen;
    }
    return reply(request, &out, sizeof out);
}

/* --- extended attributes --- */

int op_setxattr(struct request *request)
{
    /* 8 bytes: the longer form exists only after FUSE_SETXATTR_EXT, which INIT does not take up. */
    const struct fuse_setxattr_in *in = take(request, FUSE_COMPAT_SETXATTR_IN_SIZE);
    const char *name;
    int fd, error = in ? take_string(request, &name) : EINVAL;
    if (error)
        return error;
    const void *value = take(request, in->size);
    struct inode *inode;
    if (!value || in->size > XATTR_SIZE_MAX)
        return EINVAL;
    if ((error = request_fd(request, true, &inode, &fd)))
        return error;
    char path[32];
    fd_path(fd, path);
    if (setxattr(path, name, value, in->size, (int)in->flags) != 0)
        return errno;
    return reply(request, NULL, 0);
}

/* Replies with the value, or with its length when that was asked for (size 0). */
static int reply_xattr(struct request *request, uint32_t size, ssize_t length)
{
    if (length < 0)
        return errno;
    if (size)
        return reply(request, request->server->out, (size_t)length);
    struct fuse_getxattr_out out = {.size = (uint32_t)length};
    return reply(request, &out, sizeof out);
}

static uint32_t bounded(uint32_t size) { return size > XATTR_SIZE_MAX ? XATTR_SIZE_MAX : size; }

int op_getxattr(struct request *request)
{
    const struct fuse_getxattr_in *in = take(request, sizeof *in);
    const char *name;
    int fd, error = in ? take_string(request, &name) : EINVAL;
    struct inode *inode;
    if (error)
        return error;
    if (request->header->nodeid == FUSE_ROOT_ID)
        return ENODATA;
    if ((error = request_fd(request, false, &inode, &fd)))
        return error;
    char path[32];
    fd_path(fd, path);
    return reply_xattr(request, in->size, getxattr(path, name, request->server->out, bounded(in->size)));
}

int op_listxattr(struct request *request)
{
    const struct fuse_getxattr_in *in = take(request, sizeof *in);
    if (!in)
        return EINVAL;
    if (request->header->nodeid == FUSE_ROOT_ID)
        return reply_xattr(request, in->size, 0);
    struct inode *inode;
    int fd, error = request_fd(request, false, &inode, &fd);
    if (error)
        return error;
    char path[32];
    fd_path(fd, path);
    return reply_xattr(request, in->size,
                       listxattr(path, (char *)request->server->out, bounded(in->size)));
}

int op_removexattr(struct request *request)
{
    const char *name;
    struct inode *inode;
    int fd, error = take_string(request, &name);
    if (error || (error = request_fd(request, true, &inode, &fd)))
        return error;
    char path[32];
    fd_path(fd, path);
    return removexattr(path, name) ? errno : reply(request, NULL, 0);
}
