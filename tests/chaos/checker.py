"""
The promises, checked: one checker for every run that lets things fail (docs/protocol.md, "Promises"). It knows nothing of the service's code: it compares what
publishers were told, what readers saw, what Pull says on each instance and what stands in PostgreSQL.

    intents = [Numbered("p1", 60000, rooms), …]        what was confirmed, publisher by publisher
    view = View("reader-1", rooms)                     what one reader saw; view.take(event) for each event, in order
    report = Report()
    check_log(connection, rooms, intents, report)      the tables: each confirmed message once, seq, epochs, times, order of each publisher, contents, dead letters
    check_views(connection, rooms, views, report)      each reader's entries are the log's
    check_pulls(connection, {name: api}, rooms, report)
    report.problems  report.counts                     nothing is wrong when there are no problems

Contents carry their room: content(room, sender, n) makes them, and a byte of another room is found wherever it appears.
"""
import collections
import json
import re

TYPES = ("void", "message", "message.edited", "message.recalled", "message.deleted", "member.joined", "member.left", "room.updated", "room.removed", "member.updated")
MESSAGE, LEFT, JOINED = TYPES.index("message"), TYPES.index("member.left"), TYPES.index("member.joined")
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# What a line of the report counts; 0 of each is what a good run has.
WRONG = ("lost", "dup", "altered", "phantom", "holes", "reorder", "split", "epoch_back", "both", "gap", "taken_back", "leak", "missed", "pull", "answers", "moved")


def content(room, sender, n):
    return f"message {n} of {sender} in {room}"


def uuid_of(message_id):
    """As the database keeps an id of 26 letters."""
    number = 0
    for letter in message_id:
        number = number << 5 | CROCKFORD.index(letter)
    raw = f"{number:032x}"
    return "-".join((raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:]))


def cursor(text):
    epoch, _, seq = str(text).rpartition(":")
    return int(epoch or 0), int(seq)


class Report:
    def __init__(self):
        self.counts, self.problems, self.info = collections.Counter(), [], collections.Counter()

    def wrong(self, kind, text):
        assert kind in WRONG, kind
        self.counts[kind] += 1
        if self.counts[kind] <= 5:
            self.problems.append(f"{kind}: {text}")

    def take(self, problems):
        for kind, text in problems:
            self.wrong(kind, text)


class Numbered:
    """A publisher's numbers: message n goes to room n modulo rooms, with client_msg_id "<sender>-<n>", all below `count` are confirmed."""

    def __init__(self, sender, count, rooms):
        self.sender, self.count, self.rooms = sender, count, list(rooms)

    def numbers(self, room):
        if room not in self.rooms:
            return range(0)
        return range(self.rooms.index(room), self.count, len(self.rooms))

    def confirmed(self, room):
        return [(n, None) for n in self.numbers(room)]


class Told:
    """What one sender was told by history/Push, call after call: (n, seq or None). A call that failed for good may have happened."""

    def __init__(self, sender):
        self.sender, self.answers = sender, collections.defaultdict(list)

    def add(self, room, n, seq=None):
        self.answers[room].append((n, seq))

    def confirmed(self, room):
        return self.answers[room]


# --- what a reader sees ---


class Segment:
    """Entries without a hole: entries[i] stands at seq first + i; each is (epoch, type, message id or None)."""

    def __init__(self, first):
        self.first, self.entries, self.open = first, [], True

    @property
    def next(self):
        return self.first + len(self.entries)


