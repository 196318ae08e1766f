// SPDX-License-Identifier: Apache-2.0
/*
 * vm_test.c - the micro-VM on real KVM: it boots, runs, stops and reports, and each way of damaging its memory
 * is noticed, by the guest itself and by the check of all RAM.
 */
#include <dirent.h>

#include "guest/stamp.h"
#include "vm_fixture.h"

/* ---- running ---- */

static void boots_and_runs(uint32_t vcpus, uint32_t workload, uint32_t flags)
{
	struct gy_vm_config config = {
		.vcpus = vcpus, .workload = workload, .flags = flags, .write_per_1024 = 300, .seed = vcpus,
	};
	struct machine m = machine_boot(&config, RAM_BYTES);
	struct gy_guest_report report;
	struct gy_ram_check check;

	let_touch(m.vm, 2 * two_patrols(m.vm));
	report = report_of(m.vm);
	CHECK_EQUAL(report.vcpus, vcpus);
	CHECK_EQUAL(report.booted, 1);
	CHECK_EQUAL(report.running, 1);
	CHECK_EQUAL(report.unread_vcpus, 0);
	CHECK(report.passes >= 60);
	CHECK(report.stall.n > 0 && report.largest_stall_ns > 0);
	/* 15 of 16 touches rewrite with the chosen probability. */
	CHECK(report.written_pages * 1024 > report.verified_pages * 300 * 14 / 16);
	CHECK(report.written_pages * 1024 < report.verified_pages * 300);
	CHECK_EQUAL(gy_vm_check_ram(m.vm, &check), -EBUSY);
	CHECK_EQUAL(gy_vm_stop(m.vm, SLOW_MS), 0);
	CHECK_EQUAL(report_of(m.vm).running, 0);
	expect_clean(m.vm);
	check = check_of(m.vm);
	CHECK_EQUAL(check.pages, RAM_BYTES / GY_PAGE_BYTES);
	CHECK_EQUAL(check.filled_pages, RAM_BYTES / GY_PAGE_BYTES / 4 * 3);
	CHECK_EQUAL(check.zero_pages, check.pages - m.vm->layout.set_end_page);
	machine_end(m);
}

/* Written pages spread as the pattern says: sequential evenly, zipf with a heavy head. */
static void patterns_differ(void)
{
	uint32_t top[4] = { 0 };

	for (uint32_t workload = GY_WORKLOAD_UNIFORM; workload <= GY_WORKLOAD_ZIPF; workload++) {
		struct gy_vm_config config = { .vcpus = 1, .workload = workload, .write_per_1024 = 1024 };
		struct machine m = machine_boot(&config, RAM_BYTES);

		let_touch(m.vm, 40 * m.vm->layout.slice_pages);
		CHECK_EQUAL(gy_vm_stop(m.vm, SLOW_MS), 0);
		for (uint64_t page = m.vm->layout.first_page; page < m.vm->layout.set_end_page; page++) {
			uint64_t mean = report_of(m.vm).written_pages / m.vm->layout.slice_pages;
			uint64_t times = version_of(m.vm, page) / (mean + 1);

			top[workload] = times > top[workload] ? (uint32_t)times : top[workload];
		}
		machine_end(m);
	}
	printf("most rewritten page over mean: uniform %u, sequential %u, zipf %u\n", top[1], top[2], top[3]);
	CHECK(top[GY_WORKLOAD_UNIFORM] < 4);
	CHECK(top[GY_WORKLOAD_SEQUENTIAL] < 2);
	CHECK(top[GY_WORKLOAD_ZIPF] > 50);
}

static void rate_is_held(uint32_t vcpus, uint64_t rate)
{
	struct gy_vm_config config = uniform_1;
	struct machine m;
	struct gy_guest_report report;
	uint64_t touches, took_ns, per_s;

	config.vcpus = vcpus;
	config.rate_pages_per_s = rate;
	m = machine_boot(&config, 8 * MIB);
	took_ns = now_ns();
	touches = report_of(m.vm).verified_pages;
	usleep(1000000);
	report = report_of(m.vm);
	touches = report.verified_pages - touches;
	took_ns = now_ns() - took_ns;
	per_s = touches * NS_PER_S / took_ns;
	printf("rate of %" PRIu64 " pages/s over %u vCPUs: %" PRIu64 ", stall p50 %" PRIu64 " ns\n", rate, vcpus, per_s,
	       gy_hist_percentile(&report.stall, 5000));
	CHECK(per_s > rate * 9 / 10 && per_s < rate * 11 / 10);
	CHECK_EQUAL(gy_vm_stop(m.vm, SLOW_MS), 0);
	expect_clean(m.vm);
	machine_end(m);
}

