// Launchers of the few-row products: checks a product's shape, lays it over the device and fills
// what the kernel takes (mm_few.cuh).
#include <string.h>

#include "kernels/cuda/mm_few_plan.cuh"
#include "kernels/cuda/mm_few.h"

struct few_tune few_tune;
enum { FEW_SUMS_BYTES = 32 << 10 }; // of shared memory for the sums of down

// ---- the device

struct few_device {
    int id, sms;
};
static cudaError_t few_device_get(few_device *d)
{
    int major = 0, minor = 0;
    cudaError_t e = cudaGetDevice(&d->id);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&d->sms, cudaDevAttrMultiProcessorCount, d->id);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, d->id);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, d->id);
    return e == cudaSuccess && (major != 9 || minor != 0) ? cudaErrorNotSupported : e;
}

// The driver's entry, so that nothing links the driver.
typedef CUresult few_encode_fn(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                               const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                               const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                               CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
static few_encode_fn *few_encode()
{
    static few_encode_fn *fn;
    if (!fn) {
        void *p = NULL;
        cudaDriverEntryPointQueryResult r;
        if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &p, 12000, cudaEnableDefault,
                                             &r) == cudaSuccess &&
            r == cudaDriverEntryPointSuccess)
            fn = (few_encode_fn *)p;
    }
    return fn;
}

static size_t few_width(cuda_wtype type)
{
    return type == CUDA_W_BF16 ? 2 : 1;
}

