/* Tickets; see roomd_ticket.h. */
#include "roomd_ticket.h"

#include <jansson.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <string.h>

#define MAC_BYTES 32
#define MAC_TEXT 43         /* base64url of 32 bytes, no padding */
#define HEADER_TEXT_MAX 128 /* base64url characters: alg, typ, kid need at most 80 */

struct three_parts {
    struct roomd_text header, claims, mac, signed_part;
};

static bool ticket_split(struct three_parts *parts, const char *text, size_t len);
static const struct roomd_ticket_key *header_key(
    struct roomd_text encoded, const struct roomd_ticket_keys *keys, bool *is_header);
static bool mac_of(unsigned char mac[MAC_BYTES], const struct roomd_ticket_key *key, struct roomd_text text);
static enum roomd_ticket_result claims_read(struct roomd_ticket *ticket, struct roomd_text encoded);
static enum roomd_ticket_result life_check(
    const struct roomd_ticket *ticket, uint64_t now_unix_ms, uint64_t max_life_ms);
static bool base64url_decode(unsigned char *out, size_t capacity, size_t *n, struct roomd_text text);
static size_t base64url_encode(char *out, const void *p, size_t n);

const char *roomd_ticket_sentence(enum roomd_ticket_result result)
{
    static const char *const sentence[] = {
        [ROOMD_TICKET_OK] = "good",
        [ROOMD_TICKET_MALFORMED] = "this is not a ticket; ask PullByActiveConnection for one",
        [ROOMD_TICKET_BAD_KEY] = "the ticket's key is not known here; ask PullByActiveConnection for a new one",
        [ROOMD_TICKET_FORGED] = "the ticket's signature does not match; ask PullByActiveConnection for a new one",
        [ROOMD_TICKET_EXPIRED] = "the ticket is too old; ask PullByActiveConnection for a new one",
        [ROOMD_TICKET_TOO_LONG_LIVED] =
            "the ticket's times are not acceptable here; check the clocks, ask for a new one",
        [ROOMD_TICKET_NO_MEMORY] = "out of memory",
        [ROOMD_TICKET_TOO_LARGE] = "more rooms than a ticket can carry; ask for all of the account's rooms",
    };

    return sentence[result];
}

/* ------------------------------------------------------------------ keys */

static bool key_id_valid(const char *p, size_t n)
{
    if (n == 0 || n > 16)
        return false;
    for (size_t i = 0; i < n; i++)
        if (!((p[i] >= 'a' && p[i] <= 'z') || (p[i] >= 'A' && p[i] <= 'Z') || (p[i] >= '0' && p[i] <= '9') ||
                p[i] == '_' || p[i] == '-'))
            return false;
    return true;
}

static const struct roomd_ticket_key *key_find(const struct roomd_ticket_keys *keys, const char *id, size_t n)
{
    for (size_t i = 0; i < keys->count; i++)
        if (strlen(keys->key[i].id) == n && memcmp(keys->key[i].id, id, n) == 0)
            return &keys->key[i];
    return NULL;
}

static const char *key_add(struct roomd_ticket_keys *keys, const char *item, size_t n)
{
    const char *colon = memchr(item, ':', n);
    struct roomd_ticket_key *key = &keys->key[keys->count];
    size_t id_bytes, secret_bytes, same = 0;

    if (!colon)
        return "each ticket key is written kid:key";
    id_bytes = (size_t)(colon - item);
    secret_bytes = n - id_bytes - 1;
    if (!key_id_valid(item, id_bytes))
        return "a ticket key's id is 1 to 16 of A-Z a-z 0-9 _ -";
    if (key_find(keys, item, id_bytes))
        return "two ticket keys have the same id";
    if (keys->count == ROOMD_TICKET_KEYS_MAX)
        return "at most 8 ticket keys";
    if (secret_bytes < ROOMD_TICKET_KEY_MIN_BYTES || secret_bytes > ROOMD_TICKET_KEY_MAX_BYTES)
        return "a ticket key has 32 to 256 bytes";
    while (same < secret_bytes && colon[1 + same] == colon[1])
        same++;
    if (same == secret_bytes)
        return "a ticket key is one byte repeated; make one with: openssl rand -hex 32";
    memcpy(key->id, item, id_bytes);
    key->id[id_bytes] = 0;
    memcpy(key->secret, colon + 1, secret_bytes);
    key->secret_bytes = secret_bytes;
    keys->count++;
    return NULL;
}

