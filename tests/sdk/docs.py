"""The examples of docs/clients: cut out of their pages and run as they stand, but for the relay's address. What an example
saves as the answer must be what the question said: the simulator speaks back what it hears."""
import os
import re
import shutil
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

from cases import main

HERE = Path(__file__).resolve().parent
PAGES = HERE.parent.parent / "docs" / "clients"
BASE, TLS_BASE = os.environ["BASE_URL"], os.environ["TLS_BASE_URL"]
ADDRESSES = {
    "http://127.0.0.1:8080/v1": BASE,
    "ws://127.0.0.1:8080/v1": BASE.replace("http", "ws", 1),
    "https://127.0.0.1:8443/v1": TLS_BASE,
}
with wave.open(os.environ["CLIP"]) as clip:
    SAID = clip.readframes(clip.getnframes())
LONGEST = 90  # seconds


def example(page, name):
    text = (PAGES / page).read_text()
    found = re.search(rf"<!-- run: {re.escape(name)} -->\n```\w+\n(.*?)\n```", text, re.DOTALL)
    assert found, f"{page} has no example {name}"
    code = found[1]
    assert any(address in code for address in ADDRESSES), f"{name} names no address of the relay"
    for address, real in ADDRESSES.items():
        code = code.replace(address, real)
    return code


def run(page, name, command):
    """What the example saved, if that is sound, and what it printed."""
    with tempfile.TemporaryDirectory(dir=HERE / "node_modules", prefix=".example-") as folder:
        folder = Path(folder)
        (folder / name).write_text(example(page, name))
        shutil.copy(os.environ["CLIP"], folder / "question.wav")
        (folder / "question.pcm").write_bytes(SAID)
        done = subprocess.run([*command, name], cwd=folder, capture_output=True, text=True, timeout=LONGEST)
        assert done.returncode == 0, done.stdout + done.stderr
        if (folder / "answer.pcm").exists():
            return (folder / "answer.pcm").read_bytes(), done.stdout
        if not (folder / "answer.wav").exists():
            return b"", done.stdout
        with wave.open(str(folder / "answer.wav")) as answer:
            return answer.readframes(answer.getnframes()), done.stdout


PYTHON = [sys.executable]
NODE = [str(HERE / "node_modules/.bin/node")]


async def openai_python():
    audio, printed = run("openai-python.md", "ask.py", PYTHON)
    assert audio == SAID, f"{len(audio)} bytes of {len(SAID)}"
    assert "speech" in printed, printed


async def openai_node():
    audio, _ = run("openai-node.md", "ask.mjs", NODE)
    assert audio == SAID, f"{len(audio)} bytes of {len(SAID)}"


async def openai_python_text():
    _, printed = run("openai-python.md", "text.py", PYTHON)
    assert "You have written" in printed and "number=" in printed, printed


async def openai_node_text():
    _, printed = run("openai-node.md", "text.mjs", NODE)
    assert "You have written" in printed and len(printed.splitlines()) > 1, printed


async def agents_sdk():
    audio, printed = run("agents-sdk.md", "agent.mjs", NODE)
    assert "calls look_up" in printed and len(audio) > 24_000, printed


async def livekit():
    audio, _ = run("livekit.md", "livekit_ask.py", PYTHON)
    assert audio == SAID, f"{len(audio)} bytes of {len(SAID)}"


async def pipecat():
    audio, _ = run("pipecat.md", "pipecat_ask.py", PYTHON)
    # From where speech was found, at most 300 ms of padding before its 0.24 s, to the 900 ms of silence after its 4.62 s.
    speech = SAID + bytes(2 * 24_000)
    at = speech.find(audio[:4_800])
    assert 0 <= at <= 0.24 * 48_000 and audio == speech[at : at + len(audio)], f"{len(audio)} bytes, from {at}"
    assert abs((at + len(audio)) / 48_000 - 5.52) < 0.1, f"it ends at {(at + len(audio)) / 48_000} s"


main("documentation", openai_python, openai_node, openai_python_text, openai_node_text, agents_sdk, livekit, pipecat)
