"""roomd-gateway with everything behind it: what docs/gateway.md says, as frontends see it."""
import hashlib
import json
import os
import socket
import subprocess
import time

import pytest
import requests

import roomd
from doors import golden
from gateway import WEB, BaseService, Frames, Gateway
from roomd import new_id, wait_for

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 200
TRANSPORTS = ["websocket", "sse", "poll"]


@pytest.fixture(scope="module")
def base(session_cluster):
    base = BaseService(session_cluster)
    yield base
    base.check()
    base.stop()


@pytest.fixture(scope="module")
def shared_gateway(session_cluster, base):
    gateway = Gateway(session_cluster, base)
    yield gateway
    gateway.check()
    gateway.stop()
    gateway.check()


@pytest.fixture
def gateway(cluster, shared_gateway):
    yield shared_gateway
    shared_gateway.check()


@pytest.fixture
def start_gateway(cluster, base):
    """A gateway of the test's own."""
    mine = []

    def start(**settings):
        mine.append(Gateway(cluster, base, f"gateway-{len(mine)}-{new_id()[-4:]}", **settings))
        return mine[-1]

    yield start
    for one in mine:
        one.stop()
        one.check()


@pytest.fixture
def client_of(keep):
    return lambda user, *args, **options: keep(user.web_client(*args, **options))


@pytest.fixture
def alice(gateway):
    return gateway.user("alice")


@pytest.fixture
def bob(gateway):
    return gateway.user("bob")


# --- sessions ---


def test_who_logs_in_is_known_by_the_cookie_until_it_logs_out(gateway, alice):
    me = alice.get("me")
    assert (me["account_id"], me["name"]) == ("alice", "Alice") and me["expires_at"] > time.time() * 1000
    (cookie,) = alice.session.cookies
    assert cookie.has_nonstandard_attr("HttpOnly") and cookie.get_nonstandard_attr("SameSite") == "Strict" and cookie.path == "/"
    assert alice.post("refresh")["expires_at"] >= me["expires_at"]
    alice.post("logout")
    assert alice.refused("GET", "me") == (401, "unauthenticated")


def test_a_wrong_password_and_a_forged_session_are_nobody(gateway, alice):
    for account, password in (("alice", "wrong"), ("nobody", "pw-nobody"), ("alice", "")):
        assert alice.refused("POST", "login", {"account": account, "password": password}) == (401, "unauthenticated")
    for token in (alice.token[:-4] + "AAAA", "x", alice.token[1:]):
        answer = requests.get(f"{gateway.url}/api/me", headers={"Authorization": f"Bearer {token}"}, timeout=10)
        assert answer.status_code == 401


def test_a_session_ends_by_itself(start_gateway):
    user = start_gateway(session_ttl_ms=1000).user("alice")
    wait_for(lambda: user.ask("GET", "me").status_code == 401)
    assert user.refused("POST", "refresh", {}) == (401, "unauthenticated")


def test_a_token_is_a_session_for_programs(gateway, alice):
    bearer = {"Authorization": f"Bearer {alice.token}"}
    assert requests.get(f"{gateway.url}/api/me", headers=bearer, timeout=10).json()["account_id"] == "alice"
    made = requests.post(f"{gateway.url}/api/rooms", headers=bearer, json={"kind": "direct", "account_id": "bob"}, timeout=10)
    assert made.status_code == 200  # without X-Requested-With


