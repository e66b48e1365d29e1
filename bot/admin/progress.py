"""Descriptions of a run's progress in messages to admins, in /status and on the operator page.

A description covers the state, a progress bar, the loss and the time left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from bot.admin.status_labels import line, named
from bot.i18n import Say, later
from storage.counts import Approval
from storage.learning_records import Model, Run, TrainedOn
from storage.state_machines import RUN_TRANSITIONS, ModelState, RunState
from training.evidence.proportions import wilson_interval
from training.job import Progress
from training.launcher import LastProgress
from training.number_format import clock

BAR: Final = 20
RUN_STATES: Final = {
    RunState.DUE: later("queued"),
    RunState.TRAINING: later("training"),
    RunState.MERGING: later("merging"),
    RunState.EVALUATING: later("evaluating"),
    RunState.DONE: later("done"),
    RunState.FAILED: later("failed"),
    RunState.CANCELLED: later("cancelled"),
}

CHECKED: Final = later("{done} of {total} rows checked")
ANSWERS: Final = later("{done} of {total} answers")
DONE_OF: Final = {
    RunState.TRAINING: later("{done} of {total} training steps"),
    RunState.MERGING: later("{done} of {total} weights merged"),
    RunState.EVALUATING: later("{done} of at least {total} answers"),
}
"""The sentence that counts the steps of each stage.

The evaluation counts the answers that models give or score. It asks more questions if the first ones are not decisive.
"""

MODEL_STATES: Final = {
    ModelState.CANDIDATE: later("candidate"),
    ModelState.UNDECIDED: later("undecided"),
    ModelState.CANARY: later("canary"),
    ModelState.LIVE: later("live"),
    ModelState.RETIRED: later("retired"),
    ModelState.REJECTED: later("rejected"),
}

REMOVED: Final = later("removed")
PRUNED: Final = later("{state}, archived (rebuilt before it answers again)")
WAITING: Final = later("{state}, waiting for approval")
MERGING: Final = later("Merging the model again from its adapter: {percent} %…")

SILENT: Final = later("Run {run} has made no progress for {time}. See {log}; /cancel stops it.")


def silence(word: LastProgress) -> dict[str, object]:
    """Return the values for the placeholders of `SILENT`, the message about a run without progress."""
    return {"run": word.run, "time": clock(word.seconds), "log": str(word.log)}


def run_progress(run: Run, say: Say) -> str:
    """Describe the progress of an active run on several lines.

    The text includes a progress bar once the number of steps is known.
    """
    lines = [_heading(run, say)]
    if run.trigger == "web":
        lines.append(say("Started on the Review page."))
    if run.samples:
        lines.append(line(named("samples", run.samples, say)))
    if details := progress_details(run, say):
        done = min(run.step, run.steps)
        filled = BAR * done // run.steps
        lines.append(f"{'▓' * filled}{'░' * (BAR - filled)} {100 * done // run.steps} % ({details[0]})")
        lines += details[1:]
    if run.loss is not None:
        lines.append(say("Average loss over the last tenth of the steps: {loss}", loss=f"{run.loss:.3f}"))
    return "\n".join(lines)


def _heading(run: Run, say: Say) -> str:
    if run.state is RunState.DONE:
        return say("Run {run} is done", run=run.id)
    return say("Run {run}: {state}", run=run.id, state=say(RUN_STATES[run.state]))


def progress_details(run: Run, say: Say) -> list[str]:
    """Return the progress of an active run in its current stage, and the time left, as far as they are known."""
    if not run.steps or run.state not in DONE_OF:
        return []
    # The workers report a loss from the first training step on.
    sentence = CHECKED if run.state is RunState.TRAINING and run.loss is None else DONE_OF[run.state]
    details = [say(sentence, done=min(run.step, run.steps), total=run.steps)]
    if run.seconds_left is not None and round(run.seconds_left) > 0:
        details.append(say("Time left in this stage: {time}", time=clock(run.seconds_left)))
    return details


def held_back(models: Iterable[Model]) -> dict[str, Model]:
    """Return the rejected and undecided models, keyed by ID."""
    return {model.id: model for model in models if model.state in (ModelState.REJECTED, ModelState.UNDECIDED)}


def outcome(run: Run, held: Mapping[str, Model]) -> tuple[str, str]:
    """Return the state to show for a run, and the reason for it or, if there is none, the ID of the run's model.

    If the model is in `held` (see `held_back`), the model's state and reason replace the run's own.
    """
    if model := held.get(run.model or ""):
        return model.state, model.reason or model.id
    return run.state, run.reason or run.model or ""


def run_line(run: Run, held: Mapping[str, Model], say: Say) -> str:
    """Describe an ended run on one line, or an active run as `run_progress` does.

    `held` is the result of `held_back`.
    """
    if RUN_TRANSITIONS[run.state]:
        return run_progress(run, say)
    if model := held.get(run.model or ""):
        text = say("Run {run}: {state}", run=run.id, state=say(MODEL_STATES[model.state]))
        return f"{text} ({say(model.reason)})" if model.reason else text
    text = _heading(run, say)
    if run.reason and run.state is not RunState.CANCELLED:  # the reason would only repeat the state
        text += f" ({say(run.reason)})"
    elif run.model:
        text += f" → {run.model}"
    return text


def model_state(model: Model, say: Say, *, approve: bool = False) -> str:
    """Describe the state of a model, including whether its files still exist.

    With `approve`, the value of `training.approve`, a candidate is described as waiting for approval.
    """
    state = say(MODEL_STATES[model.state] if model.kept else REMOVED)
    if approve and model.state is ModelState.CANDIDATE and model.kept:
        state = say(WAITING, state=state)
    return say(PRUNED, state=state) if model.pruned else state


def merging(progress: Progress, say: Say) -> str:
    """Describe the progress of merging a model again after its files were removed."""
    return say(MERGING, percent=100 * progress.step // max(1, progress.steps))


def taught_by(taught: TrainedOn, say: Say) -> str:
    """Describe what a model learned from: the numbers of liked answers, votes and raters."""
    return say(
        "{answers} ({votes} from {people})",
        answers=say.count("{number} liked answer", "{number} liked answers", taught.answers),
        votes=say.count("{number} vote", "{number} votes", taught.votes),
        people=say.count("{number} person", "{number} people", taught.people),
    )


def approval_text(approval: Approval, say: Say) -> str:
    """Describe the share of 👍 on a model's answers, with its 95 % interval and the number of votes.

    There must be at least one vote.
    """
    low, high = wilson_interval(approval.ups, approval.votes)
    return say(
        "{share} % 👍 ({low}–{high} %, {votes})",
        share=f"{100 * approval.share:.0f}",
        low=f"{100 * low:.0f}",
        high=f"{100 * high:.0f}",
        votes=say.count("{number} vote", "{number} votes", approval.votes),
    )


def share_line(largest: float, say: Say) -> str:
    """Return a line about the largest share of the training data that comes from a single rater.

    `largest` is the share, from 0 to 1.
    """
    return say("Largest share from one person: {share} %.", share=f"{100 * largest:.0f}")
