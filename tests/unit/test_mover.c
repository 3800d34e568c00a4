// The target's side of the KV mover against a source that is hostile, wrong or late: the test is
// that source, on a bare xport. Whatever it writes, only pieces that are awaited reach the pool.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/prng.h"
#include "node/kv_order.h"
#include "node/mover_int.h"

enum {
    BLOCK = 4,
    BLOCKS = 8,
    LAYERS = 2,
    HEADS = 2,
    DIM = 8,
    WIDTH = 2 * HEADS * DIM,
    POOL = BLOCKS * BLOCK * WIDTH,
    PIECE = 2 * BLOCK * HEADS * DIM, // floats of one layer's heads of a block
    SLOT = 8192,
    WAIT_MS = 20000,
};

static const struct model_config config = {.arch = ARCH_LLAMA,
                                           .vocab = 64,
                                           .hidden = 32,
                                           .layers = LAYERS,
                                           .intermediate = 64,
                                           .context = 64,
                                           .heads = 4,
                                           .kv_heads = HEADS,
                                           .head_dim = DIM,
                                           .v_dim = DIM};
static const uint32_t table[3] = {5, 0, 7}; // blocks of the transfer

struct rig {
    struct kern *k;
    struct kern_buf *kv[LAYERS];
    struct mover *m;
    struct xport *x; // the source's
    struct xlink *l;
    bool up, down;
    uint32_t region; // of the staging at the target; UINT32_MAX = not granted
    uint32_t acks, taken;
    char *slot;
};

static void no_wake(void *arg)
{
}

static void pause_a_little(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
}

static struct mover_hello hello_of(uint64_t transfer)
{
    return (struct mover_hello){.magic = MOVER_MAGIC,
                                .region = 1,
                                .slot_bytes = SLOT,
                                .elem_bytes = 4,
                                .backend = KERN_CPU,
                                .transfer = transfer,
                                .source_epoch = 3,
                                .target_epoch = 4,
                                .fingerprint = 99};
}

static void turn(struct rig *r)
{
    struct xport_event ev[16];
    int n = xport_poll(r->x, ev, 16);
    for (int i = 0; i < n; i++) {
        if (ev[i].link != r->l)
            continue;
        r->up |= ev[i].kind == XPORT_LINK_UP;
        r->down |= ev[i].kind == XPORT_LINK_DOWN;
        if (ev[i].kind != XPORT_NOTICE)
            continue;
        if (ev[i].notice >> 24 == MOVER_GRANT)
            r->region = ev[i].notice & 0xffffff;
        r->acks += ev[i].notice >> 24 == MOVER_ACK;
        r->taken += ev[i].notice >> 24 == MOVER_TAKEN;
    }
    if (n == 0)
        pause_a_little();
}

static void connect_as(struct rig *r, const struct mover_hello *h)
{
    struct errmsg e = {0};
    r->up = r->down = false;
    r->region = UINT32_MAX;
    r->acks = r->taken = 0;
    assert_int_equal(xport_connect(r->x, mover_addresses(r->m).shm, h, sizeof *h, NULL, &r->l, &e),
                     STATUS_OK);
    for (int i = 0; i < WAIT_MS && r->region == UINT32_MAX && !r->down; i++)
        turn(r);
}

static void open_rig(struct rig *r)
{
    struct errmsg e = {0};
    void *base;
    *r = (struct rig){0};
    assert_int_equal(kern_open(KERN_CPU, &(struct kern_config){.threads = 1}, &r->k, &e),
                     STATUS_OK);
    for (int i = 0; i < LAYERS; i++)
        assert_int_equal(kern_buf_create(r->k, KERN_F32, POOL, &r->kv[i]), STATUS_OK);
    r->m = mover_create(&(struct mover_config){.bind = "127.0.0.1", .wake = no_wake});
    const struct mover_rank rank = {.replica = 2,
                                    .epoch = 4,
                                    .fingerprint = 99,
                                    .shape = {1, 1},
                                    .host = "here",
                                    .kern = r->k,
                                    .kv = r->kv,
                                    .config = &config,
                                    .block_tokens = BLOCK,
                                    .kv_blocks = BLOCKS};
    assert_int_equal(mover_attach(r->m, &rank, &e), STATUS_OK);
    assert_int_equal(xport_open(&(struct xport_config){.kind = XPORT_SHM}, &r->x, &e), STATUS_OK);
    assert_int_equal(xport_region_create(r->x, 1, SLOT, &base, &e), STATUS_OK);
    r->slot = base;
}

static void close_rig(struct rig *r)
{
    xport_close(r->x);
    mover_destroy(r->m);
    for (int i = 0; i < LAYERS; i++)
        kern_buf_destroy(r->kv[i]);
    kern_close(r->k);
}

