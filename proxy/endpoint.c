/*
 * PullByActiveConnection: where an account opens its stream, and the ticket for it.
 *
 * One room: its owner, whose news need not travel, unless the owner carries more than 1.25 times the mean; then the
 * less loaded of two others picked by the room's hash, so that all who come for this room meet again. Several rooms:
 * the least loaded, preferring the one that owns most of them. What was promised counts at once: a thousand who ask
 * between two beats must not all be sent to the same place.
 *
 * Who drains is not named, nor who takes nobody in at the moment. One that cannot consume comes last: it lacks the
 * broker, so its streams hear what happens elsewhere a second late.
 */
#include "core.h"

#include <inttypes.h>
#include <stdlib.h>

#define PROMISED_MS 10000 /* who did not come until then does not come */
#define INSTANCES_MAX 256 /* more are not looked at */

struct candidate {
    const struct cluster_instance *instance;
    const char *url;
    uint64_t load;
    uint32_t owns;
    bool overloaded, ready;
    size_t promised; /* index into proxy->promised */
};

/* ---------------------------------------------------------- choice of place */

/* Promises made since the instance last told its number of streams. */
static size_t promised_slot(struct proxy *proxy, const struct cluster_instance *instance)
{
    size_t free_slot = 0;
    uint32_t now = proxy_now(proxy);

    for (size_t i = 0; i < countof(proxy->promised); i++) {
        if (strcmp(proxy->promised[i].instance, instance->id) == 0) {
            if (proxy->promised[i].seen != instance->streams || now - proxy->promised[i].at > PROMISED_MS)
                proxy->promised[i].promised = 0;
            proxy->promised[i].seen = instance->streams;
            return i;
        }
        if (!proxy->promised[i].instance[0] || now - proxy->promised[i].at > now - proxy->promised[free_slot].at)
            free_slot = i;
    }
    memset(&proxy->promised[free_slot], 0, sizeof proxy->promised[0]);
    memcpy(proxy->promised[free_slot].instance, instance->id, sizeof proxy->promised[0].instance);
    proxy->promised[free_slot].seen = instance->streams;
    proxy->promised[free_slot].at = now;
    return free_slot;
}

static uint32_t owned_of(
    struct proxy *proxy, const struct cluster_instance *instance, const struct str *rooms, size_t count)
{
    uint32_t owns = 0;

    for (size_t i = 0; i < count; i++) {
        struct str shard;
        const struct cluster_shard *found =
            room_id_read(rooms[i], &shard) ? cluster_find_shard(proxy->cluster, shard) : NULL;

        owns += found && strcmp(found->owner, instance->id) == 0;
    }
    return owns;
}

/* Streams as an instance of the usual weight would feel them. */
static uint64_t weighted(uint64_t streams, uint32_t weight)
{
    return weight ? streams * 100 / weight : streams;
}

/* Without those that take nobody in at the moment. */
static size_t candidates_rested(struct candidate *candidates, size_t n)
{
    size_t kept = 0;

    for (size_t i = 0; i < n; i++)
        if (!candidates[i].overloaded)
            candidates[kept++] = candidates[i];
    return kept;
}

/* Those that can consume come first: how many they are; all, when none can. */
static size_t candidates_ready(struct candidate *candidates, size_t n)
{
    size_t ready = 0;

    for (size_t i = 0; i < n; i++)
        if (candidates[i].ready) {
            struct candidate candidate = candidates[i];

            candidates[i] = candidates[ready];
            candidates[ready++] = candidate;
        }
    return ready ? ready : n;
}

static bool is_better(const struct candidate *left, const struct candidate *right)
{
    return left->ready != right->ready ? left->ready : left->load < right->load;
}

