/** Types of room-client.js. Events and their fields: docs/protocol.md#events. */

export interface Cursor {
    /** null: not known; a bare seq */
    epoch: number | null;
    seq: number;
}

/** going: on its way to the broker · sent: the broker has it · stored: in the log for good · failed: see `error` */
export type Sending = 'going' | 'sent' | 'stored' | 'failed';
export type Transport = 'websocket' | 'sse' | 'poll';
export type State = 'connecting' | 'open' | 'waiting' | 'stopped';

export interface Message {
    room_id: string;
    sender: string;
    kind: string;
    /** absent once it was recalled or deleted */
    content?: unknown;
    client_msg_id: string;
    /** server time; of an own message that is not in the log yet, this machine's */
    at: number;
    /** absent until it is in the log */
    seq?: number;
    epoch?: number;
    message_id?: string;
    sent_at?: number;
    mentions?: string[];
    quote_seq?: number;
    state?: 'edited' | 'recalled' | 'deleted';
    /** Who recalled or deleted it, when that was seen here. */
    state_by?: string;
    edited_at?: number;
    /** Of messages sent by this client. */
    sending?: Sending;
    error?: RequestError;
}

/** An event as it came: docs/protocol.md#events. */
export interface RoomEvent {
    type: string;
    room_id?: string;
    epoch?: number;
    seq?: number;
    [field: string]: unknown;
}

export interface SendOptions {
    /** default text */
    kind?: string;
    /** 1–64 bytes; default a new one */
    client_msg_id?: string;
    mentions?: string[];
    quote_seq?: number;
}

/** which: a message, its seq, or its message_id */
export type Which = Message | number | string;

export interface Room {
    readonly room_id: string;
    /** End of the contiguous prefix of the log that was shown; null until it is known. */
    readonly cursor: Cursor | null;
    readonly durable_seq: number;
    readonly head_seq: number;
    /** The stream carries it. */
    readonly carried: boolean;
    readonly removed: boolean;
    /** As the service counted at the last markRead(); null until then. */
    readonly unread: number | null;
    /** Own read cursor, as far as it is known here. */
    readonly read_seq: number;
    readonly hasOlder: boolean;
    /** In the log, ascending by seq. */
    readonly messages: Message[];
    /** Own ones not seen in the log yet. */
    readonly outbox: Message[];
    readonly reads: Map<string, number>;
    /** Keys: who types. */
    readonly typists: Map<string, unknown>;

    timeline(): Message[];
    find(which: number | string): Message | undefined;
    /** Older messages, or the latest of a room not seen yet; answers those that were added. */
    loadBefore(limit?: number): Promise<Message[]>;
    send(content: unknown, options?: SendOptions): Message;
    edit(which: Which, content: unknown): Promise<{ seq?: number }>;
    recall(which: Which): Promise<{ seq?: number }>;
    delete(which: Which, scope?: 'me' | 'all'): Promise<{ seq?: number }>;
    markRead(seq?: number): void;
    typing(): void;
}

/** What an address has to tell. Relative URLs of a gateway are resolved by gatewayBackend. */
export interface Address {
    account_id?: string;
    deliver?: 'early' | 'durable' | 'signal';
    heartbeat_ms?: number;
    backoff?: Backoff;
    /** unix ms; the address is asked for anew after it */
    expires_at?: number;
    rooms?: { room_id: string; head: string }[];
    targets: {
        websocket?: URL;
        sse?: URL;
        poll?: URL;
        protocols: string[];
        headers: Record<string, string>;
        credentials: RequestCredentials;
    }[];
}

export interface Backoff {
    base_ms: number;
    factor: number;
    max_ms: number;
}

export interface Page {
    entries: RoomEvent[];
    head: string;
    durable_seq: number;
    more: boolean;
    reset?: string;
}

/** Whom a client asks. Methods throw a RequestError. `env` has fetch, setTimeout, clearTimeout, requestTimeoutMs. */
export interface Backend {
    connect(env: object, asked: { rooms?: string[]; all?: boolean; deliver?: string }): Promise<Address>;
    /** The address in a `migrate` event; nothing: the client asks `connect` for one. */
    migrated?(event: RoomEvent, address: Address): Address | undefined;
    /** Without it gaps are not filled and signals only told. */
    pull?(env: object, room_id: string, query: { after?: string; before?: number; limit?: number }): Promise<Page>;
    /** Without it messages leave over WebSocket only. */
    send?(env: object, room_id: string, message: object): Promise<{ message_id: string }>;
    read?(env: object, room_id: string, read_seq: number): Promise<{ read_seq: number; unread?: number }>;
    typing?(env: object, room_id: string): Promise<unknown>;
    change?(env: object, room_id: string, what: 'edit' | 'recall' | 'delete', fields: object): Promise<{ seq?: number }>;
}

