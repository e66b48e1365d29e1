"""Worker: XTuner's InternVL dataset, fed with checked lessons.

What XTuner's own does silently is done strictly here: our prompt format, only the liked answers learned, any number
of pictures, no random sample in place of a broken one, nothing cut. Repetition, lengths and indexing stay XTuner's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from xtuner.dataset import InternVL_V1_5_Dataset
from xtuner.utils import PROMPT_TEMPLATE

from training.encoding import Encoder
from training.llava import Lesson, parse_row

_KEPT_BYTES: Final = 256_000_000


class LikedAnswers(InternVL_V1_5_Dataset):  # type: ignore[misc]
    """The lessons of one LLaVA file, each `repeat_times` (whole) times.

    Each row carries `image_wh`, `length` (tokens, pictures included) and `origin`, as `training.mixture` writes them.
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
    ) -> None:
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
        self._tiles: dict[tuple[str, ...], torch.Tensor] = {}
        self._room = _KEPT_BYTES
        self._encoder = Encoder(Path(model_path), tiles=tiles)
        self._system = system

    def prepare_data(self, index: int) -> dict[str, Any]:
        """One sample: token ids, labels, and tiles [T, 3, S, S] (one of zeros for a text without pictures).

        Encoded when it is asked for: the ids of half a million samples at once would fill the memory.
        """
        row = self.data[index]
        lesson = _with_sizes(parse_row(row, where=row["origin"], system=self._system), row)
        encoded = self._encoder.check(lesson, self.max_length, where=row["origin"])
        return {"input_ids": encoded.input_ids, "labels": encoded.labels, "pixel_values": self._look(lesson)}

    def _look(self, lesson: Lesson) -> torch.Tensor:
        """The tiles of one lesson; while there is room they are kept, each epoch sees the same."""
        if lesson.pictures in self._tiles:
            return self._tiles[lesson.pictures]
        side = self._encoder.sight.side
        pixels = self._encoder.pixel_values(lesson, self._images)
        if pixels is None:
            pixels = torch.zeros(1, 3, side, side)
        if pixels.nbytes <= self._room:
            self._room -= pixels.nbytes
            self._tiles[lesson.pictures] = pixels
        return pixels


def _with_sizes(lesson: Lesson, row: dict[str, Any]) -> Lesson:
    sizes = tuple((int(width), int(height)) for width, height in row.get("image_wh", ()))
    return Lesson(lesson.name, lesson.system, lesson.turns, lesson.learned, sizes)
