/*
 * Files are the BaseService's; the gateway passes them through, piece by piece: it holds 64 KiB of one, whatever its
 * size. Up: from a session, at most upload_max_bytes, counted before a byte is read. Down: to who may read the message
 * that names the file. The gateway keeps no list of who sent what: the request says in which message the file is, and
 * roomd shows that message to this account or does not.
 *
 *   up    CONNECT ─▶ head ─▶ piece ─▶ written ─▶ piece … ─▶ the answer
 *   down  Pull ─▶ CONNECT ─▶ head ─▶ its head ─▶ piece ─▶ written ─▶ piece …
 */
#include "gateway.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "answer.h"
#include "room/base/log.h"
#include "room/base/mem.h"

#define QUIET_MS 30000 /* nothing moves for so long: it is given up */
#define HEAD_MAX_BYTES 16384
#define ANSWER_MAX_BYTES 65536
#define RECENT 500     /* entries that are looked through when the request does not name the message */
#define SETTLE_MS 2000 /* a message is shown before it is in the log; its picture is asked for at once */
#define FILE_ID_MAX 128

struct transfer {
    struct list link;
    struct gateway *gateway;
    struct http_reply *reply; /* until answered */
    struct http_reply *down;  /* the same once its answer has begun, until that is over */
    struct conn *base;        /* NULL: not begun, or over */
    uv_timer_t timer;
    struct buf request; /* the head */
    struct buf answer;  /* the BaseService's head, and its body as far as it is not passed on */
    int64_t left;       /* up: of the body; down: of the answer's body, < 0 to the end of the connection */
    size_t body_at;
    int status;
    bool up, head_only, ended, closing;
    bool closed; /* the timer is */
};

static void on_connected(void *owner);
static void on_sent(void *owner);
static void on_piece(void *arg, struct str bytes);
static void on_base_read(void *owner);
static void on_base_ended(void *owner, const char *why);
static void on_base_head(struct transfer *transfer);
static void pass_down(struct transfer *transfer);
static void transfer_end(struct transfer *transfer);

/* ------------------------------------------------------------------------------------------------------- transfers */

static void transfer_free(struct transfer *transfer)
{
    if (!transfer->closed || transfer->down)
        return;
    list_remove(&transfer->link);
    buf_clear(&transfer->request);
    buf_clear(&transfer->answer);
    free(transfer);
}

static void on_closed(uv_handle_t *handle)
{
    struct transfer *transfer = handle->data;

    transfer->closed = true;
    transfer_free(transfer);
}

/* The one way out; what is still owed is said. */
static void transfer_end(struct transfer *transfer)
{
    struct http_reply *reply = transfer->reply;

    transfer->reply = NULL;
    if (reply)
        http_reply_error(reply, ERR_UNAVAILABLE, NULL, "files cannot be reached at the moment; try again");
    if (transfer->closing)
        return;
    if (transfer->down)
        http_reply_break(transfer->down); /* on_left follows */
    transfer->closing = true;
    conn_drop(transfer->base);
    transfer->base = NULL;
    uv_close((uv_handle_t *)&transfer->timer, on_closed);
}

static void on_quiet(uv_timer_t *timer)
{
    struct transfer *transfer = timer->data;

    log_warn("file.quiet", "up=%d left=%" PRId64, (int)transfer->up, transfer->left);
    transfer_end(transfer);
}

static void moved(struct transfer *transfer)
{
    if (!transfer->closing)
        uv_timer_start(&transfer->timer, on_quiet, QUIET_MS, 0);
}

static const struct conn_events base_events = {
    .connected = on_connected, .received = on_base_read, .drained = on_sent, .broken = on_base_ended};

static void transfer_start(struct transfer *transfer)
{
    list_push_back(&transfer->gateway->transfers, &transfer->link);
    uv_timer_init(transfer->gateway->loop, &transfer->timer);
    transfer->timer.data = transfer;
    moved(transfer);
    transfer->base = base_connect(transfer->gateway, &base_events, transfer);
}

void transfers_close(struct gateway *gateway)
{
    struct transfer *transfer;

    list_for_each (transfer, &gateway->transfers, link)
        transfer_end(transfer);
}

static void write_head(struct transfer *transfer, const char *method, const char *path)
{
    buf_printf(&transfer->request, "%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nConnection: close\r\n",
        method, path, transfer->gateway->base.authority, transfer->gateway->settings->base_key);
}

