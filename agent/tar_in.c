/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Unpacks a tar from standard input into the working directory, in a child of FILES. The archive is the host's own
 * writing: names are relative and have no "..", every member that needs one has its pax header, and sparse files
 * carry their pieces in a record "PROA.sparse=SIZE AT LENGTH AT LENGTH…".
 *
 * The tree is a stranger's: directories above a member may be links, which stay inside the root; a file is made new.
 */
#define _GNU_SOURCE
#include "agent.h"
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#define BLOCK 512u
#define MAX_RECORDS (4u << 20)
#define HOLE 32768u

struct member {
    char kind, path[4200], link[4200];
    mode_t mode;
    uint32_t uid, gid, major, minor;
    uint64_t size;
    struct timespec time;
    char *records, *sparse; /* records: xattrs are read from it; sparse is inside */
    size_t records_size;
};

struct later {
    struct later *next;
    struct timespec time;
    char path[];
};

static struct later *directories; /* their times are set at the end: what is put in them changes them */
static const struct unpack_rules *rules;

static void take(void *data, size_t size)
{
    for (size_t at = 0; at < size;) {
        ssize_t part = read(STDIN_FILENO, (uint8_t *)data + at, size - at);
        if (part == 0 || (part < 0 && errno != EINTR))
            files_fail(FILES_FAILED, "the archive ends early");
        at += part > 0 ? (size_t)part : 0;
    }
}

static void refuse(const char *what, const char *path)
{
    int error = errno;
    files_fail(error == ENOSPC || error == EIO || error == EDQUOT ? FILES_FAILED : FILES_INVALID, "%s \"%s%s%s\": %s", what,
               rules->path, rules->path[1] ? "/" : "", path, strerror(error));
}

/* --- headers --- */

static uint64_t octal(const char *field, size_t size)
{
    char text[16] = "";
    memcpy(text, field, size < sizeof text ? size : sizeof text - 1);
    return strtoull(text, NULL, 8);
}

static void set_record(struct member *member, const char *key, char *value)
{
    if (strcmp(key, "path") == 0)
        snprintf(member->path, sizeof member->path, "%s", value);
    else if (strcmp(key, "linkpath") == 0)
        snprintf(member->link, sizeof member->link, "%s", value);
    else if (strcmp(key, "uid") == 0)
        member->uid = (uint32_t)strtoul(value, NULL, 10);
    else if (strcmp(key, "gid") == 0)
        member->gid = (uint32_t)strtoul(value, NULL, 10);
    else if (strcmp(key, "size") == 0)
        member->size = strtoull(value, NULL, 10);
    else if (strcmp(key, "PROA.sparse") == 0)
        member->sparse = value;
    else if (strcmp(key, "mtime") == 0) {
        char *rest, digits[10] = "000000000";
        bool negative = value[0] == '-';
        member->time.tv_sec = strtoll(value, &rest, 10);
        if (*rest == '.')
            memcpy(digits, rest + 1, strnlen(rest + 1, 9));
        member->time.tv_nsec = strtol(digits, NULL, 10);
        if (negative && member->time.tv_nsec) {
            member->time.tv_sec--;
            member->time.tv_nsec = 1000000000 - member->time.tv_nsec;
        }
    }
}

/* Call visit for each record; the newline after a value becomes a NUL. */
static void each_record(struct member *member, void (*visit)(struct member *, char *key, char *value, size_t size))
{
    for (char *at = member->records, *end = at + member->records_size; at < end;) {
        char *key;
        size_t length = strtoul(at, &key, 10);
        char *equals = length && length <= (size_t)(end - at) ? memchr(at, '=', length) : NULL;
        if (!equals || *key != ' ')
            files_fail(FILES_FAILED, "the archive's header is malformed");
        *equals = at[length - 1] = 0;
        visit(member, key + 1, equals + 1, length - (size_t)(equals + 1 - at) - 1);
        *equals = '=';
        at += length;
    }
}

static void visit_plain(struct member *member, char *key, char *value, size_t size)
{
    (void)size;
    set_record(member, key, value);
}

static void read_header(struct member *member, const char *block)
{
    char prefix[156] = "", name[101] = "";
    memcpy(prefix, block + 345, 155);
    memcpy(name, block, 100);
    snprintf(member->path, sizeof member->path, "%s%s%s", prefix, *prefix ? "/" : "", name);
    snprintf(member->link, sizeof member->link, "%.100s", block + 157);
    member->mode = (mode_t)octal(block + 100, 8) & 07777;
    member->uid = (uint32_t)octal(block + 108, 8);
    member->gid = (uint32_t)octal(block + 116, 8);
    member->size = octal(block + 124, 12);
    member->time = (struct timespec){.tv_sec = (time_t)octal(block + 136, 12)};
    member->kind = block[156];
    member->major = (uint32_t)octal(block + 329, 8);
    member->minor = (uint32_t)octal(block + 337, 8);
}

/* False at the end of the archive. */
static bool next_member(struct member *member)
{
    char block[BLOCK];
    free(member->records);
    memset(member, 0, sizeof *member);
    take(block, BLOCK);
    if (!block[0] && !block[156])
        return false;
    read_header(member, block);
    if (member->kind == 'x') {
        size_t size = member->size;
        if (size > MAX_RECORDS || !(member->records = malloc(size + BLOCK + 1)))
            files_fail(FILES_FAILED, "the archive's header is too large");
        take(member->records, size + (-size % BLOCK));
        member->records_size = size;
        take(block, BLOCK);
        read_header(member, block);
        each_record(member, visit_plain);
    }
    for (size_t end = strlen(member->path); end > 0 && member->path[end - 1] == '/'; end--)
        member->path[end - 1] = 0;
    return true;
}

