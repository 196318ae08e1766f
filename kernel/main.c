// SPDX-License-Identifier: GPL-2.0
/* main.c - loads and unloads the kernel pager. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>

static int __init gyges_init(void)
{
	return 0;
}

static void __exit gyges_exit(void)
{
}

module_init(gyges_init);
module_exit(gyges_exit);
MODULE_DESCRIPTION("Gyges: post-copy migration of guest memory by RDMA");
MODULE_LICENSE("GPL");
