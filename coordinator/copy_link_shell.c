#include "coordinator/copy_link_shell.h"

#include <stdlib.h>

#include "base/mem.h"
#include "proto/secure.h"

enum {
    CONNECT_MS = 2000,
    SILENT_MS = 3500, // a leader says STATE every second
};

struct copy_link {
    struct copy_link_args args;
    uv_tcp_t tcp;
    uv_connect_t connecting;
    uv_write_t write;
    struct wire_decoder in;
    struct secure *secure; // owned; NULL: in the clear
    struct strbuf wire;    // of `secure`: sealed, not written yet
    struct strbuf plain;   // of one read
    struct strbuf out, sending;
    uint64_t heard_us;
    bool up, writing, closing;
    char buffer[64 << 10];
};

static void on_closed(uv_handle_t *h)
{
    struct copy_link *l = h->data;
    wire_decoder_finish(&l->in);
    secure_close(l->secure);
    strbuf_finish(&l->wire);
    strbuf_finish(&l->plain);
    strbuf_finish(&l->out);
    strbuf_finish(&l->sending);
    free(l);
}

void copy_link_drop(struct copy_link *l)
{
    if (!l || l->closing)
        return;
    l->closing = true;
    uv_close((uv_handle_t *)&l->tcp, on_closed);
}

static void broken(struct copy_link *l, const char *why)
{
    if (l->closing)
        return;
    copy_link_drop(l);
    l->args.down(l->args.arg, why, l->up);
}

// ---- writing ------------------------------------------------------------------------------------

static void flush(struct copy_link *l);

static void on_written(uv_write_t *w, int status)
{
    struct copy_link *l = w->data;
    l->writing = false;
    if (status < 0)
        broken(l, uv_strerror(status));
    else
        flush(l);
}

static void flush(struct copy_link *l)
{
    if (l->writing || l->closing)
        return;
    if (!secure_take(l->secure, &l->out, &l->wire, &l->sending))
        return;
    uv_buf_t buf = uv_buf_init(l->sending.v, (unsigned)l->sending.n);
    l->write.data = l;
    l->writing = true;
    int rc = uv_write(&l->write, (uv_stream_t *)&l->tcp, &buf, 1, on_written);
    if (rc) {
        l->writing = false;
        broken(l, uv_strerror(rc));
    }
}

void copy_link_say(struct copy_link *l, const struct copy *c)
{
    if (!l || l->closing)
        return;
    struct wire_arena arena = {0};
    if (wire_encode_copy(&arena, c, &l->out))
        log_error("coordinator: a word to another coordinator is too large");
    wire_arena_finish(&arena);
    flush(l);
}

// ---- reading ------------------------------------------------------------------------------------

// False: the link is closing.
static bool unseal(struct copy_link *l, const char **bytes, size_t *n)
{
    struct errmsg err = {0};
    if (!l->secure)
        return true;
    strbuf_clear(&l->plain);
    enum status st = secure_feed(l->secure, *bytes, *n, &l->plain, &l->wire, &err);
    flush(l);
    if (st)
        broken(l, err.text);
    *bytes = l->plain.v;
    *n = l->plain.n;
    return !l->closing;
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct copy_link *l = stream->data;
    struct errmsg err = {0};
    struct wire_frame f;
    const char *bytes = buf->base;
    size_t bytes_n = n > 0 ? (size_t)n : 0;
    if (n == 0 || l->closing)
        return;
    if (n < 0) {
        broken(l, uv_strerror((int)n));
        return;
    }
    l->heard_us = shell_now_us();
    if (!unseal(l, &bytes, &bytes_n))
        return;
    if (bytes_n)
        wire_decoder_feed(&l->in, bytes, bytes_n);
    enum status st = STATUS_OK;
    while (!l->closing && !(st = wire_decoder_next(&l->in, &f, &err)) &&
           !(st = l->args.frame(l->args.arg, &f, &err)))
        ;
    if (l->closing)
        return;
    if (st != STATUS_AGAIN)
        broken(l, err.text);
    else
        l->args.read(l->args.arg);
}

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *buf)
{
    struct copy_link *l = h->data;
    *buf = uv_buf_init(l->buffer, sizeof l->buffer);
}

// ---- connecting ---------------------------------------------------------------------------------

static void on_connected(uv_connect_t *req, int rc)
{
    struct copy_link *l = req->data;
    if (l->closing)
        return;
    if (!rc)
        rc = uv_read_start((uv_stream_t *)&l->tcp, on_alloc, on_read);
    if (rc) {
        broken(l, uv_strerror(rc));
        return;
    }
    l->up = true;
    l->heard_us = shell_now_us();
    uv_tcp_nodelay(&l->tcp, 1);
    if (l->secure)
        secure_greet(l->secure, &l->wire);
    flush(l);
    l->args.up(l->args.arg);
}

struct copy_link *copy_link_open(const struct copy_link_args *args)
{
    struct copy_link *l = mem_zalloc(1, sizeof *l);
    l->args = *args;
    l->heard_us = shell_now_us();
    wire_decoder_init(&l->in, 0);
    if (args->shell->cfg->cluster_key)
        l->secure = secure_open(args->shell->domain, false);
    uv_tcp_init(&args->shell->loop, &l->tcp);
    l->tcp.data = l->connecting.data = l;
    int rc =
        uv_tcp_connect(&l->connecting, &l->tcp, (const struct sockaddr *)args->to, on_connected);
    if (!rc)
        return l;
    log_warn("coordinator: connect: %s", uv_strerror(rc));
    copy_link_drop(l);
    return NULL;
}

uint64_t copy_link_heard_us(const struct copy_link *l)
{
    return l->heard_us;
}

bool copy_link_silent(const struct copy_link *l, uint64_t now_us)
{
    return now_us - l->heard_us > (l->up ? SILENT_MS : CONNECT_MS) * 1000ull;
}
