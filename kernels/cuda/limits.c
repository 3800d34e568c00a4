// What this device reaches, independent of our kernels: a large copy, and a large bf16 product by
// cuBLASLt, which is loaded only here, so that the module runs where it is not installed.
#include <cublasLt.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda_load.h"

enum { COPY_BYTES = 1 << 29, DIM = 8192, REPEATS = 12, WORKSPACE = 32 << 20, NOISE = 4 << 20 };

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

struct product {
    struct blas blas;
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t layout; // of all three: square
    cublasLtMatmulHeuristicResult_t best;
    char *memory; // two operands, the result, the workspace
    bool failed;
};

static void product_once(struct cuda *c, void *ctx)
{
    struct product *p = ctx;
    const size_t matrix = (size_t)DIM * DIM * 2;
    const float one = 1, zero = 0;
    char *m = p->memory;
    p->failed |= p->blas.matmul(p->handle, p->desc, &one, m, p->layout, m + matrix, p->layout,
                                &zero, m + 2 * matrix, p->layout, m + 2 * matrix, p->layout,
                                &p->best.algo, m + 3 * matrix, WORKSPACE, c->stream) != 0;
}

// Products of random numbers: zeros would run faster.
static void fill_noise(struct cuda *c, char *memory, size_t bytes)
{
    uint16_t *noise = mem_alloc(NOISE);
    for (uint32_t i = 0, x = 1; i < NOISE / 2; i++) {
        x = x * 1664525u + 1013904223u;
        noise[i] = (uint16_t)(0x3f00 | (x >> 16 & 0x80ff)); // +-[0.5, 2)
    }
    for (size_t at = 0; at + NOISE <= bytes; at += NOISE)
        cuda_check(c, cudaMemcpy(memory + at, noise, NOISE, cudaMemcpyHostToDevice), "noise");
    free(noise);
}

static bool product_open(struct product *p)
{
    struct blas *b = &p->blas;
    cublasOperation_t transposed = CUBLAS_OP_T;
    cublasLtMatmulPreference_t preference = NULL;
    size_t workspace = WORKSPACE;
    int found = 0;
    bool ok = load_blas(b) && !b->create(&p->handle) &&
              !b->desc_create(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) &&
              !b->desc_set(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed) &&
              !b->layout_create(&p->layout, CUDA_R_16BF, DIM, DIM, DIM) &&
              !b->preference_create(&preference) &&
              !b->preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                 sizeof workspace) &&
              !b->heuristic(p->handle, p->desc, p->layout, p->layout, p->layout, p->layout,
                            preference, 1, &p->best, &found) &&
              found == 1;
    if (preference)
        b->preference_destroy(preference);
    return ok;
}

static void product_close(struct product *p)
{
    if (p->layout)
        p->blas.layout_destroy(p->layout);
    if (p->desc)
        p->blas.desc_destroy(p->desc);
    if (p->handle)
        p->blas.destroy(p->handle);
}

kern_cuda_limits_fn hadal_cuda_limits;
__attribute__((visibility("default"))) enum status
hadal_cuda_limits(struct kern *k, struct kern_cuda_limits *out, struct errmsg *err)
{
    struct cuda *c = cuda_of(k);
    struct kern_buf buf = {.k = k, .dtype = KERN_F32, .n = (size_t)COPY_BYTES / 2};
    struct product p = {0};
    enum status s = k->device->buf_alloc(&buf); // twice COPY_BYTES
    if (s != STATUS_OK)
        return errmsg_set(err, s, "%s: no memory to measure its limits with", k->describe);
    p.memory = buf.p;
    fill_noise(c, p.memory, COPY_BYTES);
    double copy = median_s(c, copy_once, p.memory), product = 0;
    if (product_open(&p))
        product = median_s(c, product_once, &p);
    product_close(&p);
    k->device->buf_free(&buf);
    s = k->device->sync(k);
    if (s != STATUS_OK || p.failed)
        return errmsg_set(err, STATUS_INTERNAL, "%s: measuring its limits failed", k->describe);
    out->copy_gb_s = 2.0 * COPY_BYTES / copy * 1e-9;
    out->tflop_s = product > 0 ? 2.0 * DIM * DIM * DIM / product * 1e-12 : 0;
    return STATUS_OK;
}
