/*
 * A WebSocket for Node before 22, which has none of its own: the part of the browser's interface that room-client uses,
 * over node:net and node:tls. Text frames only; messages up to 16 MiB; no extensions. RFC 6455.
 *
 *     new RoomClient({ backend, WebSocket: NodeWebSocket })
 *     NodeWebSocket.with({ headers: { Cookie: '…' } })       the same with headers on every upgrade
 */
import { createHash, randomBytes } from 'node:crypto';
import { connect as connectTcp } from 'node:net';
import { connect as connectTls } from 'node:tls';

const GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
const MESSAGE_MAX = 16 * 1024 * 1024;
const OPCODE = { continuation: 0, text: 1, binary: 2, close: 8, ping: 9, pong: 10 };
const [CONNECTING, OPEN, CLOSING, CLOSED] = [0, 1, 2, 3];

export class NodeWebSocket {
    static headers = {};

    static with({ headers }) {
        return class extends NodeWebSocket {
            static headers = headers;
        };
    }

    onopen = null;
    onmessage = null;
    onclose = null;
    onerror = null;
    readyState = CONNECTING;
    protocol = '';
    #socket;
    #rest = Buffer.alloc(0);
    #parts = [];
    #close = { code: 1006, reason: '' };

    constructor(address, protocols = []) {
        const url = new URL(address);
        const secure = url.protocol === 'wss:';
        const key = randomBytes(16).toString('base64');
        this.#socket = (secure ? connectTls : connectTcp)({
            host: url.hostname.replace(/^\[|\]$/g, ''), port: Number(url.port) || (secure ? 443 : 80), servername: secure ? url.hostname : undefined,
        });
        this.#socket.setNoDelay(true);
        this.#socket.on(secure ? 'secureConnect' : 'connect', () => this.#socket.write([
            `GET ${url.pathname}${url.search} HTTP/1.1`, `Host: ${url.host}`, 'Upgrade: websocket', 'Connection: Upgrade', 'Sec-WebSocket-Version: 13',
            `Sec-WebSocket-Key: ${key}`, ...(protocols.length ? [`Sec-WebSocket-Protocol: ${protocols.join(', ')}`] : []),
            ...Object.entries(new.target.headers).map(([name, value]) => `${name}: ${value}`), '', '',
        ].join('\r\n')));
        this.#socket.on('data', (data) => this.#read(data, createHash('sha1').update(key + GUID).digest('base64')));
        this.#socket.on('error', (error) => this.onerror?.(error));
        this.#socket.on('close', () => {
            this.readyState = CLOSED;
            this.onclose?.({ ...this.#close, wasClean: this.#close.code !== 1006 });
        });
    }

    send(text) {
        if (this.readyState === OPEN)
            this.#write(OPCODE.text, Buffer.from(text));
    }

    close(code = 1000, reason = '') {
        if (this.readyState === OPEN) {
            this.readyState = CLOSING;
            this.#write(OPCODE.close, Buffer.concat([Buffer.from([code >> 8, code & 255]), Buffer.from(reason)]));
            this.#socket.end();
            setTimeout(() => this.#socket.destroy(), 2000).unref(); // a peer that does not answer
        } else if (this.readyState === CONNECTING)
            this.#socket.destroy();
    }

    #read(data, accept) {
        this.#rest = this.#rest.length ? Buffer.concat([this.#rest, data]) : data;
        if (this.readyState === CONNECTING && !this.#handshake(accept))
            return;
        for (let frame; this.readyState !== CLOSED && (frame = this.#frame()); )
            this.#take(frame);
    }

    #handshake(accept) {
        const end = this.#rest.indexOf('\r\n\r\n');
        if (end < 0)
            return false;
        const head = this.#rest.subarray(0, end).toString('latin1');
        this.#rest = this.#rest.subarray(end + 4);
        const given = /^sec-websocket-accept: *(\S+)/im.exec(head)?.[1];
        if (!/^HTTP\/1\.1 101 /.test(head) || given !== accept) {
            this.#socket.destroy();
            return false;
        }
        this.protocol = /^sec-websocket-protocol: *(\S+)/im.exec(head)?.[1] ?? '';
        this.readyState = OPEN;
        this.onopen?.({});
        return true;
    }

    /* {final, opcode, payload}, or null when it is not all there yet. */
    #frame() {
        const rest = this.#rest;
        if (rest.length < 2)
            return null;
        let [length, at] = [rest[1] & 127, 2];
        if (length >= 126) {
            at = length === 126 ? 4 : 10;
            if (rest.length < at)
                return null;
            length = at === 4 ? rest.readUInt16BE(2) : Number(rest.readBigUInt64BE(2));
        }
        if (length > MESSAGE_MAX)
            this.#fail(1009, 'larger than what is taken here');
        if (this.readyState === CLOSED || rest.length < at + length)
            return null;
        this.#rest = rest.subarray(at + length);
        return { final: (rest[0] & 128) !== 0, opcode: rest[0] & 15, payload: rest.subarray(at, at + length) };
    }

    #take({ final, opcode, payload }) {
        if (opcode === OPCODE.ping)
            this.#write(OPCODE.pong, payload);
        else if (opcode === OPCODE.close) {
            this.#close = payload.length >= 2 ? { code: payload.readUInt16BE(0), reason: payload.subarray(2).toString() } : { code: 1005, reason: '' };
            this.close(payload.length >= 2 ? this.#close.code : 1000);
        } else if (opcode === OPCODE.text || opcode === OPCODE.continuation) {
            this.#parts.push(payload);
            if (final) {
                const text = Buffer.concat(this.#parts).toString();
                this.#parts = [];
                if (this.readyState === OPEN)
                    this.onmessage?.({ data: text });
            }
        } else if (opcode !== OPCODE.pong)
            this.#fail(1003, 'not a text frame');
    }

    #fail(code, reason) {
        this.#close = { code, reason };
        this.readyState = CLOSED;
        this.#socket.destroy();
    }

    /* Clients mask what they send (RFC 6455 5.3). */
    #write(opcode, payload) {
        const mask = randomBytes(4);
        const head = payload.length < 126 ? Buffer.from([128 | opcode, 128 | payload.length]) : Buffer.alloc(payload.length < 65536 ? 4 : 10);
        if (payload.length >= 126) {
            head[0] = 128 | opcode;
            head[1] = 128 | (head.length === 4 ? 126 : 127);
            if (head.length === 4)
                head.writeUInt16BE(payload.length, 2);
            else
                head.writeBigUInt64BE(BigInt(payload.length), 2);
        }
        const body = Buffer.from(payload);
        for (let i = 0; i < body.length; i++)
            body[i] ^= mask[i & 3];
        if (!this.#socket.destroyed)
            this.#socket.write(Buffer.concat([head, mask, body]));
    }
}
