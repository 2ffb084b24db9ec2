// A headless Chromium that is spoken to over pipes (Chrome DevTools Protocol, --remote-debugging-pipe): no library, no port.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** How long anything may take, milliseconds. */
const PATIENCE = 60_000;

export class Browser {
  constructor(chromium = "chromium") {
    this.home = mkdtempSync(join(tmpdir(), "leakscope-browser-"));
    this.child = spawn(chromium, ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe", `--user-data-dir=${this.home}`, "about:blank"], {
      stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"],
      env: { ...process.env, HOME: this.home },
    });
    this.waiting = new Map();
    this.last = 0;
    this.heard = () => {};
    let text = "";
    this.child.stdio[4].setEncoding("utf8").on("data", (part) => {
      text += part;
      const messages = text.split("\0");
      text = messages.pop();
      for (const message of messages) this.hear(JSON.parse(message));
    });
  }

  hear(message) {
    const waits = this.waiting.get(message.id);
    if (!waits) return this.heard(message);
    this.waiting.delete(message.id);
    if (message.error) waits.reject(new Error(`${waits.method}: ${message.error.message}`));
    else waits.resolve(message.result);
  }

  send(method, params = {}, sessionId = undefined) {
    const id = (this.last += 1);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`${method} is not answered`)), PATIENCE);
      const done = (call) => (value) => {
        clearTimeout(timer);
        call(value);
      };
      this.waiting.set(id, { method, resolve: done(resolve), reject: done(reject) });
      this.child.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    });
  }

  /** A new tab, at nothing yet. */
  async page(width = 1400, height = 900, dark = false) {
    const { targetId } = await this.send("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await this.send("Target.attachToTarget", { targetId, flatten: true });
    const page = new Page(this, sessionId);
    const before = this.heard;
    this.heard = (message) => (message.sessionId === sessionId ? page.hear(message) : before(message));
    for (const domain of ["Page", "Runtime", "Network", "Log"]) await page.send(`${domain}.enable`);
    await page.send("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: width < 500 });
    await page.send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: dark ? "dark" : "light" }] });
    return page;
  }

  async end() {
    await this.send("Browser.close").catch(() => {});
    await new Promise((resolve) => (this.child.exitCode == null ? this.child.once("exit", resolve) : resolve()));
    rmSync(this.home, { recursive: true, force: true, maxRetries: 5 });
  }
}

class Page {
  constructor(browser, sessionId) {
    this.browser = browser;
    this.sessionId = sessionId;
    /** What went wrong: exceptions, what the policy refused, what the console was told. */
    this.complaints = [];
    /** Every address that was asked for. */
    this.asked = [];
  }

  hear({ method, params }) {
    if (method === "Runtime.exceptionThrown") this.complaints.push(params.exceptionDetails.exception?.description ?? params.exceptionDetails.text);
    if (method === "Runtime.consoleAPICalled" && params.type === "error") this.complaints.push(JSON.stringify(params.args));
    if (method === "Log.entryAdded" && params.entry.level === "error") this.complaints.push(`${params.entry.text} ${params.entry.url ?? ""}`);
    if (method === "Page.javascriptDialogOpening") this.complaints.push(`a dialog: ${params.message}`);
    if (method === "Network.requestWillBeSent") this.asked.push(params.request.url);
  }

  send(method, params) {
    return this.browser.send(method, params, this.sessionId);
  }

  async open(url) {
    await this.send("Page.navigate", { url });
  }

  /** The value of an expression, or of the promise that it is. */
  async value(expression) {
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(`${expression}: ${exceptionDetails.exception?.description ?? exceptionDetails.text}`);
    return result.value;
  }

  /** Waits until an expression is true, and says what it is then. */
  async until(expression) {
    const end = Date.now() + PATIENCE;
    for (;;) {
      const value = await this.value(expression).catch(() => null);
      if (value) return value;
      if (Date.now() > end) throw new Error(`never: ${expression}\n${this.complaints.join("\n")}\n${await this.value("document.body.innerText")}`);
      await new Promise((resolve) => setTimeout(resolve, 30));
    }
  }

  /** Where the middle of an element is, once it is there. */
  async middle(selector) {
    const find = `(() => { const found = document.querySelector(${JSON.stringify(selector)}); if (!found) return null; found.scrollIntoView({ block: "nearest" }); const area = found.getBoundingClientRect(); return area.width > 0 ? [area.x + area.width / 2, area.y + area.height / 2] : null; })()`;
    return this.until(find);
  }

  async clickAt(x, y) {
    for (const type of ["mouseMoved", "mousePressed", "mouseReleased"]) {
      await this.send("Input.dispatchMouseEvent", { type, x, y, button: type === "mouseMoved" ? "none" : "left", clickCount: type === "mouseMoved" ? 0 : 1 });
    }
  }

  async click(selector) {
    const [x, y] = await this.middle(selector);
    await this.clickAt(x, y);
  }

  /** Clicks until an expression is true: a row that moves or is drawn anew between two events of the mouse takes no click. */
  async clickUntil(selector, expression) {
    for (let clicks = 0; clicks < 5; clicks += 1) {
      await this.click(selector);
      for (let asked = 0; asked < 100; asked += 1) {
        if (await this.value(expression).catch(() => null)) return;
        await new Promise((resolve) => setTimeout(resolve, 30));
      }
    }
    await this.until(expression);
  }

  async type(text) {
    await this.send("Input.insertText", { text });
  }

  /** Presses a key: one letter, or a name such as `Escape`. */
  async press(key) {
    const code = { Escape: 27, Enter: 13, ArrowDown: 40, ArrowUp: 38, ArrowLeft: 37, ArrowRight: 39, " ": 32 }[key] ?? key.toUpperCase().charCodeAt(0);
    const text = key.length === 1 ? key : key === "Enter" ? "\r" : undefined;
    await this.send("Input.dispatchKeyEvent", { type: "keyDown", key, text, windowsVirtualKeyCode: code });
    await this.send("Input.dispatchKeyEvent", { type: "keyUp", key, windowsVirtualKeyCode: code });
  }

  async picture(file) {
    const { data } = await this.send("Page.captureScreenshot", { format: "png" });
    writeFileSync(file, Buffer.from(data, "base64"));
  }
}
