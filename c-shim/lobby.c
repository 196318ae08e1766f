// SPDX-License-Identifier: Apache-2.0
/*
 * lobby.c - where connections wait until they have said their first message whole.
 *
 * A handshake occupies a thread until its deadline, and threads are few; so none is spent on a stranger that says
 * nothing, or half of something. Here such a one costs a descriptor and an entry of poll(): the kernel itself counts
 * the bytes of a first message (SO_RCVLOWAT), and only then is its connection looked at.
 *
 * A TLS ClientHello carries the proof of the key, so who is handed over with one is let in or refused at once.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "channel.h"
#include "clock.h"

#define WAITING_MAX 256u
/* Beyond WAITING_MAX the oldest goes, if it has had this long: a real peer speaks as soon as it has connected. */
#define GRACE_NS (250 * NS_PER_MS)
#define PATIENCE_NS (10 * NS_PER_S)

#define HEAD_BYTES 5		/* TLS: type, version, length */
#define TLS_HANDSHAKE_RECORD 0x16
#define PREAMBLE_BYTES 40	/* channel_secure.c: magic and nonce */
#define PREAMBLE_FIRST 'G'
#define HELLO_MAX 4096		/* ours has some hundred bytes, with post-quantum keys 1.5 KiB */

struct waiting {
	int fd;
	int want;		/* bytes of the first message, as far as known */
	uint64_t since_ns;
};

struct gy_lobby {
	struct gy_listener *listener;
	uint32_t n;
	struct waiting waiting[WAITING_MAX];	/* by arrival */
	struct pollfd polls[WAITING_MAX + 1];	/* the same order; the listener last */
	_Atomic(uint64_t) dropped;
};

int gy_lobby_create(struct gy_listener *listener, struct gy_lobby **out)
{
	struct gy_lobby *lobby = calloc(1, sizeof(*lobby));

	if (!lobby) {
		gy_listener_destroy(listener);
		return -ENOMEM;
	}
	lobby->listener = listener;
	*out = lobby;
	return 0;
}

void gy_lobby_destroy(struct gy_lobby *lobby)
{
	if (!lobby)
		return;
	for (uint32_t i = 0; i < lobby->n; i++)
		close(lobby->waiting[i].fd);
	gy_listener_destroy(lobby->listener);
	free(lobby);
}

uint64_t gy_lobby_dropped(const struct gy_lobby *lobby)
{
	return lobby->dropped;
}

/* Takes entry @i out; its descriptor is the caller's. */
static int take(struct gy_lobby *lobby, uint32_t i)
{
	int fd = lobby->waiting[i].fd;

	lobby->n--;
	memmove(&lobby->waiting[i], &lobby->waiting[i + 1], (lobby->n - i) * sizeof(lobby->waiting[0]));
	return fd;
}

static void drop(struct gy_lobby *lobby, uint32_t i)
{
	close(take(lobby, i));
	lobby->dropped++;
}

static bool full(const struct gy_lobby *lobby)
{
	return lobby->n == WAITING_MAX;
}

static void expire(struct gy_lobby *lobby)
{
	uint64_t now = now_ns();

	while (lobby->n && now - lobby->waiting[0].since_ns >= PATIENCE_NS)
		drop(lobby, 0);
	if (full(lobby) && now - lobby->waiting[0].since_ns >= GRACE_NS)
		drop(lobby, 0);
}

static int expect_bytes(struct waiting *w, int want)
{
	w->want = want;
	return setsockopt(w->fd, SOL_SOCKET, SO_RCVLOWAT, &want, sizeof(want)) ? -errno : 0;
}

/* Out of descriptors: who has waited longest goes; with nobody there, a pause keeps the wait for one from spinning. */
static void make_room(struct gy_lobby *lobby)
{
	if (lobby->n)
		drop(lobby, 0);
	else
		poll(NULL, 0, 10);
}

