// One table gives every key of the YAML file its type; the ranges are checked afterwards, for the
// file and the command line alike.
#include "coordinator/config.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/config.h"
#include "coordinator/config_elastic.h"
#include "base/limits.h"
#include "base/mem.h"
#include "coordinator/config_pools.h"

enum { PROBE_ANSWER_MAX = 32, TENANTS = 1024, TENANT_KEYS = 64, BANDS = 10, BREAKERS = 64, DATACENTERS = 8, DISTANCE_MS = 50 };

struct yaml_tenant {
    char *name;
    int64_t *weight, *tokens_per_s, *burst_tokens, *max_band;
    char **keys;
    unsigned keys_count;
};

struct yaml_breaker {
    char *metric, *action;
    double *above, *below;
    int64_t for_ms, *value;
};

struct yaml_datacenter {
    char *name, *rpc;
    int64_t *distance_ms;
};

struct yaml_band {
    int64_t band, deadline_ms;
};

// What the file may hold. Pointers, so that an absent key can be told from a zero.
struct yaml {
    char *http, *rpc, *model, *model_name;
    char *transport;
    bool *kv_move;
    int64_t *kv_min_tokens, *kv_lease_ms, *long_prompt_tokens;
    int64_t *replicas, *prefill, *decode, *stages, *tensor;
    int64_t *heartbeat_ms, *heartbeat_timeout_ms, *hang_ms, *warmup_timeout_ms;
    int64_t *circuit_failures, *circuit_open_ms, *circuit_trials;
    int64_t *retry_percent, *retry_burst_tokens;
    int64_t *prefix_blocks, *queue_limit, *default_deadline_ms, *grace_ms, *retention_ms, *retain_limit;
    char *state, *store, *name, *cluster, *cluster_key, *client_key, *advertise, *copies;
    int64_t *lease_ms;
    char *probe_prompt;
    int64_t *probe_interval_ms, *probe_timeout_ms, *probe_failures, *probe_tokens;
    int64_t *quarantine_ms, *quarantine_percent, *trial_ms, *flap_limit, *slow_ms, *slow_factor;
    int64_t *ageing_ms, *ageing_band, *preempt_limit;
    char *tenant_from;
    bool *require_key, *trust_network;
    struct yaml_tenant *tenants;
    unsigned tenants_count;
    struct yaml_elastic *elastic;
    struct yaml_pool *pools;
    unsigned pools_count;
    struct yaml_alias *aliases;
    unsigned aliases_count;
    struct yaml_breaker *breakers;
    unsigned breakers_count;
    char *datacenter;
    struct yaml_datacenter *datacenters;
    unsigned datacenters_count;
    struct yaml_band *bands;
    unsigned bands_count;
    int64_t *http_connections, *rpc_connections, *idle_ms, *write_stall_ms, *keepalive_ms, *stop_ms;
};

#define TEXT(key)                                                                                  \
    CYAML_FIELD_STRING_PTR(#key, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml, key, 1,    \
                           LIMIT_PATH - 1)
