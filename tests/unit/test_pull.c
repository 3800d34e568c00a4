// Weights from other nodes: the same bits as from disk, in every layout and for every architecture;
// and what sources and targets that err, lie, hang or die can do to each other.
#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "node/pull.h"
#include "node/pull_server.h"
#include "node/pull_wire.h"
#include "tests/unit/small_logits.h"

enum { TOKENS = 16 };
static const char sample[] = "models/sample";

static uint64_t fingerprint_of(const char *dir)
{
    struct errmsg e = {0};
    uint64_t f = 0;
    const struct model_source s = {.dir = dir};
    if (model_source_fingerprint(&s, &f, &e) != STATUS_OK)
        fail_msg("%s", e.text);
    return f;
}

static struct pull_server *serve(const char *dir, uint32_t mib_per_s)
{
    struct errmsg e = {0};
    struct pull_files *files = NULL;
    if (pull_files_open(dir, fingerprint_of(dir), &files, &e) != STATUS_OK)
        fail_msg("%s", e.text);
    struct pull_server *s =
        pull_server_open(&(struct pull_server_config){.mib_per_s = mib_per_s, .patience_ms = 1000});
    pull_server_publish(s, files);
    return s;
}

enum { ALL_KINDS = -1 };
// A source's address; kind: only this one.
static struct weight_source source_at(const char *name, const struct pull_server *s, int kind)
{
    struct weight_source w = {.name = name, .addresses = pull_server_addresses(s)};
    if (kind != ALL_KINDS && kind != XPORT_SHM)
        w.addresses.shm = "";
    if (kind != ALL_KINDS && kind != XPORT_TCP)
        w.addresses.tcp = "";
    if (kind != ALL_KINDS)
        w.addresses.verbs = "";
    return w;
}

// ---- the same bits

static void logits_of(const struct model_source *source, int stages, int tensors, float **out,
                      size_t *n_out)
{
    struct local_replica_args a = {.source = *source,
                                   .stages = stages,
                                   .tensors = tensors,
                                   .backend = KERN_CPU,
                                   .threads = 2,
                                   .max_context = 64,
                                   .max_seqs = 1,
                                   .max_rows = TOKENS,
                                   .max_logits = TOKENS};
    struct local_replica *r = NULL;
    struct errmsg e = {0};
    if (local_replica_open(&a, &r, &e) != STATUS_OK)
        fail_msg("%s", e.text);
    const int vocab = local_replica_config(r)->vocab;
    int32_t ids[TOKENS], seq[TOKENS] = {0}, pos[TOKENS];
    for (int i = 0; i < TOKENS; i++) {
        ids[i] = i * 31 % vocab;
        pos[i] = i;
    }
    struct local_batch b = {TOKENS, ids, seq, pos, pos, TOKENS};
    if (local_replica_run(r, &b, &e) != STATUS_OK)
        fail_msg("%s", e.text);
    *n_out = (size_t)TOKENS * (size_t)vocab;
    *out = mem_alloc(*n_out * sizeof **out);
    for (size_t i = 0; i < TOKENS; i++)
        assert_int_equal(local_replica_logits(r, i, *out + i * (size_t)vocab), STATUS_OK);
    local_replica_close(r);
}

static struct pull *pull_from(const struct weight_source *sources, uint32_t n, const char *dir)
{
    struct errmsg e = {0};
    struct pull *p = NULL;
    const struct pull_args a = {
        .sources = sources, .sources_n = n, .fingerprint = fingerprint_of(dir), .hang_ms = 20000};
    if (pull_open(&a, &p, &e) != STATUS_OK)
        fail_msg("%s", e.text);
    return p;
}

