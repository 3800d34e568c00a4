// Host side of mm_many.cuh: tensor maps and launches, shared by the product's launchers and by the
// laboratory.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/cuda/mm.h"
#include "kernels/cuda/mm_many.cuh"

namespace many
{

// Rows of `cols` elements, `ld` bytes apart, in `stack` matrices; what lies outside is read as
// zeros.
struct rows_of {
    const void *p;
    int kind, cols, rows, stack;
    size_t ld, stack_bytes; // bytes
};

typedef CUresult encode_fn(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                           const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                           const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                           CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The driver's entry is found at run time: the module loads where there is no driver.
inline encode_fn *encoder(void)
{
    static encode_fn *fn;
    if (!fn) {
        void *p = NULL;
        cudaDriverEntryPointQueryResult found;
        if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &p, 12000, cudaEnableDefault,
                                             &found) == cudaSuccess &&
            found == cudaDriverEntryPointSuccess)
            fn = (encode_fn *)p;
    }
    return fn;
}

// Boxes of 128 bytes x `rows` with the 128-byte swizzle. subs 0: coordinates (column, row); else
// `subs` blocks of 128 bytes at once and coordinates (0, row, block, matrix), for which the rows
// must be readable to the end of the last block.
inline cudaError_t encode(CUtensorMap *map, const rows_of &r, int rows, int subs)
{
    const int size = r.kind == hopper::BF16 ? 2 : 1, unit = K_BYTES / size;
    const cuuint64_t blocks = (r.cols + unit - 1) / unit, all = r.ld * (cuuint64_t)r.rows;
    const cuuint64_t dims2[2] = {(cuuint64_t)r.cols, (cuuint64_t)r.rows}, strides2[1] = {r.ld};
    const cuuint64_t dims4[4] = {(cuuint64_t)unit, (cuuint64_t)r.rows, blocks, (cuuint64_t)r.stack};
    const cuuint64_t strides4[3] = {r.ld, K_BYTES, r.stack > 1 ? r.stack_bytes : all};
    const cuuint32_t box[4] = {(cuuint32_t)unit, (cuuint32_t)rows, (cuuint32_t)subs, 1};
    const cuuint32_t step[4] = {1, 1, 1, 1};
    encode_fn *fn = encoder();
    if (!fn)
        return cudaErrorNotSupported;
    const CUresult e = fn(
        map,
        r.kind == hopper::BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8,
        subs ? 4 : 2, (void *)r.p, subs ? dims4 : dims2, subs ? strides4 : strides2, box, step,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return e == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// `up` like w, ignored unless gated; `x` ignored where rows are gathered. tiles_max: clusters'
// tiles at most, as the host knows them.
template <class C>
cudaError_t launch(cudaStream_t s, const args &a, const rows_of &w, const void *up,
                   const rows_of &x, long tiles_max)
{
    constexpr int CLUSTER = C::CLUSTER, subs = C::W_WHOLE ? C::SUBS : 1;
    const int smem = C::smem(a.experts);
    CUtensorMap maps[3] = {};
    rows_of u = w;
    u.p = up;
    cudaError_t e = encode(&maps[0], w, C::W_BOX, subs);
    if (e == cudaSuccess && C::GATED)
        e = encode(&maps[1], u, C::W_BOX, subs);
    if (e == cudaSuccess && !C::GATHER)
        e = encode(&maps[2], x, C::X_BOX, 0);
    int device, sms;
    if (e == cudaSuccess)
        e = cudaGetDevice(&device);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
    if (e == cudaSuccess)
        e = cudaFuncSetAttribute(kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, smem);
    if (e != cudaSuccess)
        return e;
    const long clusters = tiles_max < sms / CLUSTER ? tiles_max : sms / CLUSTER;
    cudaLaunchAttribute attrs[2];
    attrs[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attrs[0].val.programmaticStreamSerializationAllowed = 1;
    attrs[1].id = cudaLaunchAttributeClusterDimension;
    attrs[1].val.clusterDim.x = CLUSTER;
    attrs[1].val.clusterDim.y = attrs[1].val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(clusters * CLUSTER));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = smem;
    config.stream = s;
    config.attrs = attrs;
    config.numAttrs = CLUSTER > 1 ? 2 : 1;
    return cudaLaunchKernelEx(&config, kernel<C>, maps[0], maps[1], maps[2], a);
}

inline long ceil_div(long a, long b)
{
    return (a + b - 1) / b;
}

inline int kind_of(enum cuda_wtype t)
{
    return t == CUDA_W_BF16 ? hopper::BF16 : t == CUDA_W_FP8 ? hopper::E4M3 : hopper::S8;
}

// What dense products and experts have in common.
template <class C> void common(args *a, rows_of *w, const struct cuda_matrix *m)
{
    const int size = C::KIND == hopper::BF16 ? 2 : 1;
    *w = {m->w, C::KIND, m->cols, m->rows, m->stack, m->ld * size, m->stack_bytes};
    a->rows = m->rows;
    a->ksteps = (int)ceil_div(m->cols * size, K_BYTES * C::SUBS);
    a->ws = m->scales;
    a->ws_ld = m->scales_ld;
    a->ws_stack = m->stack > 1 ? m->stack_scales : 0;
}

template <class C> cudaError_t matmul_by(cudaStream_t s, const struct cuda_matmul *m, int group)
{
    args a = {};
    rows_of w;
    common<C>(&a, &w, &m->w);
    const bool quant = C::KIND != hopper::BF16;
    a.n = m->n;
    a.heads = m->heads;
    a.x_head = (int)m->x_head;
    a.group = group;
    a.ws_up = m->scales_up;
    a.xs = m->xs;
    a.xs_ld = C::KIND == hopper::S8 ? 1 : m->xs_ld;
    a.bias = m->bias;
    a.bias_up = m->bias_up;
    a.add = m->add;
    a.add_ld = m->add_ld;
    a.out = m->out;
    a.out_ld = m->out_ld;
    a.out_head = m->out_head;
    a.out_f32 = !m->out_bf16;
    const int unit = m->out_bf16 ? 8 : 4;
    a.vector = (uintptr_t)m->out % 16 == 0 && m->out_ld % unit == 0 && m->out_head % unit == 0 &&
               m->w.rows % unit == 0;
    a.reduce = m->add == m->out && m->add_ld == m->out_ld && !m->out_bf16 && a.vector;
    const rows_of x = {quant ? m->xq : m->x,
                       C::KIND,
                       (int)(m->heads - 1) * (int)m->x_head + m->w.cols,
                       m->n,
                       1,
                       quant ? m->xq_ld : m->x_ld * 2,
                       0};
    const long tiles = ceil_div(m->n, BM * C::CM) * ceil_div(m->w.rows, C::OUTS * C::CN) * m->heads;
    return launch<C>(s, a, w, m->w_up, x, tiles);
}

template <class C> cudaError_t matmul(cudaStream_t s, const struct cuda_matmul *m)
{
    return matmul_by<C>(s, m, 8);
}

// A tile shape with what it costs, measured: nanoseconds for one block of 128 bytes of K, and
// around the loop over K; `run` launches it.
template <class M> struct choice {
    int bn, cm, cn; // outputs of a tile; tiles that a cluster takes of rows and of outputs
    int block_ns, tile_ns;
    cudaError_t (*run)(cudaStream_t, const M *);
};
template <class M>
cudaError_t pick(cudaStream_t s, const M *m, const choice<M> *c, int choices, int sms, long n,
                 long outs, long blocks, long heads)
{
    int best = 0;
    double least = 0;
    for (int i = 0; i < choices; i++) {
        const long tiles = ceil_div(n, BM * c[i].cm) * ceil_div(outs, c[i].bn * c[i].cn) * heads;
        const double waves = (double)ceil_div(tiles, sms / (c[i].cm * c[i].cn));
        const double ns = waves * (blocks * c[i].block_ns + c[i].tile_ns);
        if (i == 0 || ns < least)
            best = i, least = ns;
    }
    return c[best].run(s, m);
}
template <class M>
cudaError_t pick_dense(cudaStream_t s, const M *m, const choice<M> *c, int choices, int sms)
{
    const long bytes = (long)m->w.cols * (m->w.type == CUDA_W_BF16 ? 2 : 1);
    return pick(s, m, c, choices, sms, m->n, m->w.rows, ceil_div(bytes, K_BYTES), m->heads);
}

// Products by expert: `gate_up` takes row pair / x_div of x for each pair, down row pair of h.
template <class C>
cudaError_t experts(cudaStream_t s, const struct cuda_experts *e, const struct cuda_matrix *m,
                    const void *up, const struct cuda_experts_rows *rows, args a)
{
    rows_of w;
    common<C>(&a, &w, m);
    a.first = rows->first;
    a.pairs = rows->pairs;
    a.experts = e->experts + e->always;
    a.heads = 1;
    a.x_bytes = m->cols * (C::KIND == hopper::BF16 ? 2 : 1);
    const int unit = a.out_f32 ? 4 : 8;
    a.vector = (uintptr_t)a.out % 16 == 0 && a.out_ld % unit == 0 && m->rows % unit == 0;
    if (a.experts > C::EXPERTS_MAX)
        return cudaErrorInvalidValue;
    if ((uintptr_t)a.x % 16 != 0 || a.x_ld % 16 != 0)
        return cudaErrorInvalidValue;
    const long pairs = (long)e->n * (e->topk + e->always);
    const long pieces = pairs / (BM * C::CM) + std::min<long>(a.experts, pairs); // at most
    return launch<C>(s, a, w, up, {}, pieces * ceil_div(m->rows, C::OUTS));
}

template <class C>
cudaError_t experts_gate_up(cudaStream_t s, const struct cuda_experts_gate_up *m,
                            const struct cuda_experts_rows *rows)
{
    const bool quant = C::KIND != hopper::BF16;
    args a = {};
    a.x = quant ? m->xq : m->x;
    a.x_ld = quant ? m->xq_ld : m->x_ld * 2;
    a.x_div = m->e.topk + m->e.always;
    a.xs = m->xs;
    a.xs_ld = m->xs_ld;
    a.ws_up = m->scales_up;
    a.out = m->out;
    a.out_ld = m->out_ld;
    return experts<C>(s, &m->e, &m->w, m->w_up, rows, a);
}

template <class C>
cudaError_t experts_down(cudaStream_t s, const struct cuda_experts_down *m,
                         const struct cuda_experts_rows *rows)
{
    const bool quant = C::KIND != hopper::BF16;
    args a = {};
    a.x = quant ? m->hq : m->h;
    a.x_ld = quant ? m->hq_ld : m->h_ld * 2;
    a.x_div = 1;
    a.xs = m->hs;
    a.xs_ld = m->hs_ld;
    a.out = m->products;
    a.out_ld = m->w.rows;
    a.out_f32 = 1;
    return experts<C>(s, &m->e, &m->w, NULL, rows, a);
}

} // namespace many
