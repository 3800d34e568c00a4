// Slots and blocks as a worker would keep them, with the bytes of a position replaced by one hash
// of all tokens up to it. Every read goes through the block table, so a scheduler's mistake shows
// up as a wrong token or, earlier, as a failed check.
#include "node/mock_cache.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/mem.h"

static const uint64_t hash_start = UINT64_C(0x6861646c6d6f636b);

struct slot {
    bool open;
    bool begun; // its first rows were computed
    struct sampling sampling;
    int32_t *tokens; // history, grown
    size_t tokens_n, tokens_cap;
    uint32_t *blocks; // table, grown
    size_t blocks_n, blocks_cap;
    uint32_t pos; // next to compute
    uint64_t in_step;
};

struct cached_block {
    uint32_t tables;     // open slots that name it
    uint64_t wrote_step; // newest step that wrote it
};

struct mock_cache {
    struct mock_config config;
    struct slot *slots;          // [max_seqs]
    struct cached_block *blocks; // [kv_blocks]
    uint64_t *kv;                // [kv_blocks][block_tokens]
    uint64_t step, returned;
    bool lies;
};

uint64_t mock_hash_next(uint64_t hash, int32_t token)
{
    return hash_pair(hash, (uint32_t)token);
}

int32_t mock_hash_token(uint64_t hash, uint32_t vocab)
{
    return (int32_t)(hash_pair(hash, hash_start) % vocab);
}

void mock_stream_init(struct mock_stream *s, const int32_t *prompt, uint32_t prompt_n,
                      uint32_t vocab)
{
    mock_stream_salted(s, 0, prompt, prompt_n, vocab);
}

void mock_stream_salted(struct mock_stream *s, uint64_t salt, const int32_t *prompt,
                        uint32_t prompt_n, uint32_t vocab)
{
    s->hash = hash_start ^ salt;
    s->vocab = vocab;
    for (uint32_t i = 0; i < prompt_n; i++)
        s->hash = mock_hash_next(s->hash, prompt[i]);
}

int32_t mock_stream_next(struct mock_stream *s)
{
    int32_t token = mock_hash_token(s->hash, s->vocab);
    s->hash = mock_hash_next(s->hash, token);
    return token;
}

void mock_stream_take(struct mock_stream *s, int32_t token)
{
    s->hash = mock_hash_next(s->hash, token);
}

int32_t engine_mock_expected(const struct mock_expected_args *a)
{
    struct mock_stream s;
    mock_stream_init(&s, a->prompt, a->prompt_n, a->vocab);
    for (uint32_t i = 0; i < a->index; i++)
        mock_stream_next(&s);
    return mock_stream_next(&s);
}

struct mock_cache *mock_cache_create(const struct mock_config *config)
{
    struct mock_cache *c = mem_zalloc(1, sizeof *c);
    c->config = *config;
    c->slots = mem_zalloc(config->max_seqs, sizeof *c->slots);
    c->blocks = mem_zalloc(config->kv_blocks, sizeof *c->blocks);
    c->kv = mem_zalloc((size_t)config->kv_blocks * config->block_tokens, sizeof *c->kv);
    return c;
}

void mock_cache_destroy(struct mock_cache *c)
{
    if (c == NULL)
        return;
    for (uint32_t i = 0; i < c->config.max_seqs; i++) {
        free(c->slots[i].tokens);
        free(c->slots[i].blocks);
    }
    free(c->slots);
    free(c->blocks);
    free(c->kv);
    free(c);
}

void mock_cache_returned(struct mock_cache *c, uint64_t step)
{
    c->returned = step;
}

#define RETURN_UNLESS(condition, ...)                                                              \
    if (!(condition))                                                                              \
    return errmsg_set(e, STATUS_INTERNAL, __VA_ARGS__)

static enum status close_slot(struct mock_cache *c, uint32_t at, struct errmsg *e)
{
    RETURN_UNLESS(at < c->config.max_seqs, "close of slot %u of %u", at, c->config.max_seqs);
    struct slot *s = &c->slots[at];
    RETURN_UNLESS(s->open, "close of slot %u, which is not open", at);
    for (size_t i = 0; i < s->blocks_n; i++)
        c->blocks[s->blocks[i]].tables--;
    s->blocks_n = s->tokens_n = 0;
    s->open = s->begun = false;
    s->pos = 0;
    return STATUS_OK;
}

static void append_token(struct slot *s, int32_t token)
{
    MEM_GROW(s->tokens, s->tokens_n, s->tokens_cap);
    s->tokens[s->tokens_n++] = token;
}

