// The messages between coordinator and nodes, to and from protobuf: a pair of functions per kind
// and one table of them. Reading checks every field and copies nothing that can be borrowed.
#include "proto/wire_pb.h"

union pb {
    ProtobufCMessage base;
    Hadal__Hello hello;
    Hadal__Heartbeat heartbeat;
    Hadal__Formed formed;
    Hadal__Tokens tokens;
    Hadal__Cancelled cancelled;
    Hadal__Fault fault;
    Hadal__Welcome welcome;
    Hadal__Form form;
    Hadal__Dissolve dissolve;
    Hadal__Dispatch dispatch;
    Hadal__Cancel cancel;
    Hadal__Prepared prepared;
    Hadal__Link link;
    Hadal__KvCached kv_cached;
    Hadal__KvList kv_list;
    Hadal__KvReady kv_ready;
    Hadal__KvDone kv_done;
    Hadal__KvReceive kv_receive;
    Hadal__KvSend kv_send;
    Hadal__KvCancel kv_cancel;
};

// A string of ours as protobuf-c wants it: it does not write through the pointer.
static char *str(const char *s)
{
    return (char *)(s ? s : "");
}

static bool write_hello(struct wire_arena *a, const struct msg *m, union pb *u)
{
    const struct msg_hello *h = &m->hello;
    u->hello = (Hadal__Hello)HADAL__HELLO__INIT;
    u->hello.version = h->version;
    u->hello.name = str(h->name);
    u->hello.incarnation = h->incarnation;
    u->hello.pid = h->pid;
    u->hello.host = str(h->host);
    u->hello.backend = str(h->backend);
    u->hello.heartbeat_channel = h->heartbeat_channel;
    return true;
}

static void read_hello(struct wire_check *c, const union pb *u, struct msg *m)
{
    const Hadal__Hello *p = &u->hello;
    if (p->version != MSG_VERSION)
        wire_fail(c, STATUS_LINK_VERSION, "version: %u, this process speaks %d", p->version,
                  MSG_VERSION);
    wire_check_name(c, "name", p->name);
    wire_check_string(c, "host", p->host, LIMIT_ADDR);
    wire_check_string(c, "backend", p->backend, LIMIT_NAME);
    m->hello = (struct msg_hello){.version = p->version,
                                  .name = p->name,
                                  .incarnation = p->incarnation,
                                  .pid = p->pid,
                                  .host = p->host,
                                  .backend = p->backend,
                                  .heartbeat_channel = p->heartbeat_channel};
}

static Hadal__Gpu *write_gpu(struct wire_arena *a, const struct gpu_figures *g)
{
    Hadal__Gpu *p = wire_arena_alloc(a, sizeof *p);
    if (!p)
        return NULL;
    hadal__gpu__init(p);
    p->name = str(g->name);
    p->utilization_percent = g->utilization_percent;
    p->memory_used_bytes = g->memory_used_bytes;
    p->memory_total_bytes = g->memory_total_bytes;
    p->temperature_c = g->temperature_c;
    p->power_mw = g->power_mw;
    p->sm_mhz = g->sm_mhz;
    p->ecc_corrected = g->ecc_corrected;
    p->ecc_uncorrected = g->ecc_uncorrected;
    p->xid = g->xid;
    p->xids = g->xids;
    p->suspect = g->suspect;
    p->reason = str(g->reason);
    return p;
}

static void read_gpu(struct wire_check *c, const Hadal__Gpu *p, struct gpu_figures *out)
{
    wire_check_string(c, "gpu.name", p->name, sizeof out->name);
    wire_check_string(c, "gpu.reason", p->reason, sizeof out->reason);
    wire_check_range(c, "gpu.utilization_percent", p->utilization_percent, 0, 100);
    *out = (struct gpu_figures){.present = true,
                                .utilization_percent = p->utilization_percent,
                                .memory_used_bytes = p->memory_used_bytes,
                                .memory_total_bytes = p->memory_total_bytes,
                                .temperature_c = p->temperature_c,
                                .power_mw = p->power_mw,
                                .sm_mhz = p->sm_mhz,
                                .ecc_corrected = p->ecc_corrected,
                                .ecc_uncorrected = p->ecc_uncorrected,
                                .xid = p->xid,
                                .xids = p->xids,
                                .suspect = p->suspect};
    if (c->status != STATUS_OK)
        return;
    memcpy(out->name, p->name, strlen(p->name) + 1);
    memcpy(out->reason, p->reason, strlen(p->reason) + 1);
}

