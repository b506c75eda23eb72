"""roomd migrate: makes the schema, once, whoever calls it and how often."""
import contextlib
import itertools
import subprocess
import threading

import pytest

import roomd

numbers = itertools.count(1)


@pytest.fixture
def fresh(servers, database, tmp_path):
    """An instance that never runs, with an empty database of its own."""
    name = f"migrate{next(numbers)}"
    database.sql(f"create database {name} owner roomd")
    instance = roomd.Instance(tmp_path, "fresh", {"database_url": database.url(name), "service_keys": "g:0123456789abcdef",
        "ticket_keys": "k:" + "tu" * 16, "shard_count": 8})

    def rows(statement):
        with contextlib.closing(database.connect(name)) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()

    instance.rows = rows
    return instance


def test_an_empty_database_gets_its_schema(fresh):
    code, out = fresh.command("migrate")
    assert code == 0, out
    files = sorted(path.stem for path in (roomd.TOP / "deploy" / "migrations").glob("*.sql"))
    assert [row[0] for row in fresh.rows("select name from schema_migration order by name")] == files
    assert [f"applied {name}" in out for name in files] == [True] * len(files)
    assert [row[0] for row in fresh.rows("select shard from shard_lease order by shard")] == [f"s0{n}" for n in range(8)]


def test_a_second_time_changes_nothing(fresh):
    assert fresh.command("migrate")[0] == 0
    before = fresh.rows("select * from schema_migration order by name")
    code, out = fresh.command("migrate")
    assert code == 0 and "applied" not in out
    assert fresh.rows("select * from schema_migration order by name") == before


def test_ten_at_once_do_not_clash(fresh):
    results = []
    threads = [threading.Thread(target=lambda: results.append(fresh.command("migrate"))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [code for code, _ in results] == [0] * 10, results
    assert sum("applied 0001" in out for _, out in results) == 1


def test_more_shards_are_added_and_none_is_taken_away(fresh):
    assert fresh.command("migrate")[0] == 0
    fresh.write_config(shard_count=101)
    assert fresh.command("migrate")[0] == 0
    fresh.write_config(shard_count=4)
    assert fresh.command("migrate")[0] == 0
    shards = [row[0] for row in fresh.rows("select shard from shard_lease order by length(shard), shard")]
    assert len(shards) == 101 and shards[0] == "s00" and shards[99] == "s99" and shards[100] == "s100"


def test_a_new_generation_lifts_every_epoch(fresh):
    assert fresh.command("migrate")[0] == 0
    done = subprocess.run([roomd.ROOMD, "migrate", "--config", str(fresh.config), "--new-generation"], stdin=subprocess.DEVNULL, timeout=60,
        env=fresh._environment())
    assert done.returncode == 0
    assert fresh.rows("select min(epoch) > 1000000 from shard_lease") == [(True,)]


def test_a_migration_that_fails_leaves_nothing_of_itself(fresh):
    fresh.rows("create table outbox (mine int); select 1")  # 0002 makes a table of this name
    code, out = fresh.command("migrate")
    assert code == 1 and "0002" in out and "outbox" in out
    assert not fresh.rows("select 1 from pg_tables where tablename = 'room'")
    fresh.rows("drop table outbox; select 1")
    assert fresh.command("migrate")[0] == 0


def test_a_database_that_is_away_is_told(fresh):
    fresh.write_config(database_url=f"postgresql://roomd:x@127.0.0.1:{roomd.free_port()}/x")
    code, out = fresh.command("migrate")
    assert code == 1 and "cannot be reached" in out and "refused" in out
