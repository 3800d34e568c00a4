// Clients, as the coordinator's HTTP shell sees them, and the judge of every answer: what comes
// must be the mock model's tokens, in order, each once, whatever fails; and the coordinator's
// journal must be what the client saw.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "tests/sim/world.h"

static const char *stage_names[] = {"new", "live", "refused", "finished", "forgotten"};

static uint32_t versions_n(const struct world *w)
{
    return w->opt.mock.versions_n ? w->opt.mock.versions_n : 1;
}

uint32_t client_add(struct world *w, const struct coord_submit *s, const int32_t *prompt)
{
    MEM_GROW(w->clients, w->clients_n, w->clients_cap);
    struct sim_client *c = &w->clients[w->clients_n++];
    *c = (struct sim_client){.id = w->clients_n, .submit = *s, .submit_us = w->now_us};
    c->prompt = mem_dup(prompt, s->prompt_n * sizeof *prompt);
    c->submit.prompt = c->prompt;
    c->submit.request = c->id;
    c->may_be = 1u << versions_n(w);
    c->may_be--;
    for (uint32_t i = 0; i < versions_n(w); i++)
        mock_stream_salted(&c->expected[i], i ? w->opt.mock.versions[i].salt : 0, c->prompt,
                           s->prompt_n, w->opt.mock.vocab);
    return (uint32_t)w->clients_n - 1;
}

void clients_free(struct world *w)
{
    for (size_t i = 0; i < w->clients_n; i++) {
        free(w->clients[i].prompt);
        free(w->clients[i].seen);
    }
    free(w->clients);
}

bool clients_finished(const struct world *w)
{
    for (size_t i = 0; i < w->clients_n; i++)
        if (w->clients[i].stage <= CLIENT_LIVE)
            return false;
    return true;
}

static void plan(struct world *w, uint32_t client, uint64_t at_us)
{
    if (at_us)
        world_push(w, (struct sim_event){.at_us = at_us > w->now_us ? at_us : w->now_us,
                                         .kind = SIM_CLIENT,
                                         .node = -1,
                                         .client = client});
}

static void tell_coord(struct world *w, const struct sim_client *c, enum coord_event_kind kind,
                       uint32_t kept)
{
    uint64_t id = c->id;
    if (c->via) {
        standby_word(w, kind, id);
        return;
    }
    if (!w->coord || c->moved)
        return;
    world_coord(w, &(struct coord_event){.kind = kind, .req = {id, kept}});
}

static void submit(struct world *w, uint32_t i)
{
    struct sim_client *c = &w->clients[i];
    // Stop strings are found by the leader's shell, which is not simulated.
    c->via = w->opt.follower_clients && w->follower_there && !c->stop_at && world_chance(w, 0.5);
    if (!w->coord && !c->via) { // refused: tries again
        plan(w, i, w->now_us + world_between(w, SIM_MS(50), SIM_MS(500)));
        return;
    }
    c->stage = CLIENT_LIVE;
    c->attached = true;
    plan(w, i, c->leave_us);
    plan(w, i, c->return_us);
    plan(w, i, c->cancel_us);
    struct coord_event ev = {.kind = COORD_SUBMIT, .submit = c->submit};
    if (ev.submit.deadline_us)
        ev.submit.deadline_us += w->now_us;
    if (c->via)
        standby_submit(w, &ev.submit);
    else
        world_coord(w, &ev);
}

static void come_back(struct world *w, struct sim_client *c);

// The leader may refuse a request (its deadline passed in the queue) while the follower is not
// connected and the client is away: then nobody can be told, and the follower answers "not found".
static bool refused_while_away(struct world *w, struct sim_client *c)
{
    if (!c->via || c->stage != CLIENT_LIVE || follower_find(&w->follower, c->id) ||
        shadow_find(&w->follower.asks, c->id))
        return false;
    if (c->seen_n)
        world_fail(w, "request %" PRIu64 " is lost at token %u", c->id, c->seen_n);
    c->stage = CLIENT_REFUSED;
    world_tell(w, "client %" PRIu64 " < not found", c->id);
    return true;
}

