/* SPDX-License-Identifier: Apache-2.0 */
/*
 * probe COMMAND... [OPTION VALUE]...
 *
 * Commands: cpu memory syscall switch disk net look, all (the measures, not look); each may be given with others.
 *   hello   prints one line and ends: for timing a start
 *   sleep   prints one line and waits to be ended: for weighing what stands behind an idle container
 *   serve   the peer of net; prints where it listens
 * Options: --seconds S (each measure, 0.1), --size MIB (disk, 16), --dir PATH (disk, /), --peer HOST:PORT (net),
 *   --address HOST and --port N (serve, 127.0.0.1 and any).
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "probe.h"

static void end(int number)
{
    (void)number;
    _exit(0);
}

_Noreturn static void idle(void)
{
    /* As process 1 a signal without a handler would be ignored. */
    signal(SIGTERM, end);
    signal(SIGINT, end);
    puts("ready");
    fflush(stdout);
    for (;;)
        pause();
}

static int usage(void)
{
    fputs("usage: probe cpu|memory|syscall|switch|disk|net|look|all|hello|sleep|serve...\n"
          "             [--seconds S] [--size MIB] [--dir PATH] [--peer HOST:PORT] [--address HOST] [--port N]\n",
          stderr);
    return 2;
}

static bool set_option(struct options *options, const char *name, const char *value)
{
    if (strcmp(name, "--seconds") == 0)
        options->seconds = atof(value);
    else if (strcmp(name, "--size") == 0)
        options->mebibytes = (unsigned)atoi(value);
    else if (strcmp(name, "--dir") == 0)
        options->directory = value;
    else if (strcmp(name, "--peer") == 0)
        options->peer = value;
    else if (strcmp(name, "--address") == 0)
        options->address = value;
    else if (strcmp(name, "--port") == 0)
        options->port = (unsigned)atoi(value);
    else
        return false;
    return true;
}

static bool run(const char *command, const struct options *options)
{
    static const struct {
        const char *name;
        void (*measure)(const struct options *);
        bool in_all;
    } MEASURES[] = {{"cpu", measure_cpu, true},       {"memory", measure_memory, true},
                    {"syscall", measure_syscall, true}, {"switch", measure_switch, true},
                    {"disk", measure_disk, true},     {"net", measure_net, true}};
    bool all = strcmp(command, "all") == 0, found = all;
    for (size_t i = 0; i < sizeof MEASURES / sizeof *MEASURES; i++)
        if ((all && MEASURES[i].in_all) || strcmp(command, MEASURES[i].name) == 0) {
            MEASURES[i].measure(options);
            found = true;
        }
    if (strcmp(command, "look") == 0) {
        look();
        found = true;
    }
    return found;
}

int main(int argc, char **argv)
{
    struct options options = {
        .seconds = 0.1, .mebibytes = 16, .directory = "/", .address = "127.0.0.1"};
    int commands = 1;
    while (commands < argc && strncmp(argv[commands], "--", 2) != 0)
        commands++;
    for (int i = commands; i < argc; i += 2)
        if (i + 1 >= argc || !set_option(&options, argv[i], argv[i + 1]))
            return usage();
    if (commands == 1)
        return usage();
    if (strcmp(argv[1], "hello") == 0) {
        puts("hello");
        return 0;
    }
    if (strcmp(argv[1], "sleep") == 0)
        idle();
    if (strcmp(argv[1], "serve") == 0)
        return serve(&options);
    for (int i = 1; i < commands; i++)
        if (!run(argv[i], &options))
            return usage();
    return 0;
}
