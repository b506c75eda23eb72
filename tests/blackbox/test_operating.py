"""docs/operating.md tells every setting, metric and log line there is, and none that is not."""
import re
import subprocess

import requests

import roomd

TEXT = (roomd.TOP / "docs" / "operating.md").read_text()
SOURCES = [path for folder in ("room", "history", "proxy", "gateway-adapter") for path in sorted((roomd.TOP / folder).rglob("*.c"))]


def section(title):
    return TEXT.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def first_names(title, column):
    """What stands in backquotes in one column of the section's table."""
    rows = [row.split("|") for row in section(title).splitlines() if row.startswith("| ")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row[column])}


def test_settings_are_as_the_program_prints_them():
    printed = subprocess.run([roomd.ROOMD, "--settings"], stdout=subprocess.PIPE, text=True, timeout=30, check=True).stdout
    assert printed.strip() in section("Settings")


def test_settings_are_those_of_the_table_in_the_code():
    keys = re.findall(r"^CONFIG_KEY\((\w+),", (roomd.TOP / "room/base/config_keys.h").read_text(), re.M)
    assert re.findall(r"^\| (\w+) \| .* \| .* \| .* \|$", section("Settings"), re.M)[1:] == keys


def scrape(instance):
    return requests.get(f"{instance.url}/metrics", timeout=10).text


def test_metrics_are_those_an_instance_has(cluster, api):
    api.push(api.create_room("alice")["room_id"], "alice", "hello", wait="durable")
    names = {name for instance in cluster.instances for name in re.findall(r"^# TYPE (\w+)", scrape(instance), re.M)}
    assert first_names("Metrics", 1) == names


def test_metrics_are_well_formed(cluster):
    """Each family is declared once, its samples follow it, and no sample stands there twice."""
    for instance in cluster.instances:
        family, families, samples = None, set(), set()
        for line in scrape(instance).splitlines():
            if line.startswith("# TYPE "):
                family = line.split()[2]
                assert family not in families, f"{family} is declared twice"
                families.add(family)
            elif not line.startswith("#"):
                sample, value = line.rsplit(" ", 1)
                float(value)
                assert re.fullmatch(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})?', sample), line
                assert re.match(rf"{family}(_bucket|_sum|_count)?(\{{|$)", sample), f"{line} stands behind {family}"
                assert sample not in samples, f"{sample} stands there twice"
                samples.add(sample)


def test_log_lines_are_those_of_the_code():
    events = {}
    for path in SOURCES:
        text = path.read_text()
        for level, event in re.findall(r'\blog_(info|warn|error)\(\s*"([a-z0-9_.]+)"', text):
            events.setdefault(event, set()).add(level)
        for levels, event in re.findall(r'\blog_at\(([^"]*),\s*"([a-z0-9_.]+)"', text):
            events.setdefault(event, set()).update(level.lower() for level in re.findall(r"LOG_(\w+)", levels))
    assert first_names("Log lines", 2) == set(events)
    for row in section("Log lines").splitlines():
        level, _, rest = row[2:].partition(" | ")
        for event in re.findall(r"`([a-z0-9_.]+)`", rest.partition(" | ")[0]) if row.startswith("| ") else ():
            assert level in events[event], f"{event} is {events[event]}, not {level}"


def test_readyz_reasons_are_those_of_the_code():
    code = (roomd.TOP / "room/server/health.c").read_text()
    reasons = re.findall(r'"([^"\\\n]+)"', code.split("not_ready_because", 1)[1].split("\n}\n", 1)[0])
    assert len(reasons) >= 5
    for reason in reasons:
        assert reason.partition(":")[0] in section("Health"), reason


def test_settings_of_the_gateway_are_as_it_prints_them():
    program = roomd.pathlib.Path(roomd.ROOMD).with_name("roomd-gateway")
    printed = subprocess.run([program, "--settings"], stdout=subprocess.PIPE, text=True, timeout=30, check=True).stdout
    assert printed.strip() in section("Gateway")


def test_settings_of_the_base_service_are_as_it_prints_them():
    program = roomd.pathlib.Path(roomd.ROOMD).with_name("baseservice")
    printed = subprocess.run([program, "--settings"], stdout=subprocess.PIPE, text=True, timeout=30, check=True).stdout
    rows = [line for line in printed.splitlines() if line.startswith("| ") and not line.startswith("| -")]
    assert len(rows) > 10 and "\n".join(rows) in (roomd.TOP / "docs" / "baseservice.md").read_text().replace("| --- | --- | --- | --- |\n", "")


def test_metrics_of_the_gateway_are_those_of_the_code():
    code = (roomd.TOP / "gateway-adapter/gateway/routes.c").read_text()
    assert first_names("Gateway", 1) == {f"roomd_gateway_{name}" for name in re.findall(r'metric\(&out, "(\w+)"', code)}
