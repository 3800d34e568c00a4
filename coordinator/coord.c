// The switch: an event goes to the file that owns it, due timers run, then the cluster is settled:
// drained replicas hand over, free nodes are placed, free credits are given to waiting requests.
// Also the making of actions, and the configuration.
#include "coordinator/coord.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "coordinator/core.h"

void coord_config_default(struct coord_config *cfg)
{
    *cfg = (struct coord_config){
        .model_dir = "",
        .replicas = 1,
        .stages = 1,
        .tensor = 1,
        .transport = TRANSPORT_AUTO,
        .heartbeat_ms = 100,
        .heartbeat_timeout_ms = 1000,
        .warmup_silence_ms = 5000,
        .warmup_timeout_ms = 600000,
        .reload_timeout_ms = 10000,
        .hang_ms = 2000,
        .cancel_timeout_ms = 10000,
        .backoff_ms = 500,
        .backoff_max_ms = 30000,
        .stable_ms = 1000,
        .probe_tokens_n = 8,
        .probe_tolerance = 0.05f,
        .probe_interval_ms = 30000,
        .probe_timeout_ms = 10000,
        .probe_failures = 3,
        .quarantine_ms = 30000,
        .quarantine_percent = 34,
        .trial_ms = 10000,
        .flap_limit = 5,
        .slow_factor = 4,
        .slow_ms = 5000,
        .lost_keep_ms = 600000,
        .other_tenants = {.weight = 1, .max_band = QUEUE_BANDS - 1},
        .tenants_limit = 1024,
        .ageing_ms = 15000,
        .ageing_band = QUEUE_BANDS - 2,
        .preempt_limit = 3,
        .kv_move = true,
        .kv_min_tokens = 64,
        .long_prompt_tokens = 512,
        .kv_lease_ms = 10000,
        .kv_retry_ms = 200,
        .circuit_failures = 3,
        .circuit_open_ms = 5000,
        .circuit_trials = 3,
        .retry_percent = 100,
        .retry_burst_tokens = 1 << 18,
        .prefix_blocks = 1 << 20,
        .queue_limit = 1024,
        .queue_tokens_limit = 16 << 20,
        .queued_notice_ms = 500,
        .default_deadline_ms = 300000,
        .grace_ms = 30000,
        .retention_ms = 60000,
        .retain_limit = 4096,
        .retain_tokens_limit = 8 << 20,
        .poison_faults = 5,
        .poison_losses = 16,
        .trace = LOG_INFO,
    };
    elastic_config_default(&cfg->elastic);
}

bool coord_tenant_name_ok(const char *name)
{
    size_t n = name ? strnlen(name, LIMIT_NAME) : 0;
    if (n == 0 || n == LIMIT_NAME)
        return false;
    for (size_t i = 0; i < n; i++)
        if (name[i] <= ' ' || name[i] > '~' || name[i] == '"' || name[i] == '\\')
            return false;
    return true;
}

static bool tenant_ok(const struct coord_config *k, uint32_t i)
{
    const struct coord_tenant *t = &k->tenants[i];
    if (!coord_tenant_name_ok(t->name) || !strcmp(t->name, "default") || t->max_band >= QUEUE_BANDS)
        return false;
    for (uint32_t j = 0; j < i; j++)
        if (!strcmp(t->name, k->tenants[j].name))
            return false;
    return true;
}

