/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The container's root: the layers' partitions as erofs, a writable file system, the overlay, and the kernel's
 * own file systems.
 *
 *   /run/layers/N    layer N, lowest first     /run/rw/upper, work    what is written
 *   /run/layers/base directories and files that are mounted upon, below all layers: an image that lacks them gets them
 *                    without a trace in what is written (as from Docker's "init" layer)
 *   /run/root        the overlay, later the container's /
 *   /run/dev, sys    what the container's /dev and /sys will be
 *
 * Adding a partition and mounting ext4 are dear where code runs for the first time, so the template has partitions
 * in places that the host knows, and a new disk mounted read-only, which leaves it as it is: a clone whose disk is a
 * copy of that one only makes it writable. Source: docs/reference/agent-protocol.md, CONFIGURE, steps 5 to 7.
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
#define SLOTS 32u
#define SLOT_SIZE (32ull << 30)
#define NEW_DISK "vdb" /* mounted in the template */
#define DEFAULT_SHM_SIZE (64ull << 20)
#define DEFAULT_SHM "mode=1777,size=65536k"
#define FILES_LIMIT "mode=755,size=16m"
#define KERNEL_FLAGS (MS_NOSUID | MS_NODEV | MS_NOEXEC)
/* Zeroing the inode tables in the background would keep an idle machine busy. What is deleted goes back to the host. */
#define EXT4_OPTIONS "noinit_itable,discard"

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

static bool change_partition(int disk, int operation, unsigned n, uint64_t offset, uint64_t length)
{
    struct blkpg_partition partition = {.start = (long long)offset, .length = (long long)length, .pno = (int)n + 1};
    struct blkpg_ioctl_arg argument = {.op = operation, .datalen = sizeof partition, .data = &partition};
    return ioctl(disk, BLKPG, &argument) == 0;
}

/* Whether the layers lie where the template has partitions: layer n in slot n. */
static bool fits_slots(struct fields fields, const char *disk_name)
{
    struct field field;
    unsigned n = 0;
    while (fields_next(&fields, &field)) {
        if (field.key != K_LAYER)
            continue;
        struct fields layer = field_fields(&field);
        if (n >= SLOTS || fields_u64(layer, K_OFFSET, 0) != n * SLOT_SIZE || fields_u64(layer, K_LENGTH, 0) > SLOT_SIZE)
            return false;
        n++;
    }
    return strcmp(disk_name, layers_disk()) == 0;
}

static void remove_slots(void)
{
    int disk = open_disk(layers_disk());
    for (unsigned n = 0; n < SLOTS; n++)
        change_partition(disk, BLKPG_DEL_PARTITION, n, 0, 0); /* the partitions of another disk may be there already */
    close(disk);
}

static void add_partition(const char *disk_name, unsigned n, struct fields layer)
{
    uint64_t offset = fields_u64(layer, K_OFFSET, 0), length = fields_u64(layer, K_LENGTH, 0);
    if (length == 0 || offset % SECTOR || length % SECTOR)
        fail(128, "layer %u: offset and length are not multiples of %u", n, SECTOR);
    int disk = open_disk(disk_name);
    if (!change_partition(disk, BLKPG_ADD_PARTITION, n, offset, length))
        fail_errno("layer %u: partition", n);
    close(disk);
}

static unsigned mount_layers(struct fields fields)
{
    char *name = fields_string(fields, K_LAYERS_DISK, 0);
    const char *disk_name = name ? name : layers_disk();
    bool in_slots = fits_slots(fields, disk_name);
    unsigned count = 0;
    struct field field;
    if (!in_slots)
        remove_slots();
    while (fields_next(&fields, &field)) {
        char source[64], target[64];
        if (field.key != K_LAYER)
            continue;
        if (count == MAX_LAYERS)
            fail(128, "more than %u layers", MAX_LAYERS);
        if (!in_slots)
            add_partition(disk_name, count, field_fields(&field));
        snprintf(source, sizeof source, "/dev/%s%u", disk_name, count + 1);
        snprintf(target, sizeof target, LAYERS "/%u", count);
        if ((mkdir(target, 0755) < 0 && errno != EEXIST) || mount(source, target, "erofs", MS_RDONLY, NULL) < 0)
            fail_errno("layer %u: mount", count);
        count++;
    }
    return count;
}

static bool new_disk_mounted(void)
{
    struct stat inside, outside;
    return stat(WRITABLE, &inside) == 0 && stat("/run", &outside) == 0 && inside.st_dev != outside.st_dev;
}

static void mount_disk(const char *disk)
{
    char path[64];
    if (strchr(disk, '/') || strlen(disk) > 31)
        fail(128, "disk %s: invalid name", disk);
    snprintf(path, sizeof path, "/dev/%s", disk);
    bool is_there = strcmp(disk, NEW_DISK) == 0 && new_disk_mounted();
    if (is_there ? mount(NULL, WRITABLE, NULL, MS_REMOUNT, EXT4_OPTIONS) < 0
                 : mount(path, WRITABLE, "ext4", 0, EXT4_OPTIONS) < 0)
        fail_errno("mount %s", path);
}

static void mount_writable(struct fields fields)
{
    char *disk = fields_string(fields, K_WRITABLE_DISK, 0);
    if (disk) {
        mount_disk(disk);
    } else {
        char text[64] = "mode=755";
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
    for (unsigned n = layers; n-- > 0;) /* the topmost comes first */
        length += (size_t)snprintf(options + length, sizeof options - length, "%u:", n);
    snprintf(options + length, sizeof options - length, "%s", MOUNT_POINTS + 1);
    /* Relative names keep 127 layers well inside the page. */
    if (chdir(LAYERS) < 0 || mount("overlay", ROOT, "overlay", 0, options) < 0 || chdir("/") < 0)
        fail_errno("mount overlay");
    if (utimensat(AT_FDCWD, ROOT, NULL, 0) < 0) /* a new disk has no date of its own */
        fail_errno("date of the root");
}

/* --- in the template --- */

static void make_mount_points(void)
{
    static const char *const directories[] = {"", "/dev", "/proc", "/sys", "/etc"};
    static const char *const files[] = {"/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/etc/machine-id"};
    char path[64];
    for (size_t i = 0; i < sizeof directories / sizeof *directories; i++) {
        snprintf(path, sizeof path, LAYERS MOUNT_POINTS "%s", directories[i]);
        if (mkdir(path, 0755) < 0 && errno != EEXIST)
            fail_errno("%s", path);
    }
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, LAYERS MOUNT_POINTS "%s", files[i]);
        int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
        if (fd < 0)
            fail_errno("%s", path);
        close(fd);
    }
}

