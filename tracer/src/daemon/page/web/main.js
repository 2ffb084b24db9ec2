// The page: what is chosen (its address), what is known (the newest report), and the views of it.

import * as api from "./api.js";
import { Calls } from "./calls.js";
import { chart } from "./chart.js";
import { Detail } from "./detail.js";
import { at, chip, h, put } from "./dom.js";
import { Flame } from "./flame.js";
import { help, keys, theme } from "./keys.js";
import { choose, prepare, processKey, weightOf } from "./model.js";
import { Processes } from "./processes.js";
import { Sites } from "./sites.js";
import { Snapshots, when } from "./snapshots.js";
import { Store } from "./state.js";
import { bytes, change, clean, count, duration, processName, rate } from "./text.js";
import { Kernel, Trace, Types } from "./views.js";

const NAMES = { sites: "Sites", flame: "Flame graph", calls: "Calls", types: "Types", kernel: "Kernel", trace: "Trace" };

let model = null; // the newest report, ready to show
let process = null; // the chosen process with all that is known of it
let isPaused = false;
let isConnected = false;
let told = { captured_at: null, snapshots: null };
let isAsking = false;
let message = null;

const store = new Store(changed);
const processes = new Processes(store);
const detail = new Detail(store);
const snapshots = new Snapshots(store, say);
const views = {
  sites: new Sites(store),
  flame: new Flame(store),
  calls: new Calls(store),
  types: new Types(store, "types"),
  kernel: new Kernel(store, "kernel"),
  trace: new Trace(store, "trace"),
};

/** The process that is shown: the only one there is needs no choosing. */
function shown() {
  const { now } = store;
  if (now.p || !model) return now;
  return model.processes.length === 1 ? { ...now, p: processKey(model.processes[0]) } : now;
}

function changed(before) {
  const { now } = store;
  if (now.base !== before.base || now.to !== before.to) {
    ask();
    return;
  }
  if (now.p !== before.p || now.q !== before.q || now.only !== before.only || now.sort !== before.sort) views.sites.scroller.scrollTop = 0;
  draw();
}

/** Asks for the newest report; what has come in between is asked for when that is there. */
async function ask() {
  if (isAsking) {
    isAsking = "again";
    return;
  }
  isAsking = true;
  const { base, to } = store.now;
  const isStill = () => base === store.now.base && to === store.now.to;
  try {
    const sheet = await api.sheet(base, to);
    if (isStill()) {
      model = prepare(sheet);
      if (message?.isError) say(null);
      draw();
    }
  } catch (error) {
    if (base && error.status === 404) {
      say(`There is no snapshot ${to ? `${base} or ${to}` : base} any more.`);
      store.set({ base: "", to: "" }, false);
    } else say(error.message, true);
  }
  const isNews = told.captured_at !== null && told.captured_at !== model?.captured_at;
  const again = (isAsking === "again" && isNews) || !isStill();
  isAsking = false;
  if (again) ask();
}

function hear(now) {
  if (now.ended) say("Tracing has ended: there will be no newer report.", true);
  if (now.snapshots !== told.snapshots) snapshots.load();
  const captured = now.report?.captured_at ?? null;
  if (captured !== told.captured_at && !isPaused) {
    told.captured_at = captured;
    // Two snapshots stay as they were.
    if (captured && captured !== model?.captured_at && !(model && store.now.to)) ask();
  }
  told.snapshots = now.snapshots;
}

function say(text, isError = false) {
  message = text ? { isError } : null;
  const place = at("message");
  place.textContent = text ? clean(text) : "";
  place.hidden = !text;
  place.classList.toggle("error", isError);
  if (text && !isError) setTimeout(() => place.textContent === clean(text) && say(null), 4000);
}

function pause() {
  isPaused = !isPaused;
  at("pause").textContent = isPaused ? "Go on" : "Pause";
  at("pause").setAttribute("aria-pressed", String(isPaused));
  if (!isPaused) ask();
  status();
}

function status() {
  const place = at("status");
  const age = model ? Math.max(0, (Date.now() - Date.parse(model.captured_at)) / 1000) : null;
  const word = isPaused ? "paused" : isConnected ? "live" : "not connected";
  place.className = isPaused ? "paused" : isConnected ? "live" : "off";
  put(place, h("i"), h("b", null, word), age == null ? "" : h("span", { class: "dim" }, ` ${age < 600 ? `${Math.round(age)} s ago` : when(model.captured_at)}`));
}

