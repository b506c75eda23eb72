"""Frames of WebSocket clients: the golden ones word for word, answers by req_id, order, limits, typing, read marks."""
import json
import re

import pytest

from doors import fresh, golden
from roomd import DEADLINE, message_id, wait_for


@pytest.fixture
def people():
    return fresh("alice", "bob", "carol")


@pytest.fixture
def room(api, people):
    return api.create_room(*people)["room_id"]


def answers(stream, *req_ids, deadline=DEADLINE):
    """In the order in which they came."""
    stream.wait(lambda: {event.get("req_id") for event in stream.events} >= set(req_ids), deadline, f"answers to {req_ids}")
    return [event for event in stream.events if event.get("req_id") in req_ids]


# --- golden frames ---


def test_the_golden_frame_sends_a_message(cluster, room, people):
    """M-14: it has no req_id, so its answer has none."""
    stream, bob = cluster.open_stream(people[0], [room]), cluster.open_stream(people[1], [room])
    stream.send_raw(golden("frame_send", conversation_id=room))
    ack = stream.read_type("ack")
    assert ack == {"type": "ack", "room_id": room, "client_msg_id": "uuid_v4_random_string_123", "message_id": message_id(room, people[0], "uuid_v4_random_string_123")}
    message = bob.read_message(room)
    assert (message["kind"], message["content"], message["sender"], message["message_id"]) == ("text", "Hello via WebSocket!", people[0], ack["message_id"])


def test_the_golden_frames_edit_and_recall(cluster, api, room, people):
    stream, bob = cluster.open_stream(people[0], [room]), cluster.open_stream(people[1], [room])
    sent = api.push(room, people[0], "Fxied content", wait="durable")
    stream.send_raw(golden("frame_edit", conversation_id=room, message_id=sent["message_id"]))
    edited = bob.read_type("message.edited")
    assert (edited["content"], edited["target_seq"], edited["message_id"]) == ("Fixed content", sent["seq"], sent["message_id"])
    assert answers(stream, "edit_001") == [{"type": "ack", "req_id": "edit_001", "room_id": room, "seq": edited["seq"]}]
    stream.send_raw(golden("frame_recall", conversation_id=room, message_id=sent["message_id"]))
    recalled = bob.read_type("message.recalled")
    assert answers(stream, "recall_001") == [{"type": "ack", "req_id": "recall_001", "room_id": room, "seq": recalled["seq"]}]


def test_the_golden_frame_marks_as_read(cluster, api, people):
    """M-19: in a direct room the other one is told; forward only, never past the head."""
    alice, bob = people[:2]
    room = api.create_room(alice, bob, kind="direct")["room_id"]
    for number in range(107):
        api.push(room, alice, str(number), wait="durable" if number == 106 else "confirmed")
    stream, other, told = (cluster.open_stream(account, [room]) for account in (bob, bob, alice))
    cluster.wait_hears()
    stream.send_raw(golden("frame_read", conversation_id=room))
    assert answers(stream, "read_001") == [{"type": "ack", "req_id": "read_001", "room_id": room, "read_seq": 105, "unread": 2}]
    for one in (told, other):
        assert one.read_type("read") == {"type": "read", "room_id": room, "account_id": bob, "read_seq": 105}
    assert stream.request("message.read", {"room_id": room, "read_seq": 50})["read_seq"] == 105
    refused = stream.request("message.read", {"room_id": room, "read_seq": 108})
    assert (refused["code"], refused["field"]) == ("bad_request", "read_seq")


def test_the_golden_frame_says_who_types(cluster, api, room, people):
    """M-21"""
    stream, bob = cluster.open_stream(people[0], [room]), cluster.open_stream(people[1], [room])
    cluster.wait_hears()
    stream.send_raw(golden("frame_typing", conversation_id=room))
    assert answers(stream, "typing_001") == [{"type": "ack", "req_id": "typing_001", "room_id": room}]
    assert bob.read_type("typing") == {"type": "typing", "room_id": room, "account_id": people[0], "for_ms": 6000}
    assert api.pull_all(room) == []


