"""Everything encrypted, with certificates of a CA that only this test knows: to RabbitMQ, to PostgreSQL and from gateways."""
import contextlib
import http.client
import json
import os
import socket
import ssl
import subprocess
import threading
import urllib.parse

import pytest
import requests

import roomd
from gateway import BaseService, Gateway
from roomd import wait_for


def openssl(*words):
    subprocess.run(["openssl", *map(str, words)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60)


class Authority:
    def __init__(self, folder):
        folder.mkdir()
        self.folder, self.file = folder, folder / "ca.pem"
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", folder / "ca.key", "-out", self.file,
            "-days", 2, "-subj", "/CN=An authority of our own")

    def certificate(self, name, alternative):
        """(certificate, key) for a server"""
        request, certificate, key, names = (self.folder / f"{name}.{end}" for end in ("csr", "pem", "key", "names"))
        names.write_text(f"subjectAltName = {alternative}\n")
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", request, "-CA", self.file, "-CAkey", self.folder / "ca.key", "-CAcreateserial", "-days", 2, "-out", certificate,
            "-extfile", names)
        return certificate, key


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def tls_broker_port(servers, authority):
    """The session's RabbitMQ listens on one more port, with a certificate for localhost and for no address."""
    certificate, key = authority.certificate("broker", "DNS:localhost")
    for file in (certificate, key):
        (servers.broker.home / file.name).write_bytes(file.read_bytes())
    port = roomd.free_port()
    options = f'[{{certfile, "{servers.broker.home / certificate.name}"}}, {{keyfile, "{servers.broker.home / key.name}"}}]'
    servers.broker.ctl("eval", f"rabbit_networking:start_ssl_listener({port}, {options}, 1).")
    return port


@pytest.fixture(scope="module")
def tls_database(servers, authority):
    """So does its PostgreSQL, on the port it has."""
    for file, setting in zip(authority.certificate("database", "DNS:localhost"), ("ssl_cert_file", "ssl_key_file")):
        copy = servers.database.home / "data" / file.name
        copy.write_bytes(file.read_bytes())
        copy.chmod(0o600)
        roomd.shutil.chown(copy, *[servers.database.home.joinpath("data").owner()] * 2)
        servers.database.sql(f"alter system set {setting} = '{copy}'")
    servers.database.sql("alter system set ssl = on")
    servers.database.sql("select pg_reload_conf()")
    wait_for(lambda: servers.database.sql("show ssl") == [("on",)], 20)
    yield servers.database
    servers.database.sql("alter system set ssl = off")
    servers.database.sql("select pg_reload_conf()")


def broker_url(cluster, port, host="localhost"):
    parts = urllib.parse.urlsplit(cluster.broker.url("roomd", cluster.name, port))
    return f"amqps://{parts.netloc.replace('127.0.0.1', host)}{parts.path}"


def database_url(cluster, authority, host="localhost"):
    return cluster.database_url.replace("127.0.0.1", host) + f"?sslmode=verify-full&sslrootcert={authority.file}"


class TlsInstance(roomd.Instance):
    """As https://localhost."""

    def __init__(self, *words):
        super().__init__(*words)
        self.url = self.url.replace("http://127.0.0.1", "https://localhost")


def encrypted_lines(instance, path, ticket, authority):
    connection = http.client.HTTPSConnection("localhost", instance.port, timeout=10, context=ssl.create_default_context(cafile=authority.file))
    connection.request("GET", path, headers={"Authorization": f"Bearer {ticket}"})
    with contextlib.closing(connection), connection.getresponse() as answer:
        yield from iter(answer.readline, b"")


@contextlib.contextmanager
def instance_of(cluster, **settings):
    """One instance of the cluster's database and vhost, which none of the cluster's own serves."""
    instance = TlsInstance(cluster.home, f"tls-{len(list(cluster.home.glob('*.conf')))}", {**cluster.settings, **settings})
    try:
        yield instance
    finally:
        instance.stop()
        instance.check()


