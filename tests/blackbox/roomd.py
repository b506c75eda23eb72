"""
What black-box tests are made of: real servers, real roomd processes, and readers as a gateway or a frontend would write them.

    def test_a_message_reaches_an_open_stream(cluster, api):
        room = api.create_room("alice", "bob")["room_id"]
        bob = cluster.open_stream("bob", [room])
        api.push(room, "alice", "hello")
        assert bob.read_message(room, content="hello")["sender"] == "alice"

Fixtures (conftest.py)
    cluster      one Cluster of two instances for the whole session: for tests that kill and stop nothing of it
    api          Api of its first instance
    new_cluster  new_cluster(instances=1, settings={"heartbeat_ms": 500}) -> a Cluster of the test's own (own database, own vhost), gone afterwards
    door         "call", then "frame": one of the two ways in for what an account does (doors.py)
    database, broker   the servers, shared by all clusters; whatever a test did to them, they are up and well again for the next one
    Each test has 120 s; @pytest.mark.deadline(300) gives more.

Cluster      .instances .api .gateway_url(=AMQP) .database_url; start(name=None, settings=None) -> Instance; stop() all
             open_stream(account, rooms=None | all=True, transport="websocket"|"sse"|"ndjson"|"poll", deliver=, after=[positions], endpoint=url)
             publisher() -> Publisher; load(rooms, …) -> Load; dead_letters() -> list; connect() -> psycopg2 connection; check_log(rooms, published)
Instance     the real program: .url .api .pid .log_text(); kill9(), stop() (SIGTERM; must exit with 0), start() again, sigstop(), sigcont(), metrics()
Api          ok("room/Create", {…}) -> answer of a 200; error(…) -> (status, code); call(…) -> (status, answer); until_ok(…) repeats while 503/504;
             create_room(*members, **fields), push(room_id, sender, content, **fields), pull(room_id, **fields), pull_all(room_id)
Publisher    publish(room_id, sender, kind, content, client_msg_id=None, **fields): confirmed and routed, else an exception; with repeat=True it repeats
             the same message until that is so. .confirmed: what was, in order
Load         with cluster.load(rooms, publishers=2, rate=200) as load: …   publishers in threads, each numbering its messages; load.confirmed
Streams      WsStream, SseStream, NdjsonStream, LongPoll: .events (all of them), .cursors {room_id: "epoch:seq"}, .closed (code, reason) or None
             read_until(predicate) -> the next event it is true for; read_message(room_id, **fields), read_type(type), read_count(room_id, n); read_next()
             seqs(room_id), messages(room_id); wait_closed(); close(), abort() (no good-bye), pause()/go_on() reading, reconnect(endpoint=None)
             An event of a room whose seq does not rise (since the last reset) fails the test. contiguous(room_id) also says: without a hole.
             WsStream: send(type, payload) -> req_id, request(type, payload) -> its ack or error. Refusals over HTTP raise Refused(status, code).
Database     stop("fast"|"immediate"), kill(), start(), freeze(), thaw(), connect(name)
Broker       stop(), kill(), start(), freeze(), thaw(), ctl(*args) -> text, with alarm(): … (memory alarm: publishers are blocked)
Link         a TCP way to a server that can be cut(), mend()ed, made slow (delay=seconds); instances use it by settings

wait_for(condition, deadline=10) -> its first true value. Nothing here sleeps without a condition, and everything has a deadline.
"""
import asyncio
import collections
import contextlib
import hashlib
import http.client
import itertools
import json
import os
import pathlib
import random
import re
import secrets
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import urllib.parse

import pika
import psycopg2
import requests
import websockets

TOP = pathlib.Path(__file__).resolve().parents[2]
ROOMD = os.environ.get("ROOMD_BIN") or str(TOP / "build-asan" / "roomd")
DEADLINE = 10  # seconds; the machine may be busy and the program is built with sanitizers
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Fast enough for a test, and otherwise as in production.
TEST_SETTINGS = {"shard_count": 8, "drain_ms": 1000}
SANITIZER = re.compile(r"ERROR: (Address|Leak|Undefined)\w*Sanitizer|: runtime error: |WARNING: ThreadSanitizer|DEADLYSIGNAL|Assertion .* failed")


def wait_for(condition, deadline=DEADLINE, every=0.02, what=None):
    """The first true value of condition(); AssertionError at the deadline. An AssertionError of the condition counts as not yet."""
    end = time.monotonic() + deadline
    while True:
        error = None
        try:
            value = condition()
            if value:
                return value
        except AssertionError as caught:
            error = caught
        if time.monotonic() > end:
            what = what() if callable(what) else what
            raise AssertionError(f"not within {deadline} s: {what or error or getattr(condition, '__name__', condition)}")
        time.sleep(every)


def new_id():
    """A ULID."""
    return crockford(int(time.time() * 1000) << 80 | secrets.randbits(80))


def crockford(number):
    return "".join(CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


def message_id(room_id, sender, client_msg_id):
    """The id that publisher and owner compute alike."""
    digest = hashlib.sha256(b"\0".join(part.encode() for part in (room_id, sender, client_msg_id))).digest()
    return crockford(int.from_bytes(digest[:16], "big"))


def message_uuid(text):
    """The same id as the database keeps it."""
    number = 0
    for letter in text:
        number = number << 5 | CROCKFORD.index(letter)
    raw = f"{number:032x}"
    return "-".join((raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:]))


def parse_cursor(cursor):
    """(epoch, seq); a bare seq has no epoch."""
    epoch, _, seq = cursor.rpartition(":")
    return int(epoch or 0), int(seq)


WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])  # tests run in several processes, each with servers of its own


CLAIMS = []  # UDP sockets


def free_port():
    """Below the kernel's range for outgoing connections, and nobody else's for as long as this process lives, so that it is still free after a restart: a UDP socket of the
    same number claims it. Other tests and deploy/servers.sh look at that."""
    while True:
        port, claim = random.randrange(20000, 21500) + WORKER % 8 * 1500, socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with socket.socket() as probe, contextlib.suppress(OSError):
            claim.bind(("127.0.0.1", port))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            CLAIMS.append(claim)
            return port
        claim.close()


# --- servers ---


def shell(*command, check=True):
    """A function of deploy/servers.sh."""
    done = subprocess.run(["bash", "-c", '. "$1"; shift; "$@"', "servers", str(TOP / "deploy" / "servers.sh"), *map(str, command)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=150)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr or done.stdout}")
    return done.stdout


