// The HTTP server on libh2o: listening, routes, operators' commands, pages that are one document.
// Answers of the model are http_stream_shell.c's.
#include "coordinator/http_shell.h"

#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/mem.h"
#include "coordinator/copy_shell.h"

struct http_handler {
    h2o_handler_t super;
    struct http_server *server;
};

void http_count(struct http_server *h, int status)
{
    h->shell->counters.http_codes[status]++;
}

void http_header(h2o_req_t *req, const char *name, const char *value)
{
    size_t n = strlen(value);
    h2o_iovec_t copy = h2o_strdup(&req->pool, value, n);
    h2o_add_header_by_str(&req->pool, &req->res.headers, name, strlen(name), 1, NULL, copy.base,
                          copy.len);
}

static const char *reason_of(int status)
{
    static const struct {
        int status;
        const char *text;
    } reasons[] = {
        {200, "OK"},
        {204, "No Content"},
        {307, "Temporary Redirect"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {409, "Conflict"},
        {413, "Content Too Large"},
        {429, "Too Many Requests"},
        {499, "Client Closed Request"},
        {500, "Internal Server Error"},
        {503, "Service Unavailable"},
        {504, "Gateway Timeout"},
    };
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++)
        if (reasons[i].status == status)
            return reasons[i].text;
    return "Error";
}

void http_reply(struct http_server *h, h2o_req_t *req, const struct http_reply *how,
                const struct strbuf *body)
{
    char text[32];
    req->res.status = how->status;
    req->res.reason = reason_of(how->status);
    if (how->status != 204) {
        http_header(req, "content-type", how->type ? how->type : "application/json");
        req->res.content_length = body->n;
    }
    if (how->request) {
        snprintf(text, sizeof text, "%016llx", (unsigned long long)how->request);
        http_header(req, "x-request-id", text);
    }
    if (how->model)
        http_header(req, "x-hadal-model", how->model);
    if (how->location)
        http_header(req, "location", how->location);
    if (how->leader && *how->leader)
        http_header(req, "x-hadal-leader", how->leader);
    if (how->reason)
        http_header(req, "x-hadal-reason", how->reason);
    if (how->retry_after_ms) {
        snprintf(text, sizeof text, "%u", (how->retry_after_ms + 999) / 1000);
        http_header(req, "retry-after", text);
        snprintf(text, sizeof text, "%u", how->retry_after_ms);
        http_header(req, "retry-after-ms", text);
    }
    http_count(h, how->status);
    h2o_send_inline(req, body->v ? body->v : "", body->n);
}

void http_reply_error(struct http_server *h, h2o_req_t *req, uint64_t request,
                      const struct openai_error *e)
{
    struct strbuf body = {0};
    openai_error_json(e, &body);
    const struct http_reply how = {
        .status = e->http,
        .request = request,
        .reason = e->code,
        .leader = copies_leader_http(h->shell),
        .retry_after_ms = e->retry_after_ms,
    };
    http_reply(h, req, &how, &body);
    strbuf_finish(&body);
}

// ---- requests as text ---------------------------------------------------------------------------

bool http_is(h2o_iovec_t v, const char *text)
{
    return v.len == strlen(text) && !memcmp(v.base, text, v.len);
}

// The path without its query, cut into at most `max` parts.
static size_t split_path(const h2o_req_t *req, h2o_iovec_t *parts, size_t max)
{
    size_t end = req->query_at == SIZE_MAX ? req->path.len : req->query_at, n = 0;
    for (size_t at = 0; at < end;) {
        at++; // the slash
        size_t from = at;
        while (at < end && req->path.base[at] != '/')
            at++;
        if (n == max)
            return max + 1;
        parts[n++] = h2o_iovec_init(req->path.base + from, at - from);
    }
    return n;
}

int64_t http_query_number(const h2o_req_t *req, const char *name)
{
    size_t len = strlen(name);
    if (req->query_at == SIZE_MAX)
        return -1;
    const char *p = req->path.base + req->query_at + 1, *end = req->path.base + req->path.len;
    while (p < end) {
        const char *next = memchr(p, '&', (size_t)(end - p));
        const char *stop = next ? next : end;
        if ((size_t)(stop - p) > len && !memcmp(p, name, len) && p[len] == '=') {
            size_t n = h2o_strtosize(p + len + 1, (size_t)(stop - p) - len - 1);
            return n > INT64_MAX ? -2 : (int64_t)n;
        }
        p = next ? next + 1 : end;
    }
    return -1;
}

