// Fuzz target of text/: the first byte of the input says what the rest is. `J` a tokenizer.json,
// `C` a tokenizer_config.json with a chat template, `R` a split expression and a text, anything
// else a text for a small tokenizer, cut into segments by its own bytes.
//
//   CC=clang meson setup FOLDER -Dfuzz=true -Db_sanitize=address,undefined -Db_lundef=false
//     -Dc_args=-fsanitize=fuzzer-no-link
//   ninja -C FOLDER tests/fuzz/fuzz_tokenizer
//   FOLDER/tests/fuzz/fuzz_tokenizer tests/fuzz/corpus/tokenizer
#include <assert.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/utf8.h"
#include "text/detok.h"
#include "text/reasoning.h"
#include "text/regex.h"
#include "text/template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void write_file(const char *dir, const char *name, const void *data, size_t n)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    if (!f || fwrite(data, 1, n, f) != n || fclose(f))
        abort();
}

static void remove_file(const char *dir, const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    unlink(path);
}

// Encodes and decodes: what comes out must be the text, unless the tokenizer changes it.
static void try_text(const struct tokenizer *t, const char *text, size_t n, bool same)
{
    struct token_vec ids = {0};
    struct strbuf whole = {0}, parts = {0}, thoughts = {0}, content = {0};
    struct text_segment segments[8];
    size_t k = 0, from = 0;
    for (size_t i = 0; i < n && k < 7; i++)
        if (text[i] == '|' || text[i] == ' ') {
            segments[k] = (struct text_segment){text + from, i - from, k % 2};
            k++;
            from = i;
        }
    segments[k] = (struct text_segment){text + from, n - from, k % 2};
    enum status s = tokenizer_encode(t, segments, k + 1, &ids, NULL);
    assert(utf8_valid(text, n) ? s == STATUS_OK || s == STATUS_TOO_LARGE : s == STATUS_BAD_REQUEST);
    tokenizer_decode(t, ids.v, ids.n, false, &whole);
    assert(s || !same || (whole.n == n && (!n || !memcmp(whole.v, text, n))));
    struct detok d;
    struct reasoning r;
    detok_init(&d, t, false);
    reasoning_init(&r, n & 1);
    for (size_t i = 0; i < ids.n; i++) {
        size_t before = parts.n;
        detok_push(&d, ids.v[i], &parts);
        if (parts.n > before)
            reasoning_push(&r, parts.v + before, parts.n - before, &thoughts, &content);
    }
    detok_flush(&d, &parts);
    reasoning_flush(&r, &thoughts, &content);
    assert(parts.n == whole.n && (!parts.n || !memcmp(parts.v, whole.v, parts.n)));
    assert(thoughts.n + content.n <= parts.n);
    reasoning_finish(&r);
    token_vec_finish(&ids);
    strbuf_finish(&whole);
    strbuf_finish(&parts);
    strbuf_finish(&thoughts);
    strbuf_finish(&content);
}

static void try_json(const char *dir, const uint8_t *data, size_t n)
{
    struct tokenizer *t = NULL;
    struct errmsg err = {0};
    write_file(dir, "tokenizer.json", data, n);
    if (tokenizer_open(dir, &t, &err) == STATUS_OK) {
        static const char text[] = "a <c>b  \xC3\xA9 abc<s>aaaa 123";
        try_text(t, text, strlen(text), false);
        try_text(t, (const char *)data, n, false);
    } else {
        assert(err.text[0]);
    }
    tokenizer_close(t);
    remove_file(dir, "tokenizer.json");
}

static void try_config(const char *dir, const uint8_t *data, size_t n)
{
    struct chat_template *t = NULL;
    struct segment_vec out = {0};
    const struct chat_message m[] = {{CHAT_SYSTEM, " a ", 3},
                                     {CHAT_USER, "b", 1},
                                     {CHAT_ASSISTANT, "<think>c</think> d", 18},
                                     {CHAT_TOOL, "e", 1}};
    write_file(dir, "tokenizer_config.json", data, n);
    if (chat_template_open(dir, &t, NULL) == STATUS_OK)
        for (size_t k = 0; k <= 4; k++)
            (void)!chat_template_render(
                t, &(struct chat_render_args){.messages = m, .n = k, .generation_prompt = k & 1},
                &out, NULL);
    segment_vec_finish(&out);
    chat_template_close(t);
    remove_file(dir, "tokenizer_config.json");
}

static void try_regex(const char *data, size_t n)
{
    static const char text[] = "Hello, w\xC3\xB6rld!  \r\n\t 123 \xE4\xB8\xAD\xF0\x9F\x98\x80's";
    struct regex *r = NULL;
    struct regex_scratch *scratch = regex_scratch_create();
    struct regex_iter it;
    size_t from, to, last = 0;
    if (scratch && regex_compile(data, n, &r, NULL) == STATUS_OK) {
        regex_iter_init(&it, r, scratch, text, strlen(text));
        while (regex_iter_next(&it, &from, &to) == STATUS_OK) {
            assert(last <= from && from <= to && to <= strlen(text));
            last = to;
        }
    }
    regex_scratch_destroy(scratch);
    regex_destroy(r);
}

// The tokenizer that texts go through: DeepSeek's shape, the 256 bytes, a few merges and tokens.
static struct tokenizer *make_small(const char *dir)
{
    struct tokenizer *t = NULL;
    struct errmsg err = {0};
    json_t *vocab = json_object();
    for (int b = 0, other = 256; b < 256; b++) {
        int c = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174 ? b : other++;
        char key[3] = {(char)c, 0, 0};
        if (c >= 0x80) {
            key[0] = (char)(0xC0 | c >> 6);
            key[1] = (char)(0x80 | (c & 0x3F));
        }
        json_object_set_new(vocab, key, json_integer(b));
    }
    json_object_set_new(vocab, "aa", json_integer(256));
    json_object_set_new(vocab, "ab", json_integer(257));
    json_object_set_new(vocab, "aaaa", json_integer(258));
    json_t *j = json_pack(
        "{s:{s:s, s:o, s:[s, s, s]}, s:{s:s}, s:{s:s, s:b}, s:[{s:i, s:s, s:b}, {s:i, s:s, s:b}]}",
        "model", "type", "BPE", "vocab", vocab, "merges", "a a", "a b", "aa aa", "decoder", "type",
        "ByteLevel", "pre_tokenizer", "type", "ByteLevel", "add_prefix_space", 0, "added_tokens",
        "id", 300, "content", "<c>", "normalized", 0, "id", 301, "content", "</think>", "special",
        1);
    char *text = json_dumps(j, JSON_COMPACT);
    write_file(dir, "tokenizer.json", text, strlen(text));
    free(text);
    json_decref(j);
    if (tokenizer_open(dir, &t, &err)) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    remove_file(dir, "tokenizer.json");
    return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char dir[] = "/tmp/hadal-fuzz-XXXXXX";
    if (!size)
        return 0;
    if (!mkdtemp(dir))
        abort();
    if (data[0] == 'J') {
        try_json(dir, data + 1, size - 1);
    } else if (data[0] == 'C') {
        try_config(dir, data + 1, size - 1);
    } else if (data[0] == 'R') {
        try_regex((const char *)data + 1, size - 1);
    } else {
        struct tokenizer *t = make_small(dir);
        try_text(t, (const char *)data + 1, size - 1, true);
        tokenizer_close(t);
    }
    rmdir(dir);
    return 0;
}