/* The disks are files of a host that has a scheduler of its own, and throttles as well. */
static void quicken_disks(void)
{
    const char *disks[] = {layers_disk(), NEW_DISK, "vdc"}; /* the seats of one machine share them: some twice */
    static const char *const settings[][2] = {{"scheduler", "none"}, {"wbt_lat_usec", "0"}};
    for (size_t i = 0; i < sizeof disks / sizeof *disks; i++)
        for (size_t k = 0; k < sizeof settings / sizeof *settings; k++) {
            char path[96];
            snprintf(path, sizeof path, "/sys/block/%s/queue/%s", disks[i], settings[k][0]);
            int fd = open(path, O_WRONLY | O_CLOEXEC);
            if (fd >= 0 && write(fd, settings[k][1], strlen(settings[k][1])) < 0)
                say("%s: %s", path, strerror(errno));
            if (fd >= 0)
                close(fd);
        }
}

/* An earlier agent of the same seat has made them. */
static bool slots_are_there(void)
{
    char path[64];
    snprintf(path, sizeof path, "/dev/%s1", layers_disk());
    return access(path, F_OK) == 0;
}

void prepare_disks(void)
{
    make_mount_points();
    for (unsigned n = 0; n < SLOTS; n++) {
        char path[64];
        snprintf(path, sizeof path, LAYERS "/%u", n);
        mkdir(path, 0755);
    }
    int disk = slots_are_there() ? -1 : open_disk(layers_disk());
    for (unsigned n = 0; disk >= 0 && n < SLOTS; n++)
        if (!change_partition(disk, BLKPG_ADD_PARTITION, n, n * SLOT_SIZE, SLOT_SIZE))
            say("slot %u: %s", n, strerror(errno)); /* the disk is small: it holds no template's placeholder */
    if (disk >= 0)
        close(disk);
    quicken_disks();
    if (own_seat >= 0)
        return;
    /* There may be none, or none with a file system: then CONFIGURE mounts what it is told to. */
    if (mount("/dev/" NEW_DISK, WRITABLE, "ext4", MS_RDONLY, EXT4_OPTIONS) < 0)
        say("no new disk: %s", strerror(errno));
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

void resize_shm(struct fields fields)
{
    uint64_t size = fields_u64(fields, K_SHM_SIZE, 0);
    if (size == 0 || size == DEFAULT_SHM_SIZE)
        return;
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
    move_inside(PROCESSES, "/proc");
    if (fields_u32(fields, K_PRIVILEGED, 0)) {
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
