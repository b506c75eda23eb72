/* The page: a handful of files, read once at start, so that a request never touches the disk. */
#include "gateway.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "room/base/log.h"
#include "room/base/mem.h"

#define FILE_MAX_BYTES (4u << 20)

struct file {
    struct list link;
    const char *type;
    struct buf bytes;
    char path[]; /* "/index.html" */
};

struct web {
    struct list files;
};

static const struct {
    const char *ending, *type;
} types[] = {
    {".html", "text/html; charset=utf-8"},
    {".js", "text/javascript; charset=utf-8"},
    {".css", "text/css; charset=utf-8"},
    {".svg", "image/svg+xml"},
    {".png", "image/png"},
    {".ico", "image/x-icon"},
    {".json", "application/json"},
    {".webmanifest", "application/manifest+json"},
};

static const char *type_of(const char *name)
{
    const char *dot = strrchr(name, '.');

    for (size_t i = 0; dot && i < countof(types); i++)
        if (!strcmp(dot, types[i].ending))
            return types[i].type;
    return NULL;
}

static void read_one(struct web *web, const char *folder, const char *name, const char *type)
{
    struct buf path = {0};
    struct file *file;
    FILE *stream;
    size_t n = 1;

    buf_printf(&path, "%s/%s", folder, name);
    buf_char(&path, '\0');
    stream = fopen(path.p, "re");
    buf_clear(&path);
    if (!stream)
        return;
    file = xcalloc(1, sizeof *file + strlen(name) + 2);
    file->path[0] = '/';
    memcpy(file->path + 1, name, strlen(name));
    file->type = type;
    while (n && file->bytes.n <= FILE_MAX_BYTES) {
        n = fread(buf_reserve(&file->bytes, 65536), 1, 65536, stream);
        file->bytes.n += n;
    }
    fclose(stream);
    list_push_back(&web->files, &file->link);
}

struct web *web_open(const char *folder)
{
    struct web *web = xcalloc(1, sizeof *web);
    DIR *dir = *folder ? opendir(folder) : NULL;
    struct dirent *entry;

    list_init(&web->files);
    if (*folder && !dir)
        log_warn(
            "web.folder", "folder=%s hint=\"web_folder cannot be read: no page is served\"", log_quote(str_of(folder)));
    while (dir && (entry = readdir(dir)))
        if (entry->d_name[0] != '.' && type_of(entry->d_name))
            read_one(web, folder, entry->d_name, type_of(entry->d_name));
    if (dir)
        closedir(dir);
    return web;
}

void web_close(struct web *web)
{
    struct list *at;

    while ((at = list_pop_front(&web->files))) {
        struct file *file = list_entry(at, struct file, link);

        buf_clear(&file->bytes);
        free(file);
    }
    free(web);
}

bool web_serve(const struct web *web, struct http_request *request, struct http_reply *reply)
{
    struct str path = str_is(request->path, "/") ? STR("/index.html") : request->path;
    struct file *file;

    if (request->method != HTTP_GET && request->method != HTTP_HEAD)
        return false;
    list_for_each (file, &web->files, link) {
        if (!str_is(path, file->path))
            continue;
        http_reply_header(reply, "referrer-policy", "same-origin");
        http_reply_header(reply, "content-security-policy",
            "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; "
            "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'");
        http_reply_text(reply, 200, file->type, buf_str(&file->bytes));
        return true;
    }
    return false;
}
