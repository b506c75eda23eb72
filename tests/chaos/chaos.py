"""
What the chaos runs share: a cluster each of whose instances reaches database and broker through a proxy that can hurt, load on it, and the judgement at the end.

    with Run(options) as run:            servers, instances, rooms, readers, publishers
        run.steady()                     messages flow in every room
        with run.fault("kill", rooms):   from here on the rooms' recovery is measured
            …
        run.finish() -> Report           everything healed, everything settled, everything checked
"""
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

TOP = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP / "tests" / "blackbox"), str(TOP / "tests" / "chaos")]

import requests  # noqa: E402

import checker  # noqa: E402
import readers as reading  # noqa: E402
import roomd  # noqa: E402
import tcp_proxy  # noqa: E402

TRANSPORTS = ("websocket", "sse", "ndjson", "poll")


@dataclasses.dataclass
class Options:
    instances: int = 3
    rooms: int = 24
    publishers: int = 3
    rate: int = 600  # messages a second of all publishers
    readers: int = 12
    seed: int = 1
    settings: dict = dataclasses.field(default_factory=dict)
    build: str = str(TOP / "build")
    programs: tuple = ()  # of single instances, by number; the others are the build's
    members_change: bool = True
    kills: int = 3
    seconds: int = 60  # of random faults
    keep_logs: str = None  # a folder for the logs of what failed


class Publisher:
    """A chaos_publisher process: numbers of one sender over all rooms."""

    def __init__(self, build, url, sender, rooms_file, rooms, rate):
        self.sender, self.rooms, self.confirmed, self.result = sender, rooms, 0, None
        self.process = subprocess.Popen([pathlib.Path(build) / "chaos_publisher", url, sender, str(1 << 40), "200", rooms_file, str(rate)], stdout=subprocess.PIPE, stderr=open(pathlib.Path(rooms_file).with_name(f"{sender}.log"), "ab"), text=True)
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self):
        for line in self.process.stdout:
            value = json.loads(line)
            self.result = value if isinstance(value, dict) else self.result
            self.confirmed = value["confirmed"] if isinstance(value, dict) else value

    def stop(self, seconds=60):
        """No new ones; those on their way until they are confirmed."""
        self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        roomd.wait_for(lambda: self.result, 30)
        return True

    def intent(self):
        return checker.Numbered(self.sender, self.confirmed, self.rooms)

    def close(self):
        self.process.kill()
        self.process.wait()


class Caller:
    """Calls to any instance that answers, repeated with the same id until one says yes."""

    def __init__(self, run, name):
        self.run, self.rng = run, random.Random(f"{run.options.seed} {name}")
        self.attempts = self.ok = self.unknown = 0
        self.refused, self.outages = [], []
        self.sessions = {}

    def until_ok(self, method, body, fine=(200,)):
        """(answer, when), or None at the end of the run."""
        begin = time.time()
        while not self.run.over.is_set():
            self.attempts += 1
            try:
                url = self.rng.choice(self.run.urls() or [self.run.cluster.instances[0].url])
                session = self.sessions.setdefault(url, requests.Session())
                answer = session.post(f"{url}/v1/{method}", json=body, headers={"Authorization": f"Bearer {self.run.cluster.service_key}"}, timeout=8)
                if answer.status_code in fine:
                    self.ok += 1
                    if time.time() - begin > 0.5:
                        self.outages.append((begin, time.time()))
                    return answer.json(), time.time()
                if answer.status_code not in (429, 503, 504):
                    self.refused.append(f"{method} {body}: {answer.status_code} {answer.text[:200]}")
                    return None
            except (requests.RequestException, ValueError):
                pass
            self.unknown += 1
            self.run.over.wait(self.rng.uniform(0.05, 0.2))
        return None


