// Grouped-query attention: which kernel computes which rows. Rows of decode and short pieces of
// prefill go to attn_gqa_few.cu, long pieces to attn_gqa_many.cu (Hopper only); both give the same
// bits, so the border is a matter of speed alone. It is drawn on the device, by one block that
// reads seq and pos; a call whose rows are all of different sequences needs no plan.
#include "kernels/cuda/attn_gqa.cuh"

namespace gqa
{

enum {
    // Rows (token, head) of a piece from which on it is `many`: more than one few tile; with few
    // rows
    // in all, long sequences would leave multiprocessors idle there.
    MANY_FROM = FEW_ROWS + 1,
    MANY_FROM_ALONE = WG_ROWS + 1,
    ALONE_ROWS = 128,
    PLAN_THREADS = 1024,
    PLAN_EACH = 8, // neighbouring rows of a thread
    BUCKETS = 2048,
    PLAIN_THREADS = 128,
    HEAD_DIM_MAX = 1024,
    LIST_MAX = 1024, // rows that attn_gqa_few finds its way through without a plan
};

// ---- the plan

struct plan_out {
    plan *p;
    tile *few_tiles, *many_tiles;
    int32_t *few_units, *starts;
    bool use_many;
    int many_from;
};

// Inclusive scan over the block; *all gets the total.
template <class F> static __device__ int block_scan(int v, int zero, int32_t *warps, int *all, F f)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int d = 1; d < 32; d *= 2) {
        int w = __shfl_up_sync(~0u, v, d);
        v = lane >= d ? f(w, v) : v;
    }
    __syncthreads();
    if (lane == 31)
        warps[warp] = v;
    __syncthreads();
    int before = zero, total = zero;
    for (int w = 0; w < PLAN_THREADS / 32; w++) {
        before = w < warp ? f(before, warps[w]) : before;
        total = f(total, warps[w]);
    }
    *all = total;
    return f(before, v);
}

static __device__ __forceinline__ bool begins(const args &a, int i)
{
    return i == 0 || a.seq[i] != a.seq[i - 1] || a.pos[i] != a.pos[i - 1] + 1 || a.pos[i] <= 0;
}

static __device__ __forceinline__ int units_at(const args &a, int row, int tokens)
{
    return a.pos[row + tokens - 1] / UNIT + 1;
}

// Rows from i on that belong to its piece, at most `most`.
static __device__ __forceinline__ int tokens_from(const int32_t *starts, int n, int i, int most)
{
    if (i + most <= n && starts[i + most - 1] == starts[i])
        return most;
    int tokens = 1;
    while (i + tokens < n && starts[i + tokens] == starts[i])
        tokens++;
    return tokens;
}