static void check_model(const char *dir)
{
    static const int layouts[][2] = {{1, 1}, {2, 2}};
    struct pull_server *one = serve(dir, 0), *two = serve(dir, 0);
    const struct weight_source sources[] = {source_at("one", one, XPORT_SHM),
                                            source_at("two", two, XPORT_TCP)};
    struct pull *p = pull_from(sources, 2, dir);
    struct errmsg e = {0};
    char config[64];
    assert_int_equal(pull_file(p, "config.json", config, &e), STATUS_OK);
    const struct model_source disk = {.dir = dir};
    const struct model_source peers = {.config = config, .folder = pull_folder(p)};
    uint64_t fingerprint = 0;
    assert_int_equal(model_source_fingerprint(&peers, &fingerprint, &e), STATUS_OK);
    assert_true(fingerprint == fingerprint_of(dir));
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        float *a, *b;
        size_t n, m;
        logits_of(&disk, layouts[i][0], layouts[i][1], &a, &n);
        logits_of(&peers, layouts[i][0], layouts[i][1], &b, &m);
        assert_int_equal(n, m);
        assert_memory_equal(a, b, n * sizeof *a);
        free(a);
        free(b);
    }
    const struct pull_stats t = pull_stats_get(p);
    assert_true(t.peer_bytes > 0 && t.disk_bytes == 0 && t.bad == 0 && t.lost == 0);
    pull_close(p);
    assert_true(pull_server_sent(one) > 0 && pull_server_sent(two) > 0);
    pull_server_close(one);
    pull_server_close(two);
}

static void test_goldens(void **state)
{
    static const char *const names[] = {
        "deepseek-v2",   "deepseek-v2-lite",       "deepseek-v3",      "deepseek-v3-fp8",
        "r1-0528-qwen3", "deepseek-v3-real-heads", "r1-distill-llama", "r1-distill-qwen2"};
    char dir[FIXTURE_PATH], name[64];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(name, sizeof name, "goldens/%s", names[i]);
        if (!shared_path(dir, name))
            skip();
        check_model(dir);
    }
}

// Several files with an index, larger than a chunk.
static void test_sample(void **state)
{
    check_model(sample);
}

// ---- every byte of a folder

// Reads all tensors as the loader would, whole; false: a read failed.
static bool same_bytes(const struct st_folder *folder, struct errmsg *e)
{
    struct safetensors *disk = NULL, *far = NULL;
    assert_int_equal(safetensors_open_dir(sample, &disk, e), STATUS_OK);
    bool ok = safetensors_open_folder(folder, &far, e) == STATUS_OK;
    if (ok)
        assert_int_equal(safetensors_count(disk), safetensors_count(far));
    for (size_t i = 0; ok && i < safetensors_count(disk); i++) {
        const struct st_tensor *a = safetensors_at(disk, i), *b = safetensors_at(far, i);
        assert_string_equal(a->name, b->name);
        assert_int_equal(a->bytes, b->bytes);
        char *bytes = mem_alloc(a->bytes + 1);
        ok = st_tensor_read(b, 0, b->bytes, bytes, e) == STATUS_OK;
        if (ok)
            assert_memory_equal(a->data, bytes, a->bytes);
        free(bytes);
    }
    safetensors_close(far);
    safetensors_close(disk);
    return ok;
}

// ---- sources that are not what they should be

enum bad {
    BAD_NOTHING,
    BAD_HASH,     // a byte that the checksum does not know
    BAD_SIZE,     // fewer bytes than it says
    BAD_PLACE,    // of another place
    BAD_NUMBER,   // an answer to another request
    BAD_SLOT,     // written over another slot
    BAD_UNASKED,  // an answer that nobody asked for
    BAD_HANG,     // none at all, from the third on
    BAD_DIES,     // from the third on
    BAD_REFUSES,  // "I have no such bytes"
    BAD_LISTING,  // names that lead out of the folder
    BAD_WELCOME,  // numbers out of range
    BAD_STRANGER, // does not have the model
    BADS
};

struct liar {
    enum bad bad;
    struct xport *x;
    struct pull_files *files;
    struct pull_request *requests;
    struct pull_welcome welcome;
    struct pull_answer *memory[PULL_SLOTS];
    struct xlink *link;
    pthread_t thread;
    atomic_bool quit;
    int answers, honest; // so many of weights, at first
};

