"""Over several runs, the bot prunes merged models to the configured number and can restore pruned ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.state_machines import ModelState
from tests.support.children import until
from tests.support.person import UP
from tests.support.whole_bot import ADMIN, picture, whole_bot, words
from training.run_folder import ADAPTER

RUNS = 4


async def test_runs_leave_the_set_number_of_merged_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The live model, the previous one and one more are kept; a pruned model is merged again when promoted."""
    async with whole_bot(tmp_path, monkeypatch) as place, place.running(training={"keep_models": 1}):
        admin = await place.person(ADMIN, "Ada", "en")
        for seed in range(6):
            answer = await admin.asks(photo=picture(seed))
            await admin.toast(await admin.taps(UP, answer))
        for number in range(1, RUNS + 1):
            place.cue("worse" if number == 2 else "good")
            asked = await admin.command("/retrain")
            if number > 1:
                same = await place.says(
                    ADMIN, lambda said: "Nothing has changed" in words(said), after=asked["message_id"]
                )
                await admin.taps("Train again", same)
            await place.says(ADMIN, lambda said, number=number: f"Run {number} is done" in words(said))  # type: ignore[misc]
        folder = place.data / "models"
        kept = ["run-1", "run-3", "run-4"]
        await until(lambda: sorted(each.name for each in folder.iterdir()) == kept)
        assert all((place.data / "runs" / str(number) / ADAPTER).is_dir() for number in range(1, RUNS + 1))
        async with place.ledger() as ledger:
            evaluated = (await ledger.models.get("run-2")).manifest_hash
            await admin.command("/models")
            await place.says(
                ADMIN, lambda said: "run-2: rejected, archived (rebuilt before it answers again)" in words(said)
            )
            await admin.command("/promote run-2")
            asked = await place.says(ADMIN, lambda said: words(said).startswith("run-2 didn't go live"))
            await admin.taps("Switch to run-2", asked)
            await place.says(ADMIN, lambda said: words(said) == "run-2 now answers everyone.")
            model = await ledger.models.get("run-2")
            assert (model.state, model.pruned, model.manifest_hash) == (ModelState.LIVE, False, evaluated)
        await until(lambda: sorted(each.name for each in folder.iterdir()) == ["run-2", "run-3", "run-4"])
