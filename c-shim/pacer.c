// SPDX-License-Identifier: Apache-2.0
/* pacer.c - see pacer.h. */
#include <errno.h>
#include <time.h>

#include "clock.h"
#include "pacer.h"

/*
 * A sleeper wakes tens of microseconds late. Time lost that way is given back up to this much, so that the rate
 * holds over time without letting an idle link save up a burst that a demand reply would have to wait behind.
 */
#define CREDIT_NS (2 * NS_PER_MS)

int pacer_init(struct pacer *pacer, uint64_t rate)
{
	pthread_condattr_t attr;
	int ret = -ENOMEM;

	*pacer = (struct pacer){ .rate = rate };
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	if (pthread_mutex_init(&pacer->lock, NULL))
		goto out;
	if (pthread_cond_init(&pacer->stopping, &attr))
		goto err_lock;
	ret = 0;
	goto out;

err_lock:
	pthread_mutex_destroy(&pacer->lock);
out:
	pthread_condattr_destroy(&attr);
	return ret;
}

void pacer_destroy(struct pacer *pacer)
{
	pthread_cond_destroy(&pacer->stopping);
	pthread_mutex_destroy(&pacer->lock);
}

static void set_stopped(struct pacer *pacer, bool stopped)
{
	pthread_mutex_lock(&pacer->lock);
	pacer->stopped = stopped;
	pthread_cond_broadcast(&pacer->stopping);
	pthread_mutex_unlock(&pacer->lock);
}

void pacer_stop(struct pacer *pacer)
{
	set_stopped(pacer, true);
}

void pacer_restart(struct pacer *pacer)
{
	set_stopped(pacer, false);
}

static void sleep_until(struct pacer *pacer, uint64_t at_ns)
{
	struct timespec t = { .tv_sec = (time_t)(at_ns / NS_PER_S), .tv_nsec = (long)(at_ns % NS_PER_S) };

	pthread_cond_timedwait(&pacer->stopping, &pacer->lock, &t);
}

/*
 * Several senders may sleep for the same moment; the first to wake takes the link and the others sleep again. What all have
 * booked never ends before what demand has, so no other goes ahead of demand that waits.
 */
static void wait_for_link(struct pacer *pacer, const uint64_t *free_ns)
{
	while (!pacer->stopped && now_ns() < *free_ns)
		sleep_until(pacer, *free_ns);
}

static void book(uint64_t *until_ns, uint64_t now, uint64_t ns)
{
	*until_ns = (*until_ns + CREDIT_NS < now ? now - CREDIT_NS : *until_ns) + ns;
}

void pacer_enter(struct pacer *pacer, uint64_t bytes, bool demand)
{
	uint64_t now, ns;

	if (!pacer->rate)
		return;
	ns = (uint64_t)((unsigned __int128)bytes * NS_PER_S / pacer->rate);
	pthread_mutex_lock(&pacer->lock);
	wait_for_link(pacer, demand ? &pacer->demand_until_ns : &pacer->busy_until_ns);
	now = now_ns();
	book(&pacer->busy_until_ns, now, ns);
	if (demand)
		book(&pacer->demand_until_ns, now, ns);
	pthread_mutex_unlock(&pacer->lock);
}
