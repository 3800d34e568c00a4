// Verbs body: the device, registered regions, and setting links up by rdma_cm. The device is the
// one that has the address bound to (for RoCE v2 rdma_cm takes the GID made of that address); all
// links of an xport use it. Several devices are several xports.
//
// Set-up: resolve address and route, show a card (magic, version, token) in the connect request,
// then greet over the queue pair as the socket bodies do; the greeting lists the regions and their
// keys. Connection events and completion events come through one epoll descriptor, which takes the
// place of the listening socket.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "rdma/xport_verbs.h"

enum {
    EVENTS_PER_TURN = 64,
    GIDS_MAX = 256, // looked at per port
    BACKLOG = 1024,
    CONSUMER_REJECT = 28, // IB_CM_REJ_CONSUMER_DEFINED
    PART_WAIT_US = 100000,
    HUGE = 2 << 20,
};

void verbs_memory_hint(char *buf, size_t n, int err)
{
    struct rlimit lim;
    bool limited = (err == ENOMEM || err == EAGAIN) && getrlimit(RLIMIT_MEMLOCK, &lim) == 0 &&
                   lim.rlim_cur != RLIM_INFINITY;
    if (limited)
        snprintf(buf, n, "%s; locked memory is limited to %llu KiB (ulimit -l, LimitMEMLOCK=)",
                 strerror(err), (unsigned long long)lim.rlim_cur / 1024);
    else
        snprintf(buf, n, "%s", strerror(err));
}

// --- addresses ---

static in_port_t *port_of(struct sockaddr_storage *sa)
{
    return sa->ss_family == AF_INET6 ? &((struct sockaddr_in6 *)sa)->sin6_port
                                     : &((struct sockaddr_in *)sa)->sin_port;
}

static bool host_parse(const char *host, struct sockaddr_storage *sa)
{
    memset(sa, 0, sizeof *sa);
    struct sockaddr_in *v4 = (struct sockaddr_in *)sa;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)sa;
    if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
        sa->ss_family = AF_INET;
        return true;
    }
    sa->ss_family = AF_INET6;
    return inet_pton(AF_INET6, host, &v6->sin6_addr) == 1;
}

static const char *host_text(const struct sockaddr_storage *sa, char buf[INET6_ADDRSTRLEN])
{
    const void *a = sa->ss_family == AF_INET6
                        ? (const void *)&((const struct sockaddr_in6 *)sa)->sin6_addr
                        : (const void *)&((const struct sockaddr_in *)sa)->sin_addr;
    return inet_ntop(sa->ss_family, a, buf, INET6_ADDRSTRLEN);
}

static bool is_wildcard(const struct sockaddr_storage *sa)
{
    if (sa->ss_family == AF_INET)
        return ((const struct sockaddr_in *)sa)->sin_addr.s_addr == INADDR_ANY;
    return IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)sa)->sin6_addr);
}

static bool is_loopback(const struct sockaddr_storage *sa)
{
    if (sa->ss_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)sa)->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
    return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)sa)->sin6_addr);
}

// HOST:PORT or [HOST]:PORT.
static bool where_parse(const char *where, struct sockaddr_storage *sa)
{
    char host[LIMIT_ADDR];
    bool bracket = where[0] == '[';
    snprintf(host, sizeof host, "%s", bracket ? where + 1 : where);
    char *colon = strrchr(host, ':'), *end;
    if (!colon || colon == host || (bracket && colon[-1] != ']'))
        return false;
    unsigned long port = strtoul(colon + 1, &end, 10);
    if (colon[1] < '0' || colon[1] > '9' || *end || port == 0 || port > 65535)
        return false;
    colon[bracket ? -1 : 0] = 0;
    if (!host_parse(host, sa))
        return false;
    *port_of(sa) = htons((uint16_t)port);
    return true;
}

// --- opening ---

