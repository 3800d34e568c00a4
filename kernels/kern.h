// kern: compute on device buffers. One interface, several bodies: CPU reference (plain loops that
// define what each op means), CPU (vectorised, threaded), CUDA (a module loaded at run time).
//
// A kern has ONE queue. Ops are enqueued in program order and take effect in that order; the CPU
// bodies run them at once, CUDA enqueues them on a stream (or records them into a graph). So an op
// never returns a value to the host and never looks at host data after it returned: indices,
// positions, block tables and routing live in device buffers. kern_download and kern_sync wait.
//
// The promise of every op: each output row depends only on that row's inputs, by a summation order
// that does not depend on the number of rows, on the thread count, on the vector width, or on how a
// sequence was cut into steps. The CPU bodies of one host keep it bit for bit.
//
// Shapes are checked here, once for all bodies; a wrong shape is a bug of the caller (assert).
// Index VALUES (token ids, positions, block numbers) must be in range too: callers check what comes
// from outside before it is uploaded. n == 0 rows is always allowed and does nothing.
//
// Threading: one owner thread per kern. Buffers and weights belong to the kern they were made by
// and are freed before it is closed. Outputs must not overlap inputs unless the op says "in place".
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/sample.h"

struct kern;
struct kern_buf;    // device memory: a flat array of one dtype
struct kern_weight; // a stack of matrices in the backend's own packed form

enum kern_backend { KERN_CPU_REF, KERN_CPU, KERN_CUDA };
// KERN_FP8 (e4m3, a scale per block of 128x128) and KERN_INT8 (a scale per row) are for weights
// only.
enum kern_dtype { KERN_F32, KERN_BF16, KERN_F16, KERN_I32, KERN_FP8, KERN_INT8 };
// Vector instructions of the CPU body. Results are bit-equal whatever is chosen.
enum kern_isa { KERN_ISA_BEST, KERN_ISA_PORTABLE, KERN_ISA_AVX2, KERN_ISA_AVX512 };

struct kern_config {
    int threads; // CPU: threads that compute, the caller included; 0 = all this process may use
    enum kern_isa isa; // CPU: KERN_ISA_BEST, or one to force (tests, benchmarks)
    int device;        // CUDA: device ordinal
};

// STATUS_NO_DEVICE: backend, device or forced ISA is not there; STATUS_BAD_CONFIG: threads out of
// range. The cause is put in *err (may be NULL).
enum status kern_open(enum kern_backend backend, const struct kern_config *config,
                      struct kern **kern_out, struct errmsg *err) STATUS_MUST_USE;
void kern_close(struct kern *k); // NULL is fine
// "cpu avx2, 2 threads": for logs and reports. Valid until close.
const char *kern_describe(const struct kern *k);
enum kern_backend kern_backend(const struct kern *k);
int kern_threads(const struct kern *k);
// What products read (normalised rows, queries, attended values, MLP activations) and what a KV
// pool holds: f32 on the CPU backends, bf16 on CUDA. The residual stream, router and vocabulary
// logits are f32 everywhere.
enum kern_dtype kern_act_dtype(const struct kern *k);
enum kern_dtype kern_kv_dtype(const struct kern *k);
// Waits for everything enqueued. An asynchronous failure of the device comes out here: SYSTEM.
enum status kern_sync(struct kern *k) STATUS_MUST_USE;

// ---- memory -----------------------------------------------------------------------------------

// `n` elements, zeroed; any dtype but FP8 and INT8. n == 0 is allowed.
enum status kern_buf_create(struct kern *k, enum kern_dtype dtype, size_t n,
                            struct kern_buf **buf_out) STATUS_MUST_USE;
// Memory of the caller's (a shared-memory segment, a registered region) as a buffer: borrowed until
// destroy, which leaves it alone. 4-byte aligned.
enum status kern_buf_wrap(struct kern *k, enum kern_dtype dtype, void *memory, size_t n,
                          struct kern_buf **buf_out) STATUS_MUST_USE;
