// The tokenizer of a model folder: Hugging Face `tokenizer.json` (byte-level BPE) and
// `tokenizer_config.json`, giving the same ids and the same text as Hugging Face's library.
//
// Understood: model BPE (merges as strings or pairs, ignore_merges); normalizer NFC or none;
// pre-tokenizers Split (regex or string, all behaviors), ByteLevel, Digits and Sequences of them;
// added tokens with lstrip, rstrip, single_word, normalized; decoder ByteLevel. Anything else is
// refused by name when the folder is opened. Files are untrusted; errors name file and field.
//
// Threads: a tokenizer never changes once open; any number of threads may use it at once.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/strbuf.h"

struct tokenizer;

// A piece of a prompt. Added tokens (`<|im_start|>`, `<think>`) are recognised inside control
// segments only, so text from a client never becomes a control token. Otherwise the boundaries of
// segments do not show: the text of all segments is joined before it is split into words.
struct text_segment {
    const char *v; // borrowed; valid UTF-8, may hold NUL bytes
    size_t n;
    bool control;
};

// A growing array of token ids. Zero-initialise.
struct token_vec {
    int32_t *v; // owned
    size_t n, cap;
};
void token_vec_finish(struct token_vec *ids);

// Reads dir/tokenizer.json and, when there, dir/tokenizer_config.json and
// dir/generation_config.json (for the ids that end an answer). BAD_FILE or BAD_MODEL with the cause
// in *err. On success *out is the caller's, to be closed; close accepts NULL.
STATUS_MUST_USE enum status tokenizer_open(const char *dir, struct tokenizer **out,
                                           struct errmsg *err);
void tokenizer_close(struct tokenizer *t);

// Appends the ids of the segments to *ids; no beginning-of-sentence token is added. BAD_REQUEST:
// text that is not UTF-8; TOO_LARGE: the split regex gave up on this text, or more than 256 MiB. On
// failure *ids is as before.
STATUS_MUST_USE enum status tokenizer_encode(const struct tokenizer *t,
                                             const struct text_segment *segments, size_t n,
                                             struct token_vec *ids, struct errmsg *err);
// The same for one text. parse_special: added tokens in it are recognised, as Hugging Face does.
STATUS_MUST_USE enum status tokenizer_encode_text(const struct tokenizer *t, const char *text,
                                                  size_t n, bool parse_special,
                                                  struct token_vec *ids, struct errmsg *err);

// Appends the text of the ids to *out: valid UTF-8, broken characters as U+FFFD. Ids that name no
// token give nothing. skip_special drops the tokens marked special.
void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool skip_special,
                      struct strbuf *out);

// The bytes that a token stands for; maybe not a whole character. Borrowed until close. False, and
// *n_out 0, when the id names no token.
bool tokenizer_token_bytes(const struct tokenizer *t, int32_t id, const char **bytes_out,
                           size_t *n_out);
// The id of a token by its text: an added token ("</think>") or a word of the vocabulary as bytes.
// -1 when there is none.
int32_t tokenizer_find(const struct tokenizer *t, const char *text);
bool tokenizer_is_special(const struct tokenizer *t, int32_t id);
// One more than the largest id. The model's vocab_size may be larger (padding).
uint32_t tokenizer_vocab_size(const struct tokenizer *t);

int32_t tokenizer_bos(const struct tokenizer *t); // -1: none
// Whether a bare completion prompt begins with bos (chat templates write their own).
bool tokenizer_add_bos(const struct tokenizer *t);
// The ids that end an answer: eos of the tokenizer and of generation_config.json. Borrowed.
const int32_t *tokenizer_eos(const struct tokenizer *t, size_t *n_out);
bool tokenizer_is_eos(const struct tokenizer *t, int32_t id);
