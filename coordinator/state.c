// What an operator's commands have made of the configuration, as a text of a few lines: versions,
// how many replicas each has, the rollout under way. It is told whenever it changes (COORD_STATE),
// kept by whoever carries out actions, and given back to the next core (coord_config.state), so
// that a rollout survives its coordinator.
//
// A configuration that was edited meanwhile wins: of another model folder nothing is taken over, of
// another number of replicas that number.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/core.h"

static const char head[] = "hadal-state 1 revision ";

// ---- out ----

// What was lent is given back first: requests that are bound to the other one may have ended.
static uint32_t wanted_without_loans(const struct coord *c, const struct pool *p)
{
    uint32_t n = p->wanted - (p->lender != NULL);
    for (uint32_t i = 0; i < c->pools_n; i++)
        n += c->pools[i]->lender == p;
    return n;
}

static const char *pool_line(struct coord *c, const struct pool *p)
{
    return arena_printf(&c->arena, "pool %s %s %s %u %u %u %u %d %016" PRIx64 " %s\n", p->set.name,
                        p->set.model, *p->set.version ? p->set.version : "-", p->serial,
                        wanted_without_loans(c, p), p->set.weight, p->set.replicas, p->score_milli,
                        p->fingerprint, p->set.model_dir);
}

static const char *plan_line(struct coord *c, const struct rollout_plan *p)
{
    const char *text = arena_printf(
        &c->arena, "plan %u %u %u %u %u %u %u %u ", p->dwell_ms, p->min_requests, p->errors_percent,
        p->ttft_percent, p->tpot_percent, p->agree_percent, p->score_drop_milli, p->faults);
    for (uint32_t i = 0; i < p->steps_n; i++)
        text = arena_printf(&c->arena, "%s%s%u", text, i ? "," : "", p->steps[i]);
    return arena_printf(&c->arena, "%s\n", text);
}

static const char *shift_line(struct coord *c)
{
    const struct shift *s = &c->shift;
    if (!s->to)
        return "";
    return arena_printf(&c->arena, "rollout %s %s %s %u %u %u\n%swhy %s\n",
                        rollout_state_name(s->state), s->from->set.name, s->to->set.name, s->step,
                        s->replicas, s->weight, plan_line(c, &s->plan), s->why);
}

void state_tell(struct coord *c)
{
    if (!c->state_changed)
        return;
    c->state_changed = false;
    const char *text = arena_printf(&c->arena, "versions %u\n", c->versions_n);
    for (uint32_t i = 0; i < c->pools_n; i++)
        text = arena_printf(&c->arena, "%s%s", text, pool_line(c, c->pools[i]));
    text = arena_printf(&c->arena, "%s%s", text, shift_line(c));
    const char *old = c->state ? strchr(c->state, '\n') + 1 : NULL; // without the revision
    if (old && !strcmp(old, text))
        return;
    text = arena_printf(&c->arena, "%s%" PRIu64 "\n%s", head, ++c->state_revision, text);
    free(c->state);
    c->state = mem_strdup(text);
    core_emit(c, COORD_STATE)->state.text = c->state;
    // Before all else of this step: what an operator is answered must be kept by then.
    struct coord_action told = c->actions[c->actions_n - 1];
    memmove(c->actions + 1, c->actions, (c->actions_n - 1) * sizeof told);
    c->actions[0] = told;
}

const char *coord_state(const struct coord *c)
{
    return c->state ? c->state : "";
}

uint64_t coord_state_revision(const char *text)
{
    uint64_t revision;
    bool ok = text && !strncmp(text, head, sizeof head - 1) &&
              sscanf(text + sizeof head - 1, "%" SCNu64, &revision) == 1;
    return ok && revision < UINT64_MAX / 2 ? revision : 0;
}

// ---- in ----

struct reading {
    struct coord *c;
    char *at;         // the rest of a copy
    bool other_model; // the configuration has another folder: nothing counts
    bool resized;     // or another number of replicas
};

static char *next_line(struct reading *r)
{
    char *line = r->at, *end = strchr(line, '\n');
    if (!end)
        return NULL;
    *end = 0;
    r->at = end + 1;
    return line;
}

static struct pool *base_of(const struct coord *c, const char *model)
{
    for (uint32_t i = 0; i < c->pools_n; i++)
        if (!c->pools[i]->serial && !strcmp(c->pools[i]->set.model, model))
            return c->pools[i];
    return NULL;
}

