// Requests that wait because their replica broke: bands 9..0, first come first served inside a
// band (fair.h is the queue of new ones). Intrusive: a request's `prev`/`next` belong to whichever
// list its state names.
#pragma once

#include <stdint.h>

struct request;

enum { QUEUE_BANDS = 10 };

struct request_list {
    struct request *head; // utlist's doubly linked list: head->prev is the tail
    uint32_t n;
};

void request_list_append(struct request_list *l, struct request *r);
void request_list_remove(struct request_list *l, struct request *r);

struct queue {
    struct request_list bands[QUEUE_BANDS];
    uint32_t n;
    uint64_t tokens; // of the prompts
};

void queue_push(struct queue *q, struct request *r);
void queue_remove(struct queue *q, struct request *r);
struct request *queue_head(const struct queue *q);                          // NULL when empty
struct request *queue_next(const struct queue *q, const struct request *r); // in order of service
