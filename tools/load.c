// hadal load: drives a cluster with many streams, breaks it as told, and tells whether every client
// got every token.
#include <inttypes.h>

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "tools/admin.h"
#include "tools/cmd.h"
#include "tools/cmdline.h"
#include "tools/http.h"
#include "tools/load_report.h"

struct options {
    const char *url, *admin, *model, *mix, *prompts_file, *faults_file, *json, *arrivals;
    struct cmdline_list faults;
    int64_t concurrency, requests, distinct, max_tokens, seed;
    double rate, temperature, duration_s, timeout_s, pause_ms;
    bool verify, attach, quiet;
};

static const char about[] =
    "Runs N streams at a time (--concurrency), or sends at a rate (--rate) whatever comes back.\n"
    "With --verify each prompt is first asked alone, and every answer under load must equal that\n"
    "one, reasoning, text, number of tokens and finish reason. Exit 1 when a stream was lost or\n"
    "changed.";

static const char after[] =
    "faults: at TIME | at TIME..TIME | every TIME, then\n"
    "  kill|stop|cont|term [node] NAME|random|busy    stop ... for TIME\n"
    "  drain|undrain|eject [node] NAME|random|busy    failover [replica] N|random\n"
    "  drop all|random                                the streams' own connections, then "
    "re-attach\n"
    "busy is a node of the replica with the most running requests.\n"
    "  hadal load --concurrency 16 --requests 64 --verify --fault 'at 1s..2s kill busy'";

static int parse(struct options *o, int argc, char **argv)
{
    const struct cmdline_opt opts[] = {
        {"--url", CMDLINE_STRING, &o->url, "URL",
         .help = "the coordinator (HADAL_URL); hadal://HOST:PORT goes over the RPC"},
        {"--admin", CMDLINE_STRING, &o->admin, "URL",
         .help = "where faults ask for nodes, with hadal:// (HADAL_URL)"},
        {"--concurrency", CMDLINE_INT, &o->concurrency, "N", .min = 1, .max = LOAD_STREAMS_MAX,
         .help = "streams at a time (16); with --rate: at most so many (4096)"},
        {"--requests", CMDLINE_INT, &o->requests, "N", .help = "end after so many (64)"},
        {"--duration", CMDLINE_REAL, &o->duration_s, "S", .max = 86400,
         .help = "or send nothing new after so many seconds"},
        {"--rate", CMDLINE_REAL, &o->rate, "R", .max = 1e6, .help = "requests a second, open loop"},
        {"--arrivals", CMDLINE_CHOICE, &o->arrivals, .choices = "poisson|constant",
         .help = "how an open loop spaces them (poisson)"},
        {"--mix", CMDLINE_CHOICE, &o->mix, .choices = "all|sums|sort|letters",
         .help = "built-in questions (all)"},
        {"--distinct", CMDLINE_INT, &o->distinct, "N", .min = 1, .max = LOAD_PROMPTS_MAX,
         .help = "how many different ones (16)"},
        {"--prompts", CMDLINE_STRING, &o->prompts_file, "FILE",
         .help = "JSON lines {\"prompt\": ...} or {\"messages\": [...]} instead"},
        {"--max-tokens", CMDLINE_INT, &o->max_tokens, "N", .min = 1, .max = 1 << 20,
         .help = "of each answer (260)"},
        {"--temperature", CMDLINE_REAL, &o->temperature, "T", .max = 2, .help = "0 = greedy (0)"},
        {"--seed", CMDLINE_INT, &o->seed, "N", .help = "of questions, sampling and arrivals (1)"},
        {"--model", CMDLINE_STRING, &o->model, "NAME", .help = "model asked for (the first)"},
        {"--verify", CMDLINE_FLAG, &o->verify, .help = "compare with unloaded answers"},
        {"--attach", CMDLINE_FLAG, &o->attach, .help = "go on with streams whose connection broke"},
        {"--fault", CMDLINE_LIST, &o->faults, "TEXT",
         .help = "a fault; may be given several times"},
        {"--faults", CMDLINE_STRING, &o->faults_file, "FILE", .help = "a fault on each line"},
        {"--pause", CMDLINE_REAL, &o->pause_ms, "MS",
         .help = "a longer gap after a fault is a pause (100)"},
        {"--timeout", CMDLINE_REAL, &o->timeout_s, "S", .min = 0.1, .max = 86400,
         .help = "a stream silent for so long is lost (60)"},
        {"--json", CMDLINE_STRING, &o->json, "FILE", .help = "report as JSON; - = standard output"},
        {"--quiet", CMDLINE_FLAG, &o->quiet, .help = "no table, no progress"},
        {0},
    };
    const struct cmdline c = {
        .usage = "hadal load [OPTION...]", .about = about, .opts = opts, .after = after};
    return cmdline_parse(&c, argc, argv, NULL, NULL);
}

static int fail(const struct errmsg *err)
{
    fprintf(stderr, "hadal load: %s\n", err->text);
    return CMD_FAILED;
}

static enum status read_script(const struct options *o, struct load_script *script,
                               struct errmsg *err)
{
    enum status s = o->faults_file ? load_script_read(script, o->faults_file, err) : STATUS_OK;
    for (int i = 0; i < o->faults.n && s == STATUS_OK; i++)
        s = load_script_add(script, o->faults.v[i], err);
    return s;
}

