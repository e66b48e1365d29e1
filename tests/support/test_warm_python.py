"""The preloaded Python interpreter survives when programs are killed while asking it for a worker."""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

REQUEST = json.dumps([["-m", "this"], dict(os.environ), os.getcwd()]).encode()


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(0, id="before the request"),
        pytest.param(len(REQUEST) // 2, id="in the middle of it"),
        pytest.param(len(REQUEST), id="after it"),
    ],
)
def test_a_program_killed_while_it_connects(warm_python: str, sent: int) -> None:
    with socket.socket(socket.AF_UNIX) as connection, open(os.devnull, "r+b") as null:
        connection.connect(str(Path(warm_python).with_name("warm.socket")))
        streams = array.array("i", [null.fileno()] * 3)
        connection.sendmsg([len(REQUEST).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        connection.sendall(REQUEST[:sent])
    ended = subprocess.run([warm_python, "-m", "platform"], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("Linux")
