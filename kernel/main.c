// SPDX-License-Identifier: GPL-2.0
/* main.c - loads and unloads the kernel pager. */
#include <linux/module.h>

#include "gyges_internal.h"

#define CREATE_TRACE_POINTS
#include "gyges_trace.h"

unsigned int gyges_inject;
module_param_named(inject, gyges_inject, uint, 0600);
MODULE_PARM_DESC(inject, "for tests: bits of rules to break");

/*
 * What was built, for `gyges module status`: the hash of the sources, see
 * Kbuild, and the version of the interface. Nobody sets them.
 */
static int gyges_no_set(const char *value, const struct kernel_param *param)
{
	return -EPERM;
}

static int gyges_source_get(char *buffer, const struct kernel_param *param)
{
	return scnprintf(buffer, PAGE_SIZE, "%s\n", GYGES_SOURCE);
}

static int gyges_abi_get(char *buffer, const struct kernel_param *param)
{
	return scnprintf(buffer, PAGE_SIZE, "%d\n", GYGES_ABI_VERSION);
}

static const struct kernel_param_ops gyges_source_ops = {
	.set = gyges_no_set,
	.get = gyges_source_get,
};
static const struct kernel_param_ops gyges_abi_ops = {
	.set = gyges_no_set,
	.get = gyges_abi_get,
};
module_param_cb(source, &gyges_source_ops, NULL, 0444);
MODULE_PARM_DESC(source, "hash of the sources it was built from (read-only)");
module_param_cb(abi, &gyges_abi_ops, NULL, 0444);
MODULE_PARM_DESC(abi, "version of its interface (read-only)");

struct workqueue_struct *gyges_queue;

static int __init gyges_init(void)
{
	int ret;

	gyges_queue = alloc_workqueue("gyges", WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	if (!gyges_queue)
		return -ENOMEM;
	ret = gyges_pull_init();
	if (ret)
		goto err_queue;
	ret = gyges_fs_init();
	if (ret)
		goto err_pull;
	return 0;

err_pull:
	gyges_pull_exit();
err_queue:
	destroy_workqueue(gyges_queue);
	return ret;
}

static void __exit gyges_exit(void)
{
	gyges_fs_exit();
	gyges_pull_exit();
	destroy_workqueue(gyges_queue);
}

module_init(gyges_init);
module_exit(gyges_exit);
MODULE_DESCRIPTION("Gyges: post-copy migration of guest memory by RDMA");
MODULE_LICENSE("GPL");
MODULE_VERSION("0.1.0");
MODULE_ALIAS_FS("gygesfs");
