"""Bad input to the service calls: each gets its answer, nothing is published, and the instance serves on."""
import json
import socket

import pytest
import requests

from roomd import wait_for

DEEP = "[" * 100 + "]" * 100
ROOM = "s00.01KC46E0D7X8BQXSRB29FJP960"
PUSH = {"room_id": ROOM, "sender": "alice", "kind": "text", "content": "x"}


def push(**fields):
    return "history/Push", json.dumps({**PUSH, **fields})


def without(name):
    return "history/Push", json.dumps({key: value for key, value in PUSH.items() if key != name})


# what is wrong: (method, body), field or None; always 400 bad_request
BODIES = {
    "empty": (("room/Create", ""), None),
    "blank": (("room/Create", "  "), None),
    "null": (("room/Create", "null"), None),
    "array": (("room/Create", "[]"), None),
    "string": (("room/Create", '"x"'), None),
    "number": (("room/Create", "1"), None),
    "truncated": (("room/Create", '{"name":"x"'), None),
    "two documents": (("room/Create", "{}{}"), None),
    "bytes behind": (("room/Create", "{} x"), None),
    "byte order mark": (("room/Create", b"\xef\xbb\xbf{}"), None),
    "comment": (("room/Create", "{/* */}"), None),
    "single quotes": (("room/Create", "{'a':1}"), None),
    "NaN": (("room/Create", '{"member_limit":NaN}'), None),
    "trailing comma": (("room/Create", '{"a":1,}'), None),
    "control character": (("room/Create", '{"name":"a\nb"}'), None),
    "not UTF-8": (("room/Create", b'{"name":"\xff"}'), None),
    "overlong UTF-8": (("room/Create", b'{"name":"\xc0\xaf"}'), None),
    "surrogate in UTF-8": (("room/Create", b'{"name":"\xed\xa0\x80"}'), None),
    "lone surrogate": (("room/Create", '{"name":"\\ud800"}'), None),
    "U+0000": (("room/Create", '{"name":"\\u0000"}'), None),
    "raw NUL": (("room/Create", b'{"name":"\x00"}'), None),
    "duplicate key": (("room/Create", '{"name":"a","name":"b"}'), None),
    "duplicate key, escaped": (("room/Create", '{"name":"a","n\\u0061me":"b"}'), None),
    "too deep": (("room/Create", '{"extra":' + DEEP + "}"), None),
    "deep without end": (("room/Create", "[" * 200000), None),
    "kind unknown": (("room/Create", '{"kind":"party"}'), "kind"),
    "kind of wrong type": (("room/Create", '{"kind":1}'), "kind"),
    "key empty": (("room/Create", '{"key":""}'), "key"),
    "key too long": (("room/Create", json.dumps({"key": "k" * 129})), "key"),
    "key with a tab": (("room/Create", '{"key":"a\\tb"}'), "key"),
    "name too long": (("room/Create", json.dumps({"name": "n" * 257})), "name"),
    "name null": (("room/Create", '{"name":null}'), "name"),
    "owner reserved": (("room/Create", '{"owner":"@system"}'), "owner"),
    "members no array": (("room/Create", '{"members":"alice"}'), "members"),
    "members of numbers": (("room/Create", '{"members":[1]}'), "members"),
    "member empty": (("room/Create", '{"members":[""]}'), "members"),
    "member too long": (("room/Create", json.dumps({"members": ["a" * 65]})), "members"),
    "member with a control character": (("room/Create", '{"members":["a\\u0007"]}'), "members"),
    "1001 members": (("room/Create", json.dumps({"members": [str(n) for n in range(1001)]})), "members"),
    "limit negative": (("room/Create", '{"member_limit":-1}'), "member_limit"),
    "limit a fraction": (("room/Create", '{"member_limit":1.5}'), "member_limit"),
    "limit a string": (("room/Create", '{"member_limit":"5"}'), "member_limit"),
    "limit 2^31": (("room/Create", '{"member_limit":2147483648}'), "member_limit"),
    "limit 1e999": (("room/Create", '{"member_limit":1e999}'), "member_limit"),
    "limit of a hundred digits": (("room/Create", '{"member_limit":' + "9" * 100 + "}"), "member_limit"),
    "history unknown": (("room/Create", '{"history":"none"}'), "history"),
    "extra no object": (("room/Create", '{"extra":[]}'), "extra"),
    "extra too long": (("room/Create", json.dumps({"extra": {"x": "y" * 17000}})), "extra"),
    "request_id too long": (("room/Create", json.dumps({"request_id": "r" * 65})), "request_id"),
    "nothing to get": (("room/Get", "{}"), "room_id"),
    "two things to get": (("room/Get", '{"key":"a","room_ids":[]}'), "room_id"),
    "501 rooms": (("room/Get", json.dumps({"room_ids": [f"s00.{n:026}" for n in range(501)]})), "room_ids"),
    "room_id a number": (("room/Get", '{"room_id":5}'), "room_id"),
    "room_id empty": (("room/Get", '{"room_id":""}'), "room_id"),
    "room_id of 10 KB": (("room/Get", json.dumps({"room_id": "x" * 10000})), "room_id"),
    "nothing to update": (("room/Update", json.dumps({"room_id": ROOM})), "name"),
    "room_id missing": (("room/Remove", "{}"), "room_id"),
    "nobody to add": (("room/AddAccount2Room", json.dumps({"room_id": ROOM})), "account_id"),
    "nobody in the array": (("room/AddAccount2Room", json.dumps({"room_id": ROOM, "account_ids": []})), "account_ids"),
    "one and many to add": (("room/AddAccount2Room", json.dumps({"room_id": ROOM, "account_id": "a", "account_ids": ["b"]})), "account_ids"),
    "role owner": (("room/AddAccount2Room", json.dumps({"room_id": ROOM, "account_id": "a", "role": "owner"})), "role"),
    "1001 to remove": (("room/RmAccountFromRoom", json.dumps({"room_id": ROOM, "account_ids": [str(n) for n in range(1001)]})), "account_ids"),
    "reason too long": (("room/RmAccountFromRoom", json.dumps({"room_id": ROOM, "account_id": "a", "reason": "r" * 257})), "reason"),
    "page of 0": (("room/ListAccounts", json.dumps({"room_id": ROOM, "limit": 0})), "limit"),
    "page of 1001": (("room/ListRooms", '{"account_id":"a","limit":1001}'), "limit"),
    "after of our own making": (("room/ListRooms", '{"account_id":"a","after":"99999999999999999999.1"}'), "after"),
    "after empty": (("room/ListRooms", '{"account_id":"a","after":""}'), "after"),
    "whose rooms": (("room/ListRooms", "{}"), "account_id"),
    "sender missing": (without("sender"), "sender"),
    "kind missing": (without("kind"), "kind"),
    "content missing": (without("content"), "content"),
    "sender reserved": (push(sender="@all"), "sender"),
    "kind with a space": (push(kind="a b"), "kind"),
    "kind of 65": (push(kind="k" * 65), "kind"),
    "text no string": (push(content=5), "content"),
    "image without file": (push(kind="image", content={}), "content.file_id"),
    "rich text without type": (push(kind="rich_text", content={"parts": [{"body": "x"}]}), "content.parts[0].type"),
    "client_msg_id empty": (push(client_msg_id=""), "client_msg_id"),
    "client_msg_id too long": (push(client_msg_id="c" * 65), "client_msg_id"),
    "client_msg_id with a line feed": (push(client_msg_id="a\nb"), "client_msg_id"),
    "sent_at negative": (push(sent_at=-1), "sent_at"),
    "sent_at a string": (push(sent_at="now"), "sent_at"),
    "mentions no array": (push(mentions="bob"), "mentions"),
    "mentions nobody": (push(mentions=["@everybody"]), "mentions"),
    "101 mentions": (push(mentions=[str(n) for n in range(101)]), "mentions"),
    "quote_seq 0": (push(quote_seq=0), "quote_seq"),
    "transient a string": (push(transient="yes"), "transient"),
    "wait unknown": (push(wait="forever"), "wait"),
    "transient and durable": (push(transient=True, wait="durable"), "wait"),
    "cursor of words": (("history/Pull", json.dumps({"room_id": ROOM, "after": "first"})), "after"),
    "cursor negative": (("history/Pull", json.dumps({"room_id": ROOM, "after": "-1:5"})), "after"),
    "cursor with three parts": (("history/Pull", json.dumps({"room_id": ROOM, "after": "1:2:3"})), "after"),
    "cursor above 2^63": (("history/Pull", json.dumps({"room_id": ROOM, "after": "1:9223372036854775808"})), "after"),
    "after negative": (("history/Pull", json.dumps({"room_id": ROOM, "after": -1})), "after"),
    "before 0": (("history/Pull", json.dumps({"room_id": ROOM, "before": 0})), "before"),
    "before a cursor": (("history/Pull", json.dumps({"room_id": ROOM, "before": "1:5"})), "before"),
    "after and before": (("history/Pull", json.dumps({"room_id": ROOM, "after": "0:0", "before": 5})), "before"),
    "limit 0": (("history/Pull", json.dumps({"room_id": ROOM, "limit": 0})), "limit"),
    "limit 501": (("history/Pull", json.dumps({"room_id": ROOM, "limit": 501})), "limit"),
    "wait too long": (("history/Pull", json.dumps({"room_id": ROOM, "after": "0:0", "wait_ms": 60001})), "wait_ms"),
    "wait without a cursor": (("history/Pull", json.dumps({"room_id": ROOM, "wait_ms": 5})), "wait_ms"),
    "nobody connects": (("history/PullByActiveConnection", json.dumps({"all": True})), "account_id"),
    "rooms no array": (("history/PullByActiveConnection", json.dumps({"account_id": "a", "rooms": ROOM})), "rooms"),
}


