// Names, one-line descriptions and deep copies of the control messages.
#include "proto/msg.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

const char *transport_choice_name(enum transport_choice t)
{
    static const char *const names[] = {"auto", "shm", "tcp", "verbs"};
    return (unsigned)t < sizeof names / sizeof *names ? names[t] : "?";
}

const char *finish_reason_name(enum finish_reason r)
{
    static const char *const names[] = {"none", "stop", "length", "cancelled", "error"};
    return (unsigned)r < sizeof names / sizeof *names ? names[r] : "?";
}

const char *kv_role_name(enum kv_role r)
{
    return r == KV_ROLE_SOURCE ? "source" : "target";
}

const char *msg_kind_name(enum msg_kind k)
{
    switch (k) {
    case MSG_HELLO:
        return "HELLO";
    case MSG_HEARTBEAT:
        return "HEARTBEAT";
    case MSG_FORMED:
        return "FORMED";
    case MSG_TOKENS:
        return "TOKENS";
    case MSG_CANCELLED:
        return "CANCELLED";
    case MSG_FAULT:
        return "FAULT";
    case MSG_PREPARED:
        return "PREPARED";
    case MSG_LINK:
        return "LINK";
    case MSG_KV_CACHED:
        return "KV_CACHED";
    case MSG_KV_LIST:
        return "KV_LIST";
    case MSG_KV_READY:
        return "KV_READY";
    case MSG_KV_DONE:
        return "KV_DONE";
    case MSG_KV_RECEIVE:
        return "KV_RECEIVE";
    case MSG_KV_SEND:
        return "KV_SEND";
    case MSG_KV_CANCEL:
        return "KV_CANCEL";
    case MSG_WELCOME:
        return "WELCOME";
    case MSG_FORM:
        return "FORM";
    case MSG_DISSOLVE:
        return "DISSOLVE";
    case MSG_DISPATCH:
        return "DISPATCH";
    case MSG_CANCEL:
        return "CANCEL";
    }
    return "?";
}

// One allocation holds the copy: a first walk with base NULL adds up the sizes, a second one
// copies.
struct packer {
    char *base; // NULL: only count
    size_t n;
};

static const void *pack(struct packer *p, const void *v, size_t bytes)
{
    if (!v)
        return NULL;
    size_t at = (p->n + 15) & ~(size_t)15;
    p->n = at + bytes;
    return p->base ? memcpy(p->base + at, v, bytes) : v;
}

static const char *pack_str(struct packer *p, const char *s)
{
    return s ? pack(p, s, strlen(s) + 1) : NULL;
}

static void pack_hello(struct packer *p, struct msg_hello *h)
{
    h->name = pack_str(p, h->name);
    h->host = pack_str(p, h->host);
    h->backend = pack_str(p, h->backend);
}

static void pack_tokens(struct packer *p, struct msg_tokens *t)
{
    const struct token_out *from = t->tokens;
    struct token_out *to = (void *)pack(p, from, t->tokens_n * sizeof *from);
    for (uint32_t i = 0; from && i < t->tokens_n; i++) {
        const struct logprob *top = pack(p, from[i].top, from[i].top_n * sizeof *from[i].top);
        if (p->base)
            to[i].top = top;
    }
    t->tokens = to;
}

static void pack_addresses(struct packer *p, struct rank_addresses *a)
{
    a->shm = pack_str(p, a->shm);
    a->tcp = pack_str(p, a->tcp);
    a->verbs = pack_str(p, a->verbs);
}

static const struct link_member *pack_members(struct packer *p, const struct link_member *from,
                                              uint32_t n)
{
    struct link_member *to = (void *)pack(p, from, n * sizeof *from);
    for (uint32_t i = 0; from && i < n; i++) {
        struct link_member copy = from[i];
        copy.name = pack_str(p, copy.name);
        copy.host = pack_str(p, copy.host);
        pack_addresses(p, &copy.addresses);
        if (p->base)
            to[i] = copy;
    }
    return to;
}

static void pack_transfer(struct packer *p, const int32_t **tokens, uint32_t n,
                          struct kv_peer *peer)
{
    *tokens = pack(p, *tokens, n * sizeof **tokens);
    peer->members = pack_members(p, peer->members, peer->members_n);
}

