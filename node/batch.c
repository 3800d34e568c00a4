// Life of the batch, journals in, cancels, and the check of every invariant.
#include "node/batch.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/mem.h"
#include "node/batch_int.h"

static enum status config_check(const struct batch_config *c, struct errmsg *e)
{
    const struct {
        const char *name;
        uint32_t value, max;
    } fields[] = {
        {"max_seqs", c->max_seqs, 1 << 16},
        {"max_rows", c->max_rows, LIMIT_CONTEXT},
        {"pipeline", c->pipeline, LIMIT_STAGES},
        {"max_context", c->max_context, LIMIT_CONTEXT},
        {"kv_blocks", c->kv_blocks, 1 << 28},
        {"block_tokens", c->block_tokens, 1 << 16},
        {"prefill_chunk", c->prefill_chunk, LIMIT_CONTEXT},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (fields[i].value < 1 || fields[i].value > fields[i].max)
            return errmsg_set(e, STATUS_INTERNAL, "engine formed with %s = %u, want 1..%u",
                              fields[i].name, fields[i].value, fields[i].max);
    return STATUS_OK;
}

static uint32_t min_u32(uint64_t a, uint32_t b)
{
    return a < b ? (uint32_t)a : b;
}

static void flight_init(struct flight *f, uint32_t slots)
{
    f->opens = mem_zalloc(slots, sizeof *f->opens);
    f->entries = mem_zalloc(slots, sizeof *f->entries);
    f->closes = mem_zalloc(slots, sizeof *f->closes);
    f->seqs = mem_zalloc(slots, sizeof *f->seqs);
}

static void flight_finish(struct flight *f)
{
    free(f->opens);
    free(f->entries);
    free(f->closes);
    free(f->seqs);
}

struct batch *batch_create(const struct batch_config *c, struct errmsg *e)
{
    if (config_check(c, e) < 0)
        return NULL;
    struct batch *b = mem_zalloc(1, sizeof *b);
    b->config = *c;
    b->slots = min_u32(c->max_seqs, c->max_rows);
    b->context = min_u32((uint64_t)c->kv_blocks * c->block_tokens, c->max_context);
    b->pool = kvpool_create(
        &(struct kvpool_config){.blocks = c->kv_blocks, .block_tokens = c->block_tokens});
    b->free_slots = mem_zalloc(b->slots, sizeof *b->free_slots);
    for (uint32_t i = b->slots; i-- > 0;)
        b->free_slots[b->free_slots_n++] = i;
    b->closes = mem_zalloc(b->slots, sizeof *b->closes);
    b->flights = mem_zalloc(c->pipeline, sizeof *b->flights);
    for (uint32_t i = 0; i < c->pipeline; i++)
        flight_init(&b->flights[i], b->slots);
    b->ready = mem_zalloc(b->slots, sizeof *b->ready);
    b->tokens = mem_zalloc(b->slots, sizeof *b->tokens);
    b->tops = mem_zalloc((size_t)b->slots * LIMIT_TOP_LOGPROBS, sizeof *b->tops);
    b->cancelled = mem_zalloc(b->slots, sizeof *b->cancelled);
    b->refs = mem_zalloc(c->kv_blocks, sizeof *b->refs);
    return b;
}

static void list_destroy(struct sequence *list)
{
    struct sequence *s, *next;
    DL_FOREACH_SAFE(list, s, next)
    {
        s->blocks_n = 0; // the pool goes as a whole
        sequence_destroy(s);
    }
}

void batch_destroy(struct batch *b)
{
    if (b == NULL)
        return;
    list_destroy(b->waiting);
    list_destroy(b->running);
    batch_leases_destroy(b);
    for (uint32_t i = 0; i < b->config.pipeline; i++)
        flight_finish(&b->flights[i]);
    kvpool_destroy(b->pool);
    free(b->free_slots);
    free(b->closes);
    free(b->flights);
    free(b->ready);
    free(b->tokens);
    free(b->tops);
    free(b->cancelled);
    free(b->refs);
    free(b);
}

uint32_t batch_context(const struct batch *b)
{
    return b->context;
}

uint32_t batch_slots(const struct batch *b)
{
    return b->slots;
}

void batch_list_add(struct sequence **list, struct sequence *s)
{
    struct sequence *at;
    DL_FOREACH(*list, at)
    if (sequence_before(s, at))
        break;
    if (at != NULL)
        DL_PREPEND_ELEM(*list, at, s);
    else
        DL_APPEND(*list, s);
}

struct sequence *batch_find(const struct batch *b, uint64_t request)
{
    struct sequence *s;
    DL_FOREACH(b->waiting, s)
    if (s->request == request)
        return s;
    DL_FOREACH(b->running, s)
    if (s->request == request)
        return s;
    return NULL;
}

bool batch_has(const struct batch *b, uint64_t request)
{
    return batch_find(b, request) != NULL;
}

static enum status ids_check(const struct batch *b, const char *field, const int32_t *ids,
                             uint32_t n, struct errmsg *e)
{
    for (uint32_t i = 0; i < n; i++)
        if (ids[i] < 0 || (b->config.vocab > 0 && (uint32_t)ids[i] >= b->config.vocab))
            return errmsg_set(e, STATUS_BAD_REQUEST, "%s[%u] = %d is no token of %u", field, i,
                              ids[i], b->config.vocab);
    return STATUS_OK;
}

static enum status journal_check(const struct batch *b, const struct journal *j, struct errmsg *e)
{
    if (j->request == 0 || j->prompt_n == 0)
        return errmsg_set(e, STATUS_BAD_REQUEST, "request %llu with %u prompt tokens",
                          (unsigned long long)j->request, j->prompt_n);
    if (j->max_tokens <= j->emitted_n || j->stop_ids_n > MSG_STOP_IDS)
        return errmsg_set(e, STATUS_BAD_REQUEST, "max_tokens %u, emitted %u, stop ids %u",
                          j->max_tokens, j->emitted_n, j->stop_ids_n);
    if (j->sampling.top_logprobs > LIMIT_TOP_LOGPROBS)
        return errmsg_set(e, STATUS_BAD_REQUEST, "top_logprobs %u, at most %d",
                          j->sampling.top_logprobs, LIMIT_TOP_LOGPROBS);
    if ((uint64_t)j->prompt_n + j->emitted_n >= b->context)
        return errmsg_set(e, STATUS_TOO_LARGE, "prompt %u + emitted %u tokens, context %u",
                          j->prompt_n, j->emitted_n, b->context);
    enum status s = ids_check(b, "prompt", j->prompt, j->prompt_n, e);
    return s < 0 ? s : ids_check(b, "emitted", j->emitted, j->emitted_n, e);
}

enum status batch_add(struct batch *b, const struct journal *j, struct errmsg *e)
{
    if (batch_has(b, j->request))
        return errmsg_set(e, STATUS_EXISTS, "request %llu is here already",
                          (unsigned long long)j->request);
    enum status st = journal_check(b, j, e);
    if (st < 0)
        return st;
    if (b->waiting_n + b->running_n >= 2 * b->slots + BATCH_PROBES)
        return errmsg_set(e, STATUS_FULL, "%u sequences are here, credits were %u",
                          b->waiting_n + b->running_n, b->slots);
    struct sequence *s =
        sequence_create(j, &(struct sequence_limits){.max_context = b->context,
                                                     .block_tokens = b->config.block_tokens});
    s->arrival = ++b->arrivals;
    batch_list_add(&b->waiting, s);
    b->waiting_n++;
    return STATUS_OK;
}

void batch_prefill_only(struct batch *b, uint64_t request)
{
    struct sequence *s = batch_find(b, request);
    assert(s != NULL);
    s->prefill_only = true;
}

void batch_vacate(struct batch *b, struct sequence *s)
{
    assert(s->state != SEQUENCE_WAITING && s->under_way == 0);
    kvpool_release(b->pool, s->blocks, s->blocks_n);
    s->blocks_n = s->blocks_sent = 0;
    if (s->opened)
        b->closes[b->closes_n++] = s->slot;
    s->opened = false;
    b->free_slots[b->free_slots_n++] = s->slot;
    DL_DELETE(b->running, s);
    b->running_n--;
}

void batch_remove(struct batch *b, struct sequence *s)
{
    if (s->state == SEQUENCE_WAITING) {
        DL_DELETE(b->waiting, s);
        b->waiting_n--;
    } else {
        batch_vacate(b, s);
    }
    sequence_destroy(s);
}

enum status batch_cancel(struct batch *b, uint64_t request)
{
    struct sequence *s = batch_find(b, request);
    if (s == NULL)
        return STATUS_NOT_FOUND;
    if (s->under_way > 0) {
        s->cancelled = true;
        return STATUS_PENDING;
    }
    batch_remove(b, s);
    return STATUS_OK;
}

uint32_t batch_kv_changes(struct batch *b, struct kv_change *out, uint32_t max)
{
    return kvpool_changes(b->pool, out, max);
}

uint32_t batch_kv_changes_n(const struct batch *b)
{
    return kvpool_changes_n(b->pool);
}

void batch_kv_tell_all(struct batch *b)
{
    kvpool_tell_all(b->pool);
}

uint64_t batch_kv_digest(const struct batch *b)
{
    return kvpool_digest(b->pool);
}

struct batch_load batch_load(const struct batch *b)
{
    return (struct batch_load){
        .running = b->running_n,
        .waiting = b->waiting_n,
        .under_way = b->flights_n,
        .kv_blocks = b->config.kv_blocks,
        .kv_free = kvpool_available(b->pool),
        .leases = b->leases_n,
        .preemptions = b->preemptions,
        .prefix_tokens = b->prefix_tokens,
    };
}

static uint32_t plans_with(const struct batch *b, const struct sequence *s)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < b->flights_n; i++) {
        const struct flight *f = &b->flights[(b->flights_first + i) % b->config.pipeline];
        for (uint32_t k = 0; k < f->plan.entries_n; k++)
            n += f->seqs[k] == s;
    }
    return n;
}

