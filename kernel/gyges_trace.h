/* SPDX-License-Identifier: GPL-2.0 */
/* gyges_trace.h - tracepoints: /sys/kernel/tracing/events/gyges. */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM gyges

#if !defined(GYGES_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define GYGES_TRACE_H

#include <linux/tracepoint.h>

/* A touch of a page that is not here. */
TRACE_EVENT(gyges_fault,
	TP_PROTO(unsigned long ino, unsigned long page, bool nowait, int result),
	TP_ARGS(ino, page, nowait, result),
	TP_STRUCT__entry(
		__field(unsigned long, ino)
		__field(unsigned long, page)
		__field(bool, nowait)
		__field(int, result)
	),
	TP_fast_assign(
		__entry->ino = ino;
		__entry->page = page;
		__entry->nowait = nowait;
		__entry->result = result;
	),
	TP_printk("ino=%lu page=%lu nowait=%d result=%d", __entry->ino, __entry->page, __entry->nowait,
		  __entry->result)
);

TRACE_EVENT(gyges_read_post,
	TP_PROTO(unsigned long ino, unsigned long first, unsigned int pages, bool demand),
	TP_ARGS(ino, first, pages, demand),
	TP_STRUCT__entry(
		__field(unsigned long, ino)
		__field(unsigned long, first)
		__field(unsigned int, pages)
		__field(bool, demand)
	),
	TP_fast_assign(
		__entry->ino = ino;
		__entry->first = first;
		__entry->pages = pages;
		__entry->demand = demand;
	),
	TP_printk("ino=%lu first=%lu pages=%u demand=%d", __entry->ino, __entry->first, __entry->pages,
		  __entry->demand)
);

TRACE_EVENT(gyges_read_done,
	TP_PROTO(unsigned long ino, unsigned long first, unsigned int pages, int status, u64 ns),
	TP_ARGS(ino, first, pages, status, ns),
	TP_STRUCT__entry(
		__field(unsigned long, ino)
		__field(unsigned long, first)
		__field(unsigned int, pages)
		__field(int, status)
		__field(u64, ns)
	),
	TP_fast_assign(
		__entry->ino = ino;
		__entry->first = first;
		__entry->pages = pages;
		__entry->status = status;
		__entry->ns = ns;
	),
	TP_printk("ino=%lu first=%lu pages=%u status=%d ns=%llu", __entry->ino, __entry->first, __entry->pages,
		  __entry->status, __entry->ns)
);

/* What the background worker chose. */
TRACE_EVENT(gyges_prefetch,
	TP_PROTO(unsigned long ino, unsigned long first, unsigned int pages, bool near_fault),
	TP_ARGS(ino, first, pages, near_fault),
	TP_STRUCT__entry(
		__field(unsigned long, ino)
		__field(unsigned long, first)
		__field(unsigned int, pages)
		__field(bool, near_fault)
	),
	TP_fast_assign(
		__entry->ino = ino;
		__entry->first = first;
		__entry->pages = pages;
		__entry->near_fault = near_fault;
	),
	TP_printk("ino=%lu first=%lu pages=%u near_fault=%d", __entry->ino, __entry->first, __entry->pages,
		  __entry->near_fault)
);

TRACE_EVENT(gyges_dirty_round,
	TP_PROTO(unsigned long ino, unsigned long pages, unsigned long pinned, u64 ns),
	TP_ARGS(ino, pages, pinned, ns),
	TP_STRUCT__entry(
		__field(unsigned long, ino)
		__field(unsigned long, pages)
		__field(unsigned long, pinned)
		__field(u64, ns)
	),
	TP_fast_assign(
		__entry->ino = ino;
		__entry->pages = pages;
		__entry->pinned = pinned;
		__entry->ns = ns;
	),
	TP_printk("ino=%lu pages=%lu pinned=%lu ns=%llu", __entry->ino, __entry->pages, __entry->pinned, __entry->ns)
);

TRACE_EVENT(gyges_state,
	TP_PROTO(unsigned long ino, u32 phase, bool link_up, int error),
	TP_ARGS(ino, phase, link_up, error),
	TP_STRUCT__entry(
		__field(unsigned long, ino)
		__field(u32, phase)
		__field(bool, link_up)
		__field(int, error)
	),
	TP_fast_assign(
		__entry->ino = ino;
		__entry->phase = phase;
		__entry->link_up = link_up;
		__entry->error = error;
	),
	TP_printk("ino=%lu phase=%u link_up=%d error=%d", __entry->ino, __entry->phase, __entry->link_up,
		  __entry->error)
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE gyges_trace
#include <trace/define_trace.h>
