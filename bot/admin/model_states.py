"""The states of a model, as people read them."""

from __future__ import annotations

from typing import Final

from bot.i18n import later
from storage.states import ModelState

MODEL_STATES: Final = {
    ModelState.CANDIDATE: later("candidate"),
    ModelState.LIVE: later("live"),
    ModelState.RETIRED: later("retired"),
    ModelState.REJECTED: later("rejected"),
}
