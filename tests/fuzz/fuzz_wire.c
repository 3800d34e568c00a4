// Bytes of a stranger on the control port: cut into frames, decoded as whatever they claim to be;
// what is accepted must encode again.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "proto/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void decode(const struct wire_frame *f, struct wire_arena *in, struct wire_arena *out)
{
    struct strbuf again = {0};
    struct errmsg err;
    struct msg m;
    struct rpc r;
    char line[256];
    if (!wire_decode_msg(in, f, &m, &err)) {
        msg_describe(&m, line, sizeof line);
        struct msg *copy = msg_clone(&m);
        if (wire_encode_msg(out, copy, &again) || !again.n)
            abort();
        msg_free(copy);
    }
    if (!wire_decode_rpc(in, f, &r, &err) &&
        (wire_encode_rpc(out, f->stream, &r, &again) || !again.n))
        abort();
    struct copy c;
    if (!wire_decode_copy(in, f, &c, &err) && (wire_encode_copy(out, &c, &again) || !again.n))
        abort();
    strbuf_finish(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct wire_arena in = {.limit = 1 << 20}, out = {0};
    struct wire_decoder d;
    struct wire_frame f;
    struct errmsg err;
    wire_decoder_init(&d, 1 << 16);
    wire_decoder_feed(&d, data, size);
    while (!wire_decoder_next(&d, &f, &err))
        decode(&f, &in, &out);
    wire_decoder_finish(&d);
    wire_arena_finish(&in);
    wire_arena_finish(&out);
    return 0;
}
