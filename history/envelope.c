#include "envelope.h"

#include <assert.h>
#include <stdlib.h>

#include "content.h"
#include "room/base/clock.h"
#include "room/base/msgpack.h"
#include "room/base/pool.h"

/* Besides content: ids, mentions and whatever fields a publisher adds for itself. */
#define BODY_EXTRA_MAX_BYTES 65536
#define MEMBERS_MAX 32
#define NAME_MAX_BYTES 256
#define NOTICE_MAX_BYTES 8192
#define EXTRA_MAX_BYTES 16384
#define REASON_MAX_BYTES 256
#define CONTENT_TOO_LARGE "content is larger than content_max_bytes (64 KiB unless set otherwise)"
#define TIME_MAX_MS 253402300799999 /* the end of the year 9999 */

/* The fields a body may have; what is not here is ignored. */
enum field {
    F_V,
    F_ROOM_ID,
    F_SENDER,
    F_KIND,
    F_CONTENT,
    F_CLIENT_MSG_ID,
    F_SENT_AT,
    F_MENTIONS,
    F_QUOTE_SEQ,
    F_TRANSIENT,
    F_OP,
    F_OP_ID,
    F_BY,
    F_AT,
    F_ACCOUNT_IDS,
    F_ROLE,
    F_REASON,
    F_NAME,
    F_NOTICE,
    F_OWNER,
    F_MEMBER_LIMIT,
    F_EXTRA,
    F_UNTIL,
    F_FOR_MS,
    F_TARGET_SEQ,
    F_TARGET_ID,
    FIELDS
};
static const struct str field_names[FIELDS] = {
    {"v", 1},
    {"room_id", 7},
    {"sender", 6},
    {"kind", 4},
    {"content", 7},
    {"client_msg_id", 13},
    {"sent_at", 7},
    {"mentions", 8},
    {"quote_seq", 9},
    {"transient", 9},
    {"op", 2},
    {"op_id", 5},
    {"by", 2},
    {"at", 2},
    {"account_ids", 11},
    {"role", 4},
    {"reason", 6},
    {"name", 4},
    {"notice", 6},
    {"owner", 5},
    {"member_limit", 12},
    {"extra", 5},
    {"until", 5},
    {"for_ms", 6},
    {"target_seq", 10},
    {"target_id", 9},
};

struct reading {
    struct envelope *envelope;
    const struct envelope_source *source;
    struct json field[FIELDS];
    const char *why;
};

/* A body is read - the steps, in the order they run. Each returns ERR_OK or sets why. */
static enum err read_text(struct reading *r, struct str body);
static enum err read_fields(struct reading *r);
static enum err read_room(struct reading *r);
static enum err read_message(struct reading *r);
static enum err read_op(struct reading *r);

static enum err refuse(struct reading *r, enum err err, const char *why)
{
    r->why = why;
    return err;
}

static struct pool envelopes = POOL_OF(struct envelope);

enum err envelope_read(struct envelope **out, struct str body, const struct envelope_source *source, const char **why)
{
    struct envelope *envelope = pool_take(&envelopes);
    struct reading r = {.envelope = envelope, .source = source};
    enum err err;

    envelope->member_limit = -1;
    envelope->sent_at = UINT64_MAX;
    err = read_text(&r, body);
    if (!err)
        err = read_fields(&r);
    if (!err)
        err = read_room(&r);
    if (!err)
        err = r.field[F_OP].type ? read_op(&r) : read_message(&r);
    *out = envelope;
    if (err)
        *why = r.why;
    return err;
}

void envelope_free(struct envelope *envelope)
{
    if (!envelope)
        return;
    bytes_drop(envelope->body);
    bytes_drop(envelope->text);
    free(envelope->accounts);
    buf_clear(&envelope->scratch);
    buf_clear(&envelope->meta_text);
    free(envelope->type_text);
    pool_give(&envelopes, envelope);
}

/* --- the steps --- */

static bool media_type_is(struct str type, const char *name)
{
    size_t n = strlen(name);

    if (type.n < n || memcmp(type.p, name, n) != 0)
        return false;
    return type.n == n || type.p[n] == ';' || type.p[n] == ' ';
}

static enum err read_text(struct reading *r, struct str body)
{
    struct envelope *envelope = r->envelope;
    struct buf json = {0};

