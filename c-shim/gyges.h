/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gyges.h - everything that libgyges.so exports.
 *
 * Conventions, for every function unless it says otherwise:
 *   - the result is >= 0 on success and -errno on failure; errno itself means nothing;
 *   - handles are opaque; xxx_destroy() takes NULL and half-built objects and is called once;
 *   - a call that may block takes timeout_ms (0: do not wait) and answers -ETIMEDOUT;
 *   - may be called from any thread, but one handle only from one thread at a time, except where noted;
 *   - structs are shared with ffi/layouts.ts: fixed width, padded explicitly, sizes asserted.
 *
 * Page numbers count 4 KiB pages from the start of the RAM file. A bitmap over n pages is ceil(n / 64)
 * little-endian u64 words; bit i of word w is page 64 w + i.
 */
#ifndef GYGES_H
#define GYGES_H

#include <stddef.h>
#include <stdint.h>

#include "stats.h"

#define GY_ABI_VERSION 1u
#define GY_PAGE_BYTES 4096u
#define GY_EXPORT __attribute__((visibility("default")))

GY_EXPORT uint32_t gy_abi_version(void);

/* ---- RAM file ---------------------------------------------------------------------------------- */

struct gy_ram;

/*
 * gy_ram_create() - make an anonymous RAM file (memfd) of @bytes and map it shared, twice.
 * @bytes: multiple of 2 MiB. The first mapping is the guest's (userfaultfd is registered on it); the second
 *         ("alias") belongs to the agent. Reading a page through either allocates it: use gy_ram_read() where
 *         a page may be missing.
 * Errors: EINVAL size, ENOMEM, EFBIG, EMFILE.
 */
GY_EXPORT int gy_ram_create(uint64_t bytes, struct gy_ram **out);
GY_EXPORT void gy_ram_destroy(struct gy_ram *ram);
GY_EXPORT uint64_t gy_ram_bytes(const struct gy_ram *ram);
/* Reads without allocating: holes read as zeros. Returns bytes read. Any thread. */
GY_EXPORT int64_t gy_ram_read(struct gy_ram *ram, uint64_t offset, void *buf, uint64_t len);
/* Writes, for tests that damage RAM on purpose. */
GY_EXPORT int64_t gy_ram_write(struct gy_ram *ram, uint64_t offset, const void *buf, uint64_t len);
/* Bytes of the file that are allocated. */
GY_EXPORT int64_t gy_ram_allocated(struct gy_ram *ram);
/*
 * gy_ram_create_in() - as gy_ram_create(), with the file in @folder, where gygesfs is mounted: what the kernel pager
 * moves. The file has no name; it goes with the machine that uses it.
 * Errors, besides those: ENOENT and ENOTTY nothing of the kind is mounted there, EACCES, EPROTO another version of it,
 * ENOSPC more than its mount may hold. @err as in gy_vm_create().
 */
GY_EXPORT int gy_ram_create_in(const char *folder, uint64_t bytes, struct gy_ram **out, char *err, uint32_t err_bytes);

/*
 * gy_ram_attach() - RAM of @bytes that process @pid, a QEMU, has for its guest. Add its pieces, in order, before any
 * other use; together they have @bytes. Errors: EINVAL, ENOMEM.
 */
GY_EXPORT int gy_ram_attach(uint32_t pid, uint64_t bytes, struct gy_ram **out);
/*
 * The next piece: the file @path (of the process's own mapping, say /proc/PID/map_files/...), which the process has
 * mapped shared at @address from @file_offset on. Errors: those of open(2), EINVAL (size).
 */
GY_EXPORT int gy_ram_attach_piece(struct gy_ram *ram, const char *path, uint64_t file_offset, uint64_t address,
				  uint64_t bytes, char *err, uint32_t err_bytes);

/*
 * Whether faults of the process of gy_ram_attach() can be caught here: makes all that it needs, and ends it. Errors: as
 * gy_sink_create() has them of userfaultfd.
 */
GY_EXPORT int gy_ram_try_faults(struct gy_ram *ram, char *err, uint32_t err_bytes);

/* ---- other processes: QEMU ---------------------------------------------------------------------- */

struct gy_process;

#define GY_PROCESS_LISTEN_FD 4

/*
 * Starts a program that does not depend on this process: no child of ours, in a session of its own, with its output
 * appended to @log (mode 0600) and nothing to read. @argv: NUL-terminated arguments, one after the other, the program
 * (sought in PATH) first; @argv_bytes of them. Unless @socket_path is empty the program finds a unix socket that listens
 * there, in place of what was there, as descriptor GY_PROCESS_LISTEN_FD. Unless @helper_path is empty, and where this
 * process may be kept from tracing others, a helper of ours is loaded into the program (LD_PRELOAD) that listens there.
 * Errors: those of execvp(3), open(2) and bind(2), E2BIG.
 */
