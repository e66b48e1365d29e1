"""The CPU engine's process ends when its parent ends or if its checkpoint cannot be loaded."""

from __future__ import annotations

from pathlib import Path

from tests.support.cpu_serving import body, endless, question, started


def test_the_engine_ends_with_its_parent_mid_answer(tmp_path: Path) -> None:
    """The engine process ends soon after its parent's pipe closes, even with an answer in flight."""
    with started(endless(tmp_path / "endless")) as served:
        served.until_ready()
        request = body(question("Go on."), stream=True, max_tokens=100_000)
        with served.http.stream("POST", "/v1/chat/completions", json=request) as response:
            assert next(response.iter_lines())
            assert served.process.stdin is not None
            served.process.stdin.close()
            assert served.process.wait(30) == 0


def test_the_engine_ends_if_the_checkpoint_cannot_be_loaded(tmp_path: Path) -> None:
    """If the checkpoint cannot be loaded, the engine process logs the reason and exits with status 1."""
    with started(tmp_path) as served:
        assert served.process.wait(60) == 1
        assert served.process.stderr is not None
        assert f"{tmp_path} cannot be served" in served.process.stderr.read()
