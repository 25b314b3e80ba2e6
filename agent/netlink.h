/* SPDX-License-Identifier: Apache-2.0 */
/* Network interfaces by rtnetlink: what configuring a clone and changing its networks later have in common. */
#ifndef PROA_AGENT_NETLINK_H
#define PROA_AGENT_NETLINK_H

#include <net/if.h>

#include "agent.h"

struct nic {
    char name[IFNAMSIZ];
    unsigned index;
    unsigned device; /* N of virtioN: the order on QEMU's command line */
    uint8_t mac[6];
    bool taken, is_down;
    bool is_used; /* it has had another network: nothing of it is as in the template */
};

/* In a child: speak to the network namespace that the child is in now. */
void netlink_open(void);
void link_turn(unsigned index, bool up);
/* To another network namespace, under another name. It must be down. */
void link_move(unsigned index, int namespace, const char *name);
void setup_interface(struct nic *nic, struct fields fields);
/* Make the gateways that are given the default routes. */
void set_gateways(const struct nic *nic, struct fields fields);

/* spares.c: NICs that no network is behind until one is connected; out of sight, in a namespace of their own. */
bool spare_found(const struct nic *nic); /* in process 1; false: it is none */
void spares_hide(void);                  /* in the child that prepares the network */

#endif
