// Kept free of imports: `gyges --version` must load nothing else.

export const VERSION = "0.1.0";

/** How this program is packed: `launcher` (our single file), `compiled` (`deno compile`) or `source` (the tree). */
export type Form = "launcher" | "compiled" | "source";

/** The form this process runs in. */
export function form(): Form {
  if (Deno.build.standalone) return "compiled";
  return Deno.env.get("GYGES_FORM") === "launcher" ? "launcher" : "source";
}

/** The line that `gyges --version` prints. */
export function versionLine(): string {
  return `gyges ${VERSION} (${form()})`;
}
