// Recognises templates by the words that they print. A template that prints the words of a family
// but computes with something that no known member has is refused, not guessed at.
#include "text/template_impl.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/utf8.h"
#include "text/model_json.h"

enum { TEMPLATE_MAX = 1 << 20 };

struct marks {
    const char *text; // of the template, its \n escapes made newlines
};

static bool has(const struct marks *m, const char *mark)
{
    return strstr(m->text, mark) != NULL;
}

static bool has_all(const struct marks *m, const char *const *marks)
{
    for (; *marks; marks++)
        if (!has(m, *marks))
            return false;
    return true;
}

static bool has_any(const struct marks *m, const char *const *marks)
{
    for (; *marks; marks++)
        if (has(m, *marks))
            return true;
    return false;
}

static bool recognise_deepseek(const struct marks *m, struct chat_template *t)
{
    static const char *const wanted[] = {"bos_token", "'<｜User｜>' + ", "<｜Assistant｜>",
                                         "'<｜end▁of▁sentence｜>'", NULL};
    // V3.1 and later switch their thoughts on and off by variables.
    static const char *const unknown[] = {"thinking", "raise_exception", "strftime", NULL};
    if (!has_all(m, wanted) || has_any(m, unknown))
        return false;
    t->family = FAMILY_DEEPSEEK;
    t->system_first = has(m, "ns.system_prompt");
    t->system_joined = has(m, "is_first_sp");
    t->strip_thoughts = has(m, ".split('</think>')[-1]");
    t->strip_blanks = has(m, ".split('</think>')[-1].lstrip()");
    t->tools = has(m, "<｜tool▁outputs▁begin｜>");
    t->tools_newline = has(m, "'\n<｜tool▁output▁begin｜>'");
    t->assistant_marker =
        has(m, "content + '<｜Assistant｜>'") || has(m, "['content'] + '<｜Assistant｜>'");
    t->strip_after_tools = has(m, "'<｜tool▁outputs▁end｜>' + content +");
    t->opens_think = has(m, "'<｜Assistant｜><think>\n'");
    t->thinks = has(m, "</think>") || t->opens_think;
    // A "think" that none of the above accounts for is a template of another kind.
    return has(m, "think") == t->thinks && has(m, "</think>") == t->strip_thoughts;
}

static bool recognise_deepseek_v2(const struct marks *m, struct chat_template *t)
{
    static const char *const wanted[] = {"bos_token",
                                         "'User: ' + message['content'] + '\n\n'",
                                         "'Assistant: ' + message['content'] + eos_token",
                                         "message['content'] + '\n\n'",
                                         "'Assistant:'",
                                         NULL};
    t->family = FAMILY_DEEPSEEK_V2;
    return has_all(m, wanted);
}

// The words between <|im_start|>system and <|im_end|> in one string literal.
static char *default_system(const struct marks *m)
{
    static const char begin[] = "<|im_start|>system\n", end[] = "<|im_end|>";
    for (const char *s = m->text; (s = strstr(s, begin));) {
        s += strlen(begin);
        const char *e = strstr(s, end);
        if (e && !memchr(s, '\'', (size_t)(e - s)) && !memchr(s, '"', (size_t)(e - s))) {
            char *found = mem_zalloc((size_t)(e - s) + 1, 1);
            memcpy(found, s, (size_t)(e - s));
            return found;
        }
    }
    return NULL;
}

static bool recognise_chatml(const struct marks *m, struct chat_template *t)
{
    static const char *const wanted[] = {"'<|im_start|>' + message", "<|im_end|>",
                                         "'<|im_start|>assistant\n'", NULL};
    static const char *const ends[] = {"'<|im_end|>' + '\n'", "'<|im_end|>\n'", NULL};
    static const char *const unknown[] = {
        "think", "(loop.last and", "raise_exception", "strftime", "bos_token", "trim", NULL};
    if (!has_all(m, wanted) || !has_any(m, ends) || has_any(m, unknown))
        return false;
    t->family = FAMILY_CHATML;
    t->default_system = default_system(m);
    t->tool_response = has(m, "\n<tool_response>\n");
    return true;
}

// The literal in `set date_string = "26 Jul 2024"`.
static char *literal_date(const struct marks *m)
{
    static const char begin[] = "set date_string = \"";
    const char *s = strstr(m->text, begin);
    const char *e = s ? strchr(s + strlen(begin), '"') : NULL;
    if (!e)
        return NULL;
    s += strlen(begin);
    char *date = mem_zalloc((size_t)(e - s) + 1, 1);
    memcpy(date, s, (size_t)(e - s));
    return date;
}

static bool recognise_llama3(const struct marks *m, struct chat_template *t)
{
    static const char *const wanted[] = {"<|start_header_id|>", "<|eot_id|>", "bos_token",
                                         "<|start_header_id|>assistant<|end_header_id|>\n\n", NULL};
    static const char *const trims[] = {"['content'] | trim", "['content']|trim", NULL};
    static const char *const unknown[] = {"think", "raise_exception('Conversation", NULL};
    if (!has_all(m, wanted) || !has_any(m, trims) || has_any(m, unknown))
        return false;
    t->family = FAMILY_LLAMA3;
    t->always_prompts = !has(m, "add_generation_prompt");
    t->system_always = has(m, "Cutting Knowledge Date: December 2023\n");
    t->asks_today = has(m, "strftime_now(\"%d %b %Y\")");
    t->date = t->system_always ? literal_date(m) : NULL;
    return !t->system_always || (t->date && has(m, "Today Date: "));
}

