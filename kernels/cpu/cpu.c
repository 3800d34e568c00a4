// The device side of both CPU bodies: opening (choosing the instruction set by cpuid), plain
// memory, and packing of weights. The reference keeps weights row-major; the fast body in tiles of
// 16 rows.
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "base/mem.h"

enum { THREADS_MAX = 1024, HUGE_PAGE = 2 << 20, RUN_ALONE_COST = 24 << 10 };

// ---- memory

// Zeroed, 64-byte aligned; large areas ask for huge pages.
static void *area_alloc(size_t bytes)
{
    size_t align = bytes >= HUGE_PAGE ? HUGE_PAGE : 64;
    size_t rounded = (bytes + align - 1) / align * align;
    void *p = aligned_alloc(align, rounded ? rounded : align);
    if (!p)
        return NULL;
    if (align == HUGE_PAGE)
        madvise(p, rounded, MADV_HUGEPAGE); // only a hint
    memset(p, 0, rounded ? rounded : align);
    return p;
}

static enum status cpu_buf_alloc(struct kern_buf *b)
{
    b->p = area_alloc(b->n * kern_dtype_bytes(b->dtype));
    return b->p ? STATUS_OK : STATUS_NO_MEMORY;
}

static enum status cpu_buf_alloc_shared(struct kern_buf *b)
{
    enum status s = cpu_buf_alloc(b);
    b->host = b->p;
    return s;
}

static void cpu_buf_free(struct kern_buf *b)
{
    free(b->p);
}

static void cpu_upload(struct kern_buf *dst, size_t at, const void *host, size_t n)
{
    size_t e = kern_dtype_bytes(dst->dtype);
    memcpy((char *)dst->p + at * e, host, n * e);
}

static enum status cpu_download(void *host, const struct kern_buf *src, size_t at, size_t n)
{
    size_t e = kern_dtype_bytes(src->dtype);
    memcpy(host, (const char *)src->p + at * e, n * e);
    return STATUS_OK;
}

static void cpu_zero(struct kern_buf *b, size_t at, size_t n)
{
    size_t e = kern_dtype_bytes(b->dtype);
    memset((char *)b->p + at * e, 0, n * e);
}

static enum status cpu_sync(struct kern *k)
{
    return STATUS_OK;
}

void *cpu_scratch(struct kern *k, enum cpu_arena arena, size_t bytes)
{
    struct cpu *c = cpu_of(k);
    if (bytes <= c->arenas[arena].bytes)
        return c->arenas[arena].p;
    free(c->arenas[arena].p);
    size_t grown = (bytes + bytes / 4 + 63) / 64 * 64;
    c->arenas[arena].p = aligned_alloc(64, grown);
    if (!c->arenas[arena].p) {
        fprintf(stderr, "kern: out of memory: %zu bytes of scratch\n", grown);
        abort();
    }
    c->arenas[arena].bytes = grown;
    return c->arenas[arena].p;
}

void cpu_run(struct kern *k, size_t items, size_t cost, cpu_item_fn *fn, void *ctx)
{
    if (cost >= RUN_ALONE_COST) {
        cpu_pool_run(cpu_of(k)->pool, items, fn, ctx);
        return;
    }
    for (size_t i = 0; i < items; i++)
        fn(ctx, i, 0);
}

// ---- weights

float cpu_to_f32(enum kern_dtype dtype, const void *element)
{
    float f;
    uint16_t h;
    if (dtype == KERN_F32) {
        memcpy(&f, element, 4);
        return f;
    }
    memcpy(&h, element, 2);
    if (dtype == KERN_BF16) {
        uint32_t u = (uint32_t)h << 16;
        memcpy(&f, &u, 4);
        return f;
    }
    uint32_t sign = (uint32_t)(h >> 15) << 31, exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 0) { // zero and subnormal: mantissa * 2^-24 is exact
        f = (float)mantissa * 0x1p-24f;
        return sign ? -f : f;
    }
    uint32_t u = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | mantissa << 13;
    memcpy(&f, &u, 4);
    return f;
}

static bool is_scaled(const struct kern_weight *w)
{
    return w->shape.dtype == KERN_FP8 || w->shape.dtype == KERN_INT8;
}

// FP8 and INT8 are held as f32: filled as they are, then multiplied by their scales.
static enum status weight_alloc(struct kern_weight *w, size_t rows)
{
    size_t bytes;
    w->held = is_scaled(w) ? KERN_F32 : w->shape.dtype;
    w->stack_bytes = rows * w->shape.cols * kern_dtype_bytes(w->held);
    if (__builtin_mul_overflow(w->stack_bytes, w->shape.stack, &bytes))
        return STATUS_NO_MEMORY;
    w->bytes = bytes;
    w->p = area_alloc(bytes);
    return w->p ? STATUS_OK : STATUS_NO_MEMORY;
}

