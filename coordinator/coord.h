// The coordinator's core: who is a member, which nodes form which replica, which request runs
// where, and what to do when any of it breaks. One function from event to actions: it never reads
// a clock, does no I/O and draws no random numbers, so that the libuv shell and the simulator drive
// the same code and a run can be replayed from its events.
//
//     struct coord *c = coord_create(&config);
//     for each event:  coord_step(c, &event, &actions);  carry out actions in order
//
// Threading: one thread at a time; the core keeps no global state.
//
// Ownership: everything that an event points to is borrowed until coord_step returns. The action
// array and everything in it (messages, tokens, texts) belongs to the core and stays valid until
// the next coord_step or coord_destroy.
//
// Time: `now_us` is any clock that never runs backwards (deadlines and timers are of that clock).
// A step with an earlier time than the step before counts as happening at that step's time.
//
// Cost: O(log n) in requests and O(ring) in replicas per event; placement (O(nodes)) runs only when
// a node came, went or became free. Memory is bounded by the limits in coord_config.
//
// Life of a request as the shell sees it. SUBMIT is answered in the same step by REFUSED (the id is
// forgotten at once), or it is accepted; then come any number of QUEUED and TOKENS, indexes 0, 1,
// 2... each exactly once whatever node dies, and in the end exactly one DONE, or, when it never
// started before its deadline or had to give its place to a higher band, one REFUSED. After DONE
// the request is kept for re-attaching clients until FORGET. REFUSED and FORGET are the last
// actions of an id.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/log.h"
#include "coordinator/elastic.h"
#include "coordinator/rollout.h"
#include "proto/msg.h"

struct coord;

struct coord_tenant {
    const char *name;
    uint32_t weight;       // share, relative to the others'; 0 = 1
    uint32_t tokens_per_s; // quota, prompt and answer; 0 = none
    uint32_t burst_tokens; // that may be used at once; 0 = ten seconds' worth
    uint8_t max_band;      // higher ones that its requests name are lowered to it
};

// What a breaker looks at: percent, ms, or a number.
enum coord_breaker_metric {
    BREAKER_GPU_UTILIZATION, // mean over nodes with a GPU that are in a replica
    BREAKER_KV_USED,         // percent of the KV blocks of ready replicas
    BREAKER_CREDITS_USED,    // percent
    BREAKER_QUEUE_LENGTH,
    BREAKER_QUEUE_ETA, // ms that the last one waits
    BREAKER_TTFT,      // ms from the dispatch to the first token, mean of the last ones
    BREAKER_STEP,      // ms, mean over ready replicas
    BREAKER_REPLICAS_READY,
    BREAKER_GPU_MEMORY,      // percent, the fullest device of a replica
    BREAKER_GPU_TEMPERATURE, // degrees, the hottest one
    BREAKER_QUEUE_TOKENS,    // prompt tokens waiting
    BREAKER_RUNNING,
    BREAKER_NODES, // connected, free or in a replica
    BREAKER_CREDITS_FREE,
    BREAKER_PREFIX_HITS,    // percent of the tokens dispatched that were cached, of the last ten seconds
    BREAKER_TOKENS_PER_S,   // generated; this and those below are means over about ten seconds
    BREAKER_REFUSED_PER_S,  // requests
    BREAKER_ERRORS_PER_S,   // requests that ended with an error
    BREAKER_FENCES_PER_MIN, // replicas
    BREAKER_METRICS,
};
enum coord_breaker_action {
    BREAKER_REJECT_LOW, // refuse bands below `value`
    BREAKER_CAP_TOKENS, // of new requests: at most `value`
    BREAKER_STOP_ADMISSION,
    BREAKER_FALLBACK, // new requests go to the fallback of their model, where it has one
    BREAKER_ACTIONS,
};
const char *coord_breaker_metric_name(enum coord_breaker_metric m); // "gpu_utilization"; NULL
const char *coord_breaker_action_name(enum coord_breaker_action a); // "reject_low_priority"; NULL

struct coord_breaker {
    enum coord_breaker_metric metric;
    bool below; // else above
    double threshold;
    uint32_t for_ms; // so long: opens; as long good again: closes
    enum coord_breaker_action action;
    uint32_t value;
};

