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

// Streams x: lane l knows where rows l and l + 32 lie, and the warp copies row after row, 16 bytes a
// lane. (A bulk copy per row would take 65 clocks of the copy engine each.)
template <mm_kind KIND, few_op OP>
static __device__ void few_stream_x(const few &m, const few_plan &p, uint32_t bars)
{
    const int lane = threadIdx.x & 31, run = m.stage_subs * FEW_SUB, pitch = run + FEW_X_PAD;
    const int per_row = run / 16, rows_at_once = 32 / per_row; // lanes per row: 16 or 32
    const int my_row = lane / per_row, my_byte = lane % per_row * 16;
    const uint32_t x_full = bars + offsetof(few_bars, x_full);
    const uint32_t x_empty = bars + offsetof(few_bars, x_empty);
    few_ring ring = {0, 0, m.x_stages};
    few_job j;
    for (int i = 0; few_take<OP>(m, p, i, &j); i++) {
        uint32_t row[2];
#pragma unroll
        for (int k = 0; k < 2; k++) {
            int at = min(lane + 32 * k, j.n - 1);
            row[k] = few_row(m, p, j, at);
            if (m.choices && OP != FEW_DOWN)
                row[k] /= m.choices;
        }
        const char *x = m.x + (m.choices ? 0 : j.matrix * m.x_head) + my_byte;
        for (int sub = 0; sub < m.subs; sub += m.stage_subs, x += run) {
            uint32_t bar = x_full + 8 * ring.slot;
            uint32_t to = smem_at(few_smem + m.at_x) + ring.slot * m.x_rows * pitch;
            int some = max(0, min(16, m.row_bytes - sub * FEW_SUB - my_byte));
            ring.wait_empty(x_empty);
#pragma unroll 4
            for (int r = 0; r < j.n; r += rows_at_once) {
                int at = r + my_row;
                uint32_t from = __shfl_sync(~0u, r < 32 ? row[0] : row[1], at & 31);
                if (at < j.n)
                    async_load(to + at * pitch + my_byte, x + from * m.x_row, some);
            }
            if (KIND == MM_FP8)
#pragma unroll
                for (int k = 0; k < 2; k++)
                    if (lane + 32 * k < j.n)
                        async_load(to + (lane + 32 * k + 1) * pitch - 16,
                                   m.xs + row[k] * m.xs_ld + (sub & ~3), 16);
            async_arrive(bar);
            ring.next();
        }
    }
}
