/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Several containers in one machine: process 1 forks an agent for each seat, in namespaces of its own, and does
 * nothing else. Such an agent is the ordinary one, which finds what is its own where it always looks:
 *
 *   pid          it is process 1; what it has started goes with it
 *   mount        /run, /proc, /sys anew; /sys/fs/cgroup is the seat's group
 *   network      lo and the seat's card
 *   UTS, IPC     the container's
 *   ports        proa.control.N, proa.log.N, proa.exit.N, proa.fs.N
 *   disks        the layers and the writable one of the seat, in the order of -device
 *
 * When a container is over its agent ends, and another one takes the seat. Source: docs/reference/agent-protocol.md,
 * section 9; network_namespaces(7).
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_SEATS 6 /* three devices each; the machine has room for some twenty */
#define DISKS 2
#define SEATS "/seats"         /* a file N with the pid of the agent of seat N, as process 1 counts */
#define ALL_PROCESSES "/all"   /* /proc of process 1 */
#define ALL_GROUPS "/groups"
#define CARD_WAIT_US 10000 /* the kernel gives the card of an ended seat back when it comes round to it */
#define KERNEL_FLAGS (MS_NOSUID | MS_NODEV | MS_NOEXEC)
#define NEW_NAMESPACES (CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC)

int own_seat = -1;

static pid_t agents[MAX_SEATS];

const char *layers_disk(void)
{
    static char name[] = "vda";
    if (own_seat > 0)
        name[2] = (char)('a' + DISKS * own_seat);
    return name;
}

bool seat_owns_port(char *name)
{
    char *dot = strrchr(name, '.');
    if (own_seat < 0)
        return true;
    if (!dot || atoi(dot + 1) != own_seat || dot == strchr(name, '.'))
        return false;
    *dot = 0;
    return true;
}

/* --- process 1 --- */

static int wanted_seats(void)
{
    char text[2048];
    read_text("/proc/cmdline", text, sizeof text);
    char *word = strstr(text, "proa.seats=");
    int seats = word ? atoi(word + strlen("proa.seats=")) : 0;
    return seats > MAX_SEATS ? MAX_SEATS : seats;
}

/* The card's index; 0 while it is not here. Its device is that of the seat's place on the command line: after the
 * serial ports and all disks. */
static unsigned find_card(int seats, int seat)
{
    char path[96], text[32];
    FILE *list = fopen("/proc/net/dev", "re");
    unsigned found = 0;
    while (list && fgets(path, sizeof path, list)) {
        char name[32], link[256];
        if (sscanf(path, " %31[^: ]:", name) != 1)
            continue;
        snprintf(path, sizeof path, "/sys/class/net/%s/device", name);
        ssize_t size = readlink(path, link, sizeof link - 1);
        if (size <= 0)
            continue;
        link[size] = 0;
        char *device = strstr(link, "virtio");
        snprintf(path, sizeof path, "/sys/class/net/%s/ifindex", name);
        if (device && atoi(device + strlen("virtio")) == 1 + DISKS * seats + seat && read_text(path, text, sizeof text))
            found = (unsigned)atoi(text);
    }
    if (list)
        fclose(list);
    return found;
}

/* Give a card to the network namespace of a process. */
static bool move_card(unsigned index, pid_t pid)
{
    struct {
        struct nlmsghdr header;
        struct ifinfomsg info;
        struct rtattr attribute;
        uint32_t pid;
    } message = {.header = {.nlmsg_len = sizeof message, .nlmsg_type = RTM_NEWLINK, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK},
                 .info = {.ifi_index = (int)index},
                 .attribute = {.rta_type = IFLA_NET_NS_PID, .rta_len = RTA_LENGTH(sizeof(uint32_t))},
                 .pid = (uint32_t)pid};
    struct {
        struct nlmsghdr header;
        struct nlmsgerr error;
        uint8_t rest[256];
    } reply = {.error = {.error = -EIO}};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    bool done = fd >= 0 && send(fd, &message, sizeof message, 0) > 0 && recv(fd, &reply, sizeof reply, 0) > 0 &&
                reply.error.error == 0;
    close(fd);
    return done;
}

static void note_agent(int seat, pid_t pid)
{
    char path[32], text[16];
    snprintf(path, sizeof path, SEATS "/%d", seat);
    snprintf(text, sizeof text, "%d", pid);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd >= 0 && write(fd, text, strlen(text)) < 0)
        say("%s: %s", path, strerror(errno));
    close(fd);
}

/* --- an agent --- */

static void enter_group(void)
{
    char path[64];
    snprintf(path, sizeof path, ALL_GROUPS "/seat%d/container", own_seat);
    rmdir(path); /* of the container before: its counts and its device rules go with it */
    *strrchr(path, '/') = 0;
    if ((mkdir(path, 0755) < 0 && errno != EEXIST) || mount(path, "/sys/fs/cgroup", NULL, MS_BIND, NULL) < 0)
        die("the seat's group");
}

/* In new namespaces, with the card in the network's: put what is the seat's where the agent looks. */
static void settle(void)
{
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 || mount("proc", "/proc", "proc", KERNEL_FLAGS, NULL) < 0 ||
        mount("sysfs", "/sys", "sysfs", KERNEL_FLAGS, NULL) < 0 || mount("tmpfs", "/run", "tmpfs", MS_NOSUID, "mode=755") < 0)
        die("the seat's file systems");
    make_places();
    enter_group();
    cgroup_divide();
}

