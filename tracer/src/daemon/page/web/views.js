// The smaller views: types, what the kernel holds, and how it was traced.

import { bars } from "./chart.js";
import { chip, h, put } from "./dom.js";
import { lives } from "./lives.js";
import { typesOf } from "./model.js";
import { bytes, clean, count, countRate, duration, percent, rate } from "./text.js";

const MOST_TYPES = 200;

const table = (heads, rows) =>
  h("div", { class: "table" }, h("table", null, h("thead", null, h("tr", null, heads.map((head) => h("th", null, head)))), h("tbody", null, rows.map((row) => h("tr", null, row.map((cell) => h("td", { class: cell?.n != null ? "n" : "" }, cell?.n ?? cell)))))));
const n = (text) => ({ n: text ?? "" });

class View {
  constructor(store, id) {
    this.store = store;
    this.element = h("div", { class: "scroller view", id, tabindex: -1 });
  }

  put(...children) {
    put(this.element, ...children);
  }

  focus() {
    this.element.focus();
  }
}

/** What the surviving blocks are. */
export class Types extends View {
  show(model, state, sites) {
    const types = typesOf(sites);
    if (!types.length) {
      this.put(h("p", { class: "pad dim" }, "Of none of these sites it is known what its blocks are. A look at the heap tells (glibc, CPython), where there is one to look at: leakscope heap -p PID."));
      return;
    }
    const rows = types.slice(0, MOST_TYPES).map((type) => ({
      name: clean(type.name),
      value: type.bytes,
      text: `${bytes(type.bytes)} in ${count(type.objects)} at ${count(type.sites.length)} site${type.sites.length === 1 ? "" : "s"}`,
      press: () => this.store.set({ v: "sites", q: `"${clean(type.name).toLowerCase()}"` }),
    }));
    this.put(h("p", { class: "pad dim" }, "What was found in the surviving blocks that were looked at; press one for its sites."), bars(rows));
  }
}

/** What the kernel holds for the process, or on the machine. */
export class Kernel extends View {
  show(model, state, sites, process) {
    const parts = [];
    const one = state.p && state.p !== "all";
    if (one && process?.kernel) {
      const held = process.kernel.holdings.map((holding) => [
        holding.kind,
        n(holding.bytes != null ? bytes(holding.bytes) : count(holding.objects ?? 0)),
        n(holding.limit != null ? count(holding.limit) : ""),
        n(holding.bytes != null ? rate(holding.growth_per_s) : countRate(holding.growth_per_s)),
        chip(holding.verdict),
        clean(holding.verdict_reason),
      ]);
      parts.push(h("h3", null, "Held by the kernel for this process"), table(["what", "now", "limit", "growth", "verdict", ""], held));
      const kinds = process.kernel.descriptor_kinds ?? [];
      if (kinds.length) {
        parts.push(h("h3", null, "Descriptors"), bars(kinds.map((kind) => ({ name: clean(kind.kind), value: kind.open, text: [count(kind.open), kind.growth_per_s ? countRate(kind.growth_per_s) : "", kind.held_bytes ? bytes(kind.held_bytes) : ""].filter(Boolean).join(" · ") }))));
      }
    } else if (one) parts.push(h("p", { class: "pad dim" }, "What the kernel holds for this process was not watched."));
    const kernel = model.kernel;
    if (!one && kernel) {
      const levels = kernel.levels.map((level) => [
        h("span", null, h("span", { class: "dim" }, `${level.kind} `), clean(level.name), level.reclaimable && h("span", { class: "dim" }, " reclaimable")),
        n(bytes(level.bytes)),
        n(level.objects != null ? count(level.objects) : ""),
        n(rate(level.growth_bytes_per_s)),
        chip(level.verdict),
        clean(level.verdict_reason),
      ]);
      parts.push(h("h3", null, "Kernel memory of the machine"), h("p", { class: "dim" }, "In no total; levels overlap."), table(["what", "bytes", "objects", "growth", "verdict", ""], levels));
      if (kernel.omitted > 0) parts.push(h("p", { class: "dim" }, `${count(kernel.omitted)} smaller ones are left out.`));
      parts.push(...kernel.notes.map((note) => h("p", { class: "dim" }, clean(note))));
    } else if (!one) parts.push(h("p", { class: "pad dim" }, "The kernel's memory is not watched: start the daemon with --kernel or --all."));
    this.put(...parts);
  }
}

