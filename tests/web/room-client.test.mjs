/* room-client without a network: what it does with events, ends and answers, moment by moment. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import test from 'node:test';
import { backoffDelay, formatCursor, newId, parseCursor, RequestError, verdictOf } from '../../gateway-adapter/web/room-client.js';
import { at, message, settle, World } from './world.mjs';

const unavailable = () => new RequestError('unavailable', 'away', { status: 503 });
const json = (status, body, headers) => new Response(JSON.stringify(body), { status, headers });

// ------------------------------------------------------------------------------------------------- small things

test('a cursor is epoch:seq or a bare seq', () => {
    assert.deepEqual(parseCursor('3:57'), { epoch: 3, seq: 57 });
    assert.deepEqual(parseCursor(57), { epoch: null, seq: 57 });
    assert.equal(formatCursor(parseCursor('3:57')), '3:57');
    assert.equal(formatCursor({ epoch: null, seq: 57 }), '57');
    for (const bad of ['', ':', '3:', '-1:2', '1:2:3', '0x1'])
        assert.throws(() => parseCursor(bad), TypeError, bad);
});

test('ids are ULIDs and different', () => {
    const ids = new Set(Array.from({ length: 1000 }, () => newId()));
    assert.equal(ids.size, 1000);
    for (const id of ids)
        assert.match(id, /^[0-7][0-9A-HJKMNP-TV-Z]{25}$/);
    assert.ok(newId(1) < newId(2));
});

test('the back-off has full jitter below a growing bound', () => {
    const backoff = { base_ms: 500, factor: 2, max_ms: 20000 };
    assert.equal(backoffDelay(backoff, 0, () => 1), 500);
    assert.equal(backoffDelay(backoff, 3, () => 1), 4000);
    assert.equal(backoffDelay(backoff, 3, () => 0), 0);
    assert.equal(backoffDelay(backoff, 1000, () => 1), 20000);
});

test('close codes are judged by their range', () => {
    for (const [code, verdict] of [[4000, 'again'], [4001, 'again'], [4003, 'later'], [4321, 'again'], [4500, 'stop'], [4501, 'renew'], [4502, 'stop'], [4777, 'stop'],
        [1000, 'again'], [1001, 'again'], [1006, 'again'], [1011, 'again']])
        assert.equal(verdictOf({ code }), verdict, String(code));
    assert.equal(verdictOf({ status: 401, error: new RequestError('ticket_expired') }), 'renew');
    assert.equal(verdictOf({ status: 403, error: new RequestError('not_member') }), 'stop');
    assert.equal(verdictOf({ status: 503, error: unavailable() }), 'later');
});

test('the types name what the module has', async () => {
    const module = await import('../../gateway-adapter/web/room-client.js');
    const types = await readFile(new URL('../../gateway-adapter/web/room-client.d.ts', import.meta.url), 'utf8');
    const declared = [...types.matchAll(/^export (?:class|function) (\w+)/gm)].map(([, name]) => name);
    assert.deepEqual(declared.sort(), Object.keys(module).sort());
});

// ------------------------------------------------------------------------------------------------------- the log

test('entries come once and in order', async () => {
    const world = await World.open([at('3:5')]);
    world.socket.say(message(6), message(7), message(7), message(6), message(8));
    assert.deepEqual(world.seqs(), [6, 7, 8]);
    assert.deepEqual(world.client.positions(), ['r@3:8']);
});

test('a stream that begins somewhere takes its first entry as the beginning', async () => {
    const world = await World.open();
    world.socket.say(message(41));
    assert.deepEqual(world.seqs(), [41]);
});

test('what a former owner showed late is dropped', async () => {
    const world = await World.open([at('3:5')]);
    world.socket.say(message(6, { epoch: 4 }), message(7, { epoch: 3 }), message(7, { epoch: 4 }));
    assert.deepEqual(world.seen.map(([, event]) => [event.epoch, event.seq]), [[4, 6], [4, 7]]);
});

test('reset takes entries back, and others come in their place', async () => {
    const world = await World.open([at('3:5')]);
    world.socket.say(message(6), message(7), message(8));
    world.socket.say({ type: 'reset', room_id: 'r', epoch: 4, seq: 6 }, message(7, { epoch: 4, message_id: 'other' }));
    assert.deepEqual(world.seqs(), [6, 7, 8, 7]);
    const [, reset] = world.seen.find(([type]) => type === 'reset');
    assert.deepEqual(reset.gone.map(({ seq }) => seq), [7, 8]);
    assert.deepEqual(world.client.room('r').messages.map(({ message_id }) => message_id), ['m6', 'other']);
    assert.deepEqual(world.client.positions(), ['r@4:7']);
});

test('an own message that was taken back waits for its new seq', async () => {
    const world = await World.open([at('3:5')]);
    const own = world.client.send('r', 'mine');
    world.socket.say(message(6, { sender: 'me', client_msg_id: own.client_msg_id }));
    assert.equal(own.sending, 'sent');
    world.socket.say({ type: 'reset', room_id: 'r', epoch: 4, seq: 5 });
    assert.equal(own.seq, undefined);
    assert.deepEqual(world.client.room('r').outbox, [own]);
    world.socket.say(message(6, { epoch: 4 }), message(7, { epoch: 4, sender: 'me', client_msg_id: own.client_msg_id, message_id: 'm' }), { type: 'durable', room_id: 'r', seq: 7 });
    assert.equal(own.seq, 7);
    assert.equal(own.sending, 'stored');
    assert.deepEqual(world.client.room('r').outbox, []);
});

test('a void over what was shown early is forgotten', async () => {
    const world = await World.open([at('3:5')]);
    world.socket.say(message(6), message(7), { type: 'void', room_id: 'r', epoch: 3, seq: 6, at: 1, of_seq: 2 });
    assert.deepEqual(world.client.room('r').messages.map(({ seq }) => seq), [7]);
    assert.equal(world.seen.find(([type]) => type === 'forget')[1].message_id, 'm6');
    assert.deepEqual(world.seqs(), [6, 7]);
});

test('a void takes its seq and shows nothing', async () => {
    const world = await World.open([at('3:5')]);
    world.socket.say({ type: 'void', room_id: 'r', epoch: 3, seq: 6, at: 1 }, message(7));
    assert.deepEqual(world.client.room('r').messages.map(({ seq }) => seq), [7]);
    assert.equal(world.pulls.length, 0);
});

test('a gap is pulled before what is behind it is shown', async () => {
    const world = await World.open([at('3:5')]);
    world.socket.say(message(6), message(9), message(10));
    assert.deepEqual(world.seqs(), [6]);
    assert.deepEqual([world.pulls.length, world.pulls[0].query.after], [1, '3:6']);
    world.pulls[0].answer({ entries: [message(7), message(8)], head: '3:8', durable_seq: 8, more: false });
    await settle();
    assert.deepEqual(world.seqs(), [6, 7, 8, 9, 10]);
    world.socket.say(message(11));
    assert.equal(world.pulls.length, 1);
});

test('a gap whose entries are not durable yet is waited for', async () => {
    const world = await World.open([at('3:5')]);
    world.socket.say(message(8));
    world.pulls[0].answer({ entries: [message(6)], head: '3:6', durable_seq: 6, more: false });
    await world.clock.advance(0);
    assert.deepEqual(world.seqs(), [6]);
    world.pulls[1].answer({ entries: [], head: '3:6', durable_seq: 6, more: false });
    await world.clock.advance(1000);
    world.pulls[2].answer({ entries: [message(7)], head: '3:8', durable_seq: 8, more: false });
    await settle();
    assert.deepEqual(world.seqs(), [6, 7, 8]);
});

test('a seq that is hidden from the account is no gap that stays open', async () => {
    const world = await World.open([at('3:5')]);
    world.socket.say(message(7));
    world.pulls[0].answer({ entries: [message(7)], head: '3:7', durable_seq: 7, more: false });
    await settle();
    assert.deepEqual(world.seqs(), [7]);
    world.socket.say({ type: 'message.hidden', room_id: 'r', seq: 8 }, message(9));
    assert.deepEqual(world.seqs(), [7, 9]);
    assert.equal(world.pulls.length, 1);
});

test('a Pull that fails is repeated, and what waits for it is not lost', async () => {
    const world = await World.open([at('3:5')]);
    world.socket.say(message(7));
    world.pulls[0].refuse(unavailable());
    await world.clock.advance(1000);
    world.pulls[1].answer({ entries: [message(6)], head: '3:6', durable_seq: 6, more: false });
    await settle();
    assert.deepEqual(world.seqs(), [6, 7]);
});

test('a last message that got lost shows in the heads of a ping', async () => {
    const world = await World.open([at('3:5')]);
    world.socket.say({ type: 'ping', at: 1, heads: [{ room_id: 'r', head: '3:6', durable_seq: 6 }] });
    await world.clock.advance(4000);
    assert.equal(world.pulls.length, 0); // it may be on its way
    await world.clock.advance(2000);
    assert.equal(world.pulls[0].query.after, '3:5');
    world.pulls[0].answer({ entries: [message(6)], head: '3:6', durable_seq: 6, more: false });
    await settle();
    assert.deepEqual(world.seqs(), [6]);
});

test('a head that is only hidden from us is asked for once', async () => {
    const world = await World.open([at('3:5')]);
    const ping = () => world.socket.say({ type: 'ping', at: 1, heads: [{ room_id: 'r', head: '3:6', durable_seq: 6 }] });
    ping();
    await world.clock.advance(6000);
    world.pulls[0].answer({ entries: [], head: '3:6', durable_seq: 6, more: false });
    ping();
    await world.clock.advance(6000);
    assert.equal(world.pulls.length, 1);
});

test('a reader whose entries still come does not Pull for the head', async () => {
    const world = await World.open([at('3:5')]);
    world.socket.say({ type: 'ping', at: 1, heads: [{ room_id: 'r', head: '3:90', durable_seq: 90 }] });
    await world.clock.advance(3000);
    world.socket.say(message(6));
    await world.clock.advance(3000);
    assert.equal(world.pulls.length, 0);
});

test('a signal is followed by Pulls until the head is there', async () => {
    const world = await World.open([at('3:5')]);
    world.socket.say({ type: 'signal', room_id: 'r', head: '3:9' }, { type: 'signal', room_id: 'r', head: '3:10' });
    assert.equal(world.pulls.length, 1);
    world.pulls[0].answer({ entries: [6, 7, 8].map((seq) => message(seq)), head: '3:10', durable_seq: 10, more: true });
    await settle();
    assert.equal(world.pulls[1].query.after, '3:8');
    world.pulls[1].answer({ entries: [message(9), message(10)], head: '3:10', durable_seq: 10, more: false });
    await settle();
    assert.deepEqual(world.seqs(), [6, 7, 8, 9, 10]);
    assert.equal(world.pulls.length, 2);
});

test('a Pull that says reset takes back what was shown', async () => {
    const world = await World.open([at('3:5')]);
    world.socket.say(message(6), { type: 'signal', room_id: 'r', head: '4:7' });
    world.pulls[0].answer({ entries: [message(6, { epoch: 4 }), message(7, { epoch: 4 })], head: '4:7', durable_seq: 7, more: false, reset: '3:5' });
    await settle();
    assert.deepEqual(world.seqs(), [6, 6, 7]);
    assert.deepEqual(world.client.positions(), ['r@4:7']);
});

// ---------------------------------------------------------------------------------------------- the messages kept

test('edited, recalled and deleted change the message they name', async () => {
    const world = await World.open([at('3:0')]);
    const op = (seq, type, target_seq, fields) => ({ type: `message.${type}`, room_id: 'r', epoch: 3, seq, at: seq, target_seq, message_id: `m${target_seq}`, by: 'you', ...fields });
    world.socket.say(message(1), message(2), message(3), op(4, 'edited', 1, { content: 'new', mentions: ['me'] }), op(5, 'recalled', 2), op(6, 'deleted', 3),
        op(7, 'edited', 2, { content: 'late' }));
    const [one, two, three] = world.client.room('r').messages;
    assert.deepEqual([one.content, one.state, one.mentions, one.edited_at], ['new', 'edited', ['me'], 4]);
    assert.deepEqual([two.content, two.state, two.state_by], [undefined, 'recalled', 'you']);
    assert.deepEqual([three.content, three.state], [undefined, 'deleted']);
    assert.deepEqual(world.seqs(), [1, 2, 3, 4, 5, 6, 7]);
});

test('older messages are loaded in front, as they are now', async () => {
    const world = await World.open([at('3:100')]);
    const room = world.client.room('r');
    world.socket.say(message(101));
    const loading = room.loadBefore(3);
    assert.equal(world.pulls[0].query.before, 101);
    const edit = { type: 'message.edited', room_id: 'r', epoch: 3, seq: 100, at: 1, target_seq: 98, message_id: 'm98', content: 'older edit' };
    world.pulls[0].answer({ entries: [message(98, { state: 'edited', content: 'newest' }), message(99), edit], head: '3:101', durable_seq: 101, more: true });
    assert.deepEqual((await loading).map(({ seq }) => seq), [98, 99]);
    assert.deepEqual(room.messages.map(({ seq, content }) => [seq, content]), [[98, 'newest'], [99, 'number 99'], [101, 'number 101']]);
    assert.deepEqual(world.seqs(), [101]);
    const again = room.loadBefore(3);
    assert.equal(world.pulls[1].query.before, 98);
    world.pulls[1].answer({ entries: [], head: '3:101', durable_seq: 101, more: false });
    await again;
    assert.equal(room.hasOlder, false);
});

test('a room keeps no more messages than it should', async () => {
    const world = await World.open([at('3:0')], { keepMessages: 100 });
    for (let seq = 1; seq <= 1000; seq++)
        world.socket.say(message(seq));
    const { messages } = world.client.room('r');
    assert.ok(messages.length >= 100 && messages.length <= 120);
    assert.equal(messages.at(-1).seq, 1000);
    assert.equal(world.seqs().length, 1000);
});

test('what is hidden from me goes', async () => {
    const world = await World.open([at('3:0')]);
    world.socket.say(message(1), message(2), { type: 'message.hidden', room_id: 'r', seq: 1 });
    assert.deepEqual(world.client.room('r').messages.map(({ seq }) => seq), [2]);
});

test('an application that throws does not stop its stream', async () => {
    const world = await World.open([at('3:0')]);
    world.client.on('message', () => {
        throw new Error('mine');
    });
    world.socket.say(message(1), message(2));
    assert.deepEqual(world.seqs(), [1, 2]);
    assert.equal(world.seen.filter(([type, error]) => type === 'error' && error.message === 'mine').length, 2);
});

// ------------------------------------------------------------------------------------------- coming back, transports

test('a broken stream comes back with the cursors', async () => {
    const world = await World.open([at('3:5')]);
    world.socket.say(message(6));
    world.socket.end(1006);
    await world.clock.advance(249);
    assert.equal(world.sockets.length, 1);
    await world.clock.advance(1);
    assert.equal(world.sockets.length, 2);
    assert.deepEqual(world.socket.after, ['r@3:6']);
    world.socket.hello(at('3:8', '3:6'));
    world.socket.say(message(7), message(8));
    assert.deepEqual(world.seqs(), [6, 7, 8]);
});

test('more positions than fit into a URL go in a subscribe', async () => {
    const world = await World.open(Array.from({ length: 300 }, (_, i) => at('3:5', '3:5', `r${i}`)));
    world.socket.end(1006);
    await world.clock.advance(1000);
    assert.deepEqual(world.socket.after, ['*']);
    world.socket.hello();
    assert.equal(world.socket.frames[0].type, 'subscribe');
    assert.equal(world.socket.frames[0].payload.rooms.length, 300);
    assert.deepEqual(world.socket.frames[0].payload.rooms[7], { room_id: 'r7', after: '3:5' });
});

test('tries that fail grow apart; a stream that lived starts anew', async () => {
    const world = await World.open();
    const delays = [];
    for (let i = 0; i < 8; i++) {
        const [before, count] = [world.clock.time, world.sockets.length];
        world.socket.hello(); // let in,
        world.socket.end(4003); // and put out again at once
        while (world.sockets.length === count)
            await world.clock.advance(50);
        delays.push(world.clock.time - before);
    }
    assert.deepEqual(delays.map((delay) => Math.round(delay / 100)), [5, 10, 20, 40, 80, 100, 100, 100]);
    world.socket.hello();
    await world.clock.advance(5000);
    world.socket.end(1006);
    await world.clock.advance(300);
    assert.equal(world.sockets.length, 10);
});

test('a ticket that ran out is replaced; a kick is for good', async () => {
    const world = await World.open();
    world.socket.end(4501);
    await world.clock.advance(1000);
    assert.equal(world.asked.length, 2);
    world.socket.hello();
    world.socket.say({ type: 'error', code: 'forbidden', message: 'kicked' });
    world.socket.end(4502);
    await world.clock.advance(100000);
    assert.equal(world.sockets.length, 2);
    assert.deepEqual(world.states.at(-1), ['stopped', null, 'forbidden']);
    assert.equal(world.clock.pending, 0);
});

test('a WebSocket that shows nothing leads to SSE, and comes back later', async () => {
    const world = new World();
    world.client.start();
    await world.clock.advance(5001);
    assert.equal(world.sockets.length, 1);
    assert.equal(world.fetches[0].url, 'http://one/sse');
    const sse = sseStream(world.fetches[0]);
    sse.say({ type: 'hello', instance: 'I', heartbeat_ms: 20000, rooms: [at('3:5')] }, message(6));
    await settle();
    assert.deepEqual([world.client.transport, world.seqs()], ['sse', [6]]);
    for (let i = 0; i < 3; i++) {
        await world.clock.advance(10000);
        sse.say({ type: 'ping', at: 1, heads: [] });
    }
    assert.equal(world.sockets.length, 2);
    assert.deepEqual(world.socket.after, ['r@3:6']);
    world.socket.hello(at('3:7', '3:6'));
    world.socket.say(message(7));
    sse.say(message(7), message(8));
    world.socket.say(message(8), message(9));
    await settle();
    assert.equal(world.client.transport, 'websocket');
    assert.deepEqual(world.seqs(), [6, 7, 8, 9]);
    assert.ok(world.fetches[0].signal.aborted);
});

test('where neither WebSocket nor SSE passes, polls do', async () => {
    const world = new World();
    world.client.start();
    await settle();
    world.socket.end(1006);
    await settle();
    world.fetches[0].answer(new Response('blocked', { status: 405 }));
    await settle();
    assert.equal(world.fetches[1].url, 'http://one/poll');
    world.fetches[1].answer(json(200, { events: [message(6)], after: ['r@3:6', '~@77'] }));
    await settle();
    assert.deepEqual(world.fetches[2].body.after, ['r@3:6', '~@77']);
    assert.deepEqual([world.client.transport, world.seqs()], ['poll', [6]]);
});

test('a transport that has worked is not given up for one bad try', async () => {
    const world = await World.open();
    world.socket.end(1006);
    await world.clock.advance(1000);
    world.socket.end(1006);
    await settle();
    assert.equal(world.fetches.length, 0);
    await world.clock.advance(1000);
    world.socket.end(1006);
    await settle();
    assert.equal(world.fetches[0].url, 'http://one/sse');
});

test('a kick is for good on SSE and on polls, too', async () => {
    const kicked = { code: 'forbidden', message: 'signed in elsewhere' };
    for (const transport of ['sse', 'poll']) {
        const world = new World({ transports: [transport] });
        world.client.start();
        await settle();
        if (transport === 'sse')
            world.fetches[0].answer(new Response(`data: ${JSON.stringify({ type: 'error', ...kicked })}\n\n`));
        else
            world.fetches[0].answer(json(403, { error: kicked }));
        await world.clock.advance(100000);
        assert.equal(world.fetches.length, 1);
        assert.deepEqual(world.states.at(-1), ['stopped', null, 'forbidden']);
        assert.equal(world.clock.pending, 0);
    }
});

test('overload is no reason for another transport', async () => {
    const world = new World();
    world.client.start();
    await settle();
    world.socket.end(4003);
    await world.clock.advance(10);
    assert.equal(world.fetches.length, 0);
    assert.deepEqual(world.states.at(-1), ['waiting', null, 'network']);
});

test('who is refused comes back when it was told to, and that is no error of the application\'s', async () => {
    const world = new World();
    const errors = [];
    world.client.on('error', (error) => errors.push(error));
    world.client.start();
    await settle();
    world.socket.say({ type: 'error', code: 'unavailable', message: 'too many at once', retry_after_ms: 9000 });
    world.socket.end(4003);
    await world.clock.advance(8999);
    assert.equal(world.sockets.length, 1);
    assert.deepEqual(world.states.at(-1), ['waiting', null, 'unavailable']);
    await world.clock.advance(4000);
    assert.equal(world.sockets.length, 2);
    assert.deepEqual(errors, []);
});

test('an overloaded gateway is not asked for another transport either', async () => {
    const world = new World({ transports: ['sse', 'poll'] });
    world.client.start();
    await settle();
    world.fetches[0].answer(json(503, { error: { code: 'unavailable', message: 'full' } }, { 'Retry-After': '1' }));
    await world.clock.advance(1000);
    assert.equal(world.fetches.length, 1);
    await world.clock.advance(1000);
    assert.deepEqual(world.fetches.map(({ url }) => url), ['http://one/sse', 'http://one/sse']);
});

test('a ticket that is refused is good nowhere', async () => {
    const world = new World({ transports: ['sse'] });
    const { address } = world;
    world.address = () => ({ ...address(), targets: [...address('one').targets, ...address('two').targets] });
    world.client.start();
    await settle();
    world.fetches[0].answer(json(401, { error: { code: 'ticket_expired', message: '' } }));
    await world.clock.advance(1000);
    assert.deepEqual([world.asked.length, world.fetches[1].url], [2, 'http://one/sse']);
});

test('an endpoint that is dead leads to the next one with the same ticket', async () => {
    const world = new World({ transports: ['sse'] });
    const { address } = world;
    world.address = () => ({ ...address(), targets: [...address('one').targets, ...address('two').targets] });
    world.client.start();
    await settle();
    world.fetches[0].refuse(new Error('refused'));
    await world.clock.advance(1000);
    assert.deepEqual([world.asked.length, world.fetches[1].url], [1, 'http://two/sse']);
});

test('a silent connection is left', async () => {
    const world = await World.open();
    for (let i = 0; i < 3; i++) {
        await world.clock.advance(20000);
        world.socket.say({ type: 'ping', at: 1, heads: [] });
    }
    assert.equal(world.sockets.length, 1);
    await world.clock.advance(61000);
    assert.equal(world.sockets.length, 2);
});

test('Retry-After is kept', async () => {
    let answers = [() => { throw new RequestError('unavailable', '', { status: 503, retryAfterMs: 7000 }); }];
    const world = new World({ backend: { connect: async () => (answers.shift() ?? (() => world.address()))() } });
    world.client.start();
    await world.clock.advance(6999);
    assert.equal(world.sockets.length, 0);
    await world.clock.advance(1000);
    assert.equal(world.sockets.length, 1);
});

test('without a session the client stops and says so', async () => {
    const world = new World({ backend: { connect: async () => { throw new RequestError('unauthenticated', '', { status: 401 }); } } });
    world.client.start();
    await world.clock.advance(100000);
    assert.deepEqual(world.states.at(-1), ['stopped', null, 'unauthenticated']);
});

test('migrate: the new stream is open before the old one is left, and nothing comes twice', async () => {
    const world = await World.open([at('3:5')]);
    const [old] = world.sockets;
    old.say(message(6), { type: 'migrate', address: 'two', within_ms: 5000 });
    await settle();
    const next = world.socket;
    assert.notEqual(next, old);
    assert.equal(next.url.host, 'two');
    assert.deepEqual(next.after, ['r@3:6']);
    old.say(message(7), message(8));
    assert.equal(old.closedBy, undefined);
    next.hello(at('3:8', '3:6'));
    next.say(message(7), message(8), message(9));
    old.say(message(9));
    await settle();
    assert.equal(old.closedBy, 1000);
    assert.deepEqual(world.seqs(), [6, 7, 8, 9]);
    assert.deepEqual(world.states.map(([state]) => state), ['connecting', 'open', 'open']);
});

test('migrate: without an address the client asks for one', async () => {
    const world = await World.open([at('3:5')]);
    const [old] = world.sockets;
    const asked = world.asked.length;
    old.say(message(6), { type: 'migrate', within_ms: 5000 });
    await settle();
    assert.equal(world.asked.length, asked + 1);
    assert.notEqual(world.socket, old);
    assert.equal(old.closedBy, undefined);
    world.socket.hello(at('3:6'));
    await settle();
    assert.equal(old.closedBy, 1000);
    assert.deepEqual(world.seqs(), [6]);
});

test('migrate: what was asked on the old stream is still answered there', async () => {
    const world = await World.open([at('3:5')]);
    const [old] = world.sockets;
    const own = world.client.send('r', 'hello');
    old.say({ type: 'migrate', address: 'two', within_ms: 5000 });
    await settle();
    world.socket.hello(at('3:5'));
    await settle();
    assert.equal(old.closedBy, undefined);
    old.say({ type: 'ack', req_id: old.frames[0].req_id, client_msg_id: own.client_msg_id, message_id: 'm' });
    await settle();
    assert.deepEqual([own.sending, own.message_id, old.closedBy], ['sent', 'm', 1000]);
    assert.equal(world.socket.frames.length, 0);
});

test('migrate: a new place that does not answer leads back the ordinary way', async () => {
    const world = await World.open([at('3:5')]);
    const [old] = world.sockets;
    old.say({ type: 'migrate', address: 'two', within_ms: 5000 });
    await settle();
    world.socket.end(1006);
    old.end(4000);
    await world.clock.advance(60000);
    assert.ok(world.asked.length >= 2);
});

test('a reset told by both streams counts once', async () => {
    const world = await World.open([at('3:5')]);
    const [old] = world.sockets;
    old.say(message(6), message(7), { type: 'migrate', address: 'two', within_ms: 5000 });
    await settle();
    world.socket.hello(at('4:6', '3:5'));
    world.socket.say({ type: 'reset', room_id: 'r', epoch: 4, seq: 5 }, message(6, { epoch: 4 }), message(7, { epoch: 4 }));
    old.say({ type: 'reset', room_id: 'r', epoch: 4, seq: 5 });
    assert.deepEqual(world.seqs(), [6, 7, 6, 7]);
    assert.deepEqual(world.client.positions(), ['r@4:7']);
});

test('rooms are entered and left', async () => {
    const world = await World.open([at('3:5')]);
    world.socket.say({ type: 'room.entered', ...at('0:0', '0:0', 'new') }, message(1, { room_id: 'new' }), { type: 'room.left', room_id: 'r', reason: 'removed' });
    assert.deepEqual(world.seqs('new'), [1]);
    assert.deepEqual(world.client.positions(), ['new@3:1']);
});

// --------------------------------------------------------------------------------------------------------- sending

const ack = (socket, i, fields = {}) => socket.say({ type: 'ack', req_id: socket.frames[i].req_id, message_id: 'm', ...fields });

test('a message goes, is sent, is stored', async () => {
    const world = await World.open([at('3:5')]);
    const states = [];
    world.client.on('sending', (one) => states.push(one.sending));
    const own = world.client.room('r').send('hello', { quote_seq: 2 });
    assert.deepEqual(world.client.room('r').timeline(), [own]);
    const [frame] = world.socket.frames;
    assert.deepEqual([frame.type, frame.payload], ['message.send', { room_id: 'r', client_msg_id: own.client_msg_id, kind: 'text', content: 'hello', quote_seq: 2 }]);
    ack(world.socket, 0, { message_id: 'm6' });
    await settle();
    world.socket.say(message(6, { sender: 'me', client_msg_id: own.client_msg_id }), { type: 'durable', room_id: 'r', seq: 6 });
    assert.deepEqual(states, ['going', 'sent', 'stored']);
    assert.deepEqual([own.seq, world.client.room('r').messages, world.client.room('r').outbox], [6, [own], []]);
});

test('where no mark tells that a message is stored, a Pull does', async () => {
    const world = await World.open([at('3:5')]);
    const own = world.client.send('r', 'hello');
    world.socket.say(message(6, { sender: 'me', client_msg_id: own.client_msg_id }));
    await world.clock.advance(2000);
    world.pulls[0].answer({ entries: [], head: '3:5', durable_seq: 5, more: false });
    await world.clock.advance(2000);
    assert.equal(own.sending, 'sent');
    world.pulls[1].answer({ entries: [], head: '3:6', durable_seq: 6, more: false });
    await world.clock.advance(10000);
    assert.deepEqual([own.sending, world.pulls.length], ['stored', 2]);
});

test('another account with the same client_msg_id is not me', async () => {
    const world = await World.open([at('3:5')]);
    const own = world.client.send('r', 'hello');
    world.socket.say(message(6, { sender: 'you', client_msg_id: own.client_msg_id }));
    assert.deepEqual([own.sending, own.seq], ['going', undefined]);
});

test('the messages of a room leave one after the other; another room does not wait', async () => {
    const world = await World.open([at('3:5'), at('1:1', '1:1', 'other')]);
    world.client.send('r', 'one');
    world.client.send('r', 'two');
    world.client.send('other', 'three');
    assert.deepEqual(world.socket.frames.map(({ payload }) => payload.content), ['one', 'three']);
    ack(world.socket, 0);
    await settle();
    assert.deepEqual(world.socket.frames.map(({ payload }) => payload.content), ['one', 'three', 'two']);
});

test('a message whose answer got lost goes again with the same id', async () => {
    const world = await World.open([at('3:5')]);
    const own = world.client.send('r', 'hello');
    world.socket.end(1006);
    await world.clock.advance(1000);
    assert.equal(own.sending, 'going');
    world.socket.hello(at('3:5'));
    await settle();
    assert.deepEqual(world.socket.frames.map(({ payload }) => payload.client_msg_id), [own.client_msg_id]);
});

test('a message that was seen in the log does not go again', async () => {
    const world = await World.open([at('3:5')]);
    const own = world.client.send('r', 'hello');
    world.socket.say(message(6, { sender: 'me', client_msg_id: own.client_msg_id }));
    world.socket.end(1006);
    await world.clock.advance(1000);
    world.socket.hello(at('3:6'));
    await settle();
    assert.equal(world.socket.frames.length, 0);
});

test('what is in the log does not fail because its answer got lost', async () => {
    const world = await World.open([at('3:5')], { sendGiveUpMs: -1 });
    const own = world.client.send('r', 'hello');
    world.socket.say(message(6, { sender: 'me', client_msg_id: own.client_msg_id }));
    world.socket.end(1006);
    await settle();
    assert.equal(own.sending, 'sent');
});

test('a refusal is final, and the next message goes on', async () => {
    const world = await World.open([at('3:5')]);
    const [one, two] = [world.client.send('r', 'one'), world.client.send('r', 'two')];
    world.socket.say({ type: 'error', req_id: world.socket.frames[0].req_id, code: 'forbidden', message: 'muted' });
    await settle();
    assert.deepEqual([one.sending, one.error.code, two.sending], ['failed', 'forbidden', 'going']);
    assert.equal(world.socket.frames[1].payload.content, 'two');
    world.client.retry(one);
    ack(world.socket, 1);
    await settle();
    assert.equal(world.socket.frames[2].payload.client_msg_id, one.client_msg_id);
});

test('unavailable is tried again until the user would have given up', async () => {
    const world = await World.open([at('3:5')], { sendGiveUpMs: 30000 });
    const own = world.client.send('r', 'hello');
    for (let i = 0; i < 100 && own.sending === 'going'; i++) {
        const frame = world.socket.frames[i];
        if (frame)
            world.socket.say({ type: 'error', req_id: frame.req_id, code: 'unavailable', message: 'away' }, { type: 'ping', at: 1, heads: [] });
        await world.clock.advance(10000);
    }
    assert.deepEqual([own.sending, own.error.code], ['failed', 'unavailable']);
    assert.ok(world.socket.frames.length >= 4);
});

test('message.rejected fails the message it names', async () => {
    const world = await World.open([at('3:5')]);
    const own = world.client.send('r', 'hello');
    ack(world.socket, 0);
    await settle();
    world.socket.say({ type: 'message.rejected', room_id: 'r', client_msg_id: own.client_msg_id, message_id: 'm', code: 'not_member' });
    assert.deepEqual([own.sending, own.error.code], ['failed', 'not_member']);
    world.client.discard(own);
    assert.deepEqual(world.client.room('r').outbox, []);
});

test('without a WebSocket messages go by request', async () => {
    const sent = [];
    const world = new World({ transports: ['sse'], backend: { send: async (env, room_id, body) => (sent.push([room_id, body]), { message_id: 'm' }) } });
    world.client.start();
    const own = world.client.send('r', 'hello');
    await settle();
    assert.deepEqual(sent, [['r', { client_msg_id: own.client_msg_id, kind: 'text', content: 'hello', mentions: undefined, quote_seq: undefined }]]);
    assert.equal(own.sending, 'sent');
});

test('what was sent before there is a connection leaves when there is one', async () => {
    const world = new World();
    world.client.start();
    world.client.send('r', 'hello');
    await settle();
    world.socket.hello(at('3:5'));
    await settle();
    assert.equal(world.socket.frames.length, 1);
});

class Shelf {
    items = new Map();
    getItem = (key) => this.items.get(key) ?? null;
    setItem = (key, value) => this.items.set(key, value);
    removeItem = (key) => this.items.delete(key);
}

test('what waits to leave survives a reload, in its order and with its ids', async () => {
    const storage = new Shelf();
    const before = await World.open([at('3:5')], { storage });
    const [one, two] = [before.client.send('r', 'one', { quote_seq: 2 }), before.client.send('r', 'two')];
    before.client.send('other', 'three');
    ack(before.socket, 1); // three
    await settle();
    before.socket.end(1006); // and the page is gone

    const after = new World({ storage });
    after.client.start();
    await settle();
    assert.deepEqual(after.client.room('r').timeline().map(({ content, sending }) => [content, sending]), [['one', 'going'], ['two', 'going']]);
    after.socket.hello(at('3:5'));
    await settle();
    assert.deepEqual(after.socket.frames.map(({ payload }) => payload), [{ room_id: 'r', client_msg_id: one.client_msg_id, kind: 'text', content: 'one', quote_seq: 2 }]);
    ack(after.socket, 0);
    await settle();
    assert.equal(after.socket.frames[1].payload.client_msg_id, two.client_msg_id);
    ack(after.socket, 1);
    await settle();
    after.socket.say(message(6, { sender: 'me', client_msg_id: one.client_msg_id }), message(7, { sender: 'me', client_msg_id: two.client_msg_id }), { type: 'durable', room_id: 'r', seq: 7 });
    assert.deepEqual(after.client.room('r').timeline().map(({ seq, sending }) => [seq, sending]), [[6, 'stored'], [7, 'stored']]);
    assert.equal(storage.items.size, 0);
});

test('what had arrived before the reload is not shown twice', async () => {
    const storage = new Shelf();
    const before = await World.open([at('3:5')], { storage });
    const [one, two] = [before.client.send('r', 'one'), before.client.send('other', 'two')];
    const after = await World.open([at('3:6')], { storage });
    after.client.room('r').loadBefore();
    await settle();
    after.pulls[0].answer({ entries: [message(6, { sender: 'me', client_msg_id: one.client_msg_id })], head: '3:6', durable_seq: 6, more: false });
    await settle();
    assert.deepEqual(after.client.room('r').timeline().map(({ seq, sending }) => [seq, sending]), [[6, 'stored']]);
    // The other room is not looked at: after the broker's word it is looked for once.
    ack(after.socket, after.socket.frames.findIndex(({ payload }) => payload.client_msg_id === two.client_msg_id));
    await after.clock.advance(2000);
    after.pulls.at(-1).answer({ entries: [message(9, { sender: 'me', client_msg_id: two.client_msg_id, room_id: 'other' })], head: '3:9', durable_seq: 9, more: false });
    await settle();
    assert.deepEqual(after.client.room('other').outbox, []);
    assert.equal(storage.items.size, 0);
});

test('what is kept over a reload is bounded, another account\'s, or nothing at all', async () => {
    const storage = new Shelf();
    const before = new World({ storage, keepSending: 3, keepSendingChars: 4000 });
    before.client.start();
    for (let i = 0; i < 5; i++)
        before.client.send('r', `${i}`);
    before.client.send('r', 'x'.repeat(5000));
    assert.deepEqual(JSON.parse(storage.getItem('roomd.outbox.me')).map(({ kept }) => kept.content), ['0', '1', '2']);
    const other = new World({ storage, account_id: 'you' });
    other.client.start();
    assert.equal(other.client.rooms.size, 0);
    for (const nonsense of ['{', '{"a":1}', '[{"room_id":1}]', '[null]'])
        storage.setItem('roomd.outbox.me', nonsense), new World({ storage }).client.start();
    const full = new World({ storage: { getItem: () => { throw new Error('forbidden'); }, setItem: () => { throw new Error('full'); }, removeItem: () => { throw new Error('no'); } } });
    full.client.start();
    full.client.send('r', 'hello');
    assert.equal(full.client.room('r').outbox.length, 1);
});

// --------------------------------------------------------------------------------------------- reading and typing

test('reads are merged, and the newest goes again until it is answered', async () => {
    const world = await World.open([at('3:5')]);
    const room = world.client.room('r');
    room.markRead(3);
    room.markRead(5);
    room.markRead(4);
    await world.clock.advance(500);
    assert.deepEqual(world.socket.frames.map(({ type, payload }) => [type, payload.read_seq]), [['message.read', 5]]);
    world.socket.end(1006);
    await world.clock.advance(1000);
    world.socket.hello(at('3:5'));
    await world.clock.advance(5000);
    assert.deepEqual(world.socket.frames.map(({ payload }) => payload.read_seq), [5]);
    world.socket.say({ type: 'ack', req_id: world.socket.frames[0].req_id, room_id: 'r', read_seq: 5, unread: 0 });
    await settle();
    assert.deepEqual([room.read_seq, room.unread], [5, 0]);
    room.markRead(5);
    await world.clock.advance(1000);
    assert.equal(world.socket.frames.length, 1);
});

test('who reads and who types is known, and typing ends by itself', async () => {
    const world = await World.open([at('3:5')]);
    const room = world.client.room('r');
    world.socket.say({ type: 'read', room_id: 'r', account_id: 'you', read_seq: 4 }, { type: 'read', room_id: 'r', account_id: 'you', read_seq: 2 });
    assert.deepEqual([...room.reads], [['you', 4]]);
    world.socket.say({ type: 'typing', room_id: 'r', account_id: 'you', for_ms: 6000 });
    assert.deepEqual([...room.typists.keys()], ['you']);
    await world.clock.advance(6000);
    assert.equal(room.typists.size, 0);
    world.socket.say({ type: 'typing', room_id: 'r', account_id: 'you', for_ms: 6000 }, message(6, { sender: 'you' }));
    assert.equal(room.typists.size, 0);
    world.socket.say({ type: 'typing', room_id: 'r', account_id: 'you', for_ms: 6000 }, { type: 'member.left', room_id: 'r', epoch: 3, seq: 7, at: 1, account_ids: ['you'] });
    assert.equal(room.typists.size, 0);
});

test('typing is told at most every three seconds', async () => {
    const world = await World.open([at('3:5')]);
    const room = world.client.room('r');
    for (let i = 0; i < 8; i++) {
        room.typing();
        await world.clock.advance(1000);
    }
    assert.equal(world.socket.frames.length, 3);
});

test('a transient message comes once while two streams bring it', async () => {
    const world = await World.open([at('3:5')]);
    const flash = { type: 'message', transient: true, room_id: 'r', message_id: 'x', sender: 'you', kind: 'text', content: 'flash' };
    world.socket.say(flash, flash);
    assert.equal(world.seen.filter(([type]) => type === 'transient').length, 1);
});

test('an edit is repeated with the same request_id', async () => {
    const asked = [];
    const world = await World.open([at('3:5')], {
        backend: {
            change: async (env, room_id, what, body) => {
                asked.push(body);
                if (asked.length < 3)
                    throw unavailable();
                return { seq: 9 };
            },
        },
    });
    const going = world.client.room('r').edit(5, 'better');
    await world.clock.advance(5000);
    assert.deepEqual(await going, { seq: 9 });
    assert.deepEqual([asked[0].seq, asked[0].content, asked[0].request_id.length, new Set(asked.map(({ request_id }) => request_id)).size],
        [5, 'better', 26, 1]);
});

test('stop leaves nothing behind', async () => {
    const world = await World.open([at('3:5')]);
    world.client.room('r').markRead(4);
    world.socket.say({ type: 'typing', room_id: 'r', account_id: 'you' }, { type: 'ping', at: 1, heads: [{ room_id: 'r', head: '3:9', durable_seq: 9 }] });
    world.client.stop();
    await settle();
    assert.equal(world.clock.pending, 0);
    assert.equal(world.sockets[0].closedBy, 1000);
    world.client.start();
    await settle();
    assert.equal(world.sockets.length, 2);
});

/* The answer to a fetch that stays open, until it is aborted. */
function sseStream({ answer, signal }) {
    let controller;
    const body = new ReadableStream({ start: (given) => (controller = given) });
    answer(new Response(body, { headers: { 'Content-Type': 'text/event-stream' } }));
    return {
        say(...events) {
            if (!signal.aborted)
                controller.enqueue(new TextEncoder().encode(events.map((event) => `data: ${JSON.stringify(event)}\n\n`).join('')));
        },
    };
}
