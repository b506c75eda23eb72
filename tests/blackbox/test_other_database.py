"""The database is another one than before: a standby that was promoted, or a backup that was restored."""
import subprocess
import types

import psycopg2
import pytest

import conftest
import roomd
from roomd import parse_cursor, wait_for
from test_faults import follow_up_to, traffic_through

PG_BIN = roomd.pathlib.Path(roomd.shell("pg_bin").strip())


class Standby(roomd.Database):
    """Follows a primary, which waits for it with each commit."""

    def __init__(self, home, primary):
        roomd.Server.__init__(self, home, "pg")
        self.password = primary.password
        roomd.shell("pg_server_copy", self.home, primary.home, self.log)
        self.start()
        primary.sql("alter system set synchronous_standby_names = '*'")
        primary.sql("select pg_reload_conf()")
        wait_for(lambda: primary.sql("select 1 from pg_stat_replication where sync_state = 'sync'"), 30, what="the standby follows")

    def leave_behind(self, primary):
        """It gets nothing more, and the primary does not wait for it."""
        primary.sql("alter system reset synchronous_standby_names")
        self.sql("alter system set primary_conninfo = ''")
        for server in (primary, self):
            server.sql("select pg_reload_conf()")
        wait_for(lambda: not primary.sql("select 1 from pg_stat_replication"), 30, what="the standby has left")

    def promote(self):
        assert self.sql("select pg_promote()") == [(True,)]


class Pair:
    """What a Cluster asks of a Database. The standby is named first: whoever connects has to find out who can be written to."""

    def __init__(self, home):
        self.primary = roomd.Database(home / "primary")
        self.standby = Standby(home / "standby", self.primary)
        self.password, self.sql = self.primary.password, self.primary.sql

    def url(self, name):
        return f"postgresql://roomd:{self.password}@127.0.0.1:{self.standby.port},127.0.0.1:{self.primary.port}/{name}"

    def connect(self, name):
        connection = psycopg2.connect(self.url(name), connect_timeout=10, target_session_attrs="read-write")
        connection.autocommit = True
        return connection


@pytest.fixture
def pair(servers):
    home = servers.home / f"pair{next(roomd.Cluster._numbers)}"
    pair = Pair(home)
    yield pair
    for server in (pair.primary, pair.standby):
        server.kill()


@pytest.fixture
def cluster_on(servers):
    mine = []

    def make(database):
        mine.append(roomd.Cluster(types.SimpleNamespace(database=database, broker=servers.broker, home=servers.home), 1))
        conftest.open_clusters.append(mine[0])
        return mine[0]

    yield make
    for cluster in mine:
        conftest.close_cluster(cluster)


@pytest.mark.deadline(180)
@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_the_primary_goes_and_the_standby_is_promoted_under_load(pair, cluster_on, how):
    cluster = cluster_on(pair)
    rooms = [cluster.api.create_room("p1", "p2", "reader")["room_id"] for _ in range(4)]
    stream = cluster.open_stream("reader", rooms, after=[f"{room}@0:0" for room in rooms])

    def fail_over():
        getattr(pair.primary, how)()
        pair.standby.promote()

    traffic_through(cluster, rooms, fail_over)
    follow_up_to(cluster, stream, rooms)
    assert cluster.api.until_ok("room/Create", members=["alice"])["room"]["members"] == 1


def new_generation(cluster):
    instance = cluster.instances[0]
    done = subprocess.run([roomd.ROOMD, "migrate", "--config", str(instance.config), "--new-generation"], stdin=subprocess.DEVNULL, timeout=60,
        stdout=subprocess.PIPE, env=instance._environment(), text=True, check=True)
    assert "a new generation begins" in done.stdout


