/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FUSE messages on a stream socket. Owns framing and the bounds of every argument; knows no operation.
 *
 * /dev/fuse gives one message per read; a stream has no such borders, so a message's own length field is the
 * frame. A length that cannot be is the end of the session: after it nothing in the stream can be trusted.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "server.h"

#define INPUT_SIZE (2 * MAX_MESSAGE)

static int fill(struct server *server)
{
    for (;;) {
        ssize_t got = read(server->socket, server->in + server->in_length, INPUT_SIZE - server->in_length);
        if (got > 0) {
            server->in_length += (size_t)got;
            return 0;
        }
        if (got == 0)
            return server->in_length ? EPROTO : ECONNRESET;
        if (errno != EINTR)
            return errno;
    }
}

static int next_message(struct server *server, size_t *length)
{
    while (server->in_length < sizeof(struct fuse_in_header)) {
        int error = fill(server);
        if (error)
            return error;
    }
    uint32_t claimed = ((const struct fuse_in_header *)(const void *)server->in)->len;
    if (claimed < sizeof(struct fuse_in_header) || claimed > MAX_MESSAGE)
        return EPROTO;
    while (server->in_length < claimed) {
        int error = fill(server);
        if (error)
            return error;
    }
    *length = claimed;
    return 0;
}

int wire_serve(struct server *server)
{
    for (;;) {
        size_t length;
        int error = next_message(server, &length);
        if (error)
            return error == ECONNRESET ? 0 : error;
        struct request request = {
            .server = server,
            .header = (const void *)server->in,
            .next = server->in + sizeof(struct fuse_in_header),
            .left = length - sizeof(struct fuse_in_header),
        };
        dispatch(&request);
        if (server->socket < 0)
            return EPIPE;
        /* The next message moves to the start, where its 64-bit fields are aligned. */
        server->in_length -= length;
        memmove(server->in, server->in + length, server->in_length);
    }
}

const void *take(struct request *request, size_t size)
{
    if (request->left < size)
        return NULL;
    const void *taken = request->next;
    request->next += size;
    request->left -= size;
    return taken;
}

int take_string(struct request *request, const char **string)
{
    const uint8_t *end = memchr(request->next, 0, request->left);
    if (!end)
        return EINVAL;
    *string = take(request, (size_t)(end - request->next) + 1);
    return 0;
}

int take_name(struct request *request, const char **name)
{
    int error = take_string(request, name);
    if (error)
        return error;
    size_t length = strlen(*name);
    if (length > 255)
        return ENAMETOOLONG;
    /* The guest's kernel never sends these. A guest that does wants to leave the export. */
    if (length == 0 || strchr(*name, '/') || strcmp(*name, ".") == 0 || strcmp(*name, "..") == 0)
        return EINVAL;
    return 0;
}

static void send_all(struct server *server, struct iovec *parts, int count)
{
    while (count) {
        ssize_t sent = writev(server->socket, parts, count);
        if (sent < 0) {
            if (errno == EINTR)
                continue;
            close(server->socket);
            server->socket = -1;
            return;
        }
        while (count && (size_t)sent >= parts->iov_len) {
            sent -= (ssize_t)parts->iov_len;
            parts++;
            count--;
        }
        if (count) {
            parts->iov_base = (uint8_t *)parts->iov_base + sent;
            parts->iov_len -= (size_t)sent;
        }
    }
}

int reply(struct request *request, const void *data, size_t size)
{
    struct fuse_out_header header = {
        .len = (uint32_t)(sizeof header + size), .error = 0, .unique = request->header->unique};
    struct iovec parts[] = {{&header, sizeof header}, {(void *)(uintptr_t)data, size}};
    send_all(request->server, parts, size ? 2 : 1);
    return 0;
}

void reply_error(struct request *request, int error)
{
    struct fuse_out_header header = {
        .len = sizeof header, .error = -error, .unique = request->header->unique};
    struct iovec part = {&header, sizeof header};
    send_all(request->server, &part, 1);
}
