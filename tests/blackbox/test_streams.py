"""Streams: what an open connection shows, on every transport, and how it goes on after a break."""
import json
import threading
import time

import pytest

from roomd import Refused, parse_cursor, wait_for

TRANSPORTS = ["websocket", "sse", "ndjson", "poll"]
PUSHED = ["websocket", "sse", "ndjson"]


@pytest.fixture
def room(api):
    return api.create_room("alice", "bob")["room_id"]


def say(api, room, count, first=1, sender="alice"):
    for number in range(first, first + count):
        api.push(room, sender, f"{number}")


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("deliver", ["early", "durable"])
def test_messages_arrive_in_order(cluster, api, room, transport, deliver):
    bob = cluster.open_stream("bob", [room], transport=transport, deliver=deliver)
    say(api, room, 10)
    bob.read_seq(room, 10)
    assert bob.contiguous(room, 1) == list(range(1, 11))
    assert [event["content"] for event in bob.messages(room)] == [str(n) for n in range(1, 11)]


def test_hello_comes_first_and_says_where_the_stream_is(cluster, api, room):
    say(api, room, 2)
    owner = cluster.owner_of(room)
    owner.api.push(room, "alice", "3", wait="durable")  # what is in the database already the owner may know a moment later
    head = api.pull_until(room, 3)[-1]
    bob = cluster.open_stream("bob", [{"room_id": room, "after": "0:0"}])
    bob.read_seq(room, 3)
    hello = bob.events[0]
    assert hello["type"] == "hello" and len(hello["instance"]) == 26 and len(hello["stream_id"]) == 26 and hello["rooms_total"] == 1
    assert hello["rooms"][0]["room_id"] == room and hello["rooms"][0]["from"] == "0:0" and hello["rooms"][0]["durable_seq"] == 3
    assert hello["rooms"][0]["head"] == f"{head['epoch']}:3"
    assert abs(hello["server_at"] - time.time() * 1000) < 60000 and hello["heartbeat_ms"] > 0


def test_a_message_looks_the_same_in_the_stream_and_in_pull(cluster, api, room):
    bob = cluster.open_stream("bob", [room])
    api.push(room, "alice", "grüße 🎈 \" \\ \n", client_msg_id="one", sent_at=123)
    shown = bob.read_message(room)
    assert shown == api.pull_until(room, 1)[0]
    assert shown["content"] == "grüße 🎈 \" \\ \n" and shown["client_msg_id"] == "one" and shown["sent_at"] == 123


def test_content_with_line_breaks_between_its_tokens_stays_one_event(cluster, api, room):
    streams = [cluster.open_stream("bob", [room], transport=transport) for transport in PUSHED]
    body = f'{{"room_id": "{room}", "sender": "alice", "kind": "custom/x", "content": {{"a":\n\r\n[1,\n2]}}}}'
    status, answer = api.call("history/Push", body.encode())
    assert status == 200, answer
    for stream in streams:
        assert stream.read_message(room)["content"] == {"a": [1, 2]}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_stream_goes_on_after_its_cursor_on_any_instance(cluster, api, room, transport):
    bob = cluster.open_stream("bob", [room], transport=transport)
    say(api, room, 5)
    bob.read_seq(room, 5)
    after = bob.positions()
    bob.close()
    say(api, room, 5, first=6)
    for instance in cluster.instances:
        again = cluster.open_with_ticket(bob.ticket, instance.url, transport, after=after)
        again.read_seq(room, 10)
        assert again.contiguous(room, 6) == [6, 7, 8, 9, 10]


def test_without_a_position_only_what_is_new_is_shown(cluster, api, room):
    say(api, room, 3)
    api.pull_until(room, 3)
    bob = cluster.open_stream("bob", [room])
    bob.read_type("hello")
    say(api, room, 1, first=4)
    assert bob.read_message(room)["seq"] == 4


def test_a_long_backlog_comes_in_order_while_more_is_said(cluster, api, room):
    publisher = cluster.publisher()
    for number in range(1500):
        publisher.publish(room, "alice", "text", "x" * 200)
    with cluster.load([room], publishers=1, accounts=["alice"], rate=100):
        bob = cluster.open_stream("bob", [{"room_id": room, "after": "0:0"}], transport="ndjson")
        bob.read_seq(room, 1600, deadline=60)
    assert bob.contiguous(room, 1)[:1600] == list(range(1, 1601))


