// The few-row kernel: what is done with a job's sums, and the roles of warps.
#pragma once

#include "kernels/cuda/mm_few_rows.cuh"

// ---- epilogues

struct few_pair {
    float v[2];
};
static __device__ __forceinline__ few_pair few_load(const float *p, bool both)
{
    few_pair r = {{p[0], both ? p[1] : 0}};
    return r;
}
static __device__ __forceinline__ void few_store(const few &m, size_t at, few_pair y, bool both)
{
    if (m.out_bf16) {
        __nv_bfloat16 *to = (__nv_bfloat16 *)m.out + at;
        if (both)
            *(__nv_bfloat162 *)to = __floats2bfloat162_rn(y.v[0], y.v[1]);
        else
            *to = __float2bfloat16_rn(y.v[0]);
    } else {
        float *to = (float *)m.out + at;
        if (both)
            *(float2 *)to = make_float2(y.v[0], y.v[1]);
        else
            *to = y.v[0];
    }
}

// Plain and gated: what is added is read before the product, so that its latency is not seen.
template <mm_kind KIND, int R, few_op OP, few_form FORM>
static __device__ __forceinline__ void
few_job_out(const few &m, const few_plan &p, const few_job &j, few_product<KIND, R, OP, FORM> *prod)
{
    using shape = few_shape<KIND, R, OP>;
    constexpr int PARTS = shape::PARTS, N = shape::N;
    const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    const int col0 = j.row0 * N + 2 * (lane & 3);
    int row[2];
    bool some[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int i = 16 * warp + lane / 4 + 8 * h;
        some[h] = i < j.n;
        row[h] = some[h] ? few_row(m, p, j, i) : 0;
    }
    few_pair add[N / 8][2];
    if (OP == FEW_PLAIN && m.add)
#pragma unroll
        for (int g = 0; g < N / 8; g++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                if (some[h] && col0 + 8 * g < m.rows)
                    add[g][h] = few_load(m.add + row[h] * m.add_ld + col0 + 8 * g,
                                         col0 + 8 * g + 1 < m.rows);
    float sums[PARTS][N / 2];
    prod->go(j, sums);
#pragma unroll
    for (int g = 0; g < N / 8; g++) {
        const int col = col0 + 8 * g;
        const bool both = col + 1 < m.rows;
        if (col >= m.rows)
            continue;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (!some[h])
                continue;
            few_pair y[PARTS];
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
                const float *bias = part ? m.bias_up : m.bias;
                const float *ws = part ? m.scales_up : m.scales;
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float v = sums[part][4 * g + 2 * h + e];
                    if (KIND == MM_INT8 && col + e < m.rows) {
                        int x = m.choices && OP != FEW_DOWN ? row[h] / m.choices : row[h];
                        v = __fmul_rn(v,
                                      __fmul_rn(m.xs[x], ws[j.matrix * m.stack_scales + col + e]));
                    }
                    if (bias && col + e < m.rows)
                        v = __fadd_rn(v, bias[col + e]);
                    y[part].v[e] = v;
                }
            }
            size_t at = row[h] * m.out_ld + (m.choices ? 0 : j.matrix * m.out_head) + col;
            if (OP == FEW_GATED)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    y[0].v[e] = mm_gated(y[0].v[e], y[PARTS - 1].v[e]);
            else if (m.add)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    y[0].v[e] = __fadd_rn(y[0].v[e], add[g][h].v[e]);
            few_store(m, at, y[0], both);
        }
    }
}

static __device__ __forceinline__ void few_sync_sums()
{
    asm volatile("bar.sync 1, 128;" ::: "memory");
}

