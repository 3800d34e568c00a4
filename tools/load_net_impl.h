// What a transport of load_net.h is made of.
#pragma once

#include "tools/load_net.h"

struct load_net_ops {
    void (*close)(struct load_net *net);
    void (*start)(struct load_net *net, struct load_stream *s, const char *body);
    void (*attach)(struct load_net *net, struct load_stream *s);
    void (*cut)(struct load_net *net, struct load_stream *s);
    void (*cut_all)(struct load_net *net); // NULL: each stream has a connection of its own
    void (*turn)(struct load_net *net, int timeout_ms);
};

// First member of each transport.
struct load_net {
    const struct load_net_ops *ops;
    struct load_net_handler handler;
};

struct load_net *load_http_open(const char *url, const struct load_net_handler *handler,
                                struct errmsg *err);
struct load_net *load_rpc_open(const char *url, const struct load_net_handler *handler,
                               struct errmsg *err);
