// Versions of a model: each is a pool (pools.c), so what runs on one goes on only on it. A rollout
// shifts replicas and new requests from one pool to another, step by step; rollout.h has its states
// and its judgement.
//
// Capacity: replicas are moved one at a time, so with R of them at least R - 1 serve while one is
// drained and formed anew; where nodes are free the new one is there before the old one is drained.
// The new version never gets a larger share of the requests than of the replicas that serve. The
// last replica of a version stays until nothing is bound to it.
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "coordinator/core.h"

enum { TURN_US = 50000, HOPELESS_FORMS = 10, SWITCH_FAULTS = 3, DIR_BYTES = 1024 };

static bool forward(const struct shift *s)
{
    return s->state == ROLLOUT_SHIFTING || s->state == ROLLOUT_WATCHING ||
           s->state == ROLLOUT_PAUSED;
}

bool versions_doubt(const struct coord *c, const struct replica *r)
{
    const struct shift *s = &c->shift;
    return forward(s) && r->pool == s->to;
}

const struct pool *versions_first(const struct coord *c)
{
    const struct shift *s = &c->shift;
    if (s->state == ROLLOUT_IDLE)
        return NULL;
    // After a loss of everything who is known to be good comes back first.
    bool none = s->from->wanted && !s->from->formed_n;
    return s->state == ROLLOUT_REVERTING || none ? s->from : s->to;
}

static void enter(struct coord *c, enum rollout_state to)
{
    struct shift *s = &c->shift;
    s->state = (enum rollout_state)sm_move(&rollout_sm, s->state, to);
    s->since_us = c->now_us;
    c->state_changed = true;
}

static uint32_t percent_now(const struct shift *s)
{
    return s->plan.steps[s->step];
}

// ---- who takes new requests ----

static uint32_t weight_now(const struct shift *s)
{
    if (!forward(s))
        return 0;
    uint32_t percent = percent_now(s);
    bool last = rollout_share(percent, s->replicas) == s->replicas && s->from->wanted <= 1;
    if (last && (s->to->warm_n || s->replicas == 1))
        return 100; // else the last one of the old version would never be without work
    if (!s->to->warm_n)
        return 0;
    uint32_t share = 100 * s->to->warm_n / (s->to->warm_n + s->from->warm_n);
    return percent < share ? percent : share;
}

static void set_weights(struct coord *c)
{
    struct shift *s = &c->shift;
    uint32_t to = weight_now(s);
    // First the one that opens: what must leave the other one has to have somewhere to go.
    if (to)
        pool_set_weight(c, s->to, to);
    pool_set_weight(c, s->from, 100 - to);
    pool_set_weight(c, s->to, to);
}

// ---- judgement ----

static int agreement(const struct pool *to, const struct pool *from)
{
    const struct probe_answer *a = &to->known, *b = &from->known;
    uint32_t n = a->n < b->n ? a->n : b->n, same = 0;
    if (!n)
        return -1;
    while (same < n && a->tokens[same] == b->tokens[same])
        same++;
    return (int)(100 * same / n);
}

static void revert(struct coord *c, const char *why)
{
    struct shift *s = &c->shift;
    snprintf(s->why, sizeof s->why, "taken back: %s", why);
    core_trace(c, LOG_WARN, "rollout of %s to version %s is taken back: %s", s->to->set.model,
               s->to->set.version, why);
    c->stats.rollouts_reverted++;
    enter(c, ROLLOUT_REVERTING);
    c->place = true;
}

static bool judged_bad(struct coord *c)
{
    struct shift *s = &c->shift;
    char why[sizeof s->why - 16];
    const struct rollout_case k = {&s->to->figures, &s->from->figures, agreement(s->to, s->from),
                                   s->to->score_milli, s->from->score_milli};
    if (rollout_judge(&s->plan, &k, why, sizeof why))
        return false;
    revert(c, why);
    return true;
}

// ---- moving replicas ----

