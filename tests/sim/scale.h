// The simulation of a large cluster: thousands of hosts, several datacenters, a hundred thousand
// streams. The coordinators are the product's core, one for each datacenter; what is small here is
// the rest. A node is not the node core of the swarm: it speaks the same messages, forms, makes
// steps of a batch with a budget of rows, answers CANCEL, beats for each of its devices, and its
// tokens are the mock engine's; there is no KV pool, no prefix cache and no network but a delay.
// What the node core does under faults is the swarm's to find out; here it is what the coordinator
// does, and what it costs, at a size that nobody has on a desk.
//
//   scale.c         clock, queue of events, coordinators, the run, the report
//   scale_node.c    hosts and their devices
//   scale_stream.c  who asks, and the judge of every token
//   scale_fault.c   hosts, a rack and a datacenter that fail
#pragma once

#include "base/prng.h"
#include "coordinator/coord.h"
#include "node/engine_mock.h"

enum { SCALE_DEVICES = 4, SCALE_DCS = 8 };

struct scale_options {
    uint32_t hosts, dcs, streams, rack;   // rack: hosts in one
    uint32_t seconds, warm_s;             // measured, and before it
    uint32_t step_ms, row_us, rows, seqs; // of a replica: an empty step, each row of it; limits
    double fails_per_hour;                // share of the hosts
    uint32_t dc_notice_ms;                // until a datacenter counts as lost
    uint64_t seed;
    bool trace;
    const char *csv; // NULL = none
};

enum scale_cause { CAUSE_NONE, CAUSE_KILL, CAUSE_SILENT, CAUSE_HANG, CAUSE_RACK, CAUSE_DC, CAUSES };

enum scale_kind {
    SCALE_PULSE,    // host
    SCALE_STEP,     // rank: a step is done
    SCALE_PREPARED, // rank, gen = epoch
    SCALE_LINKED,   // the same
    SCALE_CONNECT,  // rank
    SCALE_DOWN,     // gen: connection of datacenter `at` that broke
    SCALE_TIMER,    // datacenter
    SCALE_STREAM,   // stream: asks, or looks for another coordinator
    SCALE_FAULT,    // at: what
    SCALE_RETURN,   // host
    SCALE_SECOND,
};

struct scale_event {
    uint64_t at_us, order, gen;
    enum scale_kind kind;
    uint32_t at;
};

struct scale_seq {
    uint64_t request;
    struct mock_stream stream;
    uint32_t index, max, left; // left: rows that must be read before the next token
    bool in_step, cancelled;
};

struct scale_rank { // the process of one device
    uint64_t conn, incarnation, replica, epoch, steps;
    uint32_t index; // tensor rank in its replica
    bool alive;
    bool loaded; // its weights
    // Of a lead:
    struct scale_seq *seqs; // owned
    uint32_t seqs_n;
    size_t seqs_cap;
    uint64_t step_gen, step_us; // of the step under way; 0 = idle
};

struct scale_host {
    uint32_t dc;
    bool alive, hung;
    uint64_t hung_us;
    uint64_t gen; // of its heartbeats
    struct scale_rank ranks[SCALE_DEVICES];
};

enum scale_state { STREAM_IDLE, STREAM_OPEN, STREAM_AWAY };

struct scale_stream {
    uint64_t request;
    enum scale_state state;
    enum scale_cause cause; // of the pause that it is in
    uint8_t home, dc, band;
    uint32_t turns, prompt_n, max, seen;
    struct mock_stream expected;
    uint64_t seed, ask_us, last_us, session;
};

enum scale_cost { COST_TOKENS, COST_HEARTBEAT, COST_SUBMIT, COST_TIMER, COST_OTHER, COSTS };

struct scale_dc {
    struct coord *core; // NULL: lost
    uint64_t timer_gen, conns_n;
    uint32_t *conns; // owned; by connection: host * SCALE_DEVICES + device
    size_t conns_cap;
    uint64_t epoch;
    double cost_s;
};

struct samples {
    uint32_t *v; // owned
    size_t n, cap;
};

struct scale {
    struct scale_options opt;
    struct prng prng;
    uint64_t now_us, order, begin_us, end_us;
    struct scale_event *heap; // owned
    size_t heap_n, heap_cap;
    struct scale_dc dcs[SCALE_DCS];
    struct scale_host *hosts;     // owned
    struct scale_stream *streams; // owned
    uint32_t open_n;
    // What is reported.
    struct samples ttft, quiet_ttft, pauses[CAUSES], per_s; // us, us, us, tokens
    uint64_t tokens, second_tokens, finished, refused, moved, asked_again, restored;
    uint64_t faults[CAUSES];
    double cost_s[COSTS], longest_s;
    uint64_t cost_n[COSTS], longest_at_us;
    enum scale_cost longest_of;
    uint32_t open_least;
};

// ---- scale.c ----
int scale_main(int argc, char **argv); // sim --scale ...
void scale_push(struct scale *w, uint64_t at_us, enum scale_kind kind, uint32_t at, uint64_t gen);
void scale_coord(struct scale *w, uint32_t dc, struct coord_event *ev);
void scale_dc_start(struct scale *w, uint32_t dc);
void scale_trace(struct scale *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
_Noreturn void scale_fail(struct scale *w, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void samples_add(struct samples *s, uint64_t v);

// ---- scale_node.c ----
void scale_host_start(struct scale *w, uint32_t host);
void scale_host_stop(struct scale *w, uint32_t host, bool silent); // silent: no FIN is sent
void scale_host_pulse(struct scale *w, uint32_t host, uint64_t gen);
void scale_host_free(struct scale *w, uint32_t host);
void scale_rank_connect(struct scale *w, uint32_t rank);
void scale_rank_closed(struct scale *w, uint32_t dc, uint64_t conn); // by the coordinator
void scale_rank_msg(struct scale *w, uint32_t dc, uint64_t conn, const struct msg *m);
void scale_rank_prepared(struct scale *w, uint32_t rank, uint64_t epoch);
void scale_rank_linked(struct scale *w, uint32_t rank, uint64_t epoch);
void scale_rank_step(struct scale *w, uint32_t rank, uint64_t gen);

// ---- scale_stream.c ----
void scale_streams_start(struct scale *w);
void scale_stream_run(struct scale *w, uint32_t i);
void scale_stream_action(struct scale *w, uint32_t dc, const struct coord_action *a);
void scale_stream_expect(const struct scale *w, uint64_t request); // it is told something soon
void scale_stream_hit(struct scale *w, uint64_t request, enum scale_cause cause);
void scale_streams_of_dc(struct scale *w, uint32_t dc); // it is lost
void scale_streams_check(struct scale *w);              // none is lost

// ---- scale_fault.c ----
void scale_faults_plan(struct scale *w);
void scale_fault(struct scale *w, uint32_t what);
void scale_host_return(struct scale *w, uint32_t host, uint64_t gen);