enum { COORD_MAX_REPLICAS = 4096, COORD_MAX_POOLS = 16 };

// Replicas that serve the same purpose. Which pool a new request goes to: those of its model whose
// context has room for it; of them the ones whose prompt_max is the smallest that takes its prompt;
// of them one by weight, the same for all requests of a session. Everything is copied.
struct coord_pool {
    const char *name;      // unique, as a tenant's name
    const char *model;     // what clients call it; several pools may have one
    const char *version;   // a label; NULL = ""
    const char *model_dir; // as the nodes see it
    uint32_t replicas;     // wanted number, 0..COORD_MAX_REPLICAS in all pools
    uint32_t stages, tensor;
    uint32_t prefill_replicas, decode_replicas; // as in coord_config
    uint32_t weight;             // share among the pools of its model; 0 = takes no new requests
    uint32_t prompt_max;         // tokens of the longest prompt that it takes; 0 = any
    uint32_t max_context;        // used until a lead told its own; 0 = not known yet
    const char *fallback; // model that its new requests go to instead (coord_fallback); NULL = none
    const int32_t *probe_prompt; // as in coord_config; probe_prompt_n 0 = no probes of this pool
    uint32_t probe_prompt_n;
    const int32_t *probe_expect;
};

struct coord_config {
    // Without pools one pool "main" is made of these four, of probe_* and max_context.
    const char *model_dir;          // as the nodes see it; copied
    uint32_t replicas;              // wanted number of replicas, 1..COORD_MAX_REPLICAS
    uint32_t stages, tensor;        // shape of each
    uint32_t prefill_replicas;      // of the first ones this is the role, ...
    uint32_t decode_replicas;       // ... of the next this; ANY of the rest
    const char *model;              // name of it; NULL = "model"; copied
    const struct coord_pool *pools; // pools_n of them; the first serves who names no model
    uint32_t pools_n;
    enum transport_choice transport; // among the ranks
    uint64_t first_epoch; // epochs grow from here; a restarted coordinator must pass more
                          // than was ever used (the wall clock in ms does)
    // Members.
    uint32_t heartbeat_ms;         // told to nodes in WELCOME
    uint32_t heartbeat_timeout_ms; // silent for longer = lost
    uint32_t warmup_silence_ms;    // the same while a node loads weights
    uint32_t warmup_timeout_ms;    // a replica not formed in this time is given up and tried again
    uint32_t reload_timeout_ms;    // the same for a rank that has its weights in memory
    uint32_t hang_ms;              // a step older than this without any progress = hung
    uint32_t cancel_timeout_ms;    // a lead that does not answer CANCEL in this time = hung
    uint32_t backoff_ms;           // first pause after a failed forming; doubles
    uint32_t backoff_max_ms;
    uint32_t stable_ms; // a replica ready for this long forgets its failures
    // Golden probes (prober.c) and quarantine (quarantine.c).
    const int32_t *probe_prompt; // copied; probe_prompt_n 0 = no probes
    uint32_t probe_prompt_n;     // at most PROBE_PROMPT
    uint32_t probe_tokens_n;     // of the answer, 1..PROBE_TOKENS
    const int32_t *probe_expect; // copied, probe_tokens_n of them; NULL = learned
    float probe_tolerance;       // of a log-probability; 0 = only tokens are compared
    uint32_t probe_interval_ms;
    uint32_t probe_timeout_ms;
    uint32_t probe_failures;     // in a row: ejected
    uint32_t quarantine_ms;      // the first one; doubles
    uint32_t quarantine_percent; // of the connected nodes at most, and one
    uint32_t trial_ms;           // after it, with a quarter of the credits
    uint32_t flap_limit;         // faults of a live node within a minute: quarantine; 0 = never
    float slow_factor;           // a replica so many times slower than its peers ...
    uint32_t slow_ms;            // ... for so long is taken out and measured; 0 = never
    uint32_t lost_keep_ms;       // lost nodes stay in the list for this long
    // Order and share (fair.h, tenants.h, preempt.c).
    const struct coord_tenant *tenants; // tenants_n of them, copied; names differ, not "default"
    uint32_t tenants_n;
    struct coord_tenant other_tenants; // settings of all other names, and of no name
    uint32_t tenants_limit;            // other names remembered at once
    uint32_t ageing_ms;                // a request that waited so long goes up one band; 0 = never
    uint8_t ageing_band;               // but not above this one
    uint32_t preempt_limit;        // a running request gives way to a higher band at most so often
    uint32_t band_deadline_ms[10]; // for requests that name none; 0 = default_deadline_ms
    const struct coord_breaker *breakers; // breakers_n of them, copied
    uint32_t breakers_n;
    // KV that moves (transfer.h, handover.c).
    bool kv_move;                // false: what is handed over is computed again
    uint32_t kv_min_tokens;      // less context than this is computed again
    uint32_t long_prompt_tokens; // so many to be computed: a PREFILL replica does it
    uint32_t kv_lease_ms;        // of a transfer whose source has computed all of it
    uint32_t kv_retry_ms;        // after one that failed
    // Failing replicas (circuit.h), and what is computed again because of them (retry.h).
    uint32_t circuit_failures;   // within a minute; 0 = never opened
    uint32_t circuit_open_ms;    // the first pause; doubles, up to 16 of it
    uint32_t circuit_trials;     // requests at a time, and first tokens that close it again
    uint32_t retry_percent;      // of the tokens served; 0 = no budget
    uint32_t retry_burst_tokens; // that may be computed again at once
    // Requests.
    uint32_t
        prefix_blocks;    // of replicas' prefix caches that are known; 0 = requests go by key alone
    uint32_t max_context; // tokens; used until a lead told its own. 0 = not known yet
    uint32_t queue_limit; // requests waiting
    uint64_t queue_tokens_limit;  // prompt tokens waiting
    uint32_t queued_notice_ms;    // how often waiting requests are told their new places
    uint32_t default_deadline_ms; // for requests that name none; 0 = wait without end
    uint32_t grace_ms;            // nobody attached for longer = cancelled
    uint32_t retention_ms;        // finished requests are kept this long for re-attach
    uint32_t retain_limit;        // and at most so many
    uint64_t retain_tokens_limit; // with so many tokens
    uint32_t poison_faults;       // a request is given up after more than so many failures of its
                                  // replicas in a row without a token between, when a rank reported
                                  // the fault
    uint32_t poison_losses;       // the same, counting lost and hung nodes too
    struct elastic_config elastic; // of every pool that takes new requests; max 0 = off
    bool tell_nodes;               // COORD_NODES also without it
    const char *state; // of a coordinator before (COORD_STATE); copied. NULL = none
    enum log_level trace;         // COORD_TRACE actions below this level are not made
};
// Fills in the defaults; model_dir, replicas, stages, tensor are left for the caller (1 x 1 x 1).
void coord_config_default(struct coord_config *cfg);

