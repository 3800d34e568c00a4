// The rings of the few-row product: weights and rows of x on their way into shared memory.
#pragma once

#include "kernels/cuda/mm_few_plan.cuh"

// ---- rings

// A place in a ring, and how often it came round.
struct few_ring {
    int slot, round, slots;
    __device__ __forceinline__ void next()
    {
        if (++slot == slots) {
            slot = 0;
            round++;
        }
    }
    __device__ __forceinline__ void wait_full(uint32_t bars) const
    {
        mbar_wait(bars + 8 * slot, round & 1);
    }
    __device__ __forceinline__ void wait_empty(uint32_t bars) const
    {
        if (round)
            mbar_wait(bars + 8 * slot, (round - 1) & 1);
    }
};

template <mm_kind KIND, int R, few_op OP> struct few_shape {
    static constexpr int PARTS = OP == FEW_GATED ? 2 : 1; // gate and up
    static constexpr int N = R / PARTS;                   // rows of W in one wgmma
    static constexpr int SCALES = KIND == MM_FP8 ? 16 * PARTS : 0;
    static __host__ __device__ __forceinline__ int w_bytes(int stage_subs)
    {
        return R * FEW_SUB * stage_subs;
    }
};

// Where the stream of W is: job i, stage of it.
struct few_stream {
    int job, stage;
    few_ring ring;
};

// Streams W until the jobs end or, with `most` >= 0, that many stages are on their way.
template <mm_kind KIND, int R, few_op OP>
static __device__ void few_stream_w(const few &m, const few_plan &p, uint32_t bars, few_stream *s,
                                    int most)
{
    using shape = few_shape<KIND, R, OP>;
    const uint32_t ring = smem_at(few_smem), w_bytes = shape::w_bytes(m.stage_subs);
    const uint32_t w_full = bars + offsetof(few_bars, w_full);
    const uint32_t w_empty = bars + offsetof(few_bars, w_empty);
    const uint64_t policy = m.keep ? policy_evict_normal() : policy_evict_first();
    few_job j;
    while (most && few_take<OP>(m, p, s->job, &j)) {
        int row0 = j.row0 * shape::N;
        for (; s->stage * m.stage_subs < m.subs && most; s->stage++, most--) {
            s->ring.wait_empty(w_empty);
            uint32_t bar = w_full + 8 * s->ring.slot, sub = s->stage * m.stage_subs;
            uint32_t to = ring + s->ring.slot * w_bytes;
            mbar_arrive_expect(bar, w_bytes + shape::SCALES);
            tensor_at at = {0, row0, (int)sub, j.matrix};
            tensor_load(to, &m.w, at, bar, policy);
            if (OP == FEW_GATED)
                tensor_load(to + w_bytes / 2, &m.w_up, at, bar, policy);
            if (KIND == MM_FP8) {
                uint32_t scales = smem_at(few_smem + m.at_x) - 32 * (s->ring.slot + 1);
                size_t from =
                    j.matrix * m.stack_scales + row0 / CUDA_MM_BLOCK * m.scales_ld + (sub & ~3u);
                bulk_load(scales, m.scales + from, 16, bar);
                if (OP == FEW_GATED)
                    bulk_load(scales + 16, m.scales_up + from, 16, bar);
            }
            s->ring.next();
        }
        if (s->stage * m.stage_subs < m.subs)
            return;
        s->stage = 0;
        s->job++;
    }
}

// Streams x, by two warps that take turns at rows: lane l knows where rows l and l + 32 lie, and a
// warp copies row after row, 16 bytes a lane. (A bulk copy per row would take 65 clocks of the copy
// engine.)
template <mm_kind KIND, few_op OP>
static __device__ void few_stream_x(const few &m, const few_plan &p, uint32_t bars)
{
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32 - FEW_X_WARP;
    const int run = m.stage_subs * FEW_SUB, pitch = run + FEW_X_PAD;
    const int per_row = run / 16, at_once = 32 / per_row; // lanes and rows of one instruction
    const int byte = lane % per_row * 16, row0 = (lane / per_row) + warp * at_once;
    const uint32_t x_full = bars + offsetof(few_bars, x_full);
    const uint32_t x_empty = bars + offsetof(few_bars, x_empty);
    few_ring ring = {0, 0, m.x_stages};
    few_job j;
    for (int i = 0; few_take<OP>(m, p, i, &j); i++) {
        uint32_t row[2];
#pragma unroll
        for (int k = 0; k < 2; k++) {
            row[k] = few_row(m, p, j, min(lane + 32 * k, j.n - 1));
            if (m.choices && OP != FEW_DOWN)
                row[k] /= m.choices;
        }
        const char *x = m.x + (m.choices ? 0 : j.matrix * m.x_head) + byte;
        for (int sub = 0; sub < m.subs; sub += m.stage_subs, x += run) {
            const uint32_t to = smem_at(few_smem + m.at_x) + ring.slot * m.x_rows * pitch;
            const int some = max(0, min(16, m.row_bytes - sub * FEW_SUB - byte));
            ring.wait_empty(x_empty);
            for (int r = 0; r < j.n; r += FEW_X_BATCH * FEW_X_WARPS * at_once) {
                const char *from[FEW_X_BATCH];
                int at[FEW_X_BATCH];
#pragma unroll
                for (int k = 0; k < FEW_X_BATCH; k++) { // those beyond the last repeat it
                    at[k] = min(r + row0 + k * FEW_X_WARPS * at_once, j.n - 1);
                    uint32_t low = __shfl_sync(~0u, row[0], at[k] & 31);
                    uint32_t high = __shfl_sync(~0u, row[1], at[k] & 31);
                    from[k] = x + (size_t)(at[k] < 32 ? low : high) * m.x_row;
                }
#pragma unroll
                for (int k = 0; k < FEW_X_BATCH; k++)
                    if (k * FEW_X_WARPS * at_once < j.n - r)
                        async_load(to + at[k] * pitch + byte, from[k], some);
            }
            if (KIND == MM_FP8 && lane + 32 * warp < j.n)
                async_load(to + (lane + 32 * warp + 1) * pitch - 16,
                           m.xs + (warp ? row[1] : row[0]) * m.xs_ld + (sub & ~3), 16);
            async_arrive(x_full + 8 * ring.slot);
            ring.next();
        }
    }
}
