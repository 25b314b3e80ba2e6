/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Docker's user string, resolved in the container's own passwd and group. Pure: tests compile it for the host.
 *
 * Source: Engine API, ContainerConfig.User; passwd(5), group(5). The rules for what wins are the reference
 * engine's: a numeric user need not exist, a name must; an explicit group leaves out the supplementary ones.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ID 0x7fffffffll
#define MAX_GROUPS 1024u
#define MAX_FIELDS 7u

struct line {
    char *fields[MAX_FIELDS]; /* point into text; missing ones are empty */
    char *text;
};

/* Take the next line that is not empty or a comment off the text; false at its end. Free line->text. */
static bool next_line(const char **text, struct line *line)
{
    while (**text) {
        size_t length = strcspn(*text, "\n");
        const char *start = *text;
        *text += length + ((*text)[length] == '\n');
        if (length == 0 || *start == '#' || !(line->text = strndup(start, length)))
            continue;
        char *at = line->text;
        for (size_t i = 0; i < MAX_FIELDS; i++) {
            line->fields[i] = at;
            at += strcspn(at, ":");
            if (*at && i + 1 < MAX_FIELDS)
                *at++ = 0;
        }
        return true;
    }
    return false;
}

static bool parse_number(const char *text, long long *number)
{
    if (*text < '0' || *text > '9')
        return false;
    char *end;
    errno = 0;
    *number = strtoll(text, &end, 10);
    return *end == 0 && errno == 0;
}

static void add_group(struct identity *identity, uint32_t gid)
{
    for (size_t i = 0; i < identity->group_count; i++)
        if (identity->groups[i] == gid)
            return;
    if (identity->group_count == MAX_GROUPS)
        return;
    uint32_t *groups = realloc(identity->groups, (identity->group_count + 1) * sizeof *groups);
    if (groups) {
        identity->groups = groups;
        groups[identity->group_count++] = gid;
    }
}

static bool is_member(const char *members, const char *name)
{
    size_t length = strlen(name);
    while (*members) {
        size_t size = strcspn(members, ",");
        if (size == length && memcmp(members, name, size) == 0)
            return true;
        members += size + (members[size] == ',');
    }
    return false;
}

/* Find a group by name or number; false when there is none. */
static bool find_group(const char *group, const char *wanted, uint32_t *gid)
{
    struct line line;
    long long number, id;
    bool numeric = parse_number(wanted, &number), found = false;
    while (!found && next_line(&group, &line)) {
        if (parse_number(line.fields[2], &id) && id <= MAX_ID &&
            (strcmp(line.fields[0], wanted) == 0 || (numeric && id == number))) {
            *gid = (uint32_t)id;
            found = true;
        }
        free(line.text);
    }
    return found;
}

/* A group that need not exist when it is a number. */
static bool resolve_group(const char *group, const char *wanted, uint32_t *gid, char *message, size_t size)
{
    long long number;
    if (find_group(group, wanted, gid))
        return true;
    if (!parse_number(wanted, &number)) {
        snprintf(message, size, "unable to find group %s: no matching entries in group file", wanted);
        return false;
    }
    if (number > MAX_ID) {
        snprintf(message, size, "uids and gids must be in range 0-2147483647");
        return false;
    }
    *gid = (uint32_t)number;
    return true;
}

static char *find_user(const char *passwd, const char *wanted, struct identity *identity)
{
    struct line line;
    long long number, uid, gid;
    bool numeric = parse_number(wanted, &number);
    char *name = NULL;
    while (!name && next_line(&passwd, &line)) {
        bool sound = parse_number(line.fields[2], &uid) && parse_number(line.fields[3], &gid) && uid <= MAX_ID && gid <= MAX_ID;
        if (sound && (strcmp(line.fields[0], wanted) == 0 || (numeric && uid == number))) {
            identity->uid = (uint32_t)uid;
            identity->gid = (uint32_t)gid;
            if (*line.fields[5])
                identity->home = strdup(line.fields[5]);
            name = strdup(line.fields[0]);
        }
        free(line.text);
    }
    return name;
}

static void add_memberships(const char *group, const char *name, struct identity *identity)
{
    struct line line;
    long long gid;
    while (next_line(&group, &line)) {
        if (is_member(line.fields[3], name) && parse_number(line.fields[2], &gid) && gid <= MAX_ID)
            add_group(identity, (uint32_t)gid);
        free(line.text);
    }
}

bool identity_resolve(const char *user, char *const *group_add, const char *passwd, const char *group,
                      struct identity *identity, char *message, size_t message_size)
{
    char *copy = strdup(user ? user : "");
    char *colon = copy ? strchr(copy, ':') : NULL;
    const char *group_name = colon ? colon + 1 : "";
    if (!copy) {
        snprintf(message, message_size, "out of memory");
        return false;
    }
    if (colon)
        *colon = 0;
    long long number;
    *identity = (struct identity){0};
    char *name = find_user(passwd, *copy ? copy : "0", identity);
    if (!name && *copy) {
        if (!parse_number(copy, &number)) {
            snprintf(message, message_size, "unable to find user %s: no matching entries in passwd file", copy);
            return false;
        }
        if (number > MAX_ID) {
            snprintf(message, message_size, "uids and gids must be in range 0-2147483647");
            return false;
        }
        identity->uid = (uint32_t)number;
    }
    if (*group_name && !resolve_group(group, group_name, &identity->gid, message, message_size))
        return false;
    /* The primary group is among the supplementary ones, so that dropping it with newgrp takes nothing away. */
    add_group(identity, identity->gid);
    if (name && !*group_name)
        add_memberships(group, name, identity);
    for (; group_add && *group_add; group_add++) {
        uint32_t gid;
        if (!resolve_group(group, *group_add, &gid, message, message_size))
            return false;
        add_group(identity, gid);
    }
    if (!identity->home)
        identity->home = strdup("/");
    return true;
}
