"""docs/openapi.yaml is well formed, says what the code says, and what a running instance answers."""
import base64
import json
import re
import time

import jsonschema
import pytest
import requests
import yaml

import roomd



class Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which the usual one keeps the second."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key stands twice: {node.start_mark}"
        return super().construct_mapping(node, deep)


DOCUMENT = yaml.load((roomd.TOP / "docs" / "openapi.yaml").read_text(), Loader)
SCHEMAS = DOCUMENT["components"]["schemas"]


def source(path):
    return (roomd.TOP / path).read_text()


# --- the file itself ---

# The part of OpenAPI 3.0 that the file uses. What is not here is a slip of the pen.
REFERENCE = {"type": "object", "required": ["$ref"], "additionalProperties": False, "properties": {"$ref": {"type": "string", "pattern": "^#/components/"}}}


def or_reference(schema):
    return {"anyOf": [REFERENCE, schema]}


def map_of(schema, names="."):
    return {"type": "object", "patternProperties": {names: schema}, "additionalProperties": False}


SCHEMA = or_reference({
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "type": {"enum": ["object", "array", "string", "integer", "number", "boolean"]},
        "description": {"type": "string"},
        "nullable": {"type": "boolean"},
        "default": {},
        "enum": {"type": "array", "minItems": 1},
        "pattern": {"type": "string", "format": "regex"},
        **{name: {"type": "integer", "minimum": 0} for name in ("minLength", "maxLength", "minItems", "maxItems")},
        **{name: {"type": "number"} for name in ("minimum", "maximum")},
        "required": {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": "string"}},
        "properties": {"type": "object", "additionalProperties": {"$ref": "#/$defs/schema"}},
        "additionalProperties": {"type": "boolean"},
        "items": {"$ref": "#/$defs/schema"},
        **{name: {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/schema"}} for name in ("oneOf", "allOf")},
        "discriminator": {"type": "object", "required": ["propertyName"], "properties": {"propertyName": {"type": "string"}, "mapping": map_of({"type": "string"})}},
    },
})
CONTENT = map_of({"type": "object", "required": ["schema"], "additionalProperties": False, "properties": {"schema": {"$ref": "#/$defs/schema"}}}, "^[a-z]+/[a-z-]+$")
RESPONSE = {
    "type": "object",
    "required": ["description"],
    "additionalProperties": False,
    "properties": {"description": {"type": "string"}, "content": CONTENT, "x-status": {"type": "integer"}, "x-codes": {"type": "array", "items": {"type": "string"}}},
}
BODY = {"type": "object", "required": ["content", "required"], "additionalProperties": False, "properties": {"content": CONTENT, "required": {"type": "boolean"}}}
PARAMETER = {
    "type": "object",
    "required": ["name", "in", "schema"],
    "additionalProperties": False,
    "properties": {"name": {"type": "string"}, "in": {"enum": ["query", "header"]}, "required": {"type": "boolean"}, "description": {"type": "string"},
        "schema": {"$ref": "#/$defs/schema"}},
}
OPERATION = {
    "type": "object",
    "required": ["operationId", "summary", "responses"],
    "additionalProperties": False,
    "properties": {
        "tags": {"type": "array", "items": {"type": "string"}},
        "operationId": {"type": "string"},
        **{name: {"type": "string"} for name in ("summary", "description")},
        "security": {"type": "array", "items": map_of({"type": "array"})},
        "parameters": {"type": "array", "items": or_reference(PARAMETER)},
        "requestBody": or_reference(BODY),
        "responses": map_of(or_reference(RESPONSE), "^[1-5][0-9][0-9]$"),
    },
}
META = {
    "$defs": {"schema": SCHEMA},
    "type": "object",
    "required": ["openapi", "info", "paths", "components"],
    "additionalProperties": False,
    "properties": {
        "openapi": {"const": "3.0.3"},
        "info": {"type": "object", "required": ["title", "version"]},
        "servers": {"type": "array"},
        "security": {"type": "array"},
        "tags": {"type": "array", "items": {"type": "object", "required": ["name"]}},
        "paths": map_of({"type": "object", "minProperties": 1, "additionalProperties": False, "properties": {"get": OPERATION, "post": OPERATION}}, "^/"),
        "components": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "securitySchemes": {"type": "object"},
                "parameters": map_of(PARAMETER),
                "requestBodies": map_of(BODY),
                "responses": map_of(RESPONSE),
                "schemas": map_of({"$ref": "#/$defs/schema"}),
            },
        },
    },
}


