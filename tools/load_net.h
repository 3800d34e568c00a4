// The streams of a load run or of a chat on their way: over HTTP, or over the RPC by libhadal. One
// thread. Streams are the caller's; what happens to them is told to its handler, from inside
// load_net_turn.
#pragma once

#include <stdint.h>

#include "base/status.h"
#include "tools/load_stream.h"

struct load_net;

struct load_end {
    int code;          // HTTP status, or the RPC's failure as one; 0 = no answer
    int retry_after_s; // of a refusal; 0 = none given
    bool broken;       // the connection broke; else the server ended the answer
    const char *text;  // why it failed; "" when code is 200 and nothing broke
};

struct load_net_handler {
    // Something arrived and was taken in; gap_us as load_stream_event returns it.
    void (*heard)(void *user, struct load_stream *s, int64_t gap_us);
    // The connection is gone; s may be started again or attached from here.
    void (*closed)(void *user, struct load_stream *s, const struct load_end *end);
    void *user;
};

// url: the coordinator's, http://... or hadal://host:port. NULL and *err when it cannot be used.
struct load_net *load_net_open(const char *url, const struct load_net_handler *handler,
                               struct errmsg *err);
void load_net_close(struct load_net *net); // all streams are closed or cut; NULL is fine

// Begins s with the chat request `body`, JSON (borrowed until closed); or goes on with it after its
// last event.
void load_net_start(struct load_net *net, struct load_stream *s, const char *body);
void load_net_attach(struct load_net *net, struct load_stream *s);
// Leaves s; `closed` is not called. Over the RPC its request is cancelled by that.
void load_net_cut(struct load_net *net, struct load_stream *s);

// Breaks the one connection that carries all streams, if there is such; false: each stream has its
// own. Like load_net_cut for all of them, but their requests go on.
bool load_net_break(struct load_net *net);

// Waits for at most timeout_ms, then handles all that is ready.
void load_net_turn(struct load_net *net, int timeout_ms);
