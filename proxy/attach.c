/*
 * Attaching: how a stream comes to carry rooms. The same for a stream that opens, a `subscribe`, and a room that an
 * `all` stream enters.
 *
 *   (all: the account's rooms) ─▶ register in the views ─▶ membership and heads ─▶ (cursors: where are they valid)
 *     ─▶ (seqs at a time) ─▶ (behind the head: what has the account hidden; just above a void: what was taken back)
 *     ─▶ finish                                                                              (…): only when needed
 *
 * Registration comes first: what happens from then on is seen, so a member.left that overtakes the answer wins, and no
 * entry falls between the answer and the first one live. Nothing is sent before everything is known. Each step is one
 * query per loop turn for all who are at it.
 */
#include "core.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

/* The steps, in the order they run. */
static void attach_register(struct attach *attach);
static void room_checked(struct history_access *access, enum err err);
static void room_start(struct attach_room *room);
static void cursor_checked(struct history_validity *validity, enum err err);
static void step_done(struct attach *attach);
static void ask_details(struct attach *attach);
static void hidden_known(struct history_hidden *hidden, enum err err);
static void taken_back_known(struct history_taken_back *taken_back, enum err err);
static void finish_open(struct attach *attach);
static void finish_more(struct attach *attach);

#define ALL_ROOMS_MAX 10000 /* of one account on one stream; the newest */
#define GATHER_ABOVE 10     /* that many in attach_gather_ms are many */
#define TIME_MARGIN_MS 5000 /* ~<ms> resumes so much earlier: clocks of owners, and what was under way */

struct batch {
    struct list link;
    struct proxy *proxy;
    struct list attaches;
    struct pg_query query;
};

/* ------------------------------------------------------------ life of it */

struct attach *attach_new(struct stream *stream, enum attach_kind kind)
{
    struct attach *attach = xcalloc(1, sizeof *attach);

    attach->proxy = stream->proxy;
    attach->stream = stream;
    attach->kind = kind;
    list_init(&attach->batch_link);
    attach->next = stream->attaches;
    stream->attaches = attach;
    return attach;
}

void attach_add(struct attach *attach, struct str room_id, const struct cursor *after)
{
    struct attach_room *room = NULL;

    if (room_id.n > ROOM_ID_MAX_BYTES)
        return;
    for (size_t i = 0; i < attach->room_count && after;
         i++) /* positions given override: few, or from a list we built */
        if (str_is(room_id, attach->rooms[i]->room_id))
            room = attach->rooms[i];
    if (!room) {
        if (attach->room_count == attach->room_capacity) {
            attach->room_capacity = attach->room_capacity ? attach->room_capacity * 2 : 1;
            attach->rooms = xrealloc(attach->rooms, attach->room_capacity * sizeof(struct attach_room *));
        }
        room = attach->rooms[attach->room_count++] = xcalloc(1, sizeof *room);
        room->attach = attach;
        memcpy(room->room_id, room_id.p, room_id.n);
        list_init(&room->access.link);
        list_init(&room->validity.link);
        list_init(&room->hidden.link);
        list_init(&room->taken_back.link);
    }
    if (after) {
        room->after = *after;
        room->has_after = true;
    }
}

static void voids_drop(struct attach_room *room)
{
    while (room->void_count)
        entry_drop(room->voids[--room->void_count]);
    free(room->voids);
    room->voids = NULL;
}

void attach_free(struct attach *attach)
{
    struct attach **at = &attach->stream->attaches;

    while (*at != attach)
        at = &(*at)->next;
    *at = attach->next;
    list_remove(&attach->batch_link);
    for (size_t i = 0; i < attach->room_count; i++) {
        history_access_forget(&attach->rooms[i]->access);
        history_validity_forget(&attach->rooms[i]->validity);
        history_hidden_forget(&attach->rooms[i]->hidden);
        history_taken_back_forget(&attach->rooms[i]->taken_back);
        voids_drop(attach->rooms[i]);
        free(attach->rooms[i]);
    }
    free(attach->rooms);
    free(attach);
}

