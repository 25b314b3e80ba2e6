/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The clone's network interfaces, by rtnetlink: each request is acknowledged before the next.
 *
 * Source: rtnetlink(7); docs/reference/agent-protocol.md, CONFIGURE, step 3.
 */
#define _GNU_SOURCE
#include "netlink.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_NICS 32
#define USUAL_MTU 1500u /* what the template's NICs have */

struct message {
    struct nlmsghdr header;
    uint8_t body[512];
};

static int netlink = -1;
static struct nic nics[MAX_NICS];
static size_t nic_count;

/* --- messages --- */

static void *message_begin(struct message *message, uint16_t type, uint16_t flags, size_t size)
{
    memset(message, 0, sizeof *message);
    message->header.nlmsg_type = type;
    message->header.nlmsg_flags = (uint16_t)(NLM_F_REQUEST | NLM_F_ACK | flags);
    message->header.nlmsg_len = (uint32_t)NLMSG_LENGTH(size);
    return message->body;
}

static void message_attribute(struct message *message, uint16_t type, const void *data, size_t size)
{
    struct rtattr *attribute = (struct rtattr *)((uint8_t *)message + NLMSG_ALIGN(message->header.nlmsg_len));
    attribute->rta_type = type;
    attribute->rta_len = (uint16_t)RTA_LENGTH(size);
    memcpy(RTA_DATA(attribute), data, size);
    message->header.nlmsg_len = (uint32_t)(NLMSG_ALIGN(message->header.nlmsg_len) + RTA_ALIGN(attribute->rta_len));
}

static void message_send(struct message *message, const char *what)
{
    struct message reply;
    if (send(netlink, message, message->header.nlmsg_len, 0) < 0 || recv(netlink, &reply, sizeof reply, 0) < 0)
        fail_errno("network: %s", what);
    int error = 0;
    if (reply.header.nlmsg_type == NLMSG_ERROR)
        memcpy(&error, reply.body, sizeof error);
    errno = -error;
    if (errno)
        fail_errno("network: %s", what);
}

static void set_link(const struct nic *nic, uint16_t attribute, const void *value, size_t size, const char *what)
{
    struct message message;
    struct ifinfomsg *info = message_begin(&message, RTM_NEWLINK, 0, sizeof *info);
    info->ifi_index = (int)nic->index;
    message_attribute(&message, attribute, value, size);
    message_send(&message, what);
}

void link_turn(unsigned index, bool up)
{
    struct message message;
    struct ifinfomsg *info = message_begin(&message, RTM_NEWLINK, 0, sizeof *info);
    info->ifi_index = (int)index;
    info->ifi_change = IFF_UP;
    info->ifi_flags = up ? IFF_UP : 0;
    message_send(&message, up ? "set up" : "set down");
}

void link_move(unsigned index, int namespace, const char *name)
{
    struct message message;
    struct ifinfomsg *info = message_begin(&message, RTM_NEWLINK, 0, sizeof *info);
    info->ifi_index = (int)index;
    message_attribute(&message, IFLA_NET_NS_FD, &namespace, sizeof namespace);
    message_attribute(&message, IFLA_IFNAME, name, strlen(name) + 1);
    message_send(&message, name);
}

static void rename_link(struct nic *nic, const char *name)
{
    link_turn(nic->index, false); /* an interface that is up keeps its name */
    nic->is_down = true;
    set_link(nic, IFLA_IFNAME, name, strlen(name) + 1, name);
    snprintf(nic->name, sizeof nic->name, "%s", name);
}

/* --- addresses --- */

struct address {
    unsigned char family;
    uint8_t bytes[16], size, prefix;
};

static struct address parse_address(const char *text)
{
    struct address address = {.family = strchr(text, ':') ? AF_INET6 : AF_INET};
    char copy[64];
    snprintf(copy, sizeof copy, "%s", text);
    char *slash = strchr(copy, '/');
    address.size = address.family == AF_INET6 ? 16 : 4;
    address.prefix = slash ? (uint8_t)atoi(slash + 1) : (uint8_t)(address.size * 8);
    if (slash)
        *slash = 0;
    if (inet_pton(address.family, copy, address.bytes) != 1)
        fail(128, "network: invalid address %s", text);
    return address;
}

