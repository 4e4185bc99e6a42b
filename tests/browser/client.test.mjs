/**
 * voxrelay-client.js outside of a browser: formats, rates, the account of what was heard, the protocol against a server that
 * does what it is told, and whole turns against the relay.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join as joinPath } from "node:path";
import { WebSocket as PackageWebSocket } from "ws";
import { Fake } from "./fake.mjs";
import { ROOT, relay, tenant, test, until } from "./harness.mjs";
import { compare, readWav } from "./sound.mjs";
import { CLOSE_CODES, Call, CallError, Playout, Resampler, closeInWords, decode, encode, microphoneInWords, toFloat32, toInt16 }
  from "../../assets/web/voxrelay-client.js";

/** Seeded chance. */
function dice(seed) {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

// ---- formats

test("client: G.711 is the ITU's, code by code", async () => {
  const vector = (name) => readFileSync(joinPath(ROOT, "tests/clips/g711", name));
  const all = Int16Array.from({ length: 65_536 }, (_, i) => i - 32_768);
  const codes = Uint8Array.from({ length: 256 }, (_, i) => i);
  for (const [format, name] of [["mulaw", "ulaw"], ["alaw", "alaw"]]) {
    assert.deepEqual(Buffer.from(encode(all, format)), vector(`${name}_encode_65536_itu.bin`), format);
    assert.deepEqual(decode(codes, format), decode(vector(`${name}_decode_256_s16le.bin`)), format);
  }
});

test("client: PCM is little-endian, and samples are rounded and cut", async () => {
  assert.deepEqual([...encode(Int16Array.of(1, -2, 0x1234))], [1, 0, 0xfe, 0xff, 0x34, 0x12]);
  assert.deepEqual([...decode(Uint8Array.of(1, 0, 0xfe, 0xff, 7))], [1, -2], "half a sample is left out");
  assert.deepEqual([...toInt16(Float32Array.of(0, 1, -1, 2, 0.5 / 32768, -1.6 / 32768))], [0, 32767, -32768, 32767, 1, -2]);
  const every = Int16Array.from({ length: 65_536 }, (_, i) => i - 32_768);
  assert.deepEqual(toInt16(toFloat32(every)), every, "there and back changes nothing");
  assert.throws(() => encode(every, "opus"), /allowed: pcm16, mulaw, alaw/);
});

// ---- rates

function tone(hz, rate, seconds) {
  return Float32Array.from({ length: rate * seconds }, (_, n) => 0.5 * Math.sin((2 * Math.PI * hz * n) / rate));
}

function snr(want, got) {
  let [signal, noise] = [0, 0];
  for (let i = 300; i < want.length - 300; i++) {
    signal += want[i] ** 2;
    noise += (want[i] - got[i]) ** 2;
  }
  return 10 * Math.log10(signal / noise);
}

function resample(samples, from, to, pieces) {
  const resampler = new Resampler(from, to);
  const out = [];
  for (let at = 0, size; at < samples.length; at += size) {
    size = pieces();
    out.push(resampler.push(samples.subarray(at, at + size)));
  }
  out.push(resampler.flush());
  return Float32Array.from(out.flatMap((piece) => [...piece]));
}

test("client: a change of rate keeps the tone and the length, however it is cut", async () => {
  const chance = dice(7);
  for (const [from, to] of [[8000, 48000], [48000, 8000], [24000, 44100], [44100, 24000], [16000, 24000], [24000, 24000]]) {
    const input = tone(1000, from, 1);
    const whole = resample(input, from, to, () => input.length);
    assert.equal(whole.length, to, `one second at ${from} is one second at ${to}`);
    assert.ok(snr(tone(1000, to, 1), whole) > 60, `${from} to ${to}: ${snr(tone(1000, to, 1), whole)} dB`);
    assert.deepEqual(resample(input, from, to, () => 1 + Math.floor(chance() * 999)), whole, `${from} to ${to} in pieces`);
  }
  const alias = resample(tone(6000, 24000, 1), 24000, 8000, () => 480).subarray(100, 7900);
  assert.ok(Math.max(...alias) < 0.001, "what the slower rate cannot carry is gone");
});

// ---- what was heard

/** Pulls until nothing comes any more. */
function drain(playout, quantum = 128) {
  const out = [];
  for (let quiet = 0; quiet < 40; ) {
    const block = new Float32Array(quantum);
    playout.pull(block);
    quiet = block.some((s) => s !== 0) ? 0 : quiet + 1;
    out.push(...block);
  }
  return out;
}

const ramp = (from, length) => Float32Array.from({ length }, (_, i) => (from + i + 1) / 32768);

test("client: a playout gives every sample once, in order, and counts it", async () => {
  const playout = new Playout(24000);
  for (let at = 0; at < 4800; at += 480) playout.push("r1", ramp(at, 480));
  assert.equal(playout.queuedMs, 200);
  assert.deepEqual(playout.positions(), [], "nothing was pulled");
  const out = drain(playout).filter((s) => s !== 0);
  assert.deepEqual(Float32Array.from(out), ramp(0, 4800));
  assert.deepEqual(playout.positions(), [{ reply: "r1", ms: 200 }]);
  assert.deepEqual(playout.positions(), [], "told once");
  assert.equal(playout.underruns, 0);
});

test("client: what is on its way to the ear is not heard yet", async () => {
  const playout = new Playout(8000, 8000, 0);
  playout.push("r1", ramp(0, 800));
  const block = new Float32Array(80);
  for (let ms = 10; ms <= 100; ms += 10) {
    playout.pull(block);
    playout.positions(240); // 30 ms
    assert.equal(playout.heard("r1"), Math.max(0, ms - 30), `after ${ms} ms`);
    assert.equal(playout.isThrough(240), false);
  }
  for (let n = 0; n < 3; n++) playout.pull(block);
  assert.equal(playout.isThrough(240), true);
  assert.deepEqual(playout.positions(240), [{ reply: "r1", ms: 100 }]);
  assert.equal(playout.isThrough(240), false, "told");
});

test("client: a cleared reply stops at once, fades, and stays silent", async () => {
  const playout = new Playout(8000, 8000, 0);
  playout.push("r1", ramp(10_000, 1600));
  playout.push("r2", ramp(0, 160));
  const block = new Float32Array(400);
  playout.pull(block);
  assert.equal(playout.clear("r1"), 50, "50 ms were pulled, whatever the lag");
  assert.equal(playout.clear("r1"), 50, "twice changes nothing");
  playout.push("r1", ramp(0, 160));
  playout.pull(block);
  assert.ok(block[0] > 0 && block[0] < 0.4 && block[31] < block[0] && block[31] > 0, "4 ms of fading");
  assert.deepEqual(block.slice(32, 192), ramp(0, 160), "then the next reply");
  assert.ok(block.slice(192).every((s) => s === 0));
  assert.deepEqual(playout.positions(), [{ reply: "r2", ms: 20 }], "the fade is not counted");
});

test("client: a loudspeaker waits for a little in hand, and not for ever", async () => {
  const playout = new Playout(8000);
  const block = new Float32Array(80);
  playout.push("r1", ramp(0, 160)); // 20 ms of the 60 wanted
  const began = [];
  for (let n = 0; n < 10; n++) {
    playout.pull(block);
    began.push(block[0] !== 0);
  }
  assert.deepEqual(began.indexOf(true), 5, "a short reply is played all the same, after 60 ms");
  playout.push("r1", ramp(160, 480));
  playout.pull(block);
  assert.ok(block[0] !== 0, "60 ms are enough to begin at once");
  assert.equal(playout.underruns, 1);
});

test("client: heard never runs backwards nor past what came, whatever happens", async () => {
  for (let seed = 1; seed <= 60; seed++) {
    const chance = dice(seed);
    const rates = [[24000, 24000], [8000, 48000], [24000, 44100]][seed % 3];
    const playout = new Playout(...rates);
    const [came, cleared, before] = [{}, new Set(), {}];
    for (let step = 0; step < 120; step++) {
      const reply = `r${1 + Math.floor(step / 40)}`;
      const what = chance();
      if (what < 0.5) {
        if (!cleared.has(reply)) came[reply] = (came[reply] ?? 0) + 20;
        playout.push(reply, ramp(step, rates[0] / 50));
      } else if (what < 0.53) {
        const heard = playout.clear(reply);
        cleared.add(reply);
        assert.ok(heard <= (came[reply] ?? 0) + 1e-6);
      } else {
        playout.pull(new Float32Array(128 * (1 + Math.floor(chance() * 12))));
      }
      playout.positions(Math.floor(chance() * 400));
      for (const name of Object.keys(came)) {
        const heard = playout.heard(name);
        assert.ok(heard >= (before[name] ?? 0) - 1e-6 && heard <= came[name] + 1e-6, `seed ${seed}: ${name} ${heard} of ${came[name]}`);
        before[name] = heard;
      }
    }
    drain(playout);
    playout.positions();
    for (const [name, ms] of Object.entries(came)) {
      if (!cleared.has(name)) assert.ok(Math.abs(playout.heard(name) - ms) < 1e-6, `seed ${seed}: all of ${name} was heard`);
    }
  }
});

// ---- the protocol

/** A call on a fake server, with all its events. */
async function calling(after, options = {}, prepare = () => {}) {
  const fake = await Fake.start(after);
  prepare(fake);
  const call = new Call({ url: fake.url, random: () => 0, ...options });
  const events = [];
  call.on("*", (event) => events.push(event));
  after(() => call.close());
  const of = (type) => events.filter((event) => event.type === type);
  return { fake, call, events, of, seen: (type, n = 1) => until(() => of(type)[n - 1], `${type} ${n}`, 10_000) };
}

const json = (messages) => messages.filter((m) => typeof m === "string").map((m) => JSON.parse(m));

test("client: a call is opened as the contract says", async ({ after }) => {
  for (const [options, path, protocols] of [
    [{}, "/v1/voice", "voxrelay.v1"],
    [{ agent: "a b", format: "mulaw", rate: 8000, outFormat: "pcm16", outRate: 24000, turns: "manual", pace: "fast" },
      "/v1/voice?agent=a+b&format=mulaw&rate=8000&out_format=pcm16&out_rate=24000&turns=manual&pace=fast", "voxrelay.v1"],
    [{ token: "T1" }, "/v1/voice", "voxrelay.v1,voxrelay.token.T1"],
    [{ token: async () => "T2" }, "/v1/voice", "voxrelay.v1,voxrelay.token.T2"],
  ]) {
    for (const scheme of ["ws", "http"]) {
      const { fake, call } = await calling(after);
      const fresh = new Call({ url: fake.url.replace("ws:", `${scheme}:`), ...options });
      const ready = await fresh.open();
      assert.equal(fake.asked[0].url, path);
      assert.equal(fake.asked[0].protocols.replaceAll(" ", ""), protocols);
      assert.equal(ready.call, "call_1");
      assert.equal(fresh.state, "open");
      await fresh.close();
      assert.equal(fresh.state, "ended");
      await assert.rejects(fresh.open(), /opened once/);
      await call.close();
    }
  }
});

test("client: messages are what the contract says, and large ones are cut", async ({ after }) => {
  const { fake, call, seen } = await calling(after, { format: "pcm16" });
  call.send(Int16Array.of(9)); // before it is open: nothing was called yet
  const opened = call.open();
  call.send(Int16Array.of(1, 2)); // kept until it is open
  await opened;
  call.send(Uint8Array.of(5)); // half a sample
  call.send(Uint8Array.of(6, 7, 8).buffer);
  call.send(new Int16Array(1200)); // 2400 bytes, and 1000 are allowed
  call.send(new Float32Array(0));
  call.commit();
  call.discard();
  call.text("hello");
  call.toolResult("c1", "{}");
  call.renew("T");
  call.ping({ a: 1 });
  assert.equal(await call.interrupt(), false, "no reply, nothing to stop");
  assert.deepEqual((await seen("pong")).t, { a: 1 });
  const binary = fake.taken.filter((m) => typeof m !== "string");
  assert.deepEqual(binary.slice(0, 3).map((b) => [...b]), [[1, 0, 2, 0], [5], [6, 7, 8]]);
  assert.deepEqual(binary.slice(3).map((b) => b.length), [1000, 1000, 400]);
  assert.deepEqual(json(fake.taken), [
    { type: "commit" }, { type: "discard" }, { type: "text", text: "hello" }, { type: "tool_result", call_id: "c1", output: "{}" },
    { type: "token", token: "T" }, { type: "ping", t: { a: 1 } },
  ]);
  await call.close();
  assert.deepEqual(json(fake.taken).at(-1), { type: "close" });
});

test("client: reply audio may be cut anywhere", async ({ after }) => {
  for (const format of ["pcm16", "mulaw", "alaw"]) {
    const { fake, call, of, seen } = await calling(after, { format });
    await call.open();
    const chance = dice(3);
    const samples = Int16Array.from({ length: 5000 }, () => Math.floor(chance() * 65536) - 32768);
    const bytes = encode(samples, format);
    fake.send({ type: "reply_started", reply: "r1" });
    for (let at = 0, size; at < bytes.length; at += size) {
      size = 1 + Math.floor(chance() * 40);
      fake.send(bytes.slice(at, at + size));
    }
    fake.send({ type: "reply_ended", reply: "r1", status: "completed", audio_ms: 1, heard_ms: 1, latency: {} });
    await seen("reply_ended");
    const got = of("audio").flatMap((event) => [...event.samples]);
    assert.deepEqual(Int16Array.from(got), decode(bytes, format), format);
    assert.ok(of("audio").every((event) => event.reply === "r1"));
    await call.close();
  }
});

/** A loudspeaker made of a playout, pulled by hand. */
function speaker() {
  const playout = new Playout(24000, 24000, 0);
  const made = {
    onplayed: null,
    play: (reply, samples) => playout.push(reply, toFloat32(samples)),
    clear: async (reply) => playout.clear(reply),
    pull(ms) {
      playout.pull(new Float32Array(ms * 24));
      for (const { reply, ms: heard } of playout.positions()) made.onplayed(reply, heard);
    },
  };
  return made;
}

test("client: the server learns to the millisecond what was heard", async ({ after }) => {
  const loud = speaker();
  const { fake, call, of, seen } = await calling(after, { speaker: loud });
  await call.open();
  fake.send({ type: "reply_started", reply: "r1" });
  for (let n = 0; n < 10; n++) fake.send(new Uint8Array(960).fill(1));
  await seen("audio", 10);
  loud.pull(30);
  loud.pull(41);
  fake.send({ type: "clear", reply: "r1" });
  fake.send(new Uint8Array(960).fill(2)); // still on its way when it was cleared
  fake.send({ type: "reply_started", reply: "r2" });
  fake.send(new Uint8Array(960).fill(3));
  await seen("audio", 11);
  assert.equal(of("audio").at(-1).reply, "r2", "the rest of a cleared reply is dropped");
  loud.pull(4 + 7); // what was cut fades first
  fake.send({ type: "reply_ended", reply: "r1", status: "interrupted", audio_ms: 220, heard_ms: 71, latency: {} });
  await seen("reply_ended");
  assert.equal(await call.interrupt(), true, "the button");
  assert.equal(await call.interrupt(), false, "pressed twice");
  call.ping();
  await seen("pong");
  assert.deepEqual(json(fake.taken), [
    { type: "played", reply: "r1", ms: 30 }, { type: "played", reply: "r1", ms: 71 }, { type: "played", reply: "r2", ms: 7 },
    { type: "interrupt", reply: "r2", played_ms: 7 }, { type: "ping", t: null },
  ]);
});

// ---- resume

test("client: a resume loses nothing and doubles nothing, in both directions", async ({ after }) => {
  await Promise.all([1, 2, 3, 4, 5, 6].map(async (seed) => {
    const chance = dice(seed * 7919);
    const { fake, call, of } = await calling(after);
    await call.open();
    let drops = 0;
    for (let n = 0; n < 400; n++) {
      // Both sides talk at once: audio and texts with their numbers in them.
      if (chance() < 0.6) call.send(Uint8Array.of(n & 255, n >> 8));
      else call.text(`mine ${n}`);
      if (chance() < 0.5) fake.send({ type: "notice", code: "n", message: String(n) });
      if (chance() < 0.2) fake.send({ type: "ack", got: fake.got, audio_ms: 0 });
      if (chance() < 0.1) await new Promise((resolve) => setTimeout(resolve, 5));
      if (n % 97 === 50) {
        drops += 1;
        fake.drop();
      }
      // Some 20 messages fall into each outage, before and after the client knows of it.
      if (n % 97 === 70) await until(() => call.state === "open" && !fake.now.dead, "the line is whole");
    }
    await until(() => call.state === "open" && !fake.now.dead, "the line is whole");
    call.text("last");
    fake.send({ type: "notice", code: "n", message: "last" });
    await until(() => json(fake.taken).some((m) => m.text === "last"), "the client's last word");
    await until(() => of("notice").some((m) => m.message === "last"), "the server's last word");
    assert.equal(drops, 4);
    assert.equal(of("resumed").length, drops);
    assert.equal(of("ready").length, 1);
    assert.ok(of("reconnecting").every((event) => event.resume));
    assert.equal(of("reconnected").filter((event) => event.resumed).length, drops);
    const mine = fake.taken.map((m) => (typeof m === "string" ? JSON.parse(m).text?.replace("mine ", "") : String(m[0] + m[1] * 256)))
      .filter((n) => n !== undefined && n !== "last").map(Number);
    assert.deepEqual(mine, Array.from({ length: 400 }, (_, n) => n), `seed ${seed}: what the server got`);
    const theirs = fake.sent.filter((m) => typeof m === "string").map((m) => JSON.parse(m)).filter((m) => m.type === "notice").map((m) => m.message);
    assert.deepEqual(of("notice").map((m) => m.message), theirs, `seed ${seed}: what the client got`);
    assert.equal(new Set(fake.asked.map((a) => a.url)).size, drops + 1, "each token once");
    await call.close();
  }));
});

test("client: what was received is acknowledged, what was acknowledged is not sent again", async ({ after }) => {
  const { fake, call, seen } = await calling(after);
  await call.open();
  for (const text of ["a", "b", "c"]) call.text(text);
  await until(() => fake.got === 3, "three messages");
  fake.send({ type: "ack", got: 3, audio_ms: 0 });
  fake.send({ type: "notice", code: "n", message: "x" });
  await until(() => json(fake.taken).some((m) => m.type === "ack" && m.got === 2), "the client's ack of two messages");
  fake.got = 3; // the fourth, its ack, is lost on the way
  fake.taken.length = 0;
  fake.drop();
  call.text("d"); // said while the line is dead
  await seen("resumed");
  await until(() => json(fake.taken).some((m) => m.text === "d"), "what was said meanwhile");
  assert.deepEqual(json(fake.taken), [{ type: "ack", got: 2 }, { type: "text", text: "d" }]);
  assert.match(fake.asked[1].url, /\?resume=t1&got=2$/, "and nothing else in the address");
});

test("client: positions while the line is dead are told as one", async ({ after }) => {
  const { fake, call, seen } = await calling(after);
  await call.open();
  fake.send({ type: "reply_started", reply: "r1" });
  await seen("reply_started");
  fake.drop();
  await seen("reconnecting");
  for (const ms of [20, 40, 60]) call.played("r1", ms);
  await seen("resumed");
  await until(() => json(fake.taken).some((m) => m.type === "played"), "a position");
  assert.deepEqual(json(fake.taken).filter((m) => m.type === "played"), [{ type: "played", reply: "r1", ms: 60 }]);
});

test("client: a call that cannot be resumed begins anew, and says so", async ({ after }) => {
  const { fake, call, of, seen } = await calling(after);
  await call.open();
  call.text("old");
  await until(() => fake.got === 1, "a message");
  fake.forgetful = true;
  fake.drop();
  await seen("reconnecting");
  call.toolResult("c", "old"); // belongs to a call that is gone
  call.text("typed meanwhile");
  await seen("ready", 2);
  call.text("new");
  await until(() => json(fake.taken).some((m) => m.text === "new"), "the new call works");
  assert.deepEqual(of("reconnecting").map((e) => [e.resume, e.error.closeCode]), [[true, 1006], [false, 4410]]);
  assert.deepEqual(of("reconnected").map((e) => e.resumed), [false]);
  assert.deepEqual(json(fake.taken).map((m) => m.text), ["old", "typed meanwhile", "new"], "nothing of the old call is sent to the new one");
});

test("client: without a token a lost line is a new call, with growing waits", async ({ after }) => {
  const { fake, call, of, seen } = await calling(after, {}, (f) => { f.resumable = false; });
  await call.open();
  fake.drop();
  await seen("ready", 2);
  fake.drop();
  await seen("ready", 3);
  fake.refusal = { status: 503, error: { code: "overloaded", message: "all lines are taken", retryable: true, retry_after_ms: 700, request_id: "q" } };
  fake.drop();
  const waited = await seen("reconnecting", 4);
  fake.refusal = null;
  await seen("ready", 4);
  const [first, second, third] = of("reconnecting");
  assert.deepEqual([first, second, third].map((e) => [e.attempt, e.resume, e.delayMs]), [[1, false, 125], [2, false, 250], [3, false, 500]]);
  assert.equal(waited.delayMs, 1000, "its own wait is longer than the server's");
  assert.equal(waited.error.message, "All lines are taken.");
  assert.ok(fake.asked.every(({ url }) => !url.includes("resume")));
});

test("client: it asks why it was refused, and says it in words", async ({ after }) => {
  for (const [status, error, message, advice] of [
    [404, { code: "unknown_agent", message: "no agent `x` is configured", retryable: false, field: "agent", request_id: "req_1" },
      "No agent `x` is configured.", "Choose another agent."],
    [503, { code: "overloaded", message: "all lines are taken", retryable: true, retry_after_ms: 5000, request_id: "req_2" },
      "All lines are taken.", "Wait a little and call again."],
    [403, { code: "forbidden", message: "Origin `x` may not call", retryable: false, request_id: "req_3" }, "Origin `x` may not call.", "page that this server"],
  ]) {
    const { call, fake, of } = await calling(after, { token: "T" }, (f) => { f.refusal = { status, error }; });
    const refused = await call.open().catch((e) => e);
    assert.ok(refused instanceof CallError);
    assert.equal(refused.message, message);
    assert.ok(refused.advice.includes(advice), refused.advice);
    assert.deepEqual([refused.status, refused.code, refused.requestId, refused.retryAfterMs, refused.field],
      [status, error.code, error.request_id, error.retry_after_ms, error.field]);
    assert.equal(fake.probe.headers.authorization, "Bearer T");
    assert.equal(of("ended")[0].error, refused);
  }
  const nobody = await new Call({ url: "ws://127.0.0.1:9/v1/voice" }).open().catch((e) => e);
  assert.equal(nobody.message, "The server does not answer.");
  const nonsense = await new Call({ url: "nonsense" }).open().catch((e) => e);
  assert.match(nonsense.message, /cannot be made/);
});

test("client: every close code of the contract has words and a next step", async ({ after }) => {
  const rows = readFileSync(joinPath(ROOT, "src/client/thin.md"), "utf8").split("## Close codes")[1].split("\n## ")[0].split("\n")
    .filter((row) => /^\| [\d, ]+ \|/.test(row)).map((row) => row.split("|").map((cell) => cell.trim()));
  assert.ok(rows.length > 15);
  for (const [, codes, , again] of rows) {
    for (const code of codes.split(", ").map(Number)) {
      const words = CLOSE_CODES[code];
      assert.ok(words?.what && (words.advice || code === 1000), `${code}`);
      // 4410 begins a new call by itself.
      assert.equal(words.then, code === 4410 ? "again" : again === "yes" ? "again" : again === "with a new token" ? "token" : "stop", `${code}`);
    }
  }
  assert.match(closeInWords(4999).what, /unknown code 4999/);

  for (const [code, error, goesOn] of [[1008, "policy_violation", false], [4402, "budget_exhausted", false], [4409, "superseded", false],
    [4440, "max_call_time", false], [1011, "internal", true], [4503, "upstream_unavailable", true], [1001, null, true]]) {
    const { fake, call, seen } = await calling(after, {}, (f) => { f.resumable = false; });
    await call.open();
    if (error) fake.send({ type: "error", error: { code: error, message: "because", retryable: goesOn, request_id: "q" } });
    fake.now.close(code, error ?? "");
    const event = await seen(goesOn ? "reconnecting" : "ended");
    assert.equal(event.error.closeCode, code);
    assert.equal(event.error.message, CLOSE_CODES[code].what + (error ? " Because." : ""));
    if (goesOn) await seen("ready", 2);
    await call.close();
  }
});

test("client: an expired token is renewed where there is a way to", async ({ after }) => {
  for (const renewable of [true, false]) {
    let asked = 0;
    const token = renewable ? () => `T${(asked += 1)}` : "T1";
    const { fake, call, seen } = await calling(after, { token });
    await call.open();
    fake.send({ type: "error", error: { code: "token_expired", message: "too old", retryable: false, request_id: "q" } });
    fake.now.close(4401, "token_expired");
    await seen(renewable ? "resumed" : "ended");
    if (renewable) assert.match(fake.asked[1].protocols, /voxrelay\.token\.T2/);
    await call.close();
  }
});

test("client: a token that is about to expire is replaced, and the call goes on with the new one", async ({ after }) => {
  const expiring = { type: "notice", code: "token_expiring", message: "soon", in_s: 60 };
  const tokens = (fake) => json(fake.taken).filter((m) => m.type === "token").map((m) => m.token);
  {
    let asked = 0;
    const { fake, call, seen } = await calling(after, { token: "T1", getToken: async () => `T${(asked += 1) + 1}` });
    await call.open();
    fake.send({ type: "notice", code: "quiet", message: "another" });
    fake.send(expiring);
    await until(() => tokens(fake).length > 0, "a new token");
    fake.drop();
    await seen("resumed");
    assert.deepEqual([tokens(fake), asked], [["T2"], 1]);
    assert.match(fake.asked[1].protocols, /voxrelay\.token\.T2$/, "the one before may be too old by now");
    await call.close();
  }
  {
    // Nobody gives one, or it is the one before: the call goes on to the end of that.
    let gives = async () => { throw new Error("out of reach"); };
    const { fake, call, seen, of } = await calling(after, { token: "T1", getToken: () => gives() });
    await call.open();
    fake.send(expiring);
    await seen("notice");
    gives = async () => "T1";
    fake.send(expiring);
    await seen("notice", 2);
    call.ping();
    await seen("pong");
    assert.deepEqual(tokens(fake), []);
    gives = async () => "T2";
    fake.now.close(4401, "token_expired");
    await seen("resumed");
    assert.match(fake.asked[1].protocols, /voxrelay\.token\.T2$/);
    assert.equal(of("ended").length, 0);
    await call.close();
  }
  {
    const { fake, call, seen } = await calling(after, { token: "T1" });
    await call.open();
    fake.send(expiring);
    call.ping();
    await seen("pong");
    assert.deepEqual(tokens(fake), [], "there is no way to get one");
    await call.close();
  }
});

test("client: a token that became too old while the line was dead is replaced, once", async ({ after }) => {
  const error = { code: "unauthorized", message: "a valid credential is needed", retryable: false, request_id: "q" };
  for (const good of [true, false]) {
    let asked = 0;
    const getToken = () => {
      asked += 1;
      if (good) fake.refusal = null;
      return "T2";
    };
    const { fake, call, seen } = await calling(after, { token: "T1", getToken });
    await call.open();
    fake.refusal = { status: 401, error };
    fake.drop();
    if (good) await seen("resumed");
    else assert.equal((await seen("ended")).error.status, 401);
    assert.equal(asked, 1);
    assert.match(fake.asked.at(-1).protocols, /voxrelay\.token\.T2$/);
    await call.close();
  }
});

test("client: whoever gives tokens may be out of reach for a while", async ({ after }) => {
  let asked = 0;
  const token = async () => {
    asked += 1;
    if (asked === 2) throw new Error("no network");
    return `T${asked}`;
  };
  const { fake, call, seen, of } = await calling(after, { token });
  await call.open();
  fake.drop();
  await seen("resumed");
  assert.match(fake.asked[1].protocols, /voxrelay\.token\.T3$/);
  assert.deepEqual(of("reconnecting").map(({ error }) => error.message).slice(1), ["there is no credential: no network"]);
  await call.close();
  const refused = await new Call({ url: fake.url, token: () => Promise.reject(new Error("not today")) }).open().catch((e) => e);
  assert.equal(refused.message, "there is no credential: not today", "a first connection is not tried again");
});

test("client: microphone troubles are told in words", async () => {
  for (const [name, code, part] of [["NotAllowedError", "microphone_refused", "may not use"], ["NotFoundError", "no_microphone", "no microphone"],
    ["NotReadableError", "microphone_busy", "cannot be opened"], ["Whatever", "microphone_failed", "boom"]]) {
    const error = microphoneInWords(Object.assign(new Error("boom"), { name }));
    assert.equal(error.code, code);
    assert.ok(error.message.includes(part) && error.advice.length > 10, error.message);
  }
});

test("client: a server that has fallen silent is found out", async ({ after }) => {
  const { fake, call, seen } = await calling(after);
  await call.open();
  // The connection stands, but nothing is answered any more: a network that swallows everything.
  fake.now.dead = true;
  await until(() => call.state === "reconnecting", "it is noticed", 25_000);
  assert.match((await seen("reconnecting")).error.message, /^The connection was lost\. \(nothing came for 1\d s\)$/);
  await seen("resumed");
}, { aside: true });

// ---- the relay

test("client: Node has turns with the relay in every format", async ({ after }) => {
  const { origin } = await relay(after);
  const { rate: RATE, samples } = readWav(joinPath(ROOT, "assets/hello.wav"));
  const ways = [["pcm16", 24000], ["pcm16", 24000, PackageWebSocket], ["pcm16", 8000], ["pcm16", 16000], ["pcm16", 48000], ["mulaw", 8000], ["alaw", 8000]];
  await Promise.all(ways.map(async ([format, rate, WebSocket]) => {
    const name = `${format} at ${rate}${WebSocket ? " with ws" : ""}`;
    const said = rate === RATE ? samples : toInt16(resample(toFloat32(samples), RATE, rate, () => samples.length));
    const call = new Call({ url: `${origin}/v1/voice`, format, rate, turns: "manual", pace: "fast", WebSocket });
    const audio = [];
    call.on("audio", (event) => audio.push(event.bytes));
    const ended = new Promise((resolve) => call.on("reply_ended", resolve));
    const ready = await call.open();
    assert.deepEqual(ready.audio.in, { format, rate });
    for (let at = 0; at < said.length; at += 1001) call.send(said.subarray(at, at + 1001));
    call.commit();
    // Played at once: nothing is gained by waiting for a clock.
    call.on("audio", ({ reply }) => call.played(reply, audio.length * 20));
    const { status, audio_ms } = await ended;
    assert.equal(status, "completed", name);
    await call.close();
    const bytes = Buffer.concat(audio);
    const sent = Buffer.from(encode(said, format));
    if (format !== "pcm16" || rate === 24000) {
      assert.deepEqual(bytes.subarray(0, sent.length), sent, `${name}: byte for byte`);
    } else {
      const { worst, windows } = compare(said, decode(bytes, format), rate);
      assert.ok(worst > 0.98 && windows > 10, `${name}: ${worst} over ${windows}`);
    }
    assert.ok(Math.abs(audio_ms - 5400) <= 20, `${name}: ${audio_ms} ms`);
  }));
});

test("client: with the relay a call outlives its token where there is a way to another", async ({ after }) => {
  const relay = await tenant(after);
  const short = { user: "ann", expires_in_s: 5 };
  const began = Date.now();
  const lasting = new Call({ url: `${relay.origin}/v1/voice`, token: await relay.token(short), getToken: () => relay.token({ ...short, expires_in_s: 60 }) });
  const brief = new Call({ url: `${relay.origin}/v1/voice`, token: await relay.token(short) });
  after(() => lasting.close());
  const drops = [];
  lasting.on("reconnecting", (event) => drops.push(event));
  lasting.on("ended", (event) => drops.push(event));
  const ended = new Promise((resolve) => brief.on("ended", resolve));
  await Promise.all([lasting.open(), brief.open()]);
  const { error } = await ended;
  assert.deepEqual([error.closeCode, error.code], [4401, "token_expired"]);
  await until(() => Date.now() - began > 7_000, "the first token's end");
  const pong = new Promise((resolve) => lasting.on("pong", resolve));
  lasting.ping(1);
  await pong;
  assert.deepEqual([lasting.state, drops], ["open", []]);
}, { aside: true });
