/*
 * The inside of the proxy, shared by its files; others include proxy.h only.
 *
 *   history ─shown/durable─▶ view ─end of turn: one chunk per encoding─▶ live subs ──reference─▶ stream queue
 *                             └─ tail / store ─pieces at the reader's pace─▶ subs that are behind ─┘    │
 *                                                                              one gathered write ─▶ wire
 *
 *   coming      open.c (request, ticket), admission.c (how many), attach.c (which rooms, from where), endpoint.c (where
 *               an account should go: PullByActiveConnection), enter.c (rooms that `all` streams enter later)
 *   a room      view.c (what this instance knows of it), mark.c (what is told beside the log), leave.c (who may have
 *               left), hidden.c (what an account hides from itself), typing.c, follow.c (shards to be told about)
 *   a stream    stream.c (queue and writing), sub.c (one room on it), catch_up.c (reads of the store), encode.c
 *               (bytes), ws.c and client_frame.c (what clients send), poll.c
 *   leaving     drain.c (streams are sent away), presence.c (who is connected, and kicks)
 *   proxy.c     start and stop, news from history, the end of a loop turn
 *
 * Who owns what: the proxy owns views (in a map, until the last sub goes) and audiences (an account with its open
 * streams); a stream owns its subs; bytes and entries are counted. Nothing here allocates for an idle stream, and no
 * stream has a timer of its own.
 *
 * Times are uint32_t milliseconds of the loop's clock (they wrap after 49 days; only differences are looked at).
 * Thread: the loop's.
 */
#ifndef ROOMD_PROXY_CORE_H
#define ROOMD_PROXY_CORE_H

#include "gateway-adapter/roomd_ticket.h"
#include "proxy.h"
#include "room/base/clock.h"
#include "room/base/log.h"
#include "room/base/map.h"
#include "room/base/ws_frame.h"

struct absent;
struct audience;

enum transport { TRANSPORT_WS, TRANSPORT_SSE, TRANSPORT_NDJSON, TRANSPORT_POLL, TRANSPORTS };
enum deliver { DELIVER_EARLY, DELIVER_DURABLE, DELIVER_SIGNAL };
/* How a chunk of events is written for a transport; see encode.c. */
enum encoding { ENC_WS, ENC_LINES, ENC_SSE_ONE, ENC_SSE_MANY, ENC_SSE_PLAIN, ENCODINGS };

/* Why a stream ends: the WebSocket close code; others just end. */
enum {
    CLOSE_NORMAL = 1000,
    CLOSE_PROTOCOL = 1002,
    CLOSE_NOT_TEXT = 1003,
    CLOSE_BAD_UTF8 = 1007,
    CLOSE_POLICY = 1008,
    CLOSE_TOO_BIG = 1009,
    CLOSE_DRAIN = 4000,
    CLOSE_NO_PONG = 4001,
    CLOSE_TOO_SLOW = 4002,
    CLOSE_OVERLOADED = 4003,
    CLOSE_BAD_TICKET = 4500,
    CLOSE_TICKET_EXPIRED = 4501,
    CLOSE_KICKED = 4502,
    CLOSE_NO_ROOM = 4503
};

/* Pieces of work are cut to about this size: small enough to share a loop turn, large enough that system calls do not
 * count. */
#define CHUNK_BYTES 65536
#define CATCH_UP_ENTRIES 200
#define CLOSING_MS 2000  /* a peer that does not finish closing is cut */
#define FRAME_MS 10000   /* a client frame takes no longer to arrive */
#define UNPROVEN_MS 3000 /* see sub_unproven in attach.c */
#define RETRY_MS 1000
#define REPLIES_MAX 256 /* client frames without an answer yet */
#define CLIENT_FRAMES_PER_S 1000
#define HELLO_ROOMS_MAX 500
#define POLL_EVENTS_BYTES (512 * 1024)
#define PLATFORM_MAX_BYTES CLIENT_MSG_ID_MAX_BYTES

/* ---------------------------------------------------------------- chunks */

