/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the user mounts into the container, and the files the engine puts there.
 *
 * The image is hostile: a path is only ever resolved inside the container's root (openat2 RESOLVE_IN_ROOT), and
 * mounted upon by descriptor. Source: openat2(2), mount(2); docs/reference/agent-protocol.md, steps 8 and 9.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_LINKS 20u
#define KERNEL_FLAGS (MS_NOSUID | MS_NODEV | MS_NOEXEC)

/* --- paths inside the root --- */

static int root = -1;

void leave_root(void)
{
    if (root >= 0)
        close(root);
    root = -1;
}

int open_inside(const char *path, uint64_t flags, uint64_t mode)
{
    if (root < 0)
        root = open(ROOT, O_PATH | O_DIRECTORY | O_CLOEXEC);
    struct open_how how = {.flags = flags | O_CLOEXEC, .mode = mode, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
    return (int)syscall(SYS_openat2, root, path, &how, sizeof how);
}

static int open_parent(char *path, const char **name)
{
    char *slash = strrchr(path, '/');
    *name = slash + 1;
    *slash = 0;
    int parent = open_inside(slash == path ? "/" : path, O_PATH | O_DIRECTORY, 0);
    *slash = '/';
    if (parent < 0)
        fail_errno("mount target %s", path);
    return parent;
}

/* Where a symbolic link leads to whose target is missing, as a path inside the root; NULL if it is no link. */
static char *follow_link(int parent, const char *name, const char *path)
{
    char target[1024], *joined = NULL;
    ssize_t size = readlinkat(parent, name, target, sizeof target - 1);
    if (size <= 0)
        return NULL;
    target[size] = 0;
    int length = (int)(strrchr(path, '/') - path);
    if (asprintf(&joined, "%.*s/%s", target[0] == '/' ? 0 : length, path, target) < 0)
        return NULL;
    return joined;
}

static int ensure_path(const char *path, bool directory, unsigned links);

/* Make each directory of the path that is missing. The path is cut and mended in place. */
static void ensure_parents(char *path, unsigned links)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        close(ensure_path(path, true, links));
        *slash = '/';
    }
}

/* Make the last part of the path, whose parents are there. */
static void make_inside(char *path, bool directory, unsigned links)
{
    const char *name;
    int parent = open_parent(path, &name);
    int fd = directory ? mkdirat(parent, name, 0755)
                       : openat(parent, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
    if (fd < 0 && errno == EEXIST && links > 0) {
        char *target = follow_link(parent, name, path);
        if (target)
            fd = ensure_path(target, directory, links - 1);
        free(target);
    }
    if (fd < 0)
        fail_errno("%s %s", directory ? "mkdir" : "create", path);
    if (fd > 0) /* mkdirat gives 0, and descriptor 0 is never ours */
        close(fd);
    close(parent);
}

static int ensure_path(const char *path, bool directory, unsigned links)
{
    uint64_t kind = directory ? O_DIRECTORY : 0;
    int fd = open_inside(path, O_PATH | kind, 0);
    if (fd >= 0)
        return fd;
    if (errno != ENOENT)
        fail_errno("mount target %s", path);
    char *copy = strdup(path);
    if (!copy || path[0] != '/')
        fail(128, "mount target %s is not an absolute path", path);
    for (size_t length = strlen(copy); length > 1 && copy[length - 1] == '/'; length--)
        copy[length - 1] = 0;
    ensure_parents(copy, links);
    fd = open_inside(path, O_PATH | kind, 0); /* "a/.." is there once "a" is */
    if (fd < 0)
        make_inside(copy, directory, links);
    free(copy);
    if (fd < 0 && (fd = open_inside(path, O_PATH | kind, 0)) < 0)
        fail_errno("mount target %s", path);
    return fd;
}

int ensure_inside(const char *path, bool directory)
{
    return ensure_path(path, directory, MAX_LINKS);
}

void mount_on(int target, const char *source, const char *type, unsigned long flags, const char *data)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", target);
    if (mount(source, path, type, flags, data) < 0)
        fail_errno("mount %s", type ? type : source ? source : "options");
}

