// Supervises the processes of a cluster on one host: starts them in order, starts again what ends,
// kills what the coordinator calls lost or stuck, stops all in order. One thread; it waits in one
// place, for signals and for the coordinator's answers.
#include "tools/up_cluster.h"

#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "tools/cmd.h"
#include "tools/cmdline.h"
#include "tools/up_child.h"
#include "tools/up_watch.h"

enum {
    TURN_MS = 100,
    ILL_MS = 600,      // a node is called lost or stuck for so long: its process is killed
    GRACE_MS = 2000,   // but not so soon after its start
    SILENT_MS = 15000, // a coordinator that answers nothing for so long is killed
    STOP_MS = 3000,    // from SIGTERM to SIGKILL; the nodes have a third of it
};

struct up {
    const struct up_options *o;
    struct child *children; // coordinators_n of them, then the nodes
    int n, coordinators_n;
    struct up_coordinator {
        char url[64];
        int64_t http, rpc;       // ports
        int http_held, rpc_held; // sockets that keep the ports ours; -1 = none
        struct up_watch *watch;
        struct up *up;
    } coordinators[UP_COORDINATORS_MAX];
    char store[PATH_MAX]; // of who leads: a file; "" where there is one coordinator
    int signals;          // signalfd
    json_t *nodes;        // as just told; borrowed while on_nodes and on_wanted run
    struct cmdline_progress bar;
    int64_t started_ms;
    bool nodes_started, was_ready, stop, failed, interrupted_twice;
};

// ---- ports --------------------------------------------------------------------------------------

// A bound socket that nobody listens on: holds the port for the process that will listen there
// (with SO_REUSEADDR, as this one), also while that process is started again. -1 and errno.
static int reserve_port(int64_t *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)*port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&a, n) || getsockname(fd, (struct sockaddr *)&a, &n)) {
        int err = errno;
        close(fd);
        errno = err;
        return -1;
    }
    *port = ntohs(a.sin_port);
    return fd;
}

static int reserve(const char *option, int64_t *port)
{
    int fd = reserve_port(port);
    if (fd < 0)
        fprintf(stderr, "hadal up: %s %lld: %s%s\n", option, (long long)*port, strerror(errno),
                errno == EADDRINUSE ? "; choose another, 0 takes any that is free" : "");
    return fd;
}

// ---- the processes ------------------------------------------------------------------------------

static void listen_option(struct child *c, const char *option, int64_t port)
{
    char text[32];
    snprintf(text, sizeof text, "127.0.0.1:%lld", (long long)port);
    child_option(c, option, text);
}

static void coordinator_name(const struct up *u, int i, char *out, size_t n)
{
    if (u->coordinators_n == 1)
        snprintf(out, n, "coordinator");
    else
        snprintf(out, n, "coordinator-%d", i + 1);
}

static void plan_coordinator(struct up *u, int i)
{
    char name[32], store[PATH_MAX + 8];
    const struct up_options *o = u->o;
    struct child *c = &u->children[i];
    coordinator_name(u, i, name, sizeof name);
    child_init(c, name);
    child_arg(c, "hadal");
    child_arg(c, "coordinator");
    if (o->config)
        child_option(c, "--config", o->config);
    child_option(c, "--model", o->model);
    child_option_int(c, "--replicas", o->replicas);
    child_option_int(c, "--prefill", o->prefill);
    child_option_int(c, "--decode", o->decode);
    child_option_int(c, "--stages", o->stages);
    child_option_int(c, "--tensor", o->tensor);
    if (o->elastic)
        child_option(c, "--elastic", o->elastic);
    child_option(c, "--transport", o->transport);
    listen_option(c, "--http", u->coordinators[i].http);
    listen_option(c, "--rpc", u->coordinators[i].rpc);
    if (u->coordinators_n == 1)
        return;
    snprintf(store, sizeof store, "file:%s", u->store);
    child_option(c, "--name", name);
    child_option(c, "--store", store);
}

// All of them: a node goes to the one that leads.
static void coordinators_option(struct child *c, const struct up *u)
{
    char text[UP_COORDINATORS_MAX * 32] = "";
    for (int i = 0; i < u->coordinators_n; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s127.0.0.1:%lld",
                 i ? "," : "", (long long)u->coordinators[i].rpc);
    child_option(c, "--coordinator", text);
}

