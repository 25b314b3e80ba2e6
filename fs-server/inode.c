/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the guest knows of the exports: one inode for each (mount, device, inode number) it has looked up and
 * not yet forgotten.
 *
 * An inode is held by an O_PATH fd, so no path is ever walked twice and nothing the host renames or replaces
 * changes what the guest holds. fds are few and a guest's cache is large: beyond max_open_inodes the inode
 * longest unused is folded away into a file handle (name_to_handle_at) and unfolded when it is needed again.
 * On file systems without handles the fds stay open, and lookups fail with ENFILE when no more may be had.
 *
 * Source: open_by_handle_at(2), openat2(2), statx(2).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "server.h"

#define HANDLE_BYTES 128 /* MAX_HANDLE_SZ */
#define MOUNT_ID 0x1000u /* STATX_MNT_ID */
#define BASIC_STATS 0x7ffu

void fd_path(int fd, char path[static 32])
{
    snprintf(path, 32, "/fd/%d", fd);
}

/* --- stat --- */

struct kernel_timestamp {
    int64_t seconds;
    uint32_t nanoseconds;
    int32_t reserved;
};

/* struct statx of linux/stat.h, which cannot be included next to every libc's sys/stat.h. */
struct kernel_statx {
    uint32_t mask, blksize;
    uint64_t attributes;
    uint32_t nlink, uid, gid;
    uint16_t mode, spare0;
    uint64_t ino, size, blocks, attributes_mask;
    struct kernel_timestamp atime, btime, ctime, mtime;
    uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
    uint64_t mount;
    uint64_t spare[13];
};

int file_stat(int fd, struct file_info *info)
{
    struct kernel_statx raw;
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, BASIC_STATS | MOUNT_ID, &raw) != 0)
        return errno;
    *info = (struct file_info){
        .ino = raw.ino,
        .dev = makedev(raw.dev_major, raw.dev_minor),
        .mount = raw.mount,
        .size = raw.size,
        .blocks = raw.blocks,
        .mode = raw.mode,
        .nlink = raw.nlink,
        .uid = raw.uid,
        .gid = raw.gid,
        /* new_encode_dev() of linux/kdev_t.h, the form in which FUSE carries device numbers */
        .rdev = (raw.rdev_minor & 0xff) | raw.rdev_major << 8 | (raw.rdev_minor & ~0xffu) << 12,
        .blksize = raw.blksize,
        .atime = raw.atime.seconds,
        .mtime = raw.mtime.seconds,
        .ctime = raw.ctime.seconds,
        .atime_ns = raw.atime.nanoseconds,
        .mtime_ns = raw.mtime.nanoseconds,
        .ctime_ns = raw.ctime.nanoseconds,
    };
    return 0;
}

uint64_t visible_ino(struct server *server, uint64_t dev, uint64_t ino)
{
    /* All exports are one device to the guest. Host inode numbers stay far below 2^48 in practice, so the
     * device's place in the list in the top bits keeps (st_dev, st_ino) one to one and stable. */
    uint32_t index = 0;
    while (index < server->device_count && server->devices[index] != dev)
        index++;
    if (index == server->device_count) {
        uint64_t *devices = realloc(server->devices, (index + 1) * sizeof *devices);
        if (devices) {
            server->devices = devices;
            server->devices[server->device_count++] = dev;
        }
    }
    return ino + ((uint64_t)index << 48);
}

void fill_attr(struct server *server, const struct file_info *info, struct fuse_attr *attr)
{
    *attr = (struct fuse_attr){
        .ino = visible_ino(server, info->dev, info->ino),
        .size = info->size,
        .blocks = info->blocks,
        .atime = (uint64_t)info->atime,
        .mtime = (uint64_t)info->mtime,
        .ctime = (uint64_t)info->ctime,
        .atimensec = info->atime_ns,
        .mtimensec = info->mtime_ns,
        .ctimensec = info->ctime_ns,
        .mode = info->mode,
        .nlink = info->nlink,
        .uid = info->uid,
        .gid = info->gid,
        .rdev = info->rdev,
        .blksize = info->blksize,
    };
}

void fill_entry(struct server *server, const struct inode *inode, const struct file_info *info,
                struct fuse_entry_out *out)
{
    *out = (struct fuse_entry_out){
        .nodeid = inode->id, .entry_valid = CACHE_SECONDS, .attr_valid = CACHE_SECONDS};
    fill_attr(server, info, &out->attr);
}

/* --- order of use --- */

static void unlist(struct server *server, struct inode *inode)
{
    if (!inode->newer && !inode->older && server->newest != inode)
        return;
    *(inode->newer ? &inode->newer->older : &server->newest) = inode->older;
    *(inode->older ? &inode->older->newer : &server->oldest) = inode->newer;
    inode->newer = inode->older = NULL;
}