static void add_address(const struct nic *nic, const char *text)
{
    struct address address = parse_address(text);
    struct message message;
    struct ifaddrmsg *info = message_begin(&message, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, sizeof *info);
    info->ifa_family = address.family;
    info->ifa_prefixlen = address.prefix;
    info->ifa_index = nic->index;
    if (address.family == AF_INET6)
        info->ifa_flags = IFA_F_NODAD; /* the engine gives each address once */
    message_attribute(&message, IFA_LOCAL, address.bytes, address.size);
    message_attribute(&message, IFA_ADDRESS, address.bytes, address.size);
    if (address.family == AF_INET && address.prefix < 31) {
        uint8_t broadcast[4];
        for (unsigned bit = 0; bit < 32; bit++) {
            uint8_t mask = (uint8_t)(0x80 >> bit % 8);
            if (bit % 8 == 0)
                broadcast[bit / 8] = address.bytes[bit / 8];
            if (bit >= address.prefix)
                broadcast[bit / 8] |= mask;
        }
        message_attribute(&message, IFA_BROADCAST, broadcast, sizeof broadcast);
    }
    message_send(&message, text);
}

static void remove_address(const struct nic *nic, const char *text)
{
    struct address address = parse_address(text);
    struct message message;
    struct ifaddrmsg *info = message_begin(&message, RTM_DELADDR, 0, sizeof *info);
    info->ifa_family = address.family;
    info->ifa_prefixlen = address.prefix;
    info->ifa_index = nic->index;
    message_attribute(&message, IFA_LOCAL, address.bytes, address.size);
    message_send(&message, text);
}

static void add_default_route(const struct nic *nic, const char *text)
{
    struct address gateway = parse_address(text);
    struct message message;
    struct rtmsg *info = message_begin(&message, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, sizeof *info);
    info->rtm_family = gateway.family;
    info->rtm_table = RT_TABLE_MAIN;
    info->rtm_protocol = RTPROT_BOOT;
    info->rtm_scope = RT_SCOPE_UNIVERSE;
    info->rtm_type = RTN_UNICAST;
    message_attribute(&message, RTA_GATEWAY, gateway.bytes, gateway.size);
    message_attribute(&message, RTA_OIF, &nic->index, sizeof nic->index);
    message_send(&message, text);
}

/* --- interfaces --- */

static int by_device(const void *a, const void *b)
{
    const struct nic *left = a, *right = b;
    return left->device < right->device ? -1 : left->device > right->device;
}

void find_network(void)
{
    DIR *directory = opendir("/sys/class/net");
    struct dirent *entry;
    while (directory && nic_count < MAX_NICS && (entry = readdir(directory))) {
        struct nic *nic = &nics[nic_count];
        char path[300], link[300], text[64];
        snprintf(path, sizeof path, "/sys/class/net/%s/device", entry->d_name);
        ssize_t size = readlink(path, link, sizeof link - 1);
        if (entry->d_name[0] == '.' || size < 0)
            continue;
        link[size] = 0;
        char *device = strstr(link, "virtio");
        if (!device || sscanf(device, "virtio%u", &nic->device) != 1)
            continue;
        snprintf(path, sizeof path, "/sys/class/net/%s/address", entry->d_name);
        uint8_t *m = nic->mac;
        nic->index = if_nametoindex(entry->d_name);
        snprintf(nic->name, sizeof nic->name, "%.15s", entry->d_name);
        if (read_text(path, text, sizeof text) &&
            sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", m, m + 1, m + 2, m + 3, m + 4, m + 5) == 6 &&
            !spare_found(nic))
            nic_count++;
    }
    if (directory)
        closedir(directory);
    qsort(nics, nic_count, sizeof *nics, by_device);
    netlink_open();
}

void netlink_open(void)
{
    if (netlink >= 0)
        close(netlink);
    netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
}

static struct nic *choose_nic(struct fields fields)
{
    struct field mac;
    bool match = fields_find(fields, K_IF_MATCH_MAC, &mac) && mac.length == 6;
    for (size_t i = 0; i < nic_count; i++)
        if (!nics[i].taken && (!match || memcmp(nics[i].mac, mac.bytes, 6) == 0)) {
            nics[i].taken = true;
            return &nics[i];
        }
    fail(128, "network: the machine has no %s network device", match ? "such" : "further");
}

static void set_interface_sysctl(const char *family, const char *name, const char *key, const char *value)
{
    char path[128];
    snprintf(path, sizeof path, "/proc/sys/net/%s/conf/%s/%s", family, name, key);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0 && write(fd, value, strlen(value)) < 0)
        say("%s: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
}

/* A name such as eth1 may still be another's: it makes room. */
static void take_name(struct nic *nic, const char *name)
{
    if (strcmp(nic->name, name) == 0)
        return;
    for (size_t i = 0; i < nic_count; i++)
        if (strcmp(nics[i].name, name) == 0) {
            char aside[IFNAMSIZ];
            snprintf(aside, sizeof aside, "proa%u", nics[i].index);
            rename_link(&nics[i], aside);
        }
    rename_link(nic, name);
}

void set_gateways(const struct nic *nic, struct fields fields)
{
    char *text;
    for (unsigned i = 0; (text = fields_string(fields, K_IF_GATEWAY, i)); i++)
        add_default_route(nic, text);
}

