/*
 * The adapter library when there is no memory, or a disk that fails: each allocation of a whole story fails once, each
 * in a run of its own, and the host must never be aborted, cheated or left without an answer. The linker leads the
 * allocations and the file calls of the program to the functions below (CMakeLists.txt); they fail only while the
 * library is at work.
 */
#include "amqp_fake.h"

#include "gateway-adapter/roomd_adapter.h"

#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#define ROOM_A "s07.01KC46E0D7X8BQXSRB29FJP960"
#define ROOM_B "s03.01KC46E0D7X8BQXSRB29FJP961"

enum { SENDS = 3, RUNS_MAX = 2000, STORY_MS = 10000 };

/* -------------------------------------------------------------------------------------------------- scarceness */

static _Thread_local bool inside; /* the library is at work */
static long fail_at = -1;         /* how many allocations from now; < 0: none fails */
static bool failed;
static int disk_error;       /* what file calls fail with; 0: they do not */
static bool written, synced; /* to the spool since they were set back, and whether the disk was asked behind that */

void *__real_malloc(size_t n);
void *__real_calloc(size_t count, size_t n);
void *__real_realloc(void *p, size_t n);
char *__real_strdup(const char *text);
ssize_t __real_pwrite(int fd, const void *p, size_t n, off_t at);
int __real_fdatasync(int fd);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t count, size_t n);
void *__wrap_realloc(void *p, size_t n);
char *__wrap_strdup(const char *text);
ssize_t __wrap_pwrite(int fd, const void *p, size_t n, off_t at);
int __wrap_fdatasync(int fd);

static bool scarce(void)
{
    if (!inside || fail_at < 0 || fail_at-- > 0)
        return false;
    failed = true;
    errno = ENOMEM;
    return true;
}

void *__wrap_malloc(size_t n)
{
    return scarce() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t count, size_t n)
{
    return scarce() ? NULL : __real_calloc(count, n);
}

void *__wrap_realloc(void *p, size_t n)
{
    return scarce() ? NULL : __real_realloc(p, n);
}

char *__wrap_strdup(const char *text)
{
    return scarce() ? NULL : __real_strdup(text);
}

ssize_t __wrap_pwrite(int fd, const void *p, size_t n, off_t at)
{
    if (inside && disk_error) {
        errno = disk_error;
        return -1;
    }
    if (n > 32) { /* a record; the head is shorter */
        written = true;
        synced = false;
    }
    return __real_pwrite(fd, p, n, at);
}

int __wrap_fdatasync(int fd)
{
    if (inside && disk_error) {
        errno = disk_error;
        return -1;
    }
    synced = true;
    return __real_fdatasync(fd);
}

#define GUEST(call)     \
    do {                \
        inside = true;  \
        call;           \
        inside = false; \
    } while (0)

/* ------------------------------------------------------------------------------------------------- the publisher */

struct story {
    struct fake *fake;
    struct roomd_client *client;
    struct roomd_send sends[SENDS];
    int done[SENDS], connections, before; /* before: publishes on earlier connections */
    int spool_ok, spool_lost;
    char spool[64];
};

static void on_done(struct roomd_send *send)
{
    bool was = inside;

    inside = false;
    (*(int *)send->arg)++;
    if (send->code == ROOMD_SPOOLED)
        assert_true(written && synced);
    inside = was;
}

static void on_settled(void *arg, const char *message_id, enum roomd_code code)
{
    struct story *story = arg;

    (void)message_id;
    *(code == ROOMD_OK ? &story->spool_ok : &story->spool_lost) += 1;
}

/* One turn of everybody; the broker confirms what it has got. */
static void turn(struct story *story)
{
    struct fake *fake = story->fake;

    uv_run(&fake->world->loop, UV_RUN_NOWAIT);
    if (fake->connections != story->connections) {
        story->connections = fake->connections;
        story->before = fake->published;
    }
    if (fake->published > story->before && fake->conn)
        fake_confirm(fake, (uint64_t)(fake->published - story->before), true, true);
    if (story->client)
        GUEST(roomd_client_turn(story->client));
    usleep(500); /* between two looks; turn_until has the deadline */
}