static bool write_heartbeat(struct wire_arena *a, const struct msg *m, union pb *u)
{
    const struct msg_heartbeat *h = &m->heartbeat;
    Hadal__Progress *g = wire_arena_alloc(a, sizeof *g);
    if (!g)
        return false;
    hadal__progress__init(g);
    g->step = h->progress.step;
    g->layer = h->progress.layer;
    g->collective = h->progress.collective;
    g->age_ms = h->progress.age_ms;
    u->heartbeat = (Hadal__Heartbeat)HADAL__HEARTBEAT__INIT;
    u->heartbeat.replica = h->replica;
    u->heartbeat.epoch = h->epoch;
    u->heartbeat.steps = h->steps;
    u->heartbeat.loop_age_ms = h->loop_age_ms;
    u->heartbeat.step_age_ms = h->step_age_ms;
    u->heartbeat.progress = g;
    u->heartbeat.running = h->running;
    u->heartbeat.waiting = h->waiting;
    u->heartbeat.kv_blocks = h->kv_blocks;
    u->heartbeat.kv_free = h->kv_free;
    u->heartbeat.rss_bytes = h->rss_bytes;
    if (h->gpu.present)
        u->heartbeat.gpu = write_gpu(a, &h->gpu);
    return !h->gpu.present || u->heartbeat.gpu;
}

static void read_heartbeat(struct wire_check *c, const union pb *u, struct msg *m)
{
    const Hadal__Heartbeat *p = &u->heartbeat;
    wire_check_range(c, "kv_free", p->kv_free, 0, p->kv_blocks);
    m->heartbeat = (struct msg_heartbeat){.replica = p->replica,
                                          .epoch = p->epoch,
                                          .steps = p->steps,
                                          .loop_age_ms = p->loop_age_ms,
                                          .step_age_ms = p->step_age_ms,
                                          .running = p->running,
                                          .waiting = p->waiting,
                                          .kv_blocks = p->kv_blocks,
                                          .kv_free = p->kv_free,
                                          .rss_bytes = p->rss_bytes};
    if (p->progress)
        m->heartbeat.progress = (struct rank_progress){
            p->progress->step, p->progress->layer, p->progress->collective, p->progress->age_ms};
    if (p->gpu)
        read_gpu(c, p->gpu, &m->heartbeat.gpu);
}

static bool write_formed(struct wire_arena *a, const struct msg *m, union pb *u)
{
    const struct msg_formed *f = &m->formed;
    u->formed = (Hadal__Formed)HADAL__FORMED__INIT;
    u->formed.replica = f->replica;
    u->formed.epoch = f->epoch;
    u->formed.status = f->status;
    u->formed.text = str(f->text);
    u->formed.fingerprint = f->fingerprint;
    u->formed.max_seqs = f->max_seqs;
    u->formed.max_context = f->max_context;
    u->formed.kv_blocks = f->kv_blocks;
    u->formed.block_tokens = f->block_tokens;
    u->formed.transport = f->transport;
    Hadal__Addresses *weights = wire_arena_alloc(a, sizeof *weights);
    Hadal__WeightsLoaded *loaded = wire_arena_alloc(a, sizeof *loaded);
    if (!weights || !loaded)
        return false;
    wire_write_addresses(&f->weights, weights);
    hadal__weights_loaded__init(loaded);
    loaded->peer_bytes = f->loaded.peer_bytes;
    loaded->disk_bytes = f->loaded.disk_bytes;
    loaded->ms = f->loaded.ms;
    loaded->again = f->loaded.again;
    loaded->bad = f->loaded.bad;
    loaded->lost = f->loaded.lost;
    u->formed.weights = weights;
    u->formed.loaded = loaded;
    return true;
}