void attach_abandon(struct attach *attach)
{
    if (attach->reply)
        http_reply_error(attach->reply, ERR_UNAVAILABLE, NULL, "the instance is shutting down; open at another one");
    if (attach->answer)
        proxy_reply_error(attach->answer, ERR_UNAVAILABLE, NULL, NULL);
    attach_free(attach);
}

static void begin_now(struct attach *attach, bool all)
{
    if (all)
        list_push_back(&attach->proxy->batch_all, &attach->batch_link);
    else
        attach_register(attach);
}

/* The streams of a storm arrive a few in a turn, and what they ask is asked turn by turn: they wait for each other. */
static bool many_come(struct gathering *gathering, uint32_t now, uint32_t gather_ms)
{
    if (now - gathering->at >= gather_ms) {
        gathering->before = now - gathering->at < 2 * gather_ms ? gathering->count : 0;
        gathering->count = 0;
        gathering->at = now;
    }
    gathering->count++;
    return gathering->count >= GATHER_ABOVE || gathering->before >= GATHER_ABOVE;
}

static void on_gathered(uv_timer_t *timer)
{
    struct proxy *proxy = timer->data;
    struct list gathered, *link;

    list_init(&gathered);
    list_splice_back(&gathered, &proxy->gathering.attaches);
    while ((link = list_pop_front(&gathered))) {
        struct attach *attach = list_entry(link, struct attach, batch_link);

        begin_now(attach, attach->stream->all && !attach->stream->deferred);
    }
}

/* A long poll does not wait: it may be the next one of a stream to which something has come meanwhile. */
void attach_begin(struct attach *attach, bool all)
{
    struct proxy *proxy = attach->proxy;
    uint32_t gather_ms = (uint32_t)proxy->config->attach_gather_ms;

    if (attach->kind != ATTACH_OPEN || !gather_ms || attach->stream->transport == TRANSPORT_POLL ||
        !many_come(&proxy->gathering, proxy_now(proxy), gather_ms)) {
        begin_now(attach, all);
        return;
    }
    list_push_back(&proxy->gathering.attaches, &attach->batch_link);
    if (!uv_is_active((uv_handle_t *)&proxy->gather_timer))
        uv_timer_start(&proxy->gather_timer, on_gathered, gather_ms, 0);
}

/* ------------------------------------------------ registration, membership */

static void attach_register(struct attach *attach)
{
    struct stream *stream = attach->stream;
    struct str account = {stream->audience->account, stream->audience->n};

    attach->pending = 1; /* until all are asked */
    for (size_t i = 0; i < attach->room_count; i++) {
        struct attach_room *room = attach->rooms[i];
        struct view *view = view_get(attach->proxy, str_of(room->room_id));

        if (sub_find(stream, view)) {
            room->already = true;
            continue;
        }
        room->sub = sub_new(stream, view);
        room->access.room_id = str_of(room->room_id);
        room->access.account = account;
        room->access.done = room_checked;
        attach->pending++;
        history_ask_access(attach->proxy->history, &room->access);
    }
    step_done(attach);
}

static void room_checked(struct history_access *access, enum err err)
{
    struct attach_room *room = container_of(access, struct attach_room, access);

    room->err = err ? err : access->removed ? ERR_ROOM_GONE : ERR_OK;
    if (!room->err) {
        room->sub->first_seq = access->since_join ? access->join_seq : 0;
        view_learn_room(room->sub->view, access);
        room_start(room);
    }
    step_done(room->attach);
}