bool http_not_found(struct openai_error *e, const h2o_req_t *req)
{
    int n = (int)(req->path.len < 200 ? req->path.len : 200);
    return openai_fail(e, 404, NULL, "unknown_url", "Unknown request URL: %.*s %.*s.",
                       (int)req->method.len, req->method.base, n, req->path.base);
}

bool http_wrong_method(struct openai_error *e, const h2o_req_t *req, const char *allowed)
{
    return openai_fail(
        e, 405, NULL, "method_not_allowed", "Not allowed to %.20s on this URL; use %s.",
        h2o_strdup((h2o_mem_pool_t *)&req->pool, req->method.base, req->method.len).base, allowed);
}

// ---- pages --------------------------------------------------------------------------------------

static struct admin_view view_of(struct shell *s)
{
    return (struct admin_view){.core = s->core,
                               .counters = &s->counters,
                               .model = s->text.name,
                               .now_us = shell_now_us(),
                               .started_us = s->started_us};
}

// What a model's pools have; until one serves, what its folder says.
struct context_of {
    const char *model;
    uint32_t max;
};

static bool widest(void *arg, const struct coord_pool_view *p)
{
    struct context_of *w = arg;
    if (!strcmp(p->model, w->model) && p->max_context > w->max)
        w->max = p->max_context;
    return true;
}

static void add_model(struct http_server *h, const struct model_text *m, const char *name,
                      struct strbuf *out)
{
    struct context_of w = {.model = m->name};
    coord_each_pool(h->shell->core, widest, &w);
    openai_model(name, h->shell->started, w.max ? w.max : m->context, out);
}

static void models_page(struct http_server *h, struct strbuf *out)
{
    const struct model_set *all = &h->shell->models;
    strbuf_puts(out, "{\"object\":\"list\",\"data\":[");
    for (uint32_t i = 0; i < all->n; i++) {
        strbuf_puts(out, i ? "," : "");
        add_model(h, all->v[i], all->v[i]->name, out);
    }
    for (uint32_t i = 0; i < all->aliases_n; i++) {
        const struct model_text *m = model_set_find(all, all->aliases[i].name);
        if (!m)
            continue;
        strbuf_puts(out, ",");
        add_model(h, m, all->aliases[i].name, out);
    }
    strbuf_puts(out, "]}");
}

static void model_page(struct http_server *h, h2o_req_t *req, h2o_iovec_t name)
{
    struct openai_error e;
    struct strbuf one = {0};
    char text[LIMIT_NAME];
    snprintf(text, sizeof text, "%.*s", (int)(name.len < sizeof text ? name.len : 0), name.base);
    const struct model_text *m = *text ? model_set_find(&h->shell->models, text) : NULL;
    if (!m) {
        openai_fail(&e, 404, "model", "model_not_found", "The model '%.*s' does not exist.",
                    (int)(name.len < 100 ? name.len : 100), name.base);
        http_reply_error(h, req, 0, &e);
        return;
    }
    add_model(h, m, text, &one);
    http_reply(h, req, &(struct http_reply){.status = 200}, &one);
    strbuf_finish(&one);
}

static void ready_page(struct http_server *h, h2o_req_t *req)
{
    struct coord_stats st;
    uint32_t replicas, replicas_ready;
    coord_stats(h->shell->core, &st);
    copies_state(h->shell, &replicas, &replicas_ready);
    bool ready = replicas_ready > 0 && !st.closing && copies_serving(h->shell);
    struct strbuf body = {0};
    strbuf_printf(&body,
                  "{\"ready\":%s,\"replicas_ready\":%u,\"replicas\":%u,\"leads\":%s}\n",
                  ready ? "true" : "false", replicas_ready, replicas,
                  copies_leading(h->shell) ? "true" : "false");
    http_reply(h, req, &(struct http_reply){.status = ready ? 200 : 503}, &body);
    strbuf_finish(&body);
}