// Memory that the device writes and the host reads without a download, for a step's small results:
// kern_buf_host's address, valid after kern_sync. On CPUs it is plain memory.
enum status kern_buf_create_shared(struct kern *k, enum kern_dtype dtype, size_t n,
                                   struct kern_buf **buf_out) STATUS_MUST_USE;
const void *kern_buf_host(const struct kern_buf *b); // of a shared buffer
void kern_buf_destroy(struct kern_buf *b);           // NULL is fine
size_t kern_buf_n(const struct kern_buf *b);
enum kern_dtype kern_buf_dtype(const struct kern_buf *b);
// Address on the device; on the CPU backends that is plain memory, which the owner thread may read
// and write between ops (collectives and transports work on it in place).
void *kern_buf_ptr(struct kern_buf *b);
// Host <-> device, in elements of the buffer's dtype. The host memory is borrowed until return.
void kern_upload(struct kern_buf *dst, size_t at, const void *host, size_t n);
enum status kern_download(void *host, const struct kern_buf *src, size_t at,
                          size_t n) STATUS_MUST_USE;
void kern_zero(struct kern_buf *b, size_t at, size_t n);

// A second way to the buffers of a kern, for one other thread: copies between them and host memory
// that run beside the kern's queue and never wait for it nor hold it up (CUDA: a stream of its own;
// CPU: memcpy). Who writes what meanwhile is the callers' business: elements that are copied must
// not be in use by ops, but for what a fence orders.
struct kern_copier;
enum status kern_copier_create(struct kern *k, struct kern_copier **out) STATUS_MUST_USE;
void kern_copier_destroy(struct kern_copier *c); // NULL is fine; before the kern is closed
// Owner thread of the kern: what its queue was given so far is done before copies that follow.
enum status kern_copier_fence(struct kern_copier *c) STATUS_MUST_USE;
// `rows` runs of `n` elements each, `stride` elements apart in the buffer, packed on the host. The
// host memory is in use until kern_copier_wait.
struct kern_strip {
    struct kern_buf *buf;
    size_t at, stride, rows, n;
};
enum status kern_copier_read(struct kern_copier *c, void *host,
                             const struct kern_strip *s) STATUS_MUST_USE;
enum status kern_copier_write(struct kern_copier *c, const struct kern_strip *s,
                              const void *host) STATUS_MUST_USE;
// Everything given before is done.
enum status kern_copier_wait(struct kern_copier *c) STATUS_MUST_USE;

// `window` becomes elements [at, at + n) of `of`, of its dtype: one upload fills many windows. Made
// by kern_buf_window_create, freed by kern_buf_destroy before `of` is; moving it is free of cost.
enum status kern_buf_window_create(struct kern_buf *of,
                                   struct kern_buf **window_out) STATUS_MUST_USE;
void kern_buf_window_move(struct kern_buf *window, struct kern_buf *of, size_t at, size_t n);

// ---- replay -----------------------------------------------------------------------------------
//
// A step whose ops are the same ones again, with the same operands (contents of buffers may
// differ), is one launch on CUDA: recorded the second time its key is seen, replayed from then on.
//
//     if (!kern_replay_begin(k, key)) // true: it is enqueued already
//         enqueue the ops;            // no upload, download, sync in between
//     st = kern_replay_end(k);
//
// The key stands for everything that the calls depend on. Key 0 is never recorded; nor is anything
// on the CPU backends. Destroying a buffer or weight of the kern forgets all records.
bool kern_replay_begin(struct kern *k, uint64_t key);
// INTERNAL, NO_MEMORY: the ops were not enqueued.
enum status kern_replay_end(struct kern *k) STATUS_MUST_USE;
// Batches on this backend are worth padding to few different sizes, so that records are found.
bool kern_replays(const struct kern *k);

// ---- weights ----------------------------------------------------------------------------------

// KERN_WEIGHT_MATRIX: for linear ops. KERN_WEIGHT_TABLE: rows to be looked up (kern_embed).
enum kern_weight_kind { KERN_WEIGHT_MATRIX, KERN_WEIGHT_TABLE };

