/*
 * room-client: rooms for a browser or for Node, in one module without dependencies.
 *
 *     const client = new RoomClient({ backend: gatewayBackend() });
 *     client.on('message', (message, room) => show(message));
 *     client.start();
 *     client.room(room_id).send('hello');
 *
 * What it promises, as docs/protocol.md does: the application sees every entry of a room once and in the order of its
 * seq, whatever connections break meanwhile. Only `reset` (entries taken back) and `forget` (one entry was an early
 * duplicate) go back, and they say so. What is sent is retried with the same client_msg_id until it is in the log or
 * refused for good.
 *
 * From top to bottom: cursors · errors · backends (whom to ask) · transports (WebSocket, SSE, long poll) · Stream (one
 * connection) · Connector (which connection, and when the next) · Room (one log and its messages) · RoomClient.
 * Types are in room-client.d.ts; the gateway's side is docs/gateway.md.
 */

const DEFAULTS = {
    transports: ['websocket', 'sse', 'poll'],
    firstBytesMs: 5000, // a transport that shows nothing until then is taken for blocked
    upgradeMs: 30000, // how soon a better transport is tried again; doubles up to upgradeMaxMs
    upgradeMaxMs: 600000,
    pollHoldMs: 25000, // what the server may hold a poll; we wait 15 s longer
    requestTimeoutMs: 15000,
    sendGiveUpMs: 120000, // then a message is `failed`, and the user may retry it
    typingEveryMs: 3000,
    typingForMs: 6000, // how long somebody types when the event does not say it
    readEveryMs: 500,
    storedMs: 2000, // an own message that was not marked durable until then is asked for
    suspectMs: 5000, // a head that was named and did not come until then is pulled
    keepMessages: 5000, // per room, the newest; older ones are loaded again when wanted
    keepSending: 200, // messages that wait to leave and survive a reload in `storage`
    keepSendingChars: 1 << 20,
    storage: null, // sessionStorage, say
};
const BACKOFF = { base_ms: 500, factor: 2, max_ms: 20000 };
const HEARTBEAT_MS = 20000;
const URL_POSITIONS_MAX = 200; // more do not fit into a request head of 32 KiB
const HELD_MAX = 1000; // events of a room that wait for a gap to be pulled
const TAKE_OVER_TRIES = 3;
const PAGE = 200;

// ------------------------------------------------------------------------------------------------------- cursors

/** "epoch:seq", or a bare seq whose epoch is not known (null). */
export function parseCursor(text) {
    const match = /^(?:(\d{1,18}):)?(\d{1,18})$/.exec(String(text));
    if (!match)
        throw new TypeError(`not a cursor: ${text}`);
    return { epoch: match[1] === undefined ? null : Number(match[1]), seq: Number(match[2]) };
}

export function formatCursor({ epoch, seq }) {
    return epoch === null ? String(seq) : `${epoch}:${seq}`;
}

/** Full jitter: anywhere between nothing and the whole delay, so that many readers do not come back together. */
export function backoffDelay({ base_ms, factor, max_ms }, attempt, random = Math.random) {
    return random() * Math.min(max_ms, base_ms * factor ** Math.min(attempt, 60));
}

const CROCKFORD = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';

/** A ULID. (randomUUID is not to be had on pages without TLS, and Node 18 has no global crypto.) */
export function newId(now = Date.now()) {
    const random = new Uint8Array(16);
    if (globalThis.crypto)
        crypto.getRandomValues(random);
    else
        random.forEach((_, i) => (random[i] = Math.random() * 256));
    let text = '';
    for (let time = now, i = 0; i < 10; i++, time = Math.floor(time / 32))
        text = CROCKFORD[time % 32] + text;
    for (const byte of random)
        text += CROCKFORD[byte % 32];
    return text;
}

// -------------------------------------------------------------------------------------------------------- errors

const RETRY_CODES = new Set(['unavailable', 'timeout', 'rate_limited', 'network']);

export class RequestError extends Error {
    /** code: the service's, or `network` when no answer came. */
    constructor(code, message, { status = 0, field, retryAfterMs = 0 } = {}) {
        super(message || code);
        this.name = 'RequestError';
        Object.assign(this, { code, status, field, retryAfterMs });
    }

    /** May the same request succeed a little later? */
    get temporary() {
        return RETRY_CODES.has(this.code) || this.status >= 500 || this.status === 429;
    }
}

async function errorOf(response) {
    const seconds = Number(response.headers.get('retry-after'));
    let error = {};
    try {
        error = (await response.json()).error ?? {};
    } catch {
        // a proxy in between answers in its own way; the status says enough
    }
    const code = error.code ?? (response.status === 401 ? 'unauthenticated' : response.status >= 500 ? 'unavailable' : `http_${response.status}`);
    return new RequestError(code, error.message, { status: response.status, field: error.field, retryAfterMs: seconds > 0 ? seconds * 1000 : 0 });
}

// ------------------------------------------------------------------------------------------------------ backends

/** One JSON request with a deadline; every failure is a RequestError. */
async function request(env, url, { method = 'POST', body, headers = {}, credentials } = {}) {
    const abort = new AbortController();
    const timer = env.setTimeout(() => abort.abort(), env.requestTimeoutMs);
    try {
        const response = await env.fetch(url, {
            method, credentials, signal: abort.signal, cache: 'no-store',
            headers: { ...(body === undefined ? {} : { 'Content-Type': 'application/json' }), ...headers },
            body: body === undefined ? undefined : JSON.stringify(body),
        });
        if (!response.ok)
            throw await errorOf(response);
        return await response.json();
    } catch (error) {
        throw error instanceof RequestError ? error : new RequestError('network', String(error?.message ?? error));
    } finally {
        env.clearTimeout(timer);
    }
}

/**
 * The gateway of docs/gateway.md, at `base` (default: where the page comes from). The session is the browser's cookie;
 * programs that have none give `headers`.
 */
export function gatewayBackend(base = globalThis.location?.origin, { headers = {} } = {}) {
    const root = new URL('api/', String(base).replace(/\/?$/, '/'));
    const own = { 'X-Requested-With': 'room-client', ...headers }; // no form and no foreign page can send it: CSRF
    const call = (env, path, body, method) => request(env, new URL(path, root), { method, body, headers: own, credentials: 'same-origin' });
    const room = (room_id, what) => `rooms/${encodeURIComponent(room_id)}/${what}`;

    return {
        async connect(env, asked) {
            return gatewayAddress(await call(env, 'connect', asked), root, own);
        },
        migrated: (event) => event.address && gatewayAddress(event.address, root, own),
        pull: (env, room_id, query) => call(env, `${room(room_id, 'messages')}?${new URLSearchParams(query)}`, undefined, 'GET'),
        send: (env, room_id, message) => call(env, room(room_id, 'messages'), message),
        read: (env, room_id, read_seq) => call(env, room(room_id, 'read'), { read_seq }),
        typing: (env, room_id) => call(env, room(room_id, 'typing'), {}),
        change: (env, room_id, what, fields) => call(env, room(room_id, what), fields),
    };
}

