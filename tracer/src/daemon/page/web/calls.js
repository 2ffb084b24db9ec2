// The tree of calls as text: what calls what, or who calls what allocates.

import { h, put } from "./dom.js";
import { build, hash, nextOf } from "./tree.js";
import { bytes, change, count, frameWhere, share, shortPath } from "./text.js";

/** So many of one caller are shown, and a way is opened by itself for so many steps. */
const MOST = 40;
const OPENED = 12;

export class Calls {
  constructor(store) {
    this.store = store;
    // What somebody has opened or closed, by the way to it.
    this.open = new Map();
    this.more = new Set();
    const choice = (up, name) => h("button", { "data-up": up, onclick: () => store.set({ up }) }, name);
    this.choices = [choice("", "what is called"), choice("1", "who calls")];
    this.list = h("div", { id: "calls", class: "scroller calls", role: "tree", tabindex: -1, "aria-label": "calls" });
    this.element = h("div", { class: "calls-view" }, h("div", { class: "tools" }, h("div", { class: "choice", role: "group" }, this.choices), h("span", { class: "dim" }, "share of the surviving bytes that are shown")), this.list);
    this.list.addEventListener("keydown", (event) => this.key(event));
  }

  show(model, state, sites) {
    const isUp = state.up === "1";
    for (const choice of this.choices) choice.setAttribute("aria-pressed", String(choice.dataset.up === state.up));
    this.model = model;
    this.root = build(model, sites, { isUp, byProcess: !isUp && (!state.p || state.p === "all") });
    this.draw();
  }

  draw() {
    const focused = document.activeElement?.closest?.(".call")?.dataset.way;
    const rows = [];
    this.add(this.root, "", 0, rows, OPENED);
    put(this.list, rows.length ? rows : h("p", { class: "dim pad" }, "Nothing survives at the sites that are shown."));
    const row = focused && [...this.list.children].find((other) => other.dataset.way === focused);
    if (row) row.focus({ preventScroll: true });
    else this.list.firstElementChild?.setAttribute("tabindex", "0");
  }

  add(of, way, depth, rows, opened) {
    const all = nextOf(of);
    const shown = this.more.has(way) ? all : all.slice(0, MOST);
    shown.forEach((next, place) => {
      const own = `${way}.${hash(next.name)}`;
      // The heaviest way is open, as long as it is one way.
      const isHeavy = place === 0 && opened > 0 && next.value >= of.value * 0.5;
      const isOpen = next.next.size > 0 && (this.open.get(own) ?? isHeavy);
      rows.push(this.row(next, own, depth, isOpen));
      if (isOpen) this.add(next, own, depth + 1, rows, isHeavy ? opened - 1 : 0);
    });
    const hidden = all.length - shown.length;
    if (hidden > 0) {
      rows.push(h("button", { class: "call more", style: { "--depth": depth }, onclick: () => { this.more.add(way); this.draw(); } }, `and ${count(hidden)} more`));
    }
  }

  row(of, way, depth, isOpen) {
    const canOpen = of.next.size > 0;
    const where = of.frame ? frameWhere(of.frame) : "";
    const toggle = () => {
      if (!canOpen) return;
      this.open.set(way, !isOpen);
      this.draw();
    };
    return h("div", { class: "call", role: "treeitem", tabindex: -1, "data-way": way, "aria-level": depth + 1, "aria-expanded": canOpen ? String(isOpen) : null, style: { "--depth": Math.min(depth, 40) }, onclick: toggle },
      h("span", { class: "share" }, h("span", { class: of.leaking > 0 ? "fill leaks" : "fill", style: { width: `${(of.value / this.root.value) * 100}%` } }), h("span", null, share(of.value, this.root.value))),
      h("span", { class: "n size" }, this.model.difference ? change(of.value - of.base) : bytes(of.value)),
      h("span", { class: "what" }, h("span", { class: "twist", "aria-hidden": "true" }, canOpen ? (isOpen ? "▾" : "▸") : ""), h("span", { class: "name", title: where ? `${of.name}\n${where}` : of.name }, of.name), where && h("span", { class: "dim sub" }, ` ${shortPath(where, 40)}`)));
  }

  key(event) {
    const rows = [...this.list.querySelectorAll(".call")];
    const place = rows.indexOf(document.activeElement);
    if (place < 0) return;
    const row = rows[place];
    const isOpen = row.getAttribute("aria-expanded");
    let to = { ArrowDown: place + 1, j: place + 1, ArrowUp: place - 1, k: place - 1, Home: 0, End: rows.length - 1 }[event.key];
    if ((event.key === "ArrowRight" && isOpen === "false") || (event.key === "ArrowLeft" && isOpen === "true") || event.key === "Enter") row.click();
    else if (event.key === "ArrowRight") to = place + 1;
    else if (event.key === "ArrowLeft") {
      const level = Number(row.getAttribute("aria-level"));
      to = rows.findLastIndex((other, at) => at < place && Number(other.getAttribute("aria-level")) < level);
    } else if (to == null) return;
    event.preventDefault();
    event.stopPropagation();
    if (to != null) rows[Math.max(0, Math.min(to, rows.length - 1))].focus();
  }

  focus() {
    this.list.querySelector(".call")?.focus();
  }
}
