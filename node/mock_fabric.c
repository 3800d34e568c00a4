// Groups are found by (replica, epoch) in a list: a simulation has one per replica.
#include "node/mock_fabric.h"

#include <assert.h>
#include <stdlib.h>
#include <utlist.h>

#include "base/mem.h"

struct cut {
    struct mock_rank *a, *b;
};

struct mock_fabric {
    uint64_t (*now_us)(void *ctx);
    void *ctx;
    struct mock_group *groups;
    struct cut *cuts;
    size_t cuts_n, cuts_cap;
    struct mock_kv *kvs;
};

struct mock_fabric *mock_fabric_create(uint64_t (*now_us)(void *ctx), void *ctx)
{
    struct mock_fabric *f = mem_zalloc(1, sizeof *f);
    f->now_us = now_us;
    f->ctx = ctx;
    return f;
}

void mock_fabric_destroy(struct mock_fabric *f)
{
    if (f == NULL)
        return;
    assert(f->groups == NULL);
    free(f->cuts);
    free(f);
}

uint64_t mock_fabric_now(const struct mock_fabric *f)
{
    return f->now_us(f->ctx);
}

struct mock_kv **mock_fabric_kvs(struct mock_fabric *f)
{
    return &f->kvs;
}

bool mock_fabric_groups_cut(const struct mock_rank *a, const struct mock_rank *b)
{
    const struct mock_fabric *f = a->fabric;
    for (size_t i = 0; i < f->cuts_n; i++) {
        const struct mock_group *x = f->cuts[i].a->group, *y = f->cuts[i].b->group;
        if ((x == a->group && y == b->group) || (x == b->group && y == a->group))
            return true;
    }
    return false;
}

static uint32_t ranks_n(const struct mock_group *g)
{
    return g->stages * g->tensor;
}

static uint32_t rank_index(const struct mock_group *g, struct mock_rank_place p)
{
    return (uint32_t)p.stage * g->tensor + (uint32_t)p.tensor;
}

static void tell_others(struct mock_group *g, const struct mock_rank *r)
{
    for (uint32_t i = 0; i < ranks_n(g); i++)
        if (g->ranks[i] != NULL && g->ranks[i] != r)
            g->ranks[i]->changed(g->ranks[i]);
}

static struct mock_group *group_of(struct mock_fabric *f, const struct msg_form *form)
{
    struct mock_group *g;
    DL_FOREACH(f->groups, g)
    if (g->replica == form->replica && g->epoch == form->epoch)
        return g;
    g = mem_zalloc(1, sizeof *g);
    g->replica = form->replica;
    g->epoch = form->epoch;
    g->stages = form->stages;
    g->tensor = form->tensor;
    g->ranks = mem_zalloc(ranks_n(g), sizeof(struct mock_rank *));
    DL_APPEND(f->groups, g);
    return g;
}

static void break_group(struct mock_group *g, struct mock_rank_place bad,
                        struct mock_rank_place bad_too, uint64_t now_us)
{
    if (g->broken)
        return;
    g->broken = true;
    g->broken_us = now_us;
    g->bad = bad;
    g->bad_too = bad_too;
}

static void break_if_cut(struct mock_fabric *f, const struct cut *c)
{
    struct mock_group *g = c->a->group;
    if (g == NULL || g != c->b->group)
        return;
    break_group(g, c->b->place, c->a->place, mock_fabric_now(f));
    tell_others(g, NULL);
}

enum status mock_fabric_join(struct mock_rank *r, const struct msg_form *form, bool alone)
{
    assert(r->group == NULL);
    struct mock_group *g = group_of(r->fabric, form);
    r->place = (struct mock_rank_place){(int32_t)form->my_stage, (int32_t)form->my_tensor};
    if (g->stages != form->stages || g->tensor != form->tensor)
        return STATUS_INTERNAL;
    if (g->ranks[rank_index(g, r->place)] != NULL)
        return STATUS_EXISTS;
    g->alone = alone;
    g->ranks[rank_index(g, r->place)] = r;
    g->present++;
    r->group = g;
    r->linked = false;
    for (size_t i = 0; i < r->fabric->cuts_n; i++)
        break_if_cut(r->fabric, &r->fabric->cuts[i]);
    return STATUS_OK;
}

void mock_fabric_link(struct mock_rank *r)
{
    assert(r->group != NULL && !r->linked);
    r->linked = true;
    r->group->linked++;
    tell_others(r->group, r);
}

void mock_fabric_leave(struct mock_rank *r)
{
    struct mock_group *g = r->group;
    if (g == NULL)
        return;
    break_group(g, r->place, r->place, mock_fabric_now(r->fabric));
    g->ranks[rank_index(g, r->place)] = NULL;
    g->present--;
    g->linked -= r->linked;
    r->linked = false;
    r->group = NULL;
    tell_others(g, r);
    if (g->present == 0) {
        DL_DELETE(r->fabric->groups, g);
        free(g->ranks);
        free(g);
    }
}

void mock_fabric_hang(struct mock_rank *r, bool hung)
{
    r->hung = hung;
    r->changed(r);
    if (r->group != NULL)
        tell_others(r->group, r);
}

void mock_fabric_cut(struct mock_rank *a, struct mock_rank *b, bool cut)
{
    struct mock_fabric *f = a->fabric;
    assert(a != b && f == b->fabric);
    for (size_t i = 0; i < f->cuts_n; i++) {
        struct cut *c = &f->cuts[i];
        if ((c->a == a && c->b == b) || (c->a == b && c->b == a)) {
            *c = f->cuts[--f->cuts_n];
            i--;
        }
    }
    if (!cut)
        return;
    MEM_GROW(f->cuts, f->cuts_n, f->cuts_cap);
    f->cuts[f->cuts_n++] = (struct cut){a, b};
    break_if_cut(f, &f->cuts[f->cuts_n - 1]);
    if (a->group != NULL && a->group != b->group)
        tell_others(a->group, NULL); // what goes between the groups is lost
}

void mock_fabric_forget(struct mock_rank *r)
{
    struct mock_fabric *f = r->fabric;
    for (size_t i = f->cuts_n; i-- > 0;)
        if (f->cuts[i].a == r || f->cuts[i].b == r)
            f->cuts[i] = f->cuts[--f->cuts_n];
}

bool mock_group_hangs(const struct mock_group *g)
{
    for (uint32_t i = 0; i < ranks_n(g); i++)
        if (g->ranks[i] != NULL && g->ranks[i]->hung)
            return true;
    return false;
}

bool mock_group_lies(const struct mock_group *g)
{
    for (uint32_t i = 0; i < ranks_n(g); i++)
        if (g->ranks[i] != NULL && g->ranks[i]->lies)
            return true;
    return false;
}

bool mock_group_complete(const struct mock_group *g)
{
    return !g->broken && (g->alone || g->linked == ranks_n(g)) && !mock_group_hangs(g);
}

struct mock_rank_place mock_group_suspect(const struct mock_rank *r)
{
    const struct mock_group *g = r->group;
    bool me = g->bad.stage == r->place.stage && g->bad.tensor == r->place.tensor;
    return me ? g->bad_too : g->bad;
}

double mock_group_slow(const struct mock_group *g, uint32_t stage)
{
    double slow = 1;
    for (uint32_t t = 0; t < g->tensor; t++) {
        const struct mock_rank *r = g->ranks[stage * g->tensor + t];
        if (r != NULL && r->slow > slow)
            slow = r->slow;
    }
    return slow;
}
