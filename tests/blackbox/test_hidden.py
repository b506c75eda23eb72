"""What an account deleted for itself, and what is no news, in streams and lists; by call and by frame."""
import pytest

from doors import fresh


@pytest.fixture
def people():
    return fresh("alice", "bob")


@pytest.fixture
def room(api, people):
    return api.create_room(*people)["room_id"]


def say(api, room, sender, content, **fields):
    return api.push(room, sender, content, wait="durable", **fields)["seq"]


def test_a_stream_that_resumes_leaves_out_what_its_account_hid(cluster, api, door, room, people):
    alice, bob = people
    begin = api.ok("room/Get", room_id=room)["room"]["head"]
    kept, hidden, last = (say(api, room, bob, text) for text in ("kept", "hidden", "behind it"))
    door.delete(alice, room, "me", seq=hidden).answer
    for account, left_out in ((alice, {hidden}), (bob, set())):
        stream = cluster.open_stream(account, [{"room_id": room, "after": begin}])
        stream.read_message(room, content="behind it")
        assert set(stream.seqs(room)) == {kept, hidden, last} - left_out


def test_the_last_entry_of_a_list_is_the_newest_news_one_can_see(api, door, room, people):
    alice, bob = people

    def last(account):
        return next(one for one in api.ok("room/ListRooms", account_id=account)["rooms"] if one["room_id"] == room)["last"]

    assert last(alice) is None
    first, second = say(api, room, bob, "first"), say(api, room, bob, "second")
    assert last(alice)["seq"] == last(bob)["seq"] == second
    door.edit(bob, room, "first!", seq=first).answer
    assert last(alice)["seq"] == second
    door.delete(alice, room, "me", seq=second).answer
    assert (last(alice)["seq"], last(alice)["content"], last(bob)["seq"]) == (first, "first!", second)
    door.recall(bob, room, seq=second).answer
    assert (last(bob)["seq"], last(bob)["state"]) == (second, "recalled")
    api.ok("room/Mute", room_id=room, account_id=alice, until=0)  # a void
    assert last(bob)["seq"] == second
    api.ok("room/Update", room_id=room, name="new")
    assert last(alice)["type"] == last(bob)["type"] == "room.updated"
