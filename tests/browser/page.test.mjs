/**
 * The page, in a real browser with a fake microphone, against a real relay.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join as joinPath } from "node:path";
import { Call, decode } from "../../assets/web/voxrelay-client.js";
import { Fake } from "./fake.mjs";
import { ROOT, SCRATCH, browser, line, open, relay, tenant, test, until } from "./harness.mjs";
import { compare, join, playedExactly, readWav, toBytes, toSamples, writeWav } from "./sound.mjs";

const { rate: RATE, samples: HELLO } = readWav(joinPath(ROOT, "assets/hello.wav"));
/** "Hello, can you hear me?" alone: 2 s, speech from 0.22 to 1.88 s. */
const SHORT = HELLO.subarray(0, 2 * RATE);
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** A microphone that says this, after half a second of silence: the first moments get lost. */
function clip(name, ...pieces) {
  const path = joinPath(SCRATCH, `${name}.wav`);
  writeWav(path, RATE, join(RATE, 0.5, ...pieces, 1));
  return path;
}
const QUIET = () => clip("quiet", 1);

/** A relay with a line to it, and a page on that. */
async function scene(after, { wav = QUIET(), config = "", microphone, init, ...options } = {}) {
  const server = await relay(after, config);
  const wire = await line(after, server.host);
  const chrome = await browser(after, wav, { microphone });
  const opened = await open(chrome, wire.origin, { path: "/?processing=off", init, ...options });
  return { server, wire, chrome, ...opened };
}

/** Positions that were told: by a page, or in raw messages. */
const played = (messages, reply) => (messages.said ?? messages.filter((m) => typeof m === "string").map((m) => JSON.parse(m)))
  .filter((m) => m.type === "played" && m.reply === reply).map((m) => m.ms);

test("page: what is played back is what was said", async ({ after }) => {
  const s = await scene(after, { wav: clip("hello", HELLO) });
  await s.picture("idle");
  await s.page.click("#start");
  await s.mood("Listening");
  await s.mood("You speak");
  await until(() => s.page.evaluate(() => Number(document.getElementById("meter-you").ariaValueNow) > 30), "the meter shows a voice");
  await s.picture("you-speak");
  await s.mood("It speaks");
  await until(() => s.page.evaluate(() => Number(document.getElementById("meter-it").ariaValueNow) > 30), "its meter too");
  await s.picture("it-speaks");
  const ended = await s.message("reply_ended");
  await s.mood("Listening");
  await s.picture("after-a-turn");

  const [sent, got, recorded] = [toSamples(Buffer.concat(s.seen.sent)), Buffer.concat(s.seen.got), await s.played()];
  const said = compare(HELLO, sent, RATE);
  assert.ok(said.worst > 0.9 && said.windows >= 15, `the microphone's sound reached the wire: ${JSON.stringify(said)}`);
  // The simulator says back what it heard, byte for byte; the last message is filled up with silence.
  assert.ok(Buffer.concat(s.seen.sent).includes(got.subarray(0, got.length - 960)), "the reply is a piece of what was sent");
  const exact = playedExactly(toSamples(got), recorded);
  assert.equal(exact.matched, got.length / 2, `the loudspeaker played the reply, sample for sample: ${JSON.stringify(exact)}`);
  assert.ok(exact.silence < RATE / 10, `and without gaps: ${exact.silence}`);
  const heard = compare(HELLO, toSamples(got), RATE);
  assert.ok(heard.worst > 0.9 && heard.windows === said.windows, `what was heard is what was said: ${JSON.stringify(heard)}`);

  const reports = played(s.seen, ended.reply);
  assert.ok(reports.length > 20 && reports.every((ms, i) => i === 0 || ms > reports[i - 1]), `positions: ${reports}`);
  assert.equal(reports.at(-1), got.length / 48, "and the last one is all of it");
  assert.deepEqual([ended.status, ended.heard_ms], ["completed", ended.audio_ms]);

  // The same on the screen, in words and numbers.
  const screen = await s.page.innerText("#turns");
  const { first_audio_ms: first, committed_ms: wait, relay_added_ms: added } = ended.latency;
  const whole = `${(ended.audio_ms / 1000).toFixed(1)} s`;
  for (const part of ["You", "3.7 seconds of speech.", "I heard 3.7 seconds of speech.", `first sound after ${first} ms`, `end of turn ${wait} ms`,
    `relay ${added} ms`, `heard ${whole} of ${whole}`]) {
    assert.ok(screen.includes(part), `${part} in ${screen}`);
  }
  await s.page.click("#end");
  await until(() => s.seen.said.at(-1).type === "close", "the goodbye");
  assert.equal(await s.page.getAttribute("body", "data-phase"), "ended");
  await s.picture("ended");
  assert.deepEqual(s.seen.problems, []);
});

