// SPDX-License-Identifier: Apache-2.0
/*
 * channel_test.c - channels over loopback: who is let in, what each end is told, and frames under every kind of
 * interruption. The peer is another channel, a bare socket, or a TLS end of its own.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <unistd.h>

#include "channel.h"
#include "check.h"
#include "clock.h"
#include "thread.h"

#define SOON_MS 5000u	/* nothing here takes so long, even on a slow host */
#define PLAIN_PREAMBLE 40u
#define PLAIN_PROOF 32u
/* What ends at once when it works, and at a deadline when it does not. */
#define PROMPT_NS (2 * NS_PER_S)

static const uint8_t right_key[GY_KEY_BYTES] = { 1, 2, 3 };
static const uint8_t wrong_key[GY_KEY_BYTES] = { 1, 2, 4 };

static struct gy_listener *listener;

/* ---- two channels ---- */

/* One end of a handshake; a thread of its own, as each end waits for the other. */
struct end {
	struct gy_channel *channel;
	const uint8_t *key;
	uint32_t flags;
	uint32_t timeout_ms;
	int result;
	uint64_t took_ns;
	char err[128];
};

/* A channel that was refused is destroyed, as its owner would. */
static void *secure_end(void *arg)
{
	struct end *end = arg;
	uint64_t began = now_ns();

	end->result = gy_channel_secure(end->channel, end->key, end->flags, end->timeout_ms, end->err, sizeof(end->err));
	end->took_ns = now_ns() - began;
	if (end->result) {
		gy_channel_destroy(end->channel);
		end->channel = NULL;
	}
	return NULL;
}

struct ends {
	struct end client;
	struct end server;
};

static void connect_ends(struct ends *ends)
{
	CHECK(!gy_channel_connect("127.0.0.1", (uint32_t)gy_listener_port(listener), SOON_MS, &ends->client.channel));
	CHECK(!gy_listener_accept(listener, SOON_MS, &ends->server.channel));
}

static struct ends shake(const uint8_t *client_key, uint32_t client_tls, const uint8_t *server_key, uint32_t server_tls)
{
	struct ends ends = {
		.client = { .key = client_key, .flags = client_tls, .timeout_ms = SOON_MS },
		.server = { .key = server_key, .flags = server_tls | GY_CHANNEL_SERVER, .timeout_ms = SOON_MS },
	};
	pthread_t thread;

	connect_ends(&ends);
	CHECK(!thread_start(&thread, "server", secure_end, &ends.server));
	secure_end(&ends.client);
	pthread_join(thread, NULL);
	return ends;
}

static struct ends secured(uint32_t tls)
{
	struct ends ends = shake(right_key, tls, right_key, tls);

	CHECK_EQUAL(ends.client.result, 0);
	CHECK_EQUAL(ends.server.result, 0);
	return ends;
}

static void destroy_ends(struct ends *ends)
{
	gy_channel_destroy(ends->client.channel);
	gy_channel_destroy(ends->server.channel);
}

static void wrong_keys(uint32_t tls)
{
	struct ends ends = shake(wrong_key, tls, right_key, tls);

	CHECK_EQUAL(ends.server.result, -EACCES);
	CHECK_WORDS(ends.server.err, "does not hold this ticket's key");
	CHECK_EQUAL(ends.client.result, -EACCES);
	CHECK_WORDS(ends.client.err, "does not hold this ticket's key");
}

static void mixed(void)
{
	struct ends ends = shake(right_key, GY_CHANNEL_TLS, right_key, 0);

	CHECK_EQUAL(ends.server.result, -EPROTO);
	CHECK_WORDS(ends.server.err, "this end was started with --tls off and the peer with --tls on");
	CHECK(ends.client.result == -ECONNABORTED || ends.client.result == -EPROTO);
	ends = shake(right_key, 0, right_key, GY_CHANNEL_TLS);
	CHECK_EQUAL(ends.server.result, -EPROTO);
	CHECK_WORDS(ends.server.err, "this end was started with --tls on and the peer with --tls off");
	CHECK(ends.client.result == -ECONNABORTED || ends.client.result == -EPROTO);
	CHECK_EQUAL(gy_channel_secure(NULL, right_key, 4, 0, NULL, 0), -EINVAL);
}

/* ---- a bare socket against a channel ---- */

