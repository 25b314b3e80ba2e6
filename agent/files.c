/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FILES: the container's files for the host, whether its program runs or has not begun. A child with the streams of
 * a process does one thing and ends; its exit code and standard error say how it went.
 *
 * The child has mounts of its own, the container's tree as root, and stays in the agent's control group: what it
 * reads may be frozen. Source: docs/reference/agent-protocol.md, FILES.
 */
#define _GNU_SOURCE
#include "agent.h"
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define DISK "/run/disk"
#define MAX_LINKS 255
#define FREEZE_MS 1000u
#define FREEZE CGROUP "/cgroup.freeze"

enum { FILES_STAT = 1, FILES_READ, FILES_EXPORT, FILES_UPPER, FILES_WRITE, FILES_LOAD, FILES_STORE };

static char disk[40]; /* what is below the overlay, from CONFIGURE */

void files_configured(struct fields fields)
{
    char *name = fields_string(fields, K_WRITABLE_DISK, 0);
    snprintf(disk, sizeof disk, "/dev/%s", name ? name : "");
    free(name);
}

void files_fail(enum files_end end, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vdprintf(STDERR_FILENO, format, list);
    va_end(list);
    _exit(end);
}

const char *files_kernel_system(int fd)
{
    static const struct {
        unsigned long magic;
        const char *name;
    } systems[] = {{0x9fa0, "proc"},       {0x62656572, "sysfs"},    {0x27e0eb, "cgroup"},       {0x63677270, "cgroup2"},
                   {0x1cd1, "devpts"},     {0x19800202, "mqueue"},   {0x64626720, "debugfs"},    {0x74726163, "tracefs"},
                   {0x73636673, "securityfs"}, {0xcafe4a11, "bpf"},  {0x65735543, "fusectl"}};
    struct statfs status;
    if (fstatfs(fd, &status) == 0)
        for (size_t i = 0; i < sizeof systems / sizeof *systems; i++)
            if ((unsigned long)status.f_type == systems[i].magic)
                return systems[i].name;
    return NULL;
}

/* --- finding --- */

/* Where all links of an absolute path lead to; what does not exist stays as it is written. */
static char *follow(const char *path)
{
    static char done[20000], todo[32768], rest[24576];
    unsigned links = 0;
    done[0] = 0;
    snprintf(todo, sizeof todo, "%s", path);
    while (todo[0]) {
        char part[4097], target[4097], here[sizeof done + sizeof part];
        size_t skip = strspn(todo, "/"), length = strcspn(todo + skip, "/");
        snprintf(part, sizeof part, "%.*s", (int)length, todo + skip);
        snprintf(rest, sizeof rest, "%s", todo + skip + length);
        strcpy(todo, rest);
        if (!part[0] || strcmp(part, ".") == 0)
            continue;
        if (strcmp(part, "..") == 0) {
            char *slash = strrchr(done, '/');
            *(slash ? slash : done) = 0;
            continue;
        }
        snprintf(here, sizeof here, "%s/%s", done, part);
        ssize_t size = readlink(here, target, sizeof target - 1);
        if (size <= 0) {
            if (snprintf(done, sizeof done, "%s", here) >= (int)sizeof done)
                files_fail(FILES_INVALID, "lstat %s: file name too long", path);
            continue;
        }
        target[size] = 0;
        if (++links > MAX_LINKS)
            files_fail(FILES_INVALID, "lstat %s: too many levels of symbolic links", path);
        if (target[0] == '/')
            done[0] = 0;
        if (snprintf(todo, sizeof todo, "%s%s", target, rest) >= (int)sizeof rest)
            files_fail(FILES_INVALID, "lstat %s: file name too long", path);
    }
    return done[0] ? done : "/";
}

/* path: cleaned by the host; ends with a slash when the link at its end is to be followed. */
static int find(const char *path, struct stat *status)
{
    int fd = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, status) < 0)
        files_fail(errno == ENOENT ? FILES_MISSING : FILES_INVALID, "lstat %s: %s", path,
                   errno == ENOTDIR ? "not a directory" : strerror(errno));
    return fd;
}