#define NUMBER(key)                                                                                \
    CYAML_FIELD_INT_PTR(#key, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml, key)

#define TENANT_NUMBER(key)                                                                         \
    CYAML_FIELD_INT_PTR(#key, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml_tenant, key)

static const cyaml_schema_value_t key_schema = {
    CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char, 1, IDENTITY_KEY_BYTES),
};
static const cyaml_schema_field_t tenant_fields[] = {
    CYAML_FIELD_STRING_PTR("name", CYAML_FLAG_POINTER, struct yaml_tenant, name, 1, LIMIT_NAME - 1),
    TENANT_NUMBER(weight),
    TENANT_NUMBER(tokens_per_s),
    TENANT_NUMBER(burst_tokens),
    TENANT_NUMBER(max_band),
    CYAML_FIELD_SEQUENCE("keys", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml_tenant, keys,
                         &key_schema, 0, TENANT_KEYS),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t tenant_schema = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct yaml_tenant, tenant_fields),
};
static const cyaml_schema_field_t breaker_fields[] = {
    CYAML_FIELD_STRING_PTR("metric", CYAML_FLAG_POINTER, struct yaml_breaker, metric, 1, 64),
    CYAML_FIELD_STRING_PTR("action", CYAML_FLAG_POINTER, struct yaml_breaker, action, 1, 64),
    CYAML_FIELD_FLOAT_PTR("above", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml_breaker,
                          above),
    CYAML_FIELD_FLOAT_PTR("below", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml_breaker,
                          below),
    CYAML_FIELD_INT("for_ms", CYAML_FLAG_DEFAULT, struct yaml_breaker, for_ms),
    CYAML_FIELD_INT_PTR("value", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml_breaker,
                        value),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t breaker_schema = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct yaml_breaker, breaker_fields),
};
static const cyaml_schema_field_t datacenter_fields[] = {
    CYAML_FIELD_STRING_PTR("name", CYAML_FLAG_POINTER, struct yaml_datacenter, name, 1,
                           LIMIT_NAME - 1),
    CYAML_FIELD_STRING_PTR("rpc", CYAML_FLAG_POINTER, struct yaml_datacenter, rpc, 1,
                           LIMIT_PATH - 1),
    CYAML_FIELD_INT_PTR("distance_ms", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL,
                        struct yaml_datacenter, distance_ms),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t datacenter_schema = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct yaml_datacenter, datacenter_fields),
};
static const cyaml_schema_field_t band_fields[] = {
    CYAML_FIELD_INT("band", CYAML_FLAG_DEFAULT, struct yaml_band, band),
    CYAML_FIELD_INT("deadline_ms", CYAML_FLAG_DEFAULT, struct yaml_band, deadline_ms),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t band_schema = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct yaml_band, band_fields),
};

static const cyaml_schema_field_t fields[] = {
    TEXT(http),
    TEXT(rpc),
    TEXT(model),
    TEXT(model_name),
    TEXT(transport),
    NUMBER(replicas),
    NUMBER(prefill),
    NUMBER(decode),
    CYAML_FIELD_BOOL_PTR("kv_move", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml, kv_move),
    NUMBER(kv_min_tokens),
    NUMBER(kv_lease_ms),
    NUMBER(long_prompt_tokens),
    NUMBER(stages),
    NUMBER(tensor),
    NUMBER(heartbeat_ms),
    NUMBER(heartbeat_timeout_ms),
    NUMBER(hang_ms),
    NUMBER(warmup_timeout_ms),
    NUMBER(circuit_failures),
    NUMBER(circuit_open_ms),
    NUMBER(circuit_trials),
    NUMBER(retry_percent),
    NUMBER(retry_burst_tokens),
    NUMBER(prefix_blocks),
    NUMBER(queue_limit),
    NUMBER(default_deadline_ms),
    NUMBER(grace_ms),
    NUMBER(retention_ms),
    NUMBER(retain_limit),
    TEXT(state),
    TEXT(store),
    TEXT(cluster_key),
    TEXT(client_key),
    CYAML_FIELD_BOOL_PTR("trust_network", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml,
                         trust_network),
    TEXT(name),
    TEXT(cluster),
    TEXT(advertise),
    TEXT(datacenter),
    CYAML_FIELD_SEQUENCE("datacenters", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml,
                         datacenters, &datacenter_schema, 0, DATACENTERS),
    TEXT(copies),
    NUMBER(lease_ms),
    TEXT(probe_prompt),
    NUMBER(probe_interval_ms),
    NUMBER(probe_timeout_ms),
    NUMBER(probe_failures),
    NUMBER(probe_tokens),
    NUMBER(quarantine_ms),
    NUMBER(quarantine_percent),
    NUMBER(trial_ms),
    NUMBER(flap_limit),
    NUMBER(slow_ms),
    NUMBER(slow_factor),
    NUMBER(ageing_ms),
    NUMBER(ageing_band),
    NUMBER(preempt_limit),
    TEXT(tenant_from),
    CYAML_FIELD_BOOL_PTR("require_key", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml,
                         require_key),
    CYAML_FIELD_SEQUENCE("tenants", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml, tenants,
                         &tenant_schema, 0, TENANTS),
    CYAML_FIELD_MAPPING_PTR("elastic", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml,
                            elastic, config_elastic_fields),
    CYAML_FIELD_SEQUENCE("pools", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml, pools,
                         &config_pool_schema, 0, COORD_MAX_POOLS),
    CYAML_FIELD_SEQUENCE("aliases", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml, aliases,
                         &config_alias_schema, 0, 256),
    CYAML_FIELD_SEQUENCE("breakers", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml,
                         breakers, &breaker_schema, 0, BREAKERS),
    CYAML_FIELD_SEQUENCE("bands", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml, bands,
                         &band_schema, 0, BANDS),
    NUMBER(http_connections),
    NUMBER(rpc_connections),
    NUMBER(idle_ms),
    NUMBER(write_stall_ms),
    NUMBER(keepalive_ms),
    NUMBER(stop_ms),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t schema = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct yaml, fields),
};

