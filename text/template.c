// Prints conversations as the recognised templates do, each family in one function. Words of the
// template are control segments, words of the messages are not.
#include "text/template_impl.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "text/unichar.h"

static const char *const role_names[] = {"system", "user", "assistant", "tool"};

bool chat_role_parse(const char *name, enum chat_role *out)
{
    if (!strcmp(name, "developer"))
        name = "system";
    for (size_t i = 0; i < sizeof role_names / sizeof *role_names; i++)
        if (!strcmp(name, role_names[i])) {
            *out = (enum chat_role)i;
            return true;
        }
    return false;
}

void segment_vec_finish(struct segment_vec *s)
{
    free(s->v);
    *s = (struct segment_vec){0};
}

static void add(struct segment_vec *out, const char *s, size_t n, bool control)
{
    if (!n)
        return;
    MEM_GROW(out->v, out->n, out->cap);
    out->v[out->n++] = (struct text_segment){s, n, control};
}

static void words(struct segment_vec *out, const char *s)
{
    add(out, s, strlen(s), true);
}

static void content(struct segment_vec *out, const struct chat_message *m)
{
    add(out, m->content, m->n, false);
}

static void trimmed(struct segment_vec *out, const struct chat_message *m)
{
    const char *s = m->content;
    size_t n = m->n;
    unichar_strip_left(&s, &n);
    unichar_strip_right(&s, &n);
    add(out, s, n, false);
}

static enum status no_tools(struct errmsg *err)
{
    return errmsg_set(err, STATUS_UNSUPPORTED,
                      "this model's chat template does not show messages of role 'tool'");
}

// An earlier answer, or what of it stands after its thoughts.
static void answer(const struct chat_message *m, bool strip_thoughts, bool strip_blanks,
                   struct segment_vec *out)
{
    static const char tag[] = "</think>";
    const char *s = m->content, *end = s + m->n, *hit;
    bool cut = false;
    while (strip_thoughts && (hit = memmem(s, (size_t)(end - s), tag, strlen(tag)))) {
        s = hit + strlen(tag);
        cut = true;
    }
    size_t n = (size_t)(end - s);
    if (cut && strip_blanks)
        unichar_strip_left(&s, &n);
    add(out, s, n, false);
    words(out, "<｜end▁of▁sentence｜>");
}

static void system_messages(const struct chat_template *t, const struct chat_render_args *args,
                            struct segment_vec *out)
{
    const struct chat_message *last = NULL;
    for (size_t i = 0; i < args->n; i++) {
        const struct chat_message *m = &args->messages[i];
        if (m->role != CHAT_SYSTEM)
            continue;
        if (last && t->system_joined)
            words(out, "\n\n");
        if (t->system_joined)
            content(out, m);
        last = m;
    }
    if (last && !t->system_joined)
        content(out, last);
}

// What the last message was, as far as the next one's words depend on it.
struct turn {
    bool in_tools, tools_begun, last_user;
};

static void deepseek_tool(const struct chat_template *t, const struct chat_message *m,
                          struct turn *turn, struct segment_vec *out)
{
    words(out, !turn->tools_begun ? "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>"
               : t->tools_newline ? "\n<｜tool▁output▁begin｜>"
                                  : "<｜tool▁output▁begin｜>");
    content(out, m);
    words(out, "<｜tool▁output▁end｜>");
    *turn = (struct turn){.in_tools = true, .tools_begun = true};
}

static void deepseek_message(const struct chat_template *t, const struct chat_message *m,
                             struct turn *turn, struct segment_vec *out)
{
    switch (m->role) {
    case CHAT_SYSTEM:
        if (!t->system_first)
            content(out, m);
        return;
    case CHAT_USER:
        words(out, "<｜User｜>");
        content(out, m);
        if (t->assistant_marker)
            words(out, "<｜Assistant｜>");
        turn->in_tools = false;
        turn->last_user = true;
        return;
    case CHAT_ASSISTANT:
        if (turn->in_tools)
            words(out, "<｜tool▁outputs▁end｜>");
        else if (!t->assistant_marker)
            words(out, "<｜Assistant｜>");
        answer(m, t->strip_thoughts && (!turn->in_tools || t->strip_after_tools), t->strip_blanks,
               out);
        turn->in_tools = turn->last_user = false;
        return;
    case CHAT_TOOL:
        deepseek_tool(t, m, turn, out);
        return;
    }
}

static enum status render_deepseek(const struct chat_template *t,
                                   const struct chat_render_args *args, struct segment_vec *out,
                                   struct errmsg *err)
{
    struct turn turn = {0};
    words(out, t->bos);
    if (t->system_first)
        system_messages(t, args, out);
    for (size_t i = 0; i < args->n; i++) {
        if (args->messages[i].role == CHAT_TOOL && !t->tools)
            return no_tools(err);
        deepseek_message(t, &args->messages[i], &turn, out);
    }
    if (turn.in_tools)
        words(out, "<｜tool▁outputs▁end｜>");
    else if (args->generation_prompt && !(t->assistant_marker && turn.last_user))
        words(out, t->opens_think ? "<｜Assistant｜><think>\n" : "<｜Assistant｜>");
    return STATUS_OK;
}