static bool is_plain(struct str text)
{
    for (size_t i = 0; i < text.n; i++)
        if ((unsigned char)text.p[i] < ' ' || (unsigned char)text.p[i] >= 0x7f)
            return false;
    return text.n < 300;
}

/* Up it goes; on_sent follows when the socket has taken it. */
static void push(struct transfer *transfer, struct str bytes)
{
    moved(transfer);
    buf_add_str(conn_out(transfer->base), bytes);
    conn_flush(transfer->base);
}

static void on_connected(void *owner)
{
    struct transfer *transfer = owner;

    push(transfer, buf_str(&transfer->request));
}

/* The next piece is asked for when the last one has gone: a slow BaseService makes a slow upload, not a full memory. */
static void on_sent(void *owner)
{
    struct transfer *transfer = owner;

    buf_clear(&transfer->request);
    if (transfer->reply && transfer->up && transfer->left)
        http_reply_read(transfer->reply, on_piece, transfer);
}

static void on_piece(void *arg, struct str bytes)
{
    struct transfer *transfer = arg;

    if (!bytes.n) { /* the frontend is gone; the BaseService forgets what it has */
        transfer_end(transfer);
        return;
    }
    transfer->left -= (int64_t)bytes.n;
    if (transfer->base)
        push(transfer, bytes);
}

static struct str head_of(const struct transfer *transfer)
{
    return (struct str){transfer->answer.p, transfer->body_at};
}

static void answer_up(struct transfer *transfer)
{
    struct str body = {transfer->answer.p + transfer->body_at, transfer->answer.n - transfer->body_at};
    int64_t length = answer_length(head_of(transfer));
    struct http_reply *reply = transfer->reply;

    if (length > ANSWER_MAX_BYTES || transfer->answer.n > ANSWER_MAX_BYTES) {
        transfer_end(transfer);
    } else if (transfer->ended ? length < 0 || body.n >= (size_t)length : length >= 0 && body.n >= (size_t)length) {
        if (transfer->status != 401 && transfer->status < 500) { /* our own key is not the frontend's business */
            transfer->reply = NULL;
            http_reply_json(reply, transfer->status, body);
        }
        transfer_end(transfer);
    } else if (transfer->ended) {
        transfer_end(transfer);
    }
}

static void go_on(struct transfer *transfer)
{
    moved(transfer);
    if (!transfer->body_at)
        on_base_head(transfer);
    else if (transfer->up)
        answer_up(transfer);
    else
        pass_down(transfer);
}

static void on_base_read(void *owner)
{
    struct transfer *transfer = owner;
    struct str bytes = conn_in(transfer->base);

    buf_add_str(&transfer->answer, bytes);
    conn_consume(transfer->base, bytes.n);
    go_on(transfer);
}

static void on_base_ended(void *owner, const char *why)
{
    struct transfer *transfer = owner;

    if (!transfer->answer.n && !transfer->body_at)
        log_warn("base.connect", "url=%s error=%s", transfer->gateway->settings->base_url, log_quote(str_of(why)));
    transfer->ended = true;
    go_on(transfer);
}

static void on_more(void *arg);
static void on_left(void *arg);

/* Its headers, then its body as it comes. */
static void begin_down(struct transfer *transfer)
{
    static const char *const names[] = {"content-type", "content-range", "accept-ranges", "etag", "last-modified",
        "cache-control", "content-disposition", "content-security-policy", "x-content-type-options"};
    int64_t length = answer_length(head_of(transfer));
    struct buf value = {0};

    for (size_t i = 0; i < countof(names); i++) {
        buf_reset(&value);
        buf_add_str(&value, answer_header(head_of(transfer), names[i]));
        buf_char(&value, '\0');
        if (*value.p)
            http_reply_header(transfer->reply, names[i], value.p);
    }
    buf_clear(&value);
    transfer->left = transfer->head_only || transfer->status == 304 ? 0 : length;
    buf_consume(&transfer->answer, transfer->body_at);
    conn_pause(transfer->base, true);
    transfer->down = transfer->reply;
    transfer->reply = NULL;
    if (!http_reply_begin(transfer->down, transfer->status, length, on_more, on_left, transfer)) {
        transfer->down = NULL;
        transfer_end(transfer);
        return;
    }
    pass_down(transfer);
}

