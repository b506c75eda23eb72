#include "gateway.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "room/base/mem.h"

static void ask_free(struct ask *ask);
static const char *refuse_field(struct ask *ask, const char *name, bool *ok, const char *format, ...) PRINTF_LIKE(4, 5);

struct kept {
    struct list link;
    max_align_t bytes[];
};

void *ask_keep(struct ask *ask, size_t n)
{
    struct kept *kept = xcalloc(1, sizeof *kept + n);

    list_push_back(&ask->memory, &kept->link);
    return kept->bytes;
}

const char *ask_copy(struct ask *ask, struct str text)
{
    char *copy = ask_keep(ask, text.n + 1);

    memcpy(copy, text.p ? text.p : "", text.n);
    return copy;
}

/* --------------------------------------------------------------------------------------------------------- fields */

/* Handlers read field after field and ask once whether all was well: the ask must still be there until they return. */
static const char *refuse_field(struct ask *ask, const char *name, bool *ok, const char *format, ...)
{
    char what[200];
    va_list args;

    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    *ok = false;
    ask->gateway->refused_total++;
    http_reply_error(ask->reply, ERR_BAD_REQUEST, name, "%s must be %s", name, what);
    list_remove(&ask->link);
    list_push_back(&ask->gateway->answered, &ask->link);
    return NULL;
}

const char *ask_text(struct ask *ask, const char *name, size_t max, bool *ok)
{
    struct json value = *ok && ask->body.n ? json_get(ask->body, name) : (struct json){.type = JSON_NONE};
    struct buf scratch = {0};
    const char *copy = NULL;
    struct str text;

    if (value.type == JSON_NONE || value.type == JSON_NULL)
        return NULL;
    if (value.type == JSON_STRING && json_string(value, &scratch, &text) && text.n <= max)
        copy = ask_copy(ask, text);
    buf_clear(&scratch);
    if (copy)
        return copy;
    return refuse_field(ask, name, ok, "a text of at most %zu bytes", max);
}

const char *ask_raw(struct ask *ask, const char *name, bool *ok)
{
    struct json value = *ok && ask->body.n ? json_get(ask->body, name) : (struct json){.type = JSON_NONE};

    return value.type == JSON_NONE ? NULL : ask_copy(ask, (struct str){value.p, value.n});
}

uint64_t ask_number(struct ask *ask, const char *name, uint64_t most, bool *ok)
{
    struct json value = *ok && ask->body.n ? json_get(ask->body, name) : (struct json){.type = JSON_NONE};
    int64_t number;

    if (value.type == JSON_NONE || value.type == JSON_NULL)
        return 0;
    if (json_integer(value, &number) && number >= 0 && (uint64_t)number <= most)
        return (uint64_t)number;
    refuse_field(ask, name, ok, "a whole number that is not negative");
    return 0;
}

bool ask_flag(struct ask *ask, const char *name, bool *ok)
{
    struct json value = *ok && ask->body.n ? json_get(ask->body, name) : (struct json){.type = JSON_NONE};

    if (value.type == JSON_TRUE || value.type == JSON_FALSE || value.type == JSON_NONE)
        return value.type == JSON_TRUE;
    refuse_field(ask, name, ok, "true or false");
    return false;
}

struct roomd_texts ask_texts(struct ask *ask, const char *name, size_t most, bool *ok)
{
    struct json value = *ok && ask->body.n ? json_get(ask->body, name) : (struct json){.type = JSON_NONE}, item;
    struct buf scratch = {0};
    struct json_walk walk;
    const char **texts;
    struct str text;
    size_t n = 0;

    if (value.type == JSON_NONE || value.type == JSON_NULL)
        return (struct roomd_texts){0};
    texts = ask_keep(ask, (most + 1) * sizeof *texts);
    walk = json_walk(value);
    while (*ok && value.type == JSON_ARRAY && json_next_item(&walk, &item)) {
        buf_reset(&scratch);
        if (n == most || item.type != JSON_STRING || !json_string(item, &scratch, &text))
            *ok = false;
        else
            texts[n++] = ask_copy(ask, text);
    }
    buf_clear(&scratch);
    if (*ok && value.type == JSON_ARRAY)
        return (struct roomd_texts){texts, n};
    refuse_field(ask, name, ok, "an array of at most %zu texts", most);
    return (struct roomd_texts){0};
}

