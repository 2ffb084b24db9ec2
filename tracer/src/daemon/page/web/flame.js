// The flame graph: drawn on a canvas, for there are thousands of boxes. Roots stand at the top.

import { at, eachFrame, h, put } from "./dom.js";
import { build, findPlace, hash, layOut, matched, nextOf, placeOf, wayTo } from "./tree.js";
import { baseName, bytes, change, clean, count, frameWhere, share } from "./text.js";

const ROW = 20;
const COLORS = { verdict: "share that leaks", module: "file of the code", change: "growth since" };

export class Flame {
  constructor(store) {
    this.store = store;
    this.canvas = h("canvas", { id: "flame", tabindex: 0, role: "img", "aria-label": "flame graph of surviving bytes; the tree of calls shows the same as text" });
    this.find = h("input", { id: "flame-find", type: "search", placeholder: "find frames", "aria-label": "find frames", autocomplete: "off", spellcheck: "false" });
    this.find.addEventListener("input", () => store.set({ find: this.find.value }, false));
    this.color = h("select", { "aria-label": "colours" }, Object.entries(COLORS).map(([value, name]) => h("option", { value }, `colour: ${name}`)));
    this.color.addEventListener("change", () => store.set({ color: this.color.value }, false));
    this.out = h("button", { id: "flame-out", onclick: () => store.set({ z: "" }) }, "Zoom out");
    this.status = h("p", { id: "flame-status", class: "status", "aria-live": "polite" });
    this.tip = h("div", { class: "tip", hidden: true });
    this.wrap = h("div", { class: "scroller flame-wrap" }, this.canvas);
    this.element = h("div", { class: "flame" }, h("div", { class: "tools" }, this.find, this.color, this.out), this.status, this.wrap, this.tip);
    this.draw = eachFrame(() => this.paint());
    new ResizeObserver(this.draw).observe(this.wrap);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.over(null));
    this.canvas.addEventListener("click", (event) => {
      const box = this.boxAt(event);
      if (box) this.zoom(box.of);
    });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", this.draw);
  }

  show(model, state, sites) {
    const byProcess = !state.p || state.p === "all";
    this.state = state;
    this.model = model;
    this.root = build(model, sites, { byProcess });
    this.zoomed = findPlace(this.root, state.z);
    this.current = this.current && findPlace(this.root, placeOf(this.current));
    if (document.activeElement !== this.find) this.find.value = state.find;
    this.color.value = model.difference && state.color === "verdict" ? "change" : state.color;
    this.out.hidden = this.zoomed === this.root;
    this.needle = clean(state.find).toLowerCase();
    this.say(null);
    this.draw();
  }

  isMatch(of) {
    return this.needle !== "" && of.name.toLowerCase().includes(this.needle);
  }

  say(of) {
    const shown = of ?? this.zoomed;
    const parts = [h("b", null, shown === this.root ? "all shown sites" : shown.name), ` ${bytes(shown.value)}`];
    if (shown !== this.root) parts.push(`, ${share(shown.value, this.root.value)}`);
    if (this.model.difference) parts.push(`, ${change(shown.value - shown.base)}`);
    if (shown.leaking > 0) parts.push(h("span", { class: "up" }, `, ${bytes(shown.leaking)} at sites that leak`));
    parts.push(h("span", { class: "dim" }, `, ${count(shown.sites)} site${shown.sites === 1 ? "" : "s"}`));
    const where = shown.frame && frameWhere(shown.frame);
    if (where) parts.push(h("span", { class: "dim" }, ` · ${where}`));
    if (this.needle) {
      const sum = matched(this.root, (other) => this.isMatch(other));
      parts.push(h("span", { class: "found" }, ` · found ${share(sum, this.root.value)}`));
    }
    put(this.status, ...parts);
  }

  colors() {
    const style = getComputedStyle(document.documentElement);
    const value = (name) => style.getPropertyValue(name).trim();
    return { ink: value("--flame-ink"), dark: value("--is-dark") === "1", found: value("--found"), page: value("--page"), line: value("--focus") };
  }

  fill(of, colors) {
    if (this.isMatch(of)) return colors.found;
    const [low, high] = colors.dark ? [34, 30] : [78, 84];
    const by = this.color.value;
    if (by === "module") {
      if (!of.frame) return colors.dark ? "hsl(220 8% 32%)" : "hsl(220 12% 84%)";
      const hue = parseInt(hash(of.frame.module ? baseName(of.frame.module) : of.frame.kind ?? ""), 36) % 360;
      return `hsl(${hue} ${colors.dark ? 32 : 55}% ${low}%)`;
    }
    if (by === "change" && this.model.difference) {
      const grown = of.value - of.base;
      const hue = grown >= 0 ? 8 : 212;
      const part = Math.sqrt(Math.abs(grown) / this.mostChanged);
      return `hsl(${hue} ${12 + part * 58}% ${high - part * (colors.dark ? -8 : 22)}%)`;
    }
    const part = of.value > 0 ? of.leaking / of.value : 0;
    const shade = (parseInt(hash(of.name), 36) % 7) - 3;
    // From what holds memory to what leaks it: from blue over sand to red.
    const hue = part > 0 ? 38 - part * 32 : 212;
    return `hsl(${hue} ${part > 0 ? 62 + part * 14 : 34}% ${(part > 0 ? low - part * (colors.dark ? -10 : 14) : high - 4) + shade}%)`;
  }

  paint() {
    if (!this.root || !this.wrap.isConnected) return;
    const width = Math.max(this.wrap.clientWidth, 200);
    const { boxes, depth } = layOut(this.zoomed, width);
    const height = (depth + 1) * ROW + 2;
    const scale = devicePixelRatio || 1;
    Object.assign(this.canvas, { width: width * scale, height: height * scale });
    this.canvas.style.setProperty("width", `${width}px`);
    this.canvas.style.setProperty("height", `${height}px`);
    const draw = this.canvas.getContext("2d");
    draw.scale(scale, scale);
    draw.font = "12px ui-monospace, 'DejaVu Sans Mono', monospace";
    draw.textBaseline = "middle";
    const letter = draw.measureText("m").width;
    const colors = this.colors();
    this.rows = [];
    this.mostChanged = boxes.reduce((most, { of, isAbove }) => (isAbove ? most : Math.max(most, Math.abs(of.value - of.base))), 1);
    for (const box of boxes) {
      (this.rows[box.depth] ??= []).push(box);
      const wide = Math.max(box.width - (box.width > 3 ? 1 : 0.2), 0.5);
      draw.globalAlpha = box.isAbove ? 0.55 : 1;
      draw.fillStyle = this.fill(box.of, colors);
      draw.fillRect(box.x, box.depth * ROW, wide, ROW - 1);
      const fits = Math.floor((box.width - 7) / letter);
      if (fits >= 3) {
        const name = box.of === this.root ? `all ${bytes(box.of.value)}` : box.of.name;
        draw.fillStyle = colors.ink;
        draw.fillText(name.length <= fits ? name : `${name.slice(0, fits - 1)}…`, box.x + 4, box.depth * ROW + ROW / 2);
      }
      draw.globalAlpha = 1;
      if (box.of === this.current && document.activeElement === this.canvas) {
        draw.strokeStyle = colors.line;
        draw.lineWidth = 2;
        draw.strokeRect(box.x + 1, box.depth * ROW + 1, Math.max(wide - 2, 1), ROW - 3);
      }
    }
  }

  boxAt(event) {
    const area = this.canvas.getBoundingClientRect();
    const row = this.rows?.[Math.floor((event.clientY - area.top) / ROW)];
    const x = event.clientX - area.left;
    return row?.find((box) => x >= box.x && x < box.x + box.width);
  }

  point(event) {
    const box = this.boxAt(event);
    this.over(box?.of ?? null);
    if (!box) return;
    const { tip } = this;
    put(tip, h("b", null, box.of === this.root ? "all shown sites" : box.of.name), h("div", null, `${bytes(box.of.value)} · ${share(box.of.value, this.root.value)}`), box.of.frame && h("div", { class: "dim" }, frameWhere(box.of.frame)));
    tip.hidden = false;
    const size = tip.getBoundingClientRect();
    tip.style.setProperty("left", `${Math.max(4, Math.min(event.clientX + 14, innerWidth - size.width - 8))}px`);
    tip.style.setProperty("top", `${event.clientY + 18 + size.height > innerHeight ? event.clientY - size.height - 10 : event.clientY + 18}px`);
  }

  over(of) {
    this.canvas.style.setProperty("cursor", of ? "pointer" : "default");
    if (!of) this.tip.hidden = true;
    if (this.root) this.say(of);
  }

  zoom(of) {
    this.current = of;
    this.store.set({ z: placeOf(of) });
  }

  /** One step out; whether there was one. */
  zoomOut() {
    if (!this.root || this.zoomed === this.root) return false;
    this.zoom(this.zoomed.parent);
    return true;
  }

  key(event) {
    if (!this.root) return;
    const now = this.current ?? this.zoomed;
    const beside = (by) => {
      const row = now.parent ? nextOf(now.parent) : [now];
      return row[row.indexOf(now) + by] ?? now;
    };
    const to = { ArrowDown: nextOf(now)[0] ?? now, ArrowUp: now.parent ?? now, ArrowRight: beside(1), ArrowLeft: beside(-1), Home: this.root }[event.key];
    if (event.key === "Enter") this.zoom(now);
    else if (event.key === "Backspace") this.zoomOut();
    else if (!to) return;
    event.preventDefault();
    event.stopPropagation();
    if (!to) return;
    this.current = to;
    // What is out of sight is zoomed to.
    if (!wayTo(to).includes(this.zoomed) && this.zoomed !== this.root && to !== this.zoomed) this.zoom(to);
    this.say(to);
    this.draw();
  }
}
