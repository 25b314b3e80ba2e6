/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tree as tar on standard output, in a child of FILES. Every member has its pax header: the host reads the
 * archive as a stranger's and writes its own from it.
 *
 * A directory comes before what is in it, names by their bytes; files with many holes in the format 1.0 of GNU.
 * Source: POSIX.1-2017, pax; GNU tar, Sparse Formats.
 */
#define _GNU_SOURCE
#include "agent.h"
#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#define BLOCK 512u
#define HOLES_MIN (4u << 20)
#define MAX_PIECES 10000u
#define MAX_XATTRS 65536u

static struct buffer out, records;

static void flush(void)
{
    for (size_t at = 0; at < out.length;) {
        ssize_t size = write(STDOUT_FILENO, buffer_bytes(&out) + at, out.length - at);
        if (size < 0 && errno != EINTR)
            _exit(FILES_FAILED); /* nobody wants it any more */
        at += size > 0 ? (size_t)size : 0;
    }
    buffer_clear(&out);
}

static void put(const void *data, size_t size)
{
    buffer_append(&out, data, size);
    if (out.failed)
        files_fail(FILES_FAILED, "out of memory");
    if (out.length >= CHUNK)
        flush();
}

static void pad(uint64_t size)
{
    static const uint8_t zeros[BLOCK];
    put(zeros, (size_t)(-size % BLOCK));
}

static void record(const char *key, const void *value, size_t size)
{
    char head[400];
    size_t rest = strlen(key) + size + 3, length = rest;
    for (size_t before = 0; before != length;) {
        before = length;
        length = rest + (size_t)snprintf(NULL, 0, "%zu", before);
    }
    snprintf(head, sizeof head, "%zu %s=", length, key);
    buffer_append(&records, head, strlen(head));
    buffer_append(&records, value, size);
    buffer_append(&records, "\n", 1);
}

static void record_number(const char *key, uint64_t value)
{
    char text[24];
    snprintf(text, sizeof text, "%llu", (unsigned long long)value);
    record(key, text, strlen(text));
}

static void block(char kind, const struct stat *status, uint64_t size)
{
    char header[BLOCK] = "member";
    unsigned sum = 8 * ' ';
    bool device = kind == '3' || kind == '4';
    snprintf(header + 100, 8, "%07o", status->st_mode & 07777);
    snprintf(header + 108, 8, "%07o", 0);
    snprintf(header + 116, 8, "%07o", 0);
    snprintf(header + 124, 12, "%011llo", size <= 077777777777 ? (unsigned long long)size : 0);
    snprintf(header + 136, 12, "%011o", 0);
    header[156] = kind;
    memcpy(header + 257, "ustar\00000", 8);
    snprintf(header + 329, 8, "%07o", device ? major(status->st_rdev) & 07777777 : 0);
    snprintf(header + 337, 8, "%07o", device ? minor(status->st_rdev) & 07777777 : 0);
    for (size_t i = 0; i < BLOCK; i++)
        sum += (uint8_t)header[i];
    snprintf(header + 148, 8, "%06o", sum - 0); /* the field itself was zeros, counted as spaces */
    header[155] = ' ';
    put(header, BLOCK);
}

/* Write the header of a member whose further records are in place already. */
static void head(const char *name, const struct stat *status, char kind, uint64_t size, const char *link)
{
    struct stat plain = {.st_mode = 0644};
    char time[40];
    long long seconds = status->st_mtim.tv_sec;
    long nanoseconds = status->st_mtim.tv_nsec;
    bool negative = seconds < 0;
    if (negative && nanoseconds) {
        seconds++;
        nanoseconds = 1000000000 - nanoseconds;
    }
    snprintf(time, sizeof time, "%s%llu.%09ld", negative ? "-" : "",
             (unsigned long long)(negative ? -seconds : seconds), nanoseconds);
    record("path", name, strlen(name));
    if (link)
        record("linkpath", link, strlen(link));
    record_number("uid", status->st_uid);
    record_number("gid", status->st_gid);
    record_number("size", size);
    record("mtime", time, strlen(time));
    if (records.failed)
        files_fail(FILES_FAILED, "out of memory");
    block('x', &plain, records.length);
    put(buffer_bytes(&records), records.length);
    pad(records.length);
    buffer_clear(&records);
    block(kind, status, size);
}

static bool is_foreign(const char *name, bool upper)
{
    if (upper && strcmp(name, "trusted.overlay.opaque") == 0)
        return false;
    return strncmp(name, "trusted.overlay.", 16) == 0 || strcmp(name, "security.selinux") == 0 ||
           strcmp(name, "security.ima") == 0 || strcmp(name, "security.evm") == 0;
}

