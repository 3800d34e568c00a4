// One stream of a load run: takes its events as they arrive, keeps the answer and its times, and
// compares it with the reference. Knows nothing of sockets.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/strbuf.h"
#include "tools/sse.h"

enum { LOAD_ID_MAX = 96, LOAD_TEXT_MAX = 160 };

// What was answered: reasoning and content, each piece of text in the order in which it came.
struct load_answer {
    struct strbuf reasoning, content;
    uint32_t tokens;   // as the server counts them (usage), else pieces of text
    uint64_t ids_hash; // of all token ids; 0 where the transport does not tell them
    char finish[24];   // "stop", "length", ...; "" = none came
};
void load_answer_finish(struct load_answer *a);
bool load_answer_equal(const struct load_answer *a, const struct load_answer *b);

struct load_stream {
    int prompt;
    struct load_answer answer;
    char request[LOAD_ID_MAX]; // to re-attach; "" = not known yet
    char last_id[SSE_ID_MAX];  // of the last event; "" = none
    char error[LOAD_TEXT_MAX]; // why it failed, "" = it did not
    int64_t intended_us;       // when it should have been sent: what times count from
    int64_t first_us, last_us; // first and last token; 0 = none yet
    int64_t heard_us;          // last byte of any kind
    int64_t position;          // number of the last event; -1 = none
    uint32_t repeated;         // events whose number had been there before
    bool done;                 // [DONE] came
    bool active;               // in the transport's hands, or waiting to re-attach
    int attaches;              // attempts in a row
    int64_t attach_at_us;      // 0 = not waiting to re-attach
    int fault;                 // of the run's faults, the last that hit while tokens flowed; -1
    int64_t fault_us, fault_gap_us;
    void *net; // the transport's
};

void load_stream_begin(struct load_stream *s, int prompt, int64_t intended_us);
void load_stream_finish(struct load_stream *s); // may begin again
// Returns the microseconds since the token before when this event carried a later token, else -1.
int64_t load_stream_event(struct load_stream *s, int64_t now_us, const struct sse_event *e);
// A token arrived: keeps the times; returns as load_stream_event does.
int64_t load_stream_token(struct load_stream *s, int64_t now_us);
// A fault happened: gaps that end after it, within the window, are its pause for this stream.
void load_stream_mark(struct load_stream *s, int fault, int64_t fault_us);
