// What a body of kern implements; seen by kernels/ only. kern.c checks arguments, then calls these
// tables, so a body may take every shape for granted. Operands that are absent have buf NULL.
#pragma once

#include <assert.h>

#include "kernels/kern.h"

struct kern_buf {
    struct kern *k;
    enum kern_dtype dtype;
    size_t n;
    void *p;       // device address
    bool borrowed; // kern_buf_wrap, kern_buf_window_create
    void *host;    // kern_buf_create_shared
};

struct kern_weight {
    struct kern *k;
    struct kern_weight_args shape;
    enum kern_dtype held; // what lies in memory: shape.dtype, but f32 for FP8 and INT8 on CPUs
    void *p;              // device address, in the body's packing
    size_t ld;            // elements from row to row, where the packing has rows
    size_t stack_bytes;   // distance of two matrices of the stack
    // f32, CUDA only. FP8: [stack][rows / 128 up][scales_ld], scales_ld = cols / 128 rounded up to
    // a multiple of 4; INT8: [stack][rows]; else NULL.
    float *scales;
    size_t scales_ld, scales_stack; // floats of a row, of a matrix
    size_t bytes;                   // of all
};

struct kern_stage {
    struct kern *k;
    size_t bytes;
    void *p;      // host memory
    void *device; // the body's own
};

struct kern_copier {
    struct kern *k;
    void *device; // the body's own
};

// One member per op, in the order of kern.h.
struct kern_compute {
    void (*embed)(struct kern *, const struct kern_embed_args *);
    void (*gather_rows)(struct kern *, const struct kern_gather_args *);
    void (*rmsnorm)(struct kern *, const struct kern_rmsnorm_args *);
    void (*linear)(struct kern *, const struct kern_linear_args *);
    void (*linear_heads)(struct kern *, const struct kern_linear_heads_args *);
    void (*add)(struct kern *, const struct kern_add_args *);
    void (*silu_mul)(struct kern *, const struct kern_silu_mul_args *);
    void (*rope)(struct kern *, const struct kern_rope_args *);
    void (*kv_write)(struct kern *, const struct kern_kv_write_args *);
    void (*attn_mla)(struct kern *, const struct kern_attn_mla_args *);
    void (*attn_gqa)(struct kern *, const struct kern_attn_gqa_args *);
    void (*router)(struct kern *, const struct kern_router_args *);
    void (*moe_gate_up)(struct kern *, const struct kern_moe_gate_up_args *);
    void (*moe_down)(struct kern *, const struct kern_moe_down_args *);
    void (*gated)(struct kern *, const struct kern_gated_args *);
    void (*mla_prepare)(struct kern *, const struct kern_mla_prepare_args *);
    void (*gqa_prepare)(struct kern *, const struct kern_gqa_prepare_args *);
    void (*route)(struct kern *, const struct kern_route_args *);
    void (*argmax)(struct kern *, const struct kern_argmax_args *);
    void (*sample)(struct kern *, const struct kern_sample_args *);
};

struct kern_device {
    bool (*replay_begin)(struct kern *, uint64_t key); // NULL: nothing is recorded
    enum status (*replay_end)(struct kern *);
    void (*close)(struct kern *); // frees the kern itself
    enum status (*sync)(struct kern *);
    enum status (*buf_alloc)(struct kern_buf *);        // sets p from dtype and n, zeroed
    enum status (*buf_alloc_shared)(struct kern_buf *); // sets p and host, zeroed
    void (*buf_free)(struct kern_buf *);
    void (*upload)(struct kern_buf *, size_t at, const void *host, size_t n);
    enum status (*download)(void *host, const struct kern_buf *, size_t at, size_t n);
    void (*zero)(struct kern_buf *, size_t at, size_t n);
    enum status (*weight_alloc)(struct kern_weight *); // sets p, stack_bytes, bytes; zeroed
    void (*weight_free)(struct kern_weight *);
    void (*weight_fill)(struct kern_weight *, const struct kern_fill_args *); // strides set
    void (*weight_fill_scales)(struct kern_weight *, const struct kern_scales_args *); // stride set
    // Bodies whose memory is plain leave these out: kern.c then does it by the members above.
    void (*weight_noise)(struct kern_weight *, const struct kern_noise_args *);
    void (*buf_noise)(struct kern_buf *, const struct kern_buf_noise_args *);
    enum status (*stage_alloc)(struct kern_stage *); // sets p and device
    void (*stage_free)(struct kern_stage *);
    void (*stage_fill)(struct kern_weight *, const struct kern_fill_args *, struct kern_stage *);
    void (*stage_wait)(struct kern_stage *);
    enum status (*copier_open)(struct kern_copier *); // sets device
    void (*copier_close)(struct kern_copier *);
    enum status (*copier_fence)(struct kern_copier *);
    enum status (*copier_read)(struct kern_copier *, void *host, const struct kern_strip *);
    enum status (*copier_write)(struct kern_copier *, const struct kern_strip *, const void *host);
    enum status (*copier_wait)(struct kern_copier *);
};

#ifdef __cplusplus
extern "C" {
#endif
// Fused ops as the ops they stand for: bodies without something better have these in their table.
void kern_composed_gated(struct kern *k, const struct kern_gated_args *a);
void kern_composed_mla_prepare(struct kern *k, const struct kern_mla_prepare_args *a);
void kern_composed_gqa_prepare(struct kern *k, const struct kern_gqa_prepare_args *a);
void kern_composed_route(struct kern *k, const struct kern_route_args *a);
#ifdef __cplusplus
}
#endif

// First member of every body's own struct.
struct kern {
    enum kern_backend backend;
    const struct kern_device *device;
    const struct kern_compute *compute;
    enum kern_dtype act, kv; // kern_act_dtype, kern_kv_dtype
    int threads;
    char describe[64];
};

static inline size_t kern_dtype_bytes(enum kern_dtype d)
{
    return d == KERN_F32 || d == KERN_I32 ? 4 : d == KERN_FP8 || d == KERN_INT8 ? 1 : 2;
}

// Row i of a view; only for bodies whose buffers are plain memory.
static inline float *kern_row(const struct kern_view *v, size_t i)
{
    return (float *)v->buf->p + v->at + i * v->stride;
}
static inline const int32_t *kern_i32(const struct kern_buf *b)
{
    return (const int32_t *)b->p;
}

enum status kern_cpu_open(enum kern_backend backend, const struct kern_config *config,
                          struct kern **kern_out, struct errmsg *err);
