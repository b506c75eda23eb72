"""
A TCP proxy that hurts what passes: it stands between one instance and its database or broker, in a process of its own so that it keeps its time under load.

    proxy = Proxy()
    port = proxy.listen("roomd-1.db", 5432, "postgres")       # the instance gets this port in its settings
    fault = proxy.hurt("roomd-1.db", "cut")                   # until fault.heal(), or as a with block
    fault = proxy.hurt("roomd-1.broker", "delay", role="consume", ms=50)
    proxy.close()

Who connects is told by the first bytes: AMQP connections by their connection_name (publish: also the feed; consume), those to PostgreSQL by the statements they
prepare (write: append; lease: cluster_…; read: others). A fault without a role is meant for all of them.

    cut             open connections are reset, new ones too
    refuse          new connections are reset, open ones stay
    swallow         both ways: bytes are taken and thrown away, connections stay open (half open). swallow_up, swallow_down: towards the server only, from it only.
                    What lost bytes is reset when the fault ends: a stream with a hole in it would be a lie
    hold            both ways: bytes wait until the fault ends. hold_up, hold_down
    delay           each piece waits ms= milliseconds
    trickle         bytes_per_s=, in pieces of at most 64 bytes
    withhold_sync   PostgreSQL: from the next batch on whose Bind and Execute have passed, its Sync and all behind it wait. `held` in stats() counts them

While one of the swallow, hold or withhold faults is on, the server's end stays open even when the client is gone: as with a machine that lost power.
"""
import asyncio
import contextlib
import json
import pathlib
import re
import socket
import struct
import subprocess
import sys
import threading

KEEPS_OPEN = ("swallow", "swallow_up", "swallow_down", "hold", "hold_up", "hold_down", "withhold_sync")


# --- in the tests' process ---


class Proxy:
    def __init__(self):
        self._process = subprocess.Popen([sys.executable, str(pathlib.Path(__file__).resolve())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lock, self._faults = threading.Lock(), 0

    def _ask(self, **command):
        with self._lock:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the proxy is gone")
        answer = json.loads(answer)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def listen(self, name, target, protocol):
        """A port that leads to 127.0.0.1:target. protocol: "amqp" or "postgres"."""
        return self._ask(do="listen", name=name, target=target, protocol=protocol)["port"]

    def hurt(self, name, action, role=None, **options):
        self._faults += 1
        self._ask(do="hurt", fault=self._faults, name=name, action=action, role=role, options=options)
        return Fault(self, self._faults)

    def heal(self, fault):
        self._ask(do="heal", fault=fault)

    def heal_all(self):
        self._ask(do="heal", fault=None)

    def stats(self, name):
        """{"open": {role: n}, "held": Syncs withheld, "swallowed": bytes}"""
        return self._ask(do="stats", name=name)

    def close(self):
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)


class Fault:
    def __init__(self, proxy, number):
        self._proxy, self._number = proxy, number

    def heal(self):
        self._proxy.heal(self._number)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.heal()


# --- in its own process ---


class Listener:
    def __init__(self, name, target, protocol):
        self.name, self.target, self.protocol = name, target, protocol
        self.connections, self.rules = set(), {}
        self.changed = asyncio.Event()
        self.held = self.swallowed = 0
        self.server = None

    async def open(self):
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=1 << 20)
        return self.server.sockets[0].getsockname()[1]

    def rule(self, connection, *actions):
        """The first rule of one of these actions that is meant for the connection."""
        for rule in self.rules.values():
            if rule["action"] in actions and rule["role"] in (None, connection.role):
                return rule
        return None

    def change(self):
        """Rules changed: who waits looks again."""
        for connection in list(self.connections):
            if self.rule(connection, "cut") or connection.lost_bytes and not self.rule(connection, "swallow", "swallow_up", "swallow_down"):
                connection.reset()
        self.changed.set()
        self.changed = asyncio.Event()

    async def _accept(self, reader, writer):
        connection = Connection(self, reader, writer)
        if self.rule(connection, "cut", "refuse"):
            connection.reset()
            return
        try:
            await connection.carry()
        finally:
            self.connections.discard(connection)
            connection.reset()