// Does what is due: submit, leave, come back, cancel, or report a stop string.
void client_run(struct world *w, uint32_t i)
{
    struct sim_client *c = &w->clients[i];
    if (c->stage == CLIENT_NEW) {
        submit(w, i);
    } else if (c->moved) {
        come_back(w, c);
    } else if (c->stage != CLIENT_LIVE && c->stage != CLIENT_FINISHED) {
        return;
    } else if (c->stage == CLIENT_LIVE && c->stop_at && c->seen_n >= c->stop_at && !c->asked_stop) {
        c->asked_stop = true;
        world_tell(w, "client %" PRIu64 " > a stop string ends with token %u, %u have come", c->id,
                   c->stop_at, c->seen_n);
        c->seen_n = c->stop_at; // what it keeps
        tell_coord(w, c, COORD_STOP, c->stop_at);
    } else if (c->leave_us && c->attached && w->now_us >= c->leave_us) {
        c->leave_us = 0;
        c->attached = false;
        c->away_since_us = w->now_us;
        world_tell(w, "client %" PRIu64 " > drops its connection at token %u", c->id, c->seen_n);
        tell_coord(w, c, COORD_DETACH, 0);
    } else if (c->return_us && !c->attached && w->now_us >= c->return_us) {
        c->return_us = 0;
        c->attached = true;
        world_tell(w, "client %" PRIu64 " > comes back", c->id);
        if (!refused_while_away(w, c))
            tell_coord(w, c, COORD_ATTACH, 0);
    } else if (c->cancel_us && w->now_us >= c->cancel_us && c->stage == CLIENT_LIVE) {
        c->cancel_us = 0;
        c->asked_cancel = true;
        tell_coord(w, c, COORD_CANCEL, 0);
    }
}

static struct sim_client *client_of(struct world *w, uint64_t id)
{
    if (id < 1 || id > w->clients_n)
        world_fail(w, "the coordinator speaks of request %" PRIu64 ", which nobody made", id);
    return &w->clients[id - 1];
}

// All its tokens are those of one version.
static void judge_token(struct world *w, struct sim_client *c, const struct token_out *t, bool lied)
{
    uint32_t still = 0;
    int32_t due = -1;
    for (uint32_t i = 0; i < versions_n(w); i++) {
        struct mock_stream before = c->expected[i];
        due = mock_stream_next(&c->expected[i]);
        still |= (uint32_t)(due == t->token) << i;
        if (due != t->token && lied) { // what follows is right for what it has
            mock_stream_take(&before, t->token);
            c->expected[i] = before;
        }
    }
    if (c->may_be & still)
        c->may_be &= still;
    else if (lied)
        c->lies++;
    else
        world_fail(w, "request %" PRIu64 ": token %u is %d, the unfailed run of no version that it "
                      "may be (%x) gives that; the last gives %d",
                   c->id, t->index, t->token, c->may_be, due);
}

static void on_token(struct world *w, struct sim_client *c, const struct token_out *t)
{
    if (c->asked_stop && w->opt.standby && t->index >= c->stop_at)
        return; // was on its way to the client when it found its stop string
    if (t->index < c->seen_n && w->opt.standby &&
        (w->opt.copy_mode == COPY_ASYNC || w->opt.follower_clients)) {
        if (t->token != c->seen[t->index] && !c->lies)
            world_fail(w, "request %" PRIu64 ": token %u was %d, and is %d when computed again",
                       c->id, t->index, c->seen[t->index], t->token);
        return; // the copy was behind: a client skips what it has
    }
    if (t->index != c->seen_n)
        world_fail(w, "request %" PRIu64 ": token %u came where %u was due", c->id, t->index,
                   c->seen_n);
    bool lied = w->lied[c->from_replica] || w->lied_step[c->from_replica] == w->steps;
    // Where the client's view lags behind, it may be told late of what a liar said.
    lied |= w->opt.standby && w->lied_us && w->now_us - w->lied_us < SIM_S(2);
    judge_token(w, c, t, lied);
    MEM_GROW(c->seen, c->seen_n, c->seen_cap);
    c->seen[c->seen_n++] = t->token;
    uint64_t since = c->last_us ? c->last_us : w->now_us;
    if (c->last_us && c->id <= w->gaps_of) {
        MEM_GROW(w->gaps, w->gaps_n, w->gaps_cap);
        w->gaps[w->gaps_n++] = w->now_us - since;
    }
    if (w->now_us - since > c->longest_gap_us)
        c->longest_gap_us = w->now_us - since;
    if (!c->first_us)
        c->first_us = w->now_us;
    c->last_us = w->now_us;
    w->tokens++;
    if (c->stop_at && c->seen_n == c->stop_at)
        plan(w, (uint32_t)(c->id - 1), w->now_us + world_between(w, 100, 30000));
}

