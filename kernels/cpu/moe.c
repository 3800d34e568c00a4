// moe_gate_up and moe_down: the (token, choice) pairs are grouped by expert, block of tokens by
// block of tokens, so that an expert's weights are read once for all its rows. gate_up's items are
// (piece of an expert's rows, run of tiles); down's are (block of tokens, run of tiles), and walk
// the experts in rising order, which is the order of every token's sum.
#include "kernels/cpu/ops.h"
#include "kernels/cpu/tiles.h"

enum { BLOCK_TOKENS = 512 };

// Rows of one expert within a block: pairs[first .. first + n), at most TILES_BLOCK of them.
struct moe_piece {
    uint32_t expert, first, n;
};

struct moe_plan {
    uint32_t *pairs; // token * topk + choice, sorted by (block, expert, pair)
    struct moe_piece *pieces;
    size_t pieces_n;
    uint32_t *block_pieces; // [blocks + 1]: first piece of each block
    size_t blocks;
};

static void plan_block(struct moe_plan *p, const int32_t *ids, size_t from, size_t to,
                       size_t experts)
{
    uint32_t start[KERN_EXPERTS_MAX + 1] = {0};
    for (size_t i = from; i < to; i++) {
        assert(ids[i] >= 0 && (size_t)ids[i] < experts);
        start[ids[i] + 1]++;
    }
    for (size_t e = 0; e < experts; e++) {
        uint32_t n = start[e + 1];
        start[e + 1] += start[e];
        for (uint32_t at = 0; at < n; at += TILES_BLOCK)
            p->pieces[p->pieces_n++] =
                (struct moe_piece){(uint32_t)e, (uint32_t)from + start[e] + at,
                                   n - at < TILES_BLOCK ? n - at : TILES_BLOCK};
    }
    for (size_t i = from; i < to; i++)
        p->pairs[from + start[ids[i]]++] = (uint32_t)i;
}

static struct moe_plan plan(struct kern *k, const struct kern_buf *ids, size_t n, size_t topk,
                            size_t experts)
{
    struct moe_plan p = {.blocks = (n + BLOCK_TOKENS - 1) / BLOCK_TOKENS};
    size_t pairs = n * topk;
    assert(pairs < UINT32_MAX);
    // A piece is either full or the last of its expert in its block.
    size_t most = pairs / TILES_BLOCK + p.blocks * experts;
    most = most < pairs ? most : pairs;
    char *memory = cpu_scratch(k, CPU_ARENA_PLAN,
                               most * sizeof *p.pieces + (pairs + p.blocks + 1) * sizeof *p.pairs);
    p.pieces = (struct moe_piece *)memory;
    p.pairs = (uint32_t *)(memory + most * sizeof *p.pieces);
    p.block_pieces = p.pairs + pairs;
    for (size_t b = 0; b < p.blocks; b++) {
        size_t end = (b + 1) * BLOCK_TOKENS < n ? (b + 1) * BLOCK_TOKENS : n;
        p.block_pieces[b] = (uint32_t)p.pieces_n;
        plan_block(&p, kern_i32(ids), b * BLOCK_TOKENS * topk, end * topk, experts);
    }
    p.block_pieces[p.blocks] = (uint32_t)p.pieces_n;
    return p;
}

struct moe_job {
    struct moe_plan plan;
    size_t runs;
    const struct kern_moe_gate_up_args *gate_up;
    const struct kern_moe_down_args *down;
};

static size_t runs_of(const struct kern_weight *w)
{
    return (w->shape.rows + TILE * TILES_RUN - 1) / (TILE * TILES_RUN);
}

static size_t run_tiles(const struct tiles *w, size_t run)
{
    return w->n - run * TILES_RUN < TILES_RUN ? w->n - run * TILES_RUN : TILES_RUN;
}

static size_t run_cols(const struct tiles *w, size_t run)
{
    size_t left = w->rows - run * TILES_RUN * TILE;
    return left < TILES_RUN * TILE ? left : TILES_RUN * TILE;
}