static void move_on(struct coord *c)
{
    struct shift *s = &c->shift;
    uint32_t target = rollout_share(percent_now(s), s->replicas);
    if (s->to->wanted < target) {
        bool free_to_go = s->from->wanted > 1 || !pool_bound(c, s->from);
        if (!free_to_go || !pool_all_there(c, s->to) || pool_leaving(c, s->from))
            return;
        pool_scale(c, s->from, s->from->wanted - 1);
        pool_scale(c, s->to, s->to->wanted + 1);
        return;
    }
    if (!pool_all_there(c, s->to) || pool_leaving(c, s->from))
        return;
    enter(c, ROLLOUT_WATCHING);
    core_trace(c, LOG_INFO,
               "rollout of %s: version %s has %u of %u replicas and %u%% of the "
               "requests",
               s->to->set.model, s->to->set.version, s->to->wanted, s->replicas, weight_now(s));
}

static void done(struct coord *c, struct pool *serves, struct pool *kept)
{
    struct shift *s = &c->shift;
    pool_set_weight(c, serves, s->weight);
    pool_set_weight(c, kept, 0);
    enter(c, ROLLOUT_IDLE);
    core_trace(c, LOG_INFO, "rollout of %s: version %s serves, %s is kept", serves->set.model,
               serves->set.version, kept->set.version);
}

static void watch(struct coord *c)
{
    struct shift *s = &c->shift;
    if (c->now_us - s->since_us < 1000ull * s->plan.dwell_ms)
        return;
    if (s->step + 1 < s->plan.steps_n) {
        s->step++;
        enter(c, ROLLOUT_SHIFTING);
        return;
    }
    snprintf(s->why, sizeof s->why, "done");
    c->stats.rollouts_done++;
    done(c, s->to, s->from);
}

// Requests of a version that nodes cannot load any more: there is nobody who could go on with them.
static void give_up(struct coord *c, const struct pool *p)
{
    struct request *q, *next;
    bool hopeless = false;
    for (uint32_t i = 0; i < c->replicas_n; i++) {
        const struct replica *r = c->replicas[i];
        hopeless = hopeless || (r->pool == p && !r->retired && r->form_fails >= HOPELESS_FORMS);
    }
    if (!hopeless || p->warm_n)
        return;
    DL_FOREACH_SAFE2(c->requests_by_time, q, next, after)
    {
        if (q->pool != p || q->state != COORD_REQ_QUEUED || !q->dispatches)
            continue;
        if (q->emitted_n)
            request_end(c, q, FINISH_ERROR, STATUS_BAD_MODEL,
                        "the version that it began on cannot be served any more");
        else
            pool_rebind(c, q);
    }
}

// The new version takes nothing new: all its replicas but one go back at once, and that one when
// nothing is bound to it.
static void move_back(struct coord *c)
{
    struct shift *s = &c->shift;
    uint32_t keep = pool_bound(c, s->to) ? 1 : 0;
    if (s->to->wanted != keep) {
        pool_scale(c, s->to, keep);
        pool_scale(c, s->from, s->replicas - keep);
    }
    if (keep)
        give_up(c, s->to);
    else if (!pool_leaving(c, s->to) && pool_all_there(c, s->from))
        done(c, s->from, s->to);
}

// ---- requests of a version that has no replica: it gets one for as long as they run ----

static bool in_shift(const struct coord *c, const struct pool *p)
{
    return c->shift.state != ROLLOUT_IDLE && (p == c->shift.from || p == c->shift.to);
}

static struct pool *lender_for(const struct coord *c, const struct pool *p)
{
    struct pool *best = NULL;
    for (uint32_t i = 0; i < c->pools_n; i++) {
        struct pool *o = c->pools[i];
        if (o->lender == p) // it gets its own back first
            return NULL;
        if (o != p && !strcmp(o->set.model, p->set.model) && o->ranks_n == p->ranks_n &&
            o->wanted && !o->lender && !in_shift(c, o) && (!best || o->wanted > best->wanted))
            best = o;
    }
    return best;
}