// ---- events -------------------------------------------------------------------------------------

enum coord_event_kind {
    COORD_TIMER,     // the time of COORD_SET_TIMER came; early or needless ones do no harm
    COORD_NODE_UP,   // conn: `msg` is the HELLO that opened it
    COORD_NODE_MSG,  // conn: any later message
    COORD_NODE_DOWN, // conn is closed
    COORD_SUBMIT,    // a new request
    COORD_RESTORE, // one that another coordinator had: it goes on, or is kept, with nobody attached
    COORD_RESTORE_MARK, // what an operator told another coordinator about a node: admin DRAIN or EJECT,
                        // of a node that need not be there yet. Not answered
    COORD_STOP,    // the shell found a stop string: finish now, `kept` tokens count
    COORD_ATTACH,  // one more client reads this request (SUBMIT counts as the first)
    COORD_DETACH,  // one less; at none the grace time begins
    COORD_CANCEL,  // the client wants no more of it
    COORD_ADMIN,   // an operator's command
};

struct coord_submit {
    uint64_t request; // unique in the cluster, never 0
    const int32_t *prompt;
    uint32_t prompt_n;
    uint32_t max_tokens; // 0 = as many as the context takes
    int32_t stop_ids[MSG_STOP_IDS];
    uint32_t stop_ids_n;
    struct sampling sampling;
    const char *tenant;   // NULL or "" = of nobody
    const char *model;    // as clients call it; NULL or "" = of the first pool
    const char *pool;     // RESTORE: where it ran; NULL or "" = by the model
    uint8_t band;         // 0..9, 9 = highest
    uint64_t session;     // follow-ups of one session go to the same replica; 0 = by prompt prefix
    uint64_t deadline_us; // of its first token; 0 = by its band
};

