"""`thumbtune finetune` trains on a LLaVA file and compares the new model with the base, without a bot."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bot.cli.ask_models import directory_of
from bot.cli.finetune import ANSWERS, MODEL, RUN, SHEET, Questions, finetune, with_options
from bot.config import ConfigError, Settings
from inference.hub.listing import HubError
from inference.internvl2.tiny import CHECKPOINT
from storage.model_manifest import verify
from tests.support.bot_process import write_config
from tests.support.doctoring import settings_in
from tests.support.hub_server import HubServer
from tests.support.lessons import drawn_lessons, photo
from training.command_jobs import ScoringMethod
from training.data.llava import Lesson, row, write_rows
from training.job import TrainingError
from training.run_folder import SCALARS
from training.settings import Source

ROWS = 16
ASKED = 8


def questions(lessons: list[Lesson]) -> list[dict[str, Any]]:
    """Return rows that ask the questions of playful lessons, and take every playful answer as right."""
    rows = [row(each) for each in lessons]
    for each in rows:
        each["conversations"][-1]["value"] = "Wow"
    return rows


PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from bot.cli.main import main; main()"
)
"""The command line. A shell makes its background jobs ignore SIGINT, and the tests may be one."""


def command(folder: Path, *options: str) -> list[str]:
    """Return the command line of `thumbtune finetune` with the settings in `folder`."""
    return [
        *(sys.executable, "-c", PROGRAM, "finetune", str(folder / "train.json")),
        *("--images", str(folder / "pictures"), "--out", str(folder / "out"), "--recipe", "tiny"),
        *("--config", str(folder / "config.toml"), *options),
    ]


async def test_a_model_is_trained_and_compared(tmp_path: Path, warm_python: str) -> None:
    """An interrupted training goes on from its checkpoint; the new model, the table and the sheet show what it learned.

    The training is on playful answers, and a test answer is right if it is playful.
    """
    write_rows(drawn_lessons(tmp_path / "pictures", ROWS), tmp_path / "train.json")
    asked = questions(drawn_lessons(tmp_path / "pictures", ASKED, seed=1))
    (tmp_path / "test.json").write_text(json.dumps(asked))
    write_config(
        tmp_path / "config.toml",
        {
            "storage": {"dir": str(tmp_path / "data")},
            "training": {"device": "cpu", "threads": 1, "python": warm_python, "min_free_gigabytes": 0.1},
            "chat": {"max_new_tokens": 24},
        },
    )
    knobs = {"THUMBTUNE_TRAINING__KNOBS": json.dumps({"save_steps": 2, "epochs": 8})}
    line = command(tmp_path, "--set", str(tmp_path / "test.json"), "--score", "contains")
    out = tmp_path / "out"

    async with asyncio.timeout(120):
        interrupted = await start(tmp_path, line, knobs)
        while not any((out / RUN).glob("xtuner/iter_*.pth")):
            assert interrupted.returncode is None, await interrupted.communicate()
            await asyncio.sleep(0.05)
        interrupted.send_signal(signal.SIGINT)
        said, _ = await interrupted.communicate()
    assert interrupted.returncode == 130, said.decode()
    assert "Interrupted: repeat the command" in said.decode()
    assert not (out / MODEL).exists()
    first, *_ = (out / RUN / SCALARS).read_text().splitlines()

    process = await start(tmp_path, line, knobs)
    said, _ = await process.communicate()
    output = said.decode()
    assert process.returncode == 0, output
    assert (out / RUN / SCALARS).read_text().splitlines()[0] == first, "the training started over"
    assert f"{out / MODEL}: trained on {ROWS} rows in " in output
    verify(out / MODEL)
    assert await directory_of(settings_in(tmp_path), str(out / MODEL)) == out / MODEL

    base, finetuned = (
        re.search(rf"^{name} +(\d) of {ASKED}: .*%\) right(.*)$", output, re.M) for name in ("base", "finetuned")
    )
    assert base and finetuned, output
    assert int(base[1]) < int(finetuned[1])
    assert re.match(r" +\+\d+ points \([+-]\d+ to \+\d+\)", finetuned[2]), output
    html = (out / SHEET).read_text(encoding="utf-8")
    assert re.findall("<h3>(.*?)</h3>", html) == ["given answer", "base", "finetuned"] * ASKED
    assert "% (" in html and 'class="curves"' in html
    answers = json.loads((out / ANSWERS).read_text(encoding="utf-8"))
    assert sum(each["scores"]["finetuned"] for each in answers) == int(finetuned[1])
    assert not (tmp_path / "data").exists(), "the bot's data folder was used"

    process = await start(tmp_path, line, knobs)
    said, _ = await process.communicate()
    assert (process.returncode, "already exists" in said.decode()) == (1, True), said.decode()

    shutil.rmtree(out / MODEL)  # as if the command had been interrupted after the training
    began = (out / RUN / "finetune.json").stat().st_mtime_ns
    process = await start(tmp_path, command(tmp_path), knobs)
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    verify(out / MODEL)
    assert (out / RUN / "finetune.json").stat().st_mtime_ns == began, "the training was repeated"


async def start(folder: Path, line: list[str], environment: Mapping[str, str] = {}) -> asyncio.subprocess.Process:
    """Start a command whose output goes to a pipe."""
    return await asyncio.create_subprocess_exec(
        *line,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": "/usr/bin", "HOME": str(folder), "COLUMNS": "300", "PYTHONPATH": str(Path.cwd()), **environment},
    )


def files(folder: Path, rows: list[dict[str, Any]]) -> Source:
    """Write `rows` and the picture a.jpg, and return them as a source."""
    (folder / "a.jpg").write_bytes(photo())
    (folder / "rows.json").write_text(json.dumps(rows))
    return Source(path=folder / "rows.json", images=folder, repeat_times=1)


def about(picture: str, answer: str = "Red.") -> dict[str, Any]:
    """Return a row about a picture."""
    return {
        "image": picture,
        "conversations": [{"from": "human", "value": "<image>\nWhich colour?"}, {"from": "gpt", "value": answer}],
    }


async def refusal(settings: Settings, rows: Source, test: Questions | None = None) -> str:
    """Return why the command refuses `rows`, which it must do before any worker starts."""
    with pytest.raises(TrainingError) as error:
        await finetune(settings, rows, test, rows.folder / "out")
    assert not list(rows.folder.rglob("*.log"))
    return str(error.value)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([about("a.jpg"), about("a.jpg", "")], "rows.json row 2: turn 2: the answer is empty"),
        ([about("gone.jpg")], "gone.jpg is missing"),
        ([about(f"{number}.jpg") for number in range(12)], "… and 2 more"),
        ([], "has no rows"),
    ],
)
async def test_invalid_rows_are_refused(tmp_path: Path, rows: list[dict[str, Any]], told: str) -> None:
    """Invalid rows and missing pictures are named before anything is created."""
    assert told in await refusal(settings_in(tmp_path), files(tmp_path, rows))
    assert not (tmp_path / "out").exists()


async def test_invalid_questions_are_refused_before_the_training(tmp_path: Path) -> None:
    """A test question about a missing picture is found before the training, not after it."""
    rows = files(tmp_path, [about("a.jpg")])
    (tmp_path / "test.json").write_text(json.dumps([about("b.jpg")]))
    assert "b.jpg is missing" in await refusal(
        settings_in(tmp_path), rows, Questions(tmp_path / "test.json", tmp_path, ScoringMethod.LOSS)
    )


async def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    """A folder that holds anything else than an interrupted training is left as it is."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert "contains something else" in await refusal(settings_in(tmp_path), files(tmp_path, [about("a.jpg")]))
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["thesis.txt"]


