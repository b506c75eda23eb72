#include "answer.h"

#include "room/base/text.h"

#include <stdio.h>
#include <strings.h>
#include <time.h>

#define ID_SHA256 27 /* where it stands in an id */

void request_read(struct request *request, const char *copy, const struct http_head *head, const char *from)
{
    struct str target = {copy + (head->target.p - from), head->target.n};
    const char *question = memchr(target.p, '?', target.n),
               *line = memchr(target.p, '\n', head->bytes - (size_t)(target.p - copy));

    *request = (struct request){.path = target};
    request->method = (struct str){copy + (head->method.p - from), head->method.n};
    if (question) {
        request->path.n = (size_t)(question - target.p);
        request->query = (struct str){question + 1, target.n - request->path.n - 1};
    }
    request->headers = (struct str){line + 1, head->bytes - (size_t)(line + 1 - copy)};
}

struct str request_header(const struct request *request, const char *name)
{
    struct str rest = request->headers;
    size_t length = strlen(name);
    const char *end;

    while ((end = rest.n ? memchr(rest.p, '\n', rest.n) : NULL)) {
        struct str line = {rest.p, (size_t)(end - rest.p)};

        line.n -= line.n && line.p[line.n - 1] == '\r';
        if (line.n > length && line.p[length] == ':' && strncasecmp(line.p, name, length) == 0)
            return str_trimmed((struct str){line.p + length + 1, line.n - length - 1});
        rest = (struct str){end + 1, rest.n - (size_t)(end + 1 - rest.p)};
    }
    return (struct str){NULL, 0};
}

bool request_lists(const struct request *request, const char *name, const char *word)
{
    struct str rest = request_header(request, name), item;

    while (str_next_item(&rest, &item))
        if (item.n == strlen(word) && strncasecmp(item.p, word, item.n) == 0)
            return true;
    return false;
}

struct str request_param(const struct request *request, const char *name)
{
    struct str rest = request->query;
    size_t length = strlen(name);

    while (rest.n) {
        const char *end = memchr(rest.p, '&', rest.n);
        struct str pair = {rest.p, end ? (size_t)(end - rest.p) : rest.n};

        if (pair.n > length && pair.p[length] == '=' && memcmp(pair.p, name, length) == 0)
            return (struct str){pair.p + length + 1, pair.n - length - 1};
        rest = end ? (struct str){end + 1, rest.n - pair.n - 1} : (struct str){NULL, 0};
    }
    return (struct str){NULL, 0};
}

bool param_decode(struct str *value, struct buf *scratch)
{
    size_t begin = scratch->n;

    if (!value->p)
        return true;
    if (!scratch->capacity)
        buf_reserve(scratch, HTTP_HEAD_MAX_BYTES);
    for (size_t i = 0; i < value->n; i++) {
        int high, low;

        if (value->p[i] != '%') {
            buf_char(scratch, value->p[i] == '+' ? ' ' : value->p[i]);
            continue;
        }
        if (value->n - i < 3 || (high = hex_digit(value->p[i + 1])) < 0 || (low = hex_digit(value->p[i + 2])) < 0)
            return false;
        buf_char(scratch, (char)(high << 4 | low));
        i += 2;
    }
    *value = (struct str){scratch->p + begin, scratch->n - begin};
    return true;
}

/* ------------------------------------------------------------------- ranges */

static void date_write(char text[40], const struct file_facts *facts)
{
    time_t seconds = (time_t)(facts->created_ms / 1000);
    struct tm utc;

    gmtime_r(&seconds, &utc);
    strftime(text, 40, "%a, %d %b %Y %H:%M:%S GMT", &utc); /* the program never leaves the C locale */
}

static bool is_tag(struct str text, const char *id)
{
    return text.n == 66 && text.p[0] == '"' && text.p[65] == '"' && memcmp(text.p + 1, id + ID_SHA256, 64) == 0;
}

static bool number_read(struct str *text, uint64_t *number)
{
    size_t n = 0;

    for (*number = 0; n < text->n && n < 18 && text->p[n] >= '0' && text->p[n] <= '9'; n++)
        *number = *number * 10 + (uint64_t)(text->p[n] - '0');
    *text = (struct str){text->p + n, text->n - n};
    return n > 0;
}

