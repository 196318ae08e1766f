/** One run over time, drawn with block characters. Pure. */

const LEVELS = " ▁▂▃▄▅▆▇█";

/** `values` (0 to 1, clipped) as columns of `height` lines; anything above nothing shows. */
export function blockChart(values: readonly number[], height: number): string[] {
  const steps = LEVELS.length - 1;
  return Array.from({ length: height }, (_, row) => {
    const floor = height - 1 - row;
    return values.map((value) => {
      const clipped = Math.min(1, Math.max(0, value));
      const eighths = clipped > 0 ? Math.max(1, Math.round(clipped * height * steps)) : 0;
      return LEVELS[Math.min(steps, Math.max(0, eighths - floor * steps))];
    }).join("");
  });
}

export interface ChartOptions {
  label: string;
  values: readonly number[];
  height: number;
  /** What the full height stands for. */
  full: string;
}

/** A chart between its label and its scale; the label is 12 columns wide. */
export function labelledChart({ label, values, height, full }: ChartOptions): string {
  const rows = blockChart(values, height);
  return rows.map((row, i) => {
    const scale = i === 0 ? ` ${full}` : i === height - 1 ? " 0" : "";
    return `${(i === 0 ? label : "").padEnd(12)}|${row}|${scale}`;
  }).join("\n");
}

/** The time axis under a chart of `columns` columns: 0 is the start of the migration. */
export function timeAxis(fromMs: number, toMs: number, columns: number): string {
  const line = Array.from({ length: columns + 12 }, () => " ");
  const step = [100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000].find((ms) => (toMs - fromMs) / ms <= 8) ??
    120_000;
  for (let ms = Math.ceil(fromMs / step) * step; ms < toMs; ms += step) {
    const text = ms === 0 ? "0" : `${ms / 1000} s`;
    const at = 13 + Math.round(((ms - fromMs) / (toMs - fromMs)) * columns);
    if (at + text.length <= line.length) line.splice(at, text.length, ...text);
  }
  return line.join("").trimEnd();
}
