"""
Readers in a process of their own: each follows its rooms over one transport, comes back with its cursors whenever it is cut off (or by itself, now and then), and
keeps what it saw in a checker.View.

    readers = Readers(urls, service_key, [Spec(name="r1", account="reader", rooms=[…], transport="websocket"), …], seed)
    readers.reached()            {name: {room: seq}}
    readers.urls(urls)           instances that may be asked from now on
    views, timeline, gaps = readers.finish()
        timeline: {room: [(sent_at, first seen by anybody), …]}   unix seconds
        gaps:     {name: [(from, to), …]}                          times in which a stream of who stays got nothing for more than 0.3 s
"""
import asyncio
import collections
import contextlib
import dataclasses
import json
import multiprocessing
import random
import time
import urllib.parse

import websockets

import checker

PATHS = {"websocket": "/v1/stream/ws", "sse": "/v1/stream/sse", "ndjson": "/v1/stream/ndjson", "poll": "/v1/stream/poll"}
GAP_S = 0.3
SILENCE_S = 3.0  # the instances of a run ping each second: what is silent for so long is dead, as a frozen instance is


@dataclasses.dataclass
class Spec:
    name: str
    account: str
    rooms: list  # those it may see; none: a stranger
    transport: str = "websocket"
    deliver: str = "early"
    all: bool = False  # follows the account
    comes_and_goes: tuple = ()
    returns_after_s: float = 0.0  # leaves and comes back about so often; 0: stays as long as it can
    foreign: bool = False  # prefers the last endpoint, not the first


class Readers:
    def __init__(self, urls, service_key, specs, seed=0):
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(target=_work, args=(theirs, list(urls), service_key, specs, seed), daemon=True)
        self._process.start()
        theirs.close()

    def _ask(self, what, argument=None, seconds=30):
        self._pipe.send((what, argument))
        if not self._pipe.poll(seconds):
            raise RuntimeError("the readers do not answer")
        return self._pipe.recv()

    def reached(self):
        return self._ask("reached")

    def errors(self):
        """What cut each reader off last, for people."""
        return self._ask("errors")

    def urls(self, urls):
        self._ask("urls", list(urls))

    def finish(self):
        return self._ask("finish", seconds=120)

    def close(self):
        self._process.kill()
        self._process.join(5)


def _work(pipe, urls, service_key, specs, seed):
    asyncio.run(_serve(pipe, urls, service_key, specs, seed))


async def _serve(pipe, urls, service_key, specs, seed):
    everybody = Everybody(urls, service_key)
    readers = [Reader(everybody, spec, random.Random(f"{seed} {spec.name}")) for spec in specs]
    tasks = [asyncio.ensure_future(reader.run()) for reader in readers]
    while True:
        what, argument = await asyncio.to_thread(pipe.recv)
        if what == "reached":
            pipe.send({reader.spec.name: {room: reader.view.at(room).next - 1 for room in reader.view.segments if reader.view.at(room)} for reader in readers})
        elif what == "errors":
            pipe.send({reader.spec.name: f"{len(reader.view.problems)} problems, {reader.last_error!r}" for reader in readers})
        elif what == "urls":
            everybody.urls = argument
            pipe.send(None)
        elif what == "finish":
            pending = set(tasks)
            while pending:  # a cancellation that meets the end of what was waited for is lost in wait_for: said again
                for task in pending:
                    task.cancel()
                _, pending = await asyncio.wait(pending, timeout=1)
            for reader in readers:
                reader.view.on_message = None
                reader.view.story = {room: list(story) for room, story in reader.view.story.items()}
            pipe.send(([reader.view for reader in readers], dict(everybody.timeline), {reader.spec.name: reader.gaps for reader in readers}))


class Everybody:
    def __init__(self, urls, service_key):
        self.urls, self.service_key = urls, service_key
        self.seen, self.timeline = set(), collections.defaultdict(list)

    def message(self, event):
        if event["message_id"] not in self.seen and "sent_at" in event:
            self.seen.add(event["message_id"])
            self.timeline[event["room_id"]].append((event["sent_at"] / 1000, time.time()))