/* --- options --- */

static bool apply_flag(const char *word, unsigned long *flags)
{
    static const struct {
        const char *word;
        unsigned long set, clear;
    } table[] = {
        {"ro", MS_RDONLY, 0}, {"rw", 0, MS_RDONLY}, {"nosuid", MS_NOSUID, 0}, {"suid", 0, MS_NOSUID},
        {"nodev", MS_NODEV, 0}, {"dev", 0, MS_NODEV}, {"noexec", MS_NOEXEC, 0}, {"exec", 0, MS_NOEXEC},
        {"noatime", MS_NOATIME, 0}, {"atime", 0, MS_NOATIME}, {"nodiratime", MS_NODIRATIME, 0},
        {"relatime", MS_RELATIME, 0}, {"strictatime", MS_STRICTATIME, 0}, {"sync", MS_SYNCHRONOUS, 0},
        {"async", 0, MS_SYNCHRONOUS}, {"defaults", 0, 0}, {"bind", 0, 0}, {"rbind", 0, 0}, {"private", 0, 0},
        {"rprivate", 0, 0}, {"shared", 0, 0}, {"rshared", 0, 0}, {"slave", 0, 0}, {"rslave", 0, 0},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strcmp(word, table[i].word) == 0) {
            *flags = (*flags | table[i].set) & ~table[i].clear;
            return true;
        }
    return false;
}

/* Split options into flags and the rest, which is the file system's own. */
static void parse_options(char *options, unsigned long *flags, char *data, size_t size)
{
    data[0] = 0;
    char *save = NULL;
    for (char *word = strtok_r(options, ",", &save); word; word = strtok_r(NULL, ",", &save)) {
        if (apply_flag(word, flags))
            continue;
        size_t length = strlen(data);
        if (length + strlen(word) + 2 > size)
            fail(128, "mount options are too long");
        snprintf(data + length, size - length, "%s%s", length ? "," : "", word);
    }
}

/* --- mounts --- */

static void mount_tmpfs(const char *target, unsigned long flags, const char *data)
{
    int fd = ensure_inside(target, true);
    mount_on(fd, "tmpfs", "tmpfs", flags, data);
    close(fd);
}

static void bind_on(const char *source, const char *target, unsigned long flags)
{
    struct stat status;
    if (stat(source, &status) < 0)
        fail_errno("%s", source);
    int fd = ensure_inside(target, S_ISDIR(status.st_mode));
    mount_on(fd, source, NULL, MS_BIND, NULL);
    close(fd);
    if (flags == 0)
        return;
    fd = open_inside(target, O_PATH, 0); /* now what was mounted there */
    if (fd < 0)
        fail_errno("%s", target);
    mount_on(fd, NULL, NULL, MS_REMOUNT | MS_BIND | flags, NULL);
    close(fd);
}

static void mount_one(struct fields mount)
{
    static bool shared;
    char *target = fields_string(mount, K_TARGET, 0), *source = fields_string(mount, K_SOURCE, 0);
    char *options = fields_string(mount, K_OPTIONS, 0);
    char data[1024] = "", path[64];
    unsigned long flags = fields_u32(mount, K_READ_ONLY, 0) ? MS_RDONLY : 0;
    if (!target || target[0] != '/')
        fail(128, "a mount has no absolute target");
    if (options)
        parse_options(options, &flags, data, sizeof data);
    switch (fields_u32(mount, K_KIND, 0)) {
    case MOUNT_TMPFS:
        mount_tmpfs(target, flags, data);
        break;
    case MOUNT_SHARE:
        if (!source || strlen(source) > 20 || strspn(source, "0123456789") != strlen(source))
            fail(128, "mount %s: the source is not a number", target);
        if (!shared)
            share_require();
        shared = true;
        snprintf(path, sizeof path, SHARE "/%s", source);
        bind_on(path, target, flags & (MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC));
        break;
    default:
        fail(128, "mount %s: unknown kind", target);
    }
}

