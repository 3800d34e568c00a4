// From 64-bit ids to what they name: one flat table, so that finding costs one line of memory. What
// a token of a hundred thousand streams costs is mostly this. Ids may follow any pattern; none is
// 0.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct idmap_slot {
    uint64_t id; // 0 = empty
    void *value;
};

struct idmap {
    struct idmap_slot *slots; // owned; a power of two of them, at most three quarters in use
    size_t n, cap;
};

void idmap_finish(struct idmap *m);
void *idmap_find(const struct idmap *m, uint64_t id);      // NULL = none
void idmap_add(struct idmap *m, uint64_t id, void *value); // id: not in it
void idmap_remove(struct idmap *m, uint64_t id);           // id: in it
// Soon to be found: its slot, later its value, travel towards the processor.
void idmap_expect(const struct idmap *m, uint64_t id);
