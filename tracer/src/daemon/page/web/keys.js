// Keys, the help that lists them, and the switch between dark and light.

import { at, h, put } from "./dom.js";

const HELP = [
  ["/", "filter the sites"],
  ["f", "find frames in the flame graph"],
  ["p", "to the processes"],
  ["l", "to what is listed"],
  ["1 … 6", "sites, flame graph, calls, types, kernel, trace"],
  ["↑ ↓ or k j", "one up, one down"],
  ["→ ←", "open, close; in the flame graph to the next one"],
  ["Enter", "choose, open, zoom in"],
  ["Esc", "back: close, zoom out, clear the filter"],
  ["s", "snapshots"],
  ["Space", "pause and go on"],
  ["d", "dark, light, as the system has it"],
  ["?", "this list"],
];

/** Filters know more than one word. */
const FILTER = "The filter finds all words, in frames, files, types and processes; -word leaves out; “two words” in quotes are one.";

const THEMES = ["", "dark", "light"];

export function theme() {
  const set = (name) => {
    if (name) document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
    at("theme").textContent = { "": "◐", dark: "●", light: "○" }[name];
    at("theme").title = `Colours: ${name || "as the system has them"} (d)`;
  };
  let now = "";
  try {
    now = THEMES.includes(localStorage.theme) ? localStorage.theme : "";
  } catch {
    // A browser that keeps nothing for anybody: it begins as the system has it.
  }
  set(now);
  return () => {
    now = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
    set(now);
    try {
      localStorage.theme = now;
    } catch {
      // See above.
    }
  };
}

export function help() {
  const dialog = at("help");
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  put(dialog, h("header", null, h("h2", null, "Keys"), h("button", { class: "plain", "aria-label": "close", onclick: () => dialog.close() }, "✕")),
    h("dl", { class: "facts keys" }, HELP.map(([key, what]) => [h("dt", null, h("kbd", null, key)), h("dd", null, what)])), h("p", { class: "dim" }, FILTER));
  return () => dialog.showModal();
}

/** Listens for keys where nothing is being written. */
export function keys(does) {
  addEventListener("keydown", (event) => {
    const isWriting = event.target.matches?.("input, select, textarea");
    if (document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (isWriting && event.key !== "Escape" && !(event.key === "Enter" && event.target.type === "search")) return;
    // A button is pressed by it.
    if (event.key === " " && event.target.matches?.("button, summary, a")) return;
    const action = isWriting && event.key === "Enter" ? does.l : does[event.key];
    if (!action) return;
    event.preventDefault();
    action(event);
  });
}
