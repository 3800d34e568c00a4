// What a lead tells of its prefix cache, so that the coordinator sends follow-ups where their
// beginnings are. Changes are collected for a few steps; a block that changed several times is told
// once. Nothing is lost when a report is: the coordinator asks for all of it again.
#include "node/node_int.h"

enum { REPORT_CHANGES = 64, REPORT_STEPS = 8 };

void node_cache_begin(struct node *n)
{
    n->cache_seq = 0;
    n->cache_reset = false;
    n->cache_silent = 0;
}

static void report(struct node *n)
{
    struct msg *m = n->cache_told ? NULL : node_send(n, MSG_KV_CACHED);
    if (m == NULL)
        return;
    n->cache_told = true;
    m->kv_cached = (struct msg_kv_cached){
        .replica = n->replica,
        .epoch = n->epoch,
        .seq = ++n->cache_seq,
        .reset = n->cache_reset,
        .changes = n->cache_changes,
        .changes_n = batch_kv_changes(n->batch, n->cache_changes, MSG_KV_CHANGES),
    };
    m->kv_cached.more = batch_kv_changes_n(n->batch) > 0;
    n->cache_reset = false;
    n->cache_silent = 0;
}

void node_cache_stepped(struct node *n)
{
    struct batch_load load = batch_load(n->batch);
    uint32_t changes = batch_kv_changes_n(n->batch);
    bool idle = load.running + load.waiting == 0;
    n->cache_silent++;
    if (changes >= REPORT_CHANGES || (changes > 0 && (idle || n->cache_silent >= REPORT_STEPS)))
        report(n);
}

void node_on_kv_list(struct node *n, bool all)
{
    if (all) {
        batch_kv_tell_all(n->batch);
        n->cache_reset = true;
    }
    if (all || batch_kv_changes_n(n->batch) > 0)
        report(n);
}
