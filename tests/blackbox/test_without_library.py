"""The programs of docs/without-library.md, taken out of the page and run: a gateway without our library."""
import itertools
import json
import os
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import threading

import pika
import pytest

import conftest
import pages
import roomd
from roomd import wait_for

NODE_FOLDER = pathlib.Path(__file__).parent / "node"  # package.json and its lock: what the page says to install

# What a test says to a program of the page: JSON lines on stdin, one answer a line on stdout. These drivers only pass it on.
DRIVERS = {
    "python": ("driver.py", """
import asyncio, json, sys, threading
from calls import Refused, call
from publish import NoSuchRoom, Publisher, Unavailable
import os, stream

def say(**fields):
    print(json.dumps(fields), flush=True)

def sse(account, room_id, cursor):
    for event, at in stream.follow_sse(account, room_id, cursor):
        say(event=event, cursor=at)

def websocket(account, cursors):
    asyncio.run(stream.follow(account, cursors, lambda event: say(event=event, cursors=cursors)))

publisher = Publisher(*os.environ["AMQP_URLS"].split(","))
for line in sys.stdin:
    number, do, arguments = json.loads(line)
    try:
        if do in ("sse", "websocket"):
            threading.Thread(target={"sse": sse, "websocket": websocket}[do], args=arguments, daemon=True).start()
            answer = None
        elif do == "call":
            answer = call(*arguments)
        else:
            answer = publisher.send(**arguments)
        say(number=number, answer=answer)
    except Exception as error:
        say(number=number, error=type(error).__name__, code=getattr(error, "code", None), field=getattr(error, "field", None), why=repr(error))
os._exit(0)
"""),
    "node": ("driver.mjs", """
import { createInterface } from 'node:readline';
import { call } from './calls.mjs';
import { Publisher } from './publish.mjs';
import { follow, openSse, openWebSocket } from './stream.mjs';

const say = (fields) => process.stdout.write(`${JSON.stringify(fields)}\\n`);
const publisher = new Publisher(...process.env.AMQP_URLS.split(','));
const actions = {
    call: ([method, body]) => call(method, body),
    publish: ({ deadline_s, ...message }) => publisher.send(message, deadline_s && { deadlineMs: deadline_s * 1000 }),
    sse: ([account, room_id, cursor]) => stream(account, { [room_id]: cursor }, openSse),
    websocket: ([account, cursors]) => stream(account, cursors, openWebSocket),
};
function stream(account, cursors, open) {
    follow(account, cursors, (event) => say({ event, cursors }), { open });
}
for await (const line of createInterface({ input: process.stdin })) {
    const [number, what, fields] = JSON.parse(line);
    Promise.resolve().then(() => actions[what](fields)).then((answer) => say({ number, answer: answer ?? null }),
        (error) => say({ number, error: error.constructor.name, code: error.code, field: error.field, why: String(error) }));
}
process.exit(0);
"""),
}


class Program:
    """The page's programs in one language, driven by a test."""

    def __init__(self, language, folder, environment):
        name, text = DRIVERS[language]
        (folder / name).write_text(text)
        self.log, self._numbers, self._answers, self.events = folder / f"{language}.log", itertools.count(1), {}, []
        command = [sys.executable, name] if language == "python" else ["node", name]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, cwd=folder, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                start_new_session=True)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            said = json.loads(line)
            if "event" in said:
                self.events.append(said["event"])
            else:
                self._answers.setdefault(said["number"], queue.Queue()).put(said)

    def start(self, do, arguments):
        number = next(self._numbers)
        self._answers[number] = queue.Queue()
        self.process.stdin.write(json.dumps([number, do, arguments]) + "\n")
        self.process.stdin.flush()
        return number

    def wait(self, number, deadline=30):
        try:
            return self._answers[number].get(timeout=deadline)
        except queue.Empty:
            raise AssertionError(f"no answer: {self.log.read_text()}") from None

    def do(self, what, arguments, deadline=30):
        said = self.wait(self.start(what, arguments), deadline)
        assert "error" not in said, said
        return said["answer"]

    def refused(self, what, arguments, deadline=30):
        said = self.wait(self.start(what, arguments), deadline)
        assert "error" in said, said
        return said

    def publish(self, room_id, content, client_msg_id, **fields):
        return {"room_id": room_id, "sender": "alice", "kind": "text", "content": content, "client_msg_id": client_msg_id, **fields}

    def seqs(self, room_id):
        return [event["seq"] for event in list(self.events) if event.get("room_id") == room_id and "epoch" in event]

    def close(self):
        self.process.kill()
        self.process.wait(10)


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory):
    """npm checks them against the lock."""
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(NODE_FOLDER / name, folder)
    done = subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"], cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=90)
    assert done.returncode == 0, f"npm could not install what the page's Node programs need:\n{done.stdout}"
    return folder / "node_modules"


