#include "options.h"

const char help_text[] =
    "roomd keeps chat rooms: who is in them, what was said, and who listens.\n"
    "\n"
    "  roomd [serve] --config FILE     run an instance until SIGTERM\n"
    "  roomd migrate --config FILE     make or update the tables in the database; run it once before the first start\n"
    "                                  and after each update. Running it again, or twice at once, does no harm\n"
    "  roomd check-config --config FILE\n"
    "                                  say what is wrong with the configuration, or print all settings in effect\n"
    "  roomd --help                    this text\n"
    "  roomd --settings                every setting: its default, its bounds, what it does\n"
    "  roomd --version\n"
    "\n"
    "First steps: `deploy/quickstart` brings up everything on one machine and prints where to look. By hand:\n"
    "  1. PostgreSQL 15 with an empty database, RabbitMQ 3.10 or later with a virtual host and a user that may "
    "configure,\n"
    "     write and read roomd.*\n"
    "  2. a file roomd.conf:\n"
    "       database_url = postgresql://roomd:secret@127.0.0.1/roomd\n"
    "       broker_urls  = amqp://roomd:secret@127.0.0.1:5672/%2f\n"
    "       service_keys = gateway:<the key your gateway sends as Authorization: Bearer>\n"
    "       ticket_keys  = k1:<at least 32 characters; the same on every instance>\n"
    "  3. roomd migrate --config roomd.conf\n"
    "  4. roomd serve --config roomd.conf, then http://127.0.0.1:7400/readyz says what is still missing\n"
    "\n"
    "Every setting can also come from the environment: log_level is ROOMD_LOG_LEVEL. Without --config only defaults "
    "and\n"
    "the environment count. Log lines go to stderr.\n"
    "\n"
    "SIGTERM or SIGINT drains: no new streams, open ones are sent to another instance, what is accepted is committed,\n"
    "shards are handed over. A second one stops at once; nothing is lost, the others take over a little later.\n"
    "\n"
    "migrate --new-generation: after the database was restored from a backup that is older than what readers have "
    "seen.\n"
    "Lifts the epoch of every shard above all there were: readers are told to forget what the database does not know.\n"
    "\n"
    "Exit codes: 0 done, 1 it did not work (the last line says why), 2 wrong command line or configuration.\n";

static bool word_is(const char *word, const char *text)
{
    return strcmp(word, text) == 0;
}

static bool command_read(struct options *options, const char *word)
{
    static const struct {
        const char *word;
        enum command command;
    } commands[] = {
        {"serve", COMMAND_SERVE},
        {"migrate", COMMAND_MIGRATE},
        {"check-config", COMMAND_CHECK_CONFIG},
        {"--help", COMMAND_HELP},
        {"-h", COMMAND_HELP},
        {"help", COMMAND_HELP},
        {"--settings", COMMAND_SETTINGS},
        {"--version", COMMAND_VERSION},
        {"-V", COMMAND_VERSION},
    };

    for (size_t i = 0; i < countof(commands); i++) {
        if (!word_is(word, commands[i].word))
            continue;
        options->command = commands[i].command;
        return true;
    }
    return false;
}

bool options_read(struct options *options, int count, char *const *words, struct buf *why)
{
    bool command_given = false;

    *options = (struct options){.command = COMMAND_SERVE};
    for (int i = 1; i < count; i++) {
        const char *word = words[i];

        if (word_is(word, "--config") || word_is(word, "-c")) {
            if (++i == count) {
                buf_text(why, "--config needs the name of a file behind it");
                return false;
            }
            options->config_path = words[i];
        } else if (strncmp(word, "--config=", 9) == 0) {
            options->config_path = word + 9;
        } else if (word_is(word, "--new-generation")) {
            options->new_generation = true;
        } else if (!command_given && command_read(options, word)) {
            command_given = true;
        } else if (word[0] == '-' && command_read(options, word)) {
            return true; /* --help wins wherever it stands */
        } else {
            buf_printf(why, "\"%s\" is not understood; roomd --help shows what is", word);
            return false;
        }
    }
    if (options->new_generation && options->command != COMMAND_MIGRATE) {
        buf_text(why, "--new-generation goes with migrate only");
        return false;
    }
    return true;
}
