/* RFC 6455 frames; see ws_frame.h. */
#include "ws_frame.h"

#include <openssl/evp.h>
#include <stdlib.h>

static bool opcode_known(uint8_t opcode)
{
    return opcode <= WS_BINARY || (opcode >= WS_CLOSE && opcode <= WS_PONG);
}

int64_t ws_frame_read(struct ws_frame *frame, const char *p, size_t n, size_t max)
{
    const unsigned char *b = (const unsigned char *)p;
    size_t header = 2;
    uint64_t length;

    if (n < 2)
        return n == 1 && (b[0] & 0x70) ? -1002 : 0;
    frame->fin = b[0] & 0x80;
    frame->opcode = b[0] & 0x0f;
    length = b[1] & 0x7f;
    /* No extension is ever negotiated, so the reserved bits stay zero (5.2); clients always mask (5.1). */
    if ((b[0] & 0x70) || !opcode_known(frame->opcode) || !(b[1] & 0x80))
        return -1002;
    if (frame->opcode >= WS_CLOSE && (!frame->fin || length > 125))
        return -1002;
    if (length == 126) {
        if (n < 4)
            return 0;
        length = (uint64_t)b[2] << 8 | b[3];
        header = 4;
        if (length < 126)
            return -1002; /* 5.2: the minimal number of bytes */
    } else if (length == 127) {
        if (n < 10)
            return 0;
        length = 0;
        for (int i = 2; i < 10; i++)
            length = length << 8 | b[i];
        header = 10;
        if (length < 65536 || length >> 63)
            return -1002;
    }
    if (length > max)
        return -1009;
    if (n < header + 4 + length)
        return 0;
    memcpy(frame->mask, b + header, 4);
    frame->payload = p + header + 4;
    frame->n = (size_t)length;
    return (int64_t)(header + 4 + length);
}

void ws_unmask(char *out, const struct ws_frame *frame)
{
    for (size_t i = 0; i < frame->n; i++)
        out[i] = (char)((unsigned char)frame->payload[i] ^ frame->mask[i & 3]);
}

/* ------------------------------------------------------------ fragments */

void ws_message_free(struct ws_message *message)
{
    if (!message)
        return;
    buf_clear(&message->text);
    free(message);
}

uint16_t ws_message_add(struct ws_message **message, const struct ws_frame *frame, size_t max, bool *complete)
{
    struct ws_message *m = *message;
    bool bad = false;

    *complete = false;
    /* 5.4: a continuation needs a beginning, and nothing else may come between (control frames apart). */
    if ((frame->opcode == WS_CONTINUATION) != (m != NULL))
        return 1002;
    if (!m)
        m = *message = xcalloc(1, sizeof *m);
    if (m->text.n + frame->n > max || ++m->fragments > WS_FRAGMENTS_MAX)
        return 1009;
    ws_unmask(buf_reserve(&m->text, frame->n + 1), frame);
    m->text.n += frame->n;
    /* 8.1: fail as soon as it cannot become UTF-8 any more, not only at the end. */
    if (m->text.n > m->checked)
        m->checked += utf8_prefix(m->text.p + m->checked, m->text.n - m->checked, &bad);
    if (bad || (frame->fin && m->checked != m->text.n))
        return 1007;
    *complete = frame->fin;
    return 0;
}

/* Length of the character at p, 0 when it is cut off at the end, -1 when it is none. */
static int utf8_character(const unsigned char *p, size_t n)
{
    int length = p[0] < 0x80                   ? 1
                 : p[0] >= 0xc2 && p[0] < 0xe0 ? 2
                 : (p[0] & 0xf0) == 0xe0       ? 3
                 : p[0] >= 0xf0 && p[0] < 0xf5 ? 4
                                               : -1;

    for (int i = 1; i < length; i++) {
        if ((size_t)i == n)
            return 0;
        if ((p[i] & 0xc0) != 0x80)
            return -1;
        /* Overlong forms, surrogates and what is above U+10FFFF show in the second byte. */
        if (i == 1 && ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ||
                          (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f)))
            return -1;
    }
    return length;
}

size_t utf8_prefix(const char *p, size_t n, bool *bad)
{
    size_t at = 0;

    *bad = false;
    while (at < n) {
        int length = utf8_character((const unsigned char *)p + at, n - at);

        if (length <= 0) {
            *bad = length < 0;
            break;
        }
        at += (size_t)length;
    }
    return at;
}

/* ---------------------------------------------------------------- close */

uint16_t ws_close_read(const struct ws_frame *frame, uint16_t *code)
{
    char text[125];
    bool bad;

    *code = 1005; /* 7.1.5: none given */
    if (frame->n == 0)
        return 0;
    if (frame->n == 1 || frame->n > sizeof text)
        return 1002;
    ws_unmask(text, frame);
    *code = (uint16_t)((unsigned char)text[0] << 8 | (unsigned char)text[1]);
    /* 7.4: 1004–1006 and 1015 never travel; 1016–2999 and above 4999 are nobody's. */
    if (*code < 1000 || (*code >= 1004 && *code <= 1006) || (*code > 1014 && *code < 3000) || *code > 4999)
        return 1002;
    if (utf8_prefix(text + 2, frame->n - 2, &bad) != frame->n - 2)
        return 1007;
    return 0;
}

/* --------------------------------------------------------------- writing */

size_t ws_header_write(unsigned char header[WS_HEADER_MAX], uint8_t opcode, size_t n)
{
    header[0] = (unsigned char)(0x80 | opcode);
    if (n < 126) {
        header[1] = (unsigned char)n;
        return 2;
    }
    if (n < 65536) {
        header[1] = 126;
        header[2] = (unsigned char)(n >> 8);
        header[3] = (unsigned char)(n & 0xff);
        return 4;
    }
    header[1] = 127;
    for (int i = 0; i < 8; i++)
        header[2 + i] = (unsigned char)((uint64_t)n >> (56 - 8 * i) & 0xff);
    return 10;
}

bool ws_accept_key(struct str key, char accept[29])
{
    static const char magic[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"; /* RFC 6455 1.3 */
    unsigned char text[24 + sizeof magic], decoded[18], hash[20];
    unsigned n = 0;

    if (key.n != 24 || key.p[23] != '=' || key.p[22] != '=' ||
        EVP_DecodeBlock(decoded, (const unsigned char *)key.p, 24) != 18)
        return false;
    memcpy(text, key.p, 24);
    memcpy(text + 24, magic, sizeof magic);
    if (!EVP_Digest(text, 24 + sizeof magic - 1, hash, &n, EVP_sha1(), NULL) || n != sizeof hash)
        return false;
    EVP_EncodeBlock((unsigned char *)accept, hash, sizeof hash);
    return true;
}