static bool bind_to(struct verbs_device *d, const struct sockaddr_storage *sa)
{
    struct sockaddr_storage a = *sa;
    const struct verbs_lib *v = verbs_lib();
    if (v->rdma.create_id(d->events, &d->listener, NULL, RDMA_PS_TCP) < 0) {
        d->listener = NULL;
        return false;
    }
    if (v->rdma.bind_addr(d->listener, (struct sockaddr *)&a) == 0 && d->listener->verbs) {
        d->own_addr = a;
        return true;
    }
    int err = errno;
    v->rdma.destroy_id(d->listener);
    d->listener = NULL;
    errno = err;
    return false;
}

// An IPv4 address mapped into a GID, but neither loopback nor link-local.
static bool gid_address(const union ibv_gid *gid, struct sockaddr_storage *sa)
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    if (memcmp(gid->raw, mapped, 12) != 0)
        return false;
    const uint8_t *ip = gid->raw + 12;
    if (ip[0] == 127 || (ip[0] == 169 && ip[1] == 254))
        return false;
    memset(sa, 0, sizeof *sa);
    sa->ss_family = AF_INET;
    memcpy(&((struct sockaddr_in *)sa)->sin_addr, ip, 4);
    return true;
}

static bool bind_to_device(struct verbs_device *d, struct ibv_context *ctx)
{
    const struct verbs_lib *v = verbs_lib();
    struct ibv_device_attr attr;
    if (v->ibv.query_device(ctx, &attr) != 0)
        return false;
    for (uint8_t port = 1; port <= attr.phys_port_cnt; port++) {
        union ibv_gid gid;
        struct sockaddr_storage sa;
        for (int i = 0; i < GIDS_MAX && v->ibv.query_gid(ctx, port, i, &gid) == 0; i++)
            if (gid_address(&gid, &sa) && bind_to(d, &sa))
                return true;
    }
    return false;
}

static bool bind_to_any(struct verbs_device *d)
{
    int n = 0;
    struct ibv_context **all = verbs_lib()->rdma.get_devices(&n);
    bool bound = false;
    for (int i = 0; all && i < n && !bound; i++)
        bound = bind_to_device(d, all[i]);
    if (all)
        verbs_lib()->rdma.free_devices(all);
    return bound;
}

static enum status choose_device(struct verbs_device *d, const char *host, struct errmsg *e)
{
    struct sockaddr_storage sa;
    if (host && !host_parse(host, &sa))
        return errmsg_set(e, STATUS_BAD_CONFIG, "xport verbs: bind_host '%.64s' is no address",
                          host);
    if (host && is_wildcard(&sa))
        return errmsg_set(e, STATUS_BAD_CONFIG,
                          "xport verbs: bind_host '%s' is not an address that peers can reach",
                          host);
    bool any = !host || is_loopback(&sa);
    if (any ? bind_to_any(d) : bind_to(d, &sa))
        return STATUS_OK;
    if (any)
        return errmsg_set(e, STATUS_NO_DEVICE,
                          "xport verbs: no RDMA device of this host has an IPv4 address");
    return errmsg_set(e, STATUS_NO_DEVICE, "xport verbs: no RDMA device has the address %s: %s",
                      host, strerror(errno));
}

static bool set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0 &&
           fcntl(fd, F_SETFD, FD_CLOEXEC) == 0;
}

static bool watch(struct xport *x, int fd)
{
    struct epoll_event ev = {.events = EPOLLIN};
    return set_nonblocking(fd) && epoll_ctl(x->listen_fd, EPOLL_CTL_ADD, fd, &ev) == 0;
}

static enum status open_device(struct xport *x, struct verbs_device *d, struct errmsg *e)
{
    const struct verbs_lib *v = verbs_lib();
    struct ibv_device_attr attr;
    d->ctx = d->listener->verbs;
    d->pd = v->ibv.alloc_pd(d->ctx);
    d->channel = v->ibv.create_comp_channel(d->ctx);
    x->listen_fd = epoll_create1(EPOLL_CLOEXEC);
    if (!d->pd || !d->channel || x->listen_fd < 0 || v->ibv.query_device(d->ctx, &attr) != 0 ||
        !watch(x, d->events->fd) || !watch(x, d->channel->fd) ||
        v->rdma.listen(d->listener, BACKLOG) < 0)
        return errmsg_set(e, status_from_errno(errno), "xport verbs: cannot open %s: %s",
                          d->ctx->device->name, strerror(errno));
    d->max_wr = (uint32_t)attr.max_qp_wr;
    return STATUS_OK;
}

