/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the children of FILES share: files.c finds and dispatches, tar_out.c reads trees, tar_in.c writes them.
 * They work in the directory that they are in, in a root of their own.
 */
#ifndef PROA_AGENT_FILES_H
#define PROA_AGENT_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

/* Exit codes of a child; standard error says why. */
enum files_end { FILES_DONE = 0, FILES_INVALID = 1, FILES_MISSING = 2, FILES_FAILED = 3 };

void files_fail(enum files_end end, const char *format, ...) __attribute__((format(printf, 2, 3), noreturn));
/* The name of a file system of the kernel that must not be copied; NULL for any other. */
const char *files_kernel_system(int fd);

/* device: of the tree's root; below another one, file systems of the kernel come empty. upper: marks of overlays are kept. */
struct tar_walk {
    dev_t device;
    bool upper;
};

/* The working directory's content, named after prefix ("" for none). */
void tar_tree(const char *prefix, const struct tar_walk *walk);
/* The same with the directory itself before. */
void tar_directory(const char *name, const struct tar_walk *walk);
void tar_member(const char *here, const struct stat *status, const char *name, bool upper);
void tar_raw(const void *data, size_t size);
void tar_end(void);
void tar_flush(void);

struct unpack_rules {
    bool strict, owned; /* owned: all that is made belongs to uid and gid */
    uint32_t uid, gid;
    const char *path; /* of the directory, for messages */
};

/* Unpack standard input, as the host writes it, into the working directory. */
void tar_unpack(const struct unpack_rules *rules);

#endif
