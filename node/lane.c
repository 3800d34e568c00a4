// Lanes: slots, credits, and the order of messages. Sequence numbers count messages from 1, modulo
// 2^32; message k lives in slot (k - 1) % slots, at the sender and at the receiver. What the peer
// says (offset, length, number, credits) is checked against what it may say.
#include "node/lane.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"

struct lane {
    struct lane_hub *hub;
    struct lane_config config;
    bool sender;
    uint32_t region;
    size_t stride;
    uint8_t *slots;  // receiver: the region, owned by the hub; sender: staging, owned
    size_t *lengths; // owned; of the messages in the slots

    uint32_t committed; // sender: messages handed over by the owner
    uint32_t posted;    // sender: of them, given to the link
    uint32_t arrived;   // receiver: messages in
    uint32_t consumed;  // receiver: released; sender: credits returned
    uint32_t credited;  // receiver: of the consumed, told to the sender
};

static enum status lane_check(const struct lane_hub *h, const struct lane_config *c,
                              struct errmsg *e)
{
    if (c->channel >= LANE_CHANNELS || c->peer >= lane_hub_ranks(h) || c->peer == lane_hub_rank(h))
        return errmsg_set(e, STATUS_BAD_CONFIG, "lane: no channel %u with rank %u", c->channel,
                          c->peer);
    if (c->slots == 0 || c->slots > 65536 || c->slot_bytes == 0 ||
        c->slot_bytes > ((size_t)1 << 40) / c->slots)
        return errmsg_set(e, STATUS_BAD_CONFIG, "lane %u: bad size, %u slots of %zu bytes",
                          c->channel, c->slots, c->slot_bytes);
    return STATUS_OK;
}

static struct lane *lane_create(struct lane_hub *h, const struct lane_config *c, bool sender)
{
    struct lane *l = mem_zalloc(1, sizeof *l);
    l->hub = h;
    l->config = *c;
    l->sender = sender;
    l->region = lane_hub_region(h, c->channel, sender ? lane_hub_rank(h) : c->peer);
    l->stride = (c->slot_bytes + 63) & ~(size_t)63;
    l->lengths = mem_zalloc(c->slots, sizeof *l->lengths);
    return l;
}

void lane_free(struct lane *l)
{
    if (l->sender)
        free(l->slots);
    free(l->lengths);
    free(l);
}

static uint8_t *slot_of(const struct lane *l, uint32_t message)
{
    return l->slots + (message - 1) % l->config.slots * l->stride;
}

static size_t *length_of(const struct lane *l, uint32_t message)
{
    return &l->lengths[(message - 1) % l->config.slots];
}

enum status lane_open_tx(struct lane_hub *h, const struct lane_config *config,
                         struct lane **lane_out, struct errmsg *e)
{
    enum status s = lane_check(h, config, e);
    if (s != STATUS_OK)
        return s;
    struct lane *l = lane_create(h, config, true);
    l->slots = aligned_alloc(64, l->stride * config->slots);
    if (!l->slots) {
        lane_free(l);
        return errmsg_set(e, STATUS_NO_MEMORY, "lane %u: no memory for %u slots of %zu bytes",
                          config->channel, config->slots, config->slot_bytes);
    }
    lane_hub_adopt(h, l);
    *lane_out = l;
    return STATUS_OK;
}

static enum status on_message(void *ctx, uint32_t from, const struct xport_event *ev)
{
    struct lane *l = ctx;
    uint32_t message = l->arrived + 1;
    if (from != l->config.peer || ev->notice != message ||
        l->arrived - l->consumed == l->config.slots || ev->bytes > l->config.slot_bytes ||
        ev->offset != (uint64_t)(slot_of(l, message) - l->slots))
        return STATUS_LINK_PROTOCOL;
    *length_of(l, message) = ev->bytes;
    l->arrived = message;
    return STATUS_OK;
}

enum status lane_open_rx(struct lane_hub *h, const struct lane_config *config,
                         struct lane **lane_out, struct errmsg *e)
{
    enum status s = lane_check(h, config, e);
    if (s != STATUS_OK)
        return s;
    struct lane *l = lane_create(h, config, false);
    struct lane_receiver receiver = {on_message, l};
    void *base;
    s = lane_hub_receive(h, l->region, l->stride * config->slots, &receiver, &base, e);
    if (s != STATUS_OK) {
        lane_free(l);
        return s;
    }
    l->slots = base;
    lane_hub_adopt(h, l);
    *lane_out = l;
    return STATUS_OK;
}

// --- sender ---

