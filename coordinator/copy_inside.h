// Inside of copy_shell.c (who leads), copy_lead_shell.c and copy_follow_shell.c.
#pragma once

#include "coordinator/copy_link_shell.h"
#include "coordinator/copy_shell.h"
#include "coordinator/follower.h"
#include "coordinator/guests.h"
#include "coordinator/rpc_shell.h"
#include "coordinator/store.h"

// A follower, at the leader.
struct copies_peer {
    uint64_t conn;
    char name[LIMIT_NAME];
    char datacenter[LIMIT_NAME]; // "" = this one
    char http[COPY_ADDRESS], rpc[COPY_ADDRESS];
    struct guests guests;
};

struct copies {
    struct shell *shell;
    struct store *store;
    uv_async_t news; // from the store's thread
    uv_timer_t watch; // every WATCH_MS: followers that acknowledge nothing, asks that are overdue
    enum copy_role role;
    struct store_view view;
    struct wire_arena arena;
    struct strbuf frame;
    uint64_t takeovers;
    // following
    struct follower follower;
    struct copy_link *uplink; // NULL: between two tries
    uint64_t acked;
    uv_timer_t retry;
    uint64_t alone_us; // no leader has told what there is since; 0 = one has
    bool shed; // its clients were sent away
    uint64_t knock_told_us;
    struct copy_state state; // of the leader
    char following[LIMIT_NAME]; // whom, as long as it is up
    // leading
    struct far *far;     // other datacenters (far.h); NULL = none is configured
    bool relaying;       // what is shown comes from one of those
    bool quiet;          // what is restored was recorded before
    struct copier copier;
    struct copies_peer peers[COPIER_PEERS];
    uint32_t peers_n;
    uint64_t knocks_us, knocked_us; // nodes look for it elsewhere since, and the last time; 0 = none
    struct copy_state told; // to the followers
    uint64_t told_us;
};

// ---- copy_lead_shell.c
void lead_frame(struct copies *c, struct rpc_conn *conn, const struct wire_frame *f);
void lead_conn_down(struct copies *c, uint64_t conn);
void lead_tick(struct copies *c, uint64_t now_us);
void lead_release(struct copies *c); // what clients may see by now
void lead_end(struct copies *c);     // leads no more
void lead_record(struct copies *c, const struct copy_record *r); // to all followers
struct copy_record lead_submit_record(const struct coord_request_view *v, const struct live *l);
// What the answer has after `from` tokens, as a record TOKENS; *tokens is the caller's to free.
struct copy_record lead_tokens_record(const struct coord_request_view *v, const struct live *l,
                                      struct token_out **tokens);

// ---- copy_follow_shell.c
void follow_open(struct copies *c);
void follow_try(struct copies *c);  // connects to the leader that the store names
void follow_drop(struct copies *c, const char *why);
void follow_knock(struct copies *c); // a node came here
void follow_tick(struct copies *c, uint64_t now_us);
