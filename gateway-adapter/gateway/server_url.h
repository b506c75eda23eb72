/* Where a server stands that the gateway goes to: an instance, the BaseService. */
#ifndef ROOMD_GATEWAY_SERVER_URL_H
#define ROOMD_GATEWAY_SERVER_URL_H

#include "room/base/bytes.h"

struct server_url {
    char host[256];      /* without the brackets of IPv6 */
    char authority[272]; /* host:port as in a Host header, [IPv6]:port too */
    uint16_t port;
    bool tls;
};

/* http:// or https://, a host or [IPv6], :port or not (80, 443), a slash or not; nothing else behind it.
 * false: it is not such a URL. */
MUST_USE bool server_url_read(struct server_url *server, struct str url);

#endif
