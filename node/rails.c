#include "node/rails.h"

#include <arpa/inet.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_address(const char *text)
{
    uint8_t raw[16];
    return inet_pton(AF_INET, text, raw) == 1 || inet_pton(AF_INET6, text, raw) == 1;
}

static enum status take_list(const char *list, struct rails *out, struct errmsg *e)
{
    for (const char *at = list;;) {
        size_t n = strcspn(at, ",");
        const char *next = at + n;
        while (n && *at == ' ')
            at++, n--;
        while (n && at[n - 1] == ' ')
            n--;
        char host[48];
        snprintf(host, sizeof host, "%.*s", (int)(n < sizeof host ? n : sizeof host - 1), at);
        if (n >= sizeof host || !is_address(host))
            return errmsg_set(e, STATUS_BAD_CONFIG,
                              "rdma: '%.*s' is no address; auto, off, or numeric addresses of RDMA "
                              "devices with commas between them are wanted",
                              (int)(n < 64 ? n : 64), at);
        for (uint32_t i = 0; i < out->n; i++)
            if (!strcmp(out->hosts[i], host))
                return errmsg_set(e, STATUS_BAD_CONFIG, "rdma: %s is there twice", host);
        if (out->n == RDMA_RAILS_MAX)
            return errmsg_set(e, STATUS_BAD_CONFIG, "rdma: more than %d rails", RDMA_RAILS_MAX);
        memcpy(out->hosts[out->n++], host, sizeof host);
        if (!*next)
            return STATUS_OK;
        at = next + 1;
    }
}

static bool usable(const struct rdma_port *p)
{
    return !strcmp(p->state, "ACTIVE") && p->gid_address[0];
}

static void take_ports(const struct rails_want *w, struct rails *out)
{
    struct rdma_port ports[RDMA_PORTS_MAX];
    bool absent;
    size_t n = rdma_sysfs_read(w->sysfs, ports, RDMA_PORTS_MAX, &absent);
    for (size_t i = 0; i < n; i++)
        if (usable(&ports[i]) && !strcmp(ports[i].gid_address, w->bind)) {
            snprintf(out->hosts[out->n++], sizeof out->hosts[0], "%s", w->bind);
            return;
        }
    for (int far = 0; far < 2; far++)
        for (size_t i = 0; i < n && out->n < RDMA_RAILS_MAX; i++) {
            bool near =
                w->numa_node < 0 || ports[i].numa_node < 0 || ports[i].numa_node == w->numa_node;
            if (usable(&ports[i]) && near != far)
                snprintf(out->hosts[out->n++], sizeof out->hosts[0], "%s", ports[i].gid_address);
        }
    if (!out->n)
        out->n = 1; // InfiniBand has no such addresses in sysfs: the verbs body looks for itself
}

enum status rails_find(const struct rails_want *want, struct rails *out, struct errmsg *e)
{
    *out = (struct rails){0};
    if (!strcmp(want->rdma, "off"))
        return STATUS_OK;
    if (strcmp(want->rdma, "auto"))
        return take_list(want->rdma, out, e);
    take_ports(want, out);
    return STATUS_OK;
}

int rails_numa_node(void)
{
    unsigned cpu, node;
    return getcpu(&cpu, &node) == 0 ? (int)node : -1;
}
