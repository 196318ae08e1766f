// SPDX-License-Identifier: Apache-2.0
/*
 * false_source.c - listens by the RDMA connection manager as a source of Gyges does, and may be none.
 *
 *     false_source HOST PAGES SEED DEMAND PREFETCH
 *
 * It has PAGES pages with the stamps of SEED. Says `PORT TABLE`, the table of regions as ram.c takes it, and lives until
 * it is killed. DEMAND and PREFETCH tell what becomes of a destination's connection of that role:
 *
 *     serve       accepted, and its READs are answered
 *     ignore      nothing is ever said to its request
 *     slow        accepted after SLOW_MS, and served
 *     reject      refused
 *     hang-up     accepted, and disconnected once it is established
 *     no-reads    accepted, with no READ at a time allowed
 *
 * What becomes of those that it has accepted, at a signal, and is said then with their number:
 *
 *     SIGUSR1     disconnected
 *     SIGUSR2     the keys of their pages are invalid
 *     SIGHUP      nothing that they send is answered; of that they are told nothing
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/gyges.h>
#include <poll.h>
#include <rdma/rdma_cma.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "stamp.h"

#define MAX_CONNECTIONS 64
#define READS 16
#define SLOW_MS 1800

enum conduct { SERVE, IGNORE, SLOW, REJECT, HANG_UP, NO_READS, CONDUCTS };

static const char *const conducts[CONDUCTS] = {
	[SERVE] = "serve",   [IGNORE] = "ignore",   [SLOW] = "slow",
	[REJECT] = "reject", [HANG_UP] = "hang-up", [NO_READS] = "no-reads",
};

struct source {
	struct rdma_event_channel *channel;
	struct rdma_cm_id *listener;
	struct ibv_pd *pd;
	struct ibv_mr *mr;
	/* By role. */
	enum conduct conduct[GYGES_ROLE_FAREWELL + 1];
	/* Accepted, and not gone yet. */
	struct rdma_cm_id *id[MAX_CONNECTIONS];
	int n;
};

static _Noreturn void fail(const char *what)
{
	perror(what);
	exit(1);
}

static enum conduct conduct_of(const char *name)
{
	for (int i = 0; i < CONDUCTS; i++) {
		if (!strcmp(conducts[i], name))
			return (enum conduct)i;
	}
	fprintf(stderr, "%s: no conduct\n", name);
	exit(2);
}

/* ---- connections ---- */

static void accept_id(struct source *source, struct rdma_cm_id *id, enum conduct conduct)
{
	struct ibv_qp_init_attr attr = {
		.cap = { .max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1 },
		.qp_type = IBV_QPT_RC,
	};
	struct rdma_conn_param param = {
		.responder_resources = conduct == NO_READS ? 0 : READS,
		.rnr_retry_count = 7,
	};

	if (source->n == MAX_CONNECTIONS)
		errno = EUSERS, fail("accept");
	if (rdma_create_qp(id, source->pd, &attr))
		fail("rdma_create_qp");
	if (rdma_accept(id, &param))
		fail("rdma_accept");
	id->context = (void *)&conducts[conduct];
	source->id[source->n++] = id;
}

static void answer(struct source *source, struct rdma_cm_id *id, const struct rdma_conn_param *asked)
{
	const struct gyges_cm_request *request = asked->private_data;
	uint16_t role = request && asked->private_data_len >= sizeof(*request) ? le16toh(request->role) : 0;
	enum conduct conduct = role <= GYGES_ROLE_FAREWELL ? source->conduct[role] : REJECT;

	switch (conduct) {
	case IGNORE:
		break;
	case REJECT:
		rdma_reject(id, NULL, 0);
		rdma_destroy_id(id);
		break;
	case SLOW:
		usleep(SLOW_MS * 1000);
		/* fall through */
	default:
		accept_id(source, id, conduct);
	}
}

/* It is over with @id. One that was never accepted is none of ours: the destination has given up waiting for a word. */
static void drop(struct source *source, struct rdma_cm_id *id)
{
	for (int i = 0; i < source->n; i++) {
		if (source->id[i] != id)
			continue;
		source->id[i] = source->id[--source->n];
		rdma_destroy_qp(id);
		break;
	}
	rdma_destroy_id(id);
}

