// Open addressing, one step at a time; who is removed leaves no mark, those behind move up (Knuth,
// TAOCP 3, 6.4, algorithm R).
#include "coordinator/idmap.h"

#include <assert.h>
#include <stdlib.h>

#include "base/mem.h"

void idmap_finish(struct idmap *m)
{
    free(m->slots);
    *m = (struct idmap){0};
}

// Fibonacci hashing of the id folded upon itself: ids that count, and ids that are random.
static size_t home(const struct idmap *m, uint64_t id)
{
    return (size_t)(((id ^ id >> 32) * 0x9e3779b97f4a7c15u) >> 20) & (m->cap - 1);
}

static size_t place(const struct idmap *m, uint64_t id)
{
    size_t i = home(m, id);
    while (m->slots[i].id && m->slots[i].id != id)
        i = (i + 1) & (m->cap - 1);
    return i;
}

void *idmap_find(const struct idmap *m, uint64_t id)
{
    return m->n ? m->slots[place(m, id)].value : NULL;
}

void idmap_expect(const struct idmap *m, uint64_t id)
{
    if (m->n)
        __builtin_prefetch(&m->slots[home(m, id)]);
}

static void grow(struct idmap *m)
{
    struct idmap old = *m;
    m->cap = old.cap ? 2 * old.cap : 64;
    m->slots = mem_zalloc(m->cap, sizeof *m->slots);
    for (size_t i = 0; i < old.cap; i++)
        if (old.slots[i].id)
            m->slots[place(m, old.slots[i].id)] = old.slots[i];
    free(old.slots);
}

void idmap_add(struct idmap *m, uint64_t id, void *value)
{
    assert(id && value);
    if (4 * (m->n + 1) > 3 * m->cap)
        grow(m);
    struct idmap_slot *s = &m->slots[place(m, id)];
    assert(!s->id);
    *s = (struct idmap_slot){id, value};
    m->n++;
}

void idmap_remove(struct idmap *m, uint64_t id)
{
    size_t mask = m->cap - 1, hole = place(m, id);
    assert(m->n && m->slots[hole].id == id);
    m->n--;
    for (size_t i = (hole + 1) & mask; m->slots[i].id; i = (i + 1) & mask) {
        size_t distance = (i - home(m, m->slots[i].id)) & mask;
        if (distance < ((i - hole) & mask))
            continue; // it would move before its home
        m->slots[hole] = m->slots[i];
        hole = i;
    }
    m->slots[hole] = (struct idmap_slot){0};
}