static void lend(struct coord *c, struct pool *p)
{
    if (p->lender && !in_shift(c, p) && !pool_bound(c, p)) {
        struct pool *back = p->lender;
        p->lender = NULL;
        pool_scale(c, p, p->wanted - 1);
        pool_scale(c, back, back->wanted + 1);
    } else if (!p->wanted && !in_shift(c, p) && pool_bound(c, p) && lender_for(c, p)) {
        p->lender = lender_for(c, p);
        c->stats.loans++;
        core_trace(c, LOG_INFO, "%s lends a replica to %s, which requests are bound to",
                   p->lender->set.name, p->set.name);
        pool_scale(c, p->lender, p->lender->wanted - 1);
        pool_scale(c, p, 1);
    }
    if (p->lender)
        give_up(c, p);
}

static bool lends(const struct coord *c)
{
    for (uint32_t i = 0; i < c->pools_n; i++)
        if (c->pools[i]->lender || (!c->pools[i]->wanted && pool_bound(c, c->pools[i])))
            return true;
    return false;
}

// ---- the turn ----

void versions_arm(struct coord *c)
{
    if (!c->shift_timer.slot && (c->shift.state != ROLLOUT_IDLE || lends(c)))
        core_arm(c, &c->shift_timer, TIMER_SHIFT, c->now_us + TURN_US);
}

void versions_turn(struct coord *c)
{
    struct shift *s = &c->shift;
    if (forward(s) && !judged_bad(c)) {
        if (s->state == ROLLOUT_SHIFTING)
            move_on(c);
        else if (s->state == ROLLOUT_WATCHING)
            watch(c);
    }
    if (s->state != ROLLOUT_IDLE)
        set_weights(c);
    if (s->state == ROLLOUT_REVERTING)
        move_back(c);
    for (uint32_t i = 0; i < c->pools_n; i++)
        lend(c, c->pools[i]);
    versions_arm(c);
}

// ---- figures ----

void versions_note_fence(struct coord *c, const struct replica *r, enum fence_kind kind)
{
    bool warming = r->state == COORD_REPLICA_FORMING || r->state == COORD_REPLICA_PROVING;
    if (versions_doubt(c, r) &&
        (kind == FENCE_FAULT || kind == FENCE_FORM || (kind == FENCE_LOST && warming)))
        c->shift.to->figures.faults++;
}

void versions_note_first(struct coord *c, const struct request *q)
{
    if (in_shift(c, q->pool) && q->dispatches == 1)
        rollout_times_add(&q->pool->figures.ttft, c->now_us - q->started_us);
}

void versions_note_end(struct coord *c, const struct request *q, enum finish_reason finish)
{
    struct rollout_figures *f = &q->pool->figures;
    if (!in_shift(c, q->pool) || finish == FINISH_CANCELLED)
        return;
    f->finished++;
    f->errors += finish == FINISH_ERROR;
    if (finish != FINISH_ERROR && q->emitted_n > 1 && q->dispatches == 1)
        rollout_times_add(&f->tpot, (q->last_token_us - q->first_token_us) / (q->emitted_n - 1));
}

// ---- orders ----

enum { KEPT = 3 }; // old versions of a model

static bool has_requests(const struct coord *c, const struct pool *p)
{
    const struct request *q;
    DL_FOREACH2(c->requests_by_time, q, after)
    {
        if (q->pool == p)
            return true;
    }
    return false;
}

// The oldest kept version whose place another one may have. NULL: none, or there is room for more.
static struct pool *place_of_oldest(const struct coord *c, const struct pool *from)
{
    struct pool *oldest = NULL;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < c->pools_n; i++) {
        struct pool *p = c->pools[i];
        if (p == from || strcmp(p->set.model, from->set.model) || p->wanted || p->set.weight)
            continue;
        kept++;
        if (p->serial && p->set.stages == from->set.stages && p->set.tensor == from->set.tensor &&
            !pool_leaving(c, p) && !has_requests(c, p) && (!oldest || p->serial < oldest->serial))
            oldest = p;
    }
    return kept >= KEPT || c->pools_n == COORD_MAX_POOLS ? oldest : NULL;
}

