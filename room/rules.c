#include "rules.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static const char *const names[RULES] = {
    [RULE_ADD] = "add",
    [RULE_REMOVE] = "remove",
    [RULE_RENAME] = "rename",
    [RULE_NOTICE] = "notice",
    [RULE_MUTE] = "mute",
    [RULE_ROLE] = "role",
    [RULE_MENTION_ALL] = "mention_all",
    [RULE_RECALL] = "recall",
};

static const char *const acts[RULES] = {
    [RULE_ADD] = "add accounts",
    [RULE_REMOVE] = "remove others",
    [RULE_RENAME] = "change name, extra or member_limit",
    [RULE_NOTICE] = "change the notice",
    [RULE_MUTE] = "mute",
    [RULE_ROLE] = "give roles",
    [RULE_MENTION_ALL] = "mention all",
    [RULE_RECALL] = "recall or delete what others said",
    [RULE_CLOSE] = "hand the room over or remove it",
};

void rules_default(struct rules *rules)
{
    for (int i = 0; i < RULES; i++)
        rules->least[i] = ROLE_ADMIN;
    rules->least[RULE_MENTION_ALL] = ROLE_MEMBER;
    rules->least[RULE_ROLE] = rules->least[RULE_CLOSE] = ROLE_OWNER;
}

static int find_rule(const char *name, size_t n)
{
    for (int i = 0; i < RULES; i++)
        if (names[i] && strlen(names[i]) == n && memcmp(names[i], name, n) == 0)
            return i;
    return RULES;
}

static enum role find_role(const char *name, size_t n)
{
    for (enum role role = ROLE_MEMBER; role <= ROLE_OWNER; role++)
        if (strlen(role_name(role)) == n && memcmp(role_name(role), name, n) == 0)
            return role;
    return ROLE_NONE;
}

bool rules_read(struct rules *rules, const char *text, const char **why)
{
    struct rules read;

    rules_default(&read);
    while (*text) {
        size_t n = strcspn(text, ","), name_n = strcspn(text, "=,");
        int rule = find_rule(text, name_n);
        enum role role = name_n < n ? find_role(text + name_n + 1, n - name_n - 1) : ROLE_NONE;

        if (rule == RULES) {
            *why =
                "role_rules knows add, remove, rename, notice, mute, role, mention_all and recall, each as name=role";
            return false;
        }
        if (!role) {
            *why = "a role in role_rules is member, admin or owner";
            return false;
        }
        read.least[rule] = role;
        text += n + (text[n] == ',');
    }
    *rules = read;
    return true;
}

void rules_say(const struct rules *rules, enum rule rule, char why[RULES_WHY_MAX])
{
    snprintf(why, RULES_WHY_MAX, "to %s takes the role %s here", acts[rule], role_name(rules->least[rule]));
}

void rules_say_muted(uint64_t until_unix_ms, char why[RULES_WHY_MAX])
{
    time_t seconds = (time_t)(until_unix_ms / 1000);
    struct tm parts;
    char text[32] = "";

    if (gmtime_r(&seconds, &parts))
        strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
    snprintf(why, RULES_WHY_MAX, "muted in this room until %s (%" PRIu64 ")", text, until_unix_ms);
}
