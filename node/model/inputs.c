// Checks and lays out a step's inputs (inputs.h).
#include "node/model/inputs.h"

#include <string.h>

#include "base/hash.h"

enum { PADDED_ROWS_MAX = 256, KEYS_LEAST = 256 };

static size_t blocks_for(const struct model_shard *s, size_t tokens)
{
    return (tokens + (size_t)s->block_tokens - 1) / (size_t)s->block_tokens;
}

size_t inputs_size(const struct model_shard *s)
{
    const size_t n = (size_t)s->max_rows, m = (size_t)s->max_logits, seqs = (size_t)s->max_seqs + 1;
    return 3 * n + 3 * m + seqs * blocks_for(s, (size_t)s->max_context);
}

size_t inputs_spare_blocks(const struct kern *k)
{
    return kern_replays(k);
}

// ---- checks

static enum status check_seqs(const struct model_shard *s, const struct forward_batch *b,
                              struct errmsg *e)
{
    const size_t max =
        ((size_t)s->max_context + (size_t)s->block_tokens - 1) / (size_t)s->block_tokens;
    for (size_t i = 0; i < b->seqs_n; i++) {
        if (b->seqs[i].blocks_n > max)
            return errmsg_set(e, STATUS_BAD_REQUEST, "sequence %zu: %zu blocks, at most %zu", i,
                              b->seqs[i].blocks_n, max);
        for (size_t j = 0; j < b->seqs[i].blocks_n; j++)
            if (b->seqs[i].blocks[j] >= (uint32_t)s->kv_blocks)
                return errmsg_set(e, STATUS_BAD_REQUEST,
                                  "sequence %zu: no block %u in a pool of %d", i,
                                  b->seqs[i].blocks[j], s->kv_blocks);
    }
    return STATUS_OK;
}

static enum status check_row(const struct model_shard *s, const struct forward_batch *b, size_t i,
                             struct errmsg *e)
{
    if (b->seq[i] < 0 || (size_t)b->seq[i] >= b->seqs_n)
        return errmsg_set(e, STATUS_BAD_REQUEST, "row %zu: no sequence %d in this batch", i,
                          b->seq[i]);
    size_t room = b->seqs[b->seq[i]].blocks_n * (size_t)s->block_tokens;
    if (b->pos[i] < 0 || b->pos[i] >= s->max_context || (size_t)b->pos[i] >= room)
        return errmsg_set(e, STATUS_BAD_REQUEST,
                          "row %zu: position %d, context is %d, blocks hold %zu", i, b->pos[i],
                          s->max_context, room);
    if (s->plan.first_stage && (b->tokens[i] < 0 || b->tokens[i] >= s->config.vocab))
        return errmsg_set(e, STATUS_BAD_REQUEST, "row %zu: token %d is not in a vocabulary of %d",
                          i, b->tokens[i], s->config.vocab);
    return STATUS_OK;
}

enum status inputs_check(const struct model_shard *s, const struct forward_batch *b,
                         struct errmsg *e)
{
    if (b->rows < 1 || b->rows > (size_t)s->max_rows || b->seqs_n > (size_t)s->max_seqs)
        return errmsg_set(e, STATUS_BAD_REQUEST, "%zu rows of %zu sequences, at most %d of %d",
                          b->rows, b->seqs_n, s->max_rows, s->max_seqs);
    if (b->logits_n > (size_t)s->max_logits)
        return errmsg_set(e, STATUS_BAD_REQUEST, "%zu rows of logits, at most %d", b->logits_n,
                          s->max_logits);
    enum status st = check_seqs(s, b, e);
    for (size_t i = 0; i < b->rows && st == STATUS_OK; i++)
        st = check_row(s, b, i, e);
    for (size_t i = 0; i < b->logits_n && st == STATUS_OK; i++)
        if (b->logit_rows[i] < 0 || (size_t)b->logit_rows[i] >= b->rows ||
            (i && b->logit_rows[i] <= b->logit_rows[i - 1]))
            st = errmsg_set(e, STATUS_BAD_REQUEST, "logit_rows[%zu] = %d: must rise and be < %zu",
                            i, b->logit_rows[i], b->rows);
    return st;
}

// ---- sizes

// Few enough that every size is soon recorded, close enough that padding costs little.
static size_t padded_rows(size_t rows)
{
    size_t step = rows <= 4 ? 1 : rows <= 8 ? 4 : rows <= 64 ? 8 : rows <= 128 ? 16 : 32;
    return rows == 3 ? 4 : (rows + step - 1) / step * step;
}

// 256, 384, 512, 768, 1024, ...: how far kernels are prepared to look.
static size_t padded_keys(const struct model_shard *s, size_t keys)
{
    size_t most = blocks_for(s, (size_t)s->max_context) * (size_t)s->block_tokens;
    size_t n = KEYS_LEAST;
    while (n < keys)
        n = n + n / 2 >= keys ? n + n / 2 : 2 * n;
    return n < most ? n : most;
}

static size_t keys_of(const struct forward_batch *b)
{
    size_t keys = 0;
    for (size_t i = 0; i < b->rows; i++)
        keys = (size_t)b->pos[i] >= keys ? (size_t)b->pos[i] + 1 : keys;
    return keys;
}

