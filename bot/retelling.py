"""What other rooms have said, told again in people's language: why a run failed, a model was rejected, a wish refused.

Those rooms know no catalogues, and the ledger keeps their sentences as English text. The ones that admins meet in the
ordinary course of things are known here by their words, and what stands in their places is kept. That is where the
line is drawn: whatever is not known here is the account of a technical fault (a library's error, the last lines of a
log, a bad row of somebody's file). It is quoted as it is, and the sentence around it is translated.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final

from bot.i18n import Say, later

KNOWN: Final = (
    # training.data.selection
    later("Not enough yet: {chosen} liked answers, {wanted} needed. Collect {missing} more 👍."),
    later(
        "{cut} of {liked} liked answers were cut off at the longest answer and teach nothing: raise chat.max_new_tokens"
    ),
    later(
        "All {chosen} liked answers are about one picture, so none can be held out to check the new model. Collect 👍 "
        "on other pictures."
    ),
    # training.pipeline
    later(
        "{free} GB are free on the disk of {directory}, a run needs {needed} GB: remove old models, or lower "
        "training.min_free_gigabytes"
    ),
    later(
        "{base} has quantized weights, which can only be chatted with: set inference.model to the checkpoint that they "
        "were made from"
    ),
    later(
        "{base} is {found}, and only an InternVL2 with InternLM2 can be trained: set inference.model to such a "
        "checkpoint"
    ),
    later("answers that it learned from were withdrawn meanwhile"),
    # training.merged_models
    later(
        "{model} was merged again from its adapter and is not the model that was evaluated: the base model, the "
        "adapter or thumbtune has changed since. /retrain makes a new one"
    ),
    later("The adapter of {model} or its base model is gone: choose another model of /models"),
    later("{free} GB are free on the disk of {directory}, merging {model} again needs {needed} GB: make room"),
    # training.data.mixture
    later("all {number} liked answers have more than {most} tokens: raise max_length"),
    # training.worker, training.xtuner.runner, training.merge, training.launcher
    later(
        "{trouble}: set training.while_training to pause, or in training.knobs method to qlora, optimizer to "
        "paged_adamw_8bit, or a lower max_length or rank"
    ),
    later("there is too little memory to load the model"),
    later("there is too little memory to compute {batch} pairs at once"),
    later("the training diverged: lower training.knobs.learning_rate"),
    later("the training diverged, {name} is not finite: lower training.knobs.learning_rate"),
    later("the processes that read the pictures bring nothing any more; finetune.log says why"),
    later("{step} took longer than training.timeout; the log is {log}"),
    later("the {step} process died ({how}); it said last: {words} (all of it in {log})"),
    # training.gate.evaluate
    later("it is no better at the held-out liked answers (loss {new} a token, the live model {live})"),
    later(
        "it answers {new} of the {questions} factual questions right, the live model {live}: more of a loss than "
        "chance explains"
    ),
    later("{number} of its answers are empty or in loops"),
    later("it would read other tokens than the engine: {difference}"),
    # inference.serving.moves
    later(
        "Nobody else would answer in the place of {node}, so it stays in service: first take another one back "
        "(/undrain), or mend it; /status shows them all."
    ),
    # storage.models
    later("The files of {model} were removed: choose a model that is still kept."),
    # storage.runs
    later("Run {run} is {state} already: there is nothing to cancel."),
)

FORMER: Final = (
    # As versions up to 0.1 worded them; they stand in the ledger.
    later(
        "{chosen} liked answers can teach, training.min_rated wants {wanted} (rated {rated}, disliked {disliked}, "
        "unfinished {unfinished}, too long {too_long}, duplicates {duplicates}, selected {selected}, raters {raters}): "
        "collect {missing} more thumbs up, or lower training.min_rated."
    ),
    later(
        "All {chosen} liked answers are about one picture (rated {rated}, disliked {disliked}, unfinished "
        "{unfinished}, too long {too_long}, duplicates {duplicates}, selected {selected}, raters {raters}), so none "
        "can be kept apart to judge by: collect thumbs up on other pictures."
    ),
    later("it is no better on the liked answers that were kept apart ({new} nats a token, the live model {live})"),
    later(
        "it answers {new} of the factual questions right, the live model {live} (of {questions} questions the live "
        "model alone has {live_alone} right and the new one alone {alone}, as chance would have it in {chance} of all "
        "runs)"
    ),
)

_PLACE: Final = re.compile(r"\{(\w+)\}")


def retold(text: str, say: Say) -> str:
    """The text in the language of `say`, as far as it is known; several reasons are told one by one."""
    if not text:
        return ""
    for sentence in (*KNOWN, *FORMER):
        if found := _pattern(sentence).fullmatch(text):
            return say(sentence, **{place: retold(value, say) for place, value in found.groupdict().items()})
    told = say(text)  # a sentence of this room, or a state
    if told == text:
        reasons = text.split("; ")
        each_told = [retold(reason, say) for reason in reasons] if len(reasons) > 1 else reasons
        return text if each_told == reasons else say("; ").join(each_told)
    return told


@cache
def _pattern(sentence: str) -> re.Pattern[str]:
    """What fits the sentence with anything in its places."""
    parts = _PLACE.split(sentence)  # words, the name of a place, words, …
    written = (re.escape(part) if turn % 2 == 0 else f"(?P<{part}>.+?)" for turn, part in enumerate(parts))
    return re.compile("".join(written), re.DOTALL)