static size_t candidates_find(struct proxy *proxy, struct candidate *candidates, size_t max, const struct str *rooms,
    size_t room_count, bool others)
{
    const struct cluster_instance *instances;
    size_t count = cluster_instances(proxy->cluster, &instances), n = 0, rested = 0;

    for (size_t i = 0; i < count && n < max; i++) {
        const struct cluster_instance *instance = &instances[i];
        const char *url = instance->self && proxy->url[0] ? proxy->url : instance->url;
        struct candidate *candidate = &candidates[n];

        if (!instance->alive || instance->draining || !url[0] || (instance->self && (others || proxy->draining)))
            continue;
        *candidate = (struct candidate){.instance = instance, .url = url, .promised = promised_slot(proxy, instance)};
        candidate->load = weighted((instance->self ? proxy->stream_count : instance->streams) +
                                       (uint64_t)proxy->promised[candidate->promised].promised,
            instance->weight);
        candidate->owns = owned_of(proxy, instance, rooms, room_count);
        candidate->overloaded = instance->self ? proxy_overloaded(proxy) : instance->overloaded;
        candidate->ready = instance->ready;
        rested += !candidate->overloaded;
        n++;
    }
    return rested ? candidates_rested(candidates, n) : n;
}

static bool over_share(const struct candidate *candidates, size_t n, size_t i)
{
    uint64_t sum = 0;

    for (size_t k = 0; k < n; k++)
        sum += candidates[k].load;
    /* 1.25 × the mean; a few hundred streams more or less are no load, and moving would only make news travel. */
    return candidates[i].load * n * 4 > sum * 5 && candidates[i].load > 500;
}

static size_t best_for_one(const struct candidate *candidates, size_t n, struct str room_id)
{
    size_t owner = n, others, first = 0, second = 0;
    uint64_t hash = 1469598103934665603u; /* FNV-1a: the same on every instance, unlike map_hash */

    for (size_t i = 0; i < n; i++)
        if (candidates[i].owns)
            owner = i;
    if (owner < n && !over_share(candidates, n, owner))
        return owner;
    others = owner < n ? n - 1 : n;
    for (size_t i = 0; i < room_id.n; i++)
        hash = (hash ^ (unsigned char)room_id.p[i]) * 1099511628211u;
    if (others > 1)
        first = hash % others, second = (first + 1 + (hash >> 32) % (others - 1)) % others;
    first += first >= owner; /* counted without the owner */
    second += second >= owner;
    return candidates[second].load < candidates[first].load ? second : first;
}

static size_t best_for_many(const struct candidate *candidates, size_t n)
{
    size_t least = 0, best;

    for (size_t i = 1; i < n; i++)
        if (candidates[i].load < candidates[least].load)
            least = i;
    best = least;
    for (size_t i = 0; i < n; i++) /* about as little loaded, and owns more */
        if (candidates[i].load * 4 <= candidates[least].load * 5 + 32 && candidates[i].owns > candidates[best].owns)
            best = i;
    return best;
}

size_t endpoints_write(struct proxy *proxy, struct buf *out, const struct str *rooms, size_t room_count, bool others)
{
    struct candidate candidates[INSTANCES_MAX];
    size_t n = candidates_find(proxy, candidates, countof(candidates), rooms, room_count, others), written = 0;

    buf_char(out, '[');
    if (n) {
        size_t ready = candidates_ready(candidates, n);
        size_t best = room_count == 1 ? best_for_one(candidates, ready, rooms[0]) : best_for_many(candidates, ready);
        struct candidate chosen = candidates[best];

        proxy->promised[chosen.promised].promised++;
        proxy->promised[chosen.promised].at = proxy_now(proxy);
        candidates[best] = candidates[0];
        candidates[0] = chosen;
    }
    for (; written < n && written < ENDPOINTS_MAX; written++) {
        for (size_t i = written + 1; i < n && written; i++) /* the others by load */
            if (is_better(&candidates[i], &candidates[written])) {
                struct candidate other = candidates[i];

                candidates[i] = candidates[written];
                candidates[written] = other;
            }
        buf_printf(out, "%s{\"instance\":\"%s\",\"url\":", written ? "," : "", candidates[written].instance->id);
        buf_json_string(out, str_of(candidates[written].url));
        buf_char(out, '}');
    }
    if (!n && !others && !proxy->draining) { /* not in the registry yet */
        buf_printf(out, "{\"instance\":\"%s\",\"url\":", cluster_self(proxy->cluster));
        buf_json_string(out, str_of(proxy->url));
        buf_char(out, '}');
        written = 1;
    }
    buf_char(out, ']');
    return written;
}

