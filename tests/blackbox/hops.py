"""
nginx and HAProxy with the files of deploy/, and the gateway's part of docs/without-library.md#the-hop, as processes of a test.

Authorizer(cluster, folder)   the page's authorize.py; .ask(account) asks what the proxy asks; .public: what everything but streams goes to
Nginx, HAProxy                (cluster, folder, authorizer, timeout="75s", public=port): .url .log_text() access_log(); stop()
NginxWith(cluster, folder, file, changes)   nginx with another file of deploy/nginx
open_hop(hop, account, transport, after=…)   a stream of roomd.py through it. It comes with a ticket that is none: the hop puts its own in its place.
"""
import contextlib
import os
import signal
import socket
import subprocess
import sys
import urllib.parse

import requests

import pages
import roomd
from roomd import wait_for

DEPLOY = roomd.TOP / "deploy"
PAGE_ORIGIN = "https://chat.example.com"
FORGED = "forged.by.frontend"


class Process:
    """Ends with the cluster's directory, however the test goes."""

    def __init__(self, cluster, name, command, port=None):
        self.cluster, self.name, self.port = cluster, name, port or roomd.free_port()
        self.log, self.command, self.environment = cluster.home / f"{name}.log", command, {}
        self.process = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        keep = {key: value for key, value in os.environ.items() if key in ("PATH", "LANG")}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, env={**keep, **self.environment, "SERVERS_HOME": str(self.cluster.home)}, cwd=self.cluster.home,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        wait_for(self.answers, 15, what=self.log_text)
        return self

    def answers(self):
        assert self.process.poll() is None, self.log_text()
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=2).close()
            return True
        return False

    def log_text(self):
        return self.log.read_text(errors="replace")

    def stop(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


class Authorizer(Process):
    def __init__(self, cluster, folder):
        super().__init__(cluster, "authorize", [sys.executable, str(folder / "authorize.py")])
        pages.write_programs("without-library.md", folder)
        self.hop_port = roomd.free_port()
        self.environment = {"PORT": str(self.port), "ALLOWED_ORIGINS": f"{PAGE_ORIGIN},http://127.0.0.1:{self.hop_port}", "ROOMD_SERVICE_KEY": cluster.service_key,
            "ROOMD_URLS": ",".join(instance.url for instance in cluster.instances)}
        self.public = Process(cluster, "public", [])
        (folder / "public").mkdir()
        self.public.command = [sys.executable, "-m", "http.server", str(self.public.port), "--bind", "127.0.0.1", "--directory", str(folder / "public")]
        self.public.start()
        self.start()

    def stop(self):
        self.public.stop()
        super().stop()

    def ask(self, account, uri="/stream/ws", **headers):
        return requests.get(f"{self.url}/authorize-stream", headers={"Cookie": f"account={account}", "X-Original-URI": uri, **headers}, timeout=10)


NGINX = """user root;
worker_processes 1;
daemon off;
pid {home}/nginx.pid;
error_log {home}/nginx.log;
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path {home}/nginx-body;
    proxy_temp_path {home}/nginx-proxy;
    fastcgi_temp_path {home}/nginx-fastcgi;
    uwsgi_temp_path {home}/nginx-uwsgi;
    scgi_temp_path {home}/nginx-scgi;
    access_log {home}/nginx-access.log;
    include {conf};
}}
"""


class NginxWith(Process):
    """A file of deploy/nginx."""

    def __init__(self, cluster, folder, file, changes, port=None):
        super().__init__(cluster, "nginx", ["/usr/sbin/nginx", "-p", str(cluster.home), "-c", str(folder / "nginx.conf"), "-e", str(cluster.home / "nginx.log")], port)
        (folder / file).write_text(pages.change((DEPLOY / "nginx" / file).read_text(), {"listen 443 ssl;": f"listen 127.0.0.1:{self.port};",
            "    ssl_certificate  ": "    #", "    ssl_certificate_key": "    #", **changes}))
        (folder / "nginx.conf").write_text(NGINX.format(home=cluster.home, conf=folder / file))
        self.start()

    def access_log(self):
        return (self.cluster.home / "nginx-access.log").read_text()


class Nginx(NginxWith):
    def __init__(self, cluster, folder, authorizer, timeout="75s", changes=None, public=None):
        super().__init__(cluster, folder, "roomd.conf", {"127.0.0.1:8080": f"127.0.0.1:{public or authorizer.public.port}",
            "127.0.0.1:8081": f"127.0.0.1:{authorizer.port}", "75s": timeout, **(changes or {})}, authorizer.hop_port)


class HAProxy(Process):
    def __init__(self, cluster, folder, authorizer, timeout="75s", changes=None, public=None, instances=None):
        super().__init__(cluster, "haproxy", ["/usr/sbin/haproxy", "-db", "-f", str(folder / "roomd.cfg")], authorizer.hop_port)
        addresses = [urllib.parse.urlsplit(url).netloc for url in instances or [instance.url for instance in cluster.instances]]
        servers = "".join(f"    server {address} {address}\n" for address in addresses)
        (folder / "roomd.lua").write_text((DEPLOY / "haproxy" / "roomd.lua").read_text())
        (folder / "roomd.cfg").write_text(pages.change((DEPLOY / "haproxy" / "roomd.cfg").read_text(), {
            "/etc/haproxy/roomd.lua": str(folder / "roomd.lua"), "bind :443 ssl crt /etc/ssl/chat.example.com.pem": f"bind 127.0.0.1:{self.port}",
            "127.0.0.1:8080": f"127.0.0.1:{public or authorizer.public.port}",
            "127.0.0.1:8081": f"127.0.0.1:{authorizer.port}", "maxconn 50000": "maxconn 1000", "    server 10.0.0.5:7400 10.0.0.5:7400                  # <<\n": servers,
            "    server 10.0.0.6:7400 10.0.0.6:7400                  # <<\n": "", "75s": timeout, **(changes or {})}))
        self.start()

    def access_log(self):
        return self.log_text()


class HAProxyBefore(Process):
    """A gateway that carries the streams itself."""

    def __init__(self, cluster, folder, gateway):
        super().__init__(cluster, "haproxy", ["/usr/sbin/haproxy", "-db", "-f", str(folder / "gateway.cfg")])
        (folder / "gateway.cfg").write_text(pages.change((DEPLOY / "haproxy" / "gateway.cfg").read_text(), {
            "bind :443 ssl crt /etc/ssl/chat.example.com.pem": f"bind 127.0.0.1:{self.port}", "127.0.0.1:8080": f"127.0.0.1:{gateway.port}",
            "maxconn 50000": "maxconn 1000"}))
        self.start()


class HopWebSocket(roomd.WsStream):
    path = "/stream/ws"


class HopSse(roomd.SseStream):
    path = "/stream/sse"


class HopNdjson(roomd.NdjsonStream):
    path = "/stream/ndjson"


class HopPoll(roomd.LongPoll):
    path = "/stream/poll"


HOPS = {"websocket": HopWebSocket, "sse": HopSse, "ndjson": HopNdjson, "poll": HopPoll}


def open_hop(hop, account, transport, after=(), room=None, **options):
    headers = {"Cookie": f"account={account}", "Origin": PAGE_ORIGIN, **options.pop("headers", {})}
    query = [("room", room)] if room else None
    stream = HOPS[transport](hop.url, FORGED, after=list(after), headers=headers, query=query, **options)
    stream.cluster = hop.cluster
    hop.cluster._streams.append(stream)
    return stream
