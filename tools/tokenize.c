// hadal tokenize: texts to token ids and back, a JSON object per line. What a line cannot give is
// told in its place, so that output lines match input lines; the exit code tells at the end.
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/strbuf.h"
#include "base/utf8.h"
#include "text/tokenizer.h"
#include "tools/cmd.h"
#include "tools/cmdline.h"
#include "tools/sample_model.h"

struct tokenize {
    struct tokenizer *tokenizer;
    struct token_vec ids;
    struct strbuf decoded, line;
    size_t line_i, failed;
};

// Text as JSON. The three line ends outside ASCII are escaped: readers that split their input into
// lines by Unicode's rules (Python's splitlines) would break the object there.
static void print_text(struct strbuf *out, const char *s, size_t n)
{
    static const char *const ends[][2] = {
        {"\xC2\x85", "\\u0085"}, {"\xE2\x80\xA8", "\\u2028"}, {"\xE2\x80\xA9", "\\u2029"}};
    struct strbuf json = {0};
    strbuf_json(&json, s, n);
    for (size_t i = 0; i < json.n;) {
        size_t e = 0;
        while (e < 3 && strncmp(json.v + i, ends[e][0], strlen(ends[e][0])))
            e++;
        if (e < 3)
            strbuf_puts(out, ends[e][1]);
        else
            strbuf_add(out, json.v + i, 1);
        i += e < 3 ? strlen(ends[e][0]) : 1;
    }
    strbuf_finish(&json);
}

static void print_ids(struct tokenize *k)
{
    strbuf_puts(&k->line, "{\"ids\":[");
    for (size_t i = 0; i < k->ids.n; i++)
        strbuf_printf(&k->line, i ? ",%d" : "%d", k->ids.v[i]);
    strbuf_puts(&k->line, "],\"decoded\":");
    print_text(&k->line, k->decoded.v, k->decoded.n);
    strbuf_puts(&k->line, "}\n");
}

static void print_error(struct tokenize *k, const char *cause)
{
    k->failed++;
    fprintf(stderr, "hadal tokenize: line %zu: %s\n", k->line_i, cause);
    strbuf_printf(&k->line, "{\"error\":");
    strbuf_json(&k->line, cause, utf8_valid_prefix(cause, strlen(cause))); // it may be cut short
    strbuf_puts(&k->line, "}\n");
}

static enum status encode_line(struct tokenize *k, const char *line, size_t n, struct errmsg *err)
{
    json_error_t why;
    json_t *o = json_loadb(line, n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &why);
    if (!o)
        return errmsg_set(err, STATUS_BAD_REQUEST, "not JSON: %s (column %d)", why.text,
                          why.column);
    const json_t *text = json_object_get(o, "text");
    enum status s = json_is_string(text)
                        ? tokenizer_encode_text(k->tokenizer, json_string_value(text),
                                                json_string_length(text), true, &k->ids, err)
                        : errmsg_set(err, STATUS_BAD_REQUEST, "expected {\"text\": \"...\"}");
    json_decref(o);
    return s;
}

static void tokenize_line(struct tokenize *k, const char *line, size_t n)
{
    struct errmsg err = {0};
    k->ids.n = 0;
    strbuf_clear(&k->decoded);
    strbuf_clear(&k->line);
    if (encode_line(k, line, n, &err)) {
        print_error(k, err.text);
    } else {
        tokenizer_decode(k->tokenizer, k->ids.v, k->ids.n, false, &k->decoded);
        print_ids(k);
    }
    fwrite(k->line.v, 1, k->line.n, stdout);
}

static int tokenize_stdin(struct tokenize *k)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    while ((n = getline(&line, &cap, stdin)) >= 0) {
        k->line_i++;
        if (strspn(line, " \t\r\n") == (size_t)n)
            continue;
        tokenize_line(k, line, (size_t)n);
    }
    free(line);
    if (ferror(stdin) || fflush(stdout) || ferror(stdout)) {
        perror("hadal tokenize");
        return CMD_FAILED;
    }
    return k->failed ? CMD_FAILED : CMD_OK;
}

int cmd_tokenize(int argc, char **argv)
{
    const char *model = sample_model();
    const struct cmdline_opt opts[] = {
        {"--model", CMDLINE_STRING, &model, "DIR", .help = "model folder (the sample model)"},
        {0},
    };
    const struct cmdline c = {
        .usage = "hadal tokenize [--model DIR] <TEXTS >IDS",
        .about =
            "Reads lines {\"text\": \"...\"} and writes for each a line\n"
            "{\"ids\":[...],\"decoded\":\"...\"}. Added tokens in the text are recognised; none\n"
            "is put before or after it. A line that cannot be read gives {\"error\":\"...\"}; the\n"
            "exit code is then 1. Blank lines are skipped.",
        .opts = opts,
        .after =
            "Examples:\n"
            "  echo '{\"text\": \"Hello\"}' | hadal tokenize\n"
            "  jq -c '.[] | {text}' encodings.json | hadal tokenize --model /models/DeepSeek-V3\n",
    };
    int rc = cmdline_parse(&c, argc, argv, NULL, NULL);
    if (rc != CMDLINE_GO)
        return rc;
    struct tokenize k = {0};
    struct errmsg err = {.text = "no sample model here, --model is needed"};
    if (!model || tokenizer_open(model, &k.tokenizer, &err)) {
        fprintf(stderr, "hadal tokenize: %s\n", err.text);
        return CMD_FAILED;
    }
    rc = tokenize_stdin(&k);
    tokenizer_close(k.tokenizer);
    token_vec_finish(&k.ids);
    strbuf_finish(&k.decoded);
    strbuf_finish(&k.line);
    return rc;
}
