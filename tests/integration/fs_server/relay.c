/* SPDX-License-Identifier: Apache-2.0 */
/*
 * relay SOCKET MOUNTPOINT: what the guest agent does, on this host. Mounts FUSE at MOUNTPOINT and carries its
 * messages to and from fs-server's socket. Prints "mounted" once it has; ends when it is unmounted.
 *
 * One process reads /dev/fuse (a message a read), the other the stream (a message by its length field).
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static uint8_t buffer[1 << 20] __attribute__((aligned(8)));

static void read_all(int fd, void *data, size_t size)
{
    while (size) {
        ssize_t got = read(fd, data, size);
        if (got <= 0)
            _exit(0);
        data = (uint8_t *)data + got;
        size -= (size_t)got;
    }
}

static void write_all(int fd, const void *data, size_t size)
{
    while (size) {
        ssize_t sent = write(fd, data, size);
        if (sent <= 0)
            _exit(1);
        data = (const uint8_t *)data + sent;
        size -= (size_t)sent;
    }
}

static void replies(int from, int to)
{
    struct fuse_out_header *header = (void *)buffer;
    for (;;) {
        read_all(from, buffer, sizeof *header);
        if (header->len < sizeof *header || header->len > sizeof buffer)
            errx(1, "reply of %u bytes", header->len);
        read_all(from, buffer + sizeof *header, header->len - sizeof *header);
        /* ENOENT: the request was interrupted and nobody waits for its reply. */
        if (write(to, buffer, header->len) < 0 && errno != ENOENT && errno != EINTR)
            err(1, "write to /dev/fuse (%u bytes, error %d)", header->len, header->error);
    }
}

int main(int argc, char **argv)
{
    if (argc != 3)
        errx(2, "usage: relay SOCKET MOUNTPOINT");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
    int stream = socket(AF_UNIX, SOCK_STREAM, 0), fuse = open("/dev/fuse", O_RDWR);
    if (connect(stream, (void *)&address, sizeof address) != 0)
        err(1, "connect");
    if (fuse < 0)
        err(1, "/dev/fuse");
    char options[128];
    snprintf(options, sizeof options, "fd=%d,rootmode=40555,user_id=0,group_id=0,default_permissions,allow_other",
             fuse);
    pid_t parent = getpid();
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(0);
        replies(stream, fuse);
    }
    if (mount("proa.fs", argv[2], "fuse", MS_NODEV | MS_NOSUID, options) != 0)
        err(1, "mount");
    puts("mounted");
    fflush(stdout);
    for (;;) {
        ssize_t got = read(fuse, buffer, sizeof buffer);
        if (got < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT))
            continue;
        if (got <= 0)
            return errno == ENODEV ? 0 : 1;
        write_all(stream, buffer, (size_t)got);
    }
}
