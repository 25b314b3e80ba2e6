/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which devices the container may open: a BPF program on its control group, attached in the template. CONFIGURE runs
 * in that group and needs the disks, so the program allows all until a flag is set, in a map that the agent and the
 * main process have in their memory: setting it costs no system call.
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
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_INSTRUCTIONS 64

enum { RESULT = BPF_REG_0, CONTEXT = BPF_REG_1, ACCESS = BPF_REG_2, KIND = BPF_REG_3, MAJOR = BPF_REG_4, MINOR = BPF_REG_5 };

/* Character devices that may be opened; minor -1 is any. */
static const struct {
    int major, minor;
} allowed[] = {{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9},  /* null zero full random urandom */
               {5, 0}, {5, 1}, {5, 2}, {136, -1}};      /* tty console ptmx, pts */

static volatile uint32_t *restricted;

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

static void write_program(struct program *program, int map)
{
    /* The address of the map's value takes two instructions. */
    emit(program, BPF_LD | BPF_DW | BPF_IMM, ACCESS, BPF_PSEUDO_MAP_VALUE, 0, map);
    emit(program, 0, 0, 0, 0, 0);
    emit(program, BPF_LDX | BPF_MEM | BPF_W, ACCESS, ACCESS, 0, 0);
    emit(program, BPF_JMP | BPF_JNE | BPF_K, ACCESS, 0, 2, 0);
    emit_answer(program, 1);
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

static bool attach(int program)
{
    int group = open(CGROUP, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.target_fd = (__u32)group;
    attributes.attach_bpf_fd = (__u32)program;
    attributes.attach_type = BPF_CGROUP_DEVICE;
    bool done = group >= 0 && bpf(BPF_PROG_ATTACH, &attributes) == 0;
    int error = errno;
    close(group);
    errno = error;
    return done;
}

/* A map of one number, in our memory too; returns its descriptor, -1 with errno. */
static int make_flag(void)
{
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.map_type = BPF_MAP_TYPE_ARRAY;
    attributes.key_size = attributes.value_size = sizeof(uint32_t);
    attributes.max_entries = 1;
    attributes.map_flags = BPF_F_MMAPABLE;
    int map = bpf(BPF_MAP_CREATE, &attributes);
    void *memory = map < 0 ? MAP_FAILED : mmap(NULL, sizeof *restricted, PROT_READ | PROT_WRITE, MAP_SHARED, map, 0);
    if (memory == MAP_FAILED)
        return -1;
    restricted = memory;
    *restricted = 0; /* and have the page */
    return map;
}

void prepare_device_rules(void)
{
    struct program program = {.length = 0};
    union bpf_attr attributes;
    int map = make_flag();
    write_program(&program, map);
    memset(&attributes, 0, sizeof attributes);
    attributes.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
    attributes.insns = (__u64)(uintptr_t)program.code;
    attributes.insn_cnt = program.length;
    attributes.license = (__u64)(uintptr_t) "Apache-2.0";
    int fd = map < 0 ? -1 : bpf(BPF_PROG_LOAD, &attributes);
    /* Another kernel may lack it; the machine's wall stands all the same. */
    if (fd < 0 || !attach(fd))
        say("device rules: %s", strerror(errno));
    close(fd);
    close(map);
}

void restrict_devices(void)
{
    if (restricted)
        *restricted = 1;
}