static void on_base_head(struct transfer *transfer)
{
    struct buf *answer = &transfer->answer;

    transfer->body_at = answer_head(buf_str(answer), &transfer->status);
    if (!transfer->body_at && (transfer->ended || answer->n > HEAD_MAX_BYTES)) {
        transfer_end(transfer);
        return;
    }
    if (!transfer->body_at)
        return;
    if (transfer->up && transfer->status == 100) { /* we did not ask for it, but it may come */
        buf_consume(answer, transfer->body_at);
        transfer->body_at = 0;
        on_base_head(transfer);
    } else if (transfer->up) {
        answer_up(transfer);
    } else if (transfer->status == 200 || transfer->status == 206 || transfer->status == 304 ||
               transfer->status == 416) {
        begin_down(transfer);
    } else {
        if (transfer->status == 404) {
            http_reply_error(transfer->reply, ERR_NO_SUCH_MESSAGE, NULL, "there is no such file");
            transfer->reply = NULL;
        }
        transfer_end(transfer);
    }
}

/* ---------------------------------------------------------------------------------------------------- the way down */

/* Either a piece is on its way down, or the next one is awaited, or it is over. */
static void pass_down(struct transfer *transfer)
{
    struct buf *answer = &transfer->answer;
    struct str piece = buf_str(answer);
    bool last;

    if (transfer->left >= 0 && (int64_t)piece.n > transfer->left)
        piece.n = (size_t)transfer->left;
    if (transfer->left >= 0)
        transfer->left -= (int64_t)piece.n;
    last = transfer->left == 0 || (transfer->left < 0 && transfer->ended);
    if (!piece.n && !last && transfer->ended) { /* shorter than it said: only a broken connection tells */
        transfer_end(transfer);
    } else if (!piece.n && !last) {
        conn_pause(transfer->base, false);
    } else {
        struct http_reply *down = transfer->down;

        conn_pause(transfer->base, true);
        if (last)
            transfer->down = NULL;
        http_reply_piece(down, piece, last);
        if (last)
            transfer_end(transfer);
    }
}

static void on_more(void *arg)
{
    struct transfer *transfer = arg;

    buf_reset(&transfer->answer);
    moved(transfer);
    pass_down(transfer);
}

static void on_left(void *arg)
{
    struct transfer *transfer = arg;

    transfer->down = NULL;
    transfer_end(transfer);
    transfer_free(transfer);
}

/* ------------------------------------------------------------------------------------------------------------- up */

void file_upload(struct gateway *gateway, struct http_request *request, struct http_reply *reply)
{
    int64_t most = gateway->settings->upload_max_bytes;
    struct str type = http_header(request, "content-type"), kind;
    struct transfer *transfer;
    struct buf scratch = {0}, path = {0};

    if (request->raw_bytes < 0) {
        http_reply_error(reply, ERR_BAD_REQUEST, NULL, "send the file as body, with a Content-Length");
    } else if (request->raw_bytes > most) {
        http_reply_error(reply, ERR_TOO_LARGE, NULL, "a file has at most %" PRId64 " bytes", most);
    } else if (!http_query_param(request, "kind", 0, &scratch, &kind) || !is_plain(kind) || !is_plain(type)) {
        http_reply_error(reply, ERR_BAD_REQUEST, "kind", "kind is image, voice, video or file");
    } else {
        transfer = xcalloc(1, sizeof *transfer);
        transfer->gateway = gateway;
        transfer->reply = reply;
        transfer->up = true;
        transfer->left = request->raw_bytes;
        buf_text(&path, "/files?kind=");
        add_percent(&path, kind);
        buf_char(&path, '\0');
        write_head(transfer, "POST", path.p);
        buf_printf(&transfer->request, "Content-Type: %.*s\r\nContent-Length: %" PRId64 "\r\n\r\n",
            STR_ARG(type.n ? type : STR("application/octet-stream")), transfer->left);
        gateway->uploads_total++;
        transfer_start(transfer);
    }
    buf_clear(&path);
    buf_clear(&scratch);
}

/* ----------------------------------------------------------------------------------------------------------- down */

