/*
 * roomd from a gateway in C: the service calls, the publisher, tickets, streams.
 *
 *   struct roomd_client *client;
 *   struct roomd_settings settings = {.instance_urls = "http://10.0.0.5:7400,http://10.0.0.6:7400",
 *       .service_key = "…", .broker_urls = "amqp://gateway:…@localhost/%2f,amqp://gateway:…@10.0.0.9/%2f"};
 *   if (roomd_client_open(&client, &settings, &why)) …
 *
 * Thread: a client belongs to one thread; several clients may live in several threads. There is no global state.
 * Memory: nothing aborts and nothing is logged; memory that runs out is ROOMD_NO_MEMORY. What is given to a function is
 * copied before it returns, unless its comment says otherwise. Texts are NUL-terminated UTF-8.
 * Time: *_at are milliseconds since 1970, *_ms are durations; a duration of 0 means the one of the settings.
 *
 * Nothing blocks but roomd_client_wait, roomd_call_wait and roomd_send_wait (and, with a spool, the disk's fsync). A
 * client is a state machine behind one descriptor: when it is readable, call roomd_client_turn. A blocking program uses
 * the three waits instead; one with libuv includes roomd_adapter_uv.h. Callbacks come out of roomd_client_turn and of
 * the waits only, never from inside the function that started something. They may call everything in this header but
 * the waits, roomd_client_turn and roomd_client_close.
 *
 * Link with `pkg-config --cflags --libs roomd_adapter`. The promises behind it: docs/protocol.md; a guide:
 * docs/adapter.md.
 */
#ifndef ROOMD_ADAPTER_H
#define ROOMD_ADAPTER_H

#include "roomd_ticket.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The codes of the service's error table, then those that only this library gives. */
enum roomd_code {
    ROOMD_OK = 0,
    ROOMD_BAD_REQUEST, /* mend it: see field and message. Also said by this library before anything is sent */
    ROOMD_UNAUTHENTICATED,
    ROOMD_TICKET_IS_EXPIRED,
    ROOMD_NOT_MEMBER,
    ROOMD_FORBIDDEN,
    ROOMD_NO_SUCH_ROOM,
    ROOMD_NO_SUCH_MESSAGE,
    ROOMD_NO_SUCH_METHOD,
    ROOMD_METHOD_NOT_ALLOWED,
    ROOMD_ROOM_FULL,
    ROOMD_TOO_LATE,
    ROOMD_CONFLICT,
    ROOMD_ROOM_GONE,
    ROOMD_TOO_LARGE,
    ROOMD_UNSUPPORTED_MEDIA_TYPE,
    ROOMD_RATE_LIMITED,
    ROOMD_UNAVAILABLE, /* it did not happen: nobody could be reached, or the library holds too much already */
    ROOMD_TIMEOUT,     /* it may have happened: repeat with the same request_id, client_msg_id or key */
    ROOMD_SPOOLED,     /* sends only: safe on this machine's disk, not yet with the broker. Not a confirm */
    ROOMD_NO_MEMORY,
    ROOMD_CLOSED,     /* roomd_client_close or a cancel came first; it may have happened */
    ROOMD_BAD_ANSWER, /* what came back is no answer of roomd's */
    ROOMD_OTHER,      /* an error code this version does not know: see message */
};
/* "not_member", as on the wire. */
const char *roomd_code_name(enum roomd_code code);

/* ------------------------------------------------------------------ the client */

struct roomd_client;

/* Of the library's lists; nothing for callers. */
struct roomd_link {
    struct roomd_link *next, *prev;
};

struct roomd_settings {
    const char *instance_urls; /* http:// or https://, comma-separated, in the order to try; NULL: no service calls */
    const char *service_key;
    const char *broker_urls; /* amqp://user:password@host:port/vhost or amqps://, comma-separated: the local one first.
                                NULL: no publisher. While another is in use the earlier ones are tried again and again,
                                and the first that answers is returned to */
    const char *ca_file;     /* for https and amqps; NULL: the system's */

    int64_t call_ms; /* deadline of a call, all its attempts together. Default 10,000 */
    int64_t try_ms;  /* how long one instance may take before the next is tried. Default 3,000 */
    int64_t send_ms; /* deadline of a message: confirmed by then, or the answer is another one. Default 10,000 */

