"""The demo page, driven in Chromium by two people: what they do, what they see of each other, and what stays when an instance dies."""
import base64
import contextlib
import io
import json
import math
import os
import pathlib
import re
import struct
import wave
import zlib

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

import roomd
from chromium import start_chromium
from gateway import WEB, BaseService, Gateway
SHOTS = os.environ.get("ROOMD_TEST_SHOTS")  # a folder: pictures of every step go there


def wait_for(condition, deadline=40, what=None):
    """Longer than elsewhere: two browsers work on it, and a page that lost its service comes back after up to 20 s."""
    return roomd.wait_for(condition, deadline, what=what)


def png(width, height):
    """A picture that is easy to see."""
    rows = b"".join(b"\0" + b"".join(bytes((x * 255 // width, y * 255 // height, 140)) for x in range(width)) for y in range(height))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tone(seconds):
    """A WAV that one would hear."""
    out = io.BytesIO()
    with wave.open(out, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(b"".join(struct.pack("<h", round(9000 * math.sin(n * 2 * math.pi * 440 / 8000))) for n in range(round(8000 * seconds))))
    return out.getvalue()


def film(driver):
    """A short WebM, drawn and recorded by the browser itself."""
    driver.set_script_timeout(60)
    return base64.b64decode(driver.execute_async_script("""const done = arguments[0], canvas = Object.assign(document.createElement('canvas'), {width: 160, height: 120});
        const pen = canvas.getContext('2d'), pieces = [], recorder = new MediaRecorder(canvas.captureStream(20), {mimeType: 'video/webm;codecs=vp8'});
        let turn = 0;
        const drawing = setInterval(() => { // so many pictures, however long it takes
            pen.fillStyle = `hsl(${turn * 12} 70% 45%)`;
            pen.fillRect(0, 0, 160, 120);
            pen.fillStyle = 'white';
            pen.fillRect(10 + 4 * turn++, 50, 24, 24);
            if (turn === 24) {
                clearInterval(drawing);
                recorder.stop();
            }
        }, 50);
        recorder.ondataavailable = ({data}) => pieces.push(data);
        recorder.onstop = () => { const reader = new FileReader(); reader.onload = () => done(reader.result.split(',')[1]); reader.readAsDataURL(new Blob(pieces)); };
        recorder.start();"""))


@pytest.fixture(scope="module")
def drivers(tmp_path_factory):
    made = [start_chromium(tmp_path_factory.mktemp(account), "--window-size=1100,760", "--lang=en") for account in ("alice", "bob")]
    yield made
    for driver in made:
        driver.quit()


@pytest.fixture
def site(request, new_cluster):
    """(cluster, gateway)"""
    cluster = new_cluster(getattr(request, "param", 1))
    base = BaseService(cluster)
    gateway = Gateway(cluster, base)
    yield cluster, gateway
    for one in (gateway, base):
        one.check()
        one.stop()
        one.check()


class Person:
    """What somebody does at the page, by mouse and keyboard, and what stands there."""

    def __init__(self, driver, gateway, account):
        self.driver, self.gateway, self.account = driver, gateway, account
        driver.delete_all_cookies()
        driver.get(gateway.url + "/")
        driver.delete_all_cookies()
        driver.execute_script("localStorage.clear()")
        driver.get("about:blank")
        driver.get_log("browser")  # what the test before has left
        driver.get(gateway.url + "/")
        wait_for(lambda: self.visible("#login"))
        self.find("[name=account]").send_keys(account)
        self.find("[name=password]").send_keys(f"pw-{account}", Keys.ENTER)
        wait_for(lambda: self.visible("#app") and self.text("#connection") == "connected", what=lambda: self.driver.get_log("browser"))

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0])?.innerText.trim() ?? ''", selector)

    def texts(self, selector):
        return self.run("return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText.trim())", selector)

    def visible(self, selector):
        return self.run("const one = document.querySelector(arguments[0]); return !!one && one.getClientRects().length > 0", selector)

    def said(self):
        """The texts of the bubbles, in their order on the screen."""
        return self.texts("#messages .bubble .body")

    def sees(self, text):
        wait_for(lambda: text in self.said(), what=lambda: f"{self.account} sees {self.said()[-6:]}, not {text}; {self.text('#toast')}")

    def write(self, text):
        self.find("#text").send_keys(text, Keys.ENTER)

    # One script finds and does: between two commands the page may have drawn the element anew.

    def click(self, selector, text=""):
        """The last of those that hold the text."""
        wait_for(lambda: self.run("""const one = [...document.querySelectorAll(arguments[0])].findLast((one) => one.innerText.includes(arguments[1]));
            one?.click(); return !!one""", selector, text), what=lambda: f"{selector} with {text!r}: {self.texts(selector)}")

    def bubble(self, text):
        """What stands in the bubble."""
        return wait_for(lambda: [one for one in self.texts("#messages .bubble") if text in one], what=lambda: self.texts("#messages .bubble"))[-1]

    def menu(self, text, item):
        """Opened until it offers that: of an own message most is offered once it has come back, and the other may see it before."""
        wait_for(lambda: self.run("""const one = [...document.querySelectorAll('#messages .bubble')].findLast((one) => one.querySelector('.body').innerText.includes(arguments[0]));
            const {left, top} = one?.getBoundingClientRect() ?? {};
            one?.dispatchEvent(new MouseEvent('contextmenu', {bubbles: true, cancelable: true, clientX: left + 20, clientY: top + 10}));
            return !!one && !!document.querySelector(`#menu [data-do=${arguments[1]}]`)""", text, item) and self.visible("#menu"), what=lambda: (self.texts("#messages .bubble"), self.texts("#menu li")))
        self.find(f"#menu [data-do={item}]").click()

    def open_room(self, title):
        wait_for(lambda: any(title in text for text in self.texts(".conversation b")), what=lambda: self.texts(".conversation"))
        self.run("[...document.querySelectorAll('.conversation')].find((one) => one.querySelector('b').innerText === arguments[0])?.click()", title)
        wait_for(lambda: self.text("#room-name") == title)

    def new_chat(self, *people, name=None):
        self.find("#new-chat").click()
        if name:
            self.find("#dialog [data-name]").send_keys(name)
        for account in people:
            self.click(f"#dialog input[value={account}]")
        self.shot("new-chat")
        before = self.run("return location.hash")
        self.find("#dialog-ok").click()
        wait_for(lambda: self.visible("#chat") and self.run("return location.hash") != before)

    def badge(self, title):
        return self.run("""for (const one of document.querySelectorAll('.conversation'))
            if (one.querySelector('b').innerText === arguments[0])
                return [...one.querySelectorAll('.badge')].map((badge) => badge.innerText).join('')""", title)

    def wait_still(self, selector):
        """Until it stays where it is: films and pictures take their place when they are known, and then it is scrolled."""
        self.driver.set_script_timeout(60)
        wait_for(lambda: self.driver.execute_async_script("""const [selector, done] = arguments, at = () => JSON.stringify(document.querySelector(selector)?.getBoundingClientRect()), before = at();
            let frames = 0;
            requestAnimationFrame(function next() { ++frames < 5 ? requestAnimationFrame(next) : done(before !== undefined && before === at()) })""", selector))

    def press(self, *keys):
        """On the keyboard, wherever the focus is."""
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def focus(self):
        return self.run("const one = document.activeElement; return one.id || one.dataset.do || one.getAttribute('role') || one.className || one.tagName")

    def shot(self, name):
        if SHOTS:
            pathlib.Path(SHOTS).mkdir(exist_ok=True)
            self.driver.save_screenshot(f"{SHOTS}/{self.account}-{name}.png")

    def complaints(self):
        return [line for line in self.driver.get_log("browser") if line["level"] == "SEVERE" and "favicon" not in line["message"]
            and "401" not in line["message"]]  # 401: it asks who it is before anybody has logged in


@pytest.fixture
def people(site, drivers):
    _, gateway = site
    return Person(drivers[0], gateway, "alice"), Person(drivers[1], gateway, "bob")


@pytest.mark.deadline(180)
def test_two_people_chat(site, people, tmp_path):
    alice, bob = people
    # A direct chat, begun by one, seen by the other with what is unread; read and typing marks.
    alice.new_chat("bob")
    wait_for(lambda: alice.text("#room-name") == "Bob")
    alice.write("Hello Bob, how are you?")
    wait_for(lambda: bob.badge("Alice") == "1", what=lambda: (bob.texts(".conversation"), bob.text("#toast"), bob.text("#connection"), bob.driver.get_log("browser"), site[1].user("bob").get("rooms")))
    bob.shot("unread")
    bob.open_room("Alice")
    bob.sees("Hello Bob, how are you?")
    wait_for(lambda: not bob.badge("Alice"))
    wait_for(lambda: "✓✓" in alice.bubble("Hello Bob"))
    bob.find("#text").send_keys("I am fi")
    wait_for(lambda: "Bob is typing" in alice.text("#typing"))
    alice.shot("typing")
    bob.find("#text").send_keys("ne, thanks.", Keys.ENTER)
    alice.sees("I am fine, thanks.")

    # A picture, shown to both.
    picture = tmp_path / "sunset.png"
    picture.write_bytes(png(240, 160))
    alice.find("#file").send_keys(str(picture))
    for one in (alice, bob):
        wait_for(lambda one=one: one.run("const picture = document.querySelector('img.picture'); return picture?.complete && picture.naturalWidth === 240"),
            what=lambda one=one: (one.complaints(), one.text("#toast")))
    document = tmp_path / "计划.txt"
    document.write_text("the plan")
    alice.find("#file").send_keys(str(document))
    wait_for(lambda: bob.texts(".file b") == ["计划.txt"])

    # Quote, edit, recall.
    bob.menu("Hello Bob", "reply")
    bob.write("as always")
    wait_for(lambda: "Alice: Hello Bob, how are you?" in alice.text(".quote"))
    alice.menu("Hello Bob", "edit")
    alice.find("#text").send_keys(" (edited later)", Keys.ENTER)
    wait_for(lambda: "(edited later)" in alice.text(".quote"))
    bob.sees("Hello Bob, how are you? (edited later)")
    wait_for(lambda: "edited" in bob.bubble("(edited later)"))
    bob.menu("I am fine", "recall")
    wait_for(lambda: any("recalled a message" in text for text in alice.said()))
    alice.shot("direct")
    bob.shot("direct")

    # A group with a mention; a forward into it.
    alice.new_chat("bob", "carol", name="开发群")
    alice.find("#text").send_keys("@Bo")
    wait_for(lambda: alice.visible("#mentions"))
    alice.find("#text").send_keys(Keys.ENTER)
    alice.find("#text").send_keys("please look", Keys.ENTER)
    wait_for(lambda: "@" in (bob.badge("开发群") or ""), what=lambda: bob.texts(".conversation"))
    bob.shot("mentioned")
    alice.open_room("Bob")
    alice.menu("as always", "pick")
    alice.click("#messages .bubble .body", "(edited later)")
    wait_for(lambda: alice.text("#picked") == "2 selected", what=lambda: (alice.text("#picked"), alice.said(), alice.shot("problem")))
    alice.shot("picking")
    alice.find("#forward-picked").click()
    alice.click("#dialog li label", "开发群")
    alice.find("#dialog-ok").click()
    bob.open_room("开发群")
    wait_for(lambda: bob.run("return document.querySelector('.mention.me')?.innerText") == "@Bob")
    bob.click("details.forward summary")
    wait_for(lambda: "as always" in bob.text("details.forward") and "Alice" in bob.text("details.forward"))
    bob.shot("forward")

    # After a reload everything stands as it did.
    before = bob.said()
    bob.driver.refresh()
    wait_for(lambda: [text.split("\n")[0] for text in bob.said()] == [text.split("\n")[0] for text in before], what=lambda: (before, bob.said()))
    for one in people:
        assert one.complaints() == []


@pytest.mark.deadline(180)
def test_history_comes_by_scrolling_and_the_page_fits_a_phone_the_dark_and_chinese(site, drivers):
    cluster, gateway = site
    user = gateway.user("bob")
    room = user.direct("alice")
    publisher = cluster.publisher()
    for number in range(200):
        publisher.publish(room, "bob" if number % 3 else "alice", "text", f"message {number}" if number % 10 else f"第 {number} 条：大家下午好，会议改到三点。", repeat=True)
    wait_for(lambda: user.get(f"rooms/{room}")["room"]["head"].endswith(":200"))
    alice, bob = people = Person(drivers[0], gateway, "alice"), Person(drivers[1], gateway, "bob")
    alice.open_room("Bob")
    alice.sees("message 199")
    assert len(alice.said()) < 120
    wait_for(lambda: alice.run("document.getElementById('log').scrollTop = 0; return document.querySelectorAll('#messages .bubble').length") == 200,
        what=lambda: len(alice.said()))
    assert [text for text in alice.said() if text.startswith("message")] == [f"message {number}" for number in range(200) if number % 10]
    alice.shot("oldest")
    alice.run("document.getElementById('to-end').click()")
    alice.shot("newest")
    bob.open_room("Alice")
    bob.sees("message 199")
    with contextlib.ExitStack() as after:
        after.callback(bob.driver.execute_cdp_cmd, "Emulation.clearDeviceMetricsOverride", {})
        after.callback(bob.driver.execute_cdp_cmd, "Emulation.setEmulatedMedia", {"features": []})
        bob.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 390, "height": 780, "deviceScaleFactor": 2, "mobile": True})
        wait_for(lambda: not bob.visible("#side") and bob.visible("#back"))
        wait_for(lambda: bob.run("return innerWidth === 390 && document.documentElement.scrollWidth <= innerWidth"))
        bob.shot("phone")
        bob.find("#back").click()
        wait_for(lambda: bob.visible("#side") and not bob.visible("#chat"))
        bob.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
        bob.find("#side .language").click()
        wait_for(lambda: bob.text("#connection") == "已连接")
        bob.shot("phone-dark-chinese")
        bob.open_room("Alice")
        bob.shot("phone-dark-chat")
    bob.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    bob.shot("dark")
    bob.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    for one in people:
        assert one.complaints() == []


@pytest.mark.deadline(180)
@pytest.mark.parametrize("site", [2], indirect=True)
def test_an_instance_killed_in_the_middle_loses_nothing_and_shows_nothing_twice(site, people):
    cluster, gateway = site
    alice, bob = people
    alice.new_chat("bob")
    alice.write("first")
    bob.open_room("Alice")
    bob.sees("first")
    room = gateway.user("alice").direct("bob")
    owner = cluster.owner_of(room)
    expected = ["first"]
    for number in range(30):
        writer = people[number % 2]
        expected.append(f"line {number}")
        writer.write(f"line {number}")
        if number == 12:
            owner.kill9()
    for one in people:
        wait_for(lambda one=one: sorted(one.said()) == sorted(expected), 60, what=lambda one=one: (one.text("#connection"), one.said()[-5:]))
    # A tick says that it is stored: from then on history has it, and both screens come to what history says.
    for one in people:
        wait_for(lambda one=one: not [text for text in one.texts(".row.mine .foot") if "✓" not in text], what=lambda one=one: one.texts(".row.mine .foot"))
    stored = [entry["content"] for entry in cluster.api.pull_all(room) if entry["type"] == "message"]
    assert sorted(stored) == sorted(expected)
    for one in people:
        wait_for(lambda one=one: one.said() == stored, what=lambda one=one: (one.account, one.said(), stored))
    alice.shot("after-a-kill")


@pytest.mark.deadline(180)
def test_sound_and_film_are_played_and_may_be_wound_on(people, tmp_path):
    alice, bob = people
    alice.new_chat("bob")
    for name, data in (("voice.wav", tone(2)), ("film.webm", film(alice.driver))):
        (tmp_path / name).write_bytes(data)
        alice.find("#file").send_keys(str(tmp_path / name))
    wait_for(lambda: bob.badge("Alice") == "2")
    bob.open_room("Alice")
    for one in people:
        wait_for(lambda one=one: one.run("const film = document.querySelector('video'); return film?.readyState >= 1 && film.videoWidth") == 160,
            what=lambda one=one: (one.complaints(), one.text("#messages")))
    for kind in ("audio", "video"):
        bob.wait_still(kind)
        player = bob.find(kind)
        size = player.size
        # As a person presses play: the button at the left end of the controls, which stand at the bottom.
        ActionChains(bob.driver).move_to_element_with_offset(player, 27 - size["width"] // 2, size["height"] // 2 - 27).click().perform()
        wait_for(lambda kind=kind: bob.run(f"const one = document.querySelector('{kind}'); return one.currentTime > 0.2 || one.ended"), what=lambda kind=kind:
            bob.run(f"const one = document.querySelector('{kind}'); return [one.currentTime, one.paused, one.error?.message, one.readyState]"))
    bob.shot("played")
    # It plays on while others write, and while its own bubble gets another mark.
    alice.run("document.querySelector('audio').loop = true; document.querySelector('audio').play()")
    wait_for(lambda: alice.run("return document.querySelector('audio').currentTime > 0"))
    bob.write("nice")
    alice.sees("nice")
    bob.menu("nice", "recall")
    wait_for(lambda: "Bob recalled a message" in alice.said())
    assert alice.run("return !document.querySelector('audio').paused")
    alice.run("document.querySelector('audio').pause()")
    bob.run("const sound = document.querySelector('audio'); sound.currentTime = 1.5; sound.play()")
    wait_for(lambda: bob.run("return document.querySelector('audio').ended"))
    assert abs(bob.run("return document.querySelector('audio').duration") - 2) < 0.1
    for one in people:
        assert one.complaints() == []


@pytest.mark.deadline(180)
def test_in_a_group_it_shows_who_has_read_who_types_and_what_is_gone(site, people):
    cluster, gateway = site
    alice, bob = people
    carol = gateway.user("carol")
    alice.new_chat("bob", "carol", name="Tea")
    room = alice.run("return decodeURIComponent(location.hash.slice(1))")
    alice.write("Who comes?")
    bob.open_room("Tea")
    bob.sees("Who comes?")
    wait_for(lambda: "✓✓" in alice.bubble("Who comes?"))

    def readers():
        alice.menu("Who comes?", "who_read")
        found = wait_for(lambda: alice.texts("#dialog li"))
        alice.shot("who-has-read")
        alice.press(Keys.ESCAPE)
        wait_for(lambda: not alice.visible("#dialog"))
        return found

    wait_for(lambda: readers() == ["B\nBob"])
    carol.post(f"rooms/{room}/read", {"read_seq": 1})
    wait_for(lambda: readers() == ["B\nBob", "王\n王芳"])

    bob.find("#text").send_keys("I")
    carol.post(f"rooms/{room}/typing")
    wait_for(lambda: alice.text("#typing") in ("Bob, 王芳 are typing…", "王芳, Bob are typing…"), what=lambda: alice.text("#typing"))
    bob.find("#text").send_keys(" do, at four!", Keys.ENTER)
    alice.sees("I do, at four!")
    wait_for(lambda: "Bob" not in alice.text("#typing"))

    # Gone for one, gone for all; the quote of what is gone says so.
    alice.menu("I do, at four!", "reply")
    alice.write("fine")
    bob.sees("fine")
    bob.menu("Who comes?", "delete_me")
    wait_for(lambda: "Who comes?" not in bob.said())
    alice.sees("Who comes?")
    bob.menu("I do, at four!", "delete_all")
    for one in people:
        wait_for(lambda one=one: "I do, at four!" not in one.text("#messages"), what=lambda one=one: one.text("#messages"))
    alice.shot("gone")
    carol.post(f"rooms/{room}/members/remove", {"account_ids": ["carol"]})
    wait_for(lambda: "王芳 left" in alice.text("#messages"))
    alice.shot("group")
    # To leave is asked once more, and then the group is gone from the list.
    bob.find("#room-people").click()
    bob.click("#dialog li button", "Leave")
    assert bob.texts("#dialog li button") == ["Really?"]
    bob.click("#dialog li button", "Really?")
    wait_for(lambda: not bob.all(".conversation") and not bob.visible("#dialog") and not bob.visible("#chat"), what=lambda: bob.texts(".conversation"))
    wait_for(lambda: "Bob left" in alice.text("#messages"))
    for one in people:
        assert one.complaints() == []


@pytest.mark.deadline(180)
def test_it_works_by_keyboard_alone(site, people):
    cluster, gateway = site
    alice, bob = people
    gateway.user("alice").direct("carol")
    gateway.user("bob").say(gateway.user("bob").direct("alice"), "are you there?")
    wait_for(lambda: alice.badge("Bob") == "1")
    alice.run("document.activeElement.blur()")
    for _ in range(8):
        alice.press(Keys.TAB)
        if alice.focus() == "conversations":
            break
    assert alice.focus() == "conversations"
    alice.press(Keys.ARROW_DOWN)
    wait_for(lambda: alice.text("#room-name") == "Bob", what=lambda: alice.text("#room-name"))
    alice.press(Keys.ENTER)
    wait_for(lambda: alice.focus() == "text", what=alice.focus)
    alice.press("yes", Keys.ENTER)
    wait_for(lambda: "✓" in alice.bubble("yes"))
    alice.press(Keys.ARROW_UP)  # an empty field: the last one again
    wait_for(lambda: "yes" in alice.text("#about-text"))
    alice.run("""const ask = window.fetch;
        window.fetch = async (...words) => { const answer = await ask(...words); if (String(words[0]).endsWith('/edit')) await new Promise((go) => { window.answerEdit = go; }); return answer; }""")
    alice.press(", here", Keys.ENTER)
    wait_for(lambda: "edited" in alice.bubble("yes, here"))
    # Back to what stands there: the newest bubble, its menu, a reply.
    for _ in range(12):
        ActionChains(alice.driver).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
        if alice.focus() == "bubble":
            break
    assert alice.focus() == "bubble"
    alice.shot("keyboard-bubble")
    alice.press(Keys.ENTER)
    wait_for(lambda: alice.visible("#menu") and alice.focus() == "reply")
    alice.shot("keyboard-menu")
    alice.press(Keys.ARROW_DOWN, Keys.ARROW_UP, Keys.ENTER)
    wait_for(lambda: "yes, here" in alice.text("#about-text"))
    wait_for(lambda: alice.run("window.answerEdit?.(); return !!window.answerEdit"))  # the edit is seen before it is answered: what was begun meanwhile stays
    alice.press("and you?", Keys.ENTER)
    wait_for(lambda: "yes, here" in alice.text(".quote"))
    # A new chat: the dialog opens, ticks, and is agreed to.
    alice.run("document.getElementById('new-chat').focus()")
    alice.press(Keys.ENTER)
    wait_for(lambda: alice.visible("#dialog") and alice.all("#dialog input[value=dave]"))
    for _ in range(12):
        alice.press(Keys.TAB)
        if alice.run("return document.activeElement.value") == "dave":
            break
    alice.press(Keys.SPACE)
    for _ in range(12):
        alice.press(Keys.TAB)
        if alice.focus() == "dialog-ok":
            break
    alice.press(Keys.ENTER)
    wait_for(lambda: alice.text("#room-name") == "Dave", what=lambda: alice.text("#room-name"))
    for one in people:
        assert one.complaints() == []


@pytest.mark.deadline(180)
def test_what_was_written_without_a_connection_survives_a_reload(new_cluster, drivers):
    cluster = new_cluster()
    link = roomd.Link(cluster.servers.broker.port)
    base = BaseService(cluster)
    gateway = Gateway(cluster, base, broker_urls=cluster.gateway_url.replace(f":{cluster.servers.broker.port}/", f":{link.port}/"), send_timeout_ms=500)
    try:
        alice = Person(drivers[0], gateway, "alice")
        alice.new_chat("bob")
        alice.write("one")
        wait_for(lambda: "✓" in alice.bubble("one"))
        room = gateway.user("alice").direct("bob")
        link.cut()
        cluster.instances[0].kill9()
        wait_for(lambda: alice.text("#connection") != "connected")
        for text in ("two", "three"):
            alice.write(text)
        wait_for(lambda: "sending" in alice.bubble("three"))
        alice.driver.refresh()
        wait_for(lambda: alice.visible("#app"))
        cluster.instances[0].start()
        link.mend()
        alice.open_room("Bob")
        wait_for(lambda: alice.said() == ["one", "two", "three"] and all("✓" in alice.bubble(text) for text in ("one", "two", "three")),
            what=lambda: (alice.texts("#messages .bubble"), alice.text("#connection")))
        assert [entry["content"] for entry in cluster.api.pull_all(room) if entry["type"] == "message"] == ["one", "two", "three"]
        alice.shot("after-a-reload")
    finally:
        for one in (gateway, base):
            one.check()
            one.stop()
            one.check()
        link.close()


@pytest.mark.deadline(180)
def test_many_conversations_far_quotes_and_who_came_and_went_are_all_there(site, drivers):
    cluster, gateway = site
    user, dave = gateway.user("alice"), gateway.user("dave")
    for number in range(230):
        cluster.api.call("room/Create", kind="group", key=f"many-{number}", name=f"Room {number}", members=["alice"])
    room = user.group("Tea", "bob")
    user.wait_message(room, user.say(room, "the first word"))
    user.post(f"rooms/{room}/members/add", {"account_ids": ["carol"]})
    user.post(f"rooms/{room}/update", {"name": "Green tea"})
    publisher = cluster.publisher()
    for number in range(300):
        publisher.publish(room, "bob", "text", f"line {number}", repeat=True)
    publisher.publish(room, "bob", "text", "as was said", repeat=True, quote_seq=1)
    wait_for(lambda: user.history(room, limit=1)[0].get("content") == "as was said")
    alice = Person(drivers[0], gateway, "alice")
    wait_for(lambda: len(alice.all(".conversation")) == 231, what=lambda: len(alice.all(".conversation")))
    # By keyboard down the list: what is chosen is in sight, and told to who hears it.
    alice.run("document.getElementById('conversations').focus()")
    for _ in range(15):
        alice.press(Keys.ARROW_DOWN)
    wait_for(lambda: alice.run("""const list = document.getElementById('conversations'), one = list.querySelector('[aria-selected=true]');
        const {top, bottom} = one.getBoundingClientRect(), box = list.getBoundingClientRect();
        return list.getAttribute('aria-activedescendant') === one.id && [...list.children].indexOf(one) >= 14 && top >= box.top - 1 && bottom <= box.bottom + 1"""))
    alice.shot("many")
    alice.open_room("Green tea")
    alice.sees("as was said")
    assert "the first word" not in alice.said()
    wait_for(lambda: alice.texts("#messages .who") == ["Bob"], what=lambda: alice.texts("#messages .who"))  # with the names the bubbles are drawn anew, and the focus would be lost
    alice.run("[...document.querySelectorAll('.quote')].at(-1).focus()")
    alice.press(Keys.ENTER)
    wait_for(lambda: "the first word" in alice.said() and alice.run("return document.activeElement.dataset.seq") == "1", what=lambda: (alice.said()[:3], alice.text("#toast")))
    alice.shot("far-quote")
    wait_for(lambda: alice.texts(".note") == ["王芳 joined", "The chat is now called “Green tea”"], what=lambda: alice.texts(".note"))  # names come after what they stand in
    # "Back" of the browser leads to the list, and "forward" into the room again.
    alice.driver.back()
    wait_for(lambda: not alice.visible("#chat"))
    alice.driver.forward()
    wait_for(lambda: alice.visible("#chat"))
    # Who is taken out is told so; what is being edited does not become a draft.
    alice.driver.refresh()
    wait_for(lambda: alice.text("#room-name") == "Green tea")
    alice.write("mine")
    wait_for(lambda: "✓" in alice.bubble("mine"))
    alice.menu("mine", "edit")
    alice.open_room("Room 3")
    alice.open_room("Green tea")
    assert alice.run("return document.getElementById('text').value") == ""
    cluster.api.call("room/RmAccountFromRoom", room_id=room, account_id="alice")
    wait_for(lambda: alice.text("#toast") == "You are no longer in “Green tea”.")
    assert not alice.visible("#chat") and not [line for line in alice.driver.get_log("browser") if "Uncaught" in line["message"]]
    # Who has nobody yet is told how to begin.
    eve = Person(drivers[1], gateway, "eve")
    wait_for(lambda: eve.run("return getComputedStyle(document.getElementById('conversations'), '::before').content") == '"No conversations yet. Begin one with +."')
    assert dave.get("rooms") == {"rooms": []}


@pytest.mark.deadline(180)
def test_what_fails_says_so_in_the_readers_language_and_may_be_tried_again(new_cluster, drivers, tmp_path):
    cluster = new_cluster()
    base = BaseService(cluster, file_max_bytes=2000)
    gateway = Gateway(cluster, base)
    alice = Person(drivers[0], gateway, "alice")
    bob = gateway.user("bob")
    alice.new_chat("bob")
    room = bob.direct("alice")
    for name, data in (("plan.txt", b"the plan"), ("huge.bin", b"x" * 3000), ("no-picture.png", b"not a picture")):
        (tmp_path / name).write_bytes(data)
    base.stop()
    alice.find("#file").send_keys(str(tmp_path / "plan.txt"))
    wait_for(lambda: "files cannot be reached" in alice.text("#uploads li"), what=lambda: alice.text("#uploads"))
    alice.shot("upload-failed")
    base.start()
    alice.click("#uploads .plain", "Try again")
    wait_for(lambda: alice.texts(".file b") == ["plan.txt"] and not alice.text("#uploads"))
    alice.find("#side .language").click()
    alice.find("#file").send_keys(str(tmp_path / "huge.bin"))
    wait_for(lambda: "内容或文件太大。" in alice.text("#uploads li"), what=lambda: alice.text("#uploads"))
    alice.shot("upload-refused")
    alice.click("#uploads button", "✕")
    alice.find("#file").send_keys(str(tmp_path / "no-picture.png"))  # it goes as what it is
    wait_for(lambda: alice.texts(".file b") == ["plan.txt", "no-picture.png"], what=lambda: alice.text("#uploads"))
    wait_for(lambda: all("✓" in text for text in alice.texts(".row.mine .foot")), what=lambda: alice.texts(".row.mine .foot"))  # it stands there before it is stored
    # On a phone too it is seen that there is no connection.
    with contextlib.ExitStack() as after:
        after.callback(alice.driver.execute_cdp_cmd, "Emulation.clearDeviceMetricsOverride", {})
        alice.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 390, "height": 780, "deviceScaleFactor": 2, "mobile": True})
        gateway.stop()
        wait_for(lambda: alice.visible("#offline") and alice.text("#offline") == "连接已断开，正在重试", what=lambda: alice.text("#connection"))
        alice.shot("phone-offline")
        gateway.start()
        wait_for(lambda: not alice.visible("#offline"))
    wait_for(lambda: alice.visible("#side .language"))
    alice.find("#side .language").click()
    assert [entry["kind"] for entry in bob.history(room)] == ["file", "file"]
    for one in (gateway, base):
        one.check()
        one.stop()
        one.check()


