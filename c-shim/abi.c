// SPDX-License-Identifier: Apache-2.0
/* abi.c - the ABI's version, and the sizes that ffi/ counts on. */
#include <assert.h>

#include "gyges.h"

static_assert(sizeof(struct gy_hist) == (3 + GY_HIST_BUCKETS) * 8, "ffi/page_stats.ts: HIST_BYTES");
static_assert(sizeof(struct gy_page_stats) == 16 * 8 + sizeof(struct gy_hist), "ffi/page_stats.ts: STATS_BYTES");
static_assert(sizeof(struct gy_vm_config) == 56, "ffi/micro_vm.ts: CONFIG_BYTES");
static_assert(sizeof(struct gy_guest_report) == 12 * 8 + sizeof(struct gy_hist), "ffi/micro_vm.ts: REPORT_COUNTERS");
static_assert(sizeof(struct gy_ram_check) == 64, "ffi/micro_vm.ts: checkRam()");
static_assert(sizeof(struct gy_sink_config) == 32, "ffi/page_sink.ts: config");

uint32_t gy_abi_version(void)
{
	return GY_ABI_VERSION;
}
