"""Settings: the shipped file, overrides from the environment, and error messages."""

from __future__ import annotations

import os
import re
import tomllib
import traceback
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from bot.cli.demo import demo_settings
from bot.config import ConfigError, Settings, load_settings
from bot.config_file import Origin

SHIPPED = Path(__file__).parents[2] / "config.toml"
NOBODY = 65534


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, IPv4Network | IPv6Network):
        return str(value)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _leaves(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{path}{key}"
        found |= _leaves(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return found


def test_the_shipped_file_holds_every_knob_with_its_default() -> None:
    """config.toml shows each setting once at its default; settings without a default are commented out."""
    text = SHIPPED.read_text(encoding="utf-8")
    shown = _leaves(tomllib.loads(text))
    defaults = _leaves(_plain(Settings()))
    for name, value in defaults.items():
        if value is None or value == {}:
            assert re.search(rf"^# {name.rsplit('.', 1)[-1]} = ", text, re.MULTILINE), name
        else:
            assert shown.pop(name) == value, name
    assert shown == {}


def test_every_knob_is_commented() -> None:
    """Each key in config.toml is preceded by a comment that explains it."""
    lines = SHIPPED.read_text(encoding="utf-8").splitlines()
    knob = re.compile(r"(# )?\w+ = ")
    for number, line in enumerate(lines):
        if knob.match(line):
            assert lines[number - 1].startswith("#"), line
            assert not knob.match(lines[number - 1]), line


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment variable overrides one key of a section and leaves the other keys to the file."""
    path = tmp_path / "config.toml"
    path.write_text("[chat]\ntemperature = 0.1\ntop_p = 0.2\n[telegram]\nadmins = [1]\n", encoding="utf-8")
    monkeypatch.setenv("THUMBTUNE_CHAT__TEMPERATURE", "0.5")
    monkeypatch.setenv("THUMBTUNE_TELEGRAM__ADMINS", "[7, 8]")
    monkeypatch.setenv("THUMBTUNE_TELEGRAM__WEBHOOK__SECRET", "abc")
    settings = load_settings(path)
    assert (settings.chat.temperature, settings.chat.top_p) == (0.5, 0.2)
    assert settings.telegram.admins == (7, 8)
    assert settings.telegram.webhook.secret.get_secret_value() == "abc"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("telegram.drafts", "false"),
        ("telegram.chat_calls_per_second", "1"),
        ("inference.warm_timeout", "3"),
        ("inference.warm_at_once", "3"),
        ("inference.restart_delay_max", "3"),
        ("inference.log_files", "3"),
    ],
)
def test_a_removed_setting_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    """A config file with a removed setting loads with a warning; in the environment, the setting is an error."""
    path = tmp_path / "config.toml"
    section, _, key = name.partition(".")
    path.write_text(f"[{section}]\n{key} = {value}\n[chat]\ntop_p = 0.2\n", encoding="utf-8")
    assert load_settings(path).chat.top_p == 0.2
    assert f"{name}: this setting was removed" in capsys.readouterr().err
    monkeypatch.setenv(f"THUMBTUNE_{section.upper()}__{key.upper()}", value)
    with pytest.raises(ConfigError, match="was removed"):
        load_settings(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[chat]\ntemprature = 1\n", ("chat.temprature", "temperature")),
        ("[chatt]\n", ("chatt", "chat")),
        ("[chat]\ntemperature = 'hot'\n", ("chat.temperature", "hot")),
        ("[training.nodes]\n", ("training.nodes",)),
        ("[chat\n", ("TOML",)),
        ("[telegram]\nadmins = '5'\n", ("telegram.admins", "list in brackets", "'5'")),
        ("telegram = 5\n", ("telegram", "section")),
        ("[training]\nschedule = 'every day'\n", ("training.schedule", "every day", "0 4 * * mon")),
        ("[training]\nschedule = '99 * * * *'\n", ("training.schedule", "99")),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    """An unknown key or a bad value is an error that names the key's path and, for a typo, a similar key."""
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["THUMBTUNE_CHATT__TOP_P", "THUMBTUNE_CHAT__TOPP"])
def test_a_mistake_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A misspelt environment variable is an error; its setting does not silently keep the default."""
    monkeypatch.setenv(name, "0.5")
    with pytest.raises(ConfigError, match=r"(?i)chatt|topp"):
        load_settings(SHIPPED)


@pytest.mark.parametrize("value", ["[…]", "1,2", "[1 2]", "abc", "12345", ""])
def test_a_list_in_the_environment_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """The error for a malformed list in the environment names the setting and shows the expected form."""
    monkeypatch.setenv("THUMBTUNE_TELEGRAM__ADMINS", value)
    with pytest.raises(ConfigError, match=r"(?i)^(thumbtune_)?telegram(__|\.)admins: should be a list in brackets"):
        load_settings(SHIPPED)


@pytest.mark.parametrize("name", ["THUMBTUNE_CHAT", "THUMBTUNE_TRAINING__KNOBS"])
def test_a_section_in_the_environment_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A value in the environment that cannot be a section or a table is an error that shows the expected form."""
    monkeypatch.setenv(name, "abc")
    with pytest.raises(ConfigError, match=f"^{name}: should be a section"):
        load_settings(SHIPPED)


@pytest.mark.parametrize(
    "text",
    [
        "[telegram]\ntoken = '123:HIDDEN'\nmode = 'webhook'\n",
        "[telegram]\ntoken = 123456789\n",
        "[inference]\nengine = 'external'\napi_key = 'HIDDEN'\n",
    ],
)
def test_a_mistake_does_not_tell_a_secret(tmp_path: Path, text: str) -> None:
    """Errors reveal no secret, whether its section is inconsistent or the secret itself is rejected."""
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    said = "".join(traceback.format_exception(caught.value))
    assert "HIDDEN" not in said
    assert "123456789" not in said


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    """A --config path that does not exist is an error instead of a fallback to the defaults."""
    with pytest.raises(ConfigError, match="--config"):
        load_settings(tmp_path / "nowhere.toml")


def test_a_folder_that_this_user_may_not_enter_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting in a folder that the user may not enter shows no traceback but an error that names --config."""
    monkeypatch.chdir(tmp_path)
    me = os.geteuid()
    tmp_path.chmod(0)
    try:
        os.seteuid(me or NOBODY)
        with pytest.raises(ConfigError, match="--config"):
            load_settings()
    finally:
        os.seteuid(me)
        tmp_path.chmod(0o700)


def test_settings_are_frozen() -> None:
    """Settings cannot be changed once they are loaded."""
    with pytest.raises(ValueError, match="frozen"):
        load_settings(SHIPPED).chat.temperature = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("training", "engine", "apart"), [([1], [0], True), ([0, 1], [0], False), ([1], [], False), ([], [0], False)]
)
def test_training_steps_aside_unless_it_has_cards_of_its_own(
    training: list[int], engine: list[int], apart: bool
) -> None:
    """Training has GPUs of its own only if both GPU lists are set and do not overlap.

    Without a list, an engine or a training run may use any GPU.
    """
    settings = Settings.model_validate({"training": {"gpus": training}, "inference": {"gpus": engine}})
    assert settings.has_separate_gpus is apart


def test_a_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every path in the config file or the environment may begin with ~ to mean the home folder, as in a shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text("")
    config = tmp_path / "config.toml"
    config.write_text(
        "[inference]\nmodel = '~/model'\nengine = 'external'\nendpoint = 'http://a:1'\n"
        "[training]\nregression = '~/facts'\nrecipe = '~/mine.py'\npython = '~/python'\n"
        "sources = [{ path = '~/rows.json', images = '~/pictures' }]\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("THUMBTUNE_STORAGE__DIR", "~/data")
    monkeypatch.setenv("THUMBTUNE_INFERENCE__PYTHON", "~/python")
    settings = load_settings(config)
    training, inference = settings.training, settings.inference
    (source,) = training.sources
    assert [
        settings.storage.dir,
        *(Path(each) for each in (inference.model, inference.python)),
        *(training.regression, Path(training.recipe), Path(training.python), source.path, source.images),
    ] == [
        tmp_path / name for name in ("data", "model", "python", "facts", "mine.py", "python", "rows.json", "pictures")
    ]
    monkeypatch.setenv("THUMBTUNE_STORAGE__DIR", "~nobody-there/data")
    with pytest.raises(ConfigError, match=r"storage\.dir.*full path"):
        load_settings(config)


def test_origins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The origin of a setting is the variable or the line that sets it; a setting that is not set has none."""
    path = tmp_path / "config.toml"
    path.write_text(
        "[chat]\n# Words.\ntop_p = 0.2\ntemperature = 0.1\n\n[training]\nknobs.rank = 8\n[[training.sources]]\n"
        'path = "food.json"\n[inference]\n# tiles = 3\nlmdeploy = { batch = 2 }\n',
        encoding="utf-8",
    )
    monkeypatch.setenv("thumbtune_chat__temperature", "0.5")
    monkeypatch.setenv("THUMBTUNE_WEB", '{"port": 0}')
    assert load_settings(path).origins == {
        "chat.top_p": Origin(str(path), 3),
        "chat.temperature": Origin("thumbtune_chat__temperature"),
        "training.knobs": Origin(str(path)),
        "training.sources": Origin(str(path), 8),
        "inference.lmdeploy.batch": Origin(str(path)),
        "web.port": Origin("THUMBTUNE_WEB"),
    }
    assert Settings().origins == {}
    demo = demo_settings(load_settings(SHIPPED), "http://127.0.0.1", tmp_path)
    assert "training.min_rated" not in demo.origins  # the demo's own
    assert demo.origins["training.threshold"].name == str(SHIPPED)
