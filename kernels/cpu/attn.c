// attn_mla and attn_gqa: one core over paged keys and values.
//
// Neighbouring rows of one sequence form a run; a run's queries (row by row, heads inside) are cut
// into tiles of 12 that share every key they load. Keys are walked in chunks of 64 from position
// 0. A chunk gives each query a partial result (max, sum, weighted values) that depends on nothing
// but the query and the chunk's keys up to its own position; partials are merged in rising order.
// So the bits are the same whether a tile's chunks are walked by one thread (prefill, batches) or
// shared among threads (a few long decodes), and whatever other queries are in the tile.
#include "kernels/cpu/ops.h"

enum { TILE_Q = 12, CHUNK = 64, SHARE_CHUNKS = 8 };

// What the two ops have in common. Key and value of kv head g lie at k_at + g * k_dim and
// v_at + g * v_dim of a token's row. A query is [q1_dim | q2_dim] from two views (q2_dim may be 0).
struct attn_job {
    const struct kern_batch *batch;
    const struct kern_kv *kv;
    size_t group, kv_heads; // query heads per kv head
    const struct kern_view *q1, *q2;
    size_t q1_dim, q2_dim, q1_head_stride, q2_head_stride;
    size_t k_dim, v_at, v_dim;
    const struct kern_view *out;
    float scale;
    // The work.
    struct attn_tile *tiles;
    size_t tiles_n;
    char *scratch; // per thread
    size_t scratch_bytes;
    float *partials;       // shared mode: [chunks of all tiles][partial_floats]
    size_t partial_floats; // of one tile and chunk
    struct chunk_item *chunk_items;
};

// Up to 12 queries of one run and one kv head.
struct attn_tile {
    uint32_t row0;  // first batch row of the run
    uint32_t first; // index of the tile's first query in the run: row * group + head in group
    uint32_t n;
    uint32_t kv_head;
    uint32_t keys;   // of the query that sees most
    uint32_t chunk0; // shared mode: its first partial
};
// Shared mode: chunks [chunk, chunk + n) of a tile; their partials follow each other.
struct chunk_item {
    uint32_t tile, chunk, n;
};

// A partial of a tile: max[TILE_Q], sum[TILE_Q], values[TILE_Q][v_dim].
INLINE float *partial_values(float *partial)
{
    return partial + 2 * TILE_Q;
}

struct tile_scratch {
    float *q;                    // [TILE_Q][k_dim]
    float *score;                // [TILE_Q][CHUNK]
    float *chunk, *result;       // partials
    const float *key[2 * CHUNK]; // of the chunk, and of the next: to be fetched early
    size_t seen[TILE_Q];         // keys that each query may see
};

static size_t round_16(size_t n)
{
    return (n + 15) / 16 * 16;
}

static void scratch_layout(const struct attn_job *j, struct tile_scratch *s, int thread)
{
    float *p = (float *)(j->scratch + (size_t)thread * j->scratch_bytes);
    s->q = p;
    s->score = s->q + TILE_Q * round_16(j->k_dim);
    s->chunk = s->score + TILE_Q * CHUNK;
    s->result = s->chunk + j->partial_floats;
}

static void load_queries(const struct attn_job *j, const struct attn_tile *t,
                         struct tile_scratch *s)
{
    for (size_t i = 0; i < t->n; i++) {
        size_t row = t->row0 + (t->first + i) / j->group;
        size_t head = t->kv_head * j->group + (t->first + i) % j->group;
        float *q = s->q + i * j->k_dim;
        memcpy(q, kern_row(j->q1, row) + head * j->q1_head_stride, j->q1_dim * sizeof *q);
        if (j->q2_dim)
            memcpy(q + j->q1_dim, kern_row(j->q2, row) + head * j->q2_head_stride,
                   j->q2_dim * sizeof *q);
        s->seen[i] = (size_t)kern_i32(j->batch->pos)[row] + 1;
    }
}

// ---- scores: Q queries by N keys, 8-lane sums

INLINE void score_block(const int Q, const int N, const float *q, size_t dim,
                        const float *const *key, float *score)
{
    v8 sum[4][8];
    UNROLL_FOR (i, Q)
        UNROLL_FOR (n, N)
            sum[i][n] = (v8){0};
    size_t d = 0;
    for (; d + 8 <= dim; d += 8) {
        v8 a[4];
        UNROLL_FOR (i, Q)
            a[i] = v8_load(q + (size_t)i * dim + d);
        UNROLL_FOR (n, N) {
            v8 b = v8_load(key[n] + d);
            UNROLL_FOR (i, Q)
                sum[i][n] = v8_fma(a[i], b, sum[i][n]);
        }
    }
    if (d < dim)
        for (int i = 0; i < Q; i++)
            for (int n = 0; n < N; n++)
                sum[i][n] = v8_fma(v8_load_n(q + (size_t)i * dim + d, dim - d),
                                   v8_load_n(key[n] + d, dim - d), sum[i][n]);
    UNROLL_FOR (i, Q)
        UNROLL_FOR (n, N)
            score[i * CHUNK + n] = v8_sum(sum[i][n]);
}

