"""openai-python against the relay: spoken turns, tools, transcription, interruptions, in the GA and in the beta shape; text and
recordings.

Every event must be one of the SDK's own types with no leftovers. The simulator speaks back what it hears, so a reply's audio
is compared with what was said.
"""
import asyncio
import base64
import functools
import json
import os
import wave

import openai
import pydantic
from openai.types.beta.realtime import RealtimeServerEvent as BetaEvent
from openai.types.realtime import RealtimeServerEvent as GaEvent
from openai.types.responses import ResponseStreamEvent

from cases import main
from strict import Checker

BASE = os.environ["BASE_URL"]
MODEL = "gpt-realtime-2.1"
WRITER = "gpt-5.6-luna"
with wave.open(os.environ["CLIP"]) as clip:
    SAID = clip.readframes(clip.getnframes())
CHUNK = 4800
MANUAL = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
# The service sends these, too, and the SDK's types of its events leave them out.
GA_EXTRAS = (".session.id", ".session.object", ".session.expires_at")
BETA_EXTRAS = (".session.object", ".session.expires_at")


def client():
    # For the GA shape `base_url` alone is enough; the beta part of the SDK dials wss: whatever it says.
    return openai.AsyncOpenAI(api_key="any", base_url=BASE, websocket_base_url=BASE.replace("http", "ws", 1))


class Call:
    """A connection whose every event is checked."""

    def __init__(self, connection, checker):
        self.connection, self.checker = connection, checker

    async def next(self):
        raw = await asyncio.wait_for(self.connection.recv_bytes(), 20)
        self.checker.check(json.loads(raw))
        event = self.connection.parse_event(raw)
        assert event.type == json.loads(raw)["type"]
        assert event.type != "error", event
        return event

    async def until(self, kind):
        while True:
            event = await self.next()
            if event.type == kind:
                return event

    async def say(self, audio=SAID):
        for at in range(0, len(audio), CHUNK):
            await self.connection.input_audio_buffer.append(audio=base64.b64encode(audio[at : at + CHUNK]).decode())

    async def reply(self, delta="response.output_audio.delta", status="completed"):
        """The audio of the next reply, and its end."""
        audio = b""
        while True:
            event = await self.next()
            if event.type == delta:
                audio += base64.b64decode(event.delta)
            elif event.type == "response.done":
                assert event.response.status == status, event.response
                return audio, event.response


async def ga(case):
    async with client().realtime.connect(model=MODEL) as connection:
        call = Call(connection, Checker(GaEvent, GA_EXTRAS))
        assert (await call.next()).type == "session.created"
        await case(call, connection)


async def manual_turn():
    async def case(call, connection):
        await connection.session.update(session=MANUAL)
        await call.until("session.updated")
        await call.say()
        await connection.input_audio_buffer.commit()
        await connection.response.create()
        audio, response = await call.reply()
        assert audio == SAID, f"{len(audio)} bytes came back of {len(SAID)}"
        assert response.usage.output_token_details.audio_tokens > 0

    await ga(case)


async def server_vad():
    async def case(call, connection):
        vad = {"type": "server_vad", "silence_duration_ms": 900}
        await connection.session.update(
            session={"type": "realtime", "audio": {"input": {"turn_detection": vad, "transcription": {"model": "gpt-transcribe"}}}}
        )
        speech = SAID + bytes(2 * 24_000)
        await call.say(speech)
        started = await call.until("input_audio_buffer.speech_started")
        stopped = await call.until("input_audio_buffer.speech_stopped")
        audio, _ = await call.reply()
        turn = speech[started.audio_start_ms * 48 : stopped.audio_end_ms * 48]
        assert len(turn) > 4 * 48_000 and audio == turn, f"{len(audio)} bytes came back of {len(turn)}"

    await ga(case)


async def typed_turn():
    async def case(call, connection):
        await connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}
        )
        await connection.response.create()
        audio, _ = await call.reply()
        assert len(audio) > 24_000
        await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        await connection.response.create(response={"conversation": "none", "metadata": {"topic": "aside"}, "input": []})
        done = await call.until("response.done")
        assert done.response.metadata == {"topic": "aside"} and done.response.conversation_id is None
        assert {"response.output_text.delta", "response.output_text.done"} <= call.checker.seen

    await ga(case)


async def tool_call():
    async def case(call, connection):
        tool = {"type": "function", "name": "look_up", "description": "d", "parameters": {"type": "object", "properties": {}}}
        await connection.session.update(session={**MANUAL, "tools": [tool]})
        text = 'call look_up {"order": 7}'
        await connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        )
        await connection.response.create()
        done = await call.until("response.function_call_arguments.done")
        assert (done.name, json.loads(done.arguments)) == ("look_up", {"order": 7})
        await call.until("response.done")
        await connection.conversation.item.create(
            item={"type": "function_call_output", "call_id": done.call_id, "output": '{"state": "sent"}'}
        )
        await connection.response.create()
        audio, _ = await call.reply()
        assert audio, "the answer is spoken"

    await ga(case)


