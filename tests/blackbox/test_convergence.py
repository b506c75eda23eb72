"""
Who was away ends where who was there is: after a thousand sends, edits, recalls, deletes, joins, leaves, renames and mutes of one room, by stream and by Pull.
"""
import random
import threading
import time

import pytest
import requests

import roomd

OPERATIONS = 1000
CALLERS = 4
SPEAKERS = [f"s{number}" for number in range(6)]
WATCHERS = ["here-early", "here-durable", "away-early", "away-durable"]
FAR = 4102444800000  # a mute that ends after the test


class Room:
    """What a frontend has of a room, by the events it got (docs/protocol.md#events)."""

    def __init__(self, members):
        self.messages, self.members, self.muted, self.name, self.all_muted = {}, {account: "member" for account in members}, set(), "", False

    def copy(self):
        other = Room([])
        other.messages, other.members = {seq: dict(message) for seq, message in self.messages.items()}, dict(self.members)
        other.muted, other.name, other.all_muted = set(self.muted), self.name, self.all_muted
        return other

    def take(self, event):
        kind = event["type"].replace(".", "_")
        if "seq" in event and hasattr(self, f"_{kind}"):
            getattr(self, f"_{kind}")(event)
        return self

    def take_all(self, events):
        for event in events:
            self.take(event)
        return self

    def shows(self):
        return {"messages": self.messages, "members": self.members, "muted": self.muted, "name": self.name, "all_muted": self.all_muted}

    def _message(self, event):
        self.messages[event["seq"]] = {name: event.get(name) for name in ("message_id", "sender", "kind", "content", "mentions", "state")}

    def _message_edited(self, event):
        message = self.messages[event["target_seq"]]
        assert message["message_id"] == event["message_id"], event
        if message["state"] in ("recalled", "deleted"):
            return  # Pull shows messages as they are now, and their changes behind them once more
        message["state"], message["content"] = "edited", event.get("content")  # without content: what takes it back follows
        if message["kind"] == "rich_text":
            message["mentions"] = event.get("mentions")

    def _message_recalled(self, event):
        assert "content" not in event, event
        self._blank(event, "recalled")

    def _message_deleted(self, event):
        assert "content" not in event, event
        self._blank(event, "deleted")

    def _blank(self, event, state):
        message = self.messages[event["target_seq"]]
        assert message["message_id"] == event["message_id"], event
        if message["state"] != "deleted":
            message.update(state=state, content=None, mentions=None)

    def _void(self, event):
        self.messages.pop(event["seq"], None)

    def _reset(self, event):
        self.messages = {seq: message for seq, message in self.messages.items() if seq <= event["seq"]}

    def _member_joined(self, event):
        for account in event["account_ids"]:
            self.members[account] = event["role"]
            self.muted.discard(account)

    def _member_left(self, event):
        for account in event["account_ids"]:
            self.members.pop(account)
            self.muted.discard(account)

    def _member_updated(self, event):
        for account in event["account_ids"]:
            if "role" in event:
                self.members[account] = event["role"]
            if "muted_until" in event:
                (self.muted.add if event["muted_until"] else self.muted.discard)(account)

    def _room_updated(self, event):
        self.name = event.get("name", self.name)
        if "muted_until" in event:
            self.all_muted = event["muted_until"] > 0
        if "owner" in event:
            self.members = {account: "member" if role == "owner" else role for account, role in self.members.items()}
            self.members[event["owner"]] = "owner"