static void stops_at_once(uint32_t vcpus, uint64_t rate)
{
	struct gy_vm_config config = uniform_1;
	struct gy_hist latency = { 0 };
	struct machine m;

	config.vcpus = vcpus;
	config.rate_pages_per_s = rate;
	m = machine_boot(&config, 8 * MIB);
	srand(3);
	for (int i = 0; i < 100; i++) {
		uint64_t start;

		usleep((useconds_t)(rand() % 3000));
		start = now_ns();
		CHECK_EQUAL(gy_vm_stop(m.vm, SLOW_MS), 0);
		gy_hist_add(&latency, now_ns() - start);
		if (i % 5 == 0)
			expect_clean(m.vm);
		CHECK_EQUAL(gy_vm_stop(m.vm, 0), 0);
		CHECK_EQUAL(gy_vm_run(m.vm), 0);
	}
	printf("stop of %u vCPUs, rate %" PRIu64 ": p50 %" PRIu64 " us, p99 %" PRIu64 " us, max %" PRIu64 " us\n", vcpus,
	       rate, gy_hist_percentile(&latency, 5000) / 1000, gy_hist_percentile(&latency, 9900) / 1000,
	       latency.max / 1000);
	CHECK(gy_hist_percentile(&latency, 5000) < 50 * NS_PER_MS);
	machine_end(m);
}

/* ---- damage, which must be noticed ---- */

enum damage { ZERO_PAGE, SWAP_PAGES, STALE_PAGE, STALE_SHADOW, FLIP_BYTE };

static const char *const damage_names[] = {
	"a zeroed page", "two swapped pages", "a stale page", "a stale shadow page", "a flipped byte",
};

/* In the middle of a rewrite a page may hold old words and new ones, so damage could hide there. */
static bool in_flight(struct machine m, uint64_t page)
{
	bool found = false;

	for (uint32_t i = 0; i < m.vm->config.vcpus; i++) {
		struct gy_guest_account account;

		gy_ram_read(m.ram, gy_guest_account_va(i), &account, sizeof(account));
		found |= account.inflight == page + 1;
	}
	return found;
}

/* Lets the guest rewrite @page at least once more. */
static void rewrite_again(struct machine m, uint64_t page)
{
	uint32_t before = version_of(m.vm, page);

	do {
		CHECK_EQUAL(gy_vm_run(m.vm), 0);
		let_touch(m.vm, 1000);
		CHECK_EQUAL(gy_vm_stop(m.vm, SLOW_MS), 0);
	} while (version_of(m.vm, page) == before || in_flight(m, page));
}

/* Damages the stopped guest's RAM; returns the page that the check must name first. */
static uint64_t damage_ram(struct machine m, enum damage damage, uint64_t page)
{
	uint64_t shadow = m.vm->layout.shadow_page + page * sizeof(uint32_t) / GY_PAGE_BYTES;
	uint8_t a[GY_PAGE_BYTES] = { 0 }, b[GY_PAGE_BYTES];

	switch (damage) {
	case ZERO_PAGE:
		write_page(m.ram, page, a);
		return page;
	case SWAP_PAGES:
		read_page(m.ram, page, a);
		read_page(m.ram, page + 8, b);
		write_page(m.ram, page + 8, a);
		write_page(m.ram, page, b);
		return page;
	case STALE_PAGE:
		read_page(m.ram, page, a);
		rewrite_again(m, page);
		write_page(m.ram, page, a);
		return page;
	case STALE_SHADOW:
		read_page(m.ram, shadow, a);
		rewrite_again(m, page);
		write_page(m.ram, shadow, a);
		/* Every page that was rewritten since is wrong now; which is first, the caller does not know. */
		return 0;
	case FLIP_BYTE:
		read_page(m.ram, page, a);
		a[3] ^= 0x20;
		write_page(m.ram, page, a);
		return page;
	}
	return 0;
}

