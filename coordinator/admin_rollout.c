// The rollout and the versions as JSON for `hadal ctl`, and as metrics: what an autoscaler outside
// looks at too.
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "coordinator/admin_json.h"

static void text(struct strbuf *out, const char *key, const char *v)
{
    strbuf_printf(out, "\"%s\":", key);
    strbuf_json(out, v, strlen(v));
    strbuf_puts(out, ",");
}

static void figures(struct strbuf *out, const char *key, const struct rollout_figures *f,
                    int score_milli)
{
    strbuf_printf(out,
                  ",\"%s\":{\"finished\":%u,\"errors\":%u,\"faults\":%u,\"ttft_ms\":%.1f,"
                  "\"tpot_ms\":%.2f",
                  key, f->finished, f->errors, f->faults,
                  (double)rollout_times_median(&f->ttft) / 1e3,
                  (double)rollout_times_median(&f->tpot) / 1e3);
    if (score_milli >= 0)
        strbuf_printf(out, ",\"score\":%.3f", score_milli / 1e3);
    strbuf_puts(out, "}");
}

void admin_rollout_json(const struct admin_view *v, struct strbuf *out)
{
    struct coord_rollout_view r;
    coord_rollout(v->core, &r);
    strbuf_puts(out, "{");
    text(out, "state", rollout_state_name(r.state));
    text(out, "model", r.model);
    text(out, "from", r.from);
    text(out, "to", r.to);
    text(out, "why", r.why);
    strbuf_printf(out, "\"step\":%u,\"steps\":[", *r.to ? r.step + 1 : 0);
    for (uint32_t i = 0; i < r.plan.steps_n; i++)
        strbuf_printf(out, "%s%u", i ? "," : "", r.plan.steps[i]);
    strbuf_printf(out, "],\"percent\":%u,\"dwell_ms\":%u,\"age_ms\":%" PRIu64, r.percent,
                  r.plan.dwell_ms,
                  r.since_us && v->now_us > r.since_us ? (v->now_us - r.since_us) / 1000 : 0);
    if (r.to_figures && r.agree_percent >= 0)
        strbuf_printf(out, ",\"agree_percent\":%d", r.agree_percent);
    if (r.to_figures) {
        figures(out, "old", r.from_figures, r.score_from_milli);
        figures(out, "new", r.to_figures, r.score_to_milli);
    }
    strbuf_puts(out, "}");
}

struct listing {
    struct strbuf *out;
    const char *metric; // NULL: JSON
    bool some;
};

static bool add_version(void *arg, const struct coord_pool_view *p)
{
    struct listing *l = arg;
    strbuf_puts(l->out, l->some ? ",{" : "{");
    l->some = true;
    text(l->out, "pool", p->name);
    text(l->out, "model", p->model);
    text(l->out, "version", p->version);
    text(l->out, "folder", p->model_dir);
    strbuf_printf(l->out,
                  "\"weight\":%u,\"replicas\":%u,\"replicas_ready\":%u,\"bound\":%u,\"queued\":%u,"
                  "\"places\":%u,\"fingerprint\":\"%016" PRIx64 "\"",
                  p->weight, p->replicas, p->replicas_ready, p->bound, p->queued, p->credits,
                  p->fingerprint);
    if (p->score_milli >= 0)
        strbuf_printf(l->out, ",\"score\":%.3f", p->score_milli / 1e3);
    strbuf_puts(l->out, "}");
    return true;
}

void admin_versions_json(const struct admin_view *v, struct strbuf *out)
{
    struct listing l = {.out = out};
    strbuf_puts(out, "{\"versions\":[");
    coord_each_pool(v->core, add_version, &l);
    strbuf_puts(out, "]}");
}

// ---- metrics ----

static bool add_metric(void *arg, const struct coord_pool_view *p)
{
    struct listing *l = arg;
    const struct {
        const char *name;
        uint64_t v;
    } values[] = {{"hadal_pool_replicas_wanted", p->replicas},
                  {"hadal_pool_replicas_ready", p->replicas_ready},
                  {"hadal_pool_weight", p->weight},
                  {"hadal_pool_queued", p->queued},
                  {"hadal_pool_eta_seconds", p->eta_ms}};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        if (strcmp(values[i].name, l->metric))
            continue;
        strbuf_printf(l->out, "%s{pool=\"%s\",model=\"%s\",version=\"%s\"} ", l->metric, p->name,
                      p->model, p->version);
        if (strstr(l->metric, "_seconds"))
            strbuf_printf(l->out, "%.3f\n", (double)values[i].v / 1e3);
        else
            strbuf_printf(l->out, "%" PRIu64 "\n", values[i].v);
    }
    return true;
}

void admin_rollout_metrics(const struct admin_view *v, struct strbuf *out)
{
    static const struct {
        const char *name, *help;
    } gauges[] = {
        {"hadal_pool_replicas_wanted", "Replicas that the pool should have; what to scale to."},
        {"hadal_pool_replicas_ready", "Of them those that serve."},
        {"hadal_pool_weight", "Share of the new requests among the versions of a model."},
        {"hadal_pool_queued", "Requests that wait for a place."},
        {"hadal_pool_eta_seconds", "Wait of a request that came now."},
    };
    for (size_t i = 0; i < sizeof gauges / sizeof *gauges; i++) {
        struct listing l = {.out = out, .metric = gauges[i].name};
        strbuf_printf(out, "# HELP %s %s\n# TYPE %s gauge\n", gauges[i].name, gauges[i].help,
                      gauges[i].name);
        coord_each_pool(v->core, add_metric, &l);
    }
    struct coord_stats st;
    struct coord_rollout_view r;
    coord_stats(v->core, &st);
    coord_rollout(v->core, &r);
    strbuf_printf(out,
                  "# HELP hadal_nodes_wanted Nodes that all wanted replicas take.\n"
                  "# TYPE hadal_nodes_wanted gauge\nhadal_nodes_wanted %u\n"
                  "# HELP hadal_rollout_state 0 idle, 1 shifting, 2 watching, 3 paused, 4 "
                  "reverting.\n# TYPE hadal_rollout_state gauge\nhadal_rollout_state %d\n"
                  "# HELP hadal_rollouts_total Rollouts that began, and how they ended.\n"
                  "# TYPE hadal_rollouts_total counter\n"
                  "hadal_rollouts_total{what=\"begun\"} %" PRIu64 "\n"
                  "hadal_rollouts_total{what=\"done\"} %" PRIu64 "\n"
                  "hadal_rollouts_total{what=\"taken_back\"} %" PRIu64 "\n",
                  st.nodes_wanted, (int)r.state, st.rollouts, st.rollouts_done,
                  st.rollouts_reverted);
}
