// SPDX-License-Identifier: Apache-2.0
/* workload.c - the guest's account of itself, read from its RAM, and the request to forget its stalls. */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "guest/guest_abi.h"
#include "hist.h"
#include "kvm.h"
#include "workload.h"

int gy_workload_account(struct gy_vm *vm, uint32_t vcpu, struct gy_guest_account *account)
{
	int64_t n = gy_ram_read(vm->ram, gy_guest_account_va(vcpu), account, sizeof(*account));

	if (n < 0)
		return (int)n;
	return account->magic == GY_GUEST_ACCOUNT_MAGIC && account->vcpu == vcpu ? 0 : -ENODATA;
}

static int read_boot_generation(struct gy_vm *vm, uint32_t *generation)
{
	struct gy_guest_boot boot;
	int64_t n = gy_ram_read(vm->ram, GY_GUEST_BOOT_PAGE * GY_PAGE_BYTES, &boot, sizeof(boot));

	if (n < 0)
		return (int)n;
	*generation = boot.stall_generation;
	return boot.magic == GY_GUEST_BOOT_MAGIC ? 0 : -ENODATA;
}

static void add_account(struct gy_guest_report *report, const struct gy_guest_account *account)
{
	report->verified_pages += account->touches;
	report->written_pages += account->written_pages;
	report->clock_backsteps += account->clock_backsteps;
	if (account->corrupt && account->first_corrupt_page < report->first_corrupt_page)
		report->first_corrupt_page = account->first_corrupt_page;
	report->corrupt += account->corrupt;
}

int gy_vm_report(struct gy_vm *vm, struct gy_guest_report *report)
{
	struct gy_guest_account account;
	uint32_t generation = 0;
	int ret = read_boot_generation(vm, &generation);

	if (ret && ret != -ENODATA)
		return ret;
	*report = (struct gy_guest_report){ .vcpus = vm->config.vcpus, .first_corrupt_page = UINT64_MAX };
	pthread_mutex_lock(&vm->lock);
	report->running = vm->want_run;
	report->booted = vm->booted_vcpus == (1u << vm->config.vcpus) - 1;
	pthread_mutex_unlock(&vm->lock);
	for (uint32_t i = 0; i < vm->config.vcpus; i++) {
		ret = gy_workload_account(vm, i, &account);
		if (ret && ret != -ENODATA)
			return ret;
		if (ret) {
			report->unread_vcpus++;
			continue;
		}
		add_account(report, &account);
		/* A request that the vCPU has not come to yet counts already. */
		if ((int32_t)(generation - account.stall_generation) <= 0)
			gy_hist_merge(&report->stall, &account.stall);
	}
	report->largest_stall_ns = report->stall.max;
	report->passes = report->verified_pages / (vm->layout.slice_pages * vm->config.vcpus);
	return 0;
}

/*
 * The new generation is above every one seen, also that of a vCPU whose account is newer than the boot page.
 * Never writes a page that is missing: that would make it present with everything else in it lost.
 */
int gy_vm_reset_stall(struct gy_vm *vm)
{
	uint64_t offset = GY_GUEST_BOOT_PAGE * GY_PAGE_BYTES;
	struct gy_guest_account account;
	uint32_t generation;
	int64_t n;
	int ret = read_boot_generation(vm, &generation);

	if (ret)
		return ret == -ENODATA ? -EAGAIN : ret;
	for (uint32_t i = 0; i < vm->config.vcpus; i++) {
		if (!gy_workload_account(vm, i, &account) && (int32_t)(account.stall_generation - generation) > 0)
			generation = account.stall_generation;
	}
	generation++;
	n = gy_ram_write(vm->ram, offset + offsetof(struct gy_guest_boot, stall_generation), &generation,
			 sizeof(generation));
	if (n < 0)
		return (int)n;
	/* KVM's dirty log sees the guest's writes only. */
	__atomic_store_n(&vm->host_dirtied, true, __ATOMIC_SEQ_CST);
	return 0;
}
