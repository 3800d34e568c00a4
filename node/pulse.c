// Heartbeat contents without a lock (Boehm, "Can seqlocks get along with programming language
// memory models?", MSPC'12: data as relaxed atomics, fences around them).
#include "node/pulse.h"

#define SET(field, v) atomic_store_explicit(&p->field, (v), memory_order_relaxed)
#define GET(field)    atomic_load_explicit(&p->field, memory_order_relaxed)

void pulse_write(struct node_pulse *p, const struct pulse_values *v)
{
    uint32_t version = GET(version);
    SET(version, version + 1);
    atomic_thread_fence(memory_order_release);
    SET(replica, v->replica);
    SET(epoch, v->epoch);
    SET(steps, v->steps);
    SET(oldest_us, v->oldest_us);
    SET(running, v->running);
    SET(waiting, v->waiting);
    SET(kv_blocks, v->kv_blocks);
    SET(kv_free, v->kv_free);
    atomic_store_explicit(&p->version, version + 2, memory_order_release);
}

static bool read_once(const struct node_pulse *p, struct pulse_values *v)
{
    uint32_t version = atomic_load_explicit(&p->version, memory_order_acquire);
    v->replica = GET(replica);
    v->epoch = GET(epoch);
    v->steps = GET(steps);
    v->oldest_us = GET(oldest_us);
    v->running = GET(running);
    v->waiting = GET(waiting);
    v->kv_blocks = GET(kv_blocks);
    v->kv_free = GET(kv_free);
    atomic_thread_fence(memory_order_acquire);
    return version % 2 == 0 && GET(version) == version;
}

// The writer may be stopped in the middle: a torn heartbeat is better than none.
static void read_values(const struct node_pulse *p, struct pulse_values *v)
{
    for (int tries = 0; tries < 1000; tries++)
        if (read_once(p, v))
            return;
}

static uint32_t age_ms(uint64_t since_us, uint64_t now_us)
{
    uint64_t ms = since_us < now_us ? (now_us - since_us) / 1000 : 0;
    return ms < UINT32_MAX ? (uint32_t)ms : UINT32_MAX;
}

void node_pulse_turn(struct node_pulse *p, uint64_t now_us)
{
    SET(turned_us, now_us);
}

void node_heartbeat(const struct node_pulse *p, const struct rank_progress *progress,
                    uint64_t now_us, struct msg_heartbeat *out)
{
    struct pulse_values v;
    read_values(p, &v);
    *out = (struct msg_heartbeat){
        .replica = v.replica,
        .epoch = v.epoch,
        .steps = v.steps,
        .loop_age_ms = age_ms(GET(turned_us), now_us),
        .step_age_ms = v.oldest_us > 0 ? age_ms(v.oldest_us, now_us) : 0,
        .progress = *progress,
        .running = v.running,
        .waiting = v.waiting,
        .kv_blocks = v.kv_blocks,
        .kv_free = v.kv_free,
    };
}
