/*
 * A question to all instances: one message that everybody gets, answered to the one who asked. Those that do not answer
 * in time are counted as missing; nothing is asked again.
 */
#include "feed_impl.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "room/base/log.h"

#define QUESTION_MAX_BYTES (256 << 10)

/* An instance that was asked and has not answered. */
struct asked {
    struct list link;
    char id[FEED_INSTANCE_BYTES + 1];
};

struct survey {
    struct list link; /* feed->surveys */
    struct feed *feed;
    struct history_survey *survey;
    uint64_t number;
    uint64_t deadline_ms; /* loop clock */
    bool answered_self, sent;
    struct list waiting; /* struct asked */
};

static void on_timer(uv_timer_t *timer);

static void survey_free(struct survey *survey)
{
    struct list *link;

    while ((link = list_pop_front(&survey->waiting)))
        free(list_entry(link, struct asked, link));
    list_remove(&survey->link);
    free(survey);
}

static void plan(struct feed *feed)
{
    uint64_t now = uv_now(feed->history->loop), next = UINT64_MAX;
    struct survey *survey;

    list_for_each (survey, &feed->surveys, link) {
        uint64_t at = !survey->answered_self || list_empty(&survey->waiting) ? now : survey->deadline_ms;

        next = at < next ? at : next;
    }
    if (next == UINT64_MAX)
        uv_timer_stop(feed->survey_timer);
    else
        uv_timer_start(feed->survey_timer, on_timer, next > now ? next - now : 0, 0);
}

static void ask_others(struct feed *feed, struct survey *survey)
{
    const struct cluster_instance *instances;
    size_t count = cluster_instances(feed->history->cluster, &instances);
    struct buf body = {0};

    for (size_t i = 0; i < count; i++) {
        struct asked *asked;

        if (instances[i].self || !instances[i].alive)
            continue;
        asked = xcalloc(1, sizeof *asked);
        memcpy(asked->id, instances[i].id, FEED_INSTANCE_BYTES);
        list_push_back(&survey->waiting, &asked->link);
    }
    if (list_empty(&survey->waiting)) {
        survey->sent = true;
        return;
    }
    feed_write_head(&body, FEED_ASK, cluster_self(feed->history->cluster));
    feed_write_question(&body, survey->number, survey->survey->question);
    survey->sent = feed_publish(feed, "beat", FEED_ASK, &body);
    if (!survey->sent)
        survey->deadline_ms = 0;
    buf_clear(&body);
}

void history_survey_start(struct history *history, struct history_survey *asked)
{
    struct feed *feed = history->feed;
    struct survey *survey = xcalloc(1, sizeof *survey);

    assert(asked->question.n <= QUESTION_MAX_BYTES);
    survey->feed = feed;
    survey->survey = asked;
    survey->number = ++feed->questions;
    survey->deadline_ms = uv_now(history->loop) + (uint64_t)(asked->within_ms > 0 ? asked->within_ms : 0);
    list_init(&survey->waiting);
    list_push_back(&feed->surveys, &survey->link);
    asked->impl = survey;
    asked->missing = 0;
    ask_others(feed, survey);
    plan(feed);
}

void history_survey_forget(struct history_survey *asked)
{
    struct survey *survey = asked->impl;

    if (!survey)
        return;
    asked->impl = NULL;
    survey_free(survey); /* the timer finds nothing to do */
}

/* What this instance knows. */
static void answer(struct feed *feed, struct str question, struct buf *out)
{
    if (feed->history->events.asked)
        feed->history->events.asked(feed->history->events.arg, question, out);
}

static void answer_self(struct survey *survey)
{
    struct feed *feed = survey->feed;
    struct buf out = {0};

    survey->answered_self = true;
    answer(feed, survey->survey->question, &out);
    survey->survey->answered(survey->survey, str_of(cluster_self(feed->history->cluster)), buf_str(&out));
    buf_clear(&out);
}

static void finish(struct survey *survey)
{
    struct history_survey *asked = survey->survey;
    enum err err = survey->sent ? ERR_OK : ERR_UNAVAILABLE;

    asked->missing = 0;
    for (struct list *link = survey->waiting.next; link != &survey->waiting; link = link->next)
        asked->missing++;
    asked->impl = NULL;
    survey_free(survey);
    asked->done(asked, err);
}

/* A callback may start or forget surveys: each round begins from the front again. */
static bool work(struct feed *feed)
{
    uint64_t now = uv_now(feed->history->loop);
    struct survey *survey;

    list_for_each (survey, &feed->surveys, link) {
        if (!survey->answered_self) {
            answer_self(survey);
            return true;
        }
        if (list_empty(&survey->waiting) || now >= survey->deadline_ms) {
            finish(survey);
            return true;
        }
    }
    return false;
}

static void on_timer(uv_timer_t *timer)
{
    struct feed *feed = timer->data;

    while (work(feed))
        ;
    plan(feed);
}

void survey_asked(struct feed *feed, const struct feed_message *message)
{
    struct buf out = {0}, body = {0};
    char key[FEED_KEY_MAX + 1];

    answer(feed, message->items, &out);
    feed_write_head(&body, FEED_ANSWER, cluster_self(feed->history->cluster));
    feed_write_question(&body, message->counter, buf_str(&out));
    snprintf(key, sizeof key, "instance.%.*s", STR_ARG(message->sender));
    if (body.n > AMQP_BODY_MAX_BYTES)
        log_warn("survey.answer_too_large", "bytes=%zu", body.n);
    else
        feed_publish(feed, key, FEED_ANSWER, &body);
    buf_clear(&out);
    buf_clear(&body);
}

void survey_answered(struct feed *feed, const struct feed_message *message)
{
    struct survey *survey;
    struct asked *asked;

    list_for_each (survey, &feed->surveys, link) {
        if (survey->number != message->counter)
            continue;
        list_for_each (asked, &survey->waiting, link) {
            if (!str_is(message->sender, asked->id))
                continue;
            list_remove(&asked->link);
            free(asked);
            if (list_empty(&survey->waiting))
                plan(feed); /* done comes by the timer */
            survey->survey->answered(survey->survey, message->sender, message->items);
            return; /* the survey may be forgotten */
        }
        return;
    }
}

void survey_close(struct feed *feed)
{
    struct list *link;

    while ((link = list_pop_front(&feed->surveys))) {
        struct survey *survey = list_entry(link, struct survey, link);

        survey->survey->impl = NULL;
        survey_free(survey);
    }
}
