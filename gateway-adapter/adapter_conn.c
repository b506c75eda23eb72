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

static void conn_resolved(struct adapter_conn_private *self, struct addrinfo *found, int failed);
static void conn_try_next(struct adapter_conn_private *self);
static void conn_ready(struct adapter_watch *watch, uint32_t events);
static void conn_handshake(struct adapter_conn_private *self);

static void conn_break(struct adapter_conn_private *self)
{
    if (self->state == CONN_BROKEN)
        return;
    self->state = CONN_BROKEN;
    if (self->conn->owner)
        self->conn->events->broken(self->conn->owner, self->why);
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
    struct adapter_conn_private *self = container_of(watch, struct adapter_conn_private, watch);
    struct lookup *lookup = self->lookup;
    struct addrinfo *found = lookup->found;
    int failed = lookup->failed;

    (void)events;
    adapter_watch_set(self->conn->client, watch, 0);
    watch->fd = -1;
    lookup->found = NULL;
    self->lookup = NULL;
    lookup_drop(lookup);
    conn_resolved(self, found, failed);
}

static bool lookup_start(struct adapter_conn_private *self)
{
    struct lookup *lookup = calloc(1, sizeof(*lookup));
    pthread_attr_t attributes;
    pthread_t thread;
    int failed;

    if (!lookup)
        return false;
    atomic_init(&lookup->holders, 2);
    snprintf(lookup->host, sizeof(lookup->host), "%s", self->address.host);
    snprintf(lookup->service, sizeof(lookup->service), "%u", self->address.port);
    lookup->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (lookup->event_fd < 0)
        goto fail_free;
    self->watch.fd = lookup->event_fd;
    self->watch.ready = lookup_ready;
    if (!adapter_watch_set(self->conn->client, &self->watch, EPOLLIN))
        goto fail_close;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    failed = pthread_create(&thread, &attributes, lookup_run, lookup);
    pthread_attr_destroy(&attributes);
    if (failed)
        goto fail_watch;
    self->lookup = lookup;
    return true;

fail_watch:
    adapter_watch_set(self->conn->client, &self->watch, 0);
fail_close:
    close(lookup->event_fd);
fail_free:
    self->watch.fd = -1;
    free(lookup);
    return false;
}

/* ------------------------------------------------------------------ opening, in the order the steps run */

static const struct addrinfo *numeric(struct adapter_conn_private *self)
{
    struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV | AI_NUMERICHOST};
    char service[8];

    snprintf(service, sizeof(service), "%u", self->address.port);
    if (getaddrinfo(self->address.host, service, &hints, &self->found))
        self->found = NULL;
    return self->found;
}

struct adapter_conn *adapter_conn_open(struct roomd_client *client, const struct adapter_address *address,
    const struct adapter_conn_events *events, void *owner)
{
    struct adapter_conn *conn = calloc(1, sizeof(*conn));
    struct adapter_conn_private *self = calloc(1, sizeof(*self));

    if (!conn || !self) {
        free(conn);
        free(self);
        return NULL;
    }
    conn->client = client;
    conn->events = events;
    conn->owner = owner;
    conn->in_max = SIZE_MAX;
    conn->self = self;
    conn->heard = conn->sent = client->now;
    adapter_list_init(&conn->dead);
    self->conn = conn;
    self->watch.fd = -1;
    self->address = *address;
    self->deadline = client->now + CONNECT_MS;
    if (numeric(self)) { /* the socket is writable, or has an error, on a later turn */
        self->next = self->found;
        self->state = CONN_CONNECTING;
        conn_try_next(self);
        if (self->watch.fd >= 0)
            return conn;
    } else if (lookup_start(self)) {
        return conn;
    }
    conn->owner = NULL;
    adapter_conn_drop(conn);
    return NULL;
}

static void conn_resolved(struct adapter_conn_private *self, struct addrinfo *found, int failed)
{
    if (failed) {
        snprintf(self->why, sizeof(self->why), "%s: %s", self->address.host, gai_strerror(failed));
        conn_break(self);
        return;
    }
    self->found = self->next = found;
    self->state = CONN_CONNECTING;
    conn_try_next(self);
    if (self->watch.fd < 0)
        conn_break(self);
}

