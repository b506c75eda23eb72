"""Rooms and members, through the service calls."""
import concurrent.futures
import itertools
import re
import threading

import pytest

from roomd import new_id, wait_for

numbers = itertools.count(1)


def fresh(word):
    """A name nobody used before in this session."""
    return f"{word}-{new_id()}"


def accounts_of(api, room_id, **fields):
    return {one["account_id"]: one for one in api.ok("room/ListAccounts", room_id=room_id, **fields)["accounts"]}


# --- Create ---


def test_a_room_is_shown_as_the_protocol_says(api):
    answer = api.ok("room/Create", kind="group", key=fresh("key"), name="Büro \"1\"\n", owner="olga", members=["alice", "bob"], member_limit=10,
        history="since_join", extra={"colour": "blue", "n": 1.50})
    room = answer["room"]
    assert answer["created"] is True
    assert re.fullmatch(r"s\d+\.[0-9A-HJKMNP-TV-Z]{26}", room["room_id"])
    assert room == {"room_id": room["room_id"], "key": room["key"], "kind": "group", "name": "Büro \"1\"\n", "notice": "", "owner": "olga",
        "members": 3, "member_limit": 10, "history": "since_join", "extra": {"colour": "blue", "n": 1.5}, "state": "open", "head": "0:0",
        "last_at": room["created_at"], "created_at": room["created_at"]}
    members = accounts_of(api, room["room_id"])
    assert {name: one["role"] for name, one in members.items()} == {"olga": "owner", "alice": "member", "bob": "member"}
    assert {one["join_seq"] for one in members.values()} == {0}
    assert api.pull(room["room_id"])["entries"] == []


def test_nothing_has_to_be_said_about_a_room(api):
    room = api.ok("room/Create")["room"]
    assert (room["kind"], room["members"], room["member_limit"], room["history"], room["key"], room["owner"], room["extra"]) == \
        ("group", 0, 0, "all", None, None, {})


def test_the_same_key_is_the_same_room_unchanged(api):
    key = fresh("key")
    first = api.ok("room/Create", key=key, name="one", members=["alice"])
    again = api.ok("room/Create", key=key, name="two", members=["bob"], kind="live")
    assert first["created"] and not again["created"] and again["room"] == first["room"]
    assert set(accounts_of(api, first["room"]["room_id"])) == {"alice"}


def test_a_repeated_request_gets_the_first_result_and_another_body_is_a_conflict(api):
    request = fresh("request")
    first = api.ok("room/Create", request_id=request, name="one", members=["alice"])
    assert api.ok("room/Create", request_id=request, name="one", members=["alice"]) == first
    assert api.error("room/Create", request_id=request, name="two", members=["alice"]) == (409, "conflict")


@pytest.mark.parametrize("what", ["key", "pair", "request"])
def test_fifty_callers_at_once_make_one_room(cluster, what):
    name = fresh("x")
    body = {"key": {"key": name}, "pair": {"kind": "direct"}, "request": {"request_id": name}}[what]
    start = threading.Barrier(50)
    apis = itertools.cycle(instance.api for instance in cluster.alive)

    def create(number, api):
        members = [name, "zoe"] if number % 2 else ["zoe", name]
        fields = dict(body, members=members if what == "pair" else [name])
        start.wait(30)
        return api.ok("room/Create", fields)

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(create, range(50), [next(apis) for _ in range(50)]))
    assert len({answer["room"]["room_id"] for answer in answers}) == 1
    assert sum(answer["created"] for answer in answers) == (50 if what == "request" else 1)
    assert cluster.rows("select count(*) from room_member where account = %s", name) == [(1,)]


def test_a_direct_room_is_found_by_its_pair_in_any_order(api):
    a, b = fresh("a"), fresh("b")
    first = api.ok("room/Create", kind="direct", members=[a, b])
    again = api.ok("room/Create", kind="direct", members=[b, a], name="ignored")
    assert again["room"] == first["room"] and not again["created"] and first["room"]["members"] == 2


def test_the_members_of_a_direct_room_are_fixed(api):
    room = api.ok("room/Create", kind="direct", members=[fresh("a"), fresh("b")])["room"]["room_id"]
    assert api.error("room/AddAccount2Room", room_id=room, account_id="eve") == (403, "forbidden")
    assert api.error("room/RmAccountFromRoom", room_id=room, account_id="eve") == (403, "forbidden")