static void list_newest(struct server *server, struct inode *inode)
{
    inode->newer = NULL;
    inode->older = server->newest;
    *(server->newest ? &server->newest->newer : &server->oldest) = inode;
    server->newest = inode;
}

static void fold(struct server *server, struct inode *inode)
{
    unlist(server, inode);
    close(inode->fd);
    inode->fd = -1;
    server->open_inodes--;
}

/* Makes room for one more fd. The newest is left alone: the operation under way may hold it. */
static bool make_room(struct server *server)
{
    while (server->open_inodes >= server->max_open_inodes && server->oldest &&
           server->oldest != server->newest)
        fold(server, server->oldest);
    return server->open_inodes < server->max_open_inodes;
}

/* --- file handles --- */

static struct known_mount *find_mount(struct server *server, uint64_t mount)
{
    for (uint32_t index = 0; index < server->mount_count; index++)
        if (server->mounts[index].mount == mount)
            return &server->mounts[index];
    return NULL;
}

/* open_by_handle_at wants an ordinary fd on the mount. The first object seen there gives it. */
static struct known_mount *add_mount(struct server *server, const struct file_info *info, int fd)
{
    if (!S_ISDIR(info->mode) && !S_ISREG(info->mode))
        return NULL;
    struct known_mount *mounts = realloc(server->mounts, (server->mount_count + 1) * sizeof *mounts);
    if (!mounts)
        return NULL;
    server->mounts = mounts;
    char path[32];
    fd_path(fd, path);
    mounts[server->mount_count] =
        (struct known_mount){.mount = info->mount, .fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC)};
    return &mounts[server->mount_count++];
}

static int open_handle(int mount, struct file_handle *handle)
{
    return (int)syscall(SYS_open_by_handle_at, mount, handle, O_PATH | O_NOFOLLOW | O_CLOEXEC);
}

static struct file_handle *make_handle(struct server *server, const struct file_info *info, int fd)
{
    union {
        struct file_handle handle;
        uint8_t room[sizeof(struct file_handle) + HANDLE_BYTES];
    } buffer = {.handle = {.handle_bytes = HANDLE_BYTES}};
    struct known_mount *mount = find_mount(server, info->mount);
    if (mount && mount->fd < 0)
        return NULL;
    int mount_id;
    if (syscall(SYS_name_to_handle_at, fd, "", &buffer.handle, &mount_id, AT_EMPTY_PATH) != 0)
        return NULL;
    if (!mount) {
        mount = add_mount(server, info, fd);
        if (!mount || mount->fd < 0)
            return NULL;
        /* Some file systems hand out handles that cannot be opened: try once for each mount. */
        int probe = open_handle(mount->fd, &buffer.handle);
        if (probe < 0) {
            close(mount->fd);
            mount->fd = -1;
            return NULL;
        }
        close(probe);
    }
    size_t size = sizeof(struct file_handle) + buffer.handle.handle_bytes;
    struct file_handle *handle = malloc(size);
    if (handle)
        memcpy(handle, &buffer, size);
    return handle;
}

static bool same_handle(const struct file_handle *left, const struct file_handle *right)
{
    return left->handle_type == right->handle_type && left->handle_bytes == right->handle_bytes &&
           memcmp(left->f_handle, right->f_handle, left->handle_bytes) == 0;
}

int inode_fd(struct server *server, struct inode *inode)
{
    if (inode->fd < 0) {
        struct known_mount *mount = find_mount(server, inode->mount);
        if (!make_room(server))
            return -ENFILE;
        int fd = open_handle(mount->fd, inode->handle);
        if (fd < 0)
            return -errno; /* ESTALE: removed on the host */
        inode->fd = fd;
        server->open_inodes++;
    } else if (inode->handle) {
        unlist(server, inode);
    }
    if (inode->handle)
        list_newest(server, inode);
    return inode->fd;
}

/* --- the set of known inodes --- */

static struct inode **bucket_of(struct server *server, uint64_t mount, uint64_t dev, uint64_t ino)
{
    uint64_t hash = (ino ^ dev << 40 ^ mount << 52) * 0x9e3779b97f4a7c15u;
    return &server->buckets[(hash >> 32) % server->bucket_count];
}

static void insert(struct server *server, struct inode *inode)
{
    if (server->inodes.used > server->bucket_count) {
        uint32_t count = server->bucket_count * 4;
        struct inode **old = server->buckets, **grown = calloc(count, sizeof *grown);
        if (grown) {
            uint32_t old_count = server->bucket_count;
            server->buckets = grown;
            server->bucket_count = count;
            for (uint32_t index = 0; index < old_count; index++)
                for (struct inode *next, *moved = old[index]; moved; moved = next) {
                    next = moved->hash_next;
                    struct inode **bucket = bucket_of(server, moved->mount, moved->dev, moved->ino);
                    moved->hash_next = *bucket;
                    *bucket = moved;
                }
            free(old);
        }
    }
    struct inode **bucket = bucket_of(server, inode->mount, inode->dev, inode->ino);
    inode->hash_next = *bucket;
    *bucket = inode;
}