bool roomd_ticket_keys_read(struct roomd_ticket_keys *keys, const char *text, const char **why)
{
    memset(keys, 0, sizeof *keys);
    while (text && *text) {
        size_t n = strcspn(text, ",");

        while (n > 0 && (*text == ' ' || *text == '\t'))
            text++, n--;
        if (n > 0 && (*why = key_add(keys, text, n)))
            return false;
        text += n + (text[n] == ',');
    }
    *why = keys->count ? NULL : "at least one ticket key is needed";
    return keys->count > 0;
}

/* ------------------------------------------------------------------ sign */

struct writer {
    char *p;
    size_t n, capacity;
    bool full;
};

static void put(struct writer *w, const char *p, size_t n)
{
    if (n > w->capacity - w->n) {
        w->full = true;
        return;
    }
    memcpy(w->p + w->n, p, n);
    w->n += n;
}

static void put_text(struct writer *w, const char *text)
{
    put(w, text, strlen(text));
}

static void put_json_string(struct writer *w, struct roomd_text s)
{
    char escape[8];

    put(w, "\"", 1);
    for (size_t i = 0; i < s.n; i++) {
        unsigned char c = (unsigned char)s.p[i];

        if (c == '"' || c == '\\') {
            put(w, "\\", 1);
            put(w, s.p + i, 1);
        } else if (c < 0x20) {
            snprintf(escape, sizeof escape, "\\u%04x", c);
            put_text(w, escape);
        } else {
            put(w, s.p + i, 1);
        }
    }
    put(w, "\"", 1);
}

/* Seconds, as RFC 7519 wants them, with the milliseconds behind the point when there are any. */
static void put_time(struct writer *w, const char *name, uint64_t unix_ms)
{
    char text[64];

    if (unix_ms % 1000)
        snprintf(text, sizeof text, ",\"%s\":%llu.%03u", name, (unsigned long long)(unix_ms / 1000),
            (unsigned)(unix_ms % 1000));
    else
        snprintf(text, sizeof text, ",\"%s\":%llu", name, (unsigned long long)(unix_ms / 1000));
    put_text(w, text);
}

static void put_claims(struct writer *w, const struct roomd_ticket *ticket)
{
    static const char *const deliver[] = {"early", "durable", "signal"};

    put_text(w, "{\"iss\":\"roomd\",\"sub\":");
    put_json_string(w, ticket->account);
    put_time(w, "iat", ticket->issued_unix_ms);
    put_time(w, "exp", ticket->expires_unix_ms);
    if (ticket->all)
        put_text(w, ",\"all\":true");
    if (ticket->room_count) {
        put_text(w, ",\"rooms\":[");
        for (size_t i = 0; i < ticket->room_count; i++) {
            put(w, ",", i > 0);
            put_json_string(w, ticket->rooms[i]);
        }
        put_text(w, "]");
    }
    put_text(w, ",\"deliver\":");
    put_json_string(w, (struct roomd_text){deliver[ticket->deliver], strlen(deliver[ticket->deliver])});
    if (ticket->platform.n) {
        put_text(w, ",\"platform\":");
        put_json_string(w, ticket->platform);
    }
    put_text(w, "}");
}

