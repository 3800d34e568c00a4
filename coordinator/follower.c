// Three shadows and a table of readers.
#include "coordinator/follower.h"

#include <stdlib.h>

#include "base/mem.h"

// ---- to the leader ------------------------------------------------------------------------------

static void say_word(const struct follower *f, uint64_t request, enum copy_word_kind word)
{
    if (follower_synced(f))
        f->say(f->arg, &(struct copy){.kind = COPY_WORD, .word = {request, word}});
}

static void say_ask(const struct follower *f, const struct shadow_request *q, uint64_t now_us)
{
    if (!follower_synced(f))
        return;
    struct copy c = {.kind = COPY_ASK, .record = shadow_request_record(q)};
    uint64_t at_us = q->restore.submit.deadline_us;
    if (at_us) // a passed one is the leader's to refuse
        c.record.deadline_ms = at_us > now_us + 1000 ? (uint32_t)((at_us - now_us) / 1000) : 1;
    f->say(f->arg, &c);
}

// ---- readers ------------------------------------------------------------------------------------

static struct follower_read *read_find(const struct follower *f, uint64_t request)
{
    struct follower_read *r;
    HASH_FIND(hh, f->reads, &request, sizeof request, r);
    return r;
}

static struct follower_read *read_add(struct follower *f, uint64_t request)
{
    struct follower_read *r = read_find(f, request);
    if (!r) {
        r = mem_zalloc(1, sizeof *r);
        r->request = request;
        HASH_ADD(hh, f->reads, request, sizeof r->request, r);
    }
    r->n++;
    return r;
}

void follower_attach(struct follower *f, uint64_t request)
{
    if (read_add(f, request)->n == 1 && !shadow_find(&f->asks, request))
        say_word(f, request, COPY_WORD_ATTACH);
}

void follower_detach(struct follower *f, uint64_t request)
{
    struct follower_read *r = read_find(f, request);
    if (!r || --r->n)
        return;
    HASH_DEL(f->reads, r);
    free(r);
    say_word(f, request, COPY_WORD_DETACH);
}

void follower_cancel(struct follower *f, uint64_t request)
{
    struct follower_read *r = read_find(f, request);
    if (r) // a leader that dies before it hears of it is followed by one that does
        r->cancel = true;
    say_word(f, request, COPY_WORD_CANCEL);
}

// ---- requests -----------------------------------------------------------------------------------

void follower_submit(struct follower *f, const struct copy_record *submit, uint64_t deadline_us,
                     uint64_t now_us)
{
    struct shadow_request *q = shadow_request_create(submit);
    q->restore.submit.deadline_us = deadline_us;
    shadow_put(&f->asks, q);
    read_add(f, submit->request);
    say_ask(f, q, now_us);
}

const struct shadow_request *follower_find(const struct follower *f, uint64_t request)
{
    const struct shadow_request *q = shadow_find(&f->shadow, request);
    return q || follower_synced(f) ? q : shadow_find(&f->before, request);
}

uint64_t follower_overdue(struct follower *f, uint64_t now_us)
{
    struct shadow_request *q, *next;
    HASH_ITER(hh, f->asks.requests, q, next)
    {
        uint64_t id = q->restore.submit.request;
        struct follower_read *r = read_find(f, id);
        if (follower_synced(f) || !q->restore.submit.deadline_us ||
            now_us < q->restore.submit.deadline_us)
            continue;
        shadow_remove(&f->asks, q);
        shadow_request_free(q);
        if (r) {
            HASH_DEL(f->reads, r);
            free(r);
        }
        return id;
    }
    return 0;
}

static void drop(struct shadow *s, uint64_t request)
{
    struct shadow_request *q = shadow_find(s, request);
    if (!q)
        return;
    shadow_remove(s, q);
    shadow_request_free(q);
}

// ---- the leader ---------------------------------------------------------------------------------

bool follower_synced(const struct follower *f)
{
    return f->up && f->shadow.synced;
}

void follower_up(struct follower *f)
{
    // A leader that was lost before it had told all leaves what the one before it told.
    if (f->shadow.synced) {
        shadow_clear(&f->before);
        f->before = f->shadow;
        f->shadow = (struct shadow){0};
    } else {
        shadow_clear(&f->shadow);
    }
    f->up = true;
}

void follower_down(struct follower *f)
{
    f->up = false;
}

// A request that this leader does not know, though a client here reads it: its record never came to
// this leader. Finished ones too: their clients may not have seen all.
static void ask_again(struct follower *f, uint64_t now_us)
{
    struct shadow_request *q, *next;
    HASH_ITER(hh, f->before.requests, q, next)
    {
        uint64_t id = q->restore.submit.request;
        if (shadow_find(&f->shadow, id) || shadow_find(&f->asks, id) ||
            (!f->offer_all && !read_find(f, id)) || q->restore.finish != FINISH_NONE || !q->restore.submit.prompt)
            continue;
        shadow_remove(&f->before, q);
        q->restore.submit.deadline_us = 0; // it was admitted once
        shadow_put(&f->asks, q);
    }
    HASH_ITER(hh, f->asks.requests, q, next)
    {
        say_ask(f, q, now_us);
        if (!read_find(f, q->restore.submit.request))
            say_word(f, q->restore.submit.request, COPY_WORD_DETACH);
    }
    f->offer_all = false;
}

