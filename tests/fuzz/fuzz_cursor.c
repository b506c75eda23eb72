/* Any bytes as a cursor and as a position: what is accepted is written back the same. */
#include "history/entry.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct str text = {(const char *)data, size}, room_id;
    char written[CURSOR_TEXT_MAX];
    struct cursor cursor;
    size_t n;

    if (cursor_read(&cursor, text)) {
        n = cursor_write(written, cursor);
        if (!str_eq(text, (struct str){written, n}) || written[n] != 0)
            abort();
    }
    if (position_read(text, &room_id, &cursor)) {
        n = cursor_write(written, cursor);
        if (room_id.p != text.p || room_id.n + 1 + n != size || memcmp(text.p + room_id.n + 1, written, n) != 0)
            abort();
    }
    return 0;
}
