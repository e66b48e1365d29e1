"""A stand-in for an operator's script that stops the server on a port, if any, and starts a new one.

    python tests/support/server_script.py FOLDER PYTHON PORT NAME MODEL_DIR

The new server is a CPU engine run by the interpreter PYTHON, or a fake engine if PYTHON is empty. NAME
and MODEL_DIR are the name and the directory of the model to serve; both may be `same`, which stands for
the model served last. `FOLDER/PORT.pid` holds the server's process ID, and `FOLDER/PORT.model` the model
that it serves. Scripts for the same port run one after another. The server ends with the test, that is,
as soon as no process has the FIFO `FOLDER/lifeline` open for writing.

MODEL_DIR/script.json injects failures:
    {"fail": true}    prints a line and exits with code 7, leaving the old server running
    {"hang": true}    stops the old server, then sleeps
    {"forget": true}  exits with code 0 without replacing the old server
    {"gate": 8000}    for port 8000 only: waits until MODEL_DIR/gate exists, then exits with code 7
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from inference.engines.access_key import KEY_VARIABLE
from inference.settings import InferenceSettings
from storage.atomic_files import write_text
from tests.support.children import alive, fake_command

SERVER_KEY = "the-operator-s-key"


def cpu_command(python: str, name: str, model_dir: Path, port: int) -> list[str]:
    return [
        *(python, "-m", "inference.engines.cpu.server", "--model", str(model_dir), "--name", name),
        *("--port", str(port), "--threads", "1", "--slots", "8", "--cache-megabytes", "256"),
    ]


def main() -> None:
    folder, python, port, name, model_dir = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5]
    lock = (folder / f"{port}.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    served = folder / f"{port}.model"
    if name == "same":
        name, model_dir = served.read_text().splitlines()
    script = Path(model_dir) / "script.json"
    cue = json.loads(script.read_text()) if script.exists() else {}
    sys.stdout.write(f"{name} for {port}\n")
    sys.stdout.flush()
    if cue.get("gate") == port:
        while not (Path(model_dir) / "gate").exists():
            time.sleep(0.02)
        sys.exit(7)
    if cue.get("fail"):
        sys.exit(7)
    if cue.get("forget"):
        return
    note = folder / f"{port}.pid"
    if note.exists():
        old = int(note.read_text())
        if alive(old):
            os.kill(old, signal.SIGTERM)
        while alive(old):
            time.sleep(0.02)
    if cue.get("hang"):
        time.sleep(600)
    directory = Path(model_dir)
    line = fake_command(name, directory, port, InferenceSettings())
    environment = dict(os.environ)
    if python:
        line = cpu_command(python, name, directory, port)
        environment[KEY_VARIABLE] = SERVER_KEY  # our server requires one; its operator sets it
    with (folder / "lifeline").open("rb") as lifeline, (folder / f"{port}.log").open("ab") as log:
        process = subprocess.Popen(
            line, stdin=lifeline, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    write_text(note, str(process.pid))
    write_text(served, f"{name}\n{model_dir}\n")


if __name__ == "__main__":
    main()
