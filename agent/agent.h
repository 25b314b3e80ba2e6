/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The agent's parts and what they offer each other.
 *
 * One thread, one epoll loop. Nothing in the loop waits: what may take long (mounts, sync, the way to exec) is
 * done by a forked child, which tells how it went through a pipe.
 *
 * main.c       init: modules, file systems, ports, the loop, the reaper
 * channel.c    the control link: marker, frames in, queue out
 * request.c    which request goes where
 * worker.c     forked children that answer a request
 * main_process.c  the main process, forked in the template: carries out CONFIGURE, becomes the program at START
 * configure.c  a clone's identity; netlink.c its network, spares.c its changes, rootfs.c its disks, mounts.c what is mounted on them
 * identify.c   another identity for a machine whose programs run: the copy of one
 * fuse.c       the relay between /dev/fuse and the host's file server
 * process.c    the process table, start and end; stdio.c its streams; log.c log and exit record
 * container.c  the way to exec; credentials.c user and limits; user.c passwd and group
 * files.c      copies of files, to and from the host
 * seats.c      several containers in one machine: an agent for each
 * cgroup.c     limits and use of the workload; devices.c what it may open; stats.c STATS, table.c PROCESSES
 */
#ifndef PROA_AGENT_H
#define PROA_AGENT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "frame.h"

#define NS_PER_S 1000000000ull
#define MAX_PROCESSES 256u
#define CHUNK 32768u /* read at once from a pipe; also the most that virtio_console takes in one write */

/* Where things lie in the agent's own root, a tmpfs that no container sees. */
#define ROOT "/run/root"
#define LAYERS "/run/layers"
#define MOUNT_POINTS "/base"
#define WRITABLE "/run/rw"
#define FILES "/run/files"
#define SHARE "/run/share"
#define DEVICES "/run/dev"
#define SYSTEM "/run/sys"
#define PROCESSES "/run/proc"
#define CGROUP "/sys/fs/cgroup/container"

/* --- main.c --- */

/* Something the loop watches. The owner embeds it and frees it only through loop_free. */
struct source {
    int fd;
    uint32_t watched; /* events in epoll's set; 0 when not in it */
    void (*ready)(struct source *source, uint32_t events);
};

void loop_watch(struct source *source, uint32_t events);
void loop_unwatch(struct source *source);
void loop_close(struct source *source);
/* Free memory that holds sources after the present batch of events. */
void loop_free(void *memory);
void die(const char *what);
/* The directories in /run. */
void make_places(void);
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
uint64_t clock_ns(int clock);
void power_off(void) __attribute__((noreturn));
/* Power off unless the host does so first. */
void power_off_later(unsigned milliseconds);
/* In the template, after forking: have memory at hand for what a clone allocates. Asking the kernel for it, or giving
 * it back, costs a clone some milliseconds under emulation. */
void warm_memory(void);
extern char **loaded_modules;

struct ports {
    int control, log, exit, fs; /* -1 when missing */
};
extern struct ports ports;

/* --- seats.c: several containers in one machine --- */

/* Number of the seat that this agent serves; -1 when the machine is one container's. */
extern int own_seat;
/* In process 1: when the machine has seats, fork an agent for each and stay; else return at once. In such an agent:
 * return in its namespaces. */
void seats_serve(void);
/* Whether a port's name is that of this agent's; the seat is then cut off it. */
bool seat_owns_port(char *name);
/* The disk of this agent's layers. */
const char *layers_disk(void);
/* In the agent and in the main process: what CONFIGURE says of another seat's network. */
bool seat_join_network(struct fields fields);
/* In the main process: have /sys show it. */
void seat_show_network(struct fields fields);
/* CPU time of the workload, of CONFIGURE and UPDATE. */
bool seat_limit_cpu(struct fields fields);

/* Ended children, by pid, from the loop. */
void process_reaped(pid_t pid, int status);

/* --- channel.c --- */

void channel_open(int fd);
bool channel_connected(void);
/* Room for output of processes; false holds them back. */
bool channel_has_room(void);
/* The queue to put a frame into; channel_flush sends. Frames put while no link is up are dropped. */
struct buffer *channel_queue(void);
void channel_flush(void);
uint32_t channel_generation(void);
/* Answers go nowhere when the link they belong to is gone. */
struct request {
    uint32_t id, generation;
    struct fields fields;
};
size_t answer_begin(const struct request *request);
void answer_end(size_t mark);
void answer_ok(const struct request *request);
void answer_error(const struct request *request, uint32_t code, int error, const char *message);
/* Close the link after a broken rule. */
void channel_fail(const char *reason);

/* Of seats.c: FREEZE. */
void seat_freeze(const struct request *request);

/* --- request.c --- */

void request_dispatch(const struct frame *frame);
extern bool configured;

/* --- worker.c --- */