static void pack_sources(struct packer *p, struct msg_form *f)
{
    const struct weight_source *from = f->sources;
    struct weight_source *to = (void *)pack(p, from, f->sources_n * sizeof *from);
    for (uint32_t i = 0; i < f->sources_n; i++) {
        struct weight_source copy = from[i];
        copy.name = pack_str(p, copy.name);
        pack_addresses(p, &copy.addresses);
        if (p->base)
            to[i] = copy;
    }
    f->sources = to;
}

static struct msg *pack_msg(struct packer *p, const struct msg *m)
{
    struct msg copy = *m;
    struct msg *to = (void *)pack(p, m, sizeof *m);
    switch (m->kind) {
    case MSG_HELLO:
        pack_hello(p, &copy.hello);
        break;
    case MSG_FORMED:
        copy.formed.text = pack_str(p, m->formed.text);
        pack_addresses(p, &copy.formed.weights);
        break;
    case MSG_TOKENS:
        pack_tokens(p, &copy.tokens);
        break;
    case MSG_FAULT:
        copy.fault.text = pack_str(p, m->fault.text);
        break;
    case MSG_FORM:
        copy.form.model_dir = pack_str(p, m->form.model_dir);
        pack_sources(p, &copy.form);
        break;
    case MSG_PREPARED:
        pack_addresses(p, &copy.prepared.addresses);
        pack_addresses(p, &copy.prepared.mover);
        break;
    case MSG_LINK:
        copy.link.members = pack_members(p, copy.link.members, copy.link.members_n);
        break;
    case MSG_KV_CACHED:
        copy.kv_cached.changes = pack(p, m->kv_cached.changes,
                                      m->kv_cached.changes_n * sizeof *m->kv_cached.changes);
        break;
    case MSG_KV_RECEIVE:
        pack_transfer(p, &copy.kv_receive.tokens, m->kv_receive.tokens_n, &copy.kv_receive.source);
        break;
    case MSG_KV_SEND:
        pack_transfer(p, &copy.kv_send.tokens, m->kv_send.tokens_n, &copy.kv_send.target);
        break;
    case MSG_KV_DONE:
        copy.kv_done.text = pack_str(p, m->kv_done.text);
        break;
    case MSG_DISPATCH: {
        struct journal *j = &copy.dispatch.journal;
        j->prompt = pack(p, j->prompt, j->prompt_n * sizeof *j->prompt);
        j->emitted = pack(p, j->emitted, j->emitted_n * sizeof *j->emitted);
        break;
    }
    case MSG_HEARTBEAT:
    case MSG_CANCELLED:
    case MSG_WELCOME:
    case MSG_DISSOLVE:
    case MSG_CANCEL:
    case MSG_KV_LIST:
    case MSG_KV_READY:
    case MSG_KV_CANCEL:
        break;
    }
    if (p->base)
        *to = copy;
    return to;
}

struct msg *msg_clone(const struct msg *m)
{
    struct packer count = {0};
    pack_msg(&count, m);
    struct packer copy = {.base = mem_alloc(count.n)};
    struct msg *to = pack_msg(&copy, m);
    assert((char *)to == copy.base && copy.n == count.n);
    return to;
}

void msg_free(struct msg *m)
{
    free(m);
}

static unsigned long long ull(uint64_t v)
{
    return v;
}

