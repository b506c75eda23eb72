"""Owner, admin, member: the table of rules, mutes, mentions of all; what calls say whose act it is, and what streams show."""
import datetime
import time

import pytest

from doors import GENERIC, CallDoor, FrameDoor, fresh, room_of_four
from roomd import wait_for

HOUR = 3600000


@pytest.fixture
def people():
    return fresh("olga", "adam", "alice", "bob")


@pytest.fixture
def room(api, people):
    """olga owns it, adam is admin, alice and bob are members."""
    return room_of_four(api, people)


def members(api, room):
    return {one["account_id"]: one for one in api.ok("room/ListAccounts", room_id=room)["accounts"]}


def roles(api, room):
    return {name: one["role"] for name, one in members(api, room).items()}


def refused(api, code, method, **fields):
    """The sentence."""
    status, answer = api.call(method, fields)
    assert status != 200, f"{method} {fields} was accepted: {answer}"
    assert answer["error"]["code"] == code, answer
    return answer["error"]["message"]


def now_ms():
    return int(time.time() * 1000)


# --- the table ---

# act -> (call, the least role of whom it is open to); the member it is about is bob.
ACTS = {
    "add": (lambda bob: ("room/AddAccount2Room", {"account_id": fresh("new")}), "admin"),
    "add an admin": (lambda bob: ("room/AddAccount2Room", {"account_id": fresh("new"), "role": "admin"}), "owner"),
    "remove": (lambda bob: ("room/RmAccountFromRoom", {"account_id": bob}), "admin"),
    "rename": (lambda bob: ("room/Update", {"name": "n"}), "admin"),
    "extra": (lambda bob: ("room/Update", {"extra": {"a": 1}}), "admin"),
    "limit": (lambda bob: ("room/Update", {"member_limit": 100}), "admin"),
    "notice": (lambda bob: ("room/Update", {"notice": "n"}), "admin"),
    "mute": (lambda bob: ("room/Mute", {"account_id": bob, "for_ms": HOUR}), "admin"),
    "mute the room": (lambda bob: ("room/Mute", {"for_ms": HOUR}), "admin"),
    "role": (lambda bob: ("room/SetRole", {"account_id": bob, "role": "admin"}), "owner"),
    "hand over": (lambda bob: ("room/Update", {"owner": bob}), "owner"),
    "remove the room": (lambda bob: ("room/Remove", {}), "owner"),
}
POWER = ["stranger", "member", "admin", "owner", "business"]


@pytest.mark.parametrize("act", ACTS)
def test_each_act_takes_its_role(api, room, people, act):
    make, least = ACTS[act]
    olga, adam, alice, bob = people
    actors = dict(zip(POWER, (fresh("eve"), alice, adam, olga, None)))
    for power in POWER:
        method, fields = make(bob)
        if power == "business":
            room = room_of_four(api, people)  # the owner's act may have changed who is what
        if actors[power]:
            fields["by"] = actors[power]
        if power == "stranger":
            refused(api, "not_member", method, room_id=room, **fields)
        elif POWER.index(power) < POWER.index(least):
            assert refused(api, "forbidden", method, room_id=room, **fields) != GENERIC
        else:
            api.ok(method, room_id=room, **fields)
            if power == "admin":
                room = room_of_four(api, people)


def test_only_those_of_a_lower_role_are_removed_or_muted_all_or_none(api, room, people):
    olga, adam, alice, bob = people
    api.ok("room/SetRole", room_id=room, account_id=alice, role="admin")
    for target in (olga, alice):
        refused(api, "forbidden", "room/RmAccountFromRoom", room_id=room, account_ids=[bob, target], by=adam)
        refused(api, "forbidden", "room/Mute", room_id=room, account_ids=[bob, target], for_ms=HOUR, by=adam)
    assert len(members(api, room)) == 4 and not any("muted_until" in one for one in members(api, room).values())
    assert api.ok("room/Mute", room_id=room, account_ids=[adam, bob], for_ms=HOUR, by=olga) == {"muted": [adam, bob], "absent": []}
    stranger = fresh("eve")
    assert api.ok("room/RmAccountFromRoom", room_id=room, account_ids=[adam, stranger], by=olga) == {"removed": [adam], "absent": [stranger]}