static bool is_stop_id(const struct sim_client *c, int32_t token)
{
    for (uint32_t i = 0; i < c->submit.stop_ids_n; i++)
        if (c->submit.stop_ids[i] == token)
            return true;
    return false;
}

static void judge_finish(struct world *w, const struct sim_client *c)
{
    uint32_t room = w->opt.mock.max_context - c->submit.prompt_n;
    uint32_t limit = c->submit.max_tokens ? c->submit.max_tokens : room;
    bool last_stops = c->seen_n && is_stop_id(c, c->seen[c->seen_n - 1]);
    uint64_t away_us = c->attached ? 0 : w->now_us - c->away_since_us;
    bool fine = false;
    switch (c->finish) {
    case FINISH_STOP:
        fine = c->asked_stop || last_stops;
        break;
    case FINISH_LENGTH:
        fine = !last_stops && c->seen_n == (limit < room ? limit : room);
        break;
    case FINISH_CANCELLED:
        fine = c->asked_cancel || away_us >= SIM_MS(w->opt.coord.grace_ms);
        fine |= w->opt.standby && c->away_since_us; // told of it only by the successor
        break;
    case FINISH_NONE:
    case FINISH_ERROR:
        break;
    }
    if (!fine)
        world_fail(w, "request %" PRIu64 " ended with %s at token %u of %u", c->id,
                   finish_reason_name(c->finish), c->seen_n, limit);
}

static void on_done(struct world *w, struct sim_client *c, const struct coord_action *a)
{
    c->stage = CLIENT_FINISHED;
    c->finish = a->done.finish;
    c->done_us = w->now_us;
    if (c->asked_stop && w->opt.standby) { // its word and the core's end may have crossed
        world_tell(w, "client %" PRIu64 " < done: stop after %u tokens", c->id, c->seen_n);
        return;
    }
    bool behind = w->opt.standby && (w->opt.copy_mode == COPY_ASYNC || w->opt.follower_clients) &&
                  a->done.emitted_n < c->seen_n;
    if (a->done.emitted_n != c->seen_n && !behind)
        world_fail(w, "request %" PRIu64 ": %u tokens counted, %u seen", c->id, a->done.emitted_n,
                   c->seen_n);
    judge_finish(w, c);
    world_tell(w, "client %" PRIu64 " < done: %s after %u tokens", c->id,
               finish_reason_name(c->finish), c->seen_n);
}

static void expect_stage(struct world *w, const struct sim_client *c, enum client_stage s,
                         const char *what)
{
    if (c->stage != s)
        world_fail(w, "request %" PRIu64 ": %s, and it is %s", c->id, what, stage_names[c->stage]);
}

// What a client does once its coordinator is gone: it looks for its request at the other one, from
// the token that it has; what never told it anything is asked anew.
static void come_back(struct world *w, struct sim_client *c)
{
    struct coord_request_view v;
    if (!w->coord)
        return; // the next one is waited for
    c->moved = false;
    if (!coord_request_find(w->coord, c->id, &v))
        return;
    tell_coord(w, c, COORD_ATTACH, 0);
}