/* A run of entries of one room, written at most once per encoding, then shared. */
struct chunk {
    uint64_t before;              /* seq in front of the first */
    struct cursor upto;           /* the last */
    struct entry *const *entries; /* borrowed */
    size_t count, bytes;
    struct bytes *encoded[ENCODINGS]; /* ours; NULL until needed */
};
/* The longest prefix of entries that is about CHUNK_BYTES; at least one. */
struct chunk chunk_cut(struct entry *const *entries, size_t count);
/* Borrowed from the chunk. */
struct bytes *chunk_encode(struct chunk *chunk, enum encoding encoding, struct str room_id, uint64_t complete_ms);
void chunk_clear(struct chunk *chunk);

/* One event, or several lines separated by \n, as bytes of an encoding; `id` (SSE) may be empty. The caller's. */
struct bytes *event_encode(enum encoding encoding, struct str json, struct str id);
struct bytes *ws_frame_bytes(uint8_t opcode, struct str payload);
/* "room_id":…,"head":…,"durable_seq":… */
void event_head(struct buf *out, struct str room_id, struct cursor head, uint64_t durable_seq);
void event_durable(struct buf *out, struct str room_id, uint64_t seq);
/* retry_after_ms: 0 = not said. */
void event_error(struct buf *out, enum err err, const char *message, uint32_t retry_after_ms, struct str req_id);

/* ----------------------------------------------------------------- views */

enum view_list { VIEW_LIVE_EARLY, VIEW_LIVE_DURABLE, VIEW_SIGNALLED, VIEW_WAITING, VIEW_OTHERS, VIEW_LISTS };

/* A room that somebody on this instance listens to. The run is (run_base, run_top], without a hole, in a ring. */
struct view {
    struct map_link link;
    struct proxy *proxy;
    struct list subs[VIEW_LISTS];
    struct list dirty_link, mark_link, suspect_link;
    int64_t room_no;
    uint64_t epoch; /* of the shard, as far as this view acted on it */
    uint64_t run_base, run_top;
    struct entry **ring;
    size_t run_bytes;
    struct cursor durable; /* all up to seq is committed; epoch of the entry there or a later one */
    uint64_t done[2];      /* up to where live subs were served: early, durable */
    uint64_t mark_seq;     /* last durable mark sent */
    uint64_t removed_seq;  /* the room was removed by this entry; 0 = no */
    struct view_check *check;
    struct view_look *look;
    struct buf ephemeral; /* lines to go at the end of the turn */
    uint32_t ring_capacity, ring_first;
    uint32_t sub_count;
    uint32_t moved_at, mark_at, mark_wanted_at;
    uint32_t unproven; /* subs whose cursor is above what was seen */
    bool known;        /* the head is known: something answered */
    bool unsure;       /* news may have been missed, and its head was not seen since */
    bool signalling;   /* more streams than signal_above_streams */
    bool followed;     /* counted as a view of its shard */
    uint8_t room_id_n;
    char room_id_text[];
};

/* Where a view's shown prefix is still valid: asked when a higher epoch appears. Entries that come then are held. */
struct view_check {
    struct history_validity validity;
    struct view *view;
    struct entry **held;
    size_t held_count, held_capacity;
    uint64_t next_epoch; /* heard of meanwhile */
    struct cursor next_durable;
    bool asked;
    bool lossy; /* more came than may be held: a hole follows */
};

struct view *view_get(struct proxy *proxy, struct str room_id); /* created when it was not there */
struct view *view_find(struct proxy *proxy, struct str room_id);
void view_drop_if_unused(struct view *view);
void view_free_all(struct proxy *proxy);
void view_shown(struct view *view, struct entry *entry, bool durable);
void view_learn_durable(struct view *view, uint64_t seq);
void view_learn_room(struct view *view, const struct history_access *access);
void view_new_epoch(struct view *view, uint64_t epoch);
void view_suspect(struct view *view); /* the shard was lost: look for a higher epoch from time to time */
void view_advance(struct view *view); /* serves live subs with all they may see now */
void view_dirty(struct view *view);
/* mark.c: at most one mark a room in durable_mark_ms; the first after a pause at once. riding: entries leave in this
 * turn anyway. */
