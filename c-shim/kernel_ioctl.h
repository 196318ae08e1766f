/* SPDX-License-Identifier: Apache-2.0 */
/* kernel_ioctl.h - what both sides of the kernel pager need to speak to gygesfs. */
#ifndef GY_KERNEL_IOCTL_H
#define GY_KERNEL_IOCTL_H

#include <errno.h>
#include <fcntl.h>
#include <linux/gyges.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

/* 0 or -errno. A signal that is not deadly does not end an order half-way: these orders sleep killably. */
static inline int gy_kernel_order(int fd, unsigned long order, void *arg)
{
	return ioctl(fd, order, arg) < 0 ? -errno : 0;
}

/* A descriptor of its own for a RAM file that has no name: poll() on it is about what it has seen. -errno. */
static inline int gy_kernel_reopen(int fd)
{
	char path[32];
	int own;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	own = open(path, O_RDWR | O_CLOEXEC);
	return own < 0 ? -errno : own;
}

/* Fills the address and token of @endpoint; @host in digits. 0 or -EINVAL. */
static inline int gy_kernel_endpoint(struct gyges_endpoint *endpoint, const char *host, uint32_t port,
				     const uint8_t *token)
{
	struct addrinfo hints = { .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM };
	struct addrinfo *found;
	char service[8];

	if (port > UINT16_MAX)
		return -EINVAL;
	snprintf(service, sizeof(service), "%u", port);
	if (getaddrinfo(host, service, &hints, &found))
		return -EINVAL;
	memset(endpoint, 0, sizeof(*endpoint));
	if (found->ai_addrlen <= sizeof(endpoint->addr))
		memcpy(endpoint->addr, found->ai_addr, found->ai_addrlen);
	memcpy(endpoint->token, token, sizeof(endpoint->token));
	freeaddrinfo(found);
	return 0;
}

#endif