// The bound of kern_batch.run_max on `n` rows. Sequences of a step come in rising order.
static size_t run_max_of(const int32_t *seq, size_t n)
{
    size_t most = 1, run = 1;
    for (size_t i = 1; i < n; i++) {
        run = seq[i] == seq[i - 1] ? run + 1 : 1;
        size_t least = seq[i] < seq[i - 1] ? 2 : run; // it may come back
        most = least > most ? least : most;
    }
    return most;
}

// Every row wants its logits, and there are few: a decode step, which comes again and again.
static bool is_padded(const struct model_shard *s, const struct forward_batch *b)
{
    size_t rows = padded_rows(b->rows);
    return kern_replays(s->kern) && (s->rank.tensors == 1 || comm_enqueues(s->comm)) &&
           b->logits_n == b->rows && b->rows <= PADDED_ROWS_MAX && rows <= (size_t)s->max_rows &&
           rows <= (size_t)s->max_logits && rows <= (size_t)s->max_seqs;
}

// ---- laying out

struct layout {
    struct model_shard *s;
    size_t at;
};

// The next n elements: their place in host memory; the window is moved to where they will be.
static int32_t *take(struct layout *l, struct kern_buf *window, size_t n)
{
    int32_t *p = l->s->host + l->at;
    kern_buf_window_move(window, l->s->b.inputs, l->at, n);
    l->at += n;
    return p;
}

static void fill(int32_t *to, const int32_t *from, size_t n, size_t padded, int32_t pad)
{
    if (from)
        memcpy(to, from, n * sizeof *to);
    for (size_t i = from ? n : 0; i < padded; i++)
        to[i] = pad;
}

static void fill_picked(int32_t *to, const int32_t *from, const struct forward_batch *b,
                        size_t padded, int32_t pad)
{
    for (size_t i = 0; i < b->logits_n; i++)
        to[i] = from[b->logit_rows[i]];
    for (size_t i = b->logits_n; i < padded; i++)
        to[i] = pad;
}

// Block tables: of the batch's sequences, zeros up to `seqs`, then that of the padding.
static void fill_tables(const struct model_shard *s, const struct forward_batch *b, size_t seqs,
                        size_t stride, bool padding, int32_t *to)
{
    memset(to, 0, (seqs + padding) * stride * sizeof *to);
    for (size_t i = 0; i < b->seqs_n; i++)
        for (size_t j = 0; j < stride && j < b->seqs[i].blocks_n; j++)
            to[i * stride + j] = (int32_t)b->seqs[i].blocks[j];
    if (padding)
        to[seqs * stride] = s->kv_blocks;
}

struct inputs inputs_send(struct model_shard *s, const struct forward_batch *b)
{
    struct layout l = {s, 0};
    struct inputs in = {.rows = b->rows, .logits_n = s->plan.last_stage ? b->logits_n : 0};
    const bool padded = is_padded(s, b);
    size_t keys = keys_of(b), seqs = b->seqs_n, run_max = run_max_of(b->seq, b->rows);
    if (padded) {
        in.rows = padded_rows(b->rows);
        seqs = in.rows > seqs ? in.rows : seqs; // the padding's sequence comes after them
        in.logits_n = s->plan.last_stage ? in.rows : 0;
        keys = padded_keys(s, keys);
        in.replay = hash_pair(hash_pair((uintptr_t)s + s->attached, in.rows), keys);
        // Padding rows are all of one sequence, which nobody reads.
        run_max = run_max == 1 ? 1 : 0;
        in.replay = hash_pair(in.replay, hash_pair(run_max, seqs)) | 1;
    }
    const size_t stride = blocks_for(s, keys), n = in.rows, m = in.logits_n;
    const int32_t pad_seq = (int32_t)seqs;
    fill(take(&l, s->b.ids, n), s->plan.first_stage ? b->tokens : NULL, b->rows, n, 0);
    fill(take(&l, s->b.seq, n), b->seq, b->rows, n, pad_seq);
    fill(take(&l, s->b.pos, n), b->pos, b->rows, n, 0);
    const int32_t *seq_m = NULL;
    if (m) {
        fill(take(&l, s->b.rows, m), b->logit_rows, b->logits_n, m, 0);
        int32_t *picked = take(&l, s->b.seq_m, m);
        fill_picked(picked, b->seq, b, m, pad_seq);
        seq_m = picked;
        fill_picked(take(&l, s->b.pos_m, m), b->pos, b, m, 0);
    }
    const size_t tables = (seqs + padded) * stride;
    fill_tables(s, b, seqs, stride, padded, take(&l, s->b.tables, tables));
    kern_upload(s->b.inputs, 0, s->host, l.at);
    in.all = (struct kern_batch){.n = n,
                                 .keys_max = keys,
                                 .seq = s->b.seq,
                                 .pos = s->b.pos,
                                 .tables = s->b.tables,
                                 .seqs = seqs + padded,
                                 .table_stride = stride,
                                 .run_max = run_max};
    in.some = in.all;
    in.some.n = m;
    in.some.seq = s->b.seq_m;
    in.some.pos = s->b.pos_m;
    in.some.run_max = padded ? run_max : m ? run_max_of(seq_m, m) : 0;
    return in;
}
