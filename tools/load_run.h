// One phase of a load run: so many streams, arriving in this way, with these faults beside them.
#pragma once

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "tools/load_fault.h"
#include "tools/load_plan.h"
#include "tools/load_stats.h"
#include "tools/load_stream.h"

enum { LOAD_STREAMS_MAX = 50000, LOAD_RECORDS_MAX = 10000, LOAD_ERRORS_KEPT = 8 };

struct load_phase {
    const char *url;
    const char *admin; // whom faults ask for names and pids: the coordinator's HTTP address
    const struct load_prompts *prompts;
    const struct load_answer *reference; // one per prompt; NULL = nothing to compare with
    const struct load_script *script;    // NULL = no faults
    int concurrency;     // closed loop: streams at a time; open loop: at most so many
    double rate;         // open loop: arrivals a second; 0 = closed loop
    bool constant;       // arrivals evenly spaced, not Poisson
    int64_t requests;    // 0 = until the duration is over
    int64_t duration_ms; // nothing new is sent after it; 0 = no limit
    int64_t timeout_ms;  // a stream that hears nothing for so long is cut and counts as lost
    int64_t pause_us;    // a gap longer than this, after a fault, counts as a pause
    bool attach;         // go on with a broken stream by GET /v1/streams/ID
    uint64_t seed;
    bool progress; // a line on the terminal
};

struct load_fault_record {
    struct load_fault_done done;
    double at_s;              // after the start of the phase
    int streams;              // that had begun to receive tokens and were not finished
    int paused;               // of these, with a gap longer than pause_us
    struct load_samples gaps; // largest gap of each of the streams
};

struct load_result {
    int64_t started, finished, refused;
    int64_t lost;     // begun or failed, and never finished
    int64_t changed;  // finished with another answer than the reference
    int64_t repeated; // events that came twice or out of order
    int64_t verified; // finished and compared
    int64_t broken;   // connections that broke before the end
    int64_t attached; // times that a stream was gone on with
    int64_t tokens;
    double seconds;
    struct load_samples ttft, tpot, gap, pause, total;
    struct load_fault_record *faults; // owned
    int faults_n;
    char errors[LOAD_ERRORS_KEPT][LOAD_TEXT_MAX + 64];
    int errors_n;
    int64_t errors_more;
};

// Runs the phase to its end. SYSTEM or CONFIG errors only; what happens to streams is in `out`.
// `answers`, when not NULL, takes over the answer of each stream by prompt index.
enum status load_phase_run(const struct load_phase *p, struct load_result *out,
                           struct load_answer *answers, struct errmsg *err) STATUS_MUST_USE;
void load_result_finish(struct load_result *r);
// Set from a signal handler: stop sending, end soon.
extern volatile sig_atomic_t load_interrupted;
