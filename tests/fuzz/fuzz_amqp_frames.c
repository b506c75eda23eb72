/* Any bytes as what a broker sends: frames, and in them everything we decode. Nothing is read out of bounds, and what
 * is found lies in the input. */
#include "room/base/amqp_codec.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must_lie_in(struct str part, struct str whole)
{
    if (part.n && (part.p < whole.p || part.p + part.n > whole.p + whole.n))
        abort();
}

static void read_method(struct str payload, amqp_pool_t *pool)
{
    struct codec_deliver deliver;
    struct codec_confirm confirm;
    bool plain;

    if (codec_read_deliver(payload, &deliver)) {
        must_lie_in(deliver.exchange, payload);
        must_lie_in(deliver.routing_key, payload);
    }
    (void)!codec_read_confirm(payload, &confirm);
    (void)!codec_read_start(payload, &plain);
    codec_decode(payload, pool);
    recycle_amqp_pool(pool);
}

static void read_header(struct str payload)
{
    struct codec_content content;
    uint64_t tag;

    if (!codec_read_content(payload, &content))
        return;
    must_lie_in(content.content_type, payload);
    must_lie_in(content.content_encoding, payload);
    must_lie_in(content.correlation_id, payload);
    must_lie_in(content.message_id, payload);
    codec_read_hex(content.correlation_id, &tag);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct str in = {(const char *)data, size};
    struct codec_frame frame;
    amqp_pool_t pool;
    ptrdiff_t n;

    init_amqp_pool(&pool, 4096);
    /* Without a frame around it too: the fuzzer need not find out about end bytes first. */
    read_method(in, &pool);
    read_header(in);
    while ((n = codec_read_frame(in, CODEC_FRAME_MIN_MAX, &frame)) > 0) {
        must_lie_in(frame.payload, in);
        if (frame.type == CODEC_METHOD)
            read_method(frame.payload, &pool);
        else if (frame.type == CODEC_HEADER)
            read_header(frame.payload);
        in.p += n;
        in.n -= (size_t)n;
    }
    empty_amqp_pool(&pool);
    return 0;
}
