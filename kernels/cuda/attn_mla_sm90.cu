// MLA on Hopper's tensor cores: a tile is 64 rows (heads of one or several neighbouring tokens) by
// 64 keys. One block per multiprocessor walks its piece of the work list; its warp groups pass
// tiles on through barriers in shared memory:
//
//     scores:   S = Q K', then P; the next tile's products run beside this one's P V
//     left:     O += P V, columns 0 .. 255 of the latent
//     right:    O += P V, columns 256 .. 511
//
// There are two tiles of keys in shared memory; left and right refill their halves of one (by
// tensor copies) as soon as they have used them.
//
// P lies in the rope columns of its tile, which nobody needs once the tile is scored. Scores are
// relative to a reference that follows the largest score only when that has grown by 2^LAG: sums
// then are hardly ever rescaled, and results of splits mostly just added.
#include "kernels/cuda/attn_mla_scores.cuh"
#include "kernels/cuda/attn_mla_values.cuh"

template <bool FP8>
static __global__ void __launch_bounds__(BLOCK, 1) mla_tiles_sm90(const __grid_constant__ tiled a)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) uint8_t smem[];
    block b;
    b.q = shared_at(smem);
    b.sh = (struct shared_part *)(smem + 3 * TILE_BYTES);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            for (int s = 0; s < STAGES; s++)
                bar_init(shared_at(&b.sh->full[i][s]), FP8 ? WARPS : 1);
            bar_init(shared_at(&b.sh->scored[i]), WARPS);
            bar_init(shared_at(&b.sh->empty[i][0]), WARPS);
            bar_init(shared_at(&b.sh->empty[i][1]), WARPS);
        }
        bar_init(shared_at(&b.sh->q_full), 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        fence_async();
        if (!FP8)
            tensor_prefetch_map(&a.kv);
        tensor_prefetch_map(&a.latent);
        tensor_prefetch_map(&a.rope);
    }
    __syncthreads();
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;");
    int worker = blockIdx.x / a.c.head_tiles;
    b.head_tile = blockIdx.x % a.c.head_tiles;
    int4 begin = *(const int4 *)&a.w.workers[worker], end = *(const int4 *)&a.w.workers[worker + 1];
    b.begin = {uniform(begin.x), uniform(begin.y), uniform(begin.z), 0};
    b.end = {uniform(end.x), uniform(end.y), uniform(end.z), 0};
    if (threadIdx.x < 2 * WARPS)
        b.sh->feed[threadIdx.x / WARPS][threadIdx.x % WARPS] = {
            b.begin.group - 1, 0, 0, 0, 0, false, NULL};
    __syncthreads();
    int group = uniform(threadIdx.x / GROUP), lane = threadIdx.x % 32;
    int warp = uniform(threadIdx.x / 32 % 4), row = 16 * warp + lane / 4;
    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"((int)SCORES_REGS));
        scorer<FP8> s = {a, b, warp, lane, row};
        s.compute();
    } else if (group == 1) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"((int)VALUES_REGS));
        summer<0, FP8> s = {a, b, warp, lane, row};
        s.compute();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"((int)VALUES_REGS));
        summer<1, FP8> s = {a, b, warp, lane, row};
        s.compute();
    }
#else
    __trap(); // built for sm_90 instead of sm_90a
#endif
}

// ---- host

typedef CUresult encode_fn(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                           const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                           const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                           CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

static encode_fn *find_encode(void)
{
    static encode_fn *found;
    void *p = NULL;
    cudaDriverEntryPointQueryResult r;
    if (!found &&
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &p, 12000, cudaEnableDefault,
                                         &r) == cudaSuccess &&
        r == cudaDriverEntryPointSuccess)
        found = (encode_fn *)p;
    return found;
}

