"""nginx and HAProxy as deploy/ has them, between a frontend and instances: what docs/without-library.md#the-hop promises."""
import os
import re
import subprocess
import threading

import pytest
import requests

import hops
import roomd
from gateway import BaseService, Gateway, User
from gateway_stand_in import GatewayStandIn
from roomd import wait_for
from web_client import WebClient

PUSHED = ["websocket", "sse", "ndjson"]
ALL = [*PUSHED, "poll"]
PROXIES = {"nginx": hops.Nginx, "haproxy": hops.HAProxy}


@pytest.fixture(params=sorted(PROXIES))
def hop_of(request, tmp_path):
    """hop_of(cluster, timeout=…, changes=…) -> the proxy, with an authorizer as .authorizer"""
    tmp_path.chmod(0o711)
    started = []

    def make(cluster, **options):
        authorizer = hops.Authorizer(cluster, tmp_path)
        started.append(authorizer)
        started.append(PROXIES[request.param](cluster, tmp_path, authorizer, **options))
        started[-1].authorizer = authorizer
        return started[-1]

    make.name = request.param
    yield make
    for one in reversed(started):
        one.stop()


@pytest.fixture
def room(api):
    return api.create_room("alice", "bob")["room_id"]


def instance_id(instance):
    return instance.readyz()[1]["instance"]


def test_every_event_comes_at_once_and_nothing_internal_with_it(cluster, api, room, hop_of):
    """Each message is awaited before the next one is sent, and the next ping is 20 s away: what a proxy held back would not come."""
    hop = hop_of(cluster)
    streams = {transport: hops.open_hop(hop, "bob", transport, [f"{room}@0:0"], room=room) for transport in ALL}
    for transport in PUSHED:
        streams[transport].read_type("hello")
    for number in range(20):
        api.push(room, "alice", f"{number}")
        for stream in streams.values():
            stream.read_message(room, content=f"{number}")
    alice = hops.open_hop(hop, "alice", "websocket", room=room)
    assert alice.request("message.send", {"room_id": room, "kind": "text", "content": "back"})["type"] == "ack"
    for stream in streams.values():
        stream.read_message(room, content="back")
        assert stream.contiguous(room) == list(range(1, 22))
    head = hop.authorizer.ask("bob").headers["Roomd-Authorization"].split()[1].split(".")[0]  # the same in all tickets
    wait_for(lambda: hop.access_log().count("/stream/poll") >= 20)
    seen = "".join(str(stream.events) for stream in streams.values())
    assert head not in hop.access_log() + hop.log_text() + seen
    assert not [instance.url for instance in cluster.instances if instance.url in seen]


def test_headers_reach_the_frontend(cluster, room, hop_of):
    hop = hop_of(cluster)
    for transport in ("sse", "ndjson"):
        for post in (False, True):
            headers = hops.open_hop(hop, "bob", transport, [f"{room}@0:0"], room=room, post=post).response.headers
            assert headers["Cache-Control"] == "no-store" and headers["X-Accel-Buffering"] == "no"
    answer = requests.get(f"{hop.url}/stream/poll", params={"room": room}, headers={"Cookie": "account=eve"}, timeout=10)
    assert answer.status_code == 403  # not in the room


def test_only_sessions_of_our_pages_open_streams_and_nothing_else_is_open(cluster, api, room, hop_of):
    hop = hop_of(cluster)
    good = {"Cookie": "account=bob", "Origin": hops.PAGE_ORIGIN}
    for path in ("ws", "sse", "ndjson", "poll"):
        url = f"{hop.url}/stream/{path}?room={room}"
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="} if path == "ws" else {}
        assert requests.get(url, headers={**upgrade, "Origin": hops.PAGE_ORIGIN}, timeout=10).status_code == 401
        assert requests.get(url, headers={**upgrade, **good, "Origin": "https://evil.example.com"}, timeout=10).status_code == 403
    ticket = hop.authorizer.ask("bob").headers["Roomd-Authorization"]
    assert requests.get(f"{hop.url}/stream/sse", headers={"Authorization": ticket}, timeout=10).status_code == 401  # a ticket is no session
    for path in ("/authorize-stream", "/stream/authorize", "/%61uthorize-stream", "//authorize-stream", "/healthz", "/metrics", "/v1/stream/sse"):
        answer = requests.get(hop.url + path, headers={**good, "Authorization": ticket}, timeout=10)
        assert answer.status_code == 404 and "Roomd-Authorization" not in answer.headers, path
    answer = requests.post(f"{hop.url}/v1/room/Get", json={"room_id": room}, headers={"Authorization": f"Bearer {cluster.service_key}"}, timeout=10)
    assert answer.status_code == 501  # the public server knows no POST


def test_a_gateway_that_is_away_is_no_open_door(cluster, room, hop_of):
    hop = hop_of(cluster)
    hop.authorizer.stop()
    answer = requests.get(f"{hop.url}/stream/sse", headers={"Cookie": "account=bob"}, timeout=10)
    assert answer.status_code >= 500