// GET of a page that is one document.
static bool page(struct http_server *h, h2o_req_t *req, const h2o_iovec_t *p, size_t n)
{
    struct admin_view v = view_of(h->shell);
    struct strbuf body = {0};
    const char *type = NULL;
    if (n == 2 && http_is(p[0], "v1") && http_is(p[1], "models")) {
        models_page(h, &body);
    } else if (n == 1 && http_is(p[0], "healthz")) {
        strbuf_puts(&body, "{\"ok\":true}\n");
    } else if (n == 1 && http_is(p[0], "metrics")) {
        admin_metrics(&v, &body);
        admin_rollout_metrics(&v, &body);
        copies_metrics(h->shell, &body);
        type = "text/plain; version=0.0.4; charset=utf-8";
    } else if (n == 3 && http_is(p[2], "coordinators")) {
        copies_json(h->shell, &body);
    } else if (n == 3 && http_is(p[2], "status")) {
        admin_status_json(&v, &body);
    } else if (n == 3 && http_is(p[2], "nodes")) {
        admin_nodes_json(&v, &body);
    } else if (n == 3 && http_is(p[2], "rollout")) {
        admin_rollout_json(&v, &body);
    } else if (n == 3 && http_is(p[2], "versions")) {
        admin_versions_json(&v, &body);
    } else if (n == 3 && http_is(p[2], "replicas")) {
        admin_replicas_json(&v, &body);
    } else if (n == 3 && http_is(p[2], "transfers")) {
        admin_transfers_json(&v, &body);
    } else if (n == 3 && http_is(p[2], "requests")) {
        admin_requests_json(&v, &body);
    } else {
        return false;
    }
    http_reply(h, req, &(struct http_reply){.status = 200, .type = type}, &body);
    strbuf_finish(&body);
    return true;
}

// ---- routes -------------------------------------------------------------------------------------

static bool generate_route(struct http_server *h, h2o_req_t *req, enum text_source source,
                           struct openai_error *e)
{
    if (!http_is(req->method, "POST"))
        return http_wrong_method(e, req, "POST");
    if (req->entity.len > LIMIT_HTTP_BODY)
        return openai_fail(e, 413, NULL, "body_too_large",
                           "The request body has %zu bytes; the limit is %d.", req->entity.len,
                           LIMIT_HTTP_BODY);
    http_stream_generate(h, req, source);
    return true;
}

// The event after which the stream goes on; -2 when what the client says is no number.
static int64_t last_event_id(const h2o_req_t *req)
{
    ssize_t at = h2o_find_header_by_str(&req->headers, H2O_STRLIT("last-event-id"), -1);
    if (at < 0)
        return http_query_number(req, "from");
    h2o_iovec_t v = req->headers.entries[at].value;
    size_t n = h2o_strtosize(v.base, v.len);
    return n > INT64_MAX ? -2 : (int64_t)n;
}

static bool stream_route(struct http_server *h, h2o_req_t *req, h2o_iovec_t name,
                         struct openai_error *e)
{
    uint64_t id = openai_id_parse(name.base, name.len);
    if (!id)
        return openai_fail(e, 404, "id", "not_found", "'%.*s' is no id of a stream.",
                           (int)(name.len < 64 ? name.len : 64), name.base);
    if (http_is(req->method, "DELETE")) {
        shell_post_request(h->shell, COORD_CANCEL, id);
        http_reply(h, req, &(struct http_reply){.status = 204, .request = id}, &(struct strbuf){0});
        return true;
    }
    if (!http_is(req->method, "GET"))
        return http_wrong_method(e, req, "GET");
    int64_t last_id = last_event_id(req);
    if (last_id == -2)
        return openai_fail(e, 400, "Last-Event-ID", "invalid_value",
                           "The Last-Event-ID is not a number.");
    http_stream_attach(h, req, id, last_id);
    return true;
}

bool http_redirect(struct http_server *h, h2o_req_t *req, struct openai_error *e)
{
    const char *leader = copies_leader_http(h->shell);
    struct strbuf to = {0};
    if (copies_unsure(h->shell) || !*leader) {
        openai_fail(e, 503, NULL, "no_leader", "No coordinator leads at the moment; ask again.");
        e->retry_after_ms = 500;
        return false;
    }
    strbuf_printf(&to, "%s%.*s", leader, (int)req->path.len, req->path.base);
    http_reply(h, req,
               &(struct http_reply){.status = 307, .leader = leader, .location = to.v},
               &(struct strbuf){0});
    strbuf_finish(&to);
    return true;
}

