// One step of this rank. The lead takes a plan from its owner, sends it to every rank and computes
// its stage; the others take the plan from the lead and, beyond stage 0, the hidden states from the
// stage before; the last stage's rank 0 samples. All waiting is bounded by the group's end: a lost
// peer or an abort comes back from every lane and collective.
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "node/worker_state.h"

static bool is_lead(const struct worker_state *s)
{
    return s->form.my_stage == 0 && s->form.my_tensor == 0;
}

static bool is_last_stage(const struct worker_state *s)
{
    return s->form.my_stage + 1 == s->form.stages;
}

// The rank to blame for a failure that came from the group: the peer whose link was lost first,
// else the one that a collective waited for, else this rank itself.
static int suspect(const struct worker_state *s)
{
    uint32_t rank;
    if (s->hub && lane_hub_fault(s->hub, &rank) != STATUS_OK)
        return (int)rank;
    if (s->comm && comm_suspect(s->comm) >= 0)
        return (int)(s->form.my_stage * s->form.tensor) + comm_suspect(s->comm);
    return (int)(s->form.my_stage * s->form.tensor + s->form.my_tensor);
}

static void fail(struct worker *w, enum status rc, const char *text)
{
    struct worker_state *s = w->state;
    if (s->hub && lane_hub_aborted(s->hub))
        rc = STATUS_ABORTED;
    worker_report_fault(w, rc, text, suspect(s));
}

// ---- agreement: equal models and limits before the first plan
// ---------------------------------------

struct agreement {
    uint64_t fingerprint;
    struct slots_config limits;
    uint32_t backend; // enum kern_backend: no two give the same bits
};

static struct agreement mine(const struct worker *w)
{
    return (struct agreement){w->state->shard->fingerprint, worker_limits(w),
                              (uint32_t)kern_backend(w->state->kern)};
}

