#include "err.h"

#include "mem.h"

#include <assert.h>

static const struct {
    int http;
    const char *code, *sentence;
} table[] = {
#define X(id, http, code, sentence) [id] = {http, code, sentence},
    ERR_TABLE(X)
#undef X
};

_Static_assert(countof(table) == ERR_COUNT, "a row for every error");

const char *err_code(enum err err)
{
    assert((unsigned)err < ERR_COUNT);
    return table[err].code;
}

const char *err_sentence(enum err err)
{
    assert((unsigned)err < ERR_COUNT);
    return table[err].sentence;
}

int err_http(enum err err)
{
    assert((unsigned)err < ERR_COUNT);
    return table[err].http;
}
