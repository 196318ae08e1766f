// SPDX-License-Identifier: Apache-2.0
/* tunnel_test.c - what one program says to another through a tunnel arrives whole, in order, at the right connection. */
#include <errno.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "channel.h"
#include "check.h"
#include "thread.h"

#define SOON_MS 5000u
#define BULK_BYTES (24u << 20)
#define PIECE_MAX 200000u

static const uint8_t key[GY_KEY_BYTES] = { 1, 2, 3 };

static char folder[] = "/tmp/gyges-tunnel-XXXXXX";

static struct sockaddr_un at(const char *name)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/%s", folder, name);
	return addr;
}

static int dial(const char *name)
{
	struct sockaddr_un addr = at(name);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	CHECK(fd >= 0);
	CHECK(!connect(fd, (struct sockaddr *)&addr, sizeof(addr)));
	return fd;
}

static int program_listens(const char *name)
{
	struct sockaddr_un addr = at(name);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	CHECK(fd >= 0);
	unlink(addr.sun_path);
	CHECK(!bind(fd, (struct sockaddr *)&addr, sizeof(addr)));
	CHECK(!listen(fd, GY_TUNNEL_LANES));
	return fd;
}

/* ---- two secured ends of a channel ---- */

struct end {
	struct gy_channel *channel;
	uint32_t flags;
};

static void *secure(void *arg)
{
	struct end *end = arg;
	char err[128];

	CHECK_EQUAL(gy_channel_secure(end->channel, key, end->flags, SOON_MS, err, sizeof(err)), 0);
	return NULL;
}

static void join_up(struct gy_tunnel *here, struct gy_tunnel *there, uint32_t tls)
{
	struct gy_listener *listener;
	struct end near = { .flags = tls }, far = { .flags = tls | GY_CHANNEL_SERVER };
	pthread_t thread;

	CHECK(!gy_listener_create("127.0.0.1", 0, &listener));
	CHECK(!gy_channel_connect("127.0.0.1", (uint32_t)gy_listener_port(listener), SOON_MS, &near.channel));
	CHECK(!gy_listener_accept(listener, SOON_MS, &far.channel));
	CHECK(!thread_start(&thread, "secure", secure, &far));
	secure(&near);
	pthread_join(thread, NULL);
	gy_listener_destroy(listener);
	CHECK_EQUAL(gy_tunnel_add(there, far.channel), 0);
	CHECK_EQUAL(gy_tunnel_add(here, near.channel), 0);
}

/* ---- traffic ---- */

struct talk {
	int fd;
	uint64_t seed;
};

static void *say(void *arg)
{
	const struct talk *talk = arg;
	uint64_t state = talk->seed, sizes = talk->seed + 1;
	static _Thread_local uint8_t buf[PIECE_MAX];

	for (uint64_t left = BULK_BYTES; left;) {
		uint64_t n = 1 + random_below(&sizes, PIECE_MAX);

		n = n < left ? n : left;
		for (uint64_t i = 0; i < n; i++)
			buf[i] = (uint8_t)(random_next(&state) >> 32);
		for (uint64_t done = 0; done < n;) {
			ssize_t sent = send(talk->fd, buf + done, n - done, MSG_NOSIGNAL);

			CHECK(sent > 0);
			done += (uint64_t)sent;
		}
		left -= n;
	}
	CHECK(!shutdown(talk->fd, SHUT_WR));
	return NULL;
}

/* Until the end, which must come with the last byte. */
static void *hear(void *arg)
{
	const struct talk *talk = arg;
	static _Thread_local uint8_t buf[PIECE_MAX];
	uint64_t state = talk->seed, heard = 0;
	ssize_t n;

	while ((n = recv(talk->fd, buf, sizeof(buf), 0)) > 0) {
		for (ssize_t i = 0; i < n; i++)
			CHECK_EQUAL(buf[i], (uint8_t)(random_next(&state) >> 32));
		heard += (uint64_t)n;
	}
	CHECK_EQUAL(n, 0);
	CHECK_EQUAL(heard, BULK_BYTES);
	return NULL;
}