    /* Bounds; above them a call or a message is ROOMD_UNAVAILABLE at once. */
    uint32_t connections_max;   /* to instances. Default 16 */
    uint32_t calls_max;         /* calls under way, waiting ones included. Default 1,024 */
    uint32_t pending_max;       /* messages without a confirm. Default 10,000 */
    uint64_t pending_max_bytes; /* their bodies. Default 64 MiB */
    uint32_t content_max_bytes; /* ROOMD_TOO_LARGE above; the service's setting of this name. Default 65,536 */

    /*
     * The spool: a file for what the broker does not take. It is replayed in order when the broker is back, by this
     * process or a later one that names the same file (one at a time: the file is locked). A message goes there when
     * the broker is away or blocked for spool_after_ms, or at its deadline. Later messages of the same room wait for
     * it (or follow it). The disk is asked to hold it (fsync) before ROOMD_SPOOLED is said.
     */
    const char *spool_file;   /* NULL: no spool. Its folder must exist; mode 0600 */
    uint64_t spool_max_bytes; /* Default 256 MiB; a full spool takes nothing: ROOMD_UNAVAILABLE. Its room comes back
                                 when all of it is replayed */
    int64_t spool_after_ms;   /* Default 1,000 */
    /* What became of a spooled message in the end: ROOMD_OK, or ROOMD_NO_SUCH_ROOM (then it is given up).
     * May be NULL. */
    void (*spool_settled)(void *arg, const char *message_id, enum roomd_code code);
    void *arg;
};

/*
 * Connects by itself, later. *why (may be NULL) is a static sentence when it fails.
 *   ROOMD_BAD_REQUEST  an address or the CA file cannot be read, or a number is out of range
 *   ROOMD_CONFLICT     another client has the spool open
 *   ROOMD_UNAVAILABLE  the spool cannot be opened, or there are no descriptors left
 *   ROOMD_NO_MEMORY
 */
enum roomd_code roomd_client_open(
    struct roomd_client **client, const struct roomd_settings *settings, const char **why);
/* Calls and messages still under way are done() with ROOMD_CLOSED first, and no callback comes
 * afterwards. NULL: fine. */
void roomd_client_close(struct roomd_client *client);

/* Readable when roomd_client_turn has something to do, time included: poll it for reading, read nothing from it. */
int roomd_client_fd(const struct roomd_client *client);
/* Does what can be done now; never blocks. */
void roomd_client_turn(struct roomd_client *client);
/* Waits for something to do, at most `ms` (< 0: without end), and does it. */
void roomd_client_wait(struct roomd_client *client, int64_t ms);

struct roomd_counters {
    uint64_t confirmed_total, returned_total, nacked_total, resent_total, spooled_total, replayed_total;
    uint64_t connects_total;      /* to brokers */
    uint64_t spool_damaged_total; /* places in the spool whose checksum was wrong; a torn last record does not count */
    uint64_t pending_bytes, spool_bytes;
    uint32_t pending, calls;
    bool broker_up, broker_blocked;
    uint32_t broker; /* which of broker_urls, 0 = the first; only when up */
};
struct roomd_counters roomd_client_counters(const struct roomd_client *client);
/* Why the broker could not be reached the last time; "" when it is up. Good until the next turn. */
const char *roomd_client_broker_problem(const struct roomd_client *client);

/* ------------------------------------------------------------------ the publisher */

struct roomd_message {
    const char *room_id;
    const char *sender;          /* an account, or "@system". Say who it is only when you know */
    const char *kind;            /* NULL: "text" */
    const char *text;            /* the content as plain text … */
    const char *content;         /* … or as JSON, which comes back as the same JSON text. One of the two */
    const char *client_msg_id;   /* 1–64 bytes; NULL: a ULID is made. The same id is the same message */
    const char *const *mentions; /* accounts, "@all" */
    size_t mention_count;
    int64_t sent_at;    /* 0: not told */
    uint64_t quote_seq; /* 0: none */
    bool transient;     /* to open streams only, never stored; not spooled */
};

