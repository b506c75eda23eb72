"""What is not kept – typing, read, transient messages, message.rejected – reaches open streams on every instance, and nothing else."""
import contextlib
import time

import pytest

from roomd import wait_for

PUSHED = ["websocket", "sse", "ndjson"]


def metric(instance, name, **labels):
    found = [value for key, value in instance.metrics().items() if key.partition("{")[0] == name and all(f'{k}="{v}"' in key for k, v in labels.items())]
    assert found, f"{instance.name} has no {name} {labels}"
    return sum(found)


def heard(instance):
    """Messages of the feed that this instance took from others."""
    return metric(instance, "roomd_feed_messages_total", kind="told", result="taken")


def hears(instance):
    """What is told from now on arrives there: a binding takes a moment."""
    wait_for(lambda: metric(instance, "roomd_feed_open") == 1, 30, what=f"the feed of {instance.name} does not open")


def open_on(instances, cluster, account, room, **options):
    streams = [cluster.open_stream(account, [room], endpoint=instance, **options) for instance in instances]
    for instance, stream in zip(instances, streams):
        if options.get("transport") != "poll":
            stream.read_type("hello")
        hears(instance)
    return streams


def rows(cluster):
    """All that the database holds of rooms, but for what moves by itself."""
    tables = [name for (name,) in cluster.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        if name not in ("instance", "shard_lease")]
    # That the room was created may still be told.
    return {name: cluster.rows(f"SELECT to_jsonb(t) - 'sent_at' FROM {name} t ORDER BY 1") for name in tables}


@pytest.fixture
def room(api):
    return api.create_room("alice", "bob")["room_id"]


@pytest.mark.parametrize("transport", PUSHED)
def test_a_transient_message_reaches_streams_on_every_instance(cluster, api, room, transport):
    streams = open_on(cluster.instances, cluster, "bob", room, transport=transport)
    api.push(room, "alice", "psst", transient=True)
    for stream in streams:
        event = stream.read_message(room, content="psst")
        assert event["transient"] is True and "seq" not in event
    assert api.pull(room)["entries"] == []


def test_what_is_told_on_another_instance_comes_once(cluster, api, room):
    streams = open_on(cluster.instances, cluster, "bob", room)
    for word in ("one", "two", "three"):
        api.push(room, "alice", word, transient=True)
    for stream in streams:
        stream.read_message(room, content="three")
        assert [event["content"] for event in stream.messages(room)] == ["one", "two", "three"]


def test_a_message_that_is_rejected_is_told_to_the_sender_on_every_instance(cluster, api, room):
    streams = open_on(cluster.instances, cluster, "alice", room)
    with contextlib.closing(cluster.publisher()) as publisher:
        publisher.publish(room, "alice", content="the first", client_msg_id="same")
        publisher.publish(room, "alice", content="another", client_msg_id="same")
    for stream in streams:
        event = stream.read_type("message.rejected", room_id=room)
        assert event["code"] == "conflict" and event["client_msg_id"] == "same" and event["room_id"] == room
        assert " " in event["message"], event


def test_typing_is_told_once_in_a_while_on_every_instance_and_stored_nowhere(new_cluster):
    cluster = new_cluster(2)  # where nobody has said anything before: what is written later for that (who read what, the outbox) would be seen
    api = cluster.api
    room = api.create_room("alice", "bob")["room_id"]
    streams = open_on(cluster.instances, cluster, "bob", room)
    alice = cluster.open_stream("alice", [room], endpoint=cluster.instances[0])
    alice.read_type("hello")
    before = rows(cluster)
    for _ in range(10):
        assert alice.request("message.typing", {"room_id": room})["type"] == "ack"
    api.push(room, "alice", "the end of it", transient=True)
    for stream in streams:
        stream.read_message(room, content="the end of it")
        typing = [event for event in stream.events if event["type"] == "typing"]
        assert typing == [{"type": "typing", "room_id": room, "account_id": "alice", "for_ms": 6000}]
    assert rows(cluster) == before
    assert api.pull(room)["entries"] == []


def test_who_read_what_is_told_on_every_instance(cluster, api, room):
    streams = open_on(cluster.instances, cluster, "alice", room)
    api.push(room, "alice", "read this", wait="durable")
    api.ok("history/MarkRead", room_id=room, account_id="bob", read_seq=1)
    for stream in streams:
        assert stream.read_type("read") == {"type": "read", "room_id": room, "account_id": "bob", "read_seq": 1}
    assert [entry["type"] for entry in api.pull(room)["entries"]] == ["message"]


def test_typing_is_told_again_after_a_while(new_cluster):
    cluster = new_cluster(1, {"typing_every_ms": 200})
    room = cluster.api.create_room("alice", "bob")["room_id"]
    bob = cluster.open_stream("bob", [room])
    alice = cluster.open_stream("alice", [room])

    def told():
        alice.request("message.typing", {"room_id": room})
        return len([event for event in bob.events if event["type"] == "typing"]) >= 3

    began = time.monotonic()
    wait_for(told)
    assert time.monotonic() - began >= 0.4


