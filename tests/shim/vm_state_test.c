// SPDX-License-Identifier: Apache-2.0
/*
 * vm_state_test.c - the micro-VM's saved state: a guest goes on from it in another machine and another process, and
 * a state that is damaged, foreign or of another shape is refused with words.
 */
#include <openssl/evp.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "kvm_state.h"
#include "vm_fixture.h"

#define STATE_CAP (1u << 18)

struct state {
	uint8_t *bytes;
	uint64_t len;
};

static struct state save(struct gy_vm *vm)
{
	struct state state = { .bytes = malloc(STATE_CAP) };
	char err[256] = "";
	int64_t len;

	CHECK(state.bytes);
	len = gy_vm_save(vm, state.bytes, STATE_CAP, err, sizeof(err));
	if (len < 0)
		fprintf(stderr, "%s\n", err);
	CHECK(len > 0 && len <= gy_vm_state_bytes(vm));
	state.len = (uint64_t)len;
	return state;
}

static void restore(struct gy_vm *vm, struct state state)
{
	char err[256] = "";
	int ret = gy_vm_restore(vm, state.bytes, state.len, err, sizeof(err));

	if (ret)
		fprintf(stderr, "%s\n", err);
	CHECK_EQUAL(ret, 0);
}

/* Restoring must fail with @ret, and words that contain both parts. */
static void expect_refusal(struct gy_vm *vm, struct state state, int ret, const char *part, const char *other)
{
	char err[256] = "";

	CHECK_EQUAL(gy_vm_restore(vm, state.bytes, state.len, err, sizeof(err)), ret);
	CHECK_WORDS(err, part);
	CHECK_WORDS(err, other);
}

/* ---- going on ---- */

static struct gy_vm *another_vm(const struct gy_vm *like)
{
	struct gy_vm *vm;
	char err[256] = "";

	CHECK_EQUAL(gy_vm_create(like->ram, &like->config, &vm, err, sizeof(err)), 0);
	return vm;
}

static void ten_hops(uint32_t vcpus, uint32_t flags)
{
	struct gy_vm_config config = {
		.vcpus = vcpus, .flags = flags, .workload = GY_WORKLOAD_ZIPF, .write_per_1024 = 512, .seed = 5,
	};
	struct machine m = machine_boot(&config, RAM_BYTES);
	struct gy_hist cost = { 0 };

	for (int hop = 0; hop < 10; hop++) {
		struct gy_vm *next = another_vm(m.vm);
		struct gy_guest_report before, after;
		struct state state;
		uint64_t start;

		let_touch(m.vm, 5000);
		start = now_ns();
		CHECK_EQUAL(gy_vm_stop(m.vm, SLOW_MS), 0);
		state = save(m.vm);
		restore(next, state);
		CHECK_EQUAL(gy_vm_run(next), 0);
		gy_hist_add(&cost, now_ns() - start);
		before = report_of(m.vm);
		gy_vm_destroy(m.vm);
		free(state.bytes);
		m.vm = next;
		let_touch(m.vm, 5000);
		after = report_of(m.vm);
		CHECK(after.verified_pages > before.verified_pages);
		CHECK_EQUAL(after.booted, 1);
	}
	CHECK_EQUAL(gy_vm_stop(m.vm, SLOW_MS), 0);
	expect_clean(m.vm);
	printf("%u vCPUs, flags %u: 10 hops, stop to run p50 %" PRIu64 " us, max %" PRIu64 " us\n", vcpus, flags,
	       gy_hist_percentile(&cost, 5000) / 1000, cost.max / 1000);
	machine_end(m);
}

