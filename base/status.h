// The one error vocabulary. Every function that can fail for an expected reason returns
// `enum status`; bugs are asserts.
//
//   0   OK
//   > 0 try again later, nothing was done (back-pressure)
//   < 0 failed; the group says what must be rebuilt: REQUEST the request, LINK the link,
//       NODE the replica's membership, CONFIG the operator's input, SYSTEM the process.
#pragma once

#include <stdbool.h>

#define STATUS_MAP(X)                                                                              \
    X(OK, 0, "ok")                                                                                 \
    X(AGAIN, 1, "not now, try again")                                                              \
    X(FULL, 2, "a bounded pool or queue is full")                                                  \
    X(PENDING, 3, "started, not finished")                                                         \
    /* REQUEST: -100..-199 */                                                                      \
    X(BAD_REQUEST, -100, "malformed request")                                                      \
    X(TOO_LARGE, -101, "larger than a configured limit")                                           \
    X(NOT_FOUND, -102, "no such object")                                                           \
    X(CANCELLED, -103, "cancelled")                                                                \
    X(DEADLINE, -104, "deadline exceeded")                                                         \
    X(REFUSED, -105, "refused by admission")                                                       \
    X(UNSUPPORTED, -106, "not supported")                                                          \
    X(EXISTS, -107, "already exists")                                                              \
    /* LINK: -200..-299 */                                                                         \
    X(LINK_DOWN, -200, "link is down")                                                             \
    X(LINK_PROTOCOL, -201, "peer broke the protocol")                                              \
    X(LINK_TIMEOUT, -202, "peer did not answer in time")                                           \
    X(LINK_VERSION, -203, "peer speaks another version")                                           \
    X(LINK_CORRUPT, -204, "checksum or framing mismatch")                                          \
    /* NODE: -300..-399 */                                                                         \
    X(STALE_EPOCH, -300, "frame of an old epoch")                                                  \
    X(NODE_LOST, -301, "node is gone")                                                             \
    X(NODE_HUNG, -302, "node makes no progress")                                                   \
    X(NODE_NAN, -303, "NaN or Inf in the result")                                                  \
    X(ABORTED, -304, "aborted from outside")                                                       \
    /* CONFIG: -400..-499 */                                                                       \
    X(BAD_CONFIG, -400, "bad configuration")                                                       \
    X(BAD_MODEL, -401, "bad model folder")                                                         \
    X(BAD_FILE, -402, "corrupt or truncated file")                                                 \
    X(UNKNOWN_ARCH, -403, "unknown model architecture")                                            \
    /* SYSTEM: -500..-599 */                                                                       \
    X(NO_MEMORY, -500, "out of memory")                                                            \
    X(IO, -501, "input/output error")                                                              \
    X(NO_DEVICE, -502, "no such device on this host")                                              \
    X(INTERNAL, -503, "internal error")

#define STATUS_ENUM(name, code, text) STATUS_##name = (code),
enum status { STATUS_MAP(STATUS_ENUM) };
#undef STATUS_ENUM

#define STATUS_MUST_USE __attribute__((warn_unused_result))

// Static strings; an unknown code gives "UNKNOWN".
const char *status_name(enum status s);
const char *status_text(enum status s);

// Group of a failed status, for deciding what to rebuild.
enum status_group {
    STATUS_GROUP_NONE, // OK and the try-again codes
    STATUS_GROUP_REQUEST,
    STATUS_GROUP_LINK,
    STATUS_GROUP_NODE,
    STATUS_GROUP_CONFIG,
    STATUS_GROUP_SYSTEM,
};
enum status_group status_group(enum status s);

// status of an errno value (ENOMEM -> NO_MEMORY, EAGAIN -> AGAIN, ECONNRESET -> LINK_DOWN, ...).
enum status status_from_errno(int err);

// A short human message with cause, file, field, value; carried beside a status where a person
// reads the outcome (start-up, bad requests). Zero-initialise. Always NUL-terminated.
struct errmsg {
    char text[512];
};
// printf into *e when e is not NULL, and return s, so that `return errmsg_set(e, S, "...")` works.
enum status errmsg_set(struct errmsg *e, enum status s, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
