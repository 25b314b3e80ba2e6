/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who a process is and what it may: user and groups, capabilities, limits; and which file its name means.
 *
 * Runs in the child, inside the container, so the paths opened here are the container's.
 * Source: capabilities(7); Engine API, ContainerConfig; Go's os/exec for the wording of failures.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_ACCOUNTS (4u << 20) /* of passwd or group */

/* The text of a regular file, empty when there is none; a fifo or device of a hostile image is not waited for. */
static char *read_accounts(const char *path)
{
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 || fstat(fd, &status) < 0 || !S_ISREG(status.st_mode) || status.st_size > (off_t)MAX_ACCOUNTS)
        return "";
    char *text = calloc(1, (size_t)status.st_size + 1);
    ssize_t have = 0, size;
    while (text && have < status.st_size && (size = read(fd, text + have, (size_t)(status.st_size - have))) > 0)
        have += size;
    close(fd);
    return text ? text : "";
}

void resolve_identity(struct fields fields, struct identity *identity)
{
    char message[256];
    char *user = fields_string(fields, K_USER, 0);
    char **group_add = fields_strings(fields, K_GROUP_ADD, 0);
    char *passwd = read_accounts("/etc/passwd"), *group = read_accounts("/etc/group");
    if (!identity_resolve(user, group_add, passwd, group, identity, message, sizeof message))
        fail(128, "%s", message);
}

static void set_rlimits(struct fields fields)
{
    struct field field;
    while (fields_next(&fields, &field)) {
        if (field.key != K_RLIMIT)
            continue;
        struct fields limit = field_fields(&field);
        int resource = (int)fields_u32(limit, K_RESOURCE, 0);
        struct rlimit value = {.rlim_cur = fields_u64(limit, K_SOFT, 0), .rlim_max = fields_u64(limit, K_HARD, 0)};
        if (setrlimit(resource, &value) < 0)
            fail_errno("rlimit %d", resource);
    }
}

void apply_limits(struct fields fields)
{
    int32_t score = (int32_t)fields_u32(fields, K_OOM_SCORE_ADJ, 0);
    if (score) {
        char text[16];
        snprintf(text, sizeof text, "%d", score);
        write_text("/proc/self/oom_score_adj", text);
    }
    set_rlimits(fields);
}

static void drop_bounding(uint64_t keep)
{
    for (unsigned long capability = 0; capability < 64; capability++)
        if (!(keep >> capability & 1) && prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0) {
            if (errno == EINVAL) /* beyond the last one the kernel knows */
                return;
            fail_errno("capability %lu", capability);
        }
}

static void set_capabilities(uint64_t mask)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &header, data) < 0)
        fail_errno("capabilities");
    for (unsigned i = 0; i < 2; i++) {
        data[i].permitted &= (uint32_t)(mask >> 32 * i);
        data[i].effective = data[i].permitted;
        data[i].inheritable = 0;
    }
    if (syscall(SYS_capset, &header, data) < 0)
        fail_errno("capabilities");
}

void become(struct fields fields, const struct identity *identity)
{
    uint64_t capabilities = fields_u64(fields, K_CAPABILITIES, 0);
    drop_bounding(capabilities);
    /* Raw calls: there is one thread, and the C library would signal others it does not have. */
    bool is_other = identity->uid || identity->gid || identity->group_count; /* than what it is already */
    if (is_other && (setgroups(identity->group_count, identity->groups) < 0 ||
                     setresgid(identity->gid, identity->gid, identity->gid) < 0 ||
                     setresuid(identity->uid, identity->uid, identity->uid) < 0))
        fail_errno("user");
    set_capabilities(capabilities);
    if (fields_u32(fields, K_NO_NEW_PRIVS, 0) && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        fail_errno("no_new_privs");
}

/* --- which file a name means --- */

static int check_program(const char *path)
{
    struct stat status;
    if (stat(path, &status) < 0)
        return errno;
    if (S_ISDIR(status.st_mode))
        return EISDIR;
    return access(path, X_OK) < 0 || !(status.st_mode & 0111) ? EACCES : 0;
}

static char *find_in_path(const char *name, const char *path)
{
    char *candidate = NULL;
    bool denied = false;
    while (path && *path) {
        size_t length = strcspn(path, ":");
        if (length == 0) {
            path++; /* an empty entry means the present directory, which Go refuses to search */
            continue;
        }
        if (asprintf(&candidate, "%.*s/%s", (int)length, path, name) < 0)
            fail(128, "out of memory");
        int error = check_program(candidate);
        if (error == 0)
            return candidate;
        denied = denied || error == EACCES;
        free(candidate);
        path += length + (path[length] == ':');
    }
    if (denied)
        fail(126, "exec: \"%s\": permission denied", name);
    fail(127, "exec: \"%s\": executable file not found in $PATH", name);
}

char *find_program(const char *name, char **environment)
{
    if (strchr(name, '/')) {
        int error = check_program(name);
        if (error == ENOENT || error == ENOTDIR)
            fail(127, "exec: \"%s\": stat %s: %s", name, name, error == ENOENT ? "no such file or directory" : "not a directory");
        if (error)
            fail(126, "exec: \"%s\": %s", name, error == EISDIR ? "is a directory" : "permission denied");
        return strdup(name);
    }
    const char *path = NULL;
    for (; *environment; environment++)
        if (strncmp(*environment, "PATH=", 5) == 0)
            path = *environment + 5;
    return find_in_path(name, path);
}
