// Draws figures over time.

import { h, s } from "./dom.js";
import { bytes, duration } from "./text.js";

const WIDTH = 1000;
const HEIGHT = 100;

/** A line without axes. */
export function spark(values, label) {
  if (values.length < 2) return h("span", { class: "spark" });
  const most = Math.max(...values, 1);
  const least = Math.min(...values);
  // What hardly changes is to look so.
  const span = Math.max(most - least, most * 0.04);
  const points = values.map((value, place) => `${((place / (values.length - 1)) * 100).toFixed(1)},${(22 - ((value - least) / span) * 20).toFixed(1)}`);
  return s("svg", { class: "spark", viewBox: "0 0 100 24", preserveAspectRatio: "none", role: "img", "aria-label": label }, s("polyline", { points: points.join(" ") }));
}

/** A round number from which on an axis ends: 1, 2 or 5 of a power of two or ten units. */
function ceiling(value) {
  let unit = 1;
  while (value / unit >= 1024) unit *= 1024;
  const part = value / unit;
  return unit * ([1, 2, 5, 10, 20, 50, 100, 200, 500, 1024].find((end) => end >= part) ?? part);
}

/**
 * Lines over time, with what they are at the pointer.
 * @param points the oldest first, with `at_s`
 * @param lines `[{name, className, value(point)}]`
 */
export function chart(points, lines, label) {
  if (points.length < 2 || points.at(-1).at_s <= points[0].at_s) {
    return h("p", { class: "dim" }, "A chart follows when more has been seen.");
  }
  const [from, to] = [points[0].at_s, points.at(-1).at_s];
  const most = ceiling(Math.max(1, ...lines.flatMap((line) => points.map(line.value))));
  const x = (point) => ((point.at_s - from) / (to - from)) * WIDTH;
  const y = (value) => HEIGHT * (1 - value / most);
  const drawing = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  for (const part of [0.5, 1]) drawing.append(s("line", { class: "grid", x1: 0, x2: WIDTH, y1: y(most * part), y2: y(most * part) }));
  for (const line of lines) {
    const path = points.map((point) => `${x(point).toFixed(1)},${y(line.value(point)).toFixed(1)}`).join(" ");
    if (line.isFilled) drawing.append(s("polygon", { class: `area ${line.className}`, points: `0,${HEIGHT} ${path} ${WIDTH},${HEIGHT}` }));
    drawing.append(s("polyline", { class: line.className, points: path }));
  }
  const cursor = s("line", { class: "cursor", y1: 0, y2: HEIGHT, visibility: "hidden" });
  drawing.append(cursor);
  const values = lines.map(() => h("b"));
  const time = h("span", { class: "dim" });
  const show = (point) => {
    time.textContent = duration(point.at_s);
    lines.forEach((line, place) => (values[place].textContent = bytes(line.value(point))));
  };
  show(points.at(-1));
  const plot = h("div", { class: "plot" }, drawing, h("span", { class: "most dim" }, bytes(most)), h("span", { class: "half dim" }, bytes(Math.round(most / 2))));
  plot.addEventListener("pointermove", (event) => {
    const area = drawing.getBoundingClientRect();
    const at = from + ((event.clientX - area.left) / area.width) * (to - from);
    const nearest = points.reduce((best, point) => (Math.abs(point.at_s - at) < Math.abs(best.at_s - at) ? point : best));
    cursor.setAttribute("visibility", "visible");
    cursor.setAttribute("x1", x(nearest));
    cursor.setAttribute("x2", x(nearest));
    show(nearest);
  });
  plot.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    show(points.at(-1));
  });
  const legend = lines.map((line, place) => h("span", { class: `key ${line.className}` }, h("i"), line.name, " ", values[place]));
  return h("figure", { class: "chart" }, h("figcaption", null, legend, time), plot, h("div", { class: "axis dim" }, h("span", null, duration(from)), h("span", null, duration(to))));
}

/** Bars by size, with names. */
export function bars(rows) {
  const most = Math.max(1, ...rows.map((row) => row.value));
  return h("div", { class: "bars" }, rows.map((row) => h(
    row.press ? "button" : "div",
    { class: "bar", title: row.name, onclick: row.press },
    h("span", { class: "fill", style: { width: `${(row.value / most) * 100}%` } }),
    h("span", { class: "name" }, row.name),
    h("span", { class: "n" }, row.text),
  )));
}
