#define _GNU_SOURCE /* memmem */
#include "content.h"

#include <assert.h>
#include <stdio.h>

#include "room/name.h"

/*
 * A check says no with a sentence and the way to the part it is about. The innermost one names the member (refuse), and
 * each one around it adds where it looked (under, under_item): a good content costs no text at all.
 */
typedef bool (*kind_check)(struct json content, struct content_facts *facts, int depth);

static const char *refusal; /* without its subject */
static char reason[256];

static bool check_kind(struct str kind, struct json content, struct content_facts *facts, int depth, bool sent);

static bool under(struct content_facts *facts, const char *member)
{
    char inner[sizeof facts->field];
    int n;

    memcpy(inner, facts->field, sizeof inner);
    n = snprintf(facts->field, sizeof facts->field, "%s%s%s", member, *inner ? "." : "", inner);
    assert(n > 0 && (size_t)n < sizeof facts->field); /* the longest way through FORWARD_DEPTH_MAX fits */
    return false;
}

static bool under_item(struct content_facts *facts, const char *list, size_t index)
{
    char item[32];

    snprintf(item, sizeof item, "%s[%zu]", list, index);
    return under(facts, item);
}

static bool refuse(struct content_facts *facts, const char *member, const char *sentence)
{
    refusal = sentence;
    facts->field[0] = '\0';
    return *member ? under(facts, member) : false;
}

static bool plain_string(struct json value)
{
    return value.type == JSON_STRING && value.n > 2;
}

static bool check_text(struct json content, struct content_facts *facts, int depth)
{
    (void)depth;
    if (content.type == JSON_STRING)
        return true;
    if (content.type != JSON_OBJECT)
        return refuse(facts, "", "of a text must be a string, or an object with a string \"body\"");
    return json_get(content, "body").type == JSON_STRING || refuse(facts, "body", "of a text must be a string");
}

static bool check_file(struct json content, struct content_facts *facts, int depth)
{
    struct json id;

    (void)depth;
    if (content.type != JSON_OBJECT)
        return refuse(facts, "", "must be an object with \"file_id\", the id of a file at the BaseService");
    id = json_get(content, "file_id");
    if (plain_string(id) && id.n - 2 <= FILE_ID_MAX_BYTES)
        return true;
    return refuse(facts, "file_id", "must be the id of a file at the BaseService, 1-128 bytes");
}

/* -------------------------------------------------------------------------------------------------------- mentions */

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
        facts->mentions_all |= str_is(account, "@all");
        known = true;
    }
    buf_clear(&text);
    return known;
}

static bool is_mention(struct json account, struct buf *scratch, struct str *text)
{
    return account.type == JSON_STRING && json_string(account, scratch, text) &&
           (account_valid(*text) || str_is(*text, "@all"));
}

bool content_add_mention(struct content_facts *facts, struct json account)
{
    struct buf scratch = {0};
    struct str text;
    bool ok = is_mention(account, &scratch, &text) && mention_add(facts, text);

    buf_clear(&scratch);
    return ok;
}

/* ------------------------------------------------------------------------------------------------------- rich_text */

/* What is forwarded mentioned somebody where it was said; here it mentions nobody. */
static bool check_mention(struct json part, struct content_facts *facts, int depth)
{
    struct json type = json_get(part, "mention_type"), user = json_get(part, "user_id");
    struct buf scratch = {0};
    struct str text = {0};
    bool all = type.type == JSON_STRING && json_string(type, &scratch, &text) && str_is(text, "all"), valid, added;

    buf_reset(&scratch);
    valid = all || is_mention(user, &scratch, &text);
    added = valid && (depth || mention_add(facts, all ? STR("@all") : text));
    buf_clear(&scratch);
    if (!valid)
        return refuse(facts, "user_id", "of a mention must be an account, or mention_type \"all\"");
    return added || refuse(facts, "", "is one mention too many: a message mentions at most 100 accounts");
}

static bool check_part(struct json part, struct content_facts *facts, int depth)
{
    struct buf scratch = {0};
    struct str type = {0};
    struct json value;
    bool mention, text;

    if (part.type != JSON_OBJECT)
        return refuse(facts, "", "must be an object with a string \"type\"");
    value = json_get(part, "type");
    if (!plain_string(value) || !json_string(value, &scratch, &type)) {
        buf_clear(&scratch);
        return refuse(facts, "type", "must be a string, such as \"text\" or \"mention\"");
    }
    mention = str_is(type, "mention");
    text = str_is(type, "text");
    buf_clear(&scratch);
    if (text && json_get(part, "body").type != JSON_STRING && json_get(part, "text").type != JSON_STRING)
        return refuse(facts, "body", "of a text must be a string");
    return !mention || check_mention(part, facts, depth);
}

