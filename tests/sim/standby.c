// A standby of the coordinator, as the shells do it in production: records of all that must outlive
// the leader travel as frames, acknowledgements come back, clients see what is acknowledged. When
// the leader is killed, the standby makes a core of its own, puts every request into it, and nodes
// and clients come to it; later another standby fetches all that is there.
#include <inttypes.h>
#include <string.h>

#include "base/mem.h"
#include "tests/sim/world.h"

static uint64_t delay(struct world *w)
{
    return world_between(w, w->opt.delay_min_us, w->opt.delay_max_us);
}

// ---- the leader's side ----

static void send_record(struct world *w, struct copy_record *r)
{
    struct strbuf frame = {0};
    struct copy c = {.kind = COPY_RECORD, .record = *r};
    c.record.seq = copier_stamp(&w->copier);
    c.record.epoch = coord_epoch(w->coord);
    if (wire_encode_copy(&w->copy_arena, &c, &frame))
        world_fail(w, "a record is too large");
    uint64_t at = w->now_us + delay(w);
    if (at < w->copy_last_us)
        at = w->copy_last_us; // TCP keeps the order
    w->copy_last_us = at;
    world_push(w, (struct sim_event){.at_us = at,
                                     .kind = SIM_COPY,
                                     .node = -1,
                                     .gen = w->copy_gen,
                                     .bytes = frame.v,
                                     .bytes_n = frame.n});
}

static void submit_record(struct copy_record *r, const struct coord_request_view *v)
{
    *r = (struct copy_record){.what = COPY_SUBMIT,
                              .request = v->id,
                              .tenant = v->tenant,
                              .model = v->model,
                              .pool = v->pool,
                              .session = v->session,
                              .fingerprint = v->fingerprint,
                              .journal = {.request = v->id,
                                          .prompt = v->prompt,
                                          .prompt_n = v->prompt_n,
                                          .emitted = v->tokens,
                                          .emitted_n = v->tokens_n,
                                          .max_tokens = v->max_tokens,
                                          .stop_ids_n = v->stop_ids_n,
                                          .band = v->band,
                                          .sampling = v->sampling}};
    memcpy(r->journal.stop_ids, v->stop_ids, sizeof r->journal.stop_ids);
}

void standby_submitted(struct world *w, uint64_t id)
{
    struct coord_request_view v;
    struct copy_record r;
    if (!w->copying || !coord_request_find(w->coord, id, &v))
        return;
    submit_record(&r, &v);
    r.journal.emitted_n = 0; // its tokens follow
    send_record(w, &r);
}

bool standby_holds(struct world *w, const struct coord_action *a)
{
    struct copy_record r;
    if (!w->opt.standby)
        return false;
    if (w->copying && copier_record(a, &r))
        send_record(w, &r);
    return copier_hold(&w->copier, a);
}

static bool snapshot(void *arg, const struct coord_request_view *v)
{
    struct world *w = arg;
    struct copy_record r;
    if (v->finish != FINISH_NONE)
        return true; // the simulator's snapshots leave out what is only kept
    submit_record(&r, v);
    send_record(w, &r);
    return true;
}

// A standby is there again.
static void attach(struct world *w, int arg)
{
    if (!w->coord || w->copying)
        return;
    w->copying = true;
    w->copy_gen++;
    w->attached_us = w->now_us;
    shadow_clear(&w->shadow);
    coord_each_request(w->coord, snapshot, w);
    struct copy_record r = {.what = COPY_SYNCED};
    send_record(w, &r);
    copier_syncing(&w->copier, w->copier.seq);
    world_trace(w, "standby > there, record %" PRIu64, w->copier.seq);
}

void standby_start(struct world *w)
{
    w->copier.mode = w->opt.copy_mode;
    if (w->opt.standby)
        world_call(w, SIM_MS(5), attach, 0);
}

// The end of a request may be forgotten once its client knows of it.
void standby_told(struct world *w, const struct coord_action *a)
{
    struct copy_record r;
    if (w->coord && w->copying && copier_record_after(a, &r))
        send_record(w, &r);
}

void standby_acked(struct world *w, const struct sim_event *ev)
{
    if (!w->coord || ev->gen != w->copy_gen)
        return;
    copier_ack(&w->copier, ev->conn);
    const struct coord_action *a;
    while ((a = copier_next(&w->copier))) {
        client_action(w, a);
        standby_told(w, a);
    }
}

// ---- the standby's side ----

void standby_record(struct world *w, struct sim_event *ev)
{
    struct wire_decoder d;
    struct wire_frame f;
    struct copy c;
    struct errmsg err = {0};
    wire_decoder_init(&d, 0);
    wire_decoder_feed(&d, ev->bytes, ev->bytes_n);
    if (ev->gen != w->copy_gen) {
        wire_decoder_finish(&d);
        return;
    }
    if (wire_decoder_next(&d, &f, &err) || wire_decode_copy(&w->copy_arena, &f, &c, &err) ||
        shadow_take(&w->shadow, &c.record, &err))
        world_fail(w, "standby: %s", err.text);
    world_push(w, (struct sim_event){.at_us = w->now_us + delay(w),
                                     .kind = SIM_ACK,
                                     .node = -1,
                                     .gen = w->copy_gen,
                                     .conn = w->shadow.seq});
    wire_decoder_finish(&d);
}

// ---- death and succession ----

static void break_conns(struct world *w)
{
    for (size_t i = 0; i < w->conns_n; i++) {
        struct sim_conn *k = &w->conns[i];
        if (!k->coord_open && !k->node_open)
            continue;
        k->coord_open = false;
        k->broken = true;
        if (k->node_open)
            world_push(w, (struct sim_event){.at_us = w->now_us + delay(w),
                                             .kind = SIM_NODE_DOWN,
                                             .node = k->node,
                                             .conn = i + 1});
    }
}

static void restore(struct world *w)
{
    struct shadow_request *q, *next;
    HASH_ITER(hh, w->shadow.requests, q, next)
    world_coord(w, &(struct coord_event){.kind = COORD_RESTORE, .restore = q->restore});
}

static void take_over(struct world *w, int arg)
{
    struct errmsg err = {0};
    w->opt.coord.first_epoch = w->shadow.epoch + 1000;
    w->coord = coord_create(&w->opt.coord, &err);
    if (!w->coord)
        world_fail(w, "%s", err.text);
    policy_start(w);
    w->coord_timer_gen++;
    memset(w->epochs, 0, sizeof w->epochs);
    memset(w->ready_us, 0xff, sizeof w->ready_us);
    w->takeovers++;
    w->restored += w->shadow.n;
    world_tell(w, "standby > takes over %u requests", w->shadow.n);
    w->restoring = true;
    restore(w);
    w->restoring = false;
    clients_moved(w);
    shadow_clear(&w->shadow);
    world_call(w, w->now_us + world_between(w, SIM_MS(100), SIM_MS(1500)), attach, 0);
}

// Without a synced standby the coordinator is spared: what is lost then is known.
void standby_kill_leader(struct world *w, uint32_t pause_ms)
{
    if (!w->coord || !w->copying || !w->copier.synced)
        return;
    world_tell(w, "coordinator > killed");
    coord_destroy(w->coord);
    w->coord = NULL;
    if (world_chance(w, 0.5))
        w->copy_gen++; // what is under way is lost; else it still arrives
    w->copying = false;
    copier_finish(&w->copier);
    w->copier = (struct copier){.mode = w->opt.copy_mode};
    w->admin_done = w->admin_sent; // nobody answers those
    break_conns(w);
    world_call(w, w->now_us + SIM_MS(pause_ms), take_over, 0);
}
