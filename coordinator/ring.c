// The circle as one sorted array: adding and removing are rare (a replica came or went) and O(n),
// looking up is a binary search.
#include "coordinator/ring.h"

#include <assert.h>
#include <stdlib.h>

#include "base/hash.h"
#include "base/mem.h"

void ring_finish(struct ring *r)
{
    free(r->points);
    *r = (struct ring){0};
}

static int ring_compare(const void *a, const void *b)
{
    const struct ring_point *x = a, *y = b;
    if (x->hash != y->hash)
        return x->hash < y->hash ? -1 : 1;
    return x->member < y->member ? -1 : x->member > y->member;
}

// The new points are sorted alone and merged in from the end: a thousand members joining, each with
// a sort of all points, would be seconds.
void ring_add(struct ring *r, uint64_t member)
{
    assert(member != 0);
    struct ring_point new[RING_POINTS];
    for (uint64_t i = 0; i < RING_POINTS; i++)
        new[i] = (struct ring_point){hash_pair(member, i), member};
    qsort(new, RING_POINTS, sizeof *new, ring_compare);
    for (uint64_t i = 0; i < RING_POINTS; i++) {
        MEM_GROW(r->points, r->n, r->cap);
        r->n++;
    }
    size_t old = r->n - RING_POINTS, to = r->n;
    for (size_t left = RING_POINTS; left > 0;) {
        bool take_old = old > 0 && ring_compare(&r->points[old - 1], &new[left - 1]) > 0;
        r->points[--to] = take_old ? r->points[--old] : new[--left];
    }
}

void ring_remove(struct ring *r, uint64_t member)
{
    size_t kept = 0;
    for (size_t i = 0; i < r->n; i++)
        if (r->points[i].member != member)
            r->points[kept++] = r->points[i];
    assert(r->n - kept == RING_POINTS);
    r->n = kept;
}

static size_t ring_find(const struct ring *r, uint64_t key)
{
    size_t lo = 0, hi = r->n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (r->points[mid].hash < key)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo == r->n ? 0 : lo;
}

uint64_t ring_pick(const struct ring *r, uint64_t key, bool (*fits)(void *arg, uint64_t member),
                   void *arg)
{
    size_t at = r->n ? ring_find(r, key) : 0;
    for (size_t i = 0; i < r->n; i++, at = at + 1 == r->n ? 0 : at + 1)
        if (fits(arg, r->points[at].member))
            return r->points[at].member;
    return 0;
}

uint32_t ring_cap(uint64_t load, uint32_t members)
{
    assert(members > 0);
    uint64_t quarters = 5 * (load + 1); // 1.25 = 5/4
    uint64_t whole = 4 * (uint64_t)members;
    uint64_t cap = (quarters + whole - 1) / whole;
    return cap > UINT32_MAX ? UINT32_MAX : (uint32_t)cap;
}