def test_other_pages_can_do_nothing(gateway, alice):
    room = alice.direct("bob")
    path = f"rooms/{room}/messages"
    body = {"client_msg_id": new_id(), "kind": "text", "content": "forged"}
    assert alice.refused("POST", path, body, headers={"X-Requested-With": None}) == (403, "forbidden")
    assert alice.refused("POST", path, body, headers={"Origin": "https://evil.example"}) == (403, "forbidden")
    assert alice.refused("POST", "login", {"account": "alice", "password": "pw-alice"}, headers={"X-Requested-With": None}) == (403, "forbidden")
    assert alice.ask("POST", path, body, headers={"Origin": gateway.url}).status_code == 200
    answer = alice.ask("OPTIONS", path, headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"})
    assert answer.status_code >= 400 and not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_a_named_origin_may(start_gateway):
    user = start_gateway(allowed_origins="https://app.example").user("alice")
    assert user.ask("POST", "refresh", {}, headers={"Origin": "https://app.example"}).status_code == 200
    assert user.refused("POST", "refresh", {}, headers={"Origin": "https://app.example.evil"}) == (403, "forbidden")


# --- rooms ---


def test_a_direct_chat_is_one_whoever_begins_it(alice, bob):
    made = alice.post("rooms", {"kind": "direct", "account_id": "bob"})
    again = bob.post("rooms", {"kind": "direct", "account_id": "alice"})
    assert again["room"]["room_id"] == made["room"]["room_id"] and again["created"] is False
    assert (made["room"]["peer"], again["room"]["peer"]) == ("bob", "alice")
    listed = {room["room_id"]: room for room in bob.get("rooms", limit=100)["rooms"]}
    assert listed[made["room"]["room_id"]]["peer"] == "alice"


def test_a_direct_chat_that_was_made_without_the_gateway_has_its_peer_too(cluster, gateway, alice):
    other = f"other-{new_id()}"
    room = cluster.api.ok("room/Create", kind="direct", members=["alice", other])["room"]["room_id"]
    listed = {one["room_id"]: one for one in alice.get("rooms", limit=100)["rooms"]}
    assert listed[room]["peer"] == other
    assert alice.get(f"rooms/{room}")["room"]["peer"] == other
    assert all("peer" in one for one in listed.values() if one["kind"] == "direct")
    assert alice.post("rooms", {"kind": "direct", "account_id": other})["room"]["peer"] == other


def test_a_group_chat_has_people_with_names_who_come_and_go(gateway, alice, bob):
    room = alice.group("开发群", "bob", "carol")
    members = alice.get(f"rooms/{room}/members")["accounts"]
    assert {(one["account_id"], one["name"], one["role"]) for one in members} == {("alice", "Alice", "owner"), ("bob", "Bob", "member"), ("carol", "王芳", "member")}
    assert alice.post(f"rooms/{room}/members/add", {"account_ids": ["dave", "bob"]}) == {"added": ["dave"], "already": ["bob"]}
    assert alice.post(f"rooms/{room}/members/remove", {"account_ids": ["carol"]})["removed"] == ["carol"]
    assert gateway.user("carol").refused("GET", f"rooms/{room}") == (403, "not_member")
    assert bob.refused("POST", f"rooms/{room}/members/remove", {"account_ids": ["dave"]}) == (403, "forbidden")
    assert bob.post(f"rooms/{room}/members/remove", {"account_ids": ["bob"]})["removed"] == ["bob"]
    assert alice.post(f"rooms/{room}/update", {"name": "新名"})["room"]["name"] == "新名"
    assert alice.get(f"rooms/{room}")["room"]["name"] == "新名"


def test_accounts_are_found_by_id_and_by_name(alice):
    assert alice.get("accounts", ids="carol,nobody,bob") == {"accounts": [{"account_id": "bob", "name": "Bob"}, {"account_id": "carol", "name": "王芳"}]} or \
        {one["account_id"] for one in alice.get("accounts", ids="carol,nobody,bob")["accounts"]} == {"bob", "carol"}
    assert [one["account_id"] for one in alice.get("accounts", match="王")["accounts"]] == ["carol"]


def test_who_is_not_in_the_room_is_told_so_whatever_is_asked(gateway, alice):
    room, eve = alice.group("ours", "bob"), gateway.user("eve")
    message = alice.say(room, "secret")
    alice.wait_message(room, message)
    for method, path, body in (("GET", "", None), ("GET", "/messages", None), ("GET", "/members", None), ("POST", "/messages", {"kind": "text", "content": "x"}),
            ("POST", "/edit", {"seq": 1, "content": "x"}), ("POST", "/recall", {"seq": 1}), ("POST", "/delete", {"seq": 1, "scope": "me"}), ("POST", "/read", {"read_seq": 1}),
            ("POST", "/typing", {}), ("POST", "/update", {"name": "x"}), ("POST", "/members/add", {"account_ids": ["eve"]})):
        assert eve.refused(method, f"rooms/{room}{path}", body) == (403, "not_member"), path
    own = eve.group("own")
    assert eve.refused("POST", f"rooms/{own}/forward", {"client_msg_id": new_id(), "from_room_id": room, "seqs": [1]}) == (403, "not_member")
    assert eve.refused("POST", "connect", {"rooms": [room]}) == (403, "not_member")


# --- messages ---


def test_send_answers_with_the_id_everybody_will_see(alice, bob):
    room, client_msg_id = alice.direct("bob"), new_id()
    answer = alice.post(f"rooms/{room}/messages", {"client_msg_id": client_msg_id, "kind": "text", "content": "hello"})
    assert answer == {"message_id": roomd.message_id(room, "alice", client_msg_id), "client_msg_id": client_msg_id}
    assert alice.post(f"rooms/{room}/messages", {"client_msg_id": client_msg_id, "kind": "text", "content": "hello"}) == answer
    entry = bob.wait_message(room, answer["message_id"])
    assert (entry["sender"], entry["content"], entry["client_msg_id"]) == ("alice", "hello", client_msg_id)
    assert len([one for one in bob.history(room) if one.get("client_msg_id") == client_msg_id]) == 1


def test_a_frontend_cannot_speak_for_somebody_else(alice, bob):
    room = alice.direct("bob")
    message = alice.post(f"rooms/{room}/messages", {"kind": "text", "content": "I am bob", "sender": "bob", "account_id": "bob"})["message_id"]
    assert bob.wait_message(room, message)["sender"] == "alice"


def test_golden_rich_text_and_forward_arrive_as_they_are(alice, bob):
    room = alice.group("golden", "bob")
    for _ in range(2):
        first = alice.wait_message(room, alice.say(room, "quoted"))
    for name in ("rich_text", "forward"):
        body = json.loads(golden(name))
        if name == "rich_text":
            body["content"]["quote_message_seq"] = first["seq"]
        message = alice.post(f"rooms/{room}/messages", {**body, "client_msg_id": new_id()})["message_id"]
        entry = bob.wait_message(room, message)
        assert (entry["kind"], entry["content"]) == (body["message_type"], body["content"])
        if name == "rich_text":
            assert entry["quote_seq"] == first["seq"] and set(entry["mentions"]) == {"user_id_manager", "@all"}


def test_edit_recall_delete_and_read(alice, bob):
    room = alice.group("living", "bob")
    entries = [alice.wait_message(room, alice.say(room, f"{number}")) for number in range(3)]
    assert next(one for one in bob.get("unread", room_ids=room)["rooms"])["unread"] == 3
    assert bob.post(f"rooms/{room}/read", {"read_seq": 2}) == {"read_seq": 2, "unread": 1}
    request_id = new_id()
    seq = alice.post(f"rooms/{room}/edit", {"seq": 1, "content": "one", "request_id": request_id})["seq"]
    assert alice.post(f"rooms/{room}/edit", {"seq": 1, "content": "one", "request_id": request_id})["seq"] == seq
    assert bob.refused("POST", f"rooms/{room}/edit", {"seq": 1, "content": "x"}) == (403, "forbidden")
    alice.post(f"rooms/{room}/recall", {"message_id": entries[1]["message_id"]})
    assert alice.post(f"rooms/{room}/delete", {"seq": 3, "scope": "me"}) == {}
    seen = {entry["seq"]: entry for entry in alice.history(room)}
    assert seen[1]["content"] == "one" and seen[2]["state"] == "recalled" and 3 not in seen
    assert {entry["seq"] for entry in bob.history(room)} >= {1, 2, 3}
    assert alice.refused("POST", f"rooms/{room}/edit", {"seq": 2, "content": "x"}) == (409, "conflict")


def test_history_pages_both_ways(alice, bob):
    room = alice.group("long", "bob")
    last = [alice.say(room, f"{number}") for number in range(30)][-1]
    alice.wait_message(room, last)
    newest = bob.get(f"rooms/{room}/messages", limit=10)
    assert [entry["seq"] for entry in newest["entries"]] == list(range(21, 31)) and newest["more"] and newest["durable_seq"] == 30
    older = bob.get(f"rooms/{room}/messages", limit=10, before=21)
    assert [entry["seq"] for entry in older["entries"]] == list(range(11, 21))
    after = bob.get(f"rooms/{room}/messages", after=f"{older['entries'][-1]['epoch']}:20", limit=100)
    assert [entry["seq"] for entry in after["entries"]] == list(range(21, 31)) and not after["more"]


def test_a_forward_is_built_from_what_the_sender_may_read(alice, bob):
    source, target = alice.group("项目核心开发群", "carol"), alice.direct("bob")
    for content in ("第一条", "second"):
        alice.wait_message(source, alice.say(source, content))
    answer = alice.post(f"rooms/{target}/forward", {"client_msg_id": new_id(), "from_room_id": source, "seqs": [1, 2]})
    content = bob.wait_message(target, answer["message_id"])["content"]
    assert content["forward_type"] == "merged" and content["source_conversation_name"] == "项目核心开发群" and content["source_conversation_type"] == "group"
    assert [(one["original_sender_name"], one["content"]) for one in content["messages"]] == [
        ("Alice", {"type": "text", "body": "第一条"}), ("Alice", {"type": "text", "body": "second"})]
    assert alice.refused("POST", f"rooms/{target}/forward", {"client_msg_id": new_id(), "from_room_id": source, "seqs": [1, 99]}) == (404, "no_such_message")
    assert bob.refused("POST", f"rooms/{target}/forward", {"client_msg_id": new_id(), "from_room_id": source, "seqs": [1]}) == (403, "not_member")
    alice.post(f"rooms/{source}/recall", {"seq": 2})
    assert alice.refused("POST", f"rooms/{target}/forward", {"client_msg_id": new_id(), "from_room_id": source, "seqs": [2]}) == (404, "no_such_message")


def test_bad_bodies_name_what_is_wrong(alice):
    room = alice.direct("bob")
    for path, body, field in ((f"rooms/{room}/messages", {"kind": "text"}, "content"), (f"rooms/{room}/messages", {"kind": 5, "content": "x"}, "kind"),
            ("rooms", {"kind": "live"}, "kind"), ("rooms", {"kind": "direct"}, "account_id"), (f"rooms/{room}/members/add", {}, "account_ids"),
            (f"rooms/{room}/recall", {}, "seq"), (f"rooms/{room}/forward", {"from_room_id": room, "seqs": [2, 1]}, "seqs")):
        answer = alice.ask("POST", path, body)
        assert (answer.status_code, answer.json()["error"].get("field")) == (400, field), answer.text
    assert alice.refused("POST", f"rooms/{room}/messages", data=b"{", headers={"Content-Type": "application/json"}) == (400, "bad_request")
    assert alice.refused("POST", f"rooms/{room}/messages", data=b"a=b", headers={"Content-Type": "application/x-www-form-urlencoded"}) == (415, "unsupported_media_type")
    assert alice.refused("POST", f"rooms/{room}/messages", {"kind": "text", "content": "x" * 140000}) == (413, "too_large")
    assert alice.refused("GET", "nothing") == (404, "no_such_method")
    assert alice.refused("GET", "login") == (405, "method_not_allowed")
    assert alice.refused("GET", "rooms/no-room") == (404, "no_such_room")


# --- files ---


def test_a_file_is_seen_by_the_members_of_the_room_it_was_sent_in_and_by_nobody_else(gateway, alice, bob):
    room, eve = alice.direct("bob"), gateway.user("eve")
    stored = alice.ok(alice.upload(PNG, "image", "image/png"))
    assert stored["size"] == len(PNG) and stored["sha256"] == hashlib.sha256(PNG).hexdigest() and stored["content_type"] == "image/png"
    file_id = stored["file_id"]
    assert bob.download(room, file_id).status_code == 404  # not sent yet
    entry = alice.wait_message(room, alice.say(room, {"file_id": file_id, "name": "dot.png"}, "image"))
    for params in ({"seq": entry["seq"]}, {}):
        answer = bob.download(room, file_id, params=params)
        assert (answer.status_code, answer.headers["Content-Type"], answer.content == PNG) == (200, "image/png", True)
    assert answer.headers["X-Content-Type-Options"] == "nosniff" and "sandbox" in answer.headers["Content-Security-Policy"]
    assert bob.download(room, file_id, params={"seq": entry["seq"] + 1}).status_code in (404,)
    assert eve.download(room, file_id, params={"seq": entry["seq"]}).status_code == 404
    assert eve.download(eve.group("own"), file_id).status_code == 404
    assert requests.get(f"{gateway.url}/api/rooms/{room}/files/{file_id}", timeout=10).status_code == 401
    part = bob.download(room, file_id, headers={"Range": "bytes=10-19"}, params={"seq": entry["seq"]})
    assert (part.status_code, part.content, part.headers["Content-Range"]) == (206, PNG[10:20], f"bytes 10-19/{len(PNG)}")
    head = bob.download(room, file_id, "HEAD", params={"seq": entry["seq"]})
    assert (head.status_code, head.headers["Content-Length"], head.content) == (200, str(len(PNG)), b"")
    assert bob.download(room, file_id, headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304
    alice.post(f"rooms/{room}/recall", {"seq": entry["seq"]})
    assert bob.download(room, file_id, params={"seq": entry["seq"]}).status_code == 404


def test_a_large_file_passes_in_pieces_and_the_connection_goes_on(start_gateway, monkeypatch):
    monkeypatch.setenv("ASAN_OPTIONS", os.environ.get("ASAN_OPTIONS", "") + ":quarantine_size_mb=1")  # else freed memory counts
    gateway = start_gateway()
    alice, bob = gateway.user("alice"), gateway.user("bob")
    room, data = alice.direct("bob"), bytes(range(256)) * 40 * 1024  # 10 MiB
    alice.ok(alice.upload(data))
    before = gateway.rss_kib()
    for _ in range(3):
        stored = alice.ok(alice.upload(data))
    assert alice.get("me")["account_id"] == "alice"  # on the connection that carried the upload
    message = alice.say(room, {"file_id": stored["file_id"], "name": "big", "size": len(data)}, "file")
    answer = bob.download(room, stored["file_id"], params={"seq": alice.wait_message(room, message)["seq"]})
    assert answer.content == data
    assert gateway.rss_kib() - before < 8 * 1024


def test_uploads_are_bounded_and_refusals_are_the_base_services(start_gateway):
    gateway = start_gateway(upload_max_bytes=100000)
    user = gateway.user("alice")
    answer = user.upload(b"x" * 100001)
    assert answer.status_code == 413 and "100000" in answer.json()["error"]["message"]
    answer = user.upload(b"no picture", "image", "image/png")
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert user.upload(b"x", "nonsense").status_code == 400
    assert user.upload(b"").status_code == 400
    anonymous = requests.post(f"{gateway.url}/api/files?kind=file", data=b"x" * 1000, headers={"X-Requested-With": "x"}, timeout=10)
    assert anonymous.status_code == 401
    forged = user.ask("POST", "files?kind=file", data=b"x", headers={"X-Requested-With": None})
    assert forged.status_code == 403
    assert user.upload(b"chunk" for _ in range(3)).status_code in (400, 415)  # no length
    assert user.upload(b"x" * 100000).status_code == 200


def test_an_upload_that_breaks_leaves_the_gateway_well(gateway, alice):
    for sent in (0, 10, 70000):
        with socket.create_connection(("127.0.0.1", gateway.port)) as raw:
            raw.sendall(f"POST /api/files?kind=file HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {alice.token}\r\nContent-Length: 100000\r\n\r\n".encode() + b"x" * sent)
    with socket.create_connection(("127.0.0.1", gateway.port)) as raw:  # a head in pieces, waiting for the 100
        for byte in f"POST /api/files?kind=file HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {alice.token}\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n".encode():
            raw.sendall(bytes([byte]))
        raw.settimeout(10)
        assert raw.recv(1000).startswith(b"HTTP/1.1 100")
        raw.sendall(b"bytes")
        assert raw.recv(1000).startswith(b"HTTP/1.1 200")
    assert alice.ok(alice.upload(b"still here"))["size"] == 10


def test_over_tls_it_is_the_same(start_gateway, tmp_path):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
        "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"], check=True, capture_output=True, timeout=60)
    gateway = start_gateway(tls_certificate_file=tmp_path / "cert.pem", tls_key_file=tmp_path / "key.pem", secure_cookie="yes")
    user = gateway.user("alice")
    (cookie,) = user.session.cookies
    assert cookie.secure
    data = bytes(range(256)) * 4096  # 1 MiB
    for _ in range(2):
        user.session.close()  # the first request of a connection
        stored = user.ok(user.upload(data))
        assert user.ok(user.upload(data))["sha256"] == stored["sha256"]  # and a later one
    room = user.direct("bob")
    message = user.say(room, {"file_id": stored["file_id"], "name": "x"}, "file")
    assert user.download(room, stored["file_id"], params={"seq": user.wait_message(room, message)["seq"]}).content == data
    with socket.create_connection(("127.0.0.1", gateway.port)) as raw:
        raw.sendall(b"no handshake at all\r\n\r\n")
        assert raw.recv(100) is not None
    assert user.get("me")["account_id"] == "alice"


