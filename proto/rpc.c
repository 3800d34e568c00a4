// Names and codes of the client RPC.
#include "proto/rpc.h"

const char *rpc_kind_name(enum rpc_kind k)
{
    switch (k) {
    case RPC_GENERATE:
        return "GENERATE";
    case RPC_ATTACH:
        return "ATTACH";
    case RPC_CANCEL:
        return "CANCEL";
    case RPC_CREDIT:
        return "CREDIT";
    case RPC_PING:
        return "PING";
    case RPC_ACCEPTED:
        return "ACCEPTED";
    case RPC_QUEUED:
        return "QUEUED";
    case RPC_TOKENS:
        return "TOKENS";
    case RPC_DONE:
        return "DONE";
    case RPC_ERROR:
        return "ERROR";
    case RPC_PONG:
        return "PONG";
    }
    return "?";
}

const char *rpc_code_name(enum rpc_code c)
{
    static const char *const names[] = {
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    };
    return (unsigned)c < sizeof names / sizeof *names ? names[c] : NULL;
}

enum rpc_code rpc_code_from_status(enum status s)
{
    switch (s) {
    case STATUS_OK:
        return RPC_CODE_OK;
    case STATUS_BAD_REQUEST:
        return RPC_CODE_INVALID_ARGUMENT;
    case STATUS_TOO_LARGE:
        return RPC_CODE_OUT_OF_RANGE;
    case STATUS_NOT_FOUND:
        return RPC_CODE_NOT_FOUND;
    case STATUS_CANCELLED:
        return RPC_CODE_CANCELLED;
    case STATUS_DEADLINE:
        return RPC_CODE_DEADLINE_EXCEEDED;
    case STATUS_FULL:
    case STATUS_REFUSED:
        return RPC_CODE_RESOURCE_EXHAUSTED;
    case STATUS_UNSUPPORTED:
        return RPC_CODE_UNIMPLEMENTED;
    case STATUS_EXISTS:
        return RPC_CODE_ALREADY_EXISTS;
    default:
        break;
    }
    enum status_group g = status_group(s);
    return g == STATUS_GROUP_LINK || g == STATUS_GROUP_NODE || g == STATUS_GROUP_NONE
               ? RPC_CODE_UNAVAILABLE
               : RPC_CODE_INTERNAL;
}
