"""`thumbtune doctor` names problems and remedies, and commands report known errors in one sentence."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from bot.cli.doctor.checks import examine
from bot.cli.doctor.findings import Finding, report
from bot.instance_lock import lock_data_folder
from inference.internvl2.tiny import CHECKPOINT
from inference.serving.engine_launch import free_port
from storage.ledger import FILE_NAME, Ledger
from telegram_emulator.emulator import Emulator
from tests.support.bot_process import command
from tests.support.doctoring import finding_of, settings_in
from tests.support.ledgers import picture
from tests.training.test_regression import own_questions
from training.settings import TrainingSettings


async def test_a_complete_set_up_is_found_well(tmp_path: Path) -> None:
    """With a valid token, an admin and the shipped model, every check passes."""
    emulator = Emulator()
    url = await emulator.start()
    settings = settings_in(tmp_path, telegram={"token": emulator.token, "api_base": url, "admins": [1]})
    findings = await asyncio.to_thread(examine, settings)
    await emulator.stop()
    assert [each for each in findings if not each.ok] == []
    assert finding_of(findings, "Telegram").detail == "@thumbtune_bot"
    model = finding_of(findings, "model")
    assert "only knows coloured shapes" in model.detail and "thumbtune fetch DIR" in model.cure


async def test_some_settings_need_one_of_botfather(tmp_path: Path) -> None:
    """If guest queries or topics are turned on here but not in @BotFather, the doctor says what to turn on there."""
    emulator = Emulator()
    emulator.world.bot.update(supports_guest_queries=False, has_topics_enabled=False)
    url = await emulator.start()
    telegram: dict[str, object] = {"token": emulator.token, "api_base": url}
    chat: dict[str, object] = {"guests": True, "picture_threads": True}
    findings = await asyncio.to_thread(examine, settings_in(tmp_path, telegram=telegram, chat=chat))
    await emulator.stop()
    for name in ("guest mode", "topics"):
        found = finding_of(findings, name)
        assert not found.ok and "@BotFather" in found.cure
    assert "enable Guest Mode" in finding_of(findings, "guest mode").cure


async def test_a_wrong_token_is_named(tmp_path: Path) -> None:
    """For an invalid token, the doctor shows the server's description and the setting to correct."""
    emulator = Emulator()
    url = await emulator.start()
    findings = await asyncio.to_thread(examine, settings_in(tmp_path, telegram={"token": "1:x", "api_base": url}))
    await emulator.stop()
    found = finding_of(findings, "Telegram")
    assert not found.ok
    assert found.detail == "Unauthorized"
    assert "telegram.token" in found.cure


def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    """If nothing listens at `telegram.api_base`, the doctor names the connection and the setting, not the token."""
    url = f"http://127.0.0.1:{free_port()}"
    found = finding_of(examine(settings_in(tmp_path, telegram={"token": "1:x", "api_base": url})), "Telegram")
    assert not found.ok and found.detail.startswith(f"{url} does not answer")
    assert "telegram.api_base" in found.cure and "firewall" in found.cure and "telegram.token" not in found.cure