def test_an_instance_without_streams_of_the_shard_gets_nothing_of_it(new_cluster):
    cluster = new_cluster(2, {"shard_count": 1})
    room = cluster.api.create_room("alice", "bob")["room_id"]
    owner = cluster.owner_of(room)
    other = next(instance for instance in cluster.instances if instance is not owner)
    near, = open_on([owner], cluster, "bob", room)
    hears(other)
    cluster.api.push(room, "alice", "psst", transient=True)
    near.read_message(room, content="psst")
    # What is told to accounts goes everywhere, by the same way: when it arrived, the transient message would have, too.
    with contextlib.closing(cluster.publisher()) as publisher:
        publisher.publish(room, "nobody", content="?")
    wait_for(lambda: heard(other) == 1)
    assert metric(other, "roomd_feed_events_total", result="received") == 1
    assert metric(other, "roomd_feed_shards_followed") == 0

    far, = open_on([other], cluster, "bob", room)
    cluster.api.push(room, "alice", "now", transient=True)
    far.read_message(room, content="now")
    assert metric(other, "roomd_feed_shards_followed") == 1


def test_the_feed_goes_on_when_its_queue_was_deleted(new_cluster):
    cluster = new_cluster(2)
    room = cluster.api.create_room("alice", "bob")["room_id"]
    streams = open_on(cluster.instances, cluster, "bob", room)
    opened = [metric(instance, "roomd_feed_opened_total") for instance in cluster.instances]
    for line in cluster.broker.ctl("-q", "-p", cluster.name, "list_queues", "name").splitlines():
        if line.startswith("roomd.feed."):
            cluster.broker.ctl("-p", cluster.name, "delete_queue", line)
    for instance, times in zip(cluster.instances, opened):
        wait_for(lambda: metric(instance, "roomd_feed_opened_total") > times)
        hears(instance)
    cluster.api.push(room, "alice", "still there", transient=True)
    for stream in streams:
        stream.read_message(room, content="still there")


def test_the_feed_goes_on_after_a_restart_of_the_broker(new_cluster, broker):
    cluster = new_cluster(2)
    room = cluster.api.create_room("alice", "bob")["room_id"]
    streams = open_on(cluster.instances, cluster, "bob", room)
    opened = [metric(instance, "roomd_feed_opened_total") for instance in cluster.instances]
    broker.stop()
    broker.start()
    for instance, times in zip(cluster.instances, opened):
        instance.wait_ready()
        wait_for(lambda: metric(instance, "roomd_feed_opened_total") > times, 30)
        hears(instance)
    cluster.api.until_ok("history/Push", {"room_id": room, "sender": "alice", "kind": "text", "content": "back", "transient": True})
    for stream in streams:
        stream.read_message(room, content="back", deadline=30)


def test_a_blocked_broker_drops_and_counts_what_is_told_and_holds_nothing_up(new_cluster, broker):
    cluster = new_cluster(2, {"typing_every_ms": 100})
    room = cluster.api.create_room("alice", "bob")["room_id"]
    near, far = (stream for instance in cluster.instances for stream in open_on([instance], cluster, "bob", room))
    alice = cluster.open_stream("alice", [room], endpoint=cluster.instances[0])
    told = cluster.instances[0]

    def types():
        assert alice.request("message.typing", {"room_id": room})["type"] == "ack"
        return metric(told, "roomd_feed_events_total", result="dropped") > 0

    with broker.alarm():
        wait_for(types, 30)  # the broker blocks a connection at its first publish
        near.read_type("typing")

    def arrives():
        alice.request("message.typing", {"room_id": room})
        return any(event["type"] == "typing" for event in far.events)

    wait_for(arrives, 30)


def test_bad_messages_on_the_feed_are_counted_and_dropped(new_cluster, broker):
    cluster = new_cluster(1, {"shard_count": 1})
    instance = cluster.instances[0]
    room = cluster.api.create_room("alice", "bob")["room_id"]
    bob, = open_on([instance], cluster, "bob", room)
    channel = broker.channel(cluster.name)
    head = b"\x01\x01" + b"0" * 26
    event = b'{"type":"typing","room_id":"x"}'
    item = b"\x01" + bytes([len(room)]) + len(event).to_bytes(4, "big") + room.encode() + event
    for body in (b"", b"\x01", head + b"\x01", head + item[:-1], head + item + b"\x07", b"\x02\x01" + head[2:] + item):
        channel.basic_publish("roomd.feed", "room.s00", body)
    channel.basic_publish("roomd.feed", "room.s00", head + item)
    channel.connection.close()
    bob.read_type("typing")
    assert metric(instance, "roomd_feed_messages_total", result="bad") == 5
    assert metric(instance, "roomd_feed_messages_total", result="unknown") == 1
    assert [event["type"] for event in bob.events].count("typing") == 1