// Not refused for want of room or time, and without a deadline: it was admitted once. REFUSED
// (bad_request) when it makes no sense. The prompt of a finished one may be NULL.
struct coord_restore {
    struct coord_submit submit;
    const int32_t *emitted;
    uint32_t emitted_n;
    uint64_t fingerprint; // of the model that made them; 0 = not known, or none
    uint32_t cached_n;
    enum finish_reason finish; // NONE = unfinished
    enum status status;
    const char *text;
};

// What a replica is for. Long prompts are computed by a PREFILL replica, and their KV is moved to
// the one that decodes.
enum coord_role {
    COORD_ROLE_ANY,     // both, and prompts of its own when no PREFILL replica has a place
    COORD_ROLE_PREFILL, // takes ordinary requests only while no other is ready
    COORD_ROLE_DECODE,  // the last to compute a long prompt
};
const char *coord_role_name(enum coord_role r); // "any", "prefill", "decode"

enum coord_admin_op {
    COORD_DRAIN,    // node `target`: hand its work over, then leave it idle until UNDRAIN
    COORD_UNDRAIN,  // node `target` may be used again; ends drain and eject
    COORD_FAILOVER, // replica `replica`: move its requests, with their KV where that can be; fence
                    // it, form it anew
    COORD_ROLE,     // replica `replica` has the role `target` from now on
    COORD_SCALE,    // pool `target` has `number` replicas from now on
    // Versions of a model (rollout.h). `target`: the pool, or the model when one pool serves it.
    COORD_ROLLOUT_START, // from the version that serves to the folder `model_dir`, by `plan`
    COORD_ROLLOUT_PAUSE, // PAUSE, RESUME, PROMOTE (to the last step at once), ROLLBACK: target "" =
    COORD_ROLLOUT_RESUME, // whichever is under way
    COORD_ROLLOUT_PROMOTE,
    COORD_ROLLOUT_ROLLBACK,
    COORD_ROLLOUT_SWITCH, // to a version that is kept, named by `model_dir`; not judged
    COORD_ROLLOUT_SCORE,  // an eval gave the version `model_dir` `number` thousandths
    COORD_EJECT,    // node `target`: fence its replica at once, quarantine it until UNDRAIN
    COORD_CLOSE,    // admit nothing more; done when no request is unfinished
};
const char *coord_admin_op_name(enum coord_admin_op op); // "drain", ...

struct coord_admin {
    enum coord_admin_op op;
    const char *target; // name of the node; ROLE: of the role; else of the pool
    uint64_t replica;   // FAILOVER, ROLE
    uint32_t number;       // SCALE, SCORE
    const char *model_dir; // START: a folder; START, SWITCH, SCORE: or a version's label
    struct rollout_plan plan;
    uint64_t tag;       // the caller's, returned in ADMIN_DONE
};

struct coord_event {
    enum coord_event_kind kind;
    uint64_t now_us;
    union {
        struct {
            uint64_t conn;         // the shell's name of the connection; never 0, never used again
            const struct msg *msg; // NODE_UP, NODE_MSG
        } node;
        struct coord_submit submit;
        struct coord_restore restore;
        struct {
            uint64_t request; // unknown ids are ignored
            uint32_t kept;    // STOP: tokens that count; later ones are dropped from the journal
        } req;                // STOP, ATTACH, DETACH, CANCEL
        struct coord_admin admin;
    };
};

// ---- actions ------------------------------------------------------------------------------------

enum coord_action_kind {
    COORD_SEND,       // msg to conn
    COORD_CLOSE_CONN, // conn counts no more: close it; whatever still comes from it is ignored
    COORD_QUEUED,     // a waiting request's place changed
    COORD_TOKENS,     // new tokens of a request
    COORD_DONE,       // a request is finished
    COORD_REFUSED,    // a request was not admitted, or its deadline passed before it started
    COORD_FORGET,     // a finished request is not kept any longer
    COORD_ADMIN_DONE, // an operator's command is done, or failed
    COORD_STATE, // what operators made of the configuration changed: to be kept (state.c)
    COORD_NODES, // more or fewer nodes are wanted, or there are some too many
    COORD_SET_TIMER,  // send COORD_TIMER at at_us; replaces the timer set before
    COORD_TRACE,      // something worth a log line
};