static void catch_up(struct world *w, struct sim_client *c, const struct coord_request_view *v)
{
    for (uint32_t i = c->seen_n; i < v->tokens_n && !c->asked_stop; i++)
        on_token(w, c, &(struct token_out){.index = i, .token = v->tokens[i]});
    if (c->stop_at && v->tokens_n >= c->stop_at && v->state < COORD_REQ_CLOSING) {
        c->asked_stop = true; // found again by the new coordinator's shell
        c->seen_n = c->stop_at;
        uint64_t id = c->id;
        world_coord(w, &(struct coord_event){.kind = COORD_STOP, .req = {id, c->stop_at}});
    }
}

static void client_moved(struct world *w, struct sim_client *c)
{
    struct coord_request_view v;
    bool known = coord_request_find(w->coord, c->id, &v);
    c->place_replica = 0;
    if (c->via) { // its coordinator lives, and leads now
        c->via = false;
        if (!known && c->stage == CLIENT_LIVE)
            world_fail(w, "request %" PRIu64 " of the follower is lost at token %u", c->id,
                       c->seen_n);
        if (c->stage == CLIENT_LIVE && !c->attached)
            c->away_since_us = w->now_us;
        return;
    }
    // What ended under this standby's eyes and was not forgotten must be there to be read again.
    if (c->stage == CLIENT_FINISHED && !known && w->opt.copy_mode == COPY_SYNC &&
        c->done_us > w->attached_us)
        world_fail(w, "request %" PRIu64 " ended, was kept, and is lost", c->id);
    if (c->stage == CLIENT_FINISHED && !known)
        c->stage = CLIENT_FORGOTTEN;
    if (c->stage == CLIENT_LIVE && !known) {
        if (c->told && w->opt.copy_mode == COPY_SYNC)
            world_fail(w, "request %" PRIu64 " is lost at token %u", c->id, c->seen_n);
        if (c->told) { // asynchronous copies: lost before the first one came
            c->stage = CLIENT_REFUSED;
            return;
        }
        c->stage = CLIENT_NEW;
        plan(w, (uint32_t)(c->id - 1), w->now_us + world_between(w, SIM_MS(10), SIM_MS(300)));
        return;
    }
    if (!known || c->stage != CLIENT_LIVE)
        return;
    if (w->opt.copy_mode == COPY_SYNC && v.tokens_n < c->seen_n)
        world_fail(w, "request %" PRIu64 ": the copy has %u tokens, the client saw %u", c->id,
                   v.tokens_n, c->seen_n);
    if (v.finish != FINISH_NONE) { // it ended, and the client was not told yet
        for (uint32_t i = c->seen_n; i < v.tokens_n; i++)
            on_token(w, c, &(struct token_out){.index = i, .token = v.tokens[i]});
        c->seen_n = v.tokens_n;
        on_done(w, c,
                &(struct coord_action){.done = {c->id, v.finish, v.status, v.text, v.prompt_n,
                                                v.tokens_n, v.cached_n}});
        return;
    }
    catch_up(w, c, &v);
    if (c->stage == CLIENT_LIVE && c->attached) {
        c->moved = true;
        uint32_t grace_us = w->opt.coord.grace_ms * 800;
        plan(w, (uint32_t)(c->id - 1), w->now_us + world_between(w, 1000, grace_us));
    } else if (c->stage == CLIENT_LIVE) {
        c->away_since_us = w->now_us; // the grace time begins anew
    }
}

void clients_moved(struct world *w)
{
    w->moving = true; // until all know, the books do not agree
    for (size_t i = 0; i < w->clients_n; i++)
        client_moved(w, &w->clients[i]);
    w->moving = false;
    clients_check(w);
}

static uint64_t request_of(const struct coord_action *a)
{
    return a->kind == COORD_QUEUED    ? a->queued.request
           : a->kind == COORD_TOKENS  ? a->tokens.request
           : a->kind == COORD_DONE    ? a->done.request
           : a->kind == COORD_REFUSED ? a->refused.request
                                      : a->forget.request;
}

