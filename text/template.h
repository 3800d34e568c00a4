// Chat templates: messages of a conversation -> the segments of a prompt. Templates are published
// as Jinja programs (`chat_template` in tokenizer_config.json, or chat_template.jinja). None is
// executed: the families below are recognised by their marks, with the details in which their
// members differ, and everything else is refused with the first bytes of the template.
//
//   DEEPSEEK     V3, V3-0324, R1, R1-0528, R1's Qwen and Llama distillations, the sample model
//   DEEPSEEK_V2  V2, V2-Lite: "User: ...\n\nAssistant: ..."
//   CHATML       Qwen1.5, Qwen2, Qwen2.5
//   LLAMA3       Llama 3, 3.1, 3.2, 3.3
//
// Threads: a template never changes once open.
#pragma once

#include "text/tokenizer.h"

enum chat_role { CHAT_SYSTEM, CHAT_USER, CHAT_ASSISTANT, CHAT_TOOL };
// "system", "developer" (the same), "user", "assistant", "tool"; false for others.
bool chat_role_parse(const char *name, enum chat_role *out);

struct chat_message {
    enum chat_role role;
    const char *content; // borrowed; valid UTF-8
    size_t n;
};

// The segments of a prompt. Zero-initialise. Their text is borrowed from the messages, from the
// arguments and from the template.
struct segment_vec {
    struct text_segment *v; // owned
    size_t n, cap;
};
void segment_vec_finish(struct segment_vec *s);

struct chat_template;

STATUS_MUST_USE enum status chat_template_open(const char *dir, struct chat_template **out,
                                               struct errmsg *err);
void chat_template_close(struct chat_template *t);

struct chat_render_args {
    const struct chat_message *messages;
    size_t n;
    bool generation_prompt; // end with the words that make the assistant speak
    const char *today;      // "22 Nov 2026", for templates that print the date; NULL: their default
};
// Appends to *out. BAD_REQUEST: no messages; UNSUPPORTED: a role that this template cannot show.
// On failure *out is as before.
STATUS_MUST_USE enum status chat_template_render(const struct chat_template *t,
                                                 const struct chat_render_args *args,
                                                 struct segment_vec *out, struct errmsg *err);

// For logs: "deepseek", "chatml", ...
const char *chat_template_family(const struct chat_template *t);
// The model may think aloud between <think> and </think>.
bool chat_template_thinks(const struct chat_template *t);
// The generation prompt ends with "<think>\n", so the answer begins inside the thoughts.
bool chat_template_opens_think(const struct chat_template *t);
