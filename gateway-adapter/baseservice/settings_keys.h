/* The settings of baseservice, one line each: name, type, default, least, most, what it is.
 * See room/base/settings.h. */
/* clang-format off */
KEY(listen_address, TEXT, "127.0.0.1", 0, 0, "numeric address to listen on; callers are gateways")
KEY(listen_port, INT, "7500", 0, 65535, "port; 0 = one the kernel picks, see the log line started")
KEY(data_dir, TEXT, "/var/lib/baseservice", 0, 0, "where files are kept; made when it is not there")
KEY(service_keys, SECRET, "", 0, 0, "keys of gateways: name:key, comma-separated; several are valid at once, so that keys can rotate")
KEY(accounts, SECRET, "", 0, 0, "demo accounts: account:name:password, comma-separated")
KEY(image_max_bytes, BYTES, "20m", 1, 1099511627776, "largest image")
KEY(voice_max_bytes, BYTES, "20m", 1, 1099511627776, "largest voice recording")
KEY(video_max_bytes, BYTES, "500m", 1, 1099511627776, "largest video")
KEY(file_max_bytes, BYTES, "500m", 1, 1099511627776, "largest file of the kind file")
KEY(connections_max, INT, "1000", 1, 100000, "open connections; each holds at most about 200 KiB")
KEY(idle_timeout_ms, MS, "30000", 100, 3600000, "a connection on which nothing moves is closed after this")
KEY(log_level, TEXT, "info", 0, 0, "debug, info, warn, error")
