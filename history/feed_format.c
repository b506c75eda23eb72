/* Messages of the feed as bytes: see feed_format.h. */
#include "feed_format.h"

#define VERSION 1
#define HEAD_BYTES (2 + FEED_INSTANCE_BYTES)

/* ------------------------------------------------------------------------------------------------------- writing */

static void put(struct buf *out, uint64_t value, unsigned bytes)
{
    char *at = buf_reserve(out, bytes);

    for (unsigned i = 0; i < bytes; i++)
        at[i] = (char)(value >> 8 * (bytes - 1 - i));
    out->n += bytes;
}

void feed_write_name(struct buf *out, struct str name)
{
    put(out, name.n, 1);
    buf_add_str(out, name);
}

void feed_write_count(struct buf *out, size_t count)
{
    put(out, count, 2);
}

void feed_write_head(struct buf *out, enum feed_kind kind, const char *instance)
{
    put(out, VERSION, 1);
    put(out, kind, 1);
    buf_add(out, instance, FEED_INSTANCE_BYTES);
}

void feed_write_item(struct buf *out, const struct feed_item *item)
{
    put(out, item->to, 1);
    put(out, item->name.n, 1);
    put(out, item->json.n, 4);
    buf_add_str(out, item->name);
    buf_add_str(out, item->json);
}

void feed_write_log_head(struct buf *out, struct str shard, uint64_t epoch, uint64_t counter)
{
    feed_write_name(out, shard);
    put(out, epoch, 8);
    put(out, counter, 8);
}

void feed_write_entry(struct buf *out, struct str room_id, const struct entry *entry, bool durable)
{
    put(out, durable ? FEED_LOG_DURABLE : FEED_LOG_EARLY, 1);
    put(out, entry->type, 1);
    feed_write_name(out, room_id);
    put(out, (uint64_t)entry->room_no, 8);
    put(out, entry->epoch, 8);
    put(out, entry->seq, 8);
    put(out, entry->at, 8);
    put(out, entry->counted, 8);
    put(out, entry->n, 4);
    buf_add_str(out, entry_json(entry));
}

void feed_write_mark(struct buf *out, struct str room_id, int64_t room_no, uint64_t seq, uint64_t epoch)
{
    put(out, FEED_LOG_MARK, 1);
    feed_write_name(out, room_id);
    put(out, (uint64_t)room_no, 8);
    put(out, seq, 8);
    put(out, epoch, 8);
}

void feed_write_beat_head(struct buf *out, bool database_ok, const uint64_t entered[FEED_WAYS], size_t held)
{
    put(out, database_ok, 1);
    for (int way = 0; way < FEED_WAYS; way++)
        put(out, entered[way], 8);
    feed_write_count(out, held);
}

void feed_write_held(struct buf *out, const struct feed_held *held)
{
    feed_write_name(out, held->shard);
    put(out, held->epoch, 8);
    put(out, held->counter, 8);
    put(out, held->flags, 1);
}

void feed_write_entered_head(struct buf *out, enum feed_way way, uint64_t counter)
{
    put(out, way, 1);
    put(out, counter, 8);
}

void feed_write_entered(struct buf *out, struct str room_id, struct cursor after, size_t count)
{
    feed_write_name(out, room_id);
    put(out, after.epoch, 8);
    put(out, after.seq, 8);
    feed_write_count(out, count);
}

void feed_write_settled(struct buf *out, const struct feed_settled *settled)
{
    put(out, settled->what, 1);
    buf_add(out, settled->message_id.b, sizeof settled->message_id.b);
    put(out, settled->duplicate, 1);
    put(out, settled->seq, 8);
    feed_write_name(out, settled->code);
    put(out, settled->result.n, 4);
    buf_add_str(out, settled->result);
}

void feed_write_question(struct buf *out, uint64_t number, struct str text)
{
    put(out, number, 8);
    buf_add_str(out, text);
}

/* ------------------------------------------------------------------------------------------------------- reading */

/* What is taken from beyond the end is zero or empty, and the whole is short. */
struct taking {
    struct str from;
    bool short_of;
};

static struct str take(struct taking *taking, size_t n)
{
    struct str taken = {taking->from.p, n};

