/** This program as a command, for the processes that it starts: always itself, never another. */

export interface SelfCommand {
  program: string;
  /** What comes before the arguments of `gyges`. */
  before: string[];
}

/** The single file where this is one ($GYGES_SELF), else Deno on the source tree. */
export function selfCommand(): SelfCommand {
  const self = Deno.env.get("GYGES_SELF");
  if (self) return { program: self, before: [] };
  if (Deno.build.standalone) return { program: Deno.execPath(), before: [] };
  return { program: Deno.execPath(), before: ["run", "--quiet", "-A", Deno.mainModule] };
}
