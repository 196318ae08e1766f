// SPDX-License-Identifier: Apache-2.0
/*
 * tunnel.c - what two programs on two hosts say to each other over unix sockets, carried between the hosts by secured
 * channels, one for each of their connections.
 *
 * One end listens, where the program that connects is; the other dials the program that listens, at once when a channel
 * is added. So the connections of the one meet those of the other in the order of the channels, whoever is quicker.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "channel.h"
#include "gyges.h"
#include "thread.h"

#define FLOW_BYTES 65536u

struct lane {
	struct gy_tunnel *tunnel;
	uint32_t index;
	struct gy_channel *channel;
	struct gy_channel local;	/* the program's connection; fd < 0: none yet */
	pthread_t thread;
};

struct gy_tunnel {
	struct sockaddr_un at;
	int listen_fd;		/* non-blocking; < 0: dials */
	int stop_fd;		/* readable: every lane ends */
	pthread_mutex_t lock;	/* guards accepted */
	pthread_cond_t moved;	/* accepted has */
	uint32_t accepted;	/* lanes whose turn to accept is over */
	_Atomic(uint64_t) bytes;
	/* The owner's alone. */
	uint32_t lanes;
	struct lane lane[GY_TUNNEL_LANES];
};

/* One direction of a lane. */
struct flow {
	struct gy_channel *from, *to;
	uint64_t at, len;
	uint64_t carried;
	bool over;		/* nothing more comes from @from */
	bool ended;		/* and @to has been told */
	uint8_t buf[FLOW_BYTES];
};

static bool is_stopped(const struct gy_tunnel *tunnel)
{
	struct pollfd p = { .fd = tunnel->stop_fd, .events = POLLIN };

	return poll(&p, 1, 0) != 0;
}

/* What to do about the answer @n of a channel: it waits for @events, or it is broken. */
static bool is_waiting(int64_t n, short events, short *wanted)
{
	if (n != -EAGAIN)
		return false;
	*wanted |= events;
	return true;
}

static bool fill(struct flow *flow, short *from_events)
{
	short events = 0;
	int64_t n = gy_channel_read_some(flow->from, flow->buf, sizeof(flow->buf), &events);

	if (is_waiting(n, events, from_events))
		return false;
	flow->at = 0;
	flow->len = n > 0 ? (uint64_t)n : 0;
	flow->over = n < 0;
	return true;
}

/*
 * Moves one piece on, without waiting; *moved is set if it did, else the events that it waits for. False: @to takes no
 * more.
 */
static bool flow_step(struct flow *flow, short *from_events, short *to_events, bool *moved)
{
	short events = 0;
	int64_t n;

	if (flow->ended || (flow->at == flow->len && !flow->over && !fill(flow, from_events)))
		return true;
	if (flow->at < flow->len)
		n = gy_channel_write_some(flow->to, flow->buf + flow->at, flow->len - flow->at, &events);
	else
		n = gy_channel_end_writing(flow->to, &events);
	if (is_waiting(n, events, to_events))
		return true;
	if (n < 0)
		return false;
	flow->ended = flow->at == flow->len;
	flow->at += (uint64_t)n;
	flow->carried += (uint64_t)n;
	*moved = true;
	return true;
}

/* What is polled for nothing is not polled at all: it would report for ever that its peer is gone. */
static void await(const struct lane *lane, short local_events, short channel_events)
{
	struct pollfd p[3] = {
		{ .fd = local_events ? lane->local.fd : -1, .events = local_events },
		{ .fd = channel_events ? lane->channel->fd : -1, .events = channel_events },
		{ .fd = lane->tunnel->stop_fd, .events = POLLIN },
	};

	poll(p, 3, -1);
}

static void carry(struct lane *lane, struct flow *out, struct flow *in)
{
	*out = (struct flow){ .from = &lane->local, .to = lane->channel };
	*in = (struct flow){ .from = lane->channel, .to = &lane->local };
	while (!is_stopped(lane->tunnel) && !(out->ended && in->ended)) {
		short local_events = 0, channel_events = 0;
		uint64_t before = in->carried;
		bool moved = false;

		if (!flow_step(out, &local_events, &channel_events, &moved) ||
		    !flow_step(in, &channel_events, &local_events, &moved))
			return;
		lane->tunnel->bytes += in->carried - before;
		if (!moved)
			await(lane, local_events, channel_events);
	}
}

/* The next connection to the tunnel's socket; < 0: it was stopped. */
static int accept_one(struct gy_tunnel *tunnel)
{
	for (;;) {
		struct pollfd p[2] = {
			{ .fd = tunnel->listen_fd, .events = POLLIN },
			{ .fd = tunnel->stop_fd, .events = POLLIN },
		};
		int fd = accept4(tunnel->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd >= 0)
			return fd;
		if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
			return -errno;
		poll(p, 2, -1);
		if (p[1].revents)
			return -ECANCELED;
	}
}