    if (taking->from.n < n) {
        taking->short_of = true;
        return (struct str){"", 0};
    }
    taking->from.p += n;
    taking->from.n -= n;
    return taken;
}

static uint64_t take_number(struct taking *taking, unsigned bytes)
{
    struct str taken = take(taking, bytes);
    uint64_t value = 0;

    for (size_t i = 0; i < taken.n; i++)
        value = value << 8 | (unsigned char)taken.p[i];
    return value;
}

static struct str take_name(struct taking *taking)
{
    return take(taking, (size_t)take_number(taking, 1));
}

/* As take_name, for what has a u32 before it. */
static struct str take_text(struct taking *taking)
{
    return take(taking, (size_t)take_number(taking, 4));
}

static bool is_object(struct str json)
{
    return json.n >= 2 && json.p[0] == '{' && json.p[json.n - 1] == '}';
}

/* A line break inside would make two events of one on every transport; the rest of the text is its writer's affair. */
static bool is_event(struct str json)
{
    return is_object(json) && !memchr(json.p, '\n', json.n);
}

static bool is_room(struct str room_id)
{
    struct str shard;

    return room_id_read(room_id, &shard);
}

static bool is_shard(struct str shard)
{
    return shard.n >= 1 && shard.n <= SHARD_MAX_BYTES && !memchr(shard.p, '.', shard.n) && !memchr(shard.p, 0, shard.n);
}

bool feed_next(struct str *items, struct feed_item *item)
{
    struct taking taking = {*items, false};
    size_t name_n, json_n;

    item->to = (enum feed_to)take_number(&taking, 1);
    name_n = (size_t)take_number(&taking, 1);
    json_n = (size_t)take_number(&taking, 4);
    item->name = take(&taking, name_n);
    item->json = take(&taking, json_n);
    *items = taking.from;
    return !taking.short_of && is_event(item->json) &&
           (item->to == FEED_TO_ROOM ? is_room(item->name) : item->to == FEED_TO_ACCOUNT && account_valid(item->name));
}

bool feed_next_log(struct str *items, struct feed_log_item *item)
{
    struct taking taking = {*items, false};
    bool good;

    *item = (struct feed_log_item){.what = (enum feed_log_what)take_number(&taking, 1)};
    if (item->what == FEED_LOG_MARK) {
        item->room_id = take_name(&taking);
        item->room_no = (int64_t)take_number(&taking, 8);
        item->seq = take_number(&taking, 8);
        item->epoch = take_number(&taking, 8);
        good = true;
    } else {
        item->type = (enum entry_type)take_number(&taking, 1);
        item->room_id = take_name(&taking);
        item->room_no = (int64_t)take_number(&taking, 8);
        item->epoch = take_number(&taking, 8);
        item->seq = take_number(&taking, 8);
        item->at = take_number(&taking, 8);
        item->counted = take_number(&taking, 8);
        item->json = take_text(&taking);
        good = (item->what == FEED_LOG_EARLY || item->what == FEED_LOG_DURABLE) && item->type < ENTRY_TYPES &&
               item->seq > 0 && is_object(item->json);
    }
    *items = taking.from;
    return good && !taking.short_of && is_room(item->room_id);
}

bool feed_next_held(struct str *held, struct feed_held *item)
{
    struct taking taking = {*held, false};

    item->shard = take_name(&taking);
    item->epoch = take_number(&taking, 8);
    item->counter = take_number(&taking, 8);
    item->flags = (unsigned)take_number(&taking, 1);
    *held = taking.from;
    return !taking.short_of && is_shard(item->shard);
}

bool feed_next_name(struct str *names, struct str *name)
{
    struct taking taking = {*names, false};

    *name = take_name(&taking);
    *names = taking.from;
    return !taking.short_of && name->n;
}

bool feed_next_entered(struct str *items, struct feed_entered *item)
{
    struct taking taking = {*items, false};
    struct str account;
    bool good = true;

    item->room_id = take_name(&taking);
    item->after.epoch = take_number(&taking, 8);
    item->after.seq = take_number(&taking, 8);
    item->count = (size_t)take_number(&taking, 2);
    item->accounts = taking.from;
    for (size_t i = 0; i < item->count && good; i++)
        good = feed_next_name(&taking.from, &account) && account_valid(account);
    item->accounts.n -= taking.from.n;
    *items = taking.from;
    return good && !taking.short_of && is_room(item->room_id);
}

