/** Text for help and man pages, written over as many source lines as it takes. */
import type { Message } from "@optique/core/message";

/** The template's text on one line; a blank line in it starts a new paragraph. */
export function prose(strings: TemplateStringsArray): Message {
  const paragraphs = strings.join("").trim().split(/\n\s*\n/).map((paragraph) => paragraph.replace(/\s+/g, " "));
  return verbatim(paragraphs.join("\n\n"));
}

/** `text` as it is, line by line. */
export function verbatim(text: string): Message {
  return text.split("\n").flatMap((line, i) => {
    const term = { type: "text" as const, text: line };
    return i === 0 ? [term] : [{ type: "lineBreak" as const }, term];
  });
}
