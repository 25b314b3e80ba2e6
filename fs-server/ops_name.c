/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations on names in directories. A name is one component, checked by take_name, and is given to the
 * kernel together with the directory's O_PATH fd: the kernel never walks a path that the guest composed.
 *
 * The root is synthetic: its children are the exports, named by their number, and nothing can be made there.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "server.h"

static int look_up_export(struct request *request, const char *name)
{
    struct server *server = request->server;
    char *end;
    unsigned long number = strtoul(name, &end, 10);
    char canonical[24];
    snprintf(canonical, sizeof canonical, "%lu", number);
    if (*end || strcmp(canonical, name) != 0 || number >= server->export_count)
        return ENOENT;
    int fd = fcntl(server->exports[number].fd, F_DUPFD_CLOEXEC, 3);
    if (fd < 0)
        return errno;
    struct file_info info;
    struct inode *inode;
    int error = inode_adopt(server, fd, &info, &inode);
    if (error)
        return error;
    struct fuse_entry_out out;
    fill_entry(server, inode, &info, &out);
    return reply(request, &out, sizeof out);
}

/* The directory of the request's node, for reading or for changing it. */
static int directory_fd(struct request *request, uint64_t id, bool change, int *fd)
{
    struct inode *inode;
    int error = inode_get(request, id, &inode);
    if (error)
        return error;
    if (inode->type != S_IFDIR)
        return ENOTDIR;
    if (change && !inode_writable(request->server, inode))
        return EROFS;
    *fd = inode_fd(request->server, inode);
    return *fd < 0 ? -*fd : 0;
}

int op_lookup(struct request *request)
{
    const char *name;
    int error = take_name(request, &name);
    if (error)
        return error;
    if (request->header->nodeid == FUSE_ROOT_ID)
        return look_up_export(request, name);
    int directory;
    error = directory_fd(request, request->header->nodeid, false, &directory);
    return error ? error : reply_entry(request, directory, name);
}

int op_forget(struct request *request)
{
    const struct fuse_forget_in *in = take(request, sizeof *in);
    if (in)
        inode_forget(request->server, request->header->nodeid, in->nlookup);
    return 0;
}

int op_batch_forget(struct request *request)
{
    const struct fuse_batch_forget_in *in = take(request, sizeof *in);
    for (uint32_t index = 0; in && index < in->count; index++) {
        const struct fuse_forget_one *one = take(request, sizeof *one);
        if (!one)
            break;
        inode_forget(request->server, one->nodeid, one->nlookup);
    }
    return 0;
}

int op_mknod(struct request *request)
{
    const struct fuse_mknod_in *in = take(request, sizeof *in);
    const char *name;
    int directory, error = in ? take_name(request, &name) : EINVAL;
    if (error || (error = directory_fd(request, request->header->nodeid, true, &directory)))
        return error;
    dev_t device = makedev((in->rdev >> 8) & 0xfff, (in->rdev & 0xff) | ((in->rdev >> 12) & 0xfff00));
    if ((error = act_as(request->header, in->umask)))
        return error;
    /* Device nodes fail with EPERM, for want of CAP_MKNOD: on the host they would open the host's devices. */
    error = mknodat(directory, name, in->mode, device) ? errno : 0;
    act_as_root();
    return error ? error : reply_entry(request, directory, name);
}

int op_mkdir(struct request *request)
{
    const struct fuse_mkdir_in *in = take(request, sizeof *in);
    const char *name;
    int directory, error = in ? take_name(request, &name) : EINVAL;
    if (error || (error = directory_fd(request, request->header->nodeid, true, &directory)) ||
        (error = act_as(request->header, in->umask)))
        return error;
    error = mkdirat(directory, name, in->mode) ? errno : 0;
    act_as_root();
    return error ? error : reply_entry(request, directory, name);
}

int op_symlink(struct request *request)
{
    const char *name, *target;
    int directory, error = take_name(request, &name);
    if (error || (error = take_string(request, &target)) ||
        (error = directory_fd(request, request->header->nodeid, true, &directory)) ||
        (error = act_as(request->header, 0)))
        return error;
    error = symlinkat(target, directory, name) ? errno : 0;
    act_as_root();
    return error ? error : reply_entry(request, directory, name);
}

int op_link(struct request *request)
{
    const struct fuse_link_in *in = take(request, sizeof *in);
    const char *name;
    struct inode *inode;
    int directory, error = in ? take_name(request, &name) : EINVAL;
    if (error || (error = inode_get(request, in->oldnodeid, &inode)) ||
        (error = directory_fd(request, request->header->nodeid, true, &directory)))
        return error;
    int fd = inode_fd(request->server, inode);
    if (fd < 0)
        return -fd;
    if (linkat(fd, "", directory, name, AT_EMPTY_PATH) != 0)
        return errno;
    return reply_entry(request, directory, name);
}

static int remove_name(struct request *request, int flags)
{
    const char *name;
    int directory, error = take_name(request, &name);
    if (error || (error = directory_fd(request, request->header->nodeid, true, &directory)))
        return error;
    if (unlinkat(directory, name, flags) != 0)
        return errno;
    return reply(request, NULL, 0);
}

int op_unlink(struct request *request) { return remove_name(request, 0); }

int op_rmdir(struct request *request) { return remove_name(request, AT_REMOVEDIR); }

static int rename_entry(struct request *request, uint64_t to, uint32_t flags)
{
    const char *old_name, *new_name;
    int old_directory, new_directory, error = take_name(request, &old_name);
    if (error || (error = take_name(request, &new_name)) ||
        (error = directory_fd(request, request->header->nodeid, true, &old_directory)) ||
        (error = directory_fd(request, to, true, &new_directory)))
        return error;
    if (syscall(SYS_renameat2, old_directory, old_name, new_directory, new_name, flags) != 0)
        return errno;
    return reply(request, NULL, 0);
}

int op_rename(struct request *request)
{
    const struct fuse_rename_in *in = take(request, sizeof *in);
    return in ? rename_entry(request, in->newdir, 0) : EINVAL;
}

int op_rename2(struct request *request)
{
    const struct fuse_rename2_in *in = take(request, sizeof *in);
    return in ? rename_entry(request, in->newdir, in->flags) : EINVAL;
}
