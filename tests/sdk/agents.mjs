// @openai/agents-realtime against the relay: a spoken turn, a tool, an interruption.
import { readFileSync } from "node:fs";

import { RealtimeAgent, RealtimeSession, tool } from "@openai/agents-realtime";
import { z } from "zod";

import { WS_BASE, check, clip, compare, main } from "./cases.mjs";

const { version } = JSON.parse(readFileSync("node_modules/@openai/agents-realtime/package.json"));
const SAID = clip();
const URL = `${WS_BASE}/realtime?model=gpt-realtime-2.1`;

/// A session, and promises of the service's events by their type.
async function connect(tools = []) {
  const agent = new RealtimeAgent({ name: "Helper", instructions: "Help.", tools });
  const turnDetection = { type: "server_vad", silenceDurationMs: 900 };
  const session = new RealtimeSession(agent, { transport: "websocket", config: { audio: { input: { turnDetection } } } });
  const events = [];
  const waiting = [];
  const heard = [];
  session.on("error", ({ error }) => waiting.forEach(({ no }) => no(new Error(JSON.stringify(error)))));
  session.on("audio", (event) => heard.push(Buffer.from(event.data)));
  session.transport.on("*", (event) => {
    events.push(event);
    for (const { kind, yes } of waiting) if (event.type === kind) yes(event);
  });
  const next = (kind) => new Promise((yes, no) => waiting.push({ kind, yes, no }));
  await session.connect({ apiKey: "any", url: URL });
  return { session, next, events, heard };
}

await main(`@openai/agents-realtime ${version}`, {
  "spoken turn": async () => {
    const { session, next, events, heard } = await connect();
    const done = next("response.done");
    const speech = Buffer.concat([SAID, Buffer.alloc(48_000 * 2)]);
    for (let at = 0; at < speech.length; at += 4800) {
      const piece = speech.subarray(at, at + 4800);
      session.sendAudio(piece.buffer.slice(piece.byteOffset, piece.byteOffset + piece.length));
    }
    const { response } = await done;
    check(response.status === "completed", JSON.stringify(response));
    const { audio_start_ms } = events.find((event) => event.type === "input_audio_buffer.speech_started");
    const { audio_end_ms } = events.find((event) => event.type === "input_audio_buffer.speech_stopped");
    compare(Buffer.concat(heard), speech, audio_start_ms, audio_end_ms);
    session.close();
  },
  "tool call": async () => {
    let asked;
    const lookUp = tool({
      name: "look_up",
      description: "Looks an order up.",
      parameters: z.object({ order: z.number() }),
      execute: async ({ order }) => {
        asked = order;
        return "it was sent";
      },
    });
    const { session, next, events, heard } = await connect([lookUp]);
    const first = next("response.done");
    session.sendMessage('call look_up {"order": 7}');
    await first;
    const second = next("response.done");
    const { response } = await second;
    check(asked === 7, `the tool was asked for ${asked}`);
    check(response.status === "completed" && Buffer.concat(heard).length > 0, "the answer is spoken");
    check(events.filter((event) => event.type === "response.done").length === 2, "one reply for the call, one for its result");
    session.close();
  },
  "interruption": async () => {
    const { session, next, heard } = await connect();
    const began = next("response.output_audio.delta");
    const truncated = next("conversation.item.truncated");
    const interrupted = new Promise((yes) => session.on("audio_interrupted", yes));
    session.sendMessage("tell me a long story");
    const { item_id } = await began;
    await new Promise((yes) => setTimeout(yes, 200)); // some of it is "played"
    session.interrupt();
    await interrupted;
    const event = await truncated;
    check(event.item_id === item_id, "what was interrupted is truncated");
    check(event.audio_end_ms <= Buffer.concat(heard).length / 48, "never more than was received");
    session.close();
  },
});
