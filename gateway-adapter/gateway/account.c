/* Accounts are the BaseService's: it knows passwords and names. The gateway only remembers who has logged in. */
#include "gateway.h"

#include <inttypes.h>
#include <string.h>

#include "room/base/clock.h"

#define NAMES_MOST 100

static void on_checked(struct fetch *fetch);
static void on_myself(struct fetch *fetch);
static void on_names(struct fetch *fetch);

/* Asks the BaseService for accounts by their ids. */
static void ask_names(struct ask *ask, void (*done)(struct fetch *fetch))
{
    buf_char(&ask->out, '\0');
    ask->fetch = (struct fetch){.method = "GET", .path = ask->out.p, .done = done, .arg = ask};
    fetch_start(ask->gateway->fetches, &ask->fetch);
}

/* RFC 3986 2.3: what needs no escape has none, for readers that compare bytes. */
void add_percent(struct buf *out, struct str text)
{
    for (size_t i = 0; i < text.n; i++) {
        unsigned char c = (unsigned char)text.p[i];

        if ((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c && strchr("-._~", c)))
            buf_char(out, text.p[i]);
        else
            buf_printf(out, "%%%02X", c);
    }
}

/* ---------------------------------------------------------------------------------------------------- the session */

/* {account, password, token?: true} */
void account_login(struct ask *ask)
{
    bool ok = true;
    const char *account = ask_text(ask, "account", ACCOUNT_MAX, &ok);
    const char *password = ok ? ask_text(ask, "password", 256, &ok) : NULL;

    ask->number = ok && ask_flag(ask, "token", &ok);
    if (!ok)
        return;
    if (!account || !password || !*account) {
        ask_refuse(ask, ERR_BAD_REQUEST, account ? "password" : "account", "account and password are wanted");
        return;
    }
    ask->gateway->logins_total++;
    if (!limits_login(ask->gateway->limits, str_of(account))) {
        ask_refuse(ask, ERR_RATE_LIMITED, NULL, "too many log-ins of this account; wait a minute");
        return;
    }
    buf_text(&ask->out, "{\"account_id\":");
    buf_json_string(&ask->out, str_of(account));
    buf_text(&ask->out, ",\"password\":");
    buf_json_string(&ask->out, str_of(password));
    buf_char(&ask->out, '}');
    memcpy(ask->account, account, strlen(account) + 1);
    ask->session_begun_at = clock_unix_ms();
    ask->fetch = (struct fetch){
        .method = "POST", .path = "/accounts/login", .body = buf_str(&ask->out), .done = on_checked, .arg = ask};
    fetch_start(ask->gateway->fetches, &ask->fetch);
}

/* {account_id, name, expires_at, token?}; `about` is the BaseService's object with a name. */
static void answer_session(struct ask *ask, struct json about, bool renew)
{
    struct json name = about.type == JSON_OBJECT ? json_get(about, "name") : about;
    struct buf token = {0}, json = {0};
    uint64_t expires = ask->session_expires_at;

    if (renew)
        expires = session_grant(ask->gateway, ask->reply, ask->account, ask->session_begun_at, &token);
    buf_text(&json, "{\"account_id\":");
    buf_json_string(&json, str_of(ask->account));
    buf_text(&json, ",\"name\":");
    if (name.type == JSON_STRING)
        buf_add(&json, name.p, name.n);
    else
        buf_json_string(&json, str_of(ask->account));
    buf_printf(&json, ",\"expires_at\":%" PRIu64, expires);
    if (renew && ask->number) {
        buf_text(&json, ",\"token\":");
        buf_json_string(&json, buf_str(&token));
    }
    buf_char(&json, '}');
    buf_clear(&token);
    ask_json(ask, buf_str(&json));
    buf_clear(&json);
}

