// The list of processes.

import { spark } from "./chart.js";
import { at, chip, h, put } from "./dom.js";
import { PROCESS_SORTS, chooseProcesses, processKey } from "./model.js";
import { bytes, clean, count, processName, rate } from "./text.js";

/** So many are listed; the filter finds the others. */
const MOST = 300;

export class Processes {
  constructor(store) {
    this.store = store;
    this.list = at("process-list");
    const filter = at("process-filter");
    filter.addEventListener("input", () => store.set({ pq: filter.value }, false));
    const sort = at("process-sort");
    put(sort, ...Object.entries(PROCESS_SORTS).map(([value, name]) => h("option", { value }, name)));
    sort.addEventListener("change", () => store.set({ ps: sort.value }));
    this.list.addEventListener("keydown", (event) => this.key(event));
  }

  show(model, state) {
    const filter = at("process-filter");
    if (document.activeElement !== filter) filter.value = state.pq;
    at("process-sort").value = state.ps;
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const chosen = chooseProcesses(model, state);
    const row = (key, ...inside) =>
      h("button", { class: "process", role: "option", "data-key": key, "aria-selected": String((state.p || "all") === key), tabindex: (state.p || "all") === key ? 0 : -1, onclick: () => this.choose(key) }, ...inside);
    const leaking = model.processes.filter((process) => process.verdict === "leaking").length;
    const all = row("all",
      h("span", { class: "who" }, h("b", null, "All processes"), leaking > 0 && h("span", { class: "chip v-leaking" }, `${count(leaking)} leaking`)),
      h("span", { class: "what dim" }, `${count(model.processes.length)} traced`, h("span", { class: "n" }, bytes(model.total.inuse_bytes))));
    const rows = chosen.slice(0, MOST).map((process) =>
      row(processKey(process),
        h("span", { class: "who" }, h("b", { title: `${processName(process)}\n${clean(process.cgroup)}` }, clean(process.comm) || "?"), h("span", { class: "dim" }, String(process.pid)), process.exited && h("span", { class: "dim" }, "ended"), process.verdict !== "insufficient-data" && chip(process.verdict)),
        h("span", { class: "what" },
          // Of two snapshots, only what survives is known.
          h("span", { class: "dim" }, state.to ? `${bytes(process.inuse_bytes)} survive` : `${bytes(process.rss_bytes)} resident`),
          spark(process.rss_series, "resident memory over time"),
          h("span", { class: process.rss_growth_bytes_per_s > 0 ? "n up" : "n dim" }, rate(process.rss_growth_bytes_per_s)))));
    const more = chosen.length - rows.length;
    put(this.list, all, ...rows,
      more > 0 && h("p", { class: "dim pad" }, `and ${count(more)} more: filter them`),
      chosen.length === 0 && h("p", { class: "dim pad" }, model.processes.length ? "No process matches the filter." : "No process is traced yet."));
    if (focused) this.row(focused)?.focus({ preventScroll: true });
  }

  row(key) {
    return [...this.list.children].find((row) => row.dataset.key === key);
  }

  choose(key) {
    this.store.set({ p: key, site: "", z: "" });
  }

  focus() {
    (this.list.querySelector('[aria-selected="true"]') ?? this.list.querySelector("button"))?.focus();
  }

  key(event) {
    const rows = [...this.list.querySelectorAll("button")];
    const place = rows.indexOf(document.activeElement);
    const to = { ArrowDown: place + 1, ArrowUp: place - 1, j: place + 1, k: place - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (to == null || place < 0) return;
    event.preventDefault();
    event.stopPropagation();
    rows[Math.max(0, Math.min(to, rows.length - 1))].focus();
  }
}