/* Saved in the middle of filling its pages, the guest fills the rest elsewhere and says so there. */
static void boot_goes_on_elsewhere(void)
{
	struct machine m = machine_make(&uniform_2, 256 * MIB);
	struct gy_vm *next = another_vm(m.vm);
	struct state state;

	CHECK_EQUAL(gy_vm_boot(m.vm), 0);
	CHECK_EQUAL(gy_vm_run(m.vm), 0);
	while (gy_ram_allocated(m.ram) < (int64_t)(2 * MIB))
		usleep(100);
	CHECK_EQUAL(gy_vm_stop(m.vm, SLOW_MS), 0);
	CHECK_EQUAL(report_of(m.vm).booted, 0);
	CHECK_EQUAL(check_of(m.vm).bad_pages, 0);
	state = save(m.vm);
	restore(next, state);
	CHECK_EQUAL(report_of(next).booted, 0);
	CHECK_EQUAL(gy_vm_run(next), 0);
	expect_event(next, GY_VM_EVENT_BOOTED);
	let_touch(next, 20000);
	CHECK_EQUAL(gy_vm_stop(next, SLOW_MS), 0);
	expect_clean(next);
	gy_vm_destroy(next);
	free(state.bytes);
	machine_end(m);
}

/* Saved, restored and saved again without running: the same, but for the clocks. */
static void state_survives_unchanged(uint32_t flags)
{
	struct gy_vm_config config = uniform_2;
	struct machine m;
	struct gy_vm *next;
	struct state a, b;
	struct gy_blob blob_a, blob_b;

	config.flags = flags;
	m = machine_boot_stopped(&config, 4 * MIB);
	next = another_vm(m.vm);
	a = save(m.vm);
	restore(next, a);
	b = save(next);
	CHECK_EQUAL(gy_blob_open(&blob_a, a.bytes, a.len, NULL), 0);
	CHECK_EQUAL(gy_blob_open(&blob_b, b.bytes, b.len, NULL), 0);
	CHECK_EQUAL(a.len, b.len);
	for (uint32_t vcpu = 0; vcpu < 2; vcpu++) {
		for (uint32_t type = GY_STATE_REGS; type < GY_STATE_MSRS; type++) {
			uint64_t bytes_a = 0, bytes_b = 0;
			const void *in_a = gy_blob_find(&blob_a, type, vcpu, &bytes_a);
			const void *in_b = gy_blob_find(&blob_b, type, vcpu, &bytes_b);

			CHECK_EQUAL(!in_a, type == GY_STATE_LAPIC && !flags);
			CHECK_EQUAL(bytes_a, bytes_b);
			CHECK(!in_a || !memcmp(in_a, in_b, bytes_a));
		}
	}
	gy_vm_destroy(next);
	free(a.bytes);
	free(b.bytes);
	machine_end(m);
}

/* What goes from one process to the other. */
struct parcel {
	uint64_t len;
	uint8_t state[STATE_CAP];
	uint8_t ram[4 * MIB];
};

static int child(const struct parcel *parcel, int ready_fd)
{
	struct machine m = machine_make(&uniform_2, 4 * MIB);
	struct state state = { .bytes = malloc(STATE_CAP), .len = 0 };
	char byte;

	CHECK_EQUAL(read(ready_fd, &byte, 1), 1);
	CHECK(gy_ram_write(m.ram, 0, parcel->ram, sizeof(parcel->ram)) > 0);
	memcpy(state.bytes, parcel->state, parcel->len);
	state.len = parcel->len;
	restore(m.vm, state);
	CHECK_EQUAL(report_of(m.vm).booted, 1);
	CHECK_EQUAL(gy_vm_run(m.vm), 0);
	let_touch(m.vm, two_patrols(m.vm));
	CHECK_EQUAL(gy_vm_stop(m.vm, SLOW_MS), 0);
	expect_clean(m.vm);
	machine_end(m);
	free(state.bytes);
	return 0;
}

