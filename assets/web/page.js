/**
 * The page at `/`: a call, as one screen. What it knows of the protocol it has from `voxrelay-client.js`; here is only what
 * people see and press.
 *
 * Settings may be given in the address: `/?agent=default&format=mulaw&rate=8000&turns=manual&processing=off`. A call token may
 * not: addresses end up in logs. It is asked for where the server wants one, and kept for as long as the tab is open.
 * @module
 */
import { Call, CallError, Microphone, RATES, Speaker, openAudio } from "./voxrelay-client.js";
import { Strip, height } from "./strip.js";
import { Turns, parts } from "./turns.js";

/** A press that is shorter than this is a tap: it holds the button until the next one, ms. */
const TAP = 300;
/** There is no space bar to speak of. */
const TOUCH = matchMedia("(hover: none)").matches;
/** How long "Interrupted" is shown, ms. */
const INTERRUPTED = 1_500;
/** Where the tab keeps its call token. */
const TOKEN = "voxrelay.token";

const $ = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id));
const setup = /** @type {HTMLFormElement} */ ($("setup"));

/** @typedef {"idle" | "starting" | "call" | "reconnecting" | "ended"} Phase */

/** Everything that the screen depends on. */
const now = {
  /** @type {Phase} */ phase: "idle",
  manual: false,
  muted: false,
  /** The talk button is down. */ talking: false,
  /** By a tap, until the next one. */ latched: false,
  /** The service hears the caller. */ speaking: false,
  /** A turn waits for its answer. */ waiting: false,
  /** @type {string | null} The reply that is heard. */ playing: null,
  interruptedAt: -Infinity,
};

/** @type {Call | null} */ let call = null;
/** @type {AudioContext | null} */ let context = null;
/** @type {Speaker | null} */ let speaker = null;
/** @type {Microphone | null} */ let microphone = null;
/** The call token; empty: there is none. */
let token = "";
let rate = 24000;
let startedAt = 0;
/** What is said of the last call. */
let ended = "";
let turns = new Turns();
const strip = new Strip($("strip"));

// ---- before a call

function offerRates() {
  const before = setup.rate.value;
  const rates = [.../** @type {any} */ (RATES)[setup.format.value]].sort((a, b) => a - b);
  setup.rate.replaceChildren(...rates.map((r) => new Option(`${r / 1000} kHz`, r)));
  setup.rate.value = rates.includes(Number(before)) ? before : String(/** @type {any} */ (RATES)[setup.format.value][0]);
}

async function offerAgents() {
  const wanted = new URLSearchParams(location.search).get("agent");
  const shown = token;
  try {
    const response = await fetch("/v1/agents", shown ? { headers: { authorization: `Bearer ${shown}` } } : {});
    if (shown !== token) return; // another one is asked about
    if (response.status === 401) askForToken();
    if (response.ok) {
      const { agents, default: first } = await response.json();
      setup.agent.replaceChildren(...agents.map((/** @type {{ name: string }} */ { name }) => new Option(name, name)));
      setup.agent.value = first;
      keepToken();
    }
  } catch {
    // The call itself will say what is wrong.
  }
  if (wanted === null) return;
  if (![...setup.agent.options].some(({ value }) => value === wanted)) setup.agent.add(new Option(wanted, wanted));
  setup.agent.value = wanted;
}

/** Nobody is called without a token here, or not with this one. */
function askForToken() {
  const refused = token !== "";
  $("token-field").hidden = false;
  $("token").required = true;
  $("token").setAttribute("aria-invalid", String(refused));
  $("token-hint").textContent = refused ? "This token is not accepted: it is wrong, or it has expired."
    : "This server wants to know who calls. Whoever runs it gives you a token.";
  forget();
}

/** The token is good: a reload of the page need not ask for it. */
function keepToken() {
  $("token").setAttribute("aria-invalid", "false");
  $("token-hint").textContent = "";
  try {
    if (token) sessionStorage.setItem(TOKEN, token);
  } catch {
    // A browser that keeps nothing: it is asked for again.
  }
}

