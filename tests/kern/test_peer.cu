// The protocol of kernels/cuda/peer.cuh on threads of the CPU, where no GPU is needed: ranks are
// groups of threads, windows are plain memory. The same templates that the kernels are made of: data
// arrive whole at odd shapes, in any order of ranks; nothing is taken for new that is left over;
// and a rank that dies before, between or after its marks, or an abort, frees the others.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/cuda/peer.cuh"

enum { RANKS = 3, THREADS = 2, BLOCKS = 2, GRID = 2 * BLOCKS, WORDS_MAX = 1 << 16 };
static const size_t pieces_bytes = 64 << 10;

static int failures;
#define EXPECT(x)                                                                                  \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            printf("line %d: %s\n", __LINE__, #x);                                                 \
            __atomic_fetch_add(&failures, 1, __ATOMIC_RELAXED);                                    \
        }                                                                                          \
    } while (0)

// ---- ranks

struct rank {
    peer_group g;
    peer_state state;
    peer_host host;
    char *window;
    uint32_t *buf;
    pthread_barrier_t blocks[GRID]; // joins the threads of a block
    int go[GRID];
};
static struct rank ranks[RANKS];

struct on_cpu {
    struct rank *r;
    uint32_t block_, blocks_, thread_;
    uint32_t block() const
    {
        return block_;
    }
    uint32_t blocks() const
    {
        return blocks_;
    }
    uint32_t thread() const
    {
        return thread_;
    }
    uint32_t threads() const
    {
        return THREADS;
    }
    void sync() const
    {
        pthread_barrier_wait(&r->blocks[block_]);
    }
};

static void reset(uint64_t number, uint64_t timeout_ms)
{
    for (int i = 0; i < RANKS; i++) {
        struct rank *r = &ranks[i];
        size_t bytes = peer::window_bytes(RANKS, pieces_bytes);
        if (!r->window) {
            r->window = (char *)aligned_alloc(256, (bytes + 255) / 256 * 256);
            r->buf = (uint32_t *)aligned_alloc(256, WORDS_MAX * 4);
            for (int b = 0; b < GRID; b++)
                pthread_barrier_init(&r->blocks[b], NULL, THREADS);
        }
        memset(r->window, 0, bytes);
        memset(&r->host, 0, sizeof r->host);
        memset(&r->state, 0, sizeof r->state);
        r->state.number = number;
        memset(&r->g, 0, sizeof r->g);
        r->g.size = RANKS;
        r->g.rank = i;
        r->g.pieces_bytes = pieces_bytes;
        r->g.timeout_ns = timeout_ms * 1000000;
        r->g.state = &r->state;
        r->g.host = &r->host;
    }
    for (int i = 0; i < RANKS; i++)
        for (int j = 0; j < RANKS; j++)
            ranks[i].g.windows[j] = ranks[j].window;
}

// ---- one collective on all threads of a rank

struct op {
    bool pieces;
    uint32_t rows, part; // words
};

struct job {
    struct rank *r;
    struct op op;
    uint32_t block, thread;
};

static void *run_thread(void *arg)
{
    struct job *j = (struct job *)arg;
    const struct op *o = &j->op;
    on_cpu w = {j->r, j->block, (uint32_t)(o->pieces ? GRID : BLOCKS), j->thread};
    char *buf = (char *)j->r->buf;
    if (o->pieces) {
        bool wide = o->part % 4 == 0;
        uint32_t row = wide ? o->part / 4 : o->part;
        peer::pieces a = {buf, row, row * o->rows, 3, BLOCKS}; // many small pieces
        if (wide)
            peer::gather_pieces<uint4>(w, j->r->g, a, &j->r->go[j->block]);
        else
            peer::gather_pieces<uint32_t>(w, j->r->g, a, &j->r->go[j->block]);
    } else if (o->part % 2) {
        uint32_t row = (o->part + 1) / 2;
        peer::slice<false> s = {buf, o->part, row, (size_t)o->part * RANKS * 4};
        peer::gather_words(w, j->r->g, s, row * o->rows);
    } else {
        uint32_t row = o->part / 2;
        peer::slice<true> s = {buf, o->part, row, (size_t)o->part * RANKS * 4};
        peer::gather_words(w, j->r->g, s, row * o->rows);
    }
    return NULL;
}

static void run(struct rank *r, struct op op)
{
    uint32_t blocks = op.pieces ? GRID : BLOCKS;
    struct job jobs[GRID * THREADS];
    pthread_t threads[GRID * THREADS];
    for (uint32_t i = 0; i < blocks * THREADS; i++) {
        jobs[i] = {r, op, i / THREADS, i % THREADS};
        pthread_create(&threads[i], NULL, run_thread, &jobs[i]);
    }
    for (uint32_t i = 0; i < blocks * THREADS; i++)
        pthread_join(threads[i], NULL);
}

