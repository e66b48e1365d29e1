"""The settings in force while the bot runs: those read at startup, with the changes made on the operator's page.

A change on the page takes precedence over the environment, which takes precedence over config.toml. `CHANGEABLE` lists
what may change. Components read such a setting from `LiveSettings.now` each time they use it, so a change applies to
the next question, command or evaluation; what is built from settings, such as the scheduled job, is rebuilt by a
function given to `subscribe`. A run keeps the settings that it was planned with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any, Final

import structlog
from pydantic import ValidationError

from bot.config import ConfigError, Settings, check_schedule
from bot.i18n import later
from storage.setting_changes import SettingChange, SettingChanges
from storage.translatable_reason import Reason

CHANGEABLE: Final = (
    "chat.system_prompt",
    "chat.default_question",
    "limits.allowed",
    "limits.blocked",
    "limits.questions_per_minute",
    "limits.answers_per_person",
    "limits.corrections_per_day",
    "limits.answers_at_once",
    "limits.picture_megabytes_per_person",
    "training.schedule",
    "training.min_rated",
    "training.min_raters",
    "training.rater_age",
    "training.canary",
    "training.approve",
)
"""The settings that may change while the bot runs."""

_SENTENCES: Final = {
    "int_parsing": Reason("This must be a whole number."),
    "int_from_float": Reason("This must be a whole number."),
    "float_parsing": Reason("This must be a number."),
    "finite_number": Reason("This must be a number."),
    "bool_parsing": Reason("This must be yes or no."),
    "string_too_short": Reason("This can't be empty."),
}
_LIMITS: Final = {
    "greater_than_equal": ("ge", later("This must be at least {limit}.")),
    "less_than_equal": ("le", later("This must be at most {limit}.")),
}

EXAMPLE: Final = "12345678, -1001234567890"
"""A user ID and a group ID as an operator would enter them; every list in `CHANGEABLE` contains IDs."""

log = structlog.get_logger()


class LiveSettings:
    """The settings in force, as `now`.

    Attributes:
        started: The settings that were read at startup.
        now: The settings in force; replaced as a whole when one changes.
        persona: The system prompt in force.
        changes: The changes in force, by key.
        unfit: The reasons why changes conflict with the settings read at startup, by key.
    """

    def __init__(self, started: Settings, changes: Iterable[SettingChange] = ()) -> None:
        self.started = started
        self._subscribers: list[Callable[[Settings], None]] = []
        self._changing = asyncio.Lock()
        self._adopt(changes)

    def subscribe(self, rebuild: Callable[[Settings], None]) -> None:
        """Call `rebuild` with the settings in force after each change."""
        self._subscribers.append(rebuild)

    async def change(self, record: SettingChanges, key: str, value: Any, by: str) -> None:
        """Change a setting at the request of the operator `by`, and record the change.

        Nothing is recorded if the value is the one in force.

        Raises:
            ConfigError: The value is not valid, alone or together with other settings; the message is a `Reason`.
            StorageError: The change could not be recorded. Nothing has changed.
        """
        async with self._changing:
            made = json_value(with_value(self.now, key, value), key)
            if made != json_value(self.now, key) or key in self.unfit:
                await record.add(key, made, by)
                await self._apply(record)

    async def undo(self, record: SettingChanges, key: str, by: str) -> None:
        """Restore the value that the environment or config.toml sets.

        Raises:
            StorageError: The change could not be recorded. Nothing has changed.
        """
        async with self._changing:
            if key in self.changes or key in self.unfit:
                await record.add(key, None, by)
                await self._apply(record)

    async def _apply(self, record: SettingChanges) -> None:
        self._adopt(await record.in_force())
        for rebuild in self._subscribers:
            rebuild(self.now)

    def _adopt(self, changes: Iterable[SettingChange]) -> None:
        """Apply changes, oldest first, and leave out those that conflict with the settings read at startup."""
        now, self.changes, self.unfit = self.started, dict[str, SettingChange](), dict[str, str]()
        for each in changes:
            try:
                now = with_value(now, each.key, each.value)
                self.changes[each.key] = each
            except ConfigError as error:
                self.unfit[each.key] = str(error)
                log.warning("a change from the Settings page is not applied", key=each.key, reason=str(error))
        self.now: Settings = now
        self.persona: str = now.persona


def with_value(settings: Settings, key: str, value: Any) -> Settings:
    """Return `settings` with a new value for a key, validated together with the rest of its section.

    Raises:
        ConfigError: The setting cannot change while the bot runs, or the value is not valid. The message is a `Reason`.
    """
    if key not in CHANGEABLE:
        raise ConfigError(Reason("This can only be changed in config.toml or the environment."))
    section, _, name = key.partition(".")
    before = getattr(settings, section)
    try:
        after = type(before).model_validate({**dict(before), name: value})
    except ValidationError as error:
        # Without the cause: pydantic's message quotes other values of the section.
        raise ConfigError(_sentence(error.errors()[0], name)) from None
    changed = settings.model_copy(update={section: after})
    try:
        check_schedule(changed.training.schedule)
    except ConfigError as error:
        raise ConfigError(
            Reason(
                "This must be five cron fields: minute, hour, day of month, month and day of week. For example, "
                '"0 4 * * mon" means Mondays at 4 (UTC).'
            )
        ) from error
    return changed


def json_value(settings: Settings, key: str) -> Any:
    """Return a setting's value as JSON represents it, with secrets masked."""
    section, _, name = key.rpartition(".")
    return attrgetter(section)(settings).model_dump(mode="json", include={name})[name]


def _sentence(error: Mapping[str, Any], name: str) -> Reason:
    """Return what is wrong with the value of the key `name`, or with another key of its section."""
    problem = str(error["msg"]).removeprefix("Value error, ")
    if error["loc"][:1] not in ((), (name,)):
        return Reason(f"{'.'.join(map(str, error['loc']))}: {problem}")
    if len(error["loc"]) > 1:
        return Reason(
            "Entry {number} of the list, {entry}, is not an ID. Write user IDs and group IDs (negative) as whole "
            "numbers separated by commas, for example: {example}",
            number=error["loc"][1] + 1,
            entry=f"“{error['input']}”",
            example=EXAMPLE,
        )
    if limit := _LIMITS.get(error["type"]):
        constraint, sentence = limit
        return Reason(sentence, limit=f"{error['ctx'][constraint]:g}")
    return _SENTENCES.get(error["type"]) or Reason(problem)