// bf16; strides in elements, of dimensions 1 on.
struct map_args {
    const void *at;
    int rank;
    size_t dims[3], strides[2];
    int box[3];
};
static bool make_map(CUtensorMap *map, const struct map_args *m)
{
    encode_fn *encode = find_encode();
    cuuint64_t dims[3], strides[2];
    cuuint32_t box[3], ones[3] = {1, 1, 1};
    for (int i = 0; i < m->rank; i++) {
        dims[i] = m->dims[i];
        box[i] = (cuuint32_t)m->box[i];
        if (i)
            strides[i - 1] = 2 * m->strides[i - 1];
    }
    return encode && encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, (cuuint32_t)m->rank,
                            (void *)m->at, dims, strides, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
                            CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                            CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

bool mla_maps(const struct cuda_mla *m, int heads, int tokens, CUtensorMap *kv_out,
              CUtensorMap *latent_out, CUtensorMap *rope_out, int *box_rows_out)
{
    size_t n = m->rows.n, all = m->heads;
    int rows = m->block_tokens < MLA_TILE ? (int)m->block_tokens : MLA_TILE;
    struct map_args kv = {
        m->pool, 2, {MLA_KEY, m->blocks * m->block_tokens}, {MLA_KEY}, {64, rows}};
    struct map_args latent = {m->q_latent,
                              3,
                              {MLA_LORA, all, n},
                              {m->q_latent_head, m->q_latent_ld},
                              {64, heads, tokens}};
    struct map_args rope = {
        m->q_rope, 3, {MLA_ROPE, all, n}, {m->q_rope_head, m->q_rope_ld}, {64, heads, tokens}};
    *box_rows_out = rows;
    return (m->form == CUDA_KV_FP8 || make_map(kv_out, &kv)) && make_map(latent_out, &latent) &&
           make_map(rope_out, &rope);
}

bool mla_is_tiled(const struct cuda_mla *m)
{
    int device = 0, major = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
        major != 9)
        return false;
    uintptr_t at = (uintptr_t)m->pool | (uintptr_t)m->q_latent | (uintptr_t)m->q_rope;
    size_t strides = m->q_latent_ld | m->q_latent_head | m->q_rope_ld | m->q_rope_head;
    bool blocks = m->block_tokens % MLA_TILE == 0 ||
                  (m->block_tokens % 8 == 0 && MLA_TILE % m->block_tokens == 0);
    return m->kv_lora == MLA_LORA && m->rope == MLA_ROPE && at % 16 == 0 && strides % 8 == 0 &&
           blocks && (uintptr_t)m->out % 4 == 0 && m->out_ld % 2 == 0;
}

cudaError_t mla_tiled(cudaStream_t s, const struct cuda_mla *m)
{
    tiled a = {};
    if (!mla_cut(m, &a.c) || m->plan_bytes < a.c.plan_bytes ||
        m->scratch_bytes < a.c.scratch_bytes || !(m->scale > 0))
        return cudaErrorInvalidValue;
    a.w = mla_work(m, &a.c);
    a.rows = m->rows;
    a.out = m->out;
    a.out_ld = m->out_ld;
    a.scale = m->scale * 1.4426950408889634f;
    a.block_tokens = (int)m->block_tokens;
    if (mla_is_short(m, &a.c))
        return mla_short(s, m, &a.c);
    if (!mla_maps(m, a.c.tile_heads, a.c.tile_tokens, &a.kv, &a.latent, &a.rope, &a.box_rows))
        return cudaErrorInvalidValue;
    auto kernel = mla_tiles_sm90<false>;
    if (m->form == CUDA_KV_FP8) {
        kernel = mla_tiles_sm90<true>;
        a.fp8 = (const uint8_t *)m->pool;
    }
    cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SMEM);
    if (e != cudaSuccess)
        return e;
    cudaLaunchAttribute pdl = {};
    pdl.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    pdl.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(a.c.workers * a.c.head_tiles);
    config.blockDim = dim3(BLOCK);
    config.dynamicSmemBytes = SMEM;
    config.stream = s;
    config.attrs = &pdl;
    config.numAttrs = 1;
    e = cudaLaunchKernelEx(&config, kernel, a);
    if (e != cudaSuccess || a.c.keys_max <= a.c.split)
        return e;
    return mla_merge(s, m, &a.c);
}
