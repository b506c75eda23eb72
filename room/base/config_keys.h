/* Every setting of roomd. CONFIG_KEY(name, type, default, least, most, help); bounds count for numbers only.
 * No include guard: this file is included once per use. */

/* A setting is one line, also for those who search. */
/* clang-format off */

/* this instance */
CONFIG_KEY(instance_name, TEXT, "roomd", 0, 0, "label of this instance in logs, metrics and the registry (its id is minted at start)")
CONFIG_KEY(listen_address, TEXT, "127.0.0.1", 0, 0, "address the instance port listens on")
CONFIG_KEY(listen_port, INT, "7400", 0, 65535, "instance port: service calls, streams, health; 0 = one the kernel picks")
CONFIG_KEY(advertise_url, TEXT, "", 0, 0, "url under which gateways reach this instance; empty = http(s)://listen_address:port")
CONFIG_KEY(log_level, TEXT, "info", 0, 0, "debug, info, warn or error")
CONFIG_KEY(service_keys, SECRET, "", 0, 0, "keys of upstream gateways: name:key, comma-separated; several are valid at once, so that keys can rotate")
CONFIG_KEY(ticket_keys, SECRET, "", 0, 0, "keys that sign tickets: kid:key (key >= 32 bytes), comma-separated; the first signs, all verify; the same on every instance")
CONFIG_KEY(tls_certificate_file, TEXT, "", 0, 0, "PEM chain for the instance port; empty = no TLS")
CONFIG_KEY(tls_key_file, TEXT, "", 0, 0, "PEM key for tls_certificate_file")

/* PostgreSQL */
CONFIG_KEY(database_url, SECRET, "postgresql://127.0.0.1:5432/roomd", 0, 0, "libpq connection string or URL")
CONFIG_KEY(database_read_connections, INT, "3", 1, 64, "connections for reads; one more writes, one more renews leases")
CONFIG_KEY(database_timeout_ms, MS, "5000", 100, 600000, "a read without an answer for so long is given up")
CONFIG_KEY(database_queue_max, INT, "10000", 1, 1000000, "reads waiting for a connection; more are refused with unavailable")

/* RabbitMQ */
CONFIG_KEY(broker_urls, SECRET, "amqp://guest:guest@127.0.0.1:5672/%2f", 0, 0, "amqp:// or amqps:// addresses, comma-separated, tried in order")
CONFIG_KEY(broker_ca_file, TEXT, "", 0, 0, "PEM file of the CA that signed the broker's certificate; empty = the system's")
CONFIG_KEY(broker_publish_heartbeat_ms, MS, "10000", 1000, 600000, "heartbeat of the publishing connection (whole seconds)")
CONFIG_KEY(broker_consume_heartbeat_ms, MS, "3000", 1000, 600000, "heartbeat of the consuming connection: a frozen owner is cut off by the broker after two")
CONFIG_KEY(broker_publish_timeout_ms, MS, "5000", 100, 600000, "a publish not confirmed for so long is given up")
CONFIG_KEY(broker_publish_max_pending, INT, "20000", 1, 1000000, "publishes without a confirm; more are refused with unavailable")
CONFIG_KEY(broker_publish_max_pending_bytes, BYTES, "64m", 65536, 4294967296, "the same in bytes")
CONFIG_KEY(queue_max_length_bytes, BYTES, "1g", 1048576, 1099511627776, "x-max-length-bytes of a shard's queue; above it the broker refuses publishes")

/* shards and the log */
CONFIG_KEY(shard_count, INT, "64", 1, 999, "shards s00, s01, ... that roomd migrate makes sure exist; new rooms are spread over them")
CONFIG_KEY(prefetch, INT, "500", 1, 65535, "unacknowledged deliveries per shard")
CONFIG_KEY(unpersisted_max_bytes, BYTES, "64m", 1048576, 4294967296, "accepted but not committed bytes per instance; above it the broker is not read")
CONFIG_KEY(batch_max_rows, INT, "500", 1, 10000, "rows in one commit")
CONFIG_KEY(batches_in_flight, INT, "2", 1, 8, "commits on the way at once")
CONFIG_KEY(content_max_bytes, BYTES, "64k", 1024, 1048576, "largest content of one message")
CONFIG_KEY(dedup_window, INT, "20000", 0, 10000000, "committed message ids kept in memory per shard; behind it the database answers")
CONFIG_KEY(member_cache, INT, "200000", 1000, 100000000, "(room, account) roles kept in memory per instance")
CONFIG_KEY(room_cache, INT, "100000", 1000, 100000000, "rooms kept in memory per instance")
CONFIG_KEY(op_timeout_ms, MS, "5000", 100, 60000, "a room change not durable for so long answers timeout")
CONFIG_KEY(recall_window_ms, MS, "120000", 0, 315360000000, "how long a sender may recall a message")
CONFIG_KEY(role_rules, TEXT, "add=admin,remove=admin,rename=admin,notice=admin,mute=admin,role=owner,mention_all=member,recall=admin", 0, 0, "least role (member, admin, owner) for what an account does to a room; calls that name no account are not asked")
CONFIG_KEY(target_cache, INT, "20000", 100, 10000000, "messages that edits and recalls were about, kept in memory")
CONFIG_KEY(mark_flush_ms, MS, "250", 10, 60000, "read cursors are written at most so often, merged; the first after a pause at once")
CONFIG_KEY(sent_flush_ms, MS, "1000", 10, 60000, "the same for the senders' own cursors, which follow what they send")
CONFIG_KEY(mark_wait_ms, MS, "2000", 0, 60000, "how long MarkRead waits for an entry that is not durable yet")
CONFIG_KEY(read_events_max_members, INT, "200", 0, 1000000, "rooms with more members are not told who read what; the reader's own streams are")
CONFIG_KEY(typing_every_ms, MS, "3000", 100, 600000, "typing of one account in one room is told at most so often; it ends by itself after twice that")
CONFIG_KEY(typing_max_members, INT, "1000", 0, 1000000, "rooms with more members are not told who types")
CONFIG_KEY(hidden_max, INT, "10000", 1, 1000000, "entries that one account may hide from itself in one room")
CONFIG_KEY(dead_letter_keep_ms, MS, "86400000", 60000, 31536000000, "how long sent dead letters stay in the outbox table, so that a redelivered one is recognised")