static struct xport_wire wire_of(const struct xport_wire *w)
{
    return (struct xport_wire){.traffic_class = w->traffic_class,
                               .ack_timeout = w->ack_timeout ? w->ack_timeout : VERBS_ACK_TIMEOUT,
                               .retries = w->retries ? w->retries : VERBS_RETRIES,
                               .rnr_retries = w->rnr_retries ? w->rnr_retries : VERBS_RNR_RETRIES};
}

static enum status verbs_open(struct xport *x, const struct xport_config *config, struct errmsg *e)
{
    enum status s = verbs_lib_load(e);
    if (s != STATUS_OK)
        return s;
    s = xport_wire_check(&config->wire, e);
    if (s != STATUS_OK)
        return s;
    struct verbs_device *d = mem_zalloc(1, sizeof *d);
    x->own = d;
    d->wire = wire_of(&config->wire);
    d->events = verbs_lib()->rdma.create_event_channel();
    if (!d->events)
        return errmsg_set(e, STATUS_NO_DEVICE, "xport verbs: this host has no RDMA device: %s",
                          strerror(errno));
    s = choose_device(d, config->bind_host, e);
    if (s == STATUS_OK)
        s = open_device(x, d, e);
    if (s != STATUS_OK)
        return s;
    char host[INET6_ADDRSTRLEN];
    bool v6 = d->own_addr.ss_family == AF_INET6;
    snprintf(x->address, sizeof x->address, v6 ? "verbs:[%s]:%d#%016llx" : "verbs:%s:%d#%016llx",
             host_text(&d->own_addr, host), ntohs(verbs_lib()->rdma.get_src_port(d->listener)),
             (unsigned long long)x->token);
    *port_of(&d->own_addr) = 0;
    return STATUS_OK;
}

// --- links that are gone but for copies of their last writes ---

static void parted_reap(struct verbs_device *d)
{
    for (struct verbs_conn **at = &d->parted; *at;) {
        struct verbs_conn *c = *at;
        if (verbs_conn_is_quiet(c)) {
            *at = c->next;
            verbs_conn_destroy(c);
        } else {
            at = &c->next;
        }
    }
}

// What the link sent is on its way and gets there; the connection ends behind it.
static void verbs_stop(struct xlink *l)
{
    struct verbs_conn *c = verbs_conn_of(l);
    if (!c)
        return;
    ((struct verbs_link *)l)->conn = NULL;
    if (!c->connected || verbs_conn_is_quiet(c)) {
        verbs_conn_destroy(c);
        return;
    }
    struct verbs_device *d = verbs_device_of(l->x);
    verbs_conn_part(c);
    c->next = d->parted;
    d->parted = c;
}

static void verbs_close(struct xport *x)
{
    struct verbs_device *d = verbs_device_of(x);
    if (!d)
        return;
    // Last words: they take microseconds, unless the path is broken.
    uint64_t until = xport_now_us() + PART_WAIT_US;
    for (parted_reap(d); d->parted && xport_now_us() < until; parted_reap(d))
        usleep(100);
    for (struct verbs_conn *c = d->parted, *next; c; c = next) {
        next = c->next;
        verbs_conn_destroy(c);
    }
    const struct verbs_lib *v = verbs_lib();
    if (d->listener)
        v->rdma.destroy_id(d->listener);
    if (d->channel)
        v->ibv.destroy_comp_channel(d->channel);
    if (d->pd)
        v->ibv.dealloc_pd(d->pd);
    if (d->events)
        v->rdma.destroy_event_channel(d->events);
    free(d);
}

// --- regions ---

