/*
 * Settings: one table (config_keys.h) gives name, type, default and the sentence for the manual. Sources, later ones
 * win: default, configuration file (INI: `key = value`, read with inih), environment (ROOMD_<KEY> in capitals). Unknown
 * keys, also unknown ROOMD_ variables, and values that do not parse are refused with their name and where they stand.
 * A secret `x` may be given as `x_file`: the file's first line is the value; config_print never shows one.
 * Thread: read once at start; const afterwards.
 */
#ifndef ROOMD_BASE_CONFIG_H
#define ROOMD_BASE_CONFIG_H

#include "buf.h"

enum config_type {
    CONFIG_TEXT,
    CONFIG_SECRET, /* text; `<key>_file` reads it from a file */
    CONFIG_INT,
    CONFIG_MS,    /* plain integer of milliseconds */
    CONFIG_BYTES, /* plain integer, or with suffix k, m, g (1024) */
    CONFIG_BOOL   /* true/false, yes/no, 1/0 */
};

struct config {
#define CONFIG_KEY(name, type, fallback, min, max, help) CONFIG_FIELD_##type(name)
#define CONFIG_FIELD_CONFIG_TEXT(name) const char *name;
#define CONFIG_FIELD_CONFIG_SECRET(name) const char *name;
#define CONFIG_FIELD_CONFIG_INT(name) int64_t name;
#define CONFIG_FIELD_CONFIG_MS(name) int64_t name;
#define CONFIG_FIELD_CONFIG_BYTES(name) int64_t name;
#define CONFIG_FIELD_CONFIG_BOOL(name) bool name;
#include "config_keys.h"
#undef CONFIG_KEY
};

/*
 * `path` may be NULL: defaults and environment only. `environment` as main gets it; NULL = none.
 * On failure *config is empty and *why holds a sentence with file, line and key, one line per problem.
 */
MUST_USE bool config_load(struct config *config, const char *path, char *const *environment, struct buf *why);
void config_clear(struct config *config);

/* What serving needs beyond a configuration that is well formed: keys. `migrate` does without. */
MUST_USE bool config_check_serve(const struct config *config, struct buf *why);

void config_print(const struct config *config, struct buf *out); /* `key = value` lines; secrets as *** */
void config_manual(struct buf *out); /* a Markdown table of every key, for --help and docs */

/* Takes the next item off a comma-separated list, without the spaces around it; false at the end. Empty items are
 * skipped. */
bool config_list_next(struct str *list, struct str *item);

#endif