void msg_describe(const struct msg *m, char *buf, size_t n)
{
    const char *kind = msg_kind_name(m->kind);
    switch (m->kind) {
    case MSG_HELLO:
        snprintf(buf, n, "%s %s incarnation %llx%s", kind, m->hello.name, ull(m->hello.incarnation),
                 m->hello.heartbeat_channel ? " heartbeats" : "");
        return;
    case MSG_WELCOME:
        snprintf(buf, n, "%s heartbeat %u ms", kind, m->welcome.heartbeat_ms);
        return;
    case MSG_HEARTBEAT:
        snprintf(buf, n, "%s r%llu/e%llu steps %llu loop age %u ms step age %u ms", kind,
                 ull(m->heartbeat.replica), ull(m->heartbeat.epoch), ull(m->heartbeat.steps),
                 m->heartbeat.loop_age_ms, m->heartbeat.step_age_ms);
        return;
    case MSG_FORM:
        snprintf(buf, n, "%s r%llu/e%llu %ux%u as (%u,%u)", kind, ull(m->form.replica),
                 ull(m->form.epoch), m->form.stages, m->form.tensor, m->form.my_stage,
                 m->form.my_tensor);
        return;
    case MSG_FORMED:
        snprintf(buf, n, "%s r%llu/e%llu %s", kind, ull(m->formed.replica), ull(m->formed.epoch),
                 status_name(m->formed.status));
        return;
    case MSG_PREPARED:
        snprintf(buf, n, "%s r%llu/e%llu", kind, ull(m->prepared.replica), ull(m->prepared.epoch));
        return;
    case MSG_LINK:
        snprintf(buf, n, "%s r%llu/e%llu ranks %u", kind, ull(m->link.replica), ull(m->link.epoch),
                 m->link.members_n);
        return;
    case MSG_DISSOLVE:
        snprintf(buf, n, "%s r%llu/e%llu", kind, ull(m->dissolve.replica), ull(m->dissolve.epoch));
        return;
    case MSG_KV_CACHED:
        snprintf(buf, n, "%s r%llu/e%llu report %llu%s changes %u", kind, ull(m->kv_cached.replica),
                 ull(m->kv_cached.epoch), ull(m->kv_cached.seq),
                 m->kv_cached.reset ? " of all" : "", m->kv_cached.changes_n);
        return;
    case MSG_KV_LIST:
        snprintf(buf, n, "%s r%llu/e%llu%s", kind, ull(m->kv_list.replica), ull(m->kv_list.epoch),
                 m->kv_list.all ? " all" : "");
        return;
    case MSG_KV_RECEIVE:
        snprintf(buf, n, "%s r%llu/e%llu transfer %llu tokens %u from r%llu/e%llu", kind,
                 ull(m->kv_receive.replica), ull(m->kv_receive.epoch), ull(m->kv_receive.transfer),
                 m->kv_receive.tokens_n, ull(m->kv_receive.source.replica),
                 ull(m->kv_receive.source.epoch));
        return;
    case MSG_KV_SEND:
        snprintf(buf, n, "%s r%llu/e%llu transfer %llu tokens %u from block %u to r%llu/e%llu",
                 kind, ull(m->kv_send.replica), ull(m->kv_send.epoch), ull(m->kv_send.transfer),
                 m->kv_send.tokens_n, m->kv_send.first_block, ull(m->kv_send.target.replica),
                 ull(m->kv_send.target.epoch));
        return;
    case MSG_KV_READY:
        snprintf(buf, n, "%s r%llu/e%llu transfer %llu blocks %u have %u", kind,
                 ull(m->kv_ready.replica), ull(m->kv_ready.epoch), ull(m->kv_ready.transfer),
                 m->kv_ready.blocks, m->kv_ready.have);
        return;
    case MSG_KV_DONE:
        snprintf(buf, n, "%s r%llu/e%llu transfer %llu %s %s tokens %u", kind,
                 ull(m->kv_done.replica), ull(m->kv_done.epoch), ull(m->kv_done.transfer),
                 kv_role_name(m->kv_done.role), status_name(m->kv_done.status),
                 m->kv_done.tokens_n);
        return;
    case MSG_KV_CANCEL:
        snprintf(buf, n, "%s r%llu/e%llu transfer %llu", kind, ull(m->kv_cancel.replica),
                 ull(m->kv_cancel.epoch), ull(m->kv_cancel.transfer));
        return;
    case MSG_DISPATCH:
        snprintf(buf, n, "%s r%llu/e%llu req %llu prompt %u emitted %u", kind,
                 ull(m->dispatch.replica), ull(m->dispatch.epoch), ull(m->dispatch.journal.request),
                 m->dispatch.journal.prompt_n, m->dispatch.journal.emitted_n);
        return;
    case MSG_CANCEL:
        snprintf(buf, n, "%s r%llu/e%llu req %llu", kind, ull(m->cancel.replica),
                 ull(m->cancel.epoch), ull(m->cancel.request));
        return;
    case MSG_CANCELLED:
        snprintf(buf, n, "%s r%llu/e%llu req %llu", kind, ull(m->cancelled.replica),
                 ull(m->cancelled.epoch), ull(m->cancelled.request));
        return;
    case MSG_TOKENS:
        snprintf(buf, n, "%s r%llu/e%llu step %llu tokens %u", kind, ull(m->tokens.replica),
                 ull(m->tokens.epoch), ull(m->tokens.step), m->tokens.tokens_n);
        return;
    case MSG_FAULT:
        snprintf(buf, n, "%s r%llu/e%llu %s rank (%d,%d)", kind, ull(m->fault.replica),
                 ull(m->fault.epoch), status_name(m->fault.status), m->fault.stage,
                 m->fault.tensor);
        return;
    }
    snprintf(buf, n, "kind %d", (int)m->kind);
}
