// Several coordinators: who leads (store.h), the leader's copies to its standby (copier.h), the
// standby's link to the leader (shadow.h), and taking over. Inside of the coordinator's shell.
#pragma once

#include "coordinator/copier.h"
#include "coordinator/main_shell.h"
#include "coordinator/shadow.h"
#include "coordinator/store.h"

enum copy_role {
    COPY_ALONE,   // no store is configured
    COPY_STANDBY, // serves nobody; keeps what the leader has
    COPY_LEADER,
};

struct copies;

STATUS_MUST_USE enum status copies_open(struct shell *s, struct errmsg *err);
void copies_close(struct copies *c); // NULL is fine
// It serves clients and nodes.
bool copies_serving(const struct shell *s);
const char *copies_leader_http(struct shell *s); // "" = not known
// It has to end: another one leads.
bool copies_deposed(const struct shell *s);

// After the core took a SUBMIT, and after its actions. True: that it was accepted may be told only
// later; it comes as a COORD_TOKENS without tokens.
void copies_submitted(struct shell *s, uint64_t request);
bool copies_hold_acceptance(struct shell *s, uint64_t request);
// An action for clients. True: it is kept back, and comes again through shell_act_seen.
bool copies_hold(struct shell *s, const struct coord_action *a);
void copies_told(struct shell *s, const struct coord_action *a); // clients have seen it

// A frame of a standby, on a connection to the RPC port; and the end of that connection.
void copies_frame(struct shell *s, struct rpc_conn *conn, const struct wire_frame *f);
void copies_conn_down(struct shell *s, const struct rpc_conn *conn);
