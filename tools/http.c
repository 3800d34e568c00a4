// HTTP calls that wait for their reply, with libcurl's easy interface.
#include "tools/http.h"

#include <curl/curl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *http_default_url(void)
{
    const char *url = getenv("HADAL_URL");
    return url && *url ? url : "http://127.0.0.1:8000";
}

static size_t take(char *bytes, size_t size, size_t n, void *user)
{
    struct strbuf *body = user;
    if (body->n + size * n > HTTP_REPLY_MAX)
        return 0;
    strbuf_add(body, bytes, size * n);
    return size * n;
}

static enum status status_of(CURLcode rc)
{
    switch (rc) {
    case CURLE_OK:
        return STATUS_OK;
    case CURLE_OPERATION_TIMEDOUT:
        return STATUS_LINK_TIMEOUT;
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_COULDNT_RESOLVE_HOST:
        return STATUS_BAD_CONFIG;
    case CURLE_WRITE_ERROR:
        return STATUS_TOO_LARGE;
    default:
        return STATUS_LINK_DOWN;
    }
}

static void prepare(CURL *easy, const struct http_call *call, const char *url,
                    struct curl_slist *headers, struct http_reply *reply)
{
    curl_easy_setopt(easy, CURLOPT_URL, url);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_PROXY, ""); // a cluster is asked directly
    curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, call->timeout_ms);
    curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, call->method);
    curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 1L); // a follower names the leader
    curl_easy_setopt(easy, CURLOPT_MAXREDIRS, 3L);
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
    if (call->body || !strcmp(call->method, "POST"))
        curl_easy_setopt(easy, CURLOPT_POSTFIELDS, call->body ? call->body : "");
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, &reply->body);
}

enum status http_do(const struct http_call *call, struct http_reply *reply, struct errmsg *err)
{
    *reply = (struct http_reply){0};
    struct strbuf url = {0};
    size_t base = strlen(call->url);
    while (base > 0 && call->url[base - 1] == '/')
        base--;
    strbuf_printf(&url, "%.*s%s", (int)base, call->url, call->path);
    CURL *easy = curl_easy_init();
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    enum status s = STATUS_NO_MEMORY;
    if (easy && headers) {
        prepare(easy, call, url.v, headers, reply);
        CURLcode rc = curl_easy_perform(easy);
        curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &reply->code);
        s = status_of(rc);
        if (rc != CURLE_OK)
            errmsg_set(err, s, "%s: %s", url.v, curl_easy_strerror(rc));
    }
    curl_slist_free_all(headers);
    curl_easy_cleanup(easy);
    strbuf_finish(&url);
    return s;
}

void http_reply_finish(struct http_reply *reply)
{
    strbuf_finish(&reply->body);
}

const char *http_error_text(const struct http_reply *reply, char *buf, size_t n)
{
    const char *body = reply->body.n ? reply->body.v : "";
    json_t *json = json_loadb(body, reply->body.n, 0, NULL);
    const char *text =
        json_string_value(json_object_get(json_object_get(json, "error"), "message"));
    if (text)
        snprintf(buf, n, "%s", text);
    else
        snprintf(buf, n, "%.*s", (int)strcspn(body, "\r\n"), body);
    json_decref(json);
    return buf;
}

void http_encode(struct strbuf *to, const char *text)
{
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                     c == '-' || c == '.' || c == '_' || c == '~';
        strbuf_printf(to, plain ? "%c" : "%%%02X", c);
    }
}
