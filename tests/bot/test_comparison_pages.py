"""The page of blind comparisons over HTTP with the whole bot, and the worker with a real model."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.admin.blind_comparison import FOLDER
from bot.i18n import Translator
from bot.web.comparison_pages import score_text
from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tiny.samples import sample_pictures
from storage.comparisons import Score
from storage.learning_records import Model
from storage.state_machines import ModelState
from tests.bot.test_model_pages import trained
from tests.bot.test_review import Desk, at_work
from training.command_jobs import BlindJob
from training.launcher import ChildTrainer
from training.settings import TrainingSettings

PAGE = "/compare?first=run-1&second=base"
NEXT = "/compare?first=base&second=run-1"


@pytest.fixture
async def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    """A desk with six questions about pictures, the base model and the live model run-1."""
    async with at_work(tmp_path, monkeypatch) as made:
        await trained(made, ModelState.LIVE)
        yield made


def comparison(page: str) -> tuple[str, list[str]]:
    """Return the path of the form of a comparison, and the two answers in the order in which they are shown."""
    path = re.search(r'action="(/compare/\d+)"', page)
    assert path
    return path[1], re.findall(r"<h2>\d</h2><p>([^<]*)</p>", page)


async def test_two_models_are_compared_blind(desk: Desk) -> None:
    """Both models answer six questions; each choice counts for the model that was shown there."""
    assert 'href="/compare"' in await desk.get("/models")
    page = await desk.get("/compare")
    assert "There is only one model." not in page and "<button>Compare</button>" in page
    page = await desk.get(PAGE)
    assert "Have both models answer" in page and "<option selected>run-1</option>" in page
    assert await desk.post(PAGE) == "/compare?first=run-1&second=base"
    page = await desk.get(PAGE)
    assert (
        "run-1 and base have answered 6 questions, each about a different picture." in page
        and "5 comparisons are left." in page
    )
    assert "1 comparison was a tie." in page, "equal answers need no choice"
    assert not (desk.bot.data / FOLDER).exists()
    for number in range(5):
        page = await desk.get(NEXT)
        path, answers = comparison(page)
        assert "<details><summary>Score so far" in page, "closed, because it tells the models apart"
        assert sorted(answers) == ["Words of base.", "Words of run-1."]
        assert f"Which &lt;colour&gt; is {6 - number}?" in page and page.count('<img src="/pictures/') == 1
        better = answers.index("Words of run-1.") + 1 if number < 4 else 0
        assert await desk.post(path, choice=str(better)) == NEXT
    page = await desk.get(NEXT)
    assert "run-1 gave the better answer in 4 of 4 comparisons: 100 % (51–100 %)." in page
    assert "2 comparisons were ties." in page and "may still be chance" not in page
    refused = await desk.post(PAGE, status=409)
    assert "There are no recent questions about a picture" in refused
    assert "盲测对比" in await desk.get(f"{NEXT}&language=zh")


async def test_one_model_cannot_be_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page says what it is for and, with a single model, that a second one is needed, without a form."""
    async with at_work(tmp_path, monkeypatch) as desk:
        page = await desk.get("/compare")
        assert "They answer recent questions" in page and "There is only one model." in page
        assert "<select" not in page


async def test_what_cannot_be_compared(desk: Desk) -> None:
    """Bad requests, a failing worker and missing files are refused in words, and leave nothing behind."""
    await desk.post("/compare?first=base&second=base", status=400)
    assert "Choose two different models." in await desk.get("/compare?first=base&second=base")
    assert "Choose two different" not in await desk.get("/compare")
    assert "no model run-9" in await desk.post("/compare?first=base&second=run-9", status=409)
    desk.bot.cue("bad")
    assert "That didn&#39;t work: no memory" in await desk.post(PAGE, status=409)
    assert not [*(desk.bot.data / FOLDER).glob("*.json")]
    desk.bot.cue("good")
    await desk.post(PAGE)
    path, _ = comparison(await desk.get(NEXT))
    await desk.post(path, choice="3", status=400)
    await desk.post(path, choice="1", csrf="forged", status=403)
    await desk.post("/compare/999", choice="1", status=404)
    assert await desk.ledger.comparisons.score("base", "run-1") == Score(same=1, open=5)
    await desk.ledger.models.add(Model("gone", "", ModelState.RETIRED, None, 1.0))
    assert "<option>gone</option>" not in await desk.get(PAGE)
    refused = await desk.post("/compare?first=base&second=gone", status=409)
    assert "The files of gone are missing" in refused
    desk.bot.cue("hang")
    await desk.post("/review/train", confirmed="1")
    assert "Run 2 is in progress and needs the memory." in await desk.post(PAGE, status=409)


def test_the_score_in_words() -> None:
    """A lead that may be chance is called so, and the model that leads is named."""
    say = Translator({}).to("en")
    assert score_text("a", "b", Score(), say) == []
    assert score_text("a", "b", Score(3, 4, 0, 1), say) == [
        "b gave the better answer in 4 of 7 comparisons: 57 % (25–84 %).",
        "That may still be chance.",
        "1 comparison is left.",
    ]
    chinese = Translator.load().to("zh")
    assert "57 %（25–84 %）" in chinese.joined(*score_text("a", "b", Score(3, 4, 0, 1), chinese))


async def test_real_models_answer(tmp_path: Path, warm_python: str) -> None:
    """The worker writes both models' answers for each question, in the order of the models."""
    (tmp_path / "pictures").mkdir()
    for number, data in enumerate([*sample_pictures().values()][:2]):
        (tmp_path / "pictures" / str(number)).write_bytes(data)
    job = BlindJob(
        models=[("base", str(CHECKPOINT)), ("same", str(CHECKPOINT))],
        images=str(tmp_path / "pictures"),
        out=str(tmp_path / "answers.json"),
        work=str(tmp_path / "work"),
        system="",
        device="cpu",
        threads=1,
        max_new_tokens=8,
        asked=[("0", "What is it?"), ("1", "What is it?"), ("1", "How many?")],
    )
    outcome = await ChildTrainer(TrainingSettings(python=warm_python)).run(job)
    assert outcome.ok, outcome.reason
    answers = json.loads(Path(job.out).read_text())
    assert [len(each) for each in answers] == [2, 2, 2]
    assert all(one == two and one for one, two in answers)
