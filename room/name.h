/*
 * The names of the chat domain and their rules. Source: docs/protocol.md#words. Thread: pure functions.
 */
#ifndef ROOMD_ROOM_NAME_H
#define ROOMD_ROOM_NAME_H

#include "room/base/buf.h"
#include "room/base/ulid.h"

#define ACCOUNT_MAX_BYTES 64
#define CLIENT_MSG_ID_MAX_BYTES 64
#define REQUEST_ID_MAX_BYTES 64
#define KIND_MAX_BYTES 64
#define ROOM_ID_MAX_BYTES 40 /* shard word, dot, 26 */
#define SHARD_MAX_BYTES 8

/* 1–64 bytes of UTF-8 without control characters (C0, DEL, C1), not beginning with '@'. */
bool account_valid(struct str account);
/* 1–64 bytes of UTF-8 without control characters: client_msg_id, request_id. */
bool client_id_valid(struct str id);
bool kind_valid(struct str kind); /* [A-Za-z0-9_./-]{1,64} */
/* <shard>.<ULID>; *shard is a slice of it. */
bool room_id_read(struct str room_id, struct str *shard);
void room_id_write(char out[ROOM_ID_MAX_BYTES + 1], struct str shard, struct id128 ulid); /* NUL-terminated */

/* First 128 bits of SHA-256 over room_id NUL sender NUL client_msg_id: publisher and owner compute the same. */
struct id128 message_id_of(struct str room_id, struct str sender, struct str client_msg_id);
/* The id of an op that carries a request_id: a repeat has the same. Over room_id NUL "@request" NUL request_id; of an
 * account whose request_ids are its own ("@request" + account). */
struct id128 request_op_id(struct str room_id, struct str account, struct str request_id);
/* 64 bits over kind and content: same id with another hash is a conflict. Stable over versions: it is stored. */
int64_t content_hash(struct str kind, struct str content);

enum role { ROLE_NONE = 0, ROLE_MEMBER = 1, ROLE_ADMIN = 2, ROLE_OWNER = 3 }; /* stored as smallint */
const char *role_name(enum role role);

#endif
