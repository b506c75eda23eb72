"""baseservice, the business core's stand-in: accounts, and files that are whole or not there."""
import hashlib
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import threading

import pytest
import requests

import roomd
from roomd import wait_for

PROGRAM = pathlib.Path(roomd.ROOMD).with_name("baseservice")
PNG = b"\x89PNG\r\n\x1a\n"
KEY = "k" * 32


class BaseService:
    def __init__(self, home, **settings):
        self.home, self.port, self.log = home, roomd.free_port(), home / "baseservice.log"
        self.settings = {"listen_port": self.port, "data_dir": home / "data", "service_keys": f"old:{'o' * 32},gateway:{KEY}",
            "accounts": "alice:Alice:wonder:land,bob:鲍勃:builder", **settings}
        self.url, self.process = f"http://127.0.0.1:{self.port}", None
        self.start()

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([str(PROGRAM)], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env={**{f"BASESERVICE_{key.upper()}": str(value) for key, value in self.settings.items()}, "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "")})
        wait_for(lambda: self.process.poll() is not None or self.healthy())
        assert self.process.poll() is None, self.log.read_text()

    def healthy(self):
        try:
            return requests.get(self.url + "/healthz", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def call(self, method, path, key=KEY, **options):
        headers = {**({"Authorization": f"Bearer {key}"} if key else {}), **options.pop("headers", {})}
        return requests.request(method, self.url + path, headers=headers, timeout=30, **options)

    def upload(self, data, kind="file", content_type="application/octet-stream"):
        return self.call("POST", f"/files?kind={kind}", data=data, headers={"Content-Type": content_type})

    def stored(self, data, **options):
        answer = self.upload(data, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def names(self, folder="files"):
        return sorted(path.name for path in (self.home / "data" / folder).iterdir())

    def rss_kib(self):
        return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{self.process.pid}/status").read_text())[1])

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        code = self.process.wait(20)
        assert number == signal.SIGKILL or code == 0, self.log.read_text()
        assert not roomd.SANITIZER.search(self.log.read_text()), self.log.read_text()


@pytest.fixture
def start(tmp_path):
    running = []

    def begin(**settings):
        running.append(BaseService(tmp_path, **settings))
        return running[-1]

    yield begin
    for one in running:
        if one.process.poll() is None:
            one.end()


@pytest.fixture
def base(start):
    return start()


def code(answer):
    return answer.status_code, answer.json()["error"]["code"]


def raw(base, head, body=b""):
    """A connection that has sent this much."""
    sock = socket.create_connection(("127.0.0.1", base.port), timeout=10)
    sock.sendall(head.encode() + f"Authorization: Bearer {KEY}\r\nHost: x\r\n\r\n".encode() + body)
    return sock


# --- accounts ---


def test_who_knows_the_password_is_told_the_name(base):
    answer = base.call("POST", "/accounts/login", json={"account_id": "bob", "password": "builder"})
    assert (answer.status_code, answer.json()) == (200, {"account_id": "bob", "name": "鲍勃"})
    assert base.call("POST", "/accounts/login", json={"account_id": "alice", "password": "wonder:land"}).status_code == 200


@pytest.mark.parametrize("body", [{"account_id": "bob", "password": "wonder:land"}, {"account_id": "eve", "password": "builder"}, {"account_id": "bob", "password": ""}])
def test_who_does_not_is_refused(base, body):
    assert code(base.call("POST", "/accounts/login", json=body)) == (401, "unauthenticated")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"account_id": "bob"}', b'{"account_id": 1, "password": "x"}'])
def test_a_login_that_is_none_is_a_bad_request(base, body):
    assert code(base.call("POST", "/accounts/login", data=body)) == (400, "bad_request")


def test_names_of_many_accounts_come_in_one_call(base):
    assert base.call("GET", "/accounts?ids=bob,nobody,alice").json() == {"accounts": [{"account_id": "alice", "name": "Alice"}, {"account_id": "bob", "name": "鲍勃"}]}
    assert base.call("GET", "/accounts?ids=").json() == {"accounts": []}
    assert [one["account_id"] for one in base.call("GET", "/accounts", params={"match": "鲍"}).json()["accounts"]] == ["bob"]
    assert len(base.call("GET", "/accounts").json()["accounts"]) == 2


@pytest.mark.parametrize("method,path", [("POST", "/accounts/login"), ("GET", "/accounts"), ("POST", "/files?kind=file"), ("GET", "/files/x")])
@pytest.mark.parametrize("key", [None, "", "k" * 31, "gateway:" + KEY])
def test_without_a_key_nothing_is_answered(base, method, path, key):
    assert code(base.call(method, path, key=key)) == (401, "unauthenticated")


def test_old_and_new_key_are_both_valid(base):
    assert base.call("GET", "/accounts", key="o" * 32).status_code == 200


# --- uploads ---


def test_an_image_of_3_mb_comes_back_byte_for_byte(base):
    data = PNG + os.urandom(3_000_000)
    stored = base.stored(data, kind="image", content_type="image/png")
    assert stored["sha256"] == hashlib.sha256(data).hexdigest() and stored["size"] == len(data)
    assert re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{26}\.[0-9a-f]{64}", stored["file_id"]) and stored["file_id"].endswith(stored["sha256"])
    answer = base.call("GET", f"/files/{stored['file_id']}")
    assert (answer.status_code, answer.content == data, answer.headers["Content-Type"]) == (200, True, "image/png")
    assert answer.headers["ETag"] == f'"{stored["sha256"]}"' and answer.headers["X-Content-Type-Options"] == "nosniff"
    assert base.call("GET", f"/files/{stored['file_id']}/info").json() == stored


def test_the_same_bytes_twice_are_two_files(base):
    first, second = base.stored(b"same"), base.stored(b"same")
    assert first["file_id"] != second["file_id"] and first["sha256"] == second["sha256"]


@pytest.mark.parametrize("kind,data,found", [
    ("image", PNG + b"x", "image/png"), ("image", b"\xff\xd8\xff\xe0" + b"x" * 100, "image/jpeg"), ("image", b"GIF89a..", "image/gif"),
    ("image", b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"), ("image", b"\0\0\0\x1cftypavif", "image/avif"),
    ("voice", b"OggS\0\2", "audio/ogg"), ("voice", b"ID3\4", "audio/mpeg"), ("voice", b"\xff\xfb\x90\x64", "audio/mpeg"), ("voice", b"\xff\xf1\x50\x80", "audio/aac"),
    ("voice", b"RIFF\0\0\0\0WAVEfmt ", "audio/wav"), ("voice", b"#!AMR\n", "audio/amr"), ("voice", b"\x1a\x45\xdf\xa3...", "audio/webm"),
    ("voice", b"\0\0\0\x20ftypM4A ", "audio/mp4"), ("voice", b"\0\0\0\x20ftypisom", "audio/mp4"),
    ("video", b"\0\0\0\x20ftypisom", "video/mp4"), ("video", b"\x1a\x45\xdf\xa3...", "video/webm"), ("video", b"\0\0\0\x14ftypqt  ", "video/quicktime"),
    ("file", b"%PDF-1.7", "application/pdf"), ("file", PNG, "image/png"), ("file", b"whatever", "text/x-declared"),
])
def test_the_bytes_tell_the_type(base, kind, data, found):
    stored = base.stored(data, kind=kind, content_type="text/x-declared; charset=utf-8")
    assert (stored["kind"], stored["content_type"]) == (kind, found)
    assert base.call("GET", f"/files/{stored['file_id']}").content == data


@pytest.mark.parametrize("kind,data", [("image", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), ("image", b"%PDF-1.7"), ("image", b"\0\0\0\x20ftypisom"), ("voice", PNG),
    ("video", PNG + b"x" * 1000000), ("video", b"ID3\4"), ("image", b"x")])
def test_bytes_of_another_kind_are_refused_and_nothing_stays(base, kind, data):
    assert code(base.upload(data, kind=kind, content_type="image/png")) == (415, "unsupported_media_type")
    assert base.names() == []
    wait_for(lambda: base.names("temp") == [], what="nothing stays")  # the answer does not wait for the disk


@pytest.mark.parametrize("declared", ["text/html", "TEXT/HTML; charset=utf-8", "image/svg+xml", "application/xml", "text/javascript", "no type", "a/b/c", "/", "", 'x/"y', "x/" + "y" * 200])
def test_what_a_browser_would_run_is_bytes(base, declared):
    stored = base.stored(b"<script>alert(1)</script>", content_type=declared)
    assert stored["content_type"] == "application/octet-stream"
    answer = base.call("GET", f"/files/{stored['file_id']}")
    assert answer.headers["Content-Disposition"] == "attachment" and "sandbox" in answer.headers["Content-Security-Policy"]


def test_limits_hold_by_kind_before_a_byte_is_read(start):
    base = start(image_max_bytes=1000, file_max_bytes=2000)
    assert base.upload(PNG + b"x" * 992, kind="image").status_code == 200
    with raw(base, "POST /files?kind=image HTTP/1.1\r\nContent-Length: 1001\r\n") as sock:
        answer = sock.recv(4096).decode()  # not a byte of the body was sent
    assert answer.startswith("HTTP/1.1 413 ") and "at most 1000 bytes" in answer
    assert code(base.upload(b"x" * 2001)) == (413, "too_large")
    assert base.upload(b"x" * 2000).status_code == 200
    assert len(base.names()) == 2 and base.names("temp") == []


def test_a_large_refused_upload_can_read_its_refusal(start):
    base = start(file_max_bytes=1000)
    for _ in range(5):
        assert code(base.upload(b"x" * 12_000_000)) == (413, "too_large")  # more than sockets hold, and read within the 2 s that are given


@pytest.mark.parametrize("head,status", [
    ("POST /files?kind=other HTTP/1.1\r\nContent-Length: 1\r\n", 400), ("POST /files HTTP/1.1\r\nContent-Length: 1\r\n", 400),
    ("POST /files?kind=file HTTP/1.1\r\nContent-Length: 0\r\n", 400), ("POST /files?kind=file HTTP/1.1\r\n", 411),
    ("POST /files?kind=file HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", 411), ("POST /files?kind=file HTTP/1.1\r\nContent-Length: -1\r\n", 400),
    ("POST /files?kind=file HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n", 400), ("GET /files/x HTTP/1.1\r\nContent-Length: 5\r\n", 400),
    ("DELETE /files/x HTTP/1.1\r\n", 404), ("GET /nothing HTTP/1.1\r\n", 404), ("GET / HTTP/1.1\r\nX: " + "y" * 40000 + "\r\n", 431), ("nonsense\r\n", 400),
])
def test_other_requests_are_refused(base, head, status):
    with raw(base, head) as sock:
        assert sock.recv(4096).decode().startswith(f"HTTP/1.1 {status} ")
    assert base.names() == base.names("temp") == []


def test_the_body_of_a_refused_request_is_no_request(base):
    body = f"GET /accounts HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", base.port), timeout=10) as sock:
        sock.sendall(f"POST /files?kind=file HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = b""
        while part := sock.recv(4096):
            answer += part
    assert answer.startswith(b"HTTP/1.1 401 ") and answer.count(b"HTTP/1.1") == 1


def test_a_broken_upload_leaves_nothing(base):
    for sent in (1, 100, 1_000_000):
        sock = raw(base, "POST /files?kind=file HTTP/1.1\r\nContent-Length: 2000000\r\n", b"x" * sent)
        wait_for(lambda: base.names("temp"))
        sock.close()
        wait_for(lambda: not base.names("temp"))
    assert base.names() == []


def test_an_upload_on_which_nothing_moves_is_given_up(start):
    base = start(idle_timeout_ms=2000)  # more than passes before the first byte
    with raw(base, "POST /files?kind=file HTTP/1.1\r\nContent-Length: 2000000\r\n", b"x" * 1000) as sock:
        assert sock.recv(4096) == b""
    wait_for(lambda: not base.names("temp"))
    assert base.names() == []


def test_a_kill_in_the_middle_of_uploads_leaves_whole_files_only(base):
    done, stop = [], threading.Event()

    def upload():
        while not stop.is_set():
            data = os.urandom(300_000)
            try:
                done.append((base.stored(data)["file_id"], data))
            except requests.RequestException:
                return

    threads = [threading.Thread(target=upload) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(done) > 10, 60)
    base.end(signal.SIGKILL)
    for thread in threads:
        thread.join()
    base.start()
    assert base.names("temp") == []
    for file_id, data in done:
        assert base.call("GET", f"/files/{file_id}").content == data
    for name in base.names():
        assert hashlib.sha256(base.call("GET", f"/files/{name}").content).hexdigest() == name[27:]


def test_who_waits_for_100_continue_gets_it(base):
    with raw(base, "POST /files?kind=file HTTP/1.1\r\nContent-Length: 4\r\nExpect: 100-continue\r\n") as sock:
        assert sock.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"data")
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.deadline(300)
def test_memory_stays_bounded_while_large_files_come_and_go(base):
    def parts():
        for _ in range(200):
            yield bytes(1_000_000)

    def one():
        connection = http.client.HTTPConnection("127.0.0.1", base.port, timeout=200)  # the disk may be slow
        connection.request("POST", "/files?kind=file", parts(), {"Authorization": f"Bearer {KEY}", "Content-Length": "200000000"})
        stored = json.loads(connection.getresponse().read())
        answer = base.call("GET", f"/files/{stored['file_id']}", stream=True)
        sizes.append(sum(len(part) for part in answer.iter_content(1_000_000)))

    sizes, before = [], base.rss_kib()
    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    most = before
    while any(thread.is_alive() for thread in threads):
        most = max(most, base.rss_kib())
        threads[0].join(0.05)
    assert sizes == [200_000_000] * 2
    assert most - before < 40_000, f"{most - before} KiB more"


# --- downloads ---


@pytest.fixture
def letters(base):
    return base.stored(b"abcdefghijklmnopqrstuvwxyz")["file_id"]


@pytest.mark.parametrize("asked,status,content,told", [
    ("bytes=0-3", 206, b"abcd", "bytes 0-3/26"), ("bytes=24-", 206, b"yz", "bytes 24-25/26"), ("bytes=-2", 206, b"yz", "bytes 24-25/26"), ("bytes=-100", 206, b"abcdefghijklmnopqrstuvwxyz", "bytes 0-25/26"),
    ("bytes=20-99", 206, b"uvwxyz", "bytes 20-25/26"), ("bytes=25-25", 206, b"z", "bytes 25-25/26"), ("BYTES=0-0", 206, b"a", "bytes 0-0/26"),
    ("bytes=26-", 416, b"", "bytes */26"), ("bytes=-0", 416, b"", "bytes */26"), ("bytes=999999999999999999-", 416, b"", "bytes */26"),
    ("bytes=3-1", 200, None, None), ("bytes=0-1,3-4", 200, None, None), ("lines=0-1", 200, None, None), ("bytes=", 200, None, None), ("bytes=-", 200, None, None), ("bytes=a-b", 200, None, None),
])
def test_one_range_is_served_and_others_are_ignored_or_refused(base, letters, asked, status, content, told):
    answer = base.call("GET", f"/files/{letters}", headers={"Range": asked})
    assert (answer.status_code, answer.headers.get("Content-Range")) == (status, told)
    assert answer.content == (b"abcdefghijklmnopqrstuvwxyz" if content is None else content)


def test_a_range_of_one_byte(base):
    one = base.stored(b"x")["file_id"]
    for asked in ("bytes=0-", "bytes=-1", "bytes=-5", "bytes=0-0"):
        answer = base.call("GET", f"/files/{one}", headers={"Range": asked})
        assert (answer.status_code, answer.content, answer.headers["Content-Range"]) == (206, b"x", "bytes 0-0/1")


def test_a_piece_of_something_else_is_not_continued(base, letters):
    whole = base.call("GET", f"/files/{letters}")
    for condition, status in ((whole.headers["ETag"], 206), (whole.headers["Last-Modified"], 206), ('"other"', 200), ("Thu, 01 Jan 1970 00:00:00 GMT", 200)):
        assert base.call("GET", f"/files/{letters}", headers={"Range": "bytes=0-1", "If-Range": condition}).status_code == status
    assert base.call("GET", f"/files/{letters}", headers={"If-None-Match": whole.headers["ETag"]}).status_code == 304
    assert base.call("GET", f"/files/{letters}", headers={"If-None-Match": '"other"'}).status_code == 200


def test_head_tells_and_sends_nothing(base, letters):
    answer = base.call("HEAD", f"/files/{letters}")
    assert (answer.status_code, answer.headers["Content-Length"], answer.content) == (200, "26", b"")
    assert base.call("HEAD", f"/files/{letters}", headers={"Range": "bytes=1-3"}).headers["Content-Length"] == "3"


@pytest.mark.parametrize("name", ["x", "..", "../temp", "%2e%2e/x", "01KC46E0D7X8BQXSRB29FJP960." + "0" * 64, "01KC46E0D7X8BQXSRB29FJP960." + "/" * 64, "x" * 91, "/info", ""])
def test_what_is_no_id_is_no_file(base, letters, name):
    with raw(base, f"GET /files/{name} HTTP/1.1\r\n") as sock:
        assert sock.recv(4096).decode().startswith("HTTP/1.1 404 ")


def test_requests_follow_each_other_on_one_connection(base, letters):
    request = f"GET /files/{letters} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nRange: bytes=0-2\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", base.port), timeout=10) as sock:
        sock.sendall(request * 3)
        answers = b""
        while answers.count(b"\r\n\r\nabc") < 3:
            answers += sock.recv(4096)


