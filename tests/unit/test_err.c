/* The table of errors keeps the contract with callers. */
#include "room/base/err.h"
#include "room/base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static void every_error_has_a_code_a_status_and_a_sentence(void **state)
{
    (void)state;
    for (int err = ERR_OK; err < ERR_COUNT; err++) {
        assert_true(strlen(err_code((enum err)err)) > 1);
        assert_true(strlen(err_sentence((enum err)err)) > 3);
        assert_true(
            err_http((enum err)err) == 200 || (err_http((enum err)err) >= 400 && err_http((enum err)err) < 600));
    }
    assert_int_equal(err_http(ERR_OK), 200);
}

/* A caller tells by the code alone what to do, so one code has one status. */
static void one_code_has_one_status(void **state)
{
    (void)state;
    for (int a = ERR_OK; a < ERR_COUNT; a++)
        for (int b = a + 1; b < ERR_COUNT; b++)
            if (strcmp(err_code((enum err)a), err_code((enum err)b)) == 0)
                assert_int_equal(err_http((enum err)a), err_http((enum err)b));
}

static void the_codes_callers_know_keep_their_status(void **state)
{
    static const struct {
        const char *code;
        int http;
    } promised[] = {{"bad_request", 400}, {"unauthenticated", 401}, {"ticket_expired", 401}, {"not_member", 403},
        {"forbidden", 403}, {"no_such_room", 404}, {"no_such_message", 404}, {"no_such_method", 404},
        {"room_gone", 410}, {"method_not_allowed", 405}, {"too_large", 413}, {"unsupported_media_type", 415},
        {"room_full", 409}, {"too_late", 409}, {"conflict", 409}, {"rate_limited", 429}, {"unavailable", 503},
        {"timeout", 504}};

    (void)state;
    for (size_t i = 0; i < countof(promised); i++) {
        int err = ERR_OK;

        while (err < ERR_COUNT && strcmp(err_code((enum err)err), promised[i].code) != 0)
            err++;
        if (err == ERR_COUNT)
            fail_msg("no error with code %s", promised[i].code);
        assert_int_equal(err_http((enum err)err), promised[i].http);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_error_has_a_code_a_status_and_a_sentence),
        cmocka_unit_test(one_code_has_one_status),
        cmocka_unit_test(the_codes_callers_know_keep_their_status),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
