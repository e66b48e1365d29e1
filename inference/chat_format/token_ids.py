"""Token IDs of a prompt, and the positions of its pictures among the IDs.

This module works with the loaded tokenizer of any InternVL checkpoint and needs neither torch nor the
model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inference.chat_format.template import BOS, IMG_CONTEXT, STOP_TOKENS, render
from inference.internvl2.families import ModelFamily
from inference.messages import Prompt


def token_ids(
    prompt: Prompt, picture_tokens: Sequence[int], tokenizer: Any, family: ModelFamily
) -> tuple[list[int], list[range]]:
    """Tokenize a prompt, and return its token IDs and the positions of its pictures.

    Args:
        prompt: The prompt.
        picture_tokens: The number of feature tokens of each picture, as for `template.render`.
        tokenizer: A transformers tokenizer.
        family: The family of the model.

    Returns:
        The token IDs, beginning with `<s>` if the tokenizer has such a token, and the positions of each
        picture's `<IMG_CONTEXT>` tokens.

    Raises:
        ValueError: The tokenizer does not read `<IMG_CONTEXT>` as one token, or does not add its `<s>`.
    """
    context = tokenizer.convert_tokens_to_ids(IMG_CONTEXT)
    # One <IMG_CONTEXT> for each picture is tokenized and repeated afterwards: special tokens do not affect their
    # neighbours, and tokenizing thousands of them would take longer than tokenizing the rest.
    short = tokenizer(render(prompt, [1] * len(picture_tokens), family))["input_ids"]
    start = tokenizer.bos_token_id
    if start is None:
        start = tokenizer.get_added_vocab().get(BOS)
    if start not in (None, short[0]) or short.count(context) != len(picture_tokens):
        raise ValueError("the tokenizer does not support InternVL prompts: <s> or <IMG_CONTEXT> is missing")
    ids: list[int] = []
    spans: list[range] = []
    counts = iter(picture_tokens)
    for token in short:
        count = next(counts) if token == context else 1
        if token == context:
            spans.append(range(len(ids), len(ids) + count))
        ids += [token] * count
    return ids, spans


def stop_ids(generation_config: Any, tokenizer: Any) -> frozenset[int]:
    """Return the token IDs that end an answer, taken from the generation configuration and the chat format.

    Not all official checkpoints list the end token of their chat template in the generation configuration.
    """
    listed = generation_config.eos_token_id
    ids = set(listed if isinstance(listed, list) else [] if listed is None else [listed])
    known = tokenizer.get_added_vocab()
    return frozenset(ids | {known[token] for token in STOP_TOKENS if token in known})