/* Where does the sub begin, and does it need the database to know? */
static void room_start(struct attach_room *room)
{
    const struct view *view = room->sub->view;
    const struct cursor after = room->after, head = room->access.head;
    const struct entry *entry = view_run_get(view, after.seq);
    bool seen = entry && entry->epoch <= after.epoch;

    room->valid = after;
    if (after.epoch == UINT64_MAX) /* a bare seq is taken as valid: the latest epoch says just that */
        room->valid.epoch = after.seq > head.seq && view->epoch > head.epoch ? view->epoch : head.epoch;
    if (!room->has_after) {
        room->by_time = room->attach->resume_ms != 0;
        return;
    }
    if (after.seq == 0 || (after.seq <= head.seq && after.epoch >= head.epoch))
        return; /* epochs rise with seq: nothing at or below it can be of a later epoch */
    if (seen) {
        room->unproven = true; /* it may be taken back before the sub starts: looked at again then */
        return;
    }
    if (after.seq > head.seq && (after.epoch == view->epoch || after.epoch == UINT64_MAX)) {
        room->unproven = true; /* early entries of a moment ago, most likely: wait for their COMMIT */
        return;
    }
    room->validity.room_no = room->access.room_no;
    room->validity.cursor = after;
    room->validity.done = cursor_checked;
    room->attach->pending++;
    history_check_cursor(room->attach->proxy->history, &room->validity);
}

static void cursor_checked(struct history_validity *validity, enum err err)
{
    struct attach_room *room = container_of(validity, struct attach_room, validity);

    room->err = err;
    room->valid = validity->valid;
    room->reset = validity->valid.seq < room->after.seq;
    step_done(room->attach);
}

static void step_done(struct attach *attach)
{
    if (--attach->pending)
        return;
    if (!attach->timed)
        for (size_t i = 0; i < attach->room_count; i++)
            if (attach->rooms[i]->by_time && !attach->rooms[i]->err) {
                attach->timed = true;
                list_push_back(&attach->proxy->batch_at, &attach->batch_link);
                return;
            }
    if (attach->details_asked)
        attach_finish(attach);
    else
        ask_details(attach);
}

/* Rooms that begin at the head show nothing older; what is hidden from now on is told. */
static bool may_hide(const struct attach_room *room)
{
    return (room->has_after || room->by_time) && room->valid.seq < room->access.head.seq;
}

/* Are there voids just below where it starts? Of those the reader may have been shown what stood there before. */
static bool has_voids_below(const struct attach_room *room)
{
    return room->access.taken_back_seq > sub_shown_above(room->sub, room->valid.seq);
}

/* What came into the log after the access was answered is not known of. Unproven cursors ask when they are proven. */
static bool may_have_been_shown(const struct attach_room *room)
{
    return room->has_after && !room->unproven && (has_voids_below(room) || room->valid.seq > room->access.head.seq);
}

static void ask_details(struct attach *attach)
{
    attach->details_asked = true;
    attach->pending = 1; /* until all are asked */
    for (size_t i = 0; i < attach->room_count && attach->stream->deliver != DELIVER_SIGNAL; i++) {
        struct attach_room *room = attach->rooms[i];

        if (room->already || room->err)
            continue;
        if (may_hide(room)) {
            room->hidden.room_no = room->access.room_no;
            room->hidden.account = room->access.account;
            room->hidden.after_seq = room->valid.seq;
            room->hidden.done = hidden_known;
            attach->pending++;
            history_ask_hidden(attach->proxy->history, &room->hidden);
        }
        if (may_have_been_shown(room)) {
            room->taken_back.done = taken_back_known;
            attach->pending++;
            sub_ask_taken_back(room->sub, room->valid.seq, &room->taken_back);
        }
    }
    step_done(attach);
}

static void hidden_known(struct history_hidden *hidden, enum err err)
{
    struct attach_room *room = container_of(hidden, struct attach_room, hidden);

    room->err = err ? err : room->err;
    for (size_t i = 0; i < hidden->count && !err; i++)
        sub_hide(room->sub, hidden->seqs[i]);
    step_done(room->attach);
}

static void taken_back_known(struct history_taken_back *taken_back, enum err err)
{
    struct attach_room *room = container_of(taken_back, struct attach_room, taken_back);

    room->err = err ? err : room->err;
    room->voids = xcalloc(taken_back->count + 1, sizeof(struct entry *));
    while (room->void_count < taken_back->count) {
        room->voids[room->void_count] = entry_hold(taken_back->voids[room->void_count]);
        room->void_count++;
    }
    step_done(room->attach);
}

