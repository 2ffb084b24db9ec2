// The list of sites: only the rows that can be seen are there.

import { at, chip, eachFrame, h, put } from "./dom.js";
import { standardSort, titleOf } from "./model.js";
import { bytes, change, clean, count, countChange, cutBefore, duration, rate, shortPath } from "./text.js";

const COLUMNS = [
  { sort: "verdict", name: "verdict" },
  { sort: "title", name: "allocated at", isWide: true },
  { sort: "inuse", name: "survives", isNumber: true },
  { sort: "blocks", name: "blocks", isNumber: true },
  { sort: "growth", name: "growth", isNumber: true },
  { sort: "alloc", name: "allocated", isNumber: true },
  { sort: "age", name: "oldest", isNumber: true },
];
const CHANGES = [
  { sort: "verdict", name: "change" },
  { sort: "title", name: "allocated at", isWide: true },
  { sort: "change", name: "bytes", isNumber: true },
  { sort: "blocks", name: "blocks", isNumber: true },
  { sort: "before", name: "before", isNumber: true },
  { sort: "inuse", name: "now", isNumber: true },
  { sort: "growth", name: "growth", isNumber: true },
];

export class Sites {
  constructor(store) {
    this.store = store;
    this.sites = [];
    this.head = h("div", { class: "site-head", role: "row" });
    this.body = h("div", { class: "site-body", role: "presentation" });
    this.scroller = h("div", { id: "site-list", class: "scroller", tabindex: 0, role: "listbox", "aria-label": "sites" }, this.body);
    this.note = h("p", { class: "dim pad" });
    this.element = h("div", { class: "sites" }, this.head, this.scroller, this.note);
    this.draw = eachFrame(() => this.rows());
    this.scroller.addEventListener("scroll", this.draw, { passive: true });
    new ResizeObserver(this.draw).observe(this.scroller);
    this.scroller.addEventListener("keydown", (event) => this.key(event));
    this.body.addEventListener("click", (event) => {
      const row = event.target.closest(".site");
      if (row) this.open(row.dataset.key);
    });
  }

  show(model, state, sites) {
    this.model = model;
    this.state = state;
    this.sites = sites;
    const sort = state.sort || standardSort(model);
    put(this.head, ...(model.difference ? CHANGES : COLUMNS).map((column) =>
      h("button", { class: column.isNumber ? "n" : column.isWide ? "wide" : "", "aria-pressed": String(sort === column.sort), onclick: () => this.store.set({ sort: column.sort }) }, column.name, sort === column.sort && h("span", { "aria-hidden": "true" }, " ▾"))));
    this.most = Math.max(1, ...sites.slice(0, 1).map((site) => site.inuse_bytes));
    for (const site of sites) this.most = Math.max(this.most, site.inuse_bytes);
    const omitted = model.difference?.omitted.stacks ?? model.omitted.sites;
    this.note.textContent = this.empty() ?? (omitted > 0 ? `${count(omitted)} more are not shown: they are smaller.` : "");
    this.rows();
  }

  /** What is said where there is nothing to list. */
  empty() {
    if (this.sites.length) return null;
    if (this.state.q || this.state.only) return "No site matches the filter.";
    if (this.model.difference) return "Nothing has changed since.";
    const process = this.model.processOf.get(this.state.p);
    return process?.verdict_reason || "Nothing that was allocated while tracing survives.";
  }

