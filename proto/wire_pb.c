// Checks of single fields, and the parts that messages of both kinds have in common.
#include "proto/wire_pb.h"

#include <assert.h>
#include <stdio.h>

#include "base/utf8.h"

void wire_fail(struct wire_check *c, enum status s, const char *fmt, ...)
{
    if (c->status)
        return;
    c->status = s;
    char why[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, sizeof why, fmt, ap);
    va_end(ap);
    (void)errmsg_set(c->err, s, "%s.%s", c->message, why);
}

void wire_check_range(struct wire_check *c, const char *field, uint64_t v, uint64_t lo, uint64_t hi)
{
    if (v < lo || v > hi)
        wire_fail(c, STATUS_LINK_PROTOCOL, "%s: %llu is not in %llu..%llu", field,
                  (unsigned long long)v, (unsigned long long)lo, (unsigned long long)hi);
}

void wire_check_float(struct wire_check *c, const char *field, float v, float lo, float hi)
{
    if (!(v >= lo && v <= hi)) // also NaN
        wire_fail(c, STATUS_LINK_PROTOCOL, "%s: %g is not in %g..%g", field, (double)v, (double)lo,
                  (double)hi);
}

void wire_check_string(struct wire_check *c, const char *field, const char *v, size_t max)
{
    size_t n = strlen(v);
    if (n >= max)
        wire_fail(c, STATUS_LINK_PROTOCOL, "%s: %zu bytes, the limit is %zu", field, n, max - 1);
    else if (!utf8_valid(v, n))
        wire_fail(c, STATUS_LINK_PROTOCOL, "%s: not UTF-8", field);
}

void wire_check_name(struct wire_check *c, const char *field, const char *v)
{
    size_t n = strspn(v, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");
    if (n == 0 || n >= LIMIT_NAME || v[n])
        wire_fail(c, STATUS_LINK_PROTOCOL, "%s: not of the form [A-Za-z0-9._-]{1,%d}", field,
                  LIMIT_NAME - 1);
}

void wire_check_ids(struct wire_check *c, const char *field, const int32_t *ids, size_t n,
                    size_t max)
{
    if (n > max)
        wire_fail(c, STATUS_LINK_PROTOCOL, "%s: %zu entries, the limit is %zu", field, n, max);
    for (size_t i = 0; i < n && !c->status; i++)
        if (ids[i] < 0 || ids[i] >= LIMIT_VOCAB)
            wire_fail(c, STATUS_LINK_PROTOCOL, "%s[%zu]: %d is no token id", field, i, ids[i]);
}

void wire_check_status(struct wire_check *c, const char *field, int32_t v)
{
    if (!strcmp(status_name((enum status)v), "UNKNOWN"))
        wire_fail(c, STATUS_LINK_PROTOCOL, "%s: %d is no status", field, v);
}

struct rpc_text wire_read_text(struct wire_check *c, const char *field, ProtobufCBinaryData b,
                               size_t max)
{
    if (b.len > max)
        wire_fail(c, STATUS_LINK_PROTOCOL, "%s: %zu bytes, the limit is %zu", field, b.len, max);
    else if (b.len && !utf8_valid((const char *)b.data, b.len))
        wire_fail(c, STATUS_LINK_PROTOCOL, "%s: not UTF-8", field);
    return (struct rpc_text){b.len ? (const char *)b.data : "", b.len};
}

void *wire_alloc(struct wire_check *c, size_t n, size_t size)
{
    assert(n <= LIMIT_FRAME_BYTES && size <= 4096);
    void *p = wire_arena_alloc(c->arena, n * size);
    if (!p)
        wire_fail(c, STATUS_LINK_PROTOCOL, "(all): needs more than %zu bytes of memory",
                  c->arena->limit ? c->arena->limit : (size_t)WIRE_ARENA_BYTES);
    return p;
}

void wire_write_sampling(const struct sampling *s, Hadal__Sampling *pb)
{
    hadal__sampling__init(pb);
    pb->seed = s->seed;
    pb->temperature = s->temperature;
    pb->top_p = s->top_p;
    pb->min_p = s->min_p;
    pb->top_k = s->top_k;
    pb->repetition_penalty = s->repetition_penalty;
    pb->presence_penalty = s->presence_penalty;
    pb->frequency_penalty = s->frequency_penalty;
    pb->logprobs = s->logprobs;
    pb->top_logprobs = s->top_logprobs;
}

void wire_read_sampling(struct wire_check *c, const Hadal__Sampling *pb, struct sampling *out)
{
    if (!pb) {
        wire_fail(c, STATUS_LINK_PROTOCOL, "sampling: absent");
        return;
    }
    wire_check_float(c, "sampling.temperature", pb->temperature, 0, 100);
    wire_check_float(c, "sampling.top_p", pb->top_p, 0, 1);
    wire_check_float(c, "sampling.min_p", pb->min_p, 0, 1);
    if (pb->top_k < 0)
        wire_fail(c, STATUS_LINK_PROTOCOL, "sampling.top_k: %d is negative", pb->top_k);
    wire_check_float(c, "sampling.repetition_penalty", pb->repetition_penalty, 0, 100);
    wire_check_float(c, "sampling.presence_penalty", pb->presence_penalty, -100, 100);
    wire_check_float(c, "sampling.frequency_penalty", pb->frequency_penalty, -100, 100);
    wire_check_range(c, "sampling.top_logprobs", pb->top_logprobs, 0, LIMIT_TOP_LOGPROBS);
    *out = (struct sampling){.seed = pb->seed,
                             .temperature = pb->temperature,
                             .top_p = pb->top_p,
                             .min_p = pb->min_p,
                             .top_k = pb->top_k,
                             .repetition_penalty = pb->repetition_penalty,
                             .presence_penalty = pb->presence_penalty,
                             .frequency_penalty = pb->frequency_penalty,
                             .logprobs = pb->logprobs,
                             .top_logprobs = pb->top_logprobs};
}

Hadal__Logprob **wire_write_top(struct wire_arena *a, const struct logprob *top, uint32_t n)
{
    if (!n)
        return NULL;
    Hadal__Logprob **list = wire_arena_alloc(a, n * sizeof *list);
    Hadal__Logprob *pbs = wire_arena_alloc(a, n * sizeof *pbs);
    if (!list || !pbs)
        return NULL;
    for (uint32_t i = 0; i < n; i++) {
        hadal__logprob__init(&pbs[i]);
        pbs[i].token = top[i].token;
        pbs[i].value = top[i].value;
        list[i] = &pbs[i];
    }
    return list;
}

const struct logprob *wire_read_top(struct wire_check *c, Hadal__Logprob **pb, size_t n)
{
    wire_check_range(c, "top", n, 0, LIMIT_TOP_LOGPROBS);
    if (!n || c->status)
        return NULL;
    struct logprob *top = wire_alloc(c, n, sizeof *top);
    for (size_t i = 0; top && i < n; i++) {
        wire_check_range(c, "top.token", (uint64_t)(int64_t)pb[i]->token, 0, LIMIT_VOCAB - 1);
        wire_check_float(c, "top.value", pb[i]->value, -INFINITY, 1);
        top[i] = (struct logprob){pb[i]->token, pb[i]->value};
    }
    return top;
}
