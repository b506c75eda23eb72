"""Every code of the error table: its status, its sentence, and that the next call works."""
import time

import pytest
import requests

from roomd import wait_for

UNKNOWN = "s00.01KC46E0D7X8BQXSRB29FJP960"


def post(api, path, body=b"{}", **headers):
    send = {"Authorization": f"Bearer {api.key}", "Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return requests.post(api.url + path, data=body, headers={name: value for name, value in send.items() if value is not None}, timeout=10)


def assert_error(answer, status, code, field=None):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code and error.get("field") == field, error
    assert len(error["message"]) > 10 and set(error) <= {"code", "message", "field"}
    assert answer.headers["Cache-Control"] == "no-store"


def test_bad_request_names_the_field(api):
    assert_error(post(api, "/v1/room/ListRooms", b'{"account_id":"@x"}'), 400, "bad_request", "account_id")


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic dTpw", "Bearer {key}x", "{key}"])
def test_unauthenticated_without_a_right_key(api, authorization):
    given = authorization.format(key=api.key) if authorization is not None else None
    answer = post(api, "/v1/room/Create", Authorization=given)
    assert_error(answer, 401, "unauthenticated")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_key_in_the_query_is_none(api):
    assert_error(post(api, f"/v1/room/Create?key={api.key}", Authorization=None), 401, "unauthenticated")


def test_old_and_new_service_key_are_both_valid(new_cluster):
    cluster = new_cluster(settings={"service_keys": "old:" + "o" * 16 + ", new:" + "n" * 16})
    url = cluster.instances[0].url
    for key, status in (("o" * 16, 200), ("n" * 16, 200), ("old", 401), ("o" * 15, 401), ("o" * 16 + "," + "n" * 16, 401)):
        answer = requests.post(url + "/v1/room/Create", json={}, headers={"Authorization": f"Bearer {key}"}, timeout=10)
        assert answer.status_code == status, key


def test_not_member_for_an_account_that_is_not_in_the_room(api):
    room = api.create_room("alice")["room_id"]
    assert api.error("history/Push", room_id=room, sender="eve", kind="text", content="x") == (403, "not_member")
    assert api.error("history/Pull", room_id=room, account_id="eve") == (403, "not_member")
    status, code = api.error("history/PullByActiveConnection", account_id="eve", rooms=[{"room_id": room}])
    assert (status, code) == (403, "not_member")


def test_forbidden_to_add_to_a_direct_room(api):
    room = api.create_room("forbidden-a", "forbidden-b", kind="direct")["room_id"]
    assert api.error("room/AddAccount2Room", room_id=room, account_id="eve") == (403, "forbidden")


def test_no_such_room_whatever_is_asked_of_it(api):
    for method, fields in [("room/Get", {}), ("room/Update", {"name": "x"}), ("room/Remove", {}), ("room/ListAccounts", {}),
            ("room/AddAccount2Room", {"account_id": "a"}), ("room/RmAccountFromRoom", {"account_id": "a"}), ("history/Pull", {}),
            ("history/Push", {"sender": "a", "kind": "text", "content": "x"}), ("room/Mute", {"until": 0}), ("room/SetRole", {"account_id": "a", "role": "admin"}),
            ("history/Edit", {"account_id": "a", "seq": 1, "content": "x"}), ("history/Recall", {"seq": 1}), ("history/Delete", {"seq": 1, "scope": "all"}),
            ("history/Delete", {"account_id": "a", "seq": 1, "scope": "me"}), ("history/MarkRead", {"account_id": "a", "read_seq": 1})]:
        for room_id in (UNKNOWN, "s999.01KC46E0D7X8BQXSRB29FJP960", "nope", "s00.", "../etc", "'; DROP TABLE room; --", "%s%n${jndi:x}"):
            assert api.error(method, room_id=room_id, **fields) == (404, "no_such_room"), (method, room_id)


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/v1/room", "/v1/room/", "/v1/room/create", "/v1/room/Create/", "/v1/history/Forget", "/v2/room/Create",
    "//v1/room/Create", "/v1/room/../room/Create", "/v1/room/%43reate", "/.git/config", "/debug", "/healthz/"])
