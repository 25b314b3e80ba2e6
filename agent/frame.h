/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes to frames and fields, and back. Pure: no input or output, so that tests compile it for the host.
 *
 * Source: docs/reference/agent-protocol.md, sections 2 and 3.
 */
#ifndef PROA_AGENT_FRAME_H
#define PROA_AGENT_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire.h"

/* A growing byte queue: appended at the end, consumed at the front. */
struct buffer {
    uint8_t *data;
    size_t start, length, capacity;
    bool failed; /* memory ran out; what was appended since is missing */
};

uint8_t *buffer_reserve(struct buffer *buffer, size_t size);
void buffer_append(struct buffer *buffer, const void *data, size_t size);
void buffer_consume(struct buffer *buffer, size_t size);
/* Empty it; keeps its memory unless that is large. */
void buffer_clear(struct buffer *buffer);
void buffer_free(struct buffer *buffer);

static inline uint8_t *buffer_bytes(const struct buffer *buffer)
{
    return buffer->data + buffer->start;
}

uint32_t get_u32(const uint8_t *bytes);
void put_u32(uint8_t *bytes, uint32_t value);

/* --- frames --- */

struct frame {
    uint8_t type;
    uint32_t id;
    const uint8_t *payload;
    uint32_t length;
};

enum frame_status { FRAME_PARTIAL, FRAME_WHOLE, FRAME_BROKEN };

/* Look at the front of the bytes. FRAME_WHOLE fills frame; its size is FRAME_HEADER + frame->length. */
enum frame_status frame_parse(const uint8_t *bytes, size_t size, struct frame *frame);

/* Begin a frame whose payload follows; frame_end writes the length. Nothing else may be appended between. */
size_t frame_begin(struct buffer *out, uint8_t type, uint32_t id);
void frame_end(struct buffer *out, size_t mark);

/* Feed raw bytes; returns how many were used up to the end of the first marker, or 0 when there is none. */
size_t marker_scan(unsigned *matched, const uint8_t *bytes, size_t size);

/* --- fields --- */

struct fields {
    const uint8_t *bytes;
    size_t size;
};

struct field {
    uint16_t key;
    uint32_t length;
    const uint8_t *bytes;
};

/* Take the first field off; false at the end, or where the bytes are malformed (then fields->size is not 0). */
bool fields_next(struct fields *fields, struct field *field);
bool fields_valid(struct fields fields);
bool fields_find(struct fields fields, uint16_t key, struct field *found);
uint32_t fields_u32(struct fields fields, uint16_t key, uint32_t absent);
uint64_t fields_u64(struct fields fields, uint16_t key, uint64_t absent);
/* The n-th value of a key as a string of its own (malloc), or NULL when absent, with a NUL inside, or no memory. */
char *fields_string(struct fields fields, uint16_t key, unsigned n);
/* All values of a repeated string key, NULL-terminated; the array and strings are malloc'ed. */
char **fields_strings(struct fields fields, uint16_t key, unsigned extra);
uint32_t field_u32(const struct field *field);
static inline struct fields field_fields(const struct field *field)
{
    return (struct fields){field->bytes, field->length};
}

void put_field(struct buffer *out, uint16_t key, const void *bytes, size_t size);
void put_field_u32(struct buffer *out, uint16_t key, uint32_t value);
void put_field_u64(struct buffer *out, uint16_t key, uint64_t value);
void put_field_string(struct buffer *out, uint16_t key, const char *text);
size_t nested_begin(struct buffer *out, uint16_t key);
void nested_end(struct buffer *out, size_t mark);

#endif
