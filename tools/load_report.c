// The report of a load run: a table for people, an object for programs.
#include "tools/load_report.h"

#include <inttypes.h>
#include <string.h>

#include "tools/cmdline.h"

static double per_second(const struct load_result *r)
{
    return r->seconds > 0 ? (double)r->tokens / r->seconds : 0;
}

static json_t *summary_json(struct load_samples *samples)
{
    struct load_summary s = load_samples_summary(samples);
    return json_pack("{s:I, s:f, s:f, s:f, s:f, s:f}", "n", (json_int_t)s.n, "mean", s.mean_ms,
                     "p50", s.p50_ms, "p90", s.p90_ms, "p99", s.p99_ms, "max", s.max_ms);
}

static json_t *faults_json(struct load_result *r)
{
    json_t *list = json_array();
    for (int i = 0; i < r->faults_n; i++) {
        struct load_fault_record *f = &r->faults[i];
        json_array_append_new(list, json_pack("{s:f, s:s, s:s, s:i, s:i, s:i, s:o, s:s}", "at_s",
                                              f->at_s, "action", load_action_name(f->done.action),
                                              "whom", f->done.whom, "pid", (int)f->done.pid,
                                              "streams", f->streams, "paused", f->paused, "gap_ms",
                                              summary_json(&f->gaps), "error", f->done.error));
    }
    return list;
}

static json_t *errors_json(const struct load_result *r)
{
    json_t *list = json_array();
    for (int i = 0; i < r->errors_n; i++)
        json_array_append_new(list, json_stringn_nocheck(r->errors[i], strlen(r->errors[i])));
    return list;
}

json_t *load_report_json(const struct load_phase *p, struct load_result *r)
{
    json_t *json = json_object();
    json_object_set_new(json, "url", json_string(p->url));
    json_object_set_new(json, "mode",
                        json_string(p->rate <= 0  ? "closed"
                                    : p->constant ? "constant"
                                                  : "poisson"));
    json_object_set_new(json, "rate", p->rate > 0 ? json_real(p->rate) : json_null());
    json_object_set_new(json, "concurrency", json_integer(p->concurrency));
    json_object_set_new(json, "prompts", json_integer(p->prompts->n));
    json_object_set_new(json, "seed", json_integer((json_int_t)p->seed));
    json_object_set_new(json, "seconds", json_real(r->seconds));
    json_object_set_new(json, "tokens", json_integer(r->tokens));
    json_object_set_new(json, "tokens_per_s", json_real(per_second(r)));
    json_object_set_new(json, "streams",
                        json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "started",
                                  (json_int_t)r->started, "finished", (json_int_t)r->finished,
                                  "refused", (json_int_t)r->refused, "lost", (json_int_t)r->lost,
                                  "changed", (json_int_t)r->changed, "repeated",
                                  (json_int_t)r->repeated, "verified", (json_int_t)r->verified,
                                  "broken", (json_int_t)r->broken, "attached",
                                  (json_int_t)r->attached));
    json_object_set_new(json, "ttft_ms", summary_json(&r->ttft));
    json_object_set_new(json, "tpot_ms", summary_json(&r->tpot));
    json_object_set_new(json, "gap_ms", summary_json(&r->gap));
    json_object_set_new(json, "total_ms", summary_json(&r->total));
    json_object_set_new(json, "pause_ms", summary_json(&r->pause));
    json_object_set_new(json, "faults", faults_json(r));
    json_object_set_new(json, "errors", errors_json(r));
    return json;
}

static void row(FILE *to, const char *name, struct load_samples *samples)
{
    struct load_summary s = load_samples_summary(samples);
    if (s.n)
        fprintf(to, "%-12s %9.1f %9.1f %9.1f %9.1f %10zu\n", name, s.p50_ms, s.p90_ms, s.p99_ms,
                s.max_ms, s.n);
}

static void print_faults(FILE *to, struct load_result *r)
{
    enum { SHOWN = 60 };
    if (r->faults_n)
        fprintf(to, "\n%8s  %-9s %-10s %8s %7s %9s %9s\n", "at s", "fault", "whom", "streams",
                "paused", "p50 ms", "max ms");
    for (int i = 0; i < r->faults_n && i < SHOWN; i++) {
        struct load_fault_record *f = &r->faults[i];
        struct load_summary s = load_samples_summary(&f->gaps);
        fprintf(to, "%8.2f  %-9s %-10s ", f->at_s, load_action_name(f->done.action), f->done.whom);
        if (*f->done.error)
            fprintf(to, "not done: %s\n", f->done.error);
        else
            fprintf(to, "%8d %7d %9.1f %9.1f\n", f->streams, f->paused, s.p50_ms, s.max_ms);
    }
    if (r->faults_n > SHOWN)
        fprintf(to, "  (%d more)\n", r->faults_n - SHOWN);
}

void load_report_print(FILE *to, const struct load_phase *p, struct load_result *r)
{
    bool good = load_report_good(r);
    const char *off = cmdline_style(to, STYLE_OFF);
    const char *colour = cmdline_style(to, good ? STYLE_GREEN : STYLE_RED);
    fprintf(to, "%" PRId64 " streams, %" PRId64 " finished, %" PRId64 " refused, in %.2f s\n",
            r->started, r->finished, r->refused, r->seconds);
    fprintf(to, "%slost %" PRId64 ", changed %" PRId64 ", repeated events %" PRId64 "%s", colour,
            r->lost, r->changed, r->repeated, off);
    if (p->reference)
        fprintf(to, ", compared with the reference %" PRId64, r->verified);
    fprintf(to, "\nconnections broken %" PRId64 ", gone on with %" PRId64 "\n", r->broken,
            r->attached);
    fprintf(to, "%" PRId64 " tokens, %.1f tokens/s\n\n", r->tokens, per_second(r));
    fprintf(to, "%-12s %9s %9s %9s %9s %10s\n", "ms", "p50", "p90", "p99", "max", "samples");
    row(to, "first token", &r->ttft);
    row(to, "per token", &r->tpot);
    row(to, "gap", &r->gap);
    row(to, "whole answer", &r->total);
    row(to, "pause", &r->pause);
    print_faults(to, r);
    for (int i = 0; i < r->errors_n; i++)
        fprintf(to, "%s%s%s\n", i ? "" : "\n", r->errors[i], "");
    if (r->errors_more)
        fprintf(to, "(%" PRId64 " more errors)\n", r->errors_more);
}

bool load_report_good(const struct load_result *r)
{
    return r->finished > 0 && r->lost == 0 && r->changed == 0 && r->repeated == 0;
}