enum coord_refusal {
    COORD_REFUSE_NONE,
    COORD_REFUSE_QUEUE_FULL,      // retry after a while                            (429)
    COORD_REFUSE_NO_CAPACITY,     // waited to its deadline and no replica serves   (503)
    COORD_REFUSE_DEADLINE,        // could not, or did not, start before its deadline (429)
    COORD_REFUSE_BREAKER,         // a rule of the configuration keeps it out       (503)
    COORD_REFUSE_QUOTA,           // its tenant has used up its rate of tokens      (429)
    COORD_REFUSE_DRAINING,        // the coordinator is being shut down             (503)
    COORD_REFUSE_PROMPT_TOO_LONG, // the context has no room for it                 (400)
    COORD_REFUSE_BAD_MAX_TOKENS,  // prompt and max_tokens exceed the context       (400)
    COORD_REFUSE_BAD_REQUEST,     // empty prompt, id in use, field out of range    (400)
};
const char *coord_refusal_name(enum coord_refusal r); // "queue_full", "no_capacity", ...

struct coord_nodes {
    uint32_t wanted;    // by all replicas that are wanted
    uint32_t connected; // there are
    uint32_t spare;     // FREE ones that nobody wants
};

enum { COORD_STATE_BYTES = 32 << 10 };

struct coord_action {
    enum coord_action_kind kind;
    union {
        struct {
            uint64_t conn;
            const struct msg *msg;
        } send;
        struct {
            uint64_t conn;
            enum status status;
            const char *text;
        } close;
        struct {
            uint64_t request;
            uint32_t position; // 1 = next
            uint32_t eta_ms;   // estimate of the wait that is left
        } queued;
        struct {
            uint64_t request;
            uint32_t first_index;
            const struct token_out *tokens; // consecutive indexes
            uint32_t tokens_n;
            uint64_t fingerprint; // of the model
        } tokens;
        struct {
            uint64_t request;
            enum finish_reason finish;
            enum status status;                     // OK unless finish is ERROR or CANCELLED
            const char *text;                       // why; "" when OK
            uint32_t prompt_n, emitted_n, cached_n; // usage; cached_n prompt tokens came from KV
        } done;
        struct {
            uint64_t request;
            enum coord_refusal reason;
            uint32_t retry_after_ms; // 0 = trying again does not help
            const char *text;
        } refused;
        struct {
            uint64_t request;
        } forget;
        struct {
            uint64_t tag;
            enum status status;
            const char *text;
        } admin_done;
        struct {
            const char *text; // also coord_state()
        } state;
        struct coord_nodes nodes;
        struct {
            uint64_t at_us; // UINT64_MAX = none needed
        } timer;
        struct {
            enum log_level level;
            const char *text; // "coord > node 2 heartbeat lost -> fence replica 1, move 3 requests"
        } trace;
    };
};

struct coord_actions {
    const struct coord_action *v;
    size_t n;
};

// NULL and a text in *err when the configuration makes no sense. Free with coord_destroy.
struct coord *coord_create(const struct coord_config *cfg, struct errmsg *err);
void coord_destroy(struct coord *c);

void coord_step(struct coord *c, const struct coord_event *ev, struct coord_actions *out);

// ---- views: for status, metrics, ctl ------------------------------------------------------------
// Strings and arrays in a view are borrowed until the next coord_step.

enum coord_node_state {
    COORD_NODE_FREE,       // healthy, in no replica
    COORD_NODE_IN_REPLICA, // a rank of one
    COORD_NODE_DRAINING,   // in a replica that hands its work over
    COORD_NODE_DRAINED,    // idle, kept out until undrain
    COORD_NODE_SUSPECT,    // was named as stuck; kept out until it shows that it is not
    COORD_NODE_EJECTED,    // quarantined: for a time, or, by an operator, until undrain
    COORD_NODE_LOST,       // no connection
};
const char *coord_node_state_name(enum coord_node_state s); // "free", "in-replica", ...

