/* The command line. Thread: main, before anything runs. */
#ifndef ROOMD_SERVER_OPTIONS_H
#define ROOMD_SERVER_OPTIONS_H

#include "room/base/buf.h"

enum command { COMMAND_SERVE, COMMAND_MIGRATE, COMMAND_CHECK_CONFIG, COMMAND_HELP, COMMAND_SETTINGS, COMMAND_VERSION };

/* What the program ends with. */
enum exit_code { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_WRONG_USE = 2 };

struct options {
    enum command command;
    const char *config_path; /* NULL: defaults and environment only */
    bool new_generation;     /* migrate */
};

/* false: a sentence is in `why`. */
bool options_read(struct options *options, int count, char *const *words, struct buf *why);
extern const char help_text[];

#endif
