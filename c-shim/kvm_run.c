// SPDX-License-Identifier: Apache-2.0
/*
 * kvm_run.c - the vCPU threads: parking, running, stopping, and what the guest rings.
 *
 * A thread looks at want_run only between two KVM_RUNs. Stopping sets immediate_exit and sends the kick signal:
 * the first catches a thread on its way into KVM_RUN, the second one inside. Whatever the last KVM_RUN
 * returned, the thread enters once more before it parks, so that KVM finishes an MMIO that it began.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>

#include "clock.h"
#include "guest/guest_abi.h"
#include "kvm.h"
#include "thread.h"

static int kick_signal(void)
{
	return SIGRTMIN + 5;
}

/* Where the kick takes a vCPU thread that waits for a page in user mode; NULL in all other places and threads. */
static __thread sigjmp_buf *escape;

/* Only there so that the signal interrupts KVM_RUN instead of ending the process. */
static void on_kick(int signal)
{
	sigjmp_buf *to = __atomic_exchange_n(&escape, NULL, __ATOMIC_SEQ_CST);

	(void)signal;
	if (to)
		siglongjmp(*to, 1);
}

/* Ours, or nobody's: a handler that the process has set stays. */
static int kick_handler_install(void)
{
	struct sigaction action = { .sa_handler = on_kick }, old;

	if (sigaction(kick_signal(), NULL, &old))
		return -errno;
	if (old.sa_handler == on_kick)
		return 0;
	if (old.sa_flags & SA_SIGINFO || old.sa_handler != SIG_DFL)
		return -EBUSY;
	return sigaction(kick_signal(), &action, NULL) ? -errno : 0;
}

static struct timespec to_timespec(uint64_t ns)
{
	return (struct timespec){ .tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S) };
}

static void set_immediate_exit(struct gy_vcpu *vcpu, uint8_t value)
{
	__atomic_store_n(&vcpu->run->immediate_exit, value, __ATOMIC_SEQ_CST);
}

/* ---- failures and events; vm->lock held ---- */

static void raise_locked(struct gy_vm *vm, enum gy_vm_event event)
{
	vm->events |= 1u << event;
	pthread_cond_broadcast(&vm->changed);
}

__attribute__((format(printf, 2, 3)))
static void vcpu_fail(struct gy_vcpu *vcpu, const char *format, ...)
{
	struct gy_vm *vm = vcpu->vm;
	struct kvm_regs regs = { 0 };
	char what[160];
	va_list args;

	va_start(args, format);
	vsnprintf(what, sizeof(what), format, args);
	va_end(args);
	ioctl(vcpu->fd, KVM_GET_REGS, &regs);
	pthread_mutex_lock(&vm->lock);
	vcpu->failed = true;
	snprintf(vm->failure, sizeof(vm->failure), "vCPU %u %s, at rip %#llx", vcpu->index, what,
		 (unsigned long long)regs.rip);
	raise_locked(vm, GY_VM_EVENT_FAILED);
	pthread_mutex_unlock(&vm->lock);
}

/* ---- the doorbell ---- */

/* Sleeps until it is time or the VM stops; returns what was slept, at most what was asked for. */
static uint64_t sleep_while_running(struct gy_vm *vm, uint64_t ns)
{
	uint64_t start = now_ns();
	struct timespec until = to_timespec(start + ns);
	uint64_t slept;
	int ret = 0;

	pthread_mutex_lock(&vm->lock);
	while (vm->want_run && ret != ETIMEDOUT)
		ret = pthread_cond_timedwait(&vm->wake, &vm->lock, &until);
	pthread_mutex_unlock(&vm->lock);
	slept = now_ns() - start;
	return slept < ns ? slept : ns;
}

static void ring_booted(struct gy_vcpu *vcpu)
{
	struct gy_vm *vm = vcpu->vm;

	pthread_mutex_lock(&vm->lock);
	vm->booted_vcpus |= 1u << vcpu->index;
	if (vm->booted_vcpus == (1u << vm->config.vcpus) - 1)
		raise_locked(vm, GY_VM_EVENT_BOOTED);
	pthread_mutex_unlock(&vm->lock);
}

static void ring_corrupt(struct gy_vcpu *vcpu)
{
	pthread_mutex_lock(&vcpu->vm->lock);
	raise_locked(vcpu->vm, GY_VM_EVENT_CORRUPT);
	pthread_mutex_unlock(&vcpu->vm->lock);
}

static const char *failure_words(uint64_t failure)
{
	switch (failure) {
	case GY_GUEST_FAILURE_BOOT_PAGE:
		return "found no boot page";
	case GY_GUEST_FAILURE_REGISTERS:
		return "found general registers that do not fit its memory";
	case GY_GUEST_FAILURE_XMM:
		return "found vector registers that do not fit its memory";
	case GY_GUEST_FAILURE_GS:
		return "found the segment base of another vCPU";
	default:
		return "gave up for an unknown reason";
	}
}

