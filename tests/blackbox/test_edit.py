"""Edit, recall, delete: who may, what everybody sees then, what is left of it; by call and by frame."""
import json
import threading

import pytest

from doors import GENERIC, CallDoor, fresh, room_of_four
from roomd import DEADLINE, message_id, new_id, wait_for

EDITS = ("message.edited", "message.recalled", "message.deleted")


@pytest.fixture
def people():
    return fresh("olga", "adam", "alice", "bob")


@pytest.fixture
def room(api, people):
    """olga owns it, adam is admin, alice and bob are members."""
    return room_of_four(api, people)


def say(api, room, sender, content, **fields):
    return api.push(room, sender, content, wait="durable", **fields)["seq"]


def entry_at(api, room, seq, **fields):
    entry, = api.pull(room, before=seq + 1, limit=1, **fields)["entries"]
    assert entry["seq"] == seq
    return entry


def stored(cluster, room, seq):
    """(content, meta, state) of the row."""
    return cluster.rows("select content, meta, state from log_entry join room using (room_no) where room_id = %s and seq = %s", room, seq)[0]


# --- what everybody sees ---


@pytest.mark.parametrize("transport", ["websocket", "sse", "ndjson", "poll"])
def test_an_edit_is_seen_on_streams_in_pull_and_by_who_was_away(cluster, api, door, room, people, transport):
    """M-15: the fifth message is edited after the ninth."""
    olga, _, alice, bob = people
    seqs = [say(api, room, alice, f"number {number}", client_msg_id=f"m{number}") for number in range(1, 10)]
    live = cluster.open_stream(bob, [room], transport=transport)
    away = api.ok("room/Get", room_id=room)["room"]["head"]
    seq = door.edit(alice, room, "five!", seq=seqs[4]).seq
    event = live.read_type("message.edited")
    assert {name: event[name] for name in ("room_id", "seq", "target_seq", "message_id", "by", "content")} == {"room_id": room, "seq": seq,
        "target_seq": seqs[4], "message_id": message_id(room, alice, "m5"), "by": alice, "content": "five!"}
    assert entry_at(api, room, seq) == event
    changed = entry_at(api, room, seqs[4])
    assert (changed["content"], changed["state"], changed["sender"], changed["client_msg_id"]) == ("five!", "edited", alice, "m5")
    assert "state" not in entry_at(api, room, seqs[3])
    later = cluster.open_stream(olga, [{"room_id": room, "after": away}], transport=transport)
    assert later.read_type("message.edited") == event


def test_a_recall_leaves_a_tombstone_and_nothing_of_the_content(cluster, api, door, room, people):
    """M-16, M-17: neither on streams, nor in Pull, nor in the database."""
    olga, _, alice, bob = people
    begin = api.ok("room/Get", room_id=room)["room"]["head"]
    seq = say(api, room, alice, "first secret", mentions=[bob], quote_seq=1)
    door.edit(alice, room, "second secret", seq=seq).answer
    live = cluster.open_stream(bob, [room])
    recalled = door.recall(alice, room, seq=seq).seq
    event = live.read_type("message.recalled")
    assert (event["seq"], event["target_seq"], event["by"]) == (recalled, seq, alice) and "content" not in event
    tombstone = entry_at(api, room, seq)
    assert tombstone["state"] == "recalled" and tombstone["sender"] == alice
    assert not {"content", "mentions", "quote_seq"} & set(tombstone)
    late = cluster.open_stream(olga, [{"room_id": room, "after": begin}])
    late.read_type("message.recalled")
    late.contiguous(room)
    assert "secret" not in json.dumps(late.events) + json.dumps(api.pull_all(room))
    assert stored(cluster, room, seq) == ("", None, 2)
    rows = cluster.rows("select coalesce(content, '') || coalesce(meta, '') from log_entry join room using (room_no) where room_id = %s", room)
    assert "secret" not in "".join(text for text, in rows)
    assert api.ok("history/Unread", account_id=bob, room_ids=[room])["rooms"][0]["mentioned"] == 0


def test_what_is_deleted_for_all_is_gone_for_good(cluster, api, door, room, people):
    """M-17"""
    _, _, alice, bob = people
    seq = say(api, room, alice, "a secret")
    live = cluster.open_stream(bob, [room])
    deleted = door.delete(alice, room, "all", seq=seq).seq
    event = live.read_type("message.deleted")
    assert (event["seq"], event["target_seq"], event["by"]) == (deleted, seq, alice)
    assert entry_at(api, room, seq)["state"] == "deleted" and "content" not in entry_at(api, room, seq)
    assert stored(cluster, room, seq) == ("", None, 3)
    assert "secret" not in json.dumps(api.pull_all(room))


