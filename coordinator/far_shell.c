#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "coordinator/far.h"

enum {
    RETRY_US = 300 * 1000,
    LOST_US = 5000 * 1000, // not heard of for so long: a datacenter is lost
};

struct far_dc {
    struct copies *copies;
    const struct config_datacenter *set;
    const char *at; // in set->rpc: the address that is tried next
    struct follower follower;
    struct copy_link *link;
    struct wire_arena arena;
    struct copy_state state;
    uint64_t acked, try_us, down_us; // down_us: since then without a link; 0 = there is one
    uint32_t spilled;                // since the last STATE
    uint64_t spilled_all, adopted_all;
    struct guests adopted; // from there, to be told TAKEN
};

struct foreign {
    uint64_t request;
    struct far_dc *dc;
    uint32_t told_n; // tokens that were shown and recorded here
    bool done;       // and its end
    UT_hash_handle hh;
};

struct far {
    struct far_dc *dcs; // dcs_n of them
    uint32_t dcs_n;
    struct foreign *foreign; // hash
    struct guests yielded;   // in the core, and of no interest any more
};

// ---- foreign requests ---------------------------------------------------------------------------

static struct foreign *find(const struct copies *c, uint64_t request)
{
    struct foreign *f = NULL;
    if (c->far)
        HASH_FIND(hh, c->far->foreign, &request, sizeof request, f);
    return f;
}

static struct foreign *add(struct far_dc *dc, uint64_t request, uint32_t told_n)
{
    struct foreign *f = mem_zalloc(1, sizeof *f);
    struct far *far = dc->copies->far;
    f->request = request;
    f->dc = dc;
    f->told_n = told_n;
    HASH_ADD(hh, far->foreign, request, sizeof f->request, f);
    return f;
}

static void drop(struct copies *c, struct foreign *f)
{
    HASH_DEL(c->far->foreign, f);
    free(f);
}

bool far_knows(const struct copies *c, uint64_t request)
{
    return find(c, request) != NULL;
}

bool far_yielded(const struct copies *c, uint64_t request)
{
    return c->far && guests_has(&c->far->yielded, request);
}

static void show(struct copies *c, const struct coord_action *a)
{
    c->relaying = true;
    bool held = copies_hold(c->shell, a);
    c->relaying = false;
    if (!held)
        shell_act_seen(c->shell, a);
}

// What is known of it over there and not shown here yet.
static void catch_up(struct foreign *f)
{
    struct copies *c = f->dc->copies;
    const struct shadow_request *q = follower_find(&f->dc->follower, f->request);
    if (!q)
        return;
    uint32_t n = q->restore.emitted_n, from = f->told_n;
    struct coord_action a = {.kind = COORD_TOKENS,
                             .tokens = {f->request, from, q->tokens + from, n - from,
                                        q->restore.fingerprint}};
    if (n > from) {
        f->told_n = n;
        show(c, &a);
    }
    if (q->restore.finish == FINISH_NONE || f->done)
        return;
    f->done = true;
    a = (struct coord_action){.kind = COORD_DONE,
                              .done = {.request = f->request,
                                       .finish = q->restore.finish,
                                       .status = q->restore.status,
                                       .text = q->restore.text,
                                       .prompt_n = q->restore.submit.prompt_n,
                                       .emitted_n = n,
                                       .cached_n = q->restore.cached_n}};
    show(c, &a);
}

static void relay(struct far_dc *dc, const struct copy_record *r, const struct coord_action *seen)
{
    struct copies *c = dc->copies;
    struct foreign *f = find(c, r->request);
    if (!f || f->dc != dc)
        return;
    if (seen->kind == COORD_TOKENS || seen->kind == COORD_DONE) {
        if (!f->told_n && seen->kind == COORD_TOKENS && !seen->tokens.tokens_n)
            show(c, seen); // it is accepted
        else if (follower_synced(&dc->follower)) // else when it is
            catch_up(f);
        return;
    }
    bool over = seen->kind == COORD_REFUSED || seen->kind == COORD_FORGET;
    show(c, seen);
    if (over && (f = find(c, r->request)))
        drop(c, f);
}

// Clients here: this coordinator's own, and those of its followers.
static uint32_t readers(struct copies *c, uint64_t request)
{
    const struct live *l = shell_find_live(c->shell, request);
    uint32_t n = 0;
    for (const struct reader *r = l ? l->readers : NULL; r; r = r->next)
        n++;
    for (uint32_t i = 0; i < c->peers_n; i++)
        n += !c->peers[i].datacenter[0] && guests_has(&c->peers[i].guests, request);
    return n;
}