def test_several_rooms_on_one_stream(cluster, api):
    rooms = [api.create_room("alice", "bob")["room_id"] for _ in range(5)]
    bob = cluster.open_stream("bob", rooms)
    for room in rooms:
        say(api, room, 3)
    for room in rooms:
        bob.read_seq(room, 3)
        assert bob.contiguous(room, 1) == [1, 2, 3]


@pytest.mark.parametrize("transport", PUSHED)
def test_an_all_stream_follows_the_account_through_its_rooms(new_cluster, transport):
    cluster = new_cluster()
    api = cluster.api
    old = api.create_room("alice", "bob")["room_id"]
    bob = cluster.open_stream("bob", all=True, transport=transport)
    hello = bob.read_type("hello")
    assert hello["rooms"] == [] and hello["rooms_total"] == 1
    say(api, old, 1)
    bob.read_message(old)
    new = api.create_room("alice", "bob")["room_id"]
    bob.read_type("room.entered", room_id=new)
    say(api, new, 1)
    bob.read_message(new, content="1")
    later = api.create_room("alice")["room_id"]
    say(api, later, 2)
    api.ok("room/AddAccount2Room", room_id=later, account_id="bob")
    entered = bob.read_type("room.entered", room_id=later)
    assert parse_cursor(entered["from"])[1] == 2
    assert bob.read_type("member.joined", room_id=later)["account_ids"] == ["bob"]
    api.ok("room/RmAccountFromRoom", room_id=later, account_id="bob")
    bob.read_type("room.left", room_id=later)
    api.push(later, "alice", "secret")
    say(api, old, 1, first=2)
    bob.read_message(old, content="2")
    assert "secret" not in json.dumps(bob.events) and bob.closed is None


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_who_is_removed_loses_the_room_at_once(cluster, api, room, transport):
    bob = cluster.open_stream("bob", [room], transport=transport, endpoint=cluster.owner_of(room))
    say(api, room, 1)
    bob.read_seq(room, 1)
    api.ok("room/RmAccountFromRoom", room_id=room, account_id="bob")
    answered = time.monotonic()
    api.push(room, "alice", "secret")
    code, _ = bob.wait_closed()
    assert time.monotonic() - answered < 5
    assert code == (4503 if transport == "websocket" else None)
    assert "secret" not in json.dumps(bob.events)


def test_who_is_removed_loses_the_room_on_the_other_instance_too(cluster, api, room):
    owner = cluster.owner_of(room)
    other = next(instance for instance in cluster.instances if instance is not owner)
    bob = cluster.open_stream("bob", [room], endpoint=other)
    say(api, room, 1)
    bob.read_seq(room, 1)
    api.ok("room/RmAccountFromRoom", room_id=room, account_id="bob")
    assert bob.wait_closed()[0] == 4503


def test_a_removed_room_says_so_and_ends_its_streams(cluster, api, room):
    bob = cluster.open_stream("bob", [room], endpoint=cluster.owner_of(room))
    bob.read_type("hello")
    api.ok("room/Remove", room_id=room)
    bob.read_type("room.removed", room_id=room)
    assert bob.wait_closed()[0] == 4503
    assert api.error("history/PullByActiveConnection", account_id="bob", rooms=[{"room_id": room}]) == (410, "room_gone")


def test_early_streams_get_a_durable_mark_at_most_once_a_second(cluster, api, room):
    bob = cluster.open_stream("bob", [room], endpoint=cluster.owner_of(room))
    bob.read_type("hello")
    started = time.monotonic()
    say(api, room, 20)
    bob.read_type("durable", room_id=room, seq=20)
    marks = [event for event in bob.events if event["type"] == "durable"]
    assert len(marks) <= 2 + (time.monotonic() - started)


def test_durable_streams_get_neither_marks_nor_what_is_not_committed(cluster, api, room):
    bob = cluster.open_stream("bob", [room], deliver="durable", transport="ndjson")
    say(api, room, 5)
    bob.read_seq(room, 5)
    assert api.pull(room, after="0:0")["durable_seq"] >= 5
    assert not [event for event in bob.events if event["type"] in ("durable", "reset")]


