/*
 * Tickets: one lets one account open streams on the rooms it names, or on all of its rooms, for a while.
 * A ticket is a JWT (RFC 7519) signed with HMAC-SHA-256 and nothing else; `kid` in its header names the key, so that
 * keys can rotate.
 *
 *   header  {"alg":"HS256","typ":"JWT","kid":"k1"}
 *   claims  {"iss":"roomd","sub":"alice","iat":1770000000,"exp":1770000300.5,"rooms":["s07.01KC…","s07.01KD…@3:57"]}
 *           or "all":true (then "rooms" holds positions only); "deliver":"early|durable|signal", "platform":"web"
 *
 * Thread: pure functions, any thread. Memory: nothing is kept. This file is a guest in other programs: it never aborts
 * and needs OpenSSL's libcrypto and jansson only. Source: docs/protocol.md#pullbyactiveconnection.
 */
#ifndef ROOMD_TICKET_H
#define ROOMD_TICKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ROOMD_TICKET_MAX_BYTES 8192
#define ROOMD_TICKET_ROOMS_MAX 128 /* what fits with positions; the service's own setting is lower */
#define ROOMD_TICKET_ACCOUNT_MAX 64
#define ROOMD_TICKET_KEYS_MAX 8
#define ROOMD_TICKET_KEY_MIN_BYTES 32 /* RFC 7518 3.2: not shorter than the hash */
#define ROOMD_TICKET_KEY_MAX_BYTES 256
#define ROOMD_TICKET_SKEW_MS 30000 /* how far the signer's clock may be ahead of ours */

enum roomd_ticket_result {
    ROOMD_TICKET_OK = 0,
    ROOMD_TICKET_MALFORMED, /* not a ticket, longer than ROOMD_TICKET_MAX_BYTES, or claims that have no business here */
    ROOMD_TICKET_BAD_KEY,   /* key id unknown: rotated away, or forged */
    ROOMD_TICKET_FORGED,    /* the signature does not match */
    ROOMD_TICKET_EXPIRED,   /* was good, is too old */
    ROOMD_TICKET_TOO_LONG_LIVED, /* signed for longer than max_life_ms, or for a time that has not come */
    ROOMD_TICKET_NO_MEMORY,
    ROOMD_TICKET_TOO_LARGE /* signing: more rooms than fit */
};
/* A sentence a caller can act on; tells nothing about keys. */
const char *roomd_ticket_sentence(enum roomd_ticket_result result);

enum roomd_ticket_deliver { ROOMD_DELIVER_EARLY, ROOMD_DELIVER_DURABLE, ROOMD_DELIVER_SIGNAL };

struct roomd_ticket_key {
    char id[17]; /* 1–16 of [A-Za-z0-9_-] */
    unsigned char secret[ROOMD_TICKET_KEY_MAX_BYTES];
    size_t secret_bytes;
};
struct roomd_ticket_keys {
    struct roomd_ticket_key key[ROOMD_TICKET_KEYS_MAX]; /* the first signs, all verify */
    size_t count;
};
/* "kid:key,kid:key"; false with a static sentence in *why: no key, too short, all bytes equal, ids double or odd. */
bool roomd_ticket_keys_read(struct roomd_ticket_keys *keys, const char *text, const char **why);

struct roomd_text {
    const char *p;
    size_t n;
};

struct roomd_ticket {
    struct roomd_text account;
    struct roomd_text platform; /* may be empty */
    bool all;
    enum roomd_ticket_deliver deliver;
    uint64_t issued_unix_ms;
    uint64_t expires_unix_ms;
    struct roomd_text rooms[ROOMD_TICKET_ROOMS_MAX]; /* "<room_id>" or "<room_id>@<cursor>", not checked further */
    size_t room_count;
    char text[ROOMD_TICKET_MAX_BYTES]; /* what the texts above point into, after verify */
};

/* Writes the ticket's text, NUL-terminated, *len bytes. MALFORMED: what it says could not be verified again. */
enum roomd_ticket_result roomd_ticket_sign(char out[ROOMD_TICKET_MAX_BYTES + 1], size_t *len,
    const struct roomd_ticket *ticket, const struct roomd_ticket_keys *keys);

/*
 * Check `text` (`len` bytes, no NUL needed) against `keys` at `now_unix_ms`. The signature is compared in constant time
 * before any claim is looked at. *ticket is filled on ROOMD_TICKET_OK only. Expiry is exact: signer and verifier are
 * meant to read the same clock (roomd: the database's); only "issued in the future" allows ROOMD_TICKET_SKEW_MS.
 */
enum roomd_ticket_result roomd_ticket_verify(struct roomd_ticket *ticket, const char *text, size_t len,
    const struct roomd_ticket_keys *keys, uint64_t now_unix_ms, uint64_t max_life_ms);

#endif
