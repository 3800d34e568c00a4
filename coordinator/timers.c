// A plain binary heap with back-pointers, so that a timer can be moved or taken out in O(log n).
#include "coordinator/timers.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/mem.h"

void timers_finish(struct timers *ts)
{
    free(ts->heap);
    *ts = (struct timers){0};
}

static bool timer_before(const struct timer *a, const struct timer *b)
{
    return a->due_us != b->due_us ? a->due_us < b->due_us : a->order < b->order;
}

static void timers_put(struct timers *ts, size_t i, struct timer *t)
{
    ts->heap[i] = t;
    t->slot = i + 1;
}

static void timers_up(struct timers *ts, size_t i, struct timer *t)
{
    while (i > 0 && timer_before(t, ts->heap[(i - 1) / 2])) {
        timers_put(ts, i, ts->heap[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    timers_put(ts, i, t);
}

static void timers_down(struct timers *ts, size_t i, struct timer *t)
{
    for (;;) {
        size_t child = 2 * i + 1;
        if (child + 1 < ts->n && timer_before(ts->heap[child + 1], ts->heap[child]))
            child++;
        if (child >= ts->n || !timer_before(ts->heap[child], t))
            break;
        timers_put(ts, i, ts->heap[child]);
        i = child;
    }
    timers_put(ts, i, t);
}

void timers_disarm(struct timers *ts, struct timer *t)
{
    if (!t->slot)
        return;
    size_t i = t->slot - 1;
    assert(i < ts->n && ts->heap[i] == t);
    struct timer *last = ts->heap[--ts->n];
    t->slot = 0;
    if (last == t)
        return;
    if (i > 0 && timer_before(last, ts->heap[(i - 1) / 2]))
        timers_up(ts, i, last);
    else
        timers_down(ts, i, last);
}

void timers_arm(struct timers *ts, struct timer *t, uint64_t due_us)
{
    timers_disarm(ts, t);
    MEM_GROW(ts->heap, ts->n, ts->cap);
    t->due_us = due_us;
    t->order = ++ts->order;
    timers_up(ts, ts->n++, t);
}

uint64_t timers_next(const struct timers *ts)
{
    return ts->n ? ts->heap[0]->due_us : UINT64_MAX;
}

struct timer *timers_pop(struct timers *ts, uint64_t now_us)
{
    if (!ts->n || ts->heap[0]->due_us > now_us)
        return NULL;
    struct timer *t = ts->heap[0];
    timers_disarm(ts, t);
    return t;
}
