// Several versions of the model in the swarm: good ones, one that is slow, one that cannot be
// loaded; and what operators do with them at any time. That no answer mixes two of them is judged
// in clients.c.
#include <stdio.h>

#include "tests/sim/world.h"

static const struct mock_version versions[SIM_VERSIONS] = {
    {.dir = "models/sample", .fingerprint = 0xfeed},
    {.dir = "models/two", .fingerprint = 0xfe02, .salt = 2},
    {.dir = "models/three", .fingerprint = 0xfe03, .salt = 3},
    {.dir = "models/slow", .fingerprint = 0xfe04, .salt = 4, .slow = 3},
    {.dir = "models/broken", .fingerprint = 0xfe05, .salt = 5, .form_status = STATUS_BAD_FILE},
};

static void order(struct world *w, int arg)
{
    rollout_order(w);
}

void rollout_draw(struct world *w, uint64_t until_us)
{
    for (uint64_t n = until_us ? world_between(w, 1, 6) : 0; n;
         n--) // some more than faults of that class
        world_call(w, prng_below(&w->prng, until_us), order, 0);
    w->opt.mock.versions = versions;
    w->opt.mock.versions_n = SIM_VERSIONS;
}

static void send(struct world *w, struct coord_admin a)
{
    if (!w->coord)
        return;
    a.tag = ++w->admin_sent;
    if (a.op == COORD_SCALE)
        world_tell(w, "operator > scale %s to %u", a.target, a.number);
    else
        world_tell(w, "operator > %s %s%s%s", coord_admin_op_name(a.op), a.target,
                   a.model_dir ? " " : "", a.model_dir ? a.model_dir : "");
    world_coord(w, &(struct coord_event){.kind = COORD_ADMIN, .admin = a});
}

void rollout_send(struct world *w, const struct coord_admin *a, int version)
{
    struct coord_admin named = *a;
    named.model_dir = versions[version].dir;
    send(w, named);
}

static struct rollout_plan draw_plan(struct world *w)
{
    struct rollout_plan p;
    rollout_plan_default(&p);
    p.steps_n = 0;
    for (uint32_t at = 0; at < 100 && p.steps_n < 4;) {
        at += (uint32_t)world_between(w, 1, 60);
        p.steps[p.steps_n++] = at < 100 ? at : 100;
    }
    p.steps[p.steps_n - 1] = 100;
    p.dwell_ms = (uint32_t)world_between(w, 0, 600);
    p.min_requests = (uint32_t)world_between(w, 2, 6);
    p.agree_percent = world_chance(w, 0.2) ? 100 : 0; // wrong: its golden answer is another one
    return p;
}

void rollout_order(struct world *w)
{
    static const enum coord_admin_op ops[] = {
        COORD_ROLLOUT_START,  COORD_ROLLOUT_START,   COORD_ROLLOUT_START, COORD_ROLLOUT_PAUSE,
        COORD_ROLLOUT_RESUME, COORD_ROLLOUT_PROMOTE, COORD_SCALE,         COORD_ROLLOUT_ROLLBACK,
        COORD_ROLLOUT_SWITCH, COORD_ROLLOUT_SCORE,
    };
    struct coord_admin a = {.op = ops[world_between(w, 0, sizeof ops / sizeof *ops - 1)],
                            .target = "model"};
    if (a.op == COORD_ROLLOUT_START || a.op == COORD_ROLLOUT_SWITCH || a.op == COORD_ROLLOUT_SCORE)
        a.model_dir = versions[world_between(w, 0, SIM_VERSIONS - 1)].dir;
    if (a.op == COORD_ROLLOUT_START)
        a.plan = draw_plan(w);
    if (a.op == COORD_SCALE)
        a.number = (uint32_t)world_between(w, 1, w->opt.replicas);
    if (a.op == COORD_ROLLOUT_SCORE)
        a.number = (uint32_t)world_between(w, 0, 1000);
    send(w, a);
}

bool rollout_is_over(const struct world *w)
{
    struct coord_rollout_view v;
    coord_rollout(w->coord, &v);
    return v.state == ROLLOUT_IDLE;
}

void rollout_end(struct world *w)
{
    struct coord_rollout_view v;
    coord_rollout(w->coord, &v);
    if (v.state == ROLLOUT_PAUSED)
        send(w, (struct coord_admin){.op = COORD_ROLLOUT_RESUME, .target = ""});
}