/* Returns whether the vCPU goes on. */
static bool ring_register(struct gy_vcpu *vcpu, uint64_t reg, uint64_t value)
{
	switch (reg) {
	case GY_DOORBELL_BOOTED:
		ring_booted(vcpu);
		return true;
	case GY_DOORBELL_CORRUPT:
		ring_corrupt(vcpu);
		return true;
	case GY_DOORBELL_FAILED:
		vcpu_fail(vcpu, "%s", failure_words(value));
		return false;
	default:
		vcpu_fail(vcpu, "rang the unknown doorbell %#llx", (unsigned long long)reg);
		return false;
	}
}

static bool handle_mmio(struct gy_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	uint64_t gpa = run->mmio.phys_addr;
	uint64_t reg = gpa - GY_DOORBELL_GPA;
	uint64_t value;

	if (gpa < GY_DOORBELL_GPA || reg >= GY_DOORBELL_BYTES || run->mmio.len != sizeof(value)) {
		vcpu_fail(vcpu, "touched %#llx, where no memory is", (unsigned long long)gpa);
		return false;
	}
	if (run->mmio.is_write) {
		memcpy(&value, run->mmio.data, sizeof(value));
		return ring_register(vcpu, reg, value);
	}
	if (reg < GY_DOORBELL_IDLE) {
		vcpu_fail(vcpu, "read the doorbell %#llx", (unsigned long long)reg);
		return false;
	}
	value = sleep_while_running(vcpu->vm, (reg - GY_DOORBELL_IDLE) / 8 * 1000);
	memcpy(run->mmio.data, &value, sizeof(value));
	return true;
}

/* ---- the thread ---- */

