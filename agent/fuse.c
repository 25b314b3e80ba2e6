/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The share: a FUSE mount whose messages two processes carry between /dev/fuse and the port proa.fs, one in each
 * direction. Both block in read, which costs two system calls a message and nothing at rest. The mount is made in the
 * template, where nobody serves it; what the kernel asks first waits for a clone that has shares.
 *
 * When the host's server goes away both end, and with their descriptors the connection: accesses fail with
 * ENOTCONN instead of waiting for ever. Source: linux/fuse.h.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <unistd.h>

#define MESSAGE_SIZE ((1u << 20) + 65536u) /* the kernel's largest write (256 pages) and its headers */
#define HEADER_SIZE 16u                    /* of fuse_out_header, the shorter one */
#define SERVER_WAIT_MS 5000

static int device = -1;

static bool write_all(int fd, const uint8_t *bytes, size_t size)
{
    while (size > 0) {
        ssize_t written = write(fd, bytes, size);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return false;
        bytes += written;
        size -= (size_t)written;
    }
    return true;
}

static void carry_requests(uint8_t *message)
{
    for (;;) {
        ssize_t size = read(device, message, MESSAGE_SIZE);
        if (size < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT))
            continue; /* ENOENT: the request was taken back while it was read */
        if (size <= 0 || !write_all(ports.fs, message, (size_t)size))
            return;
    }
}

static void carry_replies(uint8_t *messages)
{
    size_t have = 0;
    for (;;) {
        ssize_t size = read(ports.fs, messages + have, MESSAGE_SIZE - have);
        if (size < 0 && errno == EINTR)
            continue;
        if (size <= 0)
            return; /* the server has left */
        have += (size_t)size;
        size_t at = 0;
        while (have - at >= HEADER_SIZE) {
            uint32_t length = get_u32(messages + at);
            if (length < HEADER_SIZE || length > MESSAGE_SIZE)
                return;
            if (have - at < length)
                break;
            /* ENOENT: nobody waits for this reply any more. */
            if (write(device, messages + at, length) < 0 && errno != ENOENT && errno != EINVAL)
                return;
            at += length;
        }
        memmove(messages, messages + at, have - at);
        have -= at;
    }
}

void share_require(void)
{
    struct pollfd poll_fd = {.fd = ports.fs, .events = POLLOUT};
    if (ports.fs < 0)
        fail(128, "the machine has no port proa.fs");
    for (int waited = 0; waited < SERVER_WAIT_MS; waited += 5) {
        if (poll(&poll_fd, 1, 0) >= 0 && !(poll_fd.revents & POLLHUP))
            return;
        usleep(5000);
    }
    fail(128, "the host's file server is not there");
}

static void __attribute__((noreturn)) run_relay(void)
{
    uint8_t *message = malloc(MESSAGE_SIZE);
    pid_t parent = getpid();
    for (int fd = STDERR_FILENO + 1; fd < 256; fd++) /* pipes kept open here would never end for their readers */
        if (fd != device && fd != ports.fs)
            close(fd);
    if (!message)
        _exit(1);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_NAME, "proa-fs-reply");
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        carry_replies(message);
        kill(parent, SIGKILL);
        _exit(0);
    }
    prctl(PR_SET_NAME, "proa-fs-request");
    carry_requests(message);
    if (child > 0)
        kill(child, SIGKILL);
    _exit(0);
}

bool share_prepare(void)
{
    char options[128];
    device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", device);
    return device >= 0 && mount("proa", SHARE, "fuse.proa", 0, options) == 0;
}

void share_leave(void)
{
    close(device);
}

void share_carry(struct fields fields)
{
    struct field field;
    bool wanted = false;
    while (fields_next(&fields, &field))
        wanted = wanted || (field.key == K_MOUNT && fields_u32(field_fields(&field), K_KIND, 0) == MOUNT_SHARE);
    pid_t relay = wanted ? fork() : -1;
    if (relay == 0)
        run_relay();
    if (!wanted)
        return;
    close(device); /* so that the share ends with its relay */
    device = -1;
}