static enum status open_slot(struct mock_cache *c, const struct plan_open *o, struct errmsg *e)
{
    RETURN_UNLESS(o->slot < c->config.max_seqs, "open of slot %u of %u", o->slot,
                  c->config.max_seqs);
    struct slot *s = &c->slots[o->slot];
    RETURN_UNLESS(!s->open, "open of slot %u, which is open", o->slot);
    RETURN_UNLESS(
        o->prompt_n >= 1 && o->prompt_n <= o->tokens_n && o->tokens_n <= c->config.max_context,
        "slot %u opened with %u tokens, %u of them prompt", o->slot, o->tokens_n, o->prompt_n);
    RETURN_UNLESS(o->index0 == o->tokens_n - o->prompt_n, "slot %u starts at index %u, emitted %u",
                  o->slot, o->index0, o->tokens_n - o->prompt_n);
    RETURN_UNLESS(o->sampling.top_logprobs <= LIMIT_TOP_LOGPROBS, "slot %u wants %u alternatives",
                  o->slot, o->sampling.top_logprobs);
    s->open = true;
    s->sampling = o->sampling;
    for (uint32_t i = 0; i < o->tokens_n; i++) {
        RETURN_UNLESS(o->tokens[i] >= 0 && (uint32_t)o->tokens[i] < c->config.vocab,
                      "slot %u token %u is %d", o->slot, i, o->tokens[i]);
        append_token(s, o->tokens[i]);
    }
    return STATUS_OK;
}

static enum status add_blocks(struct mock_cache *c, const struct plan_entry *p, struct errmsg *e)
{
    struct slot *s = &c->slots[p->slot];
    for (uint32_t i = 0; i < p->new_blocks_n; i++) {
        uint32_t block = p->new_blocks[i];
        RETURN_UNLESS(block < c->config.kv_blocks, "slot %u gets block %u of %u", p->slot, block,
                      c->config.kv_blocks);
        RETURN_UNLESS(c->blocks[block].wrote_step <= c->returned,
                      "slot %u gets block %u, which step %" PRIu64 " still writes", p->slot, block,
                      c->blocks[block].wrote_step);
        MEM_GROW(s->blocks, s->blocks_n, s->blocks_cap);
        s->blocks[s->blocks_n++] = block;
        c->blocks[block].tables++;
    }
    RETURN_UNLESS(s->blocks_n * c->config.block_tokens >= (size_t)p->pos + p->n,
                  "slot %u has %zu blocks for position %u", p->slot, s->blocks_n,
                  p->pos + p->n - 1);
    return STATUS_OK;
}

static uint64_t *position(const struct mock_cache *c, const struct slot *s, uint32_t pos)
{
    uint32_t bt = c->config.block_tokens;
    return &c->kv[(size_t)s->blocks[pos / bt] * bt + pos % bt];
}

// A sequence may begin behind a prefix that others computed: is it this one's?
static enum status check_prefix(struct mock_cache *c, const struct plan_entry *p, struct errmsg *e)
{
    struct slot *s = &c->slots[p->slot];
    uint64_t hash = hash_start ^ c->config.salt;
    RETURN_UNLESS(p->pos % c->config.block_tokens == 0, "slot %u begins at %u, inside a block",
                  p->slot, p->pos);
    for (uint32_t i = 0; i < p->pos; i++) {
        hash = mock_hash_next(hash, s->tokens[i]);
        RETURN_UNLESS(*position(c, s, i) == hash, "slot %u reuses position %u of another history",
                      p->slot, i);
    }
    s->begun = true;
    s->pos = p->pos;
    return STATUS_OK;
}

static enum status check_entry(struct mock_cache *c, const struct plan_entry *p, struct errmsg *e)
{
    RETURN_UNLESS(p->slot < c->config.max_seqs && c->slots[p->slot].open,
                  "rows for slot %u, not open", p->slot);
    struct slot *s = &c->slots[p->slot];
    RETURN_UNLESS(s->in_step != c->step, "slot %u twice in a plan", p->slot);
    s->in_step = c->step;
    RETURN_UNLESS(p->n >= 1 && p->pos < s->tokens_n && p->n <= s->tokens_n - p->pos,
                  "slot %u rows %u+%u of %zu known tokens", p->slot, p->pos, p->n, s->tokens_n);
    RETURN_UNLESS(memcmp(p->tokens, s->tokens + p->pos, p->n * sizeof *p->tokens) == 0,
                  "slot %u tokens from %u on differ from its history", p->slot, p->pos);
    RETURN_UNLESS(p->sample == (p->pos + p->n == s->tokens_n), "slot %u sample %d at %u of %zu",
                  p->slot, p->sample, p->pos + p->n, s->tokens_n);
    enum status st = add_blocks(c, p, e);
    if (st == STATUS_OK && !s->begun)
        st = check_prefix(c, p, e);
    if (st < 0)
        return st;
    RETURN_UNLESS(p->pos == s->pos, "slot %u goes on at %u, want %u", p->slot, p->pos, s->pos);
    return STATUS_OK;
}

