// hadal ctl: shows the state of a cluster and gives it orders, through the coordinator's HTTP
// endpoints.
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "base/strbuf.h"
#include "tools/admin.h"
#include "tools/cmd.h"
#include "tools/cmdline.h"
#include "tools/ctl_rollout.h"
#include "tools/ctl_table.h"
#include "tools/doctor.h"
#include "tools/http.h"

static const struct ctl_column status_rows[] = {
    {"model", "model", CTL_PLAIN},
    {"ready", "ready", CTL_PLAIN},
    {"up for", "uptime_ms", CTL_MS},
    {"nodes", "nodes", CTL_PLAIN},
    {"  usable", "nodes_usable", CTL_PLAIN},
    {"replicas", "replicas", CTL_PLAIN},
    {"  ready", "replicas_ready", CTL_PLAIN},
    {"running", "running", CTL_PLAIN},
    {"queued", "queued", CTL_PLAIN},
    {"free places", "credits_free", CTL_PLAIN},
    {"wait now", "eta_ms", CTL_MS},
    {"requests", "submitted", CTL_PLAIN},
    {"tokens", "tokens", CTL_PLAIN},
    {"moved", "moves", CTL_PLAIN},
    {"  with KV", "moved_with_kv", CTL_PLAIN},
    {"  KV moved", "kv_bytes", CTL_BYTES},
    {"fences", "fences", CTL_PLAIN},
    {"memory", "rss_bytes", CTL_BYTES},
    {NULL, NULL, CTL_PLAIN},
};
static const struct ctl_column node_columns[] = {
    {"NODE", "name", CTL_PLAIN},
    {"STATE", "state", CTL_PLAIN},
    {"REPLICA", "replica", CTL_PLAIN},
    {"STAGE", "stage", CTL_PLAIN},
    {"TENSOR", "tensor", CTL_PLAIN},
    {"PID", "pid", CTL_PLAIN},
    {"HOST", "host", CTL_PLAIN},
    {"BACKEND", "backend", CTL_PLAIN},
    {"BEAT", "heartbeat_age_ms", CTL_MS},
    {"STEP", "step_age_ms", CTL_MS},
    {"MEMORY", "rss_bytes", CTL_BYTES},
    {"GPU%", "gpu.utilization_percent", CTL_PLAIN | CTL_OPTIONAL},
    {"GPU MEMORY", "gpu.memory_used_bytes", CTL_BYTES | CTL_OPTIONAL},
    {"C", "gpu.temperature_c", CTL_PLAIN | CTL_OPTIONAL},
    {"W", "gpu.power_w", CTL_PLAIN | CTL_OPTIONAL},
    {"MHZ", "gpu.sm_mhz", CTL_PLAIN | CTL_OPTIONAL},
    {"ECC", "gpu.ecc_uncorrected", CTL_PLAIN | CTL_OPTIONAL},
    {"XID", "gpu.xid", CTL_PLAIN | CTL_OPTIONAL},
    {"GPU FAULT", "gpu.reason", CTL_PLAIN | CTL_OPTIONAL},
    {"FAULTS", "faults", CTL_PLAIN},
    {"LAST FAULT", "fault", CTL_PLAIN},
    {NULL, NULL, CTL_PLAIN},
};
static const struct ctl_column replica_columns[] = {
    {"REPLICA", "id", CTL_PLAIN},      {"STATE", "state", CTL_PLAIN},
    {"ROLE", "role", CTL_PLAIN},       {"SERVES", "serves", CTL_PLAIN},
    {"EPOCH", "epoch", CTL_PLAIN},     {"NODES", "nodes", CTL_PLAIN},
    {"RUNNING", "running", CTL_PLAIN}, {"PLACES", "credits", CTL_PLAIN},
    {"KV FREE", "kv_free", CTL_PLAIN}, {"KV", "kv_blocks", CTL_PLAIN},
    {"LINKS", "transport", CTL_PLAIN}, {"STEPS", "steps", CTL_PLAIN},
    {"FENCES", "fences", CTL_PLAIN},   {"LAST FAULT", "fault", CTL_PLAIN},
    {NULL, NULL, CTL_PLAIN},
};
static const struct ctl_column transfer_columns[] = {
    {"TRANSFER", "id", CTL_PLAIN},  {"REQUEST", "request", CTL_PLAIN}, {"STATE", "state", CTL_PLAIN},
    {"FROM", "source", CTL_PLAIN},  {"TO", "target", CTL_PLAIN},       {"TOKENS", "tokens", CTL_PLAIN},
    {"BLOCKS", "blocks", CTL_PLAIN}, {"HAD", "have", CTL_PLAIN},       {"AGE", "age_ms", CTL_MS},
    {"LEASE", "lease_ms", CTL_MS},  {NULL, NULL, CTL_PLAIN},
};
static const struct ctl_column request_columns[] = {
    {"REQUEST", "id", CTL_PLAIN},           {"STATE", "state", CTL_PLAIN},
    {"REPLICA", "replica", CTL_PLAIN},      {"AGE", "age_ms", CTL_MS},
    {"PROMPT", "prompt_tokens", CTL_PLAIN}, {"TOKENS", "tokens", CTL_PLAIN},
    {"PLACE", "position", CTL_PLAIN},       {"CLIENTS", "clients", CTL_PLAIN},
    {"SENT", "dispatches", CTL_PLAIN},      {"PAUSE", "pause_ms", CTL_MS},
    {"FINISH", "finish", CTL_PLAIN},        {NULL, NULL, CTL_PLAIN},
};

