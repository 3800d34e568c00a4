// Inside of http_shell.c (server and routes) and http_stream_shell.c (answers).
#pragma once

#include "coordinator/main_shell.h"

#include <h2o.h>

struct http_stream;
struct http_admin;

struct http_server {
    struct shell *shell;
    uv_tcp_t listener;
    h2o_globalconf_t config;
    h2o_context_t context;
    h2o_accept_ctx_t accept;
    struct http_stream *streams; // list: requests that wait or are being answered
    struct http_admin *admins;   // list: commands that wait
    bool open;
};

struct http_reply {
    int status;
    const char *type; // NULL = application/json
    uint64_t request; // x-request-id; 0 = none
    uint32_t retry_after_ms;
};

// Answers at once with the bytes, which are copied.
void http_reply(struct http_server *h, h2o_req_t *req, const struct http_reply *how,
                const struct strbuf *body);
void http_reply_error(struct http_server *h, h2o_req_t *req, uint64_t request,
                      const struct openai_error *e);
void http_header(h2o_req_t *req, const char *name, const char *value);
void http_count(struct http_server *h, int status);

// POST /v1/chat/completions, /v1/completions.
void http_stream_generate(struct http_server *h, h2o_req_t *req, enum text_source source);
// GET /v1/streams/{id}: goes on after event `last_id`, -1 = from the start.
void http_stream_attach(struct http_server *h, h2o_req_t *req, uint64_t request, int64_t last_id);
void http_streams_tick(struct http_server *h, uint64_t now_us);