@pytest.mark.deadline(180)
def test_a_refused_message_stays_marked_until_it_is_sent_again_or_thrown_away(new_cluster, drivers, tmp_path):
    cluster = new_cluster()
    (tmp_path / "policy.json").write_text(json.dumps({"words": ["forbidden word"]}))
    base = BaseService(cluster)
    gateway = Gateway(cluster, base, policy_file=tmp_path / "policy.json")
    alice = Person(drivers[0], gateway, "alice")
    alice.new_chat("bob")
    alice.write("a forbidden word")
    wait_for(lambda: "not sent" in alice.bubble("a forbidden word"), what=lambda: alice.texts("#messages .bubble"))
    assert "this message holds a word that is not allowed here" in alice.text("#toast")
    alice.write("fine")
    wait_for(lambda: "✓" in alice.bubble("fine"))
    alice.shot("refused")
    alice.run("document.getElementById('toast').textContent = ''")
    alice.click("#messages .foot button", "Try again")
    wait_for(lambda: "not allowed here" in alice.text("#toast") and "not sent" in alice.bubble("a forbidden word"))  # refused again: "not sent" alone stood there before
    gateway.stop()
    wait_for(lambda: alice.text("#connection") != "connected")
    (tmp_path / "policy.json").write_text("{}")
    gateway.start()
    wait_for(lambda: alice.text("#connection") == "connected")
    alice.click("#messages .foot button", "Try again")
    wait_for(lambda: "✓" in alice.bubble("a forbidden word"))
    assert alice.said() == ["fine", "a forbidden word"]
    for one in (gateway, base):
        one.check()
        one.stop()
        one.check()


def test_every_text_stands_out_from_what_is_behind_it():
    """WCAG 2.1, 1.4.3: 4.5 to 1, in the light and in the dark."""
    def light(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
        red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in (int(digits[at:at + 2], 16) / 255 for at in (0, 2, 4)))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    themes = re.findall(r":root \{(.*?)\}", (WEB / "page.css").read_text(), re.S)
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--([\w-]+): (#\w{3,6})\b", theme))
        for text, behind in [(text, behind) for text in ("ink", "faint", "mark") for behind in ("back", "card", "mine", "theirs", "hover")] + [
                ("alert", "card"), ("alert", "mine"), ("card", "alert"), ("on-mark", "mark"), ("card", "at"), ("card", "ink")]:
            bright, dark = sorted((light(colours[text]), light(colours[behind])), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, (text, behind, (bright + 0.05) / (dark + 0.05))