void coordinator_config_default(struct coordinator_config *c)
{
    *c = (struct coordinator_config){
        .http = mem_strdup("127.0.0.1:8000"),
        .rpc = mem_strdup("127.0.0.1:7070"),
        .model = mem_strdup("models/sample"),
        .probe_prompt = mem_strdup("One, two, three, four, five, six"),
        .probe_interval_ms = 30 * 1000,
        .name = mem_strdup("coordinator"),
        .cluster = mem_strdup("main"),
        .datacenter = mem_strdup("main"),
        .copies = COPY_SYNC,
        .lease_ms = 3000,
        .hook_timeout_ms = 30000,
        .http_connections = 8192,
        .rpc_connections = 8192,
        .idle_ms = 75 * 1000,
        .write_stall_ms = 60 * 1000,
        .keepalive_ms = 20 * 1000,
        .stop_ms = 2000,
        .ready_fd = -1,
    };
    coord_config_default(&c->core);
}

static void replace(char **to, const char *from)
{
    if (!from)
        return;
    free(*to);
    *to = mem_strdup(from);
}

struct number {
    const char *name;
    const int64_t *from; // NULL: not in the file
    uint32_t *to;
    int64_t lo, hi;
};

static enum status check_numbers(const char *path, const char *where, const struct number *v,
                                 size_t n, struct errmsg *err)
{
    for (size_t i = 0; i < n; i++) {
        if (!v[i].from)
            continue;
        if (*v[i].from < v[i].lo || *v[i].from > v[i].hi)
            return errmsg_set(err, STATUS_BAD_CONFIG, "%s: %s%s: %lld is not in %lld..%lld", path,
                              where, v[i].name, (long long)*v[i].from, (long long)v[i].lo,
                              (long long)v[i].hi);
        *v[i].to = (uint32_t)*v[i].from;
    }
    return STATUS_OK;
}

