/*
 * The demo page: conversations on the left, one chat on the right. What a room holds is room-client's affair; the page
 * draws it. Steps: log in · list · open a room · draw · compose · menus and dialogs.
 */
import { call, find, nameOf, names, upload } from './api.js';
import { avatar, body, element, note, summary } from './message.js';
import { gatewayBackend, RoomClient } from './room-client.js';
import { explain, language, say, setLanguage, translate } from './words.js';

const $ = (id) => document.getElementById(id);
const state = { me: null, client: null, rooms: new Map(), order: [], open: null, members: [], about: null, picked: null, atEnd: true, loading: false, notes: new Map(), drafts: new Map() };
const FILE_KINDS = [[/^image\/(png|jpe?g|gif|webp)$/, 'image'], [/^audio\//, 'voice'], [/^video\//, 'video']];

// ----------------------------------------------------------------------------------------------------- log in

function translatePage() {
    translate();
    for (const button of document.querySelectorAll('.language')) {
        button.textContent = say('lang');
        button.title = button.ariaLabel = say('language');
    }
    $('text').placeholder = $('text').ariaLabel = say('write');
    $('conversations').dataset.empty = say('no_rooms');
}

async function begin() {
    translatePage();
    try {
        enter(await call('me'));
    } catch {
        $('login').hidden = false;
        $('app').hidden = true;
    }
}

$('login-form').addEventListener('submit', async (event) => {
    event.preventDefault();
    const { account, password } = event.target.elements;
    try {
        $('login-problem').textContent = '';
        enter(await call('login', { account: account.value.trim(), password: password.value }));
        event.target.reset();
    } catch (error) {
        $('login-problem').textContent = error.status === 401 ? say('wrong') : say('problem', explain(error));
    }
});

function enter(me) {
    state.me = me.account_id;
    $('login').hidden = true;
    $('app').hidden = false;
    $('my-name').textContent = me.name;
    $('my-avatar').replaceWith(Object.assign(avatar(me.account_id, me.name), { id: 'my-avatar' }));
    const client = state.client = new RoomClient({ backend: gatewayBackend(), account_id: me.account_id, storage: sessionStorage });
    client.on('change', (room) => soon(() => (room === state.open ? drawLog() : null), `log ${room.room_id}`));
    client.on('entry', (event, room) => onEntry(event, room));
    client.on('message', (message, room, event) => onMessage(message, room, event));
    client.on('older', (entries, room) => entries.forEach((event) => keepNote(event, room)));
    client.on('typing', (room) => room === state.open && drawTyping());
    client.on('read', (_, room) => room === state.open && soon(drawLog, 'log'));
    client.on('entered', () => soon(loadRooms, 'rooms'));
    client.on('left', (room) => leftRoom(room));
    names.changed = redraw;
    client.on('state', ({ state: now, reason }) => drawConnection(now, reason));
    client.on('open', () => { // what is not in the log may have passed while there was no stream: who read, which rooms there are
        soon(loadRooms, 'rooms');
        if (state.open)
            loadMembers();
    });
    client.on('sending', (message) => message.sending === 'failed' && toast(message.error ? say('problem', explain(message.error)) : say('failed')));
    client.start();
    const renew = Math.max(60000, (me.expires_at - Date.now()) / 2);
    state.renewal = setInterval(() => call('refresh', {}).catch(() => {}), Math.min(renew, 2 ** 31 - 1));
    loadRooms();
}

async function logOut() {
    clearInterval(state.renewal);
    state.client?.stop();
    await call('logout', {}).catch(() => {});
    sessionStorage.clear();
    location.reload();
}

function drawConnection(now, reason) {
    $('connection').textContent = say(`s_${now}`);
    const bad = now !== 'open' && now !== 'connecting';
    $('connection').className = bad ? 'bad' : '';
    $('offline').hidden = !bad; // on a phone the list, where it stands too, is out of sight
    $('offline').textContent = say(`s_${now}`);
    if (reason?.code === 'unauthenticated')
        begin().then(() => state.client?.state === 'stopped' && location.reload());
}

/** Many changes of one moment are drawn once. */
const pending = new Map();
function soon(run, key) {
    if (!pending.has(key))
        requestAnimationFrame(() => {
            pending.delete(key);
            run();
        });
    pending.set(key, true);
}

// ------------------------------------------------------------------------------------------------- the list

let loading = 0;
async function loadRooms() {
    const turn = ++loading; // one that began later knows better
    try {
        const all = new Map();
        let next = '';
        do {
            const page = await call(`rooms?limit=200${next && `&after=${encodeURIComponent(next)}`}`);
            for (const room of page.rooms)
                all.set(room.room_id, room);
            if (turn !== loading)
                return;
            next = page.next ?? '';
            if (next) // the newest are there at once, the rest follows
                listRooms(new Map([...state.rooms, ...all]));
        } while (next && state.client);
        state.listed = true;
        listRooms(all);
        for (const { room_id, head } of all.values())
            if (Number(head?.split(':')[1]) < (state.client.rooms.get(room_id)?.cursor?.seq ?? 0)) // it counted what was committed then
                countUnread(room_id);
    } catch (error) {
        toast(say('problem', explain(error)));
    }
}

function listRooms(rooms) {
    for (const [room_id, about] of rooms) { // what came by the stream meanwhile is newer, also in a room that was not listed then
        const newest = state.client.rooms.get(room_id)?.messages.at(-1);
        for (const { last, last_at } of [state.rooms.get(room_id), newest && { last: { ...newest, type: 'message' }, last_at: newest.at }].filter(Boolean))
            if (last_at > about.last_at)
                Object.assign(about, { last, last_at });
    }
    state.rooms = rooms;
    drawRooms();
    drawHead(); // of a room that was opened before it was listed
    if (state.open?.messages.length)
        markRead(); // the answer may be older than what has been read here since
    const wanted = decodeURIComponent(location.hash.slice(1));
    if (!state.open && wanted && state.rooms.has(wanted))
        openRoom(wanted);
}

const titleOf = (about) => about.name || (about.peer ? nameOf(about.peer) : about.room_id.slice(-6));

function redraw() {
    soon(drawRooms, 'list');
    soon(drawLog, 'log');
    soon(drawHead, 'head');
    if (state.open)
        soon(() => state.open && drawTyping(), 'typing');
}

const clock = (ms) => new Date(ms).toLocaleTimeString(language, { hour: '2-digit', minute: '2-digit' });
function when(ms) {
    const date = new Date(ms), today = new Date();
    return date.toDateString() === today.toDateString() ? clock(ms) : date.toLocaleDateString(language, { month: 'short', day: 'numeric' });
}

function drawRooms() {
    const all = [...state.rooms.values()].sort((a, b) => b.last_at - a.last_at);
    state.order = all.map((about) => about.room_id);
    const unread = all.reduce((sum, about) => sum + about.unread, 0);
    document.title = unread ? `(${unread}) roomd` : 'roomd';
    $('conversations').classList.toggle('empty', !all.length && !!state.listed);
    place($('conversations'), all.map(drawConversation));
    for (const room_id of listed.keys())
        if (!state.rooms.has(room_id))
            listed.delete(room_id);
    const open = listed.get(state.open?.room_id)?.element;
    $('conversations').setAttribute('aria-activedescendant', open?.id ?? '');
}

/** Rows whose look has not changed stay as they are: there may be a thousand. */
const listed = new Map();
function drawConversation(about) {
    const last = about.last, open = about.room_id === state.open?.room_id, title = titleOf(about);
    const said = last?.type === 'message' ? `${last.sender === state.me ? `${say('you')}: ` : about.peer ? '' : `${nameOf(last.sender)}: `}${summary(last)}` : (last && note(last)) ?? say('no_messages');
    const look = JSON.stringify([title, said, about.last_at && when(about.last_at), about.mentioned > 0, about.unread, open]);
    const old = listed.get(about.room_id);
    if (old?.look === look)
        return old.element;
    const made = element('div', { class: 'conversation', role: 'option', id: `room-${about.room_id}`, 'aria-selected': String(open), onclick: () => openRoom(about.room_id) },
        avatar(about.peer ?? about.room_id, title),
        element('div', { class: 'grow' },
            element('div', { class: 'top' }, element('b', { title }, title), element('small', {}, about.last_at ? when(about.last_at) : '')),
            element('div', { class: 'last' }, element('span', {}, said),
                about.mentioned > 0 && element('span', { class: 'badge at' }, '@'),
                about.unread > 0 && element('span', { class: 'badge' }, about.unread > 99 ? '99+' : about.unread))));
    listed.set(about.room_id, { look, element: made });
    return made;
}

$('conversations').addEventListener('keydown', (event) => {
    const at = state.order.indexOf(state.open?.room_id);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && state.order.length) {
        event.preventDefault();
        openRoom(state.order[Math.max(0, Math.min(state.order.length - 1, at + step))], true);
        listed.get(state.open.room_id)?.element.scrollIntoView({ block: 'nearest' });
    } else if (event.key === 'Enter') {
        $('text').focus();
    }
});

/** An entry of any room: the list shows it, whether the room is open or not. */
function onEntry(event, room) {
    const about = state.rooms.get(room.room_id);
    if (!about)
        return soon(loadRooms, 'rooms');
    if (event.type === 'room.updated')
        Object.assign(about, { name: event.name ?? about.name, notice: event.notice ?? about.notice, owner: event.owner ?? about.owner });
    if (event.type.startsWith('member.') && room === state.open && !(event.type === 'member.left' && event.account_ids?.includes(state.me)))
        loadMembers();
    keepNote(event, room);
    if (event.type === 'message' || note(event) !== null) {
        about.last = event;
        about.last_at = event.at;
        soon(drawRooms, 'list');
    }
}

/** What stands between the messages, each once. */
function keepNote(event, room) {
    if (event.type === 'message' || note(event) === null)
        return;
    if (!state.notes.has(room.room_id))
        state.notes.set(room.room_id, new Map());
    state.notes.get(room.room_id).set(event.seq, event);
}

function onMessage(message, room, event) {
    const about = state.rooms.get(room.room_id);
    if (!about)
        return countUnread(room.room_id); // the list that is on its way may be older than this message
    if (event.type !== 'message') { // edited, recalled, deleted
        if (about.last?.seq === message.seq)
            about.last = { ...about.last, ...message };
        if (event.type !== 'message.edited')
            countUnread(room.room_id);
    } else if (message.sender === state.me) {
        about.unread = about.mentioned = 0;
    } else if (room === state.open && !document.hidden && state.atEnd) {
        room.markRead(message.seq);
        about.unread = about.mentioned = 0;
    } else {
        countUnread(room.room_id);
    }
    soon(drawRooms, 'list');
}

/** The service counts; the page only asks, once for many. */
const toCount = new Set();
function countUnread(room_id) {
    toCount.add(room_id);
    clearTimeout(state.counting);
    state.counting = setTimeout(async () => {
        const ids = [...toCount].slice(0, 100);
        toCount.clear();
        const { rooms } = await call(`unread?room_ids=${ids.join(',')}`).catch(() => ({ rooms: [] }));
        for (const { room_id: id, unread, mentioned, head_seq } of rooms) {
            Object.assign(state.rooms.get(id) ?? {}, { unread, mentioned });
            if (head_seq < (state.client.rooms.get(id)?.cursor?.seq ?? 0)) // it counts what is committed
                setTimeout(() => countUnread(id), 500);
        }
        drawRooms();
        markRead(); // the room may have been opened since it was asked
    }, 250);
}

function leftRoom(room) {
    if (room === state.open && !state.leaving)
        toast(say('no_longer', titleOf(state.rooms.get(room.room_id) ?? room)));
    state.leaving = false;
    state.rooms.delete(room.room_id);
    if (room === state.open) {
        $('dialog').close(''); // what it offered is over
        closeRoom();
    }
    drawRooms();
    soon(loadRooms, 'rooms');
}

// ------------------------------------------------------------------------------------------------ one room

async function openRoom(room_id, stay = false) {
    if (state.open?.room_id === room_id && !$('chat').hidden)
        return;
    if (state.open && !state.about?.edit) // what is being edited is no draft
        state.drafts.set(state.open.room_id, $('text').value);
    const before = state.open, room = state.open = state.client.room(room_id);
    endAbout();
    endPicking();
    state.atEnd = true;
    state.members = [];
    if (before)
        history.replaceState(null, '', `#${encodeURIComponent(room_id)}`);
    else
        location.hash = encodeURIComponent(room_id); // so that "back" leads to the list
    $('app').classList.add('in-chat');
    $('chat').hidden = false;
    $('nothing').hidden = true;
    $('text').value = state.drafts.get(room_id) ?? '';
    fitText();
    drawRooms();
    drawHead();
    drawLog();
    loadMembers();
    if (!stay && !matchMedia('(hover: none)').matches) // where a keyboard would come up, it waits to be asked
        $('text').focus();
    try {
        if (room.messages.length < 30)
            await room.loadBefore(50);
        if (room === state.open)
            drawLog();
        while (room === state.open && room.hasOlder && $('messages').scrollHeight <= $('log').clientHeight) { // nothing to scroll by yet
            await room.loadBefore(100);
            drawLog();
        }
    } catch (error) {
        toast(say('problem', explain(error)));
    }
    if (room === state.open) {
        drawLog();
        markRead();
    }
}

function closeRoom() {
    if (state.open && !state.about?.edit)
        state.drafts.set(state.open.room_id, $('text').value);
    state.open = null;
    if (location.hash.length > 1)
        history.replaceState(null, '', location.pathname);
    $('app').classList.remove('in-chat');
    $('chat').hidden = true;
    $('nothing').hidden = false;
    drawRooms();
}

addEventListener('hashchange', () => { // "back" and "forward" of the browser, or of the phone
    const wanted = decodeURIComponent(location.hash.slice(1));
    if (!wanted && state.open)
        closeRoom();
    else if (state.rooms.has(wanted))
        openRoom(wanted);
});

function markRead() {
    const room = state.open, about = room && state.rooms.get(room.room_id);
    if (!room || document.hidden || !state.atEnd || !about)
        return;
    const last = room.messages.at(-1)?.seq ?? 0;
    if (last > Math.max(room.read_seq, about.read_seq ?? 0) || about.unread)
        room.markRead(Math.max(last, room.cursor?.seq ?? 0));
    about.unread = about.mentioned = 0;
    drawRooms();
}

async function loadMembers() {
    const room = state.open;
    if (!room)
        return;
    const { accounts } = await call(`rooms/${room.room_id}/members?limit=500`).catch(() => ({ accounts: [] }));
    if (room !== state.open)
        return;
    state.members = accounts;
    for (const { account_id, read_seq } of accounts)
        if (read_seq > (room.reads.get(account_id) ?? 0))
            room.reads.set(account_id, read_seq);
    drawHead();
    drawLog();
    offerMentions(); // who began to write before the names were here
}

function drawHead() {
    const about = state.open && state.rooms.get(state.open.room_id);
    if (!about)
        return;
    $('room-name').textContent = titleOf(about);
    $('room-avatar').replaceWith(Object.assign(avatar(about.peer ?? about.room_id, titleOf(about)), { id: 'room-avatar' }));
    $('room-detail').textContent = about.peer ? '' : [say('members', state.members.length || about.members), about.notice].filter(Boolean).join(' · ');
}

function drawTyping() {
    const who = [...state.open.typists.keys()].filter((account) => account !== state.me);
    $('typing').textContent = who.length ? say(who.length > 1 ? 'typing_many' : 'typing_one', who.map((account) => nameOf(account)).join(', ')) : '';
}

// ------------------------------------------------------------------------------------------------- the log

/**
 * The bubbles that stand already stay where they are, while nothing inside them has changed: what was taken out and put back
 * would stop playing.
 */
let drawn = { room: null, last: 0, rows: new Map() };
function drawLog() {
    const room = state.open;
    if (!room)
        return;
    const box = $('log'), fromEnd = box.scrollHeight - box.scrollTop;
    const timeline = [...room.timeline().map((message) => ({ at: message.at, seq: message.seq ?? Infinity, message })),
        ...[...state.notes.get(room.room_id)?.values() ?? []].map((event) => ({ at: event.at, seq: event.seq, event }))].sort((a, b) => a.seq - b.seq);
    const before = drawn.room === room.room_id ? drawn : { last: Infinity, rows: new Map() };
    const now = { room: room.room_id, last: 0, rows: new Map() }, rows = [];
    const others = [...room.reads].filter(([account]) => account !== state.me);
    let day = '', sender = null;
    for (const { at, seq, message, event } of timeline) {
        const today = new Date(at).toDateString();
        if (today !== day)
            rows.push(element('div', { class: 'day' }, dayName(at)));
        if (today !== day || event)
            sender = null;
        day = today;
        if (event) {
            rows.push(element('div', { class: 'note' }, note(event)));
            continue;
        }
        const key = message.client_msg_id + message.sender;
        const row = drawRow(before.rows.get(key), message, message.sender === sender, others);
        row.element.classList.toggle('new', !before.rows.has(key) && seq > before.last);
        now.rows.set(key, row);
        now.last = Math.max(now.last, message.seq ?? 0);
        rows.push(row.element);
        sender = message.kind === 'tip' ? null : message.sender;
    }
    drawn = now;
    const focused = document.activeElement?.matches?.('#messages .bubble') && document.activeElement.dataset.id;
    place($('messages'), rows);
    if (focused && !document.activeElement.matches('.bubble')) // it was drawn anew
        $('messages').querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
    box.scrollTop = state.atEnd ? box.scrollHeight : box.scrollHeight - fromEnd;
    $('to-end').hidden = state.atEnd;
}

function drawRow(old, message, follows, others) {
    const readers = message.sender === state.me && message.seq ? others.filter(([, seq]) => seq >= message.seq).length : 0;
    const quoted = message.quote_seq && state.open.find(message.quote_seq);
    const look = JSON.stringify([message.seq, message.state, message.edited_at, follows, language, nameOf(message.sender), message.state_by && nameOf(message.state_by),
        quoted && [nameOf(quoted.sender), summary(quoted)]]);
    const end = JSON.stringify([message.sending, readers]);
    const row = old?.look === look && old.message === message ? old : { look, message, element: bubble(message, follows, readers) };
    if (row === old && row.end !== end)
        row.element.querySelector('.foot')?.replaceWith(foot(message, readers));
    row.end = end;
    row.element.classList.toggle('picked', !!state.picked?.has(message.seq));
    return row;
}

/** The children of `parent` become `rows`; those that stay are not touched. */
function place(parent, rows) {
    const wanted = new Set(rows);
    for (const child of [...parent.children])
        if (!wanted.has(child))
            child.remove();
    let at = parent.firstChild;
    for (const row of rows)
        if (row === at)
            at = at.nextSibling;
        else
            parent.insertBefore(row, at);
}

function dayName(ms) {
    const days = Math.round((new Date().setHours(0, 0, 0, 0) - new Date(ms).setHours(0, 0, 0, 0)) / 86400000);
    return days === 0 ? say('today') : days === 1 ? say('yesterday') : new Date(ms).toLocaleDateString(language, { weekday: 'short', year: 'numeric', month: 'short', day: 'numeric' });
}

function bubble(message, follows, readers) {
    const mine = message.sender === state.me, gone = message.content === undefined;
    const quoted = message.quote_seq && state.open.find(message.quote_seq);
    if (message.kind === 'tip' || message.sender === '@system')
        return element('div', { class: 'note', 'data-seq': message.seq }, summary(message));
    const inside = element('div', { class: gone ? 'bubble gone' : 'bubble', tabindex: '0', 'data-seq': message.seq, 'data-id': message.client_msg_id,
        oncontextmenu: (event) => { event.preventDefault(); messageMenu(message, event.clientX, event.clientY); },
        onkeydown: (event) => { if (event.key === 'Enter' && event.target === event.currentTarget) { event.preventDefault(); const { left, bottom } = event.target.getBoundingClientRect(); messageMenu(message, left, bottom); } },
        onclick: (event) => (state.picked ? pick(message) : event.detail && !event.target.closest('a,summary,audio,video') && matchMedia('(hover: none)').matches && messageMenu(message, event.clientX, event.clientY)) },
    !mine && !follows && !state.rooms.get(state.open.room_id)?.peer && element('div', { class: 'who' }, nameOf(message.sender)),
    message.quote_seq && !gone && element('div', { class: 'quote', role: 'button', tabindex: '0', onclick: () => goTo(message.quote_seq), onkeydown: (event) => event.key === 'Enter' && goTo(message.quote_seq) }, quoted ? `${nameOf(quoted.sender)}: ${summary(quoted)}` : `#${message.quote_seq}`),
    body(message, { me: state.me, room_id: state.open.room_id }), foot(message, readers));
    return element('div', { class: `row${mine ? ' mine' : ''}${follows ? ' follows' : ''}` },
        !mine && avatar(message.sender, nameOf(message.sender)), inside);
}

/** When, and how far it has come. */
function foot(message, readers) {
    const made = element('div', { class: 'foot' }, message.state === 'edited' ? `${say('edited')} · ` : '', clock(message.at), ' ');
    if (message.sender === state.me && message.content !== undefined)
        made.append(message.sending === 'failed' ? element('span', { class: 'bad' }, say('failed'), ' ', element('button', { type: 'button', class: 'plain', onclick: () => state.client.retry(message) }, say('retry'))) : say(readers ? 'read' : message.sending ?? 'stored'));
    return made;
}

/** What is quoted may be far back: as many pages as it takes, within reason. */
async function goTo(seq) {
    const room = state.open;
    try {
        for (let pages = 0; !room.find(seq) && room.hasOlder && (room.messages[0]?.seq ?? Infinity) > seq && pages < 20; pages++)
            await room.loadBefore(200);
    } catch (error) {
        return toast(say('problem', explain(error)));
    }
    if (room !== state.open)
        return undefined;
    state.atEnd = false;
    drawLog();
    const target = $('messages').querySelector(`[data-seq="${seq}"]`);
    if (!target)
        return toast(say('too_far'));
    target.scrollIntoView({ block: 'center' });
    return target.focus();
}

$('log').addEventListener('scroll', async () => {
    const box = $('log'), room = state.open;
    state.atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
    $('to-end').hidden = state.atEnd;
    if (state.atEnd)
        markRead();
    if (box.scrollTop < 200 && room?.hasOlder && !state.loading) {
        state.loading = true;
        await room.loadBefore(50).catch((error) => toast(say('problem', explain(error))));
        state.loading = false;
        if (room === state.open)
            drawLog();
    }
});
/** Who reads the end stays there when pictures arrive, the window changes, or a keyboard comes up. */
const stay = new ResizeObserver(() => state.atEnd && ($('log').scrollTop = $('log').scrollHeight));
stay.observe($('log'));
stay.observe($('messages'));
$('to-end').addEventListener('click', () => { state.atEnd = true; drawLog(); markRead(); });
document.addEventListener('visibilitychange', markRead);

// -------------------------------------------------------------------------------------------------- compose

function fitText() {
    const text = $('text');
    text.style.height = 'auto';
    text.style.height = `${text.scrollHeight + 2}px`;
    $('send').disabled = !text.value.trim();
}

$('text').addEventListener('input', () => {
    fitText();
    offerMentions();
    if ($('text').value && !state.about?.edit)
        state.open?.typing();
});
$('text').addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        $('mentions').hidden ? submit() : $('mentions').querySelector('button')?.click();
    } else if (event.key === 'Escape') {
        $('mentions').hidden ? endAbout() : ($('mentions').hidden = true);
    } else if (event.key === 'ArrowUp' && !$('text').value) {
        const mine = state.open.messages.findLast((message) => message.sender === state.me && message.kind === 'text' && message.content !== undefined);
        if (mine) {
            event.preventDefault(); // it would take the caret to the beginning
            editOf(mine);
        }
    } else if (event.key === 'ArrowDown' && !$('mentions').hidden) {
        event.preventDefault();
        $('mentions').querySelector('button')?.focus();
    }
});
$('compose').addEventListener('submit', (event) => { event.preventDefault(); submit(); });

