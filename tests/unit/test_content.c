/* What a kind's content must look like, where a refusal points, and what is derived. */
#include "history/content.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <setjmp.h>

#include <cmocka.h>

static struct content_facts facts;
static const char *why;

static enum err check(const char *kind, const char *text)
{
    struct json content;

    buf_clear(&facts.mentions);
    facts = (struct content_facts){0};
    why = NULL;
    assert_true(json_check(str_of(text), &content, &why));
    return content_check(str_of(kind), content, &facts, &why);
}

static int clear(void **state)
{
    (void)state;
    buf_clear(&facts.mentions);
    return 0;
}

static void a_refusal_names_the_part_by_its_path(void **state)
{
    static const struct {
        const char *kind, *content, *field;
    } cases[] = {
        {"text", "5", "content"},
        {"text", "{\"body\":5}", "content.body"},
        {"image", "\"x\"", "content"},
        {"image", "{\"file_id\":\"\"}", "content.file_id"},
        {"rich_text", "[]", "content"},
        {"rich_text", "{}", "content.parts"},
        {"rich_text", "{\"parts\":{}}", "content.parts"},
        {"rich_text", "{\"parts\":[{\"type\":\"text\",\"body\":\"a\"},5]}", "content.parts[1]"},
        {"rich_text", "{\"parts\":[{\"type\":\"x\"},{\"type\":\"y\"},{\"body\":\"a\"}]}", "content.parts[2].type"},
        {"rich_text", "{\"parts\":[{\"type\":7}]}", "content.parts[0].type"},
        {"rich_text", "{\"parts\":[{\"type\":\"text\"}]}", "content.parts[0].body"},
        {"rich_text", "{\"parts\":[{\"type\":\"mention\"}]}", "content.parts[0].user_id"},
        {"rich_text", "{\"parts\":[{\"type\":\"mention\",\"user_id\":\"@system\"}]}", "content.parts[0].user_id"},
        {"rich_text", "{\"parts\":[],\"quote_message_seq\":0}", "content.quote_message_seq"},
        {"rich_text", "{\"parts\":[],\"quote_message_seq\":\"1\"}", "content.quote_message_seq"},
        {"forward", "\"x\"", "content"},
        {"forward", "{\"forward_type\":\"both\"}", "content.forward_type"},
        {"forward", "{\"forward_type\":1}", "content.forward_type"},
        {"forward", "{\"forward_type\":\"merged\"}", "content.messages"},
        {"forward", "{\"messages\":[]}", "content.messages"},
        {"forward", "{\"messages\":{}}", "content.messages"},
        {"forward", "{\"messages\":[5]}", "content.messages[0]"},
        {"forward", "{\"messages\":[{\"content\":\"ok\"},{\"content\":5}]}", "content.messages[1].content"},
        {"forward", "{\"messages\":[{\"content\":{\"body\":\"a\"}}]}", "content.messages[0].content.type"},
        {"forward",
            "{\"messages\":[{\"content\":\"a\"},{\"content\":\"b\"},{\"content\":\"c\"},"
            "{\"content\":{\"type\":\"text\",\"body\":1}}]}",
            "content.messages[3].content.body"},
        {"forward", "{\"messages\":[{\"content\":{\"type\":\"rich_text\",\"parts\":[{}]}}]}",
            "content.messages[0].content.parts[0].type"},
        {"forward",
            "{\"messages\":[{\"content\":{\"type\":\"forward\",\"messages\":[{\"content\":{\"type\":\"text\"}}]}}]}",
            "content.messages[0].content.messages[0].content.body"},
    };

    (void)state;
    for (size_t i = 0; i < countof(cases); i++) {
        assert_int_equal(check(cases[i].kind, cases[i].content), ERR_BAD_REQUEST);
        assert_string_equal(facts.field, cases[i].field);
        assert_memory_equal(why, cases[i].field, strlen(cases[i].field));
        assert_true(why[strlen(cases[i].field)] == ' ');
    }
}

static void what_is_well_formed_or_unknown_passes(void **state)
{
    static const struct {
        const char *kind, *content;
    } cases[] = {
        {"text", "\"\""},
        {"text", "{\"body\":\"a\",\"more\":1}"},
        {"file", "{\"file_id\":\"f\"}"},
        {"rich_text", "{\"parts\":[{\"type\":\"custom\"}],\"quote_message_seq\":null}"},
        {"forward", "{\"forward_type\":\"single\",\"from\":\"x\"}"},
        {"forward", "{\"source\":\"the business's own form\"}"},
        {"forward",
            "{\"forward_type\":\"merged\",\"messages\":[{\"content\":{\"type\":\"image\",\"thumb_url\":\"u\"}}]}"},
        {"tip", "5"},
        {"custom/x", "null"},
    };

    (void)state;
    for (size_t i = 0; i < countof(cases); i++)
        assert_int_equal(check(cases[i].kind, cases[i].content), ERR_OK);
}

