/*
 * Room views: what this instance knows of a room that somebody here listens to. See core.h and
 * docs/design.md#room-views.
 *
 * The run is a stretch of entries without a hole that ends at the newest one seen. Its older end is bounded, but an
 * entry above the durable mark never leaves it: nobody else could give it to a reader. A hole ends the run; what is in
 * the hole comes from the store when it is committed.
 */
#include "core.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#define HELD_MAX 4096 /* entries kept while the prefix is looked up; more become a hole, which the store fills */

static void run_append(struct view *view, struct entry *entry);
static void run_trim(struct view *view);
static void run_cut_above(struct view *view, uint64_t seq);
static void run_restart(struct view *view, uint64_t base);
static void run_bury(struct view *view, const struct entry *op);
static void serve_live(struct view *view, enum view_list list, uint64_t upto);
static void view_leave_live(struct view *view, enum view_list list);
static void wake_waiting(struct view *view);
static void check_start(struct view *view);
static void check_ask(struct view_check *check);
static void check_done(struct history_validity *validity, enum err err);
static void look(struct view *view);

/* A question after the head of a room. */
struct view_look {
    struct history_access access;
    struct view *view;
};

static uint64_t run_count(const struct view *view)
{
    return view->run_top - view->run_base;
}

/* ------------------------------------------------------------ life of it */

static bool view_is(const struct map_link *link, const void *key)
{
    return str_eq(view_room_id(container_of(link, struct view, link)), *(const struct str *)key);
}

struct view *view_find(struct proxy *proxy, struct str room_id)
{
    struct map_link *link = map_find(&proxy->views, map_hash(room_id.p, room_id.n), view_is, &room_id);

    return link ? container_of(link, struct view, link) : NULL;
}

struct view *view_get(struct proxy *proxy, struct str room_id)
{
    struct view *view = view_find(proxy, room_id);
    bool ours;

    if (view)
        return view;
    assert(room_id.n <= ROOM_ID_MAX_BYTES);
    view = xcalloc(1, sizeof *view + room_id.n);
    view->proxy = proxy;
    view->room_id_n = (uint8_t)room_id.n;
    memcpy(view->room_id_text, room_id.p, room_id.n);
    for (int i = 0; i < VIEW_LISTS; i++)
        list_init(&view->subs[i]);
    list_init(&view->dirty_link);
    list_init(&view->mark_link);
    list_init(&view->suspect_link);
    view->epoch = history_epoch(proxy->history, room_id, &ours);
    view->moved_at = proxy_now(proxy) - UINT32_MAX / 2;
    view->mark_at = proxy_now(proxy) - UINT32_MAX / 2;
    map_insert(&proxy->views, map_hash(room_id.p, room_id.n), &view->link);
    return view;
}

static void view_free(struct view *view)
{
    struct view_check *check = view->check;

    pieces_clear(view->proxy);
    follow_leave(view);
    map_remove(&view->proxy->views, &view->link);
    list_remove(&view->dirty_link);
    list_remove(&view->mark_link);
    list_remove(&view->suspect_link);
    if (check) {
        if (check->asked)
            history_validity_forget(&check->validity);
        for (size_t i = 0; i < check->held_count; i++)
            entry_drop(check->held[i]);
        free(check->held);
        free(check);
    }
    if (view->look) {
        history_access_forget(&view->look->access);
        free(view->look);
    }
    run_restart(view, 0);
    buf_clear(&view->ephemeral);
    free(view->ring);
    free(view);
}

void view_drop_if_unused(struct view *view)
{
    if (view->sub_count == 0)
        view_free(view);
}

void view_free_all(struct proxy *proxy)
{
    struct map_link *link = map_next(&proxy->views, NULL), *next;

    for (; link; link = next) {
        next = map_next(&proxy->views, link);
        view_free(container_of(link, struct view, link));
    }
}

/* ------------------------------------------------------------------ the run */

