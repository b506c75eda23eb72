#include "pg_address.h"

#include "log.h"

#include <arpa/inet.h>
#include <assert.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>

/* 4: what one name may stand for (two families, a few replicas); each is tried for connect_timeout. */
enum { HOSTS_MAX = 16, ADDRESSES_PER_NAME = 4, KEYWORDS_MAX = 80 };

struct host {
    char *name, *address, *port;
};

struct pg_address {
    PQconninfoOption *options;
    struct host hosts[HOSTS_MAX];
    int count; /* 0: nothing to look up, the string is taken as it is */
    uint64_t connect_timeout_ms;
};

/* What a connection has unless the string says otherwise. */
static const struct {
    const char *keyword, *value;
} defaults[] = {
    {"fallback_application_name", "roomd"}, {"tcp_user_timeout", "5000"}, {"keepalives_idle", "5"},
    {"keepalives_interval", "2"}, {"keepalives_count", "3"},
    {"gssencmode", "disable"}, /* "prefer" may talk to a key server while the loop waits */
};

static bool hosts_read(struct pg_address *address);
static void lookup_step(struct pg_lookup *lookup);
static void lookup_on_name(uv_getaddrinfo_t *request, int status, struct addrinfo *found);

/* --- the string --- */

static const char *option_get(const struct pg_address *address, const char *keyword, const char *environment)
{
    for (const PQconninfoOption *option = address->options; option->keyword; option++)
        if (strcmp(option->keyword, keyword) == 0 && option->val)
            return option->val;
    return environment ? getenv(environment) : NULL;
}

enum err pg_address_parse(struct pg_address **out, const char *url)
{
    struct pg_address *address = xcalloc(1, sizeof *address);
    char *why = NULL;
    const char *timeout;

    address->options = PQconninfoParse(url, &why);
    PQfreemem(why);
    if (!address->options || !hosts_read(address)) {
        log_error("pg.bad_address", "setting=database_url says=%s",
            "\"not a connection string of libpq, or too many hosts\"");
        pg_address_free(address);
        return ERR_BAD_REQUEST;
    }
    timeout = option_get(address, "connect_timeout", "PGCONNECT_TIMEOUT");
    address->connect_timeout_ms = timeout && atoi(timeout) > 0 ? (uint64_t)atoi(timeout) * 1000 : 3000;
    *out = address;
    return ERR_OK;
}

void pg_address_free(struct pg_address *address)
{
    for (int i = 0; i < address->count; i++) {
        free(address->hosts[i].name);
        free(address->hosts[i].address);
        free(address->hosts[i].port);
    }
    PQconninfoFree(address->options);
    free(address);
}

uint64_t pg_address_connect_timeout_ms(const struct pg_address *address)
{
    return address->connect_timeout_ms;
}

static int list_length(const char *list)
{
    int n = 1;

    for (const char *p = list; *p; p++)
        n += *p == ',';
    return n;
}

/* Item i of a comma-separated list. */
static struct str list_item(const char *list, int i)
{
    while (i-- > 0)
        list = strchr(list, ',') + 1;
    return (struct str){list, strcspn(list, ",")};
}

/* False when there are too many. Lists that do not fit together are left to libpq, which knows what to
 * say about them. */
static bool hosts_read(struct pg_address *address)
{
    const char *names = option_get(address, "host", "PGHOST"),
               *addresses = option_get(address, "hostaddr", "PGHOSTADDR");
    const char *ports = option_get(address, "port", "PGPORT");
    int count, port_count;

    if (!names && !addresses)
        return true; /* libpq's default, a local socket */
    count = list_length(addresses ? addresses : names);
    port_count = ports ? list_length(ports) : 1;
    if (count > HOSTS_MAX)
        return false;
    if ((names && list_length(names) != count) || (port_count != 1 && port_count != count))
        return true;
    for (int i = 0; i < count; i++) {
        struct str name = names ? list_item(names, i) : STR(""),
                   literal = addresses ? list_item(addresses, i) : STR("");
        struct str port = ports ? list_item(ports, port_count == 1 ? 0 : i) : STR("");

        address->hosts[i] =
            (struct host){xstrndup(name.p, name.n), xstrndup(literal.p, literal.n), xstrndup(port.p, port.n)};
        address->count = i + 1;
    }
    return true;
}

