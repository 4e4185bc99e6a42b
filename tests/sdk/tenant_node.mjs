// openai-node against a relay with a tenant, over TLS: its key and client secrets open what they should, a wrong key nothing.
import OpenAI, { AuthenticationError } from "openai";
import { OpenAIRealtimeWS } from "openai/realtime/ws";
import { OpenAIRealtimeWebSocket } from "openai/realtime/websocket";
import { VERSION } from "openai/version";

import { BASE, check, main } from "./cases.mjs";

const KEY = process.env.TENANT_KEY;
const MODEL = "gpt-realtime-2.1";
// As much of an offer as there must be; real ones are made in tests/browser/.
const OFFER = [
  "v=0",
  "o=- 1 2 IN IP4 127.0.0.1",
  "s=-",
  "t=0 0",
  "m=audio 9 UDP/TLS/RTP/SAVPF 111",
  "c=IN IP4 0.0.0.0",
  "a=mid:0",
  "a=rtpmap:111 opus/48000/2",
  "",
].join("\r\n");
const session = { type: "realtime", model: MODEL, instructions: "Be brief." };

/// `asked`: a list to which every request's path is added.
const client = (apiKey = KEY, asked = []) =>
  new OpenAI({
    apiKey,
    baseURL: BASE,
    fetch: (url, init) => {
      asked.push(new URL(url).pathname);
      return fetch(url, init);
    },
  });

/// Until a typed turn was answered, aloud.
function talks(socket) {
  return new Promise((yes, no) => {
    let bytes = 0;
    socket.on("error", no);
    socket.on("session.created", () => {
      const content = [{ type: "input_text", text: "hello" }];
      socket.send({ type: "conversation.item.create", item: { type: "message", role: "user", content } });
      socket.send({ type: "response.create" });
    });
    socket.on("response.output_audio.delta", (event) => (bytes += Buffer.from(event.delta, "base64").length));
    socket.on("response.done", ({ response }) => {
      socket.close();
      if (response.status === "completed" && bytes > 24_000) yes();
      else no(new Error(`${response.status}, ${bytes} bytes`));
    });
  });
}

const refusal = (promise) =>
  promise.then(
    () => null,
    (error) => error,
  );

await main(`openai-node ${VERSION}, with a tenant`, {
  "the key of a tenant opens the WebSocket": () => talks(new OpenAIRealtimeWS({ model: MODEL }, client())),
  "and the platform's own": () =>
    talks(new OpenAIRealtimeWebSocket({ model: MODEL, dangerouslyAllowBrowser: true }, client())),
  "a wrong key opens no WebSocket": async () => {
    const error = await refusal(talks(new OpenAIRealtimeWS({ model: MODEL }, client("wrong"))));
    check(/401/.test(String(error)), String(error));
  },
  "a client secret is made and opens the WebSocket": async () => {
    const expires_after = { anchor: "created_at", seconds: 300 };
    const made = await client().realtime.clientSecrets.create({ session, expires_after });
    check(made.value.startsWith("ek_"), "the service's own");
    const left = made.expires_at - Date.now() / 1000;
    check(left > 200 && left <= 301, `${left} s are left`);
    check(made.session.model === MODEL && made.session.instructions === "Be brief.", JSON.stringify(made.session));
    await talks(new OpenAIRealtimeWS({ model: MODEL }, client(made.value)));
  },
  "a call by SDP is made and hung up": async () => {
    const made = await client().realtime.clientSecrets.create({ session });
    for (const [key, body] of [
      [KEY, { sdp: OFFER, session }],
      [made.value, { sdp: OFFER }],
    ]) {
      const response = await client(key).realtime.calls.create(body);
      check(response.status === 201 && (await response.text()).startsWith("v=0"), `status ${response.status}`);
      const [, call] = /^\/v1\/realtime\/calls\/(rtc_\S+)$/.exec(response.headers.get("location"));
      await client().realtime.calls.hangup(call);
      const error = await refusal(client().realtime.calls.hangup(call));
      check(error?.status === 404, `hung up twice: ${error}`);
    }
  },
  "a wrong key is an AuthenticationError and tried once": async () => {
    const asked = [];
    const error = await refusal(client("wrong", asked).realtime.clientSecrets.create({ session }));
    check(error instanceof AuthenticationError && error.status === 401, String(error));
    check(error.code === "invalid_api_key", error.code);
    check(asked.join() === "/v1/realtime/client_secrets", asked.join());
  },
});
