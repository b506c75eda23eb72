"""WebSocket clients that do it wrong, on raw sockets: each gets its close code, the connection ends, others do not notice."""
import contextlib
import os
import socket
import struct
import time
import urllib.parse

import pytest

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


@pytest.fixture
def room(api):
    return api.create_room("alice", "bob")["room_id"]


@pytest.fixture
def ticket(api, room):
    return api.ok("history/PullByActiveConnection", account_id="bob", rooms=[{"room_id": room}])["ticket"]


class Raw:
    """One connection, byte by byte."""

    def __init__(self, cluster):
        parts = urllib.parse.urlsplit(cluster.instances[0].url)
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=10)
        self.left = b""

    def handshake(self, ticket, method="GET", path="/v1/stream/ws", behind=b"", **headers):
        """(status, headers)"""
        lines = {"Host": "x", "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": KEY, "Sec-WebSocket-Version": "13",
            "Authorization": f"Bearer {ticket}", **{name.replace("_", "-"): value for name, value in headers.items()}}
        text = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None) + "\r\n"
        self.socket.sendall(text.encode() + behind)
        while b"\r\n\r\n" not in self.left:
            data = self.socket.recv(4096)
            if not data:
                break
            self.left += data
        head, _, self.left = self.left.partition(b"\r\n\r\n")
        return int(head.split()[1]), head.decode().lower()

    def frame(self):
        """(opcode, payload); None at the end."""
        while True:
            if len(self.left) >= 2:
                n, at = self.left[1] & 127, 2
                if n == 126 and len(self.left) >= 4:
                    n, at = struct.unpack(">H", self.left[2:4])[0], 4
                if n < 126 or at > 2:
                    if len(self.left) >= at + n:
                        found = (self.left[0] & 15, self.left[at:at + n])
                        self.left = self.left[at + n:]
                        return found
            try:
                data = self.socket.recv(4096)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self.left += data

    def until_close(self):
        """The close code, and that the connection ends soon behind it: after 2 s, and by silence it would be 40."""
        found = None
        while found is None or found[0] != 8:
            found = self.frame()
            assert found, "ended without a close frame"
        code = struct.unpack(">H", found[1][:2])[0]
        started = time.monotonic()
        while self.frame():
            pass
        assert time.monotonic() - started < 9
        return code

    def close(self):
        self.socket.close()


@pytest.fixture
def raw(cluster):
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(contextlib.closing(Raw(cluster)))


@pytest.fixture
def opened(raw, ticket):
    def make():
        one = raw()
        assert one.handshake(ticket)[0] == 101
        return one

    return make


def frame(opcode, payload=b"", fin=True, rsv=0, masked=True, length=None):
    n = len(payload) if length is None else length
    head = bytes([(128 if fin else 0) | rsv << 4 | opcode])
    mask = os.urandom(4) if masked else b""
    bit = 128 if masked else 0
    head += bytes([bit | n]) if n < 126 else bytes([bit | 126]) + struct.pack(">H", n) if n < 65536 else bytes([bit | 127]) + struct.pack(">Q", n)
    return head + mask + (bytes(byte ^ mask[i & 3] for i, byte in enumerate(payload)) if masked else payload)


TEXT, BINARY, CLOSE, PING, PONG, MORE = 1, 2, 8, 9, 10, 0

