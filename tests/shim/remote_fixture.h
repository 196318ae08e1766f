/* SPDX-License-Identifier: Apache-2.0 */
/* remote_fixture.h - another process that has RAM as a QEMU has it: a child that does what a pipe says. */
#ifndef REMOTE_FIXTURE_H
#define REMOTE_FIXTURE_H

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "clock.h"
#include "ram.h"
#include "uffd.h"

#define PIECE_BYTES (2ull << 20)
#define PIECE_PAGES (PIECE_BYTES / GY_PAGE_BYTES)
#define PIECES 2u
#define SOON_MS 20000
#define NOBODY 65534

/* What the child is asked for; it answers with a byte of the page. */
struct order {
	char what;	/* 'r' read, 'w' write, 'p' page out, 's' signals seen */
	uint8_t value;
	uint64_t page;
};

struct other {
	pid_t pid;
	int to;
	int from;
	uint64_t base[PIECES];
	int fd[PIECES];
};

static volatile sig_atomic_t signals_seen;

static inline void on_signal(int number)
{
	(void)number;
	signals_seen++;
}

static inline void serve(uint8_t *const base[], int from, int to)
{
	struct pollfd p = { .fd = from, .events = POLLIN };
	struct order order;

	for (;;) {
		uint32_t answer;
		volatile uint8_t *at;

		/* Where a QEMU's main thread mostly is. */
		if (ppoll(&p, 1, NULL, NULL) < 0 && errno == EINTR)
			continue;
		if (read(from, &order, sizeof(order)) != sizeof(order))
			_exit(0);
		at = base[order.page / PIECE_PAGES] + order.page % PIECE_PAGES * GY_PAGE_BYTES;
		if (order.what == 'w')
			*at = order.value;
		if (order.what == 'p')
			answer = (uint32_t)madvise((void *)at, GY_PAGE_BYTES, MADV_PAGEOUT);
		else
			answer = order.what == 's' ? (uint32_t)signals_seen : *at;
		if (write(to, &answer, sizeof(answer)) != sizeof(answer))
			_exit(1);
	}
}

static inline void child(const int fd[], int from, int to)
{
	uint8_t *base[PIECES];

	signal(SIGRTMIN, on_signal);
	for (uint32_t i = 0; i < PIECES; i++) {
		base[i] = mmap(NULL, PIECE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd[i], 0);
		if (write(to, &base[i], sizeof(base[i])) != sizeof(base[i]))
			_exit(1);
	}
	serve(base, from, to);
}

/* What the other process may do. */
enum rights { ALL, NO_PRIVILEGE, DEADLY_FILTER };

/* To call userfaultfd(2) is the end of it. */
static inline void filter(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	const struct sock_fprog program = { sizeof(code) / sizeof(code[0]), code };

	CHECK(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

static inline void give_up(enum rights rights)
{
	if (rights == NO_PRIVILEGE)
		CHECK(!setresgid(NOBODY, NOBODY, NOBODY) && !setresuid(NOBODY, NOBODY, NOBODY));
	if (rights == DEADLY_FILTER)
		filter();
}

static inline struct other start_other_with(enum rights rights)
{
	int down[2], up[2];
	struct other other;

	CHECK(!pipe(down) && !pipe(up));
	for (uint32_t i = 0; i < PIECES; i++) {
		other.fd[i] = memfd_create("piece", MFD_CLOEXEC);
		CHECK(other.fd[i] >= 0 && !ftruncate(other.fd[i], (off_t)PIECE_BYTES));
	}
	other.pid = fork();
	CHECK(other.pid >= 0);
	if (!other.pid) {
		give_up(rights);
		child(other.fd, down[0], up[1]);
	}
	close(down[0]);
	close(up[1]);
	other.to = down[1];
	other.from = up[0];
	for (uint32_t i = 0; i < PIECES; i++)
		CHECK(read(other.from, &other.base[i], sizeof(other.base[i])) == sizeof(other.base[i]));
	return other;
}

static inline struct other start_other(void)
{
	return start_other_with(ALL);
}

static inline void end_other(struct other *other)
{
	kill(other->pid, SIGKILL);
	CHECK(waitpid(other->pid, NULL, 0) == other->pid);
	close(other->to);
	close(other->from);
	for (uint32_t i = 0; i < PIECES; i++)
		close(other->fd[i]);
}

static inline struct gy_ram *attach(const struct other *other)
{
	struct gy_ram *ram;
	char err[256] = "";

	CHECK(!gy_ram_attach((uint32_t)other->pid, PIECES * PIECE_BYTES, &ram));
	for (uint32_t i = 0; i < PIECES; i++) {
		char path[64];

		snprintf(path, sizeof(path), "/proc/self/fd/%d", other->fd[i]);
		CHECK(!gy_ram_attach_piece(ram, path, 0, other->base[i], PIECE_BYTES, err, sizeof(err)));
	}
	return ram;
}

static inline void ask(const struct other *other, char what, uint64_t page, uint8_t value)
{
	struct order order = { .what = what, .page = page, .value = value };

	CHECK(write(other->to, &order, sizeof(order)) == sizeof(order));
}

static inline bool answered(const struct other *other, int ms)
{
	struct pollfd p = { .fd = other->from, .events = POLLIN };

	return poll(&p, 1, ms) > 0;
}

static inline uint32_t answer(const struct other *other)
{
	uint32_t value = 0;

	CHECK(answered(other, SOON_MS));
	CHECK(read(other->from, &value, sizeof(value)) == sizeof(value));
	return value;
}

static inline int open_descriptors(pid_t pid)
{
	char command[64];
	FILE *p;
	int n = -1;

	snprintf(command, sizeof(command), "ls /proc/%d/fd | wc -l", pid);
	p = popen(command, "re");
	CHECK(p && fscanf(p, "%d", &n) == 1);
	pclose(p);
	return n;
}

static inline uint64_t await_fault(struct uffd *uffd)
{
	uint64_t deadline = deadline_after_ms(SOON_MS);
	struct uffd_fault fault;
	int n;

	do {
		n = uffd_read(uffd, &fault, 1);
		CHECK(now_ns() < deadline);
	} while (!n);
	CHECK_EQUAL(n, 1);
	return fault.page;
}

#endif