/* ownership */
CONFIG_KEY(beat_ms, MS, "1000", 100, 60000, "how often an instance renews itself in the registry")
CONFIG_KEY(lease_ttl_ms, MS, "4000", 500, 600000, "an instance silent for so long, by the observer's clock, is dead")
CONFIG_KEY(weight, INT, "100", 1, 10000, "this instance's part of the shards and streams, compared with the others' weights")

/* HTTP */
CONFIG_KEY(request_max_bytes, BYTES, "1m", 1024, 67108864, "largest request body")
CONFIG_KEY(request_timeout_ms, MS, "10000", 100, 600000, "time to send a whole request, and idle time of a kept-alive connection")
CONFIG_KEY(write_timeout_ms, MS, "30000", 1000, 600000, "a reader of an answer or stream that takes nothing for so long is cut")
CONFIG_KEY(connections_max, INT, "100000", 10, 10000000, "open connections; more are closed at once")
CONFIG_KEY(poll_wait_max_ms, MS, "60000", 1000, 600000, "largest wait_ms of history/Pull")

/* streams */
CONFIG_KEY(heartbeat_ms, MS, "20000", 100, 600000, "ping on every stream; a WebSocket silent for two is closed 4001")
CONFIG_KEY(ticket_ttl_ms, MS, "300000", 1000, 86400000, "life of a ticket, and the largest ttl_ms one may ask for")
CONFIG_KEY(ticket_rooms_max, INT, "100", 1, 1000, "rooms named in one ticket")
CONFIG_KEY(streams_max, INT, "50000", 1, 10000000, "open streams; more are refused with 503 or 4003")
CONFIG_KEY(attach_rate_per_s, INT, "5000", 0, 1000000, "streams that may open in a second; who is above is refused with 503 or 4003 and told when to come back; 0 = no limit")
CONFIG_KEY(attach_burst, INT, "10000", 1, 1000000, "streams that may open at once, before attach_rate_per_s counts")
CONFIG_KEY(attach_gather_ms, MS, "50", 0, 1000, "while many streams open (10 in this time) they wait for each other so long, so that the database is asked once for all of them; 0 = never")
CONFIG_KEY(stream_pending_max_bytes, BYTES, "256k", 4096, 67108864, "bytes waiting for one stream; above it the stream goes on from the store at its own pace")
CONFIG_KEY(stream_send_buffer_bytes, BYTES, "64k", 4096, 4194304, "SO_SNDBUF of a stream's socket")
CONFIG_KEY(stream_no_progress_ms, MS, "30000", 1000, 600000, "a stream that took nothing for so long while something waits is closed 4002")
CONFIG_KEY(stream_frame_max_bytes, BYTES, "128k", 1024, 16777216, "largest frame or message from a WebSocket client")
CONFIG_KEY(stream_frames_max_per_s, INT, "0", 0, 100000, "frames a WebSocket client may send in a second; more are answered rate_limited; 0 = no limit but the one that closes the stream")
CONFIG_KEY(stream_poll_hold_ms, MS, "25000", 100, 60000, "how long a long poll without news is held")
CONFIG_KEY(catch_up_reads_max, INT, "16", 1, 1000, "store reads in flight for streams that catch up")
CONFIG_KEY(tail_max_entries, INT, "256", 16, 65536, "entries kept in memory per open room for streams that attach")
CONFIG_KEY(tail_max_bytes, BYTES, "256k", 4096, 67108864, "the same in bytes")
CONFIG_KEY(signal_above_streams, INT, "20000", 1, 10000000, "rooms with more streams on this instance get signals instead of entries")
CONFIG_KEY(durable_mark_ms, MS, "1000", 10, 60000, "durable marks of one room are at least so far apart")
CONFIG_KEY(drain_ms, MS, "10000", 0, 600000, "window in which a stopping instance sends its streams away: told to migrate one after another, the rest closed at its end")
CONFIG_KEY(rebalance_streams_per_s, INT, "100", 0, 100000, "an instance with over 1.25 times its share of streams sends so many a second to those that have less, after instances were added; 0 = never")
CONFIG_KEY(rebalance_busy_max, INT, "70", 1, 100, "percent of a core: an instance that is busier sends none")
CONFIG_KEY(allowed_origins, TEXT, "", 0, 0, "origins of web pages that may open streams straight at this instance, comma-separated; requests without Origin always may")
/* clang-format on */
