/* What a handler gets to see of a request, and which requests it never sees. See http.h. */
#include "http_guard.h"
#include "http_impl.h"
#include "msgpack.h"
#include "text.h"

#include <strings.h>

enum media { MEDIA_NONE, MEDIA_JSON, MEDIA_MSGPACK, MEDIA_OTHER };

static void request_fill(struct http_request *request, h2o_req_t *req, const struct http_head *head);
static bool body_read(struct http_request *request, struct http_reply *reply, struct buf *scratch);
static enum media media_of(struct str content_type);
static bool accepts_msgpack(struct str accept, bool otherwise);
static bool percent_decode(struct buf *out, struct str s);

static struct str str_of_iovec(h2o_iovec_t v)
{
    return (struct str){v.base, v.len};
}

static bool is_nocase(struct str s, const char *text)
{
    return s.n == strlen(text) && strncasecmp(s.p, text, s.n) == 0;
}

/* Cuts off what stands before `separator` (outside of quotes), trimmed; false at the end. */
static bool next_part(struct str *rest, char separator, struct str *part)
{
    bool quoted = false;
    size_t n;

    if (rest->p == NULL)
        return false;
    for (n = 0; n < rest->n && (quoted || rest->p[n] != separator); n++)
        quoted ^= rest->p[n] == '"';
    *part = str_trimmed((struct str){rest->p, n});
    *rest = n < rest->n ? (struct str){rest->p + n + 1, rest->n - n - 1} : (struct str){NULL, 0};
    return true;
}

bool request_read(struct http_request *request, struct http_reply *reply, struct buf *scratch)
{
    h2o_req_t *req = reply->req;
    const h2o_socket_t *sock = req->conn->callbacks->get_socket(req->conn);
    struct http_head head;
    const char *why;
    int status;

    /* libh2o leaves the head where it came in until the answer is sent; a chunked body is unpacked behind it. */
    if (!http_head_check(&head, sock->input->bytes, sock->input->size, &status, &why)) {
        reply_refuse(reply, status, status == 400 ? ERR_BAD_REQUEST : ERR_TOO_LARGE, why);
        return false;
    }
    request_fill(request, req, &head);
    reply->wire->head_bytes = head.bytes;
    request->raw_bytes = reply->wire->body_left;
    return body_read(request, reply, scratch);
}

static void request_fill(struct http_request *request, h2o_req_t *req, const struct http_head *head)
{
    struct str target = str_of_iovec(req->input.path);
    const char *question = target.n ? memchr(target.p, '?', target.n) : NULL;

    *request = (struct http_request){.impl = req, .version = head->version};
    request->method_text = str_of_iovec(req->input.method);
    request->method = str_is(request->method_text, "GET")    ? HTTP_GET
                      : str_is(request->method_text, "HEAD") ? HTTP_HEAD
                      : str_is(request->method_text, "POST") ? HTTP_POST
                                                             : HTTP_OTHER;
    request->path = target;
    if (question) {
        request->path.n = (size_t)(question - target.p);
        request->query = (struct str){question + 1, target.n - request->path.n - 1};
    }
    request->body = str_of_iovec(req->entity);
    request->has_body = req->entity.base && req->entity.len;
}

/* Answers in the type of the request unless Accept names the other, also when it refuses. */
static bool body_read(struct http_request *request, struct http_reply *reply, struct buf *scratch)
{
    struct str encoding = http_header(request, "content-encoding");
    enum media media = media_of(http_header(request, "content-type"));
    int64_t max = reply->server->request_max_bytes;
    const char *why;

    request->wants_msgpack = accepts_msgpack(http_header(request, "accept"), media == MEDIA_MSGPACK);
    reply->wants_msgpack = request->wants_msgpack;
    if (!request->has_body)
        return true;
    if ((int64_t)request->body.n > max)
        http_reply_error(reply, ERR_TOO_LARGE, NULL, "the body is larger than the limit of %lld bytes", (long long)max);
    else if (request->method == HTTP_GET || request->method == HTTP_HEAD)
        http_reply_error(reply, ERR_BAD_REQUEST, NULL, "GET and HEAD take no body");
    else if (encoding.n && !is_nocase(encoding, "identity"))
        http_reply_error(reply, ERR_UNSUPPORTED_MEDIA_TYPE, NULL, "send the body without Content-Encoding");
    else if (request->method != HTTP_POST || media == MEDIA_JSON)
        return true;
    else if (media != MEDIA_MSGPACK)
        http_reply_error(reply, ERR_UNSUPPORTED_MEDIA_TYPE, NULL, NULL);
    else if (!msgpack_to_json(request->body, scratch, &why))
        http_reply_error(reply, ERR_BAD_REQUEST, NULL, "%s", why);
    else {
        request->body = buf_str(scratch);
        return true;
    }
    reply->server->counters.refused_total++;
    return false;
}