static void gate_up_item(void *ctx, size_t item, int thread)
{
    const struct moe_job *j = ctx;
    const struct kern_moe_gate_up_args *a = j->gate_up;
    const struct moe_piece *piece = &j->plan.pieces[item / j->runs];
    const uint32_t *pairs = j->plan.pairs + piece->first;
    size_t run = item % j->runs;
    struct tiles gate = tiles_of(a->gate, piece->expert), up = tiles_of(a->up, piece->expert);
    const float *x[TILES_BLOCK];
    float g[TILES_BLOCK][TILES_RUN * TILE], u[TILES_BLOCK][TILES_RUN * TILE];
    for (size_t i = 0; i < piece->n; i++)
        x[i] = kern_row(&a->x, pairs[i] / a->topk);
    ISA(tiles_dot)(&gate, run * TILES_RUN, run_tiles(&gate, run), x, piece->n, g[0]);
    ISA(tiles_dot)(&up, run * TILES_RUN, run_tiles(&up, run), x, piece->n, u[0]);
    size_t cols = run_cols(&gate, run);
    for (size_t i = 0; i < piece->n; i++) {
        for (size_t c = 0; c < cols; c += 8)
            v8_store(g[i] + c, v8_silu(v8_load(g[i] + c)) * v8_load(u[i] + c));
        memcpy(kern_row(&a->out, pairs[i]) + run * TILES_RUN * TILE, g[i], cols * sizeof(float));
    }
}

void ISA(moe_gate_up)(struct kern *k, const struct kern_moe_gate_up_args *a)
{
    struct moe_job j = {
        .plan = plan(k, a->ids, a->n, a->topk, a->gate->shape.stack),
        .runs = runs_of(a->gate),
        .gate_up = a,
    };
    cpu_run(k, j.plan.pieces_n * j.runs,
            2 * a->n * a->topk * a->gate->shape.rows * a->gate->shape.cols, gate_up_item, &j);
}

// Adds one piece's experts' outputs, weighted, to the sums [BLOCK_TOKENS][run's columns].
static void down_piece(const struct moe_job *j, const struct moe_piece *piece, size_t run,
                       size_t token0, float (*sum)[TILES_RUN * TILE])
{
    const struct kern_moe_down_args *a = j->down;
    const uint32_t *pairs = j->plan.pairs + piece->first;
    const float *weights = a->weights->p;
    struct tiles w = tiles_of(a->down, piece->expert);
    const float *h[TILES_BLOCK];
    float y[TILES_BLOCK][TILES_RUN * TILE];
    for (size_t i = 0; i < piece->n; i++)
        h[i] = kern_row(&a->h, pairs[i]);
    size_t tiles = run_tiles(&w, run);
    ISA(tiles_dot)(&w, run * TILES_RUN, tiles, h, piece->n, y[0]);
    for (size_t i = 0; i < piece->n; i++) {
        float *to = sum[pairs[i] / a->topk - token0];
        v8 weight = v8_set(weights[pairs[i]]);
        for (size_t c = 0; c < tiles * TILE; c += 8)
            v8_store(to + c, v8_fma(weight, v8_load(y[i] + c), v8_load(to + c)));
    }
}

static void down_item(void *ctx, size_t item, int thread)
{
    const struct moe_job *j = ctx;
    const struct kern_moe_down_args *a = j->down;
    size_t run = item % j->runs, block = item / j->runs, token0 = block * BLOCK_TOKENS;
    size_t tokens = a->n - token0 < BLOCK_TOKENS ? a->n - token0 : BLOCK_TOKENS;
    float sum[BLOCK_TOKENS][TILES_RUN * TILE];
    memset(sum, 0, tokens * sizeof sum[0]);
    for (size_t p = j->plan.block_pieces[block]; p < j->plan.block_pieces[block + 1]; p++)
        down_piece(j, &j->plan.pieces[p], run, token0, sum);
    struct tiles w = tiles_of(a->down, 0);
    size_t cols = run_cols(&w, run), at = run * TILES_RUN * TILE;
    for (size_t i = 0; i < tokens; i++) {
        if (a->shared.buf)
            for (size_t c = 0; c < cols; c++)
                sum[i][c] += kern_row(&a->shared, token0 + i)[at + c];
        if (a->residual.buf)
            for (size_t c = 0; c < cols; c++)
                sum[i][c] += kern_row(&a->residual, token0 + i)[at + c];
        memcpy(kern_row(&a->out, token0 + i) + at, sum[i], cols * sizeof(float));
    }
}

void ISA(moe_down)(struct kern *k, const struct kern_moe_down_args *a)
{
    struct moe_job j = {
        .plan = plan(k, a->ids, a->n, a->topk, a->down->shape.stack),
        .runs = runs_of(a->down),
        .down = a,
    };
    cpu_run(k, j.plan.blocks * j.runs, a->n * a->topk * a->down->shape.rows * a->down->shape.cols,
            down_item, &j);
}
