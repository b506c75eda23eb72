/* What is not kept: to the streams of this instance at once. */
#include "internal.h"

void history_tell_room(struct history *history, struct str room_id, struct str json)
{
    if (history->events.ephemeral)
        history->events.ephemeral(history->events.arg, room_id, STR(""), json);
}

void history_tell_account(struct history *history, struct str account, struct str json)
{
    if (history->events.ephemeral)
        history->events.ephemeral(history->events.arg, STR(""), account, json);
}
