/* Calls about who is connected: asked of all instances, nothing is stored. */
#include "api.h"

#define ACCOUNTS_MAX 1000

static void on_surveyed(struct proxy_survey *survey, enum err err, struct str json);
static void connections_on_access(struct history_access *access, enum err err);

void api_proxy_online(struct call *call)
{
    size_t count;
    const struct str *accounts = field_accounts(&call->fields, "account_ids", REQUIRED, ACCOUNTS_MAX, &count);

    if (!call_checked(call))
        return;
    call->survey.done = on_surveyed;
    proxy_ask_online(call->service->proxy, &call->survey, accounts, count);
}

/* Is there such a room? Nobody in a room and no such room are different answers. */
void api_proxy_connections(struct call *call)
{
    struct history_access *access = &call->access;

    access->room_id = field_room_id(&call->fields, "room_id", REQUIRED);
    if (!call_checked(call))
        return;
    access->done = connections_on_access;
    history_ask_access(call->service->history, access);
}

static void connections_on_access(struct history_access *access, enum err err)
{
    struct call *call = container_of(access, struct call, access);
    struct str room_id = access->room_id;

    if (err) {
        call_fail(call, err, err == ERR_NO_SUCH_ROOM ? "room_id" : NULL, NULL);
        return;
    }
    if (!call->service->proxy) { /* stopped meanwhile */
        call_fail(call, ERR_CLOSED, NULL, NULL);
        return;
    }
    call->survey = (struct proxy_survey){.done = on_surveyed};
    proxy_ask_connections(call->service->proxy, &call->survey, room_id);
}

void api_proxy_kick(struct call *call)
{
    struct fields *fields = &call->fields;
    struct str account = field_account(fields, "account_id", REQUIRED), platform = field_client_id(fields, "platform"),
               reason = field_text(fields, "reason", REASON_MAX_BYTES);

    if (!call_checked(call))
        return;
    call->survey.done = on_surveyed;
    proxy_kick(call->service->proxy, &call->survey, account, platform, reason);
}

static void on_surveyed(struct proxy_survey *survey, enum err err, struct str json)
{
    struct call *call = container_of(survey, struct call, survey);

    if (err) {
        call_fail(call, err, NULL,
            err == ERR_TIMEOUT ? "%u instances did not answer, and streams may still be open there; repeat it" : NULL,
            survey->missing);
        return;
    }
    buf_char(&call->text, '{');
    buf_add_str(&call->text, json);
    buf_char(&call->text, '}');
    call_answer(call, buf_str(&call->text));
}