#define turn_until(story, condition)                                 \
    do {                                                             \
        uint64_t story_ends = uv_hrtime() / 1000000 + STORY_MS;      \
        while (!(condition)) {                                       \
            if (uv_hrtime() / 1000000 > story_ends)                  \
                fail_msg("run %ld: still not: %s", run, #condition); \
            turn(story);                                             \
        }                                                            \
    } while (0)

static bool was_published(const struct fake *fake, const char *id)
{
    char expected[80];

    snprintf(expected, sizeof(expected), "\"client_msg_id\":\"%s\"", id);
    for (int i = 0; i < fake->published; i++)
        if (strstr(fake->publishes[i].body, expected))
            return true;
    return false;
}

static void story_open(struct story *story, const char *url)
{
    struct roomd_settings settings = {.broker_urls = url,
        .send_ms = 150,
        .spool_file = *story->spool ? story->spool : NULL,
        .spool_after_ms = 20,
        .spool_settled = on_settled,
        .arg = story};
    const char *why = "";
    enum roomd_code code;

    GUEST(code = roomd_client_open(&story->client, &settings, &why));
    if (code) {
        story->client = NULL;
        assert_int_equal(code, ROOMD_NO_MEMORY);
        assert_non_null(why);
    }
}

static void story_send(struct story *story, int i)
{
    static const char *const rooms[SENDS] = {ROOM_A, ROOM_B, ROOM_A}, *const ids[SENDS] = {"m0", "m1", "m2"};
    static const char *const mentions[] = {"bob", "@all"};

    story->sends[i] = (struct roomd_send){.done = on_done, .arg = &story->done[i]};
    GUEST(roomd_send(story->client, &story->sends[i],
        &(struct roomd_message){.room_id = rooms[i],
            .sender = "alice",
            .kind = "rich_text",
            .content = "{\"parts\":[{\"type\":\"text\",\"body\":\"hello\"}]}",
            .mentions = mentions,
            .mention_count = countof(mentions),
            .client_msg_id = ids[i]}));
}

/* What was called a success must be with the broker, or come out of the spool in the end. */
static void story_check(struct story *story, long run)
{
    static const char *const ids[SENDS] = {"m0", "m1", "m2"};
    bool spooled = false;

    for (int i = 0; i < SENDS; i++) {
        enum roomd_code code = story->sends[i].code;

        assert_int_equal(story->done[i], 1);
        assert_true(code == ROOMD_OK || code == ROOMD_SPOOLED || code == ROOMD_UNAVAILABLE || code == ROOMD_TIMEOUT ||
                    code == ROOMD_NO_MEMORY);
        assert_non_null(story->sends[i].text);
        if (code == ROOMD_OK)
            assert_true(was_published(story->fake, ids[i]));
        if (code == ROOMD_NO_MEMORY)
            assert_false(was_published(story->fake, ids[i]));
        spooled = spooled || code == ROOMD_SPOOLED;
    }
    if (!spooled)
        return;
    fail_at = -1; /* from here on there is memory: a later process */
    story_open(story, story->fake->url);
    turn_until(story, roomd_client_counters(story->client).spool_bytes == 0);
    for (int i = 0; i < SENDS; i++)
        if (story->sends[i].code == ROOMD_SPOOLED)
            assert_true(was_published(story->fake, ids[i]));
    roomd_client_close(story->client);
    story->client = NULL;
}

/* A client sends three messages, and closes; another one replays what it left. false: nothing failed any more. */
static bool publish_with_a_failure(long run, bool away, const char *spool)
{
    struct story story = {.fake = fake_new()};

    story.fake->publish_channel = 1;
    snprintf(story.spool, sizeof(story.spool), "%s", spool);
    failed = false;
    fail_at = run;
    story_open(&story, away ? "amqp://127.0.0.1:1" : story.fake->url);
    if (story.client) {
        for (int i = 0; i < SENDS; i++)
            story_send(&story, i);
        turn_until(&story, story.sends[0].finished && story.sends[1].finished && story.sends[2].finished);
        GUEST(roomd_client_close(story.client));
        story.client = NULL;
        if (*spool) { /* replayed with the failure that may still be due */
            story_open(&story, story.fake->url);
            for (int i = 0; story.client && i < 40; i++)
                turn(&story);
            GUEST(roomd_client_close(story.client));
            story.client = NULL;
        }
        story_check(&story, run);
    }
    fail_at = -1;
    fake_free(story.fake);
    if (*spool)
        unlink(spool);
    return failed;
}

static void sends_without_memory_are_answered_and_never_falsely(void **state)
{
    long run = 0;

    (void)state;
    while (publish_with_a_failure(run, false, "") && run < RUNS_MAX)
        run++;
    assert_true(run > 10 && run < RUNS_MAX);
}

static void a_spool_without_memory_never_promises_what_it_cannot_keep(void **state)
{
    char spool[64];
    long run = 0;

    (void)state;
    snprintf(spool, sizeof(spool), "/tmp/test_adapter_scarce.%d", getpid());
    while (publish_with_a_failure(run, true, spool) && run < RUNS_MAX)
        run++;
    assert_true(run > 10 && run < RUNS_MAX);
}

/* ------------------------------------------------------------------------------------------------------ the disk */

static void a_disk_that_fails_is_no_success(void **state)
{
    struct story story = {.fake = fake_new()};
    const int errors[] = {ENOSPC, EIO};
    long run = 0;

    (void)state;
    for (; run < (long)countof(errors); run++) {
        snprintf(story.spool, sizeof(story.spool), "/tmp/test_adapter_scarce.%d", getpid());
        story_open(&story, "amqp://127.0.0.1:1");
        disk_error = errors[run];
        story.done[0] = story.done[1] = 0;
        story_send(&story, 0);
        turn_until(&story, story.sends[0].finished);
        assert_int_equal(story.sends[0].code, ROOMD_UNAVAILABLE);
        disk_error = 0;
        story_send(&story, 1); /* of another room, and the disk is well again */
        turn_until(&story, story.sends[1].finished);
        assert_int_equal(story.sends[1].code, ROOMD_SPOOLED);
        roomd_client_close(story.client);
        story.client = NULL;
        unlink(story.spool);
    }
    fake_free(story.fake);
}

static void spooled_is_said_after_the_disk_was_asked_to_hold_it(void **state)
{
    struct story story = {.fake = fake_new()};
    long run = 0;

    (void)state;
    snprintf(story.spool, sizeof(story.spool), "/tmp/test_adapter_scarce.%d", getpid());
    story_open(&story, "amqp://127.0.0.1:1");
    for (int i = 0; i < SENDS; i++) {
        written = synced = false;
        story_send(&story, i);
        turn_until(&story, story.sends[i].finished); /* on_done looks at the order */
        assert_int_equal(story.sends[i].code, ROOMD_SPOOLED);
        assert_int_equal(story.done[i], 1);
    }
    roomd_client_close(story.client);
    unlink(story.spool);
    fake_free(story.fake);
}

/* -------------------------------------------------------------------------------------------- calls and streams */

/* A service of some lines in a thread of its own. It answers by path, and closes each connection. */
struct service {
    int fd;
    char url[64];
    pthread_t thread;
};

static const struct {
    const char *path, *body;
} answers[] = {
    {"/v1/room/Create",
        "{\"created\":true,\"room\":{\"room_id\":\"" ROOM_A "\",\"kind\":\"group\",\"name\":\"n\",\"head\":\"0:0\","
        "\"owner\":\"alice\",\"state\":\"open\",\"members\":2,\"history\":\"all\",\"extra\":{},"
        "\"member_limit\":0,\"last_at\":0,\"created_at\":1,\"key\":null,\"notice\":\"\"}}"},
    {"/v1/history/Pull ", "{\"entries\":[{\"type\":\"message\",\"seq\":5,\"epoch\":2,\"kind\":\"text\",\"content\":"
                          "\"\\u4f60\\u597d\",\"sender\":\"alice\",\"mentions\":[\"bob\"]},{\"type\":\"void\","
                          "\"seq\":6,\"epoch\":2}],\"head\":\"2:6\",\"durable_seq\":6,\"more\":false}"},
    {"/v1/history/Unread", "{\"rooms\":[{\"room_id\":\"r\",\"head_seq\":9,\"read_seq\":2,\"unread\":7,\"mentioned\":"
                           "0}],\"total\":7}"},
    {"/v1/history/Edit", "{\"error\":{\"code\":\"conflict\",\"message\":\"not like this\",\"field\":\"content\"}}"},
};

static void serve_one(int fd)
{
    char in[8192] = "", out[2048];
    size_t n = 0;
    const char *body, *length;

    for (;;) {
        ssize_t got = recv(fd, in + n, sizeof(in) - 1 - n, 0);

        if (got <= 0)
            return;
        in[n += (size_t)got] = '\0';
        body = strstr(in, "\r\n\r\n");
        length = strstr(in, "Content-Length: ");
        if (body && n >= (size_t)(body + 4 - in) + (length ? strtoul(length + 16, NULL, 10) : 0))
            break;
    }
    snprintf(out, sizeof(out),
        "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n{\"type\":\"hello\"}\n"
        "{\"type\":\"ping\"}\n");
    for (size_t i = 0; i < countof(answers); i++)
        if (strstr(in, answers[i].path))
            snprintf(out, sizeof(out),
                "HTTP/1.1 %s\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n%s",
                strstr(answers[i].body, "\"error\"") ? "409 Conflict" : "200 OK", strlen(answers[i].body),
                answers[i].body);
    send(fd, out, strlen(out), MSG_NOSIGNAL);
    shutdown(fd, SHUT_WR);
    recv(fd, in, sizeof(in), 0); /* until the other side has read it */
}

static void *serve(void *arg)
{
    struct service *service = arg;
    int fd;

    while ((fd = accept(service->fd, NULL, NULL)) >= 0) {
        serve_one(fd);
        close(fd);
    }
    return NULL;
}

static void service_start(struct service *service)
{
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof(any);

    service->fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(service->fd, (struct sockaddr *)&any, n), 0);
    assert_int_equal(listen(service->fd, 16), 0);
    getsockname(service->fd, (struct sockaddr *)&any, &n);
    snprintf(service->url, sizeof(service->url), "http://127.0.0.1:%u", ntohs(any.sin_port));
    assert_int_equal(pthread_create(&service->thread, NULL, serve, service), 0);
}