class Pusher(threading.Thread):
    """One sender that uses history/Push, one message after the other, and edits or recalls some."""

    def __init__(self, run, sender):
        super().__init__(daemon=True)
        self.run_, self.sender, self.caller, self.told, self.acts = run, sender, Caller(run, sender), checker.Told(sender), []

    def run(self):
        n = 0
        while not self.run_.stopping.wait(self.caller.rng.uniform(0.02, 0.1)):
            room, wait = self.caller.rng.choice(self.run_.rooms), self.caller.rng.choice(["confirmed", "sequenced", "durable", "durable"])
            body = {"room_id": room, "sender": self.sender, "kind": "text", "content": {"body": checker.content(room, self.sender, n)}, "client_msg_id": f"{self.sender}-{n}", "wait": wait}
            answer = self.caller.until_ok("history/Push", body)
            if answer is None:
                break  # it may have happened, and nobody was told
            self.told.add(room, n, answer[0].get("seq") if wait == "durable" else None)
            if wait == "durable" and n % 5 == 0:
                self._change(room, answer[0]["seq"], n)
            n += 1

    def _change(self, room, seq, n):
        edits = self.caller.rng.random() < 0.5
        body = {"room_id": room, "seq": seq, "account_id": self.sender, "request_id": f"{self.sender}-act-{n}"} | ({"content": {"body": "edited"}} if edits else {})
        answer = self.caller.until_ok("history/Edit" if edits else "history/Recall", body, fine=(200, 409))
        if answer and "seq" in answer[0]:
            self.acts.append((room, answer[0]["seq"], "message.edited" if edits else "message.recalled", seq))


class Churn(threading.Thread):
    """Takes an account out of a room and lets it in again, with calls that change nothing in between."""

    def __init__(self, run, account, room):
        super().__init__(daemon=True)
        self.run_, self.account, self.room, self.caller, self.gone, self.member, self.calls = run, account, room, Caller(run, account), [], True, 0

    def run(self):
        while not self.run_.stopping.wait(self.caller.rng.uniform(0.2, 0.8)):
            leaves = self.caller.rng.random() < 0.5
            method = "room/RmAccountFromRoom" if leaves else "room/AddAccount2Room"
            self.calls += 1
            answer = self.caller.until_ok(method, {"room_id": self.room, "account_id": self.account, "request_id": f"{self.account}-{self.calls}"})
            if answer is None:
                self.member = None  # may have happened
                break
            if leaves and self.account in answer[0]["removed"]:
                self.gone.append(answer[1])
            self.member = not leaves


