// The device side of the CUDA body: opening, memory, uploads and weights. Uploads are copied into
// pinned memory first, which has two halves: while one is being read by the device the other is
// filled, so the caller's memory is free again on return and the copy runs behind it.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda_load.h"

enum { ARENA_ALIGN = 256 };

// ---- failures

bool cuda_check(struct cuda *c, cudaError_t e, const char *what)
{
    if (e == cudaSuccess)
        return true;
    if (c->failed == cudaSuccess) {
        c->failed = e;
        c->failed_at = what;
        log_error("cuda device %d: %s: %s", c->device, what, cudaGetErrorString(e));
    }
    return false;
}

void cuda_launched(struct cuda *c, const char *kernel)
{
    cuda_check(c, cudaGetLastError(), kernel);
}

// The failure is reported once; what it spoiled is the caller's to give up.
enum status cuda_failure(struct cuda *c)
{
    cudaError_t e = c->failed;
    c->failed = cudaSuccess;
    return e == cudaSuccess                 ? STATUS_OK
           : e == cudaErrorMemoryAllocation ? STATUS_NO_MEMORY
                                            : STATUS_INTERNAL;
}

static enum status cuda_sync(struct kern *k)
{
    struct cuda *c = cuda_of(k);
    cuda_check(c, cudaStreamSynchronize(c->stream), "waiting for the stream");
    return cuda_failure(c);
}

// ---- memory

// A context belongs to a thread: the owner may have opened another device since.
struct cuda *cuda_enter(struct kern *k)
{
    struct cuda *c = cuda_of(k);
    cuda_check(c, cudaSetDevice(c->device), "cudaSetDevice");
    return c;
}

static enum status device_alloc(struct cuda *c, size_t bytes, void **out)
{
    cudaError_t e = cudaMalloc(out, bytes ? bytes : 1);
    if (e == cudaErrorMemoryAllocation) {
        cudaGetLastError(); // not sticky: forget it
        return STATUS_NO_MEMORY;
    }
    if (!cuda_check(c, e, "cudaMalloc") ||
        !cuda_check(c, cudaMemsetAsync(*out, 0, bytes ? bytes : 1, c->stream), "cudaMemset"))
        return cuda_failure(c);
    return STATUS_OK;
}

static void device_free(struct cuda *c, void *p)
{
    cuda_replay_forget(c);
    cuda_check(c, cudaFree(p), "cudaFree"); // waits for work that uses it
}

static enum status cuda_buf_alloc(struct kern_buf *b)
{
    return device_alloc(cuda_enter(b->k), b->n * kern_dtype_bytes(b->dtype), &b->p);
}

static enum status cuda_buf_alloc_shared(struct kern_buf *b)
{
    struct cuda *c = cuda_enter(b->k);
    size_t bytes = b->n * kern_dtype_bytes(b->dtype);
    cudaError_t e = cudaHostAlloc(&b->host, bytes ? bytes : 1, cudaHostAllocMapped);
    if (e == cudaErrorMemoryAllocation) {
        cudaGetLastError(); // not sticky: forget it
        return STATUS_NO_MEMORY;
    }
    if (!cuda_check(c, e, "cudaHostAlloc"))
        return cuda_failure(c);
    memset(b->host, 0, bytes);
    if (cuda_check(c, cudaHostGetDevicePointer(&b->p, b->host, 0), "cudaHostGetDevicePointer"))
        return STATUS_OK;
    cudaFreeHost(b->host);
    return cuda_failure(c);
}

static void cuda_buf_free(struct kern_buf *b)
{
    struct cuda *c = cuda_enter(b->k);
    if (!b->host) {
        device_free(c, b->p);
        return;
    }
    cuda_replay_forget(c);
    cuda_check(c, cudaFreeHost(b->host), "cudaFreeHost");
}