static void on_synced(struct follower *f, uint64_t now_us)
{
    struct follower_read *r, *next;
    ask_again(f, now_us);
    HASH_ITER(hh, f->reads, r, next)
    {
        if (!shadow_find(&f->asks, r->request))
            say_word(f, r->request, COPY_WORD_ATTACH);
        if (r->cancel)
            say_word(f, r->request, COPY_WORD_CANCEL);
    }
    shadow_clear(&f->before);
}

static bool as_action(const struct copy_record *r, struct coord_action *out)
{
    switch (r->what) {
    case COPY_SUBMIT: // it is accepted
        *out = (struct coord_action){.kind = COORD_TOKENS, .tokens = {.request = r->request}};
        return true;
    case COPY_TOKENS:
        *out = (struct coord_action){
            .kind = COORD_TOKENS,
            .tokens = {r->request, r->first, r->tokens, r->tokens_n, r->fingerprint}};
        return true;
    case COPY_QUEUED:
        *out = (struct coord_action){.kind = COORD_QUEUED,
                                     .queued = {r->request, r->position, r->eta_ms}};
        return true;
    case COPY_DONE:
        *out = (struct coord_action){.kind = COORD_DONE,
                                     .done = {.request = r->request,
                                              .finish = r->finish,
                                              .status = r->status,
                                              .text = r->text,
                                              .emitted_n = r->emitted_n,
                                              .cached_n = r->cached_n}};
        return true;
    case COPY_REFUSED:
        *out = (struct coord_action){.kind = COORD_REFUSED,
                                     .refused = {r->request,
                                                 r->reason <= COORD_REFUSE_BAD_REQUEST && r->reason
                                                     ? (enum coord_refusal)r->reason
                                                     : COORD_REFUSE_BAD_REQUEST,
                                                 r->retry_after_ms, r->text}};
        return true;
    case COPY_FORGET:
        *out = (struct coord_action){.kind = COORD_FORGET, .forget = {r->request}};
        return true;
    case COPY_SYNCED:
    case COPY_MARK:
    case COPY_ORDERS:
        return false;
    }
    return false;
}

enum status follower_take(struct follower *f, const struct copy_record *r, uint64_t now_us,
                          bool *seen, struct coord_action *out, struct errmsg *err)
{
    *seen = false;
    enum status st = shadow_take(&f->shadow, r, err);
    if (st)
        return st;
    if (r->request) // whatever it is, the leader has heard of it
        drop(&f->asks, r->request);
    if (r->what == COPY_SYNCED)
        on_synced(f, now_us);
    *seen = as_action(r, out);
    if (*seen && out->kind == COORD_DONE) {
        const struct shadow_request *q = shadow_find(&f->shadow, r->request);
        out->done.prompt_n = q ? q->restore.submit.prompt_n : 0;
    }
    if (r->what == COPY_REFUSED) { // known no more
        struct follower_read *reader = read_find(f, r->request);
        if (reader) {
            HASH_DEL(f->reads, reader);
            free(reader);
        }
    }
    return STATUS_OK;
}

// ---- leading ------------------------------------------------------------------------------------

const char *follower_state(const struct follower *f)
{
    return f->shadow.state ? f->shadow.state : f->before.state;
}

void follower_inherit(struct follower *f, const struct follower_heir *h)
{
    struct shadow *from[] = {&f->shadow, &f->before};
    struct shadow_request *q, *next;
    struct shadow_mark *m, *after;
    bool whole = f->shadow.synced;
    HASH_ITER(hh, (whole ? &f->shadow : &f->before)->marks, m, after)
    h->mark(h->arg, m);
    for (int i = 0; i < 2; i++)
        HASH_ITER(hh, from[i]->requests, q, next)
        {
            uint64_t id = q->restore.submit.request;
            // Half-told by a leader that died then: what is longer of the two is what counts.
            const struct shadow_request *other =
                whole ? NULL : shadow_find(from[1 - i], id);
            if (other && (other->restore.emitted_n > q->restore.emitted_n ||
                          (other->restore.emitted_n == q->restore.emitted_n && i == 1)))
                continue;
            if (i == 1 && whole)
                continue;
            if (!q->restore.submit.prompt && q->restore.finish == FINISH_NONE)
                continue; // its end did not come
            h->request(h->arg, q, false);
        }
    HASH_ITER(hh, f->asks.requests, q, next)
    h->request(h->arg, q, q->restore.emitted_n == 0 && q->restore.finish == FINISH_NONE);
    struct follower_read *r, *rest;
    HASH_ITER(hh, f->reads, r, rest)
    {
        h->reads(h->arg, r->request, r->n, r->cancel);
    }
    follower_finish(f);
}

void follower_finish(struct follower *f)
{
    shadow_clear(&f->shadow);
    shadow_clear(&f->before);
    shadow_clear(&f->asks);
    struct follower_read *r, *next;
    HASH_ITER(hh, f->reads, r, next)
    {
        HASH_DEL(f->reads, r);
        free(r);
    }
    f->up = false;
}