function forget() {
  try { sessionStorage.removeItem(TOKEN); } catch { /* nothing was kept */ }
}

function recall() {
  try { token = sessionStorage.getItem(TOKEN) ?? ""; } catch { /* nothing was kept */ }
  $("token").value = token;
}

function takeToken() {
  const typed = $("token").value.trim();
  if (typed === token) return;
  token = typed;
  void offerAgents();
}

function takeAddress() {
  const query = new URLSearchParams(location.search);
  const set = (/** @type {string} */ name) => {
    if (query.has(name)) setup[name].value = query.get(name);
  };
  set("format");
  offerRates();
  set("rate");
  if (setup.rate.value === "") offerRates();
  if (query.get("turns") === "manual") setup.turns.value = "manual";
  setup.processing.checked = query.get("processing") !== "off";
}

// ---- a call

async function start() {
  if (now.phase === "starting" || now.phase === "call" || now.phase === "reconnecting") return;
  trouble(null);
  takeToken();
  const { agent, format, turns: mode } = Object.fromEntries(new FormData(setup));
  rate = Number(setup.rate.value);
  Object.assign(now, { manual: mode === "manual", muted: false, talking: false, speaking: false, waiting: false, playing: null });
  turns = new Turns();
  turns.onchange = showTurn;
  $("turns").replaceChildren();
  become("starting");
  try {
    context = await openAudio(rate);
    speaker = await Speaker.open({ context, rate });
    call = new Call({
      url: "/v1/voice", agent: String(agent), format: /** @type {any} */ (format), rate, turns: now.manual ? "manual" : "auto", speaker,
      token: token || undefined,
    });
    listen(call, speaker);
    // Asked for before the call is made: nobody is called by a page that waits for a permission.
    await hear();
    const ready = await call.open();
    $("agreed").textContent = `${ready.agent} · ${nameOf(ready.audio.in)} · ${now.manual ? "push to talk" : "hands-free"}`;
  } catch (error) {
    end(error instanceof CallError ? error : new CallError(`Something unexpected happened: ${error}`));
  }
}

/** @param {{ format: string, rate: number }} audio */
function nameOf({ format, rate: hz }) {
  return `${{ pcm16: "PCM", mulaw: "mu-law", alaw: "A-law" }[format] ?? format} ${hz / 1000} kHz`;
}

/** Opens the microphone; without one the call goes on in writing. */
async function hear() {
  try {
    const on = setup.processing.checked;
    const constraints = { echoCancellation: on, noiseSuppression: on, autoGainControl: on };
    microphone = await Microphone.open({ context: /** @type {AudioContext} */ (context), rate, constraints, onaudio: said });
    microphone.onlevel = (peak) => level("you", peak);
    microphone.onended = () => {
      microphone?.close();
      microphone = null;
      trouble(new CallError("The microphone is gone.", { advice: "Plug it in again. You can type meanwhile." }), "Try again", again);
      show();
    };
  } catch (error) {
    microphone = null;
    trouble(/** @type {CallError} */ (error), "Try the microphone again", again);
  }
  async function again() {
    trouble(null);
    await hear();
    show();
  }
}

/** @param {Int16Array} samples */
function said(samples) {
  if (!now.manual || now.talking) call?.send(samples);
}

/** @param {Call} call @param {Speaker} speaker */
function listen(call, speaker) {
  const reported = speaker.onplayed;
  speaker.onplayed = (reply, ms) => {
    reported?.(reply, ms);
    turns.heard(reply, ms);
  };
  speaker.onlevel = (peak) => level("it", peak);
  speaker.onplaying = (reply) => {
    if (reply !== null && now.playing !== reply) strip.mark("sound");
    now.playing = reply;
    show();
  };
  call.on("*", (event) => {
    turns.take(event);
    react(event);
    show();
  });
}

