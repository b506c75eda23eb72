"""The command line: what a beginner meets first."""
import contextlib
import os
import signal
import socket
import subprocess
import threading

import pytest
import requests

import roomd
from roomd import ROOMD, wait_for


def run(*words, env=None, **options):
    done = subprocess.run([ROOMD, *map(str, words)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        timeout=60, env={"PATH": os.environ["PATH"], **(env or {})}, **options)
    return done.returncode, done.stdout, done.stderr


GOOD = "service_keys = gateway:0123456789abcdef\nticket_keys = k1:" + "t" * 16 + "u" * 16 + "\n"


def config_file(folder, text):
    path = folder / "roomd.conf"
    path.write_text(text)
    return path


def test_help_tells_a_beginner_how_to_begin():
    code, out, err = run("--help")
    assert code == 0 and not err
    for word in ("serve", "migrate", "check-config", "--config", "database_url", "SIGTERM", "Exit codes", "readyz"):
        assert word in out


def test_version_is_one_line():
    code, out, err = run("--version")
    assert code == 0 and not err and out.startswith("roomd ") and out.count("\n") == 1


def test_every_setting_is_in_the_manual():
    code, out, _ = run("--settings")
    assert code == 0
    for name in ("listen_port", "service_keys", "prefetch", "drain_ms"):
        assert f"| {name} |" in out


@pytest.mark.parametrize("words, said", [
    (["sreve"], '"sreve"'),
    (["serve", "--config"], "--config"),
    (["serve", "--confg", "x"], '"--confg"'),
    (["serve", "extra"], '"extra"'),
    (["serve", "--new-generation"], "--new-generation"),
])
def test_a_wrong_command_line_is_told_what_is_wrong(words, said):
    code, out, err = run(*words)
    assert code == 2 and said in err and not out and err.startswith("roomd: ")


def test_a_missing_configuration_file_is_named():
    code, _, err = run("serve", "--config", "/nowhere/roomd.conf")
    assert code == 2 and "/nowhere/roomd.conf" in err


@pytest.mark.parametrize("line, said", [
    ("prefetsh = 5", "prefetsh"),
    ("prefetch = many", "prefetch"),
    ("prefetch = 0", "prefetch"),
    ("listen_port = 65536", "listen_port"),
    ("log_level = loud", "log_level"),
    ("broker_urls = http://127.0.0.1", "broker_urls"),
    ("role_rules = add=king", "role_rules"),
    ("role_rules = dance=admin", "role_rules"),
])
def test_a_bad_setting_is_named_and_nothing_starts(tmp_path, line, said):
    code, _, err = run("serve", "--config", config_file(tmp_path, GOOD + line + "\n"))
    assert code == 2 and said in err


def test_an_unknown_variable_of_ours_is_named():
    code, _, err = run("check-config", env={"ROOMD_PREFETSH": "5"})
    assert code == 2 and "ROOMD_PREFETSH" in err


def test_an_instance_without_keys_does_not_start():
    code, _, err = run("serve")
    assert code == 2 and "service_keys" in err and "ticket_keys" in err


def test_check_config_prints_what_counts_and_no_secret(tmp_path):
    path = config_file(tmp_path, GOOD + "prefetch = 77\n")
    code, out, err = run("check-config", "--config", path, env={"ROOMD_LOG_LEVEL": "debug"})
    assert code == 0 and not err
    assert "prefetch = 77\n" in out and "log_level = debug\n" in out and "service_keys = ***\n" in out
    assert "0123456789abcdef" not in out


def test_a_port_in_use_is_told_with_its_number(new_cluster):
    cluster = new_cluster()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        second = roomd.Instance(cluster.home, "second", {**cluster.settings, "instance_name": "second", "listen_port": port})
        code, out = second.command("serve")
    assert code == 1 and f"port {port}" in out and "in use" in out


def test_a_database_that_was_not_migrated_is_told_with_the_command(new_cluster, database):
    cluster = new_cluster()
    database.sql("create database unmigrated owner roomd")
    fresh = roomd.Instance(cluster.home, "fresh", {**cluster.settings, "database_url": database.url("unmigrated")})
    code, out = fresh.command("serve")
    assert code == 1 and f"roomd migrate --config {fresh.config}" in out


def test_the_first_sigterm_drains_and_the_second_ends_it_at_once(new_cluster):
    cluster = new_cluster(instances=2, settings={"drain_ms": 30000})  # who is alone has nowhere to send its streams, and waits for none
    instance = cluster.instances[0]
    room = cluster.api.create_room("alice")["room_id"]
    stream = cluster.open_stream("alice", [room], endpoint=instance)  # somebody to wait for
    stream.read_type("hello")
    stream.pause()
    instance.ends_are_expected = True
    instance.process.terminate()
    wait_for(lambda: instance.readyz()[1]["draining"])
    assert instance.readyz()[0] == 503
    instance.process.send_signal(signal.SIGTERM)
    assert instance.process.wait(15) == 1


def test_sigint_stops_an_instance_in_order(new_cluster):
    instance = new_cluster().instances[0]
    instance.ends_are_expected = True
    instance.process.send_signal(signal.SIGINT)
    assert instance.process.wait(20) == 0


def test_an_instance_starts_while_the_database_is_away_and_works_when_it_is_back(new_cluster, database):
    cluster = new_cluster()
    instance = cluster.instances[0]
    instance.stop()
    database.stop("immediate")
    instance.start(ready=False)
    wait_for(lambda: not_ready_reason(instance, "database"), 20)
    database.start()
    instance.wait_ready()
    assert instance.api.until_ok("room/Create")["created"]


def test_an_instance_starts_while_the_broker_is_away_and_works_when_it_is_back(new_cluster, broker):
    cluster = new_cluster()
    instance = cluster.instances[0]
    instance.stop()
    broker.stop()
    instance.start(ready=False)
    wait_for(lambda: not_ready_reason(instance, "broker"), 20)
    broker.start()
    instance.wait_ready()


def test_an_instance_stops_in_order_although_the_database_hangs(new_cluster, database):
    cluster = new_cluster(settings={"database_timeout_ms": 60000, "drain_ms": 0})
    instance = cluster.instances[0]
    room = cluster.api.create_room("alice")["room_id"]
    database.freeze()
    calls = [threading.Thread(target=lambda: errors.append(refused(instance, room)), daemon=True) for _ in range(5)]
    errors = []
    for call in calls:
        call.start()
    wait_for(lambda: instance.metrics()["roomd_api_calls_open"] == 5)
    instance.stop(60)
    for call in calls:
        call.join(10)
    database.thaw()
    assert len(errors) == 5


def not_ready_reason(instance, word):
    with contextlib.suppress(requests.RequestException):  # it does not listen yet, or has no time
        status, answer = instance.readyz()
        return status == 503 and word in answer["reason"]
    return False


def refused(instance, room):
    try:
        return roomd.Api(instance.url, instance.api.key).call("room/Get", room_id=room)
    except requests.RequestException as error:  # cut: the instance is gone
        return error
