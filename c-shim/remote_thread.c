// SPDX-License-Identifier: Apache-2.0
/*
 * remote_thread.c - see remote_thread.h.
 *
 * The main thread is stopped by PTRACE_INTERRUPT wherever it is, made to execute one `syscall` instruction of its own
 * text by a single step, and put back exactly as it was. Three things make that safe:
 *   - orig_rax = -1 while the step is made, so that the kernel does not take the interrupted call's restart for ours;
 *     with the registers put back it restarts that call as if nothing had been;
 *   - every signal but SIGTRAP is blocked for the step, so that none is delivered, or lost, in between;
 *   - shadow stacks (CET) are not touched: nothing returns anywhere.
 * All of it is one thread's work, as ptrace(2) knows threads, not processes; and that thread ends with it, so that the
 * kernel lets go of a main thread that did not stop in time.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "remote_thread.h"
#include "thread.h"

#define STOP_MS 2000u
#define STEPS 64	/* at most: a step may have to begin again where the thread was on its way out of the kernel */
#define SYSCALL_BYTES 2
#define MODE_64_BIT 0x33	/* cs of a 64-bit task */
#define RED_ZONE_BYTES 128

/* ---- a syscall instruction ---- */

/* 0 when [from, end) of the process has none. */
static uint64_t find_in(int mem, uint64_t from, uint64_t end)
{
	uint8_t buf[65536];

	while (from + SYSCALL_BYTES <= end) {
		uint64_t want = end - from < sizeof(buf) ? end - from : sizeof(buf);
		ssize_t n = pread(mem, buf, want, (off_t)from);

		if (n < SYSCALL_BYTES)
			return 0;
		for (ssize_t i = 0; i + 1 < n; i++) {
			if (buf[i] == 0x0f && buf[i + 1] == 0x05)
				return from + (uint64_t)i;
		}
		/* One may lie across the edge. */
		from += (uint64_t)n - 1;
	}
	return 0;
}

/* The C library's text has one, and so has the vDSO of most kernels. */
static bool may_have_one(const char *line)
{
	return strstr(line, "[vdso]") || strstr(line, "/libc.so") || strstr(line, "/libc-") || strstr(line, "/ld-");
}

static int find_syscall(struct remote *remote)
{
	unsigned long from, end;
	char path[64], line[512], mode[8];
	FILE *maps;
	int mem;

	snprintf(path, sizeof(path), "/proc/%d/maps", remote->pid);
	maps = fopen(path, "re");
	snprintf(path, sizeof(path), "/proc/%d/mem", remote->pid);
	mem = open(path, O_RDONLY | O_CLOEXEC);
	while (maps && mem >= 0 && !remote->syscall_at && fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%lx-%lx %7s", &from, &end, mode) == 3 && mode[2] == 'x' && may_have_one(line))
			remote->syscall_at = find_in(mem, from, end);
	}
	if (maps)
		fclose(maps);
	if (mem >= 0)
		close(mem);
	if (remote->syscall_at)
		return 0;
	return gy_err_set(remote->err, -ENOSYS, "cannot find a syscall instruction in process %d, or may not read it",
			  remote->pid);
}

/* ---- the stop ---- */

static int gone(const struct remote *remote)
{
	return gy_err_set(remote->err, -ESRCH, "process %d has ended", remote->pid);
}

/* Waits for the next stop. Its status, or -errno. */
static int next_stop(const struct remote *remote)
{
	uint64_t deadline = deadline_after_ms(STOP_MS);

	for (;;) {
		int status;
		pid_t got = waitpid(remote->pid, &status, __WALL | WNOHANG);

		if (got == remote->pid)
			return WIFSTOPPED(status) ? status : gone(remote);
		if (got < 0 && errno != EINTR)
			return gone(remote);
		if (now_ns() > deadline)
			return gy_err_set(remote->err, -ETIMEDOUT, "the main thread of process %d did not stop in %u s",
					  remote->pid, STOP_MS / 1000);
		usleep(20);
	}
}

static int get_regs(const struct remote *remote, struct user_regs_struct *regs)
{
	struct iovec io = { .iov_base = regs, .iov_len = sizeof(*regs) };

	return ptrace(PTRACE_GETREGSET, remote->pid, NT_PRSTATUS, &io) ? -errno : 0;
}

static int set_regs(const struct remote *remote, struct user_regs_struct *regs)
{
	struct iovec io = { .iov_base = regs, .iov_len = sizeof(*regs) };

	return ptrace(PTRACE_SETREGSET, remote->pid, NT_PRSTATUS, &io) ? -errno : 0;
}

static int set_mask(const struct remote *remote, uint64_t mask)
{
	return ptrace(PTRACE_SETSIGMASK, remote->pid, sizeof(mask), &mask) ? -errno : 0;
}