static void read_formed(struct wire_check *c, const union pb *u, struct msg *m)
{
    const Hadal__Formed *p = &u->formed;
    wire_check_status(c, "status", p->status);
    wire_check_string(c, "text", p->text, LIMIT_PATH);
    wire_check_range(c, "max_seqs", p->max_seqs, 0, 1 << 20);
    wire_check_range(c, "max_context", p->max_context, 0, LIMIT_CONTEXT);
    wire_check_range(c, "block_tokens", p->block_tokens, 0, LIMIT_CONTEXT);
    wire_check_range(c, "transport", p->transport, TRANSPORT_AUTO, TRANSPORT_VERBS);
    m->formed = (struct msg_formed){.replica = p->replica,
                                    .epoch = p->epoch,
                                    .status = (enum status)p->status,
                                    .text = p->text,
                                    .fingerprint = p->fingerprint,
                                    .max_seqs = p->max_seqs,
                                    .max_context = p->max_context,
                                    .kv_blocks = p->kv_blocks,
                                    .block_tokens = p->block_tokens,
                                    .transport = p->transport};
    if (p->loaded)
        m->formed.loaded = (struct weights_figures){.peer_bytes = p->loaded->peer_bytes,
                                                    .disk_bytes = p->loaded->disk_bytes,
                                                    .ms = p->loaded->ms,
                                                    .again = p->loaded->again,
                                                    .bad = p->loaded->bad,
                                                    .lost = p->loaded->lost};
    m->formed.weights = (struct rank_addresses){"", "", ""};
    if (p->weights)
        wire_read_addresses(c, p->weights, &m->formed.weights);
}

static bool write_token(struct wire_arena *a, const struct token_out *t, Hadal__TokenOut *pb)
{
    hadal__token_out__init(pb);
    pb->request = t->request;
    pb->index = t->index;
    pb->token = t->token;
    pb->finish = t->finish;
    pb->logprob = t->logprob;
    pb->n_top = t->top_n;
    pb->top = wire_write_top(a, t->top, t->top_n);
    pb->cached_tokens = t->cached_tokens;
    return pb->top || !t->top_n;
}

static bool write_tokens(struct wire_arena *a, const struct msg *m, union pb *u)
{
    const struct msg_tokens *t = &m->tokens;
    Hadal__TokenOut **list = wire_arena_alloc(a, t->tokens_n * sizeof *list);
    Hadal__TokenOut *pbs = wire_arena_alloc(a, t->tokens_n * sizeof *pbs);
    if (!list || !pbs)
        return false;
    for (uint32_t i = 0; i < t->tokens_n; i++) {
        list[i] = &pbs[i];
        if (!write_token(a, &t->tokens[i], list[i]))
            return false;
    }
    u->tokens = (Hadal__Tokens)HADAL__TOKENS__INIT;
    u->tokens.replica = t->replica;
    u->tokens.epoch = t->epoch;
    u->tokens.step = t->step;
    u->tokens.n_tokens = t->tokens_n;
    u->tokens.tokens = list;
    u->tokens.running = t->running;
    u->tokens.waiting = t->waiting;
    u->tokens.kv_free = t->kv_free;
    return true;
}

// A token of -1 is an end without a token.
static void read_token(struct wire_check *c, const Hadal__TokenOut *p, struct token_out *t)
{
    wire_check_range(c, "tokens.request", p->request, 1, UINT64_MAX);
    wire_check_range(c, "tokens.index", p->index, 0, LIMIT_CONTEXT);
    if (p->token < -1 || p->token >= LIMIT_VOCAB)
        wire_fail(c, STATUS_LINK_PROTOCOL, "tokens.token: %d is no token id", p->token);
    wire_check_range(c, "tokens.finish", p->finish, FINISH_NONE, FINISH_ERROR);
    wire_check_float(c, "tokens.logprob", p->logprob, -INFINITY, 1);
    wire_check_range(c, "tokens.cached_tokens", p->cached_tokens, 0, LIMIT_CONTEXT);
    *t = (struct token_out){.request = p->request,
                            .index = p->index,
                            .token = p->token,
                            .finish = (uint8_t)p->finish,
                            .logprob = p->logprob,
                            .top_n = (uint32_t)p->n_top,
                            .top = wire_read_top(c, p->top, p->n_top),
                            .cached_tokens = p->cached_tokens};
}

