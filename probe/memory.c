/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory bandwidth, one core: a plain copy, and the triad of the STREAM benchmark (a = b + s * c). Bytes read and
 * bytes written both count, as STREAM counts them. Every page is there before the clock starts; the kernel puts
 * them there in one go, because a fault for each costs an emulated guest more than the measure itself.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "probe.h"

#define LARGEST (32u << 20) /* bytes of each of the three arrays; less where memory is short */

static size_t array_size(void)
{
    unsigned long long available = 0;
    char line[128];
    FILE *file = fopen("/proc/meminfo", "re");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "MemAvailable: %llu kB", &available) == 1)
            break;
    if (file)
        fclose(file);
    size_t size = LARGEST;
    while (available && size > 1 << 20 && size * 6 > available * 1024)
        size /= 2;
    return size;
}

static void triad(double *restrict a, const double *restrict b, const double *restrict c, size_t count)
{
    for (size_t i = 0; i < count; i++)
        a[i] = b[i] + 3.0 * c[i];
}

void measure_memory(const struct options *options)
{
    size_t size = array_size(), count = size / sizeof(double);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE;
    double *arrays = mmap(NULL, 3 * size, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (arrays == MAP_FAILED) {
        emit_error("memory_copy", "mmap");
        return;
    }
    double *a = arrays, *b = a + count, *c = b + count;
    char method[96];
    snprintf(method, sizeof method, "memcpy of %zu MiB, bytes read and written", size >> 20);
    double start = now(), elapsed;
    unsigned rounds = 0;
    do {
        memcpy(a, b, size);
        __asm__ volatile("" : : "r"(a) : "memory");
        rounds++;
        elapsed = now() - start;
    } while (elapsed < options->seconds);
    emit_value("memory_copy", 2.0 * (double)size * rounds / elapsed / 1e6, "MB/s", method);

    snprintf(method, sizeof method, "a = b + 3c over three arrays of %zu MiB (STREAM triad)", size >> 20);
    rounds = 0;
    start = now();
    do {
        triad(a, b, c, count);
        __asm__ volatile("" : : "r"(a) : "memory");
        rounds++;
        elapsed = now() - start;
    } while (elapsed < options->seconds);
    emit_value("memory_triad", 3.0 * (double)size * rounds / elapsed / 1e6, "MB/s", method);
    munmap(arrays, 3 * size);
}
