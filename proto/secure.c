#include "proto/secure.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"

enum { PSK_BYTES = 32, PIECE = 16 << 10 };

enum key { KEY_CLUSTER, KEY_CLIENT, KEYS };
static const char *const identities[KEYS] = {"hadal cluster", "hadal client"};

struct secure_domain {
    SSL_CTX *ctx;
    bool has[KEYS];
    unsigned char psk[KEYS][PSK_BYTES];
};

struct secure {
    SSL *ssl;
    BIO *in, *out; // owned by ssl
    enum key key;  // that the peer has, once up
    bool up;
};

// ---- the key

static enum status key_text(const char *file, const char *setting, char *text, size_t *n_out,
                            struct errmsg *e)
{
    FILE *f = fopen(file, "re");
    struct stat st;
    if (!f || fstat(fileno(f), &st) < 0) {
        int err = errno;
        if (f)
            fclose(f);
        return errmsg_set(e, STATUS_BAD_CONFIG, "%s: %s: %s", setting, file, strerror(err));
    }
    size_t n = fread(text, 1, SECURE_KEY_MAX + 1, f);
    fclose(f);
    if (S_ISREG(st.st_mode) && (st.st_mode & 077))
        return errmsg_set(e, STATUS_BAD_CONFIG,
                          "%s: %s may be read or written by others (mode %03o): chmod 600", setting,
                          file, (unsigned)(st.st_mode & 0777));
    size_t from = 0;
    while (n && strchr(" \t\r\n", text[n - 1]))
        n--;
    while (from < n && strchr(" \t\r\n", text[from]))
        from++;
    memmove(text, text + from, n - from);
    *n_out = n - from;
    if (*n_out < SECURE_KEY_MIN || *n_out > SECURE_KEY_MAX)
        return errmsg_set(
            e, STATUS_BAD_CONFIG,
            "%s: %s has %s%zu characters; %d to %d are wanted, as in `head -c 32 /dev/urandom | "
            "base64`",
            setting, file, *n_out > SECURE_KEY_MAX ? "more than " : "",
            *n_out > SECURE_KEY_MAX ? (size_t)SECURE_KEY_MAX : *n_out, SECURE_KEY_MIN,
            SECURE_KEY_MAX);
    return STATUS_OK;
}

// A TLS 1.3 session that never was: how OpenSSL takes an external key.
static SSL_SESSION *session_of(SSL *ssl, enum key key)
{
    static const unsigned char aes128[2] = {0x13, 0x01};
    struct secure_domain *d = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
    const SSL_CIPHER *cipher = SSL_CIPHER_find(ssl, aes128);
    SSL_SESSION *s = SSL_SESSION_new();
    if (!s || !cipher || !SSL_SESSION_set1_master_key(s, d->psk[key], PSK_BYTES) ||
        !SSL_SESSION_set_cipher(s, cipher) ||
        !SSL_SESSION_set_protocol_version(s, TLS1_3_VERSION)) {
        SSL_SESSION_free(s);
        return NULL;
    }
    return s;
}

static int on_use(SSL *ssl, const EVP_MD *md, const unsigned char **id, size_t *id_n,
                  SSL_SESSION **session)
{
    struct secure *s = SSL_get_app_data(ssl);
    struct secure_domain *d = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
    s->key = d->has[KEY_CLUSTER] ? KEY_CLUSTER : KEY_CLIENT;
    *id = (const unsigned char *)identities[s->key];
    *id_n = strlen(identities[s->key]);
    *session = session_of(ssl, s->key);
    return *session != NULL;
}

static int on_find(SSL *ssl, const unsigned char *id, size_t id_n, SSL_SESSION **session)
{
    struct secure *s = SSL_get_app_data(ssl);
    const struct secure_domain *d = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
    *session = NULL;
    for (enum key k = 0; k < KEYS; k++)
        if (d->has[k] && id_n == strlen(identities[k]) && !memcmp(id, identities[k], id_n)) {
            s->key = k;
            *session = session_of(ssl, k);
        }
    return 1; // without a session the handshake goes on, and ends for want of a certificate
}

static enum status set_key(struct secure_domain *d, enum key key, const char *file,
                           const char *setting, struct errmsg *e)
{
    char text[SECURE_KEY_MAX + 1];
    size_t n = 0;
    unsigned digest_n = 0;
    enum status s = key_text(file, setting, text, &n, e);
    if (s == STATUS_OK && !EVP_Digest(text, n, d->psk[key], &digest_n, EVP_sha256(), NULL))
        s = errmsg_set(e, STATUS_INTERNAL, "%s: OpenSSL: no SHA-256", setting);
    OPENSSL_cleanse(text, sizeof text);
    d->has[key] = s == STATUS_OK;
    return s;
}