bool ticket_for_stream(
    struct proxy *proxy, const struct stream *stream, char text[ROOMD_TICKET_MAX_BYTES + 1], size_t *len)
{
    struct roomd_ticket *ticket = xcalloc(1, sizeof *ticket);
    uint64_t now = proxy_unix_ms(proxy);
    bool good = true;

    ticket->account = (struct roomd_text){stream->audience->account, stream->audience->n};
    ticket->platform = (struct roomd_text){stream->platform, stream->platform ? strlen(stream->platform) : 0};
    ticket->all = stream->all;
    ticket->deliver = (enum roomd_ticket_deliver)stream->deliver;
    ticket->issued_unix_ms = now;
    ticket->expires_unix_ms = now + (uint64_t)proxy->config->ticket_ttl_ms;
    for (const char *at = stream->named; at && *at && good; at += strlen(at) + 1) {
        good = ticket->room_count < ROOMD_TICKET_ROOMS_MAX;
        if (good)
            ticket->rooms[ticket->room_count++] = (struct roomd_text){at, strlen(at)};
    }
    good = good && roomd_ticket_sign(text, len, ticket, &proxy->keys) == ROOMD_TICKET_OK;
    free(ticket);
    return good;
}

/* ------------------------------------------------- the call, step by step */

struct pull {
    struct proxy *proxy;
    struct http_reply *reply;
    struct list link;
    char *body;
    struct buf scratch;
    struct str account, platform;
    struct str *room_ids; /* asked for; for `all` the account's, at most 500 */
    struct pull_room *rooms;
    size_t room_count, pending;
    struct pg_query query;
    enum deliver deliver;
    int64_t ttl_ms;
    bool all;
};
struct pull_room {
    struct history_access access;
    struct pull *pull;
    struct str room_id;
    struct cursor after;
    bool has_after;
    enum err err;
};

static const char *pull_read(struct pull *pull, struct str text, const char **field, enum err *err);
static void pull_ask(struct pull *pull);
static void pull_checked(struct history_access *access, enum err err);
static void pull_listed(struct pg_query *query, enum err err, const PGresult *result);
static void pull_answer(struct pull *pull, struct str rooms_json);
static void pull_free(struct pull *pull);

void proxy_pull_by_active_connection(struct proxy *proxy, struct http_request *request, struct http_reply *reply)
{
    struct pull *pull = xcalloc(1, sizeof *pull);
    const char *field = NULL, *why;
    enum err err = ERR_BAD_REQUEST;

    pull->proxy = proxy;
    pull->reply = reply;
    list_push_back(&proxy->pulls, &pull->link);
    pull->body =
        xstrndup(request->body.n ? request->body.p : "", request->body.n); /* the request's is gone when we return */
    why = pull_read(pull, (struct str){pull->body, request->body.n}, &field, &err);
    if (why) {
        http_reply_error(reply, err, field, "%s", why);
        pull_free(pull);
        return;
    }
    pull_ask(pull);
}

static void pull_free(struct pull *pull)
{
    list_remove(&pull->link);
    for (size_t i = 0; i < pull->room_count && pull->rooms; i++)
        history_access_forget(&pull->rooms[i].access);
    free(pull->rooms);
    free(pull->room_ids);
    buf_clear(&pull->scratch);
    free(pull->body);
    free(pull);
}

void pulls_free(struct proxy *proxy)
{
    while (!list_empty(&proxy->pulls)) {
        struct pull *pull = list_entry(proxy->pulls.next, struct pull, link);

        if (pull->query.statement)
            pg_forget(&pull->query);
        http_reply_error(pull->reply, ERR_UNAVAILABLE, NULL, "this instance is about to stop; ask another one");
        pull_free(pull);
    }
}