static bool handle_exit(struct gy_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	switch (run->exit_reason) {
	case KVM_EXIT_MMIO:
		return handle_mmio(vcpu);
	case KVM_EXIT_SHUTDOWN:
		vcpu_fail(vcpu, "shut down on a fault (triple fault)");
		return false;
	case KVM_EXIT_INTERNAL_ERROR:
		vcpu_fail(vcpu, "met an internal error of KVM, suberror %u", run->internal.suberror);
		return false;
	case KVM_EXIT_FAIL_ENTRY:
		vcpu_fail(vcpu, "could not be entered, hardware reason %#llx",
			  (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
		return false;
	default:
		vcpu_fail(vcpu, "left the guest for the unexpected reason %u", run->exit_reason);
		return false;
	}
}

/*
 * KVM that shadows page tables (as on hosts without nested paging) walks them in the kernel, and a fault that the
 * kernel itself takes on a missing page is retried for as long as a signal is pending: a stop would fail and burn
 * a CPU. So a vCPU waits for its page tables here, in user mode, where the kick's handler can jump out of the read.
 */
static bool read_tables(struct gy_vcpu *vcpu)
{
	const struct gy_vm *vm = vcpu->vm;
	const volatile uint8_t *tables = vm->ram->guest + GY_GUEST_TABLES_PAGE * GY_PAGE_BYTES;
	sigjmp_buf back;

	if (sigsetjmp(back, 1))
		return false;
	__atomic_store_n(&escape, &back, __ATOMIC_SEQ_CST);
	/* A kick that came before there was a way to jump has set this. */
	if (__atomic_load_n(&vcpu->run->immediate_exit, __ATOMIC_SEQ_CST)) {
		__atomic_store_n(&escape, NULL, __ATOMIC_SEQ_CST);
		return false;
	}
	for (uint64_t i = 0; i < vm->layout.table_pages; i++)
		(void)tables[i * GY_PAGE_BYTES];
	__atomic_store_n(&escape, NULL, __ATOMIC_SEQ_CST);
	return true;
}

/* Runs until interrupted or failed; an exit is always finished by the KVM_RUN after it. */
static void vcpu_run(struct gy_vcpu *vcpu)
{
	int ret;

	if (!vcpu->tables_present)
		vcpu->tables_present = read_tables(vcpu);
	if (!vcpu->tables_present)
		return;
	do {
		if (!ioctl(vcpu->fd, KVM_RUN, 0))
			continue;
		ret = errno;
		if (ret != EINTR && ret != EAGAIN)
			vcpu_fail(vcpu, "could not run: %s", strerror(ret));
		return;
	} while (handle_exit(vcpu));
}

static void park_locked(struct gy_vcpu *vcpu)
{
	struct gy_vm *vm = vcpu->vm;

	vcpu->parked = true;
	pthread_cond_broadcast(&vm->changed);
	while (!vm->quit && (!vm->want_run || vcpu->failed))
		pthread_cond_wait(&vm->wake, &vm->lock);
}

static void *vcpu_main(void *arg)
{
	struct gy_vcpu *vcpu = arg;
	struct gy_vm *vm = vcpu->vm;
	sigset_t kick;

	sigemptyset(&kick);
	sigaddset(&kick, kick_signal());
	pthread_sigmask(SIG_UNBLOCK, &kick, NULL);
	/* The default slack of 50 us is a lot for a guest that sleeps for 300. */
	prctl(PR_SET_TIMERSLACK, 1ul, 0ul, 0ul, 0ul);
	pthread_mutex_lock(&vm->lock);
	while (!vm->quit) {
		if (!vm->want_run || vcpu->failed)
			park_locked(vcpu);
		if (vm->quit)
			break;
		vcpu->parked = false;
		set_immediate_exit(vcpu, 0);
		pthread_mutex_unlock(&vm->lock);
		vcpu_run(vcpu);
		pthread_mutex_lock(&vm->lock);
	}
	pthread_mutex_unlock(&vm->lock);
	return NULL;
}

int gy_vcpu_start(struct gy_vcpu *vcpu)
{
	char name[16];
	int ret;

	ret = kick_handler_install();
	if (ret)
		return ret;
	snprintf(name, sizeof(name), "gy-vcpu%u", vcpu->index);
	ret = thread_start(&vcpu->thread, name, vcpu_main, vcpu);
	vcpu->started = !ret;
	return ret;
}

static void kick_locked(struct gy_vm *vm)
{
	for (uint32_t i = 0; i < vm->config.vcpus; i++) {
		struct gy_vcpu *vcpu = &vm->vcpu[i];

		if (!vcpu->started || vcpu->parked)
			continue;
		set_immediate_exit(vcpu, 1);
		pthread_kill(vcpu->thread, kick_signal());
	}
	pthread_cond_broadcast(&vm->wake);
}

void gy_vcpus_end(struct gy_vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	vm->quit = true;
	vm->want_run = false;
	kick_locked(vm);
	pthread_mutex_unlock(&vm->lock);
	for (uint32_t i = 0; i < vm->config.vcpus; i++) {
		if (vm->vcpu[i].started)
			pthread_join(vm->vcpu[i].thread, NULL);
	}
}

/* ---- exported ---- */

static bool all_parked_locked(const struct gy_vm *vm)
{
	for (uint32_t i = 0; i < vm->config.vcpus; i++) {
		if (!vm->vcpu[i].parked)
			return false;
	}
	return true;
}

bool gy_vm_running(struct gy_vm *vm)
{
	bool running;

	pthread_mutex_lock(&vm->lock);
	running = vm->want_run || !all_parked_locked(vm);
	pthread_mutex_unlock(&vm->lock);
	return running;
}

void gy_vm_renew(struct gy_vm *vm, uint32_t booted_vcpus)
{
	pthread_mutex_lock(&vm->lock);
	vm->events = 0;
	vm->booted_vcpus = booted_vcpus;
	for (uint32_t i = 0; i < vm->config.vcpus; i++) {
		vm->vcpu[i].failed = false;
		vm->vcpu[i].tables_present = false;
	}
	pthread_mutex_unlock(&vm->lock);
}

int gy_vm_run(struct gy_vm *vm)
{
	int ret = 0;

	if (!vm->loaded)
		return -EINVAL;
	pthread_mutex_lock(&vm->lock);
	for (uint32_t i = 0; i < vm->config.vcpus; i++) {
		if (vm->vcpu[i].failed)
			ret = -EIO;
	}
	if (!ret) {
		vm->want_run = true;
		pthread_cond_broadcast(&vm->wake);
	}
	pthread_mutex_unlock(&vm->lock);
	return ret;
}

int gy_vm_stop(struct gy_vm *vm, uint32_t timeout_ms)
{
	struct timespec until = to_timespec(deadline_after_ms(timeout_ms));
	bool was_running;
	int ret = 0;

	pthread_mutex_lock(&vm->lock);
	was_running = vm->want_run;
	vm->want_run = false;
	kick_locked(vm);
	while (!all_parked_locked(vm) && ret != ETIMEDOUT)
		ret = pthread_cond_timedwait(&vm->changed, &vm->lock, &until);
	ret = all_parked_locked(vm) ? 0 : -ETIMEDOUT;
	if (ret) {
		vm->want_run = was_running;
		pthread_cond_broadcast(&vm->wake);
	}
	pthread_mutex_unlock(&vm->lock);
	return ret;
}

/* Most urgent first. A failure stays: whoever asks later is told too. */
static int take_event_locked(struct gy_vm *vm, const struct gy_err *err)
{
	if (vm->events & 1u << GY_VM_EVENT_FAILED)
		return gy_err_set(err, GY_VM_EVENT_FAILED, "%s", vm->failure);
	for (int event = GY_VM_EVENT_CORRUPT; event > GY_VM_EVENT_NONE; event--) {
		if (vm->events & 1u << event) {
			vm->events &= ~(1u << event);
			return event;
		}
	}
	return GY_VM_EVENT_NONE;
}

int gy_vm_wait(struct gy_vm *vm, uint32_t timeout_ms, char *err, uint32_t err_bytes)
{
	struct timespec until = to_timespec(deadline_after_ms(timeout_ms));
	struct gy_err words = { err, err_bytes };
	int event, ret = 0;

	pthread_mutex_lock(&vm->lock);
	while (!vm->events && ret != ETIMEDOUT)
		ret = pthread_cond_timedwait(&vm->changed, &vm->lock, &until);
	event = take_event_locked(vm, &words);
	pthread_mutex_unlock(&vm->lock);
	return event ? event : -ETIMEDOUT;
}
