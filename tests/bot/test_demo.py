"""The demo uses the operator's settings with an engine and a model of its own."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from bot.cli.demo import SHAPES_ONLY, check_model, demo_settings, welcome
from bot.config import ConfigError
from inference.internvl2.tiny import CHECKPOINT
from tests.support.bot_process import ROOT
from tests.support.doctoring import settings_in


def test_as_it_stands_it_is_the_tiny_model_on_the_cpu(tmp_path: Path) -> None:
    """By default, the demo uses the tiny model on the CPU, whatever the settings say."""
    given = settings_in(tmp_path, inference={"endpoint": "http://127.0.0.1:1", "model": "elsewhere"})
    settings = demo_settings(given, "http://127.0.0.1:2", tmp_path)
    assert (settings.inference.engine, settings.inference.model, settings.inference.endpoint) == ("cpu", "tiny", "")
    assert settings.training.recipe == "tiny"


def test_a_real_model_keeps_the_operators_sizes_and_training(tmp_path: Path) -> None:
    """If given another model, the demo keeps the rest of the operator's [inference] and [training] settings.

    Votes from a single new user are enough for training.
    """
    given = settings_in(tmp_path, inference={"swap": "cold"}, training={"seed": 7})
    settings = demo_settings(given, "http://127.0.0.1:2", tmp_path, "lmdeploy", str(CHECKPOINT))
    assert (settings.inference.engine, settings.inference.model) == ("lmdeploy", str(CHECKPOINT))
    assert (settings.inference.swap, settings.training.seed) == ("cold", 7)
    assert (settings.training.min_raters, settings.training.rater_age) == (1, 0)


def test_the_demo_has_no_mini_app(tmp_path: Path) -> None:
    """The token of the demo's bot is public, so anyone could sign data for its Mini App."""
    given = settings_in(tmp_path, web={"token": "a-password", "public_url": "https://bot.example.org"})
    assert demo_settings(given, "http://127.0.0.1:2", tmp_path).web.public_url == ""


def test_a_model_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    """A path without a complete model is refused before a server starts; the error gives the download command."""
    check_model("tiny")
    check_model(str(CHECKPOINT))
    with pytest.raises(ConfigError, match="thumbtune fetch"):
        check_model(str(tmp_path / "nowhere"))


async def test_ctrl_c_says_what_it_has_deleted() -> None:
    """When the demo has ended, its data is gone, and the last line says so."""
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bot.cli.main", "demo", "--port", "0"),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert demo.stdout is not None
        said = (await demo.stdout.readuntil(b"Ctrl-C ends it")).decode()
        log = re.search(r"\S+/bot\.log", said)
        assert log is not None and Path(log[0]).exists()
        demo.send_signal(signal.SIGINT)
        rest = (await demo.stdout.read()).decode()
        assert await demo.wait() == 0
    finally:
        if demo.returncode is None:
            demo.kill()
            await demo.wait()
    assert rest.splitlines()[-1] == "Stopped; the chats and models have been deleted."
    assert not Path(log[0]).parent.exists()


def test_the_pointer_to_the_readme_leads_somewhere() -> None:
    """The section that the demo names for people's own photos exists."""
    (section,) = re.findall("“(.+)” in the README", SHAPES_ONLY)
    assert f"\n## {section}\n" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_ctrl_c_does_is_said_before(tmp_path: Path) -> None:
    """The demo's welcome message says whether the data is deleted at the end."""
    gone = welcome("http://page", "http://operator", tmp_path, kept=False)
    assert "Ctrl-C ends it and deletes all chats and models; --keep DIR keeps them." in gone
    kept = welcome("http://page", "http://operator", tmp_path, kept=True)
    assert f"Ctrl-C ends it. Chats and models stay in {tmp_path}." in kept
