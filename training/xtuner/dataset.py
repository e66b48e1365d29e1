"""XTuner's InternVL dataset over validated lessons.

Differs from XTuner's InternVL_V1_5_Dataset (0.2.0): our prompt format, labels for the liked answers alone, any number
of pictures, and an error where XTuner substitutes a random sample or truncates. Repetition, lengths and indexing are
XTuner's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from xtuner.dataset import InternVL_V1_5_Dataset
from xtuner.utils import PROMPT_TEMPLATE

from training.data.llava import Lesson, parse_row
from training.xtuner.encoding import Encoder
from training.xtuner.vision_cache import VisionCache


class LessonDataset(InternVL_V1_5_Dataset):  # type: ignore[misc]
    """The lessons of a LLaVA file, each `repeat_times` times (a whole number).

    Each row has `image_wh`, `length` (tokens, pictures included) and `origin`, as `training.data.mixture` writes them.
    """

    def __init__(
        self,
        model_path: str,
        data_path: str,
        image_folder: str,
        *,
        system: str,
        tiles: int = 0,
        features: str | None = None,
        **options: Any,
    ) -> None:
        """Open the file.

        `features` is the folder of the `VisionCache`; pictures that it lacks are cut into tiles. Without `features` the
        samples suit XTuner's own model, which takes tiles, and zeros for a sample without pictures. `options` are
        XTuner's `repeat_times` and `max_length`.
        """
        super().__init__(
            model_path,
            # XTuner changes the template; nothing here uses it.
            PROMPT_TEMPLATE.internlm2_chat.copy(),
            data_path,
            image_folder,
            **options,
        )
        self._images = Path(image_folder)
        self._cache = None if features is None else VisionCache(Path(features))
        self._encoder = Encoder(Path(model_path), tiles=tiles)
        self._system = system

    def prepare_data(self, index: int) -> dict[str, Any]:
        """Return a sample: token ids, labels, and features [T, tokens, width] or tiles [T, 3, S, S].

        Samples are encoded on access: the ids of half a million would fill the memory.
        """
        row = self.data[index]
        lesson = _with_sizes(parse_row(row, where=row["origin"], system=self._system), row)
        encoded = self._encoder.check(lesson, self.max_length, where=row["origin"])
        return {"input_ids": encoded.input_ids, "labels": encoded.labels, "pixel_values": self._pixel_values(lesson)}

    def _pixel_values(self, lesson: Lesson) -> torch.Tensor:
        cached = self._cache.get(lesson.pictures) if self._cache and lesson.pictures else None
        if cached is not None:
            return cached
        tiles, tiling = self._encoder.pixel_values(lesson, self._images), self._encoder.tiling
        if tiles is not None:
            return tiles
        if self._cache is None:
            return torch.zeros(1, 3, tiling.side, tiling.side)
        return torch.zeros(0, tiling.tokens, self._encoder.feature_width)


def _with_sizes(lesson: Lesson, row: dict[str, Any]) -> Lesson:
    sizes = tuple((int(width), int(height)) for width, height in row.get("image_wh", ()))
    return Lesson(lesson.name, lesson.system, lesson.turns, lesson.learned, sizes)