static enum status verbs_region_create(struct xport *x, struct xregion *r, struct errmsg *e)
{
    r->base = mmap(NULL, r->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (r->base == MAP_FAILED)
        return errmsg_set(e, STATUS_NO_MEMORY, "xport region %u: cannot map %zu bytes: %s", r->id,
                          r->bytes, strerror(errno));
    if (r->bytes >= HUGE)
        madvise(r->base, r->bytes, MADV_HUGEPAGE); // fewer entries in the device's tables
    struct ibv_mr *mr = verbs_lib()->ibv.reg_mr(verbs_device_of(x)->pd, r->base, r->bytes,
                                                IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
    if (!mr) {
        char hint[160];
        verbs_memory_hint(hint, sizeof hint, errno);
        munmap(r->base, r->bytes);
        return errmsg_set(e, STATUS_NO_MEMORY, "xport region %u: cannot register %zu bytes: %s",
                          r->id, r->bytes, hint);
    }
    r->mr = mr;
    return STATUS_OK;
}

static void verbs_region_free(struct xregion *r)
{
    verbs_lib()->ibv.dereg_mr(r->mr);
    munmap(r->base, r->bytes);
}

// --- connecting ---

static struct verbs_conn *conn_create(struct xlink *l, struct rdma_cm_id *id)
{
    struct verbs_conn *c = mem_zalloc(1, sizeof *c);
    c->x = l->x;
    c->link = l;
    c->id = id;
    ((struct verbs_link *)l)->conn = c;
    if (id)
        id->context = c;
    return c;
}

static struct verbs_card card_of(const struct xport *x, enum xgreet_code code, uint64_t token)
{
    return (struct verbs_card){.magic = XPORT_MAGIC,
                               .version = XPORT_VERSION,
                               .kind = (uint8_t)x->kind,
                               .code = (uint8_t)code,
                               .token = token};
}

static void set_options(const struct verbs_device *d, struct rdma_cm_id *id)
{
    uint8_t timeout = d->wire.ack_timeout, class = d->wire.traffic_class;
    const struct verbs_lib *v = verbs_lib();
    if (v->rdma.set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &timeout,
                           sizeof timeout) < 0)
        log_warn("xport verbs: the ack timeout cannot be set (%s): a broken path is noticed late",
                 strerror(errno));
    if (class &&
        v->rdma.set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_TOS, &class, sizeof class) < 0)
        log_warn("xport verbs: the traffic class cannot be set: %s", strerror(errno));
}

static int handshake_ms(const struct xport *x)
{
    return x->handshake_ms < INT32_MAX ? (int)x->handshake_ms : INT32_MAX;
}

static enum status verbs_dial(struct xlink *l, const char *where, struct errmsg *e)
{
    struct verbs_device *d = verbs_device_of(l->x);
    const struct verbs_lib *v = verbs_lib();
    struct sockaddr_storage peer, own = d->own_addr;
    struct rdma_cm_id *id;
    if (!where_parse(where, &peer))
        return errmsg_set(e, STATUS_BAD_CONFIG, "xport verbs: '%.100s' is not HOST:PORT", where);
    if (v->rdma.create_id(d->events, &id, NULL, RDMA_PS_TCP) < 0)
        return errmsg_set(e, status_from_errno(errno), "xport verbs: rdma_create_id: %s",
                          strerror(errno));
    set_options(d, id);
    conn_create(l, id);
    if (v->rdma.resolve_addr(id, (struct sockaddr *)&own, (struct sockaddr *)&peer,
                             handshake_ms(l->x)) < 0)
        return errmsg_set(e, STATUS_LINK_DOWN, "xport verbs: %s: %s", where, strerror(errno));
    return STATUS_OK;
}

static enum status resolve_route(struct verbs_conn *c)
{
    if (c->id->verbs != verbs_device_of(c->x)->ctx)
        return STATUS_LINK_DOWN;
    bool ok = verbs_lib()->rdma.resolve_route(c->id, handshake_ms(c->x)) == 0;
    return ok ? STATUS_OK : STATUS_LINK_DOWN;
}

static enum status request(struct verbs_conn *c)
{
    enum status s = verbs_conn_prepare(c);
    if (s != STATUS_OK)
        return s;
    const struct xport_wire *wire = &verbs_device_of(c->x)->wire;
    struct verbs_card card = card_of(c->x, XGREET_OK, c->link->greeting.token);
    struct rdma_conn_param p = {.private_data = &card,
                                .private_data_len = sizeof card,
                                .retry_count = wire->retries,
                                .rnr_retry_count = wire->rnr_retries};
    return verbs_lib()->rdma.connect(c->id, &p) == 0 ? STATUS_OK : STATUS_LINK_DOWN;
}

