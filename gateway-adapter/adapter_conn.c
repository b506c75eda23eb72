/* One connection; see adapter_conn.h. */
#include "adapter_conn.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ_BYTES = 64 << 10, READS_A_TURN = 8, CONNECT_MS = 1000 /* then the name's next address */ };

/* RESOLVING -> CONNECTING (each address) -> TLS -> OPEN; any -> BROKEN (told) */
enum conn_state { CONN_RESOLVING, CONN_CONNECTING, CONN_TLS, CONN_OPEN, CONN_BROKEN };

/* Belongs to the connection and the thread; the last one frees it. */
struct lookup {
    atomic_int holders;
    char host[ADAPTER_PART_MAX_BYTES + 1], service[8];
    int event_fd, failed;
    struct addrinfo *found;
};

struct adapter_conn_private {
    struct adapter_conn *conn;
    struct adapter_watch watch; /* the look-up's event, then the socket */
    struct adapter_address address;
    struct lookup *lookup;
    struct addrinfo *found, *next;
    SSL *ssl;
    enum conn_state state;
    int64_t deadline;
    char why[640];
};

static void conn_resolved(struct adapter_conn_private *private, struct addrinfo *found, int failed);
static void conn_try_next(struct adapter_conn_private *private);
static void conn_ready(struct adapter_watch *watch, uint32_t events);
static void conn_handshake(struct adapter_conn_private *private);

static void conn_break(struct adapter_conn_private *private)
{
    if (private->state == CONN_BROKEN)
        return;
    private->state = CONN_BROKEN;
    if (private->conn->owner)
    private->conn->events->broken(private->conn->owner, private->why);
}

/* ------------------------------------------------------------------ look-up */

static void lookup_drop(struct lookup *lookup)
{
    if (atomic_fetch_sub(&lookup->holders, 1) > 1)
        return;
    if (lookup->found)
        freeaddrinfo(lookup->found);
    close(lookup->event_fd);
    free(lookup);
}

static void *lookup_run(void *arg)
{
    struct lookup *lookup = arg;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    ssize_t written;

    lookup->failed = getaddrinfo(lookup->host, lookup->service, &hints, &lookup->found);
    written = write(lookup->event_fd, &(uint64_t){1}, 8);
    (void)written; /* an eventfd's counter cannot be full after one write */
    lookup_drop(lookup);
    return NULL;
}

static void lookup_ready(struct adapter_watch *watch, uint32_t events)
{
    struct adapter_conn_private *private = container_of(watch, struct adapter_conn_private, watch);
    struct lookup *lookup = private->lookup;
    struct addrinfo *found = lookup->found;
    int failed = lookup->failed;

    (void)events;
    adapter_watch_set(private->conn->client, watch, 0);
    watch->fd = -1;
    lookup->found = NULL;
    private->lookup = NULL;
    lookup_drop(lookup);
    conn_resolved(private, found, failed);
}

static bool lookup_start(struct adapter_conn_private *private)
{
    struct lookup *lookup = calloc(1, sizeof(*lookup));
    pthread_attr_t attributes;
    pthread_t thread;
    int failed;

    if (!lookup)
        return false;
    atomic_init(&lookup->holders, 2);
    snprintf(lookup->host, sizeof(lookup->host), "%s", private->address.host);
    snprintf(lookup->service, sizeof(lookup->service), "%u", private->address.port);
    lookup->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (lookup->event_fd < 0)
        goto fail_free;
    private->watch.fd = lookup->event_fd;
    private->watch.ready = lookup_ready;
    if (!adapter_watch_set(private->conn->client, &private->watch, EPOLLIN))
        goto fail_close;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    failed = pthread_create(&thread, &attributes, lookup_run, lookup);
    pthread_attr_destroy(&attributes);
    if (failed)
        goto fail_watch;
    private->lookup = lookup;
    return true;

fail_watch:
    adapter_watch_set(private->conn->client, &private->watch, 0);
fail_close:
    close(lookup->event_fd);
fail_free:
    private
    ->watch.fd = -1;
    free(lookup);
    return false;
}

/* ------------------------------------------------------------------ opening, in the order the steps run */

static const struct addrinfo *numeric(struct adapter_conn_private *private)
{
    struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV | AI_NUMERICHOST};
    char service[8];

    snprintf(service, sizeof(service), "%u", private->address.port);
    if (getaddrinfo(private->address.host, service, &hints, &private->found))
    private->found = NULL;
    return private->found;
}

