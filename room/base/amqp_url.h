/*
 * Addresses of a broker: amqp://user:password@host:port/vhost, amqps:// with TLS, several with commas between them.
 * Parts are %-encoded (a comma or an @ in a password is %2C, %40). Left out: guest, guest, 5672 or 5671, vhost "/";
 * a path of "/" alone means vhost "/" too, as most clients read it. Source: rabbitmq.com/uri-spec.html.
 * Thread: pure functions.
 */
#ifndef ROOMD_BASE_AMQP_URL_H
#define ROOMD_BASE_AMQP_URL_H

#include "err.h"
#include "mem.h"

enum { AMQP_ADDRESSES_MAX = 16, AMQP_PART_MAX_BYTES = 255 };

struct amqp_address {
    char *user, *password, *host, *vhost;
    char *name; /* host:port/vhost, for logs */
    uint16_t port;
    bool tls;
};

/* All or nothing. ERR_BAD_REQUEST: *bad (of size bad_size) names the first one that cannot be
 * read, without password. */
MUST_USE enum err amqp_addresses_parse(
    struct amqp_address addresses[AMQP_ADDRESSES_MAX], size_t *count, const char *urls, char *bad, size_t bad_size);
void amqp_address_clear(struct amqp_address *address);

#endif
