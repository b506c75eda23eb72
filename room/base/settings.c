#include "settings.h"

#include "log.h"

#include <ctype.h>
#include <errno.h>
#include <ini.h>
#include <stdio.h>
#include <stdlib.h>

/* What one source (file or environment) says about each setting, before anything is made of it. */
struct source {
    const struct settings *settings;
    struct given {
        char *text;   /* NULL: nothing */
        char *where;  /* "roomd.conf:7", "ROOMD_LOG_LEVEL" */
        bool is_path; /* given as <key>_file */
    } * given;        /* one per setting */
};

static void source_from_file(struct source *source, const char *path, struct buf *why);
static void source_from_environment(struct source *source, char *const *environment, struct buf *why);
static void source_apply(struct source *source, void *values, struct buf *why);
static bool value_set(
    void *values, const struct setting *setting, const char *text, const char *where, struct buf *why);

bool settings_load(
    const struct settings *settings, void *values, const char *path, char *const *environment, struct buf *why)
{
    struct source source = {.settings = settings, .given = xcalloc(settings->count, sizeof *source.given)};
    size_t problems = why->n;

    for (size_t i = 0; i < settings->count; i++)
        (void)value_set(values, &settings->list[i], settings->list[i].fallback, "default", why);
    if (path) {
        source_from_file(&source, path, why);
        source_apply(&source, values, why);
    }
    if (environment) {
        source_from_environment(&source, environment, why);
        source_apply(&source, values, why);
    }
    free(source.given);
    return why->n == problems;
}

static const char **text_field(void *values, const struct setting *setting)
{
    return (const char **)(void *)((char *)values + setting->offset);
}

static const void *field(const void *values, const struct setting *setting)
{
    return (const char *)values + setting->offset;
}

static bool is_text(const struct setting *setting)
{
    return setting->type == SETTING_TEXT || setting->type == SETTING_SECRET;
}

void settings_clear(const struct settings *settings, void *values)
{
    for (size_t i = 0; i < settings->count; i++) {
        const char **text = text_field(values, &settings->list[i]);

        if (!is_text(&settings->list[i]))
            continue;
        free((void *)(uintptr_t)*text);
        *text = NULL;
    }
}

/* --- which setting is meant --- */

