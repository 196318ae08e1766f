/** One thing that a host needs, or that would serve it. */
export interface Check {
  name: string;
  /** "fail": the main job cannot run. "warn": it can, with a limit that `found` names. */
  status: "ok" | "warn" | "fail";
  found: string;
  needed: string;
  /** One command, or what else to do; null where there is nothing to mend. */
  remedy: string | null;
}
