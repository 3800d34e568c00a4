// Consistent hashing with virtual nodes (Karger et al., STOC'97). Each member owns RING_POINTS
// points on a circle of 64-bit hashes; a key belongs to the first point at or after it. When a
// member comes or goes only the keys of its own points move, 1/n of all. Walking on from a full
// member to the next gives bounded loads (Mirrokni, Thorup, Zadimoghaddam, SODA'18): the caller's
// `fits` refuses members that are at their cap.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { RING_POINTS = 64 };

struct ring_point {
    uint64_t hash, member;
};

struct ring {
    struct ring_point *points; // owned; sorted by (hash, member)
    size_t n, cap;
};

void ring_finish(struct ring *r);
void ring_add(struct ring *r, uint64_t member); // member: never 0, not in the ring
void ring_remove(struct ring *r, uint64_t member);
// First member from the key's place on that fits; 0 when none does.
uint64_t ring_pick(const struct ring *r, uint64_t key, bool (*fits)(void *arg, uint64_t member),
                   void *arg);
// Cap of bounded loads: ceil(1.25 x mean) with the new request counted in.
uint32_t ring_cap(uint64_t load, uint32_t members);
