/* Heads of answers that the gateway gets from instances and the BaseService. */
#include "gateway-adapter/gateway/answer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static size_t read_head(const char *text, int *status)
{
    return answer_head(str_of(text), status);
}

static void a_head_is_there_when_its_empty_line_is(void **state)
{
    static const char whole[] = "HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\n\r\n";
    int status;

    (void)state;
    for (size_t n = 0; n < sizeof whole - 1; n++)
        assert_int_equal(answer_head((struct str){whole, n}, &status), 0);
    assert_int_equal(
        read_head("HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\n\r\nhello\r\n\r\n", &status), sizeof whole - 1);
    assert_int_equal(status, 206);
}

static void what_is_no_answer_has_no_status(void **state)
{
    static const char *const heads[] = {"\r\n\r\n", "HTTP/1.1 \r\n\r\n", "HTTP/1.1 2\r\n\r\n",
        "HTTP/1.1 20x OK\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\n", "HTTP/2 200\r\n\r\n", "AMQP\r\n\r\n"};
    int status = 7;

    (void)state;
    for (size_t i = 0; i < countof(heads); i++) {
        assert_int_equal(read_head(heads[i], &status), strlen(heads[i]));
        assert_int_equal(status, 0);
    }
    assert_int_equal(read_head("HTTP/1.1 200\r\n\r\n", &status), 16);
    assert_int_equal(status, 200);
}

static void headers_are_found_in_any_case_and_whole(void **state)
{
    const struct str head = str_of(
        "HTTP/1.1 200 OK\r\nX-Content-Length: 1\r\nContent-Type:\t text/plain \r\nETAG: \"a:b\"\r\nEmpty:\r\n\r\n");

    (void)state;
    assert_true(str_is(answer_header(head, "content-type"), "text/plain"));
    assert_true(str_is(answer_header(head, "etag"), "\"a:b\""));
    assert_int_equal(answer_header(head, "empty").n, 0);
    assert_int_equal(answer_header(head, "content").n, 0);
    assert_int_equal(answer_length(head), -1);
}

static void a_length_is_a_number_or_none(void **state)
{
    static const struct {
        const char *text;
        int64_t length;
    } table[] = {{"0", 0}, {"5", 5}, {" 1048576 ", 1048576}, {"", -1}, {"-1", -1}, {"5x", -1}, {"5, 5", -1},
        {"9999999999999999", -1}};

    (void)state;
    for (size_t i = 0; i < countof(table); i++) {
        struct buf head = {0};

        buf_printf(&head, "HTTP/1.1 200 OK\r\ncontent-length:%s\r\n\r\n", table[i].text);
        assert_int_equal(answer_length(buf_str(&head)), table[i].length);
        buf_clear(&head);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_head_is_there_when_its_empty_line_is),
        cmocka_unit_test(what_is_no_answer_has_no_status),
        cmocka_unit_test(headers_are_found_in_any_case_and_whole),
        cmocka_unit_test(a_length_is_a_number_or_none),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
