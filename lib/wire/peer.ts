/** A control connection: validated messages over a channel. */
import * as v from "valibot";
import type { Channel } from "../../ffi/channel.ts";
import { HandshakeError } from "../errors.ts";
import { MAX_TEXT_BYTES, type Message, type MessageOf, messageSchema, type MessageType } from "./messages.ts";

const NO_PAYLOAD = new Uint8Array(0);
/** A peer that takes nothing of a message for so long is gone. */
const SEND_TIMEOUT_MS = 10_000;

export interface Received<M extends Message = Message> {
  message: M;
  payload: Uint8Array<ArrayBuffer>;
}

/** The peer sent something that is not in the protocol, or not at this time. */
export class ProtocolError extends Error {
  override readonly name = "ProtocolError";
}

/** The other side gave up before the commit point, in its own words. */
export class PeerFailedError extends Error {
  override readonly name = "PeerFailedError";
}

/** The destination could not run the guest, has not, and never will: what held it there has been ended. */
export class PeerNotRunError extends Error {
  override readonly name = "PeerNotRunError";
}

export class Peer implements Disposable {
  readonly #channel: Channel;
  /** Largest payload that the next message may carry. */
  maxPayloadBytes = 0;
  #sending: Promise<void> = Promise.resolve();

  constructor(channel: Channel) {
    this.#channel = channel;
  }

  /** Sends in the order of the calls. */
  send(message: Message, payload: Uint8Array<ArrayBuffer> = NO_PAYLOAD): Promise<void> {
    const sent = this.#sending.then(() => this.#channel.send(JSON.stringify(message), payload, SEND_TIMEOUT_MS));
    this.#sending = sent.catch(() => {});
    return sent;
  }

  /** Throws NativeError (ETIMEDOUT, ECONNABORTED, EMSGSIZE), ProtocolError for what is no message. */
  async receive(timeoutMs: number): Promise<Received> {
    const frame = await this.#channel.receive(8 + MAX_TEXT_BYTES + this.maxPayloadBytes, timeoutMs);
    return { message: parseMessage(frame.text), payload: frame.payload };
  }

  /**
   * The next message, which must be of `type`, but for those that `passing` takes. `refused`, `failed` and `not_run`
   * become errors.
   */
  async expect<T extends MessageType>(
    type: T,
    timeoutMs: number,
    passing: (message: Message) => boolean = () => false,
  ): Promise<Received<MessageOf<T>>> {
    const endsAt = performance.now() + timeoutMs;
    for (;;) {
      const { message, payload } = await this.receive(Math.max(1, Math.ceil(endsAt - performance.now())));
      if (isOf(message, type)) return { message, payload };
      if (passing(message)) continue;
      if (message.type === "refused") throw refusal(message);
      if (message.type === "failed") throw new PeerFailedError(message.message);
      if (message.type === "not_run") throw new PeerNotRunError(message.message);
      throw new ProtocolError(`Expected "${type}" from the peer and got "${message.type}"`);
    }
  }

  [Symbol.dispose](): void {
    this.#channel[Symbol.dispose]();
  }
}

function isOf<T extends MessageType>(message: Message, type: T): message is MessageOf<T> {
  return message.type === type;
}

/** The peer's refusal with "ours" and "theirs" seen from here. */
function refusal(message: MessageOf<"refused">): HandshakeError {
  return new HandshakeError(message.message, { field: message.field, ours: message.theirs, theirs: message.ours });
}

function parseMessage(text: string): Message {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new ProtocolError("The peer sent a message that is not JSON", { cause });
  }
  const result = v.safeParse(messageSchema, value);
  if (result.success) return result.output;
  const issue = result.issues[0];
  throw new ProtocolError(`The peer sent a malformed message: ${v.getDotPath(issue) ?? "message"}: ${issue.message}`);
}
