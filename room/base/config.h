/*
 * The settings of roomd: config_keys.h is their table, settings.h says where their values come from.
 * Thread: read once at start; const afterwards.
 */
#ifndef ROOMD_BASE_CONFIG_H
#define ROOMD_BASE_CONFIG_H

#include "settings.h"

struct config {
#define CONFIG_KEY(name, type, fallback, min, max, help) CONFIG_FIELD_##type(name)
#define CONFIG_FIELD_TEXT(name) const char *name;
#define CONFIG_FIELD_SECRET(name) const char *name;
#define CONFIG_FIELD_INT(name) int64_t name;
#define CONFIG_FIELD_MS(name) int64_t name;
#define CONFIG_FIELD_BYTES(name) int64_t name;
#define CONFIG_FIELD_BOOL(name) bool name;
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

#endif
