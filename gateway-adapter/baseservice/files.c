#include "files.h"

#include "room/base/clock.h"
#include "room/base/json.h"
#include "room/base/log.h"
#include "room/base/ulid.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#define SNIFF_BYTES 64

const char *const file_kind_names[FILE_KINDS] = {"image", "voice", "video", "file"};

struct file_store {
    int files_fd, temp_fd; /* directories */
};

struct upload {
    const struct file_store *store;
    int fd;
    EVP_MD_CTX *sha256;
    uint64_t announced;
    struct file_facts facts;
    char declared[FILE_TYPE_MAX + 1];
    char name[ULID_TEXT + 1];
    char first[SNIFF_BYTES];
    size_t first_n;
};

static pthread_mutex_t ids = PTHREAD_MUTEX_INITIALIZER; /* ulid_new is made for one thread, workers are several */

static int open_directory(int under, const char *name);
static void temp_clear(int temp_fd);
static bool write_all(int fd, const char *p, size_t n);
static bool type_settle(struct upload *upload);
static bool head_write(const struct upload *upload);

static enum file_result failed(const char *what)
{
    log_error("file.disk", "what=%s error=%s", what, log_quote(str_of(strerror(errno))));
    return FILE_FAILED;
}

/* ------------------------------------------------------------------ the store */

struct file_store *file_store_open(const char *directory)
{
    struct file_store *store;
    int fd = open_directory(AT_FDCWD, directory), files_fd, temp_fd;

    if (fd < 0)
        return NULL;
    files_fd = open_directory(fd, "files");
    temp_fd = files_fd < 0 ? -1 : open_directory(fd, "temp");
    fsync(fd);
    close(fd);
    if (temp_fd < 0) {
        if (files_fd >= 0)
            close(files_fd);
        return NULL;
    }
    temp_clear(temp_fd);
    store = xmalloc(sizeof *store);
    *store = (struct file_store){files_fd, temp_fd};
    return store;
}

void file_store_free(struct file_store *store)
{
    close(store->files_fd);
    close(store->temp_fd);
    free(store);
}

