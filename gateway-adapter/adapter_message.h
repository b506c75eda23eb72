/*
 * What a message must look like before it is sent, and its body. Thread: pure functions. Memory: nothing is kept; the
 * body's is its owner's, and body->failed says that there was not enough.
 * Source: docs/protocol.md#messages.
 */
#ifndef ROOMD_ADAPTER_MESSAGE_H
#define ROOMD_ADAPTER_MESSAGE_H

#include "adapter.h"

enum { ADAPTER_SHARD_MAX_BYTES = 8, ADAPTER_ROOM_ID_MAX_BYTES = 40 };

struct adapter_problem {
    enum roomd_code code; /* ROOMD_OK: none */
    const char *field, *text;
};

/* ROOMD_BAD_REQUEST, or ROOMD_NO_SUCH_ROOM for a text that can be no room's id. */
struct adapter_problem adapter_message_problem(const struct roomd_message *message);
/* The JSON of a message without a problem, in place of what was in `body`. false: the content is larger. */
bool adapter_message_write(
    struct adapter_buf *body, const struct roomd_message *message, const char *client_msg_id, size_t content_max_bytes);

#endif