static void read_tokens(struct wire_check *c, const union pb *u, struct msg *m)
{
    const Hadal__Tokens *p = &u->tokens;
    struct token_out *tokens = wire_alloc(c, p->n_tokens, sizeof *tokens);
    for (size_t i = 0; tokens && i < p->n_tokens && !c->status; i++)
        read_token(c, p->tokens[i], &tokens[i]);
    m->tokens = (struct msg_tokens){.replica = p->replica,
                                    .epoch = p->epoch,
                                    .step = p->step,
                                    .tokens = tokens,
                                    .tokens_n = (uint32_t)p->n_tokens,
                                    .running = p->running,
                                    .waiting = p->waiting,
                                    .kv_free = p->kv_free};
}

static bool write_cancelled(struct wire_arena *a, const struct msg *m, union pb *u)
{
    u->cancelled = (Hadal__Cancelled)HADAL__CANCELLED__INIT;
    u->cancelled.replica = m->cancelled.replica;
    u->cancelled.epoch = m->cancelled.epoch;
    u->cancelled.request = m->cancelled.request;
    return true;
}

static void read_cancelled(struct wire_check *c, const union pb *u, struct msg *m)
{
    const Hadal__Cancelled *p = &u->cancelled;
    wire_check_range(c, "request", p->request, 1, UINT64_MAX);
    m->cancelled = (struct msg_cancelled){p->replica, p->epoch, p->request};
}

static bool write_fault(struct wire_arena *a, const struct msg *m, union pb *u)
{
    u->fault = (Hadal__Fault)HADAL__FAULT__INIT;
    u->fault.replica = m->fault.replica;
    u->fault.epoch = m->fault.epoch;
    u->fault.status = m->fault.status;
    u->fault.stage = m->fault.stage;
    u->fault.tensor = m->fault.tensor;
    u->fault.text = str(m->fault.text);
    return true;
}

static void read_fault(struct wire_check *c, const union pb *u, struct msg *m)
{
    const Hadal__Fault *p = &u->fault;
    wire_check_status(c, "status", p->status);
    if (p->stage < -1 || p->stage >= LIMIT_STAGES || p->tensor < -1 || p->tensor >= LIMIT_TENSOR)
        wire_fail(c, STATUS_LINK_PROTOCOL, "stage: no rank (%d, %d)", p->stage, p->tensor);
    wire_check_string(c, "text", p->text, LIMIT_PATH);
    m->fault = (struct msg_fault){.replica = p->replica,
                                  .epoch = p->epoch,
                                  .status = (enum status)p->status,
                                  .stage = p->stage,
                                  .tensor = p->tensor,
                                  .text = p->text};
}

static bool write_welcome(struct wire_arena *a, const struct msg *m, union pb *u)
{
    u->welcome = (Hadal__Welcome)HADAL__WELCOME__INIT;
    u->welcome.heartbeat_ms = m->welcome.heartbeat_ms;
    return true;
}

static void read_welcome(struct wire_check *c, const union pb *u, struct msg *m)
{
    wire_check_range(c, "heartbeat_ms", u->welcome.heartbeat_ms, 1, 3600 * 1000);
    m->welcome = (struct msg_welcome){u->welcome.heartbeat_ms};
}

