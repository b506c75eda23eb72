/* Shared by the files of the server (listed in http.c); nobody else includes this or libh2o. Thread: the loop's. */
#ifndef ROOMD_BASE_HTTP_IMPL_H
#define ROOMD_BASE_HTTP_IMPL_H

#include "http.h"
#include "list.h"

#include <h2o.h>
#include <h2o/http1.h>

/* An accepted connection, from accept to close; a wire in the header's sense once HTTP has let go of it. */
struct wire {
    uv_tcp_t tcp; /* tcp.data belongs to libh2o */
    struct http_server *server;
    h2o_socket_t *sock;               /* libh2o frees it before the close callback of tcp */
    struct list link;                 /* of server->connections */
    const struct wire_events *events; /* NULL while it speaks HTTP */
    void *owner;
    struct list turn;       /* of server->turn: written() is due */
    struct buf rest;        /* arrived, not used yet */
    struct wire_tail *tail; /* what the kernel did not take at once */
    bool writing, closing;
    /* http_body.c */
    h2o_socket_cb h2o_read, h2o_written; /* libh2o's own, while ours stand in their place */
    h2o_timeout_entry_t late;            /* of the handshake */
    struct http_reply *reading;          /* the next piece is for this one; NULL: nobody reads */
    size_t head_bytes;                   /* of the request that is being answered */
    int64_t body_left;                   /* of its raw body; -1: it has none */
    bool expects;                        /* it waits for 100 Continue */
};

struct http_server {
    uv_loop_t *loop;
    http_handler handler;
    void *context;
    int64_t request_max_bytes, connections_max, send_buffer_bytes;
    uint64_t write_timeout_ms;
    const char *raw_path; /* NULL: none */
    struct http_counters counters;

    int listen_fd; /* -1: no longer listening */
    uv_poll_t listener;
    uv_timer_t accept_again; /* after running out of descriptors */
    bool draining, closing, disposed;

    struct list connections; /* struct wire.link */
    struct list replies;     /* struct http_reply.link */
    struct list sending;     /* struct http_reply.sending, oldest first */
    uv_timer_t cut;          /* for the oldest of them */

    uv_idle_t turn_idle; /* runs while one of these lists holds something */
    struct list turn;    /* struct wire.turn */
    struct list lingers; /* struct linger_socket.link */
    size_t linger_count;
    struct list strays; /* struct http_reply.sending: take-overs whose client has left */
    int turns_to_free, handles_to_close;

    const h2o_req_t *answering; /* the request whose answer is our own, while it is handed to libh2o */
    h2o_globalconf_t config;
    h2o_context_t h2o;
    h2o_accept_ctx_t accept_ctx;
};

struct http_reply {
    struct http_server *server;
    h2o_req_t *req;           /* NULL: nobody to answer any more */
    struct http_reply **cell; /* in the request's pool: tells us of its end */
    struct wire *wire;
    struct list link, sending;
    uint64_t cut_at_ms;
    bool answered, wants_msgpack, close, taking;
    struct watch *watch;
    void (*gone)(void *arg);
    void *gone_arg;
    void (*piece)(void *arg, struct str bytes);
    void *piece_arg;
    h2o_generator_t pieces; /* of an answer in pieces, with the next five */
    void (*more)(void *arg);
    void (*left)(void *arg);
    void *pieces_arg;
    bool last;
    const struct wire_events *events; /* of a take-over, with the next two */
    void *owner;
    void (*ready)(void *owner, struct wire *wire);
};

/* http_linger.c */
/* the connection on fd was refused while its body was still coming */
void linger_start(struct http_server *server, int fd);
void lingers_end(struct http_server *server);

/* http.c */
void server_settle(struct http_server *server); /* frees it when closed and nobody is left */
void server_turn_start(struct http_server *server);

/* http_answer.c */
struct http_reply *reply_new(struct http_server *server, h2o_req_t *req);
void reply_end(struct http_reply *reply, int status, const char *content_type, struct str body);
void reply_refuse(struct http_reply *reply, int status, enum err err, const char *why); /* and closes */
void reply_orphan(struct http_reply *reply); /* the server ends: nobody to answer from now on */
void reply_stray(struct http_reply *reply);  /* tells its owner that there is no wire */
void replies_cut_late(uv_timer_t *timer);
void error_json(struct buf *out, enum err err, const char *field, struct str message);
void error_filter_add(struct http_server *server, h2o_pathconf_t *path);

/* http_request.c: fills `request` from req; false when it was refused. `scratch` holds a body turned into JSON. */
MUST_USE bool request_read(struct http_request *request, struct http_reply *reply, struct buf *scratch);

/* http_tls.c */
MUST_USE enum err tls_open(SSL_CTX **out, const char *certificate_file, const char *key_file);

void reply_gone(struct http_reply *reply); /* its client left while its body was read: told as an empty piece */

/* http_body.c */
void body_accept(struct wire *wire);      /* a connection of a server with a raw_path */
void body_ends(struct http_reply *reply); /* it is being answered: nothing more is read */
void body_answered(struct wire *wire);    /* libh2o has the answer */

/* wire.c */
void wire_open(struct http_server *server, int fd); /* a connection was accepted */
void wire_take(struct wire *wire, size_t request_bytes, const struct wire_events *events, void *owner);
void wire_read_rest(struct wire *wire); /* what came in before the take-over */
void wire_cut(struct wire *wire);       /* whatever speaks on it ends with an error */
void wire_written(struct wire *wire);   /* from the turn */

#endif