/* Called before any thread exists: the child is a process like any other. */
static void goes_on_in_another_process(void)
{
	struct parcel *parcel = mmap(NULL, sizeof(*parcel), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct machine m;
	struct state state;
	int pipe_fds[2], status = 0;
	pid_t pid;

	CHECK(parcel != MAP_FAILED);
	CHECK_EQUAL(pipe(pipe_fds), 0);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid)
		exit(child(parcel, pipe_fds[0]));
	m = machine_boot_stopped(&uniform_2, 4 * MIB);
	state = save(m.vm);
	memcpy(parcel->state, state.bytes, state.len);
	parcel->len = state.len;
	CHECK(gy_ram_read(m.ram, 0, parcel->ram, sizeof(parcel->ram)) > 0);
	CHECK_EQUAL(write(pipe_fds[1], "x", 1), 1);
	CHECK_EQUAL(waitpid(pid, &status, 0), pid);
	CHECK(WIFEXITED(status));
	CHECK_EQUAL(WEXITSTATUS(status), 0);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
	free(state.bytes);
	munmap(parcel, sizeof(*parcel));
	machine_end(m);
}

/* ---- changing a saved state ---- */

static void seal(struct state state)
{
	EVP_Digest(state.bytes, state.len - GY_BLOB_DIGEST_BYTES, state.bytes + state.len - GY_BLOB_DIGEST_BYTES, NULL,
		   EVP_sha256(), NULL);
}

static struct state copy_of(struct state state)
{
	struct state copy = { .bytes = malloc(state.len), .len = state.len };

	CHECK(copy.bytes);
	memcpy(copy.bytes, state.bytes, state.len);
	return copy;
}

/* Where a section's data lies in the state, to be changed. */
static uint8_t *section(struct state state, uint32_t type, uint32_t owner, uint64_t *bytes)
{
	struct gy_blob blob;
	const uint8_t *at;

	CHECK_EQUAL(gy_blob_open(&blob, state.bytes, state.len, NULL), 0);
	at = gy_blob_find(&blob, type, owner, bytes);
	CHECK(at);
	return state.bytes + (at - state.bytes);
}

static void every_length_is_refused(struct gy_vm *vm, struct state state)
{
	for (uint64_t len = 0; len < state.len; len++) {
		/* A copy of just this length, so that the sanitizer sees a read beyond it. */
		struct state cut = copy_of((struct state){ state.bytes, len });

		expect_refusal(vm, cut, -EBADMSG, "Cannot load", "");
		free(cut.bytes);
	}
	/* And with the right digest at the end of what is left. */
	for (uint64_t len = sizeof(struct gy_blob_head) + GY_BLOB_DIGEST_BYTES; len < state.len; len += 8) {
		struct state cut = copy_of((struct state){ state.bytes, len });

		seal(cut);
		expect_refusal(vm, cut, -EBADMSG, "Cannot load", "");
		free(cut.bytes);
	}
}

static void every_byte_is_covered(struct gy_vm *vm, struct state state)
{
	struct state copy = copy_of(state);

	for (uint64_t at = 0; at < state.len; at += at < 256 ? 1 : 5) {
		copy.bytes[at] ^= (uint8_t)(1u << at % 8);
		expect_refusal(vm, copy, -EBADMSG, "Cannot load", "must be");
		copy.bytes[at] ^= (uint8_t)(1u << at % 8);
	}
	free(copy.bytes);
}

static void foreign_version_is_refused(struct gy_vm *vm, struct state state)
{
	struct state copy = copy_of(state);
	struct gy_blob_head head;

	memcpy(&head, copy.bytes, sizeof(head));
	head.version = 77;
	memcpy(copy.bytes, &head, sizeof(head));
	seal(copy);
	expect_refusal(vm, copy, -EPROTO, "version 77", "must be 1");
	free(copy.bytes);
}