/* --- members --- */

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *walk)
{
    (void)status;
    (void)type;
    (void)walk;
    return remove(path);
}

static void make_parents(char *path)
{
    for (char *slash = strchr(path, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        if (mkdir(path, 0755) < 0 && errno != EEXIST)
            refuse("mkdir", path);
        *slash = '/';
    }
}

/* Clear the place. False: a file that something is mounted on (/etc/hosts) is to be written in place. */
static bool clear_place(const struct member *member, const struct stat *old)
{
    const char *above = rules->path[1] ? rules->path : "";
    if (rules->strict && S_ISDIR(old->st_mode))
        files_fail(FILES_INVALID, "cannot overwrite directory \"%s/%s\" with non-directory \"%s\"", above, member->path, rules->path);
    if (rules->strict && member->kind == '5')
        files_fail(FILES_INVALID, "cannot overwrite non-directory \"%s/%s\" with directory \"%s\"", above, member->path, rules->path);
    int failed = S_ISDIR(old->st_mode) ? nftw(member->path, remove_one, 32, FTW_DEPTH | FTW_PHYS | FTW_MOUNT)
                                       : unlink(member->path);
    if (failed && errno == EBUSY && member->kind == '0' && S_ISREG(old->st_mode))
        return false;
    if (failed)
        refuse("remove", member->path);
    return true;
}

static void write_piece(int fd, uint64_t at, uint64_t length, const char *path)
{
    static uint8_t data[CHUNK], zeros[CHUNK];
    while (length) {
        size_t size = length < sizeof data ? (size_t)length : sizeof data;
        take(data, size);
        if (size < HOLE || memcmp(data, zeros, size))
            for (size_t done = 0; done < size;) {
                ssize_t part = pwrite(fd, data + done, size - done, (off_t)(at + done));
                if (part < 0 && errno != EINTR)
                    refuse("write", path);
                done += part > 0 ? (size_t)part : 0;
            }
        at += size;
        length -= size;
    }
}

static void write_content(int fd, struct member *member)
{
    uint64_t whole = member->size;
    char *at = member->sparse;
    if (at)
        whole = strtoull(at, &at, 10);
    else
        write_piece(fd, 0, member->size, member->path);
    while (at && *at) {
        uint64_t start = strtoull(at, &at, 10), length = strtoull(at, &at, 10);
        write_piece(fd, start, length, member->path);
    }
    if (ftruncate(fd, (off_t)whole) < 0)
        refuse("write", member->path);
    char rest[BLOCK];
    take(rest, (size_t)(-member->size % BLOCK));
}

static void visit_xattr(struct member *member, char *key, char *value, size_t size)
{
    /* Not every file system has them all; Docker leaves those out too. */
    if (strncmp(key, "SCHILY.xattr.", 13) == 0 && strncmp(key + 13, "trusted.overlay.", 16) != 0)
        lsetxattr(member->path, key + 13, value, size, 0);
}

/* Owner first: to change it clears set-user-id bits and capabilities. */
static void describe(struct member *member)
{
    struct timespec times[2] = {member->time, member->time};
    if (lchown(member->path, rules->owned ? rules->uid : member->uid, rules->owned ? rules->gid : member->gid) < 0)
        refuse("lchown", member->path);
    if (member->kind != '2' && chmod(member->path, member->mode) < 0)
        refuse("chmod", member->path);
    if (member->records)
        each_record(member, visit_xattr);
    if (member->kind != '5') {
        utimensat(AT_FDCWD, member->path, times, AT_SYMLINK_NOFOLLOW);
        return;
    }
    struct later *later = malloc(sizeof *later + strlen(member->path) + 1);
    if (!later)
        files_fail(FILES_FAILED, "out of memory");
    later->time = member->time;
    strcpy(later->path, member->path);
    later->next = directories;
    directories = later;
}

static void make_file(struct member *member, bool in_place)
{
    int flags = in_place ? O_WRONLY | O_TRUNC : O_WRONLY | O_CREAT | O_EXCL;
    int fd = open(member->path, flags | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0600);
    if (fd < 0)
        refuse("open", member->path);
    write_content(fd, member);
    close(fd);
    describe(member);
}

static void make_member(struct member *member)
{
    struct stat old;
    bool there = lstat(member->path, &old) == 0, in_place = false;
    bool merged = there && S_ISDIR(old.st_mode) && member->kind == '5';
    mode_t type = member->kind == '3' ? S_IFCHR : member->kind == '4' ? S_IFBLK : S_IFIFO;
    make_parents(member->path);
    if (there && !merged)
        in_place = !clear_place(member, &old);
    if (member->kind == '0') {
        make_file(member, in_place);
        return;
    }
    if (member->kind == '1') {
        if (linkat(AT_FDCWD, member->link, AT_FDCWD, member->path, 0) < 0)
            refuse("link", member->path);
        return;
    }
    int failed = member->kind == '5'   ? merged ? 0 : mkdir(member->path, 0700)
                 : member->kind == '2' ? symlink(member->link, member->path)
                                       : mknod(member->path, type | 0600, makedev(member->major, member->minor));
    if (failed)
        refuse(member->kind == '5' ? "mkdir" : member->kind == '2' ? "symlink" : "open", member->path);
    describe(member);
}

void tar_unpack(const struct unpack_rules *given)
{
    static struct member member;
    rules = given;
    while (next_member(&member))
        if (member.path[0])
            make_member(&member);
    for (struct later *later = directories; later; later = later->next) {
        struct timespec times[2] = {later->time, later->time};
        utimensat(AT_FDCWD, later->path, times, AT_SYMLINK_NOFOLLOW);
    }
}
