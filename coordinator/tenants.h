// Who pays: a tenant has a weight (its share when all want more than there is), a quota of tokens a
// second, and a highest band. Named ones come from the configuration; any other name that a client
// may give gets the settings of the default tenant, and is forgotten when its place is needed.
//
// Fairness is counted in tokens, as in "Fairness in Serving Large Language Models" (Sheng et al.,
// OSDI'24): each tenant has a counter of the tokens it was served divided by its weight, and the
// lowest one is served next. A tenant that comes back from idle is lifted to the lowest counter
// among those that wait, so that nobody saves up a right to flood.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "coordinator/queue.h"
#include "coordinator/request.h"

struct tenant;

// The waiting requests of one tenant in one band, earliest deadline first.
struct lane {
    struct tenant *tenant;
    struct request_list waiting;
    struct lane *prev, *next; // among the lanes of the band that are not empty
};

// Its waiting requests in one pool.
struct share {
    struct lane lanes[QUEUE_BANDS];
    uint32_t waiting_n;
};

struct tenant {
    char name[LIMIT_NAME];
    struct coord_tenant set; // its `name` is not used
    bool named;              // of the configuration: never forgotten
    double served;           // tokens / weight
    double level;            // of the quota's bucket, in tokens; below 0 = debt
    uint64_t level_us;       // when it was computed
    uint32_t live_n;         // requests that are not finished
    uint32_t waiting_n;      // of them in a lane
    uint64_t submitted, refused_quota, tokens;
    struct share *shares[COORD_MAX_POOLS]; // owned; NULL until it first waits in that pool
    struct tenant *prev, *next;
    UT_hash_handle hh; // by name
};

struct tenants {
    struct tenant *by_name, *list; // owned
    struct coord_tenant other;     // settings of names that the configuration does not know
    struct tenant *anonymous;      // who gives no name, and names beyond the limit
    uint32_t n, limit;
};

// `v` is copied. `limit`: unnamed tenants kept at once.
void tenants_init(struct tenants *ts, const struct coord_tenant *v, uint32_t n,
                  const struct coord_tenant *other, uint32_t limit);
void tenants_finish(struct tenants *ts);
// Never NULL. name NULL or "" = the anonymous one. Stays while live_n or waiting_n are not 0, and
// until the next call otherwise.
struct tenant *tenants_get(struct tenants *ts, const char *name, uint64_t now_us);
struct share *tenant_share(struct tenant *t, uint32_t pool); // made when it is not there
// Against the quota: the prompt when it is admitted, each token of the answer as it comes.
void tenant_charge(struct tenant *t, uint64_t now_us, uint32_t tokens);
void tenant_refund(struct tenant *t, uint32_t tokens);
// Towards the share: the prompt when it is first dispatched, and each token of the answer.
void tenant_serve(struct tenant *t, uint32_t tokens);
double tenant_quota_left(const struct tenant *t, uint64_t now_us); // tokens; 0 without a quota
// 0 = within its quota; else ms until it is again.
uint32_t tenant_quota_wait_ms(struct tenant *t, uint64_t now_us);