struct pool *version_add(struct coord *c, const struct pool *from, uint32_t serial,
                         const char *model_dir)
{
    char version[16], name[LIMIT_NAME];
    snprintf(version, sizeof version, "%u", serial);
    snprintf(name, sizeof name, "%.40s@%s", from->set.model, version);
    if (pool_find(c, name))
        return NULL;
    struct coord_pool set = from->set;
    set.name = name;
    set.version = version;
    set.model_dir = model_dir;
    set.replicas = set.prefill_replicas = set.decode_replicas = set.weight = 0;
    set.probe_expect = NULL; // another model, another answer: learned
    set.max_context = 0;
    struct pool *place = place_of_oldest(c, from);
    if (place) {
        core_trace(c, LOG_INFO, "version %s of %s is forgotten", place->set.version,
                   place->set.model);
        pool_become(c, place, &set);
    } else {
        place = pool_add(c, &set);
    }
    if (place) {
        place->set.prefill_replicas = from->set.prefill_replicas; // of those that it will get
        place->set.decode_replicas = from->set.decode_replicas;
        place->serial = serial;
        place->score_milli = -1;
    }
    return place;
}

// The pool of that name, or the one of that model that takes new requests.
static struct pool *versions_pool(const struct coord *c, const char *target, const char **why_out)
{
    struct pool *p = target ? pool_find(c, target) : NULL;
    uint32_t n = p != NULL;
    for (uint32_t i = 0; i < c->pools_n && !n; i++)
        if (target && !strcmp(c->pools[i]->set.model, target) && c->pools[i]->set.weight) {
            p = c->pools[i];
            for (uint32_t k = i; k < c->pools_n; k++)
                n += !strcmp(c->pools[k]->set.model, target) && c->pools[k]->set.weight;
        }
    *why_out = n ? "several pools serve this model: name one of them" : "no such model or pool";
    return n == 1 ? p : NULL;
}

static struct pool *version_find(const struct coord *c, const char *model, const char *what)
{
    for (uint32_t i = 0; i < c->pools_n; i++) {
        struct pool *p = c->pools[i];
        if (!strcmp(p->set.model, model) &&
            (!strcmp(p->set.version, what) || !strcmp(p->set.name, what) ||
             !strcmp(p->set.model_dir, what)))
            return p;
    }
    return NULL;
}

// Labels of the configuration may be numbers too.
static uint32_t next_serial(struct coord *c, const char *model)
{
    char label[16];
    do
        snprintf(label, sizeof label, "%u", ++c->versions_n);
    while (version_find(c, model, label));
    return c->versions_n;
}

static bool dir_ok(const char *dir)
{
    size_t n = dir ? strnlen(dir, DIR_BYTES) : 0; // all of them must fit into COORD_STATE_BYTES
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)dir[i] < ' ' || dir[i] == 0x7f)
            return false;
    return n > 0 && n < DIR_BYTES;
}

// Others that would take what this one is to be relieved of.
static const struct pool *rival(const struct coord *c, const struct pool *from)
{
    for (uint32_t i = 0; i < c->pools_n; i++) {
        const struct pool *p = c->pools[i];
        if (p != from && p->set.weight && !strcmp(p->set.model, from->set.model) &&
            p->set.prompt_max == from->set.prompt_max)
            return p;
    }
    return NULL;
}

