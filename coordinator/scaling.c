// Elasticity in the core: looks at every pool once a second and sets how many replicas it should
// have (elastic.h); and tells how many nodes that takes, and how many are too many, for whoever can
// start and stop nodes. During a rollout the number stays.
#include <inttypes.h>

#include "coordinator/core.h"

enum { LOOK_US = 1000000 };

// It gave a replica to requests of another version: one more here would take it back from them.
static bool lends(const struct coord *c, const struct pool *p)
{
    for (uint32_t i = 0; i < c->pools_n; i++)
        if (c->pools[i]->lender == p)
            return true;
    return false;
}

static bool busy(const struct coord *c, const struct pool *p)
{
    bool shifts = c->shift.state != ROLLOUT_IDLE && (p == c->shift.from || p == c->shift.to);
    return shifts || p->lender || lends(c, p) || !p->set.weight;
}

static void look(struct coord *c, struct pool *p)
{
    uint32_t waiting = pool_waiting(p);
    const struct elastic_look k = {
        .wanted = p->wanted,
        .ready = p->warm_n,
        .places = p->credits,
        .load = p->load + waiting,
        .queued = waiting,
        // While none serves more would not help: what there is must come up first.
        .wait_ms = !p->warm_n || (p->load < p->credits && !waiting)
                       ? 0
                       : (uint32_t)(notices_wait_us(p, 0, waiting + 1) / 1000),
    };
    uint32_t n = elastic_step(&c->cfg.elastic, &p->elastic, c->now_us, &k);
    if (n == p->wanted)
        return;
    core_trace(c, LOG_INFO,
               "%s: %u replicas are wanted, not %u: who comes now waits %u ms, %u of "
               "%u places are taken",
               p->set.name, n, p->wanted, k.wait_ms, k.load, k.places);
    c->stats.scaled++;
    pool_scale(c, p, n);
}

void scaling_timer(struct coord *c)
{
    core_arm(c, &c->elastic_timer, TIMER_ELASTIC, c->now_us + LOOK_US);
    for (uint32_t i = 0; i < c->pools_n; i++)
        if (!busy(c, c->pools[i]))
            look(c, c->pools[i]);
}

uint32_t scaling_nodes_wanted(const struct coord *c)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->pools_n; i++)
        n += c->pools[i]->wanted * c->pools[i]->ranks_n;
    return n;
}

void coord_nodes(const struct coord *c, struct coord_nodes *out)
{
    struct coord_nodes n = {.wanted = scaling_nodes_wanted(c)};
    for (const struct member *m = c->members; m; m = m->next)
        n.connected += m->conn != 0;
    uint32_t over = n.connected > n.wanted ? n.connected - n.wanted : 0;
    n.spare = over < c->free_n ? over : c->free_n;
    *out = n;
}

// Told when it changes: the shell calls a program for it.
void scaling_tell(struct coord *c)
{
    if (!c->cfg.elastic.max && !c->cfg.tell_nodes)
        return;
    struct coord_nodes n;
    coord_nodes(c, &n);
    if (n.wanted == c->nodes_told.wanted && n.spare == c->nodes_told.spare &&
        (n.connected < n.wanted) == (c->nodes_told.connected < c->nodes_told.wanted))
        return;
    c->nodes_told = n;
    core_emit(c, COORD_NODES)->nodes = n;
}
