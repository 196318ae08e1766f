// SPDX-License-Identifier: Apache-2.0
/* lobby_test.c - strangers that say nothing, or half of something, keep nobody waiting and are dropped in the end. */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "channel.h"
#include "check.h"
#include "clock.h"
#include "thread.h"

#define SOON_MS 5000u
#define IDLE 1000u
/* As many wait at most; a test of the bound has to know it. */
#define WAITING_MAX 256u

static const uint8_t key[GY_KEY_BYTES] = { 1, 2, 3 };

static struct gy_lobby *lobby;
static uint32_t port;

static int dial(void)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	CHECK(fd >= 0);
	CHECK(!connect(fd, (struct sockaddr *)&at, sizeof(at)));
	return fd;
}

static void put(int fd, const void *bytes, size_t len)
{
	CHECK_EQUAL(send(fd, bytes, len, MSG_NOSIGNAL), (ssize_t)len);
}

static void open_lobby(void)
{
	struct gy_listener *listener;

	CHECK(!gy_listener_create("127.0.0.1", 0, &listener));
	port = (uint32_t)gy_listener_port(listener);
	CHECK(!gy_lobby_create(listener, &lobby));
}

struct client {
	uint32_t flags;
	int result;
};

static void *connect_and_secure(void *arg)
{
	struct client *client = arg;
	struct gy_channel *channel;
	char err[128];

	client->result = gy_channel_connect("127.0.0.1", port, SOON_MS, &channel);
	if (client->result)
		return NULL;
	client->result = gy_channel_secure(channel, key, client->flags, SOON_MS, err, sizeof(err));
	gy_channel_destroy(channel);
	return NULL;
}

/* A peer with the key comes through the lobby, within @at_most_ms. */
static void let_in(uint32_t tls, uint32_t at_most_ms)
{
	struct client client = { .flags = tls };
	struct gy_channel *channel;
	uint64_t began = now_ns();
	pthread_t thread;
	char err[128];

	CHECK(!thread_start(&thread, "client", connect_and_secure, &client));
	CHECK(!gy_lobby_accept(lobby, SOON_MS, &channel));
	CHECK(!gy_channel_secure(channel, key, GY_CHANNEL_SERVER | tls, SOON_MS, err, sizeof(err)));
	pthread_join(thread, NULL);
	CHECK(!client.result);
	gy_channel_destroy(channel);
	CHECK(now_ns() - began < at_most_ms * NS_PER_MS);
}

static void nobody(void)
{
	struct gy_channel *channel;

	open_lobby();
	CHECK_EQUAL(gy_lobby_accept(lobby, 0, &channel), -ETIMEDOUT);
	CHECK_EQUAL(gy_lobby_accept(lobby, 20, &channel), -ETIMEDOUT);
	for (uint32_t tls = 0; tls <= GY_CHANNEL_TLS; tls += GY_CHANNEL_TLS)
		let_in(tls, SOON_MS);
	gy_lobby_destroy(lobby);
	gy_lobby_destroy(NULL);
}

/* Each says the beginning of a message that would be welcome; none is handed over, and none is in the way. */
static void half_messages(void)
{
	const uint8_t hello[] = { 0x16, 3, 1, 1, 0, 1, 0, 0, 0xfc };
	const uint8_t *half[] = { hello, hello, hello, (const uint8_t *)"GYGESP01 and" };
	const size_t len[] = { 1, 4, sizeof(hello), 12 };
	struct gy_channel *channel;
	int fd[4];

	open_lobby();
	for (int i = 0; i < 4; i++) {
		fd[i] = dial();
		put(fd[i], half[i], len[i]);
	}
	CHECK_EQUAL(gy_lobby_accept(lobby, 100, &channel), -ETIMEDOUT);
	let_in(GY_CHANNEL_TLS, 1000);
	let_in(0, 1000);
	/* Waiting for the rest must not spin: a hundred milliseconds of it take next to no CPU time. */
	{
		clock_t before = clock();

		CHECK_EQUAL(gy_lobby_accept(lobby, 300, &channel), -ETIMEDOUT);
		CHECK(clock() - before < CLOCKS_PER_SEC / 10);
	}
	/* One that closes is dropped at once; its neighbours stay. */
	CHECK_EQUAL(gy_lobby_dropped(lobby), 0);
	close(fd[1]);
	CHECK_EQUAL(gy_lobby_accept(lobby, 50, &channel), -ETIMEDOUT);
	CHECK_EQUAL(gy_lobby_dropped(lobby), 1);
	/* One that completes its message is handed over. */
	put(fd[3], " twenty-eight bytes behind it", 28);
	CHECK(!gy_lobby_accept(lobby, SOON_MS, &channel));
	gy_channel_destroy(channel);
	for (int i = 0; i < 4; i++)
		if (i != 1)
			close(fd[i]);
	gy_lobby_destroy(lobby);
}