async def barge_in():
    async def case(call, connection):
        await connection.session.update(
            session={"type": "realtime", "audio": {"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 900}}}}
        )
        await call.say(SAID + bytes(2 * 24_000))
        first = await call.until("response.output_audio.delta")
        await call.say(SAID)  # the caller speaks into the answer
        _, cut = await call.reply(status="cancelled")
        assert cut.status_details.reason == "turn_detected"
        await connection.conversation.item.truncate(item_id=first.item_id, content_index=0, audio_end_ms=100)
        truncated = await call.until("conversation.item.truncated")
        assert (truncated.item_id, truncated.audio_end_ms) == (first.item_id, 100)

    await ga(case)


async def transcription():
    url = {"intent": "transcription"}
    async with client().realtime.connect(extra_query=url) as connection:
        call = Call(connection, Checker(GaEvent, GA_EXTRAS))
        created = await call.next()
        assert created.session.type == "transcription", created
        await connection.session.update(
            session={"type": "transcription", "audio": {"input": {"transcription": {"model": "gpt-transcribe"}, "turn_detection": None}}}
        )
        await call.until("session.updated")
        await call.say()
        await connection.input_audio_buffer.commit()
        done = await call.until("conversation.item.input_audio_transcription.completed")
        assert done.transcript and done.usage, done
        assert not any(kind.startswith("response.") for kind in call.checker.seen)


async def beta(case):
    async with client().beta.realtime.connect(model="gpt-4o-realtime-preview") as connection:
        call = Call(connection, Checker(BetaEvent, BETA_EXTRAS))
        assert (await call.next()).type == "session.created"
        await case(call, connection)


async def beta_manual_turn():
    async def case(call, connection):
        await connection.session.update(
            session={"modalities": ["text", "audio"], "voice": "alloy", "turn_detection": None, "temperature": 0.7}
        )
        updated = await call.until("session.updated")
        assert (updated.session.temperature, updated.session.voice) == (0.7, "alloy")
        await call.say()
        await connection.input_audio_buffer.commit()
        await connection.response.create(response={"modalities": ["text", "audio"]})
        audio, response = await call.reply("response.audio.delta")
        assert audio == SAID, f"{len(audio)} bytes came back of {len(SAID)}"
        assert response.modalities == ["text", "audio"] and response.output[0].content[0].type == "audio"

    await beta(case)


async def beta_tool_call():
    async def case(call, connection):
        tool = {"type": "function", "name": "look_up", "description": "d", "parameters": {"type": "object", "properties": {}}}
        await connection.session.update(session={"tools": [tool], "turn_detection": None})
        await connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "call look_up {}"}]}
        )
        await connection.response.create()
        done = await call.until("response.function_call_arguments.done")
        await call.until("response.done")
        await connection.conversation.item.create(
            item={"type": "function_call_output", "call_id": done.call_id, "output": "{}"}
        )
        await connection.response.create()
        audio, _ = await call.reply("response.audio.delta")
        assert audio

    await beta(case)


def with_client(case):
    @functools.wraps(case)
    async def run():
        async with client() as opened:
            await case(opened)

    return run


@with_client
async def response(client):
    raw = await client.responses.with_raw_response.create(model=WRITER, input="Where is my parcel?")
    told = raw.parse()
    assert told.status == "completed" and "4 words" in told.output_text, told
    assert told.usage.total_tokens == told.usage.input_tokens + told.usage.output_tokens > 10, told.usage
    assert raw.headers["x-voxrelay-route"] == f"default/{WRITER}", raw.headers
    chosen = await client.responses.with_raw_response.create(model="auto", input="x", metadata={"stakes": "high"})
    assert (chosen.headers["x-voxrelay-tier"], chosen.headers["x-voxrelay-tier-by"]) == ("best", "rule"), chosen.headers


@with_client
async def streamed_response(client):
    # The service tells of `store`, too.
    checker, deltas = Checker(ResponseStreamEvent, (".response.store",)), ""
    async for event in await client.responses.create(model=WRITER, input="Where is my parcel?", stream=True):
        checker.check(event.model_dump(mode="json", exclude_unset=True))
        if event.type == "response.output_text.delta":
            deltas += event.delta
    assert event.type == "response.completed" and event.response.output_text == deltas, event
    async with client.responses.stream(model=WRITER, input="Where is my parcel?") as stream:
        kinds = {event.type async for event in stream}
        final = await stream.get_final_response()
    assert {"response.created", "response.output_text.delta", "response.completed"} <= kinds, kinds
    assert final.output_text == deltas, final


