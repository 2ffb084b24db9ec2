// The page's parts that need no browser: numbers, addresses, what is chosen, trees.

import assert from "node:assert/strict";
import { test } from "node:test";

const web = new URL("../../tracer/src/daemon/page/web/", import.meta.url);
const [text, state, model, tree] = await Promise.all(["text", "state", "model", "tree"].map((name) => import(new URL(`${name}.js`, web))));

test("numbers are written as in all other views", () => {
  // The same as in tracer/model/src/units.rs.
  for (const [value, written] of [[0, "0 B"], [1023, "1023 B"], [1024, "1.00 KiB"], [10239, "10.0 KiB"], [102390, "100 KiB"], [1048063, "1023 KiB"], [1048064, "1.00 MiB"], [13000000, "12.4 MiB"], [2 ** 64, "16.0 EiB"]]) {
    assert.equal(text.bytes(value), written);
  }
  for (const [value, written] of [[0, ""], [1e-5, ""], [0.5, "+30 B/min"], [-0.01, "-36 B/h"], [1258291.2, "+1.20 MiB/s"], [-2048, "-2.00 KiB/s"]]) assert.equal(text.rate(value), written);
  for (const [value, written] of [[812.4, "+812/s"], [-3.46, "-3.5/s"], [0.2, "+12/min"], [0.0001, ""]]) assert.equal(text.countRate(value), written);
  for (const [value, written] of [[0, "0 ms"], [0.35, "350 ms"], [0.9996, "1.0 s"], [99.9, "99.9 s"], [99.97, "1 min 40 s"], [3599.4, "59 min 59 s"], [3599.6, "1 h 0 min"], [90061, "1 d 1 h"]]) assert.equal(text.duration(value), written);
  for (const [value, written] of [[0, "0"], [999, "999"], [1000, "1,000"], [1234567, "1,234,567"]]) assert.equal(text.count(value), written);
  for (const [value, written] of [[0, "0.0 %"], [0.0001, "<0.1 %"], [0.0005, "0.1 %"], [1, "100.0 %"]]) assert.equal(text.percent(value), written);
  assert.equal(text.change(-2048), "−2.00 KiB");
});

test("names cannot leave their line", () => {
  assert.equal(text.clean("a\u001b[2Jb\nc\u202ed"), "a\ufffd[2Jb\ufffdc\ufffdd");
  assert.equal(text.frameName({ module: "/usr/lib/libx.so\n", offset: "0x12" }), "[libx.so\ufffd+0x12]");
  assert.equal(text.frameName({}), "[unknown]");
});

test("long names and paths keep their ends", () => {
  const name = "service::module::Worker<std::string>::handle_7";
  assert.ok(name.slice(text.cutBefore(name)).includes("handle_7"));
  assert.equal(text.cutBefore("main"), 4);
  assert.equal(text.shortPath("/a/very/long/path/to/something.c", 20), "…/to/something.c");
  assert.ok(text.shortPath("x".repeat(100), 20).length <= 20);
});

test("an address says what is shown, and nothing else comes in by it", () => {
  const shown = { ...state.DEFAULTS, p: "7.0", q: "a b&c=<d>", site: "7.0.3", v: "flame" };
  assert.deepEqual(state.read(`#${state.write(shown)}`), shown);
  assert.equal(state.write(state.DEFAULTS), "");
  assert.deepEqual(state.read("#__proto__=x&unknown=1&constructor=y"), state.DEFAULTS);
});

const frame = (name, more = {}) => ({ function: name, module: "/bin/app", ...more });
const sheet = () => ({
  number: 1,
  processes: [{ pid: 7, incarnation: 0, comm: "app", cgroup: "/x", verdict: "leaking", exited: false, inuse_bytes: 60, rss_bytes: 100 }],
  frames: [frame("malloc", { allocator: true }), frame("make_buffer"), frame("parse"), frame("render"), frame("main"), { module: "/lib/libz.so", offset: "0x10" }, frame("handler", { kind: "python", file: "app.py", line: 3 })],
  sites: [
    { pid: 7, incarnation: 0, id: 1, inuse_bytes: 10, inuse_objects: 1, alloc_bytes: 10, alloc_objects: 1, verdict: "leaking", growth_bytes_per_s: 5, frames: [0, 1, 2, 4], title: 1 },
    { pid: 7, incarnation: 0, id: 2, inuse_bytes: 40, inuse_objects: 4, alloc_bytes: 90, alloc_objects: 9, verdict: "plateau", frames: [0, 1, 3, 4], title: 1, types: [{ name: "Session", objects: 4, bytes: 40 }] },
    { pid: 7, incarnation: 0, id: 3, inuse_bytes: 10, inuse_objects: 1, alloc_bytes: 10, alloc_objects: 1, verdict: "churn", frames: [0, 5, 6], title: 2 },
    { pid: 7, incarnation: 0, id: 4, inuse_bytes: 99, inuse_objects: 1, alloc_bytes: 99, alloc_objects: 1, verdict: "churn", kind: "pages", frames: [4], title: 0 },
    { pid: 7, incarnation: 0, id: 5, inuse_bytes: 0, inuse_objects: 0, alloc_bytes: 10, alloc_objects: 1, verdict: "churn", frames: [] },
  ],
});