static enum status flat_weight_alloc(struct kern_weight *w)
{
    return weight_alloc(w, w->shape.rows);
}

static bool is_tiled(const struct kern_weight *w)
{
    return w->shape.kind == KERN_WEIGHT_MATRIX;
}

static enum status tiled_weight_alloc(struct kern_weight *w)
{
    return weight_alloc(w, is_tiled(w) ? (w->shape.rows + TILE - 1) / TILE * TILE : w->shape.rows);
}

static void cpu_weight_free(struct kern_weight *w)
{
    free(w->p);
}

// e4m3 without infinities (bias 7, mantissa of 3 bits, one NaN of each sign).
static float from_fp8(uint8_t v)
{
    int exponent = v >> 3 & 15, mantissa = v & 7;
    float f = exponent == 15 && mantissa == 7 ? NAN
              : exponent                      ? ldexpf((float)(8 + mantissa), exponent - 10)
                                              : ldexpf((float)mantissa, -9);
    return v >> 7 ? -f : f;
}

// One source row of FP8 or INT8 as f32.
static void widen_row(enum kern_dtype dtype, float *dst, size_t step, const char *src,
                      size_t src_step, size_t n)
{
    float table[256];
    for (int v = 0; v < 256; v++)
        table[v] = dtype == KERN_FP8 ? from_fp8((uint8_t)v) : (float)(int8_t)v;
    for (size_t j = 0; j < n; j++)
        dst[j * step] = table[(uint8_t)src[j * src_step]];
}

// Copies one source row to dst, `step` elements apart.
static void fill_row(char *dst, size_t step, const char *src, size_t src_step, size_t n, size_t e)
{
    if (step == 1 && src_step == 1)
        memcpy(dst, src, n * e);
    else if (e == 2)
        for (size_t j = 0; j < n; j++)
            memcpy(dst + j * step * 2, src + j * src_step * 2, 2);
    else
        for (size_t j = 0; j < n; j++)
            memcpy(dst + j * step * 4, src + j * src_step * 4, 4);
}

// Where element (row, 0) of W[s] lies, and how far apart (row, j) and (row, j + 1) are, in
// elements.
struct cpu_row {
    char *p;
    size_t step;
};
static struct cpu_row flat_row(const struct kern_weight *w, size_t s, size_t row)
{
    return (struct cpu_row){
        (char *)w->p + s * w->stack_bytes + row * w->shape.cols * kern_dtype_bytes(w->held), 1};
}

static void fill_one_row(const struct kern_weight *w, const struct kern_fill_args *a, size_t i,
                         struct cpu_row to)
{
    size_t e = kern_dtype_bytes(w->shape.dtype), cols = w->shape.cols;
    const char *from = (const char *)a->data + i * a->row_stride * e;
    if (is_scaled(w))
        widen_row(w->shape.dtype, (float *)to.p, to.step, from, a->col_stride, cols);
    else
        fill_row(to.p, to.step, from, a->col_stride, cols, e);
}

static void scale_one_row(const struct kern_weight *w, const struct kern_scales_args *a, size_t i,
                          struct cpu_row to)
{
    bool fp8 = w->shape.dtype == KERN_FP8;
    const float *scales = a->data + (fp8 ? i / KERN_SCALE_BLOCK * a->row_stride : i);
    for (size_t j = 0; j < w->shape.cols; j++)
        ((float *)to.p)[j * to.step] *= scales[fp8 ? j / KERN_SCALE_BLOCK : 0];
}

static void flat_weight_fill(struct kern_weight *w, const struct kern_fill_args *a)
{
    for (size_t i = 0; i < a->rows; i++)
        fill_one_row(w, a, i, flat_row(w, a->s, a->row0 + i));
}

static void flat_weight_fill_scales(struct kern_weight *w, const struct kern_scales_args *a)
{
    for (size_t i = 0; i < a->rows; i++)
        scale_one_row(w, a, i, flat_row(w, a->s, a->row0 + i));
}

static struct cpu_row tiled_row(const struct kern_weight *w, size_t s, size_t row)
{
    size_t at = row / TILE * w->shape.cols * TILE + cpu_tile_slot(w->held, row % TILE);
    return (struct cpu_row){(char *)w->p + s * w->stack_bytes + at * kern_dtype_bytes(w->held),
                            TILE};
}

