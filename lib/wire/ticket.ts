/** The ticket: `gyges://host:port/NAME#KEY`, all that the source needs to know, and the only credential. */
import { UsageError } from "../errors.ts";

const KEY_BYTES = 32;
const FORM = /^gyges:\/\/(\[[0-9a-fA-F:.]+\]|[^\s/?#:@[\]]+):(\d{1,5})\/([a-z0-9._-]{1,64})(\?tls=off)?#([\w-]{43})$/;

export interface Ticket {
  host: string;
  port: number;
  /** Name of the waiting process at the destination. */
  name: string;
  tls: boolean;
  /** 32 random bytes: they authenticate both ends to each other and encrypt what passes between them. */
  key: Uint8Array<ArrayBuffer>;
}

/** A fresh key from the system's random numbers. */
export function newKey(): Uint8Array<ArrayBuffer> {
  return crypto.getRandomValues(new Uint8Array(KEY_BYTES));
}

export function formatTicket(ticket: Ticket): string {
  const host = ticket.host.includes(":") ? `[${ticket.host}]` : ticket.host;
  return `gyges://${host}:${ticket.port}/${ticket.name}${ticket.tls ? "" : "?tls=off"}#${toBase64Url(ticket.key)}`;
}

/** Throws UsageError that says which part is wrong; the key is never part of a message. */
export function parseTicket(text: string): Ticket {
  const match = FORM.exec(text.trim());
  if (!match) throw new UsageError(`Cannot read the ticket: ${whatIsWrong(text.trim())}`);
  const [, host = "", port = "", name = "", tlsOff, key = ""] = match;
  if (Number(port) < 1 || Number(port) > 65535) {
    throw new UsageError(`Cannot read the ticket: its port is ${port} and must be 1 to 65535`);
  }
  return {
    host: host.replace(/^\[|\]$/g, ""),
    port: Number(port),
    name,
    tls: tlsOff === undefined,
    key: fromBase64Url(key),
  };
}

function whatIsWrong(text: string): string {
  if (!text.startsWith("gyges://")) return 'it must begin with "gyges://", as gyges prepare printed it';
  const [address = "", key] = text.split("#");
  if (key === undefined) return 'it has no "#" with a key behind it: quote it for the shell, and copy all of the line';
  if (!/^[\w-]{43}$/.test(key)) return `its key has ${key.length} characters and must have 43: copy all of the line`;
  return `"${address}" is not gyges://HOST:PORT/NAME`;
}

function toBase64Url(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

function fromBase64Url(text: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (char) => char.charCodeAt(0));
}