static enum status take_numbers(const char *path, const struct yaml *y,
                                struct coordinator_config *c, struct errmsg *err)
{
    const int64_t day = 24 * 3600 * 1000;
    uint32_t ageing_band = c->core.ageing_band;
    uint32_t slow_factor = (uint32_t)c->core.slow_factor;
    const struct number numbers[] = {
        {"replicas", y->replicas, &c->core.replicas, 1, COORD_MAX_REPLICAS},
        {"prefill", y->prefill, &c->core.prefill_replicas, 0, COORD_MAX_REPLICAS},
        {"decode", y->decode, &c->core.decode_replicas, 0, COORD_MAX_REPLICAS},
        {"kv_min_tokens", y->kv_min_tokens, &c->core.kv_min_tokens, 0, LIMIT_CONTEXT},
        {"kv_lease_ms", y->kv_lease_ms, &c->core.kv_lease_ms, 100, day},
        {"long_prompt_tokens", y->long_prompt_tokens, &c->core.long_prompt_tokens, 1, LIMIT_CONTEXT},
        {"stages", y->stages, &c->core.stages, 1, LIMIT_STAGES},
        {"tensor", y->tensor, &c->core.tensor, 1, LIMIT_TENSOR},
        {"heartbeat_ms", y->heartbeat_ms, &c->core.heartbeat_ms, 1, 60000},
        {"heartbeat_timeout_ms", y->heartbeat_timeout_ms, &c->core.heartbeat_timeout_ms, 10, day},
        {"hang_ms", y->hang_ms, &c->core.hang_ms, 10, day},
        {"warmup_timeout_ms", y->warmup_timeout_ms, &c->core.warmup_timeout_ms, 100, day},
        {"circuit_failures", y->circuit_failures, &c->core.circuit_failures, 0, 1000},
        {"circuit_open_ms", y->circuit_open_ms, &c->core.circuit_open_ms, 10, day / 16},
        {"circuit_trials", y->circuit_trials, &c->core.circuit_trials, 1, 1000},
        {"retry_percent", y->retry_percent, &c->core.retry_percent, 0, 10000},
        {"retry_burst_tokens", y->retry_burst_tokens, &c->core.retry_burst_tokens, 0, 1 << 30},
        {"prefix_blocks", y->prefix_blocks, &c->core.prefix_blocks, 0, 1 << 26},
        {"queue_limit", y->queue_limit, &c->core.queue_limit, 1, 1 << 20},
        {"default_deadline_ms", y->default_deadline_ms, &c->core.default_deadline_ms, 0, day},
        {"grace_ms", y->grace_ms, &c->core.grace_ms, 0, day},
        {"retention_ms", y->retention_ms, &c->core.retention_ms, 0, day},
        {"retain_limit", y->retain_limit, &c->core.retain_limit, 0, 1 << 20},
        {"lease_ms", y->lease_ms, &c->lease_ms, 1000, 600000},
        {"probe_interval_ms", y->probe_interval_ms, &c->probe_interval_ms, 0, day},
        {"probe_timeout_ms", y->probe_timeout_ms, &c->core.probe_timeout_ms, 100, day},
        {"probe_failures", y->probe_failures, &c->core.probe_failures, 1, 100},
        {"probe_tokens", y->probe_tokens, &c->core.probe_tokens_n, 1, PROBE_ANSWER_MAX},
        {"quarantine_ms", y->quarantine_ms, &c->core.quarantine_ms, 100, day},
        {"quarantine_percent", y->quarantine_percent, &c->core.quarantine_percent, 0, 100},
        {"trial_ms", y->trial_ms, &c->core.trial_ms, 0, day},
        {"flap_limit", y->flap_limit, &c->core.flap_limit, 0, 1000},
        {"slow_ms", y->slow_ms, &c->core.slow_ms, 0, day},
        {"slow_factor", y->slow_factor, &slow_factor, 2, 100},
        {"ageing_ms", y->ageing_ms, &c->core.ageing_ms, 0, day},
        {"ageing_band", y->ageing_band, &ageing_band, 0, BANDS - 1},
        {"preempt_limit", y->preempt_limit, &c->core.preempt_limit, 0, 1000},
        {"http_connections", y->http_connections, &c->http_connections, 1, 1 << 20},
        {"rpc_connections", y->rpc_connections, &c->rpc_connections, 1, 1 << 20},
        {"idle_ms", y->idle_ms, &c->idle_ms, 100, day},
        {"write_stall_ms", y->write_stall_ms, &c->write_stall_ms, 100, day},
        {"keepalive_ms", y->keepalive_ms, &c->keepalive_ms, 100, day},
        {"stop_ms", y->stop_ms, &c->stop_ms, 0, day},
    };
    enum status s = check_numbers(path, "", numbers, sizeof numbers / sizeof *numbers, err);
    c->core.ageing_band = (uint8_t)ageing_band;
    c->core.slow_factor = (float)slow_factor;
    if (y->kv_move)
        c->core.kv_move = *y->kv_move;
    return s;
}

static enum status take_tenant(const char *path, const struct yaml_tenant *y,
                               struct coordinator_config *c, struct errmsg *err)
{
    struct coord_tenant *t = &c->tenants[c->tenants_n];
    uint32_t max_band = BANDS - 1;
    char where[LIMIT_NAME + 16];
    snprintf(where, sizeof where, "tenants: %s: ", y->name);
    *t = (struct coord_tenant){.weight = 1};
    const struct number numbers[] = {
        {"weight", y->weight, &t->weight, 1, 1000000},
        {"tokens_per_s", y->tokens_per_s, &t->tokens_per_s, 0, 1 << 30},
        {"burst_tokens", y->burst_tokens, &t->burst_tokens, 0, 1 << 30},
        {"max_band", y->max_band, &max_band, 0, BANDS - 1},
    };
    enum status s = check_numbers(path, where, numbers, sizeof numbers / sizeof *numbers, err);
    if (s)
        return s;
    t->max_band = (uint8_t)max_band;
    if (!strcmp(y->name, "default")) { // who names nobody, and names that are not listed
        c->core.other_tenants = *t;
        return y->keys_count ? errmsg_set(err, STATUS_BAD_CONFIG, "%s: %skeys: not for 'default'",
                                          path, where)
                             : STATUS_OK;
    }
    if (!coord_tenant_name_ok(y->name))
        return errmsg_set(err, STATUS_BAD_CONFIG,
                          "%s: %sthe name may not hold spaces, quotes or backslashes", path, where);
    for (unsigned i = 0; i < c->tenants_n; i++)
        if (!strcmp(c->tenants[i].name, y->name))
            return errmsg_set(err, STATUS_BAD_CONFIG, "%s: %sis there twice", path, where);
    t->name = mem_strdup(y->name);
    c->tenants_n++;
    for (unsigned i = 0; i < y->keys_count; i++)
        if (!identity_add(&c->identity, y->keys[i], y->name))
            return errmsg_set(err, STATUS_BAD_CONFIG,
                              "%s: %skeys: number %u is used twice, or there are too many", path,
                              where, i + 1);
    return STATUS_OK;
}

