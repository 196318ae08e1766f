// SPDX-License-Identifier: Apache-2.0
/* kvm.c - the micro-VM's machine: one memslot over the whole RAM file, vCPUs, and their state at boot. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "guest/guest_abi.h"
#include "kvm.h"
#include "kvm_state.h"

/* Below 4 GiB and clear of RAM; KVM wants it before the first vCPU. */
#define TSS_GPA 0xfffbd000ul

#define CR0_LONG_MODE 0x80050033u	/* PG AM WP NE ET MP PE */
#define CR4_LONG_MODE 0x620u		/* PAE OSFXSR OSXMMEXCPT */
#define EFER_LONG_MODE 0xd01u		/* NXE LMA LME SCE */

static int config_check(const struct gy_vm_config *config, const struct gy_err *err)
{
	if (!config->vcpus || config->vcpus > GY_VM_MAX_VCPUS)
		return gy_err_set(err, -EINVAL, "Cannot make a VM with %u vCPUs: must be 1 to %u", config->vcpus,
				  GY_VM_MAX_VCPUS);
	if (config->flags & ~GY_VM_IRQCHIP)
		return gy_err_set(err, -EINVAL, "Cannot make a VM with unknown flags 0x%x", config->flags);
	if (config->workload < GY_WORKLOAD_UNIFORM || config->workload > GY_WORKLOAD_ZIPF)
		return gy_err_set(err, -EINVAL, "Cannot make a VM with unknown workload %u", config->workload);
	if (config->write_per_1024 > 1024)
		return gy_err_set(err, -EINVAL, "Cannot make a VM that rewrites %u of 1024 touches",
				  config->write_per_1024);
	if (config->reserved[0] || config->reserved[1])
		return gy_err_set(err, -EINVAL, "Cannot make a VM: reserved fields must be 0");
	return 0;
}

static int open_kvm(struct gy_vm *vm, const struct gy_err *err)
{
	int version;

	vm->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm_fd < 0) {
		int ret = -errno;

		return gy_err_set(err, ret, "Cannot open \"/dev/kvm\": %s", strerror(-ret));
	}
	version = ioctl(vm->kvm_fd, KVM_GET_API_VERSION, 0);
	if (version != KVM_API_VERSION)
		return gy_err_set(err, -ENOTSUP, "Cannot use KVM with API version %d: must be %d", version,
				  KVM_API_VERSION);
	return 0;
}

/* Without this, reading the dirty log write-protects all of it, also what the reader has no time for. */
static int enable_manual_protect(struct gy_vm *vm, const struct gy_err *err)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		.args[0] = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
	};

	if (ioctl(vm->fd, KVM_ENABLE_CAP, &cap))
		return gy_err_set(err, -ENOTSUP, "Cannot use KVM without manual dirty log protection");
	return 0;
}

int gy_memslot_set(struct gy_vm *vm, uint32_t flags)
{
	struct kvm_userspace_memory_region region = {
		.flags = flags,
		.guest_phys_addr = GY_GUEST_GPA,
		.memory_size = vm->ram->bytes,
		.userspace_addr = (uintptr_t)vm->ram->guest,
	};

	return ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region) ? -errno : 0;
}