// Asks every prompt alone; the answers are what the load is held against.
static enum status run_reference(const struct load_phase *p, struct load_answer *answers,
                                 struct errmsg *err)
{
    struct load_phase alone = *p;
    alone.concurrency = 1;
    alone.rate = 0;
    alone.requests = p->prompts->n;
    alone.duration_ms = 0;
    alone.script = NULL;
    alone.reference = NULL;
    struct load_result r;
    enum status s = load_phase_run(&alone, &r, answers, err);
    if (s == STATUS_OK && r.finished < p->prompts->n)
        s = errmsg_set(err, STATUS_INTERNAL,
                       "reference run: %" PRId64 " of %d prompts were answered%s%s", r.finished,
                       p->prompts->n, r.errors_n ? ": " : "", r.errors_n ? r.errors[0] : "");
    load_result_finish(&r);
    return s;
}

static int write_json(const char *path, json_t *json)
{
    int rc = -1;
    FILE *f = !strcmp(path, "-") ? stdout : fopen(path, "w");
    if (f) {
        rc = json_dumpf(json, f, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
        rc |= fputc('\n', f) == EOF;
        rc |= f == stdout ? fflush(f) : fclose(f);
    }
    json_decref(json);
    if (rc)
        fprintf(stderr, "hadal load: %s: cannot write the report\n", path);
    return rc ? CMD_FAILED : CMD_OK;
}

static int report(const struct options *o, const struct load_phase *p, struct load_result *r)
{
    bool table_to_stderr = o->json && !strcmp(o->json, "-");
    if (!o->quiet)
        load_report_print(table_to_stderr ? stderr : stdout, p, r);
    int rc = o->json ? write_json(o->json, load_report_json(p, r)) : CMD_OK;
    return rc == CMD_OK && load_report_good(r) && !load_interrupted ? CMD_OK : CMD_FAILED;
}

static int run(const struct options *o, struct load_phase *p)
{
    struct errmsg err = {0};
    struct load_result r;
    struct load_answer *answers = mem_zalloc((size_t)p->prompts->n, sizeof *answers);
    enum status s = STATUS_OK;
    int rc;
    if (o->verify) {
        s = run_reference(p, answers, &err);
        p->reference = answers;
    }
    if (s == STATUS_OK)
        s = load_phase_run(p, &r, NULL, &err);
    if (s == STATUS_OK) {
        rc = report(o, p, &r);
        load_result_finish(&r);
    } else {
        rc = fail(&err);
    }
    for (int i = 0; i < p->prompts->n; i++)
        load_answer_finish(&answers[i]);
    free(answers);
    return rc;
}

static void interrupt(int sig)
{
    load_interrupted++;
}

static struct load_phase phase_of(const struct options *o)
{
    bool open = o->rate > 0;
    return (struct load_phase){
        .url = o->url,
        .admin = strncmp(o->url, "hadal://", 8) ? o->url : o->admin,
        .concurrency = (int)(o->concurrency ? o->concurrency
                             : open         ? 4096
                                            : 16),
        .rate = o->rate,
        .constant = !strcmp(o->arrivals, "constant"),
        .requests = o->requests         ? o->requests
                    : o->duration_s > 0 ? 0
                                        : 64,
        .duration_ms = (int64_t)(o->duration_s * 1e3),
        .timeout_ms = (int64_t)(o->timeout_s * 1e3),
        .pause_us = (int64_t)(o->pause_ms * 1e3),
        .attach = o->attach,
        .seed = (uint64_t)o->seed,
        .progress = !o->quiet,
    };
}

// What is to be sent and broken.
static enum status prepare(const struct options *o, struct load_script *script,
                           struct load_prompts *prompts, struct errmsg *err)
{
    bool rpc = !strncmp(o->url, "hadal://", 8); // there, no name means the model that is served
    char *first = o->model || rpc ? NULL : admin_first_model(o->url, err);
    const struct load_prompt_args args = {.model = o->model ? o->model
                                                   : first  ? first
                                                            : "",
                                          .mix = o->mix,
                                          .file = o->prompts_file,
                                          .distinct = (int)o->distinct,
                                          .max_tokens = (int)o->max_tokens,
                                          .temperature = o->temperature,
                                          .seed = (uint64_t)o->seed};
    enum status s = o->model || rpc || first ? read_script(o, script, err) : STATUS_LINK_DOWN;
    if (s == STATUS_OK)
        s = load_prompts_make(prompts, &args, err);
    free(first);
    return s;
}

int cmd_load(int argc, char **argv)
{
    struct options o = {.url = http_default_url(),
                        .admin = http_default_url(),
                        .mix = "all",
                        .arrivals = "poisson",
                        .distinct = 16,
                        .max_tokens = 260,
                        .seed = 1,
                        .timeout_s = 60,
                        .pause_ms = 100};
    int rc = parse(&o, argc, argv);
    if (rc != CMDLINE_GO)
        return rc;
    struct errmsg err = {0};
    struct load_script *script = mem_zalloc(1, sizeof *script);
    struct load_phase phase = phase_of(&o);
    struct load_prompts prompts = {0};
    signal(SIGINT, interrupt);
    signal(SIGTERM, interrupt);
    signal(SIGPIPE, SIG_IGN);
    phase.script = script;
    phase.prompts = &prompts;
    rc = prepare(&o, script, &prompts, &err) == STATUS_OK ? run(&o, &phase) : fail(&err);
    load_prompts_finish(&prompts);
    free(script);
    return rc;
}
