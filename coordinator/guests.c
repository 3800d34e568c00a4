#include "coordinator/guests.h"

#include <stdlib.h>
#include <uthash.h>

#include "base/mem.h"

struct guest {
    uint64_t request;
    UT_hash_handle hh;
};

static struct guest *find(const struct guests *g, uint64_t request)
{
    struct guest *r;
    HASH_FIND(hh, g->reads, &request, sizeof request, r);
    return r;
}

bool guests_has(const struct guests *g, uint64_t request)
{
    return find(g, request) != NULL;
}

bool guests_attach(struct guests *g, uint64_t request)
{
    if (find(g, request))
        return false;
    struct guest *r = mem_zalloc(1, sizeof *r);
    r->request = request;
    HASH_ADD(hh, g->reads, request, sizeof r->request, r);
    return true;
}

bool guests_detach(struct guests *g, uint64_t request)
{
    struct guest *r = find(g, request);
    if (!r)
        return false;
    HASH_DEL(g->reads, r);
    free(r);
    return true;
}

uint64_t guests_pop(struct guests *g)
{
    uint64_t request = g->reads ? g->reads->request : 0;
    guests_detach(g, request);
    return request;
}