/* Takes in who has connected, as far as there is room. */
static void admit(struct gy_lobby *lobby)
{
	while (!full(lobby)) {
		struct waiting *w = &lobby->waiting[lobby->n];
		int fd = accept4(lobby->listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd < 0) {
			if (errno == ECONNABORTED || errno == EINTR)
				continue;
			if (errno == EMFILE || errno == ENFILE)
				make_room(lobby);
			return;
		}
		*w = (struct waiting){ .fd = fd, .since_ns = now_ns() };
		if (expect_bytes(w, HEAD_BYTES))
			close(fd);
		else
			lobby->n++;
	}
}

/* Bytes of the message that begins with @head; HEAD_BYTES for what is none of ours and is refused by its head. */
static int message_bytes(const uint8_t head[HEAD_BYTES])
{
	if (head[0] == TLS_HANDSHAKE_RECORD)
		return HEAD_BYTES + (head[3] << 8 | head[4]);
	return head[0] == PREAMBLE_FIRST ? PREAMBLE_BYTES : HEAD_BYTES;
}

/* 1: its first message is here; 0: not yet; -errno: it is to be dropped. */
static int look_at(struct waiting *w)
{
	uint8_t head[HEAD_BYTES];
	ssize_t n;
	int ret;

	if (w->want != HEAD_BYTES)
		return 1;
	n = recv(w->fd, head, sizeof(head), MSG_PEEK);
	if (n != (ssize_t)sizeof(head))
		return n < 0 && errno == EAGAIN ? 0 : -ECONNABORTED;
	ret = message_bytes(head);
	if (ret == HEAD_BYTES)
		return 1;
	if (ret > HELLO_MAX)
		return -EPROTO;
	ret = expect_bytes(w, ret);
	if (ret)
		return ret;
	/* The rest may be here already. */
	return gy_fd_wait(w->fd, POLLIN, 0) == 0;
}

/* Index of the first connection that has spoken, -EAGAIN when none has. */
static int find_ready(struct gy_lobby *lobby, uint32_t polled)
{
	for (uint32_t i = polled; i-- > 0;) {
		int ret;

		if (!lobby->polls[i].revents)
			continue;
		/* One that has closed has nothing more to say, whatever it said. */
		ret = lobby->polls[i].revents & (POLLERR | POLLHUP | POLLRDHUP) ? -ECONNABORTED
									      : look_at(&lobby->waiting[i]);
		if (ret > 0)
			return (int)i;
		if (ret < 0)
			drop(lobby, i);
	}
	return -EAGAIN;
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Waits for somebody to come or to speak; entries polled, or -errno. */
static int wait_for_any(struct gy_lobby *lobby, uint64_t deadline_ns)
{
	bool room = !full(lobby);
	int n;

	for (uint32_t i = 0; i < lobby->n; i++)
		lobby->polls[i] = (struct pollfd){ .fd = lobby->waiting[i].fd, .events = POLLIN | POLLRDHUP };
	/* With no room the kernel's queue holds who comes. */
	lobby->polls[lobby->n] = (struct pollfd){ .fd = room ? lobby->listener->fd : -1, .events = POLLIN };
	if (lobby->n) {
		uint64_t oldest = lobby->waiting[0].since_ns;

		deadline_ns = earlier(deadline_ns, oldest + (room ? PATIENCE_NS : GRACE_NS));
	}
	n = poll(lobby->polls, lobby->n + 1, ms_until(deadline_ns));
	return n < 0 && errno != EINTR ? -errno : 0;
}

int gy_lobby_accept(struct gy_lobby *lobby, uint32_t timeout_ms, struct gy_channel **out)
{
	uint64_t deadline = deadline_after_ms(timeout_ms);

	do {
		uint32_t polled;
		int ret;

		expire(lobby);
		admit(lobby);
		polled = lobby->n;
		ret = wait_for_any(lobby, deadline);
		if (ret)
			return ret;
		ret = find_ready(lobby, polled);
		if (ret >= 0) {
			int fd = take(lobby, (uint32_t)ret), one = 1;

			setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof(one));
			return gy_channel_make(fd, out);
		}
	} while (now_ns() < deadline);
	return -ETIMEDOUT;
}
