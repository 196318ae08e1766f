/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * gyges.h - the kernel pager as user space sees it: ioctls on a RAM file of gygesfs.
 *
 * A RAM file is the memory of one guest. Three things can be done with it, each by ioctl on any descriptor of it:
 *
 *   track    DIRTY_START, then a DIRTY_ROUND whenever it is wanted to know what was written since the last.
 *   export   (source) EXPORT listens for destinations that know the token; once one has connected, EXPORT_REGIONS
 *            registers the pages that are present for remote reading and tells where they are.
 *   import   (destination) IMPORT connects, IMPORT_REGIONS says where which page is; then
 *              ROUND*          pre-copy: pull these pages, while the guest still runs at the source
 *              DISCARD         these pages changed after they were pulled; drop and want them again
 *              ARM             from now on a page that is missing is pulled when it is touched
 *              RUN             the guest runs: prefetch may begin
 *            until the last page is here (GYGES_PHASE_COMPLETE), whatever becomes of the process that asked. A lost
 *            link stops it (GYGES_LINK_UP is clear, threads wait killably on missing pages); IMPORT connects anew.
 *            Of an import that is whole and that nobody ENDs the source is told, see GYGES_EXPORT_READ.
 *            IMPORT_ABANDON gives up for good: touching a missing page is SIGBUS then.
 *
 * All of it belongs to the file, not to the caller: it ends with END, or when the last descriptor and mapping of the
 * file are gone. Every struct has a fixed layout; unknown flags and non-zero reserved fields are refused with EINVAL,
 * unknown commands with ENOTTY. The descriptor must be open for writing (EBADF), except for VERSION, STATE and STATS;
 * EXPORT and IMPORT need CAP_NET_ADMIN (EPERM). Pages are of 4096 bytes, counted from the start of the file. A bitmap
 * is an array of 64-bit words, bit i of word w is page 64 w + i; words beyond the last page's are refused (EINVAL),
 * bits beyond it too.
 */
#ifndef _UAPI_LINUX_GYGES_H
#define _UAPI_LINUX_GYGES_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define GYGES_ABI_VERSION	1
#define GYGES_MAGIC		0x67796765	/* statfs() f_type */
#define GYGES_TOKEN_BYTES	32
#define GYGES_ADDR_BYTES	28		/* struct sockaddr_in or struct sockaddr_in6 */
#define GYGES_HIST_BUCKETS	320

struct gyges_version {
	__u32 abi;			/* out: GYGES_ABI_VERSION */
	__u32 page_bytes;		/* out */
	__u64 reserved[3];		/* 0 */
};

/* ---- dirty tracking ---- */

struct gyges_bitmap {
	__u64 words_ptr;		/* in: array of __u64 */
	__u64 words;			/* in: its length; exactly that of the file */
	__u64 pages;			/* out: bits set */
	__u32 flags;			/* 0 */
	__u32 reserved;			/* 0 */
};

/* ---- export ---- */

struct gyges_endpoint {
	__u8  addr[GYGES_ADDR_BYTES];	/* in: sockaddr; its port 0: any, told on return */
	__u32 timeout_ms;		/* in: IMPORT gives up after this; EXPORT: 0 */
	__u8  token[GYGES_TOKEN_BYTES];	/* in: who does not know it is rejected */
	__u32 flags;			/* in: GYGES_IMPORT_OVERWRITE */
	__u32 reserved[3];		/* 0 */
};

#define GYGES_IMPORT_OVERWRITE	(1u << 0)	/* the file may have pages: ARM drops them */

struct gyges_region {
	__u64 first_page;
	__u64 remote_addr;		/* of first_page; the others follow */
	__u32 pages;			/* > 0 */
	__u32 rkey;
};

struct gyges_regions {
	__u64 regions_ptr;		/* array of struct gyges_region, by first_page, without overlap */
	__u32 capacity;			/* in: its length */
	__u32 count;			/* EXPORT_REGIONS out: entries needed; IMPORT_REGIONS: 0 */
	__u32 changed;			/* EXPORT_REGIONS out: pieces registered by this call */
	__u32 flags;			/* 0 */
	__u64 reserved;			/* 0 */
};

/* What a destination says in the private data of its connect request; little-endian. */
#define GYGES_CM_MAGIC		0x4d435947
#define GYGES_CM_VERSION	1
#define GYGES_ROLE_DEMAND	1
#define GYGES_ROLE_PREFETCH	2
#define GYGES_ROLE_FAREWELL	3	/* never connected: refused by a source that has heard it */

struct gyges_cm_request {
	__le32 magic;
	__le16 version;
	__le16 role;
	__u8   token[GYGES_TOKEN_BYTES];
	__le64 reserved;		/* 0 */
};

/* ---- import ---- */

struct gyges_round {
	struct gyges_bitmap set;	/* in: pages to pull (again); pages out: missing now */
	__u32 deadline_ms;		/* in: nothing is asked for after this */
	__u32 reserved[3];		/* 0 */
};

struct gyges_prefetch {
	__u32 flags;			/* in: GYGES_PREFETCH_OFF */
	__u32 batch_pages;		/* in: of one READ, 1..16; 0: default */
	__u32 precopy_window_pages;	/* in: asked for and not yet here, in rounds; 0: default */
	__u32 postcopy_window_pages;	/* in: the same after RUN; 0: default */
	__u64 rate_bytes_per_s;		/* in: 0: no limit */
	__u64 reserved;			/* 0 */
};

