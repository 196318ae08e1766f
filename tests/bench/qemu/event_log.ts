/** Events of a QEMU as they come, by its own clock, from a monitor of their own. */
import * as v from "valibot";
import { readLines } from "../../../lib/control/lines.ts";

const eventSchema = v.object({
  event: v.string(),
  timestamp: v.object({ seconds: v.number(), microseconds: v.number() }),
  data: v.optional(v.object({ status: v.optional(v.string()) })),
});

export interface QemuEvent {
  /** The event's name; a migration's with its status, as in "MIGRATION completed". */
  name: string;
  /** By QEMU's wall clock. */
  atMs: number;
}

export class EventLog implements Disposable {
  readonly events: QemuEvent[] = [];
  readonly #connection: Deno.UnixConn;
  readonly #listeners: ((event: QemuEvent) => void)[] = [];
  #open = true;

  private constructor(connection: Deno.UnixConn) {
    this.#connection = connection;
    void this.#read();
  }

  /** Arguments that give a QEMU the monitor for it at `path`. */
  static arguments(path: string): string[] {
    return ["-qmp", `unix:${path},server=on,wait=off`];
  }

  static async open(path: string): Promise<EventLog> {
    const connection = await Deno.connect({ transport: "unix", path });
    await connection.write(new TextEncoder().encode(`{"execute":"qmp_capabilities"}\n`));
    return new EventLog(connection);
  }

  listen(listener: (event: QemuEvent) => void): void {
    this.#listeners.push(listener);
  }

  /** The latest event `name` so far. */
  last(name: string): QemuEvent | undefined {
    return this.events.findLast((event) => event.name === name);
  }

  /** The first event `name`. Throws if it does not come within `timeoutMs`. */
  async wait(name: string, timeoutMs = 60_000): Promise<QemuEvent> {
    const there = this.events.find((event) => event.name === name);
    if (there) return there;
    const found = Promise.withResolvers<QemuEvent>();
    this.listen((event) => event.name === name && found.resolve(event));
    const words = () => this.events.map((event) => event.name).join(", ");
    const timer = setTimeout(() => found.reject(new Error(`No event "${name}" came: ${words()}`)), timeoutMs);
    try {
      return await found.promise;
    } finally {
      clearTimeout(timer);
    }
  }

  [Symbol.dispose](): void {
    if (!this.#open) return;
    this.#open = false;
    this.#connection.close();
  }

  async #read(): Promise<void> {
    try {
      for await (const line of readLines(this.#connection)) this.#take(JSON.parse(line));
    } catch (error) {
      // Closing it interrupts the read; a QEMU that is killed may reset it.
      if (this.#open && !(error instanceof Deno.errors.ConnectionReset)) throw error;
    }
  }

  #take(message: unknown): void {
    if (!v.is(eventSchema, message)) return;
    const { event: word, timestamp: { seconds, microseconds }, data } = message;
    const event = {
      name: word === "MIGRATION" ? `${word} ${data?.status}` : word,
      atMs: seconds * 1e3 + microseconds / 1e3,
    };
    this.events.push(event);
    for (const listener of this.#listeners) listener(event);
  }
}