static const struct ctl_column coordinator_columns[] = {
    {"COORDINATOR", "name", CTL_PLAIN}, {"ROLE", "role", CTL_PLAIN},
    {"HTTP", "http", CTL_PLAIN},        {"RPC", "rpc", CTL_PLAIN},
    {"SYNCED", "synced", CTL_PLAIN},    {"BEHIND", "behind", CTL_PLAIN},
    {NULL, NULL, CTL_PLAIN},
};

static const struct view {
    const char *name, *path, *list;
    const struct ctl_column *columns;
} views[] = {
    {"status", "/hadal/v1/status", NULL, status_rows},
    {"nodes", "/hadal/v1/nodes", "nodes", node_columns},
    {"replicas", "/hadal/v1/replicas", "replicas", replica_columns},
    {"transfers", "/hadal/v1/transfers", "transfers", transfer_columns},
    {"requests", "/hadal/v1/requests", "requests", request_columns},
    {"coordinators", "/hadal/v1/coordinators", "coordinators", coordinator_columns},
};

static const struct order {
    const char *name, *kind, *done;
} orders[] = {
    {"drain", "nodes", "is drained: idle, and kept out until undrain"},
    {"undrain", "nodes", "may be used again"},
    {"eject", "nodes", "is ejected: kept out until undrain"},
    {"failover", "replicas", "is fenced; its requests went on elsewhere"},
    {"role-any", "replicas", "does both, prefill and decode"},
    {"role-prefill", "replicas", "computes long prompts for the others"},
    {"role-decode", "replicas", "decodes"},
};

struct options {
    const char *url;
    const char *sysfs;
    bool json;
    struct ctl_rollout_options rollout;
};

static int fail(const struct errmsg *err)
{
    fprintf(stderr, "hadal ctl: %s\n", err->text);
    return CMD_FAILED;
}

static void render_object(struct strbuf *to, const json_t *object, const struct ctl_column *rows)
{
    char cell[80];
    for (; rows->title; rows++)
        strbuf_printf(to, "%-12s %s\n", rows->title, ctl_value(object, rows, cell, sizeof cell));
}

