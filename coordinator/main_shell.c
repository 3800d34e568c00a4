// The coordinator's loop: start and end, the queue of events, the core's actions. Connections are
// rpc*_shell.c's, HTTP is http*_shell.c's, addresses are listen_shell.c's.
#include "coordinator/main_shell.h"

#include <assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <utlist.h>

#include "base/mem.h"
#include "coordinator/copy_shell.h"
#include "coordinator/hook_shell.h"
#include "coordinator/state_file.h"
#include "coordinator/shadow.h"
#include "proto/secure.h"

uint64_t shell_now_us(void)
{
    return uv_hrtime() / 1000;
}

// ---- the queue ----------------------------------------------------------------------------------

void shell_post(struct shell *s, const struct shell_event *ev)
{
    MEM_GROW(s->events, s->events_n, s->events_cap);
    s->events[s->events_n++] = *ev;
}

void shell_post_request(struct shell *s, enum coord_event_kind kind, uint64_t request)
{
    shell_post(
        s, &(struct shell_event){.kind = SHELL_REQUEST, .request = {.kind = kind, .id = request}});
}

void shell_dirty(struct shell *s, struct live *l)
{
    if (l->dirty)
        return;
    l->dirty = true;
    l->dirty_next = s->dirty;
    s->dirty = l;
}

static struct live *find_live(struct shell *s, uint64_t request)
{
    struct live *l;
    HASH_FIND(hh, s->lives, &request, sizeof request, l);
    return l;
}

struct live *shell_find_live(struct shell *s, uint64_t request)
{
    return find_live(s, request);
}

// The core knows it no more: it goes when its last reader has gone.
static void forget(struct shell *s, struct live *l)
{
    l->forgotten = true;
    HASH_DEL(s->lives, l);
    if (!l->readers && !l->dirty)
        live_destroy(l);
}

// ---- actions of the core ------------------------------------------------------------------------

static void on_tokens(struct shell *s, const struct coord_action *a)
{
    struct live *l = find_live(s, a->tokens.request);
    if (!l)
        return;
    if (l->state == LIVE_NEW)
        l->state = LIVE_OPEN;
    if (live_tokens(l, a->tokens.tokens, a->tokens.tokens_n))
        shell_post(
            s, &(struct shell_event){
                   .kind = SHELL_REQUEST,
                   .request = {.kind = COORD_STOP, .id = l->request, .kept = l->answer.tokens_n}});
    shell_dirty(s, l);
}

static void measure(struct shell *s, uint64_t request)
{
    struct coord_request_view v;
    if (!coord_request_find(s->core, request, &v))
        return;
    if (v.first_token_us)
        histogram_add(&s->counters.ttft, (double)(v.first_token_us - v.submitted_us) / 1e6);
    if (v.pause_us)
        histogram_add(&s->counters.pause, v.pause_us / 1e6);
}

static void on_done(struct shell *s, const struct coord_action *a)
{
    struct live *l = find_live(s, a->done.request);
    measure(s, a->done.request);
    if (!l || l->state == LIVE_DONE) // told by the leader before this one
        return;
    live_done(l, a->done.finish, a->done.status, a->done.text, a->done.prompt_n, a->done.cached_n);
    shell_dirty(s, l);
}

static void on_refused(struct shell *s, const struct coord_action *a)
{
    struct live *l = find_live(s, a->refused.request);
    if (!l)
        return;
    live_refused(l, a->refused.reason, a->refused.retry_after_ms, a->refused.text);
    shell_dirty(s, l);
    forget(s, l);
}

static void on_queued(struct shell *s, const struct coord_action *a)
{
    struct live *l = find_live(s, a->queued.request);
    if (!l)
        return;
    live_queued(l, a->queued.position, a->queued.eta_ms);
    shell_dirty(s, l);
}

static void on_admin_done(struct shell *s, const struct coord_action *a)
{
    struct admin_wait *w;
    HASH_FIND(hh, s->waits, &a->admin_done.tag, sizeof w->tag, w);
    if (!w)
        return;
    HASH_DEL(s->waits, w);
    w->done(w, a->admin_done.status, a->admin_done.text);
}