static void plan_node(struct up *u, int i)
{
    char name[16];
    const struct up_options *o = u->o;
    struct child *c = &u->children[u->coordinators_n + i - 1];
    snprintf(name, sizeof name, "%d", i);
    child_init(c, name);
    child_arg(c, "hadal");
    child_arg(c, "node");
    child_option(c, "--name", name);
    coordinators_option(c, u);
    child_option(c, "--backend", o->backend);
    if (o->devices) // ranks of one stage are neighbours, and on devices of their own where they can
        child_option_int(c, "--device", (i - 1) % o->devices);
    child_option(c, "--engine", o->engine);
    child_option_int(c, "--threads", o->threads);
    if (o->random_weights)
        child_option(c, "--random-weights", o->random_weights);
    const struct {
        const char *name;
        int64_t value;
    } sizes[] = {{"--max-seqs", o->max_seqs},
                 {"--max-rows", o->max_rows},
                 {"--context", o->context},
                 {"--kv-tokens", o->kv_tokens}};
    for (size_t j = 0; j < sizeof sizes / sizeof *sizes; j++)
        if (sizes[j].value)
            child_option_int(c, sizes[j].name, sizes[j].value);
    if (strcmp(o->engine, "mock"))
        return;
    child_option_int(c, "--mock-vocab", o->vocab);
    if (o->mock_step_us)
        child_option_int(c, "--mock-step-us", o->mock_step_us);
}

static void start_nodes(struct up *u)
{
    int first_n = u->coordinators_n + (int)(u->o->replicas * u->o->stages * u->o->tensor);
    for (int i = u->coordinators_n; i < first_n; i++)
        if (child_start(&u->children[i]) != STATUS_OK)
            u->failed = u->stop = true;
}

static void say_end(const struct child *c, const struct child_end *end)
{
    char how[64];
    if (end->by_signal)
        snprintf(how, sizeof how, "was ended by signal %d (%s)", end->code, strsignal(end->code));
    else
        snprintf(how, sizeof how, "ended with exit code %d", end->code);
    log_warn("%s%s %s", strncmp(c->name, "coordinator", 11) ? "node " : "", c->name, how);
}

// A process that gives up by itself before the cluster ever served has told why; the rest of the
// cluster waits for it in vain.
static void on_end(struct up *u, struct child *c, const struct child_end *end)
{
    cmdline_progress_stop(&u->bar);
    say_end(c, end);
    if (u->was_ready || end->by_signal)
        return;
    log_error("the cluster did not come up: see what %s%s said above%s%s",
              c < u->children + u->coordinators_n ? "the " : "node ", c->name, c->log_dir ? ", or in " : "",
              c->log_dir ? c->log_dir : "");
    u->failed = u->stop = true;
}

static void restart_due(struct up *u)
{
    int64_t now = cmdline_now_ms();
    for (int i = 0; i < u->n; i++) {
        struct child *c = &u->children[i];
        if (c->pid || !c->restart_at_ms || now < c->restart_at_ms)
            continue;
        c->restarts++;
        if (child_start(c) != STATUS_OK)
            c->restart_at_ms = now + STOP_MS;
        else if (i < u->coordinators_n)
            up_watch_restarted(u->coordinators[i].watch);
    }
}

static void reap(struct up *u)
{
    struct child_end end;
    for (int i = 0; i < u->n; i++) {
        struct child *c = &u->children[i];
        if (!child_reap(c, &end) || u->stop)
            continue;
        if (c->leaves)
            c->restart_at_ms = 0;
        else
            on_end(u, c, &end);
        c->leaves = false;
    }
}

// ---- what the coordinator tells -----------------------------------------------------------------

