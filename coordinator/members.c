// Nodes and their connections: who is connected, who is silent, who may be used. A member is known
// by its name and outlives its connections, so that a drained node is still drained after a
// restart.
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/hash.h"
#include "coordinator/core.h"

enum { LOOK_US = 100000 }; // between the first look at a silent node and the last

#define EVER (SM_TO(COORD_NODE_EJECTED) | SM_TO(COORD_NODE_LOST))
static const struct sm_state member_states[] = {
    [COORD_NODE_FREE] = {"free", EVER | SM_TO(COORD_NODE_IN_REPLICA) | SM_TO(COORD_NODE_DRAINED)},
    [COORD_NODE_IN_REPLICA] = {"in-replica",
                               EVER | SM_TO(COORD_NODE_FREE) | SM_TO(COORD_NODE_DRAINING) |
                                   SM_TO(COORD_NODE_DRAINED) | SM_TO(COORD_NODE_SUSPECT)},
    [COORD_NODE_DRAINING] = {"draining",
                             EVER | SM_TO(COORD_NODE_IN_REPLICA) | SM_TO(COORD_NODE_DRAINED)},
    [COORD_NODE_DRAINED] = {"drained", EVER | SM_TO(COORD_NODE_FREE)},
    [COORD_NODE_SUSPECT] = {"suspect", EVER | SM_TO(COORD_NODE_FREE) | SM_TO(COORD_NODE_DRAINED)},
    [COORD_NODE_EJECTED] = {"ejected", SM_TO(COORD_NODE_FREE) | SM_TO(COORD_NODE_LOST)},
    [COORD_NODE_LOST] = {"lost", SM_TO(COORD_NODE_FREE) | SM_TO(COORD_NODE_DRAINED) |
                                     SM_TO(COORD_NODE_EJECTED)},
};
const struct sm member_sm = {"member", member_states, COORD_NODE_LOST + 1};

const char *coord_node_state_name(enum coord_node_state s)
{
    return sm_name(&member_sm, s);
}

struct member *members_find(const struct coord *c, const char *name)
{
    struct member *m;
    HASH_FIND_STR(c->members_by_name, name, m);
    return m;
}

void member_move(struct coord *c, struct member *m, enum coord_node_state to)
{
    c->free_n -= m->state == COORD_NODE_FREE;
    m->state = sm_move(&member_sm, m->state, to);
    c->free_n += m->state == COORD_NODE_FREE;
    if (to == COORD_NODE_FREE)
        c->place = true;
}

void member_release(struct coord *c, struct member *m, bool suspect)
{
    m->replica = NULL;
    if (m->mark == MARK_EJECT || m->mark == MARK_QUARANTINE)
        member_move(c, m, COORD_NODE_EJECTED);
    else if (m->mark == MARK_DRAIN)
        member_move(c, m, COORD_NODE_DRAINED);
    else
        member_move(c, m, suspect ? COORD_NODE_SUSPECT : COORD_NODE_FREE);
    waiters_answer(c, &m->drains, STATUS_OK, "the node is idle");
}

void member_blame(struct coord *c, struct member *m, const char *text)
{
    m->faults++;
    free(m->fault);
    m->fault = mem_strdup(text);
    m->fault_us = c->now_us;
}

// ---- connections ----

struct conn *conn_find(const struct coord *c, uint64_t id)
{
    return idmap_find(&c->conns, id);
}

static void conn_add(struct coord *c, uint64_t id, struct member *m, bool pulse)
{
    struct conn *k = mem_zalloc(1, sizeof *k);
    k->id = id;
    k->member = m;
    k->pulse = pulse;
    idmap_add(&c->conns, id, k);
}

static void conn_forget(struct coord *c, struct conn *k)
{
    idmap_remove(&c->conns, k->id);
    free(k);
}

__attribute__((format(printf, 4, 5))) static void conn_close(struct coord *c, uint64_t id,
                                                             enum status s, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    const char *text = arena_vprintf(&c->arena, fmt, ap);
    va_end(ap);
    struct conn *k = conn_find(c, id);
    if (k)
        conn_forget(c, k);
    struct coord_action *a = core_emit(c, COORD_CLOSE_CONN);
    a->close.conn = id;
    a->close.status = s;
    a->close.text = text;
}

// ---- coming and going ----