class Caller:
    """Does what people and the business do in a room, one after the other; what the rules refuse is refused. Each call is repeated with its id while
    instances come and go. (To the owner while it lives: others hear of an answer half a second later.)"""

    def __init__(self, cluster, room, seed):
        self.cluster, self.owner, self.room, self.random = cluster, cluster.owner_of(room), room, random.Random(seed)
        self.sent, self.done, self.refused, self.error = [], 0, 0, None

    def run(self, count):
        try:
            while self.done + self.refused < count:
                self.step()
        except Exception as error:  # the thread that owns it reports it
            self.error = error

    def step(self):
        pick, one = self.random.random(), self.random.choice(SPEAKERS)
        if pick < 0.45 or not self.sent:
            self.send(one)
        elif pick < 0.62:
            seq, sender, kind = self.target()
            self.call("history/Edit", seq=seq, account_id=sender, content=self.content(kind))
        elif pick < 0.72:
            seq, sender, _ = self.target()
            self.call("history/Recall", seq=seq, account_id=sender)
        elif pick < 0.77:
            seq, sender, _ = self.target()
            self.call("history/Delete", seq=seq, account_id=sender, scope="all")
        elif pick < 0.83:
            self.call("room/RmAccountFromRoom", account_id=one)
        elif pick < 0.90:
            self.call("room/AddAccount2Room", account_ids=self.random.sample(SPEAKERS, 2), role=self.random.choice(["member", "admin"]))
        elif pick < 0.94:
            self.call("room/Update", name=f"name {self.random.randrange(1000)}")
        elif pick < 0.96:
            self.call("room/SetRole", account_id=one, role=self.random.choice(["member", "admin"]))
        elif pick < 0.98:
            self.call("room/Mute", account_id=one, until=self.random.choice([0, 0, FAR]))
        else:
            self.call("room/Mute", until=self.random.choice([0, 0, 0, FAR]))

    def target(self):
        return self.random.choice(self.sent[-12:])

    def content(self, kind):
        text = f"text {self.random.randrange(10**6)}"
        if kind == "text":
            return text
        return {"parts": [{"type": "text", "body": text}, {"type": "mention", "user_id": self.random.choice(SPEAKERS)}][:self.random.randint(1, 2)]}

    def send(self, sender):
        kind = self.random.choice(["text", "text", "rich_text"])
        answer = self.call("history/Push", ident="client_msg_id", sender=sender, kind=kind, content=self.content(kind), wait="durable")
        if answer:
            self.sent.append((answer["seq"], sender, kind))

    def call(self, method, ident="request_id", **fields):
        body = {"room_id": self.room, ident: roomd.new_id(), **fields}

        def attempt():
            try:
                status, answer = (self.owner if self.owner.alive() else self.cluster.alive[0]).api.call(method, body)
            except (requests.RequestException, IndexError):
                return None
            assert status in (200, 503, 504) or (status < 500 and answer["error"]["code"] in
                ("forbidden", "not_member", "conflict", "too_late", "no_such_message")), f"{method} {body}: {status} {answer}"
            return None if status in (503, 504) else (status, answer)

        status, answer = roomd.wait_for(attempt, 30, every=0.05, what=f"{method} does not work")
        self.done, self.refused = self.done + (status == 200), self.refused + (status != 200)
        return answer if status == 200 else None


class Watcher:
    """An account with one stream at a time, opened where the last one ended."""

    def __init__(self, cluster, account, room, deliver):
        self.cluster, self.room = cluster, room
        self.streams = [cluster.open_stream(account, [{"room_id": room, "after": "0:0"}], deliver=deliver)]

    def go(self):
        self.streams[-1].close()

    def come_back(self):
        self.streams.append(self.streams[-1].reconnect(endpoint=self.cluster.alive[0]))

    def stay(self):
        """There all the time, whatever happens to the instance it is connected to."""
        if self.streams[-1].closed is not None:
            self.come_back()

    def read_up_to(self, seq):
        def there():
            self.stay()
            return roomd.parse_cursor(self.streams[-1].cursors[self.room])[1] >= seq

        roomd.wait_for(there, 60, what=lambda: f"up to {seq}: {self.streams[-1].cursors}, {self.streams[-1].closed}")

    def shows(self):
        room = Room(SPEAKERS + WATCHERS)
        for stream in self.streams:
            room.take_all([event for event in list(stream.events) if event.get("room_id") == self.room])
        return room.shows()