class Run:
    def __init__(self, options, servers=None, say=print):
        self.options, self.say = options, say
        self.servers, self.own_servers = servers or roomd.Servers(), servers is None
        self.proxy = tcp_proxy.Proxy()
        self.cluster = self.readers = None
        self.publishers, self.pushers, self.churns, self.frozen = [], [], [], set()
        self.stopping, self.over = threading.Event(), threading.Event()
        self.faults, self.more_intents, self.timeline, self.gaps, self.started = [], [], {}, {}, time.time()
        self.report = checker.Report()
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # --- beginning ---

    def _start(self):
        options = self.options
        os.environ["ROOMD_BIN"] = roomd.ROOMD = str(pathlib.Path(options.build) / "roomd")
        self.cluster = roomd.Cluster(self.servers, 0, {"log_level": "info", "heartbeat_ms": 1000, "stream_poll_hold_ms": 3000, **options.settings})
        for number in range(options.instances):
            self.add(ready=False, program=options.programs[number] if number < len(options.programs) else None)
        for instance in self.cluster.instances:
            if not options.programs:
                instance.wait_ready()
        if options.programs:  # builds from before shards were spread stand by, and say so
            roomd.wait_for(lambda: any(instance.ready() for instance in self.cluster.instances), 30, what="none of the earlier build is ready")
        senders = [f"p{n}" for n in range(options.publishers)] + ["h0", "h1"]
        self.coming = [f"c{n}" for n in range(2 if options.members_change else 0)]
        api = self.cluster.api
        self.rooms = [api.create_room(*senders, "reader")["room_id"] for _ in range(options.rooms)]
        self.churn_rooms = [api.create_room(*senders, "reader", account, history="since_join")["room_id"] for account in self.coming]
        self.rooms += self.churn_rooms
        self.readers = reading.Readers(self.urls(), self.cluster.service_key, self._specs(), options.seed)
        rooms_file = self.cluster.home / "rooms"
        rooms_file.write_text("\n".join(self.rooms) + "\n")
        self.publishers = [Publisher(options.build, self.cluster.gateway_url, f"p{n}", rooms_file, self.rooms, options.rate // options.publishers) for n in range(options.publishers)]
        self.pushers = [Pusher(self, sender) for sender in ("h0", "h1")]
        self.churns = [Churn(self, account, room) for account, room in zip(self.coming, self.churn_rooms)]
        for thread in (*self.pushers, *self.churns):
            thread.start()

    def _specs(self):
        """Readers of all kinds, each of a quarter of the rooms; one of everything; those who come and go; strangers."""
        specs = []
        for n in range(self.options.readers):
            rooms = [room for at, room in enumerate(self.rooms) if at % 4 == n % 4]
            specs.append(reading.Spec(f"r{n}", "reader", rooms, TRANSPORTS[n // 2 % 4], "durable" if n % 3 == 2 else "early", returns_after_s=(0, 2, 7)[n % 3] if n % 2 else 0, foreign=n % 4 == 1))
        specs.append(reading.Spec("all", "reader", self.rooms, all=True))
        for account, room in zip(self.coming, self.churn_rooms):
            specs.append(reading.Spec(account, account, [room], all=True, comes_and_goes=(room,), foreign=account == "c1"))
        specs += [reading.Spec(f"stranger{n}", f"stranger{n}", [], TRANSPORTS[n], all=True) for n in range(2)]
        return specs

    def add(self, ready=True, program=None):
        """One more instance, behind links of its own."""
        name = f"roomd-{len(self.cluster.instances) + 1}"
        db = self.proxy.listen(f"{name}.db", self.servers.database.port, "postgres")
        broker = self.proxy.listen(f"{name}.broker", self.servers.broker.port, "amqp")
        return self.cluster.start(name, {"database_url": self.servers.database.url(self.cluster.name, db), "broker_urls": self.servers.broker.url("roomd", self.cluster.name, broker)}, ready, program)

    # --- looking ---

    def urls(self):
        return [instance.url for instance in self.cluster.instances if instance.alive() and instance not in self.frozen]

    def urls_changed(self):
        if self.readers:
            self.readers.urls(self.urls() or [instance.url for instance in self.cluster.instances])

    def owned(self):
        """{instance: shards}, by their own word."""
        found = {}
        for instance in self.cluster.instances:
            if instance.alive() and instance not in self.frozen:
                with contextlib.suppress(requests.RequestException, ValueError, KeyError):
                    found[instance] = [str(name) for name in requests.get(instance.url + "/readyz", timeout=2).json()["shards"]]
        return found

    def owner(self, rng=None):
        """(an instance that owns shards, its rooms): the one with the most, or a random one."""
        def find():
            owners = [(instance, shards) for instance, shards in self.owned().items() if shards]
            return owners or None

        owners = roomd.wait_for(find, 30, what="nobody owns anything")
        instance, shards = rng.choice(owners) if rng else max(owners, key=lambda pair: len(pair[1]))
        return instance, [room for room in self.rooms if room.partition(".")[0] in shards]

    def all_owned(self):
        return sum(map(len, self.owned().values())) >= self.cluster.settings["shard_count"]

    def settled(self, still_s=2.5):
        """The shards are spread, and stay where they are: even shares come about before the last of the moves, which follow each other within a beat."""
        self.cluster.wait_spread()
        last, since = None, 0.0

        def still():
            nonlocal last, since
            now = self.owned()
            if now != last:
                last, since = now, time.monotonic()
            return time.monotonic() - since >= still_s

        roomd.wait_for(still, 30, every=0.2, what="shards move on and on")

    def reached(self):
        best = collections.Counter()
        for rooms in self.readers.reached().values():
            for room, seq in rooms.items():
                best[room] = max(best[room], seq)
        return best

    def steady(self, rooms=None, seconds=60):
        """Every room has got new messages since now."""
        before, rooms = self.reached(), rooms or self.rooms
        roomd.wait_for(lambda: (now := self.reached()) and all(now[room] > before[room] for room in rooms), seconds, every=0.05,
            what=lambda: f"no new messages in {[room for room in rooms if self.reached()[room] <= before[room]]}; {self.readers.errors()}")

    @contextlib.contextmanager
    def fault(self, name, rooms=None, seconds=60):
        """Within it something breaks; at its end messages flow again in all rooms."""
        begin = time.time()
        yield
        self.steady(seconds=seconds)
        self.faults.append((name, begin, list(rooms or self.rooms)))
        self.say(f"{time.time() - self.started:7.2f} s  {name}: flowing again {time.time() - begin:.2f} s after its begin")

    def hurt(self, instance, what, action, role=None, **options):
        """what: "db" or "broker"."""
        return self.proxy.hurt(f"{instance.name}.{what}", action, role, **options)

    # --- doing ---

    def kill(self, instance):
        instance.kill9()
        self.urls_changed()

    def freeze(self, instance):
        self.frozen.add(instance)
        instance.sigstop()
        self.urls_changed()

    def thaw(self, instance):
        instance.sigcont()
        self.frozen.discard(instance)
        self.urls_changed()

    def revive(self, instance, ready=True):
        if not instance.alive():
            instance.start(ready=ready)
        self.urls_changed()

    # --- the end ---

    def finish(self, seconds=60):
        self.proxy.heal_all()
        for instance in list(self.frozen):
            self.thaw(instance)
        self.servers.restore()
        for instance in self.cluster.instances:
            self.revive(instance, ready=False)
        self.stopping.set()
        for thread in (*self.pushers, *self.churns):
            thread.join(30)
        self.over.set()
        for publisher in self.publishers:
            if not publisher.stop(seconds):
                self.report.wrong("lost", f"{publisher.sender}'s messages are not confirmed {seconds} s after the last fault")
        for instance in self.cluster.instances:
            with contextlib.suppress(AssertionError):
                instance.wait_ready(seconds)
        self._settle(seconds)
        with contextlib.closing(self.cluster.connect()) as connection:
            self._check(connection)
        return self.report

    def _settle(self, seconds):
        """Until the log has what was confirmed and every reader has the log; what is late after that is lost or missed."""
        numbered = sum(publisher.confirmed for publisher in self.publishers)
        with contextlib.suppress(AssertionError):
            roomd.wait_for(lambda: self.cluster.rows("select (select count(*) from log_entry where type = 1 and sender like 'p%%') + (select count(*) from outbox)")[0][0] >= numbered, seconds, every=0.2)
        with contextlib.suppress(AssertionError):
            roomd.wait_for(self._all_read, seconds, every=0.2)
        with contextlib.suppress(AssertionError):  # what was settled is acknowledged, too
            roomd.wait_for(lambda: self._waiting_at_broker() == 0, 30, every=0.5)  # a quorum queue counts anew each 5 s
        self.report.info["left_in_queues"] = self._waiting_at_broker()
        if self.report.info["left_in_queues"]:
            self.report.wrong("lost", f"{self.report.info['left_in_queues']} deliveries are still at the broker")

    def _all_read(self):
        heads = dict(self.cluster.rows("select room_id, last_seq from room_head join room using (room_no)"))
        return all(seq >= heads[room] for rooms in self.readers.reached().values() for room, seq in rooms.items())

    def _waiting_at_broker(self):
        lines = self.servers.broker.ctl("list_queues", "-q", "-p", self.cluster.name, "name", "messages").splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("roomd.shard."))

    def _check(self, connection):
        report = self.report
        views, self.timeline, self.gaps = self.readers.finish()
        checker.check_log(connection, self.rooms, [publisher.intent() for publisher in self.publishers] + [pusher.told for pusher in self.pushers] + self.more_intents, report)
        checker.check_views(connection, self.rooms, views, report)
        checker.check_pulls(connection, {instance.name: instance.api for instance in self.cluster.alive}, self.rooms, report)
        for churn in self.churns:
            view = next(view for view in views if view.name == churn.account)
            checker.check_membership(connection, churn.room, churn.account, view, churn.gone, churn.member, report)
        for pusher in self.pushers:
            checker.check_acts(connection, pusher.acts, report)
        for caller in self._callers():
            for refusal in caller.refused:
                report.wrong("answers", refusal)
        for instance in self.cluster.instances:
            checker.check_text(instance.name, instance.log_text(), instance.secrets, report)
            if not instance.alive():
                report.wrong("answers", f"{instance.name} is not there at the end: {instance.log_text()[-300:]}")

    def _callers(self):
        return [one.caller for one in (*self.pushers, *self.churns)]

    def close(self):
        self.stopping.set()
        self.over.set()
        for thread in (*self.pushers, *self.churns):
            if thread.ident:
                thread.join(15)
        for one in (*self.publishers, self.readers):
            if one:
                one.close()
        if self.cluster:
            for instance in self.cluster.instances:
                if instance.alive():
                    instance.ends_are_expected = True
                    instance.sigcont()
                    instance.kill9()
            with contextlib.suppress(Exception):
                self.servers.broker.ctl("delete_vhost", self.cluster.name)
        self.proxy.close()
        if self.own_servers:
            self.servers.close()

    def keep_logs(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        for instance in self.cluster.instances:
            (folder / f"{instance.name}.log").write_text(instance.log_text())
        for server in (self.servers.database, self.servers.broker):
            (folder / server.log.name).write_text(server.log.read_text(errors="replace"))

    # --- figures ---

    def recoveries(self):
        """{fault: [seconds from its begin until a message sent after it was seen, room by room]}"""
        found = collections.defaultdict(list)
        for name, begin, rooms in self.faults:
            for room in rooms:
                late = [seen - begin for sent, seen in self.timeline.get(room, ()) if sent >= begin]
                if late:
                    found[name].append(min(late))
        return found

    def worst_outage(self):
        """(seconds, room, when): the longest time in which no message of a room was seen."""
        worst = (0.0, "", 0.0)
        for room, seen in self.timeline.items():
            times = sorted(when for _, when in seen)
            for before, after in zip(times, times[1:]):
                worst = max(worst, (after - before, room, before - self.started))
        return worst


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def figures(run, name, problems):
    """Everything there is to say about a run, for the screen and the JSON beside it."""
    callers, counts, info = run._callers(), run.report.counts, run.report.info
    worst = run.worst_outage()
    return {
        "scenario": name, "seed": run.options.seed, "seconds": round(time.time() - run.started, 1), "rooms": len(run.rooms), "instances": len(run.cluster.instances),
        "push": {"confirmed": sum(publisher.confirmed for publisher in run.publishers), "repeated": sum((publisher.result or {}).get("repeated", 0) for publisher in run.publishers),
            "calls": sum(caller.attempts for caller in callers), "ok": sum(caller.ok for caller in callers), "unknown": sum(caller.unknown for caller in callers), "fail": sum(len(caller.refused) for caller in callers)},
        "log": {"rows": info["rows"], "voids": info["voids"], "dead": info["dead"], **{kind: counts[kind] for kind in ("lost", "dup", "altered", "phantom", "holes", "reorder", "both", "epoch_back")}},
        "stream": {"views": run.options.readers + 1 + len(run.coming) + 2, "attaches": info["attaches"], "events": info["events"], "resets": info["resets"], "stale_before_a_leave": info["stale_before_a_leave"], "stale_behind_a_leave": info["stale_behind_a_leave"],
            **{kind: counts[kind] for kind in ("gap", "split", "taken_back", "leak", "missed")}},
        "pull": {"entries": info["pulled"], "differ": counts["pull"]}, "answers": {"wrong": counts["answers"]}, "left_in_queues": info["left_in_queues"],
        "availability": {"worst_room_outage_s": round(worst[0], 2), "at_s": round(worst[2], 1), "longest_stream_gap_s": round(max((to - since for gaps in run.gaps.values() for since, to in gaps), default=0.0), 2)},
        "recovery_s": {fault: {"n": len(values), "p50": round(percentile(values, 0.5), 2), "p99": round(percentile(values, 0.99), 2), "max": round(max(values), 2)} for fault, values in run.recoveries().items()},
        "problems": problems, "passed": not problems,
    }


def show(figures):
    push, log, stream, availability = (figures[name] for name in ("push", "log", "stream", "availability"))
    print(f"""chaos scenario={figures['scenario']} seed={figures['seed']} dur={figures['seconds']} s rooms={figures['rooms']} inst={figures['instances']}
push    confirmed {push['confirmed']}  repeated {push['repeated']}  calls {push['calls']} ok {push['ok']} unknown {push['unknown']} fail {push['fail']}
log     rows {log['rows']}  voids {log['voids']}  dead {log['dead']}  lost {log['lost']}  dup {log['dup']}  altered {log['altered']}  phantom {log['phantom']}  holes {log['holes']}  reorder {log['reorder']}  both {log['both']}  epoch-back {log['epoch_back']}
stream  views {stream['views']} (attaches {stream['attaches']})  events {stream['events']}  gap {stream['gap']}  missed {stream['missed']}  reset {stream['resets']}  split {stream['split']}  taken-back {stream['taken_back']}  leak {stream['leak']}
pull    entries {figures['pull']['entries']}  differ {figures['pull']['differ']}   wrong answers {figures['answers']['wrong']}   left in queues {figures['left_in_queues']}
avail   worst room outage {availability['worst_room_outage_s']} s (@{availability['at_s']} s)   longest gap of a stream {availability['longest_stream_gap_s']} s""")
    for fault, value in figures["recovery_s"].items():
        print(f"recover {fault}: p50 {value['p50']}  p99 {value['p99']}  max {value['max']} s  ({value['n']} rooms)")
    for problem in figures["problems"]:
        print(f"  {problem}")
    print("PASS" if figures["passed"] else "FAIL", flush=True)
