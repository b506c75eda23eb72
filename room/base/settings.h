/*
 * Settings of a program: one table gives name, type, default, bounds and the sentence for the manual. Sources, later
 * ones win: default, configuration file (INI: `key = value`, read with inih), environment (<PREFIX><KEY> in capitals).
 * Unknown keys, also unknown variables with the prefix, and values that do not parse are refused with their name and
 * where they stand. A secret `x` may be given as `x_file`: the file's first line is the value; settings_print never
 * shows one.
 * Thread: read once at start; const afterwards.
 */
#ifndef ROOMD_BASE_SETTINGS_H
#define ROOMD_BASE_SETTINGS_H

#include "buf.h"

enum setting_type {
    SETTING_TEXT,   /* const char * */
    SETTING_SECRET, /* the same; `<key>_file` reads it from a file */
    SETTING_INT,    /* int64_t */
    SETTING_MS,     /* int64_t: plain integer of milliseconds */
    SETTING_BYTES,  /* int64_t: plain integer, or with suffix k, m, g (1024) */
    SETTING_BOOL    /* bool: true/false, yes/no, 1/0 */
};

struct setting {
    const char *name;
    enum setting_type type;
    const char *fallback;
    int64_t least, most; /* for numbers */
    const char *help;
    size_t offset; /* of the value in the program's struct */
};

struct settings {
    const struct setting *list;
    size_t count;
    const char *prefix;                /* of variables in the environment */
    bool (*ignored)(const char *name); /* variables with the prefix that are no settings; may be NULL */
};

/*
 * Fills `values`, which is zeroed. `path` may be NULL: defaults and environment only. `environment` as main gets it;
 * NULL = none. false: *why holds a sentence with file, line and key, one line per problem; settings_clear all the same.
 */
bool settings_load(
    const struct settings *settings, void *values, const char *path, char *const *environment, struct buf *why);
void settings_clear(const struct settings *settings, void *values);

/* `key = value` lines; secrets as *** */
void settings_print(const struct settings *settings, const void *values, struct buf *out);
void settings_manual(const struct settings *settings, struct buf *out); /* a Markdown table, for --help and docs */

/* Takes the next item off a comma-separated list, without the spaces around it; false at the end. Empty items are
 * skipped. */
bool settings_list_next(struct str *list, struct str *item);

#endif
