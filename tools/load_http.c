// HTTP streams by libcurl's multi interface over one epoll: curl says which sockets and which timer
// it waits for, so that a turn costs what happened and not how many streams there are.
#include "tools/load_net_impl.h"

#include <assert.h>
#include <curl/curl.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/mem.h"
#include "tools/cmdline.h"
#include "tools/http.h"

enum { BODY_KEPT = 1024, EVENTS_PER_TURN = 256 };

struct http_net {
    struct load_net base;
    CURLM *multi;
    int epoll;
    int64_t timer_ms; // when curl wants to be called; -1 = never
    struct strbuf url;
    struct curl_slist *post_headers;
};

// One connection of one stream.
struct conn {
    struct http_net *net;
    struct load_stream *stream;
    CURL *easy;
    struct curl_slist *headers; // owned; NULL = the shared ones
    struct sse sse;
    struct strbuf body; // of an error
    int retry_after_s;
    char why[CURL_ERROR_SIZE];
};

static void on_event(void *user, const struct sse_event *e)
{
    struct conn *c = user;
    int64_t gap_us = load_stream_event(c->stream, cmdline_now_us(), e);
    c->net->base.handler.heard(c->net->base.handler.user, c->stream, gap_us);
}

static size_t on_bytes(char *bytes, size_t size, size_t n, void *user)
{
    struct conn *c = user;
    long code = 0;
    curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &code);
    c->stream->heard_us = cmdline_now_us();
    if (code != 200) {
        size_t room = BODY_KEPT - c->body.n;
        strbuf_add(&c->body, bytes, size * n < room ? size * n : room);
        return size * n;
    }
    const struct sse_handler h = {.event = on_event, .user = c};
    return sse_feed(&c->sse, bytes, size * n, &h) == STATUS_OK ? size * n : 0;
}

static size_t on_header(char *bytes, size_t size, size_t n, void *user)
{
    struct conn *c = user;
    static const char name[] = "retry-after:";
    char line[64];
    snprintf(line, sizeof line, "%.*s", (int)(size * n), bytes);
    if (!strncasecmp(line, name, sizeof name - 1))
        c->retry_after_s = atoi(line + sizeof name - 1);
    return size * n;
}

static int on_socket(CURL *easy, curl_socket_t fd, int what, void *user, void *known)
{
    struct http_net *net = user;
    struct epoll_event e = {.data.fd = fd};
    if (what & CURL_POLL_IN)
        e.events |= EPOLLIN;
    if (what & CURL_POLL_OUT)
        e.events |= EPOLLOUT;
    if (what == CURL_POLL_REMOVE)
        epoll_ctl(net->epoll, EPOLL_CTL_DEL, fd, &e);
    else if (epoll_ctl(net->epoll, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &e) && known)
        epoll_ctl(net->epoll, EPOLL_CTL_ADD, fd, &e);
    curl_multi_assign(net->multi, fd, what == CURL_POLL_REMOVE ? NULL : net);
    return 0;
}

static int on_timer(CURLM *multi, long timeout_ms, void *user)
{
    struct http_net *net = user;
    net->timer_ms = timeout_ms < 0 ? -1 : cmdline_now_ms() + timeout_ms;
    return 0;
}

static void http_close(struct load_net *base);
static const struct load_net_ops http_ops;

struct load_net *load_http_open(const char *url, const struct load_net_handler *handler,
                                struct errmsg *err)
{
    struct http_net *net = mem_zalloc(1, sizeof *net);
    net->base = (struct load_net){.ops = &http_ops, .handler = *handler};
    net->timer_ms = -1;
    size_t n = strlen(url);
    while (n > 0 && url[n - 1] == '/')
        n--;
    strbuf_add(&net->url, url, n);
    net->post_headers = curl_slist_append(NULL, "Content-Type: application/json");
    net->post_headers = curl_slist_append(net->post_headers, "Expect:");
    net->epoll = epoll_create1(EPOLL_CLOEXEC);
    net->multi = curl_multi_init();
    if (net->epoll < 0 || !net->multi || !net->post_headers) {
        errmsg_set(err, STATUS_IO, "cannot open an epoll: %s", strerror(errno));
        http_close(&net->base);
        return NULL;
    }
    curl_multi_setopt(net->multi, CURLMOPT_SOCKETFUNCTION, on_socket);
    curl_multi_setopt(net->multi, CURLMOPT_SOCKETDATA, net);
    curl_multi_setopt(net->multi, CURLMOPT_TIMERFUNCTION, on_timer);
    curl_multi_setopt(net->multi, CURLMOPT_TIMERDATA, net);
    return &net->base;
}

static struct http_net *of(struct load_net *base)
{
    return (struct http_net *)(void *)base;
}

static void http_close(struct load_net *base)
{
    struct http_net *net = of(base);
    if (net->multi)
        curl_multi_cleanup(net->multi);
    if (net->epoll >= 0)
        close(net->epoll);
    curl_slist_free_all(net->post_headers);
    strbuf_finish(&net->url);
    free(net);
}

static void conn_free(struct conn *c)
{
    curl_multi_remove_handle(c->net->multi, c->easy);
    curl_easy_cleanup(c->easy);
    curl_slist_free_all(c->headers);
    sse_finish(&c->sse);
    strbuf_finish(&c->body);
    c->stream->net = NULL;
    free(c);
}

