// Several coordinators, inside of the coordinator's shell. One leads (store.h): nodes are connected
// to it and its core decides. The others follow it (follower.h): they serve clients, and what those
// ask goes to the leader. What clients see is acknowledged by all of them first (copier.h), so that
// any of them can lead next.
#pragma once

#include "coordinator/copier.h"
#include "coordinator/main_shell.h"

enum copy_role {
    COPY_ALONE, // no store is configured
    COPY_FOLLOWER,
    COPY_LEADER,
};

struct copies;

STATUS_MUST_USE enum status copies_open(struct shell *s, struct errmsg *err);
void copies_close(struct copies *c); // NULL is fine
// Nodes are welcome here: it leads, or is the only one.
bool copies_leading(const struct shell *s);
// Clients are welcome here. False: a follower that gets no copies.
bool copies_serving(const struct shell *s);
// Follows, and is not told yet what there is: a request that is not known here may be there.
bool copies_unsure(const struct shell *s);
// Only the leader can tell of a request that is not known here: it has the other datacenters' too.
bool copies_elsewhere(const struct shell *s);
const char *copies_leader_http(struct shell *s); // "" = not known
// Of the cluster, also where it only follows; `ready` is false while nobody leads.
void copies_state(const struct shell *s, uint32_t *replicas, uint32_t *replicas_ready);
// It leads, and a follower has all there is: it may end at any time.
bool copies_relieved(const struct shell *s);

// The same as for the core, where this one does not lead: to the leader. False: it leads.
bool copies_submit(struct shell *s, const struct live *l, uint64_t deadline_us);
bool copies_request(struct shell *s, enum coord_event_kind kind, uint64_t request);
// A request of the leader, or of another datacenter, for a client here; NULL: not known, or it is in
// the core by now.
const struct shadow_request *copies_find(struct shell *s, uint64_t request);

// It is, or it was asked of the leader.
bool copies_knows(const struct shell *s, uint64_t request);

// After the core took a SUBMIT or RESTORE, and after its actions.
void copies_submitted(struct shell *s, uint64_t request);
// True: that it was accepted may be told only later; it comes as a COORD_TOKENS without tokens.
bool copies_hold_acceptance(struct shell *s, uint64_t request);
void copies_ordered(struct shell *s, const char *node); // an operator said something about it
// An action for clients. True: it is kept back, and comes again through shell_act_seen.
bool copies_hold(struct shell *s, const struct coord_action *a);
void copies_orders(struct shell *s, const struct coord_action *a); // COORD_STATE
void copies_told(struct shell *s, const struct coord_action *a); // clients have seen it

// A node looks for the leader here, in vain.
void copies_knocked(struct shell *s);
// A frame of a follower, on a connection to the RPC port; and the end of that connection.
void copies_frame(struct shell *s, struct rpc_conn *conn, const struct wire_frame *f);
void copies_conn_down(struct shell *s, const struct rpc_conn *conn);

void copies_json(struct shell *s, struct strbuf *out);    // {"coordinators": [...]}
void copies_metrics(struct shell *s, struct strbuf *out); // Prometheus' text