static enum xgreet_code judge_card(const struct xport *x, const struct verbs_card *card)
{
    if (card->magic != XPORT_MAGIC || card->kind != x->kind || card->code != XGREET_OK)
        return XGREET_BAD;
    if (card->version != XPORT_VERSION)
        return XGREET_VERSION;
    if (card->token != x->token)
        return XGREET_TOKEN;
    return x->slots_n < x->max_links ? XGREET_OK : XGREET_BUSY;
}

static void turn_away(struct xport *x, struct rdma_cm_id *id, enum xgreet_code code)
{
    struct verbs_card card = card_of(x, code, 0);
    if (code == XGREET_BUSY)
        log_warn("xport verbs: all %u links are taken, a caller is refused", x->max_links);
    else
        x->stats.protocol_errors++;
    verbs_lib()->rdma.reject(id, &card, sizeof card);
    verbs_lib()->rdma.destroy_id(id);
}

static void answer_request(struct xport *x, struct rdma_cm_id *id, const struct verbs_card *card)
{
    enum xgreet_code code = judge_card(x, card);
    if (code == XGREET_OK && id->verbs != verbs_device_of(x)->ctx)
        code = XGREET_BAD;
    if (code != XGREET_OK) {
        turn_away(x, id, code);
        return;
    }
    if (x->half_n >= xsock_half_open_max(x))
        xsock_evict_oldest(x);
    struct xlink *l = xlink_create(x, true);
    struct verbs_conn *c = conn_create(l, id);
    set_options(verbs_device_of(x), id);
    struct verbs_card own = card_of(x, XGREET_OK, 0);
    struct rdma_conn_param p = {.private_data = &own,
                                .private_data_len = sizeof own,
                                .rnr_retry_count = verbs_device_of(x)->wire.rnr_retries};
    if (verbs_conn_prepare(c) != STATUS_OK || verbs_lib()->rdma.accept(id, &p) < 0) {
        xlink_fail(l, STATUS_LINK_DOWN, false);
        return;
    }
    c->connected = true;
}

static enum status why_rejected(int status, const struct verbs_card *card)
{
    if (status != CONSUMER_REJECT || card->magic != XPORT_MAGIC)
        return STATUS_LINK_DOWN; // nobody listens there
    if (card->code == XGREET_BUSY || card->code == XGREET_TOKEN)
        return STATUS_REFUSED;
    return card->code == XGREET_VERSION ? STATUS_LINK_VERSION : STATUS_LINK_PROTOCOL;
}

// --- events ---

static void device_gone(struct verbs_conn *c)
{
    log_error("xport verbs: the device of a link was removed");
    c->gone = c->broken = true;
    if (c->has_qp)
        verbs_lib()->rdma.destroy_qp(c->id); // nothing is read or written after this
    c->has_qp = false;
    if (c->link)
        xlink_fail(c->link, STATUS_LINK_DOWN, false);
}

static void link_lost(struct verbs_conn *c, enum status why)
{
    bool drain = c->link && c->link->state == XLINK_UP;
    verbs_conn_break(c);
    if (c->link)
        xlink_fail(c->link, why, drain);
}

static void conn_event(struct verbs_conn *c, enum rdma_cm_event_type event, int status,
                       const struct verbs_card *card)
{
    bool dialing = c->link && c->link->state == XLINK_DIALING;
    enum status s = STATUS_OK;
    switch (event) {
    case RDMA_CM_EVENT_ADDR_RESOLVED:
        s = dialing ? resolve_route(c) : STATUS_OK;
        break;
    case RDMA_CM_EVENT_ROUTE_RESOLVED:
        s = dialing ? request(c) : STATUS_OK;
        break;
    case RDMA_CM_EVENT_ESTABLISHED:
        c->connected = true;
        if (dialing)
            xsock_introduce(c->link);
        break;
    case RDMA_CM_EVENT_REJECTED:
        s = why_rejected(status, card);
        break;
    case RDMA_CM_EVENT_ADDR_ERROR:
    case RDMA_CM_EVENT_ROUTE_ERROR:
    case RDMA_CM_EVENT_CONNECT_ERROR:
    case RDMA_CM_EVENT_UNREACHABLE:
    case RDMA_CM_EVENT_DISCONNECTED:
        s = STATUS_LINK_DOWN;
        break;
    case RDMA_CM_EVENT_DEVICE_REMOVAL:
        device_gone(c);
        break;
    default:
        break; // TIMEWAIT_EXIT, ADDR_CHANGE: nothing to do
    }
    if (s != STATUS_OK)
        link_lost(c, s);
}