// `stack` matrices W[s] of `rows` (outputs, N) x `cols` (inputs, K), all of one shape and dtype.
// stack: 1 for a plain matrix, heads for per-head products, experts for MoE. Contents are zero
// until filled. FP8 and INT8 matrices (not tables) stand for float(w) * scale, rounded once to f32.
// On CUDA, products with them quantize their activations: FP8 in runs of 128 elements of a row
// (scale = largest / 448), INT8 by row (largest / 127); the CPU bodies take activations as they
// are.
struct kern_weight_args {
    enum kern_weight_kind kind;
    enum kern_dtype dtype;
    size_t stack, rows, cols;
};
enum status kern_weight_create(struct kern *k, const struct kern_weight_args *args,
                               struct kern_weight **weight_out) STATUS_MUST_USE;
void kern_weight_destroy(struct kern_weight *w);       // NULL is fine
size_t kern_weight_bytes(const struct kern_weight *w); // device memory held

// Sets rows [row0, row0 + rows) of W[s]: element (row0 + i, j) = data[i * row_stride +
// j * col_stride], in elements of the weight's dtype. Several tensors may be filled into one matrix
// (gate above up; q_a above kv_a); a transposed source has row_stride 1. `data` may be unaligned
// and is borrowed until return.
struct kern_fill_args {
    size_t s;                      // which of the stack
    size_t row0, rows;             // rows == 0 does nothing
    const void *data;              // host memory
    size_t row_stride, col_stride; // both 0 = row-major, dense: {cols, 1}
};
void kern_weight_fill(struct kern_weight *w, const struct kern_fill_args *args);

// The scales of rows [row0, row0 + rows) of W[s], once, after those rows were filled (the CPU
// bodies multiply them in). data: host float32, borrowed until return.
//   FP8:  [rows / 128 rounded up][cols / 128 rounded up], row_stride floats apart (0 = dense);
//         row0 is a multiple of 128, and so is rows unless it ends the matrix.
//   INT8: [rows]; row_stride is ignored.
enum { KERN_SCALE_BLOCK = 128 };
struct kern_scales_args {
    size_t s, row0, rows; // rows == 0 does nothing
    const float *data;
    size_t row_stride;
};
void kern_weight_fill_scales(struct kern_weight *w, const struct kern_scales_args *args);

// Pseudo-random contents, made where the weight is: rows [row0, row0 + rows) of W[s] become rows
// [first, first + rows) of the stream `key` (base/noise.h says which numbers these are), the same
// on every body. For models that have a shape but no checkpoint. Not F16. Scales are filled as
// usual.
struct kern_noise_args {
    size_t s, row0, rows;
    uint64_t key, first;
    float mean, amplitude; // of f32 and bf16; FP8 and INT8 use their whole range
};
void kern_weight_fill_noise(struct kern_weight *w, const struct kern_noise_args *args);
// Elements [at, at + n) of a buffer of f32 or bf16 as row `row` of the stream: e.g. a KV pool of a
// context that nobody computed.
struct kern_buf_noise_args {
    size_t at, n;
    uint64_t key, row;
    float mean, amplitude;
};
void kern_buf_fill_noise(struct kern_buf *b, const struct kern_buf_noise_args *args);

// Staged fills: a loader's threads read files into stages, the owner hands full ones over, and the
// device copies behind its back. A stage's memory is pinned where there is a device.
struct kern_stage;
enum status kern_stage_create(struct kern *k, size_t bytes,
                              struct kern_stage **stage_out) STATUS_MUST_USE;
void kern_stage_destroy(struct kern_stage *s); // waits; NULL is fine
// `bytes` that any thread may write while no fill is under way.
void *kern_stage_memory(struct kern_stage *s);
// As kern_weight_fill, with dense rows that lie at the stage's beginning (args->data and strides
// are ignored), but returns at once: the stage is the device's until kern_stage_wait.
void kern_weight_fill_staged(struct kern_weight *w, const struct kern_fill_args *args,
                             struct kern_stage *s);