GY_EXPORT int gy_process_start(const char *argv, uint64_t argv_bytes, const char *log, const char *socket_path,
			       const char *helper_path, struct gy_process **out, char *err, uint32_t err_bytes);
/* A process that runs already. -ESRCH. */
GY_EXPORT int gy_process_open(uint32_t pid, struct gy_process **out);
GY_EXPORT uint32_t gy_process_pid(const struct gy_process *process);
/* 0 once it has ended; -ETIMEDOUT. Any thread. */
GY_EXPORT int gy_process_wait(struct gy_process *process, uint32_t timeout_ms);
/* SIGKILL. 0 also when it has ended already; -EPERM. */
GY_EXPORT int gy_process_kill(struct gy_process *process);
/* The file "maps", "cmdline" or "status" of its /proc directory. Bytes; -ENOSPC with too small a buffer. */
GY_EXPORT int64_t gy_process_read(struct gy_process *process, const char *name, void *buf, uint64_t cap);
GY_EXPORT void gy_process_destroy(struct gy_process *process);
/* The process that listens on unix socket @path. Connects for it. -ENOENT, -ECONNREFUSED, -EACCES. */
GY_EXPORT int gy_unix_listener_pid(const char *path);
/*
 * Connects to unix socket @path, sends that connection with @words, a whole command, to process @pid, a QEMU, by the one
 * connection that this process has to a socket of its, the monitor, and closes its own copy. Nothing else may write there
 * at the same time. Errors: ENOTCONN there is no such connection, or are several; EAGAIN; those of connect(2).
 */
GY_EXPORT int gy_monitor_send_connection(uint32_t pid, const char *words, const char *path, char *err,
					 uint32_t err_bytes);

struct gy_tool;

/*
 * Starts a program that works for this process, as make does: a child, in a session of its own, with its output
 * appended to @log (mode 0600) and nothing to read. @argv as for gy_process_start(). Errors: those of execvp(3) and
 * open(2).
 */
GY_EXPORT int gy_tool_start(const char *argv, uint64_t argv_bytes, const char *log, struct gy_tool **out, char *err,
			    uint32_t err_bytes);
/* Its exit code once it has ended, 128 + the signal that killed it; -ETIMEDOUT. One thread at a time. */
GY_EXPORT int gy_tool_wait(struct gy_tool *tool, uint32_t timeout_ms);
/* Ends it, and what it has started, if it runs. No wait may be under way. */
GY_EXPORT void gy_tool_destroy(struct gy_tool *tool);

struct gy_guard;

/*
 * If this process dies before gy_guard_dismiss(), however it dies, the QEMU with the monitor at @monitor is told to let
 * its guest run, within seconds. Errors: EAGAIN, EMFILE, ENAMETOOLONG.
 */
GY_EXPORT int gy_guard_run(const char *monitor, struct gy_guard **out);
/* The same with SIGKILL for process @pid. Errors besides: ESRCH. */
GY_EXPORT int gy_guard_kill(uint32_t pid, struct gy_guard **out);
/* All is well. Once. */
GY_EXPORT void gy_guard_dismiss(struct gy_guard *guard);

/* ---- write tracking in another process ----------------------------------------------------------- */

struct gy_tracker;

enum gy_tracker_way {
	GY_TRACKER_WRITE_PROTECTION = 0,	/* userfaultfd's, asynchronous: Linux 6.7 */
	GY_TRACKER_SOFT_DIRTY = 1,		/* where the kernel is older */
};

/*
 * What process @pid of gy_ram_attach() writes through its mapping, from gy_tracker_start() on; answers an enum
 * gy_tracker_way. Writes by others, and by direct I/O under way at a collect, are not seen: start and collect with the
 * guest stopped and its I/O drained. By soft-dirty bits RAM is locked in memory, page by page as it is used, and
 * whatever is written while one of the two is under way is lost.
 * Errors: ENOTSUP this kernel cannot, or not with this RAM; EPERM, EBUSY as in remote_call.h.
 */
GY_EXPORT int gy_tracker_create(struct gy_ram *ram, struct gy_tracker **out, char *err, uint32_t err_bytes);
GY_EXPORT int gy_tracker_start(struct gy_tracker *tracker, char *err, uint32_t err_bytes);
/* Before a collect, with the guest running: does the part that can be done so. Not needed. */
GY_EXPORT int gy_tracker_prepare(struct gy_tracker *tracker);
/* ORs into @bitmap the pages written since the last collect, or the start; returns how many there were. */
GY_EXPORT int64_t gy_tracker_collect(struct gy_tracker *tracker, uint64_t *bitmap, uint64_t words);
GY_EXPORT void gy_tracker_destroy(struct gy_tracker *tracker);

