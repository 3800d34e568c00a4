// One table gives every key of the YAML file its type; the ranges are checked afterwards, for the
// file and the command line alike.
#include "coordinator/config.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/config.h"
#include "base/limits.h"
#include "base/mem.h"

// What the file may hold. Pointers, so that an absent key can be told from a zero.
struct yaml {
    char *http, *rpc, *model, *model_name;
    char *transport;
    int64_t *replicas, *stages, *tensor;
    int64_t *heartbeat_ms, *heartbeat_timeout_ms, *hang_ms, *warmup_timeout_ms;
    int64_t *queue_limit, *default_deadline_ms, *grace_ms, *retention_ms, *retain_limit;
    int64_t *http_connections, *rpc_connections, *idle_ms, *write_stall_ms, *keepalive_ms, *stop_ms;
};

#define TEXT(key)                                                                                  \
    CYAML_FIELD_STRING_PTR(#key, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml, key, 1,    \
                           LIMIT_PATH - 1)
#define NUMBER(key)                                                                                \
    CYAML_FIELD_INT_PTR(#key, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml, key)

static const cyaml_schema_field_t fields[] = {
    TEXT(http),
    TEXT(rpc),
    TEXT(model),
    TEXT(model_name),
    TEXT(transport),
    NUMBER(replicas),
    NUMBER(stages),
    NUMBER(tensor),
    NUMBER(heartbeat_ms),
    NUMBER(heartbeat_timeout_ms),
    NUMBER(hang_ms),
    NUMBER(warmup_timeout_ms),
    NUMBER(queue_limit),
    NUMBER(default_deadline_ms),
    NUMBER(grace_ms),
    NUMBER(retention_ms),
    NUMBER(retain_limit),
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

static enum status take_numbers(const char *path, const struct yaml *y,
                                struct coordinator_config *c, struct errmsg *err)
{
    const int64_t day = 24 * 3600 * 1000;
    const struct number numbers[] = {
        {"replicas", y->replicas, &c->core.replicas, 1, COORD_MAX_REPLICAS},
        {"stages", y->stages, &c->core.stages, 1, LIMIT_STAGES},
        {"tensor", y->tensor, &c->core.tensor, 1, LIMIT_TENSOR},
        {"heartbeat_ms", y->heartbeat_ms, &c->core.heartbeat_ms, 1, 60000},
        {"heartbeat_timeout_ms", y->heartbeat_timeout_ms, &c->core.heartbeat_timeout_ms, 10, day},
        {"hang_ms", y->hang_ms, &c->core.hang_ms, 10, day},
        {"warmup_timeout_ms", y->warmup_timeout_ms, &c->core.warmup_timeout_ms, 100, day},
        {"queue_limit", y->queue_limit, &c->core.queue_limit, 1, 1 << 20},
        {"default_deadline_ms", y->default_deadline_ms, &c->core.default_deadline_ms, 0, day},
        {"grace_ms", y->grace_ms, &c->core.grace_ms, 0, day},
        {"retention_ms", y->retention_ms, &c->core.retention_ms, 0, day},
        {"retain_limit", y->retain_limit, &c->core.retain_limit, 0, 1 << 20},
        {"http_connections", y->http_connections, &c->http_connections, 1, 1 << 20},
        {"rpc_connections", y->rpc_connections, &c->rpc_connections, 1, 1 << 20},
        {"idle_ms", y->idle_ms, &c->idle_ms, 100, day},
        {"write_stall_ms", y->write_stall_ms, &c->write_stall_ms, 100, day},
        {"keepalive_ms", y->keepalive_ms, &c->keepalive_ms, 100, day},
        {"stop_ms", y->stop_ms, &c->stop_ms, 0, day},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        const struct number *n = &numbers[i];
        if (!n->from)
            continue;
        if (*n->from < n->lo || *n->from > n->hi)
            return errmsg_set(err, STATUS_BAD_CONFIG, "%s: %s: %lld is not in %lld..%lld", path,
                              n->name, (long long)*n->from, (long long)n->lo, (long long)n->hi);
        *n->to = (uint32_t)*n->from;
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
        s = take_transport(path, y->transport, &next.core.transport, err);
        if (!s)
            s = take_numbers(path, y, &next, err);
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
    *c = (struct coordinator_config){.ready_fd = -1};
}

enum status coordinator_config_check(struct coordinator_config *c, struct errmsg *err)
{
    c->core.model_dir = c->model;
    if (strlen(c->model) >= LIMIT_PATH)
        return errmsg_set(err, STATUS_BAD_CONFIG, "model: the path is too long");
    if (c->model_name && strlen(c->model_name) >= LIMIT_NAME)
        return errmsg_set(err, STATUS_BAD_CONFIG, "model_name: more than %d bytes", LIMIT_NAME - 1);
    if (c->core.stages * c->core.tensor > LIMIT_RANKS)
        return errmsg_set(err, STATUS_BAD_CONFIG, "stages, tensor: %u x %u ranks are too many",
                          c->core.stages, c->core.tensor);
    if (c->core.heartbeat_timeout_ms <= c->core.heartbeat_ms)
        return errmsg_set(err, STATUS_BAD_CONFIG,
                          "heartbeat_timeout_ms: %u is not more than heartbeat_ms (%u)",
                          c->core.heartbeat_timeout_ms, c->core.heartbeat_ms);
    return STATUS_OK;
}
