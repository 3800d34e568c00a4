// Cuts a step's rows into pieces of work of equal cost, and merges what several workers computed of
// one group. Where the cuts lie differs from batch to batch; the splits that are cut at, and the
// arithmetic of folding them in order, do not.
#include "kernels/cuda/attn_mla.cuh"

#include <string.h>

enum {
    PLAN_THREADS = 1024,
    // Cost in quarters of a tile, as measured on an H100: of a tile of 64 keys (2.4 us), of ending
    // a split (4 to 10 us), of beginning a group (8 us: queries, tables and output are not hidden).
    COST_TILE = 4,
    COST_SPLIT = 8,
    COST_GROUP = 12,
    ENTRIES_MB = 128, // room for partial results, unless fewer can occur
    MERGE_THREADS = 256
};

// ---- sizes

static int device_sms(void)
{
    int device = 0, sms = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
        return 1;
    return sms;
}

static size_t place(size_t *at, size_t bytes)
{
    size_t here = *at;
    *at = (here + bytes + 255) / 256 * 256;
    return here;
}

bool mla_cut(const struct cuda_mla *m, struct mla_cut *c)
{
    memset(c, 0, sizeof *c);
    c->n = m->rows.n;
    c->keys_max = m->rows.keys_max;
    c->heads = m->heads;
    c->split = m->split ? m->split : CUDA_MLA_SPLIT;
    if (c->n < 0 || c->keys_max < 0 || m->heads < 1 || c->split < 0 || c->split % (2 * MLA_TILE))
        return false;
    c->tile_heads = m->heads < MLA_TILE ? m->heads : MLA_TILE;
    c->tile_tokens = MLA_TILE / c->tile_heads;
    c->head_tiles = (m->heads + MLA_TILE - 1) / MLA_TILE;
    int tokens = c->n < c->tile_tokens ? c->n : c->tile_tokens;
    c->tile_warps = (tokens * c->tile_heads + 15) / 16;
    int sms = device_sms();
    c->workers = c->head_tiles < sms ? sms / c->head_tiles : 1;

    // A worker keeps one total and, of the group that its predecessor began, a result per split.
    size_t splits = ((size_t)c->keys_max + c->split - 1) / c->split;
    size_t most = (size_t)(c->n < c->workers ? c->n : c->workers) * splits + c->workers;
    size_t bytes = most * c->tile_warps * MLA_WARP_SUMS * sizeof(float4) * c->head_tiles;
    size_t least =
        (size_t)c->workers * c->tile_warps * MLA_WARP_SUMS * sizeof(float4) * c->head_tiles;
    size_t room = (size_t)ENTRIES_MB << 20 > least ? (size_t)ENTRIES_MB << 20 : least;
    c->warps = (bytes < room ? bytes : room) / (MLA_WARP_SUMS * sizeof(float4) * c->head_tiles);

    size_t at = 0;
    place(&at, sizeof(struct mla_plan));
    c->workers_at = place(&at, (c->workers + 1) * sizeof(struct mla_worker));
    c->merges_at = place(&at, c->workers * sizeof(struct mla_merge));
    c->groups_at = place(&at, (size_t)c->n * sizeof(struct mla_group));
    c->starts_at = place(&at, ((size_t)c->n + 1) * sizeof(int2));
    c->plan_bytes = at;
    at = 0;
    place(&at, c->warps * c->head_tiles * MLA_WARP_SUMS * sizeof(float4));
    c->tops_at = place(&at, c->warps * c->head_tiles * MLA_TILE * sizeof(float2));
    c->scratch_bytes = at;
    return true;
}

struct mla_work mla_work(const struct cuda_mla *m, const struct mla_cut *c)
{
    char *plan = (char *)m->plan, *scratch = (char *)m->scratch;
    struct mla_work w = {};
    w.plan = (struct mla_plan *)plan;
    w.workers = (struct mla_worker *)(plan + c->workers_at);
    w.merges = (struct mla_merge *)(plan + c->merges_at);
    w.groups = (struct mla_group *)(plan + c->groups_at);
    w.starts = (int2 *)(plan + c->starts_at);
    w.sums = (float4 *)scratch;
    w.tops = (float2 *)(scratch + c->tops_at);
    return w;
}

size_t cuda_mla_plan_bytes(const struct cuda_mla *m)
{
    struct mla_cut c;
    return mla_cut(m, &c) ? c.plan_bytes : 0;
}