#define GYGES_PREFETCH_OFF	(1u << 0)	/* until no page was touched for a second */

/* ---- state ---- */

enum gyges_phase {
	GYGES_PHASE_NONE = 0,		/* no import */
	GYGES_PHASE_PRECOPY = 1,
	GYGES_PHASE_ARMED = 2,
	GYGES_PHASE_RUNNING = 3,
	GYGES_PHASE_COMPLETE = 4,
	GYGES_PHASE_ABANDONED = 5,
};

#define GYGES_LINK_UP		(1u << 0)	/* import: connected */
#define GYGES_ROUND_ACTIVE	(1u << 1)
#define GYGES_EXPORTING		(1u << 2)
#define GYGES_TRACKING		(1u << 3)
#define GYGES_EXPORT_READ	(1u << 4)	/* export: a destination has bidden farewell: it has every page */

struct gyges_state {
	__u32 phase;			/* out: enum gyges_phase */
	__u32 flags;			/* out */
	__u64 seq;			/* out: grows with every change; poll() says POLLIN until this one was seen */
	__u64 rounds_done;		/* out */
	__u64 missing_pages;		/* out */
	__u64 links_lost;		/* out: import: times a link that was up failed */
	__s32 link_error;		/* out: -errno of the last loss or refusal */
	__u32 connections;		/* out: export: connected now */
	__u64 reserved[2];
};

/*
 * Log-linear: values below 8 have a bucket each; above, every power of two is divided in 8.
 * Bucket of v >= 8: e = 63 - clz(v); (e - 2) * 8 + ((v >> (e - 3)) & 7).
 */
struct gyges_hist {
	__u64 n;
	__u64 sum;
	__u64 max;
	__u64 bucket[GYGES_HIST_BUCKETS];
};

struct gyges_stats {
	__u64 total_pages;
	__u64 present_pages;		/* here, or known to be zero */
	__u64 missing_pages;
	__u64 precopy_pages;		/* pulled before ARM, with repeats */
	__u64 postcopy_pages;		/* pulled after it */
	__u64 demand_faults;		/* touches of a missing page: one a page */
	__u64 prefetched_pages;		/* postcopy_pages that no touch asked for */
	__u64 zero_pages;		/* known to be zero at ARM */
	__u64 duplicate_pages;		/* pulled again after ARM: 0 */
	__u64 wire_bytes;		/* payload of READs */
	__u64 blocktime_ns;		/* threads asleep for a missing page, kernel threads apart */
	__u64 discarded_pages;		/* pulled in pre-copy and dropped since */
	__u64 nowait_faults;		/* touches that must not sleep and found their page missing */
	__u64 nowait_slept;		/* those of them that slept all the same: 0 */
	__u64 demand_reads;		/* READs posted for one page by a touch */
	__u64 prefetch_reads;		/* READs posted in the background, of several pages */
	__u64 failed_reads;
	__u64 joined_faults;		/* demand_faults whose page was already on its way */
	__u64 pinned_pages;		/* left dirty by rounds because somebody held them */
	__u64 registered_pieces;	/* export: fast registrations, with repeats */
	__u64 reserved[4];
	struct gyges_hist fault_latency;	/* ns, touch to page in place */
	struct gyges_hist read_latency;		/* ns, READ posted to completed */
};

#define GYGES_IOC_VERSION	_IOR('g', 0x20, struct gyges_version)
#define GYGES_IOC_STATE		_IOR('g', 0x21, struct gyges_state)
#define GYGES_IOC_STATS		_IOR('g', 0x22, struct gyges_stats)
#define GYGES_IOC_PRESENT	_IOWR('g', 0x23, struct gyges_bitmap)

#define GYGES_IOC_DIRTY_START	_IO('g', 0x28)
#define GYGES_IOC_DIRTY_ROUND	_IOWR('g', 0x29, struct gyges_bitmap)
#define GYGES_IOC_DIRTY_STOP	_IO('g', 0x2a)

#define GYGES_IOC_EXPORT	_IOWR('g', 0x30, struct gyges_endpoint)
#define GYGES_IOC_EXPORT_REGIONS _IOWR('g', 0x31, struct gyges_regions)
#define GYGES_IOC_EXPORT_END	_IO('g', 0x32)

#define GYGES_IOC_IMPORT	_IOWR('g', 0x38, struct gyges_endpoint)
#define GYGES_IOC_IMPORT_REGIONS _IOWR('g', 0x39, struct gyges_regions)
#define GYGES_IOC_IMPORT_ROUND	_IOWR('g', 0x3a, struct gyges_round)
#define GYGES_IOC_IMPORT_END_ROUND _IO('g', 0x3b)
#define GYGES_IOC_IMPORT_DISCARD _IOWR('g', 0x3c, struct gyges_bitmap)
#define GYGES_IOC_IMPORT_ARM	_IO('g', 0x3d)
#define GYGES_IOC_IMPORT_RUN	_IO('g', 0x3e)
#define GYGES_IOC_IMPORT_DROP	_IO('g', 0x3f)	/* closes the link, as if it were lost */
#define GYGES_IOC_IMPORT_ABANDON _IO('g', 0x40)
#define GYGES_IOC_IMPORT_END	_IO('g', 0x41)	/* before ARM: forgets all; after it: EBUSY unless complete */
#define GYGES_IOC_PREFETCH	_IOW('g', 0x42, struct gyges_prefetch)

#endif
