/** What a run of `deno test --junit-path=FILE` says of its tests. */

export interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

export interface Failure {
  test: string;
  /** Of the error, in lines. */
  message: string;
}

export interface JunitReport extends Counts {
  failures: Failure[];
}

const ENTITIES: Readonly<Record<string, string>> = { lt: "<", gt: ">", amp: "&", quot: '"', apos: "'" };

/** Text inside a JUnit file is escaped, so a tag is a tag. */
export function parseJunit(xml: string): JunitReport {
  const report: JunitReport = { passed: 0, failed: 0, skipped: 0, failures: [] };
  for (const [testcase] of xml.matchAll(/<testcase\b[^>]*?(?:\/>|>[^]*?<\/testcase>)/g)) {
    if (/<(failure|error)\b/.test(testcase)) {
      report.failed++;
      report.failures.push({ test: attribute(testcase, "name"), message: attribute(testcase, "message") });
    } else if (testcase.includes("<skipped")) report.skipped++;
    else report.passed++;
  }
  return report;
}

/** The first attribute `name` in `xml`; empty if there is none. */
function attribute(xml: string, name: string): string {
  const value = new RegExp(`\\s${name}="([^"]*)"`).exec(xml)?.[1] ?? "";
  return value.replaceAll(/&(?:#(\d+)|#x([\da-f]+)|(\w+));/gi, (whole, decimal, hex, entity) => {
    if (entity !== undefined) return ENTITIES[entity] ?? whole;
    return String.fromCodePoint(decimal === undefined ? parseInt(hex, 16) : Number(decimal));
  });
}
