/*
 * Who is connected: each instance knows its own streams, and a question goes to all that live. Nothing is stored, so
 * nothing outlives an instance.
 *
 *   question                                       answer of one instance
 *   online ["alice","bob"]                         [[0,"ios",2],[0,"",1],[1,"web",1]]   [account's place in the
 *                                                                                       question, platform, streams]
 *   connections s07.01KC…                          [[0,"ios",2],[0,"",1]]               the same; the place is 0
 *   kick {"account_id":…,"platform"?,"reason"?}    3                                    streams closed
 *
 * A reader that polls has no stream between two requests. For a moment it is kept as one that is absent: it counts, and
 * a kick meets it when it comes back.
 */
#include "core.h"

#include <inttypes.h>
#include <stdlib.h>

#define WITHIN_MS 1000 /* who has not answered until then does not */
#define ABSENT_MS 3000 /* a poll that is not followed by another one until then was the last */
#define ABSENT_ROOMS_MAX 1000

enum kind { ONLINE, CONNECTIONS, KICK };

/* Streams of one platform, of the account at this place of the question. */
struct row {
    uint32_t nth, streams;
    uint8_t n;
    char platform[PLATFORM_MAX_BYTES];
};

/* What is being found out. */
struct tally {
    struct proxy_survey *survey;
    enum kind kind;
    struct buf question;
    const struct str *accounts;
    struct str room_id;
    size_t account_count;
    struct row *rows;
    size_t count, capacity;
    uint64_t closed;
};

struct absent {
    struct map_link link;
    struct list age_link;
    uint32_t until;
    bool kicked;
    struct stream *stream; /* its next request, which is being let in; NULL: has not come */
    uint8_t account_n, platform_n;
    char account[ACCOUNT_MAX_BYTES], platform[PLATFORM_MAX_BYTES];
    uint32_t room_count;
    uint64_t rooms[]; /* hashes of their ids */
};

static void on_answered(struct history_survey *survey, struct str instance, struct str answer);
static void on_done(struct history_survey *survey, enum err err);
static void write_online(const struct tally *tally, struct buf *out);
static void write_connections(const struct tally *tally, struct buf *out);

/* ------------------------------------------------------- asking, step by step */

static struct tally *survey_begin(struct proxy *proxy, struct proxy_survey *survey, enum kind kind, const char *word)
{
    struct tally *tally = xcalloc(1, sizeof *tally);

    tally->survey = survey;
    tally->kind = kind;
    survey->proxy = proxy;
    survey->impl = tally;
    list_push_back(&proxy->surveys, &survey->link);
    buf_text(&tally->question, word);
    return tally;
}

static void survey_go(struct tally *tally)
{
    struct history_survey *survey = &tally->survey->survey;

    *survey = (struct history_survey){
        .question = buf_str(&tally->question), .within_ms = WITHIN_MS, .answered = on_answered, .done = on_done};
    history_survey_start(tally->survey->proxy->history, survey);
}

void proxy_ask_online(struct proxy *proxy, struct proxy_survey *survey, const struct str *accounts, size_t count)
{
    struct tally *tally = survey_begin(proxy, survey, ONLINE, "online [");

    tally->accounts = accounts;
    tally->account_count = count;
    for (size_t i = 0; i < count; i++) {
        if (i)
            buf_char(&tally->question, ',');
        buf_json_string(&tally->question, accounts[i]);
    }
    buf_char(&tally->question, ']');
    survey_go(tally);
}

void proxy_ask_connections(struct proxy *proxy, struct proxy_survey *survey, struct str room_id)
{
    struct tally *tally = survey_begin(proxy, survey, CONNECTIONS, "connections ");

    tally->room_id = room_id;
    buf_add_str(&tally->question, room_id);
    survey_go(tally);
}

void proxy_kick(
    struct proxy *proxy, struct proxy_survey *survey, struct str account, struct str platform, struct str reason)
{
    struct tally *tally = survey_begin(proxy, survey, KICK, "kick {\"account_id\":");

    buf_json_string(&tally->question, account);
    if (platform.n) {
        buf_text(&tally->question, ",\"platform\":");
        buf_json_string(&tally->question, platform);
    }
    if (reason.n) {
        buf_text(&tally->question, ",\"reason\":");
        buf_json_string(&tally->question, reason);
    }
    buf_char(&tally->question, '}');
    survey_go(tally);
}

