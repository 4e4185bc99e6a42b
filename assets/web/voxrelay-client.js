/**
 * A client of `voxrelay.v1` in one file. No dependency, no build step: copy it next to your page, or into your program.
 *
 * It runs in browsers and wherever else there is a `WebSocket` (Node 22 and newer; older ones with the package `ws` as
 * `options.WebSocket`). From top to bottom:
 *
 * | export | what it is | needs |
 * |---|---|---|
 * | {@link Call} | one call: audio and messages out, events in; reconnects and resumes by itself | a WebSocket |
 * | {@link CallError}, {@link closeInWords} | what went wrong and what to do about it, in words | |
 * | {@link encode}, {@link decode} | PCM16, mu-law, A-law | |
 * | {@link Resampler} | the same sound at another rate, piece by piece | |
 * | {@link Playout} | a queue to a loudspeaker that counts what was heard, to the sample | |
 * | {@link Speaker}, {@link Microphone} | this computer's own, in a browser | Web Audio |
 *
 * The same file is the AudioWorklet module that `Speaker` and `Microphone` load: see its last lines.
 *
 * ```js
 * import { Call, Microphone, Speaker, openAudio } from "./voxrelay-client.js";
 *
 * button.onclick = async () => {                       // browsers give sound and microphone to a click only
 *   const context = await openAudio(24000);
 *   const speaker = await Speaker.open({ context, rate: 24000 });
 *   const call = new Call({ agent: "default", speaker });
 *   call.on("transcript", ({ role, text, final }) => final && console.log(role, text));
 *   call.on("ended", ({ error }) => error && console.log(error.message, error.advice));
 *   await call.open();
 *   await Microphone.open({ context, rate: 24000, onaudio: (samples) => call.send(samples) });
 * };
 * ```
 *
 * The protocol itself, message by message: `src/client/thin.md` in voxrelay's source.
 *
 * @license Apache-2.0 OR MIT
 * @module
 */

/** The subprotocol that a call is opened with. */
export const PROTOCOL = "voxrelay.v1";
/** Sample rates of each format; the first is the default. */
export const RATES = Object.freeze({
  pcm16: Object.freeze([24000, 8000, 16000, 48000]),
  mulaw: Object.freeze([8000]),
  alaw: Object.freeze([8000]),
  opus: Object.freeze([48000]),
});

/** A socket that neither opens nor fails is given up after so long, ms. */
const CONNECT_TIMEOUT = 10_000;
/** A server that has been silent for so long is asked whether it is there, ms. */
const QUIET = 5_000;
/** And has so long to answer, ms. */
const PONG_PATIENCE = 8_000;
/** What was received is acknowledged so often, ms. */
const ACK_EVERY = 1_000;
/** First wait before another try, doubled by each, and the longest, ms. */
const BACKOFF = [250, 8_000];
/** A connection that held for so long was a good one: the backoff begins anew, ms. */
const STEADY = 10_000;
/** Audio kept while there is no connection, ms; older audio is dropped. */
const OFFLINE_AUDIO = 15_000;
/** Messages kept until the server has acknowledged them, bytes; past it the call can no longer be resumed. */
const KEEP_BYTES = 16 << 20;
/** The server's goodbye is waited for so long, ms. */
const GOODBYE = 2_000;
/** `max_message_bytes` until the server has said its own. */
const MAX_MESSAGE = 256 << 10;

/**
 * @typedef {"pcm16" | "mulaw" | "alaw" | "opus"} Codec
 * @typedef {{ format: Codec, rate: number }} AudioFormat
 * @typedef {"idle" | "connecting" | "open" | "reconnecting" | "ended"} State
 */

/**
 * @typedef {object} CallOptions
 * @property {string | URL} [url] Where: `ws:`, `wss:`, `http:` or `https:`, in a browser also relative to the page.
 *   Default: `/v1/voice` of the page's own server.
 * @property {string} [agent] Who answers.
 * @property {Codec} [format] What is sent.
 * @property {number} [rate] Samples per second of what is sent.
 * @property {Codec} [outFormat] What is wanted back; as `format` where absent.
 * @property {number} [outRate] Samples per second of what is wanted back.
 * @property {"auto" | "manual"} [turns] `manual`: push-to-talk, with {@link Call#commit}.
 * @property {"realtime" | "fast"} [pace] `fast`: reply audio as quickly as it comes.
 * @property {string | (() => string | Promise<string>)} [token] Credential, or a function that gets a new one; it is asked
 *   before every connection.
 * @property {() => string | Promise<string>} [getToken] Gets a new credential before the call's own expires (`token_expiring`): the
 *   call goes on with it, without a pause. Where `token` is not a function it is also asked once that one is too old.
 * @property {Loudspeaker} [speaker] Where replies are played: a {@link Speaker}, or anything that has its three members.
 * @property {boolean} [reconnect] Repair a connection that drops. Default: true.
 * @property {number} [maxAttempts] Tries in a row before a call is given up. Default: 12, about a minute.
 * @property {any} [WebSocket] The class to use. Default: the runtime's own.
 * @property {() => number} [random] 0 to 1, for jitter. Default: `Math.random`.
 */

/**
 * What a call plays on. {@link Speaker} is one.
 * @typedef {object} Loudspeaker
 * @property {(reply: string, samples: Int16Array) => void} play Queue this.
 * @property {(reply: string) => number | Promise<number>} clear Drop what is queued of this reply and take no more of
 *   it; gives how many ms of it were heard.
 * @property {((reply: string, ms: number) => void) | null} onplayed Set by the call; called now and then with how much of a
 *   reply was heard, and once when it is through.
 * @property {() => void} [reset] Another call begins: forget all replies (their names come again).
 */

/**
 * The first message of a call.
 * @typedef {object} Ready
 * @property {string} call Its id, as in the server's log.
 * @property {string | null} resume
 * @property {string} agent
 * @property {{ in: AudioFormat, out: AudioFormat }} audio What was agreed.
 * @property {{ max_message_bytes: number, max_call_s: number, resume_window_s: number }} limits
 */

/**
 * One call. Make it, listen with {@link Call#on}, then {@link Call#open} it.
 *
 * Events: every message of the server under its `type` (`ready`, `resumed`, `speech_started`, `speech_stopped`, `clear`,
 * `transcript`, `reply_started`, `reply_ended`, `tool_call`, `ack`, `notice`, `error`, `draining`, `pong`), and
 *
 * | event | fields | when |
 * |---|---|---|
 * | `audio` | `reply`, `samples` (Int16Array; null for Opus), `bytes` | reply audio; never of a reply that was cleared |
 * | `state` | `state` | it changed |
 * | `reconnecting` | `attempt`, `delayMs`, `resume`, `error` | the connection was lost and is being repaired. `resume`: the same call will go on; otherwise a new one begins, which knows nothing of this one |
 * | `reconnected` | `resumed` | it is back |
 * | `ended` | `error` (a {@link CallError}, or null where the call was ended as asked) | the last event |
 */
export class Call {
  /** @type {CallOptions} */ #options;
  /** @type {Map<string, Set<(event: any) => void>>} */ #listeners = new Map();
  /** @type {State} */ #state = "idle";
  /** @type {any} */ #socket = null;
  /** @type {Ready | null} */ #ready = null;
  /** Whether `ready` or `resumed` came on this socket. */ #live = false;
  /** @type {{ resolve: (ready: Ready) => void, reject: (error: CallError) => void } | null} */ #opening = null;
  /** @type {any} The server's last `error` on this socket. */ #error = null;
  #closing = false;
  /** @type {string | undefined} What the call was last opened or renewed with. */ #credential;
  /** It is too old. */ #expired = false;
  /** It is from `getToken`, and nothing was opened with it yet. */ #fresh = false;