function gatewayAddress(answer, root, headers) {
    const target = { protocols: ['roomd.v1.json'], headers, credentials: 'same-origin' };
    for (const transport of ['websocket', 'sse', 'poll'])
        if (answer[transport])
            target[transport] = new URL(answer[transport], root);
    return { ...answer, targets: [target] };
}

/**
 * Straight at an instance, for programs on the same network and for tests. `call(method, body)` makes a service call
 * ("history/Pull") and gives its answer or throws a RequestError; `account` is who reads and writes.
 */
export function instanceBackend(account, call) {
    const change = { edit: 'history/Edit', recall: 'history/Recall', delete: 'history/Delete' };

    return {
        async connect(env, asked) {
            const rooms = asked.rooms?.map((room_id) => ({ room_id }));
            const answer = await call('history/PullByActiveConnection', { account_id: account, ...(rooms ? { rooms } : { all: true }), deliver: asked.deliver });
            return { ...answer, account_id: account, deliver: asked.deliver, targets: instanceTargets(answer, answer.paths) };
        },
        migrated: (event, address) => ({ ...address, rooms: [], targets: instanceTargets(event, address.paths) }),
        pull: (env, room_id, { limit, before, after }) => call('history/Pull', {
            room_id, account_id: account, after, limit: limit === undefined ? undefined : Number(limit), before: before === undefined ? undefined : Number(before),
        }),
        send: (env, room_id, message) => call('history/Push', { room_id, sender: account, ...message }),
        read: (env, room_id, read_seq) => call('history/MarkRead', { room_id, account_id: account, read_seq }),
        change: (env, room_id, what, fields) => call(change[what], { room_id, account_id: account, ...fields }),
    };
}

function instanceTargets({ endpoints, ticket }, paths) {
    return endpoints.map(({ url }) => ({
        websocket: new URL(paths.websocket, url), sse: new URL(paths.sse, url), poll: new URL(paths.poll, url),
        protocols: ['roomd.v1.json', `ticket.${ticket}`], headers: { Authorization: `Bearer ${ticket}` }, credentials: 'omit',
    }));
}

// ---------------------------------------------------------------------------------------------------- transports
//
// Each opens at once and calls stream.first() at the first bytes, stream.event(event) for each event, and
// stream.ended({code | status, error}) once. They return {close(), send?(frame)}; after close() they are silent.

function openWebSocket(env, target, positions, stream) {
    const url = new URL(target.websocket);
    const deferred = positions.length > URL_POSITIONS_MAX;
    url.protocol = url.protocol.replace('http', 'ws');
    if (positions.length)
        url.searchParams.set('after', deferred ? '*' : positions.join(','));
    let socket = new env.WebSocket(url.href, target.protocols);
    let refusal;

    socket.onmessage = ({ data }) => {
        if (!socket)
            return;
        for (const line of data.split('\n')) {
            const event = line && parseEvent(line);
            if (!event) {
                if (line)
                    return stream.fail('what came is no event');
                continue;
            }
            if (event.type === 'error' && event.req_id === undefined)
                refusal = event; // of the stream: the close code follows
            else
                stream.first();
            if (event.type === 'hello' && deferred)
                stream.request('subscribe', { rooms: positions.map(roomAndAfter) }).catch(() => stream.fail('the positions were refused'));
            stream.event(event);
        }
    };
    socket.onclose = ({ code, reason }) => {
        if (socket)
            stream.ended({ code, error: endFrom(refusal, reason || `closed with ${code}`) });
    };
    return {
        close() {
            const open = socket;
            socket = null;
            open?.close(1000);
        },
        send: (frame) => socket?.readyState === 1 && (socket.send(frame), true),
    };
}

/** What an `error` event said before the end, or what we know ourselves. */
function endFrom(refusal, why) {
    return new RequestError(refusal?.code ?? 'network', refusal?.message ?? why, { retryAfterMs: refusal?.retry_after_ms ?? 0 });
}

function parseEvent(line) {
    try {
        return JSON.parse(line);
    } catch {
        return null;
    }
}

function roomAndAfter(position) {
    const at = position.lastIndexOf('@');
    return { room_id: position.slice(0, at), after: position.slice(at + 1) };
}

/** By fetch and not EventSource: positions, headers and the moment of coming back stay ours. */
function openSse(env, target, positions, stream) {
    const abort = new AbortController();

    (async () => {
        const response = await post(env, target.sse, target, positions, abort, 'text/event-stream');
        const reader = response.body.getReader();
        const text = new TextDecoder();
        let rest = '', refusal;
        for (;;) {
            const { done, value } = await reader.read();
            if (done)
                throw endFrom(refusal, 'the stream ended');
            stream.first();
            const lines = (rest + text.decode(value, { stream: true })).split('\n');
            rest = lines.pop();
            for (const line of lines)
                if (line.startsWith('data:')) {
                    const event = JSON.parse(line.slice(5));
                    if (event.type === 'error')
                        refusal = event; // of the stream: its end follows
                    stream.event(event);
                }
        }
    })().catch((error) => abort.signal.aborted || stream.ended(endOf(error)));
    return { close: () => abort.abort() };
}

function openPoll(env, target, positions, stream) {
    const abort = new AbortController();
    const after = new Map(positions.map((position) => [position.slice(0, position.lastIndexOf('@')), position]));
    // Nothing has to come while a poll is held; that it was not refused counts.
    const held = env.setTimeout(() => stream.first(), Math.min(2000, env.firstBytesMs / 2));

    (async () => {
        for (;;) {
            const late = env.setTimeout(() => stream.fail('a poll without an answer'), env.pollHoldMs + 15000);
            const began = env.now();
            let answer;
            try {
                answer = await (await post(env, target.poll, target, [...after.values()], abort, 'application/json')).json();
            } finally {
                env.clearTimeout(late);
            }
            stream.first();
            for (const position of answer.after)
                after.set(position.slice(0, position.lastIndexOf('@')), position);
            for (const event of answer.events)
                stream.event(event);
            if (!answer.events.length && env.now() - began < 100)
                await new Promise((resolve) => env.setTimeout(resolve, 500)); // whatever is wrong there, not faster
            if (abort.signal.aborted)
                return;
        }
    })().catch((error) => abort.signal.aborted || stream.ended(endOf(error))).finally(() => env.clearTimeout(held));
    return { close: () => abort.abort() };
}

async function post(env, url, target, after, abort, accept) {
    const response = await env.fetch(url, {
        method: 'POST', credentials: target.credentials, signal: abort.signal, cache: 'no-store',
        headers: { 'Content-Type': 'application/json', Accept: accept, ...target.headers }, body: JSON.stringify({ after }),
    });
    if (!response.ok)
        throw await errorOf(response);
    return response;
}

function endOf(error) {
    return error instanceof RequestError ? { status: error.status, error } : { error: new RequestError('network', String(error?.message ?? error)) };
}

const OPEN = { websocket: openWebSocket, sse: openSse, poll: openPoll };

// -------------------------------------------------------------------------------------------------------- Stream

