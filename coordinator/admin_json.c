// The core's views as JSON for `hadal ctl`.
#include "coordinator/admin_json.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

uint64_t admin_rss_bytes(void)
{
    FILE *f = fopen("/proc/self/statm", "re");
    unsigned long long size = 0, resident = 0;
    if (!f)
        return 0;
    int n = fscanf(f, "%llu %llu", &size, &resident);
    fclose(f);
    return n == 2 ? resident * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
}

// Writes members of an object one after another.
struct object {
    struct strbuf *out;
    bool some;
};

static struct object open_object(struct strbuf *out)
{
    strbuf_add(out, "{", 1);
    return (struct object){.out = out};
}

static void close_object(struct object *o)
{
    strbuf_add(o->out, "}", 1);
}

static void key(struct object *o, const char *name)
{
    strbuf_printf(o->out, "%s\"%s\":", o->some ? "," : "", name);
    o->some = true;
}

static void put_uint(struct object *o, const char *name, uint64_t v)
{
    key(o, name);
    strbuf_printf(o->out, "%" PRIu64, v);
}

static void put_text(struct object *o, const char *name, const char *v)
{
    key(o, name);
    if (v)
        strbuf_json(o->out, v, strlen(v));
    else
        strbuf_puts(o->out, "null");
}

static void put_bool(struct object *o, const char *name, bool v)
{
    key(o, name);
    strbuf_puts(o->out, v ? "true" : "false");
}

static uint64_t since_ms(uint64_t now_us, uint64_t then_us)
{
    return now_us > then_us ? (now_us - then_us) / 1000 : 0;
}

// A list being written by a view's callback.
struct list {
    const struct admin_view *view;
    struct strbuf *out;
    bool some;
};

static struct object next_object(struct list *l)
{
    if (l->some)
        strbuf_add(l->out, ",", 1);
    l->some = true;
    return open_object(l->out);
}

static bool add_pool(void *arg, const struct coord_pool_view *p)
{
    struct list *l = arg;
    struct object o = next_object(l);
    put_text(&o, "name", p->name);
    put_text(&o, "model", p->model);
    put_text(&o, "version", p->version);
    put_text(&o, "dir", p->model_dir);
    put_uint(&o, "replicas", p->replicas);
    put_uint(&o, "replicas_ready", p->replicas_ready);
    put_uint(&o, "stages", p->stages);
    put_uint(&o, "tensor", p->tensor);
    put_uint(&o, "weight", p->weight);
    put_uint(&o, "prompt_max", p->prompt_max);
    put_uint(&o, "max_context", p->max_context);
    put_uint(&o, "credits", p->credits);
    put_uint(&o, "credits_free", p->credits_free);
    put_uint(&o, "queued", p->queued);
    put_uint(&o, "eta_ms", p->eta_ms);
    put_uint(&o, "admitted", p->admitted);
    put_uint(&o, "retrying", p->retrying);
    key(&o, "retry_budget_tokens");
    strbuf_printf(l->out, "%" PRId64, p->retry_budget);
    close_object(&o);
    return true;
}

void admin_status_json(const struct admin_view *v, struct strbuf *out)
{
    struct coord_stats st;
    coord_stats(v->core, &st);
    struct object o = open_object(out);
    put_text(&o, "model", v->model);
    put_bool(&o, "ready", st.replicas_ready > 0);
    put_bool(&o, "draining", st.closing);
    put_uint(&o, "uptime_ms", since_ms(v->now_us, v->started_us));
    put_uint(&o, "nodes", st.nodes);
    put_uint(&o, "nodes_usable", st.nodes_usable);
    put_uint(&o, "replicas", st.replicas);
    put_uint(&o, "replicas_ready", st.replicas_ready);
    put_uint(&o, "credits", st.credits);
    put_uint(&o, "credits_free", st.credits_free);
    put_uint(&o, "queued", st.queued);
    put_uint(&o, "queued_moved", st.queued_moved);
    put_uint(&o, "running", st.running);
    put_uint(&o, "retained", st.retained);
    put_uint(&o, "eta_ms", st.eta_ms);
    put_uint(&o, "max_context", st.max_context);
    put_uint(&o, "submitted", st.submitted);
    put_uint(&o, "tokens", st.tokens);
    put_uint(&o, "dispatches", st.dispatches);
    put_uint(&o, "moves", st.moves);
    put_uint(&o, "transferring", st.transferring);
    put_uint(&o, "moved_with_kv", st.transfers[COORD_TRANSFER_MOVED]);
    put_uint(&o, "kv_bytes", st.kv_bytes);
    put_uint(&o, "prompts_apart", st.prompts_apart);
    put_uint(&o, "fences", st.fences);
    put_uint(&o, "forms", st.forms);
    put_uint(&o, "forms_failed", st.forms_failed);
    put_uint(&o, "stale_dropped", st.stale_dropped);
    put_uint(&o, "duplicate_dropped", st.duplicate_dropped);
    put_uint(&o, "prefill_tokens", st.prefill_tokens);
    put_uint(&o, "prefix_hit_tokens", st.prefix_hit_tokens);
    key(&o, "pools");
    strbuf_puts(out, "[");
    coord_each_pool(v->core, add_pool, &(struct list){.view = v, .out = out});
    strbuf_puts(out, "]");
    put_uint(&o, "rss_bytes", admin_rss_bytes());
    put_uint(&o, "pid", (uint64_t)getpid());
    close_object(&o);
}