static enum status compare(const struct agreement *here, const struct agreement *lead,
                           struct errmsg *e)
{
    if (here->fingerprint != lead->fingerprint)
        return errmsg_set(e, STATUS_BAD_MODEL,
                          "model: fingerprint %016" PRIx64 " here, %016" PRIx64 " at the lead",
                          here->fingerprint, lead->fingerprint);
    const struct slots_config *a = &here->limits, *b = &lead->limits;
    const struct {
        const char *name;
        uint32_t here, there;
    } pairs[] = {
        {"max_seqs", a->max_seqs, b->max_seqs},
        {"max_rows", a->max_rows, b->max_rows},
        {"context", a->max_context, b->max_context},
        {"kv blocks", a->kv_blocks, b->kv_blocks},
        {"block_tokens", a->block_tokens, b->block_tokens},
        {"vocabulary", a->vocab, b->vocab},
        {"backend", here->backend, lead->backend},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        if (pairs[i].here != pairs[i].there)
            return errmsg_set(e, STATUS_BAD_CONFIG, "%s: %u here, %u at the lead", pairs[i].name,
                              pairs[i].here, pairs[i].there);
    return STATUS_OK;
}

enum { AGREE_TIMEOUT_MS = 10000 };

enum status worker_agree(struct worker *w, struct errmsg *e)
{
    struct worker_state *s = w->state;
    if (!s->hub)
        return STATUS_OK;
    struct agreement here = mine(w);
    if (is_lead(s)) {
        for (uint32_t r = 1; r < lane_hub_ranks(s->hub); r++) {
            enum status rc = lane_send(s->agree_tx[r], &here, sizeof here);
            if (rc != STATUS_OK)
                return errmsg_set(e, rc, "rank %u was lost", r);
        }
        return STATUS_OK;
    }
    const void *bytes;
    size_t n;
    enum status rc = lane_recv_wait(s->agree_rx, AGREE_TIMEOUT_MS, &bytes, &n);
    if (rc != STATUS_OK)
        return errmsg_set(e, rc < 0 ? rc : STATUS_LINK_TIMEOUT, "the lead did not say its limits");
    struct agreement lead;
    if (n != sizeof lead)
        return errmsg_set(e, STATUS_LINK_PROTOCOL, "limits: %zu bytes from the lead", n);
    memcpy(&lead, bytes, sizeof lead);
    lane_release(s->agree_rx);
    return compare(&here, &lead, e);
}

// ---- sampling, in the last stage
// ----------------------------------------------------------------------

static struct sampler_input input_of(const struct worker_state *s, uint32_t slot)
{
    struct slots_history h = slots_history(s->slots, slot);
    return (struct sampler_input){.sampling = h.sampling,
                                  .tokens = h.tokens,
                                  .tokens_n = h.tokens_n,
                                  .prompt_n = h.prompt_n,
                                  .index = h.index};
}

// A row of NaN ends the step with NODE_NAN: it is a result, told to the lead like any other.
static enum status sample_all(struct worker_state *s, const struct step_plan *plan,
                              const struct slots_batch *b, struct step_result *out)
{
    uint32_t n = (uint32_t)b->batch.logits_n;
    if (s->samples_cap < n) {
        s->samples = mem_realloc(s->samples, n, sizeof *s->samples);
        s->sampler_in = mem_realloc(s->sampler_in, n, sizeof *s->sampler_in);
        s->samples_cap = n;
    }
    *out = (struct step_result){
        .step = plan->step, .bad_stage = -1, .bad_tensor = -1, .samples = s->samples};
    for (uint32_t i = 0; i < n; i++) {
        s->samples[i].slot = plan->entries[b->sample_entries[i]].slot;
        s->sampler_in[i] = input_of(s, s->samples[i].slot);
    }
    enum status rc = step_sampler_run(&s->sampler, s->shard, s->sampler_in, n, s->samples);
    for (uint32_t i = 0; i < n && rc == STATUS_OK && s->wrong; i++) // a test's fault
        s->samples[i].token = (s->samples[i].token + 1) % (int32_t)s->shard->config.vocab;
    if (rc == STATUS_NODE_NAN) {
        out->status = rc;
        out->bad_stage = (int32_t)s->form.my_stage;
        out->bad_tensor = (int32_t)s->form.my_tensor;
        return STATUS_OK;
    }
    out->samples_n = n;
    return rc;
}

static void post_result(struct worker *w, const struct step_result *r)
{
    struct worker_event *x = worker_event_new(w, ENGINE_STEP);
    if (x->samples_cap < r->samples_n) {
        x->samples = mem_realloc(x->samples, r->samples_n, sizeof *x->samples);
        x->samples_cap = r->samples_n;
    }
    if (r->samples_n)
        memcpy(x->samples, r->samples, r->samples_n * sizeof *x->samples);
    x->ev.result = *r;
    x->ev.result.samples = x->samples;
    worker_event_post(w, x);
}

static enum status deliver(struct worker *w, const struct step_result *r)
{
    struct worker_state *s = w->state;
    if (is_lead(s)) {
        post_result(w, r);
        return STATUS_OK;
    }
    strbuf_clear(&s->encoded);
    step_result_encode(r, &s->encoded);
    void *slot;
    enum status rc = lane_reserve_wait(s->result_tx, -1, &slot);
    if (rc != STATUS_OK)
        return rc;
    memcpy(slot, s->encoded.v, s->encoded.n);
    return lane_commit(s->result_tx, s->encoded.n);
}

// ---- computing
// ----------------------------------------------------------------------------------------

static enum status compute(struct worker *w, const struct step_plan *plan,
                           const struct hidden_rows *hidden, struct errmsg *e)
{
    struct worker_state *s = w->state;
    struct slots_batch b;
    enum status rc = slots_apply(s->slots, plan, &b, e);
    if (rc != STATUS_OK)
        return rc;
    if (hidden && (hidden->rows != b.batch.rows || hidden->step != b.batch.step))
        return errmsg_set(e, STATUS_LINK_PROTOCOL, "hidden states of another step");
    if (hidden)
        rc = worker_hidden_take(w, hidden, &b.batch);
    if (rc != STATUS_OK)
        return rc;
    rc = forward_run(s->shard, &b.batch, e);
    if (rc != STATUS_OK)
        return rc;
    if (!is_last_stage(s))
        return worker_hidden_pass_on(w, &b.batch);
    if (s->form.my_tensor != 0)
        return STATUS_OK;
    struct step_result result;
    rc = sample_all(s, plan, &b, &result);
    return rc == STATUS_OK ? deliver(w, &result) : rc;
}

// ---- faults for tests ----

static uint64_t clock_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void sleep_us(uint64_t us)
{
    struct timespec t = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};
    nanosleep(&t, NULL);
}

