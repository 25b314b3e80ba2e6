/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The types every part of fs-server shares: the server, its inodes and handles, one request.
 *
 * One process serves one guest over one stream socket, in one thread: no operation waits for the guest, the
 * disk is the only thing that blocks, and so no lock is needed anywhere.
 *
 * Numbers the guest gives us (node ids, handles) are slot and generation of a table, never pointers: a number
 * that was not given out, or whose object is gone, is refused.
 *
 * Source: linux/fuse.h (FUSE kernel protocol 7.38), Documentation/filesystems/fuse.rst.
 */
#ifndef PROA_FS_SERVER_H
#define PROA_FS_SERVER_H

#include <linux/fuse.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define MAX_WRITE (128u * 1024)             /* bytes of data in one READ or WRITE, told to the guest in INIT */
#define MAX_MESSAGE (MAX_WRITE + 4096u)     /* the longest request: a WRITE with its headers */
#define MAX_REPLY (MAX_WRITE + 4096u)
#define MAX_INODES (1u << 22)               /* objects the guest may know at once */
#define CACHE_SECONDS 1                     /* how long the guest may trust names and attributes */
#define COPY_CHUNK (64u << 20)              /* bytes copied for one COPY_FILE_RANGE; the guest asks again */

/* What the kernel's statx gives. Own type, because libcs differ in whether they declare it. */
struct file_info {
    uint64_t ino, dev, mount, size, blocks;
    uint32_t mode, nlink, uid, gid, rdev, blksize;
    int64_t atime, mtime, ctime;
    uint32_t atime_ns, mtime_ns, ctime_ns;
};

/* When the guest's cached pages of a file were last known to be those of the host. */
struct stamp {
    bool valid;
    int64_t mtime;
    uint32_t mtime_ns;
    uint64_t size;
};

/* An object of an export that the guest knows. fd is O_PATH, or -1 while it is folded away into handle. */
struct inode {
    uint64_t id;
    uint64_t ino, dev, mount;
    uint64_t nlookup;
    uint32_t type; /* S_IFMT part of the mode; never changes for an inode */
    int fd;
    struct file_handle *handle; /* NULL when the file system has none */
    struct stamp stamp;
    struct inode *hash_next;
    struct inode *newer, *older; /* in order of use, only while fd is open and a handle can bring it back */
};

/* An open file or directory. The synthetic root is a directory with fd -1. */
struct handle {
    uint64_t id;
    int fd;
    bool directory;
    uint8_t *entries; /* getdents64 records, directories only */
    size_t entries_length, entries_position;
    uint64_t offset; /* of the next record */
};

struct export {
    const char *path;
    bool read_only;
    int fd; /* O_PATH on a private copy of the mount */
    uint64_t mount;
};

/* A mount reached through an export: needed to open by handle, and to tell its inode numbers apart. */
struct known_mount {
    uint64_t mount;
    int fd; /* a readable fd on it, -1 when handles do not work there */
};

struct table {
    void **slots;
    uint32_t *generations;
    uint32_t size, used, free_hint;
};

struct server {
    int socket;
    bool ready; /* INIT was answered */
    struct export *exports;
    uint32_t export_count;
    struct table inodes, handles;
    struct inode **buckets;
    uint32_t bucket_count;
    struct inode *newest, *oldest;
    uint32_t open_inodes, max_open_inodes; /* fds held by inodes, and how many may be */
    uint32_t max_handles;
    struct known_mount *mounts;
    uint32_t mount_count;
    uint64_t *devices; /* st_dev in order of appearance; the position makes inode numbers unique */
    uint32_t device_count;
    uint8_t *in, *out;
    size_t in_length;
};

/* One request, and what is left to be taken from its arguments. */
struct request {
    struct server *server;
    const struct fuse_in_header *header;
    const uint8_t *next;
    size_t left;
};

/* table.c */
uint64_t table_add(struct table *table, void *object, uint32_t limit); /* 0 when full */
void *table_get(const struct table *table, uint64_t id);
void table_remove(struct table *table, uint64_t id);

/* wire.c: messages on the socket */
int wire_serve(struct server *server); /* until the socket ends: 0, or errno */
const void *take(struct request *request, size_t size);          /* NULL: the request is too short */
int take_name(struct request *request, const char **name);       /* one path component; errno */
int take_string(struct request *request, const char **string);   /* any text; errno */
int reply(struct request *request, const void *data, size_t size);
void reply_error(struct request *request, int error);

typedef int operation_function(struct request *request);

/* dispatch.c */
void dispatch(struct request *request);
void server_reset(struct server *server);

/* inode.c */
int inode_get(struct request *request, uint64_t id, struct inode **inode); /* errno; EROFS for the root */
int inode_fd(struct server *server, struct inode *inode);                  /* fd, or -errno */
int inode_adopt(struct server *server, int fd, struct file_info *info, struct inode **inode);
int inode_look_up(struct server *server, int directory, const char *name, struct file_info *info,
                  struct inode **inode);
void inode_forget(struct server *server, uint64_t id, uint64_t count);
void inode_forget_all(struct server *server);
int file_stat(int fd, struct file_info *info);
uint64_t visible_ino(struct server *server, uint64_t dev, uint64_t ino);
void fill_attr(struct server *server, const struct file_info *info, struct fuse_attr *attr);
void fill_entry(struct server *server, const struct inode *inode, const struct file_info *info,
                struct fuse_entry_out *out);
int reply_entry(struct request *request, int directory, const char *name);
void fd_path(int fd, char path[static 32]); /* where the process finds its own fd: /fd/N */
bool inode_writable(struct server *server, const struct inode *inode);

/* handle.c */
int handle_add(struct server *server, int fd, bool directory, uint64_t *id); /* errno; owns fd either way */
struct handle *handle_find(struct server *server, uint64_t id, bool directory);
void handle_close(struct server *server, uint64_t id);
void handle_close_all(struct server *server);

/* credentials.c: the caller's identity for what it creates */
int act_as(const struct fuse_in_header *caller, uint32_t umask);
void act_as_root(void);
void keep_setid(bool keep); /* false: writing takes the set-user-ID bits off, as for an ordinary user */

/* operations, by what they work on; each returns 0 when it has replied, or the errno to reply with */
int op_init(struct request *request);
int op_destroy(struct request *request);
int op_lookup(struct request *request);
int op_forget(struct request *request);
int op_batch_forget(struct request *request);
int op_mknod(struct request *request);
int op_mkdir(struct request *request);
int op_symlink(struct request *request);
int op_link(struct request *request);
int op_unlink(struct request *request);
int op_rmdir(struct request *request);
int op_rename(struct request *request);
int op_rename2(struct request *request);
int op_getattr(struct request *request);
int op_setattr(struct request *request);
int op_readlink(struct request *request);
int op_statfs(struct request *request);
int op_setxattr(struct request *request);
int op_getxattr(struct request *request);
int op_listxattr(struct request *request);
int op_removexattr(struct request *request);
int op_open(struct request *request);
int op_create(struct request *request);
int op_read(struct request *request);
int op_write(struct request *request);
int op_release(struct request *request);
int op_fsync(struct request *request);
int op_fallocate(struct request *request);
int op_lseek(struct request *request);
int op_copy_file_range(struct request *request);
int op_opendir(struct request *request);
int op_readdir(struct request *request);
int op_readdirplus(struct request *request);
int op_releasedir(struct request *request);
int op_fsyncdir(struct request *request);

#endif