@pytest.mark.parametrize("fields", [dict(members=["a"]), dict(members=["a", "a"]), dict(members=["a", "b", "c"]), dict(members=["a", "b"], key="k"),
    dict(members=["a", "b"], owner="c"), {}])
def test_a_direct_room_takes_exactly_two_members_and_no_key(api, fields):
    assert api.error("room/Create", kind="direct", **fields) == (400, "bad_request")


def test_shards_are_used_evenly(api):
    shards = [api.ok("room/Create")["room"]["room_id"].partition(".")[0] for _ in range(200)]
    assert len(set(shards)) == 8
    assert all(shards.count(shard) >= 8 for shard in set(shards))


# --- Get ---


def test_a_room_is_got_by_id_by_key_and_among_others(api):
    key = fresh("key")
    one, two = api.create_room("alice", key=key), api.create_room()
    assert api.ok("room/Get", room_id=one["room_id"])["room"] == one
    assert api.ok("room/Get", key=key)["room"] == one
    unknown = "s00.01KC46E0D7X8BQXSRB29FJP960"
    assert api.ok("room/Get", room_ids=[two["room_id"], unknown, "nope", one["room_id"]])["rooms"] == [two, one]
    assert api.error("room/Get", room_id=unknown) == (404, "no_such_room")
    assert api.error("room/Get", key=fresh("key")) == (404, "no_such_room")


def test_the_head_and_the_time_follow_what_is_said(api):
    room = api.create_room("alice")
    api.push(room["room_id"], "alice", "hello", wait="durable")
    after = api.ok("room/Get", room_id=room["room_id"])["room"]
    assert int(after["head"].split(":")[0]) >= 1 and after["head"].split(":")[1] == "1"
    assert after["last_at"] >= room["last_at"]
    assert {k: v for k, v in after.items() if k not in ("head", "last_at")} == {k: v for k, v in room.items() if k not in ("head", "last_at")}


# --- Update, Remove ---


def test_an_update_is_answered_with_the_room_as_it_is_then(api):
    room = api.create_room("alice", "bob", name="old")
    answer = api.ok("room/Update", room_id=room["room_id"], name="new \"name\"", notice="read this", owner="bob", member_limit=5, extra={"a": [1]})
    changed = answer["room"]
    assert (changed["name"], changed["notice"], changed["owner"], changed["member_limit"], changed["extra"]) == \
        ("new \"name\"", "read this", "bob", 5, {"a": [1]})
    assert accounts_of(api, room["room_id"])["bob"]["role"] == "owner"
    entry = api.pull(room["room_id"])["entries"][-1]
    assert entry["type"] == "room.updated" and entry["name"] == "new \"name\"" and entry["seq"] == 1
    assert api.ok("room/Update", room_id=room["room_id"], name="")["room"]["name"] == ""
    assert api.ok("room/Update", room_id=room["room_id"], name="x")["room"]["notice"] == "read this"


def test_a_removed_room_is_gone_and_still_readable(api):
    key = fresh("key")
    room = api.create_room("alice", key=key)["room_id"]
    api.push(room, "alice", "last words", wait="durable")
    assert api.ok("room/Remove", room_id=room) == {}
    assert api.ok("room/Remove", room_id=room) == {}
    assert api.ok("room/Get", room_id=room)["room"]["state"] == "removed"
    assert api.error("history/Push", room_id=room, sender="alice", kind="text", content="x") == (410, "room_gone")
    assert api.error("room/AddAccount2Room", room_id=room, account_id="bob") == (410, "room_gone")
    assert api.error("room/Update", room_id=room, name="x") == (410, "room_gone")
    # What came after it changed nothing, and every op takes a seq.
    assert [entry["type"] for entry in api.pull(room, account_id="alice")["entries"]] == ["message", "room.removed", "void", "void", "void"]
    assert api.error("room/Get", key=key) == (404, "no_such_room")
    again = api.ok("room/Create", key=key)
    assert again["created"] and again["room"]["room_id"] != room


def test_a_direct_room_can_be_opened_anew_after_its_removal(api):
    pair = [fresh("a"), fresh("b")]
    first = api.create_room(*pair, kind="direct")["room_id"]
    api.ok("room/Remove", room_id=first)
    assert api.create_room(*pair, kind="direct")["room_id"] != first


