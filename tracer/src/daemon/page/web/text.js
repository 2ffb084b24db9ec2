// Numbers and names as people read them: the same words as in leakscope's other views. Pure.

const UNFIT = /[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069\ufffe\uffff]/g;

/** The text without what could reorder a line or hide in it. */
export const clean = (text) => String(text ?? "").replace(UNFIT, "\ufffd");

/** `1,234,567`. */
export const count = (value) => String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, ",");

const plural = (value) => (value === 1 ? "" : "s");

/** `1 block`, `1,024 blocks`. */
export const blocks = (value) => `${count(value)} block${plural(value)}`;

function scaled(value) {
  let unit = "B";
  for (const next of ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]) {
    if (value < 1023.5) break;
    value /= 1024;
    unit = next;
  }
  const decimals = unit === "B" ? 0 : value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  return `${value.toFixed(decimals)} ${unit}`;
}

/** `512 B`, `1.50 KiB`: three significant digits. */
export const bytes = (value) => (value < 1024 ? `${value} B` : scaled(value));

/** `+1.20 MiB`, `−3 B`, `±0 B`. */
export const change = (value) => (value > 0 ? "+" : value < 0 ? "−" : "±") + bytes(Math.abs(value));

/** `+12`, `−3`, `±0`. */
export const countChange = (value) => (value > 0 ? "+" : value < 0 ? "−" : "±") + count(Math.abs(value));

/** `+1.20 MiB/s`, `-30 B/min`; nothing for less than a byte an hour. */
export function rate(perSecond) {
  const sign = perSecond < 0 ? "-" : "+";
  for (const [seconds, unit] of [[1, "s"], [60, "min"], [3600, "h"]]) {
    const value = Math.abs(perSecond) * seconds;
    if (value >= 1) return `${sign}${scaled(value)}/${unit}`;
  }
  return "";
}

/** `+800/s`, `-3.5/s`; nothing for less than one an hour. */
export function countRate(perSecond) {
  const sign = perSecond < 0 ? "-" : "+";
  for (const [seconds, unit] of [[1, "s"], [60, "min"], [3600, "h"]]) {
    const value = Math.abs(perSecond) * seconds;
    if (value >= 9.95) return `${sign}${count(value)}/${unit}`;
    if (value >= 1) return `${sign}${value.toFixed(1)}/${unit}`;
  }
  return "";
}

/** `350 ms`, `12.3 s`, `5 min 20 s`, `3 h 12 min`, `2 d 4 h`. */
export function duration(seconds) {
  if (seconds < 0.9995) return `${(Math.max(seconds, 0) * 1000).toFixed(0)} ms`;
  if (seconds < 99.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  const [minutes, hours, days] = [60, 3600, 86400].map((unit) => Math.floor(whole / unit));
  if (hours === 0) return `${minutes} min ${whole % 60} s`;
  if (days === 0) return `${hours} h ${minutes % 60} min`;
  return `${count(days)} d ${hours % 24} h`;
}

/** `12.3 %` of a fraction. */
export function percent(fraction) {
  const value = fraction * 100;
  return value > 0 && value < 0.05 ? "<0.1 %" : `${value.toFixed(1)} %`;
}

/** A share of a whole; nothing of nothing is 0 %. */
export const share = (part, whole) => percent(whole > 0 ? part / whole : 0);

/** The file's name, without its directory. */
export const baseName = (path) => path.split("/").filter(Boolean).pop() ?? path;

/** A frame's function, or what stands for it. */
export function frameName(frame) {
  if (frame.function) return clean(frame.function);
  if (frame.kind === "python") return "[python code that is gone]";
  const module = frame.module && clean(baseName(frame.module));
  if (module && frame.offset != null) return `[${module}+${frame.offset}]`;
  if (module) return frame.address != null ? `[${module} ${frame.address}]` : `[${module}]`;
  if (frame.address != null) return `[${frame.address}]`;
  return frame.offset != null ? `[+${frame.offset}]` : "[unknown]";
}

/** Where its code is: source and line, or the file that holds it. */
export function frameWhere(frame) {
  if (frame.file) return clean(frame.file) + (frame.line ? `:${frame.line}` : "");
  return frame.module ? clean(frame.module) : "";
}

/** Where a long name may be cut so that its end, which tells most, is seen. */
export function cutBefore(name) {
  if (name.length < 24) return name.length;
  const bare = name.replace(/<[^<>]*>|\([^()]*\)/g, (part) => "_".repeat(part.length));
  const place = Math.max(bare.lastIndexOf("::"), bare.lastIndexOf("/"), bare.lastIndexOf("."));
  return name.length - Math.min(Math.max(name.length - place, 8), 26);
}

/** A long path with its end alone. */
export function shortPath(path, most = 48) {
  if (path.length <= most) return path;
  const parts = path.split("/");
  let end = parts.pop();
  while (parts.length && end.length + parts.at(-1).length + 3 <= most) end = `${parts.pop()}/${end}`;
  return end.length <= most ? `…/${end}` : `…${end.slice(1 - most)}`;
}

/** `comm (pid 1)`. */
export const processName = (process) => `${clean(process.comm) || "?"} (pid ${process.pid})`;