static void order(struct rig *r, enum kv_order_kind kind, uint64_t transfer)
{
    const struct kv_peer source = {.epoch = 3, .stages = 1, .tensor = 1};
    bool opens = kind == KV_ORDER_RECEIVE;
    mover_order(r->m, &(struct kv_order){.kind = kind,
                                         .transfer = transfer,
                                         .epoch = 4,
                                         .peer = opens ? &source : NULL,
                                         .total = opens ? 3 : 0,
                                         .blocks = table,
                                         .blocks_n = opens ? 3 : 0});
}

static struct kv_report report(struct rig *r)
{
    struct kv_report out = {0};
    for (int i = 0; i < WAIT_MS; i++) {
        if (mover_poll(r->m, &out))
            return out;
        turn(r);
    }
    fail_msg("no report came");
    return out;
}

static void receive(struct rig *r, uint64_t transfer)
{
    order(r, KV_ORDER_RECEIVE, transfer);
    assert_int_equal(report(r).kind, KV_REPORT_READY);
}

static size_t add_piece(struct rig *r, size_t at, struct mover_piece p, float value)
{
    memcpy(r->slot + at, &p, sizeof p);
    float *v = (float *)(r->slot + at + sizeof p);
    for (int i = 0; i < PIECE; i++)
        v[i] = value + (float)i;
    return at + sizeof p + PIECE * sizeof *v;
}

// A slot with one piece.
static size_t one_piece(struct rig *r, struct mover_piece p, float value)
{
    memcpy(r->slot, &(struct mover_slot){1, 0}, sizeof(struct mover_slot));
    return add_piece(r, sizeof(struct mover_slot), p, value);
}

static void write_slot(struct rig *r, size_t bytes, enum mover_notice kind, uint32_t value)
{
    const struct xwrite w = {.region = r->region,
                             .offset = 0,
                             .src = r->slot,
                             .bytes = bytes,
                             .notice = (uint32_t)kind << 24 | value};
    assert_int_equal(xlink_write(r->l, &w), STATUS_OK);
}

static bool untouched(struct rig *r)
{
    for (int i = 0; i < LAYERS; i++)
        for (int k = 0; k < POOL; k++)
            if (((const float *)kern_buf_ptr(r->kv[i]))[k] != 0)
                return false;
    return true;
}

static void await_ack(struct rig *r, uint32_t n)
{
    for (int i = 0; i < WAIT_MS && r->acks < n && !r->down; i++)
        turn(r);
    assert_int_equal(r->acks, n);
}

// ---- what is awaited lands where it belongs ----

static void pieces_land_where_they_belong(void **state)
{
    struct rig r;
    open_rig(&r);
    receive(&r, 1);
    struct mover_hello h = hello_of(1);
    connect_as(&r, &h);
    uint32_t sent = 0;
    for (uint32_t place = 0; place < 2; place++)
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            size_t n = one_piece(&r, (struct mover_piece){place, layer, 0, HEADS},
                                 1000.0f * (float)(1 + place * 10 + layer));
            write_slot(&r, n, MOVER_DATA, 0);
            await_ack(&r, ++sent);
        }
    write_slot(&r, 0, MOVER_END, 2); // the chain is one block shorter
    struct kv_report e = report(&r);
    assert_int_equal(e.kind, KV_REPORT_ENDED);
    assert_true(e.whole && e.blocks == 2 && e.bytes == 4 * PIECE * sizeof(float));
    for (int i = 0; i < WAIT_MS && !r.taken; i++)
        turn(&r);
    assert_int_equal(r.taken, 1);
    // [K of all tokens | V of all tokens] became rows of [K | V].
    const float *pool = kern_buf_ptr(r.kv[1]);
    for (int t = 0; t < BLOCK; t++)
        for (int d = 0; d < HEADS * DIM; d++) {
            const float *row = pool + ((int)table[1] * BLOCK + t) * WIDTH;
            assert_true(row[d] == 12000.0f + (float)(t * HEADS * DIM + d));
            assert_true(row[HEADS * DIM + d] ==
                        12000.0f + (float)(PIECE / 2 + t * HEADS * DIM + d));
        }
    close_rig(&r);
}

// ---- what is not ----

