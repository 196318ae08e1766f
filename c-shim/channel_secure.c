// SPDX-License-Identifier: Apache-2.0
/*
 * channel_secure.c - both ends prove that they hold the ticket's key.
 *
 * With TLS: TLS 1.3 with the key as external pre-shared key and (EC)DHE, so a key that leaks later opens no
 * recorded traffic. There are no certificates: an end without the key gets an alert, never a session.
 *
 * Without: each end sends a preamble { "GYGESP01", 32 random bytes }, then HMAC-SHA256(key, role, both nonces),
 * the connecting end first. This authenticates the ends and nothing else; it is for trusted links.
 */
#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "channel.h"
#include "clock.h"

#define IDENTITY "gyges-1"
#define NONCE_BYTES 32
#define PROOF_BYTES 32
#define TLS_HANDSHAKE_RECORD 0x16

static const uint8_t plain_magic[8] = "GYGESP01";
static const uint8_t tls13_aes_128_gcm_sha256[2] = { 0x13, 0x01 };

struct preamble {
	uint8_t magic[8];
	uint8_t nonce[NONCE_BYTES];
};

/* Where SSL_CTX and SSL keep the key; set once at the first use. */
static int key_index = -1;
static pthread_once_t key_index_once = PTHREAD_ONCE_INIT;

static void make_key_index(void)
{
	key_index = SSL_get_ex_new_index(0, NULL, NULL, NULL, NULL);
}

static int say(char *err, uint32_t err_bytes, int ret, const char *text)
{
	if (err && err_bytes)
		snprintf(err, err_bytes, "%s", text);
	return ret;
}

static SSL_SESSION *psk_session(SSL *ssl)
{
	const uint8_t *key = SSL_get_ex_data(ssl, key_index);
	const SSL_CIPHER *cipher = SSL_CIPHER_find(ssl, tls13_aes_128_gcm_sha256);
	SSL_SESSION *session = SSL_SESSION_new();

	if (session && cipher && SSL_SESSION_set1_master_key(session, key, GY_KEY_BYTES) &&
	    SSL_SESSION_set_cipher(session, cipher) && SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION))
		return session;
	SSL_SESSION_free(session);
	return NULL;
}

static int client_psk(SSL *ssl, const EVP_MD *md, const unsigned char **id, size_t *id_len, SSL_SESSION **session)
{
	*session = NULL;
	*id = NULL;
	*id_len = 0;
	/* Asked again with the hash after a HelloRetryRequest: ours is SHA-256 or nothing. */
	if (md && !EVP_MD_is_a(md, "SHA256"))
		return 1;
	*session = psk_session(ssl);
	*id = (const unsigned char *)IDENTITY;
	*id_len = strlen(IDENTITY);
	return *session != NULL;
}

static int server_psk(SSL *ssl, const unsigned char *id, size_t id_len, SSL_SESSION **session)
{
	*session = NULL;
	if (id_len == strlen(IDENTITY) && !memcmp(id, IDENTITY, id_len))
		*session = psk_session(ssl);
	return 1;
}

static SSL_CTX *tls_context(bool server)
{
	SSL_CTX *ctx = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());

	if (!ctx)
		return NULL;
	if (!SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) ||
	    !SSL_CTX_set_ciphersuites(ctx, "TLS_AES_128_GCM_SHA256") || !SSL_CTX_set_num_tickets(ctx, 0)) {
		SSL_CTX_free(ctx);
		return NULL;
	}
	SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
	SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
	/* Reads of a header and its page in one system call. */
	SSL_CTX_set_read_ahead(ctx, 1);
	if (server)
		SSL_CTX_set_psk_find_session_callback(ctx, server_psk);
	else
		SSL_CTX_set_psk_use_session_callback(ctx, client_psk);
	return ctx;
}