static void tiled_weight_fill(struct kern_weight *w, const struct kern_fill_args *a)
{
    if (!is_tiled(w)) {
        flat_weight_fill(w, a);
        return;
    }
    for (size_t i = 0; i < a->rows; i++)
        fill_one_row(w, a, i, tiled_row(w, a->s, a->row0 + i));
}

static void tiled_weight_fill_scales(struct kern_weight *w, const struct kern_scales_args *a)
{
    for (size_t i = 0; i < a->rows; i++) // only matrices have scales
        scale_one_row(w, a, i, tiled_row(w, a->s, a->row0 + i));
}

// ---- opening

static void cpu_close(struct kern *k)
{
    struct cpu *c = cpu_of(k);
    cpu_pool_destroy(c->pool);
    sample_memory_destroy(c->sampling);
    for (int i = 0; i < CPU_ARENAS; i++)
        free(c->arenas[i].p);
    free(c);
}

static const struct kern_device flat_device = {
    .close = cpu_close,
    .sync = cpu_sync,
    .buf_alloc = cpu_buf_alloc,
    .buf_alloc_shared = cpu_buf_alloc_shared,
    .buf_free = cpu_buf_free,
    .upload = cpu_upload,
    .download = cpu_download,
    .zero = cpu_zero,
    .weight_alloc = flat_weight_alloc,
    .weight_free = cpu_weight_free,
    .weight_fill = flat_weight_fill,
    .weight_fill_scales = flat_weight_fill_scales,
};
static const struct kern_device tiled_device = {
    .close = cpu_close,
    .sync = cpu_sync,
    .buf_alloc = cpu_buf_alloc,
    .buf_alloc_shared = cpu_buf_alloc_shared,
    .buf_free = cpu_buf_free,
    .upload = cpu_upload,
    .download = cpu_download,
    .zero = cpu_zero,
    .weight_alloc = tiled_weight_alloc,
    .weight_free = cpu_weight_free,
    .weight_fill = tiled_weight_fill,
    .weight_fill_scales = tiled_weight_fill_scales,
};

#if defined(__x86_64__)
// clang's __builtin_cpu_supports does not know f16c.
static bool has_f16c(void)
{
    unsigned a, b, c = 0, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

static bool host_has(enum kern_isa isa)
{
#if defined(__x86_64__)
    // The levels x86-64-v3 and -v4, as far as the compiler may use them.
    bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
              __builtin_cpu_supports("popcnt") && has_f16c();
    if (isa == KERN_ISA_AVX2)
        return v3;
    if (isa == KERN_ISA_AVX512)
        return v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl");
#endif
    return isa == KERN_ISA_PORTABLE;
}

static const struct body {
    enum kern_isa isa;
    const char *name;
    const struct kern_compute *compute;
} bodies[] = {
// Best first.
#if defined(__x86_64__)
    {KERN_ISA_AVX512, "avx512", &cpu_compute_avx512},
    {KERN_ISA_AVX2, "avx2", &cpu_compute_avx2},
#endif
    {KERN_ISA_PORTABLE, "portable", &cpu_compute_portable},
};

static const struct body *choose_body(enum kern_isa isa)
{
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++)
        if ((isa == KERN_ISA_BEST || isa == bodies[i].isa) && host_has(bodies[i].isa))
            return &bodies[i];
    return NULL;
}

static int usable_cores(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set))
        return 1;
    int n = CPU_COUNT(&set);
    return n < 1 ? 1 : n;
}

enum status kern_cpu_open(enum kern_backend backend, const struct kern_config *config,
                          struct kern **kern_out, struct errmsg *err)
{
    int threads = config->threads ? config->threads : usable_cores();
    if (threads < 1 || threads > THREADS_MAX)
        return errmsg_set(err, STATUS_BAD_CONFIG, "threads: %d is not within 1..%d", threads,
                          THREADS_MAX);
    bool ref = backend == KERN_CPU_REF;
    const struct body *body = choose_body(config->isa);
    if (!ref && !body)
        return errmsg_set(err, STATUS_NO_DEVICE,
                          "this CPU or build does not have the asked instruction set");
    struct cpu *c = mem_zalloc(1, sizeof *c);
    c->base = (struct kern){
        .backend = backend,
        .device = ref ? &flat_device : &tiled_device,
        .compute = ref ? &cpu_compute_ref : body->compute,
        .act = KERN_F32,
        .kv = KERN_F32,
        .threads = ref ? 1 : threads,
    };
    c->pool = cpu_pool_create(c->base.threads);
    snprintf(c->base.describe, sizeof c->base.describe, "cpu %s, %d thread%s",
             ref ? "reference" : body->name, c->base.threads, c->base.threads == 1 ? "" : "s");
    *kern_out = &c->base;
    return STATUS_OK;
}