static void service_stop(struct service *service)
{
    shutdown(service->fd, SHUT_RDWR);
    pthread_join(service->thread, NULL);
    close(service->fd);
}

/* An answer of its own, or no memory; and the sentence is there in any case. */
static void call_check(struct roomd_client *client, struct roomd_call *call, enum roomd_code expected, long run)
{
    GUEST((void)roomd_call_wait(client, call));
    assert_true(call->finished);
    if (call->code != expected && call->code != ROOMD_NO_MEMORY &&
        !(failed && (call->code == ROOMD_UNAVAILABLE || call->code == ROOMD_TIMEOUT)))
        fail_msg("run %ld: %s: %s", run, roomd_code_name(call->code), call->message);
    if (!call->message || !*call->message == (call->code != ROOMD_OK))
        fail_msg("run %ld: %s without a sentence", run, roomd_code_name(call->code));
    roomd_call_clear(call);
}

struct heard {
    int events, ended;
};

static void on_event(void *arg, const char *json, size_t n)
{
    (void)json;
    (void)n;
    ((struct heard *)arg)->events++;
}

static void on_ended(void *arg, enum roomd_code code, const char *message)
{
    (void)code;
    assert_non_null(message);
    ((struct heard *)arg)->ended++;
}

static void read_stream(struct roomd_client *client, const struct service *service)
{
    struct roomd_endpoint endpoints[] = {{"1", "http://127.0.0.1:1"}, {"2", service->url}};
    struct roomd_history_opened where = {.endpoints = endpoints,
        .endpoint_count = countof(endpoints),
        .ndjson_path = "/v1/stream/ndjson",
        .ticket = "the-ticket",
        .heartbeat_ms = 20000,
        .backoff_base_ms = 1,
        .backoff_max_ms = 1};
    struct roomd_stream_events events = {on_event, on_ended};
    struct heard heard = {0};
    struct roomd_stream *stream;
    uint64_t ends = uv_hrtime() / 1000000 + STORY_MS;

    GUEST(stream = roomd_stream_open(client, &where, &events, &heard));
    while (stream && !heard.ended && uv_hrtime() / 1000000 < ends)
        GUEST(roomd_client_wait(client, 50));
    if (!stream)
        assert_true(failed);
    else
        assert_int_equal(heard.ended, 1);
    assert_true(heard.events == 2 || failed);
}

