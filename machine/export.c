/* SPDX-License-Identifier: Apache-2.0 */
/*
 * export DEVICE DIRECTORY: writes DIRECTORY as tar to DEVICE, after one page that says how it ended; the agent's code
 * makes the tar. export DEVICE: says that there was nothing, with the reason from standard input.
 *
 * The page: "done BYTES\n" or "failed MESSAGE\n". Read by proa.machines.reader.
 */
#define _GNU_SOURCE
#include "../agent/agent.h"
#include "../agent/files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define PAGE 4096

static int device = -1;

static void put_page(const char *text)
{
    char page[PAGE] = {0};
    snprintf(page, sizeof page, "%s\n", text);
    if (pwrite(device, page, sizeof page, 0) != (ssize_t)sizeof page || fsync(device) < 0)
        perror("export");
}

void files_fail(enum files_end end, const char *format, ...)
{
    char message[1000], text[1100];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    snprintf(text, sizeof text, "failed %s", message);
    put_page(text);
    _exit(end);
}

/* Only one file system is mounted below the directory. */
const char *files_kernel_system(int fd)
{
    (void)fd;
    return NULL;
}

int main(int argc, char **argv)
{
    struct stat status;
    if (argc < 2 || (device = open(argv[1], O_RDWR | O_CLOEXEC)) < 0) {
        perror("export");
        return 1;
    }
    if (argc == 2) {
        char reason[500] = {0};
        ssize_t size = read(STDIN_FILENO, reason, sizeof reason - 1);
        reason[size > 0 ? strcspn(reason, "\n") : 0] = 0;
        files_fail(FILES_INVALID, "%s", reason);
    }
    if (chdir(argv[2]) < 0 || stat(".", &status) < 0 || lseek(device, PAGE, SEEK_SET) < 0 ||
        dup2(device, STDOUT_FILENO) < 0)
        files_fail(FILES_FAILED, "%s", strerror(errno));
    struct tar_walk walk = {.device = status.st_dev};
    put_page("failed the disk for the archive is full"); /* unless what follows comes to its end */
    if (lseek(STDOUT_FILENO, PAGE, SEEK_SET) < 0)
        files_fail(FILES_FAILED, "%s", strerror(errno));
    tar_tree("", &walk);
    tar_end();
    off_t end = lseek(STDOUT_FILENO, 0, SEEK_CUR);
    if (end < 0 || fsync(STDOUT_FILENO) < 0)
        files_fail(FILES_FAILED, "%s", strerror(errno));
    char text[64];
    snprintf(text, sizeof text, "done %lld", (long long)end - PAGE);
    put_page(text);
    return 0;
}
