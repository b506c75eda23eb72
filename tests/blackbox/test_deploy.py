"""deploy/: every setting, port, path and package that the unit, the compose file and the Kubernetes manifests name is one that the programs know."""
import configparser
import os
import pathlib
import re
import shutil
import subprocess

import pytest
import requests
import yaml

import roomd

DEPLOY = roomd.TOP / "deploy"
AFTER_THE_STREAMS_S = 20  # docs/operating.md: "Give it `drain_ms` and 20 s"
UNIT = DEPLOY / "systemd" / "roomd@.service"
COMPOSE = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
DOCKERFILE = (DEPLOY / "compose" / "Dockerfile").read_text()
MANIFESTS = {document["kind"]: document for document in yaml.safe_load_all((DEPLOY / "kubernetes" / "roomd.yaml").read_text())}
SECRET = yaml.safe_load((DEPLOY / "kubernetes" / "secret.example.yaml").read_text())
PROGRAMS = {name: pathlib.Path(roomd.ROOMD).with_name(name) for name in ("roomd", "roomd-gateway", "baseservice")}
PREFIXES = {"roomd": "ROOMD_", "roomd-gateway": "ROOMD_GATEWAY_", "baseservice": "BASESERVICE_"}


def settings(program):
    """{name: its default}"""
    manual = subprocess.run([PROGRAMS[program], "--settings"], stdout=subprocess.PIPE, text=True, timeout=30, check=True).stdout
    return dict(re.findall(r"^\| (\w+) \| (\S+) \|", manual, re.M)[1:])


def check_config(environment, *words):
    """{setting: value}, as they count"""
    done = subprocess.run([roomd.ROOMD, "check-config", *map(str, words)], env={"PATH": os.environ["PATH"], **environment}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return dict(line.split(" = ", 1) for line in done.stdout.splitlines() if " = " in line)


def seconds(text):
    return int(re.fullmatch(r"(\d+)s?", str(text))[1])


def drain_seconds(config):
    return int(config["drain_ms"]) / 1000 + AFTER_THE_STREAMS_S


SECRETS = {"database_url": "postgresql://roomd:x@h/roomd", "broker_urls": "amqps://roomd:x@h:5671/%2f", "service_keys": "gateway:" + "k" * 48,
    "ticket_keys": "k1:" + "t" * 64, "ca.pem": "x"}


def secret_files(folder):
    folder.mkdir()
    for name, value in SECRETS.items():
        (folder / name).write_text(value)
    return folder


def test_the_time_to_stop_is_the_one_that_is_documented():
    assert f"Give it `drain_ms` and {AFTER_THE_STREAMS_S} s" in (roomd.TOP / "docs" / "operating.md").read_text()


# --- systemd ---


@pytest.fixture
def unit():
    class Keys(dict):  # a key that stands there twice has both values
        def __setitem__(self, key, value):
            if isinstance(value, list) and key in self:
                value = self[key] + value
            super().__setitem__(key, value)

    parser = configparser.RawConfigParser(strict=False, dict_type=Keys, interpolation=None)
    parser.optionxform = str
    parser.read(UNIT)
    return {key: value.split("\n") for key, value in parser["Service"].items()}


def test_the_unit_starts_an_instance_with_settings_that_there_are(unit, tmp_path):
    credentials = secret_files(tmp_path / "credentials")
    named = dict(line.split(":") for line in unit["LoadCredential"])
    assert set(named) < set(SECRETS) and all(path == f"/etc/roomd/secrets/{name}" for name, path in named.items())
    words = [word.replace("%d", str(credentials)).replace("%l", "host").replace("%i", "1") for line in unit["Environment"] for word in line.split()]
    (tmp_path / "roomd.conf").write_text("listen_address = 10.0.0.5\n")
    assert unit["ExecStart"] == ["/usr/local/bin/roomd serve --config /etc/roomd/roomd.conf"]
    config = check_config(dict(word.split("=", 1) for word in words), "--config", tmp_path / "roomd.conf")
    assert config["instance_name"] == "host-1"
    assert all(config[name] == "***" for name in named)


def test_the_unit_drains_in_time_and_may_open_its_connections(unit):
    defaults = settings("roomd")
    assert unit["KillSignal"] == ["SIGTERM"] and seconds(unit["TimeoutStopSec"][0]) >= drain_seconds(defaults)
    assert int(unit["LimitNOFILE"][0]) > int(defaults["connections_max"])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_the_unit_is_hardened():
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=60)
    exposure = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)[1])
    assert exposure <= 1.5, done.stdout


# --- compose ---