// ---- a lost datacenter --------------------------------------------------------------------------

// It goes on here. `told`: clients and followers here know of it already.
static void adopt(struct far_dc *dc, uint64_t request, bool told)
{
    struct copies *c = dc->copies;
    struct shell *s = c->shell;
    struct foreign *f = find(c, request);
    const struct shadow_request *q = follower_find(&dc->follower, request);
    bool fresh = !q;
    if (!q)
        q = shadow_find(&dc->follower.asks, request);
    if (f)
        drop(c, f);
    if (!q || (!q->restore.submit.prompt && q->restore.finish == FINISH_NONE)) {
        shell_end_unknown(s);
        return;
    }
    log_warn("coordinator: request %016llx of datacenter %s goes on here, at token %u",
             (unsigned long long)request, dc->set->name, q->restore.emitted_n);
    dc->adopted_all++;
    guests_attach(&dc->adopted, request);
    c->quiet = told;
    shell_restore(s, q, fresh);
    c->quiet = false;
    if (fresh)
        shell_step(s, &(struct coord_event){.kind = COORD_DETACH, .req = {request, 0}});
    for (uint32_t n = told ? readers(c, request) : 0; n; n--) {
        shell_step(s, &(struct coord_event){.kind = COORD_ATTACH, .req = {request, 0}});
        follower_detach(&dc->follower, request);
    }
}

static void adopt_all(struct far_dc *dc)
{
    struct foreign *f, *next;
    HASH_ITER(hh, dc->copies->far->foreign, f, next)
    {
        if (f->dc == dc)
            adopt(dc, f->request, true);
    }
    shadow_clear(&dc->follower.asks);
}

static bool is_lost(const struct far_dc *dc, uint64_t now_us)
{
    return dc->down_us && now_us > dc->down_us + LOST_US;
}

// ---- the link -----------------------------------------------------------------------------------

static void on_down(void *arg, const char *why, bool was_up)
{
    struct far_dc *dc = arg;
    dc->link = NULL;
    dc->try_us = shell_now_us() + RETRY_US;
    if (follower_synced(&dc->follower))
        log_warn("coordinator: datacenter %s: %s", dc->set->name, why);
    if (!dc->down_us)
        dc->down_us = shell_now_us();
    follower_down(&dc->follower);
}

static void say(void *arg, const struct copy *copy)
{
    copy_link_say(((struct far_dc *)arg)->link, copy);
}

static void on_synced(struct far_dc *dc)
{
    struct coord_request_view v;
    dc->down_us = 0;
    log_info("coordinator: datacenter %s is there, %u of its requests are copied", dc->set->name,
             dc->follower.shadow.n);
    for (uint64_t id; (id = guests_pop(&dc->adopted));)
        if (coord_request_find(dc->copies->shell->core, id, &v) && v.finish == FINISH_NONE)
            say(dc, &(struct copy){.kind = COPY_WORD, .word = {id, COPY_WORD_TAKEN}});
    struct foreign *f, *next;
    HASH_ITER(hh, dc->copies->far->foreign, f, next)
    {
        if (f->dc == dc)
            catch_up(f);
    }
}

static enum status on_frame(void *arg, const struct wire_frame *frame, struct errmsg *err)
{
    struct far_dc *dc = arg;
    struct copy copy;
    struct coord_action seen;
    bool sees = false;
    enum status st = wire_decode_copy(&dc->arena, frame, &copy, err);
    if (st)
        return st;
    if (copy.kind == COPY_STATE) {
        dc->state = copy.state;
        dc->spilled = 0;
        return STATUS_OK;
    }
    if (copy.kind != COPY_RECORD)
        return errmsg_set(err, STATUS_LINK_PROTOCOL, "a frame that leaders do not send");
    st = follower_take(&dc->follower, &copy.record, shell_now_us(), &sees, &seen, err);
    if (!st && sees)
        relay(dc, &copy.record, &seen);
    if (!st && copy.record.what == COPY_SYNCED)
        on_synced(dc);
    return st;
}

