// Pools as the file names them: what is left out comes from the keys for a single pool; fallbacks
// and aliases must lead to models that are there, and no chain of fallbacks may come back to its
// start.
#include "coordinator/config_pools.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "coordinator/config.h"

#define POOL_NUMBER(key)                                                                           \
    CYAML_FIELD_INT_PTR(#key, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml_pool, key)

static const cyaml_schema_field_t pool_fields[] = {
    CYAML_FIELD_STRING_PTR("name", CYAML_FLAG_POINTER, struct yaml_pool, name, 1, LIMIT_NAME - 1),
    CYAML_FIELD_STRING_PTR("model", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml_pool,
                           model, 1, LIMIT_NAME - 1),
    CYAML_FIELD_STRING_PTR("dir", CYAML_FLAG_POINTER, struct yaml_pool, dir, 1, LIMIT_PATH - 1),
    CYAML_FIELD_STRING_PTR("fallback", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml_pool,
                           fallback, 1, LIMIT_NAME - 1),
    POOL_NUMBER(replicas),
    POOL_NUMBER(prefill),
    POOL_NUMBER(decode),
    POOL_NUMBER(stages),
    POOL_NUMBER(tensor),
    POOL_NUMBER(weight),
    POOL_NUMBER(prompt_max),
    CYAML_FIELD_END,
};
const cyaml_schema_value_t config_pool_schema = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct yaml_pool, pool_fields),
};

static const cyaml_schema_field_t alias_fields[] = {
    CYAML_FIELD_STRING_PTR("name", CYAML_FLAG_POINTER, struct yaml_alias, name, 1, LIMIT_NAME - 1),
    CYAML_FIELD_STRING_PTR("model", CYAML_FLAG_POINTER, struct yaml_alias, model, 1,
                           LIMIT_NAME - 1),
    CYAML_FIELD_END,
};
const cyaml_schema_value_t config_alias_schema = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct yaml_alias, alias_fields),
};

static enum status number(const char *path, const char *pool, const char *key, const int64_t *from,
                          int64_t lo, int64_t hi, uint32_t *to, struct errmsg *err)
{
    if (from && (*from < lo || *from > hi))
        return errmsg_set(err, STATUS_BAD_CONFIG, "%s: pools: %s: %s: %lld is not in %lld..%lld",
                          path, pool, key, (long long)*from, (long long)lo, (long long)hi);
    if (from)
        *to = (uint32_t)*from;
    return STATUS_OK;
}

// The last part of the path, as text_pool.c names a model.
static char *name_of_dir(const char *dir)
{
    size_t end = strlen(dir), at;
    while (end > 1 && dir[end - 1] == '/')
        end--;
    for (at = end; at > 0 && dir[at - 1] != '/'; at--)
        ;
    char *name = mem_zalloc(LIMIT_NAME, 1);
    memcpy(name, dir + at, end - at < LIMIT_NAME ? end - at : LIMIT_NAME - 1);
    return name;
}

static enum status take_pool(const char *path, const struct yaml_pool *y,
                             struct coordinator_config *c, struct errmsg *err)
{
    struct coord_pool *p = &c->pools[c->pools_n++];
    *p = (struct coord_pool){.name = mem_strdup(y->name),
                             .model = y->model ? mem_strdup(y->model) : name_of_dir(y->dir),
                             .model_dir = mem_strdup(y->dir),
                             .fallback = y->fallback ? mem_strdup(y->fallback) : NULL,
                             .replicas = 1,
                             .stages = c->core.stages,
                             .tensor = c->core.tensor,
                             .weight = 1};
    const struct {
        const char *key;
        const int64_t *from;
        int64_t lo, hi;
        uint32_t *to;
    } numbers[] = {
        {"replicas", y->replicas, 0, COORD_MAX_REPLICAS, &p->replicas},
        {"prefill", y->prefill, 0, COORD_MAX_REPLICAS, &p->prefill_replicas},
        {"decode", y->decode, 0, COORD_MAX_REPLICAS, &p->decode_replicas},
        {"stages", y->stages, 1, LIMIT_STAGES, &p->stages},
        {"tensor", y->tensor, 1, LIMIT_TENSOR, &p->tensor},
        {"weight", y->weight, 0, 1000000, &p->weight},
        {"prompt_max", y->prompt_max, 0, LIMIT_CONTEXT, &p->prompt_max},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        enum status s = number(path, y->name, numbers[i].key, numbers[i].from, numbers[i].lo,
                               numbers[i].hi, numbers[i].to, err);
        if (s)
            return s;
    }
    for (uint32_t i = 0; i + 1 < c->pools_n; i++)
        if (!strcmp(c->pools[i].name, p->name))
            return errmsg_set(err, STATUS_BAD_CONFIG, "%s: pools: %s: is there twice", path,
                              p->name);
    const char *wrong = coord_pool_wrong(p);
    return wrong ? errmsg_set(err, STATUS_BAD_CONFIG, "%s: pools: %s: %s", path, p->name, wrong)
                 : STATUS_OK;
}

