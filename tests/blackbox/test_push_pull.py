"""Saying things and reading them back, through the service calls."""
import contextlib
import json
import socket
import threading
import time
import urllib.parse

import msgpack
import pytest
import requests

import roomd
from roomd import message_id, new_id, wait_for


@pytest.fixture
def room(api):
    return api.create_room("alice", "bob")["room_id"]


def said(api, room, count, sender="alice"):
    """So many messages, durable; their contents are "1", "2", …"""
    for number in range(1, count + 1):
        api.push(room, sender, str(number), **({"wait": "durable"} if number == count else {}))
    api.pull_until(room, count)


def contents(page):
    return [entry.get("content") for entry in page["entries"]]


# --- Push ---


def test_a_message_comes_back_as_it_was_sent(api, room):
    answer = api.push(room, "alice", "Grüße 👋 \"x\"", client_msg_id="c1", sent_at=1770000000000, mentions=["bob"], wait="durable")
    assert answer == {"message_id": message_id(room, "alice", "c1"), "client_msg_id": "c1", "seq": 1, "duplicate": False}
    entry = api.pull(room)["entries"][0]
    assert entry["at"] > 1770000000000 - 10**12 and entry["epoch"] >= 1
    assert {key: entry[key] for key in entry if key not in ("at", "epoch")} == {"type": "message", "room_id": room, "seq": 1,
        "message_id": answer["message_id"], "client_msg_id": "c1", "sender": "alice", "kind": "text", "content": "Grüße 👋 \"x\"",
        "sent_at": 1770000000000, "mentions": ["bob"]}


def test_content_is_the_same_json_text(api, room):
    text = '{"b" : 1.50,"a":[ true ,null],"u":"\\u00e4\\/"}'
    body = f'{{"room_id":"{room}","sender":"alice","kind":"custom/x","content":{text},"wait":"durable"}}'.encode()
    assert api.call("history/Push", body)[0] == 200
    raw = requests.post(f"{api.url}/v1/history/Pull", json={"room_id": room}, headers={"Authorization": f"Bearer {api.key}"}, timeout=10).text
    assert f'"content":{text}' in raw


@pytest.mark.parametrize("kind, content", [
    ("text", "x"), ("text", {"body": "x"}), ("image", {"file_id": "f1", "width": 3}), ("voice", {"file_id": "f1", "duration_ms": 5}),
    ("video", {"file_id": "f1"}), ("file", {"file_id": "f1", "name": "a.pdf"}), ("custom/poll", [1, 2, {"x": None}]), ("tip", {"body": "x"}),
    ("never.heard-of/it_1", 5), ("rich_text", {"parts": [{"type": "text", "body": "x"}]}),
])
def test_every_kind_comes_back(api, room, kind, content):
    api.push(room, "alice", content, kind=kind, wait="durable")
    entry = api.pull(room)["entries"][-1]
    assert (entry["kind"], entry["content"]) == (kind, content)


def test_the_largest_content_comes_back_and_one_byte_more_does_not(api, room):
    text = "x" * (65536 - 2)
    api.push(room, "alice", text, wait="durable")
    assert api.pull(room)["entries"][0]["content"] == text
    assert api.error("history/Push", room_id=room, sender="alice", kind="text", content=text + "x") == (413, "too_large")


def test_the_same_id_is_the_same_message(api, room):
    first = api.push(room, "alice", "once", client_msg_id="same", wait="durable")
    again = api.push(room, "alice", "once", client_msg_id="same", wait="durable")
    assert again == {**first, "duplicate": True}
    assert api.push(room, "bob", "another's", client_msg_id="same", wait="durable")["seq"] == 2
    assert len(api.pull(room)["entries"]) == 2


def test_the_same_id_with_other_content_is_a_conflict(api, room):
    api.push(room, "alice", "once", client_msg_id="same", wait="durable")
    assert api.error("history/Push", room_id=room, sender="alice", kind="text", content="twice", client_msg_id="same", wait="durable") == \
        (409, "conflict")
    assert contents(api.pull(room)) == ["once"]


def test_a_request_id_stands_in_for_a_client_msg_id(api, room):
    first = api.push(room, "alice", "once", request_id="r", wait="durable")
    assert first["client_msg_id"] == "r"
    assert api.push(room, "alice", "once", request_id="r", wait="durable")["duplicate"]


def test_an_id_is_minted_for_who_sends_none(api, room):
    answer = api.push(room, "alice", "x")
    assert len(answer["client_msg_id"]) == 26 and answer["message_id"] == message_id(room, "alice", answer["client_msg_id"])
    assert "seq" not in answer


