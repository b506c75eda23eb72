/*
 * Keys of upstream gateways: name:key, comma-separated; several are valid at once, so that they can be rotated.
 * Thread: the loop's.
 */
#ifndef ROOMD_SERVER_SERVICE_KEY_H
#define ROOMD_SERVER_SERVICE_KEY_H

#include "room/base/mem.h"

struct service_keys;

struct service_keys *service_keys_read(const char *text); /* as config checked it */
void service_keys_free(struct service_keys *keys);        /* NULL is allowed */
/* The name of the key in "Bearer <key>"; NULL: none of ours. Takes the same time whichever key it is and however much
 * of it is right. */
const char *service_key_find(const struct service_keys *keys, struct str authorization);

#endif
