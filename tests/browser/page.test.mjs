/**
 * The page, in a real browser with a fake microphone, against a real relay.
 */
import assert from "node:assert/strict";
import { join as joinPath } from "node:path";
import { ROOT, SCRATCH, browser, line, open, relay, test, until } from "./harness.mjs";
import { compare, join, playedExactly, readWav, toBytes, writeWav } from "./sound.mjs";

const { rate: RATE, samples: HELLO } = readWav(joinPath(ROOT, "assets/hello.wav"));
/** "Hello, can you hear me?" alone. */
const SHORT = HELLO.subarray(0, 2 * RATE);

/** A microphone that says this, after half a second of silence: the first moments get lost. */
function clip(name, ...pieces) {
  const path = joinPath(SCRATCH, `${name}.wav`);
  writeWav(path, RATE, join(RATE, 0.5, ...pieces));
  return path;
}

test("page: what is played back is what was said", async ({ after }) => {
  const { host } = await relay(after);
  const { origin } = await line(after, host);
  const chrome = await browser(after, clip("hello", HELLO, 1));
  const { page, seen, played, message, mood, picture } = await open(chrome, origin, { path: "/?processing=off" });
  await picture("idle");
  await page.click("#start");
  await mood("Listening");
  await mood("You speak");
  await picture("you-speak");
  await mood("It speaks");
  await page.waitForTimeout(2000);
  await picture("it-speaks");
  const ended = await message("reply_ended");
  await picture("after-a-turn");
  console.log(JSON.stringify(ended));
  const reply = Buffer.concat(seen.got), sent = Buffer.concat(seen.sent);
  const recorded = await played();
  console.log(playedExactly(Int16Array.from({length:reply.length/2},(_,i)=>reply.readInt16LE(i*2)), recorded));
  console.log(compare(HELLO, Int16Array.from({length:sent.length/2},(_,i)=>sent.readInt16LE(i*2)), RATE));
  console.log(compare(HELLO, recorded, RATE));
  console.log(sent.indexOf(reply.subarray(0, reply.length - 960)), sent.length, reply.length);
  console.log(seen.problems, seen.said.slice(-5), await page.evaluate(()=>globalThis.heard.rate));
});