/** What an event changes on the screen besides the turns. @param {any} event */
function react(event) {
  switch (event.type) {
    case "ready": become("call"); break;
    case "audio":
      if (event.samples) turns.received(event.reply, (event.samples.length * 1000) / rate);
      break;
    case "speech_started": now.speaking = true; break;
    case "speech_stopped":
      Object.assign(now, { speaking: false, waiting: true });
      strip.mark("stopped");
      break;
    case "reply_started": now.waiting = false; break;
    case "reply_ended":
      now.waiting = false;
      if (event.status === "interrupted") cut();
      break;
    case "clear": cut(); break;
    case "tool_call":
      // This page has no tools, and a model that waits for one is silent for half a minute.
      call?.toolResult(event.call_id, JSON.stringify({ error: "this client has no tools" }));
      turns.note(`The agent wanted the tool “${event.name}”, which this page does not have.`);
      break;
    case "notice":
      turns.note(event.code === "token_expiring" ? `The call token ends in ${event.in_s} s, and this call with it.` : event.message ?? event.code);
      break;
    case "error": turns.note(`${event.error.message} (${event.error.code})`); break;
    case "draining":
      turns.note(`This server goes away in ${Math.round(event.deadline_ms / 1000)} s. Finish, and call again.`);
      break;
    case "reconnecting": repair(event); break;
    case "reconnected":
      turns.note(event.resumed ? "Reconnected. The call goes on where it was." : "Reconnected as a new call. It knows nothing of what was said before.");
      become("call");
      break;
    case "ended": end(event.error); break;
    default:
  }
}

function cut() {
  // `clear`, the button and the end of the reply say the same thing: one mark.
  if (performance.now() - now.interruptedAt > INTERRUPTED) strip.mark("cut");
  now.interruptedAt = performance.now();
  setTimeout(show, INTERRUPTED + 50);
}

/** @param {{ attempt: number, delayMs: number, resume: boolean, error: CallError }} event */
function repair({ attempt, delayMs, resume, error }) {
  if (!resume) turns.broken();
  Object.assign(now, { speaking: false, waiting: false, talking: false, playing: null });
  const when = delayMs < 1_000 ? "Trying again now" : `Trying again in ${Math.round(delayMs / 1000)} s`;
  const what = resume ? "the call will go on where it was" : "a new call will begin, which knows nothing of this one";
  $("repair-what").textContent = `${error.message} ${when}${attempt > 1 ? `, try ${attempt}` : ""}: ${what}.`;
  if (attempt === 1) turns.note(error.message);
  become("reconnecting");
}

/** @param {CallError | null} error */
function end(error) {
  if (now.phase === "idle" || now.phase === "ended") return;
  turns.broken();
  ended = now.phase === "starting" ? "There was no call." : `The call has ended, after ${length(performance.now() - startedAt)}.`;
  const ending = call;
  call = null;
  void ending?.close();
  microphone?.close();
  speaker?.close();
  void context?.close();
  microphone = speaker = context = null;
  Object.assign(now, { talking: false, speaking: false, waiting: false, playing: null });
  strip.stop();
  for (const meter of [$("meter-you"), $("meter-it")]) meter.firstElementChild.style.transform = "";
  become("ended");
  const stranger = error?.status === 401 || error?.closeCode === 4401;
  if (stranger) askForToken();
  // What the server says of a credential is for programs.
  const refused = token ? "The call token is not accepted." : "This server wants a call token.";
  const advice = "Whoever runs the server can give you one.";
  if (error) trouble(error.status === 401 ? new CallError(refused, { advice, requestId: error.requestId }) : error);
  $(stranger ? "token" : "start").focus();
}

// ---- what people do

function talk() {
  if (!now.manual || now.phase !== "call" || now.talking) return;
  if (!microphone) return;
  Object.assign(now, { talking: true, latched: false });
  void interrupt();
  turns.take({ type: "talk_started" });
  show();
}

