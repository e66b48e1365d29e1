"""The model card of a trained model, a README.md as the Hugging Face hub reads it.

A card contains only counts and figures: no names of people or imported sources, no questions or answers. See
https://huggingface.co/docs/hub/model-cards for the metadata.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from inference.hub.listing import ORIGIN
from storage.model_manifest import CARD
from training.gate.report import Decision, Loss, Report
from training.job import RATED, Job

_VERDICTS: Final = {
    Decision.ACCEPTED: "The model was accepted: its gains follow the votes, and it lost no more facts than allowed.",
    Decision.UNDECIDED: "There were too few votes to decide about the model",
    Decision.REJECTED: "The model was rejected",
}

_TEXT: Final = """
# {name}

{base}, fine-tuned by thumbtune on answers about pictures that people liked.

## Training data

{data}

The data are private: the card only counts them, and neither names people nor quotes their texts.

## Training

{training}

## Evaluation

{verdict}

| | |
| --- | --- |
{figures}

## Use

{use}"""

_USE_MODEL: Final = """\
With [lmdeploy](https://github.com/InternLM/lmdeploy), where `{name}` is this directory or repository:

```python
from lmdeploy import pipeline
from lmdeploy.vl import load_image

pipe = pipeline("{name}", trust_remote_code=True)
print(pipe(("What is in this picture?", load_image("picture.jpg"))).text)
```

`lmdeploy serve api_server {name} --trust-remote-code` serves it with OpenAI's API. The code in the
repository is the base model's, unchanged.
"""

_USE_ADAPTER: Final = """\
`adapter_model.safetensors` is an adapter in PEFT's format for the base model's `language_model`. If the vision tower
was trained, its adapter is in `vision/`. `whole.safetensors` contains the weights that were trained in full, under
their names in the base model's checkpoint.
"""


def model_card(name: str, job: Job, report: Report, *, adapter: bool = False) -> str:
    """Return the card of the model `name`, which `job` trained and `report` judges, or of its adapter alone."""
    base = Path(job.base)
    return f"---\n{_metadata(job, adapter)}---\n" + _TEXT.format(
        name=name,
        base=base_repository(base) or "A local checkpoint",
        data="\n".join(f"- {each}" for each in _data(report)),
        training=_training(job, report),
        verdict=_verdict(report),
        figures="\n".join(f"| {figure} | {value} |" for figure, value in _figures(report)),
        use=_USE_ADAPTER if adapter else _USE_MODEL.format(name=name),
    )


def _metadata(job: Job, adapter: bool) -> str:
    from huggingface_hub import ModelCardData  # it takes a second to import

    base = Path(job.base)
    origin = base_repository(base)
    known = _base_metadata(base)
    data = ModelCardData(
        base_model=origin or None,
        base_model_relation=("adapter" if adapter else "finetune") if origin else None,
        license=known.get("license", "unknown"),
        license_name=known.get("license_name"),
        license_link=known.get("license_link"),
        language=known.get("language", "multilingual"),
        library_name="peft" if adapter else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["internvl", "custom_code", "lmdeploy", "thumbtune", job.objective],
    )
    return f"{data.to_yaml()}\n"


def _base_metadata(base: Path) -> dict[str, Any]:
    """Return the metadata of the base model's own card, or an empty dictionary if no card can be read."""
    from huggingface_hub.repocard import metadata_load
    from yaml import YAMLError

    with suppress(OSError, ValueError, YAMLError):
        return metadata_load(base / CARD) or {}
    return {}


def base_repository(base: Path) -> str:
    """Return the repository that the base model was fetched from, or an empty string if it is unknown."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((base / ORIGIN).read_bytes())["repo"])
    return ""


def _data(report: Report) -> list[str]:
    effort = report.effort
    rows = [f"{effort.pairs} liked answers, with {effort.votes} thumbs up from {effort.raters} people"]
    if effort.corrections:
        rows.append(f"{effort.corrections} of them are corrections that people suggested and others confirmed")
    if others := sum(number for source, number in effort.taught.items() if source != RATED):
        rows.append(f"{others} samples from other sources, mixed in")
    return rows


def _training(job: Job, report: Report) -> str:
    how = f"{job.method} of rank {job.rank}" if job.method != "full" else "full fine-tuning"
    chosen = f"{how}, objective {job.objective}, {job.epochs:g} epochs, learning rate {job.learning_rate:g}"
    if job.recipe:
        chosen = "a custom configuration"
    return f"[XTuner](https://github.com/InternLM/xtuner), {chosen}, {report.effort.steps} optimizer steps."


def _verdict(report: Report) -> str:
    verdict = _VERDICTS[report.decision]
    return f"{verdict}: {report.reason}." if report.reason else f"{verdict.removesuffix('.')}."


def _figures(report: Report) -> list[tuple[str, str]]:
    taste, drift = report.taste, report.drift
    rows = []
    if taste.answers:
        rows += [
            ("rated answers used to judge the model", f"{taste.answers}, {taste.liked} of them liked"),
            (
                "agreement of its gains with the votes (50 %: none)",
                f"{_percent(taste.agreement)} (95 % interval {_percent(taste.low)} to {_percent(taste.high)})",
            ),
            ("p-value", f"{taste.p_value:.2g}"),
        ]
    for kind, loss in (
        ("factual questions, against the model that was live", report.facts),
        ("factual questions, against the base model", report.facts_base),
        ("leading questions, against the model that was live", report.leading),
        ("leading questions, against the base model", report.leading_base),
    ):
        if loss.questions:
            rows.append((kind, _loss(loss)))
    if drift.answers:
        rows.append(("empty or looping answers", f"{drift.broken} of {drift.answers}"))
    return rows or [("rated answers used to judge the model", "0")]


def _loss(loss: Loss) -> str:
    return (
        f"{_percent(loss.correct)} of {loss.questions} right, compared with {_percent(loss.reference)}; "
        f"the loss is at most {loss.bound:.1f} points"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
