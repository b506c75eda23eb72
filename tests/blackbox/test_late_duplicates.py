"""A repeat that the owner's memory does not know any more: shown early, found out by the COMMIT, taken back by a void."""


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
    dead = cluster.dead_letters(deadline=10)
    assert [(letter["reason"], letter["room_id"]) for letter in dead] == [("conflict", room)]
    assert b"another" in dead[0]["body"]
