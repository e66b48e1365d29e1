"""Counting a prompt's tokens as engines do, and shortening the history to fit an engine's context window."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.random_checkpoint import Size, configuration
from inference.chat_format.context_window import Window, window_of
from inference.chat_format.template import IM_END, pictures, upper_bound
from inference.chat_format.token_ids import token_ids
from inference.images.opening import open_picture
from inference.internvl2.families import FAMILIES
from inference.internvl2.tile_grid import Tiling
from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tokenizer import load_tokenizer
from inference.messages import Answer, Picture, PictureError, Prompt, PromptTooLong, Role, Sampling, Turn
from inference.serving.deployment import Deployment
from inference.settings import InferenceSettings
from tests.inference.test_internvl2_tokenizer import FOLDER
from tests.support.children import prompt
from tests.support.deployments import a_model, deployed
from tests.support.talks import PICTURES, picture, talks

NEWEST = picture(201, (300, 200))


def long_talk(questions: int, *, pictured: int = 0, last: str = "And now?", answer_tokens: int = 512) -> Prompt:
    """Return a prompt of `questions` answered questions, followed by the question `last`.

    The first question shows a picture, and the question at index `pictured` shows `NEWEST`.
    """
    turns: list[Turn] = []
    for number in range(questions):
        shown = (*PICTURES[: number == 0], *([NEWEST] if number == pictured else []))
        turns.append(Turn(Role.USER, f"Question {number}: what is this, and how many are there?", shown))
        turns.append(Turn(Role.ASSISTANT, f"Answer {number}: there are {number} of them, 真的。"))
    sampling = Sampling(temperature=0, max_new_tokens=answer_tokens)
    return Prompt("Be kind.", (*turns, Turn(Role.USER, last)), chat="long", sampling=sampling)


@pytest.fixture
def sentencepiece(tmp_path: Path) -> Path:
    """A checkpoint directory with only a configuration and InternLM2's own kind of tokenizer file."""
    size = Size(64, 1, 1, 64, 64, 1, 1, 1, 64, image_size=56, max_tiles=5)
    configuration(size, 512).save_pretrained(tmp_path)
    shutil.copy(FOLDER / "tokenizer.model", tmp_path)
    return tmp_path


@pytest.fixture(params=["fast", "sentencepiece"])
def kind(request: pytest.FixtureRequest, sentencepiece: Path) -> tuple[Path, Any, int, int]:
    """Return a checkpoint directory, its tokenizer, the side of a tile in pixels, and the tokens per tile."""
    if request.param == "fast":
        return CHECKPOINT, load_tokenizer(CHECKPOINT), 112, 16
    return sentencepiece, load_tokenizer(FOLDER), 56, 4


@pytest.mark.parametrize("template", [name for name, family in FAMILIES.items() if family.end == IM_END])
@pytest.mark.parametrize("tiles", [None, 2, 9])
def test_counts_equal_the_token_ids(
    kind: tuple[Path, Any, int, int], tiles: int | None, template: str, tmp_path: Path
) -> None:
    """For every conversation, `count` is the number of tokens an engine gets, never above the upper bound."""
    original, tokenizer, side, tokens_per_tile = kind
    config = json.loads((original / "config.json").read_text())
    directory = shutil.copytree(original, tmp_path / "family")
    (directory / "config.json").write_text(json.dumps({**config, "template": template}))
    window = Window(directory, tiles=tiles)
    most = tiles or config["max_dynamic_patch"]
    for talk in (*talks(), long_talk(40)):
        sizes = [open_picture(each.data).size for each in pictures(talk)]
        tiling = Tiling(side=side, tokens=tokens_per_tile, max_tiles=most)
        counts = [tiling.count_tokens(*size) for size in sizes]
        expected = len(token_ids(talk, counts, tokenizer, FAMILIES[template])[0])
        assert window.count(talk) == expected
        assert expected <= upper_bound(talk, (most + 1) * tokens_per_tile)


