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

// Streams x: lane l copies rows l and l + 32.
template <mm_kind KIND, few_op OP>
static __device__ void few_stream_x(const few &m, const few_plan &p, uint32_t bars)
{
    const int lane = threadIdx.x & 31, pitch = m.stage_subs * FEW_SUB + FEW_X_PAD;
    const uint32_t x_full = bars + offsetof(few_bars, x_full);
    const uint32_t x_empty = bars + offsetof(few_bars, x_empty);
    few_ring ring = {0, 0, m.x_stages};
    few_job j;
    for (int i = 0; few_take<OP>(m, p, i, &j); i++) {
        const char *from[2];
        const float *xs[2];
        for (int k = 0; k < 2; k++) {
            int at = lane + 32 * k, row = 0;
            if (at < j.n) {
                row = few_row(m, p, j, at);
                if (m.choices && OP != FEW_DOWN)
                    row /= m.choices;
            }
            from[k] = m.x + row * m.x_row + (m.choices ? 0 : j.matrix * m.x_head);
            xs[k] = m.xs + row * m.xs_ld;
        }
        for (int sub = 0; sub < m.subs; sub += m.stage_subs) {
            int bytes = min(m.stage_subs * FEW_SUB, m.row_bytes - sub * FEW_SUB);
            uint32_t bar = x_full + 8 * ring.slot;
            uint32_t to = smem_at(few_smem + m.at_x) + ring.slot * m.x_rows * pitch;
            ring.wait_empty(x_empty);
            int rest = -bytes & (FEW_SUB - 1); // of the last sub: zeros, as in W
            if (rest) {
                for (int at = lane; at < j.n * (rest / 16); at += 32) {
                    int row = at / (rest / 16), k = at % (rest / 16);
                    uint32_t z = to + row * pitch + bytes + 16 * k;
                    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(z), "r"(0)
                                 : "memory");
                }
                __syncwarp();
            }
            if (lane == 0)
                mbar_arrive_expect(bar, j.n * (bytes + (KIND == MM_FP8 ? 16 : 0)));
            __syncwarp();
            for (int k = 0; k < 2; k++)
                if (lane + 32 * k < j.n) {
                    uint32_t row = to + (lane + 32 * k) * pitch;
                    bulk_load(row, from[k] + sub * FEW_SUB, bytes, bar);
                    if (KIND == MM_FP8)
                        bulk_load(row + pitch - 16, xs[k] + (sub & ~3), 16, bar);
                }
            ring.next();
        }
    }
}