def test_no_such_method_for_a_path_that_is_none_of_ours(api, path):
    request = requests.Request("POST", api.url, data=b"{}", headers={"Content-Type": "application/json", "Authorization": f"Bearer {api.key}"}).prepare()
    request.url = api.url + path  # as it stands
    assert_error(requests.Session().send(request, timeout=10), 404, "no_such_method")


@pytest.mark.parametrize("method, path, allowed", [("GET", "/v1/room/Create", "POST"), ("PUT", "/v1/history/Push", "POST"),
    ("DELETE", "/v1/room/Remove", "POST"), ("OPTIONS", "/v1/room/Get", "POST"), ("POST", "/healthz", "GET, HEAD"), ("POST", "/metrics", "GET, HEAD")])
def test_method_not_allowed_says_which_is(api, method, path, allowed):
    answer = requests.request(method, api.url + path, headers={"Content-Type": "application/json"}, timeout=10)
    assert_error(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == allowed


def test_room_full_above_the_member_limit(api):
    room = api.create_room("a", member_limit=1)["room_id"]
    assert api.error("room/AddAccount2Room", room_id=room, account_id="b") == (409, "room_full")


def test_conflict_for_other_content_under_the_same_id(api):
    room = api.create_room("alice")["room_id"]
    api.push(room, "alice", "one", client_msg_id="c", wait="durable")
    assert api.error("history/Push", room_id=room, sender="alice", kind="text", content="two", client_msg_id="c", wait="durable") == \
        (409, "conflict")


def test_room_gone_for_a_message_to_a_removed_room(api):
    room = api.create_room("alice")["room_id"]
    api.ok("room/Remove", room_id=room)
    assert api.error("history/Push", room_id=room, sender="alice", kind="text", content="x") == (410, "room_gone")


def test_too_large_says_the_limit(api):
    room = api.create_room("alice")["room_id"]
    status, answer = api.call("history/Push", room_id=room, sender="alice", kind="text", content="x" * 70000)
    assert (status, answer["error"]["code"], answer["error"]["field"]) == (413, "too_large", "content") and "65536" in answer["error"]["message"]
    for size in (1 << 20, 5 << 20, 40 << 20):  # the answer reaches who is still sending
        answer = post(api, "/v1/room/Create", b'{"name":"' + b"x" * size + b'"}')
        assert_error(answer, 413, "too_large")
        assert str(1 << 20) in answer.json()["error"]["message"]


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16", "multipart/form-data"])
def test_unsupported_media_type_for_what_is_neither_json_nor_messagepack(api, content_type):
    assert_error(post(api, "/v1/room/Create", Content_Type=content_type), 415, "unsupported_media_type")


def test_an_encoded_body_is_not_unpacked(api):
    assert_error(post(api, "/v1/room/Create", Content_Encoding="gzip"), 415, "unsupported_media_type")


def test_unavailable_when_the_broker_is_away_and_reading_goes_on(new_cluster, broker):
    cluster = new_cluster()
    api, instance = cluster.api, cluster.instances[0]
    room = api.create_room("alice")["room_id"]
    api.push(room, "alice", "before", wait="durable")
    broker.kill()
    wait_for(lambda: instance.readyz()[1]["broker"] is False)
    status, answer = instance.readyz()
    assert status == 503 and "broker" in answer["reason"]
    answer = post(api, "/v1/history/Push", f'{{"room_id":"{room}","sender":"alice","kind":"text","content":"x"}}'.encode())
    assert_error(answer, 503, "unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert [entry["content"] for entry in api.pull(room)["entries"]] == ["before"]
    assert requests.get(instance.url + "/healthz", timeout=5).status_code == 200
    broker.start()
    wait_for(lambda: instance.ready(), 30)
    api.until_ok("history/Push", room_id=room, sender="alice", kind="text", content="after", client_msg_id="after", wait="durable")


def test_unavailable_when_the_database_is_away(new_cluster, database):
    cluster = new_cluster(settings={"database_timeout_ms": 1000})
    api, instance = cluster.api, cluster.instances[0]
    room = api.until_ok("room/Create", members=["alice"])["room"]["room_id"]  # a second may be too short for a database that has no time
    api.until_ok("history/Push", room_id=room, sender="alice", kind="text", content="before", client_msg_id="before", wait="durable")
    database.kill()
    wait_for(lambda: instance.readyz()[1]["database"] is False)
    assert instance.readyz()[0] == 503 and "database" in instance.readyz()[1]["reason"]
    for method, fields in [("room/Create", {}), ("room/Get", {"room_id": room}), ("room/ListRooms", {"account_id": "alice"}),
            ("room/ListAccounts", {"room_id": room}), ("history/Pull", {"room_id": room})]:
        status, code = api.error(method, **fields)
        assert (status, code) == (503, "unavailable"), method
    # The owner remembers who is in the room, so that what is said is still taken.
    api.push(room, "alice", "meanwhile", client_msg_id="m")
    assert requests.get(instance.url + "/healthz", timeout=5).status_code == 200
    database.start()
    wait_for(lambda: instance.ready(), 30)
    assert [entry["content"] for entry in api.pull_until(room, 2, 30)] == ["before", "meanwhile"]


def test_timeout_when_the_database_does_not_answer(new_cluster, database):
    cluster = new_cluster(settings={"database_timeout_ms": 500})
    api = cluster.api
    room = api.until_ok("room/Create", members=["alice"])["room"]["room_id"]
    database.freeze()
    assert api.error("room/Get", room_id=room) in ((504, "timeout"), (503, "unavailable"))
    assert api.error("room/Create", key="k") in ((504, "timeout"), (503, "unavailable"))
    database.thaw()
    assert api.until_ok("room/Create", key="k")["room"]["key"] == "k"


def test_every_instance_owns_its_share_and_answers_for_all(cluster):
    def shares():
        return sorted(len(instance.readyz()[1]["shards"]) for instance in cluster.instances)

    wait_for(lambda: shares() == [4, 4], 30, what="four shards each")
    room = cluster.api.create_room("alice")["room_id"]
    for n, instance in enumerate(cluster.instances, 1):
        status, answer = instance.readyz()
        assert status == 200 and answer["ready"] and not answer["standby"] and answer["broker"] and answer["database"] and not answer["draining"]
        assert [lease["shard"] for lease in answer["leases"]] == answer["shards"]
        assert all(lease["epoch"] > 0 and abs(lease["since"] / 1000 - time.time()) < 3600 for lease in answer["leases"])
        assert instance.api.push(room, "alice", "x", wait="durable")["seq"] == n

        def first_endpoint():
            return instance.api.ok("history/PullByActiveConnection", account_id="alice", rooms=[{"room_id": room}])["endpoints"][0]["url"]

        wait_for(lambda: first_endpoint() == cluster.owner_of(room).url, what="the owner comes first")  # it may have heard of no change yet


def test_health_needs_no_key(cluster):
    instance = cluster.owner_of(cluster.api.create_room()["room_id"])
    assert requests.get(instance.url + "/healthz", timeout=5).status_code == 200
    status, ready = instance.readyz()
    assert status == 200 and ready["ready"] and ready["reason"] is None and len(ready["instance"]) == 26 and len(ready["shards"]) >= 1
    metrics = instance.metrics()
    assert metrics["process_resident_memory_bytes"] > 1e6 and metrics["process_open_fds"] > 5 and metrics["roomd_ready"] == 1
    assert requests.head(instance.url + "/healthz", timeout=5).status_code == 200
