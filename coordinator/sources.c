// Which nodes a forming one may read the model from. They are those that said with FORMED that they
// give their files, whose model is the pool's by its fingerprint, and that are connected and not under
// suspicion. Every rank is told a few, each from another place on, so that many that start at once
// spread over all.
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/mem.h"
#include "coordinator/core.h"

void sources_note(struct member *m, const struct msg_formed *f)
{
    const char *at[] = {f->weights.shm, f->weights.tcp, f->weights.verbs};
    char **to[] = {&m->weights.shm, &m->weights.tcp, &m->weights.verbs};
    for (int i = 0; i < 3; i++) {
        free(*to[i]);
        *to[i] = at[i] && at[i][0] ? mem_strdup(at[i]) : NULL;
    }
    m->held_fingerprint = f->fingerprint;
    m->loaded = f->loaded;
}

void sources_forget(struct member *m)
{
    sources_note(m, &(struct msg_formed){0});
}

static bool gives(const struct member *m)
{
    const bool trusted = m->state != COORD_NODE_LOST && m->state != COORD_NODE_EJECTED &&
                         m->state != COORD_NODE_SUSPECT && !m->doubt;
    return m->holds && trusted && m->conn &&
           (m->weights.shm || m->weights.tcp || m->weights.verbs);
}

// A pool that was never formed has no fingerprint yet: nobody can say that what others have is its
// model.
struct sources sources_find(struct coord *c, const struct pool *p)
{
    struct sources s = {.fingerprint = p->fingerprint};
    if (!s.fingerprint)
        return s;
    s.members = arena_alloc(&c->arena, c->members_n, sizeof *s.members);
    struct member *m;
    DL_FOREACH(c->members, m)
    if (gives(m) && m->held_fingerprint == s.fingerprint)
        s.members[s.n++] = m;
    return s;
}

void sources_offer(struct coord *c, const struct sources *s, const struct member *to, uint64_t turn,
                   struct msg_form *f)
{
    struct weight_source *list = arena_alloc(&c->arena, MSG_WEIGHT_SOURCES, sizeof *list);
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n && n < MSG_WEIGHT_SOURCES; i++) {
        const struct member *m = s->members[(turn + i) % s->n];
        const bool near = m->host_hash == to->host_hash && !strcmp(m->host, to->host);
        if (m == to || (!near && !m->weights.tcp && !m->weights.verbs))
            continue;
        list[n++] = (struct weight_source){
            .name = m->name,
            .addresses = {.shm = near && m->weights.shm ? m->weights.shm : "",
                          .tcp = m->weights.tcp ? m->weights.tcp : "",
                          .verbs = m->weights.verbs ? m->weights.verbs : ""}};
    }
    f->sources = list;
    f->sources_n = n;
    f->fingerprint = n ? s->fingerprint : 0;
}