static void on_core_timer(uv_timer_t *t)
{
    shell_post(t->data, &(struct shell_event){.kind = SHELL_TIMER});
}

static void set_timer(struct shell *s, uint64_t at_us)
{
    uint64_t now = shell_now_us();
    if (at_us == UINT64_MAX) {
        uv_timer_stop(&s->timer);
        return;
    }
    uv_update_time(&s->loop);
    uv_timer_start(&s->timer, on_core_timer, at_us > now ? (at_us - now + 999) / 1000 : 0, 0);
}

void shell_act_seen(struct shell *s, const struct coord_action *a)
{
    switch (a->kind) {
    case COORD_QUEUED:
        on_queued(s, a);
        break;
    case COORD_TOKENS:
        on_tokens(s, a);
        break;
    case COORD_DONE:
        on_done(s, a);
        break;
    case COORD_REFUSED:
        on_refused(s, a);
        break;
    case COORD_FORGET: {
        struct live *l = find_live(s, a->forget.request);
        if (l)
            forget(s, l);
        break;
    }
    default:
        assert(!"an action that is not for clients");
    }
    copies_told(s, a);
}

// Kept for the next one: by followers, by the store, by a file.
static void on_state(struct shell *s, const struct coord_action *a)
{
    struct errmsg err = {0};
    copies_orders(s, a);
    if (s->cfg->state && state_file_write(s->cfg->state, a->state.text, &err))
        log_error("coordinator: %s", err.text);
}

static void act(struct shell *s, const struct coord_action *a)
{
    switch (a->kind) {
    case COORD_SEND:
        rpc_send(s->rpc, a->send.conn, a->send.msg);
        break;
    case COORD_CLOSE_CONN:
        rpc_close_conn(s->rpc, a->close.conn, a->close.text);
        break;
    case COORD_QUEUED:
    case COORD_TOKENS:
    case COORD_DONE:
    case COORD_REFUSED:
    case COORD_FORGET:
        if (!copies_hold(s, a))
            shell_act_seen(s, a);
        break;
    case COORD_ADMIN_DONE:
        on_admin_done(s, a);
        break;
    case COORD_SET_TIMER:
        set_timer(s, a->timer.at_us);
        break;
    case COORD_STATE:
        on_state(s, a);
        break;
    case COORD_NODES:
        if (copies_leading(s))
            hook_call(s->hook);
        break;
    case COORD_TRACE:
        log_write(a->trace.level, "%s", a->trace.text);
        break;
    }
}

void shell_step(struct shell *s, const struct coord_event *ev)
{
    struct coord_event stamped = *ev;
    stamped.now_us = shell_now_us();
    struct coord_actions actions;
    coord_step(s->core, &stamped, &actions);
    if (ev->kind == COORD_SUBMIT || ev->kind == COORD_RESTORE)
        copies_submitted(s, ev->submit.request);
    for (size_t i = 0; i < actions.n; i++)
        act(s, &actions.v[i]);
    if (ev->kind == COORD_ADMIN && (ev->admin.op == COORD_DRAIN ||
                                    ev->admin.op == COORD_UNDRAIN || ev->admin.op == COORD_EJECT))
        copies_ordered(s, ev->admin.target);
}

// ---- draining -----------------------------------------------------------------------------------

static void submit(struct shell *s, struct live *l)
{
    struct coord_event ev = {.kind = COORD_SUBMIT, .submit = l->submit};
    if (ev.submit.deadline_us)
        ev.submit.deadline_us = shell_now_us() + ev.submit.deadline_us * 1000;
    shell_dirty(s, l);
    if (copies_submit(s, l, ev.submit.deadline_us)) {
        l->restored = true; // the next leader tells its tokens again
        free(l->prompt);
        l->prompt = NULL;
        return;
    }
    shell_step(s, &ev);
    free(l->prompt);
    l->prompt = NULL;
    if (l->state == LIVE_NEW && !copies_hold_acceptance(s, l->request))
        l->state = LIVE_OPEN;
}