def test_signal_streams_are_told_to_pull(cluster, api, room):
    bob = cluster.open_stream("bob", [room], deliver="signal", endpoint=cluster.owner_of(room))
    bob.read_type("hello")
    say(api, room, 1)
    signal = bob.read_type("signal", room_id=room)
    assert parse_cursor(signal["head"])[1] >= 1
    assert not bob.messages(room)


def test_transient_messages_reach_open_streams_only(cluster, api, room):
    bob = cluster.open_stream("bob", [room], endpoint=cluster.owner_of(room))
    bob.read_type("hello")
    api.push(room, "alice", "now", transient=True)
    assert "seq" not in bob.read_type("message", room_id=room, content="now")
    assert api.pull(room)["entries"] == []


@pytest.mark.parametrize("transport", PUSHED)
def test_pings_carry_the_heads_that_moved(new_cluster, transport):
    cluster = new_cluster(settings={"heartbeat_ms": 1500})  # who is silent for two of them is closed, and this process may get no CPU for a while
    room = cluster.api.create_room("alice", "bob")["room_id"]
    bob = cluster.open_stream("bob", [room], transport=transport)
    bob.read_type("hello")  # which says the head itself: what comes before it has not moved since
    say(cluster.api, room, 1)
    ping = bob.read_until(lambda event: event["type"] == "ping" and event["heads"], what="ping with heads")
    assert ping["heads"][0]["room_id"] == room and parse_cursor(ping["heads"][0]["head"])[1] == 1
    bob.read_until(lambda event: event["type"] == "ping" and not event["heads"], what="ping without heads")


def test_a_websocket_that_answers_no_ping_is_closed(new_cluster):
    cluster = new_cluster(settings={"heartbeat_ms": 300})
    room = cluster.api.create_room("alice", "bob")["room_id"]
    bob = cluster.open_stream("bob", [room])
    bob.read_type("hello")
    bob.pause()
    wait_for(lambda: cluster.instances[0].metrics()['roomd_streams{transport="websocket"}'] == 0, 10)
    assert cluster.instances[0].metrics()["roomd_streams_closed_silent_total"] == 1


def test_a_slow_reader_gets_everything_and_memory_stays_bounded(new_cluster):
    cluster = new_cluster(settings={"stream_pending_max_bytes": 65536, "stream_send_buffer_bytes": 16384, "stream_no_progress_ms": 60000})
    api, instance = cluster.api, cluster.instances[0]
    room = api.create_room("alice", "bob", "carol")["room_id"]
    slow = cluster.open_stream("bob", [room], transport="ndjson", receive_buffer=65536)
    brisk = cluster.open_stream("carol", [room], transport="ndjson")
    slow.read_type("hello")
    slow.pause()
    publisher = cluster.publisher()
    for number in range(1200):
        publisher.publish(room, "alice", "text", "x" * 3000)
    brisk.read_seq(room, 1200, deadline=60)
    assert instance.metrics()["roomd_stream_overflows_total"] > 0
    slow.go_on()
    slow.read_seq(room, 1200, deadline=60)
    assert slow.contiguous(room, 1) == list(range(1, 1201))


def test_a_reader_that_takes_nothing_is_cut(new_cluster):
    cluster = new_cluster(settings={"heartbeat_ms": 300, "stream_no_progress_ms": 1000, "stream_send_buffer_bytes": 8192})
    room = cluster.api.create_room("alice", "bob")["room_id"]
    slow = cluster.open_stream("bob", [room], transport="ndjson", receive_buffer=4096)
    slow.read_type("hello")
    slow.pause()
    publisher = cluster.publisher()
    for _ in range(60):
        publisher.publish(room, "alice", "text", "x" * 60000)
    wait_for(lambda: cluster.instances[0].metrics()["roomd_streams_closed_slow_total"] == 1, 20)


def test_sse_ids_resume_one_room_exactly(cluster, api, room):
    bob = cluster.open_stream("bob", [room], transport="sse")
    say(api, room, 3)
    bob.read_seq(room, 3)
    wait_for(lambda: bob.last_id == f"{room}@{bob.cursors[room]}")
    bob.close()
    say(api, room, 2, first=4)
    again = cluster.open_with_ticket(bob.ticket, bob.url, "sse", headers={"Last-Event-ID": bob.last_id})
    again.read_seq(room, 5)
    assert again.contiguous(room, 4) == [4, 5]