def substituted(environment, variables):
    def value(match):
        return variables[match[1]]

    return {name: re.sub(r"\$\{(\w+):\?[^}]*\}", value, str(text)) for name, text in (environment or {}).items()}


@pytest.fixture
def variables():
    """Those that the comment on top has one make."""
    names = re.search(r"for name in ([A-Z_ ]+); do", (DEPLOY / "compose" / "compose.yaml").read_text())[1].split()
    used = set(re.findall(r"\$\{(\w+)", "\n".join(line for line in (DEPLOY / "compose" / "compose.yaml").read_text().splitlines() if line.lstrip()[:1] != "#")))
    assert used == set(names)
    return {name: "0123456789abcdef" * 3 for name in names}


def services(program):
    return {name: service for name, service in COMPOSE["services"].items() if service.get("command", [""])[0] == program}


def test_compose_starts_two_instances_with_settings_that_there_are(variables):
    assert {name: service["command"][1] for name, service in services("roomd").items()} == {"migrate": "migrate", "roomd-1": "serve", "roomd-2": "serve"}
    ticket_keys = set()
    for name, service in services("roomd").items():
        environment = substituted(service["environment"], variables)
        config = check_config(environment)
        ticket_keys.add(environment["ROOMD_TICKET_KEYS"])
        if name == "migrate":
            continue
        assert config["instance_name"] == name and config["advertise_url"] == f"http://{name}:{config['listen_port']}"
        assert f"http://127.0.0.1:{config['listen_port']}/readyz" in service["healthcheck"]["test"]
        assert seconds(service["stop_grace_period"]) >= drain_seconds(config)
        assert service["ulimits"]["nofile"] > int(config["connections_max"])
    assert len(ticket_keys) == 1


@pytest.mark.parametrize("program", ["roomd-gateway", "baseservice"])
def test_compose_gives_the_other_programs_settings_that_there_are(program, variables):
    (service,), known = services(program).values(), settings(program)
    given = {name.removeprefix(PREFIXES[program]).lower(): value for name, value in substituted(service["environment"], variables).items()}
    assert set(given) <= set(known), set(given) - set(known)
    assert f":{given['listen_port']}/" in service["healthcheck"]["test"][-1]
    if program == "roomd-gateway":
        assert service["ports"] == [f"127.0.0.1:{given['listen_port']}:{given['listen_port']}"]
        assert given["instance_urls"].split(",") == [one["environment"]["ROOMD_ADVERTISE_URL"] for name, one in services("roomd").items() if name != "migrate"]
        assert given["base_url"] == f"http://baseservice:{services('baseservice')['baseservice']['environment']['BASESERVICE_LISTEN_PORT']}"
        assert len(given["session_secret"]) >= 32 and seconds(service["stop_grace_period"]) > int(known["drain_ms"]) / 1000


def test_compose_names_services_and_volumes_that_there_are(variables):
    names, volumes = set(COMPOSE["services"]), set(COMPOSE["volumes"])
    for name, service in COMPOSE["services"].items():
        assert set(service.get("depends_on", ())) <= names, name
        assert {volume.split(":")[0] for volume in service.get("volumes", ())} <= volumes, name
        if "build" in service:
            assert (DEPLOY / "compose" / service["build"]["context"]).resolve() == roomd.TOP and (roomd.TOP / service["build"]["dockerfile"]).exists()
        hosts = re.findall(r"(?:@|http://)([\w-]+)(?::\d+)?/", "\n".join(f"{value}/" for value in substituted(service.get("environment"), variables).values()))
        assert set(hosts) <= names, hosts


# --- the image ---


def packages(stage):
    installs = re.search(r"apt-get install --yes --no-install-recommends \\\n((?:.*\\\n)*?.*?)(?:\n[A-Z]|\\\n +&&)", DOCKERFILE.split("FROM ")[stage])[1]
    return set(installs.replace("\\", " ").split())


def test_the_image_is_built_from_packages_the_quickstart_installs():
    wanted = set(re.search(r"PACKAGES_TO_RUN=\(([^)]+)\)", (DEPLOY / "servers.sh").read_text())[1].split())
    to_run_it = {"postgresql-15", "rabbitmq-server", "openssl", "curl", "perl-base", "util-linux"}
    assert packages(1) == wanted - to_run_it


