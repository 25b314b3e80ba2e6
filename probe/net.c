/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TCP against "probe serve" on the other side. A client's first byte says what it wants of the connection:
 *   'e' every byte is echoed; 's' the server swallows; 'd' the server sends until the client hangs up.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "probe.h"

#define CHUNK (64u << 10)
#define SILENCE_S 5 /* a connection on which nothing moves for so long has failed */

static char chunk[CHUNK];

static bool parse_address(const char *text, struct sockaddr_in *address)
{
    char host[64];
    unsigned port;
    *address = (struct sockaddr_in){.sin_family = AF_INET};
    if (sscanf(text, "%63[0-9.]:%u", host, &port) != 2 || port > 65535 ||
        inet_pton(AF_INET, host, &address->sin_addr) != 1) {
        errno = EINVAL;
        return false;
    }
    address->sin_port = htons((uint16_t)port);
    return true;
}

static void set_up(int fd)
{
    int one = 1;
    struct timeval limit = {.tv_sec = SILENCE_S};
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

static int dial(const struct options *options, const char *measure, char wish)
{
    struct sockaddr_in address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0)
        set_up(fd);
    if (fd < 0 || !parse_address(options->peer, &address) ||
        connect(fd, (void *)&address, sizeof address) != 0 || write(fd, &wish, 1) != 1) {
        emit_error(measure, options->peer);
        if (fd >= 0)
            close(fd);
        return -1;
    }
    return fd;
}

static void round_trip(const struct options *options)
{
    int fd = dial(options, "net_round_trip", 'e');
    if (fd < 0)
        return;
    char byte = 'x';
    uint64_t count = 0;
    double start = now(), elapsed;
    do {
        for (int i = 0; i < 5; i++)
            if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1) {
                emit_error("net_round_trip", "echo");
                close(fd);
                return;
            }
        count += 5;
        elapsed = now() - start;
    } while (elapsed < options->seconds);
    close(fd);
    emit_value("net_round_trip", elapsed * 1e6 / (double)count, "us",
               "one byte over TCP to the host and back, mean");
}

static void throughput(const struct options *options, const char *measure, char wish)
{
    int fd = dial(options, measure, wish);
    if (fd < 0)
        return;
    uint64_t total = 0;
    double start = now(), elapsed;
    do {
        ssize_t moved = wish == 's' ? write(fd, chunk, CHUNK) : read(fd, chunk, CHUNK);
        if (moved <= 0) {
            if (moved == 0)
                errno = ECONNRESET;
            emit_error(measure, "transfer");
            close(fd);
            return;
        }
        total += (uint64_t)moved;
        elapsed = now() - start;
    } while (elapsed < options->seconds);
    close(fd);
    emit_value(measure, (double)total / elapsed / 1e6, "MB/s",
               wish == 's' ? "one TCP stream to the host" : "one TCP stream from the host");
}

void measure_net(const struct options *options)
{
    if (!options->peer) {
        errno = EDESTADDRREQ;
        emit_error("net_round_trip", "no --peer");
        return;
    }
    signal(SIGPIPE, SIG_IGN);
    round_trip(options);
    throughput(options, "net_send", 's');
    throughput(options, "net_receive", 'd');
}

/* --- the other side --- */

static void answer(int fd)
{
    char wish;
    set_up(fd);
    if (read(fd, &wish, 1) == 1) {
        ssize_t moved = 1;
        while (moved > 0) {
            if (wish == 'e') {
                moved = read(fd, chunk, CHUNK);
                if (moved > 0)
                    moved = write(fd, chunk, (size_t)moved);
            } else {
                moved = wish == 's' ? read(fd, chunk, CHUNK) : write(fd, chunk, CHUNK);
            }
        }
    }
    _exit(0);
}

int serve(const struct options *options)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options->port)};
    socklen_t size = sizeof address;
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || inet_pton(AF_INET, options->address, &address.sin_addr) != 1 ||
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0 ||
        bind(fd, (void *)&address, sizeof address) != 0 || listen(fd, 16) != 0 ||
        getsockname(fd, (void *)&address, &size) != 0) {
        emit_error("serve", options->address);
        return 1;
    }
    signal(SIGCHLD, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    printf("{\"serving\": \"%s:%u\"}\n", options->address, ntohs(address.sin_port));
    fflush(stdout);
    pid_t parent = getpid();
    for (;;) {
        int client = accept(fd, NULL, NULL);
        if (client < 0 && errno != EINTR && errno != ECONNABORTED)
            return 1;
        if (client < 0)
            continue;
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent)
                _exit(0);
            answer(client);
        }
        close(client);
    }
}