/* A text without escapes stays where it is; one with escapes moves to scratch, which is large enough from the start. */
static bool text_take(struct pull *pull, struct json value, struct str *out)
{
    return value.type == JSON_STRING && json_string(value, &pull->scratch, out);
}

static const char *room_take(
    struct pull *pull, struct json item, struct pull_room *room, const char **field, enum err *err)
{
    struct json id = item.type == JSON_OBJECT ? json_get(item, "room_id") : (struct json){.type = JSON_NONE}, after;
    struct str shard, text = {NULL, 0};

    *field = "rooms.room_id";
    if (!text_take(pull, id, &room->room_id))
        return "a room is {room_id, after?}";
    if (!room_id_read(room->room_id, &shard)) {
        *err = ERR_NO_SUCH_ROOM;
        return err_sentence(ERR_NO_SUCH_ROOM);
    }
    after = json_get(item, "after");
    *field = "rooms.after";
    room->has_after = after.type != JSON_NONE;
    if (after.type == JSON_NUMBER)
        text = (struct str){after.p, after.n};
    else if (room->has_after && !text_take(pull, after, &text))
        return "a cursor is a string \"epoch:seq\"";
    if (room->has_after && !cursor_read(&room->after, text))
        return "a cursor is a string \"epoch:seq\"";
    return NULL;
}

static const char *rooms_take(struct pull *pull, struct json rooms, const char **field, enum err *err)
{
    struct json_walk walk;
    struct json item;
    const char *why = NULL;
    size_t max = (size_t)pull->proxy->config->ticket_rooms_max, count = 0;

    if (max > ROOMD_TICKET_ROOMS_MAX)
        max = ROOMD_TICKET_ROOMS_MAX;
    *field = "rooms";
    if (rooms.type == JSON_NONE)
        return pull->all ? NULL : "name rooms, or say all: true";
    if (rooms.type != JSON_ARRAY)
        return "rooms is an array of {room_id, after?}";
    for (walk = json_walk(rooms); json_next_item(&walk, &item);)
        count++;
    if (count > max || (count == 0 && !pull->all))
        return count ? "too many rooms for one ticket; say all: true" : "name at least one room, or say all: true";
    pull->rooms = xcalloc(count + 1, sizeof *pull->rooms);
    for (walk = json_walk(rooms); !why && json_next_item(&walk, &item);) {
        struct pull_room *room = &pull->rooms[pull->room_count];
        bool twice = false;

        list_init(&room->access.link);
        why = room_take(pull, item, room, field, err);
        for (size_t i = 0; i < pull->room_count && !why; i++)
            twice = twice || str_eq(pull->rooms[i].room_id, room->room_id);
        pull->room_count += !twice;
    }
    return why;
}

static const char *options_take(struct pull *pull, struct json body, const char **field)
{
    static const char *const words[] = {"early", "durable", "signal"};
    struct json deliver = json_get(body, "deliver"), platform = json_get(body, "platform"),
                ttl = json_get(body, "ttl_ms");
    struct str word;

    *field = "deliver";
    if (deliver.type != JSON_NONE) {
        int found = -1;

        for (int i = 0; i < 3 && text_take(pull, deliver, &word); i++)
            if (str_is(word, words[i]))
                found = i;
        if (found < 0)
            return "deliver is early, durable or signal";
        pull->deliver = (enum deliver)found;
    }
    *field = "platform";
    if (platform.type != JSON_NONE && (!text_take(pull, platform, &pull->platform) || !client_id_valid(pull->platform)))
        return "platform is a text of 1 to 64 bytes";
    *field = "ttl_ms";
    pull->ttl_ms = pull->proxy->config->ticket_ttl_ms;
    if (ttl.type != JSON_NONE &&
        (!json_integer(ttl, &pull->ttl_ms) || pull->ttl_ms < 1000 || pull->ttl_ms > pull->proxy->config->ticket_ttl_ms))
        return "ttl_ms is from 1000 to the setting ticket_ttl_ms";
    return NULL;
}

