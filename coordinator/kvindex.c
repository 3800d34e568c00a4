// Linear probing; what is removed is filled up from behind, so that there are no tombstones.
#include "coordinator/kvindex.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

enum { FIRST_CAP = 1024 };

void kvindex_finish(struct kvindex *x)
{
    free(x->v);
    *x = (struct kvindex){0};
}

// Names are hashes already.
static size_t place_of(const struct kvindex *x, uint64_t name)
{
    return (size_t)(name & (x->cap - 1));
}

static struct kvindex_entry *find(const struct kvindex *x, uint64_t name)
{
    if (!x->cap)
        return NULL;
    for (size_t i = place_of(x, name); x->v[i].name; i = (i + 1) & (x->cap - 1))
        if (x->v[i].name == name)
            return &x->v[i];
    return NULL;
}

static struct kvindex_entry *insert(struct kvindex *x, uint64_t name)
{
    size_t i = place_of(x, name);
    while (x->v[i].name)
        i = (i + 1) & (x->cap - 1);
    x->v[i].name = name;
    x->n++;
    return &x->v[i];
}

static void grow(struct kvindex *x)
{
    struct kvindex old = *x;
    x->cap = old.cap ? 2 * old.cap : FIRST_CAP;
    x->n = 0;
    x->v = mem_zalloc(x->cap, sizeof *x->v);
    for (size_t i = 0; i < old.cap; i++)
        if (old.v[i].name)
            *insert(x, old.v[i].name) = old.v[i];
    free(old.v);
}

bool kvindex_add(struct kvindex *x, uint64_t name, uint16_t replica)
{
    assert(name && replica);
    struct kvindex_entry *e = find(x, name);
    if (!e) {
        if (4 * (x->n + 1) > 3 * x->cap)
            grow(x);
        e = insert(x, name);
    }
    for (int i = 0; i < KVINDEX_HOLDERS; i++) {
        if (e->holders[i] == replica)
            return true;
        if (!e->holders[i]) {
            e->holders[i] = replica;
            return true;
        }
    }
    return false;
}

// What follows without a gap and may not stay behind the hole moves into it.
static void fill_hole(struct kvindex *x, size_t hole)
{
    size_t mask = x->cap - 1;
    for (size_t i = (hole + 1) & mask; x->v[i].name; i = (i + 1) & mask) {
        size_t home = place_of(x, x->v[i].name);
        if (((i - home) & mask) < ((i - hole) & mask))
            continue;
        x->v[hole] = x->v[i];
        hole = i;
    }
    x->v[hole] = (struct kvindex_entry){0};
}

void kvindex_remove(struct kvindex *x, uint64_t name, uint16_t replica)
{
    struct kvindex_entry *e = find(x, name);
    int at = 0, n = 0;
    while (e && n < KVINDEX_HOLDERS && e->holders[n])
        n++;
    while (at < n && e->holders[at] != replica)
        at++;
    if (!e || at == n)
        return;
    e->holders[at] = e->holders[n - 1];
    e->holders[n - 1] = 0;
    if (n > 1)
        return;
    x->n--;
    fill_hole(x, (size_t)(e - x->v));
}

const uint16_t *kvindex_find(const struct kvindex *x, uint64_t name)
{
    const struct kvindex_entry *e = find(x, name);
    return e ? e->holders : NULL;
}

bool kvindex_holds(const struct kvindex *x, uint64_t name, uint16_t replica)
{
    const uint16_t *h = kvindex_find(x, name);
    for (int i = 0; h && i < KVINDEX_HOLDERS; i++)
        if (h[i] == replica)
            return true;
    return false;
}