// A follower keeps a request only as long as it is read here: the rest is in its shadow.
static void request_word(struct shell *s, const struct shell_event *ev)
{
    struct live *l = find_live(s, ev->request.id);
    if (!copies_request(s, ev->request.kind, ev->request.id))
        shell_step(s, &(struct coord_event){.kind = ev->request.kind,
                                            .req = {ev->request.id, ev->request.kept}});
    else if (l && !l->readers && !copies_leading(s))
        forget(s, l);
}

static void handle(struct shell *s, const struct shell_event *ev)
{
    switch (ev->kind) {
    case SHELL_FRAMES:
        rpc_conn_frames(ev->conn);
        break;
    case SHELL_CONN_DOWN:
        if (rpc_conn_is_node(ev->conn))
            shell_step(s, &(struct coord_event){.kind = COORD_NODE_DOWN,
                                                .node = {.conn = rpc_conn_id(ev->conn)}});
        rpc_conn_free(ev->conn);
        break;
    case SHELL_SUBMIT:
        submit(s, ev->live);
        break;
    case SHELL_REQUEST:
        request_word(s, ev);
        break;
    case SHELL_ADMIN:
        shell_step(s, &(struct coord_event){.kind = COORD_ADMIN, .admin = *ev->admin});
        free((char *)ev->admin->target);
        free((char *)ev->admin->model_dir);
        free(ev->admin);
        break;
    case SHELL_TIMER:
        shell_step(s, &(struct coord_event){.kind = COORD_TIMER});
        break;
    }
}

static void wake_readers(struct shell *s)
{
    while (s->dirty) {
        struct live *l = s->dirty;
        s->dirty = l->dirty_next;
        for (struct reader *r = l->readers, *next; r; r = next) {
            next = r->next;
            r->wake(r);
        }
        l->dirty = false;
        if (l->forgotten && !l->readers)
            live_destroy(l);
    }
}

static void tell(struct shell *s, const char *line)
{
    printf("%s", line);
    fflush(stdout);
    if (s->cfg->ready_fd >= 0 && write(s->cfg->ready_fd, line, strlen(line)) < 0)
        log_warn("coordinator: --ready-fd %d: %s", s->cfg->ready_fd, strerror(errno));
}

// "127.0.0.1:0" with the port that it got.
static void listen_name(const char *address, uint16_t port, char *out, size_t n)
{
    const char *colon = strrchr(address, ':');
    snprintf(out, n, "%.*s:%u", colon ? (int)(colon - address) : 0, address, port);
}

void shell_check_ready(struct shell *s)
{
    uint32_t replicas, replicas_ready;
    copies_state(s, &replicas, &replicas_ready);
    if (s->told_ready || !replicas_ready || (!copies_leading(s) && copies_unsure(s)))
        return;
    char address[300], line[320];
    s->told_ready = true;
    listen_name(s->cfg->http, s->http_port, address, sizeof address);
    snprintf(line, sizeof line, "ready http://%s\n", address);
    tell(s, line);
}

// Handling may append more: a stop string found, a reader gone. All of it is done before the loop
// polls again.
static void drain(struct shell *s)
{
    bool worked = s->events_n > 0;
    do {
        while (s->events_at < s->events_n) {
            struct shell_event ev = s->events[s->events_at++]; // the array may move
            handle(s, &ev);
        }
        s->events_at = s->events_n = 0;
        wake_readers(s);
    } while (s->events_n);
    rpc_server_flush(s->rpc);
    if (worked && !s->told_ready)
        shell_check_ready(s);
}

static void on_prepare(uv_prepare_t *p)
{
    drain(p->data);
}

static void on_check(uv_check_t *c)
{
    drain(c->data);
}

// ---- what the other parts of the shell ask for --------------------------------------------------

