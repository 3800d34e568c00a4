// A follower of the coordinator, as the shells do it in production: records of all that must outlive
// the leader travel as frames, acknowledgements come back, clients see what is acknowledged. Some
// clients are the follower's: what they ask travels up, what becomes of it comes back as records.
// When the leader is killed, the follower makes a core of its own, puts every request into it, and
// nodes and clients come to it; later another follower fetches all that is there. The connection of
// the two may break too.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "tests/sim/world.h"

static uint64_t delay(struct world *w)
{
    return world_between(w, w->opt.delay_min_us, w->opt.delay_max_us);
}

// ---- the leader's side ----

static void send_frame(struct world *w, const struct copy *c, enum sim_kind kind,
                       uint64_t *last_us)
{
    struct strbuf frame = {0};
    struct wire_arena arena = {0}; // what is said may stand on what came, in the other one
    if (wire_encode_copy(&arena, c, &frame))
        world_fail(w, "a frame of coordinators is too large");
    wire_arena_finish(&arena);
    uint64_t at = w->now_us + delay(w);
    if (at < *last_us)
        at = *last_us; // TCP keeps the order
    *last_us = at;
    world_push(w, (struct sim_event){.at_us = at,
                                     .kind = kind,
                                     .node = -1,
                                     .gen = w->copy_gen,
                                     .bytes = frame.v,
                                     .bytes_n = frame.n});
}

// Before SYNCED records have no number.
static void tell_record(struct world *w, struct copy_record *r)
{
    r->epoch = coord_epoch(w->coord);
    send_frame(w, &(struct copy){.kind = COPY_RECORD, .record = *r}, SIM_COPY, &w->copy_last_us);
}

static void send_record(struct world *w, struct copy_record *r)
{
    r->seq = copier_stamp(&w->copier);
    tell_record(w, r);
}

static void tokens_record(struct copy_record *r, const struct coord_request_view *v)
{
    struct token_out *t = mem_zalloc(v->tokens_n, sizeof *t);
    for (uint32_t i = 0; i < v->tokens_n; i++)
        t[i] = (struct token_out){.index = i, .token = v->tokens[i]};
    *r = (struct copy_record){.what = COPY_TOKENS,
                              .request = v->id,
                              .tokens = t,
                              .tokens_n = v->tokens_n,
                              .fingerprint = v->fingerprint};
}

void standby_submitted(struct world *w, uint64_t id)
{
    struct coord_request_view v;
    struct copy_record r;
    if (!w->copying || !coord_request_find(w->coord, id, &v))
        return;
    if (!v.prompt)
        return;
    r = copier_submit(&v);
    send_record(w, &r);
    if (!v.tokens_n)
        return;
    tokens_record(&r, &v); // it was restored
    send_record(w, &r);
    free((void *)r.tokens);
}

bool standby_holds(struct world *w, const struct coord_action *a)
{
    struct copy_record r;
    if (!w->opt.standby)
        return false;
    if (w->copying && copier_record(a, &r)) {
        send_record(w, &r);
    } else if (w->copying && a->kind == COORD_QUEUED && guests_has(&w->guests, a->queued.request)) {
        r = (struct copy_record){.what = COPY_QUEUED,
                                 .request = a->queued.request,
                                 .position = a->queued.position,
                                 .eta_ms = a->queued.eta_ms};
        send_record(w, &r);
    }
    return copier_hold(&w->copier, a);
}

void standby_state(struct world *w, const struct coord_action *a)
{
    struct copy_record r;
    if (w->copying && copier_record(a, &r))
        send_record(w, &r);
}

static bool snapshot(void *arg, const struct coord_request_view *v)
{
    struct world *w = arg;
    struct copy_record r;
    r = copier_submit(v);
    tell_record(w, &r);
    if (v->tokens_n) {
        tokens_record(&r, v);
        tell_record(w, &r);
        free((void *)r.tokens);
    }
    if (v->finish == FINISH_NONE)
        return true;
    r = (struct copy_record){.what = COPY_DONE,
                             .request = v->id,
                             .finish = v->finish,
                             .status = v->status,
                             .text = v->text,
                             .emitted_n = v->tokens_n,
                             .cached_n = v->cached_n};
    tell_record(w, &r);
    return true;
}

// A follower is there again: another one, or the one whose connection broke.
static void attach(struct world *w, int arg)
{
    if (!w->coord || w->copying)
        return;
    w->copying = true;
    w->copy_gen++;
    w->attached_us = w->now_us;
    w->follower_there = true;
    follower_up(&w->follower);
    tell_record(w, &(struct copy_record){.what = COPY_ORDERS, .text = coord_state(w->coord)});
    coord_each_request(w->coord, snapshot, w);
    struct copy_record r = {.what = COPY_SYNCED,
                            .seq = copier_syncing(&w->copier, w->copy_gen, false)};
    tell_record(w, &r);
    world_trace(w, "follower > there, record %" PRIu64, r.seq);
}

