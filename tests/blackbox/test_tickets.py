"""Tickets from outside: what PullByActiveConnection gives, what opens a stream, and what does not."""
import base64
import hashlib
import hmac
import json
import time

import pytest
import requests

from roomd import Refused, wait_for

HTTP = ["sse", "ndjson", "poll"]


@pytest.fixture
def room(api):
    return api.create_room("alice", "bob")["room_id"]


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forge(key, header=None, **claims):
    """A ticket as one would make it who has (or guesses) the key."""
    now = time.time()
    header = header or {"alg": "HS256", "typ": "JWT", "kid": "test"}
    claims = {key: value for key, value in {"iss": "roomd", "sub": "bob", "iat": int(now), "exp": int(now) + 240, "all": True, **claims}.items()
        if value is not None}
    text = b64(json.dumps(header, separators=(",", ":")).encode()) + "." + b64(json.dumps(claims).encode())
    return text + "." + b64(hmac.new(key.encode(), text.encode(), hashlib.sha256).digest())


def pull_by(api, **fields):
    return api.ok("history/PullByActiveConnection", {"account_id": "bob", **fields})


def refusal(cluster, ticket, transport):
    """(status or close code, error code)"""
    url = cluster.instances[0].url
    if transport == "websocket":
        stream = cluster.open_with_ticket(ticket, url, ticket_by="query")
        code, _ = stream.wait_closed()
        return code, [event["code"] for event in stream.events if event["type"] == "error"][0]
    answer = requests.get(f"{url}/v1/stream/{transport}", headers={"Authorization": f"Bearer {ticket}"}, timeout=10, stream=True)
    assert answer.status_code != 200
    return answer.status_code, answer.json()["error"]["code"]


def test_the_answer_has_all_that_a_gateway_needs(cluster, api, room):
    before = time.time() * 1000
    answer = pull_by(api, rooms=[{"room_id": room}], platform="web", ttl_ms=60000)
    assert {endpoint["url"] for endpoint in answer["endpoints"]} == {instance.url for instance in cluster.instances}
    assert all(len(endpoint["instance"]) == 26 for endpoint in answer["endpoints"])
    assert answer["endpoints"][0]["url"] == cluster.owner_of(room).url
    assert answer["paths"] == {"websocket": "/v1/stream/ws", "sse": "/v1/stream/sse", "ndjson": "/v1/stream/ndjson", "poll": "/v1/stream/poll"}
    assert answer["backoff"] == {"base_ms": 500, "factor": 2, "max_ms": 20000} and answer["heartbeat_ms"] == 20000
    assert answer["rooms"] == [{"room_id": room, "head": "0:0"}]
    assert before + 50000 < answer["expires_at"] < before + 70000
    header, claims, _ = answer["ticket"].split(".")
    assert json.loads(base64.urlsafe_b64decode(header + "==")) == {"alg": "HS256", "typ": "JWT", "kid": "test"}
    claims = json.loads(base64.urlsafe_b64decode(claims + "=="))
    assert claims["iss"] == "roomd" and claims["sub"] == "bob" and claims["rooms"] == [room] and claims["platform"] == "web"


def test_all_names_the_rooms_of_the_account(new_cluster):
    api = new_cluster().api
    rooms = {api.create_room("bob", "alice")["room_id"] for _ in range(3)}
    api.create_room("alice")
    assert {entry["room_id"] for entry in pull_by(api, all=True)["rooms"]} == rooms
    assert api.ok("history/PullByActiveConnection", account_id="nobody", all=True)["rooms"] == []


def test_heads_in_the_answer_are_durable(api, room):
    sent = api.push(room, "alice", "x", wait="durable")
    entry = api.pull(room)["entries"][0]
    assert pull_by(api, rooms=[{"room_id": room}])["rooms"][0]["head"] == f"{entry['epoch']}:{sent['seq']}"


@pytest.mark.parametrize("fields, field", [
    ({}, "rooms"), ({"rooms": []}, "rooms"), ({"rooms": "x"}, "rooms"), ({"rooms": [{}]}, "rooms.room_id"), ({"all": 1}, "all"),
    ({"all": True, "deliver": "fast"}, "deliver"), ({"all": True, "ttl_ms": 999}, "ttl_ms"), ({"all": True, "ttl_ms": 10**9}, "ttl_ms"),
    ({"all": True, "platform": ""}, "platform"), ({"all": True, "account_id": "@system"}, "account_id"), ({"all": True, "account_id": 7}, "account_id"),
])
def test_bad_requests_name_the_field(api, fields, field):
    status, answer = api.call("history/PullByActiveConnection", {"account_id": "bob", **fields})
    assert status == 400 and answer["error"]["code"] == "bad_request" and answer["error"]["field"] == field


def test_bad_cursors_and_rooms_are_refused(api, room):
    for after in ("x", "1:2:3", "-1", "", 1.5, [], True):
        assert api.error("history/PullByActiveConnection", account_id="bob", rooms=[{"room_id": room, "after": after}]) == (400, "bad_request"), after
    assert api.error("history/PullByActiveConnection", account_id="bob", rooms=[{"room_id": "nonsense"}]) == (404, "no_such_room")
    assert api.error("history/PullByActiveConnection", account_id="mallory", rooms=[{"room_id": room}]) == (403, "not_member")
    assert api.error("history/PullByActiveConnection", account_id="bob", rooms=[{"room_id": room}] * 101) == (400, "bad_request")