static bool route(struct http_server *h, h2o_req_t *req, struct openai_error *e)
{
    h2o_iovec_t p[5];
    size_t n = split_path(req, p, 5);
    bool v1 = n >= 2 && n <= 5 && http_is(p[0], "v1");
    bool changes = !http_is(req->method, "GET") || (v1 && n == 3 && http_is(p[1], "streams"));
    if (n >= 3 && http_is(p[0], "hadal") && !copies_leading(h->shell))
        return http_redirect(h, req, e);
    if (changes && !copies_serving(h->shell)) {
        openai_fail(e, 503, NULL, "standby", "This coordinator is a standby; %s leads.",
                    *copies_leader_http(h->shell) ? copies_leader_http(h->shell) : "no one");
        e->retry_after_ms = 500;
        return false;
    }
    if (v1 && n == 3 && http_is(p[1], "chat") && http_is(p[2], "completions"))
        return generate_route(h, req, TEXT_CHAT, e);
    if (v1 && n == 2 && http_is(p[1], "completions"))
        return generate_route(h, req, TEXT_COMPLETION, e);
    if (v1 && n == 3 && http_is(p[1], "streams"))
        return stream_route(h, req, p[2], e);
    if (n == 5 && http_is(p[0], "hadal") && http_is(p[1], "v1"))
        return http_admin_route(h, req, p, e);
    bool known =
        (n == 1 &&
         (http_is(p[0], "metrics") || http_is(p[0], "healthz") || http_is(p[0], "readyz"))) ||
        (v1 && n == 2 && http_is(p[1], "models")) || (v1 && n == 3 && http_is(p[1], "models")) ||
        (n == 3 && http_is(p[0], "hadal") && http_is(p[1], "v1"));
    if (!known)
        return http_not_found(e, req);
    if (!http_is(req->method, "GET"))
        return http_wrong_method(e, req, "GET");
    if (n == 1 && http_is(p[0], "readyz"))
        ready_page(h, req);
    else if (v1 && n == 3)
        model_page(h, req, p[2]);
    else if (!page(h, req, p, n))
        return http_not_found(e, req);
    return true;
}

static int on_request(h2o_handler_t *handler, h2o_req_t *req)
{
    struct http_server *h = ((struct http_handler *)handler)->server;
    struct openai_error e;
    if (!route(h, req, &e))
        http_reply_error(h, req, 0, &e);
    return 0;
}

// ---- start and ticking --------------------------------------------------------------------------

void http_server_tick(struct http_server *h, uint64_t now_us)
{
    http_streams_tick(h, now_us);
    http_admins_tick(h, now_us);
}

enum status http_server_open(struct shell *s, uint16_t *port_out, struct errmsg *err)
{
    struct http_server *h = mem_zalloc(1, sizeof *h);
    h->shell = s;
    s->http = h;
    h2o_config_init(&h->config);
    h->config.server_name = h2o_iovec_init(H2O_STRLIT("hadal"));
    h->config.http1.req_timeout = s->cfg->idle_ms;
    h->config.http2.idle_timeout = s->cfg->idle_ms;
    // A body a little over our limit gets our answer, a larger one libh2o's.
    h->config.max_request_entity_size = 2 * LIMIT_HTTP_BODY;
    h2o_hostconf_t *host =
        h2o_config_register_host(&h->config, h2o_iovec_init(H2O_STRLIT("default")), 65535);
    h2o_pathconf_t *path = h2o_config_register_path(host, "/", 0);
    struct http_handler *handler = (struct http_handler *)h2o_create_handler(path, sizeof *handler);
    handler->server = h;
    handler->super.on_req = on_request;
    h2o_context_init(&h->context, &s->loop, &h->config);
    h->accept = (h2o_accept_ctx_t){.ctx = &h->context, .hosts = h->config.hosts};
    return http_conns_open(h, port_out, err);
}