test("sites that begin alike are told apart by who called", () => {
  const ready = model.prepare(sheet());
  const [one, other, python] = ready.sites;
  assert.deepEqual(model.titleOf(ready, one), { title: "make_buffer", aside: "← parse", where: "/bin/app" });
  assert.equal(model.titleOf(ready, other).aside, "← render");
  assert.equal(model.titleOf(ready, python).aside, "");
  assert.equal(python.title, "handler");
  assert.equal(python.where, "app.py:3");
});

test("a site is called as the report calls it", () => {
  const many = sheet();
  many.sites.push({ ...many.sites[0], id: 10, title: 2, further_out: true });
  const ready = model.prepare(many);
  assert.deepEqual(model.titleOf(ready, ready.byKey.get("7.0.10")), { title: "parse", aside: "→ make_buffer", where: "/bin/app" });
});

test("leaking sites come before large ones, and filters find all words", () => {
  const ready = model.prepare(sheet());
  const chosen = (more) => model.choose(ready, { ...state.DEFAULTS, ...more }).sites.map((site) => site.id);
  assert.equal(chosen({})[0], 1);
  assert.deepEqual(chosen({ sort: "inuse" }), [4, 2, 1, 3]);
  assert.deepEqual(chosen({ q: "MAKE render" }), [2]);
  assert.deepEqual(chosen({ q: "make -render" }), [1]);
  assert.deepEqual(chosen({ q: "session" }), [2]);
  assert.deepEqual(chosen({ only: "churn", q: "py" }), [3]);
  assert.deepEqual(chosen({ p: "8.0" }), []);
  assert.deepEqual([...model.choose(ready, state.DEFAULTS).kinds], [["leaking", 1], ["plateau", 1], ["churn", 2]]);
});

test("a tree of calls adds up, without pages that other sites hold too", () => {
  const ready = model.prepare(sheet());
  const root = tree.build(ready, ready.sites);
  assert.equal(root.value, 60);
  assert.equal(root.leaking, 10);
  const main = tree.nextOf(root).find((of) => of.name === "main");
  assert.deepEqual([main.value, main.sites], [50, 2]);
  assert.deepEqual(tree.nextOf(main).map((of) => [of.name, of.value]), [["render", 40], ["parse", 10]]);
  const callers = tree.build(ready, ready.sites, { isUp: true });
  assert.deepEqual(tree.nextOf(callers).map((of) => of.name), ["make_buffer", "[libz.so+0x10]"]);
  const pages = tree.build(ready, ready.sites.filter((site) => site.kind === "pages"));
  assert.equal(pages.value, 99);
  const place = tree.placeOf(tree.nextOf(main)[1]);
  assert.equal(tree.findPlace(root, place).name, "parse");
  assert.equal(tree.findPlace(root, "gone.gone"), root);
  assert.equal(tree.matched(root, (of) => of.name === "make_buffer"), 50);
});

test("a flame graph has its zoomed box as wide as all, and no box beside its parent", () => {
  const ready = model.prepare(sheet());
  const root = tree.build(ready, ready.sites);
  const main = tree.nextOf(root)[0];
  for (const zoomed of [root, main, tree.nextOf(main)[0]]) {
    const { boxes } = tree.layOut(zoomed, 1000);
    assert.equal(boxes.find((box) => box.of === zoomed).width, 1000);
    for (const box of boxes) {
      const parent = boxes.find((other) => other.of === box.of.parent);
      if (!parent) continue;
      assert.equal(box.depth, parent.depth + 1);
      assert.ok(box.x >= parent.x - 1e-9 && box.x + box.width <= parent.x + parent.width + 1e-9);
    }
  }
  assert.deepEqual(tree.layOut(tree.build(ready, []), 1000).boxes, []);
});

test("ways by which blocks are held share their steps", () => {
  const root = model.holderTree([{ path: ["list", "a"], objects: 1 }, { path: ["list", "b"], objects: 4 }, { path: ["map"], objects: 2 }]);
  assert.deepEqual(root.next.map((node) => [node.label, node.objects]), [["list", 5], ["map", 2]]);
  assert.deepEqual(root.next[0].next.map((node) => node.label), ["b", "a"]);
});