class Reader:
    def __init__(self, everybody, spec, rng):
        self.everybody, self.spec, self.rng = everybody, spec, rng
        self.view = checker.View(spec.name, spec.rooms, spec.deliver, spec.comes_and_goes)
        self.view.on_message = everybody.message
        self.ticket = self.endpoints = self.last_error = None
        self.failures, self.last_event, self.gaps = 0, time.time(), []

    async def run(self):
        while True:
            try:
                if self.ticket is None:
                    await self._ticket_heard()
                await asyncio.wait_for(self._stream_heard(), self._stay())
            except asyncio.TimeoutError:
                self.failures = 0
            except Moved as moved:
                self.ticket, self.endpoints, self.failures = moved.ticket, moved.endpoints, 0
                continue
            except (OSError, ValueError, EOFError, asyncio.IncompleteReadError, websockets.WebSocketException, Refused) as error:
                self.last_error = error
                self.failures += 1
                # The same ticket is good everywhere; only when no endpoint takes it a new one is asked for.
                if isinstance(error, Refused) or self.failures > len(self.endpoints or ()):
                    self.ticket = None
            await asyncio.sleep(self.rng.uniform(0.02, 0.1) * min(1 + self.failures, 5))

    def _stay(self):
        return self.rng.uniform(0.5, 1.5) * self.spec.returns_after_s if self.spec.returns_after_s else None

    async def _ticket_heard(self):
        try:
            await self._ask_ticket()
        except asyncio.TimeoutError:
            raise EOFError("no ticket") from None

    async def _ask_ticket(self):
        body = {"account_id": self.spec.account, "deliver": self.spec.deliver}
        body |= {"all": True} if self.spec.all else {"rooms": [{"room_id": room} for room in self.spec.rooms]}
        url = self.rng.choice(self.everybody.urls)
        status, answer = await asyncio.wait_for(request(url, "POST", "/v1/history/PullByActiveConnection", {"Authorization": f"Bearer {self.everybody.service_key}"}, json.dumps(body).encode()), 5)
        if status != 200:
            raise Refused(f"{status} {answer}")
        self.ticket, self.endpoints = answer["ticket"], answer["endpoints"]

    def _endpoint(self):
        at = self.failures + (len(self.endpoints) - 1 if self.spec.foreign else 0)
        return self.endpoints[at % len(self.endpoints)]["url"]

    async def _stream_heard(self):
        try:
            await self._stream()
        except asyncio.TimeoutError:
            raise EOFError("silence") from None

    async def _stream(self):
        url, after = self._endpoint(), self.view.positions()
        self.view.attached()
        if self.spec.transport == "websocket":
            await self._websocket(url, after)
        elif self.spec.transport == "poll":
            await self._poll(url)
        else:
            await self._lines(url, after)

    async def _websocket(self, url, after):
        address = "ws" + url[4:] + PATHS["websocket"] + "?after=" + urllib.parse.quote(",".join(after), safe=",")
        async with websockets.connect(address, extra_headers={"Authorization": f"Bearer {self.ticket}"}, ping_interval=None, max_size=None, compression=None, open_timeout=5, close_timeout=1) as socket:
            with contextlib.suppress(websockets.ConnectionClosed):
                while True:
                    for line in (await asyncio.wait_for(socket.recv(), SILENCE_S)).split("\n"):
                        self._take(line)
            raise Refused(f"{socket.close_code} {socket.close_reason}") if (socket.close_code or 0) >= 4500 else EOFError(f"{socket.close_code} {socket.close_reason}")

    async def _lines(self, url, after):
        reader, writer, status = await open_stream(url, self.spec.transport, self.ticket, after)
        try:
            if status != 200:
                raise Refused(status)
            while line := await asyncio.wait_for(reader.readline(), SILENCE_S):
                text = line.decode().rstrip("\n")
                if text.startswith("data:"):
                    text = text[5:].strip()
                if text.startswith("{"):
                    self._take(text)
            raise EOFError("end")
        finally:
            writer.close()

    async def _poll(self, url):
        while True:
            status, answer = await asyncio.wait_for(request(url, "POST", PATHS["poll"], {"Authorization": f"Bearer {self.ticket}"}, json.dumps({"after": self.view.positions()}).encode()), 2 * SILENCE_S)
            if status != 200:
                raise Refused(f"{status} {answer}")
            for event in answer["events"]:
                self._take_event(event)
            self.failures = 0

    def _take(self, line):
        if line:
            self._take_event(json.loads(line))

    def _take_event(self, event):
        now, kind = time.time(), event["type"]
        self.view.take(event, now)
        if kind == "message":
            if now - self.last_event > GAP_S and not self.spec.comes_and_goes:  # who is no member for a while gets nothing
                self.gaps.append((self.last_event, now))
            self.last_event = now
        elif kind == "hello":
            self.failures = 0
        elif kind == "migrate":
            raise Moved(event)


class Moved(Exception):
    def __init__(self, event):
        super().__init__("migrate")
        self.ticket, self.endpoints = event["ticket"], event["endpoints"]


class Refused(Exception):
    pass


# --- a little HTTP ---


async def request(url, method, path, headers, body):
    """(status, decoded answer)"""
    reader, writer, status, head = await _begin(url, method, path, {**headers, "Connection": "close", "Content-Type": "application/json"}, body)
    try:
        data = await reader.readexactly(int(head["content-length"])) if "content-length" in head else await reader.read()
        return status, json.loads(data or b"{}")
    finally:
        writer.close()


async def open_stream(url, transport, ticket, after):
    headers = {"Authorization": f"Bearer {ticket}", "Content-Type": "application/json"}
    reader, writer, status, _ = await asyncio.wait_for(_begin(url, "POST", PATHS[transport], headers, json.dumps({"after": after}).encode()), 5)
    return reader, writer, status


async def _begin(url, method, path, headers, body):
    parts = urllib.parse.urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 22)
    try:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Length: {len(body)}"] + [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        first = (await reader.readline()).split()
        if len(first) < 2:
            raise EOFError("no answer")
        head = {}
        while (line := (await reader.readline()).strip()):
            name, _, value = line.decode().partition(":")
            head[name.lower()] = value.strip()
        return reader, writer, int(first[1]), head
    except BaseException:
        writer.close()
        raise