static struct entry *run_at(const struct view *view, uint64_t index)
{
    return view->ring[(view->ring_first + index) & (view->ring_capacity - 1)];
}

struct entry *view_run_get(const struct view *view, uint64_t seq)
{
    return seq > view->run_base && seq <= view->run_top ? run_at(view, seq - view->run_base - 1) : NULL;
}

static void run_append(struct view *view, struct entry *entry)
{
    uint64_t count = run_count(view);

    if (count == view->ring_capacity) { /* grow, unrolled */
        uint32_t capacity = view->ring_capacity ? view->ring_capacity * 2 : 8;
        struct entry **ring = xcalloc(capacity, sizeof *ring);

        for (uint64_t i = 0; i < count; i++)
            ring[i] = run_at(view, i);
        free(view->ring);
        view->ring = ring;
        view->ring_capacity = capacity;
        view->ring_first = 0;
    }
    view->ring[(view->ring_first + count) & (view->ring_capacity - 1)] = entry_hold(entry);
    view->run_top = entry->seq;
    view->run_bytes += entry->n;
}

/* Only what is committed and was served may go: the store has it. */
static void run_trim(struct view *view)
{
    const struct config *config = view->proxy->config;

    while (run_count(view) > 0 &&
           (run_count(view) > (uint64_t)config->tail_max_entries || view->run_bytes > (size_t)config->tail_max_bytes) &&
           view->run_base + 1 <= view->durable.seq && view->run_base + 1 <= view->done[0] &&
           view->run_base + 1 <= view->done[1]) {
        struct entry *oldest = run_at(view, 0);

        view->run_bytes -= oldest->n;
        entry_drop(oldest);
        view->ring_first = (view->ring_first + 1) & (view->ring_capacity - 1);
        view->run_base++;
    }
}

static void run_cut_above(struct view *view, uint64_t seq)
{
    pieces_clear(view->proxy);
    while (run_count(view) > 0 && view->run_top > seq) {
        struct entry *newest = run_at(view, run_count(view) - 1);

        view->run_bytes -= newest->n;
        entry_drop(newest);
        view->run_top--;
    }
    if (run_count(view) == 0)
        view->run_base = view->run_top = seq;
}

/* In the place of the entry with the same seq, which must be in the run. */
static void run_put(struct view *view, struct entry *entry)
{
    uint64_t index = view->ring_first + entry->seq - view->run_base - 1;
    struct entry **place = &view->ring[index & (view->ring_capacity - 1)];

    view->run_bytes = view->run_bytes - (*place)->n + entry->n;
    entry_drop(*place);
    *place = entry_hold(entry);
}

/*
 * A message was recalled or deleted: whoever reads on from the run gets what the store now has in its place, and in
 * that of its earlier edits. Pieces that were made before are not given to anybody else. Live subs that stand behind
 * the message have it already, and are told by the op.
 */
static void run_bury(struct view *view, const struct entry *op)
{
    int state = op->type == ENTRY_RECALLED ? 2 : 3;
    uint64_t target = entry_target(op);

    pieces_clear(view->proxy);
    for (uint64_t seq = target > view->run_base ? target : view->run_base + 1; seq < op->seq && seq <= view->run_top;
         seq++) {
        const struct entry *entry = view_run_get(view, seq);
        struct entry *tombstone;

        if (seq != target && (entry->type != ENTRY_EDITED || entry_target(entry) != target))
            continue;
        tombstone = entry_tombstone(entry, state);
        run_put(view, tombstone);
        entry_drop(tombstone);
    }
}

static void run_restart(struct view *view, uint64_t base)
{
    while (run_count(view) > 0) {
        entry_drop(run_at(view, 0));
        view->ring_first = (view->ring_first + 1) & (view->ring_capacity - 1);
        view->run_base++;
    }
    view->run_bytes = 0;
    view->run_base = view->run_top = base;
}

struct cursor view_head(const struct view *view, enum deliver deliver)
{
    const struct entry *last;

