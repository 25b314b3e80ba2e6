// SPDX-License-Identifier: Apache-2.0
// A reaper that speaks Ryuk's protocol, for the tests: the real image cannot be pulled here.
//
// A client connects to port 8080 and sends lines of filters ("label=a=b&label=c=d"), each answered with "ACK". When the
// last client has gone, and none comes back for RYUK_RECONNECTION_TIMEOUT seconds, every container, network and volume
// that fits a line is removed by the engine behind /var/run/docker.sock, and the reaper ends.
//
// Source: github.com/testcontainers/moby-ryuk, README.
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <netinet/in.h>
#include <unistd.h>

static char filters[8192]; // the JSON of a filters parameter, percent-encoded as far as it must be
static char answer[1 << 20];

// Make a request on a connection of its own; the answer is left in `answer`.
static void ask(const char *method, const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/var/run/docker.sock"};
    int engine = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(engine, (struct sockaddr *)&address, sizeof address) != 0) {
        perror("connect /var/run/docker.sock");
        exit(1);
    }
    dprintf(engine, "%s /v1.41%s HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", method, path);
    size_t length = 0;
    ssize_t got;
    while (length < sizeof answer - 1 && (got = read(engine, answer + length, sizeof answer - 1 - length)) > 0)
        length += (size_t)got;
    answer[length] = 0;
    close(engine);
}

// Remove all that a list names by a key. The list is read before the first removal overwrites it.
static int reap(const char *list, const char *key, const char *path, const char *options) {
    static char names[1000][80];
    char target[16384], mark[32];
    int count = 0;
    snprintf(target, sizeof target, "%s%cfilters=%s", list, strchr(list, '?') ? '&' : '?', filters);
    ask("GET", target);
    snprintf(mark, sizeof mark, "\"%s\":\"", key);
    for (char *at = answer; count < 1000 && (at = strstr(at, mark)) != NULL;) {
        at += strlen(mark);
        snprintf(names[count++], sizeof names[0], "%.*s", (int)strcspn(at, "\""), at);
    }
    for (int i = 0; i < count; i++) {
        snprintf(target, sizeof target, "%s/%.79s%s", path, names[i], options);
        ask("DELETE", target);
    }
    return count;
}

// Turn "label=a=b&label=c=d" into {"label":["a=b","c=d"]}. Only labels are used by testcontainers.
static void take_filters(char *line) {
    size_t used = (size_t)snprintf(filters, sizeof filters, "%%7B%%22label%%22%%3A%%5B");
    for (char *part = strtok(line, "&\r\n"); part != NULL && used < sizeof filters - 600; part = strtok(NULL, "&\r\n"))
        if (strncmp(part, "label=", 6) == 0)
            used += (size_t)snprintf(filters + used, sizeof filters - used, "%s%%22%.500s%%22",
                                     filters[used - 1] == '2' ? "%2C" : "", part + 6);
    snprintf(filters + used, sizeof filters - used, "%%5D%%7D");
}

int main(void) {
    const char *timeout = getenv("RYUK_RECONNECTION_TIMEOUT");
    int seconds = timeout != NULL && atoi(timeout) > 0 ? atoi(timeout) : 10;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(8080)};
    int server = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(server, (struct sockaddr *)&address, sizeof address) != 0 || listen(server, 16) != 0) {
        perror("listen on 8080");
        return 1;
    }
    printf("reaper Started!\n");
    fflush(stdout);
    struct pollfd waiting = {.fd = server, .events = POLLIN};
    while (poll(&waiting, 1, seconds * 1000) > 0) {
        int client = accept(server, NULL, NULL);
        char line[4096];
        ssize_t got;
        while ((got = read(client, line, sizeof line - 1)) > 0) {
            line[got] = 0;
            take_filters(line);
            dprintf(client, "ACK\n");
        }
        close(client);
    }
    if (filters[0] != 0) {
        int containers = reap("/containers/json?all=1", "Id", "/containers", "?force=1&v=1"); // they hold the others
        int networks = reap("/networks", "Id", "/networks", "");
        int volumes = reap("/volumes", "Name", "/volumes", "?force=1");
        printf("removed %d containers, %d networks, %d volumes\n", containers, networks, volumes);
    }
    return 0;
}
