/* Broker bodies: whatever comes is read or refused with a sentence, and what is read is what the entry can show. */
#include <assert.h>

#include "history/entry.h"
#include "history/envelope.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct envelope_source source = {.shard = STR("s01"), .content_max_bytes = 4096};
    struct envelope *envelope;
    const char *why = NULL;
    enum err err;

    if (!size)
        return 0;
    source.from_op_exchange = data[0] & 1;
    if (data[0] & 2)
        source.content_type = STR("application/msgpack");
    err = envelope_read(&envelope, (struct str){(const char *)data + 1, size - 1}, &source, &why);
    assert(envelope && (err == ERR_OK || (why && *why)));
    if (!err && !envelope->op) {
        struct entry *entry = entry_new(&(struct entry_parts){.room_id = envelope->room_id,
            .type = ENTRY_MESSAGE,
            .message_id = envelope->message_id,
            .client_msg_id = envelope->client_msg_id,
            .sender = envelope->sender,
            .kind = envelope->kind,
            .content = envelope->content,
            .meta = envelope->meta});
        struct json json;

        assert(json_check(entry_json(entry), &json, &why));
        entry_drop(entry);
    }
    envelope_free(envelope);
    return 0;
}
