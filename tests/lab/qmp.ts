/** QEMU's machine protocol: one JSON object a line, each command answered in turn. */
import { readLines } from "../../lib/control/lines.ts";
import { writeAll } from "./channel.ts";

export class Qmp {
  readonly #connection: Deno.Conn;
  readonly #lines: AsyncIterator<string>;

  private constructor(connection: Deno.Conn) {
    this.#connection = connection;
    this.#lines = readLines(connection)[Symbol.asyncIterator]();
  }

  /** Greets; QEMU has made all of its devices when this resolves. */
  static async open(connection: Deno.Conn): Promise<Qmp> {
    const qmp = new Qmp(connection);
    await qmp.execute("qmp_capabilities");
    return qmp;
  }

  /** What `name` returns. One command at a time. Throws for an error and for a QEMU that ended. */
  async execute(name: string, args: Record<string, unknown> = {}): Promise<unknown> {
    await writeAll(
      this.#connection,
      new TextEncoder().encode(`${JSON.stringify({ execute: name, arguments: args })}\n`),
    );
    for (;;) {
      const { value, done } = await this.#lines.next();
      if (done) throw new Error(`QEMU ended before it answered ${name}`);
      const answer: unknown = JSON.parse(value);
      if (typeof answer !== "object" || answer === null) throw new Error(`QEMU said ${value}`);
      // Greeting and events come in between.
      if ("return" in answer) return answer.return;
      if ("error" in answer) throw new Error(`QEMU refused ${name}: ${value}`);
    }
  }

  close(): void {
    this.#connection.close();
  }
}