@pytest.fixture
def cluster(new_cluster):
    """Migrated, and nobody runs."""
    cluster = new_cluster()
    cluster.instances[0].stop()
    return cluster


def test_every_way_is_encrypted_and_verified(cluster, authority, tls_broker_port, tls_database, monkeypatch):
    certificate, key = authority.certificate("instance", "DNS:localhost")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.file))
    with instance_of(cluster, broker_urls=broker_url(cluster, tls_broker_port), broker_ca_file=authority.file, database_url=database_url(cluster, authority),
            tls_certificate_file=certificate, tls_key_file=key) as instance:
        assert instance.command("migrate")[0] == 0
        instance.start()
        api = instance.api
        room = api.create_room("alice", "bob")["room_id"]
        api.push(room, "alice", "over three encrypted ways", wait="durable")
        answer = api.ok("history/PullByActiveConnection", account_id="bob", rooms=[{"room_id": room, "after": "0:0"}])
        assert [endpoint["url"] for endpoint in answer["endpoints"]] == [f"https://127.0.0.1:{instance.port}"]
        lines = encrypted_lines(instance, "/v1/stream/ndjson", answer["ticket"], authority)
        assert [json.loads(next(lines))["type"] for _ in range(2)] == ["hello", "message"]

        def all_encrypted():  # once those are forgotten that the first instance and migrate had
            sessions = tls_database.sql(f"select ssl, count(*) from pg_stat_activity join pg_stat_ssl using (pid) where datname = '{cluster.name}' group by 1")
            assert [encrypted for encrypted, _ in sessions] == [True] and sessions[0][1] >= 5, sessions
            connections = cluster.broker.ctl("list_connections", "--no-table-headers", "vhost", "ssl").splitlines()
            assert connections.count(f"{cluster.name}\ttrue") == 2 and f"{cluster.name}\tfalse" not in connections, connections
            return True

        wait_for(all_encrypted, 20)
        with pytest.raises(requests.RequestException):
            requests.get(f"http://127.0.0.1:{instance.port}/healthz", timeout=5)


@pytest.mark.parametrize("wrong", ["authority", "name"])
def test_a_broker_that_cannot_prove_who_it_is_gets_no_password_and_the_next_address_is_tried(cluster, authority, tls_broker_port, tmp_path, wrong):
    """The certificate is for localhost."""
    other = Authority(tmp_path / "theirs").file if wrong == "authority" else authority.file
    refused = broker_url(cluster, tls_broker_port, "127.0.0.1" if wrong == "name" else "localhost")
    with instance_of(cluster, broker_urls=refused, broker_ca_file=other) as instance:
        instance.start(ready=False)
        wait_for(lambda: "TLS: certificate: " in instance.log_text(), 20)
        assert "amqp.up" not in instance.log_text()
    with instance_of(cluster, broker_urls=f"{refused},{cluster.settings['broker_urls']}", broker_ca_file=other) as instance:
        instance.url = f"http://127.0.0.1:{instance.port}"
        instance.start()
        assert instance.api.create_room("alice")["members"] == 1


@pytest.mark.parametrize("wrong", ["authority", "name"])
def test_a_database_that_cannot_prove_who_it_is_is_not_used(cluster, authority, tls_database, tmp_path, wrong):
    other = Authority(tmp_path / "theirs") if wrong == "authority" else authority
    with instance_of(cluster, database_url=database_url(cluster, other, "127.0.0.1" if wrong == "name" else "localhost")) as instance:
        code, said = instance.command("migrate")
        assert code == 1 and "certificate" in said
        instance.url = f"http://127.0.0.1:{instance.port}"
        instance.start(ready=False)
        wait_for(lambda: "started instance=" in instance.log_text() and "database" in instance.readyz()[1]["reason"], 20)
        wait_for(lambda: "pg.connect_failed" in instance.log_text() and "certificate" in instance.log_text(), 20)
        assert "pg.up" not in instance.log_text()