static void liar_write(struct liar *l, uint64_t offset, const void *src, size_t n, uint32_t notice)
{
    const struct xwrite w = {
        .region = PULL_REGION_ANSWERS, .offset = offset, .src = src, .bytes = n, .notice = notice};
    enum status s = xlink_write(l->link, &w);
    (void)s; // the test sees what comes of it
}

static void liar_welcome(struct liar *l)
{
    size_t n;
    const uint8_t *listing = pull_files_listing(l->files, &n);
    l->welcome = (struct pull_welcome){.magic = PULL_MAGIC,
                                       .listing_bytes = (uint32_t)n,
                                       .listing_hash = hash_bytes(listing, n, 0)};
    if (l->bad == BAD_WELCOME)
        l->welcome.listing_bytes = UINT32_MAX;
    if (l->bad == BAD_STRANGER)
        l->welcome.status = STATUS_NOT_FOUND;
    static const uint8_t way_out[] = {1, 0, 0, 0,   0,   0,   0,   0,   6,
                                      0, 0, 0, '.', '.', '/', 'a', 'b', 0};
    if (l->bad == BAD_LISTING) {
        l->welcome.listing_bytes = sizeof way_out;
        l->welcome.listing_hash = hash_bytes(way_out, sizeof way_out, 0);
    }
    liar_write(l, PULL_AT_WELCOME, &l->welcome, sizeof l->welcome, PULL_NOTICE_WELCOME);
}

static void liar_answer(struct liar *l, uint32_t slot)
{
    const struct pull_request q = l->requests[slot];
    struct pull_answer *a = l->memory[slot];
    *a = (struct pull_answer){.at = q.at, .file = q.file, .bytes = q.bytes, .number = q.number};
    const bool listing = q.file == PULL_LISTING;
    if (l->bad == BAD_LISTING && listing) {
        static const uint8_t way_out[] = {1, 0, 0, 0,   0,   0,   0,   0,   6,
                                          0, 0, 0, '.', '.', '/', 'a', 'b', 0};
        memcpy(a + 1, way_out, sizeof way_out);
    } else {
        a->status = pull_files_read(l->files, q.file, q.at, q.bytes, a + 1);
    }
    a->hash = hash_bytes(a + 1, q.bytes, q.at);
    uint64_t offset = (uint64_t)slot * PULL_SLOT_BYTES;
    size_t n = sizeof *a + q.bytes;
    if (!listing && ++l->answers > l->honest) {
        switch (l->bad) {
        case BAD_HASH:
            ((uint8_t *)(a + 1))[q.bytes / 2] ^= 1;
            break;
        case BAD_SIZE:
            n--;
            break;
        case BAD_PLACE:
            a->at++;
            break;
        case BAD_NUMBER:
            a->number += 7;
            break;
        case BAD_SLOT:
            offset = (uint64_t)((slot + 1) % PULL_SLOTS) * PULL_SLOT_BYTES;
            break;
        case BAD_UNASKED:
            liar_write(l, (PULL_SLOTS - 1) * (uint64_t)PULL_SLOT_BYTES, a, sizeof *a,
                       PULL_SLOTS - 1);
            break;
        case BAD_HANG:
            return;
        case BAD_DIES:
            xlink_close(l->link);
            l->link = NULL;
            return;
        case BAD_REFUSES:
            a->status = STATUS_IO;
            n = sizeof *a;
            break;
        default:
            break;
        }
    }
    liar_write(l, offset, a, n, slot);
}

static void *liar_main(void *arg)
{
    struct liar *l = arg;
    while (!atomic_load(&l->quit)) {
        struct xport_event ev[16];
        int n = xport_poll(l->x, ev, 16);
        for (int i = 0; i < n; i++) {
            if (ev[i].kind == XPORT_LINK_UP) {
                l->link = ev[i].link;
                liar_welcome(l);
            } else if (ev[i].kind == XPORT_LINK_DOWN && ev[i].link == l->link) {
                l->link = NULL;
            } else if (ev[i].kind == XPORT_NOTICE && l->link) {
                liar_answer(l, ev[i].notice);
            }
        }
        if (!n)
            xport_wait(l->x, 20);
    }
    return NULL;
}