/* "bytes=first-last", "bytes=first-", "bytes=-count"; false: nothing we serve, so the whole is sent. */
static bool range_read(struct str text, uint64_t size, struct file_range *range)
{
    uint64_t first = 0, last = 0;
    bool has_first, has_last;

    if (text.n < 6 || strncasecmp(text.p, "bytes=", 6) != 0)
        return false;
    text = str_trimmed((struct str){text.p + 6, text.n - 6});
    has_first = number_read(&text, &first);
    if (!text.n || *text.p != '-')
        return false;
    text = (struct str){text.p + 1, text.n - 1};
    has_last = number_read(&text, &last);
    if (text.n || (!has_first && !has_last) || (has_first && has_last && last < first))
        return false;
    if (!has_first) { /* the last so many */
        first = last == 0 ? size : last < size ? size - last : 0;
        last = size - 1;
    } else if (!has_last || last >= size) {
        last = size - 1;
    }
    *range = first < size ? (struct file_range){206, first, last - first + 1} : (struct file_range){416, 0, 0};
    return true;
}

struct file_range range_of(const struct request *request, const char *id, const struct file_facts *facts)
{
    struct str asked = request_header(request, "range"), condition = request_header(request, "if-range"),
               known = request_header(request, "if-none-match");
    struct file_range range = {200, 0, facts->size};
    char date[40];

    if (is_tag(known, id) || str_is(known, "*"))
        return (struct file_range){304, 0, 0};
    date_write(date, facts);
    if (condition.p && !is_tag(condition, id) && !str_is(condition, date))
        return range; /* it has a piece of something else */
    if (asked.p)
        (void)range_read(asked, facts->size, &range);
    return range;
}

/* -------------------------------------------------------------------- heads */

static const char *reason_of(int status)
{
    static const struct {
        int status;
        const char *reason;
    } reasons[] = {{200, "OK"}, {206, "Partial Content"}, {304, "Not Modified"}, {400, "Bad Request"},
        {401, "Unauthorized"}, {404, "Not Found"}, {411, "Length Required"}, {413, "Content Too Large"},
        {415, "Unsupported Media Type"}, {416, "Range Not Satisfiable"}, {431, "Request Header Fields Too Large"},
        {503, "Service Unavailable"}};

    for (size_t i = 0; i < countof(reasons); i++)
        if (reasons[i].status == status)
            return reasons[i].reason;
    return "";
}

void json_head_write(struct buf *out, int status, size_t bytes, bool keep)
{
    buf_printf(out,
        "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\nCache-Control: "
        "no-store\r\n%s%s\r\n",
        status, reason_of(status), bytes, status == 503 ? "Retry-After: 1\r\n" : "",
        keep ? "" : "Connection: close\r\n");
}

/* A file never changes under its id, and a browser must never run one as a page of whoever passes it on. */
void file_head_write(
    struct buf *out, const char *id, const struct file_facts *facts, const struct file_range *range, bool keep)
{
    char date[40];

    date_write(date, facts);
    buf_printf(out,
        "HTTP/1.1 %d %s\r\nETag: \"%s\"\r\nLast-Modified: %s\r\nCache-Control: private, max-age=31536000, immutable\r\n"
        "Accept-Ranges: bytes\r\nX-Content-Type-Options: nosniff\r\nContent-Security-Policy: sandbox; default-src "
        "'none'\r\n",
        range->status, reason_of(range->status), id + ID_SHA256, date);
    if (range->status != 304)
        buf_printf(
            out, "Content-Type: %s\r\nContent-Length: %llu\r\n", facts->content_type, (unsigned long long)range->bytes);
    if (range->status == 206)
        buf_printf(out, "Content-Range: bytes %llu-%llu/%llu\r\n", (unsigned long long)range->first,
            (unsigned long long)(range->first + range->bytes - 1), (unsigned long long)facts->size);
    if (range->status == 416)
        buf_printf(out, "Content-Range: bytes */%llu\r\n", (unsigned long long)facts->size);
    if (facts->kind == FILE_OTHER)
        buf_text(out, "Content-Disposition: attachment\r\n");
    buf_text(out, keep ? "\r\n" : "Connection: close\r\n\r\n");
}

void facts_write(struct buf *out, const char *id, const struct file_facts *facts)
{
    buf_printf(out,
        "{\"file_id\":\"%s\",\"kind\":\"%s\",\"size\":%llu,\"content_type\":\"%s\",\"sha256\":\"%s\",\"created_at\":%"
        "llu}",
        id, file_kind_names[facts->kind], (unsigned long long)facts->size, facts->content_type, id + ID_SHA256,
        (unsigned long long)facts->created_ms);
}
