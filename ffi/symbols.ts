/** Every function of c-shim/gyges.h that TypeScript calls; `tests/unit/symbols_test.ts` holds it against the header. */

const OUT = "buffer"; // one-element BigUint64Array that receives a handle or a value

export const SYMBOLS = {
  gy_abi_version: { parameters: [], result: "u32" },

  // RAM file
  gy_ram_create: { parameters: ["u64", OUT], result: "i32" },
  gy_ram_destroy: { parameters: ["pointer"], result: "void" },
  gy_ram_read: { parameters: ["pointer", "u64", "buffer", "u64"], result: "i64" },
  gy_ram_write: { parameters: ["pointer", "u64", "buffer", "u64"], result: "i64" },
  gy_ram_allocated: { parameters: ["pointer"], result: "i64" },
  // folder, bytes, out, err, err_bytes
  gy_ram_create_in: { parameters: ["buffer", "u64", OUT, "buffer", "u32"], result: "i32" },
  gy_ram_attach: { parameters: ["u32", "u64", OUT], result: "i32" },
  // ram, path, file_offset, address, bytes, err, err_bytes
  gy_ram_attach_piece: { parameters: ["pointer", "buffer", "u64", "u64", "u64", "buffer", "u32"], result: "i32" },
  gy_ram_try_faults: { parameters: ["pointer", "buffer", "u32"], result: "i32", nonblocking: true },

  // other processes: argv, argv_bytes, log, socket_path, helper_path, out, err, err_bytes
  gy_process_start: {
    parameters: ["buffer", "u64", "buffer", "buffer", "buffer", OUT, "buffer", "u32"],
    result: "i32",
    nonblocking: true,
  },
  gy_process_open: { parameters: ["u32", OUT], result: "i32" },
  gy_process_pid: { parameters: ["pointer"], result: "u32" },
  gy_process_wait: { parameters: ["pointer", "u32"], result: "i32", nonblocking: true },
  gy_process_kill: { parameters: ["pointer"], result: "i32" },
  gy_process_read: { parameters: ["pointer", "buffer", "buffer", "u64"], result: "i64" },
  gy_process_destroy: { parameters: ["pointer"], result: "void" },
  gy_unix_listener_pid: { parameters: ["buffer"], result: "i32" },
  // pid, words, path, err, err_bytes
  gy_monitor_send_connection: { parameters: ["u32", "buffer", "buffer", "buffer", "u32"], result: "i32" },
  // argv, argv_bytes, log, out, err, err_bytes
  gy_tool_start: { parameters: ["buffer", "u64", "buffer", OUT, "buffer", "u32"], result: "i32" },
  gy_tool_wait: { parameters: ["pointer", "u32"], result: "i32", nonblocking: true },
  gy_tool_destroy: { parameters: ["pointer"], result: "void" },
  gy_guard_run: { parameters: ["buffer", OUT], result: "i32" },
  gy_guard_kill: { parameters: ["u32", OUT], result: "i32" },
  gy_guard_dismiss: { parameters: ["pointer"], result: "void" },

  // write tracking in another process: ram, out, err, err_bytes
  gy_tracker_create: { parameters: ["pointer", OUT, "buffer", "u32"], result: "i32", nonblocking: true },
  gy_tracker_start: { parameters: ["pointer", "buffer", "u32"], result: "i32", nonblocking: true },
  gy_tracker_prepare: { parameters: ["pointer"], result: "i32", nonblocking: true },
  gy_tracker_collect: { parameters: ["pointer", "buffer", "u64"], result: "i64", nonblocking: true },
  gy_tracker_destroy: { parameters: ["pointer"], result: "void", nonblocking: true },

  // micro-VM: handle, config, out, err, err_bytes
  gy_vm_create: { parameters: ["pointer", "buffer", OUT, "buffer", "u32"], result: "i32", nonblocking: true },
  gy_vm_destroy: { parameters: ["pointer"], result: "void", nonblocking: true },
  gy_vm_boot: { parameters: ["pointer"], result: "i32" },
  gy_vm_run: { parameters: ["pointer"], result: "i32" },
  gy_vm_stop: { parameters: ["pointer", "u32"], result: "i32", nonblocking: true },
  gy_vm_save: { parameters: ["pointer", "buffer", "u64", "buffer", "u32"], result: "i64" },
  gy_vm_state_bytes: { parameters: ["pointer"], result: "i64" },
  gy_vm_restore: { parameters: ["pointer", "buffer", "u64", "buffer", "u32"], result: "i32", nonblocking: true },
  gy_vm_report: { parameters: ["pointer", "buffer"], result: "i32" },
  gy_vm_reset_stall: { parameters: ["pointer"], result: "i32" },
  gy_vm_check_ram: { parameters: ["pointer", "buffer"], result: "i32", nonblocking: true },
  gy_vm_wait: { parameters: ["pointer", "u32", "buffer", "u32"], result: "i32", nonblocking: true },
  gy_vm_dirty_start: { parameters: ["pointer"], result: "i32", nonblocking: true },
  gy_vm_dirty_stop: { parameters: ["pointer"], result: "i32", nonblocking: true },
  gy_vm_dirty_collect: { parameters: ["pointer", "buffer", "u64"], result: "i64", nonblocking: true },

  // channels
  gy_listener_create: { parameters: ["buffer", "u32", OUT], result: "i32", nonblocking: true },
  gy_listener_port: { parameters: ["pointer"], result: "i32" },
  gy_lobby_create: { parameters: ["pointer", OUT], result: "i32" },
  gy_lobby_accept: { parameters: ["pointer", "u32", OUT], result: "i32", nonblocking: true },
  gy_lobby_dropped: { parameters: ["pointer"], result: "u64" },
  gy_lobby_destroy: { parameters: ["pointer"], result: "void" },
  gy_channel_connect: { parameters: ["buffer", "u32", "u32", OUT], result: "i32", nonblocking: true },
  // channel, key, flags, timeout_ms, err, err_bytes
  gy_channel_secure: {
    parameters: ["pointer", "buffer", "u32", "u32", "buffer", "u32"],
    result: "i32",
    nonblocking: true,
  },
  gy_channel_recv_frame: { parameters: ["pointer", "buffer", "u64", "u32"], result: "i64", nonblocking: true },
  // channel, text, text_bytes, payload, payload_bytes, timeout_ms
  gy_channel_send_frame: {
    parameters: ["pointer", "buffer", "u32", "buffer", "u32", "u32"],
    result: "i32",
    nonblocking: true,
  },
  gy_channel_shutdown: { parameters: ["pointer"], result: "void" },
  gy_channel_destroy: { parameters: ["pointer"], result: "void" },

  // tunnels
  gy_tunnel_create: { parameters: ["buffer", "u32", OUT], result: "i32" },
  gy_tunnel_add: { parameters: ["pointer", "pointer"], result: "i32" },
  gy_tunnel_drop: { parameters: ["pointer"], result: "void", nonblocking: true },
  gy_tunnel_bytes: { parameters: ["pointer"], result: "u64" },
  gy_tunnel_destroy: { parameters: ["pointer"], result: "void", nonblocking: true },

  // page sets
  gy_set_encode: { parameters: ["buffer", "u64", "buffer", "u64"], result: "i64" },
  gy_set_bound: { parameters: ["u64"], result: "u64" },
  gy_set_decode: { parameters: ["buffer", "u64", "buffer", "u64"], result: "i64" },
  gy_set_count: { parameters: ["buffer", "u64"], result: "i64" },

  // source
  gy_source_create: { parameters: ["pointer", "u64", OUT], result: "i32" },
  gy_source_destroy: { parameters: ["pointer"], result: "void", nonblocking: true },
  gy_source_add: { parameters: ["pointer", "pointer", "u32"], result: "i32" },
  gy_source_drop_channels: { parameters: ["pointer"], result: "void", nonblocking: true },
  gy_source_scan_present: { parameters: ["pointer", "buffer", "u64"], result: "i64", nonblocking: true },
  // source, host, port, towards, token, address, address_bytes, err, err_bytes
  gy_source_listen: {
    parameters: ["pointer", "buffer", "u32", "buffer", "buffer", "buffer", "u32", "buffer", "u32"],
    result: "i32",
    nonblocking: true,
  },
  gy_source_region: { parameters: ["pointer", "buffer", "buffer", "u32"], result: "i32", nonblocking: true },
  gy_source_broken: { parameters: ["pointer"], result: "i32", nonblocking: true },
  gy_source_stats: { parameters: ["pointer"], result: "pointer" },
  gy_source_wait: { parameters: ["pointer", "u32"], result: "i32", nonblocking: true },
  gy_source_wake: { parameters: ["pointer"], result: "void" },

  // sink: ram, config, out, err, err_bytes
  gy_sink_create: { parameters: ["pointer", "buffer", OUT, "buffer", "u32"], result: "i32" },
  gy_sink_destroy: { parameters: ["pointer"], result: "void", nonblocking: true },
  gy_sink_add: { parameters: ["pointer", "pointer", "u32"], result: "i32" },
  // sink, host, port, token, prefetch_links, timeout_ms, err, err_bytes
  gy_sink_dial: {
    parameters: ["pointer", "buffer", "u32", "buffer", "u32", "u32", "buffer", "u32"],
    result: "i32",
    nonblocking: true,
  },
  gy_sink_regions: { parameters: ["pointer", "buffer", "u64"], result: "i32", nonblocking: true },
  gy_sink_drop_channels: { parameters: ["pointer"], result: "void", nonblocking: true },
  gy_sink_round: { parameters: ["pointer", "buffer", "u64", "u32"], result: "i64", nonblocking: true },
  gy_sink_end_round: { parameters: ["pointer"], result: "i32" },
  gy_sink_discard: { parameters: ["pointer", "buffer", "u64"], result: "i64", nonblocking: true },
  gy_sink_arm: { parameters: ["pointer"], result: "i64", nonblocking: true },
  gy_sink_run: { parameters: ["pointer"], result: "i32" },
  gy_sink_disarm: { parameters: ["pointer"], result: "i32" },
  gy_sink_stats: { parameters: ["pointer"], result: "pointer" },
  gy_sink_wait: { parameters: ["pointer", "u32"], result: "i32", nonblocking: true },
  gy_sink_wake: { parameters: ["pointer"], result: "void" },

  gy_kernel_at: { parameters: ["buffer"], result: "i32" },
  gy_rdma_devices: { parameters: [], result: "i32" },
  gy_module_insert: { parameters: ["buffer"], result: "i32", nonblocking: true },
  gy_module_remove: { parameters: ["buffer"], result: "i32", nonblocking: true },
  gy_gygesfs_mount: { parameters: ["buffer"], result: "i32" },
  gy_gygesfs_unmount: { parameters: ["buffer"], result: "i32" },
  gy_mount_users: { parameters: ["buffer", "buffer", "u64"], result: "i64" },

  // kernel pager, source; listen: source, host, port, towards, token, address, address_bytes
  gy_kernel_source_create: { parameters: ["pointer", OUT], result: "i32" },
  gy_kernel_source_destroy: { parameters: ["pointer"], result: "void", nonblocking: true },
  gy_kernel_source_listen: {
    parameters: ["pointer", "buffer", "u32", "buffer", "buffer", "buffer", "u32"],
    result: "i32",
    nonblocking: true,
  },
  gy_kernel_source_is_read: { parameters: ["pointer"], result: "i32", nonblocking: true },
  gy_kernel_source_scan_present: { parameters: ["pointer", "buffer", "u64"], result: "i64", nonblocking: true },
  gy_kernel_source_dirty_start: { parameters: ["pointer"], result: "i32", nonblocking: true },
  gy_kernel_source_dirty_collect: { parameters: ["pointer", "buffer", "u64"], result: "i64", nonblocking: true },
  gy_kernel_source_dirty_stop: { parameters: ["pointer"], result: "i32", nonblocking: true },
  gy_kernel_source_regions: { parameters: ["pointer", "buffer", "u64", "buffer"], result: "i64", nonblocking: true },

  // kernel pager, destination; connect: sink, host, port, token, timeout_ms
  gy_kernel_sink_create: { parameters: ["pointer", "buffer", OUT], result: "i32" },
  gy_kernel_sink_destroy: { parameters: ["pointer"], result: "void", nonblocking: true },
  gy_kernel_sink_connect: {
    parameters: ["pointer", "buffer", "u32", "buffer", "u32"],
    result: "i32",
    nonblocking: true,
  },
  gy_kernel_sink_drop: { parameters: ["pointer"], result: "i32", nonblocking: true },
  gy_kernel_sink_regions: { parameters: ["pointer", "buffer", "u64"], result: "i32", nonblocking: true },
  gy_kernel_sink_round: { parameters: ["pointer", "buffer", "u64", "u32"], result: "i64", nonblocking: true },
  gy_kernel_sink_end_round: { parameters: ["pointer"], result: "i32" },
  gy_kernel_sink_discard: { parameters: ["pointer", "buffer", "u64"], result: "i64", nonblocking: true },
  gy_kernel_sink_arm: { parameters: ["pointer"], result: "i64", nonblocking: true },
  gy_kernel_sink_run: { parameters: ["pointer"], result: "i32" },
  gy_kernel_sink_disarm: { parameters: ["pointer"], result: "i32", nonblocking: true },
  gy_kernel_sink_refresh: { parameters: ["pointer"], result: "i32" },
  gy_kernel_sink_stats: { parameters: ["pointer"], result: "pointer" },
  gy_kernel_sink_wait: { parameters: ["pointer", "u32"], result: "i32", nonblocking: true },
  gy_kernel_sink_wake: { parameters: ["pointer"], result: "void" },
  gy_kernel_sink_phase: { parameters: ["pointer", "buffer"], result: "i32" },

  // RDMA from user space
  gy_rdma_usable: { parameters: ["buffer", "u32"], result: "i32" },

  // faults made on purpose
  gy_inject: { parameters: ["u32", "u64", "u64"], result: "i32" },
  gy_inject_skip_dirty: { parameters: ["buffer", "u64"], result: "i32" },
} as const satisfies Deno.ForeignLibraryInterface;
