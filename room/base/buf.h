/*
 * A byte buffer that grows. Everything that is written somewhere (JSON, SQL arrays, frames) is written here first. All
 * zero is an empty one. Thread: any, one at a time. Memory: the owner's to clear; what points into it is good until the
 * next change.
 */
#ifndef ROOMD_BASE_BUF_H
#define ROOMD_BASE_BUF_H

#include "mem.h"

struct buf {
    char *p;
    size_t n, capacity;
};

void buf_clear(struct buf *buf);              /* frees; the buffer may be used again */
void buf_reset(struct buf *buf);              /* empties, keeps the memory */
char *buf_reserve(struct buf *buf, size_t n); /* room for n more bytes at the end; adds nothing */
void buf_add(struct buf *buf, const void *p, size_t n);
void buf_add_str(struct buf *buf, struct str s);
void buf_text(struct buf *buf, const char *text); /* NUL-terminated */
void buf_char(struct buf *buf, char c);
void buf_u64(struct buf *buf, uint64_t value); /* decimal */
void buf_i64(struct buf *buf, int64_t value);
void buf_printf(struct buf *buf, const char *format, ...) PRINTF_LIKE(2, 3);
void buf_json_string(struct buf *buf, struct str s); /* with the quotes; s is valid UTF-8 */
void buf_consume(struct buf *buf, size_t n);         /* drops n bytes at the front */
static inline struct str buf_str(const struct buf *buf)
{
    return (struct str){buf->p, buf->n};
}

#endif
