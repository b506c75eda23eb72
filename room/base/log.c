#include "log.h"

#include "buf.h"
#include "clock.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

/* PIPE_BUF: a pipe that poll calls writable takes so much without waiting, and takes it whole. */
enum { LINE_MAX_BYTES = 4096 };
enum { QUOTE_MAX_BYTES = 200, QUOTE_RING = 8 };

enum log_level log_threshold = LOG_INFO;

static atomic_uint_fast64_t dropped;

static const char *const level_name[] = {"debug", "info", "warn", "error"};

static size_t line_begin(char *line, size_t size, enum log_level level, const char *event);
static void line_write(const char *line, size_t n);
static size_t escape_one(char *out, struct str s, size_t *at, bool *plain);

void log_set_level(enum log_level level)
{
    log_threshold = level;
}

bool log_level_parse(const char *text, enum log_level *level)
{
    for (size_t i = 0; i < countof(level_name); i++) {
        if (strcmp(text, level_name[i]) == 0) {
            *level = (enum log_level)i;
            return true;
        }
    }
    return false;
}

uint64_t log_dropped(void)
{
    return atomic_load(&dropped);
}

void log_event(enum log_level level, const char *event, const char *format, ...)
{
    char line[LINE_MAX_BYTES];
    size_t n = line_begin(line, sizeof line, level, event), values = n;
    va_list args;
    int more;

    va_start(args, format);
    more = vsnprintf(line + n, sizeof line - n, format, args);
    va_end(args);
    if (more < 0)
        return;
    n += (size_t)more;
    if (more == 0)
        n--;                   /* the space that would have stood before the values */
    if (n > sizeof line - 1) { /* cut: say so */
        n = sizeof line - 1;
        memcpy(line + n - 3, "...", 3);
    }
    /* The second fence against forged lines, behind log_quote: one call is one line, whatever a value holds. */
    for (size_t i = values; i < n; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = '?';
    line[n++] = '\n';
    line_write(line, n);
}

static size_t line_begin(char *line, size_t size, enum log_level level, const char *event)
{
    uint64_t now_ms = clock_unix_ms();
    time_t seconds = (time_t)(now_ms / 1000);
    struct tm utc;
    size_t n;

    gmtime_r(&seconds, &utc);
    n = strftime(line, size, "%Y-%m-%dT%H:%M:%S", &utc);
    n += (size_t)snprintf(line + n, size - n, ".%03uZ %s %.100s ", (unsigned)(now_ms % 1000), level_name[level], event);
    return n;
}

/* A reader of our stderr that has stopped must not stop the loop. */
static void line_write(const char *line, size_t n)
{
    struct pollfd out = {.fd = STDERR_FILENO, .events = POLLOUT};
    int saved_errno = errno;
    ssize_t written = -1;

    if (poll(&out, 1, 0) == 1 && (out.revents & POLLOUT)) {
        do
            written = write(STDERR_FILENO, line, n);
        while (written < 0 && errno == EINTR);
    }
    if (written != (ssize_t)n)
        atomic_fetch_add(&dropped, 1);
    errno = saved_errno;
}

/* --- values from outside --- */

const char *log_quote(struct str s)
{
    /* Worst case: every byte becomes \xNN; two quotes, the mark of the cut, NUL. */
    static _Thread_local char ring[QUOTE_RING][QUOTE_MAX_BYTES * 4 + 8];
    static _Thread_local unsigned next;
    char *text = ring[next++ % QUOTE_RING];
    bool cut = s.n > QUOTE_MAX_BYTES;
    bool plain = s.n > 0 && !cut;
    size_t n = 0;

    if (cut)
        s.n = QUOTE_MAX_BYTES;
    text[n++] = '"';
    for (size_t at = 0; at < s.n;)
        n += escape_one(text + n, s, &at, &plain);
    if (plain) {
        text[n] = '\0';
        return text + 1;
    }
    if (cut) {
        memcpy(text + n, "...", 3);
        n += 3;
    }
    text[n++] = '"';
    text[n] = '\0';
    return text;
}

/* Length of the UTF-8 sequence at `p` that may be shown as it is, 0 when it may not. */
static size_t printable_sequence(const unsigned char *p, size_t n)
{
    uint32_t c;
    size_t length;

    if (p[0] >= 0xc2 && p[0] <= 0xdf)
        length = 2;
    else if (p[0] >= 0xe0 && p[0] <= 0xef)
        length = 3;
    else if (p[0] >= 0xf0 && p[0] <= 0xf4)
        length = 4;
    else
        return 0;
    if (n < length)
        return 0;
    c = p[0] & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (p[i] & 0x3f);
    }
    if ((length == 3 && c < 0x800) || (length == 4 && c < 0x10000) || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
        return 0;
    if (c < 0xa0 || c == 0x2028 || c == 0x2029 || (c >= 0x200e && c <= 0x200f) || (c >= 0x202a && c <= 0x202e))
        return 0; /* C1 controls, line separators, and marks that reorder what a terminal shows */
    return length;
}

/* Writes the character at *at and steps over it; at most 4 bytes for each one read. */
static size_t escape_one(char *out, struct str s, size_t *at, bool *plain)
{
    static const char hex[] = "0123456789abcdef";
    const unsigned char *p = (const unsigned char *)s.p + *at;
    size_t length = 1;

    if (*p >= 0x80 && (length = printable_sequence(p, s.n - *at)) > 0) {
        memcpy(out, p, length);
        *at += length;
        return length;
    }
    ++*at;
    if (*p > 0x20 && *p < 0x7f && *p != '"' && *p != '\\') {
        *plain &= *p != '=';
        out[0] = (char)*p;
        return 1;
    }
    *plain = false;
    if (*p == ' ') {
        out[0] = ' ';
        return 1;
    }
    out[0] = '\\';
    if (*p == '"' || *p == '\\') {
        out[1] = (char)*p;
        return 2;
    }
    if (*p == '\n' || *p == '\r' || *p == '\t') {
        out[1] = *p == '\n' ? 'n' : *p == '\r' ? 'r' : 't';
        return 2;
    }
    out[1] = 'x';
    out[2] = hex[*p >> 4];
    out[3] = hex[*p & 15];
    return 4;
}
