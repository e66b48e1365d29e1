"""A dataset of validated training examples, in place of XTuner's InternVL_V1_5_Dataset.

Unlike XTuner's class (0.2.0), which supports two language models, this dataset uses the project's own prompt
formats, labels only the liked answers, accepts any number of pictures, and raises an error where XTuner
would substitute a random sample or truncate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from training.data.llava import Lesson, image_files
from training.data.row_parser import parse_row, read_rows
from training.xtuner.encoding import Encoder
from training.xtuner.recipes import Objective
from training.xtuner.vision_cache import cached_features


@dataclass(frozen=True)
class LessonFile:
    """A LLaVA file whose rows have `image_wh`, `length` and `origin`, as written by `training.data.mixture`.

    Attributes:
        path: The file.
        images: The folder of the pictures.
        system: The system prompt for rows that have none.
    """

    path: str
    images: str
    system: str


class LessonDataset(Dataset[dict[str, Any]]):
    """The lessons of a file, each repeated `repeat_times` times.

    Attributes:
        rows: The number of rows in the file.
        modality_length: The length of each sample in tokens, for XTuner's own sampler.
        pictures: The names of the pictures of each sample.
    """

    def __init__(
        self,
        model_path: str,
        lessons: dict[str, str],
        *,
        tiles: int = 0,
        features: str | None = None,
        objective: Objective = "sft",
        repeat_times: int = 1,
        max_length: int,
    ) -> None:
        """Open the dataset.

        Args:
            model_path: The checkpoint directory.
            lessons: The fields of the `LessonFile`; a configuration file cannot contain objects.
            tiles: The maximum number of tiles per picture; 0 for the model's own limit.
            features: The folder of the vision cache; pictures not in the cache are split into tiles. If None,
                samples have the form that XTuner's own model takes: tiles, or zeros if there are no pictures.
            objective: With an objective other than "sft", a sample has a second answer (see `__getitem__`).
            repeat_times: How many times each row is repeated.
            max_length: The maximum number of tokens in a sample.
        """
        self._file = LessonFile(**lessons)
        rows = [row for _, row in read_rows(Path(self._file.path))]
        self.rows = len(rows)
        self._data: list[dict[str, Any]] = rows * repeat_times
        self.modality_length = [row["length"] for row in self._data]
        self.pictures = [tuple(image_files(row)) for row in self._data]
        self._cache = None if features is None else Path(features)
        self._encoder = Encoder(Path(model_path), tiles=tiles)
        self._objective = objective
        self._max_length = max_length

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a sample: token IDs, labels, and features [T, tokens, width] or tiles [T, 3, S, S].

        It also has the names of its pictures, the number of tokens up to the end of the last picture, and whether the
        model computes it as a long one.

        For KTO and DPO, a sample also has its row number, whether the answer is liked, whether a rejected answer
        is known, and `other_ids`, `other_labels` and `other_long` for the same prompt with another answer. For KTO,
        the other answer comes from another row. For DPO, it is the rejected answer, or the same answer again if
        no rejected one is known.

        Samples are encoded on access, because the token IDs of half a million samples would exhaust the memory.
        """
        lesson = self._lesson(index)
        encoded = self._encoder.check(lesson, self._max_length, where=self._data[index]["origin"])
        sample = {
            "input_ids": encoded.input_ids,
            "labels": encoded.labels,
            "pixel_values": self._pixel_values(lesson),
            "pictures": lesson.pictures,
            "pictures_end": self._encoder.pictures_end(encoded),
            "long": self._encoder.is_long(encoded),
        }
        if self._objective == "sft":
            return sample
        if self._objective == "kto":
            # The other row is half a dataset away, because neighbouring rows are often about the same picture.
            other = lesson.answered(self._lesson((index + self.rows // 2) % self.rows).turns[-1].text)
        else:
            other = lesson if lesson.rejected is None else lesson.answered(lesson.rejected.text)
        encoded = self._encoder.encode(other)
        return {
            **sample,
            "row": index % self.rows,
            "liked": lesson.liked,
            "paired": lesson.rejected is not None,
            "other_ids": encoded.input_ids,
            "other_labels": encoded.labels,
            "other_long": self._encoder.is_long(encoded),
        }

    def _lesson(self, index: int) -> Lesson:
        row = self._data[index]
        sizes = tuple((int(width), int(height)) for width, height in row.get("image_wh", ()))
        return replace(parse_row(row, where=row["origin"], system=self._file.system), sizes=sizes)

    def _pixel_values(self, lesson: Lesson) -> torch.Tensor:
        cached = cached_features(self._cache, lesson.pictures) if self._cache and lesson.pictures else None
        if cached is not None:
            return cached
        tiles, tiling = self._encoder.pixel_values(lesson.pictures, Path(self._file.images)), self._encoder.tiling
        if tiles is not None:
            return tiles
        if self._cache is None:
            return torch.zeros(1, 3, tiling.side, tiling.side)
        return torch.zeros(0, tiling.tokens, self._encoder.feature_width)
