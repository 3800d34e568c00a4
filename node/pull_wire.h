// How weights are pulled over xport: what both sides agree on. The source writes into the target's
// memory and the other way round; all numbers are little endian, as everything on xport.
//
//   target                                  source
//     connect, hello {fingerprint}   --->     which model it wants
//                                    <---   welcome {link, listing} in PULL_AT_WELCOME
//     request in slot i of its link  --->     "bytes [at, at + n) of file f"
//                                    <---   answer in slot i: header with XXH3 of the bytes, bytes
//
// File PULL_LISTING is the list of the others. A target has at most PULL_SLOTS requests under way
// on a link, one in each slot, and a slot is free again with its answer, also one that refuses.
#pragma once

#include <stdint.h>

#include "base/limits.h"

enum {
    PULL_MAGIC = 0x4c505748, // "HWPL"
    PULL_VERSION = 1,
    PULL_SLOTS = 8,
    PULL_CHUNK = 1 << 20, // bytes of one answer at most
    PULL_LINKS = 16,      // targets of one source over one transport
    PULL_FILES_MAX = 8192,
    PULL_LISTING_MAX = 2 << 20, // bytes
};
static const uint32_t PULL_LISTING = UINT32_MAX;        // as a file
static const uint32_t PULL_NOTICE_WELCOME = UINT32_MAX; // other notices are slots

// Regions, by whose memory they are.
enum { PULL_REGION_REQUESTS = 1 /* source */, PULL_REGION_STAGING = 2 /* source */ };
enum { PULL_REGION_ANSWERS = 1 /* target */ };

struct pull_hello {
    uint32_t magic, version;
    uint64_t fingerprint;
};

struct pull_welcome {
    uint32_t magic;
    int32_t status; // < 0: enum status, this source has no such model
    uint32_t link;  // requests go to slots [link * PULL_SLOTS, + PULL_SLOTS)
    uint32_t listing_bytes;
    uint64_t listing_hash;
};

struct pull_request {
    uint64_t at;
    uint32_t file, bytes;
    uint32_t number; // of the target's choice, comes back
    uint32_t zero;
    uint8_t pad[40];
};
_Static_assert(sizeof(struct pull_request) == 64, "wire format");

struct pull_answer {
    uint64_t at;
    uint32_t file, bytes;
    uint32_t number;
    int32_t status; // < 0: no bytes follow
    uint64_t hash;  // hash_bytes(bytes, seed `at`)
    uint8_t pad[32];
};
_Static_assert(sizeof(struct pull_answer) == 64, "wire format");

enum {
    PULL_SLOT_BYTES = sizeof(struct pull_answer) + PULL_CHUNK,
    PULL_AT_WELCOME = PULL_SLOTS * PULL_SLOT_BYTES, // in the answers
    PULL_ANSWERS_BYTES = PULL_AT_WELCOME + 4096,
    PULL_REQUESTS_BYTES = PULL_LINKS * PULL_SLOTS * sizeof(struct pull_request),
};

// The listing: of each file its size, then its name with NUL.
struct pull_entry {
    uint64_t bytes;
    uint32_t name_n; // with NUL
};