/*
 * One message on its way. Plain memory of the caller's, zeroed but for the first three; must live until done.
 *   ROOMD_OK            the broker has it, and confirmed. It is in the log exactly once, or in roomd.dead with its
 *                       reason
 *   ROOMD_SPOOLED       it is on this disk and will be sent
 *   ROOMD_NO_SUCH_ROOM  the room's shard does not exist
 *   ROOMD_UNAVAILABLE   not sent by the deadline: brokers away or blocked; or above a bound
 *   ROOMD_TIMEOUT       sent, and no word by the deadline. Again with the same client_msg_id is always right
 *   ROOMD_BAD_REQUEST, ROOMD_TOO_LARGE  see field and text
 *   ROOMD_FORBIDDEN     the broker's user may not write the exchange roomd.room
 *   ROOMD_NO_MEMORY, ROOMD_CLOSED
 * Messages of one room leave in the order of the sends, and stay in it over nacks and lost connections, as long as they
 * have the same deadline_ms.
 */
struct roomd_send {
    void (*done)(struct roomd_send *send); /* may be NULL */
    void *arg;
    int64_t deadline_ms; /* from now; 0: send_ms of the settings */

    char message_id[27];    /* known when roomd_send returns, unless the message is refused; "" for transient ones */
    char client_msg_id[65]; /* given or made */
    enum roomd_code code;   /* from here on: when finished */
    bool finished;
    const char *field; /* which of the message's fields; NULL: none */
    const char *text;  /* a sentence, static */

    struct roomd_link private_link;
};
void roomd_send(struct roomd_client *client, struct roomd_send *send, const struct roomd_message *message);
/* Blocks until it is finished; the code. */
enum roomd_code roomd_send_wait(struct roomd_client *client, struct roomd_send *send);

/* The id a message has for ever: docs/protocol.md#messages. */
void roomd_message_id(char out[27], const char *room_id, const char *sender, const char *client_msg_id);
/* A ULID of now: 26 characters. false: the system gave no randomness. */
bool roomd_mint(char out[27]);

/* ------------------------------------------------------------------ the service calls */

/*
 * One call on its way. Plain memory of the caller's, zeroed but for the first four; must live until done, and then
 * until roomd_call_clear: the answer's texts belong to it.
 * Instances are tried in order; one that cannot be reached, is draining or takes too long is left aside for a while.
 * A call that changes something carries a request_id, so that trying again can never do it twice.
 */
struct roomd_call {
    void (*done)(struct roomd_call *call); /* may be NULL */
    void *arg;
    int64_t deadline_ms;    /* from now, all attempts together; 0: call_ms of the settings */
    const char *request_id; /* calls that change something: yours, 1–64 bytes; NULL: one is made. Push has its
                               client_msg_id for it; MarkRead needs none */

    enum roomd_code code; /* from here on: when finished */
    bool finished;
    int http_status;        /* 0: no answer came */
    const char *message;    /* a sentence; "" when all is well */
    const char *field;      /* NULL: none is to blame */
    int64_t retry_after_ms; /* what the service asked for; 0: nothing */

    struct roomd_link private_link;
    void *private_call;
    void *private_memory;
};
/* Blocks until it is finished; the code. */
enum roomd_code roomd_call_wait(struct roomd_client *client, struct roomd_call *call);
/* Forgets a call that is under way: done() comes with ROOMD_CLOSED, on a later turn. */
void roomd_call_cancel(struct roomd_client *client, struct roomd_call *call);
/* Frees the answer and zeroes what the library wrote. Fine on a zeroed call; never while it is under way. */
void roomd_call_clear(struct roomd_call *call);

/*
 * A request is copied before the function returns; it may point into the answer of the same call's last use.
 * Requests: NULL, 0 and false mean "not given", unless a pointer to a number says that 0 has a meaning of its own.
 * Answers (may be NULL) are filled before done, on ROOMD_OK only. JSON texts are slices: p, n, no NUL counted.
 * Source of fields and limits: docs/protocol.md#service-calls.
 */
struct roomd_texts {
    const char *const *p;
    size_t n;
};
/* ROOMD_TEXTS("alice", "bob") */
#define ROOMD_TEXTS(...)                                                                                      \
    {                                                                                                         \
        (const char *const[]){__VA_ARGS__}, sizeof((const char *const[]){__VA_ARGS__}) / sizeof(const char *) \
    }

struct roomd_entry {  /* of the log; which fields are there depends on the type */
    const char *type; /* "message", "member.joined", … */
    const char *room_id;
    uint64_t epoch, seq;
    int64_t at;
    const char *message_id, *client_msg_id, *sender, *kind, *state;
    struct roomd_text content; /* JSON */
    int64_t sent_at;
    uint64_t quote_seq, target_seq;
    struct roomd_texts mentions, account_ids;
    const char *by, *role, *reason;
    struct roomd_text json; /* all of it, as a stream sends it */
};