    if (deliver == DELIVER_EARLY && view->run_top > view->durable.seq && (last = view_run_get(view, view->run_top)))
        return (struct cursor){last->epoch, last->seq};
    return view->durable;
}

/* --------------------------------------------------------------------- news */

void view_dirty(struct view *view)
{
    if (list_empty(&view->dirty_link))
        list_push_back(&view->proxy->dirty_views, &view->dirty_link);
}

static void durable_to(struct view *view, uint64_t seq, uint64_t epoch)
{
    const struct entry *entry = view_run_get(view, seq);

    if (seq <= view->durable.seq)
        return;
    if (view->check) { /* may speak of other entries than those that stand in the run now */
        if (seq > view->check->next_durable.seq)
            view->check->next_durable = (struct cursor){epoch, seq};
        return;
    }
    view->durable.seq = seq;
    /* Not in the run: the epoch of the shard is at least the entry's, and in a cursor a later epoch means the same for
     * what is committed. */
    view->durable.epoch = entry ? entry->epoch : epoch > view->durable.epoch ? epoch : view->durable.epoch;
    view->moved_at = proxy_now(view->proxy);
    view_dirty(view);
}

static void hold_back(struct view_check *check, struct entry *entry)
{
    if (check->held_count == HELD_MAX) {
        check->lossy = true;
        return;
    }
    if (check->held_count == check->held_capacity) {
        check->held_capacity = check->held_capacity ? check->held_capacity * 2 : 16;
        check->held = xrealloc(check->held, check->held_capacity * sizeof *check->held);
    }
    check->held[check->held_count++] = entry_hold(entry);
}

/*
 * A message that was shown early turned out to be a late duplicate, or nothing the database takes: its seq holds a
 * void. Who has seen the message is told to forget it (docs/protocol.md#promises), who has not finds the void in its
 * place.
 */
static void take_back(struct view *view, struct entry *entry)
{
    struct sub *sub;

    pieces_clear(view->proxy);
    if (view_run_get(view, entry->seq))
        run_put(view, entry);
    for (int list = 0; list < VIEW_LISTS; list++) {
        if (list == VIEW_LIVE_DURABLE || list == VIEW_SIGNALLED)
            continue;
        list_for_each (sub, &view->subs[list], view_link)
            if (sub->state != SUB_OPENING && sub->stream->deliver == DELIVER_EARLY &&
                (sub->state == SUB_LIVE ? view->done[0] : sub->seq) >= entry->seq)
                stream_say(sub->stream, entry_json(entry));
    }
}

void view_shown(struct view *view, struct entry *entry, bool durable)
{
    if (entry->epoch > view->epoch)
        view_new_epoch(view, entry->epoch);
    if (view->check) {
        hold_back(view->check, entry);
        if (durable)
            durable_to(view, entry->seq, entry->epoch);
        return;
    }
    if (run_count(view) == 0 && !view->known && entry->seq > view->run_top + 1)
        run_restart(view, entry->seq - 1);
    if (entry->seq > view->run_top + 1) {
        /* A hole: live subs get what stands before it, then wait for the store. */
        view_advance(view);
        run_restart(view, entry->seq - 1);
    }
    if (entry->type == ENTRY_RECALLED || entry->type == ENTRY_DELETED)
        run_bury(view, entry);
    if (entry->seq == view->run_top + 1)
        run_append(view, entry);
    else if (entry->type == ENTRY_VOID && entry->seq > view->durable.seq)
        take_back(view, entry);
    /* else: at or below what is known; the log cannot change there (a new epoch was looked up above) */
    if (entry->type == ENTRY_REMOVED)
        view->removed_seq = entry->seq;
    if (durable)
        durable_to(view, entry->seq, entry->epoch);
    view->moved_at = proxy_now(view->proxy);
    view_dirty(view);
}

/* Before a durable mark is believed: it may speak of entries of an owner whose news did not come here, and what was
 * shown here early stands at the same seqs. */
