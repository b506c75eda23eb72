/*
 * Who may do what in a room: one table, asked by whoever decides (the owner's sequencer) and whoever answers early
 * (the API). A call that does not say whose act it is comes from the business itself and is not asked.
 * Source: docs/protocol.md#roles. Thread: pure functions.
 */
#ifndef ROOMD_ROOM_RULES_H
#define ROOMD_ROOM_RULES_H

#include "name.h"

enum rule {
    RULE_ADD,    /* add accounts */
    RULE_REMOVE, /* remove accounts of a lower role; oneself always, but for the owner */
    RULE_RENAME, /* name, extra, member_limit */
    RULE_NOTICE,
    RULE_MUTE, /* mute accounts of a lower role, or all */
    RULE_ROLE, /* make somebody admin, or member again */
    RULE_MENTION_ALL,
    RULE_RECALL, /* recall and delete what others said, and one's own at any time */
    RULE_CLOSE,  /* remove the room, hand it over: the owner's; not a setting */
    RULES
};

struct rules {
    enum role least[RULES];
};

/* "add=admin,mention_all=member": what is not named stays as rules_default has it. false: *why is a sentence. */
void rules_default(struct rules *rules);
MUST_USE bool rules_read(struct rules *rules, const char *text, const char **why);

/* What a refused one is told: "to mention all takes the role admin here", "muted in this room until
 * 2026-11-21T09:00:00Z (1795251600000)". NUL-terminated. */
#define RULES_WHY_MAX 128
void rules_say(const struct rules *rules, enum rule rule, char why[RULES_WHY_MAX]);
void rules_say_muted(uint64_t until_unix_ms, char why[RULES_WHY_MAX]);

static inline bool rules_allow(const struct rules *rules, enum rule rule, enum role role)
{
    return role != ROLE_NONE && role >= rules->least[rule];
}

#endif
