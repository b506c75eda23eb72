/* Log lines: one call, one line, whatever the values hold; and nobody waits for stderr. */
#include "room/base/buf.h"
#include "room/base/log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include <fcntl.h>
#include <regex.h>
#include <stdio.h>
#include <unistd.h>

/* stderr is a pipe while a test runs; cmocka writes its own words to stdout. */
struct capture {
    int real_stderr, read_end;
    char text[65536];
};

static int begin(void **state)
{
    struct capture *capture = xcalloc(1, sizeof *capture);
    int ends[2];

    if (pipe(ends))
        return -1;
    capture->real_stderr = dup(STDERR_FILENO);
    capture->read_end = ends[0];
    dup2(ends[1], STDERR_FILENO);
    close(ends[1]);
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    log_set_level(LOG_DEBUG);
    *state = capture;
    return 0;
}

static int end(void **state)
{
    struct capture *capture = *state;

    dup2(capture->real_stderr, STDERR_FILENO);
    close(capture->real_stderr);
    close(capture->read_end);
    free(capture);
    return 0;
}

/* What was logged since the last look. */
static const char *logged(struct capture *capture)
{
    ssize_t n = read(capture->read_end, capture->text, sizeof capture->text - 1);

    capture->text[n > 0 ? n : 0] = '\0';
    return capture->text;
}

static void matches(const char *text, const char *pattern)
{
    regex_t regex;

    assert_int_equal(regcomp(&regex, pattern, REG_EXTENDED | REG_NOSUB), 0);
    if (regexec(&regex, text, 0, NULL, 0) != 0)
        fail_msg("\"%s\" does not match %s", text, pattern);
    regfree(&regex);
}

static void a_line_tells_time_level_event_and_values(void **state)
{
    log_info("lease.taken", "shard=%s epoch=%d", "s07", 3);
    matches(logged(*state),
        "^20[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]\\.[0-9]{3}Z info lease\\.taken "
        "shard=s07 epoch=3\n$");
    log_error("only.event", "%s", "");
    matches(logged(*state), "Z error only\\.event\n$");
}

static void lines_below_the_level_are_not_written(void **state)
{
    enum log_level level;

    assert_true(log_level_parse("warn", &level));
    log_set_level(level);
    log_debug("a", "x=%d", 1);
    log_info("b", "x=%d", 1);
    log_warn("c", "x=%d", 1);
    matches(logged(*state), "^[^ ]+ warn c x=1\n$");
    assert_false(log_level_parse("loud", &level));
    assert_false(log_level_parse("", &level));
    assert_int_equal(level, LOG_WARN);
}

static void no_value_can_forge_a_line(void **state)
{
    const char *text;

    log_info("a", "sender=%s", log_quote(STR("x\n2026-01-01T00:00:00.000Z error forged ok=1\r\x1b[31m")));
    text = logged(*state);
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
    log_info("a", "unquoted=%s", "x\nforged\x1b[0m");
    matches(logged(*state), "unquoted=x\\?forged\\?\\[0m\n$");
}

static void values_are_quoted_when_they_need_to_be(void **state)
{
    static const struct {
        struct str value;
        const char *quoted;
    } cases[] = {
        {STR("alice"), "alice"},
        {STR("s07.01KC-x_/:@"), "s07.01KC-x_/:@"},
        {STR(""), "\"\""},
        {STR("a b"), "\"a b\""},
        {STR("a=b"), "\"a=b\""},
        {STR("a\"b\\"), "\"a\\\"b\\\\\""},
        {STR("a\nb\tc\r"), "\"a\\nb\\tc\\r\""},
        {STR("\x01\x7f\0"), "\"\\x01\\x7f\\x00\""},
        {STR("\xe4\xbd\xa0\xf0\x9f\x98\x80"), "\xe4\xbd\xa0\xf0\x9f\x98\x80"},
        {STR("\xff\xc3"), "\"\\xff\\xc3\""},
        {STR("\xc2\x85"), "\"\\xc2\\x85\""},
        {STR("\xe2\x80\xa8\xe2\x80\xae"), "\"\\xe2\\x80\\xa8\\xe2\\x80\\xae\""},
        {STR("\xed\xa0\x80\xc0\x80"), "\"\\xed\\xa0\\x80\\xc0\\x80\""},
    };

    (void)state;
    for (size_t i = 0; i < countof(cases); i++)
        assert_string_equal(log_quote(cases[i].value), cases[i].quoted);
}

