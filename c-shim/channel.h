/* SPDX-License-Identifier: Apache-2.0 */
/* channel.h - channels inside the shim: non-blocking reads and writes for threads that spin or poll themselves. */
#ifndef GY_CHANNEL_H
#define GY_CHANNEL_H

#include <openssl/ssl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "gyges.h"

struct gy_channel {
	int fd;			/* non-blocking */
	_Atomic(bool) broken;	/* a message was cut in two: the channel is of no more use */
	SSL *ssl;		/* NULL: plain */
	/* An SSL object serves one thread at a time; frames are sent and received by two. Never held over poll(). */
	pthread_mutex_t lock;
	/* Half-received frame, kept over -ETIMEDOUT. */
	uint8_t head[8];
	uint64_t have;
};

struct gy_listener {
	int fd;			/* non-blocking */
	int port;
};

/* A channel over the connected, non-blocking @fd, which it takes over, also on failure. */
int gy_channel_make(int fd, struct gy_channel **out);

/* Waits for poll events on @fd: 0, -ETIMEDOUT or -errno. */
int gy_fd_wait(int fd, short events, uint64_t deadline_ns);

/*
 * At most @len bytes, without waiting. -EAGAIN: nothing yet (*events: what to poll for). -ECONNABORTED: closed or
 * failed, for ever.
 */
int64_t gy_channel_read_some(struct gy_channel *channel, void *buf, uint64_t len, short *events);
int64_t gy_channel_write_some(struct gy_channel *channel, const void *buf, uint64_t len, short *events);

/*
 * Says that no more will be written; what the peer writes can still be read. 0, or -EAGAIN and -ECONNABORTED as above.
 */
int gy_channel_end_writing(struct gy_channel *channel, short *events);

/* All of it, waiting as long as the peer takes part of it at least every @idle_ms. 0 or -ECONNABORTED, -ETIMEDOUT. */
int gy_channel_write_all(struct gy_channel *channel, const void *buf, uint64_t len, uint32_t idle_ms);
int gy_channel_read_all(struct gy_channel *channel, void *buf, uint64_t len, uint64_t deadline_ns);
int gy_channel_write_by(struct gy_channel *channel, const void *buf, uint64_t len, uint64_t deadline_ns);

#endif