static void put_gpu(struct object *o, const struct gpu_figures *g)
{
    key(o, "gpu");
    struct object p = open_object(o->out);
    put_text(&p, "name", g->name);
    put_uint(&p, "utilization_percent", g->utilization_percent);
    put_uint(&p, "memory_used_bytes", g->memory_used_bytes);
    put_uint(&p, "memory_total_bytes", g->memory_total_bytes);
    put_uint(&p, "temperature_c", g->temperature_c);
    put_uint(&p, "power_w", (g->power_mw + 500) / 1000);
    put_uint(&p, "sm_mhz", g->sm_mhz);
    put_uint(&p, "ecc_corrected", g->ecc_corrected);
    put_uint(&p, "ecc_uncorrected", g->ecc_uncorrected);
    put_uint(&p, "xid", g->xid);
    put_uint(&p, "xids", g->xids);
    put_bool(&p, "suspect", g->suspect);
    put_text(&p, "reason", g->suspect ? g->reason : NULL);
    close_object(&p);
}

static bool add_node(void *arg, const struct coord_node_view *n)
{
    struct list *l = arg;
    struct object o = next_object(l);
    put_text(&o, "name", n->name);
    put_text(&o, "state", coord_node_state_name(n->state));
    put_bool(&o, "marked", n->marked);
    put_uint(&o, "quarantine_ms", n->quarantine_ms);
    put_text(&o, "host", n->host);
    put_text(&o, "backend", n->backend);
    put_uint(&o, "pid", n->pid);
    if (n->replica) {
        put_uint(&o, "replica", n->replica);
        put_uint(&o, "stage", n->stage);
        put_uint(&o, "tensor", n->tensor);
    } else {
        put_text(&o, "replica", NULL);
    }
    put_uint(&o, "heartbeat_age_ms", n->heartbeat_age_us / 1000);
    put_uint(&o, "steps", n->heartbeat.steps);
    put_uint(&o, "step_age_ms", n->heartbeat.step_age_ms);
    put_uint(&o, "step", n->heartbeat.progress.step);
    put_uint(&o, "layer", n->heartbeat.progress.layer);
    put_uint(&o, "collective", n->heartbeat.progress.collective);
    put_uint(&o, "running", n->heartbeat.running);
    put_uint(&o, "waiting", n->heartbeat.waiting);
    put_uint(&o, "kv_blocks", n->heartbeat.kv_blocks);
    put_uint(&o, "kv_free", n->heartbeat.kv_free);
    put_uint(&o, "rss_bytes", n->heartbeat.rss_bytes);
    if (n->heartbeat.gpu.present)
        put_gpu(&o, &n->heartbeat.gpu);
    put_uint(&o, "weights_peer_bytes", n->weights.peer_bytes);
    put_uint(&o, "weights_disk_bytes", n->weights.disk_bytes);
    put_uint(&o, "weights_load_ms", n->weights.ms);
    put_uint(&o, "weights_given", n->gives_weights);
    put_uint(&o, "joins", n->joins);
    put_uint(&o, "faults", n->faults);
    put_text(&o, "fault", n->fault);
    close_object(&o);
    return true;
}

void admin_nodes_json(const struct admin_view *v, struct strbuf *out)
{
    struct list l = {.view = v, .out = out};
    strbuf_puts(out, "{\"nodes\":[");
    coord_each_node(v->core, add_node, &l);
    struct coord_nodes n;
    coord_nodes(v->core, &n);
    strbuf_printf(out, "],\"wanted\":%u,\"spare\":%u}", n.wanted, n.spare);
}

