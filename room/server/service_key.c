#include "service_key.h"

#include <ctype.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <strings.h>

#include "room/base/config.h"

enum { DIGEST_BYTES = 32 };

struct service_key {
    char *name;
    unsigned char digest[DIGEST_BYTES]; /* digests are compared: equally long whatever the key is */
};

struct service_keys {
    size_t count;
    struct service_key *keys;
};

static void digest_of(unsigned char digest[DIGEST_BYTES], struct str s)
{
    if (!EVP_Digest(s.p, s.n, digest, NULL, EVP_sha256(), NULL))
        abort(); /* OpenSSL without SHA-256 */
}

static struct str trimmed(struct str s)
{
    while (s.n && isspace((unsigned char)s.p[0]))
        s.p++, s.n--;
    while (s.n && isspace((unsigned char)s.p[s.n - 1]))
        s.n--;
    return s;
}

struct service_keys *service_keys_read(const char *text)
{
    struct service_keys *keys = xcalloc(1, sizeof *keys);
    struct str rest = str_of(text), item;

    while (settings_list_next(&rest, &item)) {
        const char *colon = memchr(item.p, ':', item.n);
        size_t n = colon ? (size_t)(colon - item.p) : item.n;
        struct service_key *key;

        if (!colon)
            continue;
        keys->keys = xrealloc(keys->keys, (keys->count + 1) * sizeof *keys->keys);
        key = &keys->keys[keys->count++];
        key->name = xstrndup(item.p, n);
        digest_of(key->digest, trimmed((struct str){colon + 1, item.n - n - 1}));
    }
    return keys;
}

void service_keys_free(struct service_keys *keys)
{
    if (!keys)
        return;
    for (size_t i = 0; i < keys->count; i++)
        free(keys->keys[i].name);
    free(keys->keys);
    free(keys);
}

const char *service_key_find(const struct service_keys *keys, struct str authorization)
{
    static const char scheme[] = "Bearer ";
    unsigned char digest[DIGEST_BYTES];
    const char *found = NULL;

    if (authorization.n < sizeof scheme || strncasecmp(authorization.p, scheme, sizeof scheme - 1) != 0)
        return NULL;
    digest_of(
        digest, trimmed((struct str){authorization.p + sizeof scheme - 1, authorization.n - (sizeof scheme - 1)}));
    for (size_t i = 0; i < keys->count; i++)
        if (CRYPTO_memcmp(digest, keys->keys[i].digest, DIGEST_BYTES) == 0)
            found = keys->keys[i].name;
    return found;
}