/* OPENING -first bytes-> OPEN -another took over-> LEAVING; any -close or end-> ENDED */
class Stream {
    constructor(connector, transport, target, positions) {
        Object.assign(this, { connector, transport, state: 'opening', openedAt: 0, requests: new Map(), number: 0, heardAt: 0 });
        this.env = connector.env;
        connector.streams.add(this);
        this.opened = new Promise((resolve) => (this.settle = resolve)); // true, or how it ended
        this.firstTimer = this.env.setTimeout(() => this.fail('no first bytes in time'), this.env.firstBytesMs);
        try {
            this.way = OPEN[transport](this.env, target, positions, this);
        } catch (error) {
            queueMicrotask(() => this.ended(endOf(error))); // a WebSocket to a bad URL throws at once
        }
    }

    first() {
        this.heardAt = this.env.now();
        if (this.state !== 'opening')
            return;
        this.env.clearTimeout(this.firstTimer);
        this.state = 'open';
        this.openedAt = this.env.now();
        this.watch(this.openedAt);
        this.settle(true);
    }

    /* Pings come each heartbeat. Nothing for two and a half: the way is dead, though nobody said so. */
    watch(wasAt) {
        const every = this.connector.heartbeatMs;
        if (this.transport === 'poll')
            return; // each poll has its own deadline
        this.watchTimer = this.env.setTimeout(() => {
            const now = this.env.now();
            const stood = now - wasAt > 2 * every; // this program did; what came meanwhile has not been read yet
            if (!stood && now - this.heardAt > 2.5 * every)
                this.fail('silent');
            else
                this.watch(now);
        }, every);
    }

    event(event) {
        if (this.state === 'ended')
            return;
        const waiting = event.req_id !== undefined && this.requests.get(event.req_id);
        if (!waiting) {
            if (event.type === 'error' && this.state !== 'open')
                return; // it is refused: the end says so, with what to do
            try {
                this.connector.onEvent(event, this);
            } catch (error) {
                this.connector.client.report(error); // ours, or an event like no other; the stream goes on
            }
            return;
        }
        this.requests.delete(event.req_id);
        this.env.clearTimeout(waiting.timer);
        if (event.type === 'error')
            waiting.reject(new RequestError(event.code, event.message, { field: event.field }));
        else
            waiting.resolve(event);
        if (this.state === 'leaving' && !this.requests.size)
            this.close();
    }

    /** A client frame and its answer. Only on WebSocket. */
    request(type, payload) {
        return new Promise((resolve, reject) => {
            const req_id = `r${++this.number}`;
            if (!this.way?.send?.(JSON.stringify({ type, req_id, payload })))
                return reject(new RequestError('network', 'the connection is gone'));
            const timer = this.env.setTimeout(() => this.requests.delete(req_id) && reject(new RequestError('timeout', `no answer to ${type}`)), this.env.requestTimeoutMs);
            this.requests.set(req_id, { resolve, reject, timer });
        });
    }

    get canRequest() {
        return this.state === 'open' && this.transport === 'websocket';
    }

    /** Another one carries on; what was asked here may still be answered. */
    leave() {
        if (this.state !== 'open')
            return this.close();
        this.state = 'leaving';
        this.leaveTimer = this.env.setTimeout(() => this.close(), 2000);
        if (!this.requests.size)
            this.close();
    }

    close() {
        this.way?.close();
        this.ended({ closed: true });
    }

    fail(why) {
        this.way?.close();
        this.ended({ error: new RequestError('network', why) });
    }

    ended(end) {
        if (this.state === 'ended')
            return;
        const before = this.state;
        this.state = 'ended';
        this.end = end;
        this.connector.streams.delete(this);
        this.env.clearTimeout(this.firstTimer);
        this.env.clearTimeout(this.watchTimer);
        this.env.clearTimeout(this.leaveTimer);
        for (const { reject, timer } of this.requests.values()) {
            this.env.clearTimeout(timer);
            reject(new RequestError('network', 'the connection broke'));
        }
        this.requests.clear();
        this.settle(end);
        if (before === 'open')
            this.connector.onEnd(this, end);
    }
}

// ----------------------------------------------------------------------------------------------------- Connector

/** What a reader does after an end: `again`, `later` (it is overloaded), `renew` (ask for a new address), `stop`. */
export function verdictOf({ code, status, error }) {
    if (code >= 4000 && code <= 4499)
        return code === 4003 ? 'later' : 'again';
    if (code === 4501)
        return 'renew';
    if (code >= 4500 && code <= 4999)
        return 'stop';
    if (status === 401)
        return 'renew';
    if (error?.code === 'not_member' || error?.code === 'forbidden')
        return 'stop';
    return status === 429 || status >= 500 ? 'later' : 'again';
}

/* Keeps one stream open: `connecting` -> `open` -> `waiting` (for the back-off) -> `connecting` …; `stopped` for good. */
class Connector {
    constructor(client) {
        Object.assign(this, { client, env: client.env, state: 'stopped', attempt: 0, round: 0, address: null, rung: 0, current: null, next: null, streams: new Set() });
        this.proven = new Map(); // transport -> failures in a row since it worked
        this.heartbeatMs = HEARTBEAT_MS;
        this.upgradeMs = this.env.upgradeMs;
        this.transports = this.env.transports;
    }

    start() {
        if (this.state !== 'stopped')
            return;
        this.attempt = 0;
        this.address = null;
        this.connect();
    }

    stop(reason = null) {
        this.round++;
        this.env.clearTimeout(this.timer);
        this.env.clearTimeout(this.upgradeTimer);
        this.next?.close();
        this.current?.close();
        this.next = this.current = null;
        this.enter('stopped', reason);
    }

    enter(state, reason = null) {
        if (this.state === state && !reason)
            return;
        this.state = state;
        this.client.emit('state', { state, transport: this.current?.transport ?? null, reason });
    }

    /* The network came back, or the user looks at the page again: not in an hour, now. */
    hurry() {
        const stream = this.current;
        if (this.state === 'waiting') {
            this.env.clearTimeout(this.timer);
            this.connect();
        } else if (stream?.canRequest) {
            stream.request('ping', {}).catch(() => stream.fail('silent'));
        }
    }

    async connect() {
        const round = ++this.round;
        this.enter('connecting');
        try {
            await this.renewAddress();
        } catch (error) {
            if (round !== this.round)
                return;
            if (!(error instanceof RequestError))
                throw error;
            return error.temporary ? this.wait(error) : this.stop(error);
        }
        if (!this.transports.length)
            return this.stop(new RequestError('bad_request', 'the address offers no transport that may be used here'));
        while (round === this.round) {
            const transport = this.transports[this.rung];
            const stream = this.open(transport);
            const outcome = await stream.opened;
            if (round !== this.round)
                return;
            if (outcome === true)
                return stream.state === 'open' ? this.adopt(stream) : this.afterOpen(stream, stream.end); // let in, and put out at once
            if (!this.fallBack(transport, outcome))
                return this.after(outcome);
        }
    }

