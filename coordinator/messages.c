// What nodes say: heartbeats, faults, and the messages that go on to forming and to requests. Here
// is decided whether a message still counts: right connection, right replica, right epoch.
#include <string.h>

#include "coordinator/core.h"

static bool loop_turns(const struct coord *c, const struct msg_heartbeat *h)
{
    return h->loop_age_ms <= c->cfg.hang_ms;
}

bool member_usable(const struct coord *c, const struct member *m)
{
    return m->state == COORD_NODE_FREE && loop_turns(c, &m->heartbeat);
}

// Only when it is first told of a process: an operator who lets the node in again knows of it.
static void on_suspect_gpu(struct coord *c, struct member *m, const struct gpu_figures *g)
{
    const char *why = arena_printf(&c->arena, "eject node %s: GPU suspect: %s", m->name, g->reason);
    member_blame(c, m, why);
    if (m->mark != MARK_EJECT)
        member_eject(c, m, why);
}

static void on_heartbeat(struct coord *c, struct member *m, const struct msg_heartbeat *h)
{
    bool turned = loop_turns(c, &m->heartbeat);
    bool was_suspect = m->has_gpu && m->heartbeat.gpu.suspect;
    m->has_gpu |= h->gpu.present || h->gpu.suspect;
    // Most of it are figures of the GPU: without one they stay zero, and are not touched.
    if (m->has_gpu)
        m->heartbeat = *h;
    else
        memcpy(&m->heartbeat, h, offsetof(struct msg_heartbeat, gpu));
    m->heartbeat_us = c->now_us;
    // After a restart nodes may know higher epochs than our store: never go below one.
    if (h->epoch > c->epoch && h->epoch < UINT64_MAX / 2)
        c->epoch = h->epoch;
    if (h->gpu.suspect && !was_suspect)
        on_suspect_gpu(c, m, &h->gpu);
    if (m->state == COORD_NODE_FREE && !turned && loop_turns(c, h))
        c->place = true;
    if (m->state == COORD_NODE_SUSPECT && h->replica == 0 && h->step_age_ms == 0 &&
        h->progress.step == 0 && loop_turns(c, h)) {
        core_trace(c, LOG_INFO, "node %s shows life again", m->name);
        member_move(c, m, COORD_NODE_FREE);
    }
    struct replica *r = m->replica;
    if (!r || r->state == COORD_REPLICA_FORMING || h->replica != r->id || h->epoch != r->epoch)
        return;
    if (m->rank == 0) {
        r->kv_free = h->kv_free;
        r->waiting = h->waiting;
    }
    if (h->step_age_ms > c->cfg.hang_ms || !loop_turns(c, h))
        replica_watch(c, r);
}

static void on_fault(struct coord *c, struct member *m, const struct msg_fault *f)
{
    struct replica *r = m->replica;
    struct member *suspect = NULL;
    if (f->stage >= 0 && f->tensor >= 0 && (uint32_t)f->stage < r->pool->set.stages &&
        (uint32_t)f->tensor < r->pool->set.tensor)
        suspect = r->ranks[(uint32_t)f->stage * r->pool->set.tensor + (uint32_t)f->tensor];
    const char *text = arena_printf(&c->arena, "node %s reported %s: %.200s%s%s", m->name,
                                    status_name(f->status), f->text ? f->text : "",
                                    suspect ? "; suspect node " : "", suspect ? suspect->name : "");
    replica_fence(c, r, &(struct fence){FENCE_FAULT, suspect, text});
}

// True when the message is of the replica and epoch that its sender is a rank of now.
static bool current(struct coord *c, const struct member *m, uint64_t replica, uint64_t epoch)
{
    const struct replica *r = m->replica;
    if (r && r->id == replica && r->epoch == epoch)
        return true;
    c->stats.stale_dropped++;
    return false;
}

static bool from_lead(struct coord *c, const struct member *m, uint64_t replica, uint64_t epoch)
{
    if (!current(c, m, replica, epoch))
        return false;
    if (m->rank == 0 && m->replica->state != COORD_REPLICA_FORMING)
        return true;
    c->stats.protocol_errors++;
    return false;
}

void members_msg(struct coord *c, uint64_t conn, const struct msg *msg)
{
    struct conn *k = conn_find(c, conn);
    if (!k) {
        c->stats.stale_dropped++;
        return;
    }
    struct member *m = k->member;
    if (k->pulse && msg->kind != MSG_HEARTBEAT) {
        protocol_error(c, m, conn, "sent more than heartbeats on its heartbeat connection");
        return;
    }
    switch (msg->kind) {
    case MSG_HEARTBEAT:
        on_heartbeat(c, m, &msg->heartbeat);
        break;
    case MSG_PREPARED:
        if (current(c, m, msg->prepared.replica, msg->prepared.epoch))
            replica_prepared(c, m, &msg->prepared);
        break;
    case MSG_FORMED:
        if (current(c, m, msg->formed.replica, msg->formed.epoch))
            replica_formed(c, m, &msg->formed);
        break;
    case MSG_TOKENS:
        if (from_lead(c, m, msg->tokens.replica, msg->tokens.epoch))
            requests_tokens(c, m->replica, &msg->tokens);
        break;
    case MSG_KV_CACHED:
        if (from_lead(c, m, msg->kv_cached.replica, msg->kv_cached.epoch))
            cache_report(c, m->replica, &msg->kv_cached);
        break;
    case MSG_CANCELLED:
        if (from_lead(c, m, msg->cancelled.replica, msg->cancelled.epoch))
            requests_cancelled(c, m->replica, msg->cancelled.request);
        break;
    case MSG_KV_READY:
        if (from_lead(c, m, msg->kv_ready.replica, msg->kv_ready.epoch))
            transfer_on_ready(c, m->replica, &msg->kv_ready);
        break;
    case MSG_KV_DONE:
        if (from_lead(c, m, msg->kv_done.replica, msg->kv_done.epoch))
            transfer_on_done(c, m->replica, &msg->kv_done);
        break;
    case MSG_FAULT:
        if (current(c, m, msg->fault.replica, msg->fault.epoch))
            on_fault(c, m, &msg->fault);
        break;
    default:
        protocol_error(c, m, conn, "sent a message that nodes do not send");
        break;
    }
}
