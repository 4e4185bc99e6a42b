/**
 * What the page shows of a conversation, whatever the order in which it is told; and the types of all that the page is made of.
 */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { join as joinPath } from "node:path";
import { Turns, parts } from "../../assets/web/turns.js";
import { test } from "./harness.mjs";

/** The list as lines, after these events. */
function after(...events) {
  const turns = new Turns();
  for (const event of events) {
    if (typeof event === "function") event(turns);
    else turns.take(event);
  }
  return turns.list.map((t) => (t.kind === "note" ? `- ${t.text}` :
    `${t.said}: ${t.text || "…"}${t.replies.map((r) => ` > ${r.text || "…"} (${r.status})`).join("")}`));
}

const started = { type: "speech_started", at_ms: 1 };
const stopped = { type: "speech_stopped", at_ms: 2 };
const you = (item, words) => ({ type: "transcript", role: "user", item, ...words });
const it = (reply, words) => ({ type: "transcript", role: "assistant", item: `of-${reply}`, reply, ...words });
const begin = (reply) => ({ type: "reply_started", reply });
const end = (reply, status = "completed") => ({ type: "reply_ended", reply, status, audio_ms: 1000, heard_ms: 500, latency: {} });

test("turns: each word stands with its turn, in whatever order it comes", async () => {
  for (const [name, events, want] of [
    ["a greeting", [begin("r1"), it("r1", { delta: "Hel" }), it("r1", { delta: "lo" }), end("r1")], ["none: … > Hello (completed)"]],
    ["a turn", [started, stopped, begin("r1"), it("r1", { delta: "Yes" }), you("a", { delta: "Is " }), you("a", { delta: "it?" }), you("a", { text: "Is it?", final: true }), end("r1")],
      ["spoken: Is it? > Yes (completed)"]],
    ["words that come before the reply is announced", [started, stopped, it("r1", { delta: "Y" }), begin("r1"), it("r1", { text: "Yes.", final: true })], ["spoken: … > Yes. (speaking)"]],
    ["an interruption", [started, stopped, begin("r1"), started, end("r1", "interrupted"), you("a", { text: "one" }), stopped, begin("r2"), you("b", { text: "two" })],
      ["spoken: one > … (interrupted)", "spoken: two > … (speaking)"]],
    ["an answer that comes while one speaks again", [started, stopped, started, begin("r1")], ["spoken: … > … (speaking)", "speaking: …"]],
    ["a typed turn between spoken ones", [started, stopped, (t) => t.typed("typed"), begin("r1"), you("a", { text: "spoken" })], ["spoken: spoken", "typed: typed > … (speaking)"]],
    ["push to talk, let go at once", [{ type: "talk_started" }, { type: "talk_forgotten" }, { type: "talk_started" }, { type: "talk_stopped" }], ["spoken: …"]],
    ["speech that is announced twice", [started, started, stopped], ["spoken: …"]],
    ["a connection that breaks", [started, stopped, begin("r1"), it("r1", { delta: "We" }), started, (t) => t.broken(), (t) => t.note("lost"), { type: "ready" }, started, stopped, begin("r1"), it("r1", { delta: "Hi" })],
      ["spoken: … > We (failed)", "spoken: …", "- lost", "spoken: … > Hi (speaking)"]],
  ]) {
    assert.deepEqual(after(...events), want, name);
  }
});

test("turns: the parts of a reply's time add up", async () => {
  const latency = { committed_ms: 500, reply_started_ms: 510, first_delta_ms: 700, first_audio_ms: 703, relay_added_ms: 3 };
  const reply = { latency, audioMs: 2000, heardMs: 1500 };
  const of = (more) => Object.fromEntries(parts({ ...reply, ...more }).map(({ part, ms }) => [part, ms]));
  assert.deepEqual(of({ status: "interrupted" }), { wait: 500, model: 200, relay: 3, heard: 1500, cut: 500 });
  assert.deepEqual(of({ status: "completed", heardMs: 2000 }), { wait: 500, model: 200, relay: 3, heard: 2000 });
  assert.deepEqual(of({ status: "speaking", latency: null }), { heard: 1500, ahead: 500 });
  assert.deepEqual(of({ status: "failed", latency: { first_audio_ms: null }, audioMs: 0, heardMs: 0 }), {});
});

test("types: what JSDoc says of the page and the client is true", async () => {
  const compiler = joinPath(import.meta.dirname, "node_modules/.bin/tsc");
  try {
    execFileSync(compiler, ["--project", joinPath(import.meta.dirname, "tsconfig.json")], { encoding: "utf8" });
  } catch (error) {
    assert.fail(error.stdout);
  }
});