    envelope->body = bytes_new(body.p, body.n);
    if (str_is(r->source->content_type, "application/json")) {
        envelope->content_type = STR("application/json"); /* nearly always: no copy */
    } else if (r->source->content_type.n) {
        envelope->type_text = xstrndup(r->source->content_type.p, r->source->content_type.n);
        envelope->content_type = (struct str){envelope->type_text, r->source->content_type.n};
    }
    if (body.n > (size_t)r->source->content_max_bytes + BODY_EXTRA_MAX_BYTES)
        return refuse(r, ERR_TOO_LARGE, "the body is larger than content may be");
    if (r->source->content_encoding.n && !str_is(r->source->content_encoding, "identity"))
        return refuse(r, ERR_BAD_REQUEST, "content_encoding is not supported: send the body as it is");
    if (!envelope->content_type.n || media_type_is(envelope->content_type, "application/json")) {
        envelope->text = bytes_hold(envelope->body);
        return ERR_OK;
    }
    if (!media_type_is(envelope->content_type, "application/msgpack"))
        return refuse(r, ERR_BAD_REQUEST, "content_type must be application/json or application/msgpack");
    if (!msgpack_to_json(body, &json, &r->why)) {
        buf_clear(&json);
        return ERR_BAD_REQUEST;
    }
    envelope->text = bytes_new(json.p, json.n);
    buf_clear(&json);
    return ERR_OK;
}

static enum field find_field(const struct json_member *member)
{
    for (int i = 0; i < FIELDS; i++)
        if (field_names[i].n == member->key.n && memcmp(field_names[i].p, member->key.p, member->key.n) == 0)
            return (enum field)i;
    if (member->key_escaped)
        for (int i = 0; i < FIELDS; i++)
            if (json_key_is(member, field_names[i].p))
                return (enum field)i;
    return FIELDS;
}

static enum err read_fields(struct reading *r)
{
    struct json_member members[MEMBERS_MAX];
    size_t count;
    int64_t version;

    if (!json_object_read(bytes_str(r->envelope->text), members, MEMBERS_MAX, &count, &r->why))
        return ERR_BAD_REQUEST;
    if (count > MEMBERS_MAX)
        return refuse(r, ERR_BAD_REQUEST, "a body has at most 32 fields");
    for (size_t i = 0; i < count; i++) {
        enum field field = find_field(&members[i]);

        if (field != FIELDS)
            r->field[field] = members[i].value;
    }
    if (r->field[F_V].type && (!json_integer(r->field[F_V], &version) || version != 1))
        return refuse(r, ERR_BAD_REQUEST, "v must be 1");
    return ERR_OK;
}

/* Unescaped texts may live in scratch: it is made as large as they can ever be, once, so that slices of
 * it stay good. */
static bool take_string(struct reading *r, enum field field, struct str *out)
{
    struct json value = r->field[field];

    if (value.type != JSON_STRING)
        return false;
    if (value.escaped && !r->envelope->scratch.capacity)
        buf_reserve(&r->envelope->scratch, r->envelope->text->n + 1);
    return json_string(value, &r->envelope->scratch, out);
}

static bool take_integer(struct reading *r, enum field field, int64_t least, int64_t most, int64_t *out)
{
    return json_integer(r->field[field], out) && *out >= least && *out <= most;
}

static bool absent(const struct reading *r, enum field field)
{
    return r->field[field].type == JSON_NONE || r->field[field].type == JSON_NULL;
}

static enum err read_room(struct reading *r)
{
    struct envelope *envelope = r->envelope;
    struct str room_id;

    if (!take_string(r, F_ROOM_ID, &room_id) || !room_id_read(room_id, &envelope->shard))
        return refuse(r, ERR_BAD_REQUEST, "room_id must be the id of a room, as Create answered it");
    envelope->room_id = room_id;
    if (!str_eq(envelope->shard, r->source->shard))
        return refuse(
            r, ERR_BAD_REQUEST, "room_id belongs to another shard: the routing key is what stands before its dot");
    return ERR_OK;
}

/* --- messages --- */

static enum err read_ids(struct reading *r)
{
    struct envelope *envelope = r->envelope;
    char *minted;