static void member_free(struct coord *c, struct member *m)
{
    core_disarm(c, &m->timer);
    core_disarm(c, &m->quarantine_timer);
    HASH_DELETE(hh, c->members_by_name, m);
    DL_DELETE(c->members, m);
    c->members_n--;
    waiters_free(&m->drains);
    free(m->host);
    free(m->backend);
    free(m->fault);
    sources_forget(m);
    free(m);
}

void members_free(struct coord *c)
{
    struct member *m, *next;
    DL_FOREACH_SAFE(c->members, m, next)
    member_free(c, m);
    for (size_t i = 0; i < c->conns.cap; i++)
        free(c->conns.slots[i].value);
    idmap_finish(&c->conns);
}

// How long this member may be silent.
static uint64_t member_patience_us(const struct coord *c, const struct member *m)
{
    bool warming = m->replica && m->replica->state == COORD_REPLICA_FORMING;
    return 1000ull * (warming ? c->cfg.warmup_silence_ms : c->cfg.heartbeat_timeout_ms);
}

void member_watch(struct coord *c, struct member *m)
{
    m->silent = false;
    core_arm(c, &m->timer, TIMER_MEMBER, m->heartbeat_us + member_patience_us(c, m) - LOOK_US);
}

// The connection's end is the end of all that the node did. `why` reads on after "node X ".
void member_lose(struct coord *c, struct member *m, enum status s, const char *why)
{
    const char *text = arena_printf(&c->arena, "node %s %s", m->name, why);
    if (m->pulse_conn)
        conn_close(c, m->pulse_conn, s, "%s", text);
    if (m->conn)
        conn_close(c, m->conn, s, "%s", text);
    m->conn = m->pulse_conn = 0;
    struct replica *r = m->replica;
    m->replica = NULL;
    member_move(c, m, COORD_NODE_LOST);
    member_blame(c, m, why);
    waiters_answer(c, &m->drains, STATUS_OK, "the node is gone; it stays drained if it returns");
    core_arm(c, &m->timer, TIMER_MEMBER, c->now_us + 1000ull * c->cfg.lost_keep_ms);
    if (!r) {
        core_trace(c, LOG_WARN, "%s", text);
        return;
    }
    r->ranks[m->rank] = NULL;
    replica_fence(c, r, &(struct fence){FENCE_LOST, m, text});
}

static bool name_ok(const char *s)
{
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
                                  "._-";
    size_t n = s ? strnlen(s, LIMIT_NAME) : 0;
    return n > 0 && n < LIMIT_NAME && strspn(s, allowed) == n;
}

static void replace_string(char **at, const char *s)
{
    free(*at);
    *at = mem_strdup(s ? s : "");
}

static struct member *member_create(struct coord *c, const char *name)
{
    struct member *m = mem_zalloc(1, sizeof *m);
    memcpy(m->name, name, strlen(name) + 1);
    m->state = COORD_NODE_LOST;
    HASH_ADD_STR(c->members_by_name, name, m);
    DL_APPEND(c->members, m);
    c->members_n++;
    return m;
}

// Room for one more name: forgets the node that has been in the list longest of those that are
// gone and unmarked.
static bool make_room(struct coord *c)
{
    if (c->members_n < LIMIT_NODES)
        return true;
    struct member *m;
    DL_FOREACH(c->members, m)
    {
        if (m->state == COORD_NODE_LOST && m->mark == MARK_NONE) {
            member_free(c, m);
            return true;
        }
    }
    return false;
}

void members_restore_mark(struct coord *c, const struct coord_admin *a)
{
    if (!name_ok(a->target) || (a->op != COORD_DRAIN && a->op != COORD_EJECT))
        return;
    struct member *m = members_find(c, a->target);
    if (!m && make_room(c)) {
        m = member_create(c, a->target);
        replace_string(&m->host, "");
        replace_string(&m->backend, "");
    }
    if (!m || m->conn) // what it is now counts
        return;
    m->mark = a->op == COORD_DRAIN ? MARK_DRAIN : MARK_EJECT;
    core_trace(c, LOG_INFO, "node %s stays %s", m->name,
               a->op == COORD_DRAIN ? "drained" : "ejected");
}

