"""Fixtures; what they give is described at the top of roomd.py."""
import contextlib
import logging
import os
import pathlib
import re
import shutil
import signal

import pytest

import doors
import roomd

DEADLINE_S = 120
open_clusters, session_clusters = [], []


def pytest_configure(config):
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # each lost connection would be a page of tracebacks
    config.addinivalue_line("markers", "deadline(seconds): the test may take so long instead of 120 s")
    if not os.access(roomd.ROOMD, os.X_OK):
        raise pytest.UsageError(f"{roomd.ROOMD} is not there: build it (tests/run blackbox does) or set ROOMD_BIN")


deadline_s = DEADLINE_S  # of the test that runs


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    """A test that hangs, its fixtures included, fails by itself and the next one runs."""
    global deadline_s
    mark = item.get_closest_marker("deadline")
    deadline_s = mark.args[0] if mark else DEADLINE_S

    def late(*_):
        raise AssertionError(f"the test takes longer than {deadline_s} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(deadline_s)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(hookwrapper=True)
def pytest_fixture_setup(fixturedef):
    """What is made once for all tests, servers above all, takes nothing from the time of the first one …"""
    yield
    if fixturedef.scope == "session":
        signal.alarm(deadline_s)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_teardown(nextitem):
    """… nor its end from that of the last one."""
    if nextitem is None:
        signal.alarm(deadline_s)
    yield


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failure shows the end of each log of the clusters it was about, and keeps those of all in ROOMD_TEST_LOGS."""
    report = (yield).get_result()
    if not report.failed:
        return
    folder = pathlib.Path(os.environ.get("ROOMD_TEST_LOGS", roomd.TOP / "build-asan" / "blackbox")) / re.sub(r"[^\w.-]+", "_", item.name)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        for cluster in open_clusters:
            concerned = cluster not in session_clusters or "session_cluster" in item.fixturenames
            for log in cluster.home.glob("*.log"):
                if concerned:
                    report.sections.append((f"{cluster.name} {log.name}", "\n".join(log.read_text(errors="replace").splitlines()[-40:])))
                shutil.copy(log, folder / f"{cluster.name}-{log.name}")
            for log in cluster.servers.home.glob("*.log"):
                shutil.copy(log, folder / log.name)


@pytest.fixture(scope="session")
def servers():
    servers = roomd.Servers()
    yield servers
    servers.close()


@pytest.fixture
def keep():
    """keep(one) -> one, whose close() comes after the test, the last one first."""
    with contextlib.ExitStack() as kept:
        yield lambda one: kept.enter_context(contextlib.closing(one))


@pytest.fixture
def database(servers):
    yield servers.database
    servers.restore()


@pytest.fixture
def broker(servers):
    yield servers.broker
    servers.restore()


def close_cluster(cluster):
    try:
        cluster.close()
    finally:
        open_clusters.remove(cluster)


@pytest.fixture(scope="session")
def session_cluster(servers):
    cluster = roomd.Cluster(servers, instances=2)
    open_clusters.append(cluster)
    session_clusters.append(cluster)
    cluster.wait_spread()
    yield cluster
    close_cluster(cluster)


@pytest.fixture
def cluster(session_cluster):
    for instance in session_cluster.instances:
        if not instance.alive():  # an earlier test found it dead, and said so
            instance.start()
        instance.wait_ready()
    yield session_cluster
    session_cluster.close_readers()
    session_cluster.check()


@pytest.fixture
def api(cluster):
    return cluster.api


@pytest.fixture(params=["call", "frame"])
def door(request, cluster):
    """One of the two ways in for what an account does: see doors.py."""
    return doors.DOORS[request.param](cluster)


@pytest.fixture
def new_cluster(servers):
    mine = []

    def make(instances=1, settings=None):
        cluster = roomd.Cluster(servers, 0, settings)
        open_clusters.append(cluster)
        mine.append(cluster)
        for _ in range(instances):
            cluster.start(ready=False)
        for instance in cluster.instances:
            instance.wait_ready()
        if instances > 1:
            cluster.wait_spread()  # an owner that a test asks for stays the owner
        return cluster

    yield make
    servers.restore()
    for cluster in reversed(mine):
        close_cluster(cluster)