def test_waiting_for_the_seq_gives_it(api, room):
    assert [api.push(room, "alice", str(n), wait="sequenced")["seq"] for n in range(1, 6)] == [1, 2, 3, 4, 5]


def test_who_is_not_in_the_room_cannot_speak_there_and_the_system_can(api, room):
    assert api.error("history/Push", room_id=room, sender="eve", kind="text", content="x") == (403, "not_member")
    assert api.push(room, "@system", "x", wait="durable")["seq"] == 1
    assert api.pull(room)["entries"][0]["sender"] == "@system"


def test_a_transient_message_is_never_stored(api, room):
    answer = api.push(room, "alice", "psst", transient=True)
    assert "seq" not in answer
    assert api.push(room, "alice", "loud", wait="durable")["seq"] == 1
    assert contents(api.pull(room)) == ["loud"]


def test_a_published_message_and_a_pushed_one_are_one_log(cluster, api, room):
    published = cluster.publisher().publish(room, "alice", content="by broker", client_msg_id="b1")
    api.pull_until(room, 1)
    assert api.push(room, "alice", "by broker", client_msg_id="b1", wait="durable") == \
        {"message_id": published.message_id, "client_msg_id": "b1", "seq": 1, "duplicate": True}


def test_pushes_of_one_caller_keep_their_order(api, room):
    said(api, room, 50)
    assert contents(api.pull(room, after="0:0", limit=500)) == [str(n) for n in range(1, 51)]


def test_messagepack_says_the_same(api, room):
    headers = {"Authorization": f"Bearer {api.key}", "Content-Type": "application/msgpack"}
    body = msgpack.packb({"room_id": room, "sender": "alice", "kind": "text", "content": "packed", "wait": "durable"})
    answer = requests.post(f"{api.url}/v1/history/Push", data=body, headers=headers, timeout=10)
    assert answer.status_code == 200 and answer.headers["Content-Type"] == "application/msgpack"
    assert msgpack.unpackb(answer.content)["seq"] == 1
    answer = requests.post(f"{api.url}/v1/history/Pull", data=msgpack.packb({"room_id": room}), headers={**headers, "Accept": "application/json"},
        timeout=10)
    assert answer.json()["entries"][0]["content"] == "packed"


# --- Pull: pages ---


def test_pages_back_from_the_latest_give_everything_once(api, room):
    said(api, room, 25)
    seen, page = [], api.pull(room, limit=10)
    while True:
        seen = page["entries"] + seen
        if not page["more"]:
            break
        page = api.pull(room, before=seen[0]["seq"], limit=10)
    assert [entry["seq"] for entry in seen] == list(range(1, 26))


def test_pages_forward_give_everything_once(api, room):
    said(api, room, 25)
    assert [entry["seq"] for entry in api.pull_all(room, limit=7)] == list(range(1, 26))


def test_a_page_tells_the_head_and_whether_there_is_more(api, room):
    said(api, room, 4)
    head = api.pull(room)["head"]
    assert head.endswith(":4")
    assert api.pull(room, after="0:0", limit=3)["more"] and not api.pull(room, after="0:0", limit=4)["more"]
    assert api.pull(room, limit=3)["more"] and not api.pull(room, limit=4)["more"]
    assert api.pull(room, before=4, limit=2)["more"] and not api.pull(room, before=4, limit=3)["more"]
    for fields in ({"after": "0:0", "limit": 2}, {"before": 2}, {"after": head}):
        page = api.pull(room, **fields)
        assert (page["head"], page["durable_seq"]) == (head, 4)
    assert api.pull(room, after=head)["entries"] == [] and not api.pull(room, after=head)["more"]
    assert api.pull(room, before=1) == {"entries": [], "head": head, "durable_seq": 4, "more": False}


def test_fifty_is_the_page_when_nothing_is_said(api, room):
    said(api, room, 51)
    page = api.pull(room)
    assert [entry["seq"] for entry in page["entries"]] == list(range(2, 52)) and page["more"]


def test_a_bare_seq_is_a_cursor_too(api, room):
    said(api, room, 3)
    assert contents(api.pull(room, after="2")) == ["3"] and contents(api.pull(room, after=2)) == ["3"]


def test_an_empty_room_has_an_empty_page(api, room):
    for fields in ({}, {"after": "0:0"}, {"before": 1}):
        assert api.pull(room, **fields) == {"entries": [], "head": "0:0", "durable_seq": 0, "more": False}


# --- Pull: cursors the log does not contain ---


def test_a_cursor_of_an_epoch_that_never_wrote_there_is_reset(api, room):
    said(api, room, 5)
    page = api.pull(room, after="0:3")  # no entry has epoch 0
    assert page["reset"] == "0:0" and [entry["seq"] for entry in page["entries"]] == [1, 2, 3, 4, 5]


