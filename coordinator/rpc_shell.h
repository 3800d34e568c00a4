// Inside of rpc_shell.c (connections) and rpc_stream_shell.c (what clients ask on them).
#pragma once

#include "coordinator/main_shell.h"
#include "proto/secure.h"

enum rpc_role { RPC_CONN_NEW, RPC_CONN_NODE, RPC_CONN_CLIENT, RPC_CONN_COPY };

struct rpc_stream;

struct rpc_conn {
    uv_tcp_t tcp;
    uv_write_t write;
    UT_hash_handle hh; // by id
    struct rpc_server *server;
    uint64_t id;
    enum rpc_role role;
    char peer[64];
    struct wire_decoder in;
    struct secure *secure; // owned; NULL: in the clear
    struct strbuf wire;    // of `secure`: sealed, not written yet
    struct strbuf out;     // not written yet, in the clear
    struct strbuf sending; // being written
    bool writing, closing, frames_posted, flush_listed;
    struct rpc_conn *flush_next;
    uint64_t since_us;
    uint64_t heard_us, asked_us; // last bytes from it; last PING since then, 0 = none
    struct rpc_stream *streams;  // hash by stream id
    unsigned streams_n;
};

struct rpc_server {
    struct shell *shell;
    uv_tcp_t listener;
    struct rpc_conn *conns; // hash
    struct rpc_conn *flush; // list of those with something to write
    uint64_t next_id;
    size_t in_bytes; // buffers of all decoders
    struct wire_arena decode, encode;
    struct strbuf plain; // of one read
    char read_buffer[64 << 10];
};

void rpc_conn_send(struct rpc_conn *c, uint32_t stream, const struct rpc *r);
// Takes no more for now: what it has not read yet must not grow.
bool rpc_conn_congested(const struct rpc_conn *c);
void rpc_conn_close(struct rpc_conn *c, const char *why); // why NULL: not worth a word

// A frame of a client.
void rpc_stream_frame(struct rpc_conn *c, const struct wire_frame *f);
// All streams of the connection may write again, or have gone with it.
void rpc_streams_pump(struct rpc_conn *c);
void rpc_streams_drop(struct rpc_conn *c);
