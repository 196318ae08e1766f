// SPDX-License-Identifier: GPL-2.0
/* main.c - loads and unloads the kernel pager. */
#include <linux/module.h>

#include "gyges_internal.h"

#define CREATE_TRACE_POINTS
#include "gyges_trace.h"

unsigned int gyges_inject;
module_param_named(inject, gyges_inject, uint, 0600);
MODULE_PARM_DESC(inject, "for tests: bits of rules to break");

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
