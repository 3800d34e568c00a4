// Applies records one by one. A leader is trusted to be one of ours, but not to be without bugs:
// numbers must follow each other and tokens must fit the journal.
#include "coordinator/shadow.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

enum { SHADOW_REQUESTS = 1 << 20 };

struct shadow_request *shadow_find(const struct shadow *s, uint64_t id)
{
    struct shadow_request *q;
    HASH_FIND(hh, s->requests, &id, sizeof id, q);
    return q;
}

void shadow_remove(struct shadow *s, struct shadow_request *q)
{
    HASH_DEL(s->requests, q);
    s->n--;
}

void shadow_put(struct shadow *s, struct shadow_request *q)
{
    HASH_ADD(hh, s->requests, restore.submit.request, sizeof q->restore.submit.request, q);
    s->n++;
}

void shadow_request_free(struct shadow_request *q)
{
    for (uint32_t i = 0; i < q->restore.emitted_n; i++)
        free((void *)q->tokens[i].top);
    for (uint32_t i = 0; i < q->head.stop_n; i++)
        free((void *)q->head.stop[i].v);
    free((void *)q->head.stop);
    free((void *)q->restore.submit.prompt);
    free((void *)q->restore.submit.tenant);
    free((void *)q->restore.submit.model);
    free((void *)q->restore.submit.pool);
    free((void *)q->restore.emitted);
    free((void *)q->restore.text);
    free(q->tokens);
    free(q);
}

void shadow_clear(struct shadow *s)
{
    struct shadow_request *q, *next;
    HASH_ITER(hh, s->requests, q, next)
    {
        shadow_remove(s, q);
        shadow_request_free(q);
    }
    struct shadow_mark *m, *after;
    HASH_ITER(hh, s->marks, m, after)
    {
        HASH_DEL(s->marks, m);
        free(m);
    }
    free(s->state);
    *s = (struct shadow){0};
}

static void append(struct shadow_request *q, const struct token_out *t)
{
    size_t n = q->restore.emitted_n;
    int32_t *emitted = (int32_t *)q->restore.emitted;
    MEM_GROW(emitted, n, q->emitted_cap);
    MEM_GROW(q->tokens, n, q->tokens_cap);
    emitted[n] = t->token;
    q->tokens[n] = *t;
    q->tokens[n].finish = FINISH_NONE;
    q->tokens[n].top = mem_dup(t->top, t->top_n * sizeof *t->top);
    q->restore.emitted = emitted;
    q->restore.emitted_n++;
}

static void take_head(struct shadow_request *q, const struct copy_head *h)
{
    struct rpc_text *stop = mem_zalloc(h->stop_n + 1, sizeof *stop);
    for (uint32_t i = 0; i < h->stop_n; i++) {
        stop[i].n = h->stop[i].n;
        stop[i].v = mem_dup(h->stop[i].v, h->stop[i].n);
    }
    q->head = *h;
    q->head.stop = stop;
}

struct shadow_request *shadow_request_create(const struct copy_record *r)
{
    const struct journal *j = &r->journal;
    struct shadow_request *q = mem_zalloc(1, sizeof *q);
    q->restore.submit = (struct coord_submit){
        .request = r->request,
        .prompt = j->prompt_n ? mem_dup(j->prompt, j->prompt_n * sizeof *j->prompt) : NULL,
        .prompt_n = j->prompt_n ? j->prompt_n : r->prompt_n,
        .max_tokens = j->max_tokens,
        .stop_ids_n = j->stop_ids_n,
        .sampling = j->sampling,
        .tenant = mem_strdup(r->tenant),
        .model = mem_strdup(r->model ? r->model : ""),
        .pool = mem_strdup(r->pool ? r->pool : ""),
        .band = j->band,
        .session = r->session,
    };
    memcpy(q->restore.submit.stop_ids, j->stop_ids, sizeof j->stop_ids);
    q->restore.fingerprint = r->fingerprint;
    q->restore.text = mem_strdup("");
    take_head(q, &r->head);
    for (uint32_t i = 0; i < j->emitted_n; i++)
        append(q, &(struct token_out){.index = i, .token = j->emitted[i]});
    return q;
}

struct copy_record shadow_request_record(const struct shadow_request *q)
{
    const struct coord_submit *s = &q->restore.submit;
    struct copy_record r = {
        .what = COPY_SUBMIT,
        .request = s->request,
        .tenant = s->tenant,
        .model = s->model,
        .pool = s->pool,
        .session = s->session,
        .fingerprint = q->restore.fingerprint,
        .prompt_n = s->prompt ? 0 : s->prompt_n,
        .journal = {.request = s->request,
                    .prompt = s->prompt,
                    .prompt_n = s->prompt ? s->prompt_n : 0,
                    .emitted = q->restore.emitted,
                    .emitted_n = q->restore.emitted_n,
                    .max_tokens = s->max_tokens,
                    .stop_ids_n = s->stop_ids_n,
                    .band = s->band,
                    .sampling = s->sampling},
        .head = q->head,
    };
    memcpy(r.journal.stop_ids, s->stop_ids, sizeof r.journal.stop_ids);
    return r;
}

