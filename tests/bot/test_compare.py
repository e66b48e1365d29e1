"""`thumbtune compare` puts several models' answers about pictures on one page, without a running bot."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from base64 import b64decode
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from bot.cli.ask_models import directory_of
from bot.cli.compare import compare, questions_of
from bot.cli.main import main
from bot.config import Settings
from inference.internvl2.families import INTERNVL2
from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tiny.samples import sample_pictures
from storage.learning_records import Model
from storage.ledger import FILE_NAME, Ledger
from storage.state_machines import ModelState
from tests.support.bot_process import write_config
from tests.support.doctoring import settings_in
from training.command_jobs import CompareJob
from training.job import TrainingError

SQUARE = "one-green-square"
TURNED = 6
"""EXIF's orientation of a picture that has to be turned by a quarter (EXIF 2.32, tag Orientation)."""


def pictures(folder: Path, names: Mapping[str, bytes]) -> Path:
    """Create `folder` with a file for each name and content in `names`, and return the folder."""
    folder.mkdir()
    for name, data in names.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, warm_python: str) -> tuple[str, str]:
    """Compare two models on two good pictures and a broken one; return the command's output and the page."""
    folder = tmp_path_factory.mktemp("compare")
    turned = BytesIO()
    exif = Image.Exif()
    exif[0x0112] = TURNED
    Image.new("RGB", (64, 32), "red").save(turned, "JPEG", exif=exif)
    images = pictures(
        folder / "pictures",
        {
            "a.jpg": sample_pictures()[SQUARE],
            "a.txt": "Which <b>shape</b> is it?\n".encode("utf-8-sig"),
            "b.JPG": turned.getvalue(),
            "c[1].png": b"\x89PNG\r\n\x1a\nand no more",
            "notes.md": b"not asked about",
            "questions.txt": "What colour is it?\n\n  有几个？ \n".encode(),
        },
    )
    shutil.copytree(CHECKPOINT, folder / "mine")
    write_config(
        folder / "config.toml",
        {
            "storage": {"dir": str(folder / "data")},
            "training": {"device": "cpu", "threads": 1, "python": warm_python},
            "chat": {"max_new_tokens": 24},
        },
    )

    async def run() -> str:
        async with Ledger.open(folder / "data") as ledger:
            await ledger.models.add(Model("run-7", str(CHECKPOINT), ModelState.CANDIDATE, None, 1.0))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bot.cli.main", "compare", "run-7", str(folder / "mine"), "--images", str(images)),
            *("--out", str(folder / "page.html"), "--config", str(folder / "config.toml")),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        return output.decode()

    return asyncio.run(run()), (folder / "page.html").read_text(encoding="utf-8")


def test_every_model_answers_every_question(page: tuple[str, str]) -> None:
    """A model given by its ID and a model given by its folder answer every question, shown side by side."""
    _, html = page
    asked = re.findall(r'"question">(.*?)<', html)
    assert asked == [
        "What colour is it?",
        "有几个？",
        "Which &lt;b&gt;shape&lt;/b&gt; is it?",
        "What colour is it?",
        "有几个？",
    ]
    answers = re.findall(r"<h3>(.*?)</h3><p>(.*?)</p>", html)
    assert len(answers) == 2 * len(asked)
    ours, mine = answers[::2], answers[1::2]
    assert {name for name, _ in ours} == {"run-7"}
    assert all(name.endswith("/mine") for name, _ in mine)
    assert [text for _, text in ours] == [text for _, text in mine], "the same weights say the same"
    assert "green" in ours[0][1]
    assert re.findall(r"<small>(.*?)</small>", html) == ["a.jpg"] * 3 + ["b.JPG"] * 2


def test_pictures_are_shown_upright(page: tuple[str, str]) -> None:
    """A photo with an EXIF rotation is turned upright, as in a chat."""
    _, html = page
    *_, last = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', html)
    with Image.open(BytesIO(b64decode(last))) as shown:
        assert shown.size == (32, 64)


def test_a_broken_picture_is_named_and_left_out(page: tuple[str, str]) -> None:
    """A broken picture is named and left out; the other pictures are used, and their number is printed."""
    said, html = page
    assert "left out: c[1].png is damaged or truncated" in said
    assert "c[1].png" not in html
    assert "5 questions about 2 pictures, answered by 2 models" in said
    assert "10/10" in said, "the bar"


