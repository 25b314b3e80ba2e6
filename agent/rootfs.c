/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The container's root: the layers' partitions as erofs, a writable file system, the overlay, and the kernel's
 * own file systems that do not depend on the container's pid namespace.
 *
 *   /run/layers/N   layer N, lowest first      /run/rw/upper, work    what is written
 *   /run/root       the overlay, later the container's /
 *   /run/dev, sys   what the container's /dev and /sys will be
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/blkpg.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define MAX_LAYERS 127u
#define SECTOR 512u
#define DEVICES "/run/dev"
#define SYSTEM "/run/sys"
#define DEFAULT_SHM "mode=1777,size=65536k"
#define FILES_LIMIT "mode=755,size=16m"
#define KERNEL_FLAGS (MS_NOSUID | MS_NODEV | MS_NOEXEC)

static int open_disk(const char *name)
{
    char path[64];
    if (strchr(name, '/') || strlen(name) > 31)
        fail(128, "disk %s: invalid name", name);
    snprintf(path, sizeof path, "/dev/%s", name);
    int disk = open(path, O_RDONLY | O_CLOEXEC);
    if (disk < 0)
        fail_errno("disk %s", name);
    return disk;
}

static void mount_layer(int disk, const char *disk_name, unsigned n, struct fields layer)
{
    uint64_t offset = fields_u64(layer, K_OFFSET, 0), length = fields_u64(layer, K_LENGTH, 0);
    if (length == 0 || offset % SECTOR || length % SECTOR)
        fail(128, "layer %u: offset and length are not multiples of %u", n, SECTOR);
    struct blkpg_partition partition = {.start = (long long)offset, .length = (long long)length, .pno = (int)n + 1};
    struct blkpg_ioctl_arg argument = {.op = BLKPG_ADD_PARTITION, .datalen = sizeof partition, .data = &partition};
    if (ioctl(disk, BLKPG, &argument) < 0)
        fail_errno("layer %u: partition", n);
    char source[64], target[64];
    snprintf(source, sizeof source, "/dev/%s%u", disk_name, n + 1);
    snprintf(target, sizeof target, LAYERS "/%u", n);
    if (mkdir(target, 0755) < 0 || mount(source, target, "erofs", MS_RDONLY, NULL) < 0)
        fail_errno("layer %u: mount", n);
}

static unsigned mount_layers(struct fields fields)
{
    char *name = fields_string(fields, K_LAYERS_DISK, 0);
    const char *disk_name = name ? name : "vda";
    int disk = -1;
    unsigned count = 0;
    struct field field;
    while (fields_next(&fields, &field)) {
        if (field.key != K_LAYER)
            continue;
        if (count == MAX_LAYERS)
            fail(128, "more than %u layers", MAX_LAYERS);
        if (disk < 0)
            disk = open_disk(disk_name);
        mount_layer(disk, disk_name, count++, field_fields(&field));
    }
    if (disk >= 0)
        close(disk);
    return count;
}

static void mount_writable(struct fields fields)
{
    char *disk = fields_string(fields, K_WRITABLE_DISK, 0);
    char text[64] = "mode=755";
    if (disk) {
        if (strchr(disk, '/') || strlen(disk) > 31)
            fail(128, "disk %s: invalid name", disk);
        snprintf(text, sizeof text, "/dev/%s", disk);
        /* Zeroing the inode tables in the background would keep an idle machine busy. */
        if (mount(text, WRITABLE, "ext4", 0, "noinit_itable") < 0)
            fail_errno("mount %s", text);
    } else {
        uint64_t size = fields_u64(fields, K_TMPFS_SIZE, 0);
        if (size)
            snprintf(text, sizeof text, "mode=755,size=%llu", (unsigned long long)size);
        if (mount("tmpfs", WRITABLE, "tmpfs", 0, text) < 0)
            fail_errno("mount tmpfs");
    }
    if ((mkdir(WRITABLE "/upper", 0755) < 0 && errno != EEXIST) || (mkdir(WRITABLE "/work", 0755) < 0 && errno != EEXIST))
        fail_errno("writable file system");
}

void mount_rootfs(struct fields fields)
{
    static char options[4096]; /* mount(2) takes one page */
    unsigned layers = mount_layers(fields);
    mount_writable(fields);
    size_t length = (size_t)snprintf(options, sizeof options, "upperdir=" WRITABLE "/upper,workdir=" WRITABLE "/work,lowerdir=");
    if (layers == 0) {
        if (mkdir("/run/empty", 0755) < 0)
            fail_errno("/run/empty");
        snprintf(options + length, sizeof options - length, "/run/empty");
    }
    for (unsigned n = layers; n-- > 0;) /* the topmost comes first */
        length += (size_t)snprintf(options + length, sizeof options - length, "%u%s", n, n ? ":" : "");
    /* Relative names keep 127 layers well inside the page. */
    if (chdir(LAYERS) < 0 || mount("overlay", ROOT, "overlay", 0, options) < 0 || chdir("/") < 0)
        fail_errno("mount overlay");
}