static void hear_epoch(struct view *view, uint64_t at_least)
{
    bool ours;
    uint64_t epoch = history_epoch(view->proxy->history, view_room_id(view), &ours);

    view_new_epoch(view, epoch > at_least ? epoch : at_least);
}

void view_learn_durable(struct view *view, uint64_t seq)
{
    hear_epoch(view, 0);
    durable_to(view, seq, view->epoch);
}

void view_learn_room(struct view *view, const struct history_access *access)
{
    bool first = !view->known;

    view->room_no = access->room_no;
    hear_epoch(view, access->head.epoch);
    if (first) {
        view->known = true;
        follow_view(view);
        view->mark_seq = access->head.seq; /* hello says it */
        if (run_count(view) == 0 && access->head.seq > view->run_top)
            run_restart(view, access->head.seq);
    }
    if (access->head.seq > view->durable.seq) {
        durable_to(view, access->head.seq, access->head.epoch);
        if (!view_run_get(view, access->head.seq))
            view->durable.epoch = access->head.epoch;
    }
    view_advance(view);
    if (first && view->unsure)
        look(view); /* the answer may be older than what was missed */
}

/* ------------------------------------------------------- serving live subs */

/*
 * Brings live subs up to what they may see. `done` is where a live sub stands; it moves even when nobody is live, so
 * that who comes next knows where live begins. When the run does not hold the way there, live subs go on from the
 * store.
 */
void view_advance(struct view *view)
{
    uint64_t early = view->run_top > view->durable.seq ? view->run_top : view->durable.seq;
    bool moved_durable = view->durable.seq > view->done[1], moved_early = early > view->done[0];

    if (view->check || !view->known)
        return;
    if (view->durable.seq > view->run_top)
        run_restart(view, view->durable.seq); /* behind what is committed: of no use for going on */
    if (moved_early)
        serve_live(view, VIEW_LIVE_EARLY, early);
    if (moved_durable)
        serve_live(view, VIEW_LIVE_DURABLE, view->durable.seq);
    if (moved_durable || moved_early)
        view_want_mark(view, moved_early);
    if (moved_durable || view->unproven)
        wake_waiting(view);
    run_trim(view);
}

static void push_chunks(struct view *view, struct list *live, struct chunk *chunks, size_t count)
{
    uint64_t complete_ms = proxy_unix_ms(view->proxy);
    struct sub *sub;

    list_for_each (sub, live, view_link) {
        struct stream *stream = sub->stream;
        enum encoding encoding = stream_encoding(stream);

        for (size_t i = 0; i < count; i++) {
            if (sub_push_chunk(sub, &chunks[i], encoding, complete_ms))
                continue;
            sub_behind(sub, chunks[i].before);
            stream_overflow(stream);
            break;
        }
    }
}

static void serve_live(struct view *view, enum view_list list, uint64_t upto)
{
    uint64_t *done = &view->done[list];
    struct list *live = &view->subs[list];
    struct entry *run[256];
    struct chunk chunks[16];

    if (list_empty(live)) {
        *done = upto;
        return;
    }
    if (*done < view->run_base || upto > view->run_top) {
        view_leave_live(view, list);
        *done = upto;
        wake_waiting(view);
        return;
    }
    while (*done < upto) {
        size_t n = 0, used = 0, count = 0;

        while (n < countof(run) && *done + n < upto) {
            run[n] = run_at(view, *done + n - view->run_base);
            n++;
        }
        while (used < n && count < countof(chunks)) {
            chunks[count] = chunk_cut(run + used, n - used);
            used += chunks[count++].count;
        }
        /* First, because a sub whose queue is full goes on from `before`, and looks at done. */
        *done += used;
        push_chunks(view, live, chunks, count);
        view->proxy->count.chunks += count;
        for (size_t i = 0; i < count; i++)
            chunk_clear(&chunks[i]);
    }
    if (view->removed_seq && *done >= view->removed_seq)
        view_leave_live(view, list);
}

