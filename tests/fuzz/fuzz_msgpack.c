/* Any bytes as MessagePack: nothing is read out of bounds, no header makes memory grow beyond what the body could fill,
 * and what comes out is JSON unless a key stands twice; packed and unpacked again it is the same. */
#include "room/base/json.h"
#include "room/base/msgpack.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool claim)
{
    if (!claim)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct buf json = {0}, packed = {0}, again = {0};
    const char *why = NULL;
    struct json value;

    if (!msgpack_to_json((struct str){(const char *)data, size}, &json, &why)) {
        must(why && *why && json.n == 0);
    } else if (json_check(buf_str(&json), &value, &why)) {
        must(msgpack_from_json(buf_str(&json), &packed));
        must(packed.n <= 2 * size + 16);
        must(msgpack_to_json(buf_str(&packed), &again, &why));
        must(str_eq(buf_str(&json), buf_str(&again)));
    } else {
        must(strstr(why, "stands twice") != NULL);
    }
    buf_clear(&json);
    buf_clear(&packed);
    buf_clear(&again);
    return 0;
}