@pytest.mark.parametrize("transport", ["websocket", *HTTP])
def test_a_ticket_is_good_on_every_instance_and_more_than_once(cluster, api, room, transport):
    ticket = pull_by(api, rooms=[{"room_id": room, "after": "0:0"}])["ticket"]
    api.push(room, "alice", "x")
    for instance in [*cluster.instances, *cluster.instances]:
        cluster.open_with_ticket(ticket, instance.url, transport).read_message(room)


@pytest.mark.parametrize("ticket_by", ["header", "protocol", "query"])
def test_a_websocket_ticket_may_come_in_three_ways(cluster, api, room, ticket_by):
    stream = cluster.open_stream("bob", [room], ticket_by=ticket_by)
    stream.read_type("hello")
    assert stream.subprotocol == ("roomd.v1.json" if ticket_by == "protocol" else None)


@pytest.mark.parametrize("transport", ["sse", "ndjson"])
def test_a_ticket_in_the_query_stays_out_of_the_log(cluster, api, room, transport):
    stream = cluster.open_stream("bob", [room], transport=transport, ticket_by="query")
    stream.read_type("hello")
    assert all(stream.ticket not in instance.log_text() for instance in cluster.instances)


@pytest.mark.parametrize("transport", ["websocket", *HTTP])
def test_an_old_ticket_is_told_so(cluster, api, room, transport):
    answer = pull_by(api, rooms=[{"room_id": room}], ttl_ms=1000)
    wait_for(lambda: time.time() * 1000 > answer["expires_at"] + 50, 5, what="the ticket's end")
    assert refusal(cluster, answer["ticket"], transport) == (4501 if transport == "websocket" else 401, "ticket_expired")


@pytest.mark.parametrize("transport", ["websocket", *HTTP])
def test_what_is_no_ticket_opens_nothing(cluster, room, transport):
    good = forge(cluster.ticket_key)
    header, claims, mac = good.split(".")
    other = b64(json.dumps({"iss": "roomd", "sub": "alice", "iat": 1, "exp": 99999999999, "all": True}).encode())
    bad = ["x", "a.b.c", good[:-1], good + "A", f"{header}.{other}.{mac}", f"{header}.{claims}.", cluster.service_key, "A" * 7000,
        forge("0" * 64), forge(cluster.ticket_key, {"alg": "none", "typ": "JWT", "kid": "test"}), forge(cluster.ticket_key, {"alg": "HS256", "kid": "../x"}),
        forge(cluster.ticket_key, iss="other"), forge(cluster.ticket_key, admin=True), forge(cluster.ticket_key, exp=int(time.time()) + 10**7),
        forge(cluster.ticket_key, iat=int(time.time()) + 3000, exp=int(time.time()) + 3100), forge(cluster.ticket_key, sub="@system"),
        forge(cluster.ticket_key, all=None), forge(cluster.ticket_key, all=None, rooms=["nonsense"])]
    for ticket in bad:
        assert refusal(cluster, ticket, transport) == (4500 if transport == "websocket" else 401, "unauthenticated"), ticket[:300]
    cluster.open_with_ticket(good, cluster.instances[0].url, "ndjson").read_type("hello")


@pytest.mark.parametrize("transport", ["websocket", *HTTP])
def test_a_ticket_does_not_help_who_was_removed(cluster, api, room, transport):
    ticket = pull_by(api, rooms=[{"room_id": room}])["ticket"]
    api.ok("room/RmAccountFromRoom", room_id=room, account_id="bob")
    assert refusal(cluster, ticket, transport) == (4503 if transport == "websocket" else 403, "not_member")


def test_without_a_ticket_nothing_opens(cluster):
    for transport in HTTP:
        answer = requests.get(f"{cluster.instances[0].url}/v1/stream/{transport}", timeout=10)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthenticated")


def test_a_service_key_is_no_ticket_and_a_ticket_no_service_key(cluster, api, room):
    ticket = pull_by(api, rooms=[{"room_id": room}])["ticket"]
    status, answer = api.call("room/Get", {"room_id": room}, headers={"Authorization": f"Bearer {ticket}"})
    assert (status, answer["error"]["code"]) == (401, "unauthenticated")


def test_a_position_of_another_room_is_refused(cluster, api, room):
    other = api.create_room("alice", "bob")["room_id"]
    with pytest.raises(Refused) as refused:
        cluster.open_stream("bob", [room], transport="ndjson", after=[f"{other}@0:0"])
    assert (refused.value.status, refused.value.code) == (400, "bad_request")


def test_a_refreshed_ticket_must_be_for_the_same_account(cluster, api, room):
    other = api.create_room("alice", "bob")["room_id"]
    bob = cluster.open_stream("bob", [room])
    assert bob.request("subscribe", {"rooms": [{"room_id": other}]})["code"] == "forbidden"
    assert bob.request("ticket.refresh", {"ticket": pull_by(api, rooms=[{"room_id": other}])["ticket"]})["type"] == "ack"
    assert bob.request("subscribe", {"rooms": [{"room_id": other}]})["type"] == "ack"
    alice = api.ok("history/PullByActiveConnection", account_id="alice", rooms=[{"room_id": room}])["ticket"]
    assert bob.request("ticket.refresh", {"ticket": alice})["code"] == "forbidden"
    assert bob.request("ticket.refresh", {"ticket": "x"})["code"] == "unauthenticated"
    assert bob.closed is None