/* ---- micro-VM ---------------------------------------------------------------------------------- */

struct gy_vm;

enum gy_workload { GY_WORKLOAD_UNIFORM = 1, GY_WORKLOAD_SEQUENTIAL = 2, GY_WORKLOAD_ZIPF = 3 };

#define GY_VM_MAX_VCPUS 8u
#define GY_VM_IRQCHIP 1u	/* flags: in-kernel interrupt controller */

struct gy_vm_config {
	uint32_t vcpus;			/* 1..8 */
	uint32_t flags;
	uint32_t workload;		/* enum gy_workload */
	uint32_t write_per_1024;	/* share of touches that rewrite */
	uint64_t working_set_bytes;	/* 0: three quarters of RAM */
	uint64_t rate_pages_per_s;	/* 0: no limit; over all vCPUs */
	uint64_t seed;
	uint64_t reserved[2];		/* 0 */
};

/* The guest's account of itself, summed over its vCPUs. */
struct gy_guest_report {
	uint64_t vcpus;
	uint64_t booted;		/* 1 once every vCPU has filled its pages */
	uint64_t running;		/* 1 while vCPUs may run */
	uint64_t passes;
	uint64_t verified_pages;
	uint64_t written_pages;
	uint64_t corrupt;
	uint64_t first_corrupt_page;	/* UINT64_MAX: none */
	uint64_t largest_stall_ns;	/* since boot or gy_vm_reset_stall() */
	uint64_t clock_backsteps;
	uint64_t unread_vcpus;		/* vCPUs whose report page is still at the source */
	uint64_t reserved;
	struct gy_hist stall;		/* ns between two touches of one vCPU */
};

struct gy_ram_check {
	uint64_t pages;			/* all pages of the RAM file */
	uint64_t filled_pages;		/* pages that carry a stamp */
	uint64_t zero_pages;		/* workload pages never written, seen to be zero */
	uint64_t bad_pages;
	uint64_t first_bad_page;	/* UINT64_MAX: none */
	uint64_t reserved[3];
};

enum gy_vm_event { GY_VM_EVENT_NONE = 0, GY_VM_EVENT_BOOTED = 1, GY_VM_EVENT_CORRUPT = 2, GY_VM_EVENT_FAILED = 3 };

/*
 * gy_vm_create() - KVM machine with its vCPU threads parked; @ram must outlive it.
 * Makes everything that takes time (VM, irqchip, vCPUs) so that a restore later costs only state.
 * @err: NUL-terminated text of what failed; may be NULL.
 */
GY_EXPORT int gy_vm_create(struct gy_ram *ram, const struct gy_vm_config *config, struct gy_vm **out,
			   char *err, uint32_t err_bytes);
/* May wait for ever for a vCPU that waits for a page: close what resolves its faults first, or end the process. */
GY_EXPORT void gy_vm_destroy(struct gy_vm *vm);
/* Loads the guest program into RAM and sets the vCPUs to its entry. */
GY_EXPORT int gy_vm_boot(struct gy_vm *vm);
/* Lets the vCPUs run. Does not block. -EINVAL: nothing was booted or restored; -EIO: the guest has failed. */
GY_EXPORT int gy_vm_run(struct gy_vm *vm);
/*
 * Stops every vCPU: when it returns 0 no vCPU runs, no exit is half done, and RAM is final.
 * -ETIMEDOUT: a vCPU waits for a page that does not come; all that can still run are running again.
 */
GY_EXPORT int gy_vm_stop(struct gy_vm *vm, uint32_t timeout_ms);
/*
 * State of the stopped machine: versioned, checksummed. Returns bytes; -ENOSPC with too small a buffer, -EBUSY while
 * it runs, -EIO if the guest has failed.
 */
GY_EXPORT int64_t gy_vm_save(struct gy_vm *vm, void *buf, uint64_t cap, char *err, uint32_t err_bytes);
/* Upper bound for gy_vm_save(). */
GY_EXPORT int64_t gy_vm_state_bytes(struct gy_vm *vm);
/*
 * Loads a state into a machine of the same shape. -EBADMSG damaged, -EPROTO foreign version, -EINVAL shape, -ENOTSUP
 * this host's CPU or clock cannot carry on with it, -EBUSY while the machine runs.
 */
