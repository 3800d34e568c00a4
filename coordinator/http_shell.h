// Inside of http_shell.c (server and routes), http_conn_shell.c (connections), http_stream_shell.c
// (answers) and http_admin_shell.c (operators' commands).
#pragma once

#include "coordinator/main_shell.h"

#include <h2o.h>

struct http_stream;
struct http_admin;
struct http_conn;

struct http_server {
    struct shell *shell;
    uv_tcp_t listener;
    uv_timer_t watch;        // over what the connections hold
    struct http_conn *conns; // hash
    size_t answered;         // bytes of requests that are being answered
    bool trims;              // see http_conn_trim
    h2o_globalconf_t config;
    h2o_context_t context;
    h2o_accept_ctx_t accept;
    struct http_stream *streams; // list: requests that wait or are being answered
    struct http_admin *admins;   // list: commands that wait
    bool open;
};

struct http_reply {
    int status;
    const char *type;   // NULL = application/json
    uint64_t request;   // x-request-id; 0 = none
    const char *model;  // x-hadal-model, that answered; NULL = none
    const char *leader; // x-hadal-leader; NULL or "" = none
    const char *location; // of a redirection; NULL = none
    const char *reason; // x-hadal-reason: the error's code; NULL = none
    uint32_t retry_after_ms;
};

// Answers at once with the bytes, which are copied.
void http_reply(struct http_server *h, h2o_req_t *req, const struct http_reply *how,
                const struct strbuf *body);
void http_reply_error(struct http_server *h, h2o_req_t *req, uint64_t request,
                      const struct openai_error *e);
void http_header(h2o_req_t *req, const char *name, const char *value);
void http_count(struct http_server *h, int status);

bool http_is(h2o_iovec_t v, const char *text);
// A number of the query; -1 when it is absent, -2 when it is no number.
int64_t http_query_number(const h2o_req_t *req, const char *name);
// Fill in *e and return false.
bool http_not_found(struct openai_error *e, const h2o_req_t *req);
// To the leader: what operators see and say is its. False: *e, nobody leads.
bool http_redirect(struct http_server *h, h2o_req_t *req, struct openai_error *e);
bool http_wrong_method(struct openai_error *e, const h2o_req_t *req, const char *allowed);

// Listens.
enum status http_conns_open(struct http_server *h, uint16_t *port_out, struct errmsg *err);
// The request's body stays in memory while it is answered. NULL: there is no room for it; else it
// is to be released, with the bytes of its body, when the request is disposed of.
struct http_conn *http_conn_hold(struct http_server *h, const h2o_req_t *req);
void http_conn_release(struct http_conn *c, size_t bytes);
// HTTP/1. Its request is read: what it was read into need not have room for more.
void http_conn_trim(struct http_conn *c);
// Calls gone(arg), at most once, when the client of this HTTP/1 request hangs up: libh2o does not
// read while an answer is under way. One request of a connection at a time; ended with the same arg.
// NULL: it is not watched (HTTP/2, of which libh2o reads always).
struct http_conn *http_conn_watch(struct http_server *h, const h2o_req_t *req,
                                  void (*gone)(void *arg), void *arg);
void http_conn_unwatch(struct http_conn *c, const void *arg); // NULL is fine

// The path's five parts; false: *e is the answer.
bool http_admin_route(struct http_server *h, h2o_req_t *req, const h2o_iovec_t p[5],
                      struct openai_error *e);
// A command's waiting begins; its answer goes to whom shell_answer, or the core, tells *tag_out.
bool http_admin_wait(struct http_server *h, h2o_req_t *req, uint64_t *tag_out,
                     struct openai_error *e);
// /hadal/v1/rollout/MODEL/VERB and /hadal/v1/pools/MODEL/scale. (http_rollout_shell.c)
bool http_rollout_route(struct http_server *h, h2o_req_t *req, const h2o_iovec_t p[5],
                        struct openai_error *e);
void http_admins_tick(struct http_server *h, uint64_t now_us);

// POST /v1/chat/completions, /v1/completions.
void http_stream_generate(struct http_server *h, h2o_req_t *req, enum text_source source);
// GET /v1/streams/{id}: goes on after event `last_id`, -1 = from the start.
void http_stream_attach(struct http_server *h, h2o_req_t *req, uint64_t request, int64_t last_id);
void http_streams_tick(struct http_server *h, uint64_t now_us);