# --- answers ---


def test_each_frame_has_its_own_answer_in_order_and_the_stream_stays(cluster, room, people):
    """M-38"""
    stream = cluster.open_stream(people[0], [room])
    frames = [("message.send", {"room_id": room, "kind": "text", "content": "one"}), ("no.such.type", {}), ("message.send", {"room_id": room, "kind": "text", "content": 5}),
        ("message.edit", {"room_id": room, "message_id": "x", "content": ""}), ("message.typing", {"room_id": room}), ("message.recall", {"room_id": room}),
        ("message.read", {"room_id": room}), ("message.send", {"room_id": room, "kind": "text", "content": "two"})]
    req_ids = [stream.send(kind, payload) for kind, payload in frames]
    found = answers(stream, *req_ids)
    assert [event["req_id"] for event in found] == req_ids
    assert [(event["type"], event.get("code"), event.get("field")) for event in found] == [("ack", None, None), ("error", "bad_request", "type"),
        ("error", "bad_request", "content"), ("error", "bad_request", "message_id"), ("ack", None, None), ("error", "bad_request", "seq"),
        ("error", "bad_request", "read_seq"), ("ack", None, None)]
    assert all(event["message"] for event in found if event["type"] == "error")
    stream.read_message(room, content="two")


def test_older_names_are_understood_and_newer_ones_win(cluster, room, people):
    stream = cluster.open_stream(people[0], [room])
    assert stream.request("message.send", {"conversation_id": room, "message_type": "custom/x", "content": 1})["type"] == "ack"
    assert stream.read_message(room)["kind"] == "custom/x"
    assert stream.request("message.send", {"room_id": room, "conversation_id": "other", "kind": "tip", "message_type": "text", "msg_type": 1, "content": 1})["type"] == "ack"
    assert stream.read_message(room)["kind"] == "tip"
    for payload, field in (({"conversation_id": 5, "msg_type": 1, "content": ""}, "conversation_id"), ({"room_id": room, "msg_type": 2, "content": ""}, "msg_type"),
            ({"room_id": room, "message_type": "no kind", "content": ""}, "message_type"), ({"room_id": room, "content": ""}, "kind")):
        answer = stream.request("message.send", payload)
        assert (answer["code"], answer["field"]) == ("bad_request", field)


def test_frames_take_effect_in_their_order_without_waiting(new_cluster, people):
    """The ids of messages just sent are known to who sends them."""
    cluster = new_cluster(settings={"op_timeout_ms": 60000})  # each changes what the last one left, and takes a COMMIT: the last waits for a hundred
    api, alice = cluster.api, people[0]
    room = api.create_room(*people)["room_id"]
    stream = cluster.open_stream(alice, [room])
    req_ids = []
    for number in range(50):
        target = {"room_id": room, "message_id": message_id(room, alice, f"c{number}")}
        req_ids += [stream.send("message.send", {"room_id": room, "client_msg_id": f"c{number}", "kind": "text", "content": "draft"}),
            stream.send("message.edit", {**target, "content": f"text {number}"}), stream.send("message.recall" if number % 2 else "message.edit", {**target, "content": "final"})]
    found = answers(stream, *req_ids, deadline=60)
    assert [event["req_id"] for event in found] == req_ids and {event.get("code", event["type"]) for event in found} == {"ack"}
    messages = [entry for entry in api.pull_all(room) if entry["type"] == "message"]
    assert [(entry["client_msg_id"], entry["state"], entry.get("content")) for entry in messages] == [
        (f"c{number}", "recalled", None) if number % 2 else (f"c{number}", "edited", "final") for number in range(50)]