static struct conn *conn_new(struct http_net *net, struct load_stream *s, const char *url)
{
    struct conn *c = mem_zalloc(1, sizeof *c);
    c->net = net;
    c->stream = s;
    c->easy = curl_easy_init();
    assert(c->easy && !s->net);
    sse_init(&c->sse);
    s->net = c;
    curl_easy_setopt(c->easy, CURLOPT_URL, url);
    curl_easy_setopt(c->easy, CURLOPT_PRIVATE, c);
    curl_easy_setopt(c->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c->easy, CURLOPT_PROXY, "");
    curl_easy_setopt(c->easy, CURLOPT_CONNECTTIMEOUT_MS, 10000L);
    curl_easy_setopt(c->easy, CURLOPT_TCP_NODELAY, 1L);
    curl_easy_setopt(c->easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(c->easy, CURLOPT_ERRORBUFFER, c->why);
    curl_easy_setopt(c->easy, CURLOPT_WRITEFUNCTION, on_bytes);
    curl_easy_setopt(c->easy, CURLOPT_WRITEDATA, c);
    curl_easy_setopt(c->easy, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(c->easy, CURLOPT_HEADERDATA, c);
    return c;
}

static void http_start(struct load_net *base, struct load_stream *s, const char *body)
{
    struct http_net *net = of(base);
    struct strbuf url = {0};
    strbuf_printf(&url, "%s/v1/chat/completions", net->url.v);
    struct conn *c = conn_new(net, s, url.v);
    strbuf_finish(&url);
    curl_easy_setopt(c->easy, CURLOPT_POSTFIELDSIZE, (long)strlen(body));
    curl_easy_setopt(c->easy, CURLOPT_POSTFIELDS, body);
    curl_easy_setopt(c->easy, CURLOPT_HTTPHEADER, net->post_headers);
    curl_multi_add_handle(net->multi, c->easy);
}

static void http_attach(struct load_net *base, struct load_stream *s)
{
    struct http_net *net = of(base);
    struct strbuf url = {0}, last = {0};
    strbuf_printf(&url, "%s/v1/streams/", net->url.v);
    http_encode(&url, s->request);
    struct conn *c = conn_new(net, s, url.v);
    if (*s->last_id) {
        strbuf_printf(&last, "Last-Event-ID: %s", s->last_id);
        c->headers = curl_slist_append(NULL, last.v);
        curl_easy_setopt(c->easy, CURLOPT_HTTPHEADER, c->headers);
    }
    curl_multi_add_handle(net->multi, c->easy);
    strbuf_finish(&url);
    strbuf_finish(&last);
}

static void http_cut(struct load_net *base, struct load_stream *s)
{
    struct conn *c = s->net;
    if (!c)
        return;
    // Not back to the pool of kept connections: the server must see it close.
    curl_easy_setopt(c->easy, CURLOPT_FORBID_REUSE, 1L);
    conn_free(c);
}

static void conn_ended(struct conn *c, CURLcode rc)
{
    struct http_net *net = c->net;
    struct load_stream *s = c->stream;
    long code = 0;
    curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &code);
    char text[LOAD_TEXT_MAX] = "";
    if (rc != CURLE_OK)
        snprintf(text, sizeof text, "%.150s", *c->why ? c->why : curl_easy_strerror(rc));
    else if (code != 200)
        http_error_text(&(struct http_reply){.code = code, .body = c->body}, text, sizeof text);
    const struct load_end end = {.code = (int)code,
                                 .retry_after_s = c->retry_after_s,
                                 .broken = rc != CURLE_OK,
                                 .text = text};
    conn_free(c);
    net->base.handler.closed(net->base.handler.user, s, &end);
}

static void reap(struct http_net *net)
{
    int left;
    for (CURLMsg *m; (m = curl_multi_info_read(net->multi, &left));) {
        if (m->msg != CURLMSG_DONE)
            continue;
        struct conn *c = NULL;
        CURLcode rc = m->data.result;
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&c);
        conn_ended(c, rc);
    }
}

static int wait_ms(const struct http_net *net, int timeout_ms)
{
    if (net->timer_ms < 0)
        return timeout_ms;
    int64_t left = net->timer_ms - cmdline_now_ms();
    return left <= 0 ? 0 : left < timeout_ms ? (int)left : timeout_ms;
}

static void http_turn(struct load_net *base, int timeout_ms)
{
    struct http_net *net = of(base);
    struct epoll_event events[EVENTS_PER_TURN];
    int running;
    int n = epoll_wait(net->epoll, events, EVENTS_PER_TURN, wait_ms(net, timeout_ms));
    for (int i = 0; i < n; i++) {
        int what = (events[i].events & EPOLLIN ? CURL_CSELECT_IN : 0) |
                   (events[i].events & EPOLLOUT ? CURL_CSELECT_OUT : 0) |
                   (events[i].events & (EPOLLERR | EPOLLHUP) ? CURL_CSELECT_ERR : 0);
        curl_multi_socket_action(net->multi, events[i].data.fd, what, &running);
    }
    if (net->timer_ms >= 0 && cmdline_now_ms() >= net->timer_ms) {
        net->timer_ms = -1;
        curl_multi_socket_action(net->multi, CURL_SOCKET_TIMEOUT, 0, &running);
    }
    reap(net);
}

static const struct load_net_ops http_ops = {
    .close = http_close,
    .start = http_start,
    .attach = http_attach,
    .cut = http_cut,
    .turn = http_turn,
};
