"""The Settings page over HTTP with the whole bot: changes are validated, applied at once, recorded and undone."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bot.config import ConfigError, Settings
from bot.live_settings import CHANGEABLE, LiveSettings, with_value
from inference.internvl2.families import INTERNVL2
from storage.ledger import Ledger
from storage.setting_changes import SettingChange
from tests.bot.test_review import Desk, at_work
from tests.support.bot_process import command
from tests.support.person import Person
from tests.support.whole_bot import ADMIN, WholeBot, picture, whole_bot, words

ADA = 21


@pytest.fixture
async def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    monkeypatch.setenv("THUMBTUNE_LIMITS__CORRECTIONS_PER_DAY", "4")
    async with at_work(tmp_path, monkeypatch) as made:
        yield made


@asynccontextmanager
async def running(bot: WholeBot, **sections: dict[str, Any]) -> AsyncIterator[Desk]:
    """Run a bot whose data folder outlives the run, and yield a desk."""
    async with (
        bot.running(**sections) as application,
        aiohttp.ClientSession(application.address) as session,
        bot.ledger() as ledger,
    ):
        yield Desk(bot, application.address, session, ledger)


async def asked_and_persona(desk: Desk, person: Person, number: int) -> tuple[str, str]:
    """Send a picture without words; return the question and the system prompt that the model read."""
    sent = await person.sends(photo=picture(number))
    await person.answer(rated=True)
    exchange = await desk.ledger.exchanges.for_question(person.id, sent["message_id"])
    assert exchange
    return exchange.question, exchange.system


async def change(desk: Desk, key: str, value: str, *, status: int = 303) -> str:
    return await desk.post(f"/settings/{key}", page="/settings", status=status, value=value)


def setting(page: str, key: str) -> str:
    """Return the visible text of a setting on the page, and the value in its field."""
    found = re.search(rf'<article class="setting" id="{re.escape(key)}">(.*?)</article>', page, re.DOTALL)
    assert found, key
    shown = re.sub(r'<input [^>]*name="value"[^>]* value="([^"]*)"[^>]*>', r" \1 ", found[1])
    return " ".join(html.unescape(re.sub("<[^>]+>", " ", shown)).split())


async def test_every_setting_is_shown_with_its_origin(desk: Desk) -> None:
    """Each setting is shown with its comment in config.toml, its value and where that was set, but no secret."""
    page = await desk.get("/settings")
    config = (desk.bot.data.parent / "config.toml").read_text(encoding="utf-8").splitlines()
    line = next(number for number, each in enumerate(config, start=1) if each.startswith("min_rated"))
    text = setting(page, "training.min_rated")
    assert (
        "The minimum number of liked answers to train on." in text
        and f"config.toml, line {line}" in text
        and " 4 " in text
    )
    assert "THUMBTUNE_LIMITS__CORRECTIONS_PER_DAY" in setting(page, "limits.corrections_per_day")
    assert "default" in setting(page, "limits.answers_at_once")
    assert "Nucleus sampling" in setting(page, "chat.top_p") and "0.8 default" in setting(page, "chat.top_p")
    assert "**********" in setting(page, "telegram.token") and desk.bot.emulator.token not in page
    assert "unset" in setting(page, "inference.lmdeploy.blocks") and "[inference.lmdeploy]" in page
    assert re.findall(r'action="/settings/([\w.]+)"', page) == list(CHANGEABLE)


async def test_the_next_plan_uses_the_new_minimum(desk: Desk) -> None:
    """A changed min_rated decides whether the next run starts, until it is undone; both are recorded with a name."""
    assert await change(desk, "training.min_rated", " 5 ") == "/settings#training.min_rated"
    assert "Not enough yet: 4 liked answers, 5 needed." in await desk.post("/review/train", status=409)
    page = await desk.get("/settings")
    assert re.search(
        r"Changed here by an operator, .* Replaces: 4 , .*line \d+ Undo", setting(page, "training.min_rated")
    )
    await desk.post("/settings/training.min_rated/undo", page="/settings")
    assert "Changed here" not in setting(await desk.get("/settings"), "training.min_rated")
    assert await desk.post("/review/train") == "/runs/1"
    await desk.bot.ended(1)
    changes = await desk.ledger.setting_changes.latest(10)
    assert [(each.key, each.value, each.reviewer) for each in changes] == [
        ("training.min_rated", None, "web"),
        ("training.min_rated", 5, "web"),
    ]
    assert await desk.ledger.setting_changes.in_force() == []


async def test_new_people_are_counted_at_once(desk: Desk) -> None:
    """A changed rater_age determines whether the next run counts the votes of new users."""
    await change(desk, "training.rater_age", "24")
    refusal = await desk.post("/review/train", status=409)
    assert "New people whose votes don't count yet: 1." in html.unescape(refusal)
    await change(desk, "training.rater_age", "0")
    assert await desk.post("/review/train") == "/runs/1"
    await desk.bot.ended(1)


INVALID = [
    ("training.min_rated", "1", "This must be at least 2."),
    ("training.min_rated", "many", "This must be a whole number."),
    ("training.canary", "1.5", "This must be at most 1."),
    ("training.rater_age", "-1", "This must be at least 0."),
    ("training.rater_age", "inf", "This must be at most 8760."),
    ("training.rater_age", "nan", "This must be"),
    ("training.schedule", "tomorrow", "This must be five cron fields"),
    ("chat.default_question", " ", "This can't be empty."),
    ("limits.allowed", "12, Ada", "Entry 2 of the list, “Ada”, is not an ID."),
    ("limits.blocked", "1.5", "Entry 1 of the list, “1.5”, is not an ID."),
]


async def test_an_invalid_value_is_explained_beside_its_field(desk: Desk) -> None:
    """The field shows what was written and what is wrong with it, and nothing is changed or recorded."""
    for key, value, sentence in INVALID:
        page = await change(desk, key, value, status=400)
        example = "For example: 12345678, -1001234567890 " if key.startswith("limits.") else ""
        assert f"{value.strip()} Save {example}{sentence}" in setting(page, key), key
        assert "Current value:" in setting(page, key)
        assert page.count('aria-invalid="true"') == 1
    assert "必须是五个 cron 字段" in await change(desk, "training.schedule?language=zh", "soon", status=400)
    assert await desk.ledger.setting_changes.latest(10) == []


async def test_what_cannot_change(desk: Desk) -> None:
    """Other settings, a form without a token and a value that is in force already change nothing."""
    await desk.post("/settings/web.port", page="/settings", status=404, value="1")
    await desk.post("/settings/nothing.such/undo", page="/settings")
    await desk.post("/settings/training.min_rated", page="/settings", status=403, value="7", csrf="")
    assert await change(desk, "training.min_rated", "4") == "/settings#training.min_rated"
    await desk.post("/settings/training.min_rated/undo", page="/settings")
    assert await desk.ledger.setting_changes.latest(10) == []


async def test_changes_reach_people_and_outlive_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next answer uses a new question and persona, and the schedule its new time; so it is after a restart.

    Blocked people get no answer, and an undone change brings back the value of the file.
    """
    schedule = {"training": {"schedule": "0 3 * * *"}}
    async with whole_bot(tmp_path, monkeypatch) as bot:
        admin, ada = await bot.person(ADMIN, "Root", "en"), await bot.person(ADA, "Ada", "en")
        async with running(bot, **schedule) as desk:
            await change(desk, "chat.default_question", "Which <dish> is this?")
            await change(desk, "chat.system_prompt", "You are a cook.\r\nBe brief.")
            await change(desk, "training.schedule", "30 4 1 2 *")
            assert await asked_and_persona(desk, ada, 1) == ("Which <dish> is this?", "You are a cook.\nBe brief.")
            await admin.command("/schedule")
            assert "-02-01 04:30" in words(await admin.answer(rated=False))
            await desk.ledger.setting_changes.add("web.port", 1, "Olga")
        async with running(bot, **schedule) as desk:
            assert "The change to web.port was not applied." in await desk.get("/settings")
            await desk.post("/settings/web.port/undo", page="/settings")
            assert "was not applied" not in await desk.get("/settings")
            assert await asked_and_persona(desk, ada, 2) == ("Which <dish> is this?", "You are a cook.\nBe brief.")
            await admin.command("/status")
            shown = words(await admin.answer(rated=False))
            assert 'training.schedule = "30 4 1 2 *"' in shown and "-02-01 04:30" in shown
            for key in ("chat.system_prompt", "chat.default_question", "training.schedule"):
                await desk.post(f"/settings/{key}/undo", page="/settings")
            assert await asked_and_persona(desk, ada, 3) == ("What is in this picture?", INTERNVL2.system)
            await admin.command("/schedule")
            assert " 03:00" in words(await admin.answer(rated=False))
            await change(desk, "limits.blocked", f"[{ADA}；-5]")
            await ada.sends("Hello?")
            assert words(await ada.answer(rated=False)) == "The operator has blocked you."
        code, people = await command(bot.data.parent / "config.toml", "people")
        assert code == 0 and re.search(rf"{ADA}.*blocked", people)


async def test_a_change_that_no_longer_fits_is_left_out(tmp_path: Path) -> None:
    """A recorded change of a setting that cannot change, or that is invalid by now, is left out with the reason."""
    changes = [SettingChange("web.port", 1, "web"), SettingChange("training.min_rated", 1, "web")]
    live = LiveSettings(Settings(), [*changes, SettingChange("training.canary", 0.25, "web")])
    assert (
        live.now.training.canary == 0.25
        and live.now.training.min_rated == 12
        and list(live.changes) == ["training.canary"]
    )
    assert live.unfit == {
        "web.port": "This can only be changed in config.toml or the environment.",
        "training.min_rated": "This must be at least 2.",
    }
    async with Ledger.open(tmp_path) as ledger:
        await live.undo(ledger.setting_changes, "training.min_rated", "web")
        assert live.unfit == {}


def test_an_error_about_another_key_names_it() -> None:
    """If another key of the section is not valid any longer, the message says which."""
    training = Settings().training.model_copy(update={"recipe": "gone.py"})
    with pytest.raises(ConfigError, match=r"^recipe: gone\.py does not exist"):
        with_value(Settings().model_copy(update={"training": training}), "training.min_rated", 8)