size_t cuda_mla_scratch_bytes(const struct cuda_mla *m)
{
    struct mla_cut c;
    return mla_cut(m, &c) ? c.scratch_bytes : 0;
}

// ---- the plan

struct plan_job {
    const int32_t *seq, *pos;
    struct mla_cut c;
    struct mla_work w;
};

// Sum (or largest) of all values before this thread's; *all: of all threads.
static __device__ int scan(int v, bool largest, int none, int *all)
{
    __shared__ int warps[PLAN_THREADS / 32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, sum = v;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        int o = __shfl_up_sync(~0u, sum, d);
        if (lane >= d)
            sum = largest ? max(sum, o) : sum + o;
    }
    __syncthreads();
    if (lane == 31)
        warps[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        int w = warps[lane];
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            int o = __shfl_up_sync(~0u, w, d);
            if (lane >= d)
                w = largest ? max(w, o) : w + o;
        }
        warps[lane] = w;
    }
    __syncthreads();
    int before = __shfl_up_sync(~0u, sum, 1);
    before = lane ? before : none;
    int earlier = warp ? warps[warp - 1] : none;
    *all = warps[PLAN_THREADS / 32 - 1];
    return largest ? max(before, earlier) : before + earlier;
}

// Groups: every tile_tokens-th row of a run of one sequence begins one.
static __device__ int find_groups(const plan_job &j, int *rows_out)
{
    int groups = 0, run_start = -1, rows = 0;
    for (int first = 0; first < j.c.n; first += PLAN_THREADS) {
        int i = first + threadIdx.x, all;
        bool there = i < j.c.n && j.pos[i] >= 0;
        bool begins = there && (i == 0 || j.pos[i - 1] < 0 || j.seq[i - 1] != j.seq[i]);
        int before = scan(begins ? i : -1, true, -1, &all);
        int start = begins ? i : max(before, run_start);
        run_start = max(run_start, all);
        bool leads = there && (i - start) % j.c.tile_tokens == 0;
        int at = groups + scan(leads, false, 0, &all);
        groups += all;
        if (leads) {
            struct mla_group g = {i, 0, 0, 1 << 30};
            for (int r = i; r < j.c.n && r < i + j.c.tile_tokens; r++) {
                int pos = j.pos[r];
                if (pos < 0 || j.seq[r] != j.seq[i])
                    break;
                g.rows++;
                g.keys = max(g.keys, pos + 1);
                g.keys_all = min(g.keys_all, pos + 1);
            }
            j.w.groups[at] = g;
            rows = max(rows, g.rows);
        }
    }
    scan(rows, true, 0, rows_out);
    __syncthreads();
    return groups;
}

static __device__ int splits_of(const plan_job &j, int keys)
{
    return (keys + j.c.split - 1) / j.c.split;
}

// Prefix sums of splits and cost over the groups.
static __device__ void find_starts(const plan_job &j, int groups)
{
    int splits = 0, cost = 0;
    for (int first = 0; first < groups; first += PLAN_THREADS) {
        int g = first + threadIdx.x, all;
        int keys = g < groups ? j.w.groups[g].keys : 0;
        int s = splits_of(j, keys);
        int c = g < groups ? COST_TILE * mla_tiles(keys) + COST_SPLIT * s + COST_GROUP : 0;
        int s_at = splits + scan(s, false, 0, &all);
        splits += all;
        int c_at = cost + scan(c, false, 0, &all);
        cost += all;
        if (g < groups)
            j.w.starts[g] = make_int2(s_at, c_at);
    }
    if (threadIdx.x == 0)
        j.w.starts[groups] = make_int2(splits, cost);
    __syncthreads();
}

// The split nearest to share `w` of the cost; whole: only at a group's beginning.
static __device__ struct mla_worker begin_of(const plan_job &j, int groups, int w, bool whole)
{
    struct mla_worker b = {groups, 0, 0, 0};
    if (w >= j.c.workers)
        return b;
    long long target = (long long)j.w.starts[groups].y * w / j.c.workers;
    int lo = 0, hi = groups; // starts[lo] <= target < starts[hi]
    while (hi - lo > 1) {
        int mid = (lo + hi) / 2;
        if (j.w.starts[mid].y <= target)
            lo = mid;
        else
            hi = mid;
    }
    if (groups == 0)
        return b;
    int splits = j.w.starts[lo + 1].x - j.w.starts[lo].x;
    int cost = j.w.starts[lo + 1].y - j.w.starts[lo].y, in = (int)target - j.w.starts[lo].y;
    // Split s > 0 begins at COST_GROUP + s * each: whoever begins a group pays for that.
    int each = COST_TILE * (j.c.split / MLA_TILE) + COST_SPLIT, split;
    if (whole || splits == 1)
        split = (2 * in >= cost) * splits;
    else if (2 * in < COST_GROUP + each)
        split = 0;
    else if (2 * in >= COST_GROUP + (splits - 1) * each + cost)
        split = splits;
    else
        split = min(splits - 1, max(1, (in - COST_GROUP + each / 2) / each));
    bool next = split >= splits;
    b.group = next ? lo + 1 : lo;
    b.split = next ? 0 : split;
    return b;
}