struct live *shell_submit(struct shell *s, struct text_job *job, struct reader *first)
{
    uint64_t id;
    do
        id = prng_u64(&s->prng);
    while (id == 0 || find_live(s, id));
    if (!(job->request.gen.given & RPC_GIVEN_SEED))
        job->sampling.seed = prng_u64(&s->prng);
    struct live *l = live_create(id, (int64_t)time(NULL), job);
    if (!l)
        return NULL;
    HASH_ADD(hh, s->lives, request, sizeof l->request, l);
    live_attach(l, first);
    shell_post(s, &(struct shell_event){.kind = SHELL_SUBMIT, .live = l});
    return l;
}

static const struct model_text *model_of(const struct shell *s, const struct shadow_request *q)
{
    const char *name = q->restore.submit.model;
    const struct model_text *m = name ? model_set_find(&s->models, name) : NULL;
    return m ? m : &s->text;
}

// A request of the leader that is read here for the first time.
static struct live *adopt(struct shell *s, uint64_t request)
{
    struct errmsg err = {0};
    const struct shadow_request *q = copies_find(s, request);
    struct live *l = find_live(s, request); // it went on here just now
    if (l)
        return l;
    l = q ? live_restore(model_of(s, q), q, &err) : NULL;
    if (q && !l)
        log_error("coordinator: request %016llx cannot be read here: %s",
                  (unsigned long long)request, err.text);
    if (!l)
        return NULL;
    HASH_ADD(hh, s->lives, request, sizeof l->request, l);
    if (q->restore.finish != FINISH_NONE)
        live_done(l, q->restore.finish, q->restore.status, q->restore.text,
                  q->restore.submit.prompt_n, q->restore.cached_n);
    return l;
}

struct live *shell_attach(struct shell *s, uint64_t request, struct reader *r)
{
    struct live *l = find_live(s, request);
    if (!l)
        l = adopt(s, request);
    if (!l)
        return NULL;
    live_attach(l, r);
    s->counters.reattached++;
    shell_post_request(s, COORD_ATTACH, request);
    return l;
}

void shell_detach(struct shell *s, struct reader *r)
{
    struct live *l = r->live;
    if (!l)
        return;
    live_detach(r);
    if (l->forgotten) {
        if (!l->readers && !l->dirty)
            live_destroy(l);
        return;
    }
    shell_post_request(s, COORD_DETACH, l->request);
}

uint64_t shell_wait(struct shell *s, struct admin_wait *w)
{
    w->tag = ++s->next_tag;
    HASH_ADD(hh, s->waits, tag, sizeof w->tag, w);
    return w->tag;
}

void shell_order(struct shell *s, const struct coord_admin *order)
{
    struct shell_event ev = {.kind = SHELL_ADMIN, .admin = mem_dup(order, sizeof *order)};
    ev.admin->target = mem_strdup(order->target);
    ev.admin->model_dir = mem_strdup(order->model_dir ? order->model_dir : "");
    shell_post(s, &ev);
}

void shell_answer(struct shell *s, uint64_t tag, enum status status, const char *text)
{
    const struct coord_action a = {.kind = COORD_ADMIN_DONE, .admin_done = {tag, status, text}};
    on_admin_done(s, &a);
}

void shell_admin(struct shell *s, enum coord_admin_op op, const char *target, uint64_t replica,
                 struct admin_wait *w)
{
    shell_order(s, &(struct coord_admin){
                       .op = op, .target = target, .replica = replica, .tag = shell_wait(s, w)});
}

void shell_admin_forget(struct shell *s, struct admin_wait *w)
{
    HASH_DEL(s->waits, w);
}

// ---- start and end ------------------------------------------------------------------------------

static void stop_now(struct shell *s)
{
    if (s->stopping)
        return;
    s->stopping = true;
    uv_stop(&s->loop);
}

static void on_stop_timer(uv_timer_t *t)
{
    stop_now(t->data);
}

static void on_closed_admission(struct admin_wait *w, enum status status, const char *text)
{
    struct shell *s = (struct shell *)((char *)w - offsetof(struct shell, close_wait));
    uv_timer_start(&s->stop_timer, on_stop_timer, 20, 0); // the last bytes leave
}