/* --- /dev, /sys and what lies in them: made in the template, moved into the root in the clone --- */

static void mount_new(const char *target, const char *type, unsigned long flags, const char *data)
{
    if ((mkdir(target, 0755) < 0 && errno != EEXIST) || mount(type, target, type, flags, data) < 0)
        fail_errno("mount %s", target);
}

static void make_node(const char *name, unsigned major, unsigned minor)
{
    char path[64];
    snprintf(path, sizeof path, DEVICES "/%s", name);
    if (mknod(path, S_IFCHR | 0666, makedev(major, minor)) < 0)
        fail_errno("%s", path);
}

static void link_devices(int dev)
{
    static const char *const links[][2] = {{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"},
                                           {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"},
                                           {"/proc/kcore", "core"}, {"pts/ptmx", "ptmx"}};
    unlinkat(dev, "ptmx", 0); /* of devtmpfs: it belongs to another instance of devpts */
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        if (symlinkat(links[i][0], dev, links[i][1]) < 0 && errno != EEXIST)
            fail_errno("/dev/%s", links[i][1]);
}

void prepare_devices(void)
{
    mount_new(DEVICES, "tmpfs", MS_NOSUID, "mode=755,size=65536k");
    make_node("null", 1, 3);
    make_node("zero", 1, 5);
    make_node("full", 1, 7);
    make_node("random", 1, 8);
    make_node("urandom", 1, 9);
    make_node("tty", 5, 0);
    int dev = open(DEVICES, O_PATH | O_DIRECTORY | O_CLOEXEC);
    link_devices(dev);
    close(dev);
    mount_new(DEVICES "/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5");
    mount_new(DEVICES "/shm", "tmpfs", KERNEL_FLAGS, DEFAULT_SHM);
    mount_new(DEVICES "/mqueue", "mqueue", KERNEL_FLAGS, NULL);
    mount_new(SYSTEM, "sysfs", KERNEL_FLAGS, NULL);
    mount_new(FILES, "tmpfs", MS_NOSUID | MS_NODEV, FILES_LIMIT);
}

static void move_inside(const char *source, const char *target)
{
    int fd = ensure_inside(target, true);
    mount_on(fd, source, NULL, MS_MOVE, NULL);
    close(fd);
}

static void resize_shm(uint64_t size)
{
    char options[64];
    int fd = open_inside("/dev/shm", O_PATH | O_DIRECTORY, 0);
    snprintf(options, sizeof options, "mode=1777,size=%llu", (unsigned long long)size);
    if (fd < 0)
        fail_errno("/dev/shm");
    mount_on(fd, NULL, NULL, MS_REMOUNT | KERNEL_FLAGS, options);
    close(fd);
}

void mount_devices(struct fields fields)
{
    uint64_t shm_size = fields_u64(fields, K_SHM_SIZE, 0);
    close(ensure_inside("/proc", true)); /* mounted in the container's pid namespace, by START */
    if (fields_u32(fields, K_PRIVILEGED, 0)) {
        allow_devices();
        int dev = ensure_inside("/dev", true);
        mount_on(dev, "devtmpfs", "devtmpfs", MS_NOSUID, NULL);
        close(dev);
        dev = open_inside("/dev", O_PATH | O_DIRECTORY, 0);
        link_devices(dev);
        close(dev);
        move_inside(DEVICES "/pts", "/dev/pts");
        move_inside(DEVICES "/shm", "/dev/shm");
        move_inside(DEVICES "/mqueue", "/dev/mqueue");
    } else {
        move_inside(DEVICES, "/dev");
    }
    if (shm_size)
        resize_shm(shm_size);
    /* Not read-only yet: START mounts the cgroup file system in it first. */
    move_inside(SYSTEM, "/sys");
}

void finish_rootfs(struct fields fields)
{
    int sys = open_inside("/sys", O_PATH | O_DIRECTORY, 0);
    if (sys >= 0 && !fields_u32(fields, K_PRIVILEGED, 0))
        mount_on(sys, NULL, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | KERNEL_FLAGS, NULL);
    if (sys >= 0)
        close(sys);
}
