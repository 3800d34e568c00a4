// Where a shard's weights come from: they are in memory, in the model folder of this host, with
// other nodes (pull.h), or both of these; and to whom they are given (pull_server.h).
//
// `auto` asks other nodes when the folder is missing. With a folder it asks those of other hosts,
// and reads its own disk at the same time, unless most of the folder is in the page cache already,
// which no network is faster than. Whatever goes wrong with other nodes ends at the disk, if it is
// there.
#include "node/worker.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "node/model/json_file.h"
#include "node/model/safetensors.h"
#include "node/pull.h"
#include "node/pull_server.h"
#include "node/worker_state.h"

enum { CACHE_SAMPLES = 256, CACHED_PERCENT = 60 };

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

// One load.
struct load {
    struct worker *w;
    const struct msg_form *f;
    char dir[JSON_FILE_PATH];  // of this host
    struct safetensors *files; // of dir; NULL: not there, or of another model than the other nodes'
    struct weight_source sources[MSG_WEIGHT_SOURCES];
    uint32_t sources_n;
    bool disk_helps;
    struct pull *pull; // under way; NULL: none
    uint64_t epoch;    // of the FORM whose sources it has
};

static struct model_source source_of(const struct worker *w, const char *dir)
{
    return (struct model_source){
        .dir = dir, .random = w->config.random_weights, .precision = w->config.precision};
}

// `models_dir`: the folder has its name there.
static enum status find_dir(const struct worker *w, const char *dir, char out[JSON_FILE_PATH],
                            struct errmsg *e)
{
    const char *root = w->config.models_dir;
    size_t n = strlen(dir), at;
    while (n > 1 && dir[n - 1] == '/')
        n--;
    for (at = n; at && dir[at - 1] != '/';)
        at--;
    int length = root ? snprintf(out, JSON_FILE_PATH, "%s/%.*s", root, (int)(n - at), dir + at)
                      : snprintf(out, JSON_FILE_PATH, "%s", dir);
    if (length < 0 || length >= JSON_FILE_PATH)
        return errmsg_set(e, STATUS_BAD_MODEL, "model_dir: longer than a path may be");
    return STATUS_OK;
}

static bool same_rank(const struct model_rank *r, const struct msg_form *f)
{
    return r->stage == (int)f->my_stage && r->stages == (int)f->stages &&
           r->tensor == (int)f->my_tensor && r->tensors == (int)f->tensor;
}

static struct model_rank rank_of(const struct msg_form *f)
{
    return (struct model_rank){.stage = (int)f->my_stage,
                               .stages = (int)f->stages,
                               .tensor = (int)f->my_tensor,
                               .tensors = (int)f->tensor};
}

// The replica may have been formed anew meanwhile, with nodes that have the model by now.
static void take_sources(struct load *l)
{
    struct worker *w = l->w;
    struct msg *form = NULL;
    pthread_mutex_lock(&w->lock);
    if (l->pull && w->form && w->form->form.epoch > l->epoch &&
        w->form->form.fingerprint == l->f->fingerprint) {
        l->epoch = w->form->form.epoch;
        form = msg_clone(w->form);
    }
    pthread_mutex_unlock(&w->lock);
    if (form)
        pull_add(l->pull, form->form.sources, form->form.sources_n);
    msg_free(form);
}

static void report_loading(void *arg, size_t done, size_t total)
{
    struct worker_state *s = ((struct load *)arg)->w->state;
    take_sources(arg);
    int tenth = total ? (int)(done * 10 / total) : 10;
    if (tenth == s->load_tenth)
        return;
    s->load_tenth = tenth;
    if (total > (256u << 20)) // small models are there at once
        log_info("loading weights: %d%% of %zu MiB", tenth * 10, total >> 20);
}

// An order that the weights being loaded are of no use for. They go on being loaded when the
// replica was only dissolved, or is formed again: its next epoch finds them here.
static bool load_cancelled(void *arg)
{
    struct load *l = arg;
    struct worker *w = l->w;
    const struct model_rank rank = rank_of(l->f);
    pthread_mutex_lock(&w->lock);
    bool other = w->form && (!same_rank(&rank, &w->form->form) ||
                             strcmp(w->form->form.model_dir, l->f->model_dir) != 0);
    bool cancelled = w->quit || other;
    pthread_mutex_unlock(&w->lock);
    return cancelled;
}