def walk(node, path="#"):
    yield path, node
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        yield from walk(value, f"{path}/{key}")


def resolve(reference):
    node = DOCUMENT
    for part in reference[2:].split("/"):
        node = node[part]
    return node


def operations():
    return [(path, method, operation) for path, methods in DOCUMENT["paths"].items() for method, operation in methods.items()]


def test_the_file_is_openapi_as_far_as_it_uses_it():
    slips = [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in jsonschema.Draft202012Validator(META).iter_errors(DOCUMENT)]
    assert not slips


def test_every_reference_leads_somewhere_and_every_schema_is_used():
    references = {node["$ref"] for _, node in walk(DOCUMENT) if isinstance(node, dict) and "$ref" in node}
    for reference in references | {target for _, node in walk(DOCUMENT) if isinstance(node, dict) for target in node.get("mapping", {}).values()}:
        resolve(reference)
    unused = {f"#/components/{kind}/{name}" for kind in ("schemas", "requestBodies", "parameters") for name in DOCUMENT["components"][kind]} - references
    assert not unused


def test_every_required_property_is_described():
    for path, node in walk(SCHEMAS):
        if isinstance(node, dict) and node.get("type") == "object":
            assert set(node.get("required", [])) <= set(node.get("properties", {})), path


def test_operations_have_names_of_their_own():
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(names) == len(set(names))


# --- the code ---


def test_its_paths_are_the_routes_of_the_program():
    routes = {(path, "get" if ".get = true" in rest else "post")
        for path, rest in re.findall(r'\{\.path = "(/[^"]+)"([^}]*)\}', source("room/server/api.c"))}
    streams = set(re.findall(r'"(/v1/stream/[a-z]+)"', source("proxy/proxy.c")))
    described = {(path, method) for path, method, _ in operations()}
    assert {one for one in described if not one[0].startswith("/v1/stream/")} == routes
    assert {path for path, _ in described if path.startswith("/v1/stream/")} == streams
    assert {path for path, method in described if path.startswith("/v1/stream/") and method == "post"} == streams - {"/v1/stream/ws"}


def error_table():
    rows = re.findall(r'X\((ERR_\w+),\s*(\d+),\s*"(\w+)"', source("room/base/err.h"))
    assert len(rows) > 15
    return {(int(status), code) for _, status, code in rows if code != "ok"}


def test_its_error_codes_are_those_of_the_program():
    described = {(response["x-status"], code) for response in DOCUMENT["components"]["responses"].values() for code in response["x-codes"]}
    assert described == error_table()
    assert set(SCHEMAS["ErrorCode"]["enum"]) == {code for _, code in described}


def test_the_protocol_tells_every_error_code_with_its_status():
    section = source("docs/protocol.md").split("## Errors", 1)[1].split("\n## ", 1)[0]
    told = {(int(status), code) for status, code in re.findall(r"^\| (\d+) \| `(\w+)` \|", section, re.M)}
    assert told == error_table()


def test_each_answer_stands_at_its_status():
    for path, method, operation in operations():
        for status, response in operation["responses"].items():
            if "$ref" in response:
                assert resolve(response["$ref"])["x-status"] == int(status), (path, method, status)


def test_its_events_are_those_the_program_can_say():
    folders = ("history", "proxy", "room/server")
    named = {name for folder in folders for path in (roomd.TOP / folder).glob("*.c") for name in re.findall(r'\{\\"type\\":\\"([a-z.]+)\\"', path.read_text())}
    entries = set(re.findall(r'\[ENTRY_\w+\] = "([a-z.]+)"', source("history/entry.c")))
    described = {name for option in SCHEMAS["Event"]["oneOf"] for name in resolve(option["$ref"])["properties"]["type"]["enum"]}
    assert described == named | entries | {"ack", "pong"}
    assert {name for option in SCHEMAS["Entry"]["oneOf"] for name in resolve(option["$ref"])["properties"]["type"]["enum"]} == entries
    assert set(SCHEMAS["Entry"]["discriminator"]["mapping"]) == entries