static bool write_form(struct wire_arena *a, const struct msg *m, union pb *u)
{
    const struct msg_form *f = &m->form;
    u->form = (Hadal__Form)HADAL__FORM__INIT;
    u->form.replica = f->replica;
    u->form.epoch = f->epoch;
    u->form.model_dir = str(f->model_dir);
    u->form.stages = f->stages;
    u->form.tensor = f->tensor;
    u->form.my_stage = f->my_stage;
    u->form.my_tensor = f->my_tensor;
    u->form.transport = f->transport;
    u->form.fingerprint = f->fingerprint;
    struct source_pb {
        Hadal__WeightSource source;
        Hadal__Addresses addresses;
    } *pbs = wire_arena_alloc(a, f->sources_n * sizeof *pbs);
    Hadal__WeightSource **list = wire_arena_alloc(a, f->sources_n * sizeof *list);
    if (!list || !pbs)
        return false;
    for (uint32_t i = 0; i < f->sources_n; i++) {
        list[i] = &pbs[i].source;
        hadal__weight_source__init(list[i]);
        wire_write_addresses(&f->sources[i].addresses, &pbs[i].addresses);
        list[i]->name = str(f->sources[i].name);
        list[i]->addresses = &pbs[i].addresses;
    }
    u->form.n_sources = f->sources_n;
    u->form.sources = list;
    return true;
}

static void read_form(struct wire_check *c, const union pb *u, struct msg *m)
{
    const Hadal__Form *p = &u->form;
    wire_check_string(c, "model_dir", p->model_dir, LIMIT_PATH);
    wire_check_range(c, "stages", p->stages, 1, LIMIT_STAGES);
    wire_check_range(c, "tensor", p->tensor, 1, LIMIT_TENSOR);
    wire_check_range(c, "my_stage", p->my_stage, 0, (uint64_t)p->stages - 1);
    wire_check_range(c, "my_tensor", p->my_tensor, 0, (uint64_t)p->tensor - 1);
    wire_check_range(c, "transport", p->transport, TRANSPORT_AUTO, TRANSPORT_VERBS);
    if (!c->status && p->stages * p->tensor > LIMIT_RANKS)
        wire_fail(c, STATUS_LINK_PROTOCOL, "stages: %u x %u ranks are too many", p->stages,
                  p->tensor);
    m->form = (struct msg_form){.replica = p->replica,
                                .epoch = p->epoch,
                                .model_dir = p->model_dir,
                                .stages = p->stages,
                                .tensor = p->tensor,
                                .my_stage = p->my_stage,
                                .my_tensor = p->my_tensor,
                                .transport = p->transport,
                                .fingerprint = p->fingerprint};
    wire_check_range(c, "sources", p->n_sources, 0, MSG_WEIGHT_SOURCES);
    if (c->status || !p->n_sources)
        return;
    struct weight_source *sources = wire_alloc(c, p->n_sources, sizeof *sources);
    for (uint32_t i = 0; sources && i < p->n_sources && !c->status; i++) {
        wire_check_name(c, "sources.name", p->sources[i]->name);
        sources[i].name = p->sources[i]->name;
        wire_read_addresses(c, p->sources[i]->addresses, &sources[i].addresses);
    }
    m->form.sources = sources;
    m->form.sources_n = (uint32_t)p->n_sources;
}

static bool write_prepared(struct wire_arena *a, const struct msg *m, union pb *u)
{
    Hadal__Addresses *pb = wire_arena_alloc(a, 2 * sizeof *pb);
    if (!pb)
        return false;
    wire_write_addresses(&m->prepared.addresses, &pb[0]);
    wire_write_addresses(&m->prepared.mover, &pb[1]);
    u->prepared = (Hadal__Prepared)HADAL__PREPARED__INIT;
    u->prepared.replica = m->prepared.replica;
    u->prepared.epoch = m->prepared.epoch;
    u->prepared.addresses = &pb[0];
    u->prepared.mover = &pb[1];
    return true;
}

static void read_prepared(struct wire_check *c, const union pb *u, struct msg *m)
{
    m->prepared = (struct msg_prepared){.replica = u->prepared.replica, .epoch = u->prepared.epoch};
    wire_read_addresses(c, u->prepared.addresses, &m->prepared.addresses);
    wire_read_addresses(c, u->prepared.mover, &m->prepared.mover);
}