/* What a child tells: error is errno, code the exit code to record. */
struct outcome {
    int32_t pid;
    uint32_t code;
    int32_t error;
    bool failed, done; /* done: a worker's job came to its end */
    char message[512];
};

typedef void (*worker_job)(struct fields fields);
typedef void (*worker_done)(const struct request *request, const struct outcome *outcome);
/* Run the job in a child (it may fail() at any depth); done is called in the loop, also when request is NULL. */
bool worker_run(const struct request *request, worker_job job, worker_done done);
/* In a child with a report pipe: tell and exit. */
void fail(uint32_t code, const char *format, ...) __attribute__((format(printf, 2, 3), noreturn));
/* The same with ": " and the meaning of errno. */
void fail_errno(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
extern int report_fd;
void report_pid(pid_t pid);
void report_done(void);
/* Collect a report; true when it is complete (the pipe's end was read). */
bool outcome_read(int fd, struct outcome *outcome);

/* --- main_process.c --- */

/* In the template: fork it. False with errno set. */
bool main_prepare(void);
/* done is called in the loop. */
bool main_prepare_image(const struct request *request, worker_done done);
bool main_rehearse(const struct request *request, worker_done done);
bool main_configure(const struct request *request, worker_done done);
/* Whether it can still be started. */
bool main_waits(void);
pid_t main_pid(void);
/* Its mount namespace. */
int main_mounts(void);
/* Our ends of its pipes, once; the caller closes what it does not use. */
void main_streams(int streams[3]);
/* Returns its pid, and the pipe that its report comes through and that exec closes; -1 when it is gone. */
pid_t main_start(struct fields fields, int terminal, int *report);
/* When it has ended: unmount in a worker what only its namespace had mounted. */
bool main_unmount(worker_done done);

/* --- configure.c, netlink.c, rootfs.c, mounts.c: run in the main process; errors through fail() --- */

void configure(struct fields fields);
void individualize(struct fields fields);
void set_names(struct fields fields);
/* The part of it that all containers of an image share; configure() leaves it out then. */
void prepare_image(struct fields fields);
/* Also called in the loop. False with errno set; entropy may only be absent after the first time. */
bool set_clock_and_entropy(struct fields fields, bool first);
void write_text(const char *path, const char *text);
/* In the template: what needs no identity. The first runs in process 1 and does not fail. */
void find_network(void);
void prepare_network(void);
void prepare_devices(void);
void prepare_disks(void);
void setup_network(struct fields fields);
void forget_addresses(struct fields fields);
/* In a worker: new addresses in place of all that the NICs have. */
void replace_network(struct fields fields);
/* spares.c, in a worker of the agent's: NETWORK. */
void change_network(struct fields fields);
void mount_rootfs(struct fields fields);
void mount_devices(struct fields fields);
void resize_shm(struct fields fields);
void mount_user(struct fields fields);
void mount_files(struct fields fields);
void prepare_files(void);
void empty_files(void);
/* In a worker: new content for those of the FILEs that CONFIGURE made and the container still has. */
void replace_files(struct fields fields, pid_t main_process);
/* Hide MASKED_PATH and protect READONLY_PATH, inside the container's root. */
void restrict_paths(struct fields fields);
void finish_rootfs(struct fields fields);
/* Open a path inside the container's root, which no symbolic link leaves; as openat2. */
int open_inside(const char *path, uint64_t flags, uint64_t mode);
void leave_root(void); /* in another mount namespace it is another */
/* Make what is missing, as a directory or as an empty file, and return an O_PATH descriptor of it. */
int ensure_inside(const char *path, bool directory);
void mount_on(int target, const char *source, const char *type, unsigned long flags, const char *data);

/* --- fuse.c --- */

/* In the template: mount the share, which nobody serves yet. False with errno set. */
bool share_prepare(void);
/* In the agent, when CONFIGURE asks for shares: begin to carry messages. */
void share_carry(struct fields fields);
/* In the main process: the connection is the agent's. */
void share_leave(void);
/* In the main process, before the share is used: fails when the host's server is not there. */
void share_require(void);

/* --- process.c --- */

struct process;
void process_start(const struct request *request, bool exec);
void process_files(const struct request *request);
struct process *process_find(uint32_t id);
void process_each(void (*visit)(struct process *process));
void process_list(const struct request *request);
void process_signal(const struct request *request);
void process_attach(const struct request *request);
void process_detach(const struct request *request);
void process_resize(const struct request *request);
void process_release(const struct request *request);
/* The link is gone: nothing is attached any more. */
void processes_detach(void);
void log_drained(void);

/* --- stdio.c --- */

/* One output stream of a process: read from a pipe or terminal, to the log and to an attached host. */
struct output {
    struct source source;
    struct process *process;
    struct buffer pending; /* read at the end of the main process, waiting for credit */
    uint32_t credit;
    uint8_t stream;
    bool attached, ended, end_told, logged;
};

/* Standard input: written to a pipe or terminal from a queue that the host fills within its credit. */
struct input {
    struct source source;
    struct process *process;
    struct buffer queue;
    uint32_t credit;   /* what the host may still send */
    uint32_t consumed; /* written since credit was last given */
    bool ending, closed;
};

struct stdio {
    struct input in;
    struct output out[2];
    int terminal; /* master, or -1 */
};

/* The child's ends; -1 where there is none. */
struct stdio_ends {
    int fds[3];
};

bool stdio_open(struct stdio *stdio, struct stdio_ends *ends, struct process *process, bool tty, bool open_stdin);
/* The same for the main process, whose pipes are there already; taken over, or closed when there is a terminal. */
bool stdio_adopt(struct stdio *stdio, const int streams[3], struct process *process, bool tty, bool open_stdin);
/* Number of the terminal in /dev/pts; -1 for none. */
int stdio_terminal_number(const struct stdio *stdio);
int stdio_open_terminal(int number);
void stdio_begin(struct stdio *stdio);
void stdio_attach(struct stdio *stdio, uint32_t credit_stdout, uint32_t credit_stderr);
void stdio_detach(struct stdio *stdio);
void stdio_credit(struct stdio *stdio, unsigned stream, uint32_t bytes);
void stdio_input(struct stdio *stdio, const uint8_t *data, uint32_t size);
void stdio_input_end(struct stdio *stdio);
void stdio_drain(struct stdio *stdio);
void stdio_close_input(struct stdio *stdio);
void stdio_close(struct stdio *stdio);
void stdio_update(struct stdio *stdio);
/* In the template: where terminals are opened from now on, /dev/pts of containers. */
void stdio_terminal_directory(int fd);

struct process {
    uint32_t id;
    pid_t pid;
    enum process_state state;
    bool main, tty, reaped, oom;
    bool freezes; /* of FILES: the workload stands still until its end */
    int status; /* of waitpid, when reaped */
    uint32_t code;
    uint64_t finished_ns;
    uint64_t oom_kills_before;
    struct stdio stdio;
    struct source report; /* from the child until it has exec'ed */
    struct outcome outcome;
    struct request request; /* its fields are not valid any more */
};

/* --- log.c --- */

void log_open(int fd);
bool log_has_room(void);
void log_write(unsigned stream, const uint8_t *data, size_t size);
bool log_is_empty(void);
void exit_record_write(uint32_t code, bool oom, uint64_t finished_ns);

/* --- container.c, credentials.c: in the main process and in those of EXEC --- */

struct identity {
    uint32_t uid, gid;
    char *home;
    uint32_t *groups;
    size_t group_count;
};

struct start {
    struct fields fields;
    const struct stdio_ends *ends;
    int terminal; /* its number, -1 for none */
    bool main;
};

/* In the template: what does not depend on the container. */
void container_prepare(void);
/* --- identify.c --- */
void identify(struct fields fields);
/* --- rehearse.c --- */
void rehearse(struct fields fields, const struct stdio_ends *ends);
int rehearse_program(const char *program);

void container_run_main(const struct start *start) __attribute__((noreturn));
/* Fork a process that joins the main one; its real pid comes with the report. */
pid_t container_spawn_exec(const struct start *start, pid_t main_pid, int report);
void apply_limits(struct fields fields);
void resolve_identity(struct fields fields, struct identity *identity);
void become(struct fields fields, const struct identity *identity);
char *find_program(const char *name, char **environment);
int run_init(pid_t child);

/* --- files.c, with tar_out.c and tar_in.c --- */

/* In the loop, with what CONFIGURE says. */
void files_configured(struct fields fields);
/* As container_spawn_exec, for FILES. */
pid_t files_spawn(const struct start *start, pid_t main_pid, int report);
void files_thaw(void);

/* --- user.c: pure --- */

/* Resolve Docker's user string with the text of /etc/passwd and /etc/group (either may be empty).
 * False fills message with Docker's words. The identity's memory is never freed: it lives until exec. */
bool identity_resolve(const char *user, char *const *group_add, const char *passwd, const char *group,
                      struct identity *identity, char *message, size_t message_size);

/* --- cgroup.c, devices.c, stats.c, table.c --- */

/* In the template, in a child: errors through fail(). Nothing is forbidden before restrict_devices. */
void prepare_device_rules(void);
void restrict_devices(void);

void cgroup_prepare(void);
/* Make the workload's group in the one that is mounted. */
void cgroup_divide(void);
bool cgroup_limit(const char *name, uint64_t limit);
uint64_t cgroup_event(const char *file, const char *key);
uint64_t cgroup_number(const char *file);
void cgroup_join(void);
/* Read a small file whole; returns its length, 0 when it cannot be read. Always NUL-terminated. */
size_t read_text(const char *path, char *text, size_t size);
void stats_answer(const struct request *request);

/* oom.c */
void oom_watch(const struct request *request);
void table_answer(const struct request *request);

#endif
