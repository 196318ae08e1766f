/** The source's connections to the destination: one for control, one for faults, some for the rest. */
import { Channel } from "../../ffi/channel.ts";
import { NativeError } from "../../ffi/native_error.ts";
import type { PageRole, PageSource } from "../../ffi/page_source.ts";
import { HandshakeError } from "../errors.ts";
import type { DestinationState } from "../events.ts";
import { PROTOCOL_VERSION } from "../wire/messages.ts";
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

async function open(ticket: Ticket, role: "control" | PageRole, session?: string): Promise<Opened> {
  const channel = await Channel.connect(ticket.host, ticket.port, DEADLINE_MS.connect);
  try {
    await channel.secure({ key: ticket.key, tls: ticket.tls, timeoutMs: DEADLINE_MS.secure });
    const peer = new Peer(channel);
    await peer.send({ type: "hello", protocol: PROTOCOL_VERSION, role, ...(session ? { session } : {}) });
    const { message } = await peer.expect("welcome", DEADLINE_MS.answer);
    return { channel, peer, session: message.session, state: message.state };
  } catch (error) {
    channel[Symbol.dispose]();
    throw error;
  }
}

/** Opens the control connection; without `session` this uses up the ticket. */
export async function openControl(ticket: Ticket, session?: string): Promise<Omit<Opened, "channel">> {
  try {
    return await open(ticket, "control", session);
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

/** Opens a page connection of the session and gives it to `source`. */
async function openPages(ticket: Ticket, session: string, role: PageRole, source: PageSource): Promise<void> {
  const { channel } = await open(ticket, role, session);
  source.add(channel, role);
}

/** Opens all page connections at once. */
export async function openAllPages(
  ticket: Ticket,
  session: string,
  options: { source: PageSource; prefetchConnections: number },
): Promise<void> {
  const roles: PageRole[] = [
    "demand",
    ...Array.from({ length: options.prefetchConnections }, () => "prefetch" as const),
  ];
  const results = await Promise.allSettled(roles.map((role) => openPages(ticket, session, role, options.source)));
  for (const result of results) {
    if (result.status === "rejected") throw result.reason;
  }
}
