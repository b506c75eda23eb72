/*
 * One connection to one broker: log-in, a channel with confirms, heartbeats, and what the broker says about publishes.
 * librabbitmq is used as a codec for the methods; what happens for each message is read and written here. Everything
 * that arrives is bounded and checked. Source: AMQP 0-9-1 specification, and RabbitMQ's extensions (confirms, blocked).
 * Thread: the client's.
 */
#ifndef ROOMD_ADAPTER_LINK_H
#define ROOMD_ADAPTER_LINK_H

#include "adapter_conn.h"

struct adapter_link;

struct adapter_link_events {
    void (*up)(struct adapter_link *link);
    /* Confirmed or refused: one tag, or all up to it. */
    void (*confirmed)(struct adapter_link *link, uint64_t tag, bool multiple, bool accepted);
    /* Will be confirmed, but no queue took it. */
    void (*returned)(struct adapter_link *link, uint64_t tag);
    /* The channel was closed because of a publish: the broker's number. broken() follows. */
    void (*refused)(struct adapter_link *link, unsigned code);
    /* The link is over; free it. Why it is: link->why. */
    void (*broken)(struct adapter_link *link);
};

struct adapter_link {
    struct adapter_publisher *publisher;
    const struct adapter_link_events *events;
    struct roomd_client *client;
    const struct adapter_address *address;
    size_t index; /* which of the brokers */
    struct adapter_conn *conn;
    bool up, blocked;
    uint32_t frame_max;
    int64_t deadline, heartbeat_ms;
    uint64_t last_tag, returned_left;
    int expects; /* of a basic.return: 0 a method, then its header, then its body */
    char why[640];
};

/* NULL: no memory or no descriptor. */
struct adapter_link *adapter_link_open(struct roomd_client *client, struct adapter_publisher *publisher,
    const struct adapter_link_events *events, const struct adapter_address *address, size_t index);
/* A goodbye is tried, not waited for. */
void adapter_link_free(struct adapter_link *link);
void adapter_link_tick(struct adapter_link *link);
/* Appends a publish; its tag, 0 without memory (then the link is no good any more: break it). Flush afterwards. */
uint64_t adapter_link_publish(struct adapter_link *link, const char *routing_key, const char *message_id,
    bool transient, const char *body, size_t n);
size_t adapter_link_unsent(const struct adapter_link *link);
void adapter_link_flush(struct adapter_link *link);

#endif
