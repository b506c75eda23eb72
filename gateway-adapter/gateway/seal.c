#include "seal.h"

#include <assert.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <string.h>

#include "room/base/mem.h"

#define NONCE_BYTES 12
#define TAG_BYTES 16
#define SEALED_MAX_BYTES 65536

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

bool seal_key_from(struct seal_key *key, struct str secret)
{
    if (secret.n < SEAL_KEY_BYTES)
        return false;
    SHA256((const unsigned char *)secret.p, secret.n, key->bytes);
    return true;
}

static void write_base64url(struct buf *out, const unsigned char *p, size_t n)
{
    for (size_t i = 0; i < n; i += 3) {
        uint32_t bits = (uint32_t)p[i] << 16 | (i + 1 < n ? (uint32_t)p[i + 1] << 8 : 0) | (i + 2 < n ? p[i + 2] : 0u);

        for (size_t k = 0; k <= (n - i < 3 ? n - i : 3); k++)
            buf_char(out, digits[bits >> (18 - 6 * k) & 63]);
    }
}

static bool read_base64url(struct buf *out, struct str text)
{
    uint32_t bits = 0;
    size_t held = 0;

    for (size_t i = 0; i < text.n; i++) {
        const char *digit = text.p[i] ? strchr(digits, text.p[i]) : NULL;

        if (!digit)
            return false;
        bits = bits << 6 | (uint32_t)(digit - digits);
        held += 6;
        if (held >= 8) {
            held -= 8;
            buf_char(out, (char)(bits >> held & 255));
        }
    }
    return text.n % 4 != 1 && (bits & ((1u << held) - 1)) == 0; /* one way to write it only */
}

void seal(struct buf *out, const struct seal_key *key, const char *purpose, struct str plain)
{
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    unsigned char *sealed = xmalloc(NONCE_BYTES + plain.n + TAG_BYTES);
    int n = 0, ignored;
    bool ok = context && RAND_bytes(sealed, NONCE_BYTES) == 1 &&
              EVP_EncryptInit_ex(context, EVP_aes_256_gcm(), NULL, key->bytes, sealed) == 1 &&
              EVP_EncryptUpdate(context, NULL, &ignored, (const unsigned char *)purpose, (int)strlen(purpose)) == 1 &&
              EVP_EncryptUpdate(context, sealed + NONCE_BYTES, &n, (const unsigned char *)plain.p, (int)plain.n) == 1 &&
              EVP_EncryptFinal_ex(context, sealed + NONCE_BYTES + n, &ignored) == 1 &&
              EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_GCM_GET_TAG, TAG_BYTES, sealed + NONCE_BYTES + plain.n) == 1;

    assert(ok); /* with a key and memory nothing of this fails */
    EVP_CIPHER_CTX_free(context);
    write_base64url(out, sealed, NONCE_BYTES + plain.n + TAG_BYTES);
    free(sealed);
}

bool seal_open(struct buf *plain, const struct seal_key *key, const char *purpose, struct str sealed)
{
    EVP_CIPHER_CTX *context = NULL;
    struct buf bytes = {0};
    unsigned char *p, *text;
    size_t n;
    int written = 0, ignored;
    bool ok = false;

    if (sealed.n > SEALED_MAX_BYTES || !read_base64url(&bytes, sealed) || bytes.n < NONCE_BYTES + TAG_BYTES)
        goto done;
    p = (unsigned char *)bytes.p;
    n = bytes.n - NONCE_BYTES - TAG_BYTES;
    text = (unsigned char *)buf_reserve(plain, n + 1);
    context = EVP_CIPHER_CTX_new();
    ok = context && EVP_DecryptInit_ex(context, EVP_aes_256_gcm(), NULL, key->bytes, p) == 1 &&
         EVP_DecryptUpdate(context, NULL, &ignored, (const unsigned char *)purpose, (int)strlen(purpose)) == 1 &&
         EVP_DecryptUpdate(context, text, &written, p + NONCE_BYTES, (int)n) == 1 &&
         EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_GCM_SET_TAG, TAG_BYTES, p + NONCE_BYTES + n) == 1 &&
         EVP_DecryptFinal_ex(context, text + written, &ignored) == 1;
    if (ok)
        plain->n += n;
done:
    EVP_CIPHER_CTX_free(context);
    buf_clear(&bytes);
    return ok;
}
