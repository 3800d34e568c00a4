// The fault script at work: a list of what is due when, a thread that waits for the next of them,
// and a pipe by which the load's own thread hears what was done.
#include "tools/load_fault.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/prng.h"
#include "tools/admin.h"
#include "tools/cmdline.h"

struct due {
    struct load_fault fault;
    int64_t at_ms; // of cmdline_now_ms; INT64_MAX = never again
    pid_t resume;  // stopped process that is to go on, 0 = none
};

struct load_faults {
    const char *url;
    struct due v[2 * LOAD_FAULTS_MAX]; // the script, then what stopped processes need
    int n;
    struct prng prng;
    int done[2], quit[2]; // pipes
    pthread_t thread;
};

static_assert(sizeof(struct load_fault_done) <= PIPE_BUF, "written to the pipe in one piece");

// ---- whom ---------------------------------------------------------------------------------------

static bool serves(json_t *node)
{
    const char *state = json_string_value(json_object_get(node, "state"));
    return state && !strcmp(state, "in-replica");
}

// Replica that is running the most requests; 0 = none.
static json_int_t busiest_replica(const struct load_faults *f)
{
    json_t *reply, *replica;
    struct errmsg err;
    size_t i;
    json_int_t best = 0, most = 0;
    if (admin_get(f->url, "/hadal/v1/replicas", &reply, &err) != STATUS_OK)
        return 0;
    json_array_foreach(admin_list(reply, "replicas"), i, replica)
    {
        json_int_t running = json_integer_value(json_object_get(replica, "running"));
        if (running > most) {
            most = running;
            best = json_integer_value(json_object_get(replica, "id"));
        }
    }
    json_decref(reply);
    return best;
}

static bool fits(json_t *node, const char *target, json_int_t replica)
{
    const char *name = json_string_value(json_object_get(node, "name"));
    if (!strcmp(target, "random"))
        return name && serves(node);
    if (!strcmp(target, "busy"))
        return name && serves(node) &&
               json_integer_value(json_object_get(node, "replica")) == replica;
    return name && !strcmp(name, target);
}

// The node that `target` means now: its name and pid. false: *out has the reason.
static bool find_node(struct load_faults *f, const char *target, struct load_fault_done *out)
{
    json_t *reply, *node, *pick = NULL;
    struct errmsg err;
    size_t i;
    uint64_t seen = 0;
    if (admin_get(f->url, "/hadal/v1/nodes", &reply, &err) != STATUS_OK) {
        snprintf(out->error, sizeof out->error, "%.150s", err.text);
        return false;
    }
    json_int_t replica = !strcmp(target, "busy") ? busiest_replica(f) : 0;
    json_array_foreach(admin_list(reply, "nodes"), i, node)
    {
        if (fits(node, target, replica) && prng_below(&f->prng, ++seen) == 0)
            pick = node;
    }
    if (pick) {
        out->pid = (int32_t)json_integer_value(json_object_get(pick, "pid"));
        snprintf(out->whom, sizeof out->whom, "%s",
                 json_string_value(json_object_get(pick, "name")));
    } else {
        snprintf(out->error, sizeof out->error, "no node is '%.60s' now", target);
    }
    json_decref(reply);
    return pick != NULL;
}

static bool find_replica(struct load_faults *f, const char *target, struct load_fault_done *out)
{
    json_t *reply, *replica;
    struct errmsg err;
    size_t i;
    uint64_t seen = 0;
    json_int_t pick = 0;
    if (strcmp(target, "random")) {
        snprintf(out->whom, sizeof out->whom, "%.63s", target);
        return true;
    }
    if (admin_get(f->url, "/hadal/v1/replicas", &reply, &err) != STATUS_OK) {
        snprintf(out->error, sizeof out->error, "%.150s", err.text);
        return false;
    }
    json_array_foreach(admin_list(reply, "replicas"), i, replica)
    {
        const char *state = json_string_value(json_object_get(replica, "state"));
        if (state && !strcmp(state, "ready") && prng_below(&f->prng, ++seen) == 0)
            pick = json_integer_value(json_object_get(replica, "id"));
    }
    json_decref(reply);
    snprintf(out->whom, sizeof out->whom, "%lld", (long long)pick);
    if (!seen)
        snprintf(out->error, sizeof out->error, "no replica is ready now");
    return seen > 0;
}

// ---- what ---------------------------------------------------------------------------------------

static void send_signal(const struct load_fault *fault, struct load_fault_done *out)
{
    int sig = fault->action == LOAD_KILL   ? SIGKILL
              : fault->action == LOAD_STOP ? SIGSTOP
              : fault->action == LOAD_CONT ? SIGCONT
                                           : SIGTERM;
    // A pid from outside: never a group, never init, never ourselves.
    if (out->pid <= 1 || out->pid == getpid()) {
        snprintf(out->error, sizeof out->error, "node %s has no process here (pid %d)", out->whom,
                 out->pid);
        return;
    }
    out->at_us = cmdline_now_us();
    if (kill(out->pid, sig))
        snprintf(out->error, sizeof out->error, "pid %d: %s", out->pid, strerror(errno));
}

