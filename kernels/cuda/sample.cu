// Sampling on the device. A block per row reads the row a few times (it lies in L2): the largest
// logit; sums; then, for a draw, the candidates' distances from the best are counted in 2,048 bins
// of 1/64 (of a temperature), so many bins are gathered and sorted in shared memory as top-k, top-p
// or the draw surely need, and a scan over integer weights finds the token. Where that start of the
// order is longer than fits, the three borders are found bit by bit instead, by sums over the whole
// row: slow, but for logits that are nearly flat only.
#include "kernels/cuda/sample.h"

#include <math.h>

#include "base/same_math.h"

namespace
{

enum { THREADS = 1024, WARPS = THREADS / 32, BINS = 2048, LIST_MAX = 4096, PER_NAT = 64 };
typedef unsigned long long u64;

struct memory {
    u64 list[LIST_MAX];
    uint32_t bins[BINS];
    u64 words[WARPS];
    float floats[WARPS];
    u64 mass, kept;
    uint32_t listed, found, last_bin, total;
};

// A candidate as one number: larger comes first in the order.
static __device__ __forceinline__ u64 key_of(float l, uint32_t id)
{
    uint32_t bits = __float_as_uint(__fadd_rn(l, 0.0f)); // -0 becomes 0
    bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;
    return (u64)bits << 32 | (uint32_t)~id;
}
static __device__ __forceinline__ float logit_of(u64 key)
{
    uint32_t bits = (uint32_t)(key >> 32);
    return __uint_as_float(bits ^ (bits >> 31 ? 0x80000000u : 0xffffffffu));
}
static __device__ __forceinline__ int32_t id_of(u64 key)
{
    return (int32_t) ~(uint32_t)key;
}

static __device__ __forceinline__ u64 weight_of(float w)
{
    return (u64)__fmul_rn(w, (float)(1ull << KERN_SAMPLE_WEIGHT_BITS));
}

template <class F> static __device__ u64 block_reduce(memory &m, u64 v, F f)
{
    for (int d = 16; d; d /= 2)
        v = f(v, __shfl_xor_sync(~0u, v, d));
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        m.words[threadIdx.x / 32] = v;
    __syncthreads();
    v = m.words[threadIdx.x % 32];
    for (int d = 16; d; d /= 2)
        v = f(v, __shfl_xor_sync(~0u, v, d));
    return v;
}
struct larger {
    __device__ u64 operator()(u64 a, u64 b) const
    {
        return a > b ? a : b;
    }
};
struct plus {
    __device__ u64 operator()(u64 a, u64 b) const
    {
        return a + b;
    }
};

// Sum of the threads before this one, and of all.
template <class T> static __device__ T block_scan(T v, T *warps, T *all)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    T upto = v;
    for (int d = 1; d < 32; d *= 2) {
        T w = __shfl_up_sync(~0u, upto, d);
        upto += lane >= d ? w : 0;
    }
    __syncthreads();
    if (lane == 31)
        warps[warp] = upto;
    __syncthreads();
    T before = 0, total = 0;
    for (int w = 0; w < WARPS; w++) {
        before += w < warp ? warps[w] : 0;
        total += warps[w];
    }
    *all = total;
    return before + upto - v;
}

// The row's candidates at one temperature.
struct row {
    const float *logits; // not const in truth: penalties are written between two looks
    int vocab;
    float best, inverse, least; // inverse: of the temperature

