// Makes the body of an order out of the options; what is wrong with it the coordinator says.
#include "tools/ctl_rollout.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/strbuf.h"
#include "tools/admin.h"
#include "tools/cmd.h"
#include "tools/ctl_table.h"
#include "tools/http.h"

void ctl_rollout_options_default(struct ctl_rollout_options *o)
{
    *o = (struct ctl_rollout_options){.dwell_s = -1,
                                      .min_requests = -1,
                                      .errors = -1,
                                      .ttft = -1,
                                      .tpot = -1,
                                      .agree = -1,
                                      .score = -1,
                                      .score_drop = -1};
}

static int fail(const char *text)
{
    fprintf(stderr, "hadal ctl: %s\n", text);
    return CMD_FAILED;
}

static int usage(const char *text)
{
    fprintf(stderr, "hadal ctl: %s (hadal ctl --help tells more)\n", text);
    return CMD_USAGE;
}

static int print_json(json_t *json)
{
    int rc = json_dumpf(json, stdout, JSON_INDENT(1)) | (putchar('\n') == EOF);
    json_decref(json);
    return rc ? CMD_FAILED : CMD_OK;
}

// ---- status -------------------------------------------------------------------------------------

static const struct ctl_column rows[] = {
    {"state", "state", CTL_PLAIN},
    {"model", "model", CTL_PLAIN},
    {"from version", "from", CTL_PLAIN},
    {"to version", "to", CTL_PLAIN},
    {"step", "step", CTL_PLAIN},
    {"  of (%)", "steps", CTL_PLAIN},
    {"  for", "age_ms", CTL_MS},
    {"  dwell", "dwell_ms", CTL_MS},
    {"gets (%)", "percent", CTL_PLAIN},
    {"golden (%)", "agree_percent", CTL_PLAIN},
    {"last result", "why", CTL_PLAIN},
    {"new: ended", "new.finished", CTL_PLAIN},
    {"     errors", "new.errors", CTL_PLAIN},
    {"     faults", "new.faults", CTL_PLAIN},
    {"     TTFT", "new.ttft_ms", CTL_MS},
    {"     TPOT", "new.tpot_ms", CTL_MS},
    {"     score", "new.score", CTL_PLAIN},
    {"old: ended", "old.finished", CTL_PLAIN},
    {"     errors", "old.errors", CTL_PLAIN},
    {"     TTFT", "old.ttft_ms", CTL_MS},
    {"     TPOT", "old.tpot_ms", CTL_MS},
    {"     score", "old.score", CTL_PLAIN},
    {NULL, NULL, CTL_PLAIN},
};
static const struct ctl_column version_columns[] = {
    {"VERSION", "version", CTL_PLAIN},
    {"POOL", "pool", CTL_PLAIN},
    {"MODEL", "model", CTL_PLAIN},
    {"WEIGHT", "weight", CTL_PLAIN},
    {"REPLICAS", "replicas", CTL_PLAIN},
    {"READY", "replicas_ready", CTL_PLAIN},
    {"PLACES", "places", CTL_PLAIN},
    {"BOUND", "bound", CTL_PLAIN},
    {"SCORE", "score", CTL_PLAIN | CTL_OPTIONAL},
    {"FOLDER", "folder", CTL_PLAIN},
    {NULL, NULL, CTL_PLAIN},
};

static int status(const struct ctl_rollout_options *o)
{
    struct errmsg err = {0};
    json_t *rollout = NULL, *versions = NULL;
    if (admin_get(o->url, "/hadal/v1/rollout", &rollout, &err) != STATUS_OK)
        return fail(err.text);
    if (admin_get(o->url, "/hadal/v1/versions", &versions, &err) != STATUS_OK) {
        json_decref(rollout);
        return fail(err.text);
    }
    if (o->json) {
        json_object_set(rollout, "versions", json_object_get(versions, "versions"));
        json_decref(versions);
        return print_json(rollout);
    }
    struct strbuf text = {0};
    char cell[80];
    for (const struct ctl_column *r = rows; r->title; r++)
        strbuf_printf(&text, "%-12s %s\n", r->title, ctl_value(rollout, r, cell, sizeof cell));
    strbuf_puts(&text, "\n");
    const json_t *list = admin_list(versions, "versions");
    if (list)
        ctl_table_print(&text, list, version_columns);
    fputs(text.v, stdout);
    strbuf_finish(&text);
    json_decref(rollout);
    json_decref(versions);
    return CMD_OK;
}