/* Live subs go on at their own pace from where they stand. */
static void view_leave_live(struct view *view, enum view_list list)
{
    struct sub *sub;

    while (!list_empty(&view->subs[list])) {
        sub = list_entry(view->subs[list].next, struct sub, view_link);
        sub_behind(sub, view->done[list]);
    }
}

static void wake_waiting(struct view *view)
{
    struct list waiting;

    list_init(&waiting);
    list_splice_back(&waiting, &view->subs[VIEW_WAITING]);
    while (!list_empty(&waiting)) {
        struct sub *sub = list_entry(waiting.next, struct sub, view_link);

        sub_behind(sub, sub->seq);
    }
}

/* ------------------------------------------------ epochs: is the prefix good */

void view_new_epoch(struct view *view, uint64_t epoch)
{
    if (epoch <= view->epoch)
        return;
    if (view->check) { /* what is held may be of epochs in between: one after the other */
        if (epoch > view->check->next_epoch)
            view->check->next_epoch = epoch;
        return;
    }
    if (!view->known) { /* nobody was shown anything yet */
        run_restart(view, 0);
        view->epoch = epoch;
        return;
    }
    /* What was shown above the durable mark under an older epoch may not be in the log, or stand there as something
     * else. */
    if (run_count(view) > 0 && view->run_top > view->durable.seq) {
        view_advance(view);
        view->epoch = epoch;
        check_start(view);
        return;
    }
    view->epoch = epoch;
}

void view_suspect(struct view *view)
{
    if (list_empty(&view->suspect_link) && view->run_top > view->durable.seq)
        list_push_back(&view->proxy->suspects, &view->suspect_link);
}

static void check_start(struct view *view)
{
    struct view_check *check = xcalloc(1, sizeof *check);
    const struct entry *last = view_run_get(view, view->run_top);

    check->view = view;
    check->validity.cursor = (struct cursor){last->epoch, last->seq};
    check->validity.done = check_done;
    view->check = check;
    check_ask(check);
}

static void check_ask(struct view_check *check)
{
    check->validity.room_no = check->view->room_no;
    check->asked = true;
    history_check_cursor(check->view->proxy->history, &check->validity);
}

static void tell_reset(struct view *view, struct cursor valid)
{
    static const enum view_list told[] = {VIEW_LIVE_EARLY, VIEW_WAITING, VIEW_OTHERS};
    struct sub *sub;

    for (size_t i = 0; i < countof(told); i++)
        list_for_each (sub, &view->subs[told[i]], view_link)
            if (sub->state != SUB_OPENING && sub->stream->deliver == DELIVER_EARLY && !sub->unproven &&
                (sub->state == SUB_LIVE || sub->seq > (valid.seq > sub->sure ? valid.seq : sub->sure)))
                sub_reset(sub, (struct cursor){view->epoch, valid.seq});
}

static void check_done(struct history_validity *validity, enum err err)
{
    struct view_check *check = container_of(validity, struct view_check, validity);
    struct view *view = check->view;

    check->asked = false;
    if (err) { /* the database is away: the wheel asks again */
        if (list_empty(&view->suspect_link))
            list_push_back(&view->proxy->suspects, &view->suspect_link);
        return;
    }
    view->check = NULL;
    list_remove(&view->suspect_link);
    if (validity->valid.seq < view->run_top) {
        run_cut_above(view, validity->valid.seq);
        if (view->removed_seq > validity->valid.seq)
            view->removed_seq = 0;
        if (view->done[0] > validity->valid.seq) {
            view->proxy->count.resets++;
            log_info("view.reset", "room=%.*s epoch=%" PRIu64 " seq=%" PRIu64, STR_ARG(view_room_id(view)), view->epoch,
                validity->valid.seq);
            tell_reset(view, validity->valid);
            view->done[0] = validity->valid.seq;
        }
    }
    for (size_t i = 0; i < check->held_count; i++) {
        view_shown(view, check->held[i], false);
        entry_drop(check->held[i]);
    }
    /* Epochs before durable marks: these are believed only about what is the log's. */
    view_new_epoch(view, check->next_epoch > validity->head.epoch ? check->next_epoch : validity->head.epoch);
    durable_to(view, validity->head.seq, validity->head.epoch);
    durable_to(view, check->next_durable.seq, check->next_durable.epoch);
    view_dirty(view);
    wake_waiting(view);
    free(check->held);
    free(check);
}