class View:
    """
    What one reader has, by the rules of the protocol: it goes on at its cursors, takes back at a reset, forgets at a void. What breaks a promise at once is noted;
    whether it is the log is asked at the end.

    rooms: those it may see, None for a stranger who may see none. deliver: "early" or "durable". comes_and_goes: rooms the account is taken out of and let in again;
    there it may begin anew behind its cursor.
    """

    def __init__(self, name, rooms, deliver="early", comes_and_goes=()):
        self.name, self.rooms, self.deliver, self.comes_and_goes = name, set(rooms or ()), deliver, set(comes_and_goes)
        self.segments = {room: [Segment(1)] for room in self.rooms - self.comes_and_goes}
        self.durable, self.problems = collections.Counter(), []
        self.shown = {}  # (room, epoch, seq) -> message id: also of what was taken back
        self.events = self.resets = self.attaches = self.voids = 0
        self.on_message = None  # (event)
        self.arrivals = collections.defaultdict(list)  # rooms that come and go: (epoch, seq, when)
        self.fresh = set(self.comes_and_goes)  # rooms that may begin without a word: a stream that was just opened begins them at their head
        self.story = collections.defaultdict(lambda: collections.deque(maxlen=1000))  # what led to where a room is, for people

    def wrong(self, kind, text):
        if len(self.problems) < 20:
            self.problems.append((kind, f"{self.name}: {text}"))

    def told(self, room, around=None):
        """The story, shortened to what is no plain entry, and what stands beside it."""
        story = list(self.story.get(room, ()))
        keep = [any(not re.fullmatch(r"\d+:\d+", word) or word.endswith(f":{around}") for word in story[max(0, n - 1) : n + 2]) for n in range(len(story))]
        return ", ".join(word for word, kept in zip(story, keep) if kept)

    def at(self, room):
        segments = self.segments.get(room)
        return segments[-1] if segments and segments[-1].open else None

    def cursors(self):
        """{room: "epoch:seq"} to come back with."""
        found = {}
        for room in self.segments:
            segment = self.at(room)
            if segment:
                found[room] = f"{segment.entries[-1][0]}:{segment.next - 1}" if segment.entries else f"0:{segment.first - 1}"
        return found

    def positions(self):
        return [f"{room}@{at}" for room, at in self.cursors().items()]

    def attached(self):
        """A new connection: what comes now begins where hello says."""
        self.attaches += 1
        self.fresh = {room for room in self.comes_and_goes if not self.at(room)}
        for room in self.segments:
            self.story[room].append(f"comes with {self.cursors().get(room)}")

    def take(self, event, now=0.0):
        kind, room = event["type"], event.get("room_id")
        if room is not None and room not in self.rooms:
            self.wrong("leak", f"{kind} of {room}, a room of others")
            return
        if kind == "hello":
            for one in event["rooms"]:
                self._begin(one, "hello")
        elif kind == "room.entered":
            self._begin(event, kind)
        elif kind == "room.left":
            if room not in self.comes_and_goes:
                self.wrong("missed", f"told to have left {room}")
            self.fresh.discard(room)
            self.story[room].append("left")
            if self.at(room):
                self.at(room).open = False
        elif kind == "durable":
            self._mark(room, event["seq"])
        elif kind == "ping":
            for one in event.get("heads", ()):
                self._known(one) and self._mark(one["room_id"], one["durable_seq"])
        elif kind == "reset":
            self._reset(room, event)
        elif "seq" in event and "epoch" in event:
            self._entry(room, event, now)

    def _known(self, one):
        if one["room_id"] in self.rooms:
            return True
        self.wrong("leak", f"the head of {one['room_id']}, a room of others")
        return False

    def _mark(self, room, seq):
        self.durable[room] = max(self.durable[room], seq)

    def _begin(self, one, kind):
        if not self._known(one):
            return
        room, first = one["room_id"], cursor(one["from"])[1] + 1
        self.story[room].append(f"{kind} from {one['from']} head {one['head']}")
        segment = self.at(room)
        # Where the stream begins below what is here, a reset follows: the mark speaks of other entries than those.
        self._mark(room, min(one["durable_seq"], first - 1) if segment and first < segment.next else one["durable_seq"])
        if segment is None:
            self.segments.setdefault(room, []).append(Segment(first))
        elif first > segment.next:
            if room in self.comes_and_goes:
                segment.open = False
                self.segments[room].append(Segment(first))
            else:
                self.wrong("gap", f"{kind} begins {room} at {first}, {segment.next} was to come")

    def _reset(self, room, event):
        self.resets += 1
        segment = self.at(room)
        self.story[room].append(f"reset {event['epoch']}:{event['seq']}")
        if self.deliver == "durable":
            self.wrong("taken_back", f"reset of {room} on a durable stream")
        if event["seq"] < self.durable[room]:
            self.wrong("taken_back", f"reset of {room} to {event['seq']}, durable up to {self.durable[room]}; {self.told(room)}")
        if segment:
            del segment.entries[max(0, event["seq"] + 1 - segment.first) :]

    def _entry(self, room, event, now):
        segment, seq, kind = self.at(room), event["seq"], event["type"]
        self.events += 1
        self.story[room].append(f"{event['epoch']}:{seq}{'' if kind == 'message' else ' ' + kind}")
        if segment is None and room in self.fresh:
            segment = Segment(seq)
            self.segments.setdefault(room, []).append(segment)
        if segment is None:
            self.wrong("leak", f"seq {seq} of {room}, which it is not in; {self.told(room)}")
            return
        if kind == "void" and seq < segment.next:
            self._void(room, segment, event)
            return
        if seq != segment.next:
            self.wrong("gap", f"{room}: seq {seq} after {segment.next - 1}; {self.told(room)}")
            if seq < segment.next:
                return
            segment.entries += [(0, "nothing", None)] * (seq - segment.next)
        message_id = event["message_id"] if kind == "message" else None  # of edits and the like it is their target's
        if message_id and self.shown.setdefault((room, event["epoch"], seq), message_id) != message_id:
            self.wrong("split", f"{room} {event['epoch']}:{seq} was {self.shown[room, event['epoch'], seq]} and is {message_id}")
        segment.entries.append((event["epoch"], kind, message_id))
        if room in self.comes_and_goes:
            self.arrivals[room].append((event["epoch"], seq, now))
        if kind == "message":
            self._message(room, event)

    def _void(self, room, segment, event):
        self.voids += 1
        seq = event["seq"]
        if seq < segment.first or segment.entries[seq - segment.first][1] == "void":
            return  # it comes back just above one, and is told once more
        if self.deliver == "durable" or seq <= self.durable[room]:
            self.wrong("taken_back", f"void over {room} seq {seq}, durable up to {self.durable[room]}")
        segment.entries[seq - segment.first] = (event["epoch"], "void", None)

    def _message(self, room, event):
        body = event.get("content")
        if isinstance(body, dict) and event["kind"] == "text":
            sender, _, n = event["client_msg_id"].rpartition("-")
            if body.get("body") != content(room, sender, n) and event.get("state") != "edited":
                self.wrong("leak" if " in " in str(body.get("body")) and not body["body"].endswith(room) else "altered", f"{room} seq {event['seq']} says {body}")
        if self.on_message:
            self.on_message(event)