static void on_read(void *arg)
{
    struct far_dc *dc = arg;
    const struct shadow *s = &dc->follower.shadow;
    if (!s->synced || s->seq == dc->acked)
        return;
    dc->acked = s->seq;
    say(dc, &(struct copy){.kind = COPY_ACK, .ack = s->seq});
}

static void on_up(void *arg)
{
    struct far_dc *dc = arg;
    struct shell *s = dc->copies->shell;
    char http[COPY_ADDRESS], rpc[COPY_ADDRESS];
    dc->acked = 0;
    shell_own_address(s, http, sizeof http, rpc, sizeof rpc);
    say(dc, &(struct copy){.kind = COPY_HELLO,
                           .hello = {s->cfg->name, s->cfg->datacenter, http, rpc}});
    follower_up(&dc->follower);
}

// One address after the other, until one leads.
static void connect_next(struct far_dc *dc)
{
    char address[COPY_ADDRESS];
    struct sockaddr_storage a;
    struct errmsg err = {0};
    size_t n = strcspn(dc->at, ",");
    snprintf(address, sizeof address, "%.*s", (int)(n < sizeof address ? n : 0), dc->at);
    dc->at = dc->at[n] ? dc->at + n + 1 : dc->set->rpc;
    dc->try_us = shell_now_us() + RETRY_US;
    if (shell_address("datacenters: rpc", address, &a, &err)) {
        log_warn("coordinator: %s", err.text);
        return;
    }
    dc->link = copy_link_open(&(struct copy_link_args){.shell = dc->copies->shell,
                                                       .to = &a,
                                                       .up = on_up,
                                                       .frame = on_frame,
                                                       .read = on_read,
                                                       .down = on_down,
                                                       .arg = dc});
}

void far_tick(struct copies *c, uint64_t now_us)
{
    for (uint32_t i = 0; c->far && i < c->far->dcs_n; i++) {
        struct far_dc *dc = &c->far->dcs[i];
        if (dc->link && copy_link_silent(dc->link, now_us)) {
            uint64_t heard_us = copy_link_heard_us(dc->link);
            copy_link_drop(dc->link);
            on_down(dc, "says nothing", true);
            if (heard_us < dc->down_us) // not a later one of several tries
                dc->down_us = heard_us;
        }
        if (!dc->down_us && !follower_synced(&dc->follower))
            dc->down_us = now_us;
        if (!dc->link && now_us >= dc->try_us)
            connect_next(dc);
        if (is_lost(dc, now_us))
            adopt_all(dc);
    }
}

// ---- what clients here ask ----------------------------------------------------------------------

bool far_submit(struct copies *c, const struct copy_record *r, uint64_t deadline_us)
{
    struct coord_stats st;
    if (!c->far || !c->far->dcs_n || r->journal.emitted_n)
        return false;
    coord_stats(c->shell->core, &st);
    uint64_t local_ms = !st.replicas_ready ? UINT64_MAX : st.credits_free ? 0 : st.eta_ms;
    struct far_dc *best = NULL;
    uint64_t best_ms = local_ms;
    for (uint32_t i = 0; i < c->far->dcs_n; i++) {
        struct far_dc *dc = &c->far->dcs[i];
        uint32_t room = dc->state.credits_free ? dc->state.credits_free : 1;
        uint64_t ms = dc->state.eta_ms + dc->set->distance_ms;
        if (!follower_synced(&dc->follower) || !dc->state.replicas_ready || dc->spilled >= room ||
            ms >= best_ms)
            continue; // what was passed on since it told how it is, is not in its figures
        best = dc;
        best_ms = ms;
    }
    if (!best)
        return false;
    best->spilled++;
    best->spilled_all++;
    add(best, r->request, 0);
    lead_record(c, r); // followers here serve it too
    follower_submit(&best->follower, r, deadline_us, shell_now_us());
    return true;
}

bool far_word(struct copies *c, enum coord_event_kind kind, uint64_t request)
{
    struct foreign *f = find(c, request);
    if (!f)
        return false;
    if (kind == COORD_ATTACH)
        follower_attach(&f->dc->follower, request);
    else if (kind == COORD_DETACH)
        follower_detach(&f->dc->follower, request);
    else if (kind == COORD_CANCEL)
        follower_cancel(&f->dc->follower, request);
    return true;
}