static void a_bad_piece_ends_the_transfer(void **state)
{
    static const struct mover_piece bad[] = {
        {3, 0, 0, HEADS},      {UINT32_MAX, 0, 0, HEADS},
        {0, LAYERS, 0, HEADS}, {0, UINT32_MAX, 0, HEADS},
        {0, 0, 1, HEADS},      {0, 0, 0, 1},
        {0, 0, 0, 0},          {0, 0, UINT32_MAX, 2},
    };
    struct rig r;
    open_rig(&r);
    for (uint64_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        receive(&r, 10 + i);
        struct mover_hello h = hello_of(10 + i);
        connect_as(&r, &h);
        write_slot(&r, one_piece(&r, bad[i], 1), MOVER_DATA, 0);
        struct kv_report f = report(&r);
        assert_int_equal(f.kind, KV_REPORT_FAILED);
        assert_int_equal(f.status, STATUS_LINK_PROTOCOL);
        order(&r, KV_ORDER_STOP, 10 + i);
        assert_int_equal(report(&r).kind, KV_REPORT_ENDED);
        assert_true(untouched(&r));
    }
    close_rig(&r);
}

// Slots that are cut short, too long, or say more pieces than they have; and random bytes.
static void a_bad_slot_ends_the_transfer(void **state)
{
    struct rig r;
    struct prng p;
    prng_seed(&p, 5);
    open_rig(&r);
    for (uint64_t i = 0; i < 24; i++) {
        receive(&r, 100 + i);
        struct mover_hello h = hello_of(100 + i);
        connect_as(&r, &h);
        size_t n = one_piece(&r, (struct mover_piece){2, 0, 0, HEADS}, 0); // zeros but the head
        memset(r.slot + sizeof(struct mover_slot) + sizeof(struct mover_piece), 0, n - 24);
        if (i == 0)
            n = 3;
        else if (i == 1)
            n--;
        else if (i == 2)
            n += 4;
        else if (i == 3)
            r.slot[0] = 2;
        else
            for (int k = 0; k < 64; k++)
                r.slot[k] = (char)prng_below(&p, 256);
        write_slot(&r, n, MOVER_DATA, 0);
        struct kv_report f = report(&r);
        assert_int_equal(f.kind, KV_REPORT_FAILED);
        order(&r, KV_ORDER_STOP, 100 + i);
        assert_int_equal(report(&r).kind, KV_REPORT_ENDED);
        assert_true(untouched(&r));
    }
    close_rig(&r);
}

static void a_piece_comes_once(void **state)
{
    struct rig r;
    open_rig(&r);
    receive(&r, 1);
    struct mover_hello h = hello_of(1);
    connect_as(&r, &h);
    write_slot(&r, one_piece(&r, (struct mover_piece){0, 0, 0, HEADS}, 5), MOVER_DATA, 0);
    await_ack(&r, 1);
    write_slot(&r, one_piece(&r, (struct mover_piece){0, 0, 0, HEADS}, 7), MOVER_DATA, 0);
    assert_int_equal(report(&r).kind, KV_REPORT_FAILED);
    assert_true(((const float *)kern_buf_ptr(r.kv[0]))[table[0] * BLOCK * WIDTH] == 5);
    close_rig(&r);
}

static void an_early_end_ends_the_transfer(void **state)
{
    for (uint32_t at = 0; at < 3; at++) {
        const uint32_t ends[] = {1, 4, 0xffffff};
        struct rig r;
        open_rig(&r);
        receive(&r, 1);
        struct mover_hello h = hello_of(1);
        connect_as(&r, &h);
        write_slot(&r, 0, MOVER_END, ends[at]);
        struct kv_report f = report(&r);
        assert_int_equal(f.kind, KV_REPORT_FAILED);
        assert_int_equal(f.status, STATUS_LINK_PROTOCOL);
        close_rig(&r);
    }
}

// The lease ran out, the blocks are somebody else's: what the source still writes stays in staging.
static void a_late_write_meets_no_block(void **state)
{
    struct rig r;
    open_rig(&r);
    for (uint64_t id = 1; id <= 20; id++) {
        receive(&r, id);
        struct mover_hello h = hello_of(id);
        connect_as(&r, &h);
        size_t n = one_piece(&r, (struct mover_piece){0, 0, 0, HEADS}, 9);
        order(&r, KV_ORDER_STOP, id);
        struct kv_report e = report(&r);
        assert_true(e.kind == KV_REPORT_ENDED && !e.whole && e.blocks == 0);
        const struct xwrite w = {
            .region = r.region, .src = r.slot, .bytes = n, .notice = (uint32_t)MOVER_DATA << 24};
        if (xlink_write(r.l, &w) == STATUS_OK)
            for (int i = 0; i < WAIT_MS && !r.down; i++)
                turn(&r);
        assert_true(untouched(&r));
    }
    // The same when the rank leaves its epoch.
    receive(&r, 50);
    struct mover_hello h = hello_of(50);
    connect_as(&r, &h);
    size_t n = one_piece(&r, (struct mover_piece){0, 0, 0, HEADS}, 9);
    mover_detach(r.m);
    const struct xwrite w = {
        .region = r.region, .src = r.slot, .bytes = n, .notice = (uint32_t)MOVER_DATA << 24};
    if (xlink_write(r.l, &w) == STATUS_OK)
        for (int i = 0; i < WAIT_MS && !r.down; i++)
            turn(&r);
    assert_true(untouched(&r));
    close_rig(&r);
}