static const struct coord_pool *pool_of(const struct coordinator_config *c, const char *model)
{
    for (uint32_t i = 0; i < c->pools_n; i++)
        if (!strcmp(c->pools[i].model, model))
            return &c->pools[i];
    return NULL;
}

// All pools of a model have its first one's fallback, and its folder's tokenizer.
static enum status check_fallback(const char *path, const struct coordinator_config *c,
                                  const struct coord_pool *p, struct errmsg *err)
{
    const struct coord_pool *at = p;
    for (uint32_t hops = 0; at->fallback; hops++) {
        const struct coord_pool *next = pool_of(c, at->fallback);
        if (!next)
            return errmsg_set(err, STATUS_BAD_CONFIG, "%s: pools: %s: fallback: no model '%s'",
                              path, at->name, at->fallback);
        if (hops == c->pools_n)
            return errmsg_set(err, STATUS_BAD_CONFIG,
                              "%s: pools: %s: fallback: '%s' leads back to where it began", path,
                              p->name, p->fallback);
        at = next;
    }
    return STATUS_OK;
}

static enum status take_alias(const char *path, const struct yaml_alias *y,
                              struct coordinator_config *c, struct errmsg *err)
{
    if (c->pools_n && !pool_of(c, y->model))
        return errmsg_set(err, STATUS_BAD_CONFIG, "%s: aliases: %s: no model '%s'", path, y->name,
                          y->model);
    if (pool_of(c, y->name))
        return errmsg_set(err, STATUS_BAD_CONFIG, "%s: aliases: %s: is the name of a model", path,
                          y->name);
    for (uint32_t i = 0; i < c->aliases_n; i++)
        if (!strcmp(c->aliases[i].name, y->name))
            return errmsg_set(err, STATUS_BAD_CONFIG, "%s: aliases: %s: is there twice", path,
                              y->name);
    c->aliases[c->aliases_n++] =
        (struct model_alias){.name = mem_strdup(y->name), .model = mem_strdup(y->model)};
    return STATUS_OK;
}

enum status config_take_pools(const char *path, const struct yaml_pool *pools, unsigned pools_n,
                              const struct yaml_alias *aliases, unsigned aliases_n,
                              struct coordinator_config *c, struct errmsg *err)
{
    enum status s = STATUS_OK;
    c->pools = mem_zalloc(pools_n + 1, sizeof *c->pools);
    c->aliases = mem_zalloc(aliases_n + 1, sizeof *c->aliases);
    for (unsigned i = 0; i < pools_n && !s; i++)
        s = take_pool(path, &pools[i], c, err);
    for (uint32_t i = 0; i < c->pools_n && !s; i++)
        s = check_fallback(path, c, &c->pools[i], err);
    for (unsigned i = 0; i < aliases_n && !s; i++)
        s = take_alias(path, &aliases[i], c, err);
    return s;
}

void config_pools_finish(struct coordinator_config *c)
{
    for (uint32_t i = 0; i < c->pools_n; i++) {
        free((char *)c->pools[i].name);
        free((char *)c->pools[i].model);
        free((char *)c->pools[i].model_dir);
        free((char *)c->pools[i].fallback);
    }
    for (uint32_t i = 0; i < c->aliases_n; i++) {
        free((char *)c->aliases[i].name);
        free((char *)c->aliases[i].model);
    }
    free(c->pools);
    free(c->aliases);
}
