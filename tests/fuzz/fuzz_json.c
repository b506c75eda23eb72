/* Any bytes as JSON: nothing is read out of bounds, what is accepted can be walked to the last value, and jansson,
 * which is about as strict, agrees on what is JSON. */
#define JSON_OBJECT JANSSON_OBJECT
#define JSON_ARRAY JANSSON_ARRAY
#define JSON_STRING JANSSON_STRING
#define JSON_TRUE JANSSON_TRUE
#define JSON_FALSE JANSSON_FALSE
#define JSON_NULL JANSSON_NULL
#include <jansson.h>
#undef JSON_OBJECT
#undef JSON_ARRAY
#undef JSON_STRING
#undef JSON_TRUE
#undef JSON_FALSE
#undef JSON_NULL

#include "room/base/json.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool claim)
{
    if (!claim)
        abort();
}

static size_t depth_of(struct json value)
{
    struct json_walk walk = json_walk(value);
    struct buf scratch = {0};
    struct json_member member;
    struct json item;
    struct str text;
    size_t deepest = 0;

    if (value.type == JSON_STRING) {
        must(json_string(value, &scratch, &text));
        must(utf8_valid(text) && (text.n == 0 || !memchr(text.p, '\0', text.n)));
    }
    if (value.type == JSON_OBJECT) {
        while (json_next_member(&walk, &member)) {
            size_t depth = depth_of(member.value);
            char *copy;

            deepest = depth > deepest ? depth : deepest;
            buf_reset(&scratch);
            must(json_string(
                (struct json){member.key.p - 1, member.key.n + 2, JSON_STRING, member.key_escaped}, &scratch, &text));
            copy = xstrndup(text.p, text.n);
            must(json_key_is(&member, copy));
            free(copy);
        }
    }
    if (value.type == JSON_ARRAY) {
        while (json_next_item(&walk, &item)) {
            size_t depth = depth_of(item);

            deepest = depth > deepest ? depth : deepest;
        }
    }
    must(walk.at == walk.end);
    buf_clear(&scratch);
    return deepest + (value.type == JSON_OBJECT || value.type == JSON_ARRAY);
}

static bool says(const json_error_t *error, const char *words)
{
    return strstr(error->text, words) != NULL;
}

static void compare_with_jansson(struct str text, bool accepted, const char *why)
{
    json_error_t error;
    json_t *root;

    if (text.n == 0 || memchr(text.p, '\0', text.n))
        return; /* jansson takes a NUL byte for the end of the text */
    root = json_loadb(text.p, text.n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    /* We bound the depth at 32, jansson at 2048; it cannot hold large numbers, we need not. */
    if (root && !accepted)
        must(strstr(why, "deeper than 32") != NULL);
    if (!root && accepted)
        must(says(&error, "too big") || says(&error, "number overflow"));
    json_decref(root);
}

static void check_integer(struct json value)
{
    struct buf again = {0};
    int64_t number;

    if (!json_integer(value, &number))
        return;
    buf_i64(&again, number);
    must(str_eq(buf_str(&again), (struct str){value.p, value.n}) || number == 0);
    buf_clear(&again);
}

/* What was handed out while checking is what a walk finds afterwards. */
static void check_members(struct json object, const struct json_member *members, size_t max, size_t count)
{
    struct json_walk walk = json_walk(object);
    struct json_member found;
    size_t n = 0;

    for (; json_next_member(&walk, &found); n++) {
        if (n >= max)
            continue;
        must(members[n].key.p == found.key.p && members[n].key.n == found.key.n);
        must(members[n].key_escaped == found.key_escaped);
        must(members[n].value.p == found.value.p && members[n].value.n == found.value.n);
        must(members[n].value.type == found.value.type && members[n].value.escaped == found.value.escaped);
    }
    must(n == count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct str text = {(const char *)data, size};
    struct json_member members[4];
    struct json value;
    const char *why = NULL, *object_why = NULL;
    size_t count;
    bool accepted = json_check(text, &value, &why);
    bool object = json_object_read(text, members, countof(members), &count, &object_why);

    must(object == (accepted && value.type == JSON_OBJECT));
    must(accepted || (why && *why));
    must(object || (object_why && *object_why));
    (void)utf8_valid(text);
    if (accepted) {
        must(depth_of(value) <= JSON_DEPTH_MAX);
        check_integer(value);
    }
    if (object)
        check_members(value, members, countof(members), count);
    compare_with_jansson(text, accepted, why);
    return 0;
}
