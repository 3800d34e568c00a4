// What operators and Prometheus read: the core's views as JSON and as metrics. Pure.
//
// JSON shapes (GET /hadal/v1/...), times in milliseconds:
//   status    {model, ready, draining, uptime_ms, nodes, nodes_usable, replicas, replicas_ready,
//              credits, credits_free, queued, running, retained, eta_ms, max_context, rss_bytes,
//              tokens, fences, moves, ...}
//   nodes     {"nodes": [{name, state, host, backend, pid, replica, stage, tensor, gpu: {...},
//   ...}]} replicas  {"replicas": [{id, epoch, state, nodes: [name|null], running, credits, ...}]}
//   requests  {"requests": [{id, state, replica, prompt_tokens, tokens, dispatches, ...}]}
#pragma once

#include <stdint.h>

#include "base/strbuf.h"
#include "coordinator/coord.h"

enum { HISTOGRAM_BINS = 14 };
struct histogram {
    uint64_t n[HISTOGRAM_BINS]; // of each bin alone
    double sum;
};
void histogram_add(struct histogram *h, double seconds);

struct shell_counters {
    uint64_t http_codes[600];
    uint64_t http_connections, http_refused; // open now; closed at once, over the limit
    uint64_t rpc_connections, rpc_refused;
    uint64_t rpc_requests, rpc_protocol_errors;
    uint64_t reattached, stalled; // streams taken up again; clients closed for not reading
    struct histogram ttft, pause;
};

struct admin_view {
    const struct coord *core;
    const struct shell_counters *counters;
    const char *model;
    uint64_t now_us, started_us;
};

void admin_status_json(const struct admin_view *v, struct strbuf *out);
void admin_nodes_json(const struct admin_view *v, struct strbuf *out);
void admin_replicas_json(const struct admin_view *v, struct strbuf *out);
void admin_transfers_json(const struct admin_view *v, struct strbuf *out);
void admin_requests_json(const struct admin_view *v, struct strbuf *out);
void admin_rollout_json(const struct admin_view *v, struct strbuf *out);  // admin_rollout.c
void admin_versions_json(const struct admin_view *v, struct strbuf *out); // admin_rollout.c
void admin_rollout_metrics(const struct admin_view *v, struct strbuf *out);
void admin_metrics(const struct admin_view *v, struct strbuf *out); // Prometheus' text format
uint64_t admin_rss_bytes(void); // of this process; 0 when it cannot be read