/* Finds the setting `name`; *is_path when it is <secret>_file. */
static const struct setting *setting_find(const struct settings *settings, const char *name, bool *is_path)
{
    size_t n = strlen(name);
    size_t stem = n > 5 && strcmp(name + n - 5, "_file") == 0 ? n - 5 : 0;

    for (size_t i = 0; i < settings->count; i++) {
        const struct setting *setting = &settings->list[i];

        *is_path = false;
        if (strcmp(setting->name, name) == 0)
            return setting;
        *is_path = stem && setting->type == SETTING_SECRET && strlen(setting->name) == stem &&
                   strncmp(setting->name, name, stem) == 0;
        if (*is_path)
            return setting;
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

static void say_unknown(const struct settings *settings, const char *where, const char *name, struct buf *why)
{
    const struct setting *nearest = NULL;
    size_t least = strlen(name) / 3 + 1; /* farther away it is a guess, not a slip */

    buf_printf(why, "%s: there is no setting %s", where, log_quote(str_of(name)));
    for (size_t i = 0; i < settings->count; i++) {
        size_t far = distance(name, settings->list[i].name);

        if (far < least) {
            least = far;
            nearest = &settings->list[i];
        }
    }
    if (nearest)
        buf_printf(why, "; did you mean %s?", nearest->name);
    buf_char(why, '\n');
}

static void source_give(struct source *source, const char *name, const char *text, const char *where, struct buf *why)
{
    bool is_path;
    const struct setting *setting = setting_find(source->settings, name, &is_path);
    size_t i;

    if (!setting) {
        say_unknown(source->settings, where, name, why);
        return;
    }
    i = (size_t)(setting - source->settings->list);
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
static bool looks_like_setting(const struct settings *settings, const char *text)
{
    size_t n = strspn(text, "abcdefghijklmnopqrstuvwxyz_0123456789");
    char name[65];
    bool is_path;

    if (n == 0 || n >= sizeof name || text[n + strspn(text + n, " \t")] != '=')
        return false;
    memcpy(name, text, n);
    name[n] = '\0';
    return setting_find(settings, name, &is_path) != NULL;
}

static void file_continue(struct file *file, const char *name, const char *text)
{
    bool is_path;
    const struct settings *settings = file->source->settings;
    const struct setting *setting = setting_find(settings, name, &is_path);
    char **value;
    struct buf joined = {0};

    if (looks_like_setting(settings, text)) {
        buf_printf(file->why, "%s:%u: an indented line continues %s; remove the spaces to set something else\n",
            file->path, file->line, name);
        return;
    }
    if (!setting || !file->source->given[setting - settings->list].text)
        return; /* complained about above */
    value = &file->source->given[setting - settings->list].text;
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

static void source_from_environment(struct source *source, char *const *environment, struct buf *why)
{
    const char *prefix = source->settings->prefix;
    size_t prefix_n = strlen(prefix);
    struct buf name = {0}, where = {0};

    for (; *environment; environment++) {
        const char *entry = *environment, *equals = strchr(entry, '=');

        if (!equals || strncmp(entry, prefix, prefix_n) != 0)
            continue;
        buf_reset(&where);
        buf_add(&where, entry, (size_t)(equals - entry));
        buf_char(&where, '\0');
        buf_reset(&name);
        for (const char *c = entry + prefix_n; c < equals; c++)
            buf_char(&name, (char)tolower((unsigned char)*c));
        buf_char(&name, '\0');
        if (!source->settings->ignored || !source->settings->ignored(name.p))
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
static void source_apply(struct source *source, void *values, struct buf *why)
{
    for (size_t i = 0; i < source->settings->count; i++) {
        const struct setting *setting = &source->settings->list[i];
        struct given *given = &source->given[i];
        struct buf secret = {0};

        if (!given->text)
            continue;
        if (!given->is_path)
            (void)value_set(values, setting, given->text, given->where, why);
        else if (secret_read(given->text, &secret, given->where, why))
            (void)value_set(values, setting, secret.p, given->where, why);
        buf_clear(&secret);
        free(given->text);
        free(given->where);
        *given = (struct given){0};
    }
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
    if (setting->type == SETTING_BYTES)
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
    if (setting->type == SETTING_BYTES && *end) {
        char c = (char)tolower((unsigned char)*end++);

        unit = c == 'k' ? 1 << 10 : c == 'm' ? 1 << 20 : c == 'g' ? 1 << 30 : 0;
    }
    return errno == 0 && *end == '\0' && unit > 0 && !__builtin_mul_overflow(*number, unit, number);
}

static bool number_set(
    void *values, const struct setting *setting, const char *text, const char *where, struct buf *why)
{
    static const char *const kind[] = {[SETTING_INT] = "a whole number",
        [SETTING_MS] = "a whole number of milliseconds",
        [SETTING_BYTES] = "a number of bytes, or of k, m, g (such as 64k)"};
    int64_t number;

    if (number_read(setting, text, &number) && number >= setting->least && number <= setting->most) {
        memcpy((char *)values + setting->offset, &number, sizeof number);
        return true;
    }
    buf_printf(why, "%s: %s is %s; %s from ", where, setting->name, log_quote(str_of(text)), kind[setting->type]);
    print_number(why, setting, setting->least);
    buf_text(why, " to ");
    print_number(why, setting, setting->most);
    buf_text(why, " is expected\n");
    return false;
}

static bool bool_set(void *values, const struct setting *setting, const char *text, const char *where, struct buf *why)
{
    static const char *const words[] = {"false", "true", "no", "yes", "0", "1"};

    for (size_t i = 0; i < countof(words); i++) {
        if (strcmp(text, words[i]) == 0) {
            *(bool *)((char *)values + setting->offset) = i % 2;
            return true;
        }
    }
    buf_printf(why, "%s: %s is %s; yes or no is expected\n", where, setting->name, log_quote(str_of(text)));
    return false;
}

static bool value_set(void *values, const struct setting *setting, const char *text, const char *where, struct buf *why)
{
    const char **value;

    if (setting->type == SETTING_BOOL)
        return bool_set(values, setting, text, where, why);
    if (!is_text(setting))
        return number_set(values, setting, text, where, why);
    value = text_field(values, setting);
    free((void *)(uintptr_t)*value);
    *value = xstrdup(text);
    return true;
}

bool settings_list_next(struct str *list, struct str *item)
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

/* --- for people --- */

void settings_print(const struct settings *settings, const void *values, struct buf *out)
{
    for (size_t i = 0; i < settings->count; i++) {
        const struct setting *setting = &settings->list[i];
        const void *value = field(values, setting);

        buf_printf(out, "%s = ", setting->name);
        switch (setting->type) {
        case SETTING_TEXT:
            buf_text(out, *(const char *const *)value);
            break;
        case SETTING_SECRET:
            buf_text(out, **(const char *const *)value ? "***" : "");
            break;
        case SETTING_BOOL:
            buf_text(out, *(const bool *)value ? "yes" : "no");
            break;
        case SETTING_INT:
        case SETTING_MS:
        case SETTING_BYTES:
            print_number(out, setting, *(const int64_t *)value);
        }
        buf_char(out, '\n');
    }
}

static void manual_values(struct buf *out, const struct setting *setting)
{
    static const char *const kind[] = {[SETTING_TEXT] = "text",
        [SETTING_SECRET] = "secret",
        [SETTING_INT] = "number",
        [SETTING_MS] = "milliseconds",
        [SETTING_BYTES] = "bytes",
        [SETTING_BOOL] = "yes or no"};

    buf_text(out, kind[setting->type]);
    if (is_text(setting) || setting->type == SETTING_BOOL)
        return;
    buf_char(out, ' ');
    print_number(out, setting, setting->least);
    buf_text(out, " to ");
    print_number(out, setting, setting->most);
}

void settings_manual(const struct settings *settings, struct buf *out)
{
    buf_printf(out,
        "Every setting has a default and may be set in the configuration file as `key = value` and in the\n"
        "environment as %sKEY (in capitals: log_level is %sLOG_LEVEL), which wins over the file.\n"
        "A `;` or `#` at the beginning of a line makes it a comment; a line that begins with a space goes on\n"
        "with the value above. A secret may stand in a file of its own: `key_file = path` (first line counts).\n"
        "Milliseconds are plain numbers; bytes may end in k, m or g (1024).\n\n"
        "| setting | default | values | what it is |\n"
        "| --- | --- | --- | --- |\n",
        settings->prefix, settings->prefix);
    for (size_t i = 0; i < settings->count; i++) {
        const struct setting *setting = &settings->list[i];

        buf_printf(out, "| %s | %s | ", setting->name, *setting->fallback ? setting->fallback : "(empty)");
        manual_values(out, setting);
        buf_printf(out, " | %s |\n", setting->help);
    }
}