static uint32_t word(uint32_t seed, int rank, uint32_t i)
{
    uint32_t x = seed * 2654435761u ^ (uint32_t)rank * 40503u ^ i * 2246822519u;
    x ^= x >> 15, x *= 2246822519u, x ^= x >> 13;
    return x;
}

static void fill(struct rank *r, struct op o, uint32_t seed)
{
    for (uint32_t i = 0; i < o.rows * o.part * RANKS; i++) {
        int owner = (int)(i / o.part % RANKS);
        r->buf[i] = owner == r->g.rank ? word(seed, owner, i) : 0xdeadbeef;
    }
}

static bool right(const struct rank *r, struct op o, uint32_t seed)
{
    for (uint32_t i = 0; i < o.rows * o.part * RANKS; i++)
        if (r->buf[i] != word(seed, (int)(i / o.part % RANKS), i))
            return false;
    return true;
}

// ---- ranks side by side

struct script {
    struct rank *r;
    int n;
    uint32_t seed;
    bool slow;
};

// The same pseudo-random collectives on every rank.
static struct op nth_op(uint32_t seed, int i)
{
    uint32_t x = word(seed, 77, (uint32_t)i);
    struct op o = {(x & 1) != 0, 1 + (x >> 1) % 5, 1 + (x >> 8) % 67};
    if ((x >> 20) % 8 == 0)
        o.part = 4 * (1 + (x >> 8) % 300);
    return o;
}

static void *play(void *arg)
{
    struct script *s = (struct script *)arg;
    for (int i = 0; i < s->n; i++) {
        struct op o = nth_op(s->seed, i);
        fill(s->r, o, s->seed + (uint32_t)i);
        if (s->slow && word(s->seed, s->r->g.rank, (uint32_t)i) % 5 == 0)
            usleep(300);
        run(s->r, o);
        EXPECT(right(s->r, o, s->seed + (uint32_t)i));
    }
    return NULL;
}

static void play_all(int n, uint32_t seed, bool slow)
{
    struct script s[RANKS];
    pthread_t t[RANKS];
    for (int i = 0; i < RANKS; i++) {
        s[i] = {&ranks[i], n, seed, slow};
        pthread_create(&t[i], NULL, play, &s[i]);
    }
    for (int i = 0; i < RANKS; i++)
        pthread_join(t[i], NULL);
    for (int i = 0; i < RANKS; i++)
        EXPECT(ranks[i].host.failed == 0);
}

static void test_any_order(void)
{
    reset(0, 20000);
    play_all(150, 1, true);
    EXPECT(ranks[0].state.number == 150 && ranks[RANKS - 1].host.started == 150);
}

// Where marks come round again: words of the first time must not count.
static void test_numbers_come_round(void)
{
    const uint64_t starts[] = {peer::clear_every - 1, (1ull << 31) - 1, (1ull << 32) - 1};
    for (uint64_t start : starts) {
        reset(start, 20000);
        // Left over, from one round of marks ago: what would be taken for the next collectives'.
        for (int i = 0; i < RANKS; i++)
            for (uint64_t n = start + 3; n < start + 9; n++)
                for (int from = 0; from < RANKS; from++)
                    for (int p = (int)(n % 6); p < PEER_WORDS_BYTES / 8; p += 6)
                        peer::store_words(ranks[i].window + peer::words_at(ranks[i].g, n, from) +
                                              p * 16,
                                          0xbad, 0xbad, peer::mark_of(n));
        play_all(24, (uint32_t)start, false);
    }
}

// ---- ranks that do not come

struct waiter {
    struct rank *r;
    struct op op;
};

static void *wait_main(void *arg)
{
    struct waiter *w = (struct waiter *)arg;
    fill(w->r, w->op, 9);
    run(w->r, w->op);
    run(w->r, w->op); // passes: the group has failed
    return NULL;
}

static uint64_t now_ms(void)
{
    return peer::now_ns() / 1000000;
}

// Ranks 0 and 2 wait; rank 1 does what `dead` does and no more.
static uint64_t wait_for(struct op op, void (*dead)(struct op op), void (*meanwhile)(void))
{
    struct waiter w[2] = {{&ranks[0], op}, {&ranks[2], op}};
    pthread_t t[2];
    uint64_t start = now_ms();
    dead(op);
    for (int i = 0; i < 2; i++)
        pthread_create(&t[i], NULL, wait_main, &w[i]);
    if (meanwhile)
        meanwhile();
    for (int i = 0; i < 2; i++)
        pthread_join(t[i], NULL);
    return now_ms() - start;
}