static void liar_start(struct liar *l, enum bad bad, int honest)
{
    struct errmsg e = {0};
    void *base = NULL;
    *l = (struct liar){.bad = bad, .honest = honest};
    const struct xport_config config = {.kind = XPORT_TCP};
    assert_int_equal(pull_files_open(sample, fingerprint_of(sample), &l->files, &e), STATUS_OK);
    assert_int_equal(xport_open(&config, &l->x, &e), STATUS_OK);
    assert_int_equal(
        xport_region_create(l->x, PULL_REGION_REQUESTS, PULL_REQUESTS_BYTES, &base, &e), STATUS_OK);
    l->requests = base;
    for (int i = 0; i < PULL_SLOTS; i++)
        l->memory[i] = mem_alloc(PULL_SLOT_BYTES);
    assert_int_equal(pthread_create(&l->thread, NULL, liar_main, l), 0);
}

static void liar_stop(struct liar *l)
{
    atomic_store(&l->quit, true);
    pthread_join(l->thread, NULL);
    xport_close(l->x);
    pull_files_unref(l->files);
    for (int i = 0; i < PULL_SLOTS; i++)
        free(l->memory[i]);
}

static struct weight_source liar_at(const struct liar *l)
{
    return (struct weight_source){.name = "liar", .addresses = {"", xport_address(l->x), ""}};
}

// Beside a good source nothing is lost; alone, the disk gives the rest; without a disk it is an
// error that says whom it was about.
static void test_liars(void **state)
{
    struct pull_server *good = serve(sample, 0);
    struct safetensors *disk = NULL;
    struct errmsg e = {0};
    assert_int_equal(safetensors_open_dir(sample, &disk, &e), STATUS_OK);
    // Generous where a good source must not be given up on a machine that is busy.
    static const uint32_t hang_ms[] = {20000, 3000, 1000};
    for (int bad = BAD_HASH; bad < BADS; bad++) {
        for (int with = 0; with < 3; with++) { // a good source, the disk, nobody
            struct liar l;
            liar_start(&l, (enum bad)bad, with == 1 ? 10 : 2); // headers are not on disk
            struct weight_source sources[] = {liar_at(&l), source_at("good", good, XPORT_SHM)};
            const struct pull_args a = {.sources = sources,
                                        .sources_n = with == 0 ? 2 : 1,
                                        .fingerprint = fingerprint_of(sample),
                                        .disk = with == 1 ? disk : NULL,
                                        .hang_ms = hang_ms[with]};
            struct pull *p = NULL;
            e = (struct errmsg){0};
            const bool opens = pull_open(&a, &p, &e) == STATUS_OK;
            const bool read = opens && same_bytes(pull_folder(p), &e);
            if (with == 0 && !read)
                fail_msg("case %d: %s", bad, e.text);
            if (with == 1 && opens && !read)
                fail_msg("case %d: %s", bad, e.text);
            if (with == 2) {
                assert_false(read);
                assert_non_null(strstr(e.text, "liar"));
            }
            if (opens) {
                const struct pull_stats t = pull_stats_get(p);
                if (with == 1)
                    assert_true(t.disk_bytes > 0 && t.lost == 1);
                else if (with == 0)
                    assert_true(t.disk_bytes == 0);
            }
            pull_close(p);
            liar_stop(&l);
        }
    }
    safetensors_close(disk);
    pull_server_close(good);
}

// ---- targets that are not what they should be

struct rude {
    struct xport *x;
    struct xlink *link;
    uint8_t *answers;
    bool down, welcomed;
    int answered;
    struct pull_request request;
};

static void rude_poll(struct rude *r, int ms)
{
    for (int i = 0; i < ms / 10 + 1; i++) {
        struct xport_event ev[16];
        int n = xport_poll(r->x, ev, 16);
        for (int k = 0; k < n; k++) {
            r->down |= ev[k].kind == XPORT_LINK_DOWN;
            if (ev[k].kind == XPORT_NOTICE && ev[k].notice == PULL_NOTICE_WELCOME)
                r->welcomed = true;
            else if (ev[k].kind == XPORT_NOTICE)
                r->answered++;
        }
        if (r->down || r->answered)
            return;
        xport_wait(r->x, 10);
    }
}

