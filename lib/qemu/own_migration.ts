/**
 * QEMU's own migration, by its monitor: QEMU moves RAM and state by itself, first while the guest runs and then post-copy.
 * Both ends go through a unix socket that carries its connections to the other host.
 */
import * as v from "valibot";
import type { NativeProcess } from "../../ffi/process.ts";
import { pause } from "../migration/timing.ts";
import type { Mode } from "../options.ts";
import { MachineStateError } from "./errors.ts";
import { statusOf } from "./facts.ts";
import { type QemuVersion, type QmpClient, QmpCommandError, QmpLostError } from "./qmp.ts";
import { type Capabilities, chooseCapabilities, resetCapabilities } from "./state_stream.ts";

/** Since then pages that a vCPU waits for have a connection of their own that a lost link does not upset. */
const PREEMPT_MAJOR = 8;
/** QEMU has no word for "no limit" before the switch. */
const NO_LIMIT_BYTES_PER_S = 64 * 1024 ** 3;
/** The longest that it takes: what is left is sent with the guest stopped, whatever time that takes. */
const ANY_DOWNTIME_MS = 2_000_000;
const POLL_MS = 20;
/** For QEMU to begin, to leave a failed state, or to load a guest. */
const SETTLE_MS = 30_000;
const RECOVER_MS = 5_000;

const infoSchema = v.object({
  status: v.optional(v.string(), "none"),
  "error-desc": v.optional(v.string()),
  ram: v.optional(v.object({
    transferred: v.number(),
    remaining: v.number(),
    duplicate: v.number(),
    normal: v.number(),
    mbps: v.number(),
    "dirty-sync-count": v.number(),
    "postcopy-requests": v.number(),
  })),
  "postcopy-blocktime": v.optional(v.number()),
});
const parametersSchema = v.object({
  "max-bandwidth": v.number(),
  "max-postcopy-bandwidth": v.number(),
  "downtime-limit": v.number(),
});

/** What QEMU says of a migration; figures of RAM are the source's alone. */
export interface OwnProgress {
  /** QEMU's word: "active", "postcopy-active", "postcopy-paused", "completed", "failed", ... */
  status: string;
  error: string | null;
  sentBytes: number;
  sentPages: number;
  zeroPages: number;
  remainingBytes: number;
  bytesPerSecond: number;
  rounds: number;
  /** Pages that were asked for as a vCPU waited. */
  requests: number;
  /** The destination's; 0 where it does not tell. */
  blocktimeMs: number;
}

export interface StartOptions {
  mode: Mode;
  bandwidthBytesPerSecond: number;
  /** Pre-copy mode stops the guest when the rest fits in this. */
  downtimeLimitMs: number;
}

export interface SwitchOptions {
  mode: Mode;
  limitMs: number;
  /** Hybrid mode goes on post-copy when the rest takes no longer than this. */
  thresholdMs: number;
  signal: AbortSignal;
}

export interface PrecopyEnd {
  /** Why it is over, in words. */
  why: string;
  rounds: number;
  /** All has been sent, and the guest is stopped: there is nothing to be had post-copy. */
  whole: boolean;
}

/** Why the QEMU that `process` is cannot go through our sockets, in words; null: it can. */
export function whyOutOfReach(process: NativeProcess): string | null {
  const [, effective] = /^Uid:\s+\d+\s+(\d+)/m.exec(process.read("status")) ?? [];
  const user = Number(effective);
  if (user === 0 || user === Deno.uid()) return null;
  return `QEMU's own migration would go through sockets of user ${Deno.uid()}, and process ${process.pid} runs as user ` +
    `${user}`;
}

export class OwnMigration {
  /** Where QEMU connects to at the source, and listens at the destination. */
  readonly socketPath: string;
  readonly #qmp: QmpClient;
  /** Before, QEMU tells how its last migration went. */
  #started = false;
  #precopying = false;
  #before: { capabilities: Capabilities; parameters: v.InferOutput<typeof parametersSchema> } | null = null;

