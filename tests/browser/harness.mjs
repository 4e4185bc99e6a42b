/**
 * What the tests stand on: a list of cases, a relay of their own, a browser with a fake microphone, a line that can be cut.
 */
import { execFileSync, spawn } from "node:child_process";
import { mkdtempSync, writeFileSync } from "node:fs";
import { createServer, request } from "node:http";
import { createConnection } from "node:net";
import { tmpdir } from "node:os";
import { join as joinPath, resolve } from "node:path";
import { chromium } from "playwright-core";

export const ROOT = resolve(import.meta.dirname, "../..");
export const SCRATCH = mkdtempSync(joinPath(tmpdir(), "voxrelay-browser-"));
/** Where screenshots go; nowhere unless asked for. */
export const PICTURES = process.env.PICTURES;

const cases = [];
/** `aside`: it mostly waits, and does so beside others of its kind. */
export function test(name, run, { aside = false } = {}) { cases.push({ name, run, aside }); }

/** Runs all cases whose name holds one of `only`; prints a line for each. @returns {Promise<number>} How many failed. */
export async function runAll(only) {
  const chosen = cases.filter(({ name }) => only.length === 0 || only.some((part) => name.includes(part)));
  // Before those that hear through a browser's devices, which want the machine for themselves.
  const results = await Promise.all(chosen.filter((c) => c.aside).map(runOne));
  for (const one of chosen.filter((c) => !c.aside)) results.push(await runOne(one));
  const passed = results.filter(Boolean).length;
  console.log(`${passed} passed, ${results.length - passed} failed`);
  return results.length - passed + (passed === 0 ? 1 : 0);
}

/** Attempts at a case that hears through a browser's devices. */
const ATTEMPTS = 5;

/**
 * A case, and again if it hears through a browser's devices and failed: on a loaded machine Chromium's microphone and
 * loudspeaker leave gaps of their own. A fault of ours comes every time.
 */
async function runOne(one) {
  const began = Date.now();
  let failure = await attempt(one);
  for (let left = one.name.startsWith("page:") ? ATTEMPTS - 1 : 0; failure && left > 0; left--) {
    console.log(`again   ${one.name}${failure}`);
    failure = await attempt(one);
  }
  console.log(`${failure ? "FAILED" : "ok    "}  ${one.name} (${((Date.now() - began) / 1000).toFixed(1)} s)${failure}`);
  return !failure;
}

/** Why it failed; empty: it did not. */
async function attempt({ run }) {
  const cleanup = [];
  let failure = "";
  const step = async (work, what) => {
    try {
      await withDeadline(Promise.resolve(work()), 60_000, what);
    } catch (error) {
      failure += `\n${String(error?.stack ?? error).replace(/^/gm, "        ")}`;
    }
  };
  await step(() => run({ after: (undo) => cleanup.push(undo) }), "the case");
  for (const undo of cleanup.reverse()) await step(undo, "tidying up");
  return failure;
}

export async function withDeadline(promise, ms, what = "the case") {
  let timer;
  const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error(`${what} took longer than ${ms / 1000} s`)), ms); });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Waits until `look` gives something that is true. */