static int open_directory(int under, const char *name)
{
    int fd;

    if (mkdirat(under, name, 0700) && errno != EEXIST) {
        log_error("file.directory", "name=%s error=%s", log_quote(str_of(name)), log_quote(str_of(strerror(errno))));
        return -1;
    }
    fd = openat(under, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        log_error("file.directory", "name=%s error=%s", log_quote(str_of(name)), log_quote(str_of(strerror(errno))));
    return fd;
}

static void temp_clear(int temp_fd)
{
    int again = dup(temp_fd);
    DIR *directory = again < 0 ? NULL : fdopendir(again);
    struct dirent *entry;
    unsigned removed = 0;

    if (!directory)
        return;
    while ((entry = readdir(directory)))
        if (entry->d_name[0] != '.' && unlinkat(temp_fd, entry->d_name, 0) == 0)
            removed++;
    closedir(directory);
    if (removed)
        log_info("file.temp_cleared", "files=%u", removed);
}

/* -------------------------------------------------------------------- uploads */

/* A type that came from outside goes out again in a header: what is no plain type/subtype becomes bytes. */
static void declared_copy(char to[FILE_TYPE_MAX + 1], struct str declared)
{
    size_t n = 0, slashes = 0;

    for (; n < declared.n && declared.p[n] != ';' && declared.p[n] != ' '; n++) {
        unsigned char c = (unsigned char)declared.p[n];

        slashes += c == '/';
        if (n == FILE_TYPE_MAX || !(isalnum(c) || strchr("/!#$&^_.+-", c)) || (c == '/' && n == 0))
            slashes = 2;
        if (slashes > 1)
            break;
        to[n] = (char)tolower(c);
    }
    to[n] = '\0';
    if (slashes != 1 || to[n - 1] == '/')
        strcpy(to, "application/octet-stream");
}

enum file_result upload_begin(
    struct upload **out, const struct file_store *store, enum file_kind kind, struct str declared, uint64_t size)
{
    struct upload *upload = xcalloc(1, sizeof *upload);
    static const char nothing[FILE_HEAD_BYTES];

    upload->store = store;
    upload->announced = size;
    upload->facts = (struct file_facts){.kind = kind, .created_ms = clock_unix_ms()};
    declared_copy(upload->declared, declared);
    pthread_mutex_lock(&ids);
    ulid_write(upload->name, ulid_new(upload->facts.created_ms));
    pthread_mutex_unlock(&ids);
    upload->sha256 = EVP_MD_CTX_new();
    upload->fd = openat(store->temp_fd, upload->name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (upload->fd < 0 || !upload->sha256 || !EVP_DigestInit_ex(upload->sha256, EVP_sha256(), NULL) ||
        !write_all(upload->fd, nothing, sizeof nothing)) {
        failed("begin");
        upload_abandon(upload);
        return FILE_FAILED;
    }
    *out = upload;
    return FILE_OK;
}

enum file_result upload_write(struct upload *upload, const char *p, size_t n)
{
    size_t more = SNIFF_BYTES - upload->first_n < n ? SNIFF_BYTES - upload->first_n : n;
    bool known = upload->first_n == SNIFF_BYTES;

    memcpy(upload->first + upload->first_n, p, more);
    upload->first_n += more;
    /* Said as soon as it is known: who sends the wrong thing need not send all of it. */
    if (!known && upload->first_n == SNIFF_BYTES && !type_settle(upload))
        return FILE_WRONG_TYPE;
    if (!write_all(upload->fd, p, n) || !EVP_DigestUpdate(upload->sha256, p, n))
        return failed("write");
    upload->facts.size += n;
    return FILE_OK;
}

enum file_result upload_commit(struct upload *upload, char id[FILE_ID_BYTES + 1], struct file_facts *facts)
{
    const struct file_store *store = upload->store;
    unsigned char sum[EVP_MAX_MD_SIZE];
    enum file_result result = FILE_OK;

    if (upload->facts.size != upload->announced)
        result = FILE_INCOMPLETE;
    else if (upload->first_n < SNIFF_BYTES && !type_settle(upload))
        result = FILE_WRONG_TYPE;
    else if (!EVP_DigestFinal_ex(upload->sha256, sum, NULL) || !head_write(upload) || fsync(upload->fd))
        result = failed("sync");
    if (!result) {
        snprintf(id, FILE_ID_BYTES + 1, "%s.", upload->name);
        for (size_t i = 0; i < 32; i++)
            snprintf(id + ULID_TEXT + 1 + 2 * i, 3, "%02x", sum[i]);
        /* A rename within one file system is the moment in which the file is there; the directory makes it last. */
        if (renameat(store->temp_fd, upload->name, store->files_fd, id))
            result = failed("rename");
        else if (fsync(store->files_fd))
            result = failed("directory");
        *facts = upload->facts;
    }
    upload_abandon(upload);
    return result;
}

void upload_abandon(struct upload *upload)
{
    if (upload->fd >= 0) {
        close(upload->fd);
        unlinkat(upload->store->temp_fd, upload->name, 0); /* not there any more after a rename */
    }
    EVP_MD_CTX_free(upload->sha256);
    free(upload);
}

static bool write_all(int fd, const char *p, size_t n)
{
    while (n) {
        ssize_t written = write(fd, p, n);

        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return false;
        p += written;
        n -= (size_t)written;
    }
    return true;
}

/* What a browser would run as a page of ours is never handed out under its own type. */
static bool is_active(const char *type)
{
    static const char *const active[] = {"text/html", "application/xhtml+xml", "image/svg+xml", "text/xml",
        "application/xml", "text/javascript", "application/javascript", "application/pdf", "multipart/x-mixed-replace"};

    for (size_t i = 0; i < countof(active); i++)
        if (strcasecmp(type, active[i]) == 0)
            return true;
    return false;
}

static bool type_settle(struct upload *upload)
{
    const char *type = sniff_type(upload->first, upload->first_n);

    if (!sniff_fits(upload->facts.kind, type))
        return false;
    if (!type)
        type = is_active(upload->declared) ? "application/octet-stream" : upload->declared;
    if (upload->facts.kind == FILE_VOICE && strncmp(type, "video/", 6) == 0)
        snprintf(upload->facts.content_type, sizeof upload->facts.content_type, "audio/%s", type + 6);
    else if (upload->facts.kind == FILE_VIDEO && strcmp(type, "audio/ogg") == 0)
        strcpy(upload->facts.content_type, "video/ogg");
    else
        snprintf(upload->facts.content_type, sizeof upload->facts.content_type, "%s", type);
    return true;
}

static bool head_write(const struct upload *upload)
{
    const struct file_facts *facts = &upload->facts;
    struct buf head = {0};
    bool good;

    buf_printf(&head, "{\"v\":1,\"kind\":\"%s\",\"size\":%llu,\"created_at\":%llu,\"content_type\":\"%s\"}",
        file_kind_names[facts->kind], (unsigned long long)facts->size, (unsigned long long)facts->created_ms,
        facts->content_type);
    while (head.n < FILE_HEAD_BYTES - 1)
        buf_char(&head, ' ');
    buf_char(&head, '\n');
    good = head.n == FILE_HEAD_BYTES && pwrite(upload->fd, head.p, head.n, 0) == FILE_HEAD_BYTES;
    buf_clear(&head);
    return good;
}

/* -------------------------------------------------------------------- reading */

static bool id_valid(struct str id)
{
    struct id128 ulid;

    if (id.n != FILE_ID_BYTES || id.p[ULID_TEXT] != '.' || !ulid_read(&ulid, (struct str){id.p, ULID_TEXT}))
        return false;
    for (size_t i = ULID_TEXT + 1; i < id.n; i++)
        if (!strchr("0123456789abcdef", id.p[i]))
            return false;
    return true;
}

static bool head_read(int fd, struct file_facts *facts)
{
    char text[FILE_HEAD_BYTES];
    struct json head;
    struct buf scratch = {0};
    struct str kind = {NULL, 0}, type = {NULL, 0};
    const char *why;
    int64_t size, created;
    size_t i = 0;
    bool good;

    if (pread(fd, text, sizeof text, 0) != sizeof text || !json_check((struct str){text, sizeof text}, &head, &why) ||
        head.type != JSON_OBJECT)
        return false;
    good = json_string(json_get(head, "kind"), &scratch, &kind) &&
           json_string(json_get(head, "content_type"), &scratch, &type) && type.n <= FILE_TYPE_MAX &&
           json_integer(json_get(head, "size"), &size) && json_integer(json_get(head, "created_at"), &created);
    while (good && i < FILE_KINDS && !str_is(kind, file_kind_names[i]))
        i++;
    if (good && i < FILE_KINDS) {
        *facts =
            (struct file_facts){.kind = (enum file_kind)i, .size = (uint64_t)size, .created_ms = (uint64_t)created};
        memcpy(facts->content_type, type.p, type.n);
    }
    buf_clear(&scratch);
    return good && i < FILE_KINDS;
}

enum file_result file_open(const struct file_store *store, struct str id, int *fd, struct file_facts *facts)
{
    char name[FILE_ID_BYTES + 1];
    struct stat found;
    int file;

    if (!id_valid(id))
        return FILE_NONE;
    memcpy(name, id.p, id.n);
    name[id.n] = '\0';
    file = openat(store->files_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (file < 0)
        return errno == ENOENT ? FILE_NONE : failed("open");
    if (fstat(file, &found) || !head_read(file, facts) || (uint64_t)found.st_size != facts->size + FILE_HEAD_BYTES) {
        log_error("file.damaged", "id=%s", name);
        close(file);
        return FILE_FAILED;
    }
    *fd = file;
    return FILE_OK;
}