/** @param {boolean} send */
async function hush(send) {
  if (!now.talking) return;
  await microphone?.flush(); // down to the last syllable
  if (!now.talking) return;
  now.talking = false;
  if (send) call?.commit();
  else call?.discard();
  turns.take({ type: send ? "talk_stopped" : "talk_forgotten" });
  now.waiting = send;
  if (send) strip.mark("stopped");
  show();
}

async function interrupt() {
  const playing = now.playing;
  if (await call?.interrupt()) {
    if (playing !== null) cut();
    show();
  }
}

function mute() {
  now.muted = !now.muted;
  if (microphone) microphone.muted = now.muted;
  show();
}

/** Hold to talk; a tap holds it until the next one, for those who cannot hold a button. */
function talkButton() {
  const button = $("talk");
  let downAt = 0;
  const down = () => {
    if (now.talking) return;
    downAt = performance.now();
    talk();
  };
  const up = () => {
    if (!now.talking) return;
    if (now.latched || performance.now() - downAt >= TAP) return void hush(true);
    now.latched = true;
    show();
  };
  button.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
    if (event.button !== 0) return;
    button.setPointerCapture(event.pointerId);
    down();
  });
  button.addEventListener("pointerup", up);
  button.addEventListener("pointercancel", () => void hush(false));
  button.addEventListener("contextmenu", (/** @type {Event} */ event) => event.preventDefault());
  // Screen readers press without a pointer or a key: that is a tap.
  button.addEventListener("click", (/** @type {PointerEvent} */ event) => {
    if (event.detail !== 0 || event.pointerType) return;
    down();
    up();
  });
  const isKey = (/** @type {KeyboardEvent} */ event) => event.key === " " || event.key === "Enter";
  button.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (!isKey(event)) return;
    event.preventDefault(); // otherwise a click follows
    if (!event.repeat) down();
  });
  button.addEventListener("keyup", (/** @type {KeyboardEvent} */ event) => {
    if (isKey(event)) {
      event.preventDefault();
      up();
    }
  });
}

// ---- the screen

/** @param {Phase} phase */
function become(phase) {
  const before = now.phase;
  now.phase = phase;
  show();
  if (phase !== "call" || before !== "starting") return;
  startedAt = performance.now();
  strip.start();
  // The button that is needed next; without a microphone that is none.
  const next = !microphone ? "text" : now.manual ? "talk" : "mute";
  $(next).focus({ preventScroll: true });
}

/** What is going on, as a word and a hint. @returns {[mood: string, word: string, hint: string]} */
function mood() {
  if (now.phase === "starting") return ["starting", "Connecting", ""];
  if (now.phase === "reconnecting") return ["reconnecting", "Reconnecting", ""];
  if (now.phase !== "call") return ["ended", "", ""];
  if (now.talking) return ["you", "You speak", ""];
  if (now.speaking) return ["you", "You speak", ""];
  if (performance.now() - now.interruptedAt < INTERRUPTED) return ["interrupted", "Interrupted", ""];
  if (now.playing !== null) return ["it", "It speaks", now.manual || !microphone ? "" : "speak to interrupt"];
  if (now.waiting) return ["waiting", "It thinks", ""];
  if (!microphone) return ["listening", "Waiting for text", "there is no microphone"];
  if (now.manual) return ["listening", "Ready", TOUCH ? "hold the button while you speak" : "hold the button, or the space bar, while you speak"];
  return now.muted ? ["listening", "Muted", "it hears silence"] : ["listening", "Listening", "speak whenever you like"];
}

