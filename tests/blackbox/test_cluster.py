"""Instances beside each other: what the registry says of them, and what a new one answers before it knows the others. (What fails is in test_faults.py; under load,
in tests/chaos.)"""
import contextlib

import requests

from roomd import wait_for


def test_the_registry_names_the_session_in_which_each_instance_writes(cluster):
    """A successor may have to end it: a batch that was sent by half keeps its locks for as long as the session lives."""
    def all_named():
        rows = cluster.rows("select i.name, a.pid from instance i left join pg_stat_activity a on a.pid = i.backend_pid and a.backend_start = i.backend_start")
        return all(pid for _, pid in rows) and {name for name, _ in rows} >= {instance.name for instance in cluster.alive}

    assert wait_for(all_named, what="an instance's session is not known")


def test_an_instance_that_has_just_started_does_not_deny_rooms(new_cluster):
    """It has not heard of any shard yet: that is unavailable, not no_such_room."""
    cluster = new_cluster()
    room = cluster.api.create_room("alice")["room_id"]
    link, settings = cluster.database_link()
    link.delay = 0.25
    late, answers = cluster.start("late", settings, ready=False), set()

    def works():
        with contextlib.suppress(requests.RequestException):
            status, answer = late.api.call("room/Update", room_id=room, name="new")
            answers.add((status, answer.get("error", {}).get("code")))
            return status == 200
        return False

    wait_for(works, 60, every=0.005)
    assert answers <= {(200, None), (503, "unavailable"), (504, "timeout")}