static void post(struct lane *l)
{
    while (l->posted != l->committed) {
        uint32_t message = l->posted + 1;
        const struct xwrite w = {.region = l->region,
                                 .offset = (uint64_t)(slot_of(l, message) - l->slots),
                                 .src = slot_of(l, message),
                                 .bytes = *length_of(l, message),
                                 .notice = message};
        if (lane_hub_write(l->hub, l->config.peer, &w) != STATUS_OK)
            return; // full: the next poll; lost: told by the next call
        l->posted = message;
    }
}

static enum status standing(const struct lane *l)
{
    return lane_hub_aborted(l->hub) ? STATUS_ABORTED : lane_hub_peer(l->hub, l->config.peer);
}

enum status lane_reserve(struct lane *l, void **slot_out)
{
    assert(l->sender);
    enum status s = standing(l);
    if (s != STATUS_OK)
        return s;
    if (l->committed - l->consumed == l->config.slots)
        return STATUS_FULL;
    *slot_out = slot_of(l, l->committed + 1);
    return STATUS_OK;
}

enum status lane_commit(struct lane *l, size_t bytes)
{
    assert(l->sender && l->committed - l->consumed < l->config.slots);
    assert(bytes <= l->config.slot_bytes);
    *length_of(l, ++l->committed) = bytes;
    post(l);
    return standing(l);
}

enum status lane_send(struct lane *l, const void *bytes, size_t n)
{
    if (n > l->config.slot_bytes)
        return STATUS_TOO_LARGE;
    void *slot;
    enum status s = lane_reserve(l, &slot);
    if (s != STATUS_OK)
        return s;
    if (n > 0)
        memcpy(slot, bytes, n);
    return lane_commit(l, n);
}

// --- receiver ---

enum status lane_recv(struct lane *l, const void **bytes_out, size_t *n_out)
{
    assert(!l->sender);
    if (lane_hub_aborted(l->hub))
        return STATUS_ABORTED;
    if (l->arrived == l->consumed) {
        enum status s = lane_hub_peer(l->hub, l->config.peer);
        return s == STATUS_OK ? STATUS_AGAIN : s;
    }
    *bytes_out = slot_of(l, l->consumed + 1);
    *n_out = *length_of(l, l->consumed + 1);
    return STATUS_OK;
}

static void return_credit(struct lane *l)
{
    if (l->credited == l->consumed)
        return;
    const struct xwrite w = {.region = lane_hub_region(l->hub, LANE_CHANNEL_HUB, 0),
                             .offset = LANE_WORD_CREDIT + l->config.channel,
                             .notice = l->consumed};
    if (lane_hub_write(l->hub, l->config.peer, &w) == STATUS_OK)
        l->credited = l->consumed;
}

void lane_release(struct lane *l)
{
    assert(!l->sender && l->arrived != l->consumed);
    l->consumed++;
    return_credit(l);
}

// --- for the hub ---

void lane_flush(struct lane *l)
{
    if (l->sender)
        post(l);
    else
        return_credit(l);
}

enum status lane_credit(struct lane *l, uint32_t from, uint32_t channel, uint32_t consumed)
{
    if (!l->sender || l->config.peer != from || l->config.channel != channel)
        return STATUS_OK;
    if (consumed - l->consumed > l->posted - l->consumed)
        return STATUS_LINK_PROTOCOL;
    l->consumed = consumed;
    return STATUS_OK;
}

// --- waiting ---

static uint64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000u + (uint64_t)ts.tv_nsec / 1000000u;
}

// Waits for anything to happen. DEADLINE when the time is over.
static enum status turn(struct lane *l, int timeout_ms, uint64_t deadline)
{
    uint64_t now = now_ms();
    if (timeout_ms >= 0 && now >= deadline)
        return STATUS_DEADLINE;
    enum status s = lane_hub_wait(l->hub, timeout_ms < 0 ? -1 : (int)(deadline - now));
    return s == STATUS_AGAIN ? STATUS_OK : s;
}

enum status lane_reserve_wait(struct lane *l, int timeout_ms, void **slot_out)
{
    uint64_t deadline = now_ms() + (timeout_ms > 0 ? (uint64_t)timeout_ms : 0);
    enum status s;
    while ((s = lane_reserve(l, slot_out)) == STATUS_FULL)
        if ((s = turn(l, timeout_ms, deadline)) != STATUS_OK)
            break;
    return s;
}

enum status lane_recv_wait(struct lane *l, int timeout_ms, const void **bytes_out, size_t *n_out)
{
    uint64_t deadline = now_ms() + (timeout_ms > 0 ? (uint64_t)timeout_ms : 0);
    enum status s;
    while ((s = lane_recv(l, bytes_out, n_out)) == STATUS_AGAIN)
        if ((s = turn(l, timeout_ms, deadline)) != STATUS_OK)
            break;
    return s;
}