# --- streams ---


def wait_hears(cluster, name):
    """What others tell (typing) comes to this instance from now on: a binding takes a moment."""
    instance = next(one for one in cluster.instances if one.readyz()[1]["instance"] == name)
    wait_for(lambda: instance.metrics()["roomd_feed_open"] == 1, 30, what=f"the feed of {instance.name} does not open")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_browser_client_lives_on_every_transport(gateway, alice, bob, client_of, transport):
    room = alice.direct("bob") if transport == "websocket" else alice.group(f"over {transport}", "bob")
    client = client_of(bob, transport)
    client.wait_open(transport)
    first = alice.wait_message(room, alice.say(room, "to the stream"))["seq"]
    client.wait_seq(room, first)
    assert client.wait_sending(client.send(room, "from the stream"), "stored")["seq"] == first + 1
    client.do("edit", room_id=room, seq=first + 1, content="edited")
    client.wait(lambda: client.of("message", seq=first + 1, state="edited", content="edited"))
    client.do("read", room_id=room, seq=first)
    other = client_of(alice)
    wait_hears(gateway.cluster, other.wait_open()[-1]["instance"])
    client.do("typing", room_id=room)
    other.wait(lambda: other.of("typing"))
    alice.post(f"rooms/{room}/recall", {"seq": first})
    client.wait(lambda: client.of("message", seq=first, state="recalled"))


