import assert from "node:assert/strict";
import { parseJunit } from "../helpers/junit.ts";

const REPORT = `<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="deno test" tests="4" failures="1" errors="0" time="0.018">
  <testsuite name="a_test.ts" tests="4" disabled="0" errors="0" failures="1">
    <testcase name="a &lt;b&gt; &amp; c" classname="a_test.ts" time="0.003" line="1" col="6">
      <failure message="Uncaught Error: first
&lt;skipped/&gt; &quot;q&quot; &#x27;x&#39;">Error: first
    at file:///a_test.ts:1:38</failure>
    </testcase>
    <testcase name="says &lt;failure&gt;" classname="a_test.ts" time="0.000" line="2" col="6">
    </testcase>
    <testcase name="whole" time="0.000"/>
    <testcase name="left out" time="0.000"><skipped/></testcase>
  </testsuite>
</testsuites>`;

Deno.test("a report's tests are counted, and what failed is told in its own words", () => {
  assert.deepEqual(parseJunit(REPORT), {
    passed: 2,
    failed: 1,
    skipped: 1,
    failures: [{ test: "a <b> & c", message: `Uncaught Error: first\n<skipped/> "q" 'x'` }],
  });
});

Deno.test("a report without tests counts nothing", () => {
  assert.deepEqual(parseJunit("<testsuites></testsuites>"), { passed: 0, failed: 0, skipped: 0, failures: [] });
});
