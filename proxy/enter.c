/*
 * Accounts that enter rooms: their `all` streams carry the room from then on. The log tells of members who are added,
 * announcements tell of founders and of what happens on other instances. When an announcement may have been missed, the
 * database is asked which rooms the accounts with `all` streams here have joined since.
 */
#include "core.h"

#include <stdlib.h>

struct entering {
    struct pg_query query;
    struct proxy *proxy;
    uint64_t since_unix_ms, again_since_unix_ms; /* again: missed something more meanwhile; 0: no */
    bool asked;
};

static void ask(struct entering *entering);

void enter_open(struct proxy *proxy)
{
    proxy->entering = xcalloc(1, sizeof *proxy->entering);
    proxy->entering->proxy = proxy;
}

void enter_close(struct proxy *proxy)
{
    if (proxy->entering->asked)
        pg_forget(&proxy->entering->query);
    free(proxy->entering);
    proxy->entering = NULL;
}

void enter_room(struct proxy *proxy, struct str account, struct str room_id, struct cursor after)
{
    struct audience *audience = audience_find(proxy, account);
    const struct view *view = view_find(proxy, room_id);
    struct stream *stream;

    if (!audience)
        return;
    list_for_each (stream, &audience->streams, audience_link) {
        struct attach *attach;

        if (!stream->all || stream->deferred || stream->state == STREAM_CLOSING || stream->poll ||
            (view && sub_find(stream, view)))
            continue;
        attach = attach_new(stream, ATTACH_ENTER);
        attach_add(attach, room_id, &after);
        attach_begin(attach, false);
    }
}

void proxy_entered(void *arg, struct str room_id, const struct str *accounts, size_t count, struct cursor after)
{
    struct proxy *proxy = arg;

    for (size_t i = 0; i < count; i++)
        enter_room(proxy, accounts[i], room_id, after);
}

/* --------------------------------------------------- what may have been missed */

/* The join itself is shown on the stream; founders are there from the beginning. */
static const struct pg_statement joined_since = {
    .name = "proxy_joined_since",
    .sql = "SELECT m.account, r.room_id, m.join_seq FROM unnest($1::text[]) x(account) "
           "JOIN room_member m ON m.account = x.account COLLATE \"C\" JOIN room r ON r.room_no = m.room_no "
           "WHERE m.joined_at >= $2 AND NOT r.removed",
    .params = 2,
};

static void on_joined(struct pg_query *query, enum err err, const PGresult *result)
{
    struct entering *entering = container_of(query, struct entering, query);
    uint64_t again = entering->again_since_unix_ms;

    entering->asked = false;
    entering->again_since_unix_ms = 0;
    if (err) {
        /* Asked again with the next look at rooms of which nothing is heard, a second later. */
        if (!again || again > entering->since_unix_ms)
            again = entering->since_unix_ms;
        entering->since_unix_ms = again;
        return;
    }
    entering->since_unix_ms = 0;
    for (int row = 0; row < PQntuples(result); row++) {
        uint64_t join_seq = (uint64_t)pg_get_i64(result, row, 2);

        enter_room(entering->proxy, pg_get_str(result, row, 0), pg_get_str(result, row, 1),
            join_seq ? (struct cursor){UINT64_MAX, join_seq - 1} : (struct cursor){0, 0});
    }
    if (again)
        proxy_entered_missed(entering->proxy, again);
}

static bool follows_all(const struct audience *audience)
{
    struct stream *stream;

    list_for_each (stream, &audience->streams, audience_link)
        if (stream->all && !stream->poll && stream->state != STREAM_CLOSING)
            return true;
    return false;
}

static void ask(struct entering *entering)
{
    struct proxy *proxy = entering->proxy;
    struct pg_array accounts = {0};
    struct pg_params params = {0};

    pg_array_reset(&accounts, PG_TEXT);
    for (struct map_link *link = map_next(&proxy->audiences, NULL); link; link = map_next(&proxy->audiences, link)) {
        const struct audience *audience = container_of(link, struct audience, link);

        if (follows_all(audience))
            pg_array_bytes(&accounts, (struct str){audience->account, audience->n});
    }
    if (!accounts.count) {
        entering->since_unix_ms = 0;
    } else {
        pg_param_array(&params, &accounts);
        pg_param_i64(&params, (int64_t)entering->since_unix_ms);
        entering->asked = true;
        entering->query = (struct pg_query){.statement = &joined_since, .lane = PG_READ, .done = on_joined};
        pg_submit(proxy->pg, &entering->query, &params);
    }
    pg_array_clear(&accounts);
    pg_params_clear(&params);
}

void proxy_entered_missed(void *arg, uint64_t since_unix_ms)
{
    struct entering *entering = ((struct proxy *)arg)->entering;
    uint64_t *since = entering->asked ? &entering->again_since_unix_ms : &entering->since_unix_ms;

    if (!since_unix_ms)
        since_unix_ms = 1;
    if (!*since || since_unix_ms < *since)
        *since = since_unix_ms;
    if (!entering->asked)
        ask(entering);
}

void enter_retry(struct proxy *proxy)
{
    if (!proxy->entering->asked && proxy->entering->since_unix_ms)
        ask(proxy->entering);
}