static void damage_is_noticed(enum damage damage, uint32_t vcpus)
{
	struct gy_vm_config config = { .vcpus = vcpus, .workload = GY_WORKLOAD_UNIFORM, .write_per_1024 = 512 };
	struct machine m = machine_boot_stopped(&config, RAM_BYTES);
	uint64_t page = m.vm->layout.first_page + m.vm->layout.slice_pages / 2;
	struct gy_guest_report report;
	struct gy_ram_check check;
	uint64_t first;

	expect_clean(m.vm);
	while (in_flight(m, page))
		page += 16;
	first = damage_ram(m, damage, page);
	check = check_of(m.vm);
	CHECK(check.bad_pages >= (damage == SWAP_PAGES ? 2 : 1));
	CHECK(!first || check.first_bad_page == first);
	CHECK_EQUAL(report_of(m.vm).corrupt, 0);
	CHECK_EQUAL(gy_vm_run(m.vm), 0);
	expect_event(m.vm, GY_VM_EVENT_CORRUPT);
	let_touch(m.vm, two_patrols(m.vm));
	report = report_of(m.vm);
	printf("%s: host saw %" PRIu64 ", guest saw %" PRIu64 "\n", damage_names[damage], check.bad_pages, report.corrupt);
	CHECK(report.corrupt >= (damage == SWAP_PAGES ? 2 : 1));
	CHECK(!first || report.first_corrupt_page == first || report.first_corrupt_page == first + 8);
	/* Mended after it was counted: it is counted once, and the check is content again. */
	CHECK_EQUAL(gy_vm_stop(m.vm, SLOW_MS), 0);
	CHECK_EQUAL(check_of(m.vm).bad_pages, 0);
	machine_end(m);
}

/* The guest looks at three lines of a page, the host at every byte. */
static void every_byte_is_checked(void)
{
	struct machine m = machine_boot_stopped(&uniform_1, 8 * MIB);
	uint64_t page = m.vm->layout.first_page + 5;
	uint8_t words[GY_PAGE_BYTES];

	page += in_flight(m, page);
	expect_clean(m.vm);
	read_page(m.ram, page, words);
	for (uint32_t at = 0; at < GY_PAGE_BYTES; at += 61) {
		words[at] ^= 1;
		write_page(m.ram, page, words);
		CHECK_EQUAL(check_of(m.vm).bad_pages, 1);
		CHECK_EQUAL(check_of(m.vm).first_bad_page, page);
		words[at] ^= 1;
	}
	write_page(m.ram, page, words);
	expect_clean(m.vm);
	machine_end(m);
}

/* The first entry of a shadow page may be a workload page's version: then that page is wrong. */
static uint64_t blamed_page(struct gy_vm *vm, uint64_t page)
{
	uint64_t first = (page - vm->layout.shadow_page) * (GY_PAGE_BYTES / sizeof(uint32_t));

	if (gy_guest_page_kind(vm, page) != GY_PAGE_SHADOW || first < vm->layout.first_page)
		return page;
	return first;
}

/* One byte in each page that is not workload: all are seen, and the first is named. */
static void pages_below_are_checked(void)
{
	struct machine m = machine_boot_stopped(&uniform_2, 8 * MIB);

	for (uint64_t page = 0; page < m.vm->layout.first_page; page++) {
		enum gy_page_kind kind = gy_guest_page_kind(m.vm, page);
		uint8_t before[GY_PAGE_BYTES], words[GY_PAGE_BYTES];

		if (kind == GY_PAGE_STACK)
			continue;
		read_page(m.ram, page, before);
		memcpy(words, before, GY_PAGE_BYTES);
		words[0] ^= 0x80;
		write_page(m.ram, page, words);
		CHECK(check_of(m.vm).bad_pages > 0);
		CHECK_EQUAL(check_of(m.vm).first_bad_page, blamed_page(m.vm, page));
		write_page(m.ram, page, before);
	}
	expect_clean(m.vm);
	machine_end(m);
}

static void outside_the_set_is_zero(void)
{
	struct machine m = machine_boot_stopped(&uniform_1, 8 * MIB);
	uint64_t last = 8 * MIB / GY_PAGE_BYTES - 1;
	uint8_t words[GY_PAGE_BYTES] = { [100] = 1 };

	write_page(m.ram, last, words);
	CHECK_EQUAL(check_of(m.vm).bad_pages, 1);
	CHECK_EQUAL(check_of(m.vm).first_bad_page, last);
	machine_end(m);
}

