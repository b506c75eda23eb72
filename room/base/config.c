#include "config.h"

#include "log.h"

#include <ctype.h>
#include <errno.h>
#include <ini.h>
#include <stdio.h>
#include <stdlib.h>

struct setting {
    const char *name;
    enum config_type type;
    const char *fallback;
    int64_t least, most;
    const char *help;
    size_t offset; /* of the field in struct config */
};

static const struct setting settings[] = {
#define CONFIG_KEY(name, type, fallback, least, most, help) \
    {#name, type, fallback, least, most, help, offsetof(struct config, name)},
#include "config_keys.h"
#undef CONFIG_KEY
};

enum { SETTINGS = countof(settings) };

/* What one source (file or environment) says about each setting, before anything is made of it. */
struct source {
    struct {
        char *text;   /* NULL: nothing */
        char *where;  /* "roomd.conf:7", "ROOMD_LOG_LEVEL" */
        bool is_path; /* given as <key>_file */
    } given[SETTINGS];
};

static void source_from_file(struct source *source, const char *path, struct buf *why);
static void source_from_environment(struct source *source, char *const *environment, struct buf *why);
static void source_apply(struct source *source, struct config *config, struct buf *why);
static bool value_set(
    struct config *config, const struct setting *setting, const char *text, const char *where, struct buf *why);
static void check_together(const struct config *config, struct buf *why);

bool config_load(struct config *config, const char *path, char *const *environment, struct buf *why)
{
    struct source source = {0};
    size_t problems = why->n;

    *config = (struct config){0};
    for (size_t i = 0; i < SETTINGS; i++)
        (void)value_set(config, &settings[i], settings[i].fallback, "default", why);
    if (path) {
        source_from_file(&source, path, why);
        source_apply(&source, config, why);
    }
    if (environment) {
        source_from_environment(&source, environment, why);
        source_apply(&source, config, why);
    }
    check_together(config, why);
    if (why->n == problems)
        return true;
    config_clear(config);
    return false;
}

static const char **text_field(struct config *config, const struct setting *setting)
{
    return (const char **)(void *)((char *)config + setting->offset);
}

static const void *field(const struct config *config, const struct setting *setting)
{
    return (const char *)config + setting->offset;
}

static bool is_text(const struct setting *setting)
{
    return setting->type == CONFIG_TEXT || setting->type == CONFIG_SECRET;
}

void config_clear(struct config *config)
{
    for (size_t i = 0; i < SETTINGS; i++)
        if (is_text(&settings[i]))
            free((void *)(uintptr_t)*text_field(config, &settings[i]));
    *config = (struct config){0};
}

/* --- which setting is meant --- */

/* Finds the setting `name`; *is_path when it is <secret>_file. */
static const struct setting *setting_find(const char *name, bool *is_path)
{
    size_t n = strlen(name);
    size_t stem = n > 5 && strcmp(name + n - 5, "_file") == 0 ? n - 5 : 0;

    for (size_t i = 0; i < SETTINGS; i++) {
        if (strcmp(settings[i].name, name) == 0) {
            *is_path = false;
            return &settings[i];
        }
        if (stem && settings[i].type == CONFIG_SECRET && strlen(settings[i].name) == stem &&
            strncmp(settings[i].name, name, stem) == 0) {
            *is_path = true;
            return &settings[i];
        }
    }
    return NULL;
}

/* Levenshtein: insertions, deletions and replacements that make a into b. */
static size_t distance(const char *a, const char *b)
{
    enum { LONGEST = 64 };
    size_t row[LONGEST + 1], n = strlen(b);

    if (n > LONGEST)
        return SIZE_MAX;
    for (size_t j = 0; j <= n; j++)
        row[j] = j;
    for (size_t i = 0; a[i]; i++) {
        size_t diagonal = row[0];

        row[0] = i + 1;
        for (size_t j = 0; j < n; j++) {
            size_t best = diagonal + (a[i] != b[j]);

            diagonal = row[j + 1];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (diagonal + 1 < best)
                best = diagonal + 1;
            row[j + 1] = best;
        }
    }
    return row[n];
}

static void say_unknown(const char *where, const char *name, struct buf *why)
{
    const struct setting *nearest = NULL;
    size_t least = strlen(name) / 3 + 1; /* farther away it is a guess, not a slip */

    buf_printf(why, "%s: there is no setting %s", where, log_quote(str_of(name)));
    for (size_t i = 0; i < SETTINGS; i++) {
        size_t far = distance(name, settings[i].name);

        if (far < least) {
            least = far;
            nearest = &settings[i];
        }
    }
    if (nearest)
        buf_printf(why, "; did you mean %s?", nearest->name);
    buf_char(why, '\n');
}

static void source_give(struct source *source, const char *name, const char *text, const char *where, struct buf *why)
{
    bool is_path;
    const struct setting *setting = setting_find(name, &is_path);
    size_t i;

    if (!setting) {
        say_unknown(where, name, why);
        return;
    }
    i = (size_t)(setting - settings);
    if (source->given[i].text) {
        buf_printf(why, "%s: %s is given twice, first at %s\n", where, setting->name, source->given[i].where);
        return;
    }
    source->given[i].text = xstrdup(text);
    source->given[i].where = xstrdup(where);
    source->given[i].is_path = is_path;
}

/* --- the file --- */

struct file {
    FILE *stream;
    const char *path;
    unsigned line;
    bool indented; /* inih reads such a line as the rest of the value above */
    struct source *source;
    struct buf *why;
};

static void file_where(const struct file *file, struct buf *where)
{
    buf_printf(where, "%s:%u", file->path, file->line);
    buf_char(where, '\0');
}

/* inih asks for a line. It would drop the end of one that is too long without a word. */
static char *file_line(char *line, int size, void *stream)
{
    struct file *file = stream;
    size_t n;
    int c;

    if (!fgets(line, size, file->stream))
        return NULL;
    file->line++;
    file->indented = line[0] == ' ' || line[0] == '\t';
    n = strlen(line);
    if (n + 1 < (size_t)size || line[n - 1] == '\n')
        return line;
    c = getc(file->stream);
    if (c == EOF)
        return line;
    while (c != '\n' && c != EOF)
        c = getc(file->stream);
    buf_printf(file->why,
        "%s:%u: the line is longer than %d bytes; go on in the next line, beginning with a space, or use <key>_file\n",
        file->path, file->line, size - 1);
    memcpy(line, "\n", 2);
    return line;
}

/* The line continues the value of `name`. Is it a setting that somebody has indented? */
static bool looks_like_setting(const char *text)
{
    size_t n = strspn(text, "abcdefghijklmnopqrstuvwxyz_0123456789");
    char name[65];
    bool is_path;

    if (n == 0 || n >= sizeof name || text[n + strspn(text + n, " \t")] != '=')
        return false;
    memcpy(name, text, n);
    name[n] = '\0';
    return setting_find(name, &is_path) != NULL;
}

static void file_continue(struct file *file, const char *name, const char *text)
{
    bool is_path;
    const struct setting *setting = setting_find(name, &is_path);
    char **value;
    struct buf joined = {0};

    if (looks_like_setting(text)) {
        buf_printf(file->why, "%s:%u: an indented line continues %s; remove the spaces to set something else\n",
            file->path, file->line, name);
        return;
    }
    if (!setting || !file->source->given[setting - settings].text)
        return; /* complained about above */
    value = &file->source->given[setting - settings].text;
    buf_text(&joined, *value);
    buf_text(&joined, text);
    buf_char(&joined, '\0');
    free(*value);
    *value = joined.p;
}

static int file_setting(void *user, const char *section, const char *name, const char *text)
{
    struct file *file = user;
    struct buf where = {0};

    file_where(file, &where);
    if (*section)
        buf_printf(file->why, "%s: there are no sections; remove the line [%s]\n", where.p, section);
    else if (file->indented)
        file_continue(file, name, text);
    else
        source_give(file->source, name, text, where.p, file->why);
    buf_clear(&where);
    return 1;
}

static void source_from_file(struct source *source, const char *path, struct buf *why)
{
    struct file file = {.path = path, .source = source, .why = why};
    int bad_line;

    file.stream = fopen(path, "re");
    if (!file.stream) {
        buf_printf(why, "%s: cannot be opened: %s\n", path, strerror(errno));
        return;
    }
    bad_line = ini_parse_stream(file_line, &file, file_setting, &file);
    if (ferror(file.stream))
        buf_printf(why, "%s: cannot be read: %s\n", path, strerror(errno));
    else if (bad_line > 0)
        buf_printf(why, "%s:%d: `key = value` is expected\n", path, bad_line);
    else if (bad_line < 0)
        buf_printf(why, "%s: cannot be read\n", path);
    fclose(file.stream);
}

/* --- the environment --- */

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

static void source_from_environment(struct source *source, char *const *environment, struct buf *why)
{
    static const char prefix[] = "ROOMD_";
    struct buf name = {0}, where = {0};

    for (; *environment; environment++) {
        const char *entry = *environment, *equals = strchr(entry, '=');

        if (!equals || strncmp(entry, prefix, sizeof prefix - 1) != 0)
            continue;
        buf_reset(&where);
        buf_add(&where, entry, (size_t)(equals - entry));
        buf_char(&where, '\0');
        buf_reset(&name);
        for (const char *c = entry + sizeof prefix - 1; c < equals; c++)
            buf_char(&name, (char)tolower((unsigned char)*c));
        buf_char(&name, '\0');
        if (!is_for_callers(name.p))
            source_give(source, name.p, equals + 1, where.p, why);
    }
    buf_clear(&name);
    buf_clear(&where);
}

/* --- values --- */

/* The first line of a secret's file. */
static bool secret_read(const char *path, struct buf *text, const char *where, struct buf *why)
{
    FILE *stream = fopen(path, "re");
    int c = EOF;

    if (stream) {
        while ((c = getc(stream)) != EOF && c != '\n')
            buf_char(text, (char)c);
    }
    if (!stream || (c == EOF && ferror(stream))) {
        buf_printf(why, "%s: %s cannot be read: %s\n", where, log_quote(str_of(path)), strerror(errno));
        if (stream)
            fclose(stream);
        return false;
    }
    fclose(stream);
    while (text->n && isspace((unsigned char)text->p[text->n - 1]))
        text->n--;
    buf_char(text, '\0');
    return true;
}

/* Makes values of what the source gave, and empties it. */
static void source_apply(struct source *source, struct config *config, struct buf *why)
{
    for (size_t i = 0; i < SETTINGS; i++) {
        struct buf secret = {0};
        const char *text = source->given[i].text, *where = source->given[i].where;

        if (!text)
            continue;
        if (!source->given[i].is_path)
            (void)value_set(config, &settings[i], text, where, why);
        else if (secret_read(text, &secret, where, why))
            (void)value_set(config, &settings[i], secret.p, where, why);
        buf_clear(&secret);
        free(source->given[i].text);
        free(source->given[i].where);
    }
    *source = (struct source){0};
}

/* 65536 as 64k: the largest unit that leaves no rest. */
static void print_bytes(struct buf *out, int64_t bytes)
{
    static const char units[] = "kmg";
    int unit = -1;

    while (bytes && bytes % 1024 == 0 && unit < 2) {
        bytes /= 1024;
        unit++;
    }
    buf_i64(out, bytes);
    if (unit >= 0)
        buf_char(out, units[unit]);
}

static void print_number(struct buf *out, const struct setting *setting, int64_t number)
{
    if (setting->type == CONFIG_BYTES)
        print_bytes(out, number);
    else
        buf_i64(out, number);
}

static bool number_read(const struct setting *setting, const char *text, int64_t *number)
{
    char *end;
    int64_t unit = 1;

    if (!isdigit((unsigned char)text[*text == '-']))
        return false; /* strtoll would skip spaces and take a plus */
    errno = 0;
    *number = strtoll(text, &end, 10);
    if (setting->type == CONFIG_BYTES && *end) {
        char c = (char)tolower((unsigned char)*end++);

        unit = c == 'k' ? 1 << 10 : c == 'm' ? 1 << 20 : c == 'g' ? 1 << 30 : 0;
    }
    return errno == 0 && *end == '\0' && unit > 0 && !__builtin_mul_overflow(*number, unit, number);
}

static bool number_set(
    struct config *config, const struct setting *setting, const char *text, const char *where, struct buf *why)
{
    static const char *const kind[] = {[CONFIG_INT] = "a whole number",
        [CONFIG_MS] = "a whole number of milliseconds",
        [CONFIG_BYTES] = "a number of bytes, or of k, m, g (such as 64k)"};
    int64_t number;

    if (number_read(setting, text, &number) && number >= setting->least && number <= setting->most) {
        memcpy((char *)config + setting->offset, &number, sizeof number);
        return true;
    }
    buf_printf(why, "%s: %s is %s; %s from ", where, setting->name, log_quote(str_of(text)), kind[setting->type]);
    print_number(why, setting, setting->least);
    buf_text(why, " to ");
    print_number(why, setting, setting->most);
    buf_text(why, " is expected\n");
    return false;
}

static bool bool_set(
    struct config *config, const struct setting *setting, const char *text, const char *where, struct buf *why)
{
    static const char *const words[] = {"false", "true", "no", "yes", "0", "1"};

    for (size_t i = 0; i < countof(words); i++) {
        if (strcmp(text, words[i]) == 0) {
            *(bool *)((char *)config + setting->offset) = i % 2;
            return true;
        }
    }
    buf_printf(why, "%s: %s is %s; yes or no is expected\n", where, setting->name, log_quote(str_of(text)));
    return false;
}

static bool value_set(
    struct config *config, const struct setting *setting, const char *text, const char *where, struct buf *why)
{
    const char **value;

    if (setting->type == CONFIG_BOOL)
        return bool_set(config, setting, text, where, why);
    if (!is_text(setting))
        return number_set(config, setting, text, where, why);
    value = text_field(config, setting);
    free((void *)(uintptr_t)*value);
    *value = xstrdup(text);
    return true;
}

/* --- what must fit together --- */

bool config_list_next(struct str *list, struct str *item)
{
    while (list->n) {
        const char *comma = memchr(list->p, ',', list->n);
        size_t n = comma ? (size_t)(comma - list->p) : list->n;

        *item = (struct str){list->p, n};
        n += comma != NULL;
        list->p += n;
        list->n -= n;
        while (item->n && isspace((unsigned char)item->p[0]))
            item->p++, item->n--;
        while (item->n && isspace((unsigned char)item->p[item->n - 1]))
            item->n--;
        if (item->n)
            return true;
    }
    return false;
}

static bool begins(struct str text, const char *with)
{
    size_t n = strlen(with);

    return text.n > n && memcmp(text.p, with, n) == 0;
}

/* Every item of `list` begins with one of two words. */
static void check_urls(const char *name, const char *list, const char *one, const char *other, struct buf *why)
{
    struct str rest = str_of(list), url;

    while (config_list_next(&rest, &url))
        if (!begins(url, one) && !begins(url, other)) /* no value here: it may hold a password */
            buf_printf(why, "%s: an address begins with neither %s nor %s\n", name, one, other);
}

/* name:key, comma-separated. Says which one is wrong by its place, never by its text. */
static void check_keys(const char *name, const char *list, size_t key_least, bool unique, struct buf *why)
{
    struct str rest = str_of(list), item, names[64];
    size_t count = 0;

    while (config_list_next(&rest, &item)) {
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

    if (!config_list_next(&rest, &item))
        buf_printf(why, "%s: must not be empty\n", name);
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
    check_urls("advertise_url", config->advertise_url, "http://", "https://", why);
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

    if (!config_list_next(&services, &item)) {
        buf_text(why, "service_keys: is empty, so nobody could call; give at least one name:key\n");
        ok = false;
    }
    if (!config_list_next(&tickets, &item)) {
        buf_text(why,
            "ticket_keys: is empty, so nobody could open a stream; give at least one kid:key, the same on every "
            "instance (`openssl rand -hex 32` makes a key)\n");
        ok = false;
    }
    return ok;
}

/* --- for people --- */

void config_print(const struct config *config, struct buf *out)
{
    for (size_t i = 0; i < SETTINGS; i++) {
        const struct setting *setting = &settings[i];
        const void *value = field(config, setting);

        buf_printf(out, "%s = ", setting->name);
        switch (setting->type) {
        case CONFIG_TEXT:
            buf_text(out, *(const char *const *)value);
            break;
        case CONFIG_SECRET:
            buf_text(out, **(const char *const *)value ? "***" : "");
            break;
        case CONFIG_BOOL:
            buf_text(out, *(const bool *)value ? "yes" : "no");
            break;
        case CONFIG_INT:
        case CONFIG_MS:
        case CONFIG_BYTES:
            print_number(out, setting, *(const int64_t *)value);
        }
        buf_char(out, '\n');
    }
}

static void manual_values(struct buf *out, const struct setting *setting)
{
    static const char *const kind[] = {[CONFIG_TEXT] = "text",
        [CONFIG_SECRET] = "secret",
        [CONFIG_INT] = "number",
        [CONFIG_MS] = "milliseconds",
        [CONFIG_BYTES] = "bytes",
        [CONFIG_BOOL] = "yes or no"};

    buf_text(out, kind[setting->type]);
    if (is_text(setting) || setting->type == CONFIG_BOOL)
        return;
    buf_char(out, ' ');
    print_number(out, setting, setting->least);
    buf_text(out, " to ");
    print_number(out, setting, setting->most);
}

void config_manual(struct buf *out)
{
    buf_text(out,
        "Every setting has a default and may be set in the configuration file as `key = value` and in the\n"
        "environment as ROOMD_KEY (in capitals: log_level is ROOMD_LOG_LEVEL), which wins over the file.\n"
        "A `;` or `#` at the beginning of a line makes it a comment; a line that begins with a space goes on\n"
        "with the value above. A secret may stand in a file of its own: `key_file = path` (first line counts).\n"
        "Milliseconds are plain numbers; bytes may end in k, m or g (1024).\n\n"
        "| setting | default | values | what it is |\n"
        "| --- | --- | --- | --- |\n");
    for (size_t i = 0; i < SETTINGS; i++) {
        const struct setting *setting = &settings[i];

        buf_printf(out, "| %s | %s | ", setting->name, *setting->fallback ? setting->fallback : "(empty)");
        manual_values(out, setting);
        buf_printf(out, " | %s |\n", setting->help);
    }
}
