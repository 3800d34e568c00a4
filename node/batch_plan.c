// Admission, preemption and the filling of plans. The rules are in batch.h.
#include <assert.h>
#include <string.h>
#include <utlist.h>

#include "node/batch_int.h"

static uint32_t blocks_for(const struct batch *b, uint32_t positions)
{
    return (positions + b->config.block_tokens - 1) / b->config.block_tokens;
}

// ---- admission and preemption ----

struct prefix {
    struct kv_chain chain;
    uint32_t blocks; // found, written to s->blocks
    uint32_t idle;   // of them, those that nobody holds
};

// At least one row stays to be computed.
static struct prefix find_prefix(const struct batch *b, struct sequence *s)
{
    struct prefix f = {.blocks = 0};
    uint32_t bt = b->config.block_tokens;
    uint32_t most = (s->tokens_n - 1) / bt;
    while (f.blocks < most && kvpool_find(b->pool, &f.chain, s->tokens + (size_t)f.blocks * bt,
                                          &s->blocks[f.blocks])) {
        f.idle += kvpool_refs(b->pool, s->blocks[f.blocks]) == 0;
        f.blocks++;
    }
    return f;
}

uint32_t batch_headroom(const struct batch *b)
{
    return b->running_n > 0 ? b->config.kv_blocks / 64 : 0;
}

static void take_blocks(struct batch *b, struct sequence *s, uint32_t total)
{
    while (s->blocks_n < total) {
        bool ok = kvpool_take(b->pool, &s->blocks[s->blocks_n]);
        assert(ok);
        s->blocks_n++;
    }
}

static void enter_prefill(struct batch *b, struct sequence *s, const struct prefix *f)
{
    uint32_t hit = f->blocks * b->config.block_tokens;
    s->chain = f->chain;
    s->published = f->blocks;
    s->pos_sent = s->pos_done = hit;
    if (!s->admitted)
        s->cached = hit < s->prompt_n ? hit : s->prompt_n;
    s->admitted = true;
    b->prefix_tokens += hit;
    s->slot = b->free_slots[--b->free_slots_n];
    DL_DELETE(b->waiting, s);
    b->waiting_n--;
    sequence_enter(s, SEQUENCE_PREFILL);
    batch_list_add(&b->running, s);
    b->running_n++;
}

static bool admit(struct batch *b, struct sequence *s)
{
    if (b->free_slots_n == 0)
        return false;
    struct prefix f = find_prefix(b, s);
    uint32_t total = blocks_for(b, s->tokens_n);
    uint32_t available = kvpool_available(b->pool) - f.idle;
    if (available < (uint64_t)(total - f.blocks) + batch_headroom(b)) {
        b->starved |= b->running_n == 0 && b->leases_n > 0;
        return false;
    }
    for (uint32_t i = 0; i < f.blocks; i++)
        kvpool_ref(b->pool, s->blocks[i]);
    s->blocks_n = f.blocks;
    take_blocks(b, s, total);
    enter_prefill(b, s, &f);
    return true;
}

static void preempt(struct batch *b, struct sequence *s)
{
    batch_vacate(b, s);
    sequence_enter(s, SEQUENCE_WAITING);
    batch_list_add(&b->waiting, s);
    b->waiting_n++;
    b->preemptions++;
}

// The last in the order of those in no plan, or NULL.
static struct sequence *least(const struct batch *b)
{
    if (b->running == NULL)
        return NULL;
    struct sequence *s = b->running->prev; // tail
    while (s->under_way > 0 && s != b->running)
        s = s->prev;
    return s->under_way == 0 ? s : NULL;
}

static void admit_waiting(struct batch *b)
{
    while (b->waiting != NULL) {
        struct sequence *head = b->waiting;
        if (admit(b, head))
            continue;
        struct sequence *victim = least(b);
        if (victim == NULL || victim->band >= head->band)
            return;
        preempt(b, victim);
    }
}

// ---- filling a plan ----

static void open_slot(struct flight *f, struct sequence *s)
{
    f->opens[f->plan.opens_n++] = (struct plan_open){
        .slot = s->slot,
        .index0 = sequence_index(s),
        .sampling = s->sampling,
        .tokens = s->tokens,
        .tokens_n = s->tokens_n,
        .prompt_n = s->prompt_n,
    };
    s->opened = true;
}