// Blocks of the KV pool: the same number on every rank of the replica, so it is reckoned from the
// whole model and never from this rank's share of layers.
static enum status size_pool(const struct worker *w, const struct msg_form *f,
                             const struct model_source *source, struct model_shard_args *args,
                             struct errmsg *e)
{
    struct model_config config;
    struct model_plan plan;
    struct model_rank rank = {.stage = 0,
                              .stages = (int)f->stages,
                              .tensor = (int)f->my_tensor,
                              .tensors = (int)f->tensor};
    enum status rc = model_source_config(source, &config, e);
    if (rc == STATUS_OK)
        rc = model_plan_make(&config, &rank, &plan, e);
    if (rc != STATUS_OK)
        return rc;
    uint32_t context = (uint32_t)config.context, block = w->config.block_tokens;
    if (w->config.context && w->config.context < context)
        context = w->config.context;
    uint64_t tokens = w->config.kv_tokens;
    if (!tokens) {
        uint64_t token_bytes = (uint64_t)plan.kv_width * 4 * (uint64_t)config.layers;
        uint64_t fits = (UINT64_C(2) << 30) / token_bytes;
        tokens = 4 * (uint64_t)context;
        tokens = fits < tokens ? fits : tokens;
    }
    uint64_t blocks = (tokens + block - 1) / block;
    if (!blocks || blocks > INT32_MAX / 2)
        return errmsg_set(e, STATUS_BAD_CONFIG, "kv_tokens: %" PRIu64 " make %" PRIu64 " blocks",
                          tokens, blocks);
    args->max_context = (int)context;
    args->kv_blocks = (int)blocks;
    return STATUS_OK;
}

static enum status open_shard(struct load *l, const struct model_source *source,
                              uint64_t fingerprint, struct errmsg *e)
{
    struct worker *w = l->w;
    struct worker_state *s = w->state;
    struct model_shard_args args = {
        .source = *source,
        .fingerprint = fingerprint,
        .rank = rank_of(l->f),
        .kern = s->kern,
        .max_rows = (int)w->config.max_rows,
        .max_seqs = (int)w->config.max_seqs,
        .block_tokens = (int)w->config.block_tokens,
        .progress = {.report = report_loading, .cancelled = load_cancelled, .arg = l},
    };
    s->load_tenth = -1;
    enum status rc = size_pool(w, l->f, source, &args, e);
    if (rc == STATUS_OK)
        rc = model_shard_open(&args, &s->shard, e);
    if (rc != STATUS_OK)
        s->shard = NULL;
    return rc;
}

static enum status load_from_disk(struct load *l, struct errmsg *e)
{
    const struct model_source source = source_of(l->w, l->dir);
    enum status rc = open_shard(l, &source, 0, e);
    if (rc == STATUS_OK && !source.random)
        l->w->state->loaded.disk_bytes = l->w->state->shard->weights.bytes;
    return rc;
}

// ---- from other nodes

static void note_pulled(struct load *l, struct pull *p, uint64_t ms)
{
    char text[512];
    const struct pull_stats t = pull_stats_get(p);
    const uint64_t bytes = t.peer_bytes + t.disk_bytes;
    l->w->state->loaded = (struct weights_figures){.peer_bytes = t.peer_bytes,
                                                   .disk_bytes = t.disk_bytes,
                                                   .again = (uint32_t)t.again,
                                                   .bad = (uint32_t)t.bad,
                                                   .lost = t.lost};
    pull_describe(p, text, sizeof text);
    log_info("pulled %" PRIu64 " MiB of weights in %" PRIu64 " ms (%" PRIu64 " MiB/s): %s; %" PRIu64
             " chunks asked again, %" PRIu64 " bad answers",
             bytes >> 20, ms, bytes * 1000 / (ms ? ms : 1) >> 20, text, t.again, t.bad);
}

