// Stacks put together to a tree of calls, and where a flame graph draws them. Pure.

import { baseName, processName } from "./text.js";

/** Whether a site's bytes are in sums: touched pages hold what other sites hold too. */
export const isSummed = (site) => site.kind !== "pages";

/** A short name for a long one, the same for everybody: FNV-1a, 32 bits. */
export function hash(text) {
  let value = 0x811c9dc5;
  for (let place = 0; place < text.length; place += 1) {
    value = Math.imul(value ^ text.charCodeAt(place), 0x01000193);
  }
  return (value >>> 0).toString(36);
}

/** What most nodes have below them. */
const NOTHING = new Map();

const node = (name, parent, frame) => ({ name, parent, frame, value: 0, base: 0, leaking: 0, sites: 0, next: NOTHING, sorted: null });

/**
 * The tree of calls: from roots to leaves, or with `isUp` from where was allocated to its callers. Functions are told apart by
 * name and module; the allocator's own are left out. Touched pages are in it where there is nothing else: they are in no sum.
 */
export function build(model, sites, { isUp = false, byProcess = false } = {}) {
  const known = new Map();
  const labels = model.frames.map((frame, place) => {
    const key = `${model.names[place]}\u0000${frame.module ? baseName(frame.module) : ""}`;
    if (!known.has(key)) known.set(key, { key: known.size, name: model.names[place], frame });
    return known.get(key);
  });
  const isGone = Boolean(model.difference) && sites.every((site) => site.inuse_bytes === 0);
  const root = node("all", null, null);
  const summed = sites.filter(isSummed);
  for (const site of summed.length ? summed : sites) {
    const value = isGone ? site.inuse_bytes_base : site.inuse_bytes;
    if (!(value > 0)) continue;
    const stack = [];
    for (let place = site.own; place < site.frames.length; place += 1) stack.push(labels[site.frames[place]]);
    if (!isUp) {
      if (site.stack_incomplete && stack.length) stack.push({ key: "[stack incomplete]", name: "[stack incomplete]" });
      stack.reverse();
    }
    if (!stack.length) stack.push({ key: site.title, name: site.title });
    if (byProcess && site.process) {
      const name = processName(site.process);
      stack.unshift({ key: name, name });
    }
    let at = root;
    const add = (to) => {
      to.value += value;
      to.base += site.inuse_bytes_base ?? 0;
      to.sites += 1;
      if (site.verdict === "leaking") to.leaking += value;
    };
    add(root);
    for (const label of stack) {
      let next = at.next.get(label.key);
      if (!next) {
        if (at.next === NOTHING) at.next = new Map();
        at.next.set(label.key, (next = node(label.name, at, label.frame)));
      }
      add(next);
      at = next;
    }
  }
  return root;
}

/** What a node calls, or who calls it, the largest first. */
export const nextOf = (of) => (of.sorted ??= [...of.next.values()].sort((one, other) => other.value - one.value || (one.name < other.name ? -1 : 1)));

/** The way from the root to a node. */
export function wayTo(of) {
  const way = [];
  for (let at = of; at.parent; at = at.parent) way.unshift(at);
  return way;
}

/** A node as it stands in an address. */
export const placeOf = (of) => wayTo(of).map((step) => hash(step.name)).join(".");

/** The node that an address names, or the last on the way to it that there is. */
export function findPlace(root, place) {
  let at = root;
  for (const step of place ? place.split(".") : []) {
    const next = nextOf(at).find((other) => hash(other.name) === step);
    if (!next) return at;
    at = next;
  }
  return at;
}

/** The boxes of a flame graph so many pixels wide: those on the way to what is zoomed to are as wide as all. */
export function layOut(zoomed, width, least = 0.7) {
  const boxes = [];
  const way = wayTo(zoomed);
  let top = zoomed;
  while (top.parent) top = top.parent;
  const above = [top, ...way].slice(0, -1);
  above.forEach((of, depth) => boxes.push({ of, depth, x: 0, width, isAbove: true }));
  const from = above.length;
  let depth = 0;
  const draw = (of, x, wide, deep) => {
    boxes.push({ of, depth: deep, x, width: wide });
    depth = Math.max(depth, deep);
    let left = x;
    for (const next of nextOf(of)) {
      const part = (next.value / of.value) * wide;
      if (part < least) break; // smaller ones follow
      draw(next, left, part, deep + 1);
      left += part;
    }
  };
  if (zoomed.value > 0) draw(zoomed, 0, width, from);
  return { boxes, depth };
}

/** The bytes of all boxes that match, each counted once, whatever stands above it. */
export function matched(root, isMatch) {
  let sum = 0;
  const look = (of) => {
    if (isMatch(of)) sum += of.value;
    else for (const next of of.next.values()) look(next);
  };
  look(root);
  return sum;
}
