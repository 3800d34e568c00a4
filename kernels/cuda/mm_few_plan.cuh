// Which rows meet which matrix, in the few-row product: the jobs of a block, and the sorting of
// (token, choice) pairs by expert that every block does for itself.
#pragma once

#include "kernels/cuda/mm_few.cuh"

// ---- which rows meet which matrix

struct few_job {
    int matrix, row0, n, first;
    int always; // >= 0: which of the always chosen; rows are tokens first .. first + n
};

template <few_op OP>
static __device__ __forceinline__ bool few_take(const few &m, const few_plan &p, int i, few_job *j)
{
    if (m.choices == 0) {
        int u = blockIdx.x + i * gridDim.x, h = u / m.tiles;
        *j = {h, u - h * m.tiles, m.n, 0, -1};
        return u < m.units;
    }
    int parts = (m.n + m.x_rows - 1) / m.x_rows, always = m.always * parts;
    int pieces = p.routed + always, piece, tile;
    if (OP == FEW_DOWN) { // all pieces of a tile follow each other
        if (pieces == 0)
            return false;
        int t = i / pieces;
        piece = i - t * pieces;
        tile = blockIdx.x + t * gridDim.x;
        if (tile >= m.tiles)
            return false;
    } else { // always chosen ones first: they are known before the router's choice
        int u = blockIdx.x + i * gridDim.x;
        piece = u / m.tiles;
        tile = u - piece * m.tiles;
        if (piece >= pieces)
            return false;
        piece = piece < always ? piece + p.routed : piece - always;
    }
    if (piece < p.routed) {
        few_piece q = p.pieces[piece];
        *j = {q.expert, tile, q.n, q.first, -1};
    } else {
        int a = (piece - p.routed) / parts, part = piece - p.routed - a * parts;
        *j = {m.experts + a, tile, min(m.x_rows, m.n - part * m.x_rows), part * m.x_rows, a};
    }
    return true;
}

// Row i of a job: without experts its row, else its pair.
static __device__ __forceinline__ int few_row(const few &m, const few_plan &p, const few_job &j,
                                              int i)
{
    if (m.choices == 0)
        return i;
    return j.always >= 0 ? (j.first + i) * m.choices + m.topk + j.always : p.pairs[j.first + i];
}

// ---- sorting (token, choice) pairs by expert, by all threads of a block

struct few_plan_memory {
    int first[CUDA_EXPERTS_MAX];
    int routed;
    few_piece pieces[1]; // as many as few_pieces_max, then FEW_PLAN_PAIRS pairs
};
static __host__ __device__ __forceinline__ int few_pieces_max(const few &m)
{
    // A piece is full or the last of its expert.
    int pairs = m.n * m.topk, most = pairs / m.x_rows + m.experts;
    return most < pairs ? most : pairs;
}

// Experts' row counts in first[] become pieces and first rows; one warp.
static __device__ void few_cut(const few &m, few_plan_memory *s)
{
    int lane = threadIdx.x & 31, each = (m.experts + 31) / 32, from = min(lane * each, m.experts);
    int to = min(from + each, m.experts), rows = 0, pieces = 0;
    for (int e = from; e < to; e++) {
        rows += s->first[e];
        pieces += (s->first[e] + m.x_rows - 1) / m.x_rows;
    }
    int row_at = rows, piece_at = pieces;
    for (int d = 1; d < 32; d *= 2) {
        int r = __shfl_up_sync(~0u, row_at, d), q = __shfl_up_sync(~0u, piece_at, d);
        row_at += lane >= d ? r : 0;
        piece_at += lane >= d ? q : 0;
    }
    if (lane == 31)
        s->routed = piece_at;
    row_at -= rows;
    piece_at -= pieces;
    for (int e = from; e < to; e++) {
        int n = s->first[e];
        s->first[e] = row_at;
        for (int i = 0; i < n; i += m.x_rows)
            s->pieces[piece_at++] = {e, row_at + i, min(m.x_rows, n - i)};
        row_at += n;
    }
}

static __device__ void few_make_plan(const few &m, few_plan *p)
{
    few_plan_memory *s = (few_plan_memory *)(few_smem + m.at_plan);
    int *pairs = (int *)(s->pieces + few_pieces_max(m)), n = m.n * m.topk;
    for (int e = threadIdx.x; e < m.experts; e += blockDim.x)
        s->first[e] = m.first ? m.first[e + 1] - m.first[e] : 0;
    if (!m.first) {
        __syncthreads();
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            int e = m.ids[i];
            if ((unsigned)e < (unsigned)m.experts)
                atomicAdd(&s->first[e], 1);
        }
    }
    __syncthreads();
    if (threadIdx.x < 32)
        few_cut(m, s);
    __syncthreads();
    if (!m.first) {
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            int e = m.ids[i];
            if ((unsigned)e < (unsigned)m.experts)
                pairs[atomicAdd(&s->first[e], 1)] = i / m.topk * m.choices + i % m.topk;
        }
        __syncthreads();
    }
    p->routed = s->routed;
    p->pieces = s->pieces;
    p->pairs = m.first ? m.pairs : pairs;
}