/** Brings the screen in line with `now`. */
function show() {
  const { phase } = now;
  const open = phase === "call" || phase === "reconnecting" || phase === "starting";
  const [name, word, hint] = mood();
  document.body.dataset.phase = phase;
  document.body.dataset.mood = name;
  document.body.dataset.muted = String(now.muted);
  $("setup").hidden = open;
  $("dock").hidden = !open;
  $("conversation").hidden = !open && turns.list.length === 0;
  $("empty").hidden = turns.list.length > 0 || phase !== "call";
  $("empty").textContent = now.manual ? "Hold the button and say something." : microphone ? "Say something." : "Type something.";
  $("end").hidden = !open;
  $("end").textContent = phase === "call" ? "End call" : "Give up";
  $("agreed").hidden = phase !== "call" && phase !== "reconnecting";
  $("repair").hidden = phase !== "reconnecting";
  $("lead").textContent = phase === "ended" ? ended : "Speak, and hear it answer.";
  $("start").textContent = phase === "ended" ? "Call again" : "Start the call";
  // Only what changed: a status is read aloud whenever it is written.
  if ($("mood-word").textContent !== word) $("mood-word").textContent = word;
  if ($("mood-hint").textContent !== hint) $("mood-hint").textContent = hint;
  $("talk").hidden = !now.manual;
  $("talk").disabled = phase !== "call" || !microphone;
  $("talk").setAttribute("aria-pressed", String(now.talking));
  $("talk").textContent = !now.talking ? "Hold to talk" : now.latched ? "Press to send" : "Let go to send";
  $("mute").hidden = now.manual;
  $("mute").disabled = phase !== "call" || !microphone;
  $("mute").setAttribute("aria-pressed", String(now.muted));
  $("interrupt").disabled = now.playing === null;
  $("text").disabled = $("send").disabled = phase !== "call";
}

