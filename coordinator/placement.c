// Greedy by score, in two rounds: first every rank takes a healthy node that already holds its
// weights, then the rest is filled up. O(ranks x nodes), and runs only when a replica is formed.
#include "coordinator/placement.h"

#include <stdlib.h>

#include "base/mem.h"

enum { NOBODY = UINT32_MAX };

struct placing {
    const struct placement_want *want;
    const struct placement_node *nodes;
    size_t nodes_n;
    bool *taken;
    uint32_t *ranks;
};

static bool holds_rank(const struct placement_node *n, uint32_t stage, uint32_t tensor)
{
    return n->holds && n->stage == stage && n->tensor == tensor;
}

// Free nodes on a host, counted only as far as a stage needs them.
static uint32_t host_room(const struct placing *p, uint64_t host)
{
    uint32_t room = 0;
    for (size_t i = 0; i < p->nodes_n && room < p->want->tensor; i++)
        room += !p->taken[i] && p->nodes[i].host == host;
    return room;
}

static uint32_t mates_on_host(const struct placing *p, uint32_t stage, uint64_t host)
{
    uint32_t mates = 0;
    for (uint32_t t = 0; t < p->want->tensor; t++) {
        uint32_t i = p->ranks[stage * p->want->tensor + t];
        mates += i != NOBODY && p->nodes[i].host == host;
    }
    return mates;
}

static uint64_t score(const struct placing *p, uint32_t stage, uint32_t tensor,
                      const struct placement_node *n)
{
    uint64_t s = n->faults < 15 ? 15 - n->faults : 0;
    s += (uint64_t)(n->faults == 0) << 40;
    if (p->want->tensor > 1) {
        uint64_t mates = mates_on_host(p, stage, n->host);
        s += (mates ? 64 + mates : host_room(p, n->host)) << 8;
    }
    if (holds_rank(n, stage, tensor))
        s += (n->held_replica == p->want->replica ? 3ull : 2ull) << 32;
    else if (!n->holds)
        s += 1ull << 4; // the others keep their weights for their own rank
    return s + 1;
}

static void take_best(struct placing *p, uint32_t stage, uint32_t tensor, bool holders_only)
{
    uint64_t best_score = 0;
    uint32_t best = NOBODY;
    for (uint32_t i = 0; i < p->nodes_n; i++) {
        if (p->taken[i] ||
            (holders_only && (p->nodes[i].faults || !holds_rank(&p->nodes[i], stage, tensor))))
            continue;
        uint64_t s = score(p, stage, tensor, &p->nodes[i]);
        if (s > best_score) {
            best_score = s;
            best = i;
        }
    }
    if (best == NOBODY)
        return;
    p->taken[best] = true;
    p->ranks[stage * p->want->tensor + tensor] = best;
}

bool placement_assign(const struct placement_want *want, const struct placement_node *nodes,
                      size_t nodes_n, uint32_t *ranks_out)
{
    uint32_t ranks_n = want->stages * want->tensor;
    if (nodes_n < ranks_n)
        return false;
    struct placing p = {want, nodes, nodes_n, mem_zalloc(nodes_n, sizeof(bool)), ranks_out};
    for (uint32_t r = 0; r < ranks_n; r++)
        ranks_out[r] = NOBODY;
    for (uint32_t r = 0; r < ranks_n; r++)
        take_best(&p, r / want->tensor, r % want->tensor, true);
    for (uint32_t r = 0; r < ranks_n; r++)
        if (ranks_out[r] == NOBODY)
            take_best(&p, r / want->tensor, r % want->tensor, false);
    free(p.taken);
    return true;
}