test("page: speaking interrupts", async ({ after }) => {
  const s = await scene(after, { wav: clip("interrupting", HELLO, 2, SHORT) });
  await s.page.click("#start");
  const cleared = await s.message("clear");
  await s.mood("You speak");
  await s.picture("interrupted-by-voice");
  const first = await s.message("reply_ended");
  assert.deepEqual([first.reply, first.status], [cleared.reply, "interrupted"]);
  assert.ok(first.heard_ms > 1000 && first.heard_ms < first.audio_ms - 1000, `cut in its middle: ${JSON.stringify(first)}`);
  const second = await s.message("reply_ended", 2);
  assert.equal(second.status, "completed");

  const recorded = await s.played();
  const got = toSamples(Buffer.concat(s.seen.got));
  const exact = playedExactly(got, recorded);
  const heard = exact.matched / (RATE / 1000);
  const told = played(s.seen, "r1").at(-1);
  // What follows is faded out over 4 ms, and in a pause it is hardly another sound.
  assert.ok(heard >= told - 1 && heard <= told + 5, `the loudspeaker played ${heard} ms, and ${told} were told`);
  assert.ok(exact.silence < RATE / 10, `and without gaps: ${exact.silence}`);
  // The server cuts when it hears of the speech, by the last position that it was told and its clock; what was in the
  // device then is still heard.
  assert.ok(first.heard_ms <= told && told - first.heard_ms < 400, `the server believes the page: ${first.heard_ms} of ${told}`);
  assert.ok((await s.page.locator("#turns .unheard").first().innerText()).length > 3, "words that were not heard are struck out");
  const screen = await s.page.innerText("#turns");
  assert.match(screen, /cut off \d+\.\d s/);
  const again = compare(SHORT, recorded, RATE);
  assert.ok(again.worst > 0.9, `the second reply is whole: ${JSON.stringify(again)}`);
  await s.picture("after-an-interruption");
  assert.deepEqual(s.seen.problems, []);
});

test("page: a typed turn is answered, and the button and Escape stop the answer", async ({ after }) => {
  const s = await scene(after);
  await s.page.click("#start");
  await s.mood("Listening");
  for (const [n, stop] of [[1, () => s.page.click("#interrupt")], [2, () => s.page.keyboard.press("Escape")]]) {
    await s.page.fill("#text", `Question ${n}`);
    await s.page.press("#text", "Enter");
    await s.mood("It speaks");
    await until(() => (played(s.seen, `r${n}`).at(-1) ?? 0) > 500, "half a second is heard");
    await stop();
    const told = await until(() => s.seen.said.find((m) => m.type === "interrupt" && m.reply === `r${n}`), "the server is told");
    await s.mood("Interrupted");
    if (n === 1) await s.picture("interrupted-by-button");
    const ended = await s.message("reply_ended", n);
    assert.deepEqual([ended.status, ended.heard_ms], ["interrupted", told.played_ms]);
    await s.mood("Listening");
  }
  const recorded = await s.played();
  const loud = recorded.reduce((count, x) => count + (x !== 0 ? 1 : 0), 0) / (RATE / 1000);
  const told = s.seen.said.filter((m) => m.type === "interrupt").reduce((sum, m) => sum + m.played_ms, 0);
  assert.ok(loud <= told + 10 && loud > told * 0.8, `${loud} ms of sound came out, and ${told} were told`);
  assert.deepEqual(s.seen.said.filter((m) => m.type === "text").map((m) => m.text), ["Question 1", "Question 2"]);
  assert.match(await s.page.innerText("#turns"), /Question 1[^]*cut off[^]*Question 2/);
  assert.deepEqual(s.seen.problems, []);
});