static void long_values_are_cut_and_say_so(void **state)
{
    char value[5000];
    const char *quoted;

    (void)state;
    memset(value, 'x', sizeof value);
    quoted = log_quote((struct str){value, 200});
    assert_int_equal(strlen(quoted), 200);
    quoted = log_quote((struct str){value, sizeof value});
    assert_int_equal(strlen(quoted), 205);
    assert_string_equal(quoted + 200, "x...\"");
    memset(value, 1, sizeof value);
    assert_int_equal(strlen(log_quote((struct str){value, sizeof value})), 805);
    memcpy(value + 199, "\xe4\xbd\xa0", 3); /* cut inside a character */
    assert_string_equal(log_quote((struct str){value + 100, 102}) + 1 + 99 * 4, "\xe4\xbd\xa0\"");
    quoted = log_quote((struct str){value, 202});
    assert_string_equal(quoted + 1 + 199 * 4, "\\xe4...\"");
}

static void eight_quoted_values_stand_in_one_line(void **state)
{
    log_info("a", "%s%s%s%s%s%s%s%s", log_quote(STR("0")), log_quote(STR("1")), log_quote(STR("2")),
        log_quote(STR("3")), log_quote(STR("4")), log_quote(STR("5")), log_quote(STR("6")), log_quote(STR("7")));
    matches(logged(*state), " a 01234567\n$");
}

static void a_line_too_long_is_cut_and_ends(void **state)
{
    char value[9000];
    const char *line;

    memset(value, 'v', sizeof value - 1);
    value[sizeof value - 1] = '\0';
    log_info("long", "value=%s", value);
    line = logged(*state);
    assert_int_equal(strlen(line), 4096);
    assert_string_equal(line + 4092, "...\n");
}

static void a_full_stderr_drops_lines_and_counts_them(void **state)
{
    struct capture *capture = *state;
    uint64_t before = log_dropped();
    int written = 0;

    while (log_dropped() == before && written < 1000000) {
        log_info("fill", "line=%d", written); /* would wait for ever if it waited */
        written++;
    }
    assert_int_equal(log_dropped(), before + 1);
    log_info("fill", "line=%d", written);
    assert_int_equal(log_dropped(), before + 2);
    while (*logged(capture))
        ;
    log_info("fine", "again=%d", 1);
    matches(logged(capture), "^[^ ]+ info fine again=1\n$");
    assert_int_equal(log_dropped(), before + 2);
}

static void a_closed_stderr_is_counted_too(void **state)
{
    uint64_t before = log_dropped();

    (void)state;
    close(STDERR_FILENO);
    log_info("nobody", "listens=%d", 1);
    assert_int_equal(log_dropped(), before + 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_line_tells_time_level_event_and_values, begin, end),
        cmocka_unit_test_setup_teardown(lines_below_the_level_are_not_written, begin, end),
        cmocka_unit_test_setup_teardown(no_value_can_forge_a_line, begin, end),
        cmocka_unit_test(values_are_quoted_when_they_need_to_be),
        cmocka_unit_test(long_values_are_cut_and_say_so),
        cmocka_unit_test_setup_teardown(eight_quoted_values_stand_in_one_line, begin, end),
        cmocka_unit_test_setup_teardown(a_line_too_long_is_cut_and_ends, begin, end),
        cmocka_unit_test_setup_teardown(a_full_stderr_drops_lines_and_counts_them, begin, end),
        cmocka_unit_test_setup_teardown(a_closed_stderr_is_counted_too, begin, end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