    /* A try that failed goes on to the address's next endpoint; after a stream that had been open the best one may be another. */
    async renewAddress() {
        const good = this.address && (!this.address.expires_at || this.address.expires_at > Date.now() + 5000);
        if (good && this.address.used < this.address.targets.length)
            return;
        const round = this.round;
        try {
            const address = await this.client.askAddress();
            if (round === this.round)
                this.take(address);
        } catch (error) {
            if (!good || !error.temporary)
                throw error;
            this.address.used = 0; // whom we ask is away; where we were may not be
        }
    }

    take(address) {
        this.address = { ...address, used: 0 };
        this.heartbeatMs = address.heartbeat_ms || this.heartbeatMs;
        this.transports = this.env.transports.filter((transport) => address.targets[0]?.[transport]);
        this.rung = Math.min(this.rung, Math.max(0, this.transports.length - 1));
    }

    open(transport, address = this.address) {
        const target = address.targets[address.used % address.targets.length];
        this.next?.close();
        this.next = new Stream(this, transport, target, this.client.positions());
        return this.next;
    }

    /* A transport that shows no byte may be blocked on the way: down one rung. One that has worked gets a second try. */
    fallBack(transport, end) {
        if (end.code >= 4000 || end.status === 401 || verdictOf(end) !== 'again')
            return false;
        const failures = (this.proven.get(transport) ?? 1) + 1;
        this.proven.set(transport, failures);
        if (failures < 2)
            return false;
        this.rung++;
        if (this.rung < this.transports.length)
            return true;
        this.rung = 0;
        return false;
    }

    adopt(stream) {
        const old = this.current;
        this.next = null;
        this.current = stream;
        this.proven.set(stream.transport, 0);
        this.rung = this.transports.indexOf(stream.transport);
        this.enter('open');
        if (old) {
            old.leave();
            this.client.emit('state', { state: 'open', transport: stream.transport, reason: null });
        }
        this.env.clearTimeout(this.upgradeTimer);
        if (this.rung === 0)
            this.upgradeMs = this.env.upgradeMs;
        else
            this.upgradeTimer = this.env.setTimeout(() => this.upgrade(), this.upgradeMs);
        this.client.onOpen(stream);
    }

    onEvent(event, stream) {
        if (event.type === 'hello') {
            this.heartbeatMs = event.heartbeat_ms || this.heartbeatMs;
            stream.instance = event.instance;
        } else if (event.type === 'migrate') {
            if (stream === this.current)
                this.migrate(event);
            return;
        }
        this.client.onEvent(event, stream);
    }

    onEnd(stream, end) {
        if (stream !== this.current || end.closed)
            return;
        this.current = null;
        this.env.clearTimeout(this.upgradeTimer);
        if (this.next && this.takingOver)
            return this.enter('connecting'); // another one is about to be open
        this.afterOpen(stream, end);
    }

    afterOpen(stream, end) {
        // A stream that lived starts the back-off anew; one that was let in and put out again does not.
        if (this.env.now() - stream.openedAt > 2 * this.backoff.base_ms)
            this.attempt = 0;
        if (this.address)
            this.address.used = this.address.targets.length;
        this.after(end);
    }

    after(end) {
        const verdict = verdictOf(end);
        if (this.address)
            this.address.used++;
        if (verdict === 'stop')
            return this.stop(end.error ?? new RequestError('network', `closed with ${end.code}`));
        if (verdict === 'renew')
            this.address = null;
        this.wait(end.error, verdict === 'later');
    }

    get backoff() {
        return { ...BACKOFF, ...this.address?.backoff, ...this.env.backoff };
    }

    wait(error, later = false) {
        const delay = backoffDelay(this.backoff, this.attempt + (later ? 1 : 0), this.env.random) + (error?.retryAfterMs ?? 0);
        this.attempt++;
        this.next?.close();
        this.next = null;
        this.enter('waiting', error);
        this.timer = this.env.setTimeout(() => this.connect(), delay);
    }

    /* ---- another stream takes over while the old one still delivers: nothing is missed, and a repeat is dropped ---- */

    async migrate(event) {
        const { round, current } = this;
        const address = this.client.backend.migrated?.(event, this.address) ?? await this.client.askAddress().catch(() => null);
        if (!address || round !== this.round || current !== this.current)
            return; // the old one will be closed, and we come back in the ordinary way
        this.take(address);
        await this.takeOver(this.current.transport, TAKE_OVER_TRIES);
    }

    async upgrade() {
        this.upgradeMs = Math.min(this.upgradeMs * 2, this.env.upgradeMaxMs);
        if (!(await this.takeOver(this.transports[0], 1)) && this.state === 'open')
            this.upgradeTimer = this.env.setTimeout(() => this.upgrade(), this.upgradeMs);
    }

    async takeOver(transport, tries) {
        if (this.takingOver)
            return false;
        const round = this.round;
        this.takingOver = true;
        let done = false;
        for (let i = 0; i < tries && !done; i++) {
            if (i) {
                await new Promise((resolve) => this.env.setTimeout(resolve, backoffDelay(this.backoff, i, this.env.random)));
                this.address && this.address.used++;
            }
            if (round !== this.round || !this.address || (!this.current && this.state !== 'connecting'))
                break;
            const stream = this.open(transport);
            done = (await stream.opened) === true && stream.state === 'open' && round === this.round;
        }
        this.takingOver = false;
        if (round !== this.round)
            return false;
        if (done)
            this.adopt(this.next);
        else {
            this.next = null;
            if (!this.current)
                this.wait(null);
        }
        return done;
    }
}

// ---------------------------------------------------------------------------------------------------------- Room

/** One room as this client knows it: where it is in the log, and the messages it keeps. */
class Room {
    constructor(client, room_id) {
        Object.assign(this, { room_id, cursor: null, durable_seq: 0, head_seq: 0, carried: false, removed: false, unread: null, read_seq: 0, hasOlder: true });
        this.messages = []; // in the log, ascending by seq
        this.outbox = []; // not seen in the log yet: going, sent or failed
        this.reads = new Map(); // account -> read_seq
        this.typists = new Map(); // account -> timer that ends it
        hide(this, { client, env: client.env, held: new Map(), hidden: new Set(), unstored: new Set(), ids: new Map(), settled: 0, pulling: null, readAsked: 0, typedAt: -Infinity });
    }

    // ---- the log, forward ----

    /** An event of the log from a stream, or from a Pull (its pages have no gaps but what is hidden from us). */
    take(event, pulled = false) {
        const { epoch, seq } = event;
        if (!this.cursor)
            this.cursor = { epoch: null, seq: seq - 1 }; // the stream begins here
        if (event.type === 'reset')
            return this.takeBack(event);
        if (seq <= this.cursor.seq)
            return event.type === 'void' ? this.forget(event) : undefined;
        if (epoch < (this.cursor.epoch ?? 0))
            return undefined; // a former owner's, never committed
        if (!pulled && this.missing(seq)) {
            if (this.held.size < HELD_MAX)
                this.held.set(seq, event);
            return this.catchUp(seq - 1);
        }
        this.append(event);
        return this.release();
    }

    /* Seqs between the cursor and `seq` that nobody has explained. */
    missing(seq) {
        if (!this.client.backend.pull)
            return false;
        for (let s = Math.max(this.cursor.seq, this.settled) + 1; s < seq; s++)
            if (!this.hidden.has(s))
                return true;
        return false;
    }