static enum status render_deepseek_v2(const struct chat_template *t,
                                      const struct chat_render_args *args, struct segment_vec *out,
                                      struct errmsg *err)
{
    words(out, t->bos);
    for (size_t i = 0; i < args->n; i++) {
        const struct chat_message *m = &args->messages[i];
        if (m->role == CHAT_TOOL)
            return no_tools(err);
        if (m->role != CHAT_SYSTEM)
            words(out, m->role == CHAT_USER ? "User: " : "Assistant: ");
        content(out, m);
        words(out, m->role == CHAT_ASSISTANT ? t->eos : "\n\n");
    }
    if (args->generation_prompt)
        words(out, "Assistant:");
    return STATUS_OK;
}

// Consecutive tool messages share one turn of the user.
static void chatml_tool(const struct chat_render_args *args, size_t i, struct segment_vec *out)
{
    if (i == 0 || args->messages[i - 1].role != CHAT_TOOL)
        words(out, "<|im_start|>user");
    words(out, "\n<tool_response>\n");
    content(out, &args->messages[i]);
    words(out, "\n</tool_response>");
    if (i + 1 == args->n || args->messages[i + 1].role != CHAT_TOOL)
        words(out, "<|im_end|>\n");
}

static enum status render_chatml(const struct chat_template *t, const struct chat_render_args *args,
                                 struct segment_vec *out, struct errmsg *err)
{
    if (t->default_system && args->messages[0].role != CHAT_SYSTEM) {
        words(out, "<|im_start|>system\n");
        words(out, t->default_system);
        words(out, "<|im_end|>\n");
    }
    for (size_t i = 0; i < args->n; i++) {
        const struct chat_message *m = &args->messages[i];
        if (m->role == CHAT_TOOL && !t->tool_response)
            return no_tools(err);
        if (m->role == CHAT_TOOL) {
            chatml_tool(args, i, out);
            continue;
        }
        words(out, "<|im_start|>");
        words(out, role_names[m->role]);
        words(out, "\n");
        content(out, m);
        words(out, "<|im_end|>\n");
    }
    if (args->generation_prompt)
        words(out, "<|im_start|>assistant\n");
    return STATUS_OK;
}

static void llama3_header(const char *role, struct segment_vec *out)
{
    words(out, "<|start_header_id|>");
    words(out, role);
    words(out, "<|end_header_id|>\n\n");
}

// The system message of 3.1 and later. True when it took the first message.
static bool llama3_system(const struct chat_template *t, const struct chat_render_args *args,
                          struct segment_vec *out)
{
    bool takes = args->messages[0].role == CHAT_SYSTEM;
    llama3_header("system", out);
    words(out, "Cutting Knowledge Date: December 2023\nToday Date: ");
    words(out, t->asks_today && args->today ? args->today : t->date);
    words(out, "\n\n");
    if (takes)
        trimmed(out, &args->messages[0]);
    words(out, "<|eot_id|>");
    return takes;
}

static enum status render_llama3(const struct chat_template *t, const struct chat_render_args *args,
                                 struct segment_vec *out, struct errmsg *err)
{
    words(out, t->bos);
    for (size_t i = t->system_always && llama3_system(t, args, out); i < args->n; i++) {
        const struct chat_message *m = &args->messages[i];
        if (m->role == CHAT_TOOL)
            return no_tools(err);
        llama3_header(role_names[m->role], out);
        trimmed(out, m);
        words(out, "<|eot_id|>");
    }
    if (args->generation_prompt || t->always_prompts)
        llama3_header("assistant", out);
    return STATUS_OK;
}

static const struct {
    const char *name;
    enum status (*render)(const struct chat_template *t, const struct chat_render_args *args,
                          struct segment_vec *out, struct errmsg *err);
} families[] = {
    [FAMILY_DEEPSEEK] = {"deepseek", render_deepseek},
    [FAMILY_DEEPSEEK_V2] = {"deepseek-v2", render_deepseek_v2},
    [FAMILY_CHATML] = {"chatml", render_chatml},
    [FAMILY_LLAMA3] = {"llama3", render_llama3},
};

enum status chat_template_render(const struct chat_template *t, const struct chat_render_args *args,
                                 struct segment_vec *out, struct errmsg *err)
{
    if (!args->n)
        return errmsg_set(err, STATUS_BAD_REQUEST, "messages: at least one is needed");
    size_t before = out->n;
    enum status s = families[t->family].render(t, args, out, err);
    if (s)
        out->n = before;
    return s;
}

const char *chat_template_family(const struct chat_template *t)
{
    return families[t->family].name;
}

bool chat_template_thinks(const struct chat_template *t)
{
    return t->thinks;
}

bool chat_template_opens_think(const struct chat_template *t)
{
    return t->opens_think;
}
