// Orders about versions and sizes: POST /hadal/v1/rollout/MODEL/VERB with a JSON body, and
// POST /hadal/v1/pools/MODEL/scale?replicas=N. MODEL may be a pool's name.
//
// Before a rollout begins, a thread of the loop's pool compares the new folder's tokenizer with the
// one that prompts are encoded with here: token ids would mean something else to the new model.
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "coordinator/http_shell.h"

enum { DIR_BYTES = 1024 };

struct folder_check {
    uv_work_t work; // first
    struct shell *shell;
    struct coord_admin order;
    char target[LIMIT_NAME], dir[DIR_BYTES];
    struct errmsg err;
};

// ---- the folder ---------------------------------------------------------------------------------

static FILE *open_tokenizer(const char *dir, struct errmsg *err)
{
    char path[LIMIT_PATH + 32]; // what does not fit is not there
    snprintf(path, sizeof path, "%.1000s/tokenizer.json", dir);
    FILE *f = fopen(path, "re");
    if (!f)
        (void)errmsg_set(err, STATUS_BAD_MODEL, "%.800s: no tokenizer.json that can be read here",
                         dir);
    return f;
}

static bool same_bytes(FILE *a, FILE *b)
{
    char x[16 << 10], y[sizeof x];
    size_t n;
    do {
        n = fread(x, 1, sizeof x, a);
        if (fread(y, 1, sizeof y, b) != n || memcmp(x, y, n))
            return false;
    } while (n);
    return !ferror(a) && !ferror(b);
}

static void check_folder(uv_work_t *work)
{
    struct folder_check *k = (struct folder_check *)work;
    FILE *mine = open_tokenizer(k->shell->cfg->model, &k->err);
    FILE *its = mine ? open_tokenizer(k->dir, &k->err) : NULL;
    if (its && !same_bytes(mine, its))
        (void)errmsg_set(&k->err, STATUS_BAD_MODEL, "%.800s has another tokenizer than %.800s",
                         k->dir, k->shell->cfg->model);
    if (mine)
        fclose(mine);
    if (its)
        fclose(its);
}

static void checked(uv_work_t *work, int status)
{
    struct folder_check *k = (struct folder_check *)work;
    if (k->err.text[0])
        shell_answer(k->shell, k->order.tag, STATUS_BAD_MODEL, k->err.text);
    else
        shell_order(k->shell, &k->order);
    free(k);
}

static bool is_version(const struct shell *s, const char *to);

// A version that is known needs no check: it was checked when it came.
static void order(struct http_server *h, const struct coord_admin *a)
{
    struct shell *s = h->shell;
    if (a->op != COORD_ROLLOUT_START || is_version(s, a->model_dir)) {
        shell_order(s, a);
        return;
    }
    struct folder_check *k = mem_zalloc(1, sizeof *k);
    k->shell = s;
    k->order = *a;
    snprintf(k->target, sizeof k->target, "%s", a->target);
    snprintf(k->dir, sizeof k->dir, "%s", a->model_dir);
    k->order.target = k->target;
    k->order.model_dir = k->dir;
    if (!uv_queue_work(&s->loop, &k->work, check_folder, checked))
        return;
    shell_answer(s, a->tag, STATUS_INTERNAL, "no thread to look at the folder");
    free(k);
}

struct search {
    const char *what;
    bool found;
};

static bool look_at(void *arg, const struct coord_pool_view *v)
{
    struct search *s = arg;
    s->found = s->found || !strcmp(v->name, s->what) || !strcmp(v->version, s->what) ||
               !strcmp(v->model_dir, s->what);
    return !s->found;
}

static bool is_version(const struct shell *s, const char *to)
{
    struct search search = {.what = to};
    coord_each_pool(s->core, look_at, &search);
    return search.found;
}

// ---- the body -----------------------------------------------------------------------------------

struct wish {
    struct rollout_plan plan;
    char to[DIR_BYTES];
    uint32_t score_milli;
    bool scored;
};

static bool take_number(const json_t *v, uint32_t most, uint32_t *out)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > most)
        return false;
    *out = (uint32_t)json_integer_value(v);
    return true;
}

static bool take_steps(const json_t *v, struct rollout_plan *p)
{
    struct errmsg err = {0};
    return json_is_string(v) && !rollout_steps_parse(json_string_value(v), p, &err);
}

