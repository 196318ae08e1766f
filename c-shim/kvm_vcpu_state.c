// SPDX-License-Identifier: Apache-2.0
/* kvm_vcpu_state.c - everything that KVM knows of one vCPU, saved and restored. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kvm_state.h"

#define MSR_TSC 0x10u
/* The largest of the structs below, LAPIC's, is 1 KiB. */
#define PART_MAX_BYTES 1024u

struct part {
	enum gy_state_section section;
	unsigned long get, set;
	uint32_t bytes;
	bool irqchip_only;
	const char *name;
};

/*
 * In the order of restoring: control registers first (they say what mode the rest is for, and where the APIC
 * is), pending events after whatever could raise or drop one.
 */
static const struct part parts_first[] = {
	{ GY_STATE_SREGS, KVM_GET_SREGS, KVM_SET_SREGS, sizeof(struct kvm_sregs), false, "control registers" },
	{ GY_STATE_REGS, KVM_GET_REGS, KVM_SET_REGS, sizeof(struct kvm_regs), false, "general registers" },
	{ GY_STATE_XCRS, KVM_GET_XCRS, KVM_SET_XCRS, sizeof(struct kvm_xcrs), false, "XCR0" },
	{ GY_STATE_LAPIC, KVM_GET_LAPIC, KVM_SET_LAPIC, sizeof(struct kvm_lapic_state), true, "local APIC" },
};