const char *ask_param(struct ask *ask, const char *name)
{
    struct buf scratch = {0};
    struct str value;
    const char *copy =
        query_find(str_of(ask->query ? ask->query : ""), name, 0, &scratch, &value) ? ask_copy(ask, value) : NULL;

    buf_clear(&scratch);
    return copy;
}

uint64_t ask_param_number(struct ask *ask, const char *name, uint64_t most, uint64_t fallback, bool *ok)
{
    const char *text = *ok ? ask_param(ask, name) : NULL;
    uint64_t number = 0;

    if (!text)
        return fallback;
    for (const char *at = text; *at; at++) {
        if (*at < '0' || *at > '9' || number > most / 10 + 1) {
            refuse_field(ask, name, ok, "a whole number");
            return 0;
        }
        number = number * 10 + (uint64_t)(*at - '0');
    }
    if (!*text || number > most)
        refuse_field(ask, name, ok, "a whole number in its bounds");
    return number;
}

/* -------------------------------------------------------------------------------------------------------- answers */

void asks_forget(struct gateway *gateway)
{
    struct list *at;

    while ((at = list_pop_front(&gateway->answered)))
        ask_free(list_entry(at, struct ask, link));
}

static void ask_free(struct ask *ask)
{
    struct list *at;

    list_remove(&ask->link);
    while ((at = list_pop_front(&ask->memory)))
        free(list_entry(at, struct kept, link));
    roomd_call_clear(&ask->call);
    buf_clear(&ask->out);
    free(ask);
}

void ask_json(struct ask *ask, struct str json)
{
    http_reply_json(ask->reply, 200, json);
    ask_free(ask);
}

struct http_reply *ask_leave(struct ask *ask)
{
    struct http_reply *reply = ask->reply;

    ask_free(ask);
    return reply;
}

void ask_done(struct ask *ask)
{
    ask_json(ask, STR("{}"));
}

void ask_refuse(struct ask *ask, enum err err, const char *field, const char *format, ...)
{
    char message[300];
    va_list args;

    ask->gateway->refused_total++;
    if (format) {
        va_start(args, format);
        vsnprintf(message, sizeof message, format, args);
        va_end(args);
    }
    http_reply_error(ask->reply, err, field, format ? "%s" : NULL, message);
    ask_free(ask);
}

/* The adapter has the service's codes; the table of errors is the same. */
static enum err err_of(enum roomd_code code)
{
    const char *name = roomd_code_name(code);

    for (int i = 1; i < ERR_COUNT; i++)
        if (strcmp(err_code((enum err)i), name) == 0)
            return (enum err)i;
    return ERR_UNAVAILABLE;
}

static void refuse_code(struct ask *ask, enum roomd_code code, const char *field, const char *message)
{
    /* Our own key is not the frontend's business. */
    bool ours = code == ROOMD_UNAUTHENTICATED || code == ROOMD_NO_SUCH_METHOD || code == ROOMD_BAD_ANSWER;

    ask_refuse(ask, ours ? ERR_UNAVAILABLE : err_of(code), field, message && *message && !ours ? "%s" : NULL, message);
}

void ask_fail(struct ask *ask)
{
    refuse_code(ask, ask->call.code, ask->call.field, ask->call.message);
}

void ask_refuse_code(struct ask *ask, enum roomd_code code, const char *field, const char *message)
{
    refuse_code(ask, code, field, message);
}

static void on_call(struct roomd_call *call)
{
    struct ask *ask = container_of(call, struct ask, call);

    if (call->code == ROOMD_OK)
        ask->then(ask);
    else
        ask_fail(ask);
}

void ask_call(struct ask *ask, void (*then)(struct ask *ask))
{
    roomd_call_clear(&ask->call);
    ask->call = (struct roomd_call){.done = on_call, .deadline_ms = ask->gateway->settings->call_timeout_ms};
    ask->then = then;
}
