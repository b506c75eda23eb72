/*
 * A stream reads in the store that its account left the room at some time. It may have come back since: until that is
 * known the stream is held there, and nothing behind the leave goes to it. (A leave that is heard of live needs no
 * question: see account_left in proxy.c.)
 */
#include "core.h"

#include <stdlib.h>

/* Is an account still a member? */
struct recheck {
    struct history_access access;
    struct list link; /* proxy->rechecks */
    bool asked;
    struct proxy *proxy;
    size_t account_n;
    char room_id[ROOM_ID_MAX_BYTES + 1];
    char account[ACCOUNT_MAX_BYTES];
};

static void recheck_ask(struct recheck *recheck)
{
    recheck->asked = true;
    history_ask_access(recheck->proxy->history, &recheck->access);
}

/*
 * It is a member. Its streams go on with the room where they were held; but where members see only what is said while
 * they are in it, those that stand before a later join lose the room as live ones did, and enter it anew.
 */
static void let_go_on(struct proxy *proxy, struct str account, const struct history_access *access)
{
    bool enters = false, cut = true;
    struct audience *audience;
    struct stream *stream;
    struct view *view;
    struct sub *sub;

    while (cut) { /* whoever loses its last room takes view or audience along */
        cut = false;
        audience = audience_find(proxy, account);
        view = view_find(proxy, access->room_id);
        if (!audience || !view)
            break;
        list_for_each (stream, &audience->streams, audience_link) {
            if (!(sub = sub_find(stream, view)) || !sub->held)
                continue;
            sub->held = false;
            if (access->since_join && sub->seq + 1 < access->join_seq) {
                sub_left(sub, "removed");
                cut = enters = true;
                break;
            }
            sub_behind(sub, sub->seq);
        }
    }
    if (enters)
        enter_room(proxy, account, access->room_id, (struct cursor){UINT64_MAX, access->join_seq - 1});
}

static void rechecked(struct history_access *access, enum err err)
{
    struct recheck *recheck = container_of(access, struct recheck, access);
    struct view *view = view_find(recheck->proxy, str_of(recheck->room_id));
    struct str account = {recheck->account, recheck->account_n};

    recheck->asked = false;
    if (view && err && err != ERR_NOT_MEMBER && err != ERR_NO_SUCH_ROOM)
        return; /* the wheel asks again; until then nothing of the room goes there */
    if (view && err)
        account_left(recheck->proxy, account, view, "removed");
    else if (view)
        let_go_on(recheck->proxy, account, access);
    list_remove(&recheck->link);
    free(recheck);
}

void leaves_retry(struct proxy *proxy)
{
    struct recheck *recheck;

    list_for_each (recheck, &proxy->rechecks, link)
        if (!recheck->asked)
            recheck_ask(recheck);
}

struct leave {
    struct view *view;
    bool concerns_somebody;
};

/* Streams that read of their account's leave from the store are held there until it is known whether it came back. */
static void recheck_account(void *arg, struct str account)
{
    struct leave *leave = arg;
    struct view *view = leave->view;
    struct audience *audience = account.n <= ACCOUNT_MAX_BYTES ? audience_find(view->proxy, account) : NULL;
    bool unasked = false;
    struct recheck *recheck;
    struct stream *stream;
    struct sub *sub;

    if (!audience)
        return;
    list_for_each (stream, &audience->streams, audience_link)
        if ((sub = sub_find(stream, view)) && sub->state != SUB_OPENING) {
            leave->concerns_somebody = true;
            unasked |= !sub->held;
            sub->held = sub->state != SUB_LIVE && sub->state != SUB_SIGNALLED; /* those stand behind it already */
        }
    if (!unasked)
        return;
    recheck = xcalloc(1, sizeof *recheck);
    recheck->proxy = view->proxy;
    recheck->account_n = account.n;
    memcpy(recheck->account, account.p, account.n);
    memcpy(recheck->room_id, view->room_id_text, view->room_id_n);
    recheck->access.room_id = str_of(recheck->room_id);
    recheck->access.account = (struct str){recheck->account, account.n};
    recheck->access.done = rechecked;
    list_init(&recheck->access.link);
    list_push_back(&view->proxy->rechecks, &recheck->link);
    recheck_ask(recheck);
}

bool leave_read(struct view *view, const struct entry *entry)
{
    struct leave leave = {view, false};

    entry_accounts(entry, recheck_account, &leave);
    return leave.concerns_somebody;
}

void leaves_free(struct proxy *proxy)
{
    struct list *link;

    while ((link = list_pop_front(&proxy->rechecks))) {
        struct recheck *recheck = list_entry(link, struct recheck, link);

        if (recheck->asked)
            history_access_forget(&recheck->access);
        free(recheck);
    }
}
