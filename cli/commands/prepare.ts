/** `gyges prepare`: makes this host the destination and prints the ticket. */
import { object } from "@optique/core/constructs";
import { map } from "@optique/core/modifiers";
import { argument, command, flag, option } from "@optique/core/primitives";
import { choice } from "@optique/core/valueparser";
import { PREPARE_DEFAULTS } from "../../lib/options.ts";
import type { Action } from "../action.ts";
import { prose } from "../prose.ts";
import { byDefault, duration, hostPort, jsonOption, newName, pagerOption, valuesFooter } from "../values.ts";

const options = object({
  name: argument(newName(), { description: prose`Name for the process that receives and then holds the guest.` }),
  micro: flag("--micro", { description: prose`The guest is a micro-VM.` }),
  listen: byDefault(
    option("--listen", hostPort(), {
      description: prose`Address to listen on and to name in the ticket; port 0 is any free one.`,
    }),
    { host: PREPARE_DEFAULTS.host, port: PREPARE_DEFAULTS.port },
    `${PREPARE_DEFAULTS.host}:${PREPARE_DEFAULTS.port}`,
  ),
  ticketTtlMs: byDefault(
    option("--ticket-ttl", duration(), { description: prose`The ticket is void after this.` }),
    PREPARE_DEFAULTS.ticketTtlMs,
    duration().format(PREPARE_DEFAULTS.ticketTtlMs),
  ),
  tls: byDefault(
    option("--tls", choice(["on", "off"], { metavar: "ON_OFF" }), {
      description: prose`TLS 1.3 on every connection. Off is for trusted links, and must be asked for on both sides.`,
    }),
    PREPARE_DEFAULTS.tls ? "on" : "off",
    PREPARE_DEFAULTS.tls ? "on" : "off",
  ),
  pager: pagerOption(prose`What catches the guest's page faults here: the kernel module's file system, or userfaultfd in
    this process. auto: the kernel's where it can.`),
  json: jsonOption,
});

export const prepare = command(
  "prepare",
  map(options, ({ name, listen, ticketTtlMs, tls, pager, json }): Action => ({
    output: { json },
    async run({ output }) {
      const [{ prepareMicroVm }, { Interrupts }] = await Promise.all([
        import("../../lib/api.ts"),
        import("../signals.ts"),
      ]);
      using interrupts = new Interrupts({ say: (text) => output.say(text), lookWith: `gyges monitor ${name}` });
      return await prepareMicroVm(name, { ...listen, ticketTtlMs, tls: tls === "on", pager }, {
        signal: interrupts.signal,
        onEvent(event) {
          interrupts.observe(event);
          output.event(event);
        },
      });
    },
  })),
  {
    brief: prose`Make this host the destination and print the ticket.`,
    description: prose`Gets ready to receive a guest and prints the ticket first, alone on a line. Give it to
      gyges migrate at the source. The ticket is a secret, works once and expires. The process holds the guest
      from then on.`,
    footer: valuesFooter("DURATION"),
  },
);
