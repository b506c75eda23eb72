/* A sub: one room on one stream. States and the way between them: core.h. */
#include "core.h"

#include <assert.h>
#include <stdlib.h>

static void enter_list(struct sub *sub, enum view_list list, enum sub_state state);
static bool push_piece(struct sub *sub, uint64_t upto);
static bool push_own_piece(struct sub *sub, uint64_t upto);
static void prove(struct sub *sub);

static bool is_durable(const struct sub *sub)
{
    return sub->stream->deliver == DELIVER_DURABLE;
}

uint64_t sub_stands_at(const struct sub *sub)
{
    return sub->state == SUB_LIVE ? sub->view->done[is_durable(sub)] : sub->seq;
}

struct sub *sub_new(struct stream *stream, struct view *view)
{
    struct sub *sub = xcalloc(1, sizeof *sub);

    sub->stream = stream;
    sub->view = view;
    sub->state = SUB_OPENING;
    sub->reads_before = stream->proxy->reads_sent_total;
    list_init(&sub->work_link);
    list_push_back(&view->subs[VIEW_OTHERS], &sub->view_link);
    list_push_back(&stream->subs, &sub->stream_link);
    view->sub_count++;
    stream->sub_count++;
    return sub;
}

static void stop_work(struct sub *sub)
{
    if (sub->state == SUB_READING)
        catch_up_forget(sub);
    list_remove(&sub->work_link);
}

void sub_free(struct sub *sub)
{
    struct view *view = sub->view;

    stop_work(sub);
    sub_proven(sub);
    stream_forget_sub(sub->stream, sub);
    list_remove(&sub->view_link);
    list_remove(&sub->stream_link);
    sub->stream->sub_count--;
    view->sub_count--;
    free(sub->hidden);
    free(sub);
    if (view->sub_count)
        view_signal_mode(view);
    else
        view_drop_if_unused(view);
}

struct sub *sub_find(struct stream *stream, const struct view *view)
{
    struct sub *sub;

    list_for_each (sub, &stream->subs, stream_link)
        if (sub->view == view)
            return sub;
    return NULL;
}

static void enter_list(struct sub *sub, enum view_list list, enum sub_state state)
{
    list_remove(&sub->view_link);
    list_push_back(&sub->view->subs[list], &sub->view_link);
    sub->state = (uint8_t)state;
}

void sub_start(struct sub *sub, uint64_t after_seq)
{
    assert(sub->state == SUB_OPENING);
    sub_behind(sub, after_seq);
    view_signal_mode(sub->view);
}

void sub_behind(struct sub *sub, uint64_t seq)
{
    struct stream *stream = sub->stream;

    stop_work(sub);
    sub->seq = seq;
    if (stream->deliver == DELIVER_SIGNAL || sub->view->signalling) {
        enter_list(sub, VIEW_SIGNALLED, SUB_SIGNALLED);
        return;
    }
    enter_list(sub, VIEW_OTHERS, SUB_BEHIND);
    list_push_back(&stream->behind, &sub->work_link);
    if (list_empty(&stream->dirty_link))
        list_push_back(&stream->proxy->dirty_streams, &stream->dirty_link);
}

/* May the sub not have the piece that others in its place get? */
static bool piece_differs(const struct sub *sub, uint64_t upto)
{
    const struct entry *entry;

    if (sub_hides(sub, sub->seq, upto))
        return true;
    for (uint64_t seq = sub->seq + 1; sub->first_seq && seq <= upto && seq <= sub->seq + CATCH_UP_ENTRIES; seq++)
        if ((entry = view_run_get(sub->view, seq)) && entry_hides_since(entry, sub->first_seq))
            return true;
    return false;
}