test("page: push to talk sends what is said while the button is down", async ({ after }) => {
  const s = await scene(after, { wav: clip("pressing", SHORT, 1, SHORT, 1) });
  await s.page.check("[value=manual]");
  await s.page.click("#start");
  await s.mood("Ready");
  const box = await s.page.locator("#talk").boundingBox();
  await s.page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
  assert.equal(s.seen.sent.length, 0, "nothing is sent before");
  await s.page.mouse.down();
  await s.mood("You speak");
  await s.page.waitForTimeout(1500);
  await s.picture("push-to-talk");
  await s.page.mouse.up();
  await s.message("reply_started");
  const sent = Buffer.concat(s.seen.sent);
  assert.ok(sent.length > 48 * 1400 && sent.length < 48 * 2500, `${sent.length / 48} ms`);
  const ended = await s.message("reply_ended");
  assert.equal(ended.status, "completed");
  const got = Buffer.concat(s.seen.got);
  assert.deepEqual(got.subarray(0, sent.length), sent, "the turn is what was sent while the button was down");
  assert.equal(Buffer.concat(s.seen.sent).length, sent.length, "and nothing is sent after");
  assert.equal(s.seen.said.filter((m) => m.type === "commit").length, 1);
  assert.ok((await s.played()).some((x) => Math.abs(x) > 1000), "it is heard");

  // A tap holds the button, the next one lets go.
  await s.page.mouse.down();
  await s.page.mouse.up();
  await s.mood("You speak");
  await s.page.waitForTimeout(600);
  await s.page.mouse.down();
  await s.page.mouse.up();
  await until(() => s.seen.said.filter((m) => m.type === "commit").length === 2, "the second turn");
  const more = Buffer.concat(s.seen.sent).length - sent.length;
  assert.ok(more > 48 * 500, `${more / 48} ms`);
  await s.mood("It speaks");
  // Pressing it during the answer stops the answer.
  await s.page.mouse.down();
  assert.equal((await s.message("reply_ended", 2)).status, "interrupted");
  await s.page.mouse.up();
  assert.deepEqual(s.seen.problems, []);
});

test("page: the keyboard is enough", async ({ after }) => {
  const s = await scene(after, { wav: clip("keys", SHORT) });
  const focus = () => s.page.evaluate(() => document.activeElement.id || document.activeElement.value);
  const tabTo = async (wanted) => {
    for (let n = 0; n < 12; n++) {
      if (await focus() === wanted) return;
      await s.page.keyboard.press("Tab");
    }
    assert.fail(`Tab does not lead to ${wanted}`);
  };
  await tabTo("agent");
  await tabTo("format");
  await tabTo("rate");
  await tabTo("auto");
  await s.page.keyboard.press("ArrowDown");
  assert.equal(await focus(), "manual");
  await tabTo("start");
  await s.page.keyboard.press("Enter");
  await s.mood("Ready");
  assert.equal(await focus(), "talk", "the button that is needed next");
  await s.page.keyboard.down("Space");
  await s.mood("You speak");
  await s.page.waitForTimeout(1200);
  await s.page.keyboard.up("Space");
  await s.mood("It speaks");
  await s.page.keyboard.press("Escape");
  assert.equal((await s.message("reply_ended")).status, "interrupted");
  // From anywhere else the space bar talks too, but not where one writes.
  await s.page.evaluate(() => document.activeElement.blur());
  await s.page.keyboard.down("Space");
  await s.mood("You speak");
  await s.page.waitForTimeout(500);
  await s.page.keyboard.up("Space");
  await until(() => s.seen.said.filter((m) => m.type === "commit").length === 2, "a second turn");
  await tabTo("text");
  await s.page.keyboard.type("two words");
  assert.equal(await s.page.inputValue("#text"), "two words");
  await s.page.keyboard.press("Enter");
  await until(() => s.seen.said.some((m) => m.text === "two words"), "the text");
  await tabTo("end");
  await s.page.keyboard.press("Enter");
  assert.equal(await focus(), "start", "and back to where one begins");
  assert.deepEqual(s.seen.problems, []);
});

test("page: muted, it hears silence", async ({ after }) => {
  const s = await scene(after, { wav: clip("muting", HELLO) });
  await s.page.click("#start");
  await s.message("speech_started");
  await s.page.click("#mute");
  assert.equal(await s.page.getAttribute("#mute", "aria-pressed"), "true");
  const before = s.seen.sent.length;
  await s.message("speech_stopped");
  await s.message("reply_started");
  const after_ = Buffer.concat(s.seen.sent.slice(before + 5));
  assert.ok(after_.length > 9600 && after_.every((byte) => byte === 0), "digital silence, and enough of it to end the turn");
  await s.message("reply_ended");
  await s.mood("Muted");
  await s.picture("muted");
  assert.equal(s.seen.texts.filter((m) => m.type === "speech_started").length, 1, "the second sentence was not heard");
  await s.page.click("#mute");
  await s.mood("Listening");
  assert.deepEqual(s.seen.problems, []);
});