@pytest.fixture(scope="module")
def cut_cluster(servers):
    """(cluster, link to its instance, link to the broker): streams and publishers go by the links, instances and the test do not."""
    cluster = roomd.Cluster(servers, 0)
    conftest.open_clusters.append(cluster)
    port = roomd.free_port()
    to_instance, to_broker = roomd.Link(port), roomd.Link(servers.broker.port)
    cluster.start(settings={"listen_port": port, "advertise_url": f"http://127.0.0.1:{to_instance.port}", "heartbeat_ms": 1000})
    yield cluster, to_instance, to_broker
    to_instance.close()
    to_broker.close()
    conftest.close_cluster(cluster)


@pytest.fixture(params=sorted(DRIVERS))
def program(request, cut_cluster, tmp_path):
    cluster, _, to_broker = cut_cluster
    pages.write_programs("without-library.md", tmp_path)
    if request.param == "node":
        (tmp_path / "node_modules").symlink_to(request.getfixturevalue("node_modules"))
    # The first instance of the list is dead: everything here also shows that the next one is asked.
    dead = f"http://127.0.0.1:{roomd.free_port()}"
    program = Program(request.param, tmp_path, {"ROOMD_URLS": f"{dead},{cluster.instances[0].url}", "ROOMD_SERVICE_KEY": cluster.service_key,
        "AMQP_URLS": cluster.broker.url("gateway", cluster.name, to_broker.port)})
    yield program
    program.close()
    to_broker.mend()


def pull_messages(cluster, room, count):
    """The messages of a room, once so many are stored; a repeat may take a seq, too."""
    return wait_for(lambda: len(found := [entry for entry in cluster.api.pull_all(room) if entry["type"] == "message"]) >= count and found, 30, what=f"no {count} messages")


def test_calls_answer_refuse_and_happen_once(cut_cluster, program):
    created = program.do("call", ["room/Create", {"members": ["alice"], "name": "Hello"}])
    room = created["room"]["room_id"]
    assert program.do("call", ["room/AddAccount2Room", {"room_id": room, "account_id": "bob"}])["added"] == ["bob"]
    assert [entry["type"] for entry in program.do("call", ["history/Pull", {"room_id": room}])["entries"]] == ["member.joined"]
    refused = program.refused("call", ["history/Pull", {"room_id": room, "account_id": "eve"}])
    assert (refused["error"], refused["code"]) == ("Refused", "not_member")
    assert program.refused("call", ["history/Pull", {"room_id": room, "limit": 0}])["field"] == "limit"


def test_a_message_has_its_id_at_once_and_is_one_however_often_it_is_sent(cut_cluster, program):
    cluster, _, _ = cut_cluster
    room = cluster.api.create_room("alice", "bob")["room_id"]
    message = program.publish(room, "你好, Bob", "first")
    sent = program.do("publish", message)
    assert sent == roomd.message_id(room, "alice", "first")
    assert program.do("publish", message) == sent
    assert program.do("publish", program.publish(room, "second", "second")) != sent
    entries = pull_messages(cluster, room, 2)
    assert [(entry["content"], entry["message_id"]) for entry in entries][0] == ("你好, Bob", sent)
    assert len(entries) == 2
    assert program.refused("publish", program.publish("s99." + room.partition(".")[2], "x", "third"))["error"] == "NoSuchRoom"
    assert program.do("publish", program.publish(room, "the channel is still good", "fourth"))


def test_messages_survive_a_broker_connection_that_breaks_again_and_again(cut_cluster, program):
    cluster, _, to_broker = cut_cluster
    room = cluster.api.create_room("alice")["room_id"]
    numbers = [program.start("publish", program.publish(room, f"{number}", f"c{number}", deadline_s=60)) for number in range(200)]
    for number in range(0, 200, 40):
        program.wait(numbers[number])
        to_broker.cut()
        to_broker.mend()
    for number in numbers[-1:]:
        assert "error" not in program.wait(number, 60)
    assert [entry["content"] for entry in pull_messages(cluster, room, 200)] == [f"{number}" for number in range(200)]


def test_a_broker_that_is_away_or_silent_is_told_at_the_deadline_and_the_same_again_is_right(cut_cluster, program):
    cluster, _, to_broker = cut_cluster
    room = cluster.api.create_room("alice")["room_id"]
    to_broker.cut()
    message = program.publish(room, "x", "x")
    assert program.refused("publish", {**message, "deadline_s": 1})["error"] == "Unavailable"
    to_broker.mend()
    program.do("publish", message)
    program.do("publish", message)
    cluster.api.pull_until(room, 1)
    assert len(cluster.api.pull_all(room)) == 1


@pytest.mark.parametrize("transport", ["websocket", "sse"])
def test_a_reader_misses_nothing_and_repeats_nothing_over_breaks(cut_cluster, program, transport):
    cluster, to_instance, _ = cut_cluster
    room = cluster.api.create_room("alice", "bob")["room_id"]
    cluster.api.push(room, "alice", "0", wait="durable")
    program.do(transport, ["bob", {room: "0:0"}] if transport == "websocket" else ["bob", room, "0:0"])
    for number in range(1, 31):
        wait_for(lambda: len(program.seqs(room)) >= number, 20, what=lambda: f"{program.events[-3:]} {program.log.read_text()}")
        if number % 10 == 0:
            to_instance.cut()
            to_instance.mend()
        cluster.api.push(room, "alice", f"{number}")
    wait_for(lambda: len(program.seqs(room)) >= 31, 20)
    before = to_instance.accepted
    to_instance.cut(silently=True)  # nothing says that it is dead: its silence does
    cluster.api.push(room, "alice", "31")
    wait_for(lambda: to_instance.accepted > before, 40, what="the silent stream is not given up")
    to_instance.mend()
    wait_for(lambda: len(program.seqs(room)) >= 32, 30)
    assert program.seqs(room) == list(range(1, 33))


