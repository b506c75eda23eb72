"""Who is connected, asked of any instance; streams closed by a Kick on all of them."""
import time

import pytest
from roomd import TRANSPORTS, Refused, new_id, wait_for


def everywhere(cluster, account, rooms, platforms):
    """A stream of each transport on each instance."""
    streams = {}
    for instance in cluster.instances:
        for transport, platform in zip(TRANSPORTS, platforms):
            options = {"platform": platform} if platform else {}
            streams[instance.name, transport] = cluster.open_stream(account, rooms, transport=transport, endpoint=instance, **options)
    return streams


def online(api, *accounts):
    answer = api.ok("proxy/Online", account_ids=list(accounts))
    return {one["account_id"]: (one["streams"], {each["platform"]: each["streams"] for each in one["platforms"]}) for one in answer["accounts"]}, answer["missing"]


def test_any_instance_knows_the_streams_of_all_by_platform(cluster, api):
    room = api.create_room("ann", "ben")["room_id"]
    everywhere(cluster, "ann", [room], ["ios", "web", "web", None])
    everywhere(cluster, "ben", [room], ["web"])
    for instance in cluster.instances:
        wait_for(lambda: online(instance.api, "ben", "nobody", "ann") == ({"ann": (8, {"ios": 2, "web": 4}), "ben": (2, {"web": 2}), "nobody": (0, {})}, 0),
            what=lambda: online(instance.api, "ben", "nobody", "ann"))
        wait_for(lambda: instance.api.ok("proxy/Connections", room_id=room) == {"room_id": room, "streams": 10, "missing": 0,
            "platforms": [{"platform": "ios", "streams": 2}, {"platform": "web", "streams": 6}]}, what=lambda: instance.api.ok("proxy/Connections", room_id=room))
    assert [one["account_id"] for one in api.ok("proxy/Online", account_ids=["zoe", "ann", "zoe"])["accounts"]] == ["zoe", "ann"]


def test_who_leaves_is_gone_at_once(cluster, api):
    ann = f"ann-{new_id()}"  # a poll of an earlier test would stay for three seconds
    room = api.create_room(ann, "ben")["room_id"]
    stream = cluster.open_stream(ann, [room])
    wait_for(lambda: api.ok("proxy/Connections", room_id=room)["streams"] == 1)
    stream.close()
    wait_for(lambda: api.ok("proxy/Connections", room_id=room)["streams"] == 0, 5)
    wait_for(lambda: online(api, ann) == ({ann: (0, {})}, 0), 5)


def test_polls_that_are_answered_all_the_time_stay_connected(cluster, api):
    room = api.create_room("pat", "ben")["room_id"]
    for instance in cluster.instances:
        cluster.open_stream("pat", [room], transport="poll", endpoint=instance, platform="tv")
    wait_for(lambda: api.ok("proxy/Connections", room_id=room)["streams"] == 2)

    def count():
        found, missing = online(api, "pat")
        connections = api.ok("proxy/Connections", room_id=room)
        return not missing and not connections["missing"] and (found["pat"], connections["streams"])

    with cluster.load([room], publishers=1, accounts=["ben"], rate=100) as load:
        load.wait_confirmed(20)
        counts = [wait_for(count) for _ in range(30)]
    assert all(count == ((2, {"tv": 2}), 2) for count in counts), counts


def test_a_kick_closes_the_streams_of_all_transports_everywhere(cluster, api):
    room = api.create_room("kim", "ben")["room_id"]
    kim, ben = everywhere(cluster, "kim", [room], ["ios", "web", "web", "ios"]), everywhere(cluster, "ben", [room], ["ios"])
    wait_for(lambda: api.ok("proxy/Connections", room_id=room)["streams"] == 10)
    assert api.ok("proxy/Kick", account_id="kim", platform="tv") == {"closed": 0}
    assert cluster.instances[1].api.ok("proxy/Kick", account_id="kim", reason="signed in elsewhere") == {"closed": 8}
    for (_, transport), stream in kim.items():
        code, why = stream.wait_closed()
        if transport == "poll":
            assert "403" in why and "forbidden" in why and "signed in elsewhere" in why
            continue
        assert code == (4502 if transport == "websocket" else None)
        assert {key: stream.events[-1][key] for key in ("type", "code", "message")} == {"type": "error", "code": "forbidden", "message": "signed in elsewhere"}
    wait_for(lambda: online(api, "kim", "ben")[0] == {"kim": (0, {}), "ben": (2, {"ios": 2})}, what=lambda: online(api, "kim", "ben"))
    api.push(room, "ben", "hello")
    for stream in ben.values():
        stream.read_message(room, content="hello")
    assert cluster.open_stream("kim", [room]).read_type("hello")  # with a new ticket, or the old one: who is not to come back gets no ticket