static void on_ready(void *user, enum up_answer answer)
{
    struct up_coordinator *k = user;
    struct up *u = k->up;
    bool ready = answer == UP_READY && k == u->coordinators; // of the url that is told
    if (answer != UP_SILENT && !u->nodes_started) { // now there is somebody to join
        u->nodes_started = true;
        start_nodes(u);
    }
    if (!ready || u->was_ready)
        return;
    u->was_ready = true;
    cmdline_progress_stop(&u->bar);
    printf("ready %s\n", u->coordinators[0].url);
    for (int i = 0; i < u->coordinators_n && u->coordinators_n > 1; i++)
        printf("coordinator %s %s hadal://127.0.0.1:%lld\n", u->children[i].name,
               u->coordinators[i].url, (long long)u->coordinators[i].rpc);
    fflush(stdout);
    if (isatty(STDERR_FILENO))
        fprintf(stderr,
                "up after %.1f s: %d node%s; also hadal://127.0.0.1:%lld; ctrl-C stops all\n",
                (double)(cmdline_now_ms() - u->started_ms) / 1e3, u->n - u->coordinators_n,
                u->n - u->coordinators_n == 1 ? "" : "s",
                (long long)u->o->rpc);
}

static struct child *find_node(struct up *u, const json_t *node)
{
    const char *name = json_string_value(json_object_get(node, "name"));
    json_int_t pid = json_integer_value(json_object_get(node, "pid"));
    for (int i = u->coordinators_n; i < u->n && name; i++)
        if (!strcmp(u->children[i].name, name))
            return u->children[i].pid == pid ? &u->children[i] : NULL;
    return NULL;
}

static bool is_ill(const json_t *node)
{
    const char *state = json_string_value(json_object_get(node, "state"));
    return state && (!strcmp(state, "lost") || !strcmp(state, "suspect"));
}

// A process that is there but that the coordinator has given up: it hangs. Only a new one helps.
static void on_nodes(void *user, json_t *nodes)
{
    struct up *u = ((struct up_coordinator *)user)->up;
    json_t *node;
    size_t i;
    int64_t now = cmdline_now_ms();
    u->nodes = nodes;
    json_array_foreach(nodes, i, node)
    {
        struct child *c = find_node(u, node);
        if (!c)
            continue;
        if (!is_ill(node) || now - c->started_ms < GRACE_MS) {
            c->ill_since_ms = 0;
        } else if (!c->ill_since_ms) {
            c->ill_since_ms = now;
        } else if (now - c->ill_since_ms >= ILL_MS) {
            log_warn("node %s is %s but its process %d is there: killed, to start it again",
                     c->name, json_string_value(json_object_get(node, "state")), (int)c->pid);
            child_signal(c, SIGKILL);
            c->ill_since_ms = now;
        }
    }
}

// Elastic: as many nodes run as the coordinator wants. It says what should be, so nothing is lost when
// an answer is; a node that is told to end while it is given work after all is a failed forming, which
// no client sees.
static void start_some(struct up *u, int64_t wanted)
{
    int64_t running = 0;
    for (int i = u->coordinators_n; i < u->n; i++)
        running += (u->children[i].pid || u->children[i].restart_at_ms) && !u->children[i].leaves;
    for (int i = u->coordinators_n; i < u->n && running < wanted; i++) {
        struct child *c = &u->children[i];
        if (c->pid || c->restart_at_ms)
            continue;
        log_info("node %s is started: %lld are wanted", c->name, (long long)wanted);
        if (child_start(c) != STATUS_OK)
            c->restart_at_ms = cmdline_now_ms() + STOP_MS;
        running++;
    }
}

static void stop_some(struct up *u, int64_t spare)
{
    json_t *node;
    size_t i;
    json_array_foreach(u->nodes, i, node)
    {
        const char *state = json_string_value(json_object_get(node, "state"));
        struct child *c = find_node(u, node);
        if (!c || !state || strcmp(state, "free") || spare <= 0)
            continue;
        spare--; // also of one that is on its way already
        if (c->leaves)
            continue;
        log_info("node %s is stopped: it is not wanted any more", c->name);
        c->leaves = true;
        child_signal(c, SIGTERM);
    }
}

static void on_wanted(void *user, int64_t wanted, int64_t spare)
{
    struct up *u = ((struct up_coordinator *)user)->up;
    if (!u->o->elastic || !u->was_ready || u->stop)
        return;
    start_some(u, wanted);
    stop_some(u, spare);
}

