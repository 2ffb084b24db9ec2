// Clicks through the daemon's page as somebody would who looks for a leak: node clicks.mjs URL [FOLDER FOR PICTURES].
// Ends with 1 and says what was not as it should be. The daemon's reports are those of the example `page`.

import assert from "node:assert/strict";
import { join } from "node:path";
import { Browser } from "./browser.mjs";

const [, , url, folder] = process.argv;
const browser = new Browser();
const chosen = (selector) => `document.querySelector('${selector}[aria-selected="true"]')`;
const rows = "document.querySelectorAll('.site').length";
const state = (key) => `new URLSearchParams(location.hash.slice(1)).get("${key}")`;

/** A page that shows a report. */
async function open(hash = "", ...size) {
  const page = await browser.page(...size);
  await page.open(`${url}/${hash}`);
  await page.until("document.body.dataset.report");
  return page;
}

/** Nothing went wrong in it, nothing was asked of others, nothing of what is shown became markup. */
async function check(page, what) {
  assert.deepEqual(page.complaints, [], what);
  assert.deepEqual(page.asked.filter((asked) => !asked.startsWith(`${url}/`)), [], what);
  assert.equal(await page.value("document.querySelectorAll('img, iframe, body script, [onerror]').length"), 0, what);
  assert.ok(!(await page.value("document.title")).startsWith("owned"), what);
}

async function clicks() {
  const page = await open();
  // A process, by its filter.
  await page.click("#process-filter");
  await page.type("service-0");
  await page.until("document.querySelectorAll('.process').length === 2");
  await page.click('.process[data-key="4000.0"]');
  await page.until(chosen('.process[data-key="4000.0"]'));
  await page.until("document.querySelector('#head .chart polyline')");
  // Leaks come first.
  assert.equal(await page.value("document.querySelector('.site .chip').textContent"), "leaking");
  const all = await page.value("Number(document.querySelector('.site-body').style.height.replace('px', ''))");
  assert.ok((await page.value(rows)) < 60, "only rows that are seen are there");
  // The filter.
  await page.press("Escape");
  await page.press("/");
  await page.type("module_7::worker handle_6 -module_9");
  await page.until(`Number(document.querySelector('.site-body').style.height.replace('px', '')) < ${all} && ${rows} > 0`);
  assert.equal(await page.value(state("q")), "module_7::worker handle_6 -module_9");
  await page.press("Escape");
  await page.until(`${state("q")} === null`);
  await page.click('.kind[data-kind="leaking"]');
  await page.until(`${rows} === 3`);
  await page.click('.kind[data-kind="leaking"]');
  // A site, with all that is known of it.
  await page.click('.site[data-key="4000.0.1"]');
  await page.until("document.querySelector('#detail .bars') && document.querySelector('#detail .holders') && document.querySelector('#detail .lives .bar') && document.querySelector('#detail .stack li')");
  assert.match(await page.value("document.getElementById('detail').innerText"), /held by nothing/);
  // The series of the site needs two reports.
  await page.until("document.querySelector('#detail .chart polyline')");
  const link = await page.value("location.href");
  await page.press("j");
  await page.press("Escape");
  await page.until("document.getElementById('detail').hidden");
  // The flame graph: a click zooms, a search finds, Escape goes back.
  await page.press("2");
  await page.until("document.getElementById('flame')?.height > 60 && document.getElementById('flame-status').innerText.includes('sites')");
  const [x, y] = await page.value("(() => { const area = document.getElementById('flame').getBoundingClientRect(); return [area.x + 30, area.y + 50]; })()");
  await page.clickAt(x, y);
  await page.until(state("z"));
  assert.ok(!(await page.value("document.getElementById('flame-out').hidden")));
  await page.press("f");
  await page.type("module_4");
  await page.until("document.querySelector('#flame-status .found')?.innerText.includes('%')");
  const zoomed = await page.value(state("z"));
  await page.press("Escape");
  await page.until(`${state("z")} !== "${zoomed}"`);
  // Calls: rows open and close.
  await page.press("3");
  await page.until("document.querySelectorAll('.call').length > 2");
  await page.click('.choice [data-up="1"]');
  await page.until(`${state("up")} === "1" && document.querySelectorAll('.call').length > 2`);
  const before = await page.value("document.querySelectorAll('.call').length");
  await page.click('.call[aria-expanded="false"]');
  await page.until(`document.querySelectorAll('.call').length > ${before}`);
  for (const [key, selector] of [["4", "#types .bar"], ["5", "#kernel table"], ["6", "#trace .facts"]]) {
    await page.press(key);
    await page.until(`document.querySelector('${selector}')`);
  }
  await page.press("1");
  // Snapshots: kept, compared with, deleted.
  await page.press("s");
  await page.until("document.querySelector('#snapshots[open]')");
  await page.value("document.getElementById('snapshot-name').value = 'before'");
  await page.click("#snapshot-save");
  await page.until("document.querySelector('.snapshot[data-name=\"before\"]')");
  await page.click("#snapshot-save"); // another one, of the time
  await page.until("document.querySelectorAll('.snapshot').length === 2");
  await page.click('.snapshot[data-name="before"] .compare');
  await page.until("document.querySelector('.compared')?.innerText.includes('before')");
  await page.until("document.querySelector('.site .v-grown')");
  assert.match(await page.value("document.querySelector('.site .n').innerText"), /^[+−]/);
  // Two of them with each other, which no newer report changes.
  const name = await page.value("document.querySelectorAll('#compare-to option')[1].value");
  await page.value("(() => { const to = document.getElementById('compare-to'); to.selectedIndex = 1; to.dispatchEvent(new Event('change')); })()");
  await page.until(`${state("to")} === ${JSON.stringify(name)} && document.body.dataset.report === '0'`);
  await page.until("document.querySelector('.compared').innerText.includes('compared with before of')");
  await page.press("s");
  await page.click('.snapshot[data-name="before"] .delete');
  await page.until("document.querySelectorAll('.snapshot').length === 1");
  await page.until(`!document.querySelector('.compared') && ${state("base")} === null`);
  await page.click(".snapshot .delete");
  await page.until("document.querySelectorAll('.snapshot').length === 0");
  await page.press("Escape");
  // It is live: a newer report comes by itself, unless it is paused.
  const number = await page.value("document.body.dataset.report");
  await page.until(`document.body.dataset.report !== "${number}"`);
  await page.click("#pause");
  await page.until("document.getElementById('status').innerText.includes('paused')");
  await page.click("#theme");
  await page.until("document.documentElement.dataset.theme === 'dark'");
  await page.click("#theme");
  await page.click("#theme");
  await page.until("!document.documentElement.dataset.theme");
  await page.press("?");
  await page.until("document.querySelector('#help[open]')");
  await check(page, "clicks");
  // A link shows somebody else the same.
  const other = await open(new URL(link).hash);
  await other.until("document.querySelector('#detail .holders')");
  assert.ok(await other.value(chosen('.site[data-key="4000.0.1"]')));
  assert.ok(await other.value(chosen('.process[data-key="4000.0"]')));
  await check(other, "link");
}