def test_an_address_shows_neither_ticket_nor_instance(gateway, alice, bob):
    room = alice.direct("bob")
    answer = alice.post("connect", {"rooms": [room]})
    text = json.dumps(answer)
    assert answer["account_id"] == "alice" and answer["deliver"] == "early" and answer["rooms"][0]["room_id"] == room
    assert not [word for word in ("eyJ", "ticket", "endpoint", *(str(instance.port) for instance in gateway.cluster.instances)) if word in text]
    frames = Frames(gateway, answer, {"Authorization": f"Bearer {alice.token}"})
    assert frames.until(lambda event: event["type"] == "hello")["rooms"][0]["room_id"] == room
    frames.close()
    for headers, code in (({"Authorization": f"Bearer {bob.token}"}, 4501), ({}, 4501), ({"Cookie": alice.cookie}, 4500), ({"Cookie": alice.cookie, "Origin": "https://evil.example"}, 4500)):
        frames = Frames(gateway, answer, headers)
        frames.read(), frames.read()
        assert frames.closed == code and frames.events[0]["type"] == "error", (frames.closed, frames.events)
        frames.close()
    sse = f"{gateway.url}{answer['sse']}"
    assert requests.get(sse, timeout=10).status_code == 401
    assert requests.get(sse, headers={"Authorization": f"Bearer {bob.token}"}, timeout=10).status_code == 401
    assert requests.get(sse[:-2] + ("BA" if sse.endswith("AA") else "AA"), headers={"Authorization": f"Bearer {alice.token}"}, timeout=10).status_code == 401
    assert requests.post(sse, headers={"Cookie": alice.cookie}, json={"after": []}, timeout=10).status_code == 403


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_sse_by_hand_begins_at_the_position_given(gateway, alice, method):
    room = alice.group("sse", "bob")
    for number in range(3):
        last = alice.wait_message(room, alice.say(room, f"{number}"))
    address = alice.post("connect", {"rooms": [room]})
    position, bearer = f"{room}@{last['epoch']}:1", {"Authorization": f"Bearer {alice.token}"}
    answer = requests.request(method, f"{gateway.url}{address['sse']}", headers=bearer, stream=True, timeout=20,
        **({"params": {"after": position}} if method == "GET" else {"json": {"after": [position]}}))
    assert answer.headers["Content-Type"] == "text/event-stream" and answer.headers["X-Accel-Buffering"] == "no"
    seen = []
    for line in answer.iter_lines(chunk_size=1):
        if line.startswith(b"data:"):
            seen.append(json.loads(line[5:]))
        if len([event for event in seen if event["type"] == "message"]) == 2:
            break
    assert [event.get("seq") for event in seen if event["type"] == "message"] == [2, 3] and seen[0]["type"] == "hello"
    answer.close()


