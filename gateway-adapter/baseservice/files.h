/*
 * Files on disk. One file each: a head of 512 bytes (JSON, padded with spaces) and the bytes as they came. It is
 * written under temp/, synced, and renamed to its id; so a name stands for a whole file, whatever dies meanwhile, and
 * what a crash leaves in temp/ goes at the next start. The id tells the content: <ULID>.<SHA-256 in hex>. Thread: every
 * function here blocks on the disk and is made for a worker thread; a store is constant after file_store_open, an
 * upload belongs to one thread at a time.
 */
#ifndef BASESERVICE_FILES_H
#define BASESERVICE_FILES_H

#include "room/base/buf.h"

#define FILE_ID_BYTES (26 + 1 + 64)
#define FILE_HEAD_BYTES 512
#define FILE_TYPE_MAX 100

enum file_kind { FILE_IMAGE, FILE_VOICE, FILE_VIDEO, FILE_OTHER, FILE_KINDS };
extern const char *const file_kind_names[FILE_KINDS];

enum file_result {
    FILE_OK,
    FILE_NONE,       /* there is no such file */
    FILE_WRONG_TYPE, /* the bytes are not of that kind */
    FILE_INCOMPLETE, /* fewer bytes than were announced */
    FILE_FAILED      /* the disk; logged where it was seen */
};

struct file_facts {
    enum file_kind kind;
    char content_type[FILE_TYPE_MAX + 1];
    uint64_t size, created_ms;
};

struct file_store;
/* NULL: the log says why. Removes what broken uploads left. */
struct file_store *file_store_open(const char *directory);
void file_store_free(struct file_store *store);

struct upload;
/* `declared`: the Content-Type that came with it; used for the kind `file` when the bytes do not tell. */
MUST_USE enum file_result upload_begin(
    struct upload **out, const struct file_store *store, enum file_kind kind, struct str declared, uint64_t size);
MUST_USE enum file_result upload_write(struct upload *upload, const char *p, size_t n);
/* Ends the upload in every case; `id` (with NUL) and facts are filled on FILE_OK. When it returns the
 * file is durable. */
MUST_USE enum file_result upload_commit(struct upload *upload, char id[FILE_ID_BYTES + 1], struct file_facts *facts);
void upload_abandon(struct upload *upload);

/* The caller closes *fd; the bytes begin at FILE_HEAD_BYTES. Any text may be asked for. */
MUST_USE enum file_result file_open(const struct file_store *store, struct str id, int *fd, struct file_facts *facts);

/* --- sniff.c: pure --- */

/* What the first bytes say (the first 64 are enough), as far as a browser shows or plays it; NULL: nothing known. */
const char *sniff_type(const char *p, size_t n);
/* May a file of this kind have this type? Everything is a `file`. */
bool sniff_fits(enum file_kind kind, const char *type);

#endif