static bool write_link(struct wire_arena *a, const struct msg *m, union pb *u)
{
    const struct msg_link *l = &m->link;
    u->link = (Hadal__Link)HADAL__LINK__INIT;
    u->link.replica = l->replica;
    u->link.epoch = l->epoch;
    u->link.n_members = l->members_n;
    u->link.members = wire_write_members(a, l->members, l->members_n);
    return u->link.members;
}

static void read_link(struct wire_check *c, const union pb *u, struct msg *m)
{
    const Hadal__Link *p = &u->link;
    wire_check_range(c, "members", p->n_members, 1, LIMIT_RANKS);
    m->link = (struct msg_link){.replica = p->replica, .epoch = p->epoch};
    m->link.members = wire_read_members(c, p->members, p->n_members);
    m->link.members_n = (uint32_t)p->n_members;
}

static bool write_dissolve(struct wire_arena *a, const struct msg *m, union pb *u)
{
    u->dissolve = (Hadal__Dissolve)HADAL__DISSOLVE__INIT;
    u->dissolve.replica = m->dissolve.replica;
    u->dissolve.epoch = m->dissolve.epoch;
    return true;
}

static void read_dissolve(struct wire_check *c, const union pb *u, struct msg *m)
{
    m->dissolve = (struct msg_dissolve){u->dissolve.replica, u->dissolve.epoch};
}

static bool write_dispatch(struct wire_arena *a, const struct msg *m, union pb *u)
{
    const struct journal *j = &m->dispatch.journal;
    struct {
        Hadal__Journal journal;
        Hadal__Sampling sampling;
    } *pb = wire_arena_alloc(a, sizeof *pb);
    if (!pb)
        return false;
    wire_write_sampling(&j->sampling, &pb->sampling);
    hadal__journal__init(&pb->journal);
    pb->journal.request = j->request;
    pb->journal.prompt = (int32_t *)j->prompt;
    pb->journal.n_prompt = j->prompt_n;
    pb->journal.emitted = (int32_t *)j->emitted;
    pb->journal.n_emitted = j->emitted_n;
    pb->journal.max_tokens = j->max_tokens;
    pb->journal.stop_ids = (int32_t *)j->stop_ids;
    pb->journal.n_stop_ids = j->stop_ids_n;
    pb->journal.band = j->band;
    pb->journal.sampling = &pb->sampling;
    u->dispatch = (Hadal__Dispatch)HADAL__DISPATCH__INIT;
    u->dispatch.replica = m->dispatch.replica;
    u->dispatch.epoch = m->dispatch.epoch;
    u->dispatch.journal = &pb->journal;
    u->dispatch.prefill_only = m->dispatch.prefill_only;
    return true;
}

static void read_journal(struct wire_check *c, const Hadal__Journal *p, struct journal *j)
{
    wire_check_range(c, "journal.request", p->request, 1, UINT64_MAX);
    wire_check_range(c, "journal.prompt", p->n_prompt, 1, LIMIT_CONTEXT);
    wire_check_ids(c, "journal.prompt", p->prompt, p->n_prompt, LIMIT_CONTEXT);
    wire_check_ids(c, "journal.emitted", p->emitted, p->n_emitted, LIMIT_CONTEXT);
    wire_check_range(c, "journal.max_tokens", p->max_tokens, p->n_emitted + 1, LIMIT_CONTEXT);
    wire_check_ids(c, "journal.stop_ids", p->stop_ids, p->n_stop_ids, MSG_STOP_IDS);
    wire_check_range(c, "journal.band", p->band, 0, MSG_BAND_PROBE);
    *j = (struct journal){.request = p->request,
                          .prompt = p->prompt,
                          .prompt_n = (uint32_t)p->n_prompt,
                          .emitted = p->emitted,
                          .emitted_n = (uint32_t)p->n_emitted,
                          .max_tokens = p->max_tokens,
                          .band = (uint8_t)p->band};
    wire_read_sampling(c, p->sampling, &j->sampling);
    if (c->status)
        return;
    j->stop_ids_n = (uint32_t)p->n_stop_ids;
    for (uint32_t i = 0; i < j->stop_ids_n; i++)
        j->stop_ids[i] = p->stop_ids[i];
}

