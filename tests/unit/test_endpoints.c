/* Where streams are sent: the owner first, nobody over his share, what was promised counts at once. */
#include "proxy_fakes.h"

#define ROOM_OF_S00 "s00.01KC46E0D7X8BQXSRB29FJP901"

static void installation(size_t count)
{
    memset(fake_instances, 0, sizeof fake_instances);
    memset(fake_shards, 0, sizeof fake_shards);
    fake_instance_count = count;
    for (size_t i = 0; i < count; i++) {
        struct cluster_instance *instance = &fake_instances[i];

        snprintf(instance->id, sizeof instance->id, "01KC46E0D7X8BQXSRB29FJP96%c", (char)('0' + i));
        snprintf(instance->url, sizeof instance->url, "http://10.0.0.%c", (char)('0' + i));
        instance->alive = instance->ready = true;
        instance->self = i == 0;
        instance->weight = 100;
        instance->shards = 1;
    }
    for (size_t i = 0; i < countof(fake_shards); i++) {
        snprintf(fake_shards[i].name, sizeof fake_shards[i].name, "s0%c", (char)('0' + i));
        snprintf(fake_shards[i].owner, sizeof fake_shards[i].owner, "%s", fake_instances[i % count].id);
    }
}

/* The instances named, best first, as digits. */
static const char *named(const struct str *rooms, size_t count)
{
    static char digits[16];
    static const char begin[] = "http://10.0.0.";
    struct buf json = {0};
    size_t n = 0, written = endpoints_write(world.proxy, &json, rooms, count, false);

    buf_char(&json, '\0');
    if (strstr(json.p, "http://me")) /* ourselves */
        assert_true(written > 0);
    for (const char *at = json.p; (at = strstr(at, "\"url\":\"")); at += 7)
        digits[n++] = strncmp(at + 7, begin, sizeof begin - 1) == 0 ? at[7 + sizeof begin - 1] : '0';
    digits[n] = '\0';
    assert_int_equal(n, written);
    buf_clear(&json);
    return digits;
}

static void the_owner_of_the_room_is_first(void **state)
{
    const struct str room = STR(ROOM_OF_S00), others = STR("s01.01KC46E0D7X8BQXSRB29FJP901");

    (void)state;
    installation(2);
    assert_string_equal(named(&room, 1), "01");
    assert_string_equal(named(&others, 1), "10");
}

static void an_owner_over_its_share_is_spared(void **state)
{
    const struct str room = STR(ROOM_OF_S00);

    (void)state;
    installation(3);
    snprintf(fake_shards[0].owner, sizeof fake_shards[0].owner, "%s", fake_instances[1].id);
    fake_instances[1].streams = 2000;
    fake_instances[2].streams = 900;
    assert_true(named(&room, 1)[0] != '1');
    fake_instances[2].streams = 2000;
    world.proxy->promised[0].promised = world.proxy->promised[1].promised = world.proxy->promised[2].promised = 0;
    fake_instances[1].weight = 400; /* four times the usual machine */
    assert_int_equal(named(&room, 1)[0], '1');
}

static void who_drains_is_dead_or_takes_nobody_in_is_not_named(void **state)
{
    const struct str room = STR(ROOM_OF_S00);

    (void)state;
    installation(4);
    fake_instances[1].draining = true;
    fake_instances[2].alive = false;
    assert_string_equal(named(&room, 1), "03");
    fake_instances[3].overloaded = true;
    assert_string_equal(named(&room, 1), "0");
    fake_instances[0].alive = false; /* then those that are overloaded are better than nobody */
    assert_string_equal(named(&room, 1), "3");
}

static void who_lacks_the_broker_is_named_last(void **state)
{
    const struct str room = STR(ROOM_OF_S00), rooms[] = {STR(ROOM_OF_S00), STR("s01.01KC46E0D7X8BQXSRB29FJP901")};

    (void)state;
    installation(3);
    fake_instances[0].ready = false; /* the owner, and the one that is asked */
    fake_instances[1].streams = fake_instances[2].streams = 400;
    assert_int_equal(named(&room, 1)[2], '0');
    assert_int_equal(named(rooms, 2)[2], '0');
    fake_instances[2].ready = false;
    assert_string_equal(named(&room, 1), "102");
    fake_instances[1].ready = false; /* away for all: then it counts for nobody */
    assert_int_equal(named(&room, 1)[0], '0');
}

static void a_burst_between_two_beats_is_spread(void **state)
{
    const struct str rooms[] = {STR(ROOM_OF_S00), STR("s01.01KC46E0D7X8BQXSRB29FJP901")};
    int first[3] = {0};

    (void)state;
    installation(3);
    for (int i = 0; i < 999; i++)
        first[named(rooms, 2)[0] - '0']++;
    for (size_t i = 0; i < 3; i++)
        assert_in_range(first[i], 240, 430);
}

static void a_crowd_for_one_room_goes_on_to_the_same_others(void **state)
{
    const struct str room = STR(ROOM_OF_S00);
    int first[4] = {0};

    (void)state;
    installation(4);
    for (int i = 0; i < 4000; i++)
        first[named(&room, 1)[0] - '0']++;
    assert_in_range(first[0], 600, 1800); /* the owner keeps its share and a quarter */
    assert_int_equal((first[1] > 0) + (first[2] > 0) + (first[3] > 0), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_owner_of_the_room_is_first, world_open, world_close),
        cmocka_unit_test_setup_teardown(an_owner_over_its_share_is_spared, world_open, world_close),
        cmocka_unit_test_setup_teardown(who_drains_is_dead_or_takes_nobody_in_is_not_named, world_open, world_close),
        cmocka_unit_test_setup_teardown(who_lacks_the_broker_is_named_last, world_open, world_close),
        cmocka_unit_test_setup_teardown(a_burst_between_two_beats_is_spread, world_open, world_close),
        cmocka_unit_test_setup_teardown(a_crowd_for_one_room_goes_on_to_the_same_others, world_open, world_close),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