    append(event) {
        this.cursor = { epoch: event.epoch, seq: event.seq };
        this.head_seq = Math.max(this.head_seq, event.seq);
        this.apply(event);
        this.client.emit('entry', event, this);
        this.client.emit('change', this);
    }

    release() {
        for (const [seq, event] of [...this.held].sort(([a], [b]) => a - b)) {
            if (seq > this.cursor.seq && this.missing(seq))
                return;
            this.held.delete(seq);
            if (seq > this.cursor.seq && event.epoch >= (this.cursor.epoch ?? 0))
                this.append(event);
        }
    }

    /** Entries above `seq` of older epochs were never committed. */
    takeBack({ epoch, seq }) {
        if (this.cursor.epoch !== null && this.cursor.epoch >= epoch && this.client.connector.streams.size > 1)
            return; // the other stream has said it already, and what came after it
        this.cutOff(epoch, seq);
    }

    cutOff(epoch, seq) {
        for (const [at, event] of this.held)
            if (event.epoch < epoch && at > seq)
                this.held.delete(at);
        if (seq < this.cursor.seq) {
            const gone = this.messages.filter((message) => message.seq > seq);
            this.messages = this.messages.filter((message) => message.seq <= seq);
            for (const message of gone.slice().reverse())
                this.toOutbox(message);
            this.cursor = { epoch, seq };
            this.settled = Math.min(this.settled, seq);
            this.head_seq = seq;
            this.client.emit('reset', { room_id: this.room_id, epoch, seq, gone }, this);
            this.client.emit('change', this);
        }
    }

    /* An own message that was taken back is still with the broker: it comes again under another seq. */
    toOutbox(message) {
        this.ids.delete(message.message_id);
        this.unstored.delete(message);
        if (!message.sending)
            return;
        delete message.seq;
        delete message.epoch;
        this.outbox.unshift(message);
        this.client.sending(message, 'sent', this);
    }

    /** What was shown early at this seq is a duplicate of an older message. */
    forget({ seq, epoch }) {
        const at = this.messages.findIndex((message) => message.seq === seq && message.epoch <= epoch);
        if (at < 0)
            return;
        const [message] = this.messages.splice(at, 1);
        this.ids.delete(message.message_id);
        this.client.emit('forget', message, this);
        this.client.emit('change', this);
    }

    /** Pulls until everything up to `seq` is known: after a gap, a signal, or a head that did not come. */
    catchUp(seq) {
        this.target = Math.max(this.target ?? 0, seq);
        if (this.client.backend.pull)
            this.pulling ??= this.pullOn().finally(() => (this.pulling = null));
    }

    async pullOn() {
        for (let idle = 0; this.client.running && this.target > Math.max(this.cursor?.seq ?? 0, this.settled);) {
            const before = this.cursor;
            try {
                const page = await this.client.pull(this.room_id, { ...(this.cursor && { after: formatCursor(this.cursor) }), limit: PAGE });
                this.takePage(page, before);
            } catch (error) {
                if (!(error instanceof RequestError) || !error.temporary)
                    return this.pullFailed(error);
            }
            idle = this.cursor === before ? idle + 1 : 0;
            if (idle && this.target > Math.max(this.cursor?.seq ?? 0, this.settled))
                await new Promise((resolve) => this.env.setTimeout(resolve, backoffDelay({ base_ms: 200, factor: 2, max_ms: 5000 }, idle, this.env.random)));
        }
    }

    takePage(page, asked) {
        if (page.reset && this.cursor === asked) { // about where we were when we asked, not about where a stream took us meanwhile
            const { epoch, seq } = parseCursor(page.reset);
            this.cutOff(epoch, seq);
        }
        if (!this.cursor && !page.entries.length)
            this.cursor = parseCursor(page.head);
        for (const entry of page.entries)
            this.take(entry, true);
        if (!page.more) {
            this.settled = Math.max(this.settled, page.durable_seq ?? 0);
            if (this.cursor)
                this.release();
        }
        this.markDurable(page.durable_seq ?? 0);
    }

    /* We may not read it, or it is gone: what the stream has shown is what there is. */
    pullFailed(error) {
        this.settled = Math.max(this.settled, this.target);
        if (this.cursor)
            this.release();
        this.client.report(error);
    }

    /** hello, room.entered and ping say where the room is; a last message that got lost shows here and nowhere else. */
    noteHead({ head, durable_seq, from }, entered = false) {
        const at = head === undefined ? null : parseCursor(head);
        if (from !== undefined && !this.cursor)
            this.cursor = parseCursor(from);
        if (entered)
            this.carried = true;
        this.markDurable(durable_seq ?? 0);
        if (!at || !this.cursor || (at.epoch ?? 0) < (this.cursor.epoch ?? 0))
            return;
        this.head_seq = Math.max(this.head_seq, at.seq);
        if (at.seq > Math.max(this.cursor.seq, this.settled) && this.suspect === undefined) {
            const seen = this.cursor.seq; // a slow reader's entries are on their way as long as the cursor moves
            this.suspect = this.env.setTimeout(() => {
                this.suspect = undefined;
                if (this.cursor.seq === seen)
                    this.catchUp(at.seq);
            }, this.env.suspectMs);
        }
    }

    markDurable(seq) {
        if (seq <= this.durable_seq)
            return;
        this.durable_seq = seq;
        this.head_seq = Math.max(this.head_seq, seq);
        for (const message of this.unstored)
            if (message.seq <= seq) {
                this.unstored.delete(message);
                this.client.sending(message, 'stored', this);
            }
    }

    /* Marks tell it, but not on every transport (polls have none) and one may get lost: then a Pull does. */
    awaitStored(own) {
        this.unstored.add(own);
        if (!this.client.backend.pull)
            return;
        this.storedTimer ??= this.env.setTimeout(async () => {
            try {
                if (this.unstored.size)
                    this.markDurable((await this.client.pull(this.room_id, { after: formatCursor(this.cursor), limit: 1 })).durable_seq ?? 0);
            } catch {
                // the next round, or the next mark
            }
            this.storedTimer = undefined;
            const [first] = this.unstored;
            if (first && this.client.running)
                this.awaitStored(first);
        }, this.env.storedMs);
    }

    // ---- the messages ----

    apply(event) {
        if (event.type === 'message')
            return this.addMessage(event);
        const target = this.find(event.target_seq ?? event.message_id);
        if (target && event.type === 'message.edited' && target.state !== 'recalled' && target.state !== 'deleted') {
            target.state = 'edited';
            target.edited_at = event.at;
            for (const name of ['content', 'mentions', 'quote_seq'])
                if (event[name] !== undefined)
                    target[name] = event[name];
        } else if (target && (event.type === 'message.recalled' || event.type === 'message.deleted')) {
            target.state = event.type.slice('message.'.length);
            target.state_by = event.by;
            for (const name of ['content', 'mentions', 'quote_seq'])
                delete target[name];
        } else if (event.type === 'member.left') {
            for (const account of event.account_ids ?? [])
                this.endTyping(account);
        } else if (event.type === 'room.removed') {
            this.removed = true;
        }
        if (target)
            this.client.emit('message', target, this, event);
        return undefined;
    }

