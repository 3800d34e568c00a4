// Who of a replica's ranks holds what. Pure.
#include <string.h>

#include "node/model/stages.h"
#include "node/model/weights.h"

static struct model_split split(int total, const struct model_rank *r)
{
    int part = (total + r->tensors - 1) / r->tensors;
    int first = part * r->tensor < total ? part * r->tensor : total;
    return (struct model_split){part, first, total - first < part ? total - first : part};
}

static enum status split_named(const char *what, int total, const struct model_rank *r,
                               struct model_split *out, struct errmsg *e)
{
    int part = (total + r->tensors - 1) / r->tensors;
    if (part * (r->tensors - 1) >= total)
        return errmsg_set(e, STATUS_BAD_CONFIG,
                          "%s = %d cannot be split over %d tensor ranks: one would hold none", what,
                          total, r->tensors);
    *out = split(total, r);
    return STATUS_OK;
}

// Rows of matrices. Those of an fp8 model are dealt in whole blocks of scales where every rank
// still gets some, so that each rank computes with its blocks as they are, whatever T is.
static enum status split_rows(const char *what, int total, const struct model_config *c,
                              const struct model_rank *r, struct model_split *out, struct errmsg *e)
{
    const int block = c->fp8_block[0];
    enum status s = split_named(what, total, r, out, e);
    if (s != STATUS_OK || !block || out->part % block == 0)
        return s;
    const int part = (out->part + block - 1) / block * block, first = part * r->tensor;
    if ((int64_t)part * (r->tensors - 1) < total)
        *out = (struct model_split){part, first, total - first < part ? total - first : part};
    return s;
}

// Query heads go with their kv head. With fewer kv heads than ranks, T / kv_heads ranks share one.
static enum status split_heads(const struct model_config *c, const struct model_rank *r,
                               struct model_plan *p, struct errmsg *e)
{
    if (c->mla)
        return split_named("num_attention_heads", c->heads, r, &p->heads, e);
    int group = c->heads / c->kv_heads;
    if (c->kv_heads >= r->tensors) {
        enum status s = split_named("num_key_value_heads", c->kv_heads, r, &p->kv_heads, e);
        p->heads = (struct model_split){p->kv_heads.part * group, p->kv_heads.first * group,
                                        p->kv_heads.n * group};
        return s;
    }
    if (r->tensors % c->kv_heads || c->heads % r->tensors)
        return errmsg_set(e, STATUS_BAD_CONFIG,
                          "num_key_value_heads = %d, num_attention_heads = %d cannot be split over "
                          "%d tensor ranks",
                          c->kv_heads, c->heads, r->tensors);
    p->heads = split(c->heads, r);
    p->kv_heads = (struct model_split){1, r->tensor / (r->tensors / c->kv_heads), 1};
    return STATUS_OK;
}

static enum status split_mlps(const struct model_config *c, const struct model_rank *r,
                              struct model_plan *p, struct errmsg *e)
{
    enum status s = STATUS_OK;
    bool dense = false, experts = false;
    for (int i = 0; i < c->layers; i++) {
        bool moe = model_layer_has_experts(c, i);
        dense |= !moe;
        experts |= moe;
    }
    if (dense)
        s = split_rows("intermediate_size", c->intermediate, c, r, &p->inter, e);
    if (s == STATUS_OK && experts)
        s = split_rows("moe_intermediate_size", c->moe.intermediate, c, r, &p->expert_inter, e);
    return s;
}

static void plan_rows(const struct model_config *c, struct model_plan *p)
{
    p->q_rows = c->mla && c->q_lora ? c->q_lora : p->heads.n * c->head_dim;
    p->kv_width = c->mla ? c->kv_lora + c->rope_dim : 2 * p->kv_heads.n * c->head_dim;
    p->qkv_rows = p->q_rows + p->kv_width;
}

enum status model_plan_make(const struct model_config *c, const struct model_rank *r,
                            struct model_plan *out, struct errmsg *e)
{
    struct model_plan p = {0};
    if (r->stages < 1 || r->stage < 0 || r->stage >= r->stages || r->tensors < 1 || r->tensor < 0 ||
        r->tensor >= r->tensors)
        return errmsg_set(e, STATUS_BAD_CONFIG, "no rank (%d, %d) in %d stages x %d tensor ranks",
                          r->stage, r->tensor, r->stages, r->tensors);
    if (c->layers < r->stages)
        return errmsg_set(e, STATUS_BAD_CONFIG,
                          "num_hidden_layers = %d cannot be split over %d stages", c->layers,
                          r->stages);
    int first[LIMIT_STAGES + 1];
    model_stages(c, r->stages, first);
    p.layer_first = first[r->stage];
    p.layers_n = first[r->stage + 1] - p.layer_first;
    p.first_stage = r->stage == 0;
    p.last_stage = r->stage == r->stages - 1;
    enum status s = split_rows("hidden_size", c->hidden, c, r, &p.hidden, e);
    if (s == STATUS_OK)
        s = split_named("vocab_size", c->vocab, r, &p.vocab, e);
    if (s == STATUS_OK)
        s = split_heads(c, r, &p, e);
    if (s == STATUS_OK)
        s = split_mlps(c, r, &p, e);
    if (s != STATUS_OK)
        return s;
    plan_rows(c, &p);
    *out = p;
    return STATUS_OK;
}