static enum status config_check(const struct coord_config *k, struct errmsg *err)
{
    if (!k->model_dir && !k->pools_n)
        return errmsg_set(err, STATUS_BAD_CONFIG, "coordinator: model_dir is missing");
    if (k->replicas < 1 || k->replicas > COORD_MAX_REPLICAS)
        return errmsg_set(err, STATUS_BAD_CONFIG, "coordinator: replicas %u is not in 1..%d",
                          k->replicas, COORD_MAX_REPLICAS);
    if (k->stages < 1 || k->stages > LIMIT_STAGES || k->tensor < 1 || k->tensor > LIMIT_TENSOR ||
        k->stages * k->tensor > LIMIT_RANKS)
        return errmsg_set(err, STATUS_BAD_CONFIG,
                          "coordinator: %u stages x %u tensor ranks is not in 1..%d x 1..%d, %d in "
                          "all",
                          k->stages, k->tensor, LIMIT_STAGES, LIMIT_TENSOR, LIMIT_RANKS);
    if ((uint64_t)k->prefill_replicas + k->decode_replicas > k->replicas)
        return errmsg_set(err, STATUS_BAD_CONFIG,
                          "coordinator: %u replicas for prefill and %u for decode are more than %u "
                          "replicas",
                          k->prefill_replicas, k->decode_replicas, k->replicas);
    if (!k->heartbeat_ms || k->heartbeat_timeout_ms < 2 * k->heartbeat_ms)
        return errmsg_set(err, STATUS_BAD_CONFIG,
                          "coordinator: heartbeat_timeout_ms %u is less than two heartbeats of %u "
                          "ms",
                          k->heartbeat_timeout_ms, k->heartbeat_ms);
    if (k->warmup_silence_ms < k->heartbeat_timeout_ms)
        return errmsg_set(err, STATUS_BAD_CONFIG,
                          "coordinator: warmup_silence_ms %u is less than heartbeat_timeout_ms %u",
                          k->warmup_silence_ms, k->heartbeat_timeout_ms);
    if (!k->hang_ms || !k->warmup_timeout_ms || !k->reload_timeout_ms || !k->cancel_timeout_ms ||
        !k->queued_notice_ms || !k->backoff_ms || k->backoff_max_ms < k->backoff_ms)
        return errmsg_set(
            err, STATUS_BAD_CONFIG,
            "coordinator: hang_ms, warmup_timeout_ms, reload_timeout_ms, cancel_timeout_ms, "
            "queued_notice_ms and backoff_ms must be above 0, backoff_max_ms not "
            "below backoff_ms");
    if (!k->kv_lease_ms)
        return errmsg_set(err, STATUS_BAD_CONFIG, "coordinator: kv_lease_ms must be above 0");
    if (k->ageing_band >= QUEUE_BANDS || k->other_tenants.max_band >= QUEUE_BANDS)
        return errmsg_set(err, STATUS_BAD_CONFIG,
                          "coordinator: ageing_band, max_band: not in 0..9");
    if (k->probe_prompt_n > PROBE_PROMPT || k->probe_tokens_n < 1 ||
        k->probe_tokens_n > PROBE_TOKENS || !k->probe_interval_ms || !k->probe_timeout_ms ||
        !k->probe_failures || !k->quarantine_ms || k->slow_factor < 1)
        return errmsg_set(
            err, STATUS_BAD_CONFIG,
            "coordinator: a golden probe has at most %d tokens of prompt and 1..%d of "
            "answer; its times, its failures and quarantine_ms are above 0, "
            "slow_factor is at least 1",
            PROBE_PROMPT, PROBE_TOKENS);
    if (elastic_config_check(&k->elastic, err))
        return STATUS_BAD_CONFIG;
    if (k->circuit_failures && (!k->circuit_open_ms || !k->circuit_trials))
        return errmsg_set(err, STATUS_BAD_CONFIG,
                          "coordinator: circuit_open_ms, circuit_trials: must be above 0");
    for (uint32_t i = 0; i < k->breakers_n; i++)
        if (k->breakers[i].metric >= BREAKER_METRICS || k->breakers[i].action >= BREAKER_ACTIONS ||
            (k->breakers[i].action == BREAKER_CAP_TOKENS && !k->breakers[i].value))
            return errmsg_set(err, STATUS_BAD_CONFIG,
                              "coordinator: breakers[%u]: an unknown metric or action, or a cap of "
                              "0 tokens",
                              i);
    for (uint32_t i = 0; i < k->tenants_n; i++)
        if (!tenant_ok(k, i))
            return errmsg_set(
                err, STATUS_BAD_CONFIG,
                "coordinator: tenants[%u]: the name is not 1..%d printable characters "
                "without quotes, or is taken, or max_band is not in 0..9",
                i, LIMIT_NAME - 1);
    if (k->max_context > LIMIT_CONTEXT)
        return errmsg_set(err, STATUS_BAD_CONFIG, "coordinator: max_context %u is above %d",
                          k->max_context, LIMIT_CONTEXT);
    return STATUS_OK;
}