    addMessage(event) {
        const { type, ...fields } = event;
        const own = event.sender === this.client.account_id && this.outbox.find((one) => one.client_msg_id === event.client_msg_id);
        const message = Object.assign(own || {}, fields);
        if (own) {
            this.outbox.splice(this.outbox.indexOf(own), 1);
            const stored = event.seq <= this.durable_seq || this.client.deliver === 'durable';
            if (!stored)
                this.awaitStored(own);
            this.client.sending(own, stored ? 'stored' : 'sent', this);
        }
        this.insert(message);
        this.endTyping(event.sender);
        this.client.emit('message', message, this, event);
    }

    /** A committed entry is what waits in the outbox: it is there no longer. The message that waited. */
    settleOwn({ type, ...entry }) {
        const own = entry.sender === this.client.account_id && this.outbox.find((one) => one.client_msg_id === entry.client_msg_id);
        if (!own)
            return undefined;
        this.outbox.splice(this.outbox.indexOf(own), 1);
        Object.assign(own, entry);
        this.client.sending(own, 'stored', this);
        return own;
    }

    insert(message) {
        let at = this.messages.length;
        while (at && this.messages[at - 1].seq > message.seq)
            at--;
        if (at && this.messages[at - 1].seq === message.seq)
            return;
        this.messages.splice(at, 0, message);
        this.ids.set(message.message_id, message);
        if (at && this.messages.length > this.env.keepMessages * 1.2) { // not those that were paged back to
            for (const old of this.messages.splice(0, this.messages.length - this.env.keepMessages))
                this.ids.delete(old.message_id);
            this.loadedFrom = this.messages[0].seq;
            this.hasOlder = true;
        }
    }

    /** By seq or message_id; undefined when it is not kept here. */
    find(which) {
        if (typeof which === 'string')
            return this.ids.get(which);
        let low = 0;
        for (let high = this.messages.length; low < high;) {
            const middle = (low + high) >> 1;
            if (this.messages[middle].seq < which)
                low = middle + 1;
            else
                high = middle;
        }
        return this.messages[low]?.seq === which ? this.messages[low] : undefined;
    }

    /** What a page shows: the log's messages, then what is on its way. */
    timeline() {
        return [...this.messages, ...this.outbox];
    }

    hide(seq) {
        this.hidden.add(seq);
        const message = this.find(seq);
        if (!message)
            return;
        this.messages.splice(this.messages.indexOf(message), 1);
        this.ids.delete(message.message_id);
        this.client.emit('hidden', message, this);
        this.client.emit('change', this);
    }

    /**
     * Older messages (or the latest, in a room not seen yet); answers those that were added. Pages show messages as they
     * are now, so that edits and recalls in them are not applied again.
     */
    async loadBefore(limit = 50) {
        const oldest = this.loadedFrom ?? this.messages[0]?.seq ?? (this.cursor ? this.cursor.seq + 1 : undefined);
        if (oldest !== undefined && oldest <= 1) {
            this.hasOlder = false;
            return [];
        }
        const page = await this.client.pull(this.room_id, { ...(oldest !== undefined && { before: oldest }), limit });
        const known = new Set(this.messages.map((message) => message.seq));
        // What is above the cursor comes by the stream; taken here it would come twice.
        const entries = page.entries.filter((entry) => !this.cursor || entry.seq <= this.cursor.seq);
        const added = entries.filter((entry) => entry.type === 'message' && !known.has(entry.seq) && !this.hidden.has(entry.seq));
        if (!this.cursor) {
            const last = page.entries.at(-1);
            this.cursor = last ? { epoch: last.epoch, seq: last.seq } : parseCursor(page.head);
        }
        for (const { type, ...message } of added)
            this.insert(this.settleOwn(message) ?? message);
        if (page.entries.length)
            this.loadedFrom = page.entries[0].seq;
        this.hasOlder = page.more && page.entries.length > 0;
        this.client.emit('older', entries, this);
        this.markDurable(page.durable_seq ?? 0);
        this.client.emit('change', this);
        return added.map(({ seq }) => this.find(seq));
    }

    // ---- what the user does ----

    send(content, options = {}) {
        return this.client.send(this.room_id, content, options);
    }

    edit(which, content) {
        return this.client.changeMessage(this, 'edit', which, { content });
    }

    recall(which) {
        return this.client.changeMessage(this, 'recall', which, {});
    }

    delete(which, scope = 'me') {
        return this.client.changeMessage(this, 'delete', which, { scope });
    }

    /** All up to `seq` (default: what is here) has been read. Merged: the newest goes, at most twice a second. */
    markRead(seq = this.cursor?.seq ?? 0) {
        if (seq <= Math.max(this.readAsked, this.read_seq))
            return;
        this.readAsked = seq;
        this.readTimer ??= this.env.setTimeout(() => this.client.sendRead(this), this.env.readEveryMs);
    }

    /** Call it at every key press. */
    typing() {
        if (this.env.now() - this.typedAt < this.env.typingEveryMs)
            return;
        this.typedAt = this.env.now();
        this.client.sendTyping(this);
    }

    // ---- what does not last ----

    noteTyping({ account_id, for_ms }) {
        if (account_id === this.client.account_id)
            return;
        this.env.clearTimeout(this.typists.get(account_id));
        this.typists.set(account_id, this.env.setTimeout(() => this.endTyping(account_id), for_ms ?? this.env.typingForMs));
        this.client.emit('typing', this);
    }

    endTyping(account_id) {
        if (!this.typists.has(account_id))
            return;
        this.env.clearTimeout(this.typists.get(account_id));
        this.typists.delete(account_id);
        this.client.emit('typing', this);
    }

    noteRead({ account_id, read_seq }) {
        if (read_seq <= (this.reads.get(account_id) ?? 0))
            return;
        this.reads.set(account_id, read_seq);
        if (account_id === this.client.account_id)
            this.read_seq = Math.max(this.read_seq, read_seq);
        this.client.emit('read', { room_id: this.room_id, account_id, read_seq }, this);
    }

    clearTimers() {
        for (const timer of [this.suspect, this.readTimer, this.storedTimer, ...this.typists.values()])
            this.env.clearTimeout(timer);
        this.suspect = this.readTimer = this.storedTimer = undefined;
        this.typists.clear();
        this.held.clear(); // comes again with the next stream
    }
}

/* For machinery that an application should not see when it looks at a room. */
function hide(object, fields) {
    for (const name of Object.keys({ ...fields, target: 0, suspect: 0, readTimer: 0, storedTimer: 0, loadedFrom: 0, pumping: 0, sendTimer: 0 }))
        Object.defineProperty(object, name, { value: fields[name], writable: true, enumerable: false });
}

// ---------------------------------------------------------------------------------------------------- RoomClient