const struct shadow_request *far_find(struct copies *c, uint64_t request)
{
    struct coord_request_view v;
    uint64_t now_us = shell_now_us();
    struct foreign *f = find(c, request);
    if (f)
        return follower_find(&f->dc->follower, request);
    if (!c->far || coord_request_find(c->shell->core, request, &v))
        return NULL;
    for (uint32_t i = 0; i < c->far->dcs_n; i++) {
        struct far_dc *dc = &c->far->dcs[i];
        const struct shadow_request *q = follower_find(&dc->follower, request);
        if (!q)
            continue;
        if (follower_synced(&dc->follower)) {
            struct copy_record r = shadow_request_record(q);
            lead_record(c, &r);
            add(dc, request, q->restore.emitted_n)->done = q->restore.finish != FINISH_NONE;
            return q;
        }
        if (is_lost(dc, now_us)) {
            adopt(dc, request, false);
            return NULL; // it lives here now
        }
    }
    return NULL;
}

bool far_unsure(const struct copies *c)
{
    uint64_t now_us = shell_now_us();
    for (uint32_t i = 0; c->far && i < c->far->dcs_n; i++)
        if (c->far->dcs[i].down_us && !is_lost(&c->far->dcs[i], now_us))
            return true;
    return false;
}

// ---- split brain --------------------------------------------------------------------------------

static struct far_dc *of_name(const struct copies *c, const char *name)
{
    for (uint32_t i = 0; c->far && i < c->far->dcs_n; i++)
        if (!strcmp(c->far->dcs[i].set->name, name))
            return &c->far->dcs[i];
    return NULL;
}

bool far_is_datacenter(const struct copies *c, const char *name)
{
    return of_name(c, name) != NULL;
}

static bool adopted_here(const struct copies *c, uint64_t request)
{
    for (uint32_t i = 0; i < c->far->dcs_n; i++)
        if (guests_has(&c->far->dcs[i].adopted, request))
            return true;
    return false;
}

void far_taken(struct copies *c, const char *datacenter, uint64_t request)
{
    struct far_dc *dc = of_name(c, datacenter);
    struct coord_request_view v;
    if (!dc || !coord_request_find(c->shell->core, request, &v) || v.finish != FINISH_NONE ||
        far_yielded(c, request))
        return;
    if (adopted_here(c, request) && strcmp(c->shell->cfg->datacenter, datacenter) < 0)
        return; // the other one hears the same of us, and yields
    log_info("coordinator: request %016llx goes on in datacenter %s only",
             (unsigned long long)request, datacenter);
    struct foreign *f = add(dc, request, v.tokens_n);
    guests_attach(&c->far->yielded, request);
    shell_step(c->shell, &(struct coord_event){.kind = COORD_CANCEL, .req = {request, 0}});
    for (uint32_t n = readers(c, request); n; n--)
        follower_attach(&dc->follower, request);
    struct live *l = shell_find_live(c->shell, request);
    if (l)
        l->restored = true;
    catch_up(f);
}

bool far_mutes(struct copies *c, const struct coord_action *a)
{
    uint64_t id = a->kind == COORD_DONE      ? a->done.request
                  : a->kind == COORD_TOKENS  ? a->tokens.request
                  : a->kind == COORD_FORGET  ? a->forget.request
                  : a->kind == COORD_QUEUED  ? a->queued.request
                  : a->kind == COORD_REFUSED ? a->refused.request
                                             : 0;
    if (!far_yielded(c, id) || c->relaying)
        return false;
    if (a->kind == COORD_FORGET || a->kind == COORD_REFUSED)
        guests_detach(&c->far->yielded, id);
    return true;
}

// ---- start and end ------------------------------------------------------------------------------

void far_each(struct copies *c,
              void (*fn)(void *arg, const struct shadow_request *q, uint32_t told_n), void *arg)
{
    struct foreign *f, *next;
    if (!c->far)
        return;
    HASH_ITER(hh, c->far->foreign, f, next)
    {
        const struct shadow_request *q = follower_find(&f->dc->follower, f->request);
        if (!q)
            q = shadow_find(&f->dc->follower.asks, f->request);
        if (q)
            fn(arg, q, f->told_n);
    }
}