static void add_rows(struct flight *f, struct sequence *s, uint32_t n)
{
    if (!s->opened)
        open_slot(f, s);
    f->seqs[f->plan.entries_n] = s;
    f->entries[f->plan.entries_n++] = (struct plan_entry){
        .slot = s->slot,
        .pos = s->pos_sent,
        .n = n,
        .sample = s->pos_sent + n == s->tokens_n,
        .tokens = s->tokens + s->pos_sent,
        .new_blocks = s->blocks + s->blocks_sent,
        .new_blocks_n = s->blocks_n - s->blocks_sent,
    };
    s->blocks_sent = s->blocks_n;
    s->pos_sent += n;
    s->under_way++;
    s->last_step = f->plan.step;
    f->plan.rows += n;
}

// Makes room for the next position, at the expense of lesser sequences if need be.
static bool grow(struct batch *b, struct sequence *s)
{
    uint32_t total = blocks_for(b, s->pos_sent + 1);
    while (s->blocks_n < total && !kvpool_take(b->pool, &s->blocks[s->blocks_n])) {
        struct sequence *victim = least(b);
        if (victim == NULL || !sequence_before(s, victim)) {
            b->starved |= b->leases_n > 0;
            return false;
        }
        preempt(b, victim);
    }
    s->blocks_n = total > s->blocks_n ? total : s->blocks_n;
    return true;
}

static bool decodes_sooner(const struct sequence *a, const struct sequence *b)
{
    if (a->band != b->band)
        return a->band > b->band;
    return a->last_step < b->last_step;
}

// Decoding sequences in no plan, in the order in which they get rows; *decoding_out counts those
// in plans too. Insertion sort: the running list is nearly in this order.
static uint32_t collect_ready(struct batch *b, uint32_t *decoding_out)
{
    uint32_t n = 0, decoding = 0;
    struct sequence *s;
    DL_FOREACH(b->running, s)
    {
        if (s->state != SEQUENCE_DECODE)
            continue;
        decoding++;
        if (s->under_way > 0)
            continue;
        uint32_t at = n++;
        for (; at > 0 && decodes_sooner(s, b->ready[at - 1]); at--)
            b->ready[at] = b->ready[at - 1];
        b->ready[at] = s;
    }
    *decoding_out = decoding;
    return n;
}

static uint32_t add_decode(struct batch *b, struct flight *f)
{
    uint32_t decoding;
    uint32_t ready = collect_ready(b, &decoding);
    uint32_t share = (decoding + b->config.pipeline - 1) / b->config.pipeline;
    for (uint32_t i = 0; i < ready && f->plan.rows < share; i++) {
        struct sequence *s = b->ready[i];
        // One further up may have preempted it.
        if (s->state == SEQUENCE_DECODE && grow(b, s))
            add_rows(f, s, 1);
    }
    return decoding;
}

// Opening sends a whole history: a plan opens no more than one context's worth.
static bool too_much_to_open(const struct batch *b, const struct sequence *s, uint64_t *opened)
{
    if (s->opened)
        return false;
    *opened += s->tokens_n;
    return *opened > b->config.max_context;
}

static void add_prefill(struct batch *b, struct flight *f, uint32_t decoding)
{
    uint64_t opened = 0;
    uint32_t budget = b->config.max_rows - f->plan.rows;
    bool share = decoding > 0 || b->config.pipeline > 1;
    if (share && b->config.prefill_chunk < budget)
        budget = b->config.prefill_chunk;
    struct sequence *s;
    DL_FOREACH(b->running, s)
    {
        if (budget == 0)
            return;
        uint32_t todo = sequence_todo(s);
        if (s->state != SEQUENCE_PREFILL || s->cancelled || todo == 0)
            continue;
        if (too_much_to_open(b, s, &opened))
            return;
        uint32_t n = todo < budget ? todo : budget;
        add_rows(f, s, n);
        budget -= n;
    }
}

static void begin(struct batch *b, struct flight *f)
{
    f->plan = (struct step_plan){
        .step = b->steps + 1,
        .epoch = b->config.epoch,
        .opens = f->opens,
        .entries = f->entries,
        .closes = f->closes,
    };
}

// Slots freed so far, also those vacated while this plan was filled.
static void commit(struct batch *b, struct flight *f)
{
    memcpy(f->closes, b->closes, b->closes_n * sizeof *b->closes);
    f->plan.closes_n = b->closes_n;
    b->closes_n = 0;
    b->steps = f->plan.step;
    b->flights_n++;
}

const struct step_plan *batch_plan(struct batch *b)
{
    uint32_t pipeline = b->config.pipeline;
    if (b->flights_n == pipeline)
        return NULL;
    struct flight *f = &b->flights[(b->flights_first + b->flights_n) % pipeline];
    admit_waiting(b);
    begin(b, f);
    uint32_t decoding = add_decode(b, f);
    add_prefill(b, f, decoding);
    if (f->plan.entries_n == 0)
        return NULL;
    commit(b, f);
    return &f->plan;
}
