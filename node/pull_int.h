// What pull.c (queue and readers) and pull_peer.c (a source's thread) share.
#pragma once

#include <pthread.h>

#include "node/pull.h"
#include "node/pull_wire.h"
#include "rdma/xport.h"

enum {
    PULL_SOURCES = 16, // bits of a mask
    PULL_CHUNKS = 256,
    PULL_ANSWERS_BAD_MAX = 3, // of one source
};

//            a source takes it            a good answer         copied
//   QUEUED ---------------------> ASKED ----------------> COPYING -----> DONE
//     ^  |                          |                                     |
//     |  | disk                     | bad answer, source lost             | its reader takes note
//     |  +--> COPYING               |                                     v
//     +-----------------------------+                                   FREE
enum pull_state { PULL_FREE, PULL_QUEUED, PULL_ASKED, PULL_COPYING, PULL_DONE };

struct pull_chunk {
    enum pull_state state;
    uint32_t generation; // grows when it is freed: late answers are of an older one
    uint32_t file, bytes;
    uint64_t at;
    char *out;
    uint32_t holders; // mask of sources that were asked and have not answered
    uint32_t failed;  // mask of sources that could not
    uint32_t asks;
    uint64_t since_us;  // QUEUED: put there; ASKED: last asked
    enum status status; // DONE
};

struct pull_slot {
    struct pull_chunk *chunk; // NULL: free
    uint32_t generation, number;
    bool written; // the request's memory is ours again
    uint64_t asked_us;
    struct pull_request request;
};

enum pull_peer_state { PEER_CONNECTING, PEER_SERVING, PEER_LOST };

struct pull_peer {
    struct pull *p;
    uint32_t index;
    char name[LIMIT_NAME];
    char addresses[XPORT_KINDS][LIMIT_ADDR];
    pthread_t thread;
    bool started;
    // Under the pull's lock.
    enum pull_peer_state state;
    struct xport *x;   // for xport_wake; NULL: none now
    struct errmsg why; // LOST
    uint64_t bytes, mean_us;
    uint32_t bad;

    // The thread's own.
    enum xport_kind kind;
    struct xlink *link;
    bool up, down; // of the link
    enum status down_why;
    uint8_t *answers;
    struct pull_welcome welcome;
    bool welcomed;
    struct pull_slot slots[PULL_SLOTS];
    uint32_t numbers;
    uint64_t heard_us;
    uint8_t *listing; // while it is fetched
    uint32_t listing_n;
};

struct pull {
    struct pull_args args; // its pointers are not used after open, but for disk, cancelled, arg
    char *bind;
    uint64_t hang_us;
    pthread_mutex_t lock;
    pthread_cond_t changed; // a chunk is done, a source came or went
    bool quit;
    struct pull_peer peers[PULL_SOURCES];
    uint32_t peers_n;
    struct pull_chunk chunks[PULL_CHUNKS];
    uint32_t queued_n;
    uint64_t disk_us; // mean time of a chunk
    struct pull_stats stats;
    // The listing, from the first source that gave it.
    uint64_t listing_hash;
    bool listed;
    struct st_folder_file *files;
    struct st_folder folder;
    int fds[8];
    int fds_n;
};

uint64_t pull_now_us(void);
// ---- pull.c, all under the lock ----
// A chunk for this source; NULL: none now.
struct pull_chunk *pull_take(struct pull *p, struct pull_peer *peer);
// The source will not answer for it. failed: and shall not be asked for it again.
void pull_give_back(struct pull *p, struct pull_peer *peer, struct pull_chunk *c, bool failed);
// A source's listing; BAD_FILE: makes no sense.
enum status pull_listing_set(struct pull *p, const uint8_t *bytes, size_t n, struct errmsg *e);

void *pull_peer_main(void *peer);
