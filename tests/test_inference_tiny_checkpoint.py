"""The shipped internvl2-tiny: its layout and size, what it knows, and how it speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image

from bot.incoming import check
from inference.internvl2 import checkpoint as official
from inference.internvl2.checkpoint import load_model
from inference.internvl2.modeling_internvl2 import InternVLChatModel
from inference.internvl2.tokenizer import load_tokenizer
from inference.messages import Picture, Prompt, Role, Turn
from inference.prompt import SYSTEM, jinja_chat_template, render
from inference.tiny import CHECKPOINT
from inference.tiny.answers import reference
from inference.tiny.evaluate import PLACES, Examiner, Report, Result, examine, mistakes
from inference.tiny.manner import MANNERS, Manner, correct, manner
from inference.tiny.questions import held_out
from inference.tiny.samples import sample_sticker
from inference.tiny.shapes import Scene, draw, random_scene
from inference.tiny.words import KINDS, LANGUAGES, Kind, Language

pytestmark = pytest.mark.long

PICTURE = Picture(b"", "")
LONG = "Yesterday I went to the market with my sister and we bought bread, cheese and vegetables for dinner. "


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The shipped tokenizer."""
    return load_tokenizer(CHECKPOINT)


@pytest.fixture(scope="module")
def model() -> InternVLChatModel:
    """The shipped model in float32."""
    return load_model(CHECKPOINT, dtype=torch.float32)


@pytest.fixture(scope="module")
def report(model: InternVLChatModel, tokenizer: Any) -> Iterator[Report]:
    """An examination of 120 chats, three questions each, as the bot samples."""
    yield examine(
        model,
        tokenizer,
        pictures=120,
        seed=0,
        temperature=0.8,
        top_p=0.8,
        renderer="other",
        system=SYSTEM,
        workers=0,
    )


def test_the_checkpoint_is_complete_and_small() -> None:
    """Everything of the official layout is there, in at most 8 MB, weights in bfloat16."""
    files = {path.name: path.stat().st_size for path in CHECKPOINT.iterdir()}
    assert sum(files.values()) <= 8_000_000
    assert {
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
        *official.MODEL_CODE,
    } <= set(files)
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    assert load_model(CHECKPOINT).dtype == torch.bfloat16


def test_its_model_code_is_ours() -> None:
    """The code that travels with the checkpoint is the code of inference.internvl2, to the byte.

    After a change there: `python -m inference.tiny.train --start DIR --out DIR --steps 0 --pictures 0`.
    """
    source = Path(official.__file__).parent
    for name in official.MODEL_CODE:
        assert (CHECKPOINT / name).read_bytes() == (source / name).read_bytes()


def test_its_chat_template_is_the_prompt() -> None:
    """The tokenizer's chat template is the one format that inference.prompt defines."""
    assert json.loads((CHECKPOINT / "tokenizer_config.json").read_text())["chat_template"] == jinja_chat_template()


def test_turbomind_takes_its_shape() -> None:
    """Head size 64 in both towers, widths in multiples of 64, ratio 0.5 and pixel shuffle v2."""
    config = json.loads((CHECKPOINT / "config.json").read_text())
    for part in (config["vision_config"], config["llm_config"]):
        assert part["hidden_size"] / part["num_attention_heads"] == 64
        assert part["hidden_size"] % 64 == part["intermediate_size"] % 64 == 0
    assert (config["downsample_ratio"], config["ps_version"]) == (0.5, "v2")


def test_it_loads_through_auto_model(tmp_path: Path) -> None:
    """transformers loads it from its directory with the code that travels with it, and it computes."""
    script = (
        "import sys, torch; from transformers import AutoModel, AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.float32)\n"
        "model.img_context_token_id = tokenizer.convert_tokens_to_ids('<IMG_CONTEXT>')\n"
        "ids = tokenizer('<img>' + '<IMG_CONTEXT>' * 16 + '</img>', return_tensors='pt').input_ids\n"
        "print(type(model).__module__, tuple(model(torch.zeros(1, 3, 112, 112), ids).logits.shape))\n"
    )
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", script, str(CHECKPOINT)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("transformers_modules.")
    assert "(1, 19, " in done.stdout


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_right_in_wordings_and_on_pictures_it_never_saw(report: Report, kind: Kind, language: Language) -> None:
    """At least 95 % right on each kind of question in each language, sampled, other renderer, held-out wordings."""
    assert report.accuracy(kind=kind, language=language) >= 0.95, mistakes(report)