bool feed_next_settled(struct str *items, struct feed_settled *item)
{
    struct taking taking = {*items, false};
    struct str id;

    item->what = (enum feed_settled_what)take_number(&taking, 1);
    id = take(&taking, sizeof item->message_id.b);
    memcpy(item->message_id.b, id.p, id.n);
    item->duplicate = take_number(&taking, 1);
    item->seq = take_number(&taking, 8);
    item->code = take_name(&taking);
    item->result = take_text(&taking);
    *items = taking.from;
    return !taking.short_of && item->what >= FEED_SETTLED_DONE && item->what <= FEED_SETTLED_LOOK;
}

static bool beat_read(struct taking *taking, struct feed_beat *beat)
{
    struct feed_held held;
    struct str name;

    beat->database_ok = take_number(taking, 1) & 1;
    for (int way = 0; way < FEED_WAYS; way++)
        beat->entered[way] = take_number(taking, 8);
    beat->held_count = (size_t)take_number(taking, 2);
    beat->held = taking->from;
    for (size_t i = 0; i < beat->held_count; i++)
        if (!feed_next_held(&taking->from, &held))
            return false;
    beat->held.n -= taking->from.n;
    beat->followed_count = (size_t)take_number(taking, 2);
    beat->followed = taking->from;
    for (size_t i = 0; i < beat->followed_count; i++)
        if (!feed_next_name(&taking->from, &name) || !is_shard(name))
            return false;
    beat->followed.n -= taking->from.n;
    return !taking->short_of;
}

static bool items_good(const struct feed_message *message)
{
    struct str rest = message->items;
    bool good = true;

    while (rest.n && good) {
        struct feed_item told;
        struct feed_log_item log;
        struct feed_entered entered;
        struct feed_settled settled;

        switch (message->kind) {
        case FEED_TOLD:
            good = feed_next(&rest, &told);
            break;
        case FEED_LOG:
            good = feed_next_log(&rest, &log);
            break;
        case FEED_ENTERED:
            good = feed_next_entered(&rest, &entered);
            break;
        case FEED_SETTLED:
            good = feed_next_settled(&rest, &settled);
            break;
        case FEED_BEAT:
        case FEED_ASK:
        case FEED_ANSWER:
        case FEED_KINDS:
            return true; /* no items */
        }
    }
    return good;
}

bool feed_is_from(struct str body, const char *instance)
{
    return body.n >= HEAD_BYTES && body.p[0] == VERSION && memcmp(body.p + 2, instance, FEED_INSTANCE_BYTES) == 0;
}

enum feed_reading feed_read(struct str body, struct feed_message *message)
{
    struct taking taking = {body, false};
    struct id128 id;
    bool good = true;

    *message = (struct feed_message){0};
    if (body.n < 2)
        return FEED_BAD;
    if (body.p[0] != VERSION || body.p[1] < FEED_TOLD || body.p[1] >= FEED_KINDS)
        return FEED_UNKNOWN;
    if (body.n < HEAD_BYTES)
        return FEED_BAD;
    take(&taking, 1);
    message->kind = (enum feed_kind)take_number(&taking, 1);
    message->sender = take(&taking, FEED_INSTANCE_BYTES);
    if (message->kind == FEED_LOG) {
        message->shard = take_name(&taking);
        message->epoch = take_number(&taking, 8);
        good = is_shard(message->shard);
    } else if (message->kind == FEED_BEAT) {
        good = beat_read(&taking, &message->beat);
    } else if (message->kind == FEED_ENTERED) {
        message->way = (enum feed_way)take_number(&taking, 1);
        good = message->way < FEED_WAYS;
    }
    if (message->kind == FEED_LOG || message->kind == FEED_ENTERED || message->kind == FEED_ASK ||
        message->kind == FEED_ANSWER)
        message->counter = take_number(&taking, 8);
    message->items = taking.from;
    return good && !taking.short_of && ulid_read(&id, message->sender) && items_good(message) ? FEED_GOOD : FEED_BAD;
}
