// What a load run found, for people and as JSON.
#pragma once

#include <jansson.h>
#include <stdio.h>

#include "tools/load_run.h"

// The caller's; json_decref.
json_t *load_report_json(const struct load_phase *p, struct load_result *r);
void load_report_print(FILE *to, const struct load_phase *p, struct load_result *r);
// Every stream that was started and not refused came to its end, whole and unchanged, and there
// was at least one.
bool load_report_good(const struct load_result *r);
