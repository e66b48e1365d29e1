"""Models that answer and score in batches, with prompts and pictures computed once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from inference.internvl2.tiny import CHECKPOINT
from inference.messages import Role, Sampling, Turn
from tests.support.lessons import drawn_lessons
from tests.support.small_checkpoints import write_small
from training.adapter import WHOLE, Adapter
from training.data.llava import Lesson
from training.data.row_parser import check_pictures
from training.gate.local_model import LocalModel, greedy

TOKENS = 12


@pytest.fixture(params=["internvl2-tiny", "qwen2-1b", "qwen3-1b", "phi3-4b"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> LocalModel:
    """A small model of each kind."""
    name: str = request.param
    return LocalModel(CHECKPOINT if name == "internvl2-tiny" else write_small(tmp_path / "model", name))


def lessons(images: Path) -> list[Lesson]:
    """Return questions of several lengths, some of them more than once, and one without a picture."""
    one, two, three, four = (check_pictures(each, images, where="here") for each in drawn_lessons(images, 4))
    text = Lesson("text", "S", (Turn(Role.USER, "Hi!"), Turn(Role.ASSISTANT, "Hi.")), (False, True))
    return [one, two, one, three, three, text, four, one]


def test_a_batch_gives_the_answers_of_single_questions(model: LocalModel, tmp_path: Path) -> None:
    """A question has the same answer alone, in a batch with longer ones, and when it is asked several times."""
    asked = lessons(tmp_path)
    done: list[int] = []
    together = model.answers(asked, tmp_path, greedy(TOKENS), on_batch=done.append)
    assert together == [model.answers([each], tmp_path, greedy(TOKENS))[0] for each in asked]
    assert sum(done) == len(asked)


def test_draws_differ(tmp_path: Path) -> None:
    """Answers drawn for one prompt are independent of each other."""
    torch.manual_seed(0)
    question = lessons(tmp_path)[0]
    sampling = Sampling(temperature=1.5, top_p=1.0, max_new_tokens=TOKENS, top_k=40)
    assert len(set(LocalModel(CHECKPOINT).answers([question] * 12, tmp_path, sampling))) > 2


def test_weights_that_cannot_be_restored_are_an_error(tmp_path: Path) -> None:
    """An adapter for an output layer that shares its weights with the embeddings cannot be taken out again."""
    head = "language_model.lm_head.weight"
    model = LocalModel(write_small(tmp_path / "model", "qwen3-1b"))
    save_file({head: torch.zeros_like(model._model.get_parameter(head))}, tmp_path / WHOLE)
    model.apply(Adapter(tmp_path))
    with pytest.raises(ValueError, match=f"does not contain {head}"):
        model.restore()
