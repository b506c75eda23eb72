/* The gateway's calls that the page makes itself; the rest is room-client's. docs/gateway.md */
export class Refused extends Error {
    constructor(status, error) {
        super(error?.message ?? `HTTP ${status}`);
        this.status = status;
        this.code = error?.code;
    }
}

export async function call(path, body, { method = body === undefined ? 'GET' : 'POST', raw } = {}) {
    const headers = { 'X-Requested-With': 'page' };
    if (body !== undefined && !raw)
        headers['Content-Type'] = 'application/json';
    const response = await fetch(`api/${path}`, { method, headers, body: raw ?? (body === undefined ? undefined : JSON.stringify(body)), cache: 'no-store' });
    const answer = await response.json().catch(() => ({}));
    if (!response.ok)
        throw new Refused(response.status, answer.error);
    return answer;
}

const known = new Map();
const wanted = new Set();
let asking = false;
/** names.changed() is called when better ones are known. */
export const names = { changed() {} };

/** The name of an account, at once. */
export function nameOf(account) {
    if (account === '@system')
        return 'system';
    if (!known.has(account)) {
        known.set(account, account);
        wanted.add(account);
        if (!asking)
            askNames();
    }
    return known.get(account);
}

/* All that are wanted in one moment, a hundred at a time. */
async function askNames() {
    asking = true;
    for (await null; wanted.size;) {
        const ids = [...wanted].slice(0, 100);
        ids.forEach((id) => wanted.delete(id));
        try {
            const { accounts } = await call(`accounts?ids=${ids.map(encodeURIComponent).join(',')}`);
            for (const { account_id, name } of accounts)
                known.set(account_id, name || account_id);
        } catch {
            for (const id of ids)
                known.delete(id); // asked again when it is shown again
            break;
        }
    }
    asking = false;
    names.changed();
}

export const find = (match) => call(`accounts?match=${encodeURIComponent(match)}`).then(({ accounts }) => {
    for (const { account_id, name } of accounts)
        known.set(account_id, name);
    return accounts;
});

/** By XMLHttpRequest, which alone tells how far it is: progress(0 to 1). `stop.now` ends it. */
export function upload(file, kind, progress = () => {}, stop = {}) {
    return new Promise((resolve, reject) => {
        const request = new XMLHttpRequest();
        request.open('POST', `api/files?kind=${kind}`);
        request.setRequestHeader('X-Requested-With', 'page');
        request.responseType = 'json';
        request.upload.onprogress = ({ loaded, total }) => progress(total ? loaded / total : 0);
        request.onload = () => (request.status === 200 ? resolve(request.response) : reject(new Refused(request.status, request.response?.error)));
        request.onerror = () => reject(new TypeError('the network cannot be reached'));
        request.onabort = () => reject(new DOMException('ended', 'AbortError'));
        stop.now = () => request.abort();
        request.send(file);
    });
}
