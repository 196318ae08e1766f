// SPDX-License-Identifier: Apache-2.0
/* channel.c - TCP connections, framed messages, and the waiting they need. channel_secure.c secures them. */
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "channel.h"
#include "clock.h"

/*
 * A silent peer is given up after this: the kernel's own retransmission would take fifteen minutes, during which a
 * lost link looks like a slow one.
 */
#define DEAD_PEER_MS 5000
#define KEEPALIVE_IDLE_S 2
#define KEEPALIVE_INTERVAL_S 1
#define KEEPALIVE_PROBES 3
/* Connections in the kernel's queue; one that finds it full tries again after a second. */
#define BACKLOG 512

static int set_int(int fd, int level, int name, int value)
{
	return setsockopt(fd, level, name, &value, sizeof(value)) ? -errno : 0;
}

/* Requests and replies of a few bytes must not wait for each other's acknowledgement (40 ms with Nagle). */
static int tune(int fd)
{
	int ret = set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);

	if (!ret)
		ret = set_int(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, DEAD_PEER_MS);
	if (!ret)
		ret = set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	if (!ret)
		ret = set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
	if (!ret)
		ret = set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
	if (!ret)
		ret = set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES);
	return ret;
}

static int resolve(const char *host, uint32_t port, int flags, struct addrinfo **out)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV | flags };
	char service[8];

	if (port > 65535)
		return -EINVAL;
	snprintf(service, sizeof(service), "%u", port);
	return getaddrinfo(host, service, &hints, out) ? -ENOENT : 0;
}

static int listen_on(const struct addrinfo *at, struct gy_listener *listener)
{
	struct sockaddr_storage addr;
	socklen_t len = sizeof(addr);
	int ret;

	listener->fd = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (listener->fd < 0)
		return -errno;
	ret = set_int(listener->fd, SOL_SOCKET, SO_REUSEADDR, 1);
	if (ret)
		goto err_close;
	if (bind(listener->fd, at->ai_addr, at->ai_addrlen) || listen(listener->fd, BACKLOG) ||
	    getsockname(listener->fd, (struct sockaddr *)&addr, &len)) {
		ret = -errno;
		goto err_close;
	}
	listener->port = ntohs(addr.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&addr)->sin6_port
							  : ((struct sockaddr_in *)&addr)->sin_port);
	return 0;

err_close:
	close(listener->fd);
	return ret;
}

int gy_listener_create(const char *host, uint32_t port, struct gy_listener **out)
{
	struct gy_listener *listener;
	struct addrinfo *at;
	int ret = resolve(host, port, AI_PASSIVE, &at);

	if (ret)
		return ret;
	listener = calloc(1, sizeof(*listener));
	ret = listener ? listen_on(at, listener) : -ENOMEM;
	freeaddrinfo(at);
	if (ret) {
		free(listener);
		return ret;
	}
	*out = listener;
	return 0;
}

int gy_listener_port(const struct gy_listener *listener)
{
	return listener->port;
}

void gy_listener_destroy(struct gy_listener *listener)
{
	if (!listener)
		return;
	close(listener->fd);
	free(listener);
}

int gy_channel_make(int fd, struct gy_channel **out)
{
	struct gy_channel *channel;
	int ret = tune(fd);

	channel = ret ? NULL : calloc(1, sizeof(*channel));
	if (!channel) {
		close(fd);
		return ret ? ret : -ENOMEM;
	}
	channel->fd = fd;
	pthread_mutex_init(&channel->lock, NULL);
	*out = channel;
	return 0;
}