def operate(cluster, room, in_the_middle=lambda: None):
    """All operations, by several callers at once. The callers, when they are through."""
    callers = [Caller(cluster, room, seed) for seed in range(CALLERS)]
    threads = [threading.Thread(target=caller.run, args=(OPERATIONS // CALLERS,), daemon=True) for caller in callers]
    for thread in threads:
        thread.start()
    roomd.wait_for(lambda: sum(caller.done + caller.refused for caller in callers) > OPERATIONS // 2 or not any(map(threading.Thread.is_alive, threads)), 200)
    in_the_middle()
    for thread in threads:
        thread.join(200)
        assert not thread.is_alive(), "the operations do not end"
    assert not any(caller.error for caller in callers), [caller.error for caller in callers]
    assert sum(caller.done for caller in callers) > OPERATIONS // 3
    return callers


def server_shows(api, room):
    """The room as its lists and the newest state of its messages have it."""
    shown, entries = Room([]), api.pull_all(room)
    for entry in entries:
        if entry["type"] == "message":
            shown.take(entry)
    accounts = api.ok("room/ListAccounts", room_id=room, limit=1000)["accounts"]
    shown.members = {account["account_id"]: account["role"] for account in accounts}
    shown.muted = {account["account_id"] for account in accounts if account.get("muted_until", 0) > time.time() * 1000}
    shown.name = api.ok("room/Get", room_id=room)["room"]["name"]
    return shown.shows()


def same(found, wanted, who):
    for part in wanted:
        if part == "messages":
            assert sorted(found[part]) == sorted(wanted[part]), who
            for seq in wanted[part]:
                assert found[part][seq] == wanted[part][seq], f"{who}: seq {seq}"
        else:
            assert found[part] == wanted[part], f"{who}: {part}"


def converge(cluster, in_the_middle=lambda: None):
    api = cluster.api
    room = api.create_room(*SPEAKERS, *WATCHERS)["room_id"]
    watchers = {account: Watcher(cluster, account, room, account.partition("-")[2]) for account in WATCHERS}
    first = Caller(cluster, room, 99)
    first.run(30)
    assert not first.error, first.error
    page = cluster.api.pull_all(room)
    by_pull, cursor = Room(SPEAKERS + WATCHERS).take_all(page), f"{page[-1]['epoch']}:{page[-1]['seq']}"
    for account, watcher in watchers.items():
        watcher.read_up_to(page[-1]["seq"])
        if account.startswith("away"):
            watcher.go()

    def middle():
        in_the_middle()
        for account, watcher in watchers.items():
            if account.startswith("here"):
                watcher.stay()

    operate(cluster, room, middle)
    entries = cluster.api.pull_all(room)
    head = entries[-1]["seq"]
    watchers["away-early"].come_back()
    watchers["away-durable"].come_back()
    for watcher in watchers.values():
        watcher.read_up_to(head)
    here = watchers["here-durable"].shows()
    for account, watcher in watchers.items():
        same(watcher.shows(), here, account)
    same(Room(SPEAKERS + WATCHERS).take_all(entries).shows(), here, "Pull from the beginning")
    while True:
        page = cluster.api.pull(room, after=cursor, limit=100)
        by_pull.take_all(page["entries"])
        if not page["more"]:
            break
        cursor = f"{page['entries'][-1]['epoch']}:{page['entries'][-1]['seq']}"
    same(by_pull.shows(), here, "Pull from where it was left")
    same({**server_shows(cluster.api, room), "all_muted": here["all_muted"]}, here, "the server's lists")
    states = [message["state"] for message in here["messages"].values()]
    assert all(states.count(state) > 5 for state in (None, "edited", "recalled", "deleted")), states
    cluster.check_log([room])


@pytest.mark.deadline(300)
def test_who_was_away_ends_with_the_room_of_who_was_there(cluster):
    converge(cluster)


@pytest.mark.deadline(300)
def test_who_was_away_while_the_owner_was_killed_ends_with_the_room_of_who_was_there(new_cluster):
    cluster = new_cluster(instances=2)
    converge(cluster, lambda: cluster.owner_of(cluster.rows("select room_id from room")[0][0]).kill9())
