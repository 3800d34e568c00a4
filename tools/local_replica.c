// Runs ranks as threads. A kern has one owner thread, so each rank's thread opens, runs and closes
// its own shard, on command; the caller's thread hands out commands and waits. Stages take turns:
// in this process there is nothing to win by pipelining.
#include "tools/local_replica.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/cuda_comm.h"
#include "node/comm_cuda.h"
#include "node/comm_local.h"
#include "tools/cmdline.h"

enum command { CMD_NONE, CMD_OPEN, CMD_RUN, CMD_CLOSE };

struct rank {
    struct local_replica *r;
    int stage, tensor;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    enum command command; // NONE once it was carried out
    enum status status;
    struct errmsg error;
    struct kern *kern;
    struct comm *comm;
    struct model_shard *shard;
};

struct local_replica {
    struct local_replica_args args;
    struct rank *ranks;        // [stages][tensors]
    size_t ranks_n;            // started threads
    struct comm_local **comms; // [stages]
    struct forward_seq *seqs;  // [max_seqs]
    uint32_t *blocks;          // of all seqs
    int context;
    float *hidden; // [max_rows][hidden] between stages
    struct cmdline_progress bar;
    struct forward_batch batch; // being run
    uint64_t step;
};

static void show_progress(void *arg, size_t done, size_t total)
{
    struct rank *k = arg;
    if (k->tensor == 0)
        cmdline_progress_show(&k->r->bar, done >> 20, total >> 20, "MB");
}

static int context_blocks(int context)
{
    return (context + MODEL_BLOCK_TOKENS - 1) / MODEL_BLOCK_TOKENS;
}

// Ranks are dealt out to the GPUs in order.
static int device_of(const struct rank *k)
{
    struct errmsg e = {0}; // kern_open says what is wrong
    const struct cuda_comm_ops *cuda = k->r->args.backend == KERN_CUDA ? kern_cuda_comm(&e) : NULL;
    int n = cuda ? cuda->devices() : 0;
    return n ? (k->stage * k->r->args.tensors + k->tensor) % n : 0;
}

static enum status join_devices(struct rank *k)
{
    if (k->r->args.backend != KERN_CUDA || k->r->args.tensors == 1)
        return STATUS_OK;
    struct comm_cuda_config config = {.host = k->comm, .k = k->kern};
    return comm_create_cuda(&config, &k->comm, &k->error);
}

static enum status rank_open(struct rank *k)
{
    const struct local_replica_args *a = &k->r->args;
    int threads = a->threads / a->tensors;
    struct kern_config kc = {.threads = a->threads && threads < 1 ? 1 : threads,
                             .device = device_of(k)};
    k->comm = comm_local_rank(k->r->comms[k->stage], k->tensor);
    enum status s = kern_open(a->backend, &kc, &k->kern, &k->error);
    if (s == STATUS_OK)
        s = join_devices(k);
    if (s != STATUS_OK) {
        comm_abort(k->comm); // the others may wait for this one
        return s;
    }
    struct model_shard_args args = {
        .source = a->source,
        .rank = {k->stage, a->stages, k->tensor, a->tensors},
        .kern = k->kern,
        .max_context = k->r->context,
        .max_rows = a->max_rows,
        .max_seqs = a->max_seqs,
        .max_logits = a->max_logits,
        .kv_blocks = a->max_seqs * context_blocks(k->r->context),
        .progress = {.report = show_progress, .arg = k},
    };
    s = model_shard_open(&args, &k->shard, &k->error);
    if (s == STATUS_OK)
        model_shard_attach(k->shard, k->comm);
    return s;
}

// A rank that fails must not leave the others waiting in a collective.
static enum status rank_run(struct rank *k)
{
    struct local_replica *r = k->r;
    enum status s = forward_run(k->shard, &r->batch, &k->error);
    if (s != STATUS_OK)
        comm_abort(k->comm);
    return s;
}