def test_calls_for_one_room_keep_their_order_too(cluster, api, room, people):
    """A push that waits for nothing, and what changes its message right behind it."""
    alice = people[0]
    for number in range(20):
        sent = api.push(room, alice, "draft")
        api.ok("history/Edit", room_id=room, account_id=alice, message_id=sent["message_id"], content=f"text {number}")
    messages = [entry for entry in api.pull_all(room) if entry["type"] == "message"]
    assert [entry["content"] for entry in messages] == [f"text {number}" for number in range(20)]


def test_too_many_frames_are_told_when_to_come_again(new_cluster, people):
    """M-23, for frames: nothing of what is refused has an effect, the stream stays, and others do not feel it."""
    cluster = new_cluster(settings={"stream_frames_max_per_s": 10})
    api = cluster.api
    room = api.create_room(*people)["room_id"]
    stream, other = cluster.open_stream(people[0], [room]), cluster.open_stream(people[1], [room])
    req_ids = [stream.send("message.send", {"room_id": room, "kind": "text", "content": f"n {number}"}) for number in range(200)]
    assert other.request("message.send", {"room_id": room, "kind": "text", "content": "not limited"})["type"] == "ack"
    found = answers(stream, *req_ids)
    assert [event["req_id"] for event in found] == req_ids
    limited = [event for event in found if event["type"] == "error"]
    assert {event["code"] for event in limited} == {"rate_limited"} and all(1 <= event["retry_after_ms"] <= 1000 for event in limited)
    passed = [number for number, event in enumerate(found) if event["type"] == "ack"]
    assert len(passed) >= 10 and passed[:10] == list(range(10)) and len(limited) >= 100
    wait_for(lambda: stream.request("message.send", {"room_id": room, "kind": "text", "content": "later"})["type"] == "ack", every=0.2)
    said = [entry["content"] for entry in api.pull_until(room, len(passed) + 2) if entry["sender"] == people[0]]
    assert said == [f"n {number}" for number in passed] + ["later"]
    assert stream.closed is None


# --- typing ---


def test_typing_is_told_once_in_a_while_and_to_members_only(cluster, api, room, people):
    """M-21: 10 in one second are one."""
    stream, bob = cluster.open_stream(people[0], [room]), cluster.open_stream(people[1], [room])
    stranger = cluster.open_stream(fresh("eve"), all=True)
    cluster.wait_hears()
    req_ids = [stream.send("message.typing", {"room_id": room}) for _ in range(10)]
    assert {event["type"] for event in answers(stream, *req_ids)} == {"ack"}
    assert stranger.request("message.typing", {"room_id": room})["code"] == "not_member"
    api.push(room, people[2], "behind it")
    bob.read_message(room, content="behind it")
    assert [event["account_id"] for event in bob.events if event["type"] == "typing"] == [people[0]]
    assert stream.request("message.typing", {"room_id": "s00.01KC46E0D7X8BQXSRB29FJP960"})["code"] == "no_such_room"
    api.ok("room/Remove", room_id=room)
    other = cluster.open_stream(people[0], all=True)
    assert other.request("message.typing", {"room_id": room})["code"] == "room_gone"


def test_a_gateway_tells_typing_by_a_call_under_the_same_rules(cluster, api, room, people):
    bob = cluster.open_stream(people[1], [room])
    cluster.wait_hears()
    for _ in range(3):
        assert api.ok("history/Typing", room_id=room, account_id=people[0]) == {}
    assert bob.read_type("typing") == {"type": "typing", "room_id": room, "account_id": people[0], "for_ms": 6000}
    api.push(room, people[2], "behind it")
    bob.read_message(room, content="behind it")
    assert [event["type"] for event in bob.events].count("typing") == 1
    assert api.error("history/Typing", room_id=room, account_id=fresh("eve")) == (403, "not_member")
    api.ok("room/Remove", room_id=room)
    assert api.error("history/Typing", room_id=room, account_id=people[0]) == (410, "room_gone")