void view_want_mark(struct view *view, bool riding);
void view_flush_ephemeral(struct view *view);
void view_signal_mode(struct view *view);
void view_marks(struct proxy *proxy);       /* sends durable marks and signals that are due */
void view_recheck(struct proxy *proxy);     /* suspects and failed checks, from the wheel */
void view_missed(struct view *view);        /* news of it may have been missed */
void view_look_abroad(struct proxy *proxy); /* heads of rooms of which nothing is heard */
/* An entry came from the store: does it end somebody's stay? true: perhaps, and those who are concerned get nothing of
 * what stands behind it before that is known. */
bool view_read_entry(struct view *view, const struct entry *entry);
/* leave.c: the same for an entry that is a leave. */
bool leave_read(struct view *view, const struct entry *entry);
void leaves_retry(struct proxy *proxy); /* asks again what the database did not answer, from the wheel */
void leaves_free(struct proxy *proxy);
struct cursor view_head(const struct view *view, enum deliver deliver);
struct entry *view_run_get(const struct view *view, uint64_t seq); /* NULL: not in the run */
static inline struct str view_room_id(const struct view *view)
{
    return (struct str){view->room_id_text, view->room_id_n};
}

/* ------------------------------------------------------------------ subs */

/*
 *   OPENING -attach done-> BEHIND -caught up-> LIVE -queue full / hole-> BEHIND
 *                          BEHIND -entries wanted are not committed yet-> WAITING -durable mark-> BEHIND
 *                          any -room has too many streams / deliver signal-> SIGNALLED
 */
enum sub_state { SUB_OPENING, SUB_BEHIND, SUB_READING, SUB_WAITING, SUB_LIVE, SUB_SIGNALLED };

/* One room on one stream. */
struct sub {
    struct list view_link, stream_link;
    struct list work_link; /* BEHIND: the stream's behind list; READING: the read's */
    struct view *view;
    struct stream *stream;
    uint64_t seq; /* served up to here; LIVE: the view's done */
    /* its cursor was compared with the log up to here when it came: not taken back with the view's run */
    uint64_t sure;
    struct unproven *unproven;
    struct hidden *hidden;      /* entries that its account has hidden from itself; NULL: none */
    uint64_t first_seq;         /* of what its account may see, where that begins at its join; 0: all */
    struct catch_up_read *read; /* READING: the read it waits for; NULL: waits to try again */
    uint32_t reads_before;      /* reads of the store that were on their way when it registered: may be older than it */
    uint8_t state;
    bool left; /* OPENING: a member.left was seen since registration */
    bool held; /* its account may have left: nothing more before that is known */
};

struct sub *sub_new(struct stream *stream, struct view *view);
void sub_free(struct sub *sub);                      /* says nothing; also takes it out of the stream's queue */
void sub_start(struct sub *sub, uint64_t after_seq); /* OPENING -> BEHIND or SIGNALLED */
void sub_behind(struct sub *sub, uint64_t seq); /* to be served from tail or store after seq, at the reader's pace */
void sub_pump(struct sub *sub);
uint64_t sub_stands_at(const struct sub *sub);        /* served (queued) up to here */
void sub_reset(struct sub *sub, struct cursor valid); /* tells the reader to go back */
/* room.left, then frees; a stream with named rooms and none left ends */
void sub_end(struct sub *sub, const char *reason);
struct sub *sub_find(struct stream *stream, const struct view *view);
/* Queues what of a chunk the sub gets. false: the queue has no room for it. */
bool sub_push_chunk(struct sub *sub, struct chunk *chunk, enum encoding encoding, uint64_t complete_ms);
/* its account is no member any more: nothing of the room from now on */
void sub_left(struct sub *sub, const char *reason);

/* What its account has hidden from itself: left out, as far as the sub had not shown it already. */
void sub_hide(struct sub *sub, uint64_t seq);
bool sub_hides(const struct sub *sub, uint64_t above_seq, uint64_t upto_seq); /* anything in between? */
/* May it not get the same bytes as others? What it hides is left out, and edits of what was before its join have no
 * content. */
bool sub_differs(const struct sub *sub, const struct chunk *chunk);
/* A chunk as the sub may see it; *count entries are left. NULL: none. The caller's. */
struct bytes *hidden_encode(
    const struct sub *sub, const struct chunk *chunk, enum encoding encoding, uint64_t complete_ms, size_t *count);
