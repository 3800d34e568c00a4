// Operators' commands over HTTP: POST /hadal/v1/{nodes,replicas}/NAME/VERB, answered when the core
// has carried them out, or when the operator's patience ends.
#include "coordinator/http_shell.h"

#include <string.h>
#include <utlist.h>

enum {
    ADMIN_TIMEOUT_MS = 30 * 1000, // when the operator names none
    ADMIN_TIMEOUT_MAX_MS = 600 * 1000,
};

// An operator's command that waits for the core.
struct http_admin {
    struct admin_wait wait; // first
    struct http_server *server;
    h2o_req_t *req;
    uint64_t deadline_us;
    bool waiting;
    struct http_admin *prev, *next;
};

static void admin_end(struct http_admin *a)
{
    DL_DELETE(a->server->admins, a);
    a->waiting = false;
}

static void admin_reply(struct http_admin *a, int http, enum status status, const char *text)
{
    struct openai_error e;
    struct strbuf body = {0};
    admin_end(a);
    if (http != 200) {
        openai_fail(&e, http, NULL, status_name(status), "%s", text);
        http_reply_error(a->server, a->req, 0, &e);
        return;
    }
    strbuf_puts(&body, "{\"status\":\"OK\",\"message\":");
    strbuf_json(&body, text, strlen(text));
    strbuf_puts(&body, "}\n");
    http_reply(a->server, a->req, &(struct http_reply){.status = 200}, &body);
    strbuf_finish(&body);
}

static void on_admin_done(struct admin_wait *w, enum status status, const char *text)
{
    int http = status == STATUS_OK          ? 200
               : status == STATUS_NOT_FOUND ? 404
               : status < 0                 ? 409
                                            : 503;
    admin_reply((struct http_admin *)w, http, status, text);
}

static void on_admin_dispose(void *p)
{
    struct http_admin *a = p;
    if (!a->waiting)
        return;
    shell_admin_forget(a->server->shell, &a->wait);
    admin_end(a);
}

void http_admins_tick(struct http_server *h, uint64_t now_us)
{
    struct http_admin *a, *next;
    DL_FOREACH_SAFE(h->admins, a, next)
    {
        if (now_us < a->deadline_us)
            continue;
        shell_admin_forget(h->shell, &a->wait);
        admin_reply(a, 504, STATUS_PENDING, "not done yet; it goes on");
    }
}

bool http_admin_wait(struct http_server *h, h2o_req_t *req, uint64_t *tag_out,
                     struct openai_error *e)
{
    int64_t timeout_ms = http_query_number(req, "timeout_ms");
    if (timeout_ms == -1)
        timeout_ms = ADMIN_TIMEOUT_MS;
    if (timeout_ms < 0 || timeout_ms > ADMIN_TIMEOUT_MAX_MS)
        return openai_fail(e, 400, "timeout_ms", "invalid_value",
                           "Invalid 'timeout_ms': a number of at most %d.", ADMIN_TIMEOUT_MAX_MS);
    struct http_admin *a = h2o_mem_alloc_shared(&req->pool, sizeof *a, on_admin_dispose);
    *a = (struct http_admin){.wait = {.done = on_admin_done},
                             .server = h,
                             .req = req,
                             .deadline_us = shell_now_us() + (uint64_t)timeout_ms * 1000,
                             .waiting = true};
    DL_APPEND(h->admins, a);
    *tag_out = shell_wait(h->shell, &a->wait);
    return true;
}

static bool command(struct http_server *h, h2o_req_t *req, enum coord_admin_op op, const char *role,
                    h2o_iovec_t target, struct openai_error *e)
{
    char name[LIMIT_NAME];
    uint64_t replica = 0, tag;
    snprintf(name, sizeof name, "%.*s", (int)(target.len < sizeof name ? target.len : 0),
             target.base);
    if (op == COORD_FAILOVER || op == COORD_ROLE) {
        size_t id = h2o_strtosize(target.base, target.len);
        replica = id == SIZE_MAX ? 0 : id;
    }
    if (!http_admin_wait(h, req, &tag, e))
        return false;
    shell_order(h->shell, &(struct coord_admin){.op = op,
                                                .target = role ? role : name,
                                                .replica = replica,
                                                .tag = tag});
    return true;
}

bool http_admin_route(struct http_server *h, h2o_req_t *req, const h2o_iovec_t p[5],
                      struct openai_error *e)
{
    static const struct {
        const char *what, *op;
        enum coord_admin_op code;
        const char *role; // ROLE
    } ops[] = {
        {"nodes", "drain", COORD_DRAIN, NULL},
        {"nodes", "undrain", COORD_UNDRAIN, NULL},
        {"nodes", "eject", COORD_EJECT, NULL},
        {"replicas", "failover", COORD_FAILOVER, NULL},
        {"replicas", "role-any", COORD_ROLE, "any"},
        {"replicas", "role-prefill", COORD_ROLE, "prefill"},
        {"replicas", "role-decode", COORD_ROLE, "decode"},
    };
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        if (!http_is(p[2], ops[i].what) || !http_is(p[4], ops[i].op))
            continue;
        if (!http_is(req->method, "POST"))
            return http_wrong_method(e, req, "POST");
        return command(h, req, ops[i].code, ops[i].role, p[3], e);
    }
    return http_rollout_route(h, req, p, e);
}
