/*
 * A broker of a few lines on the loop of the test: it logs clients in, opens channels, writes down what is published,
 * and says exactly what a test tells it to, also what a real broker would not.
 */
#ifndef TESTS_UNIT_AMQP_FAKE_H
#define TESTS_UNIT_AMQP_FAKE_H

#include "amqp_world.h"

#include "room/base/amqp_codec.h"

#include <openssl/ssl.h>

enum { FAKE_PUBLISHES = 256, FAKE_CHANNELS = 16 };

struct fake_publish {
    uint16_t channel;
    bool mandatory;
    char exchange[64], routing_key[64], correlation[32], body[256];
    uint64_t body_bytes;
};

struct fake_conn {
    uv_tcp_t tcp;
    struct fake *fake;
    struct buf in;
    SSL *ssl;
    BIO *from_client, *to_client;
    bool closed;
};

struct fake {
    struct world *world;
    uv_tcp_t listener;
    char url[64], urls[256];
    SSL_CTX *tls;
    struct fake_conn *conn; /* the newest */

    /* what it does not do */
    bool mute_login, mute_answers, mute_close_ok, mute_goodbye, deaf;
    bool one_byte; /* each write is one byte */
    uint32_t frame_max, refuse_login;
    uint16_t publish_channel; /* where confirms and returns belong */
    const char *greeting;     /* instead of connection.start */
    size_t greeting_n;

    /* what it saw */
    int connections, heartbeats, goodbyes, published, acks, requests, close_oks;
    uint64_t last_ack;
    bool last_ack_multiple;
    int opened[FAKE_CHANNELS], closed[FAKE_CHANNELS];
    char consumer_tag[256];
    uint16_t consumer_channel; /* the newest */
    char name[64], user[64], tag_before[256];
    amqp_connection_tune_ok_t tuned;
    struct fake_publish publishes[FAKE_PUBLISHES];
    amqp_pool_t pool;
};

static inline void fake_conn_closed(uv_handle_t *handle)
{
    struct fake_conn *conn = container_of(handle, struct fake_conn, tcp);

    SSL_free(conn->ssl);
    buf_clear(&conn->in);
    free(conn);
}

static inline void fake_hang_up(struct fake *fake)
{
    struct fake_conn *conn = fake->conn;

    fake->conn = NULL;
    if (conn && !uv_is_closing((uv_handle_t *)&conn->tcp))
        uv_close((uv_handle_t *)&conn->tcp, fake_conn_closed);
}

static inline void fake_wrote(uv_write_t *write, int status)
{
    (void)status;
    free(write);
}

static inline void fake_put(struct fake_conn *conn, const char *p, size_t n)
{
    uv_write_t *write;
    uv_buf_t out;

    if (n == 0 || uv_is_closing((uv_handle_t *)&conn->tcp))
        return;
    write = xmalloc(sizeof(*write) + n);
    memcpy(write + 1, p, n);
    out = uv_buf_init((char *)(write + 1), (unsigned)n);
    assert_int_equal(uv_write(write, (uv_stream_t *)&conn->tcp, &out, 1, fake_wrote), 0);
}

static inline void fake_drain_tls(struct fake_conn *conn)
{
    char bytes[16384];
    int n;

    while ((n = BIO_read(conn->to_client, bytes, sizeof(bytes))) > 0)
        fake_put(conn, bytes, (size_t)n);
}

static inline void fake_say(struct fake *fake, const void *p, size_t n)
{
    const char *bytes = p;

    if (!fake->conn)
        return;
    if (fake->conn->ssl) {
        assert_int_equal(SSL_write(fake->conn->ssl, p, (int)n), n);
        fake_drain_tls(fake->conn);
        return;
    }
    for (size_t i = 0; fake->one_byte && i < n; i++)
        fake_put(fake->conn, bytes + i, 1);
    if (!fake->one_byte)
        fake_put(fake->conn, bytes, n);
}

static inline void fake_method(struct fake *fake, uint16_t channel, amqp_method_number_t method, void *fields)
{
    struct buf out = {0};

    codec_add_method(&out, channel, method, fields);
    fake_say(fake, out.p, out.n);
    buf_clear(&out);
}

static inline void fake_confirm(struct fake *fake, uint64_t tag, bool multiple, bool accept)
{
    amqp_basic_ack_t ack = {.delivery_tag = tag, .multiple = multiple};
    amqp_basic_nack_t nack = {.delivery_tag = tag, .multiple = multiple};

    if (accept)
        fake_method(fake, fake->publish_channel, AMQP_BASIC_ACK_METHOD, &ack);
    else
        fake_method(fake, fake->publish_channel, AMQP_BASIC_NACK_METHOD, &nack);
}