def test_an_idle_stream_lives_for_many_time_outs_and_a_dead_one_does_not(new_cluster, hop_of):
    """Five minutes are 15 heartbeats of 20 s and 4 time-outs of 75 s: here 15 of 1 s and 4 of 3.75 s, which a machine that stands still for a second keeps."""
    cluster = new_cluster(settings={"heartbeat_ms": 1000})
    room = cluster.api.create_room("alice", "bob")["room_id"]
    hop = hop_of(cluster, timeout="3750ms")
    streams = [hops.open_hop(hop, "bob", transport, room=room) for transport in PUSHED]
    for stream in streams:
        stream.wait(lambda: len([1 for event in stream.events if event["type"] == "ping"]) >= 16, 60)
    cluster.instances[0].sigstop()
    for stream in streams:
        stream.wait_closed(20)
    cluster.instances[0].sigcont()


def test_shipped_time_outs_are_above_two_heartbeats():
    settings = subprocess.run([roomd.ROOMD, "--settings"], stdout=subprocess.PIPE, text=True, timeout=30, check=True).stdout
    heartbeat_s = int(re.search(r"heartbeat_ms \| (\d+)", settings)[1]) / 1000
    nginx, haproxy = ((hops.DEPLOY / path).read_text() for path in ("nginx/roomd.conf", "haproxy/roomd.cfg"))
    found = [re.findall(rf"^\s*{name}\s+(\d+)s;?$", text, re.M) for text, names in
        ((nginx, ("proxy_read_timeout", "proxy_send_timeout")), (haproxy, ("timeout client", "timeout server", "timeout tunnel"))) for name in names]
    found[0].remove("5")  # of the question to the gateway
    assert [len(values) for values in found] == [2, 2, 1, 1, 1]
    assert all(int(value) > 2 * heartbeat_s for values in found for value in values)


def test_a_dead_endpoint_leads_to_the_next_one(new_cluster, hop_of):
    cluster = new_cluster(instances=0)
    dead = f"http://127.0.0.1:{roomd.free_port()}"
    first, second = cluster.start(settings={"advertise_url": dead}), cluster.start()
    cluster.wait_spread()  # else the room may move to the second one later
    rooms = (cluster.api.create_room("alice", "bob")["room_id"] for _ in range(100))
    room = next(room for room in rooms if cluster.owner_of(room) is first)
    # Without its own checks HAProxy finds out by connecting, too.
    unaware = {"instances": [dead, second.url], "changes": {"    default-server check inter 2s fall 2 rise 1\n": ""}}
    hop = hop_of(cluster, **(unaware if hop_of.name == "haproxy" else {}))

    def named():
        headers = hop.authorizer.ask("bob", f"/stream/ws?room={room}").headers
        return headers.get("Roomd-First"), headers.get("Roomd-Second")

    wait_for(lambda: named() == (dead, second.url), 30)  # who is late with its beat is not named meanwhile
    first.api.push(room, "alice", "hello", wait="durable")
    for transport in ALL:
        stream = hops.open_hop(hop, "bob", transport, [f"{room}@0:0"], room=room)
        stream.read_message(room, content="hello")
        assert transport == "poll" or stream.events[0]["instance"] == instance_id(second)
    posted = hops.open_hop(hop, "bob", "sse", [f"{room}@0:0"], room=room, post=True)  # what was in the body goes along
    posted.read_message(room, content="hello")


def test_streams_of_a_killed_instance_open_at_the_next_one_at_once_and_those_of_a_stopping_one_before_it_goes(new_cluster, hop_of):
    cluster = new_cluster(instances=2)
    cluster.wait_spread()  # nothing moves by itself any more
    cluster.wait_named()
    room = cluster.api.create_room("alice", "bob")["room_id"]
    owner = cluster.owner_of(room)
    other = next(instance for instance in cluster.instances if instance is not owner)
    hop = hop_of(cluster)
    streams = [hops.open_hop(hop, "bob", transport, room=room) for transport in PUSHED]
    for stream in streams:
        assert stream.read_type("hello")["instance"] == instance_id(owner)
    cluster.api.push(room, "alice", "before", wait="durable")
    for stream in streams:
        stream.read_message(room, content="before")
    owner.kill9()
    again = []
    for stream in streams:
        stream.wait_closed()
        again.append(hops.open_hop(hop, "bob", stream.transport, stream.positions(), room=room, cursors=stream.cursors))
        assert again[-1].read_type("hello")["instance"] == instance_id(other)
    other.api.until_ok("history/Push", room_id=room, sender="alice", kind="text", content="after")
    for stream in again:
        stream.read_message(room, content="after", deadline=30)
    owner.start()
    cluster.wait_named()  # who knows of nobody else sends nobody away
    stopping = threading.Thread(target=other.stop)
    stopping.start()
    for stream in again:
        assert sorted(stream.read_type("migrate")) == ["type", "within_ms"]
        stream.close()
    stopping.join()


