"""
The reference gateway and the BaseService stand-in as processes of a test.

BaseService(cluster)               .url .key; the accounts of PEOPLE have the password "pw-" + account
Gateway(cluster, base, **settings) .url; start(), stop(), kill9(), metrics(), log_text(), check(); user(account) -> User
User   a frontend with a cookie: get(path, **params) and post(path, body) -> the answer of a 200; refused(method, path, …) -> (status, code);
       direct(account), group(name, *members), say(room_id, content, …), history(room_id), upload(data, kind, type), download(room_id, file_id, …);
       web_client(transport, **options): the browser client in Node; frames(**connect): a WebSocket by hand
"""
import base64
import contextlib
import json
import os
import secrets
import socket
import struct
import urllib.parse

import requests

import roomd
from roomd import DEADLINE, wait_for
from web_client import WebClient

PEOPLE = {"alice": "Alice", "bob": "Bob", "carol": "王芳", "dave": "Dave", "eve": "Eve"}
WEB = roomd.TOP / "gateway-adapter" / "web"


class Program(roomd.Instance):
    """A process beside roomd that is kept and checked in the same way."""

    executable, certificate = None, None

    def command(self, verb):
        raise NotImplementedError

    def start(self, ready=True):
        assert not self.alive(), f"{self.name} runs already"
        with open(self.log, "ab") as log:
            self.process = roomd.subprocess.Popen([str(roomd.pathlib.Path(roomd.ROOMD).with_name(self.executable)), "--config", str(self.config)], env=self._environment(),
                cwd=self.home, stdin=roomd.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.ends_are_expected = False
        if ready:
            wait_for(self.ready, 20, what=self.log_text)
        return self

    def ready(self):
        assert self.alive(), self.log_text()[-2000:]
        with contextlib.suppress(requests.RequestException):
            return requests.get(self.url + self.health, timeout=5, verify=str(self.certificate) if self.certificate else True).status_code == 200
        return False


class BaseService(Program):
    executable, health = "baseservice", "/healthz"

    def __init__(self, cluster, **settings):
        self.key = secrets.token_hex(16)
        (cluster.home / "files").mkdir(exist_ok=True)
        super().__init__(cluster.home, "baseservice", {"data_dir": cluster.home / "files", "service_keys": f"gateway:{self.key}",
            "accounts": ",".join(f"{account}:{name}:pw-{account}" for account, name in PEOPLE.items()), **settings})
        self.secrets = (self.key, "pw-alice")
        self.start()


class Gateway(Program):
    executable, health = "roomd-gateway", "/readyz"

    def __init__(self, cluster, base, name="gateway", ready=True, **settings):
        self.cluster, self.base = cluster, base
        self.session_secret = secrets.token_hex(32)
        super().__init__(cluster.home, name, {"instance_urls": ",".join(instance.url for instance in cluster.instances), "service_key": cluster.service_key,
            "broker_urls": cluster.gateway_url, "base_url": base.url, "base_key": base.key, "session_secret": self.session_secret, "web_folder": WEB,
            "account_requests_per_s": 0, "logins_per_minute": 0, **settings})
        self.secrets = (cluster.service_key, cluster.ticket_key, base.key, self.session_secret, "pw-alice")
        self.certificate = settings.get("tls_certificate_file")
        if self.certificate:
            self.url = self.url.replace("http:", "https:")
        self.start(ready)

    def user(self, account, **options):
        return User(self, account, **options)


class User:
    def __init__(self, gateway, account, token=False):
        self.gateway, self.account, self.session = gateway, account, requests.Session()
        self.session.headers["X-Requested-With"] = "test"
        self.session.verify = str(gateway.certificate) if gateway.certificate else True
        self.session.trust_env = False
        answer = self.post("login", {"account": account, "password": f"pw-{account}", "token": True})
        assert answer["account_id"] == account
        self.token = answer["token"]

    @property
    def cookie(self):
        return f"roomd_session={self.session.cookies['roomd_session']}"

    def ask(self, method, path, body=None, **options):
        if body is not None:
            options["json"] = body
        return self.session.request(method, f"{self.gateway.url}/api/{path}", timeout=30, **options)

    def ok(self, answer):
        assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
        return answer.json()

    def get(self, path, **params):
        return self.ok(self.ask("GET", path, params=params))

    def post(self, path, body=None):
        return self.ok(self.ask("POST", path, body or {}))

    def refused(self, method, path, body=None, **options):
        answer = self.ask(method, path, body, **options)
        assert answer.status_code >= 400, answer.text
        return answer.status_code, answer.json()["error"]["code"]

    def direct(self, account):
        return self.post("rooms", {"kind": "direct", "account_id": account})["room"]["room_id"]

    def group(self, name, *members):
        return self.post("rooms", {"kind": "group", "name": name, "members": members})["room"]["room_id"]

    def say(self, room_id, content, kind="text", **fields):
        """Its message_id."""
        return self.post(f"rooms/{room_id}/messages", {"client_msg_id": roomd.new_id(), "kind": kind, "content": content, **fields})["message_id"]

    def history(self, room_id, **params):
        return self.get(f"rooms/{room_id}/messages", **params)["entries"]

    def wait_message(self, room_id, message_id):
        """The entry, once it is in the log."""
        return wait_for(lambda: [entry for entry in self.history(room_id, limit=500) if entry.get("message_id") == message_id and entry["type"] == "message"])[0]

    def upload(self, data, kind="file", content_type="application/octet-stream"):
        return self.ask("POST", "files", params={"kind": kind}, data=data, headers={"Content-Type": content_type})

    def download(self, room_id, file_id, method="GET", **options):
        return self.ask(method, f"rooms/{room_id}/files/{file_id}", **options)

    def web_client(self, transport=None, **options):
        return WebClient(self.gateway.cluster, self.account, gateway=self.gateway.url, cookie=self.cookie,
            **{"transports": [transport] if transport else None, **options})

    def frames(self, **connect):
        address = self.post("connect", connect or {"all": True})
        return Frames(self.gateway, address, {"Cookie": self.cookie, "Origin": self.gateway.url})


class Frames:
    """A WebSocket by hand: every byte is known. Client frames are masked, RFC 6455 5.3."""

    def __init__(self, gateway, address, headers, protocol="roomd.v1.json"):
        url = urllib.parse.urlsplit(address["websocket"] if isinstance(address, dict) else address)
        self.sock = socket.create_connection(("127.0.0.1", gateway.port), timeout=DEADLINE)
        lines = [f"GET {url.path}?{url.query} HTTP/1.1", f"Host: 127.0.0.1:{gateway.port}", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}", f"Sec-WebSocket-Protocol: {protocol}", *(f"{name}: {value}" for name, value in headers.items())]
        self.sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        self.file = self.sock.makefile("rb")
        self.status = int(self.file.readline().split()[1])
        while self.file.readline() not in (b"\r\n", b""):
            pass
        self.events, self.closed = [], None

    def read(self):
        """The next events; sets .closed at the end."""
        head = self.file.read(2)
        if len(head) < 2:
            self.closed = self.closed or 1006
            return []
        n = head[1] & 127
        if n >= 126:
            n = int.from_bytes(self.file.read(2 if n == 126 else 8), "big")
        data = self.file.read(n)
        if head[0] & 15 == 8:
            self.closed = int.from_bytes(data[:2], "big") if data else 1005
            return []
        found = [json.loads(line) for line in data.decode().splitlines()] if head[0] & 15 == 1 else []
        self.events += found
        return found

    def until(self, fits):
        """The first event from now on that fits."""
        while self.closed is None:
            for event in self.read():
                if fits(event):
                    return event
        raise AssertionError(f"closed {self.closed} after {self.events[-5:]}")

    def send_text(self, text):
        data, mask = text.encode(), os.urandom(4)
        length = bytes([128 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
        self.sock.sendall(b"\x81" + length + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(data)))

    def request(self, type, payload, req_id="r"):
        self.send_text(json.dumps({"type": type, "req_id": req_id, "payload": payload}))
        return self.until(lambda event: event.get("req_id") == req_id)

    def close(self):
        self.file.close()
        self.sock.close()