enum coord_replica_state {
    COORD_REPLICA_VACANT,   // waits for nodes, or for its back-off
    COORD_REPLICA_FORMING,  // its ranks load weights and link up: warm-up
    COORD_REPLICA_PROVING,  // formed; has not given the known answer to a golden probe yet
    COORD_REPLICA_READY,    // serves
    COORD_REPLICA_DRAINING, // finishes or hands over what it has, takes nothing new
};
const char *coord_replica_state_name(enum coord_replica_state s); // "vacant", ...

enum coord_request_state {
    COORD_REQ_QUEUED,  // waits for a credit: new, or moved from a replica that broke
    COORD_REQ_RUNNING, // on a replica
    COORD_REQ_MOVING,  // CANCEL sent: its replica drains, or it gives way; goes on elsewhere
    COORD_REQ_CLOSING, // finished for the client; its replica has not let go yet
    COORD_REQ_DONE,    // kept for re-attach
};
const char *coord_request_state_name(enum coord_request_state s); // "queued", ...

// A transfer of KV blocks between two replicas (transfer.h).
enum coord_transfer_state {
    COORD_TRANSFER_OFFERED, // the target has been asked to take blocks
    COORD_TRANSFER_SENDING,
    COORD_TRANSFER_LANDED, // the target has them; the source lets go of the request
    COORD_TRANSFER_ENDED,
};
const char *coord_transfer_state_name(enum coord_transfer_state s); // "offered", ...
enum coord_transfer_end {
    COORD_TRANSFER_MOVED,   // the request goes on at the target
    COORD_TRANSFER_REFUSED, // the target had no room
    COORD_TRANSFER_SOURCE,  // failed there
    COORD_TRANSFER_TARGET,
    COORD_TRANSFER_LEASE,   // took too long
    COORD_TRANSFER_REPLICA, // one of the two was fenced, or takes no requests any more
    COORD_TRANSFER_REQUEST, // ended, stopped, cancelled, or gave way
    COORD_TRANSFER_ENDS,
};
const char *coord_transfer_end_name(enum coord_transfer_end e); // "moved", "refused", ...

struct coord_node_view {
    const char *name, *host, *backend;
    uint64_t incarnation, conn; // conn 0 = none
    uint32_t pid;
    enum coord_node_state state;
    bool marked;            // drained or ejected: stays so when it comes back
    bool drain_ordered, eject_ordered; // marked by an operator
    uint32_t quarantine_ms; // what is left of its quarantine; 0 = none, or without end
    uint64_t replica;       // 0 = none
    uint32_t stage, tensor; // valid when replica != 0
    uint64_t heartbeat_age_us;
    struct msg_heartbeat heartbeat; // the last one
    bool gives_weights;             // to nodes that start
    struct weights_figures weights; // how those in its memory came there
    uint32_t joins, faults;         // since the coordinator started
    const char *fault;              // text of the last fault it was blamed for; "" = none
    uint64_t fault_us;
};

struct coord_replica_view {
    uint64_t id, epoch;
    bool retired; // not wanted any more: leaves, or is gone
    const char *pool, *model, *version;
    enum coord_replica_state state;
    enum coord_role role;
    bool serves; // takes ordinary requests
    uint64_t state_since_us;
    uint32_t stages, tensor;
    const char *const *nodes;      // names by (stage, tensor), NULL where vacant; stages * tensor
    uint32_t prepared_n, formed_n; // ranks that have loaded, that are ready
    uint32_t running;              // requests placed on it
    uint32_t reserved;             // places held for requests whose KV is on its way
    uint32_t cached_blocks;        // known of its prefix cache
    uint64_t cache_digest;         // of them: as node_cache_digest when nothing is under way
    const char *circuit;           // "closed", "open", "half-open"
    float slowness;                // against its pool, 1 = as the others
    uint32_t credits;              // how many it may have; 0 unless ready
    uint32_t max_context, kv_blocks, kv_free, block_tokens, waiting;
    enum transport_choice transport; // among its ranks; AUTO: not formed, or one rank
    uint32_t step_age_ms;
    uint64_t steps, fingerprint;
    uint64_t forms, fences; // since the coordinator started
    uint64_t retry_at_us;   // vacant: not before this time; 0 = at once
    const char *fault;      // why it was fenced last, or could not be formed; "" = never
    const char *suspect;    // node that was blamed; "" = unknown
    uint64_t fault_us;
};

