/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a process sees from inside its hull: whose kernel, how much of the machine, which doors are open. Nothing is
 * changed; a door is tried by opening, never by writing.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "probe.h"

#define KLOG_READ_ALL 3

static void text(const char *key, const char *value)
{
    printf(", \"%s\": ", key);
    emit_text(value);
}

static void number(const char *key, double value) { printf(", \"%s\": %.15g", key, value); }

static void flag(const char *key, bool value) { printf(", \"%s\": %s", key, value ? "true" : "false"); }

/* The rest of the first line that starts with the prefix, without leading blanks and colon; "" if none. */
static void line_of(const char *path, const char *prefix, char *value, size_t size)
{
    char line[4096];
    FILE *file = fopen(path, "re");
    value[0] = 0;
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, prefix, strlen(prefix)) != 0)
            continue;
        const char *start = line + strlen(prefix);
        start += strspn(start, ": \t");
        snprintf(value, size, "%.*s", (int)strcspn(start, "\n"), start);
        break;
    }
    if (file)
        fclose(file);
}

static unsigned count_lines(const char *path)
{
    unsigned count = 0;
    FILE *file = fopen(path, "re");
    for (int c; file && (c = getc(file)) != EOF;)
        count += c == '\n';
    if (file)
        fclose(file);
    return count;
}

static unsigned count_processes(void)
{
    unsigned count = 0;
    DIR *directory = opendir("/proc");
    for (struct dirent *entry; directory && (entry = readdir(directory));)
        count += isdigit((unsigned char)entry->d_name[0]) != 0;
    if (directory)
        closedir(directory);
    return count;
}

static void devices(void)
{
    unsigned character = 0, block = 0;
    printf(", \"devices\": [");
    DIR *directory = opendir("/dev");
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        struct stat status;
        if (fstatat(dirfd(directory), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) != 0)
            continue;
        if (!S_ISCHR(status.st_mode) && !S_ISBLK(status.st_mode))
            continue;
        if (character + block > 0)
            printf(", ");
        emit_text(entry->d_name);
        character += S_ISCHR(status.st_mode);
        block += S_ISBLK(status.st_mode);
    }
    if (directory)
        closedir(directory);
    printf("]");
    number("character_devices", character);
    number("block_devices", block);
}

static bool can_open(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC);
    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

/* A masked file is /dev/null: it opens, and has nothing in it. */
static bool has_content(const char *path)
{
    char byte;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool content = fd >= 0 && read(fd, &byte, 1) == 1;
    if (fd >= 0)
        close(fd);
    return content;
}

static void whose_kernel(void)
{
    struct utsname name;
    char value[256];
    uname(&name);
    text("kernel_release", name.release);
    text("kernel_version", name.version);
    text("machine", name.machine);
    text("hostname", name.nodename);
    line_of("/proc/sys/kernel/random/boot_id", "", value, sizeof value);
    text("boot_id", value);
    line_of("/proc/uptime", "", value, sizeof value);
    number("uptime_s", atof(value));
    char flags[4096];
    line_of("/proc/cpuinfo", "flags", flags, sizeof flags);
    flag("hypervisor", strstr(flags, " hypervisor") != NULL);
}

static void how_much(void)
{
    char value[256];
    cpu_set_t cpus;
    line_of("/proc/meminfo", "MemTotal", value, sizeof value);
    number("memory_bytes", atof(value) * 1024);
    number("cpus_online", (double)sysconf(_SC_NPROCESSORS_ONLN));
    number("cpus_allowed", sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 0);
    number("processes", count_processes());
    number("mounts", count_lines("/proc/self/mountinfo"));
    number("kernel_modules", count_lines("/proc/modules"));
    struct statfs root;
    number("root_fs_magic", statfs("/", &root) == 0 ? (double)(unsigned long)root.f_type : 0);
    line_of("/proc/self/cgroup", "0", value, sizeof value);
    text("cgroup", value);
    line_of("/proc/self/uid_map", "", value, sizeof value);
    text("uid_map", value);
}

static void which_doors(void)
{
    char value[256], buffer[64];
    line_of("/proc/self/status", "CapEff", value, sizeof value);
    text("capabilities_effective", value);
    line_of("/proc/self/status", "CapBnd", value, sizeof value);
    text("capabilities_bounding", value);
    line_of("/proc/self/status", "Seccomp:", value, sizeof value);
    number("seccomp_mode", atof(value));
    line_of("/proc/self/status", "NoNewPrivs", value, sizeof value);
    flag("no_new_privileges", atoi(value) != 0);
    number("uid", getuid());
    devices();
    flag("kcore_readable", has_content("/proc/kcore"));
    flag("dmesg_readable", klogctl(KLOG_READ_ALL, buffer, sizeof buffer) > 0);
    flag("sysrq_writable", can_open("/proc/sysrq-trigger", O_WRONLY));
    flag("sysctl_writable", can_open("/proc/sys/kernel/core_pattern", O_WRONLY));
    flag("sysfs_writable", can_open("/sys/kernel/mm/transparent_hugepage/enabled", O_WRONLY) ||
                               can_open("/sys/kernel/uevent_helper", O_WRONLY));
    flag("raw_memory_readable", has_content("/dev/mem"));
}

void look(void)
{
    printf("{\"measure\": \"look\"");
    whose_kernel();
    how_much();
    which_doors();
    fflush(stdout);
    struct syscall_census census;
    if (count_syscalls(&census))
        printf(", \"syscalls\": {\"tried\": %u, \"passed\": %u, \"denied\": %u, \"missing\": %u, "
               "\"killed\": %u}",
               census.tried, census.passed, census.denied, census.missing, census.killed);
    puts("}");
    fflush(stdout);
}
