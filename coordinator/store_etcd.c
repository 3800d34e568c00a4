// Leadership in etcd (v3.4) by its JSON gateway: a lease that is kept alive, and a key that is made
// with it in a transaction that succeeds only when the key is not there. Keys and values are base64
// in that gateway; numbers are strings.
#include <curl/curl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "base/strbuf.h"
#include "coordinator/store_body.h"

enum { TIMEOUT_MS = 800, REPLY_BYTES = 64 << 10, KEPT_BYTES = (32 << 10) + 1, TEXT_BYTES = LIMIT_NAME + 2 * STORE_ADDRESS + 8 };

struct etcd {
    CURL *curl;
    char *urls;     // owned; comma separated
    const char *at; // the one in use
    struct store_member me;
    char key[128], members[128], kept[128];
    uint32_t lease_s;
    uint64_t renewed_ms; // when the last call that renewed it began; of a clock that never goes back
    bool registered;     // the member's key is there
    int64_t lease; // 0 = none
    struct strbuf reply;
};

// ---- base64 ----

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static void encode(const char *s, char *out)
{
    size_t n = strlen(s);
    for (size_t i = 0; i < n; i += 3) {
        uint32_t v = 0;
        for (size_t k = 0; k < 3; k++)
            v = v << 8 | (i + k < n ? (uint8_t)s[i + k] : 0);
        for (size_t k = 0; k < 4; k++)
            *out++ = i + k > n ? '=' : digits[v >> (18 - 6 * k) & 63];
    }
    *out = 0;
}

// False: no base64, or longer than `cap` - 1.
static bool decode(const char *s, char *out, size_t cap)
{
    uint32_t v = 0;
    size_t n = 0;
    int bits = 0;
    for (; *s && *s != '='; s++) {
        const char *d = strchr(digits, *s);
        if (!d)
            return false;
        v = v << 6 | (uint32_t)(d - digits);
        bits += 6;
        if (bits >= 8) {
            if (n + 1 >= cap)
                return false;
            bits -= 8;
            out[n++] = (char)(v >> bits & 255);
        }
    }
    out[n] = 0;
    return true;
}

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

// ---- requests ----

static size_t on_bytes(char *bytes, size_t size, size_t n, void *arg)
{
    struct strbuf *out = arg;
    if (out->n + size * n > REPLY_BYTES)
        return 0; // ends the transfer with an error
    strbuf_add(out, bytes, size * n);
    return size * n;
}

// NULL: not reachable, or an error; `why` says what.
static json_t *post_one(struct etcd *e, const char *path, const char *body, char *why, size_t why_n)
{
    char url[512];
    size_t n = strcspn(e->at, ",");
    snprintf(url, sizeof url, "%.*s%s", (int)n, e->at, path);
    strbuf_clear(&e->reply);
    curl_easy_setopt(e->curl, CURLOPT_URL, url);
    curl_easy_setopt(e->curl, CURLOPT_POSTFIELDS, body);
    CURLcode rc = curl_easy_perform(e->curl);
    long code = 0;
    curl_easy_getinfo(e->curl, CURLINFO_RESPONSE_CODE, &code);
    if (rc || code != 200) {
        snprintf(why, why_n, "%.100s: %s (status %ld)", url, curl_easy_strerror(rc), code);
        return NULL;
    }
    json_t *o = json_loadb(e->reply.v, e->reply.n, 0, NULL);
    if (!o)
        snprintf(why, why_n, "%.100s: the reply is no JSON", url);
    return o;
}

// Tries each member of etcd once.
static json_t *post(struct etcd *e, const char *path, const char *body, struct store_view *next)
{
    const char *first = e->at;
    do {
        json_t *o = post_one(e, path, body, next->error, sizeof next->error);
        if (o) {
            next->reachable = true;
            return o;
        }
        size_t n = strcspn(e->at, ",");
        e->at = e->at[n] ? e->at + n + 1 : e->urls;
    } while (e->at != first);
    next->reachable = false;
    return NULL;
}

static int64_t number(const json_t *o, const char *name)
{
    const json_t *v = json_object_get(o, name);
    return json_is_string(v) ? strtoll(json_string_value(v), NULL, 10) : json_integer_value(v);
}

// False: not reachable. The lease is 0 when it has run out.
static bool keep_lease(struct etcd *e, struct store_view *next)
{
    char body[128];
    uint64_t began_ms = now_ms();
    snprintf(body, sizeof body, "{\"ID\":\"%" PRId64 "\"}", e->lease);
    json_t *o = post(e, "/v3/lease/keepalive", body, next);
    if (!o)
        return false;
    if (number(json_object_get(o, "result"), "TTL") <= 0)
        e->lease = 0;
    else
        e->renewed_ms = began_ms;
    json_decref(o);
    return true;
}