static const struct part parts_last[] = {
	{ GY_STATE_EVENTS, KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, sizeof(struct kvm_vcpu_events), false,
	  "pending events" },
	{ GY_STATE_MP_STATE, KVM_GET_MP_STATE, KVM_SET_MP_STATE, sizeof(struct kvm_mp_state), false, "run state" },
	{ GY_STATE_DEBUGREGS, KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, sizeof(struct kvm_debugregs), false,
	  "debug registers" },
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static bool has_part(const struct gy_vm *vm, const struct part *part)
{
	return !part->irqchip_only || vm->config.flags & GY_VM_IRQCHIP;
}

/* ---- saving ---- */

static int save_parts(struct gy_vcpu *vcpu, const struct part *parts, size_t n, struct gy_blob_writer *writer,
		      const struct gy_err *err)
{
	uint64_t data[PART_MAX_BYTES / sizeof(uint64_t)];

	for (size_t i = 0; i < n; i++) {
		if (!has_part(vcpu->vm, &parts[i]))
			continue;
		memset(data, 0, sizeof(data));
		if (ioctl(vcpu->fd, parts[i].get, data)) {
			int ret = -errno;

			return gy_err_set(err, ret, "Cannot save the %s of vCPU %u: %s", parts[i].name, vcpu->index,
					  strerror(-ret));
		}
		gy_blob_put(writer, parts[i].section, vcpu->index, data, parts[i].bytes);
	}
	return 0;
}

static int save_xsave(struct gy_vcpu *vcpu, struct gy_blob_writer *writer, const struct gy_err *err)
{
	bool has_xsave2 = vcpu->vm->xsave_bytes > sizeof(struct kvm_xsave);
	void *data = calloc(1, vcpu->vm->xsave_bytes);
	int ret;

	if (!data)
		return gy_err_set(err, -ENOMEM, "Cannot save a vCPU: out of memory");
	ret = ioctl(vcpu->fd, has_xsave2 ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, data) ? -errno : 0;
	if (ret)
		gy_err_set(err, ret, "Cannot save the vector registers of vCPU %u: %s", vcpu->index, strerror(-ret));
	else
		gy_blob_put(writer, GY_STATE_XSAVE, vcpu->index, data, vcpu->vm->xsave_bytes);
	free(data);
	return ret;
}

static int save_msrs(struct gy_vcpu *vcpu, struct gy_blob_writer *writer, const struct gy_err *err)
{
	uint32_t wanted = vcpu->vm->msrs->head.nmsrs;
	struct gy_kvm_msrs *msrs = malloc(sizeof(*msrs));
	int n, ret = 0;

	if (!msrs)
		return gy_err_set(err, -ENOMEM, "Cannot save a vCPU: out of memory");
	*msrs = *vcpu->vm->msrs;
	n = ioctl(vcpu->fd, KVM_GET_MSRS, msrs);
	if (n < 0 || (uint32_t)n < wanted)
		ret = gy_err_set(err, n < 0 ? -errno : -EIO, "Cannot save MSR %#x of vCPU %u",
				 msrs->entries[n < 0 ? 0 : n].index, vcpu->index);
	else
		gy_blob_put(writer, GY_STATE_MSRS, vcpu->index, msrs->entries, wanted * sizeof(msrs->entries[0]));
	free(msrs);
	return ret;
}

int gy_vcpu_save(struct gy_vcpu *vcpu, struct gy_blob_writer *writer, const struct gy_err *err)
{
	/* The run state first: reading it makes KVM take in pending INIT and SIPI, which change the others. */
	int ret = save_parts(vcpu, parts_last, COUNT(parts_last), writer, err);

	if (!ret)
		ret = save_parts(vcpu, parts_first, COUNT(parts_first), writer, err);
	if (!ret)
		ret = save_xsave(vcpu, writer, err);
	return ret ? ret : save_msrs(vcpu, writer, err);
}

uint64_t gy_vcpu_state_bytes(const struct gy_vm *vm)
{
	uint64_t bytes = gy_blob_section_bytes(vm->xsave_bytes) +
			 gy_blob_section_bytes(vm->msrs->head.nmsrs * sizeof(struct kvm_msr_entry));

	for (size_t i = 0; i < COUNT(parts_first); i++)
		bytes += gy_blob_section_bytes(parts_first[i].bytes);
	for (size_t i = 0; i < COUNT(parts_last); i++)
		bytes += gy_blob_section_bytes(parts_last[i].bytes);
	return bytes;
}

/* ---- restoring ---- */

static int restore_parts(struct gy_vcpu *vcpu, const struct part *parts, size_t n, const struct gy_blob *blob,
			 const struct gy_err *err)
{
	uint64_t data[PART_MAX_BYTES / sizeof(uint64_t)];
	int ret;

	for (size_t i = 0; i < n; i++) {
		if (!has_part(vcpu->vm, &parts[i]))
			continue;
		ret = gy_blob_get(blob, parts[i].section, vcpu->index, data, parts[i].bytes, err);
		if (ret)
			return ret;
		if (ioctl(vcpu->fd, parts[i].set, data)) {
			ret = -errno;
			return gy_err_set(err, ret, "Cannot restore the %s of vCPU %u: %s", parts[i].name,
					  vcpu->index, strerror(-ret));
		}
	}
	return 0;
}

/* KVM reads as many bytes as it would write; a host with fewer features has a shorter area. */
static int restore_xsave(struct gy_vcpu *vcpu, const struct gy_blob *blob, const struct gy_err *err)
{
	uint64_t bytes = 0;
	const void *from = gy_blob_find(blob, GY_STATE_XSAVE, vcpu->index, &bytes);
	uint32_t room = vcpu->vm->xsave_bytes;
	void *data;
	int ret;

	if (!from)
		return gy_err_set(err, -EBADMSG, "Cannot load a state without vector registers of vCPU %u",
				  vcpu->index);
	if (bytes > room)
		return gy_err_set(err, -ENOTSUP, "Cannot restore %llu bytes of vector registers: this host has %u",
				  (unsigned long long)bytes, room);
	data = calloc(1, room);
	if (!data)
		return gy_err_set(err, -ENOMEM, "Cannot restore a vCPU: out of memory");
	memcpy(data, from, bytes);
	ret = ioctl(vcpu->fd, KVM_SET_XSAVE, data) ? -errno : 0;
	free(data);
	if (ret)
		gy_err_set(err, ret, "Cannot restore the vector registers of vCPU %u: %s", vcpu->index,
			   strerror(-ret));
	return ret;
}

/* Some MSRs exist only with a feature that this machine lacks; what was never set need not be restored. */
static bool holds_reset_value(const struct gy_vm *vm, const struct kvm_msr_entry *entry)
{
	for (uint32_t i = 0; i < vm->msrs->head.nmsrs; i++) {
		if (vm->msrs->entries[i].index == entry->index)
			return vm->msrs->entries[i].data == entry->data;
	}
	return !entry->data;
}

/* KVM_SET_MSRS stops at the first that it refuses; what cannot be skipped is an error. */
static int set_msrs(struct gy_vcpu *vcpu, const struct kvm_msr_entry *entries, uint32_t n, struct gy_kvm_msrs *msrs,
		    const struct gy_err *err)
{
	for (uint32_t done = 0; done < n;) {
		int set;

		msrs->head = (struct kvm_msrs){ .nmsrs = n - done };
		memcpy(msrs->entries, entries + done, (n - done) * sizeof(entries[0]));
		set = ioctl(vcpu->fd, KVM_SET_MSRS, msrs);
		if (set < 0) {
			set = -errno;
			return gy_err_set(err, set, "Cannot restore the MSRs of vCPU %u: %s", vcpu->index,
					  strerror(-set));
		}
		done += (uint32_t)set;
		if (done == n)
			break;
		if (!holds_reset_value(vcpu->vm, &entries[done]))
			return gy_err_set(err, -ENOTSUP, "Cannot restore MSR %#x of vCPU %u: KVM refuses the value %#llx",
					  entries[done].index, vcpu->index, (unsigned long long)entries[done].data);
		done++;
	}
	return 0;
}

/* Time went on while the guest did not run; its clock shows that, and never less than it showed before. */
static void advance_tsc(struct kvm_msr_entry *entries, uint32_t n, uint64_t elapsed_ns, uint32_t tsc_khz)
{
	unsigned __int128 cycles = (unsigned __int128)elapsed_ns * tsc_khz / 1000000;

	for (uint32_t i = 0; i < n; i++) {
		if (entries[i].index == MSR_TSC)
			entries[i].data += (uint64_t)cycles;
	}
}

/* Some KVMs (PVM) show the host's own TSC and take a write without effect: there only a later TSC will do. */
static int check_tsc_went_on(struct gy_vcpu *vcpu, uint64_t floor, const struct gy_err *err)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} now = { .head.nmsrs = 1, .entry.index = MSR_TSC };

	if (ioctl(vcpu->fd, KVM_GET_MSRS, &now) == 1 && now.entry.data >= floor)
		return 0;
	return gy_err_set(err, -ENOTSUP,
			  "Cannot run this guest here: the clock of vCPU %u would go back to %llu, must be at least %llu",
			  vcpu->index, (unsigned long long)now.entry.data, (unsigned long long)floor);
}