void kern_stage_wait(struct kern_stage *s);

// ---- operands ---------------------------------------------------------------------------------

// Rows inside a buffer, of its dtype: row i starts at element at + i * stride. The row's width
// comes from the op. stride 0 with n > 1 is not allowed. buf NULL = operand absent (where
// optional).
//
// Which dtype an operand may have is one of three, told at each op (all three are f32 on CPUs):
// "act" is kern_act_dtype; "f32"; "any" is either. An op rounds to bf16 once, where it stores.
struct kern_view {
    struct kern_buf *buf;
    size_t at, stride;
};

// Rows of a step for the KV ops. Rows of one sequence that are neighbours with positions rising by
// one are computed together; any other order is right too, only slower.
struct kern_batch {
    size_t n;                // rows
    size_t keys_max;         // host-known bound: every pos < keys_max
    struct kern_buf *seq;    // i32 [>= n]: which block table
    struct kern_buf *pos;    // i32 [>= n]: position in its sequence, from 0
    struct kern_buf *tables; // i32 [seqs][table_stride]: block numbers of each sequence, in order
    size_t seqs, table_stride;
    // Host-known bound on neighbouring rows of one sequence; 0 = not known. 1 says more: no two rows
    // of the step are of one sequence (decode).
    size_t run_max;
};

// One layer's paged KV pool of kern_kv_dtype: [blocks][block_tokens][width] from element `at` of
// buf. A token's row is [a | b]: MLA [latent kv_lora | rope key], GQA [K of all local kv heads |
// V].
struct kern_kv {
    struct kern_buf *buf;
    size_t at;
    size_t blocks, block_tokens, width;
};

// ---- ops --------------------------------------------------------------------------------------

// out[i][0..cols) = table[ids[ids_at + i]][:], as float32.
struct kern_embed_args {
    size_t n;
    struct kern_weight *table; // KERN_WEIGHT_TABLE, stack 1
    struct kern_buf *ids;      // i32
    size_t ids_at;
    struct kern_view out; // f32
};
void kern_embed(struct kern *k, const struct kern_embed_args *a);

// out[i][0..dim) = x[rows[i]][0..dim): picks rows, e.g. those whose next token is sampled.
struct kern_gather_args {
    size_t n, dim;
    size_t x_rows;         // rows that x has; every index < x_rows
    struct kern_view x;    // any
    struct kern_buf *rows; // i32 [>= n]
    struct kern_view out;  // as x
};
void kern_gather_rows(struct kern *k, const struct kern_gather_args *a);

// out = (x / sqrt(mean(x^2) + eps)) * gamma over each run of `dim` elements. With heads > 1 a row
// holds `heads` runs, x_head_stride (out_head_stride) elements apart, all with the same gamma.
// In place allowed (same view and head stride).
struct kern_rmsnorm_args {
    size_t n, dim;
    size_t heads;                          // 0 and 1: one run per row
    size_t x_head_stride, out_head_stride; // ignored with one run
    struct kern_view x, out;               // any
    struct kern_buf *gamma;                // f32 [dim]
    float eps;
};
void kern_rmsnorm(struct kern *k, const struct kern_rmsnorm_args *a);

// out[i][r] = sum_k x[i][k] * W[r][k], one fused-multiply-add chain over rising k, then + bias[r],
// then + add[i][r]. `add` may be the same view as out (accumulate); x must not overlap out.
struct kern_linear_args {
    size_t n;
    struct kern_weight *w; // MATRIX, stack 1, rows N, cols K
    struct kern_view x;    // act [n][K]
    struct kern_view out;  // any [n][N]
    struct kern_buf *bias; // f32 [N] or NULL
    struct kern_view add;  // f32 [n][N] or absent: residual
};
void kern_linear(struct kern *k, const struct kern_linear_args *a);