static bool row_read(struct tally *tally, struct json item, struct buf *scratch)
{
    struct json part[3];
    struct json_walk walk = json_walk(item);
    int64_t nth, streams;
    struct str platform;
    struct row *row;

    for (size_t i = 0; i < countof(part); i++)
        if (item.type != JSON_ARRAY || !json_next_item(&walk, &part[i]))
            return false;
    buf_reset(scratch);
    if (!json_integer(part[0], &nth) || part[1].type != JSON_STRING || !json_string(part[1], scratch, &platform) ||
        !json_integer(part[2], &streams) || nth < 0 || nth > UINT32_MAX || streams < 0 || streams > UINT32_MAX ||
        platform.n > PLATFORM_MAX_BYTES)
        return false;
    if (tally->count == tally->capacity) {
        tally->capacity = tally->capacity ? tally->capacity * 2 : 16;
        tally->rows = xrealloc(tally->rows, tally->capacity * sizeof *tally->rows);
    }
    row = &tally->rows[tally->count++];
    memset(row, 0, sizeof *row);
    row->nth = (uint32_t)nth;
    row->streams = (uint32_t)streams;
    row->n = (uint8_t)platform.n;
    if (platform.n)
        memcpy(row->platform, platform.p, platform.n);
    return true;
}

/* It comes from a program like ours; an empty one from an instance that is just starting or ending. */
static void on_answered(struct history_survey *history_survey, struct str instance, struct str answer)
{
    struct proxy_survey *survey = container_of(history_survey, struct proxy_survey, survey);
    struct tally *tally = survey->impl;
    struct json value, item;
    struct json_walk walk;
    struct buf scratch = {0};
    const char *why;
    int64_t closed;
    bool good = !answer.n || json_check(answer, &value, &why);

    if (good && answer.n && tally->kind == KICK) {
        good = json_integer(value, &closed) && closed >= 0;
        tally->closed += good ? (uint64_t)closed : 0;
    } else if (good && answer.n) {
        good = value.type == JSON_ARRAY;
        for (walk = json_walk(value); good && json_next_item(&walk, &item);)
            good = row_read(tally, item, &scratch);
    }
    if (!good)
        log_warn("presence.answer", "instance=%.*s why=\"not understood\"", STR_ARG(instance));
    buf_clear(&scratch);
}

static void survey_end(struct tally *tally, enum err err, struct str json)
{
    struct proxy_survey *survey = tally->survey;

    list_remove(&survey->link);
    survey->impl = NULL;
    buf_clear(&tally->question);
    free(tally->rows);
    free(tally);
    survey->done(survey, err, json);
}

static void on_done(struct history_survey *history_survey, enum err err)
{
    struct proxy_survey *survey = container_of(history_survey, struct proxy_survey, survey);
    struct tally *tally = survey->impl;
    struct buf json = {0};

    survey->missing = history_survey->missing;
    if (err && !survey->missing) /* the others cannot be asked, and nobody counted them */
        survey->missing = 1;
    if (tally->kind == ONLINE)
        write_online(tally, &json);
    else if (tally->kind == CONNECTIONS)
        write_connections(tally, &json);
    else
        buf_printf(&json, "\"closed\":%" PRIu64, tally->closed);
    if (tally->kind != KICK)
        buf_printf(&json, ",\"missing\":%u", survey->missing);
    survey_end(tally, tally->kind == KICK && survey->missing ? ERR_TIMEOUT : ERR_OK, buf_str(&json));
    buf_clear(&json);
}

void presence_open(struct proxy *proxy)
{
    list_init(&proxy->surveys);
    map_init(&proxy->absents);
    list_init(&proxy->absents_by_age);
}

void presence_close(struct proxy *proxy)
{
    struct list *link;

    while (!list_empty(&proxy->surveys)) {
        struct proxy_survey *survey = list_entry(proxy->surveys.next, struct proxy_survey, link);

        history_survey_forget(&survey->survey);
        survey_end(survey->impl, ERR_CLOSED, STR(""));
    }
    while ((link = list_pop_front(&proxy->absents_by_age))) {
        struct absent *absent = list_entry(link, struct absent, age_link);

        if (absent->stream) /* not let in yet */
            absent->stream->absent = NULL;
        free(absent);
    }
    map_clear(&proxy->absents);
}

/* ---------------------------------------------------------------- in words */