# --- members ---


def test_accounts_are_added_once_and_told_apart(api):
    room = api.create_room("alice")["room_id"]
    answer = api.ok("room/AddAccount2Room", room_id=room, account_ids=["bob", "alice", "carol", "bob"])
    assert sorted(answer["added"]) == ["bob", "carol"] and answer["already"] == ["alice"]
    assert api.ok("room/AddAccount2Room", room_id=room, account_id="bob") == {"added": [], "already": ["bob"]}
    members = accounts_of(api, room)
    assert members["bob"]["join_seq"] == members["carol"]["join_seq"] == 1 and members["bob"]["role"] == "member"
    assert api.ok("room/Get", room_id=room)["room"]["members"] == 3
    joined = api.pull(room)["entries"][0]
    assert joined["type"] == "member.joined" and sorted(joined["account_ids"]) == ["bob", "carol"]


def test_an_admin_is_added_as_one(api):
    room = api.create_room()["room_id"]
    api.ok("room/AddAccount2Room", room_id=room, account_id="ada", role="admin")
    assert accounts_of(api, room)["ada"]["role"] == "admin"


def test_the_member_limit_is_all_or_nothing(api):
    room = api.create_room("a", "b", member_limit=3)["room_id"]
    assert api.error("room/AddAccount2Room", room_id=room, account_ids=["c", "d"]) == (409, "room_full")
    assert set(accounts_of(api, room)) == {"a", "b"}
    assert api.ok("room/AddAccount2Room", room_id=room, account_ids=["b", "c"])["added"] == ["c"]
    assert api.error("room/AddAccount2Room", room_id=room, account_id="d") == (409, "room_full")
    assert api.error("room/Create", members=["a", "b"], member_limit=1) == (409, "room_full")


def test_accounts_are_removed_once_and_told_apart(api):
    room = api.create_room("alice", "bob")["room_id"]
    answer = api.ok("room/RmAccountFromRoom", room_id=room, account_ids=["bob", "zoe"], reason="moved on")
    assert answer == {"removed": ["bob"], "absent": ["zoe"]}
    assert api.ok("room/RmAccountFromRoom", room_id=room, account_id="bob") == {"removed": [], "absent": ["bob"]}
    assert set(accounts_of(api, room)) == {"alice"}
    left = api.pull(room)["entries"][0]
    assert (left["type"], left["account_ids"], left["reason"]) == ("member.left", ["bob"], "moved on")
    assert api.error("history/Push", room_id=room, sender="bob", kind="text", content="x") == (403, "not_member")
    assert api.error("history/Pull", room_id=room, account_id="bob") == (403, "not_member")


def test_a_change_repeated_under_its_request_id_gets_the_first_result(api):
    room = api.create_room()["room_id"]
    first = api.ok("room/AddAccount2Room", room_id=room, account_id="bob", request_id="r1")
    assert first == {"added": ["bob"], "already": []}
    assert api.ok("room/AddAccount2Room", room_id=room, account_id="bob", request_id="r1") == first
    assert api.error("room/AddAccount2Room", room_id=room, account_id="eve", request_id="r1") == (409, "conflict")
    assert api.pull(room)["durable_seq"] == 1
    other = api.create_room()["room_id"]  # its scope is the room
    assert api.ok("room/AddAccount2Room", room_id=other, account_id="eve", request_id="r1")["added"] == ["eve"]


def test_changes_of_a_room_that_is_not_there(api):
    unknown = "s00.01KC46E0D7X8BQXSRB29FJP960"
    for method, fields in [("Update", {"name": "x"}), ("Remove", {}), ("AddAccount2Room", {"account_id": "a"}),
            ("RmAccountFromRoom", {"account_id": "a"}), ("ListAccounts", {})]:
        assert api.error(f"room/{method}", room_id=unknown, **fields) == (404, "no_such_room"), method
        assert api.error(f"room/{method}", room_id="s99.01KC46E0D7X8BQXSRB29FJP960", **fields) == (404, "no_such_room"), method


# --- lists ---


def test_members_are_listed_page_by_page(api):
    names = sorted(f"m{number:03}" for number in range(25))
    room = api.create_room(*names)["room_id"]
    seen, after, pages = [], {}, 0
    while True:
        answer = api.ok("room/ListAccounts", room_id=room, limit=10, **after)
        seen += [one["account_id"] for one in answer["accounts"]]
        pages += 1
        if "next" not in answer:
            break
        after = {"after": answer["next"]}
    assert seen == names and pages == 3
    assert api.error("room/ListAccounts", room_id=room, after="zz") == (400, "bad_request")


