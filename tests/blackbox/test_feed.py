"""What instances tell each other: a stream, a long poll or a call on one that does not own the room is served as by the owner, and what gets lost on
the way is found."""
import concurrent.futures
import contextlib
import time

import pytest

from roomd import wait_for


def metric(instance, name, **labels):
    found = [value for key, value in instance.metrics().items() if key.partition("{")[0] == name and all(f'{k}="{v}"' in key for k, v in labels.items())]
    assert found, f"{instance.name} has no {name} {labels}"
    return sum(found)


# The first of two instances owns the only shard, and keeps it as long as it can.
ONE_SHARD, OWNER, OTHER = {"shard_count": 1, "lease_ttl_ms": 4000}, {"weight": 10000}, {"weight": 1}


def owner_and_other(cluster, room):
    """Once no shard moves any more."""
    wait_for(lambda: {len(instance.readyz()[1]["shards"]) for instance in cluster.alive} == {4}, 30)
    owner = cluster.owner_of(room)
    return owner, next(instance for instance in cluster.alive if instance is not owner)


@pytest.fixture
def room(api):
    return api.create_room("alice", "bob")["room_id"]


@contextlib.contextmanager
def within(seconds):
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < seconds, f"took {took:.1f} s"


@pytest.mark.parametrize("deliver", ["early", "durable"])
def test_a_stream_elsewhere_is_served_as_by_the_owner(cluster, room, deliver):
    owner, other = owner_and_other(cluster, room)
    bob = cluster.open_stream("bob", [room], endpoint=other, deliver=deliver)
    bob.read_type("hello")
    wait_for(lambda: metric(owner, "roomd_feed_shards_told") >= 1)
    with contextlib.closing(cluster.publisher()) as publisher, within(10):  # a look a second would take twenty
        for number in range(20):
            publisher.publish(room, "alice", content=f"{number}")
            bob.read_message(room, content=f"{number}")
    assert bob.contiguous(room) == list(range(1, 21))


def test_a_call_elsewhere_is_answered_by_the_owner(cluster, room):
    owner, other = owner_and_other(cluster, room)
    heard = metric(other, "roomd_call_answers_heard_total")
    with within(8):  # half a second each, if the log had to be asked
        for number in range(10):
            first, again = (other.api.push(room, "alice", "x", wait="durable", client_msg_id=f"d{number}") for _ in range(2))
            assert first["duplicate"] is False and again == {**first, "duplicate": True}
    assert metric(other, "roomd_call_answers_heard_total") - heard >= 20
    assert other.api.push(room, "alice", "y", wait="sequenced")["seq"] == 11
    assert other.api.ok("room/AddAccount2Room", room_id=room, account_id="carol", request_id="once")["added"] == ["carol"]
    assert other.api.ok("room/AddAccount2Room", room_id=room, account_id="carol", request_id="once")["added"] == ["carol"]  # the first result
    assert other.api.ok("room/AddAccount2Room", room_id=room, account_id="carol")["already"] == ["carol"]
    assert other.api.error("history/Push", room_id=room, sender="alice", kind="text", content="not x", wait="durable", client_msg_id="d1") == (409, "conflict")


def test_a_long_poll_elsewhere_is_answered_when_there_is_something(cluster, room):
    owner, other = owner_and_other(cluster, room)
    after = "0:0"
    with concurrent.futures.ThreadPoolExecutor(1) as others, within(8):  # a look a second would take ten
        for number in range(10):
            answer = others.submit(other.api.ok, "history/Pull", room_id=room, after=after, wait_ms=20000)
            wait_for(lambda: metric(other, "roomd_pulls_waiting") == 1 and metric(owner, "roomd_feed_shards_told") >= 1)
            owner.api.push(room, "alice", f"{number}")
            after = answer.result()["head"]
    assert after.endswith(":10")


def test_nothing_is_told_of_a_shard_that_nobody_elsewhere_follows(new_cluster):
    cluster = new_cluster(0, ONE_SHARD)
    owner, other = cluster.start(settings=OWNER), cluster.start(settings=OTHER)
    room = owner.api.create_room("alice", "bob")["room_id"]
    assert cluster.owner_of(room) is owner
    bob = cluster.open_stream("bob", [room], endpoint=owner)
    for number in range(20):
        owner.api.push(room, "alice", f"{number}", wait="durable")
    bob.read_count(room, 20)
    wait_for(lambda: metric(other, "roomd_feed_messages_total", kind="beat", result="taken") > 1)
    assert metric(owner, "roomd_feed_messages_total", kind="log", result="sent") == 0
    far = cluster.open_stream("bob", [room], endpoint=other)
    far.read_type("hello")
    wait_for(lambda: metric(owner, "roomd_feed_shards_told") == 1)
    owner.api.push(room, "alice", "heard")
    far.read_message(room, content="heard")
    assert metric(owner, "roomd_feed_entries_total", result="sent") == 1
    assert metric(other, "roomd_feed_entries_total", result="received") == 1