# --- what stands in the database ---

ROWS = """select l.seq, l.epoch, l.at, l.type, l.state, l.message_id::text, l.sender, l.client_msg_id, l.content
    from log_entry l join room r using (room_no) where r.room_id = %s order by l.seq"""
Row = collections.namedtuple("Row", "seq epoch at type state message_id sender client_msg_id content")


def rows_of(connection, room):
    with connection.cursor() as at:
        at.execute(ROWS, (room,))
        return [Row(*row) for row in at.fetchall()]


def check_log(connection, rooms, intents, report, others=()):
    """others: senders whose messages may be in the log or not (they are told no): no phantoms."""
    dead = dead_letters(connection)
    intents = list(intents)
    for room in rooms:
        rows = rows_of(connection, room)
        with connection.cursor() as at:
            at.execute("select last_seq from room_head join room using (room_no) where room_id = %s", (room,))
            head = at.fetchone()[0]
        report.info["rows"] += len(rows)
        report.info["voids"] += sum(row.type == 0 for row in rows)
        check_room(room, rows, head, report)
        places = check_places(room, rows, {intent.sender for intent in intents}, set(others), report)
        for intent in intents:
            check_intent(room, intent, places.get(intent.sender, {}), dead, report)
    report.info["dead"] = len(dead)


def dead_letters(connection):
    """{(room, client_msg_id): reason} of the outbox."""
    with connection.cursor() as at:
        at.execute("select room_id, reason, body from outbox")
        found = {}
        for room, reason, body in at.fetchall():
            try:
                said = json.loads(bytes(body))
                found[room, said.get("client_msg_id") or said.get("op_id")] = reason
            except ValueError:
                found[room, bytes(body)] = reason
        return found


