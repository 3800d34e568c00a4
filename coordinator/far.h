// Other datacenters, inside of the coordinator's shell, at the leader. To each the leader has a link
// as a follower has (follower.h), that nobody waits for: it holds copies of the other's journals, and
// passes requests on. A request that runs there and has clients here is *foreign*: what comes of it
// is shown and recorded here as if the core had said it.
//
//   spill    a new request goes where its wait and the distance together are shortest
//   read     a stream of the other datacenter is taken up here: its tokens come over the link
//   adopt    the other one is lost: what clients here read of it, or come to read, goes on here, from
//            the journal as far as it was copied, to the same tokens
//   yield    the other one is back and has a request that was adopted here: told TAKEN, it drops its
//            own and reads from here. Should both have adopted it from a third, the name decides.
#pragma once

#include "coordinator/copy_inside.h"

struct far_dc;

void far_open(struct copies *c);
void far_close(struct copies *c);
void far_end(struct copies *c); // leads no more: what is foreign goes to c->follower
void far_tick(struct copies *c, uint64_t now_us);

// A new request, as a record SUBMIT. True: another datacenter got it.
bool far_submit(struct copies *c, const struct copy_record *r, uint64_t deadline_us);
// A word about a request. True: it is foreign, and was passed on.
bool far_word(struct copies *c, enum coord_event_kind kind, uint64_t request);
// A client wants to read what the core does not know: makes it foreign or adopts it. NULL: not known.
const struct shadow_request *far_find(struct copies *c, uint64_t request);
bool far_knows(const struct copies *c, uint64_t request); // it is foreign
bool far_unsure(const struct copies *c); // a datacenter was lost just now: it may know more
// The core speaks of a request that was yielded: nobody hears it.
bool far_mutes(struct copies *c, const struct coord_action *a);
bool far_yielded(const struct copies *c, uint64_t request);
void far_taken(struct copies *c, const char *datacenter, uint64_t request); // TAKEN came
bool far_is_datacenter(const struct copies *c, const char *name);
// What is foreign, for a follower of this datacenter.
void far_each(struct copies *c,
              void (*fn)(void *arg, const struct shadow_request *q, uint32_t told_n), void *arg);
void far_json(const struct copies *c, struct strbuf *out);
void far_metrics(const struct copies *c, struct strbuf *out);
