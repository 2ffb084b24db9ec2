// What the page shows, as its address says it: a link shows somebody else the same. Pure but for `Store`.

/** The values that need not stand in the address. */
export const DEFAULTS = {
  p: "", // the process: PID.INCARNATION, `all`, or nothing yet
  v: "sites", // the view
  q: "", // the filter of sites
  only: "", // one verdict or kind of change
  sort: "", // the column; the default depends on what is shown
  site: "", // PID.INCARNATION.ID
  base: "", // a snapshot to compare with
  to: "", // another that is compared with it, not what is there now
  pq: "", // the filter of processes
  ps: "verdict", // the order of processes
  z: "", // the frame that the flame graph is zoomed to
  find: "", // what it looks for
  color: "verdict", // by what it is coloured
  up: "", // `1`: callers instead of callees
};

/** Reads the part of an address behind `#`. What is unknown is left out. */
export function read(fragment) {
  const state = { ...DEFAULTS };
  for (const [key, value] of new URLSearchParams(fragment.replace(/^#/, ""))) {
    if (Object.hasOwn(DEFAULTS, key)) state[key] = value.slice(0, 2000);
  }
  return state;
}

/** Writes it. */
export function write(state) {
  const parameters = new URLSearchParams();
  for (const [key, standard] of Object.entries(DEFAULTS)) {
    if (state[key] !== standard) parameters.set(key, state[key]);
  }
  return parameters.toString();
}

/** The state of this page, in its address. */
export class Store {
  constructor(changed) {
    this.changed = changed;
    this.now = read(location.hash);
    addEventListener("hashchange", () => {
      const before = this.now;
      this.now = read(location.hash);
      if (write(before) !== write(this.now)) changed(before);
    });
  }

  /** Changes some of it. What one goes back from by the browser's button is a step; typing is none. */
  set(values, isStep = true) {
    const before = this.now;
    const next = { ...before, ...values };
    const text = write(next);
    if (text === write(before)) return;
    this.now = next;
    const address = `${location.pathname}${location.search}${text ? `#${text}` : ""}`;
    if (isStep) history.pushState(null, "", address);
    else history.replaceState(null, "", address);
    this.changed(before);
  }
}
