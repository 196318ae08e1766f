// SPDX-License-Identifier: Apache-2.0
/* guest_layout.c - where things lie in the guest's RAM. */
#include <errno.h>

#include "guest/guest_abi.h"
#include "kvm.h"

#define GIB (1ull << 30)
/* Fewer pages than this for a vCPU are no working set. */
#define MIN_SLICE_PAGES 16u

static uint64_t divide_up(uint64_t value, uint64_t by)
{
	return (value + by - 1) / by;
}

int gy_guest_layout_make(const struct gy_ram *ram, struct gy_vm_config *config, struct gy_guest_layout *layout,
			 const struct gy_err *err)
{
	uint64_t available, set_pages;

	if (ram->bytes > GY_GUEST_MAX_BYTES)
		return gy_err_set(err, -EINVAL, "Cannot make a VM with %llu bytes of RAM: must be at most %llu",
				  (unsigned long long)ram->bytes, GY_GUEST_MAX_BYTES);
	layout->table_pages = GY_GUEST_PD + divide_up(ram->bytes, GIB);
	layout->shadow_page = GY_GUEST_TABLES_PAGE + layout->table_pages;
	layout->first_page = layout->shadow_page + divide_up(ram->pages * sizeof(uint32_t), GY_PAGE_BYTES);
	available = ram->pages - layout->first_page;
	set_pages = config->working_set_bytes / GY_PAGE_BYTES;
	if (!config->working_set_bytes)
		set_pages = ram->pages / 4 * 3 < available ? ram->pages / 4 * 3 : available;
	layout->slice_pages = set_pages / config->vcpus;
	if (set_pages > available || layout->slice_pages < MIN_SLICE_PAGES)
		return gy_err_set(err, -EINVAL,
				  "Cannot make a working set of %llu pages for %u vCPUs: must be %u to %llu pages",
				  (unsigned long long)set_pages, config->vcpus, MIN_SLICE_PAGES * config->vcpus,
				  (unsigned long long)available);
	set_pages = layout->slice_pages * config->vcpus;
	layout->set_end_page = layout->first_page + set_pages;
	config->working_set_bytes = set_pages * GY_PAGE_BYTES;
	return 0;
}