// The one pool of a configuration that names none.
static struct coord_pool only_pool(const struct coord_config *cfg)
{
    return (struct coord_pool){
        .name = "main",
        .model = cfg->model ? cfg->model : "model",
        .version = "1",
        .model_dir = cfg->model_dir,
        .replicas = cfg->replicas,
        .stages = cfg->stages,
        .tensor = cfg->tensor,
        .prefill_replicas = cfg->prefill_replicas,
        .decode_replicas = cfg->decode_replicas,
        .weight = 1,
        .max_context = cfg->max_context,
        .probe_prompt = cfg->probe_prompt,
        .probe_prompt_n = cfg->probe_prompt_n,
        .probe_expect = cfg->probe_expect,
    };
}

static enum status pools_check(const struct coord_config *k, struct errmsg *err)
{
    uint64_t replicas = 0;
    const struct coord_pool only = only_pool(k);
    const char *wrong = k->pools_n ? NULL : pool_nonsense(&only);
    if (wrong)
        return errmsg_set(err, STATUS_BAD_CONFIG, "coordinator: %s", wrong);
    if (k->pools_n > COORD_MAX_POOLS)
        return errmsg_set(err, STATUS_BAD_CONFIG, "coordinator: pools: more than %d",
                          COORD_MAX_POOLS);
    for (uint32_t i = 0; i < k->pools_n; i++) {
        const char *text = pool_nonsense(&k->pools[i]);
        if (text)
            return errmsg_set(err, STATUS_BAD_CONFIG, "coordinator: pools[%u]: %s", i, text);
        for (uint32_t j = 0; j < i; j++)
            if (!strcmp(k->pools[i].name, k->pools[j].name))
                return errmsg_set(err, STATUS_BAD_CONFIG, "coordinator: pools[%u]: name: is taken",
                                  i);
        replicas += k->pools[i].replicas;
    }
    if (replicas > COORD_MAX_REPLICAS)
        return errmsg_set(err, STATUS_BAD_CONFIG, "coordinator: pools: more than %d replicas",
                          COORD_MAX_REPLICAS);
    return STATUS_OK;
}

// What points into the caller's configuration is gone from ours when they are made.
static bool make_pools(struct coord *c, const struct coord_config *cfg)
{
    struct coord_pool only = only_pool(cfg);
    bool probes = false;
    if (!cfg->pools_n)
        pool_add(c, &only);
    for (uint32_t i = 0; i < cfg->pools_n; i++)
        pool_add(c, &cfg->pools[i]);
    for (uint32_t i = 0; i < c->pools_n; i++)
        probes |= c->pools[i]->set.probe_prompt_n > 0;
    c->cfg.pools = NULL;
    c->cfg.model = c->cfg.model_dir = NULL;
    c->cfg.probe_prompt = c->cfg.probe_expect = NULL;
    return probes;
}

static void take_breakers(struct coord *c, const struct coord_config *cfg)
{
    c->breakers_n = cfg->breakers_n;
    c->breakers = mem_zalloc(cfg->breakers_n + 1, sizeof *c->breakers);
    for (uint32_t i = 0; i < cfg->breakers_n; i++)
        c->breakers[i].rule = cfg->breakers[i];
    c->cfg.breakers = NULL;
    if (cfg->breakers_n)
        core_arm(c, &c->breaker_timer, TIMER_BREAKERS, 0);
}

