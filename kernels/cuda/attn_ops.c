// attn_mla of kern.h put as attn.h's launcher takes it: memory for its work list, which all layers
// of a step share, and for partial results.
#include "kernels/cuda/attn.h"
#include "kernels/cuda/cuda.h"

static struct cuda_attn_rows rows_of(const struct kern_batch *b)
{
    return (struct cuda_attn_rows){.seq = b->seq->p,
                                   .pos = b->pos->p,
                                   .tables = b->tables->p,
                                   .table_stride = b->table_stride,
                                   .n = (int)b->n,
                                   .keys_max = (int)b->keys_max};
}

void cuda_attn_mla(struct kern *k, const struct kern_attn_mla_args *a)
{
    struct cuda *c = cuda_of(k);
    const struct cuda_rows latent = cuda_rows(&a->q_latent), rope = cuda_rows(&a->q_rope);
    const struct cuda_rows out = cuda_rows(&a->out);
    struct cuda_mla m = {.rows = rows_of(a->batch),
                         .form = CUDA_KV_BF16,
                         .pool = (const uint16_t *)a->kv.buf->p + a->kv.at,
                         .blocks = a->kv.blocks,
                         .block_tokens = a->kv.block_tokens,
                         .heads = (int)a->heads,
                         .kv_lora = (int)a->kv_lora,
                         .rope = (int)a->rope_dim,
                         .q_latent = latent.p,
                         .q_latent_ld = latent.stride,
                         .q_latent_head = a->q_latent_head_stride,
                         .q_rope = rope.p,
                         .q_rope_ld = rope.stride,
                         .q_rope_head = a->q_rope_head_stride,
                         .out = out.p,
                         .out_ld = out.stride,
                         .scale = a->scale};
    m.plan_bytes = cuda_mla_plan_bytes(&m);
    m.scratch_bytes = cuda_mla_scratch_bytes(&m);
    m.plan = cuda_scratch(c, CUDA_ARENA_ATTN_PLAN, m.plan_bytes);
    m.scratch = cuda_scratch(c, CUDA_ARENA_PARTIAL, m.scratch_bytes);
    if (!a->same_rows)
        cuda_check(c, cuda_mla_plan(c->stream, &m), "attn_mla's plan");
    cuda_check(c, cuda_mla(c->stream, &m), "attn_mla");
}