// What the follower says to the leader.
static void say(void *arg, const struct copy *c)
{
    struct world *w = arg;
    send_frame(w, c, SIM_ASK, &w->ask_last_us);
}

void standby_start(struct world *w)
{
    w->copier.mode = w->opt.copy_mode;
    w->follower.say = say;
    w->follower.arg = w;
    if (w->opt.standby)
        world_call(w, SIM_MS(5), attach, 0);
}

// The end of a request may be forgotten once its client knows of it.
void standby_told(struct world *w, const struct coord_action *a)
{
    struct copy_record r;
    if (!w->coord || !w->copying || !copier_record_after(a, &r))
        return;
    send_record(w, &r);
    guests_detach(&w->guests, r.request);
}

static void release(struct world *w)
{
    const struct coord_action *a;
    while ((a = copier_next(&w->copier))) {
        client_action(w, a);
        standby_told(w, a);
    }
}

void standby_acked(struct world *w, const struct sim_event *ev)
{
    if (!w->coord || ev->gen != w->copy_gen)
        return;
    copier_ack(&w->copier, w->copy_gen, ev->conn);
    release(w);
}

static void core_word(struct world *w, enum coord_event_kind kind, uint64_t request)
{
    world_coord(w, &(struct coord_event){.kind = kind, .req = {request, 0}});
}

static void on_ask(struct world *w, const struct copy_record *r)
{
    struct coord_request_view v;
    uint64_t id = r->request;
    bool known = coord_request_find(w->coord, id, &v), fresh = !r->journal.emitted_n;
    bool attach_it = guests_attach(&w->guests, id) && (known || !fresh);
    if (!known) {
        struct shadow_request *q = shadow_request_create(r);
        if (fresh && r->deadline_ms)
            q->restore.submit.deadline_us = w->now_us + r->deadline_ms * 1000ull;
        if (fresh)
            world_coord(w, &(struct coord_event){.kind = COORD_SUBMIT,
                                                 .submit = q->restore.submit});
        else
            world_coord(w, &(struct coord_event){.kind = COORD_RESTORE, .restore = q->restore});
        shadow_request_free(q);
    }
    if (attach_it)
        core_word(w, COORD_ATTACH, id);
}

static void decode(struct world *w, const struct sim_event *ev, struct wire_arena *arena,
                   struct copy *out)
{
    struct wire_decoder d;
    struct wire_frame f;
    struct errmsg err = {0};
    wire_decoder_init(&d, 0);
    wire_decoder_feed(&d, ev->bytes, ev->bytes_n);
    if (wire_decoder_next(&d, &f, &err) || wire_decode_copy(arena, &f, out, &err))
        world_fail(w, "coordinators: %s", err.text);
    wire_decoder_finish(&d);
}

void standby_asked(struct world *w, const struct sim_event *ev)
{
    struct copy c;
    struct wire_arena arena = {0};
    if (!w->coord || !w->copying || ev->gen != w->copy_gen)
        return;
    decode(w, ev, &arena, &c);
    uint64_t id = c.word.request;
    if (c.kind == COPY_ASK)
        on_ask(w, &c.record);
    else if (c.word.word == COPY_WORD_CANCEL)
        core_word(w, COORD_CANCEL, id);
    else if (c.word.word == COPY_WORD_ATTACH && guests_attach(&w->guests, id))
        core_word(w, COORD_ATTACH, id);
    else if (c.word.word == COPY_WORD_DETACH && guests_detach(&w->guests, id))
        core_word(w, COORD_DETACH, id);
    wire_arena_finish(&arena);
}

// ---- the standby's side ----

void standby_record(struct world *w, struct sim_event *ev)
{
    struct copy c;
    struct errmsg err = {0};
    struct coord_action a;
    bool seen;
    if (ev->gen != w->copy_gen)
        return;
    decode(w, ev, &w->copy_arena, &c);
    if (follower_take(&w->follower, &c.record, w->now_us, &seen, &a, &err))
        world_fail(w, "follower: %s", err.text);
    if (seen)
        client_follower_action(w, &a);
    if (!w->follower.shadow.synced || !w->copying)
        return;
    world_push(w, (struct sim_event){.at_us = w->now_us + delay(w),
                                     .kind = SIM_ACK,
                                     .node = -1,
                                     .gen = w->copy_gen,
                                     .conn = w->follower.shadow.seq});
}

// ---- clients of the follower ----

