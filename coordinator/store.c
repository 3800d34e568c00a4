// One thread that ticks a body and keeps the last view.
#include "coordinator/store.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/mem.h"
#include "coordinator/store_body.h"

struct store {
    const struct store_body *ops;
    void *body;
    void (*changed)(void *arg);
    void *arg;
    pthread_t thread;
    pthread_mutex_t lock; // guards what follows
    pthread_cond_t wake;
    struct store_view view;
    bool stop, yield;
    uint32_t lease_ms;
    char *saved, *to_save; // owned; NULL = nothing
};

void store_member_write(const struct store_member *m, char *out, size_t n)
{
    snprintf(out, n, "%s\n%s\n%s\n", m->name, m->http, m->rpc);
}

bool store_member_read(const char *text, struct store_member *out)
{
    struct {
        char *to;
        size_t cap;
    } parts[] = {
        {out->name, sizeof out->name}, {out->http, sizeof out->http}, {out->rpc, sizeof out->rpc}};
    *out = (struct store_member){0};
    for (int i = 0; i < 3; i++) {
        size_t n = strcspn(text, "\n");
        if (!n || !text[n] || n >= parts[i].cap) {
            *out = (struct store_member){0};
            return false;
        }
        memcpy(parts[i].to, text, n);
        text += n + 1;
    }
    return true;
}

static void publish(struct store *s, const struct store_view *next)
{
    pthread_mutex_lock(&s->lock);
    bool news = next->leads != s->view.leads || next->lapsed != s->view.lapsed || strcmp(next->leader.name, s->view.leader.name) ||
                strcmp(next->leader.rpc, s->view.leader.rpc);
    bool reach = next->reachable != s->view.reachable;
    s->view = *next;
    if (s->yield) // said meanwhile
        s->view.leads = s->view.lapsed = false;
    pthread_mutex_unlock(&s->lock);
    if (reach && next->reachable)
        log_info("store: reachable");
    else if (reach)
        log_warn("store: not reachable, the last that is known counts: %s", next->error);
    if (news)
        s->changed(s->arg);
}

static bool pause_ms(struct store *s, uint32_t ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until); // a clock that is set back must not end a lease
    until.tv_sec += ms / 1000;
    until.tv_nsec += (long)(ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&s->lock);
    if (!s->stop)
        pthread_cond_timedwait(&s->wake, &s->lock, &until);
    bool go = !s->stop;
    pthread_mutex_unlock(&s->lock);
    return go;
}

// Before anybody learns that it leads.
static void load(struct store *s, struct store_view *view)
{
    char *text = s->ops->load(s->body, view);
    pthread_mutex_lock(&s->lock);
    free(s->saved);
    s->saved = text;
    pthread_mutex_unlock(&s->lock);
}

static void save(struct store *s, struct store_view *view)
{
    pthread_mutex_lock(&s->lock);
    char *text = s->to_save;
    s->to_save = NULL;
    pthread_mutex_unlock(&s->lock);
    if (!text)
        return;
    bool there = s->ops->save(s->body, text, view);
    pthread_mutex_lock(&s->lock);
    if (!there && !s->to_save) { // nothing newer came
        s->to_save = text;
        text = NULL;
    }
    pthread_mutex_unlock(&s->lock);
    free(text);
}

void store_save(struct store *s, const char *text)
{
    pthread_mutex_lock(&s->lock);
    free(s->to_save);
    s->to_save = mem_strdup(text);
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

char *store_saved(struct store *s)
{
    pthread_mutex_lock(&s->lock);
    char *text = s->saved;
    s->saved = NULL;
    pthread_mutex_unlock(&s->lock);
    return text;
}

static bool take_yield(struct store *s)
{
    pthread_mutex_lock(&s->lock);
    bool yield = s->yield;
    s->yield = false;
    pthread_mutex_unlock(&s->lock);
    return yield;
}

static void *run(void *arg)
{
    struct store *s = arg;
    struct store_view view = {.reachable = true};
    do {
        if (take_yield(s)) {
            s->ops->yield(s->body, &view);
            view.leads = view.lapsed = false;
            publish(s, &view);
            if (!pause_ms(s, s->lease_ms))
                break;
        }
        bool led = view.leads;
        s->ops->tick(s->body, &view);
        if (view.leads && !led)
            load(s, &view);
        if (view.leads)
            save(s, &view);
        publish(s, &view);
    } while (pause_ms(s, s->ops->period_ms));
    return NULL;
}

enum status store_open(const struct store_args *args, struct store **out, struct errmsg *err)
{
    static const struct store_body *const bodies[] = {&store_file_body, &store_etcd_body};
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        size_t n = strlen(bodies[i]->scheme);
        if (strncmp(args->url, bodies[i]->scheme, n) || args->url[n] != ':')
            continue;
        void *body = bodies[i]->open(args, args->url + n + 1, err);
        if (!body)
            return STATUS_BAD_CONFIG;
        struct store *s = mem_zalloc(1, sizeof *s);
        s->ops = bodies[i];
        s->body = body;
        s->changed = args->changed;
        s->lease_ms = args->lease_ms;
        s->arg = args->arg;
        s->view.reachable = true;
        pthread_mutex_init(&s->lock, NULL);
        pthread_condattr_t attr;
        pthread_condattr_init(&attr);
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        pthread_cond_init(&s->wake, &attr);
        pthread_condattr_destroy(&attr);
        if (pthread_create(&s->thread, NULL, run, s)) {
            s->ops->close(body);
            pthread_mutex_destroy(&s->lock);
            pthread_cond_destroy(&s->wake);
            free(s);
            return errmsg_set(err, STATUS_NO_MEMORY, "store: no thread");
        }
        *out = s;
        return STATUS_OK;
    }
    return errmsg_set(err, STATUS_BAD_CONFIG, "store: '%s' is neither file:PATH nor etcd:URL",
                      args->url);
}

void store_look(struct store *s, struct store_view *out)
{
    pthread_mutex_lock(&s->lock);
    *out = s->view;
    pthread_mutex_unlock(&s->lock);
}

void store_yield(struct store *s)
{
    pthread_mutex_lock(&s->lock);
    s->yield = true;
    s->view.leads = s->view.lapsed = false; // from now on, whoever looks
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

void store_close(struct store *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    struct store_view last = s->view;
    if (last.leads)
        save(s, &last);
    free(s->saved);
    free(s->to_save);
    s->ops->close(s->body);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->wake);
    free(s);
}
