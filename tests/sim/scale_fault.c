// What fails while it runs: hosts one by one, at a rate; one rack at once, without a word; and one
// datacenter with its coordinator. All of it comes back.
#include "tests/sim/scale.h"

#include <stdlib.h>
#include <string.h>

enum { ONE_HOST, ONE_RACK, ONE_DC, DC_BACK };
enum { BACK_S = 60 };

void scale_faults_plan(struct scale *w)
{
    uint64_t span_us = w->end_us - w->begin_us;
    double per_us = w->opt.fails_per_hour * w->opt.hosts / 3600e6;
    // The first fifth is quiet: what the rest is compared with.
    double at = (double)w->begin_us + (double)span_us / 5;
    while (per_us > 0) {
        at += prng_exp(&w->prng, 1 / per_us);
        if (at > (double)w->end_us - 10e6)
            break;
        scale_push(w, (uint64_t)at, SCALE_FAULT, ONE_HOST, 0);
    }
    if (w->opt.rack)
        scale_push(w, w->begin_us + span_us * 3 / 10, SCALE_FAULT, ONE_RACK, 0);
    if (w->opt.dcs > 1) {
        scale_push(w, w->begin_us + span_us / 2, SCALE_FAULT, ONE_DC, 0);
        scale_push(w, w->begin_us + span_us * 7 / 10, SCALE_FAULT, DC_BACK, 0);
    }
}

static void hit_streams(struct scale *w, uint32_t host, enum scale_cause cause)
{
    w->faults[cause]++;
    for (uint32_t i = 0; i < SCALE_DEVICES; i++) {
        const struct scale_rank *r = &w->hosts[host].ranks[i];
        for (uint32_t k = 0; k < r->seqs_n; k++)
            scale_stream_hit(w, r->seqs[k].request, cause);
    }
}

static void come_back(struct scale *w, uint32_t host)
{
    scale_push(w, w->now_us + 1000000ull * BACK_S, SCALE_RETURN, host, w->hosts[host].gen);
}

static void one_host(struct scale *w)
{
    uint32_t host = (uint32_t)prng_below(&w->prng, w->opt.hosts);
    struct scale_host *h = &w->hosts[host];
    if (!h->alive || h->hung)
        return;
    enum scale_cause cause = CAUSE_KILL + (enum scale_cause)prng_below(&w->prng, 3);
    scale_trace(w, "host %u %s", host,
                cause == CAUSE_KILL     ? "dies"
                : cause == CAUSE_SILENT ? "is cut off"
                                        : "hangs");
    hit_streams(w, host, cause);
    if (cause == CAUSE_HANG) {
        h->hung = true;
        h->hung_us = w->now_us;
    } else {
        scale_host_stop(w, host, cause == CAUSE_SILENT);
    }
    come_back(w, host);
}

static void one_rack(struct scale *w)
{
    uint32_t first = (uint32_t)prng_below(&w->prng, w->opt.hosts - w->opt.rack + 1);
    scale_trace(w, "a rack of %u hosts loses its power", w->opt.rack);
    for (uint32_t i = first; i < first + w->opt.rack; i++) {
        if (!w->hosts[i].alive)
            continue;
        hit_streams(w, i, CAUSE_RACK);
        scale_host_stop(w, i, true);
        come_back(w, i);
    }
}

static void one_dc(struct scale *w)
{
    uint32_t dc = w->opt.dcs - 1;
    scale_trace(w, "datacenter %u is lost", dc + 1);
    w->faults[CAUSE_DC]++;
    w->dcs[dc].epoch = coord_epoch(w->dcs[dc].core);
    coord_destroy(w->dcs[dc].core);
    w->dcs[dc].core = NULL;
    w->dcs[dc].timer_gen++;
    for (uint32_t i = 0; i < w->opt.hosts; i++)
        if (w->hosts[i].dc == dc && w->hosts[i].alive)
            scale_host_stop(w, i, true);
    scale_streams_of_dc(w, dc);
}

static void dc_back(struct scale *w)
{
    uint32_t dc = w->opt.dcs - 1;
    scale_trace(w, "datacenter %u is back", dc + 1);
    scale_dc_start(w, dc);
    for (uint32_t i = 0; i < w->opt.hosts; i++)
        if (w->hosts[i].dc == dc && !w->hosts[i].alive)
            scale_host_start(w, i);
}

void scale_fault(struct scale *w, uint32_t what)
{
    if (what == ONE_HOST)
        one_host(w);
    else if (what == ONE_RACK)
        one_rack(w);
    else if (what == ONE_DC)
        one_dc(w);
    else
        dc_back(w);
}

// Its supervisor starts it again, unless its whole datacenter is away.
void scale_host_return(struct scale *w, uint32_t host, uint64_t gen)
{
    struct scale_host *h = &w->hosts[host];
    if (h->gen != gen || !w->dcs[h->dc].core)
        return;
    if (h->hung)
        scale_host_stop(w, host, false);
    scale_host_start(w, host);
}