static struct inode *find(struct server *server, const struct file_info *info,
                          const struct file_handle *handle)
{
    for (struct inode *inode = *bucket_of(server, info->mount, info->dev, info->ino); inode;
         inode = inode->hash_next) {
        if (inode->ino != info->ino || inode->dev != info->dev || inode->mount != info->mount)
            continue;
        /* A number is used again after its file is gone; an fd prevents that, a handle tells it. */
        if (inode->fd >= 0 || (handle && inode->handle && same_handle(handle, inode->handle)))
            return inode;
    }
    return NULL;
}

static void destroy(struct server *server, struct inode *inode)
{
    struct inode **link = bucket_of(server, inode->mount, inode->dev, inode->ino);
    while (*link && *link != inode)
        link = &(*link)->hash_next;
    if (*link)
        *link = inode->hash_next;
    if (inode->fd >= 0)
        fold(server, inode);
    table_remove(&server->inodes, inode->id);
    free(inode->handle);
    free(inode);
}

static struct inode *create(struct server *server, const struct file_info *info, int fd,
                            struct file_handle *handle)
{
    struct inode *inode = calloc(1, sizeof *inode);
    if (!inode)
        return NULL;
    *inode = (struct inode){
        .ino = info->ino,
        .dev = info->dev,
        .mount = info->mount,
        .type = info->mode & S_IFMT,
        .fd = fd,
        .handle = handle,
    };
    inode->id = table_add(&server->inodes, inode, MAX_INODES);
    if (!inode->id) {
        free(inode);
        return NULL;
    }
    insert(server, inode);
    return inode;
}

/* Takes over an O_PATH fd and returns the inode it stands for, with one more lookup counted. */
int inode_adopt(struct server *server, int fd, struct file_info *info, struct inode **result)
{
    int error = file_stat(fd, info);
    if (error) {
        close(fd);
        return error;
    }
    struct file_handle *handle = make_handle(server, info, fd);
    struct inode *inode = find(server, info, handle);
    if (inode && inode->fd >= 0) {
        close(fd);
        free(handle);
    } else if (!make_room(server)) {
        close(fd);
        free(handle);
        return ENFILE;
    } else if (inode) {
        inode->fd = fd;
        free(handle);
        server->open_inodes++;
    } else {
        inode = create(server, info, fd, handle);
        if (!inode) {
            close(fd);
            free(handle);
            return ENOMEM;
        }
        server->open_inodes++;
    }
    if (inode->handle) {
        unlist(server, inode);
        list_newest(server, inode);
    }
    inode->nlookup++;
    *result = inode;
    return 0;
}

int inode_look_up(struct server *server, int directory, const char *name, struct file_info *info,
                  struct inode **inode)
{
    struct open_how how = {
        .flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
    };
    int fd = (int)syscall(SYS_openat2, directory, name, &how, sizeof how);
    return fd < 0 ? errno : inode_adopt(server, fd, info, inode);
}

int reply_entry(struct request *request, int directory, const char *name)
{
    struct file_info info;
    struct inode *inode;
    int error = inode_look_up(request->server, directory, name, &info, &inode);
    if (error)
        return error;
    struct fuse_entry_out out;
    fill_entry(request->server, inode, &info, &out);
    return reply(request, &out, sizeof out);
}

int inode_get(struct request *request, uint64_t id, struct inode **inode)
{
    if (id == FUSE_ROOT_ID)
        return EROFS;
    *inode = table_get(&request->server->inodes, id);
    return *inode ? 0 : ESTALE;
}

bool inode_writable(struct server *server, const struct inode *inode)
{
    /* Mounts below an export inherit its read-only flag in the kernel; this check is a second lock. */
    for (uint32_t index = 0; index < server->export_count; index++)
        if (server->exports[index].mount == inode->mount)
            return !server->exports[index].read_only;
    return true;
}

void inode_forget(struct server *server, uint64_t id, uint64_t count)
{
    struct inode *inode = id == FUSE_ROOT_ID ? NULL : table_get(&server->inodes, id);
    if (!inode)
        return;
    if (count < inode->nlookup)
        inode->nlookup -= count;
    else
        destroy(server, inode);
}

void inode_forget_all(struct server *server)
{
    for (uint32_t slot = 0; slot < server->inodes.size; slot++)
        if (server->inodes.slots[slot])
            destroy(server, server->inodes.slots[slot]);
}
