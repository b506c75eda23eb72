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
let wanted = new Set(), asking = null;

/** The name of an account, at once; `changed` is called when a better one is known. */
export function nameOf(account, changed) {
    if (account === '@system')
        return 'system';
    if (!known.has(account)) {
        known.set(account, account);
        wanted.add(account);
        asking ??= Promise.resolve().then(async () => {
            const ids = [...wanted].slice(0, 100);
            wanted = new Set([...wanted].slice(100));
            asking = null;
            try {
                const { accounts } = await call(`accounts?ids=${ids.map(encodeURIComponent).join(',')}`);
                for (const { account_id, name } of accounts)
                    known.set(account_id, name || account_id);
                changed?.();
            } catch {
                for (const id of ids)
                    known.delete(id); // asked again when it is shown again
            }
        });
    }
    return known.get(account);
}

export const find = (match) => call(`accounts?match=${encodeURIComponent(match)}`).then(({ accounts }) => {
    for (const { account_id, name } of accounts)
        known.set(account_id, name);
    return accounts;
});

export async function upload(file, kind) {
    return call(`files?kind=${kind}`, null, { method: 'POST', raw: file });
}
