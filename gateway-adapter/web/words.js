/* What the page says, in two languages. `say('unread', 3)` fills {0}. */
const words = {
    en: {
        login_hint: 'Log in to chat.', account: 'Account', password: 'Password', log_in: 'Log in', log_out: 'Log out', new_chat: 'New chat', back: 'Back', people: 'People',
        to_end: 'Newest messages', cancel: 'Cancel', attach: 'Send files', send: 'Send', choose: 'Choose a conversation, or begin one.', write: 'Write a message', forward: 'Forward',
        reply: 'Reply', edit: 'Edit', recall: 'Recall', delete_me: 'Delete for me', delete_all: 'Delete for all', copy: 'Copy', pick: 'Select', retry: 'Try again', discard: 'Discard', who_read: 'Who has read it',
        edited: 'edited', recalled: '{0} recalled a message', deleted: 'This message was deleted', you: 'You', going: 'sending', sent: 'sent', stored: '✓', read: '✓✓', failed: 'not sent',
        typing_one: '{0} is typing…', typing_many: '{0} are typing…', members: '{0} people', joined: '{0} joined', left: '{0} left', renamed: 'The chat is now called “{0}”', noticed: 'Notice: {0}', closed: 'This chat was closed',
        changed: 'The chat was changed', image: '[image]', voice: '[voice]', video: '[video]', file: '[file]', forwarded: '[forward]', other: '[message]', all: 'everyone', replying: 'Reply to {0}: {1}', editing: 'Edit: {0}',
        picked: '{0} selected', start: 'Begin', group_name: 'Name of the group (for a group)', find: 'Find people', add: 'Add', remove: 'Remove', leave: 'Leave', sure: 'Really?', forward_to: 'Forward to…', nobody: 'nobody yet', read_by: 'Read by',
        s_connecting: 'connecting…', s_open: 'connected', s_waiting: 'no connection – trying again', s_stopped: 'disconnected', today: 'Today', yesterday: 'Yesterday', wrong: 'Account or password is wrong.', problem: 'That did not work: {0}',
        muted: '{0}: speaking was changed', lang: '中', save: 'Save', close: 'Close', owner: 'owner', admin: 'admin', member: '',
        language: '切换到中文', you_recalled: 'You recalled a message', gone: 'Recalled message', history: 'Chat history ({0})', history_of: 'Chat history of {0} ({1})', no_rooms: 'No conversations yet. Begin one with +.',
        no_messages: 'No messages yet', no_longer: 'You are no longer in “{0}”.', too_far: 'That message is too far back, or not for you.', group: 'Name of the group',
        e_network: 'The network cannot be reached.',
    },
    zh: {
        login_hint: '登录后开始聊天。', account: '账号', password: '密码', log_in: '登录', log_out: '退出登录', new_chat: '发起聊天', back: '返回', people: '成员',
        to_end: '最新消息', cancel: '取消', attach: '发送文件', send: '发送', choose: '选择一个会话，或发起新的聊天。', write: '输入消息', forward: '转发',
        reply: '回复', edit: '编辑', recall: '撤回', delete_me: '仅为我删除', delete_all: '为所有人删除', copy: '复制', pick: '多选', retry: '重试', discard: '放弃', who_read: '谁已读',
        edited: '已编辑', recalled: '{0}撤回了一条消息', deleted: '该消息已删除', you: '你', going: '发送中', sent: '已发送', stored: '✓', read: '✓✓', failed: '发送失败',
        typing_one: '{0} 正在输入…', typing_many: '{0} 正在输入…', members: '{0} 人', joined: '{0} 加入了聊天', left: '{0} 离开了聊天', renamed: '聊天名称改为“{0}”', noticed: '公告：{0}', closed: '聊天已关闭',
        changed: '聊天信息已更新', image: '[图片]', voice: '[语音]', video: '[视频]', file: '[文件]', forwarded: '[聊天记录]', other: '[消息]', all: '所有人', replying: '回复 {0}：{1}', editing: '编辑：{0}',
        picked: '已选 {0} 条', start: '开始', group_name: '群名称（群聊时填写）', find: '查找联系人', add: '添加', remove: '移除', leave: '退出', sure: '确定？', forward_to: '转发到…', nobody: '暂无', read_by: '已读',
        s_connecting: '连接中…', s_open: '已连接', s_waiting: '连接已断开，正在重试', s_stopped: '未连接', today: '今天', yesterday: '昨天', wrong: '账号或密码错误。', problem: '操作失败：{0}',
        muted: '{0} 的发言权限已更改', lang: 'EN', save: '保存', close: '关闭', owner: '群主', admin: '管理员', member: '',
        language: 'Switch to English', you_recalled: '你撤回了一条消息', gone: '已撤回的消息', history: '聊天记录（{0}条）', history_of: '{0}的聊天记录（{1}条）', no_rooms: '还没有会话，点击 + 发起聊天。',
        no_messages: '还没有消息', no_longer: '你已不在“{0}”中。', too_far: '该消息太早，或你无权查看。', group: '群名称',
        e_network: '无法连接网络。', e_rate_limited: '操作过于频繁，请稍后再试。', e_unavailable: '服务暂时不可用，请稍后再试。', e_timeout: '请求超时，请重试。', e_too_large: '内容或文件太大。', e_too_late: '已超过可撤回的时间。',
        e_conflict: '与已有内容冲突。', e_room_gone: '该聊天已关闭。', e_room_full: '人数已满。', e_not_member: '你不在该聊天中。', e_forbidden: '没有权限。', e_no_such_message: '消息不存在。', e_no_such_room: '聊天不存在。',
        e_unsupported_media_type: '不支持的文件类型。', e_bad_request: '请求有误。', e_unauthenticated: '请重新登录。',
    },
};

export let language = localStorage.getItem('language') ?? (navigator.language.startsWith('zh') ? 'zh' : 'en');

export function say(name, ...values) {
    return (words[language][name] ?? words.en[name] ?? name).replace(/\{(\d)\}/g, (_, i) => values[i]);
}

/** What went wrong, for people: the service's own sentence says most, but only in English. */
export function explain(error) {
    const name = `e_${error?.code ?? (error instanceof TypeError ? 'network' : '')}`;
    return words[language][name] ?? error?.message ?? String(error);
}

export function setLanguage(next) {
    language = next;
    localStorage.setItem('language', next);
}

/** Fills every element that names its words. */
export function translate(root = document) {
    document.documentElement.lang = language;
    for (const element of root.querySelectorAll('[data-t]'))
        element.textContent = say(element.dataset.t);
    for (const element of root.querySelectorAll('[data-title]'))
        element.title = element.ariaLabel = say(element.dataset.title);
}