void far_open(struct copies *c)
{
    const struct coordinator_config *cfg = c->shell->cfg;
    if (!cfg->datacenters_n)
        return;
    struct far *far = mem_zalloc(1, sizeof *far);
    far->dcs = mem_zalloc(cfg->datacenters_n, sizeof *far->dcs);
    c->far = far;
    for (uint32_t i = 0; i < cfg->datacenters_n; i++) {
        struct far_dc *dc = &far->dcs[far->dcs_n];
        if (!strcmp(cfg->datacenters[i].name, cfg->datacenter))
            continue; // one list for all
        far->dcs_n++;
        dc->copies = c;
        dc->set = &cfg->datacenters[i];
        dc->at = dc->set->rpc;
        dc->follower.say = say;
        dc->follower.arg = dc;
    }
}

static void keep(void *arg, const struct shadow_request *q, uint32_t told_n)
{
    struct copies *c = arg;
    uint64_t id = q->restore.submit.request;
    if (!q->restore.submit.prompt || shadow_find(&c->follower.shadow, id))
        return;
    struct copy_record r = shadow_request_record(q);
    r.journal.emitted_n = r.journal.emitted_n < told_n ? r.journal.emitted_n : told_n;
    shadow_put(&c->follower.shadow, shadow_request_create(&r));
}

void far_end(struct copies *c)
{
    if (!c->far)
        return;
    far_each(c, keep, c);
    while (c->far->foreign)
        drop(c, c->far->foreign);
    while (guests_pop(&c->far->yielded))
        ;
    for (uint32_t i = 0; i < c->far->dcs_n; i++) {
        struct far_dc *dc = &c->far->dcs[i];
        copy_link_drop(dc->link);
        dc->link = NULL;
        dc->down_us = dc->try_us = 0;
        dc->state = (struct copy_state){0};
        follower_finish(&dc->follower);
        while (guests_pop(&dc->adopted))
            ;
    }
}

void far_close(struct copies *c)
{
    if (!c->far)
        return;
    far_end(c);
    for (uint32_t i = 0; i < c->far->dcs_n; i++)
        wire_arena_finish(&c->far->dcs[i].arena);
    free(c->far->dcs);
    free(c->far);
    c->far = NULL;
}

// ---- views --------------------------------------------------------------------------------------

void far_json(const struct copies *c, struct strbuf *out)
{
    strbuf_puts(out, ",\"datacenters\":[");
    for (uint32_t i = 0; c->far && i < c->far->dcs_n; i++) {
        const struct far_dc *dc = &c->far->dcs[i];
        strbuf_puts(out, i ? ",{\"name\":" : "{\"name\":");
        strbuf_json(out, dc->set->name, strlen(dc->set->name));
        strbuf_printf(out,
                      ",\"reachable\":%s,\"lost\":%s,\"distance_ms\":%u,\"replicas_ready\":%u,"
                      "\"eta_ms\":%u,\"copied\":%u,\"passed_on\":%llu,\"adopted\":%llu}",
                      follower_synced(&dc->follower) ? "true" : "false",
                      is_lost(dc, shell_now_us()) ? "true" : "false", dc->set->distance_ms,
                      dc->state.replicas_ready, dc->state.eta_ms, dc->follower.shadow.n,
                      (unsigned long long)dc->spilled_all, (unsigned long long)dc->adopted_all);
    }
    strbuf_puts(out, "]");
}

void far_metrics(const struct copies *c, struct strbuf *out)
{
    static const char *const heads[] = {
        "# HELP hadal_datacenter_reachable The leader has a link to that datacenter.\n"
        "# TYPE hadal_datacenter_reachable gauge\n",
        "# HELP hadal_requests_passed_on_total Requests passed on to that datacenter.\n"
        "# TYPE hadal_requests_passed_on_total counter\n",
        "# HELP hadal_requests_adopted_total Requests of that datacenter that went on here.\n"
        "# TYPE hadal_requests_adopted_total counter\n"};
    static const char *const names[] = {"hadal_datacenter_reachable",
                                        "hadal_requests_passed_on_total",
                                        "hadal_requests_adopted_total"};
    for (int k = 0; c->far && c->far->dcs_n && k < 3; k++) {
        strbuf_puts(out, heads[k]);
        for (uint32_t i = 0; i < c->far->dcs_n; i++) {
            const struct far_dc *dc = &c->far->dcs[i];
            uint64_t v = k == 0   ? follower_synced(&dc->follower)
                         : k == 1 ? dc->spilled_all
                                  : dc->adopted_all;
            strbuf_printf(out, "%s{datacenter=\"%s\"} %llu\n", names[k], dc->set->name,
                          (unsigned long long)v);
        }
    }
}
