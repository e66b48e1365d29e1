"""Users' XTuner configurations: the values read from them, and errors."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from inference.internvl2.families import INTERNVL2
from inference.internvl2.tiny import CHECKPOINT
from tests.support.llava_files import said, write_file
from training.command_jobs import ImportJob
from training.data.importing import import_source
from training.data.row_parser import RowError
from training.job import TrainingError, ignore

GOOD = """
model = dict(model_path="base")
train_dataloader = dict(batch_size=2, dataset=dict(type="InternVL_V1_5_Dataset", max_length=40))
optim_wrapper = dict(optimizer=dict(type="AdamW"))
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model = dict(\n", "is not a configuration that XTuner can read"),
        ("a = 1\n", "has no model.model_path: start from XTuner's own"),
        (GOOD.replace('dict(model_path="base")', "3"), "has no model.model_path"),
        (GOOD.replace("dataset=dict", "datasets=dict"), "has no train_dataloader.dataset"),
        (GOOD.replace("=40", '="8k"'), "max_length of '8k'"),
    ],
)
def test_an_unusable_configuration_is_named(tmp_path: Path, text: str, words: str) -> None:
    """An unusable XTuner configuration raises an error that names the file and the problem.

    The error is raised when the maximum length is read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mmengine's imports, not ours
        from training.xtuner.user_config import user_max_length

    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(TrainingError, match=f"mine.py .*{words}"):
        user_max_length(str(tmp_path / "mine.py"))


def test_an_import_respects_the_maximum_length(tmp_path: Path) -> None:
    """An import rejects rows that are longer than the user's configuration allows, as training would."""
    (tmp_path / "mine.py").write_text(GOOD)
    file = write_file(tmp_path / "rows.json", [{"conversations": said("Why?" * 20, "So.")}])
    paths = (str(file), str(tmp_path), str(tmp_path / "sources"), str(CHECKPOINT))
    job = ImportJob(
        "mine", *paths, work="", system=INTERNVL2.system, threads=1, recipe=str(tmp_path / "mine.py"), max_length=512
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RowError, match="more than max_length 40"):
            import_source(job, ignore)
