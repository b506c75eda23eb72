/* Heads of answers; see answer.h. */
#define _GNU_SOURCE /* memmem */
#include "answer.h"

#include <string.h>
#include <strings.h>

#define LENGTH_DIGITS_MAX 15 /* more is no length of ours, and below INT64_MAX */

size_t answer_head(struct str bytes, int *status)
{
    static const char version[] = "HTTP/1.1 ";
    const char *end = bytes.n ? memmem(bytes.p, bytes.n, "\r\n\r\n", 4) : NULL, *digits;
    size_t n = end ? (size_t)(end - bytes.p) + 4 : 0;

    *status = 0;
    if (n < sizeof version + 6 || memcmp(bytes.p, version, sizeof version - 1) != 0) /* with 3 digits and 2 CRLF */
        return n;
    digits = bytes.p + sizeof version - 1;
    for (int i = 0; i < 3; i++) {
        if (digits[i] < '0' || digits[i] > '9') {
            *status = 0;
            break;
        }
        *status = 10 * *status + (digits[i] - '0');
    }
    return n;
}

struct str answer_header(struct str head, const char *name)
{
    size_t name_n = strlen(name);
    const char *at = head.p, *stop = at + head.n, *end;

    for (; at < stop && (end = memchr(at, '\n', (size_t)(stop - at))); at = end + 1) {
        struct str value;

        if ((size_t)(end - at) <= name_n || at[name_n] != ':' || strncasecmp(at, name, name_n) != 0)
            continue;
        value = (struct str){at + name_n + 1, (size_t)(end - at) - name_n - 1};
        while (value.n && (*value.p == ' ' || *value.p == '\t'))
            value.p++, value.n--;
        while (value.n && memchr("\r \t", value.p[value.n - 1], 3))
            value.n--;
        return value;
    }
    return STR("");
}

int64_t answer_length(struct str head)
{
    struct str text = answer_header(head, "content-length");
    int64_t length = 0;

    if (!text.n || text.n > LENGTH_DIGITS_MAX)
        return -1;
    for (size_t i = 0; i < text.n; i++) {
        if (text.p[i] < '0' || text.p[i] > '9')
            return -1;
        length = length * 10 + (text.p[i] - '0');
    }
    return length;
}