// Two passes over the rows: where each row's piece begins; then how long it is
// and what tiles it makes.
static __global__ void __launch_bounds__(PLAN_THREADS)
    attn_gqa_plan(const __grid_constant__ args a, const __grid_constant__ plan_out out)
{
    __shared__ int32_t warps[PLAN_THREADS / 32], buckets[BUCKETS], n_many;
    wait_for_predecessor();
    launch_dependents();
    auto largest = [](int x, int y) { return max(x, y); };
    auto plus = [](int x, int y) { return x + y; };
    constexpr int CHUNK = PLAN_THREADS * PLAN_EACH;
    for (int i = threadIdx.x; i < BUCKETS; i += PLAN_THREADS)
        buckets[i] = 0;
    int carry = 0, all;
    for (int first = 0; first < a.n; first += CHUNK) {
        int row = first + threadIdx.x * PLAN_EACH, start[PLAN_EACH], last = 0;
        for (int j = 0; j < PLAN_EACH; j++)
            start[j] = last = row + j < a.n && begins(a, row + j) ? row + j : last;
        int upto = block_scan(last, 0, warps, &all, largest);
        int before = __shfl_up_sync(~0u, upto, 1);
        if (threadIdx.x % 32 == 0) {
            before = 0;
            for (int w = 0; w < threadIdx.x / 32; w++)
                before = max(before, warps[w]);
        }
        before = max(before, carry);
        for (int j = 0; j < PLAN_EACH; j++)
            if (row + j < a.n)
                out.starts[row + j] = max(start[j], before);
        carry = max(carry, all);
    }
    __syncthreads();
    int reach = (out.many_from + a.group - 1) / a.group; // tokens of the shortest long piece
    int few_n = 0, units_n = 0;
    for (int first = 0; first < a.n; first += CHUNK) {
        int row = first + threadIdx.x * PLAN_EACH, tiles = 0, units = 0;
        tile mine[PLAN_EACH];
        for (int j = 0; j < PLAN_EACH; j++) {
            int i = row + j;
            mine[j] = {i, 0};
            if (i >= a.n || a.pos[i] < 0)
                continue;
            int start = out.starts[i], at = i - start;
            bool is_long =
                out.use_many && start + reach - 1 < a.n && out.starts[start + reach - 1] == start;
            int step = is_long ? 2 * a.many_tokens : a.few_tokens;
            if (at % step)
                continue;
            int tokens = tokens_from(out.starts, a.n, i, step);
            if (is_long) {
                atomicAdd(&buckets[min(units_at(a, i, tokens), BUCKETS) - 1], 1);
                mine[j].tokens = -tokens;
            } else {
                mine[j].tokens = tokens;
                tiles++;
                units += units_at(a, i, tokens);
            }
        }
        int tiles_all, units_all;
        int tiles_at = few_n + block_scan(tiles, 0, warps, &tiles_all, plus) - tiles;
        int units_at_ = units_n + block_scan(units, 0, warps, &units_all, plus) - units;
        for (int j = 0; j < PLAN_EACH; j++) {
            if (mine[j].tokens <= 0)
                continue;
            out.few_tiles[tiles_at] = mine[j];
            out.few_units[tiles_at++] = units_at_;
            units_at_ += units_at(a, mine[j].row, mine[j].tokens);
        }
        few_n += tiles_all;
        units_n += units_all;
    }
    __syncthreads();
    // Places of the many tiles: those with the most units first.
    {
        int from = BUCKETS - 1 - threadIdx.x * (BUCKETS / PLAN_THREADS), n = 0, many_all;
        for (int j = 0; j < BUCKETS / PLAN_THREADS; j++)
            n += buckets[from - j];
        int place = block_scan(n, 0, warps, &many_all, plus) - n;
        for (int j = 0; j < BUCKETS / PLAN_THREADS; j++) {
            int here = buckets[from - j];
            buckets[from - j] = place;
            place += here;
        }
        if (threadIdx.x == 0)
            n_many = many_all;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < a.n && n_many; i += PLAN_THREADS) {
        int start = out.starts[i], at = i - start, step = 2 * a.many_tokens;
        if (a.pos[i] < 0 || at % step || start + reach - 1 >= a.n ||
            out.starts[start + reach - 1] != start)
            continue;
        int tokens = tokens_from(out.starts, a.n, i, step);
        int place = atomicAdd(&buckets[min(units_at(a, i, tokens), BUCKETS) - 1], 1);
        out.many_tiles[place] = {i, tokens};
    }
    if (threadIdx.x == 0) {
        out.p->few_n = few_n;
        out.p->many_n = n_many;
        out.few_units[few_n] = units_n;
    }
}

// ---- any shape

static __device__ float block_max_or_sum(float v, bool sum)
{
    __shared__ float part[PLAIN_THREADS / 32];
    for (int d = 16; d; d /= 2) {
        float w = __shfl_xor_sync(~0u, v, d);
        v = sum ? v + w : fmaxf(v, w);
    }
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    v = part[0];
    for (int i = 1; i < PLAIN_THREADS / 32; i++)
        v = sum ? v + part[i] : fmaxf(v, part[i]);
    __syncthreads();
    return v;
}

