/* SPDX-License-Identifier: Apache-2.0 */
/* workload.h - reading what the guest program keeps in RAM. */
#ifndef GY_WORKLOAD_H
#define GY_WORKLOAD_H

#include "guest/guest_abi.h"
#include "kvm.h"

/* Reads the account of one vCPU without allocating it. -ENODATA: the page holds none, or is missing. */
int gy_workload_account(struct gy_vm *vm, uint32_t vcpu, struct gy_guest_account *account);

#endif
