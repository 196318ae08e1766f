// SPDX-License-Identifier: Apache-2.0
/* kvm_cpuid.c - the CPU features a guest sees, and whether another host has them. */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "kvm_state.h"

enum cpuid_register { EAX, EBX, ECX, EDX };

static const char *const register_names[] = { "EAX", "EBX", "ECX", "EDX" };

/* The words that are sets of features: a guest that found a bit there may use it at any time. */
static const struct {
	uint32_t leaf;
	uint32_t index;
	enum cpuid_register reg;
} feature_words[] = {
	{ 0x1, 0, ECX }, { 0x1, 0, EDX },
	{ 0x7, 0, EBX }, { 0x7, 0, ECX }, { 0x7, 0, EDX }, { 0x7, 1, EAX },
	{ 0xd, 0, EAX }, { 0xd, 0, EDX }, { 0xd, 1, EAX },
	{ 0x80000001, 0, ECX }, { 0x80000001, 0, EDX },
	{ 0x80000008, 0, EBX },
};

static uint32_t *word_of(struct kvm_cpuid_entry2 *entry, enum cpuid_register reg)
{
	switch (reg) {
	case EAX:
		return &entry->eax;
	case EBX:
		return &entry->ebx;
	case ECX:
		return &entry->ecx;
	default:
		return &entry->edx;
	}
}

static uint32_t read_word(const struct gy_kvm_cpuid *cpuid, uint32_t leaf, uint32_t index, enum cpuid_register reg)
{
	for (uint32_t i = 0; i < cpuid->head.nent; i++) {
		struct kvm_cpuid_entry2 entry = cpuid->entries[i];

		if (entry.function == leaf && entry.index == index)
			return *word_of(&entry, reg);
	}
	return 0;
}

/* KVM copies these from the CPU that it is called on; two tables of one host would differ by chance. */
static void clear_apic_ids(struct gy_kvm_cpuid *cpuid)
{
	for (uint32_t i = 0; i < cpuid->head.nent; i++) {
		struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];

		if (entry->function == 0x1)
			entry->ebx &= 0x00ffffff;
		if (entry->function == 0xb || entry->function == 0x1f)
			entry->edx = 0;
		if (entry->function == 0x8000001e)
			entry->eax = 0;
	}
}

int gy_cpuid_read(int kvm_fd, struct gy_kvm_cpuid *cpuid, const struct gy_err *err)
{
	cpuid->head.nent = GY_KVM_CPUID_ENTRIES;
	if (ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid)) {
		int ret = -errno;

		return gy_err_set(err, ret, "Cannot read the CPU features of KVM: %s", strerror(-ret));
	}
	clear_apic_ids(cpuid);
	return 0;
}

int gy_cpuid_check(const struct gy_kvm_cpuid *saved, const struct gy_kvm_cpuid *here, const struct gy_err *err)
{
	for (size_t i = 0; i < sizeof(feature_words) / sizeof(feature_words[0]); i++) {
		uint32_t leaf = feature_words[i].leaf, index = feature_words[i].index;
		enum cpuid_register reg = feature_words[i].reg;
		uint32_t want = read_word(saved, leaf, index, reg);
		uint32_t have = read_word(here, leaf, index, reg);

		if (want & ~have)
			return gy_err_set(err, -ENOTSUP,
					  "Cannot run this guest here: CPUID leaf 0x%x.%u %s lacks bits 0x%x (has 0x%x, must have 0x%x)",
					  leaf, index, register_names[reg], want & ~have, have, want);
	}
	return 0;
}
