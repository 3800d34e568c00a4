// hadal bench kv: KV blocks from one replica's pool into another's, by two movers of this process:
// equal layouts, and cut anew for another number of tensor ranks; held against what xport does with
// writes of the same size and against memcpy, in the same run.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/mem.h"
#include "node/mover.h"
#include "tools/bench.h"
#include "tools/cmd.h"
#include "tools/cmdline.h"

enum { BLOCK = 32, BLOCKS = 32, REPEATS = 5, WRITE_BYTES = 256 << 10, WRITES = 256, DEPTH = 4 };

static void die(const char *what)
{
    fprintf(stderr, "hadal bench kv: %s\n", what);
    exit(CMD_FAILED);
}

static void no_wake(void *arg)
{
}

// ---- one rank: a pool and its mover ----

struct side {
    struct mover *m;
    struct kern_buf **kv;
    struct kv_share share;
    uint64_t epoch;
    struct kv_shape shape;
};

static void side_open(struct side *s, struct kern *k, const struct model_config *c, uint32_t rank)
{
    struct kv_layout l;
    struct errmsg e = {0};
    kv_layout_init(&l, c, BLOCK, 4);
    if (kv_layout_share(&l, s->shape, rank, &s->share, &e) != STATUS_OK)
        die(e.text);
    size_t width = (size_t)(l.strips * s->share.heads_n * l.dim);
    s->kv = mem_zalloc((size_t)s->share.layers_n, sizeof *s->kv);
    for (int i = 0; i < s->share.layers_n; i++) {
        if (kern_buf_create(k, KERN_F32, (size_t)BLOCKS * BLOCK * width, &s->kv[i]) != STATUS_OK)
            die("no memory for the pool");
        memset(kern_buf_ptr(s->kv[i]), i + 1, (size_t)BLOCKS * BLOCK * width * 4);
    }
    s->m = mover_create(&(struct mover_config){.bind = "127.0.0.1", .wake = no_wake});
    const struct mover_rank r = {.replica = s->epoch,
                                 .epoch = s->epoch,
                                 .fingerprint = 1,
                                 .rank = rank,
                                 .shape = s->shape,
                                 .host = "here",
                                 .kern = k,
                                 .kv = s->kv,
                                 .config = c,
                                 .block_tokens = BLOCK,
                                 .kv_blocks = BLOCKS};
    struct mover_rank rank_of = r;
    rank_of.choice = TRANSPORT_AUTO;
    if (mover_attach(s->m, &rank_of, &e) != STATUS_OK)
        die(e.text);
}

static void side_close(struct side *s)
{
    mover_destroy(s->m);
    for (int i = 0; i < s->share.layers_n; i++)
        kern_buf_destroy(s->kv[i]);
    free(s->kv);
}

static struct kv_report await(struct side *s)
{
    struct kv_report r;
    double until = bench_now_s() + 30;
    while (!mover_poll(s->m, &r)) {
        if (bench_now_s() > until)
            die("a transfer hangs");
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
    if (r.kind == KV_REPORT_FAILED)
        die(r.text);
    return r;
}

struct rig {
    struct side from, to[2];
    uint32_t to_n;
    enum xport_kind kind;
    struct link_member members[2];
    uint64_t transfer;
};

// GB/s of one transfer of all blocks, from the order to the last piece in the pool.
static double move_once(struct rig *r)
{
    uint32_t blocks[BLOCKS];
    for (uint32_t i = 0; i < BLOCKS; i++)
        blocks[i] = BLOCKS - 1 - i;
    struct kv_peer source = {.epoch = r->from.epoch, .stages = 1, .tensor = 1};
    struct kv_peer target = {.epoch = r->to[0].epoch,
                             .stages = 1,
                             .tensor = r->to_n,
                             .members = r->members,
                             .members_n = r->to_n};
    struct kv_order o = {.kind = KV_ORDER_RECEIVE,
                         .transfer = ++r->transfer,
                         .epoch = r->to[0].epoch,
                         .peer = &source,
                         .total = BLOCKS,
                         .blocks = blocks,
                         .blocks_n = BLOCKS};
    for (uint32_t i = 0; i < r->to_n; i++) {
        mover_order(r->to[i].m, &o);
        await(&r->to[i]);
    }
    double begin = bench_now_s();
    o = (struct kv_order){.kind = KV_ORDER_SEND,
                          .transfer = r->transfer,
                          .epoch = r->from.epoch,
                          .peer = &target,
                          .total = BLOCKS};
    mover_order(r->from.m, &o);
    o = (struct kv_order){.kind = KV_ORDER_FILLED,
                          .transfer = r->transfer,
                          .epoch = r->from.epoch,
                          .blocks = blocks,
                          .blocks_n = BLOCKS,
                          .last = true};
    mover_order(r->from.m, &o);
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < r->to_n; i++)
        bytes += await(&r->to[i]).bytes;
    double took = bench_now_s() - begin;
    await(&r->from);
    return (double)bytes / took / 1e9;
}