static bool take(const char *key, const json_t *v, struct wish *w)
{
    struct rollout_plan *p = &w->plan;
    const struct {
        const char *key;
        uint32_t *to, most;
    } numbers[] = {
        {"dwell_ms", &p->dwell_ms, 7 * 86400000},
        {"min_requests", &p->min_requests, 1000000},
        {"errors_percent", &p->errors_percent, 100},
        {"ttft_percent", &p->ttft_percent, 10000},
        {"tpot_percent", &p->tpot_percent, 10000},
        {"agree_percent", &p->agree_percent, 100},
        {"score_drop_milli", &p->score_drop_milli, 1000},
        {"faults", &p->faults, 1000},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(key, numbers[i].key))
            return take_number(v, numbers[i].most, numbers[i].to);
    if (!strcmp(key, "steps"))
        return take_steps(v, p);
    if (!strcmp(key, "score")) {
        double score = json_is_number(v) ? json_number_value(v) : -1;
        w->scored = score >= 0 && score <= 1;
        w->score_milli = w->scored ? (uint32_t)(score * 1000 + 0.5) : 0;
        return w->scored;
    }
    if (strcmp(key, "to") || !json_is_string(v) || json_string_length(v) >= sizeof w->to ||
        strlen(json_string_value(v)) != json_string_length(v))
        return false;
    snprintf(w->to, sizeof w->to, "%s", json_string_value(v));
    return true;
}

static bool read_wish(const h2o_req_t *req, struct wish *w, struct openai_error *e)
{
    rollout_plan_default(&w->plan);
    if (!req->entity.len)
        return true;
    json_error_t je;
    json_t *body = json_loadb(req->entity.base, req->entity.len, JSON_REJECT_DUPLICATES, &je), *v;
    const char *key;
    if (!json_is_object(body)) {
        json_decref(body);
        return openai_fail(e, 400, NULL, "invalid_json", "The body is no JSON object.");
    }
    bool ok = true;
    json_object_foreach(body, key, v)
    {
        if (!ok || take(key, v, w))
            continue;
        ok = openai_fail(e, 400, key, "invalid_value",
                         "Invalid '%.40s': not known, or not in its range.", key);
    }
    json_decref(body);
    return ok;
}

// ---- routes -------------------------------------------------------------------------------------

static bool begin(struct http_server *h, h2o_req_t *req, h2o_iovec_t target, struct coord_admin *a,
                  char name[LIMIT_NAME], struct openai_error *e)
{
    if (!http_is(req->method, "POST"))
        return http_wrong_method(e, req, "POST");
    snprintf(name, LIMIT_NAME, "%.*s", (int)(target.len < LIMIT_NAME ? target.len : 0),
             target.base);
    a->target = name;
    return http_admin_wait(h, req, &a->tag, e);
}

static bool scale(struct http_server *h, h2o_req_t *req, h2o_iovec_t target, struct openai_error *e)
{
    char name[LIMIT_NAME];
    int64_t n = http_query_number(req, "replicas");
    struct coord_admin a = {.op = COORD_SCALE, .number = (uint32_t)n};
    if (n < 1 || n > COORD_MAX_REPLICAS)
        return openai_fail(e, 400, "replicas", "invalid_value",
                           "Invalid 'replicas': a number from 1 to %d.", COORD_MAX_REPLICAS);
    if (!begin(h, req, target, &a, name, e))
        return false;
    shell_order(h->shell, &a);
    return true;
}

bool http_rollout_route(struct http_server *h, h2o_req_t *req, const h2o_iovec_t p[5],
                        struct openai_error *e)
{
    static const struct {
        const char *verb;
        enum coord_admin_op op;
    } verbs[] = {
        {"start", COORD_ROLLOUT_START},       {"pause", COORD_ROLLOUT_PAUSE},
        {"resume", COORD_ROLLOUT_RESUME},     {"promote", COORD_ROLLOUT_PROMOTE},
        {"rollback", COORD_ROLLOUT_ROLLBACK}, {"switch", COORD_ROLLOUT_SWITCH},
        {"score", COORD_ROLLOUT_SCORE},
    };
    if (http_is(p[2], "pools") && http_is(p[4], "scale"))
        return scale(h, req, p[3], e);
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++) {
        if (!http_is(p[2], "rollout") || !http_is(p[4], verbs[i].verb))
            continue;
        struct wish w = {0};
        struct coord_admin a = {.op = verbs[i].op};
        char name[LIMIT_NAME];
        if (!read_wish(req, &w, e) || !begin(h, req, p[3], &a, name, e))
            return false;
        a.model_dir = w.to;
        a.plan = w.plan;
        a.number = a.op == COORD_ROLLOUT_SCORE && !w.scored ? UINT32_MAX : w.score_milli;
        order(h, &a);
        return true;
    }
    return http_not_found(e, req);
}
