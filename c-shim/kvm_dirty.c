// SPDX-License-Identifier: Apache-2.0
/* kvm_dirty.c - which pages the guest has written, by KVM's dirty log with manual protection. */
#include <errno.h>
#include <stdlib.h>

#include "guest/guest_abi.h"
#include "kvm.h"

int gy_vm_dirty_start(struct gy_vm *vm)
{
	int ret;

	if (vm->dirty_on)
		return -EALREADY;
	/* RAM is a multiple of 2 MiB: whole words, as KVM_CLEAR_DIRTY_LOG wants. */
	vm->dirty_scratch = calloc(vm->ram->pages / 64, sizeof(uint64_t));
	if (!vm->dirty_scratch)
		return -ENOMEM;
	__atomic_store_n(&vm->host_dirtied, false, __ATOMIC_SEQ_CST);
	ret = gy_memslot_set(vm, KVM_MEM_LOG_DIRTY_PAGES);
	if (ret) {
		free(vm->dirty_scratch);
		vm->dirty_scratch = NULL;
		return ret;
	}
	vm->dirty_on = true;
	return 0;
}

int gy_vm_dirty_stop(struct gy_vm *vm)
{
	int ret;

	if (!vm->dirty_on)
		return 0;
	ret = gy_memslot_set(vm, 0);
	if (ret)
		return ret;
	vm->dirty_on = false;
	free(vm->dirty_scratch);
	vm->dirty_scratch = NULL;
	return 0;
}

/* The host's own write to the boot page, which KVM does not see. The page is read after its flag is taken. */
static void add_host_write(struct gy_vm *vm)
{
	if (__atomic_exchange_n(&vm->host_dirtied, false, __ATOMIC_SEQ_CST))
		vm->dirty_scratch[GY_GUEST_BOOT_PAGE / 64] |= 1ull << GY_GUEST_BOOT_PAGE % 64;
}

int64_t gy_vm_dirty_collect(struct gy_vm *vm, uint64_t *bitmap, uint64_t words)
{
	struct kvm_dirty_log get = { .dirty_bitmap = vm->dirty_scratch };
	struct kvm_clear_dirty_log clear = {
		.num_pages = (uint32_t)vm->ram->pages,
		.dirty_bitmap = vm->dirty_scratch,
	};
	int64_t n = 0;

	if (!vm->dirty_on || words != vm->ram->pages / 64)
		return -EINVAL;
	if (ioctl(vm->fd, KVM_GET_DIRTY_LOG, &get))
		return -errno;
	/* Protected again before the caller reads a page: what is written after that is in the next log. */
	if (ioctl(vm->fd, KVM_CLEAR_DIRTY_LOG, &clear))
		return -errno;
	add_host_write(vm);
	for (uint64_t i = 0; i < words; i++) {
		n += __builtin_popcountll(vm->dirty_scratch[i]);
		bitmap[i] |= vm->dirty_scratch[i];
	}
	return n;
}
