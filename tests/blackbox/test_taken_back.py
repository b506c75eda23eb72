"""What was recalled, or hidden from oneself, is not in any stream that comes later: from memory and from the store, on every instance."""
import json

import pytest

from roomd import wait_for

TRANSPORTS = ["websocket", "sse", "ndjson", "poll"]


@pytest.fixture
def room(api):
    return api.create_room("alice", "bob")["room_id"]


def text(stream):
    return json.dumps(stream.events)


def recall_secret(api, room):
    """1: before · 2: the secret · 3: its edit · 4: its recall · 5: after. The position before the secret."""
    api.push(room, "alice", "before", wait="durable")
    api.push(room, "alice", "the secret", wait="durable")
    api.ok("history/Edit", room_id=room, seq=2, account_id="alice", content="the secret, edited")
    assert api.ok("history/Recall", room_id=room, seq=2, account_id="alice")["seq"] == 4
    head = api.pull(room)["head"]
    api.push(room, "alice", "after")
    return f"{room}@{head.split(':')[0]}:1"


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("deliver", ["early", "durable"])
@pytest.mark.parametrize("kept", ["tail", "store"])
def test_who_resumes_after_a_recall_gets_the_op_and_never_the_content(cluster, api, room, transport, deliver, kept):
    owner = cluster.owner_of(room)
    if kept == "tail":  # somebody listens, so the entries stay in memory
        near = cluster.open_stream("bob", [room], endpoint=owner)
        near.read_type("hello")
    position = recall_secret(api, room)
    for instance in cluster.instances:
        later = cluster.open_stream("bob", [{"room_id": room, "after": position.partition("@")[2]}], endpoint=instance, transport=transport, deliver=deliver)
        later.read_seq(room, 5)
        assert later.contiguous(room, 2) == [2, 3, 4, 5]
        shown = {event["seq"]: event for event in later.log_events(room)}
        assert shown[2]["state"] == "recalled" and "content" not in shown[2]
        assert shown[3]["type"] == "message.edited" and "content" not in shown[3]
        assert shown[4]["type"] == "message.recalled" and shown[4]["target_seq"] == 2
        assert "secret" not in text(later)


def test_who_was_there_sees_the_message_and_then_its_recall(cluster, api, room):
    near = cluster.open_stream("bob", [room], endpoint=cluster.owner_of(room))
    near.read_type("hello")
    recall_secret(api, room)
    near.read_seq(room, 5)
    assert [event["content"] for event in near.log_events(room) if "content" in event] == ["before", "the secret", "the secret, edited", "after"]
    assert near.read_type("message.recalled")["by"] == "alice"


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("kept", ["tail", "store"])
def test_what_an_account_has_hidden_is_left_out_of_its_streams_only(cluster, api, room, transport, kept):
    owner = cluster.owner_of(room)
    if kept == "tail":
        cluster.open_stream("bob", [room], endpoint=owner).read_type("hello")
    for number in range(1, 5):
        api.push(room, "alice", f"{number}", wait="durable")
    for seq in (2, 4):
        api.ok("history/Delete", room_id=room, seq=seq, account_id="bob", scope="me")
    api.push(room, "alice", "5", wait="durable")
    for instance in cluster.instances:
        bob, alice = (cluster.open_stream(account, [{"room_id": room, "after": "0:0"}], endpoint=instance, transport=transport) for account in ("bob", "alice"))
        bob.read_seq(room, 5)
        alice.read_seq(room, 5)
        assert bob.seqs(room) == [1, 3, 5]
        assert alice.seqs(room) == [1, 2, 3, 4, 5]


def test_what_is_hidden_is_told_to_the_accounts_other_streams_on_every_instance(cluster, api, room):
    bobs = [cluster.open_stream("bob", [room], endpoint=instance) for instance in cluster.instances]
    alice = cluster.open_stream("alice", [room])
    for stream in (*bobs, alice):
        stream.read_type("hello")
    for instance in cluster.instances:
        wait_for(lambda: instance.metrics()["roomd_feed_open"] == 1, 30)
    api.push(room, "alice", "not for bob", wait="durable")
    api.ok("history/Delete", room_id=room, seq=1, account_id="bob", scope="me")
    for bob in bobs:
        assert bob.read_type("message.hidden") == {"type": "message.hidden", "room_id": room, "seq": 1}
    api.push(room, "alice", "done", wait="durable")
    alice.read_message(room, content="done")
    assert "message.hidden" not in text(alice)