static void mentions_and_quote_are_derived_once_each(void **state)
{
    (void)state;
    assert_int_equal(check("rich_text", "{\"parts\":[{\"type\":\"mention\",\"user_id\":\"bob\"},"
                                        "{\"type\":\"mention\",\"user_id\":\"b\\u006fb\"}],\"quote_message_seq\":98}"),
        ERR_OK);
    assert_int_equal(facts.mention_count, 1);
    assert_false(facts.mentions_all);
    assert_int_equal(facts.quote_seq, 98);
    assert_int_equal(check("rich_text", "{\"parts\":[{\"type\":\"mention\",\"mention_type\":\"all\"},"
                                        "{\"type\":\"mention\",\"user_id\":\"bob\"}]}"),
        ERR_OK);
    assert_true(facts.mentions_all);
    assert_true(str_is(buf_str(&facts.mentions), "[\"@all\",\"bob\"]"));
}

static void what_is_forwarded_mentions_and_quotes_nobody_here(void **state)
{
    (void)state;
    assert_int_equal(
        check("forward", "{\"messages\":[{\"content\":{\"type\":\"rich_text\",\"parts\":[{\"type\":\"mention\","
                         "\"mention_type\":\"all\"}],\"quote_message_seq\":7}}]}"),
        ERR_OK);
    assert_int_equal(facts.mention_count, 0);
    assert_false(facts.mentions_all);
    assert_int_equal(facts.quote_seq, 0);
}

static void add_times(struct buf *out, const char *text, size_t times)
{
    for (size_t i = 0; i < times; i++) {
        buf_text(out, i ? "," : "");
        buf_text(out, text);
    }
}

static enum err check_buf(const char *kind, struct buf *text)
{
    enum err err;

    buf_char(text, '\0');
    err = check(kind, text->p);
    buf_clear(text);
    return err;
}

static void lists_have_bounds(void **state)
{
    struct buf text = {0};

    (void)state;
    for (size_t more = 0; more <= 1; more++) {
        buf_text(&text, "{\"messages\":[");
        add_times(&text, "{\"content\":\"x\"}", FORWARD_MESSAGES_MAX + more);
        buf_text(&text, "]}");
        assert_int_equal(check_buf("forward", &text), more ? ERR_BAD_REQUEST : ERR_OK);
        buf_text(&text, "{\"parts\":[");
        add_times(&text, "{\"type\":\"x\"}", RICH_TEXT_PARTS_MAX + more);
        buf_text(&text, "]}");
        assert_int_equal(check_buf("rich_text", &text), more ? ERR_BAD_REQUEST : ERR_OK);
        assert_string_equal(facts.field, more ? "content.parts" : "");
        buf_text(&text, "{\"parts\":[");
        for (size_t i = 0; i < MENTIONS_MAX + more; i++)
            buf_printf(&text, "%s{\"type\":\"mention\",\"user_id\":\"u%zu\"}", i ? "," : "", i);
        buf_text(&text, "]}");
        assert_int_equal(check_buf("rich_text", &text), more ? ERR_BAD_REQUEST : ERR_OK);
        assert_string_equal(facts.field, more ? "content.parts[100]" : "");
    }
}

static void forwards_nest_three_deep(void **state)
{
    struct buf text = {0};

    (void)state;
    for (int deep = 1; deep <= FORWARD_DEPTH_MAX + 1; deep++) {
        for (int i = 0; i < deep; i++)
            buf_printf(&text, "{%s\"messages\":[{\"content\":", i ? "\"type\":\"forward\"," : "");
        buf_text(&text, "\"x\"");
        for (int i = 0; i < deep; i++)
            buf_text(&text, "}]}");
        assert_int_equal(check_buf("forward", &text), deep <= FORWARD_DEPTH_MAX ? ERR_OK : ERR_BAD_REQUEST);
    }
    assert_string_equal(facts.field, "content.messages[0].content.messages[0].content.messages[0].content");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_refusal_names_the_part_by_its_path, clear),
        cmocka_unit_test_teardown(what_is_well_formed_or_unknown_passes, clear),
        cmocka_unit_test_teardown(mentions_and_quote_are_derived_once_each, clear),
        cmocka_unit_test_teardown(what_is_forwarded_mentions_and_quotes_nobody_here, clear),
        cmocka_unit_test_teardown(lists_have_bounds, clear),
        cmocka_unit_test_teardown(forwards_nest_three_deep, clear),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