/* What the failure of a handshake says of the peer, by the first error that OpenSSL noted. */
static int tls_refusal(void)
{
	int reason = ERR_GET_REASON(ERR_peek_error());

	/* A cut link says nothing of the key. */
	if (reason == SSL_R_UNEXPECTED_EOF_WHILE_READING)
		return -ECONNABORTED;
	/* The key failed here, or at the peer, which tells it by an alert. */
	if (reason == SSL_R_BINDER_DOES_NOT_VERIFY || reason >= SSL_AD_REASON_OFFSET)
		return -EACCES;
	return -EPROTO;
}

static int tls_shake(struct gy_channel *channel, bool server, uint64_t deadline_ns)
{
	for (;;) {
		int ok, why, ret;

		ERR_clear_error();
		ok = server ? SSL_accept(channel->ssl) : SSL_connect(channel->ssl);
		if (ok == 1)
			return 0;
		why = SSL_get_error(channel->ssl, ok);
		if (why == SSL_ERROR_SSL)
			return tls_refusal();
		if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE)
			return -ECONNABORTED;
		ret = gy_fd_wait(channel->fd, why == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT, deadline_ns);
		if (ret)
			return ret;
	}
}

static int secure_tls(struct gy_channel *channel, const uint8_t *key, bool server, uint64_t deadline_ns)
{
	SSL_CTX *ctx = tls_context(server);
	int ret = -ENOMEM;

	if (!ctx)
		return ret;
	channel->ssl = SSL_new(ctx);
	SSL_CTX_free(ctx);
	if (!channel->ssl)
		return ret;
	if (SSL_set_fd(channel->ssl, channel->fd) && SSL_set_ex_data(channel->ssl, key_index, (void *)key))
		ret = tls_shake(channel, server, deadline_ns);
	/* An end without the key may offer a certificate instead, and OpenSSL as a client would take any. */
	if (!ret && !SSL_session_reused(channel->ssl))
		ret = -EACCES;
	SSL_set_ex_data(channel->ssl, key_index, NULL);
	if (ret) {
		SSL_free(channel->ssl);
		channel->ssl = NULL;
	}
	return ret;
}

static int proof(const uint8_t *key, uint8_t role, const uint8_t *client, const uint8_t *server,
		 uint8_t out[PROOF_BYTES])
{
	uint8_t text[sizeof(plain_magic) + 1 + 2 * NONCE_BYTES];
	unsigned int len = PROOF_BYTES;

	memcpy(text, plain_magic, sizeof(plain_magic));
	text[sizeof(plain_magic)] = role;
	memcpy(text + sizeof(plain_magic) + 1, client, NONCE_BYTES);
	memcpy(text + sizeof(plain_magic) + 1 + NONCE_BYTES, server, NONCE_BYTES);
	return HMAC(EVP_sha256(), key, GY_KEY_BYTES, text, sizeof(text), out, &len) ? 0 : -EIO;
}

static int swap_proofs(struct gy_channel *channel, bool server, const uint8_t *mine, const uint8_t *theirs,
		       uint64_t deadline_ns)
{
	uint8_t got[PROOF_BYTES];
	int ret = 0;

	/* The end that accepted shows its proof only to one that has shown its own: it is no oracle for strangers. */
	if (!server)
		ret = gy_channel_write_by(channel, mine, PROOF_BYTES, deadline_ns);
	if (!ret)
		ret = gy_channel_read_all(channel, got, sizeof(got), deadline_ns);
	if (ret)
		return ret == -ECONNABORTED && !server ? -EACCES : ret;
	if (CRYPTO_memcmp(got, theirs, sizeof(got)))
		return -EACCES;
	return server ? gy_channel_write_by(channel, mine, PROOF_BYTES, deadline_ns) : 0;
}

