/* The head of a request, judged as raw bytes: see the header. */
#include "http_guard.h"

#include "text.h"

#include <strings.h>

/* What the fields that decide about framing say, each seen so many times. */
struct fields {
    unsigned hosts, lengths, encodings, singles[2];
    bool encoding_is_chunked;
};

static const char *const single_names[] = {"authorization", "content-type"};

static const char *request_line_check(struct http_head *head, struct str line);
static const char *target_check(struct str method, struct str target);
static const char *field_check(struct fields *fields, struct str line);
static const char *value_check(struct fields *fields, struct str name, struct str value);
static const char *fields_check(const struct fields *fields, int version);
static bool line_next(struct str *rest, struct str *line, const char **why);
static bool is_token_char(char c);
static bool is_host_char(char c);
static bool is_digits(struct str s);

bool http_head_check(struct http_head *head, const char *p, size_t n, int *status, const char **why)
{
    struct str rest = {p, n}, line;
    struct fields fields = {0};
    struct http_head found = {0};
    bool begun = false;

    *status = 400;
    *why = NULL;
    if (n >= 2 && p[0] == '\r' && p[1] == '\n')
        rest = (struct str){p + 2, n - 2};
    while (line_next(&rest, &line, why)) {
        if (!begun)
            *why = request_line_check(&found, line);
        else if (line.n)
            *why = field_check(&fields, line);
        else
            break;
        if (*why)
            return false;
        begun = true;
    }
    if (*why || (*why = fields_check(&fields, found.version)))
        return false;
    found.bytes = n - rest.n;
    if (found.bytes > HTTP_HEAD_MAX_BYTES) {
        *status = 431;
        *why = "the request line and headers are larger than 32768 bytes";
        return false;
    }
    *head = found;
    return true;
}

/* Cuts the next line off; false with *why when there is none or its end is not CRLF. */
static bool line_next(struct str *rest, struct str *line, const char **why)
{
    const char *lf = rest->n ? memchr(rest->p, '\n', rest->n) : NULL;
    size_t n = lf ? (size_t)(lf - rest->p) : 0;

    if (!lf)
        *why = "the head has no end";
    else if (n == 0 || lf[-1] != '\r')
        *why = "a line does not end in CRLF";
    else if (memchr(rest->p, '\r', n - 1))
        *why = "a line holds a bare CR";
    if (*why)
        return false;
    *line = (struct str){rest->p, n - 1};
    *rest = (struct str){lf + 1, rest->n - n - 1};
    return true;
}

static const char *request_line_check(struct http_head *head, struct str line)
{
    const char *first = line.n ? memchr(line.p, ' ', line.n) : NULL, *second;

    if (!first)
        return "the request line is not METHOD TARGET VERSION";
    head->method = (struct str){line.p, (size_t)(first - line.p)};
    second = memchr(first + 1, ' ', line.n - head->method.n - 1);
    if (!second || head->method.n == 0)
        return "the request line is not METHOD TARGET VERSION";
    head->target = (struct str){first + 1, (size_t)(second - first) - 1};
    for (size_t i = 0; i < head->method.n; i++) {
        if (!is_token_char(head->method.p[i]))
            return "the method is not a token";
    }
    struct str version = {second + 1, line.n - (size_t)(second + 1 - line.p)};
    if (str_is(version, "HTTP/1.1"))
        head->version = 11;
    else if (str_is(version, "HTTP/1.0"))
        head->version = 10;
    else
        return "the version is neither HTTP/1.1 nor HTTP/1.0";
    return target_check(head->method, head->target);
}

static const char *target_check(struct str method, struct str target)
{
    for (size_t i = 0; i < target.n; i++) {
        unsigned char c = (unsigned char)target.p[i];
        if (c <= ' ' || c >= 127)
            return "the target holds bytes that must be percent-encoded";
    }
    if (target.n && target.p[0] == '/')
        return NULL;
    if ((str_is(method, "OPTIONS") && str_is(target, "*")) || str_is(method, "CONNECT"))
        return NULL; /* answered 405 by whoever handles it */
    return "the target must begin with /";
}

static const char *field_check(struct fields *fields, struct str line)
{
    const char *colon = memchr(line.p, ':', line.n);
    struct str name, value;

    if (line.p[0] == ' ' || line.p[0] == '\t')
        return "a header is folded over two lines";
    if (!colon || colon == line.p)
        return "a header has no name";
    name = (struct str){line.p, (size_t)(colon - line.p)};
    value = str_trimmed((struct str){colon + 1, line.n - name.n - 1});
    for (size_t i = 0; i < name.n; i++) {
        if (!is_token_char(name.p[i]))
            return "a header name holds a byte that is not allowed (a space before the colon counts)";
    }
    for (size_t i = 0; i < value.n; i++) { /* >= 0x80 is obs-text: old, but one meaning */
        unsigned char c = (unsigned char)value.p[i];
        if ((c < ' ' && c != '\t') || c == 127)
            return "a header value holds a control character";
    }
    return value_check(fields, name, value);
}

static bool name_is(struct str name, const char *text)
{
    return name.n == strlen(text) && strncasecmp(name.p, text, name.n) == 0;
}

static const char *value_check(struct fields *fields, struct str name, struct str value)
{
    if (name_is(name, "host")) {
        fields->hosts++;
        for (size_t i = 0; i < value.n; i++) {
            if (!is_host_char(value.p[i]))
                return "Host holds a byte that is not allowed";
        }
    } else if (name_is(name, "content-length")) {
        fields->lengths++;
        if (!is_digits(value) || value.n > 18)
            return "Content-Length is not a plain number";
    } else if (name_is(name, "transfer-encoding")) {
        fields->encodings++;
        fields->encoding_is_chunked = name_is(value, "chunked");
    }
    for (size_t i = 0; i < countof(single_names); i++) {
        if (name_is(name, single_names[i]) && ++fields->singles[i] > 1)
            return "Authorization or Content-Type stands there twice";
    }
    return NULL;
}

static const char *fields_check(const struct fields *fields, int version)
{
    if (fields->hosts > 1 || (fields->hosts == 0 && version == 11))
        return "there must be exactly one Host";
    if (fields->lengths > 1)
        return "there is more than one Content-Length";
    if (fields->encodings > 1 || (fields->encodings && !fields->encoding_is_chunked))
        return "the only Transfer-Encoding here is chunked, once";
    if (fields->encodings && fields->lengths)
        return "Content-Length and Transfer-Encoding exclude each other";
    if (fields->encodings && version == 10)
        return "HTTP/1.0 has no Transfer-Encoding";
    return NULL;
}

static bool is_token_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           (c && strchr("!#$%&'*+-.^_`|~", c));
}

static bool is_host_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           (c && strchr("-._~:[]%!$&'()*+,;=", c));
}

static bool is_digits(struct str s)
{
    for (size_t i = 0; i < s.n; i++) {
        if (s.p[i] < '0' || s.p[i] > '9')
            return false;
    }
    return s.n > 0;
}