def test_a_kick_of_a_platform_leaves_the_others(cluster, api):
    room = api.create_room("lou")["room_id"]
    streams = everywhere(cluster, "lou", [room], ["ios", "web"])
    wait_for(lambda: api.ok("proxy/Connections", room_id=room)["streams"] == 4)
    assert api.ok("proxy/Kick", account_id="lou", platform="web") == {"closed": 2}
    wait_for(lambda: online(api, "lou")[0] == {"lou": (2, {"ios": 2})})
    for (_, transport), stream in streams.items():
        if transport == "sse":
            stream.wait_closed()
        else:
            assert stream.closed is None


def test_the_streams_of_a_killed_instance_are_gone_within_five_seconds(new_cluster):
    cluster = new_cluster(instances=2)
    room = cluster.api.create_room("ann", "ben")["room_id"]
    first, second = cluster.instances
    cluster.open_stream("ben", [room], endpoint=first, platform="web")
    for transport in TRANSPORTS:
        cluster.open_stream("ann", [room], transport=transport, endpoint=second)
    wait_for(lambda: first.api.ok("proxy/Connections", room_id=room)["streams"] == 5)
    killed = time.monotonic()
    second.kill9()
    with pytest.raises(AssertionError, match="timeout"):  # as long as it may be alive, nobody says that all were reached
        first.api.ok("proxy/Kick", account_id="ann")
    assert online(first.api, "ann", "ben")[0] == {"ann": (0, {}), "ben": (1, {"web": 1})}
    assert time.monotonic() - killed < 5
    wait_for(lambda: online(first.api, "ann", "ben")[1] == 0, 10)
    assert first.api.ok("proxy/Connections", room_id=room) == {"room_id": room, "streams": 1, "platforms": [{"platform": "web", "streams": 1}], "missing": 0}
    assert first.api.ok("proxy/Kick", account_id="ann") == {"closed": 0}


@pytest.mark.parametrize("method, fields, status, code", [
    ("Online", {}, 400, "bad_request"),
    ("Online", {"account_ids": ["@system"]}, 400, "bad_request"),
    ("Online", {"account_ids": [f"a{number}" for number in range(1001)]}, 400, "bad_request"),
    ("Connections", {}, 400, "bad_request"),
    ("Connections", {"room_id": "nothing"}, 404, "no_such_room"),
    ("Connections", {"room_id": "s00.01KC46E0D7X8BQXSRB29FJP960"}, 404, "no_such_room"),
    ("Kick", {}, 400, "bad_request"),
    ("Kick", {"account_id": "a", "platform": ""}, 400, "bad_request"),
    ("Kick", {"account_id": "a", "reason": "x" * 257}, 400, "bad_request"),
])
def test_what_is_not_well_formed_is_refused(api, method, fields, status, code):
    assert api.error(f"proxy/{method}", fields) == (status, code)


def test_a_thousand_accounts_are_asked_at_once(cluster, api):
    room = api.create_room("last")["room_id"]
    cluster.open_stream("last", [room], transport="sse", endpoint=cluster.instances[1])
    accounts = ["\U0001f600" * 15 + f"{number:04}" for number in range(999)] + ["last"]
    wait_for(lambda: online(api, "last")[0]["last"][0] == 1)
    found = wait_for(lambda: (lambda found, missing: missing == 0 and found)(*online(api, *accounts)))
    assert [account for account in accounts if found[account][0]] == ["last"]


def test_a_kicked_account_that_gets_no_new_ticket_stays_out(cluster, api):
    room = api.create_room("max")["room_id"]
    ticket = cluster.open_stream("max", [room], ttl_ms=3000).ticket
    assert api.ok("proxy/Kick", account_id="max") == {"closed": 1}

    def refused():
        try:
            cluster.open_with_ticket(ticket, cluster.instances[1].url, "sse").close()
        except Refused as refusal:
            return refusal.code == "ticket_expired"
        return False

    wait_for(refused)
