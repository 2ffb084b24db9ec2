// Snapshots: kept, compared with, deleted.

import * as api from "./api.js";
import { at, h, put } from "./dom.js";
import { bytes, clean, count } from "./text.js";

/** When it was, as the reader's clock says. */
export const when = (captured) => new Date(captured).toLocaleString(undefined, { dateStyle: "short", timeStyle: "medium" });

/** A name that nobody has to think about: the time. */
function standardName(now = new Date()) {
  const two = (value) => String(value).padStart(2, "0");
  return `${now.getFullYear()}-${two(now.getMonth() + 1)}-${two(now.getDate())}_${two(now.getHours())}.${two(now.getMinutes())}.${two(now.getSeconds())}`;
}

export class Snapshots {
  constructor(store, say) {
    this.store = store;
    this.say = say;
    this.list = [];
    this.dialog = at("snapshots");
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.name = h("input", { id: "snapshot-name", name: "name", placeholder: "name", "aria-label": "name of the snapshot", maxlength: 64, pattern: "[A-Za-z0-9_][A-Za-z0-9._\\-]*", title: "letters, digits, dots, dashes, underscores", autocomplete: "off", spellcheck: "false" });
    this.rows = h("div", { class: "snapshot-list" });
    this.error = h("p", { class: "error", role: "alert" });
    const form = h("form", { class: "tools" }, this.name, h("button", { id: "snapshot-save", class: "strong" }, "Keep now"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.keep();
    });
    put(this.dialog,
      h("header", null, h("h2", null, "Snapshots"), h("button", { class: "plain", "aria-label": "close", onclick: () => this.dialog.close() }, "✕")),
      h("p", { class: "dim" }, "What survives now is kept in the daemon's memory under a name, until it is deleted or the daemon ends; later reports are compared with it, and snapshots with each other."),
      form, this.error, this.rows);
  }

  open() {
    this.name.value = standardName();
    this.error.textContent = "";
    this.load();
    this.dialog.showModal();
    this.name.select();
  }

  /** Asks for the list again. */
  async load() {
    try {
      this.list = await api.snapshots();
      this.draw();
    } catch (error) {
      this.fail(error);
    }
  }

  fail(error) {
    this.error.textContent = clean(error.message);
    if (!this.dialog.open) this.say(clean(error.message));
  }

  draw() {
    at("snapshot-count").textContent = this.list.length ? ` ${this.list.length}` : "";
    const { base } = this.store.now;
    put(this.rows, ...this.list.map((one) => h("div", { class: "snapshot", "data-name": one.name },
      h("div", null, h("b", null, one.name), h("div", { class: "dim sub" }, `${when(one.captured_at)} · ${bytes(one.inuse_bytes)} at ${count(one.sites)} sites`)),
      h("span", { class: "tools" },
        h("button", { class: "compare", "aria-pressed": String(one.name === base), onclick: () => this.compare(one.name) }, one.name === base ? "Compared" : "Compare"),
        h("a", { class: "button", href: `api/v1/snapshots/${one.name}`, download: `${one.name}.pb.gz` }, "pprof"),
        h("button", { class: "delete", onclick: () => this.forget(one.name) }, "Delete")))),
      this.list.length === 0 && h("p", { class: "dim" }, "None is kept."));
  }

  async keep() {
    const name = this.name.value.trim();
    try {
      await api.keep(name);
      this.error.textContent = "";
      this.name.value = standardName();
      await this.load();
      this.say(`Kept as ${name}.`);
    } catch (error) {
      this.fail(error);
    }
  }

  compare(name) {
    this.store.set({ base: this.store.now.base === name ? "" : name, to: "", sort: "", only: "", site: "", z: "" });
    this.dialog.close();
  }

  async forget(name) {
    try {
      await api.forget(name);
      const { base, to } = this.store.now;
      if (name === base || name === to) this.store.set({ base: "", to: "", sort: "", only: "" });
      await this.load();
    } catch (error) {
      this.fail(error);
    }
  }
}
