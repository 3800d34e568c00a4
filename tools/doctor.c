#include "tools/doctor.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "rdma/sysfs.h"
#include "rdma/xport.h"
#include "tools/admin.h"
#include "tools/cmd.h"
#include "tools/cmdline.h"

// A finding is a line with a level; the worst one decides the exit code.
enum level {
    LEVEL_OK,
    LEVEL_HINT, // works; could be faster or safer
    LEVEL_WARN, // works now, will hurt under load
    LEVEL_BAD,  // does not work
};
static const char *const level_names[] = {"ok", "hint", "warn", "bad"};

struct report {
    json_t *findings; // array of {check, level, text}
    enum level worst;
};

__attribute__((format(printf, 4, 5))) static void note(struct report *r, enum level level,
                                                       const char *check, const char *fmt, ...)
{
    char text[640];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < ' ' || (unsigned char)*c > '~')
            *c = '?'; // names come from files and from the network
    json_array_append_new(r->findings, json_pack("{s:s, s:s, s:s}", "check", check, "level",
                                                 level_names[level], "text", text));
    r->worst = level > r->worst ? level : r->worst;
}

// ---- this host

enum { MEMLOCK_WANT = 1 << 30 }; // rings of 64 links and the KV staging of a node, with room

static void check_memlock(struct report *r)
{
    struct rlimit lim;
    bool may_lock = geteuid() == 0; // CAP_IPC_LOCK
    if (may_lock || getrlimit(RLIMIT_MEMLOCK, &lim) < 0 || lim.rlim_cur == RLIM_INFINITY)
        note(r, LEVEL_OK, "memlock", "locked memory is not limited");
    else if (lim.rlim_cur < MEMLOCK_WANT)
        note(r, LEVEL_WARN, "memlock",
             "locked memory is limited to %llu KiB; RDMA registers more: ulimit -l unlimited, or "
             "LimitMEMLOCK=infinity in the unit",
             (unsigned long long)lim.rlim_cur / 1024);
    else
        note(r, LEVEL_OK, "memlock", "locked memory is limited to %llu MiB",
             (unsigned long long)lim.rlim_cur >> 20);
}

static void check_pci(struct report *r, const struct rdma_port *p, const char *where)
{
    bool slow = strcmp(p->pci_speed, p->pci_speed_max) != 0 && p->pci_speed_max[0];
    bool narrow = p->pci_width < p->pci_width_max;
    if (slow || narrow)
        note(r, LEVEL_WARN, where,
             "PCIe link runs at %s x%u, the device can do %s x%u: reseat it, or use another slot",
             p->pci_speed, p->pci_width, p->pci_speed_max, p->pci_width_max);
}

static void check_mtu(struct report *r, const struct rdma_port *p, const char *where)
{
    uint32_t mtu = rdma_roce_mtu(p->netdev_mtu);
    if (!p->roce || !p->netdev_mtu)
        return;
    if (mtu < 256)
        note(r, LEVEL_BAD, where, "MTU %u of %s is too small for RDMA", p->netdev_mtu, p->netdev);
    else if (mtu < 4096)
        note(r, LEVEL_HINT, where,
             "MTU %u of %s leaves packets of %u bytes; with 4200 or more on all hosts and switches "
             "they have 4096",
             p->netdev_mtu, p->netdev, mtu);
}

static void check_counters(struct report *r, const struct rdma_port *p, const char *where)
{
    if (p->out_of_sequence || p->ack_timeouts)
        note(r, LEVEL_WARN, where,
             "packets were lost: %llu out of sequence, %llu times no answer in time; RoCE wants "
             "PFC on its priority or ECN on the way",
             (unsigned long long)p->out_of_sequence, (unsigned long long)p->ack_timeouts);
    if (p->symbol_errors)
        note(r, LEVEL_WARN, where, "%llu symbol errors: cable or optics",
             (unsigned long long)p->symbol_errors);
    if (p->ecn == 0)
        note(r, LEVEL_HINT, where,
             "ECN is off on some priority (/sys/class/net/%s/ecn); without it PFC alone must keep "
             "packets from being dropped",
             p->netdev);
    if (p->ecn_marked)
        note(r, LEVEL_HINT, where, "%llu packets arrived with a congestion mark",
             (unsigned long long)p->ecn_marked);
}

static bool check_port(struct report *r, const struct rdma_port *p)
{
    char where[96];
    snprintf(where, sizeof where, "%s/%u", p->device, p->port);
    if (strcmp(p->state, "ACTIVE")) {
        note(r, LEVEL_BAD, where,
             "port is %s, physically %s: cable, switch port, or `ip link set %s up`",
             p->state[0] ? p->state : "unknown", p->physical[0] ? p->physical : "unknown",
             p->netdev[0] ? p->netdev : "INTERFACE");
        return false;
    }
    if (p->roce && p->gid_v2 < 0) {
        note(r, LEVEL_BAD, where, "no RoCE v2 GID of a routable address: give %s an IP address",
             p->netdev[0] ? p->netdev : "its interface");
        return false;
    }
    note(r, LEVEL_OK, where, "%s, %s, %s %s, GID %d (%s), NUMA node %d", p->state,
         p->rate[0] ? p->rate : "rate not told", p->roce ? "RoCE on" : "InfiniBand", p->netdev,
         p->gid_v2, p->gid_address[0] ? p->gid_address : "-", p->numa_node);
    check_mtu(r, p, where);
    check_pci(r, p, where);
    check_counters(r, p, where);
    return true;
}