/* A page, its shadow and nothing else taken back together agree; the account betrays them. */
static void consistent_rollback_is_noticed(void)
{
	struct machine m = machine_boot_stopped(&uniform_1, 4 * MIB);
	uint64_t first = m.vm->layout.shadow_page, end = m.vm->layout.set_end_page;
	uint64_t bytes = (end - first) * GY_PAGE_BYTES;
	uint8_t *copy = malloc(bytes);

	CHECK(copy);
	CHECK(gy_ram_read(m.ram, first * GY_PAGE_BYTES, copy, bytes) > 0);
	CHECK_EQUAL(gy_vm_run(m.vm), 0);
	let_touch(m.vm, 1000);
	CHECK_EQUAL(gy_vm_stop(m.vm, SLOW_MS), 0);
	expect_clean(m.vm);
	CHECK(gy_ram_write(m.ram, first * GY_PAGE_BYTES, copy, bytes) > 0);
	CHECK(check_of(m.vm).bad_pages > 0);
	free(copy);
	machine_end(m);
}

/*
 * Stops the guest where it counts nothing: between its reading a counter and its writing it back, what the host
 * writes there would be lost.
 */
static void settle(struct machine m)
{
	struct gy_guest_account account;

	while (gy_ram_read(m.ram, gy_guest_account_va(0), &account, sizeof(account)) > 0 && account.inflight) {
		CHECK_EQUAL(gy_vm_run(m.vm), 0);
		let_touch(m.vm, 10);
		CHECK_EQUAL(gy_vm_stop(m.vm, SLOW_MS), 0);
	}
}

/* A version that wraps begins again at 1, not at the 0 of an empty page. */
static void version_wraps(void)
{
	struct gy_vm_config config = { .vcpus = 1, .workload = GY_WORKLOAD_SEQUENTIAL, .write_per_1024 = 1024 };
	struct machine m = machine_boot_stopped(&config, 4 * MIB);
	uint64_t page = m.vm->layout.first_page + 7;
	uint32_t version = UINT32_MAX - 3, before;
	struct gy_guest_account account;
	uint64_t words[GY_STAMP_WORDS];

	settle(m);
	before = version_of(m.vm, page);
	for (uint32_t line = 0; line < GY_STAMP_LINES; line++)
		gy_stamp_line_write(words + line * GY_STAMP_LINE_WORDS, page, gy_stamp_line_version(version, line), line);
	write_page(m.ram, page, words);
	gy_ram_write(m.ram, m.vm->layout.shadow_page * GY_PAGE_BYTES + page * 4, &version, 4);
	/* As if it had been rewritten so often. */
	gy_ram_read(m.ram, gy_guest_account_va(0), &account, sizeof(account));
	account.written_pages += version - before;
	gy_ram_write(m.ram, gy_guest_account_va(0), &account, sizeof(account));
	CHECK_EQUAL(check_of(m.vm).bad_pages, 0);
	CHECK_EQUAL(gy_vm_run(m.vm), 0);
	let_touch(m.vm, 10 * m.vm->layout.slice_pages);
	CHECK_EQUAL(gy_vm_stop(m.vm, SLOW_MS), 0);
	CHECK(version_of(m.vm, page) < 1000000);
	expect_clean(m.vm);
	machine_end(m);
}

/* ---- failures of the guest itself ---- */

static void expect_failure(struct machine m, const char *words)
{
	char err[256] = "", state[64];

	CHECK_EQUAL(gy_vm_run(m.vm), 0);
	CHECK_EQUAL(gy_vm_wait(m.vm, SLOW_MS, err, sizeof(err)), GY_VM_EVENT_FAILED);
	printf("failure: %s\n", err);
	CHECK_WORDS(err, words);
	CHECK_EQUAL(gy_vm_stop(m.vm, SLOW_MS), 0);
	CHECK_EQUAL(gy_vm_run(m.vm), -EIO);
	CHECK_EQUAL(gy_vm_save(m.vm, state, sizeof(state), err, sizeof(err)), -EIO);
	/* A new boot is a new life. */
	CHECK_EQUAL(gy_vm_boot(m.vm), 0);
	CHECK_EQUAL(gy_vm_run(m.vm), 0);
	expect_event(m.vm, GY_VM_EVENT_BOOTED);
	let_touch(m.vm, 10000);
	machine_end(m);
}

static void lost_program_fails(void)
{
	struct machine m = machine_boot_stopped(&uniform_1, 4 * MIB);
	uint8_t words[GY_PAGE_BYTES] = { 0 };

	memset(words, 0xcc, sizeof(words));
	write_page(m.ram, GY_GUEST_IMAGE_PAGE, words);
	expect_failure(m, "vCPU 0");
}