static enum status render(struct strbuf *to, const char *url, const struct view *v,
                          struct errmsg *err)
{
    json_t *reply;
    enum status s = admin_get(url, v->path, &reply, err);
    if (s != STATUS_OK)
        return s;
    const json_t *list = v->list ? admin_list(reply, v->list) : NULL;
    if (!v->list)
        render_object(to, reply, v->columns);
    else if (list)
        ctl_table_print(to, list, v->columns);
    else
        s = errmsg_set(err, STATUS_LINK_PROTOCOL, "%s%s has no list '%s'", url, v->path, v->list);
    json_decref(reply);
    return s;
}

static int print_json(json_t *json)
{
    int rc = json_dumpf(json, stdout, JSON_INDENT(1)) | (putchar('\n') == EOF);
    json_decref(json);
    return rc ? CMD_FAILED : CMD_OK;
}

static int show(const struct options *o, const struct view *v)
{
    struct errmsg err = {0};
    json_t *reply;
    if (o->json)
        return admin_get(o->url, v->path, &reply, &err) == STATUS_OK ? print_json(reply)
                                                                     : fail(&err);
    struct strbuf text = {0};
    int rc = render(&text, o->url, v, &err) == STATUS_OK ? CMD_OK : fail(&err);
    if (rc == CMD_OK)
        fputs(text.v, stdout);
    strbuf_finish(&text);
    return rc;
}

static int give(const struct options *o, const struct order *order, const char *whom)
{
    struct errmsg err = {0};
    json_t *reply = NULL;
    const struct admin_order a = {order->kind, whom, order->name};
    int64_t start = cmdline_now_us();
    if (admin_post(o->url, &a, &reply, &err) != STATUS_OK)
        return fail(&err);
    if (o->json)
        return print_json(reply);
    const char *text = json_string_value(json_object_get(reply, "message"));
    printf("%s %s %s (%.0f ms)%s%s\n", !strcmp(order->kind, "nodes") ? "node" : "replica", whom,
           order->done, (double)(cmdline_now_us() - start) / 1e3, text && *text ? ": " : "",
           text ? text : "");
    json_decref(reply);
    return CMD_OK;
}

// ---- top ----------------------------------------------------------------------------------------

static volatile sig_atomic_t leave;

static void on_signal(int sig)
{
    leave = 1;
}

static enum status render_all(struct strbuf *to, const char *url, struct errmsg *err)
{
    enum status s = STATUS_OK;
    for (size_t i = 0; i < sizeof views / sizeof *views && s == STATUS_OK; i++) {
        s = render(to, url, &views[i], err);
        strbuf_puts(to, "\n");
    }
    return s;
}

// Waits a second; false when a key or a signal says to leave.
static bool wait_for_key(void)
{
    char key = 0;
    struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
    if (poll(&p, 1, 1000) > 0 && read(STDIN_FILENO, &key, 1) != 1)
        return false;
    return !leave && key != 'q' && key != 'Q' && key != 3;
}

static void draw(const char *text)
{
    fputs("\033[H", stdout);
    for (const char *end; *text; text = end + (*end == '\n')) {
        end = text + strcspn(text, "\n");
        printf("%.*s\033[K\n", (int)(end - text), text);
    }
    fputs("\033[J", stdout);
    fflush(stdout);
}

static int top_screen(const struct options *o)
{
    struct termios old, raw;
    struct errmsg err = {0};
    enum status s;
    bool raw_ok = tcgetattr(STDIN_FILENO, &old) == 0;
    raw = old;
    raw.c_lflag &= (tcflag_t) ~(ICANON | ECHO);
    if (raw_ok)
        tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    struct sigaction act = {.sa_handler = on_signal};
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
    fputs("\033[?1049h\033[?25l", stdout);
    do {
        struct strbuf text = {0};
        s = render_all(&text, o->url, &err);
        if (s == STATUS_OK) {
            strbuf_puts(&text, "q leaves");
            draw(text.v);
        }
        strbuf_finish(&text);
    } while (s == STATUS_OK && wait_for_key());
    fputs("\033[?25h\033[?1049l", stdout);
    fflush(stdout);
    if (raw_ok)
        tcsetattr(STDIN_FILENO, TCSANOW, &old);
    return s == STATUS_OK ? CMD_OK : fail(&err);
}