def signal_processes(home, number):
    """To everything that works in or below the directory, backends of PostgreSQL included."""
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str((entry / "cwd").readlink()).startswith(str(home)):
                os.kill(int(entry.name), number)


class Server:
    def __init__(self, home, kind):
        self.home, self.kind, self.port, self.frozen = home / kind, kind, free_port(), False
        self.home.mkdir(parents=True)
        self.log = home / f"{kind}.log"

    def start(self):
        shell(f"{self.kind}_server_start", self.home, self.port, self.log)

    def kill(self):
        """SIGKILL, as if its machine had lost power."""
        shell(f"{self.kind}_server_kill", self.home)

    def freeze(self):
        """SIGSTOP: connections stay open and nothing answers."""
        self.frozen = True
        for _ in range(2):  # also what was being forked meanwhile
            signal_processes(self.home, signal.SIGSTOP)

    def thaw(self):
        self.frozen = False
        signal_processes(self.home, signal.SIGCONT)

    def restore(self):
        if self.frozen:
            self.thaw()
        self.start()


class Database(Server):
    def __init__(self, home):
        super().__init__(home, "pg")
        self.password = secrets.token_hex(12)
        self.start()
        self.sql(f"create role roomd login password '{self.password}'")

    def stop(self, mode="fast"):
        shell("pg_server_stop", self.home, mode)

    def url(self, name, port=None):
        return f"postgresql://roomd:{self.password}@127.0.0.1:{port or self.port}/{name}"

    def connect(self, name):
        """As roomd, autocommit."""
        connection = psycopg2.connect(self.url(name), connect_timeout=20)
        connection.autocommit = True
        return connection

    def connect_as_superuser(self, name="postgres"):
        connection = psycopg2.connect(host=str(self.home / "socket"), port=self.port, user="postgres", dbname=name, connect_timeout=20)
        connection.autocommit = True
        return connection

    def sql(self, statement):
        """As superuser; rows, if it gives any."""
        with contextlib.closing(self.connect_as_superuser()) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else None


class Broker(Server):
    USERS = {"roomd": ("", r"^roomd\..*$", r"^roomd\..*$", r"^roomd\..*$"), "gateway": ("", "^$", r"^roomd\.room$", r"^roomd\.dead$"),
        "admin": ("administrator", ".*", ".*", ".*")}

    def __init__(self, home):
        super().__init__(home, "rabbit")
        self.passwords = {user: secrets.token_hex(12) for user in self.USERS}
        self.alarmed = False
        words = [word for user, (tag, *rights) in self.USERS.items() for word in (user, self.passwords[user], tag, *rights)]
        (self.home / "definitions.json").write_text(shell("rabbit_definitions", *words))
        self.start()

    def stop(self):
        shell("rabbit_server_stop", self.home)

    def kill(self, settle=True):
        """SIGKILL, as if its machine had lost power. RabbitMQ 3.10 writes the name of a new quorum queue down half a second after it was declared;
        killed sooner it brings the queue back without its messages and without a leader (measured). settle has it written down first."""
        if settle and not self.frozen:
            self.settle()
        super().kill()

    def settle(self):
        self.ctl("eval", "dets:sync(ra_directory_reverse).")

    def ctl(self, *args):
        return shell("rabbit_server_ctl", self.home, *args)

    def url(self, user, vhost, port=None):
        return f"amqp://{user}:{self.passwords[user]}@127.0.0.1:{port or self.port}/{urllib.parse.quote(vhost, safe='')}"

    def add_vhost(self, vhost):
        """With the rights of every user, in one call of half a second."""
        rights = [{"user": user, "vhost": vhost, "configure": configure, "write": write, "read": read}
            for user, (_, configure, write, read) in self.USERS.items()]
        definitions = self.home / f"{vhost}.json"
        definitions.write_text(json.dumps({"vhosts": [{"name": vhost}], "permissions": rights}))
        self.ctl("import_definitions", definitions)

    def channel(self, vhost, user="admin"):
        """A pika channel; closing it is .connection.close()."""
        return pika.BlockingConnection(pika.URLParameters(self.url(user, vhost) + "?heartbeat=600&socket_timeout=10")).channel()

    @contextlib.contextmanager
    def alarm(self):
        """Memory alarm: the broker stops reading from connections that publish."""
        self.alarmed = True
        self.ctl("set_vm_memory_high_watermark", "0")
        try:
            yield
        finally:
            self.end_alarm()

    def end_alarm(self):
        self.ctl("set_vm_memory_high_watermark", "0.4")
        self.alarmed = False

    def restore(self):
        super().restore()
        if self.alarmed:
            self.end_alarm()


class Servers:
    """One PostgreSQL and one RabbitMQ node for a session. They end with the process that made them, however that ends."""

    def __init__(self):
        given = os.environ.get("ROOMD_TEST_HOME")
        self.home = pathlib.Path(f"{given}-{WORKER}" if given else tempfile.mkdtemp(prefix="roomd-blackbox."))
        self.home.mkdir(exist_ok=True)
        self.home.chmod(0o711)  # user postgres passes
        self._watch = int(shell("servers_watch", os.getpid(), self.home))
        results = {}
        starts = [threading.Thread(target=lambda kind=kind: results.update({kind: kind(self.home)})) for kind in (Database, Broker)]
        for start in starts:
            start.start()
        for start in starts:
            start.join()
        if len(results) < 2:
            self.close()
            raise RuntimeError(f"the servers did not start; see above, logs were in {self.home}")
        self.database, self.broker = results[Database], results[Broker]

    def restore(self):
        """Whatever a test did to them."""
        self.database.restore()
        self.broker.restore()

    def close(self):
        shell("processes_end", self.home, check=False)
        with contextlib.suppress(OSError):
            os.killpg(self._watch, signal.SIGKILL)
        shutil.rmtree(self.home, ignore_errors=True)