/** Asks for what only the chosen process's own answer has. */
async function askProcess(key) {
  const number = model.number;
  if (process?.key === key && process.number === number) return;
  try {
    const answer = await api.process(key);
    process = { key, number, ...answer.process };
  } catch (error) {
    if (error.status !== 404) say(error.message, true);
    return;
  }
  if (shown().p === key) {
    drawHead();
    if (store.now.v === "kernel" || store.now.v === "trace") drawView();
  }
}

const MEMORY = [
  { name: "resident", className: "resident", isFilled: true, value: (point) => point.rss_bytes },
  { name: "anonymous", className: "anonymous", value: (point) => point.anonymous_bytes },
  { name: "survives of what was traced", className: "inuse", isFilled: true, value: (point) => point.inuse_bytes },
];

function drawHead() {
  const state = shown();
  const isOne = state.p && state.p !== "all";
  const row = isOne ? model.processOf.get(state.p) : null;
  const back = h("button", { id: "back", class: "plain", "aria-label": "to the processes", onclick: () => store.set({ p: "", site: "", z: "" }) }, "‹ processes");
  document.title = row ? `${processName(row)} – leakscope` : "leakscope";
  const parts = [];
  if (isOne && !row) {
    parts.push(h("h1", null, "This process is not traced any more"));
  } else if (row) {
    const full = process?.key === state.p && !state.to ? process : null;
    parts.push(
      h("h1", null, clean(row.comm) || "?", h("span", { class: "dim" }, ` pid ${row.pid}`), !state.to && chip(row.verdict), row.exited && h("span", { class: "chip" }, "ended")),
      row.verdict_reason && h("p", { class: "reason" }, clean(row.verdict_reason)),
      h("p", { class: "figures" }, h("span", null, h("b", null, bytes(row.inuse_bytes)), ` survive in ${count(row.inuse_objects)} blocks`), !state.to && h("span", null, h("b", null, bytes(row.rss_bytes)), " resident ", h("span", { class: row.rss_growth_bytes_per_s > 0 ? "up" : "dim" }, rate(row.rss_growth_bytes_per_s)))),
      full ? chart(full.memory_series, MEMORY, "memory of the process over time") : !state.to && h("div", { class: "chart-place" }));
  } else {
    const leaking = model.processes.filter((one) => one.verdict === "leaking");
    const growing = [...model.processes].filter((one) => one.rss_growth_bytes_per_s > 0).sort((one, other) => other.rss_growth_bytes_per_s - one.rss_growth_bytes_per_s).slice(0, 5);
    parts.push(
      h("h1", null, "All processes", leaking.length > 0 && h("span", { class: "chip v-leaking" }, `${count(leaking.length)} leaking`)),
      h("p", { class: "figures" }, h("span", null, h("b", null, bytes(model.total.inuse_bytes)), ` survive in ${count(model.total.inuse_objects)} blocks at ${count(model.total.sites)} sites`), h("span", null, h("b", null, count(model.processes.length)), " processes"), h("span", null, `traced for ${duration(model.duration_s)}`)),
      growing.length > 0 && h("p", { class: "growing" }, h("span", { class: "dim" }, "growing: "), growing.map((one) => h("button", { onclick: () => store.set({ p: processKey(one), site: "", z: "" }) }, `${clean(one.comm)} ${one.pid} `, h("span", { class: "up" }, rate(one.rss_growth_bytes_per_s))))));
  }
  const { difference } = model;
  if (difference) {
    const option = (value, name) => h("option", { value, selected: value === state.to }, name);
    const others = snapshots.list.map((one) => one.name).filter((name) => name !== state.base);
    if (state.to && !others.includes(state.to)) others.push(state.to);
    parts.push(h("p", { class: "compared" },
      h("select", { id: "compare-to", "aria-label": "what is compared", onchange: (event) => store.set({ to: event.target.value, site: "", z: "" }) }, option("", "Now"), others.map((name) => option(name, name))),
      h("span", { class: "dim" }, state.to ? ` of ${when(difference.new.captured_at)} compared with ` : " compared with "), h("b", null, state.base), h("span", { class: "dim" }, ` of ${when(difference.base.captured_at)}: `),
      h("b", null, change(difference.total.inuse_bytes_change)), h("span", { class: "dim" }, " in all "), h("button", { id: "compare-end", onclick: () => store.set({ base: "", to: "", sort: "", only: "", site: "" }) }, "End")));
  }
  put(at("head"), back, ...parts);
}

