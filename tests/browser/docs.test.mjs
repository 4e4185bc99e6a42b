/**
 * The examples of the documentation: cut out of their pages and run as they stand, but for the relay's address.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { copyFileSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join as joinPath } from "node:path";
import { ROOT, SCRATCH, browser, line, open, relay, tenant, test, until } from "./harness.mjs";
import { compare, join, readWav, writeWav } from "./sound.mjs";

const HELLO = joinPath(ROOT, "assets/hello.wav");
const { rate: RATE, samples } = readWav(HELLO);

/** Every example of a page that is marked with its file's name, and those of the protocol's own page by their heading. */
function examples(page) {
  const text = readFileSync(joinPath(ROOT, page), "utf8");
  return new Map([...text.matchAll(/<!-- run: (\S+) -->\n```\w+\n([^]*?)\n```/g)].map(([, name, code]) => [name, code]));
}

function underHeading(page, heading) {
  const text = readFileSync(joinPath(ROOT, page), "utf8");
  const [, code] = /```\w+\n([^]*?)\n```/.exec(text.split(`\n## ${heading}\n`)[1]);
  return code;
}

/** A folder with this example in it, and our client beside it. */
function folder(name, code, from, to) {
  const made = mkdtempSync(joinPath(SCRATCH, "example-"));
  assert.ok(!from || code.includes(from), `${name} names ${from}`);
  writeFileSync(joinPath(made, name), from ? code.replaceAll(from, to) : code);
  copyFileSync(joinPath(ROOT, "assets/web/voxrelay-client.js"), joinPath(made, "voxrelay-client.js"));
  return made;
}

/** Runs a program to its end; gives what it printed. */
async function run(after, command, args, cwd) {
  const program = spawn(command, args, { cwd, stdio: ["ignore", "pipe", "pipe"] });
  after(() => { program.kill(); });
  let [out, errors] = ["", ""];
  program.stdout.on("data", (data) => { out += data; });
  program.stderr.on("data", (data) => { errors += data; });
  const code = await new Promise((done, fail) => {
    program.once("exit", done);
    program.once("error", fail);
  });
  assert.equal(code, 0, errors);
  assert.equal(errors, "");
  return out;
}

/** Serves a folder from an address of its own: another origin than the relay's. */
async function serve(after, path) {
  const types = { ".html": "text/html", ".js": "text/javascript" };
  const server = createServer((request, answer) => {
    const name = request.url === "/" ? "/index.html" : request.url;
    try {
      answer.writeHead(200, { "content-type": types[extname(name)] }).end(readFileSync(joinPath(path, name)));
    } catch {
      answer.writeHead(404).end();
    }
  });
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  after(() => server.close());
  return `127.0.0.1:${server.address().port}`;
}

test("docs: the page of one's own talks", async ({ after }) => {
  const { host } = await relay(after);
  const code = examples("docs/clients/browser.md").get("own-page.html");
  const made = folder("index.html", code, "127.0.0.1:8080", host);
  const wire = await line(after, await serve(after, made));
  const wav = joinPath(SCRATCH, "own-page.wav");
  writeWav(wav, RATE, join(RATE, 0.5, samples.subarray(0, 2 * RATE), 1));
  const { page, seen, played, message } = await open(await browser(after, wav), wire.origin);
  await page.click("#call");
  await message("reply_started");
  await page.waitForTimeout(600);
  await page.click("#quiet");
  const log = await until(async () => {
    const text = await page.innerText("#log");
    return text.includes("heard") && text.includes("user: ") && text;
  }, "what the page writes");
  assert.match(log, /^user: \d\.\d seconds of speech\.$/m);
  assert.match(log, /^interrupted, \d+ ms heard, first sound after \d+ ms$/m);
  assert.ok((await played()).some((x) => Math.abs(x) > 1000), "and one hears it");
  // Its own errors come in words, across origins too.
  const made2 = folder("index.html", code, 'agent: "default"', 'agent: "nobody"');
  writeFileSync(joinPath(made2, "index.html"), readFileSync(joinPath(made2, "index.html"), "utf8").replaceAll("127.0.0.1:8080", host));
  await page.goto((await line(after, await serve(after, made2))).origin);
  await page.click("#call");
  const reason = await until(() => page.innerText("#log"), "the reason");
  assert.match(reason, /^No agent `nobody` is configured\. Choose another agent\.$/m);
  assert.deepEqual(seen.problems, []);
});

test("docs: OpenAI's own protocol is spoken from a page", async ({ after }) => {
  const { host } = await relay(after);
  const made = folder("index.html", examples("docs/clients/browser.md").get("realtime.html"), "127.0.0.1:8080", host);
  const wire = await line(after, await serve(after, made));
  const wav = joinPath(SCRATCH, "realtime.wav");
  // Two questions, the second into the answer to the first.
  writeWav(wav, RATE, join(RATE, 0.5, samples.subarray(0, 2 * RATE), 0.8, samples.subarray(0, 2 * RATE), 1));
  const { page, seen, played, message } = await open(await browser(after, wav), wire.origin);
  await page.click("#call");
  const told = await until(() => seen.said.find((m) => m.type === "conversation.item.truncate"), "the truncation", 30_000);
  const truncated = await message("conversation.item.truncated");
  assert.deepEqual([truncated.item_id, truncated.audio_end_ms], [told.item_id, told.audio_end_ms]);
  assert.ok(told.audio_end_ms > 100 && told.audio_end_ms < 2200, JSON.stringify(told));
  await message("response.output_audio_transcript.done", 2);
  assert.match(await page.innerText("#log"), /I heard \d\.\d seconds of speech\./);
  assert.ok((await played()).some((x) => Math.abs(x) > 1000), "one hears it");
  assert.deepEqual(seen.texts.filter((m) => m.type === "error"), []);
  assert.deepEqual(seen.problems, []);
});

