// Inside of the coordinator's libuv shell: what main_shell.c, http*_shell.c, rpc*_shell.c and
// text_pool_shell.c share. One thread, one loop. Callbacks of libuv and libh2o only append events;
// the queue is drained once before and once after each poll of the loop, through coord_step, and
// what readers and connections have to write leaves at the end of that.
#pragma once

#include <uv.h>

#include "base/prng.h"
#include "coordinator/admin_json.h"
#include "coordinator/config.h"
#include "coordinator/coord.h"
#include "coordinator/live.h"
#include "coordinator/text_pool.h"

struct copies;
struct secure_domain;
struct rpc_server;
struct shadow_request;
struct rpc_conn;
struct http_server;

enum shell_event_kind {
    SHELL_FRAMES,    // conn has frames to decode
    SHELL_CONN_DOWN, // conn is closed; the last event that names it
    SHELL_SUBMIT,    // live
    SHELL_REQUEST,   // a word about a request to the core: STOP, ATTACH, DETACH, CANCEL
    SHELL_ADMIN,
    SHELL_TIMER,
};

struct shell_event {
    enum shell_event_kind kind;
    union {
        struct rpc_conn *conn;
        struct live *live;
        struct {
            enum coord_event_kind kind;
            uint64_t id;
            uint32_t kept;
        } request;
        struct coord_admin *admin; // owned, with its strings
    };
};

// Who waits for an operator's command. The caller's memory.
struct admin_wait {
    UT_hash_handle hh; // by tag
    uint64_t tag;
    void (*done)(struct admin_wait *w, enum status status, const char *text);
};

struct shell {
    const struct coordinator_config *cfg;
    uv_loop_t loop;
    uv_prepare_t prepare;
    uv_check_t check;
    uv_timer_t timer; // the core's
    uv_timer_t tick;  // once a second: time-outs of connections
    uv_timer_t stop_timer;
    uv_signal_t signals[2];
    struct coord *core;
    struct model_text text;   // of the first model
    struct model_text *texts; // owned; of the others
    struct model_set models;  // all of them
    struct prng prng; // ids and seeds
    int64_t started;  // Unix time, seconds
    uint64_t started_us;
    uint16_t http_port, rpc_port;

    struct shell_event *events; // owned; a queue
    size_t events_at, events_n, events_cap;
    struct live *lives; // hash
    struct live *dirty; // list of those whose readers are to be woken
    struct admin_wait *waits;
    uint64_t next_tag;
    size_t text_jobs, text_bytes; // on worker threads

    struct secure_domain *domain; // NULL: no cluster_key
    struct hook *hook;     // NULL: none is configured
    struct copies *copies; // NULL: this is the only coordinator
    struct rpc_server *rpc;
    struct http_server *http;
    struct admin_wait close_wait;
    bool draining, stopping, told_ready;
    struct shell_counters counters;
};

uint64_t shell_now_us(void);
void shell_post(struct shell *s, const struct shell_event *ev);
void shell_post_request(struct shell *s, enum coord_event_kind kind, uint64_t request);
// Readers of it are woken at the end of this drain.
void shell_dirty(struct shell *s, struct live *l);

// A request for the core; takes the ids from the job. The reader counts as the first client. NULL:
// job->error says why not.
struct live *shell_submit(struct shell *s, struct text_job *job, struct reader *first);
// One more client; NULL: no such request, or, when copies_unsure, none that is known here.
struct live *shell_attach(struct shell *s, uint64_t request, struct reader *r);
// The reader goes away; the core's grace time begins with the last one.
void shell_detach(struct shell *s, struct reader *r);

void shell_admin(struct shell *s, enum coord_admin_op op, const char *target, uint64_t replica,
                 struct admin_wait *w);
// The same in three steps: who waits is noted, the order given (its strings are copied), or answered
// here.
uint64_t shell_wait(struct shell *s, struct admin_wait *w);
void shell_order(struct shell *s, const struct coord_admin *order);
void shell_answer(struct shell *s, uint64_t tag, enum status status, const char *text);
void shell_admin_forget(struct shell *s, struct admin_wait *w);