def test_counting_imports_neither_torch_nor_transformers(kind: tuple[Path, Any, int, int]) -> None:
    """Counting tokens uses the tokenizer's own library and imports neither torch nor transformers."""
    code = (
        "import sys; from pathlib import Path\n"
        "from inference.chat_format.context_window import Window; from tests.support.talks import talks\n"
        "assert Window(Path(sys.argv[1])).count(talks()[0]) > 20\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(kind[0])], check=False).returncode == 0


def test_a_prompt_that_surely_fits_loads_no_tokenizer(tmp_path: Path) -> None:
    """A prompt that certainly fits is returned unchanged; only the configuration is read, not the tokenizer."""
    shutil.copy(CHECKPOINT / "config.json", tmp_path)
    (tmp_path / "tokenizer.json").write_text("never read")
    prompt = long_talk(2)
    assert Window(tmp_path).fit(prompt) is prompt


@pytest.mark.parametrize("pictured", [0, 3, 38])
def test_a_long_conversation_is_cut_to_its_newest_turns_and_picture(
    kind: tuple[Path, Any, int, int], pictured: int
) -> None:
    """A long conversation is shortened to its longest recent part that leaves room for the answer.

    The part starts with a user's turn and contains the newest picture.
    """
    window = Window(kind[0], longest=1500)
    talk = long_talk(40, pictured=pictured)
    cut = window.fit(talk)
    assert window.count(cut) <= 1500 - 512
    assert cut.turns[0].role is Role.USER
    assert cut.turns[1:] == talk.turns[-len(cut.turns) + 1 :]
    assert pictures(cut)[-1] is NEWEST
    assert cut.turns[0].text in [turn.text for turn in talk.turns]
    more = replace(talk, turns=talk.turns[-len(cut.turns) - 8 :])
    assert window.count(more) > 1500 - 512


def test_the_start_stays_the_same_for_several_turns(kind: tuple[Path, Any, int, int]) -> None:
    """A conversation at the limit is not shortened at every question, so that the prefix cache stays useful."""
    window = Window(kind[0], longest=1500)
    starts = [window.fit(long_talk(questions)).turns[0].text for questions in range(40, 56)]
    assert 3 <= len(set(starts)) <= 6
    assert starts == sorted(starts)


def test_a_newest_turn_that_leaves_no_room_is_refused(kind: tuple[Path, Any, int, int]) -> None:
    """If the newest question leaves no room for an answer, it is refused; if it leaves little, it is accepted."""
    window = Window(kind[0], longest=1000)
    words = "何 " * 2000
    size = next(size for size in range(1, 2000) if window.count(long_talk(1, last=words[:size])) > 900)
    large = long_talk(30, pictured=30, last=words[:size])
    assert 488 < window.count(window.fit(large)) < 1000
    with pytest.raises(PromptTooLong, match="shorten it"):
        window.fit(long_talk(30, last=words))


def test_a_very_long_answer_takes_half_the_window_at_most(kind: tuple[Path, Any, int, int]) -> None:
    """Even if `max_new_tokens` exceeds the window, half of the window is left for the history."""
    window = Window(kind[0], longest=2000)
    cut = window.fit(long_talk(60, answer_tokens=100_000))
    assert 700 < window.count(cut) <= 1000


def test_a_broken_picture_cannot_be_counted(kind: tuple[Path, Any, int, int]) -> None:
    """Counting a broken picture raises an error: its size is unknown, and no engine could read it."""
    broken = Picture.of(b"no picture")
    with pytest.raises(PictureError, match="not a picture"):
        Window(kind[0]).count(Prompt("", (Turn(Role.USER, "", (broken,)),), "chat"))


def test_the_window_of_each_engine(tmp_path: Path, sentencepiece: Path) -> None:
    """A window is the smaller of the model's limit and the engine's.

    The window of an external engine is known only if its model is configured.
    """

    def tokens(directory: Path, *, ours: bool = True, longest: int | None = None, **values: Any) -> int | None:
        window = window_of(directory, InferenceSettings.model_validate(values), ours=ours, longest=longest)
        return window.tokens if window else None

    assert tokens(CHECKPOINT) == 2048
    assert tokens(CHECKPOINT, longest=16384) == 2048
    assert tokens(sentencepiece) == 32768
    assert tokens(sentencepiece, longest=4096) == 4096
    external: dict[str, Any] = {"engine": "external", "endpoint": "http://127.0.0.1:1"}
    assert tokens(CHECKPOINT, ours=False, **external) is None
    assert tokens(sentencepiece, ours=False, model=str(sentencepiece), **external) == 32768
    assert tokens(tmp_path / "nothing", ours=False, model="nothing", **external) is None
    (sentencepiece / "tokenizer.model").unlink()
    assert tokens(sentencepiece) is None


async def test_a_long_conversation_is_cut_before_it_is_sent(tmp_path: Path, warm_python: str) -> None:
    """A long conversation is shortened before it is sent to the CPU engine.

    The answer includes the shortened prompt, and sending that prompt again gives the same text.
    """
    given = {"engine": "cpu", "python": warm_python, "concurrency": 1, "threads": 1, "warm_chats": 0}
    settings = InferenceSettings.model_validate(given)
    deployment = Deployment(settings, "tiny", CHECKPOINT, logs=tmp_path)
    talk = long_talk(60, last="What colour is it?", answer_tokens=16)
    try:
        await deployment.start()
        answer = await answered(deployment, talk)
        assert answer.cut is not None
        assert pictures(answer.cut)[-1] is NEWEST
        assert len(answer.cut.turns) < len(talk.turns)
        assert answer.cut.turns[-2:] == talk.turns[-2:]
        assert answer.usage.prompt_tokens == Window(CHECKPOINT).count(answer.cut) <= 2048 - 16
        again = await answered(deployment, answer.cut)
        assert again.cut is None
        assert again.text == answer.text
        with pytest.raises(PromptTooLong):
            await answered(deployment, long_talk(1, last="何" * 3000))
    finally:
        await deployment.stop()


def counted(directory: Path, talk: Prompt) -> Path:
    """Add the files for counting tokens to a fake engine's model directory, and return the directory.

    Fail unless `talk` fits the model's window.
    """
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(CHECKPOINT / name, directory)
    assert Window(directory).fit(talk) is talk
    return directory


async def test_prompts_are_cut_to_the_limit_of_the_running_engine(tmp_path: Path) -> None:
    """After a swap or a restart, prompts are shortened to the limit of the new engine process."""
    talk = long_talk(12, last="words:3", answer_tokens=10)
    first, second = (counted(a_model(tmp_path, name, window=tokens), talk) for name, tokens in (("a", 400), ("b", 700)))

    async def sent(deployment: Deployment) -> int:
        answer = await answered(deployment, talk)
        return Window(first).count(answer.cut or talk)

    async with deployed(tmp_path, cue={"window": 400}, warm_chats=0) as deployment:
        assert 290 < await sent(deployment) <= 390
        await deployment.swap("b", second)
        assert 400 < await sent(deployment) <= 690
        a_model(tmp_path, "b", window=300)
        await answered(deployment, prompt("words:3 die:1!"))
        assert 190 < await sent(deployment) <= 290
        a_model(tmp_path, "b")
        await answered(deployment, prompt("words:3 die:2!"))
        assert await sent(deployment) == Window(first).count(talk)


async def answered(deployment: Deployment, prompt: Prompt) -> Answer:
    last = [delta async for delta in deployment.answer(prompt)][-1].answer
    assert last is not None
    return last