def test_positions_given_to_connect_are_those_a_stream_begins_at(gateway, alice):
    room = alice.group("positions", "bob")
    for number in range(3):
        last = alice.wait_message(room, alice.say(room, f"{number}"))
    for asked in ({"rooms": [room]}, {"all": True}):
        frames = alice.frames(**asked, after=[f"{room}@{last['epoch']}:1"])
        assert frames.until(lambda event: event["type"] == "message" and event["room_id"] == room)["seq"] == 2
        frames.close()


def test_golden_frames_do_what_they_say(gateway, alice, bob):
    room = alice.group("frames", "bob")
    frames, other = bob.frames(rooms=[room]), alice.frames(rooms=[room])
    for one in (frames, other):
        wait_hears(gateway.cluster, one.until(lambda event: event["type"] == "hello")["instance"])
    frames.send_text(golden("frame_send", conversation_id=room))
    entry = other.until(lambda event: event["type"] == "message")
    assert (entry["content"], entry["sender"]) == ("Hello via WebSocket!", "bob")
    frames.send_text(golden("frame_typing", conversation_id=room))
    assert other.until(lambda event: event["type"] == "typing")["account_id"] == "bob"
    frames.send_text(golden("frame_edit", conversation_id=room, message_id=entry["message_id"]))
    assert other.until(lambda event: event["type"] == "message.edited")["content"] == "Fixed content"
    frames.send_text(golden("frame_recall", conversation_id=room, message_id=entry["message_id"]))
    assert other.until(lambda event: event["type"] == "message.recalled")["target_seq"] == entry["seq"]
    frames.send_text(golden("frame_read", conversation_id=room, read_seq=2))
    assert frames.until(lambda event: event.get("req_id") == "read_001")["read_seq"] == 2
    frames.close()
    other.close()