static bool get_lease(struct etcd *e, struct store_view *next)
{
    char body[64];
    e->renewed_ms = now_ms();
    e->registered = false;
    snprintf(body, sizeof body, "{\"TTL\":\"%u\"}", e->lease_s);
    json_t *o = post(e, "/v3/lease/grant", body, next);
    if (!o)
        return false;
    e->lease = number(o, "ID");
    json_decref(o);
    return e->lease != 0;
}

// Whoever has the key now: `kv` of the transaction's answer.
static void take_holder(struct etcd *e, const json_t *kv, struct store_view *next)
{
    char text[TEXT_BYTES];
    const char *value = json_string_value(json_object_get(kv, "value"));
    bool mine = number(kv, "lease") == e->lease;
    next->leads = mine;
    if (!value || !decode(value, text, sizeof text) || !store_member_read(text, &next->leader))
        next->leader = (struct store_member){0};
}

static void try_key(struct etcd *e, struct store_view *next)
{
    char text[TEXT_BYTES], key64[256], value64[2 * TEXT_BYTES];
    struct strbuf body = {0};
    store_member_write(&e->me, text, sizeof text);
    encode(e->key, key64);
    encode(text, value64);
    strbuf_printf(&body,
                  "{\"compare\":[{\"key\":\"%s\",\"target\":\"CREATE\",\"result\":\"EQUAL\","
                  "\"create_revision\":\"0\"}],\"success\":[{\"request_put\":{\"key\":\"%s\","
                  "\"value\":\"%s\",\"lease\":\"%" PRId64 "\"}}],\"failure\":[{\"request_range\":"
                  "{\"key\":\"%s\"}}]}",
                  key64, key64, value64, e->lease, key64);
    json_t *o = post(e, "/v3/kv/txn", body.v, next);
    strbuf_finish(&body);
    if (!o)
        return;
    if (json_is_true(json_object_get(o, "succeeded"))) {
        next->leads = true;
        next->leader = e->me;
    } else {
        const json_t *response = json_array_get(json_object_get(o, "responses"), 0);
        const json_t *range = json_object_get(response, "response_range");
        take_holder(e, json_array_get(json_object_get(range, "kvs"), 0), next);
    }
    json_decref(o);
}

// "hadal/CLUSTER/members/NAME", with the lease: who might lead, should the lease of the leader end.
static void register_me(struct etcd *e, struct store_view *next)
{
    char key[256], text[TEXT_BYTES], key64[512], value64[2 * TEXT_BYTES];
    struct strbuf body = {0};
    snprintf(key, sizeof key, "%s%s", e->members, e->me.name);
    store_member_write(&e->me, text, sizeof text);
    encode(key, key64);
    encode(text, value64);
    strbuf_printf(&body, "{\"key\":\"%s\",\"value\":\"%s\",\"lease\":\"%" PRId64 "\"}", key64,
                  value64, e->lease);
    json_t *o = post(e, "/v3/kv/put", body.v, next);
    e->registered = o != NULL;
    json_decref(o);
    strbuf_finish(&body);
}

static void list_members(struct etcd *e, struct store_view *next)
{
    char end[sizeof e->members], key64[256], end64[256], body[600], text[TEXT_BYTES];
    snprintf(end, sizeof end, "%s", e->members);
    end[strlen(end) - 1]++; // the first key behind all with this prefix
    encode(e->members, key64);
    encode(end, end64);
    snprintf(body, sizeof body, "{\"key\":\"%s\",\"range_end\":\"%s\"}", key64, end64);
    json_t *o = post(e, "/v3/kv/range", body, next), *kv;
    size_t i;
    if (!o)
        return;
    next->members_n = 0;
    json_array_foreach(json_object_get(o, "kvs"), i, kv)
    {
        const char *value = json_string_value(json_object_get(kv, "value"));
        struct store_member *m = &next->members[next->members_n];
        if (value && decode(value, text, sizeof text) && store_member_read(text, m) &&
            next->members_n + 1 < STORE_MEMBERS)
            next->members_n++;
    }
    json_decref(o);
}