static bool read_pool(struct reading *r, const char *line)
{
    struct coord *c = r->c;
    char name[LIMIT_NAME], model[LIMIT_NAME], version[LIMIT_NAME];
    uint32_t serial, wanted, weight, configured;
    uint64_t fingerprint;
    int score, used = 0;
    _Static_assert(LIMIT_NAME == 64, "the widths below");
    if (sscanf(line,
               "pool %63s %63s %63s %" SCNu32 " %" SCNu32 " %" SCNu32 " %" SCNu32 " %d %" SCNx64
               " %n",
               name, model, version, &serial, &wanted, &weight, &configured, &score, &fingerprint,
               &used) != 9 ||
        !used || !line[used] || wanted > COORD_MAX_REPLICAS || weight > 1u << 20 || score > 1000)
        return false;
    struct pool *base = base_of(c, model), *p = pool_find(c, name);
    const char *dir = line + used;
    if (!serial) {
        r->other_model = r->other_model || !p || strcmp(p->set.model_dir, dir);
        r->resized = r->resized || !p || p->set.replicas != configured;
    } else if (!r->other_model && base && !p) {
        p = version_add(c, base, serial, dir);
    }
    if (r->other_model || !p)
        return true;
    p->score_milli = score;
    p->fingerprint = fingerprint;
    p->set.weight = weight;
    pool_scale(c, p, wanted);
    return true;
}

static bool read_plan(const char *line, struct rollout_plan *p)
{
    char steps[200];
    struct errmsg err = {0};
    return sscanf(line,
                  "plan %" SCNu32 " %" SCNu32 " %" SCNu32 " %" SCNu32 " %" SCNu32 " %" SCNu32
                  " %" SCNu32 " %" SCNu32 " %199s",
                  &p->dwell_ms, &p->min_requests, &p->errors_percent, &p->ttft_percent,
                  &p->tpot_percent, &p->agree_percent, &p->score_drop_milli, &p->faults,
                  steps) == 9 &&
           rollout_steps_parse(steps, p, &err) == STATUS_OK &&
           rollout_plan_check(p, &err) == STATUS_OK;
}

static bool read_shift(struct reading *r, const char *line)
{
    struct coord *c = r->c;
    struct shift *s = &c->shift, got = {0};
    char state[16], from[LIMIT_NAME], to[LIMIT_NAME];
    int at = 0;
    if (sscanf(line, "rollout %15s %63s %63s %" SCNu32 " %" SCNu32 " %" SCNu32, state, from, to,
               &got.step, &got.replicas, &got.weight) != 6)
        return false;
    while (at <= ROLLOUT_REVERTING && strcmp(state, rollout_state_name((enum rollout_state)at)))
        at++;
    got.state = (enum rollout_state)at;
    got.from = pool_find(c, from);
    got.to = pool_find(c, to);
    got.since_us = c->now_us;
    char *plan = next_line(r), *why = plan ? next_line(r) : NULL;
    if (at > ROLLOUT_REVERTING || !why || strncmp(why, "why ", 4) || !read_plan(plan, &got.plan) ||
        got.step >= got.plan.steps_n)
        return false;
    if (r->other_model || !got.from || !got.to || got.from == got.to)
        return true;
    if (got.state != ROLLOUT_IDLE &&
        (!got.replicas || got.from->wanted + got.to->wanted != got.replicas))
        return false;
    snprintf(got.why, sizeof got.why, "%.*s", (int)sizeof got.why - 1, why + 4);
    *s = got;
    return true;
}

// The configuration asks for another number now: who serves gets it.
static void resize(struct coord *c)
{
    for (uint32_t i = 0; i < c->pools_n && c->shift.state == ROLLOUT_IDLE; i++) {
        struct pool *p = c->pools[i], *base = base_of(c, p->set.model);
        if (p->set.weight && p->wanted && base)
            pool_scale(c, p, base->set.replicas);
    }
}

enum status state_restore(struct coord *c, const char *text, struct errmsg *err)
{
    if (strnlen(text, COORD_STATE_BYTES) == COORD_STATE_BYTES)
        return errmsg_set(err, STATUS_BAD_FILE, "state: more than %d bytes", COORD_STATE_BYTES);
    char *copy = mem_strdup(text), *line;
    struct reading r = {.c = c, .at = copy};
    c->state_revision = coord_state_revision(text);
    bool ok = c->state_revision && (line = next_line(&r)) && (line = next_line(&r)) &&
              sscanf(line, "versions %" SCNu32, &c->versions_n) == 1;
    uint32_t n = 2;
    for (; ok && (line = next_line(&r)); n++)
        ok = !strncmp(line, "pool ", 5) ? read_pool(&r, line) : read_shift(&r, line);
    ok = ok && !*r.at;
    if (ok && r.resized && !r.other_model)
        resize(c);
    free(copy);
    if (!ok)
        return errmsg_set(err, STATUS_BAD_FILE, "state: line %u does not make sense", n);
    c->state_changed = true;
    versions_arm(c);
    return STATUS_OK;
}