class Connection:
    def __init__(self, listener, near_reader, near_writer):
        self.listener, self.role, self.is_new, self.lost_bytes = listener, "?", True, False
        self.near_reader, self.near_writer, self.far_writer = near_reader, near_writer, None
        self.pieces = {"postgres": PostgresPieces, "amqp": AmqpPieces}[listener.protocol](self)

    async def carry(self):
        try:
            far_reader, self.far_writer = await asyncio.open_connection("127.0.0.1", self.listener.target, limit=1 << 20)
        except OSError:
            return
        self.listener.connections.add(self)
        tasks = [asyncio.ensure_future(self._pump("up", self.near_reader, self.far_writer)), asyncio.ensure_future(self._pump("down", far_reader, self.near_writer))]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        while self.listener.rule(self, *KEEPS_OPEN):
            await self.listener.changed.wait()
        for task in tasks:
            task.cancel()

    def known(self, role):
        """Who it is has turned out."""
        if role == self.role:
            return
        self.role = role
        if self.listener.rule(self, "cut") or self.is_new and self.listener.rule(self, "refuse"):
            self.reset()
        self.is_new = False

    def reset(self):
        for writer in (self.near_writer, self.far_writer):
            if writer is not None and not writer.transport.is_closing():
                with contextlib.suppress(OSError):
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()

    async def _pump(self, way, reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while data := await reader.read(65536):
                for piece, is_sync in self.pieces.cut(data) if way == "up" else ((data, False),):
                    await self._pass(way, piece, is_sync, writer)

    async def _pass(self, way, data, is_sync, writer):
        listener = self.listener
        if is_sync and listener.rule(self, "withhold_sync"):
            listener.held += 1
            while listener.rule(self, "withhold_sync"):
                await listener.changed.wait()
        while listener.rule(self, "hold", "hold_" + way):
            await listener.changed.wait()
        if listener.rule(self, "swallow", "swallow_" + way):
            self.lost_bytes = True
            listener.swallowed += len(data)
            return
        if rule := listener.rule(self, "delay"):
            await asyncio.sleep(rule["options"]["ms"] / 1000)
        while data and (rule := listener.rule(self, "trickle")):
            writer.write(data[:64])
            await writer.drain()
            await asyncio.sleep(len(data[:64]) / rule["options"]["bytes_per_s"])
            data = data[64:]
        if data:
            writer.write(data)
            await writer.drain()


class AmqpPieces:
    """Finds out who the client is; cuts nothing."""

    NAME = re.compile(rb"connection_nameS(....)", re.DOTALL)

    def __init__(self, connection):
        self.connection, self.begin = connection, b""

    def cut(self, data):
        if self.begin is not None:
            self.begin += data
            found = self.NAME.search(self.begin)
            if found:
                size = struct.unpack(">I", found[1])[0]
                self.connection.known(self.begin[found.end() : found.end() + size].decode())
            if found or len(self.begin) > 65536:
                self.begin = None
        return ((data, False),)


class PostgresPieces:
    """Follows the client's messages: who it is, and where the Sync of a batch begins."""

    STARTUP, SSL_REQUEST, GSS_REQUEST, CANCEL = 196608, 80877103, 80877104, 80877102

    def __init__(self, connection):
        self.connection, self.rest, self.started = connection, b"", False
        self.appends = False  # what was bound last is a batch

    def cut(self, data):
        """[(bytes, they begin with the Sync of a batch)]; bytes of a message that is not whole yet are kept."""
        data, self.rest = self.rest + data, b""
        pieces, begin, at = [], 0, 0
        while True:
            head = 5 if self.started else 8
            if len(data) - at < head:
                break
            size = struct.unpack_from(">I", data, at + (1 if self.started else 0))[0] + (1 if self.started else 0)
            if len(data) - at < min(size, head + 64):  # the head and the names tell enough
                break
            if not self.started:
                self.started = struct.unpack_from(">I", data, at + 4)[0] in (self.STARTUP, self.CANCEL)
            elif self._is_sync(data[at : at + 1], data[at + 5 : at + min(size, head + 64)]):
                if at > begin:
                    pieces.append((data[begin:at], False))
                pieces.append((data[at : at + size], True))
                begin = at + size
            if len(data) - at < size:
                break
            at += size
        self.rest = data[at:]
        if at > begin:
            pieces.append((data[begin:at], False))
        return pieces

    def _is_sync(self, kind, body):
        if kind == b"P":
            name = body.partition(b"\0")[0].decode()
            self.connection.known("write" if name == "append" else "lease" if name.startswith("cluster_") else self.connection.role if self.connection.role != "?" else "read")
        elif kind == b"B":
            self.appends = body.split(b"\0", 2)[1:2] == [b"append"]
        elif kind == b"S" and self.appends:
            self.appends = False
            return True
        return False


async def serve():
    listeners, rules = {}, {}
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        command = json.loads(line)
        answer = {}
        try:
            if command["do"] == "listen":
                listener = Listener(command["name"], command["target"], command["protocol"])
                listeners[command["name"]] = listener
                answer["port"] = await listener.open()
            elif command["do"] == "hurt":
                listener = listeners[command["name"]]
                listener.rules[command["fault"]] = rules[command["fault"]] = {"action": command["action"], "role": command["role"], "options": command["options"]}
                listener.change()
            elif command["do"] == "heal":
                for listener in listeners.values():
                    if [listener.rules.pop(number) for number in list(listener.rules) if command["fault"] in (None, number)]:
                        listener.change()
            elif command["do"] == "stats":
                listener, roles = listeners[command["name"]], {}
                for connection in listener.connections:
                    roles[connection.role] = roles.get(connection.role, 0) + 1
                answer = {"open": roles, "held": listener.held, "swallowed": listener.swallowed}
        except (KeyError, OSError) as error:
            answer = {"error": repr(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(serve())