static int top_json(const struct options *o)
{
    json_t *all = json_object();
    struct errmsg err = {0};
    for (size_t i = 0; i < sizeof views / sizeof *views; i++) {
        json_t *reply;
        if (admin_get(o->url, views[i].path, &reply, &err) != STATUS_OK) {
            json_decref(all);
            return fail(&err);
        }
        json_t *list = views[i].list ? admin_list(reply, views[i].list) : reply;
        json_object_set(all, views[i].name, list ? list : json_null());
        json_decref(reply);
    }
    return print_json(all);
}

static int top(const struct options *o)
{
    if (o->json)
        return top_json(o);
    if (isatty(STDOUT_FILENO) && isatty(STDIN_FILENO))
        return top_screen(o);
    struct errmsg err = {0};
    struct strbuf text = {0};
    int rc = render_all(&text, o->url, &err) == STATUS_OK ? CMD_OK : fail(&err);
    if (rc == CMD_OK)
        fputs(text.v, stdout);
    strbuf_finish(&text);
    return rc;
}

static int role(const struct options *o, const char *whom, const char *what)
{
    char name[24];
    snprintf(name, sizeof name, "role-%s", what ? what : "");
    for (size_t i = 0; i < sizeof orders / sizeof *orders; i++)
        if (whom && !strcmp(name, orders[i].name))
            return give(o, &orders[i], whom);
    fputs("hadal ctl: role wants the number of a replica, and any, prefill or decode\n", stderr);
    return CMD_USAGE;
}

static int dispatch(const struct options *o, bool url_given, const char *const args[4])
{
    const char *name = args[0], *whom = args[1];
    if (!strcmp(name, "rollout"))
        return ctl_rollout(&o->rollout, args);
    if (!strcmp(name, "scale"))
        return ctl_scale(&o->rollout, args);
    if (!strcmp(name, "role"))
        return role(o, whom, args[2]);
    if (args[2]) {
        fprintf(stderr, "hadal ctl: too much after '%s %s'\n", name, whom);
        return CMD_USAGE;
    }
    for (size_t i = 0; i < sizeof views / sizeof *views; i++)
        if (!strcmp(name, views[i].name) && !whom)
            return show(o, &views[i]);
    for (size_t i = 0; i < sizeof orders / sizeof *orders; i++) {
        if (strcmp(name, orders[i].name))
            continue;
        if (whom && *whom)
            return give(o, &orders[i], whom);
        fprintf(stderr, "hadal ctl: %s wants the %s\n", name,
                !strcmp(orders[i].kind, "nodes") ? "name of a node" : "number of a replica");
        return CMD_USAGE;
    }
    if (!strcmp(name, "top") && !whom)
        return top(o);
    if (!strcmp(name, "doctor") && !whom) {
        const struct doctor_options d = {o->url, url_given, o->sysfs, o->json};
        return doctor_run(&d);
    }
    fprintf(stderr, "hadal ctl: no command '%s%s%s' (hadal ctl --help tells more)\n", name,
            whom ? " " : "", whom ? whom : "");
    return CMD_USAGE;
}

