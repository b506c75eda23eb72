"""RabbitMQ as a cluster of three nodes: what is in a shard's queue outlives any one of them, and nobody has to do anything."""
import threading
import time
import types

import pytest

import conftest
import roomd
from roomd import wait_for
from test_faults import follow_up_to, wait_logged

FLOWS_AGAIN_S = 10  # a lost connection, an election, a channel for each shard; the machine may be busy
NODES = ("one", "two", "three")


class Node(roomd.Broker):
    """One of several. The first begins the cluster; the others join it when they start."""

    def __init__(self, home, name, first=None):
        self.first, self.name = first, name
        if first is None:
            super().__init__(home / name)
            return
        roomd.Server.__init__(self, home / name, "rabbit")
        self.passwords, self.alarmed = first.passwords, False
        roomd.shell("rabbit_server_joins", self.home, first.home, name)
        self.start()


class Nodes:
    """What a Cluster asks of a Broker."""

    def __init__(self, home):
        self.one = Node(home, NODES[0])
        self.all, failed = [self.one], []

        def join(name):
            try:
                self.all.append(Node(home, name, self.one))
            except RuntimeError as error:
                failed.append(error)

        joining = [threading.Thread(target=join, args=(name,)) for name in NODES[1:]]
        for thread in joining:
            thread.start()
        for thread in joining:
            thread.join()
        assert not failed, failed
        self.all.sort(key=lambda node: NODES.index(node.name))
        self.passwords, self.dead = self.one.passwords, set()

    @property
    def alive(self):
        return next(node for node in self.all if node.name not in self.dead)

    def ctl(self, *args):
        return self.alive.ctl(*args)

    def add_vhost(self, vhost):
        self.one.add_vhost(vhost)

    def channel(self, vhost, user="admin"):
        return self.alive.channel(vhost, user)

    def url(self, user, vhost):
        """All of them, the first one first: that is where everybody goes as long as it lives."""
        return ",".join(node.url(user, vhost) for node in self.all)

    def kill(self, node):
        self.dead.add(node.name)
        node.kill(settle=False)

    def start(self, node):
        node.start()
        self.dead.discard(node.name)

    def queues(self, vhost, column):
        """{queue: names of the nodes}"""
        lines = self.ctl("list_queues", "--vhost", vhost, "--no-table-headers", "name", column).splitlines()
        return {name: set(roomd.re.findall(r"(\w+)@localhost", nodes)) for name, nodes in (line.split("\t") for line in lines) if name.startswith("roomd.shard.")}


@pytest.fixture
def nodes(servers):
    home = servers.home / "nodes"
    home.mkdir()
    yield Nodes(home)
    roomd.shell("processes_end", home)


@pytest.fixture
def cluster_on(servers):
    mine = []

    def make(broker, instances=2):
        mine.append(roomd.Cluster(types.SimpleNamespace(database=servers.database, broker=broker, home=servers.home), 0))
        conftest.open_clusters.append(mine[0])
        for _ in range(instances):
            mine[0].start(ready=False)
        for instance in mine[0].instances:
            instance.wait_ready()
        return mine[0]

    yield make
    for cluster in mine:
        conftest.close_cluster(cluster)


def dies_under_load(nodes, node, stream, load, rooms):
    """Seconds until the stream has a message of each room that was certainly sent after the node had died."""
    node.ctl("eval", "dets:sync(ra_directory_reverse).")  # see Broker.kill
    begin, seen = time.monotonic(), len(stream.events)
    nodes.kill(node)
    # Each publisher waits for its confirm: beyond the one that may be under way everything is sent later.
    sent = {one.sender: number(one.content) for one in list(load.confirmed)}

    def flowing():
        return {event["room_id"] for event in stream.events[seen:] if event["type"] == "message" and number(event["content"]) > sent.get(event["sender"], -1) + 1}

    wait_for(lambda: flowing() == set(rooms), 40, what=lambda: f"only {len(flowing())} of {len(rooms)} rooms flow")
    return time.monotonic() - begin


def number(content):
    return int(content.partition(":")[2])


@pytest.mark.deadline(300)
def test_two_of_three_nodes_die_one_after_the_other_under_load(nodes, cluster_on):
    """The first one to die has every connection and leads every queue. The second one can be spared only when the first has really come back."""
    cluster = cluster_on(nodes)
    rooms = [cluster.api.create_room("p1", "p2", "reader")["room_id"] for _ in range(4)]
    replicas = nodes.queues(cluster.name, "members")
    assert len(replicas) == cluster.settings["shard_count"] and all(len(members) == 3 for members in replicas.values()), replicas
    stream = cluster.open_stream("reader", rooms, after=[f"{room}@0:0" for room in rooms])
    one, two, _ = nodes.all
    with cluster.load(rooms, rate=200, accounts=["p1", "p2"]) as load:
        load.wait_confirmed(100)
        assert dies_under_load(nodes, one, stream, load, rooms) < FLOWS_AGAIN_S
        nodes.start(one)
        wait_for(lambda: all(len(online) == 3 for online in nodes.queues(cluster.name, "online").values()), 60, every=0.5, what="all replicas back")
        assert dies_under_load(nodes, two, stream, load, rooms) < FLOWS_AGAIN_S
        nodes.start(two)
    wait_logged(cluster, load.confirmed)
    cluster.check_log(rooms, load.confirmed)
    follow_up_to(cluster, stream, rooms)
