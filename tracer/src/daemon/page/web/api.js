// Asks the daemon, and hears from it. Nobody else is asked anything.

/** Where the daemon answers: without a password that may stand in the page's own address, which requests must not have. */
const url = (path) => new URL(path, location.origin + location.pathname);

async function ask(path, options) {
  // What is asked for first, the document has asked for already (`preload`): the same way, or it is asked for again.
  const answer = await fetch(url(path), options);
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const said = await answer.json().catch(() => ({}));
  throw Object.assign(new Error(said.error ?? `the daemon answers ${answer.status}`), { status: answer.status });
}

const name = encodeURIComponent;

export const sheet = (base, to) => ask(base ? `api/v1/page?base=${name(base)}${to ? `&new=${name(to)}` : ""}` : "api/v1/page");
export const process = (key) => ask(`api/v1/page/process/${key.replace(".", "/")}`);
export const site = (key) => ask(`api/v1/page/site/${key.replaceAll(".", "/")}`);
export const snapshots = async () => (await ask("api/v1/snapshots")).snapshots;
export const keep = (as) => ask(`api/v1/snapshots/${name(as)}`, { method: "PUT" });
export const forget = (as) => ask(`api/v1/snapshots/${name(as)}`, { method: "DELETE" });

/** Hears of newer reports while somebody can see the page. */
export class Events {
  constructor(told, connected) {
    this.told = told;
    this.connected = connected;
    document.addEventListener("visibilitychange", () => this.look());
    addEventListener("pagehide", () => this.close());
    addEventListener("pageshow", () => this.look());
    this.look();
  }

  look() {
    if (document.hidden) this.close();
    else if (!this.source) this.open();
  }

  open() {
    this.source = new EventSource(url("api/v1/events"));
    this.source.addEventListener("now", (event) => {
      this.connected(true);
      this.told(JSON.parse(event.data));
    });
    this.source.addEventListener("error", () => {
      this.connected(false);
      // Refused for good, which a browser does not try again.
      if (this.source?.readyState !== EventSource.CLOSED) return;
      this.close();
      setTimeout(() => this.look(), 5000);
    });
  }

  close() {
    this.source?.close();
    this.source = null;
  }
}