GY_EXPORT int gy_vm_restore(struct gy_vm *vm, const void *buf, uint64_t len, char *err, uint32_t err_bytes);
/* Any thread. Never allocates guest memory. */
GY_EXPORT int gy_vm_report(struct gy_vm *vm, struct gy_guest_report *report);
/*
 * Forgets all stalls seen so far, so that the next ones are this migration's. Guest running or not; -EAGAIN where the
 * guest's memory is not all here yet.
 */
GY_EXPORT int gy_vm_reset_stall(struct gy_vm *vm);
/* Checks every page of the stopped machine's RAM. -EBUSY while it runs. */
GY_EXPORT int gy_vm_check_ram(struct gy_vm *vm, struct gy_ram_check *check);
/* Waits for an event; returns enum gy_vm_event or -ETIMEDOUT. On FAILED, @err says what the vCPU did. Any thread. */
GY_EXPORT int gy_vm_wait(struct gy_vm *vm, uint32_t timeout_ms, char *err, uint32_t err_bytes);

/* Dirty tracking by KVM's dirty log with manual protect. */
GY_EXPORT int gy_vm_dirty_start(struct gy_vm *vm);
GY_EXPORT int gy_vm_dirty_stop(struct gy_vm *vm);
/*
 * ORs into @bitmap (words u64 words over all RAM pages) the pages written since the last collect and
 * write-protects them again. Returns how many there were.
 */
GY_EXPORT int64_t gy_vm_dirty_collect(struct gy_vm *vm, uint64_t *bitmap, uint64_t words);

/* ---- channels: TCP, secured by the ticket's key ------------------------------------------------ */

struct gy_listener;
struct gy_channel;

#define GY_KEY_BYTES 32u
#define GY_CHANNEL_SERVER 1u	/* flags: this end accepted the connection */
#define GY_CHANNEL_TLS 2u	/* flags: TLS 1.3; without it the key authenticates but does not encrypt */

/* @host: name or numeric address; @port 0: any. Errors: EADDRINUSE, EADDRNOTAVAIL, ENOENT (no such host). */
GY_EXPORT int gy_listener_create(const char *host, uint32_t port, struct gy_listener **out);
GY_EXPORT int gy_listener_port(const struct gy_listener *listener);
/* Takes one connection, not yet secured. */
GY_EXPORT int gy_listener_accept(struct gy_listener *listener, uint32_t timeout_ms, struct gy_channel **out);
GY_EXPORT void gy_listener_destroy(struct gy_listener *listener);

struct gy_lobby;

/*
 * Takes @listener over, also on failure. Connections wait in the lobby, at no cost but a descriptor, until they have
 * said their first message whole; those that do not are dropped after ten seconds, or, when hundreds wait, the oldest
 * first.
 */
GY_EXPORT int gy_lobby_create(struct gy_listener *listener, struct gy_lobby **out);
/* The next connection that has spoken, not yet secured: gy_channel_secure() need not wait to tell who it is. */
GY_EXPORT int gy_lobby_accept(struct gy_lobby *lobby, uint32_t timeout_ms, struct gy_channel **out);
/* Connections dropped so far. Any thread. */
GY_EXPORT uint64_t gy_lobby_dropped(const struct gy_lobby *lobby);
GY_EXPORT void gy_lobby_destroy(struct gy_lobby *lobby);

GY_EXPORT int gy_channel_connect(const char *host, uint32_t port, uint32_t timeout_ms, struct gy_channel **out);
/*
 * Proves to each end that the other holds @key (32 bytes) and, with GY_CHANNEL_TLS, encrypts from here on.
 * -EACCES: the peer does not hold the key. -EPROTO: it does not speak this protocol, or one end wants TLS and
 * the other does not (@err says which). -ETIMEDOUT, -ECONNABORTED.
 */
GY_EXPORT int gy_channel_secure(struct gy_channel *channel, const uint8_t *key, uint32_t flags,
				uint32_t timeout_ms, char *err, uint32_t err_bytes);
/*
 * Frames: u32 text bytes, u32 payload bytes, text (JSON), payload. Send and receive may be called from two
 * threads at once. A receive that answers -ETIMEDOUT may have part of a frame: the next call must bring the same
 * buffer. A send that fails, -ETIMEDOUT included, closes the channel: what follows answers -ECONNABORTED. -EMSGSIZE: the frame is larger than @cap, nothing was consumed beyond its
 * header and the channel is closed. -ECONNABORTED: the peer closed, or the link failed.
 */
GY_EXPORT int64_t gy_channel_recv_frame(struct gy_channel *channel, uint8_t *buf, uint64_t cap,
					uint32_t timeout_ms);
