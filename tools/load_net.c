// Chooses the transport by the URL's scheme and hands every call on to it.
#include <string.h>

#include "tools/load_net_impl.h"

struct load_net *load_net_open(const char *url, const struct load_net_handler *handler,
                               struct errmsg *err)
{
    if (!strncmp(url, "hadal://", 8))
        return load_rpc_open(url, handler, err);
    if (!strncmp(url, "http://", 7) || !strncmp(url, "https://", 8))
        return load_http_open(url, handler, err);
    errmsg_set(err, STATUS_BAD_CONFIG, "%s: must begin with http://, https:// or hadal://", url);
    return NULL;
}

void load_net_close(struct load_net *net)
{
    if (net)
        net->ops->close(net);
}

void load_net_start(struct load_net *net, struct load_stream *s, const char *body)
{
    net->ops->start(net, s, body);
}

void load_net_attach(struct load_net *net, struct load_stream *s)
{
    net->ops->attach(net, s);
}

void load_net_cut(struct load_net *net, struct load_stream *s)
{
    net->ops->cut(net, s);
}

bool load_net_break(struct load_net *net)
{
    if (net->ops->cut_all)
        net->ops->cut_all(net);
    return net->ops->cut_all != NULL;
}

void load_net_turn(struct load_net *net, int timeout_ms)
{
    net->ops->turn(net, timeout_ms);
}
