// A few questions to the coordinator, asked in turn with libcurl's multi interface.
#include "tools/up_watch.h"

#include <assert.h>
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/strbuf.h"
#include "tools/admin.h"
#include "tools/cmdline.h"

enum { ASK_READY_MS = 20, ASK_NODES_MS = 300, ANSWER_MS = 2000, BODY_MAX = 64 << 20 };

struct question {
    CURL *easy;
    const char *path;
    struct strbuf body;
    int64_t ask_at_ms;
    bool asked;
};

struct up_watch {
    CURLM *multi;
    struct strbuf url;
    struct up_watch_handler handler;
    struct question ready, nodes, replicas;
    bool is_ready;
    int64_t heard_ms;
};

static size_t take(char *bytes, size_t size, size_t n, void *user)
{
    struct question *q = user;
    if (q->body.n + size * n > BODY_MAX)
        return 0;
    strbuf_add(&q->body, bytes, size * n);
    return size * n;
}

static void question_open(struct up_watch *w, struct question *q, const char *path)
{
    struct strbuf url = {0};
    strbuf_printf(&url, "%s%s", w->url.v, path);
    q->path = path;
    q->easy = curl_easy_init();
    assert(q->easy);
    curl_easy_setopt(q->easy, CURLOPT_URL, url.v);
    curl_easy_setopt(q->easy, CURLOPT_PROXY, "");
    curl_easy_setopt(q->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(q->easy, CURLOPT_FOLLOWLOCATION, 1L); // a follower names the leader
    curl_easy_setopt(q->easy, CURLOPT_TIMEOUT_MS, (long)ANSWER_MS);
    curl_easy_setopt(q->easy, CURLOPT_PRIVATE, q);
    curl_easy_setopt(q->easy, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(q->easy, CURLOPT_WRITEDATA, q);
    strbuf_finish(&url);
}

static void question_close(struct up_watch *w, struct question *q)
{
    if (q->asked)
        curl_multi_remove_handle(w->multi, q->easy);
    curl_easy_cleanup(q->easy);
    strbuf_finish(&q->body);
}

struct up_watch *up_watch_open(const char *url, const struct up_watch_handler *h)
{
    struct up_watch *w = mem_zalloc(1, sizeof *w);
    w->handler = *h;
    strbuf_puts(&w->url, url);
    w->multi = curl_multi_init();
    assert(w->multi);
    question_open(w, &w->ready, "/readyz");
    question_open(w, &w->nodes, "/hadal/v1/nodes");
    question_open(w, &w->replicas, "/hadal/v1/replicas");
    w->nodes.ask_at_ms = cmdline_now_ms() + ASK_NODES_MS;
    up_watch_restarted(w);
    return w;
}

void up_watch_close(struct up_watch *w)
{
    if (!w)
        return;
    question_close(w, &w->ready);
    question_close(w, &w->nodes);
    question_close(w, &w->replicas);
    curl_multi_cleanup(w->multi);
    strbuf_finish(&w->url);
    free(w);
}

void up_watch_restarted(struct up_watch *w)
{
    w->heard_ms = cmdline_now_ms();
}

static void ask(struct up_watch *w, struct question *q)
{
    if (q->asked || cmdline_now_ms() < q->ask_at_ms)
        return;
    strbuf_clear(&q->body);
    q->asked = curl_multi_add_handle(w->multi, q->easy) == CURLM_OK;
}

static void hear_list(struct up_watch *w, const struct question *q)
{
    bool nodes = q == &w->nodes;
    json_t *reply = json_loadb(q->body.n ? q->body.v : "", q->body.n, 0, NULL);
    json_t *list = admin_list(reply, nodes ? "nodes" : "replicas");
    if (list && nodes) {
        w->handler.nodes(w->handler.user, list);
        const json_t *wanted = json_object_get(reply, "wanted");
        if (json_is_integer(wanted))
            w->handler.wanted(w->handler.user, json_integer_value(wanted),
                              json_integer_value(json_object_get(reply, "spare")));
    }
    if (list && !nodes)
        w->handler.replicas(w->handler.user, list);
    json_decref(reply);
}

static void answered(struct up_watch *w, struct question *q, CURLcode rc)
{
    long code = 0;
    curl_easy_getinfo(q->easy, CURLINFO_RESPONSE_CODE, &code);
    curl_multi_remove_handle(w->multi, q->easy);
    q->asked = false;
    int64_t now = cmdline_now_ms();
    bool heard = rc == CURLE_OK && code > 0;
    if (heard)
        w->heard_ms = now;
    if (q == &w->ready) {
        w->is_ready = heard && code == 200;
        q->ask_at_ms = now + (w->is_ready ? ASK_NODES_MS : ASK_READY_MS);
        w->handler.ready(w->handler.user, w->is_ready ? UP_READY
                                          : heard     ? UP_NOT_READY
                                                      : UP_SILENT);
    } else {
        q->ask_at_ms = now + ASK_NODES_MS;
        if (heard && code == 200)
            hear_list(w, q);
    }
}

void up_watch_turn(struct up_watch *w, int fd, int timeout_ms)
{
    struct curl_waitfd extra = {.fd = fd, .events = CURL_WAIT_POLLIN};
    int running, left;
    ask(w, &w->ready);
    ask(w, &w->nodes);
    if (!w->is_ready)
        ask(w, &w->replicas);
    curl_multi_perform(w->multi, &running);
    curl_multi_poll(w->multi, &extra, 1, timeout_ms, NULL);
    curl_multi_perform(w->multi, &running);
    for (CURLMsg *m; (m = curl_multi_info_read(w->multi, &left));) {
        struct question *q = NULL;
        CURLcode rc = m->data.result;
        if (m->msg != CURLMSG_DONE)
            continue;
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&q);
        answered(w, q, rc);
    }
    w->handler.silent(w->handler.user, cmdline_now_ms() - w->heard_ms);
}