static int row_compare(const void *left, const void *right)
{
    const struct row *a = left, *b = right;

    if (a->nth != b->nth)
        return a->nth < b->nth ? -1 : 1;
    return memcmp(a->platform, b->platform, sizeof a->platform);
}

/* "streams":3,"platforms":[{"platform":"ios","streams":2}] of the rows from `at` on that are about the nth; where they
 * end. Streams that said no platform are only in the sum. */
static size_t write_streams(const struct tally *tally, size_t at, size_t nth, struct buf *out)
{
    struct buf platforms = {0};
    uint64_t sum = 0;

    while (at < tally->count && tally->rows[at].nth == nth) {
        const struct row *first = &tally->rows[at];
        uint64_t streams = 0;

        for (; at < tally->count && row_compare(first, &tally->rows[at]) == 0; at++)
            streams += tally->rows[at].streams;
        sum += streams;
        if (!first->n || !streams)
            continue;
        buf_text(&platforms, platforms.n ? ",{\"platform\":" : "{\"platform\":");
        buf_json_string(&platforms, (struct str){first->platform, first->n});
        buf_printf(&platforms, ",\"streams\":%" PRIu64 "}", streams);
    }
    buf_printf(out, "\"streams\":%" PRIu64 ",\"platforms\":[", sum);
    buf_add_str(out, buf_str(&platforms));
    buf_char(out, ']');
    buf_clear(&platforms);
    return at;
}

static void rows_sort(const struct tally *tally)
{
    if (tally->count)
        qsort(tally->rows, tally->count, sizeof *tally->rows, row_compare);
}

static void write_online(const struct tally *tally, struct buf *out)
{
    size_t at = 0;

    rows_sort(tally);
    buf_text(out, "\"accounts\":[");
    for (size_t i = 0; i < tally->account_count; i++) {
        buf_text(out, i ? ",{\"account_id\":" : "{\"account_id\":");
        buf_json_string(out, tally->accounts[i]);
        buf_char(out, ',');
        at = write_streams(tally, at, i, out);
        buf_char(out, '}');
    }
    buf_char(out, ']');
}

static void write_connections(const struct tally *tally, struct buf *out)
{
    rows_sort(tally);
    buf_text(out, "\"room_id\":");
    buf_json_string(out, tally->room_id);
    buf_char(out, ',');
    write_streams(tally, 0, 0, out);
}

/* --------------------------------------------------------- polls in between */

static struct str account_of(const struct absent *absent)
{
    return (struct str){absent->account, absent->account_n};
}

static struct str platform_of(const struct absent *absent)
{
    return (struct str){absent->platform, absent->platform_n};
}

static struct str stream_platform(const struct stream *stream)
{
    return str_of(stream->platform ? stream->platform : "");
}

static void absent_free(struct proxy *proxy, struct absent *absent)
{
    if (absent->stream)
        absent->stream->absent = NULL;
    map_remove(&proxy->absents, &absent->link);
    list_remove(&absent->age_link);
    free(absent);
}

static void absents_expire(struct proxy *proxy)
{
    while (!list_empty(&proxy->absents_by_age)) {
        struct absent *oldest = list_entry(proxy->absents_by_age.next, struct absent, age_link);

        if ((int32_t)(proxy_now(proxy) - oldest->until) < 0)
            return;
        absent_free(proxy, oldest);
    }
}

/* Those of one account, one after the other. */
static struct absent *absent_next(struct proxy *proxy, struct absent *absent, struct str account)
{
    uint64_t hash = map_hash(account.p, account.n);
    struct map_link *link;

    if (absent) {
        link = absent->link.next;
    } else if (proxy->absents.count) {
        link = proxy->absents.buckets[hash & (proxy->absents.bucket_count - 1)];
    } else {
        return NULL;
    }
    for (; link; link = link->next)
        if (link->hash == hash && str_eq(account_of(container_of(link, struct absent, link)), account))
            return container_of(link, struct absent, link);
    return NULL;
}