GY_EXPORT int gy_channel_send_frame(struct gy_channel *channel, const uint8_t *text, uint32_t text_bytes,
				    const uint8_t *payload, uint32_t payload_bytes, uint32_t timeout_ms);
/* Any thread, at any time: wakes whoever waits on the channel with -ECONNABORTED. */
GY_EXPORT void gy_channel_shutdown(struct gy_channel *channel);
GY_EXPORT void gy_channel_destroy(struct gy_channel *channel);

/* ---- tunnels: unix connections of two programs on two hosts ------------------------------------ */

struct gy_tunnel;

#define GY_TUNNEL_LISTEN 1u	/* flags: this end's program connects to @path; without it, it listens there */
#define GY_TUNNEL_LANES 8u	/* connections at most */

/* Errors: -EADDRINUSE, -ENAMETOOLONG (108 bytes), -ENOENT (no such folder). One thread at a time for all of these. */
GY_EXPORT int gy_tunnel_create(const char *path, uint32_t flags, struct gy_tunnel **out);
/*
 * Takes the secured @channel over, also on failure: it carries the next connection of the program, in the order of the
 * calls. -ENOSPC, -ECONNREFUSED and -ENOENT (nobody listens at the path).
 */
GY_EXPORT int gy_tunnel_add(struct gy_tunnel *tunnel, struct gy_channel *channel);
/* Ends every connection; others may be added. */
GY_EXPORT void gy_tunnel_drop(struct gy_tunnel *tunnel);
/* Bytes that came from the other host so far. Any thread. */
GY_EXPORT uint64_t gy_tunnel_bytes(const struct gy_tunnel *tunnel);
GY_EXPORT void gy_tunnel_destroy(struct gy_tunnel *tunnel);

/* ---- page sets on the wire --------------------------------------------------------------------- */

/* Encodes a bitmap as runs or as it is, whichever is shorter. Returns bytes written; -ENOSPC. */
GY_EXPORT int64_t gy_set_encode(const uint64_t *bitmap, uint64_t pages, uint8_t *out, uint64_t cap);
/* Upper bound of gy_set_encode() over @pages pages. */
GY_EXPORT uint64_t gy_set_bound(uint64_t pages);
/* ORs an encoded set into @bitmap. Returns pages in the set; -EBADMSG if malformed or beyond @pages. */
GY_EXPORT int64_t gy_set_decode(const uint8_t *in, uint64_t len, uint64_t *bitmap, uint64_t pages);
GY_EXPORT int64_t gy_set_count(const uint64_t *bitmap, uint64_t pages);

/* ---- source: serves pages ---------------------------------------------------------------------- */

struct gy_source;

enum gy_role { GY_ROLE_DEMAND = 1, GY_ROLE_PREFETCH = 2 };
#define GY_EVENT_ROUND_DONE 1u
#define GY_EVENT_COMPLETE 2u
#define GY_EVENT_LINK_LOST 4u
#define GY_EVENT_FAILED 8u
#define GY_EVENT_WAKE 16u	/* gy_source_wake() or gy_sink_wake() was called */

/* @rate: bytes per second over all page connections, 0 without limit. */
GY_EXPORT int gy_source_create(struct gy_ram *ram, uint64_t rate, struct gy_source **out);
/* Joins every thread; closes every channel it was given. */
GY_EXPORT void gy_source_destroy(struct gy_source *source);
/* Serves @channel from now on and owns it, also on failure. */
GY_EXPORT int gy_source_add(struct gy_source *source, struct gy_channel *channel, uint32_t role);
/* Closes all channels and joins their threads; the source can be given new ones. */
GY_EXPORT void gy_source_drop_channels(struct gy_source *source);
/*
 * Present pages (allocated in the RAM file) into @bitmap. Called first while the guest runs; called again with
 * the guest stopped it looks only into the holes it saw, which is what makes it quick. Returns their number.
 */
GY_EXPORT int64_t gy_source_scan_present(struct gy_source *source, uint64_t *bitmap, uint64_t words);
/*
 * RDMA: awaits destinations that know @token (32 bytes), at @host (digits) and @port (0: any), besides what channels
 * there are; once: -EBUSY after that. Without @host at the first address of this host that an RDMA device has, the one
 * on the way to @towards before all others. @address: where it listens, in digits. Returns the port. -ENOENT no
 * libraries, -ENODEV no RDMA device there, -ENOMEM less memory may be locked than RAM has, -EADDRINUSE, -EADDRNOTAVAIL.
 */
GY_EXPORT int gy_source_listen(struct gy_source *source, const char *host, uint32_t port, const char *towards,
			       const uint8_t *token, char *address, uint32_t address_bytes, char *err,
			       uint32_t err_bytes);
