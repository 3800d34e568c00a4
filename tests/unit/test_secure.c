// proto/secure.c: who has the key and who has not; bytes in any pieces; bytes that were changed.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/prng.h"
#include "proto/secure.h"

static const char good[] = "c2VjcmV0IGtleSBvZiBhIHRlc3QgY2x1c3Rlcg==";
static const char other[] = "YW5vdGhlciBrZXkgb2YgYW5vdGhlciBjbHVzdGVy";

static const char *key_file(const char *text, mode_t mode)
{
    static char path[64];
    snprintf(path, sizeof path, "/tmp/hadal-key-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    assert_int_equal(fchmod(fd, mode), 0);
    close(fd);
    return path;
}

static struct secure_domain *domain(const char *text)
{
    struct secure_domain *d;
    const char *file = key_file(text, 0600);
    assert_int_equal(secure_domain_open(file, &d, NULL), STATUS_OK);
    unlink(file);
    return d;
}

// Two ends and what is on the way to each.
struct ends {
    struct secure_domain *domains[2];
    struct secure *s[2]; // client, server
    struct strbuf wire[2], plain[2];
    size_t given[2]; // of wire
    enum status status[2];
    struct errmsg e[2];
};

static void ends_open(struct ends *t, const char *client_key, const char *server_key)
{
    *t = (struct ends){.domains = {domain(client_key), domain(server_key)}};
    for (int i = 0; i < 2; i++)
        t->s[i] = secure_open(t->domains[i], i == 1);
    secure_greet(t->s[0], &t->wire[1]);
    assert_int_equal(t->wire[1].v[0], SECURE_FIRST);
}

static void ends_close(struct ends *t)
{
    for (int i = 0; i < 2; i++) {
        secure_close(t->s[i]);
        secure_domain_close(t->domains[i]);
        strbuf_finish(&t->wire[i]);
        strbuf_finish(&t->plain[i]);
    }
}

// Hands over what is on the way, in pieces of at most `piece` bytes.
static void ends_pass(struct ends *t, size_t piece)
{
    for (bool moved = true; moved;) {
        moved = false;
        for (int i = 0; i < 2; i++) {
            size_t left = t->wire[i].n - t->given[i];
            if (!left || t->status[i] != STATUS_OK)
                continue;
            size_t n = left < piece ? left : piece;
            char copy[70000];
            memcpy(copy, t->wire[i].v + t->given[i], n);
            t->given[i] += n;
            t->status[i] = secure_feed(t->s[i], copy, n, &t->plain[i], &t->wire[!i], &t->e[i]);
            moved = true;
        }
    }
}

static void test_bytes_arrive_in_any_pieces(void **state)
{
    static const size_t pieces[] = {1, 7, 100, 65536};
    for (size_t p = 0; p < 4; p++) {
        struct ends t;
        struct strbuf said[2] = {{0}};
        struct prng r;
        prng_seed(&r, p);
        ends_open(&t, good, good);
        assert_int_equal(secure_seal(t.s[0], "x", 1, &t.wire[1]), STATUS_AGAIN);
        ends_pass(&t, pieces[p]);
        assert_true(secure_is_up(t.s[0]) && secure_is_up(t.s[1]));
        for (int i = 0; i < 20; i++) {
            int from = (int)prng_below(&r, 2);
            size_t n = (size_t)prng_below(&r, 40000), before = t.wire[!from].n;
            unsigned char *bytes = malloc(n + 1);
            for (size_t k = 0; k < n; k++)
                bytes[k] = (unsigned char)prng_below(&r, 256);
            assert_int_equal(secure_seal(t.s[from], bytes, n, &t.wire[!from]), STATUS_OK);
            if (n > 64) // it is not to be read on the way
                assert_null(memmem(t.wire[!from].v + before, t.wire[!from].n - before, bytes, 32));
            strbuf_add(&said[!from], bytes, n);
            free(bytes);
            if (i % 3 == 0)
                ends_pass(&t, pieces[p]);
        }
        ends_pass(&t, pieces[p]);
        for (int i = 0; i < 2; i++) {
            assert_int_equal(t.status[i], STATUS_OK);
            assert_int_equal(t.plain[i].n, said[i].n);
            assert_memory_equal(t.plain[i].v, said[i].v, said[i].n);
            strbuf_finish(&said[i]);
        }
        ends_close(&t);
    }
}

static void test_another_key(void **state)
{
    struct ends t;
    ends_open(&t, other, good);
    ends_pass(&t, 65536);
    assert_int_equal(t.status[1], STATUS_LINK_PROTOCOL);
    assert_non_null(strstr(t.e[1].text, "has not our cluster_key"));
    assert_true(!secure_is_up(t.s[0]) && !secure_is_up(t.s[1]));
    assert_int_equal(t.plain[1].n, 0);
    ends_close(&t);
}

// Every byte of the handshake and of a record, changed: the other end fails or waits, and gives no
// plain text.
static void test_changed_bytes(void **state)
{
    for (size_t at = 0; at < 2000; at += 13) {
        struct ends t;
        ends_open(&t, good, good);
        bool done = false;
        size_t sent = 0;
        for (int round = 0; round < 6 && !done; round++) {
            for (int i = 0; i < 2; i++) {
                size_t left = t.wire[i].n - t.given[i];
                if (!left || t.status[i] != STATUS_OK)
                    continue;
                if (!done && at >= sent && at < sent + left) {
                    t.wire[i].v[t.given[i] + at - sent] ^= 0x40;
                    done = true;
                }
                sent += left;
            }
            ends_pass(&t, 65536);
            if (secure_is_up(t.s[0]) && t.status[0] == STATUS_OK)
                (void)secure_seal(t.s[0], "secret", 6, &t.wire[1]);
        }
        bool both_fine = t.status[0] == STATUS_OK && t.status[1] == STATUS_OK;
        if (done && both_fine) // a length that now wants more bytes
            assert_true(!secure_is_up(t.s[1]) || t.plain[1].n % 6 == 0);
        for (size_t i = 0; i + 6 <= t.plain[1].n; i += 6)
            assert_memory_equal(t.plain[1].v + i, "secret", 6);
        ends_close(&t);
    }
}

static void test_strangers(void **state)
{
    static const char *const said[] = {"HD\1\2 a frame in the clear", "GET / HTTP/1.1\r\n\r\n",
                                       "\x16"
                                       "\x03\x01\xff\xffxxxxxxxx"};
    for (size_t i = 0; i < 3; i++) {
        struct secure_domain *d = domain(good);
        struct secure *s = secure_open(d, true);
        struct strbuf plain = {0}, wire = {0};
        struct errmsg e;
        assert_int_equal(secure_feed(s, said[i], strlen(said[i]), &plain, &wire, &e),
                         STATUS_LINK_PROTOCOL);
        assert_int_equal(plain.n, 0);
        secure_close(s);
        secure_domain_close(d);
        strbuf_finish(&plain);
        strbuf_finish(&wire);
    }
}

// A server that has no key but a certificate must not pass for a leader.
static void test_a_certificate_is_no_key(void **state)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = X509_new();
    X509_set_version(cert, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
    X509_gmtime_adj(X509_getm_notBefore(cert), -60);
    X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
    X509_set_pubkey(cert, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC,
                               (const unsigned char *)"leader", -1, -1, 0);
    X509_set_issuer_name(cert, X509_get_subject_name(cert));
    assert_true(X509_sign(cert, key, EVP_sha256()) > 0);
    SSL_CTX *ctx = SSL_CTX_new(TLS_method());
    assert_int_equal(SSL_CTX_use_certificate(ctx, cert), 1);
    assert_int_equal(SSL_CTX_use_PrivateKey(ctx, key), 1);
    SSL *server = SSL_new(ctx);
    BIO *in = BIO_new(BIO_s_mem()), *out = BIO_new(BIO_s_mem());
    SSL_set_bio(server, in, out);
    SSL_set_accept_state(server);

    struct secure_domain *d = domain(good);
    struct secure *s = secure_open(d, false);
    struct strbuf wire = {0}, plain = {0};
    struct errmsg e;
    secure_greet(s, &wire);
    BIO_write(in, wire.v, (int)wire.n);
    SSL_do_handshake(server);
    char *bytes;
    long n = BIO_get_mem_data(out, &bytes);
    assert_true(n > 0); // it does answer
    assert_int_equal(secure_feed(s, bytes, (size_t)n, &plain, &wire, &e), STATUS_LINK_PROTOCOL);
    assert_false(secure_is_up(s));
    secure_close(s);
    secure_domain_close(d);
    strbuf_finish(&plain);
    strbuf_finish(&wire);
    SSL_free(server);
    SSL_CTX_free(ctx);
    X509_free(cert);
    EVP_PKEY_free(key);
}

static void test_key_files(void **state)
{
    char longest[1200];
    memset(longest, 'k', sizeof longest);
    longest[1100] = 0;
    const struct {
        const char *text;
        mode_t mode;
        const char *why;
    } bad[] = {
        {"too short", 0600, "has 9 characters"},
        {"\n\n   \n", 0600, "has 0 characters"},
        {longest, 0600, "more than 1024"},
        {good, 0644, "chmod 600"},
        {good, 0660, "chmod 600"},
    };
    struct secure_domain *d, *e;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct errmsg err = {{0}};
        const char *file = key_file(bad[i].text, bad[i].mode);
        assert_int_equal(secure_domain_open(file, &d, &err), STATUS_BAD_CONFIG);
        assert_non_null(strstr(err.text, bad[i].why));
        assert_non_null(strstr(err.text, file));
        unlink(file);
    }
    struct errmsg err = {{0}};
    assert_int_equal(secure_domain_open("/nowhere/key", &d, &err), STATUS_BAD_CONFIG);
    assert_non_null(strstr(err.text, "/nowhere/key: No such file"));
    // White space at the ends is none of the key.
    char padded[80];
    snprintf(padded, sizeof padded, "\n %s\r\n", good);
    struct ends t;
    ends_open(&t, padded, good);
    ends_pass(&t, 65536);
    assert_true(secure_is_up(t.s[0]) && secure_is_up(t.s[1]));
    ends_close(&t);
    (void)e;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes_arrive_in_any_pieces),
        cmocka_unit_test(test_another_key),
        cmocka_unit_test(test_changed_bytes),
        cmocka_unit_test(test_strangers),
        cmocka_unit_test(test_a_certificate_is_no_key),
        cmocka_unit_test(test_key_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