/* path: of /proc/self/fd, which is followed, or a name in the working directory, which is not. */
static void record_xattrs(const char *path, bool upper)
{
    static char names[MAX_XATTRS], value[MAX_XATTRS], key[300]; /* the kernel's names have 255 bytes at most */
    ssize_t size = llistxattr(path, names, sizeof names);
    for (char *name = names; size > 0 && name < names + size; name += strlen(name) + 1) {
        ssize_t length = is_foreign(name, upper) ? -1 : lgetxattr(path, name, value, sizeof value);
        if (length < 0)
            continue;
        snprintf(key, sizeof key, "SCHILY.xattr.%.255s", name);
        record(key, value, (size_t)length);
    }
}

/* --- files --- */

struct piece {
    off_t at, length;
};

/* Fill in what is no hole; 0 when the file is to be written whole. */
static size_t find_pieces(int fd, const struct stat *status, struct piece *pieces, bool *sparse)
{
    size_t count = 0;
    off_t data = 0, whole = 0;
    *sparse = false;
    if (status->st_size - (off_t)status->st_blocks * 512 < (off_t)HOLES_MIN)
        return 0;
    for (off_t at = 0; at < status->st_size; at = pieces[count - 1].at + pieces[count - 1].length) {
        data = lseek(fd, at, SEEK_DATA);
        if (data < 0 && errno != ENXIO)
            return 0;
        if (data < 0 || data >= status->st_size)
            break;
        off_t end = lseek(fd, data, SEEK_HOLE);
        if (end < 0 || count == MAX_PIECES)
            return 0;
        end = end < status->st_size ? end : status->st_size;
        pieces[count++] = (struct piece){data, end - data};
        whole += end - data;
    }
    *sparse = status->st_size - whole >= (off_t)HOLES_MIN;
    return *sparse ? count : 0;
}

/* What shrinks meanwhile is filled up, what grows is cut. */
static void copy(int fd, off_t at, off_t length)
{
    static uint8_t data[CHUNK];
    while (length > 0) {
        size_t wanted = length < (off_t)sizeof data ? (size_t)length : sizeof data;
        ssize_t size = pread(fd, data, wanted, at);
        if (size < 0 && errno != EINTR)
            files_fail(FILES_FAILED, "read: %s", strerror(errno));
        if (size == 0) {
            memset(data, 0, wanted);
            size = (ssize_t)wanted;
        }
        size = size < 0 ? 0 : size;
        put(data, (size_t)size);
        at += size;
        length -= size;
    }
}

static void write_sparse(const char *name, int fd, const struct stat *status, const struct piece *pieces, size_t count)
{
    struct buffer table = {0};
    char text[64];
    uint64_t stored = 0;
    snprintf(text, sizeof text, "%zu\n", count);
    buffer_append(&table, text, strlen(text));
    for (size_t i = 0; i < count; i++) {
        snprintf(text, sizeof text, "%lld\n%lld\n", (long long)pieces[i].at, (long long)pieces[i].length);
        buffer_append(&table, text, strlen(text));
        stored += (uint64_t)pieces[i].length;
    }
    record("GNU.sparse.major", "1", 1);
    record("GNU.sparse.minor", "0", 1);
    record("GNU.sparse.name", name, strlen(name));
    record_number("GNU.sparse.realsize", (uint64_t)status->st_size);
    stored += table.length + (-table.length % BLOCK);
    head(name, status, '0', stored, NULL);
    put(buffer_bytes(&table), table.length);
    pad(table.length);
    for (size_t i = 0; i < count; i++)
        copy(fd, pieces[i].at, pieces[i].length);
    pad(stored);
    buffer_free(&table);
}

static void write_file(const char *here, const char *name, bool upper)
{
    static struct piece pieces[MAX_PIECES];
    struct stat status;
    bool sparse;
    int fd = open(here, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0 || !S_ISREG(status.st_mode)) { /* gone meanwhile */
        if (fd >= 0)
            close(fd);
        return;
    }
    record_xattrs(here, upper);
    size_t count = find_pieces(fd, &status, pieces, &sparse);
    if (sparse) {
        write_sparse(name, fd, &status, pieces, count);
    } else {
        head(name, &status, '0', (uint64_t)status.st_size, NULL);
        copy(fd, 0, status.st_size);
        pad((uint64_t)status.st_size);
    }
    close(fd);
}

/* --- files of several names --- */

struct first {
    dev_t device;
    ino_t number;
    char name[];
};

static int compare_first(const void *left, const void *right)
{
    const struct first *a = left, *b = right;
    if (a->device != b->device)
        return a->device < b->device ? -1 : 1;
    return a->number < b->number ? -1 : a->number > b->number;
}