struct coord_request_view {
    uint64_t id;
    enum coord_request_state state;
    uint8_t band, lane_band; // as named; as it counts now, after ageing
    const char *tenant;      // "" once finished
    const char *pool, *model;
    uint32_t preemptions;
    uint64_t replica;                                              // 0 = none
    uint64_t submitted_us, first_token_us, last_token_us, done_us; // 0 = not yet
    uint64_t deadline_us, session, fingerprint;
    const int32_t *stop_ids;
    uint32_t stop_ids_n;
    struct sampling sampling;
    uint32_t position;   // while queued, as last told
    uint32_t attached;   // clients
    uint32_t dispatches; // 1 = never moved
    uint32_t pause_us;   // longest gap between two tokens around a move
    uint32_t max_tokens;
    uint32_t cached_n; // prompt tokens found in the KV cache
    enum finish_reason finish;
    enum status status;
    const char *text;
    const int32_t *prompt, *tokens; // tokens: what was emitted
    uint32_t prompt_n, tokens_n;
};

// How a replica was chosen (routing.c).
enum routed {
    ROUTED_RING,    // the key's place on the ring
    ROUTED_SECOND,  // the next one there, which was faster or emptier
    ROUTED_PREFIX,  // it has the beginning of the prompt
    ROUTED_SPILLED, // all others were at their share of the load
    ROUTED_GIVEN,   // a place that was made for it, or its KV was moved there
};
const char *coord_routed_name(enum routed r); // "ring", ...

struct coord_stats {
    uint32_t nodes, nodes_usable; // connected; free or in a replica
    uint32_t nodes_wanted;        // by all replicas that are wanted
    uint32_t replicas, replicas_ready;
    uint32_t credits, credits_free; // of ready replicas
    uint32_t queued, queued_moved, running, retained;
    uint64_t queued_tokens, retained_tokens;
    uint32_t max_context; // the largest; 0 = not known yet
    uint32_t eta_ms;      // of a request that came now, to the first pool
    bool closing;
    uint64_t submitted, refused[COORD_REFUSE_BAD_REQUEST + 1];
    uint64_t displaced; // of refused: had to make room for a higher band
    uint64_t finished[FINISH_ERROR + 1];
    uint64_t tokens, dispatches, moves; // moves: dispatches that continued a journal elsewhere
    uint64_t preemptions;               // running requests that gave way to a higher band
    uint64_t fences, forms, forms_failed;
    uint64_t probes, probes_failed, quarantines;
    uint64_t rollouts, rollouts_done, rollouts_reverted; // begun; of them how they ended
    uint64_t scaled; // times that the number of a pool's replicas was changed by the load
    uint64_t loans; // replicas lent to an old version for requests that are bound to it
    uint32_t transferring;                    // transfers under way
    uint64_t transfers[COORD_TRANSFER_ENDS];  // that ended, by why
    uint64_t kv_tokens, kv_bytes, kv_us;      // of those that landed
    uint64_t prompts_apart;                   // long prompts given to a replica for prefill
    uint64_t handed_plain;                    // running requests handed over without their KV
    uint64_t routed[ROUTED_GIVEN + 1]; // dispatches
    uint64_t prefill_tokens,
        prefix_hit_tokens;      // of prompts and journals dispatched; of them cached
    uint64_t circuits_opened;
    uint64_t retry_tokens;      // of moved requests that had to be computed again, about
    uint64_t cache_resyncs;     // reports of a prefix cache that were missing
    uint64_t cached_blocks;     // known in all replicas
    uint64_t stale_dropped;     // messages of an old epoch or of a replaced connection
    uint64_t duplicate_dropped; // tokens that were known already
    uint64_t protocol_errors;
};