def assert_serving(api):
    room = api.create_room("alice")["room_id"]
    assert api.push(room, "alice", "still here", wait="durable")["seq"] == 1


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_gets_its_answer(api, name):
    (method, body), field = BODIES[name]
    headers = {"Authorization": f"Bearer {api.key}", "Content-Type": "application/json"}
    answer = requests.post(f"{api.url}/v1/{method}", data=body if isinstance(body, bytes) else body.encode(), headers=headers, timeout=10)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "bad_request"), error
    assert error.get("field") == field and len(error["message"]) > 10, error
    assert_serving(api)


def head(*lines, body=b""):
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


COMMON = ("Host: x", "Authorization: Bearer {key}", "Content-Type: application/json")

# what is wrong: (bytes sent, statuses that are right). The connection may be closed without a word where framing is doubtful.
RAW = {
    "two lengths": (head("POST /v1/room/Create HTTP/1.1", *COMMON, "Content-Length: 2", "Content-Length: 3", body=b"{}"), {400}),
    "length and chunks": (head("POST /v1/room/Create HTTP/1.1", *COMMON, "Content-Length: 2", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"), {400}),
    "length with a sign": (head("POST /v1/room/Create HTTP/1.1", *COMMON, "Content-Length: +2", body=b"{}"), {400}),
    "length of words": (head("POST /v1/room/Create HTTP/1.1", *COMMON, "Content-Length: two", body=b"{}"), {400}),
    "length in hex": (head("POST /v1/room/Create HTTP/1.1", *COMMON, "Content-Length: 0x2", body=b"{}"), {400}),
    "length of a gigabyte": (head("POST /v1/room/Create HTTP/1.1", *COMMON, "Content-Length: 1073741824", body=b"{}"), {413}),
    "unknown coding": (head("POST /v1/room/Create HTTP/1.1", *COMMON, "Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), {400, 501}),
    "bad chunk": (head("POST /v1/room/Create HTTP/1.1", *COMMON, "Transfer-Encoding: chunked", body=b"zz\r\n{}\r\n0\r\n\r\n"), {400}),
    "chunk without end": (head("POST /v1/room/Create HTTP/1.1", *COMMON, "Transfer-Encoding: chunked", body=b"fffffffffffffffff\r\n"), {400, 413}),
    "no host": (head("GET /healthz HTTP/1.1"), {400}),
    "two hosts": (head("GET /healthz HTTP/1.1", "Host: a", "Host: b"), {400}),
    "space before the colon": (head("GET /healthz HTTP/1.1", "Host: x", "X-A : b"), {400}),
    "folded header": (head("GET /healthz HTTP/1.1", "Host: x", "X-A: b", " c"), {400}),
    "bare line feeds": (b"GET /healthz HTTP/1.1\nHost: x\n\n", {400}),
    "no HTTP": (b"hello there\r\n\r\n", {400}),
    "binary": (bytes(range(256)), {400}),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 505}),
    "HTTP/0.9": (b"GET /healthz\r\n\r\n", {400}),
    "lower case method": (head("get /healthz HTTP/1.1", "Host: x"), {400, 405, 501}),
    "CONNECT": (head("CONNECT x:1 HTTP/1.1", "Host: x"), {400, 404, 405, 501}),
    "TRACE": (head("TRACE /healthz HTTP/1.1", "Host: x"), {405, 501}),
    "absolute path": (head("GET http://evil/healthz HTTP/1.1", "Host: x"), {400, 404}),
    "NUL in a header": (head("GET /healthz HTTP/1.1", "Host: x", "X-A: a\0b"), {400}),
    "200 headers": (head("GET /healthz HTTP/1.1", "Host: x", *[f"X-{n}: y" for n in range(200)]), {400, 431}),
    "a header of 500 KB": (head("GET /healthz HTTP/1.1", "Host: x", "X-A: " + "y" * 500000), {400, 431}),
    "GET with a body": (head("GET /healthz HTTP/1.1", "Host: x", "Content-Type: application/json", "Content-Length: 2", body=b"{}"), {400}),
}


def exchange(api, data):
    """The first status of the answer; None when the connection was closed without one. Whatever comes, it comes soon."""
    host, port = api.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=8) as peer:  # request_timeout_ms, after which anything is cut, is 10 s
        try:
            peer.sendall(data.replace(b"{key}", api.key.encode()))
            answer = b""
            while b"\r\n" not in answer:
                more = peer.recv(65536)
                if not more:
                    break
                answer += more
        except (ConnectionResetError, BrokenPipeError):
            return None
    return int(answer.split()[1]) if answer.startswith(b"HTTP/1.") else None


@pytest.mark.parametrize("name", RAW)
def test_a_bad_request_gets_its_answer_or_is_cut(api, name):
    data, right = RAW[name]
    assert exchange(api, data) in right | {None}
    assert_serving(api)


def test_bytes_behind_an_ambiguous_request_are_no_request(api):
    """Request smuggling: what follows a doubtful body must not be run."""
    key = f"smuggled-{id(api)}"
    body = json.dumps({"key": key}).encode()
    inner = head("POST /v1/room/Create HTTP/1.1", *COMMON, f"Content-Length: {len(body)}", body=body)
    exchange(api, head("POST /v1/room/Create HTTP/1.1", *COMMON, f"Content-Length: {len(inner) + 5}", "Transfer-Encoding: chunked",
        body=b"0\r\n\r\n" + inner))
    assert api.error("room/Get", key=key) == (404, "no_such_room")


def test_broken_messagepack_is_refused(api):
    headers = {"Authorization": f"Bearer {api.key}", "Content-Type": "application/msgpack"}
    for body in (b"\xc1", b"\x81", b"\x93\x01", b"\xdf\xff\xff\xff\xff", b"\x81\xa4name\xc4\x01x", b"\x81\x01\x02", b"\x80\x80", b"\x91" * 1000 + b"\x80"):
        answer = requests.post(f"{api.url}/v1/room/Create", data=body, headers={**headers, "Accept": "application/json"}, timeout=10)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request"), body[:20]
    assert_serving(api)


def test_names_are_data(cluster, api):
    nasty = ["'; DROP TABLE room; --", "%_\\", "$1", "${jndi:ldap://x}", "%s%n", "\u202ertl", "a/../b", "\"quoted\"", "\u2028", "🙂" * 16, " ", "é", "e\u0301"]
    room = api.create_room(*nasty, name="".join(nasty)[:60], extra={"nasty": nasty})
    assert room["members"] == len(nasty) and room["extra"]["nasty"] == nasty
    listed = api.ok("room/ListAccounts", room_id=room["room_id"])["accounts"]
    assert sorted(one["account_id"] for one in listed) == sorted(nasty)
    for name in nasty:
        api.push(room["room_id"], name, name)
    entries = api.pull_until(room["room_id"], len(nasty))
    assert [(entry["sender"], entry["content"]) for entry in entries] == [(name, name) for name in nasty]


def test_abrupt_leavers_leave_nothing_behind(cluster, api):
    instance = next(one for one in cluster.instances if one.api.url == api.url)
    before = instance.open_files()
    room = api.create_room("alice")["room_id"]
    body = json.dumps({"room_id": room, "after": "0:0", "wait_ms": 60000}).encode()
    request = head("POST /v1/history/Pull HTTP/1.1", *COMMON, f"Content-Length: {len(body)}", body=body).replace(b"{key}", api.key.encode())
    host, port = api.url.removeprefix("http://").split(":")
    for cut in range(0, len(request), 7):
        with socket.create_connection((host, int(port)), timeout=5) as peer:
            peer.sendall(request[:cut])
    for _ in range(20):
        with socket.create_connection((host, int(port)), timeout=5) as peer:
            peer.sendall(request)
    wait_for(lambda: instance.open_files() <= before + 2, 20)
    assert_serving(api)