void hidden_told(struct proxy *proxy, const struct audience *audience, struct str json); /* message.hidden */

/* Pieces for subs that are behind, shared by all who want the same within one loop turn (many streams resume at one
 * cursor). */
#define PIECES 8
struct piece {
    struct view *view;
    struct bytes *bytes;
    struct cursor upto;
    uint64_t before;
    enum encoding encoding;
    uint32_t count;
};
void pieces_clear(struct proxy *proxy);

/* A cursor above all that was seen here, under the current epoch: probably early entries of a moment ago. Proven when
 * the view comes there under that epoch; else the log is asked: another owner may have put other entries there. */
struct unproven {
    struct history_validity validity;
    struct history_taken_back taken_back; /* asked last: of what the reader has, what was taken back meanwhile? */
    struct sub *sub;
    struct list link;
    uint64_t epoch;
    uint64_t marked; /* the durable mark its reader was told */
    uint32_t since;
    bool asked;
};
/* The durable mark that may be said to who comes with this cursor before it is proven: of its entries, not of those
 * that a later owner put in their place. */
uint64_t unproven_mark(const struct view *view, struct cursor cursor);
void sub_unproven(struct sub *sub, struct cursor cursor, uint64_t marked);
void sub_proven(struct sub *sub);
void unproven_check(struct proxy *proxy);
/* Asks for the voids that a reader who stands at seq may not know of, though it was shown the messages in whose place
 * they are: it was cut off before they came. Such messages were under way, so they are no further below than deliveries
 * may be. */
void sub_ask_taken_back(const struct sub *sub, uint64_t seq, struct history_taken_back *taken_back);
uint64_t sub_shown_above(const struct sub *sub, uint64_t seq); /* the seq above which such messages are */
/* They are told; a long poll does not end by them, as its next one would be told again. */
void sub_say_taken_back(struct sub *sub, struct entry *const *voids, size_t count);

/* Reads of the store for subs that are behind, shared by all who want the same – but never by a sub that came after the
 * read was sent: it may show what was recalled in between. */
struct catch_up_read {
    struct history_range range;
    struct map_link link;
    struct list order_link; /* reads_waiting, or reads in flight */
    struct view *view;
    struct list subs;
    bool sent;
    uint32_t number; /* among all that were sent */
};
void catch_up_want(struct sub *sub, uint64_t up_to);
void catch_up_forget(struct sub *sub);
void catch_up_retry(struct proxy *proxy);

/* --------------------------------------------------------------- streams */

#define ITEM_KEEP UINT64_MAX       /* must arrive: hello, ack, reset */
#define ITEM_DROP (UINT64_MAX - 1) /* may be dropped without going back: marks, typing */

struct item {
    struct bytes *bytes;
    struct sub *sub; /* NULL: none, or gone */
    uint64_t before; /* dropped: the sub goes on from here */
};

enum stream_state { STREAM_OPENING, STREAM_LIVE, STREAM_CLOSING };

/* One open connection of one account. OPENING -attached, taken over-> LIVE -close-> CLOSING -wire gone-> freed */
struct stream {
    struct proxy *proxy;
    struct audience *audience; /* NULL: refused before the ticket was read */
    struct list audience_link;
    struct list all_link; /* the proxy's list of all streams, of those that were sent away, or of closing ones */
    struct list wheel_link;
    struct list dirty_link;
    struct list partial_link; /* waits for the rest of a client frame */
    struct list subs;
    struct list behind;
    struct list replies; /* client frames to be answered, in order */
    struct wire *wire;
    struct item *items; /* inline_items, or our own memory */
    struct item inline_items[2];
    struct ws_message *message; /* a fragmented message so far */
    struct attach *attaches;    /* in progress, chained */
    struct poll *poll;
    struct absent *absent; /* a poll that is opening: what its reader left behind between two polls */
    char *platform;        /* as its ticket says; NULL: none */
    char *named;           /* rooms of the ticket, each NUL-terminated, an empty one at the end; NULL: all */
    uint32_t item_count, item_capacity, in_flight;
    uint32_t pending_bytes;
    uint32_t sub_count, reply_count;
    uint32_t heard_at, write_at, partial_at, closing_at;
    uint32_t frames_at;
    uint32_t pinged_at; /* up to then pings have told what moved */
    uint16_t frames;    /* client frames in the second since frames_at */
    uint16_t requests;  /* what of them asked for something */
    uint16_t close_code;
    uint8_t state, transport, deliver;
    bool all, one_room, deferred, close_sent, pong_waits, no_more_input;
    bool told;      /* to migrate */
    bool kicked;    /* while it was opening */
    bool bare;      /* opened by a hop that passes bytes on: migrate names neither addresses nor a ticket */
    uint64_t acked; /* bytes the peer had acknowledged when last looked at: progress within a long write */
};