def test_the_table_is_a_setting(new_cluster, people):
    api = new_cluster(settings={"role_rules": "add=member,role=admin,mention_all=admin,rename=owner"}).api
    olga, adam, alice, bob = people
    room = room_of_four(api, people)
    new = fresh("new")
    assert api.ok("room/AddAccount2Room", room_id=room, account_id=new, by=alice)["added"] == [new]
    refused(api, "forbidden", "room/AddAccount2Room", room_id=room, account_id=fresh("new"), role="admin", by=alice)
    api.ok("room/SetRole", room_id=room, account_id=bob, role="admin", by=adam)
    refused(api, "forbidden", "room/Update", room_id=room, name="n", by=adam)
    api.ok("room/Update", room_id=room, notice="n", by=adam)
    assert "admin" in refused(api, "forbidden", "history/Push", room_id=room, sender=alice, kind="text", content="x", mentions=["@all"])
    api.push(room, adam, "x", mentions=["@all"])
    api.push(room, "@system", "x", mentions=["@all"])


def test_whose_act_it_is_must_be_an_account(api, room):
    for by in ("@system", "", 5):
        status, answer = api.call("room/Update", room_id=room, name="n", by=by)
        assert (status, answer["error"]["field"]) == (400, "by")


# --- what it does ---


def test_another_name_and_notice_reach_every_stream_with_whose_act_it_was(cluster, api, room, people):
    """R-13, R-14"""
    stream = cluster.open_stream(people[3], [room])
    api.ok("room/Update", room_id=room, name="new name", by=people[1])
    assert stream.read_type("room.updated", name="new name")["by"] == people[1]
    api.ok("room/Update", room_id=room, notice="come at five")
    event = stream.read_type("room.updated", notice="come at five")
    assert "by" not in event
    shown = api.ok("room/Get", room_id=room)["room"]
    assert (shown["name"], shown["notice"]) == ("new name", "come at five")


def test_another_role_is_listed_and_told(cluster, api, room, people):
    """R-15"""
    olga, adam, alice, bob = people
    stream, stranger = cluster.open_stream(bob, [room]), fresh("eve")
    assert api.ok("room/SetRole", room_id=room, account_ids=[alice, stranger], role="admin", by=olga) == {"changed": [alice], "absent": [stranger]}
    event = stream.read_type("member.updated")
    assert (event["account_ids"], event["role"], event["by"]) == ([alice], "admin", olga)
    assert roles(api, room) == {olga: "owner", adam: "admin", alice: "admin", bob: "member"}
    api.ok("room/SetRole", room_id=room, account_id=alice, role="member")
    assert stream.read_type("member.updated")["role"] == "member"
    before = api.pull_all(room)
    api.ok("room/SetRole", room_id=room, account_id=alice, role="member")  # nothing new
    assert api.pull_all(room)[len(before):][0]["type"] == "void"
    assert refused(api, "forbidden", "room/SetRole", room_id=room, account_id=olga, role="member") != GENERIC
    refused(api, "bad_request", "room/SetRole", room_id=room, account_id=alice, role="owner")
    refused(api, "bad_request", "room/SetRole", room_id=room, account_id=alice)


def test_a_member_kicks_nobody_and_the_owner_does(cluster, api, room, people):
    """R-16"""
    olga, _, alice, bob = people
    kicked = cluster.open_stream(bob, [room])
    refused(api, "forbidden", "room/RmAccountFromRoom", room_id=room, account_id=bob, by=alice)
    api.ok("room/RmAccountFromRoom", room_id=room, account_id=bob, by=olga, reason="kicked")
    kicked.read_type("room.left")
    left = api.pull_all(room)[-1]
    assert (left["type"], left["account_ids"], left["by"], left["reason"]) == ("member.left", [bob], olga, "kicked")


def test_the_owner_hands_the_room_over_before_it_leaves(cluster, api, room, people):
    """R-17"""
    olga, adam, alice, bob = people
    stream = cluster.open_stream(bob, [room])
    assert "hand" in refused(api, "forbidden", "room/RmAccountFromRoom", room_id=room, account_id=olga, by=olga)
    api.ok("room/Update", room_id=room, owner=alice, by=olga)
    assert stream.read_type("room.updated")["owner"] == alice
    assert roles(api, room) == {olga: "member", adam: "admin", alice: "owner", bob: "member"}
    refused(api, "forbidden", "room/Update", room_id=room, owner=olga, by=olga)
    for account in (olga, adam, bob):  # oneself, whatever the role
        api.ok("room/RmAccountFromRoom", room_id=room, account_id=account, by=account)
    api.ok("room/RmAccountFromRoom", room_id=room, account_id=alice, by=alice)  # nobody else is in it
    assert members(api, room) == {}