static bool call_with_a_failure(long run, const struct service *service)
{
    struct roomd_settings settings = {.instance_urls = service->url, .service_key = "key", .call_ms = 1000};
    struct roomd_client *client = NULL;
    struct roomd_call call = {0};
    struct roomd_room_created created;
    struct roomd_history_pulled pulled;
    struct roomd_history_unread_of unread;
    enum roomd_code code;
    const char *why;

    failed = false;
    fail_at = run;
    GUEST(code = roomd_client_open(&client, &settings, &why));
    if (code) {
        assert_int_equal(code, ROOMD_NO_MEMORY);
        assert_non_null(why);
        fail_at = -1;
        return failed;
    }
    GUEST(roomd_room_create(client, &call,
        &(struct roomd_room_create){.owner = "alice", .members = ROOMD_TEXTS("bob", "carol"), .extra = "{\"a\":1}"},
        &created));
    call_check(client, &call, ROOMD_OK, run);
    GUEST(roomd_history_pull(client, &call, &(struct roomd_history_pull){.room_id = ROOM_A, .after = "0:0"}, &pulled));
    call_check(client, &call, ROOMD_OK, run);
    GUEST(roomd_history_unread(client, &call, &(struct roomd_history_unread){.account_id = "alice"}, &unread));
    call_check(client, &call, ROOMD_OK, run);
    GUEST(roomd_history_edit(client, &call,
        &(struct roomd_history_edit){.room_id = ROOM_A, .account_id = "alice", .seq = 5, .text = "hm"}, NULL));
    call_check(client, &call, ROOMD_CONFLICT, run);
    read_stream(client, service);
    GUEST(roomd_client_close(client));
    fail_at = -1;
    return failed;
}

static void calls_and_streams_without_memory_say_so(void **state)
{
    struct service service = {0};
    long run = 0;

    (void)state;
    service_start(&service);
    while (call_with_a_failure(run, &service) && run < RUNS_MAX)
        run++;
    service_stop(&service);
    assert_true(run > 20 && run < RUNS_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sends_without_memory_are_answered_and_never_falsely),
        cmocka_unit_test(a_spool_without_memory_never_promises_what_it_cannot_keep),
        cmocka_unit_test(a_disk_that_fails_is_no_success),
        cmocka_unit_test(spooled_is_said_after_the_disk_was_asked_to_hold_it),
        cmocka_unit_test(calls_and_streams_without_memory_say_so),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