def test_what_is_missing_comes_with_a_cure(tmp_path: Path) -> None:
    """A missing token and an incomplete model directory are findings that say what to do."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    findings = examine(settings_in(tmp_path, inference={"model": str(tmp_path / "model")}))
    model, token = finding_of(findings, "model"), finding_of(findings, "Telegram token")
    assert not model.ok and "model" in model.cure and "safetensors" in model.detail
    assert not token.ok and "thumbtune init" in token.cure and "THUMBTUNE_TELEGRAM__TOKEN" in token.cure
    assert "thumbtune init" in finding_of(findings, "admins").cure


def test_no_admin_is_a_warning(tmp_path: Path) -> None:
    """Without an admin, the doctor warns but reports no failure, because the bot can run."""
    findings = examine(settings_in(tmp_path))
    found = finding_of(findings, "admins")
    assert found.ok and "/retrain" in found.detail and "/start" in found.cure
    admins: dict[str, object] = {"admins": [1]}
    assert "admins" not in {each.name for each in examine(settings_in(tmp_path, telegram=admins))}


def test_what_needs_doing_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    """The report lists failures, then warnings, and ends with a count of passed checks.

    With `verbose`, it lists the passed checks as well.
    """
    findings = [Finding("a", True, "fine"), Finding("b", True, "[odd]", "mind"), Finding("c", False, "bad", "mend")]
    assert not report(findings)
    first, second, third, last = (line.split() for line in capsys.readouterr().out.splitlines())
    assert (second, third) == (["failed", "c", "bad", "mend"], ["warning", "b", "[odd]", "mind"])
    assert " ".join(last) == "1 failed, 1 warning, 1 checks passed (--verbose lists them)."
    assert "what" in first
    assert report(findings[:2], verbose=True)
    assert "fine" in capsys.readouterr().out


def test_factual_questions_are_looked_for(tmp_path: Path) -> None:
    """The doctor reports a faulty folder of factual questions."""
    found = finding_of(examine(settings_in(tmp_path, training={"regression": str(tmp_path)})), "factual questions")
    assert not found.ok
    assert "questions.json" in found.detail and "training.regression" in found.cure
    own_questions(tmp_path, 40)
    few = finding_of(examine(settings_in(tmp_path, training={"regression": str(tmp_path)})), "factual questions")
    assert not few.ok and "set training.max_loss_points to at least 6.4" in few.detail
    enough = {"regression": str(tmp_path), "max_loss_points": 6.4}
    assert finding_of(examine(settings_in(tmp_path, training=enough)), "factual questions").detail.startswith("40 in ")


def test_a_package_of_another_owner_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor reports a package from another distribution that shadows the bot's package of the same name."""
    foreign = tmp_path / "storage"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "storage")
    found = finding_of(examine(settings_in(tmp_path)), "package storage")
    assert not found.ok
    assert "shadows" in found.cure


@pytest.mark.parametrize(
    ("arguments", "text", "words"),
    [
        (("run",), "[chat]\ntemprature = 1\n", "did you mean 'temperature'"),
        (("promote", "run-9"), "", "no model run-9"),
        (("rollback",), "", "no earlier model"),
    ],
)
async def test_known_errors_are_one_sentence(tmp_path: Path, arguments: tuple[str, ...], text: str, words: str) -> None:
    """A known error ends the command with exit code 1 and a reason, without a traceback."""
    config, data = tmp_path / "config.toml", tmp_path / "data"
    config.write_text(f'{text}\n[storage]\ndir = "{data}"\n', encoding="utf-8")
    await Ledger.open(data).close()
    with lock_data_folder(data):
        code, shown = await command(config, *arguments)
    assert code == 1, shown
    assert words in shown
    assert "Traceback" not in shown


async def test_a_damaged_ledger_is_found(tmp_path: Path) -> None:
    """The doctor reports missing pictures, dangling rows, a newer ledger version and a broken database.

    Each finding comes with a remedy.
    """
    settings = settings_in(tmp_path)
    path = settings.storage.dir / FILE_NAME
    assert finding_of(examine(settings), "database").detail.startswith("none yet")
    assert not settings.storage.dir.exists()
    async with Ledger.open(settings.storage.dir) as ledger:
        await ledger.inbox.store([(1, "a", "{}")])
        assert finding_of(await asyncio.to_thread(examine, settings), "database").ok
        await ledger.pictures.add(picture("ab" * 32))
        lost = finding_of(await asyncio.to_thread(examine, settings), "pictures")
        assert "is missing" in lost.detail and "backup" in lost.cure
    database = sqlite3.connect(path)
    with database:
        database.execute("INSERT INTO exchange_pictures(exchange, position, sha256) VALUES (99, 0, 'none')")
    database_faults = finding_of(examine(settings), "database")
    assert "exchange_pictures" in database_faults.detail and "thumbtune backup" in database_faults.cure
    with database:
        database.execute(
            "INSERT INTO _sqlite_migrations(migration_set, name, applied_at) VALUES ('thumbtune', 'm999_later', '')"
        )
    database.close()
    assert "newer version" in finding_of(examine(settings), "database").cure
    path.write_bytes(b"no database at all, whatever its name says" * 100)
    assert "backup" in finding_of(examine(settings), "database").cure


