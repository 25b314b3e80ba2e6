/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tables of objects behind numbers that a hostile peer may send back.
 *
 *   id = generation << 32 | slot + FIRST
 *
 * A slot's generation grows each time it is freed, so the number of a freed object finds nothing. Slots 0 and
 * 1 are never used: 0 is "no node" and 1 the root of the FUSE protocol.
 */
#include <stdlib.h>
#include <string.h>

#include "server.h"

#define FIRST 2u

static bool grow(struct table *table, uint32_t limit)
{
    uint32_t size = table->size ? table->size * 2 : 64;
    if (size > limit)
        size = limit;
    if (size <= table->size)
        return false;
    void **slots = realloc(table->slots, size * sizeof *slots);
    if (!slots)
        return false;
    table->slots = slots;
    uint32_t *generations = realloc(table->generations, size * sizeof *generations);
    if (!generations)
        return false;
    table->generations = generations;
    memset(slots + table->size, 0, (size - table->size) * sizeof *slots);
    memset(generations + table->size, 0, (size - table->size) * sizeof *generations);
    table->free_hint = table->size;
    table->size = size;
    return true;
}

uint64_t table_add(struct table *table, void *object, uint32_t limit)
{
    if (table->used == table->size && !grow(table, limit))
        return 0;
    uint32_t slot = table->free_hint;
    while (table->slots[slot])
        slot = slot + 1 == table->size ? 0 : slot + 1;
    table->slots[slot] = object;
    table->free_hint = slot + 1 == table->size ? 0 : slot + 1;
    table->used++;
    return (uint64_t)table->generations[slot] << 32 | (slot + FIRST);
}

void *table_get(const struct table *table, uint64_t id)
{
    uint32_t slot = (uint32_t)id - FIRST;
    if ((uint32_t)id < FIRST || slot >= table->size || table->generations[slot] != id >> 32)
        return NULL;
    return table->slots[slot];
}

void table_remove(struct table *table, uint64_t id)
{
    uint32_t slot = (uint32_t)id - FIRST;
    table->slots[slot] = NULL;
    table->generations[slot]++;
    table->free_hint = slot;
    table->used--;
}