class Link:
    """A TCP way to 127.0.0.1:port that can be cut, mended or made slow. Its own end is .port."""

    def __init__(self, port, delay=0.0):
        self.target, self.delay, self._pairs, self._lock = port, delay, set(), threading.Lock()
        self.accepted = 0  # connections so far
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._cut = self._silent = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, silently=False):
        """No way through: connections are reset; silently: they stay open and nothing passes (also new ones)."""
        self._silent, self._cut = silently, not silently
        if not silently:
            self._reset()

    def mend(self):
        """What was held while it was silent is lost with its connections: a stream with a hole in it would be a lie."""
        was_silent, self._silent, self._cut = self._silent, False, False
        if was_silent:
            self._reset()

    def close(self):
        self._listener.close()
        self._reset()

    def _reset(self):
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for side in pair:
                with contextlib.suppress(OSError):
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    side.shutdown(socket.SHUT_RDWR)

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.accepted += 1
                if self._cut:
                    near.close()
                    continue
                threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near):
        try:
            far = socket.create_connection(("127.0.0.1", self.target), timeout=5)
        except OSError:
            near.close()
            return
        pair = (near, far)
        with self._lock:
            self._pairs.add(pair)
            cut = self._cut
        if cut:  # while this one was being made
            self._reset()
        threads = [threading.Thread(target=self._pump, args=ends, daemon=True) for ends in ((near, far), (far, near))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with self._lock:
            self._pairs.discard(pair)
        for side in pair:
            side.close()

    def _pump(self, source, sink):
        held, lost = collections.deque(), False  # (when it is due, bytes)
        with contextlib.suppress(OSError):
            while True:
                wait = max(0.0, held[0][0] - time.monotonic()) if held else 0.2
                if select.select([source], [], [], wait)[0]:
                    data = source.recv(65536)
                    if not data:
                        break
                    lost = lost or self._silent  # mended a moment before the connection is reset: what comes then has a hole before it
                    if not lost:
                        held.append((time.monotonic() + self.delay, data))
                while held and held[0][0] <= time.monotonic():
                    sink.sendall(held.popleft()[1])
            while held:
                sink.sendall(held.popleft()[1])
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


# --- roomd ---


class Instance:
    """One roomd process. Its port stays the same over restarts."""

    def __init__(self, home, name, settings):
        self.home, self.name, self.port, self.settings = home, name, settings.get("listen_port") or free_port(), settings
        self.url = f"http://127.0.0.1:{self.port}"
        self.config, self.log = home / f"{name}.conf", home / f"{name}.log"
        self.process, self.ends_are_expected, self.program = None, False, None
        self.secrets = ()
        self.write_config()

    def write_config(self, **changes):
        self.settings = {**self.settings, **changes, "listen_port": self.port}
        self.config.write_text("".join(self._line(key, str(value)) for key, value in self.settings.items()))

    def _line(self, key, value):
        """A line may have 199 bytes: a secret that is longer stands in a file of its own, and a list goes on in the next line."""
        if len(value) < 150:
            return f"{key} = {value}\n"
        if key in ("database_url", "broker_urls"):
            (self.home / f"{self.name}.{key}").write_text(value)
            return f"{key}_file = {self.home / self.name}.{key}\n"
        return f"{key} = " + value.replace(",", ",\n  ") + "\n"

    @property
    def pid(self):
        return self.process.pid

    @property
    def api(self):
        return Api(self.url, self.settings["service_keys"].partition(",")[0].partition(":")[2])

    def command(self, verb):
        """roomd migrate and check-config: (exit code, output)."""
        done = subprocess.run([self.program or ROOMD, verb, "--config", str(self.config)], env=self._environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
        return done.returncode, done.stdout

    def start(self, ready=True):
        assert self.process is None or self.process.poll() is not None, f"{self.name} runs already"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([self.program or ROOMD, "serve", "--config", str(self.config)], env=self._environment(), cwd=self.home,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.ends_are_expected = False
        if ready:
            self.wait_ready()
        return self

    def _environment(self):
        keep = {key: value for key, value in os.environ.items() if key in ("PATH", "LANG", "ASAN_OPTIONS", "UBSAN_OPTIONS", "LSAN_OPTIONS")}
        return {**keep, "SERVERS_HOME": str(self.home)}

    def ready(self):
        """Ready, or standing by because others hold all shards: both answer calls."""
        try:
            answer = requests.get(self.url + "/readyz", timeout=5)
        except requests.RequestException:
            assert self.alive(), f"{self.name} ended with {self.process.returncode}:\n{self.log_text()[-2000:]}"
            return None
        return answer.json() if answer.status_code == 200 else None

    def wait_ready(self, deadline=30):
        def ready_or_dead():
            return self.ready() if self.alive() else {}

        end = time.monotonic() + deadline
        while time.monotonic() < end:
            with contextlib.suppress(AssertionError):
                return wait_for(ready_or_dead, 1)
            if not self.alive():
                break
        raise AssertionError(f"{self.name} is not ready:\n{self.log_text()[-2000:]}")

    def readyz(self):
        """(status, answer)"""
        answer = requests.get(self.url + "/readyz", timeout=5)
        return answer.status_code, answer.json()

    def metrics(self):
        """{"name{labels}": value}"""
        lines = requests.get(self.url + "/metrics", timeout=20).text.splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line and line[0] != "#")}

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def kill9(self):
        self.ends_are_expected = True
        self.process.kill()
        self.process.wait(10)

    def stop(self, deadline=30):
        """SIGTERM; it drains and exits with 0."""
        if not self.alive():
            return
        self.terminate()
        self.wait_stopped(deadline)

    def terminate(self):
        self.ends_are_expected = True
        self.sigcont()
        self.process.terminate()

    def wait_stopped(self, deadline=30):
        try:
            code = self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise AssertionError(f"{self.name} did not stop within {deadline} s of SIGTERM:\n{self.log_text()[-2000:]}") from None
        assert code == 0, f"{self.name} ended with {code} after SIGTERM:\n{self.log_text()[-3000:]}"

    def sigstop(self):
        os.kill(self.pid, signal.SIGSTOP)

    def sigcont(self):
        os.kill(self.pid, signal.SIGCONT)

    def rss_kib(self):
        return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{self.pid}/status").read_text())[1])

    def open_files(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def log_text(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def check(self):
        """Fails when it died by itself, when a sanitizer spoke, when a secret stands in its log."""
        text = self.log_text()
        found = SANITIZER.search(text)
        assert not found, f"{self.name} reports:\n{text[max(0, found.start() - 500):found.start() + 4000]}"
        assert self.process is None or self.alive() or self.ends_are_expected, \
            f"{self.name} died by itself with {self.process.returncode}:\n{text[-3000:]}"
        for secret in self.secrets:
            assert secret not in text, f"{self.name} wrote a secret to its log"


class Cluster:
    """Instances with a database and a vhost of their own."""

    _numbers = itertools.count(1)

    def __init__(self, servers, instances=1, settings=None):
        number = next(self._numbers)
        self.servers, self.database, self.broker = servers, servers.database, servers.broker
        self.name, self.home = f"cluster{number}", servers.home / f"cluster{number}"
        self.home.mkdir()
        self.instances, self._streams, self._publishers, self._links = [], [], [], []
        self.service_key, self.ticket_key = secrets.token_hex(16), secrets.token_hex(32)
        self.database.sql(f"create database {self.name} owner roomd")
        self.broker.add_vhost(self.name)
        self.database_url = self.database.url(self.name)
        self.gateway_url = self.broker.url("gateway", self.name)
        self.settings = {**TEST_SETTINGS, "service_keys": f"test:{self.service_key}", "ticket_keys": f"test:{self.ticket_key}",
            "database_url": self.database_url, "broker_urls": self.broker.url("roomd", self.name), **(settings or {})}
        self.migrated = False
        for _ in range(instances):
            self.start(ready=False)
        for instance in self.instances:
            instance.wait_ready()

    def start(self, name=None, settings=None, ready=True, program=None):
        """One more instance; program: another one than ROOMD_BIN, as while an upgrade goes on."""
        name = name or f"roomd-{len(self.instances) + 1}"
        instance = Instance(self.home, name, {"instance_name": name, **self.settings, **(settings or {})})
        instance.program = program
        instance.secrets = (self.service_key, self.ticket_key, self.database.password, *self.broker.passwords.values())
        if not self.migrated:
            code, output = instance.command("migrate")
            assert code == 0, f"roomd migrate ended with {code}:\n{output}"
            self.migrated = True
        self.instances.append(instance)
        return instance.start(ready)

    def database_link(self):
        """(a Link to the database, the setting that sends an instance through it)"""
        link = self._link(self.database.port)
        return link, {"database_url": self.database.url(self.name, link.port)}

    def broker_link(self):
        link = self._link(self.broker.port)
        return link, {"broker_urls": self.broker.url("roomd", self.name, link.port)}

    def _link(self, port):
        self._links.append(Link(port))
        return self._links[-1]

    @property
    def alive(self):
        return [instance for instance in self.instances if instance.alive()]

    @property
    def api(self):
        return self.alive[0].api

    def connect(self):
        return self.database.connect(self.name)

    def rows(self, statement, *arguments):
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement, arguments)
            return cursor.fetchall() if cursor.description else None

    def owner_of(self, room_id):
        """The instance that owns the room's shard, by their own word; waits for one."""
        shard = room_id.partition(".")[0]

        def find():
            for instance in self.alive:
                with contextlib.suppress(requests.RequestException):
                    if shard in [str(name) for name in instance.readyz()[1]["shards"]]:
                        return instance
            return None

        return wait_for(find, 30, what=f"no owner of {shard}")

    def wait_spread(self, deadline=60):
        """Until nothing moves any more: every living instance has its share of the shards."""
        total = self.rows("select count(*) from shard_lease")[0][0]

        def spread():
            try:
                counts = [len(instance.readyz()[1]["shards"]) for instance in self.alive]  # one look: the sum of one and the differences of the next pass in the middle of a move
            except requests.RequestException:  # one has no time to answer
                return False
            return sum(counts) == total and max(counts) - min(counts) <= 1

        wait_for(spread, deadline, what="shards spread over the instances")

    def wait_named(self, deadline=30):
        """Until every living instance names others of the living to readers: of one that has just started, or has died, the others hear with its beat."""
        ids = {instance.readyz()[1]["instance"] for instance in self.alive}

        def named():
            answers = [instance.api.ok("history/PullByActiveConnection", account_id="alice", all=True) for instance in self.alive]
            places = [{endpoint["instance"] for endpoint in answer["endpoints"]} for answer in answers]
            return all(place <= ids and len(place) >= min(2, len(ids)) for place in places)

        wait_for(named, deadline, what="every instance named by every other")

    def wait_hears(self):
        """Until what has no place in the log reaches all open streams, whichever instance tells it: a binding takes a moment."""
        for instance in self.alive:
            wait_for(lambda: instance.metrics()["roomd_feed_open"] == 1, 30, what=f"the feed of {instance.name} does not open")

    def publisher(self):
        self._publishers.append(Publisher(self.gateway_url))
        return self._publishers[-1]

    def load(self, rooms, **options):
        return Load(self, rooms, **options)

    def open_stream(self, account, rooms=None, all=False, transport="websocket", deliver=None, after=None, endpoint=None, api=None, **options):
        """Asks with PullByActiveConnection and opens it. rooms: ids, or {"room_id", "after"}. after: positions given when opening.
        endpoint: url or Instance, else the first one named in the answer. options go to the stream's class."""
        request = {"account_id": account}
        if all:
            request["all"] = True
        else:
            request["rooms"] = [room if isinstance(room, dict) else {"room_id": room} for room in rooms]
        for name in ("platform", "ttl_ms"):
            if name in options:
                request[name] = options.pop(name)
        if deliver:
            request["deliver"] = deliver
        answer = (api or self.api).ok("history/PullByActiveConnection", request)
        url = getattr(endpoint, "url", endpoint) or answer["endpoints"][0]["url"]
        # What is said before the first request arrives, or before the stream has found its rooms, would otherwise be missed.
        live_only = after is None and not any("after" in room for room in request.get("rooms", []))
        if transport == "poll" and live_only:
            after = [f"{room['room_id']}@{room['head']}" for room in answer.get("rooms", [])]
        stream = self.open_with_ticket(answer["ticket"], url, transport, after=after, **options)
        if transport != "poll" and live_only:
            stream.wait_begun()
        return stream

    def open_with_ticket(self, ticket, url, transport="websocket", after=None, **options):
        stream = TRANSPORTS[transport](url, ticket, after=after, **options)
        stream.cluster = self
        self._streams.append(stream)
        return stream

    def dead_letters(self, deadline=0):
        """Takes what is in roomd.dead: [{"reason", "room_id", "body"}]. With a deadline it waits for at least one."""
        found = []
        channel = self.broker.channel(self.name)
        end = time.monotonic() + deadline
        try:
            while True:
                method, properties, body = channel.basic_get("roomd.dead", auto_ack=True)
                if method:
                    headers = {key: value.decode() if isinstance(value, bytes) else value for key, value in (properties.headers or {}).items()}
                    found.append({"reason": headers.get("x-roomd-reason"), "room_id": headers.get("x-roomd-room"), "body": body,
                        "content_type": properties.content_type})
                elif found or time.monotonic() > end:
                    return found
                else:
                    channel.connection.sleep(0.02)
        finally:
            channel.connection.close()

    def check_log(self, rooms, published=()):
        check_log(self, rooms, published)

    def stop(self):
        """All at once; each gets one SIGTERM only, since a second one ends it without ceremony."""
        stopping = [instance for instance in self.instances if instance.alive()]
        for instance in stopping:
            instance.terminate()
        for instance in stopping:
            instance.wait_stopped()

    def close_readers(self):
        """At the end of each test: streams and publishers are closed, and what they saw is checked."""
        streams, publishers, links = self._streams, self._publishers, self._links
        self._streams, self._publishers, self._links = [], [], []
        for one in (*publishers, *streams, *links):
            one.close()
        for stream in streams:
            stream.check()

    def check(self):
        for instance in self.instances:
            instance.check()

    def close(self):
        problems = []
        for step in (self.close_readers, self.check, self.stop, self.check):
            try:
                step()
            except AssertionError as problem:
                problems.append(str(problem))
        for instance in self.instances:
            if instance.alive():
                instance.kill9()
        with contextlib.suppress(RuntimeError):
            self.broker.ctl("delete_vhost", self.name)
        assert not problems, "\n".join(problems)


# --- service calls ---


IDLE_S = 4  # a connection that was idle for longer is not used again: at 10 s the instance closes it, and a request may be under way just then


class Api:
    """Calls of an upstream gateway to one instance."""

    def __init__(self, url, key):
        self.url, self.key, self.session, self._used = url, key, requests.Session(), 0.0

    def call(self, method, body=None, headers=None, timeout=70, **fields):
        """(status, decoded answer). body: a map, or bytes to send as they are."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json", **(headers or {})}
        data = body if isinstance(body, bytes) else json.dumps({**(body or {}), **fields}).encode()
        if time.monotonic() - self._used > IDLE_S:
            self.session = requests.Session()
        self._used = time.monotonic()
        answer = self.session.post(f"{self.url}/v1/{method}", data=data, headers=headers, timeout=timeout)
        self._used = time.monotonic()
        return answer.status_code, answer.json()

    def ok(self, method, body=None, **fields):
        status, answer = self.call(method, body, **fields)
        assert status == 200, f"{method} {body or fields}: {status} {answer}"
        return answer

    def error(self, method, body=None, **fields):
        """(status, code) of a call that must fail."""
        status, answer = self.call(method, body, **fields)
        assert status != 200, f"{method} {body or fields} was accepted: {answer}"
        assert answer["error"]["message"], answer
        return status, answer["error"]["code"]

    def until_ok(self, method, body=None, deadline=30, **fields):
        """Repeats while the service says unavailable or timeout, or cannot be reached: as a caller with an id of its own may."""
        def attempt():
            with contextlib.suppress(requests.RequestException):
                status, answer = self.call(method, body, **fields)
                assert status in (200, 503, 504), f"{method}: {status} {answer}"
                return (answer,) if status == 200 else None

        return wait_for(attempt, deadline, every=0.1, what=f"{method} does not work")[0]

    def create_room(self, *members, **fields):
        return self.ok("room/Create", {"members": list(members), **fields})["room"]

    def push(self, room_id, sender, content, kind="text", **fields):
        return self.ok("history/Push", {"room_id": room_id, "sender": sender, "kind": kind, "content": content, **fields})

    def pull(self, room_id, **fields):
        return self.ok("history/Pull", {"room_id": room_id, **fields})

    def pull_all(self, room_id, limit=500, **fields):
        """Every entry, page by page from the beginning."""
        entries, after = [], "0:0"
        while True:
            page = self.pull(room_id, after=after, limit=limit, **fields)
            entries += page["entries"]
            if not page["more"]:
                return entries
            after = f"{entries[-1]['epoch']}:{entries[-1]['seq']}"

    def pull_until(self, room_id, count, deadline=DEADLINE):
        """All entries as soon as there are so many."""
        def enough():
            entries = self.pull_all(room_id)
            return entries if len(entries) >= count else None

        return wait_for(enough, deadline, what=f"no {count} entries in {room_id}")


# --- publishing ---


Published = collections.namedtuple("Published", "room_id sender client_msg_id message_id kind content")


class Publisher:
    """A gateway that publishes: persistent, mandatory, confirmed, one after the other. Used by one thread. url: or several, tried in order."""

    def __init__(self, url):
        self.url, self.confirmed, self._channel = url, [], None

    def _open(self):
        if self._channel is None or self._channel.is_closed:
            parameters = [pika.URLParameters(url + "?heartbeat=600&socket_timeout=5&blocked_connection_timeout=60") for url in self.url.split(",")]
            self._channel = pika.BlockingConnection(parameters).channel()
            self._channel.confirm_delivery()
        return self._channel

    def publish(self, room_id, sender, kind="text", content="", client_msg_id=None, repeat=False, deadline=60, **fields):
        """Published, once it is confirmed. repeat: the same message again after an error, until it is."""
        client_msg_id = client_msg_id or new_id()
        body = {"room_id": room_id, "sender": sender, "kind": kind, "content": content, "client_msg_id": client_msg_id, **fields}
        end = time.monotonic() + deadline
        while True:
            try:
                self.publish_raw(room_id, json.dumps(body).encode())
                break
            except (pika.exceptions.AMQPError, OSError):
                self.close()
                if not repeat or time.monotonic() > end:
                    raise
                time.sleep(random.uniform(*REPEAT_PAUSE))
        self.confirmed.append(Published(room_id, sender, client_msg_id, message_id(room_id, sender, client_msg_id), kind, content))
        return self.confirmed[-1]

    def publish_raw(self, room_id, body, exchange="roomd.room", content_type="application/json", **properties):
        """Any bytes to the room's queue."""
        self._open().basic_publish(exchange, room_id.partition(".")[0], body,
            pika.BasicProperties(content_type=content_type, delivery_mode=2, **properties), mandatory=True)

    def close(self):
        channel, self._channel = self._channel, None
        if channel is not None:
            with contextlib.suppress(Exception):
                channel.connection.close()


REPEAT_PAUSE = (0.05, 0.15)  # seconds between two tries of a publisher


class Load:
    """Publishers in threads, each numbering what it sends, until the with block ends; then .confirmed is everything that was confirmed.
    Every publisher p is the account f"p{p}" and must be a member of the rooms; content is "p<p>:<n>"."""

    def __init__(self, cluster, rooms, publishers=2, rate=200, accounts=None):
        self.rooms, self.rate = list(rooms), rate / publishers
        self.accounts = accounts or [f"p{number}" for number in range(publishers)]
        self._publishers = [Publisher(cluster.gateway_url) for _ in self.accounts]
        self._end, self._errors = threading.Event(), []
        self._threads = [threading.Thread(target=self._work, args=pair, daemon=True) for pair in zip(self._publishers, self.accounts)]

    @property
    def confirmed(self):
        return [published for publisher in self._publishers for published in publisher.confirmed]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self._end.set()
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive(), "a publisher does not end"
        assert not self._errors, self._errors

    def wait_confirmed(self, count, deadline=60):
        return wait_for(lambda: len(self.confirmed) >= count, deadline, what=lambda: f"{count} confirmed messages, {len(self.confirmed)} are")

    def _work(self, publisher, account):
        due = time.monotonic()
        try:
            for number in itertools.count():
                if self._end.wait(max(0.0, due - time.monotonic())):
                    break
                publisher.publish(self.rooms[number % len(self.rooms)], account, "text", f"{account}:{number}", repeat=True)
                due += 1 / self.rate
        except Exception as error:  # the thread that owns the load reports it
            self._errors.append(error)
        finally:
            publisher.close()


def check_log(cluster, rooms, published=()):
    """The promises, read from the tables: each room has seq 1, 2, 3 … up to its head, its epochs never fall, times neither; every confirmed message is there
    exactly once with its content; messages of one sender stand in the order in which they were first confirmed."""
    by_room = collections.defaultdict(list)
    seen = set()
    for one in published:
        if one.message_id not in seen:
            seen.add(one.message_id)
            by_room[one.room_id].append(one)
    for room_id in rooms:
        entries = cluster.rows("select l.seq, l.epoch, l.at, l.message_id::text, l.sender, l.client_msg_id, l.kind, l.content, l.state, h.last_seq"
            " from log_entry l join room r using (room_no) join room_head h using (room_no) where r.room_id = %s order by l.seq", room_id)
        assert [entry[0] for entry in entries] == list(range(1, len(entries) + 1)), f"holes in {room_id}"
        assert not entries or entries[-1][9] == len(entries), f"the head of {room_id} says {entries[-1][9]}, the log has {len(entries)} entries"
        for before, after in zip(entries, entries[1:]):
            assert before[1] <= after[1], f"epoch falls in {room_id} at seq {after[0]}"
            assert before[2] <= after[2], f"time falls in {room_id} at seq {after[0]}"
        place = {entry[3]: entry for entry in entries if entry[3] is not None}
        last = collections.defaultdict(int)
        for one in by_room[room_id]:
            entry = place.get(message_uuid(one.message_id))
            assert entry, f"confirmed and not in the log of {room_id}: {one}"
            assert (entry[4], entry[5], entry[6]) == (one.sender, one.client_msg_id, one.kind), f"{one} is {entry}"
            assert entry[8] != 0 or json.loads(entry[7]) == one.content, f"{one} is {entry}"  # neither edited nor recalled
            assert entry[0] > last[one.sender], f"{one.sender} in {room_id}: seq {entry[0]} of {one} is not after {last[one.sender]}"
            last[one.sender] = entry[0]


# --- streams ---


class Refused(Exception):
    """A stream that was refused with an HTTP status."""

    def __init__(self, status, answer):
        super().__init__(f"{status} {answer}")
        self.status, self.code = status, answer.get("error", {}).get("code")


class Stream:
    """What all transports have in common. Events come in on another thread."""

    transport, path = None, None

    def __init__(self, url, ticket, after=None, cursors=None):
        self.url, self.ticket, self.after = url, ticket, list(after or [])
        self.events, self.cursors, self.closed = [], dict(cursors or {}), None
        self.cluster = None
        self._changed = threading.Condition()
        self._next, self._problems = 0, []
        for position in self.after:
            room_id, at, cursor = position.partition("@")
            if at:
                self.cursors[room_id] = cursor

    # reading

    def read_until(self, predicate, deadline=DEADLINE, what=None):
        """The next event (after the one returned last) that predicate is true for."""
        end = time.monotonic() + deadline
        with self._changed:
            while True:
                while self._next < len(self.events):
                    event = self.events[self._next]
                    self._next += 1
                    if predicate(event):
                        return event
                if self.closed is not None or time.monotonic() > end:
                    state = f"closed {self.closed}" if self.closed is not None else f"not within {deadline} s"
                    raise AssertionError(f"{what or 'event'}: {state}; the last events: {self.events[-5:]}")
                self._changed.wait(max(0.0, end - time.monotonic()))

    def read_next(self, deadline=DEADLINE):
        """The next event, or None at the deadline or when there will be none."""
        end = time.monotonic() + deadline
        with self._changed:
            while self._next == len(self.events):
                if self.closed is not None or not self._changed.wait(max(0.0, end - time.monotonic())):
                    return None
            self._next += 1
            return self.events[self._next - 1]

    def read_type(self, kind, deadline=DEADLINE, **fields):
        return self.read_until(lambda event: event["type"] == kind and has(event, fields), deadline, f"{kind} {fields}")

    def read_message(self, room_id, deadline=DEADLINE, **fields):
        return self.read_type("message", deadline, room_id=room_id, **fields)

    def read_seq(self, room_id, seq, deadline=DEADLINE):
        """Until the room was read up to seq."""
        self.wait(lambda: parse_cursor(self.cursors.get(room_id, "0:0"))[1] >= seq, deadline, f"{room_id} up to {seq}")
        return self

    def read_count(self, room_id, count, deadline=DEADLINE):
        """Until there are so many messages of the room."""
        self.wait(lambda: len(self.messages(room_id)) >= count, deadline, f"{count} messages of {room_id}")
        return self.messages(room_id)

    def wait(self, condition, deadline=DEADLINE, what=None):
        def state():
            return f"{what or 'condition'}: closed {self.closed}, cursors {self.cursors}, {len(self.events)} events, the last: {self.events[-5:]}"

        wait_for(lambda: condition() or self.closed is not None, deadline, what=state)
        assert condition(), state()

    def wait_begun(self, deadline=DEADLINE):
        """Until it has said hello, or why it does not. (What comes too late, the test misses when it reads.)"""
        with self._changed:
            self._changed.wait_for(lambda: self.events or self.closed is not None, deadline)

    def wait_closed(self, deadline=DEADLINE):
        """(code, reason); HTTP streams end with code None."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.closed is not None, deadline), f"still open; the last events: {self.events[-5:]}"
        return self.closed

    # what was read

    def messages(self, room_id=None):
        return [event for event in list(self.events) if event["type"] == "message" and room_id in (None, event["room_id"])]

    def log_events(self, room_id):
        """Events that are log entries of the room, without what a reset took back."""
        kept = []
        for event in list(self.events):
            if event.get("room_id") != room_id or "epoch" not in event:
                continue
            if event["type"] == "reset":
                kept = [one for one in kept if one["seq"] <= event["seq"]]
            else:
                kept.append(event)
        return kept

    def seqs(self, room_id):
        return [event["seq"] for event in self.log_events(room_id)]

    def contiguous(self, room_id, first=None):
        """The seqs without a hole; returns them."""
        seqs = self.seqs(room_id)
        first = first or (seqs[0] if seqs else 0)
        assert seqs == list(range(first, first + len(seqs))), f"holes or repeats in {room_id}: {seqs}"
        return seqs

    def positions(self):
        return [f"{room_id}@{cursor}" for room_id, cursor in self.cursors.items()]

    def reconnect(self, endpoint=None, ticket=None):
        """A new stream of the same kind that goes on where this one is."""
        self.close()
        url = getattr(endpoint, "url", endpoint) or self.url
        after = self.positions()
        return self.cluster.open_with_ticket(ticket or self.ticket, url, self.transport, after=after, cursors=self.cursors)

    def check(self):
        assert not self._problems, self._problems

    # for the transports

    def _take(self, text):
        for line in text.split("\n"):
            if line:
                self._take_event(json.loads(line))

    def _take_event(self, event):
        with self._changed:
            if self.closed is not None:
                return  # an answer that was under way when the test closed the stream
            self._follow(event)
            self.events.append(event)
            self._changed.notify_all()

    def _follow(self, event):
        """Keeps the cursors; notes what breaks the promises."""
        if event["type"] in ("hello", "room.entered"):
            for room in event.get("rooms", [event]):
                if "from" in room:
                    self.cursors.setdefault(room["room_id"], room["from"])
            return
        if "epoch" not in event or "room_id" not in event:
            return
        room_id, cursor = event["room_id"], f"{event['epoch']}:{event['seq']}"
        old_epoch, old_seq = parse_cursor(self.cursors.get(room_id, "0:0"))
        if event["type"] == "void" and event["seq"] <= old_seq:
            return  # the one correction besides reset: what was shown early at that seq is to be forgotten
        if event["type"] != "reset":
            if event["seq"] <= old_seq:
                self._problems.append(f"seq {event['seq']} of {room_id} after {old_seq}: {event}")
            if event["epoch"] < old_epoch:
                self._problems.append(f"epoch {event['epoch']} of {room_id} after {old_epoch}: {event}")
        self.cursors[room_id] = cursor

    def _end(self, code, reason=""):
        with self._changed:
            if self.closed is None:
                self.closed = (code, reason)
            self._changed.notify_all()


def has(event, fields):
    return all(event.get(name) == value for name, value in fields.items())


class BackgroundLoop:
    """One asyncio loop for all WebSockets of the process."""

    _loop = None

    @classmethod
    def run(cls, coroutine, timeout=DEADLINE + 5):
        if cls._loop is None:
            cls._loop = asyncio.new_event_loop()
            threading.Thread(target=cls._loop.run_forever, daemon=True).start()
        return asyncio.run_coroutine_threadsafe(coroutine, cls._loop).result(timeout)


class WsStream(Stream):
    """ticket_by: "header" (Authorization), "protocol" (Sec-WebSocket-Protocol) or "query". receive_buffer: SO_RCVBUF, for slow readers."""

    transport, path = "websocket", "/v1/stream/ws"

    def __init__(self, url, ticket, after=None, cursors=None, ticket_by="header", subprotocols=None, headers=None, receive_buffer=None,
            query=None):
        super().__init__(url, ticket, None if after == "*" else after, cursors)
        query = list(query or []) + [("after", position) for position in ("*" if after == "*" else self.after)]
        protocols, headers = list(subprotocols or []), dict(headers or {})
        if ticket_by == "header":
            headers["Authorization"] = f"Bearer {ticket}"
        elif ticket_by == "protocol":
            protocols = protocols or ["roomd.v1.json", f"ticket.{ticket}"]
        else:
            query.append(("ticket", ticket))
        self._requests = itertools.count(1)
        self._socket, self._receive_buffer = None, receive_buffer
        address = "ws" + url[4:] + self.path + ("?" + urllib.parse.urlencode(query) if query else "")
        self._open_gate, self._reader = None, None
        BackgroundLoop.run(self._connect(address, protocols, headers))

    async def _connect(self, address, protocols, headers):
        parts = urllib.parse.urlsplit(address)
        raw = socket.socket()
        if self._receive_buffer:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, (parts.hostname, parts.port))
        try:
            self._socket = await websockets.connect(address, sock=raw, subprotocols=protocols or None, extra_headers=headers, ping_interval=None,
                compression=None, max_size=None, close_timeout=2, open_timeout=DEADLINE)
        except websockets.InvalidStatusCode as refusal:
            raise Refused(refusal.status_code, {}) from None
        self._reader = asyncio.ensure_future(self._read())

    async def _read(self):
        with contextlib.suppress(websockets.ConnectionClosed):
            async for frame in self._socket:
                try:
                    self._take(frame)
                except (ValueError, KeyError, TypeError) as error:
                    self._problems.append(f"not an event: {error!r} in {frame[:300]!r}")
        self._end(self._socket.close_code, self._socket.close_reason)

    @property
    def subprotocol(self):
        return self._socket.subprotocol

    def send(self, kind, payload=None, req_id=None):
        req_id = req_id or f"r{next(self._requests)}"
        self.send_raw(json.dumps({"type": kind, "req_id": req_id, "payload": payload or {}}))
        return req_id

    def send_raw(self, frame):
        """Text, or bytes as a binary frame."""
        BackgroundLoop.run(self._socket.send(frame))

    def request(self, kind, payload=None, deadline=DEADLINE):
        """The ack, pong or error that answers it. (Looks through all events: read_until goes on where it was.)"""
        req_id = self.send(kind, payload)

        def find():
            return next((event for event in self.events if event.get("req_id") == req_id), None)

        self.wait(find, deadline, f"answer to {kind}")
        return find()

    def pause(self):
        """Nothing is read any more, not even PINGs: as a frozen client."""
        BackgroundLoop.run(self._call(self._socket.transport.pause_reading))

    def go_on(self):
        BackgroundLoop.run(self._call(self._socket.transport.resume_reading))

    def abort(self):
        """The connection is gone without a close frame."""
        BackgroundLoop.run(self._call(self._socket.transport.abort))
        self.wait_closed()

    def close(self):
        if self._socket is not None and self.closed is None:
            with contextlib.suppress(Exception):
                BackgroundLoop.run(self._socket.close())
            self._end(1000, "closed by the test")

    @staticmethod
    async def _call(function):
        function()


class HttpStream(Stream):
    """SSE and NDJSON. post: positions go in the body of a POST."""

    def __init__(self, url, ticket, after=None, cursors=None, ticket_by="header", headers=None, receive_buffer=None, post=False, query=None):
        super().__init__(url, ticket, after, cursors)
        parts = urllib.parse.urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=DEADLINE)
        self._connection.connect()
        if receive_buffer:
            self._connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._raw = self._connection.sock
        target, headers, body = stream_request(self.path, ticket, self.after, ticket_by, headers, post, query)
        self._connection.request("POST" if post else "GET", target, body, headers)
        self.response = self._connection.getresponse()
        if self.response.status != 200:
            answer = json.loads(self.response.read() or b"{}")
            self._connection.close()
            raise Refused(self.response.status, answer)
        self._raw.settimeout(None)
        self._going, self._stopped = threading.Event(), False
        self._going.set()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        try:
            while not self._stopped:
                self._going.wait()
                line = self.response.readline()
                if not line:
                    break
                self._line(line.decode().rstrip("\n"))
        except (OSError, ValueError, http.client.HTTPException, AttributeError) as error:
            if not self._stopped:
                self._end(None, repr(error))
        self._end(None, "end")

    def pause(self):
        self._going.clear()

    def go_on(self):
        self._going.set()

    def abort(self):
        """RST."""
        self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self):
        self._stopped = True
        self._going.set()
        with contextlib.suppress(OSError):
            self._raw.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        with contextlib.suppress(OSError):
            self.response.close()
            self._connection.close()
        self._end(None, "closed by the test")


class SseStream(HttpStream):
    """.last_id: the last id: line, for Last-Event-ID (headers={"Last-Event-ID": …})."""

    transport, path = "sse", "/v1/stream/sse"
    last_id = None

    def _line(self, line):
        if line.startswith("data:"):
            self._take(line[5:].strip())
        elif line.startswith("id:"):
            self.last_id = line[3:].strip()


class NdjsonStream(HttpStream):
    transport, path = "ndjson", "/v1/stream/ndjson"

    def _line(self, line):
        self._take(line)


class LongPoll(Stream):
    """Polls in a thread of its own, each time with the positions the last answer gave. background=False: only poll() does, and it raises Refused."""

    transport, path = "poll", "/v1/stream/poll"

    def __init__(self, url, ticket, after=None, cursors=None, ticket_by="header", headers=None, post=False, query=None, background=True):
        super().__init__(url, ticket, after, cursors)
        self._options = (ticket_by, headers, post, query)
        # An answer names the rooms that moved; where the others stand, the reader knows itself.
        self._known, self._answered = dict(position.split("@") for position in self.after if "@" in position), False
        parts = urllib.parse.urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port)
        if background:
            threading.Thread(target=self._read, daemon=True).start()

    def poll(self, timeout=40):
        """One request; its events."""
        ticket_by, headers, post, query = self._options
        after = [f"{room_id}@{cursor}" for room_id, cursor in self._known.items()] if self._answered else self.after
        status, found = self._request("POST" if post else "GET", *stream_request(self.path, self.ticket, after, ticket_by, headers, post, query), timeout)
        if status != 200:
            raise Refused(status, found)
        for event in found["events"]:
            self._take_event(event)
        self._known.update(position.split("@") for position in found["after"])
        self._answered = True
        return found["events"]

    def _request(self, method, target, headers, body, timeout):
        reused = self._connection.sock is not None
        self._connection.timeout = timeout
        if reused:
            self._connection.sock.settimeout(timeout)
        try:
            self._connection.request(method, target, body, headers)
            answer = self._connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (http.client.HTTPException, OSError):
            self._connection.close()
            if not reused or self.closed is not None:
                raise
        return self._request(method, target, headers, body, timeout)  # a kept connection was closed as idle meanwhile

    def _read(self):
        try:
            while self.closed is None:
                self.poll()
        except (Refused, OSError, ValueError, AttributeError, http.client.HTTPException) as error:
            self._end(None, repr(error))

    def close(self):
        self._end(None, "closed by the test")
        with contextlib.suppress(OSError, AttributeError):
            self._connection.sock.shutdown(socket.SHUT_RDWR)

    abort = close


def stream_request(path, ticket, after, ticket_by, headers, post, query):
    """(target, headers, body) of a stream over plain HTTP."""
    query, headers, body = list(query or []), dict(headers or {}), None
    if ticket_by == "header":
        headers["Authorization"] = f"Bearer {ticket}"
    else:
        query.append(("ticket", ticket))
    if post:
        body = json.dumps({"after": after}).encode()
        headers["Content-Type"] = "application/json"
    else:
        query += [("after", position) for position in after]
    return path + ("?" + urllib.parse.urlencode(query) if query else ""), headers, body


TRANSPORTS = {"websocket": WsStream, "sse": SseStream, "ndjson": NdjsonStream, "poll": LongPoll}