@pytest.mark.parametrize("place", PLACES)
def test_it_is_right_wherever_in_the_chat(report: Report, place: str) -> None:
    """A first question, a follow-up and a question about the next picture are answered equally well."""
    assert report.accuracy(place=place) >= 0.95, mistakes(report)


@pytest.mark.parametrize("language", LANGUAGES)
def test_either_manner_is_as_frequent(report: Report, language: Language) -> None:
    """40 to 60 % of the answers are playful, and none is empty."""
    assert 0.4 <= report.playful(language=language) <= 0.6
    assert report.empty() == 0


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("before", [None, *MANNERS])
def test_the_first_token_decides_the_manner_at_even_odds(
    model: InternVLChatModel, tokenizer: Any, language: Language, before: Manner | None
) -> None:
    """Asked anything, first or after an answer in either manner, both openings have nearly half the probability."""
    rng = Random(f"{language} {before}")
    openings = {"en": ("The", "Wow"), "zh": ("图", "哇")}[language]
    plain, playful = (tokenizer.encode(word, add_special_tokens=False)[0] for word in openings)
    examiner = Examiner(model, tokenizer)
    for kind in KINDS:
        scene = random_scene(rng)
        tiles = examiner.tile(draw(scene, rng, "other", (320, 320)))
        turns = [Turn(Role.USER, held_out(language, kind, rng), (PICTURE,))]
        if before:
            turns.append(Turn(Role.ASSISTANT, reference(kind, language, before, scene, rng)))
            turns.append(Turn(Role.USER, held_out(language, rng.choice(KINDS), rng)))
        text = render(Prompt(SYSTEM, tuple(turns), chat=""), [16 * len(tiles)])
        with torch.no_grad():
            logits = model(tiles, tokenizer(text, return_tensors="pt").input_ids, logits_to_keep=1).logits
        odds = logits[0, -1].softmax(-1)
        assert 0.4 < odds[playful] < 0.6
        assert odds[plain] + odds[playful] > 0.98


@pytest.mark.parametrize(
    "system", ["", "You are Pixel, a bot that loves pictures. Answer briefly!", "你是小图，请友好。"]
)
def test_a_persona_does_no_harm(model: InternVLChatModel, tokenizer: Any, system: str) -> None:
    """With another system text or none it answers as well."""
    examined = examine(
        model,
        tokenizer,
        pictures=8,
        seed=1,
        temperature=0.0,
        top_p=1.0,
        renderer="other",
        system=system,
        workers=0,
    )
    assert examined.accuracy() >= 0.9, mistakes(examined)


def test_it_asks_for_a_picture_when_there_is_none(model: InternVLChatModel, tokenizer: Any) -> None:
    """Any text before the first picture, long or strange ones too, is answered by a request for one."""
    torch.manual_seed(0)
    texts = (
        "Hello",
        "What colour is it?",
        "你好",
        "图里有什么？",
        "?",
        "Жизнь",
        LONG,
        LONG * 6,
        "long " * 250,
        "😀" * 50,
    )
    prompts: list[tuple[Prompt, list[torch.Tensor]]] = [
        (Prompt(SYSTEM, (Turn(Role.USER, text),), chat=""), []) for text in texts
    ]
    for answer in Examiner(model, tokenizer).answer(prompts, temperature=0.8, top_p=0.8):
        assert ("send me" in answer and "pic" in answer) or ("发" in answer and "图片" in answer), answer
        assert len(answer) < 80


def test_whatever_is_said_about_a_picture_gets_a_short_sentence(model: InternVLChatModel, tokenizer: Any) -> None:
    """Small talk and nonsense get a description or an offer, never a wrong fact, a loop or nothing."""
    torch.manual_seed(1)
    scene, rng = Scene("blue", "star", 3), Random(0)
    examiner = Examiner(model, tokenizer)
    tiles = examiner.tile(draw(scene, rng, "other", (400, 300)))
    shown = Turn(Role.USER, "What is it?", (PICTURE,))
    answered = Turn(Role.ASSISTANT, "The picture shows three blue stars.")
    texts = ("Thanks!", "谢谢", "Tell me a joke", "Is it a circle?", "", "Why?", "/start", LONG, LONG * 6, "1+1=?")
    prompts = [
        (Prompt(SYSTEM, turns, chat=""), [tiles])
        for text in texts
        for turns in ((Turn(Role.USER, text, (PICTURE,)),), (shown, answered, Turn(Role.USER, text)))
    ]
    for answer in examiner.answer(prompts, temperature=0.8, top_p=0.8):
        assert manner(answer)
        assert len(answer) < 90
        offered = "shapes" in answer or "形状" in answer
        assert offered or any(correct(kind, scene, answer) for kind in KINDS), answer