static void begin(struct coord *c, struct pool *from, struct pool *to,
                  const struct rollout_plan *plan)
{
    struct shift *s = &c->shift;
    enum rollout_state state = s->state;
    c->stats.rollouts++;
    *s = (struct shift){.state = state,
                        .from = from,
                        .to = to,
                        .plan = *plan,
                        .replicas = from->wanted,
                        .weight = from->set.weight};
    from->figures = to->figures = (struct rollout_figures){0};
    to->set.prompt_max = from->set.prompt_max;
    enter(c, ROLLOUT_SHIFTING);
    core_trace(c, LOG_INFO, "rollout of %s from version %s to version %s (%s) begins",
               from->set.model, from->set.version, to->set.version, to->set.model_dir);
    versions_turn(c);
}

static const char *stands_in_the_way(struct coord *c, const struct pool *from)
{
    if (c->shift.state != ROLLOUT_IDLE)
        return "a rollout is under way";
    if (from->lender || lends(c))
        return "requests of an old version still run";
    if (!from->wanted)
        return "this version has no replicas: name the one that serves";
    if (rival(c, from))
        return arena_printf(&c->arena, "pool %s takes the same requests: one of them at a time",
                            rival(c, from)->set.name);
    return NULL;
}

static void start(struct coord *c, const struct coord_admin *a, struct pool *from, bool switching)
{
    // A switch goes to what is known: only that it can be served at all is judged.
    struct rollout_plan plan = {
        .steps = {100}, .steps_n = 1, .score_drop_milli = 1000, .faults = SWITCH_FAULTS};
    struct errmsg err = {0};
    const char *why = stands_in_the_way(c, from);
    if (why) {
        admin_answer(c, a->tag, STATUS_AGAIN, why);
        return;
    }
    if (!dir_ok(a->model_dir)) {
        admin_answer(c, a->tag, STATUS_BAD_REQUEST, "a model folder or version is missing");
        return;
    }
    struct pool *to = version_find(c, from->set.model, a->model_dir);
    if (!switching)
        plan = a->plan;
    if (rollout_plan_check(&plan, &err)) {
        admin_answer(c, a->tag, STATUS_BAD_REQUEST, arena_printf(&c->arena, "%s", err.text));
        return;
    }
    if (to == from || (switching && !to) || (to && to->ranks_n != from->ranks_n)) {
        admin_answer(c, a->tag, STATUS_BAD_REQUEST,
                     to == from ? "that is the version that serves" : "no such version is kept");
        return;
    }
    if (!to)
        to = version_add(c, from, next_serial(c, from->set.model), a->model_dir);
    if (!to) {
        admin_answer(c, a->tag, STATUS_FULL, "there are too many versions and pools");
        return;
    }
    uint32_t first = rollout_share(plan.steps[0], from->wanted);
    const char *text = arena_printf(
        &c->arena,
        "version %s gets %u of %u replicas first; they move one at a time, %u serve meanwhile%s",
        to->set.version, first, from->wanted, from->wanted - 1,
        from->wanted == 1 ? ": new requests wait until it has loaded" : "");
    begin(c, from, to, &plan);
    admin_answer(c, a->tag, STATUS_OK, text);
}

static void score(struct coord *c, const struct coord_admin *a, const struct pool *of)
{
    struct pool *p = a->model_dir ? version_find(c, of->set.model, a->model_dir) : NULL;
    if (!p || a->number > 1000) {
        admin_answer(c, a->tag, STATUS_BAD_REQUEST, "no such version, or a score above 1");
        return;
    }
    p->score_milli = (int)a->number;
    c->state_changed = true;
    admin_answer(c, a->tag, STATUS_OK, "noted");
}