export class RoomClient {
    /** See room-client.d.ts for all options; `backend` is the only one that is needed. */
    constructor(options) {
        const { backend, account_id = null, rooms, deliver, ...rest } = options;
        Object.assign(this, { backend, account_id, deliver: deliver ?? 'early', asked: rooms ? { rooms } : { all: true }, running: false });
        this.rooms = new Map();
        this.listeners = new Map();
        this.transients = [];
        this.env = {
            ...DEFAULTS, WebSocket: globalThis.WebSocket, fetch: (...args) => globalThis.fetch(...args), random: Math.random, now: () => performance.now(),
            setTimeout: (...args) => setTimeout(...args), clearTimeout: (timer) => clearTimeout(timer), backoff: {}, ...rest,
        };
        if (!this.env.WebSocket)
            this.env.transports = this.env.transports.filter((transport) => transport !== 'websocket');
        if (deliver)
            this.asked.deliver = deliver;
        this.connector = new Connector(this);
        this.hurry = () => globalThis.document?.visibilityState === 'hidden' || this.connector.hurry();
    }

    start() {
        if (this.connector.state !== 'stopped')
            return;
        this.running = true;
        this.restoreOutboxes();
        globalThis.addEventListener?.('online', this.hurry);
        globalThis.document?.addEventListener('visibilitychange', this.hurry);
        this.connector.start();
    }

    /** Messages that are going stay in the outboxes and go on with the next start(). */
    stop() {
        this.halt();
        this.connector.stop();
    }

    halt() {
        this.running = false;
        globalThis.removeEventListener?.('online', this.hurry);
        globalThis.document?.removeEventListener('visibilitychange', this.hurry);
        for (const room of this.rooms.values())
            room.clearTimers();
    }

    get state() {
        return this.connector.state;
    }

    get transport() {
        return this.connector.current?.transport ?? null;
    }

    /** The room, made when it is not known yet; cursor: where an application that kept one wants to go on. */
    room(room_id, { cursor } = {}) {
        let room = this.rooms.get(room_id);
        if (!room) {
            room = new Room(this, room_id);
            this.rooms.set(room_id, room);
        }
        if (cursor !== undefined && !room.cursor)
            room.cursor = parseCursor(cursor);
        return room;
    }

    /** Where every room is; kept by an application, it lets another run go on without a gap. */
    positions() {
        return [...this.rooms.values()].filter((room) => room.cursor).map((room) => `${room.room_id}@${formatCursor(room.cursor)}`);
    }

    // ---- listeners ----

    /** Answers a function that takes it back. */
    on(type, listener) {
        if (!this.listeners.has(type))
            this.listeners.set(type, new Set());
        this.listeners.get(type).add(listener);
        return () => this.listeners.get(type).delete(listener);
    }

    emit(type, ...args) {
        if (type === 'state' && args[0].state === 'stopped')
            this.halt();
        for (const listener of [...(this.listeners.get(type) ?? [])])
            try {
                listener(...args);
            } catch (error) {
                if (type === 'error')
                    console.error(error);
                else
                    this.report(error); // an application's mistake must not stop its stream
            }
    }

    report(error) {
        if (this.listeners.get('error')?.size)
            this.emit('error', error);
        else
            console.error(error);
    }

    // ---- what the connector asks and tells ----

    async askAddress() {
        const address = await this.backend.connect(this.env, this.asked);
        this.account_id ??= address.account_id ?? null;
        this.restoreOutboxes();
        this.deliver = address.deliver ?? this.deliver;
        // Nothing that is said between this answer and the first byte of the stream shall be missed.
        for (const { room_id, head } of address.rooms ?? [])
            this.room(room_id, { cursor: head });
        return address;
    }

    onOpen(stream) {
        this.emit('open', { transport: stream.transport, instance: stream.instance ?? null });
        for (const room of this.rooms.values()) {
            this.pump(room);
            const [unstored] = room.unstored;
            if (unstored)
                room.awaitStored(unstored);
            if (room.readAsked > room.read_seq)
                room.readTimer ??= this.env.setTimeout(() => this.sendRead(room), this.env.readEveryMs);
        }
    }

    onEvent(event) {
        switch (event.type) {
        case 'hello':
            for (const one of event.rooms)
                this.room(one.room_id).noteHead(one, true);
            return;
        case 'room.entered':
            this.room(event.room_id).noteHead(event, true);
            this.emit('entered', this.room(event.room_id));
            return;
        case 'room.left':
            return this.leftRoom(event);
        case 'ping':
            for (const one of event.heads ?? [])
                this.rooms.get(one.room_id)?.noteHead(one);
            return;
        case 'durable':
            return this.room(event.room_id).markDurable(event.seq);
        case 'signal':
            return this.onSignal(event);
        case 'typing':
            return this.room(event.room_id).noteTyping(event);
        case 'read':
            return this.room(event.room_id).noteRead(event);
        case 'message.hidden':
            return this.room(event.room_id).hide(event.seq);
        case 'message.rejected':
            return this.onRejected(event);
        case 'error':
            return this.report(new RequestError(event.code, event.message));
        }
        if (event.room_id !== undefined && event.epoch !== undefined) {
            const room = this.room(event.room_id);
            room.take(event);
            if (this.deliver === 'durable' && room.cursor)
                room.markDurable(room.cursor.seq);
        } else if (event.transient)
            this.onTransient(event);
        else
            this.emit('event', event); // of a kind that is newer than we are
    }

    leftRoom(event) {
        const room = this.room(event.room_id);
        room.carried = false;
        room.clearTimers();
        this.emit('left', room, event.reason);
        // Who comes back later begins anew; a position of a room one is not in would be refused.
        this.rooms.delete(event.room_id);
    }

    onSignal({ room_id, head }) {
        const room = this.room(room_id);
        room.head_seq = Math.max(room.head_seq, parseCursor(head).seq);
        this.emit('signal', room);
        room.catchUp(parseCursor(head).seq);
    }

    /* While one stream takes over from another, both may bring it. */
    onTransient(event) {
        if (this.transients.includes(event.message_id))
            return;
        this.transients = [...this.transients.slice(-63), event.message_id];
        this.emit('transient', event, this.room(event.room_id));
    }

    onRejected({ room_id, client_msg_id, code, message }) {
        const room = this.room(room_id);
        const own = room.outbox.find((one) => one.client_msg_id === client_msg_id);
        if (own)
            this.sending(own, 'failed', room, new RequestError(code, message));
    }

    pull(room_id, query) {
        return this.backend.pull(this.env, room_id, query);
    }

    // ---- sending: going -> sent (the broker has it) -> stored (in the log for good); failed ----

    send(room_id, content, { kind = 'text', client_msg_id = newId(), mentions, quote_seq } = {}) {
        const room = this.room(room_id);
        const message = { room_id, sender: this.account_id, kind, content, client_msg_id, at: Date.now(), ...(mentions && { mentions }), ...(quote_seq && { quote_seq }) };
        hideSending(message, { since: this.env.now(), tries: 0, kept: structuredClone({ client_msg_id, kind, content, mentions, quote_seq }) });
        room.outbox.push(message);
        this.sending(message, 'going', room);
        this.pump(room);
        return message;
    }

    sending(message, state, room, error) {
        if (message.sending === state)
            return;
        message.sending = state;
        if (error)
            message.error = error;
        else
            delete message.error;
        this.keepOutboxes();
        this.emit('sending', message, room);
        this.emit('change', room);
    }

