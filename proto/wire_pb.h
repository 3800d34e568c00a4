// Inside of wire_*.c: the calls of protobuf-c, the checks of fields, and the conversions that node
// messages and client RPC share.
#pragma once

#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "proto/hadal.pb-c.h"
#include "proto/wire.h"

// NULL when malformed or over the arena's limit.
ProtobufCMessage *wire_pb_unpack(struct wire_arena *a, const ProtobufCMessageDescriptor *d,
                                 const struct wire_frame *f);
enum status wire_pb_pack(uint8_t type, uint32_t stream, const ProtobufCMessage *m,
                         struct strbuf *out);

// One decoding: remembers the first field that failed, so that checks can be written in a row.
struct wire_check {
    struct wire_arena *arena;
    const char *message; // its name
    struct errmsg *err;  // may be NULL
    enum status status;
};

void wire_fail(struct wire_check *c, enum status s, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void wire_check_range(struct wire_check *c, const char *field, uint64_t v, uint64_t lo,
                      uint64_t hi);
// Finite and lo <= v <= hi.
void wire_check_float(struct wire_check *c, const char *field, float v, float lo, float hi);
// UTF-8, fewer than `max` bytes.
void wire_check_string(struct wire_check *c, const char *field, const char *v, size_t max);
void wire_check_name(struct wire_check *c, const char *field,
                     const char *v); // [A-Za-z0-9._-]{1,63}
void wire_check_ids(struct wire_check *c, const char *field, const int32_t *ids, size_t n,
                    size_t max);
void wire_check_status(struct wire_check *c, const char *field, int32_t v);
struct rpc_text wire_read_text(struct wire_check *c, const char *field, ProtobufCBinaryData b,
                               size_t max);
// From the arena; NULL also fails the check.
void *wire_alloc(struct wire_check *c, size_t n, size_t size);

void wire_write_sampling(const struct sampling *s, Hadal__Sampling *pb);
// NULL leaves *out as it is and fails the check.
void wire_read_sampling(struct wire_check *c, const Hadal__Sampling *pb, struct sampling *out);
Hadal__Logprob **wire_write_top(struct wire_arena *a, const struct logprob *top, uint32_t n);
const struct logprob *wire_read_top(struct wire_check *c, Hadal__Logprob **pb, size_t n);

// ---- wire_kv.c: members of a replica, and the messages that move KV between replicas

void wire_write_addresses(const struct rank_addresses *from, Hadal__Addresses *pb);
void wire_read_addresses(struct wire_check *c, const Hadal__Addresses *p,
                         struct rank_addresses *to);
// NULL: the arena is full.
Hadal__LinkMember **wire_write_members(struct wire_arena *a, const struct link_member *members,
                                       uint32_t n);
// The count is checked by the caller.
const struct link_member *wire_read_members(struct wire_check *c, Hadal__LinkMember **pb, size_t n);

bool wire_write_kv_cached(struct wire_arena *a, const struct msg_kv_cached *k, Hadal__KvCached *pb);
void wire_read_kv_cached(struct wire_check *c, const Hadal__KvCached *pb,
                         struct msg_kv_cached *out);
void wire_write_kv_ready(const struct msg_kv_ready *r, Hadal__KvReady *pb);
void wire_read_kv_ready(struct wire_check *c, const Hadal__KvReady *pb, struct msg_kv_ready *out);
void wire_write_kv_done(const struct msg_kv_done *d, Hadal__KvDone *pb);
void wire_read_kv_done(struct wire_check *c, const Hadal__KvDone *pb, struct msg_kv_done *out);
bool wire_write_kv_receive(struct wire_arena *a, const struct msg_kv_receive *r,
                           Hadal__KvReceive *pb);
void wire_read_kv_receive(struct wire_check *c, const Hadal__KvReceive *pb,
                          struct msg_kv_receive *out);
bool wire_write_kv_send(struct wire_arena *a, const struct msg_kv_send *s, Hadal__KvSend *pb);
void wire_read_kv_send(struct wire_check *c, const Hadal__KvSend *pb, struct msg_kv_send *out);
void wire_write_kv_cancel(const struct msg_kv_cancel *k, Hadal__KvCancel *pb);
void wire_read_kv_cancel(struct wire_check *c, const Hadal__KvCancel *pb,
                         struct msg_kv_cancel *out);
