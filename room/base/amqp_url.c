#include "amqp_url.h"

#include "text.h"

#include <stdio.h>
#include <stdlib.h>

static struct str without_spaces(struct str s)
{
    while (s.n && (*s.p == ' ' || *s.p == '\t' || *s.p == '\n'))
        s.p++, s.n--;
    while (s.n && (s.p[s.n - 1] == ' ' || s.p[s.n - 1] == '\t' || s.p[s.n - 1] == '\n'))
        s.n--;
    return s;
}

/* What is in front of the first `c` (all when there is none); *s keeps what is behind it. */
static struct str split_at(struct str *s, char c, bool *found)
{
    const char *at = s->n ? memchr(s->p, c, s->n) : NULL;
    struct str head = *s;

    *found = at != NULL;
    if (at) {
        head.n = (size_t)(at - s->p);
        *s = (struct str){at + 1, s->n - head.n - 1};
    } else {
        *s = (struct str){s->p + s->n, 0};
    }
    return head;
}

/* %-decodes; NULL when it is malformed, too long for AMQP, or holds control characters. */
static char *decode(struct str in)
{
    char *out = xmalloc(in.n + 1);
    size_t n = 0;

    for (size_t i = 0; i < in.n; i++) {
        unsigned char c = (unsigned char)in.p[i];

        if (c == '%') {
            int high = i + 2 < in.n ? hex_digit(in.p[i + 1]) : -1, low = i + 2 < in.n ? hex_digit(in.p[i + 2]) : -1;

            if (high < 0 || low < 0)
                goto bad;
            c = (unsigned char)(high << 4 | low);
            i += 2;
        }
        if (c < ' ' || c == 127)
            goto bad;
        out[n++] = (char)c;
    }
    if (n > AMQP_PART_MAX_BYTES)
        goto bad;
    out[n] = '\0';
    return out;

bad:
    free(out);
    return NULL;
}

static bool parse_port(struct str text, uint16_t *port)
{
    uint32_t value = 0;

    if (text.n == 0 || text.n > 5)
        return false;
    for (size_t i = 0; i < text.n; i++) {
        if (text.p[i] < '0' || text.p[i] > '9')
            return false;
        value = value * 10 + (uint32_t)(text.p[i] - '0');
    }
    if (value == 0 || value > UINT16_MAX)
        return false;
    *port = (uint16_t)value;
    return true;
}

static bool parse_host(struct amqp_address *address, struct str text)
{
    struct str host;
    bool found;

    if (text.n && *text.p == '[') { /* [::1]:5672 */
        text.p++, text.n--;
        host = split_at(&text, ']', &found);
        if (!found || (text.n && *text.p != ':'))
            return false;
        if (text.n)
            text.p++, text.n--;
        else
            found = false;
    } else {
        host = split_at(&text, ':', &found);
    }
    if (found && !parse_port(text, &address->port))
        return false;
    address->host = decode(host);
    return address->host && *address->host;
}

static const char *last_at_sign(struct str s)
{
    for (size_t i = s.n; i > 0; i--) {
        if (s.p[i - 1] == '@')
            return s.p + i - 1;
    }
    return NULL;
}

static bool parse_one(struct amqp_address *address, struct str url)
{
    struct str path, place, login = STR("guest:guest"), user;
    const char *at;
    bool found;

    if (url.n > 7 && memcmp(url.p, "amqp://", 7) == 0) {
        path = (struct str){url.p + 7, url.n - 7};
        address->port = 5672;
    } else if (url.n > 8 && memcmp(url.p, "amqps://", 8) == 0) {
        path = (struct str){url.p + 8, url.n - 8};
        address->port = 5671;
        address->tls = true;
    } else {
        return false;
    }
    place = split_at(&path, '/', &found);
    if ((path.n && (memchr(path.p, '/', path.n) || memchr(path.p, '?', path.n) || memchr(path.p, '#', path.n))))
        return false;
    if ((at = last_at_sign(place))) {
        login = (struct str){place.p, (size_t)(at - place.p)};
        place = (struct str){at + 1, place.n - login.n - 1};
    }
    user = split_at(&login, ':', &found);
    address->user = decode(user);
    address->password = decode(login);
    address->vhost = path.n ? decode(path) : xstrdup("/");
    return address->user && *address->user && address->password && address->vhost && parse_host(address, place);
}

/* A comma may have cut a password in two: what stands in front of an @ is never shown, and without one only what
 * cannot be part of a password: an address that has no login in a list where every item is an address. */
static void name_without_password(struct str item, struct str all, char *bad, size_t bad_size)
{
    const char *at = last_at_sign(item);
    bool found = true, all_are_addresses = true;

    while (found) {
        struct str one = without_spaces(split_at(&all, ',', &found));

        all_are_addresses = all_are_addresses && one.n > 4 && memcmp(one.p, "amqp", 4) == 0;
    }
    if (at)
        snprintf(bad, bad_size, "…@%.*s", (int)(item.p + item.n - at - 1), at + 1);
    else if (all_are_addresses)
        snprintf(bad, bad_size, "%.*s", STR_ARG(item));
    else
        snprintf(bad, bad_size, "(not shown: it may be a part of a password)");
}

static void address_set_name(struct amqp_address *address)
{
    size_t size = strlen(address->host) + strlen(address->vhost) + 16;

    address->name = xmalloc(size);
    snprintf(address->name, size, strchr(address->host, ':') ? "[%s]:%u/%s" : "%s:%u/%s", address->host, address->port,
        strcmp(address->vhost, "/") ? address->vhost : "");
}

enum err amqp_addresses_parse(
    struct amqp_address addresses[AMQP_ADDRESSES_MAX], size_t *count, const char *urls, char *bad, size_t bad_size)
{
    struct str all = str_of(urls), rest = all;
    size_t n = 0;
    bool found = true;

    while (found) {
        struct str one = without_spaces(split_at(&rest, ',', &found));

        if (n < AMQP_ADDRESSES_MAX)
            addresses[n] = (struct amqp_address){0};
        if (n == AMQP_ADDRESSES_MAX || !parse_one(&addresses[n++], one)) {
            name_without_password(one, all, bad, bad_size);
            while (n)
                amqp_address_clear(&addresses[--n]);
            return ERR_BAD_REQUEST;
        }
        address_set_name(&addresses[n - 1]);
    }
    *count = n;
    return ERR_OK;
}

void amqp_address_clear(struct amqp_address *address)
{
    if (address->password)
        memset(address->password, 0, strlen(address->password));
    free(address->user);
    free(address->password);
    free(address->host);
    free(address->vhost);
    free(address->name);
    *address = (struct amqp_address){0};
}
