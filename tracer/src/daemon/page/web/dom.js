// Makes elements. Text goes in as text, never as markup: names come from programs that nobody trusts.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value == null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, set] of Object.entries(value)) element.style.setProperty(key, set);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(2)) if (child != null && child !== false && child !== "") element.append(child);
  return element;
}

/** An element of HTML: attributes, `on…` for listeners, `style` for an object of properties; strings become text. */
export const h = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);

/** An element of SVG. */
export const s = (tag, properties, ...children) => fill(document.createElementNS(SVG, tag), properties, children);

/** Replaces what is in an element. */
export function put(element, ...children) {
  element.replaceChildren(...children.flat(2).filter((child) => child != null && child !== false && child !== ""));
  return element;
}

/** The element with this id. */
export const at = (id) => document.getElementById(id);

/** Calls at most once for each picture that the screen shows. */
export function eachFrame(call) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      call();
    });
  };
}

const VERDICTS = { "warming-up": "warming up", "insufficient-data": "not enough data" };

/** A verdict, or a kind of change, as a word in a frame. */
export const chip = (verdict) => h("span", { class: `chip v-${verdict}` }, VERDICTS[verdict] ?? verdict);