struct adapter_conn *adapter_conn_open(struct roomd_client *client, const struct adapter_address *address,
    const struct adapter_conn_events *events, void *owner)
{
    struct adapter_conn *conn = calloc(1, sizeof(*conn));
    struct adapter_conn_private *private = calloc(1, sizeof(*private));

    if (!conn || !private) {
        free(conn);
        free(private);
        return NULL;
    }
    conn->client = client;
    conn->events = events;
    conn->owner = owner;
    conn->in_max = SIZE_MAX;
    conn->private = private;
    conn->heard = conn->sent = client->now;
    adapter_list_init(&conn->dead);
    private->conn = conn;
    private->watch.fd = -1;
    private->address = *address;
    private->deadline = client->now + CONNECT_MS;
    if (numeric(private)) { /* the socket is writable, or has an error, on a later turn */
        private->next = private->found;
        private->state = CONN_CONNECTING;
        conn_try_next(private);
        if (private->watch.fd >= 0)
            return conn;
    } else if (lookup_start(private)) {
        return conn;
    }
    conn->owner = NULL;
    adapter_conn_drop(conn);
    return NULL;
}

static void conn_resolved(struct adapter_conn_private *private, struct addrinfo *found, int failed)
{
    if (failed) {
        snprintf(private->why, sizeof(private->why), "%s: %s", private->address.host, gai_strerror(failed));
        conn_break(private);
        return;
    }
    private->found = private->next = found;
    private->state = CONN_CONNECTING;
    conn_try_next(private);
    if (private->watch.fd < 0)
        conn_break(private);
}

static void socket_close(struct adapter_conn_private *private)
{
    if (private->watch.fd < 0 || private->lookup)
        return;
    adapter_watch_set(private->conn->client, &private->watch, 0);
    close(private->watch.fd);
    private->watch.fd = -1;
}

static bool conn_try(struct adapter_conn_private *private, const struct addrinfo *to)
{
    int fd = socket(to->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;

    if (fd < 0)
        goto fail;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    private->watch.fd = fd;
    private->watch.ready = conn_ready;
    if ((connect(fd, to->ai_addr, to->ai_addrlen) && errno != EINPROGRESS) ||
        !adapter_watch_set(private->conn->client, &private->watch, EPOLLOUT))
        goto fail;
    private->deadline = private->conn->client->now + CONNECT_MS;
    return true;

fail:
    snprintf(private->why, sizeof(private->why), "connect to %s:%u: %s", private->address.host, private->address.port,
        strerror(errno));
    if (fd >= 0)
        close(fd);
    private->watch.fd = -1;
    return false;
}

/* watch.fd stays -1 when no address is left. */
static void conn_try_next(struct adapter_conn_private *private)
{
    socket_close(private);
    while (private->next) {
        const struct addrinfo *to = private->next;

        private->next = to->ai_next;
        if (conn_try(private, to))
            return;
    }
}

static void conn_opened(struct adapter_conn_private *private)
{
    private->state = CONN_OPEN;
    private->conn->heard = private->conn->sent = private->conn->client->now;
    adapter_watch_set(private->conn->client, &private->watch, EPOLLIN);
    private->conn->events->connected(private->conn->owner);
}

static bool tls_start(struct adapter_conn_private *private)
{
    BIO *in = BIO_new(BIO_s_mem()), *out = BIO_new(BIO_s_mem());
    unsigned char ip[16];

    private->ssl = SSL_new(private->conn->client->tls);
    if (!in || !out || !private->ssl) {
        BIO_free(in);
        BIO_free(out);
        return false;
    }
    BIO_set_mem_eof_return(in, -1); /* empty means "later", not "the end" */
    SSL_set_bio(private->ssl, in, out);
    if (inet_pton(AF_INET, private->address.host, ip) == 1 || inet_pton(AF_INET6, private->address.host, ip) == 1) {
        X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(private->ssl), private->address.host);
    } else {
        SSL_set_tlsext_host_name(private->ssl, private->address.host);
        SSL_set1_host(private->ssl, private->address.host);
    }
    SSL_set_connect_state(private->ssl);
    return true;
}

static void conn_connected(struct adapter_conn_private *private)
{
    int error = 0;
    socklen_t n = sizeof(error);

    if (getsockopt(private->watch.fd, SOL_SOCKET, SO_ERROR, &error, &n))
        error = errno;
    if (error) {
        snprintf(private->why, sizeof(private->why), "connect to %s:%u: %s", private->address.host,
            private->address.port, strerror(error));
        conn_try_next(private);
        if (private->watch.fd < 0)
            conn_break(private);
        return;
    }
    if (!private->address.tls) {
        conn_opened(private);
        return;
    }
    private->state = CONN_TLS;
    if (!tls_start(private)) {
        snprintf(private->why, sizeof(private->why), "TLS: out of memory");
        conn_break(private);
        return;
    }
    conn_handshake(private);
}

void adapter_conn_tick(struct adapter_conn *conn)
{
    struct adapter_conn_private *private = conn->private;

    if (private->state != CONN_CONNECTING || conn->client->now < private->deadline || !private->next)
        return;
    snprintf(private->why, sizeof(private->why), "connect to %s: no answer", private->address.host);
    conn_try_next(private);
    if (private->watch.fd < 0)
        conn_break(private);
}

