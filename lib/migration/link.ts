/** The source's connections to the destination: one for control, one for faults, some for the rest. */
import { Channel } from "../../ffi/channel.ts";
import { NativeError } from "../../ffi/native_error.ts";
import type { PageRole } from "../../ffi/page_source.ts";
import { HandshakeError } from "../errors.ts";
import type { DestinationState } from "../events.ts";
import { type MessageOf, PROTOCOL_VERSION } from "../wire/messages.ts";
import { Peer } from "../wire/peer.ts";
import type { Ticket } from "../wire/ticket.ts";
import { DEADLINE_MS } from "./timing.ts";

interface Opened {
  channel: Channel;
  peer: Peer;
  session: string;
  /** The destination's state when it answered. */
  state: DestinationState;
}

type Hello = Omit<MessageOf<"hello">, "type" | "protocol">;

async function open(ticket: Ticket, hello: Hello): Promise<Opened> {
  const channel = await Channel.connect(ticket.host, ticket.port, DEADLINE_MS.connect);
  try {
    await channel.secure({ key: ticket.key, tls: ticket.tls, timeoutMs: DEADLINE_MS.secure });
    const peer = new Peer(channel);
    await peer.send({ type: "hello", protocol: PROTOCOL_VERSION, ...hello });
    const { message } = await peer.expect("welcome", DEADLINE_MS.answer);
    return { channel, peer, session: message.session, state: message.state };
  } catch (error) {
    channel[Symbol.dispose]();
    throw error;
  }
}

/** Throws HandshakeError where the ticket and this side's option differ. */
export function checkTls(ticket: Ticket, tls: boolean): void {
  if (tls === ticket.tls) return;
  const [ours, theirs] = [tls, ticket.tls].map((on) => on ? "on" : "off");
  throw new HandshakeError(
    `The ticket was made with --tls ${theirs} and this side was given --tls ${ours}: give both sides the same`,
    { field: "tls", ours: `${ours}`, theirs: `${theirs}` },
  );
}

/** Opens the control connection; without a session to come back to this uses up the ticket. */
export async function openControl(
  ticket: Ticket,
  back: Pick<Hello, "session" | "rdma" | "pages"> = {},
): Promise<Omit<Opened, "channel">> {
  try {
    return await open(ticket, { role: "control", ...back });
  } catch (error) {
    if (error instanceof NativeError && error.code === "EACCES") {
      throw new HandshakeError(
        `The destination at ${ticket.host}:${ticket.port} does not accept this ticket's key: ask for a new ticket there`,
        { field: "ticket", ours: "this ticket", theirs: "another key", cause: error },
      );
    }
    throw error;
  }
}

/** Opens a page connection of the session. */
export async function openPages(ticket: Ticket, session: string, role: PageRole): Promise<Channel> {
  const { channel } = await open(ticket, { role, session });
  return channel;
}
