/* Any bytes from a WebSocket client: read whole, and in two pieces cut anywhere; both must come to the same end. */
#include "room/base/ws_frame.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MAX 4096

struct reader {
    struct ws_message *message;
    uint64_t digest; /* of all complete messages */
    int64_t wrong;
};

static void take(struct reader *reader, const struct ws_frame *frame)
{
    uint16_t code, wrong;
    bool complete = false;
    char control[125];

    if (frame->opcode >= WS_CLOSE) {
        if (frame->n > sizeof control)
            abort();
        ws_unmask(control, frame);
        if (frame->opcode == WS_CLOSE)
            reader->wrong = ws_close_read(frame, &code) ? -1002 : -1000;
        return;
    }
    wrong = ws_message_add(&reader->message, frame, MAX, &complete);
    if (wrong) {
        reader->wrong = -(int64_t)wrong;
        return;
    }
    if (!complete)
        return;
    if (reader->message->text.n > MAX || !reader->message->fragments)
        abort();
    for (size_t i = 0; i < reader->message->text.n; i++)
        reader->digest = reader->digest * 31 + (unsigned char)reader->message->text.p[i];
    reader->digest = reader->digest * 31 + 256;
    ws_message_free(reader->message);
    reader->message = NULL;
}

static size_t feed(struct reader *reader, const char *p, size_t n)
{
    size_t used = 0;

    while (!reader->wrong) {
        struct ws_frame frame;
        int64_t length = ws_frame_read(&frame, p + used, n - used, MAX);

        if (length < 0)
            reader->wrong = length;
        if (length <= 0)
            break;
        if ((size_t)length > n - used || frame.n > MAX || frame.payload + frame.n != p + used + length)
            abort();
        used += (size_t)length;
        take(reader, &frame);
    }
    return used;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *p = (const char *)data;
    struct reader whole = {0}, pieces = {0};
    size_t cut = size ? data[size - 1] % size : 0, used;

    feed(&whole, p, size);
    used = feed(&pieces, p, cut);
    if (used > cut)
        abort();
    feed(&pieces, p + used, size - used);
    if (whole.digest != pieces.digest || whole.wrong != pieces.wrong)
        abort();
    ws_message_free(whole.message);
    ws_message_free(pieces.message);
    return 0;
}