// down: a tile's sums over all experts stay in shared memory, [n][R].
template <mm_kind KIND, int R, few_form FORM>
static __device__ void few_down(const few &m, const few_plan &p,
                                few_product<KIND, R, FEW_DOWN, FORM> *prod)
{
    float *sum = (float *)(few_smem + m.at_sums);
    const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    const int pieces = p.routed + m.always * ((m.n + m.x_rows - 1) / m.x_rows);
    few_job j;
    for (int i = 0; few_take<FEW_DOWN>(m, p, i, &j); i++) {
        bool first = i % pieces == 0, last = i % pieces == pieces - 1;
        if (first)
            for (int at = threadIdx.x; at < m.n * R; at += FEW_SUMS_THREADS)
                sum[at] = 0;
        int token[2];
        float weight[2], xs[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int at = 16 * warp + lane / 4 + 8 * h;
            token[h] = -1;
            if (at < j.n) {
                int pair = few_row(m, p, j, at);
                token[h] = pair / m.choices;
                weight[h] = 1;
                if (j.always < 0)
                    weight[h] = m.weights[token[h] * m.topk + pair % m.choices];
                if (KIND == MM_INT8)
                    xs[h] = m.xs[pair];
            }
        }
        float sums[1][R / 2];
        prod->go(j, sums);
        few_sync_sums(); // the piece before has been added
#pragma unroll
        for (int h = 0; h < 2; h++)
            if (token[h] >= 0)
#pragma unroll
                for (int g = 0; g < R / 8; g++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        int col = 8 * g + 2 * (lane & 3) + e;
                        float *to = sum + token[h] * R + col, y = sums[0][4 * g + 2 * h + e];
                        if (KIND == MM_INT8 && j.row0 * R + col < m.rows)
                            y = __fmul_rn(
                                y,
                                __fmul_rn(xs[h],
                                          m.scales[j.matrix * m.stack_scales + j.row0 * R + col]));
                        *to = fmaf(weight[h], y, *to);
                    }
        if (!last)
            continue;
        few_sync_sums();
        for (int at = threadIdx.x; at < m.n * R; at += FEW_SUMS_THREADS) {
            int t = at / R, col = j.row0 * R + at % R;
            if (col >= m.rows)
                continue;
            float y = sum[at];
            if (m.shared)
                y = __fadd_rn(y, m.shared[t * m.shared_ld + col]);
            if (m.add)
                y = __fadd_rn(y, m.add[t * m.add_ld + col]);
            ((float *)m.out)[t * m.out_ld + col] = y;
        }
        few_sync_sums();
    }
}

// ---- the kernel

static __device__ __forceinline__ void few_init_bars(const few &m, few_bars *b, int x_arrivals)
{
    for (int i = 0; i < m.w_stages; i++) {
        mbar_init(smem_at(&b->w_full[i]), 1);
        mbar_init(smem_at(&b->w_empty[i]), 4);
    }
    for (int i = 0; i < m.x_stages; i++) {
        mbar_init(smem_at(&b->x_full[i]), x_arrivals);
        mbar_init(smem_at(&b->x_empty[i]), 4);
    }
    b->zeros = make_uint4(0, 0, 0, 0);
    mbar_init_done();
}

template <mm_kind KIND, int R, few_op OP, few_form FORM>
static __global__ void __launch_bounds__(few_threads(FORM), 1)
    few_kernel(const __grid_constant__ few m)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL // elsewhere few_device_get says no before it is launched
    few_bars *b = (few_bars *)(few_smem + m.at_plan) - 1;
    const uint32_t bars = smem_at(b);
    const int warp = threadIdx.x / 32;
    few_plan plan = {0, NULL, NULL};
    few_stream stream = {0, 0, {0, 0, m.w_stages}};
    if (threadIdx.x == 32 * FEW_W_WARP) {
        tensor_prefetch(&m.w);
        if (OP == FEW_GATED)
            tensor_prefetch(&m.w_up);
        few_init_bars(m, b, 32 * few_x_warps(FORM));
        // Without a plan only the always chosen experts are known.
        if (m.choices == 0 || (OP == FEW_GATED && !m.ready))
            few_stream_w<KIND, R, OP>(m, plan, bars, &stream, m.w_stages);
    }
    if (m.choices) {
        if (!m.ready)
            pdl_wait();
        few_make_plan(m, &plan);
    } else {
        __syncthreads();
    }
    if (warp == FEW_W_WARP) {
        if (threadIdx.x == 32 * FEW_W_WARP)
            few_stream_w<KIND, R, OP>(m, plan, bars, &stream, -1);
        return;
    }
    pdl_wait();
    if (warp >= FEW_X_WARP) {
        pdl_launch();
        few_stream_x<KIND, OP, FORM>(m, plan, bars);
        return;
    }
    few_product<KIND, R, OP, FORM> prod = {m, bars, {0, 0, m.w_stages}, {0, 0, m.x_stages}};
    if constexpr (OP == FEW_DOWN) {
        few_down<KIND, R, FORM>(m, plan, &prod);
    } else {
        few_job j;
        for (int i = 0; few_take<OP>(m, plan, i, &j); i++)
            few_job_out<KIND, R, OP, FORM>(m, plan, j, &prod);
    }
#endif
}