/* An account with open streams here. */
struct audience {
    struct map_link link;
    struct list streams;
    uint8_t n;
    char account[];
};

struct stream *stream_new(struct proxy *proxy, enum transport transport, struct str account);
void stream_free(struct stream *stream);        /* only without a wire */
void stream_leave_rooms(struct stream *stream); /* what ties it to rooms and account; what is queued stays */
enum encoding stream_encoding(const struct stream *stream);
void stream_push(struct stream *stream, struct bytes *bytes, struct sub *sub, uint64_t before); /* holds bytes; dirty */
bool stream_has_room(const struct stream *stream, size_t n);
void stream_overflow(struct stream *stream); /* waiting references are dropped; their subs go on from tail or store */
void stream_forget_sub(struct stream *stream, struct sub *sub);
/* its entries that are not on their way yet are not sent any more */
void stream_purge_sub(struct stream *stream, struct sub *sub);
void stream_say(struct stream *stream, struct str json); /* one private event that must arrive */
void stream_say_droppable(struct stream *stream, struct str json);
void stream_flush(struct stream *stream);
void stream_pump(struct stream *stream); /* goes on with subs that are behind, as far as the queue has room */
/* error event when err, then close */
void stream_end(struct stream *stream, uint16_t code, enum err err, const char *message);
void stream_refuse(struct stream *stream, uint16_t code, enum err err, const char *message,
    uint32_t retry_after_ms);           /* the same, saying when to come back */
void stream_cut(struct stream *stream); /* now */
void stream_taken(void *owner, struct wire *wire);
extern const struct wire_events stream_wire_events, ws_wire_events;
uint64_t stream_complete_ms(const struct stream *stream); /* all its rooms are served up to here; 0: some are behind */

/* The heartbeat wheel: one timer for all streams. */
void wheel_add(struct stream *stream);
void wheel_start(struct proxy *proxy);
void wheel_stop(struct proxy *proxy);
void wheel_clear(struct proxy *proxy);

/* ---------------------------------------------------------------- attach */

enum attach_kind { ATTACH_OPEN, ATTACH_SUBSCRIBE, ATTACH_ENTER };
struct attach_room {
    struct history_access access;
    struct history_validity validity;
    struct history_hidden hidden;
    struct history_taken_back taken_back;
    struct entry **voids; /* what the reader may have been shown and the log has not: told once more; held */
    size_t void_count;
    struct attach *attach;
    struct sub *sub;
    struct cursor after;
    struct cursor valid; /* where it starts */
    bool has_after, by_time, checking, reset, unproven;
    bool wanted;  /* named by the reader, not only found in the account's list */
    bool already; /* the stream carries it */
    enum err err;
    char room_id[ROOM_ID_MAX_BYTES + 1];
};
struct attach {
    struct attach *next;
    struct proxy *proxy;
    struct stream *stream;
    enum attach_kind kind;
    struct http_reply *reply;   /* OPEN: still to be answered */
    struct proxy_reply *answer; /* SUBSCRIBE */
    struct list batch_link;
    size_t nth; /* in its batch */
    struct attach_room **rooms;
    size_t room_count, room_capacity, pending;
    uint64_t resume_ms; /* rooms without a position go on from this server time; 0 = from the head */
    bool timed;         /* the rooms' seqs at resume_ms are known */
    bool details_asked;
    bool finished;       /* waits for the stream itself to be open */
    char accept_key[29]; /* WS */
    bool subprotocol;
};
struct attach *attach_new(struct stream *stream, enum attach_kind kind);
void attach_add(struct attach *attach, struct str room_id, const struct cursor *after);
void attach_begin(struct attach *attach, bool all); /* all: first ask for the account's rooms */
void attach_finish(struct attach *attach);
void attach_free(struct attach *attach);
void attach_abandon(struct attach *attach); /* the stream goes */
void attach_batches(struct proxy *proxy);   /* end of turn: one query for all that wait for one */
void attach_batches_free(struct proxy *proxy);