// Stages of `box_rows` rows x `subs` runs of 128 bytes of matrix `w` (of w's shape).
static cudaError_t few_map(CUtensorMap *map, const struct cuda_matrix *w, const void *base,
                           int box_rows, int subs)
{
    few_encode_fn *encode = few_encode();
    if (!encode)
        return cudaErrorNotSupported;
    cuuint64_t row = w->ld * few_width(w->type);
    cuuint64_t dims[4] = {FEW_SUB, (cuuint64_t)w->rows, row / FEW_SUB, (cuuint64_t)w->stack};
    cuuint64_t strides[3] = {row, FEW_SUB, w->stack > 1 ? w->stack_bytes : row * w->rows};
    cuuint32_t box[4] = {FEW_SUB, (cuuint32_t)box_rows, (cuuint32_t)subs, 1};
    cuuint32_t steps[4] = {1, 1, 1, 1};
    CUresult r = encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 4, (void *)base, dims, strides, box,
                        steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return r == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// ---- shapes

static bool aligned(const void *p, size_t to)
{
    return ((uintptr_t)p & (to - 1)) == 0;
}

static bool few_matrix_fits(const struct cuda_matrix *w, const void *up)
{
    size_t row = w->ld * few_width(w->type);
    if (!w->w || !aligned(w->w, 16) || !aligned(up, 16) || w->rows < 1 || w->cols < 1 ||
        w->stack < 1 || w->ld < (size_t)w->cols || row % FEW_SUB ||
        (w->stack > 1 && w->stack_bytes % 16))
        return false;
    return w->type == CUDA_W_BF16 ||
           (w->scales && aligned(w->scales, 16) &&
            (w->type == CUDA_W_INT8 || (w->scales_ld % 4 == 0 && w->stack_scales % 4 == 0)));
}

// x of a product: bf16 or, for FP8 and INT8 weights, quantized.
struct few_x {
    const uint16_t *x;
    size_t x_ld;
    const void *xq;
    size_t xq_ld;
    const float *xs;
    size_t xs_ld;
};
static bool few_set_x(few *m, const struct cuda_matrix *w, const few_x &x)
{
    if (w->type == CUDA_W_BF16) {
        m->x = (const char *)x.x;
        m->x_row = x.x_ld * 2;
    } else {
        m->x = (const char *)x.xq;
        m->x_row = x.xq_ld;
        m->xs = x.xs;
        m->xs_ld = x.xs_ld;
        if (!x.xs || (w->type == CUDA_W_FP8 && (x.xs_ld % 4 || !aligned(x.xs, 16))))
            return false;
    }
    m->row_bytes = (int)((w->cols * few_width(w->type) + 15) / 16 * 16);
    m->subs = (m->row_bytes + FEW_SUB - 1) / FEW_SUB;
    return m->x && aligned(m->x, 16) && m->x_row % 16 == 0;
}

static void few_set_w(few *m, const struct cuda_matrix *w, const float *scales_up)
{
    m->rows = w->rows;
    m->scales = w->scales;
    m->scales_up = scales_up;
    m->scales_ld = w->scales_ld;
    m->stack_scales = w->stack > 1 ? w->stack_scales : 0;
}

static int at_least(int x, int low)
{
    return x > low ? x : low;
}
static int at_most(int x, int high)
{
    return x < high ? x : high;
}

// Rings in shared memory: x takes what it needs to be ahead of L2's latency, W the rest.
static cudaError_t few_lay(few *m, const struct cuda_matrix *w, int r, few_geometry *g)
{
    const int plan = m->choices ? (int)sizeof(few_plan_memory) +
                                      few_pieces_max(*m) * (int)sizeof(few_piece) +
                                      (m->first ? 0 : m->n * m->topk * 4)
                                : 0;
    const bool tile = m->x_rows <= FEW_X_TILE;
    const int sums = g->op == FEW_DOWN ? m->n * r * 4 : 0;
    const int scales = 32 * FEW_STAGES_MAX + (tile ? 16 * FEW_X_TILE * FEW_STAGES_MAX : 0);
    const int fixed = plan + sums + scales + (int)sizeof(few_bars) + 64;
    const int room = at_least((few_tune.smem ? few_tune.smem : FEW_SMEM) - fixed, 0);
    g->r = r;
    m->stage_subs = tile || w->type == CUDA_W_FP8 || m->x_rows <= 16 ? 4 : 2;
    const int w_stage = r * FEW_SUB * m->stage_subs;
    const int x_stage = tile ? FEW_X_TILE * FEW_SUB * m->stage_subs
                             : m->x_rows * (m->stage_subs * FEW_SUB + FEW_X_PAD);
    m->x_stages = tile ? 6 : at_least(at_most(room * 2 / 5 / x_stage, FEW_STAGES_MAX), 3);
    m->w_stages = at_least((room - m->x_stages * x_stage) / w_stage, tile ? 3 : 2);
    m->w_stages = at_most(m->w_stages, FEW_STAGES_MAX);
    if (m->choices == 0) { // no room for more stages than a block has
        int units = (m->units + g->blocks - 1) / g->blocks;
        m->w_stages = at_most(m->w_stages, units * ((m->subs + m->stage_subs - 1) / m->stage_subs));
    }
    m->x_stages = at_most(m->x_stages, at_least(m->w_stages, 3));
    m->at_x = m->w_stages * w_stage;
    m->at_ws = (m->at_x + m->x_stages * x_stage + 15) / 16 * 16;
    m->at_xs = m->at_ws + 32 * FEW_STAGES_MAX;
    m->at_sums = m->at_ws + scales;
    m->at_plan = (m->at_sums + sums + 15) / 16 * 16 + (int)sizeof(few_bars);
    g->smem = (m->at_plan + plan + 15) / 16 * 16;
    if (tile) // wgmma reads 64 rows of x whatever the tile has: memory must be there
        g->smem = at_least(g->smem, m->at_ws + (FEW_X_MOST - FEW_X_TILE) * FEW_SUB);
    return g->smem <= FEW_SMEM_MAX ? cudaSuccess : cudaErrorInvalidValue;
}

static cudaError_t few_go(cudaStream_t s, few *m, const struct cuda_matrix *w, const void *up,
                          const few_geometry *g)
{
    int box = g->op == FEW_GATED ? g->r / 2 : g->r;
    m->keep = few_tune.keep;
    cudaError_t e = few_map(&m->w, w, w->w, box, m->stage_subs);
    if (e == cudaSuccess && up)
        e = few_map(&m->w_up, w, up, box, m->stage_subs);
    if (e != cudaSuccess)
        return e;
    switch (w->type) {
    case CUDA_W_BF16:
        return few_launch_bf16(s, m, g);
    case CUDA_W_FP8:
        return few_launch_fp8(s, m, g);
    case CUDA_W_INT8:
        return few_launch_int8(s, m, g);
    }
    return cudaErrorInvalidValue;
}

// Nanoseconds of a step of a chain (32 bytes of every row), measured on an H100: how fast a block
// multiplies what lies there.
static double few_step(const struct cuda_matrix *w, int r, int parts, int n)
{
    const bool fp8 = w->type == CUDA_W_FP8, wide = r == 64;
    if (n <= FEW_X_TILE)
        return (fp8 ? (wide ? 38 : 30) : (wide ? 31 : 21)) + (parts == 2 ? 7 : 0);
    const double own = (fp8 ? (wide ? 41 : 34) : (wide ? 54 : 34)) + (parts == 2 ? 7 : 0),
                 x = 0.9 * n;
    return own > x ? own : x;
}

// Rows of W per unit, by what a block then takes in all: rounds of units, each as long as its bytes
// of W at its share of the memory's rate, its bytes of W and x at what it gets from L2, or its
// chain; and about a microsecond until its sums are out. Nanoseconds and bytes per nanosecond.
static int few_unit_rows(const few_device &d, const struct cuda_matrix *w, int parts,
                         size_t matrices, int n)
{
    if (few_tune.r)
        return few_tune.r;
    const double row = (double)w->cols * few_width(w->type);
    const size_t rows = (size_t)w->rows * parts;
    int best = 0;
    double least = 0;
    for (int r = parts == 1 ? 8 : 16; r <= 64; r *= 2) {
        size_t units = (rows + r - 1) / r * matrices, rounds = (units + d.sms - 1) / d.sms;
        double alone = units < (size_t)d.sms ? (double)d.sms / units : 1; // others leave it more
        double chain = row / 32 * few_step(w, r, parts, n), l2 = (r + n) * row / 45;
        double dram = r * row / (22 * (alone < 2 ? alone : 2));
        double unit = chain > dram ? chain : dram;
        unit = unit > l2 ? unit : l2;
        // 64 rows leave the ring few stages.
        double all = rounds * (unit + 1000) * (r == 64 && n <= FEW_X_TILE ? 1.1 : 1);
        if (!best || all < 0.97 * least) {
            best = r;
            least = all;
        }
    }
    return best;
}

// ---- dense and per head

cudaError_t cuda_matmul_few(cudaStream_t s, const struct cuda_matmul *a)
{
    if (a->n == 0)
        return cudaSuccess;
    few m;
    memset(&m, 0, sizeof m);
    few_device d;
    cudaError_t e = few_device_get(&d);
    if (e != cudaSuccess)
        return e;
    bool gated = a->w_up != NULL, heads = a->heads > 1;
    if (a->n < 0 || a->n > CUDA_MM_FEW || !few_matrix_fits(&a->w, a->w_up) || a->heads < 1 ||
        a->heads > a->w.stack || !a->out || a->out_ld % 2 || a->out_head % 2 ||
        (heads && (a->w.type != CUDA_W_BF16 || gated || a->add || a->bias || a->x_head % 8)) ||
        (gated && (a->add || (a->w.type != CUDA_W_BF16 && !a->scales_up))) ||
        !few_set_x(&m, &a->w, {a->x, a->x_ld, a->xq, a->xq_ld, a->xs, a->xs_ld}))
        return cudaErrorInvalidValue;
    few_geometry g = {gated ? FEW_GATED : FEW_PLAIN, 0, 0, 0, d.id};
    int r = few_unit_rows(d, &a->w, gated ? 2 : 1, a->heads, a->n), step = gated ? r / 2 : r;
    few_set_w(&m, &a->w, a->scales_up);
    m.x_head = a->x_head * 2;
    m.out = a->out;
    m.out_bf16 = a->out_bf16;
    m.out_ld = a->out_ld;
    m.out_head = a->out_head;
    m.bias = a->bias;
    m.bias_up = a->bias_up;
    m.add = a->add;
    m.add_ld = a->add_ld;
    m.n = m.x_rows = a->n;
    m.tiles = (a->w.rows + step - 1) / step;
    m.units = m.tiles * a->heads;
    g.blocks = at_most(m.units, few_tune.blocks ? few_tune.blocks : d.sms);
    e = few_lay(&m, &a->w, r, &g);
    return e == cudaSuccess ? few_go(s, &m, &a->w, a->w_up, &g) : e;
}

// ---- experts

// Rows that a piece takes: about what an expert gets, so that few rows do not pay for many. Where
// blocks sort the pairs for themselves, each in an order of its own, an expert's rows are one piece:
// two pieces, in two blocks, would not share them out.
static int few_piece_rows(const struct cuda_experts *e)
{
    if (cuda_experts_plan_bytes(e) == 0)
        return e->n;
    size_t pairs = (size_t)e->n * e->topk, each = (pairs + e->experts - 1) / e->experts;
    int r = each <= 4 ? 8 : each <= 10 ? 16 : each <= 24 ? 32 : 64;
    return at_most(r, e->n);
}

static bool few_set_experts(few *m, const struct cuda_experts *e, const struct cuda_matrix *w)
{
    if (e->topk < 1 || e->always < 0 || e->topk + e->always > 64 || e->experts < e->topk ||
        e->experts + e->always > CUDA_EXPERTS_MAX || e->experts + e->always > w->stack || !e->ids ||
        e->n < 0 || e->n > CUDA_EXPERTS_TOKENS)
        return false;
    m->n = e->n;
    m->topk = e->topk;
    m->choices = e->topk + e->always;
    m->experts = e->experts;
    m->always = e->always;
    m->ready = e->ready;
    m->ids = e->ids;
    m->weights = e->weights;
    m->x_rows = few_piece_rows(e);
    if (cuda_experts_plan_bytes(e) != 0) {
        if (!e->plan)
            return false;
        m->first = (const int32_t *)e->plan;
        m->pairs = m->first + e->experts + e->always + 1;
    }
    return true;
}

cudaError_t cuda_experts_gate_up_few(cudaStream_t s, const struct cuda_experts_gate_up *a)
{
    if (a->e.n == 0)
        return cudaSuccess;
    few m;
    memset(&m, 0, sizeof m);
    few_device d;
    cudaError_t e = few_device_get(&d);
    if (e != cudaSuccess)
        return e;
    if (!few_matrix_fits(&a->w, a->w_up) || !a->w_up || !a->out || a->out_ld % 2 ||
        (a->w.type != CUDA_W_BF16 && !a->scales_up) || !few_set_experts(&m, &a->e, &a->w) ||
        !few_set_x(&m, &a->w, {a->x, a->x_ld, a->xq, a->xq_ld, a->xs, a->xs_ld}))
        return cudaErrorInvalidValue;
    few_geometry g = {FEW_GATED, 0, 0, 0, d.id};
    int r = few_unit_rows(d, &a->w, 2, at_most(a->e.n * m.topk, m.experts) + m.always, m.x_rows);
    few_set_w(&m, &a->w, a->scales_up);
    m.out = a->out;
    m.out_bf16 = 1;
    m.out_ld = a->out_ld;
    m.tiles = (a->w.rows + r / 2 - 1) / (r / 2);
    e = few_lay(&m, &a->w, r, &g);
    int pieces = few_pieces_max(m) + m.always * ((m.n + m.x_rows - 1) / m.x_rows);
    g.blocks =
        at_most(at_most(pieces, 1 << 20) * m.tiles, few_tune.blocks ? few_tune.blocks : d.sms);
    return e == cudaSuccess ? few_go(s, &m, &a->w, a->w_up, &g) : e;
}

cudaError_t cuda_experts_down_few(cudaStream_t s, const struct cuda_experts_down *a)
{
    if (a->e.n == 0)
        return cudaSuccess;
    few m;
    memset(&m, 0, sizeof m);
    few_device d;
    cudaError_t e = few_device_get(&d);
    if (e != cudaSuccess)
        return e;
    if (a->e.n > CUDA_EXPERTS_FEW || !few_matrix_fits(&a->w, NULL) || !a->out || a->out_ld % 2 ||
        !a->e.weights || !few_set_experts(&m, &a->e, &a->w) ||
        !few_set_x(&m, &a->w, {a->h, a->h_ld, a->hq, a->hq_ld, a->hs, a->hs_ld}))
        return cudaErrorInvalidValue;
    few_geometry g = {FEW_DOWN, 0, 0, 0, d.id};
    int r = at_most(few_unit_rows(d, &a->w, 1, 1, m.x_rows), 32);
    while (r > 8 && m.n * r * 4 > FEW_SUMS_BYTES)
        r /= 2;
    few_set_w(&m, &a->w, NULL);
    m.out = a->out;
    m.out_ld = a->out_ld;
    m.shared = a->shared;
    m.shared_ld = a->shared_ld;
    m.add = a->residual;
    m.add_ld = a->residual_ld;
    m.tiles = (a->w.rows + r - 1) / r;
    e = few_lay(&m, &a->w, r, &g);
    g.blocks = at_most(m.tiles, few_tune.blocks ? few_tune.blocks : d.sms);
    return e == cudaSuccess ? few_go(s, &m, &a->w, NULL, &g) : e;
}

size_t cuda_experts_plan_bytes(const struct cuda_experts *e)
{
    size_t pairs = (size_t)e->n * e->topk;
    if (pairs <= FEW_PLAN_PAIRS && e->n <= CUDA_MM_FEW)
        return 0;
    return (e->experts + e->always + 1 + (size_t)e->n * (e->topk + e->always)) * sizeof(int32_t);
}