static void tell_found(const char *path, const struct stat *status)
{
    struct buffer fields = {0};
    uint8_t size[4];
    put_field_u64(&fields, K_LENGTH, (uint64_t)status->st_size);
    put_field_u32(&fields, K_MODE, status->st_mode);
    put_field_u64(&fields, K_WALL_CLOCK_NS, (uint64_t)status->st_mtim.tv_sec * NS_PER_S + (uint64_t)status->st_mtim.tv_nsec);
    if (S_ISLNK(status->st_mode)) {
        const char *target = follow(path);
        put_field(&fields, K_TARGET, target, strlen(target));
    }
    put_u32(size, (uint32_t)fields.length);
    tar_raw(size, sizeof size);
    tar_raw(buffer_bytes(&fields), fields.length);
    buffer_free(&fields);
}

/* --- what is asked for --- */

static void read_path(const char *path, const char *name)
{
    struct stat status;
    struct tar_walk walk = {0};
    int fd = find(path, &status);
    const char *system = files_kernel_system(fd);
    if (system)
        files_fail(FILES_INVALID, "%s is on a kernel file system (%s), which cannot be copied", path, system);
    tell_found(path, &status);
    if (S_ISDIR(status.st_mode)) {
        int directory = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (directory < 0 || fchdir(directory) < 0)
            files_fail(FILES_FAILED, "open %s: %s", path, strerror(errno));
        walk.device = status.st_dev;
        tar_directory(name, &walk);
    } else {
        char *above = strdup(path);
        char *slash = above ? strrchr(above, '/') : NULL;
        if (!slash)
            files_fail(FILES_FAILED, "out of memory");
        slash[slash == above] = 0;
        if (chdir(above) < 0)
            files_fail(FILES_MISSING, "%s", path);
        tar_member(strrchr(path, '/') + 1, &status, name, false);
    }
    tar_end();
}

static void check_writable(struct fields fields, const char *path)
{
    struct fields all = fields;
    struct field field;
    size_t longest = 0;
    bool read_only = fields_u32(fields, K_READ_ONLY_ROOT, 0), volume = false;
    while (fields_next(&all, &field)) {
        if (field.key != K_MOUNT)
            continue;
        char *target = fields_string(field_fields(&field), K_TARGET, 0);
        size_t length = target ? strlen(target) : 0;
        if (length > longest && strncmp(path, target, length) == 0 && (path[length] == '/' || !path[length])) {
            longest = length;
            volume = true;
            read_only = fields_u32(field_fields(&field), K_READ_ONLY, 0);
        }
        free(target);
    }
    if (read_only)
        files_fail(FILES_INVALID, volume ? "mounted volume is marked read-only" : "container rootfs is marked read-only");
}

static void write_path(struct fields fields, const char *path)
{
    struct stat status;
    struct identity identity = {0};
    char *user = fields_string(fields, K_USER, 0);
    find(path, &status);
    char *real = follow(path);
    if (chdir(real) < 0)
        files_fail(errno == ENOENT ? FILES_MISSING : FILES_INVALID,
                   errno == ENOTDIR ? "extraction point is not a directory" : "%s", real);
    check_writable(fields, real);
    if (user && *user)
        resolve_identity(fields, &identity);
    close(report_fd); /* a user that is not there was reported */
    struct unpack_rules rules = {.strict = fields_u32(fields, K_FLAGS, 0) & 1, .owned = user && *user,
                                 .uid = identity.uid, .gid = identity.gid, .path = real};
    umask(0);
    tar_unpack(&rules);
}

/* A file that CONFIGURE has put there, as the container has it now. One that it has hidden or replaced is missing. */
static int open_given(const char *path, int flags, dev_t ours)
{
    struct stat status;
    int fd = open(path, flags | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0)
        files_fail(errno == ENOENT ? FILES_MISSING : FILES_FAILED, "open %s: %s", path, strerror(errno));
    if (!S_ISREG(status.st_mode) || status.st_dev != ours)
        files_fail(FILES_MISSING, "%s is not the engine's", path);
    return fd;
}

static void load_given(int fd)
{
    char bytes[CHUNK];
    for (ssize_t size; (size = read(fd, bytes, sizeof bytes)) != 0;)
        if (size < 0 || write(STDOUT_FILENO, bytes, (size_t)size) != size)
            files_fail(FILES_FAILED, "read: %s", strerror(errno));
}