int gy_fd_wait(int fd, short events, uint64_t deadline_ns)
{
	struct pollfd p = { .fd = fd, .events = events };
	int n;

	do {
		n = poll(&p, 1, ms_until(deadline_ns));
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	return n ? 0 : -ETIMEDOUT;
}

int gy_listener_accept(struct gy_listener *listener, uint32_t timeout_ms, struct gy_channel **out)
{
	uint64_t deadline = deadline_after_ms(timeout_ms);
	int fd, ret;

	for (;;) {
		fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (fd >= 0)
			return gy_channel_make(fd, out);
		/* A connection that died in the queue is not the listener's failure. */
		if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
			return -errno;
		ret = gy_fd_wait(listener->fd, POLLIN, deadline);
		if (ret)
			return ret;
	}
}

static int connect_to(const struct addrinfo *at, uint64_t deadline_ns)
{
	int fd = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	socklen_t len = sizeof(int);
	int ret = 0;

	if (fd < 0)
		return -errno;
	if (connect(fd, at->ai_addr, at->ai_addrlen)) {
		ret = errno == EINPROGRESS ? gy_fd_wait(fd, POLLOUT, deadline_ns) : -errno;
		if (!ret && !getsockopt(fd, SOL_SOCKET, SO_ERROR, &ret, &len))
			ret = -ret;
	}
	if (!ret)
		return fd;
	close(fd);
	return ret;
}

int gy_channel_connect(const char *host, uint32_t port, uint32_t timeout_ms, struct gy_channel **out)
{
	uint64_t deadline = deadline_after_ms(timeout_ms);
	struct addrinfo *list;
	int fd, ret = resolve(host, port, 0, &list);

	if (ret)
		return ret;
	fd = -EADDRNOTAVAIL;
	for (struct addrinfo *at = list; at && fd < 0; at = at->ai_next)
		fd = connect_to(at, deadline);
	freeaddrinfo(list);
	return fd < 0 ? fd : gy_channel_make(fd, out);
}

void gy_channel_shutdown(struct gy_channel *channel)
{
	shutdown(channel->fd, SHUT_RDWR);
}

void gy_channel_destroy(struct gy_channel *channel)
{
	if (!channel)
		return;
	SSL_free(channel->ssl);
	close(channel->fd);
	pthread_mutex_destroy(&channel->lock);
	free(channel);
}

static int64_t plain_result(ssize_t n, bool reading, short wait, short *events)
{
	if (n > 0)
		return n;
	if (n == 0 && reading)
		return -ECONNABORTED;
	if (n < 0 && errno != EAGAIN && errno != EINTR)
		return -ECONNABORTED;
	*events = wait;
	return -EAGAIN;
}

static int64_t tls_result(struct gy_channel *channel, int ok, size_t n, short *events)
{
	int why;

	if (ok == 1)
		return (int64_t)n;
	why = SSL_get_error(channel->ssl, ok);
	if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE) {
		*events = why == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT;
		return -EAGAIN;
	}
	/* Also a peer that closed without close_notify: a cut link looks the same, and both end the channel. */
	return -ECONNABORTED;
}

int64_t gy_channel_read_some(struct gy_channel *channel, void *buf, uint64_t len, short *events)
{
	size_t n = 0;
	int64_t ret;
	int ok;

	if (!channel->ssl)
		return plain_result(recv(channel->fd, buf, len, 0), true, POLLIN, events);
	pthread_mutex_lock(&channel->lock);
	ERR_clear_error();
	ok = SSL_read_ex(channel->ssl, buf, len, &n);
	ret = tls_result(channel, ok, n, events);
	pthread_mutex_unlock(&channel->lock);
	return ret;
}

int64_t gy_channel_write_some(struct gy_channel *channel, const void *buf, uint64_t len, short *events)
{
	size_t n = 0;
	int64_t ret;
	int ok;

	if (!channel->ssl)
		return plain_result(send(channel->fd, buf, len, MSG_NOSIGNAL), false, POLLOUT, events);
	pthread_mutex_lock(&channel->lock);
	ERR_clear_error();
	ok = SSL_write_ex(channel->ssl, buf, len, &n);
	ret = tls_result(channel, ok, n, events);
	pthread_mutex_unlock(&channel->lock);
	return ret;
}

int gy_channel_end_writing(struct gy_channel *channel, short *events)
{
	int64_t ret = 0;
	int ok;

	if (channel->ssl) {
		pthread_mutex_lock(&channel->lock);
		ERR_clear_error();
		ok = SSL_shutdown(channel->ssl);
		/* Without this word an end of the connection is a failure to the peer, which may not even write then. */
		ret = ok >= 0 ? 0 : tls_result(channel, ok, 0, events);
		pthread_mutex_unlock(&channel->lock);
	}
	if (!ret && shutdown(channel->fd, SHUT_WR))
		ret = -ECONNABORTED;
	return (int)ret;
}