WRONG = {
    "not masked": (frame(TEXT, b"{}", masked=False), 1002),
    "rsv1": (frame(TEXT, b"{}", rsv=4), 1002),
    "rsv2": (frame(TEXT, b"{}", rsv=2), 1002),
    "rsv3": (frame(TEXT, b"{}", rsv=1), 1002),
    **{f"opcode {opcode}": (frame(opcode), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "fragmented ping": (frame(PING, fin=False), 1002),
    "long ping": (frame(PING, b"x" * 126), 1002),
    "long close": (frame(CLOSE, b"\x03\xe8" + b"x" * 124), 1002),
    "continuation of nothing": (frame(MORE, b"x"), 1002),
    "text inside a fragmented text": (frame(TEXT, b"x", fin=False) + frame(TEXT, b"x"), 1002),
    "not utf-8": (frame(TEXT, b"\xce\xba\xed\xa0\x80"), 1007),
    "not utf-8, told before the message ends": (frame(TEXT, b"\xff", fin=False), 1007),
    "ends inside a character": (frame(TEXT, b"\xf0\x9f"), 1007),
    "too large": (frame(TEXT, b"", length=128 * 1024 + 1), 1009),
    "too large in pieces": (frame(TEXT, b"x" * 65536, fin=False) + frame(MORE, b"x" * 65536, fin=False) + frame(MORE, b"x"), 1009),
    "endless empty fragments": (frame(TEXT, b"", fin=False) + frame(MORE, b"", fin=False) * 1100, {1008, 1009}),
    "length with the highest bit": (b"\x81\xff" + b"\xff" * 8 + b"abcd", 1002),
    "length not minimal": (b"\x81\xfe\x00\x01abcdx", 1002),
    "binary": (frame(BINARY, b"{}"), 1003),
    "close of one byte": (frame(CLOSE, b"\x03"), 1002),
    **{f"close {code}": (frame(CLOSE, struct.pack(">H", code)), 1002) for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 5000, 65535)},
    "close with a bad reason": (frame(CLOSE, b"\x03\xe8\xff\xfe"), 1007),
    "a flood of pings": (frame(PING) * 3000, 1008),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_breaks_the_rules_is_closed_with_its_code(opened, wrong):
    data, code = WRONG[wrong]
    one = opened()
    with contextlib.suppress(ConnectionError):
        one.socket.sendall(data)
    assert one.until_close() in (code if isinstance(code, set) else {code})


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
def test_a_close_is_answered_with_its_code(opened, code):
    one = opened()
    one.socket.sendall(frame(CLOSE, struct.pack(">H", code) + "tschüß".encode()) + frame(TEXT, b"ignored"))
    assert one.until_close() == code


def test_an_empty_close_is_answered(opened):
    one = opened()
    one.socket.sendall(frame(CLOSE))
    assert one.until_close() == 1000


def test_who_never_answers_our_close_is_cut(opened, api, room):
    one = opened()
    one.frame()
    api.ok("room/Remove", room_id=room)
    assert one.until_close() == 4503


def test_pings_are_answered_with_their_payload_also_between_fragments(opened):
    one = opened()
    assert one.frame()[0] == TEXT  # hello
    one.socket.sendall(frame(TEXT, b'{"type":"pi', fin=False) + frame(PING, b"abc") + frame(PONG, b"nobody asked") + frame(MORE, b'ng","req_id":7}'))
    assert one.frame() == (PONG, b"abc")
    assert one.frame() == (TEXT, b'{"type":"pong","req_id":7}')


def test_frames_right_behind_the_handshake_are_not_lost(raw, ticket):
    one = raw()
    assert one.handshake(ticket, behind=frame(TEXT, b'{"type":"ping","req_id":"x"}'))[0] == 101
    assert b"hello" in one.frame()[1]
    assert one.frame()[1] == b'{"type":"pong","req_id":"x"}'


def test_one_byte_at_a_time_is_a_frame_too(opened):
    one = opened()
    one.frame()
    for byte in frame(TEXT, b'{"type":"ping"}'):
        one.socket.sendall(bytes([byte]))
    assert one.frame()[1] == b'{"type":"pong"}'


@pytest.mark.deadline(60)
def test_a_frame_that_never_ends_is_closed(opened):
    one = opened()
    one.socket.settimeout(30)
    one.socket.sendall(frame(TEXT, b"x" * 100)[:20])
    started = time.monotonic()
    assert one.until_close() == 1008
    assert time.monotonic() - started < 30  # 10 s for the frame, 2 s for an answer to the close


@pytest.mark.parametrize("headers, status", [
    ({"Upgrade": None}, 400), ({"Upgrade": "h2c"}, 400), ({"Sec_WebSocket_Key": None}, 400), ({"Sec_WebSocket_Key": "short"}, 400),
    ({"Sec_WebSocket_Key": "A" * 24}, 400), ({"Sec_WebSocket_Version": None}, 426), ({"Sec_WebSocket_Version": "8"}, 426),
    ({"Sec_WebSocket_Version": "12"}, 426), ({"Sec_WebSocket_Protocol": "chat"}, 400), ({"Origin": "https://evil.example"}, 403), ({"Origin": "null"}, 403),
])
def test_bad_handshakes_are_refused(raw, ticket, headers, status):
    got, text = raw().handshake(ticket, **headers)
    assert got == status, text
    if status == 426:
        assert "sec-websocket-version: 13" in text


def test_only_get_opens_a_websocket(raw, ticket):
    assert raw().handshake(ticket, method="DELETE")[0] in (400, 405)


def test_compression_is_never_agreed_on(raw, ticket):
    status, text = raw().handshake(ticket, Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits")
    assert status == 101 and "extensions" not in text and "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=" in text


def test_pages_of_allowed_origins_may_come(new_cluster):
    cluster = new_cluster(settings={"allowed_origins": "https://app.example.com, https://b.example"})
    room = cluster.api.create_room("bob")["room_id"]
    ticket = cluster.api.ok("history/PullByActiveConnection", account_id="bob", rooms=[{"room_id": room}])["ticket"]
    for origin, status in (("https://app.example.com", 101), ("https://b.example", 101), ("https://app.example.com.evil", 403), ("http://app.example.com", 403)):
        with contextlib.closing(Raw(cluster)) as one:
            assert one.handshake(ticket, Origin=origin)[0] == status, origin