void mount_user(struct fields fields)
{
    struct field field;
    while (fields_next(&fields, &field))
        if (field.key == K_MOUNT)
            mount_one(field_fields(&field));
}

/* --- what the container may not see or change --- */

static void make_readonly(int path, const char *name)
{
    char source[32];
    struct statfs status; /* a remount sets all flags, so the present ones have to be given again */
    unsigned long flags = fstatfs(path, &status) == 0 ? (unsigned long)status.f_flags & KERNEL_FLAGS : 0;
    snprintf(source, sizeof source, "/proc/self/fd/%d", path);
    mount_on(path, source, NULL, MS_BIND | MS_REC, NULL);
    int mounted = open_inside(name, O_PATH, 0);
    if (mounted < 0)
        fail_errno("read-only path %s", name);
    mount_on(mounted, NULL, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | flags, NULL);
    close(mounted);
}

static void mask(int path)
{
    struct stat status;
    if (fstat(path, &status) == 0 && S_ISDIR(status.st_mode))
        mount_on(path, "tmpfs", "tmpfs", MS_RDONLY, "size=0k");
    else
        mount_on(path, "/dev/null", NULL, MS_BIND, NULL);
}

void restrict_paths(struct fields fields)
{
    struct field field;
    while (fields_next(&fields, &field)) {
        char name[512];
        if ((field.key != K_MASKED_PATH && field.key != K_READONLY_PATH) || field.length >= sizeof name)
            continue;
        memcpy(name, field.bytes, field.length);
        name[field.length] = 0;
        int path = open_inside(name, O_PATH, 0);
        if (path < 0)
            continue; /* what is missing needs no protection */
        if (field.key == K_MASKED_PATH)
            mask(path);
        else
            make_readonly(path, name);
        close(path);
    }
}

/* --- files --- */

static bool covered_by_mount(struct fields fields, const char *path)
{
    struct field field;
    while (fields_next(&fields, &field)) {
        char *target = field.key == K_MOUNT ? fields_string(field_fields(&field), K_TARGET, 0) : NULL;
        if (target && strcmp(target, path) == 0)
            return true;
    }
    return false;
}

static bool has_content(const char *path)
{
    struct stat status;
    int fd = open_inside(path, O_PATH, 0);
    bool content = fd >= 0 && fstat(fd, &status) == 0 && (!S_ISREG(status.st_mode) || status.st_size > 0);
    if (fd >= 0)
        close(fd);
    return content;
}

static void write_content(int fd, struct fields file, const char *path)
{
    struct field content = {0};
    fields_find(file, K_CONTENT, &content);
    if (fd < 0 || write(fd, content.bytes, content.length) != (ssize_t)content.length)
        fail_errno("file %s", path);
    close(fd);
}

static void put_file(struct fields file, const char *path, unsigned n)
{
    char source[64];
    snprintf(source, sizeof source, FILES "/%u", n);
    write_content(open(source, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, fields_u32(file, K_MODE, 0644) & 07777), file, path);
    bind_on(source, path, 0);
}

/* --- files that every container has: in the template of an image they are mounted, still empty --- */

static struct usual {
    const char *path, *source;
    bool if_empty, mounted;
} usual[] = {{"/etc/hostname", FILES "/hostname", false, false},
             {"/etc/hosts", FILES "/hosts", false, false},
             {"/etc/resolv.conf", FILES "/resolv.conf", false, false},
             {"/etc/machine-id", FILES "/machine-id", true, false}};

