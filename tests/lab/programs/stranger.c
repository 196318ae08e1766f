// SPDX-License-Identifier: Apache-2.0
/*
 * stranger.c - connects to a source by the RDMA connection manager as no destination of Gyges would.
 *
 *     stranger HOST PORT DATA                         once; DATA: hexadecimal private data, may be empty
 *     stranger HOST PORT DATA times N                 connects and disconnects N times
 *     stranger HOST PORT DATA idle                    says `connected` and does nothing until it is killed
 *     stranger HOST PORT DATA read|write ADDR RKEY    one operation of 4096 bytes at ADDR
 *
 * Prints what came of it: connected, refused, or the status of the operation; for times both counts.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <rdma/rdma_cma.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BYTES 4096
#define STEP_MS 5000

struct stranger {
	struct sockaddr_in address;
	uint8_t data[256];
	uint8_t data_len;
	struct rdma_event_channel *channel;
	struct rdma_cm_id *id;
};

static _Noreturn void fail(const char *what)
{
	perror(what);
	exit(1);
}

/* The next event, which is @wanted or a refusal: false. */
static bool await_event(struct stranger *stranger, enum rdma_cm_event_type wanted)
{
	struct rdma_cm_event *event;
	enum rdma_cm_event_type type;

	if (rdma_get_cm_event(stranger->channel, &event))
		fail("rdma_get_cm_event");
	type = event->event;
	rdma_ack_cm_event(event);
	if (type == RDMA_CM_EVENT_REJECTED)
		return false;
	if (type != wanted) {
		fprintf(stderr, "%s\n", rdma_event_str(type));
		exit(1);
	}
	return true;
}

static bool connect_once(struct stranger *stranger)
{
	struct ibv_qp_init_attr attr = {
		.cap = { .max_send_wr = 2, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1 },
		.qp_type = IBV_QPT_RC,
	};
	struct rdma_conn_param param = {
		.private_data = stranger->data,
		.private_data_len = stranger->data_len,
		.initiator_depth = 1,
		.responder_resources = 1,
		.retry_count = 3,
	};

	stranger->channel = rdma_create_event_channel();
	if (!stranger->channel || rdma_create_id(stranger->channel, &stranger->id, NULL, RDMA_PS_TCP))
		fail("rdma_create_id");
	if (rdma_resolve_addr(stranger->id, NULL, (struct sockaddr *)&stranger->address, STEP_MS))
		fail("rdma_resolve_addr");
	await_event(stranger, RDMA_CM_EVENT_ADDR_RESOLVED);
	if (rdma_resolve_route(stranger->id, STEP_MS))
		fail("rdma_resolve_route");
	await_event(stranger, RDMA_CM_EVENT_ROUTE_RESOLVED);
	if (rdma_create_qp(stranger->id, NULL, &attr))
		fail("rdma_create_qp");
	if (rdma_connect(stranger->id, &param))
		fail("rdma_connect");
	return await_event(stranger, RDMA_CM_EVENT_ESTABLISHED);
}

static void leave(struct stranger *stranger)
{
	rdma_disconnect(stranger->id);
	rdma_destroy_qp(stranger->id);
	rdma_destroy_id(stranger->id);
	rdma_destroy_event_channel(stranger->channel);
}

static void operate(struct stranger *stranger, enum ibv_wr_opcode opcode, uint64_t addr, uint32_t rkey)
{
	uint8_t *buffer = aligned_alloc(BYTES, BYTES);
	struct ibv_mr *mr = ibv_reg_mr(stranger->id->pd, memset(buffer, 0xee, BYTES), BYTES, IBV_ACCESS_LOCAL_WRITE);
	struct ibv_sge sge = { .addr = (uintptr_t)buffer, .length = BYTES, .lkey = mr ? mr->lkey : 0 };
	struct ibv_send_wr *bad, wr = {
		.sg_list = &sge,
		.num_sge = 1,
		.opcode = opcode,
		.send_flags = IBV_SEND_SIGNALED,
		.wr.rdma = { .remote_addr = addr, .rkey = rkey },
	};
	struct ibv_wc wc;
	int n;

	if (!mr)
		fail("ibv_reg_mr");
	errno = ibv_post_send(stranger->id->qp, &wr, &bad);
	if (errno)
		fail("ibv_post_send");
	while (!(n = ibv_poll_cq(stranger->id->send_cq, 1, &wc)))
		usleep(1000);
	if (n < 0)
		fail("ibv_poll_cq");
	printf("%s\n", ibv_wc_status_str(wc.status));
	ibv_dereg_mr(mr);
	free(buffer);
}

static void many_times(struct stranger *stranger, int n)
{
	int connected = 0;

	for (int i = 0; i < n; i++) {
		connected += connect_once(stranger);
		leave(stranger);
	}
	printf("connected=%d refused=%d\n", connected, n - connected);
}

int main(int argc, char **argv)
{
	struct stranger stranger = { .address = { .sin_family = AF_INET } };
	const char *what = argc > 4 ? argv[4] : "";

	if (argc < 4 || strlen(argv[3]) / 2 > sizeof(stranger.data))
		return 2;
	inet_pton(AF_INET, argv[1], &stranger.address.sin_addr);
	stranger.address.sin_port = htons((uint16_t)atoi(argv[2]));
	for (; argv[3][2 * stranger.data_len]; stranger.data_len++)
		sscanf(argv[3] + 2 * stranger.data_len, "%2hhx", &stranger.data[stranger.data_len]);
	if (!strcmp(what, "times") && argc > 5) {
		many_times(&stranger, atoi(argv[5]));
		return 0;
	}
	if (!connect_once(&stranger)) {
		puts("refused");
	} else if (argc > 6) {
		operate(&stranger, strcmp(what, "read") ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_READ,
			strtoull(argv[5], NULL, 0), (uint32_t)strtoul(argv[6], NULL, 0));
	} else {
		puts("connected");
		fflush(stdout);
		while (!strcmp(what, "idle"))
			pause();
	}
	leave(&stranger);
	return 0;
}
