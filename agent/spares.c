/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NETWORK: interfaces that come and go while the container runs.
 *
 * The machine cannot be given a NIC, so its template has some to spare. They wait in a network namespace of the
 * agent's own, where the container does not see them; one that is connected moves to the container's and is set up as
 * at the start, one that is disconnected moves (back) here. A NIC is told by its permanent MAC address, whatever name
 * and address the container has given it.
 *
 * Source: docs/reference/agent-protocol.md, NETWORK; network_namespaces(7).
 */
#define _GNU_SOURCE
#include "netlink.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_SPARES 16

static const uint8_t spare_mac[5] = {0x02, 'p', 'r', 'o', 1};
static struct nic spares[MAX_SPARES];
static size_t spare_count;
static int hidden = -1; /* the namespace that they wait in */

/* --- in the template --- */

static int own_namespace(void)
{
    return open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
}

bool spare_found(const struct nic *nic)
{
    if (memcmp(nic->mac, spare_mac, sizeof spare_mac) != 0 || spare_count == MAX_SPARES)
        return false;
    spares[spare_count++] = *nic;
    if (hidden >= 0)
        return true;
    int home = own_namespace();
    if (unshare(CLONE_NEWNET) == 0) {
        hidden = own_namespace();
        if (setns(home, CLONE_NEWNET) < 0)
            say("network namespace: %s", strerror(errno));
    }
    close(home);
    return true;
}

static void name_hidden(char name[IFNAMSIZ], const uint8_t mac[6])
{
    snprintf(name, IFNAMSIZ, "proa%02x%02x", mac[4], mac[5]);
}

void spares_hide(void)
{
    for (size_t i = 0; i < spare_count; i++) {
        char name[IFNAMSIZ];
        name_hidden(name, spares[i].mac);
        link_move(spares[i].index, hidden, name);
    }
}

/* --- in a worker --- */

static void enter(int namespace)
{
    if (setns(namespace, CLONE_NEWNET) < 0)
        fail_errno("network namespace");
    netlink_open();
}

/* The interface of this namespace that was made with the MAC address; 0: none. */
static unsigned find_permanent(const uint8_t mac[6])
{
    unsigned found = 0;
    int any = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct if_nameindex *all = if_nameindex();
    for (struct if_nameindex *each = all; any >= 0 && each && each->if_index && !found; each++) {
        struct {
            struct ethtool_perm_addr head;
            uint8_t bytes[32];
        } address = {.head = {.cmd = ETHTOOL_GPERMADDR, .size = sizeof address.bytes}};
        struct ifreq request = {.ifr_data = (char *)&address};
        snprintf(request.ifr_name, sizeof request.ifr_name, "%s", each->if_name);
        if (ioctl(any, SIOCETHTOOL, &request) == 0 && address.head.size == 6 && memcmp(address.bytes, mac, 6) == 0)
            found = each->if_index;
    }
    if (all)
        if_freenameindex(all);
    close(any);
    return found;
}

/* Its addresses and routes go with it. */
static void put_away(const uint8_t mac[6])
{
    char name[IFNAMSIZ];
    unsigned index = find_permanent(mac);
    if (!index)
        return;
    name_hidden(name, mac);
    link_turn(index, false);
    link_move(index, hidden, name);
}

static void plug_in(struct fields fields, const uint8_t mac[6], int home)
{
    struct nic nic = {.is_down = true, .is_used = true};
    char *name = fields_string(fields, K_IF_NAME, 0);
    put_away(mac); /* the host may not know how far an earlier request came */
    enter(hidden);
    unsigned index = find_permanent(mac);
    if (!index)
        fail(128, "network: the machine has no such network device");
    link_move(index, home, name);
    enter(home);
    snprintf(nic.name, sizeof nic.name, "%s", name);
    nic.index = if_nametoindex(name);
    setup_interface(&nic, fields);
}

void change_network(struct fields fields)
{
    struct field field, mac;
    int home = own_namespace();
    if (hidden < 0)
        fail(128, "network: the machine has no network device to spare");
    netlink_open();
    while (fields_next(&fields, &field)) {
        if (field.key != K_INTERFACE)
            continue;
        struct fields interface = field_fields(&field);
        char *name = fields_string(interface, K_IF_NAME, 0);
        if (!fields_find(interface, K_IF_MATCH_MAC, &mac) || mac.length != 6 || (name && strlen(name) >= IFNAMSIZ))
            fail(128, "network: an interface cannot be told");
        if (name) {
            plug_in(interface, mac.bytes, home);
        } else if (fields_string(interface, K_IF_GATEWAY, 0)) {
            struct nic nic = {.index = find_permanent(mac.bytes)};
            if (nic.index) /* else the container has put it somewhere else */
                set_gateways(&nic, interface);
        } else {
            put_away(mac.bytes);
        }
    }
}