/* ------------------------------------------------------------------ queries */

static const struct pg_statement rooms_of_accounts = {
    .name = "proxy_rooms_of_accounts",
    .sql = "SELECT x.n, l.room_id FROM unnest($1::text[]) WITH ORDINALITY x(account, n) CROSS JOIN LATERAL ("
           "SELECT r.room_id FROM room_member m JOIN room r ON r.room_no = m.room_no JOIN room_head h ON h.room_no = "
           "m.room_no "
           "WHERE m.account = x.account COLLATE \"C\" AND NOT r.removed ORDER BY h.last_at DESC LIMIT 10000) l ORDER "
           "BY x.n",
    .params = 1,
};

/* `at` never falls as seq rises, so the scan from the head reads no more than what has to be sent again anyway. */
static const struct pg_statement seqs_at = {
    .name = "proxy_seqs_at",
    .sql = "SELECT x.n, e.seq, e.epoch FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY x(room_no, at, n) CROSS "
           "JOIN LATERAL ("
           "SELECT seq, epoch FROM log_entry WHERE room_no = x.room_no AND at <= x.at ORDER BY seq DESC LIMIT 1) e "
           "ORDER BY x.n",
    .params = 2,
};

static void batch_fail(struct batch *batch)
{
    struct list *link;

    while ((link = list_pop_front(&batch->attaches))) {
        struct attach *attach = list_entry(link, struct attach, batch_link);

        for (size_t i = 0; i < attach->room_count; i++)
            attach->rooms[i]->err = ERR_UNAVAILABLE;
        if (attach->kind == ATTACH_OPEN && attach->room_count == 0) {
            open_refuse(attach, ERR_UNAVAILABLE, NULL);
            continue;
        }
        attach->timed = true;
        attach_finish(attach);
    }
    list_remove(&batch->link);
    free(batch);
}

static void on_rooms(struct pg_query *query, enum err err, const PGresult *result)
{
    struct batch *batch = container_of(query, struct batch, query);
    int row = 0, rows = err ? 0 : PQntuples(result);
    struct list *link;

    if (err) {
        batch_fail(batch);
        return;
    }
    while ((link = list_pop_front(&batch->attaches))) {
        struct attach *attach = list_entry(link, struct attach, batch_link);
        size_t given = attach->room_count;

        while (row < rows && (size_t)pg_get_i64(result, row, 0) < attach->nth)
            row++;
        for (; row < rows && (size_t)pg_get_i64(result, row, 0) == attach->nth; row++) {
            struct str room_id = pg_get_str(result, row, 1);
            bool there = false;

            for (size_t i = 0; i < given && !there; i++)
                there = str_is(room_id, attach->rooms[i]->room_id);
            if (!there)
                attach_add(attach, room_id, NULL);
        }
        attach_register(attach);
    }
    list_remove(&batch->link);
    free(batch);
}

static void on_seqs(struct pg_query *query, enum err err, const PGresult *result)
{
    struct batch *batch = container_of(query, struct batch, query);
    int row = 0, rows = err ? 0 : PQntuples(result);
    int64_t n = 0;
    struct list *link;

    if (err) {
        batch_fail(batch);
        return;
    }
    while ((link = list_pop_front(&batch->attaches))) {
        struct attach *attach = list_entry(link, struct attach, batch_link);

        n = (int64_t)attach->nth;
        for (size_t i = 0; i < attach->room_count; i++) {
            struct attach_room *room = attach->rooms[i];

            if (!room->by_time || room->err)
                continue;
            while (row < rows && pg_get_i64(result, row, 0) < n)
                row++;
            if (row < rows && pg_get_i64(result, row, 0) == n)
                room->valid =
                    (struct cursor){(uint64_t)pg_get_i64(result, row, 2), (uint64_t)pg_get_i64(result, row, 1)};
            n++;
        }
        ask_details(attach);
    }
    list_remove(&batch->link);
    free(batch);
}