/* ------------------------------------------------------------ transports */

void open_serve(struct proxy *proxy, struct http_request *request, struct http_reply *reply, enum transport transport);
enum err ticket_check(struct proxy *proxy, struct roomd_ticket *ticket, struct str text, const char **why);
bool named_has(const struct stream *stream, struct str room_id);
void named_set(struct stream *stream, const struct roomd_ticket *ticket);
/* "room", or "room@cursor" */
bool position_or_room_read(struct str text, struct str *room_id, struct cursor *cursor, bool *has_cursor);

void open_take_over(struct attach *attach, struct str hello, struct str hello_id); /* takes attach->reply */
void open_refuse(struct attach *attach, enum err err, const char *message);

struct poll {
    struct stream *stream;
    struct http_reply *reply;
    struct list hold_link;
    uint32_t due;
    bool over;      /* answer also when there is nothing */
    bool tell_time; /* rooms without a position go on from a time: "~@<ms>", in the form of a position */
    enum err err;
    char *why; /* of err; NULL: the table's sentence */
    uint64_t resume_ms;
    uint64_t began_ms; /* server time at which rooms without a position began to be listened to */
    struct poll_position {
        struct cursor cursor;
        char room_id[ROOM_ID_MAX_BYTES + 1];
    } * moved;
    size_t moved_count, moved_capacity;
    struct buf more; /* lines that are told with the answer, whenever it comes */
};
void poll_begin(struct attach *attach); /* takes attach->reply */
void poll_flush(struct stream *stream);
void poll_add(struct stream *stream, struct str json); /* an event for which the answer does not hurry */
void poll_moved(struct stream *stream, struct str room_id, struct cursor cursor);
void poll_due(struct proxy *proxy);
void poll_end(struct stream *stream, enum err err, const char *why); /* answers at the end of the turn */
void poll_free(struct stream *stream);

size_t ws_read(void *owner, const char *p, size_t n);
void client_frame(struct stream *stream, struct str text);
void replies_orphan(struct stream *stream);
void reply_settle(struct proxy_reply *reply, struct str json_members);

/* -------------------------------------------------------------- admission */

/* Both count thousandths of a stream. */
struct admission {
    uint64_t spent;   /* of the bucket */
    uint64_t waiting; /* sent away and not yet due back */
    uint32_t at;
};
bool admission_take(struct proxy *proxy);         /* false: one too many at the moment */
uint32_t admission_later_ms(struct proxy *proxy); /* when somebody who is refused should come back */
bool proxy_overloaded(struct proxy *proxy);       /* it takes no more streams, or hardly */

/* -------------------------------------------------------------- endpoints */

#define ENDPOINTS_MAX 4
/* Writes `[{"instance":…,"url":…},…]`, best first; `others`: without ourselves. Number written. */
size_t endpoints_write(struct proxy *proxy, struct buf *out, const struct str *rooms, size_t room_count, bool others);
/* A ticket for what the stream carries, with its positions. false: does not fit. */
bool ticket_for_stream(
    struct proxy *proxy, const struct stream *stream, char text[ROOMD_TICKET_MAX_BYTES + 1], size_t *len);

/* -------------------------------------------------------------- following */

void follow_open(struct proxy *proxy);
void follow_close(struct proxy *proxy);
void follow_view(struct view *view);  /* its room exists: what is told about the shard is wanted here */
void follow_leave(struct view *view); /* the view goes */
void follow_sweep(struct proxy *proxy, uint32_t now);

/* ---------------------------------------------------------------- entering */

void enter_open(struct proxy *proxy);
void enter_close(struct proxy *proxy);
void enter_retry(struct proxy *proxy);
/* The account's `all` streams carry the room from now on, from after on. */
void enter_room(struct proxy *proxy, struct str account, struct str room_id, struct cursor after);

