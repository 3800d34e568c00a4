// The cluster's own connections, authenticated and encrypted: TLS 1.3 (RFC 8446) with a pre-shared
// key and a fresh Diffie-Hellman secret each time (PSK-DHE, section 4.2.9). Who has no key is no
// node, no follower and no leader. No certificates: the processes of a cluster trust one another
// wholly or not at all, and one file is easier to keep right than a CA.
//
// Bytes in, bytes out; sockets are the caller's. One caller at a time for a `struct secure`; a
// `struct secure_domain` may be shared by threads.
//
// The client speaks first, so a server tells such a connection by its first byte (SECURE_FIRST).
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"
#include "base/strbuf.h"

enum { SECURE_FIRST = 0x16, SECURE_KEY_MIN = 32, SECURE_KEY_MAX = 1024 }; // key: characters

struct secure_domain; // a key
struct secure;        // one end of a connection

// The key is the text of a file, white space at its ends aside. BAD_CONFIG, with the file's name,
// when it cannot be read, is too short or too long, or others than its owner may read it.
enum status secure_domain_open(const char *file, struct secure_domain **out, struct errmsg *e);
// Clients of the RPC have a key of their own, so that who has it is no node. With *d NULL a domain
// of that key alone is made; else a server of *d takes connections with either. `setting`: what the
// file is called in messages.
enum status secure_domain_client(const char *file, const char *setting, struct secure_domain **d,
                                 struct errmsg *e);
void secure_domain_close(struct secure_domain *d); // NULL is fine; its connections must be gone

struct secure *secure_open(struct secure_domain *d, bool server);
void secure_close(struct secure *s); // NULL is fine

// Starts the handshake of a client: what must be sent is appended to `wire`.
void secure_greet(struct secure *s, struct strbuf *wire);
// Bytes from the peer. Plain text is appended to `plain`, what must be sent back to `wire` (also
// when it fails: an alert). LINK_PROTOCOL: another key, no key, or the bytes were changed. After
// that only secure_close.
enum status secure_feed(struct secure *s, const void *bytes, size_t n, struct strbuf *plain,
                        struct strbuf *wire, struct errmsg *e);
// Appends `n` bytes, encrypted, to `wire`. AGAIN, with nothing done: not before secure_is_up.
enum status secure_seal(struct secure *s, const void *bytes, size_t n, struct strbuf *wire);
// What goes to the socket next: `sending` (written before, its memory kept) gets all of `out`, sealed
// by way of `wire`, or as it is when s is NULL. Before secure_is_up only the handshake's bytes go.
// False: nothing is to be sent.
bool secure_take(struct secure *s, struct strbuf *out, struct strbuf *wire, struct strbuf *sending);
// The handshake is over: the peer has the key.
bool secure_is_up(const struct secure *s);
// And it is the cluster's, not the clients'.
bool secure_is_kin(const struct secure *s);
