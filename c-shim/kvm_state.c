// SPDX-License-Identifier: Apache-2.0
/* kvm_state.c - the stopped machine's state as one blob, and a machine of the same shape made from it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "kvm_state.h"

#define IRQCHIPS 3u			/* two PICs and the I/O APIC */
#define TSC_TOLERANCE_PER_1000 1u	/* clocks closer than this are the same clock */

static uint64_t realtime_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static uint32_t irqchips(const struct gy_vm *vm)
{
	return vm->config.flags & GY_VM_IRQCHIP ? IRQCHIPS : 0;
}

/* ---- saving ---- */

static void save_shape(struct gy_vm *vm, struct gy_blob_writer *writer)
{
	struct gy_state_shape shape = { .ram_bytes = vm->ram->bytes, .config = vm->config };

	gy_blob_put(writer, GY_STATE_SHAPE, GY_BLOB_MACHINE, &shape, sizeof(shape));
	gy_blob_put(writer, GY_STATE_CPUID, GY_BLOB_MACHINE, vm->cpuid->entries,
		    vm->cpuid->head.nent * sizeof(vm->cpuid->entries[0]));
}

static int save_machine(struct gy_vm *vm, struct gy_blob_writer *writer, const struct gy_err *err)
{
	struct gy_state_machine machine = { .realtime_ns = realtime_ns(), .tsc_khz = vm->tsc_khz };
	struct kvm_clock_data clock;

	if (ioctl(vm->fd, KVM_GET_CLOCK, &clock)) {
		int ret = -errno;

		return gy_err_set(err, ret, "Cannot save the clock of the VM: %s", strerror(-ret));
	}
	machine.kvm_clock_ns = clock.clock;
	machine.booted_vcpus = vm->booted_vcpus;
	gy_blob_put(writer, GY_STATE_MACHINE, GY_BLOB_MACHINE, &machine, sizeof(machine));
	return 0;
}

static int save_irqchips(struct gy_vm *vm, struct gy_blob_writer *writer, const struct gy_err *err)
{
	for (uint32_t i = 0; i < irqchips(vm); i++) {
		struct kvm_irqchip chip = { .chip_id = i };

		if (ioctl(vm->fd, KVM_GET_IRQCHIP, &chip)) {
			int ret = -errno;

			return gy_err_set(err, ret, "Cannot save interrupt controller %u: %s", i, strerror(-ret));
		}
		gy_blob_put(writer, GY_STATE_IRQCHIP, i, &chip, sizeof(chip));
	}
	return 0;
}

/* A machine that does not run now and could: only such a one has a state worth taking. */
static int check_savable(struct gy_vm *vm, const struct gy_err *err)
{
	if (gy_vm_running(vm))
		return gy_err_set(err, -EBUSY, "Cannot save a running VM: stop it first");
	if (!vm->loaded)
		return gy_err_set(err, -EINVAL, "Cannot save a VM that was neither booted nor restored");
	for (uint32_t i = 0; i < vm->config.vcpus; i++) {
		if (vm->vcpu[i].failed)
			return gy_err_set(err, -EIO, "Cannot save a VM that has failed: %s", vm->failure);
	}
	return 0;
}

int64_t gy_vm_save(struct gy_vm *vm, void *buf, uint64_t cap, char *err, uint32_t err_bytes)
{
	struct gy_err words = { err, err_bytes };
	struct gy_blob_writer writer;
	int64_t bytes;
	int ret = check_savable(vm, &words);

	if (ret)
		return ret;
	gy_blob_begin(&writer, buf, cap);
	save_shape(vm, &writer);
	ret = save_machine(vm, &writer, &words);
	if (!ret)
		ret = save_irqchips(vm, &writer, &words);
	for (uint32_t i = 0; !ret && i < vm->config.vcpus; i++)
		ret = gy_vcpu_save(&vm->vcpu[i], &writer, &words);
	if (ret)
		return ret;
	bytes = gy_blob_seal(&writer);
	if (bytes == -ENOSPC)
		gy_err_set(&words, -ENOSPC, "Cannot save the state in %llu bytes: may need %lld",
			   (unsigned long long)cap, (long long)gy_vm_state_bytes(vm));
	return bytes;
}