/* Is `file_id` named anywhere in this JSON? */
static bool names_file(struct json value, const char *file_id)
{
    struct json_walk walk = json_walk(value);
    struct json_member member;
    struct json item;
    struct buf scratch = {0};
    struct str text;
    bool found = false;

    while (!found && value.type == JSON_ARRAY && json_next_item(&walk, &item))
        found = names_file(item, file_id);
    while (!found && value.type == JSON_OBJECT && json_next_member(&walk, &member)) {
        buf_reset(&scratch);
        if (member.value.type == JSON_STRING)
            found =
                json_key_is(&member, "file_id") && json_string(member.value, &scratch, &text) && str_is(text, file_id);
        else
            found = names_file(member.value, file_id);
    }
    buf_clear(&scratch);
    return found;
}

static bool entry_names(const struct roomd_entry *entry, const char *file_id)
{
    struct json content;
    const char *why;

    return entry->content.n && json_check((struct str){entry->content.p, entry->content.n}, &content, &why) &&
           names_file(content, file_id);
}

struct wanted {
    struct transfer *transfer;
    const char *file_id;
    uint64_t seq; /* 0: any recent one */
};

static void on_message(struct roomd_call *call)
{
    struct ask *ask = container_of(call, struct ask, call);
    struct wanted *wanted = (struct wanted *)(void *)(uintptr_t)ask->text;
    struct transfer *transfer = wanted->transfer; /* outlives the ask */
    bool found = false;

    for (size_t i = 0; call->code == ROOMD_OK && !found && i < ask->pulled.entry_count; i++)
        found = (!wanted->seq || ask->pulled.entries[i].seq == wanted->seq) &&
                entry_names(&ask->pulled.entries[i], wanted->file_id);
    if (found) {
        transfer->reply = ask_leave(ask);
        transfer_start(transfer);
        return;
    }
    buf_clear(&transfer->request);
    free(transfer);
    if (call->code == ROOMD_UNAVAILABLE || call->code == ROOMD_TIMEOUT)
        ask_fail(ask);
    else
        ask_refuse(ask, ERR_NO_SUCH_MESSAGE, NULL, "no message here that you may read holds this file");
}

static void ask_message(struct ask *ask, const struct wanted *wanted)
{
    struct roomd_history_pull pull = {.room_id = ask->room_id, .account_id = ask->account, .limit = RECENT};
    char after[24];

    if (wanted->seq) {
        snprintf(after, sizeof after, "%" PRIu64, wanted->seq - 1);
        pull.after = ask_copy(ask, str_of(after));
        pull.limit = 1;
        pull.wait_ms = SETTLE_MS;
    }
    ask_call(ask, NULL);
    ask->call.done = on_message;
    roomd_history_pull(ask->gateway->client, &ask->call, &pull, &ask->pulled);
}

/* ?seq=: the message that names it; without, one of the latest. */
void file_download(struct ask *ask)
{
    static const char *const passed[] = {"range", "if-range", "if-none-match", "if-modified-since"};
    bool ok = true, head = ask->request->method == HTTP_HEAD;
    struct wanted *wanted = ask_keep(ask, sizeof *wanted);
    struct buf path = {0};

    wanted->seq = ask_param_number(ask, "seq", INT64_MAX, 0, &ok);
    if (!ok)
        return;
    wanted->file_id = ask->item;
    if (strlen(ask->item) > FILE_ID_MAX) {
        ask_refuse(ask, ERR_NO_SUCH_MESSAGE, NULL, "there is no such file");
        return;
    }
    wanted->transfer = xcalloc(1, sizeof *wanted->transfer);
    wanted->transfer->gateway = ask->gateway;
    wanted->transfer->head_only = head;
    buf_text(&path, "/files/");
    add_percent(&path, str_of(ask->item));
    buf_char(&path, '\0');
    write_head(wanted->transfer, head ? "HEAD" : "GET", path.p);
    buf_clear(&path);
    for (size_t i = 0; i < countof(passed); i++) {
        struct str value = http_header(ask->request, passed[i]);

        if (value.n && is_plain(value))
            buf_printf(&wanted->transfer->request, "%s: %.*s\r\n", passed[i], STR_ARG(value));
    }
    buf_text(&wanted->transfer->request, "\r\n");
    ask->text = (const char *)wanted;
    ask->gateway->downloads_total++;
    ask_message(ask, wanted);
}
