// libuv's child processes: the loop learns of the end by a signal. A call that fails is repeated
// after a while, for as long as what it was to bring about is not there.
#include "coordinator/hook_shell.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

enum { AGAIN_MS = 5000, KILL_MS = 1000, FREE_NAMES = 64 };

struct hook {
    struct shell *shell;
    uv_process_t process;
    uv_timer_t timer; // of the call under way, or until it is repeated
    char **argv;      // owned while it runs
    size_t argv_n;
    bool runs, again, terminated;
    struct coord_nodes told;
};

struct names {
    char **argv;
    size_t n, cap;
    uint32_t left;
};

static bool add_free(void *arg, const struct coord_node_view *v)
{
    struct names *k = arg;
    if (v->state != COORD_NODE_FREE || !k->left)
        return true;
    k->left--;
    MEM_GROW(k->argv, k->n, k->cap);
    k->argv[k->n++] = mem_strdup(v->name);
    return true;
}

static struct coord_nodes nodes_now(const struct shell *s)
{
    struct coord_nodes n;
    coord_nodes(s->core, &n);
    return n;
}

static void build(struct hook *h)
{
    const struct coordinator_config *cfg = h->shell->cfg;
    char number[2][16];
    struct names k = {0};
    h->told = nodes_now(h->shell);
    snprintf(number[0], sizeof number[0], "%u", h->told.wanted);
    snprintf(number[1], sizeof number[1], "%u", h->told.connected);
    for (unsigned i = 0; i < cfg->hook_n + 2; i++) {
        MEM_GROW(k.argv, k.n, k.cap);
        k.argv[k.n++] = mem_strdup(i < cfg->hook_n ? cfg->hook[i] : number[i - cfg->hook_n]);
    }
    k.left = h->told.spare < FREE_NAMES ? h->told.spare : FREE_NAMES;
    coord_each_node(h->shell->core, add_free, &k);
    MEM_GROW(k.argv, k.n, k.cap);
    k.argv[k.n] = NULL;
    h->argv = k.argv;
    h->argv_n = k.n;
}

static void drop(struct hook *h)
{
    for (size_t i = 0; i < h->argv_n; i++)
        free(h->argv[i]);
    free(h->argv);
    h->argv = NULL;
    h->argv_n = 0;
}

static void on_again(uv_timer_t *t)
{
    hook_call(t->data);
}

static void on_closed(uv_handle_t *p)
{
    struct hook *h = p->data;
    h->runs = false;
    if (h->again)
        hook_call(h);
}

static void on_exit_of(uv_process_t *p, int64_t code, int sig)
{
    struct hook *h = p->data;
    uv_timer_stop(&h->timer);
    if (sig)
        log_warn("coordinator: hook %s was ended by signal %d%s", h->argv[0], sig,
                 h->terminated ? ", it took too long" : "");
    else
        log_write(code ? LOG_WARN : LOG_INFO,
                  "coordinator: hook %s for %u nodes (%u there, %u too many): exit code %lld",
                  h->argv[0], h->told.wanted, h->told.connected, h->told.spare, (long long)code);
    if (sig || code)
        uv_timer_start(&h->timer, on_again, AGAIN_MS, 0);
    drop(h);
    uv_close((uv_handle_t *)p, on_closed);
}

static void on_timeout(uv_timer_t *t)
{
    struct hook *h = t->data;
    uv_process_kill(&h->process, h->terminated ? SIGKILL : SIGTERM);
    h->terminated = true;
    uv_timer_start(t, on_timeout, KILL_MS, 0);
}

void hook_call(struct hook *h)
{
    if (!h)
        return;
    h->again = h->runs;
    if (h->runs)
        return;
    build(h);
    uv_stdio_container_t stdio[3] = {
        {.flags = UV_IGNORE},
        {.flags = UV_INHERIT_FD, .data.fd = 2}, // stdout is for `ready`
        {.flags = UV_INHERIT_FD, .data.fd = 2}};
    uv_process_options_t o = {.file = h->argv[0],
                              .args = h->argv,
                              .exit_cb = on_exit_of,
                              .stdio = stdio,
                              .stdio_count = 3};
    h->process.data = h;
    h->terminated = false;
    h->runs = true;
    int rc = uv_spawn(&h->shell->loop, &h->process, &o);
    if (!rc) {
        uv_timer_start(&h->timer, on_timeout, h->shell->cfg->hook_timeout_ms, 0);
        return;
    }
    log_error("coordinator: hook %s: %s", h->argv[0], uv_strerror(rc));
    drop(h);
    uv_close((uv_handle_t *)&h->process, on_closed);
    uv_timer_start(&h->timer, on_again, AGAIN_MS, 0);
}

struct hook *hook_open(struct shell *s)
{
    if (!s->cfg->hook_n)
        return NULL;
    struct hook *h = mem_zalloc(1, sizeof *h);
    h->shell = s;
    uv_timer_init(&s->loop, &h->timer);
    h->timer.data = h;
    return h;
}

void hook_close(struct hook *h)
{
    if (h && h->runs && h->argv) // its memory goes with the process, as libuv holds the handle
        uv_process_kill(&h->process, SIGTERM);
}
