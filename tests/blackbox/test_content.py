"""What messages are made of: kinds, mentions, quotes, forwards, and refusals that name the part; by call and by frame."""
import json

import pytest

from doors import fresh, golden
from roomd import wait_for


@pytest.fixture
def people():
    return fresh("alice", "bob", "carol")


@pytest.fixture
def room(api, people):
    return api.create_room(*people)["room_id"]


def parts(*items, **more):
    return {"parts": list(items), **more}


REFUSED = [
    ("text", 5, "content"),
    ("text", {"body": None}, "content.body"),
    ("image", {"url": "x"}, "content.file_id"),
    ("voice", "x", "content"),
    ("rich_text", "x", "content"),
    ("rich_text", {}, "content.parts"),
    ("rich_text", parts({"type": "text", "body": "a"}, {"type": "x"}, {"body": "c"}), "content.parts[2].type"),
    ("rich_text", parts({"type": "text", "body": 1}), "content.parts[0].body"),
    ("rich_text", parts({"type": "mention", "mention_type": "some"}), "content.parts[0].user_id"),
    ("rich_text", parts(quote_message_seq="98"), "content.quote_message_seq"),
    ("rich_text", parts(*({"type": "x"} for _ in range(501))), "content.parts"),
    ("forward", {"forward_type": "double"}, "content.forward_type"),
    ("forward", {"forward_type": "merged"}, "content.messages"),
    ("forward", {"messages": [{"content": "x"}] * 101}, "content.messages"),
    ("forward", {"messages": [{"content": "a"}, {"content": "b"}, {"content": "c"}, {"content": {"type": "text", "body": 5}}]},
        "content.messages[3].content.body"),
    ("forward", {"messages": [{"content": {"type": "forward", "messages": [{"content": {}}]}}]}, "content.messages[0].content.messages[0].content.type"),
]


@pytest.mark.parametrize("kind, content, field", REFUSED, ids=[f"{kind}-{field}" for kind, _, field in REFUSED])
def test_a_refusal_names_the_part_that_is_to_blame(door, room, people, kind, content, field):
    sentence = door.send(people[0], room, content, kind=kind).refused("bad_request", field)
    assert sentence.startswith(field + " ")


def test_a_refused_message_leaves_no_trace(door, api, room, people):
    door.send(people[0], room, parts({"body": "x"}), kind="rich_text").refused("bad_request", "content.parts[0].type")
    api.push(room, people[0], "after it", wait="durable")
    assert [entry["content"] for entry in api.pull_all(room)] == ["after it"]


@pytest.mark.parametrize("name", ["rich_text", "forward"])
def test_the_golden_contents_come_back_as_equal_json(cluster, door, api, room, people, name):
    """M-09, M-12: word for word, and message_type is understood for kind."""
    for number in range(98):
        api.push(room, people[1], str(number), wait="durable" if number == 97 else "confirmed")
    sent = json.loads(golden(name))
    stream = cluster.open_stream(people[2], [room])
    if hasattr(door, "stream"):
        frame = '{"type": "message.send", "req_id": "g", "payload": {"room_id": "%s", %s}' % (room, golden(name).strip()[1:])
        mine = door.stream(people[0])
        mine.send_raw(frame)
        assert mine.read_type("ack", req_id="g")["message_id"]
    else:
        door.send(people[0], room, sent["content"], kind=sent["message_type"]).answer
    entry = stream.read_until(lambda event: event.get("kind") == name)
    assert entry["content"] == sent["content"]
    api.push(room, people[1], "behind it", wait="durable")
    assert api.pull(room, before=entry["seq"] + 1, limit=1)["entries"] == [entry]
    if name == "rich_text":
        assert (entry["mentions"], entry["quote_seq"]) == (["user_id_manager", "@all"], 98)
    else:
        assert [one["original_sender_name"] for one in entry["content"]["messages"]] == ["张三", "李四", "王五"]
        assert entry["content"]["summary"] == "聊天记录 (3条)" and "mentions" not in entry