/** Text with people in it is a rich_text; without, a text. */
function contentOf(text) {
    const called = [['all', `@${say('all')}`], ...state.members.map(({ account_id }) => [account_id, `@${nameOf(account_id)}`])].sort((a, b) => b[1].length - a[1].length);
    const parts = [];
    let plain = '', found = false;
    for (let at = 0; at < text.length;) {
        const hit = text[at] === '@' && !/[\w.-]/.test(text[at - 1] ?? '') && called.find(([, name]) => text.startsWith(name, at));
        if (!hit) {
            plain += text[at++];
            continue;
        }
        if (plain)
            parts.push({ type: 'text', body: plain });
        plain = '';
        parts.push(hit[0] === 'all' ? { type: 'mention', mention_type: 'all', display_text: hit[1] } : { type: 'mention', user_id: hit[0], display_text: hit[1] });
        found = true;
        at += hit[1].length;
    }
    if (plain)
        parts.push({ type: 'text', body: plain });
    return found ? { kind: 'rich_text', content: { parts } } : { kind: 'text', content: text };
}

async function submit() {
    const room = state.open, what = state.about, text = $('text').value.trim();
    if (!room || !text)
        return;
    const { kind, content } = contentOf(text);
    try {
        if (what?.edit)
            await room.edit(what.edit, what.edit.kind === 'rich_text' ? (kind === 'rich_text' ? content : { parts: [{ type: 'text', body: text }] }) : text);
        else
            room.send(content, { kind, quote_seq: what?.reply?.seq });
        if (state.about !== what)
            return; // while the edit went, the user began something else
        $('text').value = '';
        endAbout();
        fitText();
        state.atEnd = true;
        drawLog();
    } catch (error) {
        toast(say('problem', explain(error)));
    }
}

