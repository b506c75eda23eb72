"""deploy/quickstart, in a copy of its own: what it promises while people are connected."""
import os
import pathlib
import shutil
import subprocess
import tempfile

import pytest
import requests

import roomd
from roomd import wait_for


class Quickstart:
    def __init__(self, home):
        self.home, self.run = home, home / ".run"
        (home / "deploy").mkdir()
        for name in ("quickstart", "servers.sh"):
            shutil.copy(roomd.TOP / "deploy" / name, home / "deploy")
        (home / "gateway-adapter").symlink_to(roomd.TOP / "gateway-adapter")

    def call(self, *words, **environment):
        """(exit code, what it said)"""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("ROOMD_", "BASESERVICE_"))}
        done = subprocess.run([self.home / "deploy" / "quickstart", *words], env={**clean, "ROOMD_BIN": roomd.ROOMD, **environment}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200)
        return done.returncode, done.stdout

    def ok(self, *words, **environment):
        code, said = self.call(*words, **environment)
        assert code == 0, said
        return said

    def env(self):
        return dict(line.split("=", 1) for line in (self.run / "env").read_text().splitlines())

    def api(self, name):
        return roomd.Api(self.env()[f"ROOMD_{name.removeprefix('roomd-')}_URL"], self.env()["ROOMD_SERVICE_KEY"])

    def pid(self, name):
        return int((self.run / f"{name}.pid").read_text())


@pytest.fixture
def quickstart():
    home = pathlib.Path(tempfile.mkdtemp(prefix="roomd-quickstart."))
    home.chmod(0o711)
    watch = int(roomd.shell("servers_watch", os.getpid(), home))
    quickstart = Quickstart(home)
    yield quickstart
    quickstart.call("wipe")
    roomd.shell("processes_end", home)
    os.killpg(watch, roomd.signal.SIGKILL)
    shutil.rmtree(home)


@pytest.mark.deadline(400)
def test_instances_come_and_go_while_people_are_connected(quickstart):
    assert "up after" in quickstart.ok(ROOMD_HEARTBEAT_MS="2000", ROOMD_DRAIN_MS="2000")
    env = quickstart.env()
    assert env["ROOMD_URLS"].split(",") == [env["ROOMD_1_URL"], env["ROOMD_2_URL"]]
    assert requests.get(env["GATEWAY_URL"], timeout=10).ok and requests.get(env["BASE_SERVICE_URL"] + "/healthz", timeout=10).ok
    first, second = quickstart.api("roomd-1"), quickstart.api("roomd-2")
    room = first.create_room("alice", "bob")["room_id"]
    ticket = second.ok("history/PullByActiveConnection", account_id="bob", rooms=[{"room_id": room}])["ticket"]
    streams = {name: roomd.WsStream(quickstart.api(name).url, ticket, after=[f"{room}@0:0"]) for name in ("roomd-1", "roomd-2")}
    publisher = roomd.Publisher(env["AMQP_URL"])
    said = []

    def say(text):
        said.append(text)
        publisher.publish(room, "alice", content=text, repeat=True)
        for stream in streams.values():
            stream.read_message(room, 60, content=text)  # one that was killed is missed after its lease only

    def come_back(name, to):
        streams[name].wait_closed(30)
        cursors = streams[name].cursors
        streams[name] = roomd.WsStream(to.url, ticket, after=streams[name].positions(), cursors=cursors)

    say("two instances")
    assert quickstart.ok("add").startswith("quickstart: roomd-3 is ready")
    third = quickstart.api("roomd-3")
    streams["roomd-3"] = roomd.WsStream(third.url, ticket, after=[f"{room}@0:0"])
    assert streams["roomd-3"].read_type("hello")["heartbeat_ms"] == 2000  # a setting of the first call
    assert quickstart.env()["ROOMD_URLS"].count(",") == 2
    say("three instances")
    assert all(stream.closed is None for stream in streams.values())

    assert "roomd-1 is stopped" in quickstart.ok("stop", "roomd-1")
    assert first.url not in quickstart.env()["ROOMD_URLS"].split(",") and quickstart.env()["ROOMD_1_URL"] == first.url
    come_back("roomd-1", to=third)
    say("one has drained")
    assert quickstart.call("status")[0] == 3

    assert "roomd-2 is killed" in quickstart.ok("kill", "roomd-2")
    come_back("roomd-2", to=third)
    say("one was killed")

    assert "roomd-1 is ready" in quickstart.ok("start", "roomd-1")
    assert "roomd-2 is ready" in quickstart.ok("start", "roomd-2")
    assert quickstart.env()["ROOMD_URLS"].split(",") == [first.url, second.url, third.url]
    streams["roomd-1 again"] = roomd.WsStream(first.url, ticket, after=[f"{room}@0:0"])
    say("three again")
    assert [entry["content"] for entry in second.pull_until(room, len(said))] == said == [event["content"] for event in streams["roomd-1 again"].messages(room)]

    def all_ready():
        code, status = quickstart.call("status")
        assert code == 0 and status.count(" ready ") == 7, status
        return True

    wait_for(all_ready, 30)

    for stream in streams.values():
        stream.close()
        stream.check()
    publisher.close()
    pids = [quickstart.pid(name) for name in ("roomd-1", "roomd-2", "roomd-3", "gateway", "baseservice", "postgres", "rabbitmq")]
    quickstart.ok("down")
    wait_for(lambda: not any(alive(pid, quickstart.home) for pid in pids), 30, what="all ended")
    assert quickstart.env()["ROOMD_URLS"] == ""


def alive(pid, home):
    try:
        return f"SERVERS_HOME={home}".encode() in pathlib.Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