int64_t gy_vm_state_bytes(struct gy_vm *vm)
{
	uint64_t bytes = sizeof(struct gy_blob_head) + GY_BLOB_DIGEST_BYTES;

	bytes += gy_blob_section_bytes(sizeof(struct gy_state_shape));
	bytes += gy_blob_section_bytes(sizeof(struct gy_state_machine));
	bytes += gy_blob_section_bytes(vm->cpuid->head.nent * sizeof(vm->cpuid->entries[0]));
	bytes += irqchips(vm) * gy_blob_section_bytes(sizeof(struct kvm_irqchip));
	bytes += vm->config.vcpus * gy_vcpu_state_bytes(vm);
	return (int64_t)bytes;
}

/* ---- is it for us? Nothing is changed before all of this has passed ---- */

static int shape_differs(const char *what, uint64_t saved, uint64_t here, const struct gy_err *err)
{
	if (saved == here)
		return 0;
	return gy_err_set(err, -EINVAL, "Cannot load a state of a VM with %s %llu: this one has %llu", what,
			  (unsigned long long)saved, (unsigned long long)here);
}

static int check_shape(struct gy_vm *vm, const struct gy_blob *blob, const struct gy_err *err)
{
	const struct gy_vm_config *here = &vm->config;
	struct gy_state_shape saved;
	int ret = gy_blob_get(blob, GY_STATE_SHAPE, GY_BLOB_MACHINE, &saved, sizeof(saved), err);

	if (!ret)
		ret = shape_differs("RAM bytes", saved.ram_bytes, vm->ram->bytes, err);
	if (!ret)
		ret = shape_differs("vCPUs", saved.config.vcpus, here->vcpus, err);
	if (!ret)
		ret = shape_differs("flags", saved.config.flags, here->flags, err);
	if (!ret)
		ret = shape_differs("workload", saved.config.workload, here->workload, err);
	if (!ret)
		ret = shape_differs("writes per 1024", saved.config.write_per_1024, here->write_per_1024, err);
	if (!ret)
		ret = shape_differs("working set bytes", saved.config.working_set_bytes, here->working_set_bytes, err);
	if (!ret)
		ret = shape_differs("pages per second", saved.config.rate_pages_per_s, here->rate_pages_per_s, err);
	if (!ret)
		ret = shape_differs("seed", saved.config.seed, here->seed, err);
	return ret;
}

static int check_tsc(struct gy_vm *vm, const struct gy_state_machine *machine, const struct gy_err *err)
{
	int64_t here = ioctl(vm->vcpu[0].fd, KVM_GET_TSC_KHZ, 0);
	int64_t difference = (int64_t)machine->tsc_khz - here;

	if (difference < 0)
		difference = -difference;
	if (difference * 1000 <= here * TSC_TOLERANCE_PER_1000)
		return 0;
	if (ioctl(vm->kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL) > 0)
		return 0;
	return gy_err_set(err, -ENOTSUP,
			  "Cannot run this guest here: its clock counts %u kHz, this host's %lld, and KVM cannot scale",
			  machine->tsc_khz, (long long)here);
}

static int get_cpuid(struct gy_vm *vm, const struct gy_blob *blob, struct gy_kvm_cpuid *cpuid,
		     const struct gy_err *err)
{
	uint64_t bytes = 0;
	const void *from = gy_blob_find(blob, GY_STATE_CPUID, GY_BLOB_MACHINE, &bytes);

	if (!from || bytes % sizeof(cpuid->entries[0]) || bytes > sizeof(cpuid->entries))
		return gy_err_set(err, -EBADMSG, "Cannot load a state with %llu bytes of CPU features",
				  (unsigned long long)bytes);
	cpuid->head.nent = (uint32_t)(bytes / sizeof(cpuid->entries[0]));
	memcpy(cpuid->entries, from, bytes);
	return gy_cpuid_check(cpuid, vm->host_cpuid, err);
}

/* ---- restoring ---- */

/* A vCPU that has run keeps the features it has; KVM refuses any others. */
static int set_cpuid(struct gy_vm *vm, const struct gy_kvm_cpuid *cpuid, const struct gy_err *err)
{
	if (cpuid->head.nent == vm->cpuid->head.nent &&
	    !memcmp(cpuid->entries, vm->cpuid->entries, cpuid->head.nent * sizeof(cpuid->entries[0])))
		return 0;
	for (uint32_t i = 0; i < vm->config.vcpus; i++) {
		if (ioctl(vm->vcpu[i].fd, KVM_SET_CPUID2, cpuid)) {
			int ret = -errno;

			return gy_err_set(err, ret, "Cannot give vCPU %u the CPU features it was saved with: %s", i,
					  strerror(-ret));
		}
	}
	*vm->cpuid = *cpuid;
	return 0;
}

