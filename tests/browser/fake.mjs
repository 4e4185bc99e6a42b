/**
 * A server of `voxrelay.v1` that does what a test tells it. It keeps the whole account of a resume, as the contract has it:
 * both sides' counts, single-use tokens, replay. Written from the contract, not from the client.
 */
import { createServer } from "node:http";
import { WebSocketServer } from "ws";

export class Fake {
  /** Sockets, oldest first. */ doors = [];
  /** Requests for an upgrade: address and subprotocols. */ asked = [];
  /** All messages of the client's that were taken, over all sockets of the call. */ taken = [];
  /** Answers plain GETs and upgrades with this status and error, while set. */ refusal = null;
  /** `null` in `ready.resume`, as the relay does today. */ resumable = true;
  /** Lets tokens lapse. */ forgetful = false;
  /** Called with each message that was taken. */ onmessage = () => {};
  #tokens = new Map();
  #waiting = [];

  static async start(after) {
    const fake = new Fake();
    fake.server = createServer((request, answer) => {
      fake.probes = (fake.probes ?? 0) + 1;
      fake.probe = request;
      const { status, error } = fake.refusal ?? { status: 200 };
      answer.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(error ? { error } : { ok: true }));
    });
    fake.sockets = new WebSocketServer({ noServer: true, handleProtocols: (offered) => (offered.has("voxrelay.v1") ? "voxrelay.v1" : false) });
    fake.server.on("upgrade", (request, socket, head) => {
      fake.asked.push({ url: request.url, protocols: request.headers["sec-websocket-protocol"] ?? "" });
      if (fake.refusal) return socket.end(`HTTP/1.1 ${fake.refusal.status} No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n`);
      fake.sockets.handleUpgrade(request, socket, head, (ws) => fake.#open(ws, new URL(request.url, "http://x")));
    });
    await new Promise((listening) => fake.server.listen(0, "127.0.0.1", listening));
    after(() => fake.stop());
    return fake;
  }

  get url() { return `ws://127.0.0.1:${this.server.address().port}/v1/voice`; }

  stop() {
    for (const ws of this.doors) ws.terminate();
    this.server.closeAllConnections();
    this.server.close();
  }

  /** The n-th socket, when it is there. */
  async door(n = 1) {
    while (this.doors.length < n) await new Promise((resolve) => this.#waiting.push(resolve));
    return this.doors[n - 1];
  }

  #open(ws, url) {
    this.doors.push(ws);
    const resume = url.searchParams.get("resume");
    if (resume === null) {
      this.sent = [];
      this.got = 0;
      this.acked = 0;
      this.call = `call_${this.doors.length}`;
    } else if (!this.#tokens.delete(resume) || this.forgetful) {
      ws.send(JSON.stringify({ type: "error", error: { code: "resume_refused", message: "this call cannot be resumed", retryable: false, request_id: "q1" } }));
      ws.close(4410, "resume_refused");
      for (const go of this.#waiting.splice(0)) go();
      return;
    }
    const token = `t${this.doors.length}`;
    this.#tokens.set(token, true);
    ws.on("message", (data, binary) => this.#take(ws, binary ? data : data.toString()));
    if (resume === null) {
      const audio = { format: url.searchParams.get("format") ?? "pcm16", rate: Number(url.searchParams.get("rate") ?? 24000) };
      ws.send(JSON.stringify({
        type: "ready", call: this.call, resume: this.resumable ? token : null, agent: url.searchParams.get("agent") ?? "default",
        audio: { in: audio, out: audio }, limits: { max_message_bytes: 1000, max_call_s: 60, resume_window_s: 30 },
      }));
    } else {
      const had = Number(url.searchParams.get("got"));
      if (had < this.acked || had > this.sent.length) throw new Error(`got=${had}, but ${this.acked} were acknowledged of ${this.sent.length}`);
      ws.send(JSON.stringify({ type: "resumed", call: this.call, resume: token, got: this.got }));
      for (const message of this.sent.slice(had)) ws.send(message);
    }
    this.now = ws;
    for (const go of this.#waiting.splice(0)) go();
  }

  #take(ws, message) {
    // What comes after the drop was decided is on a line that is dead.
    if (ws !== this.now || ws.dead) return;
    this.got += 1;
    this.taken.push(message);
    const known = typeof message === "string" ? JSON.parse(message) : {};
    if (known.type === "ack") this.acked = known.got;
    if (known.type === "ping") this.send({ type: "pong", t: known.t });
    if (known.type === "close") ws.close(1000);
    this.onmessage(message);
  }

  /** A message to the client; with a number, and kept for a resume. */
  send(message) {
    const data = message instanceof Uint8Array ? message : JSON.stringify(message);
    this.sent.push(data);
    if (this.now && !this.now.dead) this.now.send(data);
  }

  /** The line dies: nothing more is taken, and the socket ends without a close frame. */
  drop() {
    this.now.dead = true;
    this.now.terminate();
  }
}