struct coord_pool_view {
    const char *name, *model, *version, *model_dir;
    uint32_t replicas, replicas_ready, stages, tensor, weight, prompt_max; // replicas: wanted
    uint64_t fingerprint; // of the model that its replicas last had; 0 = not known
    uint32_t bound;       // requests that can go on only here
    int score_milli;      // of an eval; -1 = none
    uint32_t credits, credits_free, queued, max_context;
    uint32_t eta_ms; // of a request that came now
    uint64_t admitted;
    int64_t retry_budget; // tokens; below 0 = debt
    uint32_t retrying;    // moved requests that have not answered since
};

struct coord_transfer_view {
    uint64_t id, request;
    enum coord_transfer_state state;
    uint64_t source, target; // replicas
    uint32_t tokens_n;
    uint32_t blocks, have; // 0 until the target is ready; have: were in its cache
    uint64_t begun_us;
    uint32_t lease_ms; // that is left; 0 = landed
};

struct coord_tenant_view {
    const char *name;
    bool named; // by the configuration
    uint32_t weight, tokens_per_s;
    uint32_t live, waiting; // requests not finished; of them waiting
    double quota_left;      // tokens; below 0 = debt; 0 without a quota
    double served;          // tokens / weight, lifted when it comes back: the least is served next
    uint64_t submitted, refused_quota, tokens;
};

// The rollout under way, or the last one; `to` is "" when there was none.
struct coord_rollout_view {
    enum rollout_state state;
    const char *why; // how the last one ended
    const char *model, *from, *to, *from_pool, *to_pool;
    struct rollout_plan plan;
    uint32_t step, replicas, percent; // percent of the new requests that `to` gets now
    uint64_t since_us;
    int agree_percent, score_from_milli, score_to_milli; // -1 = not known
    const struct rollout_figures *from_figures, *to_figures; // NULL = there was none
};
void coord_nodes(const struct coord *c, struct coord_nodes *out);
void coord_rollout(const struct coord *c, struct coord_rollout_view *out);
const char *coord_state(const struct coord *c); // as told last; "" = nothing was changed
uint64_t coord_state_revision(const char *text); // grows with each change; 0 = no state

uint64_t coord_epoch(const struct coord *c); // highest used
// What is wrong with the settings of a pool; NULL = nothing.
const char *coord_pool_wrong(const struct coord_pool *set);
// The model that a request for `model` should go to instead, by its chain of fallbacks: when none of its
// pools serves, all their queues are full or too long for the deadline, or a breaker says so, and the
// other one is better off. NULL: there is none, or no need. To be asked before SUBMIT: another model
// reads the prompt as other tokens. deadline_ms: from now; 0 = none.
const char *coord_fallback(const struct coord *c, const char *model, uint8_t band,
                           uint32_t prompt_n, uint32_t deadline_ms);
void coord_stats(const struct coord *c, struct coord_stats *out);
bool coord_tenant_name_ok(const char *name); // 1..63 bytes, printable, no space, quote or backslash
struct coord_breaker_view {
    struct coord_breaker rule;
    bool open;
    double value; // last figure
    uint64_t opened;
};
void coord_each_breaker(const struct coord *c,
                        bool (*fn)(void *arg, const struct coord_breaker_view *), void *arg);
void coord_each_transfer(const struct coord *c,
                         bool (*fn)(void *arg, const struct coord_transfer_view *), void *arg);
void coord_each_tenant(const struct coord *c,
                       bool (*fn)(void *arg, const struct coord_tenant_view *), void *arg);
void coord_each_pool(const struct coord *c, bool (*fn)(void *arg, const struct coord_pool_view *),
                     void *arg);
// Calls fn for each, in the order of arrival (replicas: by id), until it returns false.
void coord_each_node(const struct coord *c, bool (*fn)(void *arg, const struct coord_node_view *),
                     void *arg);
void coord_each_replica(const struct coord *c,
                        bool (*fn)(void *arg, const struct coord_replica_view *), void *arg);
void coord_each_request(const struct coord *c,
                        bool (*fn)(void *arg, const struct coord_request_view *), void *arg);
// false: no such request (never was, refused, or forgotten).
bool coord_request_find(const struct coord *c, uint64_t request, struct coord_request_view *out);

// For the simulator and tests: walks everything and asserts that all counts, lists and machines
// agree. O(everything).
void coord_check(const struct coord *c);