static int set_clock(struct gy_vm *vm, const struct gy_state_machine *machine, uint64_t elapsed_ns,
		     const struct gy_err *err)
{
	struct kvm_clock_data clock = { .clock = machine->kvm_clock_ns + elapsed_ns };

	vm->tsc_khz = machine->tsc_khz;
	if (ioctl(vm->kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL) > 0) {
		for (uint32_t i = 0; i < vm->config.vcpus; i++)
			ioctl(vm->vcpu[i].fd, KVM_SET_TSC_KHZ, (unsigned long)machine->tsc_khz);
	}
	if (ioctl(vm->fd, KVM_SET_CLOCK, &clock)) {
		int ret = -errno;

		return gy_err_set(err, ret, "Cannot restore the clock of the VM: %s", strerror(-ret));
	}
	return 0;
}

static int restore_irqchips(struct gy_vm *vm, const struct gy_blob *blob, const struct gy_err *err)
{
	for (uint32_t i = 0; i < irqchips(vm); i++) {
		struct kvm_irqchip chip;
		int ret = gy_blob_get(blob, GY_STATE_IRQCHIP, i, &chip, sizeof(chip), err);

		if (ret)
			return ret;
		chip.chip_id = i;
		if (ioctl(vm->fd, KVM_SET_IRQCHIP, &chip)) {
			ret = -errno;
			return gy_err_set(err, ret, "Cannot restore interrupt controller %u: %s", i, strerror(-ret));
		}
	}
	return 0;
}

static struct gy_restore_clock restore_clock(const struct gy_vm *vm, const struct gy_blob *blob,
					     const struct gy_state_machine *machine)
{
	struct gy_restore_clock clock = { .tsc_floor = UINT64_MAX };
	uint64_t now = realtime_ns();

	/* Clocks of two hosts may differ by more than the move took. */
	clock.elapsed_ns = now > machine->realtime_ns ? now - machine->realtime_ns : 0;
	for (uint32_t i = 0; i < vm->config.vcpus; i++) {
		uint64_t tsc = gy_vcpu_saved_tsc(blob, i);

		clock.tsc_floor = tsc < clock.tsc_floor ? tsc : clock.tsc_floor;
	}
	return clock;
}

static int restore_all(struct gy_vm *vm, const struct gy_blob *blob, const struct gy_state_machine *machine,
		       const struct gy_kvm_cpuid *cpuid, const struct gy_err *err)
{
	struct gy_restore_clock clock = restore_clock(vm, blob, machine);
	int ret = set_cpuid(vm, cpuid, err);

	if (!ret)
		ret = set_clock(vm, machine, clock.elapsed_ns, err);
	if (!ret)
		ret = restore_irqchips(vm, blob, err);
	for (uint32_t i = 0; !ret && i < vm->config.vcpus; i++)
		ret = gy_vcpu_restore(&vm->vcpu[i], blob, &clock, err);
	return ret;
}

static int restore_checked(struct gy_vm *vm, const struct gy_blob *blob, struct gy_kvm_cpuid *cpuid,
			   const struct gy_err *err)
{
	struct gy_state_machine machine;
	int ret = check_shape(vm, blob, err);

	if (!ret)
		ret = gy_blob_get(blob, GY_STATE_MACHINE, GY_BLOB_MACHINE, &machine, sizeof(machine), err);
	if (!ret)
		ret = get_cpuid(vm, blob, cpuid, err);
	if (!ret)
		ret = check_tsc(vm, &machine, err);
	if (ret)
		return ret;
	vm->loaded = false;
	ret = restore_all(vm, blob, &machine, cpuid, err);
	if (ret)
		return ret;
	gy_vm_renew(vm, machine.booted_vcpus);
	vm->loaded = true;
	return 0;
}

int gy_vm_restore(struct gy_vm *vm, const void *buf, uint64_t len, char *err, uint32_t err_bytes)
{
	struct gy_err words = { err, err_bytes };
	struct gy_kvm_cpuid *cpuid;
	struct gy_blob blob;
	int ret;

	if (gy_vm_running(vm))
		return gy_err_set(&words, -EBUSY, "Cannot load a state into a running VM: stop it first");
	ret = gy_blob_open(&blob, buf, len, &words);
	if (ret)
		return ret;
	cpuid = calloc(1, sizeof(*cpuid));
	if (!cpuid)
		return gy_err_set(&words, -ENOMEM, "Cannot load a state: out of memory");
	ret = restore_checked(vm, &blob, cpuid, &words);
	free(cpuid);
	return ret;
}
