// openai-node against the relay. It dials wss: whatever its base URL says, so the relay speaks TLS here.
import OpenAI from "openai";
import { OpenAIRealtimeWS } from "openai/realtime/ws";
import { OpenAIRealtimeWebSocket } from "openai/realtime/websocket";
import { VERSION } from "openai/version";

import { BASE, check, clip, compare, main } from "./cases.mjs";

const SAID = clip();
const MODEL = "gpt-realtime-2.1";
const client = new OpenAI({ apiKey: "any", baseURL: BASE });

const append = (socket, audio) => {
  for (let at = 0; at < audio.length; at += 4800) {
    socket.send({ type: "input_audio_buffer.append", audio: audio.subarray(at, at + 4800).toString("base64") });
  }
};

/// Everything until the end of the reply: its audio, and where speech began.
function turn(socket, begin) {
  return new Promise((yes, no) => {
    const heard = [];
    let startMs = 0;
    let endMs = 0;
    socket.on("error", (error) => no(error));
    socket.on("session.created", () => begin());
    socket.on("input_audio_buffer.speech_started", (event) => (startMs = event.audio_start_ms));
    socket.on("input_audio_buffer.speech_stopped", (event) => (endMs = event.audio_end_ms));
    socket.on("response.output_audio.delta", (event) => heard.push(Buffer.from(event.delta, "base64")));
    socket.on("response.done", (event) => {
      socket.close();
      yes({ audio: Buffer.concat(heard), startMs, endMs, response: event.response });
    });
  });
}

const manual = async (socket) => {
  const { audio, response } = await turn(socket, () => {
    socket.send({ type: "session.update", session: { type: "realtime", audio: { input: { turn_detection: null } } } });
    append(socket, SAID);
    socket.send({ type: "input_audio_buffer.commit" });
    socket.send({ type: "response.create" });
  });
  check(response.status === "completed", response.status);
  check(audio.equals(SAID), `${audio.length} bytes came back of ${SAID.length}`);
};

await main(`openai-node ${VERSION}`, {
  "manual turn": () => manual(new OpenAIRealtimeWS({ model: MODEL }, client)),
  "manual turn, the platform's WebSocket": () =>
    manual(new OpenAIRealtimeWebSocket({ model: MODEL, dangerouslyAllowBrowser: true }, client)),
  "server VAD": async () => {
    const socket = new OpenAIRealtimeWS({ model: MODEL }, client);
    const turn_detection = { type: "server_vad", silence_duration_ms: 900 };
    const speech = Buffer.concat([SAID, Buffer.alloc(48_000)]);
    const { audio, startMs, endMs } = await turn(socket, () => {
      socket.send({ type: "session.update", session: { type: "realtime", audio: { input: { turn_detection } } } });
      append(socket, speech);
    });
    compare(audio, speech, startMs, endMs);
  },
});
