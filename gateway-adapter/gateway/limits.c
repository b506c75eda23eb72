/* What one account may do in a while. An account that does nothing is forgotten: the table is as large as
 * it is busy. */
#include "gateway.h"

#include <stdlib.h>
#include <string.h>

#include "room/base/mem.h"

#define SWEEP_MS 60000
#define ACCOUNTS_MAX 200000 /* more at once are let pass: the limit protects from few who do much */

struct limited {
    struct map_link by_account;
    uint64_t at, login_at; /* loop clock */
    double tokens, logins;
    uint32_t streams;
    uint8_t n;
    char account[];
};

struct limits {
    const struct gateway *gateway;
    struct map accounts;
    uint64_t swept_at;
};

struct limits *limits_open(const struct gateway *gateway)
{
    struct limits *limits = xcalloc(1, sizeof *limits);

    limits->gateway = gateway;
    map_init(&limits->accounts);
    return limits;
}

void limits_close(struct limits *limits)
{
    struct map_link *link, *next;

    for (link = map_next(&limits->accounts, NULL); link; link = next) {
        next = map_next(&limits->accounts, link);
        free(container_of(link, struct limited, by_account));
    }
    map_clear(&limits->accounts);
    free(limits);
}

static bool is_account(const struct map_link *link, const void *key)
{
    const struct limited *limited = container_of(link, const struct limited, by_account);

    return str_eq((struct str){limited->account, limited->n}, *(const struct str *)key);
}

static void sweep(struct limits *limits, uint64_t now)
{
    struct map_link *link, *next;

    if (now - limits->swept_at < SWEEP_MS)
        return;
    limits->swept_at = now;
    for (link = map_next(&limits->accounts, NULL); link; link = next) {
        struct limited *limited = container_of(link, struct limited, by_account);

        next = map_next(&limits->accounts, link);
        if (limited->streams || now - limited->at < SWEEP_MS || now - limited->login_at < SWEEP_MS)
            continue;
        map_remove(&limits->accounts, link);
        free(limited);
    }
}

static struct limited *limited_get(struct limits *limits, struct str account)
{
    uint64_t hash = map_hash(account.p, account.n), now = uv_now(limits->gateway->loop);
    struct map_link *link = map_find(&limits->accounts, hash, is_account, &account);
    struct limited *limited;

    if (link)
        return container_of(link, struct limited, by_account);
    sweep(limits, now);
    if (limits->accounts.count >= ACCOUNTS_MAX || account.n > ACCOUNT_MAX)
        return NULL;
    limited = xcalloc(1, sizeof *limited + account.n);
    limited->n = (uint8_t)account.n;
    memcpy(limited->account, account.p, account.n);
    limited->tokens = 2 * (double)limits->gateway->settings->account_requests_per_s;
    limited->logins = (double)limits->gateway->settings->logins_per_minute;
    limited->at = limited->login_at = now;
    map_insert(&limits->accounts, hash, &limited->by_account);
    return limited;
}

/* A bucket that fills with `per_s` and holds `most`. */
static bool take(double *tokens, uint64_t *at, uint64_t now, double per_s, double most)
{
    *tokens += (double)(now - *at) / 1000 * per_s;
    if (*tokens > most)
        *tokens = most;
    *at = now;
    if (*tokens < 1)
        return false;
    *tokens -= 1;
    return true;
}

bool limits_request(struct limits *limits, struct str account)
{
    double per_s = (double)limits->gateway->settings->account_requests_per_s;
    struct limited *limited = per_s > 0 ? limited_get(limits, account) : NULL;

    return !limited || take(&limited->tokens, &limited->at, uv_now(limits->gateway->loop), per_s, 2 * per_s);
}

bool limits_login(struct limits *limits, struct str account)
{
    double most = (double)limits->gateway->settings->logins_per_minute;
    struct limited *limited = most > 0 ? limited_get(limits, account) : NULL;

    return !limited || take(&limited->logins, &limited->login_at, uv_now(limits->gateway->loop), most / 60, most);
}

bool limits_stream_begin(struct limits *limits, struct str account)
{
    struct limited *limited = limited_get(limits, account);

    if (limited && limited->streams >= (uint64_t)limits->gateway->settings->account_streams_max)
        return false;
    if (limited)
        limited->streams++;
    return true;
}

void limits_stream_end(struct limits *limits, struct str account)
{
    struct limited *limited = limited_get(limits, account);

    if (limited && limited->streams)
        limited->streams--;
}