  rows() {
    if (!this.model || !this.scroller.isConnected) return;
    const height = parseFloat(getComputedStyle(this.scroller).getPropertyValue("--row")) || 46;
    const seen = this.scroller.clientHeight || 600;
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / height) - 4);
    const last = Math.min(this.sites.length, Math.ceil((this.scroller.scrollTop + seen) / height) + 4);
    this.body.style.setProperty("height", `${this.sites.length * height}px`);
    put(this.body, ...this.sites.slice(first, last).map((site, place) => this.row(site, (first + place) * height)));
    if (this.state.site) this.scroller.setAttribute("aria-activedescendant", `site-${this.state.site}`);
    else this.scroller.removeAttribute("aria-activedescendant");
  }

  row(site, top) {
    const { model, state } = this;
    const isChange = site.change != null;
    const named = titleOf(model, site);
    const cut = cutBefore(named.title);
    const all = !state.p || state.p === "all";
    const who = all && site.process ? `${clean(site.process.comm)} ${site.pid}` : "";
    const kind = site.kind === "heap" ? "" : { mapping: "mapped", pages: "touched pages, in no sum", go: "Go heap", goroutines: "goroutines" }[site.kind] ?? site.kind;
    const lost = site.unreachable > 0 ? `${count(site.unreachable)} unreachable` : "";
    const where = [who, kind, lost, shortPath(named.where)].filter(Boolean).join(" · ");
    const growth = rate(site.growth_bytes_per_s);
    const interval = site.isExact ? "" : `${bytes(site.inuse_bytes_low)} – ${bytes(site.inuse_bytes_high)}`;
    const numbers = isChange
      ? [[change(site.inuse_bytes_change)], [countChange(site.inuse_objects_change)], [bytes(site.inuse_bytes_base)], [bytes(site.inuse_bytes)], [growth]]
      : [[bytes(site.inuse_bytes), interval], [count(site.inuse_objects)], [growth], [bytes(site.alloc_bytes)], [site.oldest_age_s > 0 ? duration(site.oldest_age_s) : ""]];
    return h("div", { class: isChange ? "site changed" : "site", id: `site-${site.key}`, role: "option", "data-key": site.key, "aria-selected": String(state.site === site.key), style: { top: `${top}px` } },
      h("span", { class: "cell" }, chip(site.change ?? site.verdict)),
      h("span", { class: "cell wide", title: `${named.title} ${named.aside}\n${named.where}` },
        h("span", { class: "title" }, h("span", { class: "begin" }, named.title.slice(0, cut)), h("span", { class: "end" }, named.title.slice(cut)), named.aside && h("span", { class: "dim apart" }, `\u00a0${named.aside}`)),
        h("span", { class: "sub dim" }, where)),
      numbers.map(([value, below], place) =>
        h("span", { class: `cell n c${place}${value.startsWith("+") && (place === 0 || value === growth) ? " up" : ""}` }, value, below && h("span", { class: "sub dim", title: "between these with 95 % confidence" }, below),
          place === 0 && !isChange && h("span", { class: "part", style: { width: `${(site.inuse_bytes / this.most) * 100}%` } }))));
  }

  open(key) {
    this.store.set({ site: this.store.now.site === key ? "" : key });
  }

  focus() {
    this.scroller.focus();
    if (!this.store.now.site) this.move(0);
  }

  move(to) {
    const site = this.sites[Math.max(0, Math.min(to, this.sites.length - 1))];
    if (!site) return;
    this.store.set({ site: site.key }, false);
    const height = parseFloat(getComputedStyle(this.scroller).getPropertyValue("--row")) || 46;
    const top = this.sites.indexOf(site) * height;
    const { scrollTop, clientHeight } = this.scroller;
    if (top < scrollTop) this.scroller.scrollTop = top;
    else if (top + height > scrollTop + clientHeight) this.scroller.scrollTop = top + height - clientHeight;
  }

  key(event) {
    const place = this.sites.findIndex((site) => site.key === this.store.now.site);
    const page = Math.max(1, Math.floor(this.scroller.clientHeight / 46) - 1);
    const to = { ArrowDown: place + 1, j: place + 1, ArrowUp: place - 1, k: place - 1, PageDown: place + page, PageUp: place - page, Home: 0, End: this.sites.length - 1 }[event.key];
    if (to == null) return;
    event.preventDefault();
    event.stopPropagation();
    this.move(to);
  }
}