static enum status load_from_peers(struct load *l, struct errmsg *e)
{
    struct worker *w = l->w;
    const struct pull_args args = {.sources = l->sources,
                                   .sources_n = l->sources_n,
                                   .fingerprint = l->f->fingerprint,
                                   .bind = w->config.bind,
                                   .disk = l->files,
                                   .disk_helps = l->disk_helps,
                                   .cancelled = load_cancelled,
                                   .arg = l};
    const uint64_t begin = now_ms();
    struct pull *p = NULL;
    char config[64];
    enum status rc = pull_open(&args, &p, e);
    if (rc == STATUS_OK)
        rc = pull_file(p, "config.json", config, e);
    if (rc == STATUS_OK) {
        struct model_source source = source_of(w, l->dir);
        source.config = config;
        source.folder = pull_folder(p);
        l->epoch = l->f->epoch;
        l->pull = p;
        rc = open_shard(l, &source, l->f->fingerprint, e);
        l->pull = NULL;
    }
    if (rc == STATUS_OK)
        note_pulled(l, p, now_ms() - begin);
    pull_close(p);
    return rc;
}

// Percent of the files that a read would find in memory. Sampled: mincore of hundreds of gigabytes
// takes seconds.
static int cached_percent(const struct safetensors *files)
{
    const size_t n = safetensors_count(files), page = (size_t)sysconf(_SC_PAGESIZE);
    size_t all = 0, in = 0;
    for (size_t i = 0; i < CACHE_SAMPLES && n; i++) {
        const struct st_tensor *t = safetensors_at(files, i * n / CACHE_SAMPLES);
        unsigned char resident = 0;
        const uintptr_t at = (uintptr_t)t->data + t->bytes / CACHE_SAMPLES * i;
        if (!t->bytes || mincore((void *)(at / page * page), 1, &resident))
            continue;
        all++;
        in += resident & 1;
    }
    return all ? (int)(in * 100 / all) : 100;
}

// The files of this host, when they are of the model that the other nodes have.
static void open_own(struct load *l)
{
    struct errmsg e = {0};
    uint64_t fingerprint = 0;
    const struct model_source source = source_of(l->w, l->dir);
    if (safetensors_open_dir(l->dir, &l->files, &e) != STATUS_OK) {
        l->files = NULL;
        log_info("%s; the weights come from other nodes", e.text);
        return;
    }
    enum status rc = model_fingerprint(&source, l->files, &fingerprint, &e);
    if (rc == STATUS_OK && fingerprint == l->f->fingerprint)
        return;
    log_warn("%s: %s", l->dir,
             rc == STATUS_OK ? "another model than the other nodes have" : e.text);
    safetensors_close(l->files);
    l->files = NULL;
}

// Nodes of this host read the same disk and the same page cache.
static void keep_remote(struct load *l)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < l->sources_n; i++)
        if (!l->sources[i].addresses.shm || !l->sources[i].addresses.shm[0])
            l->sources[n++] = l->sources[i];
    l->sources_n = n;
}

// True: other nodes are to be asked.
static bool choose(struct load *l)
{
    const struct worker *w = l->w;
    const bool present = access(l->dir, R_OK) == 0;
    for (uint32_t i = 0; i < l->f->sources_n; i++)
        l->sources[i] = l->f->sources[i];
    l->sources_n = l->f->sources_n;
    if (w->config.random_weights || w->config.weights == WEIGHTS_DISK || !l->sources_n)
        return false;
    const bool has_model = present && model_folder_stamp(l->dir) != 0;
    if (has_model)
        open_own(l);
    if (w->config.weights == WEIGHTS_PEER)
        return true;
    if (!has_model)
        return true;
    if (!l->files) // what an operator put there counts, if it can be read
        return false;
    if (cached_percent(l->files) >= CACHED_PERCENT)
        return false;
    keep_remote(l);
    l->disk_helps = true;
    return l->sources_n > 0;
}

// ---- and to other nodes