/** How it was traced, and where else to get what was found. */
export class Trace extends View {
  show(model, state, sites, process) {
    const { overhead } = model;
    const of = process && state.p !== "all" ? `pid=${process.pid}` : "";
    const link = (path, name) => h("a", { href: of ? `${path}${path.includes("?") ? "&" : "?"}${of}` : path }, name);
    const facts = [
      ["tier", `${model.tier}: ${clean(model.tier_reason)}`],
      ["traced for", duration(model.duration_s)],
      ["report", model.captured_at],
      ["cost", `${count(overhead.probe_hits)} probe hits, about ${percent(overhead.target_cpu_fraction)} of the traced processor time (budget ${percent(overhead.budget)}); probes attached ${percent(overhead.duty)} of the time`],
      ["leakscope itself", `${percent(overhead.tracer_cores)} of one processor`],
      ["lost", Object.entries(model.losses).filter(([, lost]) => lost > 0).map(([cause, lost]) => `${clean(cause)} ${count(lost)}`).join(", ") || "nothing"],
    ];
    for (const one of model.suppressed) facts.push(["suppressed", `${clean(one.pattern)}: ${count(one.sites)} sites with ${bytes(one.inuse_bytes)}`]);
    const parts = [h("h3", null, "Trace"), h("dl", { class: "facts" }, facts.map(([name, value]) => [h("dt", null, name), h("dd", null, value)]))];
    if (of) {
      const own = [
        ["program", clean(process.program ?? "")],
        ["control group", clean(process.cgroup)],
        ["allocators", (process.allocators ?? []).map(clean).join(", ") || "none found"],
        ["allocated", `${bytes(process.alloc_bytes ?? 0)} in ${count(process.alloc_objects ?? 0)} blocks`],
        ["at most", [process.peak_inuse_bytes > 0 && `${bytes(process.peak_inuse_bytes)} in use`, process.peak_rss_bytes > 0 && `${bytes(process.peak_rss_bytes)} resident`].filter(Boolean).join(", ")],
        ["frees of others", process.frees_of_unknown_blocks > 0 ? count(process.frees_of_unknown_blocks) : ""],
        ["not judged", clean(process.unjudged ?? "")],
        ["heap", process.heap ? `${bytes(process.heap.bytes)} in ${count(process.heap.blocks)} blocks, ${bytes(process.heap.free_bytes)} free in ${count(process.heap.free_pieces)} pieces` : clean(process.heap_note ?? "")],
        ["Go", process.go ? `${clean(process.go.version ?? "")}, ${count(process.go.goroutines)} goroutines, ${count(process.go.collections_seen)} collections seen` : ""],
        ["ended", process.exited ? clean(process.exit_note ?? "yes") : ""],
      ];
      parts.push(h("h3", null, "Process"), h("dl", { class: "facts" }, own.filter(([, value]) => value).map(([name, value]) => [h("dt", null, name), h("dd", null, value)])));
      parts.push(lives(process.lives));
      const probes = (process.probes ?? []).filter((probe) => probe.hits > 0);
      if (probes.length) parts.push(h("h3", null, "Calls"), bars(probes.map((probe) => ({ name: clean(probe.name), value: probe.hits, text: count(probe.hits) }))));
    }
    parts.push(h("h3", null, "As files"), h("p", { class: "links" },
      link("debug/pprof/heap", "pprof"), link("flamegraph.svg", "SVG"), link("api/v1/report?format=html", "HTML"), link("api/v1/report?format=text", "text"), link("api/v1/report?format=folded", "folded"), link("api/v1/report", "JSON"), h("a", { href: "metrics" }, "metrics")));
    this.put(...parts);
  }
}
