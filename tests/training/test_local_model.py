"""Models that answer and score in batches, with prompts and pictures computed once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tokenizer import text_decoder
from inference.messages import Role, Sampling, Turn
from tests.support.lessons import drawn_lessons
from tests.support.small_checkpoints import write_small
from training.adapter import WHOLE, Adapter
from training.data.llava import Lesson
from training.data.row_parser import check_pictures
from training.gate.answer_backend import greedy
from training.gate.local_model import LocalModel

TOKENS = 12
PHI3_SHORT = 110
"""The length above which the small Phi-3 uses its long rotary factors. Some lessons with their answers are longer."""


@pytest.fixture(params=["internvl2-tiny", "qwen2-1b", "qwen3-1b", "phi3-4b"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> LocalModel:
    """A small model of each kind."""
    name: str = request.param
    if name == "phi3-4b":
        return phi3(tmp_path / name, PHI3_SHORT)
    return LocalModel(CHECKPOINT if name == "internvl2-tiny" else write_small(tmp_path / name, name))


def phi3(directory: Path, short_length: int) -> LocalModel:
    """Return a small model with Phi-3 whose rotary factors change above `short_length` positions."""
    model = LocalModel(write_small(directory, "phi3-4b", llm={"original_max_position_embeddings": short_length}))
    with torch.no_grad():
        for weight in model._model.language_model.parameters():
            weight *= 6  # with smaller weights, answers hardly depend on positions
    return model


def lessons(images: Path) -> list[Lesson]:
    """Return questions of several lengths, some of them more than once, and one without a picture."""
    one, two, three, four = (check_pictures(each, images, where="here") for each in drawn_lessons(images, 4))
    text = Lesson("text", "S", (Turn(Role.USER, "Hi!"), Turn(Role.ASSISTANT, "Hi.")), (False, True))
    return [one, two, one, three, three, text, four, one]


def test_a_batch_gives_the_answers_of_single_questions(model: LocalModel, tmp_path: Path) -> None:
    """A question has the same answer alone, in a batch with longer ones, and when it is asked several times."""
    asked = lessons(tmp_path)
    done: list[str] = []
    together = model.answers(asked, tmp_path, greedy(TOKENS), on_batch=done.extend)
    assert together == [model.answers([each], tmp_path, greedy(TOKENS))[0] for each in asked]
    assert done == together
    lengths = [len(model.encoder.prompt_ids(each)) + TOKENS for each in asked]
    assert model._directory.name != "phi3-4b" or min(lengths) <= PHI3_SHORT < max(lengths)


@torch.inference_mode()
def test_an_answer_that_makes_a_sequence_long(tmp_path: Path) -> None:
    """The positions of a short prompt are rotated as those of a long one if the answer makes the sequence long."""
    model = phi3(tmp_path / "model", short_length=14)
    lesson = Lesson("text", "S", (Turn(Role.USER, "Hi!"), Turn(Role.ASSISTANT, "Hi, all of you.")), (False, True))
    prompt, whole = model.encoder.prompt_ids(lesson), model.encoder.encode(lesson).input_ids
    assert len(prompt) < 14 < len(whole)
    [score] = model.log_probabilities([lesson], tmp_path)
    model._model.expect(0)  # a whole sequence is rotated by its own length
    likely = torch.log_softmax(model._model(input_ids=torch.tensor([whole])).logits[0], dim=-1)
    expected = sum(float(likely[place - 1, whole[place]]) for place in range(len(prompt), len(whole)))
    assert score.nats == pytest.approx(expected, rel=1e-4)
    [answer] = model.answers([lesson], tmp_path, greedy(TOKENS))
    said: list[int] = []
    model._model.expect(len(prompt) + TOKENS)
    while len(said) < TOKENS and not set(said) & set(model._ends):
        said.append(int(model._model(input_ids=torch.tensor([[*prompt, *said]])).logits[0, -1].argmax()))
    assert answer == text_decoder(model.encoder.tokenizer)(said).strip()


def test_a_batch_gives_the_scores_of_single_answers(model: LocalModel, tmp_path: Path) -> None:
    """An answer has the same log-probability alone and in a batch with longer answers, prompts and equal prompts."""
    scored = [each.answered(each.turns[-1].text + " Really!" * number) for number, each in enumerate(lessons(tmp_path))]
    together = model.log_probabilities(scored, tmp_path)
    alone = [model.log_probabilities([each], tmp_path)[0] for each in scored]
    assert [each.tokens for each in together] == [each.tokens for each in alone]
    assert [each.nats for each in together] == pytest.approx([each.nats for each in alone], rel=1e-4)
    assert len({round(each.nats, 3) for each in together}) == len(scored)


def test_draws_differ(tmp_path: Path) -> None:
    """Answers drawn for one prompt are independent of each other."""
    torch.manual_seed(0)
    question = lessons(tmp_path)[0]
    sampling = Sampling(temperature=1.5, top_p=1.0, max_new_tokens=TOKENS, top_k=40)
    assert len(set(LocalModel(CHECKPOINT).answers([question] * 12, tmp_path, sampling))) > 2


def test_weights_that_cannot_be_restored_are_an_error(tmp_path: Path) -> None:
    """An adapter for an output layer that shares its weights with the embeddings cannot be removed again."""
    head = "language_model.lm_head.weight"
    model = LocalModel(write_small(tmp_path / "model", "qwen3-1b"))
    save_file({head: torch.zeros_like(model._model.get_parameter(head))}, tmp_path / WHOLE)
    model.apply(Adapter(tmp_path))
    with pytest.raises(ValueError, match=f"does not contain {head}"):
        model.restore()