enum roomd_ticket_result roomd_ticket_sign(char out[ROOMD_TICKET_MAX_BYTES + 1], size_t *len,
    const struct roomd_ticket *ticket, const struct roomd_ticket_keys *keys)
{
    char claims[ROOMD_TICKET_MAX_BYTES * 3 / 4], header[80];
    struct writer w = {claims, 0, sizeof claims, false};
    unsigned char mac[MAC_BYTES];
    size_t n;

    if (keys->count == 0)
        return ROOMD_TICKET_BAD_KEY;
    if (ticket->account.n == 0 || ticket->account.n > ROOMD_TICKET_ACCOUNT_MAX || (!ticket->all && !ticket->room_count))
        return ROOMD_TICKET_MALFORMED;
    if (ticket->room_count > ROOMD_TICKET_ROOMS_MAX)
        return ROOMD_TICKET_TOO_LARGE;
    put_claims(&w, ticket);
    n = (size_t)snprintf(header, sizeof header, "{\"alg\":\"HS256\",\"typ\":\"JWT\",\"kid\":\"%s\"}", keys->key[0].id);
    if (w.full || (n * 4 + 2) / 3 + (w.n * 4 + 2) / 3 + MAC_TEXT + 2 > ROOMD_TICKET_MAX_BYTES)
        return ROOMD_TICKET_TOO_LARGE;
    n = base64url_encode(out, header, n);
    out[n++] = '.';
    n += base64url_encode(out + n, claims, w.n);
    if (!mac_of(mac, &keys->key[0], (struct roomd_text){out, n}))
        return ROOMD_TICKET_NO_MEMORY;
    out[n++] = '.';
    n += base64url_encode(out + n, mac, sizeof mac);
    out[n] = 0;
    *len = n;
    return ROOMD_TICKET_OK;
}

/* ---------------------------------------------------------------- verify */

enum roomd_ticket_result roomd_ticket_verify(struct roomd_ticket *ticket, const char *text, size_t len,
    const struct roomd_ticket_keys *keys, uint64_t now_unix_ms, uint64_t max_life_ms)
{
    struct three_parts parts;
    const struct roomd_ticket_key *key;
    unsigned char given[MAC_BYTES + 3], computed[MAC_BYTES];
    size_t given_bytes;
    bool is_header = false;
    enum roomd_ticket_result result;

    if (!ticket_split(&parts, text, len))
        return ROOMD_TICKET_MALFORMED;
    key = header_key(parts.header, keys, &is_header);
    if (!key)
        return is_header ? ROOMD_TICKET_BAD_KEY : ROOMD_TICKET_MALFORMED;
    if (!base64url_decode(given, sizeof given, &given_bytes, parts.mac) || given_bytes != MAC_BYTES)
        return ROOMD_TICKET_MALFORMED;
    if (!mac_of(computed, key, parts.signed_part))
        return ROOMD_TICKET_NO_MEMORY;
    if (CRYPTO_memcmp(given, computed, MAC_BYTES) != 0)
        return ROOMD_TICKET_FORGED;
    result = claims_read(ticket, parts.claims);
    return result ? result : life_check(ticket, now_unix_ms, max_life_ms);
}

/* Only lengths and dots; nothing is decoded yet. */
static bool ticket_split(struct three_parts *parts, const char *text, size_t len)
{
    const char *first, *second;

    if (!text || len < MAC_TEXT + 4 || len > ROOMD_TICKET_MAX_BYTES)
        return false;
    first = memchr(text, '.', len);
    if (!first)
        return false;
    second = memchr(first + 1, '.', len - (size_t)(first + 1 - text));
    if (!second)
        return false;
    parts->header = (struct roomd_text){text, (size_t)(first - text)};
    parts->claims = (struct roomd_text){first + 1, (size_t)(second - first - 1)};
    parts->signed_part = (struct roomd_text){text, (size_t)(second - text)};
    parts->mac = (struct roomd_text){second + 1, len - (size_t)(second + 1 - text)};
    return parts->header.n > 0 && parts->header.n <= HEADER_TEXT_MAX && parts->claims.n > 0 && parts->mac.n == MAC_TEXT;
}

/* One "name":"value" of the header, plain ASCII without escapes; moves *at behind it. */
static bool header_member(const char **at, const char *end, struct roomd_text *name, struct roomd_text *value)
{
    struct roomd_text *const part[2] = {name, value};
    const char *p = *at;

    for (int i = 0; i < 2; i++) {
        if (p == end || *p++ != '"')
            return false;
        part[i]->p = p;
        while (p < end && *p != '"' && *p != '\\' && *p >= 0x20)
            p++;
        part[i]->n = (size_t)(p - part[i]->p);
        if (p == end || *p++ != '"')
            return false;
        if (i == 0 && (p == end || *p++ != ':'))
            return false;
    }
    *at = p;
    return true;
}

static bool text_is(struct roomd_text text, const char *word)
{
    return text.n == strlen(word) && memcmp(text.p, word, text.n) == 0;
}

