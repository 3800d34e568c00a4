// Stands in for the verbs body where the headers of libibverbs and librdmacm were not there when
// this was built: verbs is a kind without a device.
#include <assert.h>

#include "rdma/xport_body.h"

static enum status no_open(struct xport *x, const struct xport_config *config, struct errmsg *e)
{
    return errmsg_set(e, STATUS_NO_DEVICE,
                      "xport verbs: built without the headers of libibverbs and librdmacm; use shm "
                      "or tcp");
}

const struct xport_body xport_verbs_body = {.name = "verbs", .open = no_open};