// The word that a request is over may die with the coordinator: the next one goes on with it, and
// its client is not there. With asynchronous copies so may the end itself.
static bool is_over(struct world *w, const struct coord_action *a)
{
    struct sim_client *c = client_of(w, request_of(a));
    bool over = c->stage == CLIENT_REFUSED || c->stage == CLIENT_FORGOTTEN ||
                (c->stage == CLIENT_FINISHED && w->opt.copy_mode == COPY_ASYNC);
    if (!w->opt.standby || !over)
        return false;
    if (a->kind == COORD_FORGET && c->stage == CLIENT_FINISHED)
        c->stage = CLIENT_FORGOTTEN;
    return true;
}

static void see(struct world *w, const struct coord_action *a);

// A client of the follower is told by that one alone; once that leads, by its core.
void client_action(struct world *w, const struct coord_action *a)
{
    struct sim_client *c = client_of(w, request_of(a));
    bool own = w->restoring && c->via && !(a->kind == COORD_DONE && c->stage == CLIENT_FINISHED);
    if (own || !(w->restoring || c->via || is_over(w, a))) // others: clients_moved
        see(w, a);
}

// What a leader tells anew was seen before.
void client_follower_action(struct world *w, const struct coord_action *a)
{
    struct sim_client *c = client_of(w, request_of(a));
    bool known = c->stage == CLIENT_FINISHED &&
                 (a->kind == COORD_TOKENS || a->kind == COORD_DONE || a->kind == COORD_QUEUED);
    if (c->via && !known && !is_over(w, a))
        see(w, a);
}

static void see(struct world *w, const struct coord_action *a)
{
    struct sim_client *c;
    switch (a->kind) {
    case COORD_QUEUED:
        c = client_of(w, a->queued.request);
        expect_stage(w, c, CLIENT_LIVE, "QUEUED");
        c->told = true;
        if (a->queued.position < 1 || a->queued.position > w->clients_n)
            world_fail(w, "request %" PRIu64 ": position %u", c->id, a->queued.position);
        break;
    case COORD_TOKENS:
        c = client_of(w, a->tokens.request);
        expect_stage(w, c, CLIENT_LIVE, "TOKENS");
        c->told = true;
        for (uint32_t i = 0; i < a->tokens.tokens_n; i++)
            on_token(w, c, &a->tokens.tokens[i]);
        break;
    case COORD_DONE:
        c = client_of(w, a->done.request);
        expect_stage(w, c, CLIENT_LIVE, "DONE");
        on_done(w, c, a);
        break;
    case COORD_REFUSED:
        c = client_of(w, a->refused.request);
        expect_stage(w, c, CLIENT_LIVE, "REFUSED");
        if (c->seen_n || a->refused.reason == COORD_REFUSE_BAD_REQUEST)
            world_fail(w, "request %" PRIu64 " was refused: %s", c->id, a->refused.text);
        c->stage = CLIENT_REFUSED;
        c->done_us = w->now_us;
        c->refused_for = a->refused.reason;
        world_trace(w, "client %" PRIu64 " < refused: %s", c->id, a->refused.text);
        break;
    case COORD_FORGET:
        c = client_of(w, a->forget.request);
        expect_stage(w, c, CLIENT_FINISHED, "FORGET");
        c->stage = CLIENT_FORGOTTEN;
        break;
    default:
        break;
    }
}

// Nobody new overtakes one who waits in a higher band.
static void check_order(struct world *w, uint64_t request)
{
    struct coord_request_view v, other;
    if (!coord_request_find(w->coord, request, &v) || v.dispatches != 1)
        return;
    for (size_t i = 0; i < w->clients_n; i++)
        if (w->clients[i].stage == CLIENT_LIVE &&
            coord_request_find(w->coord, w->clients[i].id, &other) &&
            other.state == COORD_REQ_QUEUED && !other.dispatches && !strcmp(other.pool, v.pool) &&
            other.lane_band > v.lane_band)
            world_fail(w, "request %" PRIu64 " of band %u starts, %" PRIu64 " of band %u waits",
                       request, v.lane_band, other.id, other.lane_band);
}