static enum status compute(struct mock_cache *c, const struct plan_entry *p, uint64_t *hash_out,
                           struct errmsg *e)
{
    struct slot *s = &c->slots[p->slot];
    uint64_t hash = p->pos > 0 ? *position(c, s, p->pos - 1) : hash_start ^ c->config.salt;
    for (uint32_t i = 0; i < p->n; i++) {
        struct cached_block *b = &c->blocks[s->blocks[(p->pos + i) / c->config.block_tokens]];
        RETURN_UNLESS(b->tables == 1, "slot %u writes position %u into a block of %u tables",
                      p->slot, p->pos + i, b->tables);
        b->wrote_step = c->step;
        hash = mock_hash_next(hash, p->tokens[i]);
        *position(c, s, p->pos + i) = hash;
    }
    s->pos += p->n;
    *hash_out = hash;
    return STATUS_OK;
}

static struct step_sample sample(struct mock_cache *c, uint32_t at, uint64_t hash)
{
    struct slot *s = &c->slots[at];
    struct step_sample out = {.slot = at, .token = mock_hash_token(hash, c->config.vocab)};
    if (c->lies)
        out.token = (out.token + 1) % (int32_t)c->config.vocab;
    append_token(s, out.token);
    if (!s->sampling.logprobs)
        return out;
    out.logprob = -(float)(hash % 1024) / 256;
    out.top_n = s->sampling.top_logprobs;
    for (uint32_t i = 0; i < out.top_n; i++)
        out.top[i] = (struct logprob){
            .token = (int32_t)(((uint64_t)out.token + i) % c->config.vocab),
            .value = out.logprob - (float)i,
        };
    return out;
}

void mock_cache_copy(struct mock_cache *c, uint32_t to, const struct mock_cache *from_cache,
                     uint32_t from)
{
    size_t n = c->config.block_tokens;
    assert(n == from_cache->config.block_tokens);
    assert(to < c->config.kv_blocks && from < from_cache->config.kv_blocks);
    assert(c->blocks[to].wrote_step <= c->returned);
    memcpy(c->kv + to * n, from_cache->kv + from * n, n * sizeof *c->kv);
}

void mock_cache_lie(struct mock_cache *c, bool lies)
{
    c->lies = lies;
}

static enum status check_head(const struct mock_cache *c, const struct step_plan *p,
                              struct errmsg *e)
{
    uint64_t rows = 0;
    RETURN_UNLESS(p->step == c->step + 1, "step %" PRIu64 " after %" PRIu64, p->step, c->step);
    RETURN_UNLESS(p->entries_n >= 1 && p->entries_n <= c->config.max_seqs, "%u entries",
                  p->entries_n);
    for (uint32_t i = 0; i < p->entries_n; i++)
        rows += p->entries[i].n;
    RETURN_UNLESS(rows == p->rows && rows <= c->config.max_rows,
                  "%u rows, counted %" PRIu64 ", limit %u", p->rows, rows, c->config.max_rows);
    return STATUS_OK;
}

static enum status apply_slots(struct mock_cache *c, const struct step_plan *p, struct errmsg *e)
{
    enum status st = STATUS_OK;
    for (uint32_t i = 0; i < p->closes_n && st == STATUS_OK; i++)
        st = close_slot(c, p->closes[i], e);
    for (uint32_t i = 0; i < p->opens_n && st == STATUS_OK; i++)
        st = open_slot(c, &p->opens[i], e);
    return st;
}

enum status mock_cache_step(struct mock_cache *c, const struct step_plan *plan,
                            struct step_sample *samples, uint32_t *samples_n_out, struct errmsg *e)
{
    uint32_t n = 0;
    enum status st = check_head(c, plan, e);
    if (st < 0)
        return st;
    c->step = plan->step;
    st = apply_slots(c, plan, e);
    for (uint32_t i = 0; i < plan->entries_n && st == STATUS_OK; i++)
        st = check_entry(c, &plan->entries[i], e);
    for (uint32_t i = 0; i < plan->entries_n && st == STATUS_OK; i++) {
        uint64_t hash = 0;
        st = compute(c, &plan->entries[i], &hash, e);
        if (st == STATUS_OK && plan->entries[i].sample)
            samples[n++] = sample(c, plan->entries[i].slot, hash);
    }
    *samples_n_out = n;
    return st;
}