int cmd_ctl(int argc, char **argv)
{
    struct options o = {0};
    struct ctl_rollout_options *r = &o.rollout;
    ctl_rollout_options_default(r);
    const struct cmdline_opt opts[] = {
        {"--url", CMDLINE_STRING, &o.url, "URL", .help = "the coordinator (HADAL_URL)"},
        {"--json", CMDLINE_FLAG, &o.json, .help = "what the coordinator answered, as JSON"},
        {"--sysfs", CMDLINE_STRING, &o.sysfs, "DIR",
         .help = "doctor: judge a copy of another host's /sys/class instead"},
        {"--to", CMDLINE_STRING, &r->to, "DIR", .help = "rollout start: the new model folder"},
        {"--canary", CMDLINE_STRING, &r->canary, "PERCENT",
         .help = "its first share of the new requests (5); then 25, 50, 100"},
        {"--steps", CMDLINE_STRING, &r->steps, "LIST", .help = "all shares: 5,25,50,100"},
        {"--dwell", CMDLINE_REAL, &r->dwell_s, "S", .max = 604800,
         .help = "watch each step for so long (60)"},
        {"--min-requests", CMDLINE_INT, &r->min_requests, "N", .max = 1000000,
         .help = "its figures are trusted from so many on (20)"},
        {"--max-errors", CMDLINE_INT, &r->errors, "PERCENT", .max = 100,
         .help = "taken back when so much more of its requests fail (5; 0 = never)"},
        {"--max-ttft", CMDLINE_INT, &r->ttft, "PERCENT", .max = 10000,
         .help = "or its median TTFT is more than this of the old one's (200)"},
        {"--max-tpot", CMDLINE_INT, &r->tpot, "PERCENT", .max = 10000,
         .help = "or its time per token (150)"},
        {"--min-agree", CMDLINE_INT, &r->agree, "PERCENT", .max = 100,
         .help = "or less of its golden answer is like the old one's (50)"},
        {"--score", CMDLINE_REAL, &r->score, "X", .max = 1,
         .help = "rollout score: what an eval gave this version"},
        {"--max-score-drop", CMDLINE_REAL, &r->score_drop, "X", .max = 1,
         .help = "or its score is lower by more than this (0.02)"},
        {0},
    };
    const struct cmdline line = {
        .usage = "hadal ctl [OPTION...] COMMAND",
        .about =
            "commands:\n"
            "  status              one page: how it is\n"
            "  nodes               each node: state, place, heartbeat, memory\n"
            "  replicas            each replica: state, nodes, load\n"
            "  transfers           KV on its way from one replica to another\n"
            "  requests            each request known\n"
            "  coordinators        who leads, who follows, and how far behind\n"
            "  top                 all of these, every second\n"
            "  drain NODE          hand its work over, then leave it idle\n"
            "  undrain NODE        use it again; also after eject\n"
            "  eject NODE          fence its replica at once, keep it out\n"
            "  failover REPLICA    fence it, move its requests, form it anew\n"
            "  role REPLICA any|prefill|decode\n"
            "                      what it is for; its requests are moved when that asks for it\n"
            "  scale MODEL N       so many replicas from now on; fewer hand over what they have\n"
            "  rollout start [MODEL] --to DIR [--canary 5%]\n"
            "                      to another version, step by step; back by itself when it is bad\n"
            "  rollout [status]    how far it is, and which versions there are\n"
            "  rollout pause|resume|promote|rollback [MODEL]\n"
            "  rollout switch MODEL VERSION\n"
            "                      to a version that is kept, at once\n"
            "  rollout score MODEL VERSION --score X\n"
            "                      what an eval gave it; a lower one than the old is taken back\n"
            "  doctor              whether RDMA works on this host (ports, GIDs, MTU, memlock,\n"
            "                      PCIe, losses, a write through each), and the cluster's state;\n"
            "                      exit code 1 when something is broken",
        .opts = opts,
        .args_min = 1,
        .args_max = 4,
    };
    const char *args[4] = {NULL, NULL, NULL, NULL};
    int rc = cmdline_parse(&line, argc, argv, args, NULL);
    bool url_given = o.url != NULL;
    o.url = url_given ? o.url : http_default_url();
    r->url = o.url;
    r->json = o.json;
    return rc == CMDLINE_GO ? dispatch(&o, url_given, args) : rc;
}
