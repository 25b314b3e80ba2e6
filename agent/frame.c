/* SPDX-License-Identifier: Apache-2.0 */
/* Frames and fields; see frame.h. */
#include "frame.h"

#include <stdlib.h>
#include <string.h>

#define FIELD_HEADER 6u
#define KEPT_CAPACITY (256u * 1024)

/* --- the byte queue --- */

uint8_t *buffer_reserve(struct buffer *buffer, size_t size)
{
    if (buffer->start + buffer->length + size <= buffer->capacity)
        return buffer->data + buffer->start + buffer->length;
    if (buffer->start > 0) {
        memmove(buffer->data, buffer->data + buffer->start, buffer->length);
        buffer->start = 0;
    }
    if (buffer->length + size > buffer->capacity) {
        size_t capacity = buffer->capacity ? buffer->capacity : 4096;
        while (capacity < buffer->length + size)
            capacity *= 2;
        uint8_t *data = realloc(buffer->data, capacity);
        if (!data) {
            buffer->failed = true;
            return NULL;
        }
        buffer->data = data;
        buffer->capacity = capacity;
    }
    return buffer->data + buffer->length;
}

void buffer_append(struct buffer *buffer, const void *data, size_t size)
{
    if (size == 0)
        return;
    uint8_t *place = buffer_reserve(buffer, size);
    if (place) {
        memcpy(place, data, size);
        buffer->length += size;
    }
}

void buffer_consume(struct buffer *buffer, size_t size)
{
    buffer->start += size;
    buffer->length -= size;
    if (buffer->length == 0)
        buffer->start = 0;
}

void buffer_clear(struct buffer *buffer)
{
    if (buffer->capacity > KEPT_CAPACITY)
        buffer_free(buffer);
    buffer->start = buffer->length = 0;
    buffer->failed = false;
}

void buffer_free(struct buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct buffer){0};
}

/* --- numbers --- */

static uint16_t get_u16(const uint8_t *bytes)
{
    return (uint16_t)(bytes[0] | bytes[1] << 8);
}

uint32_t get_u32(const uint8_t *bytes)
{
    return get_u16(bytes) | (uint32_t)get_u16(bytes + 2) << 16;
}

static uint64_t get_u64(const uint8_t *bytes)
{
    return get_u32(bytes) | (uint64_t)get_u32(bytes + 4) << 32;
}

static void put_number(uint8_t *bytes, uint64_t value, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        bytes[i] = (uint8_t)(value >> 8 * i);
}

void put_u32(uint8_t *bytes, uint32_t value)
{
    put_number(bytes, value, 4);
}

/* --- frames --- */

static uint32_t payload_limit(uint8_t type)
{
    return type == DATA_STDIN || type == DATA_STDOUT || type == DATA_STDERR ? MAX_DATA : MAX_CONTROL;
}

enum frame_status frame_parse(const uint8_t *bytes, size_t size, struct frame *frame)
{
    if (size < FRAME_HEADER)
        return FRAME_PARTIAL;
    frame->length = get_u32(bytes);
    frame->type = bytes[4];
    frame->id = get_u32(bytes + 5);
    frame->payload = bytes + FRAME_HEADER;
    if (frame->length > payload_limit(frame->type))
        return FRAME_BROKEN;
    return size - FRAME_HEADER < frame->length ? FRAME_PARTIAL : FRAME_WHOLE;
}

size_t frame_begin(struct buffer *out, uint8_t type, uint32_t id)
{
    uint8_t header[FRAME_HEADER] = {0};
    header[4] = type;
    put_u32(header + 5, id);
    buffer_append(out, header, sizeof header);
    return out->length;
}

void frame_end(struct buffer *out, size_t mark)
{
    if (!out->failed)
        put_u32(buffer_bytes(out) + mark - FRAME_HEADER, (uint32_t)(out->length - mark));
}

