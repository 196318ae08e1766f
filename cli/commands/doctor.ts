/** `gyges doctor`: what this host can do, and the one command that mends each lack. */
import { object } from "@optique/core/constructs";
import { map } from "@optique/core/modifiers";
import { command } from "@optique/core/primitives";
import { EXIT } from "../../lib/errors.ts";
import type { Check } from "../../lib/host/doctor.ts";
import type { Action } from "../action.ts";
import { prose } from "../prose.ts";
import { jsonOption, valuesFooter } from "../values.ts";

const MARK = { ok: "ok  ", warn: "warn", fail: "FAIL" } as const;

function checkText(check: Check): string {
  const line = `${MARK[check.status]}  ${check.name}: ${check.found}`;
  if (check.status === "ok") return line;
  const lines = [line, `      needed: ${check.needed}`];
  if (check.remedy) lines.push(`      mend it: ${check.remedy}`);
  return lines.join("\n");
}

function verdict(checks: readonly Check[]): string {
  const count = (status: Check["status"]) => checks.filter((check) => check.status === status).length;
  if (count("fail") > 0) return `This host cannot migrate yet: ${count("fail")} lacks, marked FAIL.`;
  return count("warn") > 0 ? `This host can migrate, with ${count("warn")} limits.` : "This host can migrate.";
}

const options = object({ json: jsonOption });

export const doctor = command(
  "doctor",
  map(options, ({ json }): Action => ({
    output: { json },
    async run({ output }) {
      const { examineHost } = await import("../../lib/host/doctor.ts");
      const checks = await examineHost();
      const objects = checks.map((check) => ({ type: "check" as const, ...check }));
      output.answer(objects, () => [...checks.map(checkText), "", verdict(checks)].join("\n"));
      return checks.some((check) => check.status === "fail") ? EXIT.hostUnable : EXIT.completed;
    },
  })),
  {
    brief: prose`Show what this host can do and what mends each lack.`,
    description: prose`Checks everything that a migration needs on this host. Each lack comes with the one command
      that mends it. Exits with 0 if a micro-VM can be held and moved here, with 3 if not.`,
    footer: valuesFooter(),
  },
);