function offerMentions() {
    const text = $('text'), match = /(?<![\w.-])@([^\s@]{0,20})$/.exec(text.value.slice(0, text.selectionStart));
    const about = state.rooms.get(state.open?.room_id);
    const fits = match && !about?.peer ? [['all', say('all')], ...state.members.map(({ account_id }) => [account_id, nameOf(account_id)])]
        .filter(([id, name]) => id !== state.me && name.toLowerCase().startsWith(match[1].toLowerCase())).slice(0, 8) : [];
    $('mentions').hidden = !fits.length;
    $('mentions').replaceChildren(...fits.map(([, name]) => element('li', { role: 'none' }, element('button', { type: 'button', role: 'option', onclick: () => {
        const end = text.selectionStart, start = end - match[1].length;
        text.setRangeText(`${name} `, start, end, 'end');
        $('mentions').hidden = true;
        text.focus();
        fitText();
    } }, `@${name}`))));
}

function about(what, words) {
    state.about = what;
    $('about').hidden = false;
    $('about-text').textContent = words;
    $('text').focus();
}

function endAbout() {
    if (state.about?.edit)
        $('text').value = '';
    state.about = null;
    $('about').hidden = true;
    fitText();
}

function editOf(message) {
    $('text').value = summary(message);
    about({ edit: message }, say('editing', summary(message)));
    $('text').setSelectionRange($('text').value.length, $('text').value.length);
    fitText();
}

