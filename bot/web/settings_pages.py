"""The Settings page, which shows all settings and lets the operator change some while the bot runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiohttp import web
from pydantic import BaseModel

from bot.config import ConfigError, Settings
from bot.config_file import Origin, descriptions
from bot.live_settings import CHANGEABLE, EXAMPLE, LiveSettings, json_value
from bot.web.pages import OPERATOR, Pages, see_other
from bot.web.security import read_form
from storage.ledger import Ledger
from storage.setting_changes import SettingChange

CHANGES_SHOWN: Final = 50
_KEY: Final = "/settings/{key:[a-z_.]{1,100}}"
_LONG: Final = frozenset({"chat.system_prompt"})
"""Settings whose text may have several lines."""

_CREDENTIALS: Final = re.compile(r"(?<=://)[^/@\s\"]+(?=@)")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SettingEntry:
    """A setting on the page.

    Attributes:
        value: The value in force, as JSON.
        started: The value that the environment or the file sets, as JSON.
        origin: Where that value was set; None if unknown.
        is_default: Whether that value is the default.
        change: The change that is in force instead, if any.
        text: The text in the form.
        example: What a list looks like in the form; empty for other settings.
        kind: The form's field: "line", "text" or "choice"; empty if the setting cannot change while the bot runs.
        wrong: Why the submitted text is not valid.
    """

    key: str
    value: str
    started: str
    origin: Origin | None
    is_default: bool
    change: SettingChange | None
    text: str
    example: str
    kind: str
    wrong: str

    @property
    def name(self) -> str:
        """The key within its section."""
        return self.key.rpartition(".")[2]

    @property
    def description(self) -> str:
        """The comment in the shipped config.toml."""
        return descriptions()[self.key]


@dataclass(frozen=True, slots=True)
class SettingsPages:
    """The Settings page."""

    ledger: Ledger
    settings: LiveSettings
    pages: Pages

    def routes(self) -> list[web.RouteDef]:
        """Return the routes, which must be accessible only to the operator."""
        return [web.get("/settings", self.show), web.post(_KEY, self.change), web.post(f"{_KEY}/undo", self.undo)]

    async def show(
        self, request: web.Request, key: str = "", text: str = "", wrong: str = "", status: int = 200
    ) -> web.Response:
        """Show all settings and the latest changes.

        If the field of `key` was filled in wrongly, show it with its `text` and with what is `wrong`.
        """
        sections = [
            (section, [self._entry(each, text, wrong) if each == key else self._entry(each) for each in keys])
            for section, keys in _sections(self.settings.now)
        ]
        return self.pages.render(
            request,
            "settings.html",
            status=status,
            sections=sections,
            wrong=key,
            unfit=self.settings.unfit,
            persona=self.settings.persona,
            changes=[(each, shown(each.value)) for each in await self.ledger.setting_changes.latest(CHANGES_SHOWN)],
            here=request.rel_url.with_path("/settings"),
        )

    async def change(self, request: web.Request) -> web.Response:
        """Change a setting, or show its field again with the error."""
        key, say = request.match_info["key"], self.pages.say(request)
        if key not in CHANGEABLE:
            raise web.HTTPNotFound
        text = (await read_form(request)).get("value", "").replace("\r\n", "\n").strip()
        try:
            value = _parsed(self.settings.now, key, text)
            await self.settings.change(self.ledger.setting_changes, key, value, request[OPERATOR].name)
        except ConfigError as error:
            return await self.show(request, key, text, say(error.args[0]), status=400)
        log.info("a setting was changed", key=key, by=request[OPERATOR].name)
        return see_other(f"/settings#{key}")

    async def undo(self, request: web.Request) -> web.Response:
        """Restore the value that the environment or the file sets."""
        key = request.match_info["key"]
        await self.settings.undo(self.ledger.setting_changes, key, request[OPERATOR].name)
        log.info("a change to a setting was undone", key=key, by=request[OPERATOR].name)
        return see_other(f"/settings#{key}")

    def _entry(self, key: str, text: str | None = None, wrong: str = "") -> SettingEntry:
        settings, value = self.settings, json_value(self.settings.now, key)
        started = json_value(settings.started, key)
        kind = ""
        if key in CHANGEABLE:
            kind = "choice" if isinstance(value, bool) else "text" if key in _LONG else "line"
        return SettingEntry(
            key=key,
            value=shown(value),
            started=shown(started),
            origin=settings.started.origins.get(key),
            is_default=started == json_value(Settings.model_construct(), key),
            change=settings.changes.get(key),
            text=_text(value) if text is None else text,
            example=EXAMPLE if isinstance(value, list) else "",
            kind=kind,
            wrong=wrong,
        )


def shown(value: Any) -> str:
    """Return a value as JSON, with the credentials in URLs masked."""
    return _CREDENTIALS.sub("***", json.dumps(value, ensure_ascii=False))


def _sections(settings: BaseModel, name: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the keys of each section."""
    fields = type(settings).model_fields
    inner = [each for each in fields if isinstance(getattr(settings, each), BaseModel)]
    if keys := [f"{name}.{each}" for each in fields if each not in inner]:
        yield name, keys
    for each in inner:
        yield from _sections(getattr(settings, each), f"{name}.{each}" if name else each)


def _text(value: Any) -> str:
    """Return a value as it appears in the form."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def _parsed(settings: Settings, key: str, text: str) -> Any:
    """Return the operator's text as a value that the setting's section can validate."""
    if isinstance(json_value(settings, key), list):
        return re.findall(r"[^\s,;，；、\[\]]+", text)
    return text
