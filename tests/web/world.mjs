/* A world without network and without waiting for room-client: a clock that only we move, WebSockets and fetches that we answer. */
import { RoomClient } from '../../gateway-adapter/web/room-client.js';

export class Clock {
    time = 1000;
    #timers = new Map();
    #number = 0;

    now = () => this.time;
    setTimeout = (run, ms = 0) => {
        this.#timers.set(++this.#number, { at: this.time + ms, run });
        return this.#number;
    };
    clearTimeout = (number) => this.#timers.delete(number);

    /** Runs what is due until then, in order, with everything that follows from it. */
    async advance(ms) {
        const end = this.time + ms;
        await settle();
        for (;;) {
            const next = [...this.#timers].filter(([, { at }]) => at <= end).sort(([, a], [, b]) => a.at - b.at)[0];
            if (!next)
                break;
            this.#timers.delete(next[0]);
            this.time = Math.max(this.time, next[1].at);
            next[1].run();
            await settle();
        }
        this.time = end;
    }

    get pending() {
        return this.#timers.size;
    }
}

/** All promises that can go on have gone on. */
export async function settle() {
    for (let i = 0; i < 5; i++)
        await new Promise((resolve) => setImmediate(resolve));
}

/** new World({…options of the client}); .client .sockets .asked .pulls; the newest socket is .socket */
export class World {
    clock = new Clock();
    sockets = [];
    asked = []; // connect requests
    pulls = []; // {room_id, query, answer(page), refuse(error)}
    fetches = []; // {url, body, accept, signal, answer(response), refuse(error)}
    seen = []; // [event name, …]

    constructor(options = {}) {
        const world = this;
        this.WebSocket = class {
            readyState = 0;
            frames = [];

            constructor(url, protocols) {
                Object.assign(this, { url: new URL(url), protocols });
                world.sockets.push(this);
            }
            say(...events) {
                this.readyState = 1;
                this.onmessage({ data: events.map((event) => JSON.stringify(event)).join('\n') });
            }
            hello(...rooms) {
                this.say({ type: 'hello', instance: 'I', stream_id: 'S', heartbeat_ms: 20000, rooms, rooms_total: rooms.length });
            }
            end(code, reason = '') {
                this.readyState = 3;
                this.onclose({ code, reason });
            }
            send(text) {
                this.frames.push(JSON.parse(text));
            }
            close(code) {
                this.closedBy = code;
                this.readyState = 3;
            }
            get after() {
                return this.url.searchParams.get('after')?.split(',') ?? [];
            }
        };
        this.fetch = (url, { body, headers, signal }) => new Promise((answer, refuse) => {
            this.fetches.push({ url: String(url), body: body && JSON.parse(body), accept: headers.Accept, signal, answer, refuse });
            signal?.addEventListener('abort', () => refuse(new Error('aborted')));
        });
        const { backend, ...rest } = options;
        this.backend = {
            connect: async (env, asked) => {
                this.asked.push(asked);
                return this.address();
            },
            migrated: (event) => event.address && this.address(event.address),
            pull: (env, room_id, query) => new Promise((answer, refuse) => this.pulls.push({ room_id, query, answer, refuse })),
            ...backend,
        };
        this.client = new RoomClient({
            account_id: 'me', backend: this.backend, WebSocket: this.WebSocket, fetch: this.fetch, now: this.clock.now, setTimeout: this.clock.setTimeout,
            clearTimeout: this.clock.clearTimeout, random: () => 0.5, ...rest,
        });
        for (const type of ['entry', 'reset', 'forget', 'error', 'transient', 'rejected', 'left', 'entered'])
            this.client.on(type, (event) => this.seen.push([type, event]));
        this.states = [];
        this.client.on('state', ({ state, transport, reason }) => this.states.push([state, transport, reason?.code ?? null]));
    }

    address(host = 'one') {
        return {
            heartbeat_ms: 20000, backoff: { base_ms: 500, factor: 2, max_ms: 20000 },
            targets: [{
                websocket: new URL(`http://${host}/ws`), sse: new URL(`http://${host}/sse`), poll: new URL(`http://${host}/poll`), protocols: ['roomd.v1.json'],
                headers: {}, credentials: 'omit',
            }],
        };
    }

    get socket() {
        return this.sockets.at(-1);
    }

    /** Started, and the first WebSocket has said hello about these rooms. */
    static async open(rooms = [], options) {
        const world = new World(options);
        world.client.start();
        await settle();
        world.socket.hello(...rooms);
        await settle();
        return world;
    }

    seqs(room_id = 'r') {
        return this.seen.filter(([type, event]) => type === 'entry' && event.room_id === room_id).map(([, event]) => event.seq);
    }
}

export const at = (head, from = head, room_id = 'r') => ({ room_id, head, durable_seq: Number(head.split(':')[1]), from });

export function message(seq, fields = {}) {
    const { epoch = 3, room_id = 'r', sender = 'you' } = fields;
    return {
        type: 'message', room_id, epoch, seq, at: 1000 + seq, message_id: `m${seq}`, client_msg_id: `c${seq}`, sender, kind: 'text', content: `number ${seq}`, ...fields,
    };
}
