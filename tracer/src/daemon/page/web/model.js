// From the page's JSON to what views need: titles, what is chosen, orders. No figure is made here but sums of what is chosen. Pure.

import { baseName, clean, frameName, frameWhere, processName } from "./text.js";

export const processKey = (of) => `${of.pid}.${of.incarnation}`;
export const siteKey = (site) => `${site.pid}.${site.incarnation}.${site.id}`;

const VERDICTS = ["leaking", "new", "grown", "warming-up", "plateau", "churn", "insufficient-data", "shrunk", "gone", "churned"];
export const weightOf = (verdict) => {
  const place = VERDICTS.indexOf(verdict);
  return place < 0 ? VERDICTS.length : place;
};

/** Makes a report ready: what is left out of the JSON because it is as usual is put in. */
export function prepare(sheet) {
  const processOf = new Map(sheet.processes.map((process) => [processKey(process), process]));
  const names = sheet.frames.map(frameName);
  // Functions with the same name have the same number.
  const numbers = new Map();
  const nameNumbers = names.map((name) => numbers.get(name) ?? (numbers.set(name, numbers.size), numbers.size - 1));
  const groups = new Map();
  for (const site of sheet.sites) {
    site.key = siteKey(site);
    site.rank = weightOf(site.verdict);
    site.process = processOf.get(processKey(site));
    site.kind ??= "heap";
    site.types ??= [];
    site.growth_bytes_per_s ??= 0;
    site.oldest_age_s ??= 0;
    site.unreachable ??= 0;
    site.isExact = site.inuse_bytes_low == null;
    site.own = ownFrames(site, sheet.frames);
    site.at = site.title ?? site.own;
    const place = site.frames[site.at];
    site.title = place == null ? (site.own ? "[no caller recorded]" : "[unknown stack]") : names[place];
    site.where = place == null ? "" : frameWhere(sheet.frames[place]);
    const group = (place == null ? -1 : nameNumbers[place]) + site.pid * (numbers.size + 1);
    site.group = groups.get(group);
    if (!site.group) groups.set(group, (site.group = { sites: [] }));
    site.group.sites.push(site);
  }
  return { ...sheet, byKey: new Map(sheet.sites.map((site) => [site.key, site])), processOf, names, nameNumbers };
}

/** How many of its frames, from the leaf, are the allocator's. */
function ownFrames(site, frames) {
  let own = 0;
  while (own < site.frames.length && frames[site.frames[own]]?.allocator) own += 1;
  return own;
}

/** So many callers are looked at for what tells sites apart. */
const CALLERS = 12;

/**
 * How a site is called: by the frame that the report names it by; with what that frame called, where others could not tell the site
 * apart, or with the first caller that does so.
 */
export function titleOf(model, site) {
  const named = { title: site.title, aside: "", where: site.where };
  if (site.further_out) return { ...named, aside: `→ ${model.names[site.frames[site.at - 1]]}` };
  const place = apart(model, site);
  return place < 0 ? named : { ...named, aside: `← ${model.names[site.frames[place]]}` };
}

/** Where in its stack the first caller is that tells a site apart from others with the same title; −1 for nowhere. */
function apart(model, site) {
  const { group } = site;
  if (group.sites.length < 2) return -1;
  if (!group.shared) {
    // How many of the group have this function so far above: what all have tells nothing.
    group.shared = new Map();
    for (const one of group.sites) {
      for (let up = 1; up <= CALLERS && one.at + up < one.frames.length; up += 1) {
        const key = model.nameNumbers[one.frames[one.at + up]] * CALLERS + up - 1;
        group.shared.set(key, (group.shared.get(key) ?? 0) + 1);
      }
    }
  }
  for (let up = 1; up <= CALLERS && site.at + up < site.frames.length; up += 1) {
    const place = site.frames[site.at + up];
    const sharing = group.shared.get(model.nameNumbers[place] * CALLERS + up - 1);
    if (sharing < group.sites.length && !model.names[place].startsWith("[")) return site.at + up;
  }
  return -1;
}

/** Words that all must occur, in any order; in quotes as one. */
export function words(query) {
  const found = clean(query).toLowerCase().match(/"[^"]*"?|\S+/g) ?? [];
  return found.map((word) => word.replaceAll('"', "")).filter(Boolean);
}

/** A word as it is looked for: one that begins with a minus must not occur. */
const wish = (word) => (word.length > 1 && word[0] === "-" ? { word: word.slice(1), isWanted: false } : { word, isWanted: true });

/** Whether a text has all words. */
export const hasWords = (text, wanted) => wanted.map(wish).every(({ word, isWanted }) => text.includes(word) === isWanted);