$('about-end').addEventListener('click', endAbout);
$('attach').addEventListener('click', () => $('file').click());
$('file').addEventListener('change', () => {
    const files = [...$('file').files];
    $('file').value = '';
    sendFiles(files);
});
$('log').addEventListener('dragover', (event) => event.preventDefault());
$('log').addEventListener('drop', (event) => {
    event.preventDefault();
    sendFiles(event.dataTransfer.files);
});
$('text').addEventListener('paste', (event) => {
    if (!event.clipboardData.files.length)
        return;
    event.preventDefault();
    sendFiles(event.clipboardData.files);
});

/** One after the other, in their order. */
async function sendFiles(files) {
    const room = state.open;
    for (const [file, row] of [...files].map((one) => [one, uploadRow(one)]))
        await sendFile(room, file, row);
}

/** A file on its way stands above the field: how far it is, what went wrong, and a way out. */
function uploadRow(file) {
    const row = element('li', {}, element('span', { class: 'grow' }, file.name), element('progress', { max: 1, value: 0, 'aria-label': file.name }),
        element('button', { type: 'button', class: 'icon', title: say('cancel'), 'aria-label': say('cancel'), onclick: () => { row.stop.now?.(); row.ended = true; row.remove(); } }, '✕'));
    row.stop = {};
    $('uploads').append(row);
    return row;
}