def check_room(room, rows, head, report):
    """Seq is 1, 2, 3 … up to the head; epochs and times do not fall; an id is there once."""
    ids = collections.Counter(row.message_id for row in rows if row.message_id)
    for one, times in ids.items():
        if times > 1:
            report.wrong("dup", f"{room}: {one} {times} times")
    if [row.seq for row in rows] != list(range(1, len(rows) + 1)) or head != len(rows):
        report.wrong("holes", f"{room}: {len(rows)} entries, the last is {rows[-1].seq if rows else 0}, the head says {head}")
    for before, after in zip(rows, rows[1:]):
        if after.epoch < before.epoch or after.at < before.at:
            report.wrong("epoch_back", f"{room} seq {after.seq}: epoch {before.epoch} → {after.epoch}, at {before.at} → {after.at}")


def check_places(room, rows, senders, others, report):
    """{sender: {n: seq}}; contents are what was sent, and nobody sent what is not known."""
    places = collections.defaultdict(dict)
    for row in rows:
        if row.type != MESSAGE:
            continue
        sender, _, n = row.client_msg_id.rpartition("-")
        if row.sender not in senders and row.sender not in others or sender != row.sender or not n.isdigit():
            report.wrong("phantom", f"{room} seq {row.seq}: {row.sender} {row.client_msg_id}")
            continue
        if int(n) in places[sender]:
            report.wrong("dup", f"{room}: {row.client_msg_id} at {places[sender][int(n)]} and {row.seq}")
        places[sender][int(n)] = row.seq
        if row.state == 0 and json.loads(row.content) != {"body": content(room, sender, n)}:
            report.wrong("altered", f"{room} seq {row.seq}: {row.content[:100]}")
    return places


def check_intent(room, intent, places, dead, report):
    last = 0
    for n, seq in intent.confirmed(room):
        place, reason = places.get(n), dead.get((room, f"{intent.sender}-{n}"))
        if place is None and reason is None:
            report.wrong("lost", f"{room}: {intent.sender}-{n} was confirmed")
        elif place is not None and reason is not None:
            report.wrong("both", f"{room}: {intent.sender}-{n} is at seq {place} and a dead letter, {reason}")
        elif place is None:
            report.wrong("lost", f"{room}: {intent.sender}-{n} is a dead letter, {reason}")
        if place is not None:
            if place < last:
                report.wrong("reorder", f"{room}: {intent.sender}-{n} at seq {place}, what was sent before it at {last}")
            last = place
            if seq is not None and seq != place:
                report.wrong("answers", f"{room}: {intent.sender}-{n} was told seq {seq} and is at {place}")
    for n in places:
        if isinstance(intent, Numbered) and n not in intent.numbers(room):
            report.wrong("phantom", f"{room}: {intent.sender}-{n} was never confirmed")


# --- readers against the log ---


def check_views(connection, rooms, views, report, complete=True):
    """complete: each open view of a room must have reached its end."""
    for view in views:
        report.take(view.problems)
        for name in ("events", "resets", "attaches", "voids"):
            report.info[name] += getattr(view, name)
    for room in rooms:
        mine = [view for view in views if view.segments.get(room)]
        if not mine:
            continue
        rows = rows_of(connection, room)
        log = [None] + [(row.epoch, TYPES[row.type], row.message_id) for row in rows]
        check_split(room, mine, report)
        for view in mine:
            for segment in view.segments[room]:
                check_segment(room, view, segment, log, complete, report)
            if view.durable[room] > len(rows):
                report.wrong("taken_back", f"{view.name}: durable up to {view.durable[room]} in {room}, the log has {len(rows)}")


def check_split(room, views, report):
    """One place in one epoch is one message for everybody, also where it was taken back later."""
    everybody = {}
    for view in views:
        for key, message_id in view.shown.items():
            if key[0] == room and everybody.setdefault(key, (message_id, view.name))[0] != message_id:
                report.wrong("split", f"{room} {key[1]}:{key[2]} is {message_id} for {view.name}, {everybody[key][0]} for {everybody[key][1]}")


def check_segment(room, view, segment, log, complete, report):
    for seq, (epoch, kind, message_id) in enumerate(segment.entries, segment.first):
        stored = log[seq] if seq < len(log) else None
        if stored and stored[:2] == (epoch, kind) and (kind != "message" or stored[2] == uuid_of(message_id)):
            continue
        newest = max(entry[0] for entry in segment.entries[seq - segment.first :])
        if stored and not segment.open and room in view.comes_and_goes and stored[0] > newest:
            # Shown early and taken back; it was out of the room before it could be told, for nothing of the new epoch reached it.
            report.info["stale_before_a_leave"] += 1
            break
        report.wrong("gap", f"{view.name}: {room} seq {seq} is {epoch} {kind} {message_id}, the log has {stored}; {view.told(room, seq)}")
        break
    if complete and segment.open and segment.next != len(log):
        report.wrong("missed", f"{view.name}: has {room} up to {segment.next - 1}, the log ends at {len(log) - 1}")


