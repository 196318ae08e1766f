/* SPDX-License-Identifier: Apache-2.0 */
/*
 * helper.h - what is preloaded into a QEMU where nobody may trace it, and how it is asked.
 *
 * It listens on a unix socket that the process was started with, as HELPER_LISTEN_FD. A connection carries one request and
 * one reply, with which a descriptor may come.
 */
#ifndef GY_HELPER_H
#define GY_HELPER_H

#include <stdint.h>

/* The environment has the socket's path in it, so that it is found by whoever knows the process. */
#define HELPER_VARIABLE "GYGES_FAULTS"
#define HELPER_LISTEN_FD 5
/* The library itself, which has no path that every user could read: open for as long as the process may still exec. */
#define HELPER_IMAGE_FD 6
/* As its mappings have it. */
#define HELPER_IMAGE_NAME "gyges-faults"

enum helper_order {
	HELPER_MAKE = 1,	/* a userfaultfd: its number there, and a copy */
	HELPER_COPY,		/* of one that it has made */
	HELPER_CLOSE,		/* the same */
};

struct helper_request {
	uint32_t order;
	int32_t fd;
};

struct helper_reply {
	int32_t result;		/* descriptor there, 0 once closed, or -errno */
};

#endif
