// node/transports.c: which transport a replica's ranks choose, and when RDMA rests.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "node/rails.h"
#include "node/transports.h"

// Two ranks; what each offers, of "stv" (shared memory, TCP, verbs).
struct pair {
    const char *hosts[2], *offers[2];
};

static enum status choose(enum transport_choice choice, const struct pair *p, enum xport_kind *kind,
                          int *fallback, struct errmsg *e)
{
    struct transport t = {.kind = *kind};
    struct link_member m[2];
    for (int i = 0; i < 2; i++)
        m[i] = (struct link_member){
            .name = i ? "beta" : "alpha",
            .host = p->hosts[i],
            .addresses = {.shm = strchr(p->offers[i], 's') ? "shm:1" : "",
                          .tcp = strchr(p->offers[i], 't') ? "tcp:1" : "",
                          .verbs = strchr(p->offers[i], 'v') ? "verbs:1" : ""}};
    const struct transports_want want = {.choice = choice, .members = m, .members_n = 2};
    enum status s = transports_choose(&want, &t, fallback, e);
    *kind = t.kind;
    return s;
}

static void test_choice(void **state)
{
    static const struct {
        enum transport_choice choice;
        struct pair ranks;
        enum xport_kind kind;
        int fallback;
    } cases[] = {
        {TRANSPORT_AUTO, {{"a", "a"}, {"stv", "stv"}}, XPORT_SHM, -1},
        {TRANSPORT_AUTO, {{"a", "b"}, {"stv", "stv"}}, XPORT_VERBS, -1},
        {TRANSPORT_AUTO, {{"a", "b"}, {"stv", "st"}}, XPORT_TCP, -1},
        {TRANSPORT_AUTO, {{"a", "a"}, {"tv", "stv"}}, XPORT_VERBS, -1},
        {TRANSPORT_SHM, {{"a", "a"}, {"stv", "stv"}}, XPORT_SHM, -1},
        {TRANSPORT_TCP, {{"a", "a"}, {"stv", "stv"}}, XPORT_TCP, -1},
        {TRANSPORT_VERBS, {{"a", "a"}, {"stv", "stv"}}, XPORT_VERBS, -1},
        {TRANSPORT_VERBS, {{"a", "b"}, {"stv", "st"}}, XPORT_TCP, 1},
        {TRANSPORT_VERBS, {{"a", "b"}, {"t", "tv"}}, XPORT_TCP, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        enum xport_kind kind = XPORT_KINDS;
        int fallback = -2;
        struct errmsg e = {0};
        assert_int_equal(choose(cases[i].choice, &cases[i].ranks, &kind, &fallback, &e), STATUS_OK);
        assert_int_equal(kind, cases[i].kind);
        assert_int_equal(fallback, cases[i].fallback);
    }
}

static void test_nothing_in_common_names_the_rank(void **state)
{
    static const struct {
        enum transport_choice choice;
        struct pair ranks;
        const char *text;
    } cases[] = {
        {TRANSPORT_SHM, {{"a", "b"}, {"stv", "stv"}}, "node beta cannot be reached over shm"},
        {TRANSPORT_TCP, {{"a", "b"}, {"sv", "stv"}}, "node alpha cannot be reached over tcp"},
        {TRANSPORT_VERBS, {{"a", "b"}, {"tv", "s"}}, "node beta cannot be reached over tcp"},
        {TRANSPORT_AUTO, {{"a", "b"}, {"", "stv"}}, "node alpha cannot be reached over tcp"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        enum xport_kind kind = XPORT_KINDS;
        int fallback = -2;
        struct errmsg e = {0};
        assert_int_equal(choose(cases[i].choice, &cases[i].ranks, &kind, &fallback, &e),
                         STATUS_BAD_CONFIG);
        assert_non_null(strstr(e.text, cases[i].text));
        assert_int_equal(kind, XPORT_KINDS); // written only on success
    }
}

// The rail that replica `replica` of two ranks takes; 99: not over verbs.
static uint32_t rail_of(const char *a, const char *b, uint64_t replica)
{
    const struct link_member m[2] = {
        {.name = "alpha",
         .host = "a",
         .addresses = {.shm = "", .tcp = "tcp:1", .verbs = (char *)a}},
        {.name = "beta",
         .host = "b",
         .addresses = {.shm = "", .tcp = "tcp:1", .verbs = (char *)b}}};
    const struct transports_want want = {
        .choice = TRANSPORT_AUTO, .members = m, .members_n = 2, .replica = replica};
    struct transport t;
    int fallback;
    assert_int_equal(transports_choose(&want, &t, &fallback, NULL), STATUS_OK);
    return t.kind == XPORT_VERBS ? t.rail : 99;
}

static void test_rails(void **state)
{
    // Dealt out over those that both offer.
    assert_int_equal(rail_of("a0,a1,a2", "b0,b1,b2", 0), 0);
    assert_int_equal(rail_of("a0,a1,a2", "b0,b1,b2", 1), 1);
    assert_int_equal(rail_of("a0,a1,a2", "b0,b1,b2", 5), 2);
    // One that rests on either side is left out, and none is over TCP.
    assert_int_equal(rail_of(",a1,a2", "b0,b1,", 7), 1);
    assert_int_equal(rail_of("a0", "b0,b1,b2", 7), 0);
    assert_int_equal(rail_of("a0,", ",b1", 0), 99);
    assert_int_equal(rail_of("", "b0,b1", 0), 99);
    assert_int_equal(rail_of(",,,,,,,,a8", ",,,,,,,,b8", 0), 99); // there are eight at most
    char buf[LIMIT_ADDR], longest[2 * LIMIT_ADDR] = {0};
    memset(longest, 'x', LIMIT_ADDR); // would not fit: not offered, rather than cut
    const struct rank_addresses odd = {.verbs = longest};
    assert_string_equal(transports_address(&odd, (struct transport){XPORT_VERBS, 0}, buf), "");
    const struct rank_addresses two = {.shm = "s", .verbs = "a0,[fe80::1]:7#2"};
    assert_string_equal(transports_address(&two, (struct transport){XPORT_VERBS, 1}, buf),
                        "[fe80::1]:7#2");
    assert_string_equal(transports_address(&two, (struct transport){XPORT_SHM, 0}, buf), "s");
    assert_string_equal(transports_address(&two, (struct transport){XPORT_TCP, 0}, buf), "");
}

// A folder as /sys/class/infiniband has it.
static void put(const char *root, const char *path, const char *text)
{
    char at[512];
    snprintf(at, sizeof at, "%s/class/infiniband/%s", root, path);
    for (char *slash = strchr(at + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(at, 0755);
        *slash = '/';
    }
    FILE *f = fopen(at, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void put_port(const char *root, const char *device, const char *state, const char *ip,
                     int numa)
{
    char path[256], text[64];
    const struct {
        const char *file, *text;
    } files[] = {{"ports/1/state", state},
                 {"ports/1/link_layer", "Ethernet"},
                 {"ports/1/gids/0", text},
                 {"ports/1/gid_attrs/types/0", "RoCE v2"},
                 {"ports/1/gid_attrs/ndevs/0", "eth0"}};
    unsigned a, b, c, d;
    assert_int_equal(sscanf(ip, "%u.%u.%u.%u", &a, &b, &c, &d), 4);
    snprintf(text, sizeof text, "0000:0000:0000:0000:0000:ffff:%02x%02x:%02x%02x", a, b, c, d);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s", device, files[i].file);
        put(root, path, files[i].text);
    }
    snprintf(path, sizeof path, "%s/device/numa_node", device);
    snprintf(text, sizeof text, "%d", numa);
    put(root, path, text);
}

static void test_rails_are_found(void **state)
{
    char root[] = "/tmp/hadal-sysfs-XXXXXX", remove[64];
    assert_non_null(mkdtemp(root));
    put_port(root, "mlx5_0", "4: ACTIVE", "10.0.0.7", 0);
    put_port(root, "mlx5_1", "4: ACTIVE", "10.1.0.7", 1);
    put_port(root, "mlx5_2", "1: DOWN", "10.2.0.7", 1);
    put_port(root, "mlx5_3", "4: ACTIVE", "10.3.0.7", 1);
    put_port(root, "mlx5_4", "4: ACTIVE", "127.0.0.1", 1); // nobody reaches it there
    static const struct {
        const char *rdma, *bind;
        int numa;
        const char *want; // with spaces between; NULL: an error
    } cases[] = {
        {"auto", "192.168.0.1", 0, "10.0.0.7 10.1.0.7 10.3.0.7 "},
        {"auto", "192.168.0.1", 1, "10.1.0.7 10.3.0.7 10.0.0.7 "},
        {"auto", "127.0.0.1", -1, "10.0.0.7 10.1.0.7 10.3.0.7 "},
        {"auto", "10.1.0.7", 0, "10.1.0.7 "},
        {"off", "10.1.0.7", 0, ""},
        {"10.3.0.7, 10.0.0.7", "10.1.0.7", 0, "10.3.0.7 10.0.0.7 "},
        {"fd00::7", "x", 0, "fd00::7 "},
        {"mlx5_0", "x", 0, NULL},
        {"10.0.0.7,", "x", 0, NULL},
        {"10.0.0.7,10.0.0.7", "x", 0, NULL},
        {"1.1.1.1,1.1.1.2,1.1.1.3,1.1.1.4,1.1.1.5,1.1.1.6,1.1.1.7,1.1.1.8,1.1.1.9", "x", 0, NULL},
        {"", "x", 0, NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct rails rails;
        struct errmsg e = {{0}};
        const struct rails_want want = {cases[i].rdma, cases[i].bind, root, cases[i].numa};
        enum status s = rails_find(&want, &rails, &e);
        if (!cases[i].want) {
            assert_int_equal(s, STATUS_BAD_CONFIG);
            assert_memory_equal(e.text, "rdma: ", 6);
            continue;
        }
        assert_int_equal(s, STATUS_OK);
        char got[512] = "";
        for (uint32_t k = 0; k < rails.n; k++)
            snprintf(got + strlen(got), sizeof got - strlen(got), "%s ", rails.hosts[k]);
        assert_string_equal(got, cases[i].want);
    }
    struct rails rails; // a host without any: the verbs body says so when it is opened
    assert_int_equal(rails_find(&(struct rails_want){"auto", "x", "/nowhere", -1}, &rails, NULL),
                     STATUS_OK);
    assert_int_equal(rails.n, 1);
    assert_string_equal(rails.hosts[0], "");
    snprintf(remove, sizeof remove, "rm -r %s", root);
    assert_int_equal(system(remove), 0);
}

static void test_three_faults_in_ten_seconds_rest(void **state)
{
    struct rdma_rest r = {0};
    assert_true(rdma_rest_offers(&r, 0));
    assert_false(rdma_rest_fault(&r, 1000, false));
    assert_false(rdma_rest_fault(&r, 2000, false));
    assert_false(rdma_rest_fault(&r, 11500, false)); // the first is too long ago
    assert_true(rdma_rest_offers(&r, 11500));
    assert_true(rdma_rest_fault(&r, 11900, false));
    assert_false(rdma_rest_offers(&r, 11900));
    assert_false(rdma_rest_offers(&r, 11900 + RDMA_REST_MS - 1));
    assert_true(rdma_rest_offers(&r, 11900 + RDMA_REST_MS));
    assert_int_equal(r.rests, 1);
}

static void test_rests_double_while_faults_come_back(void **state)
{
    struct rdma_rest r = {0};
    uint64_t now = 1;
    for (uint64_t want = RDMA_REST_MS; want < 4 * (uint64_t)RDMA_REST_MAX_MS; want *= 2) {
        assert_true(rdma_rest_fault(&r, now, true));
        assert_int_equal(r.rest_ms, want < RDMA_REST_MAX_MS ? want : RDMA_REST_MAX_MS);
        assert_false(rdma_rest_fault(&r, now + 1, true)); // resting: nothing was over verbs
        now = r.until_ms + 5000;
    }
    now = r.until_ms + RDMA_FAULT_WINDOW_MS; // it held for a while: from the start
    assert_true(rdma_rest_fault(&r, now, true));
    assert_int_equal(r.rest_ms, RDMA_REST_MS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice),
        cmocka_unit_test(test_nothing_in_common_names_the_rank),
        cmocka_unit_test(test_rails),
        cmocka_unit_test(test_rails_are_found),
        cmocka_unit_test(test_three_faults_in_ten_seconds_rest),
        cmocka_unit_test(test_rests_double_while_faults_come_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
