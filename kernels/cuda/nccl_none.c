// nccl_lib.h where NCCL's header was not there at build time: a group has peer memory or nothing.
#include "kernels/cuda/nccl_lib.h"

#include <assert.h>

bool nccl_present(void)
{
    return false;
}

bool nccl_id(unsigned char id[NCCL_ID_BYTES])
{
    return false;
}

enum status nccl_create(const struct nccl_args *args, const volatile uint32_t *stop,
                        struct nccl **out, struct errmsg *e)
{
    return errmsg_set(e, STATUS_UNSUPPORTED, "built without NCCL");
}

// No communicator exists that these could be called with.

enum status nccl_all_gather(struct nccl *n, void *packed, size_t bytes)
{
    return STATUS_UNSUPPORTED;
}

enum status nccl_all_reduce(struct nccl *n, float *buf, size_t count)
{
    return STATUS_UNSUPPORTED;
}

void nccl_abort(struct nccl *n)
{
    assert(!n);
}

bool nccl_failed(struct nccl *n)
{
    return false;
}

void nccl_destroy(struct nccl *n)
{
    assert(!n);
}
