/* The spool; see adapter_spool.h. */
#define _GNU_SOURCE /* memmem */
#include "adapter_spool.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HEAD_BYTES = 32, MARK_AT = 16, RECORD_HEAD = 12, PAYLOAD_MAX = 16 << 20 };

static const char head_text[16] = "roomd spool 1\n";
static const unsigned char magic[4] = {0xb5, 'R', 'm', 0x0a};

/* CRC-32C (RFC 3720, appendix B.4), four bits at a time. */
static uint32_t crc32c(const void *bytes, size_t n)
{
    static const uint32_t table[16] = {0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3,
        0x61c69362, 0x7198540d, 0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a,
        0xf36e6f75};
    const unsigned char *p = bytes;
    uint32_t crc = ~0u;

    while (n--) {
        crc ^= *p++;
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

static void store(unsigned char *p, uint64_t value, int n)
{
    for (int i = 0; i < n; i++)
        p[i] = (unsigned char)(value >> (8 * i));
}

static uint64_t fetch(const unsigned char *p, int n)
{
    uint64_t value = 0;

    while (n--)
        value = value << 8 | p[n];
    return value;
}

static bool read_at(const struct adapter_spool *spool, void *to, size_t n, uint64_t at)
{
    char *p = to;

    while (n) {
        ssize_t got = pread(spool->fd, p, n, (off_t)at);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        p += got;
        at += (uint64_t)got;
        n -= (size_t)got;
    }
    return true;
}

static bool write_at(const struct adapter_spool *spool, const void *from, size_t n, uint64_t at)
{
    const char *p = from;

    while (n) {
        ssize_t put = pwrite(spool->fd, p, n, (off_t)at);

        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return false;
        p += put;
        at += (uint64_t)put;
        n -= (size_t)put;
    }
    return true;
}

/* ------------------------------------------------------------------ records */

static bool split_payload(struct adapter_spool_record *record, const char *p, size_t n)
{
    const char *room_end = memchr(p, 0, n), *id_end;

    if (!room_end)
        return false;
    id_end = memchr(room_end + 1, 0, (size_t)(p + n - room_end - 1));
    if (!id_end)
        return false;
    *record = (struct adapter_spool_record){
        .room_id = p, .message_id = room_end + 1, .body = id_end + 1, .body_n = (size_t)(p + n - id_end - 1)};
    return true;
}

/* The record at `at`, whole and undamaged, into scratch. */
static bool record_at(struct adapter_spool *spool, uint64_t at, uint64_t end, struct adapter_spool_record *record)
{
    unsigned char head[RECORD_HEAD];
    size_t n;
    char *p;

    if (end - at < RECORD_HEAD || !read_at(spool, head, sizeof(head), at) || memcmp(head, magic, 4) != 0)
        return false;
    n = (size_t)fetch(head + 4, 4);
    if (n > PAYLOAD_MAX || n > end - at - RECORD_HEAD)
        return false;
    spool->scratch.n = 0;
    p = adapter_buf_reserve(&spool->scratch, n + 1);
    if (!p || !read_at(spool, p, n, at + RECORD_HEAD) || crc32c(p, n) != fetch(head + 8, 4))
        return false;
    if (!split_payload(record, p, n))
        return false;
    record->end = at + RECORD_HEAD + n;
    return true;
}

/* Where the next undamaged record behind `at` begins; `end` when there is none. */
static uint64_t next_good(struct adapter_spool *spool, uint64_t at, uint64_t end)
{
    struct adapter_spool_record record;
    char piece[4096];

    while (end - at > RECORD_HEAD) {
        size_t n = end - at < sizeof(piece) ? (size_t)(end - at) : sizeof(piece);
        const char *found;

        if (!read_at(spool, piece, n, at))
            return end;
        found = memmem(piece, n, magic, sizeof(magic));
        if (!found) {
            at += n - (sizeof(magic) - 1);
            if (n < sizeof(piece))
                return end;
            continue;
        }
        at += (uint64_t)(found - piece);
        if (record_at(spool, at, end, &record))
            return at;
        at++;
    }
    return end;
}

bool adapter_spool_read(struct adapter_spool *spool, struct adapter_spool_record *record)
{
    while (spool->next < spool->end) {
        uint64_t good;

        if (record_at(spool, spool->next, spool->end, record)) {
            spool->next = record->end;
            return true;
        }
        if (spool->scratch.failed) { /* later, with more memory */
            adapter_buf_clear(&spool->scratch);
            return false;
        }
        good = next_good(spool, spool->next + 1, spool->end);
        spool->damaged++;
        spool->next = good;
    }
    return false;
}

/* ------------------------------------------------------------------ opening */

/* The new file's name must survive, too. */
static void sync_folder(const char *file)
{
    char *copy = strdup(file);
    int fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    free(copy);
}

static bool head_write(struct adapter_spool *spool)
{
    unsigned char head[HEAD_BYTES] = {0};

    memcpy(head, head_text, sizeof(head_text));
    store(head + MARK_AT, HEAD_BYTES, 8);
    spool->end = spool->done = spool->mark = spool->next = spool->committed = HEAD_BYTES;
    return write_at(spool, head, sizeof(head), 0) && ftruncate(spool->fd, HEAD_BYTES) == 0 && fdatasync(spool->fd) == 0;
}

/* The last whole record's end is the spool's end: what is behind it was never promised to anybody. */
static bool find_end(struct adapter_spool *spool, uint64_t size)
{
    struct adapter_spool_record record;
    uint64_t at = spool->mark, last = spool->mark;

    while (at < size) {
        if (record_at(spool, at, size, &record)) {
            at = last = record.end;
            continue;
        }
        if (spool->scratch.failed)
            return false;
        at = next_good(spool, at + 1, size);
    }
    spool->end = spool->committed = last;
    spool->done = spool->next = spool->mark;
    return ftruncate(spool->fd, (off_t)last) == 0;
}

static enum roomd_code content_open(struct adapter_spool *spool, const char *file, const char **why)
{
    unsigned char head[HEAD_BYTES];
    struct stat stat;

    *why = "the spool cannot be read or written";
    if (fstat(spool->fd, &stat) || !S_ISREG(stat.st_mode))
        return ROOMD_UNAVAILABLE;
    if (stat.st_size < HEAD_BYTES) { /* new, or it ended while it was made */
        if (!head_write(spool))
            return ROOMD_UNAVAILABLE;
        sync_folder(file);
        return ROOMD_OK;
    }
    if (!read_at(spool, head, sizeof(head), 0))
        return ROOMD_UNAVAILABLE;
    if (memcmp(head, head_text, sizeof(head_text)) != 0) {
        *why = "the file named as spool is something else";
        return ROOMD_UNAVAILABLE;
    }
    spool->mark = fetch(head + MARK_AT, 8);
    if (spool->mark < HEAD_BYTES || spool->mark > (uint64_t)stat.st_size)
        spool->mark = HEAD_BYTES; /* all of it again does no harm */
    if (!find_end(spool, (uint64_t)stat.st_size))
        return spool->scratch.failed ? ROOMD_NO_MEMORY : ROOMD_UNAVAILABLE;
    return ROOMD_OK;
}

enum roomd_code adapter_spool_open(struct adapter_spool *spool, const char *file, uint64_t max_bytes, const char **why)
{
    enum roomd_code code;

    *spool = (struct adapter_spool){.max = max_bytes};
    *why = "the spool cannot be opened";
    spool->fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (spool->fd < 0)
        return ROOMD_UNAVAILABLE;
    if (flock(spool->fd, LOCK_EX | LOCK_NB)) {
        *why = "another client has the spool open";
        code = ROOMD_CONFLICT;
    } else {
        code = content_open(spool, file, why);
    }
    if (code)
        adapter_spool_close(spool);
    return code;
}

static void mark_write(struct adapter_spool *spool)
{
    unsigned char mark[8];

    store(mark, spool->done, 8);
    if (spool->mark != spool->done && write_at(spool, mark, sizeof(mark), MARK_AT))
        spool->mark = spool->done;
}

void adapter_spool_close(struct adapter_spool *spool)
{
    if (spool->mark)
        mark_write(spool);
    close(spool->fd); /* and the lock with it */
    adapter_buf_clear(&spool->scratch);
    *spool = (struct adapter_spool){.fd = -1};
}

/* ------------------------------------------------------------------ in and out */

bool adapter_spool_add(
    struct adapter_spool *spool, const char *room_id, const char *message_id, const char *body, size_t n)
{
    size_t room_n = strlen(room_id) + 1, id_n = strlen(message_id) + 1, payload = room_n + id_n + n;
    unsigned char *p;

    if (payload > PAYLOAD_MAX || spool->end + RECORD_HEAD + payload > spool->max)
        return false;
    spool->scratch.n = 0;
    p = (unsigned char *)adapter_buf_reserve(&spool->scratch, RECORD_HEAD + payload);
    if (!p) {
        adapter_buf_clear(&spool->scratch);
        return false;
    }
    memcpy(p + RECORD_HEAD, room_id, room_n);
    memcpy(p + RECORD_HEAD + room_n, message_id, id_n);
    memcpy(p + RECORD_HEAD + room_n + id_n, body, n);
    memcpy(p, magic, sizeof(magic));
    store(p + 4, payload, 4);
    store(p + 8, crc32c(p + RECORD_HEAD, payload), 4);
    if (!write_at(spool, p, RECORD_HEAD + payload, spool->end)) {
        (void)!ftruncate(spool->fd, (off_t)spool->end); /* else the next record is written over it */
        return false;
    }
    spool->end += RECORD_HEAD + payload;
    return true;
}

bool adapter_spool_commit(struct adapter_spool *spool)
{
    if (fdatasync(spool->fd) == 0) {
        spool->committed = spool->end;
        return true;
    }
    (void)!ftruncate(spool->fd, (off_t)spool->committed);
    spool->end = spool->committed;
    return false;
}

void adapter_spool_settled(struct adapter_spool *spool, uint64_t end)
{
    spool->done = end;
    if (spool->done == spool->end && head_write(spool))
        return;
    if (spool->done - spool->mark >= 256 << 10 || spool->done == spool->end)
        mark_write(spool); /* now and then: it is only there to save work */
}