/* ----------------------------------------------------------------- typing */

void typing_open(struct proxy *proxy);
void typing_close(struct proxy *proxy);

/* --------------------------------------------------------------- presence */

void presence_open(struct proxy *proxy);
void presence_close(struct proxy *proxy);
/* A poll is answered; its reader is likely to come again. */
void presence_poll_over(struct stream *stream, bool kicked);
/* It has come. false: it was kicked meanwhile. */
bool presence_poll_may_open(struct proxy *proxy, struct str account, struct str platform);
void presence_poll_opens(struct stream *stream);
void presence_poll_open(struct stream *stream); /* it is let in */
void presence_stream_gone(struct stream *stream);

/* ------------------------------------------------------------------ drain */

void drain_stream_gone(struct proxy *proxy); /* the last one */
void even_start(struct proxy *proxy);

/* ------------------------------------------------------------------ proxy */

struct proxy_counters {
    uint64_t opened[TRANSPORTS], refused, deliveries, chunks, marks, resets, overflows, reads, signals, writes,
        closed_slow, closed_silent, typings_told, typings_suppressed, sent_away, evened, kicked;
};

struct proxy {
    uv_loop_t *loop;
    const struct config *config;
    struct history *history;
    struct cluster *cluster;
    struct pg *pg;
    struct proxy_client_calls calls;
    struct roomd_ticket_keys keys;
    char *url;
    struct map views, audiences;
    struct list streams, closing, partial, holding; /* holding: polls, in order of their end */
    struct list sent_away;                          /* streams that were told to migrate */
    struct list dirty_views, dirty_streams, marks, suspects, unproven, retry;
    struct list batch_all, batch_at; /* attaches that wait for a query of this turn */
    struct gathering {               /* streams that open, while many come */
        struct list attaches;
        uint32_t at, count, before; /* came since `at`, and as long before it */
    } gathering;
    struct list batches;  /* queries on their way */
    struct list rechecks; /* is an account still a member? */
    struct list pulls;    /* PullByActiveConnection under way */
    struct list surveys;  /* questions to all instances under way */
    struct map absents;   /* polls between two requests, by account */
    struct list absents_by_age;
    struct map followed;
    struct list followed_idle;
    struct entering *entering;
    struct admission admission;
    bool said_full;   /* that it takes no more streams */
    uint32_t full_at; /* when it last was so */
    struct map typings;
    struct list typings_by_age;
    struct map reads;
    struct list reads_waiting, reads_sent;
    struct piece pieces[PIECES];
    uint32_t piece_count;
    uint32_t housekept_at;
    uint32_t reads_in_flight, reads_sent_total;
    uv_prepare_t prepare;
    uv_check_t check;
    uv_timer_t wheel, mark_timer, drain_timer, even_timer, follow_timer, gather_timer;
    int handles_open;
    struct list *slots;
    uint32_t slot_count, slot_at, slot_fill, tick_ms;
    uint32_t turned_at; /* when the wheel last did */
    uint32_t stream_count, told_count, by_transport[TRANSPORTS];
    bool draining, stopping;
    uint64_t drain_until_ms; /* loop clock */
    uint64_t drain_began_ms;
    uint32_t drain_per_s, drain_told; /* streams to be told in a second; that were told */
    void (*drained)(void *arg);
    void *drained_arg;
    struct {
        uint64_t cpu_us, at_us; /* when it was last looked */
        double busy;            /* of one core, smoothed */
        bool going;
    } even;
    struct proxy_counters count;
    struct {
        char instance[27];
        uint32_t seen, promised;
        uint32_t at;
    } promised[256];
    struct buf scratch;
};

static inline uint32_t proxy_now(const struct proxy *proxy)
{
    return (uint32_t)uv_now(proxy->loop);
}
/* Server time for people and positions: the database's clock, the same on every instance. */
uint64_t proxy_unix_ms(const struct proxy *proxy);
struct audience *audience_find(struct proxy *proxy, struct str account);
void account_left(struct proxy *proxy, struct str account, struct view *view, const char *reason);
void proxy_stream_gone(struct proxy *proxy);
void pulls_free(struct proxy *proxy);

#endif
