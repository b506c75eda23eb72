"""
Two at once: whoever comes first, everybody agrees on what happened. Each race is run ROUNDS times.
"""
import random
import threading
import time

import roomd

ROUNDS = 100


class Pair:
    """Two callers, each with a connection of its own, that begin at the same moment."""

    def __init__(self, api):
        self.apis = [roomd.Api(api.url, api.key) for _ in range(2)]
        self.seconds = [0, 0]  # what each took the last time

    def at_once(self, *calls, after=0):
        """calls: (method, body) for each. [(answer of a 200 or None, "ok" or the code)]; after: seconds that the second one comes later"""
        results, start = [None, None], threading.Barrier(2)

        def run(index):
            start.wait(roomd.DEADLINE)
            begin = time.monotonic() + after * index
            roomd.wait_for(lambda: time.monotonic() >= begin, every=0.0005)
            method, body = calls[index]
            status, answer = self.apis[index].call(method, body)
            self.seconds[index] = time.monotonic() - begin
            results[index] = (answer, "ok") if status == 200 else (None, answer["error"]["code"])

        threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(2)]
        order = random.sample(threads, 2)
        for thread in order:
            thread.start()
        for thread in order:
            thread.join(roomd.DEADLINE)
        assert all(results), "a call does not end"
        return results


def begin(cluster):
    """(a room of alice and bob, its owner's Api, two callers to it): other instances hear of an answer later, and nothing would race."""
    room = cluster.api.create_room("alice", "bob")["room_id"]
    api = cluster.owner_of(room).api
    return room, api, Pair(api)


def say(api, room, content="first", **fields):
    return api.push(room, "alice", content, wait="durable", **fields)["seq"]


def entry_at(api, room, seq):
    return api.pull(room, before=seq + 1, limit=1)["entries"][0]


def changes(api, room, seq):
    """What was done to a message, in order: [(type, content)]"""
    return [(entry["type"], entry.get("content")) for entry in api.pull_all(room) if entry.get("target_seq") == seq]


def visible(events, seq):
    """(state, content) of a message for who read these events; nothing may be shown of it after it was taken back."""
    state, content = None, None
    for event in events:
        if event["type"] == "message" and event["seq"] == seq:
            state, content = event.get("state"), event.get("content")
        elif event.get("target_seq") == seq:
            assert state not in ("recalled", "deleted"), f"{event} after it was {state}"
            state, content = event["type"].partition(".")[2], event.get("content")
            assert event["type"] == "message.edited" or content is None, event
    return state, content


def test_an_edit_and_a_recall_at_once_never_leave_content(cluster):
    room, api, pair = begin(cluster)
    streams = [cluster.open_stream("bob", [room], deliver=deliver) for deliver in ("early", "durable")]
    seqs, seen = [], set()
    for number in range(ROUNDS):
        seq = say(api, room)
        (edited, edit), (recalled, recall) = pair.at_once(
            ("history/Edit", {"room_id": room, "seq": seq, "account_id": "alice", "content": f"second {number}"}),
            ("history/Recall", {"room_id": room, "seq": seq, "account_id": "alice"}))
        assert recall == "ok" and edit in ("ok", "conflict")
        assert edit != "ok" or edited["seq"] < recalled["seq"]
        seqs.append((seq, recalled["seq"], edit))
        seen.add(edit)
    for seq, recalled, edit in seqs:
        entry = entry_at(api, room, seq)
        assert entry["state"] == "recalled" and "content" not in entry
    by_target = {}
    for entry in api.pull_all(room):
        by_target.setdefault(entry.get("target_seq"), []).append(entry)
    for seq, recalled, edit in seqs:
        assert [entry["type"] for entry in by_target[seq]] == ["message.edited"] * (edit == "ok") + ["message.recalled"]
        assert not any("content" in entry for entry in by_target[seq])
    for stream in streams:
        stream.read_seq(room, max(recalled for _, recalled, _ in seqs))
        events = stream.log_events(room)
        assert all(visible(events, seq) == ("recalled", None) for seq, _, _ in seqs)
    assert not any("second" in str(row) for row in cluster.rows(
        "select content, meta from log_entry join room using (room_no) where room_id = %s", room))
    assert seen == {"ok", "conflict"}, "the race always ends the same"


def test_two_edits_at_once_end_the_same_everywhere(cluster):
    room, api, pair = begin(cluster)
    streams = [cluster.open_stream("bob", [room], deliver=deliver) for deliver in ("early", "durable")]
    wanted, last = {}, set()
    for number in range(ROUNDS):
        seq = say(api, room)
        (one, first), (other, second) = pair.at_once(
            *(("history/Edit", {"room_id": room, "seq": seq, "account_id": "alice", "content": f"{number} {who}"}) for who in "ab"))
        assert (first, second) == ("ok", "ok") and one["seq"] != other["seq"]
        wanted[seq] = f"{number} {'a' if one['seq'] > other['seq'] else 'b'}"
        last.add(wanted[seq][-1])
    entries = api.pull_all(room)
    shown = {entry["seq"]: (entry.get("state"), entry["content"]) for entry in entries if entry["type"] == "message"}
    assert shown == {seq: ("edited", content) for seq, content in wanted.items()}
    for stream in streams:
        events = stream.read_seq(room, entries[-1]["seq"]).log_events(room)
        for seq, content in wanted.items():
            assert visible(events, seq) == ("edited", content)
    assert last == {"a", "b"}, "the race always ends the same"


