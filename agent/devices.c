/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which devices the container may open: a BPF program on its control group, attached in the template.
 *
 * Docker's default list: every node may be made, only the harmless ones opened. Without it CAP_MKNOD, which
 * Docker gives by default, would open the guest's disks and ports.
 * Source: Linux, Documentation/admin-guide/cgroup-v2.rst, Device controller; linux/bpf.h, bpf_cgroup_dev_ctx.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_INSTRUCTIONS 64

enum { RESULT = BPF_REG_0, CONTEXT = BPF_REG_1, ACCESS = BPF_REG_2, KIND = BPF_REG_3, MAJOR = BPF_REG_4, MINOR = BPF_REG_5 };

/* Character devices that may be opened; minor -1 is any. */
static const struct {
    int major, minor;
} allowed[] = {{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9},  /* null zero full random urandom */
               {5, 0}, {5, 1}, {5, 2}, {136, -1}};      /* tty console ptmx, pts */

struct program {
    struct bpf_insn code[MAX_INSTRUCTIONS];
    unsigned length;
};

static void emit(struct program *program, unsigned code, unsigned target, unsigned source, int offset, int value)
{
    program->code[program->length++] = (struct bpf_insn){.code = (__u8)code,
                                                         .dst_reg = target & 0xf,
                                                         .src_reg = source & 0xf,
                                                         .off = (__s16)offset,
                                                         .imm = value};
}

static void emit_answer(struct program *program, int answer)
{
    emit(program, BPF_ALU64 | BPF_MOV | BPF_K, RESULT, 0, 0, answer);
    emit(program, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
}

static void write_program(struct program *program)
{
    /* access_type holds the device's type in its lower half and the accesses in its upper one. */
    emit(program, BPF_LDX | BPF_MEM | BPF_W, ACCESS, CONTEXT, offsetof(struct bpf_cgroup_dev_ctx, access_type), 0);
    emit(program, BPF_ALU64 | BPF_MOV | BPF_X, KIND, ACCESS, 0, 0);
    emit(program, BPF_ALU64 | BPF_AND | BPF_K, KIND, 0, 0, 0xffff);
    emit(program, BPF_ALU64 | BPF_RSH | BPF_K, ACCESS, 0, 0, 16);
    emit(program, BPF_LDX | BPF_MEM | BPF_W, MAJOR, CONTEXT, offsetof(struct bpf_cgroup_dev_ctx, major), 0);
    emit(program, BPF_LDX | BPF_MEM | BPF_W, MINOR, CONTEXT, offsetof(struct bpf_cgroup_dev_ctx, minor), 0);
    emit(program, BPF_JMP | BPF_JNE | BPF_K, ACCESS, 0, 2, BPF_DEVCG_ACC_MKNOD);
    emit_answer(program, 1);
    emit(program, BPF_JMP | BPF_JEQ | BPF_K, KIND, 0, 2, BPF_DEVCG_DEV_CHAR);
    emit_answer(program, 0);
    for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++) {
        bool any = allowed[i].minor < 0;
        emit(program, BPF_JMP | BPF_JNE | BPF_K, MAJOR, 0, any ? 2 : 3, allowed[i].major);
        if (!any)
            emit(program, BPF_JMP | BPF_JNE | BPF_K, MINOR, 0, 2, allowed[i].minor);
        emit_answer(program, 1);
    }
    emit_answer(program, 0);
}

static int bpf(enum bpf_cmd command, union bpf_attr *attributes)
{
    return (int)syscall(SYS_bpf, command, attributes, sizeof *attributes);
}

static bool change(enum bpf_cmd command, int program)
{
    int group = open(CGROUP, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.target_fd = (__u32)group;
    attributes.attach_bpf_fd = (__u32)program;
    attributes.attach_type = BPF_CGROUP_DEVICE;
    bool done = group >= 0 && bpf(command, &attributes) == 0;
    int error = errno;
    close(group);
    errno = error;
    return done;
}

void restrict_devices(void)
{
    struct program program = {.length = 0};
    union bpf_attr attributes;
    write_program(&program);
    memset(&attributes, 0, sizeof attributes);
    attributes.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
    attributes.insns = (__u64)(uintptr_t)program.code;
    attributes.insn_cnt = program.length;
    attributes.license = (__u64)(uintptr_t) "Apache-2.0";
    int fd = bpf(BPF_PROG_LOAD, &attributes);
    /* Another kernel may lack it; the machine's wall stands all the same. */
    if (fd < 0 || !change(BPF_PROG_ATTACH, fd))
        say("device rules: %s", strerror(errno));
    close(fd);
}

void allow_devices(void)
{
    if (!change(BPF_PROG_DETACH, 0) && errno != ENOENT && errno != EINVAL)
        fail_errno("device rules");
}