/** At every width nothing is wider than the page, and names that would be markup are text. */
async function looks() {
  for (const [width, height, isDark] of [[400, 800, false], [820, 900, true], [1000, 800, false], [1440, 900, true], [2000, 1100, false]]) {
    for (const [name, hash] of [["list", ""], ["hostile", "#p=4003.0&site=4003.0.15"], ["sites", "#p=all"], ["flame", "#p=all&v=flame"], ["calls", "#p=4000.0&v=calls"], ["kernel", "#p=all&v=kernel"]]) {
      const page = await open(hash, width, height, isDark);
      if (name === "hostile") await page.until("document.querySelector('#detail .holders')");
      const what = `${name} at ${width}`;
      assert.ok((await page.value("document.documentElement.scrollWidth")) <= width, `${what} is too wide`);
      if (name === "list") assert.match(await page.value("document.getElementById('process-list').innerText"), /<img src=x onerror=alert\(1\)>/);
      await check(page, what);
      if (folder) await page.picture(join(folder, `${width}-${name}.png`));
    }
  }
}

/** Without scripts it says so, and where else to look. */
async function withoutScripts() {
  const page = await browser.page();
  await page.send("Emulation.setScriptExecutionDisabled", { value: true });
  await page.open(`${url}/`);
  const end = Date.now() + 30_000;
  for (;;) {
    // The document that was asked for may have given way to the next: then it has no such node any more.
    const outerHTML = await page
      .send("DOM.getDocument", { depth: -1 })
      .then(({ root }) => page.send("DOM.getOuterHTML", { nodeId: root.nodeId }))
      .then((found) => found.outerHTML, (error) => error.message);
    if (outerHTML.includes("needs JavaScript") && outerHTML.includes("api/v1/report?format=text")) return;
    assert.ok(Date.now() < end, outerHTML);
  }
}

let failed = false;
try {
  await clicks();
  await looks();
  await withoutScripts();
  console.log("the page does as it should");
} catch (error) {
  console.log(error.stack);
  failed = true;
}
await browser.end();
process.exit(failed ? 1 : 0);