void *cuda_scratch(struct cuda *c, enum cuda_arena arena, size_t bytes)
{
    if (bytes <= c->arenas[arena].bytes)
        return c->arenas[arena].p;
    if (c->capturing) { // the first run of this step had it all: a bug, and nothing will be
                        // launched
        cuda_check(c, cudaErrorStreamCaptureUnsupported, "scratch memory while recording");
        return c->arenas[arena].p;
    }
    size_t grown = (bytes + bytes / 4 + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    cuda_replay_forget(c);
    // In the stream's order: cudaFree would wait for all that the device does, also for collectives
    // of another rank's thread that wait for this one.
    cudaError_t e = cudaSuccess;
    if (c->arenas[arena].p)
        e = cudaFreeAsync(c->arenas[arena].p, c->stream);
    if (e == cudaSuccess)
        e = cudaMallocAsync(&c->arenas[arena].p, grown, c->stream);
    if (e != cudaSuccess) {
        fprintf(stderr, "kern: cuda device %d: %zu bytes of scratch: %s\n", c->device, grown,
                cudaGetErrorString(e));
        abort();
    }
    c->arenas[arena].bytes = grown;
    return c->arenas[arena].p;
}

// ---- host to device

// Room for `bytes` (at most CUDA_PINNED_BYTES) that the device no longer reads.
static char *pinned_room(struct cuda *c, size_t bytes)
{
    size_t rounded = (bytes + 15) / 16 * 16;
    if (rounded > CUDA_PINNED_BYTES - c->pinned[c->pinned_i].used) {
        cuda_check(c, cudaEventRecord(c->pinned[c->pinned_i].copied, c->stream), "cudaEventRecord");
        c->pinned_i = !c->pinned_i;
        c->pinned[c->pinned_i].used = 0;
        cuda_check(c, cudaEventSynchronize(c->pinned[c->pinned_i].copied), "cudaEventSynchronize");
    }
    char *p = c->pinned[c->pinned_i].p + c->pinned[c->pinned_i].used;
    c->pinned[c->pinned_i].used += rounded;
    return p;
}

static void copy_to_device(struct cuda *c, void *to, const char *from, size_t bytes)
{
    for (size_t at = 0, n; at < bytes; at += n) {
        n = bytes - at < CUDA_PINNED_BYTES ? bytes - at : CUDA_PINNED_BYTES;
        char *room = pinned_room(c, n);
        memcpy(room, from + at, n);
        cuda_check(c, cudaMemcpyAsync((char *)to + at, room, n, cudaMemcpyHostToDevice, c->stream),
                   "upload");
    }
}

static void cuda_upload(struct kern_buf *dst, size_t at, const void *host, size_t n)
{
    size_t e = kern_dtype_bytes(dst->dtype);
    copy_to_device(cuda_enter(dst->k), (char *)dst->p + at * e, host, n * e);
}

static enum status cuda_download(void *host, const struct kern_buf *src, size_t at, size_t n)
{
    struct cuda *c = cuda_enter(src->k);
    size_t e = kern_dtype_bytes(src->dtype), bytes = n * e;
    const char *from = (const char *)src->p + at * e;
    for (size_t done = 0, some; done < bytes; done += some) {
        some = bytes - done < CUDA_PINNED_BYTES ? bytes - done : CUDA_PINNED_BYTES;
        char *room = pinned_room(c, some);
        cuda_check(c, cudaMemcpyAsync(room, from + done, some, cudaMemcpyDeviceToHost, c->stream),
                   "download");
        cuda_check(c, cudaStreamSynchronize(c->stream), "download");
        if (c->failed != cudaSuccess)
            break;
        memcpy((char *)host + done, room, some);
    }
    return cuda_failure(c);
}

static void cuda_zero(struct kern_buf *b, size_t at, size_t n)
{
    struct cuda *c = cuda_enter(b->k);
    size_t e = kern_dtype_bytes(b->dtype);
    cuda_check(c, cudaMemsetAsync((char *)b->p + at * e, 0, n * e, c->stream), "zero");
}

// ---- weights

static bool is_scaled(const struct kern_weight *w)
{
    return w->shape.dtype == KERN_FP8 || w->shape.dtype == KERN_INT8;
}

static size_t blocks_of(size_t n)
{
    return (n + KERN_SCALE_BLOCK - 1) / KERN_SCALE_BLOCK;
}

static enum status scales_alloc(struct kern_weight *w)
{
    const struct kern_weight_args *s = &w->shape;
    bool fp8 = s->dtype == KERN_FP8;
    w->scales_ld = fp8 ? (blocks_of(s->cols) + 3) / 4 * 4 : 1; // 16-byte aligned rows
    w->scales_stack = w->scales_ld * (fp8 ? blocks_of(s->rows) : s->rows);
    size_t bytes = s->stack * w->scales_stack * sizeof(float); // less than the matrices
    enum status rc = device_alloc(cuda_enter(w->k), bytes, (void **)&w->scales);
    w->bytes += rc == STATUS_OK ? bytes : 0;
    return rc;
}

static enum status cuda_weight_alloc(struct kern_weight *w)
{
    const struct kern_weight_args *s = &w->shape;
    size_t e = kern_dtype_bytes(s->dtype), each = CUDA_ROW_BYTES / e;
    w->ld = (s->cols + each - 1) / each * each;
    if (__builtin_mul_overflow(w->ld * e, s->rows, &w->stack_bytes) ||
        __builtin_mul_overflow(w->stack_bytes, s->stack, &w->bytes))
        return STATUS_NO_MEMORY;
    enum status rc = device_alloc(cuda_enter(w->k), w->bytes, &w->p);
    if (rc == STATUS_OK && is_scaled(w) && (rc = scales_alloc(w)) != STATUS_OK)
        device_free(cuda_of(w->k), w->p);
    return rc;
}

static void cuda_weight_free(struct kern_weight *w)
{
    device_free(cuda_enter(w->k), w->p);
    if (w->scales)
        device_free(cuda_of(w->k), w->scales);
}

// `rows` rows of `cols` elements of e bytes -> dense rows at `to`.
static void make_dense(char *to, const struct kern_fill_args *a, size_t cols, size_t e)
{
    const char *from = a->data;
    if (a->col_stride == 1 && a->row_stride == cols) {
        memcpy(to, from, a->rows * cols * e);
        return;
    }
    for (size_t i = 0; i < a->rows; i++, to += cols * e)
        if (a->col_stride == 1)
            memcpy(to, from + i * a->row_stride * e, cols * e);
        else
            for (size_t j = 0; j < cols; j++)
                memcpy(to + j * e, from + (i * a->row_stride + j * a->col_stride) * e, e);
}

// As many rows at a time as fit into a half of the pinned memory.
static void fill_some(struct kern_weight *w, const struct kern_fill_args *a)
{
    struct cuda *c = cuda_of(w->k);
    size_t e = kern_dtype_bytes(w->shape.dtype), row = w->shape.cols * e;
    char *to = (char *)w->p + a->s * w->stack_bytes + a->row0 * w->ld * e;
    char *room = pinned_room(c, a->rows * row);
    make_dense(room, a, w->shape.cols, e);
    cuda_check(c,
               cudaMemcpy2DAsync(to, w->ld * e, room, row, row, a->rows, cudaMemcpyHostToDevice,
                                 c->stream),
               "fill");
}

static void cuda_weight_fill(struct kern_weight *w, const struct kern_fill_args *args)
{
    cuda_enter(w->k);
    struct kern_fill_args a = *args;
    size_t e = kern_dtype_bytes(w->shape.dtype), row = w->shape.cols * e;
    assert(row <= CUDA_PINNED_BYTES);
    size_t most = CUDA_PINNED_BYTES / row;
    for (size_t at = 0; at < args->rows; at += a.rows) {
        a.rows = args->rows - at < most ? args->rows - at : most;
        a.row0 = args->row0 + at;
        a.data = (const char *)args->data + at * args->row_stride * e;
        fill_some(w, &a);
    }
}

static void cuda_weight_fill_scales(struct kern_weight *w, const struct kern_scales_args *a)
{
    struct cuda *c = cuda_enter(w->k);
    float *to = w->scales + a->s * w->scales_stack;
    if (w->shape.dtype == KERN_INT8) {
        copy_to_device(c, to + a->row0, (const char *)a->data, a->rows * sizeof(float));
        return;
    }
    to += a->row0 / KERN_SCALE_BLOCK * w->scales_ld;
    for (size_t i = 0; i < blocks_of(a->rows); i++)
        copy_to_device(c, to + i * w->scales_ld, (const char *)(a->data + i * a->row_stride),
                       blocks_of(w->shape.cols) * sizeof(float));
}

// ---- opening

static void cuda_close(struct kern *k)
{
    struct cuda *c = cuda_enter(k);
    if (c->stream)
        cudaStreamSynchronize(c->stream);
    cuda_replay_forget(c);
    cudaFree(c->zeros);
    for (int i = 0; i < CUDA_ARENAS; i++)
        cudaFree(c->arenas[i].p);
    for (int i = 0; i < 2; i++) {
        cudaFreeHost(c->pinned[i].p);
        if (c->pinned[i].copied)
            cudaEventDestroy(c->pinned[i].copied);
    }
    if (c->stream)
        cudaStreamDestroy(c->stream);
    free(c);
}

static const struct kern_device device = {
    .replay_begin = cuda_replay_begin,
    .replay_end = cuda_replay_end,
    .close = cuda_close,
    .sync = cuda_sync,
    .buf_alloc = cuda_buf_alloc,
    .buf_alloc_shared = cuda_buf_alloc_shared,
    .buf_free = cuda_buf_free,
    .upload = cuda_upload,
    .download = cuda_download,
    .zero = cuda_zero,
    .weight_alloc = cuda_weight_alloc,
    .weight_free = cuda_weight_free,
    .weight_fill = cuda_weight_fill,
    .weight_noise = cuda_weight_noise,
    .buf_noise = cuda_buf_noise,
    .stage_alloc = cuda_stage_alloc,
    .stage_free = cuda_stage_free,
    .stage_fill = cuda_stage_fill,
    .stage_wait = cuda_stage_wait,
    .copier_open = cuda_copier_open,
    .copier_close = cuda_copier_close,
    .copier_fence = cuda_copier_fence,
    .copier_read = cuda_copier_read,
    .copier_write = cuda_copier_write,
    .copier_wait = cuda_copier_wait,
    .weight_fill_scales = cuda_weight_fill_scales,
};
static const struct kern_compute compute = {
    .embed = cuda_embed,
    .gather_rows = cuda_gather_rows,
    .rmsnorm = cuda_rmsnorm,
    .linear = cuda_linear,
    .linear_heads = cuda_linear_heads,
    .add = cuda_add,
    .silu_mul = cuda_silu_mul,
    .rope = cuda_rope,
    .kv_write = cuda_kv_write,
    .attn_mla = cuda_attn_mla,
    .attn_gqa = cuda_attn_gqa,
    .router = cuda_router,
    .moe_gate_up = cuda_moe_gate_up,
    .moe_down = cuda_moe_down,
    .gated = cuda_gated,
    .mla_prepare = cuda_mla_prepare,
    .gqa_prepare = cuda_gqa_prepare,
    .route = cuda_route,
    .argmax = cuda_argmax,
    .sample = cuda_sample_op,
};

static enum status open_device(struct cuda *c, const struct kern_config *config, struct errmsg *err)
{
    int n = 0;
    // A kernel that is loaded at its first launch may have to wait for the device to be idle, and
    // a collective keeps it busy until the peers come.
    if (!getenv("CUDA_MODULE_LOADING"))
        setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess)
        return errmsg_set(err, STATUS_NO_DEVICE, "backend cuda: %s", cudaGetErrorString(e));
    if (config->device < 0 || config->device >= n)
        return errmsg_set(err, STATUS_NO_DEVICE, "backend cuda: no device %d, this host has %d",
                          config->device, n);
    struct cudaDeviceProp p;
    if ((e = cudaSetDevice(config->device)) != cudaSuccess ||
        (e = cudaGetDeviceProperties(&p, config->device)) != cudaSuccess)
        return errmsg_set(err, STATUS_NO_DEVICE, "backend cuda: device %d: %s", config->device,
                          cudaGetErrorString(e));
    if (p.major < 8)
        return errmsg_set(err, STATUS_NO_DEVICE,
                          "backend cuda: device %d, %s, is of compute capability %d.%d; 8.0 is the "
                          "least",
                          config->device, p.name, p.major, p.minor);
    c->sms = p.multiProcessorCount;
    c->pdl = p.major >= 9;
    c->hopper = p.major == 9;
    c->arch = 10 * p.major + p.minor;
    snprintf(c->base.describe, sizeof c->base.describe, "cuda %d, %.48s", config->device, p.name);
    return STATUS_OK;
}