// The first signal lets running requests finish for stop_ms, the second one does not.
static void on_signal(uv_signal_t *h, int signum)
{
    struct shell *s = h->data;
    if (s->draining) {
        stop_now(s);
        return;
    }
    s->draining = true;
    if (copies_relieved(s)) { // whoever leads next has every stream
        log_info("coordinator: %s, the others go on", signum == SIGINT ? "SIGINT" : "SIGTERM");
        uv_timer_start(&s->stop_timer, on_stop_timer, 20, 0);
        return;
    }
    log_info("coordinator: %s, stopping", signum == SIGINT ? "SIGINT" : "SIGTERM");
    s->close_wait.done = on_closed_admission;
    shell_admin(s, COORD_CLOSE, "", 0, &s->close_wait);
    uv_timer_start(&s->stop_timer, on_stop_timer, s->cfg->stop_ms, 0);
}

static void on_tick(uv_timer_t *t)
{
    struct shell *s = t->data;
    uint64_t now = shell_now_us();
    rpc_server_tick(s->rpc, now);
    http_server_tick(s->http, now);
}

static void raise_fd_limit(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) || r.rlim_cur >= r.rlim_max)
        return;
    r.rlim_cur = r.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &r))
        log_warn("coordinator: the limit of open files stays low: %s", strerror(errno));
}

static void start_handles(struct shell *s)
{
    uv_prepare_init(&s->loop, &s->prepare);
    uv_check_init(&s->loop, &s->check);
    uv_timer_init(&s->loop, &s->timer);
    uv_timer_init(&s->loop, &s->tick);
    uv_timer_init(&s->loop, &s->stop_timer);
    s->prepare.data = s->check.data = s->timer.data = s->tick.data = s->stop_timer.data = s;
    uv_prepare_start(&s->prepare, on_prepare);
    uv_check_start(&s->check, on_check);
    uv_timer_start(&s->tick, on_tick, 1000, 1000);
    const int numbers[2] = {SIGINT, SIGTERM};
    for (int i = 0; i < 2; i++) {
        uv_signal_init(&s->loop, &s->signals[i]);
        s->signals[i].data = s;
        uv_signal_start(&s->signals[i], on_signal, numbers[i]);
    }
}

static void answer_waits(struct shell *s)
{
    struct admin_wait *w, *next;
    HASH_ITER(hh, s->waits, w, next)
    {
        HASH_DEL(s->waits, w);
        w->done(w, STATUS_ABORTED, "another coordinator leads now; ask it");
    }
}

// The golden probe in the tokens of the pool's model, and its context.
static enum status ask_probe(const struct shell *s, const struct model_text *m,
                             struct coord_pool *pool, struct token_vec *ids, struct errmsg *err)
{
    enum status st = STATUS_OK;
    if (!pool->max_context)
        pool->max_context = m->context;
    if (s->cfg->probe_interval_ms)
        st = tokenizer_encode_text(m->tokenizer, s->cfg->probe_prompt, strlen(s->cfg->probe_prompt),
                                   false, ids, err);
    pool->probe_prompt = ids->v;
    pool->probe_prompt_n = (uint32_t)ids->n;
    return st;
}

enum status shell_new_core(struct shell *s, uint64_t epoch, const char *state, struct errmsg *err)
{
    struct coord_config core = s->cfg->core;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    core.first_epoch = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
    if (core.first_epoch <= epoch) // the other one's clock was ahead
        core.first_epoch = epoch + 1;
    coord_destroy(s->core);
    answer_waits(s);
    if (!core.max_context)
        core.max_context = s->text.context;
    core.model = s->text.name;
    core.trace = log_level();
    struct token_vec probes[COORD_MAX_POOLS] = {0};
    struct coord_pool pools[COORD_MAX_POOLS];
    enum status st = STATUS_OK;
    core.pools = pools;
    core.pools_n = s->cfg->pools_n;
    for (uint32_t i = 0; i < core.pools_n && !st; i++) {
        pools[i] = s->cfg->pools[i];
        st = ask_probe(s, model_set_find(&s->models, pools[i].model), &pools[i], &probes[i], err);
    }
    if (!core.pools_n) {
        struct coord_pool one = {0};
        st = ask_probe(s, &s->text, &one, &probes[0], err);
        core.probe_prompt = one.probe_prompt;
        core.probe_prompt_n = one.probe_prompt_n;
    }
    if (s->cfg->probe_interval_ms)
        core.probe_interval_ms = s->cfg->probe_interval_ms;
    core.state = state;
    s->core = st ? NULL : coord_create(&core, err);
    if (!st && !s->core && state) {
        log_error("coordinator: versions and rollout of before are left: %s", err->text);
        core.state = NULL;
        s->core = coord_create(&core, err);
    }
    for (int i = 0; i < COORD_MAX_POOLS; i++)
        token_vec_finish(&probes[i]);
    if (s->core) // it may have timers from the start
        shell_post(s, &(struct shell_event){.kind = SHELL_TIMER});
    return st ? st : s->core ? STATUS_OK : STATUS_BAD_CONFIG;
}