function drawView() {
  const state = shown();
  const { sites, kinds } = choose(model, state);
  const name = Object.hasOwn(views, state.v) ? state.v : "sites";
  const view = views[name];
  for (const tab of at("tabs").children) {
    tab.setAttribute("aria-selected", String(tab.dataset.view === name));
    tab.tabIndex = tab.dataset.view === name ? 0 : -1;
  }
  if (at("view").firstElementChild !== view.element) put(at("view"), view.element);
  const isOfSites = name !== "kernel" && name !== "trace";
  at("filters").hidden = !isOfSites;
  if (isOfSites) {
    const filter = at("filter");
    if (document.activeElement !== filter) filter.value = state.q;
    put(at("kinds"), [...kinds].sort(([one], [other]) => weightOf(one) - weightOf(other)).map(([kind, number]) =>
      h("button", { class: `kind v-${kind}`, "data-kind": kind, "aria-pressed": String(state.only === kind), onclick: () => store.set({ only: state.only === kind ? "" : kind }) }, chip(kind), ` ${count(number)}`)));
  }
  view.show(model, state, sites, process?.key === state.p && !state.to ? process : null);
}

function draw() {
  if (!model) return;
  const state = shown();
  document.body.classList.toggle("has-process", Boolean(state.p));
  processes.show(model, state);
  if (state.p && state.p !== "all" && !state.to && model.processOf.has(state.p)) askProcess(state.p);
  drawHead();
  drawView();
  detail.show(model, state);
  status();
  document.body.dataset.report = model.number;
}

function back() {
  const { now } = store;
  if (document.activeElement?.matches("input")) document.activeElement.blur();
  if (now.site) store.set({ site: "" });
  else if (now.v === "flame" && views.flame.zoomOut()) return;
  else if (now.find && now.v === "flame") store.set({ find: "" });
  else if (now.q || now.only) store.set({ q: "", only: "" });
  else if (now.base) store.set({ base: "", to: "", sort: "" });
}

const list = Object.keys(NAMES);
put(at("tabs"), ...list.map((name) => h("button", { role: "tab", "data-view": name, onclick: () => store.set({ v: name }) }, NAMES[name])));
at("tabs").addEventListener("keydown", (event) => {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by) return;
  event.preventDefault();
  event.stopPropagation();
  store.set({ v: list[(list.indexOf(store.now.v) + by + list.length) % list.length] });
  at("tabs").querySelector('[aria-selected="true"]').focus();
});
const filter = at("filter");
filter.addEventListener("input", () => store.set({ q: filter.value }, false));
at("pause").addEventListener("click", pause);
at("snapshots-open").addEventListener("click", () => snapshots.open());
const turn = theme();
const setTheme = () => {
  turn();
  views.flame.draw();
};
at("theme").addEventListener("click", setTheme);
const showHelp = help();
at("help-open").addEventListener("click", showHelp);

const focusView = () => (views[store.now.v] ?? views.sites).focus?.() ?? at("flame")?.focus();
const tab = (place) => () => store.set({ v: list[place] });
keys({
  "/": () => (store.now.v === "kernel" || store.now.v === "trace" ? at("process-filter") : filter).focus(),
  f: () => {
    store.set({ v: "flame" });
    at("flame-find").focus();
  },
  p: () => processes.focus(),
  l: focusView,
  j: focusView,
  k: focusView,
  s: () => snapshots.open(),
  d: setTheme,
  "?": showHelp,
  " ": pause,
  Escape: back,
  1: tab(0),
  2: tab(1),
  3: tab(2),
  4: tab(3),
  5: tab(4),
  6: tab(5),
});

setInterval(() => document.hidden || status(), 1000);
if (!document.hidden) ask();
else document.addEventListener("visibilitychange", () => model ?? ask(), { once: true });
new api.Events(hear, (isOpen) => {
  isConnected = isOpen;
  status();
});