// A block per (head, row): a thread per key of a run of 128, then a thread per column of the value.
static __global__ void __launch_bounds__(PLAIN_THREADS)
    attn_gqa_plain(const __grid_constant__ args a, int head_dim, float scale, int row0)
{
    __shared__ float o[HEAD_DIM_MAX], q[HEAD_DIM_MAX], p[PLAIN_THREADS];
    wait_for_predecessor();
    launch_dependents();
    size_t row = row0 + blockIdx.y;
    int h = blockIdx.x, kv_head = h / a.group, pos = a.pos[row];
    const int32_t *table = a.tables + (size_t)a.seq[row] * a.table_stride;
    auto token = [&](int t) {
        return a.pool +
               ((size_t)table[t / a.block_tokens] * a.block_tokens + t % a.block_tokens) * a.width;
    };
    float top = -INFINITY, sum = 0;
    for (int c = threadIdx.x; c < head_dim; c += PLAIN_THREADS) {
        o[c] = 0;
        q[c] = __bfloat162float(a.q[row * a.q_stride + (size_t)h * head_dim + c]);
    }
    __syncthreads();
    if (pos < 0)
        return;
    for (int first = 0; first <= pos; first += PLAIN_THREADS) {
        int n = min((int)PLAIN_THREADS, pos + 1 - first);
        float s = -INFINITY;
        if (threadIdx.x < n) {
            const __nv_bfloat16 *key = token(first + threadIdx.x) + kv_head * head_dim;
            s = 0;
            for (int c = 0; c < head_dim; c++)
                s = fmaf(q[c], __bfloat162float(key[c]), s);
            s *= scale;
        }
        float new_top = fmaxf(top, block_max_or_sum(s, false)), old = expf(top - new_top);
        p[threadIdx.x] = expf(s - new_top);
        sum = fmaf(sum, old, block_max_or_sum(p[threadIdx.x], true));
        top = new_top;
        for (int c = threadIdx.x; c < head_dim; c += PLAIN_THREADS) {
            float v = o[c] * old;
            for (int i = 0; i < n; i++)
                v = fmaf(p[i],
                         __bfloat162float(token(first + i)[(a.kv_heads + kv_head) * head_dim + c]),
                         v);
            o[c] = v;
        }
        __syncthreads();
    }
    for (int c = threadIdx.x; c < head_dim; c += PLAIN_THREADS)
        a.out[row * a.out_stride + (size_t)h * head_dim + c] = __float2bfloat16_rn(o[c] / sum);
}

static cudaError_t plain(cudaStream_t stream, const args &a, int head_dim, float scale)
{
    if (head_dim > HEAD_DIM_MAX)
        return cudaErrorInvalidValue;
    enum { ROWS = 65535 };
    for (int row = 0; row < a.n; row += ROWS) {
        int rows = a.n - row < ROWS ? a.n - row : ROWS;
        attn_gqa_plain<<<dim3((unsigned)a.heads, (unsigned)rows), PLAIN_THREADS, 0, stream>>>(
            a, head_dim, scale, row);
    }
    return cudaGetLastError();
}

// ---- bounds

// All that follows from the host-known bounds, and where things lie in scratch.
struct layout {
    bool tensor, planned, use_many, use_few;
    int few_heads, few_groups, few_tokens, many_tokens, many_from;
    int ctas, slots, slot_rows;
    size_t few_tiles, few_units, many_tiles, starts, plan_bytes; // offsets in the plan
    size_t cuts, partial, bytes;                                 // in scratch
    bool fits; // places of the line of units are ints
};

static size_t place(size_t *at, size_t bytes)
{
    size_t here = *at;
    *at += (bytes + 255) & ~(size_t)255;
    return here;
}

static bool aligned(const struct cuda_gqa *a)
{
    size_t all =
        (size_t)a->q | (size_t)a->out | (size_t)a->pool | a->q_stride * 2 | a->out_stride * 2;
    return (all & 15) == 0;
}