static enum status make(enum key key, const char *file, const char *setting,
                        struct secure_domain **out, struct errmsg *e)
{
    struct secure_domain *d = mem_zalloc(1, sizeof *d);
    enum status s = set_key(d, key, file, setting, e);
    if (s != STATUS_OK) {
        free(d);
        return s;
    }
    d->ctx = SSL_CTX_new(TLS_method());
    bool ok = d->ctx && SSL_CTX_set_min_proto_version(d->ctx, TLS1_3_VERSION) &&
              SSL_CTX_set_ciphersuites(d->ctx, "TLS_AES_128_GCM_SHA256") &&
              SSL_CTX_set_num_tickets(d->ctx, 0);
    if (!ok) {
        secure_domain_close(d);
        return errmsg_set(e, STATUS_INTERNAL, "%s: OpenSSL: %s", setting,
                          ERR_reason_error_string(ERR_get_error()));
    }
    SSL_CTX_set_session_cache_mode(d->ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(d->ctx, SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_app_data(d->ctx, d);
    SSL_CTX_set_psk_use_session_callback(d->ctx, on_use);
    SSL_CTX_set_psk_find_session_callback(d->ctx, on_find);
    *out = d;
    return STATUS_OK;
}

enum status secure_domain_open(const char *file, struct secure_domain **out, struct errmsg *e)
{
    return make(KEY_CLUSTER, file, "cluster_key", out, e);
}

enum status secure_domain_client(const char *file, const char *setting, struct secure_domain **d,
                                 struct errmsg *e)
{
    return *d ? set_key(*d, KEY_CLIENT, file, setting, e) : make(KEY_CLIENT, file, setting, d, e);
}

void secure_domain_close(struct secure_domain *d)
{
    if (!d)
        return;
    SSL_CTX_free(d->ctx);
    OPENSSL_cleanse(d->psk, sizeof d->psk);
    free(d);
}

// ---- a connection

struct secure *secure_open(struct secure_domain *d, bool server)
{
    struct secure *s = mem_zalloc(1, sizeof *s);
    s->ssl = SSL_new(d->ctx);
    s->in = BIO_new(BIO_s_mem());
    s->out = BIO_new(BIO_s_mem());
    if (!s->ssl || !s->in || !s->out) {
        fprintf(stderr, "out of memory: a TLS session\n");
        abort();
    }
    SSL_set_app_data(s->ssl, s);
    SSL_set_bio(s->ssl, s->in, s->out);
    if (server) {
        SSL_set_accept_state(s->ssl);
    } else {
        SSL_set_connect_state(s->ssl);
        // A server without our key could show some certificate instead: none is trusted.
        SSL_set_verify(s->ssl, SSL_VERIFY_PEER, NULL);
    }
    return s;
}

void secure_close(struct secure *s)
{
    if (!s)
        return;
    SSL_free(s->ssl);
    free(s);
}

static void take_out(struct secure *s, struct strbuf *wire)
{
    char *bytes;
    long n = BIO_get_mem_data(s->out, &bytes);
    if (n > 0)
        strbuf_add(wire, bytes, (size_t)n);
    (void)BIO_reset(s->out);
}

static enum status failed(struct errmsg *e)
{
    const char *why = ERR_reason_error_string(ERR_get_error());
    ERR_clear_error();
    return errmsg_set(e, STATUS_LINK_PROTOCOL, "the peer has not our cluster_key (TLS: %s)",
                      why ? why : "handshake failed");
}

// OK, or AGAIN while the peer's part is awaited.
static enum status shake(struct secure *s, struct errmsg *e)
{
    ERR_clear_error();
    int rc = SSL_do_handshake(s->ssl);
    if (rc == 1) {
        // Only a session that both made from the key counts as resumed.
        if (!SSL_session_reused(s->ssl))
            return failed(e);
        s->up = true;
        return STATUS_OK;
    }
    return SSL_get_error(s->ssl, rc) == SSL_ERROR_WANT_READ ? STATUS_AGAIN : failed(e);
}

void secure_greet(struct secure *s, struct strbuf *wire)
{
    struct errmsg e;
    enum status st = shake(s, &e);
    assert(st == STATUS_AGAIN);
    (void)st;
    take_out(s, wire);
}

enum status secure_feed(struct secure *s, const void *bytes, size_t n, struct strbuf *plain,
                        struct strbuf *wire, struct errmsg *e)
{
    enum status st = STATUS_OK;
    if (n > INT_MAX || BIO_write(s->in, bytes, (int)n) != (int)n)
        return errmsg_set(e, STATUS_NO_MEMORY, "TLS: no room for %zu bytes", n);
    if (!s->up)
        st = shake(s, e);
    while (st == STATUS_OK) {
        char piece[PIECE];
        ERR_clear_error();
        int got = SSL_read(s->ssl, piece, sizeof piece);
        if (got > 0) {
            strbuf_add(plain, piece, (size_t)got);
            continue;
        }
        int why = SSL_get_error(s->ssl, got);
        if (why == SSL_ERROR_WANT_READ)
            break;
        st = why == SSL_ERROR_ZERO_RETURN ? errmsg_set(e, STATUS_LINK_DOWN, "the peer said goodbye")
                                          : failed(e);
    }
    take_out(s, wire);
    return st == STATUS_AGAIN ? STATUS_OK : st;
}

enum status secure_seal(struct secure *s, const void *bytes, size_t n, struct strbuf *wire)
{
    if (!s->up)
        return STATUS_AGAIN;
    for (size_t at = 0; at < n;) {
        size_t piece = n - at < PIECE ? n - at : PIECE;
        ERR_clear_error();
        int put = SSL_write(s->ssl, (const char *)bytes + at, (int)piece);
        if (put <= 0) {
            ERR_clear_error();
            return STATUS_LINK_DOWN; // memory takes all: only a broken session refuses
        }
        at += (size_t)put;
    }
    take_out(s, wire);
    return STATUS_OK;
}

bool secure_take(struct secure *s, struct strbuf *out, struct strbuf *wire, struct strbuf *sending)
{
    struct strbuf *next = out;
    if (s) {
        if (out->n && secure_seal(s, out->v, out->n, wire) == STATUS_OK)
            strbuf_clear(out);
        next = wire;
    }
    if (!next->n)
        return false;
    struct strbuf swap = *sending;
    *sending = *next;
    *next = swap;
    strbuf_clear(next);
    return true;
}

bool secure_is_up(const struct secure *s)
{
    return s->up;
}

bool secure_is_kin(const struct secure *s)
{
    return s->up && s->key == KEY_CLUSTER;
}