async function sendFile(room, file, row) {
    if (row.ended)
        return;
    const kind = FILE_KINDS.find(([type]) => type.test(file.type))?.[1] ?? 'file';
    const size = kind === 'image' ? await createImageBitmap(file).then(({ width, height }) => ({ width, height }), () => ({})) : {};
    const bar = row.querySelector('progress'), going = (part) => { bar.value = part; };
    try {
        // What calls itself a picture and is none that is known goes as a file.
        const [as, { file_id }] = await upload(file, kind, going, row.stop).then((found) => [kind, found], async (error) => {
            if (error.code !== 'unsupported_media_type' || kind === 'file')
                throw error;
            return ['file', await upload(file, 'file', going, row.stop)];
        });
        row.remove();
        room.send({ file_id, name: file.name, size: file.size, ...(as === 'image' && size) }, { kind: as });
    } catch (error) {
        if (row.ended)
            return;
        const again = element('button', { type: 'button', class: 'plain', onclick: () => { bad.replaceWith(bar); again.remove(); bar.value = 0; sendFile(room, file, row); } }, say('retry'));
        const bad = element('span', { class: 'bad', role: 'alert' }, explain(error));
        bar.replaceWith(bad);
        bad.after(again);
    }
}

// ----------------------------------------------------------------------------------------- menus and dialogs

