"""The browser client in Node against real instances: everything once and in order, whatever breaks."""
import os
import random
import signal
import subprocess
import threading
import time

import pytest

import roomd
from roomd import wait_for
from web_client import Filter, WebClient

TRANSPORTS = ["websocket", "sse", "poll"]


@pytest.fixture
def web_client(request):
    clients = []

    def make(cluster, account, *args, **options):
        clients.append(WebClient(cluster, account, *args, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def room(api):
    return api.create_room("alice", "bob")["room_id"]


def ways(cluster, make=roomd.Link):
    """(links by url, {url: url through a link})"""
    links = {instance.url: make(int(instance.url.rsplit(":", 1)[1])) for instance in cluster.instances}
    cluster._links += links.values()
    return links, {url: f"http://127.0.0.1:{link.port}" for url, link in links.items()}


def whole_log(cluster, room, messages):
    """The log, once all that was confirmed is in it; what else takes a seq does not count."""
    def whole():
        log = cluster.api.pull_all(room)
        return len([entry for entry in log if entry["type"] == "message"]) >= messages and log

    return wait_for(whole, 60, what=f"{messages} messages in {room}")


def same_log(client, api, room):
    """The application has what the log has, every seq once."""
    log = api.pull_all(room)
    shown = client.entries(room)
    assert [(entry["seq"], entry["type"], entry.get("message_id")) for entry in shown] == [(entry["seq"], entry["type"], entry.get("message_id")) for entry in log]


def test_the_client_keeps_its_rules_without_a_network():
    """Without a network: each rule of the client (tests/web/*.test.mjs)."""
    files = sorted(str(path) for path in (roomd.TOP / "tests" / "web").glob("*.test.mjs"))
    done = subprocess.Popen(["node", "--test", *files], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        output, _ = done.communicate(timeout=100)
    except subprocess.TimeoutExpired:
        os.killpg(done.pid, signal.SIGKILL)  # each file runs in a process of its own, which would go on
        output, _ = done.communicate()
    assert done.returncode == 0, output[-8000:]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_messages_come_and_go_on_each_transport(cluster, api, room, web_client, transport):
    bob = web_client(cluster, "bob", rooms=[room], transports=[transport])
    bob.wait_open(transport)
    api.push(room, "alice", "hello")
    bob.wait_seq(room, 1)
    own = bob.send(room, "hello yourself")
    assert bob.wait_sending(own, "stored")["seq"] == 2
    assert [one["sending"] for one in bob.of("sending", client_msg_id=own)] == ["going", "sent", "stored"]
    assert [entry["content"] for entry in bob.entries(room)] == ["hello", "hello yourself"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_was_said_while_away_is_there_once(cluster, api, room, web_client, transport):
    bob = web_client(cluster, "bob", rooms=[room], transports=[transport])
    bob.wait_open(transport)
    api.push(room, "alice", "1")
    bob.wait_seq(room, 1)
    bob.do("stop")
    for number in range(2, 30):
        api.push(room, "alice", f"{number}")
    bob.do("start")
    bob.wait_seq(room, 29)
    assert bob.seqs(room) == list(range(1, 30))


@pytest.mark.deadline(240)
@pytest.mark.parametrize("transport,messages,cuts", [("websocket", 2000, 50), ("sse", 600, 20), ("poll", 600, 20)])
def test_cuts_and_a_kill_lose_nothing_and_show_nothing_twice(new_cluster, web_client, transport, messages, cuts):
    cluster = new_cluster(instances=2)
    api = cluster.api
    room = api.create_room("alice", "bob")["room_id"]
    links, through = ways(cluster)
    bob = web_client(cluster, "bob", rooms=[room], transports=[transport], ways=through)
    bob.wait_open(transport)
    publisher, own = cluster.publisher(), []

    def publish():
        for number in range(messages):
            publisher.publish(room, "alice", "text", f"{number}", repeat=True)
            time.sleep(0.004)  # not a wait: the rate

    thread = threading.Thread(target=publish)
    thread.start()
    cut = 0
    while cut < cuts or (len(bob.of("open")) <= cuts / 3 and cut < 10 * cuts):  # one that comes while the client is busy with the one before cuts nothing
        time.sleep(random.uniform(0, 2 * messages * 0.005 / cuts))  # not a wait: the moment of the cut
        own.append(bob.send(room, f"own {cut}"))
        bob.wait(lambda: bob.of("state")[-1]["state"] == "open", 30)  # each cut cuts something
        for link in links.values():
            link.cut()
            link.mend()
        if cut == cuts // 2:
            owner = cluster.owner_of(room)
            owner.kill9()
        cut += 1
    thread.join()
    for client_msg_id in own:
        bob.wait_sending(client_msg_id, "stored", 60)
    log = whole_log(cluster, room, messages + len(own))
    assert len([entry for entry in log if entry["type"] == "message" and entry["sender"] == "bob"]) == len(own)
    bob.wait_seq(room, log[-1]["seq"], 30)
    same_log(bob, cluster.api, room)
    assert len(bob.of("open")) > cuts / 3
    owner.start()


@pytest.mark.deadline(180)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_drained_instance_is_left_for_another_without_a_break(new_cluster, web_client, transport):
    cluster = new_cluster(instances=2, settings={"drain_ms": 5000})
    cluster.wait_spread()  # else the room might move between here and the drain
    api = cluster.api
    room = api.create_room("alice", "bob")["room_id"]
    owner = cluster.owner_of(room)
    bob = web_client(cluster, "bob", rooms=[room], transports=[transport])
    first = bob.wait_open(transport)[0]["instance"]
    with cluster.load([room], publishers=1, accounts=["alice"], rate=100) as load:
        load.wait_confirmed(100)
        owner.stop()
        load.wait_confirmed(len(load.confirmed) + 100)
    opened = bob.wait_open(transport, count=2, deadline=30)
    if transport != "poll":  # polls are not told to migrate: they are refused, and come back by another address
        assert opened[1]["instance"] not in (None, first)
        assert not bob.of("state", state="waiting")
    assert not bob.of("reset")
    log = whole_log(cluster, room, len(load.confirmed))
    bob.wait_seq(room, log[-1]["seq"], 30)
    same_log(bob, cluster.api, room)


@pytest.mark.deadline(180)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_slow_reader_gets_everything(new_cluster, web_client, transport):
    cluster = new_cluster()
    room = cluster.api.create_room("alice", "bob")["room_id"]
    bob = web_client(cluster, "bob", rooms=[room], transports=[transport])
    bob.wait_open(transport)
    publisher = cluster.publisher()
    bob.post("block", ms=4000)  # reads nothing meanwhile
    for number in range(2000):
        publisher.publish(room, "alice", "text", f"{number} " + "x" * 1000)
    bob.wait_seq(room, 2000, 60)
    assert bob.seqs(room) == list(range(1, 2001))
    assert len(bob.of("open")) == 1


def test_a_blocked_websocket_leads_to_sse_and_back(cluster, api, room, web_client):
    filters, through = ways(cluster, lambda port: Filter(port, "/stream/ws"))
    bob = web_client(cluster, "bob", rooms=[room], ways=through, firstBytesMs=2000, upgradeMs=500, upgradeMaxMs=500)
    bob.wait_open("sse")
    api.push(room, "alice", "1")
    bob.wait_seq(room, 1)
    for one in filters.values():
        one.blocked.clear()
    bob.wait_open("websocket")
    api.push(room, "alice", "2")
    bob.wait_seq(room, 2)
    assert bob.seqs(room) == [1, 2] and not bob.of("state", state="waiting")


def test_where_no_stream_passes_polls_do(cluster, api, room, web_client):
    _, through = ways(cluster, lambda port: Filter(port, "/stream/ws", "/stream/sse"))
    bob = web_client(cluster, "bob", rooms=[room], ways=through, firstBytesMs=500)
    bob.wait_open("poll")
    api.push(room, "alice", "1")
    bob.wait_seq(room, 1)
    assert bob.wait_sending(bob.send(room, "2"), "stored")["seq"] == 2


def test_rooms_are_entered_and_left_without_a_new_connection(new_cluster, web_client):
    cluster = new_cluster()
    api = cluster.api
    bob = web_client(cluster, "bob")
    bob.wait_open()
    room = api.create_room("alice", "bob")["room_id"]
    bob.wait(lambda: bob.of("entered", room_id=room))
    api.push(room, "alice", "1")
    bob.wait_seq(room, 1)
    later = api.create_room("alice")["room_id"]
    api.ok("room/AddAccount2Room", room_id=later, account_id="bob")
    bob.wait(lambda: bob.of("entered", room_id=later))
    api.ok("room/RmAccountFromRoom", room_id=later, account_id="bob")
    bob.wait(lambda: bob.of("left", room_id=later))
    assert len(bob.of("open")) == 1


def test_more_rooms_than_a_url_can_name_go_on_after_a_break(new_cluster, web_client):
    cluster = new_cluster()
    rooms = [cluster.api.create_room("alice", "bob")["room_id"] for _ in range(220)]
    links, through = ways(cluster)
    bob = web_client(cluster, "bob", transports=["websocket"], ways=through)
    bob.wait_open()
    publisher = cluster.publisher()
    for room in rooms:
        publisher.publish(room, "alice", "text", "1")
    bob.wait(lambda: len(bob.of("entry")) == len(rooms), 30)
    for link in links.values():
        link.cut()
    for room in rooms:
        publisher.publish(room, "alice", "text", "2")
    for link in links.values():
        link.mend()
    bob.wait(lambda: len(bob.of("entry")) == 2 * len(rooms), 30)
    assert all(bob.seqs(room) == [1, 2] for room in rooms)
    assert [one["transport"] for one in bob.of("open")] == ["websocket"] * 2


def test_who_is_in_no_room_any_more_stops(cluster, api, web_client):
    room = api.create_room("alice", kind="group")["room_id"]
    api.ok("room/AddAccount2Room", room_id=room, account_id="bob")
    bob = web_client(cluster, "bob", rooms=[room], transports=["websocket"])
    bob.wait_open()
    api.ok("room/RmAccountFromRoom", room_id=room, account_id="bob")
    bob.wait(lambda: bob.of("state", state="stopped"))


def test_a_refused_message_fails_and_the_next_one_goes(cluster, api, room, web_client):
    bob = web_client(cluster, "bob", rooms=[room])
    bob.wait_open()
    bad, good = bob.send(room, {"nothing": 1}, kind="image"), bob.send(room, "good")
    assert bob.wait_sending(bad, "failed")["error"] == "bad_request"
    bob.wait_sending(good, "stored")


def test_older_messages_are_paged(cluster, api, room, web_client):
    for number in range(1, 41):
        api.push(room, "alice", f"{number}")
    api.pull_until(room, 40)
    bob = web_client(cluster, "bob", rooms=[room])
    bob.wait_open()
    seqs = []
    while (answer := bob.do("older", room_id=room, limit=15))["seqs"]:
        seqs = answer["seqs"] + seqs
    assert seqs == list(range(1, 41)) and not answer["hasOlder"]
    api.push(room, "alice", "41")
    bob.wait_seq(room, 41)
    assert [message["seq"] for message in bob.do("store", room_id=room)["timeline"]] == list(range(1, 42))


def test_who_was_away_ends_with_the_same_messages_as_who_was_there(cluster, api, room, web_client):
    there, away = [web_client(cluster, account, rooms=[room]) for account in ("alice", "bob")]
    there.wait_open()
    away.wait_open()
    for number in range(1, 21):
        api.push(room, "alice", f"{number}", wait="durable")
    away.wait_seq(room, 20)
    away.do("stop")
    for seq in range(1, 21):
        if seq % 2:
            api.ok("history/Edit", room_id=room, account_id="alice", seq=seq, content=f"{seq} edited")
        if seq % 3 == 0:
            api.ok("history/Recall", room_id=room, account_id="alice", seq=seq)
        if seq % 5 == 0:
            api.ok("history/Delete", room_id=room, account_id="alice", seq=seq, scope="all")
    last = api.pull(room)["entries"][-1]["seq"]
    away.do("start")
    shown = []
    for client in (there, away):
        client.wait_seq(room, last)
        shown.append([(one["seq"], one.get("content"), one.get("state")) for one in client.do("store", room_id=room)["timeline"]])
    log = [(one["seq"], one.get("content"), one.get("state")) for one in api.pull_all(room) if one["type"] == "message"]
    assert shown[0] == shown[1] == log
    assert {state for _, _, state in log} == {None, "edited", "recalled", "deleted"}


def test_typing_is_seen_by_the_other(cluster, api, room, web_client):
    alice, bob = [web_client(cluster, account, rooms=[room], transports=["websocket"]) for account in ("alice", "bob")]
    alice.wait_open()
    bob.wait_open()
    alice.do("typing", room_id=room)
    bob.wait(lambda: bob.of("typing", typists=["alice"]))
