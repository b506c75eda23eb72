/*
 * One line an event: time, level, event, then key=value pairs an operator can search for. Values with spaces or
 * control characters are quoted and escaped (no line can be forged from outside). Message bodies and secrets are
 * never logged. Lines go to stderr; when it cannot take them they are dropped and counted, never waited for.
 * Thread: any.
 *
 *   2026-11-21T02:45:46.123Z info lease.taken shard=s07 epoch=3
 */
#ifndef ROOMD_BASE_LOG_H
#define ROOMD_BASE_LOG_H

#include "mem.h"

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

void log_set_level(enum log_level level);
bool log_level_parse(const char *text, enum log_level *level);
void log_event(enum log_level level, const char *event, const char *format, ...) PRINTF_LIKE(3, 4);
uint64_t log_dropped(void); /* lines lost because stderr was full */

/* For "%s" in a log line: `s` quoted and escaped when it needs to be, cut at 200 bytes. Good until 8 further calls. */
const char *log_quote(struct str s);

extern enum log_level log_threshold;
#define log_at(level, ...)                   \
    do {                                     \
        if ((level) >= log_threshold)        \
            log_event((level), __VA_ARGS__); \
    } while (0)
#define log_debug(...) log_at(LOG_DEBUG, __VA_ARGS__)
#define log_info(...) log_at(LOG_INFO, __VA_ARGS__)
#define log_warn(...) log_at(LOG_WARN, __VA_ARGS__)
#define log_error(...) log_at(LOG_ERROR, __VA_ARGS__)

#endif
