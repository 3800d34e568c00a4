#include "node/kv_layout.h"

#include <stdlib.h>

#include "base/limits.h"
#include "base/mem.h"

void kv_layout_init(struct kv_layout *l, const struct model_config *c, int block_tokens,
                    int elem_bytes)
{
    *l = (struct kv_layout){
        .mla = c->mla,
        .layers = c->layers,
        .heads = c->mla ? 1 : c->kv_heads,
        .dim = c->mla ? c->kv_lora + c->rope_dim : c->head_dim,
        .strips = c->mla ? 1 : 2,
        .block_tokens = block_tokens,
        .elem_bytes = elem_bytes,
        .config = *c,
    };
}

enum status kv_layout_share(const struct kv_layout *l, struct kv_shape shape, uint32_t rank,
                            struct kv_share *out, struct errmsg *e)
{
    struct model_plan plan;
    const struct model_rank r = {.stage = (int)(rank / shape.tensor),
                                 .stages = (int)shape.stages,
                                 .tensor = (int)(rank % shape.tensor),
                                 .tensors = (int)shape.tensor};
    enum status rc = model_plan_make(&l->config, &r, &plan, e);
    if (rc != STATUS_OK)
        return rc;
    *out = (struct kv_share){plan.layer_first, plan.layers_n, l->mla ? 0 : plan.kv_heads.first,
                             l->mla ? 1 : plan.kv_heads.n};
    return STATUS_OK;
}

size_t kv_piece_bytes(const struct kv_layout *l, const struct kv_piece *p)
{
    return (size_t)l->strips * (size_t)l->block_tokens * (size_t)(p->heads_n * l->dim) *
           (size_t)l->elem_bytes;
}

static bool holds(const struct kv_share *s, int head)
{
    return head >= s->head_first && head < s->head_first + s->heads_n;
}

static bool overlap(const struct kv_share *a, const struct kv_share *b)
{
    return a->layer_first < b->layer_first + b->layers_n &&
           b->layer_first < a->layer_first + a->layers_n;
}

// The tensor rank of the source's stage that serves this head of this layer.
static uint32_t server(const struct kv_share *stage, uint32_t tensor, int head, uint32_t turn)
{
    uint32_t holders = 0, at = 0;
    for (uint32_t t = 0; t < tensor; t++)
        holders += holds(&stage[t], head);
    uint32_t want = holders ? turn % holders : 0;
    for (uint32_t t = 0; t < tensor; t++)
        if (holds(&stage[t], head) && at++ == want)
            return t;
    return tensor; // nobody: a layout that does not add up; nothing is sent
}

enum status kv_layout_pieces(const struct kv_layout *l, struct kv_shape from, uint32_t source,
                             struct kv_shape to, uint32_t target, struct kv_piece **out,
                             uint32_t *n_out, struct errmsg *e)
{
    struct kv_share stage[LIMIT_TENSOR], mine;
    const uint32_t base = source / from.tensor * from.tensor, me = source % from.tensor;
    enum status rc = kv_layout_share(l, to, target, &mine, e);
    if (rc == STATUS_OK)
        rc = kv_layout_share(l, from, base, &stage[0], e);
    *out = NULL;
    *n_out = 0;
    if (rc != STATUS_OK || !overlap(&stage[0], &mine))
        return rc;
    for (uint32_t t = 1; t < from.tensor && rc == STATUS_OK; t++)
        rc = kv_layout_share(l, from, base + t, &stage[t], e);
    if (rc != STATUS_OK)
        return rc;
    struct kv_piece *v = NULL;
    size_t n = 0, cap = 0;
    for (int layer = mine.layer_first; layer < mine.layer_first + mine.layers_n; layer++) {
        if (layer < stage[0].layer_first || layer >= stage[0].layer_first + stage[0].layers_n)
            continue;
        bool open = false;
        for (int h = mine.head_first; h < mine.head_first + mine.heads_n; h++) {
            uint32_t turn = (uint32_t)layer + target % to.tensor;
            if (server(stage, from.tensor, h, turn) != me) {
                open = false;
                continue;
            }
            if (!open) {
                MEM_GROW(v, n, cap);
                v[n++] = (struct kv_piece){layer, h, 0};
            }
            v[n - 1].heads_n++;
            open = true;
        }
    }
    *out = v;
    *n_out = (uint32_t)n;
    return STATUS_OK;
}