// What is not served is not an error: other nodes have it, or read their disks.
static void serve(struct load *l)
{
    struct worker *w = l->w;
    struct worker_state *s = w->state;
    struct pull_files *files = NULL;
    struct errmsg e = {0};
    if (!w->config.random_weights && w->config.serve_weights_mib && model_folder_stamp(l->dir) &&
        pull_files_open(l->dir, s->shard->fingerprint, &files, &e) != STATUS_OK) {
        log_info("the weights are not given to other nodes: %s", e.text);
        files = NULL;
    }
    if (files && !s->server)
        s->server = pull_server_open(&(struct pull_server_config){
            .bind = w->config.bind, .mib_per_s = w->config.serve_weights_mib});
    if (s->server)
        pull_server_publish(s->server, files);
    s->serves = files != NULL;
}

struct rank_addresses worker_weights_addresses(const struct worker *w)
{
    return w->state->serves ? pull_server_addresses(w->state->server)
                            : (struct rank_addresses){"", "", ""};
}

// ---- the shard

// Somebody may have put another model into the folder: what is kept must not stand in the way of
// ranks that were started since. A folder that cannot be read at the moment is no reason to drop
// weights that are good.
static bool shard_outdated(struct load *l)
{
    const struct worker *w = l->w;
    struct worker_state *s = w->state;
    uint64_t stamp = model_folder_stamp(s->shard_dir), fingerprint;
    if (!stamp && !s->shard_stamp) // never had a folder: it is what other nodes have
        return l->f->fingerprint && l->f->fingerprint != s->shard->fingerprint;
    if (stamp == s->shard_stamp)
        return false;
    struct errmsg e = {0};
    const struct model_source source = source_of(w, s->shard_dir);
    if (model_source_fingerprint(&source, &fingerprint, &e) != STATUS_OK) {
        log_warn("the model folder has changed, the weights in memory are kept: %s", e.text);
        return false;
    }
    s->shard_stamp = stamp;
    if (fingerprint == s->shard->fingerprint) {
        serve(l); // the files that are there now
        return false;
    }
    log_warn("another model is in %s now: loading it", s->shard_dir);
    return true;
}

static enum status load(struct load *l, struct errmsg *e)
{
    struct worker *w = l->w;
    enum status rc = STATUS_BAD_MODEL;
    const bool peers = choose(l), present = model_folder_stamp(l->dir) != 0;
    if (!peers && !present && !w->config.random_weights && w->config.weights != WEIGHTS_DISK)
        return errmsg_set(e, STATUS_NOT_FOUND,
                          "%s: there is no model here, and no other node gives its weights (yet)",
                          l->dir);
    if (!peers && w->config.weights == WEIGHTS_PEER && !w->config.random_weights)
        log_warn("no other node gives its weights: loading them from %s", l->dir);
    if (peers) {
        rc = load_from_peers(l, e);
        if (rc == STATUS_OK || rc == STATUS_CANCELLED || !present)
            return rc;
        log_error("%s: loading the weights from %s instead", e->text, l->dir);
        *e = (struct errmsg){0};
    }
    return load_from_disk(l, e);
}

enum status worker_weights_load(struct worker *w, const struct msg_form *f, struct errmsg *e)
{
    struct worker_state *s = w->state;
    struct load *l = mem_zalloc(1, sizeof *l);
    l->w = w;
    l->f = f;
    enum status rc = find_dir(w, f->model_dir, l->dir, e);
    if (rc != STATUS_OK || (s->shard && !strcmp(s->shard_dir, l->dir) &&
                            same_rank(&s->shard->rank, f) && !shard_outdated(l))) {
        free(l);
        return rc;
    }
    if (s->server)
        pull_server_publish(s->server, NULL);
    s->serves = false;
    model_shard_close(s->shard);
    s->shard = NULL;
    free(s->shard_dir);
    s->shard_dir = NULL;
    s->loaded = (struct weights_figures){0};
    s->shard_stamp = model_folder_stamp(l->dir);
    const uint64_t begin = now_ms();
    rc = load(l, e);
    if (rc == STATUS_OK) {
        s->loaded.ms = (uint32_t)(now_ms() - begin);
        s->shard_dir = mem_strdup(l->dir);
        serve(l);
    }
    safetensors_close(l->files);
    free(l);
    return rc;
}

void worker_weights_finish(struct worker *w)
{
    struct worker_state *s = w->state;
    pull_server_close(s->server);
    model_shard_close(s->shard);
    free(s->shard_dir);
}