# --- the reference gateway ---


class TlsFront:
    """https://localhost in front of a server that speaks plain HTTP, one connection for each."""

    def __init__(self, port, certificate, key):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)
        self.behind, self.listener = ("127.0.0.1", port), socket.create_server(("127.0.0.1", 0))
        self.url = f"https://localhost:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self.listener.accept()[0],), daemon=True).start()

    def _serve(self, plain):
        with contextlib.suppress(OSError), self.context.wrap_socket(plain, server_side=True) as near, socket.create_connection(self.behind) as far:
            back = threading.Thread(target=self._pass, args=(far, near), daemon=True)
            back.start()
            self._pass(near, far)
            back.join()

    @staticmethod
    def _pass(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@pytest.fixture
def encrypted(cluster, authority, tls_broker_port):
    """(instance, base, settings of a gateway that reaches all of it by TLS only)"""
    certificate, key = authority.certificate("instance", "DNS:localhost")
    base = BaseService(cluster)
    front = TlsFront(base.port, certificate, key)
    with contextlib.closing(front), instance_of(cluster, tls_certificate_file=certificate, tls_key_file=key) as instance:
        instance.write_config(advertise_url=instance.url)
        yield instance, base, {"instance_urls": instance.url, "base_url": front.url, "ca_file": authority.file,
            "broker_urls": cluster.gateway_url.replace("amqp:", "amqps:").replace(f"127.0.0.1:{cluster.broker.port}", f"localhost:{tls_broker_port}")}
        base.stop()
        base.check()


@contextlib.contextmanager
def gateway_of(cluster, base, name, settings):
    gateway = Gateway(cluster, base, name=name, **settings)
    yield gateway
    gateway.stop()
    gateway.check()


def test_the_gateway_goes_by_tls_to_instances_broker_and_files(cluster, authority, encrypted, monkeypatch):
    instance, base, settings = encrypted
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.file))
    instance.start()
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with gateway_of(cluster, base, "gateway", settings) as gateway:
        alice, bob = gateway.user("alice"), gateway.user("bob")
        room = alice.group("behind TLS", "bob")
        clients = [bob.web_client(transport) for transport in ("websocket", "sse", "poll")]
        for client in clients:
            client.wait_open(deadline=30)
        data = os.urandom(3 << 20)
        file_id = alice.upload(data).json()["file_id"]
        alice.say(room, {"file_id": file_id}, kind="file")
        for number in range(20):
            alice.say(room, f"{number} " + "x" * 20_000)
        assert clients[0].wait_sending(clients[0].send(room, "back"), "stored", 30)
        for client in clients:
            client.wait_seq(room, 22, 30)
            client.close()
        assert bob.download(room, file_id).content == data


def test_the_gateway_refuses_who_cannot_prove_who_it_is(cluster, authority, encrypted, tmp_path, monkeypatch):
    instance, base, settings = encrypted
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.file))
    instance.start()
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with gateway_of(cluster, base, "right", settings) as gateway:
        alice = gateway.user("alice")
        at = alice.post("connect", {"all": True})
    other = Authority(tmp_path / "theirs")
    with gateway_of(cluster, base, "wrong", {**settings, "ca_file": other.file, "listen_port": gateway.port, "session_secret": gateway.session_secret, "ready": False}) as gateway:
        wait_for(lambda: "started url=" in gateway.log_text(), 20)
        assert requests.post(f"{gateway.url}/api/login", json={"account": "alice", "password": "pw-alice"}, headers={"X-Requested-With": "test"}, timeout=20).status_code == 503
        answer = alice.session.get(urllib.parse.urljoin(gateway.url, at["sse"]), timeout=20)  # a good address for a good session
        assert answer.status_code == 503, answer.text
        log = gateway.log_text
        wait_for(lambda: "base.connect" in log() and "relay.endpoint_failed" in log() and log().count("TLS: certificate: ") >= 2, what=log)
