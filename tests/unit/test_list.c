#include "room/base/list.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

struct item {
    int number;
    struct list link;
};

/* A list of 0, 1, … n-1 on the heap, so that the address sanitizer sees uses after free. */
static void fill(struct list *list, int n)
{
    list_init(list);
    for (int i = 0; i < n; i++) {
        struct item *item = xcalloc(1, sizeof *item);

        item->number = i;
        list_push_back(list, &item->link);
    }
}

static void empty(struct list *list)
{
    struct list *link;

    while ((link = list_pop_front(list)))
        free(list_entry(link, struct item, link));
}

/* The numbers as digits of one number: 1, 2, 3 is 123. */
static int digits(struct list *list)
{
    struct item *item;
    int sum = 0;

    list_for_each (item, list, link)
        sum = sum * 10 + item->number;
    return sum;
}

static void items_keep_their_order(void **state)
{
    struct list list;
    struct item first = {.number = 9};

    (void)state;
    fill(&list, 4);
    assert_int_equal(digits(&list), 123);
    list_push_front(&list, &first.link);
    assert_int_equal(digits(&list), 90123);
    list_remove(&first.link);
    list_remove(&first.link); /* once more is allowed */
    assert_int_equal(digits(&list), 123);
    empty(&list);
    assert_true(list_empty(&list));
    assert_null(list_pop_front(&list));
}

static void a_walk_over_nothing_does_nothing(void **state)
{
    struct list list;
    struct item *item;

    (void)state;
    list_init(&list);
    list_for_each (item, &list, link)
        fail();
}

static void the_body_may_free_the_current_item(void **state)
{
    struct list list;
    struct item *item;

    (void)state;
    fill(&list, 6);
    list_for_each (item, &list, link) {
        if (item->number % 2)
            continue;
        list_remove(&item->link);
        free(item);
    }
    assert_int_equal(digits(&list), 135);
    list_for_each (item, &list, link) {
        list_remove(&item->link);
        free(item);
    }
    assert_true(list_empty(&list));
}

static void break_leaves_the_walk_with_the_item_in_hand(void **state)
{
    struct list list;
    struct item *item = NULL, *other;
    int steps = 0;

    (void)state;
    fill(&list, 5);
    list_for_each (item, &list, link) {
        steps++;
        if (item->number == 2)
            break;
    }
    assert_int_equal(steps, 3);
    assert_int_equal(item->number, 2);
    list_for_each (item, &list, link) {
        if (item->number == 3) {
            list_remove(&item->link);
            free(item);
            break;
        }
    }
    assert_int_equal(digits(&list), 124);
    steps = 0;
    list_for_each (item, &list, link) { /* break leaves the inner walk only */
        list_for_each (other, &list, link) {
            if (other == item)
                break;
            steps++;
        }
    }
    assert_int_equal(steps, 0 + 1 + 2 + 3);
    empty(&list);
}

static void a_walk_as_the_body_of_an_if_is_one_statement(void **state)
{
    struct list list;
    struct item *item;
    int sum = 0;

    (void)state;
    fill(&list, 3);
    if (sum == 0)
        list_for_each (item, &list, link)
            sum += item->number;
    else
        fail();
    assert_int_equal(sum, 3);
    empty(&list);
}

static void splicing_moves_everything_to_the_end(void **state)
{
    struct list to, from;

    (void)state;
    fill(&to, 3);
    fill(&from, 2);
    list_splice_back(&to, &from);
    assert_true(list_empty(&from));
    assert_int_equal(digits(&to), 1201);
    list_splice_back(&to, &from);
    assert_int_equal(digits(&to), 1201);
    list_splice_back(&from, &to);
    assert_true(list_empty(&to));
    assert_int_equal(digits(&from), 1201);
    empty(&from);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(items_keep_their_order),
        cmocka_unit_test(a_walk_over_nothing_does_nothing),
        cmocka_unit_test(the_body_may_free_the_current_item),
        cmocka_unit_test(break_leaves_the_walk_with_the_item_in_hand),
        cmocka_unit_test(a_walk_as_the_body_of_an_if_is_one_statement),
        cmocka_unit_test(splicing_moves_everything_to_the_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