    if (!take_string(r, F_SENDER, &envelope->sender) ||
        !(account_valid(envelope->sender) || str_is(envelope->sender, "@system"))) {
        envelope->sender = (struct str){NULL, 0};
        return refuse(r, ERR_BAD_REQUEST, "sender must be an account (1-64 bytes, not beginning with @) or @system");
    }
    if (!absent(r, F_CLIENT_MSG_ID)) {
        if (!take_string(r, F_CLIENT_MSG_ID, &envelope->client_msg_id) || !client_id_valid(envelope->client_msg_id)) {
            envelope->client_msg_id = (struct str){NULL, 0};
            return refuse(r, ERR_BAD_REQUEST, "client_msg_id must be 1-64 bytes without control characters");
        }
    } else if (client_id_valid(r->source->message_id)) {
        buf_add(&envelope->meta_text, r->source->message_id.p, r->source->message_id.n);
        envelope->client_msg_id = buf_str(&envelope->meta_text);
    } else {
        minted = buf_reserve(&envelope->meta_text, ULID_TEXT);
        ulid_write(minted, ulid_new(clock_unix_ms()));
        envelope->meta_text.n = ULID_TEXT;
        envelope->client_msg_id = buf_str(&envelope->meta_text);
    }
    envelope->message_id = message_id_of(envelope->room_id, envelope->sender, envelope->client_msg_id);
    return ERR_OK;
}

/* Mentions and quote stand beside content, or (rich_text) are derived from it; the entry shows both the same way. */
static enum err read_marks(struct reading *r, struct content_facts *facts)
{
    struct json_walk walk;
    struct json item;
    int64_t seq;

    if (!absent(r, F_MENTIONS)) {
        if (r->field[F_MENTIONS].type != JSON_ARRAY)
            return refuse(r, ERR_BAD_REQUEST, "mentions must be an array of accounts");
        walk = json_walk(r->field[F_MENTIONS]);
        while (json_next_item(&walk, &item))
            if (!content_add_mention(facts, item))
                return refuse(r, ERR_BAD_REQUEST, "mentions must hold at most 100 accounts or \"@all\"");
    }
    if (!absent(r, F_QUOTE_SEQ)) {
        if (!take_integer(r, F_QUOTE_SEQ, 1, INT64_MAX, &seq))
            return refuse(r, ERR_BAD_REQUEST, "quote_seq must be a seq of the room");
        facts->quote_seq = (uint64_t)seq;
    }
    return ERR_OK;
}

static enum err read_meta(struct reading *r, struct content_facts *facts)
{
    struct envelope *envelope = r->envelope;
    size_t minted = envelope->meta_text.n; /* client_msg_id may stand there: grow once, then point at it anew */
    bool owns_id = minted && envelope->client_msg_id.p == envelope->meta_text.p;
    struct buf *meta = &envelope->meta_text;
    int64_t sent_at;

    if (!absent(r, F_SENT_AT)) {
        if (!take_integer(r, F_SENT_AT, 0, TIME_MAX_MS, &sent_at))
            return refuse(r, ERR_BAD_REQUEST, "sent_at must be milliseconds since 1970");
        buf_text(meta, "\"sent_at\":");
        buf_i64(meta, sent_at);
        envelope->sent_at = (uint64_t)sent_at;
    }
    if (facts->quote_seq) {
        buf_text(meta, meta->n > minted ? ",\"quote_seq\":" : "\"quote_seq\":");
        buf_u64(meta, facts->quote_seq);
    }
    if (facts->mentions.n) {
        buf_text(meta, meta->n > minted ? ",\"mentions\":" : "\"mentions\":");
        buf_add(meta, facts->mentions.p, facts->mentions.n);
        envelope->mentions = (struct str){meta->p + meta->n - facts->mentions.n, facts->mentions.n}; /* the last one */
    }
    envelope->mentions_all = facts->mentions_all;
    envelope->quote_seq = facts->quote_seq;
    envelope->meta = (struct str){meta->p ? meta->p + minted : NULL, meta->n - minted};
    if (owns_id)
        envelope->client_msg_id = (struct str){meta->p, minted};
    return ERR_OK;
}

static enum err read_content(struct reading *r, struct content_facts *facts)
{
    struct envelope *envelope = r->envelope;
    struct json content = r->field[F_CONTENT];

    if (!take_string(r, F_KIND, &envelope->kind) || !kind_valid(envelope->kind))
        return refuse(r, ERR_BAD_REQUEST, "kind must be 1-64 characters of A-Z a-z 0-9 _ . / -");
    if (content.type == JSON_NONE)
        return refuse(r, ERR_BAD_REQUEST, "content is missing");
    if (content.n > (size_t)r->source->content_max_bytes)
        return refuse(r, ERR_TOO_LARGE, CONTENT_TOO_LARGE);
    envelope->content = (struct str){content.p, content.n};
    envelope->hash = content_hash(envelope->kind, envelope->content);
    return content_check(envelope->kind, content, facts, &r->why);
}

