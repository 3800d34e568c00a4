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
                uint32_t scales = smem_at(few_smem + m.at_ws) + 32 * s->ring.slot;
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

// Where a stage's rows of x lie.
template <few_form FORM> struct few_x_place {
    static __device__ __forceinline__ int pitch(const few &m) // of rows
    {
        return FORM == FEW_TILE ? FEW_SUB : m.stage_subs * FEW_SUB + FEW_X_PAD;
    }
    static __device__ __forceinline__ int stage(const few &m)
    {
        return FORM == FEW_TILE ? FEW_X_TILE * m.stage_subs * FEW_SUB : m.x_rows * pitch(m);
    }
    // 16 bytes of a row.
    static __device__ __forceinline__ int at(const few &m, int row, int piece)
    {
        return FORM == FEW_TILE
                   ? piece / 8 * (FEW_X_TILE * FEW_SUB) + row * FEW_SUB + ((piece ^ row) & 7) * 16
                   : row * pitch(m) + piece * 16;
    }
    // FP8: offset in shared memory of the four scales of a row of a stage.
    static __device__ __forceinline__ int scales(const few &m, int slot, int row)
    {
        return FORM == FEW_TILE ? m.at_xs + (slot * FEW_X_TILE + row) * 16
                                : m.at_x + (slot * m.x_rows + row + 1) * pitch(m) - FEW_X_PAD;
    }
};

// The rows of x of a job: lane l knows where rows l and l + 32 lie.
struct few_x_rows {
    uint32_t row[2];
    int n;
};

// A stage's rows one by one: the warps take turns at them and copy 16 bytes a lane. (A bulk copy
// per row takes 65 clocks of the copy engine, and its tensors fetch rows beyond the last from one
// line of L2.)
template <few_form FORM>
static __device__ __forceinline__ void few_copy_rows(const few &m, const few_x_rows &rows,
                                                     const char *x, uint32_t to, int left)
{
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32 - FEW_X_WARP;
    const int per_row = m.stage_subs * FEW_SUB / 16, at_once = 32 / per_row; // lanes, rows
    const int piece = lane % per_row, step = few_x_warps(FORM) * at_once;
    const int some = max(0, min(16, left - piece * 16));
    for (int r = warp * at_once; r < rows.n; r += FEW_X_BATCH * step) {
        const char *from[FEW_X_BATCH];
        int at[FEW_X_BATCH];
#pragma unroll
        for (int k = 0; k < FEW_X_BATCH; k++) { // a row beyond the last repeats it
            at[k] = min(r + k * step + lane / per_row, rows.n - 1);
            uint32_t low = __shfl_sync(~0u, rows.row[0], at[k] & 31);
            uint32_t high = __shfl_sync(~0u, rows.row[1], at[k] & 31);
            from[k] = x + (size_t)(at[k] < 32 ? low : high) * m.x_row + piece * 16;
        }
#pragma unroll
        for (int k = 0; k < FEW_X_BATCH; k++)
            if (r + k * step < rows.n)
                async_load(to + few_x_place<FORM>::at(m, at[k], piece), some ? from[k] : m.x, some);
    }
}

// Streams x, by few_x_warps warps.
template <mm_kind KIND, few_op OP, few_form FORM>
static __device__ void few_stream_x(const few &m, const few_plan &p, uint32_t bars)
{
    using place = few_x_place<FORM>;
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32 - FEW_X_WARP;
    const uint32_t x_full = bars + offsetof(few_bars, x_full);
    const uint32_t x_empty = bars + offsetof(few_bars, x_empty);
    few_ring ring = {0, 0, m.x_stages};
    few_job j;
    for (int i = 0; few_take<OP>(m, p, i, &j); i++) {
        few_x_rows rows = {{0, 0}, j.n};
#pragma unroll
        for (int k = 0; k < 2; k++) {
            rows.row[k] = few_row(m, p, j, min(lane + 32 * k, j.n - 1));
            if (m.choices && OP != FEW_DOWN)
                rows.row[k] /= m.choices;
        }
        const char *x = m.x + (m.choices ? 0 : j.matrix * m.x_head);
        for (int sub = 0; sub < m.subs; sub += m.stage_subs) {
            ring.wait_empty(x_empty);
            few_copy_rows<FORM>(m, rows, x + sub * FEW_SUB,
                                smem_at(few_smem + m.at_x) + ring.slot * place::stage(m),
                                m.row_bytes - sub * FEW_SUB);
            if (KIND == MM_FP8 && lane + 32 * warp < j.n)
                async_load(smem_at(few_smem + place::scales(m, ring.slot, lane + 32 * warp)),
                           m.xs + (warp ? rows.row[1] : rows.row[0]) * m.xs_ld + (sub & ~3), 16);
            async_arrive(x_full + 8 * ring.slot);
            ring.next();
        }
    }
}
