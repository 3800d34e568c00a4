// Two countdowns, one each way; whichever is over changes the number and starts both anew.
#include "coordinator/elastic.h"

void elastic_config_default(struct elastic_config *c)
{
    *c = (struct elastic_config){
        .min = 1,
        .up = {{2000, 1}, {10000, 2}, {30000, 4}},
        .up_n = 3,
        .up_window_ms = 3000,
        .down_window_ms = 300000,
        .down_percent = 60,
        .hold_ms = 120000,
    };
}

enum status elastic_config_check(const struct elastic_config *c, struct errmsg *err)
{
    if (!c->max)
        return STATUS_OK;
    if (c->min < 1 || c->min > c->max)
        return errmsg_set(err, STATUS_BAD_CONFIG, "elastic: min %u, max %u: not 1 <= min <= max",
                          c->min, c->max);
    if (!c->up_n || c->up_n > ELASTIC_STEPS || c->down_percent < 1 || c->down_percent > 100)
        return errmsg_set(err, STATUS_BAD_CONFIG,
                          "elastic: 1 to %d steps up, and down_percent in 1..100", ELASTIC_STEPS);
    for (uint32_t i = 0; i < c->up_n; i++)
        if (!c->up[i].wait_ms || !c->up[i].add || (i && c->up[i].wait_ms <= c->up[i - 1].wait_ms))
            return errmsg_set(err, STATUS_BAD_CONFIG,
                              "elastic: up[%u]: wait_ms must grow from step to step, add must not "
                              "be 0",
                              i);
    return STATUS_OK;
}

static uint32_t clamp(const struct elastic_config *c, uint64_t n)
{
    return n < c->min ? c->min : n > c->max ? c->max : (uint32_t)n;
}

static uint32_t for_wait(const struct elastic_config *c, const struct elastic_look *k)
{
    uint32_t add = 0;
    for (uint32_t i = 0; i < c->up_n && k->wait_ms >= c->up[i].wait_ms; i++)
        add = c->up[i].add;
    return clamp(c, (uint64_t)k->wanted + add);
}

// So many would have the load at down_percent of their places. Not known while none is ready.
static uint32_t for_load(const struct elastic_config *c, const struct elastic_look *k)
{
    if (!k->ready || !k->places || k->queued)
        return k->wanted;
    uint64_t per = (uint64_t)k->places * c->down_percent; // of one, times 100 * ready
    uint64_t need = ((uint64_t)k->load * 100 * k->ready + per - 1) / per;
    return clamp(c, need ? need : 1);
}

static uint32_t change(struct elastic *e, uint64_t now_us, uint32_t to)
{
    e->up_since_us = e->down_since_us = 0;
    e->changed_us = now_us;
    return to;
}

uint32_t elastic_step(const struct elastic_config *c, struct elastic *e, uint64_t now_us,
                      const struct elastic_look *k)
{
    uint32_t within = clamp(c, k->wanted);
    if (within != k->wanted)
        return change(e, now_us, within);
    uint32_t up = for_wait(c, k), down = for_load(c, k);
    if (up <= k->wanted) {
        e->up_since_us = 0;
    } else if (!e->up_since_us || up < e->up_least) {
        if (!e->up_since_us)
            e->up_since_us = now_us;
        e->up_least = up;
    }
    if (down >= k->wanted || up > k->wanted) {
        e->down_since_us = 0;
    } else if (!e->down_since_us || down > e->down_most) {
        if (!e->down_since_us)
            e->down_since_us = now_us;
        e->down_most = down;
    }
    bool held =
        e->changed_us && k->ready < k->wanted && now_us - e->changed_us < 1000ull * c->hold_ms;
    if (e->up_since_us && !held && now_us - e->up_since_us >= 1000ull * c->up_window_ms)
        return change(e, now_us, e->up_least);
    if (e->down_since_us && now_us - e->down_since_us >= 1000ull * c->down_window_ms)
        return change(e, now_us, e->down_most);
    return k->wanted;
}