static enum err read_message(struct reading *r)
{
    struct envelope *envelope = r->envelope;
    struct content_facts facts = {0};
    struct json transient = r->field[F_TRANSIENT];
    enum err err = read_ids(r);

    if (!err && r->source->from_op_exchange)
        err = refuse(r, ERR_FORBIDDEN, "exchange roomd.op carries ops only: publish messages to roomd.room");
    if (!err && !absent(r, F_TRANSIENT) && transient.type != JSON_TRUE && transient.type != JSON_FALSE)
        err = refuse(r, ERR_BAD_REQUEST, "transient must be true or false");
    if (!err)
        err = read_content(r, &facts);
    if (!err)
        err = read_marks(r, &facts);
    if (!err)
        err = read_meta(r, &facts);
    envelope->transient = transient.type == JSON_TRUE;
    envelope->counted = !str_is(envelope->kind, "tip");
    buf_clear(&facts.mentions);
    return err;
}

/* --- ops: written by ourselves, checked all the same --- */

static const struct {
    const char *name;
    enum op_kind kind;
} ops[] = {
    {"member.add", OP_MEMBER_ADD},
    {"member.remove", OP_MEMBER_REMOVE},
    {"room.update", OP_ROOM_UPDATE},
    {"room.remove", OP_ROOM_REMOVE},
    {"room.mute", OP_ROOM_MUTE},
    {"member.role", OP_MEMBER_ROLE},
    {"message.edit", OP_MESSAGE_EDIT},
    {"message.recall", OP_MESSAGE_RECALL},
    {"message.delete", OP_MESSAGE_DELETE},
};

/* What the op asks for, without when and under which id: a repeat has the same hash. Hashes are stored: what came later
 * is said only where it is given, so that older ops keep theirs. */
static int64_t op_hash(const struct reading *r, struct str name)
{
    static const enum field said[] = {
        F_BY, F_ACCOUNT_IDS, F_ROLE, F_REASON, F_NAME, F_NOTICE, F_OWNER, F_MEMBER_LIMIT, F_EXTRA};
    static const enum field given[] = {F_UNTIL, F_FOR_MS, F_TARGET_SEQ, F_TARGET_ID, F_CONTENT};
    struct buf text = {0};
    int64_t hash;

    for (size_t i = 0; i < countof(said); i++) {
        buf_char(&text, ',');
        buf_add(&text, r->field[said[i]].p, r->field[said[i]].n);
    }
    for (size_t i = 0; i < countof(given); i++) {
        if (absent(r, given[i]))
            continue;
        buf_char(&text, ',');
        buf_add_str(&text, field_names[given[i]]);
        buf_char(&text, ':');
        buf_add(&text, r->field[given[i]].p, r->field[given[i]].n);
    }
    hash = content_hash(name, buf_str(&text));
    buf_clear(&text);
    return hash;
}

static int by_text(const void *a, const void *b)
{
    const struct str *x = *(const struct str *const *)a, *y = *(const struct str *const *)b;
    size_t n = x->n < y->n ? x->n : y->n;
    int order = memcmp(x->p, y->p, n);

    if (order == 0)
        order = (x->n > y->n) - (x->n < y->n);
    return order ? order : (x > y) - (x < y);
}

/* Each account once, the first one stays where it is. */
static void drop_repeats(struct envelope *envelope)
{
    size_t n = envelope->account_count, kept = 0;
    struct str **sorted = xmalloc((n + 1) * sizeof *sorted);

    for (size_t i = 0; i < n; i++)
        sorted[i] = &envelope->accounts[i];
    qsort(sorted, n, sizeof *sorted, by_text);
    for (size_t i = n; i-- > 1;)
        if (str_eq(*sorted[i], *sorted[i - 1]))
            sorted[i]->p = NULL;
    for (size_t i = 0; i < n; i++)
        if (envelope->accounts[i].p)
            envelope->accounts[kept++] = envelope->accounts[i];
    envelope->account_count = kept;
    free(sorted);
}

static enum err read_accounts(struct reading *r)
{
    struct envelope *envelope = r->envelope;
    struct json_walk walk;
    struct json item;

