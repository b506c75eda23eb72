#include "buf.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void buf_clear(struct buf *buf)
{
    free(buf->p);
    *buf = (struct buf){0};
}

void buf_reset(struct buf *buf)
{
    buf->n = 0;
}

char *buf_reserve(struct buf *buf, size_t n)
{
    size_t needed = buf->n + n;

    assert(needed >= n);
    if (needed > buf->capacity || !buf->p) {
        size_t capacity = buf->capacity + buf->capacity / 2;

        if (capacity < needed)
            capacity = needed;
        if (capacity < 64)
            capacity = 64;
        buf->p = xrealloc(buf->p, capacity);
        buf->capacity = capacity;
    }
    return buf->p + buf->n;
}

void buf_add(struct buf *buf, const void *p, size_t n)
{
    if (n == 0)
        return;
    memcpy(buf_reserve(buf, n), p, n);
    buf->n += n;
}

void buf_add_str(struct buf *buf, struct str s)
{
    buf_add(buf, s.p, s.n);
}

void buf_text(struct buf *buf, const char *text)
{
    buf_add(buf, text, strlen(text));
}

void buf_char(struct buf *buf, char c)
{
    *buf_reserve(buf, 1) = c;
    buf->n++;
}

void buf_u64(struct buf *buf, uint64_t value)
{
    char digits[20];
    size_t at = sizeof digits;

    do {
        digits[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    buf_add(buf, digits + at, sizeof digits - at);
}

void buf_i64(struct buf *buf, int64_t value)
{
    uint64_t magnitude = (uint64_t)value;

    if (value < 0) {
        buf_char(buf, '-');
        magnitude = 0 - magnitude;
    }
    buf_u64(buf, magnitude);
}

void buf_printf(struct buf *buf, const char *format, ...)
{
    va_list args, again;
    int n;

    va_start(args, format);
    va_copy(again, args);
    buf_reserve(buf, 1);
    n = vsnprintf(buf->p + buf->n, buf->capacity - buf->n, format, args);
    assert(n >= 0);
    if ((size_t)n >= buf->capacity - buf->n) {
        buf_reserve(buf, (size_t)n + 1);
        n = vsnprintf(buf->p + buf->n, buf->capacity - buf->n, format, again);
        assert(n >= 0);
    }
    buf->n += (size_t)n;
    va_end(again);
    va_end(args);
}

/* RFC 8259 7: what must be escaped is '"', '\' and what stands below U+0020. */
void buf_json_string(struct buf *buf, struct str s)
{
    static const char escape[128] = {
        ['"'] = '"', ['\\'] = '\\', ['\b'] = 'b', ['\f'] = 'f', ['\n'] = 'n', ['\r'] = 'r', ['\t'] = 't'};
    static const char hex[] = "0123456789abcdef";
    size_t done = 0;

    buf_reserve(buf, s.n + 2);
    buf_char(buf, '"');
    for (size_t i = 0; i < s.n; i++) {
        unsigned char c = (unsigned char)s.p[i];

        if (c >= 0x20 && c != '"' && c != '\\')
            continue;
        buf_add(buf, s.p + done, i - done);
        done = i + 1;
        buf_char(buf, '\\');
        if (escape[c]) {
            buf_char(buf, escape[c]);
        } else {
            buf_text(buf, "u00");
            buf_char(buf, hex[c >> 4]);
            buf_char(buf, hex[c & 15]);
        }
    }
    if (done < s.n)
        buf_add(buf, s.p + done, s.n - done);
    buf_char(buf, '"');
}

void buf_consume(struct buf *buf, size_t n)
{
    assert(n <= buf->n);
    buf->n -= n;
    if (buf->n && n)
        memmove(buf->p, buf->p + n, buf->n);
}