class Parcel(pydantic.BaseModel):
    number: str
    urgent: bool


@with_client
async def parsed_response(client):
    told = await client.responses.parse(model=WRITER, input="Parcel 7 is late.", text_format=Parcel)
    assert isinstance(told.output_parsed, Parcel), told
    async with client.responses.stream(model=WRITER, input="Parcel 7 is late.", text_format=Parcel) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_response()
    assert final.output_parsed == told.output_parsed, final


@with_client
async def response_that_calls_a_tool(client):
    parameters = {"type": "object", "properties": {"order": {"type": "integer"}}, "required": ["order"], "additionalProperties": False}
    tools = [{"type": "function", "name": "look_up", "parameters": parameters, "strict": True}]
    asked = await client.responses.create(model=WRITER, input='call look_up {"order": 7}', tools=tools)
    (call,) = [item for item in asked.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("look_up", {"order": 7}), call
    returned = {"type": "function_call_output", "call_id": call.call_id, "output": "sent"}
    told = await client.responses.create(model=WRITER, input=[returned], tools=tools, previous_response_id=asked.id)
    assert told.output_text == "The tool said: sent", told


@with_client
async def response_that_is_gone_on_from(client):
    whole = await client.responses.create(model=WRITER, input="Tell me of parcels.")
    told = await client.responses.create(model=WRITER, input="Tell me of parcels.", max_output_tokens=16)
    text = told.output_text
    while told.status == "incomplete":
        assert told.incomplete_details.reason == "max_output_tokens", told
        told = await client.responses.create(model=WRITER, input=[], max_output_tokens=16, previous_response_id=told.id)
        text += told.output_text
    assert text == whole.output_text, text


@with_client
async def recording(client):
    with open(os.environ["CLIP"], "rb") as file:
        told = await client.audio.transcriptions.create(file=file, model="gpt-transcribe")
    assert len(told.text.split()) > 3 and told.usage.seconds > 5, told
    deltas = ""
    with open(os.environ["CLIP"], "rb") as file:
        async for event in await client.audio.transcriptions.create(file=file, model="gpt-4o-transcribe", stream=True):
            deltas += event.delta if event.type == "transcript.text.delta" else ""
    assert event.type == "transcript.text.done" and event.text == deltas == told.text, event
    with open(os.environ["CLIP"], "rb") as file:
        subtitles = await client.audio.transcriptions.create(file=file, model="whisper-1", response_format="srt")
    assert "-->" in subtitles, subtitles


@with_client
async def model_that_is_not_there(client):
    with open(os.environ["CLIP"], "rb") as file:
        for ask in [
            lambda: client.responses.create(model="of-nobody", input="x"),
            lambda: client.responses.create(model="of-nobody", input="x", stream=True),
            lambda: client.audio.transcriptions.create(file=file, model="of-nobody"),
        ]:
            try:
                await ask()
            except openai.NotFoundError as refused:
                assert (refused.code, refused.param) == ("model_not_found", "model"), refused
                assert refused.request_id.startswith("text_"), refused.request_id
            else:
                raise AssertionError("nobody's model has answered")


@with_client
async def request_that_comes_again(client):
    key = {"Idempotency-Key": f"python-{os.getpid()}"}
    ids, repeated = set(), []
    for _ in range(2):
        raw = await client.responses.with_raw_response.create(model=WRITER, input="x", extra_headers=key)
        ids.add(raw.parse().id)
        repeated.append(raw.headers.get("x-voxrelay-repeated"))
    assert len(ids) == 1 and repeated == [None, "true"], (ids, repeated)
    texts = []
    for _ in range(2):
        # Each upload parts its form in another way.
        key = {"Idempotency-Key": f"python-form-{os.getpid()}"}
        with open(os.environ["CLIP"], "rb") as file:
            raw = await client.audio.transcriptions.with_raw_response.create(file=file, model="gpt-transcribe", extra_headers=key)
        texts.append((raw.parse().text, raw.headers.get("x-voxrelay-repeated")))
    assert texts == [(texts[0][0], None), (texts[0][0], "true")], texts


main(
    f"openai-python {openai.__version__}",
    manual_turn,
    server_vad,
    typed_turn,
    tool_call,
    barge_in,
    transcription,
    beta_manual_turn,
    beta_tool_call,
    response,
    streamed_response,
    parsed_response,
    response_that_calls_a_tool,
    response_that_is_gone_on_from,
    recording,
    model_that_is_not_there,
    request_that_comes_again,
)
