// Runs the preparation of requests: short ones on the loop, long ones on libuv's worker threads, of
// which only so many, with so many bytes, may wait at once.
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "coordinator/copy_shell.h"
#include "coordinator/main_shell.h"

enum {
    INLINE_BYTES = 4 << 10, // prepared in well under a millisecond
    JOBS_MAX = 256,
    JOBS_BYTES = 64 << 20,
};

struct text_ticket {
    uv_work_t work;
    struct shell *shell;
    struct text_job job;
    char *copy;                     // owned
    const struct model_text *again; // runs a second time, for this one
    void (*done)(void *arg, struct text_job *job);
    void *arg;
    bool cancelled;
};

static void on_work(uv_work_t *w)
{
    struct text_ticket *t = w->data;
    if (t->again)
        text_job_rerun(&t->job, t->again);
    else
        text_job_run(&t->job);
}

// The model that serves it instead of the one it names; NULL: that one.
static const struct model_text *fallback(const struct shell *s, const struct text_job *job)
{
    const struct rpc_generate *g = &job->request.gen;
    if (job->error.http || !copies_leading(s))
        return NULL;
    const char *name =
        coord_fallback(s->core, job->model->name, g->band, (uint32_t)job->ids.n, g->deadline_ms);
    return name ? model_set_find(&s->models, name) : NULL;
}

static void on_worked(uv_work_t *w, int status)
{
    struct text_ticket *t = w->data;
    if (!t->cancelled && !t->again && (t->again = fallback(t->shell, &t->job)) &&
        !uv_queue_work(&t->shell->loop, &t->work, on_work, on_worked))
        return;
    t->shell->text_jobs--;
    t->shell->text_bytes -= t->job.n;
    if (!t->cancelled)
        t->done(t->arg, &t->job);
    text_job_finish(&t->job);
    free(t->copy);
    free(t);
}

static void run_inline(struct shell *s, struct text_job *job,
                       void (*done)(void *arg, struct text_job *job), void *arg)
{
    text_job_run(job);
    const struct model_text *other = fallback(s, job);
    if (other)
        text_job_rerun(job, other);
    done(arg, job);
    text_job_finish(job);
}

struct text_ticket *text_pool_start(struct shell *s, enum text_source source, const char *bytes,
                                    size_t n, void (*done)(void *arg, struct text_job *job),
                                    void *arg)
{
    struct text_job job = {
        .models = &s->models, .model = &s->text, .source = source, .bytes = bytes, .n = n};
    if (n <= INLINE_BYTES) {
        run_inline(s, &job, done, arg);
        return NULL;
    }
    if (s->text_jobs == JOBS_MAX || s->text_bytes + n > JOBS_BYTES) {
        openai_fail(&job.error, 429, NULL, "queue_full",
                    "Too many long prompts wait to be read; try again soon.");
        job.error.retry_after_ms = 1000;
        done(arg, &job);
        return NULL;
    }
    struct text_ticket *t = mem_zalloc(1, sizeof *t);
    t->shell = s;
    t->copy = mem_dup(bytes, n);
    t->job = job;
    t->job.bytes = t->copy;
    t->done = done;
    t->arg = arg;
    t->work.data = t;
    s->text_jobs++;
    s->text_bytes += n;
    int rc = uv_queue_work(&s->loop, &t->work, on_work, on_worked);
    if (rc) { // only for a null callback, a bug
        log_error("coordinator: uv_queue_work: %s", uv_strerror(rc));
        abort();
    }
    return t;
}

void text_pool_cancel(struct text_ticket *t)
{
    if (t)
        t->cancelled = true;
}