/* A peer that can make digests may still send anything: no crash, whatever it is. */
static void nonsense_does_no_harm(const struct gy_vm *like, struct state state)
{
	int refused = 0, taken = 0;

	srand(1);
	for (int i = 0; i < 400; i++) {
		struct state copy = copy_of(state);
		struct machine m;
		int ret;

		for (int changes = rand() % 4; changes >= 0; changes--) {
			uint64_t room = i % 2 ? copy.len - GY_BLOB_DIGEST_BYTES : 4096;

			copy.bytes[(uint64_t)rand() % room] = (uint8_t)(rand() % 3 ? rand() : 0xff);
		}
		seal(copy);
		m = machine_make(&like->config, like->ram->bytes);
		ret = gy_vm_restore(m.vm, copy.bytes, copy.len, NULL, 0);
		refused += ret < 0;
		taken += !ret;
		machine_end(m);
		free(copy.bytes);
	}
	printf("nonsense under a right digest: %d refused, %d taken\n", refused, taken);
	CHECK(refused > 0);
}

/* ---- states for other machines ---- */

static void other_shapes_are_refused(const struct gy_vm *like, struct state state)
{
	struct gy_vm_config config[7];
	const char *words[][2] = {
		{ "vCPUs 2", "has 1" }, { "flags 0", "has 1" }, { "workload 1", "has 3" },
		{ "writes per 1024 512", "has 100" }, { "working set bytes", "has 1048576" },
		{ "pages per second 0", "has 7" }, { "seed 12", "has 13" },
	};
	struct machine m;

	for (int i = 0; i < 7; i++)
		config[i] = like->config;
	config[0].vcpus = 1;
	config[1].flags = GY_VM_IRQCHIP;
	config[2].workload = GY_WORKLOAD_ZIPF;
	config[3].write_per_1024 = 100;
	config[4].working_set_bytes = MIB;
	config[5].rate_pages_per_s = 7;
	config[6].seed = 13;
	for (int i = 0; i < 7; i++) {
		m = machine_make(&config[i], 4 * MIB);
		expect_refusal(m.vm, state, -EINVAL, words[i][0], words[i][1]);
		CHECK_EQUAL(gy_vm_run(m.vm), -EINVAL);
		machine_end(m);
	}
	m = machine_make(&like->config, 6 * MIB);
	expect_refusal(m.vm, state, -EINVAL, "RAM bytes 4194304", "has 6291456");
	machine_end(m);
}

static void missing_cpu_feature_is_refused(struct gy_vm *vm, struct state state, uint32_t leaf)
{
	struct state copy = copy_of(state);
	uint64_t bytes = 0;
	uint8_t *at = section(copy, GY_STATE_CPUID, GY_BLOB_MACHINE, &bytes);
	uint32_t added = 0;
	char words[64];

	for (uint64_t i = 0; i < bytes; i += sizeof(struct kvm_cpuid_entry2)) {
		struct kvm_cpuid_entry2 entry;
		uint32_t *word;

		memcpy(&entry, at + i, sizeof(entry));
		if (entry.function != leaf || entry.index)
			continue;
		word = leaf == 7 ? &entry.ebx : leaf == 0xd ? &entry.eax : &entry.ecx;
		added = ~*word & (*word + 1);
		*word |= added;
		memcpy(at + i, &entry, sizeof(entry));
	}
	CHECK(added);
	seal(copy);
	snprintf(words, sizeof(words), "lacks bits 0x%x", added);
	expect_refusal(vm, copy, -ENOTSUP, words, "CPUID leaf 0x");
	free(copy.bytes);
}

static struct state with_clock(struct state state, int64_t add_khz, int64_t add_realtime_ns)
{
	struct state copy = copy_of(state);
	struct gy_state_machine machine;
	uint64_t bytes = 0;
	uint8_t *at = section(copy, GY_STATE_MACHINE, GY_BLOB_MACHINE, &bytes);

	memcpy(&machine, at, sizeof(machine));
	machine.tsc_khz = (uint32_t)(machine.tsc_khz + add_khz);
	machine.realtime_ns += (uint64_t)add_realtime_ns;
	memcpy(at, &machine, sizeof(machine));
	seal(copy);
	return copy;
}

static uint64_t tsc_of(struct gy_vm *vm)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} one = { .head.nmsrs = 1, .entry.index = 0x10 };

	CHECK_EQUAL(ioctl(vm->vcpu[0].fd, KVM_GET_MSRS, &one), 1);
	return one.entry.data;
}

