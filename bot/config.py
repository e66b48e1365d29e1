"""One frozen Settings out of `config.toml` and the environment.

Knows where settings come from and how a mistake in them is worded; what each setting means is declared by the
room that uses it. The environment wins over the file: `THUMBTUNE_` + the path joined by `__`, for example
`THUMBTUNE_TELEGRAM__TOKEN`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from bot.settings import ChatSettings, LimitsSettings, StorageSettings, TelegramSettings
from inference.environment import ENV_PREFIX
from inference.settings import InferenceSettings
from training.settings import TrainingSettings

ENV_DELIMITER = "__"
DEFAULT_PATH = Path("config.toml")


class ConfigError(Exception):
    """A setting is unknown or has a bad value. The text names the key and what would be right."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WebSettings(_Part):
    """The bot's own web server: /health, /metrics, the operator page and Telegram's webhook."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    token: SecretStr = Field(
        SecretStr(""), description="password of the operator page and /metrics; empty lets only this machine see them"
    )


class Settings(BaseSettings):
    """Every knob of the product, read once at start."""

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

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment goes before the file, whose content arrives as arguments."""
        return env_settings, init_settings


def load_settings(path: Path | None = None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Read `path` (default: `config.toml` here, if there is one) and the environment.

    Raises `ConfigError` for a missing named file, a syntax error, an unknown key or a bad value.
    """
    values = _read(path)
    _refuse_unknown_variables(environment)
    try:
        return Settings(**values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(each) for each in error.errors())) from error


def _read(path: Path | None) -> dict[str, Any]:
    source = path or DEFAULT_PATH
    try:
        if path is None and not source.exists():
            return {}
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read ({error.strerror}); name the file with --config PATH") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from error


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    """pydantic-settings overlooks variables whose first part is no field; a typo there must not pass silently."""
    for name in environment:
        if not name.upper().startswith(ENV_PREFIX):
            continue
        first = name[len(ENV_PREFIX) :].split(ENV_DELIMITER)[0].lower()
        if first not in Settings.model_fields:
            raise ConfigError(f"{name}: no such setting{_suggest(first, Settings.model_fields)}")


def _explain(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        return f"{path}: {error['msg']} (got {error['input']!r})"
    return f"{path}: no such setting{_suggest(str(error['loc'][-1]), _fields_beside(error['loc']))}"


def _fields_beside(location: tuple[str | int, ...]) -> list[str]:
    model: Any = Settings
    for part in location[:-1]:
        field = model.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)


def _suggest(word: str, known: Mapping[str, Any] | list[str]) -> str:
    close = get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