@pytest.mark.deadline(180)
def test_after_a_fail_over_that_lost_commits_readers_are_told_to_go_back(pair, cluster_on):
    """Where somebody speaks, the owner finds out by itself, and messages flow. What nobody speaks in is told by the new generation."""
    cluster = cluster_on(pair)
    rooms = busy, quiet = [cluster.api.create_room("alice", "reader")["room_id"] for _ in range(2)]
    stream = cluster.open_stream("reader", rooms, after=[f"{room}@0:0" for room in rooms])

    def say(room, text, count):
        for n in range(count):
            cluster.api.until_ok("history/Push", room_id=room, sender="alice", kind="text", content=f"{text} {n}", client_msg_id=f"{text} {n}", wait="durable")

    for room in rooms:
        say(room, "kept", 5)
    pair.standby.leave_behind(pair.primary)
    for room in rooms:
        say(room, "lost", 3)
        stream.read_seq(room, 8)
    lost = dict(stream.cursors)
    pair.primary.kill()
    pair.standby.promote()
    say(busy, "after", 2)
    stream.read_message(busy, content="after 1", deadline=30)
    assert [event["content"] for event in stream.log_events(busy) if event["type"] == "message"] == [f"kept {n}" for n in range(5)] + ["after 0", "after 1"]
    cluster.instances[0].stop()
    new_generation(cluster)
    cluster.instances[0].start()
    assert parse_cursor(cluster.api.pull(quiet, after=lost[quiet])["reset"])[1] == 5
    stream = stream.reconnect()
    assert stream.read_type("reset", room_id=quiet)["seq"] == 5
    say(quiet, "after", 1)
    stream.read_message(quiet, content="after 0", deadline=30)
    cluster.check_log(rooms)


def backup(cluster, file):
    subprocess.run([PG_BIN / "pg_dump", "-Fc", "-f", file, "-d", cluster.database_url], check=True, timeout=60)


def restore(cluster, file):
    cluster.database.sql(f"drop database {cluster.name} with (force)")
    cluster.database.sql(f"create database {cluster.name} owner roomd")
    subprocess.run([PG_BIN / "pg_restore", "--no-owner", "-d", cluster.database_url, file], check=True, timeout=60)
    new_generation(cluster)


def test_after_a_restore_readers_that_saw_more_are_told_to_go_back(new_cluster, tmp_path):
    """Twice from the same backup: what was said between the restores is of another generation than what is said after them."""
    cluster = new_cluster()
    instance, room = cluster.instances[0], cluster.api.create_room("alice", "reader")["room_id"]
    for n in range(5):
        cluster.api.push(room, "alice", f"kept {n}", wait="durable")
    backup(cluster, tmp_path / "backup")
    stream = cluster.open_stream("reader", [{"room_id": room, "after": "0:0"}])
    for life in ("lost with the first database", "lost with the second database", "here to stay"):
        for n in range(3):
            cluster.api.push(room, "alice", f"{life} {n}", wait="durable")
        stream.read_message(room, content=f"{life} 2")
        cursor = stream.cursors[room]
        assert parse_cursor(cursor)[1] == 8
        if life != "here to stay":
            instance.stop()
            restore(cluster, tmp_path / "backup")
            instance.start()
            answer = cluster.api.pull(room, after=cursor)
            assert parse_cursor(answer["reset"])[1] == 5 and answer["entries"] == []
            stream = stream.reconnect()
            assert stream.read_type("reset", room_id=room)["seq"] == 5
    assert [entry["content"] for entry in cluster.api.pull_all(room)] == [f"kept {n}" for n in range(5)] + [f"here to stay {n}" for n in range(3)]


def test_after_a_restore_a_reader_is_told_also_when_as_much_was_said_again(new_cluster, tmp_path):
    """The cursor's seq is there, with another message."""
    cluster = new_cluster()
    room = cluster.api.create_room("alice")["room_id"]
    cluster.api.push(room, "alice", "kept", wait="durable")
    backup(cluster, tmp_path / "backup")
    cursors = []
    for life in range(3):
        for n in range(4):
            cluster.api.push(room, "alice", f"life {life}, {n}", wait="durable")
        for cursor in cursors:
            answer = cluster.api.pull(room, after=cursor)
            assert parse_cursor(answer["reset"])[1] == 1
            assert [entry["content"] for entry in answer["entries"]] == [f"life {life}, {n}" for n in range(4)]
        cursors.append(cluster.api.pull(room)["head"])
        if life < 2:
            cluster.instances[0].stop()
            restore(cluster, tmp_path / "backup")
            cluster.instances[0].start()
