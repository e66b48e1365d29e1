"""Token ids of a prompt, and where its pictures stand among them.

The one way from a `Prompt` to ids: the CPU engine answers from them, whoever compares engines asks here. Takes any
loaded tokenizer of an InternVL2 checkpoint; needs neither torch nor the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inference.chat_format.template import IMG_CONTEXT, render
from inference.messages import Prompt


@dataclass(frozen=True, slots=True)
class Span:
    """A picture's positions: the first, and how many."""

    start: int
    length: int

    @property
    def stop(self) -> int:
        """The position after the last."""
        return self.start + self.length


def token_ids(prompt: Prompt, picture_tokens: Sequence[int], tokenizer: Any) -> tuple[list[int], list[Span]]:
    """The ids of the rendered prompt, `<s>` first, and the span of each picture's `<IMG_CONTEXT>` run.

    `picture_tokens` as in `prompt.render`. Raises ValueError if the tokenizer does not read `<IMG_CONTEXT>` as
    one token or puts no `<s>` in front.
    """
    context = tokenizer.convert_tokens_to_ids(IMG_CONTEXT)
    # One <IMG_CONTEXT> for each picture is tokenised and then multiplied: special tokens do not touch their
    # neighbours, and thousands of them in a text cost a tokenizer more than the rest.
    short = tokenizer(render(prompt, [1] * len(picture_tokens)))["input_ids"]
    if short[:1] != [tokenizer.bos_token_id] or short.count(context) != len(picture_tokens):
        raise ValueError("the tokenizer does not write an InternVL2 prompt: <s> or <IMG_CONTEXT> is missing")
    ids: list[int] = []
    spans: list[Span] = []
    lengths = iter(picture_tokens)
    for token in short:
        if token == context:
            spans.append(Span(len(ids), next(lengths)))
            ids += [token] * spans[-1].length
        else:
            ids.append(token)
    return ids, spans