size_t marker_scan(unsigned *matched, const uint8_t *bytes, size_t size)
{
    /* The marker's first byte does not occur again in it, so a mismatch can only restart at this byte. */
    static const uint8_t marker[MARKER_SIZE] = MARKER;
    size_t at = 0;
    while (at < size) {
        if (*matched == 0) {
            const uint8_t *first = memchr(bytes + at, marker[0], size - at);
            if (!first)
                return 0;
            at = (size_t)(first - bytes) + 1;
            *matched = 1;
        } else if (bytes[at] == marker[*matched]) {
            at++;
            if (++*matched == MARKER_SIZE) {
                *matched = 0;
                return at;
            }
        } else {
            *matched = 0;
        }
    }
    return 0;
}

/* --- fields --- */

bool fields_next(struct fields *fields, struct field *field)
{
    if (fields->size < FIELD_HEADER)
        return false;
    field->key = get_u16(fields->bytes);
    field->length = get_u32(fields->bytes + 2);
    field->bytes = fields->bytes + FIELD_HEADER;
    if (field->length > fields->size - FIELD_HEADER)
        return false;
    fields->bytes += FIELD_HEADER + field->length;
    fields->size -= FIELD_HEADER + field->length;
    return true;
}

bool fields_valid(struct fields fields)
{
    struct field field;
    while (fields_next(&fields, &field))
        ;
    return fields.size == 0;
}

static bool find_nth(struct fields fields, uint16_t key, unsigned n, struct field *found)
{
    while (fields_next(&fields, found))
        if (found->key == key && n-- == 0)
            return true;
    return false;
}

bool fields_find(struct fields fields, uint16_t key, struct field *found)
{
    return find_nth(fields, key, 0, found);
}

uint32_t field_u32(const struct field *field)
{
    return field->length == 4 ? get_u32(field->bytes) : 0;
}

uint32_t fields_u32(struct fields fields, uint16_t key, uint32_t absent)
{
    struct field field;
    return fields_find(fields, key, &field) && field.length == 4 ? get_u32(field.bytes) : absent;
}

uint64_t fields_u64(struct fields fields, uint16_t key, uint64_t absent)
{
    struct field field;
    return fields_find(fields, key, &field) && field.length == 8 ? get_u64(field.bytes) : absent;
}

static char *field_string(const struct field *field)
{
    if (memchr(field->bytes, 0, field->length))
        return NULL;
    char *text = malloc((size_t)field->length + 1);
    if (text) {
        memcpy(text, field->bytes, field->length);
        text[field->length] = 0;
    }
    return text;
}

char *fields_string(struct fields fields, uint16_t key, unsigned n)
{
    struct field field;
    return find_nth(fields, key, n, &field) ? field_string(&field) : NULL;
}

char **fields_strings(struct fields fields, uint16_t key, unsigned extra)
{
    size_t count = 0;
    struct fields rest = fields;
    struct field field;
    while (fields_next(&rest, &field))
        count += field.key == key;
    char **strings = calloc(count + extra + 1, sizeof *strings);
    size_t at = 0;
    while (strings && fields_next(&fields, &field))
        if (field.key == key && !(strings[at++] = field_string(&field)))
            return NULL; /* refused by the caller, who then ends or answers an error: nothing to free for */
    return strings;
}

void put_field(struct buffer *out, uint16_t key, const void *bytes, size_t size)
{
    uint8_t header[FIELD_HEADER];
    put_number(header, key, 2);
    put_number(header + 2, size, 4);
    buffer_append(out, header, sizeof header);
    buffer_append(out, bytes, size);
}

void put_field_u32(struct buffer *out, uint16_t key, uint32_t value)
{
    uint8_t bytes[4];
    put_number(bytes, value, 4);
    put_field(out, key, bytes, sizeof bytes);
}

void put_field_u64(struct buffer *out, uint16_t key, uint64_t value)
{
    uint8_t bytes[8];
    put_number(bytes, value, 8);
    put_field(out, key, bytes, sizeof bytes);
}

void put_field_string(struct buffer *out, uint16_t key, const char *text)
{
    put_field(out, key, text, strlen(text));
}

size_t nested_begin(struct buffer *out, uint16_t key)
{
    put_field(out, key, NULL, 0);
    return out->length;
}

void nested_end(struct buffer *out, size_t mark)
{
    if (!out->failed)
        put_number(buffer_bytes(out) + mark - 4, out->length - mark, 4);
}
