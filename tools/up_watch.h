// What `hadal up` asks its coordinator all the time, without ever waiting for it: is the cluster
// ready, which nodes does it call lost or stuck, and, until it serves, why not. Each question is
// asked again some time after its answer, or after its time limit.
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct up_watch;

enum up_answer {
    UP_SILENT,    // none
    UP_NOT_READY, // it is there
    UP_READY,     // it serves
};

struct up_watch_handler {
    void (*ready)(void *user, enum up_answer answer);
    void (*nodes)(void *user, json_t *nodes);       // array, borrowed
    void (*wanted)(void *user, int64_t wanted, int64_t spare); // nodes; free ones too many
    void (*replicas)(void *user, json_t *replicas); // the same; asked until it serves
    void (*silent)(void *user, int64_t ms);         // no answer of any kind for so long
    void *user;
};

struct up_watch *up_watch_open(const char *url, const struct up_watch_handler *h);
void up_watch_close(struct up_watch *w); // NULL is fine
// Waits for at most timeout_ms, or until `fd` is readable; handles what was answered, asks anew.
void up_watch_turn(struct up_watch *w, int fd, int timeout_ms);
// The coordinator was just started: silence counts from now.
void up_watch_restarted(struct up_watch *w);
