/* Stories of the sequencer that random histories meet too rarely. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "history/sequencer.h"

#define ROOM "s01.01KC46E0D7X8BQXSRB29FJP960"

static uint64_t shown_seq;

static void on_shown(void *arg, struct str room_id, struct entry *entry, bool durable)
{
    (void)arg, (void)room_id, (void)durable;
    shown_seq = entry->seq;
}

static void deliver(struct sequencer *sequencer, bool redelivered)
{
    struct envelope *envelope;
    const char *why;

    assert_int_equal(envelope_read(&envelope,
                         STR("{\"room_id\":\"" ROOM
                             "\",\"sender\":\"@system\",\"kind\":\"text\",\"content\":\"x\",\"client_msg_id\":\"c1\"}"),
                         &(struct envelope_source){.shard = STR("s01"), .content_max_bytes = 1024}, &why),
        ERR_OK);
    sequencer_deliver(sequencer, 1, redelivered, envelope, 1000);
}

static void tell_room(struct sequencer *sequencer, const struct seq_needs *needs, uint64_t last_seq)
{
    sequencer_fact_room(
        sequencer, needs, &(struct seq_room_fact){.room_id = STR(ROOM), .room_no = 1, .last_seq = last_seq});
}

static void an_answer_from_an_earlier_life_of_a_room_is_not_believed(void **state)
{
    const struct sequencer_events events = {.shown = on_shown};
    struct sequencer *sequencer = sequencer_new(&(struct sequencer_settings){.shard = STR("s01"), .epoch = 1}, &events);
    struct seq_needs before = {0}, after = {0};

    (void)state;
    deliver(sequencer, false);
    assert_true(sequencer_take_needs(sequencer, &before));
    sequencer_channel_lost(
        sequencer); /* forgets the parked delivery and its room; the first answer is still on its way */
    deliver(sequencer, true);
    assert_true(sequencer_take_needs(sequencer, &after));

    tell_room(sequencer, &before, 5);
    sequencer_facts_done(sequencer, &before, true, 1000);
    tell_room(sequencer, &after, 8);
    sequencer_facts_done(sequencer, &after, true, 1000);

    assert_int_equal(shown_seq, 9);
    seq_needs_clear(&before);
    seq_needs_clear(&after);
    sequencer_free(sequencer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_answer_from_an_earlier_life_of_a_room_is_not_believed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