static void nothing(struct op op)
{
}

// The first half of its words, or of the pieces of its first block, is in its peers' windows.
static void half(struct op op)
{
    struct rank *r = &ranks[1];
    for (int i = 1; i < RANKS; i++) {
        char *window = r->g.windows[peer::after(r->g, i)];
        if (op.pieces) {
            memset(window + peer::pieces_at(r->g, 1, 1), 1, 48);
            peer::store_release(peer::flag_of(r->g, peer::after(r->g, i), 1, 0), 1 << 16 | 1);
        } else {
            for (uint32_t p = 0; p < op.rows * op.part / 4; p++)
                peer::store_words(window + peer::words_at(r->g, 1, 1) + p * 16, 1, 1,
                                  peer::mark_of(1));
        }
    }
}

// The data of a packet or piece, but not its second mark or its flag.
static void torn(struct op op)
{
    struct rank *r = &ranks[1];
    for (int i = 1; i < RANKS; i++) {
        char *window = r->g.windows[peer::after(r->g, i)];
        if (op.pieces)
            memset(window + peer::pieces_at(r->g, 1, 1), 1, 48);
        else
            __atomic_store_n((uint64_t *)(window + peer::words_at(r->g, 1, 1)),
                             (uint64_t)peer::mark_of(1) << 32 | 1, __ATOMIC_RELAXED);
    }
}

static void expect_named(uint32_t why)
{
    for (int i = 0; i < RANKS; i += 2) {
        EXPECT(ranks[i].host.failed == (why | 1 << 8)); // rank 1
        EXPECT(ranks[i].host.failed_number == 1);
        EXPECT(ranks[i].host.started == 1);
    }
}

static const struct op shapes[] = {{false, 3, 8}, {false, 2, 5}, {true, 4, 40}, {true, 3, 7}};

static void test_a_rank_that_dies(void)
{
    void (*const deaths[])(struct op) = {nothing, half, torn};
    for (struct op op : shapes)
        for (auto dead : deaths) {
            reset(0, 150);
            uint64_t ms = wait_for(op, dead, NULL);
            EXPECT(ms >= 140 && ms < 5000);
            expect_named(PEER_TIMEOUT);
        }
}

// It dies after all its marks are out: the others have what they need, and miss it in the next one.
static void *run_one(void *arg)
{
    struct waiter *w = (struct waiter *)arg;
    fill(w->r, w->op, 9);
    run(w->r, w->op);
    EXPECT(right(w->r, w->op, 9));
    return NULL;
}

static void test_a_rank_that_dies_afterwards(void)
{
    for (struct op op : shapes) {
        reset(0, 150);
        pthread_t t[RANKS];
        struct waiter w[RANKS];
        for (int i = 0; i < RANKS; i++) {
            w[i] = {&ranks[i], op};
            pthread_create(&t[i], NULL, run_one, &w[i]);
        }
        for (int i = 0; i < RANKS; i++)
            pthread_join(t[i], NULL);
        wait_for(op, nothing, NULL);
        EXPECT(ranks[0].host.failed == (PEER_TIMEOUT | 1 << 8));
        EXPECT(ranks[0].host.failed_number == 2 && ranks[0].host.started == 2);
    }
}

static void abort_soon(void)
{
    usleep(100000);
    for (int i = 0; i < RANKS; i++)
        peer::tell(&ranks[i].host.abort, 1u);
}

static void test_abort(void)
{
    for (struct op op : shapes) {
        reset(0, 60000);
        uint64_t ms = wait_for(op, nothing, abort_soon);
        EXPECT(ms >= 95 && ms < 5000);
        expect_named(PEER_ABORTED);
    }
}

int main(void)
{
    static const struct {
        const char *name;
        void (*fn)(void);
    } tests[] = {
        {"data arrive whole, whoever is slow", test_any_order},
        {"marks that come round again", test_numbers_come_round},
        {"a rank that dies before or within its marks", test_a_rank_that_dies},
        {"a rank that dies after its marks", test_a_rank_that_dies_afterwards},
        {"abort", test_abort},
    };
    int passed = 0, failed = 0;
    for (const auto &t : tests) {
        failures = 0;
        t.fn();
        printf("%-8s%s\n", failures ? "FAILED" : "ok", t.name);
        fflush(stdout);
        passed += failures == 0;
        failed += failures != 0;
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