static inline void fake_close_channel(struct fake *fake, uint16_t channel, uint16_t code, const char *text)
{
    amqp_channel_close_t close = {.reply_code = code, .reply_text = amqp_cstring_bytes(text)};

    fake_method(fake, channel, AMQP_CHANNEL_CLOSE_METHOD, &close);
}

/* A raw frame: any type, any payload; `lie` is added to its length field. */
static inline void fake_frame(struct fake *fake, int type, uint16_t channel, const void *payload, size_t n, int lie)
{
    struct buf out = {0};
    uint32_t size = (uint32_t)((int)n + lie);

    buf_char(&out, (char)type);
    buf_char(&out, (char)(channel >> 8));
    buf_char(&out, (char)channel);
    for (int shift = 24; shift >= 0; shift -= 8)
        buf_char(&out, (char)(size >> shift));
    buf_add(&out, payload, n);
    buf_char(&out, (char)0xCE);
    fake_say(fake, out.p, out.n);
    buf_clear(&out);
}

/* A content header without properties, or with a message id. */
static inline void fake_header(struct fake *fake, uint16_t channel, uint64_t body_bytes, const char *message_id)
{
    struct buf payload = {0};

    buf_add(&payload, "\0\x3c\0\0", 4);
    for (int shift = 56; shift >= 0; shift -= 8)
        buf_char(&payload, (char)(body_bytes >> shift));
    buf_add(&payload, message_id ? "\0\x80" : "\0\0", 2);
    if (message_id) {
        buf_char(&payload, (char)strlen(message_id));
        buf_text(&payload, message_id);
    }
    fake_frame(fake, CODEC_HEADER, channel, payload.p, payload.n, 0);
    buf_clear(&payload);
}

static inline void fake_deliver_method(struct fake *fake, uint16_t channel, uint64_t tag)
{
    amqp_basic_deliver_t deliver = {.consumer_tag = amqp_cstring_bytes(fake->consumer_tag),
        .delivery_tag = tag,
        .exchange = amqp_cstring_bytes("ex"),
        .routing_key = amqp_cstring_bytes("key")};

    fake_method(fake, channel, AMQP_BASIC_DELIVER_METHOD, &deliver);
}

static inline void fake_deliver(struct fake *fake, uint16_t channel, uint64_t tag, const char *body)
{
    fake_deliver_method(fake, channel, tag);
    fake_header(fake, channel, strlen(body), "m1");
    if (*body)
        fake_frame(fake, CODEC_BODY, channel, body, strlen(body), 0);
}

static inline void fake_return(struct fake *fake, const char *correlation)
{
    amqp_basic_return_t returned = {.reply_code = 312, .reply_text = amqp_cstring_bytes("NO_ROUTE")};
    struct buf payload = {0};

    fake_method(fake, fake->publish_channel, AMQP_BASIC_RETURN_METHOD, &returned);
    buf_add(&payload, "\0\x3c\0\0\0\0\0\0\0\0\0\4\x04\0", 14);
    buf_char(&payload, (char)strlen(correlation));
    buf_text(&payload, correlation);
    fake_frame(fake, CODEC_HEADER, fake->publish_channel, payload.p, payload.n, 0);
    fake_frame(fake, CODEC_BODY, fake->publish_channel, "bo", 2, 0);
    fake_frame(fake, CODEC_BODY, fake->publish_channel, "dy", 2, 0);
    buf_clear(&payload);
}

static inline void fake_blocked(struct fake *fake, bool blocked)
{
    amqp_connection_blocked_t why = {.reason = amqp_cstring_bytes("low on memory")};
    amqp_connection_unblocked_t unblocked = {0};

    if (blocked)
        fake_method(fake, 0, AMQP_CONNECTION_BLOCKED_METHOD, &why);
    else
        fake_method(fake, 0, AMQP_CONNECTION_UNBLOCKED_METHOD, &unblocked);
}

/* --- what it hears --- */

static inline void fake_copy(char *to, size_t size, struct str from)
{
    snprintf(to, size, "%.*s", STR_ARG(from));
}

