// A queue of deep copies, each in one allocation.
#include "coordinator/copier.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

struct held {
    struct held *next;
    uint64_t need; // record that must be acknowledged
    bool told;     // handed out: freed at the next call
    struct coord_action action;
};

static bool is_seen(const struct coord_action *a)
{
    switch (a->kind) {
    case COORD_QUEUED:
    case COORD_TOKENS:
    case COORD_DONE:
    case COORD_REFUSED:
    case COORD_FORGET:
        return true;
    default:
        return false;
    }
}

static void put_text(struct held *h, const char **at)
{
    *at = strcpy((char *)(h + 1), *at);
}

static struct held *copy_tokens(const struct coord_action *a)
{
    uint32_t n = a->tokens.tokens_n, tops = 0;
    for (uint32_t i = 0; i < n; i++)
        tops += a->tokens.tokens[i].top_n;
    struct held *h =
        mem_zalloc(1, sizeof *h + n * sizeof(struct token_out) + tops * sizeof(struct logprob));
    struct token_out *t = (struct token_out *)(h + 1);
    struct logprob *top = (struct logprob *)(t + n);
    if (n)
        memcpy(t, a->tokens.tokens, n * sizeof *t);
    for (uint32_t i = 0; i < n; i++) {
        if (t[i].top_n)
            memcpy(top, t[i].top, t[i].top_n * sizeof *top);
        t[i].top = top;
        top += t[i].top_n;
    }
    h->action = *a;
    h->action.tokens.tokens = t;
    return h;
}

static struct held *copy_action(const struct coord_action *a)
{
    if (a->kind == COORD_TOKENS)
        return copy_tokens(a);
    const char *text = a->kind == COORD_DONE      ? a->done.text
                       : a->kind == COORD_REFUSED ? a->refused.text
                                                  : "";
    struct held *h = mem_zalloc(1, sizeof *h + strlen(text) + 1);
    h->action = *a;
    if (a->kind == COORD_DONE)
        put_text(h, &h->action.done.text);
    if (a->kind == COORD_REFUSED)
        put_text(h, &h->action.refused.text);
    return h;
}

static void drop_first(struct copier *c)
{
    struct held *h = c->first;
    c->first = h->next;
    if (!c->first)
        c->last = NULL;
    c->held_n--;
    free(h);
}

void copier_finish(struct copier *c)
{
    while (c->first)
        drop_first(c);
}

// ---- followers ----

static struct copier_peer *find(struct copier *c, uint64_t id)
{
    for (uint32_t i = 0; i < c->peers_n; i++)
        if (c->peers[i].id == id)
            return &c->peers[i];
    return NULL;
}

const struct copier_peer *copier_peer(const struct copier *c, uint64_t peer)
{
    return find((struct copier *)c, peer);
}

uint64_t copier_stuck(struct copier *c, uint64_t now_us, uint32_t limit_ms)
{
    for (uint32_t i = 0; i < c->peers_n; i++) {
        struct copier_peer *p = &c->peers[i];
        if (p->acked == c->seq || p->acked != p->watched || !p->watched_us) {
            p->watched = p->acked;
            p->watched_us = now_us;
        }
        uint64_t limit_us = limit_ms * (p->far ? 10000ull : 1000ull);
        if (now_us - p->watched_us > limit_us)
            return p->id;
    }
    return 0;
}

uint64_t copier_stamp(struct copier *c)
{
    if (!c->seq) // 1 is left to SYNCED before there was any record
        c->seq = 1;
    return ++c->seq;
}

uint64_t copier_syncing(struct copier *c, uint64_t peer, bool far)
{
    if (c->peers_n == COPIER_PEERS)
        return 0;
    if (!c->seq)
        c->seq = 1;
    c->peers[c->peers_n++] = (struct copier_peer){.id = peer, .far = far};
    return c->seq;
}

void copier_ack(struct copier *c, uint64_t peer, uint64_t seq)
{
    struct copier_peer *p = find(c, peer);
    if (!p || seq <= p->acked || seq > c->seq)
        return;
    p->acked = seq;
    p->synced = true;
}

void copier_lost(struct copier *c, uint64_t peer)
{
    struct copier_peer *p = find(c, peer);
    if (p)
        *p = c->peers[--c->peers_n];
}

// The last record that all have for whom clients wait.
static uint64_t safe(const struct copier *c)
{
    uint64_t least = c->seq;
    for (uint32_t i = 0; i < c->peers_n && c->mode == COPY_SYNC; i++)
        if (!c->peers[i].far && c->peers[i].acked < least)
            least = c->peers[i].acked;
    return least;
}

// ---- what waits ----

bool copier_hold(struct copier *c, const struct coord_action *a)
{
    if (!is_seen(a) || (safe(c) == c->seq && !c->first))
        return false;
    struct held *h = copy_action(a);
    h->need = c->seq;
    if (c->last)
        c->last->next = h;
    else
        c->first = h;
    c->last = h;
    c->held_n++;
    return true;
}

const struct coord_action *copier_next(struct copier *c)
{
    if (c->first && c->first->told)
        drop_first(c);
    if (!c->first || c->first->need > safe(c))
        return NULL;
    c->first->told = true;
    return &c->first->action;
}

bool copier_record(const struct coord_action *a, struct copy_record *out)
{
    switch (a->kind) {
    case COORD_TOKENS:
        *out = (struct copy_record){.what = COPY_TOKENS,
                                    .request = a->tokens.request,
                                    .first = a->tokens.first_index,
                                    .tokens = a->tokens.tokens,
                                    .tokens_n = a->tokens.tokens_n,
                                    .fingerprint = a->tokens.fingerprint};
        return true;
    case COORD_STATE:
        *out = (struct copy_record){.what = COPY_ORDERS, .text = a->state.text};
        return true;
    case COORD_DONE:
        *out = (struct copy_record){.what = COPY_DONE,
                                    .request = a->done.request,
                                    .finish = a->done.finish,
                                    .status = a->done.status,
                                    .text = a->done.text,
                                    .emitted_n = a->done.emitted_n,
                                    .cached_n = a->done.cached_n};
        return true;
    default:
        return false;
    }
}

struct copy_record copier_submit(const struct coord_request_view *v)
{
    struct copy_record r = {.what = COPY_SUBMIT,
                            .request = v->id,
                            .tenant = v->tenant,
                            .model = v->model,
                            .pool = v->pool,
                            .session = v->session,
                            .fingerprint = v->fingerprint,
                            .prompt_n = v->prompt ? 0 : v->prompt_n,
                            .journal = {.request = v->id,
                                        .prompt = v->prompt,
                                        .prompt_n = v->prompt ? v->prompt_n : 0,
                                        .max_tokens = v->max_tokens,
                                        .stop_ids_n = v->stop_ids_n,
                                        .band = v->band,
                                        .sampling = v->sampling}};
    memcpy(r.journal.stop_ids, v->stop_ids, v->stop_ids_n * sizeof *v->stop_ids);
    return r;
}

bool copier_record_after(const struct coord_action *a, struct copy_record *out)
{
    switch (a->kind) {
    case COORD_REFUSED:
        *out = (struct copy_record){.what = COPY_REFUSED,
                                    .request = a->refused.request,
                                    .reason = a->refused.reason,
                                    .retry_after_ms = a->refused.retry_after_ms,
                                    .text = a->refused.text};
        return true;
    case COORD_FORGET:
        *out = (struct copy_record){.what = COPY_FORGET, .request = a->forget.request};
        return true;
    default:
        return false;
    }
}