static bool take_cm_event(struct xport *x)
{
    struct verbs_device *d = verbs_device_of(x);
    struct rdma_cm_event *ev;
    if (verbs_lib()->rdma.get_cm_event(d->events, &ev) < 0)
        return false;
    enum rdma_cm_event_type type = ev->event;
    int status = ev->status;
    struct rdma_cm_id *id = ev->id;
    struct verbs_card card = {0};
    if (ev->param.conn.private_data && ev->param.conn.private_data_len >= sizeof card)
        memcpy(&card, ev->param.conn.private_data, sizeof card);
    verbs_lib()->rdma.ack_cm_event(ev); // before anything may free the id
    if (type == RDMA_CM_EVENT_CONNECT_REQUEST)
        answer_request(x, id, &card);
    else if (id == d->listener && type == RDMA_CM_EVENT_DEVICE_REMOVAL)
        log_error("xport verbs: the device was removed; no peer can connect any more");
    else if (id != d->listener)
        conn_event(id->context, type, status, &card);
    return true;
}

static bool take_completion_event(struct xport *x)
{
    struct ibv_cq *cq;
    void *context;
    if (verbs_lib()->ibv.get_cq_event(verbs_device_of(x)->channel, &cq, &context) < 0)
        return false;
    verbs_lib()->ibv.ack_cq_events(cq, 1);
    struct verbs_conn *c = context;
    if (cq == c->send_cq)
        c->send_armed = false;
    else
        c->recv_armed = false;
    bool greeting = c->link && c->link->state == XLINK_GREETING;
    if (greeting || !c->link)
        verbs_conn_arm(c); // before looking: what comes after it, is told
    if (greeting)
        xsock_greet(c->link, 0);
    return true;
}

static void verbs_arrive(struct xport *x)
{
    for (int i = 0; i < EVENTS_PER_TURN && take_cm_event(x); i++)
        ;
    for (int i = 0; i < EVENTS_PER_TURN && take_completion_event(x); i++)
        ;
    parted_reap(verbs_device_of(x));
}

static uint64_t verbs_tick(struct xport *x, uint64_t now_us)
{
    for (size_t i = 0; i < x->links_n; i++)
        if (x->links[i]->state == XLINK_UP)
            verbs_conn_probe(verbs_conn_of(x->links[i]));
    parted_reap(verbs_device_of(x));
    return now_us + VERBS_KEEPALIVE_MS * 1000;
}

static void verbs_sleeping(struct xlink *l, bool sleep)
{
    if (sleep)
        verbs_conn_arm(verbs_conn_of(l));
}

// Links have no socket of their own.
static void verbs_service(struct xlink *l, uint32_t events)
{
}

const struct xport_body xport_verbs_body = {
    .name = "verbs",
    .link_bytes = sizeof(struct verbs_link),
    .memory_polled = true,
    .open = verbs_open,
    .close = verbs_close,
    .arrive = verbs_arrive,
    .tick = verbs_tick,
    .region_create = verbs_region_create,
    .region_free = verbs_region_free,
    .dial = verbs_dial,
    .greet = verbs_greet,
    .greeted = verbs_greeted,
    .start = verbs_start,
    .write = verbs_write,
    .service = verbs_service,
    .receive = verbs_receive,
    .ready = verbs_ready,
    .released = verbs_released,
    .sleeping = verbs_sleeping,
    .hang_up = verbs_stop,
    .stop = verbs_stop,
};