// True when a rank could not be formed for a reason that trying again does not mend: the status is
// named in the text, and its group is the operator's input or this host.
static bool is_hopeless(const char *fault)
{
    static const enum status statuses[] = {STATUS_BAD_CONFIG,  STATUS_BAD_MODEL,
                                           STATUS_BAD_FILE,    STATUS_UNKNOWN_ARCH,
                                           STATUS_UNSUPPORTED, STATUS_NO_DEVICE};
    char named[48];
    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++) {
        snprintf(named, sizeof named, ": %s: ", status_name(statuses[i]));
        if (strstr(fault, named))
            return true;
    }
    return false;
}

// A model that cannot be loaded is told once, before anything is served.
static void on_replicas(void *user, json_t *replicas)
{
    struct up *u = ((struct up_coordinator *)user)->up;
    json_t *replica;
    size_t i;
    json_array_foreach(replicas, i, replica)
    {
        const char *fault = json_string_value(json_object_get(replica, "fault"));
        if (u->was_ready || u->stop || !fault || !is_hopeless(fault))
            continue;
        cmdline_progress_stop(&u->bar);
        fprintf(stderr, "hadal up: %s\n", fault);
        u->failed = u->stop = true;
    }
}

static void on_silent(void *user, int64_t ms)
{
    struct up_coordinator *k = user;
    struct up *u = k->up;
    struct child *c = &u->children[k - u->coordinators];
    if (!u->was_ready || ms < SILENT_MS)
        return;
    log_error("the %s answered nothing for %lld s: killed, to start it again", c->name,
              (long long)ms / 1000);
    child_signal(c, SIGKILL);
    up_watch_restarted(k->watch);
}

// Waits for whatever comes first, at most so long.
static void turn(struct up *u, int timeout_ms)
{
    for (int i = 1; i < u->coordinators_n; i++)
        up_watch_turn(u->coordinators[i].watch, u->signals, 0);
    up_watch_turn(u->coordinators[0].watch, u->signals, timeout_ms);
}

// ---- the loop -----------------------------------------------------------------------------------

static void take_signals(struct up *u)
{
    struct signalfd_siginfo info;
    while (read(u->signals, &info, sizeof info) == sizeof info)
        if (info.ssi_signo != SIGCHLD) {
            u->interrupted_twice = u->stop;
            u->stop = true;
        }
}

static void show_start(struct up *u)
{
    char note[64];
    int64_t ms = cmdline_now_ms() - u->started_ms;
    snprintf(note, sizeof note, "%.1f s", (double)ms / 1e3);
    if (!u->was_ready)
        cmdline_progress_show(&u->bar, (uint64_t)(u->n - u->coordinators_n), 0, note);
    if (!u->was_ready && ms > u->o->ready_timeout_s * 1000) {
        cmdline_progress_stop(&u->bar);
        log_error("not ready after %lld s (--ready-timeout)", (long long)u->o->ready_timeout_s);
        u->failed = u->stop = true;
    }
}

static void serve(struct up *u)
{
    while (!u->stop) {
        turn(u, u->was_ready ? TURN_MS : TURN_MS / 5);
        take_signals(u);
        reap(u);
        if (!u->stop) {
            restart_due(u);
            show_start(u);
        }
    }
}

static int running(const struct up *u)
{
    int n = 0;
    for (int i = 0; i < u->n; i++)
        n += u->children[i].pid > 0;
    return n;
}

static void signal_all(const struct up *u, int sig)
{
    for (int i = 0; i < u->n; i++)
        child_signal(&u->children[i], sig);
}

// Waits until all are gone; false when it took too long or somebody was impatient.
static bool wait_gone(struct up *u, int64_t limit_ms)
{
    int64_t until = cmdline_now_ms() + limit_ms;
    for (reap(u); running(u); reap(u)) {
        if (cmdline_now_ms() >= until || u->interrupted_twice)
            return false;
        turn(u, TURN_MS / 5);
        take_signals(u);
    }
    return true;
}

static int coordinators_running(const struct up *u)
{
    int n = 0;
    for (int i = 0; i < u->coordinators_n; i++)
        n += u->children[i].pid > 0;
    return n;
}