static enum status take_tenants(const char *path, const struct yaml *y,
                                struct coordinator_config *c, struct errmsg *err)
{
    static const char *const froms[] = {"key", "header", "user"};
    enum status s = STATUS_OK;
    c->tenants = mem_zalloc(y->tenants_count + 1, sizeof *c->tenants);
    for (unsigned i = 0; i < y->tenants_count && !s; i++)
        s = take_tenant(path, &y->tenants[i], c, err);
    for (unsigned i = 0; i < y->bands_count && !s; i++) {
        const struct yaml_band *b = &y->bands[i];
        if (b->band < 0 || b->band >= BANDS || b->deadline_ms < 0 || b->deadline_ms > 86400000)
            return errmsg_set(err, STATUS_BAD_CONFIG,
                              "%s: bands: band must be in 0..9, deadline_ms in 0..86400000", path);
        c->core.band_deadline_ms[b->band] = (uint32_t)b->deadline_ms;
    }
    c->identity.require_key = y->require_key && *y->require_key;
    if (!y->tenant_from || s)
        return s;
    for (int i = 0; i <= IDENTITY_USER; i++)
        if (!strcmp(y->tenant_from, froms[i])) {
            c->identity.from = (enum identity_from)i;
            return STATUS_OK;
        }
    return errmsg_set(err, STATUS_BAD_CONFIG, "%s: tenant_from: '%s' is none of key, header, user",
                      path, y->tenant_from);
}

static enum status take_datacenters(const char *path, const struct yaml *y,
                                    struct coordinator_config *c, struct errmsg *err)
{
    c->datacenters = mem_zalloc(y->datacenters_count + 1, sizeof *c->datacenters);
    for (unsigned i = 0; i < y->datacenters_count; i++) {
        const struct yaml_datacenter *from = &y->datacenters[i];
        struct config_datacenter *d = &c->datacenters[c->datacenters_n++];
        *d = (struct config_datacenter){mem_strdup(from->name), mem_strdup(from->rpc), DISTANCE_MS};
        const struct number numbers[] = {
            {"distance_ms", from->distance_ms, &d->distance_ms, 0, 600000}};
        enum status s = check_numbers(path, "datacenters: ", numbers, 1, err);
        if (s)
            return s;
        for (unsigned k = 0; k < i; k++)
            if (!strcmp(c->datacenters[k].name, d->name))
                return errmsg_set(err, STATUS_BAD_CONFIG, "%s: datacenters: %s is there twice",
                                  path, d->name);
    }
    return STATUS_OK;
}

static enum status take_transport(const char *path, const char *name, enum transport_choice *out,
                                  struct errmsg *err)
{
    if (!name)
        return STATUS_OK;
    for (int i = 0; i <= TRANSPORT_VERBS; i++)
        if (!strcmp(name, transport_choice_name((enum transport_choice)i))) {
            *out = (enum transport_choice)i;
            return STATUS_OK;
        }
    return errmsg_set(err, STATUS_BAD_CONFIG,
                      "%s: transport: '%s' is none of auto, shm, tcp, verbs", path, name);
}