// Before a step; hangs until the fault or the epoch ends.
static enum node_fault fault_begin(struct worker *w)
{
    struct worker_state *s = w->state;
    enum node_fault f;
    while ((f = fault_file_now(&s->faults, clock_us())) == NODE_FAULT_HANG &&
           !(s->hub && lane_hub_aborted(s->hub)))
        sleep_us(5000);
    return f;
}

static enum status compute_faulty(struct worker *w, const struct step_plan *plan,
                                  const struct hidden_rows *hidden, struct errmsg *e)
{
    struct worker_state *s = w->state;
    s->faults.path = w->config.fault_file;
    enum node_fault f = fault_begin(w);
    uint64_t begin = clock_us();
    s->wrong = f == NODE_FAULT_WRONG;
    enum status rc = compute(w, plan, hidden, e);
    if (f == NODE_FAULT_SLOW)
        sleep_us((NODE_FAULT_SLOW_FACTOR - 1) * (clock_us() - begin));
    return rc;
}

// From here on it is this rank that the others wait for, whatever it does before its first layer.
static void begin_step(struct worker_state *s, uint64_t step)
{
    struct comm_progress *p = comm_progress(s->comm);
    atomic_store_explicit(&p->layer, 0, memory_order_relaxed);
    atomic_store_explicit(&p->collective, 0, memory_order_relaxed);
    atomic_store_explicit(&p->changed_us, clock_us(), memory_order_relaxed);
    atomic_store_explicit(&p->step, step, memory_order_relaxed);
}

static void compute_plan(struct worker *w, const void *bytes, size_t n,
                         const struct hidden_rows *hidden)
{
    struct worker_state *s = w->state;
    struct errmsg e = {0};
    struct step_plan plan;
    enum status rc = step_plan_decode(&s->decoder, bytes, n, &plan, &e);
    if (rc == STATUS_OK && plan.epoch != s->form.epoch)
        rc = errmsg_set(&e, STATUS_STALE_EPOCH, "plan of epoch %" PRIu64, plan.epoch);
    if (rc == STATUS_OK)
        begin_step(s, plan.step);
    if (rc == STATUS_OK)
        rc = w->config.fault_file ? compute_faulty(w, &plan, hidden, &e)
                                  : compute(w, &plan, hidden, &e);
    atomic_store_explicit(&comm_progress(s->comm)->step, 0, memory_order_relaxed);
    if (rc != STATUS_OK)
        fail(w, rc, e.text[0] ? e.text : "while computing a step");
}

// ---- the lead
// -------------------------------------------------------------------------------------------

static enum status send_plan(struct worker_state *s, const struct worker_plan *p)
{
    for (uint32_t r = 1; s->hub && r < lane_hub_ranks(s->hub); r++) {
        void *slot;
        enum status rc = lane_reserve_wait(s->plan_tx[r], -1, &slot);
        if (rc != STATUS_OK)
            return rc;
        if (p->bytes.n > s->plan_bytes)
            return STATUS_TOO_LARGE;
        memcpy(slot, p->bytes.v, p->bytes.n);
        rc = lane_commit(s->plan_tx[r], p->bytes.n);
        if (rc != STATUS_OK)
            return rc;
    }
    return STATUS_OK;
}