static enum status seed(struct shell *s, struct errmsg *err)
{
    uint64_t v;
    if (getrandom(&v, sizeof v, 0) != sizeof v)
        return errmsg_set(err, STATUS_IO, "getrandom: %s", strerror(errno));
    prng_seed(&s->prng, v);
    return STATUS_OK;
}

void shell_own_address(struct shell *s, char *http, size_t http_n, char *rpc, size_t rpc_n)
{
    char address[300];
    const char *host = s->cfg->advertise;
    if (host)
        snprintf(address, sizeof address, "%.200s:%u", host, s->http_port);
    else
        listen_name(s->cfg->http, s->http_port, address, sizeof address);
    snprintf(http, http_n, "http://%.280s", address);
    if (host)
        snprintf(rpc, rpc_n, "%.200s:%u", host, s->rpc_port);
    else
        listen_name(s->cfg->rpc, s->rpc_port, rpc, rpc_n);
}

void shell_restore(struct shell *s, const struct shadow_request *q, bool fresh)
{
    struct errmsg err = {0};
    struct live *l = find_live(s, q->restore.submit.request); // clients read it here
    if (!l) {
        l = live_restore(model_of(s, q), q, &err);
        if (!l) {
            log_error("coordinator: request %016llx cannot go on: %s",
                      (unsigned long long)q->restore.submit.request, err.text);
            return;
        }
        HASH_ADD(hh, s->lives, request, sizeof l->request, l);
    }
    l->restored = true;
    if (fresh)
        shell_step(s, &(struct coord_event){.kind = COORD_SUBMIT, .submit = q->restore.submit});
    else
        shell_step(s, &(struct coord_event){.kind = COORD_RESTORE, .restore = q->restore});
    l = find_live(s, q->restore.submit.request); // it may have been refused, or let go
    if (!l)
        return;
    if (l->state == LIVE_NEW)
        l->state = LIVE_OPEN;
    shell_dirty(s, l);
    if (l->answer.stopped && !q->restore.finish)
        shell_post(s, &(struct shell_event){.kind = SHELL_REQUEST,
                                            .request = {.kind = COORD_STOP,
                                                        .id = q->restore.submit.request,
                                                        .kept = l->answer.tokens_n}});
}

void shell_shed(struct shell *s)
{
    rpc_close_clients(s->rpc);
    http_server_shed(s->http);
}

void shell_end_unknown(struct shell *s)
{
    struct live *l, *next;
    HASH_ITER(hh, s->lives, l, next)
    {
        if (l->state == LIVE_DONE || l->state == LIVE_REFUSED || !l->readers)
            continue;
        if (copies_knows(s, l->request))
            continue;
        log_error("coordinator: request %016llx is not known to the leader any more",
                  (unsigned long long)l->request);
        live_done(l, FINISH_ERROR, STATUS_NOT_FOUND,
                  "the coordinators have lost it, or ended it while this one was cut off",
                  l->prompt_n, 0);
        shell_dirty(s, l);
    }
}