static void strangers_are_refused(void **state)
{
    struct rig r;
    open_rig(&r);
    receive(&r, 1);
    for (int i = 0; i < 10; i++) {
        struct mover_hello h = hello_of(1);
        h.magic += i == 0;
        h.transfer += i == 1;
        h.source_epoch += i == 2;
        h.target_epoch += i == 3;
        h.fingerprint += i == 4;
        h.source_rank += i == 5;
        h.target_rank += i == 6;
        h.elem_bytes += i == 7;
        h.slot_bytes = i == 8 ? UINT32_MAX : h.slot_bytes;
        h.backend += i == 9;
        connect_as(&r, &h);
        for (int t = 0; t < WAIT_MS && !r.down; t++)
            turn(&r);
        assert_true(r.down && r.region == UINT32_MAX);
    }
    assert_int_equal(mover_stats_get(r.m).refused, 10);
    struct mover_hello h = hello_of(1); // the right one still comes
    connect_as(&r, &h);
    assert_true(r.region != UINT32_MAX);
    struct xlink *first = r.l;
    connect_as(&r, &h); // but once
    for (int t = 0; t < WAIT_MS && !r.down; t++)
        turn(&r);
    assert_true(r.down);
    xlink_close(first); // the source is lost
    assert_int_equal(report(&r).kind, KV_REPORT_FAILED);
    close_rig(&r);
}

// ---- orders as bytes ----

static void orders_survive_the_lane(void **state)
{
    static const struct link_member members[] = {{"a", "h", {"shm:1", "tcp:2", ""}},
                                                 {"b", "h2", {"", "", "verbs:3"}}};
    const struct kv_peer peer = {
        .replica = 1, .epoch = 2, .stages = 1, .tensor = 2, .members = members, .members_n = 2};
    const struct kv_order orders[] = {
        {KV_ORDER_RECEIVE, 7, 8, &peer, 1, 4, table, 3, false},
        {KV_ORDER_SEND, 7, 8, &peer, 0, 4, NULL, 0, false},
        {KV_ORDER_FILLED, 7, 8, NULL, 1, 0, table, 3, true},
        {KV_ORDER_STOP, 7, 8, NULL, 0, 0, NULL, 0, false},
    };
    struct kv_order_memory memory = {0};
    struct prng p;
    prng_seed(&p, 3);
    for (size_t i = 0; i < sizeof orders / sizeof *orders; i++) {
        struct strbuf b = {0}, again = {0};
        struct kv_order o;
        kv_order_encode(&orders[i], &b);
        assert_int_equal(kv_order_decode(b.v, b.n, &memory, &o), STATUS_OK);
        kv_order_encode(&o, &again);
        assert_int_equal(again.n, b.n);
        assert_memory_equal(again.v, b.v, b.n);
        for (size_t n = 0; n < b.n; n++) {
            char *cut = malloc(n ? n : 1); // so that a sanitizer sees a read beyond it
            memcpy(cut, b.v, n);
            assert_int_equal(kv_order_decode(cut, n, &memory, &o), STATUS_LINK_CORRUPT);
            free(cut);
        }
        for (int k = 0; k < 2000; k++) {
            size_t at = (size_t)prng_below(&p, (uint32_t)b.n);
            char was = b.v[at];
            b.v[at] = (char)prng_below(&p, 256);
            if (kv_order_decode(b.v, b.n, &memory, &o) == STATUS_OK) {
                strbuf_clear(&again);
                kv_order_encode(&o, &again);
            }
            b.v[at] = was;
        }
        strbuf_finish(&b);
        strbuf_finish(&again);
    }
    kv_order_memory_finish(&memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_land_where_they_belong),
        cmocka_unit_test(a_bad_piece_ends_the_transfer),
        cmocka_unit_test(a_bad_slot_ends_the_transfer),
        cmocka_unit_test(a_piece_comes_once),
        cmocka_unit_test(an_early_end_ends_the_transfer),
        cmocka_unit_test(a_late_write_meets_no_block),
        cmocka_unit_test(strangers_are_refused),
        cmocka_unit_test(orders_survive_the_lane),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