test("page: a dropped connection is shown and repaired, and the call goes on", async ({ after }) => {
  const s = await scene(after);
  await s.page.click("#start");
  await s.mood("Listening");
  await s.page.fill("#text", "first");
  await s.page.press("#text", "Enter");
  await s.mood("It speaks");
  s.wire.cut();
  await s.mood("Reconnecting");
  await until(async () => (await s.page.innerText("#repair-what")).includes("the call will go on where it was"), "what is being done");
  s.wire.mend();
  await s.page.click("#retry").catch(() => {}); // it may have come back by itself in this moment
  await s.message("resumed");
  await s.message("reply_ended");
  const ended = s.seen.texts.find((m) => m.type === "reply_ended");
  assert.deepEqual([ended.status, ended.heard_ms], ["completed", ended.audio_ms], "heard to its end, over the drop");
  assert.ok((await s.page.innerText("#turns")).includes("Reconnected. The call goes on where it was."));
  await s.page.fill("#text", "second");
  await s.page.press("#text", "Enter");
  await s.mood("It speaks");
  assert.equal(s.seen.texts.filter((m) => m.type === "ready").length, 1, "one call");
  await s.picture("resumed");
  assert.deepEqual(s.seen.problems, []);
});

test("page: where calls are not kept a dropped connection is a new call, and said to be", async ({ after }) => {
  const s = await scene(after, { config: "[call]\nresume_window_s = 0\n" });
  await s.page.click("#start");
  await s.mood("Listening");
  await s.page.fill("#text", "first");
  await s.page.press("#text", "Enter");
  await s.mood("It speaks");
  s.wire.cut();
  await s.mood("Reconnecting");
  const repair = await until(async () => {
    const text = await s.page.innerText("#repair-what");
    return /try \d/.test(text) && text;
  }, "what is being done");
  assert.match(repair, /a new call will begin, which knows nothing of this one/);
  assert.equal(await s.page.isDisabled("#text"), true);
  await s.picture("reconnecting");
  s.wire.mend();
  await s.page.click("#retry").catch(() => {}); // it may have come back by itself in this moment
  await s.mood("Listening");
  const screen = await s.page.innerText("#turns");
  for (const part of ["failed connection lost", "The connection was lost.", "Reconnected as a new call. It knows nothing of what was said before."]) {
    assert.ok(screen.includes(part), `${part} in ${screen}`);
  }
  await s.page.fill("#text", "second");
  await s.page.press("#text", "Enter");
  await s.mood("It speaks");
  const calls = s.seen.texts.filter((m) => m.type === "ready").map((m) => m.call);
  assert.equal(new Set(calls).size, 2, "two calls");
  // Giving up is possible at any time.
  s.wire.cut();
  await s.mood("Reconnecting");
  await s.page.click("text=Give up");
  assert.equal(await s.page.getAttribute("body", "data-phase"), "ended");
  assert.deepEqual(s.seen.problems, []);
});

test("page: a call that can be resumed goes on where it was, to the sample", async ({ after }) => {
  const fake = await Fake.start(after);
  const { host } = await relay(after);
  const wire = await line(after, host, new URL(fake.url).host);
  const s = await open(await browser(after, QUIET()), wire.origin, { path: "/?processing=off" });
  await s.page.click("#start");
  await s.mood("Listening");
  const frame = (n) => Buffer.from(toBytes(HELLO.subarray(n * 480, (n + 1) * 480)));
  fake.send({ type: "reply_started", reply: "r1" });
  for (let n = 0; n < 100; n++) fake.send(frame(n));
  await s.mood("It speaks");
  await until(() => played(fake.taken, "r1").length > 0, "a position");
  fake.drop();
  for (let n = 100; n < 150; n++) fake.send(frame(n)); // kept for the resume
  await s.message("resumed");
  for (let n = 150; n < 200; n++) fake.send(frame(n));
  await until(() => played(fake.taken, "r1").at(-1) === 4000, "all 4 s are heard");
  fake.send({ type: "reply_ended", reply: "r1", status: "completed", audio_ms: 4000, heard_ms: 4000, latency: {} });
  await s.mood("Listening");
  const exact = playedExactly(HELLO.subarray(0, 200 * 480), await s.played());
  assert.equal(exact.matched, 96_000, `nothing is missing, doubled or cut: ${JSON.stringify(exact)}`);
  assert.match(await s.page.innerText("#turns"), /The connection was lost\.[^]*Reconnected\. The call goes on where it was\./);
  assert.deepEqual(s.seen.problems, []);
});