/* The next step of a sub that is behind: a piece from the run, a read of the store, live, or waiting. */
void sub_pump(struct sub *sub)
{
    struct view *view = sub->view;
    uint64_t done = view->done[is_durable(sub)];

    stop_work(sub);
    if (view->removed_seq && sub->seq >= view->removed_seq)
        sub_end(sub, "room_removed");
    else if (view->check || sub->held || sub->seq > done)
        enter_list(sub, VIEW_WAITING, SUB_WAITING);
    else if (sub->unproven) {
        enter_list(sub, VIEW_WAITING, SUB_WAITING);
        prove(sub);
    } else if (sub->seq == done)
        enter_list(sub, is_durable(sub) ? VIEW_LIVE_DURABLE : VIEW_LIVE_EARLY, SUB_LIVE);
    else if (sub->seq >= view->run_base && sub->seq < view->run_top) {
        if (piece_differs(sub, done) ? push_own_piece(sub, done) : push_piece(sub, done))
            list_push_back(&sub->stream->behind, &sub->work_link);
    } else if (sub->seq < view->durable.seq)
        catch_up_want(
            sub, view->run_base > sub->seq && view->run_base < view->durable.seq ? view->run_base : view->durable.seq);
    else
        /* a hole above the durable head: nobody can fill it before the COMMIT */
        enter_list(sub, VIEW_WAITING, SUB_WAITING);
}

/* ----------------------------------------------------------------- pieces */

void pieces_clear(struct proxy *proxy)
{
    while (proxy->piece_count)
        bytes_drop(proxy->pieces[--proxy->piece_count].bytes);
}

static const struct piece *piece_find(
    struct proxy *proxy, const struct view *view, uint64_t before, enum encoding encoding, uint64_t upto)
{
    for (uint32_t i = 0; i < proxy->piece_count; i++) {
        const struct piece *piece = &proxy->pieces[i];

        if (piece->view == view && piece->before == before && piece->encoding == encoding && piece->upto.seq <= upto)
            return piece;
    }
    return NULL;
}

static const struct piece *piece_make(
    struct view *view, uint64_t before, enum encoding encoding, uint64_t upto, uint64_t complete_ms)
{
    struct proxy *proxy = view->proxy;
    struct entry *entries[CATCH_UP_ENTRIES];
    struct piece *piece;
    struct chunk chunk;
    size_t n = 0;

    while (n < countof(entries) && before + n < upto && (entries[n] = view_run_get(view, before + n + 1)))
        n++;
    chunk = chunk_cut(entries, n);
    if (proxy->piece_count == PIECES)
        pieces_clear(proxy);
    piece = &proxy->pieces[proxy->piece_count++];
    *piece = (struct piece){
        .view = view, .before = before, .encoding = encoding, .upto = chunk.upto, .count = (uint32_t)chunk.count};
    piece->bytes = bytes_hold(chunk_encode(&chunk, encoding, view_room_id(view), complete_ms));
    chunk_clear(&chunk);
    return piece;
}

bool sub_push_chunk(struct sub *sub, struct chunk *chunk, enum encoding encoding, uint64_t complete_ms)
{
    struct stream *stream = sub->stream;
    bool own = sub_differs(sub, chunk);
    size_t count = chunk->count;
    struct bytes *bytes = own ? hidden_encode(sub, chunk, encoding, complete_ms, &count)
                              : chunk_encode(chunk, encoding, view_room_id(sub->view), complete_ms);
    bool fits = !bytes || stream_has_room(stream, bytes->n);

    if (fits && bytes)
        stream_push(stream, bytes, sub, chunk->before);
    if (own)
        bytes_drop(bytes);
    if (!fits)
        return false;
    if (stream->poll)
        poll_moved(stream, view_room_id(sub->view), chunk->upto);
    stream->proxy->count.deliveries += count;
    return true;
}

/* The same for a sub that may not share a piece. */
static bool push_own_piece(struct sub *sub, uint64_t upto)
{
    struct entry *entries[CATCH_UP_ENTRIES];
    struct stream *stream = sub->stream;
    struct chunk chunk;
    size_t n = 0;
    bool pushed;

    while (n < countof(entries) && sub->seq + n < upto && (entries[n] = view_run_get(sub->view, sub->seq + n + 1)))
        n++;
    chunk = chunk_cut(entries, n);
    pushed = sub_push_chunk(sub, &chunk, stream_encoding(stream), proxy_unix_ms(stream->proxy));
    if (pushed)
        sub->seq = chunk.upto.seq;
    else
        list_push_front(&stream->behind, &sub->work_link);
    chunk_clear(&chunk);
    return pushed;
}