static void rank_close(struct rank *k)
{
    model_shard_close(k->shard);
    comm_destroy(k->comm);
    kern_close(k->kern);
}

static enum status carry_out(struct rank *k, enum command c)
{
    if (c == CMD_OPEN)
        return rank_open(k);
    if (c == CMD_RUN)
        return rank_run(k);
    rank_close(k);
    return STATUS_OK;
}

static void *rank_main(void *arg)
{
    struct rank *k = arg;
    enum command c;
    do {
        pthread_mutex_lock(&k->mutex);
        while (k->command == CMD_NONE)
            pthread_cond_wait(&k->cond, &k->mutex);
        c = k->command;
        pthread_mutex_unlock(&k->mutex);
        enum status s = carry_out(k, c);
        pthread_mutex_lock(&k->mutex);
        k->status = s;
        k->command = CMD_NONE;
        pthread_cond_broadcast(&k->cond);
        pthread_mutex_unlock(&k->mutex);
    } while (c != CMD_CLOSE);
    return NULL;
}

static void command(struct rank *k, enum command c)
{
    pthread_mutex_lock(&k->mutex);
    k->command = c;
    pthread_cond_broadcast(&k->cond);
    pthread_mutex_unlock(&k->mutex);
}

static enum status await(struct rank *k)
{
    pthread_mutex_lock(&k->mutex);
    while (k->command != CMD_NONE)
        pthread_cond_wait(&k->cond, &k->mutex);
    enum status s = k->status;
    pthread_mutex_unlock(&k->mutex);
    return s;
}

// All tensor ranks of a stage do the same; the first that failed for a reason of its own tells why.
static enum status command_stage(struct local_replica *r, int stage, enum command c,
                                 struct errmsg *e)
{
    struct rank *k = r->ranks + stage * r->args.tensors;
    enum status result = STATUS_OK;
    for (int t = 0; t < r->args.tensors; t++)
        command(&k[t], c);
    for (int t = 0; t < r->args.tensors; t++) {
        enum status s = await(&k[t]);
        if (s != STATUS_OK && (result == STATUS_OK || result == STATUS_ABORTED)) {
            result = s;
            errmsg_set(e, s, "%s", k[t].error.text);
        }
    }
    return result;
}

static enum status start_ranks(struct local_replica *r, struct errmsg *e)
{
    const struct local_replica_args *a = &r->args;
    for (int i = 0; i < a->stages * a->tensors; i++) {
        struct rank *k = &r->ranks[i];
        k->r = r;
        k->stage = i / a->tensors;
        k->tensor = i % a->tensors;
        pthread_mutex_init(&k->mutex, NULL);
        pthread_cond_init(&k->cond, NULL);
        int err = pthread_create(&k->thread, NULL, rank_main, k);
        if (err)
            return errmsg_set(e, status_from_errno(err), "cannot start a thread");
        r->ranks_n++;
    }
    return STATUS_OK;
}

static void make_slots(struct local_replica *r)
{
    const size_t per_seq = (size_t)context_blocks(r->context), seqs = (size_t)r->args.max_seqs;
    r->seqs = mem_zalloc(seqs, sizeof *r->seqs);
    r->blocks = mem_zalloc(seqs * per_seq, sizeof *r->blocks);
    for (size_t i = 0; i < seqs * per_seq; i++)
        r->blocks[i] = (uint32_t)i;
    for (size_t i = 0; i < seqs; i++)
        r->seqs[i] = (struct forward_seq){r->blocks + i * per_seq, per_seq};
}

static enum status open_ranks(struct local_replica *r, struct errmsg *e)
{
    const struct local_replica_args *a = &r->args;
    struct model_config c;
    enum status s = model_source_config(&a->source, &c, e);
    if (s != STATUS_OK)
        return s;
    r->context = a->max_context && a->max_context < c.context ? a->max_context : c.context;
    for (int i = 0; i < a->stages; i++)
        r->comms[i] = comm_local_create(a->tensors);
    s = start_ranks(r, e);
    for (int i = 0; i < a->stages && s == STATUS_OK; i++)
        s = command_stage(r, i, CMD_OPEN, e);
    if (s == STATUS_OK && a->stages > 1)
        r->hidden = mem_zalloc((size_t)a->max_rows * (size_t)c.hidden, sizeof *r->hidden);
    return s;
}