void standby_submit(struct world *w, const struct coord_submit *s)
{
    struct copy_record r = {.what = COPY_SUBMIT,
                            .request = s->request,
                            .tenant = s->tenant ? s->tenant : "",
                            .model = s->model,
                            .pool = s->pool,
                            .session = s->session,
                            .journal = {.request = s->request,
                                        .prompt = s->prompt,
                                        .prompt_n = s->prompt_n,
                                        .max_tokens = s->max_tokens,
                                        .stop_ids_n = s->stop_ids_n,
                                        .band = s->band,
                                        .sampling = s->sampling}};
    memcpy(r.journal.stop_ids, s->stop_ids, sizeof r.journal.stop_ids);
    follower_submit(&w->follower, &r, s->deadline_us, w->now_us);
}

void standby_word(struct world *w, enum coord_event_kind kind, uint64_t request)
{
    if (kind == COORD_ATTACH)
        follower_attach(&w->follower, request);
    else if (kind == COORD_DETACH)
        follower_detach(&w->follower, request);
    else if (kind == COORD_CANCEL)
        follower_cancel(&w->follower, request);
}

// ---- the connection breaks ----

void standby_cut(struct world *w)
{
    if (!w->coord || !w->copying)
        return;
    world_tell(w, "coordinator > loses its follower");
    w->copying = false;
    w->copy_gen++;
    follower_down(&w->follower);
    copier_lost(&w->copier, w->copier.peers[0].id);
    for (uint64_t id; (id = guests_pop(&w->guests));)
        core_word(w, COORD_DETACH, id);
    release(w);
    const struct coord_config *k = &w->opt.coord; // the leader must not forget its clients meanwhile
    uint32_t limit_ms = (k->grace_ms < k->retention_ms ? k->grace_ms : k->retention_ms) / 2;
    limit_ms = limit_ms < 2 ? 2 : limit_ms > 800 ? 800 : limit_ms;
    world_call(w, w->now_us + world_between(w, SIM_MS(1), SIM_MS(limit_ms)), attach, 0);
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

static void take_mark(void *arg, const struct shadow_mark *m)
{
}

static void take_request(void *arg, const struct shadow_request *q, bool fresh)
{
    struct world *w = arg;
    w->restored++;
    if (!fresh) {
        world_coord(w, &(struct coord_event){.kind = COORD_RESTORE, .restore = q->restore});
        return;
    }
    world_coord(w, &(struct coord_event){.kind = COORD_SUBMIT, .submit = q->restore.submit});
    core_word(w, COORD_DETACH, q->restore.submit.request);
}

static void take_reads(void *arg, uint64_t request, uint32_t clients, bool cancel)
{
    struct world *w = arg;
    for (uint32_t i = 0; i < clients; i++)
        core_word(w, COORD_ATTACH, request);
    if (cancel)
        core_word(w, COORD_CANCEL, request);
}

static void take_over(struct world *w, int arg)
{
    struct errmsg err = {0};
    w->opt.coord.first_epoch = w->follower.shadow.epoch + 1000;
    w->opt.coord.state = follower_state(&w->follower);
    w->coord = coord_create(&w->opt.coord, &err);
    if (!w->coord)
        world_fail(w, "%s", err.text);
    policy_start(w);
    w->coord_timer_gen++;
    memset(w->epochs, 0, sizeof w->epochs);
    memset(w->ready_us, 0xff, sizeof w->ready_us);
    w->takeovers++;
    world_tell(w, "follower > takes over %u requests", w->follower.shadow.n);
    const struct follower_heir heir = {take_mark, take_request, take_reads, w};
    w->restoring = true;
    follower_inherit(&w->follower, &heir);
    w->restoring = false;
    w->follower_there = false;
    clients_moved(w);
    world_call(w, w->now_us + world_between(w, SIM_MS(100), SIM_MS(1500)), attach, 0);
}

// Without a synced standby the coordinator is spared: what is lost then is known.
void standby_kill_leader(struct world *w, uint32_t pause_ms)
{
    if (!w->coord || !w->copying || !w->copier.peers[0].synced)
        return;
    world_tell(w, "coordinator > killed");
    coord_destroy(w->coord);
    w->coord = NULL;
    if (world_chance(w, 0.5))
        w->copy_gen++; // what is under way is lost; else it still arrives
    w->copying = false;
    follower_down(&w->follower);
    while (guests_pop(&w->guests))
        ;
    copier_finish(&w->copier);
    w->copier = (struct copier){.mode = w->opt.copy_mode};
    w->admin_done = w->admin_sent; // nobody answers those
    break_conns(w);
    world_call(w, w->now_us + SIM_MS(pause_ms), take_over, 0);
}