def test_files_are_there_after_a_restart(base, letters):
    base.end()
    base.start()
    assert base.call("GET", f"/files/{letters}").content == b"abcdefghijklmnopqrstuvwxyz"


def test_a_damaged_file_is_not_handed_out(base, letters):
    path = base.home / "data" / "files" / letters
    os.truncate(path, path.stat().st_size - 1)
    assert code(base.call("GET", f"/files/{letters}")) == (503, "unavailable")


def test_a_stop_finishes_what_is_under_way(base):
    sock = raw(base, "POST /files?kind=file HTTP/1.1\r\nContent-Length: 6\r\n", b"abc")
    wait_for(lambda: base.names("temp"))
    base.process.send_signal(signal.SIGTERM)
    wait_for(lambda: "drain.begin" in base.log.read_text())
    sock.sendall(b"def")
    assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
    sock.close()
    assert base.process.wait(20) == 0 and len(base.names()) == 1


def test_the_manual_is_the_table_of_settings():
    manual = subprocess.run([str(PROGRAM), "--settings"], capture_output=True, text=True, timeout=20).stdout
    rows = [line for line in manual.splitlines() if line.startswith("| ")]
    assert len(rows) > 10 and "\n".join(rows) in (roomd.TOP / "docs" / "baseservice.md").read_text()


@pytest.mark.parametrize("settings,word", [({"SERVICE_KEYS": ""}, "service_keys"), ({"ACCOUNTS": "alice"}, "accounts"), ({"LISTEN_PORT": "x"}, "listen_port"), ({"NONSENSE": "1"}, "nonsense")])
def test_wrong_settings_are_named(settings, word):
    done = subprocess.run([str(PROGRAM)], env={"BASESERVICE_SERVICE_KEYS": KEY, **{f"BASESERVICE_{key}": value for key, value in settings.items()}}, capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and word in done.stderr.lower()
