"""The adapter library as a gateway uses it: its examples, and its publisher through what happens to brokers and processes."""
import json
import os
import pathlib
import re
import signal
import socket
import ssl
import subprocess
import threading

import pytest
import yaml

import roomd

BUILD = pathlib.Path(roomd.ROOMD).parent
SENDER = BUILD / "chaos_adapter_sender"


def needed(program):
    if not program.exists():
        pytest.fail(f"{program} is not built")
    return str(program)


class Sender:
    """The program tests/chaos/adapter_sender.c."""

    def __init__(self, cluster, rooms, count, window=100, send_ms=10_000, spool="", rate=0, sender="alice", brokers=None):
        folder = cluster.home
        self.results = folder / f"results-{roomd.new_id()}"
        rooms_file = folder / f"rooms-{roomd.new_id()}"
        rooms_file.write_text("".join(room + "\n" for room in rooms))
        self.process = subprocess.Popen([needed(SENDER), brokers or cluster.gateway_url, sender, str(count), str(window), rooms_file, self.results, str(send_ms), spool, str(rate)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def answers(self):
        """{n: code} as far as written."""
        lines = self.results.read_text().split("\n")[:-1] if self.results.exists() else []  # behind the last newline, a part of a line
        return {int(line.split()[0]): line.split()[1] for line in lines}

    def finish(self, deadline=60):
        out, err = self.process.communicate(timeout=deadline)
        assert self.process.returncode == 0, err
        assert not roomd.SANITIZER.search(err), err
        return json.loads(out.splitlines()[-1])

    def kill(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


class TlsWay:
    """TLS before a plain port of this machine, with a certificate of `folder`."""

    def __init__(self, port, folder, certificate="server"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / f"{certificate}.pem", folder / f"{certificate}.key")
        self.context, self.target, self.plain_bytes = context, port, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near = self.listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._carry, args=[near], daemon=True).start()

    def _carry(self, near):
        try:
            near = self.context.wrap_socket(near, server_side=True)
            far = socket.create_connection(("127.0.0.1", self.target))
        except OSError:
            near.close()
            return
        # One thread for both: a TLS socket is not to be used by two at once.
        near.settimeout(0.005)
        far.setblocking(False)
        try:
            while True:
                for source, sink in ((near, far), (far, near)):
                    try:
                        data = source.recv(65536)
                    except (BlockingIOError, ssl.SSLWantReadError, TimeoutError):
                        continue
                    if not data:
                        return
                    self.plain_bytes += len(data)
                    sink.settimeout(10)
                    sink.sendall(data)
                    near.settimeout(0.005)
                    far.setblocking(False)
        except OSError:
            pass
        finally:
            near.close()
            far.close()

    def close(self):
        self.listener.close()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A private CA (ca.pem), and what it has signed: server (localhost and 127.0.0.1) and another (another.example)."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=a private CA", "-keyout", "ca.key", "-out", "ca.pem")
    for name, names in (("server", "DNS:localhost,IP:127.0.0.1"), ("another", "DNS:another.example")):
        (folder / f"{name}.ext").write_text(f"subjectAltName={names}\n")
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.pem")
    return folder


@pytest.fixture
def tls_way(certificates):
    mine = []

    def make(port, certificate="server"):
        mine.append(TlsWay(port, certificates, certificate))
        return mine[-1]

    yield make
    for one in mine:
        one.close()


def in_log(cluster, rooms, count, deadline=60):
    """Waits for `count` messages in the log: [(room_id, number)] in the order of each room."""
    query = "select r.room_id, split_part(l.client_msg_id, '-', 2)::bigint from log_entry l join room r using (room_no) where l.type = 1 and r.room_id = any(%s) order by r.room_id, l.seq"
    return roomd.wait_for(lambda: (lambda rows: rows if len(rows) >= count else None)(cluster.rows(query, rooms)), deadline, every=0.2,
        what=lambda: f"{len(cluster.rows(query, rooms))} of {count} in the log")


def each_room_ascends(rows):
    last = {}
    for room, number in rows:
        assert number > last.get(room, -1), f"{room}: {number} after {last[room]}"
        last[room] = number


def test_the_example_sends_a_message_and_reads_it_back(cluster):
    done = subprocess.run([needed(BUILD / "example_send_message"), "http://127.0.0.1:1," + cluster.api.url, cluster.api.key, cluster.gateway_url],
        capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    first, *entries = done.stdout.splitlines()
    message = json.loads(entries[-1])
    assert (message["content"], message["message_id"]) == ("Hello, Bob", first.split()[-1])


def test_the_example_shows_a_stream(cluster, api):
    account = "reader-" + roomd.new_id()
    room = api.create_room("alice", account)["room_id"]
    process = subprocess.Popen([needed(BUILD / "example_open_stream"), api.url, api.key, account], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert json.loads(process.stdout.readline())["type"] == "hello"
        api.push(room, "alice", "Hello")
        while True:
            event = json.loads(process.stdout.readline())
            if event["type"] == "message":
                break
        assert (event["room_id"], event["content"]) == (room, "Hello")
    finally:
        process.kill()
        process.communicate()


def test_every_call_of_the_library_works_with_the_service(cluster):
    done = subprocess.run([needed(BUILD / "test_adapter_live")], capture_output=True, text=True, timeout=100, env=dict(os.environ,
        ROOMD_TEST_INSTANCE_URLS=cluster.api.url, ROOMD_TEST_SERVICE_KEY=cluster.api.key, ROOMD_TEST_GATEWAY_URL=cluster.gateway_url))
    assert done.returncode == 0 and "[  PASSED  ]" in done.stdout + done.stderr, done.stdout + done.stderr


def live_over_tls(cluster, instance, broker, ca_file, call_ms=10_000):
    """The test program's exit code and what it says, with both ways through TLS."""
    amqp = cluster.gateway_url.replace("amqp://", "amqps://").replace(f"127.0.0.1:{cluster.servers.broker.port}", f"localhost:{broker.port}")
    done = subprocess.run([needed(BUILD / "test_adapter_live")], capture_output=True, text=True, timeout=100, env=dict(os.environ, ROOMD_TEST_CA_FILE=str(ca_file), ROOMD_TEST_CALL_MS=str(call_ms),
        ROOMD_TEST_INSTANCE_URLS=f"https://127.0.0.1:{instance.port}", ROOMD_TEST_SERVICE_KEY=cluster.api.key, ROOMD_TEST_GATEWAY_URL=amqp))
    assert not roomd.SANITIZER.search(done.stderr), done.stderr
    return done.returncode, done.stdout + done.stderr


def test_every_call_and_message_goes_over_tls_with_a_private_ca(cluster, certificates, tls_way):
    instance, broker = tls_way(cluster.instances[0].port), tls_way(cluster.servers.broker.port)
    code, said = live_over_tls(cluster, instance, broker, certificates / "ca.pem")
    assert code == 0 and "[  PASSED  ]" in said, said
    assert instance.plain_bytes and broker.plain_bytes


@pytest.mark.parametrize("certificate, ca", [("another", "ca.pem"), ("server", "another.pem")])
def test_over_tls_nothing_is_said_to_an_instance_that_is_another(cluster, certificates, tls_way, certificate, ca):
    instance, broker = tls_way(cluster.instances[0].port, certificate), tls_way(cluster.servers.broker.port, certificate)
    code, said = live_over_tls(cluster, instance, broker, certificates / ca, call_ms=500)
    assert code != 0 and "unavailable" in said, said
    assert not instance.plain_bytes and not broker.plain_bytes


def test_the_calls_have_every_field_of_the_protocol():
    api = yaml.safe_load((roomd.TOP / "docs" / "openapi.yaml").read_text())
    source = (roomd.TOP / "gateway-adapter" / "adapter_calls.c").read_text()

    def resolve(schema):
        while "$ref" in schema:
            found = api
            for part in schema["$ref"][2:].split("/"):
                found = found[part]
            schema = found
        return schema

    def properties(schema):
        schema = resolve(schema)
        names = set(schema.get("properties", {}))
        for part in schema.get("allOf", []) + schema.get("oneOf", []) + schema.get("anyOf", []):
            names |= properties(part)
        return names

    tables = dict(re.findall(r"static const struct put_field (\w+)\[\] = \{(.*?)\n\};", source, re.S))
    shapes = re.findall(r'request_shape \w+ = \{\s*"([^"]+)", (\w+), countof\(\w+\), (?:"(\w+)"|NULL)\}', source)
    assert {path for path, _, _ in shapes} == {path for path in api["paths"] if re.match(r"/v1/(room|history|proxy)/", path)}
    for path, fields, own_id in shapes:
        request = properties(resolve(api["paths"][path]["post"]["requestBody"])["content"]["application/json"]["schema"])
        mine = set(re.findall(r'\{"(\w+)"', tables[fields])) | ({own_id} - {""})
        if "account_ids" in request:
            request -= {"account_id"} if path.startswith("/v1/room/") else set()  # one is a list of one
        if path == "/v1/history/MarkRead":
            request -= {"request_id"}  # a repeat does no harm
        assert mine == request, path


def test_the_shared_library_shows_nothing_but_what_is_in_its_header():
    symbols = subprocess.run(["nm", "-D", "--defined-only", BUILD / "libroomd_adapter.so"], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1].split("@")[0] for line in symbols.splitlines() if " T " in line}
    headers = "".join((roomd.TOP / "gateway-adapter" / name).read_text() for name in ("roomd_adapter.h", "roomd_ticket.h"))
    declared = set(re.findall(r"\b(roomd_\w+)\(", headers))
    assert names == declared, names ^ declared


def test_examples_are_under_forty_lines():
    for example in (roomd.TOP / "gateway-adapter" / "examples").glob("*.c"):
        assert len(example.read_text().splitlines()) < 40, example.name


@pytest.mark.deadline(300)
def test_a_team_that_wants_only_the_library_builds_and_links_it_as_the_page_says(cluster, tmp_path):
    examples = roomd.TOP / "gateway-adapter" / "examples"
    build, prefix = tmp_path / "build", tmp_path / "elsewhere"
    lines = re.search(r"```sh\n(cmake .*?)\n```", (roomd.TOP / "docs" / "adapter.md").read_text(), re.S)[1]
    assert "cmake -B build -DROOMD_ADAPTER_ONLY=ON && cmake --build build && sudo cmake --install build " in lines
    for command in (["cmake", "-S", roomd.TOP, "-B", build, "-DROOMD_ADAPTER_ONLY=ON", "-DCMAKE_C_FLAGS_RELWITHDEBINFO=-O0"], ["cmake", "--build", build], ["cmake", "--install", build, "--prefix", prefix]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    library = next(prefix.glob("lib*/**/libroomd_adapter.so")).parent
    environment = {**os.environ, "PKG_CONFIG_PATH": str(library / "pkgconfig"), "LD_LIBRARY_PATH": str(library)}

    def flags(*words):
        return subprocess.run(["pkg-config", *words], env=environment, check=True, capture_output=True, text=True).stdout.split()

    subprocess.run(["cc", examples / "open_stream.c", "-o", tmp_path / "stream", *flags("--cflags", "--libs", "roomd_adapter", "libuv")], check=True, cwd=tmp_path)
    subprocess.run(["cc", examples / "send_message.c", "-o", tmp_path / "shared", *flags("--cflags", "--libs", "roomd_adapter")], check=True, cwd=tmp_path)
    static = [word for word in flags("--static", "--libs", "roomd_adapter") if word != "-lroomd_adapter"]
    subprocess.run(["cc", examples / "send_message.c", library / "libroomd_adapter.a", "-o", tmp_path / "static", *flags("--cflags", "roomd_adapter"), *static], check=True, cwd=tmp_path)
    for program in ("shared", "static"):
        done = subprocess.run([tmp_path / program, cluster.api.url, cluster.api.key, cluster.gateway_url], env=environment if program == "shared" else None,
            capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "Hello" in done.stdout, (done.stdout, done.stderr)


@pytest.mark.deadline(300)
def test_every_confirmed_message_is_in_the_log_once_and_in_order_though_the_broker_dies(new_cluster, broker):
    cluster = new_cluster()
    rooms = [cluster.api.create_room("alice")["room_id"] for _ in range(20)]
    broker.settle()
    sender = Sender(cluster, rooms, 9_000, window=1000, send_ms=120_000, rate=1000)
    for _ in range(3):  # each time it has come back: counted from there, for a loaded machine may see a fixed share late
        before = len(sender.answers())
        roomd.wait_for(lambda: len(sender.answers()) >= before + 300, 120)  # a sender that does not catch up after an outage is not done before the last kill
        broker.kill(settle=False)
        broker.start()
    report = sender.finish(180)
    assert report["confirmed"] == 9_000 and report["connects"] >= 4 and report["resent"] > 0, report
    rows = in_log(cluster, rooms, 9_000)
    assert len(rows) == len(set(rows)) == 9_000
    each_room_ascends(rows)


def test_a_stopped_broker_is_unavailable_by_the_deadline(new_cluster, broker):
    cluster = new_cluster()
    room = cluster.api.create_room("alice")["room_id"]
    broker.stop()
    report = Sender(cluster, [room], 10, send_ms=1500).finish()
    assert report["unavailable"] == 10, report
    assert 1400 <= report["ms"] < 5000, report


def test_a_blocked_broker_is_unavailable_by_the_deadline(new_cluster, broker):
    cluster = new_cluster()
    room = cluster.api.create_room("alice")["room_id"]
    with broker.alarm():
        report = Sender(cluster, [room], 50, window=10, send_ms=1000).finish()
    # What was sent before the broker said that it is blocked may still come true.
    assert report["confirmed"] == 0 and report["unavailable"] + report["timeout"] == 50 and report["unavailable"] >= 40, report


def test_another_broker_takes_over_and_the_first_is_returned_to(new_cluster, servers):
    cluster = new_cluster()
    room = cluster.api.create_room("alice")["room_id"]
    link = roomd.Link(servers.broker.port)
    try:
        first = cluster.gateway_url.replace(f":{servers.broker.port}/", f":{link.port}/")
        sender = Sender(cluster, [room], 4_000, send_ms=60_000, rate=400, brokers=f"{first},{cluster.gateway_url}")
        roomd.wait_for(lambda: len(sender.answers()) >= 400, 30)
        link.cut()
        before = len(sender.answers())
        roomd.wait_for(lambda: len(sender.answers()) >= before + 200, 30)  # no waiting for the first to come back: it does not
        link.mend()
        report = sender.finish()
        assert report["confirmed"] == 4_000 and report["connects"] >= 3, report
        rows = in_log(cluster, [room], 4_000)
        assert len(rows) == 4_000
        each_room_ascends(rows)
    finally:
        link.close()


def test_the_spool_is_replayed_by_a_later_process_once_and_in_order(new_cluster, broker, tmp_path):
    cluster = new_cluster()
    rooms = [cluster.api.create_room("alice")["room_id"] for _ in range(3)]
    spool = str(tmp_path / "spool")
    broker.stop()
    sender = Sender(cluster, rooms, 100_000, window=200, spool=spool, rate=500)
    roomd.wait_for(lambda: len(sender.answers()) >= 500, 30)
    sender.kill()
    answers = sender.answers()
    assert set(answers.values()) == {"spooled"}
    broker.start()
    report = Sender(cluster, rooms, 0, spool=spool).finish()
    assert report["spool_bytes"] == 0 and report["settled"] >= len(answers), report
    rows = in_log(cluster, rooms, len(answers))
    assert len(rows) == len(set(rows)) and {number for _, number in rows} >= set(answers)
    each_room_ascends(rows)


def test_what_is_spooled_leaves_by_itself_and_later_messages_stay_behind_it(new_cluster, broker, tmp_path):
    cluster = new_cluster()
    rooms = [cluster.api.create_room("alice")["room_id"] for _ in range(3)]
    sender = Sender(cluster, rooms, 3_000, window=200, spool=str(tmp_path / "spool"), rate=300, send_ms=60_000)
    roomd.wait_for(lambda: len(sender.answers()) >= 300, 30)
    broker.stop()
    roomd.wait_for(lambda: "spooled" in sender.answers().values(), 30)
    broker.start()
    report = sender.finish(90)
    assert report["spooled"] > 0 and report["confirmed"] > 0 and report["spooled"] + report["confirmed"] == 3_000, report
    rows = in_log(cluster, rooms, 3_000)
    assert len(rows) == len(set(rows)) == 3_000
    each_room_ascends(rows)