/*
 * RDMA: where RAM can be read, one struct gyges_region (24 bytes) for all of it. The first call registers it, which
 * allocates every page of the RAM file: gy_source_scan_present() must have been called before, and what the guest
 * writes must be tracked from before that on.
 */
GY_EXPORT int gy_source_region(struct gy_source *source, uint8_t *region, char *err, uint32_t err_bytes);
/*
 * 1: a page that gy_source_region() has registered is no longer the guest's, as somebody gave it back to the host, and what
 * RDMA reads there is stale; 0: none, or nothing is registered; -errno. Looks at all page table entries. With the guest
 * stopped the answer lasts.
 */
GY_EXPORT int gy_source_broken(struct gy_source *source);
GY_EXPORT struct gy_page_stats *gy_source_stats(struct gy_source *source);
/* Events since the last call, as a mask; -ETIMEDOUT. Any thread. */
GY_EXPORT int gy_source_wait(struct gy_source *source, uint32_t timeout_ms);
/* Any thread: ends a gy_source_wait(), so that the source can be destroyed. */
GY_EXPORT void gy_source_wake(struct gy_source *source);

/* ---- sink: the user pager's destination side ---------------------------------------------------- */

struct gy_sink;

struct gy_sink_config {
	uint64_t precopy_window_bytes;	/* asked for and not yet received, over all prefetch connections */
	uint64_t postcopy_window_bytes;
	uint32_t prefetch;		/* 0: demand only, until no fault has come for a second */
	uint32_t take_over;		/* 1: RAM of another process, whose agent died after gy_sink_arm() */
	uint64_t rate;			/* bytes per second over all RDMA links, 0 without limit; TCP: see gy_source_create() */
};

/*
 * Registers userfaultfd over the guest mapping. @err as in gy_vm_create(). EPERM: see `gyges doctor`. With @take_over
 * it goes on with the descriptor that stayed open in the guest's process; -ENOENT: none did, so every page is there.
 */
GY_EXPORT int gy_sink_create(struct gy_ram *ram, const struct gy_sink_config *config, struct gy_sink **out,
			     char *err, uint32_t err_bytes);
/* Before gy_sink_arm(): forgets everything. After it, with pages missing: the guest must be gone. */
GY_EXPORT void gy_sink_destroy(struct gy_sink *sink);
/* Takes a page connection and owns it, also on failure. After a lost link: takes its place. */
GY_EXPORT int gy_sink_add(struct gy_sink *sink, struct gy_channel *channel, uint32_t role);
/*
 * RDMA: connects to a source that listens at the numeric address @host, by one link for demand and @prefetch_links
 * (1..16) for the rest, within @timeout_ms. Takes the place of what gy_sink_drop_channels() dropped. ENOENT no
 * libraries, ENODEV no device leads there, ECONNREFUSED nobody listens or it does not take @token (32 bytes),
 * ETIMEDOUT, ENETUNREACH, ENOMEM.
 */
GY_EXPORT int gy_sink_dial(struct gy_sink *sink, const char *host, uint32_t port, const uint8_t *token,
			   uint32_t prefetch_links, uint32_t timeout_ms, char *err, uint32_t err_bytes);
/*
 * RDMA: an array of struct gyges_region of linux/gyges.h, where which page is; replaces the one before. Every page that
 * is wanted from then on must have a region: -ERANGE from the call that wants it. -EINVAL malformed, -EBUSY in a round
 * and after gy_sink_arm().
 */
GY_EXPORT int gy_sink_regions(struct gy_sink *sink, const uint8_t *regions, uint64_t len);
GY_EXPORT void gy_sink_drop_channels(struct gy_sink *sink);
/*
 * Pre-copy: these pages are (again) only at the source; pull them. One round at a time: -EBUSY. The round ends
 * by itself after @deadline_ms, with what is left still wanted. -EBADMSG malformed set. Returns pages wanted.
 */
GY_EXPORT int64_t gy_sink_round(struct gy_sink *sink, const uint8_t *set, uint64_t len, uint32_t deadline_ms);
GY_EXPORT int gy_sink_end_round(struct gy_sink *sink);
/*
 * Between rounds: these pages are only at the source, and every stale copy of a wanted page is dropped from the
 * RAM file now. Called with the guest running it takes this work out of the downtime. Returns pages wanted.
 */
GY_EXPORT int64_t gy_sink_discard(struct gy_sink *sink, const uint8_t *set, uint64_t len);
/*
 * Post-copy begins: pages wanted are missing, pages received are vouched for, all others are known to be zero.
 * Drops every page that is not vouched for, then answers faults. Returns missing pages. After a take-over nothing is
 * dropped: what is in the file is here, all else is missing, and whoever waited for an answer of the dead agent asks anew.
 */