    if (r->field[F_ACCOUNT_IDS].type != JSON_ARRAY)
        return refuse(r, ERR_BAD_REQUEST, "account_ids must be an array");
    envelope->accounts = xcalloc(OP_ACCOUNTS_MAX, sizeof *envelope->accounts);
    if (!envelope->scratch.capacity)
        buf_reserve(&envelope->scratch, envelope->text->n + 1);
    walk = json_walk(r->field[F_ACCOUNT_IDS]);
    while (json_next_item(&walk, &item)) {
        struct str account;

        if (envelope->account_count == OP_ACCOUNTS_MAX)
            return refuse(r, ERR_BAD_REQUEST, "account_ids holds more than 1000 accounts");
        if (item.type != JSON_STRING || !json_string(item, &envelope->scratch, &account) || !account_valid(account))
            return refuse(r, ERR_BAD_REQUEST, "account_ids holds something that is no account");
        envelope->accounts[envelope->account_count++] = account;
    }
    if (!envelope->account_count)
        return refuse(r, ERR_BAD_REQUEST, "account_ids is empty");
    drop_repeats(envelope);
    return ERR_OK;
}

static bool take_short(struct reading *r, enum field field, size_t max, struct str *out)
{
    return absent(r, field) || (take_string(r, field, out) && out->n <= max);
}

static enum err read_update(struct reading *r)
{
    struct envelope *envelope = r->envelope;
    int64_t limit;

    if (!take_short(r, F_NAME, NAME_MAX_BYTES, &envelope->name))
        return refuse(r, ERR_BAD_REQUEST, "name must be a string of at most 256 bytes");
    if (!take_short(r, F_NOTICE, NOTICE_MAX_BYTES, &envelope->notice))
        return refuse(r, ERR_BAD_REQUEST, "notice must be a string of at most 8192 bytes");
    if (!absent(r, F_OWNER)) {
        if (!take_string(r, F_OWNER, &envelope->owner) || !account_valid(envelope->owner))
            return refuse(r, ERR_BAD_REQUEST, "owner must be an account");
        envelope->accounts = xcalloc(1, sizeof *envelope->accounts);
        envelope->accounts[envelope->account_count++] = envelope->owner;
    }
    if (!absent(r, F_MEMBER_LIMIT)) {
        if (!take_integer(r, F_MEMBER_LIMIT, 0, INT32_MAX, &limit))
            return refuse(r, ERR_BAD_REQUEST, "member_limit must be 0 (none) or the largest number of members");
        envelope->member_limit = (int32_t)limit;
    }
    if (!absent(r, F_EXTRA)) {
        if (r->field[F_EXTRA].type != JSON_OBJECT || r->field[F_EXTRA].n > EXTRA_MAX_BYTES)
            return refuse(r, ERR_BAD_REQUEST, "extra must be an object of at most 16 KiB");
        envelope->extra = (struct str){r->field[F_EXTRA].p, r->field[F_EXTRA].n};
    }
    return ERR_OK;
}

static enum err read_role(struct reading *r)
{
    struct str role = STR("member");

    if (!absent(r, F_ROLE) && !take_string(r, F_ROLE, &role))
        return refuse(r, ERR_BAD_REQUEST, "role must be member or admin");
    r->envelope->role = str_is(role, "admin") ? ROLE_ADMIN : str_is(role, "member") ? ROLE_MEMBER : ROLE_NONE;
    return r->envelope->role ? ERR_OK : refuse(r, ERR_BAD_REQUEST, "role must be member or admin");
}

/* Until when, or for how long from when the call came. */
static enum err read_mute(struct reading *r)
{
    struct envelope *envelope = r->envelope;
    int64_t until, for_ms;

    if (absent(r, F_UNTIL) == absent(r, F_FOR_MS))
        return refuse(r, ERR_BAD_REQUEST, "give either until or for_ms");
    if (!absent(r, F_UNTIL)) {
        if (!take_integer(r, F_UNTIL, 0, TIME_MAX_MS, &until))
            return refuse(r, ERR_BAD_REQUEST, "until must be milliseconds since 1970, or 0");
        envelope->until = (uint64_t)until;
    } else {
        if (absent(r, F_AT) || !take_integer(r, F_FOR_MS, 1, TIME_MAX_MS - (int64_t)envelope->called_at, &for_ms))
            return refuse(r, ERR_BAD_REQUEST, "for_ms must be milliseconds from at on");
        envelope->until = envelope->called_at + (uint64_t)for_ms;
    }
    return absent(r, F_ACCOUNT_IDS) ? ERR_OK : read_accounts(r);
}