/* In place: the file is mounted on its path. */
static void store_given(int fd, struct fields fields)
{
    struct field content = {0};
    fields_find(fields, K_CONTENT, &content);
    if (ftruncate(fd, 0) < 0 || write(fd, content.bytes, content.length) != (ssize_t)content.length)
        files_fail(FILES_FAILED, "write: %s", strerror(errno));
}

/* --- the way there --- */

static void take_streams(const struct stdio_ends *ends)
{
    for (int i = 0; i < 3; i++)
        if (ends->fds[i] >= 0 && dup2(ends->fds[i], i) < 0)
            fail_errno("standard streams");
    if (setsid() < 0)
        fail_errno("setsid");
    struct rlimit files = {8192, 8192};
    setrlimit(RLIMIT_NOFILE, &files);
}

/* The directory that the container wrote to. Its disk is mounted once more: the container's own mount is out of sight. */
static void enter_upper(void)
{
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        fail_errno("mount namespace");
    if ((mkdir(DISK, 0700) < 0 && errno != EEXIST) || mount(disk, DISK, "ext4", 0, NULL) < 0)
        fail_errno("mount %s", disk);
    if (chdir(DISK "/upper") < 0 || chroot(".") < 0)
        fail_errno("%s", DISK "/upper");
}

static void enter_tree(bool alone)
{
    const char *root = main_waits() ? ROOT : "/";
    if (setns(main_mounts(), CLONE_NEWNS) < 0 || unshare(CLONE_NEWNS) < 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        fail_errno("mount namespace");
    if (alone) { /* without what is mounted in it */
        int tree = (int)syscall(SYS_open_tree, AT_FDCWD, root, 1 /* OPEN_TREE_CLONE */ | O_CLOEXEC);
        if (tree < 0 || fchdir(tree) < 0)
            fail_errno("open_tree");
    } else if (chdir(root) < 0) {
        fail_errno("%s", root);
    }
    if (chroot(".") < 0)
        fail_errno("chroot");
}

/* The agent thaws when this process has ended, however it ends. */
static void freeze(void)
{
    write_text(FREEZE, "1");
    for (unsigned i = 0; i < FREEZE_MS && !cgroup_event(CGROUP "/cgroup.events", "frozen"); i++)
        usleep(1000);
}

static void __attribute__((noreturn)) serve(const struct start *start)
{
    struct fields fields = start->fields;
    unsigned kind = fields_u32(fields, K_KIND, 0);
    char *path = fields_string(fields, K_PATH, 0), *name = fields_string(fields, K_NAME, 0);
    struct stat status, given = {0};
    struct tar_walk walk = {.upper = kind == FILES_UPPER};
    if (kind < FILES_STAT || kind > FILES_STORE || !path || !name || path[0] != '/')
        fail(128, "an unknown operation on files");
    if (fields_u32(fields, K_FLAGS, 0) & 2)
        freeze();
    take_streams(start->ends);
    stat(FILES, &given);
    if (kind == FILES_UPPER)
        enter_upper();
    else
        enter_tree(kind == FILES_EXPORT);
    report_pid(getpid());
    if (kind != FILES_WRITE)
        close(report_fd);
    if (kind == FILES_WRITE) {
        write_path(fields, path);
    } else if (kind == FILES_STAT) {
        find(path, &status);
        tell_found(path, &status);
        tar_flush();
    } else if (kind == FILES_READ) {
        read_path(path, name);
    } else if (kind == FILES_LOAD) {
        load_given(open_given(path, O_RDONLY, given.st_dev));
    } else if (kind == FILES_STORE) {
        store_given(open_given(path, O_WRONLY, given.st_dev), fields);
    } else {
        if (stat(".", &status) < 0)
            files_fail(FILES_FAILED, "%s", strerror(errno));
        walk.device = status.st_dev;
        tar_tree("", &walk);
        tar_end();
    }
    _exit(FILES_DONE);
}

pid_t files_spawn(const struct start *start, pid_t main_pid, int report)
{
    (void)main_pid;
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    report_fd = report;
    serve(start);
}

void files_thaw(void)
{
    int fd = open(FREEZE, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "0", 1) < 0)
        say("thaw: %s", strerror(errno));
    if (fd >= 0)
        close(fd);
}