test("page: a server that goes away says so, and its successor is found", async ({ after }) => {
  const s = await scene(after, { config: "[server]\ndrain_s = 1\n" });
  await s.page.click("#start");
  await s.mood("Listening");
  void s.server.stop("SIGTERM");
  await until(async () => (await s.page.innerText("#turns")).includes("This server goes away in 1 s."), "the announcement");
  await s.mood("Reconnecting");
  assert.match(await s.page.innerText("#repair-what"), /^The server (is going away|does not answer)\./);
  await relay(after, "", ["--listen", s.server.host]);
  await s.mood("Listening");
  assert.deepEqual(s.seen.problems, []);
});

test("page: other formats, and a browser that keeps its own rate", async ({ after }) => {
  const stubborn = () => {
    const Own = AudioContext;
    globalThis.AudioContext = class extends Own {
      constructor(options = {}) {
        if (options.sampleRate) throw new DOMException("not at that rate", "NotSupportedError");
        super({ ...options, sampleRate: 44100 });
      }
    };
  };
  const ways = [["mulaw", 8000], ["alaw", 8000], ["pcm16", 48000], ["pcm16", 24000, stubborn]];
  const one = async ([format, rate, init]) => {
    const name = `${format} at ${rate}${init ? " in a stubborn browser" : ""}`;
    const s = await scene(after, { wav: clip("short", SHORT), init });
    await s.page.selectOption("#format", format);
    await s.page.selectOption("#rate", String(rate));
    await s.page.click("#start");
    const ended = await s.message("reply_ended");
    const bytes = Buffer.concat(s.seen.got);
    const recorded = await s.played();
    const at = await s.page.evaluate(() => globalThis.heard.rate);
    assert.equal(at, init ? 44100 : rate, name);
    assert.equal(ended.status, "completed", name);
    assert.equal(played(s.seen, "r1").at(-1), ended.audio_ms, `${name}: all of it was reported as heard`);
    if (!init) {
      const got = decode(bytes, format);
      const exact = playedExactly(got, recorded);
      assert.equal(exact.matched, got.length, `${name}: ${JSON.stringify(exact)}`);
    }
    const back = init ? resampled(recorded, at, RATE) : resampled(decode(bytes, format), rate, RATE);
    const { worst, windows } = compare(SHORT, back, RATE);
    assert.ok(worst > (format === "pcm16" ? 0.9 : 0.8) && windows >= 6, `${name}: ${worst} over ${windows}`);
    assert.deepEqual(s.seen.problems, []);
    await s.chrome.close();
  };
  // Two at a time: they mostly wait, but not only.
  await Promise.all([ways.slice(0, 2), ways.slice(2)].map(async (some) => {
    for (const way of some) await one(way);
  }));
});

/** By straight lines: good enough to compare with. */
function resampled(samples, from, to) {
  return Int16Array.from({ length: Math.floor((samples.length * to) / from) }, (_, n) => {
    const at = (n * from) / to;
    const i = Math.floor(at);
    return (samples[i] ?? 0) * (1 - at + i) + (samples[i + 1] ?? 0) * (at - i);
  });
}