def test_the_two_of_a_direct_room_are_equal(api):
    a, b = fresh("a", "b")
    room = api.create_room(a, b, kind="direct")["room_id"]
    for by in ({}, {"by": a}):
        assert refused(api, "forbidden", "room/AddAccount2Room", room_id=room, account_id=fresh("c"), **by) != GENERIC
        refused(api, "forbidden", "room/RmAccountFromRoom", room_id=room, account_id=b, **by)
        refused(api, "forbidden", "room/SetRole", room_id=room, account_id=b, role="admin", **by)
        refused(api, "forbidden", "room/Update", room_id=room, owner=b, **by)
    refused(api, "forbidden", "room/Mute", room_id=room, account_id=b, for_ms=HOUR, by=a)
    assert api.ok("room/Mute", room_id=room, account_id=b, for_ms=HOUR)["muted"] == [b]


# --- mutes ---


def test_a_muted_member_may_not_speak_until_then(cluster, door, api, room, people):
    """R-18"""
    olga, adam, alice, bob = people
    mine = door.send(alice, room, "before").answer["message_id"]
    stream = cluster.open_stream(bob, [room])
    until = now_ms() + HOUR
    assert api.ok("room/Mute", room_id=room, account_id=alice, until=until, by=adam) == {"muted": [alice], "absent": []}
    event = stream.read_type("member.updated")
    assert (event["account_ids"], event["muted_until"], event["by"]) == ([alice], until, adam)
    assert members(api, room)[alice]["muted_until"] == until
    end = datetime.datetime.fromtimestamp(until // 1000, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    for sentence in (door.send(alice, room, "x").refused("forbidden"), door.send(alice, room, "x", transient=True).refused("forbidden"),
            door.edit(alice, room, "x", message_id=mine).refused("forbidden")):
        assert end in sentence and str(until) in sentence
    door.send(bob, room, "others go on").answer
    door.recall(alice, room, message_id=mine).answer
    until = now_ms() + 500
    assert api.ok("room/Mute", room_id=room, account_id=alice, until=until, by=adam) == {"muted": [alice], "absent": []}
    stream.read_type("member.updated", muted_until=until)
    wait_for(lambda: now_ms() > until)
    wait_for(lambda: door.send(alice, room, "again").error is None)
    assert "muted_until" not in members(api, room)[alice]
    wait_for(lambda: [entry["content"] for entry in api.pull_all(room) if entry["type"] == "message" and "content" in entry] == ["others go on", "again"])


def shown_mutes(api, room, account):
    """muted_until wherever the room is shown."""
    listed = next(one for one in api.ok("room/ListRooms", account_id=account)["rooms"] if one["room_id"] == room)
    return {one.get("muted_until") for one in (api.ok("room/Get", room_id=room)["room"], listed)}


def test_a_mute_that_is_over_is_not_shown(api, room, people):
    until = now_ms() + 300
    api.ok("room/Mute", room_id=room, until=until)
    wait_for(lambda: shown_mutes(api, room, people[2]) == {None})
    assert now_ms() >= until - 100  # the database's clock is the same one here


def test_a_muted_room_is_not_for_members(cluster, door, api, room, people):
    """R-18: owner and admins speak."""
    olga, adam, alice, bob = people
    stream = cluster.open_stream(bob, [room])
    until = now_ms() + HOUR
    assert api.ok("room/Mute", room_id=room, until=until, by=adam) == {}
    event = stream.read_type("room.updated")
    assert (event["muted_until"], event["by"]) == (until, adam)
    assert str(until) in door.send(alice, room, "x").refused("forbidden")
    assert shown_mutes(api, room, alice) == {until}
    door.send(adam, room, "admin").answer
    door.send(olga, room, "owner").answer
    api.push(room, "@system", "system")
    api.ok("room/SetRole", room_id=room, account_id=alice, role="admin")
    door.send(alice, room, "promoted").answer
    api.ok("room/Mute", room_id=room, until=0)
    stream.read_type("room.updated", muted_until=0)
    assert shown_mutes(api, room, alice) == {None}
    door.send(bob, room, "open again").answer
    wait_for(lambda: [entry["content"] for entry in api.pull_all(room) if entry["type"] == "message"] == ["admin", "owner", "system", "promoted", "open again"])


