/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fs-server: serves directories and files of the host to one guest, as a FUSE file system, over a unix socket.
 *
 *   fs-server (--listen PATH | --connect PATH | --fd N) [--owner UID:GID] [--ready-fd N]
 *             (--export-rw PATH | --export-ro PATH)...
 *
 * Exit status: 0 the peer closed the socket; 1 it could not start; 2 the command line is wrong; 3 the peer
 * broke the protocol. Messages go to standard error, one line each.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "sandbox.h"
#include "server.h"

#define MAX_EXPORTS 4096
#define RESERVED_FDS 64        /* standard streams, socket, mounts, one operation's own */
#define ENOUGH_OPEN_INODES 16384

struct options {
    const char *listen, *connect;
    int fd, ready_fd;
    bool owned;
    unsigned owner, group;
    struct export *exports;
    uint32_t export_count;
};

static void fail(const char *what, const char *object)
{
    fprintf(stderr, "fs-server: cannot %s%s%s: %s\n", what, object ? " " : "", object ? object : "",
            strerror(errno));
    exit(1);
}

static void usage(const char *reason)
{
    fprintf(stderr,
            "fs-server: %s\n"
            "usage: fs-server (--listen PATH | --connect PATH | --fd N) [--owner UID:GID] [--ready-fd N]\n"
            "                 (--export-rw PATH | --export-ro PATH)...\n",
            reason);
    exit(2);
}

static int number(const char *text)
{
    char *end;
    long value = strtol(text, &end, 10);
    if (*end || end == text || value < 0 || value > 1 << 20)
        usage("a file descriptor is a small number");
    return (int)value;
}

static void parse(int argc, char **argv, struct options *options)
{
    for (int index = 1; index < argc; index += 2) {
        const char *name = argv[index], *value = index + 1 < argc ? argv[index + 1] : NULL;
        if (!value)
            usage("an option lacks its value");
        if (strcmp(name, "--listen") == 0) {
            options->listen = value;
        } else if (strcmp(name, "--connect") == 0) {
            options->connect = value;
        } else if (strcmp(name, "--fd") == 0) {
            options->fd = number(value);
        } else if (strcmp(name, "--ready-fd") == 0) {
            options->ready_fd = number(value);
        } else if (strcmp(name, "--owner") == 0) {
            if (sscanf(value, "%u:%u", &options->owner, &options->group) != 2)
                usage("--owner is UID:GID");
            options->owned = true;
        } else if (strcmp(name, "--export-rw") == 0 || strcmp(name, "--export-ro") == 0) {
            if (options->export_count == MAX_EXPORTS)
                usage("too many exports");
            options->exports[options->export_count++] =
                (struct export){.path = value, .read_only = name[10] == 'o'};
        } else {
            usage("unknown option");
        }
    }
    if (!options->listen + !options->connect + (options->fd < 0) != 2)
        usage("give one of --listen, --connect and --fd");
    if (options->export_count == 0)
        usage("nothing to export");
}

static int open_socket(const struct options *options)
{
    if (options->fd >= 0)
        return options->fd;
    const char *path = options->listen ? options->listen : options->connect;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        usage("the socket's path is longer than 107 bytes");
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail("make a socket", NULL);
    if (options->connect) {
        if (connect(fd, (void *)&address, sizeof address) != 0)
            fail("connect to", path);
        return fd;
    }
    umask(0177);
    if (bind(fd, (void *)&address, sizeof address) != 0)
        fail("bind", path);
    if (options->owned && chown(path, options->owner, options->group) != 0)
        fail("give away", path);
    if (listen(fd, 1) != 0)
        fail("listen on", path);
    return fd;
}

/* How many fds may be used for what. All the rest of the limit is for open files. */
static void divide_fds(struct server *server)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        fail("read the limit of open files", NULL);
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        getrlimit(RLIMIT_NOFILE, &limit);
    uint64_t all = limit.rlim_cur > 1 << 20 ? 1 << 20 : limit.rlim_cur;
    uint64_t usable = all > 2 * RESERVED_FDS + 2 * (uint64_t)server->export_count
                          ? all - RESERVED_FDS - server->export_count
                          : RESERVED_FDS;
    server->max_open_inodes = (uint32_t)(usable / 2 > ENOUGH_OPEN_INODES ? ENOUGH_OPEN_INODES : usable / 2);
    server->max_handles = (uint32_t)(usable - server->max_open_inodes);
}

static void allocate(struct server *server)
{
    server->in = malloc(2 * MAX_MESSAGE);
    server->out = malloc(MAX_REPLY);
    server->bucket_count = 256;
    server->buckets = calloc(server->bucket_count, sizeof *server->buckets);
    if (!server->in || !server->out || !server->buckets)
        fail("allocate memory", NULL);
}

int main(int argc, char **argv)
{
    struct export exports[MAX_EXPORTS];
    struct options options = {.fd = -1, .ready_fd = -1, .exports = exports};
    parse(argc, argv, &options);
    struct server server = {.exports = exports, .export_count = options.export_count};
    signal(SIGPIPE, SIG_IGN);
    for (uint32_t index = 0; index < server.export_count; index++) {
        const char *failed = sandbox_open_export(&exports[index]);
        if (failed)
            fail(failed, exports[index].path);
    }
    divide_fds(&server);
    allocate(&server);
    int opened = open_socket(&options);
    const char *failed = sandbox_enter();
    if (!failed)
        failed = sandbox_filter();
    if (failed)
        fail(failed, NULL);
    if (options.ready_fd >= 0) {
        if (write(options.ready_fd, "\n", 1) != 1)
            fail("report readiness", NULL);
        close(options.ready_fd);
    }
    server.socket = opened;
    if (options.listen) {
        do
            server.socket = accept4(opened, NULL, NULL, SOCK_CLOEXEC);
        while (server.socket < 0 && errno == EINTR);
        if (server.socket < 0)
            fail("accept", NULL);
        close(opened);
    }
    int error = wire_serve(&server);
    if (error == EPROTO)
        fprintf(stderr, "fs-server: the peer broke the protocol\n");
    return error == EPROTO ? 3 : 0;
}