test("page: troubles are told in words", async ({ after }) => {
  const trouble = async (s, ...parts) => {
    const text = await until(async () => (await s.page.isVisible("#trouble")) && (await s.page.innerText("#trouble")), "the trouble on the screen");
    for (const part of parts) assert.ok(text.includes(part), `${part} in ${text}`);
    assert.equal(await s.page.getAttribute("#trouble", "role"), "alert");
  };
  // Without a microphone one can still type.
  for (const [microphone, ...parts] of [["refused", "This page may not use the microphone.", "Allow it"], ["none", "There is no microphone.", "Plug one in"]]) {
    const s = await scene(after, { microphone });
    await s.page.click("#start");
    await trouble(s, ...parts, "You can type meanwhile.", "Try the microphone again");
    await s.mood("Waiting for text");
    await s.picture(`microphone-${microphone}`);
    await s.page.fill("#text", "hello");
    await s.page.press("#text", "Enter");
    await s.mood("It speaks");
    await s.chrome.close();
  }
  {
    const s = await scene(after, { path: "/?agent=nobody", config: "[server]\nmax_calls = 1\n" });
    await s.page.click("#start");
    await trouble(s, "No agent “nobody” is configured.", "Choose another agent.", "req_");
    await s.picture("error");
    await s.page.selectOption("#agent", "default");
    const other = new Call({ url: `ws://${s.server.host}/v1/voice` });
    await other.open();
    await s.page.click("#start");
    await trouble(s, "All lines are taken.", "Wait a little and call again.");
    await other.close();
    await until(async () => (await fetch(`${s.server.origin}/v1/voice`)).ok, "a free line");
    await s.page.click("#start");
    await s.mood("Listening");
    assert.equal(await s.page.isVisible("#trouble"), false, "what is over is not shown any more");
    await s.page.click("#end");
    await s.server.stop();
    await s.page.click("#start");
    await trouble(s, "The code for the sound cannot be loaded.", "whether the server is running");
    await s.chrome.close();
  }
  {
    // The same page under a name that is not this machine's: plain http is not safe enough for a microphone.
    const server = await relay(after);
    const wire = await line(after, server.host);
    const chrome = await browser(after, QUIET(), { args: ["--host-resolver-rules=MAP voice.example 127.0.0.1"] });
    const s = await open(chrome, wire.origin.replace("127.0.0.1", "voice.example"));
    await s.page.click("#start");
    await trouble(s, "this one came over plain http", "https");
  }
});

test("page: a server that wants a token is given one, which stands in no address", async ({ after }) => {
  const server = await tenant(after);
  const wire = await line(after, server.host);
  const chrome = await browser(after, clip("token", SHORT));
  const s = await open(chrome, wire.origin, { path: "/?processing=off" });
  const addresses = [];
  s.page.on("request", (request) => addresses.push(request.url()));
  s.page.on("websocket", (socket) => addresses.push(socket.url()));
  const hint = (part) => until(async () => (await s.page.innerText("#token-hint")).includes(part), part);
  const accessible = async (where) => {
    await s.page.evaluate(AXE);
    const { violations } = await s.page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
    assert.deepEqual(violations.map(({ id }) => id), [], where);
  };
  await hint("wants to know who calls");
  const field = s.page.getByLabel("Call token");
  assert.equal(await field.getAttribute("type"), "password");
  await accessible("asked");
  await s.picture("token-asked");
  await s.page.click("#start");
  assert.deepEqual([await s.page.getAttribute("body", "data-phase"), s.seen.sockets], ["idle", 0], "nobody is called without one");

  // A wrong one is refused at the agents already, and by the call.
  await field.fill("wrong");
  await field.press("Enter");
  await hint("This token is not accepted");
  await until(() => s.page.isVisible("#trouble"), "the call was refused");
  assert.match(await s.page.innerText("#trouble"), /The call token is not accepted\.[^]*req_/);
  assert.equal(await s.page.evaluate(() => document.activeElement.id), "token", "where another one is put");
  assert.equal(await field.getAttribute("aria-invalid"), "true");
  await accessible("refused");
  await s.picture("token-refused");

  const token = await server.token({ user: "ann" });
  await field.fill(` ${token}\n`);
  await s.page.click("#start");
  await s.mood("It speaks");
  const { calls: [{ door, user }] } = await (await server.ask("GET", "/v1/calls")).json();
  assert.deepEqual([door, user], ["thin", "ann"]);
  assert.equal((await s.message("reply_ended")).status, "completed");
  const { worst, windows } = compare(SHORT, await s.played(), RATE);
  assert.ok(worst > 0.9 && windows >= 6, `the answer is heard: ${worst} over ${windows}`);
  await s.page.click("#end");

  // A reload of the tab knows it still; another tab does not.
  await s.page.reload();
  await until(() => s.page.evaluate(() => document.getElementById("agent").value === "default"), "the agents");
  await s.page.click("#start");
  await s.mood("Listening");
  assert.equal(await s.page.isVisible("#token-field"), false);
  await s.page.click("#end");
  assert.ok(addresses.length > 10 && addresses.every((address) => !address.includes(token)), addresses.join("\n"));
  assert.ok(!s.page.url().includes(token));
  const other = await open(chrome, wire.origin);
  await until(() => other.page.isVisible("#token-field"), "it is asked again");
  assert.deepEqual([...s.seen.problems, ...other.seen.problems], []);
});

