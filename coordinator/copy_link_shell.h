// A connection to another coordinator's RPC port: connects, seals, cuts into frames, writes. What is
// said on it is its owner's.
#pragma once

#include "coordinator/main_shell.h"
#include "proto/copy.h"
#include "proto/wire.h"

struct copy_link;

struct copy_link_args {
    struct shell *shell;
    const struct sockaddr_storage *to;
    void (*up)(void *arg); // connected
    // A frame came; an error ends the link.
    enum status (*frame)(void *arg, const struct wire_frame *f, struct errmsg *err);
    void (*read)(void *arg); // all frames of one read were told
    // It is no more; not when copy_link_drop was called. `was_up`: `up` was called.
    void (*down)(void *arg, const char *why, bool was_up);
    void *arg;
};

struct copy_link *copy_link_open(const struct copy_link_args *args);
void copy_link_say(struct copy_link *l, const struct copy *c);
void copy_link_drop(struct copy_link *l); // NULL is fine
uint64_t copy_link_heard_us(const struct copy_link *l); // the last time
// It was not heard of for so long, or does not even connect.
bool copy_link_silent(const struct copy_link *l, uint64_t now_us);
