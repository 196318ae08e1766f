/**
 * A network of one neighbour for guests (programs/guest_net.c), without a privilege and without an interface of this
 * machine: QEMU's `-netdev stream`, a frame behind its length on a unix socket. The neighbour stays where it is when a
 * guest moves; each QEMU has a port of its own.
 */
import assert from "node:assert/strict";
import { join } from "node:path";
import { writeAll } from "../lab/channel.ts";

const ADDRESS = [10, 0, 2, 2];
const MAC = [0x52, 0x54, 0x00, 0x47, 0x59, 0x02];
const TYPE_IP = 0x0800;
const TYPE_ARP = 0x0806;
/** QEMU announces a guest by requests of this kind, which nobody answers. */
const TYPE_RARP = 0x8035;
const ICMP = 1;
const ECHO = 8;
/** Where they begin in a frame. */
const AT = { type: 12, ip: 14, protocol: 23, from: 26, to: 30, icmp: 34, sum: 36, number: 42, content: 50 } as const;
const ARP_AT = { operation: 20, senderMac: 22, sender: 28, targetMac: 32, target: 38, end: 42 } as const;

/** What has been heard at a port of a guest that says where it is now. */
export interface Announcements {
  /** By its QEMU. */
  qemu: number;
  /** By its kernel, which its network card has told. */
  guest: number;
}

interface Port {
  readonly listener: Deno.Listener;
  readonly heard: Announcements;
  connection: Deno.Conn | null;
  /** Number of its first ping, and of the last. */
  first: bigint | null;
  last: bigint | null;
}

export class Network implements AsyncDisposable {
  readonly #folder: string;
  readonly #ports = new Map<string, Port>();
  readonly #serving: Promise<void>[] = [];
  #drop = 0;
  #damage = 0;

  /** Its sockets are in `folder`. */
  constructor(folder: string) {
    this.#folder = folder;
  }

  /** A port named `name`; QEMU's back end that is connected to it. */
  port(name: string): string {
    const path = join(this.#folder, `${name}.port`);
    const listener = Deno.listen({ transport: "unix", path });
    // For a QEMU of any user.
    Deno.chmodSync(path, 0o666);
    const port: Port = { listener, heard: { qemu: 0, guest: 0 }, connection: null, first: null, last: null };
    this.#ports.set(name, port);
    this.#serving.push(this.#serve(port));
    return `stream,server=off,addr.type=unix,addr.path=${path}`;
  }

  announcements(name: string): Announcements {
    return this.#port(name).heard;
  }

  /** The next `n` pings are not answered. */
  drop(n: number): void {
    this.#drop = n;
  }

  /** The answers to the next `n` pings have other content, and checksums that fit it. */
  damage(n: number): void {
    this.#damage = n;
  }

  /** Throws if a guest that moved from the port `from` to the port `to` has run at both at once. */
  failIfRanAtBoth(from: string, to: string): void {
    const [{ last }, { first }] = [this.#port(from), this.#port(to)];
    assert.ok(last !== null && first !== null, `pings came from "${from}" and from "${to}"`);
    assert.ok(last < first, `ping ${first} came from "${to}", and ${last} from "${from}"`);
  }

  #port(name: string): Port {
    const port = this.#ports.get(name);
    assert.ok(port, `there is a port "${name}"`);
    return port;
  }

  /** One QEMU after another: a destination's may be started anew before its guest comes. */
  async #serve(port: Port): Promise<void> {
    for await (const connection of port.listener) {
      port.connection = connection;
      try {
        for await (const frame of framesOf(connection)) {
          const answer = this.#hear(port, frame);
          if (answer) await writeAll(connection, framed(answer));
        }
      } catch (error) {
        // It was closed here, or QEMU ended.
        const gone = [Deno.errors.BadResource, Deno.errors.Interrupted, Deno.errors.BrokenPipe];
        if (!gone.some((kind) => error instanceof kind) && !(error instanceof Deno.errors.ConnectionReset)) throw error;
      } finally {
        close(port);
      }
    }
  }

  /** What is answered to `frame`; null: nothing. */
  #hear(port: Port, frame: Uint8Array): Uint8Array | null {
    const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
    switch (view.getUint16(AT.type)) {
      case TYPE_RARP:
        port.heard.qemu++;
        return null;
      case TYPE_ARP:
        if (same(frame.subarray(ARP_AT.sender, ARP_AT.sender + 4), frame.subarray(ARP_AT.target))) port.heard.guest++;
        return same(ADDRESS, frame.subarray(ARP_AT.target)) ? arpAnswer(frame) : null;
      case TYPE_IP:
        return frame[AT.protocol] === ICMP && frame[AT.icmp] === ECHO ? this.#pinged(port, frame, view) : null;
      default:
        return null;
    }
  }

  #pinged(port: Port, frame: Uint8Array, view: DataView): Uint8Array | null {
    port.last = view.getBigUint64(AT.number, true);
    port.first ??= port.last;
    if (this.#drop > 0) {
      this.#drop--;
      return null;
    }
    const answer = echoAnswer(frame);
    if (this.#damage > 0) {
      this.#damage--;
      // In another order they have the same checksum.
      answer.copyWithin(AT.content, AT.content + 2, AT.content + 4);
      answer.set(frame.subarray(AT.content, AT.content + 2), AT.content + 2);
    }
    return answer;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const port of this.#ports.values()) {
      port.listener.close();
      close(port);
    }
    await Promise.all(this.#serving);
  }
}

function close(port: Port): void {
  port.connection?.close();
  port.connection = null;
}

function same(some: readonly number[] | Uint8Array, others: Uint8Array): boolean {
  return some.every((byte, i) => byte === others[i]);
}

/** Until its end. */
async function* framesOf(connection: Deno.Conn): AsyncGenerator<Uint8Array> {
  const buffer = new Uint8Array(1 << 18);
  const view = new DataView(buffer.buffer);
  for (let held = 0;;) {
    const n = await connection.read(buffer.subarray(held));
    if (n === null) return;
    held += n;
    let at = 0;
    for (let end; held - at >= 4 && (end = at + 4 + view.getUint32(at)) <= held; at = end) {
      yield buffer.slice(at + 4, end);
    }
    buffer.copyWithin(0, at, held);
    held -= at;
  }
}

function framed(frame: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(4 + frame.length);
  new DataView(bytes.buffer).setUint32(0, frame.length);
  bytes.set(frame, 4);
  return bytes;
}

/** `frame` on its way back. */
function returned(frame: Uint8Array): Uint8Array {
  const answer = frame.slice();
  answer.set(frame.subarray(6, 12), 0);
  answer.set(MAC, 6);
  return answer;
}

function arpAnswer(request: Uint8Array): Uint8Array {
  const answer = returned(request);
  answer[ARP_AT.operation + 1] = 2;
  answer.set(MAC, ARP_AT.senderMac);
  answer.set(ADDRESS, ARP_AT.sender);
  answer.set(request.subarray(ARP_AT.senderMac, ARP_AT.targetMac), ARP_AT.targetMac);
  return answer;
}

function echoAnswer(request: Uint8Array): Uint8Array {
  const answer = returned(request);
  answer.set(request.subarray(AT.to, AT.to + 4), AT.from);
  answer.set(request.subarray(AT.from, AT.from + 4), AT.to);
  answer[AT.icmp] = 0;
  // The sum of the complement of what was taken away.
  const view = new DataView(answer.buffer);
  const sum = view.getUint16(AT.sum) + (ECHO << 8);
  view.setUint16(AT.sum, (sum & 0xffff) + (sum >> 16));
  return answer;
}