function messageMenu(message, x, y) {
    const room = state.open, mine = message.sender === state.me, here = message.content !== undefined;
    const myRole = state.members.find(({ account_id }) => account_id === state.me)?.role;
    const mayRecall = mine || myRole === 'owner' || myRole === 'admin';
    const run = (promise) => promise.catch((error) => toast(say('problem', explain(error))));
    const items = [
        message.sending === 'failed' && ['retry', () => state.client.retry(message)],
        message.sending === 'failed' && ['discard', () => state.client.discard(message)],
        message.seq && here && ['reply', () => about({ reply: message }, say('replying', nameOf(message.sender), summary(message)))],
        message.seq && here && mine && ['text', 'rich_text'].includes(message.kind) && ['edit', () => editOf(message)],
        here && ['copy', () => navigator.clipboard?.writeText(summary(message))],
        message.seq && here && ['forward', () => { state.picked = new Set([message.seq]); forwardPicked(); }],
        message.seq && here && ['pick', () => pick(message)],
        message.seq && mine && ['who_read', () => showReaders(message)],
        message.seq && here && mayRecall && ['recall', () => run(room.recall(message))],
        message.seq && ['delete_me', () => run(room.delete(message, 'me'))],
        message.seq && here && mayRecall && ['delete_all', () => run(room.delete(message, 'all'))],
    ].filter(Boolean);
    openMenu(x, y, items);
}