/* RFC 8725: the algorithm is ours to choose, never the token's. The header says alg, typ and kid, each once. */
static const struct roomd_ticket_key *header_key(
    struct roomd_text encoded, const struct roomd_ticket_keys *keys, bool *is_header)
{
    unsigned char header[HEADER_TEXT_MAX];
    struct roomd_text name, value, kid = {NULL, 0};
    const char *p = (const char *)header, *end;
    bool alg = false, typ = false;
    size_t n;

    if (!base64url_decode(header, sizeof header, &n, encoded) || n < 2 || header[0] != '{' || header[n - 1] != '}')
        return NULL;
    end = p + n - 1;
    p++;
    for (;;) {
        if (!header_member(&p, end, &name, &value))
            return NULL;
        if (text_is(name, "alg") && !alg && text_is(value, "HS256"))
            alg = true;
        else if (text_is(name, "typ") && !typ && text_is(value, "JWT"))
            typ = true;
        else if (text_is(name, "kid") && !kid.p)
            kid = value;
        else
            return NULL;
        if (p == end)
            break;
        if (*p++ != ',')
            return NULL;
    }
    *is_header = alg && kid.p;
    return *is_header ? key_find(keys, kid.p, kid.n) : NULL;
}

static bool mac_of(unsigned char mac[MAC_BYTES], const struct roomd_ticket_key *key, struct roomd_text text)
{
    unsigned n = 0;

    return HMAC(EVP_sha256(), key->secret, (int)key->secret_bytes, (const unsigned char *)text.p, text.n, mac, &n) &&
           n == MAC_BYTES;
}

/* Copies a string claim into the ticket's own text. */
static bool take_text(struct roomd_ticket *ticket, size_t *used, json_t *value, size_t max, struct roomd_text *out)
{
    size_t n = json_string_length(value);

    if (!json_is_string(value) || n > max || n > sizeof ticket->text - *used)
        return false;
    memcpy(ticket->text + *used, json_string_value(value), n);
    *out = (struct roomd_text){ticket->text + *used, n};
    *used += n;
    return true;
}

static bool take_time(json_t *value, uint64_t *unix_ms)
{
    double seconds = json_number_value(value);

    /* 2^53 ms is the year 287396: everything above is nonsense and would not fit. */
    if (!json_is_number(value) || !(seconds >= 0 && seconds < 9e12))
        return false;
    *unix_ms = (uint64_t)(seconds * 1000.0 + 0.5);
    return true;
}

static bool take_rooms(struct roomd_ticket *ticket, size_t *used, json_t *value)
{
    if (!json_is_array(value) || json_array_size(value) == 0 || json_array_size(value) > ROOMD_TICKET_ROOMS_MAX)
        return false;
    ticket->room_count = json_array_size(value);
    for (size_t i = 0; i < ticket->room_count; i++)
        if (!take_text(ticket, used, json_array_get(value, i), 128, &ticket->rooms[i]) || ticket->rooms[i].n == 0)
            return false;
    return true;
}

static bool take_deliver(struct roomd_ticket *ticket, json_t *value)
{
    const char *text = json_string_value(value);

    if (!text)
        return false;
    if (strcmp(text, "early") == 0)
        ticket->deliver = ROOMD_DELIVER_EARLY;
    else if (strcmp(text, "durable") == 0)
        ticket->deliver = ROOMD_DELIVER_DURABLE;
    else if (strcmp(text, "signal") == 0)
        ticket->deliver = ROOMD_DELIVER_SIGNAL;
    else
        return false;
    return true;
}

/* An unknown claim may narrow what the signer meant to allow: refuse what is not understood. */
static bool claim_take(struct roomd_ticket *ticket, size_t *used, const char *name, json_t *value, bool *issuer)
{
    if (strcmp(name, "iss") == 0)
        return *issuer = json_is_string(value) && strcmp(json_string_value(value), "roomd") == 0;
    if (strcmp(name, "sub") == 0)
        return take_text(ticket, used, value, ROOMD_TICKET_ACCOUNT_MAX, &ticket->account);
    if (strcmp(name, "iat") == 0)
        return take_time(value, &ticket->issued_unix_ms);
    if (strcmp(name, "exp") == 0)
        return take_time(value, &ticket->expires_unix_ms) && ticket->expires_unix_ms > 0;
    if (strcmp(name, "all") == 0)
        return ticket->all = json_is_true(value);
    if (strcmp(name, "rooms") == 0)
        return take_rooms(ticket, used, value);
    if (strcmp(name, "deliver") == 0)
        return take_deliver(ticket, value);
    if (strcmp(name, "platform") == 0)
        return take_text(ticket, used, value, 64, &ticket->platform);
    return false;
}