  // Resume: both sides count the messages of the call.
  /** @type {string | null} */ #resume = null;
  #received = 0;
  #acknowledged = 0;
  #sent = 0;
  /** @type {{ n: number, data: string | Uint8Array }[]} Sent, but not acknowledged by the server. */ #kept = [];
  #keptBytes = 0;
  /** @type {{ kind: string, data: string | Uint8Array, ms: number }[]} To be sent once there is a connection. */ #waiting = [];
  /** @type {Map<string, number>} Positions that could not be told yet. */ #unplayed = new Map();

  // Replies.
  /** @type {string | null} The one that binary messages belong to. */ #reply = null;
  /** @type {string[]} Started and not ended, oldest first. */ #open = [];
  /** @type {Set<string>} */ #cleared = new Set();
  /** @type {Map<string, number>} What was last reported as heard. */ #reported = new Map();
  /** @type {number | null} Half a sample. */ #odd = null;

  #attempt = 0;
  #liveSince = 0;
  #heardAt = 0;
  /** @type {number | null} */ #pingAt = null;
  /** @type {any} */ #ticker = null;
  /** @type {any} */ #timer = null;
  /** @type {(() => void) | null} Try now instead of waiting any longer. */ #hurry = null;

  /** @param {CallOptions} [options] */
  constructor(options = {}) {
    this.#options = options;
    const { speaker } = options;
    if (speaker) speaker.onplayed = (reply, ms) => this.played(reply, ms);
  }