let menuFrom = null; // Escape leads back there
function openMenu(x, y, items) {
    const menu = $('menu');
    menuFrom = document.activeElement;
    menu.replaceChildren(...items.map(([name, run]) => element('li', { role: 'none' }, element('button', { role: 'menuitem', 'data-do': name, onclick: () => { closeMenu(); run(); } }, say(name)))));
    menu.hidden = false;
    menu.style.left = `${Math.max(8, Math.min(x, innerWidth - menu.offsetWidth - 8))}px`;
    menu.style.top = `${Math.max(8, Math.min(y, innerHeight - menu.offsetHeight - 8))}px`;
    menu.querySelector('button')?.focus();
}

function closeMenu() {
    $('menu').hidden = true;
}

document.addEventListener('pointerdown', (event) => { if (!event.target.closest('#menu')) closeMenu(); });
for (const list of [$('menu'), $('mentions')])
    list.addEventListener('keydown', (event) => {
        const buttons = [...list.querySelectorAll('button')], at = buttons.indexOf(document.activeElement);
        if (event.key === 'Escape') {
            list.hidden = true;
            (list === $('menu') && menuFrom?.isConnected ? menuFrom : $('text')).focus();
        } else if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
            event.preventDefault();
            buttons[(at + (event.key === 'ArrowDown' ? 1 : buttons.length - 1)) % buttons.length]?.focus();
        }
    });

function pick(message) {
    if (!message.seq || message.content === undefined)
        return;
    state.picked ??= new Set();
    state.picked.delete(message.seq) || state.picked.add(message.seq);
    $('picking').hidden = false;
    $('picked').textContent = say('picked', state.picked.size);
    drawLog();
}

function endPicking() {
    state.picked = null;
    $('picking').hidden = true;
    drawLog();
}

async function forwardPicked() {
    const from = state.open, seqs = [...state.picked].sort((a, b) => a - b);
    endPicking();
    if (!seqs.length)
        return;
    const list = element('ul', {}, ...state.order.map((room_id) => element('li', {}, element('label', {}, element('input', { type: 'radio', name: 'to', value: room_id }),
        avatar(room_id, titleOf(state.rooms.get(room_id))), titleOf(state.rooms.get(room_id))))));
    if (!await ask(say('forward_to'), list, say('forward')))
        return;
    const to = list.querySelector(':checked')?.value;
    if (to)
        await call(`rooms/${to}/forward`, { from_room_id: from.room_id, seqs, merged: seqs.length > 1, client_msg_id: crypto.randomUUID?.() ?? String(Math.random()) })
            .catch((error) => toast(say('problem', explain(error))));
}
$('forward-picked').addEventListener('click', forwardPicked);
$('picking-end').addEventListener('click', endPicking);

function showReaders(message) {
    const readers = [...state.open.reads].filter(([account, seq]) => account !== state.me && seq >= message.seq);
    ask(say('read_by'), element('ul', {}, ...(readers.length ? readers.map(([account]) => element('li', {}, avatar(account, nameOf(account)), nameOf(account))) : [element('li', {}, say('nobody'))])), say('close'), { shows: true });
}

