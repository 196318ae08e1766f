// SPDX-License-Identifier: Apache-2.0
/* host.c - what this host can do. Features are proved by use where that costs nothing, not guessed from versions. */
#include "host.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <openssl/crypto.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef KVM_CAP_XSAVE2
#define KVM_CAP_XSAVE2 208
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

/* Shared with ffi/host.ts, which reads it by offset. */
static_assert(sizeof(struct gy_host_facts) == 72, "struct gy_host_facts");
static_assert(offsetof(struct gy_host_facts, uffd_features) == 24, "uffd_features");
static_assert(offsetof(struct gy_host_facts, openssl_version) == 48, "openssl_version");

static const struct {
	int kvm;
	uint64_t ours;
} caps[] = {
	{ KVM_CAP_USER_MEMORY, GY_HOST_KVM_USER_MEMORY },
	{ KVM_CAP_IMMEDIATE_EXIT, GY_HOST_KVM_IMMEDIATE_EXIT },
	{ KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, GY_HOST_KVM_MANUAL_PROTECT },
	{ KVM_CAP_XSAVE2, GY_HOST_KVM_XSAVE2 },
	{ KVM_CAP_XCRS, GY_HOST_KVM_XCRS },
	{ KVM_CAP_VCPU_EVENTS, GY_HOST_KVM_VCPU_EVENTS },
	{ KVM_CAP_ASYNC_PF, GY_HOST_KVM_ASYNC_PF },
	{ KVM_CAP_ASYNC_PF_INT, GY_HOST_KVM_ASYNC_PF_INT },
	{ KVM_CAP_IRQCHIP, GY_HOST_KVM_IRQCHIP },
};

static void look_at_kvm(struct gy_host_facts *facts)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm, answer;

	if (kvm < 0) {
		facts->kvm_error = -errno;
		return;
	}
	answer = ioctl(kvm, KVM_GET_API_VERSION, 0);
	facts->kvm_api = answer > 0 ? answer : 0;
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0) {
		facts->kvm_error = -errno;
		goto close_kvm;
	}
	/* Some capabilities are the machine's rather than the device's, so the machine is asked. */
	for (size_t i = 0; i < sizeof(caps) / sizeof(caps[0]); i++)
		if (ioctl(vm, KVM_CHECK_EXTENSION, caps[i].kvm) > 0)
			facts->kvm_caps |= caps[i].ours;
	answer = ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
	facts->kvm_max_vcpus = answer > 0 ? answer : 0;
	close(vm);
close_kvm:
	close(kvm);
}

/* A userfaultfd that also sees faults of the kernel itself, which KVM's are. */
static int open_uffd(struct gy_host_facts *facts)
{
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	int device, error;

	if (fd >= 0) {
		facts->uffd_way = GY_HOST_UFFD_SYSCALL;
		return fd;
	}
	error = -errno;
	device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (device < 0)
		return error;
	fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	error = -errno;
	close(device);
	if (fd < 0)
		return error;
	facts->uffd_way = GY_HOST_UFFD_DEVICE;
	return fd;
}

