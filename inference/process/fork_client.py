"""Program that asks `fork_server` to fork a worker, and stands in for the worker until it ends.

    python -IS fork_client.py ADDRESS -m MODULE ARGUMENTS

The worker gets this program's standard streams, environment and working directory. Signals are forwarded to the
worker, and the program ends with the worker's exit status or signal. If the program is killed, so is the worker, and if
the server ends, both do. If the server has already ended, the program becomes the worker itself. It imports only a few
standard modules, so that it starts in 20 ms.
"""

import array
import json
import os
import signal
import socket
import sys

READY = "ready"
"""The line that the server writes to standard output once it accepts requests."""

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main() -> None:
    """Request the worker, forward signals to it, and end with its exit status or signal."""
    with socket.socket(socket.AF_UNIX) as server:
        request = json.dumps([sys.argv[2:], dict(os.environ), os.getcwd()]).encode()  # noqa: PTH109 - pathlib is slow to import
        streams = array.array("i", [0, 1, 2])
        try:
            server.connect(sys.argv[1])
            server.sendmsg([len(request).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
            server.sendall(request)
            worker = int.from_bytes(server.recv(4), "big")
        except OSError:
            worker = 0
        if not worker:
            os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
        forward_signals(worker)
        for stream in streams:
            os.close(stream)
        ended = server.recv(4)
    if not ended:
        os.killpg(worker, signal.SIGKILL)
        os._exit(1)
    status = int.from_bytes(ended, "big")
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) in (*FORWARDED, signal.SIGUSR1):
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


def forward_signals(worker: int) -> None:
    """Forward signals to the worker, except SIGUSR1, which makes it and its descendants write their stacks."""
    dumping = False
    deferred: list[int] = []

    def forward(number: int, _: object) -> None:
        if dumping:
            deferred.append(number)
        else:
            os.kill(worker, number)

    def dump(*_: object) -> None:
        nonlocal dumping
        dumping = True
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # `stack_dump.request` waits until it is unblocked
        sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120
        import asyncio

        from inference.process.stack_dump import dump_all

        asyncio.run(dump_all(worker))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        dumping = False
        for number in deferred:
            os.kill(worker, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    signal.signal(signal.SIGUSR1, dump)


if __name__ == "__main__":
    main()
