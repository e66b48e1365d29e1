"""The model that is trained computes gradients only where something is trained."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


@pytest.mark.parametrize(("targets", "printed"), [("output", "False False 2"), ("wqkv", "True False 8")])
def test_layers_below_the_first_trained_weight_have_no_backward_pass(
    tmp_path: Path, warm_python: str, targets: str, printed: str
) -> None:
    """If only the output layer is trained, the layers below take no part; all trained weights have gradients."""
    line = [warm_python, "-m", "tests.support.one_backward_pass", str(tmp_path), targets]
    ended = subprocess.run(line, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert ended.stdout.splitlines()[-1:] == [printed], ended.stderr
