"""The settings from `config.toml` and the environment, with error messages that explain mistakes.

An environment variable overrides the file. Its name is `THUMBTUNE_` followed by the path of the setting
joined with `__`, for example `THUMBTUNE_TELEGRAM__TOKEN`. Settings are declared by the packages that use
them. `bot.live_settings` adds the changes that operators make while the bot runs.
"""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, get_origin

from apscheduler.triggers.cron import CronTrigger
from pydantic import BaseModel, Field, PrivateAttr, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from bot.config_file import Origin, key_lines
from bot.settings import ChatSettings, LimitsSettings, StorageSettings, TelegramSettings, WebSettings
from inference.internvl2.families import INTERNVL2, read_family
from inference.process.environment import ENV_PREFIX
from inference.settings import InferenceSettings
from storage.learning_records import Trust
from training.job_specs import JobSpecs, TrainingPaths
from training.settings import TrainingSettings

ENV_DELIMITER = "__"
DEFAULT_PATH = Path("config.toml")

_REMOVED: Final = {
    "telegram.drafts": "this setting was removed: answers are streamed by edits everywhere. Delete it.",
    "inference.warm_timeout": "this setting was removed: a warm-up takes 20 s at most. Delete it.",
    "inference.warm_at_once": "this setting was removed: an engine is warmed up with 4 prompts at a time. Delete it.",
    "inference.restart_delay_max": "this setting was removed: restarts are delayed by 60 s at most. Delete it.",
    "inference.log_files": "this setting was removed: 3 old log files are kept. Delete it.",
    "telegram.chat_calls_per_second": "this setting was removed: Telegram allows one call a second. Delete it.",
}

_LIST: Final = 'should be a list in brackets, for example [1, 2] or ["a", "b"]'
_SECTION: Final = 'should be a section with keys of its own, written in the environment as {"key": 1}'
_WANTED: Final = {"tuple_type": _LIST, "list_type": _LIST, "model_type": _SECTION, "dict_type": _SECTION}


class ConfigError(Exception):
    """A setting is unknown or has an invalid value. The message names the key and the permitted values."""


class Settings(BaseSettings):
    """All settings, read once at startup."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter=ENV_DELIMITER, extra="forbid", frozen=True, case_sensitive=False
    )

    telegram: TelegramSettings = Field(default_factory=TelegramSettings)
    chat: ChatSettings = Field(default_factory=ChatSettings)
    limits: LimitsSettings = Field(default_factory=LimitsSettings)
    storage: StorageSettings = Field(default_factory=StorageSettings)
    inference: InferenceSettings = Field(default_factory=InferenceSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    web: WebSettings = Field(default_factory=WebSettings)
    _origins: dict[str, Origin] = PrivateAttr(default_factory=dict)

    @property
    def origins(self) -> Mapping[str, Origin]:
        """The origin of each setting that `load_settings` found, by its dotted path."""
        return self._origins

    def replaced(self, **sections: BaseModel) -> Settings:
        """Return a copy with other sections, in which changed values have no origin."""
        after = self.model_copy(update=sections)
        same = (key for key in self._origins if attrgetter(key)(after) == attrgetter(key)(self))
        after._origins = {key: self._origins[key] for key in same}
        return after

    @property
    def trust(self) -> Trust:
        """The rules that determine whose votes and corrections count when training data is selected."""
        return Trust(
            frozenset(self.limits.blocked),
            frozenset(self.telegram.admins),
            newcomer_seconds=3600 * self.training.rater_age,
        )

    @property
    def answering(self) -> dict[str, Any]:
        """The fields of `training.command_jobs.AskingJob` that determine how models answer in a worker process."""
        return {
            "system": self.persona,
            "device": self.training.device,
            "threads": self.training.threads,
            "tiles": self.inference.tiles or 0,
            "max_new_tokens": self.chat.max_new_tokens,
        }

    @property
    def persona(self) -> str:
        """The system prompt used in chats and in training.

        If no prompt is configured, the official prompt of the model's family is used.
        """
        if self.chat.system_prompt:
            return self.chat.system_prompt
        with suppress(OSError, ValueError):  # the directory may be missing, or exist only on an external server
            return read_family(self.inference.checkpoint()).system
        return INTERNVL2.system

    @property
    def has_separate_gpus(self) -> bool:
        """Whether training and the engine use separate GPUs, so that neither has to yield to the other."""
        training, engine = self.training.gpus, self.inference.gpus
        return bool(training and engine) and set(training).isdisjoint(engine)

    def job_specs(self, yield_file: Path | None = None) -> JobSpecs:
        """Return the specifications of the jobs that runs consist of.

        `yield_file` has the same meaning as in `TrainingPaths`.
        """
        folder = self.storage.dir.resolve()
        paths = TrainingPaths(
            base=self.inference.checkpoint().resolve(),
            runs=folder / "runs",
            sources=folder / "sources",
            answers=folder / "answers",
            yield_file=yield_file and yield_file.resolve(),
        )
        return JobSpecs(self.training, paths, folder / "pictures", self.persona, self.inference.tiles or 0)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment override the settings file, whose values are passed to the constructor."""
        return env_settings, init_settings