static int seize(const struct remote *remote)
{
	int ret;

	if (!ptrace(PTRACE_SEIZE, remote->pid, NULL, NULL))
		return 0;
	ret = -errno;
	if (ret == -ESRCH)
		return gone(remote);
	return gy_err_set(remote->err, ret == -EPERM ? -EBUSY : ret,
			  "may not trace process %d (%s): a debugger has it, or this user may not (CAP_SYS_PTRACE, "
			  "kernel.yama.ptrace_scope)", remote->pid, strerror(-ret));
}

/*
 * Stops the main thread where no signal is half delivered: it stopped for our INTERRUPT and nothing else. A signal
 * that was on its way is let through first.
 */
static int stop(struct remote *remote)
{
	int ret = seize(remote);

	if (ret)
		return ret;
	if (ptrace(PTRACE_INTERRUPT, remote->pid, NULL, NULL))
		return gone(remote);
	for (;;) {
		int status = next_stop(remote);

		if (status < 0)
			return status;
		if (status >> 16 == PTRACE_EVENT_STOP)
			break;
		if (ptrace(PTRACE_CONT, remote->pid, NULL, WSTOPSIG(status)))
			return gone(remote);
	}
	ret = get_regs(remote, &remote->regs);
	if (!ret && ptrace(PTRACE_GETSIGMASK, remote->pid, sizeof(remote->mask), &remote->mask))
		ret = -errno;
	if (ret)
		return gy_err_set(remote->err, ret, "cannot read the registers of process %d: %s", remote->pid,
				  strerror(-ret));
	if (remote->regs.cs != MODE_64_BIT)
		return gy_err_set(remote->err, -ENOTSUP, "process %d is not a 64-bit one", remote->pid);
	return 0;
}

/* ---- the call ---- */

static int step_over(const struct remote *remote, struct user_regs_struct *regs)
{
	for (int i = 0; i < STEPS; i++) {
		int status, ret;

		if (ptrace(PTRACE_SINGLESTEP, remote->pid, NULL, NULL))
			return -errno;
		status = next_stop(remote);
		if (status < 0)
			return status;
		ret = get_regs(remote, regs);
		if (ret || regs->rip == remote->syscall_at + SYSCALL_BYTES)
			return ret;
		/* Somebody else's stop, a SIGSTOP of the group say: ours is still to be made. */
		if (regs->rip != remote->syscall_at)
			break;
	}
	return -EIO;
}

/* Below what the thread has on its stack, and below what it may use there without telling (the red zone). */
uint64_t remote_scratch(const struct remote *remote, uint64_t bytes)
{
	return (remote->regs.rsp - RED_ZONE_BYTES - bytes) & ~15ull;
}

/* The call's result in *result. 0 or -errno: it was not made, or nobody knows. The thread is as it was. */
static int call(struct remote *remote, const uint64_t args[5], int64_t *result)
{
	struct user_regs_struct regs = remote->regs;
	int ret, back;

	regs.rip = remote->syscall_at;
	regs.rax = args[0];
	regs.orig_rax = (uint64_t)-1;
	regs.rdi = args[1];
	regs.rsi = args[2];
	regs.rdx = args[3];
	regs.r10 = args[4];
	ret = set_mask(remote, ~(1ull << (SIGTRAP - 1)));
	if (!ret)
		ret = set_regs(remote, &regs);
	if (!ret)
		ret = step_over(remote, &regs);
	*result = (int64_t)regs.rax;
	back = set_regs(remote, &remote->regs);
	if (!back)
		back = set_mask(remote, remote->mask);
	return ret ? ret : back;
}

int64_t remote_syscall(struct remote *remote, const uint64_t args[5])
{
	int64_t result = -EIO;
	int ret = call(remote, args, &result);

	if (ret)
		return gy_err_set(remote->err, ret, "a call inside process %d failed: %s", remote->pid, strerror(-ret));
	return result;
}

/* ---- the visit ---- */

struct order {
	pid_t pid;
	remote_visit *visit;
	void *arg;
	const struct gy_err *err;
	int64_t result;
};

static int64_t trace(const struct order *order)
{
	struct remote remote = { .pid = order->pid, .err = order->err };
	int64_t ret = find_syscall(&remote);

	if (ret)
		return ret;
	ret = stop(&remote);
	if (!ret)
		ret = order->visit(&remote, order->arg);
	/* Where seizing failed there is nothing to let go of. */
	ptrace(PTRACE_DETACH, order->pid, NULL, NULL);
	return ret;
}

static void *tracer(void *arg)
{
	struct order *order = arg;

	order->result = trace(order);
	return NULL;
}

int64_t remote_stopped(pid_t pid, remote_visit *visit, void *arg, const struct gy_err *err)
{
	struct order order = { .pid = pid, .visit = visit, .arg = arg, .err = err };
	pthread_t thread;
	int ret = thread_start(&thread, "gy-tracer", tracer, &order);

	if (ret)
		return gy_err_set(err, ret, "cannot start a thread: %s", strerror(-ret));
	pthread_join(thread, NULL);
	return order.result;
}