void view_recheck(struct proxy *proxy)
{
    struct view *view;
    bool ours;

    list_for_each (view, &proxy->suspects, suspect_link) {
        uint64_t epoch = history_epoch(proxy->history, view_room_id(view), &ours);

        if (view->check && !view->check->asked)
            check_ask(view->check);
        else if (!view->check && view->run_top <= view->durable.seq)
            list_remove(&view->suspect_link);
        else if (!view->check && epoch > view->epoch)
            view_new_epoch(view, epoch);
    }
}

/* ----------------------------------------------------------------- signals */

/* Above the bound streams get signals; well below it they get everything they missed, from the store. */
void view_signal_mode(struct view *view)
{
    uint64_t bound = (uint64_t)view->proxy->config->signal_above_streams;
    struct sub *sub;

    if (!view->signalling && view->sub_count > bound) {
        view->signalling = true;
        for (int list = VIEW_LIVE_EARLY; list <= VIEW_LIVE_DURABLE; list++)
            view_leave_live(view, (enum view_list)list);
    } else if (view->signalling && view->sub_count < bound - bound / 10) {
        view->signalling = false;
        list_for_each (sub, &view->subs[VIEW_SIGNALLED], view_link)
            if (sub->stream->deliver != DELIVER_SIGNAL)
                sub_behind(sub, sub->seq);
    }
}

/* --------------------------------------------------- when news were missed */

static void looked(struct history_access *access, enum err err)
{
    struct view_look *look_done = container_of(access, struct view_look, access);
    struct view *view = look_done->view;
    bool missed_meanwhile = view->unsure;

    view->look = NULL;
    if (err)
        view->unsure = err != ERR_NO_SUCH_ROOM; /* again with view_look_abroad */
    else if (view->known)
        view_learn_room(view, access);
    free(look_done);
    if (missed_meanwhile && !err)
        look(view);
}

static void look(struct view *view)
{
    if (view->look)
        return; /* and again when it is answered, if something was missed meanwhile */
    view->unsure = false;
    view->look = xcalloc(1, sizeof *view->look);
    view->look->view = view;
    view->look->access.room_id = view_room_id(view);
    view->look->access.done = looked;
    list_init(&view->look->access.link);
    history_ask_access(view->proxy->history, &view->look->access);
}

void view_missed(struct view *view)
{
    view->unsure = true;
    if (view->known)
        look(view);
}

/*
 * Rooms of which nothing is heard (their owner, the broker or the feed is away) are looked at once a second, all in one
 * query, as long as somebody listens; the entries come from the store. Otherwise this asks nothing.
 */
void view_look_abroad(struct proxy *proxy)
{
    struct str shard;

    for (struct map_link *link = map_next(&proxy->views, NULL); link; link = map_next(&proxy->views, link)) {
        struct view *view = container_of(link, struct view, link);

        if (view->known &&
            (view->unsure || (room_id_read(view_room_id(view), &shard) && !history_hears(proxy->history, shard))))
            look(view);
    }
    enter_retry(proxy);
}

bool view_read_entry(struct view *view, const struct entry *entry)
{
    if (entry->type == ENTRY_REMOVED)
        view->removed_seq = entry->seq;
    if (entry->type == ENTRY_RECALLED || entry->type == ENTRY_DELETED)
        run_bury(view, entry);
    return entry->type == ENTRY_LEFT && leave_read(view, entry);
}