struct roomd_room {
    const char *room_id, *key, *kind, *name, *notice, *owner, *history, *state, *head;
    uint64_t members, member_limit;
    struct roomd_text extra; /* JSON */
    int64_t last_at, created_at, muted_until;
    /* in room/ListRooms only */
    uint64_t read_seq, unread, mentioned;
    const struct roomd_entry *last; /* NULL: none */
};

/* --- room/Create */
struct roomd_room_create {
    const char *kind, *key, *name, *owner;
    struct roomd_texts members;
    uint64_t member_limit;
    const char *history;
    const char *extra; /* a JSON object */
};
struct roomd_room_created {
    struct roomd_room room;
    bool created;
};
void roomd_room_create(struct roomd_client *client, struct roomd_call *call, const struct roomd_room_create *request,
    struct roomd_room_created *answer);

/* --- room/Get: one by room_id or key, or many by room_ids */
struct roomd_room_get {
    const char *room_id, *key;
    struct roomd_texts room_ids;
};
struct roomd_room_got {
    struct roomd_room room;
    const struct roomd_room *rooms;
    size_t room_count;
};
void roomd_room_get(struct roomd_client *client, struct roomd_call *call, const struct roomd_room_get *request,
    struct roomd_room_got *answer);

/* --- room/Update */
struct roomd_room_update {
    const char *room_id, *name, *notice, *owner, *extra, *by;
    const uint64_t *member_limit; /* NULL: as it is; 0: none */
};
struct roomd_room_updated {
    struct roomd_room room;
};
void roomd_room_update(struct roomd_client *client, struct roomd_call *call, const struct roomd_room_update *request,
    struct roomd_room_updated *answer);

/* --- room/Remove */
struct roomd_room_remove {
    const char *room_id, *reason, *by;
};
void roomd_room_remove(struct roomd_client *client, struct roomd_call *call, const struct roomd_room_remove *request);

/* --- room/AddAccount2Room, RmAccountFromRoom */
struct roomd_room_add_accounts {
    const char *room_id, *role, *by;
    struct roomd_texts account_ids;
};
struct roomd_room_accounts_added {
    struct roomd_texts added, already;
};
void roomd_room_add_accounts(struct roomd_client *client, struct roomd_call *call,
    const struct roomd_room_add_accounts *request, struct roomd_room_accounts_added *answer);

struct roomd_room_rm_accounts {
    const char *room_id, *reason, *by;
    struct roomd_texts account_ids;
};
struct roomd_room_accounts_removed {
    struct roomd_texts removed, absent;
};
void roomd_room_rm_accounts(struct roomd_client *client, struct roomd_call *call,
    const struct roomd_room_rm_accounts *request, struct roomd_room_accounts_removed *answer);

/* --- room/Mute: no account_ids = the whole room. Exactly one of until and for_ms */
struct roomd_room_mute {
    const char *room_id, *by;
    struct roomd_texts account_ids;
    const uint64_t *until; /* Unix ms; 0: may speak again */
    uint64_t for_ms;
};
struct roomd_room_muted {
    struct roomd_texts muted, absent;
};
void roomd_room_mute(struct roomd_client *client, struct roomd_call *call, const struct roomd_room_mute *request,
    struct roomd_room_muted *answer);

/* --- room/SetRole */
struct roomd_room_set_role {
    const char *room_id, *role, *by;
    struct roomd_texts account_ids;
};
struct roomd_room_role_set {
    struct roomd_texts changed, absent;
};
void roomd_room_set_role(struct roomd_client *client, struct roomd_call *call,
    const struct roomd_room_set_role *request, struct roomd_room_role_set *answer);

/* --- room/ListAccounts: a page, or only account_ids. next NULL: the last page */
struct roomd_room_list_accounts {
    const char *room_id, *after;
    uint64_t limit;
    struct roomd_texts account_ids;
    uint64_t has_read; /* only those who have read up to this seq */
};
struct roomd_member {
    const char *account_id, *role;
    int64_t joined_at, muted_until;
    uint64_t join_seq, read_seq;
};
struct roomd_room_accounts {
    const struct roomd_member *accounts;
    size_t account_count;
    const char *next;
};
void roomd_room_list_accounts(struct roomd_client *client, struct roomd_call *call,
    const struct roomd_room_list_accounts *request, struct roomd_room_accounts *answer);

