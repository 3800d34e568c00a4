// Inside of store.c: what a body of the seam is.
#pragma once

#include <stddef.h>

#include "coordinator/store.h"

struct store_body {
    const char *scheme; // "file"
    uint32_t period_ms; // between two ticks
    // `rest`: behind "scheme:". NULL: *err says why.
    void *(*open)(const struct store_args *args, const char *rest, struct errmsg *err);
    // Tries to become or to stay leader; *next holds the last view.
    void (*tick)(void *body, struct store_view *next);
    // Leads no more.
    void (*yield)(void *body, struct store_view *next);
    // What is kept; NULL = nothing, or not reachable. The caller frees it.
    char *(*load)(void *body, struct store_view *next);
    bool (*save)(void *body, const char *text, struct store_view *next); // false: not there yet
    void (*close)(void *body);
};

extern const struct store_body store_file_body, store_etcd_body;

// "name\nhttp\nrpc\n" and back; false: it is something else.
void store_member_write(const struct store_member *m, char *out, size_t n);
bool store_member_read(const char *text, struct store_member *out);
