/*
 * RFC 6455 from the server's side: frames that clients send, read without state and without copying; and the key of the
 * handshake. Thread: pure functions.
 */
#ifndef ROOMD_BASE_WS_FRAME_H
#define ROOMD_BASE_WS_FRAME_H

#include "buf.h"

enum ws_opcode { WS_CONTINUATION = 0, WS_TEXT = 1, WS_BINARY = 2, WS_CLOSE = 8, WS_PING = 9, WS_PONG = 10 };

struct ws_frame {
    uint8_t opcode;
    bool fin;
    uint8_t mask[4];
    const char *payload; /* still masked */
    size_t n;
};

/*
 * The frame at the beginning of p.
 *   > 0  its length in bytes, header included: *frame is filled
 *   0    more bytes are needed
 *   < 0  minus the close code: 1002 not a frame of RFC 6455 (or not masked), 1009 longer than max
 */
int64_t ws_frame_read(struct ws_frame *frame, const char *p, size_t n, size_t max);
void ws_unmask(char *out, const struct ws_frame *frame); /* frame->n bytes */

/* A message that comes in fragments. At most WS_FRAGMENTS_MAX of them. */
#define WS_FRAGMENTS_MAX 1024
struct ws_message {
    struct buf text;
    size_t checked; /* UTF-8 good so far */
    uint32_t fragments;
};
/*
 * Adds a data frame (TEXT or CONTINUATION) to *message (NULL between messages). 0: taken; *complete tells whether
 * (*message)->text is a whole message, to be freed with ws_message_free. > 0: close code.
 */
uint16_t ws_message_add(struct ws_message **message, const struct ws_frame *frame, size_t max, bool *complete);
void ws_message_free(struct ws_message *message);

/* What a close frame says: 0 = acceptable, *code the peer's (1005 when it gave none); else the close code to answer
 * with. */
uint16_t ws_close_read(const struct ws_frame *frame, uint16_t *code);

/* Header of a frame to a client (FIN, unmasked); its length. */
#define WS_HEADER_MAX 10
size_t ws_header_write(unsigned char header[WS_HEADER_MAX], uint8_t opcode, size_t n);

/* Sec-WebSocket-Key is 16 bytes in base64; writes the answer, 28 characters and NUL. */
bool ws_accept_key(struct str key, char accept[29]);

/* Good UTF-8 so far: *bad tells an error; returns how many bytes are complete characters. */
size_t utf8_prefix(const char *p, size_t n, bool *bad);

#endif
