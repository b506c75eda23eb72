/*
 * Sealed texts: what the gateway gives to a browser and wants back unread and unchanged (sessions, addresses of long
 * connections). AES-256-GCM under a key of the gateways, base64url; every gateway process with the key can open them,
 * nothing is kept.
 * Thread: pure functions. Source: NIST SP 800-38D; RFC 4648 section 5.
 */
#ifndef ROOMD_GATEWAY_SEAL_H
#define ROOMD_GATEWAY_SEAL_H

#include "room/base/buf.h"

#define SEAL_KEY_BYTES 32

struct seal_key {
    unsigned char bytes[SEAL_KEY_BYTES];
};

/* Any secret text of at least 32 bytes becomes a key; false: it is shorter. */
MUST_USE bool seal_key_from(struct seal_key *key, struct str secret);

/* `purpose` is bound to the text: what was sealed for one purpose does not open for another. Appends to `out`. */
void seal(struct buf *out, const struct seal_key *key, const char *purpose, struct str plain);
/* false: not ours, altered, or for another purpose; `plain` is as it was. Appends to `plain`. */
MUST_USE bool seal_open(struct buf *plain, const struct seal_key *key, const char *purpose, struct str sealed);

#endif