/** @param {CallError | null} error @param {string} [label] @param {() => void} [action] */
function trouble(error, label, action) {
  $("trouble").hidden = error === null;
  $("trouble-what").textContent = (error?.message ?? "").replace(/`([^`]*)`/g, "“$1”");
  $("trouble-advice").textContent = error?.advice ?? "";
  $("trouble-more").textContent = error?.requestId ? `For whoever runs the server: ${error.requestId}` : "";
  $("trouble-do").hidden = !action;
  $("trouble-do").textContent = label ?? "";
  $("trouble-do").onclick = action ?? null;
  if (error) $("trouble").scrollIntoView({ block: "nearest" });
}

/** What the meters show, 0 to 1. */
const shown = { you: 0, it: 0 };
/** A meter falls to so much of itself with each new peak: steps of words are seen, single samples are not. */
const FALL = 0.85;
const announcedAt = { you: 0, it: 0 };

/** @param {"you" | "it"} who @param {number} peak */
function level(who, peak) {
  strip.level(who === "you", peak);
  shown[who] = Math.max(height(peak), shown[who] * FALL);
  const meter = $(`meter-${who}`);
  meter.firstElementChild.style.transform = `scaleX(${shown[who].toFixed(3)})`;
  if (performance.now() - announcedAt[who] < 500) return;
  announcedAt[who] = performance.now();
  meter.setAttribute("aria-valuenow", String(Math.round(shown[who] * 100)));
}

/** @param {import("./turns.js").Turn} turn */
function showTurn(turn) {
  const main = /** @type {HTMLElement} */ (document.querySelector("main"));
  const atEnd = main.scrollHeight - main.scrollTop - main.clientHeight < 80;
  const id = `turn-${turn.id}`;
  const old = document.getElementById(id);
  if (!turns.list.includes(turn)) return void old?.remove();
  const fresh = element("li", turn.kind === "note" ? "note" : "turn", turn.kind === "note" ? turn.text : "");
  fresh.id = id;
  if (turn.kind === "turn") {
    if (turn.said !== "none") fresh.append(line("you", "You", yourWords(turn)));
    for (const reply of turn.replies) fresh.append(line("it", "Agent", itsWords(reply), times(reply)));
  }
  if (old) old.replaceWith(fresh);
  else $("turns").append(fresh);
  if (atEnd) main.scrollTop = main.scrollHeight;
}

/** @param {import("./turns.js").Turn} turn */
function yourWords({ text, said: how }) {
  if (text) return element("span", "words", text);
  return element("span", "words waiting", how === "speaking" ? "speaking …" : "…");
}

/** A reply's words; those that were not heard any more are struck out. @param {import("./turns.js").Reply} reply */
function itsWords({ text, status, audioMs, heardMs }) {
  if (!text) return element("span", "words waiting", status === "speaking" ? "…" : "(nothing was said)");
  const words = element("span", "words");
  if (status === "speaking" || status === "completed" || heardMs >= audioMs) {
    words.textContent = text;
    return words;
  }
  // Words have no times of their own: cut in proportion, at the end of a word.
  const at = Math.round((text.length * heardMs) / audioMs);
  const space = text.indexOf(" ", at);
  const heard = audioMs === 0 || heardMs === 0 ? 0 : space < 0 ? text.length : space;
  words.append(text.slice(0, heard), element("s", "unheard", text.slice(heard)));
  return words;
}

/** Where the milliseconds went: a bar, and the same in numbers. @param {import("./turns.js").Reply} reply */
function times(reply) {
  const bar = element("div", "bar");
  bar.setAttribute("aria-hidden", "true");
  const numbers = element("p", "numbers");
  const { latency, status, reason, audioMs } = reply;
  if (latency?.first_audio_ms != null) numbers.append(number("", "first sound after", `${latency.first_audio_ms} ms`));
  for (const { part, ms } of parts(reply)) {
    const piece = element("i", part);
    piece.style.flexGrow = String(Math.max(ms, 1));
    bar.append(piece);
    if (part === "ahead") continue;
    const value = part === "heard" || part === "cut" ? seconds(ms) : `${ms} ms`;
    const of = part === "heard" && status !== "speaking" ? ` of ${seconds(audioMs)}` : "";
    numbers.append(number(part, PARTS[part], value + of));
  }
  if (status === "incomplete" || status === "failed") numbers.append(number("alarm", status, reason ?? ""));
  const box = element("div", "times");
  box.append(bar, numbers);
  return box;
}

/** What the parts of a reply's time are called. */
const PARTS = { wait: "end of turn", model: "model", relay: "relay", heard: "heard", cut: "cut off" };

/** @param {string} key @param {string} label @param {string} value */
function number(key, label, value) {
  const box = element("span", key);
  if (key && key !== "alarm") box.append(element("i", key));
  box.append(`${label} `, element("b", "", value));
  return box;
}

/** @param {number} ms */
function seconds(ms) { return `${(ms / 1000).toFixed(1)} s`; }

/** @param {number} ms */
function length(ms) {
  const s = Math.round(ms / 1000);
  return s < 60 ? `${s} s` : `${Math.floor(s / 60)} min ${s % 60} s`;
}

/** @param {string} who @param {string} name @param {HTMLElement[]} rest */
function line(who, name, ...rest) {
  const box = element("div", "line");
  box.append(element("span", `who ${who}`, name), ...rest);
  return box;
}

/** @param {string} tag @param {string} className @param {string} [text] */
function element(tag, className, text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

// ---- wiring

setup.format.addEventListener("change", offerRates);
$("token").addEventListener("change", takeToken);
setup.addEventListener("submit", (event) => {
  event.preventDefault();
  void start();
});
$("end").addEventListener("click", () => end(null));
$("mute").addEventListener("click", mute);
$("interrupt").addEventListener("click", () => void interrupt());
$("retry").addEventListener("click", () => call?.retry());
$("typed").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || !call) return;
  turns.typed(text);
  call.text(text);
  now.waiting = true;
  $("text").value = "";
  show();
});
talkButton();
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && now.playing !== null) void interrupt();
  // The space bar talks from everywhere but where it means something else.
  const elsewhere = event.target instanceof Element && event.target.closest("input, select, button, a");
  if (event.key === " " && now.manual && now.phase === "call" && !elsewhere) {
    event.preventDefault();
    $("talk").focus();
    if (!event.repeat) $("talk").dispatchEvent(new KeyboardEvent("keydown", { key: " " }));
  }
});
// Phones stop the sound of pages that are out of sight.
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") void context?.resume();
});
takeAddress();
recall();
void offerAgents();
show();