// Per head h: out[i][h * out_head_stride + r] = sum_k x[i][h * x_head_stride + k] * W[h][r][k].
// The two halves of absorbed MLA: q_nope[dn] -> latent query, latent context -> value[dv].
struct kern_linear_heads_args {
    size_t n;
    struct kern_weight *w;   // MATRIX, stack = heads
    struct kern_view x, out; // act
    size_t x_head_stride, out_head_stride;
};
void kern_linear_heads(struct kern *k, const struct kern_linear_heads_args *a);

// out = a + b, all f32. out may be the same view as a or b.
struct kern_add_args {
    size_t n, dim;
    struct kern_view a, b, out;
};
void kern_add(struct kern *k, const struct kern_add_args *a);

// out = gate / (1 + exp(-gate)) * up. gate and up are both of one dtype, any; out is act. out may
// be the same view as gate or up.
struct kern_silu_mul_args {
    size_t n, dim;
    struct kern_view gate, up, out;
};
void kern_silu_mul(struct kern *k, const struct kern_silu_mul_args *a);

// Rotary embedding, in place, on `dim` elements at `x.at + h * head_stride` of each of `heads`
// heads of row i, by pair p = 0 .. dim/2 - 1 with angle's c = table[pos[i]][p], s = table[pos[i]]
// [dim/2 + p]: (a, b) -> (a*c - b*s, b*c + a*s). The table carries any attention scaling.
enum kern_rope_style {
    KERN_ROPE_PAIRS, // a, b = x[2p], x[2p + 1] (DeepSeek)
    KERN_ROPE_HALVES // a, b = x[p], x[p + dim/2] (Llama, Qwen)
};
struct kern_rope_args {
    size_t n, heads, head_stride, dim;
    enum kern_rope_style style;
    struct kern_view x;     // any; x.at includes the slice's offset inside a head
    struct kern_buf *table; // f32 [positions][dim]: cos then sin
    size_t positions;       // rows of the table; every pos < positions
    struct kern_buf *pos;   // i32 [>= n]
};
void kern_rope(struct kern *k, const struct kern_rope_args *a);

// Stores row i's [a | b] as the token at batch position (seq[i], pos[i]); a_dim + b_dim == width.
struct kern_kv_write_args {
    const struct kern_batch *batch;
    struct kern_kv kv;
    size_t a_dim, b_dim;
    struct kern_view a, b; // act
};
void kern_kv_write(struct kern *k, const struct kern_kv_write_args *a);

// Causal attention over the paged KV, absorbed MLA: all heads share one key [latent | rope] and one
// value (the latent). For row i, head h, over tokens t = 0 .. pos[i] of its sequence:
//   s_t = scale * (q_latent[i][h] . latent_t + q_rope[i][h] . rope_t);  out[i][h] = softmax(s) .
//   latent. Decode rows, prefill chunks and several sequences may be mixed in one call; the rows'
//   own
// tokens must have been written before.
// Keys are walked in fixed chunks of 64 from position 0, each with its own softmax, merged in
// order: that fixes every result bit.
struct kern_attn_mla_args {
    const struct kern_batch *batch;
    struct kern_kv kv; // width == kv_lora + rope_dim
    size_t heads, kv_lora, rope_dim;
    struct kern_view q_latent; // act [n], head h at h * q_latent_head_stride, kv_lora elements
    size_t q_latent_head_stride;
    struct kern_view q_rope; // act [n], head h at h * q_rope_head_stride, rope_dim elements
    size_t q_rope_head_stride;
    struct kern_view out; // act [n], head h at h * kv_lora
    float scale;
    // The batch and the sizes are those of the kern_attn_mla before: another layer of one step.
    // What was worked out for its rows is used again.
    bool same_rows;
};
void kern_attn_mla(struct kern *k, const struct kern_attn_mla_args *a);