static double best_move(struct kern *k, const struct model_config *c, uint32_t tensor,
                        enum xport_kind kind)
{
    struct rig r = {.from = {.epoch = 1, .shape = {1, 1}}, .to_n = tensor, .kind = kind};
    side_open(&r.from, k, c, 0);
    for (uint32_t i = 0; i < tensor; i++) {
        r.to[i] = (struct side){.epoch = 2, .shape = {1, tensor}};
        side_open(&r.to[i], k, c, i);
        struct rank_addresses a = mover_addresses(r.to[i].m);
        r.members[i] =
            (struct link_member){"n",
                                 "here",
                                 {kind == XPORT_SHM ? a.shm : "", kind == XPORT_TCP ? a.tcp : "",
                                  kind == XPORT_VERBS ? a.verbs : ""}};
    }
    double best = 0;
    for (int i = 0; i < REPEATS; i++) {
        double v = move_once(&r);
        best = v > best ? v : best;
    }
    side_close(&r.from);
    for (uint32_t i = 0; i < tensor; i++)
        side_close(&r.to[i]);
    return best;
}

// ---- limits ----

struct copy {
    char *from, *to;
    size_t bytes;
};

static void copy_run(void *ctx)
{
    const struct copy *c = ctx;
    memcpy(c->to, c->from, c->bytes);
}

static double copy_gb_s(size_t bytes)
{
    struct copy c = {mem_alloc(bytes), mem_alloc(bytes), bytes};
    memset(c.from, 1, bytes);
    memset(c.to, 2, bytes);
    double s = bench_best_s(0.2, copy_run, &c);
    free(c.from);
    free(c.to);
    return (double)bytes / s / 1e9;
}

// Writes of a slot's size between two endpoints of this thread, as many under way as the mover has.
static double write_gb_s(enum xport_kind kind)
{
    struct errmsg e = {0};
    struct xport *x[2];
    void *base, *src;
    for (int i = 0; i < 2; i++)
        if (xport_open(&(struct xport_config){.kind = kind}, &x[i], &e) != STATUS_OK)
            return 0;
    if (xport_region_create(x[0], 1, (size_t)DEPTH * WRITE_BYTES, &base, &e) != STATUS_OK ||
        xport_region_create(x[1], 1, (size_t)DEPTH * WRITE_BYTES, &src, &e) != STATUS_OK)
        die(e.text);
    struct xlink *l;
    if (xport_connect(x[1], xport_address(x[0]), "", 0, NULL, &l, &e) != STATUS_OK)
        die(e.text);
    struct xport_event ev[16];
    int done = 0, sent = 0, seen = 0;
    bool up = false;
    double begin = 0, until = bench_now_s() + 20;
    while (seen < WRITES) {
        if (bench_now_s() > until)
            die("writes hang");
        for (int s = 0; s < 2; s++) {
            int n = xport_poll(x[s], ev, 16);
            for (int i = 0; i < n; i++) {
                up |= s == 1 && ev[i].kind == XPORT_LINK_UP;
                seen += ev[i].kind == XPORT_NOTICE;
                done += ev[i].kind == XPORT_WRITE_DONE;
            }
        }
        begin = begin == 0 && up ? bench_now_s() : begin;
        while (up && sent < WRITES && sent - seen < DEPTH) {
            size_t at = (size_t)(sent % DEPTH) * WRITE_BYTES;
            const struct xwrite w = {
                .region = 1, .offset = at, .src = (char *)src + at, .bytes = WRITE_BYTES};
            if (xlink_write(l, &w) != STATUS_OK)
                break;
            sent++;
        }
    }
    double took = bench_now_s() - begin;
    xport_close(x[1]);
    xport_close(x[0]);
    return (double)WRITES * WRITE_BYTES / took / 1e9;
}