static int dial(void)
{
	struct sockaddr_in to = {
		.sin_family = AF_INET,
		.sin_port = htons((uint16_t)gy_listener_port(listener)),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	CHECK(fd >= 0 && !connect(fd, (struct sockaddr *)&to, sizeof(to)));
	return fd;
}

static void put(int fd, const void *buf, size_t len)
{
	CHECK_EQUAL(send(fd, buf, len, MSG_NOSIGNAL), len);
}

static void get(int fd, void *buf, size_t len)
{
	CHECK_EQUAL(recv(fd, buf, len, MSG_WAITALL), len);
}

/* The accepting end against the bytes that @say sends; then the peer stays silent or, with @hang_up, closes. */
static struct end accept_from(const void *bytes, size_t len, uint32_t tls, uint32_t timeout_ms, bool hang_up)
{
	struct end end = { .key = right_key, .flags = GY_CHANNEL_SERVER | tls, .timeout_ms = timeout_ms };
	int fd = dial();
	pthread_t thread;

	CHECK(!gy_listener_accept(listener, SOON_MS, &end.channel));
	CHECK(!thread_start(&thread, "server", secure_end, &end));
	if (len)
		put(fd, bytes, len);
	if (hang_up)
		CHECK(!shutdown(fd, SHUT_WR));
	pthread_join(thread, NULL);
	close(fd);
	CHECK(end.result);
	return end;
}

static void expect(struct end end, int result, const char *words)
{
	CHECK_EQUAL(end.result, result);
	CHECK_WORDS(end.err, words);
	CHECK(result == -ETIMEDOUT || end.took_ns < PROMPT_NS);
}

/* A TLS record that holds half of a ClientHello. */
static const uint8_t half_hello[] = { 0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3, 7, 7, 7 };

static void strangers(void)
{
	static const char http[] = "GET / HTTP/1.1\r\nHost: gyges\r\nAccept: text/plain\r\n\r\n";
	static const char ssh[] = "SSH-2.0-OpenSSH_9.2\r\n";
	static const char *stranger = "does not speak the Gyges protocol";
	uint8_t junk[256];
	uint64_t seed = 5;

	for (uint32_t tls = 0; tls <= GY_CHANNEL_TLS; tls += GY_CHANNEL_TLS) {
		expect(accept_from(ssh, sizeof(ssh) - 1, tls, SOON_MS, false), -EPROTO, stranger);
		for (int round = 0; round < 40; round++) {
			for (size_t i = 0; i < sizeof(junk); i++)
				junk[i] = (uint8_t)random_next(&seed);
			if (junk[0] == 'G' || junk[0] == 0x16)
				junk[0] = 0;
			expect(accept_from(junk, sizeof(junk), tls, SOON_MS, false), -EPROTO, stranger);
		}
	}
	/* The first byte is right and nothing else is. */
	expect(accept_from(http, sizeof(http) - 1, 0, SOON_MS, false), -EPROTO, stranger);
	for (int round = 0; round < 40; round++) {
		for (size_t i = 0; i < sizeof(junk); i++)
			junk[i] = (uint8_t)random_next(&seed);
		junk[0] = 0x16;
		/* So many bytes that a length among them is never waited for. */
		junk[3] = 0;
		expect(accept_from(junk, sizeof(junk), GY_CHANNEL_TLS, SOON_MS, true), -EPROTO, stranger);
	}
}

static void silence(void)
{
	static const uint8_t half_preamble[20] = "GYGESP01";
	static const char *in_time = "in time", *closed = "closed the connection during the handshake";

	for (uint32_t tls = 0; tls <= GY_CHANNEL_TLS; tls += GY_CHANNEL_TLS) {
		struct end end = accept_from(NULL, 0, tls, 200, false);

		CHECK_EQUAL(end.result, -ETIMEDOUT);
		CHECK(end.took_ns >= 200 * NS_PER_MS && end.took_ns < PROMPT_NS);
		expect(accept_from(NULL, 0, tls, SOON_MS, true), -ECONNABORTED, "sent nothing");
	}
	expect(accept_from(half_preamble, 20, 0, 200, false), -ETIMEDOUT, in_time);
	expect(accept_from(half_preamble, 20, 0, SOON_MS, true), -ECONNABORTED, closed);
	expect(accept_from(half_hello, sizeof(half_hello), GY_CHANNEL_TLS, 200, false), -ETIMEDOUT, in_time);
	/* A cut link says nothing of the peer's key. */
	expect(accept_from(half_hello, sizeof(half_hello), GY_CHANNEL_TLS, SOON_MS, true), -ECONNABORTED, closed);
}

/* The connecting end against a bare socket that takes what comes and says nothing, or hangs up. */
static struct end connect_to_mute(uint32_t tls, uint32_t timeout_ms, bool hang_up)
{
	struct end end = { .key = right_key, .flags = tls, .timeout_ms = timeout_ms };
	struct gy_channel *accepted;
	pthread_t thread;
	char first;

	CHECK(!gy_channel_connect("127.0.0.1", (uint32_t)gy_listener_port(listener), SOON_MS, &end.channel));
	CHECK(!gy_listener_accept(listener, SOON_MS, &accepted));
	CHECK(!thread_start(&thread, "client", secure_end, &end));
	CHECK(!gy_fd_wait(accepted->fd, POLLIN, deadline_after_ms(SOON_MS)));
	CHECK_EQUAL(recv(accepted->fd, &first, 1, 0), 1);
	CHECK_EQUAL(first, tls ? 0x16 : 'G');
	if (hang_up)
		gy_channel_shutdown(accepted);
	pthread_join(thread, NULL);
	gy_channel_destroy(accepted);
	return end;
}

static void mute_server(void)
{
	for (uint32_t tls = 0; tls <= GY_CHANNEL_TLS; tls += GY_CHANNEL_TLS) {
		expect(connect_to_mute(tls, 200, false), -ETIMEDOUT, "in time");
		expect(connect_to_mute(tls, SOON_MS, true), -ECONNABORTED, "closed the connection");
	}
}

/* ---- plain mode: proofs that are not the peer's own ---- */

/* Between two honest ends, passing on what each says and keeping what the connecting one said. */
static void listen_in(uint8_t said[PLAIN_PREAMBLE + PLAIN_PROOF])
{
	struct end server = { .key = right_key, .flags = GY_CHANNEL_SERVER, .timeout_ms = SOON_MS };
	struct end client = { .key = right_key, .timeout_ms = SOON_MS };
	struct gy_channel *from_client;
	uint8_t answer[PLAIN_PREAMBLE];
	pthread_t thread[2];
	int to_server;

	CHECK(!gy_channel_connect("127.0.0.1", (uint32_t)gy_listener_port(listener), SOON_MS, &client.channel));
	CHECK(!gy_listener_accept(listener, SOON_MS, &from_client));
	to_server = dial();
	CHECK(!gy_listener_accept(listener, SOON_MS, &server.channel));
	CHECK(!thread_start(&thread[0], "server", secure_end, &server));
	CHECK(!thread_start(&thread[1], "client", secure_end, &client));
	CHECK(!gy_channel_read_all(from_client, said, PLAIN_PREAMBLE, deadline_after_ms(SOON_MS)));
	put(to_server, said, PLAIN_PREAMBLE);
	get(to_server, answer, PLAIN_PREAMBLE);
	CHECK(!gy_channel_write_all(from_client, answer, PLAIN_PREAMBLE, SOON_MS));
	CHECK(!gy_channel_read_all(from_client, said + PLAIN_PREAMBLE, PLAIN_PROOF, deadline_after_ms(SOON_MS)));
	put(to_server, said + PLAIN_PREAMBLE, PLAIN_PROOF);
	get(to_server, answer, PLAIN_PROOF);
	CHECK(!gy_channel_write_all(from_client, answer, PLAIN_PROOF, SOON_MS));
	for (int i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	CHECK(!server.result && !client.result);
	gy_channel_destroy(server.channel);
	gy_channel_destroy(client.channel);
	gy_channel_destroy(from_client);
	close(to_server);
}

/* The accepting end in plain mode; the peer sends @preamble, reads the answer into @answer, then sends @proof. */
static struct end prove(const uint8_t *preamble, uint8_t *answer, const uint8_t *proof)
{
	struct end end = { .key = right_key, .flags = GY_CHANNEL_SERVER, .timeout_ms = SOON_MS };
	pthread_t thread;
	int fd = dial();
	char more;

	CHECK(!gy_listener_accept(listener, SOON_MS, &end.channel));
	CHECK(!thread_start(&thread, "server", secure_end, &end));
	put(fd, preamble, PLAIN_PREAMBLE);
	get(fd, answer, PLAIN_PREAMBLE);
	put(fd, proof, PLAIN_PROOF);
	pthread_join(thread, NULL);
	/* It is not told what the proof would have been. */
	CHECK(recv(fd, &more, 1, 0) <= 0);
	close(fd);
	return end;
}

static void forged_proofs(void)
{
	uint8_t said[PLAIN_PREAMBLE + PLAIN_PROOF], answer[PLAIN_PREAMBLE], proof[PLAIN_PROOF] = { 9 };
	struct end end = { .key = right_key, .timeout_ms = SOON_MS };
	struct gy_channel *accepted;
	pthread_t thread;

	listen_in(said);
	expect(prove(said, answer, said + PLAIN_PREAMBLE), -EACCES, "does not hold");
	expect(prove(said, answer, proof), -EACCES, "does not hold");
	/* An impostor that accepts, and sends back to the connecting end its own preamble and its own proof. */
	CHECK(!gy_channel_connect("127.0.0.1", (uint32_t)gy_listener_port(listener), SOON_MS, &end.channel));
	CHECK(!gy_listener_accept(listener, SOON_MS, &accepted));
	CHECK(!thread_start(&thread, "client", secure_end, &end));
	CHECK(!gy_channel_read_all(accepted, answer, PLAIN_PREAMBLE, deadline_after_ms(SOON_MS)));
	CHECK(!gy_channel_write_all(accepted, answer, PLAIN_PREAMBLE, SOON_MS));
	CHECK(!gy_channel_read_all(accepted, proof, PLAIN_PROOF, deadline_after_ms(SOON_MS)));
	CHECK(!gy_channel_write_all(accepted, proof, PLAIN_PROOF, SOON_MS));
	pthread_join(thread, NULL);
	gy_channel_destroy(accepted);
	expect(end, -EACCES, "does not hold");
}

/* ---- TLS: an impostor with a certificate instead of the key ---- */

static EVP_PKEY *certify(X509 **out)
{
	EVP_PKEY *pkey = EVP_EC_gen("P-256");
	X509 *cert = X509_new();

	CHECK(pkey && cert);
	CHECK(X509_set_version(cert, 2) && X509_set_pubkey(cert, pkey));
	CHECK(ASN1_INTEGER_set(X509_get_serialNumber(cert), 1));
	CHECK(X509_gmtime_adj(X509_getm_notBefore(cert), 0) && X509_gmtime_adj(X509_getm_notAfter(cert), 3600));
	CHECK(X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC, (const uint8_t *)"gyges", -1,
					 -1, 0));
	CHECK(X509_set_issuer_name(cert, X509_get_subject_name(cert)) && X509_sign(cert, pkey, EVP_sha256()));
	*out = cert;
	return pkey;
}

/* Without the key it cannot take up the session that is offered, so it offers a certificate. */
static void certificate_impostor(void)
{
	struct end end = { .key = right_key, .flags = GY_CHANNEL_TLS, .timeout_ms = SOON_MS };
	SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
	struct gy_channel *accepted;
	EVP_PKEY *pkey;
	pthread_t thread;
	X509 *cert;
	SSL *ssl;

	CHECK(ctx);
	pkey = certify(&cert);
	CHECK(SSL_CTX_use_certificate(ctx, cert) == 1 && SSL_CTX_use_PrivateKey(ctx, pkey) == 1);
	CHECK(!gy_channel_connect("127.0.0.1", (uint32_t)gy_listener_port(listener), SOON_MS, &end.channel));
	CHECK(!gy_listener_accept(listener, SOON_MS, &accepted));
	CHECK(!fcntl(accepted->fd, F_SETFL, 0));
	ssl = SSL_new(ctx);
	CHECK(ssl && SSL_set_fd(ssl, accepted->fd));
	CHECK(!thread_start(&thread, "client", secure_end, &end));
	SSL_accept(ssl);
	pthread_join(thread, NULL);
	gy_channel_destroy(end.channel);
	SSL_free(ssl);
	SSL_CTX_free(ctx);
	X509_free(cert);
	EVP_PKEY_free(pkey);
	gy_channel_destroy(accepted);
	expect(end, -EACCES, "does not hold");
}

/* ---- frames ---- */

#define BIG (5u << 20)
#define STUCK_BYTES (20u << 20)	/* more than the sockets of both ends hold */

static void fill(uint8_t *buf, uint64_t len, uint64_t seed)
{
	for (uint64_t i = 0; i < len; i++)
		buf[i] = (uint8_t)((i * 31 + seed) ^ i >> 11);
}

static bool is_filled(const uint8_t *buf, uint64_t len, uint64_t seed)
{
	for (uint64_t i = 0; i < len; i++) {
		if (buf[i] != (uint8_t)((i * 31 + seed) ^ i >> 11))
			return false;
	}
	return true;
}

static void frame_sizes_are(const uint8_t *frame, uint32_t text, uint32_t payload)
{
	uint32_t sizes[2];

	memcpy(sizes, frame, sizeof(sizes));
	CHECK_EQUAL(sizes[0], text);
	CHECK_EQUAL(sizes[1], payload);
}

#define EXCHANGES 24u

/* Frames of the same seeded sizes are sent one way and received the other, from two threads at each end. */
struct exchange {
	struct gy_channel *channel;
	uint64_t seed;
};

static uint32_t frame_bytes(uint64_t *seed, uint32_t i)
{
	return i == 5 ? BIG : (uint32_t)random_below(seed, i % 3 ? 300 : 300000);
}

static void *send_frames(void *arg)
{
	struct exchange *exchange = arg;
	uint64_t seed = exchange->seed;
	uint8_t *buf = malloc(BIG);

	CHECK(buf);
	for (uint32_t i = 0; i < EXCHANGES; i++) {
		uint32_t payload = frame_bytes(&seed, i), text = (uint32_t)random_below(&seed, 200);
		uint8_t words[200];

		fill(buf, payload, i);
		fill(words, text, i + 1);
		CHECK_EQUAL(gy_channel_send_frame(exchange->channel, words, text, buf, payload, 4 * SOON_MS), 0);
	}
	free(buf);
	return NULL;
}

static void *receive_frames(void *arg)
{
	struct exchange *exchange = arg;
	uint64_t seed = exchange->seed;
	uint8_t *buf = malloc(BIG + 300);

	CHECK(buf);
	for (uint32_t i = 0; i < EXCHANGES; i++) {
		uint32_t payload = frame_bytes(&seed, i), text = (uint32_t)random_below(&seed, 200);
		int64_t n;

		do {
			n = gy_channel_recv_frame(exchange->channel, buf, BIG + 300, 20);
		} while (n == -ETIMEDOUT);
		CHECK_EQUAL(n, 8 + text + payload);
		frame_sizes_are(buf, text, payload);
		CHECK(is_filled(buf + 8, text, i + 1) && is_filled(buf + 8 + text, payload, i));
	}
	free(buf);
	return NULL;
}

static void both_ways(uint32_t tls)
{
	struct ends ends = secured(tls);
	struct exchange there = { ends.client.channel, 11 }, from_there = { ends.server.channel, 11 };
	struct exchange back = { ends.server.channel, 12 }, from_back = { ends.client.channel, 12 };
	pthread_t thread[4];

	CHECK(!thread_start(&thread[0], "send", send_frames, &there));
	CHECK(!thread_start(&thread[1], "receive", receive_frames, &from_there));
	CHECK(!thread_start(&thread[2], "send", send_frames, &back));
	CHECK(!thread_start(&thread[3], "receive", receive_frames, &from_back));
	for (int i = 0; i < 4; i++)
		pthread_join(thread[i], NULL);
	destroy_ends(&ends);
}

static void small_frames(uint32_t tls)
{
	struct ends ends = secured(tls);
	uint8_t buf[64];

	CHECK_EQUAL(gy_channel_recv_frame(ends.server.channel, buf, sizeof(buf), 0), -ETIMEDOUT);
	CHECK_EQUAL(gy_channel_recv_frame(ends.server.channel, buf, 7, 0), -EINVAL);
	CHECK_EQUAL(gy_channel_send_frame(ends.client.channel, NULL, 0, NULL, 0, SOON_MS), 0);
	CHECK_EQUAL(gy_channel_recv_frame(ends.server.channel, buf, 8, SOON_MS), 8);
	frame_sizes_are(buf, 0, 0);
	CHECK_EQUAL(gy_channel_send_frame(ends.client.channel, (const uint8_t *)"{}", 2, NULL, 0, SOON_MS), 0);
	CHECK_EQUAL(gy_channel_send_frame(ends.client.channel, NULL, 0, (const uint8_t *)"x", 1, SOON_MS), 0);
	/* Just as large as the buffer; two frames that came together stay two. */
	CHECK_EQUAL(gy_channel_recv_frame(ends.server.channel, buf, 10, SOON_MS), 10);
	CHECK(!memcmp(buf + 8, "{}", 2));
	CHECK_EQUAL(gy_channel_recv_frame(ends.server.channel, buf, 9, SOON_MS), 9);
	/* One byte too large ends the channel at both ends. */
	CHECK_EQUAL(gy_channel_send_frame(ends.client.channel, (const uint8_t *)"{}", 2, NULL, 0, SOON_MS), 0);
	CHECK_EQUAL(gy_channel_recv_frame(ends.server.channel, buf, 9, SOON_MS), -EMSGSIZE);
	CHECK_EQUAL(gy_channel_recv_frame(ends.server.channel, buf, 64, SOON_MS), -ECONNABORTED);
	CHECK_EQUAL(gy_channel_send_frame(ends.server.channel, (const uint8_t *)"{}", 2, NULL, 0, SOON_MS), -ECONNABORTED);
	CHECK_EQUAL(gy_channel_recv_frame(ends.client.channel, buf, 64, SOON_MS), -ECONNABORTED);
	destroy_ends(&ends);
}

/* A frame that comes byte by byte, over many deadlines; then one that says it is larger than memory. */
static void partial_frames(uint32_t tls)
{
	static const uint32_t huge[2] = { UINT32_MAX, UINT32_MAX };
	struct ends ends = secured(tls);
	uint8_t frame[8 + 50], buf[64];
	uint32_t sizes[2] = { 20, 30 };

	memcpy(frame, sizes, 8);
	fill(frame + 8, 50, 3);
	for (uint64_t i = 0; i < sizeof(frame); i++) {
		CHECK_EQUAL(gy_channel_recv_frame(ends.server.channel, buf, sizeof(buf), i % 8 == 0), -ETIMEDOUT);
		CHECK(!gy_channel_write_all(ends.client.channel, frame + i, 1, SOON_MS));
	}
	CHECK_EQUAL(gy_channel_recv_frame(ends.server.channel, buf, sizeof(buf), SOON_MS), 58);
	CHECK(!memcmp(buf, frame, sizeof(frame)));
	CHECK(!gy_channel_write_all(ends.client.channel, huge, sizeof(huge), SOON_MS));
	CHECK_EQUAL(gy_channel_recv_frame(ends.server.channel, buf, sizeof(buf), SOON_MS), -EMSGSIZE);
	destroy_ends(&ends);
}

static void cut_frames(uint32_t tls)
{
	uint32_t sizes[2] = { 20, 30 };
	uint8_t buf[64];

	for (uint64_t sent = 0; sent <= 8; sent += 4) {
		struct ends ends = secured(tls);

		if (sent)
			CHECK(!gy_channel_write_all(ends.client.channel, sizes, sent, SOON_MS));
		gy_channel_destroy(ends.client.channel);
		ends.client.channel = NULL;
		CHECK_EQUAL(gy_channel_recv_frame(ends.server.channel, buf, sizeof(buf), SOON_MS), -ECONNABORTED);
		CHECK_EQUAL(gy_channel_recv_frame(ends.server.channel, buf, sizeof(buf), SOON_MS), -ECONNABORTED);
		destroy_ends(&ends);
	}
}

/* ---- wake-ups ---- */

struct blocked {
	struct gy_channel *channel;
	int64_t result;
	_Atomic(bool) done;
};

static void *block_in_receive(void *arg)
{
	struct blocked *blocked = arg;
	uint8_t buf[64];

	blocked->result = gy_channel_recv_frame(blocked->channel, buf, sizeof(buf), 60000);
	atomic_store(&blocked->done, true);
	return NULL;
}

/* The peer does not read. */
static void *block_in_send(void *arg)
{
	struct blocked *blocked = arg;
	uint64_t bytes = STUCK_BYTES;
	uint8_t *buf = calloc(1, bytes);

	CHECK(buf);
	blocked->result = gy_channel_send_frame(blocked->channel, NULL, 0, buf, (uint32_t)bytes, 60000);
	atomic_store(&blocked->done, true);
	free(buf);
	return NULL;
}

static void shutdown_wakes(uint32_t tls)
{
	struct ends ends = secured(tls);
	struct blocked receive = { .channel = ends.client.channel }, send = { .channel = ends.client.channel };
	pthread_t thread[2];
	uint64_t began;

	CHECK(!thread_start(&thread[0], "receive", block_in_receive, &receive));
	CHECK(!thread_start(&thread[1], "send", block_in_send, &send));
	nap_ms(100);
	CHECK(!atomic_load(&receive.done) && !atomic_load(&send.done));
	began = now_ns();
	gy_channel_shutdown(ends.client.channel);
	for (int i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	CHECK(now_ns() - began < PROMPT_NS);
	CHECK_EQUAL(receive.result, -ECONNABORTED);
	CHECK_EQUAL(send.result, -ECONNABORTED);
	destroy_ends(&ends);
}

/* A frame that is cut by its deadline ends the channel, also for a thread that receives at this moment. */
static void send_deadline(uint32_t tls)
{
	struct ends ends = secured(tls);
	struct blocked receive = { .channel = ends.client.channel };
	uint64_t bytes = STUCK_BYTES;
	uint8_t *buf = calloc(1, bytes);
	pthread_t thread;

	CHECK(buf);
	CHECK(!thread_start(&thread, "receive", block_in_receive, &receive));
	CHECK_EQUAL(gy_channel_send_frame(ends.client.channel, NULL, 0, buf, (uint32_t)bytes, 100), -ETIMEDOUT);
	pthread_join(thread, NULL);
	CHECK_EQUAL(receive.result, -ECONNABORTED);
	CHECK_EQUAL(gy_channel_send_frame(ends.client.channel, NULL, 0, buf, 1, SOON_MS), -ECONNABORTED);
	CHECK_EQUAL(gy_channel_recv_frame(ends.client.channel, buf, bytes, SOON_MS), -ECONNABORTED);
	free(buf);
	destroy_ends(&ends);
}

/* ---- listening ---- */

static void listening(void)
{
	struct gy_listener *second;
	struct gy_channel *channel;

	CHECK_EQUAL(gy_listener_create("127.0.0.1", (uint32_t)gy_listener_port(listener), &second), -EADDRINUSE);
	CHECK_EQUAL(gy_listener_create("127.0.0.1", 65536, &second), -EINVAL);
	CHECK_EQUAL(gy_listener_create("not a host", 0, &second), -ENOENT);
	CHECK_EQUAL(gy_listener_accept(listener, 0, &channel), -ETIMEDOUT);
	CHECK(!gy_listener_create("127.0.0.1", 0, &second));
	CHECK(!gy_channel_connect("127.0.0.1", (uint32_t)gy_listener_port(second), SOON_MS, &channel));
	gy_channel_destroy(channel);
	/* The connection that died in the queue is still one; after it nothing comes. */
	CHECK(!gy_listener_accept(second, SOON_MS, &channel));
	gy_channel_destroy(channel);
	CHECK_EQUAL(gy_listener_accept(second, 10, &channel), -ETIMEDOUT);
	CHECK_EQUAL(gy_channel_connect("127.0.0.1", 70000, 100, &channel), -EINVAL);
	gy_listener_destroy(second);
	gy_listener_destroy(NULL);
	gy_channel_destroy(NULL);
}

int main(void)
{
	/* As in the process that loads the library: TLS writes by plain write(). */
	signal(SIGPIPE, SIG_IGN);
	CHECK(!gy_listener_create("127.0.0.1", 0, &listener));
	listening();
	mixed();
	strangers();
	silence();
	mute_server();
	forged_proofs();
	certificate_impostor();
	for (uint32_t tls = 0; tls <= GY_CHANNEL_TLS; tls += GY_CHANNEL_TLS) {
		wrong_keys(tls);
		small_frames(tls);
		partial_frames(tls);
		cut_frames(tls);
		both_ways(tls);
		shutdown_wakes(tls);
		send_deadline(tls);
	}
	gy_listener_destroy(listener);
	puts("channel_test: passed");
	return 0;
}