static void take_event(struct source *source)
{
	struct rdma_cm_event *event;
	struct rdma_cm_id *id;
	enum rdma_cm_event_type type;

	if (rdma_get_cm_event(source->channel, &event))
		fail("rdma_get_cm_event");
	type = event->event;
	id = event->id;
	if (type == RDMA_CM_EVENT_CONNECT_REQUEST)
		answer(source, id, &event->param.conn);
	rdma_ack_cm_event(event);
	switch (type) {
	case RDMA_CM_EVENT_ESTABLISHED:
		if (id->context == &conducts[HANG_UP])
			rdma_disconnect(id);
		break;
	case RDMA_CM_EVENT_DISCONNECTED:
	case RDMA_CM_EVENT_CONNECT_ERROR:
	case RDMA_CM_EVENT_UNREACHABLE:
	case RDMA_CM_EVENT_REJECTED:
		drop(source, id);
		break;
	default:
		break;
	}
}

/* ---- what it does at a signal ---- */

static void hang_up_all(struct source *source)
{
	for (int i = 0; i < source->n; i++)
		rdma_disconnect(source->id[i]);
	printf("hung up %d\n", source->n);
}

static void forget_keys(struct source *source)
{
	errno = ibv_dereg_mr(source->mr);
	if (errno)
		fail("ibv_dereg_mr");
	printf("no keys %d\n", source->n);
}

static void fall_silent(struct source *source)
{
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_RESET };

	for (int i = 0; i < source->n; i++) {
		errno = ibv_modify_qp(source->id[i]->qp, &attr, IBV_QP_STATE);
		if (errno)
			fail("ibv_modify_qp");
	}
	printf("silent %d\n", source->n);
}

static void take_signal(struct source *source, int signals)
{
	struct signalfd_siginfo info;

	if (read(signals, &info, sizeof(info)) != sizeof(info))
		fail("signalfd");
	switch (info.ssi_signo) {
	case SIGUSR1:
		hang_up_all(source);
		break;
	case SIGUSR2:
		forget_keys(source);
		break;
	case SIGHUP:
		fall_silent(source);
		break;
	}
	fflush(stdout);
}

static int open_signals(void)
{
	sigset_t set;
	int signals;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signals = signalfd(-1, &set, SFD_CLOEXEC);
	if (signals < 0)
		fail("signalfd");
	return signals;
}

/* ---- life ---- */

static void listen_at(struct source *source, const char *host)
{
	struct sockaddr_in address = { .sin_family = AF_INET };

	inet_pton(AF_INET, host, &address.sin_addr);
	source->channel = rdma_create_event_channel();
	if (!source->channel || rdma_create_id(source->channel, &source->listener, NULL, RDMA_PS_TCP))
		fail("rdma_create_id");
	if (rdma_bind_addr(source->listener, (struct sockaddr *)&address) || rdma_listen(source->listener, 8))
		fail("rdma_listen");
}

static void offer(struct source *source, uint32_t pages, uint64_t seed)
{
	uint8_t *ram = aligned_alloc(PAGE, pages * PAGE);
	struct gyges_region region = { .remote_addr = (uintptr_t)ram, .pages = pages };

	for (uint64_t page = 0; page < pages; page++)
		fill_page((uint64_t *)(ram + page * PAGE), page, seed);
	source->pd = ibv_alloc_pd(source->listener->verbs);
	source->mr = source->pd ? ibv_reg_mr(source->pd, ram, pages * PAGE, IBV_ACCESS_REMOTE_READ) : NULL;
	if (!source->mr)
		fail("ibv_reg_mr");
	region.rkey = source->mr->rkey;
	printf("%u ", ntohs(rdma_get_src_port(source->listener)));
	for (size_t i = 0; i < sizeof(region); i++)
		printf("%02x", ((uint8_t *)&region)[i]);
	putchar('\n');
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct source source = { 0 };
	int signals = open_signals();

	if (argc != 6)
		return 2;
	source.conduct[0] = REJECT;
	source.conduct[GYGES_ROLE_DEMAND] = conduct_of(argv[4]);
	source.conduct[GYGES_ROLE_PREFETCH] = conduct_of(argv[5]);
	source.conduct[GYGES_ROLE_FAREWELL] = REJECT;
	listen_at(&source, argv[1]);
	offer(&source, (uint32_t)atoi(argv[2]), strtoull(argv[3], NULL, 0));
	for (;;) {
		struct pollfd fds[] = {
			{ .fd = source.channel->fd, .events = POLLIN },
			{ .fd = signals, .events = POLLIN },
		};

		if (poll(fds, 2, -1) < 0)
			fail("poll");
		if (fds[0].revents)
			take_event(&source);
		if (fds[1].revents)
			take_signal(&source, signals);
	}
}