    template <class F> __device__ __forceinline__ void each(F f) const
    {
        int whole = ((size_t)logits & 15) == 0 ? vocab / 4 : 0;
#pragma unroll 4
        for (int i = threadIdx.x; i < whole; i += THREADS) {
            float4 v = ((const float4 *)logits)[i];
            f(v.x, 4 * i);
            f(v.y, 4 * i + 1);
            f(v.z, 4 * i + 2);
            f(v.w, 4 * i + 3);
        }
        for (int i = 4 * whole + threadIdx.x; i < vocab; i += THREADS)
            f(logits[i], i);
    }
    __device__ __forceinline__ float distance(float l) const
    {
        return __fmul_rn(__fsub_rn(l, best), inverse);
    }
    __device__ __forceinline__ float probability(float l) const
    {
        return same_exp(distance(l));
    }
    __device__ __forceinline__ bool is_candidate(float w) const
    {
        return w >= least;
    }
    // Falls as l rises; what is more than 32 away, or is no number, comes last.
    static __device__ __forceinline__ uint32_t bin(float x)
    {
        float b = -x * PER_NAT;
        return b < BINS - 1 ? (uint32_t)b : BINS - 1;
    }
};

// Counts the candidates by bins; the sum of their weights, unless nobody wants it.
static __device__ u64 survey(memory &m, const row &r, bool weigh)
{
    for (int i = threadIdx.x; i < BINS; i += THREADS)
        m.bins[i] = 0;
    __syncthreads();
    u64 sum = 0;
    bool exponentials = weigh || r.least > 0;
    r.each([&](float l, int) {
        float x = r.distance(l), w = exponentials ? same_exp(x) : 0;
        if (!r.is_candidate(w))
            return;
        atomicAdd(&m.bins[row::bin(x)], 1u);
        sum += weigh ? weight_of(w) : 0;
    });
    return block_reduce(m, sum, plus());
}

// ---- the start of the order, sorted in shared memory

static __device__ void sort_list(memory &m)
{
    uint32_t n = m.listed, size = 2;
    while (size < n)
        size *= 2;
    for (uint32_t i = n + threadIdx.x; i < size; i += THREADS)
        m.list[i] = 0;
    __syncthreads();
    for (uint32_t run = 2; run <= size; run *= 2)
        for (uint32_t step = run / 2; step; step /= 2) {
            for (uint32_t i = threadIdx.x; i < size / 2; i += THREADS) {
                uint32_t a = 2 * i - (i & (step - 1)), b = a + step;
                u64 x = m.list[a], y = m.list[b];
                if ((x < y) == ((a & run) == 0)) {
                    m.list[a] = y;
                    m.list[b] = x;
                }
            }
            __syncthreads();
        }
}

// Lists at least the first `count` candidates, and so many that their probabilities sum up to at
// least `sum`, where there are so many. After a survey. false: they are more than fit.
static __device__ bool list_first(memory &m, const row &r, uint32_t count, double sum)
{
    if (threadIdx.x == 0) {
        m.last_bin = BINS - 1;
        m.listed = 0;
    }
    __syncthreads();
    constexpr int EACH = BINS / THREADS;
    uint32_t counts[EACH], mine = 0, counted;
    float sums[EACH], my_sum = 0, all_sum;
    for (int j = 0; j < EACH; j++) {
        int b = threadIdx.x * EACH + j;
        mine += counts[j] = m.bins[b];
        // Less than any of the bin has.
        my_sum += sums[j] =
            (float)counts[j] * same_exp(-(float)(b + 1) * (1.0f / PER_NAT)) * 0.9999f;
    }
    uint32_t before = block_scan<uint32_t>(mine, (uint32_t *)m.words, &counted);
    float sum_before = block_scan<float>(my_sum, m.floats, &all_sum);
    for (int j = 0; j < EACH; j++) {
        before += counts[j];
        sum_before += sums[j];
        if (before >= count && sum_before * 0.9999 >= sum)
            atomicMin(&m.last_bin, (uint32_t)(threadIdx.x * EACH + j));
    }
    if (threadIdx.x == 0)
        m.total = counted;
    __syncthreads();
    uint32_t last = m.last_bin;
    r.each([&](float l, int i) {
        float x = r.distance(l);
        if (row::bin(x) <= last && (r.least == 0 || r.is_candidate(same_exp(x)))) {
            uint32_t at = atomicAdd(&m.listed, 1u);
            if (at < LIST_MAX)
                m.list[at] = key_of(l, (uint32_t)i);
        }
    });
    __syncthreads();
    if (m.listed > LIST_MAX)
        return false;
    sort_list(m);
    return true;
}