static int make_machine(struct gy_vm *vm, const struct gy_err *err)
{
	int bytes, ret;

	vm->fd = ioctl(vm->kvm_fd, KVM_CREATE_VM, 0);
	if (vm->fd < 0) {
		ret = -errno;
		return gy_err_set(err, ret, "Cannot create a KVM machine: %s", strerror(-ret));
	}
	if (ioctl(vm->fd, KVM_SET_TSS_ADDR, TSS_GPA)) {
		ret = -errno;
		return gy_err_set(err, ret, "Cannot set the TSS address: %s", strerror(-ret));
	}
	if (vm->config.flags & GY_VM_IRQCHIP && ioctl(vm->fd, KVM_CREATE_IRQCHIP, 0)) {
		ret = -errno;
		return gy_err_set(err, ret, "Cannot create the interrupt controller: %s", strerror(-ret));
	}
	ret = enable_manual_protect(vm, err);
	if (ret)
		return ret;
	ret = gy_memslot_set(vm, 0);
	if (ret)
		return gy_err_set(err, ret, "Cannot map guest memory [%#llx-%#llx]: %s", GY_GUEST_GPA,
				  GY_GUEST_GPA + (unsigned long long)vm->ram->bytes - 1, strerror(-ret));
	bytes = ioctl(vm->fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
	vm->xsave_bytes = bytes > (int)sizeof(struct kvm_xsave) ? (uint32_t)bytes : sizeof(struct kvm_xsave);
	return 0;
}

static int read_cpuid(struct gy_vm *vm, const struct gy_err *err)
{
	int ret;

	vm->host_cpuid = calloc(1, sizeof(*vm->host_cpuid));
	vm->cpuid = calloc(1, sizeof(*vm->cpuid));
	if (!vm->host_cpuid || !vm->cpuid)
		return gy_err_set(err, -ENOMEM, "Cannot make a VM: out of memory");
	ret = gy_cpuid_read(vm->kvm_fd, vm->host_cpuid, err);
	if (!ret)
		*vm->cpuid = *vm->host_cpuid;
	return ret;
}

static int make_vcpu(struct gy_vm *vm, uint32_t index, const struct gy_err *err)
{
	struct gy_vcpu *vcpu = &vm->vcpu[index];
	int ret;

	vcpu->vm = vm;
	vcpu->index = index;
	vcpu->parked = true;
	vcpu->fd = ioctl(vm->fd, KVM_CREATE_VCPU, index);
	if (vcpu->fd < 0) {
		ret = -errno;
		return gy_err_set(err, ret, "Cannot create vCPU %u: %s", index, strerror(-ret));
	}
	vcpu->run = mmap(NULL, vm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED) {
		ret = -errno;
		vcpu->run = NULL;
		return gy_err_set(err, ret, "Cannot map the run page of vCPU %u: %s", index, strerror(-ret));
	}
	if (ioctl(vcpu->fd, KVM_SET_CPUID2, vm->cpuid)) {
		ret = -errno;
		return gy_err_set(err, ret, "Cannot set the CPU features of vCPU %u: %s", index, strerror(-ret));
	}
	ret = gy_vcpu_start(vcpu);
	if (ret)
		return gy_err_set(err, ret, "Cannot start the thread of vCPU %u: %s", index, strerror(-ret));
	return 0;
}

static int make_vcpus(struct gy_vm *vm, const struct gy_err *err)
{
	int bytes = ioctl(vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	int ret;

	if (bytes < (int)sizeof(struct kvm_run))
		return gy_err_set(err, -ENOTSUP, "Cannot use a KVM run page of %d bytes", bytes);
	vm->run_bytes = (size_t)bytes;
	ret = read_cpuid(vm, err);
	for (uint32_t i = 0; !ret && i < vm->config.vcpus; i++)
		ret = make_vcpu(vm, i, err);
	return ret;
}

static int read_tsc_khz(struct gy_vm *vm, const struct gy_err *err)
{
	int khz = ioctl(vm->vcpu[0].fd, KVM_GET_TSC_KHZ, 0);

	if (khz <= 0)
		return gy_err_set(err, -ENOTSUP, "Cannot learn the frequency of the time stamp counter from KVM");
	vm->tsc_khz = (uint32_t)khz;
	return 0;
}

/* Which MSRs can be read, and what they hold at reset: what a later restore may skip if refused. */
static int read_reset_msrs(struct gy_vm *vm, const struct gy_err *err)
{
	struct {
		struct kvm_msr_list head;
		uint32_t indices[GY_KVM_MSRS];
	} list = { .head.nmsrs = GY_KVM_MSRS };
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} one;

	vm->msrs = calloc(1, sizeof(*vm->msrs));
	if (!vm->msrs)
		return gy_err_set(err, -ENOMEM, "Cannot make a VM: out of memory");
	if (ioctl(vm->kvm_fd, KVM_GET_MSR_INDEX_LIST, &list)) {
		int ret = -errno;

		return gy_err_set(err, ret, "Cannot list the MSRs of KVM: %s", strerror(-ret));
	}
	for (uint32_t i = 0; i < list.head.nmsrs; i++) {
		one.head = (struct kvm_msrs){ .nmsrs = 1 };
		one.entry = (struct kvm_msr_entry){ .index = list.indices[i] };
		if (ioctl(vm->vcpu[0].fd, KVM_GET_MSRS, &one) == 1)
			vm->msrs->entries[vm->msrs->head.nmsrs++] = one.entry;
	}
	return 0;
}

static int make_locks(struct gy_vm *vm)
{
	pthread_condattr_t attr;
	int ret;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	ret = pthread_mutex_init(&vm->lock, NULL) || pthread_cond_init(&vm->wake, &attr) ||
	      pthread_cond_init(&vm->changed, &attr) ? -ENOMEM : 0;
	pthread_condattr_destroy(&attr);
	return ret;
}

int gy_vm_create(struct gy_ram *ram, const struct gy_vm_config *config, struct gy_vm **out, char *err,
		 uint32_t err_bytes)
{
	struct gy_err words = { err, err_bytes };
	struct gy_vm *vm;
	int ret;

	ret = config_check(config, &words);
	if (ret)
		return ret;
	vm = calloc(1, sizeof(*vm));
	if (!vm)
		return gy_err_set(&words, -ENOMEM, "Cannot make a VM: out of memory");
	vm->ram = ram;
	vm->config = *config;
	vm->kvm_fd = -1;
	vm->fd = -1;
	for (uint32_t i = 0; i < GY_VM_MAX_VCPUS; i++)
		vm->vcpu[i].fd = -1;
	if (make_locks(vm)) {
		free(vm);
		return gy_err_set(&words, -ENOMEM, "Cannot make a VM: out of memory");
	}
	ret = gy_guest_layout_make(ram, &vm->config, &vm->layout, &words);
	if (!ret)
		ret = open_kvm(vm, &words);
	if (!ret)
		ret = make_machine(vm, &words);
	if (!ret)
		ret = make_vcpus(vm, &words);
	if (!ret)
		ret = read_tsc_khz(vm, &words);
	if (!ret)
		ret = read_reset_msrs(vm, &words);
	if (ret) {
		gy_vm_destroy(vm);
		return ret;
	}
	gy_blob_warm_up();
	*out = vm;
	return 0;
}

static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

void gy_vm_destroy(struct gy_vm *vm)
{
	if (!vm)
		return;
	gy_vcpus_end(vm);
	for (uint32_t i = 0; i < GY_VM_MAX_VCPUS; i++) {
		if (vm->vcpu[i].run)
			munmap(vm->vcpu[i].run, vm->run_bytes);
		close_fd(vm->vcpu[i].fd);
	}
	close_fd(vm->fd);
	close_fd(vm->kvm_fd);
	pthread_cond_destroy(&vm->changed);
	pthread_cond_destroy(&vm->wake);
	pthread_mutex_destroy(&vm->lock);
	free(vm->dirty_scratch);
	free(vm->msrs);
	free(vm->cpuid);
	free(vm->host_cpuid);
	free(vm);
}

/* ---- boot ---- */

static struct kvm_segment user_segment(uint16_t selector, uint8_t type, bool code)
{
	return (struct kvm_segment){
		.limit = 0xffffffff, .selector = selector, .type = type, .present = 1, .dpl = 3, .s = 1, .g = 1,
		.l = code, .db = !code,
	};
}

static int enter_ring3(struct gy_vcpu *vcpu)
{
	struct kvm_segment data = user_segment(0x2b, 3, false);
	struct kvm_sregs sregs;

	if (ioctl(vcpu->fd, KVM_GET_SREGS, &sregs))
		return -errno;
	sregs.cr0 = CR0_LONG_MODE;
	sregs.cr3 = GY_GUEST_GPA + (GY_GUEST_TABLES_PAGE + GY_GUEST_PML4) * GY_PAGE_BYTES;
	sregs.cr4 = CR4_LONG_MODE;
	sregs.efer = EFER_LONG_MODE;
	/* No handlers: any fault in the guest is a triple fault, which ends it. */
	sregs.idt = (struct kvm_dtable){ 0 };
	sregs.gdt = (struct kvm_dtable){ 0 };
	sregs.cs = user_segment(0x33, 11, true);
	sregs.ss = sregs.ds = sregs.es = sregs.fs = sregs.gs = data;
	sregs.gs.base = gy_guest_account_va(vcpu->index);
	return ioctl(vcpu->fd, KVM_SET_SREGS, &sregs) ? -errno : 0;
}

static int enter_program(struct gy_vcpu *vcpu)
{
	struct kvm_regs regs = {
		.rip = GY_GUEST_IMAGE_PAGE * GY_PAGE_BYTES,
		/* As if called: the ABI wants the stack 8 bytes off a multiple of 16. */
		.rsp = gy_guest_stack_va(vcpu->index) - 8,
		.rdi = vcpu->index,
		.rflags = 0x202,
	};
	/* With an in-kernel LAPIC, vCPUs other than the first would wait for INIT and SIPI. */
	struct kvm_mp_state runnable = { .mp_state = KVM_MP_STATE_RUNNABLE };

	if (ioctl(vcpu->fd, KVM_SET_REGS, &regs))
		return -errno;
	return ioctl(vcpu->fd, KVM_SET_MP_STATE, &runnable) ? -errno : 0;
}

int gy_vm_boot(struct gy_vm *vm)
{
	int ret;

	if (gy_vm_running(vm))
		return -EBUSY;
	vm->loaded = false;
	ret = gy_guest_load(vm);
	for (uint32_t i = 0; !ret && i < vm->config.vcpus; i++) {
		ret = enter_ring3(&vm->vcpu[i]);
		if (!ret)
			ret = enter_program(&vm->vcpu[i]);
	}
	if (ret)
		return ret;
	gy_vm_renew(vm, 0);
	vm->loaded = true;
	return 0;
}