static enum media media_of(struct str content_type)
{
    struct str rest = content_type, part;
    enum media media;

    if (!next_part(&rest, ';', &part) || part.n == 0)
        return MEDIA_NONE;
    if (is_nocase(part, "application/json"))
        media = MEDIA_JSON;
    else if (is_nocase(part, "application/msgpack"))
        media = MEDIA_MSGPACK;
    else
        return MEDIA_OTHER;
    while (next_part(&rest, ';', &part)) {
        if (part.n >= 8 && strncasecmp(part.p, "charset=", 8) == 0) {
            struct str charset = {part.p + 8, part.n - 8};
            if (!is_nocase(charset, "utf-8") && !is_nocase(charset, "\"utf-8\""))
                return MEDIA_OTHER;
        }
    }
    return media;
}

/* RFC 9110 12.4.2: 0 to 1 with up to three digits, as thousandths; what cannot be read counts as 1. */
static int quality_of(struct str parameters)
{
    struct str part;
    int quality = 1000, unit = 100;

    while (next_part(&parameters, ';', &part)) {
        if (part.n < 3 || (part.p[0] | 32) != 'q' || part.p[1] != '=')
            continue;
        quality = part.p[2] == '0' ? 0 : 1000;
        for (size_t i = 4; i < part.n && i < 7 && quality < 1000; i++, unit /= 10)
            quality += part.p[i] >= '0' && part.p[i] <= '9' ? (part.p[i] - '0') * unit : 0;
        break;
    }
    return quality;
}

/* A named type counts more than a range that holds it; equal ones, and none at all, leave it at `otherwise`. */
static bool accepts_msgpack(struct str accept, bool otherwise)
{
    int json = -1, msgpack = -1, any = 0;
    struct str range, type;

    while (next_part(&accept, ',', &range)) {
        if (!next_part(&range, ';', &type))
            continue;
        if (is_nocase(type, "application/json"))
            json = quality_of(range);
        else if (is_nocase(type, "application/msgpack"))
            msgpack = quality_of(range);
        else if (is_nocase(type, "*/*") || is_nocase(type, "application/*"))
            any = quality_of(range);
    }
    json = json < 0 ? any : json;
    msgpack = msgpack < 0 ? any : msgpack;
    return json == msgpack ? otherwise : msgpack > json;
}

struct str http_header(const struct http_request *request, const char *name)
{
    const h2o_req_t *req = request->impl;
    ssize_t at;

    /* These two libh2o keeps apart. (It gives `upgrade` only when Connection names it, as RFC 9110 7.8 wants.) */
    if (strcmp(name, "host") == 0)
        return str_trimmed(str_of_iovec(req->input.authority));
    if (strcmp(name, "upgrade") == 0)
        return str_trimmed(str_of_iovec(req->upgrade));
    at = h2o_find_header_by_str(&req->headers, name, strlen(name), -1);
    return at < 0 ? (struct str){NULL, 0} : str_trimmed(str_of_iovec(req->headers.entries[at].value));
}

bool http_query_param(
    const struct http_request *request, const char *name, size_t index, struct buf *scratch, struct str *value)
{
    return query_find(request->query, name, index, scratch, value);
}

bool query_find(struct str query, const char *name, size_t index, struct buf *scratch, struct str *value)
{
    struct str rest = query, pair, key;
    size_t begin = scratch->n;

    if (rest.n == 0)
        return false;
    while (rest.p) {
        const char *end = rest.n ? memchr(rest.p, '&', rest.n) : NULL, *equals;
        pair = end ? (struct str){rest.p, (size_t)(end - rest.p)} : rest;
        rest = end ? (struct str){end + 1, rest.n - pair.n - 1} : (struct str){NULL, 0};
        equals = pair.n ? memchr(pair.p, '=', pair.n) : NULL;
        key = equals ? (struct str){pair.p, (size_t)(equals - pair.p)} : pair;
        if (!str_is(key, name) || index--)
            continue;
        pair = equals ? (struct str){equals + 1, pair.n - key.n - 1} : (struct str){NULL, 0};
        if (!percent_decode(scratch, pair))
            return false;
        *value = (struct str){scratch->p ? scratch->p + begin : "", scratch->n - begin};
        return true;
    }
    return false;
}

static bool percent_decode(struct buf *out, struct str s)
{
    size_t begin = out->n;

    for (size_t i = 0; i < s.n; i++) {
        int high, low;

        if (s.p[i] != '%') {
            buf_char(out, s.p[i] == '+' ? ' ' : s.p[i]);
            continue;
        }
        if (s.n - i < 3 || (high = hex_digit(s.p[i + 1])) < 0 || (low = hex_digit(s.p[i + 2])) < 0 ||
            (high | low) == 0) {
            out->n = begin;
            return false;
        }
        buf_char(out, (char)(high << 4 | low));
        i += 2;
    }
    return true;
}