static enum status submit(struct shadow *s, const struct copy_record *r, struct errmsg *err)
{
    if (shadow_find(s, r->request))
        return errmsg_set(err, STATUS_LINK_PROTOCOL, "request %" PRIu64 " came twice", r->request);
    if (s->n == SHADOW_REQUESTS)
        return errmsg_set(err, STATUS_FULL, "%d requests are copied already", SHADOW_REQUESTS);
    shadow_put(s, shadow_request_create(r));
    return STATUS_OK;
}

void shadow_request_tokens(struct shadow_request *q, const struct copy_record *r)
{
    for (uint32_t i = 0; i < r->tokens_n; i++)
        append(q, &r->tokens[i]);
    q->restore.fingerprint = r->fingerprint;
}

static enum status tokens(struct shadow_request *q, const struct copy_record *r, struct errmsg *err)
{
    if (r->first != q->restore.emitted_n || q->restore.finish)
        return errmsg_set(err, STATUS_LINK_PROTOCOL,
                          "request %" PRIu64 ": token %u came, %u are here%s", r->request, r->first,
                          q->restore.emitted_n, q->restore.finish ? ", and it is finished" : "");
    shadow_request_tokens(q, r);
    return STATUS_OK;
}

static enum status done(struct shadow_request *q, const struct copy_record *r, struct errmsg *err)
{
    if (q->restore.finish || !r->finish || r->emitted_n > q->restore.emitted_n)
        return errmsg_set(err, STATUS_LINK_PROTOCOL,
                          "request %" PRIu64 ": finished twice, or with tokens that did not come",
                          r->request);
    while (q->restore.emitted_n > r->emitted_n) // behind a stop string
        free((void *)q->tokens[--q->restore.emitted_n].top);
    q->restore.finish = r->finish;
    q->restore.status = r->status;
    q->restore.cached_n = r->cached_n;
    free((void *)q->restore.text);
    q->restore.text = mem_strdup(r->text);
    return STATUS_OK;
}

static void mark(struct shadow *s, const struct copy_record *r)
{
    struct shadow_mark *m;
    HASH_FIND_STR(s->marks, r->node, m);
    if (m && r->mark == COPY_MARK_NONE) {
        HASH_DEL(s->marks, m);
        free(m);
    } else if (m) {
        m->mark = r->mark;
    } else if (r->mark != COPY_MARK_NONE && HASH_COUNT(s->marks) < LIMIT_NODES) {
        m = mem_zalloc(1, sizeof *m);
        snprintf(m->node, sizeof m->node, "%s", r->node);
        m->mark = r->mark;
        HASH_ADD_STR(s->marks, node, m);
    }
}

// SYNCED has the number of the last record that was sent to anybody; those before it have none.
static bool follows(const struct shadow *s, const struct copy_record *r)
{
    if (r->what == COPY_SYNCED)
        return !s->synced && r->seq;
    return s->synced ? r->seq == s->seq + 1 : r->seq == 0;
}

enum status shadow_take(struct shadow *s, const struct copy_record *r, struct errmsg *err)
{
    if (!follows(s, r))
        return errmsg_set(err, STATUS_LINK_PROTOCOL, "record %" PRIu64 " came after %" PRIu64,
                          r->seq, s->seq);
    s->seq = r->seq;
    if (r->epoch > s->epoch)
        s->epoch = r->epoch;
    struct shadow_request *q = r->request ? shadow_find(s, r->request) : NULL;
    switch (r->what) {
    case COPY_SUBMIT:
        return submit(s, r, err);
    case COPY_TOKENS:
        return q ? tokens(q, r, err) : STATUS_OK; // of one that was refused in the same breath
    case COPY_DONE:
        return q ? done(q, r, err) : STATUS_OK;
    case COPY_FORGET:
    case COPY_REFUSED:
        if (q) {
            shadow_remove(s, q);
            shadow_request_free(q);
        }
        return STATUS_OK;
    case COPY_ORDERS:
        free(s->state);
        s->state = mem_strdup(r->text);
        return STATUS_OK;
    case COPY_SYNCED:
        s->synced = true;
        return STATUS_OK;
    case COPY_QUEUED:
        return STATUS_OK;
    case COPY_MARK:
        mark(s, r);
        return STATUS_OK;
    }
    return errmsg_set(err, STATUS_LINK_PROTOCOL, "a record of kind %d", r->what);
}