def test_a_cursor_above_the_head_of_an_older_epoch_is_reset_to_the_head(new_cluster):
    cluster = new_cluster()
    api = cluster.api
    room = api.create_room("alice")["room_id"]
    said(api, room, 3)
    head = api.pull(room)["head"]
    epoch = int(head.split(":")[0])
    cluster.instances[0].stop()
    cluster.instances[0].start()
    page = cluster.instances[0].api.until_ok("history/Pull", room_id=room, after=f"{epoch}:9")
    assert page["reset"] == head and page["entries"] == []
    api.push(room, "alice", "4", wait="durable")
    page = api.pull(room, after=f"{epoch}:4")
    assert page["reset"] == head and contents(page) == ["4"]
    assert "reset" not in api.pull(room, after=head)


def test_a_cursor_above_the_head_of_the_running_epoch_may_yet_come_true(api, room):
    said(api, room, 2)
    epoch = api.pull(room)["head"].split(":")[0]
    page = api.pull(room, after=f"{epoch}:7")
    assert "reset" not in page and page["entries"] == []
    assert "reset" not in api.pull(room, after="7")


# --- Pull: who may see what ---


def test_the_account_is_checked_when_it_is_named(api, room):
    said(api, room, 1)
    assert contents(api.pull(room, account_id="bob")) == ["1"]
    assert api.error("history/Pull", room_id=room, account_id="eve") == (403, "not_member")


def test_who_joins_a_room_of_since_join_sees_it_from_there_on(api):
    room = api.create_room("alice", history="since_join")["room_id"]
    said(api, room, 4)
    api.ok("room/AddAccount2Room", room_id=room, account_id="carol")
    api.push(room, "alice", "6", wait="durable")
    for fields in ({}, {"after": "0:0"}, {"after": "2"}, {"before": 7}, {"before": 100, "limit": 500}):
        page = api.pull(room, account_id="carol", **fields)
        assert [entry["seq"] for entry in page["entries"]] == [5, 6], fields
        assert not page["more"] and "reset" not in page
    assert api.pull(room, account_id="carol", limit=1)["more"]
    assert api.pull(room, account_id="carol", before=5)["entries"] == []
    assert [entry["seq"] for entry in api.pull(room, account_id="alice")["entries"]] == [1, 2, 3, 4, 5, 6]
    assert [entry["seq"] for entry in api.pull(room)["entries"]] == [1, 2, 3, 4, 5, 6]


# --- Pull: waiting ---


def waiting_pull(api, room, **fields):
    """Starts a long poll in a thread; .join() gives (seconds, answer)."""
    result = {}

    def work():
        begin = time.monotonic()
        result["answer"] = roomd.Api(api.url, api.key).call("history/Pull", {"room_id": room, **fields})
        result["seconds"] = time.monotonic() - begin

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def join():
        thread.join(30)
        assert not thread.is_alive(), "the long poll does not end"
        return result["seconds"], result["answer"]

    thread.result = join
    return thread


def waits(instance):
    return instance.metrics()["roomd_pulls_waiting"]


def wait_for_no_pulls(instance):
    """Those of an earlier test may be about to end."""
    wait_for(lambda: waits(instance) == 0, 30, what="an earlier test's pulls do not end")


def test_a_long_poll_is_answered_when_something_is_said(cluster, room):
    owner = cluster.owner_of(room)
    wait_for_no_pulls(owner)
    poll = waiting_pull(owner.api, room, after="0:0", wait_ms=20000)
    wait_for(lambda: waits(owner) == 1)
    owner.api.push(room, "alice", "at last")
    seconds, (status, page) = poll.result()
    assert status == 200 and contents(page) == ["at last"] and seconds < 15


def test_a_long_poll_at_an_instance_that_does_not_own_the_room_is_answered_too(cluster, room):
    owner = cluster.owner_of(room)
    other = next(instance for instance in cluster.instances if instance is not owner)
    wait_for_no_pulls(other)
    poll = waiting_pull(other.api, room, after="0:0", wait_ms=20000, account_id="bob")
    wait_for(lambda: waits(other) == 1)
    owner.api.push(room, "alice", "at last")
    seconds, (status, page) = poll.result()
    assert status == 200 and contents(page) == ["at last"] and seconds < 15


def test_a_long_poll_ends_empty_when_its_time_is_over(cluster, room):
    seconds, (status, page) = waiting_pull(cluster.owner_of(room).api, room, after="0:0", wait_ms=700).result()
    assert status == 200 and page["entries"] == [] and 0.7 <= seconds < 5


def test_a_long_poll_does_not_wait_when_there_is_something(api, room):
    said(api, room, 1)
    seconds, (status, page) = waiting_pull(api, room, after="0:0", wait_ms=20000).result()
    assert status == 200 and contents(page) == ["1"] and seconds < 15