static void give_order(struct load_faults *f, const char *kind, struct load_fault_done *out)
{
    struct errmsg err;
    out->at_us = cmdline_now_us();
    const struct admin_order order = {kind, out->whom, load_action_name(out->action)};
    if (admin_post(f->url, &order, NULL, &err) != STATUS_OK)
        snprintf(out->error, sizeof out->error, "%.150s", err.text);
}

// Every stop may need a place of its own; places of what is over are used again.
static bool resume_later(struct load_faults *f, const struct load_fault *fault, pid_t pid)
{
    int i = 0;
    while (i < f->n && f->v[i].at_ms != INT64_MAX)
        i++;
    if (i == 2 * LOAD_FAULTS_MAX)
        return false;
    f->v[i] = (struct due){
        .fault = {.action = LOAD_CONT}, .at_ms = cmdline_now_ms() + fault->for_ms, .resume = pid};
    if (i == f->n)
        f->n++;
    return true;
}

static void carry_out(struct load_faults *f, const struct load_fault *fault)
{
    struct load_fault_done done = {.action = fault->action, .at_us = cmdline_now_us()};
    snprintf(done.whom, sizeof done.whom, "%s", fault->target);
    switch (fault->action) {
    case LOAD_DROP:
        break; // the load does it when it hears of it
    case LOAD_FAILOVER:
        if (find_replica(f, fault->target, &done))
            give_order(f, "replicas", &done);
        break;
    case LOAD_DRAIN:
    case LOAD_UNDRAIN:
    case LOAD_EJECT:
        if (find_node(f, fault->target, &done))
            give_order(f, "nodes", &done);
        break;
    default:
        if (find_node(f, fault->target, &done)) {
            send_signal(fault, &done);
            if (fault->for_ms && !*done.error && !resume_later(f, fault, done.pid))
                kill(done.pid, SIGCONT);
        }
    }
    if (write(f->done[1], &done, sizeof done) != sizeof done)
        fprintf(stderr, "hadal load: a fault could not be reported: %s\n", strerror(errno));
}

// ---- when ---------------------------------------------------------------------------------------

static int64_t draw_time(struct load_faults *f, const struct load_fault *fault)
{
    uint64_t span = (uint64_t)(fault->to_ms - fault->from_ms);
    return fault->from_ms + (int64_t)(span ? prng_below(&f->prng, span + 1) : 0);
}

static struct due *next_due(struct load_faults *f)
{
    struct due *best = NULL;
    for (int i = 0; i < f->n; i++)
        if (f->v[i].at_ms != INT64_MAX && (!best || f->v[i].at_ms < best->at_ms))
            best = &f->v[i];
    return best;
}

static void resume(struct due *d)
{
    if (d->resume)
        kill(d->resume, SIGCONT);
    d->resume = 0;
}

// Waits until `at_ms`; false when told to quit.
static bool sleep_until(struct load_faults *f, int64_t at_ms)
{
    int64_t left = at_ms - cmdline_now_ms();
    struct pollfd p = {.fd = f->quit[0], .events = POLLIN};
    int rc = poll(&p, 1, left < 0 ? 0 : left > INT_MAX ? INT_MAX : (int)left);
    return rc == 0 || (rc < 0 && errno == EINTR);
}

static void *run(void *arg)
{
    struct load_faults *f = arg;
    struct due *d;
    while ((d = next_due(f)) && sleep_until(f, d->at_ms)) {
        if (cmdline_now_ms() < d->at_ms)
            continue;
        if (d->resume) {
            resume(d);
            d->at_ms = INT64_MAX;
            continue;
        }
        d->at_ms = d->fault.every_ms ? d->at_ms + d->fault.every_ms : INT64_MAX;
        const struct load_fault fault = d->fault;
        carry_out(f, &fault);
    }
    for (int i = 0; i < f->n; i++)
        resume(&f->v[i]);
    return NULL;
}

struct load_faults *load_faults_start(const struct load_script *script, const char *url,
                                      uint64_t seed)
{
    struct load_faults *f = mem_zalloc(1, sizeof *f);
    f->url = url;
    prng_seed(&f->prng, seed ^ 0xfa017u);
    int64_t now_ms = cmdline_now_ms();
    for (int i = 0; i < script->n; i++)
        f->v[f->n++] =
            (struct due){.fault = script->v[i], .at_ms = now_ms + draw_time(f, &script->v[i])};
    if (pipe2(f->done, O_CLOEXEC | O_NONBLOCK) || pipe2(f->quit, O_CLOEXEC) ||
        pthread_create(&f->thread, NULL, run, f)) {
        perror("hadal load: cannot start the fault script");
        exit(1);
    }
    return f;
}

bool load_faults_next(struct load_faults *f, struct load_fault_done *out)
{
    return f && read(f->done[0], out, sizeof *out) == sizeof *out;
}

void load_faults_stop(struct load_faults *f)
{
    if (!f)
        return;
    close(f->quit[1]);
    pthread_join(f->thread, NULL);
    close(f->quit[0]);
    close(f->done[0]);
    close(f->done[1]);
    free(f);
}