def stream_of(gateway, address, headers):
    """Which instance a new stream at this address comes to."""
    frames = Frames(gateway, address, headers)
    try:
        return frames.until(lambda event: event["type"] == "hello")["instance"]
    finally:
        frames.close()


@pytest.mark.deadline(180)
def test_an_instance_killed_while_streaming_is_left_for_the_next(new_cluster, client_of):
    cluster = new_cluster(instances=2)
    cluster.wait_spread()
    base = BaseService(cluster)
    gateway = Gateway(cluster, base)
    alice, bob = gateway.user("alice"), gateway.user("bob")
    room = alice.direct("bob")
    client = client_of(bob)
    client.wait_open()
    publisher, owner = cluster.publisher(), cluster.owner_of(room)
    own = []
    for number in range(200):
        publisher.publish(room, "alice", "text", f"{number}", repeat=True)
        if number % 20 == 0:
            own.append(client.send(room, f"own {number}"))
        if number == 100:
            owner.kill9()
    for one in own:
        client.wait_sending(one, "stored", 60)
    said = {published.message_id for published in publisher.confirmed} | {roomd.message_id(room, "bob", one) for one in own}

    def shown_as_it_is_in_the_log():  # what was said after the last own message is stored after it
        log, entries = cluster.api.pull_all(room), client.entries(room)
        return said <= {entry.get("message_id") for entry in log} and [entry.get("message_id") for entry in entries] == [entry.get("message_id") for entry in log]

    client.wait(shown_as_it_is_in_the_log, 30)
    # An address whose best endpoint is dead: the next one of it takes the stream.
    owner.start()
    cluster.wait_named()
    address, bearer = alice.post("connect", {"rooms": [room]}), {"Authorization": f"Bearer {alice.token}"}
    best = stream_of(gateway, address, bearer)
    named = {instance.readyz()[1]["instance"]: instance for instance in cluster.instances}
    before = gateway.metrics()["roomd_gateway_endpoints_failed_total"]
    named[best].kill9()
    assert stream_of(gateway, address, bearer) not in (None, best)
    assert gateway.metrics()["roomd_gateway_endpoints_failed_total"] > before
    for one in (gateway, base):
        one.check()
        one.stop()
        one.check()