// What the definition's steps 5 to 7 need of a row.
struct draw {
    uint32_t top_k; // 0: off
    float top_p, unit;
};

// -1: the list is too short to tell; -2: nothing exceeds the target.
static __device__ int32_t pick_listed(memory &m, const row &r, const draw &d, u64 mass_all)
{
    constexpr int EACH = LIST_MAX / THREADS;
    uint32_t n = m.listed, first = threadIdx.x * EACH;
    bool complete = n == m.total;
    u64 upto[EACH], mine = 0, all;
    for (int j = 0; j < EACH; j++)
        upto[j] = mine += first + j < n ? weight_of(r.probability(logit_of(m.list[first + j]))) : 0;
    u64 before = block_scan<u64>(mine, m.words, &all);
    for (int j = 0; j < EACH; j++)
        upto[j] += before;
    // 5
    if (d.top_k && n < d.top_k && !complete)
        return -1;
    uint32_t end = d.top_k && d.top_k < n ? d.top_k : n;
    if (threadIdx.x == 0) {
        m.mass = mass_all;
        m.found = LIST_MAX;
    }
    __syncthreads();
    for (int j = 0; j < EACH; j++)
        if (d.top_k && first + j + 1 == end)
            m.mass = upto[j];
    __syncthreads();
    u64 mass = m.mass, kept = mass;
    // 6
    if (d.top_p < 1) {
        double least = __dmul_rn((double)d.top_p, (double)mass);
        for (int j = 0; j < EACH; j++)
            if (first + j < end && (double)upto[j] >= least)
                atomicMin(&m.found, first + j);
        __syncthreads();
        uint32_t at = m.found;
        if (at == LIST_MAX && !complete && !d.top_k)
            return -1;
        for (int j = 0; j < EACH; j++)
            if (first + j == at)
                m.kept = upto[j];
        __syncthreads();
        if (at < LIST_MAX) {
            end = at + 1;
            kept = m.kept;
        }
        __syncthreads();
        if (threadIdx.x == 0)
            m.found = LIST_MAX;
        __syncthreads();
    }
    // 7
    double target = __dmul_rn((double)d.unit, (double)kept);
    for (int j = 0; j < EACH; j++)
        if (first + j < end && (double)upto[j] > target)
            atomicMin(&m.found, first + j);
    __syncthreads();
    uint32_t at = m.found;
    if (at < LIST_MAX)
        return id_of(m.list[at]);
    return complete || d.top_k || d.top_p < 1 ? -2 : -1;
}

// ---- the borders bit by bit

struct sums {
    u64 count, mass;
};
// Over the candidates that come no later than `key`.
static __device__ sums sums_upto(memory &m, const row &r, u64 key)
{
    u64 count = 0, mass = 0;
    r.each([&](float l, int i) {
        if (key_of(l, (uint32_t)i) < key)
            return;
        float w = r.probability(l);
        if (r.is_candidate(w)) {
            count++;
            mass += weight_of(w);
        }
    });
    sums s;
    s.count = block_reduce(m, count, plus());
    s.mass = block_reduce(m, mass, plus());
    return s;
}

// The shortest start of the order for which `enough` holds: key of its last candidate; 0 = none.
template <class F> static __device__ u64 border(memory &m, const row &r, F enough)
{
    u64 key = 0;
    for (int bit = 63; bit >= 0; bit--)
        if (enough(sums_upto(m, r, key | 1ull << bit)))
            key |= 1ull << bit;
    return key;
}