static void steer(struct coord *c, const struct coord_admin *a)
{
    struct shift *s = &c->shift;
    bool ok = a->op == COORD_ROLLOUT_RESUME ? s->state == ROLLOUT_PAUSED
              : a->op == COORD_ROLLOUT_PAUSE
                  ? s->state == ROLLOUT_SHIFTING || s->state == ROLLOUT_WATCHING
                  : forward(s);
    if (!ok) {
        admin_answer(c, a->tag, STATUS_AGAIN,
                     arena_printf(&c->arena, "the rollout is %s", rollout_state_name(s->state)));
        return;
    }
    switch (a->op) {
    case COORD_ROLLOUT_PAUSE:
        enter(c, ROLLOUT_PAUSED);
        break;
    case COORD_ROLLOUT_ROLLBACK:
        revert(c, "an operator wants it");
        break;
    case COORD_ROLLOUT_PROMOTE:
        s->step = s->plan.steps_n - 1;
        s->plan.dwell_ms = 0;
        if (s->state != ROLLOUT_SHIFTING)
            enter(c, ROLLOUT_SHIFTING);
        break;
    default:
        enter(c, ROLLOUT_SHIFTING);
        break;
    }
    versions_turn(c);
    admin_answer(c, a->tag, STATUS_OK, rollout_state_name(s->state));
}

void versions_order(struct coord *c, const struct coord_admin *a)
{
    const char *why = NULL;
    struct pool *p = versions_pool(c, a->target, &why);
    if (a->op == COORD_ROLLOUT_START || a->op == COORD_ROLLOUT_SWITCH ||
        a->op == COORD_ROLLOUT_SCORE) {
        if (!p)
            admin_answer(c, a->tag, STATUS_NOT_FOUND, why);
        else if (a->op == COORD_ROLLOUT_SCORE)
            score(c, a, p);
        else
            start(c, a, p, a->op == COORD_ROLLOUT_SWITCH);
        return;
    }
    const struct shift *s = &c->shift;
    if (a->target && *a->target && s->to && strcmp(a->target, s->to->set.model) &&
        strcmp(a->target, s->from->set.name) && strcmp(a->target, s->to->set.name)) {
        admin_answer(c, a->tag, STATUS_NOT_FOUND, "no rollout of this model is under way");
        return;
    }
    steer(c, a);
}

void scale_order(struct coord *c, const struct coord_admin *a)
{
    const char *why = NULL;
    struct pool *p = versions_pool(c, a->target, &why);
    if (!p) {
        admin_answer(c, a->tag, STATUS_NOT_FOUND, why);
        return;
    }
    if (c->shift.state != ROLLOUT_IDLE || p->lender || lends(c)) {
        admin_answer(c, a->tag, STATUS_AGAIN, "a rollout is under way");
        return;
    }
    if (a->number < 1 || a->number > COORD_MAX_REPLICAS) {
        admin_answer(
            c, a->tag, STATUS_BAD_REQUEST,
            arena_printf(&c->arena, "%u replicas: not in 1..%d", a->number, COORD_MAX_REPLICAS));
        return;
    }
    core_trace(c, LOG_INFO, "%s: %u replicas are wanted, there were %u", p->set.name, a->number,
               p->wanted);
    pool_scale(c, p, a->number);
    uint32_t spare = c->free_n / p->ranks_n;
    admin_answer(c, a->tag, STATUS_OK,
                 arena_printf(&c->arena,
                              "%u replicas of %u node%s each; %u could be formed of "
                              "nodes that are free now",
                              p->wanted, p->ranks_n, p->ranks_n == 1 ? "" : "s", spare));
}

// ---- views ----

void coord_rollout(const struct coord *c, struct coord_rollout_view *out)
{
    const struct shift *s = &c->shift;
    *out = (struct coord_rollout_view){
        .state = s->state, .why = s->why, .from = "", .to = "", .model = ""};
    if (!s->to)
        return;
    out->model = s->to->set.model;
    out->from = s->from->set.version;
    out->to = s->to->set.version;
    out->from_pool = s->from->set.name;
    out->to_pool = s->to->set.name;
    out->plan = s->plan;
    out->step = s->step;
    out->replicas = s->replicas;
    out->percent = s->state == ROLLOUT_IDLE ? 0 : weight_now(s);
    out->since_us = s->since_us;
    out->agree_percent = agreement(s->to, s->from);
    out->from_figures = &s->from->figures;
    out->to_figures = &s->to->figures;
    out->score_from_milli = s->from->score_milli;
    out->score_to_milli = s->to->score_milli;
}
