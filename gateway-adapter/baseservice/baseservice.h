/*
 * baseservice: the business core's stand-in. It knows accounts (demo ones, from its settings) and keeps files, which
 * messages name by id. docs/baseservice.md is its contract; a real one takes its place behind the same calls.
 * Thread: the loop's, except for what files.h says of worker threads.
 */
#ifndef BASESERVICE_H
#define BASESERVICE_H

#include "room/base/settings.h"

#include <uv.h>

struct options {
#define KEY(name, type, fallback, least, most, help) FIELD_##type(name)
#define FIELD_TEXT(name) const char *name;
#define FIELD_SECRET(name) const char *name;
#define FIELD_INT(name) int64_t name;
#define FIELD_MS(name) int64_t name;
#define FIELD_BYTES(name) int64_t name;
#include "settings_keys.h"
#undef KEY
};

/* --- accounts.c: pure, over the text of the setting --- */

/* false: *why tells which item is no account:name:password. */
MUST_USE bool accounts_check(const char *accounts, struct buf *why);
/* The name, when the password is right; a NULL slice otherwise. As long for any account and any password. */
struct str account_login(const char *accounts, struct str account_id, struct str password);
/* Appends `{"account_id":…,"name":…}` of those in `ids` (comma-separated), or whose id or name holds `match`; those of
 * whom nothing is known are left out. At most 100. */
void accounts_write(const char *accounts, struct str ids, struct str match, struct buf *out);
/* Is `authorization` "Bearer <one of the keys>"? */
MUST_USE bool key_valid(const char *service_keys, struct str authorization);

/* --- server.c: HTTP/1.1 on the loop, bodies streamed --- */

struct server;
struct file_store;

/* NULL: the log says why. */
struct server *server_open(uv_loop_t *loop, const struct options *options, struct file_store *store);
int server_port(const struct server *server);
/* No new connections; those that wait are closed, those in the middle of something have until the loop is stopped.
 * `idle` is called when the last one is gone. */
void server_drain(struct server *server, void (*idle)(void *arg), void *arg);
void server_free(struct server *server); /* cuts what is left and runs the loop until it is gone */

#endif