void presence_poll_over(struct stream *stream, bool kicked)
{
    struct proxy *proxy = stream->proxy;
    const struct sub *sub;
    struct absent *absent;
    struct str platform = stream_platform(stream);
    uint32_t rooms = stream->sub_count < ABSENT_ROOMS_MAX ? stream->sub_count : ABSENT_ROOMS_MAX;

    absents_expire(proxy);
    if (proxy->draining || !stream->audience) /* its next one goes elsewhere */
        return;
    absent = xcalloc(1, sizeof *absent + rooms * sizeof absent->rooms[0]);
    absent->until = proxy_now(proxy) + ABSENT_MS;
    absent->kicked = kicked;
    absent->account_n = stream->audience->n;
    memcpy(absent->account, stream->audience->account, absent->account_n);
    absent->platform_n = (uint8_t)platform.n;
    memcpy(absent->platform, platform.p, platform.n);
    list_for_each (sub, &stream->subs, stream_link)
        if (absent->room_count < rooms)
            absent->rooms[absent->room_count++] = map_hash(sub->view->room_id_text, sub->view->room_id_n);
    list_init(&absent->age_link);
    list_push_back(&proxy->absents_by_age, &absent->age_link);
    map_insert(&proxy->absents, map_hash(absent->account, absent->account_n), &absent->link);
}

/* The one whose next request this can be. */
static struct absent *absent_find(struct proxy *proxy, struct str account, struct str platform)
{
    struct absent *absent = NULL;

    absents_expire(proxy);
    while ((absent = absent_next(proxy, absent, account)))
        if (!absent->stream && str_eq(platform_of(absent), platform))
            break;
    return absent;
}

bool presence_poll_may_open(struct proxy *proxy, struct str account, struct str platform)
{
    struct absent *absent = absent_find(proxy, account, platform);

    if (!absent || !absent->kicked)
        return true;
    absent_free(proxy, absent);
    return false;
}

/* Until it is let in, the absent one counts in its place. */
void presence_poll_opens(struct stream *stream)
{
    const struct audience *audience = stream->audience;
    struct absent *absent =
        absent_find(stream->proxy, (struct str){audience->account, audience->n}, stream_platform(stream));

    if (!absent)
        return;
    stream->absent = absent;
    absent->stream = stream;
}

void presence_poll_open(struct stream *stream)
{
    if (stream->absent)
        absent_free(stream->proxy, stream->absent);
}

void presence_stream_gone(struct stream *stream)
{
    if (stream->absent)
        stream->absent->stream = NULL;
    stream->absent = NULL;
}

/* ---------------------------------------------------- what this one knows */

static void add_row(struct buf *out, size_t nth, struct str platform, uint32_t streams)
{
    buf_printf(out, "%s[%zu,", out->n > 1 ? "," : "", nth);
    buf_json_string(out, platform);
    buf_printf(out, ",%" PRIu32 "]", streams);
}

static void answer_online(struct proxy *proxy, struct json accounts, struct buf *out)
{
    struct json_walk walk = json_walk(accounts);
    struct buf scratch = {0};
    struct str account;
    struct json item;

    buf_char(out, '[');
    for (size_t i = 0; json_next_item(&walk, &item); i++) {
        struct audience *audience;
        struct absent *absent = NULL;
        struct stream *stream;

        buf_reset(&scratch);
        if (item.type != JSON_STRING || !json_string(item, &scratch, &account))
            continue;
        audience = audience_find(proxy, account);
        if (audience)
            list_for_each (stream, &audience->streams, audience_link)
                if (stream->state == STREAM_LIVE)
                    add_row(out, i, stream_platform(stream), 1);
        while ((absent = absent_next(proxy, absent, account)))
            if (!absent->kicked)
                add_row(out, i, platform_of(absent), 1);
    }
    buf_char(out, ']');
    buf_clear(&scratch);
}

/* Few platforms, many streams: one row for each platform. */
struct platform_count {
    struct str platform;
    uint32_t streams;
};

static void count_one(struct platform_count *counts, size_t max, size_t *count, struct str platform, struct buf *out)
{
    size_t i = 0;

    while (i < *count && !str_eq(counts[i].platform, platform))
        i++;
    if (i == max) { /* more platforms than anybody has: one by one */
        add_row(out, 0, platform, 1);
        return;
    }
    if (i == *count)
        counts[(*count)++] = (struct platform_count){platform, 0};
    counts[i].streams++;
}

static bool was_in(const struct absent *absent, uint64_t room)
{
    for (uint32_t i = 0; i < absent->room_count; i++)
        if (absent->rooms[i] == room)
            return true;
    return false;
}

