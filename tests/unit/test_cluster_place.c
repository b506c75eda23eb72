#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "room/base/cluster_place.h"
#include "room/base/ulid.h"

enum { SHARDS_MAX = 999, INSTANCES_MAX = 24, ROUNDS = 60 };

/* An installation with instances that are as old as the number says. */
struct installation {
    char id[INSTANCES_MAX][ULID_TEXT + 1];
    uint32_t weight[INSTANCES_MAX];
    size_t instances, shards;
    struct cluster_shard shard[SHARDS_MAX];
    size_t owner[SHARDS_MAX]; /* index of the instance */
    size_t count[INSTANCES_MAX];
};

static void installation_make(struct installation *at, size_t instances, size_t shards, unsigned seed)
{
    memset(at, 0, sizeof *at);
    at->instances = instances;
    at->shards = shards;
    for (size_t i = 0; i < INSTANCES_MAX; i++) {
        ulid_write(at->id[i], (struct id128){{0, 1, (uint8_t)(seed >> 8), (uint8_t)seed, (uint8_t)i}});
        at->weight[i] = 100;
    }
    for (size_t i = 0; i < shards; i++)
        snprintf(at->shard[i].name, sizeof at->shard[i].name, "s%02u", (unsigned)i % 1000);
}

/* `gone`: one that does not take part; INSTANCES_MAX: none. */
static void place(struct installation *at, size_t gone)
{
    struct place_candidate candidates[INSTANCES_MAX];
    size_t index[INSTANCES_MAX], n = 0;

    for (size_t i = 0; i < at->instances; i++) {
        if (i == gone)
            continue;
        candidates[n] = (struct place_candidate){.id = at->id[i], .weight = at->weight[i]};
        index[n++] = i;
    }
    memset(at->count, 0, sizeof at->count);
    cluster_place(candidates, n, at->shard, at->shards, at->owner);
    for (size_t i = 0; i < at->shards; i++) {
        at->owner[i] = index[at->owner[i]];
        at->count[at->owner[i]]++;
    }
}

static size_t differences(const struct installation *one, const struct installation *other)
{
    size_t count = 0;

    for (size_t i = 0; i < one->shards; i++)
        count += one->owner[i] != other->owner[i];
    return count;
}

/* ULIDs and shards of all builds that ever run together: who changes the hash splits an installation. */
static void the_same_names_give_the_same_owners_for_ever(void **state)
{
    struct cluster_shard shards[8];
    struct place_candidate candidates[3] = {{.id = "01KC46E0D7X8BQXSRB29FJP960", .weight = 100},
        {.id = "01KC46E0D7X8BQXSRB29FJP961", .weight = 100}, {.id = "01KC46E0D7X8BQXSRB29FJP962", .weight = 200}};
    size_t owner[8];
    char text[9] = "";

    (void)state;
    for (size_t i = 0; i < 8; i++)
        snprintf(shards[i].name, sizeof shards[i].name, "s%02u", (unsigned)i % 1000);
    cluster_place(candidates, 3, shards, 8, owner);
    for (size_t i = 0; i < 8; i++)
        text[i] = (char)('0' + owner[i]);
    assert_string_equal(text, "00122221");
}

static void nobody_is_more_than_one_away_from_the_others(void **state)
{
    static const size_t sizes[] = {1, 7, 8, 64, 100, 999};
    struct installation *at = malloc(sizeof *at);

    (void)state;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (size_t instances = 1; instances <= INSTANCES_MAX; instances++) {
            installation_make(at, instances, sizes[s], (unsigned)(s * 100 + instances));
            place(at, INSTANCES_MAX);
            for (size_t i = 0; i < instances; i++)
                assert_in_range(at->count[i], sizes[s] / instances, (sizes[s] + instances - 1) / instances);
        }
    }
    free(at);
}

static void a_share_follows_the_weight(void **state)
{
    static const uint32_t weights[] = {100, 50, 250, 100, 1};
    struct installation *at = malloc(sizeof *at);

    (void)state;
    for (unsigned seed = 0; seed < ROUNDS; seed++) {
        installation_make(at, 5, 64, seed);
        memcpy(at->weight, weights, sizeof weights);
        place(at, INSTANCES_MAX);
        for (size_t i = 0; i < 5; i++)
            assert_in_range(at->count[i], 64 * weights[i] / 501, 64 * weights[i] / 501 + 1);
    }
    free(at);
}

static void who_comes_or_goes_moves_little_but_its_own_share(void **state)
{
    static const struct {
        size_t shards, instances; /* with the one that comes and goes */
    } cases[] = {{8, 2}, {8, 3}, {64, 2}, {64, 3}, {64, 4}, {64, 11}, {999, 21}};
    struct installation *before = malloc(sizeof *before), *after = malloc(sizeof *after);

    (void)state;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        size_t moved = 0, own = 0;

        for (unsigned seed = 0; seed < ROUNDS; seed++) {
            installation_make(before, cases[c].instances, cases[c].shards, seed);
            *after = *before;
            place(before, seed % cases[c].instances);
            place(after, INSTANCES_MAX);
            moved += differences(before, after);
            own += after->count[seed % cases[c].instances];
        }
        print_message("%zu shards, %zu instances: %.1f move, %.1f are its own\n", cases[c].shards, cases[c].instances,
            (double)moved / ROUNDS, (double)own / ROUNDS);
        assert_true(moved < own * 2);
        if (cases[c].instances == 2)
            assert_int_equal(moved, own);
    }
    free(before);
    free(after);
}

static void scores_do_not_favour_anybody(void **state)
{
    struct installation *at = malloc(sizeof *at);
    size_t first = 0, owned_by_first[8] = {0};

    (void)state;
    for (unsigned seed = 0; seed < 1000; seed++) {
        installation_make(at, 2, 8, seed);
        at->weight[1] = 300; /* two of eight for the one, six for the other */
        place(at, INSTANCES_MAX);
        for (size_t i = 0; i < 8; i++)
            owned_by_first[i] += at->owner[i] == 0;
        first += at->count[0];
    }
    assert_int_equal(first, 2000);
    for (size_t i = 0; i < 4; i++) /* of the early names; what is left of room decides about the late ones */
        assert_in_range(owned_by_first[i], 150, 350);
    free(at);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_names_give_the_same_owners_for_ever),
        cmocka_unit_test(nobody_is_more_than_one_away_from_the_others),
        cmocka_unit_test(a_share_follows_the_weight),
        cmocka_unit_test(who_comes_or_goes_moves_little_but_its_own_share),
        cmocka_unit_test(scores_do_not_favour_anybody),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