def test_a_full_queue_takes_the_message_later_and_in_order(cut_cluster, program):
    cluster, _, _ = cut_cluster
    room = cluster.api.create_room("alice", "bob")["room_id"]
    instance = cluster.instances[0]
    instance.kill9()  # nobody takes anything out
    cluster.broker.ctl("set_policy", "-p", cluster.name, "--apply-to", "queues", "small", r"^roomd\.shard\.", json.dumps({"max-length": 2, "overflow": "reject-publish"}))

    def is_full():
        try:
            cluster.publisher().publish(room, "bob", "text", "full?")
        except pika.exceptions.NackError:
            return True
        return False

    wait_for(is_full, 30)
    assert program.refused("publish", program.publish(room, "never", "never", deadline_s=1))["error"] == "Unavailable"
    numbers = [program.start("publish", program.publish(room, f"{number}", f"{number}", deadline_s=60)) for number in range(5)]
    cluster.broker.ctl("clear_policy", "-p", cluster.name, "small")
    for number in numbers:
        assert "error" not in program.wait(number, 60)
    instance.start()
    wait_for(lambda: [entry["content"] for entry in cluster.api.pull_all(room) if entry.get("sender") == "alice"] == [f"{number}" for number in range(5)], 30)


# --- the examples, in four languages ---

JARS = [pathlib.Path("/usr/share/java") / f"{name}.jar" for name in ("amqp-client", "slf4j-api", "jackson-core", "jackson-databind", "jackson-annotations")]
GO_PATH = pathlib.Path("/usr/share/gocode")


def python_example(folder, request):
    return [sys.executable, "example.py"], {"PYTHONUNBUFFERED": "1"}


def node_example(folder, request):
    (folder / "node_modules").symlink_to(request.getfixturevalue("node_modules"))
    return ["node", "example.mjs"], {}


def build(folder, *command, **environment):
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=200)
    assert done.returncode == 0 and not done.stdout, done.stdout


def java_example(folder, request):
    if not shutil.which("javac") or not all(jar.exists() for jar in JARS):
        pytest.skip("no javac, or not the clients for it")
    path = ":".join(map(str, JARS))
    build(folder, "javac", "-Xlint:all", "-cp", path, "-d", str(folder), "Roomd.java")
    return ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{path}:{folder}", "Roomd"], {}


def go_example(folder, request):
    if not shutil.which("go") or not (GO_PATH / "src/github.com/rabbitmq/amqp091-go").exists() or not (GO_PATH / "src/github.com/gorilla/websocket").exists():
        pytest.skip("no go, or not the clients for it")
    environment = {"GO111MODULE": "off", "GOPATH": str(GO_PATH), "GOCACHE": str(folder / "cache"), "GOFLAGS": "-p=2"}
    build(folder, "gofmt", "-l", "roomd.go")
    build(folder, "go", "vet", "roomd.go", **environment)
    build(folder, "go", "build", "-o", "example", "roomd.go", **environment)
    return [str(folder / "example")], {}


@pytest.mark.deadline(300)
@pytest.mark.parametrize("language", [python_example, node_example, java_example, go_example])
def test_the_example_shows_all_of_it_and_its_reader_outlives_a_break(cut_cluster, request, tmp_path, language):
    cluster, to_instance, to_broker = cut_cluster
    pages.write_programs("without-library.md", tmp_path)
    command, environment = language(tmp_path, request)
    room = cluster.api.create_room("alice", key="hello")["room_id"]  # the example's own
    output = tmp_path / "output"
    with open(output, "wb") as out:
        example = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ, **environment, "ROOMD_SERVICE_KEY": cluster.service_key,
            "ROOMD_URLS": f"http://127.0.0.1:{roomd.free_port()},{cluster.instances[0].url}", "AMQP_URL": cluster.broker.url("gateway", cluster.name, to_broker.port)})
    try:
        for text in ("will be read as ", "403 not_member", "Hello, Bob", "rooms_total"):  # the last one stands in the stream's hello
            wait_for(lambda: text in output.read_text(), 60, what=output.read_text)
        said = re.search(r"will be read as (\w+)", output.read_text())[1]
        wait_for(lambda: said in [entry.get("message_id") for entry in cluster.api.pull_all(room)], what=f"{said} is not in the log")  # seen is not stored yet
        for number in range(3):
            to_instance.cut()
            to_instance.mend()
            content = roomd.new_id()
            cluster.api.push(room, "alice", content)
            wait_for(lambda: output.read_text().count(content) == 1, 20, what=output.read_text)
    finally:
        example.kill()
        example.wait(10)