static struct batch *batch_new(struct proxy *proxy, struct list *waiting, const struct pg_statement *statement,
    void (*done)(struct pg_query *query, enum err err, const PGresult *result))
{
    struct batch *batch = xcalloc(1, sizeof *batch);

    batch->proxy = proxy;
    batch->query = (struct pg_query){.statement = statement, .lane = PG_READ, .done = done};
    list_init(&batch->attaches);
    list_splice_back(&batch->attaches, waiting);
    list_push_back(&proxy->batches, &batch->link);
    return batch;
}

static void ask_rooms(struct proxy *proxy)
{
    struct batch *batch = batch_new(proxy, &proxy->batch_all, &rooms_of_accounts, on_rooms);
    struct pg_params params = {0};
    struct pg_array accounts = {0};
    struct attach *attach;
    size_t n = 0;

    pg_array_reset(&accounts, PG_TEXT);
    list_for_each (attach, &batch->attaches, batch_link) {
        attach->nth = ++n; /* ordinality counts from 1 */
        pg_array_bytes(&accounts, (struct str){attach->stream->audience->account, attach->stream->audience->n});
    }
    pg_param_array(&params, &accounts);
    pg_submit(proxy->pg, &batch->query, &params);
    pg_array_clear(&accounts);
    pg_params_clear(&params);
}

static void ask_seqs(struct proxy *proxy)
{
    struct batch *batch = batch_new(proxy, &proxy->batch_at, &seqs_at, on_seqs);
    struct pg_params params = {0};
    struct pg_array rooms = {0}, times = {0};
    struct attach *attach;
    size_t n = 1;

    pg_array_reset(&rooms, PG_INT8);
    pg_array_reset(&times, PG_INT8);
    list_for_each (attach, &batch->attaches, batch_link) {
        attach->nth = n;
        for (size_t i = 0; i < attach->room_count; i++) {
            if (!attach->rooms[i]->by_time || attach->rooms[i]->err)
                continue;
            pg_array_i64(&rooms, attach->rooms[i]->access.room_no);
            pg_array_i64(
                &times, (int64_t)(attach->resume_ms > TIME_MARGIN_MS ? attach->resume_ms - TIME_MARGIN_MS : 0));
            n++;
        }
    }
    pg_param_array(&params, &rooms);
    pg_param_array(&params, &times);
    pg_submit(proxy->pg, &batch->query, &params);
    pg_array_clear(&rooms);
    pg_array_clear(&times);
    pg_params_clear(&params);
}

void attach_batches(struct proxy *proxy)
{
    if (!list_empty(&proxy->batch_all))
        ask_rooms(proxy);
    if (!list_empty(&proxy->batch_at))
        ask_seqs(proxy);
}

void attach_batches_free(struct proxy *proxy)
{
    struct list *link;

    while ((link = list_pop_front(&proxy->batches))) {
        struct batch *batch = list_entry(link, struct batch, link);

        pg_forget(&batch->query);
        free(batch);
    }
}

/* ------------------------------------------------------------------- finish */

/* Settles one room: its start, never below the join where history begins there; or that it may not be carried. */
static void room_settle(struct attach_room *room)
{
    const struct history_access *access = &room->access;
    const struct view *view;

    if (room->already)
        return;
    if (!room->sub) { /* the list of the account's rooms did not come: nothing was registered */
        assert(room->err);
        return;
    }
    if (room->sub->left && !room->err)
        room->err = ERR_NOT_MEMBER; /* left since registration: newer than the answer */
    if (room->err) {
        sub_free(room->sub);
        room->sub = NULL;
        return;
    }
    view = room->sub->view;
    if (!room->has_after && !room->by_time)
        room->valid = view_head(view, room->attach->stream->deliver);
    if (access->since_join && access->join_seq > 0 && room->valid.seq < access->join_seq - 1) {
        room->valid = (struct cursor){access->head.epoch, access->join_seq - 1};
        room->reset = room->unproven = false;
    }
}

