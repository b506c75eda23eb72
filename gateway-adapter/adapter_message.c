#include "adapter_message.h"

static bool id_valid(const char *text, size_t max)
{
    size_t n = strlen(text);

    if (n == 0 || n > max || !adapter_utf8_valid(text, n))
        return false;
    for (size_t i = 0; i < n; i++) /* C0, DEL, and C1, which begin with 0xc2 in UTF-8 */
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f ||
            ((unsigned char)text[i] == 0xc2 && (unsigned char)text[i + 1] < 0xa0))
            return false;
    return true;
}

static bool account_valid(const char *account)
{
    return id_valid(account, 64) && account[0] != '@';
}

/* s07.01KC46E0D7X8BQXSRB29FJP960 */
static bool room_id_valid(const char *id)
{
    size_t shard = strspn(id, "abcdefghijklmnopqrstuvwxyz0123456789"), n = strlen(id);

    return shard > 0 && shard <= ADAPTER_SHARD_MAX_BYTES && id[shard] == '.' && n == shard + 27 &&
           strspn(id + shard + 1, "0123456789ABCDEFGHJKMNPQRSTVWXYZ") == 26;
}

static bool kind_valid(const char *kind)
{
    size_t n = strlen(kind);

    return n > 0 && n <= 64 && strspn(kind, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./-") == n;
}

struct adapter_problem adapter_message_problem(const struct roomd_message *message)
{
    if (!message->room_id || !room_id_valid(message->room_id))
        return (struct adapter_problem){ROOMD_NO_SUCH_ROOM, "room_id", "this text can be no room's id"};
    if (!message->sender || (!account_valid(message->sender) && strcmp(message->sender, "@system") != 0))
        return (struct adapter_problem){
            ROOMD_BAD_REQUEST, "sender", "an account is 1 to 64 bytes of UTF-8, and no @ in front"};
    if (message->kind && !kind_valid(message->kind))
        return (struct adapter_problem){ROOMD_BAD_REQUEST, "kind", "a kind is 1 to 64 of A-Z a-z 0-9 _ . / -"};
    if (!message->kind && !message->text)
        return (struct adapter_problem){ROOMD_BAD_REQUEST, "kind", "content that is JSON needs a kind"};
    if (!message->text == !message->content)
        return (struct adapter_problem){ROOMD_BAD_REQUEST, "content", "text or content, and not both"};
    if (message->text && !adapter_utf8_valid(message->text, strlen(message->text)))
        return (struct adapter_problem){ROOMD_BAD_REQUEST, "content", "the text is not UTF-8"};
    if (message->content &&
        !adapter_json_valid(message->content, strlen(message->content), ADAPTER_JSON_CONTENT_DEPTH_MAX))
        return (struct adapter_problem){
            ROOMD_BAD_REQUEST, "content", "this is not JSON (one value, at most 31 levels)"};
    if (message->client_msg_id && !id_valid(message->client_msg_id, 64))
        return (struct adapter_problem){ROOMD_BAD_REQUEST, "client_msg_id", "1 to 64 bytes without control characters"};
    if (message->sent_at < 0)
        return (struct adapter_problem){ROOMD_BAD_REQUEST, "sent_at", "a time is not negative"};
    if (message->mention_count > 100)
        return (struct adapter_problem){ROOMD_BAD_REQUEST, "mentions", "at most 100"};
    for (size_t i = 0; i < message->mention_count; i++)
        if (!message->mentions[i] ||
            (!account_valid(message->mentions[i]) && strcmp(message->mentions[i], "@all") != 0))
            return (struct adapter_problem){ROOMD_BAD_REQUEST, "mentions", "accounts, or @all"};
    return (struct adapter_problem){ROOMD_OK, NULL, NULL};
}

static void body_text(struct adapter_buf *body, const char *name, const char *text)
{
    adapter_buf_text(body, name);
    adapter_json_string(body, text, strlen(text));
}

bool adapter_message_write(
    struct adapter_buf *body, const struct roomd_message *message, const char *client_msg_id, size_t content_max_bytes)
{
    size_t before;

    body->n = 0;
    body_text(body, "{\"room_id\":", message->room_id);
    body_text(body, ",\"sender\":", message->sender);
    body_text(body, ",\"kind\":", message->kind ? message->kind : "text");
    body_text(body, ",\"client_msg_id\":", client_msg_id);
    if (message->sent_at)
        adapter_buf_printf(body, ",\"sent_at\":%lld", (long long)message->sent_at);
    if (message->quote_seq)
        adapter_buf_printf(body, ",\"quote_seq\":%llu", (unsigned long long)message->quote_seq);
    for (size_t i = 0; i < message->mention_count; i++)
        body_text(body, i ? "," : ",\"mentions\":[", message->mentions[i]);
    adapter_buf_text(body, message->mention_count ? "]" : "");
    adapter_buf_text(body, message->transient ? ",\"transient\":true" : "");
    adapter_buf_text(body, ",\"content\":");
    before = body->n;
    if (message->text)
        adapter_json_string(body, message->text, strlen(message->text));
    else
        adapter_buf_text(body, message->content);
    if (body->n - before > content_max_bytes)
        return false;
    adapter_buf_text(body, "}");
    return true;
}
