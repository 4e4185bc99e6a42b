/**
 * Pages of other origins, in a real browser: they get a client secret from the relay and begin a call by WebRTC with it, if
 * their origin is one of the tenant's.
 */
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { browser, tenant, test, until } from "./harness.mjs";

/** A web server with one empty page. @returns {Promise<string>} Its origin. */
async function site(after) {
  const server = createServer((_, answer) => answer.writeHead(200, { "content-type": "text/html" }).end("<!doctype html><title>An application</title>"));
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  after(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${server.address().port}`;
}

/** A page there. `preflights`: the paths that its browser asked about beforehand. */
async function visit(chrome, origin) {
  const page = await (await chrome.newContext()).newPage();
  const preflights = [];
  const watch = await page.context().newCDPSession(page);
  await watch.send("Network.enable");
  watch.on("Network.requestWillBeSent", ({ request }) => {
    if (request.method === "OPTIONS") preflights.push(new URL(request.url).pathname);
  });
  await page.goto(origin);
  return { page, preflights };
}

/** In a page: the whole way of a call by WebRTC, up to the answer. */
async function connect({ relay, token }) {
  const post = (path, credential, type, body) =>
    fetch(relay + path, { method: "POST", headers: { authorization: `Bearer ${credential}`, "content-type": type }, body });
  const session = { type: "realtime", model: "gpt-realtime-2.1" };
  const secret = await (await post("/v1/realtime/client_secrets", token, "application/json", JSON.stringify({ session }))).json();

  const peer = new RTCPeerConnection();
  peer.addTransceiver("audio", { direction: "sendrecv" });
  peer.createDataChannel("oai-events");
  await peer.setLocalDescription();
  const response = await post("/v1/realtime/calls", secret.value, "application/sdp", peer.localDescription.sdp);
  await peer.setRemoteDescription({ type: "answer", sdp: await response.text() });
  const { signalingState: state } = peer;
  const direction = peer.getTransceivers()[0].currentDirection;
  return { secret: secret.value.slice(0, 3), status: response.status, place: response.headers.get("location"), state, direction };
}

/** In a page: what became of a request for a secret. */
async function ask({ relay, token }) {
  try {
    const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
    const response = await fetch(`${relay}/v1/realtime/client_secrets`, { method: "POST", headers, body: "{}" });
    return { status: response.status, code: (await response.json()).error?.code };
  } catch (error) {
    return { thrown: error.name };
  }
}

test("broker: a page of a tenant's origin begins a call by WebRTC, which is seen and ended", async ({ after }) => {
  const origin = await site(after);
  const relay = await tenant(after, { origins: [origin] });
  const { page, preflights } = await visit(await browser(after), origin);
  const { place, ...got } = await page.evaluate(connect, { relay: relay.origin, token: await relay.token({ user: "ann", origin, direct: true }) });
  assert.deepEqual(got, { secret: "ek_", status: 201, state: "stable", direction: "sendrecv" });
  assert.match(place, /^\/v1\/realtime\/calls\/rtc_/);
  assert.deepEqual(preflights, ["/v1/realtime/client_secrets", "/v1/realtime/calls"]);

  const running = async () => (await (await relay.ask("GET", "/v1/calls")).json()).calls;
  const call = place.split("/").at(-1);
  const [{ seconds, ...shown }, ...others] = await running();
  assert.deepEqual([shown, others], [{ id: call, door: "webrtc", user: "ann" }, []]);
  assert.ok(seconds < 20);
  const ended = await relay.ask("DELETE", `/v1/calls/${call}`);
  assert.deepEqual([ended.status, await ended.json()], [200, { id: call, ended: true }]);
  await until(async () => (await running()).length === 0, "the end of the call");
  assert.equal((await relay.ask("DELETE", `/v1/calls/${call}`)).status, 404);
  assert.equal((await relay.ask("POST", `/v1/realtime/calls/${call}/hangup`)).status, 404);
});

test("broker: a page of no tenant's origin learns nothing", async ({ after }) => {
  const [listed, foreign] = [await site(after), await site(after)];
  const relay = await tenant(after, { origins: [listed] });
  const chrome = await browser(after);
  const token = await relay.token({ direct: true });
  const from = async (origin, credential) => (await visit(chrome, origin)).page.evaluate(ask, { relay: relay.origin, token: credential });
  assert.deepEqual(await from(foreign, token), { thrown: "TypeError" });
  assert.deepEqual(await from(foreign, "wrong"), { thrown: "TypeError" });
  assert.deepEqual(await from(listed, token), { status: 200, code: undefined });
  // A page that may ask reads why it was refused.
  assert.deepEqual(await from(listed, "wrong"), { status: 401, code: "invalid_api_key" });
});

test("broker: a token for one origin is none for another of the same tenant", async ({ after }) => {
  const [one, other] = [await site(after), await site(after)];
  const relay = await tenant(after, { origins: [one, other] });
  const chrome = await browser(after);
  const token = await relay.token({ origin: one, direct: true });
  const from = async (origin) => (await visit(chrome, origin)).page.evaluate(ask, { relay: relay.origin, token });
  assert.equal((await from(one)).status, 200);
  assert.deepEqual(await from(other), { status: 403, code: "forbidden" });
});
