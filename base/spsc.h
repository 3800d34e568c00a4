// A bounded ring of pointers between exactly one producer and one consumer thread. The only way
// two threads of Hadal meet, together with one wake-up (eventfd, uv_async).
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

struct spsc {
    void **slots;                    // owned
    size_t mask;                     // capacity - 1, capacity a power of two
    _Alignas(64) atomic_size_t head; // next to read; written by the consumer
    _Alignas(64) atomic_size_t tail; // next to write; written by the producer
};

void spsc_init(struct spsc *q, size_t capacity); // rounded up to a power of two
void spsc_finish(struct spsc *q);

// false when full: back-pressure, nothing was done.
bool spsc_push(struct spsc *q, void *item);
// NULL when empty.
void *spsc_pop(struct spsc *q);
bool spsc_empty(const struct spsc *q);
