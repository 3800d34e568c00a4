// What template_load.c recognises and template.c renders; no part of the interface.
#pragma once

#include "text/template.h"

enum family { FAMILY_DEEPSEEK, FAMILY_DEEPSEEK_V2, FAMILY_CHATML, FAMILY_LLAMA3 };

struct chat_template {
    enum family family;
    char *bos, *eos; // owned; bos_token and eos_token, "" when the model has none
    bool thinks, opens_think;

    // DEEPSEEK
    bool system_first;      // all system messages stand at the beginning, else in their places
    bool system_joined;     // system_first: joined by blank lines, else the last one counts
    bool strip_thoughts;    // of earlier answers, up to the last </think>
    bool strip_blanks;      // after it
    bool strip_after_tools; // also of answers that follow tool messages
    bool tools;             // tool messages are shown
    bool tools_newline;     // between them
    bool assistant_marker;  // belongs to the user's turn, not to the answer's

    // CHATML
    char *default_system; // owned; NULL: none
    bool tool_response;   // tool messages are shown as <tool_response> of the user

    // LLAMA3
    bool always_prompts; // whether or not a generation prompt is asked for
    bool system_always;  // knowledge and date stand in a system message that is always there
    bool asks_today;     // for the date, else:
    char *date;          // owned; the template's own
};
