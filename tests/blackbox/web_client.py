"""
The browser client (gateway-adapter/web/room-client.js) in Node, as one reader of a test; tests/web/driver.mjs is its other half.

WebClient(cluster, account, rooms=None, transports=None, ways=None, gateway=None, cookie=None, **options)
    .seen: everything the application was shown, [{"what": "entry"|"state"|"sending"|…, …}]
    entries(room_id) what the application has, in the order in which it saw it, without what a reset or forget took back; fails at a repeat
    wait(condition), wait_open(transport=None), wait_seq(room_id, seq), do(command, **fields) -> answer, send(room_id, content) -> client_msg_id
Filter       a TCP way to a server that can hold back connections whose request is for certain paths
"""
import contextlib
import itertools
import json
import socket
import subprocess
import threading

import roomd
from roomd import DEADLINE, wait_for

DRIVER = roomd.TOP / "tests" / "web" / "driver.mjs"
FAST = {"backoff": {"base_ms": 20, "max_ms": 300}, "readEveryMs": 50, "typingEveryMs": 500}


class WebClient:
    def __init__(self, cluster, account, rooms=None, transports=None, ways=None, gateway=None, cookie=None, **options):
        self.account, self.seen, self._numbers, self._lock = account, [], itertools.count(1), threading.Lock()
        self._process = subprocess.Popen(["node", str(DRIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        options = {**FAST, "rooms": rooms, "transports": transports, **options}
        self._write({"urls": [instance.url for instance in cluster.instances], "key": cluster.service_key, "account": account, "ways": ways or {},
            "gateway": gateway, "cookie": cookie, "options": {name: value for name, value in options.items() if value is not None}})
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _write(self, line):
        with self._lock:
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()

    def _read(self):
        for line in self._process.stdout:
            self.seen.append(json.loads(line))

    # what it was shown

    def of(self, what, **fields):
        return [one for one in list(self.seen) if one["what"] == what and all(one.get(name) == value for name, value in fields.items())]

    def entries(self, room_id):
        """Events of the log. A seq that comes again without having been taken back is a broken promise."""
        kept = []
        for one in list(self.seen):
            event = one.get("event", {})
            if one["what"] == "forget" and one["room_id"] == room_id:  # an early duplicate: its seq holds nothing
                kept = [{**entry, "type": "void", "message_id": None} if entry["seq"] == one["seq"] else entry for entry in kept]
            if one["what"] not in ("entry", "reset") or event.get("room_id") != room_id:
                continue
            if one["what"] == "reset":
                kept = [entry for entry in kept if entry["seq"] <= event["seq"]]
            else:
                assert not kept or event["seq"] == kept[-1]["seq"] + 1, f"seq {event['seq']} of {room_id} after {kept[-1]['seq']}"
                kept.append(event)
        return kept

    def seqs(self, room_id):
        return [entry["seq"] for entry in self.entries(room_id)]

    def wait(self, condition, deadline=DEADLINE, what=None):
        return wait_for(lambda: condition(), deadline, what=lambda: f"{what or 'condition'}; the last it saw: {self.seen[-8:]}")

    def wait_open(self, transport=None, count=1, deadline=DEADLINE):
        def opened():
            found = self.of("open", **({"transport": transport} if transport else {}))
            return len(found) >= count and found
        return self.wait(opened, deadline, f"open {transport or ''}")

    def wait_seq(self, room_id, seq, deadline=DEADLINE):
        self.wait(lambda: any(one["what"] == "entry" and one["event"]["room_id"] == room_id and one["event"]["seq"] >= seq for one in self.seen[-200:]), deadline, f"seq {seq}")

    def wait_sending(self, client_msg_id, state, deadline=DEADLINE):
        return self.wait(lambda: self.of("sending", client_msg_id=client_msg_id, sending=state), deadline, f"{client_msg_id} {state}")[0]

    # what it does

    def do(self, command, deadline=DEADLINE, **fields):
        """Its answer; an error of the client is an AssertionError."""
        number = self.post(command, **fields)
        done = self.wait(lambda: self.of("done", number=number), deadline, command)[0]
        assert "error" not in done, done
        return done.get("answer")

    def post(self, command, **fields):
        number = next(self._numbers)
        self._write({"do": command, "number": number, **fields})
        return number

    def send(self, room_id, content, **options):
        client_msg_id = roomd.new_id()
        self.post("send", room_id=room_id, content=content, options={"client_msg_id": client_msg_id, **options})
        return client_msg_id

    def close(self):
        self._process.kill()
        self._process.wait()
        self._reader.join(5)
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        errors = self.of("error")
        assert not errors, errors


class Filter(roomd.Link):
    """blocked: texts; a connection whose first bytes hold one of them is kept open and gets nothing."""

    def __init__(self, port, *blocked):
        self.blocked, self._kept = set(blocked), []
        super().__init__(port)

    def _carry(self, near):
        with contextlib.suppress(OSError):
            head = near.recv(4096, socket.MSG_PEEK)
            if any(text.encode() in head for text in self.blocked):
                self._kept.append(near)
                return
        super()._carry(near)
