/* SPDX-License-Identifier: Apache-2.0 */
/* The workload's control group: cgroup2, one group below the root, made in the template. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

size_t read_text(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t have = 0;
    ssize_t got = 0;
    while (fd >= 0 && have < size - 1 && (got = read(fd, text + have, size - 1 - have)) > 0)
        have += (size_t)got;
    if (fd >= 0)
        close(fd);
    text[have] = 0;
    return have;
}

void cgroup_prepare(void)
{
    if (mount("cgroup", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
        say("cgroup2: %s", strerror(errno));
    cgroup_divide();
}

void cgroup_divide(void)
{
    static const char *const controllers[] = {"+cpu", "+memory", "+pids"};
    int fd = open("/sys/fs/cgroup/cgroup.subtree_control", O_WRONLY | O_CLOEXEC);
    for (size_t i = 0; i < sizeof controllers / sizeof *controllers; i++)
        if (write(fd, controllers[i], strlen(controllers[i])) < 0)
            say("cgroup2 %s: %s", controllers[i], strerror(errno));
    close(fd);
    mkdir(CGROUP, 0755);
}

bool cgroup_limit(const char *name, uint64_t limit)
{
    char path[128], text[32] = "max";
    snprintf(path, sizeof path, CGROUP "/%s", name);
    if (limit)
        snprintf(text, sizeof text, "%" PRIu64, limit);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool done = fd >= 0 && write(fd, text, strlen(text)) > 0;
    int error = errno;
    if (fd >= 0)
        close(fd);
    errno = error;
    return done;
}

/* The number behind a key in a file of lines "key number"; 0 when it is not there. */
uint64_t cgroup_event(const char *file, const char *key)
{
    char text[4096];
    size_t length = strlen(key);
    read_text(file, text, sizeof text);
    for (char *line = text; *line; line += strcspn(line, "\n"), line += *line == '\n')
        if (strncmp(line, key, length) == 0 && line[length] == ' ')
            return strtoull(line + length, NULL, 10);
    return 0;
}

/* The number in a file; 0 for "max". */
uint64_t cgroup_number(const char *file)
{
    char text[64];
    read_text(file, text, sizeof text);
    return strtoull(text, NULL, 10);
}

/* Called by the process that joins. */
void cgroup_join(void)
{
    write_text(CGROUP "/cgroup.procs", "0");
}
