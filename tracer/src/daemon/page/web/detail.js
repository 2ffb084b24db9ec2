// All that is known of a site: figures, evidence, memory over time, stack, types, holders.

import * as api from "./api.js";
import { bars, chart } from "./chart.js";
import { at, chip, h, put } from "./dom.js";
import { lives } from "./lives.js";
import { holderTree, titleOf } from "./model.js";
import { blocks, bytes, change, clean, count, countChange, duration, frameName, frameWhere, percent, processName, rate, share, shortPath } from "./text.js";

const fact = (name, ...value) => value.some(Boolean) && [h("dt", null, name), h("dd", null, value)];

export class Detail {
  constructor(store) {
    this.store = store;
    this.element = at("detail");
    this.asked = "";
  }

  /** Shows the chosen site, and asks for what the list does not have. */
  show(model, state) {
    const row = state.site ? model.byKey.get(state.site) : null;
    document.body.classList.toggle("has-detail", Boolean(state.site));
    this.element.hidden = !state.site;
    if (!state.site) {
      this.full = null;
      this.asked = "";
      return;
    }
    if (this.full?.key !== state.site) this.full = null;
    this.draw(model, row);
    const asked = `${model.number} ${state.site}`;
    // Of now, which two snapshots do not show.
    if (asked === this.asked || state.to) return;
    this.asked = asked;
    api.site(state.site).then(
      (answer) => this.take(model, state.site, answer, null),
      (error) => this.take(model, state.site, null, error),
    );
  }

  take(model, key, answer, error) {
    if (this.store.now.site !== key) return;
    this.full = { key, ...answer, error };
    this.draw(model, model.byKey.get(key));
  }

  draw(model, row) {
    const scroll = this.element.scrollTop;
    const open = new Set([...this.element.querySelectorAll("details[open]")].map((details) => details.dataset.name));
    const hadFocus = this.element.contains(document.activeElement) && document.activeElement.id;
    const close = h("button", { id: "detail-close", class: "plain", title: "Close (Esc)", "aria-label": "close", onclick: () => this.store.set({ site: "" }) }, "✕");
    const site = this.full?.site ?? row;
    if (!site) {
      put(this.element, h("header", null, h("h2", null, "Gone"), close), h("p", null, this.full?.error ? clean(this.full.error.message) : "Nothing is known of this site now."));
      return;
    }
    const { title, aside } = row ? titleOf(model, row) : { title: `site ${site.id}`, aside: "" };
    put(this.element,
      h("header", null, h("h2", null, title, aside && h("span", { class: "dim" }, ` ${aside}`)), close),
      h("p", { class: "dim" }, row?.process ? processName(row.process) : `pid ${site.pid}`),
      this.verdict(site, row),
      this.figures(site, row),
      this.series(),
      this.types(site),
      this.holders(site),
      lives(site.lives),
      row ? this.stack(model, row, site) : null,
      this.evidence(site, open));
    this.element.scrollTop = scroll;
    if (hadFocus) at(hadFocus)?.focus({ preventScroll: true });
  }

  verdict(site, row) {
    return h("p", { class: "reason" }, chip(site.verdict), row?.change && chip(row.change), " ", clean(site.verdict_reason ?? ""));
  }

  figures(site, row) {
    const isExact = site.inuse_bytes_low == null || (site.inuse_bytes_low === site.inuse_bytes && site.inuse_bytes_high === site.inuse_bytes);
    const most = Math.max(site.inuse_bytes, site.inuse_bytes_high ?? 0, 1);
    const part = (value) => `${(value / most) * 100}%`;
    return h("div", null,
      h("dl", { class: "facts" },
        row?.change && fact("changed", `${change(row.inuse_bytes_change)} in ${countChange(row.inuse_objects_change)} blocks; was ${bytes(row.inuse_bytes_base)}`),
        fact("survives", h("b", null, bytes(site.inuse_bytes)), ` in ${blocks(site.inuse_objects)}`),
        !isExact && fact("interval", `${bytes(site.inuse_bytes_low)} to ${bytes(site.inuse_bytes_high)} with 95 % confidence`),
        fact("allocated", `${bytes(site.alloc_bytes)} in ${blocks(site.alloc_objects)}, of which ${share(site.inuse_bytes, site.alloc_bytes)} survive`),
        site.peak_bytes > site.inuse_bytes && fact("peak", bytes(site.peak_bytes)),
        fact("growth", rate(site.growth_bytes_per_s)),
        site.oldest_age_s > 0 && fact("oldest", `${duration(site.oldest_age_s)} old`),
        fact("via", site.allocator && clean(site.allocator)),
        site.reserved_bytes > 0 && fact("reserved", bytes(site.reserved_bytes))),
      !isExact && h("div", { class: "interval", role: "img", "aria-label": "the interval of 95 % confidence" },
        h("span", { class: "range", style: { left: part(site.inuse_bytes_low), width: part(site.inuse_bytes_high - site.inuse_bytes_low) } }),
        h("span", { class: "mark", style: { left: part(site.inuse_bytes) } })));
  }

