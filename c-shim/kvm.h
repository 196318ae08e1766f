/* SPDX-License-Identifier: Apache-2.0 */
/* kvm.h - the micro-VM inside the shim. */
#ifndef GY_KVM_H
#define GY_KVM_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/ioctl.h>

#include "err.h"
#include "ram.h"

#define GY_KVM_CPUID_ENTRIES 256u
#define GY_KVM_MSRS 1024u

struct gy_kvm_cpuid {
	struct kvm_cpuid2 head;
	struct kvm_cpuid_entry2 entries[GY_KVM_CPUID_ENTRIES];
};

struct gy_kvm_msrs {
	struct kvm_msrs head;
	struct kvm_msr_entry entries[GY_KVM_MSRS];
};

/* Where things lie in guest RAM, worked out from the shape of the VM. */
struct gy_guest_layout {
	uint64_t table_pages;
	uint64_t shadow_page;
	uint64_t first_page;		/* first workload page */
	uint64_t slice_pages;		/* pages of the working set that each vCPU owns */
	uint64_t set_end_page;		/* end of the working set */
};

struct gy_vcpu {
	struct gy_vm *vm;
	uint32_t index;
	int fd;
	struct kvm_run *run;
	pthread_t thread;
	bool started;
	/* Under vm->lock. */
	bool parked;			/* outside KVM_RUN, no exit half done */
	bool failed;			/* does not run again until the next boot or restore */
	bool tables_present;		/* its thread's own: no page table is missing any more */
};

struct gy_vm {
	struct gy_ram *ram;
	struct gy_vm_config config;	/* working_set_bytes filled in */
	struct gy_guest_layout layout;
	int kvm_fd;
	int fd;
	size_t run_bytes;
	uint32_t xsave_bytes;
	uint32_t tsc_khz;		/* of the guest: a restored one brings its own */
	struct gy_kvm_cpuid *host_cpuid; /* what this KVM offers */
	struct gy_kvm_cpuid *cpuid;	/* what the vCPUs were given */
	struct gy_kvm_msrs *msrs;	/* the readable ones, with the values of a new vCPU */
	bool loaded;			/* booted or restored: may run */

	uint64_t *dirty_scratch;
	bool dirty_on;
	bool host_dirtied;		/* atomic: the boot page was written by the host, unseen by KVM */

	/* Order: nothing else is locked under this one. */
	pthread_mutex_t lock;
	pthread_cond_t wake;		/* to vCPU threads: run, sleep no longer, quit */
	pthread_cond_t changed;		/* to callers: a vCPU parked, an event */
	bool want_run;
	bool quit;
	uint32_t events;		/* bits 1 << enum gy_vm_event */
	uint32_t booted_vcpus;		/* bit for each */
	char failure[256];

	struct gy_vcpu vcpu[GY_VM_MAX_VCPUS];
};

/* kvm.c: the memslot over all of RAM; flags are those of KVM. 0 or -errno. */
int gy_memslot_set(struct gy_vm *vm, uint32_t flags);

/* kvm_run.c */
int gy_vcpu_start(struct gy_vcpu *vcpu);
/* Ends the threads that were started; each must be able to leave KVM_RUN. */
void gy_vcpus_end(struct gy_vm *vm);
bool gy_vm_running(struct gy_vm *vm);
/* A new life for the vCPUs: no failure, no events; @booted_vcpus have filled their pages. */
void gy_vm_renew(struct gy_vm *vm, uint32_t booted_vcpus);

/* guest_layout.c; fills in the default working set. */
int gy_guest_layout_make(const struct gy_ram *ram, struct gy_vm_config *config, struct gy_guest_layout *layout,
			 const struct gy_err *err);

/* guest_load.c */
enum gy_page_kind {
	GY_PAGE_ABSENT,		/* page 0 and the stacks' guards: never touched */
	GY_PAGE_BOOT,
	GY_PAGE_ACCOUNT,
	GY_PAGE_STACK,
	GY_PAGE_IMAGE,
	GY_PAGE_TABLES,
	GY_PAGE_SHADOW,
	GY_PAGE_WORKLOAD,
};
enum gy_page_kind gy_guest_page_kind(const struct gy_vm *vm, uint64_t page);
/* What boot writes to a page: zeros for those that the guest fills by itself. */
void gy_guest_page_make(const struct gy_vm *vm, uint64_t page, uint64_t *words);
/* Empties RAM and loads the guest program. 0 or -errno. */
int gy_guest_load(struct gy_vm *vm);

#endif
