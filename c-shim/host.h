/* SPDX-License-Identifier: Apache-2.0 */
/*
 * host.h - what this host can do, as far as only system calls can tell; conventions as in gyges.h.
 */
#ifndef GY_HOST_H
#define GY_HOST_H

#include "gyges.h"

/* Bits of gy_host_facts.kvm_caps. */
enum gy_host_kvm_cap {
	GY_HOST_KVM_USER_MEMORY = 1u << 0,
	GY_HOST_KVM_IMMEDIATE_EXIT = 1u << 1,
	GY_HOST_KVM_MANUAL_PROTECT = 1u << 2,	/* dirty log with manual protect */
	GY_HOST_KVM_XSAVE2 = 1u << 3,
	GY_HOST_KVM_XCRS = 1u << 4,
	GY_HOST_KVM_VCPU_EVENTS = 1u << 5,
	GY_HOST_KVM_ASYNC_PF = 1u << 6,
	GY_HOST_KVM_ASYNC_PF_INT = 1u << 7,
	GY_HOST_KVM_IRQCHIP = 1u << 8,
};

#define GY_HOST_UFFD_SYSCALL 1u	/* userfaultfd(2) */
#define GY_HOST_UFFD_DEVICE 2u	/* /dev/userfaultfd */

struct gy_host_facts {
	int32_t kvm_error;		/* 0, or -errno of opening /dev/kvm or making a machine */
	uint32_t kvm_api;		/* KVM_GET_API_VERSION */
	uint64_t kvm_caps;		/* enum gy_host_kvm_cap */
	uint32_t kvm_max_vcpus;
	int32_t uffd_error;		/* 0, or -errno of proving that a missing page can be caught and placed */
	uint64_t uffd_features;		/* UFFDIO_API's answer */
	uint32_t uffd_way;		/* GY_HOST_UFFD_*, 0 when neither works */
	int32_t unprivileged_uffd;	/* vm.unprivileged_userfaultfd, or -errno */
	int32_t memfd_error;		/* 0 or -errno */
	uint32_t tls13;			/* 1 when OpenSSL can speak TLS 1.3 */
	uint64_t openssl_version;	/* OpenSSL_version_num() */
	uint64_t memlock_soft_bytes;	/* UINT64_MAX: no limit */
	uint64_t memlock_hard_bytes;
};

/* Looks. Changes nothing, takes milliseconds, 0 always. Any thread. */
GY_EXPORT int gy_host_facts(struct gy_host_facts *facts);

/* 1: some bytes written to @fd now, a page to a pipe, are taken at once, or refused; 0: they would wait for a reader. */
GY_EXPORT int gy_host_takes_output(int fd);

/*
 * Appends the process's stdout and stderr to the file @path from now on (made with mode 0600).
 * Errors: those of open(2) and dup3(2).
 */
GY_EXPORT int gy_host_redirect_output(const char *path);

/* The first @cap bytes of a file of /proc, /sys or /dev, which Deno keeps closed. Bytes; errors of open(2) and read(2). */
GY_EXPORT int64_t gy_host_read(const char *path, void *buf, uint64_t cap);

/* The names in a directory, each ended by NUL, "." and ".." apart. Bytes; -ENOSPC; errors of opendir(3). */
GY_EXPORT int64_t gy_host_list(const char *path, char *names, uint64_t cap);

#endif