/* The guest follows its boot page to a shadow table at 0: page 0 is not mapped. */
static void null_access_fails(void)
{
	struct machine m = machine_make(&uniform_1, 4 * MIB);
	uint64_t nowhere = 0;

	CHECK_EQUAL(gy_vm_boot(m.vm), 0);
	gy_ram_write(m.ram, GY_GUEST_BOOT_PAGE * GY_PAGE_BYTES + offsetof(struct gy_guest_boot, shadow_va), &nowhere,
		     sizeof(nowhere));
	expect_failure(m, "vCPU 0");
}

static void lost_account_fails(void)
{
	struct machine m = machine_boot_stopped(&uniform_1, 4 * MIB);
	uint64_t touches;

	gy_ram_read(m.ram, gy_guest_account_va(0) + offsetof(struct gy_guest_account, touches), &touches, 8);
	touches -= 5;
	gy_ram_write(m.ram, gy_guest_account_va(0) + offsetof(struct gy_guest_account, touches), &touches, 8);
	expect_failure(m, "general registers");
}

static void lost_vector_register_fails(void)
{
	struct machine m = machine_boot_stopped(&uniform_1, 4 * MIB);
	struct kvm_fpu fpu;

	CHECK_EQUAL(ioctl(m.vm->vcpu[0].fd, KVM_GET_FPU, &fpu), 0);
	fpu.xmm[7][0] ^= 1;
	CHECK_EQUAL(ioctl(m.vm->vcpu[0].fd, KVM_SET_FPU, &fpu), 0);
	expect_failure(m, "vector registers");
}

static void lost_segment_base_fails(void)
{
	struct machine m = machine_boot_stopped(&uniform_2, 4 * MIB);
	struct kvm_sregs sregs;

	CHECK_EQUAL(ioctl(m.vm->vcpu[1].fd, KVM_GET_SREGS, &sregs), 0);
	sregs.gs.base = gy_guest_account_va(0);
	CHECK_EQUAL(ioctl(m.vm->vcpu[1].fd, KVM_SET_SREGS, &sregs), 0);
	expect_failure(m, "segment base");
}

/* ---- stalls ---- */

static void stall_is_measured_and_forgotten(uint64_t rate)
{
	struct gy_vm_config config = uniform_1;
	struct machine m;
	uint64_t stall, n;

	config.rate_pages_per_s = rate;
	m = machine_boot(&config, 4 * MIB);
	let_touch(m.vm, 100);
	CHECK_EQUAL(gy_vm_stop(m.vm, SLOW_MS), 0);
	usleep(300000);
	CHECK_EQUAL(gy_vm_run(m.vm), 0);
	let_touch(m.vm, 100);
	stall = report_of(m.vm).largest_stall_ns;
	printf("300 ms stop seen as %.1f ms at rate %" PRIu64 "\n", (double)stall / 1e6, rate);
	CHECK(stall >= 298 * NS_PER_MS && stall < 1000 * NS_PER_MS);
	n = report_of(m.vm).stall.n;
	CHECK_EQUAL(gy_vm_reset_stall(m.vm), 0);
	CHECK(report_of(m.vm).largest_stall_ns < 298 * NS_PER_MS);
	let_touch(m.vm, 100);
	CHECK(report_of(m.vm).largest_stall_ns < 298 * NS_PER_MS);
	CHECK(report_of(m.vm).stall.n < n + 100000000);
	/* A request just before a stop counts the stop. */
	CHECK_EQUAL(gy_vm_reset_stall(m.vm), 0);
	CHECK_EQUAL(gy_vm_stop(m.vm, SLOW_MS), 0);
	usleep(300000);
	CHECK_EQUAL(gy_vm_run(m.vm), 0);
	let_touch(m.vm, 100);
	CHECK(report_of(m.vm).largest_stall_ns >= 298 * NS_PER_MS);
	CHECK_EQUAL(gy_vm_stop(m.vm, SLOW_MS), 0);
	expect_clean(m.vm);
	machine_end(m);
}

/* ---- making and ending ---- */