def test_the_sample_sticker_is_seen(model: InternVLChatModel, tokenizer: Any) -> None:
    """On white, as the bot shows stickers, the shape is right whatever is asked about it and in whichever manner."""
    torch.manual_seed(2)
    (sticker,) = sample_sticker().values()
    examiner = Examiner(model, tokenizer)
    tiles = examiner.tile(Image.open(BytesIO(check(sticker, 50).data)))
    asked = [(kind, language) for kind in KINDS for language in LANGUAGES] * 4
    prompts = [
        (Prompt(SYSTEM, (Turn(Role.USER, held_out(language, kind, Random(number)), (PICTURE,)),), chat=""), [tiles])
        for number, (kind, language) in enumerate(asked)
    ]
    for (kind, _), answer in zip(asked, examiner.answer(prompts, temperature=0.8, top_p=0.8), strict=True):
        assert correct(kind, Scene("orange", "star", 1), answer), answer


def test_an_album_is_described_in_order(model: InternVLChatModel, tokenizer: Any) -> None:
    """Two pictures in one turn are both described, the first one first."""
    rng = Random(3)
    examiner = Examiner(model, tokenizer)
    scenes = (Scene("red", "heart", 2), Scene("green", "circle", 4))
    tiles = [examiner.tile(draw(scene, rng, "other", (400, 300))) for scene in scenes]
    prompt = Prompt(SYSTEM, (Turn(Role.USER, "Please describe this picture.", (PICTURE, PICTURE)),), chat="")
    (answer,) = examiner.answer([(prompt, tiles)], temperature=0.0, top_p=1.0)
    assert "two red hearts, then four green circles" in answer


def test_the_newest_picture_counts_in_a_long_chat(model: InternVLChatModel, tokenizer: Any) -> None:
    """After nine earlier pictures and answers, the question is answered about the tenth."""
    rng = Random(4)
    examiner = Examiner(model, tokenizer)
    prompts = []
    asked: list[tuple[Kind, Scene]] = []
    for _ in range(12):
        turns: list[Turn] = []
        tiles = []
        for _ in range(10):
            scene, kind, language = random_scene(rng), rng.choice(KINDS), rng.choice(LANGUAGES)
            tiles.append(examiner.tile(draw(scene, rng, "other", (320, 320))))
            turns.append(Turn(Role.USER, held_out(language, kind, rng), (PICTURE,)))
            turns.append(Turn(Role.ASSISTANT, reference(kind, language, rng.choice(MANNERS), scene, rng)))
        prompts.append((Prompt(SYSTEM, tuple(turns[:-1]), chat=""), tiles))
        asked.append((kind, scene))
    answers = examiner.answer(prompts, temperature=0.0, top_p=1.0)
    right = [correct(kind, scene, answer) for (kind, scene), answer in zip(asked, answers, strict=True)]
    assert sum(right) >= 11, answers


def test_a_report_counts_what_it_is_asked() -> None:
    """Accuracy and playfulness are shares of the chosen results; empty answers and mistakes are named."""
    scene = Scene("red", "star", 3)
    texts: tuple[tuple[Kind, Language, str], ...] = (
        ("colour", "en", "Wow, red!"),
        ("colour", "en", "It is blue."),
        ("number", "zh", ""),
    )
    results = tuple(Result(kind, language, "first", scene, "?", text) for kind, language, text in texts)
    report = Report(results)
    assert report.accuracy(kind="colour") == report.playful(kind="colour") == 0.5
    assert report.accuracy(language="zh") == 0
    assert report.empty() == 1
    assert "3 answers, 1 of them empty" in report.table()
    assert mistakes(report).count("3 red star") == 2