/* --- room/ListRooms */
struct roomd_room_list_rooms {
    const char *account_id, *after;
    uint64_t limit;
};
struct roomd_room_rooms {
    const struct roomd_room *rooms;
    size_t room_count;
    const char *next;
};
void roomd_room_list_rooms(struct roomd_client *client, struct roomd_call *call,
    const struct roomd_room_list_rooms *request, struct roomd_room_rooms *answer);

/* --- history/Push: through an instance, for who has no broker at hand. Else roomd_send */
struct roomd_history_push {
    const char *room_id, *sender, *kind;
    const char *text, *content; /* as in roomd_message */
    const char *client_msg_id;  /* NULL: one is made, so that a retry is safe */
    int64_t sent_at;
    struct roomd_texts mentions;
    uint64_t quote_seq;
    bool transient;
    const char *wait; /* "confirmed", "sequenced", "durable" */
};
struct roomd_history_pushed {
    const char *message_id, *client_msg_id;
    uint64_t seq; /* when waited for */
    bool duplicate;
};
void roomd_history_push(struct roomd_client *client, struct roomd_call *call, const struct roomd_history_push *request,
    struct roomd_history_pushed *answer);

/* --- history/Pull: after, or before, or neither (the latest) */
struct roomd_history_pull {
    const char *room_id, *account_id;
    const char *after; /* cursor */
    uint64_t before, limit;
    uint64_t wait_ms; /* long poll; the call's deadline counts from its end */
};
struct roomd_history_pulled {
    const struct roomd_entry *entries;
    size_t entry_count;
    const char *head;
    uint64_t durable_seq;
    bool more;
    const char *reset; /* cursor; NULL: none */
};
void roomd_history_pull(struct roomd_client *client, struct roomd_call *call, const struct roomd_history_pull *request,
    struct roomd_history_pulled *answer);

/* --- history/PullByActiveConnection: named rooms, or all */
struct roomd_position {
    const char *room_id;
    const char *after; /* cursor; NULL: live only */
};
struct roomd_history_open {
    const char *account_id;
    const struct roomd_position *rooms;
    size_t room_count;
    bool all;
    const char *deliver, *platform;
    uint64_t ttl_ms;
};
struct roomd_endpoint {
    const char *instance, *url;
};
struct roomd_room_head {
    const char *room_id, *head;
};
struct roomd_history_opened {
    const struct roomd_endpoint *endpoints; /* best first */
    size_t endpoint_count;
    const char *websocket_path, *sse_path, *ndjson_path, *poll_path;
    const char *ticket;
    int64_t expires_at;
    uint64_t heartbeat_ms, backoff_base_ms, backoff_factor, backoff_max_ms;
    const struct roomd_room_head *rooms;
    size_t room_count;
};
void roomd_history_open(struct roomd_client *client, struct roomd_call *call, const struct roomd_history_open *request,
    struct roomd_history_opened *answer);

/* --- history/Edit, Recall, Delete: seq or message_id */
struct roomd_history_edit {
    const char *room_id, *account_id, *message_id;
    uint64_t seq;
    const char *text, *content; /* as in roomd_message */
};
struct roomd_history_recall {
    const char *room_id, *account_id, *message_id;
    uint64_t seq;
};
struct roomd_history_delete {
    const char *room_id, *account_id, *message_id;
    uint64_t seq;
    const char *scope; /* "all", "me" */
};
struct roomd_history_changed {
    uint64_t seq; /* of the new entry; 0: none */
};
void roomd_history_edit(struct roomd_client *client, struct roomd_call *call, const struct roomd_history_edit *request,
    struct roomd_history_changed *answer);
void roomd_history_recall(struct roomd_client *client, struct roomd_call *call,
    const struct roomd_history_recall *request, struct roomd_history_changed *answer);
void roomd_history_delete(struct roomd_client *client, struct roomd_call *call,
    const struct roomd_history_delete *request, struct roomd_history_changed *answer);

/* --- history/MarkRead, Unread */
struct roomd_history_mark_read {
    const char *room_id, *account_id;
    uint64_t read_seq;
};
struct roomd_history_marked {
    uint64_t read_seq, unread;
};
void roomd_history_mark_read(struct roomd_client *client, struct roomd_call *call,
    const struct roomd_history_mark_read *request, struct roomd_history_marked *answer);

