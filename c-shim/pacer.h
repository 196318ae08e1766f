/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pacer.h - makes all page connections together as slow as a link of a given rate.
 *
 * The link is a point in time until which it is booked. A sender waits for that point, then moves it by the time its bytes
 * take. Demand does not wait behind what others have booked, only behind other demand: it goes at once and the others
 * wait for so much longer. So all together are held to the rate, over a time longer than a piece, and demand alone is.
 */
#ifndef GY_PACER_H
#define GY_PACER_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* 64 KiB: half a millisecond of a Gigabit link. */
#define PACER_PIECE_PAGES 16u

struct pacer {
	pthread_mutex_t lock;
	pthread_cond_t stopping;	/* on CLOCK_MONOTONIC: ends a wait for the link early */
	uint64_t rate;			/* bytes per second, 0: no limit */
	uint64_t busy_until_ns;		/* by all */
	uint64_t demand_until_ns;	/* by demand alone */
	bool stopped;
};

int pacer_init(struct pacer *pacer, uint64_t rate);
void pacer_destroy(struct pacer *pacer);
/* Wakes every waiting sender and lets all pass from now on. */
void pacer_stop(struct pacer *pacer);
void pacer_restart(struct pacer *pacer);
/* Returns when @bytes may be sent. */
void pacer_enter(struct pacer *pacer, uint64_t bytes, bool demand);

#endif