static void ticket_clear(struct roomd_ticket *ticket)
{
    ticket->account = ticket->platform = (struct roomd_text){ticket->text, 0};
    ticket->all = false;
    ticket->deliver = ROOMD_DELIVER_EARLY;
    ticket->issued_unix_ms = ticket->expires_unix_ms = 0;
    ticket->room_count = 0;
}

static enum roomd_ticket_result claims_read(struct roomd_ticket *ticket, struct roomd_text encoded)
{
    unsigned char text[ROOMD_TICKET_MAX_BYTES];
    const char *name;
    json_t *claims, *value;
    size_t n, used = 0;
    bool good = true, issuer = false;

    if (!base64url_decode(text, sizeof text, &n, encoded))
        return ROOMD_TICKET_MALFORMED;
    claims = json_loadb((const char *)text, n, JSON_REJECT_DUPLICATES, NULL);
    if (!json_is_object(claims)) {
        json_decref(claims);
        return ROOMD_TICKET_MALFORMED;
    }
    ticket_clear(ticket);
    json_object_foreach(claims, name, value) good = good && claim_take(ticket, &used, name, value, &issuer);
    json_decref(claims);
    good = good && issuer && ticket->account.n > 0 && ticket->expires_unix_ms > 0 && ticket->issued_unix_ms > 0 &&
           (ticket->all || ticket->room_count > 0);
    return good ? ROOMD_TICKET_OK : ROOMD_TICKET_MALFORMED;
}

static enum roomd_ticket_result life_check(
    const struct roomd_ticket *ticket, uint64_t now_unix_ms, uint64_t max_life_ms)
{
    if (ticket->expires_unix_ms <= now_unix_ms)
        return ROOMD_TICKET_EXPIRED;
    if (ticket->issued_unix_ms > now_unix_ms + ROOMD_TICKET_SKEW_MS ||
        ticket->issued_unix_ms >= ticket->expires_unix_ms ||
        ticket->expires_unix_ms - ticket->issued_unix_ms > max_life_ms ||
        ticket->expires_unix_ms - now_unix_ms > max_life_ms + ROOMD_TICKET_SKEW_MS)
        return ROOMD_TICKET_TOO_LONG_LIVED;
    return ROOMD_TICKET_OK;
}

/* ------------------------------------------------- base64url (RFC 4648 5) */

static int digit_value(unsigned char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '-' ? 62 : c == '_' ? 63 : -1;
}

/* Strict: no padding, no white space, unused bits zero, so that one ticket has one spelling. */
static bool base64url_decode(unsigned char *out, size_t capacity, size_t *n, struct roomd_text text)
{
    uint32_t bits = 0;
    unsigned have = 0;

    *n = 0;
    if (text.n % 4 == 1 || text.n / 4 * 3 + (text.n % 4 ? text.n % 4 - 1 : 0) > capacity)
        return false;
    for (size_t i = 0; i < text.n; i++) {
        int value = digit_value((unsigned char)text.p[i]);

        if (value < 0)
            return false;
        bits = bits << 6 | (uint32_t)value;
        have += 6;
        if (have >= 8) {
            have -= 8;
            out[(*n)++] = (unsigned char)(bits >> have & 0xff);
        }
    }
    return (bits & ((1u << have) - 1)) == 0;
}

static size_t base64url_encode(char *out, const void *p, size_t n)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    const unsigned char *in = p;
    uint32_t bits = 0;
    unsigned have = 0;
    size_t written = 0;

    for (size_t i = 0; i < n; i++) {
        bits = bits << 8 | in[i];
        have += 8;
        while (have >= 6) {
            have -= 6;
            out[written++] = digits[bits >> have & 63];
        }
    }
    if (have)
        out[written++] = digits[bits << (6 - have) & 63];
    return written;
}