def test_what_is_deleted_for_me_is_hidden_from_me_only(cluster, api, door, room, people):
    """M-17: it takes no seq, and the account's other streams are told."""
    _, _, alice, bob = people
    kept, hidden = say(api, room, bob, "kept"), say(api, room, bob, "hidden")
    head = api.ok("room/Get", room_id=room)["room"]["head"]
    other = cluster.open_stream(alice, [room])
    cluster.wait_hears()
    assert "seq" not in door.delete(alice, room, "me", seq=hidden).answer
    assert other.read_type("message.hidden") == {"type": "message.hidden", "room_id": room, "seq": hidden}
    assert [entry["seq"] for entry in api.pull(room, account_id=alice)["entries"]][-1] == kept
    assert entry_at(api, room, hidden, account_id=bob)["content"] == "hidden"
    assert api.ok("room/Get", room_id=room)["room"]["head"] == head
    last = say(api, room, bob, "behind it")
    door.delete(alice, room, "me", message_id=entry_at(api, room, last)["message_id"]).answer
    assert other.read_type("message.hidden")["seq"] == last
    door.delete(alice, room, "me", seq=hidden).answer  # once more does no harm


def test_an_edit_of_rich_text_derives_mentions_anew_and_others_keep_theirs(api, door, room, people):
    _, _, alice, bob = people

    def mentioned(account):
        return api.ok("history/Unread", account_id=account, room_ids=[room])["rooms"][0]["mentioned"]

    def mention(account):
        return {"parts": [{"type": "mention", "user_id": account}]}

    rich = say(api, room, alice, mention(bob), kind="rich_text", sent_at=5)
    assert mentioned(bob) == 1
    door.edit(alice, room, mention(people[0]), seq=rich).answer
    assert (mentioned(bob), mentioned(people[0])) == (0, 1)
    changed = entry_at(api, room, rich)
    assert (changed["mentions"], changed["sent_at"], changed["state"]) == ([people[0]], 5, "edited")
    plain = say(api, room, alice, "you", mentions=[bob], quote_seq=rich)
    door.edit(alice, room, "you there", seq=plain).answer
    changed = entry_at(api, room, plain)
    assert (changed["content"], changed["mentions"], changed["quote_seq"]) == ("you there", [bob], rich)
    assert mentioned(bob) == 1


# --- who may ---


def test_only_the_sender_edits(api, door, room, people):
    olga, adam, alice, bob = people
    seq = say(api, room, alice, "mine")
    for other in (olga, adam, bob):
        assert door.edit(other, room, "not yours", seq=seq).refused("forbidden") != GENERIC
    door.edit(fresh("eve"), room, "x", seq=seq).refused("not_member")
    assert entry_at(api, room, seq)["content"] == "mine"


def test_the_business_edits_nothing_and_recalls_anything(api, room, people):
    seq = say(api, room, people[2], "mine")
    assert api.error("history/Edit", room_id=room, seq=seq, content="x") == (403, "forbidden")
    done = api.ok("history/Recall", room_id=room, seq=seq)
    assert "by" not in entry_at(api, room, done["seq"])
    assert api.ok("history/Delete", room_id=room, seq=seq, scope="all")["seq"] > done["seq"]


def test_others_recall_by_their_role(api, door, room, people):
    olga, adam, alice, bob = people
    for act in (door.recall, lambda *a, **k: door.delete(a[0], a[1], "all", **k)):
        seq = say(api, room, alice, "said")
        assert act(bob, room, seq=seq).refused("forbidden") != GENERIC
        act(fresh("eve"), room, seq=seq).refused("not_member")
        act(adam, room, seq=seq).answer
        act(olga, room, seq=say(api, room, adam, "also of an admin")).answer
        act(alice, room, seq=say(api, room, alice, "my own")).answer