// The same for grouped-query attention: head h reads kv head h / (heads / kv_heads).
struct kern_attn_gqa_args {
    const struct kern_batch *batch;
    struct kern_kv kv; // width == 2 * kv_heads * head_dim
    size_t heads, kv_heads, head_dim;
    struct kern_view q;   // act [n][heads][head_dim], dense in a row
    struct kern_view out; // act [n][heads][head_dim]
    float scale;
    bool same_rows; // as in kern_attn_mla_args
};
void kern_attn_gqa(struct kern *k, const struct kern_attn_gqa_args *a);

// Chooses topk of `experts` experts per row from the gate's logits. Ties go to the lower index.
// ids come in the order of choice (best first).
//   KERN_ROUTER_SIGMOID (DeepSeek V3): score = sigmoid(logit), choice = score + bias.
//   KERN_ROUTER_SOFTMAX (DeepSeek V2): score = choice = softmax(logits).
// groups > 1: experts are in `groups` equal groups; only topk_groups of them stay, ranked by the
// sum of their two best choices (sigmoid) or their best (softmax). The others' choice becomes minus
// infinity (sigmoid: a correction bias may push choices of kept groups below 0) or 0 (softmax), as
// in the published code. Weight = score of the chosen (softmax: its choice); sigmoid: / (sum +
// 1e-20) when norm, then * scale; softmax: / (sum + 1e-20) when norm, else * scale.
enum kern_router_kind { KERN_ROUTER_SIGMOID, KERN_ROUTER_SOFTMAX };
enum { KERN_EXPERTS_MAX = 1024, KERN_TOPK_MAX = 64 };
// Experts experts .. experts + always - 1 of the stack are every token's (shared experts): they
// follow the chosen ones, with weight 1.
struct kern_router_args {
    size_t n, experts, topk;
    size_t always;
    enum kern_router_kind kind;
    size_t groups, topk_groups; // groups 0 and 1: no groups
    bool norm;
    float scale;
    struct kern_view logits;  // f32 [n][experts]
    struct kern_buf *bias;    // f32 [experts] or NULL; sigmoid only
    struct kern_buf *ids;     // out: i32 [>= n][topk + always]
    struct kern_buf *weights; // out: f32 [>= n][topk + always]
};
void kern_router(struct kern *k, const struct kern_router_args *a);

// For token i and choice j, e = ids[i * topk + j]:
//   out row (i * topk + j) [r] = silu(x[i] . gate[e][r]) * (x[i] . up[e][r]).
// out.stride is the distance of two such (token, choice) rows.
struct kern_moe_gate_up_args {
    size_t n, topk;
    struct kern_weight *gate, *up; // MATRIX, stack = experts, rows = I (this rank's), cols = D
    struct kern_view x;            // act [n][D]
    struct kern_buf *ids;          // i32 [>= n * topk], all different within a token
    struct kern_view out;          // act [n * topk][I]
};
void kern_moe_gate_up(struct kern *k, const struct kern_moe_gate_up_args *a);

// out[i][r] = sum over the token's choices, by rising expert id, of weight * (h row . down[e][r]);
// then + shared[i][r], then + residual[i][r].
// shared and residual may each be the same view as out. n, topk and the contents of ids are those of
// the kern_moe_gate_up before.
struct kern_moe_down_args {
    size_t n, topk;
    struct kern_weight *down;          // MATRIX, stack = experts, rows = D (this rank's), cols = I
    struct kern_view h;                // act [n * topk][I]
    struct kern_buf *ids, *weights;    // as made by kern_router
    struct kern_view shared, residual; // f32 [n][D], each may be absent
    struct kern_view out;              // f32 [n][D]
};
void kern_moe_down(struct kern *k, const struct kern_moe_down_args *a);

// ---- fused ops ----------------------------------------------------------------------------------
//
// Each is some of the ops above, one after the other, in fewer passes. On the CPU backends they are
// that, bit for bit; CUDA may keep in between what the ops alone would round to act.