// Makes a template's \n escapes newlines: files differ in who escapes.
static char *unescape(const char *s, size_t n)
{
    char *out = mem_zalloc(n + 1, 1);
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        bool newline = s[i] == '\\' && i + 1 < n && s[i + 1] == 'n';
        out[k++] = newline ? '\n' : s[i];
        i += newline;
    }
    return out;
}

// Forgets what a family that did not match has set.
static void reset(struct chat_template *t)
{
    char *bos = t->bos, *eos = t->eos;
    free(t->default_system);
    free(t->date);
    *t = (struct chat_template){.bos = bos, .eos = eos};
}

static enum status recognise(struct chat_template *t, const char *dir, const char *s, size_t n,
                             struct errmsg *err)
{
    static bool (*const families[])(const struct marks *, struct chat_template *) = {
        recognise_deepseek, recognise_deepseek_v2, recognise_chatml, recognise_llama3};
    char *text = unescape(s, n);
    struct marks m = {text};
    bool known = false;
    for (size_t i = 0; i < sizeof families / sizeof *families && !known; i++) {
        reset(t);
        known = strlen(text) && families[i](&m, t);
    }
    free(text);
    if (known)
        return STATUS_OK;
    return errmsg_set(err, STATUS_BAD_MODEL,
                      "%s: this chat template is not supported; it begins: %.*s", dir,
                      (int)utf8_valid_prefix(s, n < 60 ? n : 60), s);
}

// The template of tokenizer_config.json: a string, or the one named "default" of a list.
static const json_t *config_template(const json_t *config)
{
    const json_t *v = json_object_get(config, "chat_template"), *item;
    size_t i;
    if (!json_is_array(v))
        return json_is_string(v) ? v : NULL;
    json_array_foreach(v, i, item)
    {
        const char *name = json_string_value(json_object_get(item, "name"));
        const json_t *text = json_object_get(item, "template");
        if (name && !strcmp(name, "default") && json_is_string(text))
            return text;
    }
    return NULL;
}

// dir/chat_template.jinja, which takes precedence. NOT_FOUND when there is none.
static enum status read_jinja(const char *dir, char **out, size_t *n_out, struct errmsg *err)
{
    char path[1200];
    snprintf(path, sizeof path, "%s/chat_template.jinja", dir);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return STATUS_NOT_FOUND;
    char *text = mem_alloc(TEMPLATE_MAX + 1);
    size_t n = 0;
    ssize_t got;
    while (n <= TEMPLATE_MAX && (got = read(fd, text + n, TEMPLATE_MAX + 1 - n)) > 0)
        n += (size_t)got;
    close(fd);
    if (n > TEMPLATE_MAX || !utf8_valid(text, n)) {
        free(text);
        return errmsg_set(err, STATUS_BAD_FILE, "%s: not UTF-8 of at most %d bytes", path,
                          TEMPLATE_MAX);
    }
    *out = text;
    *n_out = n;
    return STATUS_OK;
}

static enum status load(struct chat_template *t, const char *dir, const json_t *config,
                        struct errmsg *err)
{
    const json_t *in_config = config_template(config);
    const char *bos = model_json_token(json_object_get(config, "bos_token"));
    char *jinja = NULL;
    size_t n = 0;
    const char *eos = model_json_token(json_object_get(config, "eos_token"));
    t->bos = mem_strdup(bos ? bos : "");
    t->eos = mem_strdup(eos ? eos : "");
    enum status s = read_jinja(dir, &jinja, &n, err);
    if (s == STATUS_OK)
        s = recognise(t, dir, jinja, n, err);
    else if (s == STATUS_NOT_FOUND && in_config)
        s = recognise(t, dir, json_string_value(in_config), json_string_length(in_config), err);
    else if (s == STATUS_NOT_FOUND)
        s = errmsg_set(err, STATUS_BAD_MODEL, "%s: no chat_template in tokenizer_config.json", dir);
    free(jinja);
    return s;
}

enum status chat_template_open(const char *dir, struct chat_template **out, struct errmsg *err)
{
    json_t *config;
    enum status s =
        model_json_load(dir, "tokenizer_config.json", JSON_DECODE_INT_AS_REAL, &config, err);
    if (s)
        return s == STATUS_NOT_FOUND ? STATUS_BAD_MODEL : s;
    struct chat_template *t = mem_zalloc(1, sizeof *t);
    s = load(t, dir, config, err);
    json_decref(config);
    if (s)
        chat_template_close(t);
    else
        *out = t;
    return s;
}

void chat_template_close(struct chat_template *t)
{
    if (!t)
        return;
    free(t->bos);
    free(t->eos);
    free(t->default_system);
    free(t->date);
    free(t);
}