def test_the_window_is_for_the_sender_only(new_cluster, people):
    """M-16: judged by the time of the call."""
    cluster = new_cluster(settings={"recall_window_ms": 1})
    api = cluster.api
    room = room_of_four(api, people)
    olga, adam, alice, _ = people
    seq = say(api, room, alice, "too late")
    say(api, room, alice, "a commit later")
    door = CallDoor(cluster)
    door.recall(alice, room, seq=seq).refused("too_late")
    door.delete(alice, room, "all", seq=seq).refused("too_late")
    door.edit(alice, room, "no window for edits", seq=seq).answer
    door.recall(adam, room, seq=seq).answer
    door.recall(adam, room, seq=say(api, room, adam, "my own, as admin")).answer
    assert api.ok("history/Recall", room_id=room, seq=say(api, room, alice, "by the business"))


# --- refusals ---


def test_who_is_not_in_the_room_leaves_nothing_in_its_log(cluster, api, door, room, people):
    """R-10: not even a void; whoever has a stream can name any room."""
    eve, alice = fresh("eve"), people[2]
    seq = say(api, room, alice, "x", client_msg_id="m")
    head = api.ok("room/Get", room_id=room)["room"]["head"]
    for target in ({"seq": seq}, {"message_id": message_id(room, alice, "m")}):
        for request in ({}, {"request_id": new_id()}):
            door.edit(eve, room, "y", **target, **request).refused("not_member")
            door.recall(eve, room, **target, **request).refused("not_member")
            door.delete(eve, room, "all", **target, **request).refused("not_member")
    for instance in cluster.instances:
        assert instance.api.error("room/Update", room_id=room, name="n", by=eve) == (403, "not_member")
    assert api.ok("room/Get", room_id=room)["room"]["head"] == head


def test_who_left_is_told_the_first_result_of_what_it_did_before(cluster, api, room, people):
    """Also of the leaving itself."""
    alice = people[2]
    seq = say(api, room, alice, "x")
    leave = {"room_id": room, "account_id": alice, "by": alice, "request_id": new_id()}
    edit = {"room_id": room, "seq": seq, "account_id": alice, "content": "y", "request_id": new_id()}
    edited, left = api.ok("history/Edit", edit), api.ok("room/RmAccountFromRoom", leave)
    assert left == {"removed": [alice], "absent": []}
    for instance in cluster.instances:
        assert instance.api.ok("history/Edit", edit) == edited
        assert instance.api.ok("room/RmAccountFromRoom", leave) == left
        assert instance.api.error("history/Edit", {**edit, "content": "z"}) == (409, "conflict")
        assert instance.api.error("history/Edit", {**edit, "request_id": new_id()}) == (403, "not_member")


def test_what_was_said_before_the_join_does_not_come_by_its_edit(cluster, api, people):
    """A room whose members see what was said since they joined: who joined later learns that there was an edit, not of what."""
    olga, _, alice, bob = people
    room = api.create_room(alice, owner=olga, history="since_join")["room_id"]
    before = say(api, room, alice, "before")
    api.ok("room/AddAccount2Room", room_id=room, account_id=bob)
    since = say(api, room, alice, "since")
    streams = {name: [cluster.open_stream(name, [{"room_id": room, "after": "0:0"}], **options) for options in (
        {}, {"deliver": "durable"}, {"transport": "sse"}, {"transport": "poll"})] for name in (alice, bob)}
    for readers in streams.values():
        for reader in readers:
            reader.read_message(room, content="since")  # what comes now is live for it
    api.ok("history/Edit", room_id=room, seq=before, account_id=alice, content="before, edited")
    api.ok("history/Edit", room_id=room, seq=since, account_id=alice, content="since, edited")
    say(api, room, alice, "last")
    for name, expected in ((alice, ["before, edited", "since, edited"]), (bob, [None, "since, edited"])):
        streams[name].append(cluster.open_stream(name, [{"room_id": room, "after": "0:0"}]))
        for reader in streams[name]:
            reader.read_message(room, content="last")
            edits = [event for event in reader.events if event["type"] == "message.edited"]
            assert [(event["target_seq"], event.get("content")) for event in edits] == list(zip((before, since), expected))
        for instance in cluster.instances:
            for page in ({"after": "0:0"}, {}, {"before": 100}):
                entries = instance.api.pull(room, account_id=name, **page)["entries"]
                assert [entry.get("content") for entry in entries if entry["type"] == "message.edited"] == expected
    api.ok("history/Delete", room_id=room, seq=since, account_id=bob, scope="me")  # another way through the same pages
    for page in ({"after": "0:0"}, {}):
        assert "before, edited" not in json.dumps(api.pull(room, account_id=bob, **page))


