/* Any bytes as a ticket: as they are, and as claims that somebody signed with a good key. */
#include "gateway-adapter/roomd_ticket.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define SECRET "0123456789abcdef0123456789abcdef"
#define NOW 1770000000000u

static size_t encode(char *out, const void *p, size_t n)
{
    size_t length = (size_t)EVP_EncodeBlock((unsigned char *)out, p, (int)n);

    while (length && out[length - 1] == '=')
        length--;
    for (size_t i = 0; i < length; i++)
        out[i] = (char)(out[i] == '+' ? '-' : out[i] == '/' ? '_' : out[i]);
    return length;
}

static void check(const struct roomd_ticket *ticket)
{
    const char *end = ticket->text + sizeof ticket->text;

    if (ticket->account.n == 0 || ticket->account.n > ROOMD_TICKET_ACCOUNT_MAX ||
        ticket->account.p + ticket->account.n > end)
        abort();
    if ((!ticket->all && !ticket->room_count) || ticket->room_count > ROOMD_TICKET_ROOMS_MAX ||
        ticket->expires_unix_ms <= NOW)
        abort();
    for (size_t i = 0; i < ticket->room_count; i++)
        if (ticket->rooms[i].p < ticket->text || ticket->rooms[i].p + ticket->rooms[i].n > end)
            abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct roomd_ticket_keys keys;
    static struct roomd_ticket ticket;
    static char text[20000];
    static const char header[] = "{\"alg\":\"HS256\",\"typ\":\"JWT\",\"kid\":\"k\"}";
    unsigned char mac[32];
    unsigned mac_bytes;
    const char *why;
    size_t n;

    if (!keys.count && !roomd_ticket_keys_read(&keys, "k:" SECRET, &why))
        abort();
    if (roomd_ticket_verify(&ticket, (const char *)data, size, &keys, NOW, 300000) == ROOMD_TICKET_OK)
        check(&ticket);
    if (size > 6200)
        return 0;
    n = encode(text, header, sizeof header - 1);
    text[n++] = '.';
    n += encode(text + n, data, size);
    HMAC(EVP_sha256(), SECRET, 32, (unsigned char *)text, n, mac, &mac_bytes);
    text[n++] = '.';
    n += encode(text + n, mac, 32);
    if (roomd_ticket_verify(&ticket, text, n, &keys, NOW, 300000) == ROOMD_TICKET_OK)
        check(&ticket);
    return 0;
}