// Rails of one host carry the same links: packets that fit one must fit all.
static void check_rails(struct report *r, const struct rdma_port *ports, size_t n)
{
    const struct rdma_port *first = NULL;
    for (size_t i = 0; i < n; i++) {
        const struct rdma_port *p = &ports[i];
        if (strcmp(p->state, "ACTIVE") || !p->roce || !p->netdev_mtu)
            continue;
        if (first && rdma_roce_mtu(first->netdev_mtu) != rdma_roce_mtu(p->netdev_mtu))
            note(r, LEVEL_WARN, "mtu", "%s has MTU %u, %s has %u: make them equal", first->netdev,
                 first->netdev_mtu, p->netdev, p->netdev_mtu);
        first = first ? first : p;
    }
}

// ---- a write through the device and back

enum { TRIAL_BYTES = 1 << 20, TRIAL_MS = 3000, TRIAL_REGION = 1, TRIAL_NOTICE = 0x1dea };

struct trial {
    struct xport *from, *to;
    struct xlink *link;
    uint8_t *source;
    enum status status;
    bool written, seen;
};

static void trial_events(struct trial *t, struct xport *x)
{
    struct xport_event ev[16];
    int n = xport_poll(x, ev, 16);
    for (int i = 0; i < n; i++) {
        if (ev[i].kind == XPORT_LINK_DOWN && t->status == STATUS_OK)
            t->status = ev[i].status;
        if (ev[i].kind == XPORT_WRITE_DONE && ev[i].status != STATUS_OK)
            t->status = ev[i].status;
        if (ev[i].kind == XPORT_NOTICE && ev[i].notice == TRIAL_NOTICE)
            t->seen = ev[i].bytes == TRIAL_BYTES;
    }
}

static enum status trial_run(struct trial *t, const char *host, struct errmsg *e)
{
    struct xport_config c = {.kind = XPORT_VERBS, .bind_host = host, .handshake_ms = TRIAL_MS};
    void *target, *source;
    enum status s = xport_open(&c, &t->to, e);
    if (s == STATUS_OK)
        s = xport_open(&c, &t->from, e);
    if (s == STATUS_OK)
        s = xport_region_create(t->to, TRIAL_REGION, TRIAL_BYTES, &target, e);
    if (s == STATUS_OK)
        s = xport_region_create(t->from, TRIAL_REGION, TRIAL_BYTES, &source, e);
    if (s == STATUS_OK)
        s = xport_connect(t->from, xport_address(t->to), NULL, 0, NULL, &t->link, e);
    if (s != STATUS_OK)
        return s;
    memset(source, 0x5a, TRIAL_BYTES);
    struct xwrite w = {
        .region = TRIAL_REGION, .src = source, .bytes = TRIAL_BYTES, .notice = TRIAL_NOTICE};
    for (int64_t end = cmdline_now_ms() + TRIAL_MS; cmdline_now_ms() < end && !t->seen;) {
        if (!t->written && t->status == STATUS_OK)
            t->written = xlink_write(t->link, &w) == STATUS_OK;
        trial_events(t, t->from);
        trial_events(t, t->to);
        if (t->status != STATUS_OK)
            return errmsg_set(e, t->status, "%s", status_text(t->status));
        xport_wait(t->from, 1);
    }
    if (!t->seen)
        return errmsg_set(e, STATUS_LINK_TIMEOUT, "nothing arrived within %d s", TRIAL_MS / 1000);
    bool same = !memcmp(target, source, TRIAL_BYTES);
    return same ? STATUS_OK : errmsg_set(e, STATUS_LINK_CORRUPT, "other bytes arrived");
}

static void check_writes(struct report *r, const struct rdma_port *p)
{
    char where[96];
    struct errmsg e = {0};
    struct trial t = {0};
    snprintf(where, sizeof where, "%s/%u", p->device, p->port);
    int64_t start = cmdline_now_us();
    enum status s = trial_run(&t, p->gid_address, &e);
    xport_close(t.from);
    xport_close(t.to);
    if (s == STATUS_OK)
        note(r, LEVEL_OK, where,
             "1 MiB written through it and read again, in %.0f ms with the link",
             (double)(cmdline_now_us() - start) / 1e3);
    else
        note(r, LEVEL_BAD, where, "a write through it failed: %s", e.text);
}