static void socket_close(struct adapter_conn_private *self)
{
    if (self->watch.fd < 0 || self->lookup)
        return;
    adapter_watch_set(self->conn->client, &self->watch, 0);
    close(self->watch.fd);
    self->watch.fd = -1;
}

static bool conn_try(struct adapter_conn_private *self, const struct addrinfo *to)
{
    int fd = socket(to->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;

    if (fd < 0)
        goto fail;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    self->watch.fd = fd;
    self->watch.ready = conn_ready;
    if ((connect(fd, to->ai_addr, to->ai_addrlen) && errno != EINPROGRESS) ||
        !adapter_watch_set(self->conn->client, &self->watch, EPOLLOUT))
        goto fail;
    self->deadline = self->conn->client->now + CONNECT_MS;
    return true;

fail:
    snprintf(
        self->why, sizeof(self->why), "connect to %s:%u: %s", self->address.host, self->address.port, strerror(errno));
    if (fd >= 0)
        close(fd);
    self->watch.fd = -1;
    return false;
}

/* watch.fd stays -1 when no address is left. */
static void conn_try_next(struct adapter_conn_private *self)
{
    socket_close(self);
    while (self->next) {
        const struct addrinfo *to = self->next;

        self->next = to->ai_next;
        if (conn_try(self, to))
            return;
    }
}

static void conn_opened(struct adapter_conn_private *self)
{
    self->state = CONN_OPEN;
    self->conn->heard = self->conn->sent = self->conn->client->now;
    adapter_watch_set(self->conn->client, &self->watch, EPOLLIN);
    self->conn->events->connected(self->conn->owner);
}

static bool tls_start(struct adapter_conn_private *self)
{
    BIO *in = BIO_new(BIO_s_mem()), *out = BIO_new(BIO_s_mem());
    unsigned char ip[16];

    self->ssl = SSL_new(self->conn->client->tls);
    if (!in || !out || !self->ssl) {
        BIO_free(in);
        BIO_free(out);
        return false;
    }
    BIO_set_mem_eof_return(in, -1); /* empty means "later", not "the end" */
    SSL_set_bio(self->ssl, in, out);
    if (inet_pton(AF_INET, self->address.host, ip) == 1 || inet_pton(AF_INET6, self->address.host, ip) == 1) {
        X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(self->ssl), self->address.host);
    } else {
        SSL_set_tlsext_host_name(self->ssl, self->address.host);
        SSL_set1_host(self->ssl, self->address.host);
    }
    SSL_set_connect_state(self->ssl);
    return true;
}

static void conn_connected(struct adapter_conn_private *self)
{
    int error = 0;
    socklen_t n = sizeof(error);

    if (getsockopt(self->watch.fd, SOL_SOCKET, SO_ERROR, &error, &n))
        error = errno;
    if (error) {
        snprintf(self->why, sizeof(self->why), "connect to %s:%u: %s", self->address.host, self->address.port,
            strerror(error));
        conn_try_next(self);
        if (self->watch.fd < 0)
            conn_break(self);
        return;
    }
    if (!self->address.tls) {
        conn_opened(self);
        return;
    }
    self->state = CONN_TLS;
    if (!tls_start(self)) {
        snprintf(self->why, sizeof(self->why), "TLS: out of memory");
        conn_break(self);
        return;
    }
    conn_handshake(self);
}

void adapter_conn_tick(struct adapter_conn *conn)
{
    struct adapter_conn_private *self = conn->self;

    if (self->state != CONN_CONNECTING || conn->client->now < self->deadline || !self->next)
        return;
    snprintf(self->why, sizeof(self->why), "connect to %s: no answer", self->address.host);
    conn_try_next(self);
    if (self->watch.fd < 0)
        conn_break(self);
}

/* ------------------------------------------------------------------ bytes */

static void note_errno(struct adapter_conn_private *self, ssize_t result, const char *what)
{
    if (result == 0)
        snprintf(self->why, sizeof(self->why), "closed by the peer");
    else
        snprintf(self->why, sizeof(self->why), "%s: %s", what, strerror(errno));
}

static void note_tls(struct adapter_conn_private *self)
{
    long verify = SSL_get_verify_result(self->ssl);
    const char *reason = ERR_reason_error_string(ERR_peek_last_error());

    if (verify != X509_V_OK)
        snprintf(self->why, sizeof(self->why), "TLS: certificate: %s", X509_verify_cert_error_string(verify));
    else
        snprintf(self->why, sizeof(self->why), "TLS: %s", reason ? reason : "closed by the peer");
}

