// The client RPC, as plain C structs: what a client and a coordinator say to each other over framed
// protobuf (proto/wire.h). Many streams share a connection; the frame's stream id, chosen by the
// client and used once per connection, names the stream.
//
//   client                                   coordinator
//   GENERATE | ATTACH  ------------------->
//                      <-------------------  ACCEPTED, QUEUED*, TOKENS*, DONE     or ERROR
//   CREDIT*, CANCEL    ------------------->
//   PING (stream 0)    <------------------>  PONG
//
// Flow control: the coordinator sends TOKENS for at most `window` tokens beyond what CREDIT gave
// back; tokens not sent stay in the request's journal, so a slow client costs nothing.
//
// Broken connection: ATTACH with the request id of ACCEPTED and the number of tokens already
// received goes on there, on any connection, while the request runs and for a retention time after.
// TOKENS says which tokens it carries, so nothing is lost or repeated.
//
// Ownership: as in proto/msg.h, a struct borrows every array and string in it.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/msg.h"

enum rpc_kind {
    // client -> coordinator
    RPC_GENERATE = 64,
    RPC_ATTACH,
    RPC_CANCEL,
    RPC_CREDIT,
    RPC_PING, // both ways
    // coordinator -> client
    RPC_ACCEPTED = 96,
    RPC_QUEUED,
    RPC_TOKENS,
    RPC_DONE,
    RPC_ERROR,
    RPC_PONG, // both ways
};
const char *rpc_kind_name(enum rpc_kind k);

// Numbers and names are gRPC's.
enum rpc_code {
    RPC_CODE_OK = 0,
    RPC_CODE_CANCELLED = 1,
    RPC_CODE_UNKNOWN = 2,
    RPC_CODE_INVALID_ARGUMENT = 3,
    RPC_CODE_DEADLINE_EXCEEDED = 4,
    RPC_CODE_NOT_FOUND = 5,
    RPC_CODE_ALREADY_EXISTS = 6,
    RPC_CODE_PERMISSION_DENIED = 7,
    RPC_CODE_RESOURCE_EXHAUSTED = 8,
    RPC_CODE_FAILED_PRECONDITION = 9,
    RPC_CODE_ABORTED = 10,
    RPC_CODE_OUT_OF_RANGE = 11,
    RPC_CODE_UNIMPLEMENTED = 12,
    RPC_CODE_INTERNAL = 13,
    RPC_CODE_UNAVAILABLE = 14,
    RPC_CODE_DATA_LOSS = 15,
    RPC_CODE_UNAUTHENTICATED = 16,
};
const char *rpc_code_name(enum rpc_code c); // "INVALID_ARGUMENT"; NULL for an unknown one
enum rpc_code rpc_code_from_status(enum status s);

enum {
    RPC_MESSAGES = 4096,      // of one conversation
    RPC_ROLE_BYTES = 32,      // with NUL
    RPC_SESSION_BYTES = 256,  // with NUL
    RPC_USER_BYTES = 512,     // with NUL; of user and key
    RPC_TEXT_BYTES = 8 << 20, // all text of one request
    RPC_WINDOW = 1 << 20,     // largest credit
};

// Bytes that must be UTF-8; may hold NUL.
struct rpc_text {
    const char *v;
    size_t n;
};

struct rpc_message {
    const char *role;
    struct rpc_text content;
};

// Which fields of `sampling` the client gave; the others get the model's defaults.
enum rpc_given {
    RPC_GIVEN_SEED = 1 << 0,
    RPC_GIVEN_TEMPERATURE = 1 << 1,
    RPC_GIVEN_TOP_P = 1 << 2,
    RPC_GIVEN_MIN_P = 1 << 3,
    RPC_GIVEN_TOP_K = 1 << 4,
    RPC_GIVEN_REPETITION = 1 << 5,
    RPC_GIVEN_PRESENCE = 1 << 6,
    RPC_GIVEN_FREQUENCY = 1 << 7,
    RPC_GIVEN_ALL = (1 << 8) - 1,
};

// Exactly one of messages (a conversation, gets the model's chat template), text and ids.
struct rpc_generate {
    const char *model; // "" = the one served
    const struct rpc_message *messages;
    uint32_t messages_n;
    struct rpc_text text;
    const int32_t *ids;
    uint32_t ids_n;
    struct sampling sampling; // logprobs, top_logprobs always count
    uint32_t given;
    uint32_t max_tokens; // 0 = to the end of the context
    const struct rpc_text *stop;
    uint32_t stop_n;
    uint8_t band;         // 0..9, 9 = most urgent
    const char *session;  // requests of one session go to one replica while they can; "" = none
    uint32_t deadline_ms; // to the first token; refused when it cannot be met; 0 = none
    uint32_t window;      // tokens the client is ready to take, 1..RPC_WINDOW
    const char *user;     // the end user, for fairness when the coordinator is told to; "" = none
    const char *key;      // API key; "" = none
};

struct rpc_attach {
    uint64_t request;
    uint32_t from; // tokens the client already has
    uint32_t window;
};

struct rpc_credit {
    uint32_t tokens; // 1..RPC_WINDOW
};

struct rpc_ping {
    uint64_t value; // comes back in PONG
};

struct rpc_accepted {
    uint64_t request;
    uint32_t prompt_tokens;
};

struct rpc_queued {
    uint32_t position, eta_ms;
};

struct rpc_token {
    int32_t id;
    float logprob;
    uint32_t top_n;
    const struct logprob *top;
};

// Tokens first .. first + tokens_n - 1, and the text that became certain with the last of them (a
// token may end inside a character or inside what could be a stop string).
struct rpc_tokens {
    uint32_t first;
    const struct rpc_token *tokens;
    uint32_t tokens_n;
    struct rpc_text text, reasoning;
};

struct rpc_done {
    enum finish_reason finish;
    uint32_t prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens;
    struct rpc_text text, reasoning; // what became certain only with the end
};

struct rpc_error {
    enum rpc_code code;
    const char *reason; // a word for programs: "queue_full"
    uint32_t retry_after_ms;
    const char *text; // a sentence for people
};

struct rpc {
    enum rpc_kind kind;
    union {
        struct rpc_generate generate;
        struct rpc_attach attach;
        struct rpc_credit credit;
        struct rpc_ping ping; // PING and PONG
        struct rpc_accepted accepted;
        struct rpc_queued queued;
        struct rpc_tokens tokens;
        struct rpc_done done;
        struct rpc_error error;
    };
};