def test_what_was_taken_back_is_not_edited(api, door, room, people):
    _, _, alice, _ = people
    recalled, deleted = say(api, room, alice, "x"), say(api, room, alice, "y")
    door.recall(alice, room, seq=recalled).answer
    door.delete(alice, room, "all", seq=deleted).answer
    for seq in (recalled, deleted):
        assert door.edit(alice, room, "z", seq=seq).refused("conflict")
    door.recall(alice, room, seq=deleted).refused("conflict")


def test_a_second_time_is_answered_and_leaves_a_void(api, door, room, people):
    _, _, alice, _ = people
    seq = say(api, room, alice, "x")
    first = door.recall(alice, room, seq=seq).seq
    second = door.recall(alice, room, seq=seq).seq
    assert (entry_at(api, room, first)["type"], entry_at(api, room, second)["type"]) == ("message.recalled", "void")
    third = door.delete(alice, room, "all", seq=seq).seq
    fourth = door.delete(alice, room, "all", seq=seq).seq
    assert (entry_at(api, room, third)["type"], entry_at(api, room, fourth)["type"]) == ("message.deleted", "void")
    assert entry_at(api, room, seq)["state"] == "deleted"


def test_the_new_content_is_checked_for_the_kind_of_the_message(api, door, room, people):
    alice = people[2]
    text = say(api, room, alice, "x")
    rich = say(api, room, alice, {"parts": []}, kind="rich_text")
    door.edit(alice, room, 5, seq=text).refused("bad_request", "content")
    door.edit(alice, room, {"parts": [{"type": "x"}, {}]}, seq=rich).refused("bad_request", "content.parts[1].type")
    door.edit(alice, room, "x" * 65536, seq=text).refused("too_large", "content")
    assert [entry_at(api, room, seq)["content"] for seq in (text, rich)] == ["x", {"parts": []}]


def test_what_is_no_message_is_not_found(api, door, room, people):
    alice = people[2]
    joined = api.pull_all(room)[0]
    assert joined["type"] == "member.joined"
    for target in ({"seq": joined["seq"]}, {"seq": 1000000}, {"message_id": new_id()}):
        door.edit(alice, room, "x", **target).refused("no_such_message")
        door.recall(alice, room, **target).refused("no_such_message")
        door.delete(alice, room, "all", **target).refused("no_such_message")
    for target in ({"seq": 1000000}, {"message_id": new_id()}):
        door.delete(alice, room, "me", **target).refused("no_such_message")


def test_one_message_is_named_in_one_way(api, door, room, people):
    alice = people[2]
    seq = say(api, room, alice, "x")
    door.recall(alice, room).refused("bad_request", "seq")
    door.recall(alice, room, seq=1, message_id=new_id()).refused("bad_request", "message_id")
    door.recall(alice, room, seq=0).refused("bad_request", "seq")
    door.recall(alice, room, message_id="short").refused("bad_request", "message_id")
    door.delete(alice, room, "some", seq=seq).refused("bad_request", "scope")
    door.edit(alice, room, None, seq=seq).refused("bad_request", "content")


def test_a_room_that_is_not_there_or_gone(api, door, room, people):
    alice = people[2]
    seq = say(api, room, alice, "x")
    api.ok("room/Remove", room_id=room)
    for act in (lambda where: door.edit(alice, where, "y", seq=seq), lambda where: door.recall(alice, where, seq=seq),
            lambda where: door.delete(alice, where, "all", seq=seq)):
        act(room).refused("room_gone")
        act("s00.01KC46E0D7X8BQXSRB29FJP960").refused("no_such_room")
        act("nonsense").refused("no_such_room")


def test_who_is_not_in_the_room_hides_nothing(api, door, room, people):
    seq = say(api, room, people[2], "x")
    door.delete(fresh("eve"), room, "me", seq=seq).refused("not_member")


# --- repeats, races, takeover ---


def test_a_repeat_gets_the_first_result_and_another_body_is_a_conflict(api, door, room, people):
    alice = people[2]
    seq = say(api, room, alice, "x")
    first = door.edit(alice, room, "y", seq=seq, request_id="r1").seq
    assert door.edit(alice, room, "y", seq=seq, request_id="r1").seq == first
    door.edit(alice, room, "z", seq=seq, request_id="r1").refused("conflict", "request_id")
    door.recall(alice, room, seq=seq, request_id="r1").refused("conflict", "request_id")
    refused = door.edit(people[3], room, "z", seq=seq, request_id="r2").refused("forbidden")
    assert door.edit(people[3], room, "z", seq=seq, request_id="r2").refused("forbidden") == refused
    assert entry_at(api, room, seq)["content"] == "y"