static inline void fake_log_in(struct fake *fake, uint32_t method, void *decoded)
{
    amqp_connection_tune_t tune = {.channel_max = 2047, .frame_max = fake->frame_max, .heartbeat = 60};
    amqp_connection_open_ok_t open_ok = {0};
    amqp_connection_close_t refused = {.reply_code = 403, .reply_text = amqp_cstring_bytes("ACCESS_REFUSED")};

    if (method == AMQP_CONNECTION_START_OK_METHOD) {
        amqp_connection_start_ok_t *ok = decoded;
        struct str response = codec_str(ok->response);

        fake_copy(fake->user, sizeof(fake->user), (struct str){response.p + 1, response.n - 1});
        if (fake->refuse_login)
            fake_method(fake, 0, AMQP_CONNECTION_CLOSE_METHOD, &refused);
        else
            fake_method(fake, 0, AMQP_CONNECTION_TUNE_METHOD, &tune);
    } else if (method == AMQP_CONNECTION_TUNE_OK_METHOD) {
        fake->tuned = *(amqp_connection_tune_ok_t *)decoded;
    } else if (method == AMQP_CONNECTION_OPEN_METHOD && !fake->mute_login) {
        fake_method(fake, 0, AMQP_CONNECTION_OPEN_OK_METHOD, &open_ok);
    }
}

static inline void fake_channel_method(struct fake *fake, uint16_t channel, uint32_t method, void *decoded)
{
    amqp_channel_open_ok_t open_ok = {0};
    amqp_confirm_select_ok_t select_ok = {0};
    amqp_channel_close_ok_t close_ok = {0};
    amqp_basic_qos_ok_t qos_ok = {0};

    assert_true(channel < FAKE_CHANNELS);
    if (method == AMQP_CHANNEL_OPEN_METHOD) {
        fake->opened[channel]++;
        fake_method(fake, channel, AMQP_CHANNEL_OPEN_OK_METHOD, &open_ok);
    } else if (method == AMQP_CONFIRM_SELECT_METHOD) {
        fake_method(fake, channel, AMQP_CONFIRM_SELECT_OK_METHOD, &select_ok);
    } else if (method == AMQP_CHANNEL_CLOSE_METHOD) {
        fake->closed[channel]++;
        if (!fake->mute_close_ok)
            fake_method(fake, channel, AMQP_CHANNEL_CLOSE_OK_METHOD, &close_ok);
    } else if (method == AMQP_CHANNEL_CLOSE_OK_METHOD) {
        fake->close_oks++;
    } else if (method == AMQP_BASIC_QOS_METHOD) {
        fake_method(fake, channel, AMQP_BASIC_QOS_OK_METHOD, &qos_ok);
    } else if (method == AMQP_BASIC_CONSUME_METHOD) {
        amqp_basic_consume_ok_t ok = {.consumer_tag = ((amqp_basic_consume_t *)decoded)->consumer_tag};

        memcpy(fake->tag_before, fake->consumer_tag, sizeof(fake->consumer_tag));
        fake_copy(fake->consumer_tag, sizeof(fake->consumer_tag), codec_str(ok.consumer_tag));
        fake->consumer_channel = channel;
        fake_method(fake, channel, AMQP_BASIC_CONSUME_OK_METHOD, &ok);
    } else if (method == AMQP_BASIC_ACK_METHOD) {
        fake->acks++;
        fake->last_ack = ((amqp_basic_ack_t *)decoded)->delivery_tag;
        fake->last_ack_multiple = ((amqp_basic_ack_t *)decoded)->multiple;
    } else if (method == AMQP_BASIC_PUBLISH_METHOD) {
        struct fake_publish *publish = &fake->publishes[fake->published++ % FAKE_PUBLISHES];

        *publish = (struct fake_publish){.channel = channel, .mandatory = ((amqp_basic_publish_t *)decoded)->mandatory};
        fake_copy(publish->routing_key, sizeof(publish->routing_key),
            codec_str(((amqp_basic_publish_t *)decoded)->routing_key));
        fake_copy(publish->exchange, sizeof(publish->exchange), codec_str(((amqp_basic_publish_t *)decoded)->exchange));
    } else {
        fake->requests++;
    }
}