static void check_running(struct batch *b, const struct sequence *s)
{
    uint32_t bt = b->config.block_tokens;
    assert(s->state != SEQUENCE_WAITING);
    assert(s->slot < b->slots && plans_with(b, s) == s->under_way);
    assert(s->pos_done <= s->pos_sent && s->pos_sent <= s->tokens_n);
    assert((s->pos_done == s->pos_sent) == (s->under_way == 0));
    assert((uint64_t)s->blocks_n * bt >= s->pos_sent && s->blocks_sent <= s->blocks_n);
    assert(s->tokens_n <= s->tokens_cap && s->tokens_n < b->context);
    assert(s->published == s->pos_done / bt);
    assert(s->state != SEQUENCE_DECODE || s->under_way <= 1);
    assert(!s->cancelled || s->under_way > 0);
    for (uint32_t i = 0; i < s->blocks_n; i++)
        b->refs[s->blocks[i]]++;
}

static void check_writers(const struct batch *b, const struct sequence *s)
{
    for (uint32_t i = s->pos_done / b->config.block_tokens; i < s->blocks_n; i++)
        assert(kvpool_refs(b->pool, s->blocks[i]) == 1); // not full: nobody else may see it
}

void batch_check(const struct batch *cb)
{
    struct batch *b = (struct batch *)cb; // refs is scratch
    struct sequence *s;
    uint32_t waiting = 0, running = 0;
    memset(b->refs, 0, b->config.kv_blocks * sizeof *b->refs);
    DL_FOREACH(b->waiting, s)
    {
        assert(s->state == SEQUENCE_WAITING && s->under_way == 0 && s->blocks_n == 0);
        assert(s->next == NULL || sequence_before(s, s->next));
        waiting++;
    }
    DL_FOREACH(b->running, s)
    {
        check_running(b, s);
        check_writers(b, s);
        assert(s->next == NULL || sequence_before(s, s->next));
        running++;
    }
    assert(waiting == b->waiting_n && running == b->running_n);
    assert(b->running_n + b->free_slots_n == b->slots && b->closes_n <= b->slots);
    batch_leases_check(b);
    kvpool_check(b->pool, b->refs);
}