void setup_interface(struct nic *nic, struct fields fields)
{
    char *name = fields_string(fields, K_IF_NAME, 0);
    struct field mac;
    uint32_t mtu = fields_u32(fields, K_IF_MTU, 0);
    if (!name || strlen(name) >= IFNAMSIZ)
        fail(128, "network: an interface has no usable name");
    take_name(nic, name);
    if (mtu && (mtu != USUAL_MTU || nic->is_used))
        set_link(nic, IFLA_MTU, &mtu, sizeof mtu, "MTU");
    /* Before IPv6 is turned on: the link-local address is made of it. */
    if (fields_find(fields, K_IF_MAC, &mac) && mac.length == 6)
        set_link(nic, IFLA_ADDRESS, mac.bytes, 6, "MAC address");
    char *text;
    bool six = false;
    for (unsigned i = 0; (text = fields_string(fields, K_IF_ADDRESS, i)); i++)
        six = six || strchr(text, ':');
    if (six || nic->is_used)
        set_interface_sysctl("ipv6", name, "disable_ipv6", six ? "0" : "1");
    if (nic->is_down)
        link_turn(nic->index, true);
    for (unsigned i = 0; (text = fields_string(fields, K_IF_ADDRESS, i)); i++)
        add_address(nic, text);
    set_gateways(nic, fields);
}

void prepare_network(void)
{
    link_turn(1, true); /* lo is always the first */
    spares_hide();
    for (size_t i = 0; i < nic_count; i++) {
        set_interface_sysctl("ipv6", nics[i].name, "disable_ipv6", "1");
        /* Its driver fills the receive queue now. Nothing is sent: it
         * has no address. */
        link_turn(nics[i].index, true);
    }
}

void setup_network(struct fields fields)
{
    struct field field;
    while (fields_next(&fields, &field))
        if (field.key == K_INTERFACE)
            setup_interface(choose_nic(field_fields(&field)), field_fields(&field));
    for (size_t i = 0; i < nic_count; i++)
        if (!nics[i].taken)
            link_turn(nics[i].index, false);
}

/* The routes by them go as well. */
void forget_addresses(struct fields fields)
{
    struct field field;
    for (size_t i = 0; i < nic_count && fields_next(&fields, &field);) {
        char *text;
        if (field.key != K_INTERFACE)
            continue;
        for (unsigned n = 0; (text = fields_string(field_fields(&field), K_IF_ADDRESS, n)); n++)
            remove_address(&nics[i], text);
        i++;
    }
}

/* --- another identity --- */

#define MAX_ADDRESSES 256

/* The IPv4 addresses of the NICs, as the messages that delete them. */
static size_t list_addresses(struct message *found)
{
    static uint8_t page[32768];
    struct message ask;
    size_t count = 0;
    struct ifaddrmsg *wanted = message_begin(&ask, RTM_GETADDR, NLM_F_DUMP, sizeof *wanted);
    wanted->ifa_family = AF_INET;
    if (send(netlink, &ask, ask.header.nlmsg_len, 0) < 0)
        fail_errno("network: addresses");
    for (;;) {
        ssize_t size = recv(netlink, page, sizeof page, 0);
        if (size <= 0)
            fail_errno("network: addresses");
        unsigned left = (unsigned)size;
        for (struct nlmsghdr *header = (struct nlmsghdr *)page; NLMSG_OK(header, left); header = NLMSG_NEXT(header, left)) {
            struct ifaddrmsg *info = NLMSG_DATA(header);
            if (header->nlmsg_type == NLMSG_DONE || header->nlmsg_type == NLMSG_ERROR)
                return count;
            for (size_t i = 0; header->nlmsg_type == RTM_NEWADDR && i < nic_count; i++)
                if (nics[i].index == info->ifa_index && count < MAX_ADDRESSES && header->nlmsg_len <= sizeof *found) {
                    memcpy(&found[count], header, header->nlmsg_len);
                    found[count].header.nlmsg_type = RTM_DELADDR;
                    found[count++].header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
                }
        }
    }
}

void replace_network(struct fields fields)
{
    static struct message addresses[MAX_ADDRESSES];
    nic_count = 0;
    find_network(); /* the container may have renamed its interfaces */
    size_t count = list_addresses(addresses);
    for (size_t i = count; i-- > 0;) /* the secondary ones first: they go with the primary one */
        message_send(&addresses[i], "old address");
    for (size_t i = 0; i < nic_count; i++) /* takes its addresses, the link-local one of the old MAC included */
        set_interface_sysctl("ipv6", nics[i].name, "disable_ipv6", "1");
    setup_network(fields);
}