/* > 0 sent, 0 later, -1 broken. */
static ssize_t socket_send(struct adapter_conn_private *self, const char *p, size_t n)
{
    ssize_t sent = send(self->watch.fd, p, n, MSG_NOSIGNAL);

    if (sent >= 0) {
        self->conn->sent = self->conn->client->now;
        return sent;
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)
        return 0;
    note_errno(self, sent, "write");
    return -1;
}

/* What OpenSSL wants to send; true when nothing is left. */
static bool tls_drain(struct adapter_conn_private *self, bool *broken)
{
    BIO *out = SSL_get_wbio(self->ssl);
    char *p;
    long n;

    while ((n = BIO_get_mem_data(out, &p)) > 0) {
        ssize_t sent = socket_send(self, p, (size_t)n);
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
static bool bytes_out(struct adapter_conn_private *self)
{
    struct adapter_buf *out = &self->conn->out;
    bool broken = false;
    size_t used = 0;

    if (out->failed) { /* something is missing in it: half of it may not leave */
        snprintf(self->why, sizeof(self->why), "out of memory");
        return false;
    }
    while (used < out->n) {
        size_t n = out->n - used;
        ssize_t sent;

        if (self->ssl) {
            if (!tls_drain(self, &broken))
                break;
            ERR_clear_error();
            sent = SSL_write(self->ssl, out->p + used, n > READ_BYTES ? READ_BYTES : (int)n);
            if (sent <= 0 && SSL_get_error(self->ssl, (int)sent) != SSL_ERROR_WANT_READ) {
                note_tls(self);
                broken = true;
            }
            sent = sent < 0 ? 0 : sent;
        } else {
            sent = socket_send(self, out->p + used, n);
            broken = sent < 0;
        }
        if (broken || sent == 0)
            break;
        used += (size_t)sent;
    }
    if (used)
        adapter_buf_consume(out, used);
    if (self->ssl && !broken)
        tls_drain(self, &broken);
    return !broken;
}

static void conn_watch(struct adapter_conn_private *self)
{
    struct adapter_conn *conn = self->conn;
    bool waits = conn->out.n > 0 || (self->ssl && BIO_ctrl_pending(SSL_get_wbio(self->ssl)) > 0);

    if (self->state == CONN_OPEN)
        adapter_watch_set(conn->client, &self->watch,
            (conn->in.n < conn->in_max ? (uint32_t)EPOLLIN : 0) | (waits ? (uint32_t)EPOLLOUT : 0));
    else if (self->state == CONN_TLS)
        adapter_watch_set(conn->client, &self->watch, (uint32_t)EPOLLIN | (waits ? (uint32_t)EPOLLOUT : 0));
}

void adapter_conn_flush(struct adapter_conn *conn)
{
    struct adapter_conn_private *self = conn->self;

    if (self->state != CONN_OPEN)
        return;
    if (bytes_out(self))
        conn_watch(self);
    else /* told by the next turn: the socket has an error, or ends, or the peer's last words are still to be read */
        adapter_watch_set(conn->client, &self->watch, EPOLLIN | EPOLLOUT);
}

/* One read from the socket to where it belongs: > 0, 0 later, -1 the end. */
static ssize_t socket_read(struct adapter_conn_private *self, char *p, size_t n)
{
    ssize_t got = recv(self->watch.fd, p, n, 0);

    if (got > 0) {
        self->conn->heard = self->conn->client->now;
        return got;
    }
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        return 0;
    note_errno(self, got, "read");
    return -1;
}

static bool tls_decrypt(struct adapter_conn_private *self)
{
    struct adapter_buf *in = &self->conn->in;

    for (;;) {
        char *to = adapter_buf_reserve(in, 16 << 10);
        int got, error;

        if (!to) {
            snprintf(self->why, sizeof(self->why), "out of memory");
            return false;
        }
        ERR_clear_error();
        got = SSL_read(self->ssl, to, 16 << 10);
        if (got > 0) {
            in->n += (size_t)got;
            continue;
        }
        error = SSL_get_error(self->ssl, got);
        if (error == SSL_ERROR_WANT_READ)
            return true;
        note_tls(self);
        return false;
    }
}

/* One portion; *more when there may be another. false: broken. */
static bool bytes_in(struct adapter_conn_private *self, bool *more)
{
    struct adapter_buf *in = &self->conn->in;
    char cipher[16 << 10], *to;
    ssize_t got;

    *more = false;
    if (self->ssl) {
        got = socket_read(self, cipher, sizeof(cipher));
        if (got > 0 && BIO_write(SSL_get_rbio(self->ssl), cipher, (int)got) != got) {
            snprintf(self->why, sizeof(self->why), "out of memory");
            return false;
        }
        *more = got == (ssize_t)sizeof(cipher);
        return got >= 0 && (got == 0 || self->state == CONN_TLS || tls_decrypt(self));
    }
    to = adapter_buf_reserve(in, READ_BYTES);
    if (!to) {
        snprintf(self->why, sizeof(self->why), "out of memory");
        return false;
    }
    got = socket_read(self, to, READ_BYTES);
    if (got > 0)
        in->n += (size_t)got;
    *more = got == READ_BYTES;
    return got >= 0;
}

static void conn_read(struct adapter_conn_private *self)
{
    struct adapter_conn *conn = self->conn;
    bool more = true;

    for (int i = 0; i < READS_A_TURN && more && conn->owner && conn->in.n < conn->in_max; i++) {
        size_t before = conn->in.n;
        bool ok = bytes_in(self, &more);

        if (conn->in.n > before)
            conn->events->received(conn->owner);
        if (!ok && conn->owner) {
            conn_break(self);
            return;
        }
    }
}

static void conn_handshake(struct adapter_conn_private *self)
{
    bool broken = false;
    int result, error;

    ERR_clear_error();
    result = SSL_do_handshake(self->ssl);
    error = SSL_get_error(self->ssl, result);
    tls_drain(self, &broken);
    if (result != 1 && error != SSL_ERROR_WANT_READ) {
        note_tls(self);
        broken = true;
    }
    if (broken) {
        conn_break(self);
    } else if (result == 1) {
        conn_opened(self);
        /* What came behind the handshake's last record lies in OpenSSL already. */
        if (self->conn->owner && self->state == CONN_OPEN && !tls_decrypt(self))
            conn_break(self);
        else if (self->conn->owner && self->conn->in.n)
            self->conn->events->received(self->conn->owner);
    } else {
        conn_watch(self);
    }
}

static void conn_ready(struct adapter_watch *watch, uint32_t events)
{
    struct adapter_conn_private *self = container_of(watch, struct adapter_conn_private, watch);
    bool more;

    switch (self->state) {
    case CONN_CONNECTING:
        conn_connected(self);
        break;
    case CONN_TLS:
        if (!bytes_in(self, &more))
            conn_break(self);
        else
            conn_handshake(self);
        break;
    case CONN_OPEN:
        /* A peer that gives up says why before it closes: read that first, even when writing fails. */
        if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
            conn_read(self);
        if (self->conn->owner && self->state == CONN_OPEN && events & EPOLLOUT && !bytes_out(self))
            conn_break(self);
        if (self->conn->owner)
            conn_watch(self);
        break;
    case CONN_RESOLVING:
    case CONN_BROKEN:
        break;
    }
}

void adapter_conn_drop(struct adapter_conn *conn)
{
    struct adapter_conn_private *self = conn->self;

    conn->owner = NULL;
    if (self->lookup) {
        adapter_watch_set(conn->client, &self->watch, 0);
        lookup_drop(self->lookup);
        self->lookup = NULL;
        self->watch.fd = -1;
    }
    socket_close(self);
    self->watch.ready = NULL;
    self->state = CONN_BROKEN;
    adapter_list_push(&conn->client->dead_conns, &conn->dead);
}

void adapter_conns_reap(struct roomd_client *client)
{
    while (!adapter_list_empty(&client->dead_conns)) {
        struct adapter_conn *conn = container_of(client->dead_conns.next, struct adapter_conn, dead);

        adapter_list_remove(&conn->dead);
        if (conn->self->found)
            freeaddrinfo(conn->self->found);
        SSL_free(conn->self->ssl);
        adapter_buf_clear(&conn->in);
        adapter_buf_clear(&conn->out);
        free(conn->self);
        free(conn);
    }
}