/** Says of sites whether they have all words: in a frame, its file or module, a type, the process, the kind or the verdict. */
function finder(model, wanted) {
  model.frameTexts ??= model.frames.map((frame, place) => `${model.names[place]} ${frame.file ?? ""} ${frame.module ? baseName(frame.module) : ""}`.toLowerCase());
  const tests = wanted.map(wish).map(({ word, isWanted }) => {
    const frames = model.frameTexts.map((text) => text.includes(word));
    const processes = new Map(model.processes.map((process) => [process, processName(process).toLowerCase().includes(word)]));
    const has = (site) =>
      processes.get(site.process) ||
      site.frames.some((place) => frames[place]) ||
      `${site.kind} ${site.verdict} ${site.change ?? ""}`.includes(word) ||
      site.types.some((type) => type.name.toLowerCase().includes(word));
    return (site) => Boolean(has(site)) === isWanted;
  });
  return (site) => tests.every((test) => test(site));
}

/** The sites of the chosen process that the filter lets through, and how many there are of each verdict. */
export function choose(model, state) {
  const finds = finder(model, words(state.q));
  const of = state.p && state.p !== "all" ? state.p : null;
  const kinds = new Map();
  const sites = [];
  for (const site of model.sites) {
    if (of && processKey(site) !== of) continue;
    if (!model.difference && site.inuse_bytes === 0 && site.inuse_objects === 0) continue;
    if (!finds(site)) continue;
    const kind = site.change ?? site.verdict;
    kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
    if (!state.only || state.only === kind) sites.push(site);
  }
  return { sites: sites.sort(orderOf(state.sort || standardSort(model))), kinds };
}

/** Leaks first; of a difference, what changed most. */
export const standardSort = (model) => (model.difference ? "change" : "verdict");

const most = (value) => (one, other) => value(other) - value(one);
const ORDERS = {
  verdict: (one, other) =>
    one.rank - other.rank ||
    (one.rank === 0 ? other.growth_bytes_per_s - one.growth_bytes_per_s : 0) ||
    other.inuse_bytes - one.inuse_bytes,
  inuse: most((site) => site.inuse_bytes),
  blocks: most((site) => site.inuse_objects),
  growth: most((site) => site.growth_bytes_per_s),
  alloc: most((site) => site.alloc_bytes),
  age: most((site) => site.oldest_age_s),
  change: most((site) => Math.abs(site.inuse_bytes_change ?? 0)),
  before: most((site) => site.inuse_bytes_base ?? 0),
  title: (one, other) => one.title.localeCompare(other.title),
};

/** How sites are compared; the place in the report decides between equals. */
export const orderOf = (sort) => ORDERS[sort] ?? ORDERS.verdict;

const PROCESS_ORDERS = {
  verdict: (one, other) =>
    weightOf(one.verdict) - weightOf(other.verdict) ||
    Number(one.exited) - Number(other.exited) ||
    other.inuse_bytes - one.inuse_bytes ||
    other.rss_bytes - one.rss_bytes,
  inuse: most((process) => process.inuse_bytes),
  rss: most((process) => process.rss_bytes),
  growth: most((process) => process.rss_growth_bytes_per_s),
  name: (one, other) => one.comm.localeCompare(other.comm) || one.pid - other.pid,
};
export const PROCESS_SORTS = { verdict: "leaking first", inuse: "surviving", rss: "resident", growth: "growth", name: "name" };

/** The processes that the filter lets through. */
export function chooseProcesses(model, state) {
  const wanted = words(state.pq);
  const order = PROCESS_ORDERS[state.ps] ?? PROCESS_ORDERS.verdict;
  return model.processes
    .filter((process) => hasWords(`${processName(process)} ${process.cgroup} ${process.verdict}`.toLowerCase(), wanted))
    .sort(order);
}

/** The types of sites together, the most bytes first. */
export function typesOf(sites) {
  const sums = new Map();
  for (const site of sites) {
    for (const type of site.types) {
      const sum = sums.get(type.name) ?? { name: type.name, bytes: 0, objects: 0, sites: [] };
      sum.bytes += type.bytes;
      sum.objects += type.objects;
      sum.sites.push(site);
      sums.set(type.name, sum);
    }
  }
  return [...sums.values()].sort(most((type) => type.bytes));
}

/** Ways by which blocks are held as one tree: those that begin alike share their steps. */
export function holderTree(holders) {
  const root = { label: "", objects: 0, next: [] };
  for (const holder of holders) {
    let node = root;
    node.objects += holder.objects;
    for (const step of holder.path) {
      const label = clean(step);
      let next = node.next.find((other) => other.label === label);
      if (!next) node.next.push((next = { label, objects: 0, next: [] }));
      next.objects += holder.objects;
      node = next;
    }
  }
  const sort = (node) => {
    node.next.sort(most((next) => next.objects));
    node.next.forEach(sort);
    return node;
  };
  return sort(root);
}
