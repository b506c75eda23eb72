/* Without libFuzzer: runs a fuzz target over every file of the folders named, so that what was found once is a test. */
#include "room/base/buf.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool replay_file(const char *path)
{
    FILE *stream = fopen(path, "rb");
    struct buf input = {0};
    uint8_t *exact;
    size_t n;

    if (!stream)
        return false;
    do {
        n = fread(buf_reserve(&input, 4096), 1, 4096, stream);
        input.n += n;
    } while (n > 0);
    fclose(stream);
    exact = xmemdup(input.p, input.n); /* no slack behind it that would hide a read too far */
    (void)LLVMFuzzerTestOneInput(exact, input.n);
    free(exact);
    buf_clear(&input);
    return true;
}

int main(int argc, char **argv)
{
    size_t files = 0;

    for (int i = 1; i < argc; i++) {
        DIR *folder = opendir(argv[i]);
        struct dirent *entry;

        if (!folder) {
            perror(argv[i]);
            return 1;
        }
        while ((entry = readdir(folder))) {
            struct buf path = {0};

            if (entry->d_name[0] == '.')
                continue;
            buf_printf(&path, "%s/%s", argv[i], entry->d_name);
            buf_char(&path, '\0');
            files += replay_file(path.p);
            buf_clear(&path);
        }
        closedir(folder);
    }
    printf("%zu inputs\n", files);
    return files == 0;
}
