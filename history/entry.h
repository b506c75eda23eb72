/*
 * An entry: one seq of one room's log, encoded once as the JSON event that streams and Pull show, then shared by all
 * who hold it and never changed. Counted; thread: the loop's.
 */
#ifndef ROOMD_HISTORY_ENTRY_H
#define ROOMD_HISTORY_ENTRY_H

#include "room/base/buf.h"
#include "room/base/ulid.h"

/* Stored as smallint: never renumber. */
enum entry_type {
    ENTRY_VOID = 0,
    ENTRY_MESSAGE = 1,
    ENTRY_EDITED = 2,
    ENTRY_RECALLED = 3,
    ENTRY_DELETED = 4,
    ENTRY_JOINED = 5,
    ENTRY_LEFT = 6,
    ENTRY_UPDATED = 7,
    ENTRY_REMOVED = 8,
    ENTRY_MEMBER_UPDATED = 9, /* another role, muted */
    ENTRY_TYPES
};

struct entry {
    uint32_t holders;
    uint32_t n; /* length of json */
    int64_t room_no;
    uint64_t epoch, seq;
    uint64_t at;      /* server time, unix ms; never falls as seq rises */
    uint64_t counted; /* running number of counted messages in the room */
    enum entry_type type;
    char json[]; /* {"type":"message",…}: one line, no NUL at the end */
};

/* What an entry is made of; all slices are borrowed for the call. */
struct entry_parts {
    struct str room_id;
    int64_t room_no;
    uint64_t epoch, seq, at, counted;
    enum entry_type type;
    struct id128 message_id;
    struct str client_msg_id, sender, kind;
    struct str content; /* messages: JSON value; others: members without braces, may be empty */
    struct str meta;    /* messages and edits: further members without braces (an edit's content is there, so that a
                         * recall can take it away); others: not shown */
    int state;          /* 0 as sent, 1 edited, 2 recalled, 3 deleted: the latter two show no content */
};

struct entry *entry_new(const struct entry_parts *parts);
struct entry *entry_hold(struct entry *entry);
void entry_drop(struct entry *entry); /* NULL is allowed */
/* Line breaks in checked JSON become blanks: an event is one line on every transport. */
void one_line(char *json, size_t n);
const char *entry_type_name(enum entry_type type); /* "message", "member.joined", … */
/* The same entry as its store shows it once its message is recalled or deleted: a message's tombstone with that state
 * (2, 3), an edit without its content. The caller's. */
struct entry *entry_tombstone(const struct entry *entry, int state);
/* What an account sees of an entry in a room whose members see only what came since their join (first_seq; 0: all): an
 * edit of a message before that shows no content. `entry` itself, held once more, or a tombstone. The caller's. */
struct entry *entry_since(struct entry *entry, uint64_t first_seq);
bool entry_hides_since(const struct entry *entry, uint64_t first_seq); /* would that be another one? */
/* What an edit, recall or delete changes: its target_seq; 0: the entry is none of these. */
uint64_t entry_target(const struct entry *entry);

/* The accounts of a member.joined or member.left (account_ids), one by one; slices are good for the call. */
void entry_accounts(const struct entry *entry, void (*each)(void *arg, struct str account), void *arg);
bool entry_message_id(const struct entry *entry, struct id128 *id); /* false: no message */

static inline struct str entry_json(const struct entry *entry)
{
    return (struct str){entry->json, entry->n};
}

/* Cursors and positions (docs/protocol.md#words). */
#define CURSOR_TEXT_MAX 48
struct cursor {
    uint64_t epoch; /* UINT64_MAX: a bare seq of unknown epoch */
    uint64_t seq;
};
bool cursor_read(struct cursor *cursor, struct str text);                        /* "3:57" or "57" */
size_t cursor_write(char text[CURSOR_TEXT_MAX], struct cursor cursor);           /* length; NUL-terminated */
bool position_read(struct str text, struct str *room_id, struct cursor *cursor); /* "<room_id>@3:57" */

#endif
