#define _GNU_SOURCE /* memmem */
/*
 * An example of a business's own rules, read from a file at start:
 *   {"blocked": [["alice", "bob"], …], "words": ["…", …]}
 * blocked: the first may not write to the second in a direct chat. words: what no content may hold, as a text.
 */
#include "gateway.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "room/base/mem.h"

#define FILE_MAX_BYTES (1u << 20)

struct policy {
    struct buf text;
    struct json blocked, words;
};

static bool read_file(const char *file, struct buf *text)
{
    FILE *stream = fopen(file, "re");
    size_t n = 1;

    while (stream && n && text->n <= FILE_MAX_BYTES) {
        n = fread(buf_reserve(text, 4096), 1, 4096, stream);
        text->n += n;
    }
    if (stream)
        fclose(stream);
    return stream && text->n <= FILE_MAX_BYTES;
}

struct policy *policy_open(const char *file, const char **why)
{
    struct policy *policy = xcalloc(1, sizeof *policy);
    struct json rules;

    if (!*file)
        return policy;
    if (!read_file(file, &policy->text)) {
        *why = "policy_file cannot be read, or is larger than 1 MiB";
        goto fail;
    }
    if (!json_check(buf_str(&policy->text), &rules, why))
        goto fail;
    if (rules.type != JSON_OBJECT) {
        *why = "policy_file must hold an object: {\"blocked\": [[\"a\", \"b\"]], \"words\": [\"…\"]}";
        goto fail;
    }
    policy->blocked = json_get(rules, "blocked");
    policy->words = json_get(rules, "words");
    if ((policy->blocked.type != JSON_NONE && policy->blocked.type != JSON_ARRAY) ||
        (policy->words.type != JSON_NONE && policy->words.type != JSON_ARRAY)) {
        *why = "blocked and words in policy_file must be arrays";
        goto fail;
    }
    return policy;

fail:
    policy_close(policy);
    return NULL;
}

void policy_close(struct policy *policy)
{
    if (!policy)
        return;
    buf_clear(&policy->text);
    free(policy);
}

static bool says(struct json value, struct str text)
{
    struct buf scratch = {0};
    struct str said;
    bool same = value.type == JSON_STRING && json_string(value, &scratch, &said) && str_eq(said, text);

    buf_clear(&scratch);
    return same;
}

static bool is_blocked(const struct policy *policy, struct str account, struct str peer)
{
    struct json_walk walk = json_walk(policy->blocked), pair;
    struct json item, one;

    while (json_next_item(&walk, &item)) {
        bool from = false, to = false;

        if (item.type != JSON_ARRAY)
            continue;
        pair = json_walk(item);
        if (json_next_item(&pair, &one))
            from = says(one, account);
        if (json_next_item(&pair, &one))
            to = says(one, peer);
        if (from && to)
            return true;
    }
    return false;
}

static bool text_holds_word(const struct policy *policy, struct str text)
{
    struct json_walk walk = json_walk(policy->words);
    struct json item;
    struct str word;
    bool found = false;

    while (!found && json_next_item(&walk, &item)) {
        struct buf scratch = {0};

        found = item.type == JSON_STRING && json_string(item, &scratch, &word) && word.n &&
                memmem(text.p, text.n, word.p, word.n);
        buf_clear(&scratch);
    }
    return found;
}

/* In any text of it, however it is spelled: "\u0061" is "a" to who reads it. */
static bool holds_word(const struct policy *policy, struct json value)
{
    struct json_walk walk = json_walk(value);
    struct json_member member;
    struct buf scratch = {0};
    struct json item;
    struct str text;
    bool found = false;

    if (value.type == JSON_STRING)
        found = json_string(value, &scratch, &text) && text_holds_word(policy, text);
    while (!found && value.type == JSON_ARRAY && json_next_item(&walk, &item))
        found = holds_word(policy, item);
    while (!found && value.type == JSON_OBJECT && json_next_member(&walk, &member))
        found = holds_word(policy, member.value);
    buf_clear(&scratch);
    return found;
}

const char *policy_refuses(const struct policy *policy, const struct policy_question *question)
{
    struct json content;
    const char *why;

    if (policy->blocked.type == JSON_ARRAY && question->peer.n && is_blocked(policy, question->account, question->peer))
        return "this account does not take messages from you";
    if (policy->words.type == JSON_ARRAY && question->content.n && json_check(question->content, &content, &why) &&
        holds_word(policy, content))
        return "this message holds a word that is not allowed here";
    return NULL;
}