static void read_dispatch(struct wire_check *c, const union pb *u, struct msg *m)
{
    m->dispatch.replica = u->dispatch.replica;
    m->dispatch.epoch = u->dispatch.epoch;
    m->dispatch.prefill_only = u->dispatch.prefill_only;
    if (u->dispatch.journal)
        read_journal(c, u->dispatch.journal, &m->dispatch.journal);
    else
        wire_fail(c, STATUS_LINK_PROTOCOL, "journal: absent");
}

static bool write_cancel(struct wire_arena *a, const struct msg *m, union pb *u)
{
    u->cancel = (Hadal__Cancel)HADAL__CANCEL__INIT;
    u->cancel.replica = m->cancel.replica;
    u->cancel.epoch = m->cancel.epoch;
    u->cancel.request = m->cancel.request;
    return true;
}

static void read_cancel(struct wire_check *c, const union pb *u, struct msg *m)
{
    wire_check_range(c, "request", u->cancel.request, 1, UINT64_MAX);
    m->cancel = (struct msg_cancel){u->cancel.replica, u->cancel.epoch, u->cancel.request};
}

// ---- KV between replicas: wire_kv.c

static bool write_kv_cached(struct wire_arena *a, const struct msg *m, union pb *u)
{
    return wire_write_kv_cached(a, &m->kv_cached, &u->kv_cached);
}

static void read_kv_cached(struct wire_check *c, const union pb *u, struct msg *m)
{
    wire_read_kv_cached(c, &u->kv_cached, &m->kv_cached);
}

static bool write_kv_list(struct wire_arena *a, const struct msg *m, union pb *u)
{
    u->kv_list = (Hadal__KvList)HADAL__KV_LIST__INIT;
    u->kv_list.replica = m->kv_list.replica;
    u->kv_list.epoch = m->kv_list.epoch;
    u->kv_list.all = m->kv_list.all;
    return true;
}

static void read_kv_list(struct wire_check *c, const union pb *u, struct msg *m)
{
    m->kv_list = (struct msg_kv_list){u->kv_list.replica, u->kv_list.epoch, u->kv_list.all};
}

static bool write_kv_ready(struct wire_arena *a, const struct msg *m, union pb *u)
{
    wire_write_kv_ready(&m->kv_ready, &u->kv_ready);
    return true;
}

static void read_kv_ready(struct wire_check *c, const union pb *u, struct msg *m)
{
    wire_read_kv_ready(c, &u->kv_ready, &m->kv_ready);
}

static bool write_kv_done(struct wire_arena *a, const struct msg *m, union pb *u)
{
    wire_write_kv_done(&m->kv_done, &u->kv_done);
    return true;
}

static void read_kv_done(struct wire_check *c, const union pb *u, struct msg *m)
{
    wire_read_kv_done(c, &u->kv_done, &m->kv_done);
}

static bool write_kv_receive(struct wire_arena *a, const struct msg *m, union pb *u)
{
    return wire_write_kv_receive(a, &m->kv_receive, &u->kv_receive);
}

static void read_kv_receive(struct wire_check *c, const union pb *u, struct msg *m)
{
    wire_read_kv_receive(c, &u->kv_receive, &m->kv_receive);
}

static bool write_kv_send(struct wire_arena *a, const struct msg *m, union pb *u)
{
    return wire_write_kv_send(a, &m->kv_send, &u->kv_send);
}

static void read_kv_send(struct wire_check *c, const union pb *u, struct msg *m)
{
    wire_read_kv_send(c, &u->kv_send, &m->kv_send);
}

static bool write_kv_cancel(struct wire_arena *a, const struct msg *m, union pb *u)
{
    wire_write_kv_cancel(&m->kv_cancel, &u->kv_cancel);
    return true;
}

static void read_kv_cancel(struct wire_check *c, const union pb *u, struct msg *m)
{
    wire_read_kv_cancel(c, &u->kv_cancel, &m->kv_cancel);
}