struct coord *coord_create(const struct coord_config *cfg, struct errmsg *err)
{
    if (config_check(cfg, err) != STATUS_OK || pools_check(cfg, err) != STATUS_OK)
        return NULL;
    struct coord *c = mem_zalloc(1, sizeof *c);
    c->cfg = *cfg;
    c->epoch = cfg->first_epoch;
    c->timer_set_us = UINT64_MAX;
    c->versions_n = 1;
    tenants_init(&c->tenants, cfg->tenants, cfg->tenants_n, &cfg->other_tenants,
                 cfg->tenants_limit);
    c->cfg.tenants = NULL;
    take_breakers(c, cfg);
    if (make_pools(c, cfg) && cfg->slow_ms) // it is a probe that clears or convicts a straggler
        core_arm(c, &c->pace_timer, TIMER_PACE, 0);
    c->cfg.state = NULL;
    if (cfg->elastic.max)
        core_arm(c, &c->elastic_timer, TIMER_ELASTIC, 0);
    if (cfg->state && *cfg->state && state_restore(c, cfg->state, err)) {
        coord_destroy(c);
        return NULL;
    }
    return c;
}

void coord_destroy(struct coord *c)
{
    if (!c)
        return;
    transfers_free(c);
    requests_free(c);
    tenants_finish(&c->tenants);
    replicas_free(c);
    pools_free(c);
    free(c->state);
    members_free(c);
    waiters_free(&c->closes);
    timers_finish(&c->timers);
    arena_finish(&c->arena);
    free(c->actions);
    free(c->breakers);
    free(c);
}

// ---- making actions ----

struct coord_action *core_emit(struct coord *c, enum coord_action_kind kind)
{
    MEM_GROW(c->actions, c->actions_n, c->actions_cap);
    struct coord_action *a = &c->actions[c->actions_n++];
    *a = (struct coord_action){.kind = kind};
    return a;
}

void core_send(struct coord *c, uint64_t conn, struct msg msg)
{
    assert(conn);
    const struct msg *copy = arena_dup(&c->arena, &msg, 1, sizeof msg);
    struct coord_action *a = core_emit(c, COORD_SEND);
    a->send.conn = conn;
    a->send.msg = copy;
}

void core_trace(struct coord *c, enum log_level level, const char *fmt, ...)
{
    if (level < c->cfg.trace)
        return;
    va_list ap;
    va_start(ap, fmt);
    const char *text = arena_vprintf(&c->arena, fmt, ap);
    va_end(ap);
    struct coord_action *a = core_emit(c, COORD_TRACE);
    a->trace.level = level;
    a->trace.text = arena_printf(&c->arena, "coord > %s", text);
}

void core_arm(struct coord *c, struct timer *t, enum timer_kind kind, uint64_t due_us)
{
    t->kind = kind;
    timers_arm(&c->timers, t, due_us);
}

void core_disarm(struct coord *c, struct timer *t)
{
    timers_disarm(&c->timers, t);
}

bool waiter_add(struct waiter **list, uint64_t tag)
{
    enum { WAITERS = 64 };
    int n = 0;
    for (const struct waiter *w = *list; w; w = w->next)
        if (++n == WAITERS)
            return false;
    struct waiter *w = mem_zalloc(1, sizeof *w);
    w->tag = tag;
    w->next = *list;
    *list = w;
    return true;
}

void waiters_answer(struct coord *c, struct waiter **list, enum status s, const char *text)
{
    for (struct waiter *w = *list; w; w = w->next) {
        struct coord_action *a = core_emit(c, COORD_ADMIN_DONE);
        a->admin_done.tag = w->tag;
        a->admin_done.status = s;
        a->admin_done.text = arena_dup(&c->arena, text, strlen(text) + 1, 1);
    }
    waiters_free(list);
}

void waiters_free(struct waiter **list)
{
    while (*list) {
        struct waiter *w = *list;
        *list = w->next;
        free(w);
    }
}

// ---- the step ----