static void rude_connect(struct rude *r, const struct pull_server *s, const void *hello, size_t n)
{
    struct errmsg e = {0};
    void *base = NULL;
    *r = (struct rude){0};
    const struct xport_config config = {.kind = XPORT_TCP};
    assert_int_equal(xport_open(&config, &r->x, &e), STATUS_OK);
    assert_int_equal(xport_region_create(r->x, PULL_REGION_ANSWERS, PULL_ANSWERS_BYTES, &base, &e),
                     STATUS_OK);
    r->answers = base;
    assert_int_equal(
        xport_connect(r->x, pull_server_addresses(s).tcp, hello, n, NULL, &r->link, &e), STATUS_OK);
    for (int i = 0; i < 200 && !r->welcomed && !r->down; i++)
        rude_poll(r, 10);
}

static void rude_ask(struct rude *r, uint64_t offset, size_t bytes, uint32_t notice)
{
    const struct xwrite w = {.region = PULL_REGION_REQUESTS,
                             .offset = offset,
                             .src = &r->request,
                             .bytes = bytes,
                             .notice = notice};
    assert_int_equal(xlink_write(r->link, &w), STATUS_OK);
    rude_poll(r, 3000);
}

static void test_rude_targets(void **state)
{
    struct pull_server *s = serve(sample, 0);
    struct pull_hello hello = {PULL_MAGIC, PULL_VERSION, fingerprint_of(sample)};
    struct rude r;
    const size_t size = sizeof r.request;
    // Requests that cannot be served are answered, by no bytes.
    const struct pull_request bad[] = {
        {.file = 4000, .bytes = 10},
        {.file = 0, .bytes = PULL_CHUNK + 1},
        {.file = 0, .at = UINT64_MAX - 5, .bytes = 10},
        {.file = 0, .at = 1ull << 40, .bytes = 1},
        {.file = PULL_LISTING, .at = 0, .bytes = PULL_CHUNK},
        {.file = PULL_LISTING, .at = UINT64_MAX, .bytes = 2},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        rude_connect(&r, s, &hello, sizeof hello);
        assert_true(r.welcomed);
        r.request = bad[i];
        rude_ask(&r, 0, size, 0);
        assert_true(r.answered == 1 && !r.down);
        assert_true(((struct pull_answer *)(void *)r.answers)->status < 0);
        xport_close(r.x);
    }
    // Requests that lie where they must not end the link.
    const struct {
        uint64_t offset;
        size_t bytes;
        uint32_t notice;
    } misplaced[] = {{PULL_SLOTS * size, size, 0}, {0, size, 1}, {8, size, 0}, {0, size - 1, 0},
                     {0, size, PULL_SLOTS},        {0, 0, 0}};
    for (size_t i = 0; i < sizeof misplaced / sizeof *misplaced; i++) {
        rude_connect(&r, s, &hello, sizeof hello);
        assert_true(r.welcomed);
        r.request = (struct pull_request){.bytes = 8};
        rude_ask(&r, misplaced[i].offset, misplaced[i].bytes, misplaced[i].notice);
        assert_true(r.down && !r.answered);
        xport_close(r.x);
    }
    // And callers that want something else.
    rude_connect(&r, s, "hello", 5);
    assert_true(r.down && !r.welcomed);
    xport_close(r.x);
    hello.fingerprint++;
    rude_connect(&r, s, &hello, sizeof hello);
    assert_true(r.welcomed);
    assert_int_equal(((struct pull_welcome *)(void *)(r.answers + PULL_AT_WELCOME))->status,
                     STATUS_NOT_FOUND);
    xport_close(r.x);
    pull_server_close(s);
}