  series() {
    const points = this.full?.series;
    if (!points || points.length < 2) return null;
    return h("section", null, h("h3", null, "Over time"), chart(points, [{ name: "survives", className: "inuse", isFilled: true, value: (point) => point.inuse_bytes }], "surviving bytes of this site over time"));
  }

  types(site) {
    if (!site.types?.length) return null;
    const rows = site.types.map((type) => ({ name: clean(type.name), value: type.bytes, text: `${bytes(type.bytes)} in ${count(type.objects)}` }));
    return h("section", null, h("h3", null, site.kind === "goroutines" ? "They are in" : "Types"), bars(rows));
  }

  holders(site) {
    const found = site.reachability;
    if (!site.holders?.length && !found) return null;
    const tree = holderTree(site.holders ?? []);
    const draw = (node) => h("ul", null, node.next.map((next) => h("li", null,
      h("div", { class: "holder", title: next.label },
        h("span", { class: "fill", style: { width: `${(next.objects / tree.objects) * 100}%` } }),
        h("span", { class: "name" }, next.label), h("span", { class: "n" }, count(next.objects))),
      next.next.length > 0 && draw(next))));
    return h("section", null, h("h3", null, "Held by"),
      found && h("p", { class: found.unreachable > 0 ? "up" : "dim" }, found.unreachable > 0
        ? `${count(found.unreachable)} of ${blocks(found.checked)} looked at are held by nothing: no pointer leads to them.`
        : `Something leads to all ${blocks(found.checked)} that were looked at.`),
      tree.next.length > 0 && h("div", { class: "holders" }, draw(tree)));
  }

  stack(model, row, site) {
    const place = (index) => {
      const frame = model.frames[index];
      const where = frameWhere(frame);
      return h("li", { class: frame.allocator ? "dim" : "" }, h("button", { class: "frame", title: "Find sites with this frame", onclick: () => this.store.set({ q: `"${frameName(frame).toLowerCase()}"`, v: "sites", site: this.store.now.site }) }, frameName(frame)),
        frame.inlined && h("span", { class: "dim" }, " inlined"), where && h("div", { class: "sub dim", title: where }, shortPath(where, 64)));
    };
    const own = row.frames.slice(0, row.own).map(place);
    const callers = row.frames.slice(row.own).map(place);
    return h("section", null, h("h3", null, "Stack"),
      row.own > 0 && h("p", { class: "dim" }, "called ", row.frames.slice(0, row.own).map((index) => model.names[index]).reverse().join(" → ")),
      h("ol", { class: "stack" }, callers.length ? callers : own),
      row.stack_incomplete && h("p", { class: "dim" }, `The stack is incomplete${site.stack_incomplete_reason ? `: ${clean(site.stack_incomplete_reason)}` : ""}.`));
  }

  evidence(site, open) {
    const rows = (site.evidence ?? []).map((one) => {
      if (one.kind === "unreachable") return `${count(one.objects)} of ${blocks(one.of)} had no pointer leading to them in two looks, after ${duration(one.watched_s)}.`;
      if (one.kind === "shrinks") return `One container holds all of it and shrank from ${count(one.before)} to ${blocks(one.objects)}: ${one.path.map(clean).join(" ← ")}.`;
      return Object.entries(one).map(([name, value]) => `${name} ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", ");
    });
    const sample = site.sample;
    if (sample) rows.push(`Estimated from ${blocks(sample.objects)} seen in ${count(sample.windows)} windows, checked ${count(sample.checks)} times; ${bytes(sample.counted_bytes)} were seen themselves.`);
    const counted = site.counted;
    if (counted) rows.push(`Counted ${count(counted.looks)} times in the heap: ${rate(counted.growth_bytes_per_s) || "no growth"}, ${percent(counted.share)} of the blocks of ${bytes(counted.block_bytes)}.`);
    if (site.weight > 1) rows.push(`Each recorded block stands for ${count(site.weight)}.`);
    if (!rows.length) return null;
    return h("details", { "data-name": "evidence", open: open.has("evidence") || !open.size }, h("summary", null, "Evidence"), h("ul", { class: "evidence" }, rows.map((row) => h("li", null, clean(row)))));
  }
}