static void check_host(struct report *r, const char *sysfs)
{
    struct rdma_port ports[RDMA_PORTS_MAX];
    bool absent;
    size_t n = rdma_sysfs_read(sysfs ? sysfs : "/sys", ports, RDMA_PORTS_MAX, &absent), usable = 0;
    if (absent) {
        note(r, LEVEL_OK, "devices",
             "no RDMA device: nodes link over shared memory on a host, over TCP between hosts");
        return;
    }
    for (size_t i = 0; i < n; i++) {
        if (!check_port(r, &ports[i]))
            continue;
        usable++;
        if (!sysfs && ports[i].gid_address[0])
            check_writes(r, &ports[i]);
    }
    check_rails(r, ports, n);
    if (!usable)
        note(r, LEVEL_BAD, "devices", "%zu ports, none can be used", n);
    if (!sysfs)
        check_memlock(r);
}

// ---- the cluster

static const char *text_in(const json_t *object, const char *key)
{
    const char *v = json_string_value(json_object_get(object, key));
    return v ? v : "";
}

static void check_nodes(struct report *r, const json_t *nodes)
{
    size_t i, good = 0;
    json_t *node;
    json_array_foreach(nodes, i, node)
    {
        const char *state = text_in(node, "state");
        bool out = !strcmp(state, "lost") || !strcmp(state, "ejected");
        if (out)
            note(r, LEVEL_WARN, "nodes", "node %s is %s: %s", text_in(node, "name"), state,
                 text_in(node, "fault")[0] ? text_in(node, "fault") : "no fault noted");
        good += !out;
    }
    note(r, LEVEL_OK, "nodes", "%zu of %zu nodes are in use or free", good, json_array_size(nodes));
}

static void check_replicas(struct report *r, const json_t *replicas)
{
    size_t i, ready = 0;
    json_t *replica;
    json_array_foreach(replicas, i, replica)
    {
        long long id = json_integer_value(json_object_get(replica, "id"));
        const char *state = text_in(replica, "state"), *links = text_in(replica, "transport");
        ready += !strcmp(state, "ready");
        if (strcmp(state, "ready"))
            note(r, LEVEL_WARN, "replicas", "replica %lld is %s: %s", id, state,
                 text_in(replica, "fault")[0] ? text_in(replica, "fault") : "no fault noted");
        else if (!strcmp(links, "tcp"))
            note(r, LEVEL_HINT, "replicas",
                 "replica %lld links its ranks over TCP: where its hosts have RDMA, run doctor "
                 "there; metrics tell whether it fell back",
                 id);
    }
    note(r, LEVEL_OK, "replicas", "%zu of %zu replicas are ready", ready,
         json_array_size(replicas));
}

static void check_cluster(struct report *r, const struct doctor_options *o)
{
    static const struct {
        const char *path, *list;
        void (*check)(struct report *, const json_t *);
    } parts[] = {{"/hadal/v1/nodes", "nodes", check_nodes},
                 {"/hadal/v1/replicas", "replicas", check_replicas}};
    for (size_t i = 0; i < 2; i++) {
        struct errmsg e = {0};
        json_t *reply = NULL;
        enum status s = admin_get(o->url, parts[i].path, &reply, &e);
        const json_t *list = s == STATUS_OK ? admin_list(reply, parts[i].list) : NULL;
        if (list)
            parts[i].check(r, list);
        else if (s != STATUS_OK && !o->url_given)
            note(r, LEVEL_OK, "cluster", "not asked: no coordinator at %s", o->url);
        else
            note(r, LEVEL_BAD, "cluster", "%s", s == STATUS_OK ? "answer without a list" : e.text);
        json_decref(reply);
        if (!list)
            return;
    }
}

// ---- telling it

static void print_text(const struct report *r)
{
    static const enum cmdline_style styles[] = {STYLE_GREEN, STYLE_DIM, STYLE_YELLOW, STYLE_RED};
    size_t i;
    json_t *f;
    json_array_foreach(r->findings, i, f)
    {
        size_t level = 0;
        while (strcmp(level_names[level], text_in(f, "level")))
            level++;
        printf("%s%-4s%s  %-12s %s\n", cmdline_style(stdout, styles[level]), level_names[level],
               cmdline_style(stdout, STYLE_OFF), text_in(f, "check"), text_in(f, "text"));
    }
}

int doctor_run(const struct doctor_options *o)
{
    struct report r = {.findings = json_array()};
    check_host(&r, o->sysfs);
    if (!o->sysfs)
        check_cluster(&r, o);
    int rc = r.worst == LEVEL_BAD ? CMD_FAILED : CMD_OK;
    if (o->json) {
        json_t *all =
            json_pack("{s:s, s:o}", "worst", level_names[r.worst], "findings", r.findings);
        if (json_dumpf(all, stdout, JSON_INDENT(1)) < 0 || putchar('\n') == EOF)
            rc = CMD_FAILED;
        json_decref(all);
        return rc;
    }
    print_text(&r);
    json_decref(r.findings);
    return rc;
}