static bool check_quote(struct json content, struct content_facts *facts, int depth)
{
    struct json quote = json_get(content, "quote_message_seq");
    int64_t seq;

    if (quote.type == JSON_NONE || quote.type == JSON_NULL)
        return true;
    if (!json_integer(quote, &seq) || seq < 1)
        return refuse(facts, "quote_message_seq", "must be a seq of the room");
    if (!depth) {
        facts->quote = quote;
        facts->quote_seq = (uint64_t)seq;
    }
    return true;
}

static bool check_rich_text(struct json content, struct content_facts *facts, int depth)
{
    struct json parts = content.type == JSON_OBJECT ? json_get(content, "parts") : (struct json){0}, part;
    struct json_walk walk;
    size_t index = 0;

    if (content.type != JSON_OBJECT)
        return refuse(facts, "", "of a rich_text must be an object with an array \"parts\"");
    if (parts.type != JSON_ARRAY)
        return refuse(facts, "parts", "must be an array");
    for (walk = json_walk(parts); json_next_item(&walk, &part); index++) {
        if (index == RICH_TEXT_PARTS_MAX)
            return refuse(facts, "parts", "has more than 500 parts");
        if (!check_part(part, facts, depth))
            return under_item(facts, "parts", index);
    }
    return check_quote(content, facts, depth);
}

/* --------------------------------------------------------------------------------------------------------- forward */

/* What was said elsewhere, by value. Its content names its kind; a picture may come without its file. */
static bool check_forwarded(struct json message, struct content_facts *facts, int depth)
{
    struct buf scratch = {0};
    struct json content, type;
    struct str kind;
    bool good;

    if (message.type != JSON_OBJECT)
        return refuse(facts, "", "must be an object with \"content\"");
    content = json_get(message, "content");
    if (content.type == JSON_STRING)
        return true;
    if (content.type != JSON_OBJECT)
        return refuse(facts, "content", "must be an object with a string \"type\", or a string");
    type = json_get(content, "type");
    if (!plain_string(type) || !json_string(type, &scratch, &kind)) {
        buf_clear(&scratch);
        return refuse(facts, "content.type", "must be a string, such as \"text\" or \"image\"");
    }
    good = check_kind(kind, content, facts, depth + 1, false) || under(facts, "content");
    buf_clear(&scratch);
    return good;
}

static bool check_messages(struct json messages, struct content_facts *facts, int depth)
{
    struct json_walk walk;
    struct json message;
    size_t index = 0;

    if (messages.type != JSON_ARRAY)
        return refuse(facts, "messages", "must be an array");
    for (walk = json_walk(messages); json_next_item(&walk, &message); index++) {
        if (index == FORWARD_MESSAGES_MAX)
            return refuse(facts, "messages", "has more than 100 messages");
        if (!check_forwarded(message, facts, depth))
            return under_item(facts, "messages", index);
    }
    return index || refuse(facts, "messages", "is empty");
}

static bool check_forward(struct json content, struct content_facts *facts, int depth)
{
    struct json type, messages;
    struct buf scratch = {0};
    struct str name = {0};
    bool merged, single;

    if (content.type != JSON_OBJECT)
        return refuse(facts, "", "of a forward must be an object");
    if (depth == FORWARD_DEPTH_MAX)
        return refuse(facts, "", "is a forward in a forward in a forward: deeper than forwards may be");
    type = json_get(content, "forward_type");
    messages = json_get(content, "messages");
    merged = type.type == JSON_STRING && json_string(type, &scratch, &name) && str_is(name, "merged");
    single = !merged && name.n && str_is(name, "single");
    buf_clear(&scratch);
    if (type.type != JSON_NONE && !merged && !single)
        return refuse(facts, "forward_type", "must be \"merged\" or \"single\"");
    if (merged && messages.type == JSON_NONE)
        return refuse(facts, "messages", "is missing: a merged forward holds what it forwards");
    return messages.type == JSON_NONE || check_messages(messages, facts, depth);
}

/* ----------------------------------------------------------------------------------------------------------- kinds */

static const struct {
    const char *kind;
    kind_check check;
    bool forwarded; /* is also checked inside a forward */
} kinds[] = {
    {"text", check_text, true},
    {"image", check_file, false},
    {"voice", check_file, false},
    {"video", check_file, false},
    {"file", check_file, false},
    {"rich_text", check_rich_text, true},
    {"forward", check_forward, true},
};

static bool check_kind(struct str kind, struct json content, struct content_facts *facts, int depth, bool sent)
{
    for (size_t i = 0; i < countof(kinds); i++)
        if (str_is(kind, kinds[i].kind))
            return !(sent || kinds[i].forwarded) || kinds[i].check(content, facts, depth);
    return true;
}

enum err content_check(struct str kind, struct json content, struct content_facts *facts, const char **why)
{
    if (check_kind(kind, content, facts, 0, true))
        return ERR_OK;
    (void)under(facts, "content");
    snprintf(reason, sizeof reason, "%s %s", facts->field, refusal);
    *why = reason;
    return ERR_BAD_REQUEST;
}
