/* SPDX-License-Identifier: Apache-2.0 */
/* kvm_state.h - sections of the machine's state, in the container of blob.h. */
#ifndef GY_KVM_STATE_H
#define GY_KVM_STATE_H

#include "blob.h"
#include "kvm.h"

/* 0 is no type; numbers are part of the format and are never used again. */
enum gy_state_section {
	GY_STATE_SHAPE = 1,		/* struct gy_state_shape */
	GY_STATE_MACHINE = 2,		/* struct gy_state_machine */
	GY_STATE_CPUID = 3,		/* struct kvm_cpuid_entry2[] */
	GY_STATE_IRQCHIP = 4,		/* struct kvm_irqchip; the owner is the chip */
	GY_STATE_REGS = 16,
	GY_STATE_SREGS = 17,
	GY_STATE_XCRS = 18,
	GY_STATE_XSAVE = 19,		/* as long as KVM_CAP_XSAVE2 says */
	GY_STATE_DEBUGREGS = 20,
	GY_STATE_EVENTS = 21,
	GY_STATE_MP_STATE = 22,
	GY_STATE_LAPIC = 23,		/* only with an interrupt controller */
	GY_STATE_MSRS = 24,		/* struct kvm_msr_entry[] */
};

/* What a machine must have in common with the one it was saved from. */
struct gy_state_shape {
	uint64_t ram_bytes;
	struct gy_vm_config config;
};

struct gy_state_machine {
	uint64_t realtime_ns;		/* CLOCK_REALTIME of the host, just before the guest's TSCs were read */
	uint32_t tsc_khz;
	uint32_t booted_vcpus;
	uint64_t kvm_clock_ns;
};

_Static_assert(sizeof(struct gy_state_shape) == 8 + sizeof(struct gy_vm_config), "no holes");
_Static_assert(sizeof(struct gy_state_machine) == 24, "no holes");

struct gy_restore_clock {
	uint64_t elapsed_ns;		/* real time since the save */
	uint64_t tsc_floor;		/* no vCPU had seen a later TSC: all were stopped before any was read */
};

/* kvm_vcpu_state.c */
int gy_vcpu_save(struct gy_vcpu *vcpu, struct gy_blob_writer *writer, const struct gy_err *err);
int gy_vcpu_restore(struct gy_vcpu *vcpu, const struct gy_blob *blob, const struct gy_restore_clock *clock,
		    const struct gy_err *err);
/* The vCPU's TSC at the save; UINT64_MAX where the blob has none. */
uint64_t gy_vcpu_saved_tsc(const struct gy_blob *blob, uint32_t vcpu);
uint64_t gy_vcpu_state_bytes(const struct gy_vm *vm);

/* kvm_cpuid.c */
/* What this KVM offers, without what belongs to the CPU that happened to run the call. */
int gy_cpuid_read(int kvm_fd, struct gy_kvm_cpuid *cpuid, const struct gy_err *err);
/* -ENOTSUP, with leaf and bits, where @saved has a feature that @here has not. */
int gy_cpuid_check(const struct gy_kvm_cpuid *saved, const struct gy_kvm_cpuid *here, const struct gy_err *err);

#endif