/* The durable mark that goes with hello: of what the reader has, not of what it is still to be told of. */
static uint64_t mark_of(const struct attach_room *room)
{
    const struct view *view = room->sub->view;
    uint64_t mark, known;

    if (!room->unproven)
        return view->durable.seq;
    mark = unproven_mark(view, room->after);
    known = has_voids_below(room) ? sub_shown_above(room->sub, room->valid.seq) : room->access.head.seq;
    return mark < known ? mark : known;
}

static uint64_t first_mark_of(const struct attach_room *room)
{
    uint64_t mark = mark_of(room);

    return room->void_count && room->voids[0]->seq <= mark ? room->voids[0]->seq - 1 : mark;
}

/* What was taken back, and then the whole mark. */
static void tell_taken_back(struct attach_room *room)
{
    struct buf json = {0};

    if (!room->void_count)
        return;
    sub_say_taken_back(room->sub, room->voids, room->void_count);
    event_durable(&json, view_room_id(room->sub->view), mark_of(room));
    if (!room->sub->stream->poll)
        stream_say(room->sub->stream, buf_str(&json));
    buf_clear(&json);
}

static void room_go(struct attach_room *room)
{
    struct sub *sub = room->sub;

    tell_taken_back(room);
    sub_start(sub, room->valid.seq);
    if ((room->has_after || room->by_time) && !room->unproven)
        sub->sure = room->valid.seq;
    if (room->reset)
        sub_reset(sub, (struct cursor){sub->view->epoch, room->valid.seq});
    else if (room->unproven)
        sub_unproven(sub, room->after, mark_of(room));
}

static void room_describe(const struct attach_room *room, struct buf *out)
{
    const struct view *view = room->sub->view;
    char from[CURSOR_TEXT_MAX];

    event_head(out, view_room_id(view), view_head(view, room->attach->stream->deliver), first_mark_of(room));
    cursor_write(from, room->valid);
    buf_printf(out, ",\"from\":\"%s\"", from);
}

static bool something_after(const struct attach_room *room)
{
    return view_head(room->sub->view, room->attach->stream->deliver).seq > room->valid.seq || room->reset;
}

/* The worst that happened to a room, as far as it concerns the whole. */
static enum err verdict(const struct attach *attach, bool named)
{
    enum err first = ERR_OK;
    bool any = false;

    for (size_t i = 0; i < attach->room_count; i++) {
        enum err err = attach->rooms[i]->err;

        if (err == ERR_UNAVAILABLE || err == ERR_TIMEOUT)
            return ERR_UNAVAILABLE;
        if (err && !first)
            first = err;
        any = any || !err;
    }
    return named && !any ? first : ERR_OK;
}

void attach_finish(struct attach *attach)
{
    if (attach->kind != ATTACH_OPEN && attach->stream->state == STREAM_OPENING) {
        attach->finished = true; /* hello comes first */
        return;
    }
    for (size_t i = 0; i < attach->room_count; i++)
        room_settle(attach->rooms[i]);
    if (attach->kind == ATTACH_OPEN)
        finish_open(attach);
    else
        finish_more(attach);
}

static void write_hello(const struct attach *attach, struct buf *out)
{
    const struct stream *stream = attach->stream;
    size_t listed = 0, total = 0;
    struct id128 id = ulid_new(clock_unix_ms());
    char stream_id[ULID_TEXT];

    ulid_write(stream_id, id);
    buf_printf(out,
        "{\"type\":\"hello\",\"instance\":\"%s\",\"stream_id\":\"%.26s\",\"heartbeat_ms\":%" PRId64
        ",\"server_at\":%" PRIu64 ",\"rooms\":[",
        cluster_self(attach->proxy->cluster), stream_id, attach->proxy->config->heartbeat_ms,
        proxy_unix_ms(attach->proxy));
    for (size_t i = 0; i < attach->room_count; i++) {
        const struct attach_room *room = attach->rooms[i];

        if (!room->sub)
            continue;
        total++;
        if (stream->all && (listed == HELLO_ROOMS_MAX || !something_after(room)))
            continue;
        buf_text(out, listed++ ? ",{" : "{");
        room_describe(room, out);
        buf_char(out, '}');
    }
    buf_printf(out, "],\"rooms_total\":%zu}", total);
}