static int accept_in_turn(struct lane *lane)
{
	struct gy_tunnel *tunnel = lane->tunnel;
	int fd;

	pthread_mutex_lock(&tunnel->lock);
	while (tunnel->accepted != lane->index)
		pthread_cond_wait(&tunnel->moved, &tunnel->lock);
	pthread_mutex_unlock(&tunnel->lock);
	fd = accept_one(tunnel);
	/* Stopped or not, the next in turn has to hear of it. */
	pthread_mutex_lock(&tunnel->lock);
	tunnel->accepted++;
	pthread_cond_broadcast(&tunnel->moved);
	pthread_mutex_unlock(&tunnel->lock);
	return fd;
}

static void *run_lane(void *arg)
{
	struct lane *lane = arg;
	struct flow *flows = malloc(2 * sizeof(*flows));

	if (lane->local.fd < 0)
		lane->local.fd = accept_in_turn(lane);
	if (flows && lane->local.fd >= 0)
		carry(lane, &flows[0], &flows[1]);
	free(flows);
	/* Both programs hear now that it is over; the memory goes with gy_tunnel_drop(). */
	if (lane->local.fd >= 0)
		shutdown(lane->local.fd, SHUT_RDWR);
	gy_channel_shutdown(lane->channel);
	return NULL;
}

static int dial(const struct sockaddr_un *at)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int ret;

	if (fd < 0)
		return -errno;
	if (!connect(fd, (const struct sockaddr *)at, sizeof(*at)))
		return fd;
	ret = -errno;
	close(fd);
	return ret;
}

static int listen_at(const struct sockaddr_un *at)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int ret;

	if (fd < 0)
		return -errno;
	if (!bind(fd, (const struct sockaddr *)at, sizeof(*at)) && !chmod(at->sun_path, 0600) &&
	    !listen(fd, GY_TUNNEL_LANES))
		return fd;
	ret = -errno;
	close(fd);
	return ret;
}

int gy_tunnel_create(const char *path, uint32_t flags, struct gy_tunnel **out)
{
	struct gy_tunnel *tunnel;
	int ret = -ENOMEM;

	if (strlen(path) >= sizeof(tunnel->at.sun_path))
		return -ENAMETOOLONG;
	tunnel = calloc(1, sizeof(*tunnel));
	if (!tunnel)
		return ret;
	tunnel->at.sun_family = AF_UNIX;
	strcpy(tunnel->at.sun_path, path);
	tunnel->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	tunnel->listen_fd = -1;
	if (tunnel->stop_fd < 0) {
		ret = -errno;
		goto err_free;
	}
	if (flags & GY_TUNNEL_LISTEN) {
		tunnel->listen_fd = ret = listen_at(&tunnel->at);
		if (ret < 0)
			goto err_close;
	}
	pthread_mutex_init(&tunnel->lock, NULL);
	pthread_cond_init(&tunnel->moved, NULL);
	*out = tunnel;
	return 0;

err_close:
	close(tunnel->stop_fd);
err_free:
	free(tunnel);
	return ret;
}

int gy_tunnel_add(struct gy_tunnel *tunnel, struct gy_channel *channel)
{
	struct lane *lane = &tunnel->lane[tunnel->lanes];
	int ret = -ENOSPC;

	if (tunnel->lanes == GY_TUNNEL_LANES)
		goto err;
	*lane = (struct lane){ .tunnel = tunnel, .index = tunnel->lanes, .channel = channel, .local.fd = -1 };
	if (tunnel->listen_fd < 0) {
		lane->local.fd = ret = dial(&tunnel->at);
		if (ret < 0)
			goto err;
	}
	ret = thread_start(&lane->thread, "gyges-tunnel", run_lane, lane);
	if (ret)
		goto err_close;
	tunnel->lanes++;
	return 0;

err_close:
	if (lane->local.fd >= 0)
		close(lane->local.fd);
err:
	gy_channel_destroy(channel);
	return ret;
}

void gy_tunnel_drop(struct gy_tunnel *tunnel)
{
	uint64_t word = 1;

	if (write(tunnel->stop_fd, &word, sizeof(word)) != sizeof(word))
		abort();
	for (uint32_t i = 0; i < tunnel->lanes; i++) {
		struct lane *lane = &tunnel->lane[i];

		pthread_join(lane->thread, NULL);
		if (lane->local.fd >= 0)
			close(lane->local.fd);
		gy_channel_destroy(lane->channel);
	}
	tunnel->lanes = 0;
	tunnel->accepted = 0;
	if (read(tunnel->stop_fd, &word, sizeof(word)) != sizeof(word))
		abort();
}

uint64_t gy_tunnel_bytes(const struct gy_tunnel *tunnel)
{
	return tunnel->bytes;
}

void gy_tunnel_destroy(struct gy_tunnel *tunnel)
{
	if (!tunnel)
		return;
	gy_tunnel_drop(tunnel);
	if (tunnel->listen_fd >= 0) {
		close(tunnel->listen_fd);
		unlink(tunnel->at.sun_path);
	}
	close(tunnel->stop_fd);
	pthread_cond_destroy(&tunnel->moved);
	pthread_mutex_destroy(&tunnel->lock);
	free(tunnel);
}
