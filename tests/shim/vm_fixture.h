/* SPDX-License-Identifier: Apache-2.0 */
/* vm_fixture.h - a micro-VM for a test: made, booted, run for a number of touches, damaged on purpose. */
#ifndef VM_FIXTURE_H
#define VM_FIXTURE_H

#include <errno.h>
#include <stdbool.h>
#include <unistd.h>

#include "check.h"
#include "clock.h"
#include "guest/guest_abi.h"
#include "gyges.h"
#include "hist.h"
#include "kvm.h"
#include "ram.h"

#define MIB (1ull << 20)
#define RAM_BYTES (32 * MIB)
#define SLOW_MS 60000u		/* only a hang takes so long, even under a sanitizer on a busy host */

#define SKIPPED 77

/* Says why a program that needs KVM is skipped. */
static inline bool no_kvm(const char *program)
{
	if (!access("/dev/kvm", R_OK | W_OK))
		return false;
	printf("skip: %s: /dev/kvm cannot be used (errno %d)\n", program, errno);
	return true;
}

static const struct gy_vm_config uniform_1 = {
	.vcpus = 1, .workload = GY_WORKLOAD_UNIFORM, .write_per_1024 = 512, .seed = 11,
};

static const struct gy_vm_config uniform_2 = {
	.vcpus = 2, .workload = GY_WORKLOAD_UNIFORM, .write_per_1024 = 512, .seed = 12,
};

struct machine {
	struct gy_ram *ram;
	struct gy_vm *vm;
};

static inline struct machine machine_make(const struct gy_vm_config *config, uint64_t ram_bytes)
{
	struct machine machine;
	char err[256] = "";

	CHECK_EQUAL(gy_ram_create(ram_bytes, &machine.ram), 0);
	if (gy_vm_create(machine.ram, config, &machine.vm, err, sizeof(err))) {
		fprintf(stderr, "%s\n", err);
		exit(1);
	}
	return machine;
}

static inline void machine_end(struct machine machine)
{
	gy_vm_destroy(machine.vm);
	gy_ram_destroy(machine.ram);
}

static inline void expect_event(struct gy_vm *vm, int event)
{
	char err[256] = "";
	int got = gy_vm_wait(vm, SLOW_MS, err, sizeof(err));

	if (got != event) {
		fprintf(stderr, "event is %d (%s), must be %d\n", got, err, event);
		exit(1);
	}
}

static inline struct gy_guest_report report_of(struct gy_vm *vm)
{
	struct gy_guest_report report;

	CHECK_EQUAL(gy_vm_report(vm, &report), 0);
	return report;
}

/* Waits until the running guest has made @touches more touches. */
static inline void let_touch(struct gy_vm *vm, uint64_t touches)
{
	uint64_t goal = report_of(vm).verified_pages + touches;
	uint64_t deadline = deadline_after_ms(SLOW_MS);
	char err[256] = "";

	while (report_of(vm).verified_pages < goal) {
		if (gy_vm_wait(vm, 0, err, sizeof(err)) == GY_VM_EVENT_FAILED || now_ns() > deadline) {
			fprintf(stderr, "the guest does not go on: %s\n", err);
			exit(1);
		}
		usleep(500);
	}
}

static inline struct machine machine_boot(const struct gy_vm_config *config, uint64_t ram_bytes)
{
	struct machine machine = machine_make(config, ram_bytes);

	CHECK_EQUAL(gy_vm_boot(machine.vm), 0);
	CHECK_EQUAL(gy_vm_run(machine.vm), 0);
	expect_event(machine.vm, GY_VM_EVENT_BOOTED);
	return machine;
}

/* Booted, warm, and stopped. */
static inline struct machine machine_boot_stopped(const struct gy_vm_config *config, uint64_t ram_bytes)
{
	struct machine machine = machine_boot(config, ram_bytes);

	let_touch(machine.vm, 20000);
	CHECK_EQUAL(gy_vm_stop(machine.vm, SLOW_MS), 0);
	return machine;
}

static inline struct gy_ram_check check_of(struct gy_vm *vm)
{
	struct gy_ram_check check;

	CHECK_EQUAL(gy_vm_check_ram(vm, &check), 0);
	return check;
}

static inline void expect_clean(struct gy_vm *vm)
{
	struct gy_ram_check check = check_of(vm);
	struct gy_guest_report report = report_of(vm);

	if (check.bad_pages)
		fprintf(stderr, "%" PRIu64 " bad pages, first %" PRIu64 "\n", check.bad_pages, check.first_bad_page);
	CHECK_EQUAL(check.bad_pages, 0);
	CHECK_EQUAL(report.corrupt, 0);
	CHECK_EQUAL(report.clock_backsteps, 0);
	CHECK(report.first_corrupt_page == UINT64_MAX);
}

/* Touches after which every page has been looked at by the patrol, twice over. */
static inline uint64_t two_patrols(struct gy_vm *vm)
{
	return 2 * 16 * vm->layout.slice_pages * vm->config.vcpus;
}

static inline void read_page(struct gy_ram *ram, uint64_t page, void *words)
{
	CHECK_EQUAL(gy_ram_read(ram, page * GY_PAGE_BYTES, words, GY_PAGE_BYTES), GY_PAGE_BYTES);
}

static inline void write_page(struct gy_ram *ram, uint64_t page, const void *words)
{
	CHECK_EQUAL(gy_ram_write(ram, page * GY_PAGE_BYTES, words, GY_PAGE_BYTES), GY_PAGE_BYTES);
}

static inline uint32_t version_of(struct gy_vm *vm, uint64_t page)
{
	uint32_t version;

	CHECK_EQUAL(gy_ram_read(vm->ram, vm->layout.shadow_page * GY_PAGE_BYTES + page * sizeof(version), &version,
				sizeof(version)), sizeof(version));
	return version;
}

#endif