def check_membership(connection, room, account, view, gone, member, report, grace_s=3.0):
    """In a room whose members see only what is said while they are in it: nothing that stands between a leave and the next join was shown to it. What was shown early under an
    epoch before the leave's may have stood there; that ends within the grace after the leave was answered. gone: when each call that took it out was answered; member: what the
    last call left, None when that is not known."""
    changes = [(row.seq, row.epoch, row.type) for row in rows_of(connection, room) if row.type in (JOINED, LEFT) and f'"{account}"' in row.content]
    leaves = [seq for seq, _, kind in changes if kind == LEFT]
    if len(leaves) not in (len(gone), len(gone) + (member is None)):
        report.wrong("answers", f"{account} was told {len(gone)} times that it is out of {room}, the log says so {len(leaves)} times")
        return
    with connection.cursor() as at:
        at.execute("select count(*) from room_member join room using (room_no) where room_id = %s and account = %s", (room, account))
        if member is not None and bool(at.fetchone()[0]) != member:
            report.wrong("answers", f"{account} is {'not ' if member else ''}a member of {room}, the last call said otherwise")
    answered = dict(zip(leaves, gone))
    for number, (left, epoch, kind) in enumerate(changes):
        if kind == LEFT:
            back = changes[number + 1][0] if number + 1 < len(changes) else 1 << 62
            check_away(room, view, (epoch, left), back, answered.get(left, 1e12) + grace_s, report)


def check_away(room, view, left, back, until, report):
    for epoch, seq, when in view.arrivals[room]:
        if not left[1] < seq < back:
            continue
        if epoch >= left[0] or when > until:
            report.wrong("leak", f"{view.name}: {room} {epoch}:{seq} although it left at {left[0]}:{left[1]}, {when - until:.2f} s after the time for that; {view.told(room, seq)}")
        else:
            report.info["stale_behind_a_leave"] += 1


def check_acts(connection, acts, report):
    """acts: (room, seq told, type, target's seq): they stand there."""
    for room, seq, kind, target in acts:
        with connection.cursor() as at:
            at.execute("select l.type, l.content from log_entry l join room using (room_no) where room_id = %s and seq = %s", (room, seq))
            row = at.fetchone()
        if row is None or TYPES[row[0]] != kind or json.loads("{" + row[1] + "}").get("target_seq") != target:
            report.wrong("answers", f"{room} seq {seq} should be {kind} of {target} and is {row}")


# --- Pull ---


def check_pulls(connection, apis, rooms, report):
    """Every instance's Pull, from the beginning, is what stands in the database."""
    for room in rooms:
        log = [(row.seq, row.epoch, TYPES[row.type], row.message_id if row.type == MESSAGE else None) for row in rows_of(connection, room)]
        for name, api in apis.items():
            pulled = [(one["seq"], one["epoch"], one["type"], uuid_of(one["message_id"]) if one["type"] == "message" else None) for one in api.pull_all(room)]
            report.info["pulled"] += len(pulled)
            if pulled != log:
                differs = next((n for n, pair in enumerate(zip(pulled, log)) if pair[0] != pair[1]), min(len(pulled), len(log)))
                report.wrong("pull", f"{name}: {room} has {len(pulled)} entries in Pull and {len(log)} in the database; they part at {pulled[differs:differs + 1]} / {log[differs:differs + 1]}")


BAD_LOG = re.compile(r"ERROR: (Address|Leak|Undefined)\w*Sanitizer|: runtime error: |Assertion .* failed|DEADLYSIGNAL")


def check_text(name, text, secrets, report):
    """What an instance wrote: no sanitizer, no failed assertion, no secret."""
    if found := BAD_LOG.search(text):
        report.wrong("answers", f"{name} wrote: {text[found.start():found.start() + 200]}")
    for secret in secrets:
        if secret in text:
            report.wrong("leak", f"{name} wrote a secret to its log")
