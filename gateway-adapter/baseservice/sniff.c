/*
 * What a file is, by its first bytes. Source: the signatures of WHATWG MIME Sniffing (6.1 to 6.4), RFC 4867 5 (AMR),
 * ISO/IEC 14496-12 4.3 (ftyp brands).
 */
#include "files.h"

struct signature {
    const char *type, *bytes;
    size_t n, at;
};
#define SIGNATURE(type, at, text)        \
    {                                    \
        type, text, sizeof(text) - 1, at \
    }

static const struct signature signatures[] = {
    SIGNATURE("image/png", 0, "\x89PNG\r\n\x1a\n"),
    SIGNATURE("image/jpeg", 0, "\xff\xd8\xff"),
    SIGNATURE("image/gif", 0, "GIF87a"),
    SIGNATURE("image/gif", 0, "GIF89a"),
    SIGNATURE("audio/ogg", 0, "OggS\0"),
    SIGNATURE("audio/mpeg", 0, "ID3"),
    SIGNATURE("audio/amr", 0, "#!AMR"),
    SIGNATURE("application/pdf", 0, "%PDF-"),
    SIGNATURE("application/zip", 0, "PK\x03\x04"),
    SIGNATURE("application/gzip", 0, "\x1f\x8b\x08"),
};
/* In a RIFF file, and in one of the ISO media family, the type stands a little behind the beginning. */
static const struct signature riffs[] = {SIGNATURE("image/webp", 8, "WEBPVP"), SIGNATURE("audio/wav", 8, "WAVE")};
static const struct signature brands[] = {SIGNATURE("image/avif", 8, "avif"), SIGNATURE("image/avif", 8, "avis"),
    SIGNATURE("audio/mp4", 8, "M4A "), SIGNATURE("video/quicktime", 8, "qt  "), SIGNATURE("video/mp4", 4, "ftyp")};

static const char *find(const struct signature *list, size_t count, const char *p, size_t n)
{
    for (size_t i = 0; i < count; i++)
        if (n >= list[i].at + list[i].n && memcmp(p + list[i].at, list[i].bytes, list[i].n) == 0)
            return list[i].type;
    return NULL;
}

/* The frame header of MPEG audio: eleven ones, then a layer (0 is ADTS, which is AAC). */
static const char *mpeg_audio(const char *p, size_t n)
{
    unsigned char second = n > 1 ? (unsigned char)p[1] : 0;

    if (n < 4 || (unsigned char)p[0] != 0xff || (second & 0xe0) != 0xe0 || ((unsigned char)p[2] & 0xf0) == 0xf0)
        return NULL;
    return (second & 0xf6) == 0xf0 ? "audio/aac" : (second & 0x06) ? "audio/mpeg" : NULL;
}

const char *sniff_type(const char *p, size_t n)
{
    if (n >= 12 && memcmp(p, "RIFF", 4) == 0)
        return find(riffs, countof(riffs), p, n);
    if (n >= 12 && memcmp(p + 4, "ftyp", 4) == 0)
        return find(brands, countof(brands), p, n);
    if (n >= 4 && memcmp(p, "\x1a\x45\xdf\xa3", 4) == 0)
        return "video/webm"; /* sound alone looks the same; see sniff_fits */
    const char *type = find(signatures, countof(signatures), p, n);

    return type ? type : mpeg_audio(p, n);
}

bool sniff_fits(enum file_kind kind, const char *type)
{
    if (kind == FILE_OTHER)
        return true;
    if (!type)
        return false;
    /* Containers that a recorder in a browser writes for sound and for pictures alike. */
    if (strcmp(type, "video/webm") == 0 || strcmp(type, "video/mp4") == 0)
        return kind == FILE_VOICE || kind == FILE_VIDEO;
    if (strcmp(type, "audio/ogg") == 0)
        return kind == FILE_VOICE || kind == FILE_VIDEO;
    return kind == FILE_IMAGE   ? strncmp(type, "image/", 6) == 0
           : kind == FILE_VOICE ? strncmp(type, "audio/", 6) == 0
                                : strncmp(type, "video/", 6) == 0;
}