# --- room-client.js, in Node ---


@pytest.fixture
def stand_in_of():
    open_ones = []

    def make(cluster):
        open_ones.append(GatewayStandIn(cluster))
        return open_ones[-1]

    yield make
    for one in open_ones:
        one.close()


@pytest.fixture
def clients():
    found = []
    yield found
    for client in found:
        client.close()


@pytest.mark.parametrize("transport", ["websocket", "sse", "poll"])
def test_room_client_reads_and_sends_through_the_hop(cluster, api, room, hop_of, stand_in_of, clients, transport):
    stand_in = stand_in_of(cluster)
    hop = hop_of(cluster, public=stand_in.server_port)
    bob = WebClient(cluster, "bob", rooms=[room], gateway=hop.url, cookie=f"account=bob; {stand_in.session('bob')}", transports=[transport])
    clients.append(bob)
    bob.wait_open(transport)
    api.push(room, "alice", "1")
    bob.wait_seq(room, 1)
    assert bob.wait_sending(bob.send(room, "2"), "stored")["seq"] == 2
    api.push(room, "alice", "3")
    bob.wait_seq(room, 3)
    assert bob.seqs(room) == [1, 2, 3]
    wait_for(lambda: "/stream/" in hop.access_log() or transport != "poll")
    assert not [path for _, path, _ in stand_in.requests if path.startswith("/stream/")]


def test_room_client_moves_through_the_hop_before_an_instance_stops(new_cluster, hop_of, stand_in_of, clients):
    cluster = new_cluster(instances=2, settings={"drain_ms": 5000})
    cluster.wait_named()
    room = cluster.api.create_room("alice", "bob")["room_id"]
    stand_in = stand_in_of(cluster)
    hop = hop_of(cluster, public=stand_in.server_port)
    bob = WebClient(cluster, "bob", gateway=hop.url, cookie=f"account=bob; {stand_in.session('bob')}", transports=["websocket"])
    clients.append(bob)
    ids = {instance_id(instance): instance for instance in cluster.instances}
    ids[bob.wait_open()[0]["instance"]].stop()
    bob.wait_open(count=2, deadline=20)
    assert not bob.of("state", state="waiting"), bob.seen
    cluster.alive[0].api.until_ok("history/Push", room_id=room, sender="alice", kind="text", content="after")
    bob.wait_seq(room, 1, 20)


# --- a gateway that carries the streams itself, behind nginx and HAProxy ---


@pytest.fixture(scope="module")
def reference_gateway(session_cluster):
    base = BaseService(session_cluster)
    gateway = Gateway(session_cluster, base)
    yield gateway
    for program in (gateway, base):
        program.stop()
        program.check()


@pytest.fixture(params=["nginx", "haproxy"])
def front(request, cluster, reference_gateway, tmp_path):
    """A proxy before roomd-gateway."""
    tmp_path.chmod(0o711)
    if request.param == "nginx":
        front = hops.NginxWith(cluster, tmp_path, "gateway.conf", {"127.0.0.1:8080": f"127.0.0.1:{reference_gateway.port}"})
    else:
        front = hops.HAProxyBefore(cluster, tmp_path, reference_gateway)
    front.cluster, front.certificate = cluster, None
    yield front
    front.stop()


@pytest.mark.parametrize("transport", ["websocket", "sse", "poll"])
def test_room_client_through_a_proxy_and_the_reference_gateway(cluster, front, clients, transport):
    alice, bob = User(front, "alice"), User(front, "bob")
    room = alice.group(f"proxy {transport}", "bob")
    client = bob.web_client(transport)
    clients.append(client)
    client.wait_open(transport)
    first = client.entries(room)
    for number in range(20):  # each is awaited before the next one: nothing is held back
        alice.say(room, f"{number}")
        client.wait(lambda: [one for one in client.of("entry") if one["event"].get("content") == f"{number}"])
    assert client.wait_sending(client.send(room, "back"), "stored")
    client.wait(lambda: len(client.seqs(room)) == 21)  # a Pull may tell that it is stored before the stream shows it
    assert not first


def test_files_pass_the_proxy_whole_and_what_is_the_machine_s_own_does_not(front):
    alice, bob = User(front, "alice"), User(front, "bob")
    room = alice.direct("bob")
    data = os.urandom(3 << 20)  # above what nginx takes by itself
    file_id = alice.upload(data).json()["file_id"]
    alice.wait_message(room, alice.say(room, {"file_id": file_id}, kind="file"))
    assert bob.download(room, file_id).content == data
    assert bob.download(room, file_id, headers={"Range": "bytes=5-9"}).content == data[5:10]
    for path in ("/metrics", "/healthz", "/readyz", "/v1/room/Get", "//metrics", "/%6detrics"):
        assert requests.get(front.url + path, timeout=10).status_code == 404, path