int gy_channel_write_by(struct gy_channel *channel, const void *buf, uint64_t len, uint64_t deadline_ns)
{
	const uint8_t *at = buf;
	short events;

	while (len) {
		int64_t n = gy_channel_write_some(channel, at, len, &events);
		int ret;

		if (n > 0) {
			at += n;
			len -= (uint64_t)n;
			continue;
		}
		if (n != -EAGAIN)
			return (int)n;
		ret = gy_fd_wait(channel->fd, events, deadline_ns);
		if (ret)
			return ret;
	}
	return 0;
}

int gy_channel_write_all(struct gy_channel *channel, const void *buf, uint64_t len, uint32_t idle_ms)
{
	const uint8_t *at = buf;

	/* Pieces, so that the deadline is one of progress and not of the whole. */
	while (len) {
		uint64_t piece = len < 65536 ? len : 65536;
		int ret = gy_channel_write_by(channel, at, piece, deadline_after_ms(idle_ms));

		if (ret)
			return ret;
		at += piece;
		len -= piece;
	}
	return 0;
}

/* Reads until *have == @need; what has come stays counted in *have when the deadline passes. */
static int read_up_to(struct gy_channel *channel, uint8_t *buf, uint64_t *have, uint64_t need, uint64_t deadline_ns)
{
	short events;

	while (*have < need) {
		int64_t n = gy_channel_read_some(channel, buf + *have, need - *have, &events);
		int ret;

		if (n > 0) {
			*have += (uint64_t)n;
			continue;
		}
		if (n != -EAGAIN)
			return (int)n;
		ret = gy_fd_wait(channel->fd, events, deadline_ns);
		if (ret)
			return ret;
	}
	return 0;
}

int gy_channel_read_all(struct gy_channel *channel, void *buf, uint64_t len, uint64_t deadline_ns)
{
	uint64_t have = 0;

	return read_up_to(channel, buf, &have, len, deadline_ns);
}

/*
 * The caller passes the same buffer until the frame is whole: the body is collected there, and only the eight
 * bytes of the head, which say how long it is, are kept in the channel.
 */
int64_t gy_channel_recv_frame(struct gy_channel *channel, uint8_t *buf, uint64_t cap, uint32_t timeout_ms)
{
	uint64_t deadline = deadline_after_ms(timeout_ms);
	uint32_t sizes[2];
	uint64_t total;
	int ret;

	if (channel->broken)
		return -ECONNABORTED;
	if (cap < sizeof(channel->head))
		return -EINVAL;
	ret = channel->have < 8 ? read_up_to(channel, channel->head, &channel->have, 8, deadline) : 0;
	if (ret)
		return ret;
	memcpy(sizes, channel->head, sizeof(sizes));
	total = 8 + (uint64_t)sizes[0] + sizes[1];
	if (total > cap) {
		channel->broken = true;
		gy_channel_shutdown(channel);
		return -EMSGSIZE;
	}
	memcpy(buf, channel->head, 8);
	ret = read_up_to(channel, buf, &channel->have, total, deadline);
	if (ret)
		return ret;
	channel->have = 0;
	return (int64_t)total;
}

int gy_channel_send_frame(struct gy_channel *channel, const uint8_t *text, uint32_t text_bytes,
			  const uint8_t *payload, uint32_t payload_bytes, uint32_t timeout_ms)
{
	uint32_t sizes[2] = { text_bytes, payload_bytes };
	uint64_t total = sizeof(sizes) + (uint64_t)text_bytes + payload_bytes;
	uint8_t *frame;
	int ret;

	if (channel->broken)
		return -ECONNABORTED;
	/* One buffer, one write: a frame in three small segments would wait for delayed acknowledgements. */
	frame = malloc(total);
	if (!frame)
		return -ENOMEM;
	memcpy(frame, sizes, sizeof(sizes));
	if (text_bytes)
		memcpy(frame + sizeof(sizes), text, text_bytes);
	if (payload_bytes)
		memcpy(frame + sizeof(sizes) + text_bytes, payload, payload_bytes);
	ret = gy_channel_write_by(channel, frame, total, deadline_after_ms(timeout_ms));
	free(frame);
	if (ret) {
		channel->broken = true;
		gy_channel_shutdown(channel);
	}
	return ret;
}