def load_settings(path: Path | None = None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings from the file `path` and the environment.

    If `path` is None, `config.toml` in the current directory is read, if it exists.

    Raises:
        ConfigError: `path` does not exist or has a syntax error, or a setting is unknown or invalid.
    """
    text, values = _read(path)
    _drop_removed(values)
    _refuse_unknown_variables(environment)
    try:
        settings = Settings(**values)
    except SettingsError as error:
        wrong = [f"{name}: {wanted}" for name, value in environment.items() if (wanted := _misread(name, value))]
        raise ConfigError("\n".join(wrong) or str(error)) from error
    except ValidationError as error:
        # Without the cause: pydantic's message quotes the input, which may be a secret.
        raise ConfigError("\n".join(_explain(each) for each in error.errors())) from None
    check_schedule(settings.training.schedule)
    lines = key_lines(text)
    for key in _keys(values):
        settings._origins[key] = Origin(str(path or DEFAULT_PATH), lines[key].number if key in lines else 0)
    for name, value in environment.items():
        if variable := _path_of(name):
            keys = _keys(json.loads(value), variable) if _is_section(_kind(variable)) else [".".join(variable)]
            settings._origins |= dict.fromkeys(keys, Origin(name))
    return settings


def _read(path: Path | None) -> tuple[str, dict[str, Any]]:
    """Return the text of the settings file and the values in it."""
    source = path or DEFAULT_PATH
    try:
        text = "" if path is None and not source.exists() else source.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except OSError as error:
        cure = "name the file with --config PATH, or write one with thumbtune init"
        raise ConfigError(f"{source}: cannot be read ({error.strerror}); {cure}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from error


def _drop_removed(values: dict[str, Any]) -> None:
    """Delete obsolete settings from `values`, and print a warning for each."""
    for path, words in _REMOVED.items():
        section, _, key = path.partition(".")
        if isinstance(values.get(section), dict) and key in values[section]:
            del values[section][key]
            sys.stderr.write(f"{path}: {words}\n")


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    """Raise ConfigError for an environment variable that names an unknown section of the settings.

    pydantic-settings ignores a variable if the first part of its path is not a field.
    """
    for name in environment:
        path = _path_of(name)
        if path and path[0] not in Settings.model_fields:
            raise ConfigError(f"{name}: no such setting{_suggest(path[0], Settings.model_fields)}")


def _misread(name: str, value: str) -> str:
    """Return what an unparsable variable should contain, or an empty string if its value can be parsed.

    Only lists and sections are checked. Their values are read as JSON.
    """
    path = _path_of(name)
    kind = _kind(path) if path else None
    if _is_section(kind) or get_origin(kind) is dict:
        wanted = _SECTION
    elif get_origin(kind) is tuple:
        wanted = _LIST
    else:
        return ""
    try:
        json.loads(value)
    except ValueError:
        return wanted
    return ""


def _path_of(name: str) -> tuple[str, ...]:
    """Return the path of the setting that an environment variable sets, or () for any other variable."""
    return tuple(name[len(ENV_PREFIX) :].lower().split(ENV_DELIMITER)) if name.upper().startswith(ENV_PREFIX) else ()


def _keys(values: Mapping[str, Any], location: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the dotted path of each setting in nested `values`."""
    for name, value in values.items():
        here = (*location, name)
        if _is_section(_kind(here)):
            yield from _keys(value, here)
        else:
            yield ".".join(here)


def check_schedule(cron: str) -> None:
    """Raise ConfigError if `cron` is neither empty nor five cron fields."""
    try:
        if cron:
            CronTrigger.from_crontab(cron)
    except ValueError as error:
        raise ConfigError(
            f"training.schedule: {error} (got {cron!r}); "
            'expected minute, hour, day of month, month and day of week, for example "0 4 * * mon" for Mondays at 4'
        ) from error


def _explain(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        if path in _REMOVED:
            return f"{path}: {_REMOVED[path]}"
        beside = _kind(error["loc"][:-1])
        known = beside.model_fields if _is_section(beside) else {}
        return f"{path}: no such setting{_suggest(str(error['loc'][-1]), known)}"
    wanted = _WANTED.get(error["type"], error["msg"])
    # A section may contain secrets.
    quoted = isinstance(error["input"], str | int | float) and _kind(error["loc"]) is not SecretStr
    return f"{path}: {wanted} (got {error['input']!r})" if quoted else f"{path}: {wanted}"


def _kind(location: tuple[str | int, ...]) -> Any:
    """Return the type annotation of the setting at `location`, or None if there is no such setting."""
    kind: Any = Settings
    for part in location:
        field = kind.model_fields.get(part) if _is_section(kind) else None
        kind = field.annotation if field else None
    return kind


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _suggest(word: str, known: Mapping[str, Any] | list[str]) -> str:
    close = get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
