"""The demo uses the operator's settings, and other engines and models."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.cli.demo import check_model, demo_settings, welcome
from bot.config import ConfigError
from inference.internvl2.tiny import CHECKPOINT
from tests.support.doctoring import settings_in


def test_as_it_stands_it_is_the_tiny_model_on_the_cpu(tmp_path: Path) -> None:
    """The demo's engine and model do not depend on the settings."""
    given = settings_in(tmp_path, inference={"endpoints": ["http://127.0.0.1:1"], "model": "elsewhere"})
    settings = demo_settings(given, "http://127.0.0.1:2", tmp_path)
    assert (settings.inference.engine, settings.inference.model, settings.inference.endpoints) == ("cpu", "tiny", ())
    assert settings.training.recipe == "tiny"


def test_a_real_model_keeps_the_operators_sizes_and_training(tmp_path: Path) -> None:
    """With another model the rest of [inference] and [training] is the operator's, but one new person is enough."""
    given = settings_in(tmp_path, inference={"swap": "cold"}, training={"seed": 7})
    settings = demo_settings(given, "http://127.0.0.1:2", tmp_path, "lmdeploy", str(CHECKPOINT))
    assert (settings.inference.engine, settings.inference.model) == ("lmdeploy", str(CHECKPOINT))
    assert (settings.inference.swap, settings.training.seed) == ("cold", 7)
    assert (settings.training.min_raters, settings.training.rater_age) == (1, 0)


def test_a_model_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    """An incomplete model is refused before any server starts, with the command that downloads one."""
    check_model("tiny")
    check_model(str(CHECKPOINT))
    with pytest.raises(ConfigError, match="thumbtune fetch"):
        check_model(str(tmp_path / "nowhere"))


def test_what_ctrl_c_does_is_said_before(tmp_path: Path) -> None:
    """The welcome says whether the data is deleted at the end."""
    gone = welcome("http://page", "http://operator", tmp_path, kept=False)
    assert "Ctrl-C ends it and deletes all chats and models; --keep DIR keeps them." in gone
    kept = welcome("http://page", "http://operator", tmp_path, kept=True)
    assert f"Ctrl-C ends it. Chats and models stay in {tmp_path}." in kept