def test_typing_is_not_told_in_big_rooms_nor_of_who_may_not_speak(new_cluster, people):
    cluster = new_cluster(settings={"typing_max_members": 3})
    api = cluster.api
    alice, bob, carol = people
    small, big = api.create_room(*people)["room_id"], api.create_room(*people, "dora")["room_id"]
    api.ok("room/Mute", room_id=small, account_id=carol, for_ms=3600000)
    watcher = cluster.open_stream(bob, all=True)
    for account, room in ((alice, big), (carol, small), (alice, small)):
        assert cluster.open_stream(account, all=True).request("message.typing", {"room_id": room})["type"] == "ack"
    assert watcher.read_type("typing")["account_id"] == alice
    assert {(event["room_id"], event["account_id"]) for event in watcher.events if event["type"] == "typing"} == {(small, alice)}


# --- read marks, by both doors ---


def test_a_mark_moves_forward_only_and_never_past_the_head(door, api, room, people):
    """M-19"""
    alice, bob, _ = people
    seqs = [api.push(room, alice, str(number), wait="durable")["seq"] for number in range(5)]
    done = door.mark(bob, room, seqs[2]).answer
    assert (done["read_seq"], done["unread"]) == (seqs[2], 2)
    assert door.mark(bob, room, seqs[0]).answer["read_seq"] == seqs[2]
    assert door.mark(bob, room, seqs[4] + 1).refused("bad_request", "read_seq")
    door.mark(fresh("eve"), room, 1).refused("not_member")
    door.mark(bob, "s00.01KC46E0D7X8BQXSRB29FJP960", 1).refused("no_such_room")
    door.mark(bob, room, -1).refused("bad_request", "read_seq")
    assert door.mark(bob, room, seqs[4]).answer["unread"] == 0
    readers = api.ok("room/ListAccounts", room_id=room, has_read=seqs[4])["accounts"]
    assert bob in [one["account_id"] for one in readers] and people[2] not in [one["account_id"] for one in readers]


def test_sending_moves_the_senders_own_mark(door, api, room, people):
    alice, bob, _ = people
    api.push(room, bob, "one", wait="durable")
    door.send(alice, room, "two").answer
    last = api.pull_until(room, 2)[-1]["seq"]

    def unread():
        return api.ok("history/Unread", account_id=alice, room_ids=[room])["rooms"][0]

    assert wait_for(lambda: unread()["read_seq"] == last) and unread()["unread"] == 0


def test_request_ids_of_frames_are_each_accounts_own(cluster, api, room, people):
    """Clients number their requests; they know nothing of each other, nor of the gateway's."""
    answers = {}
    for account in people[:2]:
        stream = cluster.open_stream(account, [room])
        seq = api.push(room, account, "x", wait="durable")["seq"]
        edit = {"room_id": room, "seq": seq, "content": f"by {account}", "request_id": "1"}
        answers[account] = stream.request("message.edit", edit)["seq"]
        assert stream.request("message.edit", edit)["seq"] == answers[account]
        assert stream.request("message.edit", {**edit, "content": "other"})["code"] == "conflict"
    by_call = api.ok("history/Edit", room_id=room, seq=seq, account_id=account, content="by call", request_id="1")["seq"]
    assert len({by_call, *answers.values()}) == 3


def test_an_answer_says_nothing_that_a_frame_could_not(cluster, room, people):
    """Errors of frames look like errors of calls: code, message, field."""
    stream = cluster.open_stream(people[0], [room])
    error = stream.request("message.send", {"room_id": room, "kind": "rich_text", "content": {"parts": [{"type": "x"}, {"type": "y"}, {}]}})
    assert error["type"] == "error" and error["field"] == "content.parts[2].type" and re.match(r"content\.parts\[2\]\.type ", error["message"])
    assert set(json.loads(json.dumps(error))) == {"type", "code", "message", "field", "req_id"}