static enum status take_breaker(const char *path, unsigned at, const struct yaml_breaker *y,
                                struct coord_breaker *b, struct errmsg *err)
{
    int metric = 0, action = 0;
    while (metric < BREAKER_METRICS &&
           strcmp(y->metric, coord_breaker_metric_name((enum coord_breaker_metric)metric)))
        metric++;
    while (action < BREAKER_ACTIONS &&
           strcmp(y->action, coord_breaker_action_name((enum coord_breaker_action)action)))
        action++;
    if (metric == BREAKER_METRICS || action == BREAKER_ACTIONS)
        return errmsg_set(err, STATUS_BAD_CONFIG, "%s: breakers[%u]: no metric '%s' or action '%s'",
                          path, at, y->metric, y->action);
    if (!y->above == !y->below)
        return errmsg_set(err, STATUS_BAD_CONFIG, "%s: breakers[%u]: give one of above and below",
                          path, at);
    bool wants_value = action == BREAKER_REJECT_LOW || action == BREAKER_CAP_TOKENS;
    if (y->for_ms < 0 || y->for_ms > 86400000 ||
        (wants_value && (!y->value || *y->value < 1 || *y->value > LIMIT_CONTEXT)))
        return errmsg_set(err, STATUS_BAD_CONFIG,
                          "%s: breakers[%u]: for_ms must be in 0..86400000, value above 0", path,
                          at);
    *b = (struct coord_breaker){.metric = (enum coord_breaker_metric)metric,
                                .below = y->below != NULL,
                                .threshold = y->below ? *y->below : *y->above,
                                .for_ms = (uint32_t)y->for_ms,
                                .action = (enum coord_breaker_action)action,
                                .value = wants_value ? (uint32_t)*y->value : 0};
    return STATUS_OK;
}

static enum status take_breakers(const char *path, const struct yaml *y,
                                 struct coordinator_config *c, struct errmsg *err)
{
    enum status s = STATUS_OK;
    c->breakers = mem_zalloc(y->breakers_count + 1, sizeof *c->breakers);
    for (unsigned i = 0; i < y->breakers_count && !s; i++)
        s = take_breaker(path, i, &y->breakers[i], &c->breakers[i], err);
    c->core.breakers_n = y->breakers_count;
    return s;
}

static enum status take_copies(const char *path, const char *name, enum copy_mode *out,
                               struct errmsg *err)
{
    static const char *const names[] = {"off", "async", "sync"};
    if (!name)
        return STATUS_OK;
    for (int i = 0; i <= COPY_SYNC; i++)
        if (!strcmp(name, names[i])) {
            *out = (enum copy_mode)i;
            return STATUS_OK;
        }
    return errmsg_set(err, STATUS_BAD_CONFIG, "%s: copies: '%s' is none of sync, async, off", path,
                      name);
}

static enum status take_pools(const char *path, const struct yaml *y, struct coordinator_config *c,
                              struct errmsg *err)
{
    enum status s = config_take_pools(path, y->pools, y->pools_count, y->aliases, y->aliases_count,
                                      c, err);
    if (s || !c->pools_n)
        return s;
    if (y->model || y->model_name || y->replicas || y->prefill || y->decode)
        return errmsg_set(err, STATUS_BAD_CONFIG,
                          "%s: model, model_name, replicas, prefill, decode: not together with "
                          "pools",
                          path);
    replace(&c->model, c->pools[0].model_dir); // the first is what a request without a name gets
    replace(&c->model_name, c->pools[0].model);
    return STATUS_OK;
}

static bool name_ok(const char *s)
{
    size_t n = strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");
    return n > 0 && n < LIMIT_NAME && !s[n];
}