static enum err read_target(struct reading *r)
{
    struct envelope *envelope = r->envelope;
    struct str id;
    int64_t seq;

    if (absent(r, F_TARGET_SEQ) == absent(r, F_TARGET_ID))
        return refuse(r, ERR_BAD_REQUEST, "give either target_seq or target_id");
    if (!absent(r, F_TARGET_SEQ)) {
        if (!take_integer(r, F_TARGET_SEQ, 1, INT64_MAX, &seq))
            return refuse(r, ERR_BAD_REQUEST, "target_seq must be the seq of a message");
        envelope->target_seq = (uint64_t)seq;
    } else if (!take_string(r, F_TARGET_ID, &id) || !ulid_read(&envelope->target_id, id) ||
               id128_is_zero(envelope->target_id)) {
        return refuse(r, ERR_BAD_REQUEST, "target_id must be the id of a message: 26 characters");
    }
    return ERR_OK;
}

/* Whether the content fits is known where the message's kind is. */
static enum err read_new_content(struct reading *r)
{
    struct json content = r->field[F_CONTENT];

    if (content.type == JSON_NONE)
        return refuse(r, ERR_BAD_REQUEST, "content is missing");
    if (content.n > (size_t)r->source->content_max_bytes)
        return refuse(r, ERR_TOO_LARGE, CONTENT_TOO_LARGE);
    r->envelope->new_content = content;
    return ERR_OK;
}

static enum err read_op_head(struct reading *r, struct str name)
{
    struct envelope *envelope = r->envelope;
    struct str id;
    int64_t at = 0;

    if (!take_string(r, F_OP_ID, &id) || !ulid_read(&envelope->message_id, id))
        return refuse(r, ERR_BAD_REQUEST, "op_id must be 26 characters");
    if (!absent(r, F_BY) && (!take_string(r, F_BY, &envelope->by) || !account_valid(envelope->by)))
        return refuse(r, ERR_BAD_REQUEST, "by must be an account");
    if (!absent(r, F_AT) && !take_integer(r, F_AT, 0, TIME_MAX_MS, &at))
        return refuse(r, ERR_BAD_REQUEST, "at must be milliseconds since 1970");
    if (!take_short(r, F_REASON, REASON_MAX_BYTES, &envelope->reason))
        return refuse(r, ERR_BAD_REQUEST, "reason must be a string of at most 256 bytes");
    envelope->called_at = (uint64_t)at;
    envelope->hash = op_hash(r, name);
    return ERR_OK;
}

/* What each op takes besides its head. */
static enum err read_op_fields(struct reading *r, enum op_kind kind)
{
    enum err err;

    switch (kind) {
    case OP_MEMBER_ADD:
        err = read_accounts(r);
        return err ? err : read_role(r);
    case OP_MEMBER_ROLE:
        if (absent(r, F_ROLE))
            return refuse(r, ERR_BAD_REQUEST, "role is missing: member or admin");
        err = read_accounts(r);
        return err ? err : read_role(r);
    case OP_MEMBER_REMOVE:
        return read_accounts(r);
    case OP_ROOM_UPDATE:
        return read_update(r);
    case OP_ROOM_MUTE:
        return read_mute(r);
    case OP_MESSAGE_EDIT:
        err = read_target(r);
        return err ? err : read_new_content(r);
    case OP_MESSAGE_RECALL:
    case OP_MESSAGE_DELETE:
        return read_target(r);
    default:
        return ERR_OK;
    }
}

static enum err read_op(struct reading *r)
{
    struct envelope *envelope = r->envelope;
    enum op_kind kind = OP_NONE;
    struct str name;
    enum err err;

    if (!r->source->from_op_exchange)
        return refuse(r, ERR_FORBIDDEN, "ops come through exchange roomd.op, which only roomd itself may write");
    if (!take_string(r, F_OP, &name))
        return refuse(r, ERR_BAD_REQUEST, "op must be a string");
    for (size_t i = 0; i < countof(ops); i++)
        if (str_is(name, ops[i].name))
            kind = ops[i].kind;
    if (!kind)
        return refuse(r, ERR_BAD_REQUEST, "no such op");
    err = read_op_head(r, name);
    if (!err)
        err = read_op_fields(r, kind);
    envelope->op = err ? OP_NONE : kind;
    return err;
}