static const char *pull_read(struct pull *pull, struct str text, const char **field, enum err *err)
{
    struct json body, all;
    const char *why;

    if (!json_check(text, &body, &why))
        return why;
    if (body.type != JSON_OBJECT)
        return "the body is an object";
    buf_reserve(&pull->scratch, text.n + 1); /* never moves: texts point into it */
    *field = "account_id";
    if (!text_take(pull, json_get(body, "account_id"), &pull->account) || !account_valid(pull->account))
        return "account_id is 1 to 64 bytes of UTF-8 without control characters, not beginning with @";
    all = json_get(body, "all");
    *field = "all";
    if (all.type != JSON_NONE && all.type != JSON_TRUE && all.type != JSON_FALSE)
        return "all is true or false";
    pull->all = all.type == JSON_TRUE;
    if ((why = rooms_take(pull, json_get(body, "rooms"), field, err)))
        return why;
    return options_take(pull, body, field);
}

static const struct pg_statement newest_rooms = {
    .name = "proxy_newest_rooms",
    .sql = "SELECT r.room_id, h.last_epoch, h.last_seq FROM room_member m JOIN room r ON r.room_no = m.room_no "
           "JOIN room_head h ON h.room_no = m.room_no WHERE m.account = $1 AND NOT r.removed ORDER BY h.last_at DESC, "
           "r.room_no DESC LIMIT 500",
    .params = 1,
};

static void pull_ask(struct pull *pull)
{
    if (pull->all) {
        struct pg_params params = {0};

        pull->query = (struct pg_query){.statement = &newest_rooms, .lane = PG_READ, .done = pull_listed};
        pg_param_text(&params, pull->account);
        pg_submit(pull->proxy->pg, &pull->query, &params);
        pg_params_clear(&params);
        return;
    }
    pull->pending = pull->room_count;
    for (size_t i = 0; i < pull->room_count; i++) {
        struct pull_room *room = &pull->rooms[i];

        room->pull = pull;
        room->access.room_id = room->room_id;
        room->access.account = pull->account;
        room->access.done = pull_checked;
        history_ask_access(pull->proxy->history, &room->access);
    }
}

static void room_json(struct buf *out, struct str room_id, struct cursor head)
{
    char text[CURSOR_TEXT_MAX];

    cursor_write(text, head);
    buf_printf(out, "%s{\"room_id\":\"%.*s\",\"head\":\"%s\"}", out->n ? "," : "", STR_ARG(room_id), text);
}

static void pull_checked(struct history_access *access, enum err err)
{
    struct pull_room *room = container_of(access, struct pull_room, access);
    struct pull *pull = room->pull;
    struct buf json = {0};

    room->err = err ? err : access->removed ? ERR_ROOM_GONE : ERR_OK;
    if (--pull->pending)
        return;
    pull->room_ids = xcalloc(pull->room_count, sizeof *pull->room_ids);
    for (size_t i = 0; i < pull->room_count; i++) {
        if (pull->rooms[i].err) {
            http_reply_error(pull->reply, pull->rooms[i].err, "rooms", "%.*s: %s", STR_ARG(pull->rooms[i].room_id),
                err_sentence(pull->rooms[i].err));
            buf_clear(&json);
            pull_free(pull);
            return;
        }
        pull->room_ids[i] = pull->rooms[i].room_id;
        room_json(&json, pull->rooms[i].room_id, pull->rooms[i].access.head);
    }
    pull_answer(pull, buf_str(&json));
    buf_clear(&json);
}