  /** @type {State} */
  get state() { return this.#state; }
  /** What was agreed, once there was a `ready`. @type {Ready | null} */
  get ready() { return this.#ready; }
  /** Replies that began and have not ended, oldest first. */
  get replies() { return [...this.#open]; }

  /**
   * Calls `listener` for every event of this type; `"*"`: for every event, with the type in `event.type`.
   * @param {string} type
   * @param {(event: any) => void} listener
   * @returns {() => void} Stops it.
   */
  on(type, listener) {
    const set = this.#listeners.get(type) ?? new Set();
    this.#listeners.set(type, set.add(listener));
    return () => void set.delete(listener);
  }

  /**
   * Connects. Later drops are repaired by themselves; a first connection that fails is not tried again.
   * @returns {Promise<Ready>}
   * @throws {CallError}
   */
  open() {
    if (this.#state !== "idle") return Promise.reject(new CallError("a call is opened once; make a new one"));
    this.#become("connecting");
    const opened = new Promise((resolve, reject) => { this.#opening = { resolve, reject }; });
    globalThis.addEventListener?.("online", this.#online);
    this.#ticker = setInterval(() => this.#tick(), 1_000);
    void this.#dial();
    return opened;
  }

  /**
   * Sends audio: samples (Int16Array, or Float32Array from -1 to 1) at the agreed rate, or bytes in the agreed format
   * (Uint8Array, ArrayBuffer; cut anywhere, but one Opus packet at a time). Kept for a while when there is no connection.
   * @param {Int16Array | Float32Array | Uint8Array | ArrayBuffer} audio
   */
  send(audio) {
    const { format, rate } = this.#ready?.audio.in ?? inputOf(this.#options);
    const bytes = audio instanceof ArrayBuffer ? new Uint8Array(audio.slice(0))
      : audio instanceof Uint8Array ? audio.slice()
      : encode(audio instanceof Float32Array ? toInt16(audio) : audio, format);
    if (bytes.length === 0) return;
    // Opus packets may not be cut, and are far below any limit.
    const piece = format === "opus" ? bytes.length : this.#ready?.limits.max_message_bytes ?? MAX_MESSAGE;
    const bytesPerMs = (rate * (format === "pcm16" ? 2 : 1)) / 1_000;
    for (let at = 0; at < bytes.length; at += piece) {
      const part = bytes.subarray(at, at + piece);
      this.#send("audio", part, format === "opus" ? 20 : part.length / bytesPerMs);
    }
  }

  /** Manual turns: the turn is complete, answer it. */
  commit() { this.#tell({ type: "commit" }); }

  /** Manual turns: forget the audio since the last turn. */
  discard() { this.#tell({ type: "discard" }); }

  /** A typed turn. @param {string} text */
  text(text) { this.#tell({ type: "text", text }); }

  /** Answers a `tool_call`. @param {string} callId @param {string} output As the model shall read it. */
  toolResult(callId, output) { this.#tell({ type: "tool_result", call_id: callId, output }); }

  /** Renews the credential of this call. @param {string} token */
  renew(token) {
    this.#credential = token;
    this.#tell({ type: "token", token });
  }

  /** Answered by the event `pong`. @param {any} [t] Comes back. */
  ping(t = null) { this.#tell({ type: "ping", t }); }

  /**
   * Stops the reply that plays, and tells the server how much of it was really heard.
   * @param {number} [playedMs] Without a `speaker`: how much that was, if you know.
   * @returns {Promise<boolean>} Whether there was one.
   */
  async interrupt(playedMs) {
    const reply = this.#open.find((r) => !this.#cleared.has(r));
    if (reply === undefined) return false;
    this.#cleared.add(reply);
    const heard = this.#options.speaker ? await this.#options.speaker.clear(reply) : playedMs;
    this.#tell({ type: "interrupt", reply, ...(heard === undefined ? {} : { played_ms: Math.round(heard) }) });
    return true;
  }

  /**
   * Playback position of a reply. A `speaker` does this by itself.
   * @param {string} reply @param {number} ms Heard of it so far.
   */
  played(reply, ms) {
    const heard = Math.round(ms);
    if (heard <= (this.#reported.get(reply) ?? 0)) return;
    this.#reported.set(reply, heard);
    if (this.#live) this.#write(JSON.stringify({ type: "played", reply, ms: heard }));
    else this.#unplayed.set(reply, heard); // only the latest counts
  }

  /** While `reconnecting`: tries now instead of waiting any longer, unless the server has asked for the wait. */
  retry() { this.#hurry?.(); }

  /** Ends the call for good. @returns {Promise<void>} When it has ended. */
  close() {
    if (this.#state === "ended") return Promise.resolve();
    this.#closing = true;
    const ended = /** @type {Promise<void>} */ (new Promise((resolve) => { this.on("ended", () => resolve()); }));
    if (!this.#live) {
      this.#end(null);
    } else {
      this.#write('{"type":"close"}');
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#end(null), GOODBYE);
    }
    return ended;
  }

  // ---- connecting

  async #dial() {
    this.#error = null;
    this.#live = false;
    let socket;
    try {
      await this.#identify();
    } catch (cause) {
      if (this.#state === "ended") return;
      // Whoever gives credentials may be out of reach for as long as the server is.
      this.#failed(new CallError(`there is no credential: ${text(cause)}`, { cause, retryable: true }), "again");
      return;
    }
    if (this.#state === "ended") return;
    try {
      const credential = this.#credential;
      const Socket = this.#options.WebSocket ?? globalThis.WebSocket;
      if (!Socket) throw new CallError("there is no WebSocket here", { advice: "Pass one as options.WebSocket." });
      const protocols = credential ? [PROTOCOL, `voxrelay.token.${credential}`] : [PROTOCOL];
      socket = new Socket(address(this.#options, "ws", this.#resume, this.#received), protocols);
    } catch (cause) {
      this.#failed(cause instanceof CallError ? cause : new CallError(`the call cannot be made: ${text(cause)}`, { cause }));
      return;
    }
    this.#socket = socket;
    socket.binaryType = "arraybuffer";
    const own = (/** @type {(event: any) => void} */ handler) => (/** @type {any} */ event) => {
      if (this.#socket === socket) handler(event);
    };
    socket.onmessage = own(({ data }) => this.#take(data));
    socket.onclose = own(({ code, reason }) => void this.#dropped(code, reason));
    socket.onerror = () => {}; // a close follows, which says as much
    this.#timer = setTimeout(() => {
      if (this.#socket === socket && !this.#live) void this.#dropped(1006, "no answer");
    }, CONNECT_TIMEOUT);
  }

  /** What the next connection is opened with. */
  async #identify() {
    const { token, getToken } = this.#options;
    this.#fresh = this.#expired && typeof token !== "function" && getToken !== undefined;
    if (typeof token === "function") this.#credential = await token();
    else if (this.#fresh) this.#credential = await getToken?.();
    else this.#credential ??= token;
    this.#expired = false;
  }

  /** The credential is good for a moment only: a new one for the same call. */
  async #renew() {
    try {
      const token = await this.#options.getToken?.();
      if (token && token !== this.#credential) this.renew(token);
    } catch {
      // The one before stays in force to its end; then it is tried again.
    }
  }

  /** The socket is gone, or as good as gone. @param {number} code @param {string} reason */
  async #dropped(code, reason) {
    const said = this.#error;
    const wasLive = this.#live;
    this.#abandon();
    if (this.#closing || code === 1000) return this.#end(null);
    // Browsers do not say why an upgrade was refused; a plain GET does.
    const refusal = !wasLive && !said && code === 1006 ? await this.#ask() : null;
    if (this.#state === "ended") return;
    const error = refusal ?? (wasLive || said || code !== 1006 ? CallError.ofClose(code, reason, said) : unanswered());
    if (code === 4410 || error.code === "resume_refused") {
      this.#resume = null; // the call is gone: begin a new one
      this.#failed(error, "new");
    } else {
      const { then } = closeInWords(refusal ? 1006 : code);
      const stop = refusal ? !refusal.retryable : then === "stop" || (said !== null && said.retryable === false);
      // With a function for a token the next try has a new one.
      const { token, getToken } = this.#options;
      this.#expired = then === "token" || refusal?.status === 401;
      const renewable = typeof token === "function" ? then === "token" : this.#expired && getToken !== undefined && !this.#fresh;
      this.#failed(error, (stop || then === "token") && !renewable ? "stop" : "again");
    }
  }

  /**
   * What to do after a connection that is lost: try again, or end.
   * @param {CallError} error @param {"again" | "new" | "stop"} [then]
   */
  #failed(error, then = "stop") {
    const max = this.#options.maxAttempts ?? 12;
    const first = this.#ready === null;
    if (first || then === "stop" || this.#options.reconnect === false || this.#attempt >= max) return this.#end(error);
    if (this.#liveSince && now() - this.#liveSince > STEADY) this.#attempt = 0;
    this.#liveSince = 0;
    this.#attempt += 1;
    const [least, most] = BACKOFF;
    const backoff = Math.min(most, least * 2 ** (this.#attempt - 1));
    // Half fixed, half chance: all clients of a server that died do not come back in one moment.
    const jittered = backoff * (0.5 + 0.5 * (this.#options.random ?? Math.random)());
    const delayMs = Math.round(then === "new" ? 0 : Math.max(error.retryAfterMs ?? 0, jittered));
    const resume = this.#resume !== null;
    if (!resume) this.#forget();
    this.#become("reconnecting");
    this.#emit("reconnecting", { attempt: this.#attempt, delayMs, resume, error });
    if (this.#state !== "reconnecting") return; // a listener has closed it
    const go = () => {
      clearTimeout(this.#timer);
      this.#hurry = null;
      void this.#dial();
    };
    this.#timer = setTimeout(go, delayMs);
    this.#hurry = error.retryAfterMs ? null : go;
  }

  /** The call that was is over and a new one begins: what belongs to the old one alone is dropped. */
  #forget() {
    this.#received = this.#acknowledged = this.#sent = this.#keptBytes = 0;
    this.#kept = [];
    this.#waiting = this.#waiting.filter(({ kind }) => kind === "audio" || kind === "commit" || kind === "discard" || kind === "text");
    this.#unplayed.clear();
    this.#reported.clear();
    this.#cleared.clear();
    this.#open = [];
    this.#reply = this.#odd = null;
    this.#options.speaker?.reset?.();
  }

  #online = () => this.retry();

  /** Why there is no call, by a plain GET; null: nobody answers, or there would be one by now. */
  async #ask() {
    try {
      const response = await fetch(address(this.#options, "http", null, 0), {
        headers: this.#credential ? { authorization: `Bearer ${this.#credential}` } : {},
        signal: AbortSignal.timeout(5_000),
      });
      const body = await response.json();
      return body?.error ? CallError.ofError(body.error, response.status) : null;
    } catch {
      return null;
    }
  }

  #abandon() {
    const socket = this.#socket;
    this.#socket = null;
    this.#live = false;
    this.#pingAt = null;
    clearTimeout(this.#timer);
    try { socket?.close(); } catch { /* it never opened */ }
  }

  /** @param {CallError | null} error */
  #end(error) {
    if (this.#state === "ended") return;
    clearInterval(this.#ticker);
    this.#abandon();
    globalThis.removeEventListener?.("online", this.#online);
    this.#hurry = null;
    this.#waiting = [];
    this.#become("ended");
    this.#opening?.reject(error ?? new CallError("the call was ended before it began"));
    this.#opening = null;
    this.#emit("ended", { error });
  }

  // ---- what comes

  /** @param {string | ArrayBuffer} data */
  #take(data) {
    this.#heardAt = now();
    this.#pingAt = null;
    if (typeof data !== "string") {
      this.#received += 1;
      return this.#audio(new Uint8Array(data));
    }
    /** @type {any} */ let message;
    try { message = JSON.parse(data); } catch { message = {}; }
    const type = typeof message?.type === "string" ? message.type : "";
    if (type === "ready") return this.#begin(message);
    if (type === "resumed") return this.#goOn(message);
    this.#received += 1;
    this.#note(type, message);
    this.#emit(type || "unknown", message);
  }

  /** What a message means to the account of replies and of what is kept. @param {string} type @param {any} message */
  #note(type, message) {
    const { reply } = message;
    if (type === "error") {
      this.#error = message.error ?? null;
    } else if (type === "ack") {
      this.#release(message.got);
    } else if (type === "notice" && message.code === "token_expiring") {
      void this.#renew();
    } else if (type === "reply_started") {
      this.#reply = reply;
      this.#odd = null;
      this.#open.push(reply);
    } else if (type === "reply_ended") {
      this.#open = this.#open.filter((r) => r !== reply);
      this.#reported.delete(reply);
      if (reply !== this.#reply) this.#cleared.delete(reply);
    } else if (type === "clear") {
      void this.#clear(reply);
    }
  }

  /** @param {string} reply */
  async #clear(reply) {
    this.#cleared.add(reply);
    const heard = await this.#options.speaker?.clear(reply);
    if (heard !== undefined) this.played(reply, heard);
  }

  /** @param {Uint8Array} bytes */
  #audio(bytes) {
    const reply = this.#reply ?? "";
    if (this.#cleared.has(reply)) return;
    const { format } = this.#ready?.audio.out ?? { format: "pcm16" };
    let whole = bytes;
    if (format === "pcm16" && (this.#odd !== null || bytes.length % 2 === 1)) {
      whole = new Uint8Array(this.#odd === null ? bytes : [this.#odd, ...bytes]);
      this.#odd = whole.length % 2 === 1 ? /** @type {number} */ (whole.at(-1)) : null;
      whole = whole.subarray(0, whole.length & ~1);
    }
    const samples = format === "opus" ? null : decode(whole, format);
    if (samples) this.#options.speaker?.play(reply, samples);
    this.#emit("audio", { reply, samples, bytes });
  }

  /** @param {any} message */
  #begin(message) {
    const again = this.#ready !== null;
    this.#ready = message;
    this.#forget();
    this.#connected(message.resume);
    this.#opening?.resolve(message);
    this.#opening = null;
    this.#emit("ready", message);
    if (again) this.#emit("reconnected", { resumed: false });
  }

  /** @param {any} message */
  #goOn(message) {
    this.#release(message.got);
    const again = this.#kept;
    // Numbers go by what is written to the new socket: the first after `got` is the first of what is sent again.
    this.#sent = message.got;
    this.#kept = [];
    this.#keptBytes = 0;
    this.#resume = message.resume ?? null;
    for (const { data } of again) this.#write(data);
    this.#connected(this.#resume);
    this.#emit("resumed", message);
    this.#emit("reconnected", { resumed: true });
  }

  /** @param {string | null} resume */
  #connected(resume) {
    clearTimeout(this.#timer);
    this.#resume = resume ?? null;
    this.#live = true;
    this.#fresh = false;
    this.#liveSince = this.#heardAt = now();
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const { data } of waiting) this.#write(data);
    for (const [reply, ms] of this.#unplayed) this.#write(JSON.stringify({ type: "played", reply, ms }));
    this.#unplayed.clear();
    this.#become("open");
  }

  // ---- what goes

  /** @param {Record<string, any>} message */
  #tell(message) { this.#send(message.type, JSON.stringify(message), 0); }

  /** @param {string} kind @param {string | Uint8Array} data @param {number} ms Of audio. */
  #send(kind, data, ms) {
    if (this.#state === "idle" || this.#state === "ended" || this.#closing) return;
    if (this.#live) return this.#write(data);
    this.#waiting.push({ kind, data, ms });
    let queued = this.#waiting.reduce((sum, m) => sum + m.ms, 0);
    while (queued > OFFLINE_AUDIO) {
      const [oldest] = this.#waiting.splice(this.#waiting.findIndex((m) => m.kind === "audio"), 1);
      queued -= oldest?.ms ?? queued;
    }
  }

  /** @param {string | Uint8Array} data */
  #write(data) {
    this.#sent += 1;
    if (this.#resume !== null) {
      this.#kept.push({ n: this.#sent, data });
      this.#keptBytes += data.length;
      if (this.#keptBytes > KEEP_BYTES) {
        this.#resume = null; // a server that acknowledges nothing: what it lacks could not be sent again
        this.#kept = [];
        this.#keptBytes = 0;
      }
    }
    if (this.#socket?.readyState === 1) this.#socket.send(data); // otherwise its close is on the way
  }

  /** The server has so many of our messages. @param {number} got */
  #release(got) {
    let done = 0;
    for (const { n, data } of this.#kept) {
      if (n > got) break;
      this.#keptBytes -= data.length;
      done += 1;
    }
    this.#kept.splice(0, done);
  }

  /** Once a second: acknowledge, and look whether the server is still there. */
  #tick() {
    if (!this.#live) return;
    const at = now();
    if (this.#pingAt !== null && at - this.#pingAt > PONG_PATIENCE) {
      void this.#dropped(1006, `nothing came for ${Math.round((at - this.#heardAt) / 1_000)} s`);
      return;
    }
    if (this.#pingAt === null && at - this.#heardAt > QUIET) {
      this.#pingAt = at;
      this.#write('{"type":"ping","t":null}');
    }
    if (this.#resume !== null && this.#received > this.#acknowledged && !this.#closing) {
      this.#acknowledged = this.#received;
      this.#write(JSON.stringify({ type: "ack", got: this.#received }));
    }
  }

  /** @param {State} state */
  #become(state) {
    if (this.#state === state) return;
    this.#state = state;
    this.#emit("state", { state });
  }

  /** @param {string} type @param {any} event */
  #emit(type, event) {
    for (const listener of this.#listeners.get(type) ?? []) listener(event);
    for (const listener of this.#listeners.get("*") ?? []) listener({ ...event, type });
  }
}

/** What is sent where nothing was agreed yet. @param {CallOptions} options @returns {AudioFormat} */
function inputOf({ format = "pcm16", rate }) {
  return { format, rate: rate ?? RATES[format]?.[0] ?? 24000 };
}

/**
 * The address of a call, or of the plain GET that runs the same checks.
 * @param {CallOptions} options @param {"ws" | "http"} scheme @param {string | null} resume @param {number} got
 */
function address(options, scheme, resume, got) {
  const url = new URL(options.url ?? "/v1/voice", globalThis.location?.href);
  url.protocol = scheme + (url.protocol === "https:" || url.protocol === "wss:" ? "s:" : ":");
  url.hash = "";
  const { agent, format, rate, outFormat, outRate, turns, pace } = options;
  const fields = resume === null
    ? { agent, format, rate, out_format: outFormat, out_rate: outRate, turns, pace }
    : { resume, got };
  for (const [name, value] of Object.entries(fields)) {
    if (value !== undefined) url.searchParams.set(name, String(value));
  }
  return url.href;
}

function unanswered() {
  return new CallError("The server does not answer.", {
    advice: "Check the network, and whether the server is running.", code: "unreachable", closeCode: 1006, retryable: true,
  });
}

/** Milliseconds that never run backwards. */
function now() { return performance.now(); }

/** @param {unknown} cause */
function text(cause) { return cause instanceof Error ? cause.message : String(cause); }

// ---------------------------------------------------------------------------------------------------------------------
// Words

/**
 * What each close code means and what comes next. `then`: `again` (the same call where it can be resumed, otherwise a new
 * one), `token` (again, with a new credential), `stop`.
 * @type {Readonly<Record<number, { what: string, advice: string, then: "again" | "token" | "stop" }>>}
 */
export const CLOSE_CODES = Object.freeze({
  1000: { what: "The call was ended.", advice: "", then: "stop" },
  1001: { what: "The server is going away.", advice: "Another one may take the call in a moment.", then: "again" },
  1002: { what: "The server did not understand how this client frames its messages.", advice: "This client must be mended.", then: "stop" },
  1003: { what: "The server cannot read this audio.", advice: "Send the format that was agreed.", then: "stop" },
  1006: { what: "The connection was lost.", advice: "Check the network, and whether the server is running.", then: "again" },
  1007: { what: "The server got text that is not UTF-8.", advice: "This client must be mended.", then: "stop" },
  1008: { what: "The server ended the call because of its rules.", advice: "Too many messages, or too many bad ones: send fewer.", then: "stop" },
  1009: { what: "A message was too large for the server.", advice: "Send smaller messages.", then: "again" },
  1011: { what: "The server had a fault of its own.", advice: "Its log has more under the call's id.", then: "again" },
  1013: { what: "The server has no room for another call.", advice: "Wait a little and call again.", then: "again" },
  4401: { what: "The credential has expired or was taken back.", advice: "Get a new one and call again.", then: "token" },
  4402: { what: "The budget for calls is used up.", advice: "Ask whoever runs the server.", then: "stop" },
  4403: { what: "This credential may not do that.", advice: "Ask whoever runs the server.", then: "stop" },
  4408: { what: "The call was silent for too long.", advice: "Call again when you are ready.", then: "again" },
  4409: { what: "The call goes on somewhere else.", advice: "It was resumed on another connection; this one is closed.", then: "stop" },
  4410: { what: "The call could not be resumed.", advice: "Begin a new one.", then: "again" },
  4429: { what: "There are too many calls, or too much audio at once.", advice: "Wait a little and call again.", then: "again" },
  4440: { what: "The longest time of a call was reached.", advice: "Begin a new one.", then: "stop" },
  4502: { what: "The model service failed.", advice: "Wait a little and call again. If it stays so, the server's log says why.", then: "again" },
  4503: { what: "The model service is down.", advice: "Wait a little and call again.", then: "again" },
  4504: { what: "The model service did not answer in time.", advice: "Wait a little and call again.", then: "again" },
  4508: { what: "This client took its audio too slowly.", advice: "Choose a lower rate, or a smaller format such as mulaw.", then: "again" },
});

/**
 * A close code in words. Codes that are not in the table are taken for a lost connection.
 * @param {number} code
 */
export function closeInWords(code) {
  return CLOSE_CODES[code] ?? {
    what: `The connection was closed with the unknown code ${code}.`, advice: "Call again.", then: /** @type {const} */ ("again"),
  };
}

/** What to do about an error code, where the server's message does not say it. @type {Record<string, string>} */
const ADVICE = {
  unknown_agent: "Choose another agent.",
  invalid_query: "Choose another setting.",
  unauthorized: "Give a valid credential.",
  token_expired: "Get a new credential and call again.",
  forbidden: "Open the page that this server itself serves, or ask whoever runs it.",
  overloaded: "Wait a little and call again.",
  rate_limited: "Wait a little and call again.",
  concurrency_limited: "End another call first, or wait.",
  budget_exhausted: "Ask whoever runs the server.",
  upstream_auth: "The server's own key for the model service is not accepted: whoever runs it must change it.",
  upstream_refused: "The model service does not take this request: whoever runs the server must look at its settings.",
  upstream_unavailable: "Wait a little and call again.",
  upstream_timeout: "Wait a little and call again.",
  resume_refused: "Begin a new call.",
};

/** What went wrong (`message`) and what to do (`advice`), in words. */
export class CallError extends Error {
  /**
   * @param {string} message
   * @param {{ advice?: string, code?: string, closeCode?: number, status?: number, retryable?: boolean,
   *   retryAfterMs?: number, field?: string, requestId?: string, cause?: unknown }} [more]
   */
  constructor(message, more = {}) {
    super(message, more.cause === undefined ? undefined : { cause: more.cause });
    this.name = "CallError";
    /** What to do about it; may be empty. */ this.advice = more.advice ?? "";
    /** The protocol's `error.code`, or one of this file's own. */ this.code = more.code;
    /** The WebSocket's close code, where there was one. */ this.closeCode = more.closeCode;
    /** The HTTP status, where the call was refused before it began. */ this.status = more.status;
    /** Whether the same may work later. */ this.retryable = more.retryable ?? false;
    /** And after how long. */ this.retryAfterMs = more.retryAfterMs;
    /** The setting that was wrong. */ this.field = more.field;
    /** Quote this to whoever runs the server. */ this.requestId = more.requestId;
  }

  /** From the server's own `error`. @param {any} error @param {number} [status] */
  static ofError(error, status) {
    const message = String(error.message ?? error.code ?? "the server said no");
    return new CallError(message[0]?.toUpperCase() + message.slice(1) + (/[.!?]$/.test(message) ? "" : "."), {
      advice: ADVICE[error.code] ?? (error.retryable ? "Wait a little and call again." : ""),
      code: error.code, status, retryable: error.retryable === true, retryAfterMs: error.retry_after_ms,
      field: error.field, requestId: error.request_id,
    });
  }

  /** From a close, and the `error` before it. @param {number} code @param {string} reason @param {any} said */
  static ofClose(code, reason, said) {
    const { what, advice, then } = closeInWords(code);
    const own = said ? CallError.ofError(said) : null;
    const detail = own ? ` ${own.message}` : code === 1006 && reason ? ` (${reason})` : "";
    return new CallError(what + detail, {
      advice: (own && ADVICE[own.code ?? ""]) || advice, code: own?.code, closeCode: code, retryable: own?.retryable ?? then === "again",
      retryAfterMs: own?.retryAfterMs, field: own?.field, requestId: own?.requestId,
    });
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Formats

/** @param {Float32Array} samples From -1 to 1; what is beyond is cut. @returns {Int16Array} */
export function toInt16(samples) {
  return Int16Array.from(samples, (s) => Math.max(-32768, Math.min(32767, Math.round(s * 32768))));
}

/** @param {Int16Array} samples @returns {Float32Array} */
export function toFloat32(samples) {
  return Float32Array.from(samples, (s) => s / 32768);
}

/**
 * Samples as bytes of a format: little-endian PCM16, or G.711.
 * @param {Int16Array} samples @param {Codec} [format] @returns {Uint8Array}
 */
export function encode(samples, format = "pcm16") {
  if (format === "mulaw") return Uint8Array.from(samples, muLaw);
  if (format === "alaw") return Uint8Array.from(samples, aLaw);
  if (format !== "pcm16") throw new CallError(`cannot encode ${format}; allowed: pcm16, mulaw, alaw`);
  const bytes = new Uint8Array(samples.length * 2);
  const view = new DataView(bytes.buffer);
  samples.forEach((sample, i) => view.setInt16(i * 2, sample, true));
  return bytes;
}

/**
 * Bytes of a format as samples. Half a sample at the end is left out.
 * @param {Uint8Array} bytes @param {Codec} [format] @returns {Int16Array}
 */
export function decode(bytes, format = "pcm16") {
  if (format === "mulaw") return Int16Array.from(bytes, fromMuLaw);
  if (format === "alaw") return Int16Array.from(bytes, fromALaw);
  if (format !== "pcm16") throw new CallError(`cannot decode ${format}; allowed: pcm16, mulaw, alaw`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Int16Array.from({ length: bytes.length >> 1 }, (_, i) => view.getInt16(i * 2, true));
}

// G.711, rounded as the ITU's own reference (G.191) does. The highest bit of a code says "positive".

/** @param {number} sample @returns {number} */
function muLaw(sample) {
  // Magnitudes have 14 bits here, negative ones as one's complement; 33 is the bias.
  const magnitude = Math.min((sample < 0 ? ~sample >> 2 : sample >> 2) + 33, 0x1fff);
  const segment = 26 - Math.clz32(magnitude); // 0 to 7: where the highest bit is
  const code = (segment << 4) | ((magnitude >> (segment + 1)) & 0x0f);
  return ~code & (sample < 0 ? 0x7f : 0xff);
}

/** @param {number} code @returns {number} */
function fromMuLaw(code) {
  const bits = ~code;
  const magnitude = ((((bits & 0x0f) << 3) + 0x84) << ((bits >> 4) & 7)) - 0x84;
  return code & 0x80 ? magnitude : -magnitude;
}

/** @param {number} sample @returns {number} */
function aLaw(sample) {
  const magnitude = (sample < 0 ? ~sample : sample) >> 4; // 12 bits, of which the first segment takes 5
  const segment = Math.max(0, 28 - Math.clz32(magnitude | 1)); // of magnitudes from 16 on
  const code = magnitude < 16 ? magnitude : (segment << 4) | ((magnitude >> (segment - 1)) & 0x0f);
  return (code | (sample < 0 ? 0 : 0x80)) ^ 0x55;
}

/** @param {number} code @returns {number} */
function fromALaw(code) {
  const bits = code ^ 0x55;
  const segment = (bits >> 4) & 7;
  const mantissa = ((bits & 0x0f) << 4) + 8;
  const magnitude = segment === 0 ? mantissa : (mantissa + 0x100) << (segment - 1);
  return bits & 0x80 ? magnitude : -magnitude;
}

// ---------------------------------------------------------------------------------------------------------------------
// Rates

/** Zero crossings of the low pass on either side of a sample. */
const CROSSINGS = 24;
/** Pass band, as a share of what the slower rate can carry. */
const PASS = 0.94;

/**
 * The same sound at another rate, piece by piece: a windowed sinc with one set of taps for each phase. So many
 * milliseconds in, so many out, counted over all pieces and {@link Resampler#flush}; it holds back a millisecond or three.
 */
export class Resampler {
  #step; #phases; #reach;
  /** @type {Float32Array[]} */ #taps;
  /** @type {Float32Array} Input from `#start` on. */ #input = new Float32Array(0);
  #start = 0;
  #taken = 0;
  #made = 0;

  /** @param {number} from @param {number} to Samples per second. */
  constructor(from, to) {
    const divisor = gcd(from, to);
    this.#step = from / divisor;
    this.#phases = to / divisor;
    const cutoff = Math.min(1, to / from);
    this.#reach = CROSSINGS * Math.ceil(1 / cutoff);
    this.#taps = from === to ? [] : Array.from({ length: this.#phases }, (_, p) => taps(p / this.#phases, cutoff, this.#reach));
    this.reset();
  }

  /** Forgets everything: the next piece begins a new sound. */
  reset() {
    this.#start = -this.#reach;
    this.#input = new Float32Array(this.#reach);
    this.#taken = this.#made = 0;
  }

  /** @param {Float32Array} piece @returns {Float32Array} */
  push(piece) {
    if (this.#taps.length === 0) return piece;
    this.#taken += piece.length;
    this.#append(piece);
    return this.#make(this.#taken - this.#reach);
  }

  /** What is held back, up to the end of the sound; then as after {@link Resampler#reset}. @returns {Float32Array} */
  flush() {
    if (this.#taps.length === 0) return new Float32Array(0);
    this.#append(new Float32Array(this.#reach + 1));
    const rest = this.#make(this.#taken);
    this.reset();
    return rest;
  }

  /** @param {Float32Array} piece */
  #append(piece) {
    const joined = new Float32Array(this.#input.length + piece.length);
    joined.set(this.#input);
    joined.set(piece, this.#input.length);
    this.#input = joined;
  }

  /** All output that lies before this input position. @param {number} end */
  #make(end) {
    const count = Math.max(0, Math.ceil((end * this.#phases) / this.#step) - this.#made);
    const out = new Float32Array(count);
    for (let i = 0; i < count; i++, this.#made++) {
      const whole = Math.floor((this.#made * this.#step) / this.#phases);
      const weights = this.#taps[(this.#made * this.#step) % this.#phases];
      const first = whole - this.#reach - this.#start;
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += this.#input[first + k] * weights[k];
      out[i] = sum;
    }
    const next = Math.floor((this.#made * this.#step) / this.#phases) - this.#reach;
    if (next > this.#start) {
      this.#input = this.#input.slice(next - this.#start);
      this.#start = next;
    }
    return out;
  }
}

/**
 * Weights of the samples from `-reach` to `reach` around a point that lies `offset` behind sample 0.
 * @param {number} offset @param {number} cutoff @param {number} reach
 */
function taps(offset, cutoff, reach) {
  const band = cutoff * PASS;
  const weights = Float64Array.from({ length: 2 * reach + 1 }, (_, i) => {
    const x = i - reach - offset;
    const turn = (Math.PI * x) / (reach + 1);
    const window = Math.max(0, 0.42 + 0.5 * Math.cos(turn) + 0.08 * Math.cos(2 * turn));
    const sinc = Math.abs(x) < 1e-9 ? 1 : Math.sin(Math.PI * x * band) / (Math.PI * x * band);
    return sinc * band * window;
  });
  const sum = weights.reduce((a, b) => a + b, 0);
  return Float32Array.from(weights, (w) => w / sum);
}

/** @param {number} a @param {number} b @returns {number} */
function gcd(a, b) { return b === 0 ? a : gcd(b, a % b); }

// ---------------------------------------------------------------------------------------------------------------------
// What was heard

/** Audio in hand before a loudspeaker that has run dry begins again, ms. */
const IN_HAND = 60;
/** A cut is faded out over so long, so that it does not click, ms. Not counted as heard. */
const FADE = 4;
/** Positions of so many replies are remembered. */
const REMEMBERED = 64;

/**
 * A queue to a loudspeaker that knows, to the sample, how much of each reply came out. Pure: no clock, no device; whoever
 * pulls is the clock. {@link Speaker} has one in its audio thread.
 */
export class Playout {
  #rate; #prime; #fadeFrames;
  /** @type {Resampler} */ #resampler;
  /** @type {{ reply: string, samples: Float32Array, at: number }[]} */ #queue = [];
  #queued = 0;
  /** Frames that audio has waited to be enough to begin with; null while playing. @type {number | null} */ #waited = 0;
  /** The reply that was pushed last, whose end the resampler may hold. @type {string | null} */ #tail = null;
  /** @type {Map<string, { out: number, heard: number, told: number, cleared: boolean }>} */ #replies = new Map();
  /** Pulled, but still on its way through the device. @type {{ reply: string, out: number, at: number }[]} */ #trail = [];
  /** @type {Float32Array} */ #fade = new Float32Array(0);
  #pulled = 0;
  /** Times that a reply ran dry in its middle. */
  underruns = 0;

  /**
   * @param {number} rate Samples per second that come in.
   * @param {number} [deviceRate] Samples per second that are pulled.
   * @param {number} [inHandMs] Audio to have in hand before playing begins.
   */
  constructor(rate, deviceRate = rate, inHandMs = IN_HAND) {
    this.#rate = deviceRate;
    this.#prime = (inHandMs * deviceRate) / 1_000;
    this.#fadeFrames = Math.round((FADE * deviceRate) / 1_000);
    this.#resampler = new Resampler(rate, deviceRate);
  }

  /** Queues audio of a reply; of one that was cleared, nothing. @param {string} reply @param {Float32Array} samples */
  push(reply, samples) {
    const state = this.#state(reply);
    if (state.cleared) return;
    if (this.#tail !== reply) this.#flush();
    if (this.#queue.length === 0 && this.#waited === null) {
      this.#waited = 0;
      if (state.out > 0) this.underruns += 1;
    }
    this.#tail = reply;
    this.#enqueue(reply, this.#resampler.push(samples));
  }

  /**
   * Drops what is queued of a reply and takes no more of it.
   * @param {string} reply @returns {number} Heard of it, ms: what was pulled cannot be called back.
   */
  clear(reply) {
    const state = this.#state(reply);
    if (this.#tail === reply) {
      this.#resampler.reset();
      this.#tail = null;
    }
    const first = this.#queue[0];
    if (first?.reply === reply && state.out > 0 && this.#waited === null) {
      const rest = first.samples.subarray(first.at, first.at + this.#fadeFrames);
      this.#fade = rest.map((s, i) => s * (1 - (i + 1) / (rest.length + 1)));
    }
    this.#queue = this.#queue.filter((piece) => piece.reply !== reply);
    this.#queued = this.#queue.reduce((sum, piece) => sum + piece.samples.length - piece.at, 0);
    this.#trail = this.#trail.filter((piece) => piece.reply !== reply);
    state.cleared = true;
    state.heard = state.told = state.out;
    return this.#ms(state.out);
  }

  /** Forgets all replies and drops what is queued. */
  reset() {
    for (const reply of [...this.#replies.keys()]) this.clear(reply);
    this.#replies.clear();
  }

  /** Fills `out` with what comes next, silence where there is nothing. @param {Float32Array} out */
  pull(out) {
    out.fill(0);
    this.#pulled += out.length;
    let at = this.#fade.length === 0 ? 0 : this.#fadeInto(out);
    if (!this.#begins(out.length)) return;
    while (at < out.length) {
      const piece = this.#queue[0];
      if (!piece) {
        if (this.#flush()) continue;
        this.#waited = null;
        return;
      }
      const part = piece.samples.subarray(piece.at, piece.at + out.length - at);
      out.set(part, at);
      at += part.length;
      piece.at += part.length;
      this.#queued -= part.length;
      const state = this.#state(piece.reply);
      state.out += part.length;
      this.#trail.push({ reply: piece.reply, out: state.out, at: this.#pulled - out.length + at });
      if (piece.at === piece.samples.length) this.#queue.shift();
    }
  }

  /**
   * Positions that have changed since they were last asked for. `lag`: frames between a pull and the ear.
   * @param {number} [lag] @returns {{ reply: string, ms: number }[]}
   */
  positions(lag = 0) {
    let settled = 0;
    for (const { reply, out, at } of this.#trail) {
      if (at > this.#pulled - lag) break;
      this.#state(reply).heard = out;
      settled += 1;
    }
    this.#trail.splice(0, settled);
    const changed = [];
    for (const [reply, state] of this.#replies) {
      if (state.heard === state.told) continue;
      state.told = state.heard;
      changed.push({ reply, ms: this.#ms(state.heard) });
    }
    return changed;
  }

  /** Heard of a reply by the last {@link Playout#positions}, ms. @param {string} reply */
  heard(reply) { return this.#ms(this.#replies.get(reply)?.heard ?? 0); }

  /** All that was queued has just been heard, and not been told. @param {number} [lag] */
  isThrough(lag = 0) {
    const last = this.#trail.at(-1);
    return this.#queue.length === 0 && last !== undefined && last.at <= this.#pulled - lag;
  }

  /** The reply that is next to be heard. @returns {string | null} */
  get playing() { return this.#queue[0]?.reply ?? null; }

  /** Queued, ms. */
  get queuedMs() { return this.#ms(this.#queued); }

  /** @param {number} frames About to be pulled. */
  #begins(frames) {
    if (this.#waited === null) return true;
    if (this.#queue.length === 0) return false;
    this.#waited += frames;
    // Enough, or all that came for a while: a short reply must not wait for more.
    if (this.#queued < this.#prime && this.#waited < this.#prime) return false;
    this.#waited = null;
    return true;
  }

  /** Takes the end of the sound out of the resampler. Whether there was any. */
  #flush() {
    if (this.#tail === null) return false;
    const reply = this.#tail;
    this.#tail = null;
    const rest = this.#resampler.flush();
    this.#enqueue(reply, rest);
    return rest.length > 0;
  }

  /** @param {string} reply @param {Float32Array} samples */
  #enqueue(reply, samples) {
    if (samples.length === 0) return;
    this.#queue.push({ reply, samples, at: 0 });
    this.#queued += samples.length;
  }

  /** @param {Float32Array} out */
  #fadeInto(out) {
    const part = this.#fade.subarray(0, out.length);
    out.set(part);
    this.#fade = this.#fade.slice(part.length);
    return part.length;
  }

  /** @param {string} reply */
  #state(reply) {
    let state = this.#replies.get(reply);
    if (!state) {
      state = { out: 0, heard: 0, told: 0, cleared: false };
      this.#replies.set(reply, state);
      if (this.#replies.size > REMEMBERED) this.#replies.delete(/** @type {string} */ (this.#replies.keys().next().value));
    }
    return state;
  }

  /** @param {number} frames */
  #ms(frames) { return (frames * 1_000) / this.#rate; }
}

// ---------------------------------------------------------------------------------------------------------------------
// This computer's loudspeaker and microphone, in a browser

/**
 * An AudioContext that runs, at the wanted rate where the browser can, otherwise at its own (then {@link Speaker} and
 * {@link Microphone} resample). Call it from a click.
 * @param {number} [rate] @returns {Promise<AudioContext>}
 */
export async function openAudio(rate) {
  if (typeof AudioContext === "undefined" || !("audioWorklet" in AudioContext.prototype)) {
    // Not even there where a page came over http from another machine.
    throw globalThis.isSecureContext === false ? insecure() : new CallError("This browser cannot play live audio.", {
      code: "no_web_audio", advice: "Use a current Chrome, Edge, Firefox or Safari.",
    });
  }
  let context;
  try {
    context = new AudioContext({ sampleRate: rate, latencyHint: "interactive" });
  } catch {
    context = new AudioContext({ latencyHint: "interactive" });
  }
  // Where there was no click it stays suspended and the promise open: it begins with the next one.
  await Promise.race([context.resume(), new Promise((resolve) => setTimeout(resolve, 500))]);
  try {
    await context.audioWorklet.addModule(import.meta.url);
  } catch (cause) {
    void context.close();
    throw new CallError("The code for the sound cannot be loaded.", {
      code: "no_worklet", advice: "Check the network, and whether the server is running.", cause,
    });
  }
  return context;
}

/** Plays replies, and knows what was heard: samples are counted where they leave for the device, less its latency. */
export class Speaker {
  /** @type {AudioWorkletNode} */ #node;
  /** @type {AudioContext} */ #context;
  /** @type {Map<number, (ms: number) => void>} */ #asked = new Map();
  #question = 0;
  /** @type {Map<string, number>} Positions of the replies that sound. */ #heard = new Map();
  /** Set by a {@link Call}. @type {((reply: string, ms: number) => void) | null} */
  onplayed = null;
  /** Loudest sample since the last, 0 to 1, about 25 times a second. @type {((peak: number) => void) | null} */
  onlevel = null;
  /** A reply begins to be heard, or none any more (null). @type {((reply: string | null) => void) | null} */
  onplaying = null;

  /**
   * @param {{ context: AudioContext, rate: number }} options `context`: of {@link openAudio}. `rate`: of the samples.
   */
  static async open(options) { return new Speaker(options); }

  /** @param {{ context: AudioContext, rate: number }} options */
  constructor({ context, rate }) {
    this.#context = context;
    this.#node = new AudioWorkletNode(context, "voxrelay-speaker", {
      numberOfInputs: 0, outputChannelCount: [1], processorOptions: { rate, lag: this.#lag() },
    });
    this.#node.port.onmessage = ({ data }) => this.#take(data);
    this.#node.connect(context.destination);
  }

  /** @param {string} reply @param {Int16Array} samples */
  play(reply, samples) {
    const floats = toFloat32(samples);
    this.#node.port.postMessage({ play: floats, reply, lag: this.#lag() }, [floats.buffer]);
  }

  /** Drops what is queued of a reply. @param {string} reply @returns {Promise<number>} Heard of it, ms. */
  clear(reply) {
    return new Promise((resolve) => {
      this.#question += 1;
      this.#asked.set(this.#question, resolve);
      this.#node.port.postMessage({ clear: reply, question: this.#question });
      // The audio thread of a page that is put to sleep may not answer.
      setTimeout(() => resolve(this.#heard.get(reply) ?? 0), 300);
    });
  }

  /** Drops everything and forgets all replies. */
  reset() {
    this.#heard.clear();
    this.#node.port.postMessage({ reset: true });
  }

  close() {
    this.#node.port.postMessage({ stop: true });
    this.#node.disconnect();
    for (const resolve of this.#asked.values()) resolve(0);
    this.#asked.clear();
  }

  /** Seconds between a sample's leaving the audio thread and the ear. */
  #lag() { return this.#context.outputLatency || this.#context.baseLatency || 0; }

  /** @param {any} data */
  #take(data) {
    if ("question" in data) {
      this.#asked.get(data.question)?.(data.ms);
      this.#asked.delete(data.question);
    } else if ("positions" in data) {
      for (const { reply, ms } of data.positions) {
        this.#heard.set(reply, ms);
        this.onplayed?.(reply, ms);
      }
    } else if ("playing" in data) {
      this.onplaying?.(data.playing);
    } else if ("peak" in data) {
      this.onlevel?.(data.peak);
    }
  }
}

/** Hears the microphone: 20 ms at a time, at the wanted rate. */
export class Microphone {
  /** @type {MediaStream} */ #stream;
  /** @type {AudioWorkletNode} */ #node;
  /** @type {MediaStreamAudioSourceNode} */ #source;
  /** @type {AudioContext | null} Where it needed one of its own. */ #own = null;
  /** @type {(() => void)[]} */ #flushed = [];
  #muted = false;
  /** 20 ms of samples. @type {(samples: Int16Array) => void} */ onaudio;
  /** Loudest sample of each 20 ms, 0 to 1; also while muted 0. @type {((peak: number) => void) | null} */ onlevel = null;
  /** The device is gone, or its permission. @type {(() => void) | null} */ onended = null;

  /**
   * Asks for the microphone. Errors come in words.
   * @param {{ context: AudioContext, rate: number, onaudio: (samples: Int16Array) => void, constraints?: MediaTrackConstraints }} options
   *   `context`: of {@link openAudio}. `constraints`: what else the browser shall do; default: echo cancellation, noise
   *   suppression and gain control on.
   * @returns {Promise<Microphone>} @throws {CallError}
   */
  static async open({ context, rate, onaudio, constraints = {} }) {
    const stream = await askForMicrophone(constraints);
    try {
      const [source, own] = await sourceOf(context, stream);
      return new Microphone(stream, source, own, rate, onaudio);
    } catch (cause) {
      for (const track of stream.getTracks()) track.stop();
      throw cause instanceof CallError ? cause : microphoneInWords(cause);
    }
  }

  /**
   * @param {MediaStream} stream @param {MediaStreamAudioSourceNode} source @param {AudioContext | null} own
   * @param {number} rate @param {(samples: Int16Array) => void} onaudio
   */
  constructor(stream, source, own, rate, onaudio) {
    this.#stream = stream;
    this.#source = source;
    this.#own = own;
    this.onaudio = onaudio;
    this.#node = new AudioWorkletNode(source.context, "voxrelay-microphone", {
      numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit", processorOptions: { rate },
    });
    this.#node.port.onmessage = ({ data }) => this.#take(data);
    source.connect(this.#node);
    for (const track of stream.getTracks()) track.onended = () => this.onended?.();
  }

  /** Its name, as the system says it. */
  get label() { return this.#stream.getAudioTracks()[0]?.label ?? ""; }

  /** Silence is heard instead. In automatic turns that ends the turn, as it should. */
  get muted() { return this.#muted; }
  set muted(muted) {
    this.#muted = muted;
    for (const track of this.#stream.getTracks()) track.enabled = !muted;
  }

  /** Gives what has gathered of the 20 ms, down to the last sample that was heard. @returns {Promise<void>} */
  flush() {
    return new Promise((resolve) => {
      this.#flushed.push(resolve);
      this.#node.port.postMessage({ flush: true });
    });
  }

  close() {
    this.#node.port.postMessage({ stop: true });
    this.#source.disconnect();
    for (const track of this.#stream.getTracks()) track.stop();
    void this.#own?.close();
    for (const resolve of this.#flushed.splice(0)) resolve();
  }

  /** @param {any} data */
  #take(data) {
    if (data.samples) {
      // What was on its way from the audio thread when it was muted, too.
      if (this.#muted) data.samples.fill(0);
      this.onlevel?.(this.#muted ? 0 : data.peak);
      this.onaudio(data.samples);
    }
    if (data.flushed) this.#flushed.shift()?.();
  }
}

/** @param {MediaTrackConstraints} constraints */
async function askForMicrophone(constraints) {
  if (globalThis.isSecureContext === false) throw insecure();
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new CallError("This browser gives pages no microphone.", {
      code: "no_microphone_support", advice: "Use a current Chrome, Edge, Firefox or Safari.",
    });
  }
  try {
    const audio = { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true, ...constraints };
    return await navigator.mediaDevices.getUserMedia({ audio });
  } catch (cause) {
    throw microphoneInWords(cause);
  }
}

/**
 * The microphone as a node: in this context, or in one of its own where the browser does not bring rates together.
 * @param {AudioContext} context @param {MediaStream} stream
 * @returns {Promise<[MediaStreamAudioSourceNode, AudioContext | null]>}
 */
async function sourceOf(context, stream) {
  try {
    return [context.createMediaStreamSource(stream), null];
  } catch {
    const own = await openAudio();
    return [own.createMediaStreamSource(stream), own];
  }
}

/** Why there is no microphone. @param {any} cause @returns {CallError} */
export function microphoneInWords(cause) {
  /** @type {Record<string, [string, string, string]>} */
  const known = {
    NotAllowedError: ["microphone_refused", "This page may not use the microphone.",
      "Allow it beside the page's address, or in the system's privacy settings, and try again. You can type meanwhile."],
    SecurityError: ["microphone_refused", "This page may not use the microphone.", "Its address, or a policy of the browser's, forbids it."],
    NotFoundError: ["no_microphone", "There is no microphone.", "Plug one in, or switch it on, and try again. You can type meanwhile."],
    OverconstrainedError: ["no_microphone", "No microphone here can do what was asked for.", "Choose another one."],
    NotReadableError: ["microphone_busy", "The microphone cannot be opened.", "Another program may have it: close that one and try again."],
    AbortError: ["microphone_busy", "The microphone could not be started.", "Unplug it, plug it in again, and retry."],
  };
  const [code, message, advice] = known[cause?.name] ??
    ["microphone_failed", `The microphone failed: ${text(cause)}.`, "Try again, or with another browser."];
  return new CallError(message, { code, advice, cause });
}

function insecure() {
  return new CallError("Browsers give the microphone to secure pages only, and this one came over plain http.", {
    code: "insecure_context", advice: "Open it as http://localhost or over https.",
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// The audio thread. This part runs where the file is loaded as an AudioWorklet module, see `openAudio`.

/** Positions are told so often, seconds. */
const TELL_EVERY = 0.1;
/** Levels so often, seconds. */
const LEVEL_EVERY = 0.04;

const scope = /** @type {any} */ (globalThis);
if (typeof scope.registerProcessor === "function") {
  scope.registerProcessor("voxrelay-speaker", class extends scope.AudioWorkletProcessor {
    /** @param {any} options */
    constructor({ processorOptions: { rate, lag } }) {
      super();
      /** @type {Playout} */ this.playout = new Playout(rate, scope.sampleRate);
      this.lag = lag;
      this.peak = this.sinceTold = this.sinceLevel = 0;
      /** @type {string | null} */ this.playing = null;
      this.stopped = false;
      this.port.onmessage = (/** @type {any} */ { data }) => this.take(data);
    }

    /** @param {any} data */
    take(data) {
      if (data.play) {
        this.lag = data.lag;
        this.playout.push(data.reply, data.play);
      } else if ("clear" in data) {
        this.port.postMessage({ question: data.question, ms: this.playout.clear(data.clear) });
      } else if (data.reset) {
        this.playout.reset();
      } else if (data.stop) {
        this.stopped = true;
      }
    }

    /** @param {any} _inputs @param {Float32Array[][]} outputs */
    process(_inputs, [[out]]) {
      const playing = /** @type {string | null} */ (this.playout.playing);
      this.playout.pull(out);
      if (playing !== this.playing) this.port.postMessage({ playing: (this.playing = playing) });
      for (const sample of out) this.peak = Math.max(this.peak, Math.abs(sample));
      const seconds = out.length / scope.sampleRate;
      if ((this.sinceLevel += seconds) >= LEVEL_EVERY) {
        this.port.postMessage({ peak: this.peak });
        this.peak = this.sinceLevel = 0;
      }
      // Every so often, and at once when all is through.
      const lag = Math.round(this.lag * scope.sampleRate);
      if ((this.sinceTold += seconds) >= TELL_EVERY || this.playout.isThrough(lag)) {
        const positions = this.playout.positions(lag);
        if (positions.length > 0) this.port.postMessage({ positions });
        this.sinceTold = 0;
      }
      return !this.stopped;
    }
  });

  scope.registerProcessor("voxrelay-microphone", class extends scope.AudioWorkletProcessor {
    /** @param {any} options */
    constructor({ processorOptions: { rate } }) {
      super();
      this.resampler = new Resampler(scope.sampleRate, rate);
      this.piece = new Float32Array(rate / 50);
      this.filled = 0;
      this.stopped = false;
      this.port.onmessage = (/** @type {any} */ { data }) => {
        if (data.flush) {
          this.give();
          this.port.postMessage({ flushed: true });
        } else if (data.stop) {
          this.stopped = true;
        }
      };
    }

    give() {
      const samples = toInt16(this.piece.subarray(0, this.filled));
      if (samples.length === 0) return;
      const peak = samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0) / 32768;
      this.filled = 0;
      this.port.postMessage({ samples, peak }, [samples.buffer]);
    }

    /** @param {Float32Array[][]} inputs */
    process([[input]]) {
      if (input && input.length > 0) {
        for (const sample of this.resampler.push(input)) {
          this.piece[this.filled++] = sample;
          if (this.filled === this.piece.length) this.give();
        }
      }
      return !this.stopped;
    }
  });
}