static bool tsc_settable(struct gy_vm *like)
{
	struct gy_vm *vm = another_vm(like);
	uint64_t later = tsc_of(vm) + 3600ull * 1000 * vm->tsc_khz;
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} one = { .head.nmsrs = 1, .entry = { .index = 0x10, .data = later } };
	bool settable;

	CHECK_EQUAL(ioctl(vm->vcpu[0].fd, KVM_SET_MSRS, &one), 1);
	settable = tsc_of(vm) >= later;
	gy_vm_destroy(vm);
	return settable;
}

static struct state with_later_tsc(struct state state, uint64_t cycles)
{
	struct state copy = copy_of(state);

	for (uint32_t vcpu = 0; vcpu < 2; vcpu++) {
		uint64_t bytes = 0;
		uint8_t *at = section(copy, GY_STATE_MSRS, vcpu, &bytes);

		for (uint64_t i = 0; i < bytes; i += sizeof(struct kvm_msr_entry)) {
			struct kvm_msr_entry entry;

			memcpy(&entry, at + i, sizeof(entry));
			entry.data += entry.index == 0x10 ? cycles : 0;
			memcpy(at + i, &entry, sizeof(entry));
		}
		seal(copy);
	}
	return copy;
}

static void clock_of_another_host(struct gy_vm *vm, struct state state, uint64_t tsc_at_save)
{
	int64_t khz = vm->tsc_khz;
	struct state copy;

	if (ioctl(vm->kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL) <= 0) {
		copy = with_clock(state, khz / 100, 0);
		expect_refusal(vm, copy, -ENOTSUP, "kHz", "cannot scale");
		free(copy.bytes);
	}
	copy = with_clock(state, khz / 2000, 0);
	restore(vm, copy);
	free(copy.bytes);
	/* This host's clock is a day behind: no time has passed, and none is taken back. */
	copy = with_clock(state, 0, (int64_t)(86400 * NS_PER_S));
	restore(vm, copy);
	CHECK(tsc_of(vm) >= tsc_at_save);
	CHECK(tsc_of(vm) - tsc_at_save < 3600ull * 1000 * vm->tsc_khz);
	free(copy.bytes);
	/* It was saved an hour ago. */
	copy = with_clock(state, 0, -(int64_t)(3600 * NS_PER_S));
	restore(vm, copy);
	CHECK(tsc_of(vm) - tsc_at_save >= (tsc_settable(vm) ? 3600ull * 1000 * vm->tsc_khz : 0));
	free(copy.bytes);
	/* It has seen a later time than this host shows: KVM sets that, or the guest is refused. */
	copy = with_later_tsc(state, 7200ull * 1000 * vm->tsc_khz);
	if (tsc_settable(vm)) {
		restore(vm, copy);
		CHECK(tsc_of(vm) - tsc_at_save >= 7200ull * 1000 * vm->tsc_khz);
	} else {
		expect_refusal(vm, copy, -ENOTSUP, "would go back to", "must be at least");
	}
	free(copy.bytes);
}

/* Puts an MSR that no KVM knows in the place of the last one. */
static struct state with_unknown_msr(struct state state, uint64_t value)
{
	struct state copy = copy_of(state);
	struct kvm_msr_entry entry = { .index = 0x4b564dff, .data = value };
	uint64_t bytes = 0;
	uint8_t *at = section(copy, GY_STATE_MSRS, 0, &bytes);

	memcpy(at + bytes - sizeof(entry), &entry, sizeof(entry));
	seal(copy);
	return copy;
}

static void refused_msr(struct gy_vm *vm, struct state state)
{
	struct state copy = with_unknown_msr(state, 0);

	restore(vm, copy);
	free(copy.bytes);
	copy = with_unknown_msr(state, 1);
	expect_refusal(vm, copy, -ENOTSUP, "MSR 0x4b564dff", "0x1");
	/* Half restored, it must not run; whole, it may. */
	CHECK_EQUAL(gy_vm_run(vm), -EINVAL);
	restore(vm, state);
	free(copy.bytes);
}