static void pull_listed(struct pg_query *query, enum err err, const PGresult *result)
{
    struct pull *pull = container_of(query, struct pull, query);
    struct buf json = {0};
    size_t rooms = err ? 0 : (size_t)PQntuples(result), named = pull->room_count;

    pull->query.statement = NULL;
    if (err) {
        http_reply_error(pull->reply, ERR_UNAVAILABLE, NULL, NULL);
        pull_free(pull);
        return;
    }
    pull->room_ids = xcalloc(rooms + 1, sizeof *pull->room_ids);
    for (size_t i = 0; i < rooms; i++) {
        pull->room_ids[i] = pg_get_str(result, (int)i, 0);
        room_json(&json, pull->room_ids[i],
            (struct cursor){(uint64_t)pg_get_i64(result, (int)i, 1), (uint64_t)pg_get_i64(result, (int)i, 2)});
    }
    pull->room_count = rooms; /* endpoints look at these; the ticket at `rooms`, which keeps its own number */
    pull->pending = named;
    pull_answer(pull, buf_str(&json));
    buf_clear(&json);
}

static bool write_ticket(struct pull *pull, struct buf *out, uint64_t *expires_ms)
{
    struct roomd_ticket *ticket = xcalloc(1, sizeof *ticket);
    char(*positions)[ROOM_ID_MAX_BYTES + 1 + CURSOR_TEXT_MAX] = NULL;
    char *text = xmalloc(ROOMD_TICKET_MAX_BYTES + 1);
    uint64_t now = proxy_unix_ms(pull->proxy);
    size_t named = pull->all ? pull->pending : pull->room_count, len = 0;
    bool good;

    positions = xcalloc(named + 1, sizeof *positions);
    ticket->account = (struct roomd_text){pull->account.p, pull->account.n};
    ticket->platform = (struct roomd_text){pull->platform.p, pull->platform.n};
    ticket->all = pull->all;
    ticket->deliver = (enum roomd_ticket_deliver)pull->deliver;
    ticket->issued_unix_ms = now;
    ticket->expires_unix_ms = *expires_ms = now + (uint64_t)pull->ttl_ms;
    for (size_t i = 0; i < named; i++) {
        const struct pull_room *room = &pull->rooms[i];
        size_t n = room->room_id.n;

        memcpy(positions[i], room->room_id.p, n);
        if (room->has_after) {
            positions[i][n++] = '@';
            n += cursor_write(positions[i] + n, room->after);
        }
        if (room->has_after || !pull->all)
            ticket->rooms[ticket->room_count++] = (struct roomd_text){positions[i], n};
    }
    good = roomd_ticket_sign(text, &len, ticket, &pull->proxy->keys) == ROOMD_TICKET_OK;
    if (good)
        buf_add(out, text, len);
    free(positions);
    free(text);
    free(ticket);
    return good;
}

static void pull_answer(struct pull *pull, struct str rooms_json)
{
    struct proxy *proxy = pull->proxy;
    struct buf json = {0};
    uint64_t expires_ms = 0;

    buf_text(&json, "{\"endpoints\":");
    if (endpoints_write(proxy, &json, pull->room_ids, pull->room_count, false) == 0) {
        http_reply_error(pull->reply, ERR_UNAVAILABLE, NULL, "no instance takes streams now; try again in a moment");
    } else {
        buf_text(&json, ",\"paths\":{\"websocket\":\"/v1/stream/ws\",\"sse\":\"/v1/stream/sse\",\"ndjson\":\"/v1/"
                        "stream/ndjson\",\"poll\":\"/v1/stream/poll\"},"
                        "\"ticket\":\"");
        if (write_ticket(pull, &json, &expires_ms)) {
            buf_printf(&json,
                "\",\"expires_at\":%" PRIu64 ",\"heartbeat_ms\":%" PRId64
                ",\"backoff\":{\"base_ms\":500,\"factor\":2,\"max_ms\":20000},\"rooms\":[",
                expires_ms, proxy->config->heartbeat_ms);
            buf_add_str(&json, rooms_json);
            buf_text(&json, "]}");
            http_reply_json(pull->reply, 200, buf_str(&json));
        } else {
            http_reply_error(
                pull->reply, ERR_BAD_REQUEST, "rooms", "%s", roomd_ticket_sentence(ROOMD_TICKET_TOO_LARGE));
        }
    }
    buf_clear(&json);
    pull->room_count = pull->all ? pull->pending : pull->room_count;
    pull_free(pull);
}