enum status local_replica_backend(const char *word, enum kern_backend *out, struct errmsg *e)
{
    static const char *const words[] = {
        [KERN_CPU_REF] = "cpu-ref", [KERN_CPU] = "cpu", [KERN_CUDA] = "cuda"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!strcmp(word, words[i])) {
            *out = (enum kern_backend)i;
            return STATUS_OK;
        }
    return errmsg_set(e, STATUS_UNSUPPORTED, "backend '%s': cpu, cpu-ref and cuda are known", word);
}

enum status local_replica_open(const struct local_replica_args *args, struct local_replica **out,
                               struct errmsg *e)
{
    assert(args->stages >= 1 && args->tensors >= 1);
    struct local_replica *r = mem_zalloc(1, sizeof *r);
    r->args = *args;
    cmdline_progress_start(&r->bar, "loading");
    r->ranks = mem_zalloc((size_t)args->stages * (size_t)args->tensors, sizeof *r->ranks);
    r->comms = mem_zalloc((size_t)args->stages, sizeof *r->comms);
    enum status s = open_ranks(r, e);
    cmdline_progress_stop(&r->bar);
    if (s != STATUS_OK) {
        local_replica_close(r);
        return s;
    }
    make_slots(r);
    *out = r;
    return STATUS_OK;
}

void local_replica_close(struct local_replica *r)
{
    if (!r)
        return;
    for (size_t i = 0; i < r->ranks_n; i++) {
        command(&r->ranks[i], CMD_CLOSE);
        pthread_join(r->ranks[i].thread, NULL);
        pthread_cond_destroy(&r->ranks[i].cond);
        pthread_mutex_destroy(&r->ranks[i].mutex);
    }
    for (int i = 0; i < r->args.stages; i++)
        comm_local_destroy(r->comms[i]);
    free(r->comms);
    free(r->ranks);
    free(r->seqs);
    free(r->blocks);
    free(r->hidden);
    free(r);
}

const struct model_config *local_replica_config(const struct local_replica *r)
{
    return &r->ranks[0].shard->config;
}

int local_replica_context(const struct local_replica *r)
{
    return r->context;
}

uint64_t local_replica_fingerprint(const struct local_replica *r)
{
    return r->ranks[0].shard->fingerprint;
}

const char *local_replica_describe(const struct local_replica *r)
{
    return kern_describe(r->ranks[0].kern);
}

enum status local_replica_run(struct local_replica *r, const struct local_batch *b,
                              struct errmsg *e)
{
    const int last = r->args.stages - 1;
    r->batch = (struct forward_batch){.step = ++r->step,
                                      .rows = b->rows,
                                      .tokens = b->tokens,
                                      .seq = b->seq,
                                      .pos = b->pos,
                                      .seqs = r->seqs,
                                      .seqs_n = (size_t)r->args.max_seqs,
                                      .logit_rows = b->logit_rows,
                                      .logits_n = b->logits_n};
    for (int i = 0;; i++) {
        enum status s = command_stage(r, i, CMD_RUN, e);
        if (s != STATUS_OK || i == last)
            return s;
        s = forward_hidden(r->ranks[i * r->args.tensors].shard, b->rows, r->hidden);
        if (s != STATUS_OK)
            return errmsg_set(e, s, "stage %d: hidden states: %s", i, status_text(s));
        r->batch.hidden = r->hidden;
    }
}

enum status local_replica_logits(struct local_replica *r, size_t i, float *out)
{
    return forward_logits(r->ranks[r->ranks_n - 1].shard, i, out);
}
