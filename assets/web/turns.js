/**
 * The conversation as the page shows it: turns, their replies and times, and notes between them.
 *
 * Pure: takes the events of a call in their order and keeps a list. Knows neither page nor socket.
 * @module
 */

/**
 * @typedef {object} Reply
 * @property {string} id
 * @property {string} text
 * @property {"speaking" | "completed" | "interrupted" | "incomplete" | "failed"} status
 * @property {string | null} reason
 * @property {number} audioMs Received of it.
 * @property {number} heardMs
 * @property {any} latency As in `reply_ended`; null until then.
 */

/**
 * @typedef {object} Turn
 * @property {number} id
 * @property {"turn" | "note"} kind
 * @property {string} text What the caller said, or the note.
 * @property {"none" | "speaking" | "spoken" | "typed"} said `none`: a greeting, which nobody asked for.
 * @property {string | null} item
 * @property {Reply[]} replies
 */

export class Turns {
  /** Oldest first. @type {Turn[]} */
  list = [];
  /** Called with each turn that is new or has changed. @type {(turn: Turn) => void} */
  onchange = () => {};
  /** @type {Map<string, Turn>} */ #items = new Map();
  /** @type {Map<string, { turn: Turn, reply: Reply }>} */ #replies = new Map();

  /** A line between turns. @param {string} text */
  note(text) { this.#add({ kind: "note", text }); }

  /** What was typed. @param {string} text */
  typed(text) { this.#add({ text, said: "typed" }); }

  /** @param {any} event Of a call, or `talk_started` and `talk_stopped` of push-to-talk. */
  take(event) {
    switch (event.type) {
      case "ready":
        // Another call: its names begin anew.
        this.#items.clear();
        this.#replies.clear();
        break;
      case "speech_started":
      case "talk_started": {
        const last = this.list.at(-1);
        if (last?.said !== "speaking" || last.text) this.#add({ said: "speaking" });
        break;
      }
      case "speech_stopped":
      case "talk_stopped": {
        const turn = this.list.findLast((t) => t.said === "speaking");
        if (turn) this.#changed(turn, { said: "spoken" });
        break;
      }
      case "talk_forgotten":
        this.#drop(this.list.findLast((t) => t.said === "speaking" && !t.text));
        break;
      case "transcript":
        if (event.role === "user") this.#heardYou(event);
        else this.#words(event);
        break;
      case "reply_started": this.#begin(event.reply); break;
      case "reply_ended": this.#end(event); break;
      default:
    }
  }

  /** More audio of a reply has come. @param {string} reply @param {number} ms */
  received(reply, ms) {
    const found = this.#replies.get(reply);
    if (found && found.reply.status === "speaking") found.reply.audioMs += ms;
  }

  /** So much of it was heard. @param {string} reply @param {number} ms */
  heard(reply, ms) {
    const found = this.#replies.get(reply);
    if (!found || found.reply.status !== "speaking") return;
    found.reply.heardMs = ms;
    this.onchange(found.turn);
  }

  /** The connection is gone, and with it what was being said. */
  broken() {
    for (const turn of this.list) {
      for (const reply of turn.replies) {
        if (reply.status === "speaking") Object.assign(reply, { status: "failed", reason: "connection lost" });
      }
      if (turn.said === "speaking") turn.said = "spoken";
      this.onchange(turn);
    }
  }

  /** @param {any} event */
  #heardYou({ item, delta, text }) {
    let turn = this.#items.get(item);
    if (!turn) {
      // Transcripts come in the order of the turns, later than the turns themselves.
      turn = this.list.find((t) => t.kind === "turn" && t.item === null && (t.said === "spoken" || t.said === "speaking")) ??
        this.#add({ said: "spoken" });
      turn.item = item;
      this.#items.set(item, turn);
    }
    this.#changed(turn, { text: text ?? turn.text + (delta ?? "") });
  }

  /** @param {any} event */
  #words({ reply: id, delta, text }) {
    const found = this.#replies.get(id) ?? this.#begin(id);
    found.reply.text = text ?? found.reply.text + (delta ?? "");
    this.onchange(found.turn);
  }

  /** @param {string} id */
  #begin(id) {
    const known = this.#replies.get(id);
    if (known) return known;
    // Who speaks again already is not who is answered.
    const turn = this.list.findLast((t) => t.kind === "turn" && t.said !== "speaking") ?? this.#add({ said: "none" });
    /** @type {Reply} */
    const reply = { id, text: "", status: "speaking", reason: null, audioMs: 0, heardMs: 0, latency: null };
    turn.replies.push(reply);
    const found = { turn, reply };
    this.#replies.set(id, found);
    this.onchange(turn);
    return found;
  }

  /** @param {any} event */
  #end({ reply: id, status, reason = null, audio_ms: audioMs, heard_ms: heardMs, latency }) {
    const { turn, reply } = this.#begin(id);
    Object.assign(reply, { status, reason, audioMs, heardMs, latency });
    this.onchange(turn);
  }

  /** @param {Partial<Turn>} fields */
  #add(fields) {
    /** @type {Turn} */
    const turn = { id: (this.list.at(-1)?.id ?? 0) + 1, kind: "turn", text: "", said: "none", item: null, replies: [], ...fields };
    this.list.push(turn);
    this.onchange(turn);
    return turn;
  }

  /** @param {Turn} turn @param {Partial<Turn>} fields */
  #changed(turn, fields) {
    Object.assign(turn, fields);
    this.onchange(turn);
  }

  /** @param {Turn | undefined} turn */
  #drop(turn) {
    if (!turn || turn.replies.length > 0) return;
    turn.said = "none";
    this.list.splice(this.list.indexOf(turn), 1);
    this.onchange(turn);
  }
}

/**
 * Where the milliseconds of a reply went, as parts that follow one another. Parts that did not happen are left out.
 * @param {Reply} reply `ahead`: has come, and is not heard yet.
 * @returns {{ part: "wait" | "model" | "relay" | "heard" | "ahead" | "cut", ms: number }[]}
 */
export function parts({ latency, audioMs, heardMs, status }) {
  const all = [];
  if (latency?.first_audio_ms != null) {
    const relay = latency.relay_added_ms ?? 0;
    const wait = Math.min(latency.committed_ms ?? 0, latency.first_audio_ms);
    all.push({ part: /** @type {const} */ ("wait"), ms: wait });
    all.push({ part: /** @type {const} */ ("model"), ms: Math.max(0, latency.first_audio_ms - wait - relay) });
    all.push({ part: /** @type {const} */ ("relay"), ms: relay });
  }
  all.push({ part: /** @type {const} */ ("heard"), ms: heardMs });
  all.push({ part: status === "speaking" ? /** @type {const} */ ("ahead") : /** @type {const} */ ("cut"), ms: Math.max(0, audioMs - heardMs) });
  return all.filter(({ part, ms }) => ms > 0 || part === "relay");
}