@pytest.mark.skipif(not (shutil.which("dpkg-query") and shutil.which("readelf")), reason="needs dpkg-query and readelf")
def test_the_image_holds_the_libraries_the_programs_need():
    needed = set()
    for program in PROGRAMS.values():
        dynamic = subprocess.run(["readelf", "-d", program], stdout=subprocess.PIPE, text=True, timeout=30, check=True).stdout
        needed |= set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
    needed = {name for name in needed if not re.match(r"lib(c|m|asan|ubsan|gcc_s|stdc\+\+)\.so|ld-linux", name)}
    owners = subprocess.run(["dpkg-query", "--search", *(f"*/{name}" for name in sorted(needed))], stdout=subprocess.PIPE, text=True, timeout=30).stdout
    assert len(needed) > 5 and set(re.findall(r"^([^:\s]+)", owners, re.M)) <= packages(2)


def test_the_image_gets_the_sources_and_nothing_else():
    copied = re.findall(r"^COPY (?!--from)(\S+) /source/", DOCKERFILE, re.M)
    ignore = (DEPLOY / "compose" / "Dockerfile.dockerignore").read_text().split()
    assert ignore == ["*", *(f"!{name}" for name in copied)]
    for name in copied:
        assert (roomd.TOP / name).exists()
    layers = re.findall(r"^layer\(\w+ ([\w/-]+)", (roomd.TOP / "CMakeLists.txt").read_text(), re.M)
    assert {layer.split("/")[0] for layer in layers} <= set(copied)


# --- Kubernetes ---


def container(name="roomd", kind="containers"):
    (found,) = [one for one in pod()["spec"][kind] if one["name"] == name]
    return found


def pod():
    return MANIFESTS["Deployment"]["spec"]["template"]


def test_kubernetes_starts_instances_with_settings_that_there_are(tmp_path):
    secrets = secret_files(tmp_path / "secrets")
    (tmp_path / "roomd.conf").write_text(MANIFESTS["ConfigMap"]["data"]["roomd.conf"].replace("/etc/roomd/secrets", str(secrets)))
    environment = {}
    for one in container()["env"]:
        field = one.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        environment[one["name"]] = {"status.podIP": "10.1.2.3", "metadata.name": "roomd-7d4-x"}[field] if field else one["value"].replace("$(POD_IP)", "10.1.2.3")
    assert container()["command"] == ["roomd", "serve", "--config", "/etc/roomd/roomd.conf"]
    assert container("migrate", "initContainers")["command"] == ["roomd", "migrate", "--config", "/etc/roomd/roomd.conf"]
    config = check_config(environment, "--config", tmp_path / "roomd.conf")
    assert config["instance_name"] == "roomd-7d4-x" and config["advertise_url"] == f"http://10.1.2.3:{config['listen_port']}"
    assert container()["ports"] == [{"name": "instance", "containerPort": int(config["listen_port"])}]
    assert MANIFESTS["Service"]["spec"]["ports"] == [{"name": "instance", "port": int(config["listen_port"]), "targetPort": "instance"}]
    (pause,) = [int(word) for word in container()["lifecycle"]["preStop"]["exec"]["command"] if word.isdigit()]
    assert pod()["spec"]["terminationGracePeriodSeconds"] >= pause + drain_seconds(config)


def test_kubernetes_mounts_what_the_settings_point_at():
    pointed = set(re.findall(r"/etc/roomd/secrets/(\S+)", MANIFESTS["ConfigMap"]["data"]["roomd.conf"]))
    assert pointed == set(SECRET["stringData"]) == set(SECRETS)
    volumes = {volume["name"]: volume for volume in pod()["spec"]["volumes"]}
    assert volumes["settings"]["configMap"]["name"] == MANIFESTS["ConfigMap"]["metadata"]["name"]
    assert volumes["secrets"]["secret"] == {"secretName": SECRET["metadata"]["name"], "defaultMode": 0o440}
    for one in (container(), container("migrate", "initContainers")):
        assert {(mount["name"], mount["mountPath"]) for mount in one["volumeMounts"]} == {("settings", "/etc/roomd/roomd.conf"), ("secrets", "/etc/roomd/secrets")}
        assert one["securityContext"]["readOnlyRootFilesystem"] and one["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_kubernetes_selects_the_pods_it_makes():
    labels = pod()["metadata"]["labels"]
    assert MANIFESTS["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["Service"]["spec"]["selector"] == labels
    assert MANIFESTS["PodDisruptionBudget"]["spec"] == {"maxUnavailable": 1, "selector": {"matchLabels": labels}}
    assert pod()["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"] == labels


def test_what_probes_and_scrapers_ask_is_answered(cluster):
    paths = [container()[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")] + [pod()["metadata"]["annotations"]["prometheus.io/path"]]
    assert paths == ["/healthz", "/readyz", "/metrics"]
    for path in paths:
        assert requests.get(cluster.instances[0].url + path, timeout=10).status_code == 200, path