enum status coordinator_config_load(const char *path, struct coordinator_config *c,
                                    struct errmsg *err)
{
    void *data;
    enum status s = config_load(path, &schema, &data, err);
    if (s)
        return s;
    const struct yaml *y = data;
    struct coordinator_config next;
    coordinator_config_default(&next);
    if (y) {
        replace(&next.http, y->http);
        replace(&next.rpc, y->rpc);
        replace(&next.model, y->model);
        replace(&next.model_name, y->model_name);
        replace(&next.probe_prompt, y->probe_prompt);
        replace(&next.state, y->state);
        replace(&next.store, y->store);
        replace(&next.cluster_key, y->cluster_key);
        replace(&next.client_key, y->client_key);
        next.trust_network = y->trust_network && *y->trust_network;
        replace(&next.name, y->name);
        replace(&next.cluster, y->cluster);
        replace(&next.advertise, y->advertise);
        replace(&next.datacenter, y->datacenter);
        s = take_datacenters(path, y, &next, err);
        if (!s)
            s = take_transport(path, y->transport, &next.core.transport, err);
        if (!s)
            s = take_numbers(path, y, &next, err);
        if (!s)
            s = take_tenants(path, y, &next, err);
        if (!s)
            s = take_copies(path, y->copies, &next.copies, err);
        if (!s)
            s = take_breakers(path, y, &next, err);
        if (!s)
            s = config_elastic_take(path, y->elastic, &next, err);
        if (!s)
            s = take_pools(path, y, &next, err);
    }
    config_free(&schema, data);
    if (s) {
        coordinator_config_finish(&next);
        return s;
    }
    *c = next;
    return STATUS_OK;
}

void coordinator_config_finish(struct coordinator_config *c)
{
    free(c->http);
    free(c->rpc);
    free(c->model);
    free(c->model_name);
    free(c->probe_prompt);
    free(c->state);
    free(c->store);
    free(c->cluster_key);
    free(c->client_key);
    free(c->name);
    free(c->cluster);
    free(c->advertise);
    free(c->datacenter);
    for (uint32_t i = 0; i < c->datacenters_n; i++) {
        free(c->datacenters[i].name);
        free(c->datacenters[i].rpc);
    }
    free(c->datacenters);
    for (uint32_t i = 0; i < c->tenants_n; i++)
        free((char *)c->tenants[i].name);
    free(c->tenants);
    free(c->breakers);
    for (unsigned i = 0; i < c->hook_n; i++)
        free(c->hook[i]);
    free(c->hook);
    config_pools_finish(c);
    identity_finish(&c->identity);
    *c = (struct coordinator_config){.ready_fd = -1};
}

enum status coordinator_config_check(struct coordinator_config *c, struct errmsg *err)
{
    c->core.model_dir = c->model;
    c->core.tenants = c->tenants;
    c->core.tenants_n = c->tenants_n;
    c->core.breakers = c->breakers;
    if (c->pools_n && strcmp(c->model, c->pools[0].model_dir))
        return errmsg_set(err, STATUS_BAD_CONFIG, "model: %.200s is not that of the first pool, %.200s",
                          c->model, c->pools[0].model_dir);
    if (strlen(c->model) >= LIMIT_PATH)
        return errmsg_set(err, STATUS_BAD_CONFIG, "model: the path is too long");
    if (c->model_name && strlen(c->model_name) >= LIMIT_NAME)
        return errmsg_set(err, STATUS_BAD_CONFIG, "model_name: more than %d bytes", LIMIT_NAME - 1);
    for (uint32_t i = 0; i < c->datacenters_n; i++)
        if (!name_ok(c->datacenters[i].name))
            return errmsg_set(err, STATUS_BAD_CONFIG, "datacenters: '%s' is not a name of A-Z a-z 0-9 . _ -",
                              c->datacenters[i].name);
    if (!name_ok(c->name) || !name_ok(c->cluster) || !name_ok(c->datacenter))
        return errmsg_set(err, STATUS_BAD_CONFIG, "name, cluster, datacenter: not 1 to %d of A-Z a-z 0-9 . _ -",
                          LIMIT_NAME - 1);
    if ((uint64_t)c->core.prefill_replicas + c->core.decode_replicas > c->core.replicas)
        return errmsg_set(err, STATUS_BAD_CONFIG,
                          "prefill, decode: %u and %u replicas of %u are too many",
                          c->core.prefill_replicas, c->core.decode_replicas, c->core.replicas);
    if (c->core.stages * c->core.tensor > LIMIT_RANKS)
        return errmsg_set(err, STATUS_BAD_CONFIG, "stages, tensor: %u x %u ranks are too many",
                          c->core.stages, c->core.tensor);
    if (c->core.heartbeat_timeout_ms <= c->core.heartbeat_ms)
        return errmsg_set(err, STATUS_BAD_CONFIG,
                          "heartbeat_timeout_ms: %u is not more than heartbeat_ms (%u)",
                          c->core.heartbeat_timeout_ms, c->core.heartbeat_ms);
    return STATUS_OK;
}
