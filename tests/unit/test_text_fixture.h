// What the tests of text/ share: folders with model files in them, and a small valid tokenizer.
// The programs run in the root of the repository.
#pragma once

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/mem.h"
#include "base/strbuf.h"
#include "text/tokenizer.h"

#define SAMPLE "models/sample"

// The folder of the shared data that is not committed; skips loudly when `name` is not there.
static inline const char *shared_or_skip(const char *name)
{
    static char path[1024];
    const char *root = getenv("HADAL_SHARED");
    snprintf(path, sizeof path, "%s/%s", root ? root : "../shared", name);
    if (access(path, R_OK)) {
        fprintf(stderr, "SKIPPED: %s is not there (set HADAL_SHARED)\n", path);
        skip();
    }
    return path;
}

static inline char *folder_make(void)
{
    static char name[64];
    snprintf(name, sizeof name, "/tmp/hadal-text-XXXXXX");
    assert_non_null(mkdtemp(name));
    return name;
}

static inline void folder_write(const char *dir, const char *name, const char *text, size_t n)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static inline void folder_write_json(const char *dir, const char *name, const json_t *j)
{
    char *text = json_dumps(j, JSON_COMPACT);
    assert_non_null(text);
    folder_write(dir, name, text, strlen(text));
    free(text);
}

static inline void folder_remove(const char *dir)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json",
                                        "generation_config.json", "chat_template.jinja"};
    char path[256];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    assert_int_equal(rmdir(dir), 0);
}

// A tokenizer whose ids 0..255 are the bytes, 256.. the merges below, 300.. the added tokens:
// "<c>" (control), "<s>" (special), "<l>" (strips blanks), "<w>" (single word), "<n>" (normalized).
static inline json_t *small_tokenizer(void)
{
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
    static const char *const merges[][3] = {{"a", "b", "ab"},
                                            {"ab", "c", "abc"},
                                            {"b", "c", "bc"},
                                            {"a", "a", "aa"},
                                            {"aa", "aa", "aaaa"}};
    json_t *list = json_array();
    for (size_t i = 0; i < sizeof merges / sizeof *merges; i++) {
        json_object_set_new(vocab, merges[i][2], json_integer(256 + (json_int_t)i));
        json_array_append_new(list, json_sprintf("%s %s", merges[i][0], merges[i][1]));
    }
    static const char added[] =
        "[{'id':300,'content':'<c>','special':false,'normalized':false},"
        "{'id':301,'content':'<s>','special':true,'normalized':false},"
        "{'id':302,'content':'<l>','special':false,'normalized':false,'lstrip':true,'rstrip':true},"
        "{'id':303,'content':'<w>','special':false,'normalized':false,'single_word':true},"
        "{'id':304,'content':'<n>','special':false,'normalized':true},"
        "{'id':305,'content':'<c>!','special':false,'normalized':false}]";
    char *text = mem_strdup(added);
    for (char *p = text; (p = strchr(p, '\''));)
        *p = '"';
    json_t *tokens = json_loads(text, 0, NULL);
    free(text);
    assert_non_null(tokens);
    return json_pack("{s:o, s:{s:s, s:o, s:o}, s:n, s:{s:s, s:b, s:b}, s:{s:s}}", "added_tokens",
                     tokens, "model", "type", "BPE", "vocab", vocab, "merges", list, "normalizer",
                     "pre_tokenizer", "type", "ByteLevel", "add_prefix_space", 0, "use_regex", 1,
                     "decoder", "type", "ByteLevel");
}

// Opens a tokenizer of this content.
static inline enum status open_json(const json_t *j, struct tokenizer **out, struct errmsg *err)
{
    char *dir = folder_make();
    folder_write_json(dir, "tokenizer.json", j);
    enum status s = tokenizer_open(dir, out, err);
    folder_remove(dir);
    return s;
}
