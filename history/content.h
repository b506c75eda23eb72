/*
 * What each kind of message must look like, and what is derived from it. Kinds we do not know pass as they are.
 * Source: docs/protocol.md#kinds. Thread: pure functions.
 */
#ifndef ROOMD_HISTORY_CONTENT_H
#define ROOMD_HISTORY_CONTENT_H

#include "room/base/err.h"
#include "room/base/json.h"

#define FILE_ID_MAX_BYTES 128
#define RICH_TEXT_PARTS_MAX 500
#define MENTIONS_MAX 100
#define FORWARD_MESSAGES_MAX 100
#define FORWARD_DEPTH_MAX 3 /* a forward of a forward of a forward */

struct content_facts {
    uint64_t quote_seq;  /* 0 = none */
    struct json quote;   /* where it stood, for the error text */
    struct buf mentions; /* JSON array text, empty = none; the caller's to clear */
    size_t mention_count;
    bool mentions_all;
    char field[96]; /* of a refusal: "content.parts[2].type" */
};

/*
 * Check checked JSON `content` for `kind` and fill `facts` (zeroed by the caller).
 *   ERR_BAD_REQUEST: *why is a sentence that names the part, good until the next call; facts->field is its path
 */
MUST_USE enum err content_check(struct str kind, struct json content, struct content_facts *facts, const char **why);

/* Adds one mention (an account or "@all") when it is not there yet; false: not an account, or too many. */
MUST_USE bool content_add_mention(struct content_facts *facts, struct json account);

#endif