struct roomd_history_unread {
    const char *account_id;
    struct roomd_texts room_ids;
};
struct roomd_unread_room {
    const char *room_id;
    uint64_t head_seq, read_seq, unread, mentioned;
};
struct roomd_history_unread_of {
    const struct roomd_unread_room *rooms;
    size_t room_count;
    uint64_t total;
};
void roomd_history_unread(struct roomd_client *client, struct roomd_call *call,
    const struct roomd_history_unread *request, struct roomd_history_unread_of *answer);

/* --- history/Typing: the room's streams are told that the account types */
struct roomd_history_typing {
    const char *room_id, *account_id;
};
void roomd_history_typing(
    struct roomd_client *client, struct roomd_call *call, const struct roomd_history_typing *request);

/* --- proxy/Online, Connections: who is connected, on all instances; `missing` of them did not answer */
struct roomd_platform_streams {
    const char *platform;
    uint64_t streams;
};
struct roomd_proxy_online {
    struct roomd_texts account_ids;
};
struct roomd_online_account {
    const char *account_id;
    uint64_t streams; /* 0: not connected; more than those of `platforms` when some were opened without one */
    const struct roomd_platform_streams *platforms;
    size_t platform_count;
};
struct roomd_proxy_online_accounts {
    const struct roomd_online_account *accounts; /* as asked, in this order */
    size_t account_count;
    uint64_t missing;
};
void roomd_proxy_online(struct roomd_client *client, struct roomd_call *call, const struct roomd_proxy_online *request,
    struct roomd_proxy_online_accounts *answer);

struct roomd_proxy_connections {
    const char *room_id;
};
struct roomd_proxy_room_connections {
    uint64_t streams;
    const struct roomd_platform_streams *platforms;
    size_t platform_count;
    uint64_t missing;
};
void roomd_proxy_connections(struct roomd_client *client, struct roomd_call *call,
    const struct roomd_proxy_connections *request, struct roomd_proxy_room_connections *answer);

/* --- proxy/Kick: the account's streams end everywhere. "timeout": not everywhere yet; repeat it. Whoever is to stay
 * out must get no new ticket; see docs/protocol.md. */
struct roomd_proxy_kick {
    const char *account_id;
    const char *platform; /* NULL: all */
    const char *reason;   /* the message of the error event; may be NULL */
};
struct roomd_proxy_kicked {
    uint64_t closed;
};
void roomd_proxy_kick(struct roomd_client *client, struct roomd_call *call, const struct roomd_proxy_kick *request,
    struct roomd_proxy_kicked *answer);

/* ------------------------------------------------------------------ streams */

/*
 * Which endpoint to try, and when: in the answer's order, and after each round of failures a pause that doubles, with
 * full jitter. Pure: for gateways that proxy the stream themselves.
 *
 *   struct roomd_walk walk = {0};
 *   size_t i = roomd_walk_next(&walk, &answer, random_number, &wait_ms);   — wait, then try answer.endpoints[i]
 *
 * Zero it again once a stream was open.
 */
struct roomd_walk {
    uint32_t tries;
};
size_t roomd_walk_next(
    struct roomd_walk *walk, const struct roomd_history_opened *answer, uint64_t random_number, int64_t *wait_ms);

/*
 * An open stream of events (NDJSON). It tries the endpoints in order, with pauses, until one opens or the ticket is too
 * old; once it was open and ends, it is ended: ask for a new ticket with your cursors.
 */
struct roomd_stream;
struct roomd_stream_events {
    /* One event, without the line feed; borrowed for the call. */
    void (*event)(void *arg, const char *json, size_t n);
    /*
     * The stream is over and freed. No callback afterwards.
     *   ROOMD_OK           it was open and ended, or fell silent for two heartbeats
     *   ROOMD_UNAVAILABLE  no endpoint opened before the ticket ran out
     *   else               refused, with the service's sentence
     */
    void (*ended)(void *arg, enum roomd_code code, const char *message);
};
/* `answer` is copied. NULL: no memory. The stream is valid until ended() or roomd_stream_close, and
 * from inside both. */
struct roomd_stream *roomd_stream_open(struct roomd_client *client, const struct roomd_history_opened *answer,
    const struct roomd_stream_events *events, void *arg);
/* Ends it; ended() is not called. Fine from inside event(). */
void roomd_stream_close(struct roomd_stream *stream);

#ifdef __cplusplus
}
#endif

#endif
