/* libhadal: a C client of Hadal's RPC. Needs nothing but this header and -lhadal.
 *
 *     struct hadal_error err;
 *     struct hadal_client *c = hadal_open("hadal://10.0.0.1:7070,10.0.0.2:7070", NULL, &err);
 *     struct hadal_request q = HADAL_REQUEST_INIT;
 *     q.text = "Once upon a time"; q.text_n = 16;
 *     struct hadal_stream *s = hadal_generate(c, &q, &err);
 *     struct hadal_event ev;
 *     while (hadal_next(s, -1, &ev, &err) == HADAL_OK)
 *         fwrite(ev.text, 1, ev.text_n, stdout);
 *     hadal_stream_close(s);
 *     hadal_close(c);
 *
 * A connection that breaks is taken up again by itself: the stream goes on after the last token
 * that arrived, on the same coordinator or the next one of the list. No token comes twice, none is
 * left out; what cannot be taken up again ends in HADAL_FAILED.
 *
 * Threads: a client and its streams belong to one thread at a time. Any number of clients.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HADAL_API __attribute__((visibility("default")))

struct hadal_client;
struct hadal_stream;

enum hadal_result {
    HADAL_OK,
    HADAL_TIMEOUT, /* nothing came in time; ask again */
    HADAL_END,     /* the answer is complete, and everything was told */
    HADAL_FAILED,  /* *err says why; final */
};

struct hadal_error {
    int code;        /* numbered as gRPC's status codes: 3 = INVALID_ARGUMENT, 14 = UNAVAILABLE */
    char reason[64]; /* a word for programs: "queue_full"; "" when there is none */
    char text[512];  /* a sentence for people */
    uint32_t retry_after_ms; /* 0 = trying again does not help, or is not known to */
};

struct hadal_options {
    uint32_t connect_ms; /* for one attempt to connect; 0 = 2000 */
    uint32_t retry_ms;   /* how long a broken connection is tried again; 0 = 30000 */
    uint32_t window;     /* tokens of a stream on their way at once; 0 = 256 */
};

struct hadal_message {
    const char *role; /* "system", "user", "assistant" */
    const char *content;
    size_t content_n;
};

struct hadal_text {
    const char *v;
    size_t n;
};

/* Exactly one of messages (a conversation), text and ids. Negative numbers (NaN for the penalties
 * that may be negative) = the model's default. Borrowed until hadal_generate returns. */
struct hadal_request {
    const char *model; /* NULL = the one served */
    const struct hadal_message *messages;
    size_t messages_n;
    const char *text;
    size_t text_n;
    const int32_t *ids;
    size_t ids_n;
    uint32_t max_tokens; /* 0 = to the end of the context */
    const struct hadal_text *stop;
    size_t stop_n;
    bool has_seed;
    uint64_t seed;
    float temperature, top_p, min_p, repetition_penalty;
    float presence_penalty, frequency_penalty;
    int32_t top_k;
    bool logprobs;
    uint32_t top_logprobs;
    uint8_t priority;    /* 0..9, 9 = most urgent */
    const char *session; /* requests of one session go to one replica while they can; NULL = none */
    uint32_t deadline_ms; /* of the first token: refused rather than later; 0 = none */
    const char *user;     /* the end user, where the service shares by users; NULL = none */
    const char *key;      /* API key; NULL = none */
};
#define HADAL_REQUEST_INIT                                                                         \
    {                                                                                              \
        .temperature = -1, .top_p = -1, .min_p = -1, .repetition_penalty = -1,                     \
        .presence_penalty = __builtin_nanf(""), .frequency_penalty = __builtin_nanf(""),           \
        .top_k = -1, .priority = 5                                                                 \
    }

struct hadal_logprob {
    int32_t token;
    float value; /* natural logarithm */
};

struct hadal_token {
    int32_t id;
    float logprob; /* 0 when not asked for */
    const struct hadal_logprob *top;
    uint32_t top_n;
};

enum hadal_event_kind {
    HADAL_ACCEPTED, /* request, prompt_tokens */
    HADAL_QUEUED,   /* position, eta_ms */
    HADAL_TOKENS,   /* first, tokens, text, thoughts */
    HADAL_DONE,     /* finish, counts; text and thoughts that came only with the end */
};

/* Everything in it is valid until the next call for the same stream. Text is UTF-8 and never ends
 * inside a character; it may lag behind the tokens. */
struct hadal_event {
    enum hadal_event_kind kind;
    uint64_t request;
    uint32_t position, eta_ms;
    uint32_t first; /* index of the first of `tokens` in the answer */
    const struct hadal_token *tokens;
    size_t tokens_n;
    const char *text;
    size_t text_n;
    const char *thoughts; /* what the model thinks before it answers */
    size_t thoughts_n;
    const char *finish; /* "stop", "length", "cancelled" */
    uint32_t prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens;
};

/* "hadal://host:port[,host:port...][?key_file=PATH]"; the scheme may be left out. With a key file the
 * two prove to each other that they have it (the coordinators' client_key), and what they say is
 * encrypted. Does not connect yet. NULL: *err says why. options may be NULL; err may be NULL everywhere. */
HADAL_API struct hadal_client *hadal_open(const char *url, const struct hadal_options *options,
                                          struct hadal_error *err);
/* Closes its streams too, but cancels none: requests go on for the coordinator's grace time, and
 * hadal_attach may take them up elsewhere. */
HADAL_API void hadal_close(struct hadal_client *c);

HADAL_API struct hadal_stream *hadal_generate(struct hadal_client *c, const struct hadal_request *q,
                                              struct hadal_error *err);
/* Takes up a request of another connection or process: its answer from token `from` on. */
HADAL_API struct hadal_stream *hadal_attach(struct hadal_client *c, uint64_t request, uint32_t from,
                                            struct hadal_error *err);
/* Waits for what comes next, at most timeout_ms (-1 = for ever). While it waits, other streams of
 * the client move on too. */
HADAL_API enum hadal_result hadal_next(struct hadal_stream *s, int timeout_ms,
                                       struct hadal_event *ev, struct hadal_error *err);
/* Asks for the end; hadal_next then gives HADAL_DONE with finish "cancelled", or what came before.
 */
HADAL_API void hadal_cancel(struct hadal_stream *s);
/* An answer that is not complete is cancelled. */
HADAL_API void hadal_stream_close(struct hadal_stream *s);

HADAL_API const char *hadal_code_name(int code); /* "UNAVAILABLE"; NULL for an unknown one */

#ifdef __cplusplus
}
#endif