static bool add_replica(void *arg, const struct coord_replica_view *r)
{
    struct list *l = arg;
    if (r->retired && r->state == COORD_REPLICA_VACANT)
        return true; // only its number is left
    struct object o = next_object(l);
    put_uint(&o, "id", r->id);
    put_uint(&o, "epoch", r->epoch);
    put_text(&o, "pool", r->pool);
    put_text(&o, "model", r->model);
    put_text(&o, "version", r->version);
    put_text(&o, "state", coord_replica_state_name(r->state));
    put_text(&o, "role", coord_role_name(r->role));
    put_bool(&o, "serves", r->serves);
    put_uint(&o, "state_age_ms", since_ms(l->view->now_us, r->state_since_us));
    put_uint(&o, "stages", r->stages);
    put_uint(&o, "tensor", r->tensor);
    key(&o, "nodes");
    for (uint32_t i = 0; i < r->stages * r->tensor; i++) {
        strbuf_puts(l->out, i ? "," : "[");
        if (r->nodes[i])
            strbuf_json(l->out, r->nodes[i], strlen(r->nodes[i]));
        else
            strbuf_puts(l->out, "null");
    }
    strbuf_puts(l->out, "]");
    put_uint(&o, "formed", r->formed_n);
    put_uint(&o, "running", r->running);
    put_uint(&o, "reserved", r->reserved);
    put_uint(&o, "waiting", r->waiting);
    put_uint(&o, "credits", r->credits);
    put_uint(&o, "max_context", r->max_context);
    put_uint(&o, "kv_blocks", r->kv_blocks);
    put_uint(&o, "kv_free", r->kv_free);
    put_uint(&o, "cached_blocks", r->cached_blocks);
    put_text(&o, "circuit", r->circuit);
    put_uint(&o, "slowness_percent", (uint64_t)(100 * r->slowness));
    put_uint(&o, "block_tokens", r->block_tokens);
    put_uint(&o, "steps", r->steps);
    put_text(&o, "transport",
             r->transport == TRANSPORT_AUTO ? "none" : transport_choice_name(r->transport));
    put_uint(&o, "step_age_ms", r->step_age_ms);
    char fingerprint[20];
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, r->fingerprint);
    put_text(&o, "fingerprint", fingerprint);
    put_uint(&o, "forms", r->forms);
    put_uint(&o, "fences", r->fences);
    put_text(&o, "fault", r->fault);
    put_text(&o, "suspect", r->suspect);
    close_object(&o);
    return true;
}

void admin_replicas_json(const struct admin_view *v, struct strbuf *out)
{
    struct list l = {.view = v, .out = out};
    strbuf_puts(out, "{\"replicas\":[");
    coord_each_replica(v->core, add_replica, &l);
    strbuf_puts(out, "]}");
}

static bool add_transfer(void *arg, const struct coord_transfer_view *t)
{
    struct list *l = arg;
    struct object o = next_object(l);
    char id[20];
    snprintf(id, sizeof id, "%016" PRIx64, t->request);
    put_uint(&o, "id", t->id);
    put_text(&o, "request", id);
    put_text(&o, "state", coord_transfer_state_name(t->state));
    put_uint(&o, "source", t->source);
    put_uint(&o, "target", t->target);
    put_uint(&o, "tokens", t->tokens_n);
    put_uint(&o, "blocks", t->blocks);
    put_uint(&o, "have", t->have);
    put_uint(&o, "age_ms", since_ms(l->view->now_us, t->begun_us));
    put_uint(&o, "lease_ms", t->lease_ms);
    close_object(&o);
    return true;
}

void admin_transfers_json(const struct admin_view *v, struct strbuf *out)
{
    struct list l = {.view = v, .out = out};
    strbuf_puts(out, "{\"transfers\":[");
    coord_each_transfer(v->core, add_transfer, &l);
    strbuf_puts(out, "]}");
}

static bool add_request(void *arg, const struct coord_request_view *r)
{
    struct list *l = arg;
    struct object o = next_object(l);
    char id[20];
    snprintf(id, sizeof id, "%016" PRIx64, r->id);
    put_text(&o, "id", id);
    put_text(&o, "state", coord_request_state_name(r->state));
    put_uint(&o, "band", r->band);
    put_uint(&o, "effective_band", r->lane_band);
    put_text(&o, "tenant", r->tenant);
    put_uint(&o, "preemptions", r->preemptions);
    put_text(&o, "pool", r->pool);
    put_text(&o, "model", r->model);
    put_uint(&o, "replica", r->replica);
    put_uint(&o, "position", r->state == COORD_REQ_QUEUED ? r->position : 0);
    put_uint(&o, "age_ms", since_ms(l->view->now_us, r->submitted_us));
    put_uint(&o, "prompt_tokens", r->prompt_n);
    put_uint(&o, "cached_tokens", r->cached_n);
    put_uint(&o, "tokens", r->tokens_n);
    put_uint(&o, "max_tokens", r->max_tokens);
    put_uint(&o, "clients", r->attached);
    put_uint(&o, "dispatches", r->dispatches);
    put_uint(&o, "pause_ms", r->pause_us / 1000);
    if (r->first_token_us)
        put_uint(&o, "ttft_ms", since_ms(r->first_token_us, r->submitted_us));
    if (r->finish != FINISH_NONE)
        put_text(&o, "finish", finish_reason_name(r->finish));
    close_object(&o);
    return true;
}

void admin_requests_json(const struct admin_view *v, struct strbuf *out)
{
    struct list l = {.view = v, .out = out};
    strbuf_puts(out, "{\"requests\":[");
    coord_each_request(v->core, add_request, &l);
    strbuf_puts(out, "]}");
}
