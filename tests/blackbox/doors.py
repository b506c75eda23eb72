"""
The two doors through which an account acts: the gateway's service calls, and frames of its own WebSocket. Rules and refusals are the same behind both.

    def test_only_the_sender_edits(door, room):
        door.edit("bob", room, "x", seq=1).refused("forbidden")

Each act gives a Result: .answer of what was done (KeyError when it was not), .refused(code, field=None) of what was not.
"""
import json
import pathlib

from roomd import new_id

GOLDEN = pathlib.Path(__file__).parent / "golden"
GENERIC = "this is not allowed"  # the sentence of a refusal for which nobody knows a better one


def golden(name, **ids):
    """A golden file's text, with the ids it holds replaced: golden("frame_edit", conversation_id=room, message_id=id)."""
    text = (GOLDEN / f"{name}.json").read_text()
    value = json.loads(text)
    for key, other in ids.items():
        for found in (value, value.get("payload", {})):
            if key in found:
                assert text.count(json.dumps(found[key])) == 1
                text = text.replace(json.dumps(found[key]), json.dumps(other))
    return text


class Result:
    def __init__(self, what, answer=None, error=None):
        self.what, self._answer, self.error = what, answer, error

    @property
    def answer(self):
        assert self.error is None, f"{self.what}: {self.error}"
        return self._answer

    @property
    def seq(self):
        return self.answer["seq"]

    def refused(self, code, field=None):
        """The sentence it was refused with."""
        assert self.error, f"{self.what} was accepted: {self._answer}"
        assert (self.error["code"], self.error.get("field")) == (code, field), f"{self.what}: {self.error}"
        return self.error["message"]


class Door:
    def __init__(self, cluster):
        self.cluster = cluster

    def send(self, account, room, content, kind="text", **fields):
        return self._ask("history/Push", "sender", "message.send", account, {"room_id": room, "kind": kind, "content": content, **fields})

    def edit(self, account, room, content, **fields):
        return self._ask("history/Edit", "account_id", "message.edit", account, {"room_id": room, "content": content, **fields})

    def recall(self, account, room, **fields):
        return self._ask("history/Recall", "account_id", "message.recall", account, {"room_id": room, **fields})

    def delete(self, account, room, scope, **fields):
        return self._ask("history/Delete", "account_id", "message.delete", account, {"room_id": room, "scope": scope, **fields})

    def mark(self, account, room, read_seq, **fields):
        return self._ask("history/MarkRead", "account_id", "message.read", account, {"room_id": room, "read_seq": read_seq, **fields})


class CallDoor(Door):
    def _ask(self, method, role, _, account, fields):
        status, answer = self.cluster.api.call(method, {role: account, **fields})
        return Result(f"{method} {fields}", answer, answer.get("error") if status != 200 else None)


class FrameDoor(Door):
    """One stream for each account; it carries all its rooms, or a room it is not in is named all the same in frames."""

    def __init__(self, cluster):
        super().__init__(cluster)
        self.streams = {}

    def stream(self, account):
        if account not in self.streams or self.streams[account].closed is not None:
            self.streams[account] = self.cluster.open_stream(account, all=True)
        return self.streams[account]

    def _ask(self, _, __, frame, account, fields):
        event = self.stream(account).request(frame, fields)
        assert event["type"] in ("ack", "error"), event
        return Result(f"{frame} {fields}", event, event if event["type"] == "error" else None)


DOORS = {"call": CallDoor, "frame": FrameDoor}


def fresh(*words):
    """Accounts nobody used before in this session."""
    made = tuple(f"{word}-{new_id()}" for word in words)
    return made if len(made) > 1 else made[0]


def room_of_four(api, people, **fields):
    """olga owns it, adam is admin, alice and bob are members."""
    olga, adam, alice, bob = people
    room = api.create_room(alice, bob, owner=olga, **fields)["room_id"]
    api.ok("room/AddAccount2Room", room_id=room, account_id=adam, role="admin")
    return room