def test_a_recall_at_the_edge_of_its_window_is_answered_as_it_is_done(new_cluster):
    window_ms, callers = 800, 10  # long enough for a slow machine to get there in time
    cluster = new_cluster(settings={"recall_window_ms": window_ms})
    room = cluster.api.create_room(*(f"s{number}" for number in range(callers)))["room_id"]
    answers, errors = [], []
    lead_ms = [10]  # a call that leaves so long before the window ends comes about when it ends: what was answered tells

    def work(number):
        api, account = roomd.Api(cluster.api.url, cluster.api.key), f"s{number}"
        try:
            for _ in range(ROUNDS // callers):
                seq = api.push(room, account, "now or never", wait="durable")["seq"]
                edge = (entry_at(api, room, seq)["at"] + window_ms - lead_ms[0] + random.uniform(-20, 20)) / 1000
                roomd.wait_for(lambda: time.time() >= edge, every=0.002)
                status, answer = api.call("history/Recall", room_id=room, seq=seq, account_id=account)
                answers.append((seq, "ok" if status == 200 else answer["error"]["code"]))
                lead_ms[0] += -10 if status == 200 else 10
        except Exception as error:  # the test reports it
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors and len(answers) == ROUNDS, errors
    entries = {entry["seq"]: entry for entry in cluster.api.pull_all(room)}
    for seq, answer in answers:
        recalls = [entry for entry in entries.values() if entry["type"] == "message.recalled" and entry["target_seq"] == seq]
        assert answer in ("ok", "too_late")
        assert (answer == "ok") == (entries[seq].get("state") == "recalled") == ("content" not in entries[seq]) == (len(recalls) == 1)
    assert {answer for _, answer in answers} == {"ok", "too_late"}, "never at the edge"


def test_who_is_removed_while_it_sends_is_heard_before_it_leaves_or_not_at_all(cluster):
    room, api, pair = begin(cluster)
    ends = set()
    for number in range(ROUNDS):
        (said, push), (_, remove) = pair.at_once(
            ("history/Push", {"room_id": room, "sender": "alice", "kind": "text", "content": f"last words {number}", "wait": "durable"}),
            ("room/RmAccountFromRoom", {"room_id": room, "account_id": "alice"}))
        assert remove == "ok" and push in ("ok", "not_member")
        newest = api.pull(room, limit=3)["entries"]
        left = [entry["seq"] for entry in newest if entry["type"] == "member.left"][-1]
        heard = [entry["seq"] for entry in newest if entry.get("content") == f"last words {number}"]
        assert heard == ([said["seq"]] if push == "ok" else [])
        assert push != "ok" or said["seq"] < left
        ends.add(push)
        api.ok("room/AddAccount2Room", room_id=room, account_id="alice")
    assert "ok" in ends


def test_a_mark_beside_a_new_message_is_answered_with_what_is_unread_then(new_cluster):
    cluster = new_cluster(settings={"mark_flush_ms": 10})
    room, api, pair = begin(cluster)
    answers, rows = set(), cluster.connect().cursor()
    for number in range(ROUNDS):
        ahead = number % 2  # marks the message that is just being sent
        before = say(api, room)
        (said, push), (marked, mark) = pair.at_once(
            ("history/Push", {"room_id": room, "sender": "alice", "kind": "text", "content": "more", "wait": "durable"}),
            ("history/MarkRead", {"room_id": room, "account_id": "bob", "read_seq": before + ahead}),
            after=random.choice((0, 1, 1)) * random.uniform(0, 2) * pair.seconds[0])  # at once, at any moment of the push, behind it
        assert push == "ok" and said["seq"] == before + 1
        assert mark == "ok" or (ahead and mark == "bad_request")
        if mark == "ok":
            assert marked["read_seq"] == before + ahead
            assert marked["unread"] in ((0,) if ahead else (0, 1))
            answers.add(marked["unread"])
        now = api.ok("history/Unread", account_id="bob", room_ids=[room])["rooms"][0]
        assert now["head_seq"] == said["seq"] and now["read_seq"] <= now["head_seq"]
        read_seq = marked["read_seq"] if mark == "ok" else now["read_seq"]
        assert now["read_seq"] == read_seq
        assert now["unread"] == brute_unread(rows, room, "bob", read_seq)
    assert answers == {0, 1}, answers


def brute_unread(rows, room, account, read_seq):
    rows.execute("select count(*) from log_entry e join room r using (room_no) where r.room_id = %s and e.seq > %s and e.type = 1 and e.state < 2"
        " and e.kind <> 'tip' and e.sender <> %s", (room, read_seq, account))
    return rows.fetchone()[0]