// Lays out the partial results: a worker has one per split of a group begun before it, and one for
// totals when it begins a group itself. False: there is no room.
static __device__ bool place_entries(const plan_job &j, int groups, int entry_warps, bool whole)
{
    int entries = 0;
    for (int first = 0; first <= j.c.workers; first += PLAN_THREADS) {
        int w = first + threadIdx.x, all, mine = 0;
        struct mla_worker b = {}, e = {};
        if (w < j.c.workers) {
            b = begin_of(j, groups, w, whole);
            e = begin_of(j, groups, w + 1, whole);
            int to = e.group > b.group && b.group < groups ? splits_of(j, j.w.groups[b.group].keys)
                                                           : e.split;
            if (b.split)
                mine = to - b.split;
            int begun = b.split ? b.group + 1 : b.group; // first group that it begins
            mine += e.group > begun || (e.group == begun && e.split > 0);
        } else {
            b.group = groups;
        }
        b.entry = entries + scan(mine, false, 0, &all);
        entries += all;
        if (w <= j.c.workers)
            j.w.workers[w] = b;
    }
    __syncthreads();
    return (size_t)entries * entry_warps <= j.c.warps;
}

// A group that ends in a worker that did not begin it is to be merged.
static __device__ int find_merges(const plan_job &j, int groups)
{
    int merges = 0;
    for (int first = 0; first < j.c.workers; first += PLAN_THREADS) {
        int w = first + threadIdx.x, all;
        bool ends = false;
        struct mla_merge m = {};
        if (w < j.c.workers) {
            struct mla_worker b = j.w.workers[w], e = j.w.workers[w + 1];
            ends = b.split && e.group > b.group;
            if (ends) {
                int from = w; // the worker that began it: its total is its last entry
                while (j.w.workers[from].group == b.group && j.w.workers[from].split)
                    from--;
                m.group = b.group;
                m.entry = j.w.workers[from + 1].entry - 1;
                m.entries = b.entry + splits_of(j, j.w.groups[b.group].keys) - b.split - m.entry;
            }
        }
        int at = merges + scan(ends, false, 0, &all);
        merges += all;
        if (ends)
            j.w.merges[at] = m;
    }
    return merges;
}

static __global__ void __launch_bounds__(PLAN_THREADS) plan_rows(const __grid_constant__ plan_job j)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;");
#endif
    int rows, groups = find_groups(j, &rows);
    int entry_warps = (rows * j.c.tile_heads + 15) / 16;
    find_starts(j, groups);
    if (!place_entries(j, groups, entry_warps, false))
        place_entries(j, groups, entry_warps, true);
    int merges = find_merges(j, groups);
    if (threadIdx.x == 0) {
        j.w.plan->groups = groups;
        j.w.plan->merges = merges;
        j.w.plan->entry_warps = entry_warps;
    }
}

static cudaError_t launch(cudaStream_t s, const void *kernel, dim3 grid, int threads, void **args)
{
    cudaLaunchAttribute pdl = {};
    pdl.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    pdl.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t c = {};
    c.gridDim = grid;
    c.blockDim = dim3(threads);
    c.stream = s;
    c.attrs = &pdl;
    c.numAttrs = 1;
    return cudaLaunchKernelExC(&c, kernel, args);
}

cudaError_t cuda_mla_plan(cudaStream_t s, const struct cuda_mla *m)
{
    plan_job j = {};
    if (!mla_cut(m, &j.c) || m->plan_bytes < j.c.plan_bytes)
        return cudaErrorInvalidValue;
    if (m->rows.n == 0 || mla_is_short(m, &j.c)) // needs no plan
        return cudaSuccess;
    j.seq = m->rows.seq;
    j.pos = m->rows.pos;
    j.w = mla_work(m, &j.c);
    void *args[] = {&j};
    return launch(s, (const void *)plan_rows, dim3(1), PLAN_THREADS, args);
}

