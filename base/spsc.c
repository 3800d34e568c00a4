#include "base/spsc.h"

#include <stdlib.h>

#include "base/mem.h"

void spsc_init(struct spsc *q, size_t capacity)
{
    size_t cap = 2;
    while (cap < capacity)
        cap *= 2;
    q->slots = mem_zalloc(cap, sizeof *q->slots);
    q->mask = cap - 1;
    atomic_init(&q->head, 0);
    atomic_init(&q->tail, 0);
}

void spsc_finish(struct spsc *q)
{
    free(q->slots);
    q->slots = NULL;
}

bool spsc_push(struct spsc *q, void *item)
{
    size_t tail = atomic_load_explicit(&q->tail, memory_order_relaxed);
    if (tail - atomic_load_explicit(&q->head, memory_order_acquire) > q->mask)
        return false;
    q->slots[tail & q->mask] = item;
    atomic_store_explicit(&q->tail, tail + 1, memory_order_release);
    return true;
}

void *spsc_pop(struct spsc *q)
{
    size_t head = atomic_load_explicit(&q->head, memory_order_relaxed);
    if (head == atomic_load_explicit(&q->tail, memory_order_acquire))
        return NULL;
    void *item = q->slots[head & q->mask];
    atomic_store_explicit(&q->head, head + 1, memory_order_release);
    return item;
}

bool spsc_empty(const struct spsc *q)
{
    return atomic_load_explicit(&q->head, memory_order_acquire) ==
           atomic_load_explicit(&q->tail, memory_order_acquire);
}
