// What tokenizer_load.c builds and tokenizer.c uses; no part of the interface.
#pragma once

#include "text/added.h"
#include "text/bpe.h"
#include "text/pretok.h"
#include "text/tokenizer.h"

struct token_text {
    uint32_t at, n; // in tokenizer.bytes
    bool exists, special;
};

enum { EOS_MAX = 16 };

struct tokenizer {
    struct bpe *bpe;
    struct pretok *pretok;
    bool nfc;
    struct added_token *added; // owned, added_n of them; the sets borrow them
    size_t added_n;
    struct added_set raw, normalized; // looked for before and after normalization
    struct token_text *tokens;        // by id, `size` of them
    uint32_t size;
    struct strbuf bytes;
    int32_t bos;
    bool add_bos;
    int32_t eos[EOS_MAX];
    size_t eos_n;
};