// A target that stops reading is let go, and another one goes on meanwhile.
static void test_target_that_stops(void **state)
{
    struct pull_server *s = serve(sample, 0);
    struct pull_hello hello = {PULL_MAGIC, PULL_VERSION, fingerprint_of(sample)};
    struct rude r;
    struct errmsg e = {0};
    rude_connect(&r, s, &hello, sizeof hello);
    static struct pull_request requests[PULL_SLOTS];
    struct safetensors *st = NULL;
    assert_int_equal(safetensors_open_dir(sample, &st, &e), STATUS_OK);
    for (uint32_t i = 0; i < PULL_SLOTS; i++) {
        requests[i] = (struct pull_request){.file = 3, .bytes = PULL_CHUNK};
        const struct xwrite w = {.region = PULL_REGION_REQUESTS,
                                 .offset = i * sizeof *requests,
                                 .src = &requests[i],
                                 .bytes = sizeof *requests,
                                 .notice = i};
        assert_int_equal(xlink_write(r.link, &w), STATUS_OK);
    }
    struct xport_event ev[16];
    xport_poll(r.x, ev, 1); // sends; reads no more
    struct weight_source source = source_at("source", s, XPORT_TCP);
    struct pull *p = pull_from(&source, 1, sample);
    assert_true(same_bytes(pull_folder(p), &e));
    pull_close(p);
    safetensors_close(st);
    xport_close(r.x);
    pull_server_close(s);
}

// ---- the rest

static bool stop_now(void *arg)
{
    return atomic_load((atomic_bool *)arg);
}

static void *stop_soon(void *arg)
{
    usleep(100000);
    atomic_store((atomic_bool *)arg, true);
    return NULL;
}

// From a source that hangs, with a long patience: the reader comes back all the same.
static void test_cancel(void **state)
{
    struct liar l;
    struct errmsg e = {0};
    atomic_bool stop = false;
    liar_start(&l, BAD_HANG, 2);
    struct weight_source source = liar_at(&l);
    const struct pull_args a = {.sources = &source,
                                .sources_n = 1,
                                .fingerprint = fingerprint_of(sample),
                                .cancelled = stop_now,
                                .arg = &stop,
                                .hang_ms = 600000};
    struct pull *p = NULL;
    assert_int_equal(pull_open(&a, &p, &e), STATUS_OK);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, stop_soon, &stop), 0);
    assert_false(same_bytes(pull_folder(p), &e));
    assert_non_null(strstr(e.text, "cancelled"));
    pthread_join(thread, NULL);
    pull_close(p);
    liar_stop(&l);
}

// One that answers nothing any more holds up the others' chunks only until they are asked
// elsewhere, long before it is given up.
static void test_slow_source_delays_little(void **state)
{
    struct liar l;
    struct errmsg e = {0};
    liar_start(&l, BAD_HANG, 2);
    struct pull_server *good = serve(sample, 0);
    struct weight_source sources[] = {liar_at(&l), source_at("good", good, XPORT_TCP)};
    const struct pull_args a = {.sources = sources,
                                .sources_n = 2,
                                .fingerprint = fingerprint_of(sample),
                                .hang_ms = 600000};
    struct pull *p = NULL;
    assert_int_equal(pull_open(&a, &p, &e), STATUS_OK);
    if (!same_bytes(pull_folder(p), &e))
        fail_msg("%s", e.text);
    assert_int_equal(pull_stats_get(p).lost, 0);
    pull_close(p);
    pull_server_close(good);
    liar_stop(&l);
}

static void *add_soon(void *arg)
{
    void **what = arg;
    usleep(100000);
    pull_add(what[0], what[1], 2); // the one that is known, and the good one
    return NULL;
}

// A source that comes while the only other one hangs.
static void test_source_that_comes_later(void **state)
{
    struct liar l;
    struct errmsg e = {0};
    liar_start(&l, BAD_HANG, 10);
    struct pull_server *good = serve(sample, 0);
    struct weight_source sources[] = {liar_at(&l), source_at("good", good, XPORT_TCP)};
    const struct pull_args a = {.sources = sources,
                                .sources_n = 1,
                                .fingerprint = fingerprint_of(sample),
                                .hang_ms = 600000};
    struct pull *p = NULL;
    assert_int_equal(pull_open(&a, &p, &e), STATUS_OK);
    void *what[] = {p, sources};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, add_soon, what), 0);
    if (!same_bytes(pull_folder(p), &e))
        fail_msg("%s", e.text);
    pthread_join(thread, NULL);
    char text[256];
    pull_describe(p, text, sizeof text);
    assert_non_null(strstr(text, "node good (tcp)"));
    assert_null(strstr(strstr(text, "liar") + 1, "liar"));
    pull_close(p);
    pull_server_close(good);
    liar_stop(&l);
}