/* --- looking up --- */

static void lookup_add(struct pg_lookup *lookup, const struct host *host, const char *literal)
{
    if (lookup->found++ > 0) {
        buf_char(&lookup->hosts, ',');
        buf_char(&lookup->addresses, ',');
        buf_char(&lookup->ports, ',');
    }
    buf_text(&lookup->hosts, host->name);
    buf_text(&lookup->addresses, literal);
    buf_text(&lookup->ports, host->port);
    lookup->any_address |= *literal != '\0';
}

static bool is_literal(const char *name)
{
    unsigned char binary[16];

    return inet_pton(AF_INET, name, binary) == 1 || inet_pton(AF_INET6, name, binary) == 1;
}

static bool is_socket(const char *name)
{
    return *name == '\0' || *name == '/' || *name == '@';
}

void pg_lookup_start(struct pg_lookup *lookup, uv_loop_t *loop, const struct pg_address *address, int first,
    void (*done)(struct pg_lookup *lookup, bool found))
{
    assert(!lookup->waiting);
    lookup->loop = loop;
    lookup->address = address;
    lookup->first = first;
    lookup->next = lookup->found = 0;
    lookup->any_address = lookup->cancelled = false;
    lookup->done = done;
    buf_reset(&lookup->hosts);
    buf_reset(&lookup->addresses);
    buf_reset(&lookup->ports);
    lookup_step(lookup);
}

void pg_lookup_cancel(struct pg_lookup *lookup)
{
    lookup->cancelled = true;
    if (lookup->waiting)
        uv_cancel((uv_req_t *)&lookup->request);
}

void pg_lookup_clear(struct pg_lookup *lookup)
{
    buf_clear(&lookup->hosts);
    buf_clear(&lookup->addresses);
    buf_clear(&lookup->ports);
}

static const struct host *lookup_host(const struct pg_lookup *lookup)
{
    return &lookup->address->hosts[(lookup->first + lookup->next) % lookup->address->count];
}

static void lookup_step(struct pg_lookup *lookup)
{
    static const struct addrinfo stream = {.ai_socktype = SOCK_STREAM};

    for (; lookup->next < lookup->address->count; lookup->next++) {
        const struct host *host = lookup_host(lookup);

        if (*host->address || is_socket(host->name)) {
            lookup_add(lookup, host, host->address);
        } else if (is_literal(host->name)) {
            lookup_add(lookup, host, host->name);
        } else if (uv_getaddrinfo(lookup->loop, &lookup->request, lookup_on_name, host->name, NULL, &stream) == 0) {
            lookup->waiting = true;
            return;
        }
    }
    lookup->done(lookup, lookup->found > 0 || lookup->address->count == 0);
}

static void lookup_on_name(uv_getaddrinfo_t *request, int status, struct addrinfo *found)
{
    struct pg_lookup *lookup = container_of(request, struct pg_lookup, request);
    const struct host *host = lookup_host(lookup);
    int left = ADDRESSES_PER_NAME;

    lookup->waiting = false;
    if (lookup->cancelled) {
        uv_freeaddrinfo(found);
        lookup->done(lookup, false);
        return;
    }
    if (status != 0)
        log_warn("pg.no_such_host", "host=%s says=%s", log_quote(str_of(host->name)),
            log_quote(str_of(uv_strerror(status))));
    for (struct addrinfo *one = found; one && left > 0; one = one->ai_next) {
        char text[NI_MAXHOST];

        if (getnameinfo(one->ai_addr, one->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST) != 0)
            continue;
        lookup_add(lookup, host, text);
        left--;
    }
    uv_freeaddrinfo(found);
    lookup->next++;
    lookup_step(lookup);
}

