// Copies beside the queue. Bodies whose memory is plain need nothing of their own: it is memcpy.
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/kern_impl.h"

enum status kern_copier_create(struct kern *k, struct kern_copier **out)
{
    struct kern_copier *c = mem_zalloc(1, sizeof *c);
    c->k = k;
    enum status rc = k->device->copier_open ? k->device->copier_open(c) : STATUS_OK;
    if (rc == STATUS_OK)
        *out = c;
    else
        free(c);
    return rc;
}

void kern_copier_destroy(struct kern_copier *c)
{
    if (!c)
        return;
    if (c->k->device->copier_close)
        c->k->device->copier_close(c);
    free(c);
}

enum status kern_copier_fence(struct kern_copier *c)
{
    return c->k->device->copier_fence ? c->k->device->copier_fence(c) : STATUS_OK;
}

static size_t check_strip(const struct kern_copier *c, const struct kern_strip *s)
{
    assert(s->buf->k == c->k && s->n <= s->stride);
    assert(!s->rows || s->at + (s->rows - 1) * s->stride + s->n <= s->buf->n);
    return kern_dtype_bytes(s->buf->dtype);
}

enum status kern_copier_read(struct kern_copier *c, void *host, const struct kern_strip *s)
{
    size_t e = check_strip(c, s);
    if (c->k->device->copier_read)
        return c->k->device->copier_read(c, host, s);
    const char *from = (const char *)s->buf->p + s->at * e;
    size_t whole = s->n == s->stride ? s->rows : 1;
    for (size_t i = 0; i < s->rows; i += whole)
        memcpy((char *)host + i * s->n * e, from + i * s->stride * e, whole * s->n * e);
    return STATUS_OK;
}

enum status kern_copier_write(struct kern_copier *c, const struct kern_strip *s, const void *host)
{
    size_t e = check_strip(c, s);
    if (c->k->device->copier_write)
        return c->k->device->copier_write(c, s, host);
    char *to = (char *)s->buf->p + s->at * e;
    size_t whole = s->n == s->stride ? s->rows : 1;
    for (size_t i = 0; i < s->rows; i += whole)
        memcpy(to + i * s->stride * e, (const char *)host + i * s->n * e, whole * s->n * e);
    return STATUS_OK;
}

enum status kern_copier_wait(struct kern_copier *c)
{
    return c->k->device->copier_wait ? c->k->device->copier_wait(c) : STATUS_OK;
}
