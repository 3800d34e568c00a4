// Asks the coordinator for its state and gives it orders, over HTTP.
#include "tools/admin.h"

#include "base/mem.h"
#include "base/strbuf.h"
#include "tools/http.h"

enum { ADMIN_TIMEOUT_MS = 30000 }; // a drain waits for its hand-over

static enum status status_of_code(long code)
{
    return code == 404   ? STATUS_NOT_FOUND
           : code == 409 ? STATUS_REFUSED
           : code < 500  ? STATUS_BAD_REQUEST
                         : STATUS_INTERNAL;
}

static enum status call(const struct http_call *c, json_t **out, struct errmsg *err)
{
    struct http_reply reply;
    char text[300];
    json_t *json = NULL;
    json_error_t e;
    enum status s = http_do(c, &reply, err);
    if (s == STATUS_OK && (reply.code < 200 || reply.code > 299))
        s = errmsg_set(err, status_of_code(reply.code), "%s (HTTP %ld)",
                       http_error_text(&reply, text, sizeof text), reply.code);
    if (s == STATUS_OK && out) {
        json = json_loadb(reply.body.n ? reply.body.v : "", reply.body.n, 0, &e);
        if (!json)
            s = errmsg_set(err, STATUS_LINK_PROTOCOL, "%s%s: not JSON: %s", c->url, c->path,
                           e.text);
        else
            *out = json;
    }
    http_reply_finish(&reply);
    return s;
}

enum status admin_get(const char *url, const char *path, json_t **out, struct errmsg *err)
{
    return call(
        &(struct http_call){
            .method = "GET", .url = url, .path = path, .timeout_ms = ADMIN_TIMEOUT_MS},
        out, err);
}

enum status admin_post(const char *url, const struct admin_order *order, json_t **out,
                       struct errmsg *err)
{
    struct strbuf path = {0};
    strbuf_printf(&path, "/hadal/v1/%s/", order->kind);
    http_encode(&path, order->name);
    strbuf_printf(&path, "/%s", order->verb);
    enum status s = call(
        &(struct http_call){
            .method = "POST", .url = url, .path = path.v, .timeout_ms = ADMIN_TIMEOUT_MS},
        out, err);
    strbuf_finish(&path);
    return s;
}

enum status admin_post_body(const char *url, const char *path, const char *body, json_t **out,
                            struct errmsg *err)
{
    return call(&(struct http_call){.method = "POST",
                                    .url = url,
                                    .path = path,
                                    .body = body,
                                    .timeout_ms = ADMIN_TIMEOUT_MS},
                out, err);
}

json_t *admin_list(json_t *reply, const char *kind)
{
    json_t *list = json_is_array(reply) ? reply : json_object_get(reply, kind);
    return json_is_array(list) ? list : NULL;
}

char *admin_first_model(const char *url, struct errmsg *err)
{
    json_t *reply;
    if (admin_get(url, "/v1/models", &reply, err) != STATUS_OK)
        return NULL;
    const json_t *first = json_array_get(json_object_get(reply, "data"), 0);
    const char *name = json_string_value(json_object_get(first, "id"));
    char *copy = name ? mem_strdup(name) : NULL;
    if (!copy)
        errmsg_set(err, STATUS_LINK_PROTOCOL, "%s/v1/models names no model", url);
    json_decref(reply);
    return copy;
}