export async function until(look, what, ms = 20_000) {
  const end = Date.now() + ms;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > end) throw new Error(`${what}: not within ${ms / 1000} s`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

const binary = process.env.VOXRELAY ?? joinPath(ROOT, "target/debug/voxrelay");

/** A relay with its embedded simulator, as its own process. */
export async function relay(after, config = "", args = []) {
  const file = joinPath(SCRATCH, `relay-${Math.random().toString(36).slice(2)}.toml`);
  writeFileSync(file, config);
  const env = { PATH: process.env.PATH };
  // A successor at the same address has it among its arguments.
  const listen = args.includes("--listen") ? [] : ["--listen", "127.0.0.1:0"];
  const process_ = spawn(binary, ["serve", ...listen, "--config", file, ...args], { env, stdio: ["ignore", "pipe", "pipe"] });
  let [out, log] = ["", ""];
  process_.stdout.on("data", (data) => { out += data; });
  process_.stderr.on("data", (data) => { log += data; });
  let asked = false;
  const stop = (signal = "SIGKILL") => new Promise((done) => {
    asked = true;
    if (process_.exitCode !== null || process_.signalCode !== null) return done();
    process_.once("exit", done);
    process_.kill(signal);
  });
  after(async () => {
    // A relay that has ended by itself has done something wrong, even where nobody has noticed.
    const ended = asked ? null : (process_.exitCode ?? process_.signalCode);
    const leaving = !asked && log.includes("leaving:");
    await stop();
    if (ended !== null || leaving) throw new Error(`the relay has ended by itself (${ended}): ${log}`);
  });
  const origin = await until(() => {
    if (process_.exitCode !== null) throw new Error(`the relay ended: ${log}`);
    return /http:\/\/\S+/.exec(out)?.[0];
  }, "the relay's address");
  return { origin, host: origin.slice("http://".length), stop, log: () => log };
}

/**
 * A relay that lets in one tenant, whose pages are those of `origins`. `ask`: a request with the tenant's key, or another
 * credential; `token`: a call token that grants this.
 */
export async function tenant(after, { origins = [], config } = {}) {
  const store = ["--store", joinPath(SCRATCH, `tenants-${Math.random().toString(36).slice(2)}.db`)];
  const listed = origins.flatMap((origin) => ["--origins", origin]);
  const add = ["tenant", "add", "acme", ...store, "--scopes", "call,token,secret,admin", ...listed];
  const key = execFileSync(binary, add, { env: { PATH: process.env.PATH }, stdio: ["ignore", "pipe", "pipe"] }).toString().trim();
  const server = await relay(after, config, store);
  const ask = (method, path, body, credential = key) => fetch(server.origin + path, {
    method, headers: { authorization: `Bearer ${credential}` }, ...(body && { body: JSON.stringify(body) }),
  });
  const token = async (grant = {}) => (await (await ask("POST", "/v1/tokens", grant)).json()).token;
  return { ...server, key, ask, token };
}

/**
 * A line to a relay that can be cut and mended; calls may go to another host (`voice`). It adds one file of the tests' own, since a browser takes the code of an
 * audio thread only from where the page came from.
 */
export async function line(after, host, voice = host) {
  const [hostname, port] = host.split(":");
  const sockets = new Set();
  let whole = true;
  const keep = (socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => sockets.delete(socket));
  };
  const server = createServer((asked, answer) => {
    if (asked.url === "/test/recorder.js") return answer.writeHead(200, { "content-type": "text/javascript" }).end(RECORDER);
    const { method, url: path, headers } = asked;
    const far = request({ hostname, port, method, path, headers }, (got) => {
      answer.writeHead(got.statusCode, got.headers);
      got.pipe(answer);
    });
    far.on("error", () => answer.destroy());
    asked.pipe(far);
  });
  server.on("connection", (near) => (whole ? keep(near) : near.destroy()));
  server.on("upgrade", (asked, near, first) => {
    const [name, number] = voice.split(":");
    const far = createConnection(Number(number), name);
    keep(far);
    const head = [`GET ${asked.url} HTTP/1.1`];
    for (let i = 0; i < asked.rawHeaders.length; i += 2) head.push(`${asked.rawHeaders[i]}: ${asked.rawHeaders[i + 1]}`);
    far.write(`${head.join("\r\n")}\r\n\r\n`);
    far.write(first);
    near.pipe(far).pipe(near);
    near.on("close", () => far.destroy());
    far.on("close", () => near.destroy());
  });
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  const cut = () => {
    whole = false;
    for (const socket of sockets) socket.destroy();
  };
  after(() => {
    cut();
    server.close();
  });
  const address = `127.0.0.1:${server.address().port}`;
  return { origin: `http://${address}`, cut, mend: () => { whole = true; } };
}

const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
  "--disable-sync", "--autoplay-policy=no-user-gesture-required", "--use-fake-device-for-media-stream",
];

/**
 * A browser whose microphone plays `wav` once, from the moment it is opened. `microphone`: "allowed" (the default),
 * "refused", or "none" (no device).
 */
