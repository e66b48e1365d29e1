"""A fake engine: a process that implements OpenAI's chat API and fails on cue.

Run as `python tests/support/fake_engine.py --model DIR --name NAME --port N`. The words of its answers
identify the process, `NAME/PID/0 NAME/PID/1 …`, so that a test notices mixed answers. The script imports
only the standard library and parent_watch.

Startup cues, in `DIR/cue.json`:
    {"start": "exit"}        writes a few lines and exits with code 3
    {"start": "deaf"}        listens and accepts connections, but never answers
    {"start": "refuse"}      answers every question with HTTP 400
    {"start": "exit_once"}   like "exit", but only at the first start
    {"start": "exit_second"} like "exit", but only from the second start on
    {"late": 0.5}            listens after this number of seconds
    {"stubborn": true}       ignores SIGTERM
    {"mayfly": true}         kills itself after its first answer, which is the readiness probe
    {"crowd": true}          starts a child process that keeps the engine's output open
    {"window": 600}          lists its model with this context length
    {"cache": 9600}          lists its model with this number of tokens of KV cache
    {"quiet": true}          writes no notes, so that its directory stays unchanged

Cues for an answer, as words in the newest user text; a cue with `!` works only once per model directory:
    words:20                 the number of words
    slow:0.05                the seconds before each word
    gate:2                   after two words, waits until `DIR/gate` exists
    die:3                    after three words, kills itself with SIGKILL
    hang:3                   after three words, goes silent
    cut:3                    after three words, closes the connection without a finish reason
    abort:3                  after three words, sends the finish reason "abort"
    error:3                  after three words, sends an error chunk
    liar:3                   after three words, gives another model's name
    http:500                 responds with this status instead of an answer
    long:400                 responds with this status and the error code for an overlong context
    blurred:400              responds with this status and the error code for a broken picture

If `ENGINE_KEY` is in its environment, requests need that key. The engine writes its notes to
`DIR/events.jsonl`: start, begin (with the request), end, abort, stranger (a request without the key).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from inference.process.parent_watch import watch_parent


class Fake:
    """A fake model, with its directory, name and cues."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.name = name
        cue = directory / "cue.json"
        self.cue: dict[str, Any] = json.loads(cue.read_text()) if cue.exists() else {}

    def note(self, event: str, **more: object) -> None:
        if self.cue.get("quiet"):
            return
        line = json.dumps({"event": event, "pid": os.getpid(), "name": self.name, **more})
        with (self.directory / "events.jsonl").open("ab", buffering=0) as file:  # notes of threads must not mix
            file.write(f"{line}\n".encode())

    def first_time(self, what: str) -> bool:
        try:
            (self.directory / f"done-{what}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def cues(self, text: str) -> dict[str, float]:
        """Return the cues in `text` that are active, with their values."""
        found = re.findall(r"(words|slow|gate|die|hang|cut|abort|error|liar|http|long|blurred):([\d.]+)(!?)", text)
        return {name: float(value) for name, value, once in found if not once or self.first_time(f"{name}-{value}")}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: Fake

    def log_message(self, *_: object) -> None:
        pass

    def _is_ours(self) -> bool:
        key = os.environ.get("ENGINE_KEY")
        if key is None or self.headers["Authorization"] == f"Bearer {key}":
            return True
        self.fake.note("stranger")
        self._json(401, {"error": {"message": "not without the key"}})
        return False

    def do_GET(self) -> None:
        if not self._is_ours():
            return
        if self.path == "/v1/models":
            sizes = {"max_model_len": self.fake.cue.get("window"), "kv_cache_tokens": self.fake.cue.get("cache")}
            self._json(200, {"object": "list", "data": [{"id": self.fake.name, "object": "model", **sizes}]})
        else:
            self._json(404, {"error": {"message": "nothing here"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_ours():
            return
        if self.fake.cue.get("start") == "deaf":
            time.sleep(3600)
        if self.fake.cue.get("start") == "refuse":
            self._json(400, {"error": {"message": "I refuse"}})
            return
        content = body["messages"][-1]["content"]
        text = content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)
        chat = body.get("user")
        self.fake.note("begin", chat=chat, request=body)
        try:
            self._answer(self.fake.cues(text), body)
        except (BrokenPipeError, ConnectionResetError):
            self.fake.note("abort", chat=chat)
        else:
            if self.fake.cue.get("mayfly"):
                time.sleep(0.05)
                os.kill(os.getpid(), signal.SIGKILL)

    def _answer(self, cues: dict[str, float], body: dict[str, Any]) -> None:
        if "http" in cues:
            self._json(int(cues["http"]), {"error": {"message": "on cue"}})
            return
        for cue, code in ("long", "context_length_exceeded"), ("blurred", "invalid_image"):
            if cue in cues:
                self._json(int(cues[cue]), {"error": {"message": "on cue", "code": code}})
                return
        if not body.get("stream"):
            self._answer_whole(cues)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        words = int(cues.get("words", 5))
        for number in range(words):
            time.sleep(cues.get("slow", 0))
            self._misbehave(number, cues)
            if cues.get("cut") == number:
                self.close_connection = True
                return
            if cues.get("abort") == number:
                self._chunk(finish="abort")
                break
            name = "another-model" if cues.get("liar", words) <= number else self.fake.name
            self._chunk(text=f"{self.fake.name}/{os.getpid()}/{number} ", name=name)
        else:
            self._chunk(finish="length" if body["max_tokens"] < words else "stop")
        usage = {
            "prompt_tokens": 100,
            "completion_tokens": words,
            "total_tokens": 100 + words,
            "prompt_tokens_details": {"cached_tokens": 40},
            "encoded_tiles": 3,
        }
        self._event({"model": self.fake.name, "choices": [], "usage": usage})
        # Noted before the client can see the end: its next request may begin at once, in another thread.
        self.fake.note("end", chat=body.get("user"))
        self._write(b"data: [DONE]\n\n")
        self._write(b"")

    def _answer_whole(self, cues: dict[str, float]) -> None:
        words = int(cues.get("words", 5))
        for number in range(words):
            time.sleep(cues.get("slow", 0))
            self._misbehave(number, cues)
        if "cut" in cues:
            self.close_connection = True
            return
        text = "".join(f"{self.fake.name}/{os.getpid()}/{number} " for number in range(words))
        finish = "abort" if "abort" in cues else "stop"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        name = "another-model" if "liar" in cues else self.fake.name
        self._json(200, {"id": "fake", "object": "chat.completion", "created": 0, "model": name, "choices": [choice]})

    def _misbehave(self, number: int, cues: dict[str, float]) -> None:
        while cues.get("gate") == number and not (self.fake.directory / "gate").exists():
            time.sleep(0.01)
        if cues.get("die") == number:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        if cues.get("hang") == number:
            time.sleep(3600)
        if cues.get("error") == number:
            self._event({"error": {"message": "out of memory", "code": 500}})

    def _chunk(self, *, text: str | None = None, finish: str | None = None, name: str | None = None) -> None:
        choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": finish}
        self._event({"model": name or self.fake.name, "choices": [choice]})

    def _event(self, value: dict[str, Any]) -> None:
        value |= {"id": "fake", "object": "chat.completion.chunk", "created": 0}
        self._write(b"data: " + json.dumps(value).encode() + b"\n\n")

    def _write(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _json(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, required=True)
    chosen, _ = parser.parse_known_args()  # in place of a real engine's interpreter, it gets more arguments
    watch_parent()
    os.chdir(chosen.model)  # the directory may be renamed while the engine runs
    fake = Fake(Path(), chosen.name)
    fake.note("start", port=chosen.port)
    if fake.cue.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if fake.cue.get("crowd"):
        crowd = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        fake.note("crowd", crowd=crowd.pid)
    start = fake.cue.get("start")
    first = start in ("exit_once", "exit_second") and fake.first_time("exit")
    if start == "exit" or (start == "exit_once" and first) or (start == "exit_second" and not first):
        sys.stdout.write(f"loading the weights of {chosen.name}\n")
        sys.stderr.write("RuntimeError: these weights are no good\n")
        sys.exit(3)
    time.sleep(fake.cue.get("late", 0))
    sys.stdout.write(f"serving {chosen.name} at {chosen.port}\n")
    Handler.fake = fake
    server = ThreadingHTTPServer(("127.0.0.1", chosen.port), Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
