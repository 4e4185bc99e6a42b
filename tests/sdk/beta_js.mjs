// openai-realtime-api, a client of the beta, against the relay, which speaks the generally available shape to the service.
import { readFileSync } from "node:fs";

import { RealtimeClient } from "openai-realtime-api";

import { WS_BASE, check, clip, main } from "./cases.mjs";

const { version } = JSON.parse(readFileSync("node_modules/openai-realtime-api/package.json"));
const SAID = clip();

async function connect() {
  const client = new RealtimeClient({ url: `${WS_BASE}/realtime`, apiKey: "any", model: "gpt-4o-realtime-preview" });
  client.updateSession({ turn_detection: null, voice: "alloy" });
  await client.connect();
  return client;
}

/// The assistant's next spoken item.
function answer(client) {
  return new Promise((yes) =>
    client.on("conversation.item.completed", ({ item }) => {
      if (item.type === "message" && item.role === "assistant") yes(item);
    }),
  );
}

await main(`openai-realtime-api ${version}`, {
  "manual turn": async () => {
    const client = await connect();
    const done = answer(client);
    for (let at = 0; at < SAID.length; at += 4800) {
      const piece = SAID.subarray(at, at + 4800);
      client.appendInputAudio(new Int16Array(piece.buffer.slice(piece.byteOffset, piece.byteOffset + piece.length)));
    }
    client.createResponse();
    const item = await done;
    const audio = Buffer.from(Int16Array.from(item.formatted.audio).buffer);
    check(audio.equals(SAID), `${audio.length} bytes came back of ${SAID.length}`);
    check(item.formatted.transcript.length > 0, "the answer has words");
    client.disconnect();
  },
  "tool call": async () => {
    const client = await connect();
    let asked;
    const definition = { name: "look_up", description: "d", parameters: { type: "object", properties: {} } };
    client.addTool(definition, async ({ order }) => {
      asked = order;
      return { state: "sent" };
    });
    const done = answer(client);
    client.sendUserMessageContent([{ type: "input_text", text: 'call look_up {"order": 7}' }]);
    const item = await done;
    check(asked === 7, `the tool was asked for ${asked}`);
    check(item.formatted.audio.length > 0, "the answer is spoken");
    client.disconnect();
  },
});