test("docs: a page begins a call by WebRTC", async ({ after }) => {
  const code = examples("docs/clients/browser.md").get("webrtc.html");
  const made = folder("index.html", "");
  const origin = `http://${await serve(after, made)}`;
  const server = await tenant(after, { origins: [origin] });
  const page = await (await (await browser(after)).newContext()).newPage();
  const log = async (token) => {
    assert.ok(code.includes("127.0.0.1:8080") && code.includes("TOKEN"));
    writeFileSync(joinPath(made, "index.html"), code.replace("127.0.0.1:8080", server.host).replace("TOKEN", token));
    await page.goto(origin);
    await page.click("#call");
    return until(() => page.innerText("#log"), "what the page writes");
  };
  const [, call] = /^the call is \/v1\/realtime\/calls\/(rtc_\S+)$/m.exec(await log(await server.token({ user: "ann", direct: true, expires_in_s: 60 })));
  const { calls } = await (await server.ask("GET", "/v1/calls")).json();
  assert.deepEqual(calls.map(({ id, user }) => [id, user]), [[call, "ann"]]);
  assert.match(await log("wrong"), /^a valid credential is needed/);
});

test("docs: the example for Node asks and gets an answer", async ({ after }) => {
  const { host } = await relay(after);
  const made = folder("ask.mjs", examples("docs/clients/browser.md").get("ask.mjs"));
  const answer = joinPath(made, "answer.pcm");
  const out = await run(after, process.execPath, ["ask.mjs", `ws://${host}/v1/voice`, HELLO, answer], made);
  assert.match(out, /^user: \d\.\d seconds of speech\.$/m);
  assert.match(out, /^assistant: I heard \d\.\d seconds of speech\.$/m);
  const said = readFileSync(HELLO).subarray(44);
  assert.deepEqual(readFileSync(answer).subarray(0, said.length), said, "byte for byte what was asked");
}, { aside: true });

test("docs: the protocol in 40 lines works, and has 40 lines", async ({ after }) => {
  const code = examples("docs/clients/any-language.md").get("call.py");
  const lines = code.split("\n").filter((text) => text.trim() !== "").length;
  assert.ok(lines <= 40, `${lines} lines`);
  const { host } = await relay(after);
  const made = folder("call.py", code);
  const answer = joinPath(made, "answer.wav");
  const python = joinPath(import.meta.dirname, ".venv/bin/python");
  const out = await run(after, python, ["call.py", `ws://${host}/v1/voice`, HELLO, answer], made);
  assert.match(out, /'text': 'I heard \d\.\d seconds of speech\.'/);
  const [, heard, of] = /'status': 'completed', 'audio_ms': (\d+), 'heard_ms': (\d+)/.exec(out);
  assert.equal(heard, of);
  const { worst, windows } = compare(samples, readWav(answer).samples, RATE);
  assert.ok(worst > 0.999 && windows >= 15, `${worst} over ${windows}`);

  // Who speaks into the answer stops it.
  const interrupting = joinPath(made, "interrupting.wav");
  writeWav(interrupting, RATE, join(RATE, samples.subarray(0, 2 * RATE), 1, samples));
  const cut = await run(after, python, ["call.py", `ws://${host}/v1/voice`, interrupting, answer], made);
  const [, audio, part] = /'status': 'interrupted', .*?'audio_ms': (\d+), 'heard_ms': (\d+)/.exec(cut) ?? assert.fail(cut);
  assert.ok(Number(part) < Number(audio) - 200 && Number(part) > 200, `${part} of ${audio}`);
  const saved = readWav(answer).samples.length / (RATE / 1000);
  assert.ok(Math.abs(saved - Number(part)) <= 60, `the loudspeaker got ${saved} ms, and ${part} are told`);
}, { aside: true });

test("docs: the Python client on the protocol's own page works", async ({ after }) => {
  const { host } = await relay(after);
  const made = folder("client.py", underHeading("src/client/thin.md", "A client in Python"));
  const answer = joinPath(made, "answer.wav");
  const out = await run(after, joinPath(import.meta.dirname, ".venv/bin/python"), ["client.py", `ws://${host}/v1/voice`, HELLO, answer], made);
  assert.match(out, /'status': 'completed'/);
  const { worst } = compare(samples, readWav(answer).samples, RATE);
  assert.ok(worst > 0.999, String(worst));
}, { aside: true });

test("docs: the browser client on the protocol's own page works", async ({ after }) => {
  const { host } = await relay(after);
  const bare = underHeading("src/client/thin.md", "A client in a browser");
  const made = folder("index.html", `<!doctype html><button id="go">go</button><script>${bare}\ngo.onclick = () => call("ws://${host}/v1/voice");</script>`);
  const wav = joinPath(SCRATCH, "bare.wav");
  writeWav(wav, RATE, join(RATE, 0.5, samples.subarray(0, 2 * RATE), 1));
  const wire = await line(after, await serve(after, made));
  const { page, seen, played, message } = await open(await browser(after, wav), wire.origin);
  await page.click("#go");
  assert.equal((await message("reply_ended")).status, "completed");
  assert.ok((await played()).some((x) => Math.abs(x) > 1000), "one hears it");
  assert.deepEqual(seen.problems, []);
});