def test_sse_ids_of_many_rooms_are_times_and_lose_nothing(cluster, api):
    rooms = [api.create_room("alice", "bob")["room_id"] for _ in range(3)]
    bob = cluster.open_stream("bob", rooms, transport="sse")
    for room in rooms:
        say(api, room, 2)
    for room in rooms:
        bob.read_seq(room, 2)
    assert bob.last_id.startswith("~")
    bob.close()
    for room in rooms:
        say(api, room, 2, first=3)
    again = cluster.open_with_ticket(bob.ticket, bob.url, "sse", headers={"Last-Event-ID": bob.last_id})
    for room in rooms:
        again.read_seq(room, 4)
        assert again.seqs(room)[-2:] == [3, 4]


def test_positions_may_be_posted(cluster, api, room):
    say(api, room, 4)
    second = api.pull_until(room, 4)[1]
    for transport in ("sse", "ndjson"):
        bob = cluster.open_stream("bob", [room], transport=transport, after=[f"{room}@{second['epoch']}:2"], post=True)
        bob.read_seq(room, 4)
        assert bob.seqs(room) == [3, 4]


def test_a_cursor_that_is_not_in_the_log_is_reset(cluster, api, room):
    say(api, room, 3)
    entries = api.pull_until(room, 3)
    bob = cluster.open_with_ticket(cluster.open_stream("bob", [room]).ticket, cluster.instances[0].url, "ndjson",
        after=[f"{room}@{entries[-1]['epoch'] + 50}:900"])
    assert bob.read_type("reset", room_id=room)["seq"] == 3
    say(api, room, 1, first=4)
    bob.read_message(room, content="4")


@pytest.mark.parametrize("transport", ["sse", "ndjson", "poll"])
def test_bad_positions_are_refused(cluster, room, transport):
    ticket = cluster.open_stream("bob", [room]).ticket
    for after in ("nonsense", f"{room}@", f"{room}@-1", f"{room}@1:x", f"{room}@1:99999999999999999999", f"x.y@1:1"):
        with pytest.raises(Refused) as refused:
            if transport == "poll":
                cluster.open_with_ticket(ticket, cluster.instances[0].url, transport, query=[("after", after)], background=False).poll()
            else:
                cluster.open_with_ticket(ticket, cluster.instances[0].url, transport, after=[after])
        assert refused.value.status == 400 and refused.value.code == "bad_request", after


def test_a_long_poll_is_held_and_answers_with_positions(new_cluster):
    cluster = new_cluster(settings={"stream_poll_hold_ms": 500})
    room = cluster.api.create_room("alice", "bob")["room_id"]
    bob = cluster.open_stream("bob", [room], transport="poll", background=False)
    started = time.monotonic()
    assert bob.poll() == []
    assert 0.4 < time.monotonic() - started < 5
    say(cluster.api, room, 2)
    for _ in range(20):
        bob.poll()
        if len(bob.seqs(room)) >= 2:
            break
    assert bob.seqs(room) == [1, 2], (bob.events, bob.cursors)


def test_frames_are_answered_by_req_id_in_order(cluster, api, room):
    bob = cluster.open_stream("bob", [room])
    first = bob.send("ping")
    second = bob.send("no.such.type")
    third = bob.send("ping")
    bob.wait(lambda: [event["req_id"] for event in bob.events if "req_id" in event] == [first, second, third])
    assert bob.request("no.such.type")["code"] == "bad_request" and bob.closed is None
    bob.send_raw("{")
    bob.read_type("error")
    assert bob.request("ping")["type"] == "pong"


def test_messages_may_be_sent_on_a_websocket(cluster, api, room):
    bob, alice = cluster.open_stream("bob", [room]), cluster.open_stream("alice", [room])
    ack = alice.request("message.send", {"room_id": room, "client_msg_id": "c1", "kind": "text", "content": "hi"})
    assert ack["type"] == "ack" and ack["client_msg_id"] == "c1", ack
    assert bob.read_message(room)["message_id"] == ack["message_id"]
    assert alice.read_message(room)["client_msg_id"] == "c1"


