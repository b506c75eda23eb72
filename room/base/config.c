#include "config.h"

#include "log.h"

#include <ctype.h>

static const struct setting keys[] = {
#define CONFIG_KEY(name, type, fallback, least, most, help) \
    {#name, SETTING_##type, fallback, least, most, help, offsetof(struct config, name)},
#include "config_keys.h"
#undef CONFIG_KEY
};

static bool is_for_callers(const char *name);
static void check_together(const struct config *config, struct buf *why);

static const struct settings settings = {keys, countof(keys), "ROOMD_", is_for_callers};

bool config_load(struct config *config, const char *path, char *const *environment, struct buf *why)
{
    size_t problems = why->n;

    *config = (struct config){0};
    settings_load(&settings, config, path, environment, why);
    check_together(config, why); /* in any case: all problems are told at once */
    if (why->n == problems)
        return true;
    config_clear(config);
    return false;
}

void config_clear(struct config *config)
{
    settings_clear(&settings, config);
    *config = (struct config){0};
}

void config_print(const struct config *config, struct buf *out)
{
    settings_print(&settings, config, out);
}

void config_manual(struct buf *out)
{
    settings_manual(&settings, out);
}

/* deploy/quickstart writes these for those who call roomd, and a shell that has read them may well start an instance:
 * ROOMD_URLS, ROOMD_SERVICE_KEY, ROOMD_1_URL, ... */
static bool is_for_callers(const char *name)
{
    const char *digits = name;

    if (strcmp(name, "urls") == 0 || strcmp(name, "service_key") == 0)
        return true;
    while (isdigit((unsigned char)*digits))
        digits++;
    return digits > name && strcmp(digits, "_url") == 0;
}

/* --- what must fit together --- */

static bool begins(struct str text, const char *with)
{
    size_t n = strlen(with);

    return text.n > n && memcmp(text.p, with, n) == 0;
}

/* Every item of `list` begins with one of two words. */
static void check_urls(const char *name, const char *list, const char *one, const char *other, struct buf *why)
{
    struct str rest = str_of(list), url;

    while (settings_list_next(&rest, &url))
        if (!begins(url, one) && !begins(url, other)) /* no value here: it may hold a password */
            buf_printf(why, "%s: an address begins with neither %s nor %s\n", name, one, other);
}

/* name:key, comma-separated. Says which one is wrong by its place, never by its text. */
static void check_keys(const char *name, const char *list, size_t key_least, bool unique, struct buf *why)
{
    struct str rest = str_of(list), item, names[64];
    size_t count = 0;

    while (settings_list_next(&rest, &item)) {
        const char *colon = memchr(item.p, ':', item.n);
        size_t n = colon ? (size_t)(colon - item.p) : 0;

        if (count == countof(names)) {
            buf_printf(why, "%s: more than %zu keys\n", name, countof(names));
            return;
        }
        names[count++] = (struct str){item.p, n};
        if (n == 0 || n > 64) {
            buf_printf(why, "%s: key %zu is not written as name:key\n", name, count);
            continue;
        }
        if (item.n - n - 1 < key_least)
            buf_printf(why, "%s: the key named %s is shorter than %zu bytes; `openssl rand -hex 32` makes a good one\n",
                name, log_quote(names[count - 1]), key_least);
        for (size_t i = 0; unique && i + 1 < count; i++)
            if (str_eq(names[i], names[count - 1]))
                buf_printf(why, "%s: two keys are named %s\n", name, log_quote(names[i]));
    }
}

static void check_not_empty(const char *name, const char *value, struct buf *why)
{
    struct str rest = str_of(value), item;

    if (!settings_list_next(&rest, &item))
        buf_printf(why, "%s: must not be empty\n", name);
}

/* Readers put a path behind it. */
static void check_advertise_url(const char *url, struct buf *why)
{
    size_t n = strlen(url);

    check_urls("advertise_url", url, "http://", "https://", why);
    if (strpbrk(url, " ,?#") || (n && url[n - 1] == '/'))
        buf_text(
            why, "advertise_url: one address is expected, without a slash at its end, such as http://10.0.0.5:7400\n");
}

static void check_together(const struct config *config, struct buf *why)
{
    enum log_level level;

    if (!log_level_parse(config->log_level, &level))
        buf_printf(
            why, "log_level: is %s; debug, info, warn or error is expected\n", log_quote(str_of(config->log_level)));
    check_not_empty("instance_name", config->instance_name, why);
    check_not_empty("listen_address", config->listen_address, why);
    check_not_empty("database_url", config->database_url, why);
    check_not_empty("broker_urls", config->broker_urls, why);
    check_urls("broker_urls", config->broker_urls, "amqp://", "amqps://", why);
    check_advertise_url(config->advertise_url, why);
    check_urls("allowed_origins", config->allowed_origins, "http://", "https://", why);
    check_keys("service_keys", config->service_keys, 1, false, why);
    /* RFC 7518 3.2: a key for HS256 is at least as long as the hash. */
    check_keys("ticket_keys", config->ticket_keys, 32, true, why);
    if (!*config->tls_certificate_file != !*config->tls_key_file)
        buf_text(why, "tls_certificate_file and tls_key_file: give both or neither\n");
    /* AMQP tells heartbeats in seconds. */
    if (config->broker_publish_heartbeat_ms % 1000)
        buf_text(why, "broker_publish_heartbeat_ms: must be whole seconds, such as 10000\n");
    if (config->broker_consume_heartbeat_ms % 1000)
        buf_text(why, "broker_consume_heartbeat_ms: must be whole seconds, such as 3000\n");
    if (config->lease_ttl_ms < 2 * config->beat_ms)
        buf_text(why, "lease_ttl_ms: must be at least two beats (2 x beat_ms), or one late beat costs the lease\n");
}

bool config_check_serve(const struct config *config, struct buf *why)
{
    struct str services = str_of(config->service_keys), tickets = str_of(config->ticket_keys), item;
    bool ok = true;

    if (!settings_list_next(&services, &item)) {
        buf_text(why, "service_keys: is empty, so nobody could call; give at least one name:key\n");
        ok = false;
    }
    if (!settings_list_next(&tickets, &item)) {
        buf_text(why,
            "ticket_keys: is empty, so nobody could open a stream; give at least one kid:key, the same on every "
            "instance (`openssl rand -hex 32` makes a key)\n");
        ok = false;
    }
    return ok;
}