static void member_join(struct coord *c, struct member *m, uint64_t conn, const struct msg_hello *h)
{
    if (m->incarnation != h->incarnation) { // a new process: nothing is in its memory
        m->holds = false;
        sources_forget(m);
        m->faults = 0;
    }
    m->incarnation = h->incarnation;
    m->conn = conn;
    m->pid = h->pid;
    replace_string(&m->host, h->host);
    replace_string(&m->backend, h->backend);
    m->host_hash = hash_bytes(m->host, strlen(m->host), 0);
    m->heartbeat = (struct msg_heartbeat){0};
    m->heartbeat_us = c->now_us;
    m->joins++;
    conn_add(c, conn, m, false);
    core_trace(c, LOG_INFO, "node %s joined%s", m->name,
               m->mark == MARK_DRAIN  ? ", stays drained"
               : m->mark != MARK_NONE ? ", stays ejected"
                                      : "");
    member_release(c, m, false);
    member_watch(c, m);
    core_send(c, conn,
              (struct msg){.kind = MSG_WELCOME, .welcome = {.heartbeat_ms = c->cfg.heartbeat_ms}});
}

// The heartbeat thread's own connection belongs to a process that is connected already.
static void pulse_up(struct coord *c, uint64_t conn, const struct msg_hello *h, struct member *m)
{
    if (!m || !m->conn || m->incarnation != h->incarnation) {
        conn_close(c, conn, STATUS_NOT_FOUND,
                   "heartbeats of node %s: that process is not connected", h->name);
        return;
    }
    if (m->pulse_conn)
        conn_close(c, m->pulse_conn, STATUS_EXISTS, "replaced by a new heartbeat connection");
    m->pulse_conn = conn;
    conn_add(c, conn, m, true);
}

void protocol_error(struct coord *c, struct member *m, uint64_t conn, const char *text)
{
    c->stats.protocol_errors++;
    if (conn == m->conn) {
        member_lose(c, m, STATUS_LINK_PROTOCOL, text);
        return;
    }
    m->pulse_conn = 0;
    conn_close(c, conn, STATUS_LINK_PROTOCOL, "node %s %s", m->name, text);
}

void members_up(struct coord *c, uint64_t conn, const struct msg *msg)
{
    struct conn *known = conn_find(c, conn);
    if (known) {
        protocol_error(c, known->member, conn, "opened its connection twice");
        return;
    }
    if (!msg || msg->kind != MSG_HELLO) {
        c->stats.protocol_errors++;
        conn_close(c, conn, STATUS_LINK_PROTOCOL, "the first message must be HELLO");
        return;
    }
    const struct msg_hello *h = &msg->hello;
    if (h->version != MSG_VERSION) {
        conn_close(c, conn, STATUS_LINK_VERSION,
                   "the node speaks protocol version %u, this coordinator %d", h->version,
                   MSG_VERSION);
        return;
    }
    if (!name_ok(h->name)) {
        c->stats.protocol_errors++;
        conn_close(c, conn, STATUS_LINK_PROTOCOL,
                   "HELLO: name must be 1 to %d of A-Z a-z 0-9 . _ -", LIMIT_NAME - 1);
        return;
    }
    struct member *m = members_find(c, h->name);
    if (h->heartbeat_channel) {
        pulse_up(c, conn, h, m);
        return;
    }
    if (m && m->conn && h->incarnation < m->incarnation) {
        conn_close(c, conn, STATUS_EXISTS, "a newer process named %s is connected", h->name);
        return;
    }
    if (m && m->conn)
        member_lose(c, m, STATUS_EXISTS, "connected anew");
    if (!m && !make_room(c)) {
        conn_close(c, conn, STATUS_FULL, "%d nodes are known already", LIMIT_NODES);
        return;
    }
    member_join(c, m ? m : member_create(c, h->name), conn, h);
}

void members_down(struct coord *c, uint64_t conn)
{
    struct conn *k = conn_find(c, conn);
    if (!k)
        return;
    struct member *m = k->member;
    bool pulse = k->pulse;
    conn_forget(c, k);
    if (pulse) {
        m->pulse_conn = 0;
        return;
    }
    m->conn = 0;
    member_lose(c, m, STATUS_LINK_DOWN, "connection lost");
}

void members_timer(struct coord *c, struct member *m)
{
    if (m->state == COORD_NODE_LOST) {
        if (m->mark == MARK_NONE)
            member_free(c, m);
        return;
    }
    uint64_t due = m->heartbeat_us + member_patience_us(c, m);
    if (c->now_us + LOOK_US < due) {
        member_watch(c, m);
        return;
    }
    // Heartbeats may lie unread in our own sockets when it was this process that stood still: let
    // the shell's loop turn once more before the verdict.
    if (!m->silent) {
        m->silent = true;
        core_arm(c, &m->timer, TIMER_MEMBER, c->now_us + LOOK_US);
        return;
    }
    member_lose(c, m, STATUS_LINK_TIMEOUT, "heartbeat lost");
}