static __device__ int32_t pick_slowly(memory &m, const row &r, const draw &d, u64 mass_all)
{
    u64 mass = mass_all;
    if (d.top_k) {
        u64 k = d.top_k;
        mass = sums_upto(m, r, border(m, r, [=](sums s) { return s.count >= k; })).mass;
    }
    if (d.top_p < 1) {
        double least = __dmul_rn((double)d.top_p, (double)mass);
        u64 end = border(m, r, [=](sums s) { return s.count && (double)s.mass >= least; });
        mass = sums_upto(m, r, end).mass;
    }
    double target = __dmul_rn((double)d.unit, (double)mass);
    u64 end = border(m, r, [=](sums s) { return (double)s.mass > target; });
    return end ? id_of(end) : -2;
}

static __device__ int32_t pick(memory &m, const row &r, const kern_sample_row &p)
{
    draw d = {p.top_k > 0 && p.top_k < r.vocab ? (uint32_t)p.top_k : 0, p.top_p, p.unit};
    u64 mass = survey(m, r, !d.top_k);
    double share = d.top_k ? 0 : d.top_p < 1 ? (double)d.top_p : (double)d.unit;
    double need = share * (double)mass / (double)(1ull << KERN_SAMPLE_WEIGHT_BITS) * 1.0001;
    int32_t token = -1;
    if (list_first(m, r, d.top_k ? d.top_k : 1, need))
        token = pick_listed(m, r, d, mass);
    __syncthreads();
    return token == -1 ? pick_slowly(m, r, d, mass) : token;
}

// ---- penalties

struct entry {
    uint32_t id1, count; // id + 1, 0: free; when the penalty is applied, count is the raw logit
};
// The table of a row's history: its tokens, each once.
struct table {
    entry *entries;
    uint32_t size; // power of 2, at least twice the history
    __device__ __forceinline__ uint32_t find(uint32_t id) const
    {
        uint32_t at = id * 2654435761u & (size - 1);
        while (entries[at].id1 && entries[at].id1 != id + 1)
            at = (at + 1) & (size - 1);
        return at;
    }
};

static __device__ table penalise(float *logits, int vocab, const kern_sample_row &p,
                                 const int32_t *history, entry *entries)
{
    table t = {entries + 4 * (size_t)p.history_at, 2};
    while (t.size < 2 * p.history_n)
        t.size *= 2;
    for (uint32_t i = threadIdx.x; i < t.size && p.history_n; i += THREADS)
        t.entries[i] = {0, 0};
    __syncthreads();
    history += p.history_at;
    for (uint32_t i = threadIdx.x; i < p.history_n; i += THREADS) {
        uint32_t id = (uint32_t)history[i];
        if (id >= (uint32_t)vocab)
            continue;
        uint32_t at = id * 2654435761u & (t.size - 1);
        for (;; at = (at + 1) & (t.size - 1)) {
            uint32_t was = atomicCAS(&t.entries[at].id1, 0, id + 1);
            if (was == 0 || was == id + 1)
                break;
        }
        if (i >= p.history_prompt)
            atomicAdd(&t.entries[at].count, 1u);
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < t.size && p.history_n; i += THREADS) {
        entry e = t.entries[i];
        if (!e.id1)
            continue;
        float l = logits[e.id1 - 1];
        t.entries[i].count = __float_as_uint(l);
        l = l > 0 ? __fdiv_rn(l, p.repetition) : __fmul_rn(l, p.repetition);
        l = __fsub_rn(l, __fmul_rn(p.frequency, (float)e.count));
        logits[e.id1 - 1] = __fsub_rn(l, e.count ? p.presence : 0);
    }
    __syncthreads();
    return t;
}

// ---- a row

static __device__ u64 best_of(memory &m, const row &r, bool *finite)
{
    u64 best = 0, bad = 0;
    r.each([&](float l, int i) {
        bad |= !(l - l == 0);
        u64 key = key_of(l, (uint32_t)i);
        best = key > best ? key : best;
    });
    *finite = !__syncthreads_or((int)bad);
    return block_reduce(m, best, larger());
}