def test_who_is_removed_while_waiting_gets_nothing(cluster, room):
    owner = cluster.owner_of(room)
    wait_for_no_pulls(owner)
    poll = waiting_pull(owner.api, room, account_id="bob", after="0:0", wait_ms=20000)
    wait_for(lambda: waits(owner) == 1)
    owner.api.ok("room/RmAccountFromRoom", room_id=room, account_id="bob")
    seconds, (status, answer) = poll.result()
    assert (status, answer["error"]["code"]) == (403, "not_member") and seconds < 15


def test_a_caller_that_leaves_is_forgotten(cluster, room):
    owner = cluster.owner_of(room)
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.post(f"{owner.url}/v1/history/Pull", json={"room_id": room, "after": "0:0", "wait_ms": 60000},
            headers={"Authorization": f"Bearer {owner.api.key}"}, timeout=0.5)
    wait_for(lambda: waits(owner) == 0, 30)


def test_waiting_asks_the_database_nothing(new_cluster):
    cluster = new_cluster()
    api, instance = cluster.api, cluster.instances[0]
    rooms = [api.create_room("alice")["room_id"] for _ in range(20)]
    for room in rooms:
        api.push(room, "alice", "1", wait="durable")  # the owner knows them now
    heads = [api.pull(room)["head"] for room in rooms]
    polls = [waiting_pull(api, room, after=head, wait_ms=60000) for room, head in zip(rooms, heads)]
    wait_for(lambda: waits(instance) == 20, 30)
    reads = 'roomd_database_statements_total{lane="read"}'
    before = instance.metrics()[reads]
    time_passed = time.monotonic() + 2
    wait_for(lambda: time.monotonic() > time_passed)
    assert instance.metrics()[reads] - before <= 2 and waits(instance) == 20
    for room in rooms:
        api.push(room, "alice", "2")
    for poll in polls:
        assert poll.result()[1][0] == 200


def test_a_hundred_waiting_for_one_room_share_one_read(cluster, room):
    owner = cluster.owner_of(room)
    owner.api.push(room, "alice", "1", wait="durable")
    head = owner.api.pull(room)["head"]
    wait_for_no_pulls(owner)
    polls = [waiting_pull(owner.api, room, after=head, wait_ms=60000) for _ in range(100)]
    wait_for(lambda: waits(owner) == 100, 30)
    reads = owner.metrics()["roomd_page_reads_total"]
    owner.api.push(room, "bob", "2")
    pages = [poll.result()[1][1] for poll in polls]
    assert all(contents(page) == ["2"] for page in pages)
    assert owner.metrics()["roomd_page_reads_total"] - reads < 20


def test_an_instance_restarts_while_somebody_waits(new_cluster):
    cluster = new_cluster()
    instance = cluster.instances[0]
    room = cluster.api.create_room("alice")["room_id"]
    poll = waiting_pull(cluster.api, room, after="0:0", wait_ms=30000)
    wait_for(lambda: waits(instance) == 1)
    instance.stop()
    seconds, (status, answer) = poll.result()
    assert (status, answer["error"]["code"]) == (503, "unavailable") and seconds < 15


def test_ids_look_alike_everywhere(api, room):
    client_msg_id = new_id()
    assert api.push(room, "alice", "x", client_msg_id=client_msg_id)["message_id"] == message_id(room, "alice", client_msg_id)


def test_a_message_behind_a_repeat_is_not_held_up_by_it(cluster, api):
    """On an instance that is not the owner a repeat that is waited for is found in the log, not published: what came behind it in the room goes on."""
    room = api.create_room("alice", "bob")["room_id"]
    owner = cluster.owner_of(room)
    other = next(instance for instance in cluster.instances if instance is not owner)
    repeat = {"room_id": room, "sender": "alice", "kind": "text", "content": "x", "client_msg_id": "one", "wait": "durable"}
    seq = api.ok("history/Push", repeat)["seq"]
    address = urllib.parse.urlsplit(other.url)

    def request(connection, body):
        body = json.dumps(body).encode()
        connection.sendall(b"POST /v1/history/Push HTTP/1.1\r\nHost: roomd\r\nContent-Type: application/json\r\n"
            + f"Authorization: Bearer {cluster.service_key}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=roomd.DEADLINE)) for _ in range(2))
        for _ in range(10):  # both in one turn of its loop
            request(first, repeat)
            request(second, {**repeat, "client_msg_id": new_id(), "wait": "confirmed"})
            assert f'"seq":{seq},"duplicate":true'.encode() in first.recv(65536)
            assert b" 200 " in second.recv(65536)