static enum status make_queue(struct cuda *c, struct errmsg *err)
{
    bool ok = cuda_check(c, cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking), "stream");
    for (int i = 0; i < 2 && ok; i++)
        ok = cuda_check(c, cudaEventCreateWithFlags(&c->pinned[i].copied, cudaEventDisableTiming),
                        "event") &&
             cuda_check(c, cudaMallocHost((void **)&c->pinned[i].p, CUDA_PINNED_BYTES), "pinned");
    const size_t zeros = CUDA_ZEROS * sizeof *c->zeros;
    ok = ok && cuda_check(c, cudaMalloc((void **)&c->zeros, zeros), "cudaMalloc") &&
         cuda_check(c, cudaMemsetAsync(c->zeros, 0, zeros, c->stream), "cudaMemset");
    return ok ? STATUS_OK
              : errmsg_set(err, STATUS_NO_DEVICE, "backend cuda: %s: %s: %s", c->base.describe,
                           c->failed_at, cudaGetErrorString(c->failed));
}

kern_cuda_open_fn hadal_cuda_open;
__attribute__((visibility("default"))) enum status hadal_cuda_open(int abi,
                                                                   const struct kern_config *config,
                                                                   struct kern **kern_out,
                                                                   struct errmsg *err)
{
    if (abi != KERN_CUDA_ABI)
        return errmsg_set(err, STATUS_NO_DEVICE,
                          "backend cuda: libhadal_cuda.so is of another build (interface %d, the "
                          "program has %d)",
                          KERN_CUDA_ABI, abi);
    struct cuda *c = mem_zalloc(1, sizeof *c);
    c->device = config->device;
    c->base = (struct kern){.backend = KERN_CUDA,
                            .device = &device,
                            .compute = &compute,
                            .act = KERN_BF16,
                            .kv = KERN_BF16,
                            .threads = 1};
    enum status s = open_device(c, config, err);
    if (s != STATUS_OK) {
        free(c);
        return s;
    }
    s = make_queue(c, err);
    if (s != STATUS_OK) {
        cuda_close(&c->base);
        return s;
    }
    *kern_out = &c->base;
    return STATUS_OK;
}