/* What cannot be ours is handed over for its refusal, or dropped when it announces more than we would ever read. */
static void noise(void)
{
	const uint8_t huge[] = { 0x16, 3, 1, 0x40, 0 };
	struct gy_channel *channel;
	char err[128];
	int fd;

	open_lobby();
	fd = dial();
	put(fd, "SSH-2.0-", 8);
	CHECK(!gy_lobby_accept(lobby, SOON_MS, &channel));
	CHECK_EQUAL(gy_channel_secure(channel, key, GY_CHANNEL_SERVER, SOON_MS, err, sizeof(err)), -EPROTO);
	gy_channel_destroy(channel);
	close(fd);
	fd = dial();
	put(fd, huge, sizeof(huge));
	CHECK_EQUAL(gy_lobby_accept(lobby, 100, &channel), -ETIMEDOUT);
	CHECK_EQUAL(gy_lobby_dropped(lobby), 1);
	close(fd);
	gy_lobby_destroy(lobby);
}

static uint32_t descriptors(void)
{
	DIR *dir = opendir("/proc/self/fd");
	uint32_t n = 0;

	CHECK(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static void *dial_many(void *arg)
{
	int *fd = arg;

	for (uint32_t i = 0; i < IDLE; i++)
		fd[i] = dial();
	return NULL;
}

static void thousand_idle(void)
{
	struct rlimit files = { .rlim_cur = 4096, .rlim_max = 4096 };
	struct gy_channel *channel;
	static int fd[IDLE];
	uint32_t before;
	pthread_t thread;

	CHECK(!setrlimit(RLIMIT_NOFILE, &files));
	open_lobby();
	before = descriptors();
	CHECK(!thread_start(&thread, "strangers", dial_many, fd));
	for (int i = 0; i < 20; i++)
		CHECK_EQUAL(gy_lobby_accept(lobby, 100, &channel), -ETIMEDOUT);
	pthread_join(thread, NULL);
	CHECK(descriptors() - before <= IDLE + WAITING_MAX);
	for (uint32_t tls = 0; tls <= GY_CHANNEL_TLS; tls += GY_CHANNEL_TLS)
		let_in(tls, 3000);
	CHECK(gy_lobby_dropped(lobby) > 0);
	for (uint32_t i = 0; i < IDLE; i++)
		close(fd[i]);
	gy_lobby_destroy(lobby);
	CHECK_EQUAL(descriptors(), before - 1);
}

/* With no descriptor left the lobby gives up a stranger for who comes, and goes on. */
static void out_of_descriptors(void)
{
	struct rlimit files = { .rlim_max = 4096 };
	struct gy_channel *channel;
	int fd[40];

	open_lobby();
	for (int i = 0; i < 40; i++)
		fd[i] = dial();
	files.rlim_cur = descriptors() + 10;
	CHECK(!setrlimit(RLIMIT_NOFILE, &files));
	CHECK_EQUAL(gy_lobby_accept(lobby, 100, &channel), -ETIMEDOUT);
	CHECK(gy_lobby_dropped(lobby) > 0);
	files.rlim_cur = 4096;
	CHECK(!setrlimit(RLIMIT_NOFILE, &files));
	let_in(GY_CHANNEL_TLS, SOON_MS);
	for (int i = 0; i < 40; i++)
		close(fd[i]);
	gy_lobby_destroy(lobby);
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	nobody();
	half_messages();
	noise();
	thousand_idle();
	out_of_descriptors();
	puts("lobby_test: passed");
	return 0;
}