// ---- orders -------------------------------------------------------------------------------------

// "5%" before the usual steps that are more than that.
static char *steps_of(const char *canary)
{
    static const int usual[] = {5, 25, 50, 100};
    struct strbuf s = {0};
    long first = strtol(canary, NULL, 10);
    strbuf_printf(&s, "%.20s", canary);
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++)
        if (usual[i] > first)
            strbuf_printf(&s, ",%d", usual[i]);
    return s.v;
}

static void set_number(json_t *body, const char *key, double v)
{
    if (v >= 0)
        json_object_set_new(body, key, json_integer((json_int_t)(v + 0.5)));
}

static json_t *body_of(const struct ctl_rollout_options *o, const char *to)
{
    json_t *body = json_object();
    if (to)
        json_object_set_new(body, "to", json_string(to));
    if (o->steps || o->canary) {
        char *steps = o->steps ? mem_strdup(o->steps) : steps_of(o->canary);
        json_object_set_new(body, "steps", json_string(steps));
        free(steps);
    }
    set_number(body, "dwell_ms", o->dwell_s < 0 ? -1 : o->dwell_s * 1000);
    set_number(body, "min_requests", (double)o->min_requests);
    set_number(body, "errors_percent", (double)o->errors);
    set_number(body, "ttft_percent", (double)o->ttft);
    set_number(body, "tpot_percent", (double)o->tpot);
    set_number(body, "agree_percent", (double)o->agree);
    set_number(body, "score_drop_milli", o->score_drop < 0 ? -1 : o->score_drop * 1000);
    if (o->score >= 0)
        json_object_set_new(body, "score", json_real(o->score));
    return body;
}

static int post(const struct ctl_rollout_options *o, const char *path, const char *body)
{
    struct errmsg err = {0};
    json_t *reply = NULL;
    if (admin_post_body(o->url, path, body, &reply, &err) != STATUS_OK)
        return fail(err.text);
    if (o->json)
        return print_json(reply);
    const char *text = json_string_value(json_object_get(reply, "message"));
    printf("%s\n", text && *text ? text : "done");
    json_decref(reply);
    return CMD_OK;
}

static int order(const struct ctl_rollout_options *o, const char *verb, const char *model,
                 const char *to)
{
    struct errmsg err = {0};
    char *first = model ? NULL : admin_first_model(o->url, &err);
    if (!model && !first)
        return fail(err.text);
    struct strbuf path = {0};
    strbuf_puts(&path, "/hadal/v1/rollout/");
    http_encode(&path, model ? model : first);
    strbuf_printf(&path, "/%s", verb);
    json_t *body = body_of(o, to);
    char *text = json_dumps(body, 0);
    int rc = post(o, path.v, text);
    free(text);
    json_decref(body);
    strbuf_finish(&path);
    free(first);
    return rc;
}

int ctl_rollout(const struct ctl_rollout_options *o, const char *const args[4])
{
    static const char *const plain[] = {"pause", "resume", "promote", "rollback"};
    const char *verb = args[1], *model = args[2];
    if (!verb || !strcmp(verb, "status"))
        return model ? usage("rollout status tells of all models") : status(o);
    if (!strcmp(verb, "start"))
        return o->to && !args[3] ? order(o, verb, model, o->to)
                                 : usage("rollout start wants --to DIR");
    if (!strcmp(verb, "switch"))
        return args[3] ? order(o, verb, model, args[3])
                       : usage("rollout switch wants a model and one of its versions");
    if (!strcmp(verb, "score"))
        return args[3] && o->score >= 0
                   ? order(o, verb, model, args[3])
                   : usage("rollout score wants a model, one of its versions and --score 0..1");
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        if (!strcmp(verb, plain[i]) && !args[3])
            return order(o, verb, model, NULL);
    return usage("rollout wants start, status, pause, resume, promote, rollback, switch or score");
}

int ctl_scale(const struct ctl_rollout_options *o, const char *const args[4])
{
    char *end = NULL;
    long n = args[2] ? strtol(args[2], &end, 10) : 0;
    if (!args[1] || !args[2] || args[3] || *end || n < 1 || n > 4096)
        return usage("scale wants a model or pool, and a number of replicas");
    struct strbuf path = {0};
    strbuf_puts(&path, "/hadal/v1/pools/");
    http_encode(&path, args[1]);
    strbuf_printf(&path, "/scale?replicas=%ld", n);
    int rc = post(o, path.v, NULL);
    strbuf_finish(&path);
    return rc;
}