static layout lay_out(const struct cuda_gqa *a)
{
    layout l = {};
    int group = a->heads / a->kv_heads, n = a->n;
    l.tensor = (a->head_dim == 64 || a->head_dim == 128) && aligned(a);
    int run_max = a->run_max > 0 && a->run_max < n ? a->run_max : n;
    l.few_heads = group < FEW_ROWS ? group : FEW_ROWS;
    l.few_groups = (group + FEW_ROWS - 1) / FEW_ROWS;
    l.few_tokens = FEW_ROWS / l.few_heads;
    l.many_tokens = WG_ROWS / (group < WG_ROWS ? group : WG_ROWS);
    // Boxes of the copy engine are whole blocks, or 128 tokens of one.
    bool boxes =
        a->block_tokens >= 8 && (UNIT % a->block_tokens == 0 || a->block_tokens % UNIT == 0);
    l.many_from = n < ALONE_ROWS ? MANY_FROM_ALONE : MANY_FROM;
    l.planned = run_max > 1 || n > LIST_MAX;
    l.use_many = l.planned && a->arch == 90 && boxes && group <= WG_ROWS &&
                 (int64_t)run_max * group >= l.many_from;
    l.use_few = true;
    int64_t units = (a->keys_max + UNIT - 1) / UNIT, per_tile = a->kv_heads * l.few_groups;
    int64_t all = units * n * per_tile;
    l.fits = all < INT32_MAX / 2;
    l.ctas = (int)(all < a->sms ? all : a->sms);
    l.slots = (int)(1 + (all / l.ctas + 1 < units ? all / l.ctas + 1 : units));
    l.slot_rows = l.few_heads * (l.planned ? l.few_tokens : 1);
    size_t at = 0;
    place(&at, sizeof(plan));
    l.few_tiles = place(&at, l.planned ? n * sizeof(tile) : 0);
    l.few_units = place(&at, l.planned ? (n + 1) * sizeof(int32_t) : 0);
    l.many_tiles = place(&at, l.planned ? n * sizeof(tile) : 0);
    l.starts = place(&at, l.planned ? n * sizeof(int32_t) : 0);
    l.plan_bytes = at;
    at = 0;
    l.cuts = place(&at, l.ctas * sizeof(cut_tile));
    l.partial = place(&at, (size_t)l.ctas * l.slots * l.slot_rows * (a->head_dim + STATS) * 4);
    l.bytes = at;
    return l;
}

} // namespace gqa

// Addresses need not be known yet.
static gqa::layout lay_out_bounds(const struct cuda_gqa *a)
{
    struct cuda_gqa whole = *a;
    whole.q = whole.pool = NULL;
    whole.out = NULL;
    whole.q_stride = whole.out_stride = 8;
    return gqa::lay_out(&whole);
}

size_t cuda_gqa_plan_bytes(const struct cuda_gqa *a)
{
    return a->n > 0 ? lay_out_bounds(a).plan_bytes : 0;
}

size_t cuda_gqa_scratch_bytes(const struct cuda_gqa *a)
{
    return a->n > 0 ? lay_out_bounds(a).bytes : 0;
}

cudaError_t cuda_gqa(cudaStream_t stream, const struct cuda_gqa *x)
{
    using namespace gqa;
    if (x->n <= 0)
        return cudaSuccess;
    layout l = lay_out(x);
    if (!l.fits)
        return cudaErrorInvalidValue;
    args a = {};
    a.q = (const __nv_bfloat16 *)x->q;
    a.pool = (const __nv_bfloat16 *)x->pool;
    a.out = (__nv_bfloat16 *)x->out;
    a.q_stride = x->q_stride;
    a.out_stride = x->out_stride;
    a.seq = x->seq;
    a.pos = x->pos;
    a.tables = x->tables;
    a.n = x->n;
    a.table_stride = x->table_stride;
    a.block_tokens = x->block_tokens;
    a.width = 2 * x->kv_heads * x->head_dim;
    a.heads = x->heads;
    a.kv_heads = x->kv_heads;
    a.group = x->heads / x->kv_heads;
    if (!l.tensor)
        return plain(stream, a, x->head_dim, x->scale);
    a.few_heads = l.few_heads;
    a.few_groups = l.few_groups;
    a.few_tokens = l.few_tokens;
    a.many_tokens = l.many_tokens;
    a.c = (float)(x->scale * 1.4426950408889634);
    char *scratch = (char *)x->scratch, *made = (char *)x->plan;
    a.partial = (float *)(scratch + l.partial);
    a.cuts = (cut_tile *)(scratch + l.cuts);
    a.slots = l.slots;
    a.slot_rows = l.slot_rows;
    cudaError_t e;
    if (l.planned) {
        plan_out p = {(plan *)made,
                      (tile *)(made + l.few_tiles),
                      (tile *)(made + l.many_tiles),
                      (int32_t *)(made + l.few_units),
                      (int32_t *)(made + l.starts),
                      l.use_many,
                      l.many_from};
        a.planned = p.p;
        a.few_tiles = p.few_tiles;
        a.many_tiles = p.many_tiles;
        a.few_units = p.few_units;
        if (!x->planned) {
            e = launch_kernel(stream, attn_gqa_plan, dim3(1), PLAN_THREADS, 0, a, p);
            if (e != cudaSuccess)
                return e;
        }
    }
    launch g = {stream, l.ctas, x->sms, x->head_dim, x->block_tokens, x->blocks};
    if (l.use_many && (e = many(g, a)) != cudaSuccess)
        return e;
    return few(g, a);
}