static inline void fake_answer(struct fake *fake, uint32_t method)
{
    amqp_exchange_declare_ok_t exchange = {0};
    amqp_queue_declare_ok_t queue = {.queue = amqp_cstring_bytes("q"), .message_count = 7, .consumer_count = 3};
    amqp_queue_bind_ok_t bind = {0};

    if (fake->mute_answers)
        return;
    if (method == AMQP_EXCHANGE_DECLARE_METHOD)
        fake_method(fake, 1, AMQP_EXCHANGE_DECLARE_OK_METHOD, &exchange);
    else if (method == AMQP_QUEUE_DECLARE_METHOD)
        fake_method(fake, 1, AMQP_QUEUE_DECLARE_OK_METHOD, &queue);
    else if (method == AMQP_QUEUE_BIND_METHOD)
        fake_method(fake, 1, AMQP_QUEUE_BIND_OK_METHOD, &bind);
}

static inline void fake_hear(struct fake *fake, const struct codec_frame *frame)
{
    uint32_t method = frame->type == CODEC_METHOD ? codec_method(frame->payload) : 0;
    struct fake_publish *publish = &fake->publishes[(fake->published + FAKE_PUBLISHES - 1) % FAKE_PUBLISHES];
    amqp_connection_close_ok_t close_ok = {0};
    struct codec_content content;
    void *decoded = NULL;

    if (frame->type == CODEC_HEARTBEAT) {
        fake->heartbeats++;
    } else if (frame->type == CODEC_HEADER) {
        assert_true(codec_read_content(frame->payload, &content));
        publish->body_bytes = content.body_bytes;
        fake_copy(publish->correlation, sizeof(publish->correlation), content.correlation_id);
    } else if (frame->type == CODEC_BODY) {
        fake_copy(publish->body, sizeof(publish->body), frame->payload);
    } else {
        recycle_amqp_pool(&fake->pool);
        assert_int_equal(amqp_decode_method(method, &fake->pool,
                             codec_bytes((struct str){frame->payload.p + 4, frame->payload.n - 4}), &decoded),
            0);
        if (method == AMQP_CONNECTION_CLOSE_METHOD) {
            fake->goodbyes++;
            if (!fake->mute_goodbye)
                fake_method(fake, 0, AMQP_CONNECTION_CLOSE_OK_METHOD, &close_ok);
        } else if (frame->channel == 0) {
            fake_log_in(fake, method, decoded);
        } else {
            fake_channel_method(fake, frame->channel, method, decoded);
            if (frame->channel == 1)
                fake_answer(fake, method);
        }
    }
}

static inline void fake_greet(struct fake *fake)
{
    static const char start[] = "\0\x0a\0\x0a\0\x09\0\0\0\0\0\0\0\x0e"
                                "PLAIN AMQPLAIN\0\0\0\5en_US";

    if (fake->greeting)
        fake_say(fake, fake->greeting, fake->greeting_n);
    else
        fake_frame(fake, CODEC_METHOD, 0, start, sizeof(start) - 1, 0);
}

static inline void fake_heard(struct fake_conn *conn)
{
    struct fake *fake = conn->fake;
    struct codec_frame frame;
    ptrdiff_t n;

    if (conn->in.n >= 8 && memcmp(conn->in.p, "AMQP", 4) == 0) {
        buf_consume(&conn->in, 8);
        fake_greet(fake);
    }
    while ((n = codec_read_frame(buf_str(&conn->in), CODEC_FRAME_MAX_MAX, &frame)) > 0) {
        fake_hear(fake, &frame);
        buf_consume(&conn->in, (size_t)n);
    }
    assert_true(n == 0 || conn->in.n < 8);
}

static inline void fake_alloc(uv_handle_t *handle, size_t hint, uv_buf_t *out)
{
    (void)handle;
    *out = uv_buf_init(xmalloc(hint), (unsigned)hint);
}

static inline void fake_take(struct fake_conn *conn, const char *p, size_t n)
{
    char plain[16384];
    int got;

    if (!conn->ssl) {
        buf_add(&conn->in, p, n);
        return;
    }
    assert_int_equal(BIO_write(conn->from_client, p, (int)n), n);
    if (!SSL_is_init_finished(conn->ssl))
        SSL_do_handshake(conn->ssl);
    while (SSL_is_init_finished(conn->ssl) && (got = SSL_read(conn->ssl, plain, sizeof(plain))) > 0)
        buf_add(&conn->in, plain, (size_t)got);
    fake_drain_tls(conn);
}

static inline void fake_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *in)
{
    struct fake_conn *conn = container_of(stream, struct fake_conn, tcp);
    struct fake *fake = conn->fake;

    if (n < 0 && fake->conn == conn) {
        fake_hang_up(fake);
    } else if (n < 0 && !uv_is_closing((uv_handle_t *)stream)) {
        uv_close((uv_handle_t *)stream, fake_conn_closed);
    } else if (n > 0 && !fake->deaf) {
        fake_take(conn, in->base, (size_t)n);
        if (fake->conn == conn)
            fake_heard(conn);
    }
    free(in->base);
}