/* True in the new agent. Without its card none is begun: containers that share the network may still hold it. */
static bool begin(int seats, int seat)
{
    char go;
    int gate[2];
    unsigned card = find_card(seats, seat);
    if (card == 0)
        return false;
    if (pipe2(gate, O_CLOEXEC) < 0)
        die("pipe");
    pid_t pid = (pid_t)syscall(SYS_clone, NEW_NAMESPACES | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) {
        close(gate[1]);
        if (read(gate[0], &go, 1) != 1)
            _exit(1);
        close(gate[0]);
        own_seat = seat;
        settle();
        return true;
    }
    close(gate[0]);
    if (pid > 0) {
        agents[seat] = pid;
        note_agent(seat, pid);
        if (!move_card(card, pid) || write(gate[1], "", 1) < 0)
            say("seat %d: %s", seat, strerror(errno));
    }
    close(gate[1]);
    return false;
}

/* Begin the agents that are missing; true in a new one. */
static bool begin_missing(int seats, bool *all)
{
    *all = true;
    for (int seat = 0; seat < seats; seat++) {
        if (agents[seat] == 0 && begin(seats, seat))
            return true;
        *all = *all && agents[seat] > 0;
    }
    return false;
}

void seats_serve(void)
{
    int seats = wanted_seats();
    bool all;
    if (seats <= 0)
        return;
    mkdir(SEATS, 0700);
    mkdir(ALL_PROCESSES, 0555);
    mkdir(ALL_GROUPS, 0555);
    if (mount("/proc", ALL_PROCESSES, NULL, MS_BIND, NULL) < 0 ||
        mount("/sys/fs/cgroup", ALL_GROUPS, NULL, MS_BIND, NULL) < 0)
        die("seats");
    while (!begin_missing(seats, &all)) {
        pid_t pid = waitpid(-1, NULL, all ? 0 : WNOHANG);
        for (int seat = 0; pid > 0 && seat < seats; seat++)
            if (agents[seat] == pid)
                agents[seat] = 0;
        if (pid <= 0)
            usleep(CARD_WAIT_US);
    }
}

/* --- what requests say of seats --- */

bool seat_join_network(struct fields fields)
{
    struct field field;
    char path[64], text[16];
    if (!fields_find(fields, K_JOIN_SEAT, &field))
        return true;
    snprintf(path, sizeof path, SEATS "/%u", fields_u32(fields, K_JOIN_SEAT, 0));
    if (read_text(path, text, sizeof text) == 0)
        return false;
    snprintf(path, sizeof path, ALL_PROCESSES "/%d/ns/net", atoi(text));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool done = fd >= 0 && setns(fd, CLONE_NEWNET) == 0;
    int error = errno;
    close(fd);
    errno = error;
    return done;
}

/* A sysfs shows the network of its mounter. */
void seat_show_network(struct fields fields)
{
    struct field field;
    if (!fields_find(fields, K_JOIN_SEAT, &field))
        return;
    if (umount2(SYSTEM, MNT_DETACH) < 0 || mount("sysfs", SYSTEM, "sysfs", KERNEL_FLAGS, NULL) < 0 ||
        mount("cgroup", SYSTEM "/fs/cgroup", "cgroup2", KERNEL_FLAGS | MS_RDONLY, NULL) < 0)
        fail_errno("mount /sys");
}

static bool write_group(const char *name, const char *text)
{
    char path[64];
    snprintf(path, sizeof path, CGROUP "/%s", name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool done = fd >= 0 && write(fd, text, strlen(text)) > 0;
    int error = errno;
    close(fd);
    errno = error;
    return done;
}

bool seat_limit_cpu(struct fields fields)
{
    struct field field;
    char text[64];
    bool done = true;
    if (fields_find(fields, K_CPU_QUOTA_US, &field)) {
        uint64_t quota = fields_u64(fields, K_CPU_QUOTA_US, 0), period = fields_u64(fields, K_CPU_PERIOD_US, 100000);
        if (quota)
            snprintf(text, sizeof text, "%" PRIu64 " %" PRIu64, quota, period);
        else
            snprintf(text, sizeof text, "max %" PRIu64, period);
        done = write_group("cpu.max", text);
    }
    if (done && fields_find(fields, K_CPU_WEIGHT, &field)) {
        snprintf(text, sizeof text, "%" PRIu64, fields_u64(fields, K_CPU_WEIGHT, 100));
        done = write_group("cpu.weight", text);
    }
    return done;
}

/* Sets STATE (1 frozen, 0 not) when it is given, and tells it. */
void seat_freeze(const struct request *request)
{
    struct field field;
    if (fields_find(request->fields, K_STATE, &field) &&
        !write_group("cgroup.freeze", fields_u32(request->fields, K_STATE, 0) ? "1" : "0")) {
        answer_error(request, 0, errno, strerror(errno));
        return;
    }
    size_t mark = answer_begin(request);
    put_field_u32(channel_queue(), K_STATE, (uint32_t)cgroup_number(CGROUP "/cgroup.freeze"));
    answer_end(mark);
}