struct codec {
    const ProtobufCMessageDescriptor *type;
    bool (*write)(struct wire_arena *a, const struct msg *m, union pb *u); // false: arena is full
    void (*read)(struct wire_check *c, const union pb *u, struct msg *m);
};

static const struct codec *codec_of(uint8_t kind)
{
    static const struct codec codecs[] = {
        [MSG_HELLO] = {&hadal__hello__descriptor, write_hello, read_hello},
        [MSG_HEARTBEAT] = {&hadal__heartbeat__descriptor, write_heartbeat, read_heartbeat},
        [MSG_FORMED] = {&hadal__formed__descriptor, write_formed, read_formed},
        [MSG_TOKENS] = {&hadal__tokens__descriptor, write_tokens, read_tokens},
        [MSG_CANCELLED] = {&hadal__cancelled__descriptor, write_cancelled, read_cancelled},
        [MSG_FAULT] = {&hadal__fault__descriptor, write_fault, read_fault},
        [MSG_PREPARED] = {&hadal__prepared__descriptor, write_prepared, read_prepared},
        [MSG_LINK] = {&hadal__link__descriptor, write_link, read_link},
        [MSG_KV_CACHED] = {&hadal__kv_cached__descriptor, write_kv_cached, read_kv_cached},
        [MSG_KV_LIST] = {&hadal__kv_list__descriptor, write_kv_list, read_kv_list},
        [MSG_KV_READY] = {&hadal__kv_ready__descriptor, write_kv_ready, read_kv_ready},
        [MSG_KV_DONE] = {&hadal__kv_done__descriptor, write_kv_done, read_kv_done},
        [MSG_KV_RECEIVE] = {&hadal__kv_receive__descriptor, write_kv_receive, read_kv_receive},
        [MSG_KV_SEND] = {&hadal__kv_send__descriptor, write_kv_send, read_kv_send},
        [MSG_KV_CANCEL] = {&hadal__kv_cancel__descriptor, write_kv_cancel, read_kv_cancel},
        [MSG_WELCOME] = {&hadal__welcome__descriptor, write_welcome, read_welcome},
        [MSG_FORM] = {&hadal__form__descriptor, write_form, read_form},
        [MSG_DISSOLVE] = {&hadal__dissolve__descriptor, write_dissolve, read_dissolve},
        [MSG_DISPATCH] = {&hadal__dispatch__descriptor, write_dispatch, read_dispatch},
        [MSG_CANCEL] = {&hadal__cancel__descriptor, write_cancel, read_cancel},
    };
    if (kind >= sizeof codecs / sizeof *codecs || !codecs[kind].type)
        return NULL;
    return &codecs[kind];
}

enum status wire_encode_msg(struct wire_arena *a, const struct msg *m, struct strbuf *out)
{
    union pb u;
    wire_arena_reset(a);
    if (!codec_of((uint8_t)m->kind)->write(a, m, &u))
        return STATUS_TOO_LARGE;
    return wire_pb_pack((uint8_t)m->kind, 0, &u.base, out);
}

enum status wire_decode_msg(struct wire_arena *a, const struct wire_frame *f, struct msg *out,
                            struct errmsg *err)
{
    const struct codec *codec = codec_of(f->type);
    if (!codec)
        return errmsg_set(err, STATUS_LINK_PROTOCOL, "frame: %u is no type of node message",
                          f->type);
    wire_arena_reset(a);
    const ProtobufCMessage *pb = wire_pb_unpack(a, codec->type, f);
    if (!pb)
        return errmsg_set(err, STATUS_LINK_PROTOCOL, "%s: malformed protobuf of %u bytes",
                          codec->type->short_name, f->body_n);
    struct wire_check c = {.arena = a, .message = codec->type->short_name, .err = err};
    struct msg m = {.kind = (enum msg_kind)f->type};
    codec->read(&c, (const union pb *)pb, &m);
    if (!c.status)
        *out = m;
    return c.status;
}
