/*
 * MessagePack at the border, JSON inside: one meaning for both. Maps with string keys only; bin, ext, NaN and
 * infinities are refused. The JSON text that comes out is then checked like any other (duplicate keys, UTF-8). Library:
 * msgpack-c. Thread: pure functions.
 */
#ifndef ROOMD_BASE_MSGPACK_H
#define ROOMD_BASE_MSGPACK_H

#include "buf.h"

/* Adds the JSON text of the one value in `packed` to `out`; false with a static sentence in *why. Bounded depth. */
MUST_USE bool msgpack_to_json(struct str packed, struct buf *out, const char **why);

/* Adds the MessagePack form of a JSON text written by us (checked) to `out`. */
MUST_USE bool msgpack_from_json(struct str text, struct buf *out);

#endif