// A request may be on one replica at a time.
void client_dispatched(struct world *w, const struct msg_dispatch *d)
{
    if (d->journal.band == MSG_BAND_PROBE)
        return;
    struct sim_client *c = client_of(w, d->journal.request);
    if (c->place_replica && w->epochs[c->place_replica] == c->place_epoch)
        world_fail(w, "request %" PRIu64 " was dispatched twice", c->id);
    if (c->stage != CLIENT_LIVE && !w->opt.standby)
        world_fail(w, "request %" PRIu64 " was dispatched and is %s", c->id, stage_names[c->stage]);
    if (d->epoch != w->epochs[d->replica])
        world_fail(w, "request %" PRIu64 " was dispatched to an old epoch", c->id);
    check_order(w, c->id);
    c->place_replica = c->from_replica = d->replica;
    c->place_epoch = d->epoch;
}

static void release(struct world *w, uint64_t replica, uint64_t epoch, uint64_t request)
{
    if (request > w->clients_n)
        return; // a golden probe
    struct sim_client *c = client_of(w, request);
    if (c->place_replica == replica && c->place_epoch == epoch)
        c->place_replica = 0;
}

void client_released(struct world *w, const struct msg *m)
{
    if (m->kind == MSG_CANCELLED)
        release(w, m->cancelled.replica, m->cancelled.epoch, m->cancelled.request);
    if (m->kind != MSG_TOKENS)
        return;
    for (uint32_t i = 0; i < m->tokens.tokens_n; i++)
        if (m->tokens.tokens[i].finish != FINISH_NONE)
            release(w, m->tokens.replica, m->tokens.epoch, m->tokens.tokens[i].request);
}

static void check_journal(struct world *w, const struct sim_client *c)
{
    struct coord_request_view v;
    bool known = coord_request_find(w->coord, c->id, &v);
    bool due = c->stage == CLIENT_LIVE || c->stage == CLIENT_FINISHED;
    // Actions that wait for the standby: the core is ahead of what clients see.
    if (w->opt.standby) {
        if (!known && c->stage == CLIENT_LIVE && !w->copier.held_n && !c->moved)
            world_fail(w, "request %" PRIu64 " is unknown, and its client waits", c->id);
        if (known && v.tokens_n < c->seen_n && w->opt.copy_mode == COPY_SYNC)
            world_fail(w, "request %" PRIu64 ": the journal has %u tokens, the client saw %u",
                       c->id, v.tokens_n, c->seen_n);
        return;
    }
    if (known != due)
        world_fail(w, "request %" PRIu64 " is %s for its client, and the coordinator %s it", c->id,
                   stage_names[c->stage], known ? "knows" : "does not know");
    if (!known)
        return;
    if (v.tokens_n != c->seen_n ||
        (v.tokens_n && v.tokens[v.tokens_n - 1] != c->seen[c->seen_n - 1]))
        world_fail(w, "request %" PRIu64 ": the journal has %u tokens, the client saw %u", c->id,
                   v.tokens_n, c->seen_n);
    bool ended = v.state == COORD_REQ_CLOSING || v.state == COORD_REQ_DONE;
    if (ended != (c->stage == CLIENT_FINISHED))
        world_fail(w, "request %" PRIu64 " is %s for its client and %s in the coordinator", c->id,
                   stage_names[c->stage], coord_request_state_name(v.state));
}

static bool count_pool(void *arg, const struct coord_pool_view *v)
{
    ++*(uint32_t *)arg;
    return true;
}

void clients_check(struct world *w)
{
    if (w->moving)
        return;
    for (size_t i = 0; i < w->clients_n; i++)
        if (w->clients[i].stage != CLIENT_NEW && !w->clients[i].via)
            check_journal(w, &w->clients[i]);
    struct coord_stats s;
    coord_stats(w->coord, &s);
    uint32_t pools = 0; // the limit is of each
    coord_each_pool(w->coord, count_pool, &pools);
    if (s.queued - s.queued_moved > pools * w->opt.coord.queue_limit)
        world_fail(w, "%u requests wait, %u may", s.queued, w->opt.coord.queue_limit);
}
