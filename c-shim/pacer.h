/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pacer.h - makes all page connections together as slow as a link of a given rate.
 *
 * The link is a point in time until which it is busy. A sender waits for that point, then moves it by the time its
 * bytes take. Demand goes to the head of the line: while a demand reply waits no other may start. What it cannot
 * overtake is the piece being "sent", which is why senders offer pieces of at most PACER_PIECE_PAGES.
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
	pthread_cond_t demand_gone;
	pthread_cond_t stopping;	/* on CLOCK_MONOTONIC: ends a wait for the link early */
	uint64_t rate;			/* bytes per second, 0: no limit */
	uint64_t busy_until_ns;
	unsigned int demand_waiting;
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
