// Sizes and lives of blocks, as bars.

import { bars } from "./chart.js";
import { h } from "./dom.js";
import { blocks, bytes, count, duration, share } from "./text.js";

/** What is known of them; nothing where nothing is. */
export function lives(known) {
  if (!known) return null;
  const list = (title, all, below) => all.length > 0 && [h("h4", null, title), bars(all.map((of) => ({ name: `< ${below(of)}`, value: of.objects, text: count(of.objects) })))];
  const life = (of) => duration(of.below_s);
  return h("section", { class: "lives" }, h("h3", null, "Sizes and lives"),
    known.temporary_objects > 0 && h("p", null, `${count(known.temporary_objects)} of ${blocks(known.followed_objects)} followed (${share(known.temporary_objects, known.followed_objects)}) were temporary: freed within ${duration(known.temporary_below_s)}.`),
    list("Surviving, by size", known.sizes, (of) => bytes(of.below_bytes)),
    list("Surviving, by age", known.ages, life),
    list("Freed, by age at most", known.freed, life));
}
