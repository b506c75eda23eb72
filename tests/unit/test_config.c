/* Settings: where they come from, and that every mistake is told with its place. */
#define _GNU_SOURCE /* memmem */
#include "room/base/config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include <unistd.h>

static char folder[] = "/tmp/roomd-config-XXXXXX";

struct story {
    struct config config;
    struct buf why;
    char path[64];
    char *environment[8];
    bool ok;
};

static int begin_all(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int end_all(void **state)
{
    (void)state;
    return rmdir(folder);
}

static int begin(void **state)
{
    *state = xcalloc(1, sizeof(struct story));
    return 0;
}

static int end(void **state)
{
    struct story *story = *state;

    if (*story->path)
        unlink(story->path);
    config_clear(&story->config);
    buf_clear(&story->why);
    free(story);
    return 0;
}

static void write_file(const char *path, const char *text)
{
    FILE *stream = fopen(path, "w");

    assert_non_null(stream);
    fputs(text, stream);
    assert_int_equal(fclose(stream), 0);
}

/* Loads what the file (NULL: none) and the environment say; what went wrong is text afterwards. */
static void load(struct story *story, const char *file)
{
    config_clear(&story->config);
    buf_reset(&story->why);
    if (file) {
        snprintf(story->path, sizeof story->path, "%s/roomd.conf", folder);
        write_file(story->path, file);
    }
    story->ok = config_load(&story->config, file ? story->path : NULL, story->environment, &story->why);
    assert_int_equal(story->ok, story->why.n == 0);
    buf_char(&story->why, '\0');
}

static void accepted(struct story *story, const char *file)
{
    load(story, file);
    if (!story->ok)
        fail_msg("refused: %s", story->why.p);
}

/* Refused with one problem that holds `words`. */
static void refused(struct story *story, const char *file, const char *words)
{
    const char *line;

    load(story, file);
    assert_false(story->ok);
    line = strchr(story->why.p, '\n');
    if (!line || line[1] != '\0')
        fail_msg("not one line: %s", story->why.p);
    if (!strstr(story->why.p, words))
        fail_msg("\"%s\" does not say \"%s\"", story->why.p, words);
}

static void defaults_are_a_whole_configuration(void **state)
{
    struct story *story = *state;

    accepted(story, NULL);
    assert_int_equal(story->config.listen_port, 7400);
    assert_string_equal(story->config.listen_address, "127.0.0.1");
    assert_int_equal(story->config.queue_max_length_bytes, 1 << 30);
    assert_string_equal(story->config.service_keys, "");
}

static void every_default_is_within_its_bounds(void **state)
{
    struct story *story = *state;

    accepted(story, NULL);
#define CONFIG_TEXT(name, least, most)
#define CONFIG_SECRET(name, least, most)
#define CONFIG_BOOL(name, least, most)
#define CONFIG_NUMBER(name, least, most)                             \
    if (story->config.name < (least) || story->config.name > (most)) \
        fail_msg("%s is out of bounds", #name);
#define CONFIG_INT CONFIG_NUMBER
#define CONFIG_MS CONFIG_NUMBER
#define CONFIG_BYTES CONFIG_NUMBER
#define CONFIG_KEY(name, type, fallback, least, most, help) CONFIG_##type(name, least, most)
#include "room/base/config_keys.h"
#undef CONFIG_KEY
}

static void the_file_wins_over_the_default_and_the_environment_over_the_file(void **state)
{
    struct story *story = *state;

    accepted(story,
        "# a comment\n; another\n\nheartbeat_ms = 5000\n  \ninstance_name=a b ; said beside it\n"
        "listen_port : 0\nstream_pending_max_bytes = 512K\ntail_max_bytes=1m\nqueue_max_length_bytes = 2g\n");
    assert_int_equal(story->config.heartbeat_ms, 5000);
    assert_string_equal(story->config.instance_name, "a b");
    assert_int_equal(story->config.listen_port, 0);
    assert_int_equal(story->config.stream_pending_max_bytes, 512 << 10);
    assert_int_equal(story->config.tail_max_bytes, 1 << 20);
    assert_int_equal(story->config.queue_max_length_bytes, INT64_C(2) << 30);
    assert_int_equal(story->config.drain_ms, 10000);

    story->environment[0] = "HOME=/root";
    story->environment[1] = "ROOMD_HEARTBEAT_MS=6000";
    story->environment[2] = "ROOMD_INSTANCE_NAME=x=y";
    accepted(story, "heartbeat_ms = 5000\n");
    assert_int_equal(story->config.heartbeat_ms, 6000);
    assert_string_equal(story->config.instance_name, "x=y");
}

static void a_file_from_windows_reads_the_same(void **state)
{
    struct story *story = *state;

    accepted(story, "\xef\xbb\xbfheartbeat_ms = 5000\r\nlog_level = warn\r\n");
    assert_int_equal(story->config.heartbeat_ms, 5000);
    assert_string_equal(story->config.log_level, "warn");
}

static void unknown_keys_are_refused_with_their_place_and_the_nearest_one(void **state)
{
    struct story *story = *state;

    refused(story, "log_level = info\n\nheartbeet_ms = 5\n",
        "roomd.conf:3: there is no setting heartbeet_ms; did you mean heartbeat_ms?");
    refused(story, "colour = blue\n", "roomd.conf:1: there is no setting colour\n");
    refused(story, "log_level_file = /x\n", "there is no setting log_level_file");
    story->environment[0] = "ROOMD_LISTEN_PROT=1";
    refused(story, NULL, "ROOMD_LISTEN_PROT: there is no setting listen_prot; did you mean listen_port?");
    story->environment[0] = "ROOMD_=1";
    refused(story, NULL, "ROOMD_: there is no setting");
    story->environment[0] = "ROOMDX=1";
    accepted(story, NULL);
}

/* A shell that has read the addresses for callers may start an instance. */
static void variables_meant_for_callers_are_let_pass(void **state)
{
    struct story *story = *state;

    story->environment[0] = "ROOMD_URLS=http://127.0.0.1:7400";
    story->environment[1] = "ROOMD_SERVICE_KEY=secret";
    story->environment[2] = "ROOMD_1_URL=http://127.0.0.1:7400";
    story->environment[3] = "ROOMD_12_URL=http://127.0.0.1:7401";
    accepted(story, NULL);
    story->environment[3] = "ROOMD_x_URL=http://127.0.0.1:7401";
    load(story, NULL);
    assert_false(story->ok);
}

static void numbers_must_be_numbers_within_bounds(void **state)
{
    static const char *const bad[] = {"abc", "", "-1", "10s", "1.5", "1e3", "0x10", "+20000", "99999999999999999999",
        "20000 ms", "99", "600001", "--5", "-", "20k"};
    static const char *const bad_bytes[] = {"k", "1kb", "64 k", "64t", "9223372036854775807k", "-64k", "1k"};
    struct story *story = *state;
    char line[100];

    for (size_t i = 0; i < countof(bad); i++) {
        snprintf(line, sizeof line, "heartbeat_ms = %s\n", bad[i]);
        refused(story, line, "roomd.conf:1: heartbeat_ms is ");
    }
    refused(story, "heartbeat_ms = 5\n",
        "heartbeat_ms is 5; a whole number of milliseconds from 100 to 600000 is expected");
    for (size_t i = 0; i < countof(bad_bytes); i++) {
        snprintf(line, sizeof line, "tail_max_bytes = %s\n", bad_bytes[i]);
        refused(story, line, "(such as 64k) from 4k to 64m is expected");
    }
    story->environment[0] = "ROOMD_PREFETCH=many";
    refused(story, NULL, "ROOMD_PREFETCH: prefetch is many;");
}

static void all_problems_are_told_at_once(void **state)
{
    struct story *story = *state;
    static const char *const expected[] = {"roomd.conf:1: heartbeat_ms is x",
        "roomd.conf:2: there is no setting nonsense", "roomd.conf:3: `key = value` is expected",
        "ROOMD_PREFETCH: prefetch is 0", "log_level: is loud"};

    story->environment[0] = "ROOMD_PREFETCH=0";
    load(story, "heartbeat_ms = x\nnonsense = 1\nno value here\nlog_level = loud\n");
    for (size_t i = 0; i < countof(expected); i++)
        if (!strstr(story->why.p, expected[i]))
            fail_msg("\"%s\" does not say \"%s\"", story->why.p, expected[i]);
    assert_null(story->config.log_level); /* nothing half is handed out */
}

static void what_the_file_reader_would_misread_is_refused(void **state)
{
    struct story *story = *state;
    struct buf text = {0};

    refused(
        story, "heartbeat_ms = 5000\nheartbeat_ms = 6000\n", "roomd.conf:2: heartbeat_ms is given twice, first at ");
    refused(story, "[roomd]\nheartbeat_ms = 5000\n", "there are no sections; remove the line [roomd]");
    refused(story, "heartbeat_ms = 5000\n  drain_ms = 6000\n", "roomd.conf:2: an indented line continues heartbeat_ms");
    buf_text(&text, "instance_name = ");
    for (int i = 0; i < 300; i++)
        buf_char(&text, 'x');
    buf_char(&text, '\0');
    refused(story, text.p, "roomd.conf:1: the line is longer than 199 bytes");
    buf_clear(&text);
}

static void a_long_value_goes_on_in_the_next_line(void **state)
{
    struct story *story = *state;

    accepted(story,
        "broker_urls = amqp://a:b@one/%2f,\n    amqp://a:b@two/%2f,\n\tamqps://a:b@three/%2f\nlog_level = warn\n");
    assert_string_equal(story->config.broker_urls, "amqp://a:b@one/%2f,amqp://a:b@two/%2f,amqps://a:b@three/%2f");
    assert_string_equal(story->config.log_level, "warn");
}

static void a_secret_may_stand_in_a_file_of_its_own(void **state)
{
    struct story *story = *state;
    char secret[64], line[120], variable[120];

    snprintf(secret, sizeof secret, "%s/secret", folder);
    write_file(secret, "gateway:from-file  \r\nsecond line\n");
    snprintf(line, sizeof line, "service_keys_file = %s\n", secret);
    accepted(story, line);
    assert_string_equal(story->config.service_keys, "gateway:from-file");
    snprintf(line, sizeof line, "service_keys = a:b\nservice_keys_file = %s\n", secret);
    refused(story, line, "roomd.conf:2: service_keys is given twice");
    snprintf(variable, sizeof variable, "ROOMD_SERVICE_KEYS_FILE=%s", secret);
    story->environment[0] = variable;
    accepted(story, "service_keys = a:b\n"); /* the environment wins */
    assert_string_equal(story->config.service_keys, "gateway:from-file");
    unlink(secret);
    refused(story, NULL, "cannot be read: No such file");
}

static void a_file_that_cannot_be_read_is_told(void **state)
{
    struct story *story = *state;

    assert_false(config_load(&story->config, "/no/such/roomd.conf", NULL, &story->why));
    buf_char(&story->why, '\0');
    assert_string_equal(story->why.p, "/no/such/roomd.conf: cannot be opened: No such file or directory\n");
    buf_reset(&story->why);
    assert_false(config_load(&story->config, folder, NULL, &story->why));
    buf_char(&story->why, '\0');
    assert_non_null(strstr(story->why.p, ": cannot be read: Is a directory\n"));
}

static void what_must_fit_together_is_checked(void **state)
{
    static const char key31[] = "1234567890123456789012345678901";
    struct story *story = *state;
    char line[200];

    refused(story, "service_keys = nocolon\n", "service_keys: key 1 is not written as name:key");
    refused(story, "service_keys = a:b, :c\n", "service_keys: key 2 is not written as name:key");
    refused(story, "service_keys = a:\n", "service_keys: the key named a is shorter than 1 bytes");
    accepted(story, "service_keys = a:b, a:c ,d:e:f,\n"); /* one name, two keys: rotation */
    snprintf(line, sizeof line, "ticket_keys = k1:%s\n", key31);
    refused(story, line, "ticket_keys: the key named k1 is shorter than 32 bytes");
    snprintf(line, sizeof line, "ticket_keys = k1:%sx, k2:%sy\n", key31, key31);
    accepted(story, line);
    snprintf(line, sizeof line, "ticket_keys = k1:%sx, k1:%sy\n", key31, key31);
    refused(story, line, "ticket_keys: two keys are named k1");
    refused(story, "tls_key_file = /k\n", "tls_certificate_file and tls_key_file: give both or neither");
    refused(story, "tls_certificate_file = /c\n", "give both or neither");
    accepted(story, "tls_certificate_file = /c\ntls_key_file = /k\n");
    refused(story, "database_url =\n", "database_url: must not be empty");
    refused(story, "broker_urls = ,\n", "broker_urls: must not be empty");
    refused(story, "broker_urls = amqp://a, http://b\n",
        "broker_urls: an address begins with neither amqp:// nor amqps://");
    refused(story, "advertise_url = http://10.0.0.5:7400/\n", "without a slash at its end");
    refused(story, "advertise_url = http://10.0.0.5:7400,http://10.0.0.6:7400\n", "advertise_url: one address");
    accepted(story, "advertise_url = http://[fd00::5]:7400/roomd-1\n");
    refused(story, "advertise_url = 10.0.0.5:7400\n", "advertise_url: an address begins with neither");
    refused(story, "log_level = loud\n", "log_level: is loud; debug, info, warn or error is expected");
    refused(story, "broker_consume_heartbeat_ms = 3500\n", "must be whole seconds");
    refused(story, "beat_ms = 3000\n", "lease_ttl_ms: must be at least two beats");
}

static void secrets_are_never_shown(void **state)
{
    struct story *story = *state;
    struct buf out = {0};

    accepted(story, "service_keys = gw:hunter2\ndatabase_url = postgresql://u:hunter2@h/d\n");
    config_print(&story->config, &out);
    load(
        story, "service_keys = hunter2\nticket_keys = k:hunter2\nbroker_urls = http://u:hunter2@h\nheartbeat_ms = x\n");
    assert_false(story->ok);
    buf_add_str(&out, buf_str(&story->why));
    buf_char(&out, '\0');
    assert_null(strstr(out.p, "hunter2"));
    assert_non_null(strstr(out.p, "\nservice_keys = ***\n"));
    assert_non_null(strstr(out.p, "\nticket_keys = \n"));
    buf_clear(&out);
}

static void what_is_printed_reads_back_the_same(void **state)
{
    struct story *story = *state;
    struct buf first = {0}, second = {0}, file = {0};
    struct str rest;

    accepted(story,
        "heartbeat_ms = 5000\ntail_max_bytes = 1000000\ninstance_name = x\nallowed_origins = https://a, https://b\n");
    config_print(&story->config, &first);
    rest = buf_str(&first);
    while (rest.n) { /* without the secrets */
        const char *newline = memchr(rest.p, '\n', rest.n);
        size_t n = (size_t)(newline - rest.p) + 1;

        if (!memmem(rest.p, n, "***", 3))
            buf_add(&file, rest.p, n);
        rest = (struct str){rest.p + n, rest.n - n};
    }
    buf_char(&file, '\0');
    accepted(story, file.p);
    config_print(&story->config, &second);
    assert_true(str_eq(buf_str(&first), buf_str(&second)));
    buf_clear(&first);
    buf_clear(&second);
    buf_clear(&file);
}

static void the_manual_names_every_setting_in_one_row(void **state)
{
    struct buf out = {0};

    (void)state;
    config_manual(&out);
    buf_char(&out, '\0');
#define CONFIG_KEY(name, type, fallback, least, most, help)                                           \
    if (!strstr(out.p, "\n| " #name " | ") || !strstr(out.p, " | " help " |\n") || strchr(help, '|')) \
        fail_msg("no row for %s", #name);
#include "room/base/config_keys.h"
#undef CONFIG_KEY
    assert_non_null(strstr(out.p, "| 256k | bytes 4k to 64m |"));
    buf_clear(&out);
}

static void serving_needs_keys(void **state)
{
    struct story *story = *state;

    accepted(story, "service_keys = a:b\nticket_keys = k:12345678901234567890123456789012\n");
    buf_reset(&story->why);
    assert_true(config_check_serve(&story->config, &story->why));
    assert_int_equal(story->why.n, 0);
    accepted(story, "service_keys = ,\n");
    buf_reset(&story->why);
    assert_false(config_check_serve(&story->config, &story->why));
    buf_char(&story->why, '\0');
    assert_non_null(strstr(story->why.p, "service_keys: is empty"));
    assert_non_null(strstr(story->why.p, "ticket_keys: is empty"));
}

static void a_list_is_taken_apart_at_commas(void **state)
{
    struct str list = STR(" a, b c ,,d,"), item;

    (void)state;
    assert_true(settings_list_next(&list, &item) && str_is(item, "a"));
    assert_true(settings_list_next(&list, &item) && str_is(item, "b c"));
    assert_true(settings_list_next(&list, &item) && str_is(item, "d"));
    assert_false(settings_list_next(&list, &item));
    list = STR(" , ");
    assert_false(settings_list_next(&list, &item));
}

#define story_test(name) cmocka_unit_test_setup_teardown(name, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        story_test(defaults_are_a_whole_configuration),
        story_test(every_default_is_within_its_bounds),
        story_test(the_file_wins_over_the_default_and_the_environment_over_the_file),
        story_test(a_file_from_windows_reads_the_same),
        story_test(unknown_keys_are_refused_with_their_place_and_the_nearest_one),
        story_test(variables_meant_for_callers_are_let_pass),
        story_test(numbers_must_be_numbers_within_bounds),
        story_test(all_problems_are_told_at_once),
        story_test(what_the_file_reader_would_misread_is_refused),
        story_test(a_long_value_goes_on_in_the_next_line),
        story_test(a_secret_may_stand_in_a_file_of_its_own),
        story_test(a_file_that_cannot_be_read_is_told),
        story_test(what_must_fit_together_is_checked),
        story_test(secrets_are_never_shown),
        story_test(what_is_printed_reads_back_the_same),
        story_test(the_manual_names_every_setting_in_one_row),
        story_test(serving_needs_keys),
        cmocka_unit_test(a_list_is_taken_apart_at_commas),
    };

    return cmocka_run_group_tests(tests, begin_all, end_all);
}
