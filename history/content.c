#define _GNU_SOURCE /* memmem */
#include "content.h"

#include <stdio.h>

#include "room/name.h"

typedef bool (*kind_check)(struct json content, struct content_facts *facts);

static char reason[160];

static bool refuse(const char *sentence)
{
    snprintf(reason, sizeof reason, "%s", sentence);
    return false;
}

static bool refuse_part(const char *list, size_t index, const char *sentence)
{
    snprintf(reason, sizeof reason, "content.%s[%zu] %s", list, index, sentence);
    return false;
}

static bool plain_string(struct json value)
{
    return value.type == JSON_STRING && value.n > 2;
}

static bool check_text(struct json content, struct content_facts *facts)
{
    (void)facts;
    if (content.type == JSON_STRING)
        return true;
    if (content.type == JSON_OBJECT && json_get(content, "body").type == JSON_STRING)
        return true;
    return refuse("content of a text must be a string, or an object with a string \"body\"");
}

static bool check_file(struct json content, struct content_facts *facts)
{
    struct json id = content.type == JSON_OBJECT ? json_get(content, "file_id") : (struct json){0};

    (void)facts;
    if (plain_string(id) && id.n - 2 <= FILE_ID_MAX_BYTES)
        return true;
    return refuse("content must be an object with \"file_id\", the id of a file at the BaseService (1-128 bytes)");
}

/* The JSON text of an account string, as it may stand in a mentions array. */
static bool mention_add(struct content_facts *facts, struct str account)
{
    struct buf *list = &facts->mentions;
    struct buf text = {0};
    bool known;

    buf_json_string(&text, account);
    known = list->n && memmem(list->p, list->n, text.p, text.n);
    if (!known && facts->mention_count < MENTIONS_MAX) {
        if (list->n)
            list->p[list->n - 1] = ',';
        else
            buf_char(list, '[');
        buf_add(list, text.p, text.n);
        buf_char(list, ']');
        facts->mention_count++;
        known = true;
    }
    buf_clear(&text);
    return known;
}

bool content_add_mention(struct content_facts *facts, struct json account)
{
    struct buf scratch = {0};
    struct str text;
    bool ok = account.type == JSON_STRING && json_string(account, &scratch, &text) &&
              (account_valid(text) || str_is(text, "@all")) && mention_add(facts, text);

    buf_clear(&scratch);
    return ok;
}

static bool check_mention(struct json part, size_t index, struct content_facts *facts)
{
    struct json type = json_get(part, "mention_type"), user = json_get(part, "user_id");
    struct buf scratch = {0};
    struct str text = {0};
    bool all = type.type == JSON_STRING && json_string(type, &scratch, &text) && str_is(text, "all");

    buf_clear(&scratch);
    if (all)
        return mention_add(facts, STR("@all")) || refuse_part("parts", index, "is one mention too many");
    if (user.type == JSON_NONE)
        return refuse_part("parts", index, "is a mention without user_id or mention_type \"all\"");
    return content_add_mention(facts, user) ||
           refuse_part("parts", index, "mentions no valid account, or one too many");
}

static bool check_part(struct json part, size_t index, struct content_facts *facts)
{
    struct buf scratch = {0};
    struct str type = {0};
    struct json value = part.type == JSON_OBJECT ? json_get(part, "type") : (struct json){0};
    bool mention, text;

    if (!plain_string(value) || !json_string(value, &scratch, &type)) {
        buf_clear(&scratch);
        return refuse_part("parts", index, "must be an object with a string \"type\"");
    }
    mention = str_is(type, "mention");
    text = str_is(type, "text");
    buf_clear(&scratch);
    if (text && json_get(part, "body").type != JSON_STRING && json_get(part, "text").type != JSON_STRING)
        return refuse_part("parts", index, "is a text without a string \"body\"");
    return !mention || check_mention(part, index, facts);
}

static bool check_rich_text(struct json content, struct content_facts *facts)
{
    struct json parts = content.type == JSON_OBJECT ? json_get(content, "parts") : (struct json){0};
    struct json_walk walk;
    struct json part;
    size_t index = 0;
    int64_t seq;

    if (parts.type != JSON_ARRAY)
        return refuse("content of a rich_text must be an object with an array \"parts\"");
    walk = json_walk(parts);
    for (; json_next_item(&walk, &part); index++) {
        if (index == RICH_TEXT_PARTS_MAX)
            return refuse("content.parts has more than 500 parts");
        if (!check_part(part, index, facts))
            return false;
    }
    facts->quote = json_get(content, "quote_message_seq");
    if (facts->quote.type == JSON_NONE || facts->quote.type == JSON_NULL)
        return true;
    if (!json_integer(facts->quote, &seq) || seq < 1)
        return refuse("content.quote_message_seq must be a seq of the room");
    facts->quote_seq = (uint64_t)seq;
    return true;
}

static bool check_forward(struct json content, struct content_facts *facts)
{
    struct json messages, message, part;
    struct json_walk walk;
    size_t index = 0;

    (void)facts;
    if (content.type != JSON_OBJECT)
        return refuse("content of a forward must be an object");
    messages = json_get(content, "messages");
    if (messages.type == JSON_NONE)
        return true; /* a single forward: the business's own form */
    if (messages.type != JSON_ARRAY)
        return refuse("content.messages must be an array");
    walk = json_walk(messages);
    for (; json_next_item(&walk, &message); index++) {
        if (index == FORWARD_MESSAGES_MAX)
            return refuse("content.messages has more than 100 messages");
        part = message.type == JSON_OBJECT ? json_get(message, "content") : (struct json){0};
        if (part.type != JSON_OBJECT && part.type != JSON_STRING)
            return refuse_part("messages", index, "must be an object with \"content\"");
        if (part.type == JSON_OBJECT && json_get(part, "type").type != JSON_STRING)
            return refuse_part("messages", index, "has a content without a string \"type\"");
    }
    return index ? true : refuse("content.messages is empty");
}

static const struct {
    const char *kind;
    kind_check check;
} kinds[] = {
    {"text", check_text},
    {"image", check_file},
    {"voice", check_file},
    {"video", check_file},
    {"file", check_file},
    {"rich_text", check_rich_text},
    {"forward", check_forward},
};

enum err content_check(struct str kind, struct json content, struct content_facts *facts, const char **why)
{
    for (size_t i = 0; i < countof(kinds); i++) {
        if (!str_is(kind, kinds[i].kind))
            continue;
        if (kinds[i].check(content, facts))
            return ERR_OK;
        *why = reason;
        return ERR_BAD_REQUEST;
    }
    return ERR_OK;
}