// ---- for copy_shell.c

struct live *shell_find_live(struct shell *s, uint64_t request);    // NULL = none
void shell_act_seen(struct shell *s, const struct coord_action *a); // one for clients
// A core without nodes and requests, whose epochs are above `epoch`. Operators' commands that wait
// for the one before are answered.
// `state`: of the coordinator before (coord_config.state); NULL = none. One that makes no sense is
// left, and said.
STATUS_MUST_USE enum status shell_new_core(struct shell *s, uint64_t epoch, const char *state,
                                           struct errmsg *err);
// A request of another coordinator, or of its client (fresh), goes on in the core here.
void shell_restore(struct shell *s, const struct shadow_request *q, bool fresh);
// Clients of what nobody knows any more are told so.
void shell_end_unknown(struct shell *s);
// Says that `attach` for each client that reads here; what nobody reads is dropped.
struct follower;
void shell_each_read(struct shell *s, void (*attach)(struct follower *f, uint64_t request),
                     struct follower *f);
void shell_shed(struct shell *s); // clients may try another coordinator
void shell_check_ready(struct shell *s); // says "ready" once
void shell_own_address(struct shell *s, char *http, size_t http_n, char *rpc, size_t rpc_n);
// "host:port"; blocks when the host is a name. (listen_shell.c)
STATUS_MUST_USE enum status shell_address(const char *key, const char *address,
                                          struct sockaddr_storage *out, struct errmsg *err);

// Binds `address` ("host:port" or "[v6]:port") and listens; *port_out is the port it got. Errors
// name `key` of the configuration. (listen_shell.c)
STATUS_MUST_USE enum status shell_listen(struct shell *s, uv_tcp_t *tcp, const char *key,
                                         const char *address, uv_connection_cb cb,
                                         uint16_t *port_out, struct errmsg *err);

// ---- text_pool_shell.c

struct text_ticket;
// Runs the job at once when it is short, else on a worker thread. `done` is called exactly once,
// maybe before this returns (then NULL is returned), unless the ticket is cancelled. The bytes are
// copied where needed.
struct text_ticket *text_pool_start(struct shell *s, enum text_source source, const char *bytes,
                                    size_t n, void (*done)(void *arg, struct text_job *job),
                                    void *arg);
void text_pool_cancel(struct text_ticket *t); // NULL is fine

// ---- rpc_shell.c

STATUS_MUST_USE enum status rpc_server_open(struct shell *s, uint16_t *port_out,
                                            struct errmsg *err);
void rpc_server_close(struct rpc_server *r);
void rpc_server_tick(struct rpc_server *r, uint64_t now_us);
void rpc_server_flush(struct rpc_server *r);
void rpc_conn_frames(struct rpc_conn *c); // decode and handle what came
void rpc_conn_free(struct rpc_conn *c);   // after its CONN_DOWN
uint64_t rpc_conn_id(const struct rpc_conn *c);
bool rpc_conn_is_node(const struct rpc_conn *c);
void rpc_send(struct rpc_server *r, uint64_t conn, const struct msg *m);
void rpc_close_conn(struct rpc_server *r, uint64_t conn, const char *why);
void rpc_close_nodes(struct rpc_server *r);
void rpc_close_clients(struct rpc_server *r); // they come back, here or elsewhere
void rpc_send_bytes(struct rpc_server *r, uint64_t conn, const void *bytes, size_t n); // frames
// For a node's connection: one step of the core.
void shell_step(struct shell *s, const struct coord_event *ev);

// ---- http_shell.c

STATUS_MUST_USE enum status http_server_open(struct shell *s, uint16_t *port_out,
                                             struct errmsg *err);
void http_server_shed(struct http_server *h);
void http_server_tick(struct http_server *h, uint64_t now_us);