static void write_hello_id(const struct attach *attach, struct buf *out)
{
    char from[CURSOR_TEXT_MAX];

    if (attach->stream->transport != TRANSPORT_SSE)
        return;
    if (!attach->stream->one_room) {
        /* What it resumed from stays the promise until all is caught up. */
        buf_printf(out, "~%" PRIu64, attach->resume_ms ? attach->resume_ms : proxy_unix_ms(attach->proxy));
        for (size_t i = 0; i < attach->room_count; i++)
            if (attach->rooms[i]->sub && something_after(attach->rooms[i]) && !attach->resume_ms)
                buf_reset(out);
        return;
    }
    cursor_write(from, attach->rooms[0]->valid);
    buf_printf(out, "%s@%s", attach->rooms[0]->room_id, from);
}

static void tell_missing(const struct attach *attach)
{
    struct buf json = {0};

    for (size_t i = 0; i < attach->room_count; i++) {
        const struct attach_room *room = attach->rooms[i];

        if (!room->err || attach->stream->all)
            continue;
        buf_reset(&json);
        buf_printf(
            &json, "{\"type\":\"room.left\",\"room_id\":\"%s\",\"reason\":\"%s\"}", room->room_id, err_code(room->err));
        stream_say(attach->stream, buf_str(&json));
    }
    buf_clear(&json);
}

static void finish_open(struct attach *attach)
{
    struct stream *stream = attach->stream;
    enum err err = stream->deferred ? ERR_OK : verdict(attach, !stream->all);
    struct buf hello = {0}, id = {0};

    if (err) {
        open_refuse(attach, err, NULL);
        return;
    }
    if (stream->poll == NULL && stream->transport != TRANSPORT_POLL) {
        write_hello(attach, &hello);
        write_hello_id(attach, &id);
    }
    stream->state = STREAM_LIVE;
    stream->proxy->count.opened[stream->transport]++;
    wheel_add(stream);
    if (stream->transport == TRANSPORT_POLL)
        poll_begin(attach);
    else
        open_take_over(attach, buf_str(&hello), buf_str(&id));
    buf_clear(&hello);
    buf_clear(&id);
    tell_missing(attach);
    for (size_t i = 0; i < attach->room_count; i++)
        if (attach->rooms[i]->sub)
            room_go(attach->rooms[i]);
    attach_free(attach);
    for (struct attach *other = stream->attaches, *next; other; other = next) { /* entered meanwhile */
        next = other->next;
        if (other->finished)
            attach_finish(other);
    }
}

static void finish_more(struct attach *attach)
{
    struct stream *stream = attach->stream;
    struct buf json = {0};
    enum err err = ERR_OK;

    for (size_t i = 0; i < attach->room_count && attach->answer; i++)
        if (attach->rooms[i]->err && (attach->rooms[i]->wanted || attach->rooms[i]->err == ERR_UNAVAILABLE))
            err = attach->rooms[i]->err;
    for (size_t i = 0; i < attach->room_count && err; i++)
        if (attach->rooms[i]->sub) {
            sub_free(attach->rooms[i]->sub);
            attach->rooms[i]->sub = NULL;
        }
    if (attach->answer && err)
        proxy_reply_error(attach->answer, err, NULL, NULL);
    else if (attach->answer)
        proxy_reply_ack(attach->answer, STR(""));
    for (size_t i = 0; i < attach->room_count; i++) {
        struct attach_room *room = attach->rooms[i];

        if (!room->sub)
            continue;
        if (room->wanted || attach->kind == ATTACH_ENTER || something_after(room)) {
            buf_reset(&json);
            buf_text(&json, "{\"type\":\"room.entered\",");
            room_describe(room, &json);
            buf_char(&json, '}');
            stream_say(stream, buf_str(&json));
        }
        room_go(room);
    }
    buf_clear(&json);
    attach_free(attach);
}