    // ---- what waits to leave survives a reload, when there is a storage ----

    get storageKey() {
        return `roomd.outbox.${this.account_id}`;
    }

    keepOutboxes() {
        const { storage, keepSending, keepSendingChars } = this.env;
        if (!storage || this.account_id === null || !this.restored)
            return;
        const all = [];
        let chars = 0;
        for (const room of this.rooms.values())
            for (const { sending, at, kept } of room.outbox)
                if (sending !== 'sent' && all.length < keepSending && (chars += JSON.stringify(kept).length) <= keepSendingChars)
                    all.push({ room_id: room.room_id, at, sending, kept });
        try {
            if (all.length)
                storage.setItem(this.storageKey, JSON.stringify(all));
            else
                storage.removeItem(this.storageKey);
        } catch {
            // full, or forbidden: then a reload forgets it, as it would without a storage
        }
    }

    /* Once, as soon as it is known whose they are. With the same id: what had arrived before the reload is not there twice. */
    restoreOutboxes() {
        const { storage } = this.env;
        if (this.restored || this.account_id === null)
            return;
        this.restored = true;
        let all = [];
        try {
            all = JSON.parse(storage?.getItem(this.storageKey) ?? '[]');
        } catch {
            // not ours, or forbidden
        }
        for (const one of Array.isArray(all) ? all : []) {
            const { room_id, at, sending, kept } = one ?? {};
            if (typeof room_id !== 'string' || typeof kept?.client_msg_id !== 'string')
                continue;
            const { client_msg_id, kind, content, mentions, quote_seq } = kept;
            const room = this.room(room_id);
            if (room.outbox.some((other) => other.client_msg_id === client_msg_id))
                continue;
            const message = { room_id, sender: this.account_id, kind, content, client_msg_id, at, sending: sending === 'failed' ? 'failed' : 'going', ...(mentions && { mentions }), ...(quote_seq && { quote_seq }) };
            hideSending(message, { since: this.env.now(), tries: 0, kept, again: true });
            room.outbox.push(message);
            this.emit('sending', message, room);
            this.emit('change', room);
        }
    }

    /* What had arrived before a reload may stand above where the stream began: then it comes by no stream. */
    async lookFor(message, room) {
        if (!room.outbox.includes(message) || !this.backend.pull || !this.running)
            return;
        try {
            const { entries } = await this.pull(room.room_id, { limit: 100 });
            for (const entry of entries)
                room.settleOwn(entry);
        } catch {
            // it is with the broker; the page that shows the room finds it
        }
    }

    /** A failed message goes again, with the same id: should it have arrived after all, it is not there twice. */
    retry(message) {
        const room = this.room(message.room_id);
        if (message.sending !== 'failed' || !room.outbox.includes(message))
            return;
        message.since = this.env.now();
        message.tries = 0;
        this.sending(message, 'going', room);
        this.pump(room);
    }

    discard(message) {
        const room = this.room(message.room_id);
        const at = room.outbox.indexOf(message);
        if (at >= 0 && message.sending === 'failed')
            room.outbox.splice(at, 1);
        this.keepOutboxes();
        this.emit('change', room);
    }

    /* One message of a room at a time: the next one leaves when the broker has this one, which keeps their order. */
    async pump(room) {
        if (room.pumping || !this.running)
            return;
        room.pumping = true;
        this.env.clearTimeout(room.sendTimer);
        try {
            for (let message; (message = room.outbox.find((one) => one.sending === 'going')) && this.running;)
                if (!(await this.sendOne(message, room)))
                    break;
        } finally {
            room.pumping = false;
        }
    }

    async sendOne(message, room) {
        const stream = this.connector.current;
        const frame = stream?.canRequest;
        if (!frame && !this.backend.send)
            return false; // onOpen() pumps
        try {
            const answer = frame ? await stream.request('message.send', { room_id: room.room_id, ...message.kept }) : await this.backend.send(this.env, room.room_id, message.kept);
            message.message_id ??= answer.message_id;
            if (message.sending === 'going')
                this.sending(message, 'sent', room);
            if (message.again)
                this.env.setTimeout(() => this.lookFor(message, room), this.env.storedMs);
            return true;
        } catch (error) {
            return this.sendFailed(message, room, error);
        }
    }

    sendFailed(message, room, error) {
        if (message.sending !== 'going')
            return true; // it was seen on the stream meanwhile
        if (!(error instanceof RequestError) || !error.temporary || this.env.now() - message.since > this.env.sendGiveUpMs) {
            this.sending(message, 'failed', room, error);
            return true;
        }
        const delay = backoffDelay(this.connector.backoff, message.tries++, this.env.random) + (error.retryAfterMs ?? 0);
        room.sendTimer = this.env.setTimeout(() => this.pump(room), delay);
        return false;
    }

    // ---- the rest of what a user does ----

    /** which: a message, its seq or its message_id. Repeated with the same request_id until there is an answer. */
    async changeMessage(room, what, which, fields) {
        const { seq, message_id } = typeof which === 'object' ? which : typeof which === 'number' ? { seq: which } : { message_id: which };
        const body = { ...(seq !== undefined ? { seq } : { message_id }), ...fields, request_id: newId() };
        for (let attempt = 0; ; attempt++)
            try {
                return await this.backend.change(this.env, room.room_id, what, body);
            } catch (error) {
                if (!error.temporary || attempt === 3)
                    throw error;
                const delay = backoffDelay(this.connector.backoff, attempt, this.env.random) + (error.retryAfterMs ?? 0);
                await new Promise((resolve) => this.env.setTimeout(resolve, delay));
            }
    }

    async sendRead(room) {
        const read_seq = room.readAsked;
        const stream = this.connector.current;
        room.readTimer = undefined;
        try {
            const answer = stream?.canRequest ? await stream.request('message.read', { room_id: room.room_id, read_seq }) : await this.backend.read(this.env, room.room_id, read_seq);
            room.read_seq = Math.max(room.read_seq, answer.read_seq ?? read_seq);
            room.unread = answer.unread ?? room.unread;
            this.emit('change', room);
            if (room.readAsked > room.read_seq && room.readAsked > read_seq)
                room.readTimer ??= this.env.setTimeout(() => this.sendRead(room), this.env.readEveryMs);
        } catch (error) {
            if (!error.temporary)
                room.readAsked = Math.max(room.read_seq, room.readAsked === read_seq ? 0 : room.readAsked);
            else if (this.running)
                room.readTimer ??= this.env.setTimeout(() => this.sendRead(room), this.env.readEveryMs + backoffDelay(this.connector.backoff, 2, this.env.random));
        }
    }

    sendTyping(room) {
        const stream = this.connector.current;
        const going = stream?.canRequest ? stream.request('message.typing', { room_id: room.room_id }) : this.backend.typing?.(this.env, room.room_id);
        going?.catch(() => {}); // nobody misses it
    }
}

function hideSending(message, fields) {
    for (const [name, value] of Object.entries(fields))
        Object.defineProperty(message, name, { value, writable: true, enumerable: false });
}