@pytest.mark.parametrize("section", ["inference", "training"])
def test_an_engine_on_ray_needs_ray(tmp_path: Path, section: str) -> None:
    """With the engine `ray` and an interpreter without Ray, the doctor says how to install it."""
    sections: dict[str, Any] = {section: {"engine": "ray", "python": str(tmp_path / "none")}}
    found = finding_of(examine(settings_in(tmp_path, **sections)), "ray")
    assert not found.ok and "make install-ray" in found.cure and f"{section}.python" in found.cure


def test_deepspeed_is_asked_for_where_it_is_wanted(tmp_path: Path) -> None:
    """The doctor requires the deepspeed extra only if training.deepspeed is set."""
    wanted = finding_of(examine(settings_in(tmp_path, training={"deepspeed": 2})), "deepspeed")
    assert wanted.ok or "DEEPSPEED=1" in wanted.cure
    assert "deepspeed" not in {each.name for each in examine(settings_in(tmp_path))}


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The doctor reports a missing file or picture folder of a training source before a run needs it."""
    (tmp_path / "rows.json").write_text("[]", encoding="utf-8")
    here, gone = str(tmp_path / "rows.json"), str(tmp_path / "gone")
    sources = [{"path": here}, {"path": gone}, {"path": here, "images": gone}]
    training = TrainingSettings.model_validate({"sources": sources})
    settings = settings_in(tmp_path).model_copy(update={"training": training})
    findings = [each for each in examine(settings) if each.name == "source"]
    assert [each.ok for each in findings] == [True, False, False]
    assert [each.detail for each in findings] == [here, f"{gone} is not a file", f"{gone} is not a folder"]
    assert all("training.sources" in each.cure for each in findings[1:])


def test_a_base_that_cannot_be_trained_is_named(tmp_path: Path) -> None:
    """The doctor reports an untrainable base model, and the setting to change, before votes are collected."""
    assert finding_of(examine(settings_in(tmp_path)), "base model").ok
    awq = tmp_path / "awq"
    shutil.copytree(CHECKPOINT, awq)
    config = json.loads((awq / "config.json").read_text())
    (awq / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    found = finding_of(examine(settings_in(tmp_path, inference={"model": str(awq)})), "base model")
    assert not found.ok
    assert "quantized weights" in found.detail
    assert found.cure.startswith("set inference.model")


async def test_data_that_others_may_read_is_named(tmp_path: Path) -> None:
    """If other users of the machine may read the data, the doctor says how to prevent that but changes nothing.

    A command that opens the ledger silently corrects the permissions.
    """
    folder = tmp_path / "data"
    async with Ledger.open(folder):
        pass
    folder.chmod(0o755)
    (folder / FILE_NAME).chmod(0o644)
    settings = settings_in(tmp_path, storage={"dir": str(folder)})
    found = finding_of(await asyncio.to_thread(examine, settings), "permissions")
    assert not found.ok
    assert (FILE_NAME in found.detail, "chmod" in found.cure) == (True, True)
    async with Ledger.open(folder):
        pass
    assert finding_of(await asyncio.to_thread(examine, settings), "permissions").ok


async def test_settings_of_the_page_are_named(tmp_path: Path) -> None:
    """The doctor names each setting that was changed on the Settings page, and warns of one that is not applied."""
    settings = settings_in(tmp_path)
    async with Ledger.open(settings.storage.dir) as ledger:
        await ledger.setting_changes.add("training.min_rated", 8, "Olga")
        await ledger.setting_changes.add("training.canary", 7, "Olga")
    applied, left_out = [each for each in await asyncio.to_thread(examine, settings) if each.name == "Settings page"]
    assert applied.ok and not applied.cure and applied.detail.startswith("training.min_rated = 8, instead of")
    assert left_out.cure and left_out.detail == "training.canary is not applied: This must be at most 1."
