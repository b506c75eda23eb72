"""A repeat that the owner's memory does not know any more: shown early, found out by the COMMIT, taken back by a void."""
import contextlib
import time

import pytest

from roomd import TRANSPORTS


def test_a_late_duplicate_becomes_a_void_and_readers_are_told(new_cluster):
    """On the owner and on another instance."""
    cluster = new_cluster(2, {"dedup_window": 0})
    room = cluster.api.create_room("alice", "bob")["room_id"]
    earlies, durables = ([cluster.open_stream("bob", [room], deliver=deliver, endpoint=instance) for instance in cluster.instances]
        for deliver in ("early", "durable"))
    publisher = cluster.publisher()
    publisher.publish(room, "alice", content="once", client_msg_id="c1")
    cluster.api.pull_until(room, 1)
    publisher.publish(room, "alice", content="once", client_msg_id="c1")
    publisher.publish(room, "alice", content="next", client_msg_id="c2")
    entries = cluster.api.pull_until(room, 3)
    assert [entry["type"] for entry in entries] == ["message", "void", "message"]
    assert entries[1]["of_seq"] == 1
    for early in earlies:
        void = early.read_type("void", room_id=room)
        assert (void["seq"], void["of_seq"]) == (2, 1)
    for durable in durables:
        durable.read_message(room, content="next")
        assert [(event["type"], event["seq"]) for event in durable.log_events(room)] == [("message", 1), ("void", 2), ("message", 3)]
    assert cluster.dead_letters() == []


def test_a_late_repeat_with_other_content_is_a_dead_letter(new_cluster):
    cluster = new_cluster(settings={"dedup_window": 0})
    room = cluster.api.create_room("alice", "bob")["room_id"]
    publisher = cluster.publisher()
    publisher.publish(room, "alice", content="one", client_msg_id="c1")
    cluster.api.pull_until(room, 1)
    publisher.publish(room, "alice", content="another", client_msg_id="c1")
    entries = cluster.api.pull_until(room, 2)
    assert [entry["type"] for entry in entries] == ["message", "void"]
    dead = cluster.dead_letters(deadline=30)
    assert [(letter["reason"], letter["room_id"]) for letter in dead] == [("conflict", room)]
    assert b"another" in dead[0]["body"]


@contextlib.contextmanager
def commits_held_up(cluster):
    """The log takes no entries meanwhile; everything else goes on."""
    with contextlib.closing(cluster.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("LOCK TABLE log_entry IN SHARE MODE")
        yield
        cursor.execute("ROLLBACK")


def shown_early(cluster, room):
    """seq 1 is in the log; 2, which repeats it, and 3 were shown early. The cursor of who has seen them."""
    publisher = cluster.publisher()
    publisher.publish(room, "alice", content="once", client_msg_id="c1")
    cluster.api.pull_until(room, 1)
    reader = cluster.open_stream("bob", [room], deliver="early", endpoint=cluster.owner_of(room))
    reader.read_type("hello")
    with commits_held_up(cluster):
        publisher.publish(room, "alice", content="once", client_msg_id="c1")
        publisher.publish(room, "alice", content="next", client_msg_id="c2")
        reader.read_message(room, content="once", seq=2)
        reader.read_message(room, content="next", seq=3)
        reader.close()
        yield f"{room}@{reader.cursors[room]}"
    cluster.api.pull_until(room, 3)
    yield f"{room}@{reader.cursors[room]}"


def voids(events):
    return [(event["seq"], event["of_seq"]) for event in events if event["type"] == "void"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_who_was_cut_off_before_the_void_is_told_when_it_comes_back(new_cluster, transport):
    """On the owner, on another instance, and on both after the owner was replaced."""
    cluster = new_cluster(2, {"dedup_window": 0})
    room = cluster.api.create_room("alice", "bob")["room_id"]
    *_, position = shown_early(cluster, room)
    owner = cluster.owner_of(room)
    for turn, content in enumerate(("later", "last")):
        back = [cluster.open_stream("bob", [room], transport=transport, after=[position], endpoint=instance) for instance in cluster.instances]
        if transport != "poll":  # its answer does not hurry for that
            for stream in back:
                hello, void = stream.read_type("hello"), stream.read_type("void")
                assert (void["room_id"], void["seq"], void["of_seq"]) == (room, 2, 1)
                assert hello["rooms"][0]["durable_seq"] == 1  # not of what is about to be taken back
                assert stream.read_type("durable")["seq"] >= 3
        cluster.publisher().publish(room, "alice", content=content)
        for stream in back:
            stream.read_until(lambda event, content=content: event.get("content") == content)
            told = [event for event in stream.events if event["type"] in ("void", "message")]
            assert voids(told)[0] == (2, 1) and told[0]["type"] == "void", told
            assert transport == "poll" or [event["seq"] for event in told] == [2, *range(4, 5 + turn)]
            stream.close()
        if turn == 0:
            owner.kill9()
            owner.start()
            owner.wait_ready()
            cluster.wait_spread()


@pytest.mark.parametrize("elsewhere", [False, True], ids=["owner", "elsewhere"])
def test_who_comes_back_before_the_commit_is_told_too(new_cluster, elsewhere):
    cluster = new_cluster(2, {"dedup_window": 0})
    room = cluster.api.create_room("alice", "bob")["room_id"]
    steps = shown_early(cluster, room)
    position = next(steps)
    back = cluster.open_stream("bob", [room], after=[position], endpoint=next(one for one in cluster.instances if (one is cluster.owner_of(room)) != elsewhere))
    assert back.read_type("hello")["rooms"][0]["durable_seq"] == 1
    next(steps)
    assert back.read_type("void")["seq"] == 2
    cluster.publisher().publish(room, "alice", content="later")
    back.read_message(room, content="later", seq=4)
    assert [event["seq"] for event in back.events if event["type"] == "durable"][:1] != [2]


def test_who_stands_below_the_void_or_far_above_it_is_told_nothing_more(new_cluster):
    """Below it, it comes in its place. Far above: more than may have been under way when it was shown."""
    cluster = new_cluster(2, {"dedup_window": 0, "prefetch": 5})
    room = cluster.api.create_room("alice", "bob")["room_id"]
    *_, position = shown_early(cluster, room)
    epoch = position.rpartition("@")[2].partition(":")[0]
    publisher = cluster.publisher()
    for number in range(4):
        publisher.publish(room, "alice", content=f"more {number}")
    cluster.api.pull_until(room, 7)
    for seq, expected in ((1, [(2, 1)]), (2, [(2, 1)]), (6, [(2, 1)]), (7, [])):
        for instance in cluster.instances:
            back = cluster.open_stream("bob", [room], after=[f"{room}@{epoch}:{seq}"], endpoint=instance)
            back.read_type("hello")
            cluster.api.push(room, "alice", f"after {seq} on {instance.name}")  # an entry: it comes behind whatever else the log has for this reader
            back.read_message(room, content=f"after {seq} on {instance.name}")
            assert voids(back.events) == expected, (seq, back.events)


def test_a_long_poll_does_not_spin_for_what_was_taken_back(new_cluster):
    cluster = new_cluster(1, {"dedup_window": 0, "stream_poll_hold_ms": 1500})
    room = cluster.api.create_room("alice", "bob")["room_id"]
    *_, position = shown_early(cluster, room)
    poll = cluster.open_stream("bob", [room], transport="poll", after=[position], background=False)
    began = time.monotonic()
    assert voids(poll.poll()) == [(2, 1)]
    assert time.monotonic() - began >= 1.4