test("page: a token that ends ends its call, and another one is asked for", async ({ after }) => {
  const server = await tenant(after);
  const wire = await line(after, server.host);
  const s = await open(await browser(after, QUIET()), wire.origin, { path: "/?processing=off" });
  await s.page.getByLabel("Call token").fill(await server.token({ expires_in_s: 6 }));
  await s.page.click("#start");
  await s.mood("Listening");
  await until(async () => /The call token ends in \d+ s, and this call with it\./.test(await s.page.innerText("#turns")), "it is announced");
  await until(() => s.page.isVisible("#token-hint"), "the end");
  assert.match(await s.page.innerText("#trouble"), /The credential has expired/);
  assert.match(await s.page.innerText("#token-hint"), /is not accepted/);
  await s.page.getByLabel("Call token").fill(await server.token());
  await s.page.click("#start");
  await s.mood("Listening");
  assert.deepEqual(s.seen.problems, []);
});

test("page: it fits a phone, also in the hand", async ({ after }) => {
  const s = await scene(after, { viewport: { width: 360, height: 640 }, isMobile: true, hasTouch: true, deviceScaleFactor: 2, path: "/?turns=manual&processing=off", wav: clip("phone", SHORT) });
  const fits = async (where) => {
    const { wide, small } = await s.page.evaluate(() => ({
      wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
      small: [...document.querySelectorAll("button, select, input[type=text]")].filter((e) => e.checkVisibility())
        .map((e) => [e.id, Math.round(e.getBoundingClientRect().height), Math.round(e.getBoundingClientRect().right)])
        .filter(([id, high, right]) => high < (id === "end" ? 36 : 44) || right > innerWidth),
    }));
    assert.ok(wide <= 0, `${where}: ${wide} px too wide`);
    assert.deepEqual(small, [], `${where}: too small to hit, or outside`);
  };
  await fits("before a call");
  await s.picture("phone-idle");
  await s.page.tap("#start");
  await s.mood("Ready");
  await s.page.tap("#talk");
  await s.mood("You speak");
  await fits("during a call");
  await s.picture("phone-talking");
  await s.page.waitForTimeout(1200);
  await s.page.tap("#talk");
  await s.message("reply_ended");
  await fits("after a turn");
  await s.picture("phone-after-a-turn");
  await s.page.setViewportSize({ width: 640, height: 360 });
  await fits("on its side");
  await s.picture("phone-on-its-side");
  assert.deepEqual(s.seen.problems, []);
});

test("page: names, roles and contrast are right, in light and dark", async ({ after }) => {
  for (const colorScheme of ["light", "dark"]) {
    const s = await scene(after, { colorScheme, path: "/?agent=nobody&processing=off" });
    const check = async (where) => {
      // The checker runs in the page's world, not as a script of the page's: the policy stays in force.
      await s.page.evaluate(AXE);
      const { violations } = await s.page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
      const found = violations.map((v) => `${v.id}: ${v.nodes.map((n) => n.html.slice(0, 90)).join(" | ")} ${v.nodes[0].failureSummary ?? ""}`);
      assert.deepEqual(found, [], `${colorScheme}, ${where}`);
      await s.picture(`${colorScheme}-${where}`);
    };
    await check("idle");
    await s.page.click("#start");
    await until(() => s.page.isVisible("#trouble"), "an error");
    await check("error");
    await s.page.selectOption("#agent", "default");
    await s.page.click("#start");
    await s.mood("Listening");
    await s.page.fill("#text", "What is the weather like in Paris today?");
    await s.page.press("#text", "Enter");
    await s.mood("It speaks");
    await until(() => (played(s.seen, "r1").at(-1) ?? 0) > 900, "a second is heard");
    await check("speaking");
    await s.page.keyboard.press("Escape");
    await s.message("reply_ended");
    await check("cut");
    s.wire.cut();
    await s.mood("Reconnecting");
    await check("reconnecting");
    assert.deepEqual(s.seen.problems, []);
    await s.chrome.close();
  }
});
