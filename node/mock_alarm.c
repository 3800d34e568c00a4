// A thread that sleeps on a condition variable until the time set, rings once, and sleeps on.
#include "node/mock_alarm.h"

#include <assert.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

#include "base/mem.h"

struct mock_alarm {
    pthread_t thread;
    pthread_mutex_t lock; // guards the two below
    pthread_cond_t changed;
    uint64_t at_us;
    bool stop;
    void (*ring)(void *ctx);
    void *ctx;
};

uint64_t mock_alarm_now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static void wait_until(struct mock_alarm *a, uint64_t at_us)
{
    struct timespec until = {.tv_sec = (time_t)(at_us / 1000000),
                             .tv_nsec = (long)(at_us % 1000000) * 1000};
    if (at_us == UINT64_MAX)
        pthread_cond_wait(&a->changed, &a->lock);
    else
        pthread_cond_timedwait(&a->changed, &a->lock, &until);
}

static void *alarm_main(void *arg)
{
    struct mock_alarm *a = arg;
    pthread_mutex_lock(&a->lock);
    while (!a->stop) {
        if (a->at_us > mock_alarm_now_us()) {
            wait_until(a, a->at_us);
            continue;
        }
        a->at_us = UINT64_MAX;
        pthread_mutex_unlock(&a->lock);
        a->ring(a->ctx);
        pthread_mutex_lock(&a->lock);
    }
    pthread_mutex_unlock(&a->lock);
    return NULL;
}

struct mock_alarm *mock_alarm_create(void (*ring)(void *ctx), void *ctx)
{
    struct mock_alarm *a = mem_zalloc(1, sizeof *a);
    pthread_condattr_t attr;
    a->at_us = UINT64_MAX;
    a->ring = ring;
    a->ctx = ctx;
    pthread_mutex_init(&a->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&a->changed, &attr);
    pthread_condattr_destroy(&attr);
    int rc = pthread_create(&a->thread, NULL, alarm_main, a);
    assert(rc == 0);
    return a;
}

void mock_alarm_destroy(struct mock_alarm *a)
{
    if (a == NULL)
        return;
    pthread_mutex_lock(&a->lock);
    a->stop = true;
    pthread_cond_signal(&a->changed);
    pthread_mutex_unlock(&a->lock);
    pthread_join(a->thread, NULL);
    pthread_cond_destroy(&a->changed);
    pthread_mutex_destroy(&a->lock);
    free(a);
}

void mock_alarm_set(struct mock_alarm *a, uint64_t at_us)
{
    pthread_mutex_lock(&a->lock);
    a->at_us = at_us;
    pthread_cond_signal(&a->changed);
    pthread_mutex_unlock(&a->lock);
}
