// Framing: the header, the cutting of a byte stream into frames, and the arena that decoded
// messages live in. What is inside a frame is wire_msg.c's and wire_rpc.c's.
#include "proto/wire.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "proto/wire_pb.h"

enum {
    FIRST_BLOCK_BYTES = 16 << 10, // kept between messages
    BLOCK_BYTES = 256 << 10,
    KEPT_BUFFER_BYTES = 64 << 10, // a decoder that is empty keeps at most this much
};

struct wire_block {
    struct wire_block *next; // the block filled before this one
    size_t n, cap;
    _Alignas(16) uint8_t bytes[];
};

static struct wire_block *block_new(struct wire_arena *a, size_t bytes)
{
    size_t cap = a->blocks ? BLOCK_BYTES : FIRST_BLOCK_BYTES;
    if (cap < bytes)
        cap = bytes;
    struct wire_block *b = mem_alloc(sizeof *b + cap);
    *b = (struct wire_block){.next = a->blocks, .cap = cap};
    a->blocks = b;
    return b;
}

void *wire_arena_alloc(struct wire_arena *a, size_t bytes)
{
    size_t limit = a->limit ? a->limit : WIRE_ARENA_BYTES;
    if (bytes > limit)
        return NULL;
    bytes = (bytes + 15) & ~(size_t)15;
    if (a->used + bytes > limit)
        return NULL;
    a->used += bytes;
    struct wire_block *b = a->blocks;
    if (!b || b->cap - b->n < bytes)
        b = block_new(a, bytes);
    void *p = b->bytes + b->n;
    b->n += bytes;
    return p;
}

void wire_arena_reset(struct wire_arena *a)
{
    while (a->blocks && (a->blocks->next || a->blocks->cap > FIRST_BLOCK_BYTES)) {
        struct wire_block *next = a->blocks->next;
        free(a->blocks);
        a->blocks = next;
    }
    if (a->blocks)
        a->blocks->n = 0;
    a->used = 0;
}

void wire_arena_finish(struct wire_arena *a)
{
    wire_arena_reset(a);
    free(a->blocks);
    a->blocks = NULL;
}

static void *pb_alloc(void *data, size_t bytes)
{
    return wire_arena_alloc(data, bytes);
}

static void pb_free(void *data, void *p)
{
    // The arena frees everything at once.
}

ProtobufCMessage *wire_pb_unpack(struct wire_arena *a, const ProtobufCMessageDescriptor *d,
                                 const struct wire_frame *f)
{
    ProtobufCAllocator alloc = {pb_alloc, pb_free, a};
    return protobuf_c_message_unpack(d, &alloc, f->body_n, f->body);
}

struct appender {
    ProtobufCBuffer base;
    struct strbuf *out;
};

static void pb_append(ProtobufCBuffer *b, size_t n, const uint8_t *bytes)
{
    struct strbuf *out = ((struct appender *)b)->out;
    strbuf_add(out, bytes, n);
}

static void put_u32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> 8 * i);
}

static uint32_t get_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

enum status wire_pb_pack(uint8_t type, uint32_t stream, const ProtobufCMessage *m,
                         struct strbuf *out)
{
    size_t start = out->n;
    uint8_t header[WIRE_HEADER_BYTES] = {'H', 'D', MSG_VERSION, type};
    put_u32(header + 8, stream);
    strbuf_add(out, header, sizeof header);
    struct appender app = {.base = {pb_append}, .out = out};
    size_t n = protobuf_c_message_pack_to_buffer(m, &app.base);
    assert(out->n == start + WIRE_HEADER_BYTES + n);
    if (n > LIMIT_FRAME_BYTES) {
        out->n = start;
        out->v[start] = '\0';
        return STATUS_TOO_LARGE;
    }
    put_u32((uint8_t *)out->v + start + 4, (uint32_t)n);
    return STATUS_OK;
}

void wire_decoder_init(struct wire_decoder *d, uint32_t max_body)
{
    assert(max_body <= LIMIT_FRAME_BYTES);
    *d = (struct wire_decoder){.max_body = max_body ? max_body : LIMIT_FRAME_BYTES};
}

void wire_decoder_finish(struct wire_decoder *d)
{
    free(d->buf);
    *d = (struct wire_decoder){0};
}

// Moves what is left to the front, and gives back a large buffer that is empty.
static void compact(struct wire_decoder *d)
{
    if (d->at == d->n && d->cap > KEPT_BUFFER_BYTES) {
        free(d->buf);
        d->buf = NULL;
        d->cap = 0;
    } else if (d->at && d->n > d->at) {
        memmove(d->buf, d->buf + d->at, d->n - d->at);
    }
    d->n -= d->at;
    d->at = 0;
}

void wire_decoder_feed(struct wire_decoder *d, const void *bytes, size_t n)
{
    if (!n || d->broken)
        return;
    compact(d);
    if (d->n + n > d->cap) {
        size_t cap = d->cap ? d->cap : 512;
        while (cap < d->n + n)
            cap *= 2;
        d->buf = mem_realloc(d->buf, cap, 1);
        d->cap = cap;
    }
    memcpy(d->buf + d->n, bytes, n);
    d->n += n;
}

// Checks as much of a header as is there.
static enum status header_check(const struct wire_decoder *d, struct errmsg *err)
{
    const uint8_t *h = d->buf + d->at;
    size_t n = d->n - d->at;
    if ((n >= 1 && h[0] != 'H') || (n >= 2 && h[1] != 'D'))
        return errmsg_set(err, STATUS_LINK_PROTOCOL, "frame: bad magic, the peer is not Hadal");
    if (n >= 3 && h[2] != MSG_VERSION)
        return errmsg_set(err, STATUS_LINK_VERSION, "frame: version %u, this process speaks %d",
                          h[2], MSG_VERSION);
    if (n >= 8 && get_u32(h + 4) > d->max_body)
        return errmsg_set(err, STATUS_LINK_PROTOCOL, "frame: length %u is over the limit of %u",
                          get_u32(h + 4), d->max_body);
    return STATUS_OK;
}

enum status wire_decoder_next(struct wire_decoder *d, struct wire_frame *out, struct errmsg *err)
{
    if (d->broken)
        return errmsg_set(err, d->broken, "frame: the stream is broken");
    size_t n = d->n - d->at;
    if (!n)
        return STATUS_AGAIN;
    d->broken = header_check(d, err);
    if (d->broken)
        return d->broken;
    const uint8_t *h = d->buf + d->at;
    if (n < WIRE_HEADER_BYTES || n - WIRE_HEADER_BYTES < get_u32(h + 4))
        return STATUS_AGAIN;
    *out = (struct wire_frame){.type = h[3],
                               .body_n = get_u32(h + 4),
                               .stream = get_u32(h + 8),
                               .body = h + WIRE_HEADER_BYTES};
    d->at += WIRE_HEADER_BYTES + out->body_n;
    return STATUS_OK;
}