def test_a_quote_of_what_does_not_exist_is_refused(door, api, room, people):
    """M-11"""
    wait = {} if hasattr(door, "stream") else {"wait": "durable"}  # an instance that is not the owner learns it from the owner
    quoted = api.push(room, people[0], "one", wait="durable")["seq"]
    assert door.send(people[1], room, "re", quote_seq=quoted + 1, **wait).refused("bad_request", "quote_seq")
    door.send(people[1], room, parts(quote_message_seq=quoted + 1), kind="rich_text", **wait).refused("bad_request", "content.quote_message_seq")
    door.send(people[1], room, "re", quote_seq=quoted).answer
    door.send(people[1], room, parts(quote_message_seq=quoted), kind="rich_text").answer
    entries = api.pull_until(room, 3)
    assert [entry.get("quote_seq") for entry in entries] == [None, quoted, quoted]


def test_why_a_quote_is_refused_is_said_on_every_instance(cluster, room, people):
    for instance in cluster.instances:
        status, answer = instance.api.call("history/Push", room_id=room, sender=people[0], kind="text", content="re", quote_seq=99, wait="durable")
        assert (status, answer["error"]["field"]) == (400, "quote_seq") and answer["error"]["message"].startswith("the quoted seq does not exist in the room")


def test_a_mention_is_counted_for_whom_it_names_and_for_all(door, api, room, people):
    """M-10"""
    alice, bob, carol = people

    def mentioned(account):
        unread = api.ok("history/Unread", account_id=account, room_ids=[room])["rooms"][0]
        return unread["unread"], unread["mentioned"]

    door.send(alice, room, parts({"type": "mention", "user_id": bob}), kind="rich_text").answer
    api.pull_until(room, 1)
    assert (mentioned(bob), mentioned(carol), mentioned(alice)[1]) == ((1, 1), (1, 0), 0)
    door.send(alice, room, parts({"type": "mention", "mention_type": "all"}), kind="rich_text").answer
    door.send(alice, room, "plain", mentions=[carol]).answer
    api.pull_until(room, 3)
    assert (mentioned(bob), mentioned(carol), mentioned(alice)[1]) == ((3, 2), (3, 2), 0)


def test_what_is_forwarded_mentions_nobody_here(door, api, room, people):
    inner = {"type": "rich_text", **parts({"type": "mention", "mention_type": "all"}, quote_message_seq=500)}
    door.send(people[0], room, {"forward_type": "merged", "messages": [{"content": inner}]}, kind="forward").answer
    entry, = api.pull_until(room, 1)
    assert "mentions" not in entry and "quote_seq" not in entry
    assert entry["content"]["messages"][0]["content"] == inner


def test_a_single_forward_and_a_tip_pass_and_a_tip_is_not_unread(door, api, room, people):
    door.send(people[0], room, {"forward_type": "single", "content": {"type": "text", "body": "x"}, "from": "elsewhere"}, kind="forward").answer
    api.push(room, "@system", {"text": "somebody waved"}, kind="tip", wait="durable")
    api.pull_until(room, 2)
    assert api.ok("history/Unread", account_id=people[1], room_ids=[room])["rooms"][0]["unread"] == 1


def test_a_content_above_its_limit_is_too_large(door, room, people):
    assert "65536" in door.send(people[0], room, "x" * 65536).refused("too_large", "content")


def test_the_same_id_with_other_content_is_told_by_the_owner(cluster, api, room, people):
    api.push(room, people[0], "one", client_msg_id="c", wait="durable")
    status, answer = api.call("history/Push", room_id=room, sender=people[0], kind="text", content="two", client_msg_id="c", wait="durable")
    assert (status, answer["error"]["code"], answer["error"]["field"]) == (409, "conflict", "client_msg_id")
    wait_for(lambda: len(api.pull_all(room)) == 1)