def test_a_picture_without_questions_is_asked_the_default_one(tmp_path: Path) -> None:
    """The default question is asked about a picture whose question files are missing or empty."""
    picture = tmp_path / "a.jpg"
    assert questions_of(picture, "What is it?") == ["What is it?"]
    (tmp_path / "a.txt").write_text(" \n")
    assert questions_of(picture, "What is it?") == ["What is it?"]
    (tmp_path / "questions.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TrainingError, match=r"questions\.txt cannot be read .* UTF-8"):
        questions_of(picture, "What is it?")


def asked(settings: Settings, images: Path, *models: str, out: str = "page.html") -> str:
    """Run a comparison that must be refused, and return the reason."""
    with pytest.raises(TrainingError) as refused:
        asyncio.run(compare(settings, models, images, images.parent / out))
    return str(refused.value)


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    """An unknown or incomplete model, or a missing or empty folder, is refused with a hint on what to do."""
    settings = settings_in(tmp_path)
    empty = pictures(tmp_path / "empty", {"notes.md": b""})
    broken = pictures(tmp_path / "broken", {"a.png": b"nothing"})
    half = pictures(tmp_path / "half", {"config.json": b"{}"})
    assert "run-9 is neither a stored model (base, tiny) nor a folder" in asked(settings, empty, "tiny", "run-9")
    assert "is not a complete checkpoint: generation_config.json is missing" in asked(settings, empty, str(half))
    assert f"{empty} has no usable pictures" in asked(settings, empty, "tiny")
    assert f"{broken} has no usable pictures" in asked(settings, broken, "tiny")
    assert "pass a folder of pictures with --images" in asked(settings, tmp_path / "nowhere", "tiny")
    assert "choose another file with --out" in asked(settings, empty, "tiny", out="nowhere/page.html")
    assert not (settings.storage.dir / FILE_NAME).exists(), "looking for a model makes no ledger"


def test_a_model_that_does_not_load_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_python: str) -> None:
    """A checkpoint that looks complete but does not load is named in the error, and no files are left behind."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    images = pictures(tmp_path / "pictures", {"a.jpg": sample_pictures()[SQUARE]})
    shutil.copytree(CHECKPOINT, tmp_path / "odd")
    (tmp_path / "odd" / "tokenizer.json").write_text("{}")
    training: dict[str, object] = {"device": "cpu", "threads": 1, "python": warm_python}
    reason = asked(settings_in(tmp_path, training=training), images, str(tmp_path / "odd"))
    assert reason.startswith(f"{tmp_path / 'odd'} cannot be loaded")
    assert not (tmp_path / "page.html").exists()
    assert list(tmp_path.glob("thumbtune-compare-*")) == []


def test_a_worker_that_dies_leaves_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the worker dies, the error names the worker's log.

    The log is kept beside the job file, which contains the system prompt used in chats.
    """
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    images = pictures(tmp_path / "pictures", {"a.jpg": sample_pictures()[SQUARE]})
    reason = asked(settings_in(tmp_path, training={"python": "/bin/false"}), images, "tiny")
    assert "the compare process died (exit code 1)" in reason
    (log,) = tmp_path.glob("thumbtune-compare-*/compare.log")
    assert str(log) in reason
    assert CompareJob.read(log.with_suffix(".json")).system == INTERNVL2.system


def test_only_a_log_keeps_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder is kept only if it contains a log that explains the failure."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    images = pictures(tmp_path / "pictures", {"a.jpg": sample_pictures()[SQUARE]})
    worker = tmp_path / "worker.sh"
    outcome = '{\\"ok\\": false, \\"reason\\": \\"$(dirname "$3")/0.jpg is odd\\"}'
    worker.write_text(f'#!/bin/sh\necho "{outcome}" > "${{3%.json}}.outcome.json"\n')
    worker.chmod(0o755)
    assert "0.jpg is odd" in asked(settings_in(tmp_path, training={"python": str(worker)}), images, "tiny")
    assert list(tmp_path.glob("thumbtune-compare-*")) == []


async def test_the_base_is_known_before_the_first_start(tmp_path: Path) -> None:
    """Without a ledger, `base` means the configured checkpoint; an entry in the ledger takes precedence."""
    settings = settings_in(tmp_path)
    assert await directory_of(settings, "base") == CHECKPOINT.absolute()
    moved = tmp_path / "moved"
    shutil.copytree(CHECKPOINT, moved)
    async with Ledger.open(settings.storage.dir) as ledger:
        await ledger.models.add(Model("base", str(moved), ModelState.CANDIDATE, None, 1.0))
    assert await directory_of(settings, "base") == moved


def test_the_command_line_words_it_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error ends `thumbtune compare` with one sentence and exit code 1, without a traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["thumbtune", "compare", "tiny", "--images", "nowhere"])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "nowhere is not a folder" in capsys.readouterr().err


async def test_a_pruned_model_is_merged_first(tmp_path: Path) -> None:
    """The error for a model kept only as an adapter names the command that restores the model's files."""
    settings = settings_in(tmp_path)
    async with Ledger.open(settings.storage.dir) as ledger:
        await ledger.models.add(Model("run-1", str(tmp_path), ModelState.CANDIDATE, None, 1.0))
        await ledger.models.prune("run-1")
    with pytest.raises(TrainingError, match="thumbtune promote run-1"):
        await directory_of(settings, "run-1")