def test_two_edits_at_once_end_the_same_everywhere(cluster, api, door, room, people):
    alice, bob = people[2:]
    stream, seq = cluster.open_stream(bob, [room]), say(api, room, alice, "x")
    if hasattr(door, "stream"):
        door.stream(alice)
    for turn in range(20):
        texts, results = [f"{turn} a", f"{turn} b"], {}
        threads = [threading.Thread(target=lambda text=text: results.update({text: door.edit(alice, room, text, seq=seq).seq})) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        winner = max(results, key=results.get)
        stream.read_seq(room, max(results.values()))
        shown = [event["content"] for event in stream.events if event["type"] == "message.edited"]
        assert entry_at(api, room, seq)["content"] == winner == shown[-1]


def test_edit_against_recall_ends_in_the_recall(cluster, api, room, people):
    """Whatever comes first, nothing of the content is left."""
    alice = people[2]
    for turn in range(100):
        seq, outcome = say(api, room, alice, "secret"), {}

        def ask(method, seq=seq, outcome=outcome, **fields):
            outcome[method] = cluster.alive[0].api.call(method, room_id=room, account_id=alice, seq=seq, **fields)

        threads = [threading.Thread(target=ask, args=("history/Edit",), kwargs={"content": "secret too"}), threading.Thread(target=ask, args=("history/Recall",))]
        for thread in threads[::1 if turn % 2 else -1]:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        assert outcome["history/Recall"][0] == 200
        edited, answer = outcome["history/Edit"]
        assert edited == 200 or answer["error"]["code"] == "conflict"
        assert (edited == 200) == (edited == 200 and answer["seq"] < outcome["history/Recall"][1]["seq"])
        assert "content" not in entry_at(api, room, seq)
    assert "secret" not in json.dumps([entry for entry in api.pull_all(room) if entry["type"] in EDITS + ("message",)])


@pytest.mark.deadline(180)
def test_after_kill_9_of_the_owner_everything_is_as_it_was(new_cluster, people):
    """Edits, tombstones, hidden entries, cursors, roles and mutes; and the next owner goes on from there."""
    cluster = new_cluster(instances=2)
    api = cluster.api
    olga, adam, alice, bob = people
    room = room_of_four(api, people)
    edited, recalled, deleted, hidden, open_one = (say(api, room, alice, f"text {number}", client_msg_id=f"c{number}") for number in range(5))
    door = CallDoor(cluster)
    door.edit(alice, room, "edited", seq=edited).answer
    door.recall(alice, room, seq=recalled).answer
    door.delete(adam, room, "all", seq=deleted).answer
    door.delete(bob, room, "me", seq=hidden).answer
    door.mark(bob, room, deleted).answer
    api.ok("room/SetRole", room_id=room, account_id=bob, role="admin", by=olga)
    api.ok("room/Mute", room_id=room, account_id=alice, for_ms=3600000, by=adam)

    def state(api):
        listed = api.ok("room/ListAccounts", room_id=room)["accounts"]
        return (api.pull_all(room), api.pull_all(room, account_id=bob), [one for one in listed if one["account_id"] != alice],
            [one.get("muted_until") for one in listed], api.ok("history/Unread", account_id=bob, room_ids=[room]))

    before = state(api)
    owner = cluster.owner_of(room)
    owner.kill9()
    api, door = cluster.api, CallDoor(cluster)
    assert wait_for(lambda: cluster.owner_of(room) is not owner, 30)
    assert state(api) == before
    api.until_ok("history/Recall", room_id=room, account_id=bob, seq=open_one, request_id="after")  # an admin now
    door.edit(alice, room, "no", seq=edited).refused("forbidden")
    door.edit(alice, room, "no", seq=recalled).refused("forbidden")
    api.ok("room/Mute", room_id=room, account_id=alice, until=0)
    door.edit(alice, room, "no", seq=recalled).refused("conflict")
    door.edit(alice, room, "again", message_id=message_id(room, alice, "c0")).answer
    assert entry_at(api, room, edited)["content"] == "again"
    cluster.check_log([room])
