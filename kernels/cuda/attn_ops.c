// attn_mla, attn_gqa and sample of kern.h put as the launchers of attn.h, attn_gqa.h and sample.h
// take them: memory for attention's work list, which all layers of a step share, and for partial
// results.
#include "kernels/cuda/attn.h"
#include "kernels/cuda/attn_gqa.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/sample.h"

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

void cuda_attn_gqa(struct kern *k, const struct kern_attn_gqa_args *a)
{
    struct cuda *c = cuda_of(k);
    const struct kern_batch *b = a->batch;
    const struct cuda_rows q = cuda_rows(&a->q), out = cuda_rows(&a->out);
    struct cuda_gqa g = {.n = (int)b->n,
                         .keys_max = (int)b->keys_max,
                         .run_max = (int)b->run_max,
                         .heads = (int)a->heads,
                         .kv_heads = (int)a->kv_heads,
                         .head_dim = (int)a->head_dim,
                         .scale = a->scale,
                         .q = q.p,
                         .q_stride = q.stride,
                         .out = out.p,
                         .out_stride = out.stride,
                         .pool = (const uint16_t *)a->kv.buf->p + a->kv.at,
                         .blocks = (int)a->kv.blocks,
                         .block_tokens = (int)a->kv.block_tokens,
                         .seq = b->seq->p,
                         .pos = b->pos->p,
                         .tables = b->tables->p,
                         .table_stride = (int)b->table_stride,
                         .sms = c->sms,
                         .arch = c->arch,
                         .planned = a->same_rows};
    g.plan = cuda_scratch(c, CUDA_ARENA_ATTN_PLAN, cuda_gqa_plan_bytes(&g));
    g.scratch = cuda_scratch(c, CUDA_ARENA_PARTIAL, cuda_gqa_scratch_bytes(&g));
    cuda_check(c, cuda_gqa(c->stream, &g), "attn_gqa");
}

void cuda_sample_op(struct kern *k, const struct kern_sample_args *a)
{
    struct cuda *c = cuda_of(k);
    const struct cuda_rows logits = cuda_rows(&a->logits);
    struct cuda_sample s = {.n = (int)a->n,
                            .vocab = (int)a->vocab,
                            .logits = logits.p,
                            .stride = logits.stride,
                            .rows = a->rows->p,
                            .history = a->history->p,
                            .history_n = a->history_n,
                            .out = a->out->p};
    s.scratch = cuda_scratch(c, CUDA_ARENA_PARTIAL, cuda_sample_scratch_bytes(&s));
    cuda_check(c, cuda_sample(c->stream, &s), "sample");
}