def test_a_page_that_is_exactly_full_is_the_last_one(api):
    room = api.create_room("a", "b")["room_id"]
    assert "next" not in api.ok("room/ListAccounts", room_id=room, limit=2)
    assert api.ok("room/ListAccounts", room_id=api.create_room()["room_id"]) == {"accounts": []}


def test_only_the_accounts_asked_for_are_listed(api):
    room = api.create_room("a", "b", "c")["room_id"]
    assert set(accounts_of(api, room, account_ids=["c", "nobody", "a"])) == {"a", "c"}


def test_rooms_are_listed_newest_activity_first(api):
    me = fresh("me")
    rooms = [api.create_room(me, "peer")["room_id"] for _ in range(5)]
    gone = api.create_room(me)["room_id"]
    api.ok("room/Remove", room_id=gone)
    for room in (rooms[3], rooms[1]):
        api.push(room, me, "my own", wait="durable")
        api.push(room, "peer", f"to {room}", wait="durable")
    wait_for(lambda: all(room["read_seq"] == 1 for room in api.ok("room/ListRooms", account_id=me)["rooms"][:2]),
        what="the sender's own cursors")
    listed = api.ok("room/ListRooms", account_id=me)
    assert "next" not in listed and len(listed["rooms"]) == 5
    assert [room["room_id"] for room in listed["rooms"]][:2] == [rooms[1], rooms[3]]
    first, last = listed["rooms"][0], listed["rooms"][4]
    assert first["last"] == api.pull(rooms[1])["entries"][-1]
    assert (first["unread"], first["mentioned"], first["read_seq"]) == (1, 0, 1)
    assert last["last"] is None and last["unread"] == 0
    assert {key: first[key] for key in first if key not in ("read_seq", "unread", "mentioned", "last")} == \
        api.ok("room/Get", room_id=rooms[1])["room"]


def test_rooms_are_listed_page_by_page(api):
    me = fresh("me")
    rooms = {api.create_room(me)["room_id"] for _ in range(7)}
    seen, after = [], {}
    for _ in range(10):
        answer = api.ok("room/ListRooms", account_id=me, limit=3, **after)
        seen += [room["room_id"] for room in answer["rooms"]]
        if "next" not in answer:
            break
        after = {"after": answer["next"]}
    assert len(seen) == 7 and set(seen) == rooms
    assert api.error("room/ListRooms", account_id=me, after="x.y") == (400, "bad_request")


def test_mentions_and_unread_leave_out_tips_and_own_messages(api):
    me = fresh("me")
    room = api.create_room(me, "peer")["room_id"]
    api.push(room, me, "mine", mentions=[me], wait="durable")
    wait_for(lambda: api.ok("room/ListRooms", account_id=me)["rooms"][0]["read_seq"] == 1)
    api.push(room, "peer", "1")
    api.push(room, "peer", "2", mentions=[me])
    api.push(room, "peer", "3", mentions=["@all"])
    api.push(room, "peer", "4", mentions=["somebody"])
    api.push(room, "@system", {"body": "tip"}, kind="tip", wait="durable")
    listed = api.ok("room/ListRooms", account_id=me)["rooms"][0]
    assert (listed["unread"], listed["mentioned"]) == (4, 2)


def test_an_account_in_no_room_has_an_empty_list(api):
    assert api.ok("room/ListRooms", account_id=fresh("nobody")) == {"rooms": []}


def test_every_instance_answers_the_same(cluster):
    room = cluster.api.create_room("alice")
    cluster.api.push(room["room_id"], "alice", "hello", wait="durable")
    first, second = (instance.api for instance in cluster.instances)
    assert first.ok("room/Get", room_id=room["room_id"]) == second.ok("room/Get", room_id=room["room_id"])
    assert second.ok("room/AddAccount2Room", room_id=room["room_id"], account_id="bob")["added"] == ["bob"]
    assert first.ok("room/RmAccountFromRoom", room_id=room["room_id"], account_id="bob")["removed"] == ["bob"]
    wait_for(lambda: first.pull(room["room_id"]) == second.pull(room["room_id"]))