// Q * N sums, Q + 1 operands: 16 registers hold them.
#define SCORE_ROWS(Q, N)                                                                           \
    static __attribute__((noinline)) void score_rows_##Q(                                          \
        const float *q, size_t dim, const float *const *key, size_t keys, float *score)            \
    {                                                                                              \
        size_t n = 0;                                                                              \
        for (; n + N <= keys; n += N)                                                              \
            score_block(Q, N, q, dim, key + n, score + n);                                         \
        for (; n < keys; n++)                                                                      \
            score_block(Q, 1, q, dim, key + n, score + n);                                         \
    }
SCORE_ROWS(1, 8)
SCORE_ROWS(2, 4)
SCORE_ROWS(3, 3)
SCORE_ROWS(4, 3)

// A few keys at a time against all queries of the tile, so that keys are loaded once.
static void tile_scores(const struct attn_job *j, size_t queries, size_t keys,
                        struct tile_scratch *s)
{
    enum { KEYS_AT_ONCE = 24 }; // a multiple of every N above
    static void (*const rows[])(const float *, size_t, const float *const *, size_t, float *) = {
        NULL, score_rows_1, score_rows_2, score_rows_3, score_rows_4};
    for (size_t k = 0; k < keys; k += KEYS_AT_ONCE) {
        size_t some = keys - k < KEYS_AT_ONCE ? keys - k : KEYS_AT_ONCE;
        for (size_t i = 0; i < queries; i += 4)
            rows[queries - i < 4 ? queries - i : 4](s->q + i * j->k_dim, j->k_dim, s->key + k, some,
                                                    s->score + i * CHUNK + k);
    }
}

// Turns the first n scores into exp(scale * score - max) and zeros the rest up to `padded`.
static void softmax_chunk(float *score, size_t n, size_t padded, float scale, float *max_out,
                          float *sum_out)
{
    float max = score[0] * scale;
    for (size_t i = 0; i < n; i++) {
        score[i] *= scale;
        max = score[i] > max ? score[i] : max;
    }
    for (size_t i = n; i < padded; i++)
        score[i] = 0;
    v8 sum = {0};
    for (size_t i = 0; i < padded; i += 8) {
        v8 p = v8_exp(v8_load(score + i) - v8_set(max));
        if (i + 8 > n) {
            v8i lane = (v8i){0, 1, 2, 3, 4, 5, 6, 7} + (int32_t)i;
            p = v8_pick(lane < (int32_t)n, p, (v8){0});
        }
        v8_store(score + i, p);
        sum += p;
    }
    *max_out = max;
    *sum_out = v8_sum(sum);
}

// ---- values: Q queries by C columns of 8, over up to 32 keys

// Meanwhile the next chunk is fetched to the second-level cache, line by line in the order of
// memory, which the hardware's own prefetcher recognises and extends.
struct fetch {
    const float *const *key; // of the next chunk
    size_t at, line;         // where values start; lines fetched by earlier calls
    unsigned shift;          // log2 of the lines fetched per key
};
INLINE void fetch_line(const struct fetch *f, size_t n)
{
    size_t line = f->line + n, in_key = line & (((size_t)1 << f->shift) - 1);
    __builtin_prefetch(f->key[line >> f->shift & (CHUNK - 1)] + f->at + in_key * 16, 0, 2);
}

INLINE void value_block(const int Q, const int C, const float *p, const float *const *key,
                        size_t keys, size_t at, float *out, size_t ld, bool first,
                        const struct fetch *f)
{
    v8 sum[TILE_Q][4];
    UNROLL_FOR (i, Q)
        UNROLL_FOR (c, C)
            sum[i][c] = first ? (v8){0} : v8_load(out + (size_t)i * ld + c * 8);
    for (size_t n = 0; n < keys; n++) {
        fetch_line(f, n);
        v8 value[4];
        UNROLL_FOR (c, C)
            value[c] = v8_load(key[n] + at + c * 8);
        UNROLL_FOR (i, Q) {
            v8 w = v8_set(p[i * CHUNK + n]);
            UNROLL_FOR (c, C)
                sum[i][c] = v8_fma(w, value[c], sum[i][c]);
        }
    }
    UNROLL_FOR (i, Q)
        UNROLL_FOR (c, C)
            v8_store(out + (size_t)i * ld + c * 8, sum[i][c]);
}

