/* Who somebody is: a sealed cookie, so that every gateway process knows it and none keeps it. */
#define _GNU_SOURCE /* memmem */
#include "gateway.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "room/base/clock.h"

static const char cookie_name[] = "roomd_session";

uint64_t session_grant(
    const struct gateway *gateway, struct http_reply *reply, const char *account, uint64_t begun_at, struct buf *token)
{
    const struct gateway_settings *settings = gateway->settings;
    uint64_t now = clock_unix_ms(), expires = now + (uint64_t)settings->session_ttl_ms,
             most = begun_at + (uint64_t)settings->session_most_ms;
    struct buf plain = {0}, cookie = {0};

    if (expires > most)
        expires = most;
    buf_printf(&plain, "%" PRIu64 " %" PRIu64 " %s", begun_at, expires, account);
    seal(token, &gateway->key, "session", buf_str(&plain));
    buf_printf(&cookie, "%s=%.*s", cookie_name, STR_ARG(buf_str(token)));
    buf_printf(&cookie, "; Path=/; HttpOnly; SameSite=Strict; Max-Age=%" PRIu64 "%s", (expires - now) / 1000,
        settings->secure_cookie ? "; Secure" : "");
    buf_char(&cookie, '\0');
    http_reply_header(reply, "set-cookie", cookie.p);
    buf_clear(&plain);
    buf_clear(&cookie);
    return expires;
}

void session_end(const struct gateway *gateway, struct http_reply *reply)
{
    char cookie[100];

    snprintf(cookie, sizeof cookie, "%s=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0%s", cookie_name,
        gateway->settings->secure_cookie ? "; Secure" : "");
    http_reply_header(reply, "set-cookie", cookie);
}

/* RFC 6265 5.4: name=value, separated by a semicolon and a blank. */
static bool cookie_find(struct str cookies, const char *name, struct str *value)
{
    size_t name_n = strlen(name);

    while (cookies.n) {
        const char *end = memchr(cookies.p, ';', cookies.n);
        size_t n = end ? (size_t)(end - cookies.p) : cookies.n;
        struct str one = {cookies.p, n};

        while (one.n && one.p[0] == ' ')
            one.p++, one.n--;
        if (one.n > name_n && one.p[name_n] == '=' && memcmp(one.p, name, name_n) == 0) {
            *value = (struct str){one.p + name_n + 1, one.n - name_n - 1};
            return true;
        }
        n += end != NULL;
        cookies = (struct str){cookies.p + n, cookies.n - n};
    }
    return false;
}

bool session_read(const struct gateway *gateway, const struct http_request *request, struct session *session)
{
    static const char scheme[] = "Bearer ";
    struct buf plain = {0};
    struct str value, bearer = http_header(request, "authorization");
    int account_at = 0;
    bool ok;

    session->by_token = bearer.n > sizeof scheme - 1 && !strncasecmp(bearer.p, scheme, sizeof scheme - 1);
    if (session->by_token)
        value = (struct str){bearer.p + sizeof scheme - 1, bearer.n - (sizeof scheme - 1)};
    ok = (session->by_token || cookie_find(http_header(request, "cookie"), cookie_name, &value)) &&
         seal_open(&plain, &gateway->key, "session", value);

    if (ok) {
        buf_char(&plain, '\0');
        ok =
            sscanf(plain.p, "%" SCNu64 " %" SCNu64 " %n", &session->begun_at, &session->expires_at, &account_at) == 2 &&
            account_at && strlen(plain.p + account_at) <= ACCOUNT_MAX && clock_unix_ms() < session->expires_at;
    }
    if (ok)
        memcpy(session->account, plain.p + account_at, strlen(plain.p + account_at) + 1);
    buf_clear(&plain);
    return ok;
}

bool origin_allowed(const struct gateway *gateway, const struct http_request *request)
{
    struct str origin = http_header(request, "origin"), host = http_header(request, "host"), item,
               list = str_of(gateway->settings->allowed_origins);
    const char *at;

    if (!origin.n)
        return true;
    while (settings_list_next(&list, &item))
        if (str_eq(item, origin))
            return true;
    at = memmem(origin.p, origin.n, "://", 3);
    return at && host.n && (size_t)(origin.p + origin.n - at) - 3 == host.n && !strncasecmp(at + 3, host.p, host.n);
}
