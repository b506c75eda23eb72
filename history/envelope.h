/*
 * A message body as it comes from the broker, checked completely before anything else looks at it: what a publisher
 * wrote (exchange roomd.room) or an op of our own (exchange roomd.op, which only roomd's broker user may write).
 * Source: docs/protocol.md#messages. Thread: the loop's.
 */
#ifndef ROOMD_HISTORY_ENVELOPE_H
#define ROOMD_HISTORY_ENVELOPE_H

#include "room/base/bytes.h"
#include "room/base/err.h"
#include "room/base/json.h"
#include "room/base/ulid.h"
#include "room/name.h"

enum op_kind {
    OP_NONE = 0, /* a message */
    OP_MEMBER_ADD,
    OP_MEMBER_REMOVE,
    OP_ROOM_UPDATE,
    OP_ROOM_REMOVE,
    OP_ROOM_MUTE, /* all accounts, or the room */
    OP_MEMBER_ROLE,
    OP_MESSAGE_EDIT,
    OP_MESSAGE_RECALL,
    OP_MESSAGE_DELETE, /* for all */
    OP_KINDS
};

#define OP_ACCOUNTS_MAX 1000

/* All slices point into `body` or `text`. One allocation each; free with envelope_free. */
struct envelope {
    struct bytes *body; /* as it came, for dead letters */
    struct bytes *text; /* its JSON: the same bytes, or what MessagePack became */
    struct str content_type;
    struct str room_id, shard, sender, kind, content, client_msg_id;
    struct str meta;         /* sent_at, quote_seq, mentions: JSON members without braces, as entries show them */
    struct id128 message_id; /* of an op: the op's id */
    int64_t hash;
    uint64_t quote_seq; /* 0 = none */
    uint64_t sent_at;   /* UINT64_MAX = not given */
    bool transient;
    bool counted;        /* counts as unread */
    struct str mentions; /* JSON array of accounts and "@all", a slice of meta; empty = none */
    bool mentions_all;

    enum op_kind op;
    struct str name, notice, owner, extra; /* OP_ROOM_UPDATE; p NULL = as it is; extra is JSON text */
    int32_t member_limit;                  /* OP_ROOM_UPDATE; -1 = as it is */
    struct str reason;
    struct str by;       /* whose act it is; empty = the service's */
    enum role role;      /* OP_MEMBER_ADD, OP_MEMBER_ROLE */
    uint64_t called_at;  /* unix ms at the instance that took the call */
    uint64_t until;      /* OP_ROOM_MUTE: unix ms; 0 = may speak again */
    uint64_t target_seq; /* OP_MESSAGE_*: one of the two names the message; 0, zero: not given */
    struct id128 target_id;
    struct json new_content; /* OP_MESSAGE_EDIT: checked for well-formedness and size; its kind is the message's */
    struct str *accounts; /* OP_MEMBER_*, OP_ROOM_MUTE (none = the room): each once, in the order given; OP_ROOM_UPDATE:
                           * the new owner */
    size_t account_count;
    struct buf scratch; /* unescaped texts */
    struct buf meta_text;
    char *type_text;
};

/*
 * Check and read. On anything but ERR_OK *why is a sentence, and room_id/sender/client_msg_id/message_id are
 * filled as far as they could be read (for the dead letter and message.rejected).
 *   ERR_BAD_REQUEST
 *   ERR_TOO_LARGE    content above content_max_bytes
 *   ERR_FORBIDDEN    an op not from roomd.op, or the other way round
 */
struct envelope_source {
    bool from_op_exchange;
    struct str content_type, content_encoding;
    struct str shard; /* the queue's: another shard's room is bad_request */
    /* the AMQP property: stands in for a missing client_msg_id, so that a redelivery has the same id */
    struct str message_id;
    int64_t content_max_bytes;
};
MUST_USE enum err envelope_read(
    struct envelope **out, struct str body, const struct envelope_source *source, const char **why);
void envelope_free(struct envelope *envelope);

#endif