def test_a_mute_can_be_taken_back_and_what_changes_nothing_is_a_void(api, room, people):
    olga, adam, alice, bob = people
    until, stranger = now_ms() + HOUR, fresh("eve")
    assert api.ok("room/Mute", room_id=room, account_ids=[alice, stranger], until=until) == {"muted": [alice], "absent": [stranger]}
    before = len(api.pull_all(room))
    api.ok("room/Mute", room_id=room, account_id=alice, until=until)
    api.ok("room/Mute", room_id=room, until=0)
    assert [entry["type"] for entry in api.pull_all(room)[before:]] == ["void", "void"]
    api.ok("room/Mute", room_id=room, account_id=alice, until=0, by=adam)
    api.push(room, alice, "free")


def test_a_mute_is_for_so_long_or_until_then(api, room, people):
    for wrong in ({}, {"until": 1, "for_ms": 1}, {"for_ms": 0}, {"until": -1}, {"for_ms": "1"}):
        status, answer = api.call("room/Mute", room_id=room, account_id=people[2], **wrong)
        assert (status, answer["error"]["code"]) == (400, "bad_request") and answer["error"]["field"] in ("until", "for_ms")
    before = now_ms()
    api.ok("room/Mute", room_id=room, account_id=people[2], for_ms=HOUR)
    assert before + HOUR - 5000 <= members(api, room)[people[2]]["muted_until"] <= now_ms() + HOUR + 5000


def test_a_repeated_mute_is_the_same_mute_also_later(api, room, people):
    alice = people[2]
    first = api.ok("room/Mute", room_id=room, account_id=alice, for_ms=HOUR, request_id="m")
    until, begun = members(api, room)[alice]["muted_until"], now_ms()
    wait_for(lambda: now_ms() > begun + 5)
    assert api.ok("room/Mute", room_id=room, account_id=alice, for_ms=HOUR, request_id="m") == first
    assert members(api, room)[alice]["muted_until"] == until
    assert refused(api, "conflict", "room/Mute", room_id=room, account_id=alice, for_ms=HOUR + 1, request_id="m")
    first = api.ok("room/SetRole", room_id=room, account_id=alice, role="admin", request_id="s")
    assert api.ok("room/SetRole", room_id=room, account_id=alice, role="admin", request_id="s") == first
    refused(api, "conflict", "room/SetRole", room_id=room, account_id=alice, role="member", request_id="s")
    sentence = refused(api, "forbidden", "room/SetRole", room_id=room, account_id=alice, role="member", by=people[3], request_id="r")
    assert refused(api, "forbidden", "room/SetRole", room_id=room, account_id=alice, role="member", by=people[3], request_id="r") == sentence


def test_a_muted_sender_at_the_broker_is_told_on_its_streams(cluster, api, room, people):
    """What a gateway publishes by itself is a dead letter, and the messages behind it go on."""
    alice, bob = people[2:]
    until = now_ms() + HOUR
    api.ok("room/Mute", room_id=room, account_id=alice, until=until)
    stream = cluster.open_stream(alice, [room])
    cluster.dead_letters()
    publisher = cluster.publisher()
    publisher.publish(room, alice, content="muted", client_msg_id="m1")
    publisher.publish(room, bob, content="not muted")
    rejected = stream.read_type("message.rejected")
    assert (rejected["client_msg_id"], rejected["code"]) == ("m1", "forbidden") and str(until) in rejected["message"]
    stream.read_message(room, content="not muted")
    letters = []

    def of_this_room():
        letters.extend(cluster.dead_letters())  # those of earlier tests may still be coming
        return [letter["reason"] for letter in letters if letter["room_id"] == room]

    assert wait_for(of_this_room, what=lambda: letters) == ["forbidden"]


@pytest.mark.parametrize("kind", [CallDoor, FrameDoor])
def test_a_mention_of_all_takes_its_role(new_cluster, people, kind):
    cluster = new_cluster(settings={"role_rules": "mention_all=admin"})
    api, door = cluster.api, kind(cluster)
    olga, adam, alice, bob = people
    room = room_of_four(api, people)
    everybody = {"parts": [{"type": "mention", "mention_type": "all"}]}
    assert "admin" in door.send(alice, room, everybody, kind="rich_text").refused("forbidden")
    door.send(alice, room, "x", mentions=["@all"]).refused("forbidden")
    mine = door.send(alice, room, {"parts": []}, kind="rich_text").answer["message_id"]
    door.edit(alice, room, everybody, message_id=mine).refused("forbidden")
    door.send(adam, room, everybody, kind="rich_text").answer
    cluster.publisher().publish(room, alice, content="x", mentions=["@all"])
    assert [letter["reason"] for letter in cluster.dead_letters(deadline=10)] == ["forbidden"]
