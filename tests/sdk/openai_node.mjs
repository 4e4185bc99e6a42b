// openai-node against the relay: calls, text and recordings. It dials wss: whatever its base URL says, so the relay speaks TLS here.
import { createReadStream } from "node:fs";

import OpenAI, { NotFoundError } from "openai";
import { OpenAIRealtimeWS } from "openai/realtime/ws";
import { OpenAIRealtimeWebSocket } from "openai/realtime/websocket";
import { VERSION } from "openai/version";

import { BASE, check, clip, compare, main } from "./cases.mjs";

const SAID = clip();
const MODEL = "gpt-realtime-2.1";
const WRITER = "gpt-5.6-luna";
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
  "response": async () => {
    const { data, response } = await client.responses.create({ model: WRITER, input: "Where is my parcel?" }).withResponse();
    check(data.status === "completed" && data.output_text.includes("4 words"), JSON.stringify(data));
    check(data.usage.total_tokens > 10, JSON.stringify(data.usage));
    check(response.headers.get("x-voxrelay-route") === `default/${WRITER}`, [...response.headers].join());
  },
  "streamed response": async () => {
    let deltas = "";
    let last;
    for await (const event of await client.responses.create({ model: WRITER, input: "Where is my parcel?", stream: true })) {
      if (event.type === "response.output_text.delta") deltas += event.delta;
      last = event;
    }
    check(last.type === "response.completed" && last.response.output[0].content[0].text === deltas, JSON.stringify(last));
    const stream = client.responses.stream({ model: WRITER, input: "Where is my parcel?" });
    check((await stream.finalResponse()).output_text === deltas, "another answer");
  },
  "parsed response": async () => {
    const schema = {
      type: "object",
      properties: { number: { type: "string" }, urgent: { type: "boolean" } },
      required: ["number", "urgent"],
      additionalProperties: false,
    };
    const text = { format: { type: "json_schema", name: "parcel", strict: true, schema } };
    const { output_parsed } = await client.responses.parse({ model: WRITER, input: "Parcel 7 is late.", text });
    check(typeof output_parsed.number === "string" && typeof output_parsed.urgent === "boolean", JSON.stringify(output_parsed));
  },
  "response that calls a tool": async () => {
    const tools = [{ type: "function", name: "look_up", parameters: { type: "object", properties: {} }, strict: false }];
    const asked = await client.responses.create({ model: WRITER, input: 'call look_up {"order": 7}', tools });
    const call = asked.output.find((item) => item.type === "function_call");
    check(call.name === "look_up" && JSON.parse(call.arguments).order === 7, JSON.stringify(call));
    const input = [{ type: "function_call_output", call_id: call.call_id, output: "sent" }];
    const told = await client.responses.create({ model: WRITER, input, tools, previous_response_id: asked.id });
    check(told.output_text === "The tool said: sent", told.output_text);
  },
  "recording": async () => {
    const file = () => createReadStream(process.env.CLIP);
    const { text, usage } = await client.audio.transcriptions.create({ file: file(), model: "gpt-transcribe" });
    check(text.split(" ").length > 3 && usage.seconds > 5, text);
    let deltas = "";
    let last;
    for await (const event of await client.audio.transcriptions.create({ file: file(), model: "gpt-4o-transcribe", stream: true })) {
      if (event.type === "transcript.text.delta") deltas += event.delta;
      last = event;
    }
    check(last.type === "transcript.text.done" && last.text === text && deltas === text, JSON.stringify(last));
  },
  "model that is not there": async () => {
    for (const stream of [false, true]) {
      const error = await client.responses.create({ model: "of-nobody", input: "x", stream }).then(
        () => null,
        (error) => error,
      );
      check(error instanceof NotFoundError && error.code === "model_not_found" && error.param === "model", String(error));
    }
  },
  "request that comes again": async () => {
    const headers = { "Idempotency-Key": `node-${process.pid}` };
    const ask = () => client.responses.create({ model: WRITER, input: "x" }, { headers }).withResponse();
    const [first, again] = [await ask(), await ask()];
    check(first.data.id === again.data.id, `${first.data.id} ${again.data.id}`);
    check(again.response.headers.get("x-voxrelay-repeated") === "true", "it was answered anew");
    const form = { "Idempotency-Key": `node-form-${process.pid}` };
    const upload = () => {
      const file = createReadStream(process.env.CLIP);
      return client.audio.transcriptions.create({ file, model: "gpt-transcribe" }, { headers: form }).withResponse();
    };
    const [one, two] = [await upload(), await upload()];
    check(one.data.text === two.data.text && two.response.headers.get("x-voxrelay-repeated") === "true", "it was heard anew");
  },
});