/* ------------------------------------------------------------------ bytes */

static void note_errno(struct adapter_conn_private *private, ssize_t result, const char *what)
{
    if (result == 0)
        snprintf(private->why, sizeof(private->why), "closed by the peer");
    else
        snprintf(private->why, sizeof(private->why), "%s: %s", what, strerror(errno));
}

static void note_tls(struct adapter_conn_private *private)
{
    long verify = SSL_get_verify_result(private->ssl);
    const char *reason = ERR_reason_error_string(ERR_peek_last_error());

    if (verify != X509_V_OK)
        snprintf(private->why, sizeof(private->why), "TLS: certificate: %s", X509_verify_cert_error_string(verify));
    else
        snprintf(private->why, sizeof(private->why), "TLS: %s", reason ? reason : "closed by the peer");
}

/* > 0 sent, 0 later, -1 broken. */
static ssize_t socket_send(struct adapter_conn_private *private, const char *p, size_t n)
{
    ssize_t sent = send(private->watch.fd, p, n, MSG_NOSIGNAL);

    if (sent >= 0) {
        private->conn->sent = private->conn->client->now;
        return sent;
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)
        return 0;
    note_errno(private, sent, "write");
    return -1;
}

/* What OpenSSL wants to send; true when nothing is left. */
static bool tls_drain(struct adapter_conn_private *private, bool *broken)
{
    BIO *out = SSL_get_wbio(private->ssl);
    char *p;
    long n;

    while ((n = BIO_get_mem_data(out, &p)) > 0) {
        ssize_t sent = socket_send(private, p, (size_t)n);
        char gone[4096];

        if (sent <= 0) {
            *broken = sent < 0;
            return false;
        }
        while (sent > 0)
            sent -= BIO_read(out, gone, sent > (ssize_t)sizeof(gone) ? (int)sizeof(gone) : (int)sent);
    }
    return true;
}

/* Sends what it can; false when broken. */
static bool bytes_out(struct adapter_conn_private *private)
{
    struct adapter_buf *out = &private->conn->out;
    bool broken = false;
    size_t used = 0;

    while (used < out->n) {
        size_t n = out->n - used;
        ssize_t sent;

        if (private->ssl) {
            if (!tls_drain(private, &broken))
                break;
            ERR_clear_error();
            sent = SSL_write(private->ssl, out->p + used, n > READ_BYTES ? READ_BYTES : (int)n);
            if (sent <= 0 && SSL_get_error(private->ssl, (int)sent) != SSL_ERROR_WANT_READ) {
                note_tls(private);
                broken = true;
            }
            sent = sent < 0 ? 0 : sent;
        } else {
            sent = socket_send(private, out->p + used, n);
            broken = sent < 0;
        }
        if (broken || sent == 0)
            break;
        used += (size_t)sent;
    }
    if (used)
        adapter_buf_consume(out, used);
    if (private->ssl && !broken)
        tls_drain(private, &broken);
    return !broken;
}

static void conn_watch(struct adapter_conn_private *private)
{
    struct adapter_conn *conn = private->conn;
    bool waits = conn->out.n > 0 || (private->ssl && BIO_ctrl_pending(SSL_get_wbio(private->ssl)) > 0);

    if (private->state == CONN_OPEN)
        adapter_watch_set(conn->client, &private->watch,
            (conn->in.n < conn->in_max ? (uint32_t)EPOLLIN : 0) | (waits ? (uint32_t)EPOLLOUT : 0));
    else if (private->state == CONN_TLS)
        adapter_watch_set(conn->client, &private->watch, (uint32_t)EPOLLIN | (waits ? (uint32_t)EPOLLOUT : 0));
}

void adapter_conn_flush(struct adapter_conn *conn)
{
    struct adapter_conn_private *private = conn->private;

    if (private->state != CONN_OPEN)
        return;
    if (bytes_out(private))
        conn_watch(private);
    else /* told by the next turn: the socket has an error, or ends, or the peer's last words are still to be read */
        adapter_watch_set(conn->client, &private->watch, EPOLLIN | EPOLLOUT);
}

/* One read from the socket to where it belongs: > 0, 0 later, -1 the end. */
static ssize_t socket_read(struct adapter_conn_private *private, char *p, size_t n)
{
    ssize_t got = recv(private->watch.fd, p, n, 0);

    if (got > 0) {
        private->conn->heard = private->conn->client->now;
        return got;
    }
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        return 0;
    note_errno(private, got, "read");
    return -1;
}