static void both_ways(uint32_t tls)
{
	struct gy_tunnel *here, *there;
	int listening = program_listens("there");
	int fd[2][2];
	struct talk talks[8];
	pthread_t threads[8];

	CHECK_EQUAL(gy_tunnel_create(at("here").sun_path, GY_TUNNEL_LISTEN, &here), 0);
	CHECK_EQUAL(gy_tunnel_create(at("there").sun_path, 0, &there), 0);
	for (int lane = 0; lane < 2; lane++) {
		join_up(here, there, tls);
		fd[1][lane] = accept(listening, NULL, NULL);
		CHECK(fd[1][lane] >= 0);
	}
	for (int lane = 0; lane < 2; lane++)
		fd[0][lane] = dial("here");
	/* A seed for each lane and direction: a stream at the wrong connection is found. */
	for (unsigned i = 0; i < 4; i++) {
		int from = fd[i % 2][i / 2], to = fd[1 - i % 2][i / 2];

		talks[2 * i] = (struct talk){ from, 100 + i };
		talks[2 * i + 1] = (struct talk){ to, 100 + i };
		CHECK(!thread_start(&threads[2 * i], "say", say, &talks[2 * i]));
		CHECK(!thread_start(&threads[2 * i + 1], "hear", hear, &talks[2 * i + 1]));
	}
	for (unsigned i = 0; i < 8; i++)
		pthread_join(threads[i], NULL);
	gy_tunnel_drop(here);
	gy_tunnel_drop(there);
	CHECK_EQUAL(gy_tunnel_bytes(here), 2ull * BULK_BYTES);
	CHECK_EQUAL(gy_tunnel_bytes(there), 2ull * BULK_BYTES);
	for (int i = 0; i < 4; i++)
		close(fd[i % 2][i / 2]);
	close(listening);
	gy_tunnel_destroy(here);
	gy_tunnel_destroy(there);
	CHECK(access(at("here").sun_path, F_OK) && errno == ENOENT);
}

static void expect_end(int fd)
{
	char byte;

	CHECK(recv(fd, &byte, 1, 0) <= 0);
}

/* A lost link is told to both programs; then both ends are of use again. */
static void dropped_and_used_again(void)
{
	struct gy_tunnel *here, *there;
	int listening = program_listens("there");
	char word[5] = { 0 };

	CHECK_EQUAL(gy_tunnel_create(at("here").sun_path, GY_TUNNEL_LISTEN, &here), 0);
	CHECK_EQUAL(gy_tunnel_create(at("there").sun_path, 0, &there), 0);
	for (int round = 0; round < 3; round++) {
		int near, far;

		join_up(here, there, GY_CHANNEL_TLS);
		/* One whose program never comes. */
		join_up(here, there, GY_CHANNEL_TLS);
		near = dial("here");
		far = accept(listening, NULL, NULL);
		CHECK(far >= 0);
		CHECK_EQUAL(send(near, "word", 4, 0), 4);
		CHECK_EQUAL(recv(far, word, 4, MSG_WAITALL), 4);
		CHECK_WORDS(word, "word");
		gy_tunnel_drop(round == 1 ? there : here);
		expect_end(near);
		expect_end(far);
		gy_tunnel_drop(round == 1 ? here : there);
		close(near);
		close(far);
		/* The second, of the channel whose program never came. */
		far = accept(listening, NULL, NULL);
		expect_end(far);
		close(far);
	}
	close(listening);
	gy_tunnel_destroy(here);
	gy_tunnel_destroy(there);
}

static void what_cannot_be(void)
{
	struct gy_tunnel *here, *there, *third;
	char path[200];

	memset(path, 'x', sizeof(path) - 1);
	path[sizeof(path) - 1] = 0;
	CHECK_EQUAL(gy_tunnel_create(path, 0, &here), -ENAMETOOLONG);
	CHECK_EQUAL(gy_tunnel_create("/nowhere/at/all", GY_TUNNEL_LISTEN, &here), -ENOENT);
	CHECK_EQUAL(gy_tunnel_create(at("here").sun_path, GY_TUNNEL_LISTEN, &here), 0);
	CHECK_EQUAL(gy_tunnel_create(at("here").sun_path, GY_TUNNEL_LISTEN, &third), -EADDRINUSE);
	CHECK_EQUAL(gy_tunnel_create(at("nobody").sun_path, 0, &there), 0);
	{
		struct gy_listener *listener;
		struct gy_channel *channel;

		CHECK(!gy_listener_create("127.0.0.1", 0, &listener));
		CHECK(!gy_channel_connect("127.0.0.1", (uint32_t)gy_listener_port(listener), SOON_MS, &channel));
		CHECK_EQUAL(gy_tunnel_add(there, channel), -ENOENT);
		gy_listener_destroy(listener);
	}
	gy_tunnel_destroy(here);
	gy_tunnel_destroy(there);
}

int main(void)
{
	CHECK(mkdtemp(folder));
	both_ways(0);
	both_ways(GY_CHANNEL_TLS);
	dropped_and_used_again();
	what_cannot_be();
	unlink(at("there").sun_path);
	CHECK(!rmdir(folder));
	return 0;
}
