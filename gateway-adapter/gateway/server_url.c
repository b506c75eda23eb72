#include "server_url.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

static bool take(struct str *text, const char *prefix)
{
    size_t n = strlen(prefix);

    if (text->n < n || strncasecmp(text->p, prefix, n) != 0)
        return false;
    *text = (struct str){text->p + n, text->n - n};
    return true;
}

/* What stands behind the host: nothing, or a colon and a number. */
static bool read_port(struct str text, uint16_t *port)
{
    uint32_t number = 0;

    if (!text.n)
        return true;
    if (text.p[0] != ':' || text.n < 2 || text.n > 6)
        return false;
    for (size_t i = 1; i < text.n; i++) {
        if (text.p[i] < '0' || text.p[i] > '9')
            return false;
        number = number * 10 + (uint32_t)(text.p[i] - '0');
    }
    *port = (uint16_t)number;
    return number > 0 && number <= UINT16_MAX;
}

static bool read_host(struct server_url *server, struct str *text)
{
    bool bracket = take(text, "[");
    const char *end = text->n ? memchr(text->p, bracket ? ']' : ':', text->n) : NULL;
    size_t n = end ? (size_t)(end - text->p) : text->n;

    if (!n || n >= sizeof server->host || (bracket && !end) || memchr(text->p, '/', n) || memchr(text->p, '@', n))
        return false;
    memcpy(server->host, text->p, n);
    *text = (struct str){text->p + n + bracket, text->n - n - bracket};
    return true;
}

bool server_url_read(struct server_url *server, struct str url)
{
    bool bracket;

    *server = (struct server_url){.tls = take(&url, "https://")};
    if (!server->tls && !take(&url, "http://"))
        return false;
    server->port = server->tls ? 443 : 80;
    if (url.n && url.p[url.n - 1] == '/')
        url.n--;
    bracket = url.n && url.p[0] == '[';
    if (!read_host(server, &url) || !read_port(url, &server->port))
        return false;
    snprintf(server->authority, sizeof server->authority, bracket ? "[%s]:%u" : "%s:%u", server->host, server->port);
    return true;
}
