// What this device reaches, independent of our kernels: large copies, and large products by
// cuBLASLt, which is loaded only here, so that the module runs where it is not installed.
#include <cublasLt.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda_load.h"

enum {
    COPY_BYTES = 1 << 29,
    DIM = 8192,
    REPEATS = 12,
    WORKSPACE = 32 << 20,

    HOST_BYTES = 256 << 20
};
static_assert(2ull * DIM * DIM * 4 + WORKSPACE <= 2ull * COPY_BYTES, "operands and result fit");

struct blas {
    __typeof__(cublasLtCreate) *create;
    __typeof__(cublasLtDestroy) *destroy;
    __typeof__(cublasLtMatmulDescCreate) *desc_create;
    __typeof__(cublasLtMatmulDescDestroy) *desc_destroy;
    __typeof__(cublasLtMatmulDescSetAttribute) *desc_set;
    __typeof__(cublasLtMatrixLayoutCreate) *layout_create;
    __typeof__(cublasLtMatrixLayoutDestroy) *layout_destroy;
    __typeof__(cublasLtMatmulPreferenceCreate) *preference_create;
    __typeof__(cublasLtMatmulPreferenceDestroy) *preference_destroy;
    __typeof__(cublasLtMatmulPreferenceSetAttribute) *preference_set;
    __typeof__(cublasLtMatmulAlgoGetHeuristic) *heuristic;
    __typeof__(cublasLtMatmul) *matmul;
};

static bool load_blas(struct blas *b)
{
    static const char *const names[] = {
        "cublasLtCreate",
        "cublasLtDestroy",
        "cublasLtMatmulDescCreate",
        "cublasLtMatmulDescDestroy",
        "cublasLtMatmulDescSetAttribute",
        "cublasLtMatrixLayoutCreate",
        "cublasLtMatrixLayoutDestroy",
        "cublasLtMatmulPreferenceCreate",
        "cublasLtMatmulPreferenceDestroy",
        "cublasLtMatmulPreferenceSetAttribute",
        "cublasLtMatmulAlgoGetHeuristic",
        "cublasLtMatmul",
    };
    static_assert(sizeof *b == sizeof names, "one name per member, in order");
    void *lib = dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL);
    if (!lib)
        lib = dlopen("/usr/local/cuda/lib64/libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL);
    for (size_t i = 0; lib && i < sizeof names / sizeof *names; i++) {
        void *p = dlsym(lib, names[i]);
        if (!p)
            return false;
        memcpy((char *)b + i * sizeof p, &p, sizeof p);
    }
    return lib != NULL;
}

typedef void once_fn(struct cuda *c, void *ctx);

// Median time of one call, by events.
static double median_s(struct cuda *c, once_fn *once, void *ctx)
{
    cudaEvent_t at[REPEATS + 1];
    double s[REPEATS];
    for (int i = 0; i <= REPEATS; i++)
        cuda_check(c, cudaEventCreate(&at[i]), "event");
    once(c, ctx);
    cuda_check(c, cudaEventRecord(at[0], c->stream), "event");
    for (int i = 1; i <= REPEATS; i++) {
        once(c, ctx);
        cuda_check(c, cudaEventRecord(at[i], c->stream), "event");
    }
    cuda_check(c, cudaStreamSynchronize(c->stream), "limits");
    for (int i = 0; i < REPEATS; i++) {
        float ms = 0;
        cuda_check(c, cudaEventElapsedTime(&ms, at[i], at[i + 1]), "event");
        int j = i; // insertion sort
        for (; j && s[j - 1] > ms * 1e-3; j--)
            s[j] = s[j - 1];
        s[j] = ms * 1e-3;
    }
    for (int i = 0; i <= REPEATS; i++)
        cudaEventDestroy(at[i]);
    return s[REPEATS / 2];
}

static void copy_once(struct cuda *c, void *ctx)
{
    char *p = ctx;
    cuda_check(c,
               cudaMemcpyAsync(p + COPY_BYTES, p, COPY_BYTES, cudaMemcpyDeviceToDevice, c->stream),
               "copy");
}

// What is multiplied: numbers of this type, sums of that, alpha of the third.
static const struct kind {
    enum kern_dtype dtype;
    cudaDataType_t in, out, scale;
    cublasComputeType_t compute;
} kinds[] = {{KERN_BF16, CUDA_R_16BF, CUDA_R_16BF, CUDA_R_32F, CUBLAS_COMPUTE_32F},
             {KERN_FP8, CUDA_R_8F_E4M3, CUDA_R_16BF, CUDA_R_32F, CUBLAS_COMPUTE_32F},
             {KERN_INT8, CUDA_R_8I, CUDA_R_32I, CUDA_R_32I, CUBLAS_COMPUTE_32I}};

struct product {
    struct blas *blas;
    cublasLtHandle_t handle;
    const struct kind *kind;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t in, out; // square
    cublasLtMatmulHeuristicResult_t best;
    char *memory; // two operands, the result, the workspace
    bool failed;
};