static int secure_plain(struct gy_channel *channel, const uint8_t *key, bool server, uint64_t deadline_ns)
{
	uint8_t proofs[2][PROOF_BYTES];
	struct preamble mine, theirs;
	const uint8_t *client_nonce = server ? theirs.nonce : mine.nonce;
	const uint8_t *server_nonce = server ? mine.nonce : theirs.nonce;
	int ret;

	memcpy(mine.magic, plain_magic, sizeof(mine.magic));
	if (RAND_bytes(mine.nonce, NONCE_BYTES) != 1)
		return -EIO;
	ret = gy_channel_write_by(channel, &mine, sizeof(mine), deadline_ns);
	if (!ret)
		ret = gy_channel_read_all(channel, &theirs, sizeof(theirs), deadline_ns);
	if (!ret && memcmp(theirs.magic, plain_magic, sizeof(plain_magic)))
		ret = -EPROTO;
	if (!ret)
		ret = proof(key, 'C', client_nonce, server_nonce, proofs[0]);
	if (!ret)
		ret = proof(key, 'S', client_nonce, server_nonce, proofs[1]);
	if (!ret)
		ret = swap_proofs(channel, server, proofs[server], proofs[!server], deadline_ns);
	return ret;
}

/* What the connecting end speaks, by its first byte: 1 TLS, 0 plain, else -errno. */
static int peer_speaks_tls(struct gy_channel *channel, uint64_t deadline_ns)
{
	uint8_t first;
	ssize_t n;
	int ret = gy_fd_wait(channel->fd, POLLIN, deadline_ns);

	if (ret)
		return ret;
	n = recv(channel->fd, &first, 1, MSG_PEEK);
	if (n != 1)
		return -ECONNABORTED;
	if (first == TLS_HANDSHAKE_RECORD)
		return 1;
	return first == plain_magic[0] ? 0 : -EPROTO;
}

static int check_dialect(struct gy_channel *channel, bool tls, uint64_t deadline_ns, char *err, uint32_t err_bytes)
{
	int ret = peer_speaks_tls(channel, deadline_ns);

	if (ret == -EPROTO)
		return say(err, err_bytes, ret, "the peer does not speak the Gyges protocol");
	if (ret < 0)
		return say(err, err_bytes, ret, "the peer sent nothing");
	if (ret && !tls)
		return say(err, err_bytes, -EPROTO, "this end was started with --tls off and the peer with --tls on");
	if (!ret && tls)
		return say(err, err_bytes, -EPROTO, "this end was started with --tls on and the peer with --tls off");
	return 0;
}

static int secure(struct gy_channel *channel, const uint8_t *key, uint32_t flags, uint64_t deadline, char *err,
		  uint32_t err_bytes)
{
	bool server = flags & GY_CHANNEL_SERVER;
	bool tls = flags & GY_CHANNEL_TLS;
	int ret = server ? check_dialect(channel, tls, deadline, err, err_bytes) : 0;

	if (ret)
		return ret;
	ret = tls ? secure_tls(channel, key, server, deadline) : secure_plain(channel, key, server, deadline);
	if (ret == -EACCES)
		return say(err, err_bytes, ret, "the peer does not hold this ticket's key");
	if (ret == -EPROTO)
		return say(err, err_bytes, ret, "the peer does not speak the Gyges protocol");
	if (ret == -ETIMEDOUT)
		return say(err, err_bytes, ret, "the peer did not finish the handshake in time");
	if (ret)
		return say(err, err_bytes, ret, "the peer closed the connection during the handshake");
	return 0;
}

int gy_channel_secure(struct gy_channel *channel, const uint8_t *key, uint32_t flags, uint32_t timeout_ms, char *err,
		      uint32_t err_bytes)
{
	int ret;

	if (flags & ~(GY_CHANNEL_SERVER | GY_CHANNEL_TLS))
		return -EINVAL;
	pthread_once(&key_index_once, make_key_index);
	ret = secure(channel, key, flags, deadline_after_ms(timeout_ms), err, err_bytes);
	if (ret) {
		/* What is left is a plain connection to somebody unknown: nothing may be said over it. */
		channel->broken = true;
		gy_channel_shutdown(channel);
	}
	return ret;
}
