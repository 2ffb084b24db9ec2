// Whether a daemon's page shows a process and a function with this size: node shows.mjs URL PID FUNCTION SIZE.

import assert from "node:assert/strict";
import { Browser } from "./browser.mjs";

const [, , url, pid, name, size] = process.argv;
const browser = new Browser();
let failed = false;
try {
  const page = await browser.page();
  await page.open(`${url}/`);
  await page.until(`[...document.querySelectorAll('.process')].some((row) => row.innerText.includes("${pid}"))`);
  await page.until(`[...document.querySelectorAll('.site')].some((row) => row.innerText.includes("${name}") && row.innerText.includes("${size}"))`);
  await page.clickUntil(".site", "!!document.querySelector('#detail .stack li')");
  assert.match(await page.value("document.getElementById('detail').innerText"), /malloc/);
  for (const view of ["flame", "calls", "types", "kernel", "trace"]) await page.click(`[data-view="${view}"]`);
  await page.until("document.querySelector('#trace .facts')");
  assert.deepEqual(page.complaints, []);
  console.log("shown");
} catch (error) {
  console.log(error.stack);
  failed = true;
}
await browser.end();
process.exit(failed ? 1 : 0);
