"""Stands in for an operator's script: ends the server on a port, if there is one, and starts one with another model.

    python tests/support/server_script.py FOLDER PYTHON PORT NAME MODEL_DIR

PYTHON runs a CPU engine; where it is empty the server is a fake one. NAME and MODEL_DIR may be `same`: what was served
last. `FOLDER/PORT.pid` holds the server's process id, `FOLDER/PORT.model` what it serves; two scripts for one port wait
for each other. The server ends when no process has `FOLDER/lifeline` (a FIFO) open for writing: with the test.
MODEL_DIR/script.json injects failures:
    {"fail": true}    writes a line and ends with exit code 7, the old server untouched
    {"hang": true}    ends the old server, then sleeps
    {"forget": true}  ends with 0 and does nothing
    {"gate": 8000}    for that port: waits until MODEL_DIR/gate is there, and fails
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
    note.write_text(str(process.pid))
    served.write_text(f"{name}\n{model_dir}\n")


if __name__ == "__main__":
    main()