/** Resolves to true when it was agreed to. One that only shows something has nothing to cancel. */
function ask(title, inside, agree, { shows = false } = {}) {
    const dialog = $('dialog');
    dialog.querySelector('menu .plain').hidden = shows;
    $('dialog-title').textContent = title;
    $('dialog-body').replaceChildren(inside);
    $('dialog-ok').textContent = agree;
    dialog.returnValue = '';
    dialog.showModal();
    return new Promise((resolve) => dialog.addEventListener('close', () => resolve(dialog.returnValue === 'ok'), { once: true }));
}

/** A field that finds people, and ticks. */
function peoplePicker(without = []) {
    const chosen = new Map();
    const field = element('input', { placeholder: say('find'), 'aria-label': say('find'), 'data-find': true, oninput: () => search() });
    const list = element('ul');
    async function search() {
        const found = await find(field.value.trim()).catch(() => []);
        list.replaceChildren(...[...new Map([...chosen, ...found.map(({ account_id, name }) => [account_id, name])])].filter(([id]) => id !== state.me && !without.includes(id)).slice(0, 50)
            .map(([id, name]) => element('li', {}, element('label', {}, element('input', { type: 'checkbox', value: id, checked: chosen.has(id), onchange: (event) => (event.target.checked ? chosen.set(id, name) : chosen.delete(id)) }),
                avatar(id, name), name))));
    }
    search();
    return { element: element('div', {}, field, list), chosen };
}

async function newChat() {
    const people = peoplePicker();
    const name = element('input', { placeholder: say('group_name'), 'aria-label': say('group_name'), maxlength: 80, 'data-name': true });
    if (!await ask(say('new_chat'), element('div', {}, name, people.element), say('start')) || !people.chosen.size)
        return;
    const ids = [...people.chosen.keys()];
    try {
        const direct = ids.length === 1 && !name.value.trim();
        const { room } = await call('rooms', direct ? { kind: 'direct', account_id: ids[0] }
            : { kind: 'group', name: name.value.trim() || [...people.chosen.values()].join(', ').slice(0, 80), members: ids });
        await loadRooms();
        openRoom(room.room_id);
    } catch (error) {
        toast(say('problem', explain(error)));
    }
}

async function showPeople() {
    const room = state.open, info = state.rooms.get(room.room_id);
    const mine = state.members.find(({ account_id }) => account_id === state.me)?.role;
    const manages = mine === 'owner' || mine === 'admin';
    const act = (path, fields) => call(`rooms/${room.room_id}/${path}`, fields).then(() => state.leaving || loadMembers(), (error) => { state.leaving = false; toast(say('problem', explain(error))); });
    const name = element('input', { value: info.name ?? '', maxlength: 80, disabled: !manages, 'aria-label': say('group') });
    const adding = manages && !info.peer ? peoplePicker(state.members.map(({ account_id }) => account_id)) : null;
    const list = element('ul', {}, ...state.members.map(({ account_id, role }) => element('li', {}, avatar(account_id, nameOf(account_id)), element('span', { class: 'grow' }, nameOf(account_id)), element('small', {}, say(role)),
        !info.peer && (account_id === state.me || (manages && role === 'member')) && element('button', { type: 'button', class: 'plain', onclick: ({ target }) => {
            if (!target.dataset.sure) { // it cannot be taken back: asked once more
                target.dataset.sure = true;
                target.textContent = say('sure');
                return;
            }
            target.closest('li').remove();
            state.leaving = account_id === state.me;
            act('members/remove', { account_ids: [account_id] });
        } }, say(account_id === state.me ? 'leave' : 'remove')))));
    const agreed = await ask(say('people'), element('div', {}, !info.peer && name, list, adding && element('h2', {}, say('add')), adding?.element), manages && !info.peer ? say('save') : say('close'), { shows: !manages || !!info.peer });
    if (!agreed || info.peer)
        return;
    if (manages && name.value.trim() && name.value.trim() !== info.name)
        await act('update', { name: name.value.trim() });
    if (adding?.chosen.size)
        await act('members/add', { account_ids: [...adding.chosen.keys()] });
}

let toasting;
function toast(words) {
    $('toast').textContent = words;
    $('toast').hidden = false;
    clearTimeout(toasting);
    toasting = setTimeout(() => { $('toast').hidden = true; }, 5000);
}

$('new-chat').addEventListener('click', newChat);
$('room-people').addEventListener('click', showPeople);
$('back').addEventListener('click', closeRoom);
$('log-out').addEventListener('click', logOut);
for (const button of document.querySelectorAll('.language'))
    button.addEventListener('click', () => {
        setLanguage(language === 'zh' ? 'en' : 'zh');
        translatePage();
        drawn.rows.clear();
        listed.clear();
        if (state.client)
            drawConnection(state.client.state);
        redraw();
    });

begin();