/* The name a file was written under before, NULL the first time. */
static const char *earlier_name(const struct stat *status, const char *name)
{
    static void *known;
    struct first *entry = malloc(sizeof *entry + strlen(name) + 1);
    if (!entry)
        files_fail(FILES_FAILED, "out of memory");
    entry->device = status->st_dev;
    entry->number = status->st_ino;
    strcpy(entry->name, name);
    struct first **found = tsearch(entry, &known, compare_first);
    if (!found)
        files_fail(FILES_FAILED, "out of memory");
    if (*found == entry)
        return NULL;
    free(entry);
    return (*found)->name;
}

void tar_member(const char *here, const struct stat *status, const char *name, bool upper)
{
    static const struct {
        mode_t type;
        char kind;
    } kinds[] = {{S_IFCHR, '3'}, {S_IFBLK, '4'}, {S_IFIFO, '6'}};
    if (S_ISSOCK(status->st_mode))
        return;
    if (status->st_nlink > 1 && !S_ISDIR(status->st_mode)) {
        const char *first = earlier_name(status, name);
        if (first) {
            head(name, status, '1', 0, first);
            return;
        }
    }
    if (S_ISREG(status->st_mode)) {
        write_file(here, name, upper);
        return;
    }
    if (S_ISLNK(status->st_mode)) {
        char target[4097];
        ssize_t size = readlink(here, target, sizeof target - 1);
        if (size < 0)
            return;
        target[size] = 0;
        record_xattrs(here, upper);
        head(name, status, '2', 0, target);
        return;
    }
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if ((status->st_mode & S_IFMT) == kinds[i].type) {
            record_xattrs(here, upper);
            head(name, status, kinds[i].kind, 0, NULL);
        }
}

/* --- directories --- */

static int compare_names(const void *left, const void *right)
{
    return strcmp(*(char *const *)left, *(char *const *)right);
}

static char **names_here(size_t *count)
{
    char **names = NULL;
    size_t room = 0;
    DIR *directory = opendir(".");
    struct dirent *entry;
    *count = 0;
    while (directory && (entry = readdir(directory))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (*count == room && !(names = realloc(names, (room = room ? room * 2 : 64) * sizeof *names)))
            files_fail(FILES_FAILED, "out of memory");
        if (!(names[(*count)++] = strdup(entry->d_name)))
            files_fail(FILES_FAILED, "out of memory");
    }
    if (directory)
        closedir(directory);
    if (*count)
        qsort(names, *count, sizeof *names, compare_names);
    return names;
}

static bool is_kernels(int fd, const struct stat *status, const struct tar_walk *walk, const char *name)
{
    if (walk->upper || status->st_dev == walk->device)
        return false;
    return strcmp(name, "/dev") == 0 || files_kernel_system(fd) != NULL;
}

static void enter(const char *here, const char *name, const struct tar_walk *walk)
{
    struct stat status;
    int back = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int fd = open(here, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0 && back >= 0 && fstat(fd, &status) == 0 && fchdir(fd) == 0) {
        record_xattrs(".", walk->upper);
        head(name, &status, '5', 0, NULL);
        if (!is_kernels(fd, &status, walk, name))
            tar_tree(name, walk);
        if (fchdir(back) < 0)
            files_fail(FILES_FAILED, "a directory has gone");
    }
    if (fd >= 0)
        close(fd);
    if (back >= 0)
        close(back);
}

void tar_tree(const char *prefix, const struct tar_walk *walk)
{
    size_t count;
    char **names = names_here(&count);
    for (size_t i = 0; i < count; i++) {
        struct stat status;
        char *name;
        /* Docker calls the root "/", and what is in it "/name"; of a whole tree names have no slash before. */
        if (asprintf(&name, "%s%s%s", prefix, *prefix && strcmp(prefix, "/") ? "/" : "", names[i]) < 0)
            files_fail(FILES_FAILED, "out of memory");
        if (strlen(name) > 4096)
            files_fail(FILES_INVALID, "a name is longer than 4096 bytes");
        if (lstat(names[i], &status) == 0) {
            if (S_ISDIR(status.st_mode))
                enter(names[i], name, walk);
            else
                tar_member(names[i], &status, name, walk->upper);
        }
        free(name);
        free(names[i]);
    }
    free(names);
}

void tar_directory(const char *name, const struct tar_walk *walk)
{
    struct stat status;
    if (stat(".", &status) < 0)
        files_fail(FILES_FAILED, "%s", strerror(errno));
    record_xattrs(".", walk->upper);
    head(name, &status, '5', 0, NULL);
    tar_tree(name, walk);
}

void tar_raw(const void *data, size_t size)
{
    put(data, size);
}

void tar_end(void)
{
    static const uint8_t zeros[2 * BLOCK];
    put(zeros, sizeof zeros);
    flush();
}

void tar_flush(void)
{
    flush();
}