static void dispatch_event(struct coord *c, const struct coord_event *ev)
{
    switch (ev->kind) {
    case COORD_TIMER:
        break;
    case COORD_NODE_UP:
        members_up(c, ev->node.conn, ev->node.msg);
        break;
    case COORD_NODE_MSG:
        members_msg(c, ev->node.conn, ev->node.msg);
        break;
    case COORD_NODE_DOWN:
        members_down(c, ev->node.conn);
        break;
    case COORD_SUBMIT:
        requests_submit(c, &ev->submit);
        break;
    case COORD_RESTORE:
        requests_restore(c, &ev->restore);
        break;
    case COORD_RESTORE_MARK:
        members_restore_mark(c, &ev->admin);
        break;
    case COORD_STOP:
        requests_stop(c, ev->req.request, ev->req.kept);
        break;
    case COORD_ATTACH:
    case COORD_DETACH:
        requests_attach(c, ev->req.request, ev->kind == COORD_ATTACH);
        break;
    case COORD_CANCEL:
        requests_cancel(c, ev->req.request);
        break;
    case COORD_ADMIN:
        admin_do(c, &ev->admin);
        break;
    }
}

static void fire(struct coord *c, struct timer *t)
{
    switch ((enum timer_kind)t->kind) {
    case TIMER_MEMBER:
        members_timer(c, CONTAINER_OF(t, struct member, timer));
        break;
    case TIMER_REPLICA:
        replica_timer(c, CONTAINER_OF(t, struct replica, timer));
        break;
    case TIMER_CANCEL:
        replica_cancel_timer(c, CONTAINER_OF(t, struct replica, cancel_timer));
        break;
    case TIMER_REFORM:
        handover_reform_timer(c, CONTAINER_OF(t, struct replica, reform_timer));
        break;
    case TIMER_TRANSFER:
        transfer_timer(c, CONTAINER_OF(t, struct transfer, timer));
        break;
    case TIMER_WAIT:
        requests_wait_timer(c, CONTAINER_OF(t, struct request, wait));
        break;
    case TIMER_LIFE:
        requests_life_timer(c, CONTAINER_OF(t, struct request, life));
        break;
    case TIMER_PROBE:
        prober_timer(c, (struct replica *)((char *)t - offsetof(struct replica, probe.timer)));
        break;
    case TIMER_QUARANTINE:
        quarantine_timer(c, CONTAINER_OF(t, struct member, quarantine_timer));
        break;
    case TIMER_CIRCUIT:
        circuit_timer(c, CONTAINER_OF(t, struct replica, circuit_timer));
        break;
    case TIMER_BREAKERS:
        breakers_timer(c);
        break;
    case TIMER_SHIFT:
        versions_turn(c);
        break;
    case TIMER_ELASTIC:
        scaling_timer(c);
        break;
    case TIMER_PACE:
        quarantine_pace_timer(c);
        break;
    case TIMER_NOTICE:
        notices_all(c);
        break;
    }
}

static void run_timers(struct coord *c)
{
    struct timer *t;
    while ((t = timers_pop(&c->timers, c->now_us)))
        fire(c, t);
}

static void settle(struct coord *c)
{
    handover_pump(c);
    replicas_place(c);
    dispatch_pump(c);
    versions_arm(c);
    scaling_tell(c);
    state_tell(c);
    if (c->closes && !c->live_n)
        waiters_answer(c, &c->closes, STATUS_OK, "no request is unfinished");
}

static void set_timer(struct coord *c)
{
    uint64_t next = timers_next(&c->timers);
    if (next == c->timer_set_us)
        return;
    c->timer_set_us = next;
    core_emit(c, COORD_SET_TIMER)->timer.at_us = next;
}

void coord_step(struct coord *c, const struct coord_event *ev, struct coord_actions *out)
{
    arena_reset(&c->arena);
    c->actions_n = 0;
    if (ev->now_us > c->now_us)
        c->now_us = ev->now_us;
    if (ev->kind == COORD_TIMER)
        c->timer_set_us = UINT64_MAX;
    dispatch_event(c, ev);
    run_timers(c);
    settle(c);
    if (ev->kind == COORD_SUBMIT)
        notices_one(c, ev->submit.request);
    set_timer(c);
    out->v = c->actions;
    out->n = c->actions_n;
}
