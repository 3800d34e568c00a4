// The coordinator's operations endpoints (/hadal/v1/...), as JSON.
#pragma once

#include <jansson.h>

#include "base/status.h"

// GET `path`; *out is the caller's (json_decref). The errors of http_do; REQUEST-group statuses
// with the coordinator's own words when it answered with an error.
enum status admin_get(const char *url, const char *path, json_t **out,
                      struct errmsg *err) STATUS_MUST_USE;
// POST /hadal/v1/{kind}/{name}/{verb}; out may be NULL.
struct admin_order {
    const char *kind; // "nodes", "replicas"
    const char *name; // of the node, number of the replica
    const char *verb; // "drain", "failover", ...
};
enum status admin_post(const char *url, const struct admin_order *order, json_t **out,
                       struct errmsg *err) STATUS_MUST_USE;

// The same with a path of its own, already encoded, and a body of JSON or NULL.
enum status admin_post_body(const char *url, const char *path, const char *body, json_t **out,
                            struct errmsg *err) STATUS_MUST_USE;

// The array in a reply: {"nodes": [...]}. NULL when it has none.
json_t *admin_list(json_t *reply, const char *kind);

// Name of the first model that /v1/models offers; the caller frees it. NULL with a text in *err.
char *admin_first_model(const char *url, struct errmsg *err);
