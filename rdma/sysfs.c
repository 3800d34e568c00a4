#include "rdma/sysfs.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    GIDS = 256,         // looked at per port
    DEVICE_PORTS = 255, // a port number is one byte
    PRIORITIES = 8,
};

// First line of a file, without what ends it; "" when it cannot be read.
__attribute__((format(printf, 3, 4))) static bool line_of(char *buf, size_t n, const char *fmt, ...)
{
    char path[PATH_MAX];
    va_list ap;
    va_start(ap, fmt);
    int k = vsnprintf(path, sizeof path, fmt, ap);
    va_end(ap);
    buf[0] = 0;
    FILE *f = k > 0 && (size_t)k < sizeof path ? fopen(path, "re") : NULL;
    if (!f)
        return false;
    bool ok = fgets(buf, (int)n, f) != NULL;
    fclose(f);
    if (!ok)
        buf[0] = 0; // an empty place of the GID table answers EINVAL
    size_t end = strcspn(buf, "\r\n");
    while (end && buf[end - 1] == ' ')
        end--;
    buf[end] = 0;
    return ok;
}

__attribute__((format(printf, 2, 3))) static bool number_of(int64_t *out, const char *fmt, ...)
{
    char path[PATH_MAX], text[32], *end;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(path, sizeof path, fmt, ap);
    va_end(ap);
    if (!line_of(text, sizeof text, "%s", path) || !text[0])
        return false;
    *out = strtoll(text, &end, 10);
    return !*end;
}

static uint64_t counter_of(const char *port, const char *name)
{
    int64_t v = 0;
    number_of(&v, "%s/hw_counters/%s", port, name);
    return v > 0 ? (uint64_t)v : 0;
}

// "4: ACTIVE" -> "ACTIVE"
static void word_of(char *to, size_t n, const char *port, const char *name)
{
    char text[64];
    line_of(text, sizeof text, "%s/%s", port, name);
    const char *colon = strstr(text, ": ");
    snprintf(to, n, "%.*s", (int)n - 1, colon ? colon + 2 : text);
}

// "0000:0000:0000:0000:0000:ffff:0a4d:0001" -> an address that is neither loopback nor link-local.
static bool gid_address(const char *text, char *to, size_t n)
{
    uint8_t raw[16];
    if (inet_pton(AF_INET6, text, raw) != 1)
        return false;
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff}, none[16];
    if (!memcmp(raw, mapped, sizeof mapped)) {
        const uint8_t *ip = raw + 12;
        return ip[0] != 127 && !(ip[0] == 169 && ip[1] == 254) &&
               inet_ntop(AF_INET, ip, to, (socklen_t)n);
    }
    bool local = raw[0] == 0xfe && (raw[1] & 0xc0) == 0x80;
    return !local && memcmp(raw, none, 15) && inet_ntop(AF_INET6, raw, to, (socklen_t)n);
}

static void read_gids(struct rdma_port *p, const char *port)
{
    p->gid_v2 = -1;
    for (int i = 0; i < GIDS; i++) {
        char gid[64], type[32], netdev[RDMA_SYSFS_NAME];
        if (!line_of(gid, sizeof gid, "%s/gids/%d", port, i))
            break; // the table ends here
        if (line_of(netdev, sizeof netdev, "%s/gid_attrs/ndevs/%d", port, i) && !p->netdev[0])
            snprintf(p->netdev, sizeof p->netdev, "%s", netdev);
        line_of(type, sizeof type, "%s/gid_attrs/types/%d", port, i);
        if (p->gid_v2 < 0 && !strcmp(type, "RoCE v2") &&
            gid_address(gid, p->gid_address, sizeof p->gid_address)) {
            p->gid_v2 = i;
            snprintf(p->netdev, sizeof p->netdev, "%s", netdev[0] ? netdev : p->netdev);
        }
    }
}

// mlx5 tells for each side (notification, reaction) and priority whether ECN is heeded.
static int read_ecn(const char *root, const char *netdev)
{
    static const char *const sides[] = {"roce_np", "roce_rp"};
    int told = 0, on = 0;
    for (size_t s = 0; s < 2; s++)
        for (int i = 0; i < PRIORITIES; i++) {
            int64_t v;
            if (!number_of(&v, "%s/class/net/%s/ecn/%s/enable/%d", root, netdev, sides[s], i))
                continue;
            told++;
            on += v != 0;
        }
    return told ? on == told : -1;
}