void shell_each_read(struct shell *s, void (*attach)(struct follower *f, uint64_t request),
                     struct follower *f)
{
    struct live *l, *next;
    const struct reader *r;
    HASH_ITER(hh, s->lives, l, next)
    {
        DL_FOREACH(l->readers, r)
        attach(f, l->request);
        l->restored = true; // the next leader may be behind what clients here have
        if (!l->readers)
            forget(s, l);
    }
}

static void tell_addresses(struct shell *s)
{
    char address[300], line[320];
    listen_name(s->cfg->http, s->http_port, address, sizeof address);
    snprintf(line, sizeof line, "http http://%s\n", address);
    tell(s, line);
    listen_name(s->cfg->rpc, s->rpc_port, address, sizeof address);
    snprintf(line, sizeof line, "rpc %s\n", address);
    tell(s, line);
    log_info("coordinator: model %s, %s template, context %u", s->text.name,
             chat_template_family(s->text.template), s->text.context);
}

static void free_lives(struct shell *s)
{
    struct live *l, *next;
    HASH_ITER(hh, s->lives, l, next)
    {
        HASH_DEL(s->lives, l);
        while (l->readers)
            live_detach(l->readers);
        l->dirty = false;
        live_destroy(l);
    }
}

// One text side for each name of a model.
static enum status open_models(struct shell *s, struct errmsg *err)
{
    const struct coordinator_config *cfg = s->cfg;
    enum status st = model_text_open(cfg->model, cfg->model_name, &s->text, err);
    s->models = (struct model_set){.aliases = cfg->aliases, .aliases_n = cfg->aliases_n};
    s->models.v[s->models.n++] = &s->text;
    s->texts = mem_zalloc(COORD_MAX_POOLS, sizeof *s->texts);
    for (uint32_t i = 1; i < cfg->pools_n && !st; i++) {
        struct model_text *m = &s->texts[s->models.n];
        if (model_set_find(&s->models, cfg->pools[i].model))
            continue;
        st = model_text_open(cfg->pools[i].model_dir, cfg->pools[i].model, m, err);
        if (!st)
            s->models.v[s->models.n++] = m;
    }
    return st;
}

static void close_models(struct shell *s)
{
    for (uint32_t i = 1; i < s->models.n; i++)
        model_text_close(&s->texts[i]);
    free(s->texts);
    model_text_close(&s->text);
}

static enum status first_core(struct shell *s, struct errmsg *err)
{
    char *state = s->cfg->state ? state_file_read(s->cfg->state, err) : NULL;
    enum status st = err->text[0] ? STATUS_BAD_FILE : shell_new_core(s, 0, state, err);
    free(state);
    return st;
}

enum status coordinator_run(const struct coordinator_config *cfg, struct errmsg *err)
{
    struct shell *s = mem_zalloc(1, sizeof *s);
    s->cfg = cfg;
    s->started = (int64_t)time(NULL);
    s->started_us = shell_now_us();
    signal(SIGPIPE, SIG_IGN);
    raise_fd_limit();
    uv_loop_init(&s->loop);
    enum status st = seed(s, err);
    if (!st)
        st = open_models(s, err);
    if (!st)
        st = first_core(s, err);
    if (!st && cfg->cluster_key)
        st = secure_domain_open(cfg->cluster_key, &s->domain, err);
    if (!st && cfg->client_key)
        st = secure_domain_client(cfg->client_key, "client_key", &s->domain, err);
    if (!st)
        st = rpc_server_open(s, &s->rpc_port, err);
    if (!st)
        st = http_server_open(s, &s->http_port, err);
    if (!st)
        st = copies_open(s, err);
    if (!st) {
        start_handles(s);
        s->hook = hook_open(s);
        tell_addresses(s);
        uv_run(&s->loop, UV_RUN_DEFAULT);
        log_info("coordinator: stopped");
    }
    hook_close(s->hook);
    copies_close(s->copies);
    // The process ends after this: sockets and timers that libuv and libh2o still hold go with it.
    rpc_server_close(s->rpc);
    free_lives(s);
    coord_destroy(s->core);
    secure_domain_close(s->domain);
    close_models(s);
    free(s->events);
    return st;
}
