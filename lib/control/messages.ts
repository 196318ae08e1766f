/**
 * The control socket's messages, one JSON object a line:
 *
 *   -> {"id": 1, "method": "monitor", "params": {...}}
 *   <- {"id": 1, "event": {...}}      any number of these
 *   <- {"id": 1, "result": ...}       or {"id": 1, "error": {"type": "error", ...}}: the last one
 *
 * A line that is no request is answered by an error whose id is null. Requests on one connection run side by side.
 */
import * as v from "valibot";
import { errorSchema, eventSchema } from "../monitor/summary.ts";

const id = v.pipe(v.number(), v.integer(), v.minValue(0));

export const requestSchema = v.object({ id, method: v.string(), params: v.exactOptional(v.unknown()) });

export const replySchema = v.union([
  v.object({ id: v.nullable(id), error: errorSchema }),
  v.object({ id, event: eventSchema }),
  v.object({ id, result: v.unknown() }),
]);

export type Request = v.InferOutput<typeof requestSchema>;
export type Reply = v.InferOutput<typeof replySchema>;

/** The first thing that does not fit, as "params.rate: expected number". */
export function firstIssue(issues: readonly v.BaseIssue<unknown>[]): string {
  const issue = issues[0];
  if (!issue) return "does not fit";
  const path = v.getDotPath(issue);
  return path ? `${path}: ${issue.message}` : issue.message;
}
