/* SPDX-License-Identifier: Apache-2.0 */
/*
 * probe: measures and looks around from inside any hull, needing nothing of the image it runs in.
 *
 * Every result is one line of JSON on standard output:
 *   {"measure": "cpu", "value": 123456.0, "unit": "hashes/s", "method": "…"}
 *   {"measure": "disk_read", "error": "open: No space left on device"}
 * A measure that fails says why and the others go on.
 */
#ifndef PROA_PROBE_H
#define PROA_PROBE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct options {
    double seconds;        /* how long each measure runs */
    unsigned mebibytes;    /* size of the disk measure's file */
    const char *directory; /* where that file is made */
    const char *peer;      /* HOST:PORT of "probe serve", or NULL */
    const char *address;   /* serve: where to listen */
    unsigned port;         /* serve: 0 for any */
};

/* emit.c */
void emit_value(const char *measure, double value, const char *unit, const char *method);
void emit_error(const char *measure, const char *what); /* adds strerror(errno) */
void emit_text(const char *text);                       /* a JSON string, quoted and escaped */
double now(void);                                       /* seconds, monotonic */

void measure_cpu(const struct options *options);
void measure_memory(const struct options *options);
void measure_syscall(const struct options *options);
void measure_switch(const struct options *options);
void measure_disk(const struct options *options);
void measure_net(const struct options *options);
int serve(const struct options *options);
void look(void);

/* What became of every system call when it was tried, harmlessly. */
struct syscall_census {
    unsigned tried, passed, denied, missing, killed; /* killed: SIGSYS */
};
bool count_syscalls(struct syscall_census *census);

#endif
