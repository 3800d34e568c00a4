#include "base/status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

const char *status_name(enum status s)
{
    switch (s) {
#define X(name, code, text)                                                                        \
    case STATUS_##name:                                                                            \
        return #name;
        STATUS_MAP(X)
#undef X
    }
    return "UNKNOWN";
}

const char *status_text(enum status s)
{
    switch (s) {
#define X(name, code, text)                                                                        \
    case STATUS_##name:                                                                            \
        return text;
        STATUS_MAP(X)
#undef X
    }
    return "unknown status";
}

enum status_group status_group(enum status s)
{
    if (s >= 0)
        return STATUS_GROUP_NONE;
    switch (-s / 100) {
    case 1:
        return STATUS_GROUP_REQUEST;
    case 2:
        return STATUS_GROUP_LINK;
    case 3:
        return STATUS_GROUP_NODE;
    case 4:
        return STATUS_GROUP_CONFIG;
    default:
        return STATUS_GROUP_SYSTEM;
    }
}

enum status status_from_errno(int err)
{
    switch (err) {
    case 0:
        return STATUS_OK;
    case EAGAIN:
    case EINTR:
        return STATUS_AGAIN;
    case ENOMEM:
    case ENOBUFS:
        return STATUS_NO_MEMORY;
    case ENOENT:
        return STATUS_NOT_FOUND;
    case ECONNRESET:
    case EPIPE:
    case ECONNREFUSED:
    case ECONNABORTED:
    case ENOTCONN:
    case EHOSTUNREACH:
    case ENETUNREACH:
        return STATUS_LINK_DOWN;
    case ETIMEDOUT:
        return STATUS_LINK_TIMEOUT;
    case EMSGSIZE:
    case EOVERFLOW:
        return STATUS_TOO_LARGE;
    default:
        return STATUS_IO;
    }
}

enum status errmsg_set(struct errmsg *e, enum status s, const char *fmt, ...)
{
    if (e) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(e->text, sizeof e->text, fmt, ap);
        va_end(ap);
    }
    return s;
}