def test_the_protocol_tells_every_path():
    text = source("docs/protocol.md")
    for path in DOCUMENT["paths"]:
        name = path[len("/v1/"):] if path.startswith(("/v1/room/", "/v1/history/", "/v1/proxy/")) else path
        assert f"`{name}`" in text or f" {name}`" in text, path


# --- a running instance ---


def strict(node):
    """JSON Schema of an OpenAPI schema, which also refuses what is not described: a field the code has and the file has not."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return {"$ref": node["$ref"].replace("#/components/schemas/", "#/$defs/")}
    done = {key: strict(value) if key in ("items", "oneOf", "allOf") else value for key, value in node.items()
        if key not in ("nullable", "discriminator", "description", "default", "properties")}
    if "properties" in node:
        done["properties"] = {name: strict(schema) for name, schema in node["properties"].items()}
        done.setdefault("additionalProperties", False)
    return {"anyOf": [{"type": "null"}, done]} if node.get("nullable") else done


DEFINITIONS = {name: strict(schema) for name, schema in SCHEMAS.items()}


def check(value, schema):
    jsonschema.Draft202012Validator({"$defs": DEFINITIONS, **schema}).validate(value)


def check_answer(method, path, status, value):
    response = DOCUMENT["paths"][path][method]["responses"].get(str(status))
    assert response, f"{path} answered {status}, which is not described: {value}"
    response = resolve(response["$ref"]) if "$ref" in response else response
    check(value, strict(response["content"]["application/json"]["schema"]))
    if "x-codes" in response:
        assert value["error"]["code"] in response["x-codes"]


def checked_calls(api):
    """Calls, and checks request and answer against the file; gives the answer."""

    def call(method, expected=200, **fields):
        path = f"/v1/{method}"
        if expected == 200:
            body = resolve(DOCUMENT["paths"][path]["post"]["requestBody"]["$ref"])
            check(fields, strict(body["content"]["application/json"]["schema"]))
        status, answer = api.call(method, fields)
        check_answer("post", path, status, answer)
        assert status == expected, answer
        return answer

    return call


@pytest.fixture
def call(api):
    return checked_calls(api)


@pytest.fixture
def room_id(call):
    return call("room/Create", name="a room", members=["alice", "bob"], owner="alice", extra={"a": [1]})["room"]["room_id"]


def check_events(stream):
    for event in list(stream.events):
        check(event, {"$ref": "#/$defs/Event"})


def test_calls_about_rooms_answer_as_described(call, room_id):
    key = f"key-{roomd.new_id()}"
    call("room/Create", key=key, kind="live", history="since_join", request_id=roomd.new_id())
    call("room/Create", kind="direct", members=["alice", roomd.new_id()])
    call("room/Get", key=key)
    call("room/Get", room_id=room_id)
    call("room/Get", room_ids=[room_id, room_id])
    call("room/Update", room_id=room_id, name="another name", notice="come", member_limit=3, owner="bob", extra={"b": 2})
    assert call("room/AddAccount2Room", room_id=room_id, account_ids=["carol", "alice"], role="admin")["added"] == ["carol"]
    call("room/ListAccounts", room_id=room_id, limit=2)
    call("room/ListAccounts", room_id=room_id, account_ids=["bob"])
    call("room/RmAccountFromRoom", room_id=room_id, account_id="carol", reason="she asked")
    call("room/ListRooms", account_id="alice", limit=1)
    call("room/Remove", room_id=room_id, reason="over")
    call("room/Get", room_id=room_id)


def test_calls_about_what_was_said_answer_as_described(call, room_id):
    call("history/Push", room_id=room_id, sender="alice", kind="text", content="hello")
    call("history/Push", room_id=room_id, sender="@system", kind="tip", content={"text": "x"}, wait="durable", client_msg_id="one")
    call("history/Push", room_id=room_id, sender="bob", kind="custom/poll", content=[1, None, "x"], sent_at=5, mentions=["alice", "@all"], quote_seq=1, wait="durable")
    call("history/Push", room_id=room_id, sender="bob", kind="custom/cursor", content=1, transient=True)
    call("room/AddAccount2Room", room_id=room_id, account_id="carol")
    call("room/RmAccountFromRoom", room_id=room_id, account_id="carol")
    call("room/AddAccount2Room", room_id=room_id, account_id="alice")  # nothing new: a void
    call("room/Update", room_id=room_id, name="n")
    call("room/Remove", room_id=room_id)
    page = call("history/Pull", room_id=room_id, account_id="alice", after="0:0", limit=500)
    assert [entry["type"] for entry in page["entries"]] == [
        "message", "message", "message", "member.joined", "member.left", "void", "room.updated", "room.removed"]
    call("history/Pull", room_id=room_id, before=3, limit=1)
    call("history/Pull", room_id=room_id, after=2)
    call("history/Pull", room_id=room_id, after="99:99")
    call("history/Pull", room_id=room_id, after=page["head"], wait_ms=1)
    assert call("room/ListRooms", account_id="alice")["rooms"] is not None


def test_calls_about_what_was_said_before_answer_as_described(call, room_id):
    say = {"room_id": room_id, "wait": "durable"}
    one, two, three = (call("history/Push", sender="alice", kind="text", content=text, **say) for text in ("one", "two", "three"))
    rich = call("history/Push", sender="alice", kind="rich_text", content={"parts": []}, **say)
    call("history/Edit", room_id=room_id, account_id="alice", seq=one["seq"], content={"body": "edited"}, request_id=roomd.new_id())
    call("history/Edit", room_id=room_id, account_id="alice", message_id=rich["message_id"],
        content={"parts": [{"type": "mention", "user_id": "bob"}], "quote_message_seq": one["seq"]})
    call("history/Recall", room_id=room_id, account_id="alice", message_id=two["message_id"])
    call("history/Delete", room_id=room_id, seq=three["seq"], scope="all")
    call("history/Delete", room_id=room_id, account_id="bob", seq=one["seq"], scope="me")
    call("history/MarkRead", room_id=room_id, account_id="bob", read_seq=three["seq"])
    call("history/Unread", account_id="bob", room_ids=[room_id])
    call("history/Unread", account_id="bob")
    call("history/Typing", room_id=room_id, account_id="bob")
    call("proxy/Online", account_ids=["alice", "bob"])
    call("proxy/Connections", room_id=room_id)
    call("proxy/Kick", account_id="nobody", platform="web", reason="why")
    call("room/Mute", room_id=room_id, account_ids=["bob", "nobody"], until=253402300799999, by="alice", request_id=roomd.new_id())
    call("room/Mute", room_id=room_id, for_ms=1000)
    call("room/SetRole", room_id=room_id, account_id="bob", role="admin", by="alice")
    call("room/ListAccounts", room_id=room_id, has_read=1)
    call("room/ListRooms", account_id="bob")
    page = call("history/Pull", room_id=room_id, after="0:0", limit=500)
    assert [entry["type"] for entry in page["entries"][4:]] == ["message.edited", "message.edited", "message.recalled", "message.deleted",
        "member.updated", "room.updated", "member.updated"]
    assert [entry.get("state") for entry in page["entries"][:4]] == ["edited", "recalled", "deleted", "edited"]


def test_refusals_are_as_described(call, room_id, api):
    call("room/Create", 400, kind="nonsense")
    call("room/Create", 409, members=["a", "b"], member_limit=1)
    call("room/Get", 404, key=roomd.new_id())
    call("room/Update", 403, room_id=room_id, owner="stranger")
    call("room/AddAccount2Room", 400, room_id=room_id)
    call("room/ListAccounts", 404, room_id="s00.01KC46E0D7X8BQXSRB29FJP960")
    call("room/ListRooms", 400, account_id="@nobody")
    call("history/Push", 403, room_id=room_id, sender="stranger", kind="text", content="x")
    call("history/Push", 400, room_id=room_id, sender="alice", kind="text", content=1)
    call("history/Push", 413, room_id=room_id, sender="alice", kind="text", content="x" * 70000)
    seq = call("history/Push", wait="durable", room_id=room_id, sender="alice", kind="text", content="x", client_msg_id="same")["seq"]
    call("history/Push", 409, wait="durable", room_id=room_id, sender="alice", kind="text", content="y", client_msg_id="same")
    call("history/Pull", 400, room_id=room_id, after="1:1", before=1)
    call("history/PullByActiveConnection", 400, account_id="alice")
    call("history/PullByActiveConnection", 403, account_id="stranger", rooms=[{"room_id": room_id}])
    call("history/Edit", 404, room_id=room_id, account_id="alice", seq=1000, content="x")
    call("history/Edit", 403, room_id=room_id, account_id="bob", seq=seq, content="x")
    call("history/Recall", 403, room_id=room_id, account_id="bob", seq=seq)
    call("history/Delete", 400, room_id=room_id, seq=seq)
    call("history/MarkRead", 400, room_id=room_id, account_id="alice", read_seq=1000)
    call("history/Unread", 400)
    call("history/Typing", 403, room_id=room_id, account_id="stranger")
    call("proxy/Online", 400, account_ids="alice")
    call("proxy/Connections", 404, room_id="s00.01KC46E0D7X8BQXSRB29FJP960")
    call("proxy/Kick", 400, account_id="@all")
    call("room/Mute", 400, room_id=room_id)
    call("room/SetRole", 403, room_id=room_id, account_id="alice", role="admin")
    call("room/Remove", room_id=room_id)
    call("room/Update", 410, room_id=room_id, name="x")
    for headers, expected in (({"Authorization": "Bearer wrong-key"}, 401), ({"Content-Type": "text/plain"}, 415)):
        status, answer = api.call("room/Get", {"key": "x"}, headers=headers)
        check_answer("post", "/v1/room/Get", status, answer)
        assert status == expected
    for method, path in (("get", "/v1/room/Get"), ("post", "/healthz"), ("post", "/v1/stream/ws")):
        answer = requests.request(method, api.url + path, timeout=10)
        assert answer.status_code == 405 and answer.headers["Allow"]
        check(answer.json(), {"$ref": "#/$defs/Error"})
    answer = requests.post(api.url + "/v1/no/Such", timeout=10)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_such_method")


def test_health_answers_as_described(cluster):
    for instance in cluster.instances:
        for path in ("/healthz", "/readyz"):
            answer = requests.get(instance.url + path, timeout=10)
            check_answer("get", path, answer.status_code, answer.json())
        assert requests.get(instance.url + "/metrics", timeout=10).headers["Content-Type"].startswith("text/plain")


@pytest.mark.parametrize("transport", ["websocket", "sse", "ndjson", "poll"])
def test_streams_say_what_is_described(cluster, call, room_id, transport):
    offer = call("history/PullByActiveConnection", account_id="alice", rooms=[{"room_id": room_id, "after": "0:0"}], deliver="early", platform="web", ttl_ms=60000)
    stream = cluster.open_with_ticket(offer["ticket"], offer["endpoints"][0]["url"], transport)
    call("history/Push", room_id=room_id, sender="bob", kind="text", content="hello", mentions=["alice"])
    stream.read_message(room_id, content="hello")
    call("history/Push", room_id=room_id, sender="bob", kind="text", content="gone", transient=True)
    said = call("history/Push", room_id=room_id, sender="bob", kind="rich_text", content={"parts": []}, wait="durable")
    call("history/Edit", room_id=room_id, account_id="bob", seq=said["seq"], content={"parts": [{"type": "mention", "mention_type": "all"}], "quote_message_seq": 1})
    stream.read_type("message.edited")
    call("history/Recall", room_id=room_id, account_id="bob", seq=said["seq"])
    stream.read_type("message.recalled")
    call("history/Delete", room_id=room_id, seq=said["seq"], scope="all")
    stream.read_type("message.deleted")
    if transport != "poll":  # what is not kept is for streams that are open in that moment
        call("history/Delete", room_id=room_id, account_id="alice", seq=said["seq"], scope="me")
        stream.read_type("message.hidden")
        call("history/MarkRead", room_id=room_id, account_id="bob", read_seq=said["seq"] + 3)
        stream.read_type("read")
    call("room/Mute", room_id=room_id, account_id="bob", for_ms=1000, by="alice")
    stream.read_type("member.updated", account_ids=["bob"])
    call("room/Mute", room_id=room_id, until=0)
    call("room/SetRole", room_id=room_id, account_id="bob", role="admin")
    stream.read_type("member.updated", role="admin")
    call("room/AddAccount2Room", room_id=room_id, account_id="carol")
    stream.read_type("member.joined")
    call("room/RmAccountFromRoom", room_id=room_id, account_id="carol")
    stream.read_type("member.left")
    call("room/Update", room_id=room_id, notice="n")
    stream.read_type("room.updated")
    call("room/Remove", room_id=room_id)
    stream.read_type("room.removed")
    if transport != "poll":
        stream.read_type("room.left")
    check_events(stream)


def test_an_all_stream_says_what_is_described(new_cluster):
    cluster = new_cluster(instances=1)
    call, account = checked_calls(cluster.api), roomd.new_id()
    offer = call("history/PullByActiveConnection", account_id=account, all=True, deliver="durable")
    stream = cluster.open_with_ticket(offer["ticket"], offer["endpoints"][0]["url"], "websocket")
    stream.read_type("hello")
    room = call("room/Create", members=[account, "bob"])["room"]["room_id"]
    stream.read_type("room.entered", room_id=room)
    call("room/RmAccountFromRoom", room_id=room, account_id=account)
    stream.read_type("room.left", room_id=room)
    check_events(stream)


def test_client_frames_are_answered_as_described(cluster, call, room_id):
    offer = call("history/PullByActiveConnection", account_id="alice", rooms=[{"room_id": room_id}])
    stream = cluster.open_with_ticket(offer["ticket"], offer["endpoints"][0]["url"], "websocket")
    stream.request("message.send", {"room_id": room_id, "client_msg_id": "c", "kind": "text", "content": "hi"})
    stream.read_message(room_id, client_msg_id="c")
    stream.request("message.typing", {"room_id": room_id})
    target = {"room_id": room_id, "message_id": roomd.message_id(room_id, "alice", "c")}
    stream.request("message.edit", {**target, "content": "ho"})
    stream.request("message.read", {"room_id": room_id, "read_seq": 1})
    stream.request("message.recall", target)
    stream.request("message.delete", {**target, "scope": "all"})
    stream.request("message.delete", {**target, "scope": "me"})
    assert stream.request("message.edit", {**target, "content": "hm"})["code"] == "conflict"
    assert stream.request("message.read", {"room_id": room_id})["field"] == "read_seq"
    stream.request("ticket.refresh", {"ticket": offer["ticket"]})
    assert stream.request("no.such.type", {})["code"] == "bad_request"
    stream.request("unsubscribe", {"room_ids": [room_id]})
    call("history/Push", room_id=room_id, sender="bob", kind="text", content="while away")
    stream.request("subscribe", {"rooms": [{"room_id": room_id, "after": stream.cursors[room_id]}]})
    stream.read_message(room_id, content="while away")
    check_events(stream)


def test_a_ticket_says_what_the_protocol_tells(call, room_id):
    before = time.time()
    offer = call("history/PullByActiveConnection", account_id="alice", rooms=[{"room_id": room_id, "after": "0:0"}], platform="web")
    header, claims = (json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in offer["ticket"].split(".")[:2])
    assert header["alg"] == "HS256" and header["typ"] == "JWT" and header["kid"]
    assert claims["iss"] == "roomd" and claims["sub"] == "alice" and claims["rooms"] == [f"{room_id}@0:0"]
    assert claims["deliver"] == "early" and claims["platform"] == "web"
    assert claims["exp"] * 1000 == pytest.approx(offer["expires_at"], abs=1) and abs(claims["iat"] - before) < 60