static bool lead_results(struct worker *w)
{
    struct worker_state *s = w->state;
    const void *bytes;
    size_t n;
    if (!s->result_rx)
        return false;
    enum status rc = lane_recv(s->result_rx, &bytes, &n);
    if (rc == STATUS_AGAIN)
        return false;
    struct step_result result;
    struct errmsg e = {0};
    if (rc == STATUS_OK)
        rc = step_result_decode(&s->decoder, bytes, n, &result, &e);
    if (rc != STATUS_OK) {
        fail(w, rc, e.text[0] ? e.text : "waiting for the last stage");
        return true;
    }
    post_result(w, &result);
    lane_release(s->result_rx);
    return true;
}

static bool lead_plans(struct worker *w)
{
    struct worker_state *s = w->state;
    struct worker_plan *p = spsc_pop(&w->plans);
    if (!p)
        return false;
    if (s->phase == WORKER_LINKED && p->epoch == s->form.epoch) {
        enum status rc = send_plan(s, p);
        if (rc == STATUS_OK)
            compute_plan(w, p->bytes.v, p->bytes.n, NULL);
        else
            fail(w, rc, "sending a plan");
    }
    bool pushed = spsc_push(&w->plans_free, p);
    assert(pushed); // as many places as plans exist
    return true;
}

// ---- the other ranks
// --------------------------------------------------------------------------------------

static bool follow(struct worker *w)
{
    struct worker_state *s = w->state;
    const void *plan, *hidden = NULL;
    size_t plan_n, hidden_n = 0;
    enum status rc = lane_recv(s->plan_rx, &plan, &plan_n);
    if (rc == STATUS_OK && s->hidden_rx)
        rc = lane_recv(s->hidden_rx, &hidden, &hidden_n);
    if (rc == STATUS_AGAIN)
        return false;
    if (rc != STATUS_OK) {
        fail(w, rc, "waiting for a step");
        return true;
    }
    struct hidden_rows rows;
    if (hidden && worker_hidden_read(w, hidden, hidden_n, &rows) != STATUS_OK) {
        fail(w, STATUS_LINK_PROTOCOL, "hidden states of a wrong size");
        return true;
    }
    compute_plan(w, plan, plan_n, hidden ? &rows : NULL);
    if (s->phase != WORKER_LINKED)
        return true;
    lane_release(s->plan_rx);
    if (hidden)
        lane_release(s->hidden_rx);
    return true;
}

// ---- one turn
// -----------------------------------------------------------------------------------------------

bool worker_step(struct worker *w)
{
    struct worker_state *s = w->state;
    bool did = false;
    if (s->phase == WORKER_LINKED && s->hub) {
        enum status rc = lane_hub_poll(s->hub);
        if (rc < 0 || lane_hub_fault(s->hub, &(uint32_t){0}) != STATUS_OK) {
            fail(w, rc < 0 ? rc : STATUS_LINK_DOWN, "a rank was lost");
            return true;
        }
        did = is_lead(s) ? lead_results(w) : s->phase == WORKER_LINKED && follow(w);
    }
    if (s->phase == WORKER_LINKED) {
        enum status rc = STATUS_OK;
        did |= worker_kv_turn(w, &rc);
        if (rc < 0) {
            fail(w, rc, "moving KV blocks");
            return true;
        }
    }
    return lead_plans(w) || did; // plans of an epoch that is over are given back here too
}

void worker_step_finish(struct worker_state *s)
{
    step_sampler_finish(&s->sampler);
    plan_decoder_finish(&s->decoder);
    strbuf_finish(&s->encoded);
    free(s->sampler_in);
    free(s->samples);
}