// First half of a gated MLP. W holds gate above up, [2 I][K]:
// out[i][r] = silu(x[i] . W[r] + bias[r]) * (x[i] . W[I + r] + bias[I + r]).
struct kern_gated_args {
    size_t n;
    struct kern_weight *w; // MATRIX, stack 1, rows 2 I, cols K
    struct kern_view x;    // act [n][K]
    struct kern_buf *bias; // f32 [2 I] or NULL
    struct kern_view tmp;  // act [n][2 I]: scratch, undefined afterwards
    struct kern_view out;  // act [n][I]
};
void kern_gated(struct kern *k, const struct kern_gated_args *a);

// What attention needs besides products, in place in the rows of the first projection.
// MLA: [latent | rope key] at kv is normalised (latent) and rotated (key), then stored in the pool.
// Of the queries either the q_dim elements at q are normalised (q_norm set: the model has a second
// projection) or the rope part of each head is rotated (q_norm NULL: head h's lies at
// q.at + h * q_head_stride + q_rope_at).
struct kern_rope_table {
    struct kern_buf *table; // f32 [positions][dim]: cos then sin
    size_t positions, dim;
    enum kern_rope_style style;
};
struct kern_mla_prepare_args {
    const struct kern_batch *batch;
    struct kern_kv pool; // width == kv_lora + rope.dim
    size_t kv_lora;
    struct kern_rope_table rope;
    float eps;
    struct kern_view kv;      // act [n][kv_lora + rope.dim]
    struct kern_buf *kv_norm; // f32 [kv_lora]
    struct kern_view q;       // act
    struct kern_buf *q_norm;  // f32 [q_dim] or NULL
    size_t q_dim;
    size_t heads, q_head_stride, q_rope_at;
};
void kern_mla_prepare(struct kern *k, const struct kern_mla_prepare_args *a);

// GQA: rows [Q of all heads | K of all kv heads | V]; q and k normalised by head where there are
// norms, then rotated; K and V stored in the pool.
struct kern_gqa_prepare_args {
    const struct kern_batch *batch;
    struct kern_kv pool; // width == 2 * kv_heads * head_dim
    size_t heads, kv_heads, head_dim;
    struct kern_rope_table rope;      // dim == head_dim
    struct kern_view qkv;             // act [n][(heads + 2 kv_heads) * head_dim]
    struct kern_buf *q_norm, *k_norm; // f32 [head_dim], both or neither
    float eps;
};
void kern_gqa_prepare(struct kern *k, const struct kern_gqa_prepare_args *a);

// h = rmsnorm(x); router logits = h W^T; then kern_router. On CUDA the logits are those of h before
// it is rounded (to 16 bits and more of it): near ties between experts are decided as by float32.
struct kern_route_args {
    struct kern_view x; // f32 [n][dim]
    struct kern_view h; // act [n][dim]
    size_t dim;
    struct kern_buf *gamma; // f32 [dim]
    float eps;
    struct kern_weight *w;          // MATRIX, stack 1, rows experts, cols dim
    struct kern_router_args router; // logits: f32 [n][experts], written
};
void kern_route(struct kern *k, const struct kern_route_args *a);

// out[i] = index of the largest of x[i][0..dim), the lowest on ties; -1 when a NaN or an infinity
// is in the row.
struct kern_argmax_args {
    size_t n, dim;
    struct kern_view x;   // f32
    struct kern_buf *out; // i32 [>= n]
};
void kern_argmax(struct kern *k, const struct kern_argmax_args *a);

// One token for each row of logits, by the definition of kernels/sample.h. The CPU's and the GPU's
// results have the same bits. Logits of rows with penalties are changed.
struct kern_sample_args {
    size_t n, vocab;         // vocab <= KERN_SAMPLE_VOCAB_MAX
    struct kern_view logits; // f32 [n][vocab]
    struct kern_buf *rows;   // i32 [>= n * 16]: struct kern_sample_row
    // i32 [>= history_n]: pieces [history_at, history_at + history_n) of rows with penalties, which
    // lie inside it and do not overlap.
    struct kern_buf *history;
    size_t history_n;
    struct kern_buf *out; // i32 [>= n * 44]: struct kern_sample_out
};
void kern_sample(struct kern *k, const struct kern_sample_args *a);
