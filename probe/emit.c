/* SPDX-License-Identifier: Apache-2.0 */
/* Results as lines of JSON, and the clock. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "probe.h"

double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

void emit_text(const char *text)
{
    putchar('"');
    for (const unsigned char *at = (const unsigned char *)text; *at; at++) {
        if (*at == '"' || *at == '\\')
            printf("\\%c", *at);
        else if (*at < 0x20 || *at >= 0x7f) /* what is not ASCII is shown byte by byte, as Latin-1 */
            printf("\\u%04x", *at);
        else
            putchar(*at);
    }
    putchar('"');
}

void emit_value(const char *measure, double value, const char *unit, const char *method)
{
    printf("{\"measure\": \"%s\", \"value\": %.6g, \"unit\": \"%s\", \"method\": ", measure, value, unit);
    emit_text(method);
    puts("}");
    fflush(stdout);
}

void emit_error(const char *measure, const char *what)
{
    char text[256];
    snprintf(text, sizeof text, "%s: %s", what, strerror(errno));
    printf("{\"measure\": \"%s\", \"error\": ", measure);
    emit_text(text);
    puts("}");
    fflush(stdout);
}