// The columns that do not fill a vector.
static void value_tail(size_t queries, const float *p, const float *const *key, size_t keys,
                       size_t at, float *out, size_t ld, size_t cols, bool first)
{
    for (size_t i = 0; i < queries; i++)
        for (size_t c = 0; c < cols; c++) {
            float sum = first ? 0 : out[i * ld + c];
            for (size_t n = 0; n < keys; n++)
                sum = fmaf(p[i * CHUNK + n], key[n][at + c], sum);
            out[i * ld + c] = sum;
        }
}

#define VALUE_ROWS(Q, C)                                                                           \
    static __attribute__((noinline)) void value_rows_##Q(const float *p, const float *const *key,  \
                                                         size_t keys, size_t at, float *out,       \
                                                         size_t ld, bool first, struct fetch *f)   \
    {                                                                                              \
        size_t c = 0;                                                                              \
        for (; c + 8 * C <= ld; c += 8 * C, f->line += keys)                                       \
            value_block(Q, C, p, key, keys, at + c, out + c, ld, first, f);                        \
        for (; c + 8 <= ld; c += 8)                                                                \
            value_block(Q, 1, p, key, keys, at + c, out + c, ld, first, f);                        \
        if (c < ld)                                                                                \
            value_tail(Q, p, key, keys, at + c, out + c, ld, ld - c, first);                       \
    }
VALUE_ROWS(1, 4)
VALUE_ROWS(2, 4)
VALUE_ROWS(3, 4)
VALUE_ROWS(4, 2)
VALUE_ROWS(5, 2)
VALUE_ROWS(6, 2)

static void tile_values(const struct attn_job *j, const struct attn_tile *t, size_t keys,
                        struct tile_scratch *s, float *out)
{
    enum { KEYS_AT_ONCE = 32, ROWS = 6 };
    static void (*const rows[])(const float *, const float *const *, size_t, size_t, float *,
                                size_t, bool, struct fetch *) = {
        NULL, value_rows_1, value_rows_2, value_rows_3, value_rows_4, value_rows_5, value_rows_6};
    size_t at = j->v_at + t->kv_head * j->v_dim - t->kv_head * j->k_dim; // key[] is at the key
    struct fetch f = {s->key + CHUNK, at, 0, 0};
    while ((size_t)32 << f.shift <= j->v_dim) // at most v_dim / 16 lines
        f.shift++;
    for (size_t k = 0; k < keys; k += KEYS_AT_ONCE) {
        size_t some = keys - k < KEYS_AT_ONCE ? keys - k : KEYS_AT_ONCE;
        for (size_t i = 0; i < t->n; i += ROWS)
            rows[t->n - i < ROWS ? t->n - i : ROWS](s->score + i * CHUNK + k, s->key + k, some, at,
                                                    out + i * j->v_dim, j->v_dim, k == 0, &f);
    }
}

// ---- chunks

// Addresses of this chunk's keys and the next one's; past the last key, of some valid one.
static void find_keys(const struct attn_job *j, const struct attn_tile *t, size_t start,
                      struct tile_scratch *s)
{
    const int32_t *table = cpu_row_table(j->batch, t->row0);
    size_t n = 0, left = t->keys - start, left_in_block = 0;
    const float *key = NULL;
    for (; n < 2 * CHUNK && n < left; n++, left_in_block--, key += j->kv->width) {
        if (!left_in_block) {
            key = cpu_kv_row(j->kv, table, start + n) + t->kv_head * j->k_dim;
            left_in_block = j->kv->block_tokens - (start + n) % j->kv->block_tokens;
        }
        s->key[n] = key;
    }
    for (; n < 2 * CHUNK; n++)
        s->key[n] = s->key[0];
}

// The partial of one tile and chunk. Queries that see none of the chunk's keys get rubbish.
static void tile_chunk(const struct attn_job *j, const struct attn_tile *t, size_t chunk,
                       struct tile_scratch *s, float *partial)
{
    size_t start = chunk * CHUNK, keys = t->keys - start < CHUNK ? t->keys - start : CHUNK;
    find_keys(j, t, start, s);
    tile_scores(j, t->n, keys, s);
    for (size_t i = 0; i < t->n; i++) {
        size_t seen = s->seen[i] <= start ? 1 : s->seen[i] - start;
        softmax_chunk(s->score + i * CHUNK, seen < keys ? seen : keys, (keys + 7) / 8 * 8, j->scale,
                      &partial[i], &partial[TILE_Q + i]);
    }
    tile_values(j, t, keys, s, partial_values(partial));
}