// The coordinators first: one lets running answers end for a moment, and must not take the ends of
// its nodes for faults.
static void stop_all(struct up *u)
{
    for (int i = 0; i < u->coordinators_n; i++) {
        child_signal(&u->children[i], SIGTERM);
        child_signal(&u->children[i], SIGCONT); // a stopped process does not hear SIGTERM
    }
    for (int64_t until = cmdline_now_ms() + STOP_MS;
         coordinators_running(u) && cmdline_now_ms() < until && !u->interrupted_twice;) {
        turn(u, TURN_MS / 5);
        take_signals(u);
        reap(u);
    }
    signal_all(u, SIGTERM);
    signal_all(u, SIGCONT);
    if (!wait_gone(u, STOP_MS / 3))
        signal_all(u, SIGKILL);
    for (reap(u); running(u); reap(u))
        usleep(2000);
}

static void block_signals(sigset_t *set)
{
    static const int taken[] = {SIGCHLD, SIGINT, SIGTERM, SIGHUP};
    sigemptyset(set);
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++)
        sigaddset(set, taken[i]);
    sigprocmask(SIG_BLOCK, set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static int run(struct up *u)
{
    sigset_t set;
    block_signals(&set);
    u->signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    if (u->signals < 0) {
        log_error("signalfd: %s", strerror(errno));
        return CMD_FAILED;
    }
    u->started_ms = cmdline_now_ms();
    cmdline_progress_start(&u->bar, "starting nodes");
    for (int i = 0; i < u->coordinators_n; i++) {
        struct up_coordinator *k = &u->coordinators[i];
        k->watch = up_watch_open(
            k->url, &(struct up_watch_handler){on_ready, on_nodes, on_wanted, on_replicas,
                                               on_silent, k});
        u->failed |= child_start(&u->children[i]) != STATUS_OK;
    }
    if (!u->failed)
        serve(u);
    u->stop = true;
    cmdline_progress_stop(&u->bar);
    stop_all(u);
    for (int i = 0; i < u->coordinators_n; i++)
        up_watch_close(u->coordinators[i].watch);
    close(u->signals);
    return u->failed ? CMD_FAILED : CMD_OK;
}

static bool reserve_ports(struct up *u, struct up_options *o)
{
    for (int i = 0; i < u->coordinators_n; i++) {
        struct up_coordinator *k = &u->coordinators[i];
        k->up = u;
        k->http = i ? 0 : o->http;
        k->rpc = i ? 0 : o->rpc;
        k->http_held = reserve("--http", &k->http);
        k->rpc_held = k->http_held < 0 ? -1 : reserve("--rpc", &k->rpc);
        if (k->rpc_held < 0)
            return false;
        snprintf(k->url, sizeof k->url, "http://127.0.0.1:%lld", (long long)k->http);
    }
    o->http = u->coordinators[0].http;
    o->rpc = u->coordinators[0].rpc;
    return true;
}

int up_cluster_run(struct up_options *o)
{
    struct up u = {.o = o, .coordinators_n = (int)o->coordinators};
    int rc = CMD_FAILED;
    const char *tmp = getenv("TMPDIR");
    for (int i = 0; i < UP_COORDINATORS_MAX; i++)
        u.coordinators[i].http_held = u.coordinators[i].rpc_held = -1;
    if (u.coordinators_n > 1)
        snprintf(u.store, sizeof u.store, "%s/hadal-up-%d.leader", tmp && *tmp ? tmp : "/tmp",
                 (int)getpid());
    if (reserve_ports(&u, o)) {
        int nodes = (int)(o->replicas_max * o->stages * o->tensor);
        u.n = u.coordinators_n + nodes;
        u.children = mem_zalloc((size_t)u.n, sizeof *u.children);
        for (int i = 0; i < u.coordinators_n; i++)
            plan_coordinator(&u, i);
        for (int i = 1; i <= nodes; i++)
            plan_node(&u, i);
        for (int i = 0; i < u.n; i++)
            u.children[i].log_dir = o->log_dir;
        rc = run(&u);
        for (int i = 0; i < u.n; i++)
            child_finish(&u.children[i]);
        free(u.children);
    }
    for (int i = 0; i < u.coordinators_n; i++) {
        if (u.coordinators[i].http_held >= 0)
            close(u.coordinators[i].http_held);
        if (u.coordinators[i].rpc_held >= 0)
            close(u.coordinators[i].rpc_held);
    }
    if (u.store[0])
        unlink(u.store);
    return rc;
}