/* --- connecting --- */

struct keywords {
    const char *keyword[KEYWORDS_MAX + 1], *value[KEYWORDS_MAX + 1];
    int n;
};

static void keyword_add(struct keywords *keywords, const char *keyword, const char *value)
{
    assert(keywords->n < KEYWORDS_MAX);
    keywords->keyword[keywords->n] = keyword;
    keywords->value[keywords->n++] = value;
    keywords->keyword[keywords->n] = keywords->value[keywords->n] = NULL;
}

/* timeout_s: waits for the connection, so long for each address; NULL: begins. */
static PGconn *address_connect(
    const struct pg_address *address, const struct pg_lookup *lookup, const char *options, const char *timeout_s)
{
    static const char *const ours[] = {"host", "hostaddr", "port", "options"};
    const char *theirs = option_get(address, "options", "PGOPTIONS");
    struct keywords keywords = {.n = 0};
    struct buf hosts = {0}, addresses = {0}, ports = {0}, settings = {0};
    PGconn *connection;

    /* The defaults first: of a keyword given twice libpq takes the later one. */
    for (size_t i = 0; i < countof(defaults); i++)
        keyword_add(&keywords, defaults[i].keyword, defaults[i].value);
    if (timeout_s)
        keyword_add(&keywords, "connect_timeout", timeout_s);
    if ((address->count > 1 || lookup->found > 1) &&
        !option_get(address, "target_session_attrs", "PGTARGETSESSIONATTRS"))
        keyword_add(&keywords, "target_session_attrs", "read-write");
    for (const PQconninfoOption *option = address->options; option->keyword; option++) {
        bool skip = !option->val;

        for (size_t i = 0; i < countof(ours) && address->count > 0; i++)
            skip |= strcmp(option->keyword, ours[i]) == 0;
        if (!skip && strcmp(option->keyword, "options") != 0)
            keyword_add(&keywords, option->keyword, option->val);
    }
    buf_printf(&settings, "%s %s", options, theirs ? theirs : "");
    keyword_add(&keywords, "options", settings.p);
    if (address->count > 0) {
        buf_printf(&hosts, "%.*s", STR_ARG(buf_str(&lookup->hosts)));
        buf_printf(&addresses, "%.*s", STR_ARG(buf_str(&lookup->addresses)));
        buf_printf(&ports, "%.*s", STR_ARG(buf_str(&lookup->ports)));
        keyword_add(&keywords, "host", hosts.p);
        keyword_add(&keywords, "port", ports.p);
        keyword_add(&keywords, "hostaddr", lookup->any_address ? addresses.p : "");
    }
    connection = timeout_s ? PQconnectdbParams(keywords.keyword, keywords.value, 0)
                           : PQconnectStartParams(keywords.keyword, keywords.value, 0);
    buf_clear(&hosts);
    buf_clear(&addresses);
    buf_clear(&ports);
    buf_clear(&settings);
    return connection;
}

PGconn *pg_address_connect(const struct pg_address *address, const struct pg_lookup *lookup, const char *options)
{
    return address_connect(address, lookup, options, NULL);
}

static void ignore_lookup(struct pg_lookup *lookup, bool found)
{
    (void)lookup;
    (void)found;
}

PGconn *pg_connect_and_wait(const char *url, const char *options, const char *timeout_s)
{
    struct pg_lookup lookup = {.found = 0};
    struct pg_address *address;
    PGconn *connection = NULL;
    uv_loop_t loop;

    if (pg_address_parse(&address, url))
        return NULL;
    uv_loop_init(&loop);
    pg_lookup_start(&lookup, &loop, address, 0, ignore_lookup);
    uv_run(&loop, UV_RUN_DEFAULT); /* until all names are looked up */
    uv_loop_close(&loop);
    if (lookup.found > 0 || address->count == 0)
        connection = address_connect(address, &lookup, options, timeout_s);
    pg_lookup_clear(&lookup);
    pg_address_free(address);
    return connection;
}