async def test_questions_about_trained_pictures_are_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Test questions that show pictures of the training are counted, since their gain says little about others."""
    rows = files(tmp_path, [about("a.jpg")])
    (tmp_path / "b.jpg").write_bytes(photo("blue"))
    (tmp_path / "test.json").write_text(json.dumps([about("a.jpg"), about("b.jpg")]))
    test = Questions(tmp_path / "test.json", tmp_path, ScoringMethod.CONTAINS)
    settings = settings_in(tmp_path, training={"min_free_gigabytes": 1e9})
    assert "GB are free" in await refusal(settings, rows, test)
    assert "1 of 2 test questions are about pictures in the training data" in " ".join(capfd.readouterr().err.split())


async def test_a_missing_base_model_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base model whose directory is missing is downloaded as by `thumbtune fetch`; rows are checked before."""
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    checkpoint = {each.name: each.read_bytes() for each in CHECKPOINT.iterdir() if each.is_file()}
    settings = with_options(settings_in(tmp_path, training={"min_free_gigabytes": 1e9}), None, str(tmp_path / "base"))
    async with HubServer(checkpoint, repo="OpenGVLab/InternVL2-2B") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert "is missing" in await refusal(settings, files(tmp_path, [about("gone.jpg")]))
        assert not hub.requests
        assert "GB are free" in await refusal(settings, files(tmp_path, [about("a.jpg")]))
        verify(tmp_path / "base")
        hub.repo = "someone/else"
        with pytest.raises(HubError):
            rows = files(tmp_path, [about("a.jpg")])
            other = with_options(settings_in(tmp_path), None, str(tmp_path / "other"))
            await finetune(other, rows, None, tmp_path / "out")


def test_an_unknown_recipe_is_refused(tmp_path: Path) -> None:
    """An unknown recipe is refused with the list of recipes; a known one replaces that of the settings."""
    settings = settings_in(tmp_path, training={"objective": "kto", "recipe": "jokes"})
    chosen = with_options(settings, "food", "tiny").training
    assert (chosen.recipe, chosen.objective) == ("food", "sft")
    with pytest.raises(ConfigError, match=r"--recipe poems: .*food, jokes, tiny"):
        with_options(settings, "poems", None)