static void product_once(struct cuda *c, void *ctx)
{
    struct product *p = ctx;
    const size_t matrix = (size_t)DIM * DIM * 4; // of the widest
    const size_t second = (size_t)DIM * DIM * kern_dtype_bytes(p->kind->dtype);
    const float one = 1, zero = 0;
    const int32_t one_i = 1, zero_i = 0;
    const bool integers = p->kind->scale == CUDA_R_32I;
    char *m = p->memory;
    p->failed |= p->blas->matmul(p->handle, p->desc, integers ? (const void *)&one_i : &one, m,
                                 p->in, m + second, p->in, integers ? (const void *)&zero_i : &zero,
                                 m + matrix, p->out, m + matrix, p->out, &p->best.algo,
                                 m + 2 * matrix, WORKSPACE, c->stream) != 0;
}

// Both operands as random numbers of the kind: zeros, or any constant, would run faster.
static void fill_noise(struct cuda *c, char *memory, const struct kind *kind)
{
    cuda_noise(c, &(struct cuda_noise){.dtype = kind->dtype,
                                       .p = memory,
                                       .rows = 2 * DIM,
                                       .cols = DIM,
                                       .row_bytes = DIM * kern_dtype_bytes(kind->dtype),
                                       .key = 1,
                                       .amplitude = 1});
}

static bool product_open(struct product *p)
{
    struct blas *b = p->blas;
    const struct kind *k = p->kind;
    cublasOperation_t transposed = CUBLAS_OP_T;
    cublasLtMatmulPreference_t preference = NULL;
    size_t workspace = WORKSPACE;
    int found = 0;
    bool ok = !b->create(&p->handle) && !b->desc_create(&p->desc, k->compute, k->scale) &&
              !b->desc_set(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed) &&
              !b->layout_create(&p->in, k->in, DIM, DIM, DIM) &&
              !b->layout_create(&p->out, k->out, DIM, DIM, DIM) &&
              !b->preference_create(&preference) &&
              !b->preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                 sizeof workspace) &&
              !b->heuristic(p->handle, p->desc, p->in, p->in, p->out, p->out, preference, 1,
                            &p->best, &found) &&
              found == 1;
    if (preference)
        b->preference_destroy(preference);
    return ok;
}

static void product_close(struct product *p)
{
    if (p->in)
        p->blas->layout_destroy(p->in);
    if (p->out)
        p->blas->layout_destroy(p->out);
    if (p->desc)
        p->blas->desc_destroy(p->desc);
    if (p->handle)
        p->blas->destroy(p->handle);
}

// 10^12 operations per second; 0 when cuBLASLt has no such product here.
static double product_rate(struct cuda *c, struct blas *b, char *memory, const struct kind *kind)
{
    struct product p = {.blas = b, .kind = kind, .memory = memory};
    fill_noise(c, memory, kind);
    double s = product_open(&p) ? median_s(c, product_once, &p) : 0;
    product_close(&p);
    return s > 0 && !p.failed ? 2.0 * DIM * DIM * DIM / s * 1e-12 : 0;
}

struct host_copy {
    char *to, *from;
};

static void host_copy_once(struct cuda *c, void *ctx)
{
    struct host_copy *h = ctx;
    cuda_check(c, cudaMemcpyAsync(h->to, h->from, HOST_BYTES, cudaMemcpyHostToDevice, c->stream),
               "copy");
}

static double host_copy_rate(struct cuda *c, char *memory)
{
    struct host_copy h = {.to = memory};
    if (!cuda_check(c, cudaMallocHost((void **)&h.from, HOST_BYTES), "pinned"))
        return 0;
    memset(h.from, 1, HOST_BYTES);
    double s = median_s(c, host_copy_once, &h);
    cudaFreeHost(h.from);
    return HOST_BYTES / s * 1e-9;
}

kern_cuda_limits_fn hadal_cuda_limits;
__attribute__((visibility("default"))) enum status
hadal_cuda_limits(struct kern *k, struct kern_cuda_limits *out, struct errmsg *err)
{
    struct cuda *c = cuda_of(k);
    struct kern_buf buf = {.k = k, .dtype = KERN_F32, .n = (size_t)COPY_BYTES / 2};
    struct blas blas;
    enum status s = k->device->buf_alloc(&buf); // twice COPY_BYTES
    if (s != STATUS_OK)
        return errmsg_set(err, s, "%s: no memory to measure its limits with", k->describe);
    cuda_noise(c, &(struct cuda_noise){.dtype = KERN_BF16,
                                       .p = buf.p,
                                       .rows = 1,
                                       .cols = COPY_BYTES / 2,
                                       .key = 2,
                                       .amplitude = 1});
    struct kern_cuda_limits l = {.copy_gb_s =
                                     2.0 * COPY_BYTES / median_s(c, copy_once, buf.p) * 1e-9,
                                 .host_gb_s = host_copy_rate(c, buf.p)};
    if (load_blas(&blas)) {
        double *rates[] = {&l.tflop_s, &l.fp8_tflop_s, &l.int8_top_s};
        for (int i = 0; i < 3; i++)
            *rates[i] = product_rate(c, &blas, buf.p, &kinds[i]);
    }
    k->device->buf_free(&buf);
    s = k->device->sync(k);
    if (s != STATUS_OK)
        return errmsg_set(err, STATUS_INTERNAL, "%s: measuring its limits failed", k->describe);
    *out = l;
    return STATUS_OK;
}
