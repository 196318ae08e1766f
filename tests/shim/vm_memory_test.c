// SPDX-License-Identifier: Apache-2.0
/*
 * vm_memory_test.c - the micro-VM's memory on the move: the dirty log is exact, a single page that a copy lacks is
 * noticed, and a guest whose pages are missing waits for them without harm.
 */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "thread.h"
#include "vm_fixture.h"

#define PAGES (RAM_BYTES / GY_PAGE_BYTES)

static void copy_page(struct gy_ram *to, struct gy_ram *from, uint64_t page)
{
	uint8_t words[GY_PAGE_BYTES];

	read_page(from, page, words);
	write_page(to, page, words);
}

/* Copies the pages of @bitmap and clears it. */
static void copy_pages(struct gy_ram *to, struct gy_ram *from, uint64_t *bitmap)
{
	for (uint64_t page = 0; page < PAGES; page++) {
		if (bitmap[page / 64] >> page % 64 & 1)
			copy_page(to, from, page);
	}
	memset(bitmap, 0, PAGES / 8);
}

/* First page that differs, PAGES if none does. */
static uint64_t first_difference(struct gy_ram *a, struct gy_ram *b)
{
	for (uint64_t page = 0; page < PAGES; page++) {
		uint8_t in_a[GY_PAGE_BYTES], in_b[GY_PAGE_BYTES];

		read_page(a, page, in_a);
		read_page(b, page, in_b);
		if (memcmp(in_a, in_b, GY_PAGE_BYTES))
			return page;
	}
	return PAGES;
}

/* Pre-copies a running guest round by round and stops it; the last dirty set stays in @bitmap. */
static void precopy(struct machine m, struct gy_ram *to, uint64_t *bitmap, int rounds)
{
	CHECK_EQUAL(gy_vm_dirty_start(m.vm), 0);
	CHECK_EQUAL(gy_vm_dirty_start(m.vm), -EALREADY);
	memset(bitmap, 0xff, PAGES / 8);
	for (int i = 0; i < rounds; i++) {
		copy_pages(to, m.ram, bitmap);
		if (i == rounds / 2)
			CHECK_EQUAL(gy_vm_reset_stall(m.vm), 0);
		let_touch(m.vm, 200);
		CHECK(gy_vm_dirty_collect(m.vm, bitmap, PAGES / 64) > 0);
	}
	copy_pages(to, m.ram, bitmap);
	let_touch(m.vm, 200);
	CHECK_EQUAL(gy_vm_stop(m.vm, SLOW_MS), 0);
	CHECK(gy_vm_dirty_collect(m.vm, bitmap, PAGES / 64) > 0);
}

/* The machine of the same shape over the copy, with the state of the stopped one; not yet running. */
static struct machine move_to(struct machine m, struct gy_ram *copy)
{
	struct machine moved = { .ram = copy };
	static uint8_t state[1 << 18];
	char err[256] = "";
	int64_t bytes;

	CHECK_EQUAL(gy_vm_create(copy, &m.vm->config, &moved.vm, err, sizeof(err)), 0);
	bytes = gy_vm_save(m.vm, state, sizeof(state), err, sizeof(err));
	CHECK(bytes > 0);
	CHECK_EQUAL(gy_vm_restore(moved.vm, state, (uint64_t)bytes, err, sizeof(err)), 0);
	return moved;
}

static void dirty_log_is_exact(uint32_t vcpus)
{
	struct gy_vm_config config = {
		.vcpus = vcpus, .workload = GY_WORKLOAD_ZIPF, .write_per_1024 = 700, .rate_pages_per_s = 50000,
	};
	struct machine m = machine_boot(&config, RAM_BYTES), moved;
	uint64_t bitmap[PAGES / 64];
	struct gy_ram *copy;

	CHECK_EQUAL(gy_ram_create(RAM_BYTES, &copy), 0);
	precopy(m, copy, bitmap, 30);
	/* Before the last round something must be missing, or this test shows nothing. */
	CHECK(first_difference(m.ram, copy) < PAGES);
	copy_pages(copy, m.ram, bitmap);
	CHECK_EQUAL(first_difference(m.ram, copy), PAGES);
	CHECK_EQUAL(gy_vm_dirty_collect(m.vm, bitmap, PAGES / 64), 0);
	CHECK_EQUAL(gy_vm_dirty_collect(m.vm, bitmap, PAGES / 64 - 1), -EINVAL);
	CHECK_EQUAL(gy_vm_dirty_stop(m.vm), 0);
	CHECK_EQUAL(gy_vm_dirty_collect(m.vm, bitmap, PAGES / 64), -EINVAL);

	moved = move_to(m, copy);
	machine_end(m);
	expect_clean(moved.vm);
	CHECK_EQUAL(gy_vm_run(moved.vm), 0);
	let_touch(moved.vm, 20000);
	CHECK_EQUAL(gy_vm_stop(moved.vm, SLOW_MS), 0);
	expect_clean(moved.vm);
	machine_end(moved);
}