// Another model in the folder, under the same links: refused, not mixed.
static void test_changed_file(void **state)
{
    char dir[] = "/tmp/hadal-pull-XXXXXX", path[128];
    struct errmsg e = {0};
    assert_non_null(mkdtemp(dir));
    static const char config[] = "{\"model_type\":\"qwen2\"}";
    static const char header[] = "{\"x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}";
    char file[256] = {0};
    uint64_t n = sizeof header - 1;
    memcpy(file, &n, 8);
    memcpy(file + 8, header, n);
    write_file(dir, "config.json", config, strlen(config));
    write_file(dir, "model.safetensors", file, 8 + n + 8);
    struct pull_files *f = NULL;
    assert_int_equal(pull_files_open(dir, 1, &f, &e), STATUS_BAD_MODEL);
    assert_int_equal(pull_files_open(dir, fingerprint_of(dir), &f, &e), STATUS_OK);
    char out[16];
    assert_int_equal(pull_files_read(f, 1, 0, 8, out), STATUS_OK);
    usleep(20000);
    file[9]++;
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    FILE *w = fopen(path, "r+b");
    assert_int_equal(fwrite(file, 1, 64, w), 64);
    fclose(w);
    assert_int_equal(pull_files_read(f, 1, 0, 8, out), STATUS_BAD_FILE);
    pull_files_unref(f);
    remove_file(dir, "config.json");
    remove_file(dir, "model.safetensors");
    rmdir(dir);
}

// Where there is an RDMA device: every byte of the sample model, over verbs alone.
static void over_verbs(void **state)
{
    char host[64];
    const char *hosts = getenv("HADAL_VERBS_HOSTS");
    snprintf(host, sizeof host, "%.*s", hosts ? (int)strcspn(hosts, ",") : 0, hosts ? hosts : "");
    struct errmsg e = {0};
    struct pull_files *files = NULL;
    const uint64_t fingerprint = fingerprint_of(sample);
    assert_int_equal(pull_files_open(sample, fingerprint, &files, &e), STATUS_OK);
    struct pull_server *s = pull_server_open(&(struct pull_server_config){.bind = host});
    pull_server_publish(s, files);
    struct weight_source source = {.name = "source",
                                   .addresses = {"", "", pull_server_addresses(s).verbs}};
    assert_true(source.addresses.verbs[0]);
    const struct pull_args a = {.sources = &source,
                                .sources_n = 1,
                                .fingerprint = fingerprint,
                                .bind = host,
                                .hang_ms = 20000};
    struct pull *p = NULL;
    if (pull_open(&a, &p, &e) != STATUS_OK || !same_bytes(pull_folder(p), &e))
        fail_msg("%s", e.text);
    const struct pull_stats t = pull_stats_get(p);
    assert_true(t.bad == 0 && t.lost == 0);
    pull_close(p);
    pull_server_close(s);
}

// "verbs": only over verbs, for tests/rdma-vm.
int main(int argc, char **argv)
{
    log_set_level(LOG_OFF);
    const struct CMUnitTest verbs[] = {cmocka_unit_test(over_verbs)};
    if (argc > 1 && !strcmp(argv[1], "verbs"))
        return cmocka_run_group_tests_name("unit/pull verbs", verbs, NULL, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens),
        cmocka_unit_test(test_sample),
        cmocka_unit_test(test_liars),
        cmocka_unit_test(test_rude_targets),
        cmocka_unit_test(test_target_that_stops),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_slow_source_delays_little),
        cmocka_unit_test(test_source_that_comes_later),
        cmocka_unit_test(test_changed_file),
    };
    return cmocka_run_group_tests_name("unit/pull", tests, NULL, NULL);
}