def test_migrate_names_an_address_of_the_gateway_and_the_client_moves_without_a_gap(new_cluster, client_of):
    cluster = new_cluster(instances=2)
    cluster.wait_spread()
    base = BaseService(cluster)
    gateway = Gateway(cluster, base)
    alice, bob = gateway.user("alice"), gateway.user("bob")
    room = alice.direct("bob")
    client = client_of(bob)
    client.wait_open()
    cluster.wait_named()
    frames = [alice.frames(rooms=[room]) for _ in range(2)]
    instances = [one.until(lambda event: event["type"] == "hello")["instance"] for one in frames]
    publisher = cluster.publisher()
    publisher.publish(room, "alice", "text", "before", repeat=True)
    named = {instance.readyz()[1]["instance"]: instance for instance in cluster.instances}
    leaving = named[instances[0]]
    leaving.terminate()
    event = frames[0].until(lambda event: event["type"] == "migrate")
    assert "ticket" not in event and "endpoints" not in event
    assert not [word for word in ("eyJ", str(leaving.port)) if word in json.dumps(event)]
    moved = Frames(gateway, event["address"], {"Authorization": f"Bearer {alice.token}"})
    assert moved.until(lambda event: event["type"] == "hello")["instance"] != instances[0]
    leaving.wait_stopped()
    for number in range(20):
        publisher.publish(room, "alice", "text", f"{number}", repeat=True)
    client.wait(lambda: len(client.entries(room)) == 21, 30)
    for one in (*frames, moved):
        one.close()
    for one in (gateway, base):
        one.check()
        one.stop()
        one.check()


# --- rules and limits ---


@pytest.fixture
def strict(start_gateway, tmp_path):
    (tmp_path / "policy.json").write_text(json.dumps({"blocked": [["eve", "alice"]], "words": ["forbidden word"]}))
    return start_gateway(policy_file=tmp_path / "policy.json")


def test_a_rule_of_the_business_refuses_by_call_and_by_frame(gateway, strict):
    alice, eve, loose_eve = strict.user("alice"), strict.user("eve"), gateway.user("eve")
    assert eve.refused("POST", "rooms", {"kind": "direct", "account_id": "alice"}) == (403, "forbidden")
    room = loose_eve.direct("alice")  # through a gateway without rules
    group = alice.group("all may", "eve")
    assert eve.refused("POST", f"rooms/{room}/messages", {"kind": "text", "content": "hi"}) == (403, "forbidden")
    assert eve.refused("POST", f"rooms/{group}/messages", {"kind": "text", "content": "a forbidden word"}) == (403, "forbidden")
    seq = eve.wait_message(group, eve.say(group, "fine"))["seq"]
    assert eve.refused("POST", f"rooms/{group}/edit", {"seq": seq, "content": "a forbidden word"}) == (403, "forbidden")
    frames = eve.frames()
    assert frames.request("message.send", {"room_id": room, "kind": "text", "content": "hi"}, "1")["code"] == "forbidden"
    assert frames.request("message.send", {"conversation_id": group, "msg_type": 1, "content": "a forbidden word"}, "2")["code"] == "forbidden"
    assert frames.request("message.edit", {"room_id": group, "seq": seq, "content": "a forbidden word"}, "3")["code"] == "forbidden"
    assert frames.request("message.send", {"room_id": group, "kind": "text", "content": "fine too"}, "4")["type"] == "ack"
    frames.close()
    said = wait_for(lambda: [found for found in [[entry.get("content") for entry in alice.history(group)]] if "fine too" in found])[0]  # an ack is not the COMMIT
    assert not [content for content in said if content and "forbidden" in content]
    assert not loose_eve.history(room)


def test_no_way_of_writing_it_gets_past_a_rule(gateway, strict):
    alice, eve, loose_eve = strict.user("alice"), strict.user("eve"), gateway.user("eve")
    room, group = loose_eve.direct("alice"), alice.group("all may", "eve")
    seq = loose_eve.wait_message(room, loose_eve.say(room, "before it was blocked"))["seq"]
    spelled = "".join(f"\\u{ord(c):04x}" for c in room)
    frames = eve.frames()

    def frame(payload, req_id):
        frames.send_text('{"type": "message.send", "req_id": "%s", "payload": {%s, "kind": "text"}}' % (req_id, payload))
        return frames.until(lambda event: event.get("req_id") == req_id).get("code")

    assert frame(f'"room_id": "{spelled}", "content": "hi"', "1") == "forbidden"
    assert frame(f'"room_id": null, "conversation_id": "{room}", "content": "hi"', "2") == "bad_request"
    assert frame(f'"room\\u005fid": "{room}", "content": "hi"', "3") == "forbidden"
    assert frame(f'"room_id": "{group}", "content": "a f\\u006frbidden word"', "4") == "forbidden"
    assert frames.request("message.edit", {"room_id": room, "seq": seq, "content": "blocked, but edited"}, "5")["code"] == "forbidden"
    assert eve.refused("POST", f"rooms/{room}/edit", {"seq": seq, "content": "blocked, but edited"}) == (403, "forbidden")
    spelled_out = eve.ask("POST", f"rooms/{group}/messages", data='{"kind": "text", "content": {"body": "a f\\u006frbidden word"}}', headers={"Content-Type": "application/json"})
    assert spelled_out.status_code == 403
    frames.close()
    assert [entry["content"] for entry in alice.history(room) if entry["type"] == "message"] == ["before it was blocked"]


