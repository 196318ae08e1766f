// SPDX-License-Identifier: Apache-2.0
/* abi.c - the library as a whole: the ABI's version, the sizes that ffi/ counts on, and that it outlives its process's end. */
#include <assert.h>

#include <openssl/crypto.h>

#include "gyges.h"

static_assert(sizeof(struct gy_hist) == (3 + GY_HIST_BUCKETS) * 8, "ffi/page_stats.ts: HIST_BYTES");
static_assert(sizeof(struct gy_page_stats) == 16 * 8 + sizeof(struct gy_hist), "ffi/page_stats.ts: STATS_BYTES");
static_assert(sizeof(struct gy_vm_config) == 56, "ffi/micro_vm.ts: CONFIG_BYTES");
static_assert(sizeof(struct gy_guest_report) == 12 * 8 + sizeof(struct gy_hist), "ffi/micro_vm.ts: REPORT_COUNTERS");
static_assert(sizeof(struct gy_ram_check) == 64, "ffi/micro_vm.ts: checkRam()");
static_assert(sizeof(struct gy_sink_config) == 32, "ffi/page_sink.ts: config");

/*
 * exit() runs in one of many threads, and the others go on until it is done: one that is in a channel, or ends, would find
 * OpenSSL's locks freed. So OpenSSL cleans up nothing there; nor is this library unloaded, see -z nodelete in the Makefile.
 */
__attribute__((constructor)) static void keep_openssl(void)
{
	OPENSSL_init_crypto(OPENSSL_INIT_NO_ATEXIT, NULL);
}

uint32_t gy_abi_version(void)
{
	return GY_ABI_VERSION;
}
