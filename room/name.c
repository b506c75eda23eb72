#include "name.h"

#include <openssl/evp.h>

#include <assert.h>
#include <stdio.h>

#include "room/base/json.h"

static bool has_control(struct str s)
{
    for (size_t i = 0; i < s.n; i++) {
        unsigned char c = (unsigned char)s.p[i];

        if (c < 0x20 || c == 0x7f)
            return true;
        /* C1 controls U+0080..U+009F are c2 80 .. c2 9f in UTF-8. */
        if (c == 0xc2 && i + 1 < s.n && (unsigned char)s.p[i + 1] < 0xa0)
            return true;
    }
    return false;
}

static bool id_valid(struct str id, size_t max)
{
    return id.n >= 1 && id.n <= max && !has_control(id) && utf8_valid(id);
}

bool account_valid(struct str account)
{
    return id_valid(account, ACCOUNT_MAX_BYTES) && account.p[0] != '@';
}

bool client_id_valid(struct str id)
{
    return id_valid(id, CLIENT_MSG_ID_MAX_BYTES);
}

bool kind_valid(struct str kind)
{
    if (kind.n < 1 || kind.n > KIND_MAX_BYTES)
        return false;
    for (size_t i = 0; i < kind.n; i++) {
        char c = kind.p[i];

        if (!((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.' ||
                c == '/' || c == '-'))
            return false;
    }
    return true;
}

static bool shard_valid(struct str shard)
{
    if (shard.n < 2 || shard.n > SHARD_MAX_BYTES || shard.p[0] != 's')
        return false;
    for (size_t i = 1; i < shard.n; i++)
        if (shard.p[i] < '0' || shard.p[i] > '9')
            return false;
    return true;
}

bool room_id_read(struct str room_id, struct str *shard)
{
    struct id128 ulid;
    struct str word;

    if (room_id.n < ULID_TEXT + 3 || room_id.n > ROOM_ID_MAX_BYTES)
        return false;
    word = (struct str){room_id.p, room_id.n - ULID_TEXT - 1};
    if (room_id.p[word.n] != '.' || !shard_valid(word) ||
        !ulid_read(&ulid, (struct str){room_id.p + word.n + 1, ULID_TEXT}))
        return false;
    *shard = word;
    return true;
}

void room_id_write(char out[ROOM_ID_MAX_BYTES + 1], struct str shard, struct id128 ulid)
{
    assert(shard.n <= SHARD_MAX_BYTES);
    memcpy(out, shard.p, shard.n);
    out[shard.n] = '.';
    ulid_write(out + shard.n + 1, ulid);
    out[shard.n + 1 + ULID_TEXT] = '\0';
}

/* The digest is fetched once: a fetch per message costs more than the hash. */
static void sha256(const struct str *parts, size_t count, unsigned char out[32])
{
    static EVP_MD *md;
    static EVP_MD_CTX *context;
    unsigned n = 0;

    if (!md) {
        md = EVP_MD_fetch(NULL, "SHA256", NULL);
        context = EVP_MD_CTX_new();
        assert(md && context);
    }
    int ok = EVP_DigestInit_ex2(context, md, NULL);
    for (size_t i = 0; i < count; i++)
        ok &= EVP_DigestUpdate(context, parts[i].p, parts[i].n);
    ok &= EVP_DigestFinal_ex(context, out, &n);
    assert(ok && n == 32);
}

static struct id128 id_of(struct str a, struct str b, struct str c)
{
    unsigned char digest[32], text[ROOM_ID_MAX_BYTES + 1 + ACCOUNT_MAX_BYTES + 1 + CLIENT_MSG_ID_MAX_BYTES];
    struct str parts[5] = {a, {"", 1}, b, {"", 1}, c};
    struct id128 id;
    size_t n = a.n + b.n + c.n + 2;

    if (n <= sizeof text) { /* the usual case: one update instead of five */
        memcpy(text, a.p, a.n);
        text[a.n] = 0;
        memcpy(text + a.n + 1, b.p, b.n);
        text[a.n + 1 + b.n] = 0;
        memcpy(text + a.n + b.n + 2, c.p, c.n);
        parts[0] = (struct str){(char *)text, n};
        sha256(parts, 1, digest);
    } else {
        sha256(parts, 5, digest);
    }
    memcpy(id.b, digest, sizeof id.b);
    return id;
}

struct id128 message_id_of(struct str room_id, struct str sender, struct str client_msg_id)
{
    return id_of(room_id, sender, client_msg_id);
}

struct id128 request_op_id(struct str room_id, struct str account, struct str request_id)
{
    static const char name[] = "@request";
    char scope[sizeof name - 1 + ACCOUNT_MAX_BYTES];

    assert(account.n <= ACCOUNT_MAX_BYTES);
    memcpy(scope, name, sizeof name - 1);
    memcpy(scope + sizeof name - 1, account.p ? account.p : "", account.n);
    return id_of(room_id, (struct str){scope, sizeof name - 1 + account.n}, request_id);
}

/* FNV-1a with a final mix (MurmurHash3's): the place is stable, the bits are spread. */
#define FNV_PRIME 0x100000001b3u

static uint64_t feed(uint64_t h, unsigned char c)
{
    return (h ^ c) * FNV_PRIME;
}

static unsigned hex4(const char *p)
{
    unsigned value = 0;

    for (int i = 0; i < 4; i++) {
        unsigned char c = (unsigned char)p[i];

        value = value << 4 | (c <= '9' ? c - (unsigned)'0' : (c | 0x20u) - 'a' + 10u);
    }
    return value;
}

static uint64_t feed_code_point(uint64_t h, unsigned u)
{
    if (u < 0x80)
        return feed(h, (unsigned char)u);
    if (u < 0x800)
        return feed(feed(h, (unsigned char)(0xc0 | u >> 6)), (unsigned char)(0x80 | (u & 0x3f)));
    if (u < 0x10000)
        h = feed(h, (unsigned char)(0xe0 | u >> 12));
    else
        h = feed(feed(h, (unsigned char)(0xf0 | u >> 18)), (unsigned char)(0x80 | (u >> 12 & 0x3f)));
    h = feed(h, (unsigned char)(0x80 | (u >> 6 & 0x3f)));
    return feed(h, (unsigned char)(0x80 | (u & 0x3f)));
}

/* One escape at p (behind the backslash) of checked JSON; returns how many bytes it takes. */
static size_t feed_escape(uint64_t *h, const char *p)
{
    static const char from[] = "bfnrt", to[] = "\b\f\n\r\t";
    const char *at;
    unsigned u;

    if (*p != 'u') {
        at = strchr(from, *p);
        *h = feed(*h, (unsigned char)(at ? to[at - from] : *p));
        return 1;
    }
    u = hex4(p + 1);
    if (u < 0xd800 || u > 0xdbff) {
        *h = feed_code_point(*h, u);
        return 5;
    }
    *h = feed_code_point(*h, 0x10000 + ((u - 0xd800) << 10) + (hex4(p + 7) - 0xdc00));
    return 11;
}

/* White space between tokens and the way a character is escaped do not count: the same message sent by two
 * libraries (one escapes 你, one does not) must not be a conflict. */
int64_t content_hash(struct str kind, struct str content)
{
    uint64_t h = 0xcbf29ce484222325u;
    bool in_string = false;

    for (size_t i = 0; i < kind.n; i++)
        h = feed(h, (unsigned char)kind.p[i]);
    h = feed(h, 0);
    for (size_t i = 0; i < content.n; i++) {
        unsigned char c = (unsigned char)content.p[i];

        if (c == '"') {
            in_string = !in_string;
            h = feed(h, in_string ? 1 : 2);
        } else if (in_string && c == '\\') {
            i += feed_escape(&h, content.p + i + 1);
        } else if (in_string || (c != ' ' && c != '\t' && c != '\n' && c != '\r')) {
            h = feed(h, c);
        }
    }
    h ^= h >> 33;
    h *= 0xff51afd7ed558ccdu;
    h ^= h >> 33;
    return (int64_t)h;
}

const char *role_name(enum role role)
{
    static const char *const names[] = {"none", "member", "admin", "owner"};

    return names[role];
}
