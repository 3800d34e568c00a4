#include "node/transports.h"

#include <stdio.h>
#include <string.h>

// Of verbs: the rails' addresses with commas between them, empty ones for rails that rest.
const char *transports_address(const struct rank_addresses *a, struct transport t,
                               char buf[LIMIT_ADDR])
{
    const char *s = t.kind == XPORT_SHM ? a->shm : t.kind == XPORT_TCP ? a->tcp : a->verbs;
    s = s ? s : "";
    size_t n = strlen(s);
    if (t.kind == XPORT_VERBS) {
        for (uint32_t i = 0; i < t.rail && *s; i++) {
            s += strcspn(s, ",");
            s += *s == ',';
        }
        n = strcspn(s, ",");
    }
    snprintf(buf, LIMIT_ADDR, "%.*s", n < LIMIT_ADDR ? (int)n : 0, s);
    return buf;
}

enum transport_choice transports_in_use(enum xport_kind kind)
{
    return kind == XPORT_SHM ? TRANSPORT_SHM : kind == XPORT_TCP ? TRANSPORT_TCP : TRANSPORT_VERBS;
}

// The first rank that cannot be reached over it; -1: all can.
static int lacks(const struct transports_want *w, struct transport t)
{
    char buf[LIMIT_ADDR];
    for (uint32_t i = 0; i < w->members_n; i++) {
        const struct link_member *m = &w->members[i];
        if (!transports_address(&m->addresses, t, buf)[0] ||
            (t.kind == XPORT_SHM && strcmp(m->host, w->members[0].host)))
            return (int)i;
    }
    return -1;
}

// The same of a kind: of verbs, the replica's turn among the rails that all ranks offer.
static int lacks_kind(const struct transports_want *w, struct transport *t)
{
    uint32_t common[RDMA_RAILS_MAX], n = 0;
    int first = lacks(w, *t);
    if (t->kind != XPORT_VERBS)
        return first;
    for (uint32_t rail = 0; rail < RDMA_RAILS_MAX; rail++)
        if (lacks(w, (struct transport){XPORT_VERBS, rail}) < 0)
            common[n++] = rail;
    if (n)
        t->rail = common[w->replica % n];
    return n ? -1 : first;
}

enum status transports_choose(const struct transports_want *want, struct transport *out,
                              int *fallback_out, struct errmsg *e)
{
    // In the order of preference of each choice.
    static const struct {
        int n;
        enum xport_kind kinds[3];
    } orders[] = {
        [TRANSPORT_AUTO] = {3, {XPORT_SHM, XPORT_VERBS, XPORT_TCP}},
        [TRANSPORT_SHM] = {1, {XPORT_SHM}},
        [TRANSPORT_TCP] = {1, {XPORT_TCP}},
        [TRANSPORT_VERBS] = {2, {XPORT_VERBS, XPORT_TCP}},
    };
    int rank = 0;
    for (int i = 0; i < orders[want->choice].n; i++) {
        struct transport t = {.kind = orders[want->choice].kinds[i]};
        int without = lacks_kind(want, &t);
        if (without < 0) {
            *out = t;
            *fallback_out = want->choice == TRANSPORT_VERBS && i > 0 ? rank : -1;
            return STATUS_OK;
        }
        rank = without;
    }
    const char *name = xport_kind_name(orders[want->choice].kinds[orders[want->choice].n - 1]);
    return errmsg_set(e, STATUS_BAD_CONFIG,
                      "transport: the ranks have none in common; node %s cannot be reached over %s",
                      want->members[rank].name, name);
}

bool rdma_rest_offers(const struct rdma_rest *r, uint64_t now_ms)
{
    return now_ms >= r->until_ms;
}

bool rdma_rest_fault(struct rdma_rest *r, uint64_t now_ms, bool unreachable)
{
    if (!rdma_rest_offers(r, now_ms))
        return false;
    memmove(r->faults_ms, r->faults_ms + 1, sizeof r->faults_ms - sizeof r->faults_ms[0]);
    r->faults_ms[RDMA_FAULTS - 1] = now_ms;
    uint64_t first = unreachable ? now_ms : r->faults_ms[0];
    if (!first || now_ms - first > RDMA_FAULT_WINDOW_MS)
        return false;
    bool again = r->until_ms && first - r->until_ms < RDMA_FAULT_WINDOW_MS;
    uint64_t rest = again ? 2 * (uint64_t)r->rest_ms : RDMA_REST_MS;
    r->rest_ms = (uint32_t)(rest < RDMA_REST_MAX_MS ? rest : RDMA_REST_MAX_MS);
    r->until_ms = now_ms + r->rest_ms;
    r->rests++;
    memset(r->faults_ms, 0, sizeof r->faults_ms);
    return true;
}