static void on_checked(struct fetch *fetch)
{
    struct ask *ask = fetch->arg;
    struct json about = {.type = JSON_NONE};
    const char *why;

    if (fetch->status == 200 && json_check(fetch->answer, &about, &why)) {
        answer_session(ask, about, true);
    } else if (fetch->status == 401 || fetch->status == 403 || fetch->status == 404) {
        ask->gateway->logins_refused_total++;
        ask_refuse(ask, ERR_UNAUTHENTICATED, NULL, "account or password is wrong");
    } else {
        ask_refuse(ask, ERR_UNAVAILABLE, NULL, "accounts cannot be asked for at the moment; try again");
    }
}

void account_logout(struct ask *ask)
{
    session_end(ask->gateway, ask->reply);
    ask_done(ask);
}

static void tell_myself(struct ask *ask, bool renew)
{
    ask->text = renew ? "renew" : NULL;
    buf_text(&ask->out, "/accounts?ids=");
    add_percent(&ask->out, str_of(ask->account));
    ask_names(ask, on_myself);
}

void account_me(struct ask *ask)
{
    tell_myself(ask, false);
}

/* A session that is still good goes on. */
void account_refresh(struct ask *ask)
{
    bool ok = true;

    ask->number = ask_flag(ask, "token", &ok);
    if (ok)
        tell_myself(ask, true);
}

/* Without the BaseService the id stands for the name: who is logged in stays so. */
static void on_myself(struct fetch *fetch)
{
    struct ask *ask = fetch->arg;
    struct json answer = {.type = JSON_NONE}, about = {.type = JSON_NONE}, list;
    struct json_walk walk;
    const char *why;

    if (fetch->status == 200 && json_check(fetch->answer, &answer, &why) && answer.type == JSON_OBJECT) {
        list = json_get(answer, "accounts");
        walk = json_walk(list);
        if (list.type == JSON_ARRAY)
            (void)json_next_item(&walk, &about);
    }
    answer_session(ask, about, ask->text != NULL);
}

/* ----------------------------------------------------------------------------------------------------------- names */

void add_name(struct buf *out, struct json names, const char *account)
{
    struct json list = names.type == JSON_OBJECT ? json_get(names, "accounts") : (struct json){.type = JSON_NONE}, item;
    struct json_walk walk = json_walk(list);
    struct buf scratch = {0};
    struct str id;

    while (list.type == JSON_ARRAY && json_next_item(&walk, &item)) {
        struct json its = item.type == JSON_OBJECT ? json_get(item, "account_id") : item,
                    name = item.type == JSON_OBJECT ? json_get(item, "name") : item;

        buf_reset(&scratch);
        if (its.type == JSON_STRING && json_string(its, &scratch, &id) && str_is(id, account) &&
            name.type == JSON_STRING) {
            buf_add(out, name.p, name.n);
            buf_clear(&scratch);
            return;
        }
    }
    buf_clear(&scratch);
    buf_json_string(out, str_of(account));
}

/* ?ids=a,b, or ?match=text: {"accounts":[{"account_id", "name"}, …]}, as the BaseService says it. */
void account_names(struct ask *ask)
{
    const char *ids = ask_param(ask, "ids"), *match = ask_param(ask, "match");
    struct str rest = str_of(ids ? ids : ""), id;
    size_t n = 0;

    buf_text(&ask->out, ids ? "/accounts?ids=" : "/accounts?match=");
    while (ids && settings_list_next(&rest, &id)) {
        if (++n > NAMES_MOST) {
            ask_refuse(ask, ERR_BAD_REQUEST, "ids", "ids holds more than %d accounts", NAMES_MOST);
            return;
        }
        if (n > 1)
            buf_char(&ask->out, ',');
        add_percent(&ask->out, id);
    }
    if (ids ? !n : !match) {
        ask_refuse(ask, ERR_BAD_REQUEST, "ids", "ids is a list of accounts, separated by commas; or give match");
        return;
    }
    if (!ids)
        add_percent(&ask->out, str_of(match));
    ask_names(ask, on_names);
}

static void on_names(struct fetch *fetch)
{
    struct ask *ask = fetch->arg;

    if (fetch->status == 200)
        ask_json(ask, fetch->answer);
    else
        ask_refuse(ask, ERR_UNAVAILABLE, NULL, "names cannot be asked for at the moment; try again");
}
