"""The card of a trained model: metadata that the Hugging Face hub accepts, counts, verdict and figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils._validators import validate_repo_id

from inference.hub.listing import ORIGIN
from storage.model_manifest import CARD
from storage.translatable_reason import Reason
from training.gate.report import Decision, Drift, Effort, Loss, Report, Taste
from training.job import RATED, Job
from training.model_card import model_card

REPORT = Report(
    Decision.ACCEPTED,
    taste=Taste(answers=45, liked=20, raters=3, agreement=0.75, low=0.65, high=0.85, p_value=0.0012),
    facts=Loss(questions=300, correct=0.9, reference=0.91, bound=1.5, allowed=3.0, passed=True),
    drift=Drift(answers=300, broken=2),
    samples=[{"question": "A question that is not quoted", "answer": "An answer that is not quoted"}],
    broken=["A broken answer that is not quoted"],
    effort=Effort(
        pairs=31, raters=4, votes=40, corrections=2, steps=48, taught={RATED: 31, "aunt-marys-recipes": 62}
    ),
)  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Provide the folder of a base model as `thumbtune fetch` leaves it, with the card of its repository."""
    folder = tmp_path / "InternVL2-2B"
    folder.mkdir()
    (folder / ORIGIN).write_text(json.dumps({"source": "hub", "repo": "OpenGVLab/InternVL2-2B", "commit": "0" * 40}))
    (folder / CARD).write_text("---\nlicense: mit\nbase_model: [a/b]\nlanguage: [multilingual]\n---\n# InternVL2-2B\n")
    return folder


def job(base: Path) -> Job:
    return Job("7", str(base), "train.json", "pictures", work=str(base.parent), system="")


def metadata(card: str) -> dict[str, Any]:
    """Return the metadata of a card as the hub's own library reads them."""
    found: dict[str, Any] = ModelCard(card).data.to_dict()  # type: ignore[no-untyped-call]
    return found


def test_the_metadata_is_what_the_hub_reads(base: Path) -> None:
    """The metadata name the license, base model, relation, library, task, language and tags, but no data set."""
    data = metadata(model_card("run-7", job(base), REPORT))
    assert data == {
        "base_model": "OpenGVLab/InternVL2-2B",
        "base_model_relation": "finetune",
        "license": "mit",
        "language": ["multilingual"],
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["internvl", "custom_code", "lmdeploy", "thumbtune", "sft"],
    }
    validate_repo_id(data["base_model"])


def test_a_base_of_unknown_origin_is_not_guessed(tmp_path: Path) -> None:
    """Without a record of where the base comes from, the card names no repository and no license."""
    data = metadata(model_card("run-7", job(tmp_path), REPORT))
    assert "base_model" not in data and "base_model_relation" not in data
    assert (data["license"], data["language"]) == ("unknown", "multilingual")


@pytest.mark.parametrize("text", ["", "no metadata", "---\n[unclosed\n---\n", "---\n- a list\n---\n", "\xff"])
def test_a_base_with_a_broken_card_gives_a_card(base: Path, text: str) -> None:
    """A card of the base model that cannot be read is treated like a missing one."""
    (base / CARD).write_bytes(text.encode("latin-1"))
    assert metadata(model_card("run-7", job(base), REPORT))["license"] == "unknown"


def test_a_license_with_a_name_keeps_its_link(base: Path) -> None:
    """If the base model has a license of its own, the card keeps the license's name and link."""
    (base / CARD).write_text("---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n")
    data = metadata(model_card("run-7", job(base), REPORT))
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "own", "LICENSE")


def test_the_card_counts_and_does_not_quote(base: Path) -> None:
    """The card has the counts, the verdict and the figures, but no source's name, no question and no answer."""
    text = ModelCard(model_card("run-7", job(base), REPORT)).text
    assert "31 liked answers, with 40 thumbs up from 4 people" in text
    assert "2 of them are corrections" in text
    assert "62 samples from other sources" in text
    assert "qlora of rank 128, objective sft, 6 epochs, learning rate 3e-05, 48 optimizer steps" in text
    assert "The model was accepted" in text
    assert "75.0 % (95 % interval 65.0 % to 85.0 %)" in text
    assert "90.0 % of 300 right, compared with 91.0 %; the loss is at most 1.5 points" in text
    assert "2 of 300" in text
    assert "aunt-mary" not in text and "not quoted" not in text
    assert str(base) not in text


def test_a_rejected_model_says_why(base: Path) -> None:
    """The card of a model that was not accepted says so, with the reason."""
    rejected = replace(REPORT, decision=Decision.REJECTED, reason=Reason("{number} answers loop", number=40))
    assert "The model was rejected: 40 answers loop." in model_card("run-7", job(base), rejected)


def test_the_same_run_gives_the_same_card(base: Path) -> None:
    """A card depends on the job, the report and the base model only."""
    assert model_card("run-7", job(base), REPORT) == model_card("run-7", job(base), Report.from_json(REPORT.to_json()))