GY_EXPORT int64_t gy_sink_arm(struct gy_sink *sink);
/* After the commit point: prefetch may begin. */
GY_EXPORT int gy_sink_run(struct gy_sink *sink);
/* After GY_EVENT_COMPLETE: the RAM file is ordinary memory again. -EBUSY while pages are missing. */
GY_EXPORT int gy_sink_disarm(struct gy_sink *sink);
GY_EXPORT struct gy_page_stats *gy_sink_stats(struct gy_sink *sink);
GY_EXPORT int gy_sink_wait(struct gy_sink *sink, uint32_t timeout_ms);
GY_EXPORT void gy_sink_wake(struct gy_sink *sink);

/* ---- kernel pager: what gygesfs does for a RAM file of gy_ram_create_in() ----------------------- */

/* 0 where gygesfs is mounted at @folder and may be used; -ENOENT, -ENOTTY (another file system), -EACCES. */
GY_EXPORT int gy_kernel_at(const char *folder);
/* RDMA devices of this host. */
GY_EXPORT int gy_rdma_devices(void);

/*
 * Loads the module in file @path, without parameters. -EEXIST: it is loaded; -ENOEXEC: it was built for another kernel;
 * -ENOENT: it needs symbols that no loaded module has; -EKEYREJECTED, -ENOKEY, -ENODATA, -EPERM: the kernel takes signed
 * modules only, or none, or not from us; others of open(2) and finit_module(2).
 */
GY_EXPORT int gy_module_insert(const char *path);
/* Unloads module @name. -ENOENT: it is not loaded; -EAGAIN: it is in use; -EBUSY; -EPERM. */
GY_EXPORT int gy_module_remove(const char *name);
/* Mounts gygesfs at @folder, for its owner alone. -ENODEV: the module is not loaded; others of mount(2). */
GY_EXPORT int gy_gygesfs_mount(const char *folder);
/* -EBUSY: somebody has a file of it; -EINVAL: no mount; others of umount(2). */
GY_EXPORT int gy_gygesfs_unmount(const char *folder);
/*
 * Who has files of the file system at @folder open or mapped, or is in it, as lines "PID COMMAND", at most @cap bytes of
 * them. Bytes; errors of stat(2).
 */
GY_EXPORT int64_t gy_mount_users(const char *folder, char *text, uint64_t cap);

struct gy_kernel_source;

GY_EXPORT int gy_kernel_source_create(struct gy_ram *ram, struct gy_kernel_source **out);
/* Ends tracking and export. */
GY_EXPORT void gy_kernel_source_destroy(struct gy_kernel_source *source);
/*
 * Awaits destinations that know @token (32 bytes), at @host and @port; once: -EBUSY after that. Without @host at the
 * first address of this host that an RDMA device has, the one on the way to @towards before all others.
 * @address: where it listens, in digits. Returns the port. -ENODEV: no RDMA device there.
 */
GY_EXPORT int gy_kernel_source_listen(struct gy_kernel_source *source, const char *host, uint32_t port,
				      const char *towards, const uint8_t *token, char *address, uint32_t address_bytes);
/* ORs the present pages into @bitmap; returns their number. */
/* 1: a destination has bidden farewell, it has every page; 0 or -errno. Waits while regions are registered. */
GY_EXPORT int gy_kernel_source_is_read(struct gy_kernel_source *source);
GY_EXPORT int64_t gy_kernel_source_scan_present(struct gy_kernel_source *source, uint64_t *bitmap, uint64_t words);
GY_EXPORT int gy_kernel_source_dirty_start(struct gy_kernel_source *source);
/* ORs into @bitmap what was written since the last collect. Returns how many pages that were. */
GY_EXPORT int64_t gy_kernel_source_dirty_collect(struct gy_kernel_source *source, uint64_t *bitmap, uint64_t words);
GY_EXPORT int gy_kernel_source_dirty_stop(struct gy_kernel_source *source);
/*
 * Registers what is present and not registered yet, and writes the table of remote regions, an array of struct
 * gyges_region. @changed: whether it is another than the last time. Returns its bytes; more than @cap: nothing was
 * written, come again. Nobody may read meanwhile. -ENOTCONN: no destination has connected.
 */
GY_EXPORT int64_t gy_kernel_source_regions(struct gy_kernel_source *source, uint8_t *table, uint64_t cap,
					   uint32_t *changed);

struct gy_kernel_sink;