def test_unsubscribe_leaves_a_room_and_subscribe_takes_it_up_again(cluster, api, room):
    bob = cluster.open_stream("bob", [room])
    assert bob.request("unsubscribe", {"room_ids": [room]})["type"] == "ack"
    say(api, room, 2)
    api.pull_until(room, 2)
    assert bob.request("subscribe", {"rooms": [{"room_id": room, "after": "0:0"}]})["type"] == "ack"
    bob.read_seq(room, 2)
    other = api.create_room("alice", "bob")["room_id"]
    assert bob.request("subscribe", {"rooms": [{"room_id": other}]})["code"] == "forbidden"
    assert bob.request("subscribe", {"rooms": "x"})["code"] == "bad_request"


def test_a_websocket_may_give_its_positions_after_opening(cluster, api):
    rooms = [api.create_room("alice", "bob")["room_id"] for _ in range(3)]
    for room in rooms:
        say(api, room, 3)
        api.pull_until(room, 3)
    ticket = cluster.open_stream("bob", all=True).ticket
    bob = cluster.open_with_ticket(ticket, cluster.instances[0].url, after="*")
    assert bob.read_type("hello")["rooms"] == []
    bob.request("subscribe", {"rooms": [{"room_id": room, "after": "1"} for room in rooms]})
    for room in rooms:
        bob.read_seq(room, 3)
        assert bob.seqs(room) == [2, 3]


def test_a_stopping_instance_sends_its_streams_to_the_other(new_cluster):
    cluster = new_cluster(instances=2, settings={"drain_ms": 3000})
    first, second = cluster.instances
    room = cluster.api.create_room("alice", "bob")["room_id"]
    bob = cluster.open_stream("bob", [room], endpoint=first)
    bob.read_type("hello")
    cluster.wait_named()
    stopping = threading.Thread(target=first.stop)
    stopping.start()
    migrate = bob.read_type("migrate")
    assert [endpoint["url"] for endpoint in migrate["endpoints"]] == [second.url]
    moved = cluster.open_with_ticket(migrate["ticket"], second.url, after=bob.positions(), cursors=bob.cursors)
    moved.read_type("hello")
    bob.wait_closed()
    stopping.join()
    second.api.until_ok("history/Push", room_id=room, sender="alice", kind="text", content="after")
    moved.read_message(room, content="after", deadline=20)


def test_streams_of_a_hop_that_passes_bytes_are_told_to_move_and_nothing_internal(new_cluster):
    cluster = new_cluster(instances=2, settings={"drain_ms": 3000})
    first, _ = cluster.instances
    room = cluster.api.create_room("alice", "bob")["room_id"]
    streams = [cluster.open_stream("bob", [room], endpoint=first, transport=transport, headers={"Roomd-Migrate": "bare"}) for transport in PUSHED]
    for stream in streams:
        stream.read_type("hello")
    cluster.wait_named()
    stopping = threading.Thread(target=first.stop)
    stopping.start()
    for stream in streams:
        assert sorted(stream.read_type("migrate")) == ["type", "within_ms"]
        stream.close()
    stopping.join()


def test_a_full_instance_refuses_and_keeps_serving(new_cluster):
    cluster = new_cluster(settings={"streams_max": 2})
    room = cluster.api.create_room("alice", "bob")["room_id"]
    kept = [cluster.open_stream("bob", [room], transport="ndjson") for _ in range(2)]
    with pytest.raises(Refused) as refused:
        cluster.open_stream("bob", [room], transport="ndjson")
    assert refused.value.status == 503
    over = cluster.open_stream("bob", [room])
    assert over.wait_closed()[0] == 4003
    with pytest.raises(Refused) as refused:  # a proxy that has another endpoint to try reads statuses
        cluster.open_stream("bob", [room], headers={"Roomd-Refuse": "status"})
    assert refused.value.status == 503
    say(cluster.api, room, 1)
    for stream in kept:
        stream.read_message(room)


def test_streams_that_vanish_leave_nothing_behind(new_cluster):
    cluster = new_cluster()
    api, instance = cluster.api, cluster.instances[0]
    room = api.create_room("alice", "bob")["room_id"]
    cluster.open_stream("bob", [room]).close()
    before = wait_for(lambda: instance.metrics()["roomd_room_views"] == 0 and instance.open_files())
    for transport in PUSHED:
        for _ in range(10):
            stream = cluster.open_stream("bob", [room], transport=transport)
            stream.read_type("hello")
            stream.abort()
    wait_for(lambda: instance.metrics()["roomd_room_views"] == 0)
    wait_for(lambda: instance.open_files() <= before + 5)
