/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which function serves which FUSE operation, and the opening handshake.
 *
 * Not served, on purpose: locks (the guest keeps them for itself), ACCESS (the guest's kernel decides, it
 * mounts with default_permissions), FLUSH (a write is on the host's file before it is answered), BMAP, IOCTL,
 * POLL. ENOSYS tells the guest's kernel not to ask again.
 *
 * Source: linux/fuse.h, "Protocol changelog"; struct fuse_init_out.
 */
#include <errno.h>
#include <string.h>

#include "server.h"

static operation_function *const OPERATIONS[] = {
    [FUSE_LOOKUP] = op_lookup,
    [FUSE_FORGET] = op_forget,
    [FUSE_GETATTR] = op_getattr,
    [FUSE_SETATTR] = op_setattr,
    [FUSE_READLINK] = op_readlink,
    [FUSE_SYMLINK] = op_symlink,
    [FUSE_MKNOD] = op_mknod,
    [FUSE_MKDIR] = op_mkdir,
    [FUSE_UNLINK] = op_unlink,
    [FUSE_RMDIR] = op_rmdir,
    [FUSE_RENAME] = op_rename,
    [FUSE_LINK] = op_link,
    [FUSE_OPEN] = op_open,
    [FUSE_READ] = op_read,
    [FUSE_WRITE] = op_write,
    [FUSE_STATFS] = op_statfs,
    [FUSE_RELEASE] = op_release,
    [FUSE_FSYNC] = op_fsync,
    [FUSE_SETXATTR] = op_setxattr,
    [FUSE_GETXATTR] = op_getxattr,
    [FUSE_LISTXATTR] = op_listxattr,
    [FUSE_REMOVEXATTR] = op_removexattr,
    [FUSE_INIT] = op_init,
    [FUSE_OPENDIR] = op_opendir,
    [FUSE_READDIR] = op_readdir,
    [FUSE_RELEASEDIR] = op_releasedir,
    [FUSE_FSYNCDIR] = op_fsyncdir,
    [FUSE_CREATE] = op_create,
    [FUSE_DESTROY] = op_destroy,
    [FUSE_BATCH_FORGET] = op_batch_forget,
    [FUSE_FALLOCATE] = op_fallocate,
    [FUSE_READDIRPLUS] = op_readdirplus,
    [FUSE_RENAME2] = op_rename2,
    [FUSE_LSEEK] = op_lseek,
    [FUSE_COPY_FILE_RANGE] = op_copy_file_range,
};

#define WANTED                                                                                                \
    (FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES | FUSE_DONT_MASK | FUSE_AUTO_INVAL_DATA |        \
     FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES |   \
     FUSE_CACHE_SYMLINKS | FUSE_HANDLE_KILLPRIV_V2)

void server_reset(struct server *server)
{
    handle_close_all(server);
    inode_forget_all(server);
    server->ready = false;
}

int op_init(struct request *request)
{
    /* Older kernels send a shorter structure: flags2 and what follows came with 7.36. */
    const struct fuse_init_in *in = take(request, offsetof(struct fuse_init_in, flags2));
    if (!in || in->major < 7)
        return EPROTO;
    struct fuse_init_out out = {.major = 7, .minor = 36};
    if (in->major > 7) /* the guest sends INIT again, with the version we named */
        return reply(request, &out, sizeof out);
    if (in->minor < 31)
        return EPROTO;
    /* A new mount on the same connection: what the one before knew is void. */
    server_reset(request->server);
    out.max_readahead = in->max_readahead;
    out.flags = in->flags & WANTED;
    out.max_background = 32;
    out.congestion_threshold = 24;
    out.max_write = MAX_WRITE;
    out.time_gran = 1;
    out.max_pages = MAX_WRITE / 4096;
    request->server->ready = true;
    return reply(request, &out, sizeof out);
}

int op_destroy(struct request *request)
{
    server_reset(request->server);
    return reply(request, NULL, 0);
}

static bool has_no_reply(uint32_t opcode)
{
    return opcode == FUSE_FORGET || opcode == FUSE_BATCH_FORGET || opcode == FUSE_INTERRUPT;
}

void dispatch(struct request *request)
{
    uint32_t opcode = request->header->opcode;
    operation_function *operation =
        opcode < sizeof OPERATIONS / sizeof *OPERATIONS ? OPERATIONS[opcode] : NULL;
    int error = ENOSYS;
    if (operation && !request->server->ready && opcode != FUSE_INIT)
        error = EPROTO;
    else if (operation)
        error = operation(request);
    if (error && !has_no_reply(opcode))
        reply_error(request, error);
}
