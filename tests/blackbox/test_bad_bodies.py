"""Bodies that cannot be accepted, through the broker: each becomes a dead letter with its reason, body and type kept; what stands around it goes on, and no seq is used."""
import json

import msgpack
import pytest

from roomd import wait_for

GOOD = {"sender": "alice", "kind": "text", "content": "x", "client_msg_id": "bad"}


def changed(**fields):
    body = {**GOOD, **fields}
    return {key: value for key, value in body.items() if value is not ...}


def text(room, **fields):
    return json.dumps({"room_id": room, **changed(**fields)}).encode()


# name -> (body, reason, properties); room is the id of a room that exists
BODIES = {
    "empty": lambda room: (b"", "bad_request", {}),
    "one byte": lambda room: (b"{", "bad_request", {}),
    "random bytes": lambda room: (bytes(range(256)), "bad_request", {}),
    "truncated": lambda room: (text(room)[:-5], "bad_request", {}),
    "an array": lambda room: (b"[1,2]", "bad_request", {}),
    "null": lambda room: (b"null", "bad_request", {}),
    "two documents": lambda room: (text(room) * 2, "bad_request", {}),
    "a byte order mark": lambda room: (b"\xef\xbb\xbf" + text(room), "bad_request", {}),
    "not UTF-8": lambda room: (text(room, content="@@").replace(b"@@", b"\xff\xfe"), "bad_request", {}),
    "U+0000": lambda room: (text(room, content="\0"), "bad_request", {}),
    "a lone surrogate": lambda room: (text(room, content="@@").replace(b"@@", b"\\ud800"), "bad_request", {}),
    "a key twice": lambda room: (text(room)[:-1] + b',"kind":"tip"}', "bad_request", {}),
    "too deep": lambda room: (text(room, content="@@").replace(b'"@@"', b"[" * 100 + b"]" * 100), "bad_request", {}),
    "NaN": lambda room: (text(room, content="@@").replace(b'"@@"', b"NaN"), "bad_request", {}),
    "another version": lambda room: (text(room, v=2), "bad_request", {}),
    "no sender": lambda room: (text(room, sender=...), "bad_request", {}),
    "a reserved sender": lambda room: (text(room, sender="@all"), "bad_request", {}),
    "a sender with a line break": lambda room: (text(room, sender="a\nb"), "bad_request", {}),
    "a sender of 65 bytes": lambda room: (text(room, sender="a" * 65), "bad_request", {}),
    "no kind": lambda room: (text(room, kind=...), "bad_request", {}),
    "a kind with a blank": lambda room: (text(room, kind="a b"), "bad_request", {}),
    "no content": lambda room: (text(room, content=...), "bad_request", {}),
    "a text that is a number": lambda room: (text(room, content=1), "bad_request", {}),
    "an image without a file": lambda room: (text(room, kind="image", content={"url": "http://169.254.169.254/"}), "bad_request", {}),
    "a part without a type": lambda room: (text(room, kind="rich_text", content={"parts": [{"body": "x"}]}), "bad_request", {}),
    "a client_msg_id of 65 bytes": lambda room: (text(room, client_msg_id="c" * 65), "bad_request", {}),
    "a time that is none": lambda room: (text(room, sent_at=-1), "bad_request", {}),
    "a quote of nothing": lambda room: (text(room, quote_seq=1000), "bad_request", {}),
    "content of 65 KiB": lambda room: (text(room, content="x" * 66000), "too_large", {}),
    "a body of 300 KiB": lambda room: (text(room, padding="x" * 300000), "too_large", {}),
    "compressed": lambda room: (text(room), "bad_request", {"content_encoding": "gzip"}),
    "another type": lambda room: (text(room), "bad_request", {"content_type": "text/plain"}),
    "broken MessagePack": lambda room: (b"\x85\xa1", "bad_request", {"content_type": "application/msgpack"}),
    "MessagePack with bytes": lambda room: (msgpack.packb({"room_id": room, **changed(content=b"x")}), "bad_request", {"content_type": "application/msgpack"}),
    "an op": lambda room: (json.dumps({"v": 1, "op": "room.remove", "op_id": "01KC46E0D7X8BQXSRB29FJP960", "room_id": room}).encode(), "forbidden", {}),
    "no such room": lambda room: (text(room.split(".")[0] + ".01KC46E0D7X8BQXSRB29FJP960"), "no_such_room", {}),
    "a room of another shard": lambda room: (text("s99." + room.split(".")[1]), "bad_request", {}),
    "no room id": lambda room: (json.dumps(GOOD).encode(), "bad_request", {}),
    "not a member": lambda room: (text(room, sender="mallory"), "not_member", {}),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_becomes_a_dead_letter_and_the_next_message_follows(cluster, api, name):
    room = api.create_room("alice", "bob")["room_id"]
    body, reason, properties = BODIES[name](room)
    publisher = cluster.publisher()
    cluster.dead_letters()
    publisher.publish(room, "alice", content="before")
    publisher.publish_raw(room, body, **properties)
    publisher.publish(room, "alice", content="after")
    entries = api.pull_until(room, 2)
    assert [(entry["seq"], entry["content"]) for entry in entries] == [(1, "before"), (2, "after")]
    letters = []

    def arrived():  # perhaps behind one of an earlier test
        letters.extend(letter for letter in cluster.dead_letters() if letter["body"] == body)
        return letters

    wait_for(arrived, 20, what="the dead letter")
    assert [letter["reason"] for letter in letters] == [reason]
    if "content_type" in properties:
        assert letters[0]["content_type"] == properties["content_type"]
