/* SPDX-License-Identifier: Apache-2.0 */
/* What asking the kernel costs: the cheapest system call, and a switch to another process and back. */
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "probe.h"

void measure_syscall(const struct options *options)
{
    double start = now(), elapsed;
    uint64_t count = 0;
    do {
        for (int i = 0; i < 1000; i++)
            syscall(SYS_getppid);
        count += 1000;
        elapsed = now() - start;
    } while (elapsed < options->seconds);
    emit_value("syscall", elapsed * 1e9 / (double)count, "ns", "getppid(), mean of a tight loop");
}

static void echo(int from, int to)
{
    char byte;
    while (read(from, &byte, 1) == 1 && write(to, &byte, 1) == 1)
        continue;
    _exit(0);
}

void measure_switch(const struct options *options)
{
    int there[2], back[2];
    if (pipe(there) != 0 || pipe(back) != 0) {
        emit_error("switch", "pipe");
        return;
    }
    pid_t child = fork();
    if (child < 0) {
        emit_error("switch", "fork");
        return;
    }
    if (child == 0) {
        close(there[1]);
        close(back[0]);
        echo(there[0], back[1]);
    }
    close(there[0]);
    close(back[1]);
    double start = now(), elapsed;
    uint64_t count = 0;
    char byte = 0;
    do {
        for (int i = 0; i < 20; i++)
            if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1) {
                emit_error("switch", "pipe");
                goto end;
            }
        count += 20;
        elapsed = now() - start;
    } while (elapsed < options->seconds);
    emit_value("switch", elapsed * 1e6 / (double)count, "us",
               "one byte to another process and back through two pipes, mean");
end:
    close(there[1]);
    close(back[0]);
    waitpid(child, NULL, 0);
}