/* Only what was written after it was last collected is dirty: not everything, every time. */
static void idle_pages_are_clean(void)
{
	struct gy_vm_config config = uniform_1;
	struct machine m;
	uint64_t bitmap[PAGES / 64] = { 0 };
	int64_t n;

	config.rate_pages_per_s = 1000;
	m = machine_boot(&config, RAM_BYTES);
	CHECK_EQUAL(gy_vm_dirty_start(m.vm), 0);
	let_touch(m.vm, 50);
	CHECK(gy_vm_dirty_collect(m.vm, bitmap, PAGES / 64) > 0);
	memset(bitmap, 0, sizeof(bitmap));
	let_touch(m.vm, 50);
	n = gy_vm_dirty_collect(m.vm, bitmap, PAGES / 64);
	printf("%" PRId64 " pages dirty after about 50 touches\n", n);
	CHECK(n > 10 && n < 500);
	machine_end(m);
}

/* One dirty page left out of the last round: the whole-RAM check and the guest itself both say so. */
static void skipped_page_is_noticed(void)
{
	struct gy_vm_config config = {
		.vcpus = 2, .workload = GY_WORKLOAD_UNIFORM, .write_per_1024 = 700, .rate_pages_per_s = 50000,
	};
	struct machine m = machine_boot(&config, RAM_BYTES), moved;
	uint64_t bitmap[PAGES / 64], skip = 0;
	struct gy_ram_check check;
	struct gy_ram *copy;

	CHECK_EQUAL(gy_ram_create(RAM_BYTES, &copy), 0);
	precopy(m, copy, bitmap, 3);
	for (uint64_t page = m.vm->layout.first_page; page < PAGES && !skip; page++) {
		if (bitmap[page / 64] >> page % 64 & 1)
			skip = page;
	}
	CHECK(skip);
	bitmap[skip / 64] &= ~(1ull << skip % 64);
	copy_pages(copy, m.ram, bitmap);
	CHECK_EQUAL(first_difference(m.ram, copy), skip);
	moved = move_to(m, copy);
	machine_end(m);
	check = check_of(moved.vm);
	CHECK_EQUAL(check.bad_pages, 1);
	CHECK_EQUAL(check.first_bad_page, skip);
	CHECK_EQUAL(gy_vm_run(moved.vm), 0);
	expect_event(moved.vm, GY_VM_EVENT_CORRUPT);
	CHECK_EQUAL(gy_vm_stop(moved.vm, SLOW_MS), 0);
	CHECK_EQUAL(report_of(moved.vm).corrupt, 1);
	CHECK_EQUAL(report_of(moved.vm).first_corrupt_page, skip);
	machine_end(moved);
}

/* ---- missing pages ---- */

struct feeder {
	int uffd;
	struct gy_ram *to;
	struct gy_ram *from;
	atomic_bool open;		/* answers faults; till then they wait */
	atomic_bool quit;
	atomic_uint faults;
	pthread_t thread;
};

static void answer(struct feeder *feeder, uint64_t page)
{
	uint8_t words[GY_PAGE_BYTES] __attribute__((aligned(8)));
	struct uffdio_copy copy = {
		.dst = (uintptr_t)feeder->to->guest + page * GY_PAGE_BYTES,
		.src = (uintptr_t)words,
		.len = GY_PAGE_BYTES,
	};

	read_page(feeder->from, page, words);
	CHECK(!ioctl(feeder->uffd, UFFDIO_COPY, &copy) || errno == EEXIST);
	feeder->faults++;
}