static void answer_connections(struct proxy *proxy, struct str room_id, struct buf *out)
{
    const struct view *view = view_find(proxy, room_id);
    struct platform_count counts[32];
    const struct absent *absent;
    size_t count = 0;

    buf_char(out, '[');
    for (size_t i = 0; view && i < VIEW_LISTS; i++) {
        const struct sub *sub;

        list_for_each (sub, &view->subs[i], view_link)
            if (sub->state != SUB_OPENING && sub->stream->state == STREAM_LIVE)
                count_one(counts, countof(counts), &count, stream_platform(sub->stream), out);
    }
    list_for_each (absent, &proxy->absents_by_age, age_link)
        if (!absent->kicked && was_in(absent, map_hash(room_id.p, room_id.n)))
            count_one(counts, countof(counts), &count, platform_of(absent), out);
    for (size_t i = 0; i < count; i++)
        add_row(out, 0, counts[i].platform, counts[i].streams);
    buf_char(out, ']');
}

/* ------------------------------------------------------------------- kick */

static void kick_stream(struct stream *stream, const char *why)
{
    struct attach *attach = stream->attaches;

    stream->proxy->count.kicked++;
    presence_poll_open(stream); /* what it left behind before goes with it */
    while (attach && attach->kind != ATTACH_OPEN)
        attach = attach->next;
    if (stream->state == STREAM_OPENING && attach) { /* nothing of it is out yet: it is refused */
        stream->kicked = true;
        open_refuse(attach, ERR_FORBIDDEN, why);
    } else {
        stream_end(stream, CLOSE_KICKED, ERR_FORBIDDEN, why);
    }
}

static bool is_meant(struct str platform, struct str asked)
{
    return !asked.n || str_eq(platform, asked);
}

static uint32_t kick(struct proxy *proxy, struct str account, struct str platform, const char *why)
{
    struct audience *audience = audience_find(proxy, account);
    struct stream *stream, **meant = NULL;
    struct absent *absent = NULL;
    uint32_t count = 0, capacity = 0, absents = 0;

    while ((absent = absent_next(proxy, absent, account)))
        if (!absent->kicked && !absent->stream && is_meant(platform_of(absent), platform)) {
            absent->kicked = true;
            absents++;
        }
    if (!audience)
        return absents;
    list_for_each (stream, &audience->streams, audience_link)
        capacity++;
    meant = xcalloc(capacity + 1, sizeof(struct stream *)); /* the audience goes with its last stream */
    list_for_each (stream, &audience->streams, audience_link)
        if (stream->state != STREAM_CLOSING && is_meant(stream_platform(stream), platform))
            meant[count++] = stream;
    for (uint32_t i = 0; i < count; i++)
        kick_stream(meant[i], why);
    free(meant);
    return count + absents;
}

static void answer_kick(struct proxy *proxy, struct json order, struct buf *out)
{
    struct json fields[] = {json_get(order, "account_id"), json_get(order, "platform"), json_get(order, "reason")};
    struct str texts[countof(fields)] = {{NULL, 0}, {NULL, 0}, {NULL, 0}};
    struct buf scratch[countof(fields)] = {{0}};
    char *why;
    uint32_t closed;

    for (size_t i = 0; i < countof(fields); i++)
        if (fields[i].type == JSON_STRING && !json_string(fields[i], &scratch[i], &texts[i]))
            texts[i].n = 0;
    why = xstrndup(texts[2].n ? texts[2].p : "", texts[2].n);
    closed = kick(proxy, texts[0], texts[1], texts[2].n ? why : "the account's streams were closed by the service");
    log_info("presence.kick", "account=%s platform=%s closed=%u", log_quote(texts[0]),
        log_quote(texts[1].n ? texts[1] : STR("*")), closed);
    buf_u64(out, closed);
    free(why);
    for (size_t i = 0; i < countof(fields); i++)
        buf_clear(&scratch[i]);
}

static bool begins(struct str *text, const char *word)
{
    size_t n = strlen(word);

    if (text->n < n || memcmp(text->p, word, n) != 0)
        return false;
    text->p += n;
    text->n -= n;
    return true;
}

/* What is not understood is of a later program, and not answered. */
void proxy_asked(void *arg, struct str question, struct buf *answer)
{
    struct proxy *proxy = arg;
    struct json value;
    const char *why;

    absents_expire(proxy);
    if (begins(&question, "connections "))
        answer_connections(proxy, question, answer);
    else if (begins(&question, "online ") && json_check(question, &value, &why) && value.type == JSON_ARRAY)
        answer_online(proxy, value, answer);
    else if (begins(&question, "kick ") && json_check(question, &value, &why) && value.type == JSON_OBJECT)
        answer_kick(proxy, value, answer);
}
