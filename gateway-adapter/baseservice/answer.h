/*
 * What a request says and what an answer's head looks like: the parts of HTTP that baseservice needs, apart from
 * sockets. Thread: pure functions. Memory: a request points into the head it was read from.
 */
#ifndef BASESERVICE_ANSWER_H
#define BASESERVICE_ANSWER_H

#include "files.h"
#include "room/base/http_guard.h"

struct request {
    struct str method, path, query, headers; /* headers: whole lines */
};

/* `head` was checked where it stood at `from`; the request points to the copy at `copy`. */
void request_read(struct request *request, const char *copy, const struct http_head *head, const char *from);
struct str request_header(const struct request *request, const char *name); /* any case; p NULL: absent */
bool request_lists(const struct request *request, const char *name, const char *word);
struct str request_param(const struct request *request, const char *name); /* as sent; p NULL: absent */
/* %-decodes behind what is in scratch, whose memory must not move afterwards: reserve it. false: badly encoded. */
MUST_USE bool param_decode(struct str *value, struct buf *scratch);

struct file_range {
    int status; /* 200, 206, 304, 416 */
    uint64_t first, bytes;
};
/* One range is served, several and other units are ignored (RFC 9110 14.2); If-Range and If-None-Match by
 * tag or date. */
struct file_range range_of(const struct request *request, const char *id, const struct file_facts *facts);

void json_head_write(struct buf *out, int status, size_t bytes, bool keep);
void file_head_write(
    struct buf *out, const char *id, const struct file_facts *facts, const struct file_range *range, bool keep);
void facts_write(struct buf *out, const char *id, const struct file_facts *facts); /* a JSON object */

#endif