static void etcd_tick(void *body, struct store_view *next)
{
    struct etcd *e = body;
    bool lost = (e->lease && !keep_lease(e, next)) || (!e->lease && !get_lease(e, next));
    if (!lost)
        try_key(e, next);
    if (next->reachable && !e->registered)
        register_me(e, next);
    if (next->reachable)
        list_members(e, next);
    // What was known counts, but for the lease: that ends also where nobody can be asked.
    next->lapsed =
        next->leads && !next->reachable && now_ms() - e->renewed_ms >= e->lease_s * 1000ull;
}

static void etcd_yield(void *body, struct store_view *next)
{
    struct etcd *e = body;
    char text[64];
    snprintf(text, sizeof text, "{\"ID\":\"%" PRId64 "\"}", e->lease);
    if (e->lease)
        json_decref(post(e, "/v3/lease/revoke", text, next));
    e->lease = 0; // should that not have arrived, it runs out
    next->leader = (struct store_member){0};
}

// What the leader keeps for the next one, without a lease: it outlives all of them.
static char *etcd_load(void *body, struct store_view *next)
{
    struct etcd *e = body;
    char key64[256], request[300], *text = NULL;
    encode(e->kept, key64);
    snprintf(request, sizeof request, "{\"key\":\"%s\"}", key64);
    json_t *o = post(e, "/v3/kv/range", request, next);
    const json_t *kv = json_array_get(json_object_get(o, "kvs"), 0);
    const char *value = json_string_value(json_object_get(kv, "value"));
    if (value) {
        text = mem_zalloc(1, KEPT_BYTES);
        if (!decode(value, text, KEPT_BYTES)) {
            free(text);
            text = NULL;
        }
    }
    json_decref(o);
    return text;
}

// Only while this one has the leader's key: one that was put aside must not undo what the next did.
static bool etcd_save(void *body, const char *text, struct store_view *next)
{
    struct etcd *e = body;
    char key64[256], kept64[256];
    struct strbuf request = {0};
    char *value64 = mem_zalloc(1, 4 * (strlen(text) / 3 + 2));
    encode(e->key, key64);
    encode(e->kept, kept64);
    encode(text, value64);
    strbuf_printf(&request,
                  "{\"compare\":[{\"key\":\"%s\",\"target\":\"LEASE\",\"result\":\"EQUAL\","
                  "\"lease\":\"%" PRId64 "\"}],\"success\":[{\"request_put\":{\"key\":\"%s\","
                  "\"value\":\"%s\"}}]}",
                  key64, e->lease, kept64, value64);
    json_t *o = post(e, "/v3/kv/txn", request.v, next);
    bool answered = o != NULL; // refused is an answer too: another one leads
    json_decref(o);
    strbuf_finish(&request);
    free(value64);
    return answered;
}

static void etcd_close(void *body)
{
    struct etcd *e = body;
    struct store_view last;
    char text[64];
    snprintf(text, sizeof text, "{\"ID\":\"%" PRId64 "\"}", e->lease);
    if (e->lease)
        json_decref(post(e, "/v3/lease/revoke", text, &last));
    curl_easy_cleanup(e->curl);
    strbuf_finish(&e->reply);
    free(e->urls);
    free(e);
}

static void *etcd_open(const struct store_args *args, const char *rest, struct errmsg *err)
{
    if (strncmp(rest, "http://", 7) && strncmp(rest, "https://", 8)) {
        (void)errmsg_set(err, STATUS_BAD_CONFIG, "store: etcd:%s is no http:// or https:// URL",
                         rest);
        return NULL;
    }
    curl_global_init(CURL_GLOBAL_DEFAULT);
    struct etcd *e = mem_zalloc(1, sizeof *e);
    e->curl = curl_easy_init();
    e->urls = mem_strdup(rest);
    e->at = e->urls;
    e->me = args->me;
    e->lease_s = (args->lease_ms + 999) / 1000;
    snprintf(e->key, sizeof e->key, "hadal/%.64s/leader", args->cluster);
    snprintf(e->members, sizeof e->members, "hadal/%.64s/members/", args->cluster);
    snprintf(e->kept, sizeof e->kept, "hadal/%.64s/state", args->cluster);
    curl_easy_setopt(e->curl, CURLOPT_TIMEOUT_MS, (long)TIMEOUT_MS);
    curl_easy_setopt(e->curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(e->curl, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(e->curl, CURLOPT_WRITEFUNCTION, on_bytes);
    curl_easy_setopt(e->curl, CURLOPT_WRITEDATA, &e->reply);
    return e;
}

const struct store_body store_etcd_body = {"etcd",     300,       etcd_open, etcd_tick,
                                            etcd_yield, etcd_load, etcd_save, etcd_close};