export async function browser(after, wav, { microphone = "allowed", args: more = [] } = {}) {
  const args = [...FLAGS.filter((flag) => microphone !== "none" || !flag.includes("fake-device")), ...more];
  if (microphone === "allowed") args.push("--use-fake-ui-for-media-stream");
  if (microphone === "refused") args.push("--use-fake-ui-for-media-stream=deny");
  if (microphone === "none") args.push("--use-fake-ui-for-media-stream");
  if (wav) args.push(`--use-file-for-fake-audio-capture=${wav}%noloop`);
  const launched = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args, headless: true });
  after(() => launched.close());
  return launched;
}

/** Runs in the page before its own scripts: everything that goes to a loudspeaker is recorded. */
function record() {
  const heard = { pieces: [], rate: 0 };
  Object.assign(globalThis, { heard });
  const { addModule } = AudioWorklet.prototype;
  AudioWorklet.prototype.addModule = async function (...args) {
    await addModule.call(this, "/test/recorder.js");
    return addModule.apply(this, args);
  };
  const { connect } = AudioNode.prototype;
  AudioNode.prototype.connect = function (to, ...rest) {
    if (to instanceof AudioDestinationNode) {
      const recorder = new AudioWorkletNode(this.context, "test-recorder", { numberOfOutputs: 0 });
      recorder.port.onmessage = ({ data }) => heard.pieces.push(data);
      heard.rate = this.context.sampleRate;
      connect.call(this, recorder);
    }
    return connect.call(this, to, ...rest);
  };
}

const RECORDER = `registerProcessor("test-recorder", class extends AudioWorkletProcessor {
  process([[samples]]) {
    if (samples) this.port.postMessage(Int16Array.from(samples, (s) => Math.round(s * 32768)));
    return true;
  }
});`;

/** A page, by way of a {@link line}, with what it sends, gets and plays written down. */
export async function open(browser, origin, { path = "/", init, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1000, height: 760 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  const seen = { sent: [], got: [], texts: [], said: [], sockets: 0, problems: [] };
  page.on("console", (message) => {
    // A refused upgrade and a lost connection are for the console too; anything else is a fault of the page's.
    if (message.type() === "error" && !/WebSocket|Failed to load resource|ERR_/.test(message.text())) seen.problems.push(message.text());
  });
  page.on("pageerror", (error) => seen.problems.push(String(error.stack ?? error)));
  page.on("websocket", (socket) => {
    seen.sockets += 1;
    socket.on("framesent", ({ payload }) => {
      if (typeof payload === "string") seen.said.push({ at: Date.now(), ...JSON.parse(payload) });
      else seen.sent.push(payload);
    });
    socket.on("framereceived", ({ payload }) => {
      if (typeof payload === "string") seen.texts.push({ at: Date.now(), ...JSON.parse(payload) });
      else seen.got.push(payload);
    });
  });
  if (init) await page.addInitScript(init);
  await page.addInitScript(record);
  if (process.env.VERBOSE) {
    page.on("console", (message) => console.log("        page:", message.text()));
    page.on("pageerror", (error) => console.log("        page:", error.stack));
  }
  await page.goto(origin + path);
  const played = async () => {
    const bytes = await page.evaluate(() => {
      const { pieces } = globalThis.heard;
      const all = new Int16Array(pieces.reduce((n, p) => n + p.length, 0));
      let at = 0;
      for (const piece of pieces) {
        all.set(piece, at);
        at += piece.length;
      }
      let text = "";
      const raw = new Uint8Array(all.buffer);
      for (let i = 0; i < raw.length; i += 8192) text += String.fromCharCode(...raw.subarray(i, i + 8192));
      return btoa(text);
    });
    const raw = Buffer.from(bytes, "base64");
    return Int16Array.from({ length: raw.length >> 1 }, (_, i) => raw.readInt16LE(i * 2));
  };
  const message = (type, n = 1) => until(() => seen.texts.filter((t) => t.type === type)[n - 1], `${type} number ${n}`, 25_000);
  const mood = (word) => until(async () => (await page.textContent("#mood-word")) === word, `“${word}” on the screen`);
  const picture = async (name) => {
    if (PICTURES) await page.screenshot({ path: joinPath(PICTURES, `${name}.png`) });
  };
  return { page, seen, played, message, mood, picture };
}
