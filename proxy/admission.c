/*
 * How many streams an instance lets in: a token bucket of attach_burst, filled at attach_rate_per_s. A stream costs
 * most when it attaches, and after an instance died all of its streams come at once. Those for whom there is no token
 * are told to come back when it would be their turn, each at another time; until then the instance is not named to
 * others.
 */
#include "core.h"

#define LATER_MAX_MS 15000 /* nobody is asked to wait longer */
#define SPREAD_MS 1000     /* besides its turn: they must not come in step */
#define MILLI 1000         /* tokens are counted in thousandths */

static uint64_t rate_per_s(const struct proxy *proxy)
{
    return (uint64_t)proxy->config->attach_rate_per_s;
}

/* Time passes: the bucket fills, and of those who were sent away some have had their turn. */
static void pass(struct proxy *proxy)
{
    struct admission *admission = &proxy->admission;
    uint64_t most = (uint64_t)proxy->config->attach_burst * MILLI;
    uint32_t now = proxy_now(proxy);
    uint64_t gained = (now - admission->at) * rate_per_s(proxy);

    admission->at = now;
    admission->waiting = admission->waiting > gained ? admission->waiting - gained : 0;
    admission->spent = admission->spent > gained ? admission->spent - gained : 0;
    if (admission->spent > most)
        admission->spent = most;
}

bool admission_take(struct proxy *proxy)
{
    struct admission *admission = &proxy->admission;

    if (!rate_per_s(proxy))
        return true;
    pass(proxy);
    if (admission->spent + MILLI > (uint64_t)proxy->config->attach_burst * MILLI)
        return false;
    admission->spent += MILLI;
    return true;
}

uint32_t admission_later_ms(struct proxy *proxy)
{
    struct admission *admission = &proxy->admission;
    uint64_t turn_ms = 0;
    uint32_t random;

    random_bytes(&random, sizeof random);
    if (rate_per_s(proxy)) {
        pass(proxy);
        admission->waiting += MILLI;
        if (admission->waiting > LATER_MAX_MS * rate_per_s(proxy)) /* who does not wait at all is not waited for */
            admission->waiting = LATER_MAX_MS * rate_per_s(proxy);
        turn_ms = admission->waiting / rate_per_s(proxy);
    }
    return (uint32_t)turn_ms + random % SPREAD_MS + 1;
}

bool proxy_overloaded(struct proxy *proxy)
{
    if (rate_per_s(proxy) && proxy->admission.waiting)
        pass(proxy);
    return proxy->admission.waiting ||
           proxy->stream_count + proxy->stream_count / 20 >= (uint32_t)proxy->config->streams_max;
}