/* false: no room in the queue now; the sub stays first in line. */
static bool push_piece(struct sub *sub, uint64_t upto)
{
    struct view *view = sub->view;
    struct stream *stream = sub->stream;
    enum encoding encoding = stream_encoding(stream);
    const struct piece *piece = piece_find(stream->proxy, view, sub->seq, encoding, upto);

    if (!piece)
        piece = piece_make(view, sub->seq, encoding, upto, proxy_unix_ms(stream->proxy));
    if (!stream_has_room(stream, piece->bytes->n)) {
        list_push_front(&stream->behind, &sub->work_link);
        return false;
    }
    stream_push(stream, piece->bytes, sub, sub->seq);
    stream->proxy->count.deliveries += piece->count;
    if (stream->poll)
        poll_moved(stream, view_room_id(view), piece->upto);
    sub->seq = piece->upto.seq;
    return true;
}

/* --------------------------------------------------------- reset, the end */

static void settle(struct sub *sub);

void sub_reset(struct sub *sub, struct cursor valid)
{
    struct buf json = {0};

    buf_text(&json, "{\"type\":\"reset\",\"room_id\":\"");
    buf_add_str(&json, view_room_id(sub->view));
    buf_text(&json, "\",\"epoch\":");
    buf_u64(&json, valid.epoch);
    buf_text(&json, ",\"seq\":");
    buf_u64(&json, valid.seq);
    buf_char(&json, '}');
    stream_say(sub->stream, buf_str(&json));
    buf_clear(&json);
    settle(sub); /* where it stands now is in the log */
    if (sub->stream->poll)
        poll_moved(sub->stream, view_room_id(sub->view), valid);
    if (sub->seq > valid.seq)
        sub->seq = valid.seq;
    if (sub->state == SUB_WAITING || sub->state == SUB_BEHIND || sub->state == SUB_READING)
        sub_behind(sub, sub->seq);
}

void sub_end(struct sub *sub, const char *reason)
{
    struct stream *stream = sub->stream;
    struct buf json = {0};

    buf_text(&json, "{\"type\":\"room.left\",\"room_id\":\"");
    buf_add_str(&json, view_room_id(sub->view));
    buf_text(&json, "\",\"reason\":");
    buf_json_string(&json, str_of(reason));
    buf_char(&json, '}');
    stream_say(stream, buf_str(&json));
    buf_clear(&json);
    sub_free(sub);
    if (!stream->all && stream->sub_count == 0 && stream->state == STREAM_LIVE)
        stream_end(stream, CLOSE_NO_ROOM, ERR_OK, NULL);
}

void sub_left(struct sub *sub, const char *reason)
{
    if (sub->state == SUB_OPENING) {
        sub->left = true;
        return;
    }
    /* A live sub has got everything up to the leave. One that is behind would be told things after it has left: cut. */
    if (sub->state != SUB_LIVE)
        stream_purge_sub(sub->stream, sub);
    sub_end(sub, reason);
}

/* ------------------------------------- shown early, and taken back unheard */

uint64_t sub_shown_above(const struct sub *sub, uint64_t seq)
{
    uint64_t most = (uint64_t)sub->stream->proxy->config->prefetch;
    uint64_t above = seq > most ? seq - most : 0;

    return sub->first_seq > above + 1 ? sub->first_seq - 1 : above;
}

void sub_ask_taken_back(const struct sub *sub, uint64_t seq, struct history_taken_back *taken_back)
{
    taken_back->room_id = view_room_id(sub->view);
    taken_back->room_no = sub->view->room_no;
    taken_back->above_seq = sub_shown_above(sub, seq);
    taken_back->upto_seq = seq;
    history_ask_taken_back(sub->stream->proxy->history, taken_back);
}

void sub_say_taken_back(struct sub *sub, struct entry *const *voids, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (sub->stream->poll)
            poll_add(sub->stream, entry_json(voids[i]));
        else
            stream_say(sub->stream, entry_json(voids[i]));
}

/* ------------------------------------------------------- unproven cursors */

uint64_t unproven_mark(const struct view *view, struct cursor cursor)
{
    return view->durable.epoch <= cursor.epoch ? view->durable.seq : 0;
}

void sub_unproven(struct sub *sub, struct cursor cursor, uint64_t marked)
{
    struct unproven *unproven = xcalloc(1, sizeof *unproven);

    unproven->sub = sub;
    unproven->epoch = cursor.epoch;
    unproven->marked = marked;
    list_init(&unproven->validity.link);
    list_init(&unproven->taken_back.link);
    unproven->since = proxy_now(sub->stream->proxy);
    list_push_back(&sub->stream->proxy->unproven, &unproven->link);
    sub->unproven = unproven;
    sub->view->unproven++;
}

