"""Worker: XTuner's InternVL dataset, fed with checked lessons.

What XTuner's own does silently is done strictly here: our prompt format, only the liked answers learned, any number
of pictures, no random sample in place of a broken one, nothing cut. Repetition, lengths and indexing stay XTuner's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from xtuner.dataset import InternVL_V1_5_Dataset
from xtuner.utils import PROMPT_TEMPLATE

from training.data.llava import Lesson, parse_row
from training.xtuner.encoding import Encoder
from training.xtuner.vision_cache import Features


class LikedAnswers(InternVL_V1_5_Dataset):  # type: ignore[misc]
    """The lessons of one LLaVA file, each `repeat_times` (whole) times.

    Each row carries `image_wh`, `length` (tokens, pictures included) and `origin`, as `training.data.mixture` writes
    them.
    """

    def __init__(
        self,
        model_path: str,
        data_path: str,
        image_folder: str,
        system: str,
        tiles: int = 0,
        repeat_times: int = 1,
        max_length: int = 8192,
        features: str | None = None,
    ) -> None:
        """`features` names the folder in which `training.xtuner.vision_cache` keeps what it does of the pictures;
        others are cut into tiles. Without the name the samples are as XTuner's own model reads them: tiles, of zeros
        for none.
        """
        super().__init__(
            model_path,
            # XTuner writes its own texts into the template; nothing here reads it.
            PROMPT_TEMPLATE.internlm2_chat.copy(),
            data_path,
            image_folder,
            repeat_times=repeat_times,
            max_length=max_length,
        )
        self._images = Path(image_folder)
        self._features = None if features is None else Features(Path(features))
        self._encoder = Encoder(Path(model_path), tiles=tiles)
        self._system = system

    def prepare_data(self, index: int) -> dict[str, Any]:
        """One sample: token ids, labels, and its pictures: features [T, tokens, width] or tiles [T, 3, S, S].

        Encoded when it is asked for: the ids of half a million samples at once would fill the memory.
        """
        row = self.data[index]
        lesson = _with_sizes(parse_row(row, where=row["origin"], system=self._system), row)
        encoded = self._encoder.check(lesson, self.max_length, where=row["origin"])
        return {"input_ids": encoded.input_ids, "labels": encoded.labels, "pixel_values": self._look(lesson)}

    def _look(self, lesson: Lesson) -> torch.Tensor:
        sight = self._encoder.sight
        if lesson.pictures:
            kept = None if self._features is None else self._features.of(lesson.pictures)
            return torch.cat([sight.look(self._images / name) for name in lesson.pictures]) if kept is None else kept
        if self._features is None:
            return torch.zeros(1, 3, sight.side, sight.side)
        return torch.zeros(0, sight.tokens, sight.width)


def _with_sizes(lesson: Lesson, row: dict[str, Any]) -> Lesson:
    sizes = tuple((int(width), int(height)) for width, height in row.get("image_wh", ()))
    return Lesson(lesson.name, lesson.system, lesson.turns, lesson.learned, sizes)