static void *feed(void *arg)
{
	struct feeder *feeder = arg;
	struct uffd_msg msg;

	while (!feeder->quit) {
		struct pollfd poll_fd = { .fd = feeder->uffd, .events = POLLIN };

		if (!feeder->open) {
			usleep(1000);
			continue;
		}
		if (poll(&poll_fd, 1, 20) <= 0 || read(feeder->uffd, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		answer(feeder, (msg.arg.pagefault.address - (uintptr_t)feeder->to->guest) / GY_PAGE_BYTES);
	}
	return NULL;
}

static bool feeder_start(struct feeder *feeder, struct gy_ram *to, struct gy_ram *from)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM };
	struct uffdio_register reg = {
		.range = { (uintptr_t)to->guest, to->bytes },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	*feeder = (struct feeder){ .to = to, .from = from };
	feeder->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (feeder->uffd < 0)
		return false;
	CHECK(!ioctl(feeder->uffd, UFFDIO_API, &api));
	CHECK(!ioctl(feeder->uffd, UFFDIO_REGISTER, &reg));
	CHECK_EQUAL(thread_start(&feeder->thread, "feeder", feed, feeder), 0);
	return true;
}

/* Everything that is still missing, then an end of missing pages. */
static void feeder_finish(struct feeder *feeder)
{
	struct uffdio_range all = { (uintptr_t)feeder->to->guest, feeder->to->bytes };

	for (uint64_t page = 0; page < PAGES; page++)
		answer(feeder, page);
	feeder->quit = true;
	pthread_join(feeder->thread, NULL);
	CHECK(!ioctl(feeder->uffd, UFFDIO_UNREGISTER, &all));
	close(feeder->uffd);
}

/*
 * A guest restored over empty RAM waits on its first page. Stopping it then may or may not succeed, as the kernel
 * will; either way nothing is lost: run again, it goes on as soon as pages come.
 */
static void guest_waits_for_missing_pages(uint32_t flags)
{
	struct gy_vm_config config = uniform_2;
	struct machine m, moved;
	struct feeder feeder;
	struct gy_ram *to;
	unsigned int faults;
	uint64_t start;
	int ret;

	config.flags = flags;
	m = machine_boot_stopped(&config, RAM_BYTES);
	CHECK_EQUAL(gy_ram_create(RAM_BYTES, &to), 0);
	moved = move_to(m, to);
	if (!feeder_start(&feeder, to, m.ram)) {
		printf("no userfaultfd: missing pages are not tested\n");
		machine_end(moved);
		machine_end(m);
		return;
	}
	CHECK_EQUAL(gy_vm_run(moved.vm), 0);
	usleep(20000);
	CHECK_EQUAL(report_of(moved.vm).unread_vcpus, 2);
	CHECK_EQUAL(report_of(moved.vm).booted, 1);
	CHECK_EQUAL(gy_vm_reset_stall(moved.vm), -EAGAIN);
	CHECK_EQUAL(gy_ram_allocated(to), 0);
	start = now_ns();
	ret = gy_vm_stop(moved.vm, 100);
	printf("stop of a guest that waits for pages, flags %u: %d after %.1f ms\n", flags, ret,
	       (double)(now_ns() - start) / 1e6);
	CHECK(ret == 0 || ret == -ETIMEDOUT);
	CHECK_EQUAL(report_of(moved.vm).running, ret == -ETIMEDOUT);
	CHECK_EQUAL(gy_vm_run(moved.vm), 0);
	feeder.open = true;
	while (report_of(moved.vm).unread_vcpus)
		let_touch(moved.vm, 1);
	let_touch(moved.vm, 20000);
	faults = feeder.faults;
	feeder_finish(&feeder);
	CHECK_EQUAL(report_of(moved.vm).unread_vcpus, 0);
	let_touch(moved.vm, two_patrols(moved.vm));
	CHECK_EQUAL(gy_vm_stop(moved.vm, SLOW_MS), 0);
	printf("%u pages came by fault\n", faults);
	CHECK(faults > 100);
	expect_clean(moved.vm);
	machine_end(moved);
	machine_end(m);
}

/*
 * Pages that never come: a machine that can be stopped can be ended as it is; where the kernel does not let go of
 * a vCPU (KVM before Linux 6.2), closing the userfaultfd must come first.
 */
static void waiting_guest_can_be_ended(void)
{
	struct machine m = machine_boot_stopped(&uniform_2, RAM_BYTES), moved;
	struct feeder feeder;
	struct gy_ram *to;

	CHECK_EQUAL(gy_ram_create(RAM_BYTES, &to), 0);
	moved = move_to(m, to);
	if (feeder_start(&feeder, to, m.ram)) {
		CHECK_EQUAL(gy_vm_run(moved.vm), 0);
		usleep(20000);
		feeder.quit = true;
		pthread_join(feeder.thread, NULL);
		if (gy_vm_stop(moved.vm, 500)) {
			close(feeder.uffd);
			gy_vm_destroy(moved.vm);
		} else {
			CHECK_EQUAL(gy_vm_run(moved.vm), 0);
			gy_vm_destroy(moved.vm);
			CHECK_EQUAL(gy_ram_allocated(to), 0);
			close(feeder.uffd);
		}
		gy_ram_destroy(to);
	} else {
		machine_end(moved);
	}
	machine_end(m);
}

int main(void)
{
	if (no_kvm("vm_memory_test"))
		return SKIPPED;
	setbuf(stdout, NULL);
	dirty_log_is_exact(1);
	dirty_log_is_exact(2);
	idle_pages_are_clean();
	skipped_page_is_noticed();
	guest_waits_for_missing_pages(0);
	guest_waits_for_missing_pages(GY_VM_IRQCHIP);
	waiting_guest_can_be_ended();
	return 0;
}