static inline void fake_accept(uv_stream_t *listener, int status)
{
    struct fake *fake = container_of(listener, struct fake, listener);
    struct fake_conn *conn = xcalloc(1, sizeof(*conn));

    assert_int_equal(status, 0);
    conn->fake = fake;
    uv_tcp_init(listener->loop, &conn->tcp);
    assert_int_equal(uv_accept(listener, (uv_stream_t *)&conn->tcp), 0);
    uv_tcp_nodelay(&conn->tcp, 1);
    if (fake->tls) {
        conn->ssl = SSL_new(fake->tls);
        conn->from_client = BIO_new(BIO_s_mem());
        conn->to_client = BIO_new(BIO_s_mem());
        SSL_set_bio(conn->ssl, conn->from_client, conn->to_client);
        SSL_set_accept_state(conn->ssl);
    }
    fake->conn = conn;
    fake->connections++;
    uv_read_start((uv_stream_t *)&conn->tcp, fake_alloc, fake_read);
}

/* --- TLS --- */

/* From now on it speaks TLS, with a new certificate for `host` that stands in the file `path`: whoever trusts that file
 * trusts it. */
static inline void fake_use_tls(struct fake *fake, const char *host, const char *path)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *certificate = X509_new();
    FILE *file = fopen(path, "w");

    X509_set_version(certificate, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate), -60);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
    X509_set_pubkey(certificate, key);
    X509_NAME_add_entry_by_txt(
        X509_get_subject_name(certificate), "CN", MBSTRING_ASC, (const unsigned char *)host, -1, -1, 0);
    X509_set_issuer_name(certificate, X509_get_subject_name(certificate));
    assert_true(X509_sign(certificate, key, EVP_sha256()) > 0);
    PEM_write_X509(file, certificate);
    fclose(file);
    SSL_CTX_free(fake->tls);
    fake->tls = SSL_CTX_new(TLS_server_method());
    assert_int_equal(SSL_CTX_use_certificate(fake->tls, certificate), 1);
    assert_int_equal(SSL_CTX_use_PrivateKey(fake->tls, key), 1);
    X509_free(certificate);
    EVP_PKEY_free(key);
}

/* --- its life --- */

static inline struct fake *fake_new(void)
{
    struct fake *fake = xcalloc(1, sizeof(*fake));
    struct sockaddr_in any;
    int n = sizeof(any);

    fake->world = world_new();
    fake->frame_max = 131072;
    fake->publish_channel = 2;
    init_amqp_pool(&fake->pool, 4096);
    uv_ip4_addr("127.0.0.1", 0, &any);
    uv_tcp_init(&fake->world->loop, &fake->listener);
    assert_int_equal(uv_tcp_bind(&fake->listener, (struct sockaddr *)&any, 0), 0);
    assert_int_equal(uv_listen((uv_stream_t *)&fake->listener, 16, fake_accept), 0);
    uv_tcp_getsockname(&fake->listener, (struct sockaddr *)&any, &n);
    snprintf(fake->url, sizeof(fake->url), "amqp://me:secret@127.0.0.1:%u/v", ntohs(any.sin_port));
    return fake;
}

static inline void fake_free(struct fake *fake)
{
    world_close_link(fake->world);
    fake->mute_goodbye = false;
    /* The link says goodbye to us on the same loop: hang up only then. */
    for (int i = 0; fake->conn && i < 200; i++)
        uv_run(&fake->world->loop, UV_RUN_ONCE);
    fake_hang_up(fake);
    uv_close((uv_handle_t *)&fake->listener, NULL);
    world_free(fake->world);
    empty_amqp_pool(&fake->pool);
    SSL_CTX_free(fake->tls);
    free(fake);
}

static inline void fake_connect_with(struct fake *fake, const struct amqp_settings *settings)
{
    assert_int_equal(amqp_link_open(&fake->world->link, &fake->world->loop, settings), ERR_OK);
}

static inline void fake_connect(struct fake *fake)
{
    struct amqp_settings settings = world_settings(fake->world, fake->url);

    fake_connect_with(fake, &settings);
    until(fake->world, amqp_link_up(fake->world->link));
}

#endif
