"""Bugs planted one at a time to see whether the simulator finds them. Each is a piece of text that
must occur exactly once in its file, and what takes its place: an edit survives changes around it, and
one whose place is gone fails loudly instead of planting nothing."""

# name, file, text, bug
PLANTED = [
    ("a journal that lacks its last token", "coordinator/request.c",
     ".emitted_n = r->emitted_n,",
     ".emitted_n = r->emitted_n - (r->emitted_n > 8),"),
    ("an old epoch is accepted by the coordinator", "coordinator/messages.c",
     "if (r && r->id == replica && r->epoch == epoch)",
     "if (r && r->id == replica)"),
    ("the lowest band is served first", "coordinator/fair.c",
     """    int b = QUEUE_BANDS - 1;
    while (b >= 0 && !f->bands[b])
        b--;
    return b;""",
     """    int b = 0;
    while (b < QUEUE_BANDS && !f->bands[b])
        b++;
    return b < QUEUE_BANDS ? b : -1;"""),
    ("a request is dispatched twice", "coordinator/replicas.c",
     "    request_move(q, COORD_REQ_QUEUED);\n    request_enqueue(c, q);",
     "    request_move(q, COORD_REQ_QUEUED);\n    request_enqueue(c, q);\n"
     "    for (uint32_t i = 0; i < c->replicas_n; i++) {\n"
     "        const struct replica *r = c->replicas[i];\n"
     "        if (r->state != COORD_REPLICA_READY)\n"
     "            continue;\n"
     "        core_send(c, r->ranks[0]->conn,\n"
     "                  (struct msg){.kind = MSG_DISPATCH,\n"
     "                               .dispatch = {r->id, r->epoch, request_journal(q)}});\n"
     "        break;\n"
     "    }"),
    ("a preempted request goes on before its lead let go", "coordinator/dispatch.c",
     "    request_move(q, to);\n}",
     "    request_move(q, to);\n"
     "    if (to == COORD_REQ_MOVING && q->preempted) {\n"
     "        request_unplace(c, q);\n"
     "        request_move(q, COORD_REQ_QUEUED);\n"
     "        request_enqueue(c, q);\n"
     "    }\n}"),
    ("a token that came twice is taken twice", "coordinator/request.c",
     "    if (index == r->emitted_n)\n        return JOURNAL_OK;",
     "    if (index <= r->emitted_n)\n        return JOURNAL_OK;"),
    ("a credit leaks when a request gives way", "coordinator/dispatch.c",
     "    r->preempting_n -= gave_way;\n", ""),
    ("quota debt is never paid", "coordinator/tenants.c",
     "    if (now_us > t->level_us)\n",
     "    if (now_us > t->level_us && level > 0)\n"),
    ("answers are not charged to the quota", "coordinator/tokens.c",
     "    tenant_charge(q->tenant, c->now_us, 1);\n", ""),
    ("a refused request's prompt is not paid back", "coordinator/lifecycle.c",
     "    tenant_refund(q->tenant, q->prompt_n);\n", ""),
    ("a deadline that passes in the queue is not noticed", "coordinator/lifecycle.c",
     "        core_arm(c, &q->wait, TIMER_WAIT, start_by_us(c, p, deadline_us));",
     "        core_arm(c, &q->wait, TIMER_WAIT, start_by_us(c, p, deadline_us) + 20000000);"),
    ("a follower forgets a request at its end", "coordinator/shadow.c",
     "        return q ? done(q, r, err) : STATUS_OK;\n    case COPY_FORGET:",
     "    case COPY_FORGET:"),
    ("a follower is told to forget before the client saw the end", "coordinator/copier.c",
     "    case COORD_DONE:\n        *out = (struct copy_record){.what = COPY_DONE,",
     "    case COORD_DONE:\n        *out = (struct copy_record){.what = COPY_FORGET,"),
    ("clients do not wait for followers", "coordinator/copier.c",
     "        if (!c->peers[i].far && c->peers[i].acked < least)",
     "        if (c->peers[i].far && c->peers[i].acked < least)"),
    ("a follower does not ask the next leader again", "coordinator/follower.c",
     "    ask_again(f, now_us);\n", "    (void)ask_again;\n"),
    ("what no record came back of is not inherited", "coordinator/follower.c",
     "    HASH_ITER(hh, f->asks.requests, q, next)\n    h->request",
     "    for (; 0;)\n        h->request"),
    ("a new leader is not told who reads", "coordinator/follower.c",
     "            say_word(f, r->request, COPY_WORD_ATTACH);\n        if", "            ;\n        if"),
    ("who reads is not inherited", "coordinator/follower.c",
     "        h->reads(h->arg, r->request, r->n, r->cancel);", "        ;"),
    ("a successor uses epochs again", "coordinator/shadow.c",
     "    if (r->epoch > s->epoch)\n        s->epoch = r->epoch;\n", ""),
    ("a silent node is not noticed", "coordinator/members.c",
     "return 1000ull * (warming ? c->cfg.warmup_silence_ms : c->cfg.heartbeat_timeout_ms);",
     "return 4000ull * (warming ? c->cfg.warmup_silence_ms : c->cfg.heartbeat_timeout_ms);"),
    ("a hang is not noticed", "coordinator/health.c",
     "        old_step |= ranks[i].step_age_ms > lim->hang_ms;",
     "        old_step |= ranks[i].step_age_ms > 5 * lim->hang_ms;"),
    ("a wrong answer passes the golden probe", "coordinator/probe.c",
     "if (*at >= got->n || got->tokens[*at] != known->tokens[*at])",
     "if (*at >= got->n)"),
    ("a replica serves before it is proven", "coordinator/prober.c",
     "    if (!prober_on(r)) {\n        quarantine_acquit(c, r);",
     "    if (!prober_on(r) || c->stats.probes) {\n        quarantine_acquit(c, r);"),
    ("a quarantine does not end", "coordinator/quarantine.c",
     "core_arm(c, &m->quarantine_timer, TIMER_QUARANTINE, c->now_us + us);",
     "core_arm(c, &m->quarantine_timer, TIMER_QUARANTINE, c->now_us + 1000000 * us);"),
    ("grace time is not given", "coordinator/lifecycle.c",
     "    if (q->attached)\n        core_disarm(c, &q->life);\n    else\n"
     "        core_arm(c, &q->life, TIMER_LIFE, c->now_us + 1000ull * c->cfg.grace_ms);",
     "    if (q->attached)\n        core_disarm(c, &q->life);\n    else\n"
     "        core_arm(c, &q->life, TIMER_LIFE, c->now_us + 500ull * c->cfg.grace_ms);"),
    ("the tenant served most goes first", "coordinator/fair.c",
     "if (l->tenant->served < best->tenant->served)",
     "if (l->tenant->served > best->tenant->served)"),
    ("blocks of the KV cache leak", "node/batch.c",
     "    kvpool_release(b->pool, s->blocks, s->blocks_n);",
     "    kvpool_release(b->pool, s->blocks, s->blocks_n - (s->blocks_n > 2));"),
    ("a block is named before the step that fills it has returned", "node/batch_result.c",
     "for (; (s->published + 1) * bt <= s->pos_done; s->published++)",
     "for (; (s->published + 1) * bt <= s->pos_done + 1; s->published++)"),
    ("blocks that a KV transfer did not fill leak", "node/batch_kv.c",
     "    kvpool_release(b->pool, l->blocks + l->named, l->blocks_n - l->named);\n", ""),
    ("a KV lease never runs out", "node/node_kv.c",
     "    if (n->now_us < t->deadline_us)\n        return;",
     "    return;"),
    ("KV counts as there before it is", "node/node_kv.c",
     "        batch_lease_publish(n->batch, l, blocks);",
     "        batch_lease_publish(n->batch, l, l->total);"),
    ("a place held for KV is not given back", "coordinator/transfer.c",
     "    t->target->reserved_n--;\n", ""),
    ("a KV transfer outlives its target", "coordinator/roles.c",
     "    transfers_leave_target(c, r);\n", ""),
    ("a request that has tokens changes versions", "coordinator/scale.c",
     "q->state != COORD_REQ_QUEUED || q->dispatches)\n            continue;\n        struct pool *to",
     "q->state != COORD_REQ_QUEUED || q->class != QUEUE_FAIR)\n            continue;\n        struct pool *to"),
    ("the last replica of a version leaves its requests behind", "coordinator/versions.c",
     "bool free_to_go = s->from->wanted > 1 || !pool_bound(c, s->from);",
     "bool free_to_go = true;"),
    ("a KV transfer goes on when its request has ended", "coordinator/dispatch.c",
     "    transfer_end(c, q->transfer, COORD_TRANSFER_REQUEST);\n    backlog_clear(q);",
     "    backlog_clear(q);"),
]
