"""openai-python against a relay with a tenant: its key, call tokens and client secrets open what they should, and nothing else
opens anything."""
import asyncio
import base64
import os
import time
import wave

import openai
from websockets.exceptions import InvalidStatus

from cases import main

BASE, KEY = os.environ["TENANT_BASE_URL"], os.environ["TENANT_KEY"]
MODEL = "gpt-realtime-2.1"
with wave.open(os.environ["CLIP"]) as clip:
    SAID = clip.readframes(clip.getnframes())
# As much of an offer as there must be; real ones are made in tests/browser/.
OFFER = "\r\n".join(
    [
        "v=0",
        "o=- 1 2 IN IP4 127.0.0.1",
        "s=-",
        "t=0 0",
        "m=audio 9 UDP/TLS/RTP/SAVPF 111",
        "c=IN IP4 0.0.0.0",
        "a=mid:0",
        "a=rtpmap:111 opus/48000/2",
        "",
    ]
)


def client(key=KEY, asked=None):
    """`asked`: a list to which every request's path is added."""

    async def note(request):
        asked.append(request.url.path)

    hooks = {} if asked is None else {"event_hooks": {"request": [note]}}
    return openai.AsyncOpenAI(api_key=key, base_url=BASE, http_client=openai.DefaultAsyncHttpxClient(**hooks))


async def token(**grant):
    made = await client().post("/tokens", cast_to=object, body=grant)
    return made["token"]


async def calls():
    return [call["id"] for call in (await client().get("/calls", cast_to=object))["calls"]]


async def gone(call):
    """Waits until the call runs no longer."""
    for _ in range(100):
        if call not in await calls():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{call} goes on")


async def talks(key):
    """A call with this key: what is said comes back."""
    async with client(key).realtime.connect(model=MODEL) as call:
        await call.session.update(session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})
        await call.input_audio_buffer.append(audio=base64.b64encode(SAID[:48_000]).decode())
        await call.input_audio_buffer.commit()
        await call.response.create()
        audio = b""
        async for event in call:
            assert event.type != "error", event
            if event.type == "response.output_audio.delta":
                audio += base64.b64decode(event.delta)
            elif event.type == "response.done":
                break
        assert audio == SAID[:48_000], f"{len(audio)} bytes came back"


async def secret(**more):
    session = {"type": "realtime", "model": MODEL, "instructions": "Be brief."}
    return await client().realtime.client_secrets.create(session=session, **more)


async def the_key_of_a_tenant_opens_the_WebSocket():
    await talks(KEY)


async def a_call_token_opens_the_WebSocket():
    await talks(await token(user="ann", expires_in_s=60))


async def a_wrong_key_opens_no_WebSocket():
    for wrong in ["any", KEY[:-1] + ("A" if KEY[-1] != "A" else "B"), (await token(direct=True))[:-4] + "AAAA"]:
        try:
            await talks(wrong)
        except InvalidStatus as refused:
            assert refused.response.status_code == 401, refused
        else:
            raise AssertionError(f"{wrong!r} was let in")


async def a_client_secret_is_made_and_opens_the_WebSocket():
    made = await secret(expires_after={"anchor": "created_at", "seconds": 300})
    assert made.value.startswith("ek_"), "the service's own"
    assert 200 < made.expires_at - time.time() <= 301, made.expires_at
    assert (made.session.type, made.session.model) == ("realtime", MODEL), made.session
    assert made.session.instructions == "Be brief.", made.session
    await talks(made.value)


async def a_call_token_makes_client_secrets_but_a_client_secret_does_not():
    session = {"type": "realtime", "model": MODEL}
    made = await client(await token(direct=True)).realtime.client_secrets.create(session=session)
    try:
        await client(made.value).realtime.client_secrets.create(session=session)
    except openai.PermissionDeniedError as refused:
        assert refused.code == "invalid_api_key", refused
    else:
        raise AssertionError("a secret of a secret")