// to = to (+) from, for each query that sees keys of the chunk. Chunk 0 is seen by all.
static void merge(const struct attn_job *j, const struct attn_tile *t, size_t chunk,
                  const size_t *seen, float *to, const float *from)
{
    for (size_t i = 0; i < t->n; i++) {
        if (seen[i] <= chunk * CHUNK)
            continue;
        float *x = partial_values(to) + i * j->v_dim;
        const float *y = from + 2 * TILE_Q + i * j->v_dim;
        float max = to[i] > from[i] ? to[i] : from[i];
        float a = f_exp(to[i] - max), b = f_exp(from[i] - max);
        to[i] = max;
        to[TILE_Q + i] = fmaf(from[TILE_Q + i], b, to[TILE_Q + i] * a);
        for (size_t c = 0; c < j->v_dim; c++)
            x[c] = fmaf(y[c], b, x[c] * a);
    }
}

static void store_tile(const struct attn_job *j, const struct attn_tile *t, const float *partial)
{
    for (size_t i = 0; i < t->n; i++) {
        size_t row = t->row0 + (t->first + i) / j->group;
        size_t head = t->kv_head * j->group + (t->first + i) % j->group;
        float *out = kern_row(j->out, row) + head * j->v_dim;
        const float *x = partial + 2 * TILE_Q + i * j->v_dim;
        float inverse = 1 / partial[TILE_Q + i];
        for (size_t c = 0; c < j->v_dim; c++)
            out[c] = x[c] * inverse;
    }
}

// One thread walks all chunks of a tile.
static void whole_tile_item(void *ctx, size_t item, int thread)
{
    const struct attn_job *j = ctx;
    // The last tiles of a prefill see most keys; first things first balances the threads.
    const struct attn_tile *t = &j->tiles[j->tiles_n - 1 - item];
    struct tile_scratch s;
    scratch_layout(j, &s, thread);
    load_queries(j, t, &s);
    tile_chunk(j, t, 0, &s, s.result);
    for (size_t c = 1; c * CHUNK < t->keys; c++) {
        tile_chunk(j, t, c, &s, s.chunk);
        merge(j, t, c, s.seen, s.result, s.chunk);
    }
    store_tile(j, t, s.result);
}

// Shared mode: chunks first, each to its own partial, ...
static void chunk_item(void *ctx, size_t item, int thread)
{
    const struct attn_job *j = ctx;
    const struct chunk_item *c = &j->chunk_items[item];
    struct tile_scratch s;
    scratch_layout(j, &s, thread);
    const struct attn_tile *t = &j->tiles[c->tile];
    load_queries(j, t, &s);
    for (size_t i = c->chunk; i < c->chunk + c->n; i++)
        tile_chunk(j, t, i, &s, j->partials + (t->chunk0 + i) * j->partial_floats);
}

// ... then the merge of each tile.
static void merge_item(void *ctx, size_t item, int thread)
{
    const struct attn_job *j = ctx;
    const struct attn_tile *t = &j->tiles[item];
    float *result = j->partials + t->chunk0 * j->partial_floats;
    size_t seen[TILE_Q];
    for (size_t i = 0; i < t->n; i++)
        seen[i] = (size_t)kern_i32(j->batch->pos)[t->row0 + (t->first + i) / j->group] + 1;
    for (size_t c = 1; c * CHUNK < t->keys; c++)
        merge(j, t, c, seen, result, result + c * j->partial_floats);
    store_tile(j, t, result);
}

// ---- dividing the work

// Rows from row0 on that continue one sequence.
static size_t run_length(const struct kern_batch *b, size_t row0)
{
    const int32_t *seq = kern_i32(b->seq), *pos = kern_i32(b->pos);
    size_t n = 1;
    while (row0 + n < b->n && seq[row0 + n] == seq[row0] && pos[row0 + n] == pos[row0] + (int32_t)n)
        n++;
    return n;
}