static void bad_configs_are_refused(void)
{
	static const struct gy_vm_config configs[] = {
		{ .vcpus = 0, .workload = 1 }, { .vcpus = 9, .workload = 1 },
		{ .vcpus = 1, .workload = 0 }, { .vcpus = 1, .workload = 4 },
		{ .vcpus = 1, .workload = 1, .flags = 2 }, { .vcpus = 1, .workload = 1, .write_per_1024 = 1025 },
		{ .vcpus = 1, .workload = 1, .reserved = { 0, 1 } },
		{ .vcpus = 1, .workload = 1, .working_set_bytes = 4 * MIB },
		{ .vcpus = 8, .workload = 1, .working_set_bytes = 64 * GY_PAGE_BYTES },
	};
	struct gy_ram *ram;

	CHECK_EQUAL(gy_ram_create(4 * MIB, &ram), 0);
	for (size_t i = 0; i < sizeof(configs) / sizeof(configs[0]); i++) {
		struct gy_vm *vm;
		char err[256] = "";

		CHECK_EQUAL(gy_vm_create(ram, &configs[i], &vm, err, sizeof(err)), -EINVAL);
		CHECK_WORDS(err, "Cannot make a");
	}
	gy_ram_destroy(ram);
	gy_vm_destroy(NULL);
}

static int count_entries(const char *path)
{
	DIR *dir = opendir(path);
	int n = 0;

	CHECK(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

/* Threads and descriptors, also of machines that are destroyed while they run or were never run. */
static void nothing_is_left(void)
{
	int tasks = count_entries("/proc/self/task"), fds = count_entries("/proc/self/fd");

	for (int i = 0; i < 5; i++) {
		machine_end(machine_make(&uniform_2, 4 * MIB));
		machine_end(machine_boot(&uniform_2, 4 * MIB));
		machine_end(machine_boot_stopped(&uniform_2, 4 * MIB));
	}
	/* A joined thread may be in /proc for a moment longer. */
	for (int i = 0; i < 100 && count_entries("/proc/self/task") > tasks; i++)
		usleep(10000);
	CHECK_EQUAL(count_entries("/proc/self/task"), tasks);
	CHECK_EQUAL(count_entries("/proc/self/fd"), fds);
}

static void order_is_enforced(void)
{
	struct machine m = machine_make(&uniform_1, 4 * MIB);
	char err[256] = "";

	CHECK_EQUAL(gy_vm_run(m.vm), -EINVAL);
	CHECK_EQUAL(gy_vm_wait(m.vm, 0, err, sizeof(err)), -ETIMEDOUT);
	CHECK_EQUAL(gy_vm_reset_stall(m.vm), -EAGAIN);
	CHECK_EQUAL(report_of(m.vm).unread_vcpus, 1);
	CHECK_EQUAL(gy_ram_allocated(m.ram), 0);
	CHECK_EQUAL(gy_vm_boot(m.vm), 0);
	CHECK_EQUAL(gy_vm_run(m.vm), 0);
	CHECK_EQUAL(gy_vm_run(m.vm), 0);
	CHECK_EQUAL(gy_vm_boot(m.vm), -EBUSY);
	machine_end(m);
}

int main(void)
{
	if (no_kvm("vm_test"))
		return SKIPPED;
	setbuf(stdout, NULL);
	bad_configs_are_refused();
	order_is_enforced();
	nothing_is_left();
	boots_and_runs(1, GY_WORKLOAD_UNIFORM, 0);
	boots_and_runs(2, GY_WORKLOAD_SEQUENTIAL, GY_VM_IRQCHIP);
	boots_and_runs(4, GY_WORKLOAD_ZIPF, 0);
	boots_and_runs(3, GY_WORKLOAD_UNIFORM, GY_VM_IRQCHIP);
	patterns_differ();
	rate_is_held(1, 20000);
	rate_is_held(4, 3000);
	stops_at_once(1, 0);
	stops_at_once(2, 0);
	stops_at_once(2, 5000);
	/* A guest that sleeps for tenths of a second at a time. */
	stops_at_once(2, 1);
	for (enum damage damage = ZERO_PAGE; damage <= FLIP_BYTE; damage++)
		damage_is_noticed(damage, damage == SWAP_PAGES ? 2 : 1);
	every_byte_is_checked();
	pages_below_are_checked();
	outside_the_set_is_zero();
	consistent_rollback_is_noticed();
	version_wraps();
	lost_program_fails();
	null_access_fails();
	lost_account_fails();
	lost_vector_register_fails();
	lost_segment_base_fails();
	stall_is_measured_and_forgotten(0);
	stall_is_measured_and_forgotten(1000);
	return 0;
}
