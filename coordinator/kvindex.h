// Which replicas hold a block of KV, by its name (base/hash.h, hash_block): the live index that
// sends follow-ups where their beginnings are. A hint: nothing depends on it but time.
//
// A flat table of 16-byte entries, so that asking for one name costs one line of memory. Of each
// block at most KVINDEX_HOLDERS replicas are known, which bounds it: a block that more of them hold
// is common, and no reason to prefer one. Pure; one owner.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KVINDEX_HOLDERS = 4 };

struct kvindex_entry {
    uint64_t name;                     // 0 = empty
    uint16_t holders[KVINDEX_HOLDERS]; // ids of replicas; 0 = none; the first ones are used
};

struct kvindex {
    struct kvindex_entry *v; // owned; a power of two of them, at most three quarters in use
    size_t n, cap;
};

void kvindex_finish(struct kvindex *x);
// False: it has as many holders as are kept. `replica`: 1..65535; true when it is there already.
bool kvindex_add(struct kvindex *x, uint64_t name, uint16_t replica);
void kvindex_remove(struct kvindex *x, uint64_t name, uint16_t replica); // not there: nothing
// Holders, ended by 0 or KVINDEX_HOLDERS of them; NULL: nobody. Until the next add or remove.
const uint16_t *kvindex_find(const struct kvindex *x, uint64_t name);
bool kvindex_holds(const struct kvindex *x, uint64_t name, uint16_t replica);