static void cut_tiles(struct kern *k, struct attn_job *j)
{
    // Every row of a run starts at most one tile that the heads alone would not need.
    size_t most = j->batch->n * j->kv_heads * (j->group / TILE_Q + 2);
    j->tiles = cpu_scratch(k, CPU_ARENA_PLAN, most * sizeof *j->tiles);
    for (size_t row = 0, rows; row < j->batch->n; row += rows) {
        cpu_row_table(j->batch, row);
        rows = run_length(j->batch, row);
        assert((size_t)kern_i32(j->batch->pos)[row + rows - 1] < j->batch->keys_max);
        size_t pos = (size_t)kern_i32(j->batch->pos)[row], queries = rows * j->group;
        for (size_t first = 0, n; first < queries; first += n) {
            n = queries - first < TILE_Q ? queries - first : TILE_Q;
            for (size_t g = 0; g < j->kv_heads; g++)
                j->tiles[j->tiles_n++] = (struct attn_tile){
                    .row0 = (uint32_t)row,
                    .first = (uint32_t)first,
                    .n = (uint32_t)n,
                    .kv_head = (uint32_t)g,
                    .keys = (uint32_t)(pos + (first + n - 1) / j->group + 1),
                };
        }
    }
}

static size_t chunks_of(const struct attn_tile *t)
{
    return (t->keys + CHUNK - 1) / CHUNK;
}

static void run_shared(struct kern *k, struct attn_job *j, size_t chunks, size_t cost)
{
    size_t partial_bytes = chunks * j->partial_floats * sizeof(float);
    j->partials = cpu_scratch(k, CPU_ARENA_SHARED, partial_bytes + chunks * sizeof *j->chunk_items);
    j->chunk_items = (struct chunk_item *)((char *)j->partials + partial_bytes);
    size_t items = 0, first = 0, share = chunks / (4 * (size_t)k->threads) + 1;
    share = share < SHARE_CHUNKS ? share : SHARE_CHUNKS;
    for (size_t t = 0; t < j->tiles_n; t++) {
        size_t all = chunks_of(&j->tiles[t]);
        j->tiles[t].chunk0 = (uint32_t)first;
        first += all;
        for (size_t c = 0, n; c < all; c += n) {
            n = all - c < share ? all - c : share;
            j->chunk_items[items++] = (struct chunk_item){(uint32_t)t, (uint32_t)c, (uint32_t)n};
        }
    }
    cpu_run(k, items, cost, chunk_item, j);
    cpu_run(k, j->tiles_n, chunks * TILE_Q * j->v_dim, merge_item, j);
}

static void attend(struct kern *k, struct attn_job *j)
{
    j->partial_floats = round_16(2 * TILE_Q + TILE_Q * j->v_dim);
    j->scratch_bytes =
        (TILE_Q * (round_16(j->k_dim) + CHUNK) + 2 * j->partial_floats) * sizeof(float);
    j->scratch_bytes = (j->scratch_bytes + 63) / 64 * 64;
    j->scratch = cpu_scratch(k, CPU_ARENA_THREADS, j->scratch_bytes * (size_t)k->threads);
    cut_tiles(k, j);
    size_t chunks = 0, cost = 0;
    for (size_t t = 0; t < j->tiles_n; t++) {
        chunks += chunks_of(&j->tiles[t]);
        cost += (size_t)j->tiles[t].keys * j->tiles[t].n * (j->k_dim + j->v_dim);
    }
    // Whole tiles while there are plenty for every thread; else chunks are shared out.
    if (k->threads == 1 || j->tiles_n >= 3 * (size_t)k->threads || chunks == j->tiles_n)
        cpu_run(k, j->tiles_n, cost, whole_tile_item, j);
    else
        run_shared(k, j, chunks, cost);
}

void ISA(attn_mla)(struct kern *k, const struct kern_attn_mla_args *a)
{
    struct attn_job j = {
        .batch = a->batch,
        .kv = &a->kv,
        .group = a->heads,
        .kv_heads = 1,
        .q1 = &a->q_latent,
        .q2 = &a->q_rope,
        .q1_dim = a->kv_lora,
        .q2_dim = a->rope_dim,
        .q1_head_stride = a->q_latent_head_stride,
        .q2_head_stride = a->q_rope_head_stride,
        .k_dim = a->kv_lora + a->rope_dim,
        .v_dim = a->kv_lora,
        .out = &a->out,
        .scale = a->scale,
    };
    attend(k, &j);
}

void ISA(attn_gqa)(struct kern *k, const struct kern_attn_gqa_args *a)
{
    struct attn_job j = {
        .batch = a->batch,
        .kv = &a->kv,
        .group = a->heads / a->kv_heads,
        .kv_heads = a->kv_heads,
        .q1 = &a->q,
        .q1_dim = a->head_dim,
        .q1_head_stride = a->head_dim,
        .k_dim = a->head_dim,
        .v_at = a->kv_heads * a->head_dim,
        .v_dim = a->head_dim,
        .out = &a->out,
        .scale = a->scale,
    };
    attend(k, &j);
}