struct gy_kernel_sink_config {
	uint64_t rate;			/* bytes per second, 0 without limit */
	uint32_t precopy_window_pages;	/* 0: as the module sees fit */
	uint32_t postcopy_window_pages;
	uint32_t prefetch;		/* 0: demand only, until no fault has come for a second */
	uint32_t reserved;
};

GY_EXPORT int gy_kernel_sink_create(struct gy_ram *ram, const struct gy_kernel_sink_config *config,
				    struct gy_kernel_sink **out);
/* Before gy_kernel_sink_arm(): forgets everything. After it, with pages missing: the guest must be gone. */
GY_EXPORT void gy_kernel_sink_destroy(struct gy_kernel_sink *sink);
/*
 * Connects to a source that listens at @host (digits) and @port and knows @token; the first time, and again after a
 * lost link. -ECONNREFUSED, -ENETUNREACH, -ETIMEDOUT, -ENODEV (no RDMA device on the way), -EPERM.
 */
GY_EXPORT int gy_kernel_sink_connect(struct gy_kernel_sink *sink, const char *host, uint32_t port,
				     const uint8_t *token, uint32_t timeout_ms);
/* Closes what is left of the link, and forgets what gy_kernel_sink_wait() has not told yet. */
GY_EXPORT int gy_kernel_sink_drop(struct gy_kernel_sink *sink);
/* The table of remote regions from here on; between rounds. -EINVAL: it cannot be right. */
GY_EXPORT int gy_kernel_sink_regions(struct gy_kernel_sink *sink, const uint8_t *table, uint64_t len);
/* As the functions of struct gy_sink; -ERANGE: a page of the set is in no region. */
GY_EXPORT int64_t gy_kernel_sink_round(struct gy_kernel_sink *sink, const uint8_t *set, uint64_t len,
				       uint32_t deadline_ms);
GY_EXPORT int gy_kernel_sink_end_round(struct gy_kernel_sink *sink);
GY_EXPORT int64_t gy_kernel_sink_discard(struct gy_kernel_sink *sink, const uint8_t *set, uint64_t len);
GY_EXPORT int64_t gy_kernel_sink_arm(struct gy_kernel_sink *sink);
GY_EXPORT int gy_kernel_sink_run(struct gy_kernel_sink *sink);
/* -EBUSY while pages are missing. */
GY_EXPORT int gy_kernel_sink_disarm(struct gy_kernel_sink *sink);
/* Reads the kernel's counters into the block that gy_kernel_sink_stats() gives; any thread, one at a time. */
GY_EXPORT int gy_kernel_sink_refresh(struct gy_kernel_sink *sink);
GY_EXPORT struct gy_page_stats *gy_kernel_sink_stats(struct gy_kernel_sink *sink);
GY_EXPORT int gy_kernel_sink_wait(struct gy_kernel_sink *sink, uint32_t timeout_ms);
GY_EXPORT void gy_kernel_sink_wake(struct gy_kernel_sink *sink);
/* Where the import of the file stands, whoever began it: enum gyges_phase. @linked: 1, its source is connected, or 0. */
GY_EXPORT int gy_kernel_sink_phase(struct gy_kernel_sink *sink, uint32_t *linked);

/* ---- RDMA from user space: what this host has --------------------------------------------------- */

/* 0; -ENOENT without the libraries, -ENODEV without a device. Any thread. */
GY_EXPORT int gy_rdma_usable(char *err, uint32_t err_bytes);

/* ---- faults made on purpose, for positive controls ---------------------------------------------- */

enum gy_inject {
	GY_INJECT_NONE = 0,
	GY_INJECT_ZERO_PAGE = 1,	/* sink: the page, no other, is placed as zeros */
	GY_INJECT_SWAP_PAGES = 2,	/* sink: the page and its successor change places */
	GY_INJECT_STALE_PAGE = 3,	/* sink: a pre-copied page stays although it was dirtied since */
	GY_INJECT_SKIP_DIRTY = 4,	/* source: dirty pages are left out of the set */
	GY_INJECT_ABSENT_PAGE = 5	/* sink that takes over: a page that is not there is taken for present */
};

/*
 * Arms one fault at the first fitting page at or after @page. With @pages > 1 GY_INJECT_SKIP_DIRTY takes all of so many from
 * there, out of every set. Process-wide; for tests only.
 */
GY_EXPORT int gy_inject(uint32_t what, uint64_t page, uint64_t pages);
/* Where a dirty set is final: leaves out pages if GY_INJECT_SKIP_DIRTY is armed. */
GY_EXPORT int gy_inject_skip_dirty(uint64_t *bitmap, uint64_t pages);

#endif