async def a_call_by_SDP_is_made_seen_and_hung_up():
    session = {"type": "realtime", "model": MODEL}
    raw = await client().realtime.calls.with_raw_response.create(sdp=OFFER, session=session)
    assert (raw.status_code, raw.headers["content-type"]) == (201, "application/sdp"), raw.headers
    assert raw.text.startswith("v=0") and "m=audio" in raw.text and "a=mid:0" in raw.text, raw.text
    base, _, call = raw.headers["location"].rpartition("/")
    assert base == "/v1/realtime/calls" and call.startswith("rtc_"), raw.headers["location"]
    assert call in await calls()
    await client().realtime.calls.hangup(call)
    await gone(call)
    try:
        await client().realtime.calls.hangup(call)
    except openai.NotFoundError as refused:
        assert refused.code == "call_id_not_found", refused
    else:
        raise AssertionError("it was hung up twice")


async def a_client_secret_makes_a_call_by_SDP_alone():
    made = await secret()
    asked = []
    raw = await client(made.value, asked).realtime.calls.with_raw_response.create(sdp=OFFER)
    assert raw.text.startswith("v=0") and asked == ["/v1/realtime/calls"], asked
    call = raw.headers["location"].rpartition("/")[2]
    assert call in await calls()
    try:
        await client(made.value).realtime.calls.hangup(call)
    except openai.PermissionDeniedError:
        pass  # a secret begins calls; whoever made it ends them
    else:
        raise AssertionError("a secret steers calls")
    await client().realtime.calls.hangup(call)
    await gone(call)


async def a_wrong_key_is_an_AuthenticationError_and_tried_once():
    session = {"type": "realtime", "model": MODEL}
    for path, ask in [
        ("client_secrets", lambda c: c.realtime.client_secrets.create(session=session)),
        ("calls", lambda c: c.realtime.calls.create(sdp=OFFER, session=session)),
        ("calls/rtc_1/hangup", lambda c: c.realtime.calls.hangup("rtc_1")),
    ]:
        asked = []
        try:
            await ask(client("wrong", asked))
        except openai.AuthenticationError as refused:
            assert (refused.status_code, refused.code) == (401, "invalid_api_key"), refused
            assert asked == [f"/v1/realtime/{path}"], asked
        else:
            raise AssertionError(f"{path} took a wrong key")


async def what_is_wrong_with_a_session_is_a_BadRequestError():
    try:
        await secret(expires_after={"anchor": "created_at", "seconds": 5})
    except openai.BadRequestError as refused:
        assert refused.param == "expires_after.seconds", refused
    else:
        raise AssertionError("five seconds were granted")


async def text_is_for_keys_with_the_scope():
    async with client() as opened:
        told = await opened.responses.create(model="auto", input="hello")
    assert told.status == "completed", told
    for key, kind, code in [
        (await token(), openai.PermissionDeniedError, "forbidden"),
        ((await secret()).value, openai.PermissionDeniedError, "forbidden"),
        ("wrong", openai.AuthenticationError, "invalid_api_key"),
    ]:
        asked = []
        try:
            async with client(key, asked) as opened:
                await opened.responses.create(model="auto", input="hello")
        except kind as refused:
            assert refused.code == code and asked == ["/v1/responses"], (refused, asked)
        else:
            raise AssertionError(f"{key!r} was let in")


main(
    f"openai-python {openai.__version__}, with a tenant",
    the_key_of_a_tenant_opens_the_WebSocket,
    a_call_token_opens_the_WebSocket,
    a_wrong_key_opens_no_WebSocket,
    a_client_secret_is_made_and_opens_the_WebSocket,
    a_call_token_makes_client_secrets_but_a_client_secret_does_not,
    a_call_by_SDP_is_made_seen_and_hung_up,
    a_client_secret_makes_a_call_by_SDP_alone,
    a_wrong_key_is_an_AuthenticationError_and_tried_once,
    what_is_wrong_with_a_session_is_a_BadRequestError,
    text_is_for_keys_with_the_scope,
)