static void read_pci(struct rdma_port *p, const char *device)
{
    int64_t v;
    p->numa_node = number_of(&v, "%s/device/numa_node", device) && v >= 0 && v < 4096 ? (int)v : -1;
    line_of(p->pci_speed, sizeof p->pci_speed, "%s/device/current_link_speed", device);
    line_of(p->pci_speed_max, sizeof p->pci_speed_max, "%s/device/max_link_speed", device);
    if (number_of(&v, "%s/device/current_link_width", device) && v > 0 && v < 256)
        p->pci_width = (uint32_t)v;
    if (number_of(&v, "%s/device/max_link_width", device) && v > 0 && v < 256)
        p->pci_width_max = (uint32_t)v;
}

static void read_port(struct rdma_port *p, const char *root, const char *name, uint32_t number)
{
    char device[PATH_MAX], port[PATH_MAX + 32], text[64];
    snprintf(device, sizeof device, "%s/class/infiniband/%s", root, name);
    snprintf(port, sizeof port, "%s/ports/%u", device, number);
    *p = (struct rdma_port){.port = number};
    snprintf(p->device, sizeof p->device, "%.*s", RDMA_SYSFS_NAME - 1, name);
    word_of(p->state, sizeof p->state, port, "state");
    word_of(p->physical, sizeof p->physical, port, "phys_state");
    line_of(p->rate, sizeof p->rate, "%s/rate", port);
    line_of(text, sizeof text, "%s/link_layer", port);
    p->roce = !strcmp(text, "Ethernet");
    read_gids(p, port);
    if (!p->netdev[0]) // software RoCE names the interface it stands on
        line_of(p->netdev, sizeof p->netdev, "%s/parent", device);
    p->ecn = -1;
    if (p->netdev[0] && !strchr(p->netdev, '/')) {
        int64_t mtu;
        if (number_of(&mtu, "%s/class/net/%s/mtu", root, p->netdev) && mtu > 0 && mtu <= UINT32_MAX)
            p->netdev_mtu = (uint32_t)mtu;
        p->ecn = read_ecn(root, p->netdev);
    }
    read_pci(p, device);
    p->out_of_sequence = counter_of(port, "out_of_sequence") + counter_of(port, "packet_seq_err");
    p->ack_timeouts = counter_of(port, "local_ack_timeout_err");
    p->rnr_retries = counter_of(port, "rnr_nak_retry_err");
    p->ecn_marked = counter_of(port, "np_ecn_marked_roce_packets");
    int64_t errors = 0;
    number_of(&errors, "%s/counters/symbol_error", port);
    p->symbol_errors = errors > 0 ? (uint64_t)errors : 0;
}

uint32_t rdma_roce_mtu(uint32_t netdev_mtu)
{
    // GRH 40, UDP 8, BTH 12, extended headers 32, checksum 4: as the kernel counts.
    for (uint32_t m = 4096; m >= 256; m /= 2)
        if (netdev_mtu >= m + 96)
            return m;
    return 0;
}

static int named(const struct dirent *d)
{
    return d->d_name[0] != '.' && strlen(d->d_name) < RDMA_SYSFS_NAME;
}

size_t rdma_sysfs_read(const char *root, struct rdma_port *ports, size_t max, bool *absent)
{
    char path[PATH_MAX];
    struct dirent **devices = NULL;
    size_t n = 0;
    snprintf(path, sizeof path, "%s/class/infiniband", root);
    int devices_n = scandir(path, &devices, named, alphasort);
    *absent = devices_n <= 0;
    for (int i = 0; i < devices_n; i++) {
        const char *name = devices[i]->d_name;
        for (uint32_t number = 1; number <= DEVICE_PORTS && n < max; number++) {
            char state[64];
            if (!line_of(state, sizeof state, "%s/%s/ports/%u/state", path, name, number))
                break; // ports are numbered without gaps
            read_port(&ports[n++], root, name, number);
        }
        free(devices[i]);
    }
    free(devices);
    return n;
}
