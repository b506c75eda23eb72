"""The browser client through a gateway (a stand-in that keeps to docs/gateway.md): in Node, and in a real Chromium."""
import json
import urllib.parse

import pytest

from chromium import start_chromium
from gateway_stand_in import GatewayStandIn
from roomd import wait_for
from web_client import WebClient

TRANSPORTS = ["websocket", "sse", "poll"]


@pytest.fixture
def gateway_of(keep):
    return lambda cluster: keep(GatewayStandIn(cluster))


@pytest.fixture
def node(cluster, keep):
    return lambda gateway, account, **options: keep(WebClient(cluster, account, gateway=gateway.url, cookie=gateway.session(account), **options))


@pytest.fixture
def room(api):
    return api.create_room("alice", "bob")["room_id"]


# --- in Node ---


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_everything_a_user_does_goes_through_the_gateway(cluster, api, room, gateway_of, node, transport):
    gateway = gateway_of(cluster)
    bob = node(gateway, "bob", transports=[transport])
    bob.wait_open(transport)
    api.push(room, "alice", "1")
    bob.wait_seq(room, 1)
    assert bob.wait_sending(bob.send(room, "2"), "stored")["seq"] == 2
    bob.do("edit", room_id=room, seq=2, content="two")
    bob.wait(lambda: bob.of("message", seq=2, state="edited", content="two"))
    bob.do("recall", room_id=room, seq=2)
    bob.wait(lambda: bob.of("message", seq=2, state="recalled"))
    bob.do("read", room_id=room, seq=2)
    wait_for(lambda: bob.do("store", room_id=room)["unread"] == 0)
    gateway.cut()
    api.push(room, "alice", "5")
    bob.wait_seq(room, 5)
    assert bob.seqs(room) == [1, 2, 3, 4, 5]
    assert not [one for one in gateway.requests if one[2] >= 400]


def test_without_a_session_it_stops_and_says_so(cluster, room, gateway_of):
    bob = WebClient(cluster, "bob", gateway=gateway_of(cluster).url, cookie="roomd_session=none")
    bob.wait(lambda: bob.of("state", state="stopped", reason="unauthenticated"))
    bob.close()


# --- in Chromium ---


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    driver = start_chromium(tmp_path_factory.mktemp("chromium"))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


class Page:
    def __init__(self, driver, gateway, account, **options):
        self.driver = driver
        driver.get("about:blank")  # else only the fragment would change, and the page would stay
        driver.get(f"{gateway.url}/#{urllib.parse.quote(json.dumps({'account_id': account, 'options': options}))}")
        wait_for(lambda: self.opened, 40, what=lambda: driver.get_log("browser"))

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    @property
    def opened(self):
        return self.run("return window.seen?.opened.length ? seen.opened : null")

    def seqs(self):
        return self.run("return seen.entries.map(({seq}) => seq)")

    def send(self, room, content):
        return self.run("return client.room(arguments[0]).send(arguments[1]).client_msg_id", room, content)

    def sending(self, client_msg_id):
        return self.run("return seen.sending[arguments[0]]", client_msg_id)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_chromium_reads_sends_and_goes_on_after_a_break(cluster, api, room, gateway_of, chromium, transport):
    gateway = gateway_of(cluster)
    page = Page(chromium, gateway, "bob", transports=[transport])
    assert page.opened == [transport]
    api.push(room, "alice", "hello")
    wait_for(lambda: page.seqs() == [1], 30)
    own = page.send(room, "hello yourself")
    wait_for(lambda: page.sending(own) == ["going", "sent", "stored"], 30, what=lambda: page.sending(own))
    for number in range(3, 13):
        gateway.cut()
        api.push(room, "alice", f"{number}")
    wait_for(lambda: page.seqs() == list(range(1, 13)), 30, what=lambda: page.seqs())
    assert page.run("return seen.errors") == []
    assert not [one for one in gateway.requests if one[2] >= 400]


@pytest.mark.deadline(180)
def test_chromium_loses_nothing_when_an_instance_is_killed(new_cluster, gateway_of, chromium):
    cluster = new_cluster(instances=2)
    room = cluster.api.create_room("alice", "bob")["room_id"]
    page = Page(chromium, gateway_of(cluster), "bob")
    publisher, owner = cluster.publisher(), cluster.owner_of(room)
    own = []
    for number in range(300):
        publisher.publish(room, "alice", "text", f"{number}", repeat=True)
        if number % 30 == 0:
            own.append(page.send(room, f"own {number}"))
        if number == 150:
            owner.kill9()
    wait_for(lambda: all(page.sending(one)[-1] == "stored" for one in own), 60, what=lambda: [page.sending(one) for one in own])
    wait_for(lambda: page.run("return client.room(arguments[0]).messages.length", room) == 310, 30, what=lambda: page.seqs()[-5:])
    # The page shows what is not stored yet; what it ends with is what history has.
    log = wait_for(lambda: len(found := [entry["message_id"] for entry in cluster.api.pull_all(room) if entry["type"] == "message"]) == 310 and found, 30)
    wait_for(lambda: page.run("return client.room(arguments[0]).messages.map(({message_id}) => message_id)", room) == log, 30)
    assert page.run("return client.room(arguments[0]).outbox.length", room) == 0
    owner.start()


def test_a_page_of_another_origin_can_do_nothing(cluster, api, room, gateway_of, chromium):
    """It cannot send the header, and the cookie does not travel with it."""
    gateway, other = gateway_of(cluster), gateway_of(cluster)
    Page(chromium, gateway, "bob")
    chromium.get(other.url.replace("127.0.0.1", "localhost") + "/room-client.js")
    script = """const [url, room, done] = arguments;
        fetch(`${url}/api/rooms/${room}/messages`, {method: 'POST', credentials: 'include', body: '{"kind": "text", "content": "forged"}', headers: HEADERS})
            .then(({status}) => done(status), () => done('refused'))"""
    for headers in ("{}", "{'X-Requested-With': 'x', 'Content-Type': 'application/json'}"):
        assert chromium.execute_async_script(script.replace("HEADERS", headers), gateway.url, room) == "refused"
    assert not api.pull(room)["entries"]