  constructor(qmp: QmpClient, socketPath: string) {
    this.#qmp = qmp;
    this.socketPath = socketPath;
  }

  get #uri(): string {
    return `unix:${this.socketPath}`;
  }

  get started(): boolean {
    return this.#started;
  }

  /** It was started, and not told to go on post-copy. */
  get precopying(): boolean {
    return this.#precopying;
  }

  /** Connections of a migration between this QEMU and one of `other` version. */
  connectionsWith(other: QemuVersion): number {
    return this.#preempts(other) ? 2 : 1;
  }

  #preempts(other: QemuVersion): boolean {
    return Math.min(this.#qmp.version.major, other.major) >= PREEMPT_MAJOR;
  }

  async #setCapabilities(other: QemuVersion): Promise<Capabilities> {
    const wanted = ["postcopy-ram", "postcopy-blocktime", "late-block-activate"];
    return await chooseCapabilities(this.#qmp, this.#preempts(other) ? [...wanted, "postcopy-preempt"] : wanted);
  }

  // ---- source ----

  /** QEMU begins to send while the guest runs. Throws MachineStateError, QmpCommandError, QmpLostError. */
  async start(options: StartOptions, other: QemuVersion): Promise<void> {
    const { mode, bandwidthBytesPerSecond: rate, downtimeLimitMs } = options;
    const parameters = await this.#qmp.ask(parametersSchema, "query-migrate-parameters");
    this.#before = { capabilities: await this.#setCapabilities(other), parameters };
    await this.#qmp.call("migrate-set-parameters", {
      "max-bandwidth": rate === 0 ? NO_LIMIT_BYTES_PER_S : Math.round(rate),
      "max-postcopy-bandwidth": Math.round(rate),
      // Hybrid mode never stops the guest to copy.
      "downtime-limit": mode === "precopy" ? Math.round(downtimeLimitMs) : 0,
    });
    await this.#qmp.call("migrate", { uri: this.#uri });
    this.#started = this.#precopying = true;
    await this.#until((status) => status !== "setup" && status !== "none", "begun");
  }

  /** Resolves when it is time to go on post-copy, or when all has been sent. */
  async untilSwitch({ mode, limitMs, thresholdMs, signal }: SwitchOptions): Promise<PrecopyEnd> {
    const endAt = performance.now() + limitMs;
    for (;;) {
      signal.throwIfAborted();
      const progress = await this.look();
      const { rounds } = progress;
      if (progress.status === "completed") return { why: "all has been sent", rounds, whole: true };
      failIfOver(progress);
      if (mode === "full") return { why: "there was to be none", rounds: 0, whole: false };
      const late = performance.now() >= endAt;
      if (mode === "hybrid") {
        if (late) return { why: "its time is up", rounds, whole: false };
        const leftMs = progress.remainingBytes / Math.max(1, progress.bytesPerSecond) * 1000;
        if (rounds > 1 && leftMs <= thresholdMs) return { why: "what is left is little", rounds, whole: false };
      } else if (late) {
        await this.#qmp.call("migrate-set-parameters", { "downtime-limit": ANY_DOWNTIME_MS });
      }
      await pause(POLL_MS);
    }
  }

  /**
   * QEMU stops the guest and sends its state and then, as they are asked for, its pages: from here on there is no way
   * back for it. Throws QmpCommandError where QEMU refuses and nothing has changed, QmpLostError where that is not known.
   */
  async startPostcopy(): Promise<void> {
    this.#precopying = false;
    await this.#qmp.call("migrate-start-postcopy");
  }

  /** Resolves once the guest is stopped here and its state has left. */
  async untilStopped(): Promise<void> {
    await this.#until((status) => status.startsWith("postcopy-") || status === "completed", "stopped the guest");
  }

  /** Goes on after a lost link, through new connections. */
  async resume(): Promise<void> {
    await this.#until((status) => status === "postcopy-paused" || status === "completed", "seen that the link is lost");
    if ((await this.look()).status === "completed") return;
    await this.#qmp.call("migrate", { uri: this.#uri, resume: true });
  }

  /** Ends what was started before post-copy, and leaves QEMU's settings as they were. */
  async undo(): Promise<void> {
    const before = this.#before;
    if (!before) return;
    this.#before = null;
    // What QEMU says from here on is of the past, also to the next move.
    this.#started = this.#precopying = false;
    const { status } = await this.look();
    if (status === "active" || status === "setup") await this.#qmp.call("migrate_cancel");
    await this.#until((word) => !["active", "setup", "cancelling", "device"].includes(word), "ended its migration");
    await resetCapabilities(this.#qmp, before.capabilities);
    await this.#qmp.call("migrate-set-parameters", before.parameters);
  }

  // ---- destination ----

  /** QEMU, started with -incoming defer, listens for a QEMU of `other` version from here on. */
  async listen(other: QemuVersion): Promise<void> {
    await this.#setCapabilities(other);
    await this.#qmp.call("migrate-incoming", { uri: this.#uri });
  }

  /** Resolves when the guest is loaded and could run. Throws MachineStateError. */
  async untilLoaded(): Promise<void> {
    const deadline = performance.now() + SETTLE_MS;
    for (;;) {
      const { status } = await statusOf(this.#qmp);
      if (status === "paused") return;
      failIfOver(await this.look());
      if (performance.now() > deadline) throw new MachineStateError(`QEMU has no guest but is "${status}"`);
      await pause(POLL_MS);
    }
  }

  /** QEMU listens again after a lost link. Its main thread may wait for a page: it hears this all the same. */
  async recover(): Promise<void> {
    const deadline = performance.now() + RECOVER_MS;
    for (;;) {
      try {
        await this.#qmp.callNow("migrate-recover", { uri: this.#uri });
        return;
      } catch (error) {
        // It has not seen yet that the link is lost.
        if (!(error instanceof QmpCommandError) || performance.now() > deadline) throw error;
        await pause(POLL_MS);
      }
    }
  }

  // ---- either ----

  async look(): Promise<OwnProgress> {
    const { status, ram, "error-desc": error, "postcopy-blocktime": blocktimeMs } = await this.#qmp.ask(
      infoSchema,
      "query-migrate",
    );
    return {
      status,
      error: error ?? null,
      sentBytes: ram?.transferred ?? 0,
      sentPages: ram?.normal ?? 0,
      zeroPages: ram?.duplicate ?? 0,
      remainingBytes: ram?.remaining ?? 0,
      bytesPerSecond: (ram?.mbps ?? 0) * 1e6 / 8,
      rounds: ram?.["dirty-sync-count"] ?? 0,
      requests: ram?.["postcopy-requests"] ?? 0,
      blocktimeMs: blocktimeMs ?? 0,
    };
  }

  /** The same, and null where QEMU is alive and does not answer: its main thread may wait for a page. */
  async glance(): Promise<OwnProgress | null> {
    try {
      return await this.look();
    } catch (error) {
      if (error instanceof QmpLostError && !this.#qmp.isClosed) return null;
      throw error;
    }
  }

  async #until(there: (status: string) => boolean, what: string): Promise<void> {
    const deadline = performance.now() + SETTLE_MS;
    for (;;) {
      const progress = await this.look();
      if (there(progress.status)) return;
      failIfOver(progress);
      if (performance.now() > deadline) {
        throw new MachineStateError(`QEMU has not ${what} after ${SETTLE_MS / 1000} s: it is "${progress.status}"`);
      }
      await pause(POLL_MS);
    }
  }
}

function failIfOver({ status, error }: OwnProgress): void {
  if (status !== "failed" && status !== "cancelled") return;
  throw new MachineStateError(`QEMU's migration ${status}: ${error ?? "it does not say why"}`);
}