void prepare_files(void)
{
    for (struct usual *file = usual; file < usual + sizeof usual / sizeof *usual; file++) {
        if (file->if_empty && has_content(file->path))
            continue;
        int fd = open(file->source, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (fd < 0)
            fail_errno("file %s", file->path);
        close(fd);
        bind_on(file->source, file->path, 0);
        file->mounted = true;
    }
}

void empty_files(void)
{
    for (struct usual *file = usual; file < usual + sizeof usual / sizeof *usual; file++)
        if (file->mounted && truncate(file->source, 0) < 0)
            fail_errno("file %s", file->path);
}

/* Whether the path still means what was mounted there in the template: a MOUNT may have covered it since. */
static bool is_visible(const struct usual *file)
{
    struct stat source, seen;
    int fd = open_inside(file->path, O_PATH, 0);
    bool same = fd >= 0 && fstat(fd, &seen) == 0 && stat(file->source, &source) == 0 && seen.st_dev == source.st_dev &&
                seen.st_ino == source.st_ino;
    if (fd >= 0)
        close(fd);
    return same;
}

static bool fill_usual(struct fields file, const char *path, bool has_mounts)
{
    for (struct usual *each = usual; each < usual + sizeof usual / sizeof *usual; each++) {
        if (!each->mounted || strcmp(each->path, path) != 0)
            continue;
        if (fields_u32(file, K_MODE, 0644) != 0644 || (has_mounts && !is_visible(each)))
            return false;
        each->mounted = false; /* it is not to be taken away */
        write_content(open(each->source, O_WRONLY | O_CLOEXEC), file, path);
        return true;
    }
    return false;
}

/* What this container does not have after all. */
static void remove_unused(void)
{
    for (struct usual *file = usual; file < usual + sizeof usual / sizeof *usual; file++) {
        char path[32];
        if (!file->mounted || !is_visible(file))
            continue;
        int fd = open_inside(file->path, O_PATH, 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (umount2(path, MNT_DETACH) < 0)
            fail_errno("file %s", file->path);
        close(fd);
    }
}

static bool has_mount(struct fields fields)
{
    struct field field;
    return fields_find(fields, K_MOUNT, &field);
}

void mount_files(struct fields fields)
{
    unsigned n = 0;
    bool has_mounts = has_mount(fields);
    struct fields rest = fields;
    struct field field;
    while (fields_next(&rest, &field)) {
        if (field.key != K_FILE)
            continue;
        struct fields file = field_fields(&field);
        char *path = fields_string(file, K_PATH, 0);
        if (!path || path[0] != '/')
            fail(128, "a file has no absolute path");
        if (covered_by_mount(fields, path) || fill_usual(file, path, has_mounts) ||
            (fields_u32(file, K_IF_EMPTY, 0) && has_content(path)))
            continue;
        put_file(file, path, n++);
    }
    remove_unused();
}

/* --- other content, while programs run --- */

/* The container may have put anything in their place, so only what lies on the agent's own file system is written. */
static void replace_file(struct fields file, const char *path, dev_t ours)
{
    char link[32];
    struct stat status;
    int fd = open_inside(path, O_PATH | O_NOFOLLOW, 0);
    if (fd >= 0 && fstat(fd, &status) == 0 && status.st_dev == ours && S_ISREG(status.st_mode)) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        write_content(open(link, O_WRONLY | O_TRUNC | O_CLOEXEC), file, path);
    }
    if (fd >= 0)
        close(fd);
}

void replace_files(struct fields fields, pid_t main_process)
{
    char path[32];
    struct stat files;
    struct field field;
    snprintf(path, sizeof path, "/proc/%d/root", main_process);
    leave_root();
    root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0 || stat(FILES, &files) < 0)
        fail_errno("the container's files");
    while (fields_next(&fields, &field)) {
        char *name = field.key == K_FILE ? fields_string(field_fields(&field), K_PATH, 0) : NULL;
        if (name)
            replace_file(field_fields(&field), name, files.st_dev);
    }
}
