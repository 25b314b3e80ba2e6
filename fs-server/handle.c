/* SPDX-License-Identifier: Apache-2.0 */
/* Open files and directories of the guest. Each owns one fd; their number is bounded by the fd limit. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "server.h"

int handle_add(struct server *server, int fd, bool directory, uint64_t *id)
{
    struct handle *handle = calloc(1, sizeof *handle);
    if (handle) {
        handle->fd = fd;
        handle->directory = directory;
        handle->id = table_add(&server->handles, handle, server->max_handles);
    }
    if (!handle || !handle->id) {
        int error = handle ? ENFILE : ENOMEM;
        free(handle);
        if (fd >= 0)
            close(fd);
        return error;
    }
    *id = handle->id;
    return 0;
}

struct handle *handle_find(struct server *server, uint64_t id, bool directory)
{
    struct handle *handle = table_get(&server->handles, id);
    return handle && handle->directory == directory ? handle : NULL;
}

void handle_close(struct server *server, uint64_t id)
{
    struct handle *handle = table_get(&server->handles, id);
    if (!handle)
        return;
    table_remove(&server->handles, id);
    if (handle->fd >= 0)
        close(handle->fd);
    free(handle->entries);
    free(handle);
}

void handle_close_all(struct server *server)
{
    for (uint32_t slot = 0; slot < server->handles.size; slot++) {
        struct handle *handle = server->handles.slots[slot];
        if (handle)
            handle_close(server, handle->id);
    }
}
