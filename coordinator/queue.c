// Lists per band.
#include "coordinator/queue.h"

#include <assert.h>
#include <stddef.h>
#include <utlist.h>

#include "coordinator/core.h"

void request_list_append(struct request_list *l, struct request *r)
{
    DL_APPEND(l->head, r);
    l->n++;
}

void request_list_remove(struct request_list *l, struct request *r)
{
    assert(l->n > 0);
    DL_DELETE(l->head, r);
    l->n--;
    r->prev = r->next = NULL;
}

void queue_push(struct queue *q, struct request *r)
{
    assert(r->band < QUEUE_BANDS);
    request_list_append(&q->bands[r->band], r);
    q->n++;
    q->tokens += r->prompt_n;
}

void queue_remove(struct queue *q, struct request *r)
{
    request_list_remove(&q->bands[r->band], r);
    q->n--;
    q->tokens -= r->prompt_n;
}

static struct request *queue_from(const struct queue *q, int band)
{
    for (; band >= 0; band--)
        if (q->bands[band].head)
            return q->bands[band].head;
    return NULL;
}

struct request *queue_head(const struct queue *q)
{
    return q->n ? queue_from(q, QUEUE_BANDS - 1) : NULL;
}

struct request *queue_next(const struct queue *q, const struct request *r)
{
    return r->next ? r->next : queue_from(q, r->band - 1);
}