struct model {
    const char *name;
    struct model_config config;
};

static const struct model models[] = {
    {"mla 512+64, 27 layers",
     {.arch = ARCH_DEEPSEEK_V2,
      .vocab = 1024,
      .hidden = 2048,
      .layers = 27,
      .intermediate = 4096,
      .context = 4096,
      .heads = 16,
      .kv_heads = 16,
      .head_dim = 192,
      .v_dim = 128,
      .mla = true,
      .kv_lora = 512,
      .nope_dim = 128,
      .rope_dim = 64}},
    {"gqa 8x128, 16 layers",
     {.arch = ARCH_LLAMA,
      .vocab = 1024,
      .hidden = 4096,
      .layers = 16,
      .intermediate = 4096,
      .context = 4096,
      .heads = 32,
      .kv_heads = 8,
      .head_dim = 128,
      .v_dim = 128}},
};

static void bench_kind(bool json, struct kern *k, enum xport_kind kind)
{
    double write = write_gb_s(kind), copy = copy_gb_s(64 << 20);
    char name[96];
    snprintf(name, sizeof name, "kv: writes of 256 KiB over %s", xport_kind_name(kind));
    bench_print(json, &(struct bench_figure){name, "bandwidth", "GB/s", write, "memcpy", copy});
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        for (uint32_t tensor = 1; tensor <= 2; tensor++) {
            double v = best_move(k, &models[i].config, tensor, kind);
            snprintf(name, sizeof name, "kv: %s, T=1 to T=%u over %s", models[i].name, tensor,
                     xport_kind_name(kind));
            bench_print(json, &(struct bench_figure){name, "bandwidth", "GB/s", v, "xport", write});
        }
}

int bench_kv(int argc, char **argv)
{
    const char *kind = "all";
    bool json = false;
    const struct cmdline_opt opts[] = {
        {"--kind", CMDLINE_CHOICE, &kind, "KIND", .choices = "all|shm|tcp|verbs",
         .help = "default: all; verbs only where it is named"},
        {"--json", CMDLINE_FLAG, &json, .help = "one JSON object per line"},
        {0},
    };
    const struct cmdline c = {
        .usage = "hadal bench kv [OPTION...]",
        .about = "Blocks of the KV cache between replicas on this host; best of several.",
        .opts = opts};
    int rc = cmdline_parse(&c, argc, argv, NULL, NULL);
    if (rc != CMDLINE_GO)
        return rc;
    struct kern *k;
    struct errmsg e = {0};
    if (kern_open(KERN_CPU, &(struct kern_config){.threads = 1}, &k, &e) != STATUS_OK)
        die(e.text);
    log_set_level(LOG_ERROR);
    for (int i = XPORT_SHM; i <= XPORT_VERBS; i++)
        if (!strcmp(kind, xport_kind_name((enum xport_kind)i)) ||
            (!strcmp(kind, "all") && i != XPORT_VERBS))
            bench_kind(json, k, (enum xport_kind)i);
    kern_close(k);
    return CMD_OK;
}