/* Registers @bytes at @page, a mapping of a RAM file with no page in it, and places one page. */
static int prove_uffd(int uffd, void *page, size_t bytes)
{
	struct uffdio_register range = {
		.range = { .start = (uintptr_t)page, .len = bytes },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct uffdio_copy copy = { .dst = (uintptr_t)page, .len = bytes };
	void *source;
	int ret = 0;

	if (ioctl(uffd, UFFDIO_REGISTER, &range) < 0)
		return -errno;
	if (!(range.ioctls & (1ull << _UFFDIO_COPY)))
		return -EOPNOTSUPP;
	source = aligned_alloc(bytes, bytes);
	if (!source)
		return -ENOMEM;
	memset(source, 0x5a, bytes);
	copy.src = (uintptr_t)source;
	if (ioctl(uffd, UFFDIO_COPY, &copy) < 0)
		ret = -errno;
	else if (*(volatile unsigned char *)page != 0x5a)
		ret = -EIO;
	free(source);
	return ret;
}

static int ask_uffd(struct gy_host_facts *facts, void *page, size_t bytes)
{
	struct uffdio_api api = { .api = UFFD_API };
	int uffd = open_uffd(facts);
	int ret;

	if (uffd < 0)
		return uffd;
	if (ioctl(uffd, UFFDIO_API, &api) < 0) {
		ret = -errno;
	} else {
		facts->uffd_features = api.features;
		ret = prove_uffd(uffd, page, bytes);
	}
	close(uffd);
	return ret;
}

static void look_at_memory(struct gy_host_facts *facts)
{
	size_t bytes = sysconf(_SC_PAGESIZE);
	int memfd = memfd_create("gyges-doctor", MFD_CLOEXEC);
	void *page;

	if (memfd < 0) {
		facts->memfd_error = -errno;
		facts->uffd_error = facts->memfd_error;
		return;
	}
	if (ftruncate(memfd, bytes) < 0) {
		facts->memfd_error = -errno;
		facts->uffd_error = facts->memfd_error;
		goto close_memfd;
	}
	page = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	if (page == MAP_FAILED) {
		facts->memfd_error = -errno;
		facts->uffd_error = facts->memfd_error;
		goto close_memfd;
	}
	facts->uffd_error = ask_uffd(facts, page, bytes);
	munmap(page, bytes);
close_memfd:
	close(memfd);
}

int64_t gy_host_read(const char *path, void *buf, uint64_t cap)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint64_t done = 0;
	ssize_t n = 1;
	int error;

	if (fd < 0)
		return -errno;
	while (n > 0 && done < cap) {
		n = read(fd, (char *)buf + done, cap - done);
		done += n > 0 ? (uint64_t)n : 0;
	}
	error = -errno;
	close(fd);
	return n < 0 ? error : (int64_t)done;
}

int64_t gy_host_list(const char *path, char *names, uint64_t cap)
{
	DIR *dir = opendir(path);
	uint64_t done = 0;

	if (!dir)
		return -errno;
	for (const struct dirent *entry = readdir(dir); entry; entry = readdir(dir)) {
		size_t bytes = strlen(entry->d_name) + 1;

		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		if (bytes > cap - done) {
			closedir(dir);
			return -ENOSPC;
		}
		memcpy(names + done, entry->d_name, bytes);
		done += bytes;
	}
	closedir(dir);
	return (int64_t)done;
}

/* A sysctl file that holds one number; -errno where it cannot be read. */
static int read_number(const char *path)
{
	char text[16] = "";
	int64_t n = gy_host_read(path, text, sizeof(text) - 1);

	return n < 0 ? (int)n : atoi(text);
}

static void look_at_tls(struct gy_host_facts *facts)
{
	SSL_CTX *context = SSL_CTX_new(TLS_method());

	facts->openssl_version = OpenSSL_version_num();
	if (!context)
		return;
	facts->tls13 = SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) == 1;
	SSL_CTX_free(context);
}

static uint64_t limit_bytes(rlim_t limit)
{
	return limit == RLIM_INFINITY ? UINT64_MAX : limit;
}

int gy_host_facts(struct gy_host_facts *facts)
{
	struct rlimit memlock;

	*facts = (struct gy_host_facts){ 0 };
	look_at_kvm(facts);
	look_at_memory(facts);
	facts->unprivileged_uffd = read_number("/proc/sys/vm/unprivileged_userfaultfd");
	look_at_tls(facts);
	if (getrlimit(RLIMIT_MEMLOCK, &memlock) == 0) {
		facts->memlock_soft_bytes = limit_bytes(memlock.rlim_cur);
		facts->memlock_hard_bytes = limit_bytes(memlock.rlim_max);
	}
	return 0;
}

int gy_host_takes_output(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLOUT };

	return poll(&p, 1, 0) != 0;
}

int gy_host_redirect_output(const char *path)
{
	int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
	int ret = 0;

	if (fd < 0)
		return -errno;
	/* dup2, so that the copies stay open in programs that this one starts. */
	if (dup2(fd, STDOUT_FILENO) < 0 || dup2(fd, STDERR_FILENO) < 0)
		ret = -errno;
	close(fd);
	return ret;
}
