// A follower's link to the leader: connects, says HELLO, feeds follower.h with what comes.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "coordinator/copy_inside.h"

enum {
    KNOCK_MS = 300, // at most so often
    RETRY_MS = 50,
};

static void on_retry(uv_timer_t *t)
{
    follow_try(t->data);
}

// ---- the link -----------------------------------------------------------------------------------

static void on_down(void *arg, const char *why, bool was_up)
{
    struct copies *c = arg;
    c->uplink = NULL;
    if (was_up)
        log_warn("coordinator: follows %s no more: %s; %u requests are here", c->following, why,
                 c->follower.shadow.n);
    follower_down(&c->follower);
    if (c->role == COPY_FOLLOWER)
        uv_timer_start(&c->retry, on_retry, RETRY_MS, 0);
}

void follow_drop(struct copies *c, const char *why)
{
    if (c->uplink) {
        copy_link_drop(c->uplink);
        on_down(c, why, c->follower.up);
    }
    uv_timer_stop(&c->retry);
}

static void say(void *arg, const struct copy *copy)
{
    copy_link_say(((struct copies *)arg)->uplink, copy);
}

static enum status on_frame(void *arg, const struct wire_frame *f, struct errmsg *err)
{
    struct copies *c = arg;
    struct copy copy;
    struct coord_action seen;
    bool sees = false;
    enum status st = wire_decode_copy(&c->arena, f, &copy, err);
    if (st)
        return st;
    if (copy.kind == COPY_STATE) {
        c->state = copy.state;
        shell_check_ready(c->shell);
        return STATUS_OK;
    }
    if (copy.kind != COPY_RECORD)
        return errmsg_set(err, STATUS_LINK_PROTOCOL, "a frame that leaders do not send");
    st = follower_take(&c->follower, &copy.record, shell_now_us(), &sees, &seen, err);
    if (!st && sees)
        shell_act_seen(c->shell, &seen);
    if (!st && copy.record.what == COPY_SYNCED) {
        log_info("coordinator: follows %s, %u requests are here", c->following,
                 c->follower.shadow.n);
        shell_end_unknown(c->shell);
    }
    return st;
}

static void on_read(void *arg)
{
    struct copies *c = arg;
    const struct shadow *s = &c->follower.shadow;
    if (!s->synced || s->seq == c->acked)
        return;
    c->acked = s->seq;
    say(c, &(struct copy){.kind = COPY_ACK, .ack = s->seq});
}

static void on_up(void *arg)
{
    struct copies *c = arg;
    char http[COPY_ADDRESS], rpc[COPY_ADDRESS];
    c->acked = 0;
    shell_own_address(c->shell, http, sizeof http, rpc, sizeof rpc);
    say(c, &(struct copy){.kind = COPY_HELLO, .hello = {c->shell->cfg->name, "", http, rpc}});
    follower_up(&c->follower);
}

void follow_try(struct copies *c)
{
    struct sockaddr_storage a;
    struct errmsg err = {0};
    if (c->uplink && strcmp(c->following, c->view.leader.name))
        follow_drop(c, "another one leads now");
    if (c->role != COPY_FOLLOWER || c->uplink || c->shell->cfg->copies == COPY_OFF)
        return;
    bool mine = !strcmp(c->view.leader.name, c->shell->cfg->name); // as it was known last
    bool known = !mine && *c->view.leader.rpc &&
                 !shell_address("store: the leader's rpc", c->view.leader.rpc, &a, &err);
    if (err.text[0])
        log_warn("coordinator: %s", err.text);
    if (known) {
        snprintf(c->following, sizeof c->following, "%s", c->view.leader.name);
        c->uplink = copy_link_open(&(struct copy_link_args){.shell = c->shell,
                                                            .to = &a,
                                                            .up = on_up,
                                                            .frame = on_frame,
                                                            .read = on_read,
                                                            .down = on_down,
                                                            .arg = c});
    }
    if (!c->uplink)
        uv_timer_start(&c->retry, on_retry, RETRY_MS, 0);
}

void follow_knock(struct copies *c)
{
    uint64_t now_us = shell_now_us();
    if (!follower_synced(&c->follower) || now_us - c->knock_told_us < KNOCK_MS * 1000ull)
        return;
    c->knock_told_us = now_us;
    say(c, &(struct copy){.kind = COPY_KNOCK});
}

void follow_open(struct copies *c)
{
    uv_timer_init(&c->shell->loop, &c->retry);
    c->retry.data = c;
    c->follower.say = say;
    c->follower.arg = c;
}

void follow_tick(struct copies *c, uint64_t now_us)
{
    uint64_t id;
    if (c->uplink && copy_link_silent(c->uplink, now_us)) {
        follow_drop(c, "it says nothing");
        uv_timer_start(&c->retry, on_retry, RETRY_MS, 0);
    }
    while ((id = follower_overdue(&c->follower, now_us)))
        shell_act_seen(c->shell,
                       &(struct coord_action){
                           .kind = COORD_REFUSED,
                           .refused = {id, COORD_REFUSE_NO_CAPACITY, 1000,
                                       "no coordinator led before the deadline"}});
}
