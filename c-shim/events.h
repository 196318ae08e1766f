/* SPDX-License-Identifier: Apache-2.0 */
/* events.h - a mask of things that happened, for one waiter in JavaScript. */
#ifndef GY_EVENTS_H
#define GY_EVENTS_H

#include <errno.h>
#include <pthread.h>
#include <stdint.h>

#include "clock.h"

struct events {
	pthread_mutex_t lock;
	pthread_cond_t raised;
	uint32_t mask;
};

static inline int events_init(struct events *events)
{
	pthread_condattr_t attr;
	int ret;

	events->mask = 0;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	ret = pthread_cond_init(&events->raised, &attr) || pthread_mutex_init(&events->lock, NULL) ? -ENOMEM : 0;
	pthread_condattr_destroy(&attr);
	return ret;
}

static inline void events_destroy(struct events *events)
{
	pthread_cond_destroy(&events->raised);
	pthread_mutex_destroy(&events->lock);
}

static inline void events_raise(struct events *events, uint32_t mask)
{
	pthread_mutex_lock(&events->lock);
	events->mask |= mask;
	pthread_cond_broadcast(&events->raised);
	pthread_mutex_unlock(&events->lock);
}

static inline void events_forget(struct events *events, uint32_t mask)
{
	pthread_mutex_lock(&events->lock);
	events->mask &= ~mask;
	pthread_mutex_unlock(&events->lock);
}

/* Takes and clears what was raised; -ETIMEDOUT if nothing was. */
static inline int events_wait(struct events *events, uint32_t timeout_ms)
{
	uint64_t deadline = deadline_after_ms(timeout_ms);
	struct timespec until = { .tv_sec = (time_t)(deadline / NS_PER_S), .tv_nsec = (long)(deadline % NS_PER_S) };
	uint32_t mask;

	pthread_mutex_lock(&events->lock);
	while (!events->mask) {
		if (pthread_cond_timedwait(&events->raised, &events->lock, &until) == ETIMEDOUT)
			break;
	}
	mask = events->mask;
	events->mask = 0;
	pthread_mutex_unlock(&events->lock);
	return mask ? (int)mask : -ETIMEDOUT;
}

#endif
