// Added tokens: texts that are tokens as a whole ("<|im_start|>"), found before the text is cut
// into words. Leftmost and longest, as Hugging Face's library finds them.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct added_token {
    char *v; // owned
    size_t n;
    int32_t id;
    bool special;
    bool normalized; // looked for in the normalized text
    bool lstrip, rstrip, single_word;
};

enum { ADDED_BYTES_MAX = 512 }; // of one token

// A set of tokens to look for. Zero-initialise.
struct added_set {
    const struct added_token **tokens; // owned array of borrowed tokens
    size_t n, cap;
    struct added_node *nodes; // a trie of bytes; [0] is the root
    size_t nodes_n, nodes_cap;
    int32_t first[256]; // children of the root, 0 when none
};
void added_set_add(struct added_set *s, const struct added_token *token);
void added_set_finish(struct added_set *s);

// The control parts of a text: consecutive runs, the last of which ends with the text.
struct control_run {
    size_t to;
    bool control;
};

// Walks the tokens in text[from..to) that lie in control runs. Initialise with from, to, and the
// runs (of the whole text).
struct added_iter {
    const struct added_set *set;
    const char *text;
    size_t from, to;
    const struct control_run *runs;
    size_t at;    // search from here
    size_t given; // end of the last token, blanks that it strips included
    bool begun;
};
// The next token and the part of the text that it covers; NULL after the last.
const struct added_token *added_next(struct added_iter *it, size_t *from_out, size_t *to_out);