void sub_proven(struct sub *sub)
{
    struct unproven *unproven = sub->unproven;

    if (!unproven)
        return;
    history_validity_forget(&unproven->validity);
    history_taken_back_forget(&unproven->taken_back);
    list_remove(&unproven->link);
    free(unproven);
    sub->unproven = NULL;
    sub->view->unproven--;
}

/* Proven, or reset: what was not said of the mark meanwhile is said now, unless one is due anyway. */
static void settle(struct sub *sub)
{
    const struct view *view = sub->view;
    struct buf json = {0};
    uint64_t marked;

    if (!sub->unproven)
        return;
    marked = sub->unproven->marked;
    sub_proven(sub);
    if (is_durable(sub) || sub->state == SUB_SIGNALLED || view->durable.seq <= marked || !list_empty(&view->mark_link))
        return;
    event_durable(&json, view_room_id(view), view->durable.seq);
    stream_say_droppable(sub->stream, buf_str(&json));
    buf_clear(&json);
}

static void unproven_checked(struct history_validity *validity, enum err err);
static void unproven_told(struct history_taken_back *taken_back, enum err err);

static void unproven_ask(struct unproven *unproven)
{
    unproven->asked = true;
    unproven->validity.room_no = unproven->sub->view->room_no;
    unproven->validity.cursor = (struct cursor){unproven->epoch, unproven->sub->seq};
    unproven->validity.done = unproven_checked;
    history_check_cursor(unproven->sub->stream->proxy->history, &unproven->validity);
}

/*
 * The view has come to where the sub stands. What it has there may be of a later owner, who knew nothing of what the
 * reader was shown: only an entry of the cursor's epoch or an older one proves it, there or, as epochs rise with seq,
 * above it (the run of a view that was made anew begins with the first news). Else the log is asked.
 */
static bool run_proves(const struct view *view, const struct sub *sub)
{
    const struct entry *entry = view_run_get(view, sub->seq > view->run_base ? sub->seq : view->run_base + 1);

    return entry && entry->epoch <= sub->unproven->epoch;
}

/* What it stands on is in the log. It goes on when it has been told what is not. */
static void proven(struct unproven *unproven)
{
    unproven->asked = true;
    unproven->taken_back.done = unproven_told;
    sub_ask_taken_back(unproven->sub, unproven->sub->seq, &unproven->taken_back);
}

static void unproven_told(struct history_taken_back *taken_back, enum err err)
{
    struct unproven *unproven = container_of(taken_back, struct unproven, taken_back);
    struct sub *sub = unproven->sub;

    unproven->asked = false;
    if (err) { /* the wheel asks again */
        unproven->since = proxy_now(sub->stream->proxy);
        return;
    }
    sub_say_taken_back(sub, taken_back->voids, taken_back->count);
    settle(sub);
    if (sub->state == SUB_WAITING)
        sub_behind(sub, sub->seq);
}

/* The answer comes later. */
static void prove(struct sub *sub)
{
    if (sub->unproven->asked)
        return;
    if (run_proves(sub->view, sub))
        proven(sub->unproven);
    else
        unproven_ask(sub->unproven);
}

static void unproven_checked(struct history_validity *validity, enum err err)
{
    struct unproven *unproven = container_of(validity, struct unproven, validity);
    struct sub *sub = unproven->sub;
    const struct view *view = sub->view;
    struct cursor valid = {view->epoch, validity->valid.seq};
    bool good = valid.seq >= sub->seq || run_proves(view, sub);

    unproven->asked = false;
    if (err) { /* the wheel asks again */
        unproven->since = proxy_now(sub->stream->proxy);
        return;
    }
    if (!good && validity->head.seq < sub->seq && sub->seq <= view->durable.seq) { /* committed since it was asked */
        unproven_ask(unproven);
        return;
    }
    if (!good && sub->state != SUB_SIGNALLED) {
        sub_reset(sub, valid);
        return;
    }
    proven(unproven);
}

void unproven_check(struct proxy *proxy)
{
    struct unproven *unproven;

    list_for_each (unproven, &proxy->unproven, link)
        if (!unproven->asked && unproven->sub->state == SUB_WAITING &&
            (uint32_t)(proxy_now(proxy) - unproven->since) >= UNPROVEN_MS)
            unproven_ask(unproven);
}