static void missing_section_is_refused(struct gy_vm *vm, struct state state)
{
	for (uint32_t type = GY_STATE_SHAPE; type <= GY_STATE_MSRS; type++) {
		struct state copy = copy_of(state);
		uint32_t unknown = 999;
		uint64_t bytes = 0;
		struct gy_blob blob = { copy.bytes, copy.len - GY_BLOB_DIGEST_BYTES };
		uint32_t owner = type < GY_STATE_IRQCHIP ? GY_BLOB_MACHINE : 1;

		if (gy_blob_find(&blob, type, owner, &bytes)) {
			memcpy(section(copy, type, owner, &bytes) - sizeof(struct gy_blob_section), &unknown,
			       sizeof(unknown));
			seal(copy);
			expect_refusal(vm, copy, -EBADMSG, "Cannot load a state with", "");
		}
		free(copy.bytes);
	}
	restore(vm, state);
}

static void order_is_enforced(void)
{
	struct machine m = machine_make(&uniform_1, 4 * MIB);
	uint8_t state[64];
	char err[256] = "";

	CHECK_EQUAL(gy_vm_save(m.vm, state, sizeof(state), err, sizeof(err)), -EINVAL);
	CHECK_WORDS(err, "neither booted nor restored");
	CHECK_EQUAL(gy_vm_boot(m.vm), 0);
	CHECK_EQUAL(gy_vm_save(m.vm, state, sizeof(state), err, sizeof(err)), -ENOSPC);
	CHECK_WORDS(err, "64 bytes");
	CHECK_EQUAL(gy_vm_run(m.vm), 0);
	CHECK_EQUAL(gy_vm_save(m.vm, state, sizeof(state), err, sizeof(err)), -EBUSY);
	CHECK_EQUAL(gy_vm_restore(m.vm, state, sizeof(state), err, sizeof(err)), -EBUSY);
	CHECK_EQUAL(gy_vm_stop(m.vm, SLOW_MS), 0);
	machine_end(m);
}

int main(void)
{
	struct machine m;
	struct gy_vm *other;
	struct state state;
	uint64_t tsc;

	if (no_kvm("vm_state_test"))
		return SKIPPED;
	setbuf(stdout, NULL);
	goes_on_in_another_process();
	order_is_enforced();
	boot_goes_on_elsewhere();
	state_survives_unchanged(0);
	state_survives_unchanged(GY_VM_IRQCHIP);
	ten_hops(1, 0);
	ten_hops(2, GY_VM_IRQCHIP);
	ten_hops(4, 0);
	ten_hops(4, GY_VM_IRQCHIP);

	m = machine_boot_stopped(&uniform_2, 4 * MIB);
	state = save(m.vm);
	tsc = tsc_of(m.vm);
	other = another_vm(m.vm);
	every_length_is_refused(other, state);
	every_byte_is_covered(other, state);
	foreign_version_is_refused(other, state);
	other_shapes_are_refused(m.vm, state);
	missing_cpu_feature_is_refused(other, state, 0x1);
	missing_cpu_feature_is_refused(other, state, 0x7);
	missing_cpu_feature_is_refused(other, state, 0xd);
	missing_cpu_feature_is_refused(other, state, 0x80000001);
	clock_of_another_host(other, state, tsc);
	refused_msr(other, state);
	missing_section_is_refused(other, state);
	nonsense_does_no_harm(m.vm, state);
	/* After all of this the true state still goes on. */
	restore(other, state);
	CHECK_EQUAL(gy_vm_run(other), 0);
	let_touch(other, 20000);
	CHECK_EQUAL(gy_vm_stop(other, SLOW_MS), 0);
	expect_clean(other);
	gy_vm_destroy(other);
	free(state.bytes);
	machine_end(m);
	return 0;
}