// ---- merge

struct merge_job {
    struct mla_cut c;
    struct mla_work w;
    uint16_t *out;
    size_t out_ld;
    const int32_t *pos; // by rows: every row is a group, with `splits` partial results
    int splits;
};

static __global__ void __launch_bounds__(MERGE_THREADS)
    merge_entries(const __grid_constant__ merge_job j)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;");
#endif
    int tile = blockIdx.y % j.c.head_tiles, which = blockIdx.y / j.c.head_tiles;
    struct mla_merge m = {};
    struct mla_group g = {which, 1, 0, 0};
    int entry_warps = 1;
    if (j.pos) {
        m.entry = which * j.splits;
        m.entries = (j.pos[which] + j.c.split) / j.c.split;
        if (m.entries < 2) // written already
            return;
    } else {
        if (which >= j.w.plan->merges)
            return;
        m = j.w.merges[which];
        g = j.w.groups[m.group];
        entry_warps = j.w.plan->entry_warps;
    }
    int at = blockIdx.x * MERGE_THREADS + threadIdx.x, lane = at % 32, column = at / 32 % 32;
    int half = at / 1024 % 2, row = at / 2048 * 16 + lane / 4;
    if (at / 2048 * 16 >= g.rows * j.c.tile_heads)
        return;
    size_t floats4 = (size_t)entry_warps * MLA_WARP_SUMS;
    size_t first = (size_t)m.entry * j.c.head_tiles + tile;
    const float4 *sums = j.w.sums + first * floats4 + at;
    const float2 *tops = j.w.tops + first * MLA_TILE + row;
    float4 o = *sums;
    float2 lo = tops[0], hi = tops[8];
#pragma unroll 8
    for (int e = 1; e < m.entries; e++) {
        float4 v = sums[e * floats4 * j.c.head_tiles];
        float2 l = tops[(size_t)e * j.c.head_tiles * MLA_TILE];
        float2 h = tops[(size_t)e * j.c.head_tiles * MLA_TILE + 8];
        float old, now;
        mla_fold(&lo.x, &lo.y, l.x, l.y, &old, &now);
        o.x = mla_fold_value(o.x, v.x, old, now);
        o.y = mla_fold_value(o.y, v.y, old, now);
        mla_fold(&hi.x, &hi.y, h.x, h.y, &old, &now);
        o.z = mla_fold_value(o.z, v.z, old, now);
        o.w = mla_fold_value(o.w, v.w, old, now);
    }
    float by_lo = 1 / lo.y, by_hi = 1 / hi.y;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int r = row + 8 * i, head = tile * MLA_TILE + r % j.c.tile_heads;
        if (r / j.c.tile_heads >= g.rows || head >= j.c.heads)
            continue;
        size_t to = (g.row0 + r / j.c.tile_heads) * j.out_ld + (size_t)head * MLA_LORA +
                    half * (MLA_LORA / 2) + 8 * column + 2 * (lane % 4);
        *(__nv_bfloat162 *)(j.out + to) = i ? __floats2bfloat162_rn(o.z * by_hi, o.w * by_hi)
                                            : __floats2bfloat162_rn(o.x * by_lo, o.y * by_lo);
    }
}

static cudaError_t launch_merge(cudaStream_t s, const struct cuda_mla *m, const struct mla_cut *c,
                                int groups, int warps, bool by_rows)
{
    merge_job j = {};
    j.c = *c;
    j.w = mla_work(m, c);
    j.out = m->out;
    j.out_ld = m->out_ld;
    j.pos = by_rows ? m->rows.pos : NULL;
    j.splits = (c->keys_max + c->split - 1) / c->split;
    void *args[] = {&j};
    return launch(s, (const void *)merge_entries,
                  dim3(warps * MLA_WARP_SUMS / MERGE_THREADS, groups * c->head_tiles),
                  MERGE_THREADS, args);
}

cudaError_t mla_merge(cudaStream_t s, const struct cuda_mla *m, const struct mla_cut *c)
{
    return launch_merge(s, m, c, c->n < c->workers ? c->n : c->workers, c->tile_warps, false);
}

cudaError_t mla_merge_rows(cudaStream_t s, const struct cuda_mla *m, const struct mla_cut *c)
{
    return launch_merge(s, m, c, c->n, 1, true);
}
