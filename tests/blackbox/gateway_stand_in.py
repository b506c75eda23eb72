"""
As much of a gateway (docs/gateway.md) as the browser client needs, for its tests: sessions by cookie, calls passed on with the service key, streams passed on
byte by byte with the ticket that the frontend never sees, and the client's own files with a page to run them in.

GatewayStandIn(cluster)   .url .requests [(method, path, status)]; cut() breaks all streams; close()
"""
import contextlib
import http.server
import json
import pathlib
import secrets
import select
import socket
import threading
import urllib.parse

import requests

import roomd

WEB = roomd.TOP / "gateway-adapter" / "web"
PAGE = roomd.TOP / "tests" / "web" / "page.html"
CALLS = {"edit": "history/Edit", "recall": "history/Recall", "delete": "history/Delete", "read": "history/MarkRead"}
NOT_PASSED_ON = ("host", "cookie", "origin", "referer", "content-length", "x-requested-with", "sec-websocket-extensions")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def account(self):
        for item in self.headers.get("Cookie", "").split(";"):
            name, _, value = item.strip().partition("=")
            if name == "roomd_session" and value in self.server.sessions:
                return self.server.sessions[value]
        return None

    def answer(self, status, body, content_type="application/json", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.server.requests.append((self.command, self.path.partition("?")[0], status))
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": len(body), "Cache-Control": "no-store", **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status, code):
        self.answer(status, {"error": {"code": code, "message": code}})

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path in ("/", "/room-client.js"):
            file = PAGE if path == "/" else WEB / path[1:]
            return self.answer(200, file.read_bytes(), "text/html; charset=utf-8" if path == "/" else "text/javascript")
        return self.serve(path, None)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        if not self.headers.get("X-Requested-With") or self.headers.get("Origin", self.server.url) != self.server.url:
            return self.refuse(403, "forbidden")
        if path == "/api/login":
            session = secrets.token_hex(8)
            self.server.sessions[session] = json.loads(body)["account_id"]
            return self.answer(200, {}, Set_Cookie=f"roomd_session={session}; HttpOnly; SameSite=Strict; Path=/")
        return self.serve(path, body)

    def serve(self, path, body):
        account = self.account()
        if account is None:
            return self.refuse(401, "unauthenticated")
        if path.startswith("/stream/"):
            return self.stream(path.rpartition("/")[2], body)
        parts = path.split("/")[2:]
        if parts == ["connect"]:
            return self.connect(account, json.loads(body))
        if len(parts) == 3 and parts[0] == "rooms":
            return self.room(account, urllib.parse.unquote(parts[1]), parts[2], json.loads(body) if body else None)
        return self.refuse(404, "no_such_method")

    def call(self, method, fields):
        """Any instance answers any call."""
        for instance in self.server.cluster.alive:
            with contextlib.suppress(requests.RequestException):
                status, answer = instance.api.call(method, fields)
                if status != 503:
                    return status, answer
        return 503, {"error": {"code": "unavailable", "message": "no instance"}}

    def connect(self, account, asked):
        rooms = {"rooms": [{"room_id": room_id} for room_id in asked["rooms"]]} if "rooms" in asked else {"all": True}
        status, found = self.call("history/PullByActiveConnection", {"account_id": account, "deliver": asked.get("deliver", "early"), **rooms})
        if status != 200:
            return self.answer(status, found)
        place = secrets.token_hex(8)
        self.server.places[place] = found
        addresses = {name: f"/stream/{word}?at={place}" for name, word in (("websocket", "ws"), ("sse", "sse"), ("poll", "poll"))}
        kept = {name: found[name] for name in ("expires_at", "heartbeat_ms", "backoff", "rooms")}
        return self.answer(200, {"account_id": account, "deliver": "early", **addresses, **kept})

    def room(self, account, room_id, what, body):
        if what == "messages" and body is None:
            query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
            for name in ("limit", "before"):
                if name in query:
                    query[name] = int(query[name])
            return self.answer(*self.call("history/Pull", {"room_id": room_id, "account_id": account, **query}))
        if what == "messages":
            return self.answer(*self.call("history/Push", {**body, "room_id": room_id, "sender": account}))
        if what in CALLS:
            return self.answer(*self.call(CALLS[what], {**body, "room_id": room_id, "account_id": account}))
        return self.refuse(404, "no_such_method")

    def stream(self, kind, body):
        query = urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query)
        found = self.server.places.get(dict(query).get("at"))
        if not found:
            return self.refuse(401, "unauthenticated")
        rest = urllib.parse.urlencode([(name, value) for name, value in query if name != "at"])
        head = [f"{self.command} /v1/stream/{kind}{'?' + rest if rest else ''} HTTP/1.1", "Host: instance", f"Authorization: Bearer {found['ticket']}"]
        head += [f"{name}: {value}" for name, value in self.headers.items() if name.lower() not in NOT_PASSED_ON]
        if kind != "ws":  # else the frontend's next request would go through the tunnel, past every check of ours
            head = [line for line in head if not line.lower().startswith("connection:")] + ["Connection: close"]
        if body is not None:
            head.append(f"Content-Length: {len(body)}")
        for endpoint in found["endpoints"]:
            parts = urllib.parse.urlsplit(endpoint["url"])
            with contextlib.suppress(OSError):
                far = socket.create_connection((parts.hostname, parts.port), timeout=5)
                far.sendall("\r\n".join(head + ["", ""]).encode() + (body or b""))
                return self.carry(far)
        return self.refuse(503, "unavailable")

    def carry(self, far):
        near = self.connection
        self.close_connection = True
        self.server.streams.add(near)
        with contextlib.suppress(OSError), far:
            while True:
                for source in select.select([near, far], [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    (far if source is near else near).sendall(data)


class GatewayStandIn(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, cluster):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cluster, self.sessions, self.places, self.requests, self.streams = cluster, {}, {}, [], set()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_):
        pass  # connections that tests cut

    def session(self, account):
        """A cookie."""
        self.sessions[account] = account
        return f"roomd_session={account}"

    def cut(self):
        streams, self.streams = self.streams, set()
        for stream in streams:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.cut()
        self.shutdown()
        self.server_close()