def test_a_stream_ends_with_its_session_and_a_newer_session_goes_on(start_gateway):
    gateway = start_gateway(session_ttl_ms=12000)  # Node has to start meanwhile
    alice = gateway.user("alice")
    frames = alice.frames()
    frames.sock.settimeout(30)
    frames.until(lambda event: event["type"] == "hello")
    client = alice.web_client()
    client.wait_open()
    with pytest.raises(AssertionError, match="closed"):
        frames.until(lambda event: False)
    assert alice.refused("POST", "connect", {"all": True}) == (401, "unauthenticated")
    client.wait(lambda: client.of("state", state="stopped", reason="unauthenticated"))
    client.close()
    frames.close()


def test_requests_logins_and_streams_of_an_account_are_limited(start_gateway):
    gateway = start_gateway(account_requests_per_s=1, logins_per_minute=3, account_streams_max=2)  # so few that a slow machine asks for more
    user = gateway.user("alice")
    answers = [user.ask("GET", "me") for _ in range(40)]
    limited = [answer for answer in answers if answer.status_code == 429]
    assert limited and answers[0].status_code == 200 and int(limited[0].headers["Retry-After"]) >= 1 and limited[0].json()["error"]["code"] == "rate_limited"
    assert gateway.user("bob").get("me")["account_id"] == "bob"
    wait_for(lambda: user.ask("GET", "me").status_code == 200)
    frames = wait_for(user.frames, every=0.3)
    for number in range(60):
        frames.send_text(json.dumps({"type": "message.recall", "req_id": f"many-{number}", "payload": {"room_id": "s00.none", "seq": 1}}))
    assert frames.until(lambda event: event.get("code") == "rate_limited")["req_id"].startswith("many-")
    frames.close()
    wait_for(lambda: user.ask("GET", "me").status_code == 200)
    codes = [requests.post(f"{gateway.url}/api/login", json={"account": "carol", "password": "wrong"}, headers={"X-Requested-With": "x"}, timeout=10).status_code
        for _ in range(5)]
    assert codes[:3] == [401] * 3 and codes[-1] == 429
    address = wait_for(lambda: (answer := user.ask("POST", "connect", {"all": True})).status_code == 200 and answer).json()
    open_ones = [Frames(gateway, address, {"Authorization": f"Bearer {user.token}"}) for _ in range(2)]
    for one in open_ones:
        one.until(lambda event: event["type"] == "hello")
    refused = Frames(gateway, address, {"Authorization": f"Bearer {user.token}"})
    refused.read(), refused.read()
    assert refused.closed == 4003
    open_ones[0].close()

    def opens():
        again = Frames(gateway, address, {"Authorization": f"Bearer {user.token}"})
        again.read()
        good = again.events and again.events[0]["type"] == "hello"
        again.close()
        return good

    wait_for(opens)
    for one in (open_ones[1], refused):
        one.close()


# --- the rest ---


def test_the_page_comes_with_rules_for_the_browser(gateway):
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/room-client.js", "text/javascript"), ("/page.css", "text/css"), ("/icon.svg", "image/svg+xml")):
        answer = requests.get(gateway.url + path, timeout=10)
        assert answer.status_code == 200 and answer.headers["Content-Type"].startswith(kind)
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"] and answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.content == (WEB / (path[1:] or "index.html")).read_bytes()
    for path in ("/../gateway/main.c", "/..%2fgateway/main.c", "/.hidden", "/room-client.d.ts.bak"):
        assert requests.get(gateway.url + path, timeout=10).status_code == 404


def test_health_and_metrics(gateway, alice):
    assert requests.get(f"{gateway.url}/readyz", timeout=10).json()["ready"] is True
    before = gateway.metrics()["roomd_gateway_sent_total"]
    alice.say(alice.direct("bob"), "counted")
    assert gateway.metrics()["roomd_gateway_sent_total"] == before + 1


def test_without_a_broker_it_says_so_in_time(new_cluster, broker):
    cluster = new_cluster()
    base = BaseService(cluster)
    gateway = Gateway(cluster, base, send_timeout_ms=4000)
    alice = gateway.user("alice")
    room = alice.direct("bob")
    alice.wait_message(room, alice.say(room, "before"))
    broker.stop()
    assert alice.refused("POST", f"rooms/{room}/messages", {"kind": "text", "content": "x"}) in ((503, "unavailable"), (504, "timeout"))
    assert requests.get(f"{gateway.url}/readyz", timeout=10).status_code == 503
    assert alice.history(room)
    broker.start()
    wait_for(lambda: alice.ask("POST", f"rooms/{room}/messages", {"kind": "text", "content": "after"}).status_code == 200, 60)
    for one in (gateway, base):
        one.check()
        one.stop()
        one.check()


def test_a_bad_setting_is_named(cluster):
    program = roomd.pathlib.Path(roomd.ROOMD).with_name("roomd-gateway")
    done = subprocess.run([program], env={"ROOMD_GATEWAY_SESSION_SECRET": "short"}, stderr=subprocess.PIPE, text=True, timeout=30)
    assert done.returncode != 0 and "session_secret" in done.stderr
    done = subprocess.run([program], env={"ROOMD_GATEWAY_NO_SUCH": "1"}, stderr=subprocess.PIPE, text=True, timeout=30)
    assert done.returncode == 2 and "no_such" in done.stderr.lower()