@pytest.mark.deadline(90)
def test_what_an_instance_missed_of_the_feed_is_read_from_the_log(new_cluster):
    """C14, C15: its broker is away, so that entries, marks, and who entered what go by unheard; the last of them has no successor."""
    cluster = new_cluster(0, ONE_SHARD)
    link, settings = cluster.broker_link()
    owner, other = cluster.start(settings=OWNER), cluster.start(settings={**OTHER, **settings})
    room = owner.api.create_room("alice", "bob")["room_id"]
    assert cluster.owner_of(room) is owner
    bob = cluster.open_stream("bob", [room], endpoint=other)
    carol = cluster.open_stream("carol", all=True, endpoint=other)
    bob.read_type("hello"), carol.read_type("hello")
    owner.api.push(room, "alice", "before")
    bob.read_message(room, content="before")

    link.cut()
    wait_for(lambda: metric(other, "roomd_feed_open") == 0)
    for number in range(5):
        owner.api.push(room, "alice", f"missed {number}", wait="durable")
    bob.read_message(room, content="missed 4")  # from the database meanwhile, a second later
    founded = owner.api.create_room("alice", "carol")["room_id"]
    owner.api.ok("room/AddAccount2Room", room_id=room, account_id="carol")
    link.mend()
    owner.api.push(room, "alice", "the last one")
    bob.read_message(room, content="the last one")
    wait_for(lambda: {founded, room} <= {event["room_id"] for event in carol.events if event["type"] == "room.entered"}, 30)
    assert bob.contiguous(room) == list(range(1, 9))
    owner.api.push(founded, "alice", "welcome")
    carol.read_message(founded, content="welcome")


@pytest.mark.deadline(90)
def test_an_owner_that_alone_lacks_the_database_gives_its_shards_up(new_cluster):
    """C3, C12: what it showed early is the log's in the end, or taken back."""
    cluster = new_cluster(0, ONE_SHARD)
    link, settings = cluster.database_link()
    owner = cluster.start(settings={**OWNER, **settings})
    room = owner.api.create_room("alice", "bob")["room_id"]
    assert cluster.owner_of(room) is owner
    other = cluster.start(settings=OTHER)
    near, far = (cluster.open_stream("bob", [room], endpoint=instance) for instance in (owner, other))
    near.read_type("hello"), far.read_type("hello")
    wait_for(lambda: metric(owner, "roomd_feed_shards_told") >= 1)

    with contextlib.closing(cluster.publisher()) as publisher:
        publisher.publish(room, "alice", content="committed")
        near.read_message(room, content="committed"), far.read_message(room, content="committed")
        link.cut()
        publisher.publish(room, "alice", content="early")
        for stream in (near, far):
            stream.read_message(room, content="early")
        wait_for(lambda: room.partition(".")[0] in [str(name) for name in other.readyz()[1]["shards"]], 40)
        publisher.publish(room, "alice", content="under the next owner")
        far.read_message(room, content="under the next owner", deadline=30)
        told = "another instance holds it under a higher epoch"
        wait_for(lambda: told in owner.log_text(), what=told)  # by the next owner, as the registry cannot be read
        link.mend()
        near.read_message(room, content="under the next owner", deadline=30)
    log = [(entry["seq"], entry["content"]) for entry in other.api.pull_until(room, 3)]
    assert [content for _, content in log] == ["committed", "early", "under the next owner"]
    for stream in (near, far):
        assert {event["seq"]: event["content"] for event in stream.messages(room)} == dict(log)


@pytest.mark.deadline(90)
def test_what_a_killed_owner_showed_early_elsewhere_is_made_good_by_the_next(new_cluster):
    """C12: the instance that shows it takes over, and does not go by what it has shown."""
    cluster = new_cluster(0, ONE_SHARD)
    link, settings = cluster.database_link()
    owner = cluster.start(settings={**OWNER, **settings})
    room = owner.api.create_room("alice", "bob")["room_id"]
    assert cluster.owner_of(room) is owner
    other = cluster.start(settings=OTHER)
    early, durable = (cluster.open_stream("bob", [room], endpoint=other, deliver=deliver) for deliver in ("early", "durable"))
    early.read_type("hello"), durable.read_type("hello")
    wait_for(lambda: metric(owner, "roomd_feed_shards_told") >= 1)
    with contextlib.closing(cluster.publisher()) as publisher:
        publisher.publish(room, "alice", content="0")
        durable.read_message(room, content="0")
        link.cut(silently=True)
        for number in range(1, 5):  # few: it has to be done before the lease ends
            publisher.publish(room, "alice", content=f"{number}")
        early.read_message(room, content="4")
        assert len(durable.messages(room)) == 1
        owner.kill9()
        publisher.publish(room, "alice", content="5")
    for stream in (early, durable):
        stream.read_message(room, content="5", deadline=30)
    log = {entry["seq"]: entry["content"] for entry in other.api.pull_all(room)}
    assert list(log.values()) == [f"{number}" for number in range(6)]
    shown = {event["seq"]: event["content"] for event in early.messages(room)}  # what came again after a reset is in the place of the first
    assert shown == log == {event["seq"]: event["content"] for event in durable.messages(room)}
    assert any(event["type"] == "reset" for event in early.events) and not any(event["type"] == "reset" for event in durable.events)
