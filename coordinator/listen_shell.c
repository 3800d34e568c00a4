// Addresses of the configuration, and the sockets that listen on them.
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/main_shell.h"

enum status shell_address(const char *key, const char *text, struct sockaddr_storage *out,
                                 struct errmsg *err)
{
    char host[256];
    const char *colon = strrchr(text, ':');
    if (!colon || colon == text || (size_t)(colon - text) >= sizeof host)
        return errmsg_set(err, STATUS_BAD_CONFIG, "%s: '%s' is not of the form host:port", key,
                          text);
    snprintf(host, sizeof host, "%.*s", (int)(colon - text), text);
    size_t n = strlen(host);
    if (host[0] == '[' && host[n - 1] == ']') {
        memmove(host, host + 1, n);
        host[n - 2] = '\0';
    }
    char *end;
    long port = strtol(colon + 1, &end, 10);
    if (colon[1] == '\0' || *end || port < 0 || port > 65535)
        return errmsg_set(err, STATUS_BAD_CONFIG, "%s: '%s' is no port", key, colon + 1);
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                                   .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list;
    int rc = getaddrinfo(host, colon + 1, &hints, &list);
    if (rc)
        return errmsg_set(err, STATUS_BAD_CONFIG, "%s: host '%s': %s", key, host, gai_strerror(rc));
    memcpy(out, list->ai_addr, list->ai_addrlen);
    freeaddrinfo(list);
    return STATUS_OK;
}

static uint16_t bound_port(const uv_tcp_t *tcp)
{
    struct sockaddr_storage a;
    int n = sizeof a;
    if (uv_tcp_getsockname(tcp, (struct sockaddr *)&a, &n))
        return 0;
    return ntohs(a.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&a)->sin6_port
                                         : ((struct sockaddr_in *)&a)->sin_port);
}

enum status shell_listen(struct shell *s, uv_tcp_t *tcp, const char *key, const char *address,
                         uv_connection_cb cb, uint16_t *port_out, struct errmsg *err)
{
    struct sockaddr_storage a;
    enum status st = shell_address(key, address, &a, err);
    if (st)
        return st;
    int rc = uv_tcp_bind(tcp, (struct sockaddr *)&a, 0);
    if (!rc)
        rc = uv_listen((uv_stream_t *)tcp, 4096, cb);
    if (rc)
        return errmsg_set(err, STATUS_BAD_CONFIG, "%s: cannot listen on %s: %s", key, address,
                          uv_strerror(rc));
    *port_out = bound_port(tcp);
    return STATUS_OK;
}