static bool tls_decrypt(struct adapter_conn_private *private)
{
    struct adapter_buf *in = &private->conn->in;

    for (;;) {
        char *to = adapter_buf_reserve(in, 16 << 10);
        int got, error;

        if (!to) {
            snprintf(private->why, sizeof(private->why), "out of memory");
            return false;
        }
        ERR_clear_error();
        got = SSL_read(private->ssl, to, 16 << 10);
        if (got > 0) {
            in->n += (size_t)got;
            continue;
        }
        error = SSL_get_error(private->ssl, got);
        if (error == SSL_ERROR_WANT_READ)
            return true;
        note_tls(private);
        return false;
    }
}

/* One portion; *more when there may be another. false: broken. */
static bool bytes_in(struct adapter_conn_private *private, bool *more)
{
    struct adapter_buf *in = &private->conn->in;
    char cipher[16 << 10], *to;
    ssize_t got;

    *more = false;
    if (private->ssl) {
        got = socket_read(private, cipher, sizeof(cipher));
        if (got > 0 && BIO_write(SSL_get_rbio(private->ssl), cipher, (int)got) != got) {
            snprintf(private->why, sizeof(private->why), "out of memory");
            return false;
        }
        *more = got == (ssize_t)sizeof(cipher);
        return got >= 0 && (got == 0 || private->state == CONN_TLS || tls_decrypt(private));
    }
    to = adapter_buf_reserve(in, READ_BYTES);
    if (!to) {
        snprintf(private->why, sizeof(private->why), "out of memory");
        return false;
    }
    got = socket_read(private, to, READ_BYTES);
    if (got > 0)
        in->n += (size_t)got;
    *more = got == READ_BYTES;
    return got >= 0;
}

static void conn_read(struct adapter_conn_private *private)
{
    struct adapter_conn *conn = private->conn;
    bool more = true;

    for (int i = 0; i < READS_A_TURN && more && conn->owner && conn->in.n < conn->in_max; i++) {
        size_t before = conn->in.n;
        bool ok = bytes_in(private, &more);

        if (conn->in.n > before)
            conn->events->received(conn->owner);
        if (!ok && conn->owner) {
            conn_break(private);
            return;
        }
    }
}

static void conn_handshake(struct adapter_conn_private *private)
{
    bool broken = false;
    int result, error;

    ERR_clear_error();
    result = SSL_do_handshake(private->ssl);
    error = SSL_get_error(private->ssl, result);
    tls_drain(private, &broken);
    if (result != 1 && error != SSL_ERROR_WANT_READ) {
        note_tls(private);
        broken = true;
    }
    if (broken) {
        conn_break(private);
    } else if (result == 1) {
        conn_opened(private);
        /* What came behind the handshake's last record lies in OpenSSL already. */
        if (private->conn->owner && private->state == CONN_OPEN && !tls_decrypt(private))
            conn_break(private);
        else if (private->conn->owner && private->conn->in.n)
        private->conn->events->received(private->conn->owner);
    } else {
        conn_watch(private);
    }
}

static void conn_ready(struct adapter_watch *watch, uint32_t events)
{
    struct adapter_conn_private *private = container_of(watch, struct adapter_conn_private, watch);
    bool more;

    switch (private->state) {
    case CONN_CONNECTING:
        conn_connected(private);
        break;
    case CONN_TLS:
        if (!bytes_in(private, &more))
            conn_break(private);
        else
            conn_handshake(private);
        break;
    case CONN_OPEN:
        /* A peer that gives up says why before it closes: read that first, even when writing fails. */
        if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
            conn_read(private);
        if (private->conn->owner && private->state == CONN_OPEN && events & EPOLLOUT && !bytes_out(private))
            conn_break(private);
        if (private->conn->owner)
            conn_watch(private);
        break;
    case CONN_RESOLVING:
    case CONN_BROKEN:
        break;
    }
}

void adapter_conn_drop(struct adapter_conn *conn)
{
    struct adapter_conn_private *private = conn->private;

    conn->owner = NULL;
    if (private->lookup) {
        adapter_watch_set(conn->client, &private->watch, 0);
        lookup_drop(private->lookup);
        private->lookup = NULL;
        private->watch.fd = -1;
    }
    socket_close(private);
    private->watch.ready = NULL;
    private->state = CONN_BROKEN;
    adapter_list_push(&conn->client->dead_conns, &conn->dead);
}

void adapter_conns_reap(struct roomd_client *client)
{
    while (!adapter_list_empty(&client->dead_conns)) {
        struct adapter_conn *conn = container_of(client->dead_conns.next, struct adapter_conn, dead);

        adapter_list_remove(&conn->dead);
        if (conn->private->found)
            freeaddrinfo(conn->private->found);
        SSL_free(conn->private->ssl);
        adapter_buf_clear(&conn->in);
        adapter_buf_clear(&conn->out);
        free(conn->private);
        free(conn);
    }
}