uint64_t gy_vcpu_saved_tsc(const struct gy_blob *blob, uint32_t vcpu)
{
	uint64_t bytes = 0;
	const uint8_t *from = gy_blob_find(blob, GY_STATE_MSRS, vcpu, &bytes);
	struct kvm_msr_entry entry;

	for (uint64_t at = 0; from && at + sizeof(entry) <= bytes; at += sizeof(entry)) {
		memcpy(&entry, from + at, sizeof(entry));
		if (entry.index == MSR_TSC)
			return entry.data;
	}
	return UINT64_MAX;
}

static int restore_msrs(struct gy_vcpu *vcpu, const struct gy_blob *blob, const struct gy_restore_clock *clock,
			const struct gy_err *err)
{
	uint64_t bytes = 0;
	const void *from = gy_blob_find(blob, GY_STATE_MSRS, vcpu->index, &bytes);
	uint32_t n = (uint32_t)(bytes / sizeof(struct kvm_msr_entry));
	struct kvm_msr_entry *entries;
	struct gy_kvm_msrs *msrs;
	int ret = -ENOMEM;

	if (!from || bytes % sizeof(*entries) || bytes / sizeof(*entries) > GY_KVM_MSRS)
		return gy_err_set(err, -EBADMSG, "Cannot load a state with %llu bytes of MSRs of vCPU %u",
				  (unsigned long long)bytes, vcpu->index);
	/* The section is aligned to nothing. */
	entries = malloc(bytes + 1);
	msrs = malloc(sizeof(*msrs));
	if (entries && msrs) {
		memcpy(entries, from, bytes);
		advance_tsc(entries, n, clock->elapsed_ns, vcpu->vm->tsc_khz);
		ret = set_msrs(vcpu, entries, n, msrs, err);
		if (!ret)
			ret = check_tsc_went_on(vcpu, clock->tsc_floor, err);
	} else {
		gy_err_set(err, ret, "Cannot restore a vCPU: out of memory");
	}
	free(msrs);
	free(entries);
	return ret;
}

int gy_vcpu_restore(struct gy_vcpu *vcpu, const struct gy_blob *blob, const struct gy_restore_clock *clock,
		    const struct gy_err *err)
{
	int ret = restore_parts(vcpu, parts_first, COUNT(parts_first), blob, err);

	if (!ret)
		ret = restore_xsave(vcpu, blob, err);
	if (!ret)
		ret = restore_msrs(vcpu, blob, clock, err);
	return ret ? ret : restore_parts(vcpu, parts_last, COUNT(parts_last), blob, err);
}
