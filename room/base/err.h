/*
 * What can go wrong, told once: the code callers see, its HTTP status, and the sentence used when nobody knows a
 * better one. The rest of the program asks this table. Source of the codes: docs/protocol.md#errors.
 * Thread: any (constants).
 */
#ifndef ROOMD_BASE_ERR_H
#define ROOMD_BASE_ERR_H

#define ERR_TABLE(X)                                                                                                \
    X(ERR_OK, 200, "ok", "done")                                                                                    \
    X(ERR_BAD_REQUEST, 400, "bad_request", "the request is not well formed; see field")                             \
    X(ERR_UNAUTHENTICATED, 401, "unauthenticated", "send a valid key or ticket as Authorization: Bearer")           \
    X(ERR_TICKET_EXPIRED, 401, "ticket_expired", "the ticket is too old; ask PullByActiveConnection for a new one") \
    X(ERR_NOT_MEMBER, 403, "not_member", "the account is not a member of the room")                                 \
    X(ERR_FORBIDDEN, 403, "forbidden", "this is not allowed")                                                       \
    X(ERR_NO_SUCH_ROOM, 404, "no_such_room", "there is no room with this id or key")                                \
    X(ERR_NO_SUCH_MESSAGE, 404, "no_such_message", "there is no such message in the room")                          \
    X(ERR_NO_SUCH_METHOD, 404, "no_such_method", "there is no such call; see docs/openapi.yaml")                    \
    X(ERR_METHOD_NOT_ALLOWED, 405, "method_not_allowed", "use the method named in Allow")                           \
    X(ERR_ROOM_FULL, 409, "room_full", "the room would have more members than its limit")                           \
    X(ERR_TOO_LATE, 409, "too_late", "the time in which this was possible is over")                                 \
    X(ERR_CONFLICT, 409, "conflict", "the same id was used before with other content")                              \
    X(ERR_ROOM_GONE, 410, "room_gone", "the room has been removed")                                                 \
    X(ERR_TOO_LARGE, 413, "too_large", "larger than the limit")                                                     \
    X(ERR_UNSUPPORTED_MEDIA_TYPE, 415, "unsupported_media_type", "send application/json or application/msgpack")    \
    X(ERR_RATE_LIMITED, 429, "rate_limited", "too many at once; try again later")                                   \
    X(ERR_UNAVAILABLE, 503, "unavailable", "a part of the service is away; try again later")                        \
    X(ERR_TIMEOUT, 504, "timeout",                                                                                  \
        "no answer in time; it may have happened: repeat with the same client_msg_id, key or request_id")           \
    /* Inside only; the border turns them into unavailable or timeout. */                                           \
    X(ERR_LOST, 504, "timeout",                                                                                     \
        "the connection broke; it may have happened: repeat with the same client_msg_id, key or request_id")        \
    X(ERR_DATABASE, 503, "unavailable", "the database refused the statement; see the log of this instance")         \
    X(ERR_UNROUTABLE, 503, "unavailable", "the broker has no queue for this room yet; try again later")             \
    X(ERR_FENCED, 503, "unavailable", "another instance owns this shard now")                                       \
    X(ERR_CLOSED, 503, "unavailable", "shutting down")

enum err {
#define X(id, http, code, sentence) id,
    ERR_TABLE(X)
#undef X
        ERR_COUNT
};

const char *err_code(enum err err);     /* "room_full" */
const char *err_sentence(enum err err); /* a sentence a caller can act on */
int err_http(enum err err);             /* 409 */

#endif
