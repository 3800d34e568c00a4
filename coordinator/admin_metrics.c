// The core's counts in Prometheus' text format, version 0.0.4.
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "coordinator/admin_json.h"

static const double bounds[HISTOGRAM_BINS] = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
                                              1,     2,    3,     5,    10,  30,   INFINITY};

void histogram_add(struct histogram *h, double seconds)
{
    int i = 0;
    while (seconds > bounds[i])
        i++;
    h->n[i]++;
    h->sum += seconds;
}

static void header(struct strbuf *out, const char *name, const char *type, const char *help)
{
    strbuf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void gauge(struct strbuf *out, const char *name, const char *help, uint64_t v)
{
    header(out, name, "gauge", help);
    strbuf_printf(out, "%s %" PRIu64 "\n", name, v);
}

static void counter(struct strbuf *out, const char *name, const char *help, uint64_t v)
{
    header(out, name, "counter", help);
    strbuf_printf(out, "%s %" PRIu64 "\n", name, v);
}

static void labelled(struct strbuf *out, const char *name, const char *label, const char *value,
                     uint64_t v)
{
    strbuf_printf(out, "%s{%s=\"%s\"} %" PRIu64 "\n", name, label, value, v);
}

static void histogram(struct strbuf *out, const char *name, const char *help,
                      const struct histogram *h)
{
    uint64_t n = 0;
    header(out, name, "histogram", help);
    for (int i = 0; i < HISTOGRAM_BINS; i++) {
        n += h->n[i];
        if (isinf(bounds[i]))
            strbuf_printf(out, "%s_bucket{le=\"+Inf\"} %" PRIu64 "\n", name, n);
        else
            strbuf_printf(out, "%s_bucket{le=\"%g\"} %" PRIu64 "\n", name, bounds[i], n);
    }
    strbuf_printf(out, "%s_sum %.6f\n%s_count %" PRIu64 "\n", name, h->sum, name, n);
}

static bool count_node(void *arg, const struct coord_node_view *n)
{
    ((uint64_t *)arg)[n->state]++;
    return true;
}

struct replica_counts {
    uint64_t states[COORD_REPLICA_DRAINING + 1], roles[COORD_ROLE_DECODE + 1],
        transports[TRANSPORT_VERBS + 1];
};

static bool count_replica(void *arg, const struct coord_replica_view *r)
{
    struct replica_counts *n = arg;
    n->states[r->state]++;
    n->roles[r->role] += r->state == COORD_REPLICA_READY;
    n->transports[r->transport]++;
    return true;
}

static void members(const struct coord *core, struct strbuf *out)
{
    uint64_t nodes[COORD_NODE_LOST + 1] = {0};
    struct replica_counts replicas = {0};
    coord_each_node(core, count_node, nodes);
    coord_each_replica(core, count_replica, &replicas);
    header(out, "hadal_nodes", "gauge", "Nodes by state.");
    for (int i = 0; i <= COORD_NODE_LOST; i++)
        labelled(out, "hadal_nodes", "state", coord_node_state_name((enum coord_node_state)i),
                 nodes[i]);
    header(out, "hadal_replicas", "gauge", "Replicas by state.");
    for (int i = 0; i <= COORD_REPLICA_DRAINING; i++)
        labelled(out, "hadal_replicas", "state",
                 coord_replica_state_name((enum coord_replica_state)i), replicas.states[i]);
    header(out, "hadal_replicas_ready", "gauge", "Ready replicas by role.");
    for (int i = 0; i <= COORD_ROLE_DECODE; i++)
        labelled(out, "hadal_replicas_ready", "role", coord_role_name((enum coord_role)i),
                 replicas.roles[i]);
    header(out, "hadal_replicas_linked", "gauge",
           "Ready replicas of several ranks, by what links the ranks.");
    for (int i = TRANSPORT_SHM; i <= TRANSPORT_VERBS; i++)
        labelled(out, "hadal_replicas_linked", "transport",
                 transport_choice_name((enum transport_choice)i), replicas.transports[i]);
}

static uint64_t utilization(const struct gpu_figures *g)
{
    return g->utilization_percent;
}
static uint64_t memory_used(const struct gpu_figures *g)
{
    return g->memory_used_bytes;
}
static uint64_t memory_total(const struct gpu_figures *g)
{
    return g->memory_total_bytes;
}
static uint64_t temperature(const struct gpu_figures *g)
{
    return g->temperature_c;
}
static uint64_t power(const struct gpu_figures *g)
{
    return g->power_mw;
}
static uint64_t sm_clock(const struct gpu_figures *g)
{
    return g->sm_mhz;
}
static uint64_t ecc_corrected(const struct gpu_figures *g)
{
    return g->ecc_corrected;
}
static uint64_t ecc_uncorrected(const struct gpu_figures *g)
{
    return g->ecc_uncorrected;
}
static uint64_t xids(const struct gpu_figures *g)
{
    return g->xids;
}
static uint64_t suspect(const struct gpu_figures *g)
{
    return g->suspect;
}

static const struct gpu_metric {
    const char *name, *type, *help;
    uint64_t (*of)(const struct gpu_figures *g);
} gpu_metrics[] = {
    {"hadal_gpu_utilization_percent", "gauge", "Share of time with a kernel running.", utilization},
    {"hadal_gpu_memory_used_bytes", "gauge", "Device memory in use.", memory_used},
    {"hadal_gpu_memory_total_bytes", "gauge", "Device memory.", memory_total},
    {"hadal_gpu_temperature_celsius", "gauge", "Temperature of the chip.", temperature},
    {"hadal_gpu_power_milliwatts", "gauge", "Power drawn.", power},
    {"hadal_gpu_sm_megahertz", "gauge", "Clock of the multiprocessors.", sm_clock},
    {"hadal_gpu_ecc_corrected_total", "counter", "ECC errors corrected.", ecc_corrected},
    {"hadal_gpu_ecc_uncorrected_total", "counter", "ECC errors not corrected.", ecc_uncorrected},
    {"hadal_gpu_xids_total", "counter", "XID events since the node started.", xids},
    {"hadal_gpu_suspect", "gauge", "1 when the device is suspect.", suspect},
};

struct gpu_list {
    struct strbuf *out;
    const struct gpu_metric *metric;
    bool some;
};

static bool add_gpu(void *arg, const struct coord_node_view *n)
{
    struct gpu_list *l = arg;
    if (!n->conn || !n->heartbeat.gpu.present)
        return true;
    if (!l->some)
        header(l->out, l->metric->name, l->metric->type, l->metric->help);
    l->some = true;
    labelled(l->out, l->metric->name, "node", n->name, l->metric->of(&n->heartbeat.gpu));
    return true;
}

static void gpus(const struct coord *core, struct strbuf *out)
{
    for (size_t i = 0; i < sizeof gpu_metrics / sizeof *gpu_metrics; i++) {
        struct gpu_list l = {.out = out, .metric = &gpu_metrics[i]};
        coord_each_node(core, add_gpu, &l);
    }
}

static const struct {
    const char *name, *help;
} weight_metrics[] = {
    {"hadal_node_weights_peer_bytes", "Bytes of the weights in memory that came from other nodes."},
    {"hadal_node_weights_disk_bytes", "Bytes of them that came from the model folder."},
    {"hadal_node_weights_load_milliseconds", "How long loading them took."},
    {"hadal_node_weights_bad_answers", "Answers of other nodes that were wrong, on the way."},
};
enum { WEIGHT_METRICS = sizeof weight_metrics / sizeof *weight_metrics };

struct weights_out {
    struct strbuf *out;
    int metric;
};

static bool put_weights(void *arg, const struct coord_node_view *n)
{
    struct weights_out *o = arg;
    const uint64_t values[WEIGHT_METRICS] = {n->weights.peer_bytes, n->weights.disk_bytes,
                                             n->weights.ms, n->weights.bad};
    if (n->conn)
        labelled(o->out, weight_metrics[o->metric].name, "node", n->name, values[o->metric]);
    return true;
}

static void weights(const struct coord *core, struct strbuf *out)
{
    for (int i = 0; i < WEIGHT_METRICS; i++) {
        struct weights_out o = {out, i};
        header(out, weight_metrics[i].name, "gauge", weight_metrics[i].help);
        coord_each_node(core, put_weights, &o);
    }
}

static void requests(const struct coord_stats *st, struct strbuf *out)
{
    header(out, "hadal_requests", "gauge", "Requests by state.");
    labelled(out, "hadal_requests", "state", "queued", st->queued);
    labelled(out, "hadal_requests", "state", "running", st->running);
    labelled(out, "hadal_requests", "state", "retained", st->retained);
    counter(out, "hadal_requests_submitted_total", "Requests that came.", st->submitted);
    header(out, "hadal_requests_finished_total", "counter", "Requests finished, by reason.");
    for (int i = FINISH_STOP; i <= FINISH_ERROR; i++)
        labelled(out, "hadal_requests_finished_total", "reason",
                 finish_reason_name((enum finish_reason)i), st->finished[i]);
    header(out, "hadal_requests_refused_total", "counter", "Requests refused, by reason.");
    for (int i = COORD_REFUSE_NONE + 1; i <= COORD_REFUSE_BAD_REQUEST; i++)
        labelled(out, "hadal_requests_refused_total", "reason",
                 coord_refusal_name((enum coord_refusal)i), st->refused[i]);
    gauge(out, "hadal_queue_length", "Requests waiting.", st->queued);
    gauge(out, "hadal_queue_tokens", "Prompt tokens waiting.", st->queued_tokens);
    gauge(out, "hadal_queue_eta_milliseconds", "Estimated wait of a request that came now.",
          st->eta_ms);
    gauge(out, "hadal_credits", "Requests that the ready replicas run at once.", st->credits);
    gauge(out, "hadal_credits_free", "Of them, free.", st->credits_free);
}

static const struct {
    const char *name, *type, *help;
} tenant_metrics[] = {
    {"hadal_tenant_tokens_total", "counter", "Tokens charged to the tenant, prompt and answer."},
    {"hadal_tenant_requests", "gauge", "Requests of the tenant that are not finished."},
    {"hadal_tenant_waiting", "gauge", "Of them, waiting."},
    {"hadal_tenant_quota_refused_total", "counter", "Requests refused for its quota."},
};
enum { TENANT_METRICS = sizeof tenant_metrics / sizeof *tenant_metrics };

struct tenants_out {
    struct strbuf *out;
    int metric;
    uint64_t others; // sum over the names that are not in the configuration
};

static bool put_tenant(void *arg, const struct coord_tenant_view *t)
{
    struct tenants_out *o = arg;
    const uint64_t values[TENANT_METRICS] = {t->tokens, t->live, t->waiting, t->refused_quota};
    if (t->named)
        labelled(o->out, tenant_metrics[o->metric].name, "tenant", t->name, values[o->metric]);
    else
        o->others += values[o->metric];
    return true;
}

// Names that clients make up are one series, so that they cannot flood the monitoring.
static void tenants(const struct coord *core, struct strbuf *out)
{
    for (int i = 0; i < TENANT_METRICS; i++) {
        struct tenants_out o = {out, i, 0};
        header(out, tenant_metrics[i].name, tenant_metrics[i].type, tenant_metrics[i].help);
        coord_each_tenant(core, put_tenant, &o);
        if (strcmp(tenant_metrics[i].type, "counter")) // the sum may fall as names are forgotten
            labelled(out, tenant_metrics[i].name, "tenant", "(others)", o.others);
    }
}

static bool put_breaker(void *arg, const struct coord_breaker_view *b)
{
    struct strbuf *out = arg;
    strbuf_printf(out, "hadal_breaker_open{metric=\"%s\",threshold=\"%s%g\",action=\"%s\"} %d\n",
                  coord_breaker_metric_name(b->rule.metric), b->rule.below ? "<" : ">",
                  b->rule.threshold, coord_breaker_action_name(b->rule.action), b->open);
    return true;
}

static void breakers(const struct coord *core, struct strbuf *out)
{
    header(out, "hadal_breaker_open", "gauge", "1 while a rule of the configuration acts.");
    coord_each_breaker(core, put_breaker, out);
}

static void routing(const struct coord_stats *st, struct strbuf *out)
{
    header(out, "hadal_routed_total", "counter", "Requests sent to a replica, by why to that one.");
    for (int i = 0; i <= ROUTED_GIVEN; i++)
        labelled(out, "hadal_routed_total", "by", coord_routed_name((enum routed)i), st->routed[i]);
    counter(out, "hadal_prefill_tokens_total",
            "Tokens of prompts and journals of dispatches that have answered.", st->prefill_tokens);
    counter(out, "hadal_prefix_hit_tokens_total", "Of them, found in a prefix cache.",
            st->prefix_hit_tokens);
    counter(out, "hadal_circuits_opened_total", "Replicas that got no requests for a while.",
            st->circuits_opened);
    counter(out, "hadal_retry_tokens_total", "Tokens of moved requests that were computed again.",
            st->retry_tokens);
    gauge(out, "hadal_prefix_blocks_known", "Blocks of prefix caches that requests are sent by.",
          st->cached_blocks);
    counter(out, "hadal_prefix_resyncs_total", "Times that a report of a prefix cache was missing.",
            st->cache_resyncs);
}

// One series of each pool.
static const struct {
    const char *name, *type, *help;
} pool_metrics[] = {
    {"hadal_pool_credits", "gauge", "Requests that its ready replicas run at once."},
    {"hadal_pool_credits_free", "gauge", "Of them, free."},
    {"hadal_pool_admitted_total", "counter", "Requests that the pool was chosen for."},
    {"hadal_pool_retrying", "gauge", "Moved requests that have not answered since."},
    {"hadal_pool_retry_budget_tokens", "gauge", "That may be computed again at once; 0 = used up."},
};
enum { POOL_METRICS = sizeof pool_metrics / sizeof *pool_metrics };

struct pools_out {
    struct strbuf *out;
    int metric;
};

static bool put_pool(void *arg, const struct coord_pool_view *p)
{
    const struct pools_out *o = arg;
    const uint64_t values[POOL_METRICS] = {p->credits, p->credits_free, p->admitted, p->retrying,
                                           p->retry_budget > 0 ? (uint64_t)p->retry_budget : 0};
    labelled(o->out, pool_metrics[o->metric].name, "pool", p->name, values[o->metric]);
    return true;
}

static void pools(const struct coord *core, struct strbuf *out)
{
    for (int i = 0; i < POOL_METRICS; i++) {
        header(out, pool_metrics[i].name, pool_metrics[i].type, pool_metrics[i].help);
        coord_each_pool(core, put_pool, &(struct pools_out){out, i});
    }
}

static void work(const struct coord_stats *st, struct strbuf *out)
{
    counter(out, "hadal_tokens_total", "Tokens generated.", st->tokens);
    counter(out, "hadal_dispatches_total", "Requests sent to a replica.", st->dispatches);
    counter(out, "hadal_failovers_total", "Requests continued on another replica.", st->moves);
    counter(out, "hadal_preemptions_total", "Running requests that gave way to a higher band.",
            st->preemptions);
    counter(out, "hadal_displaced_total",
            "Waiting requests refused to make room for a higher band.", st->displaced);
    counter(out, "hadal_probes_total", "Golden probes answered.", st->probes);
    counter(out, "hadal_probes_failed_total", "Golden probes answered wrongly, late or not at all.",
            st->probes_failed);
    counter(out, "hadal_quarantines_total", "Nodes kept out for wrong, slow or failing work.",
            st->quarantines);
    counter(out, "hadal_fences_total", "Replicas fenced.", st->fences);
    counter(out, "hadal_forms_total", "Replicas formed.", st->forms);
    counter(out, "hadal_forms_failed_total", "Replicas that could not be formed.",
            st->forms_failed);
    counter(out, "hadal_stale_dropped_total", "Messages of an old epoch, dropped.",
            st->stale_dropped);
    counter(out, "hadal_duplicate_dropped_total", "Tokens that were known already, dropped.",
            st->duplicate_dropped);
    counter(out, "hadal_protocol_errors_total", "Messages that made no sense.",
            st->protocol_errors);
}

static void transfers(const struct coord_stats *st, struct strbuf *out)
{
    gauge(out, "hadal_kv_transfers", "KV transfers under way.", st->transferring);
    header(out, "hadal_kv_transfers_total", "counter", "KV transfers that ended, by why.");
    for (int i = 0; i < COORD_TRANSFER_ENDS; i++)
        labelled(out, "hadal_kv_transfers_total", "end",
                 coord_transfer_end_name((enum coord_transfer_end)i), st->transfers[i]);
    counter(out, "hadal_kv_tokens_total", "Tokens whose KV was moved.", st->kv_tokens);
    counter(out, "hadal_kv_bytes_total", "Bytes of KV moved.", st->kv_bytes);
    counter(out, "hadal_kv_microseconds_total", "Time of the transfers that arrived.", st->kv_us);
    counter(out, "hadal_prompts_apart_total", "Long prompts computed by a prefill replica.",
            st->prompts_apart);
    counter(out, "hadal_handed_over_plain_total",
            "Running requests handed over to be computed again.", st->handed_plain);
}

static void clients(const struct shell_counters *c, struct strbuf *out)
{
    header(out, "hadal_http_responses_total", "counter", "HTTP responses by status code.");
    for (int i = 100; i < 600; i++) {
        char code[8];
        snprintf(code, sizeof code, "%d", i);
        if (c->http_codes[i])
            labelled(out, "hadal_http_responses_total", "code", code, c->http_codes[i]);
    }
    gauge(out, "hadal_http_connections", "Open HTTP connections.", c->http_connections);
    counter(out, "hadal_http_connections_refused_total", "HTTP connections over the limit.",
            c->http_refused);
    gauge(out, "hadal_rpc_connections", "Open RPC connections, nodes and clients.",
          c->rpc_connections);
    counter(out, "hadal_rpc_connections_refused_total", "RPC connections over the limit.",
            c->rpc_refused);
    counter(out, "hadal_rpc_requests_total", "Requests that came by RPC.", c->rpc_requests);
    counter(out, "hadal_rpc_protocol_errors_total", "Connections closed for a bad frame.",
            c->rpc_protocol_errors);
    counter(out, "hadal_reattached_total", "Streams taken up again by their clients.",
            c->reattached);
    counter(out, "hadal_stalled_total", "Clients closed because they read nothing.", c->stalled);
    histogram(out, "hadal_ttft_seconds", "Time to the first token.", &c->ttft);
    histogram(out, "hadal_pause_seconds", "Longest gap between tokens of a moved request.",
              &c->pause);
}

void admin_metrics(const struct admin_view *v, struct strbuf *out)
{
    struct coord_stats st;
    coord_stats(v->core, &st);
    members(v->core, out);
    gpus(v->core, out);
    weights(v->core, out);
    requests(&st, out);
    tenants(v->core, out);
    breakers(v->core, out);
    pools(v->core, out);
    routing(&st, out);
    work(&st, out);
    transfers(&st, out);
    clients(v->counters, out);
    gauge(out, "hadal_resident_bytes", "Resident memory of the coordinator.", admin_rss_bytes());
    gauge(out, "hadal_uptime_seconds", "Since the coordinator started.",
          (v->now_us - v->started_us) / 1000000);
}
