/* How a message looks. Everything that people wrote goes in as text, never as markup. */
import { nameOf } from './api.js';
import { language, say } from './words.js';

export function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (name.startsWith('on'))
            made.addEventListener(name.slice(2), value);
        else if (value !== undefined && value !== false)
            made.setAttribute(name, value === true ? '' : value);
    }
    made.append(...children.filter((child) => child !== undefined && child !== null && child !== false));
    return made;
}

export function avatar(account, name) {
    let hue = 0;
    for (const c of account)
        hue = (hue * 31 + c.codePointAt(0)) % 360;
    const made = element('span', { class: 'avatar', 'aria-hidden': 'true' }, [...(name || account)][0]?.toUpperCase() ?? '?');
    made.style.background = `hsl(${hue} 52% 38%)`;
    return made;
}

const textOf = (content) => (typeof content === 'string' ? content : content?.body ?? content?.text ?? '');

function richText(content) {
    return (Array.isArray(content?.parts) ? content.parts : []).filter(Boolean).map((part) => (part.type === 'mention'
        ? part.display_text ?? `@${part.mention_type === 'all' ? say('all') : nameOf(part.user_id ?? '')}` : part.body ?? part.text ?? say('other'))).join('');
}

/** One line that says what a message holds. */
export function summary(message) {
    if (!message || message.content === undefined)
        return say(message?.state === 'recalled' ? 'gone' : 'deleted');
    switch (message.kind) {
    case 'text': case 'tip': return textOf(message.content);
    case 'rich_text': return richText(message.content);
    case 'image': case 'voice': case 'video': case 'file': return `${say(message.kind)} ${message.content?.name ?? ''}`;
    case 'forward': return historyOf(message.content);
    default: return say('other');
    }
}

/* The summary that stands in a forward is in the language of who made it. */
function historyOf(content) {
    const n = content?.messages?.length ?? 0;
    return content?.source_conversation_name ? say('history_of', content.source_conversation_name, n) : say('history', n);
}

const size = (bytes) => (bytes > 1 << 20 ? `${(bytes / (1 << 20)).toFixed(1)} MB` : bytes > 1024 ? `${Math.round(bytes / 1024)} KB` : bytes >= 0 ? `${bytes} B` : '');

/* The size it is shown in is known before it is here, so that nothing jumps. */
function fitted({ width, height }) {
    const scale = Math.min(1, 360 / width, 320 / height);
    return scale > 0 ? { width: Math.round(width * scale), height: Math.round(height * scale) } : {};
}

/** `seq`: the message that names the file: the gateway shows it to who may see that message. One that is on its way does not yet. */
function media(kind, content, room_id, seq) {
    const name = content.name ?? say(kind);
    if (!seq)
        return element('span', { class: 'file' }, element('span', { class: 'badge' }, '…'), element('b', {}, name));
    const url = `api/rooms/${encodeURIComponent(room_id)}/files/${encodeURIComponent(content.file_id)}?seq=${seq}`;
    if (kind === 'image')
        return element('a', { href: url, target: '_blank', rel: 'noopener' }, element('img', { class: 'picture', src: url, alt: name, loading: 'lazy', ...fitted(content),
            onerror: (event) => event.target.replaceWith(`${say('image')} ${name}`) }));
    if (kind === 'voice')
        return element('audio', { src: url, controls: true, preload: 'none' });
    if (kind === 'video')
        return element('video', { src: url, controls: true, preload: 'metadata', ...fitted(content) });
    return element('a', { class: 'file', href: url, download: name }, element('span', { class: 'badge' }, (/\.(\w{1,4})$/.exec(name)?.[1] ?? '…').toUpperCase()), element('span', {}, element('b', {}, name), element('br'), element('small', {}, size(content.size))));
}

function forwarded(content, about) {
    return element('details', { class: 'forward' }, element('summary', {}, historyOf(content)), ...(content.messages ?? []).map((one) => element('div', { class: 'part' },
        element('small', {}, [one.original_sender_name ?? one.original_sender, one.timestamp && new Date(one.timestamp).toLocaleString(language)].filter(Boolean).join(' · ')),
        element('div', {}, ...inside(one.content?.type ?? 'text', one.content, about)))));
}

/* What a message of this kind shows. `about`: me, room_id, and seq of the message that all of it stands in. */
function inside(kind, content, about) {
    if (kind === 'rich_text')
        return parts(content, about.me);
    if (['image', 'voice', 'video', 'file'].includes(kind))
        return [media(kind, content, about.room_id, about.seq)];
    if (kind === 'forward')
        return [forwarded(content, about)];
    return [kind === 'text' || kind === 'tip' ? textOf(content) : say('other')];
}

function parts(content, me) {
    return (content.parts ?? []).map((part) => {
        if (part.type !== 'mention')
            return part.body ?? part.text ?? say('other');
        const all = part.mention_type === 'all';
        return element('span', { class: all || part.user_id === me ? 'mention me' : 'mention' }, part.display_text ?? `@${all ? say('all') : nameOf(part.user_id ?? '')}`);
    });
}

/** The inside of a bubble. */
export function body(message, { me, room_id }) {
    const made = element('div', { class: 'body' });
    const { kind, content } = message, by = message.state_by ?? message.sender;
    if (content === undefined)
        made.append(message.state === 'recalled' ? (by === me ? say('you_recalled') : say('recalled', nameOf(by))) : say('deleted'));
    else
        try {
            made.append(...inside(kind, content, { me, room_id, seq: message.seq }));
        } catch { // of a shape that nobody promised: one message must not take the others with it
            made.append(say('other'));
        }
    return made;
}

/** A line in the middle: people come and go, names change. */
export function note(event) {
    const names = (event.account_ids ?? []).slice(0, 5).map((account) => nameOf(account)).join(', ') + (event.account_ids?.length > 5 ? '…' : '');
    switch (event.type) {
    case 'member.joined': return say('joined', names);
    case 'member.left': return say('left', names);
    case 'member.updated': return say('muted', names);
    case 'room.removed': return say('closed');
    case 'room.updated': return event.name !== undefined ? say('renamed', event.name) : event.notice !== undefined ? say('noticed', event.notice) : say('changed');
    default: return null;
    }
}