static __device__ double log_sum(const row &raw, u64 sum)
{
    return __dadd_rn((double)raw.best,
                     same_log(__ddiv_rn((double)sum, (double)(1ull << KERN_SAMPLE_WEIGHT_BITS))));
}

static __device__ float log_probability(float l, double lse)
{
    return __fadd_rn((float)__dadd_rn((double)l, -lse), 0.0f);
}

static __device__ void report_top(memory &m, const row &raw, uint32_t n, double lse,
                                  kern_sample_out *out)
{
    n = n < (uint32_t)raw.vocab ? n : raw.vocab;
    bool listed = list_first(m, raw, n, 0);
    __syncthreads();
    if (listed) {
        if (threadIdx.x < n) {
            u64 key = m.list[threadIdx.x];
            out->top[threadIdx.x].token = id_of(key);
            out->top[threadIdx.x].logprob = log_probability(logit_of(key), lse);
        }
    } else {
        u64 key = ~0ull; // one after the other: the largest below the last
        for (uint32_t i = 0; i < n; i++) {
            u64 next = 0;
            raw.each([&](float l, int id) {
                u64 k = key_of(l, (uint32_t)id);
                next = k < key && k > next ? k : next;
            });
            key = block_reduce(m, next, larger());
            if (threadIdx.x == 0) {
                out->top[i].token = id_of(key);
                out->top[i].logprob = log_probability(logit_of(key), lse);
            }
        }
    }
    if (threadIdx.x == 0)
        out->top_n = n;
    __syncthreads();
}

static __global__ void __launch_bounds__(THREADS)
    sample_rows(const __grid_constant__ struct cuda_sample a)
{
    __shared__ memory m;
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
    const kern_sample_row p = a.rows[blockIdx.x];
    kern_sample_out *out = a.out + blockIdx.x;
    float *logits = a.logits + blockIdx.x * a.stride;
    row raw = {logits, a.vocab, 0, 1, 0};
    bool finite, greedy = !(p.temperature >= KERN_SAMPLE_GREEDY_BELOW);
    u64 best = best_of(m, raw, &finite);
    if (threadIdx.x == 0) {
        out->token = -1;
        out->logprob = 0;
        out->top_n = 0;
    }
    if (!finite)
        return;
    raw.best = logit_of(best);
    double lse = p.logprob || p.top_n ? log_sum(raw, survey(m, raw, true)) : 0;
    if (p.top_n)
        report_top(m, raw, p.top_n, lse, out);
    table t = {};
    if (p.repetition != 1 || p.frequency != 0 || p.presence != 0) {
        t = penalise(logits, a.vocab, p, a.history, (entry *)a.scratch);
        best = best_of(m, raw, &finite);
    }
    int32_t token = id_of(best);
    if (!greedy) {
        row r = {logits, a.vocab, logit_of(best), __fdiv_rn(1, p.temperature),
                 fminf(fmaxf(p.min_p, 0), 1)};
        int32_t drawn = pick(m, r, p);
        token = drawn < 0 ? token : drawn;
    }
    if (threadIdx.x)
        return;
    out->token = token;
    if (!p.logprob)
        return;
    float l = logits[token];
    if (t.entries && p.history_n) {
        entry e = t.entries[t.find((uint32_t)token)];
        l = e.id1 ? __uint_as_float(e.count) : l;
    }
    out->logprob = log_probability(l, lse);
}

} // namespace

size_t cuda_sample_scratch_bytes(const struct cuda_sample *s)
{
    return 4 * s->history_n * sizeof(entry) + 16;
}

cudaError_t cuda_sample(cudaStream_t stream, const struct cuda_sample *s)
{
    if (s->n <= 0)
        return cudaSuccess;
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)s->n);
    config.blockDim = dim3(THREADS);
    config.stream = stream;
    config.attrs = &overlap;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, sample_rows, *s);
}
