/*
 * room-client in Node, driven by a test: commands come as JSON lines on stdin, what the application sees goes out as JSON
 * lines on stdout. The first line is {options, urls, key, account, ways, gateway, cookie}:
 *     urls, key   instances and a service key: straight at them, or
 *     gateway     base URL, with `cookie` as the session
 *     ways        {url: other url}: where to connect instead, for what stands in between
 * Commands: {do: "send", room_id, content, options} · read · typing · edit · recall · older · block (ms) · stop · start · quit
 */
import { createInterface } from 'node:readline';
import { NodeWebSocket } from '../../gateway-adapter/web/node-websocket.js';
import { gatewayBackend, instanceBackend, RequestError, RoomClient } from '../../gateway-adapter/web/room-client.js';

const say = (what, fields) => process.stdout.write(`${JSON.stringify({ what, ...fields })}\n`);
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const setup = JSON.parse((await lines.next()).value);

/* One instance after the other, as a gateway does. */
async function call(method, body) {
    let failure = new RequestError('network', 'no instance');
    for (const url of setup.urls)
        try {
            const response = await fetch(`${url}/v1/${method}`, {
                method: 'POST', headers: { 'Content-Type': 'application/json', Authorization: `Bearer ${setup.key}` }, body: JSON.stringify(body), signal: AbortSignal.timeout(10000),
            });
            const answer = await response.json();
            if (response.ok)
                return answer;
            failure = new RequestError(answer.error.code, answer.error.message, { status: response.status });
            if (!failure.temporary)
                break;
        } catch (error) {
            failure = new RequestError('network', String(error));
        }
    throw failure;
}

function instances() {
    const way = (event) => ({ ...event, endpoints: event.endpoints.map(({ url }) => ({ url: setup.ways?.[url] ?? url })) });
    const backend = instanceBackend(setup.account, async (method, body) => {
        const answer = await call(method, body);
        return method.endsWith('PullByActiveConnection') ? way(answer) : answer;
    });
    return { ...backend, migrated: (event, address) => backend.migrated(way(event), address) };
}

const headers = setup.cookie ? { Cookie: setup.cookie } : {};
const page = setup.cookie ? { Origin: new URL(setup.gateway).origin } : {}; // whoever sends a cookie on a WebSocket says which page it is
const client = new RoomClient({
    backend: setup.gateway ? gatewayBackend(setup.gateway, { headers }) : instances(), WebSocket: NodeWebSocket.with({ headers: { ...headers, ...page } }), ...setup.options,
});

client.on('state', ({ state, transport, reason }) => say('state', { state, transport, reason: reason?.code, why: reason?.message }));
client.on('open', (stream) => say('open', stream));
client.on('entry', (event) => say('entry', { event }));
client.on('reset', ({ gone, ...event }) => say('reset', { event }));
client.on('forget', ({ seq, room_id }) => say('forget', { seq, room_id }));
client.on('message', ({ seq, content, state, sending }, { room_id }) => say('message', { room_id, seq, content, state, sending }));
client.on('sending', ({ client_msg_id, sending, error, seq }, { room_id }) => say('sending', { room_id, client_msg_id, sending, seq, error: error?.code }));
client.on('typing', ({ room_id, typists }) => say('typing', { room_id, typists: [...typists.keys()] }));
client.on('read', (event) => say('read', { event }));
client.on('entered', ({ room_id }) => say('entered', { room_id }));
client.on('left', ({ room_id }, reason) => say('left', { room_id, reason }));
client.on('error', (error) => say('error', { error: String(error?.stack ?? error) }));

const commands = {
    start: () => client.start(),
    stop: () => client.stop(),
    send: ({ room_id, content, options }) => client.send(room_id, content, options),
    read: ({ room_id, seq }) => client.room(room_id).markRead(seq),
    typing: ({ room_id }) => client.room(room_id).typing(),
    edit: ({ room_id, seq, content }) => client.room(room_id).edit(seq, content),
    recall: ({ room_id, seq }) => client.room(room_id).recall(seq),
    older: async ({ room_id, limit }) => ({ seqs: (await client.room(room_id).loadBefore(limit)).map(({ seq }) => seq), hasOlder: client.room(room_id).hasOlder }),
    store: ({ room_id }) => ({ timeline: client.room(room_id).timeline(), cursor: client.room(room_id).cursor, unread: client.room(room_id).unread }),
    block({ ms }) {
        for (const end = Date.now() + ms; Date.now() < end; );
    },
    quit: () => process.exit(0),
};

client.start();
for await (const line of lines) {
    const command = JSON.parse(line);
    try {
        say('done', { number: command.number, answer: await commands[command.do](command) });
    } catch (error) {
        say('done', { number: command.number, error: error.code ?? String(error) });
    }
}
process.exit(0); // whoever drives it is gone