export interface Options {
    backend: Backend;
    /** Default: what the address says. */
    account_id?: string;
    /** Default: all rooms of the account, also those it enters later. */
    rooms?: string[];
    deliver?: 'early' | 'durable' | 'signal';
    /** In the order of preference; default websocket, sse, poll. */
    transports?: Transport[];
    /** Overrides what the server says. */
    backoff?: Partial<Backoff>;
    firstBytesMs?: number;
    upgradeMs?: number;
    upgradeMaxMs?: number;
    pollHoldMs?: number;
    requestTimeoutMs?: number;
    sendGiveUpMs?: number;
    typingEveryMs?: number;
    typingForMs?: number;
    readEveryMs?: number;
    storedMs?: number;
    suspectMs?: number;
    keepMessages?: number;
    /** What waits to leave survives a reload there: sessionStorage, say. Default: none. */
    storage?: Pick<Storage, 'getItem' | 'setItem' | 'removeItem'> | null;
    /** At most so many messages. Default 200, of 1 Mi characters together. */
    keepSending?: number;
    keepSendingChars?: number;
    /** Default: the global ones. */
    WebSocket?: new (url: string, protocols: string[]) => unknown;
    fetch?: typeof fetch;
    random?: () => number;
    now?: () => number;
    setTimeout?: (run: () => void, ms: number) => unknown;
    clearTimeout?: (timer: unknown) => void;
}

export interface Events {
    /** reason: why it is waiting or has stopped. `unauthenticated`: log in again, then start(). */
    state: (change: { state: State; transport: Transport | null; reason: RequestError | null }) => void;
    /** A stream is open: the first one, after a break, or one that took over. */
    open: (stream: { transport: Transport; instance: string | null }) => void;
    /** Every entry of the log, once, in the order of seq. */
    entry: (event: RoomEvent, room: Room) => void;
    /** A message is new, or was changed by `event`. */
    message: (message: Message, room: Room, event: RoomEvent) => void;
    transient: (event: RoomEvent, room: Room) => void;
    /** Entries above seq were taken back; they come again, or others in their place. */
    reset: (event: { room_id: string; epoch: number; seq: number; gone: Message[] }, room: Room) => void;
    /** A message shown early was a repeat of an older one. */
    forget: (message: Message, room: Room) => void;
    hidden: (message: Message, room: Room) => void;
    /** What loadBefore() has found, ascending: messages as they are now, and who came, who left, how the room was called. */
    older: (entries: RoomEvent[], room: Room) => void;
    /** A message's `sending` changed. */
    sending: (message: Message, room: Room) => void;
    entered: (room: Room) => void;
    left: (room: Room, reason: string | undefined) => void;
    signal: (room: Room) => void;
    typing: (room: Room) => void;
    read: (event: { room_id: string; account_id: string; read_seq: number }, room: Room) => void;
    /** Something of the room is different: draw it again. */
    change: (room: Room) => void;
    /** Of a type this version does not know. */
    event: (event: RoomEvent) => void;
    error: (error: unknown) => void;
}

export class RoomClient {
    constructor(options: Options);
    readonly rooms: Map<string, Room>;
    readonly account_id: string | null;
    readonly state: State;
    readonly transport: Transport | null;
    start(): void;
    stop(): void;
    /** The room; made when it is not known yet. cursor: where to go on. */
    room(room_id: string, options?: { cursor?: string }): Room;
    /** `<room_id>@<cursor>` of every room. */
    positions(): string[];
    send(room_id: string, content: unknown, options?: SendOptions): Message;
    /** A failed message again, with the same id. */
    retry(message: Message): void;
    discard(message: Message): void;
    on<Type extends keyof Events>(type: Type, listener: Events[Type]): () => void;
}

export class RequestError extends Error {
    code: string;
    status: number;
    field?: string;
    retryAfterMs: number;
    readonly temporary: boolean;
}

/** The gateway of docs/gateway.md; default: where the page comes from. */
export function gatewayBackend(base?: string | URL, options?: { headers?: Record<string, string> }): Backend;
/** Straight at an instance, for programs on its network. call("history/Pull", {…}) makes a service call. */
export function instanceBackend(account: string, call: (method: string, body: object) => Promise<any>): Backend;

export function parseCursor(text: string | number): Cursor;
export function formatCursor(cursor: Cursor): string;
export function backoffDelay(backoff: Backoff, attempt: number, random?: () => number): number;
export function verdictOf(end: { code?: number; status?: number; error?: RequestError }): 'again' | 'later' | 'renew' | 'stop';
export function newId(now?: number): string;
